"""What a step of training and an estimate cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from redlab.batch import AttackBatch
from redlab.evaluation import Answers, answers
from redlab.rng import generator


@dataclass(frozen=True, kw_only=True)
class _Timed:
    repeats: int = 3

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")

    def least(self, work: Callable[[], None], batch: AttackBatch) -> Tensor:
        """(B,) seconds for an image, the least of the repeats."""
        seconds = min(_seconds(work, batch.adv.device) for _ in range(self.repeats))
        return torch.full((len(batch),), seconds / len(batch), dtype=torch.float64)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.accelerator.synchronize()
    started = time.perf_counter()
    work()
    torch.accelerator.synchronize()
    return time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class Cost(_Timed):
    """Seconds for an image of the batch, the same for all: of the processor, or of the clock on other devices.

    Columns ``step_s``, the terms of the loss and their gradient (a method with ``loss_terms``, such as CDD-RED), and
    ``restore_s``, an estimate without gradient. Each is the least of several. The method is in eval mode.

    Attributes:
        repeats: how many times each is done, at least 1.
    """

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``.

        Raises:
            ValueError: the method has no loss of that kind.
        """
        if not hasattr(method, "loss_terms"):
            raise ValueError(
                f"{type(method).__name__} has no loss_terms(batch, generator), whose cost could be measured"
            )

        def step() -> None:
            with torch.inference_mode(False), torch.enable_grad():
                loss = torch.stack([*method.loss_terms(batch, generator("cost"))]).sum()
                torch.autograd.grad(loss, [p for p in method.parameters() if p.requires_grad])

        def restore() -> None:
            with torch.no_grad():
                method.estimate(batch.adv)

        return {"step_s": self.least(step, batch), "restore_s": self.least(restore, batch)}


@dataclass(frozen=True, kw_only=True)
class Latency(_Timed):
    """What it takes to ask a method, whatever it can do, the same for all images of a batch.

    Columns ``answer_s``, seconds for an image in the batch, of the processor, or of the clock on other devices, the
    least of several; and ``parameters``, of the method without its frozen networks.

    Attributes:
        repeats: how many times it is asked, at least 1.
    """

    def __call__(
        self, method: Any, victims: Mapping[str, nn.Module], batch: AttackBatch, said: Answers
    ) -> Mapping[str, Tensor]:
        """See ``Probe``."""

        def ask() -> None:
            with torch.no_grad():
                answers(method, batch.adv, batch.clean)

        trained = float(sum(p.numel() for p in method.parameters() if p.requires_grad))
        parameters = torch.full((len(batch),), trained, dtype=torch.float64)
        return {"answer_s": self.least(ask, batch), "parameters": parameters}
