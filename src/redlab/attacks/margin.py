"""The margin between classes: the loss of Carlini and Wagner, and everybody's test of success."""

from __future__ import annotations

import math

from torch import Tensor


def margin(logits: Tensor, label: Tensor, targeted: bool = False) -> Tensor:
    """How far an attack is from its goal, in logits: negative where it has succeeded.

    Untargeted Z_y - max_{i != y} Z_i, targeted max_{i != t} Z_i - Z_t; this is f_6 of Carlini and Wagner, S&P 2017,
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
