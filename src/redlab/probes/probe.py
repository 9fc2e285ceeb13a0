"""What a probe is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers


class Probe(Protocol):
    """Looks at a batch. Implementations are frozen keyword-only dataclasses, so that an identity can hold them.

    One that must see clean images first has ``ready(victims, clean)``, which returns the probe to call; ``clean(n)``
    gives n validation images (B, C, H, W) in [0, 1] and their labels (B,).
    """

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """Columns (N,) and pictures (N, C, H, W) in [0, 1], by name; row i is about image i of the batch.

        Args:
            method: the defence.
            victims: by name, in the order of the batch's ids.
            batch: N images.
            said: what the defence said of them.
        """
        ...


def by_victim(victims: Mapping[str, nn.Module], batch: AttackBatch) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Each victim that some row attacks: its name, itself, and the places of its rows."""
    for number, (name, victim) in enumerate(victims.items()):
        rows = (batch.victim == number).nonzero()[:, 0]
        if len(rows):
            yield name, victim, rows


def restored(said: Answers) -> Tensor:
    """What a restorer said.

    Raises:
        ValueError: the defence is none.
    """
    if said.restored is None:
        raise ValueError("this probe looks at restored images, and the defence is no restorer")
    return said.restored
