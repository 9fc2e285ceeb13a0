"""Grids of images: what an attack did to them, and what a defence made or said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from redlab.report.canvas import DPI, INK, MUTED, RIGHT, RULE, WRONG, to_uint8


def residual(adv: Tensor, restored: Tensor, limit: float) -> Tensor:
    """A perturbation ``adv - restored``, centred at grey: -limit is black, 0 grey, +limit white.

    Args:
        adv: (..., C, H, W) attacked images.
        restored: (..., C, H, W) the clean images, or estimates of them.
        limit: the perturbation that is shown as white, larger than 0.

    Returns:
        (..., C, H, W) in [0, 1].
    """
    return (0.5 + (adv - restored) / (2 * limit)).clamp(0, 1)


def residual_limit(adv: Tensor, restored: Tensor) -> float:
    """The smallest whole number of grey levels, over 255, that covers 99.5 % of the perturbations."""
    size = (adv - restored).detach().abs().flatten().double().cpu().numpy()
    return max(1, math.ceil(float(np.quantile(size, 0.995)) * 255 - 1e-3)) / 255


class Caption(NamedTuple):
    """What stands below a picture.

    Attributes:
        text: one line.
        right: in green with a tick, or in red with a cross; None for neither.
    """

    text: str
    right: bool | None = None


class Column(NamedTuple):
    """A column of a grid.

    Attributes:
        head: its name.
        images: (N, C, H, W) in [0, 1], C 1 or 3; other values are clipped for display.
        note: small print below the name.
        captions: N captions, or none.
    """

    head: str
    images: Tensor
    note: str = ""
    captions: Sequence[Caption] = ()


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
    below: list[Sequence[Caption]] = [answers(said, labels, class_names) for said in predictions or ()] or [()] * 3
    limit = residual_limit(adv, restored)
    columns = [
        Column("clean", clean, captions=below[0]),
        Column("attacked", adv, captions=below[1]),
        Column("restored", restored, captions=below[2]),
        Column("residual", residual(adv, restored, limit), f"attacked − restored, ±{round(limit * 255)}/255"),
    ]
    return grid(columns, _beside(len(clean), labels, attacks, victims, class_names), title)


def verdict_grid(
    clean: Tensor,
    adv: Tensor,
    *,
    labels: Tensor,
    predictions: tuple[Tensor, Tensor],
    verdicts: Sequence[Caption],
    attacks: Sequence[str],
    victims: Sequence[str],
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Clean and attacked image with the victim's answers, and the perturbation with what the defence said.

    Args:
        clean: (N, C, H, W) in [0, 1], C 1 or 3.
        adv: (N, C, H, W) attacked images, all that the defence saw.
        labels: (N,) true classes.
        predictions: the victim's classes (N,) for the clean and the attacked images.
        verdicts: what the defence said of each attacked image.
        attacks: N names.
        victims: N names.
        class_names: name of every class; without it the class numbers are written.
        title: line above the grid.

    Raises:
        ValueError: the images do not have the same shape, or there are none.
    """
    if clean.ndim != 4 or clean.shape != adv.shape or len(clean) == 0:
        raise ValueError(
            f"clean and adv must have one shape (N, C, H, W) with N > 0, got {tuple(clean.shape)}, {tuple(adv.shape)}"
        )
    limit = residual_limit(adv, clean)
    columns = [
        Column("clean", clean, "and the victim's answer", answers(predictions[0], labels, class_names)),
        Column("attacked", adv, "and the victim's answer", answers(predictions[1], labels, class_names)),
        Column("perturbation", residual(adv, clean, limit), f"±{round(limit * 255)}/255, and the defence", verdicts),
    ]
    return grid(columns, _beside(len(clean), labels, attacks, victims, class_names), title)


def answers(said: Tensor, labels: Tensor | None, class_names: Sequence[str] | None = None) -> list[Caption]:
    """Captions of (N,) classes, right where they are the labels."""
    right = [None] * len(said) if labels is None else (said == labels).tolist()
    return [Caption(_name(int(of), class_names), r) for of, r in zip(said, right, strict=True)]


def _name(label: int, class_names: Sequence[str] | None) -> str:
    return class_names[label] if class_names is not None else str(label)


def _beside(
    rows: int,
    labels: Tensor | None,
    attacks: Sequence[str] | None,
    victims: Sequence[str] | None,
    class_names: Sequence[str] | None,
) -> list[list[tuple[str, float, str, str]]]:
    """What stands left of each row: text, size, colour and weight of each line. A setting stands below its attack."""
    named = [name.partition(" ") for name in attacks] if attacks is not None else []
    return [
        ([(named[row][0], 9.0, INK, "bold")] if named else [])
        + ([(named[row][2], 7.5, INK, "normal")] if named and named[row][2] else [])
        + ([(f"on {victims[row]}", 7.5, MUTED, "normal")] if victims is not None else [])
        + ([(f"true: {_name(int(labels[row]), class_names)}", 7.5, INK, "normal")] if labels is not None else [])
        for row in range(rows)
    ]


def grid(columns: Sequence[Column], beside: Sequence[Sequence[tuple[str, float, str, str]]], title: str = "") -> Figure:
    """Columns of pictures with captions below them, and lines of text beside each row."""
    rows, height, width = len(beside), *columns[0].images.shape[-2:]
    captioned = any(len(column.captions) for column in columns)
    side, gap, caption = 1.4, 0.08, 0.24 if captioned else 0.06
    margin = 1.45 if any(map(len, beside)) else 0.1
    tall = side * min(2.0, max(0.5, height / width))
    head = 0.46 + (0.28 if title else 0.0)
    size = (margin + len(columns) * (side + gap), head + rows * (tall + caption))
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    if title:
        figure.text(0.1 / size[0], 1 - 0.19 / size[1], title, size=10, weight="bold", color=INK, va="center")
    for place, column in enumerate(columns):
        x = (margin + place * (side + gap) + side / 2) / size[0]
        y = 1 - (head - 0.29) / size[1]
        figure.text(x, y, column.head, size=8.5, weight="bold", color=INK, ha="center", va="center")
        figure.text(x, y - 0.16 / size[1], column.note, size=6.5, color=MUTED, ha="center", va="center")
    for row, lines in enumerate(beside):
        bottom = size[1] - head - row * (tall + caption) - tall
        for line, (text, font, colour, weight) in enumerate(lines):
            y = (bottom + tall / 2 + (len(lines) - 1 - 2 * line) * 0.085) / size[1]
            figure.text(0.1 / size[0], y, text, size=font, color=colour, weight=weight, va="center", parse_math=False)
        for place, column in enumerate(columns):
            left = margin + place * (side + gap)
            axes = figure.add_axes((left / size[0], bottom / size[1], side / size[0], tall / size[1]))
            axes.imshow(to_uint8(column.images[row]), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=RULE, linewidth=0.6)
            if len(column.captions):
                text, right = column.captions[row]
                colour, mark = {None: (MUTED, ""), True: (RIGHT, " \u2713"), False: (WRONG, " \u2717")}[right]
                axes.text(
                    0.5, -0.03, text + mark, transform=axes.transAxes, size=7.5, color=colour, weight="bold",
                    ha="center", va="top", parse_math=False,
                )  # fmt: skip
    return figure
