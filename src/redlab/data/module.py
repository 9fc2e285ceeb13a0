"""Loaders of a data set, and the hook that attacks every batch on its device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from redlab.batch import AttackBatch, ImageSource, Key, RawBatch, attackable
from redlab.crafting import AttackMix, Cell
from redlab.crafting.bank import Bank
from redlab.data.banking import test_part, train_part
from redlab.data.choice import Choice
from redlab.data.folder import FolderSource, check_images
from redlab.data.loader import EpochLoader, EpochSampler
from redlab.data.sources import Splits
from redlab.evaluation import Evaluator
from redlab.rng import SampleRng


class AttackDataModule(LightningDataModule):
    """A data set whose batches arrive attacked.

    ``fit``, ``validate``, ``test`` and ``predict`` all hand `AttackBatch` to the module. Training and validation are
    dealt by the mix; the test set is walked cell by cell, one loader per entry of ``test_cells``. Prediction walks the
    same cells.

    Without a Trainer:

        data = AttackDataModule(digits, mix=mix, victims={"net": net}); data.setup_data()
        batch = data.craft(next(iter(data.val_dataloader())), stage="val")

    Attributes:
        defence: what attackers with ``knowledge="defence"`` know, see `attach`; None: there is none.

    Args:
        source: the data set, or a function that loads it when it is first needed.
        mix: which sample meets which attack.
        victims: name -> victim; the order gives their ids.
        seed: seed of the split into training and validation and of the order of training.
        batch_size: images of one training step, over all ranks together.
        eval_batch_size: the same for validation and test, rounded up to a multiple of the number of ranks; nothing but
            speed depends on it.
        val_size: share (below 1) or number of training images kept for validation; 0 for none.
        hold_out: number of training images that no victim is trained on, the same for every seed.
        use: which training images there are: "all", those "held_out", or those that victims have "seen".
        num_workers: processes that read images, on each rank.
        limit_train: use only so many training images, chosen by ``seed``; None for all.
        limit_val: the same for validation.
        limit_test: the same for test; the choice does not depend on ``seed``, so that all runs are tested alike.
        test_on: what a test is of: the "test" images, or those of the validation ("val"), on which settings are chosen.
        shuffle_attacks: tell the training by lot which attack it was, if any, and the test the truth: who is better
            than chance there has not learnt it in training.
        name: name of the data set.
        num_classes: what the data set must have, None for no check.
        channels: what the images must have, None for no check.
        image_size: what the images must have, None for no check.
        mean: per channel; like the three below for other parts of a config to refer to, not used here.
        std: per channel.
        root: folder of the files.
        download: whether the source may fetch them.
        check_images: read every image of a `FolderSource` once before anything is trained, so that a damaged one is
            found at once; False for folders so large that this takes too long.

    Raises:
        ValueError: a size that makes no sense, or data that are not as declared.
    """

    def __init__(
        self,
        source: Splits | Callable[[], Splits],
        *,
        mix: AttackMix,
        victims: Mapping[str, nn.Module],
        seed: int = 0,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        val_size: float = 0.1,
        hold_out: int = 0,
        use: str = "all",
        num_workers: int = 0,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        test_on: str = "test",
        shuffle_attacks: bool = False,
        name: str = "",
        num_classes: int | None = None,
        channels: int | None = None,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        root: str | None = None,
        download: bool = False,
        check_images: bool = True,
    ) -> None:
        super().__init__()
        for what, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise ValueError(f"data.{what} must be at least 1, got {size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0, which reads in the main process, got {num_workers}")
        limits = {"train": limit_train, "val": limit_val, "test": limit_test}
        self._choice = Choice(seed=seed, val_size=val_size, hold_out=hold_out, use=use, limits=limits, test_on=test_on)
        self.mix, self.victims, self.seed, self.name = mix, dict(victims), seed, name
        self.test_on, self.shuffle_attacks = test_on, shuffle_attacks
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self._declared = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
        self._source, self._check_images = source, check_images
        self._splits: Splits | None = None
        self._indices: dict[str, Tensor] = {}
        self.defence: Any = None
        self.bank: Bank | None = None
        self.skip: frozenset[str] = frozenset()

    @property
    def splits(self) -> Splits:
        """The official parts of the data set; loads them if need be.

        Raises:
            ValueError: the data are not as declared.
        """
        if self._splits is None:
            splits = self._source if isinstance(self._source, Splits) else self._source()
            for part in splits:
                found = {
                    "num_classes": len(part.classes),
                    "channels": part.channels,
                    "image_size": part.image_size,
                }
                for what, wanted in self._declared.items():
                    if wanted is not None and wanted != found[what]:
                        raise ValueError(
                            f"data.{what} is {wanted}, but {self.name or 'the data set'} has {found[what]}: "
                            f"set data.{what}={found[what]}"
                        )
            self._splits = splits
        return self._splits

    @property
    def tested(self) -> ImageSource:
        """Where the images of a test lie."""
        return self.splits.train if self.test_on == "val" else self.splits.test

    @property
    def loaded(self) -> bool:
        """Whether the data are read already."""
        return self._splits is not None

    @property
    def indices(self) -> Mapping[str, Tensor]:
        """The images of the parts "train", "val" and "test", by their places in the source; known after the setup."""
        return self._indices

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.splits.train.classes)

    def attach(self, method: Any, judges: Sequence[str] | None = None, probe: Any = None, keep_images: int = 0) -> None:
        """Makes a method the defence that attackers can know, and hands it what it is to be evaluated by.

        Args:
            method: of ``redlab.methods``, or any module with a capability.
            judges: victims that judge every image; None: the one that was attacked.
            probe: of ``redlab.probes``, what is looked at besides.
            keep_images: of so many images in each cell the probe's pictures are kept.
        """
        self.defence = method
        if ready := getattr(probe, "ready", None):
            probe = ready(self.victims, self.clean_images)
        told = {attack: self.mix.setting_names(attack) for attack in range(len(self.mix.attack_names))}
        settings = {attack: names for attack, names in told.items() if names}
        method.evaluator = Evaluator(
            victims=self.victims,
            attack_names=self.mix.attack_names,
            setting_names=settings,
            judges=None if judges is None else list(judges),
            probe=probe,
            keep_images=keep_images,
        )

    def clean_images(self, many: int, part: str = "val") -> tuple[Tensor, Tensor]:
        """The first images (B, C, H, W) in [0, 1] of a part, and their labels (B,), on the victims' device."""
        self.setup_data()
        source = self.tested if part == "test" else self.splits.train
        raw = source.__getitems__([Key(int(i), 0, True) for i in self.indices[part][:many]])
        return _floats(raw.image).to(self.device), raw.label.to(self.device)

    @property
    def test_cells(self) -> list[Cell]:
        """What the test loaders measure, in their order; the adaptive cells if there is a defence that can be attacked.

        Attacks named in ``skip`` are left out.
        """
        adaptive = self.defence is not None and attackable(self.defence)
        cells = self.mix.cells(self.victims, adaptive=adaptive)
        return [cell for cell in cells if self.mix.attack_names[cell.attack] not in self.skip]

    def prepare_data(self) -> None:
        """Loads the data on one process first, which downloads them and looks at all images where that is asked for.

        Raises:
            ValueError: images cannot be read; the message names them.
        """
        folders = [part for part in self.splits if isinstance(part, FolderSource)]
        if self._check_images and folders:
            check_images(folders, progress=self.trainer is None or self.trainer.progress_bar_callback is not None)

    def setup_data(self) -> None:
        """Loads the data and decides which images are for training, validation and test.

        Raises:
            ValueError: there are not enough training images for what is asked for.
        """
        self._indices = self._choice.of(len(self.splits.train), len(self.splits.test))

    def setup(self, stage: str) -> None:
        """Loads the data and moves the victims to the device of this rank.

        Here and not when a batch arrives: under inference mode, moved parameters could never be attacked again.

        Raises:
            ValueError: as for `setup_data` and, before a fit, for `train_dataloader`.
        """
        self.setup_data()
        if stage == "fit":
            self._check_batch_size()  # not only when the loader is asked for, after the first validation
        if self.trainer is not None:
            for victim in self.victims.values():
                victim.to(self.trainer.strategy.root_device)

    def teardown(self, stage: str) -> None:
        """Moves the victims back, so that the jobs of a sweep do not fill the device."""
        for victim in self.victims.values():
            victim.cpu()

    def train_dataloader(self) -> EpochLoader:
        """The training images in the order of (seed, epoch).

        Raises:
            ValueError: ``batch_size`` is not a multiple of the number of ranks, or larger than the data set.
        """
        return self._loader("train")

    def val_dataloader(self) -> list[EpochLoader]:
        """One loader of the validation images, or none if ``val_size`` is 0."""
        return [self._loader("val")] if len(self._indices["val"]) else []

    def test_dataloader(self) -> list[EpochLoader]:
        """One loader of the test images for each of ``test_cells``."""
        return [self._loader("test") for _ in self.test_cells]

    def predict_dataloader(self) -> list[EpochLoader]:
        """The same as for test."""
        return self.test_dataloader()

    @property
    def _place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _check_batch_size(self) -> None:
        world_size, count = self._place[1], len(self._indices["train"])
        if self.batch_size % world_size:
            raise ValueError(
                f"data.batch_size={self.batch_size} is not a multiple of the {world_size} processes: set "
                f"data.batch_size={-(-self.batch_size // world_size) * world_size}"
            )
        if count < self.batch_size:
            limit, size = self._choice.limits["train"], self._choice.val_size
            usable = len(self._choice.usable(len(self.splits.train)))
            raise ValueError(
                f"data.batch_size={self.batch_size} is more than the {count} training images, which are left of "
                f"{usable} by data.val_size={size} and data.limit_train="
                f"{'null' if limit is None else limit}: set data.batch_size={max(count // world_size, 1) * world_size}"
            )

    def _loader(self, part: str) -> EpochLoader:
        trainer, training = self.trainer, part == "train"
        rank, world_size = self._place
        if training:
            self._check_batch_size()
        sampler = EpochSampler(
            self._indices[part],
            batch_size=-(-(self.batch_size if training else self.eval_batch_size) // world_size),
            seed=self.seed if training else None,
            rank=rank,
            world_size=world_size,
        )
        source = self.tested if part == "test" else self.splits.train
        pin = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return EpochLoader(
            source,
            sampler,
            epoch=None if trainer is None or not training else lambda: trainer.current_epoch,
            num_workers=self.num_workers,
            pin_memory=pin,
        )

    def craft(
        self,
        raw: RawBatch,
        *,
        stage: str,
        epoch: int = 0,
        cell: Cell | None = None,
        want_fooled: bool = False,
    ) -> AttackBatch:
        """Attacks a batch. Knows nothing of Lightning: the same arguments give the same images anywhere.

        Args:
            raw: what a loader yields, on the device of the victims.
            stage: "train", "val" or "test".
            epoch: number of the epoch; counts in training only.
            cell: the one attack, setting and victim for all rows; None deals by the mix.
            want_fooled: fill in ``fooled``.

        Returns:
            Clean and attacked images, float32 in [0, 1], as ordinary tensors also under inference mode. Out of ``bank``
            where it has them.
        """
        x = _floats(raw.image)
        if self.bank is not None and (part := self._banked(stage, epoch, cell)) in self.bank:
            return self.bank.rows(part, raw, x)
        plan = self.mix.plan(
            raw.index,
            raw.position,
            stage=stage,
            epoch=epoch,
            victim_names=tuple(self.victims),
            cell=cell,
        )
        return self.mix.craft(
            self.victims,
            x,
            raw.label,
            plan,
            valid=raw.valid,
            defence=self.defence,
            want_fooled=want_fooled,
        )

    def _banked(self, stage: str, epoch: int, cell: Cell | None) -> str:
        """Which part of a bank would hold what is asked for."""
        if cell is not None:
            return test_part(cell)
        return train_part(epoch % self.bank.epochs) if self.bank and stage == "train" else stage

    @property
    def device(self) -> torch.device:
        """Where the victims are."""
        tensors = (t for victim in self.victims.values() for t in victim.parameters())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Attacks what a loader yielded; anything else passes through."""
        trainer = self.trainer
        if not isinstance(batch, RawBatch) or trainer is None:
            return batch
        if trainer.training:
            crafted = self.craft(batch, stage="train", epoch=trainer.current_epoch)
            return self._by_lot(crafted, trainer.current_epoch) if self.shuffle_attacks else crafted
        if trainer.validating or trainer.sanity_checking:
            return self.craft(batch, stage="val", want_fooled=True)
        cell = self.test_cells[dataloader_idx]
        return self.craft(batch, stage="test", cell=cell, want_fooled=True)

    def _by_lot(self, batch: AttackBatch, epoch: int) -> AttackBatch:
        draws = SampleRng(self.seed, "train", epoch, batch.index)
        attack = draws.integers("shuffled attack", len(self.mix.names))
        return replace(batch, attack=attack, attacked=self.mix.attacked(attack))


def _floats(images: Tensor) -> Tensor:
    """Images as they are loaded -> float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
