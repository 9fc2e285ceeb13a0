"""The patch attack: where it may change an image, and that it is PGD there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import PGD, Patch, SampleRng

ROWS, SHAPE = 12, (3, 6, 4)


class Linear(nn.Module):
    """Class 1 wins where w . (x - 1/2) > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        score = ((x - 0.5) * self.w).flatten(1).sum(1)
        return torch.stack([-score, score], 1) / 2


def images(rows: int = ROWS, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(4)) * 0.4 + 0.3


def network(channels: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(channels, 5, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(20, 4))


@pytest.mark.parametrize("targeted", [False, True])
def test_reaches_the_optimum_of_its_window(targeted: bool) -> None:
    model, x, y = Linear(), images(), torch.arange(ROWS) % 2
    eps, rng = torch.linspace(0.02, 0.2, ROWS), SampleRng(1, "train", 0, torch.arange(ROWS) + 7)
    attack = Patch(size=torch.tensor([1, 2, 3, 4] * 3), eps=eps, steps=60)
    way = (1 - 2 * y).float()[:, None, None, None]
    best = x + eps[:, None, None, None] * way * model.w.sign() * attack.window(x, rng)
    x_adv = attack(model, x, y, target=1 - y if targeted else None, rng=rng)
    torch.testing.assert_close(x_adv, best, rtol=0, atol=1e-6)


def test_no_pixel_outside_the_window_changes() -> None:
    """To the bit, also where rows have different sizes and numbers of steps."""
    model, x, rng = network(), images(40, (2, 9, 7)), SampleRng(2, "test", 0, torch.arange(40))
    size = torch.arange(40) % 7 + 1
    attack = Patch(size=size, steps=torch.arange(40) % 3 + 1, eps=0.3)
    window = attack.window(x, rng)
    changed = (attack(model, x, model(x).argmax(1), rng=rng) != x).any(1, keepdim=True)
    assert not (changed & ~window).any()
    assert changed.flatten(1).sum(1).tolist() == (size**2).tolist()
    for where, side in zip(window[:, 0], size.tolist(), strict=True):
        assert sorted(where.sum(0).unique().tolist()) == sorted({0, side} if side < 7 else {side})
        rows, columns = where.any(1).nonzero()[:, 0], where.any(0).nonzero()[:, 0]
        assert len(rows) == len(columns) == rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == side


def test_with_the_whole_image_as_window_it_is_pgd() -> None:
    model, x, rng = network(), images(6, (2, 7, 7)), SampleRng(3, "test", 0, torch.arange(6))
    y, steps = model(x).argmax(1), torch.tensor([2, 5, 1, 5, 9, 3])
    for start in (False, True):
        settings = {"eps": 0.1, "step_size": 0.01, "steps": steps, "random_start": start}
        assert torch.equal(Patch(size=7, **settings)(model, x, y, rng=rng), PGD(**settings)(model, x, y, rng=rng))


def test_every_place_is_equally_likely() -> None:
    rows, x = 12000, torch.zeros(1, 1, 6, 5)
    window = Patch(size=3).window(x.expand(rows, -1, -1, -1), SampleRng(0, "test", 0, torch.arange(rows)))[:, 0]
    top, left = window.any(2).float().argmax(1), window.any(1).float().argmax(1)
    counts = torch.bincount(top * 3 + left, minlength=12)
    assert len(counts) == 4 * 3
    assert (counts - 1000).abs().max() < 4 * 1000**0.5


def test_sizes_per_row_equal_separate_calls() -> None:
    model, x, rng = network().double(), images(5, (2, 9, 7)), SampleRng(0, "test", 0, torch.arange(5))
    exact = nn.Sequential(Cast(torch.float64), model, Cast(torch.float32))
    y, sizes = exact(x).argmax(1), torch.tensor([3, 1, 7, 2, 5])
    together = Patch(size=sizes, steps=4)(exact, x, y, rng=rng)
    for i, size in enumerate(sizes.tolist()):
        part = slice(i, i + 1)
        alone = Patch(size=size, steps=4)(exact, x[part], y[part], rng=rng[part])
        torch.testing.assert_close(together[part], alone, rtol=0, atol=1e-6)


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)
