"""Local search: a few pixels are changed, found by asking the victim for its scores.

Narodytska and Kasiviswanathan, "Simple black-box adversarial attacks on deep neural networks", CVPR Workshops 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.attacks.base import GuardedAttack
from redlab.attacks.guard import checked, per_row
from redlab.attacks.margin import wins
from redlab.attacks.project import per_pixel
from redlab.attacks.watched import begun
from redlab.rng import SampleRng

CHUNK = 1024  # images per call of the victim: a round asks for thousands


@dataclass(frozen=True, kw_only=True)
class LocalSearch(GuardedAttack):
    """Probes pixels one by one, changes those that matter most, and goes on in their neighbourhood (LocSearchAdv).

    With pixel values v in [-1/2, 1/2], a probe sets all channels of one pixel to probe * sign(v), which may lie far
    outside the range: the victim sees such images. The ``pixels`` whose probes leave the true class the smallest
    probability become stretch * v, minus or plus 1 where that leaves the range (so dark turns bright, and bright dark).
    The next candidates are all pixels at most ``reach`` rows and columns from those. Untargeted. A row is finished at
    its first success; one without gets the last iterate. Costs at most 1 + ``steps`` * (``candidates`` + 1) queries.

    Args:
        steps: most rounds, at least 1.
        pixels: most pixels changed in a round (t in the paper), at least 1.
        probe: height of a probe (p).
        stretch: factor on a changed pixel (r), in [0, 2], so that it comes back into the range.
        reach: half width of a neighbourhood (d), one for all rows.
        candidates: most pixels probed in a round, drawn from those that are eligible, at least 1, one for all rows.
        seeds: share of the pixels that are eligible in the first round, above 0, at most 1, one for all rows.

    Raises:
        ValueError: ``reach``, ``candidates`` or ``seeds`` is out of range.
    """

    targeted: ClassVar[bool] = False
    steps: int | Tensor = 10
    pixels: int | Tensor = 300
    probe: float | Tensor = 10.0
    stretch: float | Tensor = 1.5
    reach: int = 5
    candidates: int = 128
    seeds: float = 0.1

    def __post_init__(self) -> None:
        if self.reach < 0:
            raise ValueError(f"reach must not be negative, got {self.reach}")
        if self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {self.candidates}")
        if not 0 < self.seeds <= 1:
            raise ValueError(f"seeds must be above 0 and at most 1, got {self.seeds}")

    @torch.no_grad()
    def craft(
        self, model: nn.Module, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng
    ) -> tuple[Tensor, Tensor]:
        """See ``GuardedAttack``. The cost is in queries. The draws are called "pixel" in the fork "round <number>"."""
        steps, pixels = (per_row(n, getattr(self, n), x, low=1, whole=True) for n in ("steps", "pixels"))
        probe, stretch = per_row("probe", self.probe, x), per_row("stretch", self.stretch, x, high=2.0)
        classify = checked(model, y)
        height, width = x.shape[2:]
        image = x.clone()
        rows, x_adv, used = torch.arange(len(x), device=x.device), torch.empty_like(image), torch.zeros_like(y)
        first = max(int(self.seeds * height * width), 1)
        eligible = torch.ones_like(image[:, 0]).flatten(1).bool()
        step = 0
        at = begun("round", int(steps.max()))
        while True:
            at(step)
            used[rows] += 1
            done = wins(classify(image), y) | (steps <= step)
            if bool(done.any()):
                x_adv[rows[done]] = image[done]
                left = (~done).nonzero()[:, 0]
                if len(left) == 0:
                    return x_adv, used
                rows, image, y, steps, pixels, probe, stretch, eligible = (
                    t[left] for t in (rows, image, y, steps, pixels, probe, stretch, eligible)
                )
                rng = rng[left]
            # Those drawn lowest are a fair draw without replacement.
            lot = rng.fork(f"round {step}").uniform("pixel", height * width).masked_fill(~eligible, math.inf)
            most = min(self.candidates, first if step == 0 else height * width)
            lot, place = lot.sort(dim=1, stable=True)
            asked = lot[:, :most].isfinite()
            used[rows] += asked.sum(1)
            row, column = asked.nonzero(as_tuple=True)
            place = place[row, column]
            score = image.new_full(eligible.shape, math.inf)
            for r, p in zip(torch.split(row, CHUNK), torch.split(place, CHUNK), strict=True):
                probed = image[r].flatten(2)
                n = torch.arange(len(r), device=r.device)
                probed[n, :, p] = probe[r, None] * (probed[n, :, p] - 0.5).sign() + 0.5
                logits = classify(probed.view_as(image[r]))
                # Its logarithm has the order of the probability, and goes on where that is rounded to 1.
                score[r, p] = F.log_softmax(logits, 1).gather(1, y[r, None])[:, 0]
            rank = score.argsort(dim=1, stable=True).argsort(dim=1)
            changed = (score < math.inf) & (rank < pixels[:, None])
            value = (image - 0.5) * per_pixel(stretch)
            value = (value - value.sign() * (value.abs() > 0.5)).clamp_(-0.5, 0.5).add_(0.5)
            changed = changed.view(-1, 1, height, width)
            image = torch.where(changed, value, image)
            near = F.max_pool2d(changed.float(), 2 * self.reach + 1, stride=1, padding=self.reach)
            eligible = near.flatten(1) > 0
            step += 1
