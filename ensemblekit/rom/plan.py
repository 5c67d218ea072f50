"""Which route, how often the snapshots are read, how much memory that takes, and why: said before anything is read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ensemblekit.engine import Engine, Threads, cores
from ensemblekit.errors import InputError, ReadOnceError
from ensemblekit.rom.problem import Problem, problem_of
from ensemblekit.rom.rank import Rule, as_bytes, in_words
from ensemblekit.source import MIN_PIECES

Route = Literal["gram", "covariance", "tsqr", "randomized", "incremental"]
ROUTES = ("gram", "covariance", "tsqr", "randomized", "incremental")
TILE = 16 << 20
"""Bytes of a tile of space where that fits: small enough that two cores end together."""
RUN = 64 << 10
"""Bytes of each snapshot that a tile should hold where the data comes from a disk: one long read beside one seek."""
SLAB = 3 << 20
"""Bytes of a slab that is multiplied twice while it is in the cache."""
SAMPLE = 8192
CACHEFUL = 1 << 20
"""Bytes of a block of snapshots that are multiplied twice while they are near."""
MOST_STEPS = 8
"""Of the randomized route, where the residuals stay large."""
SMALL = 5e9
"""Multiplications that take less than a fraction of a second whatever the route."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What :func:`pod` will do."""

    route: str
    passes: int
    """How often every snapshot is expected to be read; :attr:`Basis.passes` says how often it was."""
    read_bytes: int
    """In all passes together."""
    memory_bytes: int
    """Of its own at the most, beside what holds the snapshots."""
    operations: float
    """Multiplications and additions."""
    why: str
    rank: int | None
    n: int | None
    size: int
    limit: int
    """Bytes of a tile of space, or of a block of time."""
    width: int = 512
    """Columns that are multiplied at a time, or snapshots a block (incremental)."""
    block: int = 0
    """Vectors a block of the randomized route, directions kept by the incremental one."""
    sample: int = 0
    """Columns that the randomized route's first block is made from."""
    load: bool = False
    """Whether the snapshots are first read into memory as a whole."""
    steps: int = 0
    """Block Krylov steps of the randomized route, each a read."""
    in_time: bool = False
    """Whether the randomized route takes the snapshots in order of time, and not slab of space by slab."""
    most_passes: int = 0
    """Passes at the most, where a route goes on until its residuals (randomized) or its modes (incremental) settle; 0: as
    many as `passes`."""

    def __str__(self) -> str:
        n = "a stream of" if self.n is None else self.n
        most = f", at most {self.most_passes}" if self.most_passes > self.passes else ""
        return (f"{self.route}: {n} snapshots of {self.size} numbers, {self.passes} pass{'es' if self.passes > 1 else ''} "
                f"({in_words(self.read_bytes)} read){most}, {in_words(self.memory_bytes)} of memory, "
                f"{self.operations / 1e9:.3g} GFlop. {self.why}")


def plan(source: Any, rank: Any = None, *, energy: float | None = None, tolerance: float | None = None,
         absolute_tolerance: float | None = None, snapshot_axis: int | None = None, inner_product: Any = "auto",
         scale: Any = None, center: Any = "mean", method: str = "auto", memory_limit: Any = "2GiB",
         engine: Engine | None = None, oversampling: int = 10, power: int | None = None) -> Plan:
    """What :func:`pod` with the same arguments will do: route, passes, bytes, memory and the reason. Nothing is read.

    Raises:
        InputError: as pod does, and where no route fits the memory limit.
    """
    problem = problem_of(source, snapshot_axis, inner_product, scale, center)
    rule = Rule.of(rank, energy, tolerance, absolute_tolerance, problem.n)
    return plan_of(problem, rule, method, as_bytes(memory_limit), workers_of(engine), oversampling, power)


def workers_of(engine: Engine | None) -> int:
    """Pieces that an engine works on at a time."""
    engine = engine or Threads()
    return int(getattr(engine, "n", None) or (cores() if isinstance(engine, Threads) else 1))


def plan_of(problem: Problem, rule: Rule, method: str, memory: int, workers: int, oversampling: int = 10,
            power: int | None = None) -> Plan:
    """The plan for a problem."""
    if method not in ("auto", *ROUTES):
        raise InputError(f'method is "auto" or one of {", ".join(ROUTES)}; got {method!r}')
    if oversampling < 1 or (power is not None and power < 1):
        raise InputError(f"oversampling and power are whole numbers above 0; got {oversampling!r} and {power!r}")
    steps = power if power is not None else 1 if method == "auto" else 2
    made = {route: _of(route, problem, rule, memory, workers, oversampling, steps) for route in ROUTES}
    allowed = {route: _refused(route, problem) for route in ROUTES}
    if method != "auto":
        if allowed[method] is not None:
            error = ReadOnceError if problem.access != "tiles" and method in ("gram", "tsqr", "randomized") else InputError
            raise error(f"method={method!r}: {allowed[method]}")
        chosen = made[method]
        if chosen.memory_bytes > memory:
            raise InputError(f"method={method!r} needs {in_words(chosen.memory_bytes)} and memory_limit is {in_words(memory)}; "
                             'raise it or leave the choice to method="auto"')
        return _because(chosen, "as asked")
    fits = [route for route in ROUTES if allowed[route] is None and made[route].memory_bytes <= memory]
    if not fits:
        least = min((made[route] for route in ROUTES if allowed[route] is None), key=lambda p: p.memory_bytes, default=None)
        if least is None:
            raise InputError(f"no route can do this: {'; '.join(sorted({str(a) for a in allowed.values()}))}")
        raise InputError(f"memory_limit={in_words(memory)} is too small for {problem.n} snapshots of {problem.size} numbers: "
                         f"the {least.route} route needs the least, {in_words(least.memory_bytes)}")
    route, why = _choice(problem, rule, made, fits)
    return _because(made[route], why)


def _choice(problem: Problem, rule: Rule, made: dict[str, Plan], fits: list[str]) -> tuple[str, str]:
    n = problem.n
    if n is None or problem.access == "once":
        return "incremental", "The source is read only once."
    if "covariance" in fits and 2 * problem.size < n and made["covariance"].operations < made["gram"].operations:
        return "covariance", "Fewer numbers a snapshot than snapshots: their covariance is the smaller matrix."
    slow = problem.nbytes > _cache() and not problem.in_memory
    thin = slow and made["gram"].limit / n < RUN // 4
    exact = [route for route in ("gram", "covariance") if route in fits]
    if rule.counted and "randomized" in fits and (not thin or made["randomized"].in_time):
        work, full = made["randomized"].operations, made["gram"].operations
        if problem.single and not problem.complex_:
            work /= 2           # a product in float32 takes half as long, and all inner products are in float64
        if not exact or (full > SMALL and full > 3 * work):
            what = "A few steps of subspace iteration in order of time" if made["randomized"].in_time else (
                "A few block Krylov steps")
            return "randomized", (f"{what} find the leading modes with a fraction of the work of all inner products; the "
                                  "error is certified, and a steep spectrum escalates.")
    if exact and not (thin and "incremental" in fits and rule.counted):
        what = "snapshots" if exact[0] == "gram" else "numbers"
        return exact[0], f"All inner products of the {what} fit in memory: exact, with the whole spectrum."
    if "incremental" in fits:
        return "incremental", ("One read in order of time, keeping the leading directions: the matrix of all inner products is "
                               "larger than the memory limit, or slabs of space would be read in slivers.")
    return fits[0], "Nothing else fits the memory limit."


def _because(made: Plan, why: str) -> Plan:
    from dataclasses import replace

    return replace(made, why=why)


def _cache() -> float:
    """Bytes of a file that the system can be expected to keep in memory: half of what is free."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024 / 2
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4
    except (ValueError, OSError, AttributeError):
        return 2e9


def _refused(route: str, problem: Problem) -> str | None:
    """Why a route cannot be taken at all."""
    if problem.n is None and route != "incremental":
        return "a stream is read once; ingest it into a store, or use the incremental route"
    if problem.access == "once" and route != "incremental":
        return "the source is read only once; ingest it into a store first"
    if problem.access == "rows" and not _loadable(problem):
        if route in ("gram", "tsqr"):
            return "the source cannot be read in slabs of space; ingest it into a store first"
        if route == "randomized" and not problem.of_one_source:
            return "fields of several sources that cannot be read in slabs of space; ingest them into a store first"
    if problem.sparse and route in ("tsqr", "randomized", "covariance", "incremental"):
        return "a sparse mass matrix goes with the gram route"
    if route == "covariance" and not problem.of_one_source:
        return "the covariance route takes fields of one source"
    if route == "incremental" and problem.scaling is not None and problem.access == "once":
        return f'scale="{problem.scaling}" needs a read beforehand; give the scales as a mapping of field to number'
    return None


def _loadable(problem: Problem, memory: int = 1 << 30) -> bool:
    return problem.access == "rows" and problem.nbytes <= memory


def _of(route: str, problem: Problem, rule: Rule, memory: int, workers: int, oversampling: int, power: int) -> Plan:
    """Passes, bytes, memory and operations of one route."""
    n, size = problem.n or 0, problem.size
    wide = 16 if problem.complex_ else 8
    k = rule.rank if rule.rank is not None else min(max(n, 1), 50)
    k = min(k, max(n, 1), size)
    nbytes = problem.nbytes
    times = 4 if problem.complex_ else 1
    factors = 8 * size * sum(part.factors is not None or part.shift is not None for part in problem.parts) // len(problem.parts)
    load = _loadable(problem) and route in ("gram", "tsqr", "randomized")
    extra = (nbytes if load else 0) + factors
    itemsize = max((part.field.dtype.itemsize for part in problem.parts), default=8)
    # pieces on their way: two a worker, and the logarithm of their number that waits to be joined
    scaling = 1 if problem.scaling is not None and route in ("randomized", "incremental") else 0
    result = 8 * size + k * size * wide + n * k * wide
    if route in ("gram", "tsqr"):
        limit = max(n * itemsize * 16, min(memory // 16, TILE))
        width = int(min(max(1, limit // max(n * itemsize, 1)), max(256 if route == "gram" else 2 * n,
                                                                   (4 << 20) // max(n * wide, 1))))
        tiles = max(1, math.ceil(nbytes / max(limit, 1)))
        if tiles > 8 and n * n * wide * 12 > memory // 2:    # fewer tiles, as each holds a matrix meanwhile
            limit = max(limit, nbytes // 4)
            tiles = 4
        matrices = min(tiles, 2 * workers + math.ceil(math.log2(tiles + 1))) + 2
        factor = 1 if route == "gram" else 3
        peak = matrices * n * n * wide + workers * factor * width * n * wide
        after = 4 * n * n * wide + 2 * k * size * wide
        ops = float(n) * n * size * (1 if route == "gram" else 2) + 2.0 * n * k * size
        if problem.sparse:
            columns = max(1, memory // (4 * wide * max(size, 1)))
            # the mean, each group of snapshots and all against it, the modes
            passes = 1 if load else math.ceil(n / columns) + 3 + (1 if problem.scaling == "max" else 0)
            return Plan(route, passes, nbytes * passes, _held(extra + peak + columns * size * wide * 2 + result), ops * 2, "",
                        rule.rank, problem.n, size, int(limit), width, block=int(columns), load=load)
        passes = 1 if load else 3 if problem.scaling == "max" else 2
        return Plan(route, passes, nbytes * passes, _held(extra + max(peak, after + result)), times * ops, "", rule.rank,
                    problem.n, size, int(limit), width, load=load)
    if route == "covariance":
        limit = max(size * itemsize, min(memory // 16, TILE))
        peak = (2 * workers + 9) * size * size * wide + workers * (limit // itemsize) * wide
        ops = float(size) * size * n + 2.0 * n * k * size
        passes = 3 if problem.scaling == "max" else 2
        return Plan(route, passes, passes * nbytes, _held(extra + peak + result), times * ops, "", rule.rank, problem.n, size,
                    int(limit))
    if route == "randomized":
        work = wide // 2 if problem.single else wide
        slivers = 0 if problem.in_memory else RUN * n
        even = int(np.clip(-(-nbytes // (8 * workers)), TILE, 4 * TILE))     # few, as many for each worker
        limit = max(n * itemsize * 16, min(memory // 4, max(even, min(slivers, 1 << 30))))
        # a few hundred columns at least, a piece of every row worth its way to memory, where memory allows
        slab = min(max(SLAB, 256 * n * work), memory // (16 * workers))
        width = int(min(max(64, slab // max(n * work, 1) // 64 * 64), 4096))
        tiles = max(1, math.ceil(nbytes / limit))
        result = k * size * work + n * k * wide

        held = max(4 * memory, _cache())    # of what fits there the sample is the one read from the disk

        def by_steps(once: bool) -> Plan:
            block = _block(k, oversampling, n, once)
            columns = int(min(size, SAMPLE, max(4 * block, size // 16), max(4 * block, memory // (24 * max(n, 1) * work))))
            if not problem.in_memory and nbytes > held:     # picking columns would cost a read; random vectors cost a step
                columns = 0
            steps = power if once else max(power, 2) + (0 if columns else 1)
            states = min(tiles, 2 * workers + math.ceil(math.log2(tiles + 1)) + 2) * n * block * wide
            peak = states + workers * width * n * work + steps * size * block * work + 2 * columns * n * work + 2 * size * 8
            other = scaling + (1 if columns and not problem.in_memory else 0)
            passes, most = (1, 1) if load else (steps + other, max(steps, MOST_STEPS) + other)
            return Plan(route, passes, nbytes * passes, _held(extra + peak + result), times * steps * 4.0 * n * size * block,
                        "", rule.rank, problem.n, size, int(limit), width, block=block, sample=columns, load=load, steps=steps,
                        most_passes=most)

        def in_time() -> Plan:
            """From the first snapshot to the last: a sample of them, a step, and a read that measures what it found."""
            block = _block(k, oversampling, n, True)
            rows = min(n, max(2 * block, min(8 * block, n // 16, memory // (8 * size * work))))
            limit = max(memory // 8, 64 * size * itemsize)
            states = 2 * workers + math.ceil(math.log2(MIN_PIECES)) // 2
            peak = (states * (block + 1) + block) * size * work + 2 * size * 8
            at_first = rows * size * (itemsize + work) + block * size * work
            steps = max(power, 2)
            held = max(peak, at_first) + workers * CACHEFUL + n * block * wide * len(problem.parts)
            return Plan(route, steps + scaling, nbytes * (steps + scaling), _held(factors + held + result),
                        times * steps * 4.0 * n * size * block, "", rule.rank, problem.n, size, int(limit), block=block,
                        sample=rows, steps=steps, in_time=True, most_passes=max(steps, MOST_STEPS) + scaling)

        found = by_steps(True)
        found = found if found.sample and found.memory_bytes <= memory else by_steps(False)
        if load or problem.in_memory or not problem.of_one_source:
            return found
        ordered = in_time()
        fewer = problem.nbytes > memory and ordered.passes <= found.passes and ordered.memory_bytes <= memory
        return ordered if problem.access == "rows" or fewer else found
    keep = 2 * k + 10
    width = max(8, min(keep, n or keep))
    state = wide if not problem.single else wide // 2
    rows = keep + width
    peak = 2 * rows * size * state + 2 * width * size * itemsize + 3 * rows**2 * 8 * workers + 3 * size * 8
    ops = (float(keep + width) ** 2 / width + 2.0 * (keep + width) * keep / width) * n * size
    result = (8 + k * wide) * size
    # the modes that are turned until they settle and what they become, in double precision
    peak = max(peak, (2 * keep * wide + 2 * width * itemsize) * size) + result
    once = problem.access == "once"
    passes = (1 if once else 2) + scaling      # the second one projects
    return Plan(route, passes, nbytes * passes, _held(extra + peak + 2 * n * keep * len(problem.parts) * 8), times * ops, "",
                rule.rank, problem.n, size, int(max(width * size * itemsize, 1)), width, block=keep,
                most_passes=passes if once else max(passes, MOST_STEPS + scaling))


def _held(nbytes: float) -> int:
    """What the system counts for arrays of that size: freed ones are kept for reuse by each thread's allocator."""
    return int(1.4 * nbytes) + (6 << 20)


def _block(rank: int, oversampling: int, n: int, once: bool) -> int:
    """Vectors a block: where one is to be enough, half as many again as modes, and with the one for the mean a multiple of
    what products do best; where there are several, the space has as many times more, so that a few more are plenty."""
    if once:
        block = -(-(rank + max(oversampling, rank // 2) + 1) // 16) * 16 - 1
    else:
        block = -(-max(rank + max(4, rank // 5), (rank + oversampling + 1) // 2) // 8) * 8
    return int(min(block, max(n - 1, 1)))
