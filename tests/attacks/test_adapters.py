"""What is put around the attacks of other libraries, shown with libraries made up here.

The real ones are in tests/peers/test_peers_adapters.py.
"""

from __future__ import annotations

import dataclasses
import fractions
import random
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from redlab.attacks import SampleRng
from redlab.attacks.adapters import AdvLib, Foolbox, Torchattacks
from redlab.crafting import AttackMix, Component

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3
TARGET = (Y + 1) % 3


def in_library(name: str, **members: Any) -> types.ModuleType:
    """A module whose functions and classes say that they are its own."""
    module = types.ModuleType(name)
    for key, value in members.items():
        if not isinstance(value, types.ModuleType):
            value.__module__ = name
        setattr(module, key, value)
    return module


def rude(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Does all that it should not, and draws from every generator. Follows the gradient with the labels given."""
    model.train()
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point())
    model.to(images.device)
    start = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(start), labels).backward()
    model.zero_grad()
    noise = torch.rand(()) + float(np.random.rand()) + random.random()  # noqa: NPY002
    images += 1e-3  # its own copy
    torch.set_grad_enabled(False)
    return (start + 0.1 * start.grad.sign() * noise) * 2


class Rude:
    supported_mode = ("default", "targeted")

    def __init__(self, model: nn.Module, eps: float = 0.1, seed: int = 0) -> None:
        self.model, self.eps, self.seed, self.way = model, eps, seed, 1.0
        self.device = next(model.parameters()).device

    def set_device(self, device: torch.device) -> None:
        self.device = device

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        self.way = -1.0

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return rude(self.model, images, labels) + self.seed * 2.0**-40


class Plain(Rude):
    supported_mode = ("default",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)


class Answer(Rude):
    """Returns what it is told to."""

    def __init__(self, model: nn.Module, value: Any) -> None:
        self.value = value

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.value


class Breaks(Plain):
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        rude(self.model, images, labels)
        raise KeyError("the library broke")


class FixedEpsilonAttack:
    distance = types.SimpleNamespace(p=float("inf"))

    def __init__(self, steps: int = 1) -> None:
        self.steps = steps

    def __call__(self, model: Any, images: Tensor, goal: Any, epsilons: list[float]) -> tuple[Any, Any, Tensor]:
        assert epsilons == [8 / 255]
        found = [rude(model.model, images, goal.labels)]
        return found, found, torch.ones((1, len(images)), dtype=torch.bool)


class Smallest(FixedEpsilonAttack.__base__):  # type: ignore[misc]
    """Finds every other row; the rest is black, and but for row 1 called a success."""

    def __call__(self, model: Any, images: Tensor, goal: Any, epsilons: list[float | None]) -> tuple[Any, Any, Tensor]:
        if goal.targeted:
            raise ValueError("unsupported criterion")
        row = torch.arange(len(images))
        success = row != 1
        best = torch.where((row % 2 == 0)[:, None, None, None], torch.ones_like(images), torch.zeros_like(images))
        found = [best if eps is None else images + (best - images).clamp(-eps, eps) for eps in epsilons]
        return found, found, torch.stack([success if eps is None else success & False for eps in epsilons])


class Goal:
    def __init__(self, labels: Tensor, targeted: bool) -> None:
        self.labels, self.targeted = labels, targeted


class Bounded:
    def __init__(self, model: nn.Module, bounds: tuple[int, int], device: torch.device) -> None:
        self.model = model


def pretends(model: nn.Module, inputs: Tensor, labels: Tensor, targeted: bool = False) -> Tensor:
    if targeted:
        warnings.warn("this attack is untargeted only. Returning inputs.", stacklevel=1)
    return inputs


def asserts(model: nn.Module, inputs: Tensor, labels: Tensor, targeted: bool = False) -> Tensor:
    assert not targeted
    return inputs


def step(model: nn.Module, inputs: Tensor, labels: Tensor, targeted: bool = False, ε: float = 0.1) -> Tensor:
    return rude(model, inputs, labels)


def untargeted(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return inputs


@pytest.fixture(autouse=True)
def _libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    criteria = in_library(
        "foolbox.criteria",
        Misclassification=lambda labels: Goal(labels, False),
        TargetedMisclassification=lambda labels: Goal(labels, True),
    )
    base = in_library("foolbox.attacks.base", FixedEpsilonAttack=FixedEpsilonAttack)
    # A name for one class in two modules of the library, as in foolbox itself.
    attacks = in_library("foolbox.attacks", LinfPGD=FixedEpsilonAttack, Smallest=Smallest, base=base)
    made = [
        in_library("torchattacks", PGD=Rude, Plain=Plain, Answer=Answer, Breaks=Breaks),
        in_library("foolbox", attacks=attacks, criteria=criteria, PyTorchModel=Bounded),
        attacks,
        in_library("adv_lib", attacks=types.ModuleType("adv_lib.attacks")),
        in_library("adv_lib.attacks", ddn=step, pretends=pretends, asserts=asserts, untargeted=untargeted),
    ]
    made[0].load = torch.load  # something of another package
    for module in made:
        monkeypatch.setitem(sys.modules, module.__name__, module)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.norm, self.linear = nn.BatchNorm2d(1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.norm.training
        return self.linear(self.norm(x).flatten(1))


ALL = [Torchattacks, Foolbox, AdvLib]


@pytest.mark.parametrize("adapter", ALL)
def test_yaml_says_the_defaults(adapter: Any) -> None:
    files = (Path(__file__).parents[2] / "conf" / "attack").glob("*.yaml")
    said = [dict(OmegaConf.load(path)) for path in files if f".{adapter.__name__}\n" in path.read_text()]  # type: ignore[call-overload]
    assert len(said) == 1
    del said[0]["_target_"]
    assert said[0].keys() == {field.name for field in dataclasses.fields(adapter)}
    if "eps" in said[0]:
        said[0]["eps"] = float(fractions.Fraction(said[0]["eps"]))
    assert adapter(**said[0]) == adapter()


def trace(model: nn.Module) -> list[Any]:
    return [
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        {name: t.tolist() for name, t in model.state_dict().items()},
        torch.get_rng_state().tolist(),
        str(np.random.get_state()),  # noqa: NPY002
        random.getstate(),
        torch.is_grad_enabled(),
    ]


@pytest.mark.parametrize("target", [None, TARGET], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("adapter", ALL)
def test_a_rude_library_leaves_no_trace_and_its_result_is_put_right(adapter: Any, target: Tensor | None) -> None:
    model, x, y = Net().train(), X.clone().requires_grad_(), Y.clone()
    before = trace(model)
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            x_adv = adapter()(model, x, y, target=target)
        assert trace(model) == before
        assert torch.equal(x, X)
        assert x.grad is None
        assert x_adv.shape == X.shape
        assert x_adv.dtype == torch.float32
        assert not x_adv.requires_grad
        assert not x_adv.is_inference()
        assert 0 <= float(x_adv.min()) <= float(x_adv.max()) == 1  # the library's own went beyond
        assert not torch.equal(x_adv, X)


def test_also_after_an_exception() -> None:
    model = Net().train()
    before = trace(model)
    with pytest.raises(KeyError, match="the library broke"):
        Torchattacks(attack="Breaks")(model, X, Y)
    assert trace(model) == before


@pytest.mark.parametrize("adapter", ALL)
def test_the_result_is_a_function_of_batch_and_rng(adapter: Any) -> None:
    model, rng = Net(), SampleRng(3, "test", 0, torch.arange(6) + 40)
    first = adapter()(model, X, Y, rng=rng)
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        assert torch.equal(adapter()(model, X, Y, rng=rng), first)
    others = [rng.fork("again"), SampleRng(4, "test", 0, rng.index), SampleRng(3, "test", 0, rng.index + 1)]
    assert all(not torch.equal(adapter()(model, X, Y, rng=other), first) for other in others)
    assert torch.equal(adapter()(model, X, Y), adapter()(model, X, Y, rng=SampleRng.for_batch(X)))


def test_an_attack_with_a_seed_of_its_own_gets_the_calls_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Rude, "__call__", lambda self, images, labels: seen.append(self.seed) or images)
    for arguments in ({}, {}, {"seed": 5}):
        Torchattacks(arguments=arguments)(Net(), X, Y)
    Torchattacks()(Net(), X, Y, rng=SampleRng(1, "test", 0, torch.arange(6)))
    assert seen[0] == seen[1] != seen[3]
    assert seen[2] == 5


def test_rows_for_which_foolbox_finds_nothing_come_back_clean() -> None:
    for eps, best in ((None, torch.ones_like(X)), (0.1, (X + 0.1).clamp(max=1.0))):
        x_adv = Foolbox(attack="Smallest", eps=eps)(Net(), X, Y)
        torch.testing.assert_close(x_adv[::2], best[::2])
        assert torch.equal(x_adv[1::2], X[1::2])


BAD_ANSWERS = [
    (X[:3], r"torchattacks.Answer returned \(3, 1, 4, 4\) for images \(6, 1, 4, 4\)"),
    (None, "returned NoneType"),
    (torch.where(Y[:, None, None, None] == 2, torch.nan, X), "not finite in 2 of 6 rows"),
]


@pytest.mark.parametrize(("answer", "message"), BAD_ANSWERS)
def test_a_bad_answer_is_named(answer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Torchattacks(attack="Answer", arguments={"value": answer})(Net(), X, Y)


def test_another_type_is_put_right() -> None:
    x_adv = Torchattacks(attack="Answer", arguments={"value": X.double()})(Net(), X, Y)
    assert torch.equal(x_adv, X)
    assert x_adv.data_ptr() != X.data_ptr()


@pytest.mark.parametrize(
    "attack",
    [
        ("Torchattacks", "Plain", {}),
        ("Foolbox", "Smallest", {"eps": None}),
        *[("AdvLib", name, {}) for name in ("pretends", "asserts", "untargeted")],
    ],
    ids=lambda attack: attack[1],
)
def test_a_target_for_an_attack_without_one(attack: tuple[str, str, dict[str, Any]]) -> None:
    adapter, name, more = {cls.__name__: cls for cls in ALL}[attack[0]], attack[1], attack[2]
    made = adapter(attack=name, **more)
    made(Net(), X, Y)
    with pytest.raises(ValueError, match=rf"{name} is untargeted, got target \[1, 2, 0\]"):
        made(Net(), X, Y, target=TARGET)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Torchattacks(attack="PDG"), "torchattacks has no attack 'PDG'; did you mean PGD"),
        (lambda: Torchattacks(attack="load"), "no attack 'load'"),
        (lambda: Torchattacks(arguments={"esp": 0.1}), "torchattacks.PGD has no argument 'esp'; did you mean 'eps'"),
        (lambda: Torchattacks(arguments={"model": 1}), "no argument 'model'"),
        (lambda: Torchattacks(arguments=3), "arguments must be a mapping, got 3"),
        (lambda: Foolbox(attack="base.None"), "foolbox.attacks has no attack 'base.None'"),
        (lambda: Foolbox(arguments={"step": 1}), "did you mean 'steps'"),
        (lambda: Foolbox(eps=None), "foolbox.attacks.LinfPGD needs a budget, got eps=None"),
        (lambda: Foolbox(eps=-0.5), r"-0\.5"),
        (lambda: Foolbox(eps=8), "eps must be at most 1, got 8; .* did you mean 8/255"),
        (lambda: Foolbox(eps=torch.ones(6)), "one number for all rows"),
        (lambda: AdvLib(arguments={"targeted": True}), "no argument 'targeted'"),
        (lambda: AdvLib(attack="dnn"), "did you mean ddn"),
    ],
)
def test_a_mistake_is_found_when_the_attack_is_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("adapter", ALL)
def test_bad_input_is_refused_before_the_library_sees_it(adapter: Any) -> None:
    for x, y, target in ((X * 2, Y, None), (X, Y.float(), None), (X, Y, Y), (X, Y + 3, None)):
        with pytest.raises(ValueError, match=r"must|range"):
            adapter()(Net(), x, y, target=target)
    with pytest.raises(ValueError, match="5 indices for 6"):
        adapter()(Net(), X, Y, rng=SampleRng(0, "test", 0, torch.arange(5)))


@pytest.mark.parametrize(
    ("adapter", "library", "install"),
    [
        (Torchattacks, "torchattacks", r"pip install 'redlab\[peers\]' && pip install --no-deps torchattacks"),
        (Foolbox, "foolbox", r"pip install 'redlab\[peers\]'"),
        (AdvLib, "adv_lib.attacks", r"pip install 'redlab\[peers\]' && pip install --no-deps adv-lib"),
    ],
)
def test_a_missing_library_is_named(adapter: Any, library: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"this needs the package {library}: {install}$"):
        adapter()


def test_adv_lib_is_imported_without_visdom_and_nobody_notices() -> None:
    AdvLib()
    assert "visdom" not in sys.modules or hasattr(sys.modules["visdom"], "__file__")


@pytest.mark.parametrize("adapter", ALL)
def test_in_a_mix(adapter: Any) -> None:
    mix = AttackMix({"clean": Component(attack=None), "theirs": Component(attack=adapter(), target="random")})
    rows = torch.arange(6)
    plan = mix.plan(rows, rows, stage="train", epoch=0, victim_names=["net"])
    batch = mix.craft({"net": Net()}, X, Y, plan)
    assert torch.equal(batch.adv[batch.attack == 0], X[batch.attack == 0])
    assert bool((batch.adv != X).flatten(1).any(1)[batch.attack == 1].all())
    assert bool((batch.target[batch.attack == 1] >= 0).all())
