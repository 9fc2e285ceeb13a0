"""The attacks of Carlini and Wagner: a margin loss weighed against a distance, minimised by Adam.

Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017: sections VI.A (l2), VI.C (linf).
The linf form with a budget is the one that REDRL uses.

In the code ``lack`` is the margin plus the confidence: negative where an image counts as adversarial.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, per_row
from redlab.attacks.margin import margin
from redlab.attacks.project import Ball, checked_length, per_pixel
from redlab.attacks.rows import split_by_steps
from redlab.attacks.watched import watched
from redlab.rng import SampleRng

_EDGE = 0.02
"""Black and white pixels start this far from the ends of the tanh, where it has no slope: from the ends themselves
they would need hundreds of Adam steps to get away, or never would. In between all is the papers' (tanh w + 1) / 2, and
no pixel is quicker than there: a tanh squeezed for all pixels takes longer steps, and overshoots."""

_STEEP = 1e18
"""Gradients count as no steeper, so that their squares, of which Adam keeps a mean, do not overflow float32."""

_PATIENCE = 200
"""Steps without progress after which a row leaves a search step. Adam overshoots the boundary, and comes back no sooner
than its running mean of squares has forgotten the steep gradients before it, which takes hundreds of steps. With the
authors' patience of a tenth of the steps norms were up to 50 % larger; with this one they are what they are without."""


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerL2(GuardedAttack):
    """Minimises |x' - x|_2^2 + c * max(lack, 0) over w, where x' = (tanh w + 1) / 2; binary search over c per row.

    Pixels that are black or white, or nearly so, have a tanh that reaches a little beyond [0, 1], so that they can move
    (see ``_EDGE``).

    After a search step c goes halfway towards the greatest value that failed for the row if it succeeded; if not,
    halfway towards the least that succeeded, or to 10 c while none has. A row leaves a search step early if in 200
    steps neither its loss, nor the lowest loss so far, nor the norm of its smallest adversarial fell by 0.01 % (the
    authors ask for the loss alone, and after a tenth of the steps; see ``_PATIENCE``). Returns per row its smallest
    adversarial (the clean image itself where that is one already), or the last iterate of the last search step where it
    found none. Costs at most (steps + 1) * binary_search_steps gradients.

    Args:
        confidence: margin in logits that counts as success.
        c: first weight of the margin, and the only one if ``binary_search_steps`` is 1.
        lr: learning rate of Adam, on w.
        steps: Adam steps in a search step, at least 1.
        binary_search_steps: number of values of c to try, at least 1.
    """

    confidence: float | Tensor = 0.0
    c: float | Tensor = 1e-3
    lr: float | Tensor = 0.01
    steps: int | Tensor = 1000
    binary_search_steps: int = 9

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. ``rng`` is not used."""
        if isinstance(self.steps, Tensor):
            return split_by_steps(self, model, x, y, target, rng)
        per_row("steps", self.steps, x, low=1, whole=True)
        per_row("binary_search_steps", self.binary_search_steps, x, low=1, whole=True)
        c, confidence, lr = (per_row(n, getattr(self, n), x) for n in ("c", "confidence", "lr"))
        goal = _Goal(model, y, target)
        rows = _Rows.start(x, goal.label, confidence, c, lr)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        for _ in watched(range(self.binary_search_steps), "search for c"):
            rows.c = c
            found, rows.best, rows.norm = self._search(goal, rows)
            high = torch.where(found, torch.minimum(high, c), high)
            low = torch.where(found, low, torch.maximum(low, c))
            c = torch.where(high.isinf(), c * 10.0, (low + high) / 2.0)
        return rows.best

    def _search(self, goal: _Goal, everyone: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        """One value of c per row: whether it led to an adversarial, the best image so far and its squared norm."""
        rows = everyone.restarted()
        best, best_norm = rows.best.clone(), rows.norm.clone()
        lowest, smallest = torch.full_like(rows.norm, math.inf), torch.full_like(rows.norm, math.inf)
        found, progress = smallest.clone(), torch.stack([lowest] * 3)
        for step in watched(range(self.steps + 1), "step"):
            image, slope = rows.image()
            lack, grad = goal.evaluate(image, rows.label, rows.confidence)
            delta = image - rows.x
            norm = delta.square().sum((1, 2, 3))
            rows.keep_smallest(image, lack < 0, norm)
            smallest = torch.where(lack < 0, torch.minimum(smallest, norm), smallest)
            loss = norm + rows.c * lack.clamp(min=0.0)
            lowest = torch.minimum(lowest, loss)
            grad = grad.mul_(per_pixel(rows.c * (lack > 0))).add_(delta, alpha=2.0)
            grad.mul_(slope)
            if step % _PATIENCE == 0 or step == self.steps:
                found[rows.index], best[rows.index], best_norm[rows.index] = smallest, rows.best, rows.norm
                before, progress = progress, torch.stack([loss, lowest, smallest])
                stays = (progress < 0.9999 * before).any(0) if step else lack >= 0
                left = 0 if step == self.steps else int(stays.sum())
                if left == 0:
                    break
                if left < len(stays):
                    rows, grad, progress = rows.only(stays), grad[stays], progress[:, stays]
                    lowest, smallest = lowest[stays], smallest[stays]
            rows.adam_step(grad)
        return found.isfinite(), best, best_norm


@dataclass(frozen=True, kw_only=True)
class CarliniWagnerLinf(GuardedAttack):
    """The linf attack, in two forms.

    With a budget (REDRL): minimises |delta|_2^2 + c * max(lack, 0) by Adam on delta, put back into the eps box and into
    [0, 1] after every step. Returns per row the iterate of least max(lack, 0), and of these the one of least l2 norm.
    Costs ``steps`` + 1 gradients.

    Without (``eps=None``, the original): minimises sum_i max(|delta_i| - tau, 0) + c * max(lack, 0) over w, where
    x' = (tanh w + 1) / 2. Where this gets below 1e-4 c, tau becomes 0.9 * min(tau, |delta|_inf) and Adam starts afresh;
    where it does not in ``steps`` steps, c doubles. A row ends when tau is below 1/256 or c would exceed 20. Each row
    has its own tau, c and clock, so all rows move at every call of the victim. Returns per row its smallest adversarial
    in linf (the clean image itself where that is one already), or its last iterate where it found none. Costs a few
    hundred gradients, many more where c must grow.

    Args:
        eps: linf budget in units of [0, 1], a number or one per row; None for the smallest perturbation.
        confidence: margin in logits that counts as success.
        c: weight of the margin (its first value without a budget); None means 5, or 1e-5 without a budget.
        lr: learning rate of Adam.
        steps: number of Adam steps (per value of tau and c without a budget), at least 1.
    """

    norm: ClassVar[str] = "linf"
    eps: float | Tensor | None = 8 / 255
    confidence: float | Tensor = 0.0
    c: float | Tensor | None = None
    lr: float | Tensor = 0.005
    steps: int | Tensor = 100

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. ``rng`` is not used."""
        if isinstance(self.steps, Tensor):
            return split_by_steps(self, model, x, y, target, rng)
        per_row("steps", self.steps, x, low=1, whole=True)
        confidence, lr = per_row("confidence", self.confidence, x), per_row("lr", self.lr, x)
        default = 1e-5 if self.eps is None else 5.0
        c = per_row("c", default if self.c is None else self.c, x)
        goal = _Goal(model, y, target)
        rows = _Rows.start(x, goal.label, confidence, c, lr)
        if self.eps is None:
            return self._shrink(goal, rows, self.steps)
        eps = checked_length("eps", self.eps, x, self.norm)
        return self._project(goal, rows, self.steps, Ball(rows.x, eps, self.norm))

    def _project(self, goal: _Goal, everyone: _Rows, steps: int, ball: Ball) -> Tensor:
        """The form with a budget."""
        rows = everyone.restarted()
        rows.w, least = rows.x.clone(), rows.norm.clone()  # here w is the image itself
        for step in watched(range(steps + 1), "step"):
            image = rows.w.clone()
            lack, grad = goal.evaluate(image, rows.label, rows.confidence)
            hinge, delta = lack.clamp(min=0.0), image - rows.x
            norm = delta.square().sum((1, 2, 3))
            better = (hinge < least) | ((hinge == least) & (norm < rows.norm))
            rows.best = torch.where(per_pixel(better), image, rows.best)
            least, rows.norm = torch.where(better, hinge, least), torch.where(better, norm, rows.norm)
            if step < steps:
                rows.adam_step(grad.mul_(per_pixel(rows.c * (lack > 0))).add_(delta, alpha=2.0))
                ball.project_head(rows.w)
        return rows.best

    def _shrink(self, goal: _Goal, everyone: _Rows, steps: int) -> Tensor:
        """The form without a budget. ``norm`` is the linf norm here."""
        rows, best = everyone.restarted(), everyone.best.clone()
        tau, tries, ended = torch.ones_like(rows.c), torch.zeros_like(rows.c), torch.zeros_like(rows.c) > 0
        step = 0
        while True:
            image, slope = rows.image()
            lack, grad = goal.evaluate(image, rows.label, rows.confidence)
            delta = image - rows.x
            norm = delta.abs().amax((1, 2, 3))
            rows.keep_smallest(image, (lack < 0) & ~ended, norm)

            excess = delta.abs().sub_(per_pixel(tau)).clamp_(min=0.0).sum((1, 2, 3))
            done = (lack < 0) & (excess < 1e-4 * rows.c)
            given_up = ~done & (tries >= steps)
            tau = torch.where(done, torch.minimum(tau, norm) * 0.9, tau)
            rows.c = torch.where(given_up, rows.c * 2.0, rows.c)
            ended = ended | (tau < 1 / 256) | (given_up & ((rows.c > 20.0) | (rows.c == 0.0)))
            tries = torch.where(done | given_up, 0.0, tries) + 1.0  # the step below counts
            rows.forget(done)

            outside = delta.sign().mul_(delta.abs() > per_pixel(tau))
            grad = grad.mul_(per_pixel(rows.c * (lack > 0))).add_(outside).mul_(slope)
            if step % 10 == 0:  # one wait for the device in ten steps
                best[rows.index] = rows.best
                stays = ~ended
                left = int(stays.sum())
                if left == 0:
                    return best
                if left < len(stays):
                    rows, grad = rows.only(stays), grad[stays]
                    tau, tries, ended = tau[stays], tries[stays], ended[stays]
            rows.adam_step(grad)
            step += 1


class _Goal:
    """What the victim is to say."""

    def __init__(self, model: nn.Module, y: Tensor, target: Tensor | None) -> None:
        self.label, self.targeted = y if target is None else target, target is not None
        self.classify = checked(model, self.label)

    def evaluate(self, image: Tensor, label: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) margin plus confidence, and its gradient with respect to the image, NaN taken for 0; see ``_STEEP``."""
        image = image.detach().requires_grad_()
        lack = margin(self.classify(image), label, self.targeted) + confidence
        (grad,) = torch.autograd.grad(lack.sum(), image)
        return lack.detach(), torch.nan_to_num(grad).clamp_(-_STEEP, _STEEP)


@dataclass
class _Rows:
    """The rows at work; every field has one entry per row.

    Attributes:
        index: place in the batch.
        x: clean image.
        label: the class to leave, or to reach.
        confidence: margin that counts as success.
        c: weight of the margin.
        lr: learning rate.
        best: smallest adversarial so far, or the last iterate.
        norm: its norm, infinite where there is no adversarial yet.
        start_w: first w.
        start_p: (tanh w + 1) / 2 there, so that the first iterate is the clean image to the bit.
        stretch: how far a pixel moves per change of p; above 1 near black and white, so that the other end is in reach.
        w: what Adam moves.
        mean: Adam's running mean of the gradient.
        square: Adam's running mean of its square.
        age: Adam's steps so far.
    """

    index: Tensor
    x: Tensor
    label: Tensor
    confidence: Tensor
    c: Tensor
    lr: Tensor
    best: Tensor
    norm: Tensor
    start_w: Tensor
    start_p: Tensor
    stretch: Tensor
    w: Tensor
    mean: Tensor
    square: Tensor
    age: Tensor

    @classmethod
    def start(cls, x: Tensor, label: Tensor, confidence: Tensor, c: Tensor, lr: Tensor) -> _Rows:
        """All rows, at the clean image."""
        p = x.clamp(_EDGE, 1.0 - _EDGE)
        w, stretch = p.logit().mul_(0.5), torch.maximum((1.0 - x) / (1.0 - p), x / p)  # atanh(2 p - 1) = logit(p) / 2
        index, zero = torch.arange(len(x), device=x.device), torch.zeros_like(x)
        norm, start_p = torch.full_like(c, math.inf), torch.sigmoid(2.0 * w)
        return cls(
            *(index, x, label, confidence, c, lr, x, norm, w, start_p, stretch),
            *(w, zero, zero, torch.zeros_like(c)),
        )

    def restarted(self) -> _Rows:
        """The same rows back at the clean image, with fresh tensors for Adam to write to."""
        state = [self.start_w.clone(), torch.zeros_like(self.x), torch.zeros_like(self.x), torch.zeros_like(self.c)]
        return _Rows(*[getattr(self, f.name) for f in fields(self)[:-4]], *state)

    def only(self, rows: Tensor) -> _Rows:
        """Some of the rows, by a bool mask."""
        return _Rows(*[getattr(self, f.name)[rows] for f in fields(self)])

    def image(self) -> tuple[Tensor, Tensor]:
        """The image, and the slope of its pixels as functions of w."""
        p = torch.sigmoid(2.0 * self.w)  # (tanh w + 1) / 2
        image = (p - self.start_p).mul_(self.stretch).add_(self.x).clamp_(0.0, 1.0)
        return image, (1.0 - p).mul_(p).mul_(self.stretch).mul_(2.0)

    def keep_smallest(self, image: Tensor, hit: Tensor, norm: Tensor) -> None:
        """Keeps an iterate where it is the smallest adversarial, or where none has been found yet."""
        better = hit & (norm < self.norm)
        self.best = torch.where(per_pixel(better | self.norm.isinf()), image, self.best)
        self.norm = torch.where(better, norm, self.norm)

    def forget(self, which: Tensor) -> None:
        """Adam starts afresh in some rows, by a bool mask."""
        keep = (~which).float()
        self.mean.mul_(per_pixel(keep))
        self.square.mul_(per_pixel(keep))
        self.age.mul_(keep)

    def adam_step(self, grad: Tensor) -> None:
        """Kingma and Ba, algorithm 1, with the usual constants and a clock per row."""
        grad = grad.clamp(-_STEEP, _STEEP)  # again, since c may be large
        self.age.add_(1.0)
        self.mean.lerp_(grad, 0.1)
        self.square.mul_(0.999).addcmul_(grad, grad, value=0.001)
        root = (self.square / per_pixel(1.0 - 0.999**self.age)).sqrt_().add_(1e-8)
        self.w.sub_((self.mean / root).mul_(per_pixel(self.lr / (1.0 - 0.9**self.age))))
