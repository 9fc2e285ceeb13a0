"""Guides of the feature attack, out of a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from redlab.attacks.feature import GuideBank
from redlab.batch import Key
from redlab.data.sources import Splits
from redlab.rng import SampleRng, generator

_AT_ONCE = 256


class Guides:
    """A `GuideBank` of images of the training part of a data set, read when the first guide is asked for.

    The choice is the same in every run.

    Args:
        source: the data set, or a function that loads it.
        per_class: greatest number of images of each class.

    Raises:
        ValueError: ``per_class`` is below 1.
    """

    def __init__(self, source: Splits | Callable[[], Splits], *, per_class: int = 10) -> None:
        if per_class < 1:
            raise ValueError(f"per_class must be at least 1, got {per_class}")
        self.source, self.per_class = source, per_class
        self._bank: GuideBank | None = None

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None, rng: SampleRng) -> Tensor:
        """One guide for each row; see ``redlab.attacks.feature.GuideRule``."""
        if self._bank is None:
            self._bank = self._read()
        return self._bank(x, y, target, rng)

    def describe(self) -> dict[str, Any]:
        """What decides the guides."""
        source = self.source if isinstance(self.source, Splits) else self.source()
        return {"per_class": self.per_class, "images": source.train.fingerprint()}

    def _read(self) -> GuideBank:
        train = (self.source if isinstance(self.source, Splits) else self.source()).train
        wanted = torch.full((len(train.classes),), self.per_class)
        images, labels = [], []
        # In a random order and only until there are enough, since files of images are slow to read.
        order = torch.randperm(len(train), generator=generator("guides")).tolist()
        for first in range(0, len(order), _AT_ONCE):
            batch = train.__getitems__([Key(row, row, True) for row in order[first : first + _AT_ONCE]])
            for image, label in zip(batch.image, batch.label.tolist(), strict=True):
                if wanted[label] > 0:
                    wanted[label] -= 1
                    images.append(image)
                    labels.append(label)
            if not wanted.any():
                break
        return GuideBank(torch.stack(images), torch.tensor(labels))
