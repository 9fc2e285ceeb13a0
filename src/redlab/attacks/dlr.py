"""The margin between logits, and the difference of logits ratio (DLR): losses that confident victims do not flatten.

Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, section 4.
"""

from __future__ import annotations

import math

from torch import Tensor

TINY = 1e-12


def margin(logits: Tensor, label: Tensor) -> Tensor:
    """max_{i != label} z_i - z_label: positive where another class wins.

    Args:
        logits: (n, K), K >= 2.
        label: (n,) int64.

    Returns:
        (n,).
    """
    column = label[:, None]
    others: Tensor = logits.scatter(1, column, -math.inf).max(1).values
    return others - logits.gather(1, column)[:, 0]


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """The margin divided by a spread of the logits, so that it changes with neither their scale nor their offset.

    Untargeted, -(z_y - max_{i != y} z_i) / (z_1st - z_3rd) needs three classes; targeted,
    -(z_y - z_target) / (z_1st - (z_3rd + z_4th) / 2) needs four. With fewer the ratio would be constant over large
    regions, and the margin itself is returned.

    Args:
        logits: (n, K), K >= 2.
        y: (n,) int64 true labels.
        target: (n,) int64 classes to be reached, or None.

    Returns:
        (n,), to be raised.
    """
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    if target is None:
        gap = margin(logits, y)
        return gap if top.shape[1] < 3 else gap / (top[:, 0] - top[:, 2] + TINY)
    gap = logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]
    return gap if top.shape[1] < 4 else gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def wins(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """(n,) bool: the model says the target, or, where there is none, anything but ``y``.

    Args:
        logits: (n, K).
        y: (n,) int64 true labels.
        target: (n,) int64 classes to be reached, or None.
    """
    said = logits.argmax(1)
    return said != y if target is None else said == target
