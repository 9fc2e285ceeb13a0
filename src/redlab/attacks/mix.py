"""Which sample meets which attack on which victim, and the crafting of a batch dealt that way.

``AttackMix.plan`` decides, as a pure function of (seed, stage, epoch, index, position); ``AttackMix.craft`` carries
the plan out with as few victim calls as possible. No result depends on batch size, order or world size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from redlab.attacks.ascend import GradientSteps, SteppedAttack, ascend
from redlab.attacks.guard import check_images, check_inputs, guard, logits_of
from redlab.attacks.rng import SampleRng
from redlab.attacks.wrappers import Defended, Expected, StraightThrough
from redlab.batch import CLEAN, Attack, AttackBatch, Restorer

Against = Literal["victim", "defended", "self"]
Gradient = Literal["exact", "bpda"] | Mapping[str, int]
Deal = Literal["random", "stratified", "all"]

AGAINST = ("victim", "defended", "self")
DEALS = ("random", "stratified", "all")
MIN_WEIGHT = 0.001
MAX_TABLE = 100_000


class Cell(NamedTuple):
    """One attack on one victim, by their ids."""

    attack: int
    victim: int


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
class Plan:
    """What is to be crafted, row by row. N is B, or B x components when a mix deals ``all``.

    Attributes:
        source: (N,) int64, row of the batch that the image comes from.
        attack: (N,) int64, id of the component.
        victim: (N,) int64, place in ``victim_names``.
        index: (N,) int64, place in the data set.
        victim_names: the victims' names.
        params: component -> parameter -> (N,) drawn values; they hold for the component's own rows.
        rng: the rows' random stream; a component draws from ``rng.fork(name)``.
    """

    source: Tensor
    attack: Tensor
    victim: Tensor
    index: Tensor
    victim_names: tuple[str, ...]
    params: Mapping[str, Mapping[str, Tensor]]
    rng: SampleRng

    def __len__(self) -> int:
        return len(self.source)


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
        if not values or not all(_is_number(v) for v in (*values, over)):
            raise ValueError(f"{where}.{kind} must be a list of finite numbers, got {spec!r}")
        if kind != "choice" and (len(values) != 2 or values[0] > values[1]):
            raise ValueError(f"{where}.{kind} must be [lowest, highest], got {list(values)}")
        whole = kind in ("integers", "shuffled")
        if whole and not all(isinstance(v, int) for v in values):
            raise ValueError(f"{where}.{kind} must have whole bounds (use `over` to divide), got {list(values)}")
        if over != 1 and (not whole or over <= 0):
            raise ValueError(f"{where}.over must be positive and go with integers or shuffled, got {spec!r}")
        return cls(kind, values, over)

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


class AttackMix:
    """Deals attacks, victims and attack parameters to samples, and crafts the batch.

    Three ways to deal:

    * ``random``: a cell (attack, victim) per sample by weight, from (seed, stage, epoch, index).
    * ``stratified``: position in the epoch's order modulo a table of whole shares, so that every window as long as the
      table has the exact shares: each rank's contiguous slice of a batch costs the same.
    * ``all``: every sample under every component, each time on one of the component's victims, drawn per sample.

    Outside the stage "train" the epoch counts as 0, so that a test set is one fixed set.

    Args:
        components: name -> component. The order gives the ids 1, 2, ...; id 0 is always ``clean``, and the component
            without an attack, if there is one, carries that name. An empty mapping means clean images alone.
        deal: see above.
        quantize: round attacked images to this many bits (8: multiples of 1/255, which can leave the ball of a budget
            by up to 1/510); None keeps floats.
        only_fooled: rows whose attack failed are marked as not valid.
        seed: seed of every draw.

    Raises:
        ValueError: a component, weight, distribution or option that makes no sense.

    Example:
        >>> import torch
        >>> from redlab.attacks import FGSM
        >>> eps = {"eps": {"integers": [1, 16], "over": 255}}
        >>> mix = AttackMix({"clean": Component(attack=None), "fgsm": Component(attack=FGSM(eps=0.1), params=eps)})
        >>> mix.names
        ('clean', 'fgsm')
        >>> rows = torch.arange(4)
        >>> plan = mix.plan(rows, rows, stage="train", epoch=0, victim_names=["net"])
        >>> plan.attack.tolist()
        [0, 1, 0, 1]
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> batch = mix.craft({"net": net}, torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]), plan)
        >>> (batch.adv != batch.clean).flatten(1).any(1).tolist()
        [False, True, False, True]
    """

    def __init__(
        self,
        components: Mapping[str, Component],
        *,
        deal: Deal = "stratified",
        quantize: int | None = None,
        only_fooled: bool = False,
        seed: int = 0,
    ) -> None:
        if deal not in DEALS:
            raise ValueError(f"deal must be one of {DEALS}, got {deal!r}")
        if quantize is not None and (type(quantize) is not int or not 1 <= quantize <= 16):
            raise ValueError(f"quantize must be a number of bits from 1 to 16 or None, got {quantize!r}")
        given = components or {"clean": Component(attack=None)}
        self.components = {str(name): component for name, component in given.items()}
        self.deal, self.quantize, self.only_fooled, self.seed = deal, quantize, only_fooled, seed
        for name, component in self.components.items():
            _check_component(name, component)
        if not any(component.weight for component in self.components.values()):
            raise ValueError(f"every component of the mix has weight 0: {list(self.components)}")
        self.names: tuple[str, ...] = ("clean", *(name for name in self.components if name != "clean"))
        self._distributions = {
            name: {key: Distribution.parse(f"{name}.params.{key}", spec) for key, spec in component.params.items()}
            for name, component in self.components.items()
        }
        for name, distributions in self._distributions.items():
            for key, distribution in distributions.items():
                if distribution.kind == "shuffled" and deal == "random":
                    raise ValueError(f"{name}.params.{key} is shuffled, which needs a deal by position, not 'random'")

    def cells(self, victim_names: Iterable[str]) -> list[Cell]:
        """Every cell of an evaluation.

        Args:
            victim_names: names of the victims; a victim's id is its place in it.

        Returns:
            Clean on each victim first, then each attack on its victims, also of components with weight 0.

        Raises:
            ValueError: a component names a victim that is not there.
        """
        names = list(victim_names)
        return [Cell(attack, v) for attack, name in enumerate(self.names) for v in self._victim_ids(name, names)]

    def plan(
        self,
        index: Tensor,
        position: Tensor,
        *,
        stage: str,
        epoch: int,
        victim_names: Iterable[str],
        cell: Cell | None = None,
    ) -> Plan:
        """Decides who gets which attack, victim and parameters.

        Args:
            index: (B,) int64, place of each sample in the data set.
            position: (B,) int64, place of each sample in the order of the epoch.
            stage: "train", "val", "test", ...
            epoch: number of the epoch, which counts in the stage "train" only.
            victim_names: names of the victims, in the order of their ids.
            cell: gives this cell to every row.

        Returns:
            The plan of B rows, or of B x components rows, a sample's rows side by side, if the mix deals ``all``.

        Raises:
            ValueError: an unknown victim or cell.
        """
        names = tuple(victim_names)
        cells = self.cells(names)
        if cell is not None and cell not in cells:
            raise ValueError(f"{cell} is not a cell of the mix {self.names} on victims {list(names)}")
        epoch = epoch if stage == "train" else 0
        with torch.inference_mode(False), torch.no_grad():
            source = torch.arange(len(index), device=index.device)
            rng, turn = SampleRng(self.seed, stage, epoch, index), position
            if cell is not None:
                attack, victim = torch.full_like(source, cell.attack), torch.full_like(source, cell.victim)
            elif self.deal == "all":
                dealt = [(i, name) for i, name in enumerate(self.names) if self._weight(name)]
                columns = []
                for _, name in dealt:
                    ids = torch.tensor(self._victim_ids(name, names), device=index.device)
                    columns.append(ids[rng.fork(name).integers("victim", len(ids))])
                source = source.repeat_interleave(len(dealt))
                attack = torch.tensor([i for i, _ in dealt], device=index.device).repeat(len(index))
                victim = torch.stack(columns, dim=1).flatten()
            else:
                table = torch.tensor(self._table(names), device=index.device)
                row = position % len(table) if self.deal == "stratified" else rng.integers("cell", len(table))
                attack, victim, nth, per_round = table[row].unbind(1)
                turn = position // len(table) * per_round + nth
            rng, turn, numbered = rng[source], turn[source], attack * len(names) + victim
            params = {
                name: {key: d.draw(rng.fork(name), f"param.{key}", turn, numbered) for key, d in distributions.items()}
                for name, distributions in self._distributions.items()
            }
            return Plan(source, attack.clone(), victim.clone(), index[source], names, params, rng)

    def craft(
        self,
        victims: Mapping[str, nn.Module],
        x: Tensor,
        y: Tensor,
        plan: Plan,
        *,
        valid: Tensor | None = None,
        defender: nn.Module | None = None,
        against: Against | None = None,
        want_fooled: bool = False,
    ) -> AttackBatch:
        """Carries out a plan. Rows that attack one model by gradient steps of one norm go through one loop.

        Args:
            victims: name -> victim, with every name that the plan uses.
            x: (B, C, H, W) float32 in [0, 1].
            y: (B,) int64, true classes.
            plan: from ``plan``.
            valid: (B,) bool, rows that count; None means all.
            defender: the module under training, for components against "defended" (its ``restore``) or "self".
            against: overrides the ``against`` of every component; every row then counts, since an attack on the
                defence is judged on all images, not on those where it succeeds.
            want_fooled: also say where the attacked model was fooled; with ``only_fooled`` it is said anyway.

        Returns:
            The batch of N rows, detached, as ordinary tensors even under inference mode.

        Raises:
            ValueError: inputs out of range, a missing victim or defender, a target class that the model does not have.
        """
        if against is not None and against not in AGAINST:
            raise ValueError(f"against must be one of {AGAINST}, got {against!r}")
        only_fooled = self.only_fooled and against is None
        want_fooled = want_fooled or only_fooled
        with torch.inference_mode(False), torch.no_grad():
            check_inputs(x, y, None)
            clean, label = x.detach()[plan.source], y[plan.source]
            adv, target = clean.clone(), torch.full_like(label, -1)
            fooled = torch.zeros_like(label, dtype=torch.bool)
            for (side, victim, gradient), parts in self._by_model(plan, against).items():
                model = _attacked_model(side, victim, victims, defender)
                self._attack(_differentiable(model, gradient), parts, plan, clean, label, adv, target)
                rows = torch.cat([rows for _, rows in parts])
                if self.quantize is not None:
                    levels = 2**self.quantize - 1
                    adv[rows] = (adv[rows] * levels).round() / levels
                if want_fooled:
                    fooled[rows] = _fooled(model, clean[rows], adv[rows], label[rows], target[rows])
            check_images("adv", adv)
            counts = torch.ones_like(fooled) if valid is None else valid[plan.source]
            if only_fooled:
                counts = counts & (fooled | (plan.attack == CLEAN))
        return AttackBatch(
            clean=clean,
            adv=adv,
            label=label,
            attack=plan.attack,
            victim=plan.victim,
            target=target,
            index=plan.index,
            valid=counts,
            fooled=fooled if want_fooled else None,
        )

    def _weight(self, name: str) -> Fraction:
        # a mix need not name a clean component, but `clean` is a name all the same
        weight = self.components[name].weight if name in self.components else 0
        return Fraction(weight).limit_denominator(round(1 / MIN_WEIGHT))  # 0.3333333 means a third

    def _victim_ids(self, name: str, victim_names: Sequence[str]) -> list[int]:
        wanted = self.components[name].victims if name in self.components else None
        for victim in wanted or ():
            if victim not in victim_names:
                raise ValueError(f"component {name!r} attacks {_unknown('victim', victim, victim_names)}")
        return [i for i, victim in enumerate(victim_names) if wanted is None or victim in wanted]

    def _table(self, victim_names: Sequence[str]) -> list[tuple[int, int, int, int]]:
        """The smallest table with whole shares, each cell spread evenly over it: attack, victim, i-th of n such."""
        shares: dict[Cell, Fraction] = {}
        for attack, name in enumerate(self.names):
            victim_ids = self._victim_ids(name, victim_names)
            if self._weight(name):
                shares |= {Cell(attack, v): self._weight(name) / len(victim_ids) for v in victim_ids}
        unit = Fraction(
            math.gcd(*(s.numerator for s in shares.values())), math.lcm(*(s.denominator for s in shares.values()))
        )
        counts = {cell: int(share / unit) for cell, share in shares.items()}
        if sum(counts.values()) > MAX_TABLE:
            raise ValueError(f"the weights {[c.weight for c in self.components.values()]} have no simple ratio")
        places = [(Fraction(2 * i + 1, 2 * n), (*cell, i, n)) for cell, n in counts.items() for i in range(n)]
        return [entry for _, entry in sorted(places)]

    def _by_model(
        self, plan: Plan, against: Against | None
    ) -> dict[tuple[Against, str, str | int], list[tuple[str, Tensor]]]:
        """(against, victim's name, gradient) -> the components that attack it so, each with its rows."""
        groups: dict[tuple[Against, str, str | int], list[tuple[str, Tensor]]] = {}
        for attack, name in enumerate(self.names):
            of_attack = plan.attack == attack
            if attack == CLEAN or not bool(of_attack.any()):
                continue
            side = against or self.components[name].against
            if side == "self":
                groups.setdefault((side, "", "exact"), []).append((name, of_attack.nonzero()[:, 0]))
                continue
            gradient = _gradient(name, self.components[name].gradient) if side == "defended" else "exact"
            for victim in torch.unique(plan.victim[of_attack]).tolist():
                rows = (of_attack & (plan.victim == victim)).nonzero()[:, 0]
                groups.setdefault((side, plan.victim_names[victim], gradient), []).append((name, rows))
        return groups

    def _attack(
        self,
        model: nn.Module,
        parts: list[tuple[str, Tensor]],
        plan: Plan,
        clean: Tensor,
        label: Tensor,
        adv: Tensor,
        target: Tensor,
    ) -> None:
        """Writes the images and targets of the rows that attack one model."""
        loops: dict[str, list[tuple[Tensor, GradientSteps]]] = {}
        for name, rows in parts:
            component = self.components[name]
            drawn = {key: values[rows] for key, values in plan.params[name].items()}
            attack: Any = replace(component.attack, **drawn) if drawn else component.attack  # type: ignore[type-var]
            rng = plan.rng[rows].fork(name)
            x, y = clean[rows], label[rows]
            goal = None if component.target is None else _targets(component.target, model, x, y, rng)
            if goal is not None:
                target[rows] = goal
            if isinstance(attack, SteppedAttack):
                steps = attack.schedule(x, rng)
                loops.setdefault(steps.norm, []).append((rows, steps))
            else:
                adv[rows] = attack(model, x, y, target=goal, rng=rng)
        for loop in loops.values():
            rows = torch.cat([rows for rows, _ in loop])
            goal = target[rows] if bool((target[rows] >= 0).any()) else None
            steps = GradientSteps.cat([steps for _, steps in loop])
            adv[rows] = ascend(model, clean[rows], label[rows], steps, goal)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {known}"
    return f"the unknown {kind} {name!r}; {hint}"


def _check_component(name: str, component: Component) -> None:
    if not isinstance(component, Component):
        raise ValueError(f"component {name!r} must be a Component, got {component!r}")
    if (name == "clean") != (component.attack is None):
        raise ValueError(f"`clean` is the name of the component without an attack, got {name!r}: {component.attack!r}")
    if not _is_number(component.weight) or (component.weight != 0 and component.weight < MIN_WEIGHT):
        raise ValueError(f"{name}.weight must be 0 or at least {MIN_WEIGHT}, got {component.weight!r}")
    victims = component.victims
    if victims is not None and (isinstance(victims, str) or not victims or len(set(victims)) < len(victims)):
        raise ValueError(f"{name}.victims must be a list of different names or None for all, got {victims!r}")
    target = component.target
    if target not in (None, "random", "least_likely") and (type(target) is not int or target < 0):
        raise ValueError(f"{name}.target must be None, 'random', 'least_likely' or a class, got {target!r}")
    if component.against not in AGAINST:
        raise ValueError(f"{name}.against must be one of {AGAINST}, got {component.against!r}")
    known: list[str] = [f.name for f in fields(component.attack)] if is_dataclass(component.attack) else []
    _gradient(name, component.gradient)
    for key in component.params:
        if key not in known:
            raise ValueError(f"component {name!r} draws {_unknown('parameter', key, known)}")


def _attacked_model(
    side: Against, victim: str, victims: Mapping[str, nn.Module], defender: nn.Module | None
) -> nn.Module:
    if side != "self" and victim not in victims:
        raise ValueError(f"the plan attacks {_unknown('victim', victim, victims)}")
    if side == "victim":
        return victims[victim]
    if defender is None:
        raise ValueError(f"an attack against {side!r} needs the module under training as defender, got None")
    if side == "self":
        return defender
    if not isinstance(defender, Restorer):
        raise ValueError(f"an attack against 'defended' needs a restorer; {type(defender).__name__} has no restore(x)")
    return Defended(defender, victims[victim])


def _gradient(name: str, spec: Gradient) -> str | int:
    """ "exact", "bpda" or the number of draws."""
    if spec in ("exact", "bpda"):
        return str(spec)
    draws = spec.get("eot") if isinstance(spec, Mapping) and len(spec) == 1 else None
    if type(draws) is not int or draws < 1:
        raise ValueError(f"{name}.gradient must be exact, bpda or {{eot: n}}, n at least 1, got {spec!r}")
    return draws


def _differentiable(model: nn.Module, gradient: str | int) -> nn.Module:
    """The model as its attacker differentiates it."""
    if isinstance(gradient, int):
        return Expected(model, gradient)
    return StraightThrough(model) if gradient == "bpda" and isinstance(model, Defended) else model


def _targets(rule: str | int, model: nn.Module, x: Tensor, y: Tensor, rng: SampleRng) -> Tensor:
    """(B,) target classes, never the true ones."""
    if rule == "least_likely":
        with guard(model), torch.no_grad():
            logits = logits_of(model, x, 0)
        # a bad victim may find the true class the least likely one
        return torch.as_tensor(logits.scatter(1, y[:, None], math.inf).argmin(1))
    classes = _num_classes(model, x)
    if classes < 2:
        raise ValueError(f"a targeted attack needs at least 2 classes, the model has {classes}")
    if rule == "random":
        other = rng.integers("target", classes - 1)
        return other + (other >= y).long()
    fixed = int(rule)
    if fixed >= classes:
        raise ValueError(f"target class {fixed} does not exist, the model has {classes} classes")
    return torch.where(y == fixed, (fixed + 1) % classes, fixed)


def _num_classes(model: nn.Module, x: Tensor) -> int:
    known = getattr(model.victim if isinstance(model, Defended) else model, "num_classes", None)
    if known is None:
        with guard(model), torch.no_grad():
            known = logits_of(model, x[:1], 0).shape[1]
    return int(known)


def _fooled(model: nn.Module, clean: Tensor, adv: Tensor, label: Tensor, target: Tensor) -> Tensor:
    """(B,) bool: right on clean and wrong on adv, or, where targeted, says the target class."""
    with guard(model), torch.no_grad():
        before, after = (logits_of(model, images, 0).argmax(1) for images in (clean, adv))
    return torch.where(target >= 0, after == target, (before == label) & (after != label))
