"""The two commands. Errors end in one sentence and exit code 1; ``debug=true`` shows the traceback."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from redlab.runs.check import ConfigError
from redlab.runs.config import conf_dir, explain, finalise, parse, with_choices

_EVALUATE_HELP = """\
python evaluate.py run=<folder or checkpoint> [override ...]
python evaluate.py study=<paper>/<table> [scale=smoke|small|paper] [seeds=[0,1]] [override ...]

Overrides are those of train.py: mix=... data=... victim=... take another attack mix, data set or victim.
Further keys: out=<folder> (where the numbers go), debug=true (full tracebacks),
allow=[my_module.MyMethod] (names that the checkpoint may use besides those of redlab).
"""


def train() -> int:
    """``python train.py``: composes, validates, trains, tests, reports."""
    return _guarded(_train, sys.argv[1:])


def evaluate() -> int:
    """``python evaluate.py``: tests a run, or makes a table or figure of a paper."""
    return _guarded(_evaluate, sys.argv[1:])


def _train(argv: list[str]) -> None:
    sys.argv[1:] = _resume_arguments(argv)
    # Hydra then raises instead of printing its own report, and _guarded says it in one sentence
    os.environ["HYDRA_FULL_ERROR"] = "1"
    failures: list[Exception] = []

    def job(cfg: DictConfig) -> float | None:
        # an exception that reached Hydra would be reported twice, and would not stop a sweep that was told to stop
        try:
            return _job(cfg)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                if type(error).__name__ == "Stopped":
                    raise SystemExit(_report(error)) from error
                print(f"error: {HydraConfig.get().runtime.output_dir}: {_sentence(error)}", file=sys.stderr)
                error = ConfigError("A job of the sweep failed, see above.")
            failures.append(error)
            return None

    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    if failures:
        raise failures[0]


def _job(cfg: DictConfig) -> float:
    # imports torch and lightning, which --help and a misspelt key need not wait for
    from redlab.runs.train import train

    settings = HydraConfig.get()
    argv = list(sys.argv)
    if settings.mode == RunMode.MULTIRUN:
        _pin_children_to_this_job(settings)
    try:
        final = finalise(with_choices(cfg, settings.runtime.choices))
        metrics = train(final, Path(settings.runtime.output_dir))
    finally:
        sys.argv = argv
    return metrics.get("test/restored_accuracy", metrics.get("test/clean_accuracy", 0.0))


def _pin_children_to_this_job(settings: Any) -> None:
    """Makes Lightning's DDP children run this job of a sweep, not the whole sweep again."""
    config: Any = HydraConfig.instance().cfg
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.run.dir = settings.runtime.output_dir
    OmegaConf.set_readonly(config.hydra, True)
    sys.argv[1:] = [*settings.overrides.task, "hydra.mode=RUN"]


def _resume_arguments(argv: list[str]) -> list[str]:
    """``resume=<folder>`` stands for the folder's own overrides and the same output folder."""
    resume = [a for a in argv if a.startswith("resume=")]
    allow = [a for a in argv if a.startswith("allow=")]
    if not resume:
        if allow:
            raise ConfigError(f"{allow[0]} goes with resume=<folder>; what is typed needs no leave.")
        into = [a.removeprefix("hydra.run.dir=").strip("'\"") for a in argv if a.startswith("hydra.run.dir=")]
        again = bool(into) and Path(into[-1], ".hydra", "overrides.yaml").is_file()
        return [*argv, "hydra.output_subdir=null"] if again else argv  # see below
    folder = Path(resume[-1].removeprefix("resume="))
    stored = folder / ".hydra" / "overrides.yaml"
    if not stored.is_file():
        raise ConfigError(f"resume={folder}: no run in that folder (.hydra/overrides.yaml is missing).")
    from redlab.runs.trust import stored_words

    typed = [a for a in argv if a not in resume and a not in allow]
    # without resolving, since a word may hold an interpolation
    held = OmegaConf.to_container(OmegaConf.load(stored), resolve=False)
    anew = {_key(word) for word in typed}
    held = [word for word in held or () if not (isinstance(word, str) and _key(word) in anew)]
    held = stored_words(stored, held, [name for word in parse(allow) for name in _names(word.value())])
    words = {_key(word): word for word in [*held, *typed]}
    quoted = str(folder).replace("'", "\\'")  # a path may hold characters that mean something to Hydra
    # without output_subdir, what was typed at first stays as it is, also if this resume turns out to be a mistake
    return [*words.values(), f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]


def _names(value: Any) -> list[str]:
    """``allow=`` takes one name or a list of them."""
    return [str(name) for name in (value if isinstance(value, list) else [value])]


def _key(word: str) -> str:
    return word.split("=", 1)[0].lstrip("+")


def _evaluate(argv: list[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(_EVALUATE_HELP)
        return
    own: dict[str, Any] = {"run": None, "out": None, "allow": [], "debug": False}
    own |= {"study": None, "scale": "small", "seeds": [0]}
    overrides = []
    for word in parse(argv):
        if word.get_key_element() in own:
            own[word.get_key_element()] = word.value()
        else:
            overrides.append(str(word.input_line))
    if (own["run"] is None) == (own["study"] is None):
        raise ConfigError("Give run=<folder or checkpoint> or study=<paper>/<table>.")
    if own["run"] is not None:
        from redlab.runs.train import evaluate

        stamp = time.strftime("%Y-%m-%d/%H-%M-%S")
        evaluate(
            Path(str(own["run"])), overrides, Path(str(own["out"] or f"outputs/{stamp}_evaluate")), _names(own["allow"])
        )
    else:
        seeds = own["seeds"] if isinstance(own["seeds"], list) else [own["seeds"]]
        if not seeds or not all(type(seed) is int for seed in seeds):
            raise ConfigError(f"seeds must be whole numbers, such as seeds=[0,1,2], got {own['seeds']!r}.")
        from redlab.runs.lab import study

        study(str(own["study"]), str(own["scale"]), seeds, overrides, Path(str(own["out"] or "results")))


def _guarded(command: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    debug = any(a.lower() == "debug=true" for a in argv)
    try:
        command(list(argv))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            raise
        return _report(error, argv)
    return 0


def _report(error: Exception, argv: Sequence[str] = ()) -> int:
    """Says what happened, and returns the exit code."""
    if type(error).__name__ == "Stopped":
        print(error, file=sys.stderr)
        return 143
    print(f"error: {_sentence(error, argv)}", file=sys.stderr)
    return 1


def _sentence(error: BaseException, argv: Sequence[str] = ()) -> str:
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
