"""What an attack bank of a data module holds, and how it is crafted and replayed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from redlab.batch import CLEAN, AttackBatch, ImageSource, Key
from redlab.crafting.bank import IMAGES, Part
from redlab.crafting.deal import Cell
from redlab.data.loader import EpochSampler

if TYPE_CHECKING:
    from redlab.data.module import AttackDataModule

STAGES = ("train", "val", "test")


def made_of(data: AttackDataModule, victims: dict[str, str], epochs: int) -> dict[str, Any]:
    """What the images of a bank depend on, as plain values.

    Args:
        data: set up.
        victims: name -> hash of each victim.
        epochs: how many epochs of training are crafted; later epochs see them again in turn.

    Raises:
        ValueError: the mix attacks the method itself, which no bank can hold; or a part of it cannot be told.
    """
    for name, component in data.mix.components.items():
        if component.knowledge == "defence":
            raise ValueError(f"{name}.knowledge=defence attacks the method as it is at that moment: no bank holds that")
    parts = {part: hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16] for part, rows in data.indices.items()}
    return {
        "mix": data.mix.describe(),
        "seed": data.seed,  # of the order of training, by which a mix deals
        "quantize": data.mix.quantize,
        "victims": victims,
        "data": {part: source.fingerprint() for part, source in data.splits._asdict().items()},
        "images": parts,
        "epochs": epochs,
    }


def parts(
    data: AttackDataModule, epochs: int, stages: Sequence[str] = STAGES, batch_size: int | None = None
) -> list[Part]:
    """Everything that a mix crafts: epochs of training, the validation images, and each attack's cells of the test.

    Args:
        data: set up, its victims on their device.
        epochs: as for `made_of`.
        stages: some of "train", "val" and "test".
        batch_size: images that are crafted together; None: those of a batch of one process. Others differ in the last
            bits, and in what these decide.

    Raises:
        ValueError: ``batch_size`` is less than 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"bank_batch_size must be at least 1, got {batch_size}")
    found = []
    train = data.splits.train
    for epoch in range(epochs) if "train" in stages else ():
        sampler = EpochSampler(data.indices["train"], batch_size=1, seed=data.seed)
        sampler.epoch = epoch
        found.append(_part(data, train_part(epoch), train, sampler.order(), "train", batch_size, epoch))
    if "val" in stages and len(data.indices["val"]):
        found.append(_part(data, "val", train, data.indices["val"].tolist(), "val", batch_size))
    cells = data.mix.cells(data.victims, adaptive=False) if "test" in stages else []
    order = data.indices["test"].tolist()
    found += [
        _part(data, test_part(c), data.tested, order, "test", batch_size, cell=c) for c in cells if c.attack != CLEAN
    ]
    return found


def train_part(epoch: int) -> str:
    """Name of the part of an epoch of training."""
    return f"train-{epoch}"


def test_part(cell: Cell) -> str:
    """Name of the part of a cell of the test."""
    return f"test-{cell.attack}-{cell.setting}-{cell.victim}"


def _part(
    data: AttackDataModule,
    name: str,
    source: ImageSource,
    order: list[int],
    stage: str,
    batch_size: int | None,
    epoch: int = 0,
    cell: Cell | None = None,
) -> Part:
    size = batch_size or (data.batch_size if stage == "train" else data.eval_batch_size)
    whole = max(IMAGES // size, 1) * size
    keys = [Key(index, position, True) for position, index in enumerate(order)]
    chunks = [keys[i : i + whole] for i in range(0, len(keys), whole)]

    def craft(chunk: int) -> AttackBatch:
        some = chunks[chunk]
        batches = []
        for first in range(0, len(some), size):
            raw = source.__getitems__(some[first : first + size])
            raw = type(raw)(*(values.to(data.device) for values in raw))
            crafted = data.craft(raw, stage=stage, epoch=epoch, cell=cell, want_fooled=True)
            batches.append(crafted.map(torch.Tensor.cpu))
        return AttackBatch.cat(batches)

    return Part(name, len(chunks), whole, craft)
