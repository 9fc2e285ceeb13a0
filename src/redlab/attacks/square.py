"""Square attack: random search by square windows, which asks only for the victim's logits.

Andriushchenko, Croce, Flammarion and Hein, "Square attack: a query-efficient black-box adversarial attack via random
search", ECCV 2020.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, guard, per_row
from redlab.attacks.margin import margin
from redlab.attacks.project import check_norm, checked_length, per_pixel
from redlab.attacks.watched import begun
from redlab.rng import SampleRng

SPAN = 10_000
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The share p of a window is halved after each of these, of ``SPAN`` queries."""


@dataclass(frozen=True, kw_only=True)
class Square(GuardedAttack):
    """Proposes a change in a random window, of area p H W, and keeps it where the margin rises (algorithms 1 to 3).

    Each row has its own windows and signs; in linf, signs that would change nothing in the window are drawn again. A
    row is finished at its first success. The margin is max_{i != y} z_i - z_y, or, with a target,
    z_target - max_{i != target} z_i.

    Args:
        norm: "linf" or "l2".
        eps: budget in that norm, in units of [0, 1], a number or one per row.
        queries: greatest number of images that the victim sees per row, at least 1, a number or one per row.
        p_init: share of the pixels in a window at first, above 0, at most 1, one for all rows.
        rescale: whether windows shrink in step with ``queries``, as in the paper; otherwise as if they were 10,000,
            as in AutoAttack.

    Raises:
        ValueError: unknown norm, or p_init out of range.
    """

    norm: str = "linf"
    eps: float | Tensor = 8 / 255
    queries: int | Tensor = 5000
    p_init: float = 0.8
    rescale: bool = True

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if not 0 < self.p_init <= 1:
            raise ValueError(f"p_init must be above 0 and at most 1, got {self.p_init}")

    @torch.no_grad()
    def craft(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng
    ) -> tuple[Tensor, Tensor]:
        """See ``GuardedAttack``. The cost is in queries.

        The draws are called "start", and "window" in the fork "query <number>".
        """
        if self.rescale and isinstance(self.queries, Tensor):
            return self._craft_each(model, x, y, target, rng)
        eps = per_pixel(checked_length("eps", self.eps, x, self.norm))
        queries = per_row("queries", self.queries, x, low=1, whole=True)
        label, targeted = y if target is None else target, target is not None
        classify = checked(model, y, target)
        start, propose = (_stripes, _linf_window) if self.norm == "linf" else (_tiles, _l2_window)
        x_adv, used, rows = torch.empty_like(x), torch.zeros_like(queries), torch.arange(len(x), device=x.device)
        best, span = start(x, eps, rng), int(queries[0]) if self.rescale else SPAN
        score, query = -margin(classify(best), label, targeted), 1
        at = begun("query", int(queries.max()))
        while True:
            at(query)
            done = (score > 0) | (queries <= query)
            if bool(done.any()):
                x_adv[rows[done]], used[rows[done]] = best[done], query
                left = (~done).nonzero()[:, 0]
                if len(left) == 0:
                    return x_adv, used
                rows, x, label, eps, queries = (t[left] for t in (rows, x, label, eps, queries))
                best, score, rng = best[left], score[left], rng[left]
            share = self.p_init * shrinking(query, span)
            tried = propose(x, best, eps, share, rng.fork(f"query {query}"))
            result = -margin(classify(tried), label, targeted)
            better = result > score
            best, score = torch.where(per_pixel(better), tried, best), torch.where(better, result, score)
            query += 1

    def _craft_each(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng
    ) -> tuple[Tensor, Tensor]:
        """A search for each number of queries that occurs, since windows shrink in step with it."""
        eps, queries = per_row("eps", self.eps, x), per_row("queries", self.queries, x, low=1, whole=True)
        x_adv, used = torch.empty_like(x), torch.zeros_like(queries)
        for count in torch.unique(queries).tolist():
            rows = (queries == count).nonzero()[:, 0]
            part, goal = replace(self, queries=count, eps=eps[rows]), None if target is None else target[rows]
            with guard(model):  # each run seeds a model that draws
                x_adv[rows], used[rows] = part.craft(model, x[rows], y[rows], goal, rng[rows])
        return x_adv, used


def shrinking(query: int, span: int) -> float:
    """What is left of the first share of a window.

    Args:
        query: number of the query, from 1, which is the start.
        span: of how many.

    >>> shrinking(2, 10_000), shrinking(52, 10_000), shrinking(3, 500)
    (1.0, 0.25, 0.5)
    """
    return 0.5 ** bisect_left(HALVINGS, (query - 1) * SPAN // span)


def _stripes(x: Tensor, eps: Tensor, rng: SampleRng) -> Tensor:
    """Vertical stripes one pixel wide, each at the end of the box."""
    return rng.sign("start", x.shape[1], 1, x.shape[3]).mul_(eps).add(x).clamp_(0.0, 1.0)


def _linf_window(x: Tensor, best: Tensor, eps: Tensor, share: float, rng: SampleRng) -> Tensor:
    """``best`` with all of a window at one end of the box, the same end within a channel.

    Where that is what ``best`` is already, which befalls half of the windows of one channel, the ends are drawn again
    until it is not, as in the authors' code: some channels change sides, any set of them with equal chances.
    """
    channels, height, width = x.shape[1:]
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    drawn = rng.uniform("window", 3 + channels)
    sign = torch.where(drawn[:, 2:-1] < 0.5, -1.0, 1.0)[:, :, None, None]
    window = _window(drawn[:, :2], side, height, width)[0]
    tried = torch.where(window, (x + eps * sign).clamp_(0.0, 1.0), best)
    # These do change something: one choice of ends gives ``best``, no more, since the two ends of a pixel differ.
    others = torch.where(window, (x + eps * sign * _flips(drawn[:, -1], channels)).clamp_(0.0, 1.0), best)
    return torch.where(per_pixel((tried == best).flatten(1).all(1)), others, tried)


def _flips(drawn: Tensor, channels: int) -> Tensor:
    """(n, C, 1, 1) of -1 and 1, any but all 1 with equal chances, from uniform draws in [0, 1).

    Args:
        drawn: (n,).
        channels: C. Those beyond the 16th stay as they are.
    """
    places = torch.arange(channels, device=drawn.device)
    ways = (1 << min(channels, 16)) - 1
    bits = (1 + (drawn * ways).long())[:, None] >> places.clamp(max=16)
    return (1.0 - 2.0 * (bits & 1))[:, :, None, None].to(drawn.dtype)


def _l2_window(x: Tensor, best: Tensor, eps: Tensor, share: float, rng: SampleRng) -> Tensor:
    """Moves the perturbation of a second window into the first one, shaped by a bump, with what was left of eps."""
    channels, height, width = x.shape[1:]
    side = max(round(math.sqrt(share * height * width)), 3)
    side = min(side + 1 - side % 2, height, width)
    drawn = rng.uniform("window", 5 + channels)
    sign = torch.where(drawn[:, 5:] < 0.5, -1.0, 1.0)[:, :, None, None]
    (window, row, column), (second, _, _) = (
        _window(corner, side, height, width) for corner in (drawn[:, :2], drawn[:, 2:4])
    )
    turned = per_pixel(drawn[:, 4]) < 0.5
    bump = _bumps(side, x)
    bump = torch.where(turned[:, 0], bump[row, column], bump[column, row])[:, None]

    delta = best - x
    inside = delta * window
    shape = (bump * sign).add_(inside / _size(inside)).mul_(window)
    unused = (eps.square() - delta.square().sum((1, 2, 3), keepdim=True)).clamp_(min=0.0) / channels
    size = (unused + (delta * (window | second)).square().sum((2, 3), keepdim=True)).sqrt()
    delta = torch.where(window, shape * (size / _size(shape)), delta.masked_fill(second, 0.0))
    return _on_sphere(x, delta, eps)


def _tiles(x: Tensor, eps: Tensor, rng: SampleRng) -> Tensor:
    """Bumps of a fifth of the image, side by side, each with its own sign and way up."""
    channels, height, width = x.shape[1:]
    side = max(min(height, width) // 5, 1)
    row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)[None]
    drawn = rng.uniform("start", 1 + channels, -(-height // side), -(-width // side))
    drawn = drawn[:, :, row // side, column // side]
    bump = _bumps(side, x)
    up, across = bump[row % side, column % side], bump[column % side, row % side]
    pattern = torch.where(drawn[:, :1] < 0.5, up, across)
    return _on_sphere(x, torch.where(drawn[:, 1:] < 0.5, -pattern, pattern), eps)


def _bumps(side: int, like: Tensor) -> Tensor:
    """(side, side) of length 1: a bump in the upper half and its negative in the lower one.

    A bump is high at its centre; at Chebyshev distance k from it, it is the sum of 1 / j^2 over j > k.
    """

    def half(height: int) -> Tensor:
        reach = max(height, side) // 2 + 1
        levels = torch.arange(1, reach + 1, device=like.device).double().pow(-2).flip(0).cumsum(0).flip(0)
        up = (torch.arange(height, device=like.device) - height // 2).abs()
        across = (torch.arange(side, device=like.device) - side // 2).abs()
        bump = levels[torch.maximum(up[:, None], across[None])]
        return torch.div(bump, torch.linalg.vector_norm(bump).clamp(min=1e-12))

    both = torch.cat([half(side // 2), -half(side - side // 2)])
    return torch.div(both, torch.linalg.vector_norm(both)).to(like.dtype)


def _window(corner: Tensor, side: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the window is, (n, 1, H, W) bool, and which row (n, H, 1) and column (n, 1, W) of it a pixel is in.

    Args:
        corner: (n, 2) uniform draws in [0, 1) for the place of the upper left corner.
        side: of the window.
        height: H.
        width: W.
    """
    top, left = (corner[:, 0] * (height - side + 1)).long(), (corner[:, 1] * (width - side + 1)).long()
    row = torch.arange(height, device=corner.device) - top[:, None]
    column = torch.arange(width, device=corner.device) - left[:, None]
    rows, columns = (row >= 0) & (row < side), (column >= 0) & (column < side)
    window = (rows[:, :, None] & columns[:, None, :])[:, None]
    return window, row.clamp_(0, side - 1)[:, :, None], column.clamp_(0, side - 1)[:, None, :]


def _size(delta: Tensor) -> Tensor:
    """(n, C, 1, 1) length of each channel, not zero."""
    return torch.linalg.vector_norm(delta, dim=(2, 3), keepdim=True).clamp(min=1e-12)  # type: ignore[no-any-return]


def _on_sphere(x: Tensor, delta: Tensor, eps: Tensor) -> Tensor:
    """``x`` plus eps times the direction of ``delta``, cut to [0, 1]."""
    size: Tensor = torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    return (delta * (eps / size)).add_(x).clamp_(0.0, 1.0)
