"""The Wasserstein attacks against exact transport by linear and quadratic programming on tiny images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from scipy.special import wrightomega
from torch import Tensor, nn

from redlab.attacks import WassersteinFrankWolfe, WassersteinPGD
from redlab.attacks.transport import Window, price_of, project_plan, wright_omega
from redlab.attacks.wasserstein import in_pieces

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize(
    "attack",
    [WassersteinPGD(steps=10, step_size=0.3, entropy=1e-2, dual_steps=10), WassersteinFrankWolfe(steps=10)],
    ids=["pgd", "frank-wolfe"],
)


class Linear(nn.Module):
    """Two classes; the logit of class 1 is <weight, x>."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weight).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], 1)


def random_images(*shape: int, seed: int = 0, top: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * top


def pixels(height: int, width: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2)


def distances(height: int, width: int, window: int) -> np.ndarray:
    """Cost of every pair of pixels, infinite beyond the window; written without the code under test."""
    apart = np.abs(pixels(height, width)[:, None] - pixels(height, width)[None])
    return np.where(apart.max(-1) <= window // 2, np.sqrt((apart**2).sum(-1)), np.inf)


def sums_of(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that give the row and the column sums of a flattened n x n plan."""
    return np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))


def transport(x: Tensor, z: Tensor, window: int) -> float:
    """Least total cost of turning ``x`` into ``z``, mass above 1 being cut off; infinite where no plan does it."""
    total = 0.0
    for source, sink in zip(x.double().numpy(), z.double().numpy(), strict=True):
        cost = distances(*source.shape, window).ravel()
        sent, came = sums_of(source.size)
        full, slack = sink.ravel() >= 1.0, 1e-6  # float32 rounds
        below, above = sink.ravel() - slack, np.where(full, np.inf, sink.ravel() + slack)
        rows = np.concatenate([-came, came[~full]])
        found = linprog(
            np.where(np.isfinite(cost), cost, 0.0),
            A_ub=rows,
            b_ub=np.concatenate([-below, above[~full]]),
            A_eq=sent,
            b_eq=source.ravel(),
            bounds=[(0, None if math.isfinite(c) else 0) for c in cost],
        )
        total += found.fun if found.status == 0 else math.inf
    return total


def best_gain(x: Tensor, grad: Tensor, eps: float, window: int) -> float:
    """Greatest <grad, z> over the ball, by linear programming over the plans of all channels together."""
    height, width = x.shape[1:]
    n, cost = height * width, distances(height, width, window).ravel()
    value = np.concatenate([np.tile(g.ravel(), n) for g in grad.double().numpy()])
    bounds = [(0, None if math.isfinite(c) else 0) for c in cost] * len(x)
    price = np.tile(np.where(np.isfinite(cost), cost, 0.0), len(x))[None]
    sent, mass = np.kron(np.eye(len(x)), sums_of(n)[0]), x.double().numpy().ravel()
    found = linprog(-value, A_ub=price, b_ub=[eps * mass.sum()], A_eq=sent, b_eq=mass, bounds=bounds)
    assert found.status == 0
    return float(-found.fun)


def farthest(x: Tensor, grad: Tensor, eps: float, window: int, entropy: float = 1e-3) -> Tensor:
    """The linear step of Frank-Wolfe."""
    x, around, radius = x.double(), Window(window, CPU), torch.full((len(x),), eps, dtype=torch.float64)
    score = grad.double() / grad.abs().amax() / entropy
    near, spread = around.near(score), torch.full_like(radius, float(score.max() - score.min()))
    share = x / x.sum((1, 2, 3), keepdim=True)
    price = price_of(around, share, near, spread, radius, torch.zeros_like(radius), 50, 1e-4)
    return around.arrivals(x, near, price)


def projection(x: Tensor, wanted: Tensor, eps: float, window: int, entropy: float, steps: int = 1000) -> Any:
    x, radius = x.double(), torch.full((len(x),), eps, dtype=torch.float64)
    start = (torch.zeros_like(x), torch.zeros_like(radius))
    weight = torch.full_like(radius, entropy)
    return project_plan(Window(window, CPU), x, wanted.double(), radius, weight, start, steps, 1e-8)


@pytest.mark.parametrize("eps", [0.02, 0.3, 5.0])
@pytest.mark.parametrize(("shape", "window"), [((1, 3, 3), 3), ((2, 3, 4), 5), ((1, 4, 4), 3)], ids=str)
def test_linear_step_is_in_the_ball_and_near_the_optimum(shape: tuple[int, int, int], window: int, eps: float) -> None:
    x, grad = random_images(4, *shape), random_images(1, *shape, seed=1) - 0.5
    x[:, :, 1, 1:] = 0.0
    z = farthest(x, grad.expand(4, *shape), eps, window)
    torch.testing.assert_close(z.sum((2, 3)), x.double().sum((2, 3)))  # each channel keeps its mass
    for one, moved in zip(x, z, strict=True):
        mass = float(one.sum())
        gain, best = float((moved * grad[0]).sum()), best_gain(one, grad[0], eps, window)
        # What the entropic term may cost, and the part of the budget that may be left.
        lost = 1e-3 * math.log(window**2) * mass * float(grad.abs().max())
        still = float((one * grad[0]).sum())
        assert best - lost - 1e-4 * (best - still) <= gain <= best + 1e-9
        if eps < 1.0:
            assert gain > still
        assert transport(one, moved.clamp(max=1.0), window) <= eps * mass + 1e-4


def test_linear_step_worked_by_hand() -> None:
    x, grad = torch.tensor([[[[0.0, 1.0, 0.0]]]]), torch.tensor([[[[0.0, 0.0, 1.0]]]])
    z = farthest(x, grad, 0.3, 3, entropy=1e-4)
    torch.testing.assert_close(z.float(), torch.tensor([[[[0.0, 0.7, 0.3]]]]), rtol=0, atol=1e-4)
    x = torch.tensor([[[[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]]])
    grad = torch.zeros_like(x)
    grad[0, 0, 1, 1], grad[0, 1, 0, 0] = 1.0, 2.0  # by one diagonal, or by two pixels for twice as much
    z = farthest(x, grad, 0.5, 5, entropy=1e-4)  # a budget of 0.5 for both channels: the second is the better bargain
    torch.testing.assert_close(z[0, :, 0, 0].float(), torch.tensor([0.5, 0.25]), rtol=0, atol=1e-4)


def test_price_is_the_least_that_fits() -> None:
    x, score = random_images(3, 2, 5, 4).double(), random_images(3, 2, 5, 4, seed=2).double() * 50
    around, eps = Window(3, CPU), torch.tensor([1e-6, 0.1, 3.0], dtype=torch.float64)
    near, share, spread = around.near(score), x / x.sum((1, 2, 3), keepdim=True), torch.full_like(eps, 50.0)

    def cost(price: Tensor) -> Tensor:
        plan = torch.softmax(near - price[:, None, None, None] * around.cost, 2) * share.flatten(2)[:, :, None]
        return (plan * around.cost).sum((1, 2, 3))

    for start in (0.0, 7.0, 1e6):
        price = price_of(around, share, near, spread, eps, torch.full_like(eps, start), 60, 1e-6)
        assert bool((cost(price) <= eps).all())
        assert bool((cost(price)[:2] >= eps[:2] * (1 - 1e-6)).all())
        assert price[2] == 0.0
    early = price_of(around, share, near, spread, eps, torch.zeros_like(eps), 2, 1e-6)
    assert bool((cost(early) <= eps).all())  # in the ball, however short the search


def test_wright_omega() -> None:
    v = torch.cat([torch.linspace(-79, 5, 400), torch.logspace(0, 6, 100)]).double()
    np.testing.assert_allclose(wright_omega(v).numpy(), wrightomega(v.numpy()).real, rtol=1e-12)
    assert float(wright_omega(torch.tensor(-math.inf))) < 1e-30


@pytest.mark.parametrize(("eps", "entropy"), [(0.05, 1e-1), (0.4, 1e-2), (9.0, 1e-2)])
def test_projection_closes_the_duality_gap(eps: float, entropy: float) -> None:
    """Weak duality bounds every plan from below by every dual point, so equal values prove both optimal."""
    height, width, window = 3, 4, 3
    x = random_images(1, 1, height, width, seed=3)
    x[0, 0, 0, :2] = 0.0
    wanted = x + (random_images(1, 1, height, width, seed=4) - 0.5)
    z, score, price = projection(x, wanted, eps, window, entropy)

    cost, mass = distances(height, width, window), float(x.double().sum())
    a, w = x.double().numpy().ravel() / mass, wanted.double().numpy().ravel() / mass
    s, psi = score.numpy().ravel(), float(price)
    kernel = np.where(np.isfinite(cost), np.exp(s[None] - psi * np.where(np.isfinite(cost), cost, 0.0)), 0.0)
    plan = a[:, None] * kernel / kernel.sum(1, keepdims=True)
    np.testing.assert_allclose(plan.sum(0), z.numpy().ravel() / mass, atol=1e-6)
    spent = float((plan * np.where(np.isfinite(cost), cost, 0.0)).sum())
    assert spent <= eps * (1 + 1e-6)
    primal = 0.5 * ((w - plan.sum(0)) ** 2).sum() + entropy * (plan * np.log(np.where(plan > 0, plan, 1.0))).sum()
    # min over z of |w - z|^2 / 2 + <mu, z> is <mu, w> - |mu|^2 / 2, with mu = entropy * s
    dual = entropy * ((s * w).sum() - entropy * (s**2).sum() / 2 - psi * eps)
    dual += entropy * (a * np.log(np.where(a > 0, a, 1.0) / kernel.sum(1))).sum()
    assert primal == pytest.approx(dual, abs=1e-8)


def test_projection_with_little_entropy_is_the_euclidean_one() -> None:
    x = torch.tensor([[[[0.6, 0.0, 0.3], [0.1, 0.9, 0.0]]]])
    wanted = x + torch.tensor([[[[-0.3, 0.4, 0.1], [0.2, -0.5, 0.1]]]])
    eps, mass = 0.15, float(x.sum())
    z = projection(x, wanted, eps, 5, entropy=3e-3, steps=300)[0]
    cost, (sent, came) = distances(2, 3, 5).ravel(), sums_of(6)
    a, w = (t.double().numpy().ravel() / mass for t in (x, wanted))
    exact = minimize(
        lambda p: 0.5 * ((w - came @ p) ** 2).sum(),
        np.diag(a).ravel(),
        jac=lambda p: -came.T @ (w - came @ p),
        bounds=[(0, None)] * 36,
        constraints=[
            {"type": "eq", "fun": lambda p: sent @ p - a, "jac": lambda p: sent},
            {"type": "ineq", "fun": lambda p: eps - cost @ p, "jac": lambda p: -cost},
        ],
        method="SLSQP",
        options={"maxiter": 300, "ftol": 1e-12},
    )
    assert exact.success
    short = 0.5 * float(((wanted - z) / mass).square().sum())
    assert exact.fun <= short <= 1.01 * exact.fun
    np.testing.assert_allclose(z.numpy().ravel() / mass, came @ exact.x, atol=0.01)
    assert transport(x[0], z[0], 5) <= eps * mass + 1e-5


def test_projection_stays_in_the_ball_however_few_its_iterations() -> None:
    x = random_images(2, 2, 4, 4, seed=5)
    for steps in (1, 2, 5):
        z = projection(x, x + random_images(2, 2, 4, 4, seed=6), 0.1, 3, 1e-3, steps)[0]
        torch.testing.assert_close(z.sum((2, 3)), x.double().sum((2, 3)))
        for one, moved in zip(x, z, strict=True):
            assert transport(one, moved.clamp(max=1.0), 3) <= 0.1 * float(one.sum()) + 1e-4


@BOTH
@pytest.mark.parametrize("eps", [0.03, 0.4])
def test_attacks_are_in_the_ball_by_exact_transport(attack: Any, eps: float) -> None:
    x = (random_images(4, 2, 4, 4, seed=7) * 1.6 - 0.3).clamp(0, 1)  # many pixels at 0 and at 1
    model, y = Linear(random_images(2, 4, 4, seed=8) - 0.5), torch.tensor([0, 1, 1, 0])
    x_adv = replace(attack, eps=eps, steps=10, window=3)(model, x, y)
    for one, moved in zip(x, x_adv, strict=True):
        assert transport(one, moved, 3) <= eps * float(one.sum()) + 2e-4
    assert bool((x_adv.sum((2, 3)) <= x.sum((2, 3)) + 1e-5).all())


def test_the_radius_grows_after_every_ten_steps() -> None:
    x, y, weight = random_images(3, 1, 3, 3, top=0.6), torch.ones(3, dtype=torch.int64), random_images(1, 3, 3, seed=3)
    model, mass = Linear(weight + 1.0), x.double().sum((1, 2, 3))  # which never says class 0
    attack, eps = WassersteinPGD(eps=0.1, step_size=0.3, entropy=1e-2, growth=1.5, dual_steps=100), 0.1

    def radii(steps: int) -> Tensor:
        found = replace(attack, steps=steps)(model, x, y)
        return torch.tensor([transport(x[i], found[i], 5) for i in range(3)]) / mass

    assert torch.equal(replace(attack, steps=10)(model, x, y), replace(attack, steps=10, growth=1.0)(model, x, y))
    assert radii(10).max() <= eps + 1e-4
    for steps, factor in ((15, 1.5), (25, 1.5**2)):
        assert radii(steps).max() <= factor * eps + 1e-4
        assert radii(steps).max() > 1.3 * radii(steps - 10).max()


@BOTH
def test_mass_is_kept_where_nothing_is_cut_off(attack: Any) -> None:
    x = random_images(4, 3, 6, 5, seed=9, top=0.2)
    model, y = Linear(random_images(3, 6, 5, seed=10) - 0.5), torch.zeros(4, dtype=torch.int64)
    model = nn.Sequential(model, Shift(torch.tensor([9.0, 0.0])))  # all are right, so all move
    x_adv = attack(model, x, y)
    assert x_adv.max() < 1.0
    torch.testing.assert_close(x_adv.sum((2, 3)), x.sum((2, 3)), rtol=1e-5, atol=0)
    assert bool(((x_adv - x).abs().amax((1, 2, 3)) > 0.01).all())


@BOTH
def test_eps_zero_is_the_identity(attack: Any) -> None:
    x, model = random_images(3, 1, 5, 5, seed=11), Linear(random_images(1, 5, 5, seed=12) + 0.5)
    y = torch.ones(3, dtype=torch.int64)
    assert torch.equal(replace(attack, eps=0.0, steps=3)(model, x, y), x)
    x_adv = replace(attack, eps=torch.tensor([0.1, 0.0, 1e-30]), steps=3)(model, x, y)
    assert torch.equal(x_adv[1], x[1])
    torch.testing.assert_close(x_adv[2], x[2], rtol=0, atol=1e-6)
    assert not torch.equal(x_adv[0], x[0])


@BOTH
def test_black_sparse_and_partly_black_images(attack: Any) -> None:
    x = torch.zeros(4, 1, 28, 28)
    x[1, 0, 0, 0] = 1.0  # one bright pixel, in a corner
    x[2, 0, 14, 14] = 1 / 255
    x[3, 0, 10:18, 10:18] = random_images(8, 8, seed=13, top=0.1)
    model = Linear(random_images(1, 28, 28, seed=14) - 0.5)
    y = (model(x)[:, 1] > 0).long()
    x_adv = replace(attack, steps=3, eps=0.2)(model, x, y)
    assert bool(torch.isfinite(x_adv).all())
    assert torch.equal(x_adv[0], x[0])
    torch.testing.assert_close(x_adv.sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=1e-5, atol=0)
    assert float(x_adv[1, 0, :3, :3].sum()) == pytest.approx(1.0, abs=1e-6)  # half a window away at most
    assert float(x_adv[2, 0, 12:17, 12:17].sum()) == pytest.approx(1 / 255, abs=1e-7)
    away = torch.linalg.vector_norm(torch.tensor(pixels(28, 28)).float(), dim=1).view(28, 28)
    assert float((x_adv[1, 0] * away).sum()) <= 0.2 + 1e-5  # there is one way to do it, so this is its cost
    assert not torch.equal(x_adv[3], x[3])


@pytest.mark.parametrize(
    ("attack", "least"),
    [
        (WassersteinPGD(entropy=3e-3, dual_steps=20, step_size=0.3), 0.6),
        (WassersteinFrankWolfe(), 0.99),
    ],
)
def test_share_of_the_optimum_on_a_linear_model(attack: Any, least: float) -> None:
    x, weight, eps = random_images(4, 1, 4, 4, seed=15, top=0.3), random_images(1, 4, 4, seed=16) - 0.5, 0.2
    y = torch.zeros(4, dtype=torch.int64)
    offset = 100.0  # no success ends the search
    model = Linear(weight)
    shifted = nn.Sequential(model, Shift(torch.tensor([offset, 0.0])))
    x_adv = replace(attack, eps=eps, steps=15, window=3)(shifted, x, y)
    for one, moved in zip(x, x_adv, strict=True):
        still = float((one * weight).sum())
        best = best_gain(one, weight, eps, 3) - still
        assert least * best <= float((moved * weight).sum()) - still <= best + 1e-5


class Shift(nn.Module):
    """Adds to the logits."""

    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.by


def test_plans_scale_with_the_image() -> None:
    """eps is relative to the mass: a darker image moves as its brighter self does."""
    x, grad = random_images(2, 1, 6, 6, seed=17), random_images(2, 1, 6, 6, seed=18) - 0.5
    torch.testing.assert_close(farthest(0.25 * x, grad, 0.1, 5), 0.25 * farthest(x, grad, 0.1, 5))
    wanted = x + 0.1
    dark, bright = (projection(s * x, s * wanted, 0.1, 5, 1e-3, 20)[0] for s in (0.25, 1.0))
    torch.testing.assert_close(dark, 0.25 * bright)


def test_pgd_returns_the_first_success_and_the_clean_image_where_it_is_one() -> None:
    x = random_images(3, 1, 5, 5, seed=19, top=0.5)
    weight = random_images(1, 5, 5, seed=20) - 0.5
    scores = (x * weight).sum((1, 2, 3))
    model = nn.Sequential(Linear(weight), Shift(torch.tensor([float(scores.median()) - 0.02, 0.0])))
    said = model(x).argmax(1)
    y = said.clone()
    y[0] = 1 - y[0]
    short, long = (WassersteinPGD(eps=0.5, steps=steps, step_size=0.02)(model, x, y) for steps in (30, 60))
    assert torch.equal(short[0], x[0])
    won = model(short).argmax(1) != y
    assert won.sum() >= 2
    assert torch.equal(short[won], long[won])


class Saw(nn.Module):
    """Its loss at class 0 rises and falls with the mass in the left half, so that steps overshoot."""

    def forward(self, x: Tensor) -> Tensor:
        left = x[:, 0, :, : x.shape[3] // 2].sum((1, 2))
        return torch.stack([torch.full_like(left, 5.0), torch.sin(8.0 * left)], 1)


@BOTH
def test_returns_the_iterate_of_highest_loss_on_failure(attack: Any) -> None:
    x, y = random_images(4, 1, 4, 6, seed=21, top=0.5), torch.zeros(4, dtype=torch.int64)
    ends = [replace(attack, eps=0.3, steps=steps)(Saw(), x, y) for steps in range(1, 7)]
    losses = torch.stack([Saw()(end)[:, 1] for end in ends])
    assert bool((losses[1:] >= losses[:-1]).all())
    assert bool((losses[-1] > losses[0]).any())


@BOTH
def test_entropy_per_row_equals_separate_calls(attack: Any) -> None:
    x, y = random_images(3, 1, 5, 5, seed=22), torch.tensor([0, 1, 0])
    model, entropy = Linear(random_images(1, 5, 5, seed=23) - 0.5).double(), torch.tensor([1e-3, 3e-3, 1e-2])
    together = replace(attack, entropy=entropy, steps=4)(model, x, y)
    apart = [
        replace(attack, entropy=float(e), steps=4)(model, x[i : i + 1], y[i : i + 1]) for i, e in enumerate(entropy)
    ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-6)


class Kinked(nn.Module):
    """Convolutions with ReLU and pooling, in float32, whose last bits depend on the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()]
            self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, 5)).eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * (1.0 + 1.2e-7 * len(x))) * 20.0


def test_a_row_is_the_same_alone_and_in_a_batch() -> None:
    """Also where the victim's rounding is not."""
    model, x, attack = Kinked(), random_images(17, 1, 12, 12, seed=24), WassersteinFrankWolfe(eps=0.3, steps=12)
    y = model(x).argmax(1)
    whole, part, alone = (attack(model, x[rows], y[rows]) for rows in (slice(17), slice(10, 14), slice(12, 13)))
    torch.testing.assert_close(alone, whole[12:13], rtol=0, atol=1e-5)
    torch.testing.assert_close(part, whole[10:14], rtol=0, atol=1e-5)
    assert bool(((whole - x).abs().amax((1, 2, 3)) > 0.05).any())


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_pieces_of_one_size(rows: int) -> None:
    sizes: list[int] = []

    def classify(piece: Tensor) -> Tensor:
        sizes.append(len(piece))
        return piece.square().flatten(1)[:, :3]

    x = random_images(rows, 1, 2, 2, seed=25).requires_grad_()
    logits = in_pieces(classify, 4)(x)
    assert sizes == [4] * -(-rows // 4)
    torch.testing.assert_close(logits, x.square().flatten(1)[:, :3])
    (grad,) = torch.autograd.grad(logits.sum(), x)
    torch.testing.assert_close(grad.flatten(1)[:, :3], 2 * x.flatten(1)[:, :3])
