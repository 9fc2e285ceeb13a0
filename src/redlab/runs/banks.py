"""The attack bank of a run: found, built or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from redlab.attacks.watched import listening
from redlab.crafting.bank import Bank, build
from redlab.data import AttackDataModule
from redlab.data.banking import STAGES, made_of, parts
from redlab.runs.check import ConfigError
from redlab.runs.console import Watch, console
from redlab.runs.identity import digest
from redlab.victims import state_hash

WORDS = ("build", "auto")
"""What ``bank`` may be besides a folder: craft and stop; or craft what is missing and go on."""


def open_bank(cfg: DictConfig, data: AttackDataModule, stages: Sequence[str] = STAGES) -> Bank | None:
    """The bank that a config asks for, with all that is needed in it; None if it asks for none.

    Args:
        cfg: a finalised config.
        data: with the victims that are attacked.
        stages: what of it will be asked for.

    Raises:
        ConfigError: the folder is no bank, is not complete, or was made of something else.
    """
    if cfg.bank is None:
        return None
    data.setup_data()
    try:
        if cfg.bank not in WORDS:
            bank = Bank(Path(cfg.bank))
            bank.check(made_of(data, _hashes(data), bank.epochs))
            if missing := bank.missing():
                raise ConfigError(f"bank={cfg.bank} still lacks {missing} files: go on with bank=build, or bank=auto.")
            if damaged := bank.damaged():
                raise ConfigError(f"{damaged[0]} is damaged: bank=auto makes it again.")
            return bank
        content = made_of(data, _hashes(data), cfg.bank_epochs)
        folder = Path(cfg.bank_root) / str(cfg.data.name) / digest(content)[:10]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")), _on_device(cfg, data):
            for path in Bank(folder).damaged() if (folder / "manifest.json").exists() else ():
                console.print(f"[yellow]{path} is damaged, and made again.[/]")
                path.unlink()
            wanted = parts(data, cfg.bank_epochs, stages, cfg.bank_batch_size)
            with _bar(cfg) as bar:
                task = bar.add_task("Crafting the bank", total=sum(part.chunks for part in wanted), part="")
                show = None if bar.disable else lambda text: bar.update(task, part=text)
                with listening(Watch(folder / "crafting.log", show)):
                    bank = build(folder, content, wanted, tick=lambda part: bar.update(task, advance=1, part=part))
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    console.print(f"Attack bank: [bold]{folder}[/]")
    return bank


def _hashes(data: AttackDataModule) -> dict[str, str]:
    return {name: state_hash(victim) for name, victim in data.victims.items()}


class _on_device:
    """Victims on the device of the run while a bank is crafted."""

    def __init__(self, cfg: DictConfig, data: AttackDataModule) -> None:
        accelerator = torch.accelerator.is_available() and cfg.trainer.accelerator != "cpu"
        self.device = torch.accelerator.current_accelerator() if accelerator else torch.device("cpu")
        self.data = data

    def __enter__(self) -> None:
        for victim in self.data.victims.values():
            victim.to(self.device)

    def __exit__(self, *error: object) -> None:
        for victim in self.data.victims.values():
            victim.cpu()


def _bar(cfg: DictConfig) -> Progress:
    columns = (TextColumn("{task.description} {task.fields[part]}"), BarColumn(), MofNCompleteColumn())
    shown = cfg.trainer.enable_progress_bar and console.is_interactive
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown)
