"""Training a method, and testing a trained one again."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.report.run_report import run_report
from redlab.runs.build import build, build_victims, is_classifier
from redlab.runs.check import ConfigError
from redlab.runs.checkpoints import (
    RunRecord,
    check_hashes,
    find_checkpoint,
    finished,
    load_weights,
    own_victims,
    read_checkpoint,
    resume_from,
    same_method,
)
from redlab.runs.config import finalise, override_stored
from redlab.runs.console import console, filter_known_warnings, progress
from redlab.runs.loggers import close, make_loggers
from redlab.runs.stopping import StopOnSignal, Stopped
from redlab.runs.trust import stored_config
from redlab.victims.classifier import Classifier


def train(cfg: DictConfig, out: Path) -> dict[str, float]:
    """Trains, tests the best checkpoint and reports; resumes if ``out`` holds a checkpoint already.

    Args:
        cfg: a finalised config.
        out: folder of the run.

    Returns:
        The final numbers, as written to ``metrics.json``.

    Raises:
        Stopped: SIGTERM came; ``last.ckpt`` is written.
        ConfigError: the config, the data or a file it names is wrong.
    """
    filter_known_warnings()
    started = time.time()
    resume = resume_from(out, cfg)  # before config.yaml is written: a refused resume changes nothing
    if resume is not None and (numbers := finished(cfg, out, resume)):
        console.print(f"{out} is finished already, after {cfg.trainer.max_epochs} epochs; see its metrics.json.")
        return numbers
    _prepare_folder(cfg, out)
    if resume is not None:
        console.print(f"Resuming from {resume}")
    method, data = build(cfg, own_victims(cfg, resume))
    checkpoints = out / "checkpoints"
    best = ModelCheckpoint(
        checkpoints, "best", monitor=method.monitor, mode=method.monitor_mode, enable_version_counter=False
    )
    last = ModelCheckpoint(checkpoints, "last", enable_version_counter=False)
    validated = cfg.data.val_size > 0 and cfg.trainer.limit_val_batches != 0  # else no checkpoint is known to be best
    stop = StopOnSignal(checkpoints / "last.ckpt")
    loggers = make_loggers(cfg, out)
    trainer = instantiate(
        cfg.trainer,
        callbacks=[*([best] if validated else []), last, RunRecord(cfg), stop, *progress(cfg)],
        logger=loggers or False,
        default_root_dir=str(out),
    )
    try:
        trainer.fit(method, datamodule=data, ckpt_path=resume)
        chosen = checkpoints / ("best.ckpt" if (checkpoints / "best.ckpt").exists() else "last.ckpt")
        chosen = trainer.strategy.broadcast(chosen)  # under torchrun, only the first rank's folder has them
        read_checkpoint(chosen)  # a folder that is resumed came with it, and older Lightning would execute it
        trainer.test(method, datamodule=data, ckpt_path=chosen, verbose=False)
        metrics = _finish(cfg, out, trainer, method, data, started, loggers)
        close(trainer, loggers, failed=False)
    except BaseException as error:
        close(trainer, loggers, failed=True)
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(error, Stopped) and trainer.global_rank > 0 and isinstance(environment, LightningEnvironment):
            sys.exit(0)  # for any other code, Lightning in the first process would kill that one before it is done
        raise
    return metrics


def evaluate(run: Path, overrides: Sequence[str], out: Path, allow: Sequence[str] = ()) -> dict[str, float]:
    """Tests a run folder or a checkpoint, with overrides such as another mix, data set or victim.

    Args:
        run: the folder or the checkpoint.
        overrides: the user's.
        out: folder of the evaluation.
        allow: names that the checkpoint may use besides those of redlab, see ``redlab.load``.

    Raises:
        ConfigError: the checkpoint cannot be read, or names something that is not allowed, an override does not fit,
            or ``out`` holds a trained run.
    """
    if (out / "checkpoints").exists():
        raise ConfigError(f"out={out} holds a trained run, whose numbers would be lost; give another folder.")
    filter_known_warnings()
    started = time.time()
    path = find_checkpoint(run)
    checkpoint = read_checkpoint(path)
    record = checkpoint["redlab"]
    stored = stored_config(path, record["config"], allow)
    cfg = override_stored(stored, overrides)
    same_method(path, checkpoint, cfg)
    trained = finalise(OmegaConf.create(stored))
    own = cfg.victims == trained.victims and cfg.data.name == trained.data.name
    _prepare_folder(cfg, out)
    guides = None if own or is_classifier(cfg) else build_victims(trained, record["victims"])
    method, data = build(cfg, record["victims"] if own else None, guides)
    check_hashes(record["victims"], guides or data.victims)
    load_weights(method, path, checkpoint)
    loggers = make_loggers(cfg, out)
    trainer = instantiate(
        cfg.trainer,
        callbacks=[StopOnSignal(), *progress(cfg)],
        logger=loggers or False,
        default_root_dir=str(out),
        enable_checkpointing=False,
    )
    try:
        trainer.test(method, datamodule=data, verbose=False)
        metrics = _finish(cfg, out, trainer, method, data, started, loggers)
        close(trainer, loggers, failed=False)
    except BaseException:
        close(trainer, loggers, failed=True)
        raise
    return metrics


def _prepare_folder(cfg: DictConfig, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _show_config(cfg, out)


@rank_zero_only
def _show_config(cfg: DictConfig, out: Path) -> None:
    """What one looks for first; all of it is in config.yaml, and ``--cfg job`` prints it."""
    device = cfg.trainer.accelerator
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    lines = {
        "method": f"{cfg.choices.method}, seed {cfg.seed}",
        "data": cfg.data.name,
        "victims": ", ".join(cfg.victims),
        "attacks": f"{', '.join(cfg.mix.components)} (mix={cfg.choices.get('mix')})",
        "device": f"{cfg.trainer.devices} x {device}",
        "folder": str(out),
    }
    for name, value in lines.items():
        console.print(Text(f"{name:8}{value}"), soft_wrap=True)


def _finish(
    cfg: DictConfig,
    out: Path,
    trainer: L.Trainer,
    method: Method | Classifier,
    data: AttackDataModule,
    started: float,
    loggers: list[Logger],
) -> dict[str, float]:
    metrics = dict(method.results)
    if trainer.is_global_zero:
        (out / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        part = out / "metrics.json.part"
        part.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
        os.replace(part, out / "metrics.json")
        minutes = (time.time() - started) / 60
        report = run_report(
            out,
            title=f"{cfg.choices.method} on {cfg.data.name}",
            summary=f"Victims: {', '.join(data.victims)}. Attacks: {', '.join(data.mix.names[1:]) or 'none'}. "
            f"Seed {cfg.seed}, {trainer.strategy.root_device}, {minutes:.1f} minutes.",
            config=OmegaConf.to_yaml(cfg),
            metrics=metrics,
            examples=getattr(method, "examples", []),
            attack_names=data.mix.names,
            victims=data.victims,
            class_names=data.classes,
            loggers=loggers,
            terminal=console,
        )
        console.print(f"Report: [bold]{report}[/]")
    return metrics
