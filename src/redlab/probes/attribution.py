"""Where a victim looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.precision import full_precision
from redlab.probes.probe import by_victim
from redlab.probes.probe import restored as restored_of
from redlab.victims import ImageClassifier


def gradcam(victim: ImageClassifier, x: Tensor, classes: Tensor, layer: str | None = None) -> Tensor:
    """Grad-CAM: where a classifier sees a class (Selvaraju et al. 2017, equations 1 and 2).

    The ReLU of the layer's channels, each weighted by the mean gradient of the class's logit, interpolated to the size
    of the images. Where the victim pads, the map of the padded image is cut to the image. Maps are not normalised.

    Args:
        victim: a network with a feature layer.
        x: (B, C, H, W) in [0, 1], used as they are if outside.
        classes: (B,) int64, the class of each map.
        layer: dotted name of a layer whose output is (B, channels, h, w); None means the victim's feature layer.

    Returns:
        (B, 1, H, W), at least 0.

    Raises:
        ValueError: the layer is not there or not used, or its output has no positions.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _input: Any, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # what comes next may work in place

    with torch.inference_mode(False), torch.enable_grad(), full_precision():
        # a frozen network has a graph only from its images on
        images, named = x.detach().clone().requires_grad_(), classes.clone()
        handle = victim.layer(layer).register_forward_hook(keep)
        try:
            logits = victim(images)
        finally:
            handle.remove()
        if not kept or kept[-1].ndim != 4:
            shape = f"an output {tuple(kept[-1].shape)}" if kept else "no output"
            raise ValueError(
                f"layer {layer or victim.feature_layer!r} of victim {victim.name!r} has {shape}, Grad-CAM needs "
                "(B, channels, h, w)"
            )
        (gradient,) = torch.autograd.grad(logits.gather(1, named[:, None]).sum(), kept[-1])
    maps = (gradient.mean((2, 3), keepdim=True) * kept[-1].detach()).sum(1, keepdim=True).relu()
    high, wide = x.shape[-2:]
    size = (high, wide) if victim.input_size is None else (victim.input_size, victim.input_size)
    whole = F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - high) // 2, (size[1] - wide) // 2
    return whole[..., top : top + high, left : left + wide]


def answer_map(victim: ImageClassifier, x: Tensor, layer: str | None = None) -> Tensor:
    """`gradcam` of the class that the victim itself says."""
    with torch.no_grad():
        said = victim(x).argmax(1)
    return gradcam(victim, x, said, layer)


def overlap(a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Intersection over union of where two maps are at least a share of their own maximum.

    Args:
        a: (B, 1, H, W), at least 0.
        b: (B, 1, H, W), at least 0.
        threshold: share of the maximum, in (0, 1].

    Returns:
        (B,) float64 in [0, 1]; NaN where both maps are 0 everywhere.
    """
    one, two = ((m > 0) & (m >= threshold * m.amax((1, 2, 3), keepdim=True)) for m in (a, b))
    both, either = (one & two).sum((1, 2, 3)).double(), (one | two).sum((1, 2, 3)).double()
    return both / either  # 0 / 0 is NaN


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """Grad-CAM of the attacked victim on what a restorer estimates, beside that on the truth (CDD-RED, section 5).

    With y what the victim says of the clean image x, and y' of the attacked image x', there are four pairs of maps:
    of x_RED and x for y and y', and of x'_RED and x' for y and y'. Columns ``iou_restored_y``, ``iou_restored_y'``,
    ``iou_readded_y`` and ``iou_readded_y'``; pictures ``clean``, ``adv``, and for each of the images ``clean``,
    ``adv``, ``restored`` and ``readded`` (x'_RED) the maps ``cam_<image>_y`` and ``cam_<image>_y'``, over the maximum
    of the row's four maps of estimates or of truth. Needs a restorer.

    Attributes:
        threshold: what counts as seen, as a share of a map's maximum; the paper does not say.
        layer: of every victim; None means the feature layer of each.
    """

    threshold: float = 0.5
    layer: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}")

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the defence restores nothing, or a victim has no feature layer.
        """
        restored = restored_of(said)
        images = {"clean": batch.clean, "adv": batch.adv, "restored": restored}
        images["readded"] = batch.adv - restored + batch.clean
        maps = {f"cam_{image}_{c}": torch.zeros_like(batch.clean[:, :1]) for image in images for c in ("y", "y'")}
        for name, net, rows in by_victim(victims, batch):
            victim = _classifier(name, net)
            with torch.no_grad():
                classes = {"y": victim(batch.clean[rows]).argmax(1), "y'": victim(batch.adv[rows]).argmax(1)}
            for image, pixels in images.items():
                for c, which in classes.items():
                    maps[f"cam_{image}_{c}"][rows] = gradcam(victim, pixels[rows], which, self.layer)
        columns = {
            f"iou_{estimate}_{c}": overlap(maps[f"cam_{estimate}_{c}"], maps[f"cam_{truth}_{c}"], self.threshold)
            for estimate, truth in (("restored", "clean"), ("readded", "adv"))
            for c in ("y", "y'")
        }
        pictures = {"clean": batch.clean, "adv": batch.adv}
        for of in (("clean", "adv"), ("restored", "readded")):
            mine = {key: m for key, m in maps.items() if key.split("_")[1] in of}
            most = torch.cat([*mine.values()], dim=1).amax((1, 2, 3)).clamp(min=1e-12)[:, None, None, None]
            pictures |= {key: m / most for key, m in mine.items()}
        return columns | pictures


@dataclass(frozen=True, kw_only=True)
class AttributionShift:
    """By how much the victim looks elsewhere after restoring, a sign of an attack (CDD-RED, Fig. A1).

    Of an image z, attacked or not, the Grad-CAM map of F(z) on z beside that of F(D(z)) on D(z). Columns
    ``score_attribution``, 1 less their cosine, and ``score_attribution_iou``, 1 less their overlap; where both maps
    are 0 they are alike. Needs a restorer.

    Attributes:
        threshold: of the overlap, as a share of a map's maximum.
        layer: of every victim; None means the feature layer of each.
    """

    threshold: float = 0.5
    layer: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}")

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the defence restores nothing, or a victim has no feature layer.
        """
        images = (batch.adv, restored_of(said))
        scores = {name: torch.zeros(len(batch), dtype=torch.float64) for name in ("attribution", "attribution_iou")}
        for name, net, rows in by_victim(victims, batch):
            before, after = (answer_map(_classifier(name, net), x[rows], self.layer) for x in images)
            alike = torch.cosine_similarity(before.flatten(1).double(), after.flatten(1).double())
            nowhere = ~(before.flatten(1).any(1) | after.flatten(1).any(1))
            scores["attribution"][rows.cpu()] = 1 - alike.where(~nowhere, 1.0).cpu()
            scores["attribution_iou"][rows.cpu()] = (
                1 - overlap(before, after, self.threshold).where(~nowhere, 1.0).cpu()
            )
        return {f"score_{name}": score for name, score in scores.items()}


def _classifier(name: str, victim: nn.Module) -> ImageClassifier:
    if not isinstance(victim, ImageClassifier):
        raise ValueError(f"victim {name!r} must be a redlab.victims.Victim, got {type(victim).__name__}")
    return victim
