"""DeepFool: step to the nearest boundary of the linearised classifier, until the class changes.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, per_row
from redlab.attacks.margin import margin, nearest_boundary
from redlab.attacks.project import check_norm, per_pixel, steepest
from redlab.attacks.rows import split_by_steps
from redlab.attacks.watched import watched
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class DeepFool(GuardedAttack):
    """x <- clip(x + (1 + overshoot) * r), r being the step to the nearest of the boundaries linearised at x.

    With f_k = Z_k - Z_y: r = |f_k| / |grad f_k|_* * (steepest direction of f_k) for the k where its length is least,
    |.|_* the dual norm (algorithm 2 and equations 9 to 11). Untargeted. A row is done as soon as it is misclassified,
    so one that is misclassified already comes back as it is; a row that is never gets back its last iterate. A step
    costs a row one victim call and one gradient for each boundary looked at, and one more call where others are done.

    Args:
        norm: "l2" or "linf", the norm to keep small.
        steps: greatest number of steps, at least 1.
        overshoot: relative length added to each step, to get across the boundary.
        top_k: how many other classes to look at, the likeliest on the clean image; None for all.

    Raises:
        ValueError: unknown norm; ``top_k`` is below 1.
    """

    targeted: ClassVar[bool] = False
    norm: str = "l2"
    steps: int | Tensor = 50
    overshoot: float | Tensor = 0.02
    top_k: int | None = 10

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be None or at least 1, got {self.top_k}")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. ``rng`` is not used."""
        if isinstance(self.steps, Tensor):
            return split_by_steps(self, model, x, y, None, rng)
        per_row("steps", self.steps, x, low=1, whole=True)
        factor = 1.0 + per_row("overshoot", self.overshoot, x)
        classify = checked(model, y)
        rows, now, result = torch.arange(len(x), device=x.device), x, x.clone()
        others = y[:, None]
        for step in watched(range(self.steps + 1), "step"):
            point = now.detach().requires_grad_(bool(step < self.steps))
            logits = classify(point)
            result[rows] = now
            going = margin(logits.detach(), y) >= 0
            left = int(going.sum())
            if left == 0 or step == self.steps:
                break
            if step == 0:
                k = logits.shape[1] - 1 if self.top_k is None else min(self.top_k, logits.shape[1] - 1)
                others = logits.detach().scatter(1, y[:, None], -math.inf).topk(k).indices
            if left < (len(rows) - left) * others.shape[1]:
                # Another forward pass without the finished rows costs less than their gradients.
                rows, y, point, others, factor = (t[going] for t in (rows, y, now, others, factor))
                logits = classify(point.requires_grad_())
            now = self._past_boundary(logits, point, y, others, factor)
            if left < len(rows):
                rows, y, now, others, factor = (t[going] for t in (rows, y, now, others, factor))
        return result

    def _past_boundary(self, logits: Tensor, point: Tensor, y: Tensor, others: Tensor, factor: Tensor) -> Tensor:
        """``point`` moved by ``factor`` times the way to the nearest linearised boundary."""
        gap, slope = nearest_boundary(logits, point, y, others, self.norm)
        steepness = slope.flatten(1).norm(p=1 if self.norm == "linf" else 2, dim=1)
        # As in the authors' code 1e-4 more, which gets off a boundary where the distance is nought.
        length = gap.abs() / per_pixel(steepness).clamp(min=torch.finfo(slope.dtype).tiny) + 1e-4
        return steepest(slope, self.norm).mul_(length * per_pixel(factor)).add_(point.detach()).clamp_(0.0, 1.0)
