"""The sources that live in memory, several runs of one thing, and the door for whatever holds snapshots.

What they share with every other source stands in `source_protocol`; the rest of the package knows its names from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.intake import as_array, bare, check_index, in_unit, is_torch, refuse_path, unit_of
from ensemblekit.intake_dates import is_dates, numbers_of_dates
from ensemblekit.intake_labels import Labels, is_labelled
from ensemblekit.intake_tables import is_table, labels_of_table, times_of_table
from ensemblekit.source_clock import check_times, chosen_weights
from ensemblekit.source_cuts import Cuts, check_window, space_cuts, time_cuts
from ensemblekit.source_pieces import HeldPiece, JoinedPiece, RunPiece
from ensemblekit.source_protocol import (
    Access,
    Array,
    BaseSource,
    Block,
    Cut,
    DescribedSource,
    Field,
    Kind,
    Piece,
    SnapshotSource,
    described,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["ADAPTERS", "Access", "Array", "ArraySource", "BaseSource", "Block", "Cut", "DescribedSource", "Field", "HeldPiece",
           "Kind", "Piece", "ReplicaSet", "SnapshotSource", "StackedSource", "as_source", "cuts_of", "described", "is_torch",
           "numpy_dtype"]

def _times_given(times: Any, time_unit: str, labels: Labels | None) -> tuple[Any, str, Labels | None]:
    """Times as numbers, their unit, and the labels with the epoch where they are dates."""
    if is_dates(times):
        numbers, unit, epoch, calendar = numbers_of_dates(np.asarray(times))
        if numbers is None:
            raise InputError("times: some dates are missing (NaT); every snapshot has one")
        return numbers, unit, replace(labels or Labels(), epoch=epoch, calendar=calendar)
    unit = unit_of(times)
    return (in_unit(times, time_unit, "times"), time_unit or unit, labels) if unit else (times, time_unit, labels)


@dataclass(frozen=True, eq=False)
class ArraySource(BaseSource):
    """Snapshots in memory: a numpy array or torch tensor with snapshots along axis 0, or several of them by name."""

    arrays: Mapping[str, Array]
    weights: np.ndarray | None = None
    times: np.ndarray | None = None
    time_unit: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    access: Access = field(default="tiles", kw_only=True)
    periods: Mapping[str, tuple[float, float]] = field(default_factory=dict, kw_only=True)
    """Name of an array of angles -> the ends of the turn they are written in, (-180, 180): it is averaged on the circle."""
    labels: Labels | None = None
    """Names of axes, coordinates and the epoch of the times, where the arrays came with any."""
    ordered: bool = field(default=True, kw_only=True)
    """False: the snapshots are independent of each other, in whatever order they stand."""
    caveat: str = field(default="", kw_only=True)
    """What is to be said with every average of them."""

    def __post_init__(self) -> None:
        if any(type(x) is not np.ndarray and not is_torch(x) for x in self.arrays.values()):
            object.__setattr__(self, "arrays", {name: as_array(x, f"field {name!r}", tensors=True)
                                                for name, x in self.arrays.items()})
        for name in ("weights", "times"):       # as they are: internal ones may hold NaN
            given = getattr(self, name)
            if given is not None and type(given) is not np.ndarray:
                object.__setattr__(self, name, as_array(given, name, dtype=np.float64))

    @classmethod
    def of(cls, arrays: Array | Mapping[str, Array], *, weights: ArrayLike | None = None,
           log_weights: ArrayLike | None = None, times: ArrayLike | None = None,
           unit: str = "", time_unit: str = "", ordered: bool = True) -> ArraySource:
        """From one array (named "values") or several; weights (n,), or their logarithms of any range and offset.

        Arrays with labels (of xarray, tables of pandas) bring their times and coordinates, quantities their unit; times may
        be dates. ``ordered=False``: snapshots in no order (independent draws, deposited models), whose errors know of no
        correlation. Raises InputError where the arrays differ in length, hold no numbers, or weights and times do not fit.
        """
        if not ordered and times is not None:
            raise InputError("ordered=False says that the snapshots do not follow each other in time, and times= that they do: "
                             "pass one of them")
        if is_labelled(arrays):
            return replace(cls._of_labelled(arrays, weights, log_weights, times, unit, time_unit), ordered=ordered)
        labels = None
        if is_table(arrays):
            labels = labels_of_table(arrays, "values")
            if times is None:
                times, time_unit, labels = times_of_table(arrays, time_unit, labels)
        if times is not None:
            times, time_unit, labels = _times_given(times, time_unit, labels)
        named = dict(arrays) if isinstance(arrays, Mapping) else {"values": arrays}
        if not named:
            raise InputError("no arrays: pass one array, or a mapping of name to array")
        units: dict[str, str] = {}
        for name, values in named.items():
            units[name] = unit or unit_of(values)
            check_index(weights, values, "weights", f"field {name!r}")
            check_index(times, values, "times", f"field {name!r}")
            named[name] = values = as_array(bare(values, unit), f"field {name!r}", tensors=True)
            if values.ndim == 0:
                raise InputError(f"field {name!r} is a single number; snapshots lie along axis 0")
        counts = {name: len(values) for name, values in named.items()}
        n = next(iter(counts.values()))
        if len(set(counts.values())) > 1:
            raise InputError(f"the fields differ in their number of snapshots: {counts}")
        return cls(named, chosen_weights(weights, log_weights, n),
                   None if times is None else check_times(times, n), time_unit,
                   units if any(units.values()) else {}, labels=labels, ordered=ordered)

    @classmethod
    def _of_labelled(cls, x: Any, weights: Any, log_weights: Any, times: Any, unit: str, time_unit: str) -> ArraySource:
        """Of a DataArray or Dataset, read into memory where it is lazy."""
        source = as_source(x.load())
        if not isinstance(source, cls):
            raise InputError(f"{type(x).__name__} cannot be taken into memory; pass x.to_numpy()")
        for name in source.arrays:
            check_index(weights, x[name] if name in x else x, "weights", f"field {name!r}")
        (n,) = source.lengths
        labels = source.labels
        if times is not None:
            times, time_unit, labels = _times_given(times, time_unit, None if labels is None else replace(labels, epoch=""))
        return replace(source, weights=chosen_weights(weights, log_weights, n), labels=labels,
                       times=source.times if times is None else check_times(times, n),
                       time_unit=time_unit or (source.time_unit if times is None else ""),
                       units=dict.fromkeys(source.arrays, unit) if unit else source.units)

    @property
    def fields(self) -> Mapping[str, Field]:
        return {name: Field(tuple(x.shape[1:]), numpy_dtype(x), self.units.get(name, ""))
                for name, x in self.arrays.items()}

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(next(iter(self.arrays.values()))),)

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> ArraySource:
        check_window(start, stop, step)
        rows = slice(start, stop, step)
        return replace(self, arrays={name: x[rows] for name, x in self.arrays.items()},
                       weights=None if self.weights is None else self.weights[rows],
                       times=None if self.times is None else self.times[rows])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        (n,) = self.lengths
        for start, stop, tile in cuts_of(self.fields, names, n, cut, tiled, limit):
            rows = slice(start, stop)
            yield HeldPiece(0, start, stop, tile, {name: self.arrays[name][rows] for name in names},
                            None if self.weights is None else self.weights[rows],
                            None if self.times is None else self.times[rows])


def cuts_of(fields: Mapping[str, Field], names: Sequence[str], n: int, cut: Cut, tiled: bool, limit: int) -> Cuts:
    """The cuts of n snapshots of the named fields; items are cut only where a single field is read."""
    for name in names:
        if name not in fields:
            raise UnknownFieldError(name, fields)
    if not names:
        raise InputError("name at least one field to read")
    if cut == "time":
        nbytes = sum(fields[name].nbytes for name in names)
        one = fields[names[0]] if len(names) == 1 else None
        return time_cuts(n, one.size if one else nbytes, one.dtype.itemsize if one else 1, tiled and one is not None,
                         limit)
    if len(names) != 1:
        raise InputError(f"cut=\"space\" reads one field at a time; got {list(names)}")
    one = fields[names[0]]
    return space_cuts(n, one.size, one.dtype.itemsize, limit)


@dataclass(frozen=True, eq=False)
class ReplicaSet(BaseSource):
    """Several independent runs of one thing: same fields, each run its own snapshots, weights and times."""

    runs: tuple[DescribedSource, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(map(described, self.runs)))

    @classmethod
    def of(cls, runs: Iterable[Any]) -> ReplicaSet:
        """From sources or arrays; a run that is itself a ReplicaSet brings its runs."""
        if not isinstance(runs, Iterable) or isinstance(runs, str | bytes):
            raise InputError(f"replicas are several runs in a list, [a, b]; got {type(runs).__name__}")
        flat: list[DescribedSource] = []
        given = list(runs)
        unit = unit_of(given[0]) if given else ""
        for run in (ArraySource.of(in_unit(x, unit, f"run {k}"), unit=unit) if unit and unit_of(x) not in ("", unit) else
                    as_source(x) for k, x in enumerate(given)):
            flat.extend(run.runs if isinstance(run, ReplicaSet) else [run])
        if not flat:
            raise InputError("a ReplicaSet needs at least one run")
        first = flat[0].fields
        for k, run in enumerate(flat):
            if run.lengths is None:
                raise InputError(f"run {k} is a stream read only once; ingest it into a store to use it as a replica")
            if set(run.fields) != set(first):
                raise InputError(f"run {k} has the fields {sorted(run.fields)}, run 0 has {sorted(first)}")
            for name, want in first.items():
                got = run.fields[name]
                if (got.shape, got.unit) != (want.shape, want.unit):
                    raise InputError(f"field {name!r} of run {k} is {got.shape} in {got.unit!r}; run 0 has "
                                     f"{want.shape} in {want.unit!r}")
        return cls(tuple(flat))

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.runs[0].fields

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(n for run in self.runs for n in (run.lengths or ()))

    @property
    def access(self) -> Access:
        order: list[Access] = ["once", "rows", "tiles"]
        return order[min(order.index(run.access) for run in self.runs)]

    @property
    def time_unit(self) -> str:
        return self.runs[0].time_unit

    @property
    def labels(self) -> Labels | None:
        """Those of the first run."""
        return self.runs[0].labels

    @property
    def mesh(self) -> object:
        """That of the first run."""
        return self.runs[0].mesh

    @property
    def provenance(self) -> Mapping[str, Any]:
        """That of the first run."""
        return self.runs[0].provenance

    @property
    def ordered(self) -> bool:
        """Whether the snapshots of every run follow each other; :func:`~ensemblekit.partials` asks each run for itself."""
        return all(run.ordered for run in self.runs)

    @property
    def caveat(self) -> str:
        """The first that a run has."""
        return next((run.caveat for run in self.runs if run.caveat), "")

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> ReplicaSet:
        """The same window of every run."""
        return ReplicaSet(tuple(run.window(start, stop, step) for run in self.runs))

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for k, run in enumerate(self.runs):
            for piece in run.pieces(names, cut, tiled, limit):
                yield RunPiece(k, piece.start, piece.stop, piece.tile, piece)

    def stacked(self) -> StackedSource:
        """All runs one after the other as one (for POD, where the order of snapshots does not matter)."""
        return StackedSource(self.runs)


@dataclass(frozen=True, eq=False)
class StackedSource(BaseSource):
    """Several runs as one, end to end, weights kept; times too where they are parts of one run (``joined``)."""

    runs: tuple[DescribedSource, ...]
    joined: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(map(described, self.runs)))

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.runs[0].fields

    @property
    def lengths(self) -> tuple[int, ...]:
        return (sum(sum(run.lengths or ()) for run in self.runs),)

    @property
    def access(self) -> Access:
        return ReplicaSet(self.runs).access

    @property
    def time_unit(self) -> str:
        return self.runs[0].time_unit if self.joined else ""

    @property
    def labels(self) -> Labels | None:
        """Those of the first run; without an epoch where the runs are not parts of one."""
        labels = self.runs[0].labels
        return labels if labels is None or self.joined else replace(labels, epoch="")

    @property
    def mesh(self) -> object:
        """That of the first run."""
        return self.runs[0].mesh

    @property
    def provenance(self) -> Mapping[str, Any]:
        """That of the first run."""
        return self.runs[0].provenance

    @property
    def ordered(self) -> bool:
        return ReplicaSet(self.runs).ordered

    @property
    def caveat(self) -> str:
        return ReplicaSet(self.runs).caveat

    @property
    def weights(self) -> np.ndarray | None:
        """Weights of all snapshots, (n,), 1 each in runs that have none; None where none has."""
        parts = [run.weights for run in self.runs]
        if all(part is None for part in parts):
            return None
        return np.concatenate([np.ones(sum(run.lengths or ())) if part is None else np.asarray(part, np.float64)
                               for run, part in zip(self.runs, parts, strict=True)])

    @property
    def times(self) -> np.ndarray | None:
        """Times of all snapshots, (n,), where the runs are parts of one and know them."""
        if not self.joined:
            return None
        parts = [part for run in self.runs if (part := run.times) is not None]
        return np.concatenate(parts) if len(parts) == len(self.runs) else None

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> StackedSource:
        check_window(start, stop, step)
        wanted = range(*slice(start, stop, step).indices(self.lengths[0]))
        kept, offset = [], 0
        for run in self.runs:
            n = sum(run.lengths or ())
            first = max(0, -(-(offset - wanted.start) // step))     # first member of the window at or after this run
            begin = wanted.start + first * step - offset
            end = min(n, wanted.stop - offset)
            if begin < end:
                kept.append(run.window(begin, end, step))
            offset += n
        return StackedSource(tuple(kept) or (self.runs[0].window(0, 0),), self.joined)

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        offset = 0
        if cut == "time":
            for run in self.runs:
                for piece in run.pieces(names, cut, False, limit):
                    yield RunPiece(0, piece.start + offset, piece.stop + offset, piece.tile, piece, self.joined)
                offset += sum(run.lengths or ())
            return
        (n,) = self.lengths
        one = self.fields[names[0]]
        width = max(1, limit // (max(n, 1) * one.dtype.itemsize))       # one width for all, whatever their lengths
        edges = [run.pieces(names, cut, tiled, width * sum(run.lengths or ()) * one.dtype.itemsize)
                 for run in self.runs if sum(run.lengths or ())]
        for parts in zip(*edges, strict=True):
            yield JoinedPiece(0, 0, n, parts[0].tile, tuple(parts))


ADAPTERS: list[Callable[[object], DescribedSource | None]] = []
"""What turns other packages' arrays into sources, asked one after the other; None where an array is not of their kind."""


def as_source(x: object) -> DescribedSource:
    """What it is already (a source, a stored field), or an array in memory with snapshots along axis 0."""
    if isinstance(x, SnapshotSource):
        return described(x)
    refuse_path(x)
    for adapter in ADAPTERS:
        adapted = adapter(x)
        if adapted is not None:
            return adapted
    if isinstance(x, Mapping):
        several = [name for name, values in x.items() if isinstance(values, SnapshotSource)]
        if several:
            raise InputError(f"these are several sources, {', '.join(map(repr, several))}; pass one of them, such as "
                             f"x[{several[0]!r}]")
    return ArraySource.of(x)


def numpy_dtype(x: Array) -> np.dtype:
    """The numpy dtype of an array; the nearest one that holds them for torch's own (bfloat16: float32)."""
    if not is_torch(x):
        return np.dtype(x.dtype)
    name = str(x.dtype).removeprefix("torch.")
    return np.dtype({"bfloat16": "float32"}.get(name, name))
