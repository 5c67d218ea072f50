"""Proper orthogonal decomposition of snapshots: from arrays, files and streams, by the route that suits, with its error."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.engine import Engine, Serial, Threads, one_blas_thread
from ensemblekit.errors import InputError
from ensemblekit.rom import gram as gram_route
from ensemblekit.rom import randomized, tsqr
from ensemblekit.rom.basis import Basis, warn_of_split_pair
from ensemblekit.rom.plan import MOST_STEPS, Plan, plan_of, workers_of
from ensemblekit.rom.problem import Part, Problem, problem_of, warn_of_wide
from ensemblekit.rom.product import applied
from ensemblekit.rom.rank import Rule, as_bytes
from ensemblekit.rom.rows import by_rows
from ensemblekit.rom.slabs import SINGLE, Recipe, Slabs, TileOf, added
from ensemblekit.rom.units import OutOfRange
from ensemblekit.scaling import ldexp

T = TypeVar("T")

ENOUGH = 1e-3
"""The randomized route reads once more where another step could lower the error by more than this share of it."""
LITTLE = 0.05
WORTHWHILE = 1e-6
"""Below this share of the first singular value Gram matrices are rounding for the most part; QR is exact there."""


def pod(source: Any, rank: Any = None, *, energy: float | None = None, tolerance: float | None = None,
        absolute_tolerance: float | None = None, snapshot_axis: int | None = None, inner_product: Any = "auto",
        scale: Any = None, center: Any = "mean", method: str = "auto", memory_limit: Any = "2GiB",
        engine: Engine | None = None, missing: Literal["raise", "gappy"] = "raise", oversampling: int = 10,
        power: int | None = None, seed: int = 0, progress: Any = False) -> Basis:
    """The modes that carry most of the snapshots' energy, with the error that is left.

    Arguments:
        source: an array with snapshots along axis 0, a mapping of field to array, a stored field, or any source of one
            run (runs of a ReplicaSet are put one after the other). Statistical weights of the snapshots enter.
        rank: how many modes, or "gavish-donoho" for those that stand out of white noise; or
        energy: the share of the energy to keep, in (0, 1]; or
        tolerance: the relative error allowed; or
        absolute_tolerance: the error allowed, ‖snapshots - reconstruction‖ over all snapshots in the inner product.
            With none of these: energy=0.99, an error of 10 %.
        snapshot_axis: the axis of an array along which the snapshots lie; 0 where it is not given.
        inner_product: "auto" (volumes of the source's mesh, Euclidean without one), None, weights of shape (n_cells,) or
            of the item, a sparse mass matrix, or a mapping of field to these.
        scale: what fields are divided by before they are joined: "std" (the default with several fields) or "max" of
            each field's fluctuation, a mapping of field to number, or "none".
        center: what is subtracted: "mean", "first" (snapshot), "none", or a field such as a steady flow.
        method: "auto", or "gram", "covariance", "tsqr", "randomized", "incremental"; see :func:`plan`.
        memory_limit: bytes of memory of its own, such as "2GiB"; the route is chosen by it.
        missing: numbers that are NaN in every snapshot are left out always. Where they change from snapshot to snapshot,
            "raise", or "gappy": fill them in from the modes (Everson & Sirovich 1995; needs a rank, and memory for all).
        oversampling, power, seed: of the randomized route: directions beyond the rank, steps at least, and the random
            numbers. Steps, each a read, end where another would lower the error by less than 0.1 %; with method="auto" one
            may be enough, after a sample of the columns, with method="randomized" there are two. Files larger than the
            memory limit are read in order of time, two times or more.

    Returns:
        a Basis. Snapshots of lower numerical rank than asked for give fewer modes.

    Raises:
        InputError: no snapshots, a single one, all the same, NaN or infinity, a bad rank, rule, weight or shape.
        ReadOnceError: a route that reads twice was asked for with a source that is read once.
    """
    problem = problem_of(source, snapshot_axis, inner_product, scale, center)
    if missing not in ("raise", "gappy"):
        raise InputError(f'missing is "raise" or "gappy"; got {missing!r}')
    rule = Rule.of(rank, energy, tolerance, absolute_tolerance, problem.n)
    memory = as_bytes(memory_limit)
    plan = plan_of(problem, rule, method, memory, workers_of(engine), oversampling, power)
    reads = Reads(problem.nbytes)
    if plan.load:
        problem = in_memory(problem, engine)
        reads.add(problem.nbytes)
        reads.ended = True      # what follows happens in memory
    job = Job(problem, rule, plan, method, memory, engine, progress, seed, reads)
    try:
        basis = decomposed(job)
    except NotFinite:
        # in order of time the incremental route finds on its way what is missing in every snapshot
        other = _other(job, "incremental") if plan.in_time and problem.access != "tiles" and method == "auto" else None
        masked = without_constant_gaps(job) if other is None else None
        if other is not None:
            basis = decomposed(replace(job, plan=other))
        elif masked is not None:
            basis = decomposed(replace(job, problem=masked))
        elif missing == "gappy":
            from ensemblekit.rom.gappy import gappy

            basis = gappy(job)
        else:
            raise GapsError(_gaps(job)) from None
    if reads.bytes:
        basis = replace(basis, passes=reads.passes)
    warn_of_wide(source, snapshot_axis)
    warn_of_split_pair(basis)
    if not rule.given:
        print(f"energy=0.99, an error of 10 %: {basis.rank} mode{'s' if basis.rank > 1 else ''} "
              "(give rank=, energy= or tolerance= for others)")
    return basis


class GapsError(InputError):
    """Numbers are missing in some snapshots and not in others: `where` says which."""

    def __init__(self, where: str):
        super().__init__(f'{where}. Drop those snapshots, or pass missing="gappy" to fill them in from the modes')
        self.where = where


class NotFinite(Exception):
    """NaN or infinity were met on the way."""


@dataclass(eq=False)
class Reads:
    """Counts what is read of the source, whatever the route and wherever it had to go on to another one."""

    nbytes: int
    """Of all snapshots."""
    bytes: int = 0
    ended: bool = False
    """Whether the snapshots were taken into memory, so that looking at them again reads nothing."""

    def add(self, nbytes: int) -> None:
        self.bytes += 0 if self.ended else nbytes

    @contextmanager
    def counted(self, nbytes: int) -> Iterator[None]:
        """Counts a read that may end before its time, as numbers wanted other units."""
        try:
            yield
        except OutOfRange as misfit:
            self.add(int(misfit.share * nbytes))
            raise
        self.add(nbytes)

    @property
    def passes(self) -> int:
        """Reads of all snapshots; one that is not whole counts as one, but for a sample of less than a tenth."""
        return max(1, math.ceil(self.bytes / self.nbytes - 0.1)) if self.nbytes else 1


@dataclass(frozen=True, eq=False)
class Job:
    """One decomposition with all its settings."""

    problem: Problem
    rule: Rule
    plan: Plan
    method: str
    memory: int
    engine: Engine | None
    progress: Any
    seed: int
    reads: Reads

    def over_tiles(self, part: Part, work: Any, join: Callable = added, counted: bool = True) -> tuple[dict, list[dict]]:
        """One read of a field in slabs of space."""
        with self.reads.counted(part.field.nbytes * (self.problem.n or 0) if counted else 0):
            return reduce(part.source, {"tiles": (TileOf(part.key), Slabs(work, join))}, fields=[part.key], cut="space",
                          limit=self.plan.limit, engine=self.engine, progress=self.progress)["tiles"]

    def recipe(self, part: Part, dtype: Any, shift: np.ndarray | None = None) -> Recipe:
        n = self.problem.n or 0
        share = np.full(n, 1 / n) if self.problem.weights is None else self.problem.weights / n
        return Recipe(np.dtype(dtype), share, part.factors, part.shift if shift is None else shift, self.plan.width,
                      unit=part.unit)

    @property
    def local(self) -> Engine:
        """Where arrays in memory are worked on: threads, whatever engine reads the source."""
        return self.engine if isinstance(self.engine, Serial | Threads) else Threads()

    @property
    def wide(self) -> np.dtype:
        return np.dtype(np.complex128 if self.problem.complex_ else np.float64)


@dataclass(frozen=True, eq=False)
class Found:
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


def in_range(job: Job, work: Callable[[Job], T], together: bool = True) -> T:
    """What `work` makes of a job, in units that fit the numbers met on the way; one for all fields where they go `together`."""
    for _ in range(MOST_UNITS):
        try:
            return work(job)
        except OutOfRange as misfit:
            job = replace(job, problem=job.problem.remeasured(misfit, together))
    raise InputError(f"the snapshots hold numbers of such different sizes that no unit fits their squares; give scales of the "
                     f"fields, {[part.name for part in job.problem.parts]}, or leave the largest numbers out")


MOST_UNITS = 24
"""Each is larger than the one before, but for the first: of the hundreds of powers of ten of a float64 few are left then."""


def decomposed(job: Job) -> Basis:
    """Go the route of the plan, and on to another one where its floor is hit and the choice is ours."""
    route = job.plan.route
    if route == "incremental":
        from ensemblekit.rom.incremental import incremental_pod

        return incremental_pod(job)
    if route == "covariance":
        from ensemblekit.rom.covariance import covariance

        return assembled(job.problem, covariance(job))
    if route == "randomized":
        steps = by_rows if job.plan.in_time else by_steps
        found = steps(job, np.dtype({"f": "f4", "c": "c8"}[job.wide.kind]) if job.problem.single else job.wide)
        if found is None and job.problem.single:
            found = steps(job, job.wide)
        if found is not None:
            return assembled(job.problem, found)
        for exact in ("gram", "tsqr") if job.method == "auto" else ():
            plan = _other(job, exact)
            if plan is not None:
                return decomposed(replace(job, plan=plan))
        found = steps(job, job.wide, at_all_costs=True)
        assert found is not None
        return assembled(job.problem, found)
    found = by_snapshots(job)
    if found is None:           # the floor of the Gram matrix was hit
        plan = _other(job, "tsqr")
        found = by_snapshots(replace(job, plan=plan)) if plan is not None else by_snapshots(job, at_all_costs=True)
    assert found is not None
    return assembled(job.problem, found)


def _other(job: Job, route: str) -> Plan | None:
    try:
        return plan_of(job.problem, job.rule, route, job.memory, workers_of(job.engine))
    except (InputError, RuntimeError):
        return None


# -- exact routes ------------------------------------------------------------------------------------------------------

def by_snapshots(job: Job, at_all_costs: bool = False) -> Found | None:
    """Gram matrix or TSQR in one read, modes in a second (Sirovich 1987). None where auto should go on to TSQR."""
    problem, rule = job.problem, job.rule
    n = problem.n or 0
    roots, unit = problem.roots, problem.unit_vector
    exact = job.plan.route == "tsqr"
    means, energies, matrices, parts = [], [], [], []
    for given in problem.parts:
        one = replace(job, problem=replace(problem, parts=(given,)))
        part, sums, columns = in_range(one, functools.partial(_products_of, exact=exact))
        parts.append(part)
        if not np.isfinite(sums["energy"]).all():
            raise NotFinite
        means.append(np.concatenate([c["mean"] for c in columns]))
        energies.append(sums["energy"])
        matrices.append(sums["r"] if exact else sums["gram"] if part.sparse else gram_route.whole(sums["gram"]))
        if part.sparse:
            energies[-1] = matrices[-1].diagonal().real.copy()
    problem = with_scales(job, replace(problem, parts=tuple(parts)), energies, means)
    scales = [part.scale / old.scale for part, old in zip(problem.parts, job.problem.parts, strict=True)]
    power = _common_power([float((e * roots**2).sum()) for e in energies], problem.parts, scales)
    scales = [ldexp(s, power - part.whole_power) for s, part in zip(scales, parts, strict=True)]
    problem, rule = problem.of_unit(power), rule.in_unit(power)
    own = energies
    energies = [e / _squared(s) for e, s in zip(energies, scales, strict=True)]
    energy = np.sum(energies, axis=0)
    if exact:
        r = np.linalg.qr(np.concatenate([m / s for m, s in zip(matrices, scales, strict=True)]), mode="r")
        if unit is not None:
            r = r - (r @ unit)[:, None] * unit
        _, sigma, vectors = np.linalg.svd(r)
        vectors = vectors.conj().T
        sigma = np.append(sigma, np.zeros(n - len(sigma)))
        squared = sigma**2
        total = float(squared.sum())
        grams: list[np.ndarray] | None = None
    else:
        # the weights of snapshots are applied here, so that coefficients come out for snapshots of weight 0 too
        grams = [m / _squared(s) for m, s in zip(matrices, scales, strict=True)]
        weighted = roots[:, None] * np.sum(grams, axis=0) * roots
        if unit is not None:
            weighted = _projected(weighted, unit)
        values, vectors = np.linalg.eigh(weighted)
        squared, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
        sigma, total = np.sqrt(squared), float(np.trace(weighted).real)
    floor = tsqr.FLOOR if exact else gram_route.FLOOR
    usable = int(np.count_nonzero(sigma > floor * sigma[0])) if sigma[0] > 0 else 0
    refuse_nothing(problem, usable, sigma, means)
    usable = min(usable, problem.size)
    k = rule.choose(squared, total, usable, n, problem.size, True)
    short = rule.rank is not None and k < min(rule.rank, n - (unit is not None), problem.size)
    short = short or (rule.rank is None and not rule.noise and k == usable < min(n, problem.size)
                      and float(squared[k:].sum()) > rule.allowed(total))
    if not exact and job.method == "auto" and not at_all_costs and not problem.sparse and (
            short or sigma[k - 1] < WORTHWHILE * sigma[0]):
        return None

    weights = (vectors[:, :k] / sigma[:k]).conj().T
    if unit is not None:
        weights = weights - (weights @ unit)[:, None] * unit      # exact, so that a large mean leaves no trace
    weights = weights * roots
    rows = np.empty((k, problem.size), job.wide)
    start = 0
    for part, mean in zip(problem.parts, means, strict=True):
        recipe = job.recipe(part, job.wide, mean)
        _, columns = job.over_tiles(part, gram_route.SumsWork(recipe, weights.astype(job.wide)))
        at = start
        for piece in columns:
            rows[:, at:at + piece["modes"].shape[1]] = piece["modes"]
            at += piece["modes"].shape[1]
        start += part.field.size
    # eps (sigma_1 / sigma_k)^2 of orthogonality was lost on the way
    rows, lower = gram_route.orthonormalised(rows, _products_with_mass(problem) if problem.sparse else None)
    if not exact:       # Rayleigh-Ritz: the modes as read know the eps (sigma_1 / sigma_k)^2 of sigma that eigenvalues lost
        sigma[:k] = np.linalg.svd(sigma[:k, None] * lower, compute_uv=False)
    if exact:
        if (roots == 0).any():
            raise InputError('snapshots of weight 0 do not go with method="tsqr"; leave them out, or use method="gram"')
        coefficients = (vectors[:, :k] * sigma[:k]) @ lower / roots[:, None]
    else:
        assert grams is not None
        coefficients = (np.sum(grams, axis=0) @ (roots[:, None] * vectors[:, :k]) / sigma[:k]) @ np.linalg.inv(lower).conj().T \
            if problem.weights is not None else (vectors[:, :k] * sigma[:k]) @ lower
    for at, s in enumerate(scales):     # next to nothing beside the other fields: its error is told by its own numbers
        if len(scales) > 1 and float(energies[at].sum()) < LEAST:
            energies[at] = own[at]
            if grams is not None:
                grams[at] = matrices[at]
            else:
                rows[:, problem.columns[at]] *= s
    errors = _field_errors(problem, grams, roots, vectors[:, :k], coefficients, rows, energies)
    for at, s in enumerate(scales):
        if grams is None and energies[at] is own[at]:
            rows[:, problem.columns[at]] /= s
    return Found(sigma[:min(n, problem.size)], True, coefficients, _split(rows, problem), means, total,
                 float(squared[k:].sum()), energy, errors, floor, job.plan.route, sigma[:k],
                 scales=[part.scale for part in problem.parts], power=power)


LEAST = 1e-200
"""Energies of a field, in units in which that of all is an ordinary number, below which its squares may be lost."""


def _products_of(job: Job, exact: bool) -> tuple[Part, dict, list[dict]]:
    """The first read of one field: what the route takes of it, in the unit that it turned out to need."""
    (part,) = job.problem.parts
    recipe = job.recipe(part, job.wide)
    if exact:
        work: Any = tsqr.TsqrWork(recipe, None if job.problem.weights is None else job.problem.roots)
        return part, *job.over_tiles(part, work, tsqr.under)
    if part.sparse:
        from ensemblekit.rom.mass import gram_with_mass

        return part, *gram_with_mass(job, part, recipe)
    return part, *job.over_tiles(part, gram_route.GramWork(recipe))


def _common_power(energies: list[float], parts: Sequence[Part], scales: list[float]) -> int:
    """The power of the unit in which the energies of all fields together are ordinary numbers; 0 where they are."""
    exponents = [math.frexp(e)[1] // 2 + part.whole_power - math.frexp(s)[1]
                 for e, part, s in zip(energies, parts, scales, strict=True) if e > 0]
    largest = max(exponents, default=0)
    return largest if abs(largest) > 190 else 0


def _squared(scale: float) -> float:
    return scale**2 if abs(scale) < 1e150 else math.inf


def _projected(matrix: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """What is left of a Hermitian matrix without the direction `unit`."""
    along = matrix @ unit
    return matrix - np.outer(along, unit) - np.outer(unit, along.conj()) + np.outer(unit, unit) * (unit @ along).real


def _products_with_mass(problem: Problem) -> Callable[[np.ndarray], np.ndarray]:
    def products(rows: np.ndarray) -> np.ndarray:
        total = np.zeros((len(rows), len(rows)), rows.dtype)
        for part, piece in zip(problem.parts, _split(rows, problem), strict=True):
            total += applied(part.matrix if part.sparse else None, piece, part.field.shape) @ piece.conj().T
        return total
    return products


def _split(rows: np.ndarray, problem: Problem) -> list[np.ndarray]:
    return [rows[:, at] for at in problem.columns]


def _field_errors(problem: Problem, grams: list[np.ndarray] | None, roots: np.ndarray, vectors: np.ndarray,
                  coefficients: np.ndarray, rows: np.ndarray, energies: list[np.ndarray]) -> list[float]:
    """Error of each field over its own norm: ‖A_f‖² − 2 Re tr(Cᴴ A_f U_fᴴ) + ‖C U_f‖², with A_f U_fᴴ from the Gram matrix."""
    if len(problem.parts) == 1:
        return []
    found = []
    for k, (part, piece) in enumerate(zip(problem.parts, _split(rows, problem), strict=True)):
        own = float((energies[k] * roots**2).sum())
        if grams is not None:       # A ≈ V Vᴴ A for the exact vectors: the error of a field is what V leaves of it
            weighted = roots[:, None] * grams[k] * roots
            kept = float(np.real(np.sum(vectors.conj() * (weighted @ vectors))))
        else:
            gram = applied(part.matrix if part.sparse else None, piece, part.field.shape) @ piece.conj().T
            c = roots[:, None] * coefficients
            kept = float(np.real(np.sum(gram.T * (c.conj().T @ c))))
        found.append(math.sqrt(max(own - kept, 0.0) / own) if own > 0 else 0.0)
    return found


def refuse_nothing(problem: Problem, usable: int, sigma: np.ndarray, means: list[np.ndarray]) -> None:
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


def size_of(part: Part, mean: np.ndarray) -> float:
    """The largest number of a mean, as it enters the rows that are decomposed."""
    found = ldexp(float(np.abs(mean).max(initial=0.0)), -part.power) / part.scale
    if part.roots is None:
        return found
    return found * float(np.linalg.norm(part.roots)) / math.sqrt(part.field.size)


def with_scales(job: Job, problem: Problem, energies: list[np.ndarray] | None, means: list[np.ndarray] | None) -> Problem:
    """The scales that were to be found: "std" from the energies of a first read, "max" from a read of their own."""
    if problem.scaling is None:
        return problem
    parts = []
    for k, part in enumerate(problem.parts):
        if problem.scaling == "std" and energies is not None:
            weights = problem.weights if problem.weights is not None else np.ones(problem.n or 0)
            volume = _volume(part)
            scale = ldexp(math.sqrt(float((energies[k] * weights).sum()) / ((problem.n or 1) * volume)), part.power)
        else:
            one = replace(job, problem=replace(problem, parts=(part,)))
            scale = in_range(one, functools.partial(_scale_read, mean=None if means is None else means[k]))
        parts.append(replace(part, scale=scale if scale > 0 else 1.0))
    return replace(problem, parts=tuple(parts))


def scaled_by_tiles(job: Job) -> Problem:
    """The problem with the scales of its fields, found in a read of its own where they are not known."""
    if job.problem.scaling is None:
        return job.problem
    return with_scales(job, job.problem, None, None)


def _scale_read(job: Job, mean: np.ndarray | None) -> float:
    """The scale of one field, from a read of its own."""
    (part,) = job.problem.parts
    sums, _ = job.over_tiles(part, LargestWork(job.recipe(part, job.wide, mean)), larger)
    if job.problem.scaling == "max":
        return float(sums["largest"][0])
    return ldexp(math.sqrt(float(sums["square"][0]) / ((job.problem.n or 1) * _volume(part))), part.power)


def _volume(part: Part) -> float:
    if part.sparse:
        ones = np.ones((1, part.field.size))
        return float((applied(part.matrix, ones, part.field.shape) @ ones.T)[0, 0])
    factors = replace(part, power=0).factors
    return float(part.field.size if factors is None else (factors**2).sum())


@dataclass(frozen=True, eq=False)
class LargestWork:
    """The largest deviation in a tile, and the sum of their squares times the weights of the inner product."""

    recipe: Recipe

    def __call__(self, tile: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        energy, largest = np.zeros(len(tile)), 0.0
        for slab in self.recipe.slabs(tile, energy):
            values = np.abs(slab.values).max(0)
            if self.recipe.factors is not None:
                factors = self.recipe.factors[slab.start:slab.start + len(values)]
                values = np.divide(values, factors, out=np.zeros_like(values), where=factors > 0)
            largest = max(largest, float(values.max(initial=0.0)))
        return {"largest": np.array([largest]), "square": np.array([float(energy @ self.recipe.share) * len(tile)])}, {}


def larger(left: dict, right: dict) -> dict:
    """The larger of two tiles, and the sum of squares."""
    return {"largest": np.maximum(left["largest"], right["largest"]), "square": left["square"] + right["square"]}


# -- randomized --------------------------------------------------------------------------------------------------------

def by_steps(job: Job, dtype: np.dtype, at_all_costs: bool = False) -> Found | None:
    """Block Krylov steps, one read each, until another would change little. None below the floor of the arithmetic."""
    return in_range(replace(job, problem=scaled_by_tiles(job)), functools.partial(_steps, dtype=dtype,
                                                                                   at_all_costs=at_all_costs))


def _steps(job: Job, dtype: np.dtype, at_all_costs: bool) -> Found | None:
    problem = job.problem
    n, unit = problem.n or 0, problem.unit_vector
    width = min(job.plan.block, n - (unit is not None), problem.size)
    with one_blas_thread():     # slabs are worked on side by side: threads of BLAS would only wait for each other
        first = randomized.first_block(_known(job, problem, dtype), n, width, unit, job.seed, dtype)
        return _by_steps(job, problem, first, dtype, at_all_costs)


def _by_steps(job: Job, problem: Problem, first: randomized.First, dtype: np.dtype, at_all_costs: bool) -> Found | None:
    rule, n, unit, roots = job.rule.in_unit(problem.power), problem.n or 0, problem.unit_vector, problem.roots
    rank = min(rule.rank or 50, n - (unit is not None), problem.size)
    block = first.block
    width = block.shape[1]
    made: list[list[list[np.ndarray]]] = []         # step -> field -> parts of C
    basis = np.empty((n, 0), job.wide)
    nexts = np.empty((n, 0), job.wide)
    per_field: list[np.ndarray] = [np.empty((n, 0), job.wide) for _ in problem.parts]
    means: list[np.ndarray] = []
    before: float | None = None
    while True:
        weighted = (roots[:, None] * block).astype(dtype)
        energies, parts, products = [], [], []
        quick = not means and unit is not None and block.shape[1] < n - 1
        off = 0.0
        for at, part in enumerate(problem.parts):
            recipe = job.recipe(part, dtype, means[at] if made else None)
            if quick:
                recipe = replace(recipe, quick=True)
            sums, columns = job.over_tiles(part, randomized.StepWork(recipe, weighted))
            if not np.isfinite(sums["energy"]).all():
                raise NotFinite
            if not made:
                means.append(np.concatenate([c["mean"] for c in columns]))
            off += float(sums["off"])
            energies.append(sums["energy"])
            parts.append([c["made"] for c in columns])
            # the first look subtracts about the mean: off by the same for all rows, whose mean is 0
            products.append(sums["next"] - recipe.share @ sums["next"] if quick else sums["next"])
        made.append(parts)
        basis = np.hstack([basis, block])
        per_field = [np.hstack([old, new]) for old, new in zip(per_field, products, strict=True)]
        nexts = np.sum(per_field, axis=0)
        energy = np.sum(energies, axis=0)
        total = float((energy * roots**2).sum())
        if off * n > total:
            total = math.inf            # what was subtracted was no mean at all: the next step measures
        gram = _blocks_gram(job, made)
        turned = roots[:, None] * nexts
        if unit is not None:
            turned = turned - unit[:, None] * (unit @ turned)
        ritz = randomized.ritz(gram, turned, rank)
        gain = math.inf if before is None else ritz.captured - before
        before = ritz.captured
        left = max(total - ritz.captured, 0.0)
        if not total:
            break
        room = n - (unit is not None) - basis.shape[1]
        # residuals know nothing of what no block has met yet: they are believed where the last step found little, or the
        # sample left nothing unseen that could be among the modes
        believed = gain <= LITTLE * left or (len(made) == 1 and first.unseen(turned, unit) < ritz.least(rank))
        expected = 2 * ritz.gain(basis, turned, width - first.probes) if believed else gain
        if room <= 0 or len(made) >= MOST_STEPS or (len(made) >= job.plan.steps and math.isfinite(total) and (
                min(gain, expected) <= 2 * ENOUGH * left or gain <= 1e-13 * total)):
            break
        block = randomized.orthogonal(turned[:, -block.shape[1]:], unit, basis)[:, :room]
    k = ritz.mix.shape[1]
    sigma = np.linalg.norm(ritz.coefficients, axis=0)
    refuse_nothing(problem, int(sigma[0] > 0), sigma, means)
    narrow = dtype in (np.float32, np.complex64)
    floor = randomized.FLOOR32 if narrow else randomized.FLOOR64
    if not at_all_costs and (k < rank or sigma[-1] < floor * sigma[0] or left < (1e-5 if narrow else 1e-12) * total):
        return None
    k = max(1, int(np.count_nonzero(sigma > floor * sigma[0])))
    if not rule.counted:
        k = _chosen(rule, sigma[:k] ** 2, total, n, problem.size)
    left += float((sigma[k:] ** 2).sum())
    sigma, mix = sigma[:k], ritz.mix[:, :k]
    coefficients = nexts @ mix
    residual = energy - (np.abs(coefficients) ** 2).sum(1)
    modes = []
    for at, part in enumerate(problem.parts):
        rows = np.empty((k, part.field.size), dtype)
        for _ in job.local.map(_combine, _columns(made, at), (rows, mix)):
            pass
        modes.append(rows)
    errors = errors_of_fields(problem, modes, [one @ mix for one in per_field], energies, coefficients)
    made.clear()
    known = np.sqrt(ritz.values[ritz.values > (floor * sigma[0]) ** 2])
    return Found(np.concatenate([sigma, known[k:]]) if len(known) > k else sigma, False, coefficients, modes, means, total,
                 left,
                 energy, errors, floor, "randomized", sigma, np.clip(residual, 0, None),
                 [part.scale for part in problem.parts], problem.power)


def errors_of_fields(problem: Problem, modes: Sequence[np.ndarray], products: Sequence[np.ndarray],
                     energies: Sequence[np.ndarray] | np.ndarray, coefficients: np.ndarray) -> list[float]:
    """Relative errors of several fields, from the products of each (n, size) with its part of the modes, (n, k), and the
    energies of its snapshots; none for a single one, whose error is that of all.

    NaN for a field of next to nothing beside the others, whose squares are no numbers in their units.
    """
    if len(modes) < 2:
        return []
    roots = problem.roots
    errors, c = [], roots[:, None] * coefficients
    for part, rows, product, energy in zip(problem.parts, modes, products, energies, strict=True):
        if part.asked is not None and part.asked < part.power - 300:
            errors.append(math.nan)
            continue
        own = float((energy * roots**2).sum())
        wide = rows.astype(coefficients.dtype)
        kept = 2 * np.sum(c.conj() * (roots[:, None] * product)).real - np.sum((wide @ wide.conj().T).T * (c.conj().T @ c)).real
        errors.append(math.sqrt(max(own - float(kept), 0) / own) if own > 0 else 0.0)
    return errors


def _chosen(rule: Rule, squared: np.ndarray, total: float, n: int, size: int) -> int:
    """How many of the modes that the randomized route found a rule takes that does not count them."""
    k = rule.choose(squared, total, len(squared), n, size, False)
    if total - float(squared[:k].sum()) > rule.allowed(total) * (1 + 1e-6) and k < min(n - 1, size):
        raise InputError(f"the {k} modes that the randomized route found leave an error of "
                         f"{100 * math.sqrt(max(total - float(squared.sum()), 0) / total):.3g} %, more than allowed; give a "
                         'larger rank, or method="gram"')
    return k


def _known(job: Job, problem: Problem, dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray] | None:
    """A Aᴴ times a block, from some thousand columns of all fields; None where picking them would cost a read of the file."""
    if not job.plan.sample:
        return None
    share = job.plan.sample / problem.size
    found: list[np.ndarray] = []
    for part in problem.parts:
        # of what is in memory the columns alone are touched; of a file about every page
        sums, columns = job.over_tiles(part, randomized.SampleWork(job.recipe(part, dtype), share, job.seed),
                                    counted=not problem.in_memory)
        if not np.isfinite(sums["energy"]).all():
            return None         # the step will say what is wrong
        some = max(1, AT_ONCE * len(columns) // job.plan.sample)
        groups = (columns[a:a + some] for a in range(0, len(columns), some))
        found += job.local.map(_joined, groups, None if problem.weights is None else problem.roots.astype(dtype)[:, None])
    scale = problem.size / sum(sample.shape[1] for sample in found)

    def product(block: np.ndarray) -> np.ndarray:
        return scale * functools.reduce(operator.add, job.local.map(_there_and_back, iter(found), block))
    return product


AT_ONCE = 1024
"""Columns of the sample that are multiplied at a time."""


def _joined(roots: np.ndarray | None, pieces: list[dict[str, np.ndarray]]) -> np.ndarray:
    sample = np.concatenate([piece.pop("sample") for piece in pieces], axis=1)
    return sample if roots is None else sample * roots


def _there_and_back(block: np.ndarray, sample: np.ndarray) -> np.ndarray:
    back = randomized.adjoint(sample) @ block
    return (sample @ back).astype(np.result_type(block.dtype, np.float64))


def _columns(made: list[list[list[np.ndarray]]], at: int) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """The parts of C of a field, those of all blocks together, with the column where they begin."""
    start = 0
    for pieces in zip(*(step[at] for step in made), strict=True):
        yield start, pieces
        start += len(pieces[0])


CACHEFUL = 4096


def _in_double(pieces: tuple[np.ndarray, ...]) -> Iterator[tuple[int, np.ndarray]]:
    wide = np.result_type(pieces[0].dtype, np.float64)
    for a in range(0, len(pieces[0]), CACHEFUL):
        yield a, np.concatenate([p[a:a + CACHEFUL] for p in pieces], axis=1, dtype=wide)


def _combine(shared: tuple[np.ndarray, np.ndarray], item: tuple[int, tuple[np.ndarray, ...]]) -> None:
    (rows, mix), (start, pieces) = shared, item
    for a, wide in _in_double(pieces):
        rows[:, start + a:start + a + len(wide)] = mix.conj().T @ wide.conj().T


def _gram_of(_: None, item: tuple[int, tuple[np.ndarray, ...]]) -> np.ndarray:
    return functools.reduce(operator.add, (wide.conj().T @ wide for _, wide in _in_double(item[1])))


def _blocks_gram(job: Job, made: list[list[list[np.ndarray]]]) -> np.ndarray:
    """Cᴴ C over all blocks, in double precision."""
    parts = (part for at in range(len(made[0])) for part in job.local.map(_gram_of, _columns(made, at), None))
    return functools.reduce(operator.add, parts)


# -- putting it together -----------------------------------------------------------------------------------------------

def assembled(held: Problem, found: Found) -> Basis:
    """A Basis in the units of the fields, with signs that do not depend on the route."""
    problem = with_scales_of(held, found)
    k = found.coefficients.shape[1]
    modes, means = [], []
    # the largest number of each mode is real and positive
    largest = np.zeros(k)
    phase = np.ones(k, found.coefficients.dtype)
    for part, rows, mean in zip(problem.parts, found.modes, found.means, strict=True):
        factors = replace(part, power=0).factors
        if factors is not None:
            with np.errstate(divide="ignore"):
                inverse = np.where(factors > 0, 1 / factors, 0.0)
            if rows.dtype in SINGLE and not 1e-30 < inverse.max(initial=1.0) < 1e30:
                rows = rows.astype(np.result_type(rows.dtype, np.float64))
            for a in range(0, rows.shape[1], 1 << 16):
                rows[:, a:a + (1 << 16)] *= inverse[a:a + (1 << 16)]
        rows = ldexp(rows, -part.product_power)
        if part.mask is not None:
            mean = np.where(part.mask, mean, math.nan)
        modes.append(rows)
        means.append(mean)
        for j in range(k):
            at = int(np.abs(rows[j]).argmax())
            if abs(rows[j, at]) / part.scale > largest[j] * (1 + 1e-9):
                largest[j] = abs(rows[j, at]) / part.scale
                phase[j] = rows[j, at] / abs(rows[j, at])
    for rows in modes:
        for j in range(k):
            if phase[j] != 1:
                rows[j] *= np.conj(phase[j])
    coefficients = found.coefficients * phase
    single = len(problem.parts) == 1
    field = problem.parts[0].field
    shape = field.shape if single else (problem.size,)
    n = problem.n or len(coefficients)
    total = found.total
    left = found.per_snapshot
    if left is None:
        left = np.clip(found.energy - (np.abs(coefficients) ** 2).sum(1), 0, None)
    masks = [part.mask for part in problem.parts]
    names = [part.name for part in problem.parts]
    basis = Basis(
        modes=(modes[0] if single else np.concatenate(modes, axis=1)).reshape(k, *shape),
        singular_values=_in_ordinary_unit(
            found.spectrum[:k] if found.singular_values is None else found.singular_values, found.power),
        coefficients=ldexp(coefficients, found.power), mean=(means[0] if single else np.concatenate(means)).reshape(shape),
        total_energy=ldexp(total, 2 * found.power),
        fields={part.name: part.field for part in problem.parts},
        inner_product=problem.parts[0].product if single else (
            None if all(part.product is None for part in problem.parts) else {p.name: p.product for p in problem.parts}),
        scale={part.name: part.scale for part in problem.parts} if any(part.scale != 1 for part in problem.parts) else {},
        times=problem.times, time_unit=problem.time_unit, mesh=problem.mesh,
        mask=None if all(mask is None for mask in masks) else np.concatenate(
            [np.ones(part.field.size, bool) if part.mask is None else part.mask for part in problem.parts]).reshape(shape),
        error_per_snapshot=np.sqrt(left / (total / n)) if total else np.zeros(n), weights=problem.weights,
        spectrum=ldexp(found.spectrum, found.power), spectrum_complete=found.complete, floor=found.floor, method=found.method,
        residual=ldexp(found.residual, 2 * found.power),
        energies=(found.power, total, found.residual) if found.power else None)
    errors = found.field_errors or [basis.relative_error] * len(names)
    return replace(basis, error_per_field=dict(zip(names, errors, strict=True)))


def _in_ordinary_unit(singular_values: np.ndarray, power: int) -> np.ndarray:
    values = ldexp(singular_values, power)
    if not np.isfinite(values).all() or values[0] < np.finfo(np.float64).tiny:
        raise InputError(f"singular values of about 1e{math.log10(singular_values[0]) + power * math.log10(2):+.0f} are beyond "
                         "what a float64 holds; give the snapshots or the weights of the inner product in another unit")
    return values


def with_scales_of(problem: Problem, found: Found) -> Problem:
    """The problem with the scales that the route found on its way."""
    if found.scales is None:
        return problem
    parts = zip(problem.parts, found.scales, strict=True)
    return replace(problem, parts=tuple(replace(part, scale=scale) for part, scale in parts))


# -- gaps and memory -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class GapsWork:
    """Where a tile holds numbers: in how many snapshots each column is finite, in which snapshots something is missing."""

    def __call__(self, tile: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        bad = ~np.isfinite(tile.values)
        return {"bad": bad.sum(1), "infinite": np.isinf(tile.values).sum(1)}, {"finite": len(tile) - bad.sum(0)}


def gaps_of(job: Job, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(finite a column, missing a snapshot, infinite a snapshot) of a field."""
    sums, columns = job.over_tiles(part, GapsWork())
    return np.concatenate([c["finite"] for c in columns]), sums["bad"], sums["infinite"]


def without_constant_gaps(job: Job) -> Problem | None:
    """The problem without the numbers that are NaN in every snapshot; None where others are missing too."""
    problem = job.problem
    if problem.access != "tiles":
        raise InputError("the snapshots hold NaN or infinity; ingest them into a store to have them masked, or drop them")
    parts = []
    for part in problem.parts:
        finite, _, infinite = gaps_of(job, part)
        if infinite.any():
            raise InputError(f"field {part.name!r} holds infinity, first in snapshot {int(np.argmax(infinite > 0))}; drop or "
                             "mend those snapshots")
        if not (finite > 0).any():
            raise InputError(f"field {part.name!r} holds NaN or infinity only")
        if ((finite > 0) & (finite < (problem.n or 0))).any():
            return None
        parts.append(part.masked(finite > 0) if (finite == 0).any() else part)
    if any(part.sparse for part in problem.parts):
        raise InputError("a mass matrix does not go with masked numbers: leave them out of fields and matrix")
    return replace(problem, parts=tuple(parts))


def _gaps(job: Job) -> str:
    for part in job.problem.parts:
        _, bad, _ = gaps_of(job, part)
        if bad.any():
            first = int(np.argmax(bad > 0))
            return (f"field {part.name!r} holds NaN or infinity: {int(bad.sum())} numbers in {int((bad > 0).sum())} snapshots, "
                    f"first in snapshot {first} ({int(bad[first])} of {part.field.size})")
    return "the snapshots hold NaN or infinity"


def in_memory(problem: Problem, engine: Engine | None) -> Problem:
    """The same with all snapshots read into memory."""
    from ensemblekit.averaging.series import Series
    from ensemblekit.source import ArraySource

    parts = []
    for part in problem.parts:
        values = reduce(part.source, {"x": (part.key, Series())}, fields=[part.key], engine=engine)["x"]
        parts.append(replace(part, source=ArraySource.of({part.key: values})))
    return replace(problem, parts=tuple(parts))

