"""Which route, how often the snapshots are read, how much memory that takes, and why: said before anything is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, ReadOnceError
from ensemblekit.rom.covariance import Covariance
from ensemblekit.rom.leading import Randomized
from ensemblekit.rom.problem import Problem, problem_of
from ensemblekit.rom.projection import Incremental
from ensemblekit.rom.rank import Rule, as_bytes, in_words
from ensemblekit.rom.route import RUN, Budget, Plan, page_cache, workers_of
from ensemblekit.rom.snapshots import Gram, Tsqr
from ensemblekit.rom.task import Route

ROUTES: dict[str, Route] = {route.name: route for route in (Gram(), Covariance(), Tsqr(), Randomized(), Incremental())}
"""All routes by name; of those that fit, the first exact one is preferred."""
SMALL = 5e9
"""Multiplications that take less than a fraction of a second whatever the route."""


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


def plan_of(problem: Problem, rule: Rule, method: str, memory: int, workers: int, oversampling: int = 10,
            power: int | None = None) -> Plan:
    """The plan for a problem."""
    if method not in ("auto", *ROUTES):
        raise InputError(f'method is "auto" or one of {", ".join(ROUTES)}; got {method!r}')
    if oversampling < 1 or (power is not None and power < 1):
        raise InputError(f"oversampling and power are whole numbers above 0; got {oversampling!r} and {power!r}")
    budget = Budget(memory, workers, oversampling, power if power is not None else 1 if method == "auto" else 2)
    if method != "auto":
        return _asked(ROUTES[method], problem, rule, budget)
    refused = {name: route.refusal(problem) for name, route in ROUTES.items()}
    costs = {name: route.cost(problem, rule, budget) for name, route in ROUTES.items()}
    fits = [name for name in ROUTES if refused[name] is None and costs[name].memory_bytes <= memory]
    if not fits:
        least = min((costs[name] for name in ROUTES if refused[name] is None), key=lambda p: p.memory_bytes, default=None)
        if least is None:
            raise InputError(f"no route can do this: {'; '.join(sorted({str(why) for why in refused.values()}))}")
        raise InputError(f"memory_limit={in_words(memory)} is too small for {problem.n} snapshots of {problem.size} numbers: "
                         f"the {least.route} route needs the least, {in_words(least.memory_bytes)}")
    name, why = _choice(problem, rule, costs, fits)
    return replace(costs[name], why=why)


def _asked(route: Route, problem: Problem, rule: Rule, budget: Budget) -> Plan:
    """The plan of a route that was asked for by name."""
    refusal = route.refusal(problem)
    if refusal is not None:
        error = ReadOnceError if problem.access != "tiles" and route.name in ("gram", "tsqr", "randomized") else InputError
        raise error(f"method={route.name!r}: {refusal}")
    cost = route.cost(problem, rule, budget)
    if cost.memory_bytes > budget.memory:
        raise InputError(f"method={route.name!r} needs {in_words(cost.memory_bytes)} and memory_limit is "
                         f'{in_words(budget.memory)}; raise it or leave the choice to method="auto"')
    return replace(cost, why="as asked")


def _choice(problem: Problem, rule: Rule, costs: dict[str, Plan], fits: list[str]) -> tuple[str, str]:
    n = problem.n
    if n is None or problem.access == "once":
        return "incremental", "The source is read only once."
    if "covariance" in fits and 2 * problem.size < n and costs["covariance"].operations < costs["gram"].operations:
        return "covariance", "Fewer numbers a snapshot than snapshots: their covariance is the smaller matrix."
    slow = problem.nbytes > page_cache() and not problem.in_memory
    thin = slow and costs["gram"].limit / n < RUN // 4
    exact = [route for route in ("gram", "covariance") if route in fits]
    if rule.counted and "randomized" in fits and (not thin or costs["randomized"].in_time):
        work, full = costs["randomized"].operations, costs["gram"].operations
        if problem.single and not problem.complex_:
            work /= 2           # a product in float32 takes half as long, and all inner products are in float64
        if not exact or (full > SMALL and full > 3 * work):
            what = "A few steps of subspace iteration in order of time" if costs["randomized"].in_time else (
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
