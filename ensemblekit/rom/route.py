"""What a route of the POD will do and what that costs, and the numbers that costs are counted from."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ensemblekit.engine import Engine, Threads, cores
from ensemblekit.results import Result
from ensemblekit.rom.problem import Problem
from ensemblekit.rom.rank import Rule, in_words

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


@dataclass(frozen=True, slots=True)
class Budget:
    """What a route may use, and the settings of the randomized one."""

    memory: int
    """Bytes."""
    workers: int
    """Pieces that are worked on at a time."""
    oversampling: int = 10
    steps: int = 1


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
        return cls(n, size, min(k, max(n, 1), size), 16 if problem.complex_ else 8,
                   max((part.field.dtype.itemsize for part in problem.parts), default=8), problem.nbytes,
                   4 if problem.complex_ else 1, factors, 1 if problem.scaling is not None else 0)

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
    return int(getattr(engine, "n", None) or (cores() if isinstance(engine, Threads) else 1))


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

