"""A few attacked images of a test and their restorations, for the eye: successes and failures."""

from __future__ import annotations

import torch
from torch import Tensor

from redlab.batch import CLEAN, AttackBatch

PER_KIND = 2
"""Pairs kept of a kind: repaired, not repaired, and those whose attack did not change a right answer."""


class Examples:
    """What is kept of one test cell while its batches go by, on the CPU.

    Of each kind those whose key is least. The key is a hash of cell and image, so the choice is another one in every
    cell, and depends on neither the size of batches nor the number of processes.

    Args:
        cell: number of the cell.
    """

    def __init__(self, cell: int) -> None:
        self.cell = cell
        self.kept: list[tuple[AttackBatch, Tensor, Tensor]] = []  # at most one: pairs, restorations, kinds

    def add(self, batch: AttackBatch, restored: Tensor, right: Tensor) -> None:
        """Looks through a batch.

        Args:
            batch: B pairs; clean and invalid rows are passed over.
            restored: (B, C, H, W) estimates of the clean images.
            right: (3, B) bool, whether the victim is right on the clean, the attacked and the restored image.
        """
        clean, attacked, repaired = right
        kinds = torch.where(clean & ~attacked, torch.where(repaired, 0, 1), 2)
        rows = (batch.valid & (batch.attack != CLEAN)).nonzero()[:, 0]
        rows = rows[self._least(batch.index[rows], kinds[rows])]
        self._keep([*self.kept, (batch[rows].map(Tensor.cpu), restored[rows].cpu(), kinds[rows].cpu())])

    def join(self, others: list[Examples]) -> None:
        """Takes in what other processes kept of the same cell."""
        self._keep([part for other in others for part in other.kept])

    def pairs(self) -> list[tuple[AttackBatch, Tensor]]:
        """Pairs and their restorations, repaired ones and others in turn; an empty list if the cell had none."""
        return [(batch, restored) for batch, restored, _ in self.kept]

    def _keep(self, parts: list[tuple[AttackBatch, Tensor, Tensor]]) -> None:
        parts = [part for part in parts if len(part[0])]
        if parts:
            batches, restorations, kinds = (list(column) for column in zip(*parts, strict=True))
            batch, restored, kind = AttackBatch.cat(batches), torch.cat(restorations), torch.cat(kinds)
            rows = self._least(batch.index, kind)
            self.kept = [(batch[rows], restored[rows], kind[rows])]

    def _least(self, index: Tensor, kinds: Tensor) -> Tensor:
        """Rows to keep: the first of each kind, then the second of each, and so on."""
        order = ((index + (self.cell << 16)) * 2654435761 % (1 << 32)).argsort()  # Knuth's multiplicative hash
        order = order[kinds[order].argsort(stable=True)]
        place = torch.arange(len(order), device=order.device)
        first = torch.searchsorted(kinds[order], kinds[order])  # where its kind begins
        order, place = order[place - first < PER_KIND], (place - first)[place - first < PER_KIND]
        return order[place.argsort(stable=True)]
