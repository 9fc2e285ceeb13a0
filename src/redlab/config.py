"""From a command line to a checked config. Hydra is known here, in ``run.py`` and in ``cli.py``, nowhere else."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

_FRACTION = re.compile(r"\s*-?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?\s*")


class ConfigError(ValueError):
    """The config, or a file that it names, is wrong; the message is one sentence for the user."""


def conf_dir() -> Path:
    """The folder of YAML files: inside an installed package, or at the root of a source checkout."""
    package = Path(__file__).resolve().parent
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
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from error
    return with_choices(cfg, cfg.hydra.runtime.choices)


def with_choices(cfg: DictConfig, choices: Any) -> DictConfig:
    """Puts the chosen options into the config itself and takes Hydra's own node out."""
    with open_dict(cfg):
        cfg.choices = {k: v for k, v in dict(choices).items() if k in _groups() and v is not None}
        cfg.pop("hydra", None)
    return cfg


def finalise(cfg: DictConfig) -> DictConfig:
    """Resolves interpolations, turns fractions such as ``8/255`` into numbers, and checks what can be checked early.

    Raises:
        ConfigError: a value is missing or has the wrong type, or an argument does not exist.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(f"{missing[0]} has no value: give it as {missing[0]}=...")
    try:
        plain = _numbers(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    final: DictConfig = OmegaConf.create(plain)
    groups = [f"{k}={_group_value(v)}" for k, v in cfg.get("choices", {}).items() if k in _groups()]
    defaults = _numbers(OmegaConf.to_container(compose(groups), resolve=False))
    _check_types(plain, defaults, "")
    _check_arguments(plain, "")
    _check_fields(final)
    return final


def override_stored(stored: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Applies command-line overrides to a config that came out of a checkpoint.

    A group (``data=svhn``, ``mix=...``, ``victim=[...]``) is composed afresh and takes the place of the stored one;
    a value (``data.batch_size=32``) is set.

    Raises:
        ConfigError: an override is unknown, or would change what the checkpoint was trained as.
    """
    cfg = OmegaConf.create(stored)
    parsed = parse(overrides)
    choices = dict(stored.get("choices", {}))
    fixed = {"method", "experiment", "victim_training"}
    chosen = {o.get_key_element(): o for o in parsed if o.get_key_element() in _groups()}
    for group, override in chosen.items():
        if group in fixed:
            raise ConfigError(f"{override.input_line}: a checkpoint keeps its own {group}; train a new one instead.")
        choices[group] = override.value()
    if chosen:
        # experiment and local layers were already applied to what is stored; a fresh group comes without them
        bases = {k: v for k, v in choices.items() if k in _groups() and k not in ("experiment", "local")}
        fresh = compose([f"{k}={_group_value(v)}" for k, v in bases.items()] + ["experiment=null"])
        for group in chosen:
            key = "victims" if group == "victim" else group
            cfg[key] = OmegaConf.create(OmegaConf.to_container(fresh[key], resolve=False))
        if "victim" not in chosen and "data" in chosen:
            cfg.victims = OmegaConf.create(OmegaConf.to_container(fresh.victims, resolve=False))
    for override in parsed:
        if override.get_key_element() in chosen:
            continue
        key = override.get_key_element().lstrip("+~")
        if override.is_delete() or (OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT and not override.is_add()):
            raise ConfigError(_unknown(key, _keys(cfg)))
        OmegaConf.update(cfg, key, override.value(), force_add=True)
    cfg.choices = choices
    return finalise(cfg)


def parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's own reading of ``key=value`` words.

    Raises:
        ConfigError: a word cannot be parsed.
    """
    try:
        return list(OverridesParser.create().parse_overrides(list(overrides)))
    except HydraException as error:
        raise ConfigError(explain(error)) from error


def explain(error: BaseException) -> str:
    """One sentence for an error of Hydra or OmegaConf, with the nearest known name where one was misspelt."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        return _unknown(unknown.group(1).lstrip("+~"), [*_keys(compose()), *_groups()])
    if isinstance(error, MissingConfigException) or "Could not find" in text:
        option = re.search(r"Could not find '([^']+)'", text)
        if option and "/" in option.group(1):
            group, name = option.group(1).rsplit("/", 1)
            known = sorted(p.stem for p in (conf_dir() / group).glob("*.yaml"))
            return f"{group}={name}: no such option.{_suggest(name, known)} Options: {', '.join(known)}."
    return " ".join(text.split())


_ABSENT = object()


def _groups() -> list[str]:
    return sorted(p.name for p in conf_dir().iterdir() if p.is_dir())


def _group_value(value: Any) -> str:
    return f"[{','.join(value)}]" if isinstance(value, (list, tuple, ListConfig)) else str(value)


def _keys(node: Any, prefix: str = "") -> list[str]:
    keys = []
    if isinstance(node, (dict, DictConfig)):
        items = node.items_ex(resolve=False) if isinstance(node, DictConfig) else node.items()
        for key, value in items:
            keys += [f"{prefix}{key}", *_keys(value, f"{prefix}{key}.")]
    return keys


def _unknown(key: str, known: Sequence[str]) -> str:
    return f"Unknown key {key!r} in the config.{_suggest(key, known)}"


def _suggest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _numbers(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _numbers(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_numbers(v) for v in node]
    if isinstance(node, str) and _FRACTION.fullmatch(node):
        top, bottom = node.split("/")
        if float(bottom) == 0:
            raise ConfigError(f"{node!r} divides by zero.")
        return float(Fraction(top.strip()) / Fraction(bottom.strip()))
    return node


def _check_types(given: Any, default: Any, path: str) -> None:
    """A value must be of the kind of its default; a default of null or an interpolation accepts anything."""
    if given is None or default is None or (isinstance(default, str) and "${" in default):
        return
    if isinstance(default, dict):
        if not isinstance(given, dict):
            raise ConfigError(f"{path} must be a group of settings, got {given!r}.")
        for key, value in given.items():
            if key in default:
                _check_types(value, default[key], f"{path}.{key}" if path else str(key))
        return
    kinds: tuple[tuple[type[Any] | tuple[type[Any], ...], str], ...] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (list, "a list"),
    )
    for kind, words in kinds:
        if isinstance(default, kind):
            if not isinstance(given, kind) or (isinstance(given, bool) and kind is not bool):
                raise ConfigError(f"{path} must be {words}, got {given!r}.")
            return


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if node.get("_target_"):
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{path}[{i}]")


def _check_arguments(plain: Any, path: str) -> None:
    """Every key next to a ``_target_`` must be an argument of it, so that ``+method.typo=1`` cannot pass."""
    for where, node in _targets(plain, path):
        try:
            parameters = inspect.signature(get_object(node["_target_"])).parameters
        except ValueError:
            continue  # a C function without a signature
        except Exception as error:
            raise ConfigError(f"{where}._target_={node['_target_']} cannot be imported: {error}") from error
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        for key in node:
            if not key.startswith("_") and key not in parameters:
                raise ConfigError(f"Unknown key {where + '.' + key!r} in the config.{_suggest(key, list(parameters))}")


def _check_fields(cfg: DictConfig) -> None:
    """Rules between fields that would otherwise fail late or silently."""
    trainer, logger = cfg.trainer, cfg.logger
    if trainer.max_epochs is not None and trainer.max_epochs < 1:
        raise ConfigError(f"trainer.max_epochs must be at least 1, got {trainer.max_epochs}.")
    if logger and logger.get("offline") and logger.get("log_model"):
        raise ConfigError(
            "logger.offline=true and logger.log_model=true exclude each other: wandb uploads online only."
        )
    if trainer.get("fast_dev_run"):
        raise ConfigError("trainer.fast_dev_run writes no checkpoint; use trainer.limit_train_batches=2 max_epochs=1.")
    if str(cfg.method._target_).endswith(".Classifier"):
        for name, component in cfg.mix.components.items():
            if component.attack is not None and component.get("against", "victim") != "self":
                raise ConfigError(
                    f"method=classifier has no victim to attack, but mix component {name} does: "
                    f"add mix=clean, or mix=adversarial_training."
                )
    if trainer.get("overfit_batches"):
        raise ConfigError("trainer.overfit_batches would show other images in every epoch; use data.limit_train=8.")
    guide = cfg.method.get("guide")
    if guide is not None and guide not in cfg.victims:
        raise ConfigError(f"method.guide={guide} is not one of the victims: {', '.join(cfg.victims)}.")
    for name, component in (cfg.mix.get("components") or {}).items():
        for victim in component.get("victims") or ():
            if victim not in cfg.victims:
                raise ConfigError(
                    f"mix.components.{name}.victims names {victim!r}, but the victims are {', '.join(cfg.victims)}; "
                    f"add it with victim=[...]."
                )
