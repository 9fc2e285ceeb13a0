"""The command line before Hydra sees it: what ``resume`` stands for, paths, dry runs, and what differs in a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf

from redlab.runs.check import ConfigError
from redlab.runs.config import compose, leaves, parse
from redlab.runs.folders import about_to_make, path_of
from redlab.runs.sweeps import ASKED, asked, constant, values_of

MANY = ("-m", "--multirun")
"""The options of Hydra that ask for a sweep."""


def into(folder: str, words: list[str]) -> list[str]:
    """The words of a dry run: all that Hydra writes goes into a folder, and every job runs here.

    Raises:
        ConfigError: there is no such launcher.
    """
    launcher = [word for word in words if word.lstrip("+").startswith(_STARTS)]
    compose(launcher)
    words = [_first_of_interval(word) for word in words if word not in launcher]
    own = [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", "hydra.output_subdir=null", "hydra/launcher=basic"]
    return _beside(words, own)


_STARTS = ("sweep=", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")


def _first_of_interval(word: str) -> str:
    """What a search draws from an interval, a dry run takes to be its lower end."""
    with suppress(HydraException):
        values = values_of(word) if "=" in word else []
        return values[0] if len(values) == 1 else word
    return word


def _beside(words: list[str], more: list[str]) -> list[str]:
    """More overrides, next to the others, or Hydra's parser would not take them."""
    last = max((i for i, word in enumerate(words) if "=" in word and not word.startswith("-")), default=len(words) - 1)
    return [*words[: last + 1], *more, *words[last + 1 :]]


def told_what_differs(words: list[str]) -> list[str]:
    """The words of a sweep, and for the names of its jobs which keys are the same in all."""
    if not set(MANY) & set(words):
        return words
    with suppress(HydraException):  # said elsewhere, with all that is known there
        same = constant([word for word in words if "=" in word and not word.startswith("-")])
        keys = ",".join(_quoted(key) for key in same if not key.startswith("hydra."))
        return _beside(words, [f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"])
    return words


def folder_of(words: list[str]) -> Path:
    """Where a dry run would have written."""
    given = [word.split("=", 1)[1] for word in words if word.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    return path_of(given[-1] if given else "outputs/<date>/<time>_<method>_<data>")


def resume_arguments(argv: list[str]) -> list[str]:
    """``resume=<folder>`` stands for the overrides of a run, or with ``-m`` of a sweep, and the same output folder."""
    resume = [a for a in argv if a.startswith("resume=")]
    allow = [a for a in argv if a.startswith("allow=")]
    if not resume:
        if allow:
            raise ConfigError(f"{allow[0]} goes with resume=<folder>; what is typed needs no leave.")
        return argv
    folder = path_of(resume[-1].removeprefix("resume="))
    if folder.is_file():
        raise ConfigError(f"resume={folder} is a file; give the folder of the run: resume={folder.parent.parent}")
    flags = [word for word in argv if word in MANY]
    stored = folder / (ASKED if flags else ".hydra/overrides.yaml")
    if not stored.is_file():
        if not flags and (folder / ASKED).is_file():
            raise ConfigError(f"resume={folder} is a sweep: say -m resume={folder}")
        raise ConfigError(
            f"resume={folder}: no {'sweep' if flags else 'run'} in that folder ({stored.name} is missing)."
        )
    from redlab.runs.trust import stored_words

    typed = {_key(word): word for word in argv if word not in (*resume, *allow, *flags)}
    # without resolving, since a word may hold an interpolation
    held = asked(folder).words if flags else _held(stored, list)
    held = [word for word in held if not (isinstance(word, str) and _key(word) in typed)]
    names = [name for word in parse(allow) for name in names_in(word.value())]
    if flags:
        of_hydra = [word for word in held if isinstance(word, str) and word.startswith("hydra.")]
        values = [value for word in held if word not in of_hydra for value in values_of(word)]
        kept = {_key(value) for value in stored_words(stored, values, names)}
        words = {_key(word): word for word in held if word in of_hydra or _key(word) in kept}
        return [*flags, *(words | typed).values(), f"hydra.sweep.dir={folder}"]
    words = {_key(word): word for word in stored_words(stored, held, names)}
    words |= _absolute_paths(folder, words, typed) | typed
    return [*words.values(), f"hydra.run.dir={folder}"]


def plain_word(word: str) -> str:
    """``--key=value``, as a sweep agent of wandb gives it, is ``key=value``; what Hydra knows stays."""
    key = word.partition("=")[0]
    return word[2:] if word.startswith("--") and "=" in word and key not in _HYDRA_OPTIONS else word


_HYDRA_OPTIONS = [f"--{name}" for name in ("config-path", "config-name", "config-dir", "package", "cfg", "info")]


def _held(path: Path, kind: type) -> Any:
    """What a file of a run folder holds, without resolving, since a word may hold an interpolation.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        held = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # YAML has errors of its own, and a strange file can raise anything
        raise ConfigError(
            f"{path} cannot be read: give the words of the run again, with hydra.run.dir=<folder>."
        ) from error
    if not isinstance(held, kind):
        raise ConfigError(f"{path} is damaged: give the words of the run again, with hydra.run.dir=<folder>.")
    return held


def _absolute_paths(folder: Path, words: Mapping[str, str], typed: Mapping[str, str]) -> dict[str, str]:
    """The paths of a run to be resumed, which may have been relative to another folder than this."""
    from redlab.runs.trust import stored_words

    config = folder / "config.yaml"
    # without resolving: a run writes values, and what a file asks the environment for is refused
    plain = _held(config, dict) if config.is_file() and config.stat().st_size else {}
    keys = ["victim_root", "bank_root", *([] if "data" in typed else ["data.root"])]
    keys += [key for key in words if key.endswith(".weights") or key in ("bank", "init")]
    found = {key: value for key, value in leaves(plain) if key in keys and isinstance(value, str)}
    held = stored_words(config, [f"{key}={_quoted(value)}" for key, value in found.items()])
    return {_key(word): word for word in held}


def with_paths(words: list[str]) -> list[str]:
    """The folders among the words, as Hydra takes them; what is not there yet will have been made by this process."""
    result = []
    for word in words:
        key, _, value = word.partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and value:
            folder = path_of(value)
            if key == "hydra.run.dir" and "${" not in value:
                about_to_make(folder)
            word = f"{key}={_quoted(str(folder))}"
        result.append(word)
    return result


def _quoted(text: str) -> str:
    """As a value for Hydra, to which some characters of paths mean something."""
    return "'" + text.replace("'", "\\'") + "'"


def names_in(value: Any) -> list[str]:
    """``allow=`` takes one name or a list of them."""
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+")
