"""The mean of anything over the snapshots of a source, with an error one can trust: ``average``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.averaging.doubts import judged, with_doubt
from ensemblekit.averaging.equilibration import check_equilibration, common_start, run_doubts, start_after
from ensemblekit.averaging.estimate import Estimate, student_interval
from ensemblekit.averaging.missing import Departure, Missing, Present, check_missing, with_gaps_noted, without_gaps
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.observed import Elements, Observed, check_real, elements_of, in_places, places_of
from ensemblekit.averaging.pooling import doubt_of_runs, pooled
from ensemblekit.averaging.run import Map, Progress, States, partials, reduce
from ensemblekit.averaging.scalar_mean import scalar_estimate, unknown
from ensemblekit.averaging.seams import period_in_words, seam_in_words, seam_of
from ensemblekit.averaging.series import Series
from ensemblekit.averaging.times import elapsed, spacing
from ensemblekit.averaging.weights import kish
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, ReadOnceError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.scaling import ldexp, scaled
from ensemblekit.source import ArraySource, Block, ReplicaSet, SnapshotSource, as_source
from ensemblekit.source_clock import check_times, uneven_steps
from ensemblekit.source_views import weighted_by

STATE_BYTES = 512 << 20     # what the partial states of an array average may take


def average(source: Any, *, map: Map | None = None, weights: Any = None, log_weights: Any = None,
            equilibration: Any = "auto", confidence: float = 0.95, engine: Engine | None = None, progress: Progress = False,
            unit: str | None = None, coords: Mapping[str, Any] | None = None,
            period: float | None = None, missing: str = "raise") -> Estimate:
    """The mean over the snapshots of a source, with its standard error and confidence interval, in one read.

    Arguments:
        source: a stored field, any source, an array with snapshots along axis 0, or a ReplicaSet of independent runs.
        map: a function of a Block that returns (n, *out), what is to be averaged; needed where there are several
            fields.
        weights, log_weights: (n,) statistical weights of an array, or their natural logarithms; sources carry their own.
            weights="time": each snapshot counts as the time it stands for, half the steps beside it.
        equilibration: "auto" discards the start of a run where that raises n_eff significantly (one common point for
            all elements of an array); None or 0 discards nothing; a whole number discards so many snapshots; a
            float all before that time after the first snapshot.
        confidence: of the interval.
        engine, progress: as for ``reduce``.
        unit: of the mean; by default that of the field, "" with a map.
        coords: named axes of the item: name -> values or (values, unit), in the order of the axes.
        period: after which a number comes round, 360 for an angle in degrees: its mean is the direction of the mean
            vector, `resultant` that vector's length. By default that of the source (columns of angles know it).
        missing: "raise" doubts an average of snapshots that are NaN (or masked); "drop" leaves them out, number by number.
            They keep their places in time: lags are differences in time, nothing is closed up.

    Returns:
        An Estimate. It refuses (``converged`` False, the reason in ``verdict``) where there are fewer than about ten
        independent snapshots; what it then shows is the median of all methods. Scalars are answered by cosine
        components, checked against blocking, Geyer, Sokal and Chodera; arrays by blocking, element by element.

    Raises:
        InputError: complex values, weights or coords that do not fit, times that run backwards, or an equilibration
            that is none of the above.
        StatisticsError: no snapshots at all, all weights zero, or nothing left after equilibration.
    """
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is a number between 0 and 1, 0.95 for 95 %; got {confidence!r}")
    check_missing(missing)
    if isinstance(weights, str):
        source, weights = weighted_by(as_source(source), weights, log_weights), None
    if weights is not None or log_weights is not None:
        if isinstance(source, SnapshotSource):
            raise InputError("weights= and log_weights= go with an array; a source carries its own weights")
        source = ArraySource.of(source, weights=weights, log_weights=log_weights)
    source = as_source(source)
    only = _only_field(source, map)
    check_equilibration(equilibration)
    if unit is None:
        unit = source.fields[only].unit if only is not None else ""
    branch = _branch(source, only, map, period)
    if missing == "drop":
        if branch is not None:
            raise InputError('missing="drop" does not go with angles; leave the snapshots out before')
        answer = _with_gaps(source, map, only, equilibration, confidence, unit, engine, progress)
        return answer if coords is None else _with_coords(answer, coords)
    runs = _read(source, map, only, engine, progress)
    if branch is not None:
        from ensemblekit.averaging.circular import circular_runs

        series = [(_scalar_series(run), *_times_and_weights(run)) for run in runs]
        answer = circular_runs(series, branch, equilibration, confidence, unit, source.time_unit)
    else:
        estimates = [_doubted(_one_run(run, equilibration, confidence, unit, source.time_unit)) for run in runs]
        answer = estimates[0] if len(estimates) == 1 else doubt_of_runs(pooled(estimates, confidence), estimates)
    return answer if coords is None else _with_coords(answer, coords)


def _with_gaps(source: SnapshotSource, map: Map | None, only: str | None, equilibration: Any, confidence: float, unit: str,
               engine: Engine | None, progress: Progress) -> Estimate:
    """The average of what is there: of series by weights of zero, of arrays number by number about their means."""
    if isinstance(source, ReplicaSet):
        each = [_with_gaps(run, map, only, equilibration, confidence, unit, engine, progress) for run in source.runs]
        return each[0] if len(each) == 1 else pooled(each, confidence)
    if only is None or source.fields[only].shape != ():
        if source.access == "once":
            raise ReadOnceError(f'{type(source).__name__} can be read only once, and missing="drop" reads arrays twice; ingest '
                                "it into a store")
        present = Present(only, map)
        read = reduce(source, {"sum": (Departure(present), Moments()), "share": (present, Moments())}, engine=engine)
        share = np.asarray(read["share"].mean)
        if share.shape != ():
            return _array_with_gaps(source, present, read["sum"].mean, share, equilibration, confidence, unit, engine, progress)
    (run,) = _read(source, map, only, engine, progress)
    _scalar_series(run)
    return _doubted(_one_run(run, equilibration, confidence, unit, source.time_unit, missing="drop"))


def _array_with_gaps(source: SnapshotSource, present: Present, sums: Any, share: np.ndarray, equilibration: Any,
                     confidence: float, unit: str, engine: Engine | None, progress: Progress) -> Estimate:
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.asarray(sums) / share
    found = average(source, map=Departure(present, mean, share), equilibration=equilibration, confidence=confidence,
                    engine=engine, progress=progress, unit=unit)
    if found.n_discarded:       # about the means of what is kept
        rest = _array_with_gaps_of(source.window(found.n_discarded), present, confidence, unit, engine, progress)
        return replace(rest, n_discarded=found.n_discarded, equilibration_time=found.equilibration_time, times=found.times)
    never = share == 0
    hide = np.where(never, np.nan, 0.0)
    low, high = found.interval
    gone = int((share < 1).sum())
    said = [found.verdict] if found.verdict else []
    if gone:
        said.append(f"{gone} of {share.size} elements are missing in some snapshots"
                    + (f", {int(never.sum())} in all" if never.any() else "") + "; they keep their places in time")
    return replace(found, mean=mean + found.mean + hide, stderr=found.stderr + hide,
                   interval=(low + mean + hide, high + mean + hide), n_eff=found.n_eff * share + hide,
                   converged=found.converged and not never.any(), verdict="; ".join(said))


def _array_with_gaps_of(source: SnapshotSource, present: Present, confidence: float, unit: str, engine: Engine | None,
                        progress: Progress) -> Estimate:
    read = reduce(source, {"sum": (Departure(present), Moments()), "share": (present, Moments())}, engine=engine)
    return _array_with_gaps(source, present, read["sum"].mean, np.asarray(read["share"].mean), None, confidence, unit, engine,
                            progress)


def _branch(source: Any, only: str | None, map: Map | None, period: float | None) -> tuple[float, float] | None:
    """The ends between which a number that comes round is written; None where it does not come round."""
    if period is not None:
        if not (isinstance(period, int | float) and math.isfinite(period) and period > 0):
            raise InputError(f"period is the turn after which angles repeat, 360 for degrees; got {period!r}")
        if only is not None and source.fields[only].shape != ():
            raise InputError(f"period= goes with one number a snapshot, and {only!r} has shape {source.fields[only].shape}; "
                             "average its angles one by one, or its cosines and sines")
        return -period / 2, period / 2
    if only is None or map is not None or source.fields[only].shape != ():
        return None
    first = source.runs[0] if isinstance(source, ReplicaSet) else source
    return first.periods.get(only) if isinstance(first, ArraySource) else None


def _doubted(estimate: Estimate) -> Estimate:
    """The estimate, with a doubt where it is the plain mean of an angle that comes round."""
    if estimate.series is None:
        return estimate
    branch = seam_of(estimate.series, estimate.unit)
    if branch is None:
        return estimate
    return with_doubt(estimate, seam_in_words(branch, f"Where it is one, period={period_in_words(branch)} averages it on "
                                              "the circle; where it is none, its unit= says so"))


def _scalar_series(run: _Run) -> np.ndarray:
    if run.values is None:
        raise InputError("period= goes with one number a snapshot; average angles one by one, or their cosines and sines")
    check_real(run.values)
    return run.values


class _Run:
    """One run as it was read: a series (scalars), or partial states of block sums with summaries (arrays)."""

    __slots__ = ("clock", "partial", "values")

    def __init__(self, values: np.ndarray | None, partial: list, clock: np.ndarray | None):
        self.values, self.partial, self.clock = values, partial, clock


def _read(source: SnapshotSource, map: Map | None, only: str | None, engine: Engine | None,
          progress: Progress) -> list[_Run]:
    if isinstance(source, ArraySource) and map is None and only is not None and source.fields[only].shape == ():
        return [_in_memory(source, only)]       # the series is there already
    if isinstance(source, ReplicaSet) and map is None and all(isinstance(run, ArraySource) for run in source.runs) and (
            only is not None and source.fields[only].shape == ()):
        return [_in_memory(run, only) for run in source.runs]       # type: ignore[arg-type]
    fields = None if only is None else [only]
    head: Any = map if map is not None else only
    size = source.fields[only].size if only is not None and map is None else 1
    keep = int(np.clip(STATE_BYTES // (size * 8 * 24), 2, 64))
    branches = {"values": (head, Observed()), "clock": (clock_of, Series())}
    read = partials(source, branches, fields=fields, engine=engine, progress=progress, keep=keep)
    found = [_run_of(states, "values") for _, states in sorted(read.items())]
    if not found:
        raise StatisticsError("the source has no snapshots; there is nothing to average")
    return found


def _run_of(states: list[tuple[int, States]], name: str) -> _Run:
    """One of several averages that were read together: branches `name` (Observed) and "clock" (Series of clock_of)."""
    clock = np.concatenate([np.asarray(state["clock"][0].result()).reshape(-1, 2) for _, state in states])
    mine = [(start, {"values": state[name]}) for start, state in states]
    first: Observed = states[0][1][name][0]      # type: ignore[assignment]
    values = None
    if first.item == ():
        values = np.concatenate([state[name][0].series() for _, state in states])      # type: ignore[attr-defined]
    return _Run(values, mine, clock)


def estimate_of(states: list[tuple[int, States]], name: str, *, equilibration: Any = "auto", confidence: float = 0.95,
                unit: str = "", time_unit: str = "", shown: bool = True, compact: bool = False,
                missing: Missing = "raise") -> Estimate:
    """The Estimate of one of many averages that were read together, one run: ``partials`` kept its states.

    Arguments:
        states: ``partials(...)[run]`` of a read whose branches are ``name: (map, Observed())`` for each average and
            ``"clock": (clock_of, Series())``.
        shown: False for the mean of an array of which only functions are shown: its elements are not doubted.
        compact: of ``Observed("nonzero")``: only its :func:`~ensemblekit.averaging.observed.places_of`, and last an element
            that is always 0.
        missing: "drop" leaves out snapshots that are NaN; the branches are ``Observed(missing="drop")`` then.
    """
    return _one_run(_run_of(states, name), equilibration, confidence, unit, time_unit, shown, compact, missing)


def _in_memory(source: ArraySource, name: str) -> _Run:
    values = source.arrays[name]
    values = as_array(values, f"field {name!r}")
    clock = None
    if source.weights is not None or source.times is not None:
        clock = np.full((len(values), 2), np.nan)
        if source.times is not None:
            clock[:, 0] = source.times
        if source.weights is not None:
            clock[:, 1] = source.weights
    return _Run(values, [], clock)


def clock_of(block: Block) -> np.ndarray:
    """Time and weight of each snapshot, (n, 2); NaN where there is none."""
    clock = np.full((len(block), 2), np.nan)
    if block.times is not None:
        clock[:, 0] = np.asarray(block.times)
    if block.weights is not None:
        clock[:, 1] = np.asarray(block.weights)
    return clock


def _one_run(run: _Run, equilibration: Any, confidence: float, unit: str, time_unit: str, shown: bool = True,
             compact: bool = False, missing: Missing = "raise") -> Estimate:
    times, weights = _times_and_weights(run)
    alike = times is not None and len(times) > 1 and times[-1] == times[0]
    times = None if alike else times
    if run.values is not None and missing == "drop":
        filled, shares, there = without_gaps(run.values, weights)
        found = with_gaps_noted(scalar_estimate(filled, shares, times, equilibration, confidence, unit, time_unit),
                                run.values, there)
    elif run.values is not None:
        found = scalar_estimate(run.values, weights, times, equilibration, confidence, unit, time_unit)
    else:
        found = _array_estimate(run, weights, times, equilibration, confidence, unit, time_unit, shown, compact)
    said = "all times are the same, so snapshots are counted" if alike else uneven_steps(times) if weights is None else ""
    return replace(found, verdict="; ".join(filter(None, [found.verdict, said]))) if said else found


def _times_and_weights(run: _Run) -> tuple[np.ndarray | None, np.ndarray | None]:
    if run.clock is None:
        return None, None
    times = None if np.isnan(run.clock[:, 0]).all() else check_times(run.clock[:, 0], len(run.clock))
    return times, None if np.isnan(run.clock[:, 1]).all() else scaled(run.clock[:, 1])[0]


def _array_estimate(run: _Run, weights: np.ndarray | None, times: np.ndarray | None, equilibration: Any,
                    confidence: float, unit: str, time_unit: str, shown: bool = True, compact: bool = False) -> Estimate:
    """shown: whether its elements are what is shown, and doubted one by one. compact: as in :func:`estimate_of`."""
    states = run.partial
    columns = np.concatenate([s["values"][0].series() for _, s in states])
    n = len(columns)
    there = ~np.isnan(columns[:, 0])
    gaps = states[0][1]["values"][0].missing == "drop" and not there.all() and there.any()
    if gaps:
        weights = there.astype(np.float64) if weights is None else np.where(there, weights, 0.0)
        columns = np.where(there[:, None], columns, columns[there].mean(axis=0))
    wanted = start_after(equilibration, n, times, lambda: common_start(columns, weights))
    begins = [begin for begin, _ in states]
    start = min((b for b in begins if b >= wanted), default=begins[-1])       # rounded up to where a state begins
    kept: list[Observed] = [state["values"][0] for begin, state in states if begin >= start]
    item = kept[0].item or ()
    facts: dict[str, Any] = {"unit": unit, "time_unit": time_unit if times is not None else "", "times": times,
                             "n_discarded": start, "equilibration_time": elapsed(times, start)}
    most = kish(weights, n, start)
    parts: list[dict[str, Any]] = []
    for some in elements_of(kept, (n - start) / most):
        if some.blocks.n < 4:
            parts.append({"mean": ldexp(some.blocks.mean, some.exponent)})
            continue
        parts.append(_of_elements(some, most, confidence))

    def whole(name: str) -> np.ndarray:
        flat = np.concatenate([part.pop(name) for part in parts]) if len(parts) > 1 else parts[0].pop(name)
        if kept[0].keeps != "nonzero":
            return flat.reshape(item)
        return flat if compact else in_places(flat, places_of(kept), item)

    mean = whole("mean")
    if n - start < 4:
        return unknown(mean, n - start, confidence, f"{n - start} snapshots: an error needs at least 4", **facts)
    grounds = run_doubts(wanted, n, equilibration, weights, columns)
    stderr, g = whole("stderr"), whole("g")
    answer = Estimate(mean=mean, stderr=stderr, interval=(whole("low"), whole("high")), confidence=confidence, n=n - start,
                      n_eff=whole("n_eff"), statistical_inefficiency=g, correlation_time=g / 2 * spacing(times),
                      dof=whole("dof"), converged=not grounds, verdict="; ".join(grounds), estimators={"blocking": stderr},
                      **facts)
    answer = judged(answer, size=math.prod(item)) if shown else answer
    return with_gaps_noted(answer, None, there) if gaps else answer


def _of_elements(some: Elements, most: float, confidence: float) -> dict[str, np.ndarray]:
    """Mean, error and the rest of some elements of an array; `most`: snapshots of equal weight that they are worth."""
    blocks, variance, e = some.blocks, some.variance, some.exponent
    mean, block = np.asarray(blocks.mean), blocks.chosen()
    with np.errstate(invalid="ignore", divide="ignore"):
        still = np.asarray(blocks.variances[0]) <= (16 * np.finfo(float).eps * np.abs(mean)) ** 2
        n_eff = np.where(still, np.nan, np.minimum(variance / block.stderr**2, most))
        g = np.where(still, np.nan, block.g)
    stderr = np.where(still, 0.0, block.stderr)
    low, high = student_interval(mean, stderr, block.dof, confidence)
    return {"mean": ldexp(mean, e), "stderr": ldexp(stderr, e), "low": ldexp(low, e), "high": ldexp(high, e),
            "n_eff": n_eff, "g": g, "dof": block.dof}


def _only_field(source: SnapshotSource, map: Map | None) -> str | None:
    """The field to average, or None where a map looks at all of them."""
    if map is not None:
        return None
    if len(source.fields) != 1:
        raise InputError(f"the source has the fields {sorted(source.fields)}; average one of them (a store: "
                         "store[\"name\"]), or pass map=, a function of a block")
    return next(iter(source.fields))


def _with_coords(answer: Estimate, coords: Mapping[str, Any]) -> Estimate:
    shape = np.shape(answer.mean)
    named = {}
    for name, value in coords.items():
        with_unit = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)
        values, unit = value if with_unit else (value, "")
        named[name] = (np.asarray(values), unit)
    if len(named) > len(shape) or any(len(v) != k for (v, _), k in zip(named.values(), shape, strict=False)):
        raise InputError(f"coords name the axes of the item in order, one value a place; the item has shape {shape}, "
                         f"coords have {[(name, len(v)) for name, (v, _) in named.items()]}")
    return replace(answer, coords=named)
