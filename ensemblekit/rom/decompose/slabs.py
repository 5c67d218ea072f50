"""The inner loop of every route that reads slabs of space: a tile in pieces that fit the cache, centred and weighted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, TypeAlias

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.decompose.units import ORDINARY, Unit, magnitude
from ensemblekit.source import Array, Block
from ensemblekit.source_joined import JoinedColumns, JoinedField

KERNEL_TYPES = (np.dtype("f4"), np.dtype("f8"))
SINGLE = (np.dtype("f4"), np.dtype("c8"))
FEW = 8
"""Snapshots whose mean is subtracted where that of all is not known yet."""


class Tile(NamedTuple):
    """A tile of a block on its way to a reducer: the values (n, width) and where they stand in the flattened item."""

    values: Array | JoinedColumns
    at: int

    def __len__(self) -> int:  # snapshots, as a reducer counts them
        return len(self.values)


@dataclass(frozen=True)
class TakeTile:
    """The map from a block to the tile of one field."""

    name: str
    tiled = True

    def __call__(self, block: Block) -> Tile:
        if isinstance(block.fields, JoinedField):
            return Tile(block.fields.columns, block.tile.start or 0)
        values = block.fields[self.name]
        return Tile(np.asarray(values).reshape(len(values), -1), block.tile.start or 0)


class Slab(NamedTuple):
    """A cacheful of columns, ready to be multiplied."""

    start: int
    """First column, in the flattened item."""
    values: np.ndarray
    """(n, width) in the type of the arithmetic, centred, times the roots of the inner product."""
    mean: np.ndarray
    """(width,) over the snapshots or what was subtracted instead, in double precision."""
    mean_offset: np.ndarray | None = None
    """(width,) how far the mean of the values lies from 0, where something close to it was subtracted; None: it was exact."""


@dataclass(frozen=True, eq=False)
class RowTransform:
    """How the snapshots of one field become the rows of what is decomposed."""

    dtype: np.dtype
    """Of the arithmetic."""
    share: np.ndarray
    """(n,): what each snapshot counts in the mean, of sum 1."""
    factors: np.ndarray | None
    """(size,): square roots of the inner product's weights by the scale; 0 drops a column. None: 1."""
    shift: np.ndarray | None
    """(size,) what is subtracted; None: the mean over the snapshots, found slab by slab."""
    width: int = 512
    """Columns of a slab."""
    one_pass: bool = False
    """Subtract the mean of a few snapshots and find that of all on the way: one look at the numbers instead of two, for
    products with vectors that are orthogonal to the mean's. TileReducer say how far `off` they are, and `energy` is too."""
    unit: Unit = ORDINARY
    """Of the rows; `factors` have it in them."""

    def slabs(self, tile: Tile, energy: np.ndarray) -> Iterator[Slab]:
        """The slabs of a tile one by one, in one buffer used again and again; squares of rows are added to `energy`.

        Raises OutOfRange behind the last one, where those squares say that the tile wants other units.
        """
        yield from self._each(tile, energy)
        share = 0.0 if self.factors is None else tile.at / len(self.factors)
        self.unit.check(float(energy.sum()), lambda: self._largest(tile), self.dtype in SINGLE, share)

    def _each(self, tile: Tile, energy: np.ndarray) -> Iterator[Slab]:
        n, columns = tile.values.shape
        buffer = np.empty((n, min(self.width, columns)), self.dtype)
        joined = np.empty_like(buffer, tile.values.dtype) if isinstance(tile.values, JoinedColumns) else None
        real = np.dtype(self.dtype.type(0).real.dtype)
        for a in range(0, columns, self.width):
            b = min(a + self.width, columns)
            values = _native(tile.values[:, a:b] if joined is None else tile.values.take(slice(a, b), joined), self.dtype)
            at = slice(tile.at + a, tile.at + b)
            factors = np.ones(b - a, real) if self.factors is None else self.factors[at].astype(real, copy=False)
            out = buffer[:, :b - a]
            if self.one_pass and self.shift is None and values.dtype in KERNEL_TYPES and out.dtype.kind == "f":
                yield Slab(at.start, out, *self._in_one_look(values, factors, out, energy))
                continue
            mean = self._mean(values) if self.shift is None else self.shift[at]
            _load(values, mean, factors, out, energy)
            yield Slab(at.start, out, np.asarray(mean))

    def _largest(self, tile: Tile) -> float:
        """The largest magnitude in the rows of a tile; NaN where numbers of its own are NaN or infinite."""
        largest = self._magnitude(tile)
        if largest == 0 and self.factors is not None:     # the weights may have made nothing of it
            return math.ulp(0.0) if replace(self, factors=(self.factors > 0) * 1.0)._magnitude(tile) > 0 else 0.0
        if math.isinf(largest):
            used = slice(None) if self.factors is None else self.factors[tile.at:tile.at + tile.values.shape[1]] > 0
            return math.inf if np.isfinite(tile.values[:, used]).all() else math.nan
        return largest

    def _magnitude(self, tile: Tile) -> float:
        largest = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for slab in replace(self, one_pass=False)._each(tile, np.zeros(len(tile))):
                largest = float(np.maximum(largest, magnitude(slab.values)))        # NaN stays
        return largest

    def _in_one_look(self, values: np.ndarray, factors: np.ndarray, out: np.ndarray,
                     energy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from ensemblekit.rom.kernels_pod import load_and_sum

        # a few from one end to the other: after one alone, an odd one, most digits of a difference would be lost
        trial_mean = values[::max(1, len(values) // FEW)].mean(0).astype(out.dtype)
        sums = np.zeros(len(trial_mean))
        load_and_sum(values, trial_mean, factors, self.share, out, energy, sums)
        return trial_mean + sums, np.where(factors == 0, 0, sums * factors)

    def _mean(self, values: np.ndarray) -> np.ndarray:
        if values.dtype not in KERNEL_TYPES:
            return self.share @ values
        from ensemblekit.rom.kernels_pod import column_means

        mean = np.empty(values.shape[1])
        column_means(values, self.share, mean)
        return mean


def _native(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What kernels know as it is; other types and byte orders in the type of the arithmetic."""
    if values.dtype in KERNEL_TYPES and values.dtype.isnative:
        return values
    return values.astype(dtype)


def _load(values: np.ndarray, shift: np.ndarray, factors: np.ndarray, out: np.ndarray,
          energy: np.ndarray) -> None:
    if out.dtype.kind == "c" or values.dtype not in KERNEL_TYPES:
        np.multiply(values - shift, factors, out=out)
        out[:, factors == 0] = 0
        energy += np.square(np.abs(out), dtype=np.float64).sum(1)
        return
    from ensemblekit.rom.kernels_pod import load

    load(values, shift.astype(out.dtype, copy=False), factors, out, energy)


TileSums: TypeAlias = dict[str, np.ndarray]
"""Name -> sums over the columns of a tile."""
TileColumns: TypeAlias = dict[str, np.ndarray]
"""Name -> values of each column of a tile."""
TileWork: TypeAlias = Callable[[Tile], tuple[TileSums, TileColumns]]
Combine: TypeAlias = Callable[[TileSums, TileSums], TileSums]


def added(left: TileSums, right: TileSums) -> TileSums:
    """The sums of two neighbouring tiles."""
    for name, value in right.items():
        left[name] += value
    return left


class TileReducer:
    """Reducer of tiles: `work` gives sums over the columns of a tile, which `combine` joins, and values a column."""

    def __init__(self, work: TileWork, combine: Combine = added):
        self.work, self.combine = work, combine
        self.sums: TileSums = {}
        self.columns: list[TileColumns] = []

    def empty(self) -> Self:
        return type(self)(self.work, self.combine)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if not len(values):
            return
        if self.columns:
            raise InputError(f"{type(self).__name__} takes all snapshots of a tile in one block; a second one came, of "
                             f"snapshots {start} to {start + len(values) - 1}. A piece cut in space yields a single block")
        with np.errstate(over="ignore", invalid="ignore"):      # sums that are no numbers are met by those who get them
            self.sums, columns = self.work(values)
        self.columns = [columns]

    def join(self, right: Self) -> None:
        if right.sums:
            self.sums = self.combine(self.sums, right.sums) if self.sums else right.sums
        self.columns = self.columns + right.columns

    def reshape(self, item: tuple[int, ...]) -> None:
        pass

    def result(self) -> tuple[TileSums, list[TileColumns]]:
        """The sums, and the values a column as a list of parts from left to right."""
        return self.sums, self.columns

    def state(self) -> dict[str, Array]:
        return {f"sum {name}": value for name, value in self.sums.items()} | {
            f"column {k} {name}": value for k, part in enumerate(self.columns) for name, value in part.items()}

    def restored(self, state: Mapping[str, Array]) -> Self:
        new = self.empty()
        for key, value in state.items():
            kind, _, name = key.partition(" ")
            if kind == "sum":
                new.sums[name] = value
            else:
                number, _, name = name.partition(" ")
                while len(new.columns) <= int(number):
                    new.columns.append({})
                new.columns[int(number)][name] = value
        return new
