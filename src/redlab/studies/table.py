"""A table of numbers over seeds, at the addresses of a paper's table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redlab.studies.numbers import NoNumberError, Number
from redlab.studies.paper_numbers import PaperTable

Address = tuple[str, str]
"""(row, column)."""


@dataclass(frozen=True)
class Table:
    """Numbers by row and column.

    >>> table = Table({("PA", "DO"): Number((42.8,)), ("PA", "DS"): Number((86.64,))})
    >>> (table["PA", "DO"] + 15 < table["PA", "DS"]).text
    'PA DO + 15 = 57.8 < PA DS = 86.64'

    Attributes:
        cells: (row, column) -> number.
        title: whose numbers these are, for messages.
    """

    cells: Mapping[Address, Number]
    title: str = "the table"

    @staticmethod
    def of_seeds(seeds: Sequence[Mapping[Address, float]], title: str = "the table") -> Table:
        """Joins what each seed gave.

        Raises:
            ValueError: no seed, or seeds with different cells.
        """
        if not seeds:
            raise ValueError("a study needs at least one seed, got none")
        for cells in seeds:
            if different := set(cells) ^ set(seeds[0]):
                raise ValueError(f"one seed has the cell {min(different)}, another has not")
        return Table({address: Number(tuple(cells[address] for cells in seeds)) for address in seeds[0]}, title)

    @staticmethod
    def printed(paper: PaperTable) -> Table:
        """The numbers that a paper prints."""
        return Table({address: Number((value,)) for address, value in paper.cells().items()}, "the paper")

    def __getitem__(self, address: Address) -> Number:
        if address not in self.cells:
            raise NoNumberError(f"{', '.join(address)}: not in {self.title}")
        return Number(self.cells[address].values, " ".join(address))

    def __contains__(self, address: object) -> bool:
        return address in self.cells

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, in order."""
        return tuple(dict.fromkeys(row for row, _ in self.cells))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(dict.fromkeys(column for _, column in self.cells))

    def sorted_by(self, column: str) -> Table:
        """The same with the rows in another order: the largest mean of a column first, rows without it last."""
        means = {row: number.mean for row, number in self.column(column).items()}
        order = sorted(self.rows, key=lambda row: -means.get(row, -math.inf))
        addresses = [(row, c) for row in order for c in self.columns if (row, c) in self.cells]
        return Table({address: self.cells[address] for address in addresses}, self.title)

    def rows_of(self, start: str) -> list[str]:
        """The rows whose names start so.

        Raises:
            NoNumberError: there is none.
        """
        found = [row for row in self.rows if row.startswith(start)]
        if not found:
            raise NoNumberError(f"{start}: not in {self.title}")
        return found

    def row(self, row: str) -> dict[str, Number]:
        """The numbers of a row by column.

        Raises:
            NoNumberError: there is no such row.
        """
        found = {column: self[row, column] for column in self.columns if (row, column) in self.cells}
        if not found:
            raise NoNumberError(f"{row}: not in {self.title}")
        return found

    def column(self, column: str) -> dict[str, Number]:
        """The numbers of a column by row.

        Raises:
            NoNumberError: there is no such column.
        """
        found = {row: self[row, column] for row in self.rows if (row, column) in self.cells}
        if not found:
            raise NoNumberError(f"{column}: not in {self.title}")
        return found
