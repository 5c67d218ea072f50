"""The mean of anything over the snapshots of a source, with an error one can trust: ``average``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.averaging.blocking import BlockError, blocking
from ensemblekit.averaging.correlation import chodera_window, closed, sokal_window
from ensemblekit.averaging.doubts import ENOUGH, judged
from ensemblekit.averaging.equilibration import significant_start
from ensemblekit.averaging.estimate import DISAGREE, Estimate, over_power_of_two, quantile, student_interval
from ensemblekit.averaging.guard import matched
from ensemblekit.averaging.missing import Departure, Missing, Present, check_missing, with_gaps_noted, without_gaps
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.observed import Elements, Observed, check_real, elements_of, in_places, places_of
from ensemblekit.averaging.repeated import repeated
from ensemblekit.averaging.run import Map, Progress, States, partials, reduce
from ensemblekit.averaging.seams import NO_DIRECTION, SEAM, period_in_words, seam_in_words, seam_of
from ensemblekit.averaging.series import Series
from ensemblekit.averaging.spectral import FEWEST, SHARE, MeanError, mean_error, skewed_quantiles
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, ReadOnceError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.scaling import exponent_of, ldexp, power_of_two, scaled
from ensemblekit.source import (
    ArraySource,
    Block,
    ReplicaSet,
    SnapshotSource,
    as_source,
    check_times,
    uneven_steps,
)
from ensemblekit.source_views import weighted_by_time

LATEST = 1 / 3
"""Share of the run beyond which an equilibration found automatically is that of a run that still drifts."""
RHAT = 1.01
"""R-hat below which runs are of one distribution (Vehtari et al. 2021)."""
LARGEST = 0.1
"""Share of all weight that one snapshot may carry."""
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
        if weights != "time" or log_weights is not None:
            raise InputError(f'weights are (n,) numbers, or "time"; got {weights!r}')
        source, weights = weighted_by_time(as_source(source)), None
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


def with_doubt(estimate: Estimate, why: str) -> Estimate:
    """The estimate, not vouched for: `why` comes first in its verdict."""
    return replace(estimate, converged=False, verdict="; ".join(filter(None, [why, estimate.verdict])))


def doubt_of_runs(answer: Estimate, runs: Sequence[Estimate]) -> Estimate:
    """The estimate of several runs, with what makes one of angles doubtful whatever their number."""
    said = [run.verdict.split("; ")[0] for run in runs if run.verdict.startswith((SEAM, NO_DIRECTION))]
    return with_doubt(answer, said[0]) if said else answer


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


def scalar_estimate(values: np.ndarray, weights: np.ndarray | None, times: np.ndarray | None, equilibration: Any,
                    confidence: float, unit: str, time_unit: str) -> Estimate:
    """The average of one series (n,); see :func:`average`."""
    check_real(values)
    x = values.astype(np.float64)
    n = len(x)
    if n == 0:
        raise StatisticsError("the source has no snapshots; there is nothing to average")
    small, e = scaled(x)
    if e:
        return over_power_of_two(scalar_estimate(small, weights, times, equilibration, confidence, unit, time_unit), e)
    weights = None if weights is None else scaled(weights)[0]
    series: dict[str, Any] = {"series": x, "times": times, "unit": unit,
                              "time_unit": time_unit if times is not None else ""}
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        with np.errstate(invalid="ignore"):
            mean = float(_mean(x, weights))
        return _unknown(mean, n, confidence,
                        f"{bad} of {n} snapshots are not finite (first: {int(np.argmax(~np.isfinite(x)))}); "
                        "leave them out, or find out where they come from", **series)
    start = start_after(equilibration, n, times, lambda: unless_carried(significant_start(residual(x, weights)), weights))
    y = x[start:]
    w = None if weights is None else weights[start:]
    mean = float(_mean(y, w))
    dt = spacing(times)
    series |= {"n_discarded": start, "equilibration_time": elapsed(times, start)}
    if len(y) < 4:
        return _unknown(mean, len(y), confidence, f"{len(y)} snapshots: an error needs at least 4", **series)
    if w is not None and w.sum() ** 2 < 2 * (w @ w):
        return _unknown(mean, len(y), confidence, f"the weights rest on {w.sum() ** 2 / (w @ w):.2g} snapshots (Kish): "
                        "no error can be told", **series)
    z = residual(y, w)
    scale = float(np.abs(y).max())
    if float(np.ptp(z)) <= 16 * np.finfo(float).eps * scale * (1.0 if w is None else float(np.max(w) / w.mean())):
        return Estimate(mean=mean, stderr=0.0, interval=(mean, mean), confidence=confidence, n=len(y), n_eff=math.nan,
                        statistical_inefficiency=math.nan, correlation_time=math.nan, dof=math.inf, converged=False,
                        verdict="every snapshot is the same: a constant has no error that sampling could show",
                        estimators={"cosine": 0.0}, **series)
    estimators, error = _errors(z)
    stderr = estimators["cosine"]
    spread = float(z @ z) / (len(z) - 1)
    variance = spread if w is None else float(w @ (y - mean) ** 2 / w.sum()) * len(y) / (len(y) - 1)
    g = stderr**2 * len(y) / spread
    most, dof = kish(w, len(y)), error.dof
    n_eff = min(variance / stderr**2, most)
    root = math.sqrt(error.spectrum / len(y))
    below, above = (root * q for q in skewed_quantiles(float(quantile(confidence, dof)) * stderr / root, error.skewness))
    middle = float(np.median(list(estimators.values())))
    share = (len(y) - 1) / len(y)       # g and n_eff of the methods speak of the variance over n
    if n_eff < ENOUGH and 0 < share * variance < ENOUGH * middle**2:
        # Too short for any one method: the series is shorter than the components that cosines need. What is reported
        # (and refused) is then the middle of all methods, with the degrees of freedom of its own n_eff.
        stderr, g, n_eff = middle, middle**2 * len(y) / (share * spread), min(share * variance / middle**2, most)
        dof = max(n_eff - 1, 1.0)
        below = above = max(float(quantile(confidence, dof)) * stderr, below, above)
    doubts, converged = _doubts(n_eff, estimators)
    grounds = [*run_doubts(start, len(x), equilibration, weights, x)]
    grounds += error.doubts
    return Estimate(mean=mean, stderr=stderr, interval=(mean - below, mean + above),
                    confidence=confidence, n=len(y), n_eff=n_eff, statistical_inefficiency=g,
                    correlation_time=g / 2 * dt, dof=dof, converged=converged and not grounds,
                    verdict="; ".join([*grounds, *filter(None, [doubts])]), estimators=estimators, **series)


def _errors(z: np.ndarray) -> tuple[dict[str, float], MeanError]:
    """Standard error of the mean of z by each method, and all that the first says."""
    from ensemblekit.averaging.kernels_series import geyer_sums

    n = len(z)

    def find(gamma: np.ndarray, n: int) -> Any:
        *sums, _, ended = geyer_sums(gamma)
        sokal, chodera = sokal_window(gamma, n), chodera_window(gamma, n)
        if len(gamma) < n and (not ended or sokal is None or chodera is None):
            return None
        return sums, sokal, chodera

    gamma, (sums, sokal, chodera) = closed(z, find)
    _, monotone, convex = sums
    floor = gamma[0] / n
    error = mean_error(z, max(monotone / gamma[0], chodera[0]))
    block: BlockError = blocking(z).chosen()
    return {"cosine": error.stderr, "blocking": float(block.stderr),
            "geyer": math.sqrt(max(convex, floor) / n), "sokal": math.sqrt(max(sokal[0], 1 / n) * gamma[0] / n),
            "chodera": math.sqrt(chodera[0] * gamma[0] / n)}, error


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
        return _unknown(mean, n - start, confidence, f"{n - start} snapshots: an error needs at least 4", **facts)
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


def common_start(columns: np.ndarray, weights: np.ndarray | None) -> int:
    """The latest significant start of several series (n, k) of one run, such as the summaries of an array."""
    start = max((significant_start(residual(s, weights)) for s in scaled(columns, 0)[0].T
                 if np.isfinite(s).all() and np.ptp(s) > 1e-12 * np.abs(s).max()), default=0)
    return unless_carried(start, weights)


def unless_carried(start: int, weights: np.ndarray | None) -> int:
    """The start found, or 0 where the snapshots before it carry more than twice their share of the weight.

    A weighted average rests on those: what stands out in the residual there is the weight, not a transient.
    """
    if weights is None or not weights[:start].sum() * len(weights) > 2 * start * weights.sum():
        return start
    return 0


def run_doubts(start: int, n: int, equilibration: Any, weights: np.ndarray | None, columns: np.ndarray) -> tuple[str, ...]:
    """Why no interval of a run (n, of which those from `start` on are averaged) can be vouched for; () where there is nothing.

    columns: (n,) or (n, k), the values or what stands for them.
    """
    late = isinstance(equilibration, str) and start > LATEST * n
    drifting = (f"still drifting: the average would begin at snapshot {start} of {n}, beyond a third of the run",)
    return (drifting if late else ()) + rests_on_few(None if weights is None else weights[start:], columns[start:])


def rests_on_few(weights: np.ndarray | None, columns: np.ndarray) -> tuple[str, ...]:
    """Why the weights of a run cannot carry an error; () where they can.

    One snapshot may not carry more than `LARGEST` of the weight, and `ENOUGH` correlated effective samples are needed:
    independent snapshots n / g of the values over 1 + v / m. v is the relative variance of the weights: that seen, or where
    it is more that of log-normal weights with the same upper half, as the largest are those that a run has yet to meet. m
    is 1 where weights are as slow as the values (their means over g snapshots scatter more than independent ones would),
    g where they are independent.

    Arguments:
        columns: (n,) or (n, k), the values or what stands for them.
    """
    if weights is None or np.ptp(weights) == 0:
        return ()
    largest = float(weights.max() / weights.sum())
    if largest > LARGEST:
        return (f"one snapshot carries {100 * largest:.0f} % of all weight: no error can be told from the others",)
    columns = columns.reshape(len(columns), -1)
    g = float(np.median([closed(x, chodera_window)[1][0] for x in scaled(columns, 0)[0].T
                         if np.isfinite(x).all() and np.ptp(x) > 1e-12 * np.abs(x).max()] or [1.0]))
    n = len(weights)
    length = 1 << int(math.log2(min(g, n / 2)))
    stretches = np.add.reduceat(weights, np.arange(0, n - n % length, length))
    slow = float(stretches.var()) > 2 * length * float(weights.var())
    above = weights[weights > np.median(weights[weights > 0])]
    upper = np.log(above / np.median(weights[weights > 0]))
    log_variance = min(2 * float(upper @ upper) / np.count_nonzero(weights), 700.0)
    relative = max(n / kish(weights, n) - 1, math.expm1(log_variance))
    worth = n / g / (1 + relative / (1.0 if slow else g))
    if worth < ENOUGH:
        return (f"the weights rest on {worth:.2g} independent snapshots; an interval needs about {ENOUGH:g}",)
    return ()


MISSING = re.compile(r"\d+ of \d+ (snapshots are missing|elements are missing in some snapshots)")
"""What the verdict of a run says of its gaps."""


def pooled(runs: list[Estimate], confidence: float) -> Estimate:
    """Estimates of one quantity from independent runs as one: weighted by the snapshots each kept.

    Where the means of the runs scatter no more than their own errors say (chi-squared at 1 %), the error is those
    errors in quadrature; else it is the scatter between runs. The interval is the longer one of both, the second with one
    degree of freedom fewer than there are runs: what lies between runs may be too little to be seen and still count.
    Runs that are copies of each other are taken once and refused; R-hat is said where short equal runs show less.
    """
    alike = copies(runs)
    if alike:
        again = {b for _, b in alike}
        kept = [run for k, run in enumerate(runs) if k not in again]
        answer = kept[0] if len(kept) == 1 else pooled(kept, confidence)
        pairs = ", ".join(f"{a} and {b}" for a, b in alike)
        return replace(answer, converged=False, series=None, times=None, verdict="; ".join(filter(None, [
            f"runs {pairs} are the same numbers: copies are no replicas, and are counted once", answer.verdict])))
    count = len(runs)
    share = np.array([r.n for r in runs], dtype=float)
    share /= share.sum()
    means = np.array([np.asarray(r.mean, dtype=float) for r in runs])
    errors = np.array([np.asarray(r.stderr, dtype=float) for r in runs])
    e = exponent_of(np.fmax(np.abs(means), errors).max(axis=0, initial=0.0))
    means, errors = ldexp(means, -e), ldexp(errors, -e)
    dofs = np.array([np.broadcast_to(np.asarray(r.dof, dtype=float), errors[0].shape) for r in runs])
    share = share.reshape(-1, *[1] * (means.ndim - 1))
    mean = (share * means).sum(axis=0)
    parts = (share * errors) ** 2
    within = parts.sum(axis=0)
    between = (share**2 * (means - mean) ** 2).sum(axis=0) * count / (count - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        dof = np.where(within > 0, within**2 / (parts**2 / dofs).sum(axis=0), np.inf)
        precise = 1 / errors**2
        middle = (precise * means).sum(axis=0) / precise.sum(axis=0)
        scatter = (precise * (means - middle) ** 2).sum(axis=0)
        apart = _beyond_chance(scatter, precise, np.array([np.asarray(r.n_eff, dtype=float) for r in runs]))
    series = _plain_series(runs) if means.ndim == 1 else None
    if apart.any() and series is not None:
        apart &= _exchange_tells(series)
    unknown = ~np.isfinite(within)
    squared = np.where(apart | unknown, between, within)
    stderr = np.sqrt(squared)
    half = np.fmax(quantile(0.95, dof) * np.sqrt(within), quantile(0.95, count - 1) * np.sqrt(between))
    with np.errstate(invalid="ignore", divide="ignore"):
        error, freedom = matched(stderr, half, fewest=1.0)
    stderr = np.where(half > 0, error, stderr)
    dof = np.where(half > 0, freedom, count - 1)
    n = sum(r.n for r in runs)
    spread = np.array([np.asarray(r.n_eff, dtype=float) for r in runs]) * errors**2
    with np.errstate(invalid="ignore", divide="ignore"):
        n_eff = np.minimum((share * spread).sum(axis=0) / stderr**2, n)
        g = n / n_eff
    doubts, converged = [], bool(np.all(n_eff >= ENOUGH))
    if not converged:
        doubts.append(f"fewer than {ENOUGH:g} independent snapshots in all runs together")
    if np.any(apart):
        share_apart = "" if means.ndim == 1 else f" in {int(apart.sum())} of {apart.size} elements"
        doubts.append(f"the {count} runs disagree beyond their own errors{share_apart}; "
                      "the error is the scatter between them")
    mixing = _mixing(series) if series is not None else ""
    if mixing:      # said, not refused: the longer bar covers what lies between, and those that show it least would be left
        doubts.append(mixing)
    doubts += dict.fromkeys(said for run in runs for said in run.verdict.split("; ") if said.startswith("steps of time differ"))
    doubts += [f"run {k}: {gap[0]}" for k, run in enumerate(runs) if (gap := MISSING.search(run.verdict))]
    tau = np.mean([np.asarray(r.correlation_time, dtype=float) for r in runs], axis=0)
    plain = (lambda v: float(v)) if means.ndim == 1 else np.asarray
    answer = Estimate(mean=plain(mean), stderr=plain(stderr), interval=student_interval(mean, stderr, dof, confidence),
                      confidence=confidence, n=n, n_eff=plain(n_eff), statistical_inefficiency=plain(g),
                      correlation_time=plain(tau), dof=plain(dof), n_discarded=sum(r.n_discarded for r in runs),
                      equilibration_time=max(r.equilibration_time for r in runs), converged=converged,
                      verdict="; ".join(doubts), unit=runs[0].unit, time_unit=runs[0].time_unit,
                      estimators={"within runs": plain(np.sqrt(within)), "between runs": plain(np.sqrt(between))})
    return over_power_of_two(answer, e)


def copies(runs: Sequence[Estimate]) -> list[tuple[int, int]]:
    """Pairs of runs of which the second holds the very numbers of the first."""
    return repeated([_numbers_of(run) for run in runs])


def _numbers_of(run: Estimate) -> tuple[np.ndarray, ...]:
    """What tells a run from others: its series, or its mean and error; nothing of one that never moves."""
    if run.series is not None:
        return (run.series,) if np.ptp(run.series) > 0 else ()
    return (np.asarray(run.n), np.asarray(run.mean), np.asarray(run.stderr)) if np.any(np.asarray(run.stderr) > 0) else ()


def _beyond_chance(scatter: np.ndarray, precise: np.ndarray, n_eff: np.ndarray) -> np.ndarray:
    """Whether the means of runs scatter more than errors that are themselves uncertain explain, at 1 % (Welch 1951).

    Arguments:
        scatter: (*item,) sum of squared deviations from the weighted mean over squared errors.
        precise: (runs, *item) inverse squared errors, the weights.
        n_eff: (runs, *item) independent snapshots, which say how uncertain an error is.
    """
    from scipy.special import fdtri

    count = len(precise)
    dof = np.maximum(SHARE * n_eff, FEWEST)
    uncertain = ((1 - precise / precise.sum(axis=0)) ** 2 / dof).sum(axis=0)
    return np.asarray(scatter > (count - 1 + 2 * (count - 2) / (count + 1) * uncertain)
                      * fdtri(count - 1, (count**2 - 1) / (3 * uncertain), 0.99))


def _plain_series(runs: Sequence[Estimate]) -> list[np.ndarray] | None:
    """What each run kept, over a power of two common to all; None unless their means are those of these numbers."""
    from ensemblekit.averaging.diagnostics import MIN_DRAWS

    kept = [run.series[run.n_discarded:] for run in runs if run.series is not None]
    if len(kept) < len(runs) or min(map(len, kept)) < MIN_DRAWS:
        return None
    exponent = power_of_two(np.concatenate(kept))
    kept = [ldexp(x, -exponent) for x in kept]
    if not all(np.isfinite(x).all() and np.ptp(x) > 0 for x in kept):
        return None
    if any(abs(x.mean() - ldexp(float(run.mean), -exponent)) > 1e-6 * x.std() for x, run in zip(kept, runs, strict=True)):
        return None     # weighted, or of angles
    return kept


def _exchange_tells(series: Sequence[np.ndarray]) -> bool:
    """Whether runs lie further apart than with their blocks exchanged, at 1 %: errors of skewed series go with their means."""
    from ensemblekit.averaging.diagnostics import DRAWS, between_by_chance, inefficiency_within

    found, chance = between_by_chance(series, inefficiency_within(series), DRAWS)
    return bool(np.count_nonzero(chance >= found) < 0.01 * DRAWS)


def _mixing(series: Sequence[np.ndarray]) -> str:
    """What R-hat has to say of several runs; "" where it is near 1, or no more than short equal runs show."""
    from ensemblekit.averaging.diagnostics import rhat, rhat_limit

    n = min(map(len, series))
    tail = np.array([x[-n:] for x in series])
    found = rhat(tail)
    if found <= RHAT or found <= rhat_limit(tail):
        return ""
    return f"R-hat is {found:.3f}, more than short equal runs show: the runs are not of one distribution yet"


def _doubts(n_eff: float, estimators: Mapping[str, float]) -> tuple[str, bool]:
    """What is to be said about a scalar estimate, and whether it is vouched for."""
    doubts = []
    converged = n_eff >= ENOUGH
    if not converged:
        doubts.append(f"only {n_eff:.2g} independent snapshots; an interval needs about {ENOUGH:g}, so sample longer")
    low, high = min(estimators, key=estimators.__getitem__), max(estimators, key=estimators.__getitem__)
    if estimators[high] > DISAGREE * estimators[low] > 0:
        ratio = estimators[high] / estimators[low]
        doubts.append(f"estimators disagree: {high} gives {ratio:.2g} times the error of {low}")
    return "; ".join(doubts), converged


def _unknown(mean: Any, n: int, confidence: float, why: str, **facts: Any) -> Estimate:
    """A mean without an error."""
    none = math.nan if np.ndim(mean) == 0 else np.full(np.shape(mean), np.nan)
    return Estimate(mean=mean, stderr=none, interval=(none, none), confidence=confidence, n=n, n_eff=none,
                    statistical_inefficiency=none, correlation_time=none, dof=none, converged=False, verdict=why,
                    **facts)


def discarded(equilibration: Any, n: int, times: np.ndarray | None) -> int:
    """How many snapshots a number or a time leaves out at the start of a run of n."""
    return start_after(equilibration, n, times, lambda: 0)


def start_after(equilibration: Any, n: int, times: np.ndarray | None, found: Any) -> int:
    """How many snapshots to discard."""
    if equilibration is None:
        return 0
    if equilibration == "auto":
        return found() if n >= 8 else 0
    if isinstance(equilibration, float):
        if times is None:
            raise InputError(f"equilibration={equilibration!r} is a time, and the source has no times; "
                             "pass a whole number of snapshots")
        start = int(np.searchsorted(times, times[0] + equilibration - 1e-3 * spacing(times)))      # times are rounded
    else:
        start = int(equilibration)
    if start >= n:
        raise StatisticsError(f"equilibration={equilibration!r} leaves none of the {n} snapshots")
    return start


def check_equilibration(equilibration: Any) -> None:
    """Refuse what is no way to discard a start."""
    if equilibration is None or (isinstance(equilibration, str) and equilibration == "auto"):
        return
    number = isinstance(equilibration, int | float | np.integer) and not isinstance(equilibration, bool)
    if not number or not equilibration >= 0:
        raise InputError('equilibration is "auto", None, a whole number of snapshots or a time as a float, not below '
                         f"0; got {equilibration!r}")


def _only_field(source: SnapshotSource, map: Map | None) -> str | None:
    """The field to average, or None where a map looks at all of them."""
    if map is not None:
        return None
    if len(source.fields) != 1:
        raise InputError(f"the source has the fields {sorted(source.fields)}; average one of them (a store: "
                         "store[\"name\"]), or pass map=, a function of a block")
    return next(iter(source.fields))


def _mean(x: np.ndarray, weights: np.ndarray | None) -> float:
    if weights is None:
        return x.mean()
    total = weights.sum()
    if total == 0:
        raise StatisticsError("all weights are zero: no snapshot is left to average over")
    shift = x[int(np.argmax(weights))]
    return shift + (weights @ (x - shift)) / total if np.isfinite(x).all() else (weights @ x) / total


def residual(x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """x - mean, with weights w (x - mean) / mean(w): its mean has the error of the weighted mean (delta method)."""
    if weights is None:
        return x - x.mean()
    return weights * (x - _mean(x, weights)) / weights.mean()


def kish(weights: np.ndarray | None, n: int, start: int = 0) -> float:
    """Snapshots of equal weight that those of n from `start` on are worth (Kish 1965)."""
    if weights is None:
        return float(n - start)
    w = weights[start:]
    return float(w.sum()) ** 2 / float(w @ w)


def spacing(times: np.ndarray | None) -> float:
    """Mean time between snapshots; 1 where they are only counted."""
    if times is None or len(times) < 2 or times[-1] == times[0]:
        return 1.0
    return float((times[-1] - times[0]) / (len(times) - 1))


def elapsed(times: np.ndarray | None, start: int) -> float:
    return float(start) if times is None else float(times[start] - times[0])


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
