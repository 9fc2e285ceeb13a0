"""Moving the mass of an image within a budget: plans, their price, and the projection onto a Wasserstein ball.

The mass of a pixel moves within its channel and within a window around it; moving it by a distance d costs d. The ball
of radius eps around x holds what plans of mean cost <= eps (in pixels, over all mass of all channels) make of x.

Every plan here has the form P_ij = x_i softmax_j(score_j - price * cost_ij) with one score per pixel and one price per
image, and so moves exactly the mass that there is. The price is what makes it fit the budget: the mean cost falls as
the price rises. All of it is in the log domain; a pixel outside the image has the score -inf.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from redlab.attacks.guard import is_whole
from redlab.attacks.project import per_pixel

_OMEGA_STEPS = 5  # Newton steps from below; then exact to float64
_PRICES = 50  # tried per Sinkhorn iteration at most; two or three do as a rule, since the last price is near


class Window:
    """The pixels around a pixel, as the second last axis of a tensor (n, C, size^2, H W).

    Args:
        size: side of the window in pixels, odd, at least 3.
        device: of the costs, which are float64.

    Raises:
        ValueError: ``size`` is even or below 3.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        if not is_whole(size) or size < 3 or size % 2 == 0:
            raise ValueError(f"window must be odd and at least 3, got {size}")
        self.size, self.reach = size, size // 2
        at = torch.arange(size, device=device, dtype=torch.float64) - self.reach
        cost = torch.hypot(at[:, None], at[None]).flatten()
        self.cost = cost[:, None]
        self.total = float(cost.sum())
        self.powers = torch.stack([torch.ones_like(cost), cost, cost.square()])

    def near(self, values: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, C, size^2, H W): the values around each pixel, -inf outside the image."""
        n, channels, height, width = values.shape
        padded = F.pad(values, (self.reach,) * 4, value=-math.inf)
        return F.unfold(padded, self.size).view(n, channels, -1, height * width)

    def moments(self, near: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the window of exp(near - price * cost) times cost^0, cost^1 and cost^2, each.

        Args:
            near: (n, C, size^2, H W).
            price: (n,).

        Returns:
            (n, C, H W) logarithm of a scale, finite; (3, n, C, H W) the sums divided by that scale.
        """
        exponent = near - per_pixel(price) * self.cost
        scale = exponent.amax(2, keepdim=True).clamp_(min=torch.finfo(near.dtype).min)
        return scale[:, :, 0], (self.powers @ exponent.sub_(scale).exp_()).movedim(2, 0)

    def arrivals(self, mass: Tensor, near: Tensor, price: Tensor) -> Tensor:
        """(n, C, H, W): what a plan makes of the image ``mass``.

        Args:
            mass: (n, C, H, W), not negative.
            near: (n, C, size^2, H W) scores around each pixel.
            price: (n,).
        """
        n, _, height, width = mass.shape
        moved = torch.softmax(near - per_pixel(price) * self.cost, 2).mul_(mass.flatten(2)[:, :, None])
        side = self.size - 1
        padded = F.fold(moved.view(n, -1, height * width), (height + side, width + side), self.size)
        return padded[:, :, self.reach : self.reach + height, self.reach : self.reach + width]


def _mean_cost(share: Tensor, zeroth: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The mean cost of a plan, and how fast it falls as the price rises: the mean variance of the cost.

    Args:
        share: (n, C, H, W) mass of each pixel, of total 1 per image.
        zeroth: (n, C, H W), like the others from ``Window.moments``.
        first: see there.
        second: see there.

    Returns:
        (n,), (n,).
    """
    weights, mean = share.flatten(2), first / zeroth
    variance = (second / zeroth - mean.square()).clamp_(min=0.0)  # rounding can leave less
    return (weights * mean).sum((1, 2)), (weights * variance).sum((1, 2))


def price_of(
    window: Window,
    share: Tensor,
    near: Tensor,
    spread: Tensor,
    eps: Tensor,
    start: Tensor,
    steps: int,
    tolerance: float,
) -> Tensor:
    """The least price at which a plan stays within the budget (the dual variable of the budget).

    Newton's method on the logarithm of the mean cost, and bisection where that leaves the bracket. Where it does not
    get there in ``steps`` evaluations, the upper end of the bracket, so that the plan is in the ball in any case.

    Args:
        window: within which mass moves.
        share: (n, C, H, W) mass of each pixel, of total 1 per image.
        near: (n, C, size^2, H W) scores around each pixel.
        spread: (n,) greatest score minus least.
        eps: (n,) budgets in pixels, above 0.
        start: (n,) first guess, not negative.
        steps: greatest number of evaluations.
        tolerance: share of the budget that may be left.

    Returns:
        (n,) prices, not negative.
    """
    # Mass that goes to a place of cost >= 1 is at most exp(spread - price) of what there is.
    result = spread + (window.total / eps).log().clamp_(min=0.0)
    row = torch.arange(len(eps), device=eps.device)  # those still at work, like all that follows
    price, low, high = torch.minimum(start, result), torch.full_like(eps, -1.0), result
    for _ in range(steps):
        cost, slope = _mean_cost(share, *window.moments(near, price)[1])
        fits = cost <= eps
        low, high = torch.where(fits, low, price), torch.where(fits, price, high)
        result[row] = high
        going = ~fits | ((cost < eps * (1.0 - tolerance)) & (price > 0.0))
        newton = (price + cost * (cost / eps / (1.0 - tolerance / 2.0)).log() / slope).clamp(min=0.0)
        inside = (newton > low) & (newton < high)
        price = torch.where(inside, newton, ((low + high) / 2.0).clamp_(min=0.0))
        if not bool(going.all()):
            left = going.nonzero()[:, 0]
            if len(left) == 0:
                break
            row, share, near, eps, price, low, high = (t[left] for t in (row, share, near, eps, price, low, high))
    return result


def project_plan(
    window: Window,
    mass: Tensor,
    wanted: Tensor,
    eps: Tensor,
    entropy: Tensor,
    start: tuple[Tensor, Tensor],
    steps: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The point of the Wasserstein ball around ``mass`` that is nearest to ``wanted``, but for an entropic term.

    With both images divided by the total mass it minimises, over plans P from x to z of mean cost <= eps,
    |w - z|^2 / 2 + entropy * sum P log P: projected Sinkhorn iterations (Wong et al., algorithm 1), which are block
    ascent on the dual. Per iteration: the price that fits the budget together with the sums x, and then the score of
    each pixel from u + log u = v (Lambert's W in the log domain). The authors make one Newton step for the price; that
    can go around in a circle, the exact price cannot. A row stops where the plan's image and the dual's differ by at
    most ``tolerance`` of the mass.

    Args:
        window: within which mass moves.
        mass: (n, C, H, W), not negative, not all zero.
        wanted: (n, C, H, W).
        eps: (n,) budgets in pixels, above 0.
        entropy: (n,) weight of the entropic term, above 0.
        start: scores (n, C, H, W) and prices (n,) to begin with, for instance those of a similar problem.
        steps: greatest number of iterations, at least 1.
        tolerance: see above, and the share of the budget that may be left.

    Returns:
        (n, C, H, W) the image of a plan that is within the budget, and the scores and prices of that plan.
    """
    total, weight = per_pixel(mass.sum((1, 2, 3))), per_pixel(entropy)
    share, goal = mass / total, wanted / total / weight
    score, price = (t.clone() for t in start)
    row = torch.arange(len(mass), device=mass.device)  # those still at work, like all that follows
    work: tuple[Tensor, ...] = (share, share.log(), goal, weight, eps, *start)
    for _ in range(steps):
        part, log_part, pull, strength, budget, now, rate = work
        near = window.near(now)
        rate = price_of(window, part, near, now.amax((1, 2, 3)) - now.amin((1, 2, 3)), budget, rate, _PRICES, tolerance)
        score[row], price[row] = now, rate
        scale, sums = window.moments(near, rate)
        source = log_part - (scale + sums[0].log()).view_as(part)
        scale, sums = window.moments(window.near(source), rate)
        inflow = (scale + sums[0].log()).view_as(part)
        going = (strength * (pull - now) - (now + inflow).exp()).abs().sum((1, 2, 3)) > tolerance
        now = pull - wright_omega(pull + inflow - strength.log())
        work = (part, log_part, pull, strength, budget, now, rate)
        if not bool(going.all()):
            left = going.nonzero()[:, 0]
            if len(left) == 0:
                break
            row, work = row[left], tuple(t[left] for t in work)
    return window.arrivals(mass, window.near(score), price), score, price


def wright_omega(v: Tensor) -> Tensor:
    """The u > 0 with u + log u = v, which is W(exp v) of Lambert's W without the exponential that overflows.

    Args:
        v: any shape; below -80 counts as -80, where u is 1.8e-35.
    """
    v = v.clamp(min=-80.0)  # where u underflows
    u = torch.where(v > 1.0, v - v.clamp(min=1.0).log(), (v - 1.0).clamp_(max=0.0).exp_())  # below the root
    for _ in range(_OMEGA_STEPS):
        u = u * (1.0 + v - u.log()) / (1.0 + u)
    return u
