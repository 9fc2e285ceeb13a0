"""What a method's latent vectors and first activations are, and how dense the neighbourhood of an image is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers
from redlab.precision import full_precision
from redlab.rng import SampleRng


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The latent vector of each attacked image, of a method with ``latent(x)``: columns ``z0``, ``z1``, ...

    Attributes:
        most: of so many numbers, evenly spread over the vector.
    """

    most: int = 256

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the method has no latent vector.
        """
        if not hasattr(method, "latent"):
            raise ValueError(f"{type(method).__name__} has no latent vector to look at")
        with torch.no_grad(), full_precision():
            z = method.latent(batch.adv).float()
        kept = torch.linspace(0, z.shape[1] - 1, min(self.most, z.shape[1]), device=z.device).round().long()
        return {f"z{place}": z[:, number].double() for place, number in enumerate(kept)}


@dataclass(frozen=True, kw_only=True)
class FirstMap:
    """One channel of the first activation of a method's ``encoder``: pictures ``map``, from its least to its largest.

    Attributes:
        channel: which; the last one where there are fewer.
    """

    channel: int = 10

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the method has no such encoder.
        """
        if not hasattr(method, "encoder") or not hasattr(method, "frame"):
            raise ValueError(f"{type(method).__name__} has no encoder to look into")
        with torch.no_grad(), full_precision():
            maps: Tensor = method.encoder.body[:2](method.frame.inside(batch.adv)).float()
        one = maps[:, min(self.channel, maps.shape[1] - 1)]
        low, high = one.amin((1, 2), keepdim=True), one.amax((1, 2), keepdim=True)
        return {"map": ((one - low) / (high - low).clamp(min=1e-12))[:, None], "adv": batch.adv}


def intrinsic_dimension(points: Tensor, reference: Tensor, neighbours: int) -> Tensor:
    """The local intrinsic dimension of each point among others, by the estimate of maximal likelihood.

    -1 / mean(log(r_i / r_k)) over the distances r_1 to r_k to its neighbours, the nearest one left out, which is the
    point itself where it is among them ("Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality",
    2018, eq. 4, and its code).

    Args:
        points: (N, D).
        reference: (M, D), M of at least 2.
        neighbours: k; at most M - 1 of them are used.

    Returns:
        (N,) float64.
    """
    distance = torch.cdist(points.double(), reference.double(), compute_mode="donot_use_mm_for_euclid_dist")
    k = min(neighbours, len(reference) - 1)
    near = distance.sort(dim=1).values[:, 1 : k + 1].clamp(min=1e-12)
    return -1 / (near / near[:, -1:]).log().mean(1).clamp(max=-1e-12)


@dataclass(frozen=True, kw_only=True)
class IntrinsicDimension:
    """LID of each image among the clean images of its batch, layer by layer of the attacked victim.

    Columns ``<what>_<layer>`` with ``what`` one of ``adv``, ``clean``, ``noisy`` (clean with Gaussian noise of the
    attack's own L2 norm) and, of a restorer, ``restored``. The batch is the reference: its size counts.

    Attributes:
        neighbours: k.
    """

    neighbours: int = 20

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {self.neighbours}")

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: there are fewer than two images.
        """
        if len(batch) < 2:
            raise ValueError("the local intrinsic dimension needs two images in a batch at least")
        draws = SampleRng(0, "lid", 0, batch.index).normal("noise", *batch.clean.shape[1:])
        length = (batch.adv - batch.clean).flatten(1).norm(dim=1) / draws.flatten(1).norm(dim=1)
        images = {"clean": batch.clean, "adv": batch.adv, "noisy": batch.clean + draws * length.view(-1, 1, 1, 1)}
        if said.restored is not None:
            images["restored"] = said.restored.clamp(0, 1)
        columns: dict[str, Tensor] = {}
        with torch.no_grad(), full_precision():
            for number, victim in enumerate(victims.values()):
                mine = batch.victim == number
                if not bool(mine.any()):
                    continue
                reference = layers(victim, batch.clean)
                for what, x in images.items():
                    for layer, (points, others) in enumerate(zip(layers(victim, x), reference, strict=True)):
                        found = intrinsic_dimension(points, others, self.neighbours)
                        columns.setdefault(f"{what}_{layer}", torch.full_like(found, torch.nan))[mine] = found[mine]
        return columns


def layers(victim: nn.Module, x: Tensor) -> list[Tensor]:
    """(N, D) what each layer of a victim says of N images, in the order of its forward pass."""
    network = getattr(victim, "backbone", victim)
    seen: list[Tensor] = []
    leaves = [module for module in network.modules() if not list(module.children())]
    # The clone keeps the values if the next module (a ReLU, mostly) works in place.
    handles = [m.register_forward_hook(lambda _m, _x, out: seen.append(out.flatten(1).clone())) for m in leaves]
    try:
        victim(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen
