"""Signals: every rank finishes its batch, ``last.ckpt`` is written, and the run says how to go on, or is queued again.

SIGTERM and Ctrl-C stop. SIGUSR1 is SLURM's warning that the time is nearly over: the job is queued again. SIGUSR2 is
that of submitit, whose own handler queues it again once all is saved.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from redlab.runs.folders import first_process

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """The run was asked to stop and has written ``last.ckpt``.

    Args:
        text: what a user reads.
        signum: the signal that asked.
        hand_over: called when all is closed: has the job queued again.
    """

    def __init__(self, text: str, signum: int = signal.SIGTERM, hand_over: Callable[[], object] | None = None) -> None:
        super().__init__(text)
        self.signum, self.hand_over = int(signum), hand_over


def queue_again() -> None:
    """Asks SLURM to run this job, or this one of an array of jobs, once more: the same words in the same folder."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60, capture_output=True, text=True)
        print(f"Job {job} is queued again.", file=sys.stderr)
    except (OSError, subprocess.SubprocessError) as error:
        said = " ".join(f"{error} {getattr(error, 'stderr', None) or ''}".split())
        print(f"Job {job} could not be queued again: {said}", file=sys.stderr)


class StopOnSignal(Callback):
    """All ranks finish the batch, agree, write ``last.ckpt`` and stop; a resume goes on from there.

    A second Ctrl-C stops at once. As a context it listens from then on, also while victims are trained or a bank is
    built, where it stops at once: those go on by themselves from what they have written.

    Lightning's own handler broadcasts from inside the handler, hangs when only one rank is signalled, and ends with
    exit code 0. It puts back the handlers from before when a fit or test is over.

    Args:
        last: where to save; None where there is nothing to resume.
    """

    def __init__(self, last: Path | None = None) -> None:
        self.last, self.asked = last, 0
        self.trainer: L.Trainer | None = None
        self.theirs: Any = None  # the handler of a launcher, which queues a job again
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
            self.theirs = self._before[signal.SIGUSR2]
            self._listen()
        return self

    def __exit__(self, *raised: object) -> None:
        for signum, handler in self._before.items():
            if handler is not None:  # one that was not set by Python cannot be put back
                signal.signal(signum, handler)

    def _listen(self, trainer: L.Trainer | None = None) -> None:
        self.trainer = trainer
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                if signum != signal.SIGUSR2 or callable(self.theirs):
                    signal.signal(signum, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.trainer is None:
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            raise Stopped("Stopped before the first batch; the same words go on.", signum, self._hand_over(signum))
        if signum == signal.SIGINT:
            if self.asked == signum:
                raise KeyboardInterrupt
            if self.trainer.is_global_zero:
                print("\nStopping after this batch; Ctrl-C again stops at once.", file=sys.stderr, flush=True)
        self.asked = signum
        # a terminal sends Ctrl-C to the children itself, and once is enough
        if self.trainer.strategy.launcher is not None:
            self.trainer.strategy.launcher.kill(signal.SIGTERM)

    def _hand_over(self, signum: int) -> Callable[[], object] | None:
        if signum == signal.SIGUSR2 and callable(self.theirs):
            return lambda: self.theirs(signum, None)  # which looks by itself whether this is the first rank
        return queue_again if signum == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ and first_process() else None

    def _stop_if_asked(self, trainer: L.Trainer, *, save: bool = False) -> None:
        if not trainer.strategy.reduce_boolean_decision(bool(self.asked), all=False):
            return
        by = self.asked or signal.SIGTERM
        if self.last is None:
            raise Stopped("Stopped before there was anything to keep.", by, self._hand_over(by))
        if save:
            trainer.save_checkpoint(self.last)
        word = shlex.quote(f"resume={self.last.parents[1]}")
        said = f"Stopped at step {trainer.global_step}. To go on: redlab train {word}"
        raise Stopped(said, by, self._hand_over(by))

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


@contextmanager
def handing_over(stop: StopOnSignal) -> Iterator[StopOnSignal]:
    """Listens to signals inside; a stop that has the job queued again does so when all inside is closed."""
    try:
        with stop:
            yield stop
    except Stopped as stopped:
        if stopped.hand_over is not None:
            stopped.hand_over()
        raise
