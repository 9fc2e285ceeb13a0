"""The data that flows through redlab and the capabilities that its parts offer. Read this file first.

    loader -> RawBatch -> AttackDataModule (crafts on the device) -> AttackBatch -> a method

Images are float32 NCHW in [0, 1] everywhere outside a network, and ``eps`` is in the same units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from redlab.rng import SampleRng

CLEAN = 0
"""Attack id of an image that was not attacked. Ids of attacks start at 1, in the order of the mix."""

KNOWLEDGE = ("victim", "defence")
"""What an attacker knows: the victim alone, or the defence as well. Batches hold places in this tuple."""


def check_name(kind: str, name: str) -> None:
    """Checks the name of an attack or a victim, which goes into keys such as ``d/<attack>/<victim>`` and into tables.

    Args:
        kind: what it names, for the message.
        name: the name.

    Raises:
        ValueError: it has a character that breaks a key, a line or a figure, or is what tables call something else.

    >>> check_name("component", "pgd 8 of 255")
    """
    if not isinstance(name, str) or not name or name != name.strip() or not name.isprintable():
        raise ValueError(f"the name of a {kind} must be printable text without spaces around it, got {name!r}")
    if bad := [mark for mark in "/$" if mark in name]:
        raise ValueError(f"the name of a {kind} must be without {bad[0]!r}, which keys or figures need, got {name!r}")
    if name in ("every attacker", "all attacks", "no attack"):
        raise ValueError(f"the name of a {kind} must not be {name!r}, which tables call something else")


class Key(NamedTuple):
    """What a source is asked for.

    Attributes:
        index: place in the source: the identity of the sample.
        position: place in the order of the epoch.
        valid: False for a duplicate that only fills up the last batch of a distributed evaluation.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    position: int
    valid: bool


class RawBatch(NamedTuple):
    """What a loader yields, before anything is attacked.

    Attributes:
        image: (B, C, H, W), uint8 in 0..255 or float32 in [0, 1].
        label: (B,) int64, true class.
        index: (B,) int64, place in the data set: the identity of a sample.
        position: (B,) int64, place in the order of the epoch.
        valid: (B,) bool, False for a duplicate that only pads a distributed evaluation.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    position: Tensor
    valid: Tensor


class ImageSource(Protocol):
    """A data set of square images, read in batches."""

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes, in the order of the labels."""
        ...

    @property
    def channels(self) -> int:
        """1 or 3."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        ...

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Sequence[Key]) -> RawBatch:
        """The images of the keys, as uint8; ``position`` and ``valid`` are handed through."""
        ...

    def fingerprint(self) -> str:
        """A hash of what the source holds: images, labels, classes and sizes, but not where they lie.

        Worked out once for each object.
        """
        ...


@dataclass(frozen=True)
class AttackBatch:
    """Pairs of clean and attacked images: all that a method sees.

    Attributes:
        clean: (N, C, H, W) float32 in [0, 1].
        adv: (N, C, H, W) float32 in [0, 1]; equal to ``clean`` where ``attack`` is ``CLEAN``.
        label: (N,) int64, true class.
        attack: (N,) int64, id of the component of the mix; 0 is clean.
        setting: (N,) int64, which of the component's settings; 0 where it has one.
        victim: (N,) int64, id of the victim in the order of the data module's victims.
        knowledge: (N,) int64, what the attacker knew, a place in ``KNOWLEDGE``; 0 for clean images.
        target: (N,) int64, class that a targeted attack aimed at, -1 where untargeted.
        index: (N,) int64, place in the data set.
        valid: (N,) bool, rows that count in metrics and losses.
        attacked: (N,) bool, False for clean images and for controls, which are changed and not attacked.
        fooled: (N,) bool, the attack did what it was meant to: the victim was right on the clean image and
            is wrong on the attacked one (untargeted), or says the target class (targeted). None where nobody
            asked for it, since it costs two more forward passes.
    """

    clean: Tensor
    adv: Tensor
    label: Tensor
    attack: Tensor
    setting: Tensor
    victim: Tensor
    knowledge: Tensor
    target: Tensor
    index: Tensor
    valid: Tensor
    attacked: Tensor
    fooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: Tensor) -> AttackBatch:
        """Rows by a bool mask or an index tensor."""
        return self.map(lambda values: values[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> AttackBatch:
        """The batch with ``function`` applied to every tensor, for instance ``Tensor.cpu``."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {name: None if v is None else function(v) for name, v in values.items()}
        return AttackBatch(**mapped)

    @property
    def kind(self) -> Tensor:
        """(N,) int64, what an identifier should say: the attack, and clean where nobody attacked, as of a control."""
        return self.attack.where(self.attacked, CLEAN)

    def valid_rows(self) -> AttackBatch:
        """The valid rows; all rows if none is valid, so that every DDP rank has something to train on."""
        if bool(self.valid.all()) or not bool(self.valid.any()):
            return self
        return self[self.valid]

    @staticmethod
    def cat(parts: list[AttackBatch]) -> AttackBatch:
        """Concatenates batches; ``fooled`` is kept only if every part has it."""
        out: dict[str, Any] = {}
        for f in fields(AttackBatch):
            values = [getattr(part, f.name) for part in parts]
            out[f.name] = None if any(v is None for v in values) else torch.cat(values)
        return AttackBatch(**out)


class Attack(Protocol):
    """Turns images into adversarial ones. Implementations are frozen keyword-only dataclasses.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K).
        x: (B, C, H, W) float32 in [0, 1].
        y: (B,) int64 true labels.
        target: (B,) int64 target labels; given means targeted.
        rng: source of every random draw; None means ``SampleRng`` with seed 0 and indices 0..B-1.

    Returns:
        (B, C, H, W) float32 in [0, 1], detached. Row i depends on row i of the inputs only.

    Raises:
        ValueError: an input is out of range, of the wrong shape or dtype, or not finite.
    """

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, target: Tensor | None = None, rng: SampleRng | None = None
    ) -> Tensor:
        """Attacks every row."""
        ...


def check_images(x: Tensor) -> None:
    """Whether a method can be asked about these images.

    Args:
        x: should be (B, C, H, W) floats in [0, 1].

    Raises:
        ValueError: it is something else.
    """
    if x.ndim != 4 or not x.is_floating_point():
        hint = "; divide by 255" if x.dtype == torch.uint8 else ""
        raise ValueError(f"images must be (B, C, H, W) floats in [0, 1], got {x.dtype} {tuple(x.shape)}{hint}")
    low, high = (float(v) for v in x.detach().aminmax()) if x.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # written so that NaN fails as well
        hint = "; divide by 255" if low >= 0 and 1 < high <= 255 else ""
        raise ValueError(f"images must be in [0, 1], got values from {low:g} to {high:g}{hint}")


@runtime_checkable
class Restorer(Protocol):
    """Estimates the clean image. One that clamps has ``estimate(x)`` as well: its answer before that."""

    def restore(self, x: Tensor) -> Tensor:
        """(B, C, H, W) attacked -> (B, C, H, W) estimate of the clean images, in [0, 1]."""
        ...


def estimate(restorer: Restorer, x: Tensor) -> Tensor:
    """What a restorer says before it is clamped to [0, 1]; the same as ``restore`` where it does not clamp.

    Measures look at this, as the papers do, and attackers differentiate it: a clamp hides their gradient.

    Args:
        restorer: has ``restore`` and, if it clamps there, ``estimate``.
        x: (B, C, H, W) in [0, 1].
    """
    answer: Tensor = getattr(restorer, "estimate", restorer.restore)(x)
    return answer


def attacked_images(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The images that a prediction is about, and all that else is known of them by name.

    Args:
        batch: an ``AttackBatch``, or images (B, C, H, W), alone or first in a list, as data sets yield them.
    """
    if isinstance(batch, AttackBatch):
        return batch.adv, {name: values for name, values in vars(batch).items() if values is not None}
    return batch[0] if isinstance(batch, (list, tuple)) else batch, {}


@runtime_checkable
class Detector(Protocol):
    """Says whether an image was attacked.

    Attributes:
        verdict: name of the score that decides: an image counts as attacked where it is above 0.
    """

    verdict: str

    def adversarial_scores(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> name -> (B,), larger means more likely attacked; such as log p(attacked) / p(clean)."""
        ...


@runtime_checkable
class Identifier(Protocol):
    """Says by which attack an image was made.

    Attributes:
        attack_names: what it tells apart, by the ids of the mix that it was trained on; the first is "clean".
    """

    attack_names: Sequence[str]

    def attack_logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, A) logits over ``attack_names``."""
        ...


def is_oracle(defence: object) -> bool:
    """Whether a defence must be shown the clean images: a bound on what can be told, no defence, and nobody attacks it.

    Its attribute ``oracle`` says so, and its ``attack_logits(x, clean)`` takes them.
    """
    return bool(getattr(defence, "oracle", False))


def attackable(defence: object) -> bool:
    """Whether an attacker may know of a defence: it can do something, and is no oracle."""
    return bool(capabilities(defence)) and not is_oracle(defence)


def attack_logits(identifier: Any, x: Tensor, clean: Tensor | None) -> Tensor:
    """(B, A) what an identifier says of images; an oracle is shown the clean ones, too.

    Args:
        identifier: an ``Identifier`` or an oracle.
        x: (B, C, H, W) in [0, 1].
        clean: (B, C, H, W) in [0, 1], where they are known.
    """
    said: Tensor = identifier.attack_logits(x, clean) if is_oracle(identifier) else identifier.attack_logits(x)
    return said


@runtime_checkable
class Labeler(Protocol):
    """Gives the defended answer itself: a robust or randomised classifier, or a whole pipeline with one at its end."""

    def class_logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) logits over the classes."""
        ...


@runtime_checkable
class Aware(Protocol):
    """Says what an attacker who knows all of it differentiates, where that is not what its capabilities imply."""

    def surface(self, victim: nn.Module) -> nn.Module:
        """A victim (B, C, H, W) -> (B, K) -> a network of the same kind, the whole defence in front of it."""
        ...


CAPABILITIES = {
    "restorer": "restore",
    "detector": "adversarial_scores",
    "identifier": "attack_logits",
    "labeler": "class_logits",
}
"""What a defence can do, and the method of its Protocol."""


def able(defence: object) -> frozenset[str]:
    """Those of ``CAPABILITIES`` whose method a defence has."""
    return frozenset(name for name, method in CAPABILITIES.items() if callable(getattr(defence, method, None)))


def capabilities(defence: object) -> frozenset[str]:
    """What a defence can do: what its attribute ``capabilities`` says, else all that it has the method for.

    The attribute is for a method whose options decide what it can do.

    Raises:
        ValueError: it names a capability without having its method.
    """
    said = getattr(defence, "capabilities", None)
    if said is None:
        return able(defence)
    if unknown := frozenset(said) - able(defence):
        raise ValueError(f"{type(defence).__name__} says that it is a {', '.join(sorted(unknown))}, without its method")
    return frozenset(said)
