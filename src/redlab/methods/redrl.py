"""REDRL, which says by which attack an image was made, with its two baselines.

"Identification of Attack-Specific Signatures in Adversarial Examples" (2021; ICASSP 2024): a reconstructor G estimates
the clean image, I_g = G(I_adv); the residual I_r = I_adv - I_g estimates the perturbation; a recogniser Psi tells the
attacks apart by both, Psi(cat[I_r, I_adv]) (eq. 4). G and Psi are trained together (eq. 5) so that I_g is close to the
clean image (L_R), in the features of a frozen network (L_F) and in the class that a frozen classifier gives (L_IC), and
so that Psi is right (L_AC). The baselines are Psi on the image alone, and an oracle that is shown the perturbation.

Where the paper is open, this follows the authors' code: sums over an image, norms that are not squared, hard labels,
a clamped image in the residual alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from redlab.batch import AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial, chosen
from redlab.victims import ImageClassifier

PIXELS, FEATURES = 3 * 64 * 64, 256 * 16 * 16
"""Numbers of an image and of its features in the paper, for which its weights are meant."""

INPUTS = ("redrl", "image", "delta")

# ---- losses -------------------------------------------------------------------------------------------------------


def reconstruction_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """L_R: the 1-norm of the error of an image, mean over images.

    Args:
        restored: (N, C, H, W), I_g, not clamped.
        clean: (N, C, H, W), I_c.
    """
    return (restored - clean).abs().flatten(1).sum(1).mean()


def feature_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """L_F: the 2-norm of the error of an image's features, mean over images.

    Args:
        restored: (N, ...), F(I_g).
        clean: (N, ...), F(I_c).
    """
    distance: Tensor = torch.linalg.vector_norm((restored - clean).flatten(1), dim=1)
    return distance.mean()


def class_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """L_IC: cross-entropy with the classifier's own class of the clean image, mean over images.

    Args:
        restored: (N, K) logits, Phi(I_g).
        clean: (N, K) logits, Phi(I_c).
    """
    return F.cross_entropy(restored, clean.argmax(1))


def attack_loss(logits: Tensor, attack: Tensor, smoothing: float) -> Tensor:
    """L_AC: cross-entropy of the recogniser, mean over images.

    Args:
        logits: (N, A).
        attack: (N,) int64, ids of the attacks.
        smoothing: share of the target that is spread over all A.
    """
    return F.cross_entropy(logits, attack, label_smoothing=smoothing)


def residual(x: Tensor, restored: Tensor) -> Tensor:
    """I_r (eq. 4): what the attack is taken to have added, with I_g clamped to [0, 1].

    Args:
        x: (N, C, H, W) in [0, 1].
        restored: (N, C, H, W), I_g.
    """
    return x - restored.clamp(0, 1)


# ---- networks -----------------------------------------------------------------------------------------------------


class Reconstructor(nn.Module):
    """G: a convolution, residual blocks without normalisation, a convolution; the size of the image is kept.

    Nothing carries the image past them, or the perturbation would come with it: "no skip connection" of the paper is
    read so, and the identity inside each block stays.

    Args:
        channels: of the images.
        width: channels in between.
        blocks: how many.
        inner_skip: the identity inside each block.
        global_skip: adds the input to the output, which the paper does not.

    Raises:
        ValueError: a size is too small.

    >>> sum(p.numel() for p in Reconstructor(3).parameters())
    1702211
    """

    def __init__(
        self, channels: int, width: int = 64, blocks: int = 23, *, inner_skip: bool = True, global_skip: bool = False
    ) -> None:
        super().__init__()
        for what, size, least in (("channels", channels, 1), ("width", width, 1), ("blocks", blocks, 0)):
            if size < least:
                raise ValueError(f"{what} must be at least {least}, got {size}")
        self.inner_skip, self.global_skip = inner_skip, global_skip
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        for convolution in self.blocks.modules():
            if isinstance(convolution, nn.Conv2d):
                nn.init.kaiming_normal_(convolution.weight)
                nn.init.zeros_(cast(Tensor, convolution.bias))
                with torch.no_grad():
                    convolution.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked -> (B, C, H, W) clean, not clamped."""
        h = F.leaky_relu(self.first(x), 0.1)
        for block in self.blocks:
            h = h + block(h) if self.inner_skip else block(h)
        out: Tensor = self.last(h)
        return x + out if self.global_skip else out


class Recogniser(nn.Module):
    """Psi: a ResNet-18 with two linear layers behind it.

    Args:
        channels: of its input; 6 for a residual and an image in colour.
        attacks: A.
        width: channels of its first stage.
        bias: of the first convolution; torchvision's has none, and the wider one of the authors' code has.
        stem: "imagenet": 7x7 with stride 2 and a pool; "cifar": 3x3, as images of less than 64 pixels need it.

    Raises:
        ValueError: a size is too small, or the stem unknown.

    >>> sum(p.numel() for p in Recogniser(6, 6).parameters())
    11202598
    """

    def __init__(
        self, channels: int, attacks: int, width: int = 64, *, bias: bool = True, stem: str = "imagenet"
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"recogniser_width must be at least 1, got {width}")
        if stem not in (stems := ("imagenet", "cifar")):
            raise ValueError(f"stem must be one of {stems}, got {stem!r}")
        wide = stem == "imagenet"
        size, stride = (7, 2) if wide else (3, 1)
        first = nn.Conv2d(channels, width, size, stride, size // 2, bias=bias)
        pool = [nn.MaxPool2d(3, 2, 1)] if wide else []
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pool)
        stages = [_stage(width * 2 ** max(n - 1, 0), width * 2**n, 1 if n == 0 else 2) for n in range(4)]
        self.stages = nn.Sequential(*stages)
        head = nn.Linear(8 * width, 32), nn.ReLU(inplace=True), nn.Linear(32, attacks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision's
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, A) logits."""
        logits: Tensor = self.head(self.stages(self.stem(x)))
        return logits


def _stage(before: int, width: int, stride: int) -> nn.Sequential:
    down = None
    if stride != 1 or before != width:
        down = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    return nn.Sequential(BasicBlock(before, width, stride, down), BasicBlock(width, width))


# ---- the method ---------------------------------------------------------------------------------------------------


class REDRL(Method):
    """Identifier and restorer; with another ``input`` one of the two baselines, which only identify.

    The weights of L_R and L_F are those of the paper's images, 3 x 64 x 64. A sum over an image and a norm of features
    grow with the size of the image, so by default both are brought to that size: L_R times 12288 / (C H W), L_F times
    sqrt(65536 / n) with n features. At the paper's sizes both factors are 1.

    Attributes:
        oracle: whether it must be shown the clean image, see ``redlab.batch.is_oracle``.

    Args:
        victims: classifiers by name, images in [0, 1] -> logits.
        helpers: ``features``, a frozen network with a feature layer: F of L_F. Not needed where L_F has no weight.
        attack_names: what is told apart; the first is "clean".
        classifier: name of the victim that is Phi of L_IC; None: the first one.
        optimizer: partial, see ``Method``. Biases have no weight decay, as in the authors' code.
        scheduler: partial, see ``Method``.
        channels: of the images.
        input: what the recogniser sees: "redrl": residual and image; "image": the image; "delta": the perturbation
            itself and the image, which only an oracle can.
        width: channels of the reconstructor.
        blocks: of the reconstructor.
        inner_skip: see ``Reconstructor``.
        global_skip: see ``Reconstructor``.
        recogniser_width: channels of the recogniser's first stage.
        stem: of the recogniser, "imagenet" or "cifar".
        lambda_pixel: weight of L_R.
        lambda_feature: weight of L_F.
        lambda_class: weight of L_IC.
        rescale: bring L_R and L_F to the paper's sizes.
        label_smoothing: of L_AC, in [0, 1].

    Raises:
        ValueError: an option is unknown or out of range, or a network that a loss needs is not given.
    """

    frozen: Sequence[str] = ()
    classifier: nn.Module
    features: ImageClassifier

    def __init__(
        self,
        *,
        victims: Mapping[str, nn.Module],
        helpers: Mapping[str, nn.Module],
        attack_names: Sequence[str],
        classifier: str | None = None,
        optimizer: OptimizerPartial,
        scheduler: SchedulerPartial | None = None,
        channels: int = 3,
        input: str = "redrl",
        width: int = 64,
        blocks: int = 23,
        inner_skip: bool = True,
        global_skip: bool = False,
        recogniser_width: int = 64,
        stem: str = "imagenet",
        lambda_pixel: float = 0.01,
        lambda_feature: float = 0.1,
        lambda_class: float = 1.0,
        rescale: bool = True,
        label_smoothing: float = 0.1,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if input not in INPUTS:
            raise ValueError(f"input must be one of {INPUTS}, got {input!r}")
        weights = (lambda_pixel, lambda_feature, lambda_class)
        if not (min(weights) >= 0 and sum(weights) < math.inf):
            raise ValueError(f"loss weights must be finite and not negative, got {weights}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        self.save_hyperparameters(ignore=["victims", "helpers", "attack_names", "optimizer", "scheduler"])
        self.attack_names = list(attack_names)
        self.input, self.oracle = input, input == "delta"
        self.lambda_pixel, self.lambda_feature, self.lambda_class = weights
        self.rescale, self.label_smoothing = rescale, label_smoothing
        self.monitor = "val/identified"
        pair = input != "image"
        seen = 2 * channels if pair else channels
        self.recogniser = Recogniser(seen, len(attack_names), recogniser_width, bias=pair, stem=stem)
        if input != "redrl":
            if sum(weights):
                raise ValueError(f"input={input} has no reconstructor to weigh losses of: set all to 0, got {weights}")
            self.capabilities = frozenset({"identifier"})
            return
        self.reconstructor = Reconstructor(channels, width, blocks, inner_skip=inner_skip, global_skip=global_skip)
        if lambda_class:
            classifier = chosen("classifier", classifier, victims)
            self.classifier = victims[classifier].requires_grad_(False).eval()
        if lambda_feature:
            features = helpers.get("features")
            if not isinstance(features, ImageClassifier):
                raise ValueError(
                    "lambda_feature needs a network with a feature layer as helpers.features: add "
                    "+victim@method.helpers.features=..., or set lambda_feature to 0"
                )
            self.features = features.requires_grad_(False).eval()
        self.frozen = tuple(n for n, used in (("classifier", lambda_class), ("features", lambda_feature)) if used)

    def parameter_groups(self, parameters: Iterable[nn.Parameter]) -> Any:
        """Biases apart, without weight decay."""
        biases = {id(p) for name, p in self.named_parameters() if "bias" in name}
        mine = list(parameters)
        groups = [{"params": [p for p in mine if id(p) not in biases]}]
        return [*groups, {"params": [p for p in mine if id(p) in biases], "weight_decay": 0.0}]

    def estimate(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked -> (B, C, H, W), I_g = G(x), not clamped.

        Raises:
            ValueError: this is one of the baselines.
        """
        if self.input != "redrl":
            raise ValueError(f"method.input={self.input} has no reconstructor and restores nothing")
        estimated: Tensor = self.reconstructor(x)
        return estimated

    def restore(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked, in [0, 1] -> (B, C, H, W), I_g as images: clamped to [0, 1]."""
        return self.clamped_estimate(x)

    def attack_logits(self, x: Tensor, clean: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, A) logits over ``attack_names``.

        Args:
            x: images.
            clean: (B, C, H, W), the clean images, which the oracle alone needs and looks at.

        Raises:
            ValueError: it is the oracle, and there are no clean images.
        """
        if self.input == "image":
            return self._recognised(x)
        if self.input == "redrl":
            return self._recognised(x, residual(x, self.estimate(x)))
        if clean is None:
            raise ValueError("method.input=delta is an oracle: it can judge images only where the clean ones are known")
        return self._recognised(x, x - clean)

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        """Eq. 5 on a batch."""
        terms = self.loss_terms(batch.valid_rows())
        weights = {"pixel": self.lambda_pixel, "feature": self.lambda_feature, "class": self.lambda_class}
        loss = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def loss_terms(self, batch: AttackBatch) -> dict[str, Tensor]:
        """L_AC ("attack") and, where they have a weight, L_R ("pixel"), L_F ("feature") and L_IC ("class"): scalars."""
        if self.input != "redrl":
            logits = self.attack_logits(batch.adv, batch.clean)
            return {"attack": attack_loss(logits, batch.kind, self.label_smoothing)}
        restored = self.estimate(batch.adv)
        logits = self._recognised(batch.adv, residual(batch.adv, restored))
        terms = {"attack": attack_loss(logits, batch.kind, self.label_smoothing)}
        if self.lambda_pixel:
            many = restored[0].numel()
            terms["pixel"] = reconstruction_loss(restored, batch.clean) * (PIXELS / many if self.rescale else 1.0)
        if self.lambda_feature:
            with torch.no_grad():
                truth = self.features.features(batch.clean)
            many = truth[0].numel()
            distance = feature_loss(self.features.features(restored), truth)
            terms["feature"] = distance * (math.sqrt(FEATURES / many) if self.rescale else 1.0)
        if self.lambda_class:
            with torch.no_grad():
                said = self.classifier(batch.clean)
            terms["class"] = class_loss(self.classifier(restored), said)
        return terms

    def _recognised(self, x: Tensor, perturbation: Tensor | None = None) -> Tensor:
        logits: Tensor = self.recogniser(x if perturbation is None else torch.cat([perturbation, x], dim=1))
        return logits
