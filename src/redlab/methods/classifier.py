"""``method=classifier``: ordinary or adversarial training of a classifier, which then serves as a victim."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from redlab.batch import AttackBatch
from redlab.methods.base import Method, OptimizerPartial, SchedulerPartial
from redlab.victims import ImageClassifier
from redlab.victims.loading import CHECKPOINT_KEY


class Classifier(Method):
    """Cross-entropy on ``(batch.adv, batch.label)``.

    A mix of clean rows makes this ordinary training; a mix whose components know the defence makes it adversarial
    training. Its checkpoints say how to rebuild the network: ``redlab.victims.load`` needs only the file.

    Attributes:
        clean_accuracy: on the clean validation images of the last validation.

    Args:
        network: the untrained network; in a run that of the first victim.
        optimizer: partial, see ``Method``.
        scheduler: partial, see ``Method``.
        label_smoothing: in [0, 1].
        data_name: the data set, noted in the checkpoint.

    Raises:
        ValueError: ``label_smoothing`` is out of range.
    """

    def __init__(
        self,
        *,
        network: ImageClassifier,
        optimizer: OptimizerPartial,
        scheduler: SchedulerPartial | None = None,
        label_smoothing: float = 0.0,
        data_name: str = "",
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        self.save_hyperparameters("label_smoothing", "data_name")
        self.monitor = "val/clean_accuracy"
        self.net = network
        self.label_smoothing, self.data_name = label_smoothing, data_name
        self.clean_accuracy: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> (B, K) logits."""
        logits: Tensor = self.net(x)
        return logits

    def class_logits(self, x: Tensor) -> Tensor:
        """The same: the classifier is its own defence."""
        return self.forward(x)

    def training_step(self, batch: AttackBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the valid rows."""
        batch = batch.valid_rows()
        loss = F.cross_entropy(self(batch.adv), batch.label, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch))
        return loss

    def on_validation_epoch_end(self) -> None:
        """Remembers the accuracy on clean images."""
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking and (found := self.trainer.callback_metrics.get(self.monitor)) is not None:
            self.clean_accuracy = float(found)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the description from which ``redlab.victims.load`` rebuilds the victim."""
        super().on_save_checkpoint(checkpoint)
        said = self.net.describe() | {"clean_accuracy": self.clean_accuracy, "data": self.data_name}
        checkpoint[CHECKPOINT_KEY] = said

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes back the last known clean accuracy.

        Raises:
            ValueError: the checkpoint is another method's.
        """
        if CHECKPOINT_KEY not in checkpoint:
            raise ValueError("this is not a checkpoint of method=classifier")
        super().on_load_checkpoint(checkpoint)
        self.clean_accuracy = checkpoint[CHECKPOINT_KEY]["clean_accuracy"]
