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


def hold_then_decay(optimizer: Optimizer, *, epochs: int, hold: float = 0.5) -> LambdaLR:
    """A constant learning rate, then a straight line to 0 at the end of training.

    Args:
        optimizer: its learning rate is the constant.
        epochs: of the whole training, at least 1.
        hold: share of them before the line begins, in [0, 1).

    Raises:
        ValueError: a number is out of range.
    """
    if epochs < 1 or not 0 <= hold < 1:
        raise ValueError(f"epochs must be at least 1 and hold in [0, 1), got {epochs} and {hold}")
    start = hold * epochs
    return LambdaLR(optimizer, lambda epoch: min(1.0, max(0.0, (epochs - epoch) / (epochs - start))))
