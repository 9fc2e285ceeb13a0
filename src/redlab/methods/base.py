"""What every method shares: optimisers from partials, frozen helper networks, evaluation by capability."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self, cast

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from redlab.batch import AttackBatch, Restorer, attacked_images, capabilities, estimate
from redlab.evaluation import Evaluator, gathered
from redlab.methods.examples import Examples, Said
from redlab.metrics import Samples, numbers
from redlab.victims import state_hash
from redlab.victims.classifier import check_finite

OptimizerPartial = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerPartial = Callable[[Optimizer], LRScheduler]


class Method(LightningModule):
    """Base of the methods: a method adds its networks, its ``training_step`` and its capabilities.

    Validation and test measure what the method can do (``redlab.evaluation``). Numbers are logged as ``val/<number>``
    and ``test/<number>``, see ``redlab.metrics.numbers``.

    Attributes:
        frozen: names of helper networks that training never changes. They stay in eval mode and out of checkpoints,
            which hold their sha256 instead.
        monitor: key that picks the best checkpoint.
        monitor_mode: "max" or "min".
        evaluator: what measures it; the data module hands it over (``AttackDataModule.attach``).
        results: ``test/...`` numbers of the last test.
        samples: the rows of the last test, of all processes.
        examples: after a test, a few pairs of every cell with an attack on the victim, and what was said of them, on
            the CPU; see ``Examples``.
        run: of a method from ``redlab.load``, what it was made with: ``config``, ``victims``, ``mix`` and ``data``.

    Args:
        optimizer: parameters -> optimiser.
        scheduler: optimiser -> learning-rate schedule, stepped once per epoch; None for a constant rate.
    """

    frozen: ClassVar[tuple[str, ...]] = ()
    monitor: ClassVar[str] = "val/restored_accuracy"
    monitor_mode: ClassVar[str] = "max"
    run: Any = None

    def __init__(self, *, optimizer: OptimizerPartial, scheduler: SchedulerPartial | None = None) -> None:
        super().__init__()
        self.optimizer_partial = optimizer
        self.scheduler_partial = scheduler
        self.evaluator: Evaluator | None = None
        self.results: dict[str, float] = {}
        self.samples: Samples | None = None
        self.examples: list[tuple[AttackBatch, Said]] = []
        self._rows: list[Samples] = []
        self._kept: dict[int, Examples] = {}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser over all that is trained."""
        optimizer = self.optimizer_partial([p for p in self.parameters() if p.requires_grad])
        if self.scheduler_partial is None:
            return optimizer
        return [optimizer], [self.scheduler_partial(optimizer)]

    def on_before_backward(self, loss: Tensor) -> None:
        """Stops before a bad loss reaches the weights.

        Raises:
            NotFiniteError: the loss is NaN or infinite.
        """
        check_finite(loss, self.global_step)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; frozen networks stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves frozen networks out and records their hashes."""
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not self._is_frozen(k)}
        checkpoint["frozen"] = {name: state_hash(getattr(self, name)) for name in self.frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts frozen networks back in, so that loading stays strict.

        Raises:
            ValueError: a frozen network is not the one that the checkpoint was trained with.
        """
        recorded = checkpoint.get("frozen", {})
        for name in self.frozen:
            present = state_hash(getattr(self, name))
            if recorded.get(name) != present:
                raise ValueError(f"{name!r} differs from the checkpoint's: sha256 {present}, not {recorded.get(name)}")
        checkpoint["state_dict"].update({k: v for k, v in self.state_dict().items() if self._is_frozen(k)})

    def _is_frozen(self, key: str) -> bool:
        return key.split(".", 1)[0] in self.frozen

    def _evaluated(self, batch: AttackBatch) -> tuple[AttackBatch, Said]:
        """Measures the valid images of a batch and keeps the rows; gives the pairs and what was said, on the CPU."""
        if self.evaluator is None:
            raise ValueError("nobody has said by what to evaluate: data.attach(method), of the data module, does")
        rows, answers = self.evaluator(self, batch)
        self._rows.append(rows)
        one_judge = rows.where(judge=rows.values("judge")[:1]) if self.evaluator.judges and len(rows) else rows
        said = dict(one_judge.columns)
        if answers.restored is not None:
            said["restored"] = answers.restored[batch.valid].cpu()
        if answers.class_logits is not None:
            said["answer"] = answers.class_logits[batch.valid].argmax(1).cpu()
        return batch[batch.valid].map(Tensor.cpu), said

    def on_validation_epoch_start(self) -> None:
        """Begins with no rows."""
        self._rows = []

    def validation_step(self, batch: AttackBatch, batch_idx: int) -> None:
        """Evaluates a batch."""
        self._evaluated(batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the numbers of all rows as ``val/...``."""
        self._log_numbers("val/", gathered(self._rows))

    def on_test_start(self) -> None:
        """Forgets the last test."""
        self.results, self.samples, self.examples, self._rows, self._kept = {}, None, [], [], {}

    def test_step(self, batch: AttackBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Evaluates a batch of one cell."""
        kept = self._kept.setdefault(dataloader_idx, Examples(dataloader_idx))
        pairs, said = self._evaluated(batch)
        if len(pairs):
            kept.add(pairs, said)

    def on_test_epoch_end(self) -> None:
        """Gathers rows and examples of all processes, and logs the numbers as ``test/...``."""
        if self.trainer.world_size > 1:
            everywhere: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(everywhere, self._kept)
            for cell, kept in self._kept.items():
                kept.join([process[cell] for process in everywhere])
        self.examples = [pairs for _, kept in sorted(self._kept.items()) for pairs in kept.pairs()]
        self.samples = gathered(self._rows)
        self.results = self._log_numbers("test/", self.samples)

    def _log_numbers(self, prefix: str, rows: Samples) -> dict[str, float]:
        values = {prefix + key: value for key, value in numbers(rows).items()} if len(rows) else {}
        for key, value in values.items():  # already the same on all ranks: sync_dist only says so
            self.log(key, value, prog_bar=key == self.monitor, sync_dist=True, batch_size=1)
        return values

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """What the method says of a batch, for ``trainer.predict``.

        Args:
            batch: of the data module, whose loaders are the cells of the test; or images (B, C, H, W) in [0, 1], alone
                or first in a list, as any loader yields them.
            batch_idx: of the batch.
            dataloader_idx: of the loader.

        Returns:
            By capability ``restored`` (B, C, H, W), ``score_<name>`` (B,), ``attack_logits`` (B, A), ``class_logits``
            (B, K); of a batch of the data module also everything in it, by the names of ``AttackBatch``.
        """
        x, said = attacked_images(batch)
        can, method = capabilities(self), cast(Any, self)
        if "restorer" in can:
            said["restored"] = method.restore(x)
        if "detector" in can:
            said |= {f"score_{name}": score for name, score in method.adversarial_scores(x).items()}
        if "identifier" in can:
            said["attack_logits"] = method.attack_logits(x)
        if "labeler" in can:
            said["class_logits"] = method.class_logits(x)
        return said

    def clamped_estimate(self, x: Tensor) -> Tensor:
        """``estimate(x)`` as images, for a method's ``restore``: in [0, 1], on the device of ``x``.

        It carries a gradient if ``x`` does; training goes through ``estimate``.

        Args:
            x: (B, C, H, W) floats in [0, 1], on any device.

        Returns:
            (B, C, H, W) float32.

        Raises:
            ValueError: ``x`` is something else.
        """
        if x.ndim != 4 or not x.is_floating_point():
            hint = "; divide by 255" if x.dtype == torch.uint8 else ""
            raise ValueError(f"images must be (B, C, H, W) floats in [0, 1], got {x.dtype} {tuple(x.shape)}{hint}")
        low, high = (float(v) for v in x.detach().aminmax()) if x.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):  # written so that NaN fails as well
            hint = "; divide by 255" if low >= 0 and 1 < high <= 255 else ""
            raise ValueError(f"images must be in [0, 1], got values from {low:g} to {high:g}{hint}")
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            answer = estimate(cast(Restorer, self), x.to(self.device, torch.float32))
            return answer.float().clamp(0, 1).to(x.device)
