"""What randomised smoothing can promise.

Cohen, Rosenfeld and Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Certificate(NamedTuple):
    """What randomised smoothing is sure of.

    Attributes:
        label: (B,) int64, the class, -1 where it abstains.
        radius: (B,) in L2: no perturbation below it changes the answer; 0 where it abstains.
    """

    label: Tensor
    radius: Tensor


def lower_bound(hits: Tensor, draws: int, alpha: float) -> Tensor:
    """The one-sided bound of Clopper and Pearson: the share of hits is above it with probability 1 - alpha.

    Args:
        hits: (B,) how many of the draws were hits.
        draws: how many there were.
        alpha: in (0, 1).

    >>> round(float(lower_bound(torch.tensor([1000]), 1000, 0.001)), 6)  # 0.001 ** (1 / 1000)
    0.993116
    """
    from scipy.stats import beta  # type: ignore[import-untyped]

    found = beta.ppf(alpha, hits.cpu().numpy(), draws - hits.cpu().numpy() + 1)
    return torch.as_tensor(found, dtype=torch.float64).nan_to_num(0.0)  # without a hit there is no such beta


def votes(classify: Callable[[Tensor], Tensor], x: Tensor, noises: Iterable[Tensor]) -> Tensor:
    """(B, K) how often each class is said of images (B, C, H, W) under noise, one tensor for each vote."""
    said = [classify(x + noise) for noise in noises]
    return torch.stack([F.one_hot(each.argmax(1), each.shape[1]) for each in said]).sum(0)


def certificate(selecting: Tensor, counting: Tensor, *, sigma: float, alpha: float) -> Certificate:
    """CERTIFY of Cohen et al.: some votes select the class, others count it.

    Args:
        selecting: (B, K) votes.
        counting: (B, K) other votes, as many of each image.
        sigma: standard deviation of the noise.
        alpha: how often a certificate may be wrong.
    """
    label = selecting.argmax(1)
    hits = counting.gather(1, label[:, None])[:, 0]
    low = lower_bound(hits, int(counting[0].sum()), alpha).to(label.device)
    sure = low > 0.5
    radius = sigma * torch.special.ndtri(low)
    return Certificate(torch.where(sure, label, -1), torch.where(sure, radius, 0.0).float())
