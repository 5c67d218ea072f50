"""What a route finds, and the basis that it becomes in the units of the fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.problem import FieldProblem, Problem, runs_of
from ensemblekit.rom.decompose.slabs import SINGLE
from ensemblekit.rom.product import InnerProduct
from ensemblekit.scaling import ldexp

DIFFERENCE = 6e-8
"""The least relative error that a difference of energies tells, as they are known to some sixteen eps."""
LEAST = 1e-200
"""Energies of a field, in units in which that of all is an ordinary number, below which its squares may be lost."""


@dataclass(frozen=True, eq=False)
class Decomposition:
    """What a route found, before it is put into the units of the fields."""

    spectrum: np.ndarray
    """All singular values known, falling."""
    complete: bool
    coefficients: np.ndarray
    """(n, k)."""
    modes: list[np.ndarray]
    """Of each field (k, size), orthonormal together once multiplied with `factors`."""
    means: list[np.ndarray]
    total: float
    residual: float
    energy: np.ndarray
    """(n,) of each snapshot."""
    field_errors: list[float]
    floor: float
    method: str
    singular_values: np.ndarray | None = None
    """Of the modes kept, where they are not the first of the spectrum."""
    per_snapshot: np.ndarray | None = None
    """(n,) energies left out, where they are known otherwise than as a difference."""
    scales: list[float] | None = None
    """Of the fields, where the route found them on its way."""
    power: int = 0
    """Singular values and coefficients are in units of 2**power, energies of 4**power."""


def check_fluctuation(problem: Problem, usable: int, sigma: np.ndarray, means: list[np.ndarray]) -> None:
    """Raise InputError where all snapshots are the same, but for the rounding of what was subtracted."""
    sizes = [size_of(part, mean) for part, mean in zip(problem.parts, means, strict=True)]
    # a scale found from a fluctuation makes rounding as large as anything: one field that fluctuates is enough then
    size = max(sizes, default=0.0) if problem.scaling is None else min(sizes, default=0.0)
    rounding = 4 * np.finfo(np.float64).eps * size * math.sqrt((problem.n or 1) * problem.size)
    if not usable or (problem.center in ("mean", "first") and sigma[0] <= rounding):
        what = "field " + repr(problem.parts[0].name) if len(problem.parts) == 1 else "all fields"
        if problem.center in ("mean", "first"):
            raise InputError(f"all {problem.n} snapshots of {what} are the same: no fluctuation to decompose")
        raise InputError(f"all {problem.n} snapshots of {what} are zero: nothing to decompose")


def size_of(part: FieldProblem, mean: np.ndarray) -> float:
    """The largest number of a mean, as it enters the rows that are decomposed."""
    largest = ldexp(float(np.abs(mean).max(initial=0.0)), -part.power) / part.scale
    if part.roots is None:
        return largest
    return largest * float(np.linalg.norm(part.roots)) / math.sqrt(part.field.size)


class FieldShare(NamedTuple):
    """What coefficients C and modes U carry of one field A_f, each a sum over snapshots in the unit of all fields."""

    energy: float
    """‖A_f‖²."""
    along: float
    """Re tr(Cᴴ A_f U_fᴴ)."""
    carried: float
    """‖C U_f‖²."""
    lost: bool = False
    """Whether the field is next to nothing beside the others, so that its squares are no numbers in their unit."""


def errors_of_fields(shares: Sequence[FieldShare]) -> list[float]:
    """The error of each field over its own norm, from ‖A_f - C U_f‖² = ‖A_f‖² - 2 Re tr(Cᴴ A_f U_fᴴ) + ‖C U_f‖²; NaN for one
    that is lost."""
    errors = []
    for share in shares:
        left = share.energy - (2 * share.along - share.carried)
        error = math.sqrt(max(left, 0.0) / share.energy) if share.energy > 0 else 0.0
        errors.append(math.nan if share.lost else error)
    return errors


def shares_of_fields(problem: Problem, modes: Sequence[np.ndarray], products: Sequence[np.ndarray],
                     energies: Sequence[np.ndarray] | np.ndarray, coefficients: np.ndarray) -> list[FieldShare]:
    """From the products of each field (n, size) with its part of the modes, (n, k), and the energies of its snapshots, (n,);
    none for a single field, whose error is that of all."""
    if len(modes) < 2:
        return []
    roots = problem.roots
    c = roots[:, None] * coefficients
    shares = []
    for part, rows, product, energy in zip(problem.parts, modes, products, energies, strict=True):
        wide = rows.astype(coefficients.dtype, copy=False)
        shares.append(FieldShare(float((energy * roots**2).sum()), float(np.sum(c.conj() * (roots[:, None] * product)).real),
                                 float(np.sum((wide @ wide.conj().T).T * (c.conj().T @ c)).real),
                                 part.asked is not None and part.asked < part.power - 300))
    return shares


def to_basis(held: Problem, svd: Decomposition, passes: int) -> Basis:
    """A Basis in the units of the fields, with signs that do not depend on the route."""
    problem = with_scales_of(held, svd)
    modes = [_in_field_unit(part, rows) for part, rows in zip(problem.parts, svd.modes, strict=True)]
    phase = _phases(problem, modes, svd.coefficients.dtype)
    means = []
    for part, rows, mean in zip(problem.parts, modes, svd.means, strict=True):
        for j in np.flatnonzero(phase != 1):
            rows[j] *= np.conj(phase[j])
        if part.mask is not None:       # as the mean and every reconstruction
            rows[:, ~part.mask] = math.nan
            mean = np.where(part.mask, mean, math.nan)
        means.append(mean)
    coefficients = svd.coefficients * phase
    total, k, n = svd.total, coefficients.shape[1], problem.n or len(coefficients)
    left = svd.per_snapshot
    if left is None:
        left = np.clip(svd.energy - (np.abs(coefficients) ** 2).sum(1), 0, None)
    single = len(problem.parts) == 1
    run_lengths, run_times, run_unit = runs_of(problem.parts[0].source)
    shape = problem.parts[0].field.shape if single else (problem.size,)
    basis = Basis(
        modes=(modes[0] if single else np.concatenate(modes, axis=1)).reshape(k, *shape),
        singular_values=_in_ordinary_unit(
            svd.spectrum[:k] if svd.singular_values is None else svd.singular_values, svd.power),
        coefficients=ldexp(coefficients, svd.power), mean=(means[0] if single else np.concatenate(means)).reshape(shape),
        total_energy=ldexp(total, 2 * svd.power), fields={part.name: part.field for part in problem.parts},
        inner_product=_inner_product(problem),
        scale={part.name: part.scale for part in problem.parts} if any(part.scale != 1 for part in problem.parts) else {},
        times=problem.times, time_unit=problem.time_unit or run_unit, mesh=problem.mesh, mask=_mask(problem, shape),
        labels=problem.labels, run_lengths=run_lengths, run_times=run_times,
        error_per_snapshot=np.sqrt(left / (total / n)) if total else np.zeros(n), weights=problem.weights,
        spectrum=ldexp(svd.spectrum, svd.power), spectrum_complete=svd.complete, floor=svd.floor, method=svd.method,
        passes=passes, residual=ldexp(svd.residual, 2 * svd.power),
        energies=(svd.power, total, svd.residual) if svd.power else None)
    return _with_least_errors(basis, svd, np.abs(coefficients) ** 2)


def _in_field_unit(part: FieldProblem, rows: np.ndarray) -> np.ndarray:
    """The part of the modes (k, size) of one field, without the roots of the inner product; in place where it can."""
    factors = replace(part, power=0).factors
    if factors is not None:
        with np.errstate(divide="ignore"):
            inverse = np.where(factors > 0, 1 / factors, 0.0)
        if rows.dtype in SINGLE and not 1e-30 < inverse.max(initial=1.0) < 1e30:
            rows = rows.astype(np.result_type(rows.dtype, np.float64))
        for a in range(0, rows.shape[1], 1 << 16):
            rows[:, a:a + (1 << 16)] *= inverse[a:a + (1 << 16)]
    return ldexp(rows, -part.product_power)


def _phases(problem: Problem, modes: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """(k,) what the modes are divided by, so that the largest number of each is real and positive."""
    k = len(modes[0])
    largest, phase = np.zeros(k), np.ones(k, dtype)
    for part, rows in zip(problem.parts, modes, strict=True):
        for j in range(k):
            at = int(np.abs(rows[j]).argmax())
            if abs(rows[j, at]) / part.scale > largest[j] * (1 + 1e-9):
                largest[j] = abs(rows[j, at]) / part.scale
                phase[j] = rows[j, at] / abs(rows[j, at])
    return phase


def _inner_product(problem: Problem) -> InnerProduct | dict[str, InnerProduct]:
    if len(problem.parts) == 1:
        return problem.parts[0].product
    if all(part.product is None for part in problem.parts):
        return None
    return {part.name: part.product for part in problem.parts}


def _mask(problem: Problem, shape: tuple[int, ...]) -> np.ndarray | None:
    if all(part.mask is None for part in problem.parts):
        return None
    masks = [np.ones(part.field.size, bool) if part.mask is None else part.mask for part in problem.parts]
    return np.concatenate(masks).reshape(shape)


def _with_least_errors(basis: Basis, svd: Decomposition, squares: np.ndarray) -> Basis:
    """The basis with errors of fields and snapshots that are no less than what can be told; `squares` are those of the
    coefficients, (n, k)."""
    least = max(basis.error_floor, DIFFERENCE)
    errors = [math.hypot(x, least) for x in svd.field_errors] or [basis.relative_error] * len(basis.fields)
    each, n = basis.error_per_snapshot, len(squares)
    if svd.total and each is not None:
        size = np.maximum(squares.sum(1) / (svd.total / n), 1.0)
        each = np.sqrt(each**2 + least**2 * size)
    return replace(basis, error_per_field=dict(zip(basis.fields, errors, strict=True)), error_per_snapshot=each)


def _in_ordinary_unit(singular_values: np.ndarray, power: int) -> np.ndarray:
    values = ldexp(singular_values, power)
    if not np.isfinite(values).all() or values[0] < np.finfo(np.float64).tiny:
        raise InputError(f"singular values of about 1e{math.log10(singular_values[0]) + power * math.log10(2):+.0f} are beyond "
                         "what a float64 holds; give the snapshots or the weights of the inner product in another unit")
    return values


def with_scales_of(problem: Problem, svd: Decomposition) -> Problem:
    """The problem with the scales that the route found on its way."""
    if svd.scales is None:
        return problem
    parts = zip(problem.parts, svd.scales, strict=True)
    return replace(problem, parts=tuple(replace(part, scale=scale) for part, scale in parts))
