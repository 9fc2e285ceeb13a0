"""RP2: its masks at every size of image, and its optimisation against a transcription and a linear model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import RP2, SampleRng

spec = importlib.util.spec_from_file_location("reference_rp2", Path(__file__).parents[1] / "reference" / "rp2.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

SHAPE = (2, 6, 5)
AREAS = [30, 49, 45, 29, 40]
EXTENT = [(15, 25, 8, 22), (7, 13, 9, 18), (15, 21, 13, 24), (3, 13, 1, 17), (7, 24, 11, 20)]


def masks_at(height: int, width: int) -> Tensor:
    x = torch.zeros(5, 1, height, width)
    return RP2(mask=torch.arange(5)).window(x)[:, 0]


class Linear(nn.Module):
    """Class 1 wins where w . (x - 1/2) > 0; ``gain`` makes it as confident as wanted."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        score = ((x - 0.5) * self.w).flatten(1).sum(1) * self.gain
        return torch.stack([-score, score], 1)


class Curved(nn.Module):
    """A small smooth network of four classes."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(2)
        self.register_buffer("a", torch.randn(60, 16, generator=g) / 4)
        self.register_buffer("b", torch.randn(16, 4, generator=g) * 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x.flatten(1) - 0.5) @ self.a) @ self.b


def images(rows: int) -> Tensor:
    """Some of the pixels are black or white."""
    return (torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(5)) * 1.4 - 0.2).clamp(0, 1)


def some_masks() -> Tensor:
    masks = torch.zeros(3, *SHAPE[1:])
    masks[0, 1:4, 1:3], masks[1, 0], masks[2, :, 4], masks[2, 5, 0] = 1, 1, 1, 1
    return masks


def test_the_sheets_masks() -> None:
    """Area and extent of each on 32x32 pixels; the first pixel by pixel."""
    masks = masks_at(32, 32)
    assert masks.flatten(1).sum(1).tolist() == AREAS
    for mask, extent in zip(masks, EXTENT, strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) == extent
    assert bool(masks[0, 15:19, 8:10].all())
    assert bool(masks[0, 18:20, 20:23].all())
    assert bool(masks[0, 22:25, 9:13].all())
    assert bool(masks[0, 24:26, 18:20].all())


def test_masks_scale_with_the_image() -> None:
    twice = masks_at(32, 32).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(masks_at(64, 64), twice)
    assert torch.equal(masks_at(32, 64), twice[:, ::2])
    share = masks_at(28, 28).float().mean((1, 2)) / (torch.tensor(AREAS) / 1024)
    assert share.min() > 0.85
    assert share.max() < 1.15


def test_masks_as_a_tensor() -> None:
    """At the size of the image they are taken as they are; rectangles mean the same as the mask that they draw."""
    x = torch.zeros(3, *SHAPE)
    assert torch.equal(RP2(masks=some_masks(), mask=torch.arange(3)).window(x)[:, 0], some_masks() > 0)
    drawn = torch.zeros(2, 8, 8)
    drawn[0, 1:4, 2:3], drawn[1, 5:8, 0:8] = 1, 1
    as_lists = RP2(masks=[[[1, 3, 2, 2]], [[5, 7, 0, 7]]], canvas=8)
    for size in (8, 5, 19):
        x = torch.zeros(30, 1, size, size + 2)
        assert torch.equal(as_lists.window(x), RP2(masks=drawn).window(x))


def test_each_row_has_one_of_the_masks() -> None:
    x = torch.zeros(5000, 1, 32, 32)
    drawn = RP2().window(x)[:, 0]
    hits = (drawn[:, None] == masks_at(32, 32)[None]).flatten(2).all(2)
    assert bool((hits.sum(1) == 1).all())
    assert (hits.sum(0) - 1000).abs().max() < 4 * 800**0.5
    one = RP2(mask=3).window(x[:4])[:, 0]
    assert torch.equal(one, masks_at(32, 32)[3].expand(4, -1, -1))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("penalty", "steps"), [(0.0, 25), (0.3, 25), (0.0, 1)])
def test_equals_its_transcription(penalty: float, steps: int, targeted: bool) -> None:
    model, x, masks = Curved(), images(6), some_masks()
    y, which = model(x).argmax(1), torch.tensor([0, 1, 2, 2, 1, 0])
    target, rng = (y + 1) % 4 if targeted else None, SampleRng(1, "test", 0, torch.arange(6))
    attack = RP2(masks=masks, mask=which, lr=0.03, penalty=penalty, steps=steps)
    x_adv = attack(model, x, y, target=target, rng=rng)
    start = torch.where(masks[which][:, None] > 0, rng.uniform("start", *SHAPE), x)
    for i, goal in enumerate(y if target is None else target):
        row = slice(i, i + 1)
        expected = reference.rp2(model, x[row], start[row], masks[which[i]], goal, targeted, 0.03, penalty, steps)
        torch.testing.assert_close(x_adv[row], expected, rtol=0, atol=2e-4)  # Adam amplifies rounding
        assert (expected - x[i]).norm() > 0.02


@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize("targeted", [False, True])
def test_reaches_the_optimum_on_a_linear_model(gain: float, targeted: bool) -> None:
    """Each pixel of the mask ends black or white; also if the victim is so sure that Adam's 1e-8 hides its gradient."""
    model, g = Linear(gain), torch.Generator().manual_seed(6)
    y = torch.arange(9) % 2
    way = (1 - 2 * y).float()[:, None, None, None]
    x = 0.5 - way * model.w.sign() * torch.rand(9, *SHAPE, generator=g) / 2  # on the right side, and sure
    attack = RP2(masks=some_masks(), mask=torch.arange(9) % 3, steps=20)
    expected = torch.where(attack.window(x), (way * model.w > 0).float(), x)
    x_adv = attack(model, x, y, target=1 - y if targeted else None)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)


def test_no_pixel_outside_the_mask_changes() -> None:
    model, x = Curved(), images(24) * 0.4 + 0.3
    attack = RP2(masks=some_masks(), steps=torch.arange(24) % 4 + 1)
    changed = attack(model, x, model(x).argmax(1)) != x
    window = attack.window(x).expand_as(x)
    assert not (changed & ~window).any()
    assert bool(changed[window].all())


def test_the_penalty_keeps_the_perturbation_small() -> None:
    model, x = Curved(), images(8)
    y = model(x).argmax(1)

    def norms(penalty: float, start: bool = False, steps: int = 40) -> Tensor:
        attack = RP2(masks=some_masks(), mask=0, penalty=penalty, random_start=start, steps=steps)
        return (attack(model, x, y) - x).flatten(1).norm(dim=1)

    free, bound = norms(0.0), norms(1.0)
    assert bool((bound <= free + 1e-6).all())
    assert bound.mean() < 0.9 * free.mean()
    assert not norms(1e6).any()
    # A gradient whose square no float32 holds moves a pixel as well.
    assert norms(1e25, start=True).mean() < 0.5 * norms(1e25, start=True, steps=1).mean()


def test_mistakes_in_masks_are_seen_before_any_image() -> None:
    for masks, says in [
        ([[[0, 32, 0, 0]]], "32"),
        ([[[3, 2, 0, 0]]], "3, 2"),
        ([], "at least one"),
        ([[[1, 2]]], "1, 2"),
    ]:
        with pytest.raises(ValueError, match=says):
            RP2(masks=masks)
    with pytest.raises(ValueError, match="mask 1"):  # a line that falls between the pixels of a small image
        RP2(masks=[[[0, 31, 0, 31]], [[0, 0, 0, 31]]]).window(torch.zeros(1, 1, 4, 4))
