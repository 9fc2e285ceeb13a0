"""From a checked config to objects, a Trainer, checkpoints and a report."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from filelock import FileLock
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.syntax import Syntax
from torch import nn

import redlab
from redlab import victims as victim_files
from redlab.attacks.mix import AttackMix, Component
from redlab.config import ConfigError, compose, conf_dir, finalise, leaves, override_stored
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.report import console as table_for_console
from redlab.report import save_figure
from redlab.report.run_report import run_report
from redlab.studies.study import Card, Study, card_figure, card_markdown, card_tables
from redlab.victims import Victim, state_hash
from redlab.victims.classifier import Classifier

console = Console(width=None if sys.stdout.isatty() else 120)


class Stopped(Exception):
    """The run was asked to stop and has written ``last.ckpt``."""


# ---------------------------------------------------------------------------------------------------------------------
# objects


def build_victims(cfg: DictConfig, embedded: Mapping[str, Any] | None = None) -> dict[str, Victim]:
    """The victims of a config: out of a checkpoint, from a file, or trained here if they are small and missing."""
    return {name: _victim(cfg, str(name), (embedded or {}).get(str(name))) for name in cfg.victims}


def _victim(cfg: DictConfig, name: str, embedded: Mapping[str, Any] | None) -> Victim:
    spec, settings = cfg.victims[name], _settings(cfg, name)
    state = (embedded or {}).get("state_dict")
    if spec.weights == "builtin" or state is not None:
        accuracy = (embedded or {}).get("clean_accuracy")
        victim = Victim(instantiate(spec.backbone), clean_accuracy=accuracy, **settings)
        if state is not None:
            victim.load_state_dict(state)
        return victim
    if spec.weights is not None:
        return victim_files.load(spec.weights, instantiate(spec.backbone), **settings)
    return victim_files.load(_trained_victim(cfg, name), num_classes=cfg.data.num_classes)


def _settings(cfg: DictConfig, name: str) -> dict[str, Any]:
    """What stands around the backbone of a victim."""
    spec = _plain(cfg.victims[name])
    around = {k: v for k, v in spec.items() if k not in ("backbone", "weights", "training")}
    return {"name": name, "num_classes": cfg.data.num_classes, **around}


def _trained_victim(cfg: DictConfig, name: str) -> Path:
    """The file of a small victim; trains it under a lock if it is not there yet."""
    elsewhere = ("root", "download", "source", "num_workers", "eval_batch_size", "limit_test")  # change no victim
    data = {k: v for k, v in _plain(cfg.data).items() if k not in elsewhere}
    recipe = DictConfig(OmegaConf.merge(cfg.victim_training, cfg.victims[name].training))
    identity = json.dumps([_plain(cfg.victims[name]), data, _plain(recipe)], sort_keys=True)
    folder = Path(cfg.victim_root) / str(cfg.data.name)
    path = folder / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:10]}.ckpt"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            console.print(f"Training victim [bold]{name}[/] on {cfg.data.name} (kept in {path})")
            _train_victim(cfg, name, recipe, path)
    return path


def _train_victim(cfg: DictConfig, name: str, recipe: DictConfig, path: Path) -> None:
    L.seed_everything(recipe.seed, verbose=False)
    classifier = _classifier(cfg, name, recipe.classifier)
    clean = AttackMix({"clean": Component(attack=None)})
    data = instantiate(cfg.data, _partial_=True)(mix=clean, victims={name: classifier}, seed=recipe.seed)
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        plugins=[LightningEnvironment()],  # a single process, also inside a torchrun or SLURM job
        max_epochs=recipe.max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=cfg.trainer.enable_progress_bar,
        callbacks=[StopOnSignal(), *_progress(cfg)],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, datamodule=data)
    part = path.with_suffix(".part")
    trainer.save_checkpoint(part, weights_only=True)
    os.replace(part, path)
    if classifier.clean_accuracy is not None:  # None without validation images
        console.print(f"  accuracy on clean validation images: {classifier.clean_accuracy:.1%}")


def _classifier(cfg: DictConfig, name: str, node: DictConfig) -> Classifier:
    backbone = instantiate(cfg.victims[name].backbone)
    classifier: Classifier = instantiate(node, _partial_=True, _convert_="all")(backbone, **_settings(cfg, name))
    return classifier


def build(
    cfg: DictConfig, embedded: Mapping[str, Any] | None = None, guides: Mapping[str, nn.Module] | None = None
) -> tuple[Method | Classifier, AttackDataModule]:
    """The method and the data module of a config.

    Args:
        cfg: a finalised config.
        embedded: victims stored in a checkpoint, by name.
        guides: victims that the method was trained with, where they are not those to be attacked.
    """
    mix: AttackMix = instantiate(cfg.mix, seed=cfg.seed)
    if _is_classifier(cfg):
        name = next(iter(cfg.victims))
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        method: Method | Classifier = _classifier(cfg, str(name), cfg.method)
        victims: Mapping[str, nn.Module] = {str(name): method}
    else:
        victims = build_victims(cfg, embedded)
        # after the victims, so that the method starts the same whether they were trained or found
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        method = instantiate(cfg.method, _partial_=True, _convert_="all")(victims=guides or victims)
    # as a partial, since Hydra would copy modules that are handed to it
    data: AttackDataModule = instantiate(cfg.data, _partial_=True)(mix=mix, victims=victims, seed=cfg.seed)
    return method, data


def _is_classifier(cfg: DictConfig) -> bool:
    return str(cfg.method._target_).endswith(".Classifier")


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


# ---------------------------------------------------------------------------------------------------------------------
# checkpoints


class RunRecord(Callback):
    """Puts into every checkpoint what is needed to evaluate it anywhere: config, names of the attacks, victims."""

    def __init__(self, cfg: DictConfig) -> None:
        self.config = _plain(cfg)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the record."""
        data: AttackDataModule = trainer.datamodule  # type: ignore[attr-defined]
        record: dict[str, Any] = {
            "config": self.config,
            "version": redlab.__version__,
            "attacks": list(data.mix.names),
            "victims": {},
        }
        for name, victim in data.victims.items():
            if isinstance(victim, Victim):
                record["victims"][name] = {"sha256": state_hash(victim), "clean_accuracy": victim.clean_accuracy}
                if self.config["save_victims"] and self.config["victims"][name]["weights"] != "builtin":
                    record["victims"][name]["state_dict"] = victim.state_dict()
        checkpoint["redlab"] = record

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Corrects paths: in a folder that has moved, ModelCheckpoint would forget which checkpoint is the best."""
        for state in checkpoint["callbacks"].values():
            if "best_model_path" in state:
                folder = os.path.realpath(Path(trainer.default_root_dir) / "checkpoints")
                here = {path: os.path.join(folder, os.path.basename(path)) for path in state["best_k_models"]}
                state["best_k_models"] = {here[path]: score for path, score in state["best_k_models"].items()}
                for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[key] = here.get(state[key], state[key])
                state["dirpath"] = folder

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes away the numbers of a shorter training, since a folder with numbers is a finished run."""
        if trainer.is_global_zero:
            out = Path(trainer.default_root_dir)
            (out / "metrics.json").unlink(missing_ok=True)
            # not earlier: a mistake in a resumed run must leave the folder as it was
            (out / "config.yaml").write_text(OmegaConf.to_yaml(self.config))


class StopOnSignal(Callback):
    """SIGTERM: all ranks finish the batch, agree, write ``last.ckpt`` and stop; a resume goes on with the next batch.

    Lightning's own handler broadcasts from inside the handler, hangs when only one rank is signalled, and ends with
    exit code 0. Lightning puts back the handler from before when a fit or test is over.

    Args:
        last: where to save; None where there is nothing to resume.
    """

    def __init__(self, last: Path | None = None) -> None:
        self.last, self.asked = last, False

    def _listen(self, trainer: L.Trainer) -> None:
        def ask(signum: int, frame: FrameType | None) -> None:
            self.asked = True
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.Signals(signum))

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ask)

    def _stop_if_asked(self, trainer: L.Trainer, *, save: bool = False) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            return
        if self.last is None:
            raise Stopped("Stopped before there was anything to keep.")
        if save:
            trainer.save_checkpoint(self.last)
        raise Stopped(f"Stopped at step {trainer.global_step}. To go on: python train.py resume={self.last.parents[1]}")

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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint without executing anything in it.

    Raises:
        ConfigError: the file is missing, empty, truncated, or was not written by redlab.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint.")
    if path.stat().st_size == 0:
        raise ConfigError(f"{path} is empty: not a checkpoint.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, ...
        raise ConfigError(
            f"{path} cannot be read as a checkpoint; it may be truncated or of another program."
        ) from error
    if not isinstance(checkpoint, dict) or "redlab" not in checkpoint:
        raise ConfigError(f"{path} was not written by a redlab run.")
    return checkpoint


def _same_method(path: Path, checkpoint: Mapping[str, Any], cfg: DictConfig) -> None:
    """All that stands under ``method``: an optimiser goes on with its numbers out of the checkpoint, too."""
    method = checkpoint["redlab"]["config"]["method"]
    if method["_target_"] != cfg.method._target_:
        theirs, ours = (target.rsplit(".", 1)[1] for target in (method["_target_"], cfg.method._target_))
        raise ConfigError(f"{path} holds a {theirs}, not a {ours}.")
    before, now = (dict(leaves(node, "method")) for node in (method, _plain(cfg.method)))
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{path} was trained with {key}={before.get(key)}, not {now.get(key)}; train that in another folder."
            )


def _resume_from(out: Path, cfg: DictConfig) -> Path | None:
    """The newest readable checkpoint of a folder: ``last``, or ``best`` where ``last`` is damaged."""
    damaged = None
    for path in (out / "checkpoints" / "last.ckpt", out / "checkpoints" / "best.ckpt"):
        if not path.exists():
            continue
        try:
            checkpoint = read_checkpoint(path)
        except ConfigError as error:
            damaged = error
            console.print(f"[yellow]{error}[/]")
            continue
        _same_method(path, checkpoint, cfg)
        return path
    if damaged is not None:
        raise ConfigError(f"{damaged} Nothing in {out}/checkpoints can be resumed; remove it or use another folder.")
    return None


def _own_victims(cfg: DictConfig, resume: Path | None) -> Mapping[str, Any] | None:
    """The victims that a run to be resumed has in its checkpoint, if the config still asks for the same."""
    if resume is None:
        return None
    record = read_checkpoint(resume)["redlab"]
    before: dict[str, Any] = record["config"]
    same = before["victims"] == _plain(cfg.victims) and before["victim_training"] == _plain(cfg.victim_training)
    victims: Mapping[str, Any] = record["victims"]
    return victims if same else None


def _finished(cfg: DictConfig, out: Path, resume: Path) -> dict[str, float] | None:
    """The numbers of a run that has nothing left to do."""
    done: int = read_checkpoint(resume)["epoch"] + 1
    if cfg.trainer.max_epochs is None or done < cfg.trainer.max_epochs or not (out / "metrics.json").is_file():
        return None
    numbers: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return numbers


def find_checkpoint(run: Path) -> Path:
    """The checkpoint that a run folder or a path stands for: ``best``, or ``last`` if there is no best."""
    if run.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            if (run / "checkpoints" / name).is_file():
                return run / "checkpoints" / name
        raise ConfigError(f"{run} has no checkpoints/best.ckpt or last.ckpt.")
    return run


def load(run: str | Path) -> Method | Classifier:
    """A trained method, in eval mode, from a run folder or a checkpoint; for notebooks.

    Example: ``x_hat = redlab.load("outputs/...").restore(x_adv)``.
    """
    path = find_checkpoint(Path(run))
    checkpoint = read_checkpoint(path)
    method, _ = build(finalise(OmegaConf.create(checkpoint["redlab"]["config"])), checkpoint["redlab"]["victims"])
    _load_weights(method, path, checkpoint)
    return method.eval()


def _load_weights(method: Method | Classifier, path: Path, checkpoint: dict[str, Any]) -> None:
    method.on_load_checkpoint(checkpoint)
    try:
        method.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit the method in its own config: {str(error).splitlines()[0]}") from error


# ---------------------------------------------------------------------------------------------------------------------
# train and evaluate


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
    _filter_known_warnings()
    started = time.time()
    resume = _resume_from(out, cfg)  # before config.yaml is written: a refused resume changes nothing
    if resume is not None and (numbers := _finished(cfg, out, resume)):
        console.print(f"{out} is finished already, after {cfg.trainer.max_epochs} epochs; see its metrics.json.")
        return numbers
    _prepare_folder(cfg, out)
    if resume is not None:
        console.print(f"Resuming from {resume}")
    method, data = build(cfg, _own_victims(cfg, resume))
    checkpoints = out / "checkpoints"
    best = ModelCheckpoint(
        checkpoints, "best", monitor=method.monitor, mode=method.monitor_mode, enable_version_counter=False
    )
    last = ModelCheckpoint(checkpoints, "last", enable_version_counter=False)
    validated = cfg.data.val_size > 0 and cfg.trainer.limit_val_batches != 0  # else no checkpoint is known to be best
    stop = StopOnSignal(checkpoints / "last.ckpt")
    loggers = _loggers(cfg, out)
    trainer = instantiate(
        cfg.trainer,
        callbacks=[*([best] if validated else []), last, RunRecord(cfg), stop, *_progress(cfg)],
        logger=loggers or False,
        default_root_dir=str(out),
    )
    try:
        trainer.fit(method, datamodule=data, ckpt_path=resume)
        chosen = checkpoints / ("best.ckpt" if (checkpoints / "best.ckpt").exists() else "last.ckpt")
        chosen = trainer.strategy.broadcast(chosen)  # under torchrun, only the first rank's folder has them
        trainer.test(method, datamodule=data, ckpt_path=chosen, verbose=False)
        metrics = _finish(cfg, out, trainer, method, data, started, loggers)
        _close(trainer, loggers, failed=False)
    except BaseException as error:
        _close(trainer, loggers, failed=True)
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(error, Stopped) and trainer.global_rank > 0 and isinstance(environment, LightningEnvironment):
            sys.exit(0)  # for any other code, Lightning in the first process would kill that one before it is done
        raise
    return metrics


def evaluate(run: Path, overrides: Sequence[str], out: Path) -> dict[str, float]:
    """Tests a run folder or a checkpoint, with overrides such as another mix, data set or victim.

    Raises:
        ConfigError: the checkpoint cannot be read, an override does not fit, or ``out`` holds a trained run.
    """
    if (out / "checkpoints").exists():
        raise ConfigError(f"out={out} holds a trained run, whose numbers would be lost; give another folder.")
    _filter_known_warnings()
    started = time.time()
    path = find_checkpoint(run)
    checkpoint = read_checkpoint(path)
    record = checkpoint["redlab"]
    cfg = override_stored(record["config"], overrides)
    _same_method(path, checkpoint, cfg)
    trained = finalise(OmegaConf.create(record["config"]))
    own = cfg.victims == trained.victims and cfg.data.name == trained.data.name
    _prepare_folder(cfg, out)
    guides = None if own or _is_classifier(cfg) else build_victims(trained, record["victims"])
    method, data = build(cfg, record["victims"] if own else None, guides)
    _check_hashes(record["victims"], guides or data.victims)
    _load_weights(method, path, checkpoint)
    loggers = _loggers(cfg, out)
    trainer = instantiate(
        cfg.trainer,
        callbacks=[StopOnSignal(), *_progress(cfg)],
        logger=loggers or False,
        default_root_dir=str(out),
        enable_checkpointing=False,
    )
    try:
        trainer.test(method, datamodule=data, verbose=False)
        metrics = _finish(cfg, out, trainer, method, data, started, loggers)
        _close(trainer, loggers, failed=False)
    except BaseException:
        _close(trainer, loggers, failed=True)
        raise
    return metrics


def study(name: str, scale: str, seeds: Sequence[int], overrides: Sequence[str], out: Path) -> Card:
    """Makes a table or figure of a paper: trains or finds its runs, prints ours beside the paper's, writes the card.

    Args:
        name: ``<paper>/<table>``, a file under ``conf/study``.
        scale: a scale of the study.
        seeds: each run is made once per seed.
        overrides: for every run.
        out: the card goes to ``<out>/<paper>/<table>_<data>_<scale>.json``, markdown and figure beside it.

    Raises:
        ConfigError: there is no such study.
    """
    file = conf_dir() / "study" / f"{name}.yaml"
    if not file.is_file():
        known = sorted(
            str(p.relative_to(conf_dir() / "study").with_suffix("")) for p in file.parents[1].rglob("*.yaml")
        )
        raise ConfigError(f"study={name}: there is no such study. Studies: {', '.join(known)}.")
    paper_study: Study = instantiate(OmegaConf.load(file))
    # composed once before anything is trained, so that a mistake in the overrides costs nothing
    first = next(iter(paper_study.runs))
    cfg = finalise(compose(paper_study.overrides(first, scale, overrides)))
    card = paper_study.run(
        train_or_find,
        overrides,
        scale,
        seeds,
        data=cfg.data.name,
        device=_device_name(),
        values_per_image=cfg.data.channels * cfg.data.image_size**2,
    )
    path = card.save(out / f"{name}_{card.data}_{scale}.json")
    for table in card_tables(card):
        console.print(table_for_console(table))
    path.with_suffix(".md").write_text(card_markdown(card), encoding="utf-8")
    save_figure(card_figure(card), path.with_suffix(".png"))
    console.print(f"Card: [bold]{path}[/] (.md and .png beside it)")
    return card


def train_or_find(overrides: Sequence[str]) -> dict[str, float]:
    """The numbers of a run: read where it is finished under ``outputs/runs``, else trained (or resumed) there."""
    cfg = finalise(compose(overrides))
    relevant = {k: v for k, v in _plain(cfg).items() if k not in ("name", "logger", "debug", "choices")}
    key = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:10]
    out = Path("outputs/runs") / f"{cfg.choices.method}_{cfg.data.name}_seed{cfg.seed}_{key}"
    if (out / "metrics.json").is_file():
        console.print(f"Found {out}")
        numbers: dict[str, float] = json.loads((out / "metrics.json").read_text())
        return numbers
    return train(cfg, out)


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def _prepare_folder(cfg: DictConfig, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _show_config(cfg, out)


@rank_zero_only
def _show_config(cfg: DictConfig, out: Path) -> None:
    console.print(Syntax(OmegaConf.to_yaml(cfg), "yaml", background_color="default", word_wrap=True))
    console.print(f"Writing to [bold]{out}[/]")


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
        shown = [cell.attack > 0 and not cell.adaptive for cell in data.test_cells]
        examples = getattr(method, "examples", [])
        report = run_report(
            out,
            title=f"{cfg.choices.method} on {cfg.data.name}",
            summary=f"Victims: {', '.join(data.victims)}. Attacks: {', '.join(data.mix.names[1:]) or 'none'}. "
            f"Seed {cfg.seed}, {trainer.strategy.root_device}, {minutes:.1f} minutes.",
            config=OmegaConf.to_yaml(cfg),
            metrics=metrics,
            examples=[e for e, show in zip(examples, shown, strict=False) if show],
            attack_names=data.mix.names,
            victims=data.victims,
            class_names=data.classes,
            loggers=loggers,
            terminal=console,
        )
        console.print(f"Report: [bold]{report}[/]")
    return metrics


def _check_hashes(record: Mapping[str, Any], victims: Mapping[str, nn.Module]) -> None:
    for name, victim in victims.items():
        if name in record and isinstance(victim, Victim) and state_hash(victim) != record[name]["sha256"]:
            warnings.warn(f"victim {name} is not the one that the checkpoint was trained with", stacklevel=2)


def _progress(cfg: DictConfig) -> list[Callback]:
    return [RichProgressBar(leave=False)] if cfg.trainer.enable_progress_bar else []


def _loggers(cfg: DictConfig, out: Path) -> list[Logger]:
    if not cfg.logger or not cfg.logger.get("_target_"):
        return []
    extra: dict[str, Any] = {"save_dir": str(out)}
    if str(cfg.logger._target_).endswith("WandbLogger"):
        # one id per folder, so that a resumed run goes on in the same dashboard
        file = out / "wandb_id.txt"
        run_id = file.read_text().strip() if file.exists() else hashlib.sha256(os.urandom(16)).hexdigest()[:8]
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            file.write_text(run_id)
        extra |= {"id": run_id, "resume": "allow", "name": cfg.name or out.name, "config": _plain(cfg)}
    # as a partial, since `config` is also the name of an argument of instantiate
    logger: Logger = instantiate(cfg.logger, _partial_=True, _convert_="all")(**extra)
    return [logger]


def _close(trainer: L.Trainer, loggers: list[Logger], *, failed: bool) -> None:
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


def _filter_known_warnings() -> None:
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
