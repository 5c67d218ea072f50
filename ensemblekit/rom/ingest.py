"""Snapshot files into a store, with their mesh, times and units; a copy that was cut short goes on where it stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ensemblekit.errors import EnsemblekitError, InputError, SnapshotFileError, StoreError
from ensemblekit.provenance import Provenance, files_of, given
from ensemblekit.rom.file_source import BATCH, FileSource, MeshedSource
from ensemblekit.rom.mesh import Mesh, constants_for, mesh_of
from ensemblekit.rom.read import Paths, as_snapshots
from ensemblekit.source import Block, Field, SnapshotSource, as_source
from ensemblekit.source_protocol import described
from ensemblekit.store import labels as store_labels
from ensemblekit.store.schema import check_fields
from ensemblekit.store.store import Store
from ensemblekit.store.vtkhdf import SUFFIX

Progress = bool | Callable[[int, int], None]


def ingest(source: Paths | SnapshotSource, path: str | os.PathLike[str], *, dtype: DTypeLike | None = None,
           compression: Any = None, seal: bool = True, resume: bool = True, progress: Progress = False,
           **options: Any) -> Store:
    """Copy snapshots into a store and open it.

    Arguments:
        source: files as for :func:`ensemblekit.rom.read`, with its options, or any source or array.
        path: of the store; ends in .vtkhdf where there is a mesh, as ParaView and pyvista go by that.
        dtype: "f4" stores numbers of 64 bits in half the space.
        compression: as for ``Store.seal``. On a mesh it is the one that ParaView can undo.
        seal: end with one compact file that ParaView opens. False leaves the store open for more; ``store.publish()``
            then makes a small file for ParaView.
        resume: go on where an earlier call for the same snapshots stopped; False refuses a file that is there.
        progress: True for a bar with bytes a second and the time left, or a function of (snapshots done, in all).

    Raises:
        SnapshotFileError: a file cannot be read; all snapshots before it are in the store, and the same call goes on
            from there when the file is mended.
        InputError: a mesh and a name that does not fit, or a suffix .vtkhdf without a mesh.
        StoreError: the name is taken by something else, or the disk is full.
    """
    settings = given(ingest, locals(), "source", "path", "progress") | options
    path = os.fspath(path)
    opened = as_snapshots(source, **options)
    if opened is source and options:
        raise InputError(f"{', '.join(options)} are options of reading files; a source is windowed, or read with them")
    snapshots = as_source(opened)
    if snapshots.lengths is not None and len(snapshots.lengths) > 1:
        raise InputError("a store holds one run; ingest independent runs one by one")
    mesh = mesh_of(snapshots)
    _check_suffix(path, mesh)
    fields = _fields(snapshots.fields, dtype)
    check_fields(fields)
    if mesh is not None:
        where = {name: mesh.where(f, snapshots.fields[f].shape) for name, f in _names(snapshots.fields).items()}
        mesh = mesh.with_fields(where)
    (n,) = snapshots.lengths if snapshots.lengths is not None else (None,)
    about = {"fields": {name: [list(f.shape), f.dtype.str, f.unit] for name, f in fields.items()}, "snapshots": n,
             "mesh": mesh.digest if mesh is not None else None,
             "files": [os.path.basename(p) for p in snapshots.paths[:100]] if isinstance(
                 snapshots, FileSource | MeshedSource) else []}
    if os.path.lexists(path):
        if not resume:
            raise StoreError(f"{path} is there already; choose another name, or resume=True to go on with it")
        done = _earlier(path, about, snapshots)
        if done is not None:
            return done
        store = Store.open(path, "a")
    else:
        store = Store.create(path, fields, capacity=n or None, time_unit=snapshots.time_unit, provenance={"ingest": about},
                             constants=_constants(snapshots, mesh) or None,
                             origin=Provenance.now(files_of(source) + files_of(snapshots), settings))
    with store:
        copied = _copy(snapshots, store, _names(snapshots.fields), n, progress)
        if n is not None and copied != n:
            raise StoreError(f"{path}: {copied} of {n} snapshots were copied")
        if seal and copied:
            return store.seal(compression=compression)
    return Store.open(path)


def _constants(snapshots: SnapshotSource, mesh: Mesh | None) -> dict[str, np.ndarray]:
    """What a store keeps beside the snapshots: the mesh, and the labels by the names that its fields have there."""
    constants = {} if mesh is None else constants_for(mesh)
    labels = described(snapshots).labels
    if labels is None:
        return constants
    labels = labels.only(list(snapshots.fields))
    for plain, name in _names(snapshots.fields).items():
        labels = labels.renamed(name, plain)
    return constants | store_labels.constants_for(labels)


def _check_suffix(path: str, mesh: Mesh | None) -> None:
    """Whether ParaView knows the store by its name; a warning where it could, an error where there is nothing to show."""
    if mesh is not None and not path.endswith(SUFFIX):
        warnings.warn(f"{os.path.basename(path)}: a store of fields on a mesh that is called *{SUFFIX} opens in ParaView and "
                      "pyvista; they go by the suffix", stacklevel=3)
    if mesh is None and path.endswith(SUFFIX):
        raise InputError(f"{path}: there is no mesh to show the fields on; call it {os.path.splitext(path)[0]}.h5, or pass "
                         "mesh=")


def _names(fields: Mapping[str, Field]) -> dict[str, str]:
    """Name in a store -> name in the source; a store's names have no '/' and '.'."""
    names: dict[str, str] = {}
    for name in fields:
        plain, k = plain_name(name), 2
        while plain in names:                # "alpha.water" beside "alpha_water"
            plain, k = f"{plain_name(name)}_{k}", k + 1
        names[plain] = name
    return names


def plain_name(name: str) -> str:
    plain = name.strip("/").replace("/", "_").replace(".", "_").replace("\0", "") or "values"
    return f"{plain}_field" if plain in ("weight", "step", "time") else plain


def _fields(fields: Mapping[str, Field], dtype: DTypeLike | None) -> dict[str, Field]:
    stored = {}
    for plain, name in _names(fields).items():
        field = fields[name]
        kind = np.dtype(dtype) if dtype is not None and field.dtype.kind == "f" else field.dtype
        if kind.kind == "f" and kind.itemsize > 8:
            kind = np.dtype("f8")
        stored[plain] = Field(field.shape, kind, field.unit)
    return stored


def _earlier(path: str, about: Mapping[str, Any], snapshots: Any) -> Store | None:
    """The store, where all is there already; None where it can be gone on with. Raises StoreError where it is another."""
    store = Store.open(path)
    before = store.provenance.get("ingest")
    if before != about:
        differs = "it was not made by ingest" if not isinstance(before, dict) else ", ".join(
            key for key in about if before.get(key) != about[key]) + " differ"
        raise StoreError(f"{path} is there already and holds something else ({differs}); choose another name, or delete it")
    n = len(store)
    if n and snapshots.lengths is not None:
        window = snapshots.window(n - 1, n)
        fields = _names(snapshots.fields)
        for piece in window.pieces(list(fields.values()), "time", False, BATCH):
            for block in piece.blocks():
                for name, theirs in fields.items():
                    stored = store[name][n - 1]
                    if not np.array_equal(stored, np.asarray(block.fields[theirs][0], stored.dtype), equal_nan=True):
                        raise StoreError(f"{path} is there already, and its snapshot {n - 1} is not that of the files; choose "
                                         "another name, or delete it")
    return store if store.sealed or (n == about["snapshots"] and store.sealed) else None


def _copy(snapshots: Any, store: Store, names: Mapping[str, str], n: int | None, progress: Progress) -> int:
    done = len(store)
    a_row = sum(f.nbytes for f in snapshots.fields.values())
    tell = _teller(progress, n, a_row, done)
    try:
        rest = snapshots.window(done) if done else snapshots
        for piece in rest.pieces(list(names.values()), "time", False, BATCH):
            try:
                for block in piece.blocks():
                    _append(store, block, names)
                    done += len(block)
                    tell(done)
            except SnapshotFileError as error:
                done = len(store)
                _one_by_one(snapshots, store, names, n)
                raise _with_advice(error, store) from error
    finally:
        tell(None)
    return len(store)


def _append(store: Store, block: Block, names: Mapping[str, str]) -> None:
    values = {plain: np.asarray(block.fields[name]).astype(store.all_fields[plain].dtype, copy=False)
              for plain, name in names.items()}
    store.extend(values, times=block.times, weights=block.weights)


def _one_by_one(snapshots: Any, store: Store, names: Mapping[str, str], n: int | None) -> None:
    """What of a batch lies before the file that cannot be read."""
    for k in range(len(store), n or 0):
        try:
            for piece in snapshots.window(k, k + 1).pieces(list(names.values()), "time", False, BATCH):
                for block in piece.blocks():
                    _append(store, block, names)
        except EnsemblekitError:
            return


def _with_advice(error: SnapshotFileError, store: Store) -> SnapshotFileError:
    return SnapshotFileError(error.path, f"{error.problem}. The {len(store)} snapshots before it are in {store.path}; mend the "
                                         "file and ingest again to go on from there")


def _teller(progress: Progress, n: int | None, a_row: int, done: int) -> Callable[[int | None], None]:
    if callable(progress):
        return lambda k: None if k is None else progress(k, n or k)
    if not progress:
        return lambda k: None
    from tqdm.auto import tqdm

    bar = tqdm(total=None if n is None else n * a_row, initial=done * a_row, unit="B", unit_scale=True, unit_divisor=1024)

    def tell(k: int | None) -> None:
        if k is None:
            bar.close()
        else:
            bar.update(k * a_row - bar.n)

    return tell
