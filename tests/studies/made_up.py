"""Rows as an evaluation leaves them, with numbers that a test chooses."""

from collections.abc import Mapping
from typing import Any

import torch

from redlab.metrics import Samples
from redlab.studies import Seen

VALUES = 784.0
"""C * H * W of the images that are not there."""


def rows(
    of: Mapping[str, float],
    *,
    victims: tuple[str, ...] = ("net",),
    settings: tuple[str, ...] = ("",),
    adaptive: float = 0.1,
) -> Samples:
    """Two images in each cell, whose measures are those given on average; the clean ones are nonsense to be left out.

    Args:
        of: measure -> mean over the attacked images.
        victims: their names.
        settings: of the attack.
        adaptive: ``right`` where the attacker knows the defence.
    """
    cells = [(a, s, v, k) for a in (0, 1) for s in range(len(settings)) for v in range(len(victims)) for k in (0, 1)]
    cells = [cell for cell in cells if cell[0] or not (cell[1] or cell[3])]
    columns: dict[str, Any] = {name: [] for name in ("attack", "setting", "victim", "knowledge", "image")}
    for cell in cells:
        for image in (0, 1):
            for name, value in zip(columns, (*cell, image), strict=True):
                columns[name].append(value)
    count = len(columns["image"])
    attacked = torch.tensor(columns["attack"], dtype=torch.float64)
    aware = torch.tensor(columns["knowledge"], dtype=torch.float64)
    step = torch.tensor(columns["image"], dtype=torch.float64) - 0.5  # so that a mean is needed
    for name, mean in of.items():
        columns[name] = torch.where((attacked == 1) & (aware == 0), mean * (1 + 0.1 * step), 1e6)
    columns |= {"attacked": attacked, "label": [0] * count, "judge": columns["victim"]}
    columns["right"] = torch.where(aware == 1, adaptive, 0.9)
    names = {"attack": ("clean", "pgd"), "setting": settings, "victim": victims, "judge": victims}
    return Samples(columns, names | {"knowledge": ("victim", "defence")})


def seen(of: Mapping[str, float], **more: Any) -> Seen:
    """An evaluation without pictures."""
    return Seen(rows=rows(of, **more))
