"""What a config must be before anything is built from it."""

from __future__ import annotations

import functools
import inspect
import math
import pydoc
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from redlab.spelling import suggest


class ConfigError(ValueError):
    """The config, or a file that it names, is wrong; the message is one sentence for the user."""


_ANY_TYPE = ("trainer.devices",)  # a number, a list of devices, or "auto"


def check_types(given: Any, default: Any, path: str) -> None:
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
                check_types(value, default[key], f"{path}.{key}" if path else str(key))
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


def check_finite(node: Any, path: str = "") -> None:
    """No number of a config may be NaN or infinite: nothing would come of it, or an error far from its cause."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        check_finite(value, f"{path}[{key}]" if isinstance(node, list) else f"{path}.{key}" if path else str(key))
    if isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(f"{path} must be a finite number, got {node}.")


def check_arguments(plain: Any, path: str) -> None:
    """Every key next to a ``_target_`` must be an argument of it, so that ``+method.typo=1`` cannot pass.

    Its value must be of a kind that the argument says it takes.
    """
    for where, node in _targets(plain, path):
        try:
            parameters = parameters_of(str(node["_target_"]))
        except Exception as error:
            raise ConfigError(f"{where}._target_={node['_target_']} cannot be imported: {error}") from error
        if parameters is None:
            continue
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key, value in node.items():
            if key.startswith("_") or (takes_all and key not in parameters):
                continue
            if key not in parameters:
                raise ConfigError(f"Unknown key {where + '.' + key!r} in the config.{suggest(key, list(parameters))}")
            _check_kind(f"{where}.{key}", value, parameters[key])


@functools.cache
def parameters_of(target: str) -> Mapping[str, inspect.Parameter] | None:
    """The arguments of what a ``_target_`` names; None for a C function without a signature.

    Raises:
        ImportError: nothing has that name.
    """
    found: Any = pydoc.locate(target)
    if found is None:
        raise ImportError("nothing has that name.")
    try:
        return inspect.signature(found, eval_str=True).parameters
    except NameError:  # an annotation that only a type checker can read
        return inspect.signature(found).parameters
    except ValueError:
        return None


_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a word", (str, int, float, bool)),  # YAML reads 2024 as a number
    type(None): ("null", (type(None),)),
}


def _check_kind(path: str, value: Any, parameter: inspect.Parameter) -> None:
    """Refuses a value that an annotation of plain kinds and literals rules out; any other annotation says nothing."""
    options = list(_options(parameter.annotation))
    plain = [o for o in options if o in _KINDS]
    literals = [word for o in options if typing.get_origin(o) is Literal for word in typing.get_args(o)]
    if len(plain) + sum(typing.get_origin(o) is Literal for o in options) < len(options) or value == parameter.default:
        return
    for option in plain:
        if isinstance(value, _KINDS[option][1]) and (not isinstance(value, bool) or option in (bool, str)):
            return
    if not any(value == word and type(value) is type(word) for word in literals):
        words = [_KINDS[o][0] for o in plain if o is not type(None)] + [repr(word) for word in literals]
        hint = suggest(str(value), [str(word) for word in literals])
        raise ConfigError(f"{path} must be {' or '.join(words)}, got {_shown(value)}.{hint}")


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _options(member)
    else:
        yield annotation


def trains_victim(cfg: Any) -> bool:
    """Whether a method trains a victim itself: its signature names ``network``, the untrained one of the first victim.

    False where its class cannot be imported, which is said elsewhere.
    """
    return _names(cfg.get("method"), "network")


def _names(node: Any, argument: str) -> bool:
    try:
        return argument in (parameters_of(str(node["_target_"])) or {})
    except Exception:  # of an import, whatever it is
        return False


def check_fields(cfg: DictConfig, trained: bool) -> None:
    """Rules between fields that would otherwise fail late or silently."""
    for part in ("data", "victims", "mix", "victim_training", "method", "trainer", "logger"):
        node = cfg.get(part)
        if not node or (part in _BUILT and not node.get("_target_")):  # an experiment alone leaves a few values
            group = "victim" if part == "victims" else part
            none = " (logger=none switches logging off)" if part == "logger" else ""
            raise ConfigError(f"The config has no {part}: leave its group in, give {group}=..., not ~{group}{none}.")
    check_recipe("victim_training", cfg.victim_training)
    for name, victim in cfg.victims.items():
        _check_victim(f"victims.{name}", victim, cfg.victim_training)
    _check_values("", cfg, {"seed": _SEED})
    _check_values("trainer", cfg.trainer, _TRAINER)
    trainer = cfg.trainer
    for name, logger in cfg.logger.items():
        _check_group(f"logger.{name}", logger)
        if logger.get("offline") and logger.get("log_model"):
            raise ConfigError(
                f"logger.{name}.offline=true and logger.{name}.log_model=true exclude each other: "
                f"wandb uploads online only."
            )
    if trainer.get("fast_dev_run"):
        raise ConfigError(
            f"trainer.fast_dev_run={trainer.fast_dev_run} writes no checkpoint; use trainer.limit_train_batches=2 "
            "trainer.max_epochs=1 instead."
        )
    for name, component in (cfg.mix.get("components") or {}).items():
        _check_group(f"mix.components.{name}", component)
    attacks = any(c.get("attack") and c.get("weight", 1) != 0 for c in (cfg.mix.get("components") or {}).values())
    mix, method = (f"{group}={cfg.get('choices', {}).get(group, '?')}" for group in ("mix", "method"))
    if not trains_victim(cfg):
        if not attacks and not trained:
            raise ConfigError(
                f"{method} learns from attacked images, but {mix} deals none, or each at weight 0: choose a "
                "mix that does, such as mix=digits, or train a victim with method=classifier."
            )
    else:
        for name, component in (cfg.mix.get("components") or {}).items():
            if component.get("attack") is not None and component.get("knowledge", "victim") == "victim":
                raise ConfigError(
                    f"{method} has no victim to attack, but mix component {name} does: "
                    f"add mix=clean, or mix=adversarial_training."
                )
    if trainer.get("overfit_batches"):
        raise ConfigError(
            f"trainer.overfit_batches={trainer.overfit_batches} would show other images in every epoch; use "
            f"data.limit_train={cfg.data.batch_size}, which is one batch, instead."
        )
    helpers = cfg.method.get("helpers") or {}
    for name, helper in helpers.items():
        if not isinstance(helper, str):
            _check_victim(f"method.helpers.{name}", helper, cfg.victim_training)
        elif helper not in cfg.victims and not trained:
            raise ConfigError(
                f"method.helpers.{name}={helper} is not one of the victims: {', '.join(cfg.victims)}; choose one of "
                f"them, or give it a network of its own with +victim@method.helpers.{name}=..."
            )
    classifier = cfg.method.get("classifier")
    if classifier is not None and classifier not in cfg.victims and not trained:
        raise ConfigError(
            f"method.classifier={classifier} is not one of the victims: {', '.join(cfg.victims)}; choose one of them, "
            "or add it with victim=[...]."
        )
    for name, component in (cfg.mix.get("components") or {}).items():
        if isinstance(names := component.get("victims"), str):
            raise ConfigError(f"mix.components.{name}.victims must be a list, such as [{names}], got {names!r}.")
        for victim in names or ():
            if victim not in cfg.victims:
                raise ConfigError(
                    f"mix.components.{name}.victims names {victim!r}, but the victims are {', '.join(cfg.victims)}; "
                    f"add it with victim=[...]."
                )


def _check_victim(path: str, victim: Any, recipe: DictConfig) -> None:
    _check_group(path, victim)
    _check_names(path, victim, _VICTIM)
    check_recipe(f"{path}.training", victim.get("training") or DictConfig({}), recipe)


Rule = tuple[Callable[[Any], bool], str]  # a test of a value, and what it must be


def _at_least(least: int) -> Rule:
    """Of a number; what else a value may be is said by the annotation of the argument."""
    return lambda value: not isinstance(value, (int, float)) or value >= least, f"at least {least}"


_COUNT: Rule = (lambda value: type(value) is int and value >= 1, "a whole number of at least 1")
_LIMIT: Rule = (lambda value: value is None or _COUNT[0](value), "a number of images, or null for all")
_SEED: Rule = (lambda value: type(value) is int and 0 <= value < 2**32, "a whole number from 0 to 4294967295")
# What a recipe of a victim may hold.
_RECIPE: dict[str, Rule] = {
    "classifier": (lambda value: value is not None, "a group of settings"),
    "max_epochs": _COUNT,
    "seed": _SEED,
    "batch_size": _COUNT,
    "val_size": (lambda value: isinstance(value, (int, float)) and value >= 0, "a share or number of images"),
    "limit_train": _LIMIT,
    "limit_val": _LIMIT,
}
# Numbers that Lightning does not look at before it uses them.
_TRAINER: dict[str, Rule] = {
    "max_epochs": _at_least(1),
    "log_every_n_steps": _at_least(1),
    "accumulate_grad_batches": _at_least(1),
    "check_val_every_n_epoch": _at_least(1),
    "num_sanity_val_steps": _at_least(-1),
    "gradient_clip_val": _at_least(0),
    "limit_train_batches": (lambda value: value != 0, "null or above 0"),
}


def _check_values(path: str, node: DictConfig, rules: Mapping[str, Rule]) -> None:
    for key, (fits, words) in rules.items():
        if key in node and not fits(node[key]):
            raise ConfigError(f"{f'{path}.{key}'.lstrip('.')} must be {words}, got {_shown(node[key])}.")


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def check_recipe(path: str, node: DictConfig, whole: DictConfig | None = None) -> None:
    """How a victim is to be trained: an untrained one would be kept and attacked for good.

    Args:
        path: of the node.
        node: the recipe, or what differs from it.
        whole: the recipe, if ``node`` is what differs.
    """
    _check_names(path, node, list(_RECIPE))
    _check_values(path, node, _RECIPE)
    if whole is not None and "classifier" in node:
        merged = OmegaConf.merge(whole.classifier, node.classifier)
        given, default, both = map(OmegaConf.to_container, (node.classifier, whole.classifier, merged))
        check_types(given, default, f"{path}.classifier")
        check_arguments(both, f"{path}.classifier")


# What redlab sets itself, so that a value of the user's would be dropped: where to set it instead. A star is any name.
_ELSEWHERE = {
    "trainer.logger": "choose loggers with logger=csv, or logger=[csv,wandb]",
    "trainer.default_root_dir": "hydra.run.dir=... is the folder of a run",
    "trainer.limit_predict_batches": "a run predicts nothing, so leave it out",
    "trainer.model_registry": "logger.wandb.log_model=true uploads checkpoints",
    "data.mix": "choose one with mix=...",
    "data.victims": "choose them with victim=[...]",
    "data.seed": "it is seed=...",
    "mix.seed": "it is seed=...",
    "method.victims": "choose them with victim=[...]",
    "logger.*.save_dir": "hydra.run.dir=... is the folder of a run",
    "logger.csv.name": "the report looks for its curves under csv",
    "logger.csv.version": "the report looks for its curves under csv/version_<number>",
    "logger.csv.prefix": "the report looks for its curves by their names",
    "logger.wandb.name": "it is name=...",
    "logger.wandb.config": "it is the config of the run",
    "logger.wandb.resume": "a run resumes by itself",
    **dict.fromkeys(("logger.wandb.id", "logger.wandb.version"), "a run keeps its own in wandb_id.txt"),
    "logger.wandb.dir": "hydra.run.dir=... is the folder of a run",
}
# What would take away from a run what it needs, or change nothing.
_FIXED = {
    "trainer.enable_checkpointing": (False, "a run is tested, and resumed, from its checkpoints"),
    "trainer.barebones": (True, "it forbids the checkpoints and metrics that a run is about"),
    "trainer.use_distributed_sampler": (True, "the data module gives each process its share by itself"),
}
_OF_VICTIM = ("backbone", "num_classes", "mean", "std", "input_size", "feature_layer", "name")


def check_acts(cfg: DictConfig) -> None:
    """Refuses what a user can write into a config but redlab would pass over.

    Raises:
        ConfigError: such a key is set; the message says where it can be set.
    """
    for key, remedy in _ELSEWHERE.items():
        parent, leaf = key.rsplit(".", 1)
        group, _, star = parent.partition(".")
        node = cfg.get(group) or {}
        for name in node if star == "*" else [star]:
            if ((node.get(name) if name else node) or {}).get(leaf) is not None:
                raise ConfigError(f"{'.'.join(filter(None, (group, name, leaf)))} has no effect here: {remedy}.")
    for key, (value, reason) in _FIXED.items():
        if OmegaConf.select(cfg, key) is value:
            raise ConfigError(f"{key}={str(value).lower()} cannot be: {reason}.")
    for path in ("method", "victim_training.classifier"):
        node = OmegaConf.select(cfg, path) or {}
        for leaf in _OF_VICTIM if _names(node, "network") else ():
            if leaf in node:
                raise ConfigError(f"{path}.{leaf} has no effect here: set it at victims.<name>.{leaf}.")
    callbacks = cfg.trainer.get("callbacks") or []
    for callback in [callbacks] if isinstance(callbacks, DictConfig) else callbacks:
        if not isinstance(callback, DictConfig) or "_target_" not in callback:
            raise ConfigError(f"trainer.callbacks takes nodes such as [{{_target_: my.Callback}}], got {callback!r}.")
    if "none" in (loggers := cfg.get("logger") or {}) and len(loggers) > 1:
        raise ConfigError(f"logger=[{','.join(map(str, loggers))}]: none stands alone; leave it out, or the others.")


def remedy_for(key: str) -> str | None:
    """Where to set what redlab would pass over at this key; None of a key that counts."""
    return next((remedy for pattern, remedy in _ELSEWHERE.items() if fnmatch(key, pattern)), None)


def may_be_added(key: str) -> bool:
    """Whether anything comes of adding an argument that no YAML lists."""
    return key not in (*_FIXED, "trainer.fast_dev_run", "trainer.overfit_batches")


_BUILT = ("data", "mix", "method", "trainer")
_VICTIM = ("backbone", "mean", "std", "input_size", "feature_layer", "weights", "training")


def _check_group(path: str, node: Any) -> None:
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{path} must be a group of settings, got {_shown(node)}.")


def _check_names(path: str, node: DictConfig, known: Sequence[str]) -> None:
    for key in node:
        if key not in known:
            raise ConfigError(f"Unknown key '{path}.{key!s}' in the config.{suggest(str(key), known)}")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The sentence about a key that nothing reads, with the nearest key that something does."""
    leaf = key.rsplit(".", 1)[-1]
    same = [k for k in known if k.rsplit(".", 1)[-1] == leaf]  # lr, where method.optimizer.lr is meant
    hint = f" Did you mean {min(same, key=lambda k: k.count('.'))!r}?" if same else suggest(key, known)
    return f"Unknown key {key!r} in the config.{hint}"
