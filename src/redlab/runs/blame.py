"""Which key of a config it was that something refused, and what a user reads of an error."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from redlab.runs.check import ConfigError
from redlab.runs.config import as_plain, defaults, explain, leaves, numbers
from redlab.spelling import suggest

T = TypeVar("T")
_LONGEST = 400  # characters of somebody else's message
_ABSENT = "not in any file"
_CHOICE = re.compile(r"one of|must be|choices|available|allowed", re.IGNORECASE)
_WAY_OUT = re.compile(r"\bmust (not )?(be|name|leave)\b|\bchoose\b|\bset \S+( to |=)|\bdid you mean\b")


def sentence(error: BaseException, argv: Sequence[str] = ()) -> str:
    """What the user reads. Hydra wraps the errors of what it instantiates: the cause speaks."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return explain(error, argv)
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    return f"{type(error).__name__}: {text} (debug=true shows where)"


def attempt(cfg: DictConfig, part: str, make: Callable[[DictConfig], T]) -> T:
    """Makes something of a config; an error becomes one sentence about the key whose value was refused.

    The key is found by trying again, each time with one value as it would be by default: the value without which there
    is no error is the one. Only that costs anything, and only where there is an error.

    Args:
        cfg: a finalised config.
        part: where the values that are looked at stand, which are tried first.
        make: makes the thing.

    Raises:
        ConfigError: it cannot be made.
        OSError: a file or folder is the matter, whoever named it.
    """
    try:
        return make(cfg)
    except ConfigError:
        raise
    except Exception as error:
        text = _text(error)
        found = _culprit(cfg, part, make, text)
        if found is None and isinstance(error, OSError):
            raise
        said = f"{part}: {text}" if found is None else _sentence(*found, text)
        raise ConfigError(said.rstrip(".") + ("" if said.endswith("?") else ".")) from error


def _culprit(cfg: DictConfig, part: str, make: Callable[[DictConfig], Any], text: str) -> tuple[str, Any, Any] | None:
    """Key, value and default of the value without which all is well; or without which something else is wrong.

    Of the second kind the default is no way out, and given as "???".
    """
    usual = defaults(cfg)
    raw = dict(leaves(OmegaConf.to_container(usual, resolve=False)))
    given = _given(cfg, usual, raw)
    second = None
    for key in sorted(given, key=lambda key: not f"{key}.".startswith(f"{part}.")):
        if raw.get(key) == "???":  # there is no default, so that it cannot be left out
            continue
        default = as_plain(OmegaConf.select(usual, key, default=_ABSENT))
        try:
            make(_with(usual, {k: v for k, v in given.items() if k != key}))
        except Exception as error:  # whatever it is, it is not about this value
            if second is None and _text(error) != text:
                second = key, given[key], "???"
        else:
            return key, given[key], default
    return second


def _given(cfg: DictConfig, usual: DictConfig, raw: dict[str, Any]) -> dict[str, Any]:
    """The values that are not those of the chosen options, without those that follow from others."""
    own = {k: v for k, v in leaves(as_plain(cfg)) if k.split(".")[0] != "choices"}
    follows = {k for k in own if isinstance(raw.get(k), str) and "${" in raw[k]}
    given = {k: v for k, v in own.items() if k not in follows and (k not in raw or numbers(raw[k]) != v)}
    resolved = _with(usual, given)
    return given | {k: own[k] for k in follows if OmegaConf.select(resolved, k) != own[k]}


def _with(usual: DictConfig, given: dict[str, Any]) -> DictConfig:
    cfg = copy.deepcopy(usual)
    with open_dict(cfg):
        for key, value in given.items():
            OmegaConf.update(cfg, key, value, force_add=True)
    resolved: DictConfig = OmegaConf.create(numbers(OmegaConf.to_container(cfg, resolve=True)))
    return resolved


def _text(error: BaseException) -> str:
    """What an error says, in one line. Hydra wraps the errors of what it instantiates: the cause speaks."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    text = re.sub(r"\s*[^.]*https?://\S+", "", text).rstrip(" .,")  # "find more at ..."
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    named = isinstance(error, (ArithmeticError, LookupError, AttributeError)) or not text
    return f"{type(error).__name__}: {text}" if named else text


def _sentence(key: str, value: Any, default: Any, text: str) -> str:
    """Key, value, what was said of it, and a way out."""
    first, _, rest = text.partition(" ")
    first = first.strip("`")
    name = first.partition("=")[0]
    if f".{key}".endswith(f".{name}") and (f"{name}={value}" in first or str(value) in rest):
        said = f"{key}{first.removeprefix(name)} {rest}"  # in full
    else:
        said = f"{key}={_shown(value)}: {text}"
    if isinstance(value, str) and _CHOICE.search(text):
        hint = suggest(value, [word for word in re.findall(r"[\w.-]+", text) if word != value])
        if hint:
            return f"{said}.{hint}"
    if default == "???" or _WAY_OUT.search(text):
        return said
    return f"{said}; leave it out" if default == _ABSENT else f"{said}; the default is {_shown(default)}"


def _shown(value: Any) -> str:
    """As one would type it; of a group of settings, what it makes."""
    if isinstance(value, dict):
        return str(value.get("_target_", value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
