"""What trained methods say of images that nobody has labelled: attacked or not, by which attack, what was there before.

One method alone may be able to say only some of this, so that several can be asked together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redlab.batch import CLEAN, capabilities, check_images
from redlab.evaluation import answers
from redlab.precision import full_precision
from redlab.probes import answer_map
from redlab.victims import ImageClassifier

FALSE_ALARMS = 0.01
"""Share of clean images that a threshold may let through as attacked."""
UNKNOWN = "unknown"
"""The attack of an image where no attack has more than half of the probability of all attacks."""
CHANGE = "change of prediction"
"""The score of a method that has none of its own."""
ITSELF = "the defence"
"""Who says the class of an image, where the method does and not a victim."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one method says of B images.

    Attributes:
        score: (B,) float64; the larger, the more likely an image is attacked.
        attacked: (B,) bool, score above the threshold.
        scored_by: name of the score; ``change of prediction`` where the method has none of its own.
        attacks: names of the attacks that it tells apart, "clean" first; empty where it is no identifier.
        probabilities: (B, A) float64, of ``attacks``; None where it is no identifier.
        restored: (B, C, H, W) in [0, 1], the estimates of the clean images; None where it restores none.
        before: name of a victim -> (B, K) float64, the probabilities that it gives to the classes of the images.
        after: the same of the restored images; of a method that classifies by itself its own, as ``the defence``.
        looks_before: (B, 1, H, W) in [0, 1], where the first victim sees the class that it says (Grad-CAM over its
            maximum); None where that cannot be drawn.
        looks_after: the same of the restored images.
    """

    score: Tensor
    attacked: Tensor
    scored_by: str
    attacks: Sequence[str]
    probabilities: Tensor | None
    restored: Tensor | None
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    looks_before: Tensor | None = None
    looks_after: Tensor | None = None

    def attack(self, row: int) -> tuple[str, float]:
        """The most likely attack on an image, or "unknown", and its share of the probability of all attacks.

        Raises:
            ValueError: the method is no identifier.
        """
        if self.probabilities is None:
            raise ValueError("no attack is told by a method that is no identifier")
        of_attacks = self.probabilities[row, CLEAN + 1 :]
        best = int(of_attacks.argmax())
        share = float(of_attacks[best] / of_attacks.sum().clamp(min=1e-300))
        return (self.attacks[CLEAN + 1 + best] if share > 0.5 else UNKNOWN), share


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """A trained method, the victims that it protects, and the score above which an image counts as attacked.

    Attributes:
        name: of the run.
        method: with one of the capabilities of ``redlab.batch``, in eval mode.
        victims: by name; the first one is shown.
        threshold: of the score; by itself that of the method, 0 for a score of its own.
        clean: how many clean images the threshold is from, see `calibrated`; 0 for none.
        false_alarms: the share of these with a score above it.
    """

    name: str
    method: Any
    victims: Mapping[str, nn.Module]
    threshold: float = 0.0
    clean: int = 0
    false_alarms: float = math.nan

    def __post_init__(self) -> None:
        if not capabilities(self.method):
            raise ValueError(f"{self.name} has none of the capabilities: it can say nothing of an image")

    def __call__(self, x: Tensor, *, looks: bool = False) -> Finding:
        """Examines images.

        Args:
            x: (B, C, H, W) in [0, 1].
            looks: also say where the first victim looks, which takes a backward pass.

        Raises:
            ValueError: ``x`` is something else.
        """
        check_images(x)
        with torch.no_grad():
            said = answers(self.method, x)
            restored = None if said.restored is None else said.restored.clamp(0, 1)
            with full_precision():
                before = {name: _probabilities(net(x)) for name, net in self.victims.items()}
                after: dict[str, Tensor] = {}
                if said.class_logits is not None:
                    after = {ITSELF: _probabilities(said.class_logits)}
                elif restored is not None:
                    after = {name: _probabilities(net(restored)) for name, net in self.victims.items()}
        if said.scores is None:
            scored_by, score = CHANGE, _change(before, after)
        else:
            scored_by = str(said.verdict)
            score = said.scores[scored_by].double()
        shown = next(iter(self.victims.values()), None) if looks else None
        return Finding(
            score=score,
            attacked=score > self.threshold,
            scored_by=scored_by,
            attacks=() if said.attack_logits is None else tuple(self.method.attack_names),
            probabilities=None if said.attack_logits is None else said.attack_logits.double().softmax(1),
            restored=restored,
            before=before,
            after=after,
            looks_before=_looks(shown, x),
            looks_after=None if restored is None else _looks(shown, restored),
        )

    def calibrated(self, images: Tensor, false_alarms: float = FALSE_ALARMS, batch_size: int = 128) -> Examiner:
        """With the threshold that at most such a share of clean images exceeds.

        It is a score of one of them, which does not exceed itself; of fewer than ``1 / false_alarms`` images, the
        largest.

        Args:
            images: (N, C, H, W) clean images in [0, 1], which the method was not trained on.
            false_alarms: the share, in [0, 1).
            batch_size: images that are examined together.

        Raises:
            ValueError: there are no images, or the share is none.
        """
        if not len(images) or not 0 <= false_alarms < 1:
            raise ValueError(f"calibration wants images and a share in [0, 1), got {len(images)} and {false_alarms}")
        scores = torch.cat([self(some).score for some in torch.split(images, batch_size)]).sort(descending=True).values
        threshold = float(scores[math.floor(false_alarms * len(scores))])
        exceeded = float((scores > threshold).double().mean())
        return dataclasses.replace(self, threshold=threshold, clean=len(scores), false_alarms=exceeded)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What several methods say of B images. Of each question the first that can answer it is heard.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        findings: name of a run -> what it says, in the order in which they were asked.
    """

    images: Tensor
    findings: Mapping[str, Finding]

    @property
    def detecting(self) -> Finding:
        """Says whether an image is attacked: the first with a score of its own, or else by the change of prediction."""
        every = list(self.findings.values())
        return next((found for found in every if found.scored_by != CHANGE), every[0])

    @property
    def identifying(self) -> Finding | None:
        """Says by which attack."""
        return next((found for found in self.findings.values() if found.probabilities is not None), None)

    @property
    def repairing(self) -> Finding | None:
        """Says what was there before: the first that restores, or else that says the class of what was there."""
        every = list(self.findings.values())
        return next((f for f in every if f.restored is not None), next((f for f in every if f.after), None))

    @property
    def attacked(self) -> Tensor:
        """(B,) bool."""
        return self.detecting.attacked

    @property
    def attacks(self) -> list[str]:
        """The B names of the attacks; "clean" where there was none, "attacked" where nobody says which."""
        names = []
        for row, attacked in enumerate(self.attacked.tolist()):
            told = self.identifying.attack(row)[0] if self.identifying is not None else "attacked"
            names.append(told if attacked else "clean")
        return names

    @property
    def restored(self) -> Tensor | None:
        """(B, C, H, W) in [0, 1]."""
        return None if self.repairing is None else self.repairing.restored

    @property
    def perturbation(self) -> Tensor | None:
        """(B, C, H, W), the images less what was there before."""
        return None if self.restored is None else self.images - self.restored


def examine(examiners: Sequence[Examiner], x: Tensor, *, looks: bool = False) -> Diagnosis:
    """Asks several about images; arguments and errors are those of `Examiner`."""
    return Diagnosis(images=x, findings={each.name: each(x, looks=looks) for each in examiners})


def _probabilities(logits: Tensor) -> Tensor:
    return logits.double().softmax(1)


def _change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
    """(B,) half the L1 distance between what is said before and after, in [0, 1]; of several victims the largest."""
    pairs = [(before[name], probabilities) for name, probabilities in after.items() if name in before]
    pairs = pairs or [(probabilities, after[ITSELF]) for probabilities in before.values()]
    return torch.stack([(one - two).abs().sum(1) / 2 for one, two in pairs]).amax(0)


def _looks(victim: nn.Module | None, x: Tensor) -> Tensor | None:
    """The Grad-CAM map of what a victim says, over its maximum."""
    if not isinstance(victim, ImageClassifier) or victim.feature_layer is None:
        return None
    maps = answer_map(victim, x)
    return maps / maps.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
