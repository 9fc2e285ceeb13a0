"""The one loop behind every attack that follows the gradient of the cross-entropy: FGSM, R-FGSM, PGD.

Rows may differ in budget, step size and number of steps, so rows of different attacks share their victim calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks.guard import guard, logits_of, outside_inference
from redlab.attacks.project import Ball, per_pixel, steepest
from redlab.attacks.speed import quickly
from redlab.attacks.watched import watched
from redlab.rng import SampleRng


@dataclass(frozen=True, eq=False)
class GradientSteps:
    """What a gradient-step attack wants done to each row.

    Attributes:
        start: (B, C, H, W) first point, in the ball and in [0, 1].
        eps: (B,) float32 radius of the ball around the clean image.
        step_size: (B,) float32 length of a step in ``norm``.
        steps: (B,) int64, at least 1.
        norm: "linf" or "l2", one for all rows.
    """

    start: Tensor
    eps: Tensor
    step_size: Tensor
    steps: Tensor
    norm: str = "linf"

    def __len__(self) -> int:
        return len(self.eps)

    def __getitem__(self, rows: Tensor) -> GradientSteps:
        """Rows by a bool mask or an index tensor."""
        return GradientSteps(self.start[rows], self.eps[rows], self.step_size[rows], self.steps[rows], self.norm)

    @staticmethod
    def cat(parts: list[GradientSteps]) -> GradientSteps:
        """The rows of all parts, in order.

        Args:
            parts: at least one, all of one norm.

        Raises:
            ValueError: the norms differ.
        """
        norms = {part.norm for part in parts}
        if len(norms) != 1:
            raise ValueError(f"only schedules of one norm can be joined, got {sorted(norms)}")
        tensors = ((part.start, part.eps, part.step_size, part.steps) for part in parts)
        start, eps, step_size, steps = (torch.cat(columns) for columns in zip(*tensors, strict=True))
        return GradientSteps(start, eps, step_size, steps, norms.pop())


@runtime_checkable
class SteppedAttack(Protocol):
    """An attack (see ``redlab.batch.Attack``) that can say its steps beforehand, and so shares a loop with others."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, rng: SampleRng | None = None
    ) -> Tensor:
        """Attacks every row."""
        ...

    def schedule(self, x: Tensor, rng: SampleRng | None = None) -> GradientSteps:
        """What to do with each row of ``x``."""
        ...


def ascend(model: nn.Module, x: Tensor, y: Tensor, steps: GradientSteps, target: Tensor | None = None) -> Tensor:
    """Raises the cross-entropy of each row within its ball (lowers that of its target, where there is one).

    A row leaves the working set after its last step. Of several iterates (the start does not count) a row gets back the
    one of highest loss, the last of them if equal; judging the last iterates costs one forward pass without gradient.
    A row of one step has one iterate, so it costs exactly one victim call.

    The model always sees a head of the batch: rows with more steps come first, and keep their order where they do so
    already.

    Args:
        model: (B, C, H, W) -> (B, K) logits.
        x: (B, C, H, W) float32 clean images in [0, 1], as ``check_inputs`` wants them.
        y: (B,) int64 true labels.
        steps: what to do with each row.
        target: (B,) int64; -1 marks an untargeted row. None: all are untargeted.

    Returns:
        (B, C, H, W) float32 in [0, 1].

    Raises:
        ValueError: the rows of ``steps`` are not those of ``x``; the model does not return (B, K); K is too small.
    """
    if steps.start.shape != x.shape or len(steps) != len(x):
        raise ValueError(f"steps are for {tuple(steps.start.shape)} images, x is {tuple(x.shape)}")
    return quickly(model, lambda: _ascend(model, x, y, steps, target))


def _ascend(model: nn.Module, x: Tensor, y: Tensor, steps: GradientSteps, target: Tensor | None) -> Tensor:
    with guard(model):
        x, eps, step_size, way = x.detach(), steps.eps, steps.step_size, None
        start, label = outside_inference(steps.start), outside_inference(y)  # what autograd saves
        if target is not None:
            label = torch.where(target >= 0, target, label)
            way = torch.where(target >= 0, -1.0, 1.0)

        # The whole plan in one wait for the device. Rows with more steps come first, so that those still at work
        # are always a head of the batch: a slice, no gathering.
        *counts, top = torch.cat([steps.steps, label.amax()[None]]).tolist()
        order = None
        if counts != sorted(counts, reverse=True):
            order = torch.argsort(steps.steps, descending=True, stable=True)
            x, label, start, eps, step_size = (t[order] for t in (x, label, start, eps, step_size))
            way = None if way is None else way[order]
            counts.sort(reverse=True)

        def losses(images: Tensor) -> Tensor:
            loss = F.cross_entropy(logits_of(model, images, top), label[: len(images)], reduction="none")
            return loss if way is None else loss * way[: len(images)]

        ball, length = Ball(x, eps, steps.norm), per_pixel(step_size)
        now, best, best_loss, n = start, start, start.new_empty(0), len(x)
        for step in watched(range(counts[0]), "step"):
            while counts[n - 1] <= step:
                n -= 1
            point = now[:n].detach().requires_grad_()
            loss = losses(point)
            (grad,) = torch.autograd.grad(loss.sum(), point)
            point, loss = point.detach(), loss.detach()
            if step == 1:
                best, best_loss = point, loss
            elif step > 1:
                best, best_loss = _keep_better(point, loss, best, best_loss)
            moved = ball.project_head(steepest(grad, steps.norm).mul_(length[:n]).add_(point))
            now = moved if n == len(now) else torch.cat([moved, now[n:]])
        if counts[0] > 1:
            several = now[: len(best)]
            with torch.no_grad():
                best, _ = _keep_better(several, losses(several), best, best_loss)
            now = best if len(best) == len(now) else torch.cat([best, now[len(best) :]])
        if order is None:
            return now
        result = torch.empty_like(now)
        result[order] = now
        return result


def _keep_better(images: Tensor, loss: Tensor, best: Tensor, best_loss: Tensor) -> tuple[Tensor, Tensor]:
    """``best`` with its first n rows replaced by ``images`` (n of them) where these have at least the loss."""
    n = len(images)
    better = loss >= best_loss[:n]
    image, high = torch.where(per_pixel(better), images, best[:n]), torch.where(better, loss, best_loss[:n])
    if n == len(best):
        return image, high
    return torch.cat([image, best[n:]]), torch.cat([high, best_loss[n:]])
