"""The mean of anything over the snapshots of a source, with an error one can trust: ``average``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.equilibration import Equilibrate, check_equilibration
from ensemblekit.averaging.estimate import Estimate, student_interval
from ensemblekit.averaging.independent import NOTE
from ensemblekit.averaging.missing import Departure, Missing, Present, check_missing, with_gaps_noted, without_gaps
from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.observed import Elements, Observed, check_real, elements_of, in_places, places_of
from ensemblekit.averaging.origin import origin_of, with_origin
from ensemblekit.averaging.pooling import doubt_of_runs, pooled
from ensemblekit.averaging.run import Map, Progress, partials, reduce
from ensemblekit.averaging.run_states import RunStates
from ensemblekit.averaging.scalar_mean import scalar_estimate
from ensemblekit.averaging.seams import period_in_words, seam_in_words, seam_of
from ensemblekit.averaging.times import spacing
from ensemblekit.averaging.weights import kish
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, ReadOnceError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.intake_labels import Labels, is_labelled
from ensemblekit.scaling import ldexp, scaled
from ensemblekit.source import ArraySource, DescribedSource, ReplicaSet, SnapshotSource, as_source
from ensemblekit.source_clock import check_times, uneven_steps
from ensemblekit.source_labelled import labelled_source, weighted_labelled
from ensemblekit.source_protocol import kind_of
from ensemblekit.source_views import weighted_by

VALUES = "values"
"""The branch of what is averaged."""
STATE_BYTES = 512 << 20     # what the partial states of an array average may take


def average(source: object, *, map: Map | None = None, weights: ArrayLike | None = None,
            log_weights: ArrayLike | None = None, equilibration: Equilibrate = "auto", confidence: float = 0.95,
            engine: Engine | None = None, progress: Progress = False, unit: str | None = None,
            coords: Mapping[str, Any] | None = None, period: float | None = None, missing: str = "raise",
            time: str | None = None) -> Estimate:
    """The mean over the snapshots of a source, with its standard error and confidence interval, in one read.

    Arguments:
        source: a stored field, any source, an array with snapshots along axis 0, or a ReplicaSet of independent runs. A
            DataArray (or Dataset of one variable) of xarray brings its times, unit and coordinates, whatever the order of its
            axes, and is read block by block where it is lazy; so does a Series or DataFrame of pandas.
        map: a function of a Block that returns (n, *out), what is to be averaged; needed where there are several
            fields.
        weights, log_weights: (n,) statistical weights of an array, or their natural logarithms; sources carry their own.
            weights="time": each snapshot counts as the time it stands for, half the steps beside it. The name of a
            coordinate or variable along the snapshots of a DataArray or Dataset: that.
        equilibration: "auto" discards the start of a run where that raises n_eff significantly (one common point for
            all elements of an array); None or 0 discards nothing; a whole number discards so many snapshots; a float all
            before that time after the first snapshot. Of snapshots in no order (``ordered=False``) nothing is discarded.
        confidence: of the interval.
        engine, progress: as for ``reduce``.
        unit: of the mean; by default that of the field, "" with a map.
        coords: named axes of the item: name -> values or (values, unit), in the order of the axes.
        period: after which a number comes round, 360 for an angle in degrees: its mean is the direction of the mean
            vector, `resultant` that vector's length. By default that of the source (columns of angles know it).
        missing: "raise" doubts an average of snapshots that are NaN (or masked); "drop" leaves them out, number by number.
            They keep their places in time: lags are differences in time, nothing is closed up.
        time: name of the axis of the snapshots of a DataArray or Dataset, where CF's conventions do not say it.

    Returns:
        An Estimate. It refuses (``converged`` False, the reason in ``verdict``) where there are fewer than about ten
        independent snapshots; what it then shows is the median of all methods. Scalars are answered by cosine
        components, checked against blocking, Geyer, Sokal and Chodera; arrays by blocking, element by element.

    Raises:
        InputError: complex values, weights or coords that do not fit, times that run backwards, or an equilibration
            that is none of the above.
        StatisticsError: no snapshots at all, all weights zero, or nothing left after equilibration.
    """
    check_confidence(confidence)
    check_missing(missing)
    if is_labelled(source) and (weights is not None or log_weights is not None):
        source, weights, log_weights = weighted_labelled(source, weights, log_weights, time), None, None
    elif time is not None and is_labelled(source):
        source = labelled_source(source, time)
    source = _weighted(source, weights, log_weights)
    only = _only_field(source, map)
    check_equilibration(equilibration)
    if unit is None:
        unit = source.fields[only].unit if only is not None else ""
    branch = _branch(source, only, map, period)
    if missing == "drop":
        if branch is not None:
            raise InputError('missing="drop" does not go with angles; leave the snapshots out before')
        answer = _with_gaps(source, map, only, equilibration, confidence, unit, engine, progress)
    else:
        runs = _read(source, map, only, engine, progress)
        answer = _over_runs(runs, equilibration, confidence, unit) if branch is None else (
            _on_circle(runs, branch, equilibration, confidence, unit, time_unit=source.time_unit))
    return _of_source(answer, source, only, coords)


def _over_runs(runs: Sequence[RunStates], equilibration: Equilibrate, confidence: float, unit: str) -> Estimate:
    """The mean over runs."""
    estimates = [_doubted(estimate_of(run, VALUES, equilibration=equilibration, confidence=confidence, unit=unit))
                 for run in runs]
    return estimates[0] if len(estimates) == 1 else doubt_of_runs(pooled(estimates, confidence), estimates)


def _on_circle(runs: Sequence[RunStates], branch: tuple[float, float], equilibration: Equilibrate, confidence: float,
               unit: str, *, time_unit: str) -> Estimate:
    """The mean direction of angles whose turn has these ends."""
    from ensemblekit.averaging.circular import circular_runs

    series = [(_scalar_series(run), checked.times, checked.weights)
              for run, checked in ((run, with_checked_clock(run)) for run in runs)]
    return circular_runs(series, branch, equilibration, confidence, unit, time_unit,
                         ordered=[run.ordered for run in runs])


def _of_source(answer: Estimate, source: DescribedSource, field: str | None, coords: Mapping[str, Any] | None) -> Estimate:
    """The estimate with what its source knows: where it comes from, names and coordinates of its axes."""
    answer = with_origin(answer, origin_of(source)).noting(caveat_of(source))
    return with_labels(answer, source.labels, field) if coords is None else _with_coords(answer, coords)


def caveat_of(source: DescribedSource) -> str:
    """What is to be said with averages of a source; of snapshots in no order at least that."""
    return source.caveat or ("" if source.ordered else NOTE)


def check_confidence(confidence: float) -> None:
    """Refuse what is no share of intervals that cover."""
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is a number between 0 and 1, 0.95 for 95 %; got {confidence!r}")


def _weighted(source: object, weights: ArrayLike | str | None, log_weights: ArrayLike | None) -> DescribedSource:
    """The source, an array with its weights."""
    if isinstance(weights, str):
        return weighted_by(as_source(source), weights, log_weights)
    if weights is not None or log_weights is not None:
        if isinstance(source, SnapshotSource):
            raise InputError("weights= and log_weights= go with an array; a source carries its own weights")
        return ArraySource.of(source, weights=weights, log_weights=log_weights)
    return as_source(source)


def _with_gaps(source: DescribedSource, map: Map | None, only: str | None, equilibration: Equilibrate, confidence: float,
               unit: str, engine: Engine | None, progress: Progress) -> Estimate:
    """The average of what is there: of series by weights of zero, of arrays number by number about their means."""
    if isinstance(source, ReplicaSet):
        each = [_with_gaps(run, map, only, equilibration, confidence, unit, engine, progress) for run in source.runs]
        return each[0] if len(each) == 1 else pooled(each, confidence)
    if only is None or source.fields[only].shape != ():
        if source.access == "once":
            raise ReadOnceError(f'{kind_of(source)} can be read only once, and missing="drop" reads arrays twice; ingest '
                                "it into a store")
        present = Present(only, map)
        read = reduce(source, {"sum": (Departure(present), Moments()), "share": (present, Moments())}, engine=engine)
        share = np.asarray(read["share"].mean)
        if share.shape != ():
            return _array_with_gaps(source, present, read["sum"].mean, share, equilibration, confidence, unit, engine, progress)
    (run,) = _read(source, map, only, engine, progress)
    _scalar_series(run)
    return _doubted(estimate_of(run, VALUES, equilibration=equilibration, confidence=confidence, unit=unit, missing="drop"))


def _array_with_gaps(source: DescribedSource, present: Present, sums: ArrayLike, share: np.ndarray, equilibration: Equilibrate,
                     confidence: float, unit: str, engine: Engine | None, progress: Progress) -> Estimate:
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.asarray(sums) / share
    shift = average(source, map=Departure(present, mean, share), equilibration=equilibration, confidence=confidence,
                    engine=engine, progress=progress, unit=unit)
    if shift.n_discarded:       # about the means of what is kept
        rest = _array_with_gaps_of(source.window(shift.n_discarded), present, confidence, unit, engine, progress)
        return replace(rest, n_discarded=shift.n_discarded, equilibration_time=shift.equilibration_time, times=shift.times)
    never = share == 0
    hide = np.where(never, np.nan, 0.0)
    low, high = shift.interval
    gone = int((share < 1).sum())
    said = [shift.verdict] if shift.verdict else []
    if gone:
        said.append(f"{gone} of {share.size} elements are missing in some snapshots"
                    + (f", {int(never.sum())} in all" if never.any() else "") + "; they keep their places in time")
    return replace(shift, mean=mean + shift.mean + hide, stderr=shift.stderr + hide,
                   interval=(low + mean + hide, high + mean + hide), n_eff=shift.n_eff * share + hide,
                   converged=shift.converged and not never.any(), verdict="; ".join(said))


def _array_with_gaps_of(source: DescribedSource, present: Present, confidence: float, unit: str, engine: Engine | None,
                        progress: Progress) -> Estimate:
    read = reduce(source, {"sum": (Departure(present), Moments()), "share": (present, Moments())}, engine=engine)
    return _array_with_gaps(source, present, read["sum"].mean, np.asarray(read["share"].mean), None, confidence, unit, engine,
                            progress)


def _branch(source: DescribedSource, only: str | None, map: Map | None, period: float | None) -> tuple[float, float] | None:
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
    return estimate.with_doubt(seam_in_words(branch, f"Where it is one, period={period_in_words(branch)} averages it on "
                                             "the circle; where it is none, its unit= says so"))


def _scalar_series(run: RunStates) -> np.ndarray:
    (first,) = run.reducers(VALUES)[0]
    assert isinstance(first, Observed)
    if first.item != ():
        raise InputError("period= goes with one number a snapshot; average angles one by one, or their cosines and sines")
    return _columns(run, VALUES)


def _read(source: DescribedSource, map: Map | None, only: str | None, engine: Engine | None,
          progress: Progress) -> list[RunStates]:
    parts = source.runs if isinstance(source, ReplicaSet) else (source,)
    held = [run for run in parts if isinstance(run, ArraySource)]
    if map is None and only is not None and source.fields[only].shape == () and len(held) == len(parts):
        return [_in_memory(k, run, only) for k, run in enumerate(held)]       # the series are there already
    fields = None if only is None else [only]
    size = source.fields[only].size if only is not None and map is None else 1
    keep = int(np.clip(STATE_BYTES // (size * 8 * 24), 2, 64))
    runs = partials(source, {VALUES: (map if map is not None else only, Observed())}, fields=fields, engine=engine,
                    progress=progress, keep=keep)
    if not runs:
        raise StatisticsError("the source has no snapshots; there is nothing to average")
    return runs


def _in_memory(number: int, source: ArraySource, name: str) -> RunStates:
    values = as_array(source.arrays[name], f"field {name!r}")
    observed = Observed()
    observed.item = ()
    check_real(values)
    observed.parts = [values]
    return RunStates(number, len(values), (0,), ({VALUES: [observed]},), source.times, source.weights, source.time_unit,
                     ordered=source.ordered)


def estimate_of(run: RunStates, name: str, *, equilibration: Equilibrate = "auto", confidence: float = 0.95, unit: str = "",
                shown: bool = True, compact: bool = False, missing: Missing = "raise") -> Estimate:
    """The Estimate of one of many averages that were read together, of one run.

    Arguments:
        run: as it was read, with a branch ``name: (map, Observed(), ...)``.
        shown: False for the mean of an array of which only functions are shown: its elements are not doubted.
        compact: of ``Observed("nonzero")``: only its :func:`~ensemblekit.averaging.observed.places_of`, and last an element
            that is always 0.
        missing: "drop" leaves out snapshots that are NaN; the branch is ``Observed(missing="drop")`` then.
    """
    run = with_checked_clock(run)
    times = run.times
    alike = times is not None and len(times) > 1 and times[-1] == times[0]
    if alike:
        run = replace(run, times=None)
    first = run.reducers(name)[0][0]
    assert isinstance(first, Observed)
    values = _columns(run, name)
    if first.item == ():
        answer = _scalar_estimate(values, run, equilibration, confidence, unit, missing)
    else:
        answer = _array_estimate(run, name, values, equilibration, confidence, unit, shown, compact)
    return answer.noting("all times are the same, so snapshots are counted" if alike else
                         uneven_steps(run.times) if run.weights is None else "")


def with_checked_clock(run: RunStates) -> RunStates:
    """The run, its times seen to rise and its weights over a power of two."""
    return replace(run, times=None if run.times is None else check_times(run.times, run.n),
                   weights=None if run.weights is None else scaled(run.weights)[0])


def _columns(run: RunStates, name: str) -> np.ndarray:
    """(n,) of a scalar, (n, 4) summaries of an array."""
    return np.concatenate([observed.series() for observed in _observed(run, name)])


def _observed(run: RunStates, name: str) -> list[Observed]:
    return [first for first, *_ in run.reducers(name) if isinstance(first, Observed)]


def _scalar_estimate(values: np.ndarray, run: RunStates, equilibration: Equilibrate, confidence: float, unit: str,
                     missing: Missing) -> Estimate:
    if missing != "drop":
        return scalar_estimate(values, run.weights, run.times, equilibration, confidence, unit, time_unit=run.time_unit,
                               ordered=run.ordered)
    filled, shares, there = without_gaps(values, run.weights)
    estimate = scalar_estimate(filled, shares, run.times, equilibration, confidence, unit, time_unit=run.time_unit,
                               ordered=run.ordered)
    return with_gaps_noted(estimate, values, there)


def _array_estimate(run: RunStates, name: str, columns: np.ndarray, equilibration: Equilibrate, confidence: float, unit: str,
                    shown: bool, compact: bool) -> Estimate:
    """columns: the summaries (n, 4). shown, compact: as in :func:`estimate_of`."""
    there = ~np.isnan(columns[:, 0])
    gaps = _observed(run, name)[0].missing == "drop" and not there.all() and there.any()
    if gaps:
        weights = there.astype(np.float64) if run.weights is None else np.where(there, run.weights, 0.0)
        columns = np.where(there[:, None], columns, columns[there].mean(axis=0))
        run = replace(run, weights=weights)
    kept = run.after(equilibration, columns, values=columns)
    states = _observed(kept, name)
    item = states[0].item or ()
    facts: dict[str, Any] = {**kept.facts, "times": run.times, "confidence": confidence, "unit": unit}
    most = kish(kept.weights, kept.n)
    parts: list[dict[str, np.ndarray]] = []
    for some in elements_of(states, kept.n / most):
        if some.blocks.n < 4:
            parts.append({"mean": ldexp(some.blocks.mean, some.exponent)})
            continue
        parts.append(_of_elements(some, most, confidence, kept.ordered))

    def whole(fact: str) -> np.ndarray:
        flat = np.concatenate([part.pop(fact) for part in parts]) if len(parts) > 1 else parts[0].pop(fact)
        if states[0].keeps != "nonzero":
            return flat.reshape(item)
        return flat if compact else in_places(flat, places_of(states), item)

    mean = whole("mean")
    if kept.n < 4:
        return Estimate.of(mean, refused=f"{kept.n} snapshots: an error needs at least 4", **facts)
    stderr = whole("stderr")
    answer = Estimate.of(mean, stderr, whole("dof"), interval=(whole("low"), whole("high")), n_eff=whole("n_eff"), g=whole("g"),
                         dt=spacing(run.times), doubts=kept.doubts,
                         estimators={"blocking" if run.ordered else "independent": stderr}, **facts)
    answer = answer.judged(size=math.prod(item)) if shown else answer
    return with_gaps_noted(answer, None, there) if gaps else answer


def _of_elements(some: Elements, most: float, confidence: float, ordered: bool) -> dict[str, np.ndarray]:
    """Mean, error and the rest of some elements of an array; `most`: snapshots of equal weight that they are worth."""
    blocks, variance, e = some.blocks, some.variance, some.exponent
    mean, block = np.asarray(blocks.mean), blocks.chosen() if ordered else blocks.of_independent(most)
    with np.errstate(invalid="ignore", divide="ignore"):
        still = np.asarray(blocks.variances[0]) <= (16 * np.finfo(float).eps * np.abs(mean)) ** 2
        n_eff = np.where(still, np.nan, np.minimum(variance / block.stderr**2, most) if ordered else most)
        g = np.where(still, np.nan, block.g)
    stderr = np.where(still, 0.0, block.stderr)
    low, high = student_interval(mean, stderr, block.dof, confidence)
    return {"mean": ldexp(mean, e), "stderr": ldexp(stderr, e), "low": ldexp(low, e), "high": ldexp(high, e),
            "n_eff": n_eff, "g": g, "dof": block.dof}


def _only_field(source: DescribedSource, map: Map | None) -> str | None:
    """The field to average, or None where a map looks at all of them."""
    if map is not None:
        return None
    if len(source.fields) != 1:
        raise InputError(f"the source has the fields {sorted(source.fields)}; average one of them (a store: "
                         "store[\"name\"]), or pass map=, a function of a block")
    return next(iter(source.fields))


def with_labels(answer: Estimate, labels: Labels | None, field: str | None) -> Estimate:
    """The estimate with the labels of its source: names and coordinates of the axes of a field, and the epoch of the times.

    Arguments:
        field: whose average it is; None for that of a map, whose axes have no names.
    """
    if labels is None:
        return answer
    one = labels.only([field] if field is not None else [])
    dims = one.dims.get(field or "", ())
    if len(dims) != np.ndim(answer.mean):
        return replace(answer, labels=replace(one, dims={}, coords={}))
    if field is not None:
        one = one.renamed(field, "mean")
    coords = {}
    for name in dims:
        along = one.coords.get(name)
        if along is None or along.dims != (name,):
            break
        coords[name] = (along.values, along.unit)
    return replace(answer, labels=replace(one, coords=one.along(dims)), coords=coords or answer.coords)


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
