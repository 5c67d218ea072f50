"""The leading modes alone, from a few products with all snapshots: in slabs of space, or in order of time."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.decomposition import to_basis
from ensemblekit.rom.decompose.krylov import block_krylov, cost_in_space
from ensemblekit.rom.decompose.planning import Budget, Plan, loadable, refusal_of_streams
from ensemblekit.rom.decompose.problem import Problem
from ensemblekit.rom.decompose.subspace import cost_in_time, subspace_iteration
from ensemblekit.rom.decompose.task import FloorReached, Task
from ensemblekit.rom.rank import Rule


class Randomized:
    """Block Krylov steps over slabs of space, or subspace iteration in order of time where slabs would be read in slivers."""

    name: ClassVar[str] = "randomized"
    finer: ClassVar[tuple[str, ...]] = ("gram", "tsqr")

    def refusal(self, problem: Problem) -> str | None:
        if refusal_of_streams(problem):
            return refusal_of_streams(problem)
        if problem.access == "rows" and not loadable(problem) and not problem.of_one_source:
            return "fields of several sources that cannot be read in slabs of space; ingest them into a store first"
        return "a sparse mass matrix goes with the gram route" if problem.sparse else None

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        plan = cost_in_space(problem, rule, budget)
        if loadable(problem) or problem.in_memory or not problem.of_one_source:
            return plan
        ordered = cost_in_time(problem, rule, budget)
        fewer = (problem.nbytes > budget.memory and ordered.passes <= plan.passes
                 and ordered.memory_bytes <= budget.memory)
        return ordered if problem.access == "rows" or fewer else plan

    def decompose(self, task: Task) -> Basis:
        """In the arithmetic of the snapshots, in double precision where its floor is reached."""
        steps = subspace_iteration if task.plan.streams_in_time else block_krylov
        svd = None
        if not task.accept_floor:
            narrow = np.dtype({"f": "f4", "c": "c8"}[task.accumulator_dtype.kind])
            for dtype in (narrow, task.accumulator_dtype) if task.problem.is_single else (task.accumulator_dtype,):
                svd = svd or steps(task, dtype)
        else:
            svd = steps(task, task.accumulator_dtype, accept_floor=True)
        if svd is None:
            raise FloorReached
        return to_basis(task.problem, svd, task.reads.passes)
