"""What every attack promises. A new attack joins by one line in ATTACKS."""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import importlib
import inspect
import pathlib
import pkgutil
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

import redlab.attacks
from printed import ROOT, entry
from redlab.attacks import (
    APGD,
    BPDA,
    DDN,
    EOT,
    FAB,
    FGSM,
    PGD,
    RFGSM,
    RP2,
    AutoAttack,
    Boundary,
    CarliniWagnerL2,
    CarliniWagnerLinf,
    DeepFool,
    Defended,
    FeatureAttack,
    LocalSearch,
    Occlusion,
    Patch,
    SampleRng,
    SmoothedPGD,
    SpatialTransform,
    Square,
    Stored,
    WassersteinFrankWolfe,
    WassersteinPGD,
)
from redlab.attacks.adapters import Torchattacks
from redlab.attacks.base import GuardedAttack
from redlab.attacks.margin import dlr


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    if target is None:
        return F.cross_entropy(logits, y, reduction="none")
    return -F.cross_entropy(logits, target, reduction="none")


def lead(logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    label = y if target is None else target
    own = F.one_hot(label, logits.shape[1]).bool()
    gap = logits.masked_fill(own, -torch.inf).amax(1) - logits[own]
    return gap if target is None else -gap


class Dimmer(nn.Module):
    def restore(self, x: Tensor) -> Tensor:
        return 0.9 * x


class OnADefence(BPDA):
    """BPDA with the model that it needs."""

    def __call__(self, model: nn.Module, *args: Any, **rest: Any) -> Tensor:
        return super().__call__(Defended(Dimmer(), model), *args, **rest)


class Case(NamedTuple):
    name: str
    make: Callable[..., Any]  # takes fields of the attack
    norm: str | None  # of the budget eps; None where an attack has none
    draws: bool = True  # whether it uses its rng
    targeted: bool = True  # whether it can be
    raises: Callable[[Tensor, Tensor, Tensor | None], Tensor] = cross_entropy  # what it wants more of
    balanced: bool = False  # whether it needs a victim whose decisions differ between random images


def white(x: Tensor, *_: Any) -> Tensor:
    return torch.ones_like(x)


def like_white(logits: Tensor, *_: Any) -> Tensor:
    """Of the network of the tests, for images of its size."""
    return -(logits - network()(torch.ones(1, 3, 7, 5))).square().sum(1)


CORNERS = [[[0, 2, 0, 2]], [[3, 3, 1, 3], [1, 3, 3, 3]]]

ATTACKS = [
    Case("fgsm", FGSM, "linf", draws=False),
    Case("rfgsm", RFGSM, "linf"),
    Case("pgd-linf", PGD, "linf"),
    Case("pgd-l2", partial(PGD, norm="l2"), "l2"),
    Case("pgd-no-random-start", partial(PGD, random_start=False), "linf", draws=False),
    Case("cw-l2", partial(CarliniWagnerL2, c=10.0, steps=5, binary_search_steps=2), None, draws=False),
    Case("cw-linf", partial(CarliniWagnerLinf, steps=5), "linf", draws=False),
    Case("cw-linf-no-budget", partial(CarliniWagnerLinf, eps=None, c=15.0, lr=0.1, steps=3), None, draws=False),
    Case("deepfool-l2", partial(DeepFool, steps=5), None, draws=False, targeted=False),
    Case("deepfool-linf", partial(DeepFool, norm="linf", steps=5, top_k=1), None, draws=False, targeted=False),
    # Without rounding, which would turn the last bits of the victim's sums into whole grey values.
    Case("ddn", partial(DDN, steps=5, levels=None), None, draws=False),
    Case("apgd-linf", partial(APGD, steps=6), "linf"),
    Case("apgd-l2-dlr", partial(APGD, norm="l2", steps=6, loss="dlr"), "l2", raises=dlr),
    Case("fab-linf", partial(FAB, steps=4), None, draws=False),
    Case("fab-l2", partial(FAB, norm="l2", steps=4), None, draws=False),
    Case("square-linf", partial(Square, queries=40), "linf", raises=lead),
    Case("square-l2", partial(Square, norm="l2", queries=12, rescale=False), "l2", raises=lead),
    Case("bpda", partial(OnADefence, attack=PGD(steps=2)), None),
    Case("eot", partial(EOT, attack=PGD(steps=2), samples=2), None),
    Case("stored", partial(Stored, attack=PGD(steps=2, eps=0.1)), None),
    Case("smoothed-pgd", partial(SmoothedPGD, steps=3, samples=3, sigma=0.1), "linf"),
    Case("patch", partial(Patch, size=2, steps=5), "linf"),
    Case("occlusion", partial(Occlusion, height=2, width=3, stride=1, steps=5), None, draws=False),
    Case(
        "occlusion-gradient",
        partial(Occlusion, height=3, width=2, search="gradient", stride=1, candidates=9, steps=20),
        None,
        draws=False,
    ),
    Case("feature", partial(FeatureAttack, guides=white, layer="", steps=5), "linf", draws=False, raises=like_white),
    Case("rp2", partial(RP2, masks=CORNERS, canvas=4, steps=5), None),
    Case("spatial", partial(SpatialTransform, smoothness=1e-3, steps=8), None, draws=False, raises=lead),
    Case("boundary", partial(Boundary, steps=11, starts=30), None, targeted=False, raises=lead, balanced=True),
    Case("local-search", LocalSearch, None, targeted=False, raises=lead, balanced=True),
    Case("autoattack", partial(AutoAttack, steps=2, queries=2, targets=2), "linf"),
    Case("wasserstein-pgd", partial(WassersteinPGD, steps=2, window=3, dual_steps=5), None, draws=False),
    Case("wasserstein-frank-wolfe", partial(WassersteinFrankWolfe, steps=2, window=3), None, draws=False),
    *entry(ROOT / "docs" / "add_an_attack.md", globals()),  # what people start from
]

VOCABULARY = {
    *("norm", "eps", "alpha", "step_size", "steps", "random_start"),
    *("confidence", "c", "lr", "binary_search_steps", "overshoot", "gamma", "queries"),
    *("init_norm", "levels", "top_k"),
    *("smoothness", "flow_loss"),
    *("spherical_step", "source_step", "step_adaptation", "starts"),
    *("pixels", "probe", "stretch", "reach", "candidates", "seeds"),
    *("loss", "any_class", "beta", "alpha_max", "p_init", "rescale", "targets"),
    *("attack", "samples", "sigma"),
    *("height", "width", "search", "stride"),
    *("size", "masks", "canvas", "mask", "penalty", "guides", "layer"),
    *("window", "entropy", "dual_steps", "tolerance", "growth"),
}

EPS = {"linf": 0.1, "l2": 1.0}
CASES_AND_KINDS = [(c, kind) for c in ATTACKS for kind in ("untargeted", "targeted") if c.targeted or kind[0] == "u"]

every = pytest.mark.parametrize("case", ATTACKS, ids=lambda case: case.name)
every_kind = pytest.mark.parametrize(
    ("case", "kind"), CASES_AND_KINDS, ids=[f"{c.name}-{k}" for c, k in CASES_AND_KINDS]
)
budgeted = [(c, kind) for c, kind in CASES_AND_KINDS if c.norm]
every_budgeted = pytest.mark.parametrize(("case", "kind"), budgeted, ids=[f"{c.name}-{k}" for c, k in budgeted])


def attack_of(case: Case, **values: Any) -> Any:
    return case.make(**({"eps": EPS[case.norm]} if case.norm else {}) | values)


def most(case: Case) -> str:
    """The kind that hands over most to the attack."""
    return "targeted" if case.targeted else "untargeted"


def field_names(case: Case) -> set[str]:
    return {field.name for field in dataclasses.fields(case.make())}


def network(channels: int = 3, classes: int = 4, seed: int = 0, balanced: bool = False) -> nn.Module:
    """A small network with everything that has a train mode; its logits are all negative, if balanced equal on grey."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(6)
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.1, 0.5)
        head = nn.Linear(6 * 4, classes)
        head.bias.data.sub_(50.0)
        body = [nn.Conv2d(channels, 6, 3, padding=1), norm, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Dropout(0.5)]
        net = nn.Sequential(nn.Sequential(*body), nn.Flatten(), head).eval()
    if balanced:
        with torch.no_grad():
            head.bias.sub_(net(torch.full((1, channels, 4, 4), 0.5))[0] + 50.0)
    return net


class Exact(nn.Module):
    """Computes in float64, so that its float32 answers do not show how the batch was cut."""

    def __init__(self, balanced: bool = False) -> None:
        super().__init__()
        self.inner = network(balanced=balanced).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.double()).float()


def images(rows: int = 8, shape: tuple[int, int, int] = (3, 7, 5), seed: int = 1) -> Tensor:
    """Half of the pixels lie exactly at 0 or 1."""
    wide = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5
    return wide.clamp(0, 1)


def labels(model: nn.Module, x: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    return y, (y + 1) % logits.shape[1] if kind == "targeted" else None


def sizes(delta: Tensor, norm: str) -> Tensor:
    flat = delta.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def goal(case: Case, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
    with torch.no_grad():
        return case.raises(model(x), y, target)


def check_threat_model(case: Case, x: Tensor, x_adv: Tensor, eps: float | None = None) -> None:
    assert x_adv.shape == x.shape
    assert x_adv.dtype == torch.float32
    assert not x_adv.requires_grad
    assert not x_adv.is_inference()
    assert bool(torch.isfinite(x_adv).all())
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if case.norm:
        assert sizes(x_adv - x, case.norm).max() <= (EPS[case.norm] if eps is None else eps) + 1e-6


@every
def test_is_a_frozen_keyword_only_dataclass_of_house_words(case: Case) -> None:
    cls = type(case.make())
    assert cls.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert field_names(case) <= VOCABULARY
    with pytest.raises(TypeError):
        cls(0.1)


def call_of(cls: type) -> Any:
    return next((vars(c)["__call__"] for c in cls.__mro__ if "__call__" in vars(c)), None)


def attack_classes() -> list[type]:
    """Every class of redlab.attacks that is called with a model, Protocols aside."""
    names = [module.name for module in pkgutil.iter_modules(redlab.attacks.__path__, "redlab.attacks.")]
    found = [cls for name in names for cls in vars(importlib.import_module(name)).values() if inspect.isclass(cls)]
    own = {cls for cls in found if cls.__module__ in names and not getattr(cls, "_is_protocol", False)}
    return [
        cls
        for cls in own
        if (call := call_of(cls)) and (dataclasses.is_dataclass(cls) or "model" in inspect.signature(call).parameters)
    ]


def outsiders(classes: list[type]) -> list[str]:
    """Those that do not leave to the base what is the same for all attacks."""
    same = (GuardedAttack.__call__, GuardedAttack.run)
    return [c.__name__ for c in classes if not issubclass(c, GuardedAttack) or (c.__call__, c.run) != same]


def test_every_attack_leaves_to_the_base_what_is_the_same_for_all() -> None:
    classes = attack_classes()
    assert {PGD, BPDA, Stored, Boundary, Torchattacks} < set(classes)
    assert {type(case.make()) for case in ATTACKS} - set(classes) <= {OnADefence, type(ATTACKS[-1].make())}
    assert outsiders(classes) == []


def test_an_attack_without_the_base_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Alone:
        def __call__(self, *arguments: Any, **rest: Any) -> Tensor:
            raise NotImplementedError

    for cls in (Alone, OnADefence):
        monkeypatch.setattr(cls, "__module__", "redlab.attacks.pgd")
        monkeypatch.setattr(redlab.attacks.pgd, cls.__name__, cls, raising=False)
    assert sorted(outsiders(attack_classes())) == ["Alone", "OnADefence"]


@every
def test_says_whether_it_can_be_aimed(case: Case) -> None:
    assert case.make().targeted == case.targeted


# Attacks of other libraries are not row-independent: tests/attacks/test_adapters.py says what they promise.
# Controls attack nobody: tests/attacks/test_noise.py.
OWN_YAMLS = [
    path
    for path in sorted((ROOT / "conf" / "attack").glob("*.yaml"))
    if not re.search("adapters|GaussianNoise", path.read_text())
]


@pytest.mark.parametrize("path", OWN_YAMLS, ids=lambda path: path.stem)
def test_yaml_says_the_defaults(path: pathlib.Path) -> None:
    made = (type(case.make()) for case in ATTACKS)
    classes = {f"redlab.attacks.{cls.__name__}": cls for cls in (BPDA if c is OnADefence else c for c in made)}

    def build(said: dict[str, Any]) -> Any:
        target = said.pop("_target_")
        assert target in classes, f"{target} is not in ATTACKS"
        assert said.keys() == {field.name for field in dataclasses.fields(classes[target])}
        needed = without_default(classes[target])  # which has no default to compare with
        return classes[target](**{key: value_of(value) for key, value in said.items() if key not in needed}, **needed)

    def value_of(value: Any) -> Any:
        if isinstance(value, dict):
            return build(value)
        if isinstance(value, list):
            return tuple(value_of(v) for v in value)
        return float(fractions.Fraction(value)) if isinstance(value, str) and "/" in value else value

    attack = build(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    assert attack == type(attack)(**without_default(type(attack)))


def without_default(cls: type) -> dict[str, None]:
    return {f.name: None for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}


@every_kind
def test_in_the_budget_and_effective(case: Case, kind: str) -> None:
    model, x = network(balanced=case.balanced), images(16)
    y, target = labels(model, x, kind)
    kept = x.clone()
    x_adv = attack_of(case)(model, x, y, target=target)
    check_threat_model(case, x, x_adv)
    assert torch.equal(x, kept)
    assert x_adv.data_ptr() != x.data_ptr()
    assert bool((goal(case, model, x_adv, y, target) > goal(case, model, x, y, target)).all())


@every_budgeted
def test_eps_zero_is_the_identity(case: Case, kind: str) -> None:
    model, x = network(), images()
    y, target = labels(model, x, kind)
    assert torch.equal(attack_of(case, eps=0)(model, x, y, target=target), x)
    eps = torch.full((8,), EPS[case.norm or ""])
    eps[3] = 0
    x_adv = attack_of(case, eps=eps)(model, x, y, target=target)
    assert torch.equal(x_adv[3], x[3])
    assert not torch.equal(x_adv[4], x[4])


@every_kind
def test_rows_do_not_depend_on_each_other(case: Case, kind: str) -> None:
    model, x = Exact(case.balanced), images(12)
    y, target = labels(model, x, kind)
    rng = SampleRng(5, "train", 2, torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:12])
    attack = attack_of(case)
    whole = attack(model, x, y, target=target, rng=rng)

    def rows(part: Tensor) -> Tensor:
        return attack(model, x[part], y[part], target=None if target is None else target[part], rng=rng[part])

    for size in (1, 5):
        split = torch.cat([rows(part) for part in torch.arange(12).split(size)])
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-6)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rows(order), whole[order], rtol=0, atol=1e-6)


@every
def test_deterministic_under_its_rng(case: Case) -> None:
    model, x = network(balanced=case.balanced), images()
    y, _ = labels(model, x, "untargeted")
    attack, rng = attack_of(case), SampleRng(3, "test", 0, torch.arange(8))
    first = attack(model, x, y, rng=rng)
    torch.manual_seed(99)
    assert torch.equal(attack(model, x, y, rng=rng), first)
    default = SampleRng(0, "test", 0, torch.arange(8))
    assert torch.equal(attack(model, x, y), attack(model, x, y, rng=default))
    other = attack(model, x, y, rng=SampleRng(4, "test", 0, torch.arange(8)))
    assert torch.equal(other, first) != case.draws


class Probe(nn.Module):
    """Counts the calls of a network, draws global random numbers, and raises at one call if told to."""

    def __init__(self, inner: nn.Module, raise_at: int = 0) -> None:
        super().__init__()
        self.inner, self.raise_at, self.calls = inner, raise_at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        torch.rand(3)
        assert not any(module.training for module in self.modules())
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.backends.cudnn.allow_tf32
        if self.calls == self.raise_at:
            raise KeyError("the model broke")
        return self.inner(x)


def snapshot(model: nn.Module) -> list[Any]:
    grads = [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()]
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    modes += (torch.backends.cudnn.allow_tf32,)
    return [
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        {name: t.tolist() for name, t in model.state_dict().items()},
        grads,
        torch.get_rng_state().tolist(),
        modes,
    ]


CONTEXTS = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS)
@every
def test_leaves_no_trace_in_any_context(case: Case, context: str) -> None:
    net, x = network(), images()
    y, target = labels(net, x, most(case))
    expected = attack_of(case)(net, x, y, target=target)
    model = Probe(net).train()
    assert all(p.requires_grad for p in net.parameters())
    net[0][1].eval()  # a module within a module in train mode, itself in eval mode
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    for p in parameters[1:3]:
        p.grad = torch.ones_like(p)
    with CONTEXTS[context]():
        before = snapshot(model)
        x_adv = attack_of(case)(model, x.clone(), y.clone(), target=None if target is None else target.clone())
        assert snapshot(model) == before
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)
    assert model.calls > 0
    for call in {*range(1, model.calls + 1, max(1, model.calls // 4)), model.calls}:
        broken = Probe(net, raise_at=call).train()
        with CONTEXTS[context]():
            before = snapshot(broken)
            with pytest.raises(KeyError):
                attack_of(case)(broken, x, y, target=target)
            assert snapshot(broken) == before


WHOLE = ("steps", "queries", "pixels")
NUMBERS = (
    *("eps", "alpha", "step_size", "confidence", "c", "lr", "overshoot", "gamma", "init_norm", "beta", "alpha_max"),
    "penalty",
    *("smoothness", "spherical_step", "source_step", "probe", "stretch"),
    *WHOLE,
)
PER_ROW = [(c, field) for c in ATTACKS for field in NUMBERS if field in field_names(c)]


@pytest.mark.parametrize(("case", "field"), PER_ROW, ids=[f"{c.name}-{field}" for c, field in PER_ROW])
def test_numbers_per_row_equal_separate_calls(case: Case, field: str) -> None:
    model, x = Exact(case.balanced), images()
    y, target = labels(model, x, most(case))
    rng, top = SampleRng.for_batch(x), EPS[case.norm or "linf"]
    values = torch.tensor([3, 1, 7, 1, 2, 7, 5, 1]) if field in WHOLE else torch.linspace(0, top, 8)
    together = attack_of(case, **{field: values})(model, x, y, target=target)
    for row, value in enumerate(values.tolist()):
        part = torch.tensor([row])
        goal = None if target is None else target[part]
        alone = attack_of(case, **{field: value})(model, x[part], y[part], target=goal, rng=rng[part])
        torch.testing.assert_close(together[part], alone, rtol=0, atol=1e-6)


@every_kind
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("shape", [(1, 4, 9), (3, 6, 2)], ids=str)
def test_few_classes_odd_shapes_and_one_row(case: Case, kind: str, classes: int, shape: tuple[int, int, int]) -> None:
    model, x = network(shape[0], classes, balanced=case.balanced), images(1, shape)
    y, target = labels(model, x, kind)
    x_adv = attack_of(case)(model, x, y, target=target)
    check_threat_model(case, x, x_adv)
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("pixel", [0.0, 1.0])
@every
def test_flat_images_at_the_ends_of_the_range(case: Case, pixel: float) -> None:
    model, x = network(), torch.full((2, 3, 7, 5), pixel)
    y, _ = labels(model, x, "untargeted")
    check_threat_model(case, x, attack_of(case)(model, x, y))


class Flat(nn.Module):
    """Its gradient is zero everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * 0.0 - 1.0


@every_kind
def test_zero_gradient(case: Case, kind: str) -> None:
    x = images()
    y, target = labels(Flat(), x, kind)
    check_threat_model(case, x, attack_of(case)(Flat(), x, y, target=target))


@every
def test_rows_that_are_wrong_already(case: Case) -> None:
    model, x = network(), images()
    with torch.no_grad():
        wrong = model(x).argmin(1)
    x_adv = attack_of(case)(model, x, wrong)
    check_threat_model(case, x, x_adv)


@every
def test_input_that_requires_grad(case: Case) -> None:
    model, x = network(), images()
    y, _ = labels(model, x, "untargeted")
    x_adv = attack_of(case)(model, x.clone().requires_grad_(), y)
    assert not x_adv.requires_grad
    assert torch.equal(x_adv, attack_of(case)(model, x, y))


def bad_images(value: float) -> Tensor:
    x = images()
    x[2, 1, 3, 0] = value
    return x


Y = torch.zeros(8, dtype=torch.int64)
BAD_INPUT = {
    "too large": (bad_images(1.5), Y, None, r"1\.5"),
    "negative": (bad_images(-0.25), Y, None, r"-0\.25"),
    "NaN": (bad_images(float("nan")), Y, None, "nan"),
    "infinite": (bad_images(float("inf")), Y, None, "inf"),
    "three dimensions": (images()[0], Y, None, r"\(3, 7, 5\)"),
    "no rows": (images()[:0], Y[:0], None, r"\(0, 3, 7, 5\)"),
    "float64": (images().double(), Y, None, "float64"),
    "uint8": ((images() * 255).byte(), Y, None, "uint8"),
    "label shape": (images(), Y[:5], None, r"\(5,\)"),
    "label type": (images(), Y.float(), None, "float32"),
    "label below 0": (images(), Y - 3, None, "-3"),
    "label above K": (images(), Y + 4, None, "label 4 .* 4 classes"),
    "target shape": (images(), Y, Y[:5] + 1, r"\(5,\)"),
    "target type": (images(), Y, Y.int() + 1, "int32"),
    "target below 0": (images(), Y, Y - 1, "-1"),
    "target above K": (images(), Y, Y + 9, "label 9 .* 4 classes"),
    "target is label": (images(), Y + 2, torch.tensor([0, 1, 3, 0, 1, 2, 0, 1]), "got 2"),
}


CASES_AND_BAD = [(c, bad) for c in ATTACKS for bad in BAD_INPUT if c.targeted or BAD_INPUT[bad][2] is None]


@pytest.mark.parametrize(("case", "bad"), CASES_AND_BAD, ids=[f"{c.name}-{bad}" for c, bad in CASES_AND_BAD])
def test_bad_input_is_named(case: Case, bad: str) -> None:
    x, y, target, message = BAD_INPUT[bad]
    with pytest.raises(ValueError, match=message):
        attack_of(case)(network(), x, y, target=target)


@pytest.mark.parametrize("case", [c for c in ATTACKS if not c.targeted], ids=lambda case: case.name)
def test_a_target_for_an_untargeted_attack(case: Case) -> None:
    with pytest.raises(ValueError, match=r"untargeted, got target \[1"):
        attack_of(case)(network(), images(), Y, target=Y + 1)


BAD_NUMBERS = [
    *(("eps", -0.5, r"-0\.5"), ("eps", float("nan"), "nan"), ("eps", float("inf"), "inf"), ("eps", "8/255", "8/255")),
    *(("eps", torch.full((8,), -0.5), r"-0\.5"), ("eps", torch.ones(5), r"\(5,\)"), ("eps", True, "True")),
    *(("eps", 80.0, "got 80"), ("step_size", 80.0, "got 80"), ("sigma", 80.0, "got 80"), ("init_norm", 80.0, "got 80")),
    *(("alpha", -0.5, r"-0\.5"), ("alpha", 3.0, "3 > "), ("step_size", -2.0, "-2")),
    *(("beta", 1.5, r"1\.5"), ("alpha_max", -0.1, r"-0\.1"), ("overshoot", -1.0, "-1"), ("queries", 0, "got 0")),
    *(("queries", 2.5, r"2\.5"), ("p_init", 0.0, r"0\.0"), ("p_init", 1.5, r"1\.5"), ("targets", 0, "got 0")),
    *(("samples", 0, "got 0"), ("sigma", -1.0, "-1"), ("loss", "mse", "mse"), ("targets", 2.0, r"2\.0")),
    *(("steps", 0, "got 0"), ("steps", -3, "-3"), ("steps", 2.5, r"2\.5"), ("steps", torch.zeros(8).long(), "got 0")),
    *(("steps", torch.ones(8), "float32"), ("norm", "l7", "l7")),
    *(("confidence", -1.0, "-1"), ("c", -1.0, "-1"), ("lr", -1.0, "-1"), ("overshoot", -0.5, r"-0\.5")),
    *(("gamma", 1.5, r"1\.5"), ("init_norm", -1.0, "-1"), ("levels", 1, "got 1"), ("top_k", 0, "got 0")),
    *(("smoothness", -1.0, "-1"), ("flow_loss", "l1", "l1")),
    *(("spherical_step", -1.0, "-1"), ("source_step", -1.0, "-1"), ("step_adaptation", 0.5, r"0\.5")),
    *(("step_adaptation", float("nan"), "nan"), ("starts", 0, "got 0"), ("pixels", 0, "got 0"), ("probe", -1.0, "-1")),
    *(("stretch", 2.5, r"2\.5"), ("reach", -1, "-1"), ("candidates", 0, "got 0"), ("seeds", 0.0, r"0\.0")),
    *(("binary_search_steps", 0, "got 0"), ("c", torch.ones(5), r"\(5,\)")),
    *(("size", 0, "got 0"), ("size", 6, "got 6"), ("size", 2.5, r"2\.5"), ("penalty", -1.0, "-1")),
    *(("mask", 2, "got 2"), ("mask", -1, "-1"), ("canvas", 0, "got 0"), ("canvas", 2.5, r"2\.5")),
    *(("masks", [], r"\[\]"), ("masks", [[[0, 4, 0, 0]]], r"\[0, 4, 0, 0\]"), ("masks", [[]], "mask 0")),
    *(("masks", [[[1, 0, 0, 0]]], r"\[1, 0, 0"), ("masks", [[[0, 0, 0]]], r"\[0, 0, 0\]")),
    *(("masks", [[[0, 0, 0, 0.5]]], r"0\.5"), ("guides", torch.ones(8, 3, 5, 7), r"\(8, 3, 7, 5\) .* \(8, 3, 5, 7\)")),
    *(("guides", images() + 0.5, r"1\.5"), ("guides", images().double(), "float64"), ("layer", "nope", "'nope'")),
    *(("masks", torch.ones(4, 4), r"\(4, 4\)"), ("masks", torch.zeros(1, 4, 4), "mask 0")),
    *(("window", 4, "got 4"), ("window", 1, "got 1"), ("window", 5.0, r"5\.0"), ("entropy", 0.0, "got 0")),
    ("growth", 0.5, r"0\.5"),
    *(
        ("dual_steps", 0, "got 0"),
        ("dual_steps", 2.5, r"2\.5"),
        ("tolerance", 0.0, r"0\.0"),
        ("tolerance", 1.0, r"1\.0"),
    ),
]


BAD_FIELDS = [(c, *bad) for c in ATTACKS for bad in BAD_NUMBERS if bad[0] in field_names(c)]


@pytest.mark.parametrize(
    ("case", "field", "value", "message"), BAD_FIELDS, ids=[f"{c.name}-{f}-{m}" for c, f, _, m in BAD_FIELDS]
)
def test_bad_numbers_are_named(case: Case, field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack_of(case, **{field: value})(network(), images(), Y)


def numpy_like(value: Any) -> Any:
    """The numbers in it as numpy has them."""
    return np.int64(value) if type(value) is int else np.float32(value) if type(value) is float else value


@every
def test_numpy_numbers(case: Case) -> None:
    """As a sweep over np.linspace gives them. float32 holds 0.1 and 8 / 255 as the attacks themselves do."""
    model, x = network(balanced=case.balanced), images()
    y, target = labels(model, x, most(case))
    plain = attack_of(case)
    numbers = {name: numpy_like(getattr(plain, name)) for name in field_names(case)}
    changed = {name for name, value in numbers.items() if type(value) is not type(getattr(plain, name))}
    assert changed or case.name in ("bpda", "cw-linf-no-budget")
    ours, theirs = (a(model, x, y, target=target) for a in (plain, dataclasses.replace(plain, **numbers)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # Frank-Wolfe blows up the last bits of its tolerance


@every
def test_model_that_does_not_return_logits(case: Case) -> None:
    with pytest.raises(ValueError, match=r"\(\d+, 3, 7, 5\)"):
        attack_of(case)(nn.Identity(), images(), Y)


@pytest.mark.parametrize("case", [c for c in ATTACKS if c.draws], ids=lambda case: case.name)
def test_rng_of_another_length(case: Case) -> None:
    with pytest.raises(ValueError, match="5 indices for 8"):
        attack_of(case)(network(), images(), Y, rng=SampleRng(0, "test", 0, torch.arange(5)))
