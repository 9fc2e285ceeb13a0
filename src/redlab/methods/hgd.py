"""HGD, the denoiser that the attention-U-Net GAN is compared with.

"Defense Against Adversarial Attacks Using High-Level Representation Guided Denoiser" (CVPR 2018): a U-Net estimates
what to take away from an attacked image, and is trained so that the result is like the clean one: in its pixels, or in
what a frozen classifier, the guide, makes of it, at its last features or at its logits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial, chosen
from redlab.nn import Frame
from redlab.victims import ImageClassifier

GUIDANCE = ("pixel", "features", "logits")
DOWN = ((1, 2), (2, 3), (4, 3), (4, 3), (4, 3))
"""Of each level: its width, in those of the first, and how many blocks it has."""
UP = ((4, 3), (4, 3), (2, 3), (1, 2))


def _blocks(before: int, width: int, count: int, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(count):
        layers.append(nn.Conv2d(width if place else before, width, 3, 1 if place else stride, 1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Denoiser(nn.Module):
    """DUNET: what is to be added to an image; sides must be multiples of 16.

    Args:
        channels: of the images.
        width: of the first level.

    >>> sum(p.numel() for p in Denoiser(3).parameters())
    11033984
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        widths = [width * times for times, _ in DOWN]
        down = zip([channels, *widths], widths, (count for _, count in DOWN), strict=False)
        self.down = nn.ModuleList(
            _blocks(before, after, count, 2 if place else 1) for place, (before, after, count) in enumerate(down)
        )
        up = [widths[-1], *(width * times for times, _ in UP)]
        self.up = nn.ModuleList(
            _blocks(before + skip, after, count)
            for (before, after), skip, (_, count) in zip(itertools.pairwise(up), widths[-2::-1], UP, strict=True)
        )
        self.last = nn.Conv2d(up[-1], channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        levels: list[Tensor] = []
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        for stage, skip in zip(self.up, levels[-2::-1], strict=True):
            x = stage(torch.cat([F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False), skip], 1))
        out: Tensor = self.last(x)
        return out


class HGD(Method):
    """Restorer.

    Args:
        victims: classifiers by name, images in [0, 1] -> logits.
        channels: of the images.
        image_size: side of the images; they are centred in black where it is no multiple of 16.
        optimizer: partial, see ``Method``.
        scheduler: partial, see ``Method``.
        guide: name of the victim that is the guide; None: the first one.
        guidance: where restored and clean images are compared, by the mean absolute difference: "pixel",
            "features": the guide's feature layer (FGD), or "logits" (LGD).
        width: of the first level.

    Raises:
        ValueError: an option is unknown or out of range, or the guide has no feature layer where one is needed.
    """

    guide: nn.Module
    frozen = ("guide",)

    def __init__(
        self,
        *,
        victims: Mapping[str, nn.Module],
        channels: int,
        image_size: int,
        optimizer: OptimizerPartial,
        scheduler: SchedulerPartial | None = None,
        guide: str | None = None,
        guidance: str = "features",
        width: int = 64,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if guidance not in GUIDANCE:
            raise ValueError(f"guidance must be one of {GUIDANCE}, got {guidance!r}")
        guide = chosen("guide", guide, victims)
        self.save_hyperparameters(ignore=["victims", "optimizer", "scheduler"])
        self.guide = victims[guide].requires_grad_(False).eval()
        if guidance == "features" and getattr(self.guide, "feature_layer", None) is None:
            raise ValueError(f"guidance=features needs a guide with a feature layer: set victims.{guide}.feature_layer")
        self.guidance = guidance
        self.frame = Frame(16 * math.ceil(image_size / 16), image_size)
        self.denoiser = Denoiser(channels, width)

    def estimate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked, in [0, 1] -> (B, C, H, W), the restored image, not clamped."""
        framed = self.frame.inside(x)
        return self.frame.outside(framed + self.denoiser(framed))

    def restore(self, x: Tensor) -> Tensor:
        """The same as images: clamped to [0, 1]."""
        return self.clamped_estimate(x)

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        """The mean absolute difference where the guidance is."""
        batch = batch.valid_rows()
        loss = (self._seen(self.estimate(batch.adv)) - self._target(batch.clean)).abs().mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def _target(self, clean: Tensor) -> Tensor:
        return self._seen(clean)

    def _seen(self, images: Tensor) -> Tensor:
        if self.guidance == "pixel":
            return images
        guide = cast(ImageClassifier, self.guide)
        found: Tensor = guide.features(images) if self.guidance == "features" else guide(images)
        return found
