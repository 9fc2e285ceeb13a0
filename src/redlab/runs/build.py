"""From a checked config to objects: victims, method, data module."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from torch import nn

from redlab import victims as victim_files
from redlab.attacks.mix import AttackMix, Component
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.runs.config import as_plain
from redlab.runs.console import console, progress
from redlab.runs.stopping import StopOnSignal
from redlab.victims import Victim
from redlab.victims.classifier import Classifier


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
    spec = as_plain(cfg.victims[name])
    around = {k: v for k, v in spec.items() if k not in ("backbone", "weights", "training")}
    return {"name": name, "num_classes": cfg.data.num_classes, **around}


def _trained_victim(cfg: DictConfig, name: str) -> Path:
    """The file of a small victim; trains it under a lock if it is not there yet."""
    elsewhere = ("root", "download", "source", "num_workers", "eval_batch_size", "limit_test")  # change no victim
    data = {k: v for k, v in as_plain(cfg.data).items() if k not in elsewhere}
    recipe = DictConfig(OmegaConf.merge(cfg.victim_training, cfg.victims[name].training))
    identity = json.dumps([as_plain(cfg.victims[name]), data, as_plain(recipe)], sort_keys=True)
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
        callbacks=[StopOnSignal(), *progress(cfg)],
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
    mix.check(map(str, cfg.victims), **{key: cfg.data.get(key) for key in ("channels", "image_size", "num_classes")})
    if is_classifier(cfg):
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


def is_classifier(cfg: DictConfig) -> bool:
    """Whether the config trains a victim, not a method that repairs or reads attacked images."""
    return str(cfg.method._target_).endswith(".Classifier")
