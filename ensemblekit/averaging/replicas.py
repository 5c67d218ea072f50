"""Is the average over time the average over the ensemble? Independent runs against each other and over time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.consensus import Consensus, consensus
from ensemblekit.averaging.diagnostics import MIN_DRAWS, ess, rhat, single_run_ess
from ensemblekit.averaging.repeated import repeated
from ensemblekit.averaging.run import Map, reduce
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Serial
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two, scaled
from ensemblekit.source import ArraySource, Block, ReplicaSet, SnapshotSource, as_source

Verdict = Literal["ergodic within error", "not ergodic", "cannot say"]

MIN_N_EFF = 10.0
"""Independent snapshots a run must hold before its own error bar is believed: below, sd/√n_eff is itself off by a
quarter and correlation times are underestimated."""
MAX_RHAT = 1.1
"""Above it the halves of the runs differ visibly, whether or not the runs are long enough to prove it."""


class Run(NamedTuple):
    """One observable along one run: values, weights (or None) and times, each (n,)."""

    values: np.ndarray
    weights: np.ndarray | None
    times: np.ndarray


class TimeAverage(NamedTuple):
    """The average of one run with the error its own correlation gives it."""

    mean: float
    stderr: float
    n_eff: float


class Comparison(NamedTuple):
    """One comparison: its statistic, its degrees of freedom and how often chance alone gives as much."""

    statistic: float
    dof: tuple[float, ...]
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FluctuationMetric(Result):
    """Thirumalai & Mountain's Ω(t): how far the running averages of the runs are from each other."""

    times: np.ndarray
    """Shape (p,), time since the start, spaced evenly in its logarithm."""
    omega: np.ndarray
    """Shape (p,), Ω(t) = mean over runs of (f̄_run(t) - f̄(t))²; unit of the observable squared."""
    exponent: float
    """Slope of log Ω against log t past the correlation time: -1 for ergodic runs, 0 for runs that never mix."""
    exponent_stderr: float
    """By the jackknife over runs; NaN for fewer than 3."""
    rate: float
    """D in Ω(0)/Ω(t) = D t, by least squares past the correlation time; 1/time. About 1/(2 τ_int)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ergodicity(Result):
    """Whether independent runs say the same as each other, over time and at one time; print it to read it."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why, in sentences."""
    means: np.ndarray
    """Shape (k,), time average of each run."""
    stderrs: np.ndarray
    """Shape (k,), from the correlation within each run."""
    n_eff: np.ndarray
    """Shape (k,), independent snapshots of each run."""
    lengths: tuple[int, ...]
    """Snapshots of each run."""
    within: float
    """Variance of the snapshots within runs, pooled; unit squared."""
    between: float
    """Variance of the time averages; within/n_eff on average where runs are ergodic. NaN for one run."""
    consensus: Consensus | None
    """Random-effects mean and the dark standard deviation between runs; None for one run or runs that never move."""
    rhat: float
    """Rank-normalised split R-hat of the last min(lengths) snapshots of every run; NaN for one value throughout."""
    ess_bulk: float
    ess_tail: float
    metric: FluctuationMetric | None
    """Ω(t); None for one run."""
    breaking: float
    """Ergodicity-breaking parameter: variance of the time averages over their squared mean. NaN for one run."""
    tests: dict[str, Comparison]
    """"place" and "spread" (Welch's test of the runs' means and of their distances from the median), "drift" (second
    against first halves, paired), "ensemble" (against the ensemble given)."""
    confidence: float
    unit: str

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        lines = [f"{self.verdict}: {'; '.join(self.reasons)}"]
        lines += [f"  run {k}: {mean:.6g} ± {error:.2g}{unit} (n_eff {count:.3g} of {n})" for k, (mean, error, count, n)
                  in enumerate(zip(self.means, self.stderrs, self.n_eff, self.lengths, strict=True))]
        if self.consensus is not None:
            c = self.consensus
            lines.append(f"  together: {c.mean:.6g}{unit}, {self.confidence:.0%} interval {c.interval[0]:.6g} to "
                         f"{c.interval[1]:.6g}; dark standard deviation {c.dark:.2g}{unit}")
        for name, test in self.tests.items():
            lines.append(f"  {name}: p = {test.p_value:.2g}")
        if self.metric is not None:
            lines.append(f"  rank R-hat {self.rhat:.3f}; ESS bulk {self.ess_bulk:.0f}, tail {self.ess_tail:.0f}; "
                         f"Ω(t) falls as t^{self.metric.exponent:.2f} (ergodic: -1)")
        return "\n".join(lines)


def ergodicity(replicas: object, *, map: Map | None = None, field: str | None = None,
               ensemble: ArrayLike | tuple[float, float] | None = None, confidence: float = 0.95) -> Ergodicity:
    """Compare independent runs of one thing: each with itself over time, with each other, and with an ensemble.

    Arguments:
        replicas: a ReplicaSet, a source of several runs, a list of runs (arrays or sources, of any lengths) or an
            array (runs, time). One real number a snapshot. Statistical weights of a source enter the time averages
            and their errors (ratio residual), not the ranks.
        map: block -> (n,), where snapshots are not scalars yet.
        field: the field to read, where the source has several.
        ensemble: independent snapshots at one time, an array (m,), or the pair (mean, standard error), to hold the
            time averages against.
        confidence: the tests together call ergodic runs "not ergodic" with a probability of 1 - confidence
            (Bonferroni: each is asked for its share; 7 % instead of 5 % where a run holds only 50 independent
            snapshots, as correlation times are then known badly).

    The verdict is "not ergodic" where a test says so; "cannot say" where runs hold fewer than 10 independent snapshots
    each, or there is one run, or R-hat is above 1.1 although no test objects; else "ergodic within error".

    Sources: Welch, Biometrika 38, 330 (1951); Vehtari et al., Bayesian Anal. 16, 667 (2021); Thirumalai & Mountain,
    Phys. Rev. A 42, 4574 (1990); He, Burov, Metzler & Barkai, Phys. Rev. Lett. 101, 058101 (2008).

    Raises:
        InputError: runs that are not real finite numbers, one a snapshot; a confidence outside (0, 1).
        StatisticsError: a run of fewer than 4 snapshots.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
    runs, unit = read_runs(replicas, map, field)
    runs, e = _scaled(runs)
    ensemble = ensemble if ensemble is None or not e else tuple(ldexp(x, -e) for x in ensemble) \
        if isinstance(ensemble, tuple) else ldexp(as_array(ensemble, "ensemble", dtype=np.float64), -e)
    averages = [time_average(run.values, run.weights) for run in runs]
    means = np.array([a.mean for a in averages])
    several = len(runs) > 1
    together = consensus(means, [a.stderr for a in averages], confidence=confidence) \
        if several and all(a.stderr > 0 for a in averages) else None
    tail = _last(runs)
    tests = _tests(runs, averages, together, ensemble)
    worst = rhat(tail) if np.ptp(tail) > 0 else float("nan")
    verdict, reasons = _judge(runs, averages, tests, together, worst, 1 - confidence, unit)
    freedom = sum(len(r.values) - 1 for r in runs)
    if e:
        reasons += ("squares of the values leave float64: within and between may stand as infinity or 0",)
        if together is not None:
            together = replace(together, mean=ldexp(together.mean, e), stderr=ldexp(together.stderr, e), dark=ldexp(
                together.dark, e), interval=(ldexp(together.interval[0], e), ldexp(together.interval[1], e)))
    return Ergodicity(
        verdict=verdict, reasons=reasons, means=ldexp(means, e), stderrs=ldexp(np.array([a.stderr for a in averages]), e),
        n_eff=np.array([a.n_eff for a in averages]), lengths=tuple(len(r.values) for r in runs),
        within=ldexp(sum(float(r.values.var(ddof=1)) * (len(r.values) - 1) for r in runs) / freedom, 2 * e),
        between=ldexp(float(means.var(ddof=1)), 2 * e) if several else float("nan"), consensus=together, rhat=worst,
        ess_bulk=ess(tail), ess_tail=ess(tail, "tail"), metric=fluctuation_metric(replicas, map=map, field=field)
        if several else None, breaking=_relative_variance(means) if several else float("nan"), tests=tests,
        confidence=confidence, unit=unit)


def fluctuation_metric(replicas: object, *, map: Map | None = None, field: str | None = None,
                       points: int = 60) -> FluctuationMetric:
    """Thirumalai–Mountain metric Ω(t) of at least two runs over the time that all of them cover.

    Arguments as :func:`ergodicity`; `points` is the largest number of times. Time counts snapshots
    where runs have none.
    """
    runs, e = _scaled(read_runs(replicas, map, field)[0])
    if len(runs) < 2:
        raise StatisticsError("Ω(t) compares running averages of at least two runs; got one")
    n = min(len(r.values) for r in runs)
    counts = np.unique(np.round(np.geomspace(1, n, points)).astype(int))
    shift = float(np.mean([r.values.mean() for r in runs]))        # cumulative sums of small numbers
    running = np.array([_running(r, n, shift)[counts - 1] for r in runs])
    times = runs[0].times[:n] - runs[0].times[0]
    step = times[-1] / (n - 1) if times[-1] > 0 else 1.0
    times = (times + step)[counts - 1]
    inefficiency = max(len(r.values) / time_average(r.values).n_eff for r in runs)
    past = counts >= min(2 * inefficiency, n / 8)
    omega = running.var(axis=0)
    slopes = [_slope(np.delete(running, k, axis=0).var(axis=0)[past], times[past]) for k in range(len(runs))]
    error = np.sqrt((len(runs) - 1) * np.var(slopes)) if len(runs) > 2 else float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        drop = omega[0] / omega[past]
    rate = float((drop * times[past]).sum() / (times[past] ** 2).sum())
    return FluctuationMetric(times=times, omega=ldexp(omega, 2 * e), exponent=_slope(omega[past], times[past]),
                             exponent_stderr=float(error), rate=rate)


def ergodicity_breaking(replicas: object, *, lag: int | None = None, map: Map | None = None,
                        field: str | None = None) -> float:
    """Ergodicity-breaking parameter EB = (⟨A²⟩ - ⟨A⟩²)/⟨A⟩² of a time average A over runs; 0 for long ergodic runs.

    A is the time average of the observable, or, with `lag` (in snapshots), its time-averaged squared displacement
    over that lag: 4 Δ/(3 T) for Brownian motion, 2 Γ(1+α)²/Γ(1+2α) - 1 at any length for walks that wait with an
    infinite mean time (He et al. 2008). Runs and errors as :func:`ergodicity`.
    """
    runs, _ = _scaled(read_runs(replicas, map, field)[0])
    if len(runs) < 2:
        raise StatisticsError("the ergodicity-breaking parameter compares at least two runs; got one")
    if lag is None:
        return _relative_variance(np.array([time_average(r.values, r.weights).mean for r in runs]))
    shortest = min(len(r.values) for r in runs)
    if not 1 <= lag < shortest:
        raise InputError(f"lag is a number of snapshots from 1 to {shortest - 1}, below the shortest run; got {lag!r}")
    return _relative_variance(np.array([np.mean((r.values[lag:] - r.values[:-lag]) ** 2) for r in runs]))


def time_average(values: np.ndarray, weights: np.ndarray | None = None) -> TimeAverage:
    """Mean over one run (n,) with the standard error that its correlation gives; Geyer's monotone sequence.

    With weights: that of the ratio, through the residual w (x - mean) / mean(w).
    """
    values, e = scaled(values)
    weights = None if weights is None else scaled(weights)[0]
    if e:
        small = time_average(values, weights)
        return TimeAverage(ldexp(small.mean, e), ldexp(small.stderr, e), small.n_eff)
    if weights is None:
        mean, spread, residual = float(values.mean()), float(values.var(ddof=1)), values
    else:
        if weights.sum() == 0:
            raise StatisticsError("all weights of a run are zero")
        share = weights / weights.sum()
        mean = float((share * values).sum())
        spread, residual = float((share * (values - mean) ** 2).sum()), weights * (values - mean) / weights.mean()
    if np.ptp(values) == 0:
        return TimeAverage(mean, 0.0, 1.0)
    variance = float(residual.var(ddof=1)) / single_run_ess(residual)
    return TimeAverage(mean, float(np.sqrt(variance)), spread / variance)


def read_runs(replicas: Any, map: Map | None = None, field: str | None = None) -> tuple[list[Run], str]:
    """The runs as one real number a snapshot, and their unit."""
    if not isinstance(replicas, SnapshotSource):
        if isinstance(replicas, np.ndarray):
            if replicas.ndim not in (1, 2):
                raise InputError(f"an array of runs is (runs, time); got shape {replicas.shape}. Name a map, or pass "
                                 "a list of runs")
            replicas = list(np.atleast_2d(replicas))
        replicas = ReplicaSet.of(replicas)
    source = as_source(replicas)
    name = field or next(iter(source.fields))
    runs = source.runs if isinstance(source, ReplicaSet) else (source,)
    held = [run for run in runs if type(run) is ArraySource]
    if map is None and name in source.fields and len(held) == len(runs):
        # in memory as they are: thousands of short runs need not be cut into pieces
        columns = [[run.arrays[name] for run in held],
                   [np.full(run.lengths, np.nan) if run.weights is None else run.weights.copy() for run in held],
                   [np.arange(run.lengths[0], dtype=np.float64) if run.times is None else run.times.astype(np.float64)
                    for run in held]]
    else:
        read = reduce(source, {"x": (map, Series()) if map is not None else (name, Series()),
                               "w": (_weights_of, Series()), "t": (_times_of, Series())}, engine=Serial())
        columns = [read[key] if isinstance(read[key], list) else [read[key]] for key in "xwt"]
    unit = source.fields[name].unit if map is None else ""
    return [_checked(k, *parts) for k, parts in enumerate(zip(*columns, strict=True))], unit


def _scaled(runs: list[Run]) -> tuple[list[Run], int]:
    """The runs over one power of two, and its exponent; weights over theirs."""
    e = power_of_two(np.array([np.abs(r.values).max() for r in runs]))
    return [r._replace(values=ldexp(r.values, -e), weights=None if r.weights is None else scaled(r.weights)[0])
            for r in runs], e


def _weights_of(block: Block) -> np.ndarray:
    return np.full(len(block), np.nan) if block.weights is None else np.asarray(block.weights)


def _times_of(block: Block) -> np.ndarray:
    return np.arange(block.start, block.start + len(block), dtype=np.float64) if block.times is None \
        else np.asarray(block.times, dtype=np.float64)


def _checked(k: int, values: ArrayLike, weights: np.ndarray, times: np.ndarray) -> Run:
    x = as_array(values, f"run {k}")
    if x.size != len(x) or x.dtype.kind not in "biuf":
        raise InputError(f"run {k} gives {x.dtype} {x.shape[1:]} a snapshot; ergodicity looks at one real number a "
                         "snapshot. Pass a map that returns (n,)")
    if len(x) < MIN_DRAWS:
        raise StatisticsError(f"run {k} has {len(x)} snapshots; at least {MIN_DRAWS} are needed")
    x = x.reshape(-1).astype(np.float64)
    if not np.isfinite(x).all():
        at = int(np.argmax(~np.isfinite(x)))
        raise InputError(f"snapshot {at} of run {k} is {x[at]}; leave out or mend what is not finite")
    return Run(x, None if np.isnan(weights).any() else weights, times)


def _last(runs: list[Run]) -> np.ndarray:
    """The last snapshots of every run, as many as the shortest has."""
    n = min(len(r.values) for r in runs)
    return np.array([r.values[-n:] for r in runs])


def _running(run: Run, n: int, shift: float) -> np.ndarray:
    w = np.ones(n) if run.weights is None else run.weights[:n]
    total = np.cumsum(w)
    return np.cumsum(w * (run.values[:n] - shift)) / np.where(total > 0, total, 1.0)


def _slope(omega: np.ndarray, times: np.ndarray) -> float:
    if (omega <= 0).any() or len(omega) < 2:
        return float("nan")
    x = np.log(times) - np.log(times).mean()
    return float((x * np.log(omega)).sum() / (x**2).sum())


def _relative_variance(averages: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(averages.var() / averages.mean() ** 2)


def _tests(runs: list[Run], averages: list[TimeAverage], together: Consensus | None,
           ensemble: ArrayLike | tuple[float, float] | None) -> dict[str, Comparison]:
    tests = {}
    if together is not None:
        tests["place"] = welch(averages)
        centre = float(np.median(np.concatenate([r.values for r in runs])))
        tests["spread"] = welch([time_average(abs(r.values - centre), r.weights) for r in runs])
        tests["drift"] = _drift(runs)
    if ensemble is not None:
        tests["ensemble"] = _against(ensemble, averages, together)
    return tests


def welch(averages: list[TimeAverage]) -> Comparison:
    """Welch's test that k means with unequal errors are equal; each error has n_eff - 1 degrees of freedom."""
    from scipy.special import fdtrc

    mean, stderr, n_eff = (np.array(column) for column in zip(*averages, strict=True))
    if (stderr == 0).any():
        same = np.ptp(mean) == 0
        return Comparison(0.0 if same else float("inf"), (len(mean) - 1.0, 1.0), 1.0 if same else 0.0)
    k = len(mean)
    w = 1 / stderr**2
    share = w / w.sum()
    lack = float(((1 - share) ** 2 / np.maximum(n_eff - 1, 1)).sum())
    scatter = float((w * (mean - (share * mean).sum()) ** 2).sum()) / (k - 1)
    statistic = scatter / (1 + 2 * (k - 2) / (k**2 - 1) * lack)
    dof = (k - 1.0, (k**2 - 1) / (3 * lack))
    return Comparison(statistic, dof, float(fdtrc(*dof, statistic)))


def _drift(runs: list[Run]) -> Comparison:
    """Student's paired test of the second halves against the first: a common drift, whatever else the runs do."""
    steps = []
    for run in runs:
        half = len(run.values) // 2
        first, second = slice(0, half), slice(half, None)
        if run.weights is not None and (run.weights[first].sum() == 0 or run.weights[second].sum() == 0):
            return Comparison(0.0, (len(runs) - 1.0,), 1.0)
        steps.append(np.average(run.values[second], weights=None if run.weights is None else run.weights[second])
                     - np.average(run.values[first], weights=None if run.weights is None else run.weights[first]))
    spread = float(np.std(steps, ddof=1))
    if spread == 0:
        same = steps[0] == 0
        return Comparison(0.0 if same else float("inf"), (len(runs) - 1.0,), 1.0 if same else 0.0)
    return _student(float(np.mean(steps)) / (spread / np.sqrt(len(steps))), len(steps) - 1.0)


def _against(ensemble: ArrayLike | tuple[float, float], averages: list[TimeAverage], together: Consensus | None) -> Comparison:
    """Student's test of the time average against an ensemble average, degrees of freedom by Welch–Satterthwaite."""
    if isinstance(ensemble, tuple):
        if len(ensemble) != 2 or not np.isfinite(ensemble).all() or ensemble[1] <= 0:
            raise InputError(f"an ensemble is an array of snapshots or (mean, standard error > 0); got {ensemble!r}")
        (value, error), dof = ensemble, float("inf")
    else:
        x = as_array(ensemble, "ensemble", dtype=np.float64)
        if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
            raise InputError(f"an ensemble is at least two finite numbers, shape (m,); got shape {x.shape}")
        value, error, dof = float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))), len(x) - 1.0
    mean, own, free = (averages[0].mean, averages[0].stderr, max(averages[0].n_eff - 1, 1.0)) if together is None \
        else (together.mean, together.stderr, len(averages) - 1.0)
    square = error**2 + own**2
    if square == 0:
        return Comparison(0.0, (dof,), 1.0) if value == mean else Comparison(float("inf"), (dof,), 0.0)
    return _student((mean - value) / np.sqrt(square), square**2 / (error**4 / dof + own**4 / free))


def _student(statistic: float, dof: float) -> Comparison:
    from scipy.special import stdtr

    return Comparison(statistic, (dof,), float(2 * stdtr(dof, -abs(statistic))))


SAYS = {
    "place": "the time averages of the {k} runs differ by more than their own errors",
    "spread": "the runs differ in how widely they fluctuate",
    "drift": "all runs drift: their second halves differ from their first ones",
    "ensemble": "the time average differs from the ensemble average",
}


def _judge(runs: list[Run], averages: list[TimeAverage], tests: dict[str, Comparison], together: Consensus | None,
           worst: float, alpha: float, unit: str) -> tuple[Verdict, tuple[str, ...]]:
    k = len(runs)
    frozen = [i for i, a in enumerate(averages) if a.stderr == 0]
    if frozen:
        if len({a.mean for a in averages}) == 1 and len(frozen) == k:
            return "cannot say", ("every snapshot of every run has the same value",)
        if k > 1:
            return "not ergodic", (f"run {frozen[0]} never leaves {averages[frozen[0]].mean:g}, the others do not "
                                   "stay there",)
    same = repeated([(run.values,) for run in runs])
    if same:
        return "cannot say", (f"runs {same[0][0]} and {same[0][1]} are the same numbers: copies are no replicas; give each run "
                              "once",)
    shortest = min(a.n_eff for a in averages)
    objections = tuple(f"{SAYS[name].format(k=k)} (p = {test.p_value:.2g})" for name, test in tests.items()
                       if test.p_value < alpha / len(tests))
    if shortest < MIN_N_EFF:
        reason = (f"the shortest run holds {shortest:.1f} independent snapshots; its error bar needs {MIN_N_EFF:g}. "
                  "Run longer",)
        return "cannot say", reason + objections
    if objections:
        dark = (f"standard deviation between runs {together.dark:.2g}{' ' + unit if unit else ''}",) if together else ()
        return "not ergodic", objections + dark
    if k == 1:
        return "cannot say", ("one run has nothing to be compared with; a run that is stuck looks converged to itself",)
    if worst > MAX_RHAT:
        return "cannot say", (f"rank R-hat is {worst:.2f}, above {MAX_RHAT:g}, although no test objects. Run longer",)
    return "ergodic within error", (f"{k} runs agree in place, spread and over time "
                                    f"(smallest p = {min(t.p_value for t in tests.values()):.2g})",)
