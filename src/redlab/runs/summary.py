"""What is told of a sweep: a line per job, a table over seeds, a figure, and what is left to do."""

from __future__ import annotations

import csv
import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from redlab.metrics import Samples
from redlab.report.canvas import COLUMNS, INK, RULE, legend, panels, plain, save_figure, wrap
from redlab.report.html import write_report
from redlab.report.measures import headline
from redlab.report.tables import Table, console, percent
from redlab.runs.console import console as terminal
from redlab.runs.sweeps import DONE, Asked, Job, differing, shortened

_SCORE = "validation score"
_DRAWN = 60  # lines of a figure that can be read


def summarise(folder: Path, jobs: Sequence[Job], question: Asked) -> Path:
    """Writes ``sweep.csv``, ``sweep.png`` and ``sweep.html`` into the folder of a sweep, and prints the table.

    Args:
        folder: of the sweep.
        jobs: those that have ended, one or more.
        question: what the sweep was asked.

    Returns:
        The path of ``sweep.html``.
    """
    # what lies in the folder of a job that did not end well is of a time before
    _write_csv(folder / "sweep.csv", jobs, [_numbers(folder / job.folder) if job.ended == DONE else {} for job in jobs])
    done = [job for job in jobs if job.ended == DONE]
    groups = _groups(folder, jobs)
    if question.total is None:  # a search: the best first
        groups = dict(sorted(groups.items(), key=lambda item: -statistics.fmean(item[1].get(_SCORE) or [-math.inf])))
    tables, figures = [], {}
    if groups:
        tables.append(_table(groups))
        terminal.print(console(tables[0]))
        if any(math.isfinite(value) for found in groups.values() for values in found.values() for value in values):
            figure = _figure(groups)
            save_figure(figure, folder / "sweep.png")
            figures["Of each setting the mean over its jobs, and each job as a small point."] = figure
    if unfinished := [job for job in jobs if job.ended != DONE]:
        rows = tuple((f"{job.number}", " ".join(job.words), job.ended, job.says) for job in unfinished)
        tables.append(Table("Jobs that did not end well", ("job", "words", "ended", "error"), rows))
    total = question.total or len(jobs)
    left = max(0, total - len(done))
    said = f"{len(done)} of {total} jobs are done."
    report = write_report(
        folder / "sweep.html",
        title=f"Sweep {folder.name}",
        summary=said,
        figures=figures,
        config={job.folder: " ".join(job.words) for job in jobs},
        tables=tables,
        links={
            job.folder: f"{job.folder}/report.html" for job in done if (folder / job.folder / "report.html").is_file()
        },
    )
    terminal.print(f"{said} Sweep: [bold]{report}[/], all numbers in {folder / 'sweep.csv'}", soft_wrap=True)
    if left:
        again = [f"resume={folder}"] if question.command == "train" else [*map(str, question.words), f"out={folder}"]
        words = shlex.join([question.command, "-m", *again])
        terminal.print(f"To go on with the other {left}: redlab {words}", soft_wrap=True, highlight=False, markup=False)
    return report


def _write_csv(path: Path, jobs: Sequence[Job], numbers: Sequence[Mapping[str, float]]) -> None:
    """A line per job: what differs, how it ended, its validation score and all of its numbers."""
    columns = differing(jobs)
    names = list(dict.fromkeys(name for each in numbers for name in each))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["job", "folder", *columns, "ended", "score", "minutes", "error", *names])
        for i, (job, found) in enumerate(zip(jobs, numbers, strict=True)):
            mine = [values[i] for values in columns.values()]
            known = [job.ended, "" if job.score is None else job.score, round(job.minutes, 2), job.says]
            writer.writerow([job.number, job.folder, *mine, *known, *(found.get(name, "") for name in names)])


Groups = Mapping[tuple[tuple[str, str], ...], Mapping[str, Sequence[float]]]
"""What differs besides the seed, key and value -> name of a number -> its values, one per job."""


def _groups(folder: Path, jobs: Sequence[Job]) -> Groups:
    columns = {key: values for key, values in differing(jobs).items() if key != "seed"}
    found: dict[tuple[tuple[str, str], ...], dict[str, list[float]]] = {}
    for i, job in enumerate(jobs):
        if job.ended == DONE:
            mine = found.setdefault(tuple((key, values[i]) for key, values in columns.items()), {})
            for name, value in _headline(folder / job.folder, job).items():
                mine.setdefault(name, []).append(value)
    return found


def _headline(run: Path, job: Job) -> dict[str, float]:
    found = {} if job.score is None else {_SCORE: job.score}
    if (run / "samples.npz").is_file():
        try:
            tiles = headline(Samples.load(run / "samples.npz"))
        except ValueError:
            return found
        found |= {tile.text: tile.value for tile in tiles if tile.value is not None}
    return found


def _numbers(run: Path) -> dict[str, float]:
    try:
        held = json.loads((run / "metrics.json").read_text())
        return {str(name): value for name, value in held.items() if isinstance(value, (int, float))}
    except (OSError, ValueError, AttributeError):
        return {}


def _names(groups: Groups) -> list[str]:
    return list(dict.fromkeys(name for found in groups.values() for name in found))


def _table(groups: Groups) -> Table:
    keys = list(dict.fromkeys(key for setting in groups for key, _ in setting)) or ["setting"]
    names = _names(groups)
    rows = []
    for setting, found in groups.items():
        jobs = max((len(values) for values in found.values()), default=1)
        what = [shortened(dict(setting).get(key, "all" if not setting else "")) for key in keys]
        rows.append((*what, f"{jobs}", *(_spread(found.get(name, ())) for name in names)))
    note = "mean and standard deviation over the jobs of a setting, most often its seeds"
    return Table("Sweep", (*keys, "jobs", *names), tuple(rows), (note,))


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    share = all(0 <= value <= 1 for value in values)
    mean, deviation = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    shown = percent(mean) if share else f"{mean:.4g}"
    if deviation is None or not math.isfinite(deviation):
        return shown
    return f"{shown} ± {100 * deviation:.1f}" if share else f"{shown} ± {deviation:.2g}"


def _figure(groups: Groups) -> Figure:
    """A line per setting: its numbers that are shares, the mean large and each job small."""
    shown = dict(list(groups.items())[:_DRAWN])
    shares = [
        name for name in _names(shown) if all(0 <= v <= 1 for found in shown.values() for v in found.get(name, ()))
    ][: len(COLUMNS)]
    figure, (axes,) = panels(1, width=7.2, height=1.3 + 0.28 * len(shares) / 2 + 0.34 * len(shown))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=RULE, lw=0.6)
    for place, name in enumerate(shares):
        for line, found in enumerate(shown.values()):
            values = [value for value in found.get(name, ()) if math.isfinite(value)]
            if values:
                axes.plot(values, [line] * len(values), ".", ms=4, color=COLUMNS[place], alpha=0.6)
                mean = statistics.fmean(values)
                axes.plot([mean], [line], "o", ms=7, color=COLUMNS[place], mec="white", label=f"_{name}")
        axes.plot([], [], "o", ms=7, color=COLUMNS[place], label=plain(wrap(name, 60)))
    labels = [_label(setting) for setting in shown]
    axes.set_yticks(range(len(labels)), [plain(wrap(label, 36)) for label in labels], color=INK)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(labels) - 0.5, -0.5))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    legend(figure, axes, 2, "")
    return figure


def _label(setting: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {shortened(value)}" for key, value in setting) or "all"
