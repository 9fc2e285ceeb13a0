"""Plain tables and their three renderings: console (rich), markdown and HTML.

Also turns the flat numbers of a run (``test/d``, ``test/d/<attack>``, ``test/d/<attack>/<victim>``) into tables.
"""

from __future__ import annotations

import html as _html
import math
from collections.abc import Mapping
from dataclasses import dataclass

import rich.box
import rich.table
from rich.text import Text

ACCURACIES = {
    "clean_accuracy": "clean",
    "attacked_accuracy": "attacked",
    "restored_accuracy": "restored",
    "adaptive_restored_accuracy": "restored, attacker knows the defence",
}
"""The four headline numbers of a restorer: key in the flat metrics -> how they are called in print."""

DISTANCES = {
    "pa_benign": "PA benign",
    "pa_adv": "PA adv",
    "d": "d(x, restored)",
    "d_attack": "d(x, attacked)",
    "logit_d_benign": "logit d benign",
    "logit_d_adv": "logit d adv",
    "cosine": "cosine",
    "psnr": "PSNR (dB)",
}
"""The further measures of a restorer that are told per attack."""

TONES = {"holds": "green", "tie": "yellow", "fails": "red"}
"""Cells that consist of one of these words are coloured."""


@dataclass(frozen=True)
class Table:
    """A table of ready-made text; the first column names the row, the others are aligned to the right.

    Attributes:
        title: one line above the table.
        columns: names of the columns.
        rows: one tuple of cells per row, as long as ``columns``.
        notes: lines below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, but a row is {row}")


def percent(value: float | None) -> str:
    """A fraction in 0..1 as per cent with one decimal; a dash where there is no number.

    >>> percent(0.9375), percent(None)
    ('93.8 %', '–')
    """
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """A number with four significant digits, never in scientific notation where that can be read.

    >>> number(13.0412), number(0.00012345), number(float("nan"))
    ('13.04', '0.0001234', '–')
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:.4g}"


def per_attack(metrics: Mapping[str, float], name: str, prefix: str = "test/") -> dict[str, float]:
    """The values of one measure by attack, the overall value under the empty name.

    >>> per_attack({"test/d": 1.0, "test/d/pgd": 2.0, "test/d/pgd/lenet": 3.0, "test/d_attack": 4.0}, "d")
    {'': 1.0, 'pgd': 2.0}
    """
    head = prefix + name
    found = {key[len(head) + 1 :]: value for key, value in metrics.items() if key == head or key.startswith(head + "/")}
    return {attack: value for attack, value in found.items() if "/" not in attack}


def metrics_table(metrics: Mapping[str, float], names: Mapping[str, str], title: str, prefix: str = "test/") -> Table:
    """Measures (columns) per attack (rows); the first row is over all attacked images.

    Args:
        metrics: flat numbers of a run.
        names: measure -> header of its column; measures that the run does not have are left out.
        title: title of the table.
        prefix: stage in front of the measure's name.
    """
    columns = {name: per_attack(metrics, name, prefix) for name in names}
    columns = {name: values for name, values in columns.items() if values}
    attacks = list(dict.fromkeys(["", *(attack for values in columns.values() for attack in values)]))
    rows = []
    for attack in attacks:
        cells = [
            (percent if name in ACCURACIES or name.startswith("pa_") else number)(values.get(attack))
            for name, values in columns.items()
        ]
        rows.append((attack_title(attack), *cells))
    return Table(title, ("attack", *(names[name] for name in columns)), tuple(rows) if columns else ())


def attack_title(attack: str) -> str:
    """How an attack's key is called in print.

    >>> attack_title(""), attack_title("clean"), attack_title("pgd")
    ('all attacks', 'no attack', 'pgd')
    """
    return {"": "all attacks", "clean": "no attack"}.get(attack, attack)


def console(table: Table) -> rich.table.Table:
    """The table for a terminal."""
    out = rich.table.Table(
        title=Text(table.title, style="bold"),
        title_justify="left",
        caption=Text("\n".join(table.notes)) if table.notes else None,
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for position, column in enumerate(table.columns):
        out.add_column(Text(column), justify="left" if position == 0 else "right")
    for row in table.rows:
        out.add_row(*(Text(cell, style=TONES.get(cell, "")) for cell in row))  # Text: "[...]" is no markup
    return out


def markdown(table: Table) -> str:
    """The table as GitHub markdown, ending in a newline."""

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|" + "|".join(["---"] + ["---:"] * (len(table.columns) - 1)) + "|"
    parts = [f"**{table.title}**", "", line(table.columns), rule, *map(line, table.rows)]
    if table.notes:
        parts += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(parts) + "\n"


def html(table: Table) -> str:
    """The table as an HTML fragment; every text is escaped."""

    def cells(tag: str, row: tuple[str, ...]) -> str:
        return "".join(
            f'<{tag} class="{cell}">{cell}</{tag}>' if cell in TONES else f"<{tag}>{_html.escape(cell)}</{tag}>"
            for cell in row
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in table.rows)
    notes = "".join(f"<p class='note'>{_html.escape(note)}</p>\n" for note in table.notes)
    return (
        f"<h3>{_html.escape(table.title)}</h3>\n<div class='scroll'><table>\n"
        f"<thead><tr>{cells('th', table.columns)}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n{notes}"
    )
