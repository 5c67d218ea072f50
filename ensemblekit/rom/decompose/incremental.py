"""Snapshots one block after the other, keeping the leading directions, and further reads until the modes settle."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.planning import MOST_STEPS, Budget, Plan, Workload, held
from ensemblekit.rom.decompose.problem import Problem
from ensemblekit.rom.decompose.reading import rows_of
from ensemblekit.rom.decompose.refine import refine
from ensemblekit.rom.decompose.scales import scaled
from ensemblekit.rom.decompose.stream import Stream
from ensemblekit.rom.decompose.stream_settings import StreamSettings
from ensemblekit.rom.decompose.task import Task
from ensemblekit.rom.rank import Rule


def incremental_pod(task: Task) -> Basis:
    """One read, and where the source allows it further ones: see :mod:`refine`."""
    problem = scaled(task)
    products = {part.name: part.product for part in problem.parts if part.product is not None}
    center: str | dict[str, np.ndarray] = problem.center
    if problem.center not in ("mean", "none", "first"):
        center = {part.name: part.shift for part in problem.parts if part.shift is not None}
    n, rank = problem.n, task.rule.rank
    settings = StreamSettings.of(
        task.rule, products or None, center, keep=None if rank is None else min(task.plan.block, max(n or rank, 1)),
        block=task.plan.width, scale={part.name: part.scale for part in problem.parts}, dtype=None, memory_limit=task.memory,
        engine=task.local_engine, masks={part.name: part.mask for part in problem.parts if part.mask is not None})
    stream = Stream(settings, {part.name: part.field for part in problem.parts})
    for values, times, weights in rows_of(task):
        stream = stream.after(values, times, weights)
    if problem.access == "once":
        return replace(stream.result(), time_unit=problem.time_unit, mesh=problem.mesh)
    directions = stream.flushed().directions
    assert directions is not None
    return refine(replace(task, problem=problem), directions)


class Incremental:
    """Snapshots one block after the other, keeping the leading directions, and further reads until the modes settle."""

    name: ClassVar[str] = "incremental"
    finer: ClassVar[tuple[str, ...]] = ()

    def refusal(self, problem: Problem) -> str | None:
        if problem.sparse:
            return "a sparse mass matrix goes with the gram route"
        if problem.scaling is not None and problem.access == "once":
            return f'scale="{problem.scaling}" needs a read beforehand; give the scales as a mapping of field to number'
        return None

    def cost(self, problem: Problem, rule: Rule, budget: Budget) -> Plan:
        at = Workload.of(problem, rule)
        n, size, k, wide, itemsize = at.n, at.size, at.k, at.wide, at.itemsize
        keep = 2 * k + 10
        width = max(8, min(keep, n or keep))
        state = wide if not problem.is_single else wide // 2
        rows = keep + width
        peak = 2 * rows * size * state + 2 * width * size * itemsize + 3 * rows**2 * 8 * budget.workers + 3 * size * 8
        operations = (float(keep + width) ** 2 / width + 2.0 * (keep + width) * keep / width) * n * size
        # the modes that are turned until they settle and what they become, in double precision
        peak = max(peak, (2 * keep * wide + 2 * width * itemsize) * size) + (8 + k * wide) * size
        once = problem.access == "once"
        passes = (1 if once else 2) + at.scaling      # the second one projects
        return Plan(self.name, passes, at.nbytes * passes, held(at.factors + peak + 2 * n * keep * len(problem.parts) * 8),
                    at.times * operations, "", rule.rank, problem.n, size, int(max(width * size * itemsize, 1)), width,
                    block=keep, most_passes=passes if once else max(passes, MOST_STEPS + at.scaling))

    def decompose(self, task: Task) -> Basis:
        return incremental_pod(task)
