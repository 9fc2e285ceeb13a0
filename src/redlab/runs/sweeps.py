"""Sweeps: a folder per job, named after what differs; what became of each; one table of all; going on with the rest."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from redlab.runs.blame import sentence
from redlab.runs.check import ConfigError
from redlab.runs.folders import first_process

DONE, FAILED, STOPPED = "done", "failed", "stopped"
ASKED = "sweep.yaml"
_JOBS = ".jobs"
_LONGEST = 100  # characters of a folder's name
_KEPT = re.compile(r"hydra\.(sweeper\.(n_trials|n_jobs|direction|sampler\.seed)|launcher\.n_jobs)=\w+")
begun: list[Path] = []
"""The folders of the sweeps that this process runs."""


@dataclass(frozen=True)
class Job:
    """What became of a job.

    Attributes:
        number: its place in the sweep.
        folder: its folder in that of the sweep.
        words: its overrides.
        ended: "done", "failed" or "stopped".
        says: the error in one sentence.
        score: what the best checkpoint scored on validation images; None where nothing was validated.
        minutes: how long it took, all times together.
    """

    number: int
    folder: str
    words: tuple[str, ...]
    ended: str
    says: str = ""
    score: float | None = None
    minutes: float = 0.0


class BeginSweep(Callback):
    """Hydra calls it once per sweep: what was asked is written, so that a sweep that was cut off can go on."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes ``sweep.yaml``, also of a sweep that goes on, which may have been given other words."""
        words = list(config.hydra.overrides.task)
        grid = str(config.hydra.sweeper._target_).endswith("BasicSweeper")
        total = len(grid_of(words)) if grid else None
        kept = [word for word in config.hydra.overrides.hydra if _KEPT.fullmatch(word)]
        begin(Path(str(config.hydra.sweep.dir)), [*words, *kept], total=total)


def begin(folder: Path, words: Sequence[str], *, total: int | None, command: str = "train") -> None:
    """Notes what a sweep is asked, and that this process runs it.

    Args:
        folder: of the sweep.
        words: what was typed.
        total: how many jobs there will be; None where a search decides.
        command: of redlab.
    """
    begun.append(folder)
    if first_process():
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create({"command": command, "words": list(words), "jobs": total}), folder / ASKED)
        for job in jobs_of(folder):
            if total is not None and job.number >= total:  # of a larger sweep that was here before
                (folder / _JOBS / f"{job.number}.json").unlink()


# ---- what is asked --------------------------------------------------------------------------------------------------


def _parsed(words: Sequence[str]) -> list[Override]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return list(OverridesParser.create().parse_overrides(list(words)))


def grid_of(words: Sequence[str]) -> list[list[str]]:
    """The words of every job of a grid: each combination of the values, the last word running fastest.

    >>> grid_of(["a=1,2", "b=x", "c=3,4"])
    [['a=1', 'b=x', 'c=3'], ['a=1', 'b=x', 'c=4'], ['a=2', 'b=x', 'c=3'], ['a=2', 'b=x', 'c=4']]
    """
    return [list(job) for job in itertools.product(*(values_of(word) for word in words))]


def values_of(word: Any) -> list[Any]:
    """A word for each value of a word of a sweep; of an interval one, with its lower end.

    >>> values_of("seed=0,1"), values_of("lr=interval(0.1,1)"), values_of("seed=3")
    (['seed=0', 'seed=1'], ['lr=0.1'], ['seed=3'])
    """
    if not isinstance(word, str) or word.startswith("-"):  # no word at all: who checks it says so
        return [word]
    (override,), key = _parsed([word]), word.partition("=")[0]
    if override.is_discrete_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.value().start}"] if override.is_interval_sweep() else [word]  # type: ignore[union-attr]


def constant(words: Sequence[str]) -> list[str]:
    """The keys that have one value in all jobs.

    >>> constant(["seed=0,1", "data=digits", "+x=choice(1,2)", "lr=1", "lr=1,2"])
    ['data']
    """
    last = {override.key_or_group: override for override in _parsed(words)}  # of a key twice, the last one counts
    return [key for key, override in last.items() if not override.is_sweep_override()]


def job_name(number: int, words: Sequence[str], same: Sequence[str] = ()) -> str:
    """A folder's name that says what differs, of characters that no shell, path or override minds.

    >>> job_name(3, ["method.optimizer.lr=1e-3", "seed=1", "victim=[lenet,vgg11]", "data=digits"], ["data"])
    '3_lr-1e-3_seed-1_victim-lenet+vgg11'
    >>> job_name(0, ["a.lr=0.0012520653814999472", "b.lr=0.5", "eps=8/255", "run=outputs/first"])
    '0_a.lr-0.001252_b.lr-0.5_eps-8-255_run-first'

    Args:
        number: place of the job in the sweep.
        words: its overrides.
        same: keys that have one value in all jobs.
    """
    pairs = [word.lstrip("+~").split("=", 1) for word in words]
    differ = [(key, value) for key, *rest in pairs if key not in same for value in rest]
    last = [key.rpartition(".")[2] for key, _ in differ]
    parts = [str(number)]
    for (key, value), short in zip(differ, last, strict=True):
        value = value if re.fullmatch(r"[\d.]+/[\d.]+", value) else value.rpartition("/")[2]  # of a path, its end
        value = re.sub(r"[\[\]{}'\"\s]", "", shortened(value)).replace(",", "+")
        parts.append(re.sub(r"[^\w.+-]", "-", f"{short if last.count(short) == 1 else key}-{value}"))
    return "_".join(parts)[:_LONGEST].rstrip("-.")


def shortened(value: str) -> str:
    """A value without the digits of a number that nobody reads; others stay as they are."""
    try:
        return f"{float(value):.4g}" if len(value) > 8 else value
    except ValueError:
        return value


def _job_name(*, _root_: DictConfig) -> str:
    hydra = _root_.hydra
    return job_name(hydra.job.num, hydra.overrides.task, hydra.job.config.override_dirname.exclude_keys)


# `${job_name:}` in conf/train.yaml
OmegaConf.register_new_resolver("job_name", _job_name, replace=True)


class Asked(NamedTuple):
    """What a sweep was asked.

    Attributes:
        words: what was typed. They are not checked, but for those of Hydra: the length of a search and its like, and
            nothing that is called.
        total: how many jobs they make; None where a search decides.
        command: of redlab.
    """

    words: list[Any]
    total: int | None
    command: str


def asked(folder: Path) -> Asked:
    """What a sweep was asked, out of its folder.

    Raises:
        ConfigError: its file cannot be read, or says of Hydra what it may not.
    """
    path = folder / ASKED
    try:
        # without resolving, since a word may hold an interpolation
        held: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        words, total, command = (held[key] for key in ("words", "jobs", "command"))
        theirs = [word for word in words if isinstance(word, str) and "hydra" in word.partition("=")[0]]
    except Exception as error:
        raise ConfigError(f"{path} cannot be read; give the words of the sweep again.") from error
    for word in theirs:
        if not _KEPT.fullmatch(word):
            raise ConfigError(f"{path} holds {word!r}, which a file may not say; type it again if you want it.")
    return Asked(list(words), total, str(command))


# ---- what became of it ----------------------------------------------------------------------------------------------


@contextmanager
def noted(sweep: Path, job: Job) -> Iterator[list[float | None]]:
    """Writes what becomes of a job into the folder of the sweep; the block appends its score to what it is given.

    Written by the process of the job itself, which may be on another machine than the sweep.
    """
    started, score = time.time(), list[float | None]()
    if first_process():
        total = asked(sweep).total
        print(f"Job {job.number + 1}{f' of {total}' if total else ''}: {job.folder.partition('_')[2]}", flush=True)
    before = sum(known.minutes for known in jobs_of(sweep) if known.folder == job.folder)

    def write(ended: str, says: str = "") -> None:
        found = replace(job, ended=ended, says=says, score=next(iter(score), None))
        _write(sweep, replace(found, minutes=before + (time.time() - started) / 60))

    try:
        yield score
    except Exception as error:
        write(STOPPED if type(error).__name__ == "Stopped" else FAILED, sentence(error))
        raise
    except BaseException:  # Ctrl-C a second time
        write(STOPPED)
        raise
    write(DONE)


def _write(sweep: Path, job: Job) -> None:
    if first_process():
        path = sweep / _JOBS / f"{job.number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(job), indent=1))
        os.replace(part, path)


def jobs_of(sweep: Path) -> list[Job]:
    """The jobs that have ended, in their order; a record that cannot be read is left out."""
    found = []
    for path in sorted((sweep / _JOBS).glob("*.json")):
        try:
            held = json.loads(path.read_text())
            found.append(Job(**{**held, "words": tuple(held["words"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return sorted(found, key=lambda job: job.number)


def differing(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """The overrides that are not the same in all jobs: key -> value per job, "" where a job has none.

    >>> differing([Job(0, "0", ("a=1", "b=2"), DONE), Job(1, "1", ("a=1", "b=3"), DONE)])
    {'b': ['2', '3']}
    """
    pairs = [dict(word.lstrip("+").partition("=")[::2] for word in job.words) for job in jobs]
    keys = dict.fromkeys(key for each in pairs for key in each)
    columns = {key: [each.get(key, "") for each in pairs] for key in keys}
    return {key: values for key, values in columns.items() if len(set(values)) > 1}
