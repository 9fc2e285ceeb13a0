"""One ingredient of a mix: an attack, whom it attacks, what is drawn for it; checked before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from redlab.attacks.wrappers import Defended, Expected, StraightThrough
from redlab.batch import KNOWLEDGE, Attack, check_name
from redlab.crafting.defended import WithAlarm
from redlab.rng import SampleRng
from redlab.spelling import nearest

Knowledge = Literal["victim", "defence"]
Gradient = Literal["exact", "bpda", "joint"] | Mapping[str, int]

LABELS = ("true", "predicted")
MIN_WEIGHT = 0.001


@dataclass(frozen=True, kw_only=True)
class Component:
    """One ingredient of a mix.

    Attributes:
        attack: the attack; None means clean images.
        weight: relative share of the samples; 0 deals none. Where ``all`` are dealt, any other weight counts the same.
        victims: names of the victims to attack, which share the weight evenly; None means all.
        target: None (untargeted), "random" (uniform among the other K - 1 classes), "least_likely" (of the attacked
            model on the clean image) or a class T (a row that already is of class T aims at (T + 1) mod K).
        params: distribution of each attack parameter drawn per sample: ``{uniform: [lo, hi]}`` in [lo, hi),
            ``{choice: [a, b, ...]}`` or ``{integers: [lo, hi], over: 255}``, both ends included, divided by ``over``;
            ``shuffled`` is ``integers`` without replacement: of the rows that a cell gets one after the other, each
            group as long as the range has every value once. It needs a deal by position, so not ``random``.
        settings: joint values of parameters of the attack, such as ``[{eps: 4/255, steps: 10}, {eps: 8/255, steps:
            20}]``, all of the same parameters, which may be of any type. Training and validation draw one for each
            image; an evaluation has a cell for each.
        label: the class that an attack starts from: "true", or "predicted", what the attacked model says of the clean
            image.
        knowledge: what the attacker knows and attacks: "victim", or "defence", the whole of it as
            ``redlab.crafting.defended.surface`` says; of a classifier under training this is adversarial training.
        gradient: how to differentiate a defence: "exact", where untargeted attacks on a detector leave the class
            first and silence the alarm then (``InStages``); "joint", both at once (``WithoutAlarm``); "bpda", a
            restorer taken for the identity; or ``{eot: n}``, the mean answer of n draws of a defence that draws.
    """

    attack: Attack | None
    weight: float = 1.0
    victims: Sequence[str] | None = None
    target: Literal["random", "least_likely"] | int | None = None
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Sequence[Mapping[str, Any]] = ()
    label: Literal["true", "predicted"] = "true"
    knowledge: Knowledge = "victim"
    gradient: Gradient = "exact"


@dataclass(frozen=True)
class Distribution:
    """A checked entry of ``Component.params``."""

    kind: str
    values: tuple[float, ...]
    over: float = 1

    @classmethod
    def parse(cls, where: str, spec: object) -> Distribution:
        """Reads ``{kind: values}``.

        Args:
            where: the parameter's name, for messages.
            spec: the mapping.

        Returns:
            The distribution.

        Raises:
            ValueError: unknown kind, or values that are not numbers or not in order.
        """
        kinds = ("uniform", "choice", "integers", "shuffled")
        given = dict(spec) if isinstance(spec, Mapping) else {}
        over = given.pop("over", 1)
        kind = next(iter(given), None)
        if len(given) != 1 or kind not in kinds:
            raise ValueError(f"{where} must be one of {{uniform|choice|integers|shuffled: [...]}}, got {spec!r}")
        values = given[kind]
        values = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
        if not values or not all(is_number(v) for v in (*values, over)):
            raise ValueError(f"{where}.{kind} must be a list of finite numbers, got {spec!r}")
        if kind != "choice" and (len(values) != 2 or values[0] > values[1]):
            raise ValueError(f"{where}.{kind} must be [lowest, highest], got {list(values)}")
        whole = kind in ("integers", "shuffled")
        if whole and not all(isinstance(v, int) for v in values):
            raise ValueError(f"{where}.{kind} must have whole bounds (use `over` to divide), got {list(values)}")
        if over != 1 and (not whole or over <= 0):
            raise ValueError(f"{where}.over must be positive and go with integers or shuffled, got {spec!r}")
        return cls(kind, values, over)

    def ends(self) -> tuple[float, ...]:
        """The least and the greatest value, as far as they differ."""
        return tuple(sorted({min(self.values) / self.over, max(self.values) / self.over}))

    def is_whole(self) -> bool:
        """Whether every possible value is a whole number, to be drawn as int64."""
        return self.kind != "uniform" and self.over == 1 and all(isinstance(v, int) for v in self.values)

    def draw(self, rng: SampleRng, name: str, turn: Tensor, cell: Tensor) -> Tensor:
        """Draws for some rows.

        Args:
            rng: the rows' stream.
            name: of the draw.
            turn: (N,) int64, how many rows the row's cell got before it; for ``shuffled``.
            cell: (N,) int64, number of the row's cell; for ``shuffled``.

        Returns:
            (N,) values, float32, or int64 where every possible value is whole.
        """
        if self.kind == "uniform":
            lo, hi = self.values
            u = rng.uniform(name)
            # float32 could round up to hi itself, which is outside [lo, hi)
            top = torch.nextafter(torch.tensor(float(hi)), torch.tensor(float(lo))).to(u.device)
            return torch.minimum(lo + (hi - lo) * u, top)
        if self.kind == "choice":
            return torch.tensor(self.values, device=rng.index.device)[rng.integers(name, len(self.values))]
        lo, hi = (int(v) for v in self.values)
        if self.kind == "shuffled":
            size = hi - lo + 1
            group = replace(rng, index=(turn // size << 20) + cell)  # one order per group, whoever is in it
            whole = lo + group.uniform(name, size).argsort(dim=1).gather(1, (turn % size)[:, None])[:, 0]
        else:
            whole = lo + rng.integers(name, hi - lo + 1)
        return whole if self.over == 1 else whole.float() / self.over


def is_number(value: object) -> bool:
    """Whether this is a finite real number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not there, with the nearest one that is."""
    known = list(known)
    close = nearest(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {known}"
    return f"the unknown {kind} {name!r}; {hint}"


def draws(name: str, gradient: Gradient) -> str | int:
    """ "exact", "bpda", "joint" or the number of draws.

    Raises:
        ValueError: anything else; the message names the component.
    """
    if gradient in ("exact", "bpda", "joint"):
        return str(gradient)
    number = gradient.get("eot") if isinstance(gradient, Mapping) and len(gradient) == 1 else None
    if type(number) is not int or number < 1:
        raise ValueError(f"{name}.gradient must be exact, bpda, joint or {{eot: n}}, n at least 1, got {gradient!r}")
    return number


def differentiable(model: nn.Module, gradient: str | int) -> nn.Module:
    """The model as its attacker differentiates it.

    Raises:
        ValueError: "bpda" of something else than a restorer and a victim, "joint" of something without an alarm.
    """
    if isinstance(gradient, int):
        return Expected(model, gradient)
    if gradient == "joint" and not isinstance(model, WithAlarm):
        raise ValueError(f"gradient=joint is for a detector and a victim, got {type(model).__name__}: set exact")
    if gradient in ("exact", "joint"):
        return model
    if not isinstance(model, Defended):
        raise ValueError(f"gradient=bpda is for a restorer before a victim, got {type(model).__name__}: set exact")
    return StraightThrough(model)


def check_component(name: str, component: Component) -> dict[str, Distribution]:
    """What a component draws, after a look at all that can be known of it without data and networks.

    Raises:
        ValueError: a setting that makes no sense, or that would have no effect; the message names it and its value.
    """
    check_name("component", name)
    if not isinstance(component, Component):
        raise ValueError(f"component {name!r} must be a Component, got {component!r}")
    attack = component.attack
    if (name == "clean") != (attack is None):
        raise ValueError(f"`clean` is the name of the component without an attack, got {name!r}: {attack!r}")
    if attack is not None and (isinstance(attack, type) or not callable(attack)):
        raise ValueError(f"{name}.attack must be an attack such as PGD(), got {attack!r}")
    if not is_number(component.weight) or (component.weight != 0 and component.weight < MIN_WEIGHT):
        raise ValueError(f"{name}.weight must be 0 or at least {MIN_WEIGHT}, got {component.weight!r}")
    victims = component.victims
    if victims is not None and (isinstance(victims, str) or not victims or len(set(victims)) < len(victims)):
        raise ValueError(f"{name}.victims must be a list of different names or None for all, got {victims!r}")
    target = component.target
    if target not in (None, "random", "least_likely") and (type(target) is not int or target < 0):
        raise ValueError(f"{name}.target must be None, 'random', 'least_likely' or a class, got {target!r}")
    if component.label not in LABELS:
        raise ValueError(f"{name}.label must be one of {LABELS}, got {component.label!r}")
    if component.knowledge not in KNOWLEDGE:
        raise ValueError(f"{name}.knowledge must be one of {KNOWLEDGE}, got {component.knowledge!r}")
    if attack is None or is_control(attack):
        what = "clean images" if attack is None else f"{type(attack).__name__}, which attacks nobody"
        defaults = {"target": None, "label": "true", "knowledge": "victim", "gradient": "exact"}
        for key, default in defaults.items():
            if (value := getattr(component, key)) != default:
                raise ValueError(f"{name}.{key}={value!r} has no effect on {what}: leave it out")
    if draws(name, component.gradient) != "exact" and component.knowledge == "victim":
        raise ValueError(
            f"{name}.gradient={component.gradient!r} has no effect where knowledge=victim: no defence is differentiated"
        )
    if component.gradient == "joint" and target is not None:
        raise ValueError(f"{name}.gradient='joint' has no effect on targeted attacks, got target={target!r}: set exact")
    _check_parameters(name, component)
    return {key: Distribution.parse(f"{name}.params.{key}", spec) for key, spec in component.params.items()}


def _check_parameters(name: str, component: Component) -> None:
    """The names of what is drawn and set for an attack, and that nothing else sets it as well."""
    attack, settings = component.attack, component.settings
    if isinstance(settings, str | Mapping) or not isinstance(settings, Sequence):
        raise ValueError(f"{name}.settings must be a list of groups of parameters, got {settings!r}")
    for setting in settings:
        if not isinstance(setting, Mapping) or not setting or set(setting) != set(settings[0]):
            raise ValueError(f"{name}.settings must be groups of the same parameters each, got {setting!r}")
    if len(set(setting_names(component))) < len(settings):
        raise ValueError(f"{name}.settings must differ from each other, got {list(settings)}")
    keys: list[str] = list(settings[0]) if settings else []
    known: dict[str, Field[Any]] = {f.name: f for f in fields(attack)} if is_dataclass(attack) else {}
    for key in (*component.params, *keys):
        group, does = ("params", "draws") if key in component.params else ("settings", "sets")
        if key not in known:
            raise ValueError(f"component {name!r} {does} {unknown('parameter', key, known)}")
        if group == "params" and key in keys:
            raise ValueError(f"{name}.params.{key} has no effect, since {name}.settings set {key}: leave one out")
        if (value := getattr(attack, key)) is not None and not _is_default(value, known[key]):
            whole = f"{name}.params.{key} draws it" if group == "params" else f"{name}.settings set it"
            raise ValueError(
                f"{name}.attack.{key}={value!r} has no effect, since {whole}: set that, or take it out of {group}"
            )


def setting_names(component: Component) -> tuple[str, ...]:
    """What the settings of a component are called in a table, in their order; empty where it has none.

    >>> setting_names(Component(attack=None, settings=[{"eps": 8 / 255, "steps": 20}]))
    ('eps=8/255 steps=20',)
    """
    return tuple(" ".join(f"{key}={_shown(value)}" for key, value in s.items()) for s in component.settings)


def _shown(value: object) -> str:
    """A value as one types it: numbers shortest, those of an image as fractions of 255."""
    if not isinstance(value, float):
        return str(value)
    if float(short := f"{value:.3g}") == value:
        return short
    return f"{whole}/255" if float(whole := f"{value * 255:g}") / 255 == value else repr(value)


def innermost(attack: Any) -> Any:
    """The attack that others are wrapped around."""
    while callable(getattr(attack, "attack", None)):
        attack = attack.attack
    return attack


def is_control(attack: Any) -> bool:
    """Whether this only changes images, and is no attack (its class attribute ``control``)."""
    return bool(getattr(innermost(attack), "control", False))


def _is_default(value: object, of: Field[Any]) -> bool:
    default = of.default_factory() if of.default_factory is not MISSING else of.default
    return default is not MISSING and type(value) is type(default) and bool(value == default)
