"""One value from several results that may disagree beyond their error bars: random effects, or "dark" uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two

DarkMethod = Literal["reml", "ml", "dl"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Consensus(Result):
    """What several independent results say together when each may be off by more than its own error bar."""

    mean: float
    """Σ w T / Σ w with w = 1/(σ² + y²)."""
    stderr: float
    """Knapp–Hartung: sqrt(max(1, q) / Σ w) with q = Σ w (T - mean)² / (k - 1)."""
    interval: tuple[float, float]
    """Student-t with k - 1 degrees of freedom at `confidence`."""
    confidence: float
    dark: float
    """y: standard deviation between the results that their own error bars do not explain; in their unit."""
    weights: np.ndarray
    """Shape (k,), they sum to one."""
    q: float
    """Cochran's Σ (T - T̄)²/σ²; k - 1 on average where y = 0."""
    method: DarkMethod


def consensus(means: ArrayLike, stderrs: ArrayLike, *, method: DarkMethod = "reml", confidence: float = 0.95) -> Consensus:
    """Random-effects mean of k independent results T ± σ with the variance y² between them.

    Arguments:
        means, stderrs: (k,), k at least 2; standard errors above zero.
        method: how y² is found: "reml" (restricted likelihood, nearly unbiased), "ml" (likelihood, too small for few
            results) or "dl" (DerSimonian & Laird 1986, moments, closed form).

    Sources: DerSimonian & Laird, Control. Clin. Trials 7, 177 (1986); Viechtbauer, J. Educ. Behav. Stat. 30, 261
    (2005) for ML and REML; Knapp & Hartung, Stat. Med. 22, 2693 (2003) for the standard error, never taken below the
    one of the model (q < 1 is luck); the name "dark
    uncertainty" is Thompson & Ellison's (Accred. Qual. Assur. 16, 483, 2011).

    Raises:
        InputError: fewer than two results, shapes that differ, a value or error that is not finite, an error of zero.
    """
    from scipy.special import stdtrit

    t, s = _checked(means, stderrs)
    e = power_of_two(max(float(s.max()), float(np.ptp(t))))
    if e:
        small = consensus(ldexp(t, -e), ldexp(s, -e), method=method, confidence=confidence)
        return replace(small, mean=ldexp(small.mean, e), stderr=ldexp(small.stderr, e), dark=ldexp(small.dark, e),
                       interval=(ldexp(small.interval[0], e), ldexp(small.interval[1], e)))
    s2 = s**2
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
    y2 = between_variance(t, s2, method)
    w = 1 / (s2 + y2)
    mean = float((w * t).sum() / w.sum())
    k = len(t)
    scatter = float((w * (t - mean) ** 2).sum()) / (k - 1)
    stderr = float(np.sqrt(max(1.0, scatter) / w.sum()))
    half = float(stdtrit(k - 1, 0.5 + confidence / 2)) * stderr
    return Consensus(mean=mean, stderr=stderr, interval=(mean - half, mean + half), confidence=confidence,
                     dark=float(np.sqrt(y2)), weights=w / w.sum(), q=_cochran(t, s2), method=method)


def between_variance(t: np.ndarray, s2: np.ndarray, method: DarkMethod) -> float:
    """y² ≥ 0 from results t (k,) with variances s2 (k,)."""
    if method == "dl":
        w = 1 / s2
        spare = w.sum() - (w**2).sum() / w.sum()
        return max(0.0, (_cochran(t, s2) - (len(t) - 1)) / spare)
    if method not in ("ml", "reml"):
        raise InputError(f'method is "reml", "ml" or "dl"; got {method!r}')
    # no likelihood has its maximum above the plain spread of the results
    return _maximum(lambda y2: _log_likelihood(t, s2, y2, method == "reml"), 2 * float(((t - t.mean()) ** 2).sum()))


def _log_likelihood(t: np.ndarray, s2: np.ndarray, y2: float, restricted: bool) -> float:
    w = 1 / (s2 + y2)
    mean = (w * t).sum() / w.sum()
    value = np.log(w).sum() - (w * (t - mean) ** 2).sum()
    return float(value - np.log(w.sum()) if restricted else value) / 2


def _maximum(function: Callable[[float], float], upper: float) -> float:
    """Where a smooth function on [0, upper] is largest: a grid in orders of magnitude, then a bounded search.

    The likelihood of y² may have two maxima; a search from one start could stay on the lower one.
    """
    from scipy.optimize import minimize_scalar

    if upper == 0:
        return 0.0
    grid = np.concatenate([[0.0], upper * np.logspace(-12, 0, 121)])
    values = [function(y2) for y2 in grid]
    best = int(np.argmax(values))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    optimum = minimize_scalar(lambda y2: -function(y2), bounds=(low, high), method="bounded",
                              options={"xatol": 1e-10 * float(high)})
    return float(optimum.x) if -optimum.fun > values[best] else float(grid[best])


def _cochran(t: np.ndarray, s2: np.ndarray) -> float:
    w = 1 / s2
    return float((w * (t - (w * t).sum() / w.sum()) ** 2).sum())


def _checked(means: ArrayLike, stderrs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    t, s = as_array(means, "means", dtype=np.float64), as_array(stderrs, "stderrs", dtype=np.float64)
    if t.ndim != 1 or len(t) < 2 or s.shape != t.shape:
        raise InputError(f"a consensus takes k ≥ 2 results and as many standard errors; got {t.shape} and {s.shape}")
    if not (np.isfinite(t).all() and np.isfinite(s).all()):
        raise InputError("means and standard errors must be finite; leave out the runs that have none")
    if (s <= 0).any():
        raise InputError(f"standard errors are above zero; number {int(np.argmax(s <= 0))} is {s[s <= 0][0]:g}")
    return t, s
