"""What loggers are told of a training besides its losses and measures: gradients, pace, learning rates, pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.loggers import Logger

from redlab.batch import AttackBatch
from redlab.methods import Method
from redlab.report.canvas import log_figure
from redlab.report.plots import image_grid

_SHOWN = 6  # pairs of a picture


def monitors(loggers: Sequence[Logger]) -> list[Callback]:
    """Those of a run; none where nobody logs."""
    return [LearningRateMonitor(), Pace(), Pictures()] if loggers else []


class Pace(Callback):
    """Logs the norm of gradients, images per second, and the share of the time that passes before a step begins.

    ``train/grad_norm`` is taken before clipping, with several players of each (``train/grad_norm_<player>``), at every
    ``trainer.log_every_n_steps``-th step. ``speed/images_per_second`` counts images of all ranks,
    ``speed/crafting_share`` what is spent on loading and crafting; both are of an epoch without its validation. On a
    GPU crafting may still be at work when a step begins, so its share there is a lower bound.
    """

    def __init__(self) -> None:
        self.crafting = self.training = self.since = 0.0
        self.images = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins to count."""
        self.crafting, self.training, self.images, self.since = 0.0, 0.0, 0, time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is crafted."""
        now = time.perf_counter()
        self.crafting, self.since = self.crafting + now - self.since, now

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        """The step is made."""
        now = time.perf_counter()
        self.training, self.since = self.training + now - self.since, now
        self.images += len(batch) * trainer.world_size

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation counts for nothing."""
        self.since = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs what was counted."""
        total = self.crafting + self.training
        if total > 0:
            found = {"speed/images_per_second": self.images / total, "speed/crafting_share": self.crafting / total}
            pl_module.log_dict(found, sync_dist=True)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Logs the norm."""
        if not isinstance(pl_module, Method) or not pl_module.logs_now:
            return
        place = next((i for i, own in enumerate(trainer.optimizers) if own is optimizer), 0)
        players = list(pl_module.players)
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if grads:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad.float()) for grad in grads]))
            pl_module.log(f"train/grad_norm{f'_{players[place]}' if players else ''}", norm)


class Pictures(Callback):
    """Shows validation images clean, attacked and restored by a restorer, after epochs 1, 2, 4, 8, ... and the last."""

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        i: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws the first attacked images of the first batch."""
        epoch = trainer.current_epoch + 1
        now = epoch & (epoch - 1) == 0 or epoch == trainer.max_epochs
        if i or trainer.sanity_checking or not now or not trainer.is_global_zero or not isinstance(batch, AttackBatch):
            return
        if "restorer" not in getattr(pl_module, "capabilities", ()):
            return
        pairs = batch[batch.attacked.nonzero()[:_SHOWN, 0]]
        if not len(pairs):
            return
        with torch.no_grad():
            restored = pl_module.restore(pairs.adv)  # type: ignore[operator]
        delta = pairs.adv - pairs.clean
        scale = max(1, int(0.5 / max(float(delta.abs().max()), 1e-3)))
        columns = {
            "clean": pairs.clean,
            "attacked": pairs.adv,
            f"perturbation x {scale}": 0.5 + scale * delta,
            "restored": restored,
        }
        figure = image_grid({name: images.float().cpu() for name, images in columns.items()}, title=f"epoch {epoch}")
        folder = Path(trainer.default_root_dir) / "figures" / "training"
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # the loggers' axis, also with several players
        log_figure(trainer.loggers, "val_images", figure, step, folder=folder)
