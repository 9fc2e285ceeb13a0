"""``method=classifier``: ordinary or adversarial training of a classifier, which then serves as a victim."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from redlab.batch import CLEAN, AttackBatch, attacked_images
from redlab.victims.loading import CHECKPOINT_KEY
from redlab.victims.victim import ImageClassifier


class NotFiniteError(ValueError):
    """The training loss is NaN or infinite."""


def check_finite(loss: Tensor, step: int) -> None:
    """Stops a training, here or of a method, before a bad loss reaches the weights.

    Raises:
        NotFiniteError: the loss is NaN or infinite.
    """
    if not bool(torch.isfinite(loss).all()):
        raise NotFiniteError(f"the loss is not finite at step {step}: {loss.detach().tolist()}")


class Classifier(LightningModule):
    """Cross-entropy on ``(batch.adv, batch.label)``.

    A mix of clean rows makes this ordinary training; a mix whose components attack ``self`` makes it adversarial
    training. Its checkpoints say how to rebuild the network: ``redlab.victims.load`` needs only the file.

    Attributes:
        clean_accuracy: on the clean validation images of the last validation.
        monitor: key that picks the best checkpoint.
        monitor_mode: "max" or "min".
        results: ``test/...`` numbers of the last test.
        run: of a classifier from ``redlab.load``, what it was made with, see ``Method``.

    Args:
        backbone: any module that returns logits.
        num_classes: see ``Victim``, as the next five.
        mean: see ``Victim``.
        std: see ``Victim``.
        input_size: see ``Victim``.
        feature_layer: see ``Victim``.
        name: see ``Victim``.
        optimizer: parameters -> optimizer.
        scheduler: optimizer -> learning rate scheduler, stepped once per epoch; a plateau scheduler watches
            ``val/clean_accuracy``.
        label_smoothing: in [0, 1].
        data_name: the data set, noted in the checkpoint.
    """

    monitor: ClassVar[str] = "val/clean_accuracy"
    monitor_mode: ClassVar[str] = "max"
    run: Any = None

    def __init__(
        self,
        backbone: nn.Module,
        *,
        num_classes: int,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        input_size: int | None = None,
        feature_layer: str | None = None,
        name: str = "",
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        label_smoothing: float = 0.0,
        data_name: str = "",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        self.save_hyperparameters("num_classes", "input_size", "feature_layer", "name", "label_smoothing", "data_name")
        self.net = ImageClassifier(
            backbone,
            num_classes=num_classes,
            mean=mean,
            std=std,
            input_size=input_size,
            feature_layer=feature_layer,
            name=name,
        )
        self.label_smoothing = label_smoothing
        self.data_name = data_name
        self.clean_accuracy: float | None = None
        self.results: dict[str, float] = {}
        self._make_optimizer = optimizer
        self._make_scheduler = scheduler
        self.accuracy = MeanMetric()
        self.adv_accuracy = MeanMetric()

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> (B, K) logits."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the valid rows."""
        batch = batch.valid_rows()
        loss = F.cross_entropy(self(batch.adv), batch.label, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch))
        return loss

    def on_before_backward(self, loss: Tensor) -> None:
        """Stops before a bad loss reaches the weights.

        Raises:
            NotFiniteError: the loss is NaN or infinite.
        """
        check_finite(loss, self.global_step)

    def validation_step(self, batch: AttackBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Counts correct answers on the clean images of all valid rows, and on the attacked rows."""
        batch = batch[batch.valid]
        attacked = batch[batch.attack != CLEAN]
        for metric, x, label in (
            (self.accuracy, batch.clean, batch.label),
            (self.adv_accuracy, attacked.adv, attacked.label),
        ):
            # Also without rows, since every rank has to take part in the metric.
            metric.update((self(x).argmax(1) == label).float() if len(x) else x.new_zeros(0))

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/clean_accuracy``, and ``val/attacked_accuracy`` if there were attacked rows."""
        numbers = self._accuracies("val")
        self.log_dict(numbers, prog_bar=True)
        if not self.trainer.sanity_checking:
            self.clean_accuracy = numbers["val/clean_accuracy"]

    def test_step(self, batch: AttackBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Logs ``test/clean_accuracy``, and ``test/attacked_accuracy`` if there were attacked rows."""
        self.results = self._accuracies("test")
        self.log_dict(self.results)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """``logits`` (B, K); of a batch of the data module also everything in it, by the names of ``AttackBatch``."""
        x, said = attacked_images(batch)
        return said | {"logits": self(x)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and the scheduler stepped per epoch."""
        optimizer = self._make_optimizer(self.net.parameters())
        if self._make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": self._make_scheduler(optimizer),
                "interval": "epoch",
                "monitor": self.monitor,
            },
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the description from which ``redlab.victims.load`` rebuilds the victim."""
        said = self.net.describe() | {"clean_accuracy": self.clean_accuracy, "data": self.data_name}
        checkpoint[CHECKPOINT_KEY] = said

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes back the last known clean accuracy.

        Raises:
            ValueError: the checkpoint is another method's.
        """
        if CHECKPOINT_KEY not in checkpoint:
            raise ValueError("this is not a checkpoint of method=classifier")
        self.clean_accuracy = checkpoint[CHECKPOINT_KEY]["clean_accuracy"]

    def _accuracies(self, stage: str) -> dict[str, float]:
        # Over all ranks already, so nothing is left to synchronise when they are logged.
        clean, adv = float(self.accuracy.compute()), float(self.adv_accuracy.compute())
        self.accuracy.reset()
        self.adv_accuracy.reset()
        attacked = {} if math.isnan(adv) else {f"{stage}/attacked_accuracy": adv}  # NaN where no row was attacked
        return {f"{stage}/clean_accuracy": clean} | attacked
