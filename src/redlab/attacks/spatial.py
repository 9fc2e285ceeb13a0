"""Spatially transformed adversarial examples: pixels are moved, not repainted.

Xiao, Zhu, Li, He, Liu and Song, "Spatially transformed adversarial examples", ICLR 2018 (stAdv).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, per_row
from redlab.attacks.margin import margin
from redlab.attacks.project import per_pixel
from redlab.attacks.watched import begun
from redlab.rng import SampleRng

FLOW_LOSSES = ("sum", "norm")
BETAS, TINY = (0.9, 0.999), 1e-8  # of Adam
STEEP = 1e18  # gradients count as no steeper, so that their squares do not overflow
ROUND = 0.01  # pixels: lengths in L_flow are rounded off below, so that its gradient is not undefined at equal flows


@dataclass(frozen=True, kw_only=True)
class SpatialTransform(GuardedAttack):
    """Minimises max(lack, 0) + smoothness * L_flow(f) over a flow field f, lack being the margin plus the confidence.

    Pixel p of the result is the clean image read at p + f(p), bilinearly (equation 1), and p + f(p) stays in the image.
    L_flow is the sum of |f(p) - f(q)| over all pixels p and their four neighbours q (equation 4). The optimiser is
    Adam, where the paper has L-BFGS: an image read between pixels has a kink at every pixel, also where the search
    starts, and there a line search finds no descent in some rows. Returns per row the adversarial of least L_flow that
    it met (the clean image itself where that is one already), or the last iterate where it met none.
    Costs ``steps`` + 1 gradients.

    Args:
        smoothness: weight of L_flow (tau in the paper).
        flow_loss: "sum", equation 4, in pixels. Or "norm", as in the public library that ADD-Defense used, where the
            weight is 1: the l2 norm of all differences to the pixel below plus that of those to the pixel on the right,
            in half heights and half widths.
        confidence: margin in logits that counts as success.
        lr: Adam's learning rate, in pixels.
        steps: number of steps, at least 1.

    Raises:
        ValueError: unknown ``flow_loss``.
    """

    smoothness: float | Tensor = 0.05
    flow_loss: str = "sum"
    confidence: float | Tensor = 0.0
    lr: float | Tensor = 0.05
    steps: int | Tensor = 300

    def __post_init__(self) -> None:
        if self.flow_loss not in FLOW_LOSSES:
            raise ValueError(f"flow_loss must be one of {', '.join(FLOW_LOSSES)}, got {self.flow_loss!r}")

    def craft(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng
    ) -> tuple[Tensor, Tensor]:
        """See ``GuardedAttack``. The cost is in gradients; ``rng`` is not used."""
        smoothness, confidence, lr = (per_row(n, getattr(self, n), x) for n in ("smoothness", "confidence", "lr"))
        steps = per_row("steps", self.steps, x, low=1, whole=True)
        label, targeted = y if target is None else target, target is not None
        classify = checked(model, label)
        ends = {0, *steps.tolist()}  # so that the other steps wait for no device
        rows, whole, used, step = torch.arange(len(x), device=x.device), x, torch.zeros_like(steps), 0
        flow = torch.zeros_like(x[:, :1]).repeat(1, 2, 1, 1)
        result, best, first, second = flow.clone(), flow, flow, flow
        best_rough = torch.full_like(smoothness, math.inf)
        at = begun("step", max(ends))
        while True:
            at(step)
            point = flow.detach().requires_grad_()
            rough = roughness(point, self.flow_loss)
            lack = margin(classify(warp(x, point)), label, targeted) + confidence
            loss = lack.clamp(min=0.0) + smoothness * rough
            (grad,) = torch.autograd.grad(loss.sum(), point)
            hit, rough = lack.detach() < 0, rough.detach()
            better = hit & (rough < best_rough)
            best = torch.where(per_pixel(better | best_rough.isinf()), flow, best)
            best_rough = torch.where(better, rough, best_rough)
            if step in ends:
                done = hit if step == 0 else steps <= step
                result[rows[done]], used[rows[done]] = best[done], step + 1
                left = (~done).nonzero()[:, 0]
                if len(left) == 0:
                    return warp(whole, result), used
                rows, x, label, steps, smoothness, confidence, lr = (
                    t[left] for t in (rows, x, label, steps, smoothness, confidence, lr)
                )
                flow, grad, first, second, best, best_rough = (
                    t[left] for t in (flow, grad, first, second, best, best_rough)
                )
            step += 1
            grad = torch.nan_to_num(grad).clamp_(-STEEP, STEEP)
            first, second = first.lerp(grad, 1.0 - BETAS[0]), second.lerp(grad.square(), 1.0 - BETAS[1])
            mean, square = first / (1.0 - BETAS[0] ** step), second / (1.0 - BETAS[1] ** step)
            flow = inside(flow - per_pixel(lr) * mean / (square.sqrt() + TINY))


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Reads images between their pixels (equation 1); beyond the edge lies the edge.

    Args:
        x: (B, C, H, W) in [0, 1].
        flow: (B, 2, H, W) in pixels, how far down and how far to the right of itself a pixel reads.

    Returns:
        (B, C, H, W) in [0, 1].
    """
    height, width = x.shape[2:]
    down = (_places(height, x)[:, None] + flow[:, 0]).clamp(0, height - 1)
    right = (_places(width, x) + flow[:, 1]).clamp(0, width - 1)
    # Not grid_sample: its backward pass on a GPU is not deterministic, and with it a zero flow changes the image.
    top, left = down.detach().long().clamp(max=max(height - 2, 0)), right.detach().long().clamp(max=max(width - 2, 0))
    bottom, end = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    flat = x.flatten(2)

    def read(row: Tensor, column: Tensor) -> Tensor:
        place = (row * width + column).flatten(1)[:, None].expand(-1, x.shape[1], -1)
        return flat.gather(2, place).view_as(x)

    across, along = (right - left)[:, None], (down - top)[:, None]
    upper = torch.lerp(read(top, left), read(top, end), across)
    lower = torch.lerp(read(bottom, left), read(bottom, end), across)
    return torch.lerp(upper, lower, along).clamp(0.0, 1.0)


def roughness(flow: Tensor, flow_loss: str = "sum") -> Tensor:
    """L_flow: how much neighbours differ in their flow.

    Args:
        flow: (B, 2, H, W) in pixels.
        flow_loss: see ``SpatialTransform``. "sum" counts each pair of neighbours from both sides.

    Returns:
        (B,).
    """
    if flow_loss == "norm":
        flow = flow * flow.new_tensor([2.0 / side for side in flow.shape[2:]])[:, None, None]
    down, right = flow[:, :, 1:] - flow[:, :, :-1], flow[:, :, :, 1:] - flow[:, :, :, :-1]
    if flow_loss == "norm":
        least = 2.0 * ROUND / max(flow.shape[2:])
        return (_dot(down, down) + least**2).sqrt() + (_dot(right, right) + least**2).sqrt() - 2.0 * least
    lengths = [difference.square().sum(1).add(ROUND**2).sqrt().sub(ROUND) for difference in (down, right)]
    return 2.0 * (lengths[0].sum((1, 2)) + lengths[1].sum((1, 2)))


def inside(flow: Tensor) -> Tensor:
    """The nearest flow under which no pixel reads outside the image.

    Args:
        flow: (B, 2, H, W) in pixels.

    Returns:
        (B, 2, H, W).
    """
    height, width = flow.shape[2:]
    down, right = _places(height, flow)[:, None], _places(width, flow)
    least = torch.stack([-down.expand(height, width), -right.expand(height, width)])
    return torch.minimum(torch.maximum(flow, least), least + least.new_tensor([height - 1, width - 1])[:, None, None])


def _places(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, device=like.device, dtype=like.dtype)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(n, 2, H, W) twice -> (n,)."""
    return (a * b).sum((1, 2, 3))
