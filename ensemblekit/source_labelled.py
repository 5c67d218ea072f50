"""Arrays with labels as sources: DataArrays and Datasets of xarray, those in memory as they are, lazy ones block by block.

A lazy array (of dask, or of a file that xarray opened) is never read whole: pieces end where its chunks end, and a block is
the snapshots of one chunk, so that no chunk is read or computed twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ensemblekit.errors import EnsemblekitError, InputError, SnapshotFileError, UnknownFieldError
from ensemblekit.intake import as_array, bare, check_index
from ensemblekit.intake_labels import LabelledArrays, Labels, chunk_rows, is_dataset, is_labelled, is_lazy, labelled_arrays
from ensemblekit.source import ADAPTERS, Access, ArraySource, BaseSource, Block, Cut, DescribedSource, Field, Piece, cuts_of
from ensemblekit.source_clock import check_times
from ensemblekit.source_cuts import WHOLE, check_window
from ensemblekit.source_views import weighted_by

SMALL = 32 << 20
"""Bytes of a lazy array that is read at once."""
LARGEST_CHUNK = 256 << 20
"""Bytes of snapshots that are read together because they lie in one chunk."""
BLOCK = 16 << 20
"""Bytes of snapshots read at a time where chunks are smaller."""


@dataclass(frozen=True, eq=False)
class LazySource(BaseSource):
    """Snapshots of arrays that are not in memory: read on the fly by whoever needs them, one chunk of them at a time."""

    arrays: Mapping[str, Any]
    """Name -> DataArray, snapshots along its first axis."""
    labels: Labels | None = None
    times: np.ndarray | None = None
    """(n,) in `time_unit`, since the epoch of the labels; None where there are none."""
    time_unit: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    weights: np.ndarray | None = None

    @property
    def fields(self) -> Mapping[str, Field]:
        return {name: Field(tuple(x.shape[1:]), np.dtype(x.dtype).newbyteorder("="), self.units.get(name, ""))
                for name, x in self.arrays.items()}

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self),)

    def __len__(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    @property
    def access(self) -> Access:
        return "rows"

    def __getitem__(self, name: str) -> LazySource:
        """One field of several."""
        if name not in self.arrays:
            raise UnknownFieldError(name, self.arrays)
        return replace(self, arrays={name: self.arrays[name]}, labels=None if self.labels is None else self.labels.only([name]))

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> LazySource:
        check_window(start, stop, step)
        rows = slice(start, stop, step)
        return replace(self, arrays={name: x[rows] for name, x in self.arrays.items()},
                       times=None if self.times is None else self.times[rows],
                       weights=None if self.weights is None else self.weights[rows])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        n = len(self)
        rows = cuts_of(self.fields, names, n, "time", False, limit).rows
        arrays = {name: self.arrays[name] for name in names}
        chunks = max((edges_of_chunks(x) for x in arrays.values()), key=lambda edges: edges[-1] / max(len(edges) - 1, 1))
        ends = joined_chunks(chunks, rows[1] if len(rows) > 1 else 1)
        for start, stop in pairwise(ends):
            part = {name: x[start:stop] for name, x in arrays.items()}
            yield LazyPiece(0, start, stop, WHOLE, part, tuple(edge - start for edge in chunks if start <= edge <= stop),
                            None if self.weights is None else self.weights[start:stop],
                            None if self.times is None else self.times[start:stop], limit)

    def read(self, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """Snapshots start to stop - 1 of every field, (n, *item)."""
        return loaded({name: x[start:stop] for name, x in self.arrays.items()})

    def __repr__(self) -> str:
        fields = ", ".join(f"{name} {one.shape}" + (f" {one.unit}" if one.unit else "") for name, one in self.fields.items())
        return f"<{len(self)} snapshots of {fields}, read as they are needed>"


@dataclass(frozen=True, eq=False, slots=True)
class LazyPiece:
    """Some consecutive snapshots that are not in memory."""

    run: int
    start: int
    stop: int
    tile: slice
    arrays: Mapping[str, Any]
    chunks: tuple[int, ...]
    """Where chunks of the arrays begin and end, counted from the first snapshot of the piece."""
    weights: np.ndarray | None
    times: np.ndarray | None
    limit: int

    def prefetch(self) -> None:
        """Nothing: chunks are read as they are asked for."""

    def blocks(self) -> Iterator[Block]:
        n = self.stop - self.start
        row = sum(x.nbytes for x in self.arrays.values()) // max(n, 1)
        for at, end in block_edges(n, row, self.chunks, self.limit):
            yield Block(loaded({name: x[at:end] for name, x in self.arrays.items()}), self.start + at, WHOLE,
                        None if self.weights is None else self.weights[at:end],
                        None if self.times is None else self.times[at:end])


def edges_of_chunks(x: Any) -> list[int]:
    """Where the chunks of a DataArray begin and end along its first axis; each snapshot alone where there are none."""
    n = int(x.shape[0])
    if x.chunks is not None:
        return [0, *np.cumsum(x.chunks[0]).tolist()]
    return [*range(0, n, chunk_rows(x)), n]


def joined_chunks(edges: Sequence[int], rows: int) -> list[int]:
    """Edges of pieces of at least `rows` snapshots, each an edge of a chunk too."""
    ends = [edges[0]]
    for edge in edges[1:]:
        if edge - ends[-1] >= rows or edge == edges[-1]:
            ends.append(edge)
    return ends


def block_edges(n: int, row: int, chunks: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of n snapshots of `row` bytes: whole chunks, several where they are small, parts of the largest."""
    step = max(1, min(BLOCK, limit) // max(row, 1))
    most = max(1, LARGEST_CHUNK // max(row, 1))
    start = 0
    for edge in [*chunks, n]:
        while edge - start > most:          # more than can be held: its chunk is read again for the next part
            yield start, start + step
            start += step
        if edge - start >= step or (edge == n and edge > start):
            yield start, edge
            start = edge


def loaded(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The numbers of DataArrays, those of dask computed together in the thread that asks.

    Raises SnapshotFileError where they cannot be read or computed.
    """
    lazy = {name: x for name, x in arrays.items() if x.chunks is not None}
    try:
        computed = dict(zip(lazy, _computed([x.data for x in lazy.values()]), strict=True)) if lazy else {}
        return {name: as_array(computed[name] if name in computed else bare(x).to_numpy(), f"field {name!r}",
                               dtype=np.dtype(x.dtype).newbyteorder("="), named_axes=True) for name, x in arrays.items()}
    except EnsemblekitError:
        raise
    except Exception as error:      # each backend, and whatever the graph computes, raises its own
        source = next((x.encoding["source"] for x in arrays.values() if "source" in x.encoding), "the arrays given")
        raise SnapshotFileError(source, f"{', '.join(arrays)} cannot be read ({type(error).__name__}: {error})") from error


def _computed(arrays: list[Any]) -> Sequence[Any]:
    import dask

    # our engines have a thread for each block already; a scheduler that the user chose (a cluster) stays
    chosen = dask.base.get_scheduler()
    return dask.compute(*arrays) if chosen is not None else dask.compute(*arrays, scheduler="synchronous")


def labelled_source(x: Any, time: str | None = None, names: Sequence[str] | None = None,
                    area: str | None = None) -> ArraySource | LazySource:
    """The snapshots of a DataArray or Dataset: in memory as they are (small ones are read at once), others lazily.

    Arguments:
        time, names, area: as for :func:`~ensemblekit.intake_labels.labelled_arrays`.
    """
    return source_of(labelled_arrays(x, time, names, area))


def source_of(given: LabelledArrays) -> ArraySource | LazySource:
    """A source of labelled arrays."""
    times = given.times
    if times is not None and len(times):
        times = check_times(times, len(times))
    if times is not None and len(times) > 1 and (times == times[0]).all():
        warnings.warn(f"all {len(times)} snapshots have the time {times[0]:g}: they are counted instead", stacklevel=4)
        times = None
    unit = given.time_unit if times is not None else ""
    units = {name: one for name, one in given.units.items() if one}
    if any(map(is_lazy, given.arrays.values())) and sum(x.nbytes for x in given.arrays.values()) > SMALL:
        return LazySource(given.arrays, given.labels, times, unit, units)
    arrays = loaded(given.arrays) if any(map(is_lazy, given.arrays.values())) else {
        name: as_array(bare(x).data, f"field {name!r}", tensors=True, named_axes=True) for name, x in given.arrays.items()}
    return ArraySource(arrays, None, times, unit, units, labels=given.labels)


def weighted_labelled(x: Any, weights: Any, log_weights: Any, time: str | None = None) -> DescribedSource:
    """The snapshots of a DataArray or Dataset with statistical weights: numbers, their logarithms, "time", or the name of a
    variable along the snapshots.

    Raises InputError where they do not fit.
    """
    source = labelled_source(x, time)
    if isinstance(weights, str) and weights != "time":
        weights = weights_named(x, weights)
    else:
        for one, what in ((weights, "weights"), (log_weights, "log_weights")):
            check_index(one, x, what, "the values")
    return weighted_by(source, weights, log_weights)


def weights_named(x: Any, name: str) -> np.ndarray:
    """The values of a coordinate or variable along the snapshots, as their weights. Raises InputError where there is none."""
    axes = {str(key): tuple(map(str, one.dims)) for key, one in {**x.coords, **(x.data_vars if is_dataset(x) else {})}.items()}
    if name not in axes or len(axes[name]) != 1:
        raise InputError(f'weights={name!r} names no variable along the snapshots (nor is it "time"); the variables and '
                         f"coordinates are {axes}")
    return as_array(bare(x[name]), f"weights {name!r}")


def _adapted(x: object) -> DescribedSource | None:
    return labelled_source(x) if is_labelled(x) else None


ADAPTERS.append(_adapted)
