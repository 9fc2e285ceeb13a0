"""Projected gradient descent.

Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from redlab.attacks.ascend import GradientSteps, ascend
from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import per_row
from redlab.attacks.project import check_norm, checked_length, random_start
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class PGD(GuardedAttack):
    """x <- project(x + step_size * direction): the sign of the gradient (linf) or the unit gradient (l2).

    Returns the iterate of highest loss. Costs ``steps`` victim calls with gradient and one without.

    Args:
        norm: "linf" or "l2".
        eps: budget in that norm, in units of [0, 1], a number or one per row.
        step_size: length of a step in that norm; None means eps / 4.
        steps: number of steps, at least 1.
        random_start: whether to start from a draw from the ball (``random_start``) instead of the clean image.

    Raises:
        ValueError: unknown norm.
    """

    norm: str = "linf"
    eps: float | Tensor = 8 / 255
    step_size: float | Tensor | None = None
    steps: int | Tensor = 10
    random_start: bool = True

    def __post_init__(self) -> None:
        check_norm(self.norm)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``."""
        return ascend(model, x, y, self.schedule(x, rng), target)

    def schedule(self, x: Tensor, rng: SampleRng | None = None) -> GradientSteps:
        """The steps of each row, and its start.

        Args:
            x: (B, C, H, W) float32 in [0, 1].
            rng: the draws are called "start" and "start distance"; None for the default.

        Raises:
            ValueError: a number is out of range, not finite or of the wrong shape.
        """
        x = x.detach()
        eps = checked_length("eps", self.eps, x, self.norm)
        step_size = eps / 4 if self.step_size is None else checked_length("step_size", self.step_size, x, self.norm)
        steps = per_row("steps", self.steps, x, low=1, whole=True)
        start = random_start(x, eps, self.norm, SampleRng.for_batch(x, rng)) if self.random_start else x
        return GradientSteps(start, eps, step_size, steps, self.norm)
