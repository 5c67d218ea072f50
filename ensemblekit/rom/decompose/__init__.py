"""Proper orthogonal decomposition of snapshots: from arrays, files and streams, by the route that suits, with its error."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from glob import has_magic
from os import PathLike
from os.path import exists
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.run import Progress
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.foreign import AnyArray
from ensemblekit.intake import as_array
from ensemblekit.intake_labels import is_dataset, is_labelled
from ensemblekit.intake_tables import is_table
from ensemblekit.provenance import Provenance, files_of, given
from ensemblekit.rom.basis import Basis, warn_of_split_pair
from ensemblekit.rom.decompose.covariance import Covariance
from ensemblekit.rom.decompose.gaps import GapsError, gappy, gaps_in_words, without_constant_gaps
from ensemblekit.rom.decompose.gram import Gram
from ensemblekit.rom.decompose.incremental import Incremental
from ensemblekit.rom.decompose.planning import Budget, Candidates, Plan, plan_by_name, workers_of
from ensemblekit.rom.decompose.problem import Center, Problem, Scale, Snapshots, problem_of
from ensemblekit.rom.decompose.randomized import Randomized
from ensemblekit.rom.decompose.reading import in_memory
from ensemblekit.rom.decompose.task import FloorReached, NotFinite, Reads, Route, Task
from ensemblekit.rom.decompose.tsqr import Tsqr
from ensemblekit.rom.product import GivenProduct
from ensemblekit.rom.rank import Rule, as_bytes
from ensemblekit.rom.read import as_snapshots
from ensemblekit.source import BaseSource, DescribedSource, SnapshotSource, as_source
from ensemblekit.source_clock import uneven_steps
from ensemblekit.source_labelled import labelled_source, weighted_labelled
from ensemblekit.source_views import weighted_by

logger = logging.getLogger("ensemblekit")

ROUTES: dict[str, Route] = {route.name: route for route in (Gram(), Covariance(), Tsqr(), Randomized(), Incremental())}
"""All routes by name; of those that fit, the first exact one is preferred."""


def pod(source: Snapshots, rank: int | str | None = None, *, energy: float | None = None, tolerance: float | None = None,
        absolute_tolerance: float | None = None, snapshot_axis: int | None = None, inner_product: GivenProduct = "auto",
        scale: Scale = None, center: Center = "mean", method: str = "auto", memory_limit: float | str = "2GiB",
        engine: Engine | None = None, missing: Literal["raise", "gappy"] = "raise", oversampling: int = 10,
        power: int | None = None, seed: int = 0, progress: Progress = False,
        weights: ArrayLike | None = None, log_weights: ArrayLike | None = None, time: str | None = None) -> Basis:
    """The modes that carry most of the snapshots' energy, with the error that is left.

    Arguments:
        source: an array with snapshots along axis 0, a mapping of field to array, a stored field, or any source of one
            run (runs of a ReplicaSet are put one after the other). Statistical weights of the snapshots enter. A DataArray or
            Dataset of xarray brings its coordinates, units and times, whatever the order of its axes, and is read block by
            block where it is lazy; files go as for :func:`ensemblekit.rom.read`.
        rank: how many modes, or "gavish-donoho" for those that stand out of white noise; or
        energy: the share of the energy to keep, in (0, 1]; or
        tolerance: the relative error allowed; or
        absolute_tolerance: the error allowed, ‖snapshots - reconstruction‖ over all snapshots in the inner product.
            With none of these: energy=0.99, an error of 10 %.
        snapshot_axis: the axis of an array along which the snapshots lie; 0 where it is not given.
        inner_product: "auto" (areas of cells or the cosine of the latitude where the snapshots come with them, else volumes
            of the source's mesh, Euclidean without one), None, weights of shape (n_cells,) or of the item, a sparse mass
            matrix, the name of a variable of areas that came with the snapshots, or a mapping of field to these.
        scale: what fields are divided by before they are joined: "std" (the default with several fields) or "max" of
            each field's fluctuation, a mapping of field to number, or "none".
        center: what is subtracted: "mean", "first" (snapshot), "none", or a field such as a steady flow.
        method: "auto", or "gram", "covariance", "tsqr", "randomized", "incremental"; see :func:`plan`.
        memory_limit: bytes of memory of its own, such as "2GiB"; the route is chosen by it.
        missing: numbers that are NaN in every snapshot are left out always. Where they change from snapshot to snapshot,
            "raise", or "gappy": fill them in from the modes (Everson & Sirovich 1995; needs a rank, and memory for all).
        oversampling, power, seed: of the randomized route: directions beyond the rank, steps at least, and the random
            numbers. Steps, each a read, end where another would lower the error by less than 0.1 %; with method="auto" one
            may be enough, after a sample of the columns, with method="randomized" there are two. Files larger than the
            memory limit are read in order of time, two times or more.
        weights, log_weights: statistical weights of the snapshots of one run, (n,), or their natural logarithms, on any scale
            and offset; "time" lets each count as the time it stands for, where steps of time differ (which is told). The
            name of a variable of a Dataset or file: along the snapshots, their weights; along a snapshot, its areas.
        time: name of the axis of the snapshots of a DataArray, Dataset or file, where CF's conventions do not say it.

    Returns:
        a Basis. Snapshots of lower numerical rank than asked for give fewer modes. Its ``notes`` say which inner product and
        which share of the energy were taken where none was given; the logger "ensemblekit" has them too.

    Raises:
        InputError: no snapshots, a single one, all the same, NaN or infinity, a bad rank, rule, weight or shape.
        ReadOnceError: a route that reads twice was asked for with a source that is read once.
    """
    settings, files = given(pod, locals(), "source", "engine", "progress"), files_of(source)
    source, weights, log_weights = _labelled(source, weights, log_weights, time)
    problem = _problem(source, snapshot_axis, inner_product, scale, center, weights, log_weights)
    if missing not in ("raise", "gappy"):
        raise InputError(f'missing is "raise" or "gappy"; got {missing!r}')
    rule = Rule.of(rank, energy, tolerance, absolute_tolerance, problem.n)
    memory = as_bytes(memory_limit)
    chosen = plan_of(problem, rule, method, memory, workers_of(engine), oversampling=oversampling, power=power)
    task = Task(problem, rule, chosen, method, memory, engine, progress, seed, Reads(problem.nbytes))
    basis = decomposed(_loaded(task), missing)
    _warn_of_wide(source, snapshot_axis)
    warn_of_split_pair(basis)
    files += files_of({part.name: part.source for part in problem.parts})
    return replace(_with_notes(basis, problem, rule), provenance=Provenance.now(files, settings))


def plan(source: Snapshots, rank: int | str | None = None, *, energy: float | None = None, tolerance: float | None = None,
         absolute_tolerance: float | None = None, snapshot_axis: int | None = None, inner_product: GivenProduct = "auto",
         scale: Scale = None, center: Center = "mean", method: str = "auto", memory_limit: float | str = "2GiB",
         engine: Engine | None = None, oversampling: int = 10, power: int | None = None) -> Plan:
    """What :func:`pod` with the same arguments will do: route, passes, bytes, memory and the reason. Nothing is read.

    Raises:
        InputError: as pod does, and where no route fits the memory limit.
    """
    source, _, _ = _labelled(source, None, None, None)
    problem = problem_of(source, snapshot_axis, inner_product, scale, center)
    rule = Rule.of(rank, energy, tolerance, absolute_tolerance, problem.n)
    return plan_of(problem, rule, method, as_bytes(memory_limit), workers_of(engine), oversampling=oversampling, power=power)


def plan_of(problem: Problem, rule: Rule, method: str, memory: int, workers: int, *,
            oversampling: int = 10, power: int | None = None) -> Plan:
    """The plan for a problem."""
    if method not in ("auto", *ROUTES):
        raise InputError(f'method is "auto" or one of {", ".join(ROUTES)}; got {method!r}')
    if oversampling < 1 or (power is not None and power < 1):
        raise InputError(f"oversampling and power are whole numbers above 0; got {oversampling!r} and {power!r}")
    budget = Budget(memory, workers, oversampling, power if power is not None else 1 if method == "auto" else 2)
    if method != "auto":
        return plan_by_name(ROUTES[method], problem, rule, budget)
    return Candidates(ROUTES, problem, rule, budget).choose()


def decomposed(task: Task, missing: str = "raise") -> Basis:
    """Go the route of the plan, on to a finer one where its floor is reached and the choice is ours, and around numbers that
    are missing."""
    while True:
        route = ROUTES[task.plan.route]
        try:
            return route.decompose(task)
        except FloorReached:
            finer = route.finer if task.method == "auto" else ()
            plans = (_plan_if_fits(task, name) for name in finer)
            other = next((plan for plan in plans if plan is not None), None)
            task = replace(task, accept_floor=True) if other is None else replace(task, plan=other)
        except NotFinite:
            around = _around_gaps(task)
            if around is None and missing == "gappy":
                return gappy(task, decomposed)
            if around is None:
                raise GapsError(gaps_in_words(task)) from None
            task = around


def _around_gaps(task: Task) -> Task | None:
    """The task by a route, or of a problem, that leaves out what is missing in every snapshot; None where more is missing."""
    if task.plan.streams_in_time and task.problem.access != "tiles" and task.method == "auto":
        # in order of time the incremental route finds on its way what is missing in every snapshot
        other = _plan_if_fits(task, "incremental")
        if other is not None:
            return replace(task, plan=other)
    masked = without_constant_gaps(task)
    return None if masked is None else replace(task, problem=masked)


def _plan_if_fits(task: Task, name: str) -> Plan | None:
    candidates = Candidates(ROUTES, task.problem, task.rule, Budget(task.memory, workers_of(task.engine), steps=2))
    return candidates.cost(name) if candidates.fits(name) else None


def _problem(source: Snapshots, snapshot_axis: int | None, inner_product: GivenProduct, scale: Scale, center: Center,
             weights: ArrayLike | None, log_weights: ArrayLike | None) -> Problem:
    """What is to be decomposed, with weights that were given beside it; warns of steps of time that differ."""
    if weights is not None or log_weights is not None:
        source, snapshot_axis = _weighted(source, snapshot_axis, weights, log_weights), None
    problem = problem_of(source, snapshot_axis, inner_product, scale, center)
    uneven = uneven_steps(problem.times) if problem.weights is None else ""
    if uneven:
        warnings.warn(uneven.replace("gives the mean over time", "lets each count as the time it stands for"), stacklevel=3)
    return problem


def _labelled(source: Any, weights: Any, log_weights: Any, time: str | None) -> tuple[Any, Any, Any]:
    """Arrays with labels and files as a source, and the weights (or their logarithms) that are still to be put on it."""
    name = weights if isinstance(weights, str) and weights != "time" else None
    if not isinstance(source, BaseSource) and is_labelled(source):
        variables = tuple(source.data_vars) if is_dataset(source) else ()
        if name is not None and name not in (*source.coords, *variables):
            raise InputError(f"weights={name!r} names no variable; there are {sorted(map(str, (*source.coords,)))}"
                             f"{sorted(map(str, variables))}")
        if name is not None and len(source[name].dims) != 1:
            return labelled_source(source, time, area=name), None, None
        if weights is not None or log_weights is not None:
            return weighted_labelled(source, weights, log_weights, time), None, None
        return source if time is None else labelled_source(source, time), None, None
    if isinstance(source, str | PathLike) or (isinstance(source, list | tuple) and source and all(
            isinstance(one, str | PathLike) for one in source)):
        first = source if isinstance(source, str | PathLike) else source[0]
        if exists(first) or has_magic(str(first)) or "://" in str(first):
            return as_snapshots(source, time=time, weights=name), None if name is not None else weights, log_weights
    if time is not None or name is not None:
        raise InputError(f"{'time=' if time is not None else 'weights='}{(time or name)!r} is a name, and goes with what names "
                         "its axes: a DataArray, a Dataset, or files (rom.read takes it too); weights=\"time\" counts "
                         "each snapshot as the time it stands for")
    return source, weights, log_weights


def _weighted(source: Snapshots, snapshot_axis: int | None, weights: ArrayLike | None,
              log_weights: ArrayLike | None) -> DescribedSource:
    """The snapshots of one run with these weights."""
    if snapshot_axis and not isinstance(source, SnapshotSource | Mapping):
        source = np.moveaxis(as_array(source, "snapshots", named_axes=True), snapshot_axis, 0)
    elif snapshot_axis:
        raise InputError("snapshot_axis goes with one array")
    return weighted_by(as_source(source), weights, log_weights)


def _warn_of_wide(x: object, axis: int | None) -> None:
    """Warn of a bare matrix that looks as if its snapshots were columns."""
    # a source has them in order, and of what names its axes or columns it is said
    if isinstance(x, SnapshotSource) or is_labelled(x) or is_table(x):
        return
    shape: tuple[int, ...] = tuple(x.shape) if isinstance(x, AnyArray) else ()
    if axis is None and len(shape) == 2 and shape[0] > shape[1]:
        warnings.warn(f"an array of shape {shape} was taken as {shape[0]} snapshots of {shape[1]} numbers. If its "
                      "columns are the snapshots, pass snapshot_axis=1; snapshot_axis=0 says that its rows are, and "
                      "silences this", UserWarning, stacklevel=3)


def _loaded(task: Task) -> Task:
    """The task with its snapshots in memory where the plan says so."""
    if not task.plan.load:
        return task
    held = in_memory(task.problem, task.engine)
    task.reads.add(held.nbytes)
    task.reads.ended = True      # what follows happens in memory
    return replace(task, problem=held)


def _with_notes(basis: Basis, problem: Problem, rule: Rule) -> Basis:
    """The basis with what was chosen where nothing was said; the logger has it too."""
    notes = problem.notes
    if not rule.given:
        notes += (f"energy=0.99, an error of 10 %: {basis.rank} mode{'s' if basis.rank > 1 else ''} "
                  "(give rank=, energy= or tolerance= for others)",)
    for note in notes:
        logger.info(note)
    return replace(basis, notes=notes)
