"""Pictures of a run: pure functions of tensors and numbers that return a matplotlib figure.

The figures are drawn by the object API on the Agg canvas: no window, no global state, safe in any thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from redlab.report.tables import ACCURACIES, attack_title, per_attack

Pixels = NDArray[np.uint8]

DPI = 150
INK, MUTED, RULE = "#1f2933", "#697586", "#d5dae1"
RIGHT, WRONG = "#1a7f4b", "#c0392b"
SERIES = ("#5b7fa6", "#c65b4b", "#3b8f6b", "#d9a441", "#7d6ba6", "#4aa3b5", "#9c6b4a", "#7f8c8d")
COLUMNS = (SERIES[0], SERIES[3], SERIES[2], *SERIES[4:])  # without the red that means "attacked"


def to_uint8(image: Tensor) -> Pixels:
    """One image (C, H, W) with values in [0, 1] -> (H, W, 3) uint8; values outside are clipped.

    Loggers get this form because some of them cast floats to uint8 without scaling, which makes them black.

    Raises:
        ValueError: the image is not (1, H, W) or (3, H, W).
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image to show must be (1, H, W) or (3, H, W), got {tuple(image.shape)}")
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy())


def figure_pixels(figure: Figure) -> Pixels:
    """The drawn figure as (H, W, 3) uint8."""
    canvas: Any = FigureCanvasAgg(figure)  # Any: matplotlib does not type the methods of its canvas
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3].copy()


def residual(adv: Tensor, restored: Tensor, limit: float) -> Tensor:
    """The estimated perturbation ``adv - restored``, centred at grey: -limit is black, 0 grey, +limit white.

    Args:
        adv: (..., C, H, W) attacked images.
        restored: (..., C, H, W) estimates of the clean images.
        limit: the perturbation that is shown as white, larger than 0.

    Returns:
        (..., C, H, W) in [0, 1].
    """
    return (0.5 + (adv - restored) / (2 * limit)).clamp(0, 1)


def residual_limit(adv: Tensor, restored: Tensor) -> float:
    """The smallest whole number of grey levels, over 255, that covers 99.5 % of the estimated perturbations."""
    size = (adv - restored).detach().abs().flatten().double().cpu().numpy()
    return max(1, math.ceil(float(np.quantile(size, 0.995)) * 255 - 1e-3)) / 255


def restoration_grid(
    clean: Tensor,
    adv: Tensor,
    restored: Tensor,
    *,
    labels: Tensor | None = None,
    predictions: tuple[Tensor, Tensor, Tensor] | None = None,
    attacks: Sequence[str] | None = None,
    victims: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Clean, attacked and restored image and residual (the estimated perturbation), one example per row.

    Args:
        clean: (N, C, H, W) in [0, 1], C 1 or 3.
        adv: (N, C, H, W) attacked images.
        restored: (N, C, H, W) estimates of the clean images; values outside [0, 1] are clipped for display only.
        labels: (N,) true classes.
        predictions: the victim's classes (N,) for the clean, the attacked and the restored images; written below
            them, with a green tick where they are right and a red cross where they are wrong (neither without
            ``labels``).
        attacks: N names.
        victims: N names.
        class_names: name of every class; without it the class numbers are written.
        title: line above the grid.

    Raises:
        ValueError: the images do not have the same shape, or there are none.
    """
    if clean.ndim != 4 or not (clean.shape == adv.shape == restored.shape) or len(clean) == 0:
        raise ValueError(
            "clean, adv and restored must have one shape (N, C, H, W) with N > 0, got "
            f"{tuple(clean.shape)}, {tuple(adv.shape)}, {tuple(restored.shape)}"
        )

    def name(of: Tensor, row: int) -> str:
        number = int(of[row])
        return class_names[number] if class_names is not None else str(number)

    rows, height, width = len(clean), clean.shape[-2], clean.shape[-1]
    limit = residual_limit(adv, restored)
    shown = residual(adv, restored, limit)
    side, gap, caption = 1.4, 0.08, 0.24 if predictions else 0.06
    margin = 0.1 if labels is None and attacks is None and victims is None else 1.45
    tall = side * min(2.0, max(0.5, height / width))
    head = 0.46 + (0.28 if title else 0.0)
    size = (margin + 4 * (side + gap), head + rows * (tall + caption))
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    if title:
        figure.text(0.1 / size[0], 1 - 0.19 / size[1], title, size=10, weight="bold", color=INK, va="center")
    heads = ("clean", "attacked", "restored", "residual")
    for column, text in enumerate(heads):
        x = (margin + column * (side + gap) + side / 2) / size[0]
        y = 1 - (head - 0.29) / size[1]
        figure.text(x, y, text, size=8.5, weight="bold", color=INK, ha="center", va="center")
        under = f"attacked − restored, ±{round(limit * 255)}/255" if column == 3 else ""
        figure.text(x, y - 0.16 / size[1], under, size=6.5, color=MUTED, ha="center", va="center")
    for row in range(rows):
        bottom = size[1] - head - row * (tall + caption) - tall
        lines = [(attacks[row], 9.0, INK, "bold")] if attacks is not None else []
        lines += [(f"on {victims[row]}", 7.5, MUTED, "normal")] if victims is not None else []
        lines += [(f"true: {name(labels, row)}", 7.5, INK, "normal")] if labels is not None else []
        for line, (text, font, colour, weight) in enumerate(lines):
            y = (bottom + tall / 2 + (len(lines) - 1 - 2 * line) * 0.085) / size[1]
            figure.text(0.1 / size[0], y, text, size=font, color=colour, weight=weight, va="center", parse_math=False)
        for column, images in enumerate((clean, adv, restored, shown)):
            left = margin + column * (side + gap)
            axes = figure.add_axes((left / size[0], bottom / size[1], side / size[0], tall / size[1]))
            axes.imshow(to_uint8(images[row]), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=RULE, linewidth=0.6)
            if predictions is not None and column < 3:
                said = predictions[column]
                right = None if labels is None else int(said[row]) == int(labels[row])
                colour, mark = {None: (MUTED, ""), True: (RIGHT, " \u2713"), False: (WRONG, " \u2717")}[right]
                axes.text(
                    0.5, -0.03, name(said, row) + mark, transform=axes.transAxes, size=7.5, color=colour, weight="bold",
                    ha="center", va="top", parse_math=False,
                )  # fmt: skip
    return figure


def accuracy_bars(metrics: Mapping[str, float], prefix: str = "test/", title: str = "") -> Figure:
    """Clean, attacked and restored accuracy, and that under an attacker who knows the defence, per attack.

    Args:
        metrics: flat numbers of a run, fractions in 0..1.
        prefix: stage in front of the measures' names.
        title: line above the bars.

    Raises:
        ValueError: ``metrics`` has none of the accuracies.
    """
    series = {name: per_attack(metrics, name, prefix) for name in ACCURACIES}
    series = {name: values for name, values in series.items() if values}
    if not series:
        raise ValueError(f"no accuracy under {prefix!r} among {sorted(metrics)[:10]}")
    attacks = list(dict.fromkeys(["", *(attack for values in series.values() for attack in values)]))
    figure, (axes,) = _panels(1, width=max(5.6, 1.4 + 1.35 * len(attacks)), height=3.3)
    colours = dict(zip(ACCURACIES, SERIES, strict=False))
    wide = 0.84 / len(series)
    for place, (name, values) in enumerate(series.items()):
        at = {i + (place - (len(series) - 1) / 2) * wide: values[a] for i, a in enumerate(attacks) if a in values}
        bars = axes.bar(list(at), list(at.values()), wide * 0.92, color=colours[name], label=ACCURACIES[name])
        if len(attacks) <= 8:
            axes.bar_label(bars, [f"{100 * v:.0f}" for v in at.values()], size=7, color=INK, padding=1.5)
    axes.set_xticks(range(len(attacks)), [attack_title(a) for a in attacks])
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("accuracy")
    _legend(figure, axes, len(series), title)
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
    shares = {k: v for k, v in curves.items() if "accuracy" in k or k.split("/")[1].startswith("pa_")}
    order = [f"val/{name}" for name in ACCURACIES]  # so that a colour means the same as in the bars
    shares = dict(sorted(shares.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))
    losses = {k: v for k, v in curves.items() if "loss" in k}
    panels = [(name, found) for name, found in (("accuracy", shares), ("loss", losses)) if found]
    if not panels:
        raise ValueError(f"no losses or accuracies to draw among {sorted(curves)}")
    figure, all_axes = _panels(len(panels), width=3.9 * len(panels) + 0.4, height=3.0)
    for axes, (name, found) in zip(all_axes, panels, strict=True):
        for place, (key, points) in enumerate(found.items()):
            xs, ys = zip(*points, strict=True)
            style: dict[str, Any] = {"lw": 1.6, "color": SERIES[place % len(SERIES)], "label": key}
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
    figure, axes = _panels(len(ours), rows=2, width=1.75 * len(ours) + 0.5, height=4.2)
    for place, (measure, values) in enumerate(ours.items()):
        drawn = [
            (axes[place], {column: mean for column, (mean, _) in values.items()}),
            (axes[place + len(ours)], paper[measure]),
        ]
        spreads = [spread / 2 for _, spread in values.values()]
        for panel, (which, numbers) in enumerate(drawn):
            colours = [COLUMNS[i % len(COLUMNS)] for i in range(len(numbers))]
            bars = which.bar(range(len(numbers)), list(numbers.values()), 0.7, color=colours, alpha=1 - 0.4 * panel)
            if panel == 0 and any(spreads):
                which.errorbar(
                    range(len(numbers)), list(numbers.values()), yerr=spreads, fmt="none", ecolor=INK, lw=1, capsize=2
                )
            which.bar_label(bars, [f"{v:#.3g}".rstrip(".") for v in numbers.values()], size=7, color=INK, padding=2)
            which.set_xticks(range(len(numbers)), list(numbers), size=7)
            which.margins(y=0.16)
            which.yaxis.set_major_locator(MaxNLocator(4))
        axes[place].set_title(measure, size=8, color=INK, loc="left")
    axes[0].set_ylabel(ours_title, size=7.5)
    axes[len(ours)].set_ylabel(paper_title, size=7.5)
    if title:
        figure.suptitle(title, size=10, weight="bold", color=INK, x=0.01, ha="left")
    return figure


def save_figure(figure: Figure | Pixels, path: Path) -> Path:
    """Writes a figure, or pixels (H, W, 3) uint8, as PNG and makes the folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_pixels(figure)).save(path, format="PNG", optimize=True)
    return path


def log_figure(
    loggers: Iterable[Any], name: str, figure: Figure | Pixels, step: int | None = None, *, folder: Path
) -> Path:
    """Writes ``folder/<name>.png`` and hands the picture to every logger that takes pictures. Call it on rank 0.

    Args:
        loggers: Lightning loggers; wandb (``log_image``) and tensorboard (``experiment.add_image``) get the picture
            as (H, W, 3) uint8, others nothing.
        name: key of the picture; a slash makes a folder.
        figure: matplotlib figure or pixels (H, W, 3) uint8.
        step: where the picture stands on the loggers' axis.
        folder: the run's folder for figures.
    """
    pixels = _pixels(figure)
    path = save_figure(pixels, folder / f"{name}.png")
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[pixels], step=step)
        elif hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
    return path


def _pixels(picture: Figure | Pixels) -> Pixels:
    if isinstance(picture, Figure):
        return figure_pixels(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"pixels must be (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    return picture


def _panels(count: int, *, width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with ``rows`` rows of ``count`` panels in the house style, row by row."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, count, squeeze=False).flat)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(RULE)
        each.tick_params(colors=MUTED, labelcolor=INK, labelsize=7.5, length=0)
        each.grid(axis="y", color=RULE, lw=0.6)
        each.set_axisbelow(True)
        each.xaxis.label.set(size=8, color=MUTED)
        each.yaxis.label.set(size=8, color=MUTED)
    return figure, axes


def _legend(figure: Figure, axes: Axes, columns: int, title: str) -> None:
    """A legend above the panel, and the title above the legend."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False, fontsize=7.5, labelcolor=INK)
    if title:
        figure.suptitle(title, size=10, weight="bold", color=INK, x=0.01, ha="left")
