"""One job, one folder: names that nobody has yet, a lock that ends with its process, and nothing left of a failure."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from redlab.runs.check import ConfigError

_LOCK = ".lock"
_NOTHING_YET = {
    _LOCK,
    ".hydra",
    "multirun.yaml",
    "sweep.yaml",
}  # what stands in the folder of a job, or a sweep, that has not begun
_made: set[Path] = set()  # made by this process, which may take them away again
_fresh: list[Path] = []  # of these, what nobody else can be using
_held: set[Path] = set()


def path_of(text: str) -> Path:
    """A path as it was typed: quotes around it do not belong to it, ``~`` is the home folder.

    >>> path_of("'my runs/a=1/'")
    PosixPath('my runs/a=1')
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].replace(f"\\{text[0]}", text[0])
    with suppress(RuntimeError):  # a user whom nobody knows
        return Path(text).expanduser()
    return Path(text)


def first_process() -> bool:
    """Whether this is the first process of its job, by the variables that Lightning, torchrun and SLURM set."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(key, "0") == "0" for key in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def fresh(name: str) -> str:
    """Makes a folder that was not there: ``name``, or ``name_2`` and so on where another job was faster.

    Other processes of a job than the first make none.
    """
    path = Path(name)
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}_{number}")
        if not first_process():
            break
        about_to_make(folder.parent)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir()
            _made.add(folder.resolve())
            _fresh.append(folder.resolve())
            break
    return str(folder)


def about_to_make(folder: Path) -> None:
    """Notes what of a path is not there yet, and so will have been made by this process."""
    _made.update(path.resolve() for path in (folder, *folder.parents) if not path.exists())


def take_away(folder: Path) -> None:
    """Removes a folder that this process has made, if there is nothing in it, and what it has made around it."""
    here = folder.resolve()
    if here not in _made or not here.is_dir() or not {path.name for path in here.iterdir()} <= _NOTHING_YET:
        return
    shutil.rmtree(here, ignore_errors=True)
    _made.discard(here)
    for parent in itertools.takewhile(_made.__contains__, here.parents):
        with suppress(OSError):  # another job has come in
            parent.rmdir()
            _made.discard(parent)


def take_away_unused() -> None:
    """Removes what `fresh` has made and nobody has used."""
    for folder in _fresh:
        take_away(folder)


@contextmanager
def taken(out: Path) -> Iterator[None]:
    """Holds a folder for one job; if the job fails before it has left anything there, the folder goes as it came.

    The lock is the operating system's: it ends with the process, however that ends. The other processes of a job share
    the folder of the first. May be nested.

    Raises:
        ConfigError: a job that is still running has the folder.
    """
    here = out.resolve()
    if here in _held or not first_process():
        yield
        return
    about_to_make(out)
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"{out} belongs to a job that is still running; wait until it ends, or give another folder."
        ) from error
    _held.add(here)
    try:
        yield
    except BaseException:
        take_away(out)
        raise
    finally:
        _held.discard(here)
        lock.release()
