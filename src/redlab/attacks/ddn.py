"""DDN: the direction and the norm of the perturbation are decoupled.

Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks", CVPR 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, per_row
from redlab.attacks.margin import margin
from redlab.attacks.project import checked_length, per_pixel, steepest
from redlab.attacks.rows import split_by_steps
from redlab.attacks.watched import watched
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class DDN(GuardedAttack):
    """delta <- delta + a * (unit gradient), brought to a length that shrinks while the class is wrong and else grows.

    Algorithm 1: the length becomes (1 - gamma) or (1 + gamma) times what it was, a falls from 1 to 0.01 along a cosine,
    and x + delta is rounded to ``levels`` grey values and clipped. Returns per row the smallest adversarial in l2 (the
    clean image itself where that is misclassified already), or the last iterate where there is none. Costs ``steps``
    gradients and one victim call without.

    Args:
        steps: number of steps, at least 1.
        gamma: relative change of the length per step, in [0, 1].
        init_norm: first l2 length, in units of [0, 1].
        levels: grey values to round to, at least 2, so that the result survives storage; None for no rounding.

    Raises:
        ValueError: ``levels`` is below 2.
    """

    steps: int | Tensor = 100
    gamma: float | Tensor = 0.05
    init_norm: float | Tensor = 1.0
    levels: int | None = 256

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels must be None or at least 2, got {self.levels}")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. ``rng`` serves where the gradient vanishes: draw "kick"."""
        if isinstance(self.steps, Tensor):
            return split_by_steps(self, model, x, y, target, rng)
        per_row("steps", self.steps, x, low=1, whole=True)
        gamma = per_row("gamma", self.gamma, x, high=1.0)
        norm = checked_length("init_norm", self.init_norm, x, "l2")
        kick = steepest(rng.normal("kick", *x.shape[1:]), "l2")
        label, sign = (y, 1.0) if target is None else (target, -1.0)
        classify = checked(model, label)
        farthest = _length(torch.maximum(x, 1.0 - x))  # no image is farther away than that
        image, delta, best, best_norm = x, torch.zeros_like(x), x, torch.full_like(norm, math.inf)
        for step in watched(range(self.steps + 1), "step"):
            image = image.detach().requires_grad_()
            logits = classify(image)
            fooled, length = margin(logits.detach(), label, target is not None) < 0, _length(delta)
            better = fooled & (length < best_norm)
            best = torch.where(per_pixel(better | best_norm.isinf()), image.detach(), best)
            best_norm = torch.where(better, length, best_norm)
            if step == self.steps:
                break
            loss = F.cross_entropy(logits, label, reduction="none").mul(sign)
            (grad,) = torch.autograd.grad(loss.sum(), image)
            way = steepest(grad, "l2")
            way = torch.where(per_pixel(_length(way) > 0), way, kick)
            rate = 0.01 + 0.99 * (1.0 + math.cos(math.pi * step / self.steps)) / 2.0
            delta = way.mul_(rate).add_(delta)
            norm = torch.minimum(norm * torch.where(fooled, 1.0 - gamma, 1.0 + gamma), farthest)
            delta.mul_(per_pixel(norm / _length(delta).clamp_(min=torch.finfo(delta.dtype).tiny)))
            image = delta.add_(x)
            if self.levels is not None:
                image.mul_(self.levels - 1).round_().div_(self.levels - 1)
            delta = image.clamp_(0.0, 1.0) - x
        return best


def _length(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,) l2 norms."""
    length: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    return length
