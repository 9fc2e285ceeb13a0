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

CELL = ("knowledge", "attack", "setting", "victim")
"""The columns that say of which cell a row is."""

ORDER = (*CELL, "judge", "image")
"""What a row is of, and in which order rows stand."""

IDS = ("image", "label", "target")
"""Columns of whole numbers."""

_NAMES = "names/"  # in a file, in front of the column that they are the names of; no column has a slash


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows of an evaluation. The page docs/measures.md says what each column counts.

    A column is categorical where it has names, of whole numbers where it is one of ``IDS``, else float64: 1 and 0 say
    yes and no, NaN that a row has no such number.

    >>> rows = Samples({"attack": [0, 1, 1], "right": [1, 0, 1]}, {"attack": ("clean", "fgsm")})
    >>> len(rows), rows.mean("right"), rows.where(attack="fgsm").mean("right")
    (3, 0.6666666666666666, 0.5)
    >>> {attack: group.mean("right") for (attack,), group in rows.groups("attack")}
    {'clean': 1.0, 'fgsm': 0.5}

    Args:
        columns: name -> (N,) values; of a categorical column, places in its names.
        names: categorical column -> its names.

    Raises:
        ValueError: columns that are not of one length, names of no column, or a value without a name.
    """

    columns: Mapping[str, Tensor]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = (*self.names, *IDS)
        columns = {
            name: torch.as_tensor(values, dtype=torch.int64 if name in whole else torch.float64, device="cpu")
            for name, values in self.columns.items()
        }
        shapes = {name: tuple(values.shape) for name, values in columns.items()}
        if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"columns must be of one length, got {shapes}")
        for name, known in self.names.items():
            if name not in columns:
                raise ValueError(f"there are names {list(known)} of {name!r}, which is no column")
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
        """The different values of a column that some row has, NaN left out, in order; names where it is categorical."""
        found = torch.unique(self[column])
        codes = found[~found.isnan()].tolist()
        known = self.names.get(column)
        return tuple(codes) if known is None else tuple(known[code] for code in codes)

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks that some row has, "clean" among them where it is there."""
        return self.values("attack")

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings that some row has; the empty one is that of attacks without settings."""
        return self.values("setting")

    @property
    def victims(self) -> tuple[str, ...]:
        """Names of the victims that some row has."""
        return self.values("victim")

    @property
    def judges(self) -> tuple[str, ...]:
        """Names of the judges that some row has."""
        return self.values("judge")

    def groups(self, *columns: str) -> Iterator[tuple[tuple[Any, ...], Samples]]:
        """The rows of each combination of values that occurs, with these values, in order; NaN is no value.

        Raises:
            ValueError: there is no such column.
        """
        codes, values = self.codes(*columns)
        rows = codes.argsort(stable=True)
        sizes = torch.bincount(codes + 1, minlength=len(values) + 1).tolist()
        for value, group in zip(values, torch.split(rows, sizes)[1:], strict=True):
            yield value, self.take(group)

    def codes(self, *columns: str) -> tuple[Tensor, list[tuple[Any, ...]]]:
        """The number of the group of each row, (N,), -1 where it is in none, and the values of each group in order.

        Raises:
            ValueError: there is no such column.
        """
        code, known = torch.zeros(len(self), dtype=torch.int64), torch.ones(len(self), dtype=torch.bool)
        levels: list[Sequence[Any]] = []
        for column in columns:
            if (names := self.names.get(column)) is not None:
                place, level = self[column], names
            else:
                found, place = torch.unique(self[column], return_inverse=True)
                known, level = known & ~self[column].isnan(), found.tolist()
            code = code * len(level) + place
            levels.append(level)
        out = torch.full_like(code, -1)
        found, out[known] = torch.unique(code[known], return_inverse=True)
        groups = []
        for number in found.tolist():
            values = []
            for level in reversed(levels):
                number, place = divmod(number, len(level))
                values.append(level[place])
            groups.append(tuple(reversed(values)))
        return out, groups

    def mean(self, column: str) -> float:
        """Mean over the rows that have such a number; NaN if none has.

        Raises:
            ValueError: there is no such column, or it holds names.
        """
        if column in self.names:
            raise ValueError(f"{column} holds names, of which there is no mean: {', '.join(self.names[column])}")
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
        """All rows of all parts, by name: a number that a part has not is NaN there, a name that it has not is "".

        Raises:
            ValueError: a part lacks a column of whole numbers that another has, or a column has names in some only.
        """
        parts = [part for part in parts if part.columns]
        every = dict.fromkeys(name for part in parts for name in part.columns)
        columns: dict[str, Tensor] = {}
        names: dict[str, tuple[str, ...]] = {}
        for column in every:
            have = [column in part for part in parts]
            if column in IDS and not all(have):
                raise ValueError(f"rows without {column} cannot be put below rows with it")
            if not any(column in part.names for part in parts):
                columns[column] = torch.cat([_or_nan(part, column) for part in parts])
                continue
            if numeric := [part for part in parts if column in part and column not in part.names]:
                raise ValueError(f"{column} has names in some of the rows only, not in {numeric[0]}")
            known = [name for part in parts for name in (part.names[column] if column in part else ("",))]
            names[column] = tuple(dict.fromkeys(known))
            place = {name: i for i, name in enumerate(names[column])}
            pieces = [
                torch.tensor([place[name] for name in part.names[column]], dtype=torch.int64)[part[column]]
                if column in part
                else torch.full((len(part),), place[""])
                for part in parts
            ]
            columns[column] = torch.cat(pieces)
        return Samples(columns, names)

    def save(self, path: Path) -> Path:
        """Writes the rows as a compressed .npz of plain arrays: one per column, ``names/<column>`` for its names."""
        arrays = {name: values.numpy() for name, values in self.columns.items()}
        arrays |= {_NAMES + name: np.array(known, dtype=np.str_) for name, known in self.names.items()}
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
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            names = {k.removeprefix(_NAMES): tuple(map(str, v)) for k, v in arrays.items() if k.startswith(_NAMES)}
            columns = {k: torch.from_numpy(v) for k, v in arrays.items() if not k.startswith(_NAMES)}
            return Samples(columns, names)
        except Exception as error:  # a damaged archive can raise nearly anything
            raise ValueError(f"{path} cannot be read as rows of an evaluation ({type(error).__name__})") from error


def _or_nan(rows: Samples, column: str) -> Tensor:
    return rows[column] if column in rows else torch.full((len(rows),), torch.nan, dtype=torch.float64)
