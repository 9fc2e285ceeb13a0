"""The commands. Errors end in one sentence and exit code 1; ``debug=true`` shows the traceback."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from redlab.runs.check import ConfigError
from redlab.runs.config import check_words, compose, conf_dir, explain, finalise, leaves, parse, with_choices
from redlab.runs.folders import about_to_make, first_process, fresh, path_of, take_away_unused, taken
from redlab.spelling import suggest

_EVALUATE_HELP = """\
python evaluate.py run=<folder or checkpoint> [override ...]
python evaluate.py study=<paper>/<table> [scale=smoke|small|paper] [seeds=[0,1]] [override ...]

Overrides are those of train.py: mix=... data=... victim=... take another attack mix, data set or victim.
Further keys: out=<folder> (where the numbers go), debug=true (full tracebacks),
allow=[my_module.MyMethod] (names that the checkpoint may use besides those of redlab).
--dry-run checks all that can be checked, says what would be run, and stops.
"""


_HELP = """\
redlab train [override ...]      trains a method, tests it, and writes numbers and a report into one folder
redlab evaluate [override ...]   tests a run again, or makes a table or figure of a paper

redlab train --help and redlab evaluate --help say more. In a checkout, train.py and evaluate.py are the same commands.
"""


def main() -> int:
    """``redlab train`` and ``redlab evaluate``, also as ``python -m redlab``."""
    commands = {"train": train, "evaluate": evaluate}
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(_HELP)
        return 0
    name = sys.argv[1]
    if name not in commands:
        hint = suggest(name, list(commands))
        print(f"error: redlab has no command {name!r}.{hint} See redlab --help.", file=sys.stderr)
        return 1
    return commands[name](1)


def train(skip: int = 0) -> int:
    """``python train.py``: composes, validates, trains, tests, reports.

    Args:
        skip: how many words of the command line choose the command.
    """
    return _guarded(lambda argv: _train(argv, skip), sys.argv[1 + skip :])


def evaluate(skip: int = 0) -> int:
    """``python evaluate.py``: tests a run, or makes a table or figure of a paper; ``skip`` as for `train`."""
    return _guarded(_evaluate, sys.argv[1 + skip :])


def _train(argv: list[str], skip: int) -> None:
    dry, argv = _DRY in argv, [word for word in argv if word != _DRY]
    check_words(argv)
    before = list(sys.argv)
    command = before[: 1 + skip]
    words = _with_paths(_resume_arguments(argv))
    sys.argv = [before[0], *words]
    # Hydra then raises instead of printing its own report, and _guarded says it in one sentence
    os.environ["HYDRA_FULL_ERROR"] = "1"
    failures: list[Exception] = []

    def job(cfg: DictConfig) -> float | None:
        # an exception that reached Hydra would be reported twice, and would not stop a sweep that was told to stop
        try:
            return _job(cfg, command, _folder(words) if dry else None)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                if type(error).__name__ == "Stopped":
                    raise SystemExit(_report(error)) from error
                overrides = " ".join(HydraConfig.get().overrides.task)
                where = f"the job {overrides}" if dry else HydraConfig.get().runtime.output_dir
                print(f"error: {where}: {_sentence(error)}", file=sys.stderr)
                error = ConfigError("A job of the sweep failed, see above.")
            failures.append(error)
            return None

    try:
        with ExitStack() as stack:
            if dry:  # Hydra makes folders before it calls the job
                nowhere = stack.enter_context(tempfile.TemporaryDirectory())
                sys.argv[1:] = _into(nowhere, words)
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    finally:
        sys.argv = before
        take_away_unused()
    if failures:
        raise failures[0]


_DRY = "--dry-run"


def _into(folder: str, words: list[str]) -> list[str]:
    """The words of a dry run: all that Hydra writes goes into a folder, and every job runs here.

    Raises:
        ConfigError: there is no such launcher.
    """
    launcher = [word for word in words if word.lstrip("+").startswith(("hydra/launcher", "hydra.launcher"))]
    compose(launcher)
    words = [word for word in words if word not in launcher]
    own = [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", "hydra.output_subdir=null", "hydra/launcher=basic"]
    last = max((i for i, word in enumerate(words) if "=" in word and not word.startswith("-")), default=len(words) - 1)
    return [*words[: last + 1], *own, *words[last + 1 :]]  # beside the others, or Hydra's parser would not take them


def _folder(words: list[str]) -> Path:
    """Where a dry run would have written."""
    given = [word.split("=", 1)[1] for word in words if word.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    return path_of(given[-1] if given else "outputs/<date>/<time>_<method>_<data>")


def _job(cfg: DictConfig, command: list[str], dry: Path | None = None) -> float | None:
    """One run, or only what can be said of it before; ``dry`` is the folder that it would have."""
    settings = HydraConfig.get()
    out, argv = Path(settings.runtime.output_dir), list(sys.argv)
    words = list(settings.overrides.task)
    check_words(words)
    if dry is not None:
        final = finalise(with_choices(cfg, settings.runtime.choices))
        from redlab.runs.train import dry_run

        dry_run(final, dry)
        return None
    with taken(out):
        final = finalise(with_choices(cfg, settings.runtime.choices))
        # imports torch and lightning, which --help and a misspelt key need not wait for
        from redlab.runs.checkpoints import best_score
        from redlab.runs.train import train

        _note_what_was_typed(cfg, settings, out)
        _pin_children_to_this_job(settings, command)
        try:
            train(final, out)
        finally:
            sys.argv = argv
        return best_score(out)


def _note_what_was_typed(cfg: DictConfig, settings: Any, out: Path) -> None:
    """Writes ``.hydra``, as Hydra would do before it is known whose folder it is; a run keeps what began it."""
    if first_process() and not (out / "checkpoints").is_dir():
        (out / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(cfg, out / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create({"hydra": settings}), out / ".hydra" / "hydra.yaml")
        OmegaConf.save(settings.overrides.task, out / ".hydra" / "overrides.yaml")


def _pin_children_to_this_job(settings: Any, command: list[str]) -> None:
    """Makes Lightning's DDP children run this job: the same command and folder, not the whole sweep again."""
    config: Any = HydraConfig.instance().cfg
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.run.dir = settings.runtime.output_dir
    OmegaConf.set_readonly(config.hydra, True)
    words = [*settings.overrides.task, "hydra.mode=RUN"] if settings.mode == RunMode.MULTIRUN else sys.argv[1:]
    sys.argv = [*command, *words]


def _resume_arguments(argv: list[str]) -> list[str]:
    """``resume=<folder>`` stands for the folder's own overrides and the same output folder."""
    resume = [a for a in argv if a.startswith("resume=")]
    allow = [a for a in argv if a.startswith("allow=")]
    if not resume:
        if allow:
            raise ConfigError(f"{allow[0]} goes with resume=<folder>; what is typed needs no leave.")
        return argv
    folder = path_of(resume[-1].removeprefix("resume="))
    if folder.is_file():
        raise ConfigError(f"resume={folder} is a file; give the folder of the run: resume={folder.parent.parent}")
    stored = folder / ".hydra" / "overrides.yaml"
    if not stored.is_file():
        raise ConfigError(f"resume={folder}: no run in that folder (.hydra/overrides.yaml is missing).")
    from redlab.runs.trust import stored_words

    typed = {_key(word): word for word in argv if word not in resume and word not in allow}
    # without resolving, since a word may hold an interpolation
    held = OmegaConf.to_container(OmegaConf.load(stored), resolve=False)
    held = [word for word in held or () if not (isinstance(word, str) and _key(word) in typed)]
    held = stored_words(stored, held, [name for word in parse(allow) for name in _names(word.value())])
    words = {_key(word): word for word in held}
    words |= _absolute_paths(folder, words, typed) | typed
    return [*words.values(), f"hydra.run.dir={folder}"]


def _absolute_paths(folder: Path, words: Mapping[str, str], typed: Mapping[str, str]) -> dict[str, str]:
    """The paths of a run to be resumed, which may have been relative to another folder than this."""
    from redlab.runs.trust import stored_words

    config = folder / "config.yaml"
    # without resolving: a run writes values, and what a file asks the environment for is refused
    plain = OmegaConf.to_container(OmegaConf.load(config), resolve=False) if config.is_file() else {}
    keys = ["victim_root", "bank_root", *([] if "data" in typed else ["data.root"])]
    keys += [key for key in words if key.endswith(".weights") or key in ("bank", "init")]
    found = {key: value for key, value in leaves(plain) if key in keys and isinstance(value, str)}
    held = stored_words(config, [f"{key}={_quoted(value)}" for key, value in found.items()])
    return {_key(word): word for word in held}


def _with_paths(words: list[str]) -> list[str]:
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
    dry, argv = _DRY in argv, [word for word in argv if word != _DRY]
    for word in argv:
        key, _, text = word.partition("=")
        if key in ("run", "out") and text:
            own[key] = path_of(text)
        elif key in own:
            (own[key],) = (override.value() for override in parse([word]))
        else:
            overrides += [str(override.input_line) for override in parse([word])]
    if (own["run"] is None) == (own["study"] is None):
        raise ConfigError("Give run=<folder or checkpoint> or study=<paper>/<table>.")
    if own["run"] is not None:
        from redlab.runs.train import evaluate

        stamp = time.strftime("%Y-%m-%d/%H-%M-%S")
        for key in ("scale", "seeds"):
            if any(word.startswith(f"{key}=") for word in argv):
                raise ConfigError(f"{key}={own[key]} goes with study=..., not with run=...: leave it out.")
        usual = f"outputs/{stamp}_evaluate"
        try:
            out = own["out"] or Path(usual if dry else fresh(usual))
            evaluate(own["run"], overrides, out, _names(own["allow"]), dry=dry)
        finally:
            take_away_unused()
    else:
        seeds = own["seeds"] if isinstance(own["seeds"], list) else [own["seeds"]]
        if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
            raise ConfigError(f"seeds must be whole numbers from 0, such as seeds=[0,1,2], got {own['seeds']!r}.")
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"seeds={seeds} names a seed twice, which would count as two: give each once.")
        from redlab.runs.lab import studies

        studies(str(own["study"]), str(own["scale"]), seeds, overrides, own["out"] or Path("results"), dry=dry)


def _guarded(command: Callable[[list[str]], None], argv: Sequence[str]) -> int:
    debug = any(a.lower() == "debug=true" for a in argv)
    # a console that knows only ASCII is to stop nothing: it gets a ? for a bullet
    for stream in (sys.stdout, sys.stderr):
        if callable(set_up := getattr(stream, "reconfigure", None)):
            set_up(errors="replace")
    try:
        command(list(argv))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
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
        return 128 + int(getattr(error, "signum", 15))
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
