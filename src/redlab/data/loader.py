"""The order in which samples are visited, and a loader that resumes in it exactly.

The order is a function of (seed, epoch) alone. A global batch is a run of consecutive positions of that order, and each
rank takes a contiguous slice of it, so that neither the number of ranks nor the batch size changes who is where.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from redlab.batch import ImageSource, Key, RawBatch
from redlab.rng import generator


def raw_batch(image: Tensor, label: Tensor, keys: Sequence[Key]) -> RawBatch:
    """The batch of these images (B, C, H, H) and labels (B,), in the order of their keys."""
    index, position, valid = zip(*keys, strict=True)
    return RawBatch(image, label, torch.tensor(index), torch.tensor(position), torch.tensor(valid))


class EpochSampler(Sampler[list[Key]]):
    """Yields one rank's batches of keys.

    Training (``seed`` given): a new order in every epoch; an incomplete last batch is left out. Evaluation (``seed``
    None): the order of ``indices``; the last batch may be smaller, and is filled up with duplicates marked
    ``valid=False`` until all ranks have the same number of rows.

    Args:
        indices: (N,) int64, the samples of the source to visit.
        batch_size: rows per batch of one rank.
        seed: seed of the order, None to keep it.
        rank: this process.
        world_size: number of processes.

    Attributes:
        epoch: the epoch whose order is yielded.
        start: how many batches to leave out at its beginning.

    Raises:
        ValueError: there is nothing to visit, or not enough for one training batch.
    """

    def __init__(
        self, indices: Tensor, *, batch_size: int, seed: int | None = None, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
        self.indices, self.seed, self.epoch, self.start = indices, seed, 0, 0
        self.rank, self.world_size, self.step = rank, world_size, batch_size * world_size
        count = len(indices)
        # rows visited by all ranks together
        self.total = -(-count // world_size) * world_size if seed is None else count // self.step * self.step
        if self.total == 0:
            raise ValueError(f"{count} samples are not enough for one batch of {self.step}: take smaller batches")

    def order(self) -> list[int]:
        """The whole order of the epoch, the same on every rank."""
        if self.seed is None:
            return [int(i) for i in self.indices.tolist()]
        shuffled = torch.randperm(len(self.indices), generator=generator("order", self.seed, self.epoch))
        return [int(i) for i in self.indices[shuffled].tolist()]

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order()
        count = len(order)
        for first in range(self.start * self.step, self.total, self.step):
            width = min(self.step, self.total - first) // self.world_size
            begin = first + self.rank * width
            yield [Key(order[p % count], p, p < count) for p in range(begin, begin + width)]

    def __len__(self) -> int:
        return -(-self.total // self.step)


class EpochLoader:
    """Batches of a source in the order of a sampler; a resumed run continues with the next batch.

    Lightning finds ``state_dict`` and ``load_state_dict`` by their names. This is not a ``DataLoader`` but holds one:
    Lightning replaces the samplers of those that it knows, and warns about ``num_workers=0``, which is the fastest
    choice for images in memory. Nor does Lightning see the sampler: after a resume at the end of an epoch, a Trainer
    limited by ``max_steps`` calls ``set_epoch`` with a number that is one too high. Workers live for one epoch: those
    that outlive it hold up the process for seconds when they are collected as garbage.

    Args:
        source: where images come from.
        sampler: which images, in what order.
        epoch: tells the epoch when an iteration begins; None leaves it to `set_epoch`.
        num_workers: processes that decode images; 0 reads in the main process.
        pin_memory: for faster copies to a GPU.
    """

    def __init__(
        self,
        source: ImageSource,
        sampler: EpochSampler,
        *,
        epoch: Callable[[], int] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._sampler, self._epoch = sampler, epoch
        self._loader: DataLoader[RawBatch | Exception] = DataLoader(
            _Batches(source),
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=_as_is,
            pin_memory=pin_memory,
        )
        self._seen = 0
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self._sampler)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, where there is no Trainer to tell it."""
        self._sampler.epoch = epoch

    def __iter__(self) -> Iterator[RawBatch]:
        # This is a generator: nothing below runs before the first batch is asked for, when a resuming Trainer has
        # called load_state_dict and knows its epoch.
        if self._epoch is not None:
            self._sampler.epoch = self._epoch()
        epoch, seen = self._resume or (self._sampler.epoch, 0)
        self._resume = None
        self._seen = self._sampler.start = seen if epoch == self._sampler.epoch else 0
        for batch in self._loader:
            if isinstance(batch, Exception):
                raise batch
            self._seen += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: the epoch, and the batches that it has handed out."""
        epoch, seen = self._resume or (self._sampler.epoch, self._seen)
        return {"epoch": epoch, "batches": seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration continue there, if it is over the same epoch."""
        self._resume = (state["epoch"], state["batches"])


class _Batches(Dataset[RawBatch | Exception]):
    """Shows a source to DataLoader as a data set that is read by whole batches."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitems__(self, keys: Sequence[Key]) -> RawBatch | Exception:
        try:
            return self.source.__getitems__(keys)
        except (ValueError, OSError) as error:
            if get_worker_info() is None:
                raise
            # DataLoader would put the worker's traceback into the message, which is to be one sentence. A note is shown
            # below the traceback, and only there.
            error.add_note("In a worker:\n" + "".join(traceback.format_exception(error)))
            return error


def _as_is(batch: Any) -> Any:
    return batch
