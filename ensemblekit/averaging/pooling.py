"""Independent runs as one answer: their means pooled with random effects, and whether they are runs of one distribution."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ensemblekit.averaging.band import Scale, with_band
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.estimate import Bounds, Estimate, bounded_interval, over_power_of_two, quantile
from ensemblekit.averaging.guard import matched
from ensemblekit.averaging.repeated import repeated
from ensemblekit.averaging.replicas import Ergodicity, ergodicity
from ensemblekit.averaging.seams import NO_DIRECTION, SEAM
from ensemblekit.averaging.spectral import FEWEST, SHARE
from ensemblekit.scaling import exponent_of, ldexp, power_of_two
from ensemblekit.source import ArraySource

RHAT = 1.01
"""R-hat below which runs are of one distribution (Vehtari et al. 2021)."""
MISSING = re.compile(r"\d+ of \d+ (snapshots are missing|elements are missing in some snapshots)")
"""What the verdict of a run says of its gaps."""


def doubt_of_runs(answer: Estimate, runs: Sequence[Estimate]) -> Estimate:
    """The estimate of several runs, with what makes one of angles doubtful whatever their number."""
    said = [run.verdict.split("; ")[0] for run in runs if run.verdict.startswith((SEAM, NO_DIRECTION))]
    return answer.with_doubt(said[0]) if said else answer


def pooled(runs: Sequence[Estimate], confidence: float) -> Estimate:
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
        return replace(answer, series=None, times=None).with_doubt(
            f"runs {pairs} are the same numbers: copies are no replicas, and are counted once")
    share = np.array([r.n for r in runs], dtype=float)
    share /= share.sum()
    means = np.array([np.asarray(r.mean, dtype=float) for r in runs])
    errors = np.array([np.asarray(r.stderr, dtype=float) for r in runs])
    n_effs = np.array([np.asarray(r.n_eff, dtype=float) for r in runs])
    e = exponent_of(np.fmax(np.abs(means), errors).max(axis=0, initial=0.0))
    means, errors = ldexp(means, -e), ldexp(errors, -e)
    dofs = np.array([np.broadcast_to(np.asarray(r.dof, dtype=float), errors[0].shape) for r in runs])
    share = share.reshape(-1, *[1] * (means.ndim - 1))
    series = _plain_series(runs) if means.ndim == 1 else None
    errors_of = _pooled_errors(means, errors, dofs, share, n_effs, series)
    n, stderr = sum(r.n for r in runs), errors_of.stderr
    with np.errstate(invalid="ignore", divide="ignore"):
        n_eff = np.minimum((share * (n_effs * errors**2)).sum(axis=0) / stderr**2, n)
    tau = np.mean([np.asarray(r.correlation_time, dtype=float) for r in runs], axis=0)
    vouched = bool(np.all(n_eff >= ENOUGH))
    few = () if vouched else (f"fewer than {ENOUGH:g} independent snapshots in all runs together",)
    answer = Estimate.of((share * means).sum(axis=0), stderr, errors_of.dof, n=n, n_eff=n_eff, confidence=confidence,
                         n_discarded=sum(r.n_discarded for r in runs), vouched=vouched,
                         equilibration_time=max(r.equilibration_time for r in runs), unit=runs[0].unit,
                         doubts=[*few, *_doubts_of(runs, errors_of.apart, series)], time_unit=runs[0].time_unit,
                         estimators={"within runs": np.sqrt(errors_of.within), "between runs": np.sqrt(errors_of.between)})
    return over_power_of_two(replace(answer, correlation_time=tau if np.ndim(tau) else float(tau)), e)


class _Errors(NamedTuple):
    """The error of a mean over runs, (*item,) each."""

    stderr: np.ndarray
    dof: np.ndarray
    within: np.ndarray
    """Squared error of the mean that the runs' own errors make."""
    between: np.ndarray
    """The same from the scatter of their means."""
    apart: np.ndarray
    """Whether the runs disagree beyond their own errors."""


def _pooled_errors(means: np.ndarray, errors: np.ndarray, dofs: np.ndarray, share: np.ndarray, n_eff: np.ndarray,
                   series: Sequence[np.ndarray] | None) -> _Errors:
    """Arrays (runs, *item): means with their errors and degrees of freedom, shares of the snapshots, independent ones."""
    count = len(means)
    mean = (share * means).sum(axis=0)
    parts = (share * errors) ** 2
    within = parts.sum(axis=0)
    between = (share**2 * (means - mean) ** 2).sum(axis=0) * count / (count - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        dof = np.where(within > 0, within**2 / (parts**2 / dofs).sum(axis=0), np.inf)
        precise = 1 / errors**2
        middle = (precise * means).sum(axis=0) / precise.sum(axis=0)
        scatter = (precise * (means - middle) ** 2).sum(axis=0)
        apart = _beyond_chance(scatter, precise, n_eff)
    if apart.any() and series is not None:
        apart &= _exchange_tells(series)
    unknown = ~np.isfinite(within)
    stderr = np.sqrt(np.where(apart | unknown, between, within))
    half = np.fmax(quantile(0.95, dof) * np.sqrt(within), quantile(0.95, count - 1) * np.sqrt(between))
    with np.errstate(invalid="ignore", divide="ignore"):
        error, freedom = matched(stderr, half, fewest=1.0)
    stderr = np.where(half > 0, error, stderr)
    return _Errors(stderr, np.where(half > 0, freedom, count - 1), within, between, apart)


def _doubts_of(runs: Sequence[Estimate], apart: np.ndarray, series: Sequence[np.ndarray] | None) -> list[str]:
    """What is to be said of several runs together."""
    doubts = []
    if np.any(apart):
        where = "" if apart.ndim == 0 else f" in {int(apart.sum())} of {apart.size} elements"
        doubts.append(f"the {len(runs)} runs disagree beyond their own errors{where}; the error is the scatter between them")
    mixing = _mixing(series) if series is not None else ""
    if mixing:      # said, not refused: the longer bar covers what lies between, and those that show it least would be left
        doubts.append(mixing)
    doubts += dict.fromkeys(words for run in runs for words in run.verdict.split("; ")
                            if words.startswith("steps of time differ"))
    return doubts + [f"run {k}: {gap[0]}" for k, run in enumerate(runs) if (gap := MISSING.search(run.verdict))]


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

    between, chance = between_by_chance(series, inefficiency_within(series), DRAWS)
    return bool(np.count_nonzero(chance >= between) < 0.01 * DRAWS)


def _mixing(series: Sequence[np.ndarray]) -> str:
    """What R-hat has to say of several runs; "" where it is near 1, or no more than short equal runs show."""
    from ensemblekit.averaging.diagnostics import rhat, rhat_limit

    n = min(map(len, series))
    tail = np.array([x[-n:] for x in series])
    r_hat = rhat(tail)
    if r_hat <= RHAT or r_hat <= rhat_limit(tail):
        return ""
    return f"R-hat is {r_hat:.3f}, more than short equal runs show: the runs are not of one distribution yet"


def pooled_with_further(runs: Sequence[Estimate], confidence: float, bounds: Mapping[str, tuple[float, float | None]],
                        periods: Mapping[str, float], scales: Mapping[str, Scale] | None = None, name: str = "") -> Estimate:
    """Replicas of one quantity, and of what comes with it: variance within and between runs, the verdict on ergodicity.

    Arguments:
        bounds, periods, scales: of the quantities that have some, by name; "" is the first one.
        name: of this quantity.
    """
    period, ends = periods.get(name), bounds.get(name)
    if period is not None:
        runs = [near_by_periods(run, period, runs[0].mean) for run in runs]
    answer = doubt_of_runs(pooled(runs, confidence), runs)
    holes = [f"run {k}: {run.verdict}" for k, run in enumerate(runs) if not np.isfinite(run.mean).all()]
    if holes:
        answer = answer.with_doubt("; ".join(holes))
    if ends is not None:
        answer = replace(answer, interval=bounded_interval(answer.mean, answer.interval, ends))
    answer = with_common_band(answer, runs, (scales or {}).get(name, ""), ends)
    verdict = _ergodicity(runs, confidence) if np.ndim(answer.mean) == 0 else None
    further = {key: pooled_with_further([run.derived[key] for run in runs], confidence, bounds, periods, scales, key)
               for key in runs[0].derived}
    if period is not None:
        answer = near_by_periods(answer, period, 0.0)
    return replace(answer, coords=dict(runs[0].coords), runs=tuple(runs), ergodicity=verdict, derived=further)


def with_common_band(answer: Estimate, runs: Sequence[Estimate], scale: Scale, ends: Bounds | None = None) -> Estimate:
    """The estimate of several runs with a band, as many standard errors wide as theirs are on average."""
    known = [run.critical_value for run in runs if run.band is not None]
    return with_band(answer, float(np.mean(known)), scale, ends) if known else answer


def _ergodicity(runs: Sequence[Estimate], confidence: float) -> Ergodicity | None:
    """Of runs that have their series, all finite and not too short."""
    kept = []
    for run in runs:
        if run.series is None or run.n < 4 or not np.isfinite(run.series).all():
            return None
        kept.append(ArraySource.of(run.series[run.n_discarded:], unit=run.unit, time_unit=run.time_unit,
                                   times=None if run.times is None else run.times[run.n_discarded:]))
    return ergodicity(kept, confidence=confidence)


def near_by_periods(estimate: Estimate, period: float, towards: float | np.ndarray) -> Estimate:
    """The estimate moved by whole periods as near to `towards` as can be: interval and series go along.

    Each value of a series is moved on its own, so that it lies within half a period of the mean.
    """
    mean = np.asarray(estimate.mean, np.float64)
    turns = np.nan_to_num(period * np.rint((mean - towards) / period))
    moved = mean - turns
    series = estimate.series
    if series is not None:
        series = series - period * np.rint((series - moved) / period)
    low, high = estimate.low - turns, estimate.high - turns
    if mean.ndim == 0:
        return replace(estimate, mean=float(moved), interval=(float(low), float(high)), series=series)
    return replace(estimate, mean=moved, interval=(low, high), series=series)
