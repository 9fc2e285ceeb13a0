"""Auto-PGD: projected gradient ascent with momentum that chooses its own step size.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, section 3 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, per_row
from redlab.attacks.margin import dlr, wins
from redlab.attacks.project import Ball, check_norm, checked_length, per_pixel, random_start, steepest
from redlab.attacks.rows import split_by_steps
from redlab.attacks.watched import watched
from redlab.rng import SampleRng

LOSSES = ("ce", "dlr")
MOMENTUM = 0.75  # share of the new step; the rest continues the step before
RISE = 0.75  # share of steps that must raise the loss between two checkpoints

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(n, C, H, W) images -> (n,) loss to be raised, (n,) bool whether the attack has succeeded."""


@dataclass(frozen=True, kw_only=True)
class APGD(GuardedAttack):
    """Steps of 2 eps at first, halved at checkpoints where the loss has stopped rising; a halving restarts at the best.

    Iterates are ranked by success first and then by loss; the best one is returned (the paper ranks by loss alone,
    which can leave behind an iterate that fools). Costs ``steps`` + 1 victim calls with gradient.

    Args:
        norm: "linf" or "l2".
        eps: budget in that norm, in units of [0, 1], a number or one per row.
        steps: number of steps, at least 1, a number or one per row.
        loss: "ce", the cross-entropy, or "dlr"; with fewer than 3 classes (4 if targeted) "dlr" means the margin.
        any_class: with a target, any wrong class counts as success, though the loss pulls towards the target.

    Raises:
        ValueError: unknown norm or loss.
    """

    norm: str = "linf"
    eps: float | Tensor = 8 / 255
    steps: int | Tensor = 100
    loss: str = "ce"
    any_class: bool = False

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. The draws are those of ``random_start``."""
        if isinstance(self.steps, Tensor):
            return split_by_steps(self, model, x, y, target, rng)
        per_row("steps", self.steps, x, low=1, whole=True)
        eps = checked_length("eps", self.eps, x, self.norm)
        start = random_start(x, eps, self.norm, rng)
        return climb(self._judge(checked(model, y, target), y, target), x, start, eps, self.steps, self.norm)

    def _judge(self, classify: Callable[[Tensor], Tensor], y: Tensor, target: Tensor | None) -> Judge:
        aim = None if self.any_class else target

        def judge(images: Tensor) -> tuple[Tensor, Tensor]:
            logits = classify(images)
            if self.loss == "dlr":
                return dlr(logits, y, target), wins(logits, y, aim)
            label, way = (y, 1.0) if target is None else (target, -1.0)
            return way * F.cross_entropy(logits, label, reduction="none"), wins(logits, y, aim)

        return judge


def checkpoints(steps: int) -> list[int]:
    """The steps w_j = ceil(p_j * steps), p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).

    >>> checkpoints(100)
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    percent, period, found = 22, 22, []
    while percent <= 100:
        found.append(-(-percent * steps // 100))
        period = max(period - 3, 6)
        percent += period
    return sorted(set(found))


def climb(judge: Judge, x: Tensor, start: Tensor, eps: Tensor, steps: int, norm: str) -> Tensor:
    """Algorithm 1 on rows that take the same number of steps.

    Args:
        judge: loss and success of images.
        x: (n, C, H, W) float32 centres of the balls, in [0, 1].
        start: (n, C, H, W) first points, in the balls.
        eps: (n,) radii.
        steps: at least 1.
        norm: "linf" or "l2".

    Returns:
        (n, C, H, W), the best iterates.
    """

    def look(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images = images.detach().requires_grad_()
        loss, won = judge(images)
        (grad,) = torch.autograd.grad(loss.sum(), images)
        return loss.detach(), won, grad

    ball, step_size, halt, passed = Ball(x, eps, norm), per_pixel(2 * eps), checkpoints(steps), 0
    point = before = start
    loss, won, grad = look(point)
    best, best_loss, best_won, best_grad = point, loss, won, grad
    rises, improved, halved = torch.zeros_like(loss), torch.zeros_like(won), torch.ones_like(won)
    for step in watched(range(1, steps + 1), "step"):
        moved = ball.project_head(steepest(grad, norm).mul_(step_size).add_(point))
        if step > 1:
            moved.sub_(point).mul_(MOMENTUM).add_(point - before, alpha=1 - MOMENTUM).add_(point)
            moved = ball.project_head(moved)
        before, point, last_loss = point, moved, loss
        loss, won, grad = look(point)
        better = (won & ~best_won) | ((won == best_won) & (loss > best_loss))
        wide = per_pixel(better)
        best, best_grad = torch.where(wide, point, best), torch.where(wide, grad, best_grad)
        best_loss, best_won = torch.where(better, loss, best_loss), best_won | won
        rises, improved = rises + (loss > last_loss), improved | better
        if step in halt:
            halved = (rises < RISE * (step - passed)) | ~(improved | halved)
            wide = per_pixel(halved)
            step_size = torch.where(wide, step_size / 2, step_size)
            point, grad = torch.where(wide, best, point), torch.where(wide, best_grad, grad)
            loss = torch.where(halved, best_loss, loss)
            rises, improved, passed = torch.zeros_like(rises), torch.zeros_like(improved), step
    return best
