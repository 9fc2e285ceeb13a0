"""Training a method, and testing a trained one again."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from redlab.batch import attackable
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.metrics import Samples
from redlab.report.checks import Check, by_chance, of_rows, table_of
from redlab.report.measures import tables
from redlab.report.run_report import run_report
from redlab.report.tables import console as table_for_console
from redlab.runs.banks import open_bank
from redlab.runs.build import (
    Trained,
    build,
    build_helpers,
    build_victims,
    content,
    needs_victims,
    shared_data,
    victim_identities,
)
from redlab.runs.check import ConfigError
from redlab.runs.checkpoints import (
    RunCheckpoint,
    RunRecord,
    best_score,
    find_checkpoint,
    finished,
    own_victims,
    read_checkpoint,
    resume_from,
    same_method,
    same_run,
)
from redlab.runs.config import finalise, override_stored
from redlab.runs.console import console, filter_known_warnings, saying_where
from redlab.runs.dashboard import Dashboard
from redlab.runs.dry import rehearse
from redlab.runs.evaluations import run_test
from redlab.runs.folders import take_away, taken
from redlab.runs.identity import run_facts
from redlab.runs.loading import check_hashes, load_weights, start_from, trained_with
from redlab.runs.loggers import close, make_loggers
from redlab.runs.monitors import monitors
from redlab.runs.soundness import examined
from redlab.runs.stopping import StopOnSignal, Stopped, handing_over
from redlab.runs.trainer import compile_networks, make_trainer
from redlab.runs.trust import stored_config


def train(cfg: DictConfig, out: Path) -> dict[str, float]:
    """Trains, tests the best checkpoint and reports; resumes if ``out`` holds a checkpoint already.

    Args:
        cfg: a finalised config.
        out: folder of the run.

    Returns:
        The final numbers, as written to ``metrics.json``.

    Raises:
        Stopped: SIGTERM or Ctrl-C came; ``last.ckpt`` is written.
        ConfigError: the config, the data or a file it names is wrong.
    """
    with taken(out), handing_over(StopOnSignal(out / "checkpoints" / "last.ckpt")) as stop:
        numbers = _train(cfg, out, stop)
    if cfg.bank == "build":
        take_away(out)  # nothing was trained
    return numbers


def _train(cfg: DictConfig, out: Path, stop: StopOnSignal) -> dict[str, float]:
    filter_known_warnings()
    started = time.time()
    resume = resume_from(out, cfg)  # before config.yaml is written: a refused resume changes nothing
    checkpoint = read_checkpoint(resume) if resume is not None else {"redlab": {}}
    record = checkpoint["redlab"]
    _, images = rehearse(cfg, record=record)
    images = shared_data(cfg) if images is None else images
    own = own_victims(cfg, record, images)
    counted = _counted(cfg, images, own)
    if resume is not None:
        same_run(resume, checkpoint, cfg, counted)
        if numbers := finished(cfg, out, checkpoint):
            console.print(f"{out} is finished already, after {checkpoint['epoch'] + 1} epochs; see its metrics.json.")
            return numbers
    _show_config(cfg, out)
    if resume is not None:
        console.print(f"Resuming from {resume}")
    helpers = build_helpers(cfg, record.get("helpers"), images)
    trained = Trained(cfg=cfg, attack_names=record.get("attacks"), helpers=helpers)
    method, data = build(cfg, own, trained=trained, data=images)
    if cfg.init is not None and resume is None:
        console.print(f"Starting from {start_from(method, Path(cfg.init))}")
    data.bank = open_bank(cfg, data)
    if cfg.bank == "build":
        return {}
    if cfg.compile:
        compile_networks(method)
    checkpoints = out / "checkpoints"
    best = RunCheckpoint(
        checkpoints, "best", monitor=method.monitor, mode=method.monitor_mode, enable_version_counter=False
    )
    # at the end of every epoch, also of one that is not validated
    last = RunCheckpoint(checkpoints, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    validated = cfg.data.val_size > 0 and cfg.trainer.limit_val_batches != 0  # else no checkpoint is known to be best
    loggers = make_loggers(cfg, out, monitor=method.monitor)
    kept = [*([best] if validated else []), last]
    written = RunRecord(cfg, helpers, counted, record.get("trained_with", ()))
    trainer = make_trainer(cfg, out, [*kept, written, stop, *monitors(loggers)], loggers, method=method)
    try:
        with saying_where(trainer):
            trainer.fit(method, datamodule=data, ckpt_path=resume)
        chosen = checkpoints / ("best.ckpt" if (checkpoints / "best.ckpt").exists() else "last.ckpt")
        if trainer.is_global_zero and not chosen.exists():
            raise ConfigError("trainer.max_time, or another limit, ended the run before an epoch; set a larger one.")
        chosen = trainer.strategy.broadcast(chosen)  # under torchrun, only the first rank's folder has them
        load_weights(method, chosen, read_checkpoint(chosen))
        run_test(cfg, trainer, method, data, chosen)
        with _path_in_errors(out):
            metrics = _finish(cfg, out, trainer, method, data, started, loggers)
        close(trainer, loggers, failed=False)
    except BaseException as error:
        close(trainer, loggers, failed=True)
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(error, Stopped) and trainer.global_rank > 0 and isinstance(environment, LightningEnvironment):
            sys.exit(0)  # for any other code, Lightning in the first process would kill that one before it is done
        raise
    return metrics


def dry_run(cfg: DictConfig, out: Path) -> None:
    """Checks all that `train` would check before it trains, and says what would be run.

    Raises:
        ConfigError: as `train`.
    """
    filter_known_warnings()
    resume = resume_from(out, cfg)
    checkpoint = read_checkpoint(resume) if resume is not None else {"redlab": {}}
    plan, images = rehearse(cfg, record=checkpoint["redlab"])
    if resume is not None and images is not None:
        same_run(resume, checkpoint, cfg, _counted(cfg, images, own_victims(cfg, checkpoint["redlab"], images)))
    show_plan(plan | {"folder": f"{out}"} | ({"resumes": f"{resume}"} if resume else {}))


def _counted(cfg: DictConfig, images: AttackDataModule, own: Mapping[str, Any]) -> dict[str, Any]:
    """What the identity of a run is a hash of; ``own`` are the victims of the checkpoint that it goes on from."""
    found = content(cfg, images)
    return run_facts(cfg, found, victim_identities(cfg, found, own))


def evaluate(
    run: Path,
    overrides: Sequence[str],
    out: Path,
    allow: Sequence[str] = (),
    *,
    dry: bool = False,
    trust: bool = False,
) -> dict[str, float]:
    """Tests a run folder or a checkpoint, with overrides such as another mix, data set or victim.

    Args:
        run: the folder or the checkpoint.
        overrides: the user's.
        out: folder of the evaluation.
        allow: names that the checkpoint may use besides those of redlab, see ``redlab.load``.
        dry: check all that can be checked, say what would be run, and stop.
        trust: also attack the defence anew, to see whether its numbers can be believed.

    Returns:
        The numbers; none of a dry run.

    Raises:
        ConfigError: the checkpoint cannot be read, or names something that is not allowed, an override does not fit,
            or ``out`` holds a trained run.
    """
    if (out / "checkpoints").exists():
        raise ConfigError(f"out={out} holds a trained run, whose numbers would be lost; give another folder.")
    if dry:
        return _dry_evaluation(run, overrides, out, allow)
    with taken(out), handing_over(StopOnSignal()) as stop:
        return _evaluate(run, overrides, out, allow, stop, trust)


class Opened(NamedTuple):
    """A trained method, and what it is to be tested on.

    Attributes:
        cfg: of the evaluation.
        method: with the weights of the checkpoint.
        data: with the victims and attacks of the evaluation.
        checkpoint: its file.
    """

    cfg: DictConfig
    method: Method
    data: AttackDataModule
    checkpoint: Path


def opened(run: Path, overrides: Sequence[str], allow: Sequence[str] = ()) -> Opened:
    """A run folder or checkpoint, ready to be tested; arguments and errors are those of `evaluate`."""
    cfg, trained, path, checkpoint = _stored(run, overrides, allow)
    record = checkpoint["redlab"]
    _, images = rehearse(cfg, record=record, trained=trained)
    images = shared_data(cfg) if images is None else images
    own = own_victims(cfg, record, images)
    others = [str(name) for name in cfg.victims if name not in own]
    console.print(f"Victims of the run itself: {', '.join(own) or 'none'}. Others: {', '.join(others) or 'none'}.")
    all_own = not others and list(cfg.victims) == list(trained.victims)
    frozen = None if all_own or not needs_victims(cfg) else build_victims(trained, record["victims"])
    method, data = build(cfg, own, trained=trained_with(trained, record, frozen), data=images)
    check_hashes(record["victims"], frozen or data.victims)
    load_weights(method, path, checkpoint)
    return Opened(cfg, method, data, path)


def _stored(
    run: Path, overrides: Sequence[str], allow: Sequence[str]
) -> tuple[DictConfig, DictConfig, Path, dict[str, Any]]:
    """The config of the evaluation, that of the training, the file of the checkpoint, and what is in it."""
    if not run.exists():
        raise ConfigError(
            f"run={run}: no such checkpoint or folder of a run; give one, such as run=outputs/<date>/<time>."
        )
    path = find_checkpoint(run)
    checkpoint = read_checkpoint(path)
    stored = stored_config(path, checkpoint["redlab"]["config"], allow)
    if any(word.lstrip("+").startswith("data.shuffle_attacks=") for word in overrides):
        raise ConfigError("data.shuffle_attacks is a matter of the training: train another run with it.")
    cfg = override_stored(stored, overrides)
    if stored["data"].get("shuffle_attacks"):  # also where the data are others now
        OmegaConf.update(cfg, "data.shuffle_attacks", True, force_add=True)
    same_method(path, checkpoint, cfg)
    checkpoint["redlab"] = {**checkpoint["redlab"], "config": stored}
    return cfg, finalise(OmegaConf.create(stored)), path, checkpoint


def _dry_evaluation(run: Path, overrides: Sequence[str], out: Path, allow: Sequence[str]) -> dict[str, float]:
    filter_known_warnings()
    cfg, trained, path, checkpoint = _stored(run, overrides, allow)
    plan, _ = rehearse(cfg, record=checkpoint["redlab"], trained=trained)
    show_plan(plan | {"checkpoint": f"{path}", "folder": f"{out}"})
    return {}


def _evaluate(
    run: Path, overrides: Sequence[str], out: Path, allow: Sequence[str], stop: StopOnSignal, trust: bool
) -> dict[str, float]:
    filter_known_warnings()
    started = time.time()
    opening = opened(run, overrides, allow)
    cfg, method, data, path = opening
    if trust and not attackable(method):
        raise ConfigError("trust=full attacks the defence, and this one sees the clean image: leave it out.")
    _show_config(cfg, out)
    data.bank = open_bank(cfg, data, stages=("test",))
    loggers = make_loggers(cfg, out, monitor=method.monitor, judged=path)
    trainer = make_trainer(cfg, out, [stop], loggers, testing=True)
    try:
        run_test(cfg, trainer, method, data, path)
        checks = examined(cfg, method, data) if trust and trainer.is_global_zero else []
        with _path_in_errors(out):
            metrics = _finish(cfg, out, trainer, method, data, started, loggers, checks)
        close(trainer, loggers, failed=False)
    except BaseException:
        close(trainer, loggers, failed=True)
        raise
    return metrics


def show_plan(plan: Mapping[str, str]) -> None:
    """Prints what a dry run found."""
    console.print("All is well; nothing was trained or written. What would be run:")
    for title, text in plan.items():
        console.print(f"  {title:<18} {text}", markup=False, highlight=False)


@rank_zero_only
def _show_config(cfg: DictConfig, out: Path) -> None:
    """What one looks for first; all of it is in config.yaml, and ``--cfg job`` prints it."""
    device = cfg.trainer.accelerator
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    lines = {
        "method": f"{cfg.choices.method}, seed {cfg.seed}",
        "data": cfg.data.name + (", tested on its validation images" if cfg.data.get("test_on") == "val" else ""),
        "victims": ", ".join(cfg.victims),
        "attacks": f"{', '.join(cfg.mix.components)} (mix={cfg.choices.get('mix')})",
        "device": f"{cfg.trainer.devices} x {device}",
        "folder": str(out),
    }
    for name, value in lines.items():
        console.print(Text(f"{name:8}{value}"), soft_wrap=True)


@contextmanager
def _path_in_errors(out: Path) -> Iterator[None]:
    """A full disk tells of no file: it is said where, and that nothing need be trained again."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        done = "the tables above are complete, and the same words test again without training"
        raise OSError(error.errno, f"{error.strerror or error}: {done}", str(out)) from error


def _finish(
    cfg: DictConfig,
    out: Path,
    trainer: L.Trainer,
    method: Method,
    data: AttackDataModule,
    started: float,
    loggers: list[Logger],
    checks: Sequence[Check] = (),
) -> dict[str, float]:
    metrics = dict(method.numbers)
    if trainer.is_global_zero:
        rows = method.samples or Samples({})
        lot = by_chance(rows) if cfg.data.get("shuffle_attacks") else []
        strip = table_of([*of_rows(rows), *lot, *checks], full=bool(checks))
        for table in [*tables(rows), strip]:  # before anything is written, so that no full disk can lose them
            console.print(table_for_console(table))
        (out / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        if len(rows):
            rows.save(out / "samples.npz")
        part = out / "metrics.json.part"
        part.write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
        os.replace(part, out / "metrics.json")
        for dashboard in (logger for logger in loggers if isinstance(logger, Dashboard)):
            dashboard.finish(rows, metrics, best_score(out))
        minutes = (time.time() - started) / 60
        report = run_report(
            out,
            title=f"{cfg.choices.method} on {cfg.data.name}",
            summary=f"Victims: {', '.join(data.victims)}. Attacks: {', '.join(data.mix.names[1:]) or 'none'}. "
            f"Seed {cfg.seed}, {trainer.strategy.root_device}, {minutes:.1f} minutes."
            + (" Tested on validation images." if cfg.data.get("test_on") == "val" else "")
            + ("" if "csv" in (cfg.get("logger") or {}) else " No curves: they are those of logger=csv."),
            config=OmegaConf.to_yaml(cfg),
            rows=rows,
            examples=method.examples,
            victims=data.victims,
            class_names=data.classes,
            loggers=loggers,
            checks=strip,
        )
        console.print(f"Report: [bold]{report}[/]")
    return metrics
