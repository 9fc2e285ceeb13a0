"""From a command line to a checked config. Hydra is known here, in ``run.py`` and in ``cli.py``, nowhere else."""

from __future__ import annotations

import difflib
import functools
import inspect
import pydoc
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
            raise ConfigError(_unknown(str(key), known))
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
        plain = _numbers(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    final: DictConfig = OmegaConf.create(plain)
    groups = [f"{k}={_group_value(v)}" for k, v in cfg.get("choices", {}).items() if k in _groups()]
    try:
        defaults = _numbers(OmegaConf.to_container(compose(groups), resolve=False))
    except ConfigError:  # out of a checkpoint of somebody who had an option that is not here
        defaults = {}
    _check_types(plain, defaults, "")
    _check_arguments(plain, "")
    _check_fields(final, trained)
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
            raise ConfigError(_unknown(key, known))
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
        return _unknown(unknown.group(1).lstrip("+~"), [*_known_keys(overrides), *_groups()])
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
    return f"{group}={name}: no such option.{_suggest(name, known)} Options: {', '.join(known)}."


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


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of plain data with their dotted names."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _unknown(key: str, known: Sequence[str]) -> str:
    leaf = key.rsplit(".", 1)[-1]
    same = [k for k in known if k.rsplit(".", 1)[-1] == leaf]  # lr, where method.optimizer.lr is meant
    hint = f" Did you mean {min(same, key=lambda k: k.count('.'))!r}?" if same else _suggest(key, known)
    return f"Unknown key {key!r} in the config.{hint}"


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


_ANY_TYPE = ("trainer.devices",)  # a number, a list of devices, or "auto"


def _check_types(given: Any, default: Any, path: str) -> None:
    """A value must be of the kind of its default; a default of null or an interpolation accepts anything."""
    if given is None or default is None or path in _ANY_TYPE:
        return
    if isinstance(default, str):
        if isinstance(given, (dict, list)) and "${" not in default:
            raise ConfigError(f"{path} must be a single value, got {given!r}.")
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
    """Every key next to a ``_target_`` must be an argument of it, so that ``+method.typo=1`` cannot pass.

    Where the argument is a whole number, the value must be one.
    """
    for where, node in _targets(plain, path):
        try:
            target: Any = pydoc.locate(str(node["_target_"]))
            parameters = inspect.signature(target).parameters if target is not None else None
        except ValueError:
            continue  # a C function without a signature
        except Exception as error:
            raise ConfigError(f"{where}._target_={node['_target_']} cannot be imported: {error}") from error
        if parameters is None:
            raise ConfigError(f"{where}._target_={node['_target_']} cannot be imported: nothing has that name.")
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        for key, value in node.items():
            if not key.startswith("_") and key not in parameters:
                raise ConfigError(f"Unknown key {where + '.' + key!r} in the config.{_suggest(key, list(parameters))}")
            if isinstance(value, float) and parameters[key].annotation in (int, "int", "int | None"):
                raise ConfigError(f"{where}.{key} must be a whole number, got {value}.")


def _check_fields(cfg: DictConfig, trained: bool) -> None:
    """Rules between fields that would otherwise fail late or silently."""
    for part in ("data", "victims", "mix", "victim_training", "method", "trainer"):
        if not cfg.get(part):
            raise ConfigError(f"The config has no {part}: leave its group in.")
    _check_names("victim_training", cfg.victim_training, ("classifier", "max_epochs", "seed"))
    for name, victim in cfg.victims.items():
        _check_names(f"victims.{name}", victim, _VICTIM)
    trainer, logger = cfg.trainer, cfg.get("logger")
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
    if guide is not None and guide not in cfg.victims and not trained:
        raise ConfigError(f"method.guide={guide} is not one of the victims: {', '.join(cfg.victims)}.")
    for name, component in (cfg.mix.get("components") or {}).items():
        for victim in component.get("victims") or ():
            if victim not in cfg.victims:
                raise ConfigError(
                    f"mix.components.{name}.victims names {victim!r}, but the victims are {', '.join(cfg.victims)}; "
                    f"add it with victim=[...]."
                )


_VICTIM = ("backbone", "mean", "std", "input_size", "feature_layer", "weights", "training")


def _check_names(path: str, node: DictConfig, known: Sequence[str]) -> None:
    for key in node:
        if key not in known:
            raise ConfigError(f"Unknown key '{path}.{key!s}' in the config.{_suggest(str(key), known)}")
