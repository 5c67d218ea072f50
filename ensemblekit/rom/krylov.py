"""Block Krylov steps over slabs of space, one read each, until another would change little."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ensemblekit.engine import one_blas_thread
from ensemblekit.errors import InputError
from ensemblekit.rom import randomized
from ensemblekit.rom.decomposition import Found, errors_of_fields, refuse_nothing
from ensemblekit.rom.problem import Problem
from ensemblekit.rom.randomized import block_width
from ensemblekit.rom.rank import Rule
from ensemblekit.rom.route import MOST_STEPS, RUN, TILE, Budget, Plan, Workload, held, loadable, page_cache
from ensemblekit.rom.scales import scaled_by_tiles
from ensemblekit.rom.task import Job, NotFinite, in_range

ENOUGH = 1e-3
"""The randomized route reads once more where another step could lower the error by more than this share of it."""

LITTLE = 0.05

SLAB = 3 << 20
"""Bytes of a slab that is multiplied twice while it is in the cache."""
SAMPLE = 8192
"""Columns of the sample at the most."""
AT_ONCE = 1024
"""Columns of the sample that are multiplied at a time."""

CACHEFUL = 4096


def by_steps(job: Job, dtype: np.dtype, accept_floor: bool = False) -> Found | None:
    """Block Krylov steps, one read each, until another would change little. None below the floor of the arithmetic."""
    return in_range(replace(job, problem=scaled_by_tiles(job)), functools.partial(_steps, dtype=dtype,
                                                                                   accept_floor=accept_floor))


def _steps(job: Job, dtype: np.dtype, accept_floor: bool) -> Found | None:
    problem = job.problem
    n, unit = problem.n or 0, problem.unit_vector
    width = min(job.plan.block, n - (unit is not None), problem.size)
    with one_blas_thread():     # slabs are worked on side by side: threads of BLAS would only wait for each other
        first = randomized.first_block(_known(job, problem, dtype), n, width, unit, job.seed, dtype)
        return _by_steps(job, problem, first, dtype, accept_floor)


def _by_steps(job: Job, problem: Problem, first: randomized.First, dtype: np.dtype, accept_floor: bool) -> Found | None:
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
    if not accept_floor and (k < rank or sigma[-1] < floor * sigma[0] or left < (1e-5 if narrow else 1e-12) * total):
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


def cost_in_space(problem: Problem, rule: Rule, budget: Budget) -> Plan:
    """One step where a sample of the columns makes its block, or several from random vectors where memory wants that."""
    found = _cost(problem, rule, budget, True)
    return found if found.sample and found.memory_bytes <= budget.memory else _cost(problem, rule, budget, False)


def _cost(problem: Problem, rule: Rule, budget: Budget, once: bool) -> Plan:
    load, at = loadable(problem), Workload.of(problem, rule)
    n, size, memory, workers = at.n, at.size, budget.memory, budget.workers
    work = at.wide // 2 if problem.single else at.wide
    slivers = 0 if problem.in_memory else RUN * n
    even = int(np.clip(-(-at.nbytes // (8 * workers)), TILE, 4 * TILE))     # few, as many for each worker
    limit = max(n * at.itemsize * 16, min(memory // 4, max(even, min(slivers, 1 << 30))))
    # a few hundred columns at least, a piece of every row worth its way to memory, where memory allows
    slab = min(max(SLAB, 256 * n * work), memory // (16 * workers))
    width = int(min(max(64, slab // max(n * work, 1) // 64 * 64), 4096))
    tiles = max(1, math.ceil(at.nbytes / limit))
    block = block_width(at.k, budget.oversampling, n, once)
    columns = int(min(size, SAMPLE, max(4 * block, size // 16), max(4 * block, memory // (24 * max(n, 1) * work))))
    # of what stays in memory the sample is the one read from the disk
    if not problem.in_memory and at.nbytes > max(4 * memory, page_cache()):
        columns = 0             # picking columns would cost a read; random vectors cost a step
    steps = budget.steps if once else max(budget.steps, 2) + (0 if columns else 1)
    states = min(tiles, 2 * workers + math.ceil(math.log2(tiles + 1)) + 2) * n * block * at.wide
    peak = states + workers * width * n * work + steps * size * block * work + 2 * columns * n * work + 2 * size * 8
    other = at.scaling + (1 if columns and not problem.in_memory else 0)
    passes, most = (1, 1) if load else (steps + other, max(steps, MOST_STEPS) + other)
    extra = (at.nbytes if load else 0) + at.factors
    result = at.k * size * work + n * at.k * at.wide
    return Plan("randomized", passes, at.nbytes * passes, held(extra + peak + result),
                at.times * steps * 4.0 * n * size * block, "", rule.rank, problem.n, size, int(limit), width, block=block,
                sample=columns, load=load, steps=steps, most_passes=most)
