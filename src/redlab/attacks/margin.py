"""Success and how far it is: the margin between logits, the difference of logits ratio, and who has won.

Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017 (margin).
Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, section 4 (DLR).
"""

from __future__ import annotations

import math

from torch import Tensor

TINY = 1e-12


def margin(logits: Tensor, label: Tensor, targeted: bool = False) -> Tensor:
    """How far an attack is from its goal, in logits: negative where it has succeeded.

    Untargeted Z_y - max_{i != y} Z_i, targeted max_{i != t} Z_i - Z_t; this is f_6 of Carlini and Wagner
    before it is cut off at -confidence.

    Args:
        logits: (B, K), K >= 2.
        label: (B,) int64, the true class y, or the target t if ``targeted``.
        targeted: whether ``label`` is where to go, not where to leave.

    Returns:
        (B,).
    """
    own = logits.gather(1, label[:, None])[:, 0]
    other = logits.scatter(1, label[:, None], -math.inf).amax(1)
    return other - own if targeted else own - other


def dlr(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """The margin divided by a spread of the logits, so that it changes with neither their scale nor their offset.

    Untargeted, -(z_y - max_{i != y} z_i) / (z_1st - z_3rd) needs three classes; targeted,
    -(z_y - z_target) / (z_1st - (z_3rd + z_4th) / 2) needs four. With fewer the ratio would be constant over large
    regions, and the margin itself is returned.

    Args:
        logits: (B, K), K >= 2.
        y: (B,) int64 true labels.
        target: (B,) int64 classes to be reached, or None.

    Returns:
        (B,), to be raised.
    """
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    if target is None:
        gap = -margin(logits, y)
        return gap if top.shape[1] < 3 else gap / (top[:, 0] - top[:, 2] + TINY)
    gap = logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]
    return gap if top.shape[1] < 4 else gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def wins(logits: Tensor, y: Tensor, target: Tensor | None = None) -> Tensor:
    """(B,) bool: the model says the target, or, where there is none, anything but ``y``.

    Args:
        logits: (B, K).
        y: (B,) int64 true labels.
        target: (B,) int64 classes to be reached, or None.
    """
    said = logits.argmax(1)
    return said != y if target is None else said == target
