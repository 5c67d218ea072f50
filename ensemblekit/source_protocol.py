"""What every part of ensemblekit meets in: fields, blocks, pieces, and the protocol of what snapshots come from.

A *field* is one named array of every snapshot. A *source* gives fields that share one clock (step, time and
statistical weight), in one run or in several independent ones. It is read in *pieces*, recipes that travel to a
thread, a process or another machine, and each piece yields *blocks*: consecutive snapshots in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.intake_labels import Labels
from ensemblekit.source_joined import JoinedField

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

Array = Any
"""numpy, or any array with the same operators (torch on its device)."""
Cut = Literal["time", "space"]
Access = Literal["once", "rows", "tiles"]
Kind = Literal["observable", "position", "velocity", "force", "box"]


@dataclass(frozen=True, slots=True)
class Field:
    """One named array of every snapshot: its shape, type and unit."""

    shape: tuple[int, ...] = ()
    """Of one snapshot, without the snapshot axis; () is a scalar."""
    dtype: np.dtype = np.dtype("f8")  # noqa: RUF009  (immutable)
    unit: str = ""
    """In H5MD's notation: "nm ps-1", "m s-1"; "" where there is none."""
    kind: Kind = "observable"
    """Where the field stands in the file: an observable, or one of the four elements of a trajectory of particles."""
    clock: str = "main"
    """Fields of one clock share step, time and weight and are committed together."""
    finite: bool = False
    """Refuse snapshots that hold NaN or infinity."""

    if TYPE_CHECKING:       # it takes more than it keeps

        def __init__(self, shape: int | Sequence[int] = (), dtype: DTypeLike = "f8", unit: str = "", kind: Kind = "observable",
                     clock: str = "main", finite: bool = False) -> None: ...

    def __post_init__(self) -> None:
        shape = (self.shape,) if isinstance(self.shape, int | np.integer) else tuple(self.shape)
        if not all(isinstance(k, int | np.integer) and k > 0 for k in shape):
            raise InputError(f"a field's shape is whole numbers above 0, one an axis; got {self.shape!r}")
        object.__setattr__(self, "shape", tuple(int(k) for k in shape))
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise InputError(f"a field's dtype is one that numpy knows (\"f4\", \"i8\", ...); got {self.dtype!r}") from error
        if dtype.kind not in "biufc":
            raise InputError(f"a field holds numbers (bool, int, uint, float or complex); got dtype {dtype}")
        object.__setattr__(self, "dtype", dtype)

    @property
    def size(self) -> int:
        """Numbers in one snapshot."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of one snapshot."""
        return self.size * self.dtype.itemsize


class Block(NamedTuple):
    """Consecutive snapshots in memory, read-only.

    ``fields[name]`` is (n, *item), or (n, width) where the item was cut into tiles; ``start`` is the index in its run
    of the first snapshot; ``tile`` is the range of the flattened item (``WHOLE`` if it was not cut); weights and
    times are (n,) or None.
    """

    fields: Mapping[str, Array]
    start: int
    tile: slice
    weights: Array | None
    times: Array | None

    @property
    def only(self) -> Array:
        """The values of the only field."""
        (values,) = self.fields.values()
        return values

    def __len__(self) -> int:  # snapshots, not tuple members
        return self.fields.rows if isinstance(self.fields, JoinedField) else len(next(iter(self.fields.values())))


@runtime_checkable
class Piece(Protocol):
    """A recipe for consecutive blocks of one run.

    It pickles as paths and ranges (or holds its arrays) and opens files only where it is read.
    """

    @property
    def run(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def tile(self) -> slice: ...
    def prefetch(self) -> None:
        """Have the system begin to read what comes first; nothing, where there is nothing to gain. Covers hand it on."""

    def blocks(self) -> Iterator[Block]: ...


@runtime_checkable
class SnapshotSource(Protocol):
    """Snapshots on one clock: fields that share step, time and weight, in one run or several independent ones."""

    @property
    def fields(self) -> Mapping[str, Field]: ...
    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Snapshots of each run; None for a stream, whose length is known when it has ended."""

    @property
    def access(self) -> Access:
        """One forward read | any rows, again | space slabs too, at no extra reading."""

    @property
    def time_unit(self) -> str: ...
    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> SnapshotSource:
        """Fewer snapshots, nothing read yet: burn-in, stride, only what is new since the last look."""

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        """The recipes, run by run and in time order; set by the data and `limit`, never by workers.

        "time": consecutive snapshots as :func:`time_cuts` says, tile by tile inside each where `tiled`.
        "space": all snapshots of a run for one tile of at most `limit` bytes.
        """


class DescribedSource(SnapshotSource, Protocol):
    """A source, and what it knows besides its fields. What comes from outside becomes one at the door, :func:`described`."""

    @property
    def times(self) -> np.ndarray | None:
        """(n,) of one run, in ``time_unit``; None where there are none, or several runs."""

    @property
    def weights(self) -> np.ndarray | None:
        """Statistical weights of the snapshots of one run, (n,); None where they count alike, or there are several runs."""

    @property
    def labels(self) -> Labels | None:
        """Names of axes, coordinates and the epoch of the times; None where there are none."""

    @property
    def mesh(self) -> object:
        """The mesh that the fields live on, of the kind that a front-end knows; None where there is none."""

    @property
    def all_fields(self) -> Mapping[str, Field]:
        """Fields of every clock, where the source is one clock of several; else {}."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the snapshots were made of, as their store says; {} where nothing is said."""

    @property
    def ordered(self) -> bool:
        """Whether the snapshots follow each other in time. False: each is independent of the others (deposited models)."""

    @property
    def caveat(self) -> str:
        """What is to be said with every average of these snapshots; "" where there is nothing."""

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> DescribedSource: ...


class BaseSource(DescribedSource):
    """The base of the sources of this package: one knows its fields and nothing besides, until a subclass says what it knows.

    A dataclass that has one of these names as a field gives it a default: a property would stand in the field's place.
    """

    @property
    def times(self) -> np.ndarray | None:
        return None

    @property
    def weights(self) -> np.ndarray | None:
        return None

    @property
    def labels(self) -> Labels | None:
        return None

    @property
    def mesh(self) -> object:
        return None

    @property
    def all_fields(self) -> Mapping[str, Field]:
        return {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {}

    @property
    def ordered(self) -> bool:
        return True

    @property
    def caveat(self) -> str:
        return ""


@dataclass(frozen=True, eq=False)
class WrappedSource(BaseSource):
    """A source about another: how that is cut and what is in it, handed on."""

    source: SnapshotSource

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.source.fields

    @property
    def lengths(self) -> tuple[int, ...] | None:
        return self.source.lengths

    @property
    def access(self) -> Access:
        return self.source.access

    @property
    def time_unit(self) -> str:
        return self.source.time_unit


@dataclass(frozen=True, eq=False)
class SourceView(WrappedSource):
    """The base of a view: what it does not define itself is that of the `source`. Subclasses add ``window`` and ``pieces``."""

    source: DescribedSource

    @property
    def times(self) -> np.ndarray | None:
        return self.source.times

    @property
    def weights(self) -> np.ndarray | None:
        return self.source.weights

    @property
    def labels(self) -> Labels | None:
        return self.source.labels

    @property
    def mesh(self) -> object:
        return self.source.mesh

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.source.provenance

    @property
    def ordered(self) -> bool:
        return self.source.ordered

    @property
    def caveat(self) -> str:
        return self.source.caveat


@dataclass(frozen=True, eq=False)
class PlainSource(WrappedSource):
    """Someone's own source, which has the members of :class:`SnapshotSource` and perhaps some of what can be known besides."""

    @property
    def times(self) -> np.ndarray | None:
        return getattr(self.source, "times", None)

    @property
    def weights(self) -> np.ndarray | None:
        return getattr(self.source, "weights", None)

    @property
    def labels(self) -> Labels | None:
        return getattr(self.source, "labels", None)

    @property
    def mesh(self) -> object:
        return getattr(self.source, "mesh", None)

    @property
    def provenance(self) -> Mapping[str, Any]:
        return getattr(self.source, "provenance", {})

    @property
    def ordered(self) -> bool:
        return bool(getattr(self.source, "ordered", True))

    @property
    def caveat(self) -> str:
        return str(getattr(self.source, "caveat", ""))

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> DescribedSource:
        return described(self.source.window(start, stop, step))

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        return self.source.pieces(names, cut, tiled, limit)


def described(source: SnapshotSource) -> DescribedSource:
    """The source itself where it is one of the package, else a view of it that knows what it says."""
    return source if isinstance(source, BaseSource) else PlainSource(source)


def kind_of(source: SnapshotSource) -> str:
    """The name of the class of a source as it was given, without the views of it."""
    while isinstance(source, SourceView | PlainSource):
        source = source.source
    return type(source).__name__
