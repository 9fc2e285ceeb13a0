"""stAdv: reading between pixels, the smoothness of a flow, and what the search does with them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks import SpatialTransform
from redlab.attacks.spatial import ROUND, inside, roughness, warp


def random_flow(rows: int, height: int, width: int, size: float = 2.0) -> Tensor:
    return torch.randn(rows, 2, height, width, generator=torch.Generator().manual_seed(3)) * size


def images(rows: int = 3, channels: int = 2, height: int = 5, width: int = 7) -> Tensor:
    return torch.rand(rows, channels, height, width, generator=torch.Generator().manual_seed(1))


class Where(nn.Module):
    """Two classes: how bright the upper and the lower half of the image are."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[2] // 2
        return torch.stack([x[:, :, :half].sum((1, 2, 3)), x[:, :, half:].sum((1, 2, 3))], 1)


def test_warp_reads_like_grid_sample() -> None:
    x, flow = images(), random_flow(3, 5, 7)
    down = torch.arange(5.0)[:, None] + flow[:, 0]
    right = torch.arange(7.0) + flow[:, 1]
    grid = torch.stack([right * 2 / 6 - 1, down * 2 / 4 - 1], -1)
    expected = F.grid_sample(x, grid, padding_mode="border", align_corners=True)
    torch.testing.assert_close(warp(x, flow), expected, rtol=0, atol=1e-5)


def test_warp_by_no_pixels_and_by_a_whole_one() -> None:
    x = images()
    assert torch.equal(warp(x, torch.zeros(3, 2, 5, 7)), x)
    flow = torch.zeros(3, 2, 5, 7)
    flow[:, 1] = 1.0
    assert torch.equal(warp(x, flow), torch.cat([x[..., 1:], x[..., -1:]], -1))


def test_inside() -> None:
    flow = random_flow(2, 4, 6, size=9.0)
    kept = inside(flow)
    for axis, size in ((0, 4), (1, 6)):
        place = torch.arange(float(size)).view(-1, 1) if axis == 0 else torch.arange(float(size))
        torch.testing.assert_close(place + kept[:, axis], (place + flow[:, axis]).clamp(0, size - 1))


def test_roughness_by_hand() -> None:
    flow = torch.full((1, 2, 4, 6), 0.7)
    assert float(roughness(flow)) == float(roughness(flow, "norm")) == 0.0
    flow[0, 0, 1, 2] += 3.0
    flow[0, 1, 1, 2] += 4.0
    assert float(roughness(flow)) == pytest.approx(8 * 5, abs=8 * ROUND)  # four neighbours, from both sides
    # Two differences down and two to the right, of 3 / 2 half heights and 4 / 3 half widths.
    assert float(roughness(flow, "norm")) == pytest.approx(2 * math.sqrt(2 * (1.5**2 + (4 / 3) ** 2)), abs=0.02)


@pytest.mark.parametrize("flow_loss", ["sum", "norm"])
@pytest.mark.parametrize("targeted", [False, True])
def test_it_moves_what_is_there(flow_loss: str, targeted: bool) -> None:
    x = images(4, 1, 8, 6) * 0.8
    y = Where()(x).argmax(1)
    attack = SpatialTransform(smoothness=1e-3, flow_loss=flow_loss, lr=0.1, steps=60)
    x_adv, used = attack.run(Where(), x, y, target=1 - y if targeted else None)
    assert torch.equal(Where()(x_adv).argmax(1), 1 - y)
    assert used.tolist() == [61] * 4
    assert bool((x_adv.amax((1, 2, 3)) <= x.amax((1, 2, 3))).all())  # nothing brighter than what was read


@pytest.mark.parametrize("scale", [1e20, 1e30, 1e37])
@pytest.mark.parametrize("flow_loss", ["sum", "norm"])
def test_large_logits(flow_loss: str, scale: float) -> None:
    """Where the squares of gradients overflow."""

    class Scaled(Where):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * scale

    x = images(4, 1, 8, 6) * 0.8
    y = Where()(x).argmax(1)
    x_adv = SpatialTransform(smoothness=1e-3, flow_loss=flow_loss, lr=0.1, steps=60)(Scaled(), x, y)
    assert bool(torch.isfinite(x_adv).all())
    assert torch.equal(Where()(x_adv).argmax(1), 1 - y)
    assert bool((x_adv.amax((1, 2, 3)) <= x.amax((1, 2, 3))).all())


def test_an_even_image_cannot_change() -> None:
    x = torch.full((1, 3, 4, 4), 0.3)
    torch.testing.assert_close(SpatialTransform(steps=5)(Where(), x, torch.tensor([0])), x)


def test_confidence_and_rows_that_have_it_already() -> None:
    x = images(1, 1, 8, 6).repeat(2, 1, 1, 1)
    said = int(Where()(x[:1]).argmax())
    y, confidence = torch.tensor([1 - said, said]), torch.tensor([0.0, 1.0])
    x_adv, used = SpatialTransform(smoothness=1e-3, confidence=confidence, lr=0.1, steps=60).run(Where(), x, y)
    assert torch.equal(x_adv[0], x[0])
    assert used.tolist() == [1, 61]
    logits = Where()(x_adv)[1]
    assert logits[1 - said] - logits[said] > 1.0


def test_with_more_steps_the_change_gets_smaller() -> None:
    x = images(4, 1, 8, 6)
    y = Where()(x).argmax(1)
    few, many = (SpatialTransform(smoothness=0.01, lr=0.1, steps=n)(Where(), x, y) for n in (30, 150))
    assert torch.equal(Where()(few).argmax(1), 1 - y)
    assert torch.equal(Where()(many).argmax(1), 1 - y)
    assert (many - x).norm() < (few - x).norm()
