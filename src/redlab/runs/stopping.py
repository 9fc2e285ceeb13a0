"""SIGTERM and Ctrl-C: every rank finishes its batch, ``last.ckpt`` is written, and the run says how to go on."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class Stopped(Exception):
    """The run was asked to stop and has written ``last.ckpt``.

    Args:
        text: what a user reads.
        signum: the signal that asked.
    """

    def __init__(self, text: str, signum: int = signal.SIGTERM) -> None:
        super().__init__(text)
        self.signum = int(signum)


class StopOnSignal(Callback):
    """SIGTERM, Ctrl-C: all ranks finish the batch, agree, write ``last.ckpt`` and stop; a resume goes on from there.

    A second Ctrl-C stops at once. Lightning's own handler broadcasts from inside the handler, hangs when only one rank
    is signalled, and ends with exit code 0. It puts back the handlers from before when a fit or test is over.

    Args:
        last: where to save; None where there is nothing to resume.
    """

    def __init__(self, last: Path | None = None) -> None:
        self.last, self.asked = last, 0

    def _listen(self, trainer: L.Trainer) -> None:
        def ask(signum: int, frame: FrameType | None) -> None:
            if signum == signal.SIGINT:
                if self.asked == signum:
                    raise KeyboardInterrupt
                if trainer.is_global_zero:
                    print("\nStopping after this batch; Ctrl-C again stops at once.", file=sys.stderr, flush=True)
            self.asked = signum
            # a terminal sends Ctrl-C to the children itself, and once is enough
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGTERM)

        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, ask)

    def _stop_if_asked(self, trainer: L.Trainer, *, save: bool = False) -> None:
        if not trainer.strategy.reduce_boolean_decision(bool(self.asked), all=False):
            return
        by = self.asked or signal.SIGTERM
        if self.last is None:
            raise Stopped("Stopped before there was anything to keep.", by)
        if save:
            trainer.save_checkpoint(self.last)
        word = shlex.quote(f"resume={self.last.parents[1]}")
        raise Stopped(f"Stopped at step {trainer.global_step}. To go on: redlab train {word}", by)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signal over from Lightning."""
        self._listen(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signal over from Lightning."""
        self._listen(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops with what the epoch before has saved."""
        self._stop_if_asked(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves and stops, but not after the last batch: from there, a resume would leave out the validation."""
        if not trainer.is_last_batch:
            self._stop_if_asked(trainer, save=True)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the signal over from Lightning."""
        self._listen(trainer)

    def on_test_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Stops; the trained method is saved."""
        self._stop_if_asked(trainer)
