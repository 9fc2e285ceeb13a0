"""CDD-RED with its baselines DO and DS.

"Reverse Engineering of Imperceptible Adversarial Image Perturbations" (ICLR 2022): one denoiser D estimates the clean
image, x_RED = D(x'), so that x_RED is close to x (eq. 2), x_RED is classified like x, and x'_RED = x' - x_RED + x, the
clean image under the estimated perturbation, like x' (eq. 3). Both images of a pair are augmented alike, and pairs
whose class the augmentation changed do not count in eq. 3 (eq. 4).

Where the paper is open: element means, hard labels, and the original pairs beside the augmented ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redlab.batch import AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial, chosen
from redlab.nn import DnCNN
from redlab.rng import generator

# ---- losses -------------------------------------------------------------------------------------------------------


def denoising_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Eq. 2: mean absolute error over all elements.

    Args:
        restored: (N, C, H, W), D(x').
        clean: (N, C, H, W), x.
    """
    return (restored - clean).abs().mean()


def prediction_alignment(logits: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """Eq. 3, one of its two terms: cross-entropy with the classifier's own class, mean over the kept rows.

    Args:
        logits: (N, K), f(x_RED) or f(x'_RED).
        label: (N,) int64, class of f(x) or f(x').
        keep: (N,) bool; the result is 0 if it is False throughout.
    """
    loss = F.cross_entropy(logits, label, reduction="none")
    return torch.where(keep, loss, 0.0).sum() / keep.sum().clamp(min=1)


def cdd_objective(
    denoising: Tensor,
    pa_benign: Tensor,
    pa_adv: Tensor,
    *,
    reconstruction: float = 1.0,
    lambda_benign: float = 0.025,
    lambda_adv: float = 0.025,
) -> Tensor:
    """Eq. 4: weighted sum of the three scalar terms."""
    return reconstruction * denoising + lambda_benign * pa_benign + lambda_adv * pa_adv


def keep_mask(label: Tensor, reference: Tensor, original: Tensor, rule: str) -> Tensor:
    """The set of eq. 4: which pairs enter each of the two terms of eq. 3.

    Args:
        label: (2, N) int64, the classifier's classes of the transformed clean and adversarial images.
        reference: (2, B) int64, the same before the transformation; N is a multiple of B, view after view.
        original: (N,) bool, pairs that were not transformed.
        rule: "joint": both classes unchanged; "separate": each term looks at its own image only; "all": every pair;
            "original": pairs that were not transformed.

    Returns:
        (2, N) bool, for the benign and for the adversarial term.

    Example:
        >>> label, reference = torch.tensor([[3, 3], [5, 6]]), torch.tensor([[3], [5]])
        >>> keep_mask(label, reference, torch.tensor([True, False]), "separate")
        tensor([[ True,  True], [ True, False]])
    """
    same = label == reference.repeat(1, label.shape[1] // reference.shape[1])
    masks = {"joint": same.all(0), "separate": same, "all": torch.ones_like(same), "original": original}
    return masks[rule].expand_as(same)


# ---- augmentations: (2, B, C, H, W) pairs -> a new tensor; the draws serve both images of a pair --------------------


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def identity(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """The pairs as they are."""
    return pairs


def crop_pad(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Keeps one square window, in place; black outside. The paper's range of sides, scaled from 224 pixels."""
    height, width = pairs.shape[-2:]
    lower = _draw(1, max(1, round(180 * height / 224)), generator)
    half = _draw(lower, height, generator) // 2
    y, x = _draw(0, height - 1, generator), _draw(0, width - 1, generator)
    window = (..., slice(max(0, y - half), y + half), slice(max(0, x - half), x + half))
    out = torch.zeros_like(pairs)
    out[window] = pairs[window]
    return out


def cutmix(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Fills one box with the same box of another pair. Before clipping, its share of the image is Beta(1, 1)."""
    height, width = pairs.shape[-2:]
    side = float(torch.rand((), generator=generator)) ** 0.5  # Beta(1, 1) is uniform
    y, x = _draw(0, height - 1, generator), _draw(0, width - 1, generator)
    half_y, half_x = int(height * side) // 2, int(width * side) // 2
    box = (..., slice(max(0, y - half_y), y + half_y), slice(max(0, x - half_x), x + half_x))
    donor = torch.randperm(pairs.shape[1], generator=generator)
    out = pairs.clone()
    out[box] = pairs[:, donor.to(pairs.device)][box]
    return out


def cutout(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Blackens one square hole. Its side is uniform up to a uniform bound of at most 50 of 224 pixels."""
    height, width = pairs.shape[-2:]
    side = _draw(1, _draw(1, max(1, round(50 * height / 224)), generator), generator)
    top, left = (_draw(0, length - 1, generator) - side // 2 for length in (height, width))
    out = pairs.clone()
    out[..., max(0, top) : top + side, max(0, left) : left + side] = 0
    return out


def rotation(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Turns by one angle, uniform in -180..180 degrees; black where nothing comes from."""
    return _moved(pairs, angle=360 * float(torch.rand((), generator=generator)) - 180)


def translation(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts by whole pixels, uniform up to a quarter of each side; black where nothing comes from."""
    height, width = pairs.shape[-2:]
    y, x = (_draw(-(length // 4), length // 4, generator) for length in (height, width))
    return _moved(pairs, translate=[x, y])


def _moved(pairs: Tensor, angle: float = 0.0, translate: Sequence[int] = (0, 0)) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode  # takes seconds to import
    from torchvision.transforms.v2.functional import affine

    move = {"angle": angle, "translate": list(translate), "scale": 1.0, "shear": [0.0, 0.0]}
    moved: Tensor = affine(pairs.flatten(0, 1), **move, interpolation=InterpolationMode.BILINEAR)
    return moved.view_as(pairs)


AUGMENTATIONS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "identity": identity,
    "crop_pad": crop_pad,
    "cutmix": cutmix,
    "cutout": cutout,
    "rotation": rotation,
    "translation": translation,
}
"""The paper trains with ``crop_pad`` and ``cutmix``; Fig. 4 compares them with the others."""


def transformed_views(
    pairs: Tensor, names: Sequence[str], mode: str, group: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The pairs that a step trains on.

    Args:
        pairs: (2, B, C, H, W), clean and adversarial images.
        names: keys of ``AUGMENTATIONS``.
        mode: "concat": the original pairs, then one copy per augmentation; "sample": each group is left alone or gets
            one augmentation, by equal chance; "none": the original pairs.
        group: pairs that share a mask, a box and a permutation; None: all of them.
        generator: CPU source of the draws.

    Returns:
        (2, N, C, H, W) pairs, N a multiple of B, and (N,) bool, True where a pair is an original one.
    """
    chunks = torch.split(pairs, group or pairs.shape[1], dim=1)
    choices = ["identity", *(names if mode != "none" else ())]
    if mode == "sample":
        plan = [[choices[_draw(0, len(choices) - 1, generator)] for _ in chunks]]
    else:
        plan = [[name] * len(chunks) for name in choices]
    cells = [(name, chunk) for view in plan for name, chunk in zip(view, chunks, strict=True)]
    views = torch.cat([AUGMENTATIONS[name](chunk, generator) for name, chunk in cells], dim=1)
    original = [name == "identity" for name, chunk in cells for _ in range(chunk.shape[1])]
    return views, torch.tensor(original, device=pairs.device)


# ---- the method ---------------------------------------------------------------------------------------------------


class CDDRED(Method):
    """Class-discriminative denoising (CDD-RED), denoising only (DO) and denoised smoothing (DS), by the loss switches.

    Args:
        victims: classifiers by name, images in [0, 1] -> logits.
        classifier: name of the frozen classifier f of eq. 3; None: the first victim.
        optimizer: partial, see ``Method``.
        scheduler: partial, see ``Method``.
        channels: of the images.
        depth: of the denoiser.
        width: of the denoiser.
        reconstruction: weight of eq. 2.
        lambda_benign: weight of the benign term of eq. 3; 0 for DO.
        lambda_adv: weight of the adversarial term of eq. 3; 0 for DO and DS.
        augment: names out of ``AUGMENTATIONS``, the identity aside.
        aug_mode: "concat", "sample" or "none", see ``transformed_views``.
        keep: "joint", "separate", "all" or "original", see ``keep_mask``.
        aug_group: pairs that share an augmentation's draws; None: the whole batch.
        bn_momentum: of the denoiser.
        seed: of the augmentations.

    Raises:
        ValueError: an option is unknown or out of range, or no loss has a weight.
    """

    frozen = ("classifier",)
    classifier: nn.Module

    def __init__(
        self,
        *,
        victims: Mapping[str, nn.Module],
        classifier: str | None = None,
        optimizer: OptimizerPartial,
        scheduler: SchedulerPartial | None = None,
        channels: int = 3,
        depth: int = 17,
        width: int = 64,
        reconstruction: float = 1.0,
        lambda_benign: float = 0.025,
        lambda_adv: float = 0.025,
        augment: Sequence[str] = ("crop_pad", "cutmix"),
        aug_mode: str = "concat",
        keep: str = "joint",
        aug_group: int | None = None,
        bn_momentum: float = 0.95,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.monitor = "val/pa_benign"
        classifier = chosen("classifier", classifier, victims)
        augment = [str(name) for name in augment]  # a plain list, as checkpoints need
        if unknown := set(augment) - (known := set(AUGMENTATIONS) - {"identity"}):
            raise ValueError(f"augment must be out of {sorted(known)}, got {sorted(unknown)}")
        if len(set(augment)) < len(augment):
            raise ValueError(f"augment must not name one augmentation twice, got {augment}")
        if not augment and aug_mode != "none":
            raise ValueError(f"augment must name at least one of {sorted(known)}, or aug_mode be 'none', got {augment}")
        if aug_mode not in (modes := ("concat", "sample", "none")):
            raise ValueError(f"aug_mode must be one of {modes}, got {aug_mode!r}")
        if keep not in (rules := ("joint", "separate", "all", "original")):
            raise ValueError(f"keep must be one of {rules}, got {keep!r}")
        if aug_group is not None and aug_group < 1:
            raise ValueError(f"aug_group must be at least 1, got {aug_group}")
        weights = (reconstruction, lambda_benign, lambda_adv)
        if not (min(weights) >= 0 and 0 < sum(weights) < float("inf")):
            raise ValueError(f"loss weights must not be negative and not all zero, got {weights}")
        self.save_hyperparameters(ignore=["victims", "optimizer", "scheduler"])
        self.reconstruction, self.lambda_benign, self.lambda_adv = weights
        self.augment, self.aug_mode, self.aug_group = augment, aug_mode, aug_group
        self.keep, self.seed = keep, seed
        self.denoiser = DnCNN(channels, depth, width, bn_momentum)
        self.classifier = victims[classifier].requires_grad_(False).eval()

    def estimate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked -> (B, C, H, W), x_RED = D(x), not clamped."""
        estimated: Tensor = self.denoiser(x)
        return estimated

    def restore(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked, in [0, 1] -> (B, C, H, W), x_RED as images: clamped to [0, 1]."""
        return self.clamped_estimate(x)

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        """Eq. 4 on a batch."""
        draws = generator("augment", self.seed, self.batches, batch_idx, self.global_rank)
        terms = self.loss_terms(batch.valid_rows(), draws)
        loss = cdd_objective(
            *terms,
            reconstruction=self.reconstruction,
            lambda_benign=self.lambda_benign,
            lambda_adv=self.lambda_adv,
        )
        names = ("denoising", "alignment_benign", "alignment_adv")
        self.log_dict({f"train/{name}": term for name, term in zip(names, terms, strict=True)})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def loss_terms(self, batch: AttackBatch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Eq. 2 and the two terms of eq. 3, each a scalar; 0 for a term of eq. 3 that has no weight."""
        pairs = torch.stack([batch.clean, batch.adv])
        views, original = transformed_views(pairs, self.augment, self.aug_mode, self.aug_group, generator)
        clean, adv = views
        restored = self.estimate(adv)
        zero = restored.new_zeros(())
        terms = [denoising_loss(restored, clean), zero, zero]
        if self.lambda_benign or self.lambda_adv:
            label = self._predict(views)
            reference = self._predict(pairs) if self.aug_mode == "sample" else label[:, : len(batch)]
            keep = keep_mask(label, reference, original, self.keep)
            if self.lambda_benign:
                terms[1] = prediction_alignment(self.classifier(restored), label[0], keep[0])
            if self.lambda_adv:
                terms[2] = prediction_alignment(self.classifier(adv - restored + clean), label[1], keep[1])
        return terms[0], terms[1], terms[2]

    @torch.no_grad()
    def _predict(self, pairs: Tensor) -> Tensor:
        """(2, N, C, H, W) -> (2, N) int64, the classifier's classes."""
        logits: Tensor = self.classifier(pairs.flatten(0, 1))
        return logits.argmax(1).view(2, -1)
