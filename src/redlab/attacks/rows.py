"""A number of steps per row, for attacks whose loop has one number for all."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from redlab.attacks.guard import per_row
from redlab.batch import Attack
from redlab.rng import SampleRng


def split_by_steps(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng
) -> Tensor:
    """Runs ``attack`` once for each number of steps that occurs, on the rows that want it.

    Args:
        attack: a dataclass whose ``steps`` is a tensor; its other tensors go along with their rows.
        model: the network under attack.
        x: (B, C, H, W).
        y: (B,) int64.
        target: (B,) int64 or None.
        rng: one index per row.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: a field of the attack is of the wrong shape, type or range.
    """
    values: dict[str, Any] = {f.name: getattr(attack, f.name) for f in fields(attack)}  # type: ignore[arg-type]
    own: dict[str, Tensor] = {
        name: per_row(name, value, x, low=-math.inf)
        for name, value in values.items()
        if isinstance(value, Tensor) and name != "steps"
    }
    steps, result = per_row("steps", values["steps"], x, low=1, whole=True), torch.empty_like(x)
    for count in torch.unique(steps).tolist():
        rows = (steps == count).nonzero()[:, 0]
        part: Any = replace(attack, steps=count, **{name: value[rows] for name, value in own.items()})  # type: ignore[type-var]
        goal = None if target is None else target[rows]
        result[rows] = part(model, x[rows], y[rows], target=goal, rng=rng[rows])
    return result
