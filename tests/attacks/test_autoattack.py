"""APGD, Square and AutoAttack beyond what the contract and the closed forms say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks import APGD, AutoAttack, SampleRng, Square
from redlab.attacks.apgd import checkpoints, climb
from redlab.attacks.margin import dlr, margin
from redlab.attacks.square import _bumps, _window

SHAPE = (1, 6, 6)


def network(classes: int = 5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, classes)]
        net = nn.Sequential(*layers).eval()
        net[1].weight.data.mul_(4)
        return net


def images(rows: int) -> Tensor:
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(1))


def said(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


@pytest.mark.parametrize("classes", [2, 3, 4, 7])
def test_dlr_against_a_transcription(classes: int) -> None:
    logits = torch.randn(30, classes, generator=torch.Generator().manual_seed(2)) - 20
    y = torch.arange(30) % classes
    target = (y + 1) % classes
    for z, a, t, plain, aimed in zip(logits.tolist(), y, target, dlr(logits, y), dlr(logits, y, target), strict=True):
        order = sorted(z, reverse=True)
        gap = max(v for i, v in enumerate(z) if i != a) - z[a]
        assert float(plain) == pytest.approx(gap / (order[0] - order[2]) if classes >= 3 else gap, rel=1e-4)
        spread = order[0] - (order[2] + order[3]) / 2 if classes >= 4 else 1
        assert float(aimed) == pytest.approx((z[t] - z[a]) / spread, rel=1e-4)
    torch.testing.assert_close(margin(logits, y) < 0, logits.argmax(1) != y)
    if classes >= 4:
        torch.testing.assert_close(dlr(logits * 8 + 3, y, target), dlr(logits, y, target), rtol=1e-3, atol=1e-5)


def test_checkpoints_are_those_of_the_paper() -> None:
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    for steps in (1, 7, 50, 100, 333):
        expected = {math.ceil(round(share * steps, 9)) for share in p[1:]}
        assert checkpoints(steps) == sorted(w for w in expected if w <= steps)


@pytest.mark.parametrize("seed", range(4))
def test_apgd_against_a_transcription(seed: int) -> None:
    """One image, on a rough loss without success, so that ranking is by loss alone; the algorithm as printed."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(36, 36, generator=g, dtype=torch.float64) * 3

    def f(v: Tensor) -> Tensor:
        return torch.sin(v.double().flatten() @ w).sum()

    def judge(batch: Tensor) -> tuple[Tensor, Tensor]:
        loss = torch.stack([f(v) for v in batch])
        return loss, torch.zeros_like(loss, dtype=torch.bool)

    def slope(v: Tensor) -> Tensor:
        v = v.clone().requires_grad_()
        return torch.autograd.grad(f(v), v)[0]

    x, eps, steps = images(1)[0].double(), 0.2, 60

    def inside(v: Tensor) -> Tensor:
        return v.clamp(x - eps, x + eps).clamp(0, 1)

    points, eta = [x, inside(x + 2 * eps * slope(x).sign())], 2 * eps
    best = max(points, key=f)
    top, etas, restarts = [f(best)], [eta], 0
    values = [float(f(v)) for v in points]
    w_j = [0, *checkpoints(steps)]
    for k in range(1, steps + 1):
        if k in w_j:
            j = w_j.index(k)
            rises = sum(values[i + 1] > values[i] for i in range(w_j[j - 1], k))
            slow = rises < 0.75 * (k - w_j[j - 1])
            stuck = j > 1 and etas[-1] == etas[-2] and top[-1] == f(best)
            top.append(f(best))
            if slow or stuck:
                eta, points[-1], restarts = eta / 2, best, restarts + 1
                values[-1] = float(f(best))
            etas.append(eta)
        if k < steps:
            now, last = points[-1], points[-2]
            z = inside(now + eta * slope(now).sign())
            points.append(inside(now + 0.75 * (z - now) + 0.25 * (now - last)))
            values.append(float(f(points[-1])))
            best = max(best, points[-1], key=f)
    assert restarts >= 2
    found = climb(judge, x[None], x[None], torch.full((1,), eps).double(), steps, "linf")[0]
    torch.testing.assert_close(found, best)


def test_apgd_prefers_an_iterate_that_fools() -> None:
    """The cross-entropy is highest where the other two classes share the rest, the label still leading."""

    class Ridge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1).mean(1) * 10  # 5 at the start, then up
            return torch.stack([v * 0, -5 + 6 * torch.exp(-((v - 6) ** 2)), v / 4 - 1.6 + v.relu() * 0], 1)

    model, x = Ridge(), torch.full((1, *SHAPE), 0.5)
    y = torch.zeros(1, dtype=torch.int64)
    x_adv = APGD(eps=0.3, steps=30)(model, x, y)
    assert said(model, x_adv).item() != 0


def test_apgd_counts_any_wrong_class_if_told_to() -> None:
    model, x = network(), images(40)
    y = said(model, x)
    with torch.no_grad():
        target = model(x).argmin(1)
    aimed = said(model, APGD(eps=0.16, steps=20, loss="dlr")(model, x, y, target=target))
    loose = said(model, APGD(eps=0.16, steps=20, loss="dlr", any_class=True)(model, x, y, target=target))
    assert (loose != y).sum() >= (aimed != y).sum() > 0
    assert (aimed == target).sum() > (loose == target).sum() > 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_reports_its_queries(norm: str) -> None:
    """A row that used n queries is fooled by the n-th and not before; limits hold per row."""
    model, x = network(), images(24)
    y, rng = said(model, x), SampleRng(2, "test", 0, torch.arange(24))
    eps = 0.12 if norm == "linf" else 0.6
    attack = Square(norm=norm, eps=eps, queries=60, rescale=False)  # or fewer queries would be another search
    x_adv, used = attack.run(model, x, y, rng=rng)
    fooled = said(model, x_adv) != y
    assert 5 < fooled.sum() < 24
    assert bool((used[~fooled] == 60).all())
    assert used[fooled].unique().numel() > 3
    again, same = replace(attack, queries=used).run(model, x, y, rng=rng)
    assert torch.equal(again, x_adv)
    assert torch.equal(same, used)
    later = fooled & (used > 1)
    early, _ = replace(attack, queries=(used - 1).clamp(min=1)).run(model, x, y, rng=rng)
    assert torch.equal(said(model, early)[later], y[later])


@pytest.mark.parametrize(("rescale", "area"), [(True, 1), (False, 25)])
def test_square_windows_shrink_in_step_with_the_queries(rescale: bool, area: int) -> None:
    """At query 300 of 500 p is 0.8 / 2^7 of 256 pixels; if the queries were 10,000, it would be 0.8 / 2^3."""
    seen = []

    class Unmoved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    Square(queries=500, rescale=rescale)(Unmoved(), torch.full((1, 1, 16, 16), 0.5), torch.tensor([0]))
    assert len(seen) == 500
    changed = [int((one != seen[0]).sum()) for one in seen[295:305]]  # of a window, half the stripes are so already
    assert max(changed) <= area
    assert max(changed) > area // 4


def test_square_sends_no_finished_row() -> None:
    seen = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return network_(x)

    network_, x = network(), images(24)
    _, used = Square(eps=0.12, queries=60).run(Counting(), x, said(network_, x))
    assert sum(seen) == int(used.sum())


def test_square_windows_lie_inside_and_everywhere() -> None:
    corner = torch.cartesian_prod(torch.arange(50) / 50, torch.arange(50) / 50)
    window, row, column = _window(corner, 3, 5, 7)
    assert window.sum((1, 2, 3)).eq(9).all()
    places = window.flatten(1).unique(dim=0)
    assert len(places) == 3 * 5
    assert row[window.any(3)[:, 0]].unique().tolist() == [0, 1, 2]
    assert column.shape == (2500, 1, 7)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8])
def test_the_bumps_have_two_signs_and_length_one(side: int) -> None:
    bump = _bumps(side, torch.zeros(1))
    assert float(bump.norm()) == pytest.approx(1)
    assert bool((bump[: side // 2] > 0).all())
    assert bool((bump[side // 2 :] < 0).all())
    if side == 5:  # written out: 3 levels around the centre of 2 x 5 and of 3 x 5
        a, b, c = 1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9
        upper = torch.tensor([[c, b, b, b, c], [c, b, a, b, c]])
        lower = torch.tensor([[c, b, b, b, c], [c, b, a, b, c], [c, b, b, b, c]])
        expected = torch.cat([upper / upper.norm(), -lower / lower.norm()]) / math.sqrt(2)
        torch.testing.assert_close(bump, expected)


def test_autoattack_falls_through_row_by_row() -> None:
    """Wrong rows stay clean; what the first member fools is its own; later members only see the rest."""
    model, x = network(), images(40)
    y = said(model, x)
    y[:4] = (y[:4] + 1) % 5
    rng = SampleRng(3, "test", 0, torch.arange(40))
    x_adv = AutoAttack(eps=0.05, steps=10, queries=10, targets=2)(model, x, y, rng=rng)
    first = APGD(eps=0.05, steps=10)(model, x, y, rng=rng.fork("apgd-ce"))
    assert torch.equal(x_adv[:4], x[:4])
    fooled_first, fooled = said(model, first) != y, said(model, x_adv) != y
    assert fooled_first[4:].any()
    assert not fooled.all()
    torch.testing.assert_close(x_adv[4:][fooled_first[4:]], first[4:][fooled_first[4:]], rtol=0, atol=1e-6)
    torch.testing.assert_close(x_adv[~fooled], first[~fooled], rtol=0, atol=1e-6)


class Masked(nn.Module):
    """Its gradients point the wrong way, so that only a black box finds its weakness."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return 2 * logits.detach() - logits


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_autoattack_sees_through_masked_gradients(classes: int) -> None:
    net = network(classes)
    model, x = Masked(net), images(12)
    y = said(model, x)
    by_gradient = APGD(eps=0.3, steps=10)(model, x, y)
    x_adv = AutoAttack(eps=0.3, steps=10, queries=100)(model, x, y)
    assert (said(model, x_adv) != y).sum() > (said(model, by_gradient) != y).sum() + 2


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.2)])
def test_autoattack_is_no_weaker_than_its_members(classes: int, norm: str, eps: float) -> None:
    model, x = network(classes), images(40)
    y, rng = said(model, x), SampleRng.for_batch(x)
    x_adv = AutoAttack(norm=norm, eps=eps, steps=10, queries=20)(model, x, y, rng=rng)
    assert (x_adv - x).flatten(1).norm(p=math.inf if norm == "linf" else 2, dim=1).max() <= eps + 1e-6
    fooled = said(model, x_adv) != y
    members = {
        "apgd-ce": APGD(norm=norm, eps=eps, steps=10),
        "square": Square(norm=norm, eps=eps, queries=20, rescale=False),
    }
    for name, member in members.items():
        alone = said(model, member(model, x, y, rng=rng.fork(name))) != y
        assert bool((fooled | ~alone).all())
    assert 0 < fooled.sum() < 40


def test_autoattack_with_a_target_counts_the_target_only() -> None:
    model, x = network(), images(24)
    y = said(model, x)
    target = (y + 2) % 5
    x_adv = AutoAttack(eps=0.1, steps=10, queries=20)(model, x, y, target=target)
    hit = said(model, x_adv) == target
    best = APGD(eps=0.1, steps=10)(model, x, y, target=target, rng=SampleRng.for_batch(x).fork("apgd-ce"))
    assert hit.sum() >= (said(model, best) == target).sum() > 0
    loss = F.cross_entropy(model(x_adv), target, reduction="none")
    assert bool((loss < F.cross_entropy(model(x), target, reduction="none")).all())
