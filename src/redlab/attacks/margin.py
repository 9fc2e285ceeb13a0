"""Success and how far it is: margin, difference of logits ratio, nearest linearised boundary, and who has won.

Carlini and Wagner, "Towards evaluating the robustness of neural networks", S&P 2017 (margin).
Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
ICML 2020, section 4 (DLR).
Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", CVPR 2016
(nearest boundary).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from redlab.attacks.project import per_pixel

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


def nearest_boundary(logits: Tensor, images: Tensor, y: Tensor, others: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Of the boundaries between y and other classes, linearised at the images, the one that is nearest in ``norm``.

    With f_k = Z_k - Z_y it is k with the least |f_k| / |grad f_k|_*, |.|_* the dual norm (DeepFool, algorithm 2, there
    for l2). One backward pass for each class looked at; the graph is freed.

    Args:
        logits: (n, K), with their graph.
        images: (n, C, H, W), which the logits were computed from.
        y: (n,) int64 true labels.
        others: (n, m) int64, the classes to look at, none of them y.
        norm: "linf" or "l2".

    Returns:
        f_k (n, 1, 1, 1) and its gradient (n, C, H, W), both 0 where no gradient is finite and not 0.
    """
    gaps = logits.gather(1, others) - logits.gather(1, y[:, None])
    least = torch.full_like(gaps[:, 0], math.inf).detach()
    nearest, slope = torch.zeros_like(least), torch.zeros_like(images)
    for k, gap in enumerate(gaps.unbind(1), start=1):
        (grad,) = torch.autograd.grad(gap.sum(), images, retain_graph=k < gaps.shape[1])
        steepness = torch.linalg.vector_norm(grad, ord=1.0 if norm == "linf" else 2.0, dim=(1, 2, 3))
        distance = gap.detach().abs() / steepness
        nearer = distance < least  # never where the gradient is 0 or not a number
        least, nearest = torch.where(nearer, distance, least), torch.where(nearer, gap.detach(), nearest)
        slope = torch.where(per_pixel(nearer), grad, slope)
    return per_pixel(nearest), slope
