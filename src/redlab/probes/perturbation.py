"""What a perturbation looks like, what it does on other networks, and what a share of it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redlab.batch import AttackBatch, estimate
from redlab.evaluation import Answers
from redlab.metrics import cosine, logit_distance, pixel_distance, prediction_alignment
from redlab.precision import full_precision
from redlab.probes.probe import restored


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Whether a perturbation that was crafted on one victim changes what each victim says (CDD-RED, Table A9).

    Columns ``changed_<victim>``, 1 where F(x') is not F(x), and for a restorer ``changed_red_<victim>``, 1 where
    F(x + (x' - x_RED)) is not; both whether or not the victim was right on x.
    """

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``."""
        images = {"changed": batch.adv}
        if said.restored is not None:
            images["changed_red"] = batch.adv - said.restored + batch.clean
        columns: dict[str, Tensor] = {}
        with torch.no_grad(), full_precision():
            for name, victim in victims.items():
                truth = victim(batch.clean).argmax(1)
                columns |= {f"{k}_{name}": (victim(x).argmax(1) != truth).double() for k, x in images.items()}
        return columns


@dataclass(frozen=True, kw_only=True)
class PartialPerturbation:
    """What a share p of the perturbation does, and its estimate by a restorer D (CDD-RED, Fig. 7). Needs a restorer.

    With x'^p = x + p (x' - x) and its estimate x'^p_RED = x'^p - D(x'^p) + x, judged by the attacked victim, columns
    ``<what>_<p>`` for the estimate and ``true_<what>_<p>`` for x'^p itself: ``accuracy``, 1 where it is said to be what
    x is; ``success``, 1 where it is said to be what x' is; ``logit_d`` and ``pixel_d``, its distances to x.

    Attributes:
        shares: the values of p, each in [0, 1].
    """

    shares: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

    def __post_init__(self) -> None:
        if not self.shares or not all(0 <= p <= 1 for p in self.shares):
            raise ValueError(f"shares must be in [0, 1], got {self.shares}")

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the defence restores nothing.
        """
        restored(said)
        columns: dict[str, Tensor] = {}
        with torch.no_grad(), full_precision():
            clean, adv = (of_victims(victims, batch, images) for images in (batch.clean, batch.adv))
            for p in self.shares:
                true = batch.clean + p * (batch.adv - batch.clean)
                red = true - estimate(method, true).float() + batch.clean
                for head, images in (("", red), ("true_", true)):
                    logits = of_victims(victims, batch, images)
                    columns |= {
                        f"{head}accuracy_{p:g}": prediction_alignment(logits, clean),
                        f"{head}success_{p:g}": prediction_alignment(logits, adv),
                        f"{head}logit_d_{p:g}": logit_distance(logits, clean),
                        f"{head}pixel_d_{p:g}": pixel_distance(images, batch.clean),
                    }
        return columns


@dataclass(frozen=True, kw_only=True)
class Perturbations:
    """What the perturbation, and its estimate, look like.

    Columns ``changed``, the share of the pixels that the attack changed by more than half a grey level, and ``extent``,
    the share of the image inside the least box around them, NaN where there are none; of a restorer also
    ``content``, the cosine of the residual x' - x_RED and the clean image, both without their mean and by its absolute
    value. Pictures ``clean`` and ``adv``, of a restorer also ``restored``.
    """

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``."""
        moved = ((batch.adv - batch.clean).abs() > 0.5 / 255).any(1)
        found = {
            "changed": moved.double().mean((1, 2)),
            "extent": _reach(moved.any(1)) * _reach(moved.any(2)) / moved.any((1, 2)),  # 0 / 0 is NaN
            "clean": batch.clean,
            "adv": batch.adv,
        }
        if said.restored is not None:
            left = batch.adv - said.restored
            found["content"] = cosine(centred(left), centred(batch.clean)).abs()
            found["restored"] = said.restored.clamp(0, 1)
        return found


def _reach(moved: Tensor) -> Tensor:
    """(B,) share of a side between the first and the last of (B, S) places that moved."""
    before, after = moved.long().cummax(1).values, moved.flip(1).long().cummax(1).values.flip(1)
    return (before * after).double().mean(1)


def centred(images: Tensor) -> Tensor:
    """(B, C, H, W) less the mean of each image."""
    return images - images.mean((1, 2, 3), keepdim=True)


def of_victims(victims: Mapping[str, nn.Module], batch: AttackBatch, images: Tensor) -> Tensor:
    """(N, K) logits of N images, each of the victim that its row attacks."""
    parts = {n: victim(images[batch.victim == n]) for n, victim in enumerate(victims.values()) if n in batch.victim}
    logits = torch.zeros(len(images), next(iter(parts.values())).shape[1], device=images.device)
    for number, part in parts.items():
        logits[batch.victim == number] = part.float()
    return logits
