"""The long table that every evaluation yields: one row per cell, judge and image.

A cell is an attack in one setting on one victim, and what the attacker knew. A judge is the network that classifies, by
default the victim. Everything that redlab prints is a reduction of such rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CATEGORIES = ("attack", "setting", "victim", "judge", "knowledge")
"""Columns that hold places in a list of names."""

IDS = ("image", "label", "target")
"""Columns of whole numbers. All others are float64; 1 and 0 say yes and no, NaN that a row has no such number."""

ORDER = ("knowledge", "attack", "setting", "victim", "judge", "image")
"""What a row is of, and in which order rows stand."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows of an evaluation. The page docs/measures.md says what each column counts.

    >>> rows = Samples({"attack": [0, 1, 1], "right": [1, 0, 1]}, {"attack": ("clean", "fgsm")})
    >>> len(rows), rows.mean("right"), rows.where(attack="fgsm").mean("right")
    (3, 0.6666666666666666, 0.5)

    Args:
        columns: name -> (N,) values; of a categorical column, places in its names.
        names: categorical column -> its names.

    Raises:
        ValueError: columns of different lengths, or a categorical column with a value without a name.
    """

    columns: Mapping[str, Tensor]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = (*CATEGORIES, *IDS)
        columns = {
            name: torch.as_tensor(values, dtype=torch.int64 if name in whole else torch.float64, device="cpu")
            for name, values in self.columns.items()
        }
        if len({tuple(values.shape) for values in columns.values()}) > 1:
            raise ValueError(f"columns differ in length: { {k: tuple(v.shape) for k, v in columns.items()} }")
        for name, known in self.names.items():
            codes = columns[name]
            if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(known):
                raise ValueError(
                    f"{name} must be in 0..{len(known) - 1} for {list(known)}, got {sorted(set(codes.tolist()))}"
                )
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "names", {name: tuple(known) for name, known in self.names.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __repr__(self) -> str:
        cells = ", ".join(f"{len(self.values(name))} {name}s" for name in ("attack", "victim") if name in self.names)
        return f"Samples({len(self)} rows{f' of {cells}' * bool(cells)}: {', '.join(self.columns)})"

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def __getitem__(self, column: str) -> Tensor:
        """(N,) values of a column; of a categorical one, places in ``names``.

        Raises:
            ValueError: there is no such column.
        """
        if column not in self.columns:
            raise ValueError(f"there is no column {column!r}; there are {', '.join(self.columns)}")
        return self.columns[column]

    def take(self, rows: Tensor) -> Samples:
        """Rows by a bool mask or an index tensor."""
        return Samples({name: values[rows] for name, values in self.columns.items()}, self.names)

    def where(self, **wanted: Any) -> Samples:
        """Rows whose columns have a value, or one of several.

        Args:
            **wanted: column -> a name (categorical) or number, or a list of them.

        Raises:
            ValueError: there is no such column, or no such name in it.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        for column, value in wanted.items():
            values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
            if (known := self.names.get(column)) is not None:
                if missing := [v for v in values if v not in known]:
                    raise ValueError(f"{column} has no {missing[0]!r}; there are {', '.join(known)}")
                values = [known.index(v) for v in values]
            keep &= torch.isin(self[column], torch.tensor(values, dtype=self[column].dtype))
        return self.take(keep)

    def values(self, column: str) -> tuple[Any, ...]:
        """The different values of a column that some row has, in order; names where it is categorical."""
        codes = torch.unique(self[column]).tolist()
        known = self.names.get(column)
        return tuple(codes) if known is None else tuple(known[code] for code in codes)

    def groups(self, *columns: str) -> Iterator[tuple[tuple[Any, ...], Samples]]:
        """The rows of each combination of values that occurs, with these values."""
        if not columns:
            yield (), self
            return
        for value in self.values(columns[0]):
            for rest, rows in self.where(**{columns[0]: value}).groups(*columns[1:]):
                yield (value, *rest), rows

    def mean(self, column: str) -> float:
        """Mean over the rows that have such a number; NaN if none has."""
        values = self[column].double()
        return float(values[~values.isnan()].mean())

    def sorted(self) -> Samples:
        """The rows in the order of ``ORDER``, whatever the order of batches and processes was."""
        if not len(self):
            return self
        keys = [self[name].numpy() for name in reversed(ORDER) if name in self.columns]
        return self.take(torch.from_numpy(np.lexsort(keys)))

    def with_columns(self, **columns: Any) -> Samples:
        """The same rows with more columns, or other values in them."""
        return Samples({**self.columns, **columns}, self.names)

    @staticmethod
    def cat(parts: Sequence[Samples]) -> Samples:
        """All rows of all parts; names are joined, and a number that a part has not is NaN.

        Raises:
            ValueError: a part lacks a categorical column or one of whole numbers that another has.
        """
        parts = [part for part in parts if part.columns]
        every = list(dict.fromkeys(name for part in parts for name in part.columns))
        names = {
            c: tuple(dict.fromkeys(name for part in parts for name in part.names.get(c, ())))
            for c in dict.fromkeys(c for part in parts for c in part.names)
        }
        columns: dict[str, Tensor] = {}
        for column in every:
            pieces = []
            for part in parts:
                if column not in part.columns:
                    if column in (*CATEGORIES, *IDS):
                        raise ValueError(f"rows without {column} cannot be put below rows with it")
                    pieces.append(torch.full((len(part),), torch.nan, dtype=torch.float64))
                elif column in names:
                    places = torch.tensor([names[column].index(n) for n in part.names[column]], dtype=torch.int64)
                    pieces.append(places[part[column]])
                else:
                    pieces.append(part[column])
            columns[column] = torch.cat(pieces)
        return Samples(columns, names)

    def save(self, path: Path) -> Path:
        """Writes the rows as a compressed .npz of plain arrays: one per column, ``<column>.names`` for the names."""
        arrays = {name: values.numpy() for name, values in self.columns.items()}
        arrays |= {f"{name}.names": np.array(known, dtype=np.str_) for name, known in self.names.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return part.replace(path)

    @staticmethod
    def load(path: Path) -> Samples:
        """Reads what ``save`` wrote; nothing in the file is executed.

        Raises:
            ValueError: the file is missing, damaged, or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            names = {k.removesuffix(".names"): tuple(map(str, v)) for k, v in arrays.items() if k.endswith(".names")}
            columns = {k: torch.from_numpy(v) for k, v in arrays.items() if not k.endswith(".names")}
            return Samples(columns, names)
        except Exception as error:  # a damaged archive can raise nearly anything
            raise ValueError(f"{path} cannot be read as rows of an evaluation ({type(error).__name__})") from error
