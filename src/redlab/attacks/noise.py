"""Images changed as much as by an attack, and attacked by nobody: a control for whoever detects attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.project import checked_length, per_pixel
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(GuardedAttack):
    """x + sigma * n, n ~ N(0, I), clipped to [0, 1]; asks no victim. The draw is called "noise".

    Args:
        sigma: standard deviation, in units of [0, 1], a number or one per row.
    """

    targeted: ClassVar[bool] = False
    control: ClassVar[bool] = True

    sigma: float | Tensor = 8 / 255

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """Adds the noise."""
        sigma = checked_length("sigma", self.sigma, x, "linf")
        return (x + per_pixel(sigma) * rng.normal("noise", *x.shape[1:])).clamp(0, 1)
