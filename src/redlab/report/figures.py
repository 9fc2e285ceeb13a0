"""Charts of numbers and of rows: pure functions that return a matplotlib figure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from redlab.metrics import Samples, auroc, confusion, roc, score_names
from redlab.report.canvas import COLUMNS, INK, RULE, SERIES, legend, panels, plain, wrap
from redlab.report.measures import ALL, EVERY, NONE, SHARES, accuracies, against_clean, attackers

SHARE_COLOURS = dict(zip([*SHARES.values()], (SERIES[0], SERIES[1], SERIES[2], SERIES[4]), strict=True))
"""One colour per kind of right answer, in bars and in headlines."""


def accuracy_bars(rows: Samples, title: str = "") -> Figure:
    """Right answers per attacker: the victim's on clean and attacked images, and those of the defence.

    Args:
        rows: of a test or an evaluation.
        title: line above the bars.

    Raises:
        ValueError: the rows have no right answers.
    """
    series = accuracies(rows) if len(rows) else {}
    if not series:
        raise ValueError(f"no right answers to draw in {rows}")
    lines = list(dict.fromkeys(line for values in series.values() for line in values))
    lines.sort(key=lambda line: line != EVERY)
    figure, (axes,) = panels(1, width=max(5.6, 1.4 + 1.35 * len(lines)), height=3.3)
    wide = 0.84 / len(series)
    for place, (name, values) in enumerate(series.items()):
        shift = (place - (len(series) - 1) / 2) * wide
        at = {i + (0 if line == EVERY else shift): values[line] for i, line in enumerate(lines) if line in values}
        bars = axes.bar(list(at), list(at.values()), wide * 0.92, color=SHARE_COLOURS[name], label=name)
        if len(lines) <= 10:
            axes.bar_label(bars, [f"{100 * v:.0f}" for v in at.values()], size=7, color=INK, padding=1.5)
    axes.set_xticks(range(len(lines)), [wrap(line, 16) for line in lines])
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("accuracy")
    legend(figure, axes, len(series), title)
    return figure


def roc_curves(rows: Samples, title: str = "") -> Figure:
    """True against false alarms, a panel per score of a detector and a curve per attacker.

    Args:
        rows: of a detector, with clean ones among them.
        title: line above the panels.

    Raises:
        ValueError: there is no score, or no attacked or no clean row.
    """
    scores = score_names(rows)
    curves = {
        line: against_clean(group, rows)
        for line, group in attackers(rows)
        if line != ALL and bool((group["attacked"] > 0).any())
    }
    if not scores or not curves or not len(rows.clean):
        raise ValueError(f"a ROC curve needs scores of attacked and of clean images, got {rows}")
    figure, all_axes = panels(len(scores), width=3.6 * len(scores) + 0.3, height=3.7)
    for axes, score in zip(all_axes, scores, strict=True):
        axes.plot([0, 1], [0, 1], color=RULE, lw=1, zorder=1)
        for place, (line, both) in enumerate(curves.items()):
            false, true = roc(both, score)
            style = "--" if line.endswith("(adaptive)") else "-"
            name = f"{line}, {auroc(both, score):.3f}"
            axes.plot(false, true, style, lw=1.6, color=SERIES[place % len(SERIES)], label=plain(name))
        axes.set_title(plain(f"score {score}"), size=9, color=INK, loc="left")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false alarms", ylabel="alarms on attacked images")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(frameon=False, fontsize=7, labelcolor=INK, loc="lower right", title="AUROC", title_fontsize=7)
    if title:
        figure.suptitle(title, size=10, weight="bold", color=INK, x=0.01, ha="left")
    return figure


def confusion_map(rows: Samples, title: str = "") -> Figure:
    """Which attack (rows) an identifier took for which (columns), in per cent of the images of the attack.

    Args:
        rows: of an identifier.
        title: line above the map.

    Raises:
        ValueError: the rows are not those of an identifier.
    """
    counts, attacks, answers = confusion(rows)
    shown = (counts / counts.sum(1, keepdim=True)).numpy()
    names = [NONE if name == "clean" else name for name in answers]
    left = [NONE if name == "clean" else name if name in answers else f"{name} (unseen)" for name in attacks]
    size = (2.1 + 0.62 * len(answers), 1.5 + 0.42 * len(attacks))
    figure, (axes,) = panels(1, width=max(3.2, size[0]), height=size[1])
    axes.grid(visible=False)
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in itertools.product(range(len(attacks)), range(len(answers))):
        colour = "white" if shown[i, j] > 0.6 else INK
        axes.text(j, i, f"{100 * shown[i, j]:.0f}", size=7.5, color=colour, ha="center", va="center")
    axes.set_xticks(range(len(names)), [plain(wrap(name, 10)) for name in names])
    axes.set_yticks(range(len(left)), [plain(name) for name in left])
    axes.set(xlabel="taken for (% of the row)", ylabel="attack")
    if title:
        figure.suptitle(title, size=10, weight="bold", color=INK, x=0.01, ha="left")
    return figure


def training_curves(rows: Iterable[Mapping[str, Any]], title: str = "") -> Figure:
    """What was logged during training against the step: accuracies in one panel, losses and the rest in another.

    Args:
        rows: rows of the CSV logger (``csv.DictReader`` or the like); empty cells are skipped. Numbers per attack
            (``val/d/pgd``), learning rates and test numbers are left out.
        title: line above the panels.

    Raises:
        ValueError: the rows hold nothing to draw.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith(("train/", "val/")) and key.count("/") == 1 and value not in ("", None):
                curves.setdefault(key, []).append((float(row["step"]), float(value)))
    shares = {k: v for k, v in curves.items() if _is_share(k.split("/")[1])}
    if shares.get("val/defended_accuracy") == shares.get("val/restored_accuracy"):
        shares.pop("val/defended_accuracy", None)
    losses = {k: v for k, v in curves.items() if "loss" in k}
    drawn = [(name, found) for name, found in (("accuracy", shares), ("loss", losses)) if found]
    if not drawn:
        raise ValueError(f"no losses or accuracies to draw among {sorted(curves)}")
    figure, all_axes = panels(len(drawn), width=3.9 * len(drawn) + 0.4, height=3.0)
    for axes, (name, found) in zip(all_axes, drawn, strict=True):
        free = itertools.cycle((*SERIES[3:4], *SERIES[5:]))
        for key, points in found.items():
            xs, ys = zip(*points, strict=True)
            colour = SHARE_COLOURS.get(key.split("/")[1].removesuffix("_accuracy")) or next(free)
            style: dict[str, Any] = {"lw": 1.6, "color": colour, "label": key}
            axes.plot(xs, ys, marker="o" if len(xs) < 20 else None, ms=3, **style)
        axes.set_title(name, size=9, color=INK, loc="left")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if name == "accuracy":
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(frameon=False, fontsize=7, labelcolor=INK)
    if title:
        figure.suptitle(title, size=10, weight="bold", color=INK, x=0.01, ha="left")
    return figure


def _is_share(measure: str) -> bool:
    """Whether a number is one of the shares in 0..1 that are told of training.

    The worst attacker is none of them: in validation, an image meets one attack.
    """
    told = "accuracy" in measure or measure.startswith(("pa_", "auroc")) or measure == "identified"
    return told and not measure.startswith("worst")


def comparison(
    ours: Mapping[str, Mapping[str, tuple[float, float]]],
    paper: Mapping[str, Mapping[str, float]],
    *,
    ours_title: str,
    paper_title: str,
    title: str = "",
) -> Figure:
    """Our numbers above the paper's, one panel per measure, each row with its own axis.

    The two rows never share an axis, because numbers of different data sets cannot be compared in absolute value;
    what can be compared is the order of the columns.

    Args:
        ours: measure -> column -> (mean, spread over seeds); the spread is drawn as an error bar.
        paper: measure -> column -> the printed number, for the same measures.
        ours_title: what ours was measured on.
        paper_title: what the paper's was measured on.
        title: line above the figure.
    """
    # names of columns stand side by side
    wide = max(1.75, *(0.35 + 0.08 * sum(map(len, values)) for values in ours.values()))
    width = wide * len(ours) + 0.5
    figure, axes = panels(len(ours), rows=2, width=width, height=4.2)
    for place, (measure, values) in enumerate(ours.items()):
        drawn = [
            (axes[place], {column: mean for column, (mean, _) in values.items()}),
            (axes[place + len(ours)], paper[measure]),
        ]
        spreads = [spread / 2 for _, spread in values.values()]
        for panel, (which, numbers) in enumerate(drawn):
            colours = [COLUMNS[i % len(COLUMNS)] for i in range(len(numbers))]
            # labels then stand above the error bars
            error = spreads if panel == 0 and any(spreads) else None
            style: dict[str, Any] = {"alpha": 1 - 0.4 * panel, "color": colours, "ecolor": INK, "capsize": 2}
            bars = which.bar(range(len(numbers)), list(numbers.values()), 0.7, yerr=error, error_kw={"lw": 1}, **style)
            which.bar_label(bars, [f"{v:#.3g}".rstrip(".") for v in numbers.values()], size=7, color=INK, padding=2)
            which.set_xticks(range(len(numbers)), list(numbers), size=7)
            which.margins(y=0.16)
            which.yaxis.set_major_locator(MaxNLocator(4))
        axes[place].set_title(measure, size=8, color=INK, loc="left")
    axes[0].set_ylabel(fill(ours_title, 28), size=7.5)
    axes[len(ours)].set_ylabel(fill(paper_title, 28), size=7.5)
    if title:
        figure.suptitle(fill(title, int(11 * width)), size=10, weight="bold", color=INK, x=0.01, ha="left")
    return figure
