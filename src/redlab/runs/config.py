"""From a command line to a config: composing, overriding, explaining. What a config must be stands in ``check.py``."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from redlab.runs.check import (
    ConfigError,
    check_arguments,
    check_fields,
    check_types,
    numbers,
    suggest,
    unknown_key,
)


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, or at the root of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    packed = package / "conf"
    return packed if packed.is_dir() else package.parents[1] / "conf"


def compose(overrides: Sequence[str] = (), config_name: str = "train") -> DictConfig:
    """Composes a root config, with the chosen option of every group under ``choices``.

    Raises:
        ConfigError: an override names an unknown key or option, or cannot be parsed.
    """
    try:
        if GlobalHydra.instance().is_initialized():
            cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
        else:
            with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(explain(error, overrides)) from error
    return with_choices(cfg, cfg.hydra.runtime.choices)


def with_choices(cfg: DictConfig, choices: Any) -> DictConfig:
    """Puts the chosen options into the config itself and takes Hydra's own node out.

    Raises:
        ConfigError: there is no such experiment, or a key at the top that nothing reads.
    """
    chosen = {k: v for k, v in dict(choices).items() if k in _groups() and v is not None}
    for group in _OPTIONAL:  # of these, Hydra passes over an option that does not exist, also if it was asked for
        if chosen.get(group) not in (None, *_options(group)):
            if chosen[group] != _default_option(group, chosen):
                raise ConfigError(_no_option(group, chosen[group]))
            del chosen[group]
    if "victim" not in chosen:  # Hydra keeps no record of a list of options
        several = [str(name) for name in cfg.get("victims") or () if name in _options("victim")]
        chosen |= {"victim": several} if several else {}
    known = [*_groups(), "victims", *_root_config()]
    for key in cfg:
        if str(key) not in known and "local" not in chosen:
            raise ConfigError(unknown_key(str(key), known))
    with open_dict(cfg):
        cfg.choices = chosen
        cfg.pop("hydra", None)
    return cfg


def finalise(cfg: DictConfig, *, trained: bool = False) -> DictConfig:
    """Resolves interpolations, turns fractions such as ``8/255`` into numbers, and checks what can be checked early.

    Args:
        cfg: as composed.
        trained: the method comes out of a checkpoint with its guide, which need not be among the victims any more.

    Raises:
        ConfigError: a value is missing or has the wrong type, or an argument does not exist.
    """
    missing = [k for k, v in leaves(OmegaConf.to_container(cfg, resolve=False)) if v == "???"]
    if missing:
        raise ConfigError(f"{missing[0]} has no value: give it as {missing[0]}=...")
    try:
        plain = numbers(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    final: DictConfig = OmegaConf.create(plain)
    groups = [f"{k}={_group_value(v)}" for k, v in cfg.get("choices", {}).items() if k in _groups()]
    try:
        defaults = numbers(OmegaConf.to_container(compose(groups), resolve=False))
    except ConfigError:  # out of a checkpoint of somebody who had an option that is not here
        defaults = {}
    check_types(plain, defaults, "")
    check_arguments(plain, "")
    check_fields(final, trained)
    return final


def override_stored(stored: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Applies command-line overrides to a config that came out of a checkpoint.

    A group (``data=svhn``, ``mix=...``, ``victim=[...]``) is composed afresh and takes the place of the stored one;
    a value (``data.batch_size=32``) is set.

    Raises:
        ConfigError: an override is unknown, or would change what the checkpoint was trained as.
    """
    cfg = OmegaConf.create(stored)
    source = OmegaConf.select(cfg, "data.source")
    for key in ("root", "download"):  # written out in what is stored, where conf/data refers to them
        if isinstance(source, DictConfig) and key in source and source[key] == cfg.data.get(key):
            source[key] = f"${{..{key}}}"
    parsed = parse(overrides)
    choices = dict(stored.get("choices", {}))
    fixed = {"method", "experiment", "victim_training"}
    for override in parsed:
        if override.is_delete():
            raise ConfigError(f"{override.input_line}: nothing can be taken out of what a checkpoint holds; set it.")
    chosen = {o.key_or_group: o for o in parsed if o.key_or_group in _groups()}
    for group, override in chosen.items():
        if group in fixed:
            raise ConfigError(f"{override.input_line}: a checkpoint keeps its own {group}; train a new one instead.")
        choices[group] = override.value()
    if chosen:
        # experiment and local layers were already applied to what is stored; a fresh group comes without them
        bases = {k: v for k, v in choices.items() if k in _groups() and k not in ("experiment", "local")}
        fresh = compose([f"{k}={_group_value(v)}" for k, v in bases.items()] + ["~experiment"])
        for group in chosen:
            key = "victims" if group == "victim" else group
            cfg[key] = OmegaConf.create(OmegaConf.to_container(fresh[key], resolve=False))
        if "victim" not in chosen and "data" in chosen:
            cfg.victims = OmegaConf.create(OmegaConf.to_container(fresh.victims, resolve=False))
    for override in parsed:
        key = override.key_or_group
        if key in chosen:
            continue
        if key not in (known := _keys(cfg)) and not override.is_add():
            raise ConfigError(unknown_key(key, known))
        OmegaConf.update(cfg, key, override.value(), force_add=True)
    cfg.choices = choices
    return finalise(cfg, trained=True)


def parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's own reading of ``key=value`` words.

    Raises:
        ConfigError: a word cannot be parsed, or has several values.
    """
    try:
        parsed = list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise ConfigError(explain(error)) from error
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: one value is needed here; a list is written as [a,b].")
    return parsed


def explain(error: BaseException, overrides: Sequence[str] = ()) -> str:
    """One sentence for an error of Hydra or OmegaConf, with the nearest known name where one was misspelt.

    Args:
        error: what was raised.
        overrides: what was typed; the groups chosen there decide which names are known.
    """
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        return unknown_key(unknown.group(1).lstrip("+~"), [*_known_keys(overrides), *_groups()])
    if "${data}_${method}" in text:
        return "The groups data and method cannot be left out."
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not a word of the form key=value; quote values with special characters in them."
    option = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if option:
        return _no_option(*option.groups())
    if "Config group override must be" in text:
        return "A group takes the name of an option, not null; ~group, for instance ~experiment, leaves it out."
    return text


_OPTIONAL = ("experiment", "local")


@functools.cache
def _root_config() -> dict[str, Any]:
    root: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"))  # type: ignore[assignment]
    return root


def _groups() -> list[str]:
    """The groups that the root config composes, in its order."""
    entries = [entry for entry in _root_config()["defaults"] if isinstance(entry, dict)]
    names = [str(key).removeprefix("optional ") for entry in entries for key in entry]
    return [name for name in names if not name.startswith("override ")]


def _options(group: str) -> list[str]:
    if GlobalHydra.instance().is_initialized():  # also knows the folders of --config-dir
        return list(GlobalHydra.instance().config_loader().get_group_options(group))
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _default_option(group: str, chosen: dict[str, Any]) -> str:
    return f"{chosen.get('data')}_{chosen.get('method')}" if group == "experiment" else "default"


def _no_option(group: str, name: str) -> str:
    known = _options(group)
    return f"{group}={name}: no such option.{suggest(name, known)} Options: {', '.join(known)}."


def _known_keys(overrides: Sequence[str]) -> list[str]:
    groups = [word for word in overrides if word.split("=", 1)[0] in _groups()]
    try:
        return _keys(compose(groups))
    except ConfigError:
        return _keys(compose())


def _group_value(value: Any) -> str:
    return f"[{','.join(value)}]" if isinstance(value, (list, tuple, ListConfig)) else str(value)


def _keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    if isinstance(node, (dict, DictConfig)):
        items = node.items_ex(resolve=False) if isinstance(node, DictConfig) else node.items()
        for key, value in items:
            name = f"{prefix}{key!s}"
            keys += [name, *_keys(value, f"{name}.")]
    return keys


def as_plain(node: Any) -> Any:
    """The config as dictionaries, lists and values, with its interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of plain data with their dotted names."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
