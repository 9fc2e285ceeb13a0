"""What stands around a network: padding, normalisation, a feature layer by name, and for victims the freezing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redlab.spelling import nearest
from redlab.victims.facts import facts_of
from redlab.victims.folded import Folded


class ImageClassifier(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> pad with black -> (x - mean) / std -> backbone -> logits (B, K).

    None means what is known of the architecture (`redlab.victims.facts`), and where nothing is, as of any module that
    is not one of ``redlab.victims.architectures``, what is said below.

    Args:
        backbone: any module that returns logits.
        num_classes: K.
        mean: per channel, or one number for all channels; None means 0.
        std: likewise; None means 1.
        input_size: images are padded centrally with black up to it; None leaves them as they are, but for those that
            are smaller than the architecture takes, which are padded up to that.
        feature_layer: dotted name of the module inside the backbone whose output ``features`` returns; None means that
            there is none.
        name: what messages call this network.

    Raises:
        ValueError: a number out of range, or a feature layer that the backbone does not have.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        input_size: int | None = None,
        feature_layer: str | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if input_size is not None and input_size < 1:
            raise ValueError(f"input_size must be positive, got {input_size}")
        known = facts_of(backbone)
        means = _per_channel(known.mean if mean is None else mean, 0.0)
        stds = _per_channel(known.std if std is None else std, 1.0)
        if min(stds) <= 0:
            raise ValueError(f"std must be positive, got {stds}")
        if len(means) != len(stds) and 1 not in (len(means), len(stds)):
            raise ValueError(f"mean and std differ in length: {means} and {stds}")
        self.backbone = backbone
        self.num_classes = num_classes
        self.input_size = input_size
        self.feature_layer = known.feature_layer if feature_layer is None else feature_layer
        self.name = name
        with torch.inference_mode(False):  # a buffer made inside inference mode could never take part in a gradient
            self.register_buffer("mean", torch.tensor(means).view(1, -1, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(stds).view(1, -1, 1, 1), persistent=False)
        if self.feature_layer is not None:
            self.layer(self.feature_layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits.

        Raises:
            ValueError: the images do not have the channels of mean and std, or are larger than ``input_size``, or the
                backbone does not return K logits.
        """
        # Broadcasting would silently turn one channel into three.
        if self._channels() not in (1, x.shape[1]):
            raise ValueError(
                f"victim '{self.name}' normalises {self._channels()} channels, the images have {x.shape[1]}"
            )
        high, wide = x.shape[-2:]
        if self.input_size is not None and max(high, wide) > self.input_size:
            raise ValueError(
                f"victim '{self.name}' takes images of at most input_size={self.input_size} pixels a side, got "
                f"{high}x{wide}: set victims.{self.name or '<name>'}.input_size to {max(high, wide)}, or to null "
                f"for no padding, or data.image_size to {self.input_size}"
            )
        least = facts_of(self.backbone).smallest if self.input_size is None else self.input_size
        if min(high, wide) < least:
            x = _pad_to(x, max(high, least), max(wide, least))
        network, x = self._network(), (x - self.mean) / self.std
        first = next(network.parameters(), None)
        if first is not None and first.is_floating_point():
            x = x.to(first.dtype)  # of a network in half or double precision; mean and std are float32
        logits = network(x)
        if not isinstance(logits, Tensor) or logits.shape != (x.shape[0], self.num_classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"victim '{self.name}' should return logits {(x.shape[0], self.num_classes)}, got {got}")
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Output of ``feature_layer`` for images (B, C, H, W); gradients flow back to them.

        Raises:
            ValueError: no feature layer is set, or the forward pass does not reach it.
        """
        seen: list[Tensor] = []
        # The clone keeps the values if the next module (a ReLU, mostly) works in place.
        handle = self.layer().register_forward_hook(lambda _module, _input, output: seen.append(output.clone()))
        try:
            self(x)
        finally:
            handle.remove()
        if not seen:
            raise ValueError(f"layer '{self.feature_layer}' of victim '{self.name}' is not used in its forward pass")
        return seen[-1]

    def layer(self, name: str | None = None) -> nn.Module:
        """The module of the backbone with this dotted name, by default the feature layer.

        Raises:
            ValueError: no name is given or set, or there is no such module.
        """
        name = self.feature_layer if name is None else name
        if name is None:
            raise ValueError(f"victim '{self.name}' has no feature_layer")
        modules: dict[str, nn.Module] = dict(self.backbone.named_modules())
        if name not in modules:
            near = nearest(name, modules, n=5, cutoff=0.4) or list(modules)[-5:]
            raise ValueError(f"victim '{self.name}' has no layer '{name}'; near names: {', '.join(near)}")
        return modules[name]

    def describe(self) -> dict[str, Any]:
        """Plain values from which ``redlab.victims.load`` rebuilds this object around its weights."""
        return {
            "architecture": getattr(self.backbone, "redlab_arch", None),
            "class": f"{type(self.backbone).__module__}.{type(self.backbone).__qualname__}",
            "num_classes": self.num_classes,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "input_size": self.input_size,
            "feature_layer": self.feature_layer,
            "name": self.name,
        }

    def _network(self) -> nn.Module:
        return self.backbone

    def _channels(self) -> int:
        return max(self.mean.numel(), self.std.numel())


class Victim(ImageClassifier):
    """An image classifier that is frozen and in eval mode for good; ``train()`` leaves it there.

    The backbone itself is frozen, not a copy of it; logits come from its faster twin (``Folded``), features from the
    backbone. Takes the arguments of ``ImageClassifier`` and

    Args:
        backbone: any module that returns logits.
        clean_accuracy: in [0, 1], where it is known.
        settings: ``num_classes``, ``mean``, ``std``, ``input_size``, ``feature_layer`` and ``name``.

    Raises:
        ValueError: as for ``ImageClassifier``, or the backbone was made inside ``torch.inference_mode``.

    >>> victim = Victim(nn.Sequential(nn.Flatten(), nn.Linear(9, 2)), num_classes=2, input_size=3)
    >>> victim(torch.zeros(4, 1, 2, 2)).shape, victim.train().training
    (torch.Size([4, 2]), False)
    """

    identity: str | None = None
    """Of a victim that a run has trained: a hash of network, recipe and images, set by who knows them."""

    def __init__(self, backbone: nn.Module, *, clean_accuracy: float | None = None, **settings: Any) -> None:
        super().__init__(backbone, **settings)
        if any(tensor.is_inference() for tensor in [*backbone.parameters(), *backbone.buffers()]):
            raise ValueError(f"victim '{self.name}' was made inside torch.inference_mode and can have no gradients")
        self.clean_accuracy = clean_accuracy
        self.requires_grad_(False)
        self.eval()
        self._folded = Folded(backbone)

    def train(self, mode: bool = True) -> Victim:
        """Stays in eval mode."""
        super().train(False)
        return self

    def __repr__(self) -> str:
        """What it is in a line, not its tree of modules."""
        arch = getattr(self.backbone, "redlab_arch", None)
        kind = arch["name"] if arch else type(self.backbone).__name__
        count = sum(parameter.numel() for parameter in self.parameters())
        known = "" if self.clean_accuracy is None else f", {self.clean_accuracy:.1%} right on clean images"
        return f"Victim({self.name or 'unnamed'}: {kind}, {self.num_classes} classes, {count:,} parameters{known})"

    def redlab_unused(self) -> nn.Module | None:
        """The backbone while its twin computes the logits, so that nobody speeds it up for nothing."""
        return None if self._network() is self.backbone else self.backbone

    def _network(self) -> nn.Module:
        return self._folded.fastest()


def state_hash(module: nn.Module) -> str:
    """sha256 over the names, types, shapes and bytes of all parameters and buffers, the normalisation included."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda item: item[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _per_channel(value: Sequence[float] | float | None, default: float) -> list[float]:
    if value is None:
        return [default]
    return [float(value)] if isinstance(value, (int, float)) else [float(v) for v in value]


def _pad_to(x: Tensor, high: int, wide: int) -> Tensor:
    """Centres images in black; an odd difference goes to the right and the bottom."""
    high, wide = high - x.shape[-2], wide - x.shape[-1]
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
