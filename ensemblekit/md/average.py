"""Averages of observables over the frames of trajectories, each with its error bar: one read for all of them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.averaging.average import clock_of, estimate_of
from ensemblekit.averaging.circular import turned
from ensemblekit.averaging.derived import derived
from ensemblekit.averaging.doubts import judged, with_doubt
from ensemblekit.averaging.equilibration import check_equilibration, common_start, run_doubts, start_after
from ensemblekit.averaging.estimate import Estimate, bounded_interval
from ensemblekit.averaging.missing import Missing, check_missing
from ensemblekit.averaging.observed import Observed, places_of, summaries
from ensemblekit.averaging.pooling import doubt_of_runs, pooled
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.run import States, partials
from ensemblekit.averaging.seams import Seams, period_in_words, seam_in_words
from ensemblekit.averaging.series import Series, SeriesOf
from ensemblekit.averaging.times import elapsed
from ensemblekit.averaging.weights import rests_on_few
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.md.choice import Choice
from ensemblekit.md.complexes import ImageJumps, in_words
from ensemblekit.md.frame_weights import FrameWeights
from ensemblekit.md.frames import topology_of, trajectory_source
from ensemblekit.md.functions import as_observable
from ensemblekit.md.holes import first_hole
from ensemblekit.md.kept import kept_run
from ensemblekit.md.observables.base import Arrange, Observable, Prepared
from ensemblekit.md.progress import Progress, counted
from ensemblekit.md.result import Averages
from ensemblekit.md.system import System, Watch, times_known, whole_already
from ensemblekit.md.topology import warnings_held
from ensemblekit.md.trajectory import BATCH, FrameSource
from ensemblekit.md.weighted import WeightedSource
from ensemblekit.source import ReplicaSet, SnapshotSource
from ensemblekit.source_clock import check_weights, time_weights, weights_from_logs

logger = logging.getLogger("ensemblekit")

MOST_STATES = 64
"""Partial states of a run that are kept, at the least; up to twice as many while it is read."""
FEWEST_STATES = 8
"""The same of large maps: what is left out at the start comes in eighths then."""
STATE_BYTES = 32 << 20
"""What the partial states of one read may take."""
LARGE_STATE = 16 << 20
"""An observable of which one partial state would take more keeps two numbers an element, a mean and a variance of each of
`STRETCHES` parts of the run, which are the blocks of its errors then."""
STRETCHES = 16
ROW_BYTES = 32 << 20
"""What the values of a block of frames may take, of all observables together: of large maps few frames at a time."""
MOST_BYTES = 8 << 30
"""Above, an average is refused before memory is taken."""


def average(source: Any, observables: Mapping[str, Any], *, frame_weights: Any = None, start: int | None = None,
            stop: int | None = None, step: int | None = None, frames: Any = None, begin: float | None = None,
            end: float | None = None, equilibration: Any = "auto", confidence: float = 0.95, whole: bool | None = None,
            engine: Engine | None = None, progress: Progress = False, quiet: bool = False,
            missing: Missing = "raise", log_weights: Any = None) -> Averages:
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
        name -> Estimate, and "name.further" for quantities that come with one; see :class:`~ensemblekit.md.result.Averages`.
        Observables that need the frames before they can be averaged (RMSF: a mean structure) make reads of their own, from
        a temporary store where `source` is none; ``passes`` tells how many and why.

    Raises:
        InputError: no observables, a selection that is empty, weights that do not fit, a box with molecules that cannot
            be made whole, frames that cannot be read.
        ReductionError: an observable failed on a frame; it names both.
    """
    if not isinstance(observables, Mapping) or not observables:
        raise InputError('name at least one observable, for example {"rg": md.RadiusOfGyration("protein")}')
    for name in observables:
        if not isinstance(name, str) or not name or "." in name or name == "clock":
            raise InputError(f"an observable is named by a word without a dot that is not \"clock\"; got {name!r}")
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is a number between 0 and 1, 0.95 for 95 %; got {confidence!r}")
    check_equilibration(equilibration)
    check_missing(missing)
    wanted = {name: as_observable(name, observable) for name, observable in observables.items()}
    given = trajectory_source(source)
    topology = topology_of(given)
    already = whole_already(given) if whole is None else whole
    if log_weights is not None:
        if frame_weights is not None:
            raise InputError("pass either frame_weights= or log_weights=, not both")
        frame_weights = _from_logs(log_weights, given)
    chosen = weighted(given, Choice(start, stop, step, frames, begin, end), frame_weights)
    if not sum(chosen.lengths or ()):
        raise StatisticsError("there are no frames to average")
    with System(chosen, topology, engine, progress=progress, whole=already) as system:
        prepared, notes, watched = {}, [], {}
        for name, observable in wanted.items():
            prepared[name] = observable.prepare(system)
            notes += [f"{name}: {said}" for said in system.take_notes()]
            watched[name] = system.take_watched()
        own = [name for name, ready in prepared.items() if ready.reducers]
        if missing == "drop" and own:
            raise InputError(f"{', '.join(own)}: these observables have statistics of their own, which take every frame, so "
                             'that missing="drop" does not go with them; average them in a call of their own')
        if system.passes and not quiet:
            logger.info(system.told())
        return _read(system, prepared, notes, watched, equilibration, confidence, progress, missing)


def _read(system: System, prepared: Mapping[str, Prepared], notes: list[str], watched: Mapping[str, list[int]],
          equilibration: Any, confidence: float, progress: Progress, missing: Missing) -> Averages:
    source = system.source
    branches: dict[str, Any] = {name: (ready.map, *_reducers(ready, equilibration, missing))
                                for name, ready in prepared.items()}
    branches["clock"] = (clock_of, Series())
    branches |= {f"images.{k}": (watch.images, ImageJumps()) for k, watch in enumerate(system.watched)}
    needed = {"position", "box"} | {name for ready in prepared.values() for name in ready.fields}
    absent = needed - set(source.fields) - {"box"}
    if absent:
        who = next(name for name, ready in prepared.items() if absent & set(ready.fields) or "position" in absent)
        raise InputError(f"{who!r} needs {', '.join(sorted(absent))}, and these frames have {', '.join(source.fields)}")
    fields = [name for name in source.fields if name in needed]
    keep, limit = _room(source, branches, fields)       # large ones keep less
    with warnings_held(), counted(progress, system.n_frames, "averages") as tell:
        read = partials(source, branches, fields=fields, engine=system.engine, limit=limit, progress=tell, keep=keep,
                        blas=bool(system.watched) or not all(ready.compiled and not ready.reducers
                                                            for ready in prepared.values()))
    sources = source.runs if isinstance(source, ReplicaSet) else (source,)
    read = {run: _forward(states, system.timed[run]) for run, states in read.items()}
    found: dict[str, Estimate] = {}
    unit = source.time_unit or "ps"
    for name, ready in prepared.items():
        runs = [_finished(run, states, name, ready, unit, equilibration, confidence, missing)
                for run, states in sorted(read.items())]
        runs = [_placed(estimate, ready, run, fields) for estimate, run in zip(runs, sources, strict=True)]
        found[name] = runs[0] if len(runs) == 1 else _together(runs, confidence, ready)
        for k in watched[name]:
            found[name], more = _watched(found[name], name, system.watched[k], read, f"images.{k}")
            notes += more
        if any(run.n_discarded for run in runs) and ready.premade:
            notes.append(f"{name}: {ready.premade} is that of all frames, the discarded ones too")
    return Averages(found, tuple([*system.passes, "averages"]), system.n_frames, len(read), tuple(notes))


def _placed(estimate: Estimate, ready: Prepared, run: Any, fields: Sequence[str]) -> Estimate:
    """The estimate of a run; where it is not finite, with the first frame that made it so: frames are read once more for it."""
    if all(np.isfinite(e.mean).all() for e in (estimate, *estimate.further.values())):
        return estimate
    where = first_hole(run, fields, ready.map)
    if not where:
        return estimate
    further = {name: e if np.isfinite(e.mean).all() else replace(e, verdict="; ".join(filter(None, [e.verdict, where])))
               for name, e in estimate.further.items()}
    verdict = estimate.verdict if np.isfinite(estimate.mean).all() else "; ".join(filter(None, [estimate.verdict, where]))
    return replace(estimate, verdict=verdict, further=further)


def _watched(estimate: Estimate, name: str, watch: Watch, read: Mapping[int, list[tuple[int, States]]],
             branch: str) -> tuple[Estimate, list[str]]:
    """The estimate, doubted where molecules of its selection are parted by the box; and what is to be noted."""
    notes = []
    for run, states in sorted(read.items()):
        seen = ImageJumps()
        for _, state in states:
            seen.merge(state[branch][0])        # type: ignore[arg-type]
        note, doubt = in_words(seen.result(), watch.molecules, watch.tied)
        where = f" (run {run})" if len(read) > 1 else ""
        notes += [f"{name}{where}: {note}"] if note else []     # one for each group of atoms
        if doubt:
            further = {key: with_doubt(more, doubt + where) for key, more in estimate.further.items()}
            estimate = with_doubt(replace(estimate, further=further), doubt + where)
    return estimate, notes


def _reducers(ready: Prepared, equilibration: Any, missing: Missing) -> list[Reducer]:
    """What is kept of an observable's values: its statistics, what is kept of each frame, and last, where a start is sought
    for statistics that do not keep their values, the summaries it is sought by."""
    own = ready.reducers or (Observed("nonzero" if ready.nonzero else "blocks", missing),)
    found: list[Reducer] = [*own, *map(SeriesOf, ready.traces.values())]
    if ready.branches:
        found.append(Seams(ready.branches))
    if ready.reducers and not ready.keeps and equilibration == "auto":
        found.append(SeriesOf(summaries))
    return found


def _room(source: Any, branches: dict[str, Any], fields: Sequence[str]) -> tuple[int, int]:
    """How many partial states of a run there is room for, and bytes of frames in a block, by what the first frame takes.

    Branches of large arrays are changed to keep less. Raises InputError, naming the largest observable, where the fewest
    states would take more than MOST_BYTES.
    """
    run: Any = source.runs[0] if isinstance(source, ReplicaSet) else source
    n = sum(run.lengths)
    # trees of block sums have a level more for every doubling of the frames in a state
    levels = max(1.0, np.log2(max(n / MOST_STATES, 2)))
    states, rows = dict.fromkeys(branches, 0.0), 0
    sizes: dict[str, int] = {}
    fewest = FEWEST_STATES
    try:
        for piece in run.window(0, 1).pieces(fields, "time", False, BATCH):
            for block in piece.blocks():
                for name, (map, *reducers) in list(branches.items()):
                    values = np.asarray(map(block))
                    sizes[name] = values.size
                    rows += values.nbytes
                    taken = [_taken(reducer, values, block.weights, levels) for reducer in reducers]
                    if isinstance(reducers[0], Observed) and taken[0] > LARGE_STATE:
                        reducers[0] = Observed("stretches")
                        taken[0] = 2.0 * values.size * 8
                        fewest = STRETCHES
                        branches[name] = (map, *reducers)
                    states[name] += sum(taken)
    except Exception:       # whatever fails will fail again, where the error says which frames it was about
        return MOST_STATES, BATCH
    total = sum(states.values())
    if 2 * fewest * total > MOST_BYTES:
        name = max(states, key=lambda key: states[key])
        raise InputError(f"{name!r} has {sizes[name]} numbers a frame; their averages with errors would take about "
                         f"{2 * fewest * total / 2**30:.0f} GiB of memory. Choose fewer atoms, residues instead of "
                         "atoms (level=\"residue\") or coarser bins, or average parts of it in calls of their own")
    frame = sum(run.fields[name].nbytes for name in fields)
    limit = BATCH if rows * (BATCH // max(frame, 1)) <= ROW_BYTES else max(1, ROW_BYTES // rows) * frame
    return int(np.clip(STATE_BYTES / (2 * max(total, 1.0)), fewest, MOST_STATES)), limit


def _taken(reducer: Reducer, values: np.ndarray, weights: np.ndarray | None, levels: float) -> float:
    """Bytes that a partial state of a reducer will take, by one of the first frame."""
    one = reducer.empty()
    one.update(values, 0, weights)
    nbytes = float(sum(np.asarray(part).nbytes for part in one.state().values()))
    return nbytes * levels if isinstance(one, Observed) else nbytes


def _forward(states: list[tuple[int, States]], timed: bool) -> list[tuple[int, States]]:
    """The states, without the times where these say nothing: they run backwards, are all the same, or no file held them."""
    times = np.concatenate([np.asarray(state["clock"][0].result()).reshape(-1, 2)[:, 0] for _, state in states])
    if len(times) < 2 or (timed and np.isnan(times).any()):
        return states
    back = np.diff(times) < 0
    if not timed:
        warnings.warn("these frames have no times: they are counted, and no time is told between them. Where they are of one "
                      "run, say how far they are apart: md.read(..., dt=), in ps", stacklevel=4)
        if np.isnan(times).all():
            return states
    elif back.any():
        k = int(np.argmax(back)) + 1
        warnings.warn(f"the times run backwards at frame {k} (from {times[k - 1]:g} to {times[k]:g} ps): frames are counted "
                      "instead. Independent runs are passed as replicas=[...]", stacklevel=4)
    elif times[-1] == times[0]:
        warnings.warn(f"all {len(times)} frames have the time {times[0]:g} ps: they are counted instead", stacklevel=4)
    else:
        return states
    return [(begin, {**state, "clock": [_untimed(state["clock"][0])]}) for begin, state in states]


def _untimed(clock: Reducer) -> Reducer:
    """The series of times and weights without the times."""
    values = np.array(clock.result(), np.float64).reshape(-1, 2)
    values[:, 0] = np.nan
    return clock.restored({"values": values})


def _finished(run: int, states: list[tuple[int, States]], name: str, ready: Prepared, time_unit: str, equilibration: Any,
              confidence: float, missing: Missing) -> Estimate:
    """One observable of one run, with what comes with it."""
    if ready.finish is not None:
        return _within(_own(run, states, name, ready, time_unit, equilibration, confidence), ready)
    function = ready.function
    estimate = estimate_of(states, name, equilibration=equilibration, confidence=confidence, unit=ready.unit,
                           time_unit=time_unit, shown=function is None and ready.arrange is None,
                           compact=ready.nonzero and ready.arrange is not None, missing=missing)
    further = {key: replace(derived(states, name, more.function, estimate, unit=more.unit), coords=dict(more.coords))
               for key, more in ready.further.items()}
    answer = estimate if function is None else derived(states, name, function, estimate, unit=ready.unit)
    if ready.arrange is not None:
        held: list[Any] = [state[name].pop(0) for _, state in states]       # large, and of no further use
        places = places_of(held) if ready.nonzero else None
        held.clear()
        answer = judged(_arranged(_within(answer, ready), ready.arrange, places))     # within first: the many zeros are one
    for k, key in enumerate(ready.traces, start=1):
        series = np.concatenate([np.asarray(state[name][k].result()) for _, state in states])
        if key:
            further[key] = replace(further[key], series=series)
        else:
            answer = replace(answer, series=series)
    if ready.branches:
        answer = _doubted(answer, [state[name][len(ready.traces) + 1] for _, state in states])
    answer = replace(answer, coords=dict(ready.coords), further=further)
    return answer if ready.arrange is not None else _within(answer, ready)


def _arranged(estimate: Estimate, arrange: Arrange, elements: np.ndarray | None) -> Estimate:
    """The estimate with its numbers in other places; what is put elsewhere is 0 and has no error.

    elements: of an estimate of some elements and one that stands for all others, which of them; None: it holds all.
    """
    arranged: dict[tuple[int, bool], np.ndarray] = {}       # one array may stand for several facts

    def put(x: Any, other: float) -> np.ndarray:
        key = id(x), other == 0.0
        if key not in arranged:
            arranged[key] = arrange(x, other, None) if elements is None else arrange(x[:-1], float(x[-1]), elements)
        return arranged[key]

    facts: dict[str, Any] = {name: put(getattr(estimate, name), np.nan)
                             for name in ("n_eff", "statistical_inefficiency", "correlation_time", "dof")}
    return replace(estimate, mean=put(estimate.mean, 0.0), stderr=put(estimate.stderr, 0.0),
                   interval=(put(estimate.low, 0.0), put(estimate.high, 0.0)),
                   estimators={name: put(x, 0.0) for name, x in estimate.estimators.items()}, **facts)


def _doubted(estimate: Estimate, states: Sequence[Any]) -> Estimate:
    """The estimate, with a doubt where its values jump as angles do: `states` are Seams of parts of the run."""
    seams = states[0].empty()
    for state in states:
        seams.merge(state)
    branch = seams.result()
    if branch is None:
        return estimate
    return with_doubt(estimate, seam_in_words(branch, "Where they are angles, md.Function(function, unit=..., "
                                              f"period={period_in_words(branch)}) averages them on the circle (so does "
                                              "md.from_analysis); where they are none, their unit says so"))


def _within(estimate: Estimate, ready: Prepared) -> Estimate:
    """The estimate and what comes with it, their intervals within what the quantities cannot leave."""
    def one(e: Estimate, name: str) -> Estimate:
        bounds = None if ready.spread else ready.limits.get(name)
        return e if bounds is None else replace(e, interval=bounded_interval(e.mean, e.interval, bounds))

    return replace(one(estimate, ""), further={name: one(e, name) for name, e in estimate.further.items()})


def _own(run: int, states: list[tuple[int, States]], name: str, ready: Prepared, time_unit: str, equilibration: Any,
         confidence: float) -> Estimate:
    """An observable whose statistics are its own."""
    assert ready.finish is not None
    mine = [(begin, {**state, name: list(state[name][:len(ready.reducers)])}) for begin, state in states]
    kept = replace(kept_run(mine, name, time_unit, confidence), run=run)
    grounds = rests_on_few(kept.weights, np.zeros(kept.n) if kept.weights is None else kept.weights)
    if ready.keeps:
        kept = replace(kept, equilibration=equilibration)       # every value is there: it says itself where it begins
    elif equilibration not in (None, 0):
        def found() -> int:
            columns = np.concatenate([np.asarray(state[name][-1].result()) for _, state in states])
            return common_start(columns, kept.weights)

        wanted = start_after(equilibration, kept.n, kept.times, found)
        columns = kept.weights if kept.weights is not None else np.zeros(kept.n)
        grounds = run_doubts(wanted, kept.n, equilibration, kept.weights, columns)
        begins = [begin for begin, _ in mine]
        first = next((k for k, begin in enumerate(begins) if begin >= wanted), len(begins) - 1)
        left = begins[first]        # rounded up to where a state begins
        if left:
            begun = elapsed(kept.times, left)
            kept = replace(kept_run([(b - left, s) for b, s in mine[first:]], name, time_unit, confidence), run=run,
                           n_discarded=left, equilibration_time=begun)
    made = ready.finish(kept)
    answers: dict[str, Estimate] = dict(made) if isinstance(made, Mapping) else {"": made}
    main = answers.pop("")
    main = replace(main, further={**main.further, **answers})
    for why in reversed(grounds):
        main = with_doubt(replace(main, further={key: with_doubt(more, why) for key, more in main.further.items()}), why)
    return main


def _together(runs: Sequence[Estimate], confidence: float, ready: Prepared, name: str = "") -> Estimate:
    """Replicas of one observable as one: variance within and between runs, and for numbers the verdict on ergodicity.

    name: of the quantity, "" being the observable.
    """
    periods, bounds = ready.periods, ready.limits.get(name)
    if name in periods:
        runs = [turned(run, periods[name], runs[0].mean) for run in runs]
    from ensemblekit.averaging.replicas import ergodicity
    from ensemblekit.source import ArraySource

    answer = doubt_of_runs(pooled(list(runs), confidence), runs)
    holes = [f"run {k}: {run.verdict}" for k, run in enumerate(runs) if not np.isfinite(run.mean).all()]
    if holes:
        answer = with_doubt(answer, "; ".join(holes))
    if bounds is not None:
        answer = replace(answer, interval=bounded_interval(answer.mean, answer.interval, bounds))
    verdict = None
    if np.ndim(answer.mean) == 0 and all(run.series is not None and np.isfinite(run.series).all() for run in runs):
        kept = [ArraySource.of(run.series[run.n_discarded:], unit=run.unit, time_unit=run.time_unit,      # type: ignore[index]
                               times=None if run.times is None else run.times[run.n_discarded:]) for run in runs]
        if all(run.n >= 4 for run in runs):
            verdict = ergodicity(kept, confidence=confidence)
    further = {key: _together([run.further[key] for run in runs], confidence, ready, key) for key in runs[0].further}
    if name in periods:
        answer = turned(answer, periods[name], 0.0)
    return replace(answer, coords=dict(runs[0].coords), runs=tuple(runs), ergodicity=verdict, further=further)


def _from_logs(log_weights: Any, source: Any) -> Any:
    """Weights of frames from their logarithms, (n,); of replicas a list of them."""
    if isinstance(source, ReplicaSet):
        if isinstance(log_weights, np.ndarray) or not isinstance(log_weights, Sequence) or len(log_weights) != len(source.runs):
            raise InputError(f"log_weights of {len(source.runs)} replicas are a list with one array each")
        return [_from_logs(one, run) for one, run in zip(log_weights, source.runs, strict=True)]
    logs = as_array(log_weights, "log_weights", kinds="biuf")
    return weights_from_logs(logs, logs.size)


def weighted(source: Any, choice: Choice, weights: Any) -> Any:
    """The chosen frames, with these weights instead of their own where there are any."""
    if weights is None:
        return choice.of(source)
    if isinstance(source, ReplicaSet):
        if isinstance(weights, str):
            weights = [weights] * len(source.runs)
        if isinstance(weights, np.ndarray) or not isinstance(weights, Sequence) or len(weights) != len(source.runs):
            raise InputError(f"frame_weights of {len(source.runs)} replicas are a list with one array each, or with one "
                             "md.columns(file).weights(...) each")
        return ReplicaSet(tuple(weighted(run, choice, w) for run, w in zip(source.runs, weights, strict=True)))
    chosen = choice.of(source)
    (n,) = chosen.lengths
    times = chosen.times if times_known(chosen) else None
    if isinstance(weights, str) and weights == "time":
        weights = time_weights(times)
        return chosen.reweighted(weights) if isinstance(chosen, FrameSource) else WeightedSource(chosen, weights)
    w = weights.at(times, n) if isinstance(weights, FrameWeights) else _given(weights, source, choice, n)
    if not w.any():
        raise InputError("all frame_weights are zero: no frame is left to average over")
    return chosen.reweighted(w) if isinstance(chosen, FrameSource) else WeightedSource(chosen, w)


def _given(weights: Any, source: Any, choice: Choice, n: int) -> np.ndarray:
    """An array of weights for the n chosen frames."""
    if isinstance(weights, SnapshotSource | Mapping | str | os.PathLike):
        raise InputError(f"frame_weights got {type(weights).__name__}, which does not say whether its numbers are weights, "
                         "their logarithms or a bias: pass md.columns(file).weights(name) for weights, with log=True for "
                         "their logarithms, or md.columns(file).weights(name, temperature=300) for a bias")
    (total,) = source.lengths
    w = as_array(weights, "frame_weights")
    if w.shape == (total,) and n != total:
        w = w[choice.rows(total, lambda: source.times)]
    if w.shape != (n,):
        whole = f" (or ({total},) for all frames)" if n != total else ""
        raise InputError(f"frame_weights are one number a frame, shape ({n},){whole}; got shape {w.shape}. Weights "
                         "of rows of a file are joined to the frames by time: md.columns(file).weights(name)")
    return check_weights(w, n)


__all__ = ["Observable", "average"]
