"""Metrics per image, each (B, ...) x (B, ...) -> (B,) float64. Means over images are the caller's."""

from __future__ import annotations

import torch
from torch import Tensor


def _rows(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    return a.flatten(1).double(), b.flatten(1).double()


def pixel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of two images over all C*H*W entries, not squared: d of CDD-RED (2022), section 5.

    Args:
        a: (B, C, H, W) in units of [0, 1].
        b: (B, C, H, W).

    Returns:
        (B,) float64.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> pixel_distance(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5))  # sqrt(12 * 0.25)
        tensor([1.7321], dtype=torch.float64)
    """
    first, second = _rows(a, b)
    return (first - second).square().sum(1).sqrt()


def logit_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance of two logit vectors, not squared. Comparable for one classifier only.

    Args:
        a: (B, K) logits.
        b: (B, K) logits.

    Returns:
        (B,) float64.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> logit_distance(torch.tensor([[0.0, 3.0]]), torch.tensor([[4.0, 0.0]]))
        tensor([5.], dtype=torch.float64)
    """
    return pixel_distance(a, b)


def prediction_alignment(a: Tensor, b: Tensor) -> Tensor:
    """Whether two logit vectors name the same class: one image's share of PA (CDD-RED, section 5).

    Args:
        a: (B, K) logits.
        b: (B, K) logits.

    Returns:
        (B,) float64, 1 where the arg max agrees, else 0.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> prediction_alignment(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 9.0], [0.0, 9.0]]))
        tensor([1., 0.], dtype=torch.float64)
    """
    first, second = _rows(a, b)
    return (first.argmax(1) == second.argmax(1)).double()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a data range of 1. Equal images get 100 dB, so that means stay finite.

    Args:
        a: (B, C, H, W) in units of [0, 1].
        b: (B, C, H, W).

    Returns:
        (B,) float64, at most 100.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.1)).round(decimals=3)
        tensor([20.], dtype=torch.float64)
    """
    first, second = _rows(a, b)
    mse = (first - second).square().mean(1)
    return -10 * torch.log10(mse.clamp(min=1e-10))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between two perturbations, flattened. Defined as 0 where one of them is zero (it says nothing there).

    Args:
        a: (B, C, H, W), the true perturbation.
        b: (B, C, H, W), its estimate.

    Returns:
        (B,) float64 in [-1, 1].

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
        tensor([1., 0.], dtype=torch.float64)
    """
    first, second = _rows(a, b)
    norms = (first.square().sum(1) * second.square().sum(1)).sqrt()
    return (first * second).sum(1) / torch.where(norms > 0, norms, 1.0)
