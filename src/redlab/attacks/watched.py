"""How far long work has come: loops say where they are, and who listens hears of it. Nobody listens by default."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Level:
    """A loop that is at work.

    Attributes:
        name: of what it does.
        done: how many of its steps are done.
        total: how many there are.
    """

    name: str
    done: int
    total: int


Listener = Callable[[Sequence[Level]], object]
"""Is called with the loops that are at work, the outermost first; with none when the work is over."""

_levels: list[Level] = []
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener, every: float = 0.5) -> Iterator[None]:
    """Calls the listener while work goes on inside, at most once in ``every`` seconds and when it is over."""
    last = time.monotonic()

    def throttled(levels: Sequence[Level]) -> None:
        nonlocal last
        if not levels or time.monotonic() - last >= every:
            listener(levels)
            last = time.monotonic()

    _listeners.append(throttled)
    try:
        yield
    finally:
        _listeners.remove(throttled)


@contextmanager
def stage() -> Iterator[None]:
    """Takes away the loops that were begun inside, however they end."""
    depth = len(_levels)
    try:
        yield
    finally:
        del _levels[depth:]
        for listener in () if depth else _listeners:
            listener(_levels)


def begun(name: str, total: int) -> Callable[[int], None]:
    """A loop of ``total`` steps begins, which ends with the call of the attack: to be told how many steps are done."""
    level = Level(name, 0, total)
    _levels.append(level)

    def at(done: int) -> None:
        level.done = done
        for listener in _listeners:
            listener(_levels)

    return at


def watched(steps: Sequence[T], name: str | Callable[[T], str]) -> Iterator[T]:
    """The steps of a loop, one after the other.

    >>> seen = []
    >>> with listening(lambda levels: seen.append(where(levels)), every=0):
    ...     for member in watched(["apgd", "square"], str):
    ...         for step in watched(range(2), "step"):
    ...             pass
    >>> seen[1:3]
    ['apgd 1/2 · step 1/2', 'apgd 1/2 · step 2/2']

    Args:
        steps: what the loop goes over.
        name: what each step does.
    """
    with stage():
        level = Level("", 0, len(steps))
        _levels.append(level)
        for level.done, step in enumerate(steps):
            level.name = name if isinstance(name, str) else name(step)
            for listener in _listeners:
                listener(_levels)
            yield step


def where(levels: Sequence[Level]) -> str:
    """In words; a loop of one step is told by its name alone."""
    return " · ".join(
        f"{level.name} {min(level.done + 1, level.total)}/{level.total}" if level.total > 1 else level.name
        for level in levels
    )


def share(levels: Sequence[Level]) -> float:
    """How much of the outermost loop is done, in 0..1, if all steps of a loop take equally long.

    >>> share([Level("member", 1, 2), Level("step", 5, 10)])
    0.75
    """
    done, width = 0.0, 1.0
    for level in levels:
        done += width * level.done / max(level.total, 1)
        width /= max(level.total, 1)
    return min(done, 1.0)
