"""From a checked config to objects: victims, method, data module."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from filelock import FileLock
from hydra.utils import instantiate
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig, OmegaConf
from torch import nn

from redlab import victims as victim_files
from redlab.crafting import AttackMix, Component
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.runs.check import ConfigError, parameters_of, trains_victim
from redlab.runs.config import as_plain
from redlab.runs.console import console, progress
from redlab.runs.identity import Content, digest, loader, network, recipe, victim_identity
from redlab.runs.stopping import StopOnSignal
from redlab.victims import ImageClassifier, Victim
from redlab.victims.facts import facts_of
from redlab.victims.loading import fault


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
    if trains_victim(cfg):
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
        if path.exists() and (why := fault(path)):
            console.print(f"[yellow]{why}: it is trained again.[/]")
            path.unlink()
        if not path.exists():
            console.print(f"Training victim [bold]{name}[/] on {cfg.data.name} (kept in {path})")
            _train_victim(cfg, name, path, data)
    return path


def _train_victim(cfg: DictConfig, name: str, path: Path, shared: AttackDataModule) -> None:
    training = recipe(cfg, name)
    L.seed_everything(training.seed, verbose=False)
    classifier: Any = make_method(training.classifier, {"network": lambda: untrained(cfg, name)})
    data = victim_data(cfg, name, {name: classifier}, shared)
    data.attach(classifier)
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
            use="seen" if cfg.data.get("hold_out") else "all",
            test_on="test",
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


def untrained(cfg: DictConfig, name: str) -> ImageClassifier:
    """The network of a victim, with what stands around it."""
    return ImageClassifier(instantiate(cfg.victims[name].backbone), **settings_of(cfg, name))


def helpers_of(cfg: DictConfig) -> DictConfig:
    """The config with the networks of ``method.helpers`` in the place of the victims, for all that is done to those.

    Helpers that are victims by name are left out.
    """
    specs = cfg.method.get("helpers") or {}
    own = {name: spec for name, spec in specs.items() if not isinstance(spec, str)}
    return OmegaConf.create({**as_plain(cfg), "victims": as_plain(OmegaConf.create(own))})


def build_helpers(
    cfg: DictConfig, embedded: Mapping[str, Any] | None = None, data: AttackDataModule | None = None
) -> dict[str, Victim]:
    """The networks of ``method.helpers``, made, loaded or trained as victims are, and attacked by nobody.

    Args:
        cfg: a finalised config.
        embedded: helpers stored in a checkpoint, by name.
        data: the data of the config, where somebody has them already.
    """
    return build_victims(helpers_of(cfg), embedded, data)


def make_method(node: DictConfig, offers: Mapping[str, Callable[[], Any]]) -> Method:
    """A method that is handed what its signature names, and nothing else.

    Args:
        node: ``_target_`` and what the YAML gives it; that comes before what is offered.
        offers: by name, made only if it is asked for.
    """
    known = parameters_of(str(node._target_)) or {}
    given = {k: make() for k, make in offers.items() if k in known and (k == "helpers" or k not in node)}
    plain = {key: value for key, value in as_plain(node).items() if key != "helpers"}
    # as a partial, since Hydra would copy modules that are handed to it
    method: Method = instantiate(plain, _partial_=True, _convert_="all")(**given)
    return method


def offers(
    cfg: DictConfig, victims: Mapping[str, nn.Module], helpers: Mapping[str, nn.Module], attack_names: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """What a method can ask for by naming it as an argument.

    Args:
        cfg: the config that it is, or was, trained with.
        victims: ``victims``: name -> frozen network.
        helpers: frozen networks of its own; ``helpers`` has besides them the victims that ``method.helpers`` names.
        attack_names: ``attack_names``: of the mix, the first is "clean".

    Returns:
        Also ``num_classes``, ``channels`` and ``image_size`` of the data, and ``network``: that of the first victim,
        untrained.
    """
    by_name = {k: v for k, v in (cfg.method.get("helpers") or {}).items() if isinstance(v, str)}
    sizes = {key: cfg.data[key] for key in ("num_classes", "channels", "image_size")}
    return {
        "victims": lambda: victims,
        "helpers": lambda: {**helpers, **{name: victims[victim] for name, victim in by_name.items()}},
        "attack_names": lambda: list(attack_names),
        "network": lambda: untrained(cfg, str(next(iter(cfg.victims)))),
        **{key: partial(int, size) for key, size in sizes.items()},
    }


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a method is, or was, trained with: at an evaluation that may be other than what it is tested on.

    Attributes:
        cfg: its config.
        attack_names: of its mix; None: those of the mix of the run.
        victims: its victims; None: those of the run.
        helpers: its helpers; None: to be made as ``cfg`` says.
    """

    cfg: DictConfig
    attack_names: Sequence[str] | None = None
    victims: Mapping[str, nn.Module] | None = None
    helpers: Mapping[str, nn.Module] | None = None


def build(
    cfg: DictConfig,
    embedded: Mapping[str, Any] | None = None,
    *,
    trained: Trained | None = None,
    data: AttackDataModule | None = None,
) -> tuple[Method, AttackDataModule]:
    """The method and the data module of a config.

    Args:
        cfg: a finalised config.
        embedded: victims stored in a checkpoint, by name.
        trained: what the method was trained with, where that is not what ``cfg`` says.
        data: the data of the config, where somebody has them already.
    """
    shared = shared_data(cfg) if data is None else data
    mix = make_mix(cfg)
    trained = trained or Trained(cfg=cfg)
    victims: Mapping[str, nn.Module] = {} if trains_victim(cfg) else build_victims(cfg, embedded, shared)
    helpers = build_helpers(trained.cfg, None, shared) if trained.helpers is None else trained.helpers
    # after the victims, so that the method starts the same whether they were trained or found
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    known = victims if trained.victims is None else trained.victims
    names = mix.names if trained.attack_names is None else trained.attack_names
    method = make_method(cfg.method, offers(trained.cfg, known, helpers, names))
    if cfg.trainer.accelerator == "cpu" or not torch.accelerator.is_available():
        method.to(memory_format=torch.channels_last)  # measured on CPUs only, see results/README.md
    if trains_victim(cfg):
        victims = {str(next(iter(cfg.victims))): method}
    # as a partial, since Hydra would copy modules that are handed to it
    module: AttackDataModule = instantiate(cfg.data, _partial_=True)(
        mix=mix, victims=victims, seed=cfg.seed, source=lambda: shared.splits
    )
    module.attach(method, judges=cfg.get("judges"))
    return method, module


def needs_victims(cfg: DictConfig) -> bool:
    """Whether the method is handed victims, itself or as helpers."""
    by_name = any(isinstance(spec, str) for spec in (cfg.method.get("helpers") or {}).values())
    return by_name or "victims" in (parameters_of(str(cfg.method._target_)) or {})
