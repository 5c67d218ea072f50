"""The leading directions of snapshots that come block by block, with the coefficients of all of them.

A block and the directions kept so far (singular values times modes) are decomposed together by the Gram matrix of their few
rows, and the leading directions of both are kept: more than asked for, as what seems small now may grow (2 k + 10, Brand 2002;
Ross et al. 2008 for the mean). What is left out at each step is orthogonal, snapshot by snapshot of the past, to all that is
kept later. So the energy left out by the coefficients and modes at the end is the sum of what was left out, exactly: no bound
is needed (compare Fareed & Singler 2018).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from ensemblekit.engine import Engine, Threads, one_blas_thread
from ensemblekit.errors import InputError
from ensemblekit.rom.basis import SINGLE, Basis
from ensemblekit.rom.decompose.decomposition import Decomposition, size_of, to_basis
from ensemblekit.rom.decompose.gram import FLOOR, orthonormalised
from ensemblekit.rom.decompose.history import History
from ensemblekit.rom.decompose.problem import FieldProblem, Problem
from ensemblekit.rom.decompose.stream_settings import Fields, StreamSettings
from ensemblekit.rom.decompose.units import OutOfRange, Unit, magnitude
from ensemblekit.rom.product import element_weights
from ensemblekit.scaling import ldexp
from ensemblekit.source import ArraySource
from ensemblekit.source_clock import uneven_steps

SLAB_COLUMNS = 4096


@dataclass(frozen=True, eq=False, kw_only=True)
class Directions:
    """The leading directions of the snapshots taken in so far. A block gives new ones; nothing is changed in place."""

    settings: StreamSettings
    fields: Fields
    scales: dict[str, float]
    """What fields are divided by; those not named by 1."""
    mask: np.ndarray | None
    """(size,) bool, False where nothing is decomposed."""
    factors: np.ndarray | None
    """(size,) what columns are multiplied with; None: 1."""
    shift: np.ndarray
    """(size,) subtracted from every snapshot, in double precision."""
    mean: np.ndarray
    """(size,) of the snapshots less `shift`."""
    modes: np.ndarray
    """(kept, size)."""
    sigma: np.ndarray
    """(kept,) singular values, falling."""
    weight: float = 0.0
    """Of all snapshots."""
    total: float = 0.0
    """Energy of all snapshots."""
    left_out: float = 0.0
    """Energy that was left out."""
    coefficients: History
    times: tuple[np.ndarray, ...] = ()
    """Of each block; NaN where there are none."""
    weights: tuple[np.ndarray, ...] = ()
    """Statistical weights, of each block."""
    power: int = 0
    """Singular values and coefficients are in units of 2**power: see :mod:`units`."""

    @classmethod
    def start(cls, settings: StreamSettings, fields: Fields, rows: np.ndarray) -> Directions:
        """None yet, with all that a first block (m, size) sets."""
        size = rows.shape[1]
        some = np.isfinite(rows[0]) & settings.used(fields)        # the same in all, as was checked
        if not some.any():
            raise InputError("the snapshots hold nothing but NaN")
        mask = None if some.all() else some
        wide = np.complex128 if rows.dtype.kind == "c" else np.float64
        first = np.where(some, rows[0], 0).astype(wide)
        if isinstance(settings.center, str):
            shift = np.zeros(size, wide) if settings.center == "none" else first
        else:
            shift = settings.given_center(fields, wide)
        scales = settings.scales(fields, rows)
        return cls(settings=settings, fields=fields, scales=scales, mask=mask, shift=shift, mean=np.zeros(size, wide),
                   factors=settings.factors(fields, scales, mask, 0),
                   modes=np.zeros((0, size), settings.mode_dtype(rows.dtype)), sigma=np.zeros(0), coefficients=History())

    @property
    def n(self) -> int:
        """Snapshots taken in."""
        return sum(map(len, self.times))

    @property
    def columns(self) -> list[slice]:
        """Where each field stands among the numbers of all."""
        return columns_of(self.fields)

    def with_settings(self, settings: StreamSettings) -> Directions:
        """The same with other weights of the inner product."""
        return replace(self, settings=settings, factors=settings.factors(self.fields, self.scales, self.mask, self.power))

    def in_unit(self, power: int) -> Directions:
        """Everything in units of another power of two, which is exact."""
        less, coefficients = self.power - power, self.coefficients.copy()
        coefficients.scale(less)
        return replace(self, power=power, sigma=ldexp(self.sigma, less), total=ldexp(self.total, 2 * less),
                       left_out=ldexp(self.left_out, 2 * less), coefficients=coefficients,
                       factors=self.settings.factors(self.fields, self.scales, self.mask, power))

    def with_block(self, rows: np.ndarray, times: np.ndarray, weights: np.ndarray) -> Directions:
        """Those of what is kept and of a block of snapshots (m, size) together.

        Raises:
            InputError: a snapshot holds NaN or infinity.
        """
        added = float(weights.sum())
        before, after = self.weight, self.weight + added
        moving = self.settings.center_name == "mean" and added > 0
        share = weights / added if moving else None
        gap = math.sqrt(before * added / after) if moving and before else 0.0
        roots = np.concatenate([np.ones(len(self.sigma)), np.sqrt(weights), np.ones(1 if gap else 0)])
        engine = self.settings.engine if self.settings.engine is not None else Threads()
        kept, m = len(self.sigma), len(rows)
        with one_blas_thread():
            step, gram, weighted = self._decomposable(rows, share, gap, roots, engine)
            held = step.held        # in the unit that the block needed
            values, vectors = np.linalg.eigh(weighted)
            values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
            total = held.total + max(float(np.trace(weighted).real) - float((held.sigma**2).sum()), 0.0)
            keep = held._kept(values, total)
            turn = vectors[:, :keep] / np.sqrt(values[:keep])           # modes = turnᴴ D Z
            moved = (gram * roots) @ turn                               # rows of Z in the new modes
            new = np.empty((keep, self.modes.shape[1]), self.modes.dtype)
            for _ in engine.map(_rotate, held._slabs(), (step, (roots[:, None] * turn).conj().T, new)):
                pass
        shift_old = shift_new = np.zeros(keep, moved.dtype)
        if gap:
            shift_old = moved[-1] / gap * (added / after)               # (old mean - new mean) in the new modes
            shift_new = -moved[-1] / gap * (before / after)             # (mean of the block - new mean)
        coefficients = held.coefficients.copy()
        coefficients.transform(moved[:kept] / np.where(held.sigma > 0, held.sigma, 1.0)[:, None], shift_old)
        coefficients.append(moved[kept:kept + m] + shift_new)
        mean = self.mean + (step.mean - self.mean) * (added / after) if moving else self.mean
        return replace(held, sigma=np.sqrt(values[:keep]), modes=new, mean=mean, weight=after, total=total,
                       left_out=held.left_out + float(values[keep:].sum()), coefficients=coefficients,
                       times=(*self.times, times), weights=(*self.weights, weights))

    def _decomposable(self, rows: np.ndarray, share: np.ndarray | None, gap: float, roots: np.ndarray,
                      engine: Engine) -> tuple[Step, np.ndarray, np.ndarray]:
        """What is kept and a block, their inner products, and those times the roots of weights, in a unit that fits them."""
        held = self
        while True:
            step = Step(held, rows, share, gap, np.zeros_like(held.mean))
            gram = sum(engine.map(_products, held._slabs(), step), start=np.zeros(()))
            with np.errstate(over="ignore", invalid="ignore"):
                weighted = roots[:, None] * gram * roots
            try:
                Unit(held.power).check(float(np.trace(weighted).real), partial(step.largest, roots), False)
            except OutOfRange as misfit:
                held = held.in_unit(misfit.power)
                continue
            finite = np.isfinite(gram.diagonal())
            if not finite.all():
                bad = int(np.argmin(finite[len(self.sigma):len(self.sigma) + len(rows)]))
                raise InputError(f"snapshot {self.n + bad} holds NaN or infinity; leave it out")
            return step, gram, weighted

    def _slabs(self) -> list[slice]:
        size = self.modes.shape[1]
        return [slice(a, min(a + SLAB_COLUMNS, size)) for a in range(0, size, SLAB_COLUMNS)]

    def _kept(self, values: np.ndarray, total: float) -> int:
        """How many directions of these energies are kept."""
        settings = self.settings
        usable = int(np.count_nonzero(values > FLOOR**2 * values[0])) if len(values) and values[0] > 0 else 0
        if settings.keep is not None:
            return min(settings.keep, usable)
        # a tenth of the error allowed, in energy, may go on the way
        allowed = 0.1 * settings.rule.in_unit(self.power).allowed(total) - self.left_out
        tail = np.append(np.cumsum(values[::-1])[::-1][1:], 0.0)
        fits = np.flatnonzero(tail <= max(allowed, 0.0))
        keep = min(int(fits[0]) + 1 if len(fits) else usable, usable)
        most = settings.memory // (3 * max(self.modes.shape[1], 1) * self.modes.dtype.itemsize) - settings.block
        return min(keep, max(8, most))

    # -- the answer ------------------------------------------------------------------------------------------------

    @property
    def floor(self) -> float:
        """Singular values below this share of the first are rounding."""
        return FLOOR

    @property
    def error_floor(self) -> float:
        """The least relative error that can be told: modes in 32 bits are rounded again with every block."""
        single = self.modes.dtype in (np.float32, np.complex64)
        return max(self.floor, SINGLE * math.sqrt(self.n / self.settings.block + 1)) if single else self.floor

    @property
    def offset(self) -> np.ndarray:
        """(size,) what is subtracted from the snapshots so far."""
        return self.mean + self.shift

    @property
    def numerical_rank(self) -> int:
        """Directions kept that are no rounding; InputError where there is none."""
        usable = int(np.count_nonzero(self.sigma > self.floor * self.sigma[0])) if len(self.sigma) and self.sigma[0] > 0 else 0
        # of the scales of several fields any may come from rounding: one field that fluctuates is enough
        problem = self._problem()
        sizes = [size_of(part, self.offset[at]) for part, at in zip(problem.parts, problem.columns, strict=True)]
        rounding = 4 * np.finfo(np.float64).eps * min(sizes) * math.sqrt(self.n * self.mean.size)
        if not usable or (self.settings.center_name in ("mean", "first") and self.sigma[0] <= rounding):
            raise InputError(f"all {self.n} snapshots are the same: no fluctuation to decompose")
        return usable

    @property
    def selected_rank(self) -> int:
        """How many modes the rule takes of those at hand."""
        rule = self.settings.rule.in_unit(self.power)
        return rule.choose(self.sigma**2, self.total, self.numerical_rank, self.n, self.modes.shape[1], False)

    def angle_bound(self, k: int) -> float:
        """A bound of the sine of the largest angle between the first k modes and the space that they stand for.

        What was left out is a positive semidefinite part E of the covariance, so by Davis & Kahan (1970) the sine is at most
        ‖E‖ / (sigma_k² - sigma_(k+1)² - ‖E‖), of which ‖E‖ is at most the energy left out. 1 where that says nothing.
        """
        squared = np.append(self.sigma**2, 0.0)
        apart = float(squared[k - 1] - squared[k]) - self.left_out
        return min(1.0, self.left_out / apart) if apart > 0 else 1.0

    def scaled_parts(self, parts: Sequence[FieldProblem]) -> Iterator[FieldProblem]:
        """The fields of a problem with the scales and masks found on the way."""
        for part, at in zip(parts, self.columns, strict=True):
            yield replace(part, scale=self.scales.get(part.name, 1.0), mask=None if self.mask is None else self.mask[at],
                          power=self.power, asked=self.power or None)

    def result(self) -> Basis:
        """The basis; its error is exact, those of single snapshots and of several fields are not known."""
        squared, k = self.sigma**2, self.selected_rank
        weights, times = np.concatenate(self.weights), np.concatenate(self.times)
        even = bool((weights == weights[0]).all())
        ratio = self.n / self.weight if self.weight else 1.0        # weights of mean 1
        # many blocks wear the orthogonality down to about eps (sigma_1 / sigma_k)²; turned back, the product is the same
        rows, lower = orthonormalised(np.array(self.modes[:k]))
        coefficients = self.coefficients.values()[:, :k] @ lower
        residual = (self.left_out + float(squared[k:].sum())) * ratio
        uneven = uneven_steps(times) if even and np.isfinite(times).all() else ""
        if uneven:
            warnings.warn(uneven.replace('weights="time" gives the mean over time', "update(..., weights=) takes the time that "
                                         "each stands for"), stacklevel=3)
        problem = self._problem(None if even else weights * ratio, None if np.isnan(times).all() else times)
        modes = [rows[:, at] for at in problem.columns]
        svd = Decomposition(self.sigma * math.sqrt(ratio), False, coefficients, modes,
                            [self.offset[at] for at in problem.columns], self.total * ratio, residual, np.zeros(self.n),
                            [math.nan] * len(modes) if len(modes) > 1 else [], self.error_floor, "incremental",
                            self.sigma[:k] * math.sqrt(ratio), np.zeros(self.n), power=self.power)
        basis = to_basis(problem, svd, 1)
        errors = {} if len(modes) > 1 else {next(iter(self.fields)): basis.relative_error}
        return replace(basis, error_per_snapshot=None, error_per_field=errors)

    def _problem(self, weights: np.ndarray | None = None, times: np.ndarray | None = None) -> Problem:
        """What was decomposed, without the snapshots."""
        parts = []
        for (name, field), at in zip(self.fields.items(), self.columns, strict=True):
            product = self.settings.product_of(name)
            of = element_weights(product, field.shape)
            parts.append(FieldProblem(name, name, NO_SNAPSHOTS, field, product, None if of is None else np.sqrt(of), None,
                                      self.scales.get(name, 1.0),
                                      None if self.mask is None else self.mask[at], self.power))
        return Problem(tuple(parts), self.n, weights, times, "", None, self.settings.center_name)


def columns_of(fields: Fields) -> list[slice]:
    """Where each field stands among the numbers of all."""
    edges = np.cumsum([0, *(field.size for field in fields.values())])
    return [slice(int(a), int(b)) for a, b in pairwise(edges)]


NO_SNAPSHOTS = ArraySource.of(np.zeros((0, 1)))
"""Stands for the snapshots of a stream, which are gone."""


@dataclass(frozen=True, eq=False)
class Step:
    """A block of snapshots beside the directions kept: the rows Z that are decomposed, slab by slab."""

    held: Directions
    rows: np.ndarray
    """(m, size)."""
    share: np.ndarray | None
    """(m,) what each snapshot counts in the mean of the block; None where the mean stays in."""
    gap: float
    """What the distance between the means is multiplied with; 0: there is none."""
    mean: np.ndarray
    """(size,) of the block less `shift`, filled in slab by slab."""

    def z(self, at: slice) -> np.ndarray:
        """(kept + m + 1, width): singular values times modes, the block about its mean, the gap between the means."""
        held = self.held
        kept, m = len(held.sigma), len(self.rows)
        out = np.empty((kept + m + (1 if self.gap else 0), at.stop - at.start), held.mean.dtype)
        np.multiply(held.modes[:, at], held.sigma[:, None], out=out[:kept])
        block = out[kept:kept + m]
        block[:] = self.rows[:, at]
        block -= held.shift[at]
        if held.mask is not None:
            block[:, ~held.mask[at]] = 0
        if self.share is not None:
            self.mean[at] = self.share @ block
            block -= self.mean[at]
        if self.gap:
            out[-1] = (held.mean[at] - self.mean[at]) * self.gap
        if held.factors is not None:
            out[kept:] *= held.factors[at]
        return out

    def largest(self, roots: np.ndarray) -> float:
        """The largest magnitude; NaN where the snapshots hold NaN or infinity."""
        largest = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for at in self.held._slabs():
                largest = float(np.maximum(largest, magnitude(roots[:, None] * self.z(at))))       # NaN stays
        seen = self.rows if self.held.mask is None else self.rows[:, self.held.mask]
        return largest if math.isfinite(largest) or np.isfinite(seen).all() else math.nan


def _products(step: Step, at: slice) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):      # in a worker: sums that are no numbers are met by who asked
        z = step.z(at)
        return z @ z.conj().T


def _rotate(shared: tuple[Step, np.ndarray, np.ndarray], at: slice) -> None:
    step, turn, new = shared
    new[:, at] = turn @ step.z(at)
