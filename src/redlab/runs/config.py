"""From a command line to a config: composing, overriding, explaining. What a config must be stands in ``check.py``."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from redlab.runs.check import (
    ConfigError,
    check_acts,
    check_arguments,
    check_fields,
    check_finite,
    check_types,
    may_be_added,
    parameters_of,
    remedy_for,
    unknown_key,
)
from redlab.runs.folders import fresh
from redlab.spelling import listed, nearest, suggest

# `${fresh:name}` in conf/train.yaml: a folder that no other job has, the same one wherever a config is asked again
OmegaConf.register_new_resolver("fresh", fresh, use_cache=True, replace=True)

_FRACTION = re.compile(r"\s*-?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?\s*")
_LISTS = {"victim": "victims", "logger": "logger"}  # groups that take several options, and where these stand


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
    check_words(overrides)
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
    # how jobs are started is no part of what they are
    chosen = {k: v for k, v in dict(choices).items() if k in _groups() and k != "sweep" and v is not None}
    for group in _OPTIONAL:  # of these, Hydra passes over an option that does not exist, also if it was asked for
        if chosen.get(group) not in (None, *_options(group)):
            if chosen[group] != _default_option(group, chosen):
                raise ConfigError(_no_option(group, chosen[group]))
            del chosen[group]
    for group, place in _LISTS.items():
        if group not in chosen:  # Hydra keeps no record of a list of options
            several = [str(name) for name in cfg.get(place) or () if name in _options(group)]
            chosen |= {group: several} if several else {}
    known = [*_groups(), "victims", *_root_config()]
    for key in cfg:
        if str(key) not in known and "local" not in chosen:
            raise ConfigError(unknown_key(str(key), known))
    with open_dict(cfg):
        cfg.choices = chosen
        cfg.pop("hydra", None)
    return cfg


def check_words(words: Sequence[str]) -> None:
    """What Hydra says without a name, or not at all: null for an option, no option, or one option twice.

    Raises:
        ConfigError: one of these.
    """
    for word in words:
        group, _, value = word.lstrip("+").partition("=")
        if group not in _groups() or group == word:
            continue
        if value in ("null", ""):
            known = _options(group)
            instead = f"{group}=none" if "none" in known else f"~{group}" if group in _OPTIONAL else None
            advice = f"{instead} leaves it out" if instead else f"it must be one of {listed(known)}"
            raise ConfigError(f"{word}: a group takes the name of an option, not null; {advice}.")
        if value == "[]":
            raise ConfigError(f"{word} is empty: give at least one of {listed(_options(group))}.")
        try:
            names = OverridesParser.create().parse_override(word).value() if group in _LISTS else None
        except HydraException:
            continue  # said elsewhere, with all that is known there
        twice = [name for name in names if names.count(name) > 1] if isinstance(names, list) else []
        if twice:
            raise ConfigError(
                f"{word} names {twice[0]} twice, and there can be one of a name: leave one out, or copy "
                f"conf/{group}/{twice[0]}.yaml to a file, and a `@package`, of another name."
            )


def finalise(cfg: DictConfig, *, trained: bool = False) -> DictConfig:
    """Resolves interpolations, turns fractions such as ``8/255`` into numbers, and checks what can be checked early.

    Args:
        cfg: as composed.
        trained: the method comes out of a checkpoint with its classifier, which need not be among the victims any more.

    Raises:
        ConfigError: a value is missing or has the wrong type, or an argument does not exist.
    """
    if missing := [k for k, v in leaves(OmegaConf.to_container(cfg, resolve=False)) if v == "???"]:
        raise ConfigError(f"{missing[0]} has no value: give it as {missing[0]}=...")
    try:
        plain = numbers(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        value = dict(leaves(OmegaConf.to_container(cfg, resolve=False))).get(str(key))
        raise ConfigError(explain(error, [f"{key}={value}"])) from error
    check_types(plain, numbers(OmegaConf.to_container(defaults(cfg), resolve=False)), "")
    check_finite(plain)
    _absolute(plain)
    _keep_only(plain)
    final: DictConfig = OmegaConf.create(plain)
    check_fields(final, trained)
    check_acts(final)
    check_arguments(plain, "")
    return final


def numbers(node: Any) -> Any:
    """Turns fractions such as ``8/255`` into numbers.

    Raises:
        ConfigError: one divides by zero.
    """
    if isinstance(node, dict):
        return {k: numbers(v) for k, v in node.items()}
    if isinstance(node, list):
        return [numbers(v) for v in node]
    if isinstance(node, str) and _FRACTION.fullmatch(node):
        top, bottom = node.split("/")
        if float(bottom) == 0:
            raise ConfigError(f"{node!r} divides by zero.")
        return float(Fraction(top.strip()) / Fraction(bottom.strip()))
    return node


def defaults(cfg: DictConfig) -> DictConfig:
    """The config that the groups chosen in this one compose to, without the values set beside them."""
    groups = [f"{k}={_group_value(v)}" for k, v in cfg.get("choices", {}).items() if k in _groups()]
    try:
        return compose(groups)
    except ConfigError:  # out of a checkpoint of somebody who had an option that is not here
        return OmegaConf.create({})


def _absolute(plain: dict[str, Any]) -> None:
    """Makes paths absolute, with ``~`` as the home folder: what is stored must mean the same from any other folder."""
    data = plain.get("data") or {}
    networks = [*(plain.get("victims") or {}).values(), *((plain.get("method") or {}).get("helpers") or {}).values()]
    places = [(plain, key) for key in ("victim_root", "bank_root", "init", "bank")] + [
        (data, "root"),
        (data.get("source"), "root"),
    ]
    for node, key in [*places, *((network, "weights") for network in networks)]:
        if isinstance(node, dict) and isinstance(node.get(key), str) and node[key] not in ("builtin", "build", "auto"):
            node[key] = os.path.abspath(os.path.expanduser(node[key]))


def _keep_only(plain: dict[str, Any]) -> None:
    """Leaves of the mix clean images and what ``only`` names; from then on that is the mix."""
    asked, components = plain.get("only"), (plain.get("mix") or {}).get("components") or {}
    names = [asked] if isinstance(asked, str) else list(asked or components)
    for name in set(names) - set(components):
        hint = suggest(name, components)
        raise ConfigError(f"only={name}: the mix has no such attack; it has {listed(components)}.{hint}")
    if asked is not None:
        plain["mix"]["components"] = {name: c for name, c in components.items() if name in (*names, "clean")}
        plain["only"] = None


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
    later = OmegaConf.load(conf_dir() / "base" / "data.yaml")  # whose keys may be younger than the checkpoint
    if cfg.data._target_ == later._target_:
        cfg.data = OmegaConf.merge(later, cfg.data)
    cfg.bank = None  # of the training; who wants one for an evaluation says so
    parsed, choices = parse(overrides), dict(stored.get("choices", {}))
    for override in parsed:
        if override.key_or_group == "init":
            raise ConfigError(f"{override.input_line}: a checkpoint has its own weights; train a new one from there.")
        if override.is_delete():
            raise ConfigError(f"{override.input_line}: nothing can be taken out of what a checkpoint holds; set it.")
    chosen = {o.key_or_group: o for o in parsed if o.key_or_group in _groups()}
    for group, override in chosen.items():
        if group in ("method", "experiment", "victim_training"):
            raise ConfigError(f"{override.input_line}: a checkpoint keeps its own {group}; train a new one instead.")
        choices[group] = override.value()
    if chosen:
        # experiment and local layers were already applied to what is stored; a fresh group comes without them
        bases = {k: v for k, v in choices.items() if k in _groups() and k not in ("experiment", "local")}
        fresh = compose([f"{k}={_group_value(v)}" for k, v in bases.items()] + ["~experiment"])
        for group in chosen:
            key = _LISTS.get(group, group)
            cfg[key] = OmegaConf.create(OmegaConf.to_container(fresh[key], resolve=False))
        if "victim" not in chosen and "data" in chosen:
            cfg.victims = OmegaConf.create(OmegaConf.to_container(fresh.victims, resolve=False))
    for override in parsed:
        key = override.key_or_group
        if key in chosen:
            continue
        if key not in (known := _keys(cfg)) and not override.is_add():
            raise ConfigError(_unknown(key, cfg, overrides))
        OmegaConf.update(cfg, key, override.value(), force_add=True)
        of_source = key.replace("data.", "data.source.", 1)  # which refers to it in the YAML, but is resolved here
        if key.startswith("data.") and of_source in known and of_source not in {o.key_or_group for o in parsed}:
            OmegaConf.update(cfg, of_source, override.value())
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
    where = getattr(error, "full_key", None)
    typed = next((word for word in overrides if where and word.startswith(f"{where}=")), where)
    refers = re.search(r"Interpolation key '([^']*)' not found", text)
    if refers and where:
        return f"{typed} refers to the key {refers.group(1)!r}, which there is not: give a value, or a key in full."
    if unknown:
        return _unknown(unknown.group(1).lstrip("+~"), _composed_for(overrides), overrides)
    if "${data}_${method}" in text:
        return "The groups data and method cannot be left out."
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not a word of the form key=value; quote values with special characters in them."
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        many = "several need -m (a sweep), and a list is written as [a,b]"
        return f"{several.group(1)}: one value is needed here; {many}."
    option = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if option:
        return _no_option(*option.groups())
    if where and isinstance(error, InterpolationResolutionError):
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", text.split(" full_key:")[0]).strip('".')
        return f"{typed} cannot be resolved, {reason}: give a value instead."
    return text


_OPTIONAL = ("experiment", "local")


@functools.cache
def _root_config() -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"))  # type: ignore[return-value]


def _groups() -> list[str]:
    """The groups that the root config composes, in its order."""
    entries = (entry for entry in _root_config()["defaults"] if isinstance(entry, dict))
    names = (str(key).removeprefix("optional ") for entry in entries for key in entry)
    return [name for name in names if not name.startswith("override ")]


def _options(group: str) -> list[str]:
    if GlobalHydra.instance().is_initialized():  # also knows the folders of --config-dir
        return list(GlobalHydra.instance().config_loader().get_group_options(group))
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def _default_option(group: str, chosen: dict[str, Any]) -> str:
    return f"{chosen.get('data')}_{chosen.get('method')}" if group == "experiment" else "default"


_PLUGINS = {
    "hydra/launcher": ("joblib", "submitit", "ray", "rq"),
    "hydra/sweeper": ("optuna", "ax", "nevergrad"),
}
"""Options of Hydra's own groups that come with a package hydra-<name>-<launcher or sweeper>."""


def _no_option(group: str, name: str) -> str:
    for plugin in _PLUGINS.get(group, ()):
        if name.split("_")[0] == plugin:
            package = f"hydra-{plugin}-{group.split('/')[1]}"
            return f"{group}={name} comes with a plugin that is not installed: pip install {package}"
    known = _options(group) or ([] if "/" not in group else ["basic"])
    return f"{group}={name}: no such option.{suggest(name, known)} Options: {listed(known)}."


def _composed_for(overrides: Sequence[str]) -> DictConfig:
    """The config of the groups that were typed; the default one if they cannot be composed."""
    try:
        return compose([word for word in overrides if word.split("=", 1)[0] in _groups()])
    except ConfigError:
        return compose()


def _unknown(key: str, cfg: DictConfig, overrides: Sequence[str]) -> str:
    """The sentence about an unknown key, which may be an argument that the YAML does not list."""
    if remedy := remedy_for(key):
        return f"{key} has no effect here: {remedy}."
    known = [*_keys(cfg), *_groups()]
    parent, _, leaf = key.rpartition(".")
    target = OmegaConf.select(cfg, f"{parent}._target_") if parent else None
    misspelt = nearest(key, known, n=1, cutoff=0.95)  # then nothing slow need be imported
    takes = None
    if target and not misspelt and may_be_added(key) and leaf in (parameters_of(target) or ()):
        takes = f"{target} takes it"
    of_recipe = re.sub(r"^victims\.[^.]+\.training\.", "victim_training.", key)
    if of_recipe != key and of_recipe in known:
        takes = f"a victim may differ in it from {of_recipe}"
    if takes:
        typed = [w.split("=", 1)[1] for w in overrides if w.lstrip("+").startswith(f"{key}=")]
        return f"Unknown key {key!r} in the config, but {takes}: add it with +{key}={typed[-1] if typed else '...'}."
    return unknown_key(key, known)


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
