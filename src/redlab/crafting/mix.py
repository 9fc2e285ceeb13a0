"""Which sample meets which attack on which victim, and the crafting of a batch dealt that way.

``AttackMix.plan`` decides, as a pure function of (seed, stage, epoch, index, position); ``AttackMix.craft`` carries
the plan out with as few victim calls as possible. No result depends on batch size, order or world size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from redlab.attacks.ascend import GradientSteps, SteppedAttack, ascend
from redlab.attacks.guard import check_images, check_inputs, guard, logits_of
from redlab.attacks.stored import Limits, on_grid
from redlab.attacks.wrappers import Defended
from redlab.batch import CLEAN, KNOWLEDGE, AttackBatch, Restorer, check_name
from redlab.crafting.component import (
    AGAINST,
    MIN_WEIGHT,
    Against,
    Component,
    Distribution,
    check_attack,
    check_component,
    differentiable,
    draws,
    unknown,
)
from redlab.rng import SampleRng

__all__ = ["AttackMix", "Cell", "Component", "Distribution", "Plan"]

Deal = Literal["random", "stratified", "all"]
Rounding = Literal["fooling", "nearest"]

DEALS = ("random", "stratified", "all")
ROUNDINGS = ("fooling", "nearest")
MAX_TABLE = 100_000


class Cell(NamedTuple):
    """One attack on one victim, by their ids."""

    attack: int
    victim: int


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
        quantize: round attacked images to this many bits (8: multiples of 1/255); None keeps floats.
        rounding: how. "fooling": so that an image that fools still does, and a budget is kept
            (``redlab.attacks.Stored``); "nearest": to the nearest, which undoes some attacks and can leave the ball
            of a budget by up to 1/510.
        only_fooled: rows whose attack failed are marked as not valid.
        seed: seed of every draw.

    Raises:
        ValueError: a component, weight, distribution or option that makes no sense.

    Example:
        >>> import torch
        >>> from redlab.attacks import FGSM
        >>> eps = {"eps": {"integers": [1, 16], "over": 255}}
        >>> mix = AttackMix({"clean": Component(attack=None), "fgsm": Component(attack=FGSM(), params=eps)})
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
        rounding: Rounding = "fooling",
        only_fooled: bool = False,
        seed: int = 0,
    ) -> None:
        if deal not in DEALS:
            raise ValueError(f"deal must be one of {DEALS}, got {deal!r}")
        if quantize is not None and (type(quantize) is not int or not 1 <= quantize <= 16):
            raise ValueError(f"quantize must be a number of bits from 1 to 16 or None, got {quantize!r}")
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding must be one of {ROUNDINGS}, got {rounding!r}")
        if quantize is None and rounding != "fooling":
            raise ValueError(f"rounding={rounding!r} has no effect without quantize: set quantize=8 or leave it out")
        given = components or {"clean": Component(attack=None)}
        self.components = {str(name): component for name, component in given.items()}
        if len(self.components) < len(given):
            raise ValueError(f"components must have different names, got {list(given)}")
        self.deal, self.quantize, self.rounding = deal, quantize, rounding
        self.only_fooled, self.seed = only_fooled, seed
        self._distributions = {name: check_component(name, part) for name, part in self.components.items()}
        for name, component in self.components.items():
            if deal == "all" and component.weight not in (0, 1):
                raise ValueError(
                    f"{name}.weight={component.weight!r} has no effect where deal=all: set 1, "
                    f"or 0 to leave it out of training"
                )
            for key, distribution in self._distributions[name].items():
                if distribution.kind == "shuffled" and deal == "random":
                    raise ValueError(f"{name}.params.{key} is shuffled, which needs a deal by position, not 'random'")
            check_attack(name, component, self._distributions[name])
        if not any(component.weight for component in self.components.values()):
            raise ValueError(f"every component of the mix has weight 0: {list(self.components)}")
        if list(self.components) == ["clean"] and (quantize is not None or only_fooled):
            option = "only_fooled" if quantize is None else f"quantize={quantize}"
            raise ValueError(f"{option} has no effect in a mix without an attack: leave it out")
        self.names: tuple[str, ...] = ("clean", *(name for name in self.components if name != "clean"))

    def check(
        self,
        victim_names: Iterable[str],
        *,
        channels: int | None = None,
        image_size: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        """Looks at what only the victims' names and the data can tell, before any victim is there.

        Args:
            victim_names: names of the victims.
            channels: of the images; None where it is not known, like the next two.
            image_size: side of the images in pixels.
            num_classes: number of classes.

        Raises:
            ValueError: a component does not fit the victims, the images or the classes.
        """
        names = list(victim_names)
        self.cells(names)
        if self.deal != "all":
            self._table(names)
        for name, component in self.components.items():
            if num_classes is not None and isinstance(component.target, int) and component.target >= num_classes:
                raise ValueError(f"{name}.target={component.target} does not exist: there are {num_classes} classes")
            if channels is not None and image_size is not None:
                check_attack(name, component, self._distributions[name], (channels, image_size, image_size))

    def cells(self, victim_names: Iterable[str]) -> list[Cell]:
        """Every cell of an evaluation.

        Args:
            victim_names: names of the victims; a victim's id is its place in it.

        Returns:
            Clean on each victim first, then each attack on its victims, also of components with weight 0.

        Raises:
            ValueError: a component names a victim that is not there, or a victim's name cannot be told in a table.
        """
        names = list(victim_names)
        for victim in names:
            check_name("victim", victim)
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
            fooled, knowledge = torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label)
            setting = torch.zeros_like(label)
            for (side, victim, gradient), parts in self._by_model(plan, against).items():
                model = _attacked_model(side, victim, victims, defender)
                limits = self._attack(differentiable(model, gradient), parts, plan, clean, label, adv, target)
                rows = torch.cat([rows for _, rows in parts])
                knowledge[rows] = KNOWLEDGE.index("victim" if side == "victim" else "defence")
                won, levels = None, 2 ** (self.quantize or 0) - 1
                if limits is not None:
                    pairs = clean[rows], adv[rows], label[rows], target[rows]
                    adv[rows], won = on_grid(model, *pairs, levels, limits)
                elif self.quantize is not None:
                    adv[rows] = (adv[rows] * levels).round() / levels
                if want_fooled:
                    fooled[rows] = _fooled(model, clean[rows], adv[rows], label[rows], target[rows], won)
            check_images("adv", adv)
            counts = torch.ones_like(fooled) if valid is None else valid[plan.source]
            if only_fooled:
                counts = counts & (fooled | (plan.attack == CLEAN))
        return AttackBatch(
            clean=clean,
            adv=adv,
            label=label,
            attack=plan.attack,
            setting=setting,
            victim=plan.victim,
            knowledge=knowledge,
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
                raise ValueError(f"component {name!r} attacks {unknown('victim', victim, victim_names)}")
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
            gradient = draws(name, self.components[name].gradient) if side == "defended" else "exact"
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
    ) -> Limits | None:
        """Writes the images and targets of the rows that attack one model.

        Returns:
            The limits of these rows, part by part, where they are to be rounded so that they go on fooling.
        """
        limits: list[Limits] = []
        loops: dict[str, list[tuple[Tensor, GradientSteps]]] = {}
        for name, rows in parts:
            component = self.components[name]
            drawn = {key: values[rows] for key, values in plan.params[name].items()}
            attack: Any = replace(component.attack, **drawn) if drawn else component.attack  # type: ignore[type-var]
            rng = plan.rng[rows].fork(name)
            x, y = clean[rows], label[rows]
            if self.quantize is not None and self.rounding == "fooling":
                limits.append(Limits.of(attack, x))
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
        return Limits.cat(limits) if limits else None


def _attacked_model(
    side: Against, victim: str, victims: Mapping[str, nn.Module], defender: nn.Module | None
) -> nn.Module:
    if side != "self" and victim not in victims:
        raise ValueError(f"the plan attacks {unknown('victim', victim, victims)}")
    if side == "victim":
        return victims[victim]
    if defender is None:
        raise ValueError(f"an attack against {side!r} needs the module under training as defender, got None")
    if side == "self":
        return defender
    if not isinstance(defender, Restorer):
        raise ValueError(f"an attack against 'defended' needs a restorer; {type(defender).__name__} has no restore(x)")
    return Defended(defender, victims[victim])


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


def _fooled(model: nn.Module, clean: Tensor, adv: Tensor, label: Tensor, target: Tensor, won: Tensor | None) -> Tensor:
    """(B,) bool: right on clean and wrong on adv, or, where targeted, says the target class.

    ``won`` is the answer to the part about adv, where it is known.
    """
    with guard(model), torch.no_grad():
        before: Tensor = logits_of(model, clean, 0).argmax(1) == label
        if won is None:
            after = logits_of(model, adv, 0).argmax(1)
            won = torch.where(target >= 0, after == target, after != label)
    return won & (before | (target >= 0))
