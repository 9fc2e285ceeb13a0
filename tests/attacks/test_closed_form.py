"""On a linear model with two classes the best attack is known in closed form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks import APGD, FAB, FGSM, PGD, RFGSM, SampleRng, Square
from redlab.attacks.fab import to_plane

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


AUTO = [APGD(eps=0.1, steps=20, loss=loss) for loss in ("ce", "dlr")]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", [FGSM(eps=0.1), PGD(eps=0.1), PGD(eps=0.1, random_start=False), *AUTO], ids=repr)
def test_linf_attacks_reach_the_optimum(attack: FGSM | PGD | APGD, targeted: bool) -> None:
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
@pytest.mark.parametrize("attack", [PGD(norm="l2", eps=0.5), APGD(norm="l2", eps=0.5, steps=20)], ids=repr)
def test_l2_attacks_reach_the_optimum_within_a_factor(attack: PGD | APGD, targeted: bool) -> None:
    model, x, y, way = problem()
    delta = attack(model, x, y, target=1 - y if targeted else None) - x
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


def test_the_random_start_in_l2_is_uniform_in_distance() -> None:
    """Not in volume, nearly all of which is at the surface: from there 40 steps of PGD fooled 1 % fewer images."""
    x = torch.full((4000, 1, 2, 2), 0.5)
    start = PGD(norm="l2", eps=0.4).schedule(x, SampleRng(2, "test", 0, torch.arange(4000))).start
    delta = (start - x).flatten(1)
    share = torch.histc(delta.norm(dim=1) / 0.4, bins=10, min=0, max=1) / len(x)
    assert (share - 0.1).abs().max() < 4 * (0.1 * 0.9 / len(x)) ** 0.5
    assert delta.mean(0).abs().max() < 0.02
    assert delta.norm(dim=1).max() <= 0.4 + 1e-6


def test_the_random_start_fills_the_linf_ball_uniformly() -> None:
    x = torch.full((500, 1, 4, 4), 0.5)
    start = PGD(eps=0.1).schedule(x, SampleRng(2, "test", 0, torch.arange(500))).start
    share = torch.histc((start - x) / 0.1, bins=10, min=-1, max=1) / start.numel()
    assert (share - 0.1).abs().max() < 0.02


class Planes(nn.Module):
    """A linear model with as many classes as wanted; class 0 can be put out of reach of the others."""

    def __init__(self, classes: int = 5, lead: float = 0.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(6)
        self.register_buffer("w", torch.randn(classes, *SHAPE, generator=g))
        self.lead = lead * self.w[0].abs().sum()

    def forward(self, x: Tensor) -> Tensor:
        scores = (x[:, None] * self.w).flatten(2).sum(2)
        return scores + F.one_hot(torch.zeros(len(x), dtype=torch.int64), len(self.w)) * self.lead


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_fab_finds_the_smallest_perturbation(norm: str, dual: int, targeted: bool) -> None:
    """The distance to a plane is the gap of the logits over the dual norm of the difference of the weights."""
    model, (_, x, _, _) = Planes(), problem()
    logits = model(x)
    y = logits.argmax(1)
    gaps = logits.gather(1, y[:, None]) - logits
    lengths = (model.w[y][:, None] - model.w[None]).flatten(2).norm(p=dual, dim=2)
    each = (gaps / lengths).masked_fill(F.one_hot(y, 5).bool(), torch.inf)
    nearest, target = each.min(1)
    x_adv = FAB(norm=norm, steps=20)(model, x, y, target=target if targeted else None)
    reached = (x_adv - x).flatten(1).norm(p=torch.inf if norm == "linf" else 2, dim=1)
    assert torch.equal(model(x_adv).argmax(1), target)
    assert bool((reached >= nearest * (1 - 1e-4)).all())
    assert bool((reached <= nearest * 1.02).all())


def test_fab_leaves_alone_what_fools_already() -> None:
    model, (_, x, _, _) = Planes(), problem()
    said = model(x).argmax(1)
    wrong = torch.arange(ROWS) < 5
    x_adv = FAB(steps=5)(model, x, torch.where(wrong, (said + 1) % 5, said))
    assert torch.equal(x_adv[wrong], x[wrong])
    assert bool((x_adv[~wrong] != x[~wrong]).flatten(1).any(1).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_way_to_a_plane_is_the_shortest(norm: str) -> None:
    """Against bisection in float64, with pixels at the ends of the range, weights of zero and planes out of reach."""
    g = torch.Generator().manual_seed(7)
    x = (torch.rand(40, 3, 8, 8, generator=g) * 2 - 0.5).clamp(0, 1)
    slope = torch.randn(40, 3, 8, 8, generator=g) ** 3 * (torch.rand(40, 3, 8, 8, generator=g) < 0.8)
    value = torch.randn(40, 1, 1, 1, generator=g) * torch.logspace(-1, 3, 40).view(40, 1, 1, 1)
    delta = to_plane(x, slope, value, norm)
    way = -(value.sign() * slope.sign()).double()
    speed = slope.abs().double() if norm == "l2" else torch.ones_like(way)
    room = torch.where(way > 0, 1 - x.double(), x.double())

    def move(t: Tensor) -> Tensor:
        return way * torch.minimum(t * speed, room)

    low, high = torch.zeros_like(value).double(), torch.full_like(value, 1e25).double()
    for _ in range(140):
        middle = (low + high) / 2
        short = value.double().abs() > (slope * move(middle)).sum((1, 2, 3), keepdim=True).abs()
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    assert 5 < (high > 1e24).sum() < 20  # out of reach
    torch.testing.assert_close(delta, move(high).float(), rtol=1e-3, atol=1e-5)
    assert not to_plane(x, slope * 0, value, norm).any()
    assert not to_plane(x, slope, value * 0, norm).any()


@pytest.mark.parametrize(
    ("norm", "eps", "share", "targeted"),
    [("linf", 0.1, 0.9, False), ("linf", 0.1, 0.9, True), ("l2", 0.5, 0.45, False)],
)
def test_square_reaches_a_share_of_the_optimum(norm: str, eps: float, share: float, targeted: bool) -> None:
    """Class 1 against a class 0 that it cannot catch up with, so that no row finishes early."""
    model, (_, x, y, _) = Planes(2, lead=2.0), problem()
    zero, rng = y * 0, SampleRng(1, "test", 0, torch.arange(ROWS))
    attack = Square(norm=norm, eps=eps, queries=500, p_init=0.05)  # one pixel in linf, 3 x 3, its least, in l2
    x_adv, used = attack.run(model, x, zero, target=zero + 1 if targeted else None, rng=rng)
    way = model.w[1] - model.w[0]
    best = eps * way.abs().sum() if norm == "linf" else eps * way.norm()
    reached = ((x_adv - x) * way).flatten(1).sum(1) / best
    assert reached.min() > share
    assert reached.max() <= 1 + 1e-5
    assert used.tolist() == [500] * ROWS
