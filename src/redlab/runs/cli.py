"""The commands. Errors end in one sentence and exit code 1; ``debug=true`` shows the traceback."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from redlab.runs import ask
from redlab.runs.blame import sentence
from redlab.runs.check import ConfigError
from redlab.runs.config import check_words, conf_dir, explain, finalise, parse, with_choices
from redlab.runs.folders import first_process, fresh, path_of, take_away_unused, taken
from redlab.runs.sweeps import DONE, FAILED, Job, asked, begin, begun, constant, grid_of, job_name, jobs_of, noted
from redlab.runs.words import (
    MANY,
    folder_of,
    into,
    names_in,
    plain_word,
    resume_arguments,
    told_what_differs,
    with_paths,
)
from redlab.spelling import suggest

_EVALUATE_HELP = """\
python evaluate.py run=<folder or checkpoint> [override ...]
python evaluate.py study=<paper>/<table> [scale=smoke|small|paper] [seeds=[0,1]] [override ...]

Overrides are those of train.py: mix=... data=... victim=... take another attack mix, data set or victim.
-m run=<folder>,<folder> mix=a,b tests each combination, and sums them up in one table.
Further keys: out=<folder> (where the numbers go), debug=true (full tracebacks),
allow=[my_module.MyMethod] (names that the checkpoint may use besides those of redlab).
trust=full attacks the defence of a run anew, to see whether its numbers can be believed (minutes).
--dry-run checks all that can be checked, says what would be run, and stops.
"""


_HELP = """\
redlab train [override ...]      trains a method, tests it, and writes numbers and a report into one folder
redlab evaluate [override ...]   tests a run again, or makes a table or figure of a paper
redlab diagnose <images> run=... says of images without labels which were attacked, by what, and what they were before
redlab export run=... to=onnx    writes a program for the method that runs without redlab (to=onnx|torch|pretrained)

redlab <command> --help says more. In a checkout, train.py and evaluate.py are the same commands.
"""


def main() -> int:
    """``redlab train``, ``evaluate``, ``diagnose`` and ``export``, also as ``python -m redlab``."""
    commands = {"train": train, "evaluate": evaluate, "diagnose": diagnose, "export": export}
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


def diagnose(skip: int = 0) -> int:
    """``redlab diagnose``: what runs say of images without labels; ``skip`` as for `train`."""
    return _guarded(ask.diagnose, sys.argv[1 + skip :])


def export(skip: int = 0) -> int:
    """``redlab export``: a run as a program that needs no redlab; ``skip`` as for `train`."""
    return _guarded(ask.export, sys.argv[1 + skip :])


def _train(argv: list[str], skip: int) -> None:
    dry, argv = _DRY in argv, [plain_word(word) for word in argv if word != _DRY]
    check_words(argv)
    before = list(sys.argv)
    command = Command((os.path.abspath(before[0]), *before[1 : 1 + skip]), getattr(_main_spec(), "name", None))
    words = with_paths(resume_arguments(argv))
    sys.argv = [before[0], *told_what_differs(words)]
    # Hydra then raises instead of printing its own report, and _guarded says it in one sentence
    os.environ["HYDRA_FULL_ERROR"] = "1"
    failures: list[Exception] = []

    def job(cfg: DictConfig) -> float | None:
        # an exception that reached Hydra would be reported twice, and would not stop a sweep that was told to stop
        settings = HydraConfig.get()
        many = settings.mode == RunMode.MULTIRUN
        try:
            if dry or not many:
                return _job(cfg, command, folder_of(words) if dry else None)
            folder, task = Path(settings.runtime.output_dir), tuple(settings.overrides.task)
            with noted(Path(settings.sweep.dir), Job(settings.job.num, folder.name, task, FAILED)) as score:
                score.append(_job(cfg, command))
            return score[0]
        except Exception as error:
            if many and type(error).__name__ == "Stopped":
                raise SystemExit(_report(error)) from error
            if many:
                where = f"the job {' '.join(settings.overrides.task)}" if dry else settings.runtime.output_dir
                print(f"error: {where}: {sentence(error)}", file=sys.stderr)
                error = ConfigError("A job of the sweep failed, see above.")
            failures.append(error)
            return None

    try:
        with ExitStack() as stack:
            if dry:  # Hydra makes folders before it calls the job
                nowhere = stack.enter_context(tempfile.TemporaryDirectory())
                sys.argv[1:] = into(nowhere, sys.argv[1:])
            else:
                stack.enter_context(_summed_up())
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()
    finally:
        sys.argv = before
        take_away_unused()
    if failures:
        raise failures[0]


_DRY = "--dry-run"


@contextmanager
def _summed_up() -> Iterator[None]:
    """However the sweeps that begin inside end: their jobs stand in a table, and what is left is said.

    Raises:
        ConfigError: a job failed, and nothing else went wrong.
    """
    begun.clear()
    try:
        yield
    except BaseException:
        _sum_up()
        raise
    if failed := _sum_up():
        raise ConfigError(f"{failed} of the jobs failed, see above.")


def _sum_up() -> int:
    failed = 0
    for folder in begun:
        if first_process() and (jobs := jobs_of(folder)):
            from redlab.runs.summary import summarise  # imports torch and matplotlib

            summarise(folder, jobs, asked(folder))
            failed += sum(job.ended == FAILED for job in jobs)
    return failed


class Command(NamedTuple):
    """How this program was started, which a job in a process of a launcher cannot see.

    Attributes:
        words: the program, and what chooses the command.
        module: the module that was run by ``python -m``, if it was.
    """

    words: tuple[str, ...]
    module: str | None


def _main_spec() -> Any:
    return getattr(sys.modules["__main__"], "__spec__", None)


def _job(cfg: DictConfig, command: Command, dry: Path | None = None) -> float | None:
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


def _pin_children_to_this_job(settings: Any, command: Command) -> None:
    """Makes Lightning's DDP children run this job: the same command and folder, not the whole sweep again.

    Nor the worker of a launcher: Lightning starts what it takes for the main program, by ``__main__`` and ``sys.argv``.
    """
    config: Any = HydraConfig.instance().cfg
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.run.dir = settings.runtime.output_dir
    OmegaConf.set_readonly(config.hydra, True)
    words = [*settings.overrides.task, "hydra.mode=RUN"] if settings.mode == RunMode.MULTIRUN else sys.argv[1:]
    sys.argv = [*command.words, *words]
    if getattr(_main_spec(), "name", None) != command.module:
        sys.modules["__main__"].__spec__ = importlib.util.find_spec(command.module) if command.module else None


def _evaluate(argv: list[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(_EVALUATE_HELP)
    elif set(MANY) & set(argv):
        _evaluations([word for word in argv if word not in MANY])
    else:
        _evaluation(argv)


def _evaluations(words: list[str]) -> None:
    """``-m``: an evaluation for each combination of values, and a table of all."""
    if not any(word.startswith("run=") for word in words) or _DRY in words:
        raise ConfigError("-m wants run=..., and no --dry-run: python evaluate.py -m run=<folder>,<folder> mix=...")
    shared = [word for word in words if word.startswith(("out=", "debug="))]
    varied = [word for word in words if word not in shared]
    try:
        grid, same = grid_of(varied), constant(varied)
    except HydraException as error:
        raise ConfigError(explain(error)) from error
    typed = [path_of(word.removeprefix("out=")) for word in shared if word.startswith("out=")]
    sweep = typed[-1] if typed else Path(fresh(f"outputs/{time.strftime('%Y-%m-%d/%H-%M-%S')}_evaluations"))
    done = {job.words for job in jobs_of(sweep) if job.ended == DONE}
    before = list(sys.argv)
    command = before[: len(before) - len(words) - 1]
    with taken(sweep), _summed_up():
        begin(sweep, varied, total=len(grid), command="evaluate")
        for number, each in enumerate(grid):
            job = Job(number, job_name(number, each, same), tuple(each), FAILED)
            if job.words in done:
                continue
            mine = [*each, f"out={sweep / job.folder}"]
            sys.argv = [*command, *mine]  # what Lightning starts the other ranks with
            try:
                with noted(sweep, job):
                    _evaluation(mine)
            except Exception as error:
                if type(error).__name__ == "Stopped":
                    raise
                print(f"error: {sweep / job.folder}: {sentence(error)}", file=sys.stderr)
            finally:
                sys.argv = before


def _evaluation(argv: list[str]) -> None:
    own: dict[str, Any] = {"run": None, "out": None, "allow": [], "debug": False}
    own |= {"study": None, "scale": "small", "seeds": [0], "trust": None}
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

        if own["trust"] not in (None, "full"):
            raise ConfigError(f"trust={own['trust']} must be full, or left out.")
        for key in ("scale", "seeds"):
            if any(word.startswith(f"{key}=") for word in argv):
                raise ConfigError(f"{key}={own[key]} goes with study=..., not with run=...: leave it out.")
        usual = f"outputs/{time.strftime('%Y-%m-%d/%H-%M-%S')}_evaluate"
        try:
            out = own["out"] or Path(usual if dry else fresh(usual))
            evaluate(own["run"], overrides, out, names_in(own["allow"]), dry=dry, trust=own["trust"] == "full")
        finally:
            take_away_unused()
    else:
        if own["trust"] is not None:
            raise ConfigError(f"trust={own['trust']} goes with run=..., not with study=...: leave it out.")
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
    print(f"error: {sentence(error, argv)}", file=sys.stderr)
    return 1
