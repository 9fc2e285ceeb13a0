"""GRED, which finds attacked images by their pixels or by how sensitive the classifier is to these, and rectifies them.

"Detecting and Recovering Adversarial Examples: An Input Sensitivity Guided Method": attacks of least size stop just
behind the decision boundary, where the gradient is large; those of a fixed budget go far beyond it, and can be seen.
Two networks, one for each, and the more confident one decides (``GRED``). What is found goes to a copy of the
classifier that was trained on attacked images with their sensitive pixels overwritten (``Rectifier``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.methods.base import MONITORS, Method, OptimizerPartial, SchedulerPartial, chosen
from redlab.methods.hardened import trainable
from redlab.nn import Frame
from redlab.rng import generator
from redlab.victims import ImageClassifier
from redlab.victims.architectures import vgg11

SIDE = 32
"""Pixels of a side of what the detectors see, at least."""

SCALES = ("log", "global_gain", "raw")
MASKS = ("range", "quantile")
LEAST = 1e-10
"""Added to InSen before its logarithm."""

# ---- what is seen -------------------------------------------------------------------------------------------------


def input_sensitivity(classifier: nn.Module, x: Tensor) -> Tensor:
    """InSen: |d L / d x|, with L the cross-entropy at the label that the classifier predicts (eq. 1).

    In full float32 whatever the precision around it, and under inference mode. Where a gradient of ``x`` is wanted it
    can be differentiated again.

    Args:
        classifier: (B, C, H, W) -> (B, K) logits.
        x: (B, C, H, W) in [0, 1].

    Returns:
        (B, C, H, W), not negative.
    """
    again = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.float() if again else x.detach().clone().float().requires_grad_()
        logits = classifier(x).float()
        loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (slope,) = torch.autograd.grad(loss, x, create_graph=again)
    return slope.abs()


def saliency(classifier: ImageClassifier, x: Tensor, layer: str) -> Tensor:
    """What a middle layer has to say of the predicted label, as an image: ReLU(sum of h dz/dh over channels).

    Args:
        classifier: (B, C, H, W) -> (B, K) logits z.
        x: (B, C, H, W) in [0, 1].
        layer: dotted name of the module of its backbone that gives h.

    Returns:
        (B, 1, H, W) in [0, 1], of each image scaled from its least to its greatest value.
    """
    again, seen = torch.is_grad_enabled() and x.requires_grad, []
    handle = classifier.layer(layer).register_forward_hook(lambda _module, _input, output: seen.append(output))
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            x = x.float() if again else x.detach().clone().float().requires_grad_()
            top = classifier(x).amax(1).sum()
            (slope,) = torch.autograd.grad(top, seen[0], create_graph=again)
            found = F.relu((seen[0] * slope).sum(1, keepdim=True))
            found = found if again else found.detach()
    finally:
        handle.remove()
    found = F.interpolate(found, size=x.shape[2:], mode="bilinear", align_corners=False)
    low, high = found.amin((2, 3), keepdim=True), found.amax((2, 3), keepdim=True)
    return (found - low) / (high - low).clamp(min=LEAST)


class Scale(nn.Module):
    """InSen as a network can see it; its size tells most, so no image is scaled by itself.

    Args:
        kind: "log": log10(S + 1e-10), then by one mean and one standard deviation of all that it was trained on;
            "global_gain": by these alone; "raw": as it is.
    """

    count: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        for name in ("count", "mean", "square"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def forward(self, sensitivity: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.kind == "raw":
            return sensitivity
        values = self._bent(sensitivity)
        if self.training:
            new = values.detach().double()
            with torch.no_grad():
                self.count += new.numel()
                self.mean += (new - self.mean).sum() / self.count
                self.square += (new.square() - self.square).sum() / self.count
        return self._standard(values)

    @property
    def least(self) -> Tensor:
        """What becomes of a sensitivity of 0."""
        return torch.zeros_like(self.mean) if self.kind == "raw" else self._standard(self._bent(self.mean * 0)).float()

    def _bent(self, sensitivity: Tensor) -> Tensor:
        return (sensitivity + LEAST).log10() if self.kind == "log" else sensitivity

    def _standard(self, values: Tensor) -> Tensor:
        spread = (self.square - self.mean.square()).clamp(min=0).sqrt()
        spread = torch.where(spread > 0, spread, 1.0)
        return ((values - self.mean) / spread).to(values.dtype)


# ---- the detector -------------------------------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    """(B, K) logits -> (B,) entropy in bits, in float64 (eq. 11)."""
    known = logits.double().log_softmax(1)
    return -(known.exp() * known).sum(1) / math.log(2)


class GRED(Method):
    """Detector. Its scores are log p(adversarial) / p(benign): "gred", which is that of the less uncertain of "org"
    (which sees the image) and "sen" (which sees InSen), these two, and with ``saliency_layer`` the baseline "sal".

    It is trained on clean and attacked images. The mix should have ``only_fooled`` and ``only_right``, so that attacks
    were successful and originals right; and the classifier should not have been trained on these images
    (``data.use=held_out``).

    Args:
        victims: classifiers by name, images in [0, 1] -> logits.
        channels: of the images.
        image_size: side of the images; they are centred in black in 32 pixels where they are smaller.
        optimizer: partial, see ``Method``.
        scheduler: partial, see ``Method``.
        victim: name of the protected classifier; None: the first one.
        sen_scale: how InSen is scaled, see ``Scale``.
        saliency_layer: dotted name of a module of the classifier; None leaves "sal" out.
        decides: name of the score that is the verdict.
        width_divisor: of the widths of the VGG-11 that each detector is.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    classifier: nn.Module
    frozen = ("classifier",)

    def __init__(
        self,
        *,
        victims: Mapping[str, nn.Module],
        channels: int,
        image_size: int,
        optimizer: OptimizerPartial,
        scheduler: SchedulerPartial | None = None,
        victim: str | None = None,
        sen_scale: str = "log",
        saliency_layer: str | None = None,
        decides: str = "gred",
        width_divisor: int = 1,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if sen_scale not in SCALES:
            raise ValueError(f"sen_scale must be one of {SCALES}, got {sen_scale!r}")
        victim = chosen("victim", victim, victims)
        self.save_hyperparameters(ignore=["victims", "optimizer", "scheduler"])
        self.classifier = victims[victim].requires_grad_(False).eval()
        self.frame, self.saliency_layer = Frame(max(SIDE, image_size), image_size), saliency_layer
        self.scale = Scale(sen_scale)
        seen = {"org": channels, "sen": channels} | ({"sal": channels + 1} if saliency_layer else {})
        if decides not in (known := ("gred", *seen)):
            raise ValueError(f"decides must be one of {known}, got {decides!r}")
        self.verdict = decides
        # The area is 1 after the first epoch, where hardly any image is above 0 as yet.
        self.monitor = "val/detection_accuracy"
        self.detectors = nn.ModuleDict(
            {name: vgg11(2, many, self.frame.side, width_divisor=width_divisor) for name, many in seen.items()}
        )

    def sensitivity(self, x: Tensor) -> Tensor:
        """InSen of the protected classifier, see ``input_sensitivity``."""
        return input_sensitivity(self.classifier, x)

    def opinions(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) in [0, 1] -> (B, 2) logits, benign and adversarial, of each detector."""
        shown, least = self.frame.inside(x), self.scale.least
        scaled = self.scale(self.sensitivity(x))
        seen = {"org": shown, "sen": self.frame.around(scaled - least) + least}
        if self.saliency_layer is not None:
            found = saliency(cast(ImageClassifier, self.classifier), x, self.saliency_layer)
            seen["sal"] = torch.cat([shown, self.frame.inside(found)], dim=1)
        return {name: detector(seen[name]) for name, detector in self.detectors.items()}

    def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) in [0, 1] -> (B,) by name."""
        said = self.opinions(x)
        odds = {name: logits[:, 1] - logits[:, 0] for name, logits in said.items()}
        sure = entropy(said["org"]) < entropy(said["sen"])
        return {"gred": torch.where(sure, odds["org"], odds["sen"]), **odds}

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        """The cross-entropies of all detectors, which share no weights; both kinds of images count half."""
        batch = batch.valid_rows()
        truth = batch.attacked.long()
        shares = 0.5 / truth.bincount(minlength=2)[truth]
        said = self.opinions(batch.adv)
        losses = {name: (shares * F.cross_entropy(z, truth, reduction="none")).sum() for name, z in said.items()}
        loss = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        self.log("train/loss", loss, prog_bar=True)
        return loss


# ---- the rectifier ------------------------------------------------------------------------------------------------


def suspects(sensitivity: Tensor, alpha: float, mode: str = "range", *, per_location: bool = False) -> Tensor:
    """Which numbers of an image the attack may have changed.

    Args:
        sensitivity: S, (B, C, H, W).
        alpha: in [0, 1]. "range": those with S > alpha (max S - min S) + min S of their image (eq. 13), so that a
            larger one marks fewer; "quantile": this share of them, the most sensitive ones.
        mode: "range" or "quantile".
        per_location: all channels of a place together, by the greatest of them.

    Returns:
        (B, C, H, W) bool.
    """
    each = sensitivity.amax(1, keepdim=True) if per_location else sensitivity
    flat = each.flatten(1)
    if mode == "range":
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        marked = flat > alpha * (high - low) + low
    else:
        rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        marked = rank < round(alpha * flat.shape[1])
    return marked.view_as(each).expand_as(sensitivity)


def overwritten(x: Tensor, marked: Tensor, chance: Tensor, noise: Tensor, probability: float) -> Tensor:
    """Images some of whose marked numbers are drawn anew, from N(mean, std) of the image in steps of 1/255 (eq. 14).

    Args:
        x: (B, C, H, W) in [0, 1].
        marked: (B, C, H, W) bool.
        chance: uniform draws in [0, 1), of the shape of x or of one image.
        noise: normal draws, likewise.
        probability: of each marked number.
    """
    flat = x.flatten(1)
    mean, std = (part[:, None, None, None] for part in (flat.mean(1), flat.std(1)))
    drawn = ((mean + std * noise) * 255).round().clamp(0, 255) / 255
    return torch.where(marked & (chance < probability), drawn, x)


class Rectifier(GRED):
    """Labeler: the classifier's answer, or the rectifier's where the detector finds an attack.

    The detector comes from a run of ``GRED`` by ``init``, and stays as it is. The rectifier starts as a copy of the
    classifier, and learns the labels of attacked images whose most sensitive numbers are overwritten.

    Args:
        victims: see ``GRED``, as all others but the last seven.
        channels: see there.
        image_size: see there.
        optimizer: see there.
        scheduler: see there.
        victim: see there.
        sen_scale: that of the detector.
        width_divisor: that of the detector.
        mask: what is marked, "range" or "quantile", see ``suspects``.
        alpha: see there.
        per_location: see there.
        probability: that a marked number is overwritten.
        duplicates: of each image in a step of training, each overwritten in its own way.
        draws: of an answer, which is then that of the mean probabilities.
        seed: of what is drawn.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        *,
        victims: Mapping[str, nn.Module],
        channels: int,
        image_size: int,
        optimizer: OptimizerPartial,
        scheduler: SchedulerPartial | None = None,
        victim: str | None = None,
        sen_scale: str = "log",
        width_divisor: int = 1,
        mask: str = "range",
        alpha: float = 0.4,
        per_location: bool = False,
        probability: float = 0.5,
        duplicates: int = 10,
        draws: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(
            victims=victims,
            channels=channels,
            image_size=image_size,
            optimizer=optimizer,
            scheduler=scheduler,
            victim=victim,
            sen_scale=sen_scale,
            width_divisor=width_divisor,
        )
        if mask not in MASKS:
            raise ValueError(f"mask must be one of {MASKS}, got {mask!r}")
        if not (0 <= alpha <= 1 and 0 <= probability <= 1):
            raise ValueError(f"alpha and probability must be in [0, 1], got {alpha} and {probability}")
        if min(duplicates, draws) < 1:
            raise ValueError(f"duplicates and draws must be at least 1, got {duplicates} and {draws}")
        self.save_hyperparameters(ignore=["victims", "optimizer", "scheduler"])
        for part in (self.detectors, self.scale):
            part.requires_grad_(False)
        self.rectifier = trainable(self.classifier)
        self.mask, self.alpha, self.per_location, self.probability = mask, alpha, per_location, probability
        self.duplicates, self.draws, self.seed = duplicates, draws, seed
        self.capabilities, self.monitor = frozenset({"labeler"}), MONITORS["labeler"]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; the detector stays in eval mode."""
        super().train(mode)
        for part in (self.detectors, self.scale):
            part.eval()
        return self

    def suspects(self, x: Tensor, alpha: float | None = None, mask: str | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, C, H, W) bool, what is marked; with another ``alpha`` or ``mask`` if given."""
        alpha, mask = self.alpha if alpha is None else alpha, self.mask if mask is None else mask
        return suspects(self.sensitivity(x).detach(), alpha, mask, per_location=self.per_location)

    def masked(self, x: Tensor, draw: int = 0, *, marked: Tensor | None = None) -> Tensor:
        """Images with suspect numbers overwritten, by draws that are the same in every call and for every image.

        Args:
            x: (B, C, H, W) in [0, 1].
            draw: which of the draws.
            marked: (B, C, H, W) bool; None: ``suspects(x)``.
        """
        source = generator("mask", self.seed, draw, device=x.device)
        return self._overwritten(x, source, (1, *x.shape[1:]), marked)

    def rectified(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits of the rectifier, or with several draws the logarithm of their mean
        probabilities."""
        said = [self.rectifier(self.masked(x, draw)) for draw in range(self.draws)]
        if len(said) == 1:
            return cast(Tensor, said[0])
        return torch.stack([each.log_softmax(1) for each in said]).logsumexp(0) - math.log(self.draws)

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K)."""
        alarm = self.adversarial_scores(x)[self.verdict] > 0
        return torch.where(alarm[:, None], self.rectified(x), self.classifier(x))

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        """The cross-entropy of the rectifier on overwritten duplicates of what the mix gives, in the paper attacks
        alone."""
        batch = batch.valid_rows()
        name: Any = ("masks", self.seed, self.batches, batch_idx, self.global_rank)
        source = generator(*name, device=batch.adv.device)
        x = batch.adv.repeat(self.duplicates, 1, 1, 1)
        said = self.rectifier(self._overwritten(x, source, x.shape, None))
        loss = F.cross_entropy(said, batch.label.repeat(self.duplicates))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _overwritten(self, x: Tensor, source: torch.Generator, shape: Sequence[int], marked: Tensor | None) -> Tensor:
        chance = torch.rand(shape, generator=source, device=x.device)
        noise = torch.randn(shape, generator=source, device=x.device)
        return overwritten(x, self.suspects(x) if marked is None else marked, chance, noise, self.probability)
