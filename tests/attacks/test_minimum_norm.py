"""Carlini-Wagner, DeepFool and DDN: against transcriptions, against the optimum on linear models, and at the edges."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from redlab.attacks import DDN, CarliniWagnerL2, CarliniWagnerLinf, DeepFool
from redlab.attacks.margin import margin, nearest_boundary

spec = importlib.util.spec_from_file_location("reference", Path(__file__).parents[1] / "reference" / "minimum_norm.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

SHAPE, ROWS = (2, 4, 3), 6


class Curved(nn.Module):
    """A small smooth network of five classes. Counts calls and rows."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(2)
        self.register_buffer("a", torch.randn(24, 16, generator=g) / 3)
        self.register_buffer("b", torch.randn(16, 5, generator=g) * 2)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return torch.tanh((x.flatten(1) - 0.5) @ self.a) @ self.b


class Linear(nn.Module):
    """Class 1 wins where w . (x - 1/2) > 0, at distance |w . (x - 1/2)| / |w|_*."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        score = ((x - 0.5) * self.w).flatten(1).sum(1)
        return torch.stack([-score, score], 1)


def images(rows: int = ROWS, margin: float = 0.0) -> Tensor:
    """On 256 grey values, some of them black and white."""
    g = torch.Generator().manual_seed(5)
    wide = torch.rand(rows, *SHAPE, generator=g) * (1.4 - 2 * margin) - 0.2 + margin
    return (wide.clamp(0, 1) * 255).round() / 255


def predictions(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def fooled(model: nn.Module, x_adv: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    return predictions(model, x_adv) != y if target is None else predictions(model, x_adv) == target


def sizes(delta: Tensor, norm: str) -> Tensor:
    return delta.flatten(1).abs().amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)


TRANSCRIBED: list[tuple[Any, Any]] = [
    (
        partial(CarliniWagnerL2, confidence=0.3, c=0.01, lr=0.02, steps=40, binary_search_steps=3),
        partial(reference.cw_l2, confidence=0.3, c=0.01, lr=0.02, steps=40, searches=3),
    ),
    (
        partial(CarliniWagnerL2, c=0.5, steps=7, binary_search_steps=1),
        partial(reference.cw_l2, confidence=0.0, c=0.5, lr=0.01, steps=7, searches=1),
    ),
    (
        partial(CarliniWagnerLinf, eps=None, c=0.15, lr=0.05, steps=6),
        partial(reference.cw_linf, c=0.15, lr=0.05, steps=6),
    ),
    (partial(DDN, steps=20, gamma=0.1), partial(reference.ddn, steps=20, gamma=0.1, norm=1.0, levels=256)),
    (
        partial(DDN, steps=9, init_norm=0.3, levels=None),
        partial(reference.ddn, steps=9, gamma=0.05, norm=0.3, levels=None),
    ),
]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("make", "transcription"), TRANSCRIBED)
def test_equals_its_transcription(make: Any, transcription: Any, targeted: bool) -> None:
    model, x = Curved(), images()
    y = predictions(model, x)
    target = (y + 2) % 5 if targeted else None
    x_adv = make()(model, x, y, target=target)
    for i, goal in enumerate(y if target is None else target):
        expected = transcription(model, x[i : i + 1], int(goal), targeted)
        torch.testing.assert_close(x_adv[i : i + 1], expected, rtol=0, atol=2e-4)  # Adam amplifies rounding
        assert (expected - x[i]).norm() > 0.02


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_equals_its_transcription(norm: str, top_k: int | None) -> None:
    model, x = Curved(), images(12)
    y = predictions(model, x)
    for steps in (1, 50):
        x_adv = DeepFool(norm=norm, top_k=top_k, steps=steps)(model, x, y)
        for i in range(12):
            order = model(x[i : i + 1])[0].argsort(descending=True).tolist()[1:]
            expected = reference.deepfool(model, x[i : i + 1], y[i], norm, steps, 0.02, order[:top_k])
            torch.testing.assert_close(x_adv[i : i + 1], expected, rtol=0, atol=1e-5)


# Attack, norm, and how close to the closed-form optimum it comes.
CLOSE = [
    (CarliniWagnerL2(steps=200, c=0.1, binary_search_steps=6), "l2", 1.02),
    (CarliniWagnerLinf(eps=None, c=0.1, steps=50), "linf", 1.15),
    (DDN(levels=None), "l2", 1.01),
    (DDN(), "l2", 1.05),
]


@pytest.mark.parametrize(("attack", "norm", "factor"), CLOSE, ids=str)
def test_comes_close_to_the_optimum_on_a_linear_model(attack: Any, norm: str, factor: float) -> None:
    model, x = Linear(), images(48, margin=0.5)  # grey enough that the ends of the range are out of reach
    x = x[model(x)[:, 1].abs().argsort()[24:]]
    y, score = predictions(model, x), model(x)[:, 1].abs()
    best = score / (model.w.abs().sum() if norm == "linf" else model.w.norm())
    for target in (None, 1 - y):
        x_adv = attack(model, x, y, target=target)
        assert bool(fooled(model, x_adv, y, target).all())
        ratio = sizes(x_adv - x, norm) / best
        assert ratio.min() >= 1 - 1e-4
        assert ratio.max() <= factor


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("overshoot", [0.02, 0.001])
def test_deepfool_needs_one_step_on_a_linear_model(norm: str, overshoot: float) -> None:
    model, x = Linear(), images(48, margin=0.5)
    x = x[model(x)[:, 1].abs().argsort()[24:]]
    y, score = predictions(model, x), model(x)[:, 1].abs()
    best = score / (model.w.abs().sum() if norm == "linf" else model.w.norm())
    x_adv = DeepFool(norm=norm, overshoot=overshoot, steps=1)(model, x, y)
    assert bool(fooled(model, x_adv, y, None).all())
    torch.testing.assert_close(sizes(x_adv - x, norm), (1 + overshoot) * (best + 1e-4), rtol=1e-4, atol=1e-6)


def test_confidence_is_reached_at_its_closed_form_price() -> None:
    """A margin of kappa costs (|score| + kappa / 2) / |w|, here with a confidence per row."""
    model, x = Linear(), images(8, margin=0.55)
    y, confidence = predictions(model, x), torch.linspace(0, 2, 8)
    x_adv = CarliniWagnerL2(confidence=confidence, steps=300, c=0.1, binary_search_steps=6)(model, x, y)
    assert bool((-margin(model(x_adv), y) >= confidence - 1e-4).all())
    best = (model(x)[:, 1].abs() + confidence / 2) / model.w.norm()
    assert (sizes(x_adv - x, "l2") / best).max() <= 1.02


def test_linf_with_a_budget_uses_it_up_or_stops_where_it_has_won() -> None:
    model, x = Linear(), images(24, margin=0.5)
    y = predictions(model, x)
    need = model(x)[:, 1].abs() / model.w.abs().sum()
    scarce = CarliniWagnerLinf(eps=need * 0.8)(model, x, y)
    corner = x + (need * 0.8)[:, None, None, None] * model.w.sign() * (1 - 2 * y.float())[:, None, None, None]
    gain = (margin(model(x), y) - margin(model(scarce), y)) / (margin(model(x), y) - margin(model(corner), y))
    assert gain.min() >= 0.99
    plenty = CarliniWagnerLinf(eps=need * 3)(model, x, y)
    assert bool(fooled(model, plenty, y).all())
    assert (sizes(plenty - x, "linf") - need).max() <= 2 * 0.005  # two steps of Adam
    sure = CarliniWagnerLinf(eps=need * 3, confidence=0.1)(model, x, y)
    assert bool((-margin(model(sure), y) >= 0.1 - 1e-4).all())


EDGES: list[Any] = [
    CarliniWagnerL2(steps=300, c=1.0, binary_search_steps=2),
    CarliniWagnerLinf(steps=20),
    CarliniWagnerLinf(eps=None, c=0.1, steps=20),
    DDN(steps=20),
    DeepFool(),
]


@pytest.mark.parametrize("attack", EDGES, ids=str)
def test_a_row_that_is_wrong_already_is_its_own_smallest_adversarial(attack: Any) -> None:
    model, x = Curved(), images()
    y = predictions(model, x)
    y[::2] = (y[::2] + 1) % 5
    x_adv = attack(model, x, y)
    assert torch.equal(x_adv[::2], x[::2])
    assert bool((sizes(x_adv - x, "linf")[1::2] > 1e-3).all())
    if not isinstance(attack, DeepFool):
        says = predictions(model, x)
        assert torch.equal(attack(model, x, (says + 1) % 5, target=says), x)


class Fortress(nn.Module):
    """Nothing in [0, 1] changes its answer, but its gradient pulls."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([mean + 5, -mean], 1)


@pytest.mark.parametrize("attack", EDGES, ids=str)
def test_a_row_that_cannot_be_fooled_gets_its_last_iterate(attack: Any) -> None:
    x = images(3, margin=0.5)
    x_adv = attack(Fortress(), x, torch.zeros(3, dtype=torch.int64))
    assert bool((x_adv.flatten(1).mean(1) < x.flatten(1).mean(1) - 1e-3).all())


@pytest.mark.parametrize("scale", [1e20, 1e30, 1e37])
@pytest.mark.parametrize("attack", [EDGES[0], CarliniWagnerLinf(eps=0.3), EDGES[2]], ids=str)
def test_large_logits(attack: Any, scale: float) -> None:
    """Where the squares of gradients overflow, and with the last even the weighted gradients."""

    class Scaled(Curved):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * scale

    model, x = Scaled(), images(3)
    y = predictions(model, x)
    x_adv = attack(model, x, y)
    assert bool(torch.isfinite(x_adv).all())
    assert bool(fooled(model, x_adv, y).all())


class Brighter(nn.Module):
    """Class 1 wins where the mean is above 0.2."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([0.2 - mean, mean - 0.2], 1) * 20


@pytest.mark.parametrize("pixel", [0.0, 1.0])
@pytest.mark.parametrize("attack", [*EDGES, CarliniWagnerL2(steps=1000, c=1.0, binary_search_steps=1)], ids=str)
def test_black_and_white_pixels_can_move(attack: Any, pixel: float) -> None:
    model = Brighter()
    x = torch.full((2, *SHAPE), 0.0 if pixel == 0 else 1.0)
    attack = CarliniWagnerLinf(eps=0.9, steps=200) if getattr(attack, "eps", None) else attack
    y = predictions(model, x)
    x_adv = attack(model, x, y)
    assert bool(((x_adv - x).abs() > 0.1).all())


def test_ddn_stays_on_the_grey_values() -> None:
    model, x = Curved(), images()
    y = predictions(model, x)
    for levels in (256, 16):
        x_adv = DDN(steps=15, levels=levels)(model, (x * (levels - 1)).round() / (levels - 1), y) * (levels - 1)
        torch.testing.assert_close(x_adv, x_adv.round(), rtol=0, atol=1e-4)
    x_adv = DDN(steps=15, levels=None)(model, x, y) * 255
    assert (x_adv - x_adv.round()).abs().max() > 0.1


def test_ddn_leaves_a_point_without_gradient() -> None:
    """At first the gradient is nought; the kick is the row's own."""

    class Bowl(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            square = (x - 0.5).square().flatten(1).sum(1)
            return torch.stack([0.1 - square, square - 0.1], 1)

    x = torch.full((3, *SHAPE), 0.5)
    x_adv = DDN()(Bowl(), x, torch.zeros(3, dtype=torch.int64))
    assert bool(fooled(Bowl(), x_adv, torch.zeros(3, dtype=torch.int64)).all())
    assert (sizes(x_adv - x, "l2") / 0.1**0.5).max() <= 1.05
    assert not torch.equal(x_adv[0], x_adv[1])


@pytest.mark.parametrize(("norm", "nearest"), [("l2", 2), ("linf", 1)])
def test_the_nearest_boundary_depends_on_the_norm(norm: str, nearest: int) -> None:
    """Both others are 1 away in logits; 16 slopes of 1 are the steeper in linf, one of 5 is in l2, and 0 never."""
    slopes = torch.zeros(4, 1, 4, 4)
    slopes[1], slopes[2, 0, 0, 0] = 1.0, 5.0
    x = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    logits = (x - 0.5).flatten(1) @ slopes.flatten(1).T - torch.tensor([0.0, 1.0, 1.0, 0.0])
    y, others = torch.zeros(2, dtype=torch.int64), torch.tensor([[3, 1, 2], [2, 3, 1]])
    gap, slope = nearest_boundary(logits, x, y, others, norm)
    assert gap.flatten().tolist() == [-1.0, -1.0]
    assert torch.equal(slope, slopes[nearest].expand(2, 1, 4, 4))


@pytest.mark.parametrize(
    ("finished", "calls"),
    [(1, [12, 11, 10]), (6, [12, 6, 6])],
    ids=["few: their gradients are thrown away", "many: the others' logits are computed again"],
)
def test_deepfool_drops_finished_rows(finished: int, calls: list[int]) -> None:
    model, x = Curved(), images(12)
    y = predictions(model, x)
    y[:finished] = (y[:finished] + 1) % 5
    model.calls.clear()
    x_adv = DeepFool()(model, x, y)
    assert model.calls[:3] == calls
    assert model.calls == sorted(model.calls, reverse=True)
    assert model.calls[-1] < 12 - finished
    assert torch.equal(x_adv[:finished], x[:finished])
    alone = torch.cat([DeepFool()(model, x[i : i + 1], y[i : i + 1]) for i in range(12)])
    torch.testing.assert_close(x_adv, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("c", "steps", "factor"), [(1.0, 100, 1.05), (10.0, 1000, 1.02)])
def test_carlini_wagner_waits_until_an_overshoot_is_undone(c: float, steps: int, factor: float) -> None:
    """Adam runs across the boundary, and back again when it has forgotten the steep gradients before it."""
    model, x = Linear(), images(48, margin=0.5)
    x = x[model(x)[:, 1].abs().argsort()[24:]]
    y, best = predictions(model, x), model(x)[:, 1].abs() / model.w.norm()
    x_adv = CarliniWagnerL2(steps=steps, c=c, binary_search_steps=1)(model, x, y)
    assert bool(fooled(model, x_adv, y).all())
    assert (sizes(x_adv - x, "l2") / best).max() <= factor


def test_grey_pixels_move_as_in_the_paper() -> None:
    """The first step of Adam is the learning rate, down the gradient: (tanh(w - lr) + 1) / 2."""
    x, y = images(4).clamp(0.025, 0.975), torch.zeros(4, dtype=torch.int64)
    x_adv = CarliniWagnerL2(c=1e3, steps=1, lr=0.1, binary_search_steps=1)(Fortress(), x, y)
    torch.testing.assert_close(x_adv, (torch.tanh(torch.atanh(2 * x - 1) - 0.1) + 1) / 2, rtol=0, atol=1e-6)


def test_carlini_wagner_drops_rows_that_are_wrong_already_and_those_that_are_finished() -> None:
    model, x = Curved(), images(12)
    y = predictions(model, x)
    y[::2] = (y[::2] + 1) % 5
    model.calls.clear()
    CarliniWagnerL2(steps=199, c=1.0, binary_search_steps=2)(model, x, y)
    assert model.calls == [12, *[6] * 199] * 2
    model.calls.clear()
    CarliniWagnerL2(steps=1000, c=1e-3, binary_search_steps=1)(model, x, y)  # so small a c gets nobody anywhere
    assert model.calls[:201] == [12, *[6] * 200]
    assert len(model.calls) < 1001


def test_margin() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.5], [1.0, 4.0, 2.5]])
    assert margin(logits, torch.tensor([1, 0])).tolist() == [1.5, -3.0]
    assert margin(logits, torch.tensor([1, 0]), targeted=True).tolist() == [-1.5, 3.0]
