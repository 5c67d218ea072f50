"""The fields, clocks and boxes of HDF5 files that are not ours: H5MD of any dialect, and plain datasets."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import xxhash

from ensemblekit.errors import EnsemblekitError, StoreError, one_line
from ensemblekit.source import Field, Kind
from ensemblekit.store import guarded
from ensemblekit.store.attributes import number_attribute, small_attribute, texts_attribute
from ensemblekit.store.datasets import Dataset, locate, unit_of
from ensemblekit.store.guarded import door
from ensemblekit.store.hdf5 import opened, read_rows
from ensemblekit.store.schema import MAIN

PARTICLE_KINDS: dict[str, Kind] = {"position": "position", "velocity": "velocity", "force": "force", "box": "box"}
FEW_TICKS = 4 << 20             # steps or times of a stranger's file that are read when it is opened


@dataclass(frozen=True, slots=True)
class Counted:
    """Steps or times at even distances: computed where they are asked for."""

    n: int
    increment: float = 1
    offset: float = 0
    dtype: str = "i8"

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice) -> np.ndarray:
        asked = range(self.n)[rows]
        try:
            return (np.arange(asked.start, asked.stop, asked.step) * self.increment + self.offset).astype(self.dtype)
        except MemoryError:
            raise StoreError(f"{len(asked)} steps or times do not fit into memory; ask for a window of them") from None


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Steps or times that a file lists, too many to be read before they are asked for."""

    path: str
    dataset: Dataset
    n: int
    dtype: str

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice) -> np.ndarray:
        asked = range(self.n)[rows]
        return read_rows(self.path, self.dataset.path, slice(asked.start, asked.stop, asked.step),
                         external=self.dataset.external).astype(self.dtype)


Ticks = np.ndarray | Counted | Listed
"""The steps or times of a clock of somebody else's file, as an array where they are few."""


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A field of somebody else's file: where its values stand and what its clock is."""

    name: str
    field: Field
    dataset: Dataset
    n: int
    steps: Ticks
    times: Ticks | None
    time_unit: str
    place: str
    """Of the values in the file."""


@dataclass(frozen=True, slots=True, eq=False)
class Particles:
    """A particles group of somebody else's H5MD file."""

    name: str
    fields: Mapping[str, str]
    """Kind ("position", "velocity", "force", "box") -> the field of that name in the store."""
    edges: np.ndarray | None
    """(3, 3) vectors of a box that stays; None where it has none, or one that varies ("box" is a field then)."""


def particles_in(path: str, foreign: Mapping[str, Foreign], external: bool = False) -> list[Particles]:
    """The particles groups of a file whose fields `foreign` are; StoreError where a box is periodic along some axes only."""
    kinds = ("position", "velocity", "force", "box")
    names = dict.fromkeys(one.place.split("/")[1] for one in foreign.values() if one.place.startswith("particles/"))
    groups = []
    with opened(path, external) as f:
        for name in names:
            fields: dict[str, str] = {str(one.field.kind): label for label, one in foreign.items()
                                      if one.place.startswith(f"particles/{name}/") and one.field.kind in kinds}
            box = f.get(f"particles/{name}/box")
            with door(f._look):
                periodic = isinstance(box, guarded.Group) and _periodic(f, box)
                edges = _fixed_edges(box) if periodic and "box" not in fields else None
            if not periodic:
                fields.pop("box", None)
            groups.append(Particles(name, fields, edges))
    return groups


def _periodic(f: guarded.File, box: guarded.Group) -> bool:
    """Whether a box is: along all axes or none."""
    words = texts_attribute(box, "boundary", f._look)
    if len(set(words)) > 1:
        raise StoreError(f"{f.filename}: the boundary of {one_line(box.name)!r} is {', '.join(map(one_line, words))}; boxes "
                         "that are periodic along some of their axes only are not known here")
    return words != ["none"] * len(words)


def _fixed_edges(box: guarded.Group) -> np.ndarray | None:
    """Vectors (3, 3) of a box that stays: a dataset, or (H5MD 1.0) an attribute, of three lengths or three vectors."""
    node = box.get("edges")
    if isinstance(node, guarded.Values) and node.shape in ((3,), (3, 3)):
        edges = np.asarray(node[()])
    elif "edges" in box.attrs:
        edges = np.asarray(small_attribute(box, "edges"))
    else:
        return None
    if edges.shape not in ((3,), (3, 3)) or edges.dtype.kind not in "iuf" or not np.isfinite(edges).all():
        raise StoreError(f"{one_line(box.name)!r}: the edges of a box are three finite lengths, or three vectors")
    return np.diag(edges).astype(np.float64) if edges.ndim == 1 else edges.astype(np.float64)


def foreign_in(f: guarded.File, path: str) -> dict[str, Foreign]:
    """The fields of a file that is not ours, see :func:`read_file`."""
    left_out: list[str] = []
    with open(os.dup(f.id.get_vfd_handle()), "rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        result: dict[str, Foreign] = {}
        clocks: dict[tuple[Any, ...], int] = {}
        for label, (node, group, kind) in _values_in(f, left_out).items():
            f._look.at = label[:guarded.LONGEST_NAME]
            try:
                with door(f._look):
                    steps, n = _ticks(f, group, "step", node.shape[0], "i8", raw, size)
                    times, n = _ticks(f, group, "time", n, "f8", raw, size)
                    if n == 0:
                        continue
                    assert steps is not None
                    steps, times = _first(steps, n), None if times is None else _first(times, n)
                    at = clocks.setdefault((n, _key(steps), _key(times)), len(clocks))
                    field = Field(node.shape[1:], node.dtype.newbyteorder("="), unit_of(node), kind,
                                  MAIN if at == 0 else f"clock{at + 1}")
                    place = node.name.strip("/")
                    time_unit = "" if times is None or group is None else unit_of(group["time"])
                    dataset = locate(f, place, raw, size, d=node)
                    result[label] = Foreign(label, field, dataset, n, steps, times, time_unit, place)
            except EnsemblekitError as error:
                left_out.append(str(error))
    if left_out:
        words = "; ".join(one_line(problem).removeprefix(f"{path}: ") for problem in left_out[:3])
        more = f"; and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        if not result:
            raise StoreError(f"{path}: no field can be read: {words}{more}")
        logging.getLogger("ensemblekit").warning("%s: left out, as they cannot be read: %s%s", path, words, more)
    return result


def _values_in(f: guarded.File, left_out: list[str]) -> dict[str, tuple[guarded.Values, guarded.Group | None, Kind]]:
    """Field -> (its values, the group that has its step and time or None, its kind)."""
    nodes: dict[str, tuple[guarded.Values, guarded.Group | None, Kind]] = {}
    taken: dict[str, int] = {}
    groups: dict[str, Any] = {"": f}
    for name, node in guarded.walk(f, f._look, left_out):
        parts = name.split("/")
        if isinstance(node, guarded.Group):
            groups[name] = node
        try:
            if not isinstance(node, guarded.Values) or parts[0] in ("h5md", "ensemblekit") or not node.shape:
                continue
            if node.dtype.kind not in "biufc" or node.shape[0] == 0 or math.prod(node.shape) == 0:
                continue
            group = groups["/".join(parts[:-1])]
            if parts[-1] in ("step", "time") and "value" in group:
                continue
            kind: Kind = "observable"
            if parts[-1] == "value" and len(parts) > 1:
                label = parts[-2]
                if parts[0] == "particles":
                    label = "box" if label == "edges" else label
                    kind = PARTICLE_KINDS.get(label, "observable")
                label = "/".join(parts[1:-1]) if parts[0] == "observables" else label
                again = taken[label] = taken.get(label, -1) + 1
                nodes[label + "'" * again if again < 8 else f"{label}'{again}"] = node, group, kind
            elif parts[0] not in ("particles", "parameters", "connectivity"):
                nodes[name] = (node, None, kind)
        except guarded.ODD as error:
            left_out.append(str(error) if isinstance(error, EnsemblekitError) else f"{name!r} ({one_line(error)})")
    return nodes


def _ticks(f: guarded.File, group: guarded.Group | None, name: str, n: int, dtype: str, raw: BinaryIO,
           size: int) -> tuple[Ticks | None, int]:
    """(steps or times, snapshots that have them): as listed, from the scalar increment and offset of H5MD 1.1, or
    steps counted where they are missing."""
    node = None if group is None else group.get(name)
    if node is None:
        return (Counted(n) if n > FEW_TICKS else np.arange(n)) if name == "step" else None, n
    f._look.at = str(node.name)
    if not isinstance(node, guarded.Values) or node.shape is None or node.dtype.kind not in "biuf" or node.ndim > 1:
        raise StoreError(f"{f.filename}: {one_line(node.name)!r} is no row of numbers")
    if node.ndim == 0:
        given = number_attribute(node, "offset")
        increment, offset = node[()], given
        if not (np.isfinite(increment) and np.isfinite(offset)):
            raise StoreError(f"{f.filename}: {one_line(node.name)!r} has the increment {increment} and the offset {offset}")
        counted = Counted(n, increment.item(), offset, dtype)
        return counted if n > FEW_TICKS else counted[:], n
    n = min(n, len(node))
    if n > FEW_TICKS:
        assert group is not None
        # by the way it was found, as with `external` the name may be one in another file
        return Listed(f.filename, locate(f, f"{group.name}/{name}".strip("/"), raw, size, d=node), n, dtype), n
    f._look.check_size(node)
    return node[:n].astype(dtype), n


def _first(ticks: Ticks, n: int) -> Ticks:
    return ticks[:n] if isinstance(ticks, np.ndarray) else replace(ticks, n=n)


def _key(ticks: Ticks | None) -> Any:
    """The same for two fields whose steps (times) are the same."""
    if isinstance(ticks, np.ndarray):
        return xxhash.xxh3_128_digest(ticks.tobytes())
    return (ticks.dataset.path, ticks.dataset.offset) if isinstance(ticks, Listed) else ticks
