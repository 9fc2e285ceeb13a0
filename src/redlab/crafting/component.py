"""One ingredient of a mix: an attack, whom it attacks, what is drawn for it; checked before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from redlab.attacks.feature import FeatureAttack
from redlab.attacks.guard import guard
from redlab.attacks.wrappers import Defended, Expected, StraightThrough
from redlab.batch import Attack, check_name
from redlab.rng import SampleRng

Against = Literal["victim", "defended", "self"]
Gradient = Literal["exact", "bpda"] | Mapping[str, int]

AGAINST = ("victim", "defended", "self")
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
        against: "victim"; "defended", the restorer and then the victim; or "self", the defender as a classifier
            (adversarial training).
        gradient: how to differentiate a defended victim: "exact"; "bpda", the restorer taken for the identity; or
            ``{eot: n}``, the mean answer of n draws of a restorer that draws.
    """

    attack: Attack | None
    weight: float = 1.0
    victims: Sequence[str] | None = None
    target: Literal["random", "least_likely"] | int | None = None
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    against: Against = "victim"
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
    close = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {known}"
    return f"the unknown {kind} {name!r}; {hint}"


def draws(name: str, gradient: Gradient) -> str | int:
    """ "exact", "bpda" or the number of draws.

    Raises:
        ValueError: anything else; the message names the component.
    """
    if gradient in ("exact", "bpda"):
        return str(gradient)
    number = gradient.get("eot") if isinstance(gradient, Mapping) and len(gradient) == 1 else None
    if type(number) is not int or number < 1:
        raise ValueError(f"{name}.gradient must be exact, bpda or {{eot: n}}, n at least 1, got {gradient!r}")
    return number


def differentiable(model: nn.Module, gradient: str | int) -> nn.Module:
    """The model as its attacker differentiates it."""
    if isinstance(gradient, int):
        return Expected(model, gradient)
    return StraightThrough(model) if gradient == "bpda" and isinstance(model, Defended) else model


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
    if component.against not in AGAINST:
        raise ValueError(f"{name}.against must be one of {AGAINST}, got {component.against!r}")
    gradient = draws(name, component.gradient)
    if attack is None:
        for key, default in (("target", None), ("against", "victim"), ("gradient", "exact")):
            if getattr(component, key) != default:
                raise ValueError(f"clean.{key}={getattr(component, key)!r} has no effect on clean images: leave it out")
    if gradient != "exact" and component.against == "self":
        raise ValueError(
            f"{name}.gradient={component.gradient!r} has no effect where against=self, without a restorer to be "
            f"differentiated: leave it out"
        )
    known: dict[str, Field[Any]] = {f.name: f for f in fields(attack)} if is_dataclass(attack) else {}
    for key in component.params:
        if key not in known:
            raise ValueError(f"component {name!r} draws {unknown('parameter', key, known)}")
        if (value := getattr(attack, key)) is not None and not _is_default(value, known[key]):
            raise ValueError(
                f"{name}.attack.{key}={value!r} has no effect, since {name}.params.{key} draws it: set that, "
                f"or take it out of params"
            )
    return {key: Distribution.parse(f"{name}.params.{key}", spec) for key, spec in component.params.items()}


def check_attack(
    name: str,
    component: Component,
    distributions: Mapping[str, Distribution],
    shape: tuple[int, int, int] | None = None,
) -> None:
    """Calls the attack up to where it asks the model for the first time, with the ends of all that is drawn for it.

    By then it has looked at its own numbers. What data or a network must tell (guides, a layer) is left out.

    Args:
        name: of the component.
        component: as ``check_component`` wants it.
        distributions: what is drawn.
        shape: (C, H, W) of the images; None where it is not known, and then nothing is too large for them.

    Raises:
        ValueError: a setting of the attack is wrong, or the attack cannot be aimed at a target; the message names it.
    """
    if component.attack is None:
        return
    rows = list(product(*(distribution.ends() for distribution in distributions.values()))) or [()]
    drawn = {key: torch.tensor(values) for key, values in zip(distributions, zip(*rows, strict=True), strict=True)}
    for key, distribution in distributions.items():
        drawn[key] = drawn[key].long() if distribution.is_whole() else drawn[key].float()
    model: nn.Module = _Unasked()
    if component.against == "defended":
        model = differentiable(Defended(_Untouched(), model), draws(name, component.gradient))
    try:
        attack = _alone(replace(component.attack, **drawn) if drawn else component.attack)  # type: ignore[type-var]
        x = torch.full((len(rows), *(shape or _roomy(attack))), 0.5)
        y = torch.zeros(len(rows), dtype=torch.int64)
        rng, target = SampleRng.for_batch(x), None if component.target is None else y + 1
        with guard(model):
            attack(model, x, y, target=target, rng=rng)
    except _Asked:
        pass
    except ValueError as error:
        key = str(error).split(" ", 1)[0]
        where = "params." if key in drawn else "attack." if hasattr(component.attack, key) else "attack: "
        raise ValueError(f"{name}.{where}{error}") from error
    except (TypeError, RuntimeError) as error:
        if drawn:
            raise ValueError(f"{name}.params: {', '.join(drawn)} cannot be drawn for each row: {error}") from error


class _Asked(Exception):
    """An attack asked the model."""


class _Unasked(nn.Module):
    """Ends the attack that asks it."""

    def forward(self, x: Tensor) -> Tensor:
        raise _Asked


class _Untouched(nn.Module):
    """A restorer that does nothing."""

    def restore(self, x: Tensor) -> Tensor:
        return x


def _alone(attack: Any) -> Any:
    """The attack without what only data or a network can tell."""
    if isinstance(attack, FeatureAttack):
        return replace(attack, guides=lambda x, *_: x, layer=None)
    if is_dataclass(attack) and callable(inner := getattr(attack, "attack", None)):
        return replace(attack, attack=_alone(inner))  # type: ignore[type-var]
    return attack


def _roomy(attack: Any) -> tuple[int, int, int]:
    """The shape of an image that no window, mask or l2 budget is too large for."""
    sizes = [getattr(attack, key, 0) for key in ("size", "canvas")]
    sizes += [*getattr(getattr(attack, "masks", None), "shape", ())]
    side = max(64, *(int(size.max()) if isinstance(size, Tensor) else size for size in sizes if size is not None))
    return (1, side, side)


def _is_default(value: object, of: Field[Any]) -> bool:
    default = of.default_factory() if of.default_factory is not MISSING else of.default
    return default is not MISSING and type(value) is type(default) and bool(value == default)
