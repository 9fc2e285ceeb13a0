"""Plain tables and their three renderings: console (rich), markdown and HTML."""

from __future__ import annotations

import html as _html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import rich.box
import rich.table
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, JustifyMethod
from rich.text import Text

TONES = {"holds": "green", "tie": "yellow", "fails": "red", "green": "green", "amber": "yellow", "red": "red"}
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


def console(table: Table) -> OnTerminal:
    """The table for a terminal of any width: nothing is cut off, and no number is torn.

    Columns that do not fit go on below, each part with the names of the rows.
    """
    return OnTerminal(table)


@dataclass(frozen=True)
class OnTerminal:
    """What ``console`` gives to rich."""

    table: Table

    def __rich_console__(self, terminal: RichConsole, options: ConsoleOptions) -> Iterator[rich.table.Table | Text]:
        """The parts of the table, none wider than the terminal."""
        cells = list(zip(self.table.columns, *self.table.rows, strict=True))
        most = [max(map(cell_len, column)) for column in cells]
        least = [max([_longest_word(head), *map(_least_width, column)]) for head, *column in cells]
        least[0] = min(least[0], options.max_width // 2)  # a longer name is folded

        def room(columns: Sequence[int]) -> int:
            """What columns of least width would leave: each has 3 characters around it, the table 1."""
            return options.max_width - 1 - sum(least[i] + 3 for i in columns)

        parts = [[0]]
        for position in range(1, len(cells)):
            if len(parts[-1]) > 1 and room([*parts[-1], position]) < 0:
                parts.append([0])
            parts[-1].append(position)
        for number, part in enumerate(parts):
            widths, spare = {}, room(part)
            for place, i in enumerate(sorted(part, key=lambda i: most[i] - least[i])):  # prose shares what is left
                widths[i] = least[i] + max(0, min(most[i] - least[i], spare // (len(part) - place)))
                spare -= widths[i] - least[i]
            yield self._part(part, widths, self.table.title if number == 0 else None)
        if self.table.notes:
            yield Text("\n".join(self.table.notes) + "\n", style="italic")

    def _part(self, columns: Sequence[int], widths: Mapping[int, int], title: str | None) -> rich.table.Table:
        out = rich.table.Table(
            title=None if title is None else Text(title, style="bold"), title_justify="left", box=rich.box.SIMPLE_HEAD
        )
        for i in columns:
            justify: JustifyMethod = "left" if i == 0 else "right"
            out.add_column(Text(self.table.columns[i]), justify=justify, width=widths[i], overflow="fold")
        for row in self.table.rows:  # Text: "[...]" is no markup
            out.add_row(*(Text(row[i], style=TONES.get(row[i], "")) for i in columns))
        return out


def _least_width(cell: str) -> int:
    """A number with its unit stays in one line; prose is broken between words."""
    return cell_len(cell) if cell_len(cell) <= 12 else _longest_word(cell)


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split(" ")))


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
        """Numbers, with their units, are not broken."""
        kinds = [cell if cell in TONES else "number" if tag == "td" and len(cell) <= 12 else "" for cell in row]
        return "".join(
            f'<{tag} class="{kind}">{_html.escape(cell)}</{tag}>' if kind else f"<{tag}>{_html.escape(cell)}</{tag}>"
            for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>\n" for row in table.rows)
    notes = "".join(f"<p class='note'>{_html.escape(note)}</p>\n" for note in table.notes)
    return (
        f"<h3>{_html.escape(table.title)}</h3>\n<div class='scroll'><table>\n"
        f"<thead><tr>{cells('th', table.columns)}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n{notes}"
    )
