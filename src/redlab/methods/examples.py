"""A few attacked images of a test and what the defence said of them, for the eye: successes and failures."""

from __future__ import annotations

import torch
from torch import Tensor

from redlab.batch import AttackBatch

PER_KIND = 2
"""Pairs kept of a kind: defended, not defended, and those whose attack did not change a right answer."""

Said = dict[str, Tensor]
"""About N images by name, (N, ...) each: ``restored``, ``answer`` (a class) and columns of the evaluation's rows."""


class Examples:
    """What is kept of one test cell while its batches go by, on the CPU.

    Of each kind those whose key is least. The key is a hash of cell and image, so the choice is another one in every
    cell, and depends on neither the size of batches nor the number of processes.

    Args:
        cell: number of the cell.
    """

    def __init__(self, cell: int) -> None:
        self.cell = cell
        self.kept: list[tuple[AttackBatch, Said, Tensor]] = []  # at most one: pairs, answers, kinds

    def add(self, batch: AttackBatch, said: Said) -> None:
        """Looks through a batch.

        Args:
            batch: B pairs; those not attacked, or by somebody who knew the defence, are passed over.
            said: about each, with the columns ``right_clean``, ``right_attacked`` and ``right`` among it.
        """
        fooled = (said["right_clean"] > 0) & (said["right_attacked"] == 0)
        kinds = torch.where(fooled, torch.where(said["right"] > 0, 0, 1), 2)
        rows = (batch.attacked & (batch.knowledge == 0)).nonzero()[:, 0]
        rows = rows[self._least(batch.index[rows], kinds[rows])]
        self._keep([*self.kept, (batch[rows], {name: values[rows] for name, values in said.items()}, kinds[rows])])

    def join(self, others: list[Examples]) -> None:
        """Takes in what other processes kept of the same cell."""
        self._keep([part for other in others for part in other.kept])

    def pairs(self) -> list[tuple[AttackBatch, Said]]:
        """Pairs and what was said of them, defended ones and others in turn; an empty list if the cell had none."""
        return [(batch, said) for batch, said, _ in self.kept]

    def _keep(self, parts: list[tuple[AttackBatch, Said, Tensor]]) -> None:
        parts = [part for part in parts if len(part[0])]
        if parts:
            batches, answers, kinds = (list(column) for column in zip(*parts, strict=True))
            batch, kind = AttackBatch.cat(batches), torch.cat(kinds)
            rows = self._least(batch.index, kind)
            said = {name: torch.cat([part[name] for part in answers])[rows] for name in answers[0]}
            self.kept = [(batch[rows], said, kind[rows])]

    def _least(self, index: Tensor, kinds: Tensor) -> Tensor:
        """Rows to keep: the first of each kind, then the second of each, and so on."""
        order = ((index + (self.cell << 16)) * 2654435761 % (1 << 32)).argsort()  # Knuth's multiplicative hash
        order = order[kinds[order].argsort(stable=True)]
        place = torch.arange(len(order), device=order.device)
        first = torch.searchsorted(kinds[order], kinds[order])  # where its kind begins
        order, place = order[place - first < PER_KIND], (place - first)[place - first < PER_KIND]
        return order[place.argsort(stable=True)]
