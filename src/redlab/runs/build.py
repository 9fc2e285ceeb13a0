"""From a checked config to objects: victims, method, data module."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig
from torch import nn

from redlab import victims as victim_files
from redlab.crafting import AttackMix, Component
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.runs.check import ConfigError
from redlab.runs.config import as_plain
from redlab.runs.console import console, progress
from redlab.runs.identity import Content, digest, loader, network, recipe, victim_identity
from redlab.runs.stopping import StopOnSignal
from redlab.victims import Victim
from redlab.victims.classifier import Classifier
from redlab.victims.facts import facts_of


def shared_data(cfg: DictConfig) -> AttackDataModule:
    """The data of a config without attacks and victims, read when first asked for: data modules share its images."""
    data: AttackDataModule = instantiate(cfg.data, _partial_=True)(mix=_clean_mix(), victims={})
    return data


def content(cfg: DictConfig, data: AttackDataModule) -> Content:
    """The fingerprints of the images."""
    if not data.loaded and cfg.data.get("download"):
        root = Path(cfg.victim_root)
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{cfg.data.name}.lock"):  # of several processes one fetches, and the others find it
            return Content(*(part.fingerprint() for part in data.splits))
    return Content(*(part.fingerprint() for part in data.splits))


def victim_identities(cfg: DictConfig, content: Content, own: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The identities of all victims of a run, by name; the network alone of one that the run itself trains.

    Args:
        cfg: a finalised config.
        content: of its data.
        own: victims stored in a checkpoint, by name: of these the file of weights need not be there any more.
    """
    if is_classifier(cfg):
        name = str(next(iter(cfg.victims)))
        return {name: digest(network(cfg, name))}
    found = {}
    for name in map(str, cfg.victims):
        weights, stored = cfg.victims[name].get("weights"), (own or {}).get(name, {}).get("identity")
        gone = weights not in (None, "builtin") and not Path(weights).exists()
        found[name] = stored if gone and stored else victim_identity(cfg, name, content.train)
    return found


def build_victims(
    cfg: DictConfig, embedded: Mapping[str, Any] | None = None, data: AttackDataModule | None = None
) -> dict[str, Victim]:
    """The victims of a config: out of a checkpoint, from a file, or trained here if they are small and missing.

    Args:
        cfg: a finalised config.
        embedded: victims stored in a checkpoint, by name.
        data: the data of the config, where somebody has them already.
    """
    data = shared_data(cfg) if data is None else data
    victims = {str(name): _victim(cfg, str(name), (embedded or {}).get(str(name)), data) for name in cfg.victims}
    for victim in victims.values():
        _warn_of_guessing(victim)
    return victims


def _victim(cfg: DictConfig, name: str, embedded: Mapping[str, Any] | None, data: AttackDataModule) -> Victim:
    spec, settings = cfg.victims[name], settings_of(cfg, name)
    weights = spec.get("weights")
    state = (embedded or {}).get("state_dict")
    if weights == "builtin" or state is not None:
        accuracy = (embedded or {}).get("clean_accuracy")
        victim = Victim(instantiate(spec.backbone), clean_accuracy=accuracy, **settings)
        if state is not None:
            victim.load_state_dict(state)
        victim.identity = victim_identity(cfg, name, "") if state is None else (embedded or {}).get("identity")
        return victim
    if weights is not None:
        victim = victim_files.load(weights, instantiate(spec.backbone), **settings)
        victim.identity = victim_identity(cfg, name, "")
        return victim
    identity = victim_identity(cfg, name, content(cfg, data).train)
    victim = victim_files.load(_trained_victim(cfg, name, identity, data), instantiate(spec.backbone), **settings)
    # as the config has it; the file's is that of whoever trained it
    victim.feature_layer = settings["feature_layer"] or facts_of(victim.backbone).feature_layer
    victim.identity = identity
    return victim


def settings_of(cfg: DictConfig, name: str) -> dict[str, Any]:
    """What stands around the backbone of a victim."""
    spec = as_plain(cfg.victims[name])
    around = {k: v for k, v in spec.items() if k not in ("backbone", "weights", "training")}
    return {"name": name, "num_classes": cfg.data.num_classes, "feature_layer": None, **around}


def _warn_of_guessing(victim: Victim) -> None:
    """Every attack looks strong on a victim that has learnt nothing."""
    accuracy, guess = victim.clean_accuracy, 1 / victim.num_classes
    if accuracy is not None and accuracy <= 1.25 * guess:
        console.print(
            f"[yellow]Victim {victim.name} is right on {accuracy:.1%} of clean validation images, hardly better than "
            f"guessing among {victim.num_classes} classes ({guess:.1%}): numbers about attacks on it say little.[/]"
        )


def victim_file(cfg: DictConfig, name: str, identity: str) -> Path:
    """Where a small victim that is trained here is kept."""
    return Path(cfg.victim_root) / str(cfg.data.name) / f"{name}-{identity[:10]}.ckpt"


def _trained_victim(cfg: DictConfig, name: str, identity: str, data: AttackDataModule) -> Path:
    """The file of a small victim; trains it under a lock if it is not there yet."""
    path = victim_file(cfg, name, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            console.print(f"Training victim [bold]{name}[/] on {cfg.data.name} (kept in {path})")
            _train_victim(cfg, name, path, data)
    return path


def _train_victim(cfg: DictConfig, name: str, path: Path, shared: AttackDataModule) -> None:
    training = recipe(cfg, name)
    L.seed_everything(training.seed, verbose=False)
    classifier = make_classifier(cfg, name, training.classifier)
    data = victim_data(cfg, name, {name: classifier}, shared)
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=1,
        plugins=[LightningEnvironment()],  # a single process, also inside a torchrun or SLURM job
        max_epochs=training.max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=cfg.trainer.enable_progress_bar,
        callbacks=[StopOnSignal(), *progress(cfg)],
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(classifier, datamodule=data)
    if not all(bool(tensor.isfinite().all()) for tensor in classifier.parameters()):
        raise ConfigError(f"Victim {name} has diverged; set a smaller victim_training.classifier.optimizer.lr.")
    part = path.with_suffix(".part")
    trainer.save_checkpoint(part, weights_only=True)
    os.replace(part, path)
    if classifier.clean_accuracy is not None:  # None without validation images
        console.print(f"  accuracy on clean validation images: {classifier.clean_accuracy:.1%}")


def make_mix(cfg: DictConfig) -> AttackMix:
    """The mix of a config.

    Raises:
        ValueError: it does not fit the victims, the images or the classes.
    """
    mix: AttackMix = instantiate(cfg.mix, seed=cfg.seed)
    mix.check(map(str, cfg.victims), **{key: cfg.data.get(key) for key in ("channels", "image_size", "num_classes")})
    return mix


def victim_data(
    cfg: DictConfig, name: str, victims: Mapping[str, nn.Module], shared: AttackDataModule
) -> AttackDataModule:
    """The images that a victim is trained on, as its recipe says.

    Raises:
        ConfigError: a size of the recipe does not fit the images.
    """
    training = recipe(cfg, name)
    try:
        data: AttackDataModule = instantiate(cfg.data, _partial_=True)(
            mix=_clean_mix(),
            victims=victims,
            seed=training.seed,
            source=lambda: shared.splits,
            **loader(training),
        )
        data.setup("fit")
    except ValueError as error:  # of the data module, which takes its settings for those of `data`
        of_recipe = re.sub(rf"\bdata\.({'|'.join(loader(training))})\b", r"victim_training.\1", str(error))
        if of_recipe == str(error):
            raise
        raise ConfigError(f"Victim {name}: {of_recipe}") from error
    return data


def _clean_mix() -> AttackMix:
    return AttackMix({"clean": Component(attack=None)})


def make_classifier(cfg: DictConfig, name: str, node: DictConfig) -> Classifier:
    """An untrained victim, as ``node`` says it is trained."""
    backbone = instantiate(cfg.victims[name].backbone)
    classifier: Classifier = instantiate(node, _partial_=True, _convert_="all")(backbone, **settings_of(cfg, name))
    return classifier


def build(
    cfg: DictConfig,
    embedded: Mapping[str, Any] | None = None,
    guides: Mapping[str, nn.Module] | None = None,
    data: AttackDataModule | None = None,
) -> tuple[Method | Classifier, AttackDataModule]:
    """The method and the data module of a config.

    Args:
        cfg: a finalised config.
        embedded: victims stored in a checkpoint, by name.
        guides: victims that the method was trained with, where they are not those to be attacked.
        data: the data of the config, where somebody has them already.
    """
    shared = shared_data(cfg) if data is None else data
    mix = make_mix(cfg)
    if is_classifier(cfg):
        name = next(iter(cfg.victims))
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        method: Method | Classifier = make_classifier(cfg, str(name), cfg.method)
        victims: Mapping[str, nn.Module] = {str(name): method}
    else:
        victims = build_victims(cfg, embedded, shared)
        # after the victims, so that the method starts the same whether they were trained or found
        L.seed_everything(cfg.seed, workers=True, verbose=False)
        method = instantiate(cfg.method, _partial_=True, _convert_="all")(victims=guides or victims)
    # as a partial, since Hydra would copy modules that are handed to it
    module: AttackDataModule = instantiate(cfg.data, _partial_=True)(
        mix=mix, victims=victims, seed=cfg.seed, source=lambda: shared.splits
    )
    module.attach(method)
    return method, module


def is_classifier(cfg: DictConfig) -> bool:
    """Whether the config trains a victim, not a method that repairs or reads attacked images."""
    return str(cfg.method._target_).endswith(".Classifier")
