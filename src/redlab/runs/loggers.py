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
from redlab.provenance import commit
from redlab.runs.config import as_plain


def check_packages(cfg: DictConfig) -> None:
    """Looks for what the loggers need before anything is trained.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    if "tensorboard" in (cfg.get("logger") or {}):
        require("tensorboard", "tensorboard")


def make_loggers(cfg: DictConfig, out: Path, *, monitor: str = "", judged: Path | None = None) -> list[Logger]:
    """The loggers of a run, all writing into its folder.

    Args:
        cfg: a finalised config.
        out: folder of the run, or of the evaluation.
        monitor: what picks the best checkpoint.
        judged: of an evaluation, the checkpoint.
    """
    nodes = (cfg.get("logger") or {}).values()
    return [_make(node, cfg, out, monitor, judged) for node in nodes if node.get("_target_")]


def _make(node: DictConfig, cfg: DictConfig, out: Path, monitor: str, judged: Path | None) -> Logger:
    # as a partial, since `config` is also the name of an argument of instantiate
    partial = instantiate(node, _partial_=True, _convert_="all")
    extra: dict[str, Any] = {"save_dir": str(out)} if "save_dir" in inspect.signature(partial).parameters else {}
    if str(node._target_).endswith("CSVLogger"):
        extra["name"] = "csv"  # where the report looks for its curves
    if str(node._target_).endswith(("WandbLogger", "Dashboard")):
        # one id per folder, so that a resumed run goes on in the same dashboard
        file = out / "wandb_id.txt"
        run_id = file.read_text().strip() if file.exists() else hashlib.sha256(os.urandom(16)).hexdigest()[:8]
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            file.write_text(run_id)
        extra |= {"save_dir": str(out), "id": run_id, "resume": "allow", "name": cfg.name or out.name}
        extra |= _place(node, cfg, out, judged)
        if str(node._target_).endswith("Dashboard"):
            extra["monitor"] = monitor
    logger: Logger = partial(**extra)
    return logger


def _place(node: DictConfig, cfg: DictConfig, out: Path, judged: Path | None) -> dict[str, Any]:
    """Where a run stands in wandb: the jobs of a sweep together, an evaluation beside what it judges."""
    config = as_plain(cfg) | {"commit": commit()}
    group = out.parent.name if (out.parent / "sweep.yaml").is_file() else None
    if judged is not None:
        file = judged.parents[1] / "wandb_id.txt"
        of = file.read_text().strip() if judged.parent.name == "checkpoints" and file.is_file() else None
        config |= {"judges_checkpoint": judged.name, "judges_run": of}
        group = group or of
    tags = [*(node.get("tags") or ()), *dict.fromkeys(str(cfg.choices.get(key)) for key in ("method", "data", "mix"))]
    kind = "train" if judged is None else "evaluate"
    return {"config": config, "group": node.get("group") or group, "tags": tags, "job_type": kind}


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
