"""Fast adaptive boundary attack: steps onto the linearised decision boundary, drawn towards the clean image.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, per_row
from redlab.attacks.margin import nearest_boundary, wins
from redlab.attacks.project import check_norm, per_pixel
from redlab.attacks.rows import split_by_steps
from redlab.attacks.watched import watched
from redlab.rng import SampleRng

ROUNDS = 12  # of Newton's method in `to_plane`; each finds all pixels that the last one pushed past the range


@dataclass(frozen=True, kw_only=True)
class FAB(GuardedAttack):
    """Minimum-norm attack: x <- clip((1 - alpha) (x + eta d) + alpha (x_clean + eta d_clean)), eta = 1 + overshoot.

    d and d_clean are the smallest moves from x and from the clean image to the boundary linearised at x, within
    [0, 1], and alpha = min(|d| / (|d| + |d_clean|), alpha_max) (algorithm 1). Where x fools the model it is kept
    if it is the nearest so far, and x goes back to x_clean + beta (x - x_clean).

    Untargeted, the boundary is the nearest of those to the other K - 1 classes, and a step costs K - 1 backward passes;
    with a target it is the boundary to that class, for one backward pass. Besides, each step costs two victim calls.
    Nothing is drawn. Returns the nearest image that fools; the last iterate where there is none; the clean image where
    that fools already.

    Args:
        norm: "linf" or "l2", the norm to be made small.
        steps: number of steps, at least 1, a number or one per row.
        beta: how much of the perturbation is kept after a success, 0 to 1.
        alpha_max: greatest pull towards the clean image, 0 to 1.
        overshoot: how much further than the boundary a step goes, as a share of it.
        any_class: with a target, any wrong class counts as success, though the steps aim at the target.

    Raises:
        ValueError: unknown norm.
    """

    norm: str = "linf"
    steps: int | Tensor = 100
    beta: float | Tensor = 0.9
    alpha_max: float | Tensor = 0.1
    overshoot: float | Tensor = 0.05
    any_class: bool = False

    def __post_init__(self) -> None:
        check_norm(self.norm)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. ``rng`` is not used."""
        if isinstance(self.steps, Tensor):
            return split_by_steps(self, model, x, y, target, rng)
        per_row("steps", self.steps, x, low=1, whole=True)
        beta = per_row("beta", self.beta, x, high=1.0)
        alpha_max = per_row("alpha_max", self.alpha_max, x, high=1.0)
        eta = 1 + per_row("overshoot", self.overshoot, x)
        classify = checked(model, y, target)
        with torch.no_grad():
            rows = (~wins(classify(x), y, None if self.any_class else target)).nonzero()[:, 0]
        x_adv = x.clone()
        if len(rows):
            aim = None if target is None else target[rows]
            numbers = (per_pixel(t[rows]) for t in (beta, alpha_max, eta))
            x_adv[rows] = self._search(classify, x[rows], y[rows], aim, self.steps, *numbers)
        return x_adv

    def _search(
        self,
        classify: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        target: Tensor | None,
        steps: int,
        beta: Tensor,
        alpha_max: Tensor,
        eta: Tensor,
    ) -> Tensor:
        """Algorithm 1; the numbers are (n, 1, 1, 1)."""
        order = math.inf if self.norm == "linf" else 2.0

        def size(delta: Tensor) -> Tensor:
            return torch.linalg.vector_norm(delta, ord=order, dim=(1, 2, 3), keepdim=True)  # type: ignore[no-any-return]

        now, best, best_size = x, x, torch.full_like(beta, math.inf)
        for _ in watched(range(steps), "step"):
            gap, slope = self._boundary(classify, now, y, target)
            gap_at_x = gap + (slope * (x - now)).sum((1, 2, 3), keepdim=True)
            here, clean = to_plane(now, slope, gap, self.norm), to_plane(x, slope, gap_at_x, self.norm)
            near, far = size(here), size(clean)
            alpha = torch.minimum(near / (near + far).clamp(min=1e-12), alpha_max)
            now = (now + eta * here).mul_(1 - alpha).add_(alpha * (x + eta * clean)).clamp_(0.0, 1.0)
            with torch.no_grad():
                won = per_pixel(wins(classify(now), y, None if self.any_class else target))
            distance = size(now - x)
            nearer = won & (distance < best_size)
            best, best_size = torch.where(nearer, now, best), torch.where(nearer, distance, best_size)
            now = torch.where(won, x + beta * (now - x), now)
        return torch.where(best_size < math.inf, best, now)

    def _boundary(
        self, classify: Callable[[Tensor], Tensor], images: Tensor, y: Tensor, target: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Value (n, 1, 1, 1) and gradient of the difference of two logits that is zero on the boundary aimed at."""
        images = images.detach().requires_grad_()
        logits = classify(images)
        if target is not None:
            rival = y if self.any_class else logits.scatter(1, target[:, None], -math.inf).argmax(1)
            gap = logits.gather(1, target[:, None]) - logits.gather(1, rival[:, None])
            (slope,) = torch.autograd.grad(gap.sum(), images)
            return per_pixel(gap.detach()[:, 0]), torch.nan_to_num(slope)
        return nearest_boundary(logits, images, y, others(y, logits.shape[1]), self.norm)


def others(y: Tensor, classes: int) -> Tensor:
    """(n,) int64 labels -> (n, classes - 1) int64, every class but each row's own."""
    k = torch.arange(classes - 1, device=y.device)
    return k + (k >= y[:, None]).long()


def to_plane(x: Tensor, slope: Tensor, value: Tensor, norm: str) -> Tensor:
    """The smallest d with value + <slope, d> = 0 and x + d in [0, 1]; as far as the range lets it, otherwise.

    Every pixel moves the way that brings the value down, by min(t, room) in linf and min(t |slope|, room) in l2, room
    being how far it is from the end of the range. The value then falls concavely with t, in straight pieces, so that
    Newton's method comes to the t in question from below, exactly, usually within a few rounds.

    Args:
        x: (n, C, H, W) in [0, 1].
        slope: (n, C, H, W).
        value: (n, 1, 1, 1).
        norm: "linf" or "l2".

    Returns:
        (n, C, H, W).
    """
    pixels = (1, 2, 3)
    scale = slope.abs().amax(pixels, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    weight = slope.abs() / scale  # at most 1, so that no square underflows
    need = (value.abs() / scale).clamp(max=float(x[0].numel()))  # no more than the whole range can give
    way = -slope.sign() * value.sign()
    room = torch.where(way > 0, 1 - x, x)
    fall = weight.square() if norm == "l2" else weight
    speed = weight if norm == "l2" else torch.ones_like(weight)
    t = torch.zeros_like(value)
    for _ in range(ROUNDS):
        free = t * speed < room
        given = (weight * room).masked_fill(free, 0.0).sum(pixels, keepdim=True)
        rate = fall.masked_fill(~free, 0.0).sum(pixels, keepdim=True)
        t = torch.maximum(t, (need - given) / rate.clamp(min=1e-30))
    return torch.minimum(t * speed, room).mul_(way)
