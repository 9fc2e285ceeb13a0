"""RP2: perturbations without a budget, confined to masks that look like stickers.

Eykholt et al., "Robust physical-world attacks on deep learning visual classification", CVPR 2018, for single images as
in ADD-Defense ("Towards defending widespread adversarial examples via perturbation-invariant representation").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, is_whole, per_row
from redlab.attacks.project import checked_length, per_pixel
from redlab.attacks.watched import watched
from redlab.rng import SampleRng

SIGN_MASKS = (
    ((15, 18, 8, 9), (18, 19, 20, 22), (22, 24, 9, 12), (24, 25, 18, 19)),
    ((7, 8, 11, 15), (9, 11, 9, 18), (12, 12, 12, 16), (13, 13, 12, 15)),
    ((15, 16, 16, 20), (17, 18, 13, 24), (19, 20, 16, 20), (21, 21, 18, 18)),
    (
        *((3, 3, 13, 13), (4, 4, 12, 14), (5, 5, 13, 13)),
        *((8, 8, 16, 16), (9, 11, 15, 17), (12, 13, 16, 16)),
        *((11, 11, 2, 4), (12, 12, 1, 6), (13, 13, 3, 5)),
    ),
    ((7, 8, 11, 20), (23, 24, 11, 20)),
)

"""Five masks for traffic signs of 32x32 pixels, of 30, 49, 45, 29 and 40 pixels. The first is that of the public code
of Wu, Tong and Vorobeychik (ICLR 2020). Of the next three, drawn by hand there, these have the extent and the number of
pixels, not the shape. The last stands for one that was not published."""

_TINY = 1e-60
"""What Adam adds to the root of the mean square. Beside the usual 1e-8 the gradient of a sure victim is nothing; Adam's
means are float64, in which neither the square of the least float32 nor that of the greatest is lost."""


@dataclass(frozen=True, kw_only=True)
class RP2(GuardedAttack):
    """Lowers penalty * |x' - x|_2 - CE(f(x'), y) by Adam over the pixels of a mask, clipped to [0, 1] after each step.

    Equation (3) of the paper, which is (13) of ADD-Defense, without the non-printability and with one view of one
    image; with a target, + CE(f(x'), target). Each row has one of the masks; outside it no pixel changes. Returns the
    iterate of least loss (the last of them if equal), also where that is not enough. Costs ``steps`` victim calls with
    gradient and one without.

    Masks fit images of any size: rectangles are drawn on a square canvas, and a pixel of the image belongs to the mask
    if the pixel of the canvas under its centre does. At 32x32 pixels the default masks are the published ones.

    Args:
        masks: (M, h, w), not 0 inside a mask; or a list of masks, each a list of rectangles
            [first row, last row, first column, last column] in pixels of the canvas, both ends included.
        canvas: side of the canvas on which rectangles are drawn.
        mask: place in ``masks``, a number or one per row; None draws one of them for each row.
        lr: learning rate of Adam: about how far a pixel goes in a step.
        penalty: weight of the l2 norm of the perturbation.
        steps: number of steps, at least 1.
        random_start: whether the mask starts as uniform noise instead of as the clean image.

    Raises:
        ValueError: no mask, or a rectangle that is not on the canvas.
    """

    masks: Tensor | Sequence[Sequence[Sequence[int]]] = SIGN_MASKS
    canvas: int = 32
    mask: int | Tensor | None = None
    lr: float | Tensor = 0.1
    penalty: float | Tensor = 0.0
    steps: int | Tensor = 100
    random_start: bool = True

    def __post_init__(self) -> None:
        _drawn(self.masks, self.canvas)

    def craft(self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """See ``GuardedAttack``. The draws are called "mask" and "start"."""
        lr, penalty = checked_length("lr", self.lr, x, "linf"), per_row("penalty", self.penalty, x)
        steps = per_row("steps", self.steps, x, low=1, whole=True)
        label, way = (y, 1.0) if target is None else (target, -1.0)
        classify, window = checked(model, y, target), self.window(x, rng)
        start = torch.where(window, rng.uniform("start", *x.shape[1:]), x) if self.random_start else x

        # Rows with more steps come first, so that those still at work are a head of the batch.
        order = torch.argsort(steps, descending=True, stable=True)
        counts, n = steps[order].tolist(), len(x)
        x, label, window, lr, penalty, now = (t[order] for t in (x, label, window, lr, penalty, start))
        best, least = now.clone(), torch.full_like(lr, torch.inf)
        mean, square = (torch.zeros_like(now, dtype=torch.float64) for _ in range(2))
        for step in watched(range(counts[0] + 1), "step"):
            while counts[n - 1] < step:
                n -= 1
            now, mean, square = now[:n].detach().requires_grad_(), mean[:n], square[:n]
            delta = now - x[:n]
            # Zero is where a norm has no gradient, which is NaN in autograd.
            norm = delta.square().sum((1, 2, 3)).clamp(min=torch.finfo(delta.dtype).tiny).sqrt()
            loss = penalty[:n] * norm - way * F.cross_entropy(classify(now), label[:n], reduction="none")
            better = loss.detach() <= least[:n]  # or equal: a sure victim's loss may be 0 for many steps
            least[:n] = torch.where(better, loss.detach(), least[:n])
            best[:n] = torch.where(per_pixel(better), now.detach(), best[:n])
            if step == counts[0]:
                break
            (grad,) = torch.autograd.grad(loss.sum(), now)
            grad = torch.nan_to_num(grad).mul_(window[:n]).double()
            mean = mean.lerp(grad, 0.1)
            square = (square * 0.999).addcmul_(grad, grad, value=0.001)
            root = (square / (1.0 - 0.999 ** (step + 1))).sqrt_().add_(_TINY)
            rate = per_pixel(lr[:n] / (1.0 - 0.9 ** (step + 1)))
            now = (now.detach() - rate * (mean / root).to(now.dtype)).clamp_(0.0, 1.0)
        result = torch.empty_like(best)
        result[order] = best
        return result

    def window(self, x: Tensor, rng: SampleRng | None = None) -> Tensor:
        """Where each row may change.

        Args:
            x: (B, C, H, W) the images.
            rng: the draw is called "mask"; None for the default.

        Returns:
            (B, 1, H, W) bool.

        Raises:
            ValueError: no such mask, or a mask without a pixel at this size.
        """
        drawn = _drawn(self.masks, self.canvas)
        row, column = (
            torch.arange(1, 2 * side, 2) * length // (2 * side)
            for side, length in zip(x.shape[2:], drawn.shape[1:], strict=True)
        )
        masks = drawn[:, row][:, :, column]
        empty = (~masks.flatten(1).any(1)).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(f"no pixel of images of {tuple(x.shape[2:])} lies in mask {empty[0]}")
        if self.mask is None:
            which = SampleRng.for_batch(x, rng).integers("mask", len(masks))
        else:
            which = per_row("mask", self.mask, x, high=len(masks) - 1, whole=True)
        return masks.to(x.device)[which][:, None]


def _drawn(masks: Tensor | Sequence[Sequence[Sequence[int]]], canvas: int) -> Tensor:
    """(M, h, w) bool, on the CPU."""
    if isinstance(masks, Tensor):
        if masks.ndim != 3 or masks.numel() == 0:
            raise ValueError(f"masks must be (M, h, w) and not empty, got {tuple(masks.shape)}")
        return masks.detach().cpu() != 0
    if not is_whole(canvas) or canvas < 1:
        raise ValueError(f"canvas must be a whole number of pixels, got {canvas!r}")
    if len(masks) == 0:
        raise ValueError("masks must hold at least one mask, got []")
    drawn = torch.zeros(len(masks), canvas, canvas, dtype=torch.bool)
    for i, mask in enumerate(masks):
        for rectangle in mask:
            corners = [*rectangle]
            if len(corners) != 4 or any(not is_whole(c) or not 0 <= c < canvas for c in corners):
                raise ValueError(f"a rectangle has four whole numbers from 0 to {canvas - 1}, got {corners}")
            top, bottom, left, right = corners
            if top > bottom or left > right:
                raise ValueError(f"a rectangle is [first row, last row, first column, last column], got {corners}")
            drawn[i, top : bottom + 1, left : right + 1] = True
    return drawn
