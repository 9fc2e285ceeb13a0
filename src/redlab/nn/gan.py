"""The game of images of "Generative Adversarial Nets" (2014), on logits, with the loss of the generator that does not
saturate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def real_or_fake_loss(real: Tensor, fake: Tensor, weight: Tensor | None = None) -> Tensor:
    """What a discriminator minimises: -log D(real) - log(1 - D(fake)), each a mean.

    Args:
        real: logits of D, any shape.
        fake: (N,) logits of D.
        weight: (N,) of each fake image, which sum to 1; None: all the same.
    """
    fooled = _mean(F.softplus(fake), weight)
    return F.softplus(-real).mean() + fooled


def deception_loss(fake: Tensor, weight: Tensor | None = None) -> Tensor:
    """What a generator minimises: -log D(fake), a mean.

    Args:
        fake: (N,) logits of D.
        weight: (N,) of each image, which sum to 1; None: all the same.
    """
    return _mean(F.softplus(-fake), weight)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean() if weight is None else torch.sum(values * weight)
