"""What every picture shares: colours, panels, pixels, and the way to a file and to the loggers.

The figures are drawn by the object API on the Agg canvas: no window, no global state, safe in any thread.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

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


def panels(count: int, *, width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
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


def legend(figure: Figure, axes: Axes, columns: int, title: str) -> None:
    """A legend above the panel, and the title above the legend."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=columns, frameon=False, fontsize=7.5, labelcolor=INK)
    if title:
        figure.suptitle(title, size=10, weight="bold", color=INK, x=0.01, ha="left")


def wrap(text: str, width: int) -> str:
    """Text for a tick, broken between words."""
    return "\n".join(textwrap.wrap(text, width, break_long_words=False)) or text


def plain(text: str) -> str:
    """Text in which a dollar sign is one, not the start of a formula."""
    return text.replace("$", r"\$")
