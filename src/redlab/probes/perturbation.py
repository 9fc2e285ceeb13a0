"""What a perturbation looks like, what it and a share of it do, whether it can be undone, and whose it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redlab.attacks import PGD
from redlab.batch import Attack, AttackBatch, estimate
from redlab.evaluation import Answers
from redlab.metrics import cosine, logit_distance, pixel_distance, prediction_alignment
from redlab.precision import full_precision
from redlab.probes.probe import by_victim, restored


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
class Revert:
    """Whether an attack is undone by another one, back to what the victim says of the clean image (CDD-RED, Table A1).

    x_RED is then the result of targeted PGD in linf that starts at x' and knows both the victim and F(x). Columns
    ``<what>_<name>`` with ``d``, ``pa_benign`` and ``pa_adv`` as an evaluation has them of a restorer.

    Attributes:
        settings: (name, eps, steps) of each; steps of eps / 4, without a random start.
    """

    settings: tuple[tuple[str, float, int], ...]

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``."""
        columns: dict[str, Tensor] = {}
        with torch.no_grad(), full_precision():
            clean, adv = (of_victims(victims, batch, images) for images in (batch.clean, batch.adv))
            for name, eps, steps in self.settings:
                pgd, back = PGD(eps=eps, steps=steps, random_start=False), batch.adv.clone()
                for _, victim, rows in by_victim(victims, batch):
                    start, goal = adv[rows].argmax(1), clean[rows].argmax(1)
                    # where the attack failed there is no way back to take
                    rows, start, goal = (part[start != goal] for part in (rows, start, goal))
                    if len(rows):
                        back[rows] = pgd(victim, batch.adv[rows], start, target=goal)
                readded = batch.adv - back + batch.clean
                columns |= {
                    f"d_{name}": pixel_distance(back, batch.clean),
                    f"pa_benign_{name}": prediction_alignment(of_victims(victims, batch, back), clean),
                    f"pa_adv_{name}": prediction_alignment(of_victims(victims, batch, readded), adv),
                }
        return columns


@dataclass(frozen=True, kw_only=True)
class Logits:
    """What the first victim says of x' and of x'_RED = x' - x_RED + x, whoever was attacked (CDD-RED, Fig. 8).

    Columns ``true_logit_<k>`` and ``red_logit_<k>`` for each class k. Needs a restorer.
    """

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the defence restores nothing.
        """
        images = {"true": batch.adv, "red": batch.adv - restored(said) + batch.clean}
        judge = next(iter(victims.values()))
        with torch.no_grad(), full_precision():
            logits = {name: judge(x).double() for name, x in images.items()}
        return {f"{name}_logit_{k}": column for name, of in logits.items() for k, column in enumerate(of.T)}


@dataclass(frozen=True, kw_only=True)
class Resemblance:
    """Which attack a perturbation looks like (CDD-RED, Fig. A2).

    For a new image z' the estimate D(z') is attacked by everything in a library, x'_i = Atk_i(D(z')) from what the
    attacked network says of it. Columns ``cosine_<attack>_<victim>``, the cosine of z' - D(z') and x'_i - D(x'_i).
    Needs a restorer.

    Attributes:
        library: (name, attack) of each; every victim is attacked.
    """

    library: tuple[tuple[str, Attack], ...]

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the defence restores nothing.
        """
        base = restored(said)
        new, images = batch.adv - base, base.clamp(0, 1)
        columns: dict[str, Tensor] = {}
        with torch.no_grad(), full_precision():
            for (name, attack), (victim_name, victim) in itertools.product(self.library, victims.items()):
                adv = attack(victim, images, victim(images).argmax(1))
                columns[f"cosine_{name}_{victim_name}"] = cosine(new, adv - estimate(method, adv).float())
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
