"""What a store's file says of itself: names, places and types, as JSON with a checksum.

docs/file-format.md describes the bytes; this file is the only one that knows the names.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, StoreDamagedError
from ensemblekit.source import Field

FORMAT = 2
MAIN = "main"
MD_UNITS = {"position": "Angstrom", "box": "Angstrom", "velocity": "Angstrom ps-1", "force": "kJ mol-1 Angstrom-1"}
META = np.dtype([("step", "<i8"), ("time", "<f8"), ("weight", "<f8")])     # what is said of a snapshot beside its values
SCHEMA = "ensemblekit/schema"               # uint8 (length,): UTF-8 JSON
SCHEMA_SUM = "ensemblekit/schema_checksum"  # uint64 (): xxh3_64 of those bytes
CLOSED = "ensemblekit/closed"               # uint64 (clocks + 1,): snapshots of each clock at a clean close, xxh3_64
PLACES = "ensemblekit/places"               # a table a clock: where its rows lie in the file
PACKED = "ensemblekit/packed"               # values of small fields side by side, a dataset a clock and type of number
PADDING = "ensemblekit/padding"             # bytes without meaning
CONSTANTS = "ensemblekit/constants"         # arrays that do not change with time
PARTICLES = "particles/trajectory"
CHUNK_BYTES = 1 << 20
GROWING_BYTES = 256 << 10                   # of chunks in a file that grows: it has room for so much beyond its last row
SMALL_BYTES = 64 << 10                      # there, of a stack of scalars, steps, times, weights and checksums
PACKED_BYTES = 128                          # of a snapshot of a field that may share a dataset with others,
PACKED_FIELDS = 8                           # where there are so many of its clock and type of number
CACHE_LINE = 64
TILE_BYTES = 8 << 20
MAX_CHUNK = (4 << 30) - 1                   # HDF5's own limit
LARGEST_SCHEMA = 32 << 20                   # bytes of JSON that are read
DIVISORS = 1 << 14                          # that are tried at once
MOST_ROWS = 1 << 56
MOST_FILES = 1 << 32
MOST_AXES = 31                              # of an item: HDF5 has 32
MOST_SNAPSHOT_BYTES = 1 << 42
KINDS = ("observable", "position", "velocity", "force", "box")
COMMIT_ORDER = {"position": 0, "velocity": 1, "force": 2}


@dataclass(frozen=True, slots=True)
class Column:
    """One dataset of a clock: the values of a field, or of several small ones, or its step, time, weight or checksums."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    unit: str
    chunk: tuple[int, ...]
    """Rows of a chunk, then its item axes."""
    fields: tuple[str, ...] = ()
    """Those whose values these are: several stand side by side in a row, each flattened; none: step, time, ..."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


Compression = str | tuple[str, float] | tuple[str, float, str] | None
"""As ``seal`` takes it."""


@dataclass(frozen=True)
class Schema:
    """The description of one segment of a store."""

    fields: Mapping[str, Field]
    run: str
    replica: str | None = None
    time_unit: str = ""
    provenance: Mapping[str, Any] | None = None
    author: str = "unknown"
    segment: int = 0
    """Which file of the store this is, from 0."""
    starts: Mapping[str, int] | None = None
    """Clock -> snapshots of the store that stand in earlier segments."""
    capacity: Mapping[str, int] | None = None
    """Clock -> rows that were allocated here."""
    in_place: bool = True
    """Rows are written into the file; False: every file is written whole, by temporary name and rename."""
    sealed: bool = False
    """Complete: no row is ever added, and further segments beside it are leftovers."""
    compression: Compression = None
    """As given to ``seal``."""
    constants: Mapping[str, int] | None = None
    """Name -> checksum of the arrays of the run that do not change with time; they stand in the first file."""
    origin: Mapping[str, Any] | None = None
    """Where the run is from: created, command, versions, inputs, settings."""
    token: str = ""
    """Random, one a file: tells it from any other file that may come to have its name or its inode."""
    format: int = FORMAT

    @cached_property
    def clocks(self) -> dict[str, list[str]]:
        """Clock -> its fields, in the order they are written; the first field's extent is the commit.

        Positions (velocities, forces) go first: programs that follow the file count its frames by them.
        """
        clocks: dict[str, list[str]] = {}
        for name, field in self.fields.items():
            clocks.setdefault(field.clock, []).append(name)
        for names in clocks.values():
            names.sort(key=lambda name: COMMIT_ORDER.get(self.fields[name].kind, len(COMMIT_ORDER)))
        return clocks

    def element(self, name: str) -> str:
        """The H5MD element (a group with value, step and time) of a field."""
        field = self.fields[name]
        if field.clock != MAIN:
            return f"ensemblekit/clocks/{field.clock}/{name}"
        if field.kind == "observable":
            return f"observables/{name}"
        return f"{PARTICLES}/box/edges" if field.kind == "box" else f"{PARTICLES}/{field.kind}"

    @cached_property
    def stored(self) -> dict[str, list[tuple[str, ...]]]:
        """Clock -> its fields by the dataset that holds their values, in the order in which these are written.

        Small fields of one type of number share a dataset where they are many: a dataset has two kilobytes of metadata.
        """
        return {clock: self._stored(names) for clock, names in self.clocks.items()}

    def _stored(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        alike: dict[str, list[str]] = {}
        for name in names:
            field = self.fields[name]
            if self.format > 1 and field.kind == "observable" and field.nbytes <= PACKED_BYTES:
                alike.setdefault(stored_dtype(field.dtype).str, []).append(name)
        packs: dict[str, tuple[str, ...]] = {}      # the first of several fields -> all of them
        for some in alike.values():
            most = TILE_BYTES // PACKED_BYTES       # so that a row is never cut into tiles
            for part in (some[k:k + most] for k in range(0, len(some), most)):
                if len(part) >= PACKED_FIELDS:
                    packs[part[0]] = tuple(part)
        inside = {name for pack in packs.values() for name in pack}
        return [packs.get(name, (name,)) for name in names if name in packs or name not in inside]

    def columns(self, clock: str, rows: int) -> list[Column]:
        """All datasets of a clock: the values of its fields first, then step, time, weight and checksums."""
        stored = self.stored[clock]
        home = self.element(self.clocks[clock][0])
        weight = "observables/weight" if clock == MAIN else f"ensemblekit/clocks/{clock}/weight"
        columns: list[tuple[Any, ...]] = []
        packed: dict[str, int] = {}
        for names in stored:
            field = self.fields[names[0]]
            dtype = stored_dtype(field.dtype)
            if len(names) == 1:
                columns.append((f"{self.element(names[0])}/value", field.shape, dtype, field.unit, names))
                continue
            kind = dtype.str[1:]
            again = packed[kind] = packed.get(kind, -1) + 1
            columns.append((f"{PACKED}/{clock}/{kind}{f'-{again}' if again else ''}",
                            (sum(self.fields[name].size for name in names),), dtype, "", names))
        columns += [(f"{home}/step", (), np.dtype("<i8"), "", ()), (f"{home}/time", (), np.dtype("<f8"), self.time_unit, ()),
                    (f"{weight}/value", (), np.dtype("<f8"), "", ()),
                    (f"ensemblekit/checksums/{clock}", (len(stored) + 1,), np.dtype("<u8"), "", ())]
        if self.format == 1:
            return [Column(path, shape, dtype, unit, chunk_shape(shape, dtype.itemsize, rows), fields)
                    for path, shape, dtype, unit, fields in columns]
        small, _ = self.groups(clock)
        few = [k in small for k in range(len(columns))]
        grows = self.in_place and not self.sealed
        stacked = {kind: stack_of([(shape, dtype.itemsize) for (_, shape, dtype, *_), is_few in zip(columns, few, strict=True)
                                   if is_few == kind], rows, CHUNK_BYTES if not grows else SMALL_BYTES if kind else
                                  GROWING_BYTES // min(8, len(self.clocks)))
                   for kind in (True, False)}
        return [Column(path, shape, dtype, unit, (stacked[kind], *chunk_shape(shape, dtype.itemsize, 1)[1:]), fields)
                for (path, shape, dtype, unit, fields), kind in zip(columns, few, strict=True)]

    def groups(self, clock: str) -> tuple[list[int], list[int]]:
        """The columns of a clock (their numbers in ``columns``) that get their room together: small ones, and arrays."""
        stored = self.stored[clock]
        arrays = [k for k, names in enumerate(stored) if len(names) == 1 and self.fields[names[0]].shape]
        alone = set(arrays)
        return [k for k in range(len(stored) + 4) if k not in alone], arrays

    def parts(self, column: Column) -> Iterator[tuple[str, int, int]]:
        """(field, first number of its values in a row, the one behind the last) of a column that several fields share."""
        start = 0
        for name in column.fields:
            stop = start + self.fields[name].size
            yield name, start, stop
            start = stop

    def packed(self, clock: str, values: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
        """n rows of the fields of a clock, in their order, as its columns hold them."""
        if len(self.stored[clock]) == len(values):
            return list(values)
        rows = dict(zip(self.clocks[clock], values, strict=True))
        return [rows[names[0]] if len(names) == 1 else np.concatenate([rows[name].reshape(n, -1) for name in names], axis=1)
                for names in self.stored[clock]]

    def at(self, segment: int, starts: Mapping[str, int], capacity: Mapping[str, int], **changes: Any) -> Schema:
        """The description of a new file."""
        return replace(self, segment=segment, starts=dict(starts), capacity=dict(capacity), format=FORMAT,
                       token=uuid.uuid4().hex, **changes)

    def to_json(self) -> bytes:
        record = {
            "format": self.format, "token": self.token, "run": self.run, "replica": self.replica, "time_unit": self.time_unit,
            "author": self.author, "segment": self.segment, "starts": dict(self.starts or {}),
            "capacity": dict(self.capacity or {}), "in_place": self.in_place, "sealed": self.sealed,
            "compression": self.compression, "provenance": dict(self.provenance or {}),
            "origin": dict(self.origin or {}),
            **({"constants": dict(self.constants)} if self.constants else {}),
            "fields": {name: {"shape": list(f.shape), "dtype": f.dtype.str, "unit": f.unit, "kind": f.kind,
                              "clock": f.clock, "finite": f.finite, "element": self.element(name)}
                       for name, f in self.fields.items()},
        }
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Schema:
        """The schema that a file holds. Raises StoreDamagedError in one line, whatever the text is."""
        try:
            record = json.loads(text, parse_constant=_refused)
            return cls(**_checked(record))
        except StoreDamagedError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError, MemoryError) as error:
            words = " ".join(str(error)[:400].split())
            raise StoreDamagedError(f"the description of this store cannot be read: {type(error).__name__}: {words}") from error


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _wanted(record: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """An entry of a description, of one of these types."""
    value = record[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise StoreDamagedError(f"the description of this store says {name!r} is {str(value)[:80]!r}, a "
                                f"{type(value).__name__}, not a {' or '.join(k.__name__ for k in kinds)}")
    return value


def _counts(record: Mapping[str, Any], name: str, clocks: Iterable[str], most: int = MOST_ROWS) -> dict[str, int]:
    """Clock -> a whole number from 0."""
    counts = _wanted(record, name, dict)
    for clock in clocks:
        if not 0 <= _wanted(counts, clock, int) <= most:
            raise StoreDamagedError(f"the description of this store says {name} {counts[clock]} of {clock!r}, "
                                     f"beyond 0 to {most}")
    return counts


def _checked(record: object) -> dict[str, Any]:
    """The arguments of a Schema, each of its type and within what a file can be."""
    if not isinstance(record, dict):
        raise StoreDamagedError(f"the description of this store is a {type(record).__name__}, not a mapping")
    if not 1 <= _wanted(record, "format", int) <= FORMAT:
        raise StoreDamagedError(f"this store has file format {str(record['format'])[:40]}; this version of ensemblekit "
                                f"reads up to {FORMAT}: update it")
    fields = {}
    described = _wanted(record, "fields", dict)
    for name in described:
        f = _wanted(described, name, dict)
        shape = _wanted(f, "shape", list)
        if len(shape) > MOST_AXES or not all(type(k) is int and 0 < k <= MOST_SNAPSHOT_BYTES for k in shape):
            raise StoreDamagedError(f"the description of this store says field {name!r} has shape {str(shape)[:80]}")
        dtype = _wanted(f, "dtype", str)
        if re.fullmatch(r"[<>|=]?[biufc]\d{1,2}|[?]", dtype) is None:
            raise StoreDamagedError(f"the description of this store says field {name!r} has dtype {dtype[:40]!r}")
        fields[name] = Field(tuple(shape), np.dtype(dtype), _wanted(f, "unit", str), _wanted(f, "kind", str),
                             _wanted(f, "clock", str), _wanted(f, "finite", bool))
        if fields[name].kind not in KINDS:
            raise StoreDamagedError(f"the description of this store says field {name!r} is of kind {fields[name].kind[:40]!r}")
    fields = check_fields(fields)
    for f in fields.values():
        chunk_shape(f.shape, f.dtype.itemsize, 1)
    nbytes = sum(f.nbytes for f in fields.values())
    if nbytes > MOST_SNAPSHOT_BYTES:
        raise StoreDamagedError(f"the description of this store says a snapshot has {nbytes} bytes")
    clocks = {f.clock for f in fields.values()}
    constants: dict[str, int] = {} if record.get("constants") is None else _wanted(record, "constants", dict)
    for name, digest in constants.items():
        if not 0 <= _wanted(constants, name, int) < 1 << 64:
            raise StoreDamagedError(f"the description of this store says constant {name!r} has checksum {digest}")
        _check_constant_name(name)
    return {"fields": fields, "run": _wanted(record, "run", str), "replica": _wanted(record, "replica", str, type(None)),
            "time_unit": _wanted(record, "time_unit", str), "provenance": _wanted(record, "provenance", dict),
            "author": _wanted(record, "author", str),
            "segment": _counts({"segment": record}, "segment", ["segment"], MOST_FILES)["segment"],
            "starts": _counts(record, "starts", clocks), "capacity": _counts(record, "capacity", clocks),
            "in_place": _wanted(record, "in_place", bool), "sealed": _wanted(record, "sealed", bool),
            "compression": record["compression"], "constants": constants or None, "format": record["format"],
            "origin": _wanted(record, "origin", dict, type(None)) if "origin" in record else None,
            "token": _wanted(record, "token", str) if "token" in record else ""}


def check_fields(fields: Mapping[str, Any]) -> dict[str, Field]:
    """The fields of a new store, or an InputError that says what is wrong with them."""
    if not isinstance(fields, Mapping) or not fields:
        raise InputError("a store needs at least one field: {\"velocity\": ek.Field((64, 64, 2), \"f4\", unit=\"m s-1\")}")
    checked = {}
    for name, field in fields.items():
        if not isinstance(name, str) or not name or set(name) & set("/.\0") or name in ("weight", "step", "time"):
            raise InputError(f"a field's name is text without '/' and '.', and not weight, step or time; got {name!r}")
        if not isinstance(field, Field):
            raise InputError(f"field {name!r} is described by an ek.Field(shape, dtype, unit=...); got {field!r}")
        if set(field.clock) & set("/.\0") or not field.clock:
            raise InputError(f"the clock of field {name!r} is a word without '/' and '.'; got {field.clock!r}")
        if (field.dtype.itemsize > 8 and field.dtype.kind == "f") or field.dtype.itemsize > 16:
            raise InputError(f"field {name!r}: {field.dtype} differs from machine to machine; take \"f8\" or \"c16\"")
        checked[name] = field
    kinds = [f.kind for f in checked.values() if f.kind != "observable"]
    if len(set(kinds)) < len(kinds):
        raise InputError(f"a trajectory has one field a kind; got the kinds {kinds}")
    if any(f.kind != "observable" and f.clock != MAIN for f in checked.values()):
        raise InputError("positions, velocities, forces and box belong to the clock \"main\"")
    if kinds and "position" not in kinds and "velocity" not in kinds and "force" not in kinds:
        raise InputError("a box needs particles: add a field of kind \"position\"")
    for name, field in checked.items():
        if field.kind in ("position", "velocity", "force") and not (len(field.shape) == 2 and field.shape[1] == 3):
            raise InputError(f"field {name!r} of kind {field.kind!r} has shape (particles, 3); got {field.shape}")
        if field.kind == "box" and field.shape not in ((3,), (3, 3)):
            raise InputError(f"field {name!r} of kind \"box\" has shape (3, 3) (rows are cell vectors) or (3,); "
                             f"got {field.shape}")
        if field.kind != "observable" and not field.unit:
            raise InputError(f"field {name!r} of kind {field.kind!r} needs a unit that MD programs know, for example "
                             f"unit={MD_UNITS[field.kind]!r}")
    return checked


def _check_constant_name(name: object) -> None:
    parts = name.split("/") if isinstance(name, str) else [""]
    if not isinstance(name, str) or not all(parts) or "." in parts or ".." in parts or "\0" in name:
        raise InputError(f"a constant's name is words with '/' between them, such as \"mesh/points\"; got {name!r}")


def check_constants(constants: object) -> dict[str, np.ndarray]:
    """The arrays of a run that do not change with time, or an InputError that says what is wrong with them."""
    if not isinstance(constants, Mapping):
        raise InputError(f"constants are a mapping of name to array; got {constants!r}")
    checked = {}
    for name, values in constants.items():
        _check_constant_name(name)
        array = np.ascontiguousarray(values)
        if array.dtype.kind not in "biufc" or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
            raise InputError(f"constant {name!r} is an array of numbers of 64 bits at most; got dtype {array.dtype}")
        checked[name] = array.astype(stored_dtype(array.dtype), copy=False)
    return checked


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """Little-endian on disk; bool as HDF5's enumeration of int8, complex as its pair."""
    return dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype


def stack_of(items: list[tuple[tuple[int, ...], int]], rows: int, nbytes: int) -> int:
    """Rows of a chunk of columns that get their room together, about `nbytes` in all; whole cache lines where they fit."""
    sizes = [math.prod(shape) * itemsize for shape, itemsize in items]
    if not sizes or max(sizes) > TILE_BYTES:
        return 1
    stacked = max(1, min(rows, nbytes // sum(sizes)))
    even = math.lcm(*(CACHE_LINE // math.gcd(CACHE_LINE, size) for size in sizes))
    return stacked // even * even or stacked


def _largest_divisor(n: int, most: int) -> int:
    """The largest divisor of n that is not above `most`; by blocks, as a description from elsewhere may ask for any n."""
    for high in range(most, 0, -DIVISORS):
        some = np.arange(high, max(0, high - DIVISORS), -1)
        even = np.flatnonzero(n % some == 0)
        if len(even):
            return int(some[even[0]])
    return 1


def chunk_shape(shape: tuple[int, ...], itemsize: int, rows: int) -> tuple[int, ...]:
    """Whole snapshots stacked to about 1 MiB (format 1); large snapshots in tiles of about 8 MiB along one axis.

    The tiles of a snapshot follow each other in the file, so that a mapped snapshot is one array: the first axis may
    be cut unevenly (the last tile then leaves a gap behind the snapshot), a later one only into equal parts, which
    may be larger than 8 MiB where its length has no small divisor.
    """
    nbytes = math.prod(shape) * itemsize
    if nbytes <= TILE_BYTES:
        stacked = max(1, min(rows, CHUNK_BYTES // nbytes))
        even = CACHE_LINE // math.gcd(CACHE_LINE, nbytes)       # rows that fill whole cache lines
        return (stacked // even * even or stacked, *shape)
    axis = next(k for k in range(len(shape)) if math.prod(shape[k + 1:]) * itemsize <= TILE_BYTES)
    inner = math.prod(shape[axis + 1:]) * itemsize
    parts = -(-shape[axis] * inner // TILE_BYTES)
    if math.prod(shape[:axis]) == 1:
        width = -(-shape[axis] // parts)
    else:
        width = shape[axis] // _largest_divisor(shape[axis], parts)
    if width * inner > MAX_CHUNK:
        raise InputError(f"a snapshot of shape {shape} cannot be cut into parts that follow each other in a file; "
                         f"store it flat, shape ({math.prod(shape)},)")
    return (1, *(1 for _ in range(axis)), width, *shape[axis + 1:])
