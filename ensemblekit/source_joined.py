"""A field whose snapshots lie in several arrays: one mapping, one table, copied only where it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.source_cuts import WHOLE


class JoinedField(Mapping[str, np.ndarray]):
    """The one field of a block whose snapshots lie in several arrays, one after the other.

    Asked for by its name it is one array: a copy. Those who need some columns at a time take :meth:`columns`.
    """

    def __init__(self, name: str, parts: Sequence[np.ndarray]):
        self.name, self.parts = name, tuple(parts)
        self.rows = sum(map(len, self.parts))

    def __getitem__(self, name: str) -> np.ndarray:
        if name != self.name:
            raise KeyError(name)
        return np.concatenate(self.parts)

    def __iter__(self) -> Iterator[str]:
        yield self.name

    def __len__(self) -> int:
        return 1

    @property
    def columns(self) -> JoinedColumns:
        """The values, (n, width), that are copied together where they are used."""
        return JoinedColumns(tuple(np.asarray(part).reshape(len(part), -1) for part in self.parts))


@dataclass(frozen=True, eq=False, slots=True)
class JoinedColumns:
    """A table (n, width) whose rows lie in several arrays: indexing copies the columns asked for, and no others."""

    parts: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(map(len, self.parts)), self.parts[0].shape[1]

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: tuple[slice, slice | Sequence[int] | np.ndarray]) -> np.ndarray:
        rows, columns = at
        if rows != WHOLE:
            raise InputError(f"columns of all rows are taken, x[:, columns]; got the rows {rows}")
        return np.concatenate([part[:, columns] for part in self.parts])

    def take(self, columns: slice, out: np.ndarray) -> np.ndarray:
        """Consecutive columns, copied into the first of `out`."""
        return np.concatenate([part[:, columns] for part in self.parts], out=out[:, :columns.stop - columns.start])
