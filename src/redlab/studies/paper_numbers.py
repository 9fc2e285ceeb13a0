"""The numbers that the papers print, as data (``tables.json``), with the cells that cannot be trusted marked."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper.

    Attributes:
        name: ``<paper>/<table>``.
        title: what the table shows.
        columns: names of its columns.
        rows: one mapping per row: ``keys`` say which row, ``values`` the number per column.
        unreliable: cells with a doubt: ``row``, ``column``, ``field``, ``value``, ``printed``, ``reason``; where only
            the label of a row is in doubt, without ``column``, ``field`` and ``value``.
        source: where the table stands in the paper.
        notes: remarks on the whole table.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    unreliable: tuple[Mapping[str, Any], ...]
    source: str
    notes: tuple[str, ...] = ()

    def row(self, **keys: object) -> dict[str, float]:
        """The numbers of the one row with these keys: column -> number.

        Raises:
            ValueError: no row, or more than one, has these keys.
        """
        found = [row for row in self.rows if all(row["keys"].get(k) == v for k, v in keys.items())]
        if len(found) != 1:
            raise ValueError(f"{self.name} has {len(found)} rows with {keys}; rows: {[r['keys'] for r in self.rows]}")
        return dict(found[0]["values"])

    def beside(self, other: PaperTable, columns: Mapping[str, str]) -> PaperTable:
        """This table with more columns, from rows of another with the same keys.

        Args:
            other: for instance the table with the default setting that this one is compared with.
            columns: column of ``other`` -> what it is called here.
        """
        rows = [dict(row) for row in self.rows]
        for row in rows:
            values: Mapping[str, float] = next((r["values"] for r in other.rows if r["keys"] == row["keys"]), {})
            row["values"] = {**row["values"], **{columns[c]: v for c, v in values.items() if c in columns}}
        doubts = [
            {**cell, "column": columns[cell["column"]]} for cell in other.unreliable if cell.get("column") in columns
        ]
        return replace(
            self,
            columns=(*self.columns, *columns.values()),
            rows=tuple(rows),
            unreliable=(*self.unreliable, *doubts),
            source=f"{self.source}, {other.source}",
        )

    def cells(self) -> dict[tuple[str, str], float]:
        """Every number by (row, column); a row is named by its keys, see ``row_name``."""
        return {(row_name(row["keys"]), column): v for row in self.rows for column, v in row["values"].items()}

    def doubts(self) -> dict[tuple[str, str], str]:
        """Why a number is unreliable, by (row, column), for those that are."""
        return {
            (row_name(row["keys"]), column): reason
            for row in self.rows
            for column in row["values"]
            if (reason := self.doubt(column, **row["keys"])) is not None
        }

    def doubt(self, column: str, **keys: object) -> str | None:
        """Why the number of a cell is unreliable, None if it is not.

        Args:
            column: name of the column.
            **keys: keys of the row.
        """
        for cell in self.unreliable:
            same_row = all(cell["row"].get(k) == v for k, v in keys.items())
            if same_row and cell.get("column") == column and cell["field"] == "values":
                return f"printed {cell['printed']!r}, read as {cell['value']}: {cell['reason']}"
        return None


def row_name(keys: Mapping[str, object]) -> str:
    """What the row of a table is called in an address: the values of its keys, with the key where yes or no.

    >>> row_name({"metric": "PA_adv", "stepsize": "4/255", "random_init": True})
    'PA_adv, 4/255, random_init=True'
    """
    return ", ".join(f"{key}={value}" if isinstance(value, bool) else str(value) for key, value in keys.items())


@functools.cache
def _tables() -> dict[str, dict[str, dict[str, Any]]]:
    text = resources.files("redlab.studies").joinpath("tables.json").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, dict[str, Any]]] = json.loads(text)
    return loaded


def paper_table(paper: str, table: str) -> PaperTable:
    """One table of a paper.

    >>> paper_table("cdd_red", "table1").row(metric="PA_adv")
    {'DO': 71.97, 'DS': 72.47, 'CDD-RED': 80.43}

    Raises:
        ValueError: there is no such paper or table.
    """
    found = _tables().get(paper, {}).get(table)
    if found is None:
        known = sorted(f"{p}/{t}" for p, tables in _tables().items() for t in tables)
        raise ValueError(f"no numbers for {paper}/{table}; known: {', '.join(known)}")
    return PaperTable(
        name=f"{paper}/{table}",
        title=found["title"],
        columns=tuple(found["columns"]),
        rows=tuple(found["rows"]),
        unreliable=tuple(found["unreliable"]),
        source=found["source"],
        notes=tuple(found.get("notes", ())),
    )
