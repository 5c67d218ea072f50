"""Which route, how often the snapshots are read, how much memory that takes, and why: said before anything is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from ensemblekit.engine import Engine, Processes, Threads, cores
from ensemblekit.errors import InputError, ReadOnceError
from ensemblekit.results import Result
from ensemblekit.rom.decompose.problem import Problem
from ensemblekit.rom.rank import Rule, in_words

SMALL = 5e9
"""Multiplications that take less than a fraction of a second whatever the route."""
LOADABLE = 1 << 30
"""Bytes of a source without slabs of space that are read into memory as a whole where a route wants slabs."""
TILE = 16 << 20
"""Bytes of a tile of space where that fits: small enough that two cores end together."""
RUN = 64 << 10
"""Bytes of each snapshot that a tile should hold where the data comes from a disk: one long read beside one seek."""
CACHEFUL = 1 << 20
"""Bytes of a block of snapshots that are multiplied twice while they are near."""
MOST_STEPS = 8
"""Of the randomized route, where the residuals stay large."""


@dataclass(frozen=True, slots=True)
class Plan(Result):
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
    streams_in_time: bool = False
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


@dataclass(frozen=True, slots=True)
class Budget:
    """What a route may use, and the settings of the randomized one."""

    memory: int
    """Bytes."""
    workers: int
    """Pieces that are worked on at a time."""
    oversampling: int = 10
    steps: int = 1


class Plannable(Protocol):
    """A route as far as plans know it: whether it can be taken, and what it costs."""

    name: ClassVar[str]

    def refusal(self, problem: Problem) -> str | None:
        """Why the route cannot be taken at all, in words; None where it can."""

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        """Passes, bytes, memory and operations; nothing is read."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What the costs of every route are counted from."""

    n: int
    size: int
    k: int
    """Modes, or as many as may be expected."""
    wide: int
    """Bytes of a number in double precision."""
    itemsize: int
    nbytes: int
    times: int
    """Multiplications of real numbers in one of the numbers at hand."""
    factors: int
    """Bytes of weights and of what is subtracted."""
    scaling: int
    """Reads for the scales, where a route does not find them on its way."""

    @classmethod
    def of(cls, problem: Problem, rule: Rule) -> Workload:
        n, size = problem.n or 0, problem.size
        k = rule.rank if rule.rank is not None else min(max(n, 1), 50)
        factors = 8 * size * sum(p.factors is not None or p.shift is not None for p in problem.parts) // len(problem.parts)
        return cls(n, size, min(k, max(n, 1), size), 16 if problem.is_complex else 8,
                   max((part.field.dtype.itemsize for part in problem.parts), default=8), problem.nbytes,
                   4 if problem.is_complex else 1, factors, 1 if problem.scaling is not None else 0)

    @property
    def result(self) -> int:
        """Bytes of mean, modes and coefficients in double precision."""
        return 8 * self.size + self.k * self.size * self.wide + self.n * self.k * self.wide


def loadable(problem: Problem) -> bool:
    """Whether the snapshots are read into memory as a whole where slabs of space are wanted."""
    return problem.access == "rows" and problem.nbytes <= LOADABLE


def refusal_of_streams(problem: Problem) -> str | None:
    """Why a source that is read once goes the incremental route alone."""
    if problem.n is None:
        return "a stream is read once; ingest it into a store, or use the incremental route"
    if problem.access == "once":
        return "the source is read only once; ingest it into a store first"
    return None


def refusal_of_rows(problem: Problem) -> str | None:
    """Why a source without slabs of space does not go a route of inner products."""
    if problem.access == "rows" and not loadable(problem):
        return "the source cannot be read in slabs of space; ingest it into a store first"
    return None


def workers_of(engine: Engine | None) -> int:
    """Pieces that an engine works on at a time."""
    engine = engine or Threads()
    if isinstance(engine, Threads):
        return engine.n or cores()
    return (engine.n or 1) if isinstance(engine, Processes) else 1


def page_cache() -> float:
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


def held(nbytes: float) -> int:
    """What the system counts for arrays of that size: freed ones are kept for reuse by each thread's allocator."""
    return int(1.4 * nbytes) + (6 << 20)


class Candidates:
    """The routes that a problem may take, each asked for its cost once, and only where the choice hangs on it."""

    def __init__(self, routes: Mapping[str, Plannable], problem: Problem, rule: Rule, budget: Budget):
        self.routes, self.problem, self.rule, self.budget = routes, problem, rule, budget
        self._costs: dict[str, Plan] = {}

    def cost(self, name: str) -> Plan:
        if name not in self._costs:
            self._costs[name] = self.routes[name].cost(self.problem, self.rule, self.budget)
        return self._costs[name]

    def fits(self, name: str) -> bool:
        """Whether the route can be taken within the memory limit."""
        return self.routes[name].refusal(self.problem) is None and self.cost(name).memory_bytes <= self.budget.memory

    def choose(self) -> Plan:
        """The plan of the route that suits.

        Raises:
            InputError: no route fits.
        """
        n, problem = self.problem.n, self.problem
        if n is None or problem.access == "once":
            return self._planned("incremental", "The source is read only once.") if self.fits("incremental") else self._first()
        if 2 * problem.size < n and self.fits("covariance") and (
                self.cost("covariance").operations < self.cost("gram").operations):
            why = "Fewer numbers a snapshot than snapshots: their covariance is the smaller matrix."
            return self._planned("covariance", why)
        slow = problem.nbytes > page_cache() and not problem.in_memory
        thin = slow and self.cost("gram").limit / n < RUN // 4
        exact = next((name for name in ("gram", "covariance") if self.fits(name)), None)
        if self._few_are_cheaper(exact, thin):
            what = ("A few steps of subspace iteration in order of time" if self.cost("randomized").streams_in_time else
                    "A few block Krylov steps")
            return self._planned("randomized", f"{what} find the leading modes with a fraction of the work of all inner "
                                               "products; the error is certified, and a steep spectrum escalates.")
        if exact is not None and not (thin and self.rule.counted and self.fits("incremental")):
            what = "snapshots" if exact == "gram" else "numbers"
            return self._planned(exact, f"All inner products of the {what} fit in memory: exact, with the whole spectrum.")
        if self.fits("incremental"):
            return self._planned("incremental", "One read in order of time, keeping the leading directions: the matrix of all "
                                                "inner products is larger than the memory limit, or slabs of space would be "
                                                "read in slivers.")
        return self._first()

    def _few_are_cheaper(self, exact: str | None, thin: bool) -> bool:
        """Whether the leading modes alone are found with a fraction of the work."""
        full = self.cost("gram").operations
        if not self.rule.counted or (exact is not None and full <= SMALL) or not self.fits("randomized"):
            return False
        some = self.cost("randomized")
        if thin and not some.streams_in_time:
            return False
        work = some.operations
        if self.problem.is_single and not self.problem.is_complex:
            work /= 2           # a product in float32 takes half as long, and all inner products are in float64
        return exact is None or full > 3 * work

    def _first(self) -> Plan:
        """The plan of the first route that fits."""
        for name in self.routes:
            if self.fits(name):
                return self._planned(name, "Nothing else fits the memory limit.")
        refused = [route.refusal(self.problem) for route in self.routes.values()]
        possible = [self.cost(name) for name, why in zip(self.routes, refused, strict=True) if why is None]
        if not possible:
            raise InputError(f"no route can do this: {'; '.join(sorted({str(why) for why in refused}))}")
        least = min(possible, key=lambda plan: plan.memory_bytes)
        raise InputError(f"memory_limit={in_words(self.budget.memory)} is too small for {self.problem.n} snapshots "
                         f"of {self.problem.size} numbers: the {least.route} route needs the least, "
                         f"{in_words(least.memory_bytes)}")

    def _planned(self, name: str, why: str) -> Plan:
        return replace(self.cost(name), why=why)


def plan_by_name(route: Plannable, problem: Problem, rule: Rule, budget: Budget) -> Plan:
    """The plan of a route that was asked for.

    Raises:
        InputError, ReadOnceError: it cannot be taken, or needs more memory than there is.
    """
    refusal = route.refusal(problem)
    if refusal is not None:
        error = ReadOnceError if problem.access != "tiles" and route.name in ("gram", "tsqr", "randomized") else InputError
        raise error(f"method={route.name!r}: {refusal}")
    cost = route.cost(problem, rule, budget)
    if cost.memory_bytes > budget.memory:
        raise InputError(f"method={route.name!r} needs {in_words(cost.memory_bytes)} and memory_limit is "
                         f'{in_words(budget.memory)}; raise it or leave the choice to method="auto"')
    return replace(cost, why="as asked")
