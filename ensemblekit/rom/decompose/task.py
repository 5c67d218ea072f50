"""One decomposition with all its settings, and what is read of the snapshots on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from ensemblekit.averaging.run import reduce
from ensemblekit.engine import Engine, Serial, Threads
from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.planning import Plan, Plannable
from ensemblekit.rom.decompose.problem import FieldProblem, Problem
from ensemblekit.rom.decompose.slabs import Combine, RowTransform, TakeTile, TileColumns, TileReducer, TileSums, TileWork, added
from ensemblekit.rom.decompose.units import OutOfRange
from ensemblekit.rom.rank import Rule

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
class Task:
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

    def reduce_tiles(self, part: FieldProblem, work: TileWork, combine: Combine = added,
                     counted: bool = True) -> tuple[TileSums, list[TileColumns]]:
        """One read of a field in slabs of space."""
        with self.reads.counted(part.field.nbytes * (self.problem.n or 0) if counted else 0):
            return reduce(part.source, {"tiles": (TakeTile(part.key), TileReducer(work, combine))}, fields=[part.key],
                          cut="space", limit=self.plan.limit, engine=self.engine, progress=self.progress)["tiles"]

    def transform(self, part: FieldProblem, dtype: DTypeLike, shift: np.ndarray | None = None) -> RowTransform:
        n = self.problem.n or 0
        share = np.full(n, 1 / n) if self.problem.weights is None else self.problem.weights / n
        return RowTransform(np.dtype(dtype), share, part.factors, part.shift if shift is None else shift, self.plan.width,
                      unit=part.unit)

    @property
    def local_engine(self) -> Engine:
        """Where arrays in memory are worked on: threads, whatever engine reads the source."""
        return self.engine if isinstance(self.engine, Serial | Threads) else Threads()

    @property
    def accumulator_dtype(self) -> np.dtype:
        return np.dtype(np.complex128 if self.problem.is_complex else np.float64)


def in_range(task: Task, work: Callable[[Task], T], together: bool = True) -> T:
    """What `work` makes of a task, in units that fit the numbers met on the way; one for all fields that go `together`."""
    for _ in range(MOST_UNITS):
        try:
            return work(task)
        except OutOfRange as misfit:
            task = replace(task, problem=task.problem.remeasured(misfit, together))
    raise InputError(f"the snapshots hold numbers of such different sizes that no unit fits their squares; give scales of the "
                     f"fields, {[part.name for part in task.problem.parts]}, or leave the largest numbers out")


class Route(Plannable, Protocol):
    """One way to decompose snapshots: docs/contributing.md shows how to add one."""

    finer: ClassVar[tuple[str, ...]]
    """Routes that tell smaller singular values from rounding, the first that fits is taken where the floor is reached."""

    def decompose(self, task: Task) -> Basis:
        """The basis.

        Raises:
            FloorReached: another route would tell more, and the task does not say to take what comes.
            NotFinite: NaN or infinity were met on the way.
        """
