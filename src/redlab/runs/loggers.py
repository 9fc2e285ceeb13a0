"""Loggers of a run, and what is left behind when it ends."""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from hydra.utils import instantiate
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from redlab.extras import require
from redlab.runs.config import as_plain


def check_packages(cfg: DictConfig) -> None:
    """Looks for what the loggers need before anything is trained.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    if "tensorboard" in (cfg.get("logger") or {}):
        require("tensorboard", "tensorboard")


def make_loggers(cfg: DictConfig, out: Path) -> list[Logger]:
    """The loggers of a run, all writing into its folder."""
    nodes = (cfg.get("logger") or {}).values()
    return [_make(node, cfg, out) for node in nodes if node.get("_target_")]


def _make(node: DictConfig, cfg: DictConfig, out: Path) -> Logger:
    # as a partial, since `config` is also the name of an argument of instantiate
    partial = instantiate(node, _partial_=True, _convert_="all")
    extra: dict[str, Any] = {"save_dir": str(out)} if "save_dir" in inspect.signature(partial).parameters else {}
    if str(node._target_).endswith("CSVLogger"):
        extra["name"] = "csv"  # where the report looks for its curves
    if str(node._target_).endswith("WandbLogger"):
        # one id per folder, so that a resumed run goes on in the same dashboard
        file = out / "wandb_id.txt"
        run_id = file.read_text().strip() if file.exists() else hashlib.sha256(os.urandom(16)).hexdigest()[:8]
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            file.write_text(run_id)
        extra |= {"id": run_id, "resume": "allow", "name": cfg.name or out.name, "config": as_plain(cfg)}
    logger: Logger = partial(**extra)
    return logger


def close(trainer: L.Trainer, loggers: list[Logger], *, failed: bool) -> None:
    """Leaves nothing behind for the next job of a sweep: no wandb run, no process group, no rank variables."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish(exit_code=int(failed))
    launcher = trainer.strategy.launcher
    children = getattr(launcher, "procs", [])
    if children:  # we started the other ranks, so we clean up after them
        if dist.is_initialized():
            dist.destroy_process_group()
        for child in children:
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:  # it hangs in a collective whose other end is gone
                child.kill()
        for key in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(key, None)
