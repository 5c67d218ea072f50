"""Independent runs as one answer: their means pooled with random effects, and whether they are runs of one distribution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ensemblekit.averaging.doubts import ENOUGH, with_doubt
from ensemblekit.averaging.estimate import Estimate, over_power_of_two, quantile, student_interval
from ensemblekit.averaging.guard import matched
from ensemblekit.averaging.repeated import repeated
from ensemblekit.averaging.seams import NO_DIRECTION, SEAM
from ensemblekit.averaging.spectral import FEWEST, SHARE
from ensemblekit.scaling import exponent_of, ldexp, power_of_two

RHAT = 1.01
"""R-hat below which runs are of one distribution (Vehtari et al. 2021)."""
MISSING = re.compile(r"\d+ of \d+ (snapshots are missing|elements are missing in some snapshots)")
"""What the verdict of a run says of its gaps."""


def doubt_of_runs(answer: Estimate, runs: Sequence[Estimate]) -> Estimate:
    """The estimate of several runs, with what makes one of angles doubtful whatever their number."""
    said = [run.verdict.split("; ")[0] for run in runs if run.verdict.startswith((SEAM, NO_DIRECTION))]
    return with_doubt(answer, said[0]) if said else answer


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
