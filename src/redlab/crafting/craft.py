"""A plan carried out, with as few victim calls as possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from redlab.attacks.ascend import GradientSteps, SteppedAttack, ascend
from redlab.attacks.guard import check_images, check_inputs, guard, logits_of
from redlab.attacks.stored import Limits, on_grid
from redlab.attacks.watched import watched
from redlab.attacks.wrappers import Defended
from redlab.batch import CLEAN, KNOWLEDGE, AttackBatch
from redlab.crafting.component import Component, Knowledge, differentiable, draws, is_control, unknown
from redlab.crafting.deal import Plan
from redlab.crafting.defended import InStages, WithAlarm, WithoutAlarm, needs_victim, surface
from redlab.rng import SampleRng

Rounding = Literal["fooling", "nearest", "floor"]

ROUNDINGS = ("fooling", "nearest", "floor")


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows of one component in one setting."""

    name: str
    setting: int
    rows: Tensor

    def where(self, wanted: Tensor) -> _Part:
        """The rows of a mask over all rows."""
        return replace(self, rows=self.rows[wanted[self.rows]])


@dataclass(frozen=True)
class Crafter:
    """Crafts what the components of a mix were dealt, as ``AttackMix`` says.

    Attributes:
        components: name -> component.
        names: by their ids; the first is "clean".
        adaptive: names of the components whose rows always count.
        quantize: bits of attacked images, or None.
        rounding: "fooling", "nearest" or "floor".
        only_fooled: whether rows whose attack failed count as not valid.
        only_right: whether rows whose clean image the victim gets wrong count as not valid.
    """

    components: Mapping[str, Component]
    names: tuple[str, ...]
    adaptive: frozenset[str]
    quantize: int | None
    rounding: Rounding
    only_fooled: bool
    only_right: bool

    def __call__(
        self,
        victims: Mapping[str, nn.Module],
        x: Tensor,
        y: Tensor,
        plan: Plan,
        *,
        valid: Tensor | None = None,
        defence: Any = None,
        want_fooled: bool = False,
    ) -> AttackBatch:
        """See ``AttackMix.craft``."""
        with torch.inference_mode(False), torch.no_grad():
            check_inputs(x, y, None)
            clean, label = x.detach()[plan.source], y[plan.source]
            work = _Work(plan, clean, label, label.clone(), clean.clone(), torch.full_like(label, -1))
            fooled, knowledge = torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label)
            judged = want_fooled or self.only_fooled
            models = list(self._by_model(plan, defence).items())
            for (knows, victim, gradient), parts in watched(models, lambda model: f"on {model[0][1] or 'the defence'}"):
                whole = _attacked_model(knows, victim, victims, defence)
                for part in parts:
                    knowledge[part.rows] = KNOWLEDGE.index(knows)
                    if self.components[part.name].label == "predicted":
                        work.start[part.rows] = _said(whole, clean[part.rows])
                for judge, attacked, mine in self._settled(whole, gradient, parts, work.start):
                    limits = self._attack(attacked, mine, work)
                    rows = torch.cat([part.rows for part in mine])
                    won = self._round(judge, rows, limits, work)
                    if judged:
                        adv, target = work.adv[rows], work.target[rows]
                        fooled[rows] = _fooled(judge, clean[rows], adv, label[rows], target, won)
            check_images("adv", work.adv)
            attacked_rows = self.attacked(plan.attack)
            counts = torch.ones_like(fooled) if valid is None else valid[plan.source]
            always = self._marked(plan.attack, lambda name: name in self.adaptive)
            if self.only_fooled:
                counts = counts & (fooled | ~attacked_rows | always)
            if self.only_right:
                counts = counts & (always | self._right(victims, plan, clean, label, ~always))
        return AttackBatch(
            clean=clean,
            adv=work.adv,
            label=label,
            attack=plan.attack,
            setting=plan.setting,
            victim=plan.victim,
            knowledge=knowledge,
            target=work.target,
            index=plan.index,
            valid=counts,
            attacked=attacked_rows,
            fooled=fooled if judged else None,
        )

    def attacked(self, attack: Tensor) -> Tensor:
        """(N,) ids of attacks -> (N,) bool, False for clean images and controls."""
        return self._marked(attack, lambda name: name != "clean" and not self._control(name))

    def _control(self, name: str) -> bool:
        return name in self.components and is_control(self.components[name].attack)

    def _marked(self, attack: Tensor, has: Callable[[str], bool]) -> Tensor:
        """(N,) bool, the rows of the components that ``has`` something."""
        return torch.tensor([has(name) for name in self.names], device=attack.device)[attack]

    def _by_model(self, plan: Plan, defence: Any) -> dict[tuple[Knowledge, str | None, str | int], list[_Part]]:
        """(knowledge, victim's name, gradient) -> what attacks that. No victim's name: all have one defence."""
        groups: dict[tuple[Knowledge, str | None, str | int], list[_Part]] = {}
        for attack, name in enumerate(self.names):
            of_attack = plan.attack == attack
            if attack == CLEAN or not bool(of_attack.any()):
                continue
            component = self.components[name]
            knows, gradient = component.knowledge, draws(name, component.gradient)
            if knows == "defence" and defence is None:
                raise ValueError(f"{name} attacks the defence, and there is none: data.attach(method) names it")
            for setting in torch.unique(plan.setting[of_attack]).tolist():
                mine = of_attack & (plan.setting == setting)
                if knows == "defence" and not needs_victim(defence):
                    part = _Part(name, setting, mine.nonzero()[:, 0])
                    groups.setdefault((knows, None, gradient), []).append(part)
                    continue
                for victim in torch.unique(plan.victim[mine]).tolist():
                    part = _Part(name, setting, (mine & (plan.victim == victim)).nonzero()[:, 0])
                    groups.setdefault((knows, plan.victim_names[victim], gradient), []).append(part)
        return groups

    def _settled(
        self, whole: nn.Module, gradient: str | int, parts: list[_Part], start: Tensor
    ) -> Iterator[tuple[nn.Module, nn.Module, list[_Part]]]:
        """What judges, what is attacked, and its rows: one each, but for a model with an alarm one for each class.

        There those who leave a class go in stages, where nothing else is asked for.
        """
        attacked = differentiable(whole, gradient)
        if not getattr(whole, "rejects", False):
            yield whole, attacked, parts
            return
        schemes: dict[Callable[[Any, int], nn.Module], list[_Part]] = {InStages: [], WithoutAlarm: []}
        in_stages = isinstance(attacked, WithAlarm) and gradient == "exact"
        for part in parts:
            leaves = self.components[part.name].target is None
            schemes[InStages if in_stages and leaves else WithoutAlarm].append(part)
        for settled, some in schemes.items():
            for label in torch.unique(torch.cat([start[:0], *(start[part.rows] for part in some)])).tolist():
                mine = [own for part in some if len((own := part.where(start == label)).rows)]
                yield WithoutAlarm(whole, label, exact=True), settled(attacked, label), mine

    def _attack(self, model: nn.Module, parts: list[_Part], work: _Work) -> Limits | None:
        """Writes the images and targets of the rows that attack one model.

        Returns:
            The limits of these rows, part by part, where they are to be rounded so that they go on fooling.
        """
        limits: list[Limits] = []
        loops: dict[str, list[tuple[Tensor, GradientSteps]]] = {}
        for part in watched(parts, lambda part: part.name):
            component, rows = self.components[part.name], part.rows
            changed: dict[str, Any] = dict(component.settings[part.setting]) if component.settings else {}
            changed |= {key: values[rows] for key, values in work.plan.params[part.name].items()}
            attack: Any = replace(component.attack, **changed) if changed else component.attack  # type: ignore[type-var]
            rng = work.plan.rng[rows].fork(part.name)
            x, y = work.clean[rows], work.start[rows]
            if self.quantize is not None and self.rounding == "fooling":
                limit = Limits.of(attack, x)
                # what is no attack is not to fool more than it does
                limits.append(replace(limit, grows=limit.grows & (not is_control(attack))))
            goal = None if component.target is None else _targets(component.target, model, x, y, rng)
            if goal is not None:
                work.target[rows] = goal
            if isinstance(attack, SteppedAttack):
                steps = attack.schedule(x, rng)
                loops.setdefault(steps.norm, []).append((rows, steps))
            else:
                work.adv[rows] = attack(model, x, y, target=goal, rng=rng)
        for loop in watched(list(loops.values()), "gradient steps"):
            rows = torch.cat([rows for rows, _ in loop])
            goal = work.target[rows] if bool((work.target[rows] >= 0).any()) else None
            steps = GradientSteps.cat([steps for _, steps in loop])
            work.adv[rows] = ascend(model, work.clean[rows], work.start[rows], steps, goal)
        return Limits.cat(limits) if limits else None

    def _round(self, judge: nn.Module, rows: Tensor, limits: Limits | None, work: _Work) -> Tensor | None:
        """Rounds attacked rows; where that says whether they leave the class that they started from, returns it."""
        if self.quantize is None:
            return None
        levels = 2**self.quantize - 1
        if limits is not None:
            pairs = work.clean[rows], work.adv[rows], work.start[rows], work.target[rows]
            work.adv[rows], won = on_grid(judge, *pairs, levels, limits)
            return won
        grey = work.adv[rows] * levels
        work.adv[rows] = (grey.floor() if self.rounding == "floor" else grey.round()) / levels
        return None

    def _right(
        self, victims: Mapping[str, nn.Module], plan: Plan, clean: Tensor, label: Tensor, wanted: Tensor
    ) -> Tensor:
        """(N,) bool, whether each row's victim is right on its clean image, where that is wanted."""
        right = torch.zeros_like(wanted)
        for victim in torch.unique(plan.victim[wanted]).tolist():
            rows = (wanted & (plan.victim == victim)).nonzero()[:, 0]
            model = _attacked_model("victim", plan.victim_names[victim], victims, None)
            right[rows] = _said(model, clean[rows]) == label[rows]
        return right


@dataclass(frozen=True, eq=False)
class _Work:
    """The rows of a batch while they are crafted.

    Attributes:
        plan: what is to be crafted.
        clean: (N, C, H, W).
        label: (N,) true classes.
        start: (N,) the classes that attacks start from.
        adv: (N, C, H, W), to be written.
        target: (N,), to be written, -1 where untargeted.
    """

    plan: Plan
    clean: Tensor
    label: Tensor
    start: Tensor
    adv: Tensor
    target: Tensor


def _attacked_model(knows: Knowledge, victim: str | None, victims: Mapping[str, nn.Module], defence: Any) -> nn.Module:
    if victim is not None and victim not in victims:
        raise ValueError(f"the plan attacks {unknown('victim', victim, victims)}")
    own = None if victim is None else victims[victim]
    return surface(defence, own) if knows == "defence" else cast(nn.Module, own)


def _said(model: nn.Module, x: Tensor) -> Tensor:
    """(B,) the model's class of each image; the alarm, where it has one, is none."""
    with guard(model), torch.no_grad():
        logits = logits_of(model, x, 0)
    return logits[:, : -1 if getattr(model, "rejects", False) else None].argmax(1)


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
