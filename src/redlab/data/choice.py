"""Which images of a data set are for training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from redlab.rng import generator

USES = ("all", "held_out", "seen")
TESTED = ("test", "val")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What decides it; the arguments are those of `AttackDataModule`.

    Args:
        seed: of the split.
        val_size: share or number.
        hold_out: number.
        use: one of ``USES``.
        limits: of each part, at most so many; None for all.
        test_on: one of ``TESTED``.

    Raises:
        ValueError: one of them makes no sense.
    """

    seed: int = 0
    val_size: float = 0.1
    hold_out: int = 0
    use: str = "all"
    limits: Mapping[str, int | None] = field(default_factory=dict)
    test_on: str = "test"

    def __post_init__(self) -> None:
        for part, limit in self.limits.items():
            if limit is not None and limit < 1:
                raise ValueError(f"data.limit_{part} must be at least 1, or null for all images, got {limit}")
        size = self.val_size
        if not (0 <= size < 1 or (size >= 1 and float(size).is_integer())):
            raise ValueError(f"data.val_size must be a share below 1 or a whole number of images, got {size}")
        if self.hold_out < 0:
            raise ValueError(f"data.hold_out must be a number of images, or 0 for none, got {self.hold_out}")
        for what, value, known in (("use", self.use, USES), ("test_on", self.test_on, TESTED)):
            if value not in known:
                raise ValueError(f"data.{what} must be one of {known}, got {value!r}")
        if self.use != "all" and not self.hold_out:
            raise ValueError(f"data.use={self.use} needs images that are held out: set data.hold_out to their number")
        if self.test_on == "val" and not size:
            raise ValueError("data.test_on=val needs validation images: set data.val_size")

    def usable(self, count: int) -> Tensor:
        """The training images that may be used, in an order that the seed decides.

        Args:
            count: of the official training images.

        Raises:
            ValueError: none is left for victims.
        """
        if self.hold_out >= count:
            raise ValueError(f"data.hold_out={self.hold_out} leaves nothing of {count} images to train victims on")
        order = torch.randperm(count, generator=generator("split", self.seed))
        # a constant, so that no victim of any seed has seen them
        held = torch.isin(order, torch.randperm(count, generator=generator("held out"))[: self.hold_out])
        return {"all": order, "held_out": order[held], "seen": order[~held]}[self.use]

    def of(self, train: int, test: int) -> dict[str, Tensor]:
        """The places in the source of the images of "train", "val" and "test", in order.

        Args:
            train: number of the official training images, where also those of "val" lie.
            test: number of the official test images.

        Raises:
            ValueError: there are not enough training images.
        """
        order = self.usable(train)
        count = len(order)
        kept = int(self.val_size) if self.val_size >= 1 else round(self.val_size * count)
        if kept >= count:
            raise ValueError(
                f"data.val_size={self.val_size} leaves nothing of {count} images to train on: set a smaller number, or "
                "a share such as 0.1"
            )
        if self.val_size and not kept:
            raise ValueError(
                f"data.val_size={self.val_size} of {count} training images is less than one: set a number of images, "
                "such as data.val_size=1, or 0 for no validation"
            )
        # a constant, so that runs with different seeds are tested on the same images
        tested = torch.randperm(test, generator=generator("test"))
        if self.test_on == "val":
            tested = order[:kept][: self.limits.get("val")]
        parts = {"train": order[kept:], "val": order[:kept], "test": tested}
        return {part: rows[: self.limits.get(part)].sort().values for part, rows in parts.items()}
