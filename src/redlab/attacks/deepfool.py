"""DeepFool: step to the nearest boundary of the linearised classifier, until the class changes.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redlab.attacks.guard import check_inputs, checked, guard, outside_inference, per_row
from redlab.attacks.margin import margin
from redlab.attacks.project import check_norm, per_pixel, steepest
from redlab.attacks.rng import SampleRng
from redlab.attacks.rows import split_by_steps


@dataclass(frozen=True, kw_only=True)
class DeepFool:
    """x <- clip(x + (1 + overshoot) * r), r being the step to the nearest of the boundaries linearised at x.

    With f_k = Z_k - Z_y: r = |f_k| / |grad f_k|_* * (steepest direction of f_k) for the k where its length is least,
    |.|_* the dual norm (algorithm 2 and equations 9 to 11). Untargeted. A row is done as soon as it is misclassified,
    so one that is misclassified already comes back as it is; a row that is never gets back its last iterate. A step
    costs a row one victim call, one gradient for each boundary looked at, and one call without gradient.

    Args:
        norm: "l2" or "linf", the norm to keep small.
        steps: greatest number of steps, at least 1.
        overshoot: relative length added to each step, to get across the boundary.
        top_k: how many other classes to look at, the likeliest on the clean image; None for all.

    Raises:
        ValueError: unknown norm; ``top_k`` is below 1.
    """

    norm: str = "l2"
    steps: int | Tensor = 50
    overshoot: float | Tensor = 0.02
    top_k: int | None = 10

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be None or at least 1, got {self.top_k}")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, rng: SampleRng | None = None
    ) -> Tensor:
        """Attacks every row; see ``redlab.batch.Attack``. ``rng`` is not used.

        Raises:
            ValueError: bad input, or a target, since this attack has none.
        """
        if target is not None:
            raise ValueError(f"DeepFool is untargeted, got target {target.tolist()[:3]}...; leave it out")
        check_inputs(x, y)
        if isinstance(self.steps, Tensor):
            return split_by_steps(self, model, x, y, None, rng)
        per_row("steps", self.steps, x, low=1, whole=True)
        factor = 1.0 + per_row("overshoot", self.overshoot, x)
        with guard(model):
            x, y = outside_inference(x), outside_inference(y)
            classify = checked(model, y)
            rows, now, result = torch.arange(len(x), device=x.device), x, x.clone()
            others = y[:, None]
            for step in range(self.steps + 1):
                with torch.no_grad():
                    logits = classify(now)
                result[rows] = now
                keep = margin(logits, y) >= 0
                left = int(keep.sum())
                if left == 0 or step == self.steps:
                    break
                if step == 0:
                    k = logits.shape[1] - 1 if self.top_k is None else min(self.top_k, logits.shape[1] - 1)
                    others = logits.scatter(1, y[:, None], -math.inf).topk(k).indices
                if left < len(rows):
                    rows, y, now, others, factor = (t[keep] for t in (rows, y, now, others, factor))
                now = self._to_boundary(classify, now, y, others).mul_(per_pixel(factor)).add_(now).clamp_(0.0, 1.0)
            return result

    def _to_boundary(self, classify: Callable[[Tensor], Tensor], now: Tensor, y: Tensor, others: Tensor) -> Tensor:
        """The shortest step that equals the logits of y and of one of ``others``, to first order."""
        point = now.detach().requires_grad_()
        logits = classify(point)
        gaps = logits.gather(1, others) - logits.gather(1, y[:, None])
        nearest, least = torch.zeros_like(now), torch.full_like(logits[:, 0], math.inf).detach()
        for k, (gap, height) in enumerate(zip(gaps.sum(0), gaps.detach().abs().unbind(1), strict=True), start=1):
            (grad,) = torch.autograd.grad(gap, point, retain_graph=k < gaps.shape[1])
            # As in the authors' code 1e-4 more, which gets off a boundary where the distance is nought.
            length = height / grad.flatten(1).norm(p=1 if self.norm == "linf" else 2, dim=1) + 1e-4
            nearer = length < least  # not where the gradient vanishes
            least = torch.where(nearer, length, least)
            nearest = torch.where(per_pixel(nearer), grad, nearest)
        return steepest(nearest, self.norm) * per_pixel(torch.where(least.isinf(), 0.0, least))
