"""The method of snapshots: all inner products of the snapshots, or R of their QR, in one read, and modes in a second."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom import gram as gram_route
from ensemblekit.rom import tsqr
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decomposition import LEAST, Found, assembled, refuse_nothing
from ensemblekit.rom.mass import gram_with_mass
from ensemblekit.rom.problem import Part, Problem
from ensemblekit.rom.product import applied
from ensemblekit.rom.rank import Rule
from ensemblekit.rom.route import TILE, Budget, Plan, Workload, held, loadable, refusal_of_rows, refusal_of_streams
from ensemblekit.rom.scales import with_scales
from ensemblekit.rom.task import FloorReached, Job, NotFinite, in_range
from ensemblekit.scaling import ldexp

WORTHWHILE = 1e-6
"""Below this share of the first singular value Gram matrices are rounding for the most part; QR is exact there."""


def by_snapshots(job: Job) -> Found:
    """Gram matrix or TSQR in one read, modes in a second (Sirovich 1987).

    Raises FloorReached where the choice is ours and TSQR would tell more.
    """
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
    if not exact and job.method == "auto" and not job.accept_floor and not problem.sparse and (
            short or sigma[k - 1] < WORTHWHILE * sigma[0]):
        raise FloorReached

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
        kept = int(np.count_nonzero(sigma[:k] > floor * sigma[0]))      # of eigenvalues that are rounding some are above it
        k, rows, lower = kept, rows[:kept], lower[:kept, :kept]
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
    return Found(np.sort(sigma)[::-1][:min(n, problem.size)], True, coefficients, _split(rows, problem), means, total,
                 float(squared[k:].sum()), energy, errors, floor, job.plan.route, sigma[:k],
                 scales=[part.scale for part in problem.parts], power=power)


def _products_of(job: Job, exact: bool) -> tuple[Part, dict, list[dict]]:
    """The first read of one field: what the route takes of it, in the unit that it turned out to need."""
    (part,) = job.problem.parts
    recipe = job.recipe(part, job.wide)
    if exact:
        work: Any = tsqr.TsqrWork(recipe, None if job.problem.weights is None else job.problem.roots)
        return part, *job.over_tiles(part, work, tsqr.under)
    if part.sparse:
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


class Gram:
    """All inner products of the snapshots: exact, with the whole spectrum down to sqrt(eps)."""

    name: ClassVar[str] = "gram"
    finer: ClassVar[tuple[str, ...]] = ("tsqr",)

    def refusal(self, problem: Problem) -> str | None:
        return refusal_of_streams(problem) or refusal_of_rows(problem)

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        return _cost(self.name, problem, rule, budget)

    def decompose(self, task: Job) -> Basis:
        return assembled(task.problem, by_snapshots(task), task.reads.passes)


class Tsqr:
    """R of the QR factorisation of all snapshots: singular values down to the rounding of the data."""

    name: ClassVar[str] = "tsqr"
    finer: ClassVar[tuple[str, ...]] = ()

    def refusal(self, problem: Problem) -> str | None:
        sparse = "a sparse mass matrix goes with the gram route" if problem.sparse else None
        return refusal_of_streams(problem) or refusal_of_rows(problem) or sparse

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        return _cost(self.name, problem, rule, budget)

    def decompose(self, task: Job) -> Basis:
        return assembled(task.problem, by_snapshots(task), task.reads.passes)


def _cost(route: str, problem: Problem, rule: Rule, budget: Budget) -> Plan:
    """Tiles of all snapshots, a matrix (n, n) for each that is on its way, and a second read for the modes."""
    load, at = loadable(problem), Workload.of(problem, rule)
    n, size, k, wide = at.n, at.size, at.k, at.wide
    extra = (at.nbytes if load else 0) + at.factors
    limit = max(n * at.itemsize * 16, min(budget.memory // 16, TILE))
    width = int(min(max(1, limit // max(n * at.itemsize, 1)), max(256 if route == "gram" else 2 * n,
                                                                  (4 << 20) // max(n * wide, 1))))
    tiles = max(1, math.ceil(at.nbytes / max(limit, 1)))
    if tiles > 8 and n * n * wide * 12 > budget.memory // 2:    # fewer tiles, as each holds a matrix meanwhile
        limit = max(limit, at.nbytes // 4)
        tiles = 4
    # pieces on their way: two a worker, and the logarithm of their number that waits to be joined
    matrices = min(tiles, 2 * budget.workers + math.ceil(math.log2(tiles + 1))) + 2
    peak = matrices * n * n * wide + budget.workers * (1 if route == "gram" else 3) * width * n * wide
    after = 4 * n * n * wide + 2 * k * size * wide
    operations = float(n) * n * size * (1 if route == "gram" else 2) + 2.0 * n * k * size
    if problem.sparse:
        columns = max(1, budget.memory // (4 * wide * max(size, 1)))
        # the mean, each group of snapshots and all against it, the modes
        passes = 1 if load else math.ceil(n / columns) + 3 + (1 if problem.scaling == "max" else 0)
        return Plan(route, passes, at.nbytes * passes, held(extra + peak + columns * size * wide * 2 + at.result),
                    operations * 2, "", rule.rank, problem.n, size, int(limit), width, block=int(columns), load=load)
    passes = 1 if load else 3 if problem.scaling == "max" else 2
    return Plan(route, passes, at.nbytes * passes, held(extra + max(peak, after + at.result)), at.times * operations, "",
                rule.rank, problem.n, size, int(limit), width, load=load)
