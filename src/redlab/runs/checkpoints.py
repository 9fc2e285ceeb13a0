"""What a run keeps in its checkpoints, and how it is read back."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from redlab.data import AttackDataModule
from redlab.provenance import commit, device, versions
from redlab.runs.build import content
from redlab.runs.check import ConfigError
from redlab.runs.config import as_plain, leaves
from redlab.runs.console import console
from redlab.runs.identity import LENGTH, difference, digest, victim_identity, victim_settings
from redlab.victims import Victim, state_hash


class RunCheckpoint(ModelCheckpoint):
    """Writes ``best.ckpt`` or ``last.ckpt``; of a class of its own, so that a user's may have the same settings."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says what to do where there is no number by which the best checkpoint is known.

        Raises:
            ConfigError: no validation image counted for it.
        """
        if self.monitor and not trainer.sanity_checking and self.monitor not in trainer.callback_metrics:
            raise ConfigError(
                f"No validation image counts for {self.monitor}, by which the best checkpoint is known: validate on "
                "more of them (data.val_size, data.limit_val), attack stronger, or set mix.only_fooled=false."
            )
        super().on_validation_end(trainer, pl_module)


class RunRecord(Callback):
    """Puts into every checkpoint what is needed to evaluate it anywhere, and what it is.

    That is, under ``redlab``: config, names of attacks and classes, victims, helpers; ``identity`` and what it counts
    (``counted``); and ``trained_with``, commit, versions and device of each session that trained it, if they were
    others than before.

    Args:
        cfg: the finalised config.
        helpers: of the method, by name.
        counted: what the identity of the run is a hash of, see ``run_facts``.
        trained_with: what the checkpoint says that this session goes on from.
    """

    def __init__(
        self,
        cfg: DictConfig,
        helpers: Mapping[str, Victim],
        counted: Mapping[str, Any],
        trained_with: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.config, self.helpers, self.counted = as_plain(cfg), helpers, dict(counted)
        this = {"commit": commit(), "versions": versions(), "device": device(cfg.trainer.accelerator)}
        self.trained_with = [*trained_with, *([] if [this] == list(trained_with[-1:]) else [this])]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the record."""
        data: AttackDataModule = trainer.datamodule  # type: ignore[attr-defined]
        victims = {name: victim for name, victim in data.victims.items() if isinstance(victim, Victim)}
        checkpoint["redlab"] = {
            "config": self.config,
            "identity": digest(self.counted),
            "counted": self.counted,
            "trained_with": self.trained_with,
            "attacks": list(data.mix.names),
            "classes": list(data.classes),
            "victims": self._networks(victims, self.config["victims"]),
            "helpers": self._networks(self.helpers, self.config["method"].get("helpers") or {}),
        }

    def _networks(self, networks: Mapping[str, Victim], specs: Mapping[str, Any]) -> dict[str, Any]:
        record: dict[str, Any] = {}
        for name, network in networks.items():
            facts = {"sha256": state_hash(network), "clean_accuracy": network.clean_accuracy}
            record[name] = facts | {"identity": network.identity}
            if self.config["save_victims"] and specs[name].get("weights") != "builtin":
                record[name]["state_dict"] = network.state_dict()
        return record

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Corrects paths: in a folder that has moved, ModelCheckpoint would forget which checkpoint is the best."""
        for name, state in checkpoint["callbacks"].items():
            if name.startswith(RunCheckpoint.__name__):  # a user's own has another folder
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


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint without executing anything in it.

    Raises:
        ConfigError: the file is missing, empty, truncated, or was not written by redlab.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint.")
    if path.stat().st_size == 0:
        raise ConfigError(f"{path} is empty: not a checkpoint.")
    if path.name == WEIGHTS:
        return _read_pretrained(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ValueError, KeyError, ...
        raise ConfigError(
            f"{path} cannot be read as a checkpoint; it may be truncated or of another program."
        ) from error
    if not isinstance(checkpoint, dict) or "redlab" not in checkpoint:
        raise ConfigError(f"{path} was not written by a redlab run.")
    return checkpoint


WEIGHTS, RECORD = "model.safetensors", "redlab.json"
"""The files of a method that was saved by ``redlab.save_pretrained``."""


def flat_tensors(group: str, networks: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """The weights of networks of a record, by names such as ``victims.<name>.<key>``."""
    return {f"{group}.{n}.{k}": v for n, entry in networks.items() for k, v in (entry.get("state_dict") or {}).items()}


def _read_pretrained(path: Path) -> dict[str, Any]:
    """A checkpoint without the states of a training, which it is not to go on from."""
    try:
        said = json.loads((path.parent / RECORD).read_text())
        tensors = load_file(path)
        checkpoint = {"epoch": said["epoch"], "frozen": said["frozen"], "redlab": said["redlab"], "state_dict": {}}
        networks = {g: {n: dict(e) for n, e in said["redlab"].get(g, {}).items()} for g in ("victims", "helpers")}
        for name, tensor in tensors.items():
            group, _, key = name.partition(".")
            if group == "state_dict":
                checkpoint["state_dict"][key] = tensor
            else:
                network, _, key = key.partition(".")
                networks[group][network].setdefault("state_dict", {})[key] = tensor
        checkpoint["redlab"] |= networks
    except Exception as error:  # on damaged files both libraries raise nearly anything
        raise ConfigError(
            f"{path} with {RECORD} cannot be read as a pretrained method; it may be truncated or of another program."
        ) from error
    return checkpoint


def same_method(path: Path, checkpoint: Mapping[str, Any], cfg: DictConfig) -> None:
    """All that stands under ``method``: an optimiser goes on with its numbers out of the checkpoint, too."""
    method = checkpoint["redlab"]["config"]["method"]
    if method["_target_"] != cfg.method._target_:
        theirs, ours = (target.rsplit(".", 1)[1] for target in (method["_target_"], cfg.method._target_))
        raise ConfigError(f"{path} holds a {theirs}, not a {ours}.")
    before, now = (dict(leaves(node, "method")) for node in (method, as_plain(cfg.method)))
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            raise ConfigError(
                f"{path} was trained with {key}={before.get(key)}, not {now.get(key)}; train that in another folder."
            )


def same_run(path: Path, checkpoint: Mapping[str, Any], cfg: DictConfig, counted: Mapping[str, Any]) -> None:
    """Refuses to go on with a checkpoint of another run; the same run may be longer than it was first asked to be.

    Args:
        path: of the checkpoint, for messages.
        checkpoint: what is in it.
        cfg: a finalised config.
        counted: what the identity of the run that it asks for is a hash of.

    Raises:
        ConfigError: it is another run, by the first key that differs; or is trained for longer than is asked.
    """
    record, elsewhere = checkpoint["redlab"], "train that in another folder."
    before = record.get("counted")
    if not isinstance(before, dict):
        raise ConfigError(f"{path} does not say what run it is of; {elsewhere}")
    key = difference(before, counted, but=LENGTH)
    if key is not None:
        was, wanted = before.get(key), counted.get(key)
        name = key.removeprefix("victims.")
        if name in cfg.victims and name in record["config"]["victims"]:  # a hash, of which one wants to know what
            both = OmegaConf.create(record["config"]), cfg
            old, new = (
                {f"{key}.weights": c.victims[name].get("weights")} | dict(leaves(victim_settings(c, name), key))
                for c in both
            )
            if (inner := difference(old, new)) is not None:
                key, was, wanted = inner, old.get(inner), new.get(inner)
        if all(isinstance(value, str) and _HASH.fullmatch(value) for value in (was, wanted)):
            was, wanted = f"{was}"[:10], f"{wanted}"[:10]
            raise ConfigError(f"{path} was trained with other content of {key} ({was}, not {wanted}); {elsewhere}")
        raise ConfigError(f"{path} was trained with {key}={was}, not {wanted}; {elsewhere}")
    for unit, done in (("epochs", checkpoint["epoch"] + 1), ("steps", checkpoint["global_step"])):
        limit = cfg.trainer.get(f"max_{unit}")
        if limit is not None and 0 <= limit < done:
            raise ConfigError(f"{path} has begun {done} {unit}, trainer.max_{unit}={limit} asks for fewer; {elsewhere}")


_HASH = re.compile(r"[0-9a-f]{64}")


def resume_from(out: Path, cfg: DictConfig) -> Path | None:
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
        same_method(path, checkpoint, cfg)
        before = checkpoint["redlab"]["config"].get("init")
        if before != cfg.get("init"):
            raise ConfigError(f"{path} was started with init={before}, not {cfg.get('init')}; use another folder.")
        return path
    if damaged is not None:
        raise ConfigError(f"{damaged} Nothing in {out}/checkpoints can be resumed; remove it or use another folder.")
    return None


def own_victims(cfg: DictConfig, record: Mapping[str, Any], data: AttackDataModule | None) -> dict[str, Any]:
    """The victims of a checkpoint's record that are those of a config, so that it need not load or train them.

    Args:
        cfg: a finalised config.
        record: what `RunRecord` wrote, or nothing.
        data: the data of ``cfg``; read only if they may be other data than those of the record. None while they are
            still to be fetched, and so not known to be the same.
    """
    before = OmegaConf.create(record.get("config", {}))
    own = {}
    for name, entry in record.get("victims", {}).items():
        if name not in cfg.victims:
            continue
        weights = cfg.victims[name].get("weights")
        if before.victims[name].get("weights") != weights:
            continue
        if victim_settings(before, name) != victim_settings(cfg, name):
            continue
        same_images = weights is not None or _source(before) == _source(cfg)
        if same_images or (
            data is not None and entry.get("identity") == victim_identity(cfg, name, content(cfg, data).train)
        ):
            own[name] = entry
    return own


def _source(cfg: DictConfig) -> dict[str, Any]:
    """Which images a config asks for."""
    return {key: value for key, value in as_plain(cfg.data.source).items() if key != "download"}


def finished(cfg: DictConfig, out: Path, checkpoint: Mapping[str, Any]) -> dict[str, float] | None:
    """The numbers of a run that has nothing left to do, where ``checkpoint`` is the newest of the same run."""
    done: int = checkpoint["epoch"] + 1
    if cfg.trainer.max_epochs is None or done < cfg.trainer.max_epochs or not (out / "metrics.json").is_file():
        return None
    try:
        numbers: dict[str, float] = json.loads((out / "metrics.json").read_text())
    except ValueError:
        console.print(f"[yellow]{out / 'metrics.json'} cannot be read: tested again.[/]")
        return None
    return numbers


def best_score(out: Path) -> float | None:
    """What the best checkpoint of a run folder scored on the validation images: the objective of a sweep.

    None where there is no such checkpoint or number, for instance without validation images; no number stands for it.
    """
    path = out / "checkpoints" / "best.ckpt"
    if not path.is_file():
        return None
    states = read_checkpoint(path)["callbacks"].items()
    scores = [s["best_model_score"] for name, s in states if name.startswith(RunCheckpoint.__name__)]
    known = [float(score) for score in scores if score is not None and math.isfinite(score)]
    return known[0] if known else None


def find_checkpoint(run: Path) -> Path:
    """The checkpoint that a folder or a path stands for: ``best``, or else ``last``, or a pretrained one."""
    if run.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            if (run / "checkpoints" / name).is_file():
                return run / "checkpoints" / name
        if (run / WEIGHTS).is_file():
            return run / WEIGHTS
        raise ConfigError(f"{run} has no checkpoints/best.ckpt or last.ckpt.")
    return run


def run_record(run: Path) -> dict[str, Any]:
    """What a run folder or a checkpoint says of itself, as plain values that JSON can hold.

    Returns:
        ``identity`` and what it ``counted``; ``trained_with``, a list of ``commit``, ``versions`` and ``device``, of
        which there are several if the run was resumed with others; ``config``, ``attacks``, and of each of the
        ``victims`` its ``identity``, ``sha256`` of the weights and ``clean_accuracy``.

    Raises:
        ConfigError: there is no checkpoint, or it cannot be read.
    """
    record: dict[str, Any] = dict(read_checkpoint(find_checkpoint(run))["redlab"])
    victims = record["victims"].items()
    record["victims"] = {name: {k: v for k, v in entry.items() if k != "state_dict"} for name, entry in victims}
    return record
