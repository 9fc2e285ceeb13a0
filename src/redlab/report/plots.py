"""Figures of papers: pure functions of numbers and pictures that return a matplotlib figure.

Lines and points differ in marker and dash as well as in colour, maps of numbers go from light to dark, so that nothing
is told by hue alone. Bars beside a paper's are ``redlab.report.comparison``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from redlab.report.canvas import COLUMNS, DPI, INK, MUTED, RULE, to_uint8
from redlab.report.canvas import panels as panels_in_a_row

MARKERS, DASHES = "osD^vPX*", ("-", "--", "-.", ":")


class Measured(Protocol):
    """A number over seeds, such as ``redlab.studies.numbers.Number``."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        ...

    @property
    def spread(self) -> float:
        """Largest minus smallest."""
        ...


def curve(
    panels: Mapping[str, Mapping[str, Mapping[Any, Measured]]],
    *,
    x_title: str = "",
    truth: Collection[str] = (),
    title: str = "",
) -> Figure:
    """Lines against a setting, one panel per measure; the spread over seeds is a band around its line.

    Args:
        panels: title of the panel -> name of the line -> place on the x axis -> number. Places that are text stand at
            equal distances.
        x_title: what the places are.
        truth: names of lines to be drawn black and dotted, as a reference.
        title: line above the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    lines = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    if not lines:
        raise ValueError("a figure of curves needs a line, got none")
    named = [str(x) for panel in panels.values() for points in panel.values() for x in points if isinstance(x, str)]
    places = len(dict.fromkeys(named)) * (0.25 + 0.06 * max(map(len, named), default=0))
    width = max(4.2, max(3.1, places) * len(panels) + 0.4)
    figure, all_axes = panels_in_a_row(len(panels), width=width, height=3.2)
    for axes, (name, panel) in zip(all_axes, panels.items(), strict=True):
        for line, points in panel.items():
            place = lines.index(line)
            numeric = all(isinstance(x, int | float) for x in points)
            at = [float(x) for x in points] if numeric else list(range(len(points)))
            means = np.array([n.mean for n in points.values()])
            half = np.array([n.spread for n in points.values()]) / 2
            style: dict[str, Any] = {"color": COLUMNS[place % len(COLUMNS)], "ls": DASHES[place % len(DASHES)]}
            if line in truth:
                style = {"color": INK, "ls": ":"}
            axes.plot(at, means, marker=MARKERS[place % len(MARKERS)], ms=4, lw=1.6, label=line, **style)
            if half.any():
                axes.fill_between(at, means - half, means + half, color=style["color"], alpha=0.18, lw=0)
            if not numeric:
                axes.set_xticks(at, [str(x) for x in points])
        axes.set_title(name, size=8.5, color=INK, loc="left")
        axes.set_xlabel(x_title)
    handles = {
        name: handle for axes in all_axes for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        [handles[name] for name in lines], lines, loc="outside lower left", frameon=False, fontsize=7.5, labelcolor=INK,
        ncols=max(1, min(len(lines), int(width / (0.6 + 0.07 * max(map(len, lines)))))),
    )  # fmt: skip
    _title(figure, title)
    return figure


def heat(
    panels: Mapping[str, Mapping[str, Mapping[str, Measured]]],
    *,
    low: float | None = None,
    high: float | None = None,
    title: str = "",
) -> Figure:
    """Maps of numbers, one panel after the other with one scale: the darker, the larger; each cell says its number.

    Args:
        panels: title of the panel -> row -> column -> number; a cell that is not there, or not finite, stays white.
        low: number of the lightest colour; None means the smallest.
        high: number of the darkest; None means the largest.
        title: line above the figure.

    Raises:
        ValueError: there is no finite number.
    """
    found = [n.mean for panel in panels.values() for row in panel.values() for n in row.values()]
    found = [value for value in found if math.isfinite(value)]
    if not found:
        raise ValueError("a heat map needs a finite number, got none")
    low, high = min(found) if low is None else low, max(found) if high is None else high
    sizes = [(len(panel), len({c for row in panel.values() for c in row})) for panel in panels.values()]
    width = sum(1.1 + 0.52 * across for _, across in sizes) + 0.6
    figure, all_axes = panels_in_a_row(len(panels), width=max(3.5, width), height=1.1 + 0.34 * max(h for h, _ in sizes))
    for axes, (name, panel) in zip(all_axes, panels.items(), strict=True):
        columns = list(dict.fromkeys(column for row in panel.values() for column in row))
        values = np.array([[row[c].mean if c in row else np.nan for c in columns] for row in panel.values()])
        axes.grid(visible=False)
        image = axes.imshow(values, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(panel)), list(panel))
        axes.set_title(name, size=8.5, color=INK, loc="left")
        for (y, x), value in np.ndenumerate(values):
            if math.isfinite(value):
                dark = value - low > 0.45 * (high - low)
                axes.text(x, y, f"{value:.3g}", size=6.5, color="white" if dark else INK, ha="center", va="center")
    bar: Any = figure.colorbar(image, ax=all_axes, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=6.5, colors=MUTED)
    bar.outline.set_visible(False)
    _title(figure, title)
    return figure


def profiles(panels: Mapping[str, Tensor], *, title: str = "") -> Figure:
    """Curves over the filters of a network, one panel after the other, each with its own y axis.

    Args:
        panels: title of the panel -> (K,) values.
        title: line above the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not panels:
        raise ValueError("a figure of profiles needs a curve, got none")
    figure, all_axes = panels_in_a_row(len(panels), width=2.3 * len(panels) + 0.6, height=2.4)
    for axes, (name, values) in zip(all_axes, panels.items(), strict=True):
        axes.plot(range(len(values)), values.numpy(), color=COLUMNS[0], lw=0.8)
        axes.fill_between(range(len(values)), 0, values.numpy(), color=COLUMNS[0], alpha=0.25, lw=0)
        axes.set_ylim(bottom=min(0.0, float(values.min())))
        axes.margins(x=0)
        axes.set_title(name, size=8.5, color=INK, loc="left")
        axes.set_xlabel("filter")
    all_axes[0].set_ylabel("saliency")
    _title(figure, title)
    return figure


def roc_figure(curves: Mapping[str, tuple[Tensor, Tensor]], *, title: str = "") -> Figure:
    """ROC curves with the area under each in the legend.

    Args:
        curves: name -> false and true alarm rates, both growing from 0 to 1, as ``redlab.metrics.roc`` gives them.
        title: line above the figure.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError("a figure of ROC curves needs one, got none")
    figure, (axes,) = panels_in_a_row(1, width=4.2, height=4.2)
    axes.plot([0, 1], [0, 1], color=RULE, lw=1)
    for place, (name, (false, true)) in enumerate(curves.items()):
        x, y = false.double().numpy(), true.double().numpy()
        area = float(((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())
        style: dict[str, Any] = {"color": COLUMNS[place % len(COLUMNS)], "ls": DASHES[place % len(DASHES)]}
        axes.plot(x, y, lw=1.6, label=f"{name} (area {area:.3f})", **style)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("false alarm rate")
    axes.set_ylabel("true alarm rate")
    axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="lower right")
    _title(figure, title)
    return figure


def scatter(
    points: Mapping[str, tuple[Measured, Measured]], *, x_title: str = "", y_title: str = "", title: str = ""
) -> Figure:
    """Named points; the spread over seeds is a cross.

    Args:
        points: name -> number on the x axis, number on the y axis.
        x_title: what stands on the x axis.
        y_title: what stands on the y axis.
        title: line above the figure.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("a scatter plot needs a point, got none")
    figure, (axes,) = panels_in_a_row(1, width=4.8, height=3.6)
    axes.grid(visible=True, color=RULE, lw=0.6)
    for place, (name, (x, y)) in enumerate(points.items()):
        axes.errorbar(
            x.mean, y.mean, xerr=x.spread / 2 or None, yerr=y.spread / 2 or None, fmt=MARKERS[place % len(MARKERS)],
            ms=6, color=COLUMNS[place % len(COLUMNS)], ecolor=MUTED, elinewidth=1,
        )  # fmt: skip
        axes.annotate(name, (x.mean, y.mean), (6, 4), textcoords="offset points", size=7.5, color=INK)
    axes.margins(x=0.18, y=0.14)
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    _title(figure, title)
    return figure


def distributions(panels: Mapping[str, Mapping[str, Tensor]], *, title: str = "") -> Figure:
    """How values are distributed, one panel after the other, each group a shape with its quartiles.

    Args:
        panels: title of the panel -> group -> (N,) values; those that are not finite are left out.
        title: line above the figure.

    Raises:
        ValueError: there is no panel, or a group without a finite value.
    """
    finite = {name: {of: v[v.isfinite()].numpy() for of, v in groups.items()} for name, groups in panels.items()}
    if not finite or any(not len(values) for groups in finite.values() for values in groups.values()):
        raise ValueError("a figure of distributions needs panels, and values in each group")
    figure, all_axes = panels_in_a_row(len(finite), width=2.1 * len(finite) + 0.5, height=2.8)
    for axes, (name, groups) in zip(all_axes, finite.items(), strict=True):
        places = range(len(groups))
        shapes: Any = axes.violinplot([*groups.values()], places, widths=0.85, showextrema=False)
        for place, body in enumerate(shapes["bodies"]):
            body.set(facecolor=COLUMNS[place % len(COLUMNS)], alpha=0.45, edgecolor="none")
        for place, values in zip(places, groups.values(), strict=True):
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            axes.plot([place, place], [low, high], color=INK, lw=3, solid_capstyle="butt")
            axes.plot(place, middle, marker="o", ms=4, color="white", mec=INK)
        axes.set_xticks(places, list(groups))
        axes.set_title(name, size=8.5, color=INK, loc="left")
    _title(figure, title)
    return figure


def embedding(panels: Mapping[str, tuple[Tensor, Tensor]], *, title: str = "") -> Figure:
    """Points in the plane, coloured and marked by class, one panel after the other.

    Args:
        panels: title of the panel -> (N, 2) points in [0, 1], (N,) classes.
        title: line above the figure.

    Raises:
        ValueError: there is no panel.
    """
    if not panels:
        raise ValueError("an embedding needs a panel, got none")
    figure, all_axes = panels_in_a_row(len(panels), width=2.6 * len(panels) + 0.3, height=3.0)
    for axes, (name, (points, label)) in zip(all_axes, panels.items(), strict=True):
        for kind in sorted(set(label.tolist())):
            mine = points[label == kind]
            axes.scatter(mine[:, 0], mine[:, 1], s=7, lw=0, color=f"C{kind % 10}", label=str(kind))
        axes.set(xticks=[0, 1], yticks=[0, 1])
        axes.set_title(name, size=8.5, color=INK, loc="left")
    handles = {text: h for axes in all_axes for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    ordered = sorted(handles, key=int)
    figure.legend(
        [handles[name] for name in ordered], ordered, loc="outside lower left", ncols=len(ordered), frameon=False,
        fontsize=7.5, labelcolor=INK,
    )  # fmt: skip
    _title(figure, title)
    return figure


def image_grid(columns: Mapping[str, Tensor], *, rows: Sequence[str] = (), title: str = "") -> Figure:
    """Pictures side by side, one example per row.

    Args:
        columns: head of the column -> (N, 3, H, W) or (N, 1, H, W) in [0, 1]; clipped outside. A column whose name
            ends in "(map)" is shown in colours, from dark (0) to light (1), and without that ending. Of "group: name"
            the group stands once above its columns.
        rows: N names.
        title: line above the grid.

    Raises:
        ValueError: no column, columns of different lengths, or not as many names as rows.
    """
    lengths = {name: len(pictures) for name, pictures in columns.items()}
    count = next(iter(lengths.values()), 0)
    if not count or len(set(lengths.values())) > 1 or len(rows) not in (0, count):
        raise ValueError(f"a grid needs columns of one length, and no or as many names, got {lengths} and {len(rows)}")
    side, gap = 0.95, 0.06
    margin, head = 0.95 if rows else 0.1, 0.5 + (0.3 if title else 0.0)
    size = (margin + len(columns) * (side + gap), head + count * (side + gap) + 0.05)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    if title:
        figure.text(0.1 / size[0], 1 - 0.19 / size[1], title, size=10, weight="bold", color=INK, va="center")
    heads = [name.removesuffix("(map)").strip().rpartition(": ") for name in columns]
    for place, (_, _, text) in enumerate(heads):
        x = (margin + place * (side + gap) + side / 2) / size[0]
        figure.text(x, 1 - (head - 0.1) / size[1], text, size=7.5, color=INK, ha="center", va="center")
    for group, places in itertools.groupby(range(len(heads)), key=lambda place: heads[place][0]):
        mine = list(places)
        x = (margin + (mine[0] + len(mine) / 2) * (side + gap) - gap / 2) / size[0]
        y = 1 - (head - 0.3) / size[1]
        figure.text(x, y, group, size=8.5, weight="bold", color=INK, ha="center", va="center")
    for row in range(count):
        bottom = size[1] - head - row * (side + gap) - side
        if rows:
            figure.text(0.1 / size[0], (bottom + side / 2) / size[1], rows[row], size=7.5, color=INK, va="center")
        for place, (name, pictures) in enumerate(columns.items()):
            left = margin + place * (side + gap)
            axes = figure.add_axes((left / size[0], bottom / size[1], side / size[0], side / size[1]))
            if name.endswith("(map)"):
                axes.imshow(pictures[row, 0].clamp(0, 1).numpy(), cmap="magma", vmin=0, vmax=1)
            else:
                axes.imshow(to_uint8(pictures[row]), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=RULE, linewidth=0.6)
    return figure


def _title(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, size=10, weight="bold", color=INK, x=0.01, ha="left")
