"""The games of images that methods play.

Those of "Generative Adversarial Nets" (2014), on logits, with the loss of the generator that does not saturate, and
those of "Least Squares Generative Adversarial Networks" (2017), on scores.
"""

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


def least_squares_real_or_fake_loss(real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator minimises: half the mean square of D(real) - 1, and half that of D(fake).

    Args:
        real: scores of D, any shape.
        fake: likewise.
    """
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


def least_squares_deception_loss(fake: Tensor) -> Tensor:
    """What a generator minimises: the mean square of D(fake) - 1.

    Args:
        fake: scores of D, any shape.
    """
    return (fake - 1).square().mean()


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean() if weight is None else torch.sum(values * weight)
