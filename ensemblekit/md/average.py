"""Averages of observables over the frames of trajectories, each with its error bar: one read for all of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.average import caveat_of, check_confidence
from ensemblekit.averaging.equilibration import Equilibrate, check_equilibration
from ensemblekit.averaging.missing import Missing, check_missing
from ensemblekit.averaging.origin import origin_of, with_origin
from ensemblekit.averaging.pooling import pooled_with_further
from ensemblekit.averaging.run import partials
from ensemblekit.averaging.run_states import RunStates, States
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.md.complexes import ImageJumps, doubted_images
from ensemblekit.md.frame_selection import FrameSelection
from ensemblekit.md.frame_weights import weighted
from ensemblekit.md.frames import as_frames, topology_of
from ensemblekit.md.functions import as_observable
from ensemblekit.md.holes import naming_the_hole
from ensemblekit.md.memory import fit_in_memory
from ensemblekit.md.observables.base import Measurement, Observable
from ensemblekit.md.progress import Progress, counted
from ensemblekit.md.result import Averages
from ensemblekit.md.system import System, molecules_whole
from ensemblekit.md.topology import warnings_held
from ensemblekit.source import DescribedSource, ReplicaSet

logger = logging.getLogger("ensemblekit")


def average(source: object, observables: Mapping[str, object], *, frame_weights: object = None, start: int | None = None,
            stop: int | None = None, step: int | None = None, frames: ArrayLike | None = None, begin: float | None = None,
            end: float | None = None, equilibration: Equilibrate = "auto", confidence: float = 0.95, whole: bool | None = None,
            engine: Engine | None = None, progress: Progress = False, quiet: bool = False,
            missing: Missing = "raise", log_weights: ArrayLike | Sequence[ArrayLike] | None = None) -> Averages:
    """The mean of each observable over the frames of a trajectory, with interval, n_eff and verdict: one read for all.

    Arguments:
        source: the path of a store made by ``md.ingest``, a pattern or list of paths (replicas, or parts of one run), an
            open store, what ``md.read`` gave, an MDAnalysis Universe or AtomGroup.
        observables: name -> observable (``md.RadiusOfGyration("protein")``), a function of an AtomGroup that returns a
            number or an array, or what ``md.from_analysis`` made.
        frame_weights: statistical weights of the frames, (n,) for those chosen or for all; "time" lets each count as the time
            it stands for, where steps differ; or from a file of their own,
            ``md.columns("COLVAR").weights("metad.rbias", temperature=300)``, which are joined to the frames by time; of
            replicas a list of them. None: those of the source (1 for each).
        log_weights: natural logarithms of the weights instead, on any scale and offset, -inf for 0; of replicas a list.
        start, stop, step: which frames, by number; or `frames`, their numbers (rising) or a mask; or
        begin, end: the first and last time in ps, both included. Of replicas: the same of each.
        equilibration: "auto" leaves out the start of a run where that raises n_eff significantly, for each observable on
            its own; None or 0 nothing; a whole number so many frames; a float all before that time (ps) after the first
            frame. Observables with statistics of their own (RMSF, MSD) keep all frames unless told.
        whole: True: molecules are whole in the frames, nothing is mended at the box. None: made whole along their bonds
            by observables that need it, as far as the source does not say that they are.
        engine: Threads() by default; every engine gives the same bits.
        progress: True for a bar on the terminal (frames/s, time left), or a function of (frames done, frames in all).
        quiet: do not tell the logger "ensemblekit" of reads besides the averaging one; the result has them in any case.
        missing: "raise" doubts averages of values that are NaN (or masked) in some frames; "drop" leaves those frames out of
            the observable that has none there. They keep their places in time. Observables with statistics of their own
            (RMSF, MSD, angles) take every frame, and are refused.

    Returns:
        name -> Estimate, and "name.derived" for quantities that come with one; see :class:`~ensemblekit.md.result.Averages`.
        Observables that need the frames before they can be averaged (RMSF: a mean structure) make reads of their own, from
        a temporary store where `source` is none; ``passes`` tells how many and why.

    Raises:
        InputError: no observables, a selection that is empty, weights that do not fit, a box with molecules that cannot
            be made whole, frames that cannot be read.
        ReductionError: an observable failed on a frame; it names both.
    """
    wanted = _observables(observables)
    check_confidence(confidence)
    check_equilibration(equilibration)
    check_missing(missing)
    given = as_frames(source)
    topology = topology_of(given)
    selection = FrameSelection(start, stop, step, frames, begin, end)
    chosen = selection.of(given) if frame_weights is None and log_weights is None else (
        weighted(given, selection, frame_weights, log_weights))
    _check_some(chosen)
    with System(chosen, topology, engine, progress=progress,
                whole=molecules_whole(given) if whole is None else whole) as system:
        measurements, notes, watched = _prepare(system, wanted)
        if missing == "drop" and (own := [name for name, one in measurements.items() if not one.takes_means]):
            raise InputError(f"{', '.join(own)}: these observables have statistics of their own, which take every frame, so "
                             'that missing="drop" does not go with them; average them in a call of their own')
        if system.passes and not quiet:
            logger.info(system.passes_in_words())
        return _averages(system, measurements, notes, watched, _Rule(equilibration, confidence, missing))


def _check_some(source: DescribedSource) -> None:
    """Refuse an average over nothing."""
    if not sum(source.lengths or ()):
        raise StatisticsError("there are no frames to average")


def _prepare(system: System, observables: Mapping[str, Observable]
             ) -> tuple[dict[str, Measurement], list[str], dict[str, list[int]]]:
    """Of each observable its measurement, what is to be noted, and the numbers of the selections watched for the box."""
    measurements, notes, watched = {}, [], {}
    for name, observable in observables.items():
        measurements[name] = observable.prepare(system)
        notes += [f"{name}: {note}" for note in system.pop_notes()]
        watched[name] = system.take_watched()
    return measurements, notes, watched


def _observables(observables: Mapping[str, object]) -> dict[str, Observable]:
    if not isinstance(observables, Mapping) or not observables:
        raise InputError('name at least one observable, for example {"rg": md.RadiusOfGyration("protein")}')
    for name in observables:
        if not isinstance(name, str) or not name or "." in name:
            raise InputError(f"an observable is named by a word without a dot; got {name!r}")
    return {name: one if isinstance(one, Observable) and not isinstance(one, type) else as_observable(name, one)
            for name, one in observables.items()}


def measurements_of(system: System, observables: Mapping[str, object]) -> tuple[dict[str, Measurement], list[str]]:
    """Observables made ready for a system, and the fields to read for them."""
    measurements, _, _ = _prepare(system, _observables(observables))
    return measurements, _fields(system, measurements)


class _Rule(NamedTuple):
    """How runs are averaged."""

    equilibration: Equilibrate
    confidence: float
    missing: Missing


def _averages(system: System, measurements: Mapping[str, Measurement], notes: list[str], watched: Mapping[str, list[int]],
              rule: _Rule) -> Averages:
    """One read of the frames, and the estimates of all runs."""
    source = system.source
    fields = _fields(system, measurements)
    reducers = {name: one.reducers(rule.equilibration, rule.missing) for name, one in measurements.items()}
    branches: dict[str, tuple[Any, ...]] = {name: (one.map, *reducers[name].values()) for name, one in measurements.items()}
    branches |= {f"images.{k}": (watch.images, ImageJumps()) for k, watch in enumerate(system.watched)}
    keep, limit = fit_in_memory(source, branches, fields)
    with warnings_held(), counted(system.progress, system.n_frames, "averages") as tell:
        read = partials(source, branches, fields=fields, engine=system.engine, limit=limit, progress=tell, keep=keep,
                        blas=bool(system.watched) or any(one.uses_blas or not one.takes_means for one in measurements.values()))
    runs = [with_usable_times(replace(run, time_unit=source.time_unit or "ps"), system.timed[run.run]) for run in read]
    sources = source.runs if isinstance(source, ReplicaSet) else (source,)
    answers = {}
    for name, measurement in measurements.items():
        estimates = [measurement.estimate(_own(run, name, reducers[name]), *rule) for run in runs]
        estimates = [one if np.isfinite(one.mean).all() and not one.derived else
                     naming_the_hole(one, frames, fields, measurement.map)
                     for one, frames in zip(estimates, sources, strict=True)]
        answers[name] = estimates[0] if len(estimates) == 1 else pooled_with_further(
            estimates, rule.confidence, measurement.limits, measurement.periods, measurement.scales)
        for k in watched[name]:
            answers[name], more = doubted_images(answers[name], name, system.watched[k], runs, f"images.{k}")
            notes += more
        if measurement.note and any(one.n_discarded for one in estimates):
            notes.append(f"{name}: {measurement.note} is that of all frames, the discarded ones too")
    origin = origin_of(source)
    caveat = caveat_of(source)
    answers = {name: with_origin(one, origin).noting(caveat) for name, one in answers.items()}
    return Averages(answers, tuple(notes), passes=(*system.passes, "averages"), n_frames=system.n_frames, n_runs=len(runs))


def _fields(system: System, measurements: Mapping[str, Measurement]) -> list[str]:
    """The fields to read; InputError, naming an observable, where the frames lack one."""
    source = system.source
    needed = {"position", "box"} | {name for one in measurements.values() for name in one.fields}
    absent = needed - set(source.fields) - {"box"}
    if absent:
        who = next(name for name, one in measurements.items() if absent & set(one.fields) or "position" in absent)
        raise InputError(f"{who!r} needs {', '.join(sorted(absent))}, and these frames have {', '.join(source.fields)}")
    return [name for name in source.fields if name in needed]


def _own(run: RunStates, name: str, reducers: Mapping[str, object]) -> RunStates:
    """The run of one observable, its branches being its reducers by name."""
    own: list[States] = [{key: [reducer] for key, reducer in zip(reducers, held, strict=True)} for held in run.reducers(name)]
    for state in run.states:
        state[name].clear()     # what is large goes when its observable is done
    return replace(run, states=tuple(own))


def with_usable_times(run: RunStates, timed: bool) -> RunStates:
    """The run, without its times where these say nothing: they run backwards, are all the same, or no file held them."""
    times = run.times
    if not run.ordered:
        return replace(run, times=None)
    if run.n < 2 or (timed and (times is None or np.isnan(times).any())):
        return run
    if not timed:
        warnings.warn("these frames have no times: they are counted, and no time is told between them. Where they are of one "
                      "run, say how far they are apart: md.read(..., dt=), in ps", stacklevel=4)
    if times is None:
        return run
    back = np.diff(times) < 0
    if timed and back.any():
        k = int(np.argmax(back)) + 1
        warnings.warn(f"the times run backwards at frame {k} (from {times[k - 1]:g} to {times[k]:g} ps): frames are counted "
                      "instead. Independent runs are passed as replicas=[...]", stacklevel=4)
    elif timed and times[-1] == times[0]:
        warnings.warn(f"all {len(times)} frames have the time {times[0]:g} ps: they are counted instead", stacklevel=4)
    elif timed:
        return run
    return replace(run, times=None)


__all__ = ["Observable", "average"]
