"""Images that still fool when they are read back: the end of an attack on the grey values that a file can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import guard, is_whole, logits_of, per_row
from redlab.attacks.margin import margin, wins
from redlab.attacks.pgd import PGD
from redlab.attacks.project import NORMS, per_pixel
from redlab.batch import Attack
from redlab.rng import SampleRng

GROWTHS = tuple(1.0 + 0.005 * 2.0**k for k in range(11))
"""Tried one after the other, up to 6.1: a perturbation of a tenth of a grey value per pixel is nothing below that."""

HALVINGS = 4  # of the way between the first growth that fools and the one before


@dataclass(frozen=True, kw_only=True)
class Stored(GuardedAttack):
    """``attack``, its result rounded to multiples of 1 / ``levels`` so that what fooled the model still does.

    Where rounding to the nearest grey value undoes a success, the perturbation grows a little before it is rounded:
    delta' = round(t * delta) for t = 1.005, 1.01, 1.02, 1.04, ..., and of those that fool, the least up to a sixteenth
    of the way from the t before. For a linear model and a perturbation along its gradient such a delta' is the smallest
    in l2 for what it does. A row that the attack did not fool, or for which no t does, is rounded to the nearest.
    Success is judged on the rounded image.

    Of a clean image that is not on the grid too the sum with delta is rounded.

    An lp budget is kept as `on_grid` says. A budget of another kind (`Limits`) is not known here: such a result is
    rounded to the nearest, as it is. Costs one victim call more than ``attack``, one for the rows that do not fool
    once they are rounded, and up to 15 for those that did before.

    Args:
        attack: any attack. DDN rounds by itself.
        levels: steps from black to white, at least 2: 255 for 8 bits. (DDN counts the grey values, one more.)

    Raises:
        ValueError: ``levels`` is not a whole number or below 2.
    """

    attack: Attack = field(default_factory=PGD)
    levels: int = 255

    def __post_init__(self) -> None:
        if not is_whole(self.levels) or self.levels < 2:
            raise ValueError(f"levels must be a whole number, at least 2, got {self.levels!r}")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``."""
        x_adv = self.attack(model, x, y, target=target, rng=rng)
        return on_grid(model, x, x_adv, y, target, self.levels, Limits.of(self.attack, x))[0]


@dataclass(frozen=True, eq=False)
class Limits:
    """How far each row may go from its clean image.

    Attributes:
        linf: (B,) budget, infinite where there is none.
        l2: (B,) budget, infinite where there is none.
        grows: (B,) bool, False where there is a budget of another kind, which nobody here can check.
    """

    linf: Tensor
    l2: Tensor
    grows: Tensor

    @staticmethod
    def of(attack: Attack, x: Tensor) -> Limits:
        """The limits of an attack, or of the one that it wraps.

        ``eps`` with a ``norm`` of linf or l2 is a budget; without one it is a budget of another kind, and so is
        whatever an attack of another library has among its ``arguments``. An attack without any of that looks for the
        smallest perturbation, or is bounded by other things than size, and may grow.

        Args:
            attack: any attack.
            x: (B, C, H, W) the images.
        """
        while callable(getattr(attack, "attack", None)):
            attack = attack.attack  # type: ignore[attr-defined]
        eps, norm = getattr(attack, "eps", None), getattr(attack, "norm", None)
        free = torch.full((len(x),), math.inf, device=x.device)
        of_another_kind = (eps is not None and norm not in NORMS) or hasattr(attack, "arguments")
        if eps is None or of_another_kind:
            return Limits(free, free, torch.full_like(free, not of_another_kind, dtype=torch.bool))
        budget = per_row("eps", eps, x)
        return Limits(budget if norm == "linf" else free, budget if norm == "l2" else free, budget >= 0)

    @staticmethod
    def cat(parts: list[Limits]) -> Limits:
        """The rows of all parts, in order."""
        return Limits(*(torch.cat([getattr(part, name) for part in parts]) for name in ("linf", "l2", "grows")))


def on_grid(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, target: Tensor | None, levels: int, limits: Limits
) -> tuple[Tensor, Tensor]:
    """Rounds attacked images to multiples of 1 / ``levels``, so that as many rows as possible fool as they did before.

    A row stays in its ball as far as the grid does: each pixel is kept within the multiples that an linf budget leaves,
    and an l2 perturbation is shortened until what it is rounded to fits. Where a pixel has no multiple within the
    budget (it is less than a step, and the clean image is not on the grid) it gets the one nearest to the clean image,
    up to half a step away. So a budget below one step leaves a clean image that is on the grid as it is.

    Args:
        model: the network under attack.
        x: (B, C, H, W) clean images.
        x_adv: (B, C, H, W) what an attack made of them.
        y: (B,) int64 true labels.
        target: (B,) int64, -1 where untargeted; None: all are.
        levels: steps from black to white, at least 1.
        limits: of each row.

    Returns:
        (B, C, H, W) images on the grid; (B,) bool whether they fool: the model says the target, or anything but ``y``.
    """
    target = torch.full_like(y, -1) if target is None else target
    top = int(torch.cat([y, target]).amax())

    def fools(logits: Tensor, rows: Tensor) -> Tensor:
        return torch.where(target[rows] >= 0, wins(logits, y[rows], target[rows]), wins(logits, y[rows]))

    def fooled_before(rows: Tensor) -> Tensor:
        """Or would have, but for the last bits of sums: smallest perturbations end that close to the boundary."""
        logits, aim = logits_of(model, x_adv[rows], top), target[rows]
        lack = torch.where(aim >= 0, margin(logits, aim.clamp(min=0), targeted=True), margin(logits, y[rows]))
        return fools(logits, rows) | (lack <= 1e-4 * logits.abs().amax(1))

    with guard(model), torch.no_grad():
        grid, rows = _Grid(x, x_adv, limits, levels), torch.arange(len(x), device=x.device)
        result = grid.rounded(rows, torch.ones_like(limits.linf))
        won = fools(logits_of(model, result, top), rows)
        rows = (~won & limits.grows & _differ(result, x_adv)).nonzero()[:, 0]
        # A budget may leave no choice: then no growth makes a difference.
        rows = rows[_differ(grid.rounded(rows, torch.full_like(limits.linf[rows], GROWTHS[-1])), result[rows])]
        if len(rows):
            rows = rows[fooled_before(rows)]
        below, found = torch.ones_like(limits.linf), torch.zeros_like(limits.linf)
        for growth in GROWTHS:
            if len(rows) == 0:
                break
            above = torch.full_like(below, growth)
            tried = grid.rounded(rows, above[rows])
            hit = fools(logits_of(model, tried, top), rows)
            done = rows[hit]
            result[done], won[done], found[done] = tried[hit], True, growth
            rows = rows[~hit]
            below[rows] = growth
        rows = (found > GROWTHS[0]).nonzero()[:, 0]  # the first is small enough
        for _ in range(HALVINGS if len(rows) else 0):
            middle = (below + found) / 2
            tried = grid.rounded(rows, middle[rows])
            hit = fools(logits_of(model, tried, top), rows)
            result[rows[hit]], found[rows[hit]], below[rows[~hit]] = tried[hit], middle[rows[hit]], middle[rows[~hit]]
        return result, won


class _Grid:
    """Clean images and their perturbations, to be rounded; in units of a step of the grid."""

    def __init__(self, x: Tensor, x_adv: Tensor, limits: Limits, levels: int) -> None:
        self.x, self.x_adv, self.levels, self.limits = x * levels, x_adv * levels, levels, limits

    def rounded(self, rows: Tensor, growth: Tensor) -> Tensor:
        """(n, C, H, W): x + growth * delta on the grid, in [0, 1] and within the limits.

        Args:
            rows: (n,) int64.
            growth: (n,).
        """
        x, x_adv, linf = self.x[rows], self.x_adv[rows], per_pixel(self.limits.linf[rows]) * self.levels
        slack = 4e-7 * self.levels  # what float32 adds to 8 / 255 must not cost a grey value
        low, high = (x - linf - slack).ceil_(), (x + linf + slack).floor_()
        nearest, none = x.round(), low > high
        low, high = torch.where(none, nearest, low).clamp_(min=0.0), torch.where(none, nearest, high)
        high.clamp_(max=self.levels)

        def image(growth: Tensor) -> Tensor:
            return ((x_adv - x) * per_pixel(growth - 1.0)).add_(x_adv).round_().clamp_(low, high)

        grey, most = image(growth), self.limits.l2[rows] * self.levels
        if bool((long := _length(grey - x) > most).any()):
            least, shorter = torch.zeros_like(growth), growth
            for _ in range(10):
                middle = (least + shorter) / 2
                fits = _length(image(middle) - x) <= most
                least, shorter = torch.where(fits, middle, least), torch.where(fits, shorter, middle)
            grey = torch.where(per_pixel(long), image(least), grey)
        return grey.div_(self.levels)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """(B,) bool, whether the images of a row differ."""
    return (a != b).flatten(1).any(1)


def _length(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B,) l2 norms."""
    length: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    return length
