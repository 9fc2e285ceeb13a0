"""What a user sees while a run works."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, RichProgressBar
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from redlab.attacks.watched import Level, listening, share, where

console = Console(width=None if sys.stdout.isatty() else 120)
_SHORT, _LONG = 2.0, 60.0  # seconds of crafting, after which the bar says where it is, and after which a file says so


class Bar(RichProgressBar):
    """The progress bar of a run; while a batch is crafted for long, it says where that is."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        self.crafting = ""

    def configure_columns(self, trainer: Any) -> list[Any]:
        """Lightning's columns, and one more."""
        return [*super().configure_columns(trainer), _Crafting(self)]

    def show(self, text: str) -> None:
        """Says where the crafting is."""
        if text != self.crafting:
            self.crafting = text
            if self.progress is not None:
                self.progress.refresh()


class _Crafting(ProgressColumn):
    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        return Text(self.bar.crafting, style="dim")


class Watch:
    """Tells where long crafting is: at once on a bar, and every minute in a file, and aloud where there is no bar.

    Args:
        log: the file; made when there is something to say.
        show: is given what to say, and nothing when the crafting of a batch is over; None where there is no bar.
        every: seconds from line to line of the file.
    """

    def __init__(self, log: Path, show: Callable[[str], object] | None = None, every: float = _LONG) -> None:
        self.log, self.show, self.every = log, show, every
        self.began: float | None = None
        self.told = 0.0

    def __call__(self, levels: Sequence[Level]) -> None:
        """Hears of the loops that are at work; see ``redlab.attacks.watched``."""
        now = time.monotonic()
        if not levels:
            self.began = None
            if self.show is not None:
                self.show("")
            return
        if self.began is None:
            self.began = self.told = now
        took, done = now - self.began, share(levels)
        left = f", about {_clock(took * (1 - done) / done)} left" if done > 0 else ""
        several = levels if levels[0].total > 1 else levels[1:] or levels  # of one model nobody need be told
        text = f"crafting {where(several)}{left}"
        if self.show is not None and took >= _SHORT:
            self.show(text)
        if now - self.told >= self.every:
            self.told = now
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}, {_clock(took)} so far\n")
            if self.show is None:
                console.print(text, markup=False, highlight=False)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _clock(75), _clock(7325)
    ('1:15', '2:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def progress(cfg: DictConfig) -> list[Callback]:
    """The progress bar, where one is wanted."""
    return [Bar()] if cfg.trainer.enable_progress_bar else []


@contextmanager
def saying_where(trainer: Any) -> Iterator[None]:
    """Tells where the crafting inside is, on the bar of a trainer and in ``crafting.log`` in its folder."""
    bar = trainer.progress_bar_callback
    show = bar.show if isinstance(bar, Bar) and console.is_interactive else None
    # one rank speaks for all
    with (
        listening(Watch(Path(trainer.default_root_dir) / "crafting.log", show))
        if trainer.is_global_zero
        else nullcontext()
    ):
        yield


def filter_known_warnings() -> None:
    """Warnings of libraries about things that are meant as they are, and notes on devices that are not used."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # in-memory data sets need none
        r".*in eval mode at the start of training.*",  # frozen helpers are
        r".*Checkpoint directory .* exists and is not empty.*",  # resuming
        r".*Total length of `list` across ranks is zero.*",  # data.val_size=0
        r".*LeafSpec.*is deprecated.*",  # lightning 2.6 with torch 2.15
    ):
        warnings.filterwarnings("ignore", message=message)
