"""One decomposition with all its settings, and what is read of the snapshots on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.engine import Engine, Serial, Threads
from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.problem import Part, Problem
from ensemblekit.rom.rank import Rule
from ensemblekit.rom.route import Budget, Plan
from ensemblekit.rom.slabs import Recipe, Slabs, TileOf, added
from ensemblekit.rom.units import OutOfRange

T = TypeVar("T")

MOST_UNITS = 24
"""Each is larger than the one before, but for the first: of the hundreds of powers of ten of a float64 few are left then."""


class FloorReached(Exception):
    """Singular values asked for lie below what the arithmetic of a route can tell from rounding."""


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
    accept_floor: bool = False
    """Whether a route gives what it can tell from rounding, where no other one would tell more."""

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


def in_range(job: Job, work: Callable[[Job], T], together: bool = True) -> T:
    """What `work` makes of a job, in units that fit the numbers met on the way; one for all fields where they go `together`."""
    for _ in range(MOST_UNITS):
        try:
            return work(job)
        except OutOfRange as misfit:
            job = replace(job, problem=job.problem.remeasured(misfit, together))
    raise InputError(f"the snapshots hold numbers of such different sizes that no unit fits their squares; give scales of the "
                     f"fields, {[part.name for part in job.problem.parts]}, or leave the largest numbers out")


class Route(Protocol):
    """One way to decompose snapshots: docs/contributing.md shows how to add one."""

    name: ClassVar[str]
    finer: ClassVar[tuple[str, ...]]
    """Routes that tell smaller singular values from rounding, the first that fits is taken where the floor is reached."""

    def refusal(self, problem: Problem) -> str | None:
        """Why the route cannot be taken at all, in words; None where it can."""

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        """Passes, bytes, memory and operations; nothing is read."""

    def decompose(self, task: Job) -> Basis:
        """The basis.

        Raises:
            FloorReached: another route would tell more, and the task does not say to take what comes.
            NotFinite: NaN or infinity were met on the way.
        """
