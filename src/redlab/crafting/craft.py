"""A plan carried out, with as few victim calls as possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from redlab.attacks.ascend import GradientSteps, SteppedAttack, ascend
from redlab.attacks.guard import check_images, check_inputs, guard, logits_of
from redlab.attacks.stored import Limits, on_grid
from redlab.attacks.wrappers import Defended
from redlab.batch import CLEAN, KNOWLEDGE, AttackBatch, Restorer
from redlab.crafting.component import AGAINST, Against, Component, differentiable, draws, unknown
from redlab.crafting.deal import Plan
from redlab.rng import SampleRng

Rounding = Literal["fooling", "nearest"]

ROUNDINGS = ("fooling", "nearest")


@dataclass(frozen=True)
class Crafter:
    """Crafts what the components of a mix were dealt, as ``AttackMix`` says.

    Attributes:
        components: name -> component.
        names: by their ids; the first is "clean".
        quantize: bits of attacked images, or None.
        rounding: "fooling" or "nearest".
        only_fooled: whether rows whose attack failed count as not valid.
    """

    components: Mapping[str, Component]
    names: tuple[str, ...]
    quantize: int | None
    rounding: Rounding
    only_fooled: bool

    def __call__(
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
        """See ``AttackMix.craft``."""
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
