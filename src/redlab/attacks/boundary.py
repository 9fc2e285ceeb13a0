"""Boundary attack: a walk along the decision boundary that asks only for the victim's decisions.

Brendel, Rauber and Bethge, "Decision-based adversarial attacks: reliable attacks against black-box machine learning
models", ICLR 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import decided, per_row
from redlab.attacks.project import per_pixel
from redlab.attacks.watched import begun
from redlab.rng import SampleRng

GRAINS = 4  # noise for a start comes in squares of 1, 2, 4 and 8 pixels, in turn
BLENDS = 50  # shares of noise that are tried, from small to large, to begin near the image
JUDGED = 10  # every so many steps the point on the sphere is asked for as well
AROUND = (100, 0.2, 0.5)  # that many such answers; the share of adversarial ones below and above which steps change
INWARDS = (30, 0.1, 0.25)  # the same for the point after the step towards the image
CONVERGED = 1e-7  # source_step below which a row is finished


@dataclass(frozen=True, kw_only=True)
class Boundary(GuardedAttack):
    """From an adversarial start, goes around the clean image, then towards it, and stays where that is adversarial.

    Algorithm 1 and section 2: a step is a normal draw, orthogonal to the way to the image and spherical_step times as
    long as it, put back on the sphere around the image; then source_step of the way inwards. Both lengths grow where
    the points on the sphere are often adversarial and shrink where they seldom are, since the boundary looks flat at a
    good scale only; source_step also goes by its own rate of success. Untargeted. The start is uniform noise, coarser
    in three draws of four, since fine noise tends to be of one class; then the least share of it that is adversarial.
    Returns the adversarial nearest in l2, or the image itself where it is misclassified already or no start was found.
    Costs at most ``starts`` + 50 + 1.1 ``steps`` queries.

    Args:
        steps: number of steps, at least 1.
        spherical_step: first length of the step around, as a share of the distance.
        source_step: first length of the step inwards, as a share of the distance.
        step_adaptation: factor by which lengths change, at least 1, one for all rows.
        starts: most draws of noise for a start, at least 1, one for all rows.

    Raises:
        ValueError: ``step_adaptation`` or ``starts`` is out of range.
    """

    targeted: ClassVar[bool] = False
    steps: int | Tensor = 5000
    spherical_step: float | Tensor = 0.01
    source_step: float | Tensor = 0.01
    step_adaptation: float = 1.5
    starts: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.step_adaptation < math.inf:
            raise ValueError(f"step_adaptation must be finite and at least 1, got {self.step_adaptation}")
        if self.starts < 1:
            raise ValueError(f"starts must be at least 1, got {self.starts}")

    @torch.no_grad()
    def craft(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng
    ) -> tuple[Tensor, Tensor]:
        """See ``GuardedAttack``. The cost is in queries.

        The draws are called "noise" in the fork "start <number>" and "way" in the fork "step <number>".
        """
        steps = per_row("steps", self.steps, x, low=1, whole=True)
        around, inwards = (per_row(n, getattr(self, n), x) for n in ("spherical_step", "source_step"))
        said = decided(model, y)
        x_adv, used, done = self._start(said, x, y, rng)
        rows, best, step = torch.arange(len(x), device=x.device), x_adv.clone(), 0
        on_sphere, after = (x.new_full((len(x), window), math.nan) for window, *_ in (AROUND, INWARDS))
        at = begun("step", int(steps.max()))
        while True:
            at(step)
            done = done | (steps <= step) | (inwards < CONVERGED)
            if bool(done.any()):
                x_adv[rows[done]] = best[done]
                left = (~done).nonzero()[:, 0]
                if len(left) == 0:
                    return x_adv, used
                rows, x, y, best, steps, around, inwards, on_sphere, after, done = (
                    t[left] for t in (rows, x, y, best, steps, around, inwards, on_sphere, after, done)
                )
                rng = rng[left]
            step += 1
            way = rng.fork(f"step {step}").normal("way", *x.shape[1:])
            circled, tried = _propose(x, best, way, around, inwards)
            hit = said(tried) != y
            used[rows] += 1
            nearer = hit & (_length(tried - x) < _length(best - x))
            best = torch.where(per_pixel(nearer), tried, best)
            if step % JUDGED == 0:
                on_sphere, both = self._judge(on_sphere, said(circled) != y, *AROUND[1:])
                after, own = self._judge(after, hit, *INWARDS[1:])
                around, inwards = around * both, inwards * both * own
                used[rows] += 1

    def _start(
        self, said: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, rng: SampleRng
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where rows begin, what that cost, and whether they are finished because it is at the clean image."""
        lost, used = said(x) == y, torch.ones_like(y)
        noise, todo = x.clone(), lost.nonzero()[:, 0]
        for draw in range(self.starts):
            if len(todo) == 0:
                break
            tried = _noise(x, 2 ** (draw % GRAINS), rng[todo].fork(f"start {draw}"))
            hit = said(tried) != y[todo]
            used[todo] += 1
            noise[todo[hit]] = tried[hit]
            todo = todo[~hit]
        lost[todo] = False
        best, begun = noise.clone(), lost.nonzero()[:, 0]
        for blend in range(1, BLENDS):
            if len(begun) == 0:
                break
            tried = torch.lerp(x[begun], noise[begun], blend / BLENDS)
            hit = said(tried) != y[begun]
            used[begun] += 1
            best[begun[hit]] = tried[hit]
            begun = begun[~hit]
        return best, used, ~lost

    def _judge(self, answers: Tensor, new: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Takes in an answer per row, and says by what the steps change; a row whose steps change forgets its answers.

        Args:
            answers: (n, window) the last answers, NaN where there were not yet so many.
            new: (n,) bool.
            low: share of yes below which steps shrink.
            high: share above which they grow.
        """
        answers = torch.cat([answers[:, 1:], new[:, None].float()], 1)
        share = answers.mean(1)  # NaN, which is neither low nor high, until the window is full
        change = (share > high).float() - (share < low).float()
        return answers.masked_fill((change != 0)[:, None], math.nan), self.step_adaptation**change


def _noise(x: Tensor, grain: int, rng: SampleRng) -> Tensor:
    """Uniform noise of the size of the images ``x``, in squares of ``grain`` pixels; one image per index of ``rng``."""
    channels, height, width = x.shape[1:]
    drawn = rng.uniform("noise", channels, -(-height // grain), -(-width // grain))
    row, column = (torch.arange(side, device=x.device) // grain for side in (height, width))
    return drawn[:, :, row[:, None], column]


def _propose(x: Tensor, best: Tensor, way: Tensor, around: Tensor, inwards: Tensor) -> tuple[Tensor, Tensor]:
    """The point on the sphere around ``x`` through ``best``, and that one moved inwards, both in [0, 1].

    Args:
        x: (n, C, H, W) centres.
        best: (n, C, H, W).
        way: (n, C, H, W) any direction.
        around: (n,) length of the step along the sphere, as a share of the radius.
        inwards: (n,) by which share the radius is to shrink.
    """
    out = best - x
    radius = _length(out)
    tiny = torch.finfo(radius.dtype).tiny
    unit = out / per_pixel(radius.clamp(min=tiny))
    way = way - unit * (way * unit).sum((1, 2, 3), keepdim=True)
    way = way * per_pixel(around * radius / _length(way).clamp(min=tiny))
    circled = ((out + way) / per_pixel((1.0 + around.square()).sqrt())).add_(x).clamp_(0.0, 1.0)
    # Clipping may have moved it off the sphere, which the step inwards makes up for.
    out = circled - x
    length = _length(out)
    share = ((1.0 - inwards) * radius / length.clamp(min=tiny)).clamp(min=0.0, max=1.0)
    return circled, (out * per_pixel(share)).add_(x).clamp_(0.0, 1.0)


def _length(images: Tensor) -> Tensor:
    """(n, C, H, W) -> (n,) l2 norms."""
    length: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3))
    return length
