"""The rectangular occlusion attack, by which DOA trains.

Wu, Tong and Vorobeychik, "Defending against physically realizable attacks on image classification", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, is_whole, per_row
from redlab.attacks.project import checked_length, per_pixel
from redlab.attacks.watched import watched
from redlab.rng import SampleRng

GREY = 0.5
SEARCHES = ("exhaustive", "gradient")


@dataclass(frozen=True, kw_only=True)
class Occlusion(GuardedAttack):
    """Finds where a grey rectangle raises the cross-entropy most, then colours it by PGD without a budget.

    Searched exhaustively: every place of the grid, each at a call of the victim. By gradient: the ``candidates`` places
    with the largest sum of squared gradients of the clean image, of which the grey rectangle decides. The rectangle
    starts grey; the iterate of highest loss is returned, also where that is not enough.

    Args:
        height: of the rectangle in pixels; that of the image where it is less.
        width: of the rectangle in pixels; that of the image where it is less.
        search: "exhaustive" or "gradient".
        stride: of the grid of places in pixels.
        candidates: of the search by gradient.
        step_size: length of a step in linf, a number or one per row.
        steps: number of steps, at least 1, a number or one per row.

    Raises:
        ValueError: an option is unknown or below 1.
    """

    height: int = 7
    width: int = 7
    search: Literal["exhaustive", "gradient"] = "exhaustive"
    stride: int = 2
    candidates: int = 5
    step_size: float | Tensor = 0.01
    steps: int | Tensor = 30

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"search must be one of {SEARCHES}, got {self.search!r}")
        for name in ("height", "width", "stride", "candidates"):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}")

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. Nothing is drawn."""
        steps = per_row("steps", self.steps, x, low=1, whole=True)
        length = per_pixel(checked_length("step_size", self.step_size, x, "linf"))
        aim, sign, ask = (y, 1.0, checked(model, y)) if target is None else (target, -1.0, checked(model, y, target))

        def losses(images: Tensor) -> Tensor:
            return sign * F.cross_entropy(ask(images), aim, reduction="none")

        window, most = self._place(x, losses), int(steps.max())
        now = torch.where(window, torch.full_like(x, GREY), x)
        best, best_loss = now, torch.full((len(x),), -torch.inf, device=x.device)
        for step in watched(range(most + 1), "step"):
            point = now.requires_grad_(step < most)
            with torch.set_grad_enabled(step < most):
                loss = losses(point)
            if step < most:
                (gradient,) = torch.autograd.grad(loss.sum(), point)
                now = torch.where(window, (point.detach() + length * gradient.sign()).clamp(0, 1), x)
            better = (loss.detach() >= best_loss) & (step <= steps)
            best = torch.where(per_pixel(better), point.detach(), best)
            best_loss = torch.where(better, loss.detach(), best_loss)
        return best

    def _place(self, x: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, 1, H, W) bool, the rectangle of each row."""
        height, width = self._sides(x)
        tops = range(0, x.shape[2] - height + 1, self.stride)
        lefts = range(0, x.shape[3] - width + 1, self.stride)
        places = torch.tensor([(top, left) for top in tops for left in lefts], device=x.device)
        order = torch.arange(len(places), device=x.device).expand(len(x), -1)
        if self.search == "gradient":
            point = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(losses(point).sum(), point)
            weight = gradient.square().sum(1, keepdim=True)
            inside = F.conv2d(weight, weight.new_ones(1, 1, height, width), stride=self.stride).flatten(1)
            order = inside.sort(dim=1, descending=True, stable=True).indices[:, : self.candidates]
        found, worst = order[:, 0], torch.full((len(x),), -torch.inf, device=x.device)
        with torch.no_grad():
            for column in order.unbind(1):
                loss = losses(torch.where(self._window(x, places[column]), torch.full_like(x, GREY), x))
                found, worst = torch.where(loss > worst, column, found), torch.maximum(loss, worst)
        return self._window(x, places[found])

    def _window(self, x: Tensor, place: Tensor) -> Tensor:
        row = torch.arange(x.shape[2], device=x.device) - place[:, :1]
        column = torch.arange(x.shape[3], device=x.device) - place[:, 1:]
        height, width = self._sides(x)
        rows, columns = (row >= 0) & (row < height), (column >= 0) & (column < width)
        return (rows[:, :, None] & columns[:, None, :])[:, None]

    def _sides(self, x: Tensor) -> tuple[int, int]:
        return min(self.height, x.shape[2]), min(self.width, x.shape[3])
