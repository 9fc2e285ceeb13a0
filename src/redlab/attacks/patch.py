"""PGD confined to a window of the image.

The patch attack of REDRL ("Identification of attack-specific signatures in adversarial examples", section 4), which
goes back to Karmon, Zoran and Goldberg, "LaVAN: localized and visible adversarial noise", ICML 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from redlab.attacks.ascend import ascend
from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import logits_of, per_row
from redlab.attacks.pgd import PGD
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class Patch(GuardedAttack):
    """x <- project(x + step_size * sign grad) inside a square window; outside it no pixel changes.

    Each row has its window at a place of its own, all places being equally likely. Unlike LaVAN's, the patch stays
    within ``eps`` of the image (with eps = 1 it is as free as LaVAN's). Returns the iterate of highest cross-entropy,
    also where that is not enough. Costs ``steps`` victim calls with gradient and one without.

    Args:
        size: side of the window in pixels, at least 1, at most the shorter side of the image.
        eps: linf budget inside the window, in units of [0, 1], a number or one per row.
        step_size: length of a step.
        steps: number of steps, at least 1.
        random_start: whether to start from a uniform draw from the budget instead of the clean image.
    """

    norm: ClassVar[str] = "linf"
    size: int | Tensor = 8
    eps: float | Tensor = 8 / 255
    step_size: float | Tensor = 0.01
    steps: int | Tensor = 100
    random_start: bool = True

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``."""
        pgd = PGD(eps=self.eps, step_size=self.step_size, steps=self.steps, random_start=self.random_start)
        steps, window = pgd.schedule(x, rng), self.window(x, rng)
        steps = replace(steps, start=torch.where(window, steps.start, x))
        order = torch.argsort(steps.steps, descending=True, stable=True)  # in which ascend shows rows to the model
        goal = None if target is None else target[order]
        found = ascend(Confined(model, window[order]), x[order], y[order], steps[order], goal)
        result = torch.empty_like(found)
        result[order] = found
        return result

    def window(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        """Where each row may change.

        Args:
            x: (B, C, H, W) the images.
            rng: the draw is called "place"; None for the default.

        Returns:
            (B, 1, H, W) bool.

        Raises:
            ValueError: a size is not a whole number, below 1, or larger than the image.
        """
        height, width = x.shape[2:]
        size = per_row("size", self.size, x, low=1, high=min(height, width), whole=True)
        place = SampleRng.for_batch(x, rng).uniform("place", 2)
        top, left = (place[:, 0] * (height - size + 1)).long(), (place[:, 1] * (width - size + 1)).long()
        row = torch.arange(height, device=x.device) - top[:, None]
        column = torch.arange(width, device=x.device) - left[:, None]
        rows, columns = ((i >= 0) & (i < size[:, None]) for i in (row, column))
        return (rows[:, :, None] & columns[:, None, :])[:, None]


class Confined(nn.Module):
    """A model whose gradient is zero outside the window of each row, so that no pixel there takes a step.

    Args:
        model: (B, C, H, W) -> (B, K) logits.
        window: (B, 1, H, W) bool. A batch of n images belongs to its first n rows.
    """

    def __init__(self, model: nn.Module, window: Tensor) -> None:
        super().__init__()
        self.model, self.window = model, window

    def forward(self, images: Tensor) -> Tensor:
        """(n, C, H, W) -> (n, K) logits."""
        return logits_of(self.model, torch.where(self.window[: len(images)], images, images.detach()), 0)
