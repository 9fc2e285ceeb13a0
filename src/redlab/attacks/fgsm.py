"""One-step attacks: the fast gradient sign method and its random-start variant.

Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
Tramer et al., "Ensemble adversarial training: attacks and defenses", ICLR 2018 (R+FGSM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from redlab.attacks.ascend import GradientSteps, ascend
from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import per_row
from redlab.attacks.project import checked_length, per_pixel
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class FGSM(GuardedAttack):
    """x_adv = clip(x + eps * sign grad), one victim call.

    Args:
        eps: linf budget in units of [0, 1], a number or one per row.
    """

    norm: ClassVar[str] = "linf"
    eps: float | Tensor = 8 / 255

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``."""
        return ascend(model, x, y, self.schedule(x, rng), target)

    def schedule(self, x: Tensor, rng: SampleRng | None = None) -> GradientSteps:
        """One step of length eps from the clean image; nothing is drawn.

        Args:
            x: (B, C, H, W) float32 in [0, 1].
            rng: not used.

        Raises:
            ValueError: eps is negative, not finite or of the wrong shape.
        """
        eps = checked_length("eps", self.eps, x, self.norm)
        return GradientSteps(x.detach(), eps, eps, torch.ones_like(eps, dtype=torch.int64))


@dataclass(frozen=True, kw_only=True)
class RFGSM(GuardedAttack):
    """x' = clip(x + alpha * sign(N(0, I))), x_adv = clip(x' + (eps - alpha) * sign grad at x'), one victim call.

    Args:
        eps: linf budget in units of [0, 1], a number or one per row.
        alpha: the part of eps that goes into the random step, at most eps; None means eps / 2.
    """

    norm: ClassVar[str] = "linf"
    eps: float | Tensor = 8 / 255
    alpha: float | Tensor | None = None

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``."""
        return ascend(model, x, y, self.schedule(x, rng), target)

    def schedule(self, x: Tensor, rng: SampleRng | None = None) -> GradientSteps:
        """One step of length eps - alpha from a random corner of the alpha box.

        Args:
            x: (B, C, H, W) float32 in [0, 1].
            rng: the draw is called "start"; None for the default.

        Raises:
            ValueError: eps or alpha is negative, not finite or of the wrong shape; alpha is greater than eps.
        """
        eps = checked_length("eps", self.eps, x, self.norm)
        alpha = eps / 2 if self.alpha is None else per_row("alpha", self.alpha, x)
        if self.alpha is not None and bool((over := alpha > eps).any()):
            raise ValueError(f"alpha must not be greater than eps, got {alpha[over][0]:g} > {eps[over][0]:g}")
        noise = SampleRng.for_batch(x, rng).sign("start", *x.shape[1:])  # the sign of a normal draw is a fair coin
        start = noise.mul_(per_pixel(alpha)).add_(x.detach()).clamp_(0.0, 1.0)
        return GradientSteps(start, eps, eps - alpha, torch.ones_like(eps, dtype=torch.int64))
