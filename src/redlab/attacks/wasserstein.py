"""Attacks that move the mass of an image a short way: a ball of the Wasserstein distance instead of an lp norm.

Wong, Schmidt and Kolter, "Wasserstein adversarial examples via projected Sinkhorn iterations", ICML 2019.
Wu, Wang and Yu, "Stronger and faster Wasserstein adversarial attacks", ICML 2020.

The threat model is that of ``redlab.attacks.transport``: mass moves within its channel, by at most half a window along
each axis, and all channels share one budget. eps is the mean distance in pixels over all mass, so that 0.1 allows
10 % of the mass to move by one pixel. (The public code of Wong et al. takes squared distances, so that two pixels
cost four; here both attacks have the one ball of Wu et al.) Mass that piles up above 1 is cut off by clipping: a pixel
below 1 holds exactly what a plan within the budget brings there, a pixel at 1 at most that. So the total mass stays
what it was, or shrinks by what was cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, is_whole, per_row
from redlab.attacks.margin import margin
from redlab.attacks.project import checked_length, per_pixel
from redlab.attacks.transport import Window, price_of, project_plan
from redlab.attacks.watched import begun
from redlab.rng import SampleRng

LEAST_ENTROPY = 1e-6
"""Below it, the scores are so large that float32 does not tell them apart."""

PIECE = 16
"""Rows in a call of the victim, which a GPU answers in the time of one; the CPU gets them one by one."""


@dataclass(frozen=True, kw_only=True)
class WassersteinPGD(GuardedAttack):
    """x <- clip(project(x + step_size * sign(gradient))), the projection by Sinkhorn iterations (Wong et al.).

    The projection (their algorithm 1, equation 8) has an entropic term, which blurs and spends budget: at the default
    entropy, images of Fashion-MNIST end at about 0.4 eps by exact transport. Returns per row its first adversarial,
    which is the clean image where that is one already; where it finds none, the iterate of highest loss. An image
    without mass or without gradient stays as it is. Costs at most ``steps`` + 1 gradients, and per step some tens of
    Sinkhorn iterations, which cost more than the gradients of a small victim.

    Args:
        eps: radius of the ball in pixels: mean distance by which mass moves, relative to the total mass.
        step_size: length of a step in linf, in units of [0, 1].
        steps: greatest number of steps, at least 1.
        growth: factor, at least 1, by which the radius grows after every ten steps. With 1.1, as in the authors' code,
            eps is no budget but where the search for the least radius begins.
        window: side of the square within which a pixel's mass may go, odd, at least 3.
        entropy: weight of the entropic term, for images of total mass 1: 1 / lambda in the paper.
        dual_steps: greatest number of Sinkhorn iterations per step, at least 1.
        tolerance: share of the mass by which a projection may still be wrong (the image of its plan and that of the
            dual differ by that), and share of the budget that may be left.

    Raises:
        ValueError: ``window``, ``dual_steps`` or ``tolerance`` is out of range.
    """

    eps: float | Tensor = 0.1
    step_size: float | Tensor = 0.1
    steps: int | Tensor = 400
    growth: float | Tensor = 1.0
    window: int = 5
    entropy: float | Tensor = 1e-3
    dual_steps: int = 400
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.window, self.dual_steps, self.tolerance)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. ``rng`` is not used."""
        window, length = Window(self.window, x.device), checked_length("step_size", self.step_size, x, "linf")
        growth = per_row("growth", self.growth, x, low=1.0)

        def step(rows: _Rows, grad: Tensor) -> _Rows:
            wanted = grad.sign().mul_(per_pixel(length[rows.row])).add_(rows.image)
            start, numbers = (rows.score, rows.price), (self.dual_steps, self.tolerance)
            radius = rows.eps * growth[rows.row].double() ** (rows.step // 10)
            moved, score, price = project_plan(window, rows.x, wanted, radius, rows.entropy, start, *numbers)
            return rows._replace(image=moved.clamp_(0.0, 1.0), score=score, price=price)

        return _climb(self, model, x, y, target, step, stop_at_success=True)


@dataclass(frozen=True, kw_only=True)
class WassersteinFrankWolfe(GuardedAttack):
    """z <- z + 2 / (t + 2) * (v - z), v the point of the ball that is farthest along the gradient (Wu et al.).

    v maximises <plan, gradient> + entropy * (entropy of the plan) over the plans within the budget, with the gradient
    divided by its largest entry; of the dual only the price of the budget is left, which a search in a bracket
    finds (their algorithms 1 and 2, section 5). z is not clipped between the steps; the victim sees it clipped. Returns
    per row the iterate of highest loss (the clean image does not count). An image without mass or without gradient
    stays as it is. Costs ``steps`` + 1 gradients, and per step some ten evaluations of plans.

    Args:
        eps: radius of the ball in pixels: mean distance by which mass moves, relative to the total mass.
        steps: number of steps, at least 1.
        window: side of the square within which a pixel's mass may go, odd, at least 3.
        entropy: weight of the entropic term.
        dual_steps: greatest number of prices that a step tries, at least 1.
        tolerance: share of the budget that may be left.

    Raises:
        ValueError: ``window``, ``dual_steps`` or ``tolerance`` is out of range.
    """

    eps: float | Tensor = 0.15
    steps: int | Tensor = 300
    window: int = 5
    entropy: float | Tensor = 1e-3
    dual_steps: int = 50
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        _check(self.window, self.dual_steps, self.tolerance)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. ``rng`` is not used."""
        window = Window(self.window, x.device)

        def step(rows: _Rows, grad: Tensor) -> _Rows:
            # Mass above 1 is cut off, so that more of it there does nothing.
            grad = grad.masked_fill(rows.image > 1.0, 0.0)
            largest = grad.abs().amax((1, 2, 3)).clamp(min=torch.finfo(grad.dtype).tiny)
            score = grad / per_pixel(largest) / per_pixel(rows.entropy)
            near = window.near(score)
            spread, share = score.amax((1, 2, 3)) - score.amin((1, 2, 3)), rows.x / per_pixel(rows.x.sum((1, 2, 3)))
            numbers = (self.dual_steps, self.tolerance)
            price = price_of(window, share, near, spread, rows.eps, rows.price, *numbers)
            toward = window.arrivals(rows.x, near, price).sub_(rows.image).mul_(2.0 / (rows.step + 2))
            return rows._replace(image=toward.add_(rows.image), price=price)

        return _climb(self, model, x, y, target, step, stop_at_success=False)


class _Rows(NamedTuple):
    """The rows still at work."""

    row: Tensor  # (n,) place in the batch
    x: Tensor  # (n, C, H, W) clean images
    label: Tensor  # (n,) true class, or the target
    eps: Tensor
    entropy: Tensor
    steps: Tensor  # (n,) when each has to stop
    image: Tensor  # (n, C, H, W) present iterate
    best: Tensor  # (n, C, H, W) clipped iterate of highest loss
    best_loss: Tensor
    score: Tensor  # (n, C, H, W) dual variables of the last projection
    price: Tensor  # (n,)
    step: int = 0

    def only(self, which: Tensor) -> _Rows:
        """Some of the rows, by an index tensor."""
        kept: dict[str, Any] = {name: t[which] for name, t in zip(self._fields, self[:-1], strict=False)}
        return self._replace(**kept)


@torch.no_grad()
def _climb(
    attack: WassersteinPGD | WassersteinFrankWolfe,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    step: Callable[[_Rows, Tensor], _Rows],
    *,
    stop_at_success: bool,
) -> Tensor:
    """Steps until each row has what it wants, or may do no more.

    Args:
        attack: says eps, entropy and steps.
        model: the network under attack.
        x: (B, C, H, W).
        y: (B,).
        target: (B,) or None.
        step: rows and the gradient of the loss with respect to their clipped images -> rows with new images.
        stop_at_success: whether a row ends with its first adversarial.
    """
    farthest = math.hypot(attack.window // 2, attack.window // 2)
    eps, steps = per_row("eps", attack.eps, x, high=farthest), per_row("steps", attack.steps, x, low=1, whole=True)
    entropy = per_row("entropy", attack.entropy, x, low=LEAST_ENTROPY)
    classify = in_pieces(checked(model, y, target), 1 if x.device.type == "cpu" else PIECE)
    sign, result = 1.0 if target is None else -1.0, x.clone()
    # Plans in float64: a small entropic term blows up last bits, which depend on how the batch was cut.
    mass, budget = x.double(), eps.double()
    rows = _Rows(
        row=torch.arange(len(x), device=x.device),
        x=mass,
        label=y if target is None else target,
        eps=budget,
        entropy=entropy.double(),
        steps=steps,
        image=mass,
        best=x,
        best_loss=torch.full_like(eps, -torch.inf),
        score=torch.zeros_like(mass),
        price=torch.zeros_like(budget),
    )
    stuck = (eps <= 0.0) | (x.sum((1, 2, 3)) <= 0.0)
    at = begun("step", int(steps.max()))
    while True:
        at(rows.step)
        with torch.enable_grad():
            point = rows.image.float().clamp_(0.0, 1.0).requires_grad_()
            logits = classify(point)
            loss = F.cross_entropy(logits, rows.label, reduction="none").mul(sign)
            (grad,) = torch.autograd.grad(loss.sum(), point)
        point, loss, grad = point.detach(), loss.detach(), torch.nan_to_num(grad).double()
        won = stop_at_success & (margin(logits.detach(), rows.label, target is not None) < 0)
        better = won | (loss >= rows.best_loss) if rows.step else won
        rows = rows._replace(
            best=torch.where(per_pixel(better), point, rows.best),
            best_loss=torch.where(better, loss, rows.best_loss),
        )
        done = won | (rows.steps <= rows.step) | (grad == 0.0).flatten(1).all(1)
        done |= stuck if rows.step == 0 else False
        if bool(done.any()):
            result[rows.row[done]] = rows.best[done]
            left = (~done).nonzero()[:, 0]
            if len(left) == 0:
                return result
            rows, grad = rows.only(left), grad[left]
        rows = step(rows, grad)._replace(step=rows.step + 1)


def in_pieces(classify: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """Calls ``classify`` on pieces of one size, whatever the batch, so that a row meets the same rounding in each.

    What a network rounds depends on how many rows it gets. A plan blows the last bits of a gradient up by 1 / entropy,
    a kink of the network does so again, and a few steps later the row is another image.

    Args:
        classify: (n, C, H, W) -> (n, K).
        size: rows of a piece; the last one is filled up with its last row.

    Returns:
        A function like ``classify``, for any number of rows.
    """

    def each(images: Tensor) -> Tensor:
        full = torch.cat([images, images[-1:].expand(-len(images) % size, -1, -1, -1)])
        return torch.cat([classify(full[i : i + size]) for i in range(0, len(full), size)])[: len(images)]

    return each


def _check(window: int, dual_steps: int, tolerance: float) -> None:
    """Raises ValueError if a number that is one for all rows is out of range."""
    Window(window, torch.device("cpu"))
    if not is_whole(dual_steps) or dual_steps < 1:
        raise ValueError(f"dual_steps must be a whole number, at least 1, got {dual_steps}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be above 0 and below 1, got {tolerance}")
