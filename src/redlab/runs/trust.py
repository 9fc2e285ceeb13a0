"""What a file may say: the config in a checkpoint and the words in a run folder name only what redlab offers.

Hydra calls whatever a config names. What the user types is the user's own; what comes out of a file is data, and is
checked here before anything that it names is imported, built or called.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import OmegaConf

from redlab import attacks, crafting, data, methods
from redlab.attacks import adapters
from redlab.runs.check import ConfigError
from redlab.runs.config import as_plain, compose, parse
from redlab.victims import architectures
from redlab.victims.loading import check_builder_arguments

_OFFERED: Mapping[ModuleType, Sequence[str]] = {
    attacks: attacks.__all__,
    adapters: ("AdvLib", "Foolbox", "Torchattacks"),
    crafting: ("AttackMix", "Component"),
    data: data.__all__,
    methods: methods.__all__,
    architectures: architectures.__all__,
}
_OPTION = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")  # the name of an option of a group, never a way out of conf/


@functools.cache
def offered() -> frozenset[str]:
    """The names that a config out of a file may have as ``_target_``."""
    names = {"lightning.Trainer", "lightning.pytorch.Trainer"}
    for module, public in _OFFERED.items():
        for name in public:
            found = getattr(module, name)
            if found.__module__.startswith("redlab."):  # not what a module itself imports
                names |= {f"{module.__name__}.{name}", f"{found.__module__}.{found.__qualname__}"}
    for module, base in (
        (torch.optim, torch.optim.Optimizer),
        (torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
    ):
        kinds = {name: kind for name, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, base)}
        names |= {f"{module.__name__}.{name}" for name in kinds if not name.startswith("_")}
    return frozenset(names)


def stored_config(path: Path, stored: Any, allow: Collection[str] = ()) -> dict[str, Any]:
    """The config of a checkpoint, as far as it may be used.

    Of the trainer it keeps what ``conf/trainer`` has. The logger is the default one, and nothing is downloaded: where
    numbers go and whether the network is used is for the user to say.

    Args:
        path: the checkpoint, for messages.
        stored: its config.
        allow: full names of classes and functions that the user trusts besides those of redlab.

    Raises:
        ConfigError: it names something else, or holds what no run writes.
    """
    allow = [allow] if isinstance(allow, str) else allow
    parts = [stored.get("trainer"), stored.get("choices", {})] if isinstance(stored, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ConfigError(f"{path} holds no config of a run.")
    default = compose()
    config = {key: value for key, value in copy.deepcopy(stored).items() if key != "logger"}
    config["trainer"] = {k: v for k, v in config["trainer"].items() if k in default.trainer}
    config["choices"] = dict(config.get("choices", {}))
    _check(str(path), [config], allow)
    for group, chosen in config["choices"].items():
        for option in chosen if isinstance(chosen, (list, tuple)) else [chosen]:
            if not _OPTION.fullmatch(str(option)):
                raise ConfigError(f"{path} holds choices.{group}={option}, which is no name of an option.")
    _forbid_downloads(config, allow)
    config["logger"], config["choices"]["logger"] = as_plain(default.logger), default.choices.logger
    return config


def stored_words(path: Path, words: Sequence[Any], allow: Collection[str] = ()) -> list[str]:
    """The overrides that a run folder keeps, as far as they may be used again; ``download=true`` is left out.

    Args:
        path: the file, for messages.
        words: what is in it, without those that the user types anew.
        allow: see ``stored_config``.

    Raises:
        ConfigError: a word is no plain override, or names something that redlab does not offer.
    """
    kept: list[str] = []
    said: list[Any] = []
    together: dict[str, Any] = {}
    values = {str(key) for key, value in compose().items() if not OmegaConf.is_config(value)}
    for word in words:
        refused = ConfigError(f"{path} holds {word!r}, which a file may not say; type it again if you want it.")
        if not isinstance(word, str) or word.startswith("-"):  # an option of Hydra, some of which read a pickle
            raise refused
        try:
            (override,) = parse([word])
        except ConfigError as error:
            raise ConfigError(f"{path} holds {word!r}: {error}") from error
        key, value = str(override.key_or_group), None if override.is_delete() else override.value()
        places = re.split("[./]", f"{key}.{override.package}")
        added = "logger" in places and word.startswith("+")  # csv writes where it is told to, and nowhere else
        if "hydra" in places or (added and not key.startswith("logger.csv.")):
            raise refused
        if override.package is not None or "/" in key or not ("." in key or key in values):  # it chooses an option
            options = value if isinstance(value, list) else [value]
            if not all(option is None or _OPTION.fullmatch(str(option)) for option in options):
                raise refused
        elif not (key.endswith(".download") and value):
            said.append(_nested(key, value, {}))
            _nested(key, value, together)
        else:
            continue
        kept.append(word)
    _check(str(path), [*said, together], allow)
    if any(_forbid_downloads(node, allow) for node in said):
        raise ConfigError(f"{path} asks for a download; type data.download=true if you want it.")
    return kept


def _nested(key: str, value: Any, into: dict[str, Any]) -> dict[str, Any]:
    """Sets a dotted key."""
    *parents, leaf = key.split(".")
    node = into
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[leaf] = value
    return into


def _check(source: str, said: Sequence[Any], allow: Collection[str]) -> None:
    """Raises for what is no plain value, for arguments that reach outside, and for names that nobody offers."""
    strangers: dict[str, str] = {}
    faults: list[str] = []
    for where, node in (found for tree in said for found in _walk(tree, "")):
        if isinstance(node, str) and "${" in node:
            faults.append(f"{where}={node}: an interpolation, where a file may hold values only.")
        if not (node is None or isinstance(node, (dict, list, tuple, str, bool, int, float))):
            faults.append(f"a {type(node).__name__} as {where}, where a file may hold values only.")
        target = node.get("_target_") if isinstance(node, dict) else None
        if not isinstance(node, dict) or (isinstance(target, str) and target in allow):
            continue
        if target and not (isinstance(target, str) and target in offered()):
            strangers.setdefault(str(target), f"{where}._target_".lstrip("."))
        elif "_args_" in node:
            faults.append(f"{where}._args_, where a file may give arguments by name only.")
        elif _builds(where, target):
            try:
                check_builder_arguments({k: v for k, v in node.items() if not str(k).startswith("_")})
            except ValueError as error:
                faults.append(f"{where} with {error}{f'; {_remedy([target])}' if target else ''}.")
    for target, where in strangers.items():
        raise ConfigError(f"{source} names {where}={target}, which redlab does not offer: {_remedy(strangers)}.")
    for fault in faults:
        raise ConfigError(f"{source} holds {fault}")


def _builds(where: str, target: str | None) -> bool:
    """Whether a node makes a network; the words of a run folder need not repeat the name of the function."""
    if target:
        return target.startswith("redlab.victims.") and target.rpartition(".")[2] in architectures.__all__
    return bool(re.fullmatch(r"(victims|method\.helpers)\.[^.]+\.backbone", where))


def _remedy(names: Collection[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"if you trust it, type allow=[{','.join(names)}], or redlab.load(..., allow=[{quoted}])"


def _walk(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    yield where, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _walk(value, f"{where}.{key}".lstrip("."))
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _walk(value, f"{where}[{i}]")


def _forbid_downloads(config: Any, allow: Collection[str]) -> bool:
    """Sets every ``download`` to false; whether there was one."""
    found = False
    for _, node in _walk(config, ""):
        if isinstance(node, dict) and node.get("download") and node.get("_target_") not in allow:
            node["download"], found = False, True
    return found
