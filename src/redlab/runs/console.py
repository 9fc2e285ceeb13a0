"""What a user sees while a run works."""

from __future__ import annotations

import logging
import sys
import warnings

from lightning.pytorch.callbacks import Callback, RichProgressBar
from omegaconf import DictConfig
from rich.console import Console

console = Console(width=None if sys.stdout.isatty() else 120)


def progress(cfg: DictConfig) -> list[Callback]:
    """The progress bar, where one is wanted."""
    return [RichProgressBar(leave=False)] if cfg.trainer.enable_progress_bar else []


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
