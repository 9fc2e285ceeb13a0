"""On a linear model with two classes the best attack is known in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks import FGSM, PGD, RFGSM, SampleRng

ROWS, SHAPE = 12, (3, 6, 4)
FACTOR = 1.05  # a PGD in l2 with its default steps gets this close to the optimum


class Linear(nn.Module):
    """Class 1 wins where w . (x - 1/2) > 0; ``gain`` makes it as confident as wanted."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) * gain)

    def forward(self, x: Tensor) -> Tensor:
        score = ((x - 0.5) * self.w).flatten(1).sum(1)
        return torch.stack([-score, score], 1) / 2


def problem() -> tuple[Linear, Tensor, Tensor, Tensor]:
    """Model, interior images, labels, and the sign of the direction in w that hurts."""
    g = torch.Generator().manual_seed(4)
    y = torch.arange(ROWS) % 2
    return Linear(), torch.rand(ROWS, *SHAPE, generator=g) * 0.4 + 0.3, y, (1 - 2 * y).float()[:, None, None, None]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", [FGSM(eps=0.1), PGD(eps=0.1), PGD(eps=0.1, random_start=False)], ids=repr)
def test_linf_attacks_reach_the_optimum(attack: FGSM | PGD, targeted: bool) -> None:
    model, x, y, way = problem()
    best = x + 0.1 * way * model.w.sign()
    x_adv = attack(model, x, y, target=1 - y if targeted else None)
    torch.testing.assert_close(F.cross_entropy(model(x_adv), y), F.cross_entropy(model(best), y), rtol=1e-5, atol=0)
    torch.testing.assert_close(x_adv, best, rtol=0, atol=1e-6)


def test_rfgsm_spends_exactly_its_budget() -> None:
    model, x, y, way = problem()
    rng = SampleRng(1, "train", 0, torch.arange(ROWS))
    eps, alpha = torch.linspace(0.02, 0.2, ROWS), torch.linspace(0, 0.1, ROWS)
    x_adv = RFGSM(eps=eps, alpha=alpha)(model, x, y, rng=rng)
    noise, column = rng.sign("start", *SHAPE), (..., None, None, None)
    expected = x + alpha[column] * noise + (eps - alpha)[column] * way * model.w.sign()
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close((x_adv - x).abs().flatten(1).amax(1), eps, rtol=0, atol=1e-6)
    half = RFGSM(eps=eps)(model, x, y, rng=rng)
    torch.testing.assert_close(half, RFGSM(eps=eps, alpha=eps / 2)(model, x, y, rng=rng))


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_l2_reaches_the_optimum_within_a_factor(targeted: bool) -> None:
    model, x, y, way = problem()
    delta = PGD(norm="l2", eps=0.5)(model, x, y, target=1 - y if targeted else None) - x
    reached = (delta * way * model.w).flatten(1).sum(1) / model.w.norm()
    assert reached.min() >= 0.5 / FACTOR
    assert delta.flatten(1).norm(dim=1).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("gain", [1.0, 6.0])
def test_one_l2_step_is_along_the_gradient(gain: float) -> None:
    """Also for a victim so confident that the squares of its gradient underflow."""
    _, x, y, way = problem()
    model = Linear(gain)
    y = torch.where(way.flatten() > 0, 0, 1)
    x = (0.5 - 0.2 * way * model.w.sign()) if gain > 1 else x  # far on the right side
    delta = PGD(norm="l2", eps=0.9, step_size=0.3, steps=1, random_start=False)(model, x, y) - x
    expected = 0.3 * way * model.w / model.w.norm()
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-6)


def test_the_random_start_fills_the_l2_ball_uniformly() -> None:
    """The share of points within radius r is r to the power of the dimension."""
    x = torch.full((4000, 1, 2, 2), 0.5)
    start = PGD(norm="l2", eps=0.4).schedule(x, SampleRng(2, "test", 0, torch.arange(4000))).start
    delta = (start - x).flatten(1)
    volume = (delta.norm(dim=1) / 0.4) ** 4
    assert abs(volume.mean() - 0.5) < 4 / (12 * 4000) ** 0.5
    assert delta.mean(0).abs().max() < 0.02
    assert delta.norm(dim=1).max() <= 0.4 + 1e-6


def test_the_random_start_fills_the_linf_ball_uniformly() -> None:
    x = torch.full((500, 1, 4, 4), 0.5)
    start = PGD(eps=0.1).schedule(x, SampleRng(2, "test", 0, torch.arange(500))).start
    share = torch.histc((start - x) / 0.1, bins=10, min=-1, max=1) / start.numel()
    assert (share - 0.1).abs().max() < 0.02
