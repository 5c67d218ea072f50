"""What every reader of snapshot files gives, and how names of files become an order and times."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ensemblekit.errors import SnapshotFileError, UnknownFieldError
from ensemblekit.files import why_unreadable
from ensemblekit.intake_labels import Labels
from ensemblekit.rom.mesh import Mesh
from ensemblekit.source import Field


@dataclass(frozen=True, slots=True)
class Options:
    """What to read of a file that holds more than one wants."""

    fields: tuple[str, ...] | None = None
    region: str | None = None
    patch: str | None = None
    zone: str | None = None
    snapshot_axis: int | None = None
    zero: bool = False
    """Read the initial state too, where a solver keeps it apart (OpenFOAM's 0/)."""
    moving: bool = False
    """Take fields of a mesh in motion cell by cell, on the mesh as it was before it moved."""
    external: bool = False
    """Read also what an HDF5 file points to in other files."""
    timed: bool = True
    """Take the times that the files say."""
    time: str | None = None
    """Name of the axis of the snapshots, of files that name their axes."""
    area: str | None = None
    """Name of the variable with the areas of cells."""


class Reader(Protocol):
    """Snapshots of one file, case or series: pickles as paths and options, opens files only where it is asked to read."""

    @property
    def path(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Field]: ...
    @property
    def n(self) -> int: ...
    @property
    def times(self) -> np.ndarray | None: ...
    @property
    def time_unit(self) -> str: ...
    @property
    def tiles(self) -> bool:
        """Whether a part of every snapshot is read without reading the rest (``read`` takes a tile)."""

    def mesh(self) -> Mesh | None: ...
    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        """(len(rows), *item) of each field; (len(rows), width) with a tile. Raises SnapshotFileError."""


@runtime_checkable
class DatedReader(Protocol):
    """A reader whose files say what times are counted from."""

    @property
    def epoch(self) -> str:
        """The instant, and the calendar: "1900-01-01 noleap"; "" where they do not say."""


@runtime_checkable
class NamedReader(Protocol):
    """A reader whose files may name axes and say coordinates."""

    @property
    def labels(self) -> Labels | None: ...


BOOKKEEPING = ("vtkGhostType", "vtkValidPointMask", "vtkBlockColors", "SourceElementSide", "TimeValue", "procID", "partitionID",
               "cellToRegion", "cellDist", "cellDecomposition", "processorID")
IDENTIFIER = re.compile(r"(vtk)?_?(global|local|original|pedigree|implicit|source|process|element_?block)?_?"
                        r"(node|point|cell|element|elem|face|edge|vertex|object|process|rank|block|part|proc)?_?ids?",
                        re.IGNORECASE)


def bookkeeping(name: str, dtype: np.dtype) -> bool:
    """Whether a field is a number of points and cells (GlobalNodeId) or a mark on them, and no field of a flow."""
    plain = name.rpartition("/")[2].removesuffix("_point")
    return plain in BOOKKEEPING or (np.dtype(dtype).kind in "biu" and IDENTIFIER.fullmatch(plain) is not None)


NUMBER = re.compile(r"\d+\.\d*(?:[eE][-+]?\d+)?|\d+(?:[eE][-+]\d+)?")


def known_times(times: np.ndarray, path: str, *, stacklevel: int = 6) -> np.ndarray | None:
    """The times of a file's snapshots; None, which is told, where some are no number."""
    bad = ~np.isfinite(times)
    if not bad.any():
        return times
    warnings.warn(f"{path}: {int(bad.sum())} of {len(times)} times are missing (the first is number {int(np.argmax(bad))}): "
                  "snapshots are counted instead. Say them with times=", stacklevel=stacklevel)
    return None


def numbers_in_names(stems: Sequence[str]) -> np.ndarray | None:
    """The one number in which the names of a series differ, if it rises along it: steps or times."""
    numbers = [NUMBER.findall(stem) for stem in stems]
    if len(stems) < 2 or len({len(f) for f in numbers}) != 1 or len({NUMBER.sub("#", s) for s in stems}) != 1:
        return None
    columns = [c for c in zip(*numbers, strict=True) if len(set(c)) > 1]
    if len(columns) != 1:
        return None
    values = np.array([float(x) for x in columns[0]])
    return values if (np.diff(values) > 0).all() else None


def all_timed(known: Sequence[bool], paths: Sequence[str], stacklevel: int) -> bool:
    """Whether every file of a series says its time; a warning where only some do."""
    if any(known) and not all(known):
        missing = [path for path, one in zip(paths, known, strict=True) if not one]
        warnings.warn(f"{len(missing)} of {len(known)} files say no time ({missing[0]} first), and the times of the others are "
                      "left out with theirs: snapshots go by the numbers in their names. Say the times with times=",
                      stacklevel=stacklevel)
    return bool(known) and all(known)


def check_readable(path: str) -> None:
    """Raise SnapshotFileError where no file can be read under a name."""
    why = why_unreadable(path)
    if why:
        raise SnapshotFileError(path, why)


def chosen(names: Sequence[str] | None, present: Iterable[str], path: str) -> list[str]:
    """The fields asked for, all by default; an error lists those there are."""
    there = list(present)
    if names is None:
        if not there:
            raise SnapshotFileError(path, "no field of numbers in it")
        return there
    for name in names:
        if name not in there:
            raise MissingFieldError(name, there, path)
    return list(names)


class MissingFieldError(UnknownFieldError):
    """A field that a file does not have; the message lists those that it has."""

    def __init__(self, name: object, present: Iterable[object], path: str = ""):
        super().__init__(name, present)
        self.path = path
        self.args = (name, self.present, path)

    def __str__(self) -> str:
        return f"{self.path}: {super().__str__()}" if self.path else super().__str__()


def places_of(numbers: np.ndarray, path: str, word: str, base: int = 0) -> np.ndarray:
    """Where each of n things stands in a file that numbers them in an order of its own, from `base` on.

    Raises SnapshotFileError where a number comes twice, or there is none of it.
    """
    order = np.argsort(numbers, kind="stable")
    wrong = np.flatnonzero(numbers[order] != base + np.arange(len(numbers)))
    if len(wrong):
        counts = np.unique(numbers, return_counts=True)
        twice = counts[0][counts[1] > 1]
        what = f"{word} {twice[0]} comes {counts[1][counts[1] > 1][0]} times" if len(twice) else (
            f"{word} {base + int(wrong[0])} does not come, {int(numbers[order][wrong[0]])} does")
        raise SnapshotFileError(path, f"numbers its {len(numbers)} {word}s wrongly: {what}, where each of {base} to "
                                      f"{base + len(numbers) - 1} comes once. Its values cannot be put in place")
    return order


def lean(reader: object) -> dict[str, Any]:
    """What of a reader travels to another process: paths and options, no mesh that was read meanwhile."""
    return {key: None if key == "on" else value for key, value in reader.__dict__.items() if key != "_mesh"}


@dataclass(frozen=True, eq=False)
class Held:
    """Arrays that are in memory or mapped, opened anew by a function of the path wherever they are read."""

    path: str
    fields: Mapping[str, Field]
    n: int
    times: np.ndarray | None
    time_unit: str
    load: Any
    """Function of (path, name) -> array with snapshots along axis 0."""
    on: Mesh | None = None
    tiles: bool = True

    def mesh(self) -> Mesh | None:
        return self.on

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        arrays = {}
        for name in names:
            values = self.load(self.path, name)
            part = values[rows.start:rows.stop:rows.step]
            if tile is not None:
                part = part.reshape(len(part), -1)[:, tile]
            arrays[name] = np.asarray(part, self.fields[name].dtype)
        return arrays
