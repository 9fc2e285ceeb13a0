"""Learning-rate schedules of papers, for ``scheduler`` in a YAML."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warm_up(
    optimizer: Optimizer,
    *,
    epochs: int = 10,
    start: float = 0.01,
    milestones: Sequence[int] = (40, 70, 90),
    gamma: float = 0.1,
) -> LambdaLR:
    """The learning rate of REDRL's code: a linear start, then steps; one epoch early, as their loop counts.

    In epoch e = 0, 1, ... the rate is ``start + (1 - start) (e + 1) / epochs`` of the base rate until ``epochs`` are
    over, and ``gamma ** k`` of it after k of the milestones, of which each acts in the epoch before it.

    Args:
        optimizer: its learning rate is the base rate.
        epochs: of the start; 0 for none.
        start: share of the base rate that it starts from, in epoch -1.
        milestones: epochs.
        gamma: factor of each of them.

    Raises:
        ValueError: ``epochs`` is negative.
    """
    if epochs < 0:
        raise ValueError(f"scheduler.epochs must be at least 0, got {epochs}")

    def factor(epoch: int) -> float:
        rising = start + (1 - start) * (epoch + 1) / epochs if epoch + 1 < epochs else 1.0
        return rising * math.prod(gamma for milestone in milestones if epoch + 1 >= milestone)

    return LambdaLR(optimizer, factor)
