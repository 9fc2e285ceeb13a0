"""What makes a victim, a run and an evaluation the same: lists of all that may change a number, and of nothing else.

Files and images count by their content, wherever they lie. What no list below names does not count; a test flips every
leaf of the config and says which identities move. ``docs/identity.md`` has the reasons.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from redlab.crafting.bank import Bank
from redlab.data.sources import Splits
from redlab.runs.check import ConfigError
from redlab.runs.config import as_plain, leaves
from redlab.victims import architectures
from redlab.victims.facts import Facts, declared

_LOADER = ("batch_size", "val_size", "limit_train", "limit_val")
_TRAINING = ("max_epochs", "seed", *_LOADER)

LENGTH = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")
"""How long a run is: it counts, but a run may go on for longer than it was first asked to."""

# `devices` and `num_nodes` count as the number of processes, see _processes
_TRAINER = (
    *("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps"),
    *("limit_train_batches", "limit_val_batches", "limit_test_batches"),
    *("precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm"),
    *("val_check_interval", "check_val_every_n_epoch"),  # decide which checkpoints there are to choose the best of
    *("callbacks", "plugins"),  # may do anything
)
_DATA = (*_LOADER, "limit_test")
_NOTED = ("data_name",)  # of a classifier, for the reader of its checkpoint


class Content(NamedTuple):
    """The fingerprints of a data set.

    Attributes:
        train: of the training images, from which validation is taken.
        test: of the test images.
    """

    train: str
    test: str


# ---- a victim -------------------------------------------------------------------------------------------------------


def recipe(cfg: DictConfig, name: str) -> DictConfig:
    """How a victim is trained: ``victim_training``, and what the victim itself says otherwise."""
    return DictConfig(OmegaConf.merge(cfg.victim_training, cfg.victims[name].get("training") or {}))


def loader(training: DictConfig) -> dict[str, Any]:
    """The settings of the data module that a recipe owns."""
    return {key: training.get(key) for key in _LOADER}


def network(cfg: DictConfig, name: str) -> dict[str, Any]:
    """What decides the logits of a victim, its weights apart; what it leaves to its architecture as if written out."""
    spec = as_plain(cfg.victims[name])
    backbone = spec.get("backbone") or {}
    place, _, architecture = str(backbone.get("_target_")).rpartition(".")
    # a file may have named it: nothing is imported for that
    ours = place == architectures.__name__ and architecture in architectures.__all__
    facts = declared(getattr(architectures, architecture), backbone) if ours else Facts()
    least = facts.smallest if facts.smallest > 1 else None
    own = {"mean": facts.mean, "std": facts.std, "input_size": least and max(least, backbone.get("image_size", 0))}
    return {"backbone": backbone} | {k: v if spec.get(k) is None else spec[k] for k, v in own.items()}


def victim_settings(cfg: DictConfig, name: str) -> dict[str, Any]:
    """What a config says of a victim's network and, if it is trained here, of its weights."""
    if cfg.victims[name].get("weights") is not None:
        return network(cfg, name)
    training = as_plain(recipe(cfg, name))
    classifier = {key: value for key, value in training["classifier"].items() if key not in _NOTED}
    trained = {key: training.get(key) for key in _TRAINING} | {"classifier": classifier}
    return network(cfg, name) | {"training": trained} | _held_out(cfg.data, "hold_out")


def victim_identity(cfg: DictConfig, name: str, content: str) -> str:
    """A hash of what decides the logits of a victim.

    That is its network and: its recipe and the training images, if it is trained here; the content of its file of
    weights; or nothing more, where the weights come with the network (``builtin``).

    Args:
        cfg: a finalised config.
        name: of the victim.
        content: fingerprint of the training images; the names and folders of data do not count.

    Raises:
        ConfigError: there is no such file of weights.
    """
    weights = cfg.victims[name].get("weights")
    if weights is None:
        origin = {"images": content}
    else:
        origin = {"weights": "builtin" if weights == "builtin" else file_identity(Path(weights))}
    return digest(victim_settings(cfg, name) | origin)


# ---- a run ----------------------------------------------------------------------------------------------------------


def run_identity(cfg: DictConfig, content: Content, victims: Mapping[str, str]) -> str:
    """A hash of what may change a number of a run: of its training, its validation or its test.

    Args:
        cfg: a finalised config.
        content: of its data.
        victims: name -> identity of all that it attacks, in their order, see ``victim_identity``. For a run that
            trains a classifier, of the network.

    Raises:
        ConfigError: the run to start from, ``init``, is not there.
    """
    return digest(run_facts(cfg, content, victims))


def run_facts(cfg: DictConfig, content: Content, victims: Mapping[str, str]) -> dict[str, Any]:
    """What `run_identity` is a hash of, by the keys of the config; arguments and errors are the same.

    A checkpoint keeps it, so that it can be said what makes another run another.
    """
    plain = as_plain(cfg)
    init, trainer = plain.get("init"), plain["trainer"]
    facts = {f"data.{key}": plain["data"].get(key) for key in _DATA}
    facts |= {f"data.{key}": value for key, value in _held_out(plain["data"], "hold_out", "use").items()}
    facts |= {key: value for key, value in _tested(plain).items() if key == "data.test_on"}
    facts |= {"data.shuffle_attacks": True} if plain["data"].get("shuffle_attacks") else {}
    facts |= {f"data.source.{part}": found for part, found in content._asdict().items()}
    facts |= {key: value for key, value in leaves(plain["method"], "method") if key.split(".")[-1] not in _NOTED}
    facts |= _attacks(plain, content, victims)
    facts |= {f"trainer.{key}": trainer.get(key) for key in _TRAINER}
    facts["trainer.sync_batchnorm"] = trainer.get("sync_batchnorm") or None  # which runs of before did not say
    facts["trainer.devices x trainer.num_nodes"] = _processes(trainer)
    # the epochs that are crafted; the rest of what is in a bank is decided by what counts already
    facts["bank_epochs"] = None if plain.get("bank") is None else bank_epochs(plain)
    facts["init"] = None if init is None else file_identity(Path(init))
    return facts | _whole_batches(plain, "val", "test")


def _attacks(plain: Mapping[str, Any], content: Content, victims: Mapping[str, str]) -> dict[str, Any]:
    """Who is attacked, and how. A place in the mix or among the victims is an id, so that their order counts."""
    components = list(plain["mix"].get("components") or {})
    facts = {"seed": plain["seed"], "victims": list(victims), "mix.components": components}
    facts["judges"] = plain.get("judges")
    for name, identity in victims.items():
        facts |= {
            f"victims.{name}": identity,
            f"victims.{name}.feature_layer": plain["victims"][name].get("feature_layer"),
        }
    return facts | dict(_mix(plain["mix"], _images(plain["data"]["source"]), content))


def _mix(mix: Any, own: Mapping[str, Any], content: Content, path: str = "mix") -> Iterator[tuple[str, Any]]:
    """All that a mix says; the images that an attack reads by their content."""
    if not isinstance(mix, dict):
        yield path, mix
        return
    for key, value in mix.items():
        if key == "source" and str(mix.get("_target_")).endswith(".Guides"):
            same = _images(value) == own
            yield f"{path}.{key}", content.train if same else _training_images(value)
        else:
            yield from _mix(value, own, content, f"{path}.{key}")


def _held_out(data: Any, *keys: str) -> dict[str, Any]:
    """What data say of images that no victim sees; nothing where they leave it at that."""
    return {key: data.get(key) for key in keys if data.get(key) not in (None, 0, "all")}


def _tested(plain: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which validation images a test is of; nothing where it is of the test images."""
    data = plain["data"]
    if data.get("test_on", "test") == "test":
        return {}
    keys = ("test_on", "val_size", "limit_val")
    return {
        "seed": plain["seed"],
        **{f"data.{key}": data.get(key) for key in keys},
        **_held_out(data, "hold_out", "use"),
    }


def _images(source: Mapping[str, Any]) -> dict[str, Any]:
    """Which images a source stands for, wherever they come from."""
    return {key: value for key, value in source.items() if key != "download"}


def _training_images(source: Mapping[str, Any]) -> str:
    made = instantiate(source)
    splits: Splits = made if isinstance(made, Splits) else made()
    return splits.train.fingerprint()


def _whole_batches(plain: Mapping[str, Any], *parts: str) -> dict[str, Any]:
    """The size of evaluation batches is a matter of speed, unless so many of them are all that is looked at."""
    limited = any(plain["trainer"].get(f"limit_{part}_batches") is not None for part in parts)
    return {"data.eval_batch_size": plain["data"].get("eval_batch_size")} if limited else {}


def _processes(trainer: Mapping[str, Any]) -> Any:
    """On how many processes a batch is spread, as far as that can be told: each has batch statistics of its own."""
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    if devices in ("auto", -1, "-1"):
        on_cpu = trainer.get("accelerator") == "cpu" or not torch.accelerator.is_available()
        devices = 1 if on_cpu else torch.accelerator.device_count()
    count = len(devices) if isinstance(devices, list) else devices
    return count * nodes if isinstance(count, int) and isinstance(nodes, int) else [devices, nodes]


# ---- an evaluation --------------------------------------------------------------------------------------------------


def evaluation_identity(
    run: str, cfg: DictConfig, content: Content, victims: Mapping[str, str], attack: Mapping[str, Any] | None = None
) -> str:
    """A hash of what may change a number of an evaluation.

    Args:
        run: what is evaluated: the identity of a run, or of a checkpoint, see `file_identity`.
        cfg: the finalised config of the evaluation.
        content: of its data.
        victims: name -> identity of all that it attacks, in their order.
        attack: of the rows of one attack, what is asked of it, in plain values, in the place of what the mix says;
            None for all of the mix.
    """
    plain = as_plain(cfg)
    facts = {
        "run": run,
        "data.source.test": content.test,
        "data.limit_test": plain["data"].get("limit_test"),
        "trainer.limit_test_batches": plain["trainer"].get("limit_test_batches"),
        "trainer.precision": plain["trainer"].get("precision"),
    }
    if tested := _tested(plain):
        facts |= tested | {"data.source.test": content.train}
    attacks = _attacks(plain, content, victims) if attack is None else {"victims": dict(victims), "attack": attack}
    return digest(facts | attacks | _whole_batches(plain, "test"))


def bank_epochs(plain: Mapping[str, Any]) -> int:
    """How many epochs of training the bank of a config holds.

    Raises:
        ConfigError: the folder is no bank.
    """
    if plain["bank"] in ("build", "auto"):
        return int(plain["bank_epochs"])
    try:
        return Bank(Path(plain["bank"])).epochs
    except ValueError as error:
        raise ConfigError(f"bank={plain['bank']}: {error}.") from error


# ---- hashes ---------------------------------------------------------------------------------------------------------


def file_identity(path: Path) -> str:
    """A hash of the bytes of a file; of a run folder, of its best checkpoint, or of its last if there is no best.

    Raises:
        ConfigError: there is no such file.
    """
    if path.is_dir():
        path = next((p for p in _checkpoints(path) if p.is_file()), path)
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoints(run: Path) -> list[Path]:
    return [run / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]


def digest(facts: Mapping[str, Any]) -> str:
    """A hash of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def difference(before: Mapping[str, Any], now: Mapping[str, Any], but: Collection[str] = ()) -> str | None:
    """The first key whose values differ, if there is one."""
    keys = [*now, *(key for key in before if key not in now)]
    return next((key for key in keys if key not in but and before.get(key) != now.get(key)), None)
