"""AutoAttack: four attacks one after the other, each on the rows that the ones before did not fool.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, section 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redlab.attacks.apgd import APGD
from redlab.attacks.base import GuardedAttack
from redlab.attacks.fab import FAB
from redlab.attacks.guard import checked, is_whole, per_row
from redlab.attacks.margin import wins
from redlab.attacks.project import check_norm, checked_length, project
from redlab.attacks.square import Square
from redlab.attacks.watched import watched
from redlab.batch import Attack
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class AutoAttack(GuardedAttack):
    """The standard version: APGD on the cross-entropy, targeted APGD on the DLR, targeted FAB, Square.

    The targeted members go through the likeliest wrong classes on the clean image, and any wrong class counts as
    success. A row that is misclassified from the start comes back clean; a row that no member fools comes back with the
    result of the first member, its highest-loss iterate. FAB has no budget: its images are put into the ball.

    With 2 or 3 classes there are as many targets as other classes, and the DLR of targets gives way to the margin.

    With a target, the members are APGD on both losses, FAB and Square, all aimed at it, and only it counts as success.

    Args:
        norm: "linf" or "l2".
        eps: budget in that norm, in units of [0, 1], a number or one per row.
        steps: of APGD and FAB, at least 1, a number or one per row.
        queries: of Square, at least 1, a number or one per row.
        targets: greatest number of classes for the targeted members, at least 1.

    Raises:
        ValueError: unknown norm, or targets out of range.
    """

    norm: str = "linf"
    eps: float | Tensor = 8 / 255
    steps: int | Tensor = 100
    queries: int | Tensor = 5000
    targets: int = 9

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if not is_whole(self.targets) or self.targets < 1:
            raise ValueError(f"targets must be a whole number, at least 1, got {self.targets!r}")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. Each member draws from a fork with its name."""
        eps = checked_length("eps", self.eps, x, self.norm)
        steps = per_row("steps", self.steps, x, low=1, whole=True)
        queries = per_row("queries", self.queries, x, low=1, whole=True)
        classify = checked(model, y, target)

        def won(images: Tensor, rows: Tensor) -> Tensor:
            with torch.no_grad():
                return wins(classify(images), y[rows], None if target is None else target[rows])

        with torch.no_grad():
            logits = classify(x)
        aims = [target] if target is not None else _likeliest(logits, y, self.targets)
        left = (~wins(logits, y, target)).nonzero()[:, 0]
        x_adv = x.clone()
        members = self._members(eps, steps, queries, target, aims)
        for name, make, aim in watched(members, lambda member: member[0]):
            if len(left) == 0:
                break
            goal = None if aim is None else aim[left]
            found = make(left)(model, x[left], y[left], target=goal, rng=rng[left].fork(name))
            found = project(found, x[left], eps[left], self.norm)
            fooled = won(found, left)
            kept = fooled if name != "apgd-ce" else torch.ones_like(fooled)
            x_adv[left[kept]] = found[kept]
            left = left[~fooled]
        return x_adv

    def _members(
        self, eps: Tensor, steps: Tensor, queries: Tensor, target: Tensor | None, aims: list[Tensor]
    ) -> list[tuple[str, Callable[[Tensor], Attack], Tensor | None]]:
        """Name, the attack for given rows, and (B,) classes to aim at, in order."""
        norm, any_class = self.norm, target is None

        def apgd_ce(rows: Tensor) -> Attack:
            return APGD(norm=norm, eps=eps[rows], steps=steps[rows], loss="ce")

        def apgd_dlr(rows: Tensor) -> Attack:
            return APGD(norm=norm, eps=eps[rows], steps=steps[rows], loss="dlr", any_class=any_class)

        def fab(rows: Tensor) -> Attack:
            return FAB(norm=norm, steps=steps[rows], any_class=any_class)

        def square(rows: Tensor) -> Attack:
            return Square(norm=norm, eps=eps[rows], queries=queries[rows], rescale=False)

        return [
            ("apgd-ce", apgd_ce, target),
            *((f"apgd-dlr {k}", apgd_dlr, aim) for k, aim in enumerate(aims)),
            *((f"fab {k}", fab, aim) for k, aim in enumerate(aims)),
            ("square", square, target),
        ]


def _likeliest(logits: Tensor, y: Tensor, count: int) -> list[Tensor]:
    """Up to ``count`` times (B,): the likeliest wrong class, the second likeliest, ..."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return list(others.topk(min(count, logits.shape[1] - 1), dim=1).indices.unbind(1))
