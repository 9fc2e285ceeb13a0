"""The geometry of the norms: the ball, a random point in it, the direction of steepest ascent.

Everything is per row: each image has its own eps.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from redlab.attacks.guard import per_row
from redlab.rng import SampleRng

NORMS = ("linf", "l2")


def check_norm(norm: str) -> None:
    """Raises ValueError if ``norm`` is not one of ``NORMS``.

    Args:
        norm: "linf" or "l2".
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


def checked_length(name: str, value: float | Tensor, x: Tensor, norm: str) -> Tensor:
    """A budget, the length of a step or the like: ``per_row`` up to the greatest distance of two images in [0, 1].

    Args:
        name: name of the parameter, for the message.
        value: a number, or a tensor of shape (B,) or ().
        x: (B, C, H, W) the images.
        norm: "linf" or "l2", in which the length is measured.

    Returns:
        (B,) float32.

    Raises:
        ValueError: wrong type or shape, not finite, negative, or beyond 1 (linf) or the root of C * H * W (l2).
    """
    most = 1.0 if norm == "linf" else math.sqrt(x[0].numel())
    try:
        return per_row(name, value, x, high=most)
    except ValueError as error:
        given = torch.as_tensor(value).flatten() if isinstance(value, Real | Tensor) else torch.zeros(1)
        beyond = given[(given > most) & given.isfinite()]
        if len(beyond) == 0:
            raise
        hint = (
            f"did you mean {float(beyond.amin()):g}/255?" if norm == "linf" else "no two of this size are farther apart"
        )
        raise ValueError(f"{error}; images are in [0, 1]: {hint}") from error


def check_in_ball(name: str, images: Tensor, x: Tensor, eps: Tensor, norm: str) -> None:
    """Refuses images that are farther away than their budget and what float32 may add to it.

    Args:
        name: what they are, for the message.
        images: (B, C, H, W).
        x: (B, C, H, W) centres.
        eps: (B,) radii.
        norm: "linf" or "l2".

    Raises:
        ValueError: a row is outside; the message names the farthest.
    """
    rounding = 1e-6 if norm == "linf" else 1e-6 * math.sqrt(x[0].numel())
    distance = _length(images - x, math.inf if norm == "linf" else 2).flatten()
    beyond = distance - eps * (1 + 1e-5) - rounding
    if bool((beyond > 0).any()):
        row = int(beyond.argmax())
        raise ValueError(f"{name} must be within eps={eps[row]:g} in {norm}, row {row} is {distance[row]:g} away")


def per_pixel(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to be broadcast over images."""
    return values[:, None, None, None]


def _length(images: Tensor, order: float) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(images, ord=order, dim=(1, 2, 3), keepdim=True)
    return length


class Ball:
    """The images within eps of ``x`` and within [0, 1].

    Args:
        x: (B, C, H, W) centres in [0, 1].
        eps: (B,) radii, not negative.
        norm: "linf" or "l2".

    Raises:
        ValueError: unknown norm.
    """

    def __init__(self, x: Tensor, eps: Tensor, norm: str) -> None:
        check_norm(norm)
        self.x, self.eps, self.norm = x, per_pixel(eps), norm
        if norm == "linf":  # the box is intersected with [0, 1] once, so that a projection is one clamp
            self.low, self.high = (x - self.eps).clamp_(min=0.0), (x + self.eps).clamp_(max=1.0)

    def project_head(self, images: Tensor) -> Tensor:
        """The points of the first n balls that are nearest to n ``images`` (l2: nearest in the ball, then clamped).

        Args:
            images: (n, C, H, W), n <= B. Overwritten with the result.
        """
        n = len(images)
        if self.norm == "linf":
            return images.clamp_(self.low[:n], self.high[:n])
        delta = images.sub_(self.x[:n])
        shrink = (self.eps[:n] / _length(delta, 2).clamp_(min=torch.finfo(delta.dtype).tiny)).clamp_(max=1.0)
        # The clamp keeps the point in the ball: it only moves coordinates towards the centre.
        return delta.mul_(shrink).add_(self.x[:n]).clamp_(0.0, 1.0)


def project(images: Tensor, x: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Puts images into the eps ball around ``x``, then into [0, 1].

    Args:
        images: (B, C, H, W).
        x: (B, C, H, W) centres in [0, 1].
        eps: (B,) radii, not negative.
        norm: "linf" or "l2".

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: unknown norm.
    """
    return Ball(x, eps, norm).project_head(images.clone())


def random_start(x: Tensor, eps: Tensor, norm: str, rng: SampleRng) -> Tensor:
    """A point drawn from the eps ball around each ``x``, then put into [0, 1].

    Uniformly in linf. In l2 direction and distance are uniform: nearly all of the volume lies at the surface, in
    directions that raise no loss, and from there an attack has the longer way.

    Args:
        x: (B, C, H, W) in [0, 1].
        eps: (B,) radii, not negative.
        norm: "linf" or "l2".
        rng: the draw is called "start".

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        ValueError: unknown norm.
    """
    check_norm(norm)
    size = x.shape[1:]
    if norm == "linf":
        delta = rng.uniform("start", *size).mul_(2.0).sub_(1.0).mul_(per_pixel(eps))
    else:
        delta = rng.normal("start", *size)
        delta.mul_(per_pixel(eps * rng.uniform("start distance")) / _length(delta, 2))
    return project(delta.add_(x), x, eps, norm)


def steepest(grad: Tensor, norm: str) -> Tensor:
    """The step of length one (in ``norm``) that raises the loss most: sign of the gradient, or unit gradient.

    Args:
        grad: (B, C, H, W). NaN counts as zero, and a zero gradient gives a zero step.
        norm: "linf" or "l2".

    Returns:
        (B, C, H, W), a new tensor.
    """
    grad = torch.nan_to_num(grad)
    if norm == "linf":
        return grad.sign_()
    tiny = torch.finfo(grad.dtype).tiny
    # First to largest entry 1: a confident victim's gradient is so small that its squares would underflow.
    grad.div_(_length(grad, math.inf).clamp_(min=tiny))
    return grad.div_(_length(grad, 2).clamp_(min=tiny))
