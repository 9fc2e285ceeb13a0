"""Images that still fool once they are rounded: how many, how much larger, at what cost, and within which budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks import (
    DDN,
    EOT,
    FAB,
    FGSM,
    PGD,
    CarliniWagnerL2,
    CarliniWagnerLinf,
    DeepFool,
    Patch,
    Stored,
    WassersteinPGD,
)
from redlab.attacks.stored import Limits, on_grid
from redlab.data import digits

GREYS = torch.arange(256) / 255


class Counted(nn.Module):
    """Counts the rows of each call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.inner(x)


@dataclass(frozen=True, kw_only=True)
class Known:
    """An attack whose results are known beforehand."""

    found: Tensor

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, target: Any = None, rng: Any = None) -> Tensor:
        return self.found


class Threshold(nn.Module):
    """Two classes: 1 where the mean of the image is above one half by ``over`` grey values."""

    def __init__(self, over: float) -> None:
        super().__init__()
        self.over = over

    def forward(self, x: Tensor) -> Tensor:
        score = (x.double().mean((1, 2, 3)) - 0.5) * 255 - self.over
        return torch.stack([-score, score], 1).float()


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained on digits, and 32 images that it gets right."""
    data = digits()
    x, y = data.train.images.float() / 255, data.train.labels
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
        net = nn.Sequential(*body, nn.Flatten(), nn.Linear(16 * 7 * 7, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(3):
            for rows in torch.randperm(len(x)).split(96):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    x, y = data.test.images[:64].float() / 255, data.test.labels[:64]
    with torch.no_grad():
        right = (net(x).argmax(1) == y).nonzero()[:32, 0]
    assert len(right) == 32
    return net.eval(), x[right], y[right]


def fooled(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x_adv).argmax(1) != y


def nearest(x: Tensor) -> Tensor:
    return (x * 255).round() / 255


def length(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)


SMALLEST = {
    "deepfool": (DeepFool(), 4),  # that many at least are undone by plain rounding
    "fab": (FAB(norm="l2", steps=6, overshoot=0.0), 4),
    "cw": (CarliniWagnerL2(c=3.0, lr=0.05, steps=30, binary_search_steps=1), 0),
    "ddn": (DDN(steps=30, levels=None), 0),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_smallest_perturbations_still_fool(name: str, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    """All but one at most, at no more than 1.15 times the norm, where plain rounding loses several."""
    (net, x, y), (attack, least) = trained, SMALLEST[name]
    plain, stored = attack(net, x, y), Stored(attack=attack)(net, x, y)
    lost = int((fooled(net, plain, y) & ~fooled(net, nearest(plain), y)).sum())
    growth = length(stored - x) / length(plain - x)
    print(f"{name}: {lost} of {int(fooled(net, plain, y).sum())} lost by rounding, norms at most {growth.max():.4f}")
    assert lost >= least
    assert bool(torch.isin(stored, GREYS).all())
    assert int(fooled(net, stored, y).sum()) >= 31
    assert growth.max() <= 1.15
    assert growth.mean() <= 1.01


def test_targets_count_and_nothing_else(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = trained
    target = (y + 3) % 10
    attack = FAB(norm="l2", steps=8, overshoot=0.0)
    plain, stored = attack(net, x, y, target=target), Stored(attack=attack)(net, x, y, target=target)
    with torch.no_grad():
        before, rounded, after = (net(z).argmax(1) == target for z in (plain, nearest(plain), stored))
    assert int((before & ~rounded).sum()) >= 4
    assert bool((after >= before).all())
    assert int(before.sum()) >= 20


def test_half_a_grey_value_per_pixel_is_not_nothing() -> None:
    """A perturbation that rounds to the clean image, and yet fools: it grows until it counts, as little as it can."""
    x = torch.full((1, 1, 20, 20), 127 / 255)
    way = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0)) + 0.5
    model, y = Threshold(over=-0.4), torch.tensor([0])  # 0.1 grey values above x on average
    plain = x + 0.12 / 255 * way / way.mean()
    assert bool(fooled(model, plain, y).all())
    assert torch.equal(nearest(plain), x)
    stored = Stored(attack=Known(found=plain))(model, x, y)
    assert bool(fooled(model, stored, y).all())
    changed = ((stored - x) * 255).round()
    assert set(changed.unique().tolist()) == {0.0, 1.0}
    assert 40 < int(changed.sum()) < 60  # 41 of 400 are needed


def test_a_row_that_did_not_fool_is_rounded_and_no_more() -> None:
    x = torch.full((3, 1, 4, 4), 100 / 255)
    plain = torch.stack([x[0] + 0.3, x[1] + 0.3003, x[2] + 0.05])
    model, y = Threshold(over=60.0), torch.zeros(3, dtype=torch.int64)
    assert not bool(fooled(model, plain, y).any())
    assert torch.equal(Stored(attack=Known(found=plain))(model, x, y), nearest(plain))


def test_the_grid_is_the_one_asked_for() -> None:
    x = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    stored = Stored(attack=Known(found=x.roll(1, 3)), levels=10)(Threshold(0.0), x, torch.tensor([0, 1]))
    torch.testing.assert_close(stored, (x.roll(1, 3) * 10).round() / 10, rtol=0, atol=0)


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("eps", [8 / 255, 6.7 / 255, 0.03, 1 / 255])
def test_an_linf_budget_is_kept_and_used(eps: float, trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    """The whole grey values that fit into it, where plain rounding goes beyond."""
    net, x, y = trained
    for attack in (PGD(eps=eps), FGSM(eps=eps), Patch(eps=eps, steps=5), EOT(attack=PGD(eps=eps, steps=3), samples=1)):
        delta = ((Stored(attack=attack)(net, x, y) - x) * 255).abs()
        assert delta.amax((1, 2, 3)).tolist() == pytest.approx([int(eps * 255 + 1e-3)] * 32, abs=1e-3)


def test_an_l2_budget_is_kept_and_used(trained: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = trained
    eps = torch.linspace(0.02, 2.0, 32)
    attack = PGD(norm="l2", eps=eps, steps=5)
    beyond = length(nearest(attack(net, x, y)) - x) - eps
    stored = Stored(attack=attack)(net, x, y)
    assert bool((beyond > 1e-4).any())
    assert bool((length(stored - x) <= eps + 1e-6).all())
    assert bool((length(stored - x) >= 0.98 * eps - 1.5 / 255).all())


def test_a_budget_below_a_grey_value() -> None:
    """Nothing but the clean image is left of it; off the grid, the grey value nearest to that."""
    y, model = torch.zeros(2, dtype=torch.int64), Threshold(over=-200.0)
    on, off = torch.full((2, 1, 4, 4), 100 / 255), torch.full((2, 1, 4, 4), 100.4 / 255)
    for norm, eps in (("linf", 0.3 / 255), ("l2", 0.9 / 255)):
        attack = Stored(attack=PGD(norm=norm, eps=eps, random_start=False))
        assert torch.equal(attack(model, on, y), on)
        assert torch.equal(attack(model, off, y), on)


def test_limits_follow_the_attack() -> None:
    x = torch.zeros(2, 1, 16, 16)

    def limits(attack: Any) -> tuple[list[float], list[float], list[bool]]:
        found = Limits.of(attack, x)
        return found.linf.tolist(), found.l2.tolist(), found.grows.tolist()

    inf = [torch.inf] * 2
    for attack in (FGSM(eps=0.5), PGD(eps=torch.tensor([0.5, 0.5])), Patch(eps=0.5), CarliniWagnerLinf(eps=0.5)):
        assert limits(attack) == limits(Stored(attack=EOT(attack=attack))) == ([0.5] * 2, inf, [True] * 2)
    assert limits(PGD(norm="l2", eps=0.5)) == (inf, [0.5] * 2, [True] * 2)
    for attack in (DeepFool(), CarliniWagnerLinf(eps=None)):
        assert limits(attack) == (inf, inf, [True] * 2)
    assert limits(WassersteinPGD(eps=0.5)) == (inf, inf, [False] * 2)  # pixels, not grey values

    @dataclass(frozen=True, kw_only=True)
    class OfAnotherLibrary:
        attack: str = "PGD"
        arguments: Any = None

    assert limits(OfAnotherLibrary()) == (inf, inf, [False] * 2)


# ---------------------------------------------------------------- cost


def cost(model: nn.Module, x: Tensor, plain: Tensor, y: Tensor) -> list[int]:
    counted = Counted(model)
    on_grid(counted, x, plain, y, None, 255, Limits.of(DeepFool(), x))
    return counted.calls


def test_one_call_where_nothing_is_lost() -> None:
    x, y = torch.full((6, 1, 4, 4), 100 / 255), torch.zeros(6, dtype=torch.int64)
    model = Threshold(over=0.0)
    assert cost(model, x, x + 0.25, y) == [6]  # all fool
    some = torch.where(torch.arange(6)[:, None, None, None] < 4, x + 0.25, x + 0.0403)
    assert cost(model, x, some, y) == [6, 2]  # the two that do not are looked at as they were
    assert cost(model, x, torch.where(some > 0.5, some, x), y) == [6]  # clean rows are what they were


def test_nothing_is_tried_where_the_budget_leaves_no_choice() -> None:
    x, y, counted = torch.full((4, 1, 4, 4), 100 / 255), torch.zeros(4, dtype=torch.int64), Counted(Threshold(-26.0))
    attack = FGSM(eps=1.9 / 255)  # 101.9 fools, 101 does not, and 102 is not allowed
    assert bool(fooled(counted.inner, x + 1.9 / 255, y).all())
    on_grid(counted, x, x + 1.9 / 255, y, None, 255, Limits.of(attack, x))
    assert counted.calls == [4]


def test_only_rows_that_rounding_undoes_are_worked_on() -> None:
    x, y = torch.full((6, 1, 4, 4), 100 / 255), torch.zeros(6, dtype=torch.int64)
    model = Threshold(over=0.0)  # 127.5
    plain = x + torch.tensor([0.25, 0.25, 0.04, 27.4, 27.4, 27.4])[:, None, None, None] / torch.tensor(
        [1, 1, 1, 255, 255, 255]
    ).view(-1, 1, 1, 1)
    plain[5] += 0.09 / 255
    plain[5, 0, 0, 0] += 1 / 255  # above 127.5 on average, and 127.06 once it is rounded
    calls = cost(model, x, plain, y)
    assert calls[:2] == [6, 4]
    assert set(calls[2:]) == {1}
    assert len(calls) <= 16


def test_levels_are_checked() -> None:
    for levels in (0, 1, 2.0, True):
        with pytest.raises(ValueError, match=f"levels must be a whole number, at least 2, got {levels}"):
            Stored(levels=levels)
