"""An archive of snapshots: fields that are read like arrays, decoded where they are asked for."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ensemblekit.errors import InputError, StoreError, UnknownFieldError, one_line
from ensemblekit.provenance import Provenance
from ensemblekit.results import Result
from ensemblekit.rom.archive_views import (
    JOB_BYTES,
)
from ensemblekit.rom.mesh import Mesh, constants_for
from ensemblekit.rom.quantise import (
    summed,
    tiles,
    unzigzag,
)
from ensemblekit.source import Field

FORMAT, WIDER = "ensemblekit archive 1", "ensemblekit archive 2"
"""The latter where some field has weights or gaps, which a reader of the first alone would pass over."""
LARGER = 8
"""Times that a number may be larger as it is read than as it stands in the archive, before it is deflated."""


def decompress(archive: Archive | str | os.PathLike[str], out: Any = None) -> Any:
    """What an archive holds, as if it were an array: read and rebuilt where it is sliced.

    Arguments:
        archive: its path, or an Archive.
        out: path of a store to write all snapshots to, block by block.

    Returns:
        The ArchivedField (``[...]`` gives all of it as a numpy array), the Archive where it has several fields, or the
        open store.

    Raises:
        StoreError: no file, or no archive.
    """
    if not isinstance(archive, Archive):
        archive = Archive.open(archive)
    if out is not None:
        return archive.to_store(out)
    return archive if len(archive) > 1 else next(iter(archive.values()))


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether an HDF5 file is one that :func:`compress` wrote. Raises StoreError where it cannot be opened."""
    from ensemblekit.store.hdf5 import opened

    with opened(os.fspath(path)) as f:
        return "ensemblekit_archive" in f.attrs


@dataclass(frozen=True, eq=False)
class Archive(Result, Mapping[str, "ArchivedField"]):
    """An archive: its fields by name, and how small and how true it is."""

    path: str
    tolerance: float
    norm: str
    relative_to: str
    held: Mapping[str, ArchivedField]
    times: np.ndarray | None
    """(n,), where the snapshots had any."""
    time_unit: str = ""
    mesh_bytes: int = 0
    """What the mesh takes of the file."""
    weighed: bool = False
    """Whether the error is that of an inner product."""
    provenance: Provenance | None = None
    """How it came about: versions, command line or caller, files that were read, settings, date."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], owner: object = None) -> Archive:
        """The archive at a path; nothing but its description is read. Raises StoreError where it is none."""
        from ensemblekit.store.hdf5 import opened

        path = os.fspath(path)
        with opened(path) as f:
            text = f.attrs.get("ensemblekit_archive")
            about = json.loads(text) if isinstance(text, str) else {}
            if about.get("format") not in (FORMAT, WIDER):
                raise StoreError(f"{path} is no archive of ensemblekit; rom.compress writes them")
            times = f["times"][...] if "times" in f else None
            held = {name: _field_in(f, path, name, one, owner) for name, one in about["fields"].items()}
            n = {one.shape[0] for one in held.values()}
            if len(n) != 1 or (times is not None and (times.shape != (*n,) or times.dtype.kind != "f")):
                raise StoreError(f"{path}: its fields have {sorted(n)} snapshots, its times are "
                                 f"{None if times is None else times.shape}")
            taken = sum(int(d.id.get_storage_size()) for d in f["mesh"].values()) if "mesh" in f else 0
            return cls(path, float(about["tolerance"]), str(about["norm"]), str(about["relative_to"]),
                       held, times, str(about["time_unit"]), taken, any("roots" in f[f"fields/{name}"] for name in held),
                       Provenance.from_dict(about.get("provenance")))

    def __getitem__(self, name: str) -> ArchivedField:
        if not isinstance(name, str):
            if len(self.held) == 1:
                return next(iter(self.held.values()))[name]
            raise InputError(f"name a field first: one of {sorted(self.held)}")
        if name not in self.held:
            raise UnknownFieldError(name, self.held)
        return self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)

    @property
    def error(self) -> float:
        """The largest relative error of a field, as measured against the data."""
        return max(one.error for one in self.values())

    @cached_property
    def mesh(self) -> Mesh | None:
        """That of the snapshots, to the last bit; None where they had none."""
        from ensemblekit.store.hdf5 import opened

        with opened(self.path) as f:
            return Mesh.from_arrays({name: d[...] for name, d in f["mesh"].items()}) if "mesh" in f else None

    @property
    def raw_bytes(self) -> int:
        """Of the snapshots as they were."""
        return sum(math.prod(one.shape) * one.dtype.itemsize for one in self.values())

    @property
    def stored_bytes(self) -> int:
        """Of the whole file, the mesh included."""
        return os.path.getsize(self.path)

    @property
    def ratio(self) -> float:
        """Bytes of the snapshots over bytes of the file, the mesh included."""
        return self.raw_bytes / self.stored_bytes

    @property
    def limit(self) -> float:
        """n/k, the most that modes kept in the type of the snapshots could reach; beyond it is the rounding's doing."""
        return min(one.limit for one in self.values())

    def save(self, path: str | os.PathLike[str]) -> Archive:
        """A copy of the file at a path, open."""
        shutil.copyfile(self.path, path)
        return Archive.open(path)

    def to_store(self, path: str | os.PathLike[str]) -> Any:
        """Write every snapshot to a new store, block by block; returns it open for reading."""
        from ensemblekit.store.opening import open_store
        from ensemblekit.store.store import Store

        fields = {name: Field(one.shape[1:], one.dtype, one.unit) for name, one in self.items()}
        n = next(iter(self.values())).shape[0]
        row = sum(f.nbytes for f in fields.values())
        rows = max(1, JOB_BYTES // max(row, 1))
        constants = constants_for(self.mesh) if self.mesh is not None else None
        with Store.create(path, fields, capacity=max(n, 1), time_unit=self.time_unit, constants=constants,
                          origin=Provenance.now([self.path])) as store:
            for a in range(0, n, rows):
                blocks = {name: one[a:a + rows] for name, one in self.items()}
                for k in range(len(next(iter(blocks.values())))):
                    when = None if self.times is None else float(self.times[a + k])
                    store.append({name: block[k] for name, block in blocks.items()}, time=when)
        return open_store(path)

    def _facts(self) -> dict[str, object]:
        return {"path": self.path, "tolerance": self.tolerance, "norm": self.norm, "relative_to": self.relative_to,
                "error": self.error, "raw_bytes": self.raw_bytes, "stored_bytes": self.stored_bytes, "ratio": self.ratio,
                "limit": self.limit, "time_unit": self.time_unit,
                "fields": {name: {"shape": one.shape, "dtype": str(one.dtype), "unit": one.unit, "rank": one.rank,
                                  "error": one.error} for name, one in self.items()}, "provenance": self.provenance}

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.raw_bytes / 1e6:.4g} MB in {self.stored_bytes / 1e6:.4g} MB, "
                 f"{self.ratio:.3g} times smaller"
                 + (f" ({self.mesh_bytes / 1e6:.4g} MB of it the mesh)" if self.mesh_bytes else "")]
        what = "largest" if self.norm != "l2" else "weighted root mean square" if self.weighed else "root mean square"
        for name, one in self.items():
            rest = "" if not one.residual_step else ", with the residual"
            lines.append(f"  {name}: {one.rank} modes{rest}; {what} error {100 * one.error:.3g} % of the {self.relative_to} "
                         f"(allowed {100 * self.tolerance:g} %, checked on all {one.shape[0]} snapshots); modes alone reach at "
                         f"most n/k = {one.limit:.3g}")
        return "\n".join(lines)

    __repr__ = __str__


def _field_in(f: Any, path: str, name: str, one: Mapping[str, Any], owner: object) -> ArchivedField:
    """A field of an archive as its record says. Raises StoreError where its arrays are others, or its sizes not in the file."""
    f._look.at = f"fields/{name}"
    group = f[f"fields/{name}"]
    shape, tile, dtype = (one["n"], *one["shape"]), tuple(one["tile"]), np.dtype(one["dtype"])
    rank = len(group["mode_steps"]) - 1
    whole = all(isinstance(n, int) and n > 0 for n in (*shape, *tile))
    wanted = {"mode_steps": (rank + 1,), "axes": (rank + 1,), "modes": (rank + 1, *shape[1:])}
    wanted |= {"coefficients": (shape[0], rank), "coefficient_steps": (rank,)} if rank else {}
    wanted |= {extra: at for extra, at in (("residual", shape), ("mask", shape[1:])) if extra in group}
    if "roots" in group:
        wanted["roots"] = shape[1:] if group["roots"].ndim == len(shape) - 1 else shape[1:-1]
    if "gaps" in group:
        wanted["gaps"] = (shape[0], -(-math.prod(shape[1:]) // 8))
    shapes = {key: group[key].shape for key in wanted}
    kinds = {key: group[key].dtype.kind for key in ("modes", "axes", *(["coefficients"] if rank else []),
                                                    *(["residual"] if "residual" in group else []))}
    if not whole or rank < 0 or len(tile) != len(shape) - 1 or dtype.kind != "f" or shapes != wanted or not (
            set(kinds.values()) <= {"u", "i"}):
        raise StoreError(f"{path}: the field {one_line(name)!r} says it has shape {shape}, tiles of {tile} and type {dtype}; "
                         f"its arrays are {shapes}, of the kinds {kinds}")
    f._look.check_some(math.prod(shape[1:]) * dtype.itemsize // LARGER, f"fields/{name}")
    f._look.check_some(64 * math.prod(-(-n // width) for n, width in zip(shape[1:], tile, strict=True)), f"fields/{name}")
    return ArchivedField(path=path, name=name, shape=shape, dtype=dtype, unit=str(one["unit"]), tile=tile, rank=rank,
                         error=float(one["error"]), owner=owner,
                         residual_step=float(one["residual_step"]) if "residual" in group else 0.0,
                         stored=sum(int(d.id.get_storage_size()) for d in group.values()))


@dataclass(frozen=True, eq=False, kw_only=True)
class ArchivedField(np.lib.mixins.NDArrayOperatorsMixin):
    """One field of an archive, like an array (n, *item) that is rebuilt where it is sliced."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    unit: str
    tile: tuple[int, ...]
    """Of the item: what is read at least."""
    rank: int
    error: float
    """Relative, as measured against the data, in the archive's norm."""
    residual_step: float
    stored: int
    """Bytes of its numbers in the file."""
    owner: Any = field(default=None, repr=False)
    """Who removes the file when it is let go."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def limit(self) -> float:
        """n/k; see :attr:`Archive.limit`."""
        return self.shape[0] / max(self.rank, 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an archive is rebuilt when it is read; it cannot be had without a copy")
        values = self[...]
        return values if dtype is None else values.astype(dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, ArchivedField) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def __getitem__(self, index: object) -> np.ndarray:
        """Slices, numbers and lists of numbers, one an axis, as numpy takes them; only the tiles touched are read."""
        index = index if isinstance(index, tuple) else (index,)
        if any(i is None or (isinstance(i, np.ndarray) and i.dtype == bool and i.ndim > 1) for i in index):
            return self[...][index]
        index = _expanded(index, self.ndim)
        box, inside = [], []
        for i, length in zip(index, self.shape, strict=True):
            span, rest = _span(i, length)
            box.append(span)
            inside.append(rest)
        return self._box(box)[tuple(inside)]

    def _box(self, box: list[slice]) -> np.ndarray:
        """The snapshots and numbers of a box, from the tiles that it touches."""
        from ensemblekit.store.hdf5 import opened

        rows, *where = box
        m = rows.stop - rows.start
        out = np.empty((m, *(s.stop - s.start for s in where)), self.dtype)
        if not out.size:
            return out
        with opened(self.path) as f:
            f._look.asked = True
            group = f[f"fields/{self.name}"]
            steps, axes = group["mode_steps"][...], group["axes"][...]
            coefficients = (unzigzag(group["coefficients"][rows]) * group["coefficient_steps"][...] if self.rank
                            else np.zeros((m, 0)))
            for tile in tiles(self.shape[1:], self.tile):
                cut = [slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(where, tile, strict=True)]
                if any(c.start >= c.stop for c in cut):
                    continue
                q = unzigzag(group["modes"][(slice(None), *tile)])
                for kind in np.unique(axes):
                    chosen = axes == kind
                    q[chosen] = summed(q[chosen], int(kind))
                inner = tuple(slice(c.start - t.start, c.stop - t.start) for c, t in zip(cut, tile, strict=True))
                q = q[(slice(None), *inner)]
                held = q.reshape(len(q), -1) * steps[:, None]
                values = coefficients @ held[1:] + held[0]
                if self.residual_step:
                    rest = unzigzag(group["residual"][(rows, *cut)])
                    values = values + rest.reshape(m, -1) * self.residual_step
                if "roots" in group:
                    roots = group["roots"]
                    each = roots[tuple(cut[:roots.ndim])].reshape(-1, 1).astype(np.float64)
                    if not (each > 0).all():
                        raise StoreError(f"{self.path}: the weights of {self.name!r} are damaged: some are not above 0")
                    values = (values.reshape(m, len(each), -1) / each).reshape(m, -1)
                if "mask" in group:
                    values[:, ~group["mask"][tuple(cut)].ravel()] = np.nan
                if "gaps" in group:
                    values[self._missing(group["gaps"], rows, cut)] = np.nan
                outer = tuple(slice(c.start - s.start, c.stop - s.start) for c, s in zip(cut, where, strict=True))
                out[(slice(None), *outer)] = values.astype(self.dtype).reshape(m, *q.shape[1:])
        return out

    def _missing(self, gaps: Any, rows: slice, cut: list[slice]) -> np.ndarray:
        """(m, numbers of the cut): where they are NaN in these snapshots; no more bytes are read than lie between them."""
        item = self.shape[1:]
        places = np.arange(1) if not item else np.ravel_multi_index(
            np.ix_(*(np.arange(c.start, c.stop) for c in cut)), item).ravel()
        first = int(places[0]) // 8
        held = gaps[rows, first:int(places[-1]) // 8 + 1]
        return (held[:, places // 8 - first] >> (7 - places % 8).astype(np.uint8) & 1).astype(bool)

    def __repr__(self) -> str:
        return f"<ArchivedField {self.name!r} {self.shape} {self.dtype}, error {100 * self.error:.3g} %>"


def _expanded(index: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """An index for every axis, Ellipsis filled in."""
    dots = [k for k, i in enumerate(index) if i is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index holds a single ellipsis")
    given = len(index) - len(dots)
    if given > ndim:
        raise IndexError(f"too many indices: {given} for {ndim} axes")
    at = dots[0] if dots else len(index)
    return (*index[:at], *[slice(None)] * (ndim - given), *index[at + len(dots):])


def _span(i: object, length: int) -> tuple[slice, Any]:
    """The box along one axis that an index needs, and the index within that box."""
    if isinstance(i, slice):
        wanted = range(*i.indices(length))
        if not len(wanted):
            return slice(0, 0), slice(0, 0)
        low, high = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
        first = wanted[0] - low
        stop = first + len(wanted) * wanted.step
        return slice(low, high + 1), slice(first, stop if stop >= 0 else None, wanted.step)
    if isinstance(i, int | np.integer):
        k = int(i) + length if i < 0 else int(i)
        if not 0 <= k < length:
            raise IndexError(f"index {i} is out of bounds for an axis of {length}")
        return slice(k, k + 1), 0
    several = np.asarray(i)
    if several.dtype == bool:
        if several.shape != (length,):
            raise IndexError(f"a mask of shape {several.shape} on an axis of {length}")
        several = np.flatnonzero(several)
    if not several.size:
        return slice(0, 0), np.zeros(several.shape, np.int64)
    if several.dtype.kind not in "iu" or several.min() < -length or several.max() >= length:
        raise IndexError(f"indices {i!r} are not whole numbers within an axis of {length}")
    several = np.where(several < 0, several + length, several)
    return slice(int(several.min()), int(several.max()) + 1), several - several.min()
