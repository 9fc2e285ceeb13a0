"""What makes a thing the same: lists of all that may change a number, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from redlab.runs.config import as_plain
from redlab.victims import architectures
from redlab.victims.facts import Facts, declared

_LOADER = ("batch_size", "val_size", "limit_train", "limit_val")
_TRAINING = ("max_epochs", "seed", *_LOADER)


def recipe(cfg: DictConfig, name: str) -> DictConfig:
    """How a victim is trained: ``victim_training``, and what the victim itself says otherwise."""
    return DictConfig(OmegaConf.merge(cfg.victim_training, cfg.victims[name].get("training") or {}))


def loader(training: DictConfig) -> dict[str, Any]:
    """The settings of the data module that a recipe owns."""
    return {key: training.get(key) for key in _LOADER}


def victim_identity(cfg: DictConfig, name: str, content: str) -> str:
    """A hash of what decides the weights of a victim that is trained here.

    Args:
        cfg: a finalised config.
        name: of the victim.
        content: fingerprint of the training images; the names and folders of data do not count.
    """
    spec, training = cfg.victims[name], recipe(cfg, name)
    classifier = {key: value for key, value in as_plain(training.classifier).items() if key != "data_name"}
    counted = {
        "network": _network(as_plain(spec)),
        "training": {key: training.get(key) for key in _TRAINING} | {"classifier": classifier},
        "data": content,
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def _network(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a victim is built as. What it leaves to its architecture counts as if it were written out."""
    backbone = spec.get("backbone") or {}
    place, _, name = str(backbone.get("_target_")).rpartition(".")
    # a file may have named it: nothing is imported for that
    ours = place == architectures.__name__ and name in architectures.__all__
    facts = declared(getattr(architectures, name), backbone) if ours else Facts()
    least = facts.smallest if facts.smallest > 1 else None
    own = {"mean": facts.mean, "std": facts.std, "input_size": least and max(least, backbone.get("image_size", 0))}
    return {"backbone": backbone} | {k: v if spec.get(k) is None else spec[k] for k, v in own.items()}
