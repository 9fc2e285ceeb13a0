"""What an attacker who knows a defence differentiates, derived from what the defence can do.

Carlini and Wagner, "Adversarial examples are not easily detected: bypassing ten detection methods", AISec 2017 (the
model with one class more, for detectors).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from redlab.attacks.guard import logits_of
from redlab.attacks.wrappers import Defended
from redlab.batch import Detector, Identifier, Labeler, capabilities

LEAD = 10.0
"""By how much a class leads at most where its cross-entropy is climbed: e^-10 is far from where float32 ends."""


def surface(defence: Any, victim: nn.Module | None) -> nn.Module:
    """The network that an attacker who knows the defence attacks.

    The first that fits: the defence's own ``surface(victim)`` (``Aware``); a labeler's class logits; a restorer, then
    the victim; the victim's classes and the alarm of a detector or an identifier (``WithAlarm``); a network without a
    capability is a classifier, which attacks on itself train.

    Args:
        defence: anything with one of ``redlab.batch.CAPABILITIES``, or a classifier.
        victim: (B, C, H, W) -> (B, K) logits; unused where ``needs_victim`` says no.

    Returns:
        (B, C, H, W) -> (B, K) logits; (B, K + 1), the last one the alarm, where it has an attribute ``rejects``
        that is True. An untargeted attack on the latter goes through ``InStages``, a targeted one through
        ``WithoutAlarm``.

    Raises:
        ValueError: the defence can do nothing that could be attacked.
    """
    if callable(own := getattr(defence, "surface", None)):
        return cast(nn.Module, own(victim))
    can = capabilities(defence)
    if "labeler" in can:
        return _Labels(defence)
    if victim is not None and "restorer" in can:
        return Defended(defence, victim)
    if victim is not None and can:
        return WithAlarm(defence, victim)
    if not can and callable(defence):
        return cast(nn.Module, defence)
    raise ValueError(f"{type(defence).__name__} is no defence: it neither restores nor detects nor classifies")


def needs_victim(defence: Any) -> bool:
    """Whether the surface of a defence is another one for another victim."""
    can = capabilities(defence)
    return callable(getattr(defence, "surface", None)) or bool(can and "labeler" not in can)


class _Labels(nn.Module):
    """The class logits of a labeler."""

    def __init__(self, defence: Labeler) -> None:
        super().__init__()
        self.defence = defence

    def forward(self, x: Tensor) -> Tensor:
        return self.defence.class_logits(x)


class WithAlarm(nn.Module):
    """Victim and detector as one network of L + 1 classes, the last one the alarm (Carlini and Wagner 2017).

    G_i = Z_i for the L classes and G_{L+1} = (Z_D + 1) max_j Z_j, where Z are the victim's logits and Z_D is the
    detector's verdict, above 0 where it says attacked: then the alarm is the greatest logit, and else it is below the
    greatest of the others. For this max_j Z_j must be positive, so logits whose greatest is below 1 are raised to that
    by a constant per image, which takes part in no gradient. An identifier that is no detector has the verdict
    logsumexp of the logits of its attacks - logit of clean, log p(attacked) / p(clean).

    Args:
        defence: a detector or an identifier.
        victim: (B, C, H, W) -> (B, L) logits.
    """

    rejects = True

    def __init__(self, defence: Detector | Identifier, victim: nn.Module) -> None:
        super().__init__()
        self.defence, self.victim = defence, victim
        self._detects = "detector" in capabilities(defence)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L + 1) logits; raises what ``parts`` does."""
        logits, verdict = self.parts(x)
        return torch.cat([logits, ((verdict + 1) * logits.amax(1))[:, None]], dim=1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> the victim's logits (B, L), raised; the verdict (B,).

        Raises:
            ValueError: the verdict has the wrong shape, or no gradient where one is wanted.
        """
        logits, verdict = logits_of(self.victim, x, 0), self._verdict(x)
        if verdict.shape != x.shape[:1]:
            raise ValueError(f"the verdict must be one score per image, ({len(x)},), got {tuple(verdict.shape)}")
        if torch.is_grad_enabled() and x.requires_grad and not verdict.requires_grad:
            raise ValueError(
                f"the verdict of {type(self.defence).__name__} does not depend on the images by autograd (no_grad, "
                "detach or a comparison inside it?): give the defence a surface(victim) that an attacker can use"
            )
        return logits + (1 - logits.detach().amax(1, keepdim=True)).clamp(min=0), verdict.float()

    def _verdict(self, x: Tensor) -> Tensor:
        if self._detects:
            detector = cast(Detector, self.defence)
            return detector.adversarial_scores(x)[detector.verdict]
        logits = cast(Identifier, self.defence).attack_logits(x)
        return logits[:, 1:].logsumexp(1) - logits[:, 0]


class WithoutAlarm(nn.Module):
    """A network with an alarm for images of one class y, whose alarm counts as y: L classes, any attack works on it.

    G'_i = G_i, and G'_y = log(exp G_y + exp G_{L+1}): the cross-entropy of y is then -log of the probability that the
    attack fails. On the network itself an attack that climbs it would be content with the alarm. What wins here wins
    against the defence, but not quite the other way round; with ``exact``, G'_y = max(G_y, G_{L+1}), it does, and the
    gradient jumps between the two, which attacks by steps do not survive where the detector is steep. Aiming at the
    most likely wrong class of the clean image wins as often, but not where the detector watches for that very class,
    and not every attack can be aimed.

    Args:
        model: (B, C, H, W) -> (B, L + 1) logits, the last one the alarm.
        label: y.
        exact: to judge, not to attack.
    """

    def __init__(self, model: nn.Module, label: int, *, exact: bool = False) -> None:
        super().__init__()
        self.model, self.label, self.exact = model, label, exact

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L) logits."""
        logits, alarm = logits_of(self.model, x, self.label + 1).tensor_split([-1], dim=1)
        own = logits[:, self.label : self.label + 1]
        if self.exact:
            return _instead(logits, self.label, torch.maximum(own, alarm))
        return _bounded(_instead(logits, self.label, torch.logaddexp(own, alarm)), self.label)


class InStages(nn.Module):
    """The same in two stages: the class by the victim's gradient alone, and once it is wrong the alarm's.

    The logit of y leads that of the most likely other class by as much as the victim has it lead, and by the verdict
    from where this is at most 0. What wins here is just what wins against the defence. GRED's attackers have two stages
    of which nothing more is known, its supplement is not to be had.

    Args:
        model: victim and detector.
        label: y.
    """

    def __init__(self, model: WithAlarm, label: int) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L) logits."""
        logits, verdict = self.model.parts(x)
        own = logits[:, self.label : self.label + 1]
        rival = _instead(logits, self.label, torch.full_like(own, -torch.inf)).amax(1, keepdim=True)
        first, second = own - rival, verdict[:, None]
        # no step down from the first stage to the second
        early = torch.cat([logits, own + second.detach().clamp(min=0)], dim=1)
        late = torch.cat([logits.detach(), rival.detach() + second], dim=1)
        settled, own = torch.where(first >= 0, early, late).tensor_split([-1], dim=1)
        return _bounded(_instead(settled, self.label, own), self.label)


def _instead(logits: Tensor, label: int, own: Tensor) -> Tensor:
    """The logits, but ``own`` (B, 1) for one class."""
    return torch.cat([logits[:, :label], own, logits[:, label + 1 :]], dim=1)


def _bounded(logits: Tensor, label: int) -> Tensor:
    """The logits of each image divided so that ``label`` leads by no more than ``LEAD``.

    A detector can be so sure that the cross-entropy has no gradient left in float32, which would hide every way out.
    """
    found = logits.detach()
    lead = found[:, label] - _instead(found, label, torch.full_like(found[:, :1], -torch.inf)).amax(1)
    return logits / (lead / LEAD).clamp(min=1)[:, None]
