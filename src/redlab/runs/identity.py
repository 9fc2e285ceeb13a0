"""What makes a thing the same: lists of all that may change a number, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from redlab.runs.config import as_plain

_NETWORK = ("backbone", "mean", "std", "input_size")
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
        "network": {key: as_plain(spec.get(key)) for key in _NETWORK},
        "training": {key: training.get(key) for key in _TRAINING} | {"classifier": classifier},
        "data": content,
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()
