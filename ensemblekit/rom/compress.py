"""Archives of snapshots: modes and coefficients rounded as coarsely as a stated error allows, checked against the data."""

from __future__ import annotations

import json
import math
import os
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ensemblekit.averaging.run import Progress, reduce
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Engine, Threads, one_blas_thread
from ensemblekit.errors import InputError, StoreError
from ensemblekit.files import replacing
from ensemblekit.provenance import Provenance, files_of, given
from ensemblekit.rom.archive import FORMAT, WIDER, Archive
from ensemblekit.rom.archive_views import (
    LEVEL,
    SingleField,
    WeighedField,
    roots_of_weights,
    run_length,
    without_gaps,
)
from ensemblekit.rom.decompose.problem import Snapshots, times_of
from ensemblekit.rom.encode import Norm, Reference, _Coded, _encode, _Wanted
from ensemblekit.rom.mesh import Mesh, constants_for, mesh_of
from ensemblekit.rom.product import GivenProduct
from ensemblekit.rom.quantise import (
    differenced,
    narrowest,
    tiles,
    zigzag,
)
from ensemblekit.source import Block, DescribedSource, as_source

OPTIONS = ("memory_limit", "method", "seed", "oversampling", "power")


def compress(source: Snapshots, path: str | os.PathLike[str] | None = None, *, tolerance: float, norm: Norm = "l2",
             relative_to: Reference = "fluctuation", inner_product: GivenProduct = None,
             missing: Literal["raise", "keep"] = "raise", engine: Engine | None = None,
             progress: Progress = False, **options: Any) -> Archive:
    """Snapshots as one HDF5 archive of rounded modes and coefficients, with an error that is guaranteed.

    The error allowed is shared between modes left out and rounding by reverse water filling; modes are differenced
    along the grid where that makes their numbers smaller, and deflated. What is written is then decoded and held against
    every snapshot; where that misses the tolerance (as POD alone does in the maximum norm) the residual is rounded and
    kept as well, so that the tolerance holds in any case.

    Arguments:
        source: a stored field, a store, what ``rom.read`` gives, or an array with snapshots along axis 0; real numbers.
        path: of the archive; None keeps it in a temporary file until the Archive is let go (or ``save``\\ d).
        tolerance: the error allowed for each field, relative.
        norm: "l2", root of the sum of squares over all numbers and snapshots; "max", the largest error of any number.
        relative_to: "fluctuation", the same norm of the snapshots less their mean; "total", of the snapshots.
        inner_product: None counts all numbers alike; weights, a mapping of field to weights, or "auto" (the volumes of the
            source's mesh) as for :func:`pod` weigh each number's square in an error of norm "l2". The weights' roots are kept
            in the archive.
        missing: numbers that are NaN in every snapshot stay so. Where they come and go, "raise", or "keep": they are read as
            NaN again, and the error told, relative to the fluctuation, is no less than that of the numbers that are there.
        engine, progress: as for ``ensemblekit.reduce``; progress tells of the check.
        options: of :func:`pod`: memory_limit, method, seed, oversampling, power.

    Returns:
        Archive: lazy slices, the error reached, the ratio, and n/k, the most that modes alone could reach.

    Raises:
        InputError: a tolerance out of range or below the rounding of the field's own type, complex or whole numbers,
            NaN that comes and goes, several runs, weights with norm "max", a sparse mass matrix, another option of pod's.
        StoreError: the file cannot be written.
    """
    settings = given(compress, locals(), "source", "path", "engine", "progress") | options
    source = as_source(source)
    wanted = _wanted(source, tolerance, norm, relative_to, missing, options)
    if path is not None and not os.path.isdir(os.path.dirname(os.path.abspath(os.fspath(path)))):
        raise StoreError(f"no folder {os.path.dirname(os.path.abspath(os.fspath(path)))!r} to write the archive to")
    weights = roots_of_weights(source, inner_product, norm)
    parts = {}
    with one_blas_thread():         # small matrices and many slabs: the engine's threads are at work already
        for name in source.fields:
            view: Any = SingleField(source, name)
            gaps = None
            if missing == "keep":
                view, gaps = without_gaps(view, name)
            view = view if weights[name] is None else WeighedField(view, name, weights[name])
            parts[name] = _encode(view, name, wanted, engine or Threads(), progress, options)
            parts[name].gaps = gaps
    if path is None:
        handle, file = tempfile.mkstemp(suffix=".h5", prefix="ensemblekit-archive-")
        os.close(handle)
    else:
        file = os.fspath(path)
    _write(file, source, parts, wanted, mesh_of(source), Provenance.now(files_of(source), settings))
    return Archive.open(file, _Temporary(file) if path is None else None)


def _wanted(source: DescribedSource, tolerance: float, norm: Norm, relative_to: Reference, missing: str,
            options: Mapping[str, object]) -> _Wanted:
    """The error allowed; InputError where it, an option or the source is none that an archive goes with."""
    if not isinstance(tolerance, int | float | np.floating) or not 0 < tolerance < 1:
        raise InputError(f"tolerance is a relative error between 0 and 1; got {tolerance!r}")
    if norm not in ("l2", "max"):
        raise InputError(f'norm is "l2" or "max"; got {norm!r}')
    if missing not in ("raise", "keep"):
        raise InputError(f'missing is "raise" or "keep"; got {missing!r}. Gaps are filled in by rom.pod(..., missing="gappy")')
    if missing == "keep" and relative_to == "total":
        raise InputError('missing="keep" goes with relative_to="fluctuation": the size of what is missing is not known')
    odd = [option for option in options if option not in OPTIONS]
    if odd:
        raise InputError(f"compress takes no {odd[0]}=. An archive holds the snapshots themselves, in as many modes as that "
                         f"takes. Options are {', '.join(OPTIONS)}")
    if relative_to not in ("fluctuation", "total"):
        raise InputError(f'relative_to is "fluctuation" or "total"; got {relative_to!r}')
    if source.lengths is None or len(source.lengths) > 1:
        raise InputError("an archive holds one run of known length; join runs with .stacked(), ingest streams first")
    if not source.lengths[0]:
        raise InputError("the source has no snapshots; there is nothing to compress")
    for name, one in source.fields.items():
        if one.dtype.kind != "f":
            raise InputError(f"field {name!r} is {one.dtype}; an archive with an error holds real floating-point numbers. "
                             "Leave whole numbers to `seal(compression=...)`, split complex ones into two fields")
    return _Wanted(float(tolerance), norm, relative_to)


def _write(path: str, source: DescribedSource, parts: Mapping[str, _Coded], wanted: _Wanted, mesh: Mesh | None,
           provenance: Provenance) -> None:
    """All of it to a temporary file beside `path`, then renamed."""
    from ensemblekit.store.hdf5 import new_file

    times, n = times_of(source), run_length(source)
    if times is None or len(times) != n:
        times = reduce(source, {"times": (_times, Series())}, fields=[next(iter(source.fields))])["times"]
    try:
        with replacing(path, follow=True) as temporary, new_file(temporary, libver=("v110", "v110")) as f:
            more = any(coded.roots is not None or coded.gaps is not None for coded in parts.values())
            about: dict[str, Any] = {"format": WIDER if more else FORMAT, "tolerance": wanted.tolerance,
                                     "norm": wanted.norm, "relative_to": wanted.relative_to, "time_unit": source.time_unit,
                                     "provenance": provenance.to_dict(), "fields": {}}
            for name, coded in parts.items():
                about["fields"][name] = {
                    "shape": list(coded.item), "dtype": coded.dtype.str, "unit": source.fields[name].unit,
                    "n": n, "tile": list(coded.tile), "residual_step": coded.residual_step,
                    "error": coded.relative,
                    "l2_error": coded.error, "largest_error": coded.largest_error, "norm": coded.norm}
                _write_field(f.create_group(f"fields/{name}"), coded)
            if not np.isnan(times).all():
                f.create_dataset("times", data=times, compression="gzip", shuffle=True)
            for name, values in (constants_for(mesh) if mesh is not None else {}).items():
                kept = {"compression": "gzip", "shuffle": True} if values.ndim and values.dtype.kind in "iuf" else {}
                f.create_dataset(name, data=values, **kept)
            f.attrs["ensemblekit_archive"] = json.dumps(about)
    except OSError as error:
        raise StoreError(f"{path}: the archive cannot be written ({error})") from error


def _times(block: Block) -> np.ndarray:
    return np.full(len(block), np.nan) if block.times is None else np.asarray(block.times, np.float64)


def _write_field(group: Any, coded: _Coded) -> None:
    filters = {"shuffle": True, "compression": "gzip", "compression_opts": LEVEL}
    rows = len(coded.modes)
    z = np.empty(coded.modes.shape, np.uint64)
    for where in tiles(coded.item, coded.tile):
        for axes in np.unique(coded.axes):
            chosen = np.flatnonzero(coded.axes == axes)
            part: tuple[Any, ...] = (chosen, *where)
            z[part] = zigzag(differenced(coded.modes[part], int(axes)))
    # a chunk holds one row of one tile, or several rows where the item is small
    several = max(1, min(rows, (1 << 14) // max(1, math.prod(coded.tile))))
    group.create_dataset("modes", data=z.astype(narrowest(int(z.max(initial=0)))), chunks=(several, *coded.tile), **filters)
    group.create_dataset("mode_steps", data=coded.mode_steps)
    group.create_dataset("axes", data=coded.axes)
    n, k = coded.coefficients.shape
    if k:
        c = zigzag(coded.coefficients)
        # column by column, as neighbours in time are alike in size
        group.create_dataset("coefficients", data=c.astype(narrowest(int(c.max(initial=0)))),
                             chunks=(min(n, 1024), min(k, 8)), **filters)
        group.create_dataset("coefficient_steps", data=coded.coefficient_steps)
    if coded.mask is not None:
        group.create_dataset("mask", data=coded.mask, compression="gzip")
    if coded.roots is not None:
        roots = coded.roots.reshape(coded.item)
        if roots.ndim > 1 and (roots == roots[..., :1]).all():      # components of a cell weigh alike
            roots = roots[..., 0]
        group.create_dataset("roots", data=roots, **(filters if roots.ndim else {}))
    if coded.gaps is not None:
        wide = -(-math.prod(coded.item) // 8)
        held = group.create_dataset("gaps", (n, wide), np.uint8, chunks=(coded.gaps.rows, wide), maxshape=(None, wide),
                                    compression="gzip", compression_opts=LEVEL)
        for number, data in enumerate(coded.gaps.chunks):
            held.id.write_direct_chunk((number * coded.gaps.rows, 0), data)
    if coded.residual:
        held = group.create_dataset("residual", (n, *coded.item), coded.residual_dtype,
                                    chunks=(coded.residual_rows, *coded.tile), maxshape=(None, *coded.item), **filters)
        for start, corner, data in coded.residual:
            held.id.write_direct_chunk((start, *corner), data)


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


class _Temporary:
    """Keeps a file while anybody holds it; also at the end of the process it is removed."""

    def __init__(self, path: str):
        weakref.finalize(self, _forget, path)


__all__ = ["compress"]
