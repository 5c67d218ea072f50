"""Weights of a mixture of predictive distributions that make what was seen most likely: stacking (Yao et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result

GAP = 1e-9
"""Nats an item that may be missed at most."""
STEPS = 200
"""Newton steps; some ten are needed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture(Result):
    """The most likely mixture."""

    weights: np.ndarray
    """(M,), not below 0 and 1 in sum; members that are copies share equally."""
    gap: float
    """No other weights are better by more, in nats an item."""
    loglik: float
    """Log-likelihood of the items under the mixture, in nats, without the prior."""


def mixture_weights(likelihoods: ArrayLike, *, prior: float = 0.0) -> Mixture:
    """Weights w on the simplex that maximise Σ_i log Σ_m w_m p_mi + prior · mean_m log w_m.

    The problem is concave. With w free in sum, Σ_i log(Σ_m w_m p_mi)/n - Σ_m w_m has the same optimum: Newton steps, each a
    least-squares problem in w >= 0. Expectation-maximisation is far slower near its end.

    Arguments:
        likelihoods: (M, n) not below 0: what member m gave to what happened at item i, as the probability of the label. Each
            item may have its own scale.
        prior: weight of a Dirichlet prior towards equal weights, in items; 0 is maximum likelihood.

    Yao, Vehtari, Simpson & Gelman, Bayesian Analysis 13, 917 (2018).

    Raises:
        InputError: likelihoods that are no finite numbers in two axes, below 0, or 0 of every member at some item; a prior
        below 0.
        StatisticsError: where weights within 1e-9 nats an item of the best were not found.
    """
    p = as_array(likelihoods, "likelihoods")
    if p.ndim != 2 or 0 in p.shape or p.dtype.kind not in "biuf":
        raise InputError(f"likelihoods are real numbers, (members, items); got {p.dtype} {p.shape}")
    if not (np.isfinite(prior) and prior >= 0):
        raise InputError(f"a prior is a number of items, 0 or more; got {prior!r}")
    p = p.astype(np.float64)
    bad = ~np.isfinite(p) | (p < 0)
    if bad.any():
        member, item = np.argwhere(bad)[0]
        raise InputError(f"likelihoods are finite and not below 0; that of item {item} in member {member} is {p[member, item]}")
    most = p.max(axis=0)
    if not (most > 0).all():
        raise InputError(f"every member gives item {int(np.argmin(most > 0))} the likelihood 0; no weights can mend that")
    rows, inverse, copies = np.unique(p / most, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    _n, strength = p.shape[1], prior / p.shape[1]
    held = strength * copies / len(p)
    w = copies / len(p)
    if len(rows) > 1:
        w = _maximised(np.ascontiguousarray(rows.T), w, held)
    gap = max(float(_slope(rows.T, w, held).max()) - 1 - strength, 0.0)
    if not gap <= GAP:
        raise StatisticsError(f"the mixture's weights are up to {gap:.2g} nats an item from the best, above {GAP:g}. Are some "
                              "likelihoods 0 but for rounding? Raise them to the least that a member can mean")
    weights = (w / copies)[inverse]
    return Mixture(weights=weights / weights.sum(), gap=gap, loglik=float(np.log(w @ rows).sum() + np.log(most).sum()))


def _slope(p: np.ndarray, w: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(M,): of the objective an item; p (n, M)."""
    slope = p.T @ (1 / (p @ w)) / len(p)
    return slope + np.divide(held, w, out=np.zeros_like(w), where=held > 0)


def _maximised(p: np.ndarray, w: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(M,), 1 in sum."""
    strength = float(held.sum())
    best, least = w, np.inf
    for _ in range(STEPS):
        slope = _slope(p, w, held)
        gap = float(slope.max()) - 1 - strength
        if gap < least:
            best, least = w, gap
        if gap <= 1e-12:
            break
        a = p / (p @ w)[:, None]
        hessian = a.T @ a / len(p)
        if strength:
            hessian[np.diag_indices(len(w))] += held / w**2
        step = _newton(hessian, slope - 1 - strength, w, inside=bool(strength))
        moved = _moved(p, w, step, held, slope - 1 - strength)
        if moved is w:
            break
        # on the simplex at the optimum; nearer to it here, as the objective is largest along the ray there
        w = moved / moved.sum()
    return best


def _newton(hessian: np.ndarray, uphill: np.ndarray, w: np.ndarray, inside: bool) -> np.ndarray:
    """The step to the top of the quadratic model within w >= 0; with a prior just below that edge, which it keeps off."""
    ridge = 1e-13 * float(np.trace(hessian))
    for _ in range(40):         # columns that are combinations of others: a proximal step, with the same fixed point
        damped = hessian + ridge * np.eye(len(w))
        try:
            factor = np.linalg.cholesky(damped)
        except np.linalg.LinAlgError:
            ridge *= 10
            continue
        if inside:
            step = np.linalg.solve(factor.T, np.linalg.solve(factor, uphill))
            falling = step < 0
            most = float((-w[falling] / step[falling]).min()) if falling.any() else np.inf
            return step * min(1.0, 0.95 * most)
        from scipy.optimize import nnls

        target = factor.T @ w + np.linalg.solve(factor, uphill)
        return nnls(factor.T, target, maxiter=100 * len(w))[0] - w
    raise StatisticsError("the mixture's curvature is not a number; are the likelihoods of very different size?")


def _moved(p: np.ndarray, w: np.ndarray, step: np.ndarray, held: np.ndarray, uphill: np.ndarray) -> np.ndarray:
    """As far along the step as the objective rises as it should."""
    rise = float(uphill @ step)
    strength = float(held.sum())

    def objective(v: np.ndarray) -> float:
        q = p @ v
        if not (q > 0).all() or (strength and not (v > 0).all()):
            return -np.inf
        return float(np.log(q).mean()) - (1 + strength) * float(v.sum()) + (float(held @ np.log(v)) if strength else 0.0)

    start, length = objective(w), 1.0
    for _ in range(60):
        v = np.maximum(w + length * step, 0.0)
        if objective(v) >= start + 1e-4 * length * rise - 1e-15:
            return v
        length /= 2
    return w
