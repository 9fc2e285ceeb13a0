"""Trained methods out of checkpoints: whole, or as a start for another run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from redlab.crafting import AttackMix
from redlab.data import AttackDataModule
from redlab.methods.base import Method
from redlab.runs.build import Trained, build, build_helpers
from redlab.runs.check import ConfigError
from redlab.runs.checkpoints import find_checkpoint, read_checkpoint
from redlab.runs.config import as_plain, finalise
from redlab.runs.trust import stored_config
from redlab.victims import Victim, state_hash


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a loaded method was made with, as its attribute ``run``.

    A record and not modules of the method: it is in no state and no checkpoint, and ``method.to(device)`` moves of the
    victims only those that the method itself holds.

    Attributes:
        config: resolved, as plain values.
        victims: by name.
        mix: its attacks.
        classes: names of the classes; None of a checkpoint that does not say.
        data: the data module, for ``trainer.test(method, datamodule=method.run.data)`` and ``trainer.predict``.
    """

    config: Mapping[str, Any]
    victims: Mapping[str, nn.Module]
    mix: AttackMix
    data: AttackDataModule
    classes: Sequence[str] | None = None


def load(run: str | Path, *, allow: Sequence[str] = ()) -> Method:
    """A trained method, in eval mode, from a run folder or a checkpoint; for notebooks.

    Example: ``x_hat = redlab.load("outputs/...").restore(x_adv)``. What it was made with is its ``run``, see `Run`.

    Args:
        run: the folder or the checkpoint.
        allow: full names of your own classes and functions that the run was made with, such as
            ``["my_module.MyMethod"]``: a file may name nothing else but what redlab offers.

    Raises:
        ConfigError: the checkpoint cannot be read, or names something that is not allowed.
    """
    path = find_checkpoint(Path(run))
    checkpoint = read_checkpoint(path)
    config = stored_config(path, checkpoint["redlab"]["config"], allow)
    cfg = finalise(OmegaConf.create(config))
    method, data = build(cfg, checkpoint["redlab"]["victims"], trained=trained_with(cfg, checkpoint["redlab"]))
    load_weights(method, path, checkpoint)
    method.run = Run(
        config=as_plain(cfg), victims=data.victims, mix=data.mix, data=data, classes=checkpoint["redlab"].get("classes")
    )
    return method.eval()


def trained_with(cfg: DictConfig, record: Mapping[str, Any], victims: Mapping[str, nn.Module] | None = None) -> Trained:
    """What the method of a checkpoint was trained with, with the helpers in it.

    Args:
        cfg: its config.
        record: what `RunRecord` wrote.
        victims: its victims, where they are others than those of the run that it is for.
    """
    helpers = build_helpers(cfg, record.get("helpers"))
    return Trained(cfg=cfg, attack_names=record["attacks"], victims=victims, helpers=helpers)


def start_from(method: Method, run: Path) -> str:
    """Starts a method from the weights of another run, and says what it took over.

    Of a run of the same class all weights must fit. Of another class those parts are taken, networks that are
    attributes of the method, of which all names and shapes fit. Frozen networks stay the method's own.

    Args:
        method: untrained.
        run: folder or checkpoint.

    Raises:
        ConfigError: the checkpoint cannot be read, or does not fit.
    """
    path = find_checkpoint(run)
    if not path.is_file():
        raise ConfigError(f"init={run}: there is no such checkpoint or folder of a run.")
    checkpoint = read_checkpoint(path)
    kind = str(checkpoint["redlab"]["config"]["method"]["_target_"]).rsplit(".", 1)[-1]
    theirs = checkpoint["state_dict"]
    own = {key: value for key, value in method.state_dict().items() if key.split(".", 1)[0] not in method.frozen}
    fits = {key: key in theirs and theirs[key].shape == value.shape for key, value in own.items()}
    if kind == type(method).__name__:
        if wrong := [key for key in {**own, **theirs} if not fits.get(key)]:
            shapes = [f"{tuple(state[wrong[0]].shape)}" if wrong[0] in state else "absent" for state in (theirs, own)]
            raise ConfigError(
                f"init={run} does not fit this {kind}: {wrong[0]} is {shapes[0]} there and {shapes[1]} here "
                f"({len(wrong)} such in all); give both the same sizes under method."
            )
        parts = {key.split(".", 1)[0] for key in own}
    else:
        parts = {key.split(".", 1)[0] for key in own}
        parts -= {key.split(".", 1)[0] for key, fit in fits.items() if not fit}
        if not parts:
            raise ConfigError(f"init={run} holds a {kind}, no part of which fits this {type(method).__name__}.")
    taken = {key: theirs[key] for key in own if key.split(".", 1)[0] in parts}
    method.load_state_dict(taken, strict=False)
    return f"{', '.join(sorted(parts))} of the {kind} in {path}"


def load_weights(method: Method, path: Path, checkpoint: dict[str, Any]) -> None:
    """Fills a method with the weights of a checkpoint.

    Raises:
        ConfigError: they do not fit.
    """
    method.on_load_checkpoint(checkpoint)
    try:
        method.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit the method in its own config: {str(error).splitlines()[0]}") from error


def check_hashes(record: Mapping[str, Any], victims: Mapping[str, nn.Module]) -> None:
    """Warns of victims that are not those of the record."""
    for name, victim in victims.items():
        if name in record and isinstance(victim, Victim) and state_hash(victim) != record[name]["sha256"]:
            warnings.warn(f"victim {name} is not the one that the checkpoint was trained with", stacklevel=2)
