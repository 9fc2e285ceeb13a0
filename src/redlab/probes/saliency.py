"""Which filters of a victim an image disturbs, and where in the image.

REDRL, section 5 and appendix B (eq. 6), after "Where do Models go Wrong? Parameter-Space Saliency Maps for
Explainability" (Levin et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.precision import full_precision

QUARTERS = 4
NO_SPREAD = 1e-14
"""A filter whose saliency varies no more than this is not divided by it."""


@contextmanager
def _filters(victim: nn.Module, image: Tensor) -> Iterator[dict[str, Tensor]]:
    """The weights of a network's convolutions by name, in the order in which they work, free to take a gradient.

    Meanwhile they have hooks, so that a victim computes with them and not with its faster twin.
    """
    order: dict[nn.Conv2d, None] = {}
    names = {m: f"{name}.weight" for name, m in victim.named_modules() if isinstance(m, nn.Conv2d)}

    def note(layer: nn.Conv2d, _: Any) -> None:
        order.setdefault(layer)

    handles = [layer.register_forward_pre_hook(note) for layer in names]
    try:
        with torch.no_grad():
            victim(image)
        yield {names[m]: m.weight.detach().clone().requires_grad_() for m in order}
    finally:
        for handle in handles:
            handle.remove()


def _slopes(
    victim: nn.Module, weights: Mapping[str, Tensor], image: Tensor, label: Tensor, *, again: bool = False
) -> Tensor:
    """(K,) s_k of one image: the mean of |d cross-entropy / d weight| over the weights of each filter."""
    logits = torch.func.functional_call(victim, dict(weights), (image,))
    loss = F.cross_entropy(logits.float(), label)
    gradients = torch.autograd.grad(loss, [*weights.values()], create_graph=again)
    return torch.cat([gradient.abs().flatten(1).mean(1) for gradient in gradients])


def filter_saliency(victim: nn.Module, x: Tensor, label: Tensor) -> tuple[Tensor, list[int]]:
    """Eq. 6, its first line: how much each filter matters to the loss of each image.

    Filters are output channels of convolutions, layer after layer in the order in which the network computes them; a
    layer that is used several times is there once. The network is as it was afterwards.

    Args:
        victim: in eval mode.
        x: (B, C, H, W) in [0, 1].
        label: (B,) int64, true classes.

    Returns:
        (B, K) float32, and the number of filters of each layer.

    Raises:
        ValueError: the network has no convolution.
    """
    with torch.inference_mode(False), torch.enable_grad(), full_precision():
        images, labels = x.detach().clone(), label.clone()
        with _filters(victim, images[:1]) as weights:
            if not weights:
                raise ValueError(f"{type(victim).__name__} has no convolution, and so no filters")
            rows = [_slopes(victim, weights, images[i : i + 1], labels[i : i + 1]) for i in range(len(images))]
            return torch.stack(rows).float(), [len(weight) for weight in weights.values()]


def input_saliency(
    victim: nn.Module,
    x: Tensor,
    label: Tensor,
    normalise: Callable[[Tensor], Tensor],
    *,
    top: int = 10,
    boost: float = 100.0,
) -> Tensor:
    """Where the image would have to change to disturb its most salient filters more.

    The gradient, by the image, of the cosine distance between the image's saliencies and the same with the ``top``
    largest of them times ``boost``.

    Args:
        victim: in eval mode.
        x: (B, C, H, W) in [0, 1].
        label: (B,) int64, true classes.
        normalise: (K,) s_k -> (K,), the second line of eq. 6.
        top: how many filters.
        boost: their factor.

    Returns:
        (B, C, H, W), with its sign.
    """
    maps = []
    with torch.inference_mode(False), torch.enable_grad(), full_precision():
        images, labels = x.detach().clone(), label.clone()
        with _filters(victim, images[:1]) as weights:
            for i in range(len(images)):
                image = images[i : i + 1].requires_grad_()
                salient = normalise(_slopes(victim, weights, image, labels[i : i + 1], again=True))
                wanted = salient.detach().clone()
                wanted[wanted.topk(min(top, len(wanted))).indices] *= boost
                distance = 1 - F.cosine_similarity(salient, wanted, dim=0)
                (gradient,) = torch.autograd.grad(distance, image)
                maps.append(gradient.detach())
    return torch.cat(maps)


def as_picture(gradients: Tensor) -> Tensor:
    """(B, C, H, W) with a sign -> (B, 1, H, W) in [0, 1], as the authors of the maps show them.

    The largest channel's absolute value, cut at the 90th and 99th percentile of the image, and blurred over 3x3 pixels.
    """
    values = gradients.amax(1, keepdim=True).abs().float()
    low, high = torch.quantile(values.flatten(1), torch.tensor([0.9, 0.99], device=values.device), dim=1)
    low, high = (edge.view(-1, 1, 1, 1) for edge in (low, high))
    shown = (values.clamp(low, high) - low) / (high - low).clamp(min=1e-30)
    blurred: Tensor = gaussian_blur(shown, [3, 3])
    return blurred.clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class Saliency:
    """Saliency of the attacked victim's filters on the attacked image, for the true class (REDRL, eq. 6, Fig. 5 to 15).

    What is usual of a filter comes from clean validation images: shat_k = |s_k - mean_k| / std_k. Columns ``saliency``,
    the mean of shat over the filters; ``saliency_q1`` to ``saliency_q4``, the shares of the quarters of the layers, in
    order, in the sum of the layers' means; ``saliency_peak``, the place of the layer with the largest mean, from 0 for
    the first to 1 for the last. Pictures ``profile`` (N, 1, 1, K), shat sorted from most to least within each layer,
    and NaN behind the last filter of a victim that has fewer than another; with ``maps`` also ``input_saliency``
    (N, 1, H, W) in [0, 1], see ``input_saliency``.

    Attributes:
        reference: how many validation images say what is usual.
        absolute: as the paper has it; the authors of parameter saliency leave a filter below its mean negative.
        maps: with maps of the input, which take second derivatives.
        top: see ``input_saliency``.
        boost: see ``input_saliency``.
        usual: name of a victim -> (2, K) mean and standard deviation of each filter; set by ``ready``.
    """

    reference: int = 200
    absolute: bool = True
    maps: bool = False
    top: int = 10
    boost: float = 100.0
    usual: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.reference < 2:
            raise ValueError(f"reference must be at least 2 images, got {self.reference}")
        if self.top < 1 or not self.boost > 0:
            raise ValueError(f"top must be at least 1 and boost positive, got {self.top} and {self.boost}")

    def ready(self, victims: Mapping[str, nn.Module], clean: Callable[[int], tuple[Tensor, Tensor]]) -> Saliency:
        """The probe, knowing what is usual.

        Args:
            victims: by name.
            clean: number -> so many clean validation images (B, C, H, W) in [0, 1], and their labels.

        Raises:
            ValueError: there are fewer than two such images.
        """
        x, label = clean(self.reference)
        if len(x) < 2:
            raise ValueError(f"saliency needs two validation images or more to compare with, got {len(x)}")
        usual = {}
        for name, victim in victims.items():
            found, _ = filter_saliency(victim, x, label)
            spread = found.std(0)
            usual[name] = torch.stack([found.mean(0), torch.where(spread <= NO_SPREAD, 1.0, spread)])
        return replace(self, usual=usual)

    def normalised(self, victim: str, found: Tensor) -> Tensor:
        """(..., K) s_k -> (..., K) shat_k.

        Raises:
            ValueError: what is usual is not known yet.
        """
        if self.usual is None:
            raise ValueError("what is usual of a filter is not known yet: data.attach(method, probe=...) sees to it")
        mean, spread = self.usual[victim].to(found.device)
        scaled: Tensor = (found - mean) / spread
        return scaled.abs() if self.absolute else scaled

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``redlab.probes.Probe``."""
        many = max(values.shape[1] for values in (self.usual or {"": torch.empty(2, 1)}).values())
        names = ("saliency", *(f"saliency_q{n + 1}" for n in range(QUARTERS)), "saliency_peak")
        columns = {name: batch.adv.new_full((len(batch),), torch.nan, dtype=torch.float64) for name in names}
        pictures = {"profile": batch.adv.new_full((len(batch), 1, 1, many), torch.nan)}
        if self.maps:
            pictures["input_saliency"] = torch.zeros_like(batch.adv[:, :1])
        for number, (name, victim) in enumerate(victims.items()):
            rows = (batch.victim == number).nonzero()[:, 0]
            if not len(rows):
                continue
            x, label = batch.adv[rows], batch.label[rows]
            found, layers = filter_saliency(victim, x, label)
            salient = self.normalised(name, found)
            for column, values in zip(names, _told(salient.double(), layers), strict=True):
                columns[column][rows] = values
            ordered = [layer.sort(dim=1, descending=True).values for layer in torch.split(salient, layers, dim=1)]
            pictures["profile"][rows, 0, 0, : salient.shape[1]] = torch.cat(ordered, dim=1)
            if self.maps:
                normalise = partial(self.normalised, name)
                gradients = input_saliency(victim, x, label, normalise, top=self.top, boost=self.boost)
                pictures["input_saliency"][rows] = as_picture(gradients)
        return columns | pictures


def _told(salient: Tensor, layers: Sequence[int]) -> Iterator[Tensor]:
    """(N, K) shat -> the columns of ``Saliency``, (N,) each."""
    means = torch.stack([layer.mean(1) for layer in torch.split(salient, list(layers), dim=1)], dim=1)
    yield salient.mean(1)
    ends = [len(layers) * n // QUARTERS for n in range(QUARTERS + 1)]  # of few layers, the last is in the last quarter
    for first, last in pairwise(ends):
        yield means[:, first:last].sum(1) / means.sum(1)
    yield means.argmax(1).double() / max(len(layers) - 1, 1)
