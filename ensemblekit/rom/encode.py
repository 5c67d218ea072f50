"""How fields are put into archives: modes, rounding and residuals, within the error that is allowed."""

from __future__ import annotations

import math
import warnings
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from ensemblekit.averaging.extremes import Extremes
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import Progress, reduce
from ensemblekit.engine import Engine, Serial, Threads
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.rom.archive_views import (
    JOB_BYTES,
    LEVEL,
    RESIDUAL_CHUNK,
    Gaps,
    ScaledField,
    WeighedField,
    run_length,
)
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose import pod
from ensemblekit.rom.decompose.gaps import GapsError
from ensemblekit.rom.quantise import (
    best_axes,
    shuffled,
    tile_of,
    tiles,
    water_fill,
    zigzag,
)
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import DescribedSource, Field

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


class _Wanted(NamedTuple):
    tolerance: float
    norm: Norm
    relative_to: Reference


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


def _encode(source: DescribedSource, name: str, wanted: _Wanted, engine: Engine, progress: Progress,
            options: dict[str, Any]) -> _Coded:
    """One field: modes, rounding, check; finer or with a residual until the tolerance holds."""
    n, one = run_length(source), source.fields[name]
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


def _decomposed(source: DescribedSource, share: float, engine: Engine, options: dict[str, Any]) -> Any:
    """The POD that leaves out a share of the energy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return pod(source, tolerance=max(math.sqrt(min(share, 0.99)), 1e-7), engine=engine, **options)
        except GapsError as error:
            raise InputError(f"{error.where}. {NO_GAPS}") from None


def _within(source: DescribedSource, name: str, basis: Basis, mean: np.ndarray, fluctuation: float, largest: float,
            wanted: _Wanted, engine: Engine, progress: Progress) -> _Coded:
    n, one = run_length(source), source.fields[name]
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
        excess = _missed(coded, wanted, limit)
        if excess is None:
            return _final(coded, wanted, limit, reference, largest)
        if wanted.norm == "max" or attempt >= 2:
            break
        noise *= 0.7 / excess**2
    # the rest: what modes at hand leave out is rounded itself
    step = 2 * limit if wanted.norm == "max" else math.sqrt(12 / (n * size)) * limit
    for _ in range(8):
        step *= 1 - 1e-5
        _check(source, name, coded, step, engine, progress)
        excess = _missed(coded, wanted, limit)
        if excess is None:
            return _final(coded, wanted, limit, reference, largest)
        step /= max(1.2, excess)
    raise InputError(f"field {name!r}: an error of {wanted.tolerance:g} is below the rounding of {one.dtype} numbers of this "
                     f"size; what can be reached is about {coded.largest_error:.3g} in any number. Allow more, or store "
                     "the snapshots as they are, with seal(compression=...)")


def _kept_as(source: DescribedSource, name: str) -> tuple[np.ndarray | None, np.dtype]:
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


def _rounded(basis: Basis, mean: np.ndarray, k: int, noise: float, n: int, one: Field, mask: np.ndarray | None,
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
    for sums in local.map(_round_slab, slabs, (q, mean.ravel(), modes, steps)):
        gram, lift, shift = gram + sums[0], lift + sums[1], shift + sums[2]
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


def _modes(basis: Basis, k: int, size: int) -> np.ndarray:
    """(k, size): the first modes flat, without a copy where nothing is masked."""
    if not k:
        return np.empty((0, size))
    flat = basis.modes[:k].reshape(k, -1)
    return flat if np.isfinite(flat[0]).all() else np.nan_to_num(flat)


def _tuned(basis: Basis, mean: np.ndarray, k: int, noise: float, n: int, one: Field, mask: np.ndarray | None, goal: float,
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
        misfit = sum(local.map(_misfit, slabs, shared))
        misfit = max(misfit, 0.0)
        room = goal**2 - left_out
        if room <= 0 or misfit <= 0 or 0.97 * room <= misfit <= room:
            break
        noise *= min(room / misfit, 4.0) * 0.995
        coded = _rounded(basis, mean, k, noise, n, one, mask, engine)
    return noise, coded


def _misfit(shared: Any, cut: slice) -> float:
    """Energy of what rounding changes in some columns."""
    flat, steps, modes, mean, n, (true2, held2, across, true1, held1) = shared
    rows = flat[:, cut] * steps[:, None]
    held, own = rows[1:], modes[:, cut]
    gap = mean[cut] - rows[0]
    energy = float((true2 * (own @ own.T)).sum()) + n * float(gap @ gap)
    energy += 2 * float(true1 @ (own @ gap)) - 2 * float(held1 @ (held @ gap))
    return energy + float((held2 * (held @ held.T)).sum()) - 2 * float((across * (held @ own.T)).sum())


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


def _check(source: DescribedSource, name: str, coded: _Coded, step: float, engine: Engine, progress: Progress) -> None:
    """Decode every snapshot as a reader will and hold it against the data, in one read; with a step, keep the residual."""
    n, one = run_length(source), source.fields[name]
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
