"""Archives of snapshots: modes and coefficients rounded as coarsely as a stated error allows, checked against the data."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import warnings
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from ensemblekit.averaging.extremes import Extremes
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Engine, Serial, Threads, one_blas_thread
from ensemblekit.errors import InputError, StatisticsError, StoreError, UnknownFieldError, one_line
from ensemblekit.files import replacing
from ensemblekit.rom.archive_views import (
    JOB_BYTES,
    LEVEL,
    RESIDUAL_CHUNK,
    Gaps,
    ScaledField,
    SingleField,
    WeighedField,
    roots_of_weights,
    without_gaps,
)
from ensemblekit.rom.gaps import GapsError
from ensemblekit.rom.mesh import Mesh, constants_for, mesh_of
from ensemblekit.rom.pod import pod
from ensemblekit.rom.problem import times_of
from ensemblekit.rom.quantise import (
    best_axes,
    differenced,
    narrowest,
    shuffled,
    summed,
    tile_of,
    tiles,
    unzigzag,
    water_fill,
    zigzag,
)
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import Block, Field, as_source

FORMAT, WIDER = "ensemblekit archive 1", "ensemblekit archive 2"
"""The latter where some field has weights or gaps, which a reader of the first alone would pass over."""
OPTIONS = ("memory_limit", "method", "seed", "oversampling", "power")
LARGER = 8
"""Times that a number may be larger as it is read than as it stands in the archive, before it is deflated."""
SLAB = 1 << 12
"""Numbers of a mode that are multiplied at a time."""
ORDINARY = 2.0**-600, 2.0**800
"""Energies between these have lost nothing to over- or underflow."""
SCALE = -280, 380
"""Powers of two of the largest number between which nothing of an archive leaves float64."""
NO_GAPS = ("An archive holds numbers that are there in every snapshot or in none; missing=\"keep\" (--missing keep) reads "
           "others as NaN again. Or drop those snapshots, or fill them in first, as rom.pod(..., missing=\"gappy\") does from "
           "the modes")
Norm = Literal["l2", "max"]
Reference = Literal["fluctuation", "total"]


def compress(source: Any, path: Any = None, *, tolerance: float, norm: Norm = "l2",
             relative_to: Reference = "fluctuation", inner_product: Any = None, missing: Literal["raise", "keep"] = "raise",
             engine: Engine | None = None, progress: Any = False, **options: Any) -> Archive:
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
            NaN again, and the error is that of the numbers that are there (relative to their fluctuation).
        engine, progress: as for ``ensemblekit.reduce``; progress tells of the check.
        options: of :func:`pod`: memory_limit, method, seed, oversampling, power.

    Returns:
        Archive: lazy slices, the error reached, the ratio, and n/k, the most that modes alone could reach.

    Raises:
        InputError: a tolerance out of range or below the rounding of the field's own type, complex or whole numbers,
            NaN that comes and goes, several runs, weights with norm "max", a sparse mass matrix, another option of pod's.
        StoreError: the file cannot be written.
    """
    source = as_source(source)
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
    wanted = _Wanted(float(tolerance), norm, relative_to)
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
    temporary = path is None
    if temporary:
        handle, path = tempfile.mkstemp(suffix=".h5", prefix="ensemblekit-archive-")
        os.close(handle)
    path = os.fspath(path)
    _write(path, source, parts, wanted, mesh_of(source))
    return Archive.open(path, _Temporary(path) if temporary else None)


def decompress(archive: Any, out: Any = None) -> Any:
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


class _Wanted(NamedTuple):
    tolerance: float
    norm: Norm
    relative_to: Reference


# -- encoding -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Coded:
    """One field as whole numbers, and what is known of it."""

    item: tuple[int, ...]
    dtype: np.dtype
    tile: tuple[int, ...]
    modes: np.ndarray                   # (k + 1, *item), whole numbers: the mean, then the modes
    mode_steps: np.ndarray              # (k + 1,)
    axes: np.ndarray                    # (k + 1,) u1
    coefficients: np.ndarray            # (n, k) int64
    coefficient_steps: np.ndarray       # (k,)
    mask: np.ndarray | None
    residual_step: float = 0.0
    residual: list[tuple[int, tuple[int, ...], bytes]] = field(default_factory=list)
    residual_dtype: str = "u1"
    residual_rows: int = 1
    error: float = 0.0
    largest_error: float = 0.0
    norm: float = 0.0                   # what the error is relative to
    relative: float = 0.0               # the error of the wanted norm, over that
    roots: np.ndarray | None = None     # (size,), where what is coded is the numbers times these
    gaps: Gaps | None = None

    def decoded(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean (size,), modes (k, size), coefficients (n, k)) as the reader will have them."""
        rows = self.modes.reshape(len(self.modes), -1) * self.mode_steps[:, None]
        return rows[0], rows[1:], self.coefficients * self.coefficient_steps


def _encode(source: Any, name: str, wanted: _Wanted, engine: Engine, progress: Any, options: dict[str, Any]) -> _Coded:
    """One field: modes, rounding, check; finer or with a residual until the tolerance holds."""
    n, one = source.lengths[0], source.fields[name]
    if wanted.norm == "l2" and wanted.relative_to == "fluctuation" and n > 1:
        try:        # POD finds all that is to be known on its way
            basis = _decomposed(source, 0.5 * wanted.tolerance**2, engine, options)
        except (InputError, StatisticsError):
            pass        # nothing changes, singular values leave float64, or what is wrong is said below
        else:
            if ORDINARY[0] < basis.total_energy < ORDINARY[1] or not _wide(one):
                return _within(source, name, basis, np.asarray(basis.mean), basis.total_energy, 0.0, wanted, engine, progress)
    known = reduce(source, {"moments": (name, Moments()), "extremes": (name, Extremes())}, engine=engine)
    moments, extremes = known["moments"], known["extremes"]
    mean = np.asarray(moments.mean, np.float64)
    low, high = (np.asarray(x, np.float64) for x in (extremes.low, extremes.high))
    e = power_of_two(np.stack([low, high]), always=True) if _wide(one) else 0
    if e and not (SCALE[0] < e < SCALE[1]):
        return _over(_encode(ScaledField(source, e), name, wanted, engine, progress, options), e)
    variance = np.nan_to_num(np.asarray(moments.variance, np.float64)) if n > 1 else np.zeros(one.shape)
    fluctuation = float(variance.sum()) * (n - 1)
    of_mean = n * float(np.nansum(mean**2))
    with np.errstate(invalid="ignore"):
        spread = np.fmax(np.fmax(high - mean, mean - low), 0)
    largest = float(np.nanmax(spread if wanted.relative_to == "fluctuation" else np.fmax(np.abs(low), np.abs(high)),
                              initial=0.0))
    basis = None
    if fluctuation > 0:
        if wanted.norm == "l2":
            reference = fluctuation if wanted.relative_to == "fluctuation" else fluctuation + of_mean
            finest = wanted.tolerance**2 * reference
        else:
            finest = (0.18 * wanted.tolerance * largest) ** 2 * n * one.size
        basis = _decomposed(source, 0.5 * finest / fluctuation, engine, options)
    return _within(source, name, basis, mean, fluctuation, largest, wanted, engine, progress)


def _decomposed(source: Any, share: float, engine: Engine, options: dict[str, Any]) -> Any:
    """The POD that leaves out a share of the energy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return pod(source, tolerance=max(math.sqrt(min(share, 0.99)), 1e-7), engine=engine, **options)
        except GapsError as error:
            raise InputError(f"{error.where}. {NO_GAPS}") from None


def _within(source: Any, name: str, basis: Any, mean: np.ndarray, fluctuation: float, largest: float, wanted: _Wanted,
            engine: Engine, progress: Any) -> _Coded:
    n, one = source.lengths[0], source.fields[name]
    size = one.size
    mask = None
    if basis is not None:
        mean = np.asarray(basis.mean, np.float64)
    if not np.isfinite(mean).all():
        mask = np.isfinite(mean)
        mean = np.where(mask, mean, 0.0)
    of_mean = n * float((mean**2).sum())
    squared = np.empty(0) if basis is None else basis.singular_values**2
    total = max(fluctuation, float(squared.sum()))
    reference = math.sqrt(fluctuation if wanted.relative_to == "fluctuation" else fluctuation + of_mean)
    if wanted.norm == "l2":
        limit = wanted.tolerance * reference
        share = water_fill(squared, total, limit**2, of_mean, size, n)
    else:
        limit = wanted.tolerance * largest
        share = _for_maximum(squared, total, limit, of_mean, size, n)
    if limit == 0.0:        # a field that never changes, measured by its fluctuation: keep the mean to the last bit
        limit = float(np.finfo(_kept_as(source, name)[1]).eps) * (reference or math.sqrt(of_mean) or 1.0)
        share = water_fill(squared, total, (limit / 4) ** 2, of_mean, size, n)
    noise = share.noise
    for attempt in range(6):
        coded = _rounded(basis, mean, share.k, noise, n, one, mask, engine)
        if wanted.norm == "l2" and attempt == 0 and basis is not None:
            noise, coded = _tuned(basis, mean, share.k, noise, n, one, mask, 0.985 * limit, total, coded, engine)
        coded.roots, coded.dtype = _kept_as(source, name)
        _check(source, name, coded, 0.0, engine, progress)
        found = _missed(coded, wanted, limit)
        if found is None:
            return _final(coded, wanted, limit, reference, largest)
        if wanted.norm == "max" or attempt >= 2:
            break
        noise *= 0.7 / found**2
    # the rest: what modes at hand leave out is rounded itself
    step = 2 * limit if wanted.norm == "max" else math.sqrt(12 / (n * size)) * limit
    for _ in range(8):
        step *= 1 - 1e-5
        _check(source, name, coded, step, engine, progress)
        found = _missed(coded, wanted, limit)
        if found is None:
            return _final(coded, wanted, limit, reference, largest)
        step /= max(1.2, found)
    raise InputError(f"field {name!r}: an error of {wanted.tolerance:g} is below the rounding of {one.dtype} numbers of this "
                     f"size; what can be reached is about {coded.largest_error:.3g} in any number. Allow more, or store "
                     "the snapshots as they are, with seal(compression=...)")


def _kept_as(source: Any, name: str) -> tuple[np.ndarray | None, np.dtype]:
    """The roots of weights that a field's numbers were multiplied by, and the type that a reader gets."""
    while isinstance(source, ScaledField):
        source = source.source
    if isinstance(source, WeighedField):
        return source.roots, source.source.fields[name].dtype
    return None, source.fields[name].dtype


def _for_maximum(squared: np.ndarray, total: float, limit: float, of_mean: float, size: int, n: int) -> Any:
    """The share that keeps modes and the residuals beyond the limit small together, were those Gaussian."""
    from scipy.special import ndtr

    best, least = None, math.inf
    for t in (0.18, 0.22, 0.27, 0.33, 0.4, 0.5, 0.65):
        share = water_fill(squared, total, (t * limit) ** 2 * n * size, of_mean, size, n)
        beyond = 2 * float(ndtr(-1 / t))
        entropy = 0.0 if beyond <= 0 else -beyond * math.log2(beyond) - (1 - beyond) * math.log2(1 - beyond) + 1.5 * beyond
        bits = share.bits + n * size * entropy
        if bits < least:
            best, least = share, bits
    return best


def _rounded(basis: Any, mean: np.ndarray, k: int, noise: float, n: int, one: Field, mask: np.ndarray | None,
             engine: Engine) -> _Coded:
    """Mean and k modes in whole numbers of one step, times what each row weighs; coefficients fitted to those."""
    size = one.size
    step = math.sqrt(12 * noise / (size + n))
    weigh = np.array([math.sqrt(n), *(basis.singular_values[:k] if k else ())])
    steps = step / weigh
    modes = _modes(basis, k, size)
    tile = tile_of(one.shape)
    wide = max([float(np.abs(mean).max(initial=0)) / steps[0], *(float(np.abs(row).max()) / s for row, s in
                                                                  zip(modes, steps[1:], strict=True))])
    q = np.empty((k + 1, size), np.int32 if wide < 2**26 else np.int64)     # differences along an axis double them
    local, slabs = _local(engine), [slice(at, min(at + SLAB, size)) for at in range(0, size, SLAB)]
    gram, lift, shift = np.zeros((k, k)), np.zeros((k, k)), np.zeros(k)
    # the coefficients that come closest with the modes as they will be read, and the mean as it will be read
    for made in local.map(_round_slab, slabs, (q, mean.ravel(), modes, steps)):
        gram, lift, shift = gram + made[0], lift + made[1], shift + made[2]
    rows = [row.reshape(one.shape) for row in q]
    axes = np.fromiter(local.map(_axes, rows, tile) if one.shape else np.zeros(k + 1), np.uint8, k + 1)
    coefficients = np.empty((n, 0), np.int64)
    if k:
        wanted = basis.coefficients[:, :k] @ lift + shift
        gram[np.diag_indices(k)] += 1e-14 * np.trace(gram) / k
        coefficients = np.rint(np.linalg.solve(gram, wanted.T).T / step).astype(np.int64)
    return _Coded(one.shape, one.dtype, tile, q.reshape(k + 1, *one.shape), steps, axes, coefficients, np.full(k, step), mask)


def _round_slab(shared: Any, cut: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round the mean and the modes in some columns; inner products of those modes, with the true ones, with the mean's rest."""
    q, mean, modes, steps = shared
    own = modes[:, cut].astype(np.float64, copy=False)
    held = np.empty((len(q), cut.stop - cut.start))
    np.divide(mean[cut], steps[0], out=held[0])
    np.divide(own, steps[1:, None], out=held[1:])
    np.rint(held, out=held)
    q[:, cut] = held
    held *= steps[:, None]
    return held[1:] @ held[1:].T, own @ held[1:].T, (mean[cut] - held[0]) @ held[1:].T


def _axes(tile: tuple[int, ...], row: np.ndarray) -> int:
    return best_axes(row, tile)


def _local(engine: Engine) -> Engine:
    """Where arrays in memory are worked on: threads, whatever engine reads the source."""
    return engine if isinstance(engine, Serial | Threads) else Threads()


def _modes(basis: Any, k: int, size: int) -> np.ndarray:
    """(k, size): the first modes flat, without a copy where nothing is masked."""
    if not k:
        return np.empty((0, size))
    flat = basis.modes[:k].reshape(k, -1)
    return flat if np.isfinite(flat[0]).all() else np.nan_to_num(flat)


def _tuned(basis: Any, mean: np.ndarray, k: int, noise: float, n: int, one: Field, mask: np.ndarray | None, goal: float,
           total: float, coded: _Coded, engine: Engine) -> tuple[float, _Coded]:
    """The coarsest rounding that stays below the goal, told from modes and coefficients alone, without the data."""
    left_out = max(total - float((basis.singular_values[:k] ** 2).sum()), 0.0)
    modes = _modes(basis, k, one.size)
    true = basis.coefficients[:, :k]
    local, slabs = _local(engine), [slice(at, min(at + SLAB, one.size)) for at in range(0, one.size, SLAB)]
    for _ in range(4):
        a = coded.coefficients * coded.coefficient_steps
        # |A M + 1 g - B H|² by inner products of k rows, slab by slab
        shared = (coded.modes.reshape(k + 1, -1), coded.mode_steps, modes, mean.ravel(), n,
                  (true.T @ true, a.T @ a, a.T @ true, true.sum(0), a.sum(0)))
        made = sum(local.map(_misfit, slabs, shared))
        made = max(made, 0.0)
        room = goal**2 - left_out
        if room <= 0 or made <= 0 or 0.97 * room <= made <= room:
            break
        noise *= min(room / made, 4.0) * 0.995
        coded = _rounded(basis, mean, k, noise, n, one, mask, engine)
    return noise, coded


def _misfit(shared: Any, cut: slice) -> float:
    """Energy of what rounding changes in some columns."""
    flat, steps, modes, mean, n, (true2, held2, across, true1, held1) = shared
    rows = flat[:, cut] * steps[:, None]
    held, own = rows[1:], modes[:, cut]
    gap = mean[cut] - rows[0]
    made = float((true2 * (own @ own.T)).sum()) + n * float(gap @ gap)
    made += 2 * float(true1 @ (own @ gap)) - 2 * float(held1 @ (held @ gap))
    return made + float((held2 * (held @ held.T)).sum()) - 2 * float((across * (held @ own.T)).sum())


def _final(coded: _Coded, wanted: _Wanted, limit: float, reference: float, largest: float) -> _Coded:
    coded.norm = reference if wanted.norm == "l2" else largest
    coded.relative = (coded.error if wanted.norm == "l2" else coded.largest_error) / (coded.norm or 1.0)
    return coded


def _wide(one: Field) -> bool:
    """Whether squares of the field's numbers can leave the range of float64."""
    return one.dtype.itemsize >= 8


def _over(coded: _Coded, e: int) -> _Coded:
    """The code of the snapshots themselves, from that of the snapshots divided by 2**e."""
    coded.mode_steps = coded.mode_steps.copy()
    coded.mode_steps[0] = ldexp(float(coded.mode_steps[0]), e)
    coded.coefficient_steps = ldexp(coded.coefficient_steps, e)
    coded.residual_step, coded.error, coded.largest_error, coded.norm = (
        ldexp(x, e) for x in (coded.residual_step, coded.error, coded.largest_error, coded.norm))
    return coded


def _missed(coded: _Coded, wanted: _Wanted, limit: float) -> float | None:
    """By what factor the error is too large; None where it holds, a rounding of the type to spare."""
    got = coded.error if wanted.norm == "l2" else coded.largest_error
    spare = 1e-9 if coded.roots is None else 2e-7       # the weights are kept in 32 bits
    return None if got <= limit * (1 - spare) else got / limit


class _Job(NamedTuple):
    start: int
    stop: int


def _check(source: Any, name: str, coded: _Coded, step: float, engine: Engine, progress: Any) -> None:
    """Decode every snapshot as a reader will and hold it against the data, in one read; with a step, keep the residual."""
    n, one = source.lengths[0], source.fields[name]
    tile_size = max(1, math.prod(coded.tile))
    rows = max(1, min(64, RESIDUAL_CHUNK // tile_size))
    per_job = max(rows, JOB_BYTES // max(one.nbytes, 1) // rows * rows)
    jobs = [_Job(a, min(a + per_job, n)) for a in range(0, n, per_job)]
    mean, modes, coefficients = coded.decoded()
    dtypes = ("u1", "u2", "u4", "u8") if step else ("u1",)
    coded.error = coded.largest_error = math.inf
    for dtype in dtypes:
        shared = (source, name, coded, mean, modes, coefficients, step, rows, dtype)
        squares, largest, kept, done = 0.0, 0.0, [], 0
        for job, (error, most, chunks) in zip(jobs, engine.map(_check_job, jobs, shared), strict=False):
            squares += error
            largest = max(largest, most)
            kept += chunks if chunks is not None else []
            done = job.stop
            if callable(progress):
                progress(done, n)
            if chunks is None:
                break
        else:
            coded.error, coded.largest_error = math.sqrt(squares), largest
            coded.residual_step, coded.residual, coded.residual_dtype, coded.residual_rows = step, kept, dtype, rows
            return


def _check_job(shared: Any, job: _Job) -> tuple[float, float, list[tuple[int, tuple[int, ...], bytes]] | None]:
    """(sum of squared errors, largest error, residual chunks); None for the chunks where their type is too narrow."""
    source, name, coded, mean, modes, coefficients, step, rows, dtype = shared
    pieces = source.window(job.start, job.stop).pieces([name], "time", False, 2 * JOB_BYTES)
    x = np.concatenate([np.array(block.fields[name]) for piece in pieces for block in piece.blocks()])
    m = len(x)
    x = x.reshape(m, -1)
    keep = slice(None) if coded.mask is None else coded.mask.ravel()
    wide = coefficients[job.start:job.stop] @ modes + mean
    squares, largest, chunks = 0.0, 0.0, []
    if step:
        with np.errstate(invalid="ignore"):
            q = np.rint((x.astype(np.float64) - wide) / step)
        if coded.mask is not None:
            q[:, ~coded.mask.ravel()] = 0
        if not np.isfinite(q).all():
            raise _gap(name, job)
        wide = wide + q * step
        if np.abs(q).max(initial=0) >= min(np.iinfo(dtype).max / 2, 2.0**62):
            return 0.0, 0.0, None
        z = zigzag(q)
        z = z.astype(dtype).reshape(m, *coded.item)
        for a in range(0, m, rows):
            for where in tiles(coded.item, coded.tile):
                part = z[(slice(a, a + rows), *where)]
                if part.any():
                    full = np.zeros((rows, *coded.tile), dtype)
                    full[tuple(slice(0, length) for length in part.shape)] = part
                    chunks.append((job.start + a, tuple(s.start for s in where), zlib.compress(shuffled(full), LEVEL)))
    if coded.roots is None:
        read, roots = wide.astype(coded.dtype)[:, keep], 1.0
    else:
        roots = coded.roots[keep].astype(np.float64)
        read = (wide[:, keep] / roots).astype(coded.dtype) * roots
    r = x[:, keep].astype(np.float64) - read
    if not np.isfinite(r).all() or (
            coded.mask is not None and np.isfinite(x[:, ~coded.mask.ravel()]).any()):       # masked: never a number
        raise _gap(name, job)
    squares, largest = float(np.einsum("ij,ij->", r, r)), float(np.abs(r / roots).max(initial=0.0))
    return squares, largest, chunks


def _gap(name: str, job: _Job) -> InputError:
    return InputError(f"field {name!r} holds NaN or infinity in some snapshots of {job.start} to {job.stop - 1} and not in "
                      f"others. {NO_GAPS}")


# -- the file -------------------------------------------------------------------------------------------------------


def _write(path: str, source: Any, parts: Mapping[str, _Coded], wanted: _Wanted, mesh: Mesh | None) -> None:
    """All of it to a temporary file beside `path`, then renamed."""
    from ensemblekit.store.hdf5 import new_file

    times = times_of(source)
    if times is None or len(times) != source.lengths[0]:
        times = reduce(source, {"times": (_times, Series())}, fields=[next(iter(source.fields))])["times"]
    try:
        with replacing(path, follow=True) as temporary, new_file(temporary, libver=("v110", "v110")) as f:
            more = any(coded.roots is not None or coded.gaps is not None for coded in parts.values())
            about: dict[str, Any] = {"format": WIDER if more else FORMAT, "tolerance": wanted.tolerance,
                                     "norm": wanted.norm, "relative_to": wanted.relative_to, "time_unit": source.time_unit,
                                     "fields": {}}
            for name, coded in parts.items():
                about["fields"][name] = {
                    "shape": list(coded.item), "dtype": coded.dtype.str, "unit": source.fields[name].unit,
                    "n": source.lengths[0], "tile": list(coded.tile), "residual_step": coded.residual_step,
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


@dataclass(frozen=True, eq=False)
class Archive(Mapping[str, "ArchivedField"]):
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

    @classmethod
    def open(cls, path: Any, owner: Any = None) -> Archive:
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
                       held, times, str(about["time_unit"]), taken, any("roots" in f[f"fields/{name}"] for name in held))

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

    def save(self, path: Any) -> Archive:
        """A copy of the file at a path, open."""
        shutil.copyfile(self.path, path)
        return Archive.open(path)

    def to_store(self, path: Any) -> Any:
        """Write every snapshot to a new store, block by block; returns it open for reading."""
        from ensemblekit.store.opening import open_store
        from ensemblekit.store.store import Store

        fields = {name: Field(one.shape[1:], one.dtype, one.unit) for name, one in self.items()}
        n = next(iter(self.values())).shape[0]
        row = sum(f.nbytes for f in fields.values())
        rows = max(1, JOB_BYTES // max(row, 1))
        constants = constants_for(self.mesh) if self.mesh is not None else None
        with Store.create(path, fields, capacity=max(n, 1), time_unit=self.time_unit, constants=constants) as store:
            for a in range(0, n, rows):
                blocks = {name: one[a:a + rows] for name, one in self.items()}
                for k in range(len(next(iter(blocks.values())))):
                    when = None if self.times is None else float(self.times[a + k])
                    store.append({name: block[k] for name, block in blocks.items()}, time=when)
        return open_store(path)

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


def _field_in(f: Any, path: str, name: str, one: Mapping[str, Any], owner: Any) -> ArchivedField:
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
    found = {key: group[key].shape for key in wanted}
    kinds = {key: group[key].dtype.kind for key in ("modes", "axes", *(["coefficients"] if rank else []),
                                                    *(["residual"] if "residual" in group else []))}
    if not whole or rank < 0 or len(tile) != len(shape) - 1 or dtype.kind != "f" or found != wanted or not (
            set(kinds.values()) <= {"u", "i"}):
        raise StoreError(f"{path}: the field {one_line(name)!r} says it has shape {shape}, tiles of {tile} and type {dtype}; "
                         f"its arrays are {found}, of the kinds {kinds}")
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

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an archive is rebuilt when it is read; it cannot be had without a copy")
        found = self[...]
        return found if dtype is None else found.astype(dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(x) if isinstance(x, ArchivedField) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def __getitem__(self, index: Any) -> np.ndarray:
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
        found = np.empty((m, *(s.stop - s.start for s in where)), self.dtype)
        if not found.size:
            return found
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
                found[(slice(None), *outer)] = values.astype(self.dtype).reshape(m, *q.shape[1:])
        return found

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


def _span(i: Any, length: int) -> tuple[slice, Any]:
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


__all__ = ["Archive", "ArchivedField", "compress", "decompress"]
