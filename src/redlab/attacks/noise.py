"""Images changed as much as by an attack, and attacked by nobody: a control for whoever detects attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from redlab.attacks.guard import check_inputs, sound
from redlab.attacks.project import checked_length, per_pixel
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """x + sigma * n, n ~ N(0, I), clipped to [0, 1]; asks no victim.

    Args:
        sigma: standard deviation, in units of [0, 1], a number or one per row.
    """

    control: ClassVar[bool] = True

    sigma: float | Tensor = 8 / 255

    @sound
    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, rng: SampleRng | None = None
    ) -> Tensor:
        """See ``redlab.batch.Attack``. The draw is called "noise".

        Raises:
            ValueError: bad input, or there is a target, which noise cannot aim at.
        """
        check_inputs(x, y, target)
        if target is not None:
            raise ValueError("GaussianNoise is no attack, so it has no target")
        sigma = checked_length("sigma", self.sigma, x, "linf")
        with torch.inference_mode(False), torch.no_grad():
            noise = SampleRng.for_batch(x, rng).normal("noise", *x.shape[1:])
            return (x + per_pixel(sigma) * noise).clamp_(0, 1)
