"""Weights of snapshots that agree with measured means and differ least from prior ones: maximum-entropy reweighting.

The weights minimise L(w) = ½ Σ_j ((Σ_t w_t c_tj - e_j) / σ_j)² + θ Σ_t w_t ln(w_t / w0_t) (Hummer & Köfinger, J. Chem. Phys.
143, 243150, 2015; Bottaro, Bengtsen & Lindorff-Larsen, Methods Mol. Biol. 2112, 219, 2020). They are w ∝ w0 e^(-λ·c), and λ
the minimum of the dual Γ(λ) = ln Σ w0 e^(-λ·c) + λ·e + (θ/2) Σ λ² σ², which is convex: here in data over their errors, with
u = λ σ, by Newton's method. A bound has a multiplier of one sign only, by projected steps (Bertsekas, SIAM J. Control Optim.
20, 221, 1982).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.weights import normalised_weights
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result

Bound = Literal["", "upper", "lower"]
"""What a datum is: a value, or what the mean does not exceed (or go below)."""
ROWS = 1 << 14
"""Snapshots whose data are looked at together."""
HELD = 256 << 20
"""Bytes of reduced data that are kept; of more they are made anew in every read."""
MOST_STEPS = 200
THETAS = 20
FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaximumEntropy(Result):
    """Weights of n snapshots that agree with m measured means as far as θ says."""

    weights: np.ndarray
    """(n,), adding up to 1."""
    multipliers: np.ndarray
    """λ of each datum, (m,), in 1 / its unit: 0 where a bound is kept without help."""
    theta: float
    """What a unit of relative entropy costs against ½ Σ of squared deviations over their errors."""
    chi2_before: float
    """Mean over the data of squared deviations over squared errors, with the prior weights; of bounds what exceeds them."""
    chi2_after: float
    """The same with the new weights."""
    phi: float
    """exp of minus the relative entropy Σ w ln(w / w0): the share of the snapshots that is in effect still used."""
    n_eff: float
    """Snapshots of equal weight that the new weights are worth (Kish)."""
    before: np.ndarray
    """Means of the data with the prior weights, (m,)."""
    after: np.ndarray
    """The same with the new weights."""
    outside: np.ndarray
    """Numbers of the data that no weights can reach: beyond the values of all snapshots."""
    steps: int
    """Newton steps it took."""
    gradient: float
    """Length of the gradient of the dual at the end over that at the start."""


class Problem:
    """Data of snapshots about measured ones, over their errors: what the dual is made of."""

    def __init__(self, calculated: ArrayLike, data: ArrayLike, sigma: ArrayLike, *, weights: ArrayLike | None = None,
                 log_weights: ArrayLike | None = None, bounds: Sequence[Bound] | None = None):
        c = as_array(calculated, "calculated", kinds="biuf")
        if c.ndim != 2 or 0 in c.shape:
            raise InputError(f"calculated is (snapshots, data), a number of each snapshot for each datum; got shape {c.shape}")
        n, m = c.shape
        self.data, self.sigma = _column(data, "data", m), _column(sigma, "sigma", m)
        if (self.sigma <= 0).any():
            j = int(np.argmax(self.sigma <= 0))
            raise InputError(f"sigma is the error of each datum, above 0; datum {j} has {self.sigma[j]:g}")
        for a in range(0, n, ROWS):
            bad = ~np.isfinite(c[a:a + ROWS]).all(axis=1)
            if bad.any():
                t = a + int(np.argmax(bad))
                raise InputError(f"calculated is not finite at snapshot {t}, datum {int(np.argmax(~np.isfinite(c[t])))}: leave "
                                 "the snapshot out, or find out where it comes from")
        given = weights is not None or log_weights is not None
        prior = normalised_weights(weights, log_weights=log_weights) if given else np.full(n, 1 / n)
        if len(prior) != n:
            raise InputError(f"prior weights are one a snapshot, shape ({n},); got shape {prior.shape}")
        self.calculated, self.prior = c, prior
        with np.errstate(divide="ignore"):
            self.log_prior = np.log(prior)
        self.bounds = tuple(bounds) if bounds is not None else ("",) * m
        if len(self.bounds) != m or any(kind not in ("", "upper", "lower") for kind in self.bounds):
            raise InputError(f'bounds says "", "upper" or "lower" of each of the {m} data; got {bounds!r}')
        self.least = np.array([0.0 if kind == "upper" else -np.inf for kind in self.bounds])
        self.most = np.array([0.0 if kind == "lower" else np.inf for kind in self.bounds])
        self.center = np.zeros(m)       # of the reduced data, about which they are summed
        self._held: np.ndarray | None = None
        self.center = self._mean(prior)
        if 8 * c.size <= HELD:
            self._held = (c - self.data) / self.sigma - self.center

    @property
    def n(self) -> int:
        """Snapshots."""
        return len(self.calculated)

    @property
    def m(self) -> int:
        """Data."""
        return len(self.data)

    def only(self, which: np.ndarray) -> Problem:
        """The problem of some of the data."""
        part: Problem = object.__new__(Problem)
        part.__dict__.update(self.__dict__)
        part.calculated = self.calculated[:, which]
        part._held = None if self._held is None else self._held[:, which]
        part.data, part.sigma, part.center = self.data[which], self.sigma[which], self.center[which]
        part.bounds = tuple(np.array(self.bounds, object)[which])
        part.least, part.most = self.least[which], self.most[which]
        return part

    def reduced(self, a: int) -> np.ndarray:
        """Rows from a on, (rows, m): (calculated - data) / sigma about their prior mean."""
        if self._held is not None:
            return self._held[a:a + ROWS]
        return (self.calculated[a:a + ROWS] - self.data) / self.sigma - self.center

    def _mean(self, weights: np.ndarray) -> np.ndarray:
        total = np.zeros(self.m)
        for a in range(0, self.n, ROWS):
            total += weights[a:a + ROWS] @ self.reduced(a)
        return total

    def at(self, u: np.ndarray) -> Dual:
        """The value of the dual, less its part in θ, and what Newton's step needs: one read of the data, twice."""
        logs = self.log_prior.copy()
        for a in range(0, self.n, ROWS):
            logs[a:a + ROWS] -= self.reduced(a) @ u
        largest = float(logs.max())
        w = np.exp(logs - largest)
        total = float(w.sum())
        w /= total
        log_sum, mean = largest + math.log(total), self._mean(w)
        return Dual(log_sum - float(u @ self.center), w, mean, -float(u @ mean) - log_sum)

    def covariance(self, weights: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Of the reduced data, (m, m); `mean` about the prior one."""
        total = np.zeros((self.m, self.m))
        for a in range(0, self.n, ROWS):
            off = (self.reduced(a) - mean) * np.sqrt(weights[a:a + ROWS])[:, None]
            total += off.T @ off
        return total

    def chi2(self, mean: np.ndarray) -> float:
        """Mean squared deviation over squared error, of bounds what exceeds them; `mean` about the prior one."""
        off = mean + self.center
        off = np.where(self.least == 0, np.maximum(off, 0.0), np.where(self.most == 0, np.minimum(off, 0.0), off))
        return float(off @ off) / self.m

    def outside(self) -> np.ndarray:
        """Numbers of the data beyond the values of all snapshots that have weight."""
        c = self.calculated[self.prior > 0]
        low, high = c.min(axis=0), c.max(axis=0)
        above, below = self.data > high, self.data < low
        return np.flatnonzero(np.where(self.least == 0, below, np.where(self.most == 0, above, above | below)))


class Dual(NamedTuple):
    """The dual at some multipliers, without θ."""

    value: float
    weights: np.ndarray
    mean: np.ndarray
    """Of the reduced data about their prior mean, (m,)."""
    entropy: float
    """Relative entropy of the weights."""


def maximum_entropy(calculated: ArrayLike, data: ArrayLike, sigma: ArrayLike, *, theta: float, weights: ArrayLike | None = None,
                    log_weights: ArrayLike | None = None, bounds: Sequence[Bound] | None = None,
                    tolerance: float = 1e-10) -> MaximumEntropy:
    """The weights of snapshots that agree with measured means and differ least from prior ones.

    Arguments:
        calculated: (n, m), what each datum is the mean of, of each snapshot; finite. What averages linearly: r^-6, not r.
        data, sigma: (m,), measured means and their errors.
        theta: above 0; the larger, the nearer to the prior weights.
        weights, log_weights: (n,) prior weights, or their natural logarithms on any scale; all alike by default.
        bounds: of each datum "", "upper" or "lower".
        tolerance: of the gradient of the dual, over that at the start.

    Raises:
        InputError: what does not fit, is not finite, or a sigma or theta that is not above 0.
        StatisticsError: the multipliers were not found in 200 steps.
    """
    return solved(Problem(calculated, data, sigma, weights=weights, log_weights=log_weights, bounds=bounds), theta,
                  tolerance=tolerance)


def check_theta(theta: float) -> None:
    """Refuse what is no price of entropy."""
    number = isinstance(theta, int | float | np.number) and not isinstance(theta, bool)
    if not (number and math.isfinite(theta) and theta > 0):
        raise InputError(f"theta says how much data and prior weights are trusted, a number above 0; got {theta!r}")


def solved(problem: Problem, theta: float, *, start: np.ndarray | None = None, tolerance: float = 1e-10) -> MaximumEntropy:
    """:func:`maximum_entropy` of a problem that stands; start: multipliers over errors, (m,), of another θ."""
    check_theta(theta)
    least, most = problem.least, problem.most
    u = np.zeros(problem.m) if start is None else np.clip(start, least, most)
    first = problem.at(np.zeros(problem.m))
    before = first.mean + problem.center
    reach = float(np.linalg.norm(_projected(-before, np.zeros(problem.m), least, most)))
    floor = 64 * np.finfo(float).eps * float(np.sqrt(np.trace(problem.covariance(first.weights, first.mean)) + before @ before))
    now = problem.at(u)
    steps = 0
    while True:
        slope = theta * u - now.mean - problem.center
        length = float(np.linalg.norm(_projected(slope, u, least, most)))
        if length <= max(tolerance * reach, floor):
            break
        if steps == MOST_STEPS:
            raise StatisticsError(f"the multipliers of {problem.m} data were not found in {MOST_STEPS} steps (the gradient is "
                                  f"still {length / reach:.1g} of that at the start): raise theta, or look for data that "
                                  "contradict each other")
        u, now = _step(problem, theta, u, now, slope)
        steps += 1
    share = now.weights
    return MaximumEntropy(weights=share, multipliers=u / problem.sigma, theta=float(theta), steps=steps,
                          chi2_before=problem.chi2(first.mean), chi2_after=problem.chi2(now.mean),
                          phi=math.exp(-max(now.entropy, 0.0)), n_eff=1.0 / float(share @ share),
                          before=problem.data + problem.sigma * before,
                          after=problem.data + problem.sigma * (now.mean + problem.center), outside=problem.outside(),
                          gradient=length / reach if reach else 0.0)


def _projected(slope: np.ndarray, u: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The gradient without what would lead a bounded multiplier over its end."""
    stuck = ((u <= least) & (slope > 0)) | ((u >= most) & (slope < 0))
    return np.where(stuck, 0.0, slope)


def _step(problem: Problem, theta: float, u: np.ndarray, now: Dual, slope: np.ndarray) -> tuple[np.ndarray, Dual]:
    """A damped Newton step: the multipliers and the dual there."""
    from scipy.linalg import cho_factor, cho_solve

    least, most = problem.least, problem.most
    free = _projected(slope, u, least, most) != 0
    hessian = problem.covariance(now.weights, now.mean)[np.ix_(free, free)]
    hessian[np.diag_indices_from(hessian)] += theta
    scale = 1 / np.sqrt(np.diag(hessian))       # data of very different errors
    step = np.zeros(problem.m)
    step[free] = -scale * cho_solve(cho_factor(hessian * scale * scale[:, None], lower=True), scale * slope[free])
    value, share = now.value + 0.5 * theta * float(u @ u), 1.0
    rounding = 16 * np.finfo(float).eps * (1 + abs(value) + math.log(problem.n))
    there, after = u, now
    while share > 1e-12:
        there = np.clip(u + share * step, least, most)
        after = problem.at(there)
        gain = float(slope @ (u - there))
        # near the minimum the gain is below the digits of the value: a full step is taken then
        if value - after.value - 0.5 * theta * float(there @ there) >= 1e-4 * gain - rounding:
            break
        share *= 0.5
    return there, after


class Response(NamedTuple):
    """How means over reweighted snapshots answer to the snapshots and to the data."""

    mean: np.ndarray
    """(k,)"""
    series: np.ndarray
    """(n, k): what each snapshot adds to the mean, to first order, the change of the weights included: its plain mean is
    `mean`, and the error of that is the sampling error."""
    gain: np.ndarray
    """(k, data held): by how much the mean moves where a datum moves by its error."""

    @property
    def data_error(self) -> np.ndarray:
        """(k,): standard error that comes from those of the data."""
        return np.asarray(np.sqrt((self.gain**2).sum(axis=1)))


def response(problem: Problem, fit: MaximumEntropy, values: ArrayLike) -> Response:
    """The means of values (n, k) over reweighted snapshots, and how they answer to snapshots and data (implicit functions).

    The series is Y + n w (y - Y - C_yc (C_cc + θ Σ)^-1 (c - ĉ)), C being covariances with the new weights and Σ the squared
    errors; the error of the data is √Σ_j (C_yc (C_cc + θ Σ)^-1)_j² σ_j². Bounds without a multiplier take no part.
    """
    y = as_array(values, "values", kinds="biuf", dtype=np.float64)
    if y.ndim != 2 or len(y) != problem.n:
        raise InputError(f"values are (snapshots, k) of the {problem.n} snapshots that were reweighted; got shape {y.shape}")
    if not np.isfinite(y).all():
        raise InputError(f"values are not finite at snapshot {int(np.argmax(~np.isfinite(y).all(axis=1)))}")
    w = fit.weights
    mean = w @ y
    held = (np.array(problem.bounds, object) == "") | (fit.multipliers != 0)
    part = problem.only(np.flatnonzero(held))
    if not part.m:
        return Response(mean, mean + len(w) * w[:, None] * (y - mean), np.zeros((len(mean), 0)))
    middle = part._mean(w)
    cross = np.zeros((y.shape[1], part.m))
    for a in range(0, part.n, ROWS):
        cross += ((y[a:a + ROWS] - mean) * w[a:a + ROWS, None]).T @ (part.reduced(a) - middle)
    gain = np.linalg.solve(part.covariance(w, middle) + fit.theta * np.eye(part.m), cross.T).T
    series = np.empty_like(y)
    for a in range(0, part.n, ROWS):
        off = y[a:a + ROWS] - mean - (part.reduced(a) - middle) @ gain.T
        series[a:a + ROWS] = mean + part.n * w[a:a + ROWS, None] * off
    return Response(mean, series, gain)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ThetaScan(Result):
    """How data and prior weights trade for θ: the L-curve, and what data that were left out say."""

    thetas: np.ndarray
    """(k,), falling."""
    chi2: np.ndarray
    """Mean χ² of the data, (k,)."""
    phi: np.ndarray
    """exp of minus the relative entropy, (k,)."""
    n_eff: np.ndarray
    """Kish's, (k,)."""
    held_out: np.ndarray
    """Mean χ² of data that were left out, a fifth at a time, (k,); NaN with fewer than five data."""
    knee: float
    """θ where φ against χ² turns: the point farthest above the line between the ends."""
    cross_validated: float
    """θ with the least `held_out`; NaN where there is none."""

    @property
    def disagree(self) -> bool:
        """Whether the two differ by more than a factor of ten."""
        return bool(abs(math.log10(self.cross_validated / self.knee)) > 1) if self.cross_validated > 0 else False


def theta_scan(problem: Problem, thetas: ArrayLike | None = None, *, folds: int = FOLDS,
               solve: Callable[..., MaximumEntropy] = solved) -> ThetaScan:
    """Fits for several θ, the largest first and each from the one before; with five data or more also five-fold without a
    block of neighbouring data.

    thetas: (k,) above 0; None: 20 from ten times to 1e-4 of the largest variance of the reduced data, in equal ratios.
    """
    if thetas is None:
        start = problem.at(np.zeros(problem.m))
        top = float(np.linalg.eigvalsh(problem.covariance(start.weights, start.mean))[-1])
        if not top > 0:
            raise StatisticsError("the data are the same of every snapshot: no weights change their means")
        grid = top * np.geomspace(10.0, 1e-4, THETAS)
    else:
        grid = np.sort(as_array(thetas, "thetas", dtype=np.float64).ravel())[::-1]
        for one in grid:
            check_theta(float(one))
        if len(grid) < 3:
            raise InputError(f"a scan takes at least 3 thetas; got {len(grid)}")
    fits = _warm(problem, grid, solve)
    chi2, phi = np.array([fit.chi2_after for fit in fits]), np.array([fit.phi for fit in fits])
    held_out = np.full(len(grid), np.nan)
    if problem.m >= folds:
        held_out = np.zeros(len(grid))
        for block in np.array_split(np.arange(problem.m), folds):
            rest = problem.only(np.setdiff1d(np.arange(problem.m), block))
            test = problem.only(block)
            for k, fit in enumerate(_warm(rest, grid, solve)):
                held_out[k] += test.chi2(test._mean(fit.weights)) * len(block) / problem.m
    best = float(grid[int(np.argmin(held_out))]) if np.isfinite(held_out).all() else math.nan
    return ThetaScan(thetas=grid, chi2=chi2, phi=phi, n_eff=np.array([fit.n_eff for fit in fits]), held_out=held_out,
                     knee=float(grid[_knee(chi2, phi)]), cross_validated=best)


def _warm(problem: Problem, thetas: np.ndarray, solve: Callable[..., MaximumEntropy]) -> list[MaximumEntropy]:
    fits: list[MaximumEntropy] = []
    for theta in thetas:
        start = fits[-1].multipliers * problem.sigma if fits else None
        fits.append(solve(problem, float(theta), start=start, tolerance=1e-6))
    return fits


def _knee(chi2: np.ndarray, phi: np.ndarray) -> int:
    """The point farthest above the line from the last to the first."""
    width, height = float(np.ptp(chi2)), float(np.ptp(phi))
    if not (width > 0 and height > 0):
        return 0
    return int(np.argmax((phi - phi.min()) / height - (chi2 - chi2.min()) / width))


def _column(x: ArrayLike, name: str, m: int) -> np.ndarray:
    values = as_array(x, name, kinds="biuf", dtype=np.float64)
    if values.shape != (m,):
        raise InputError(f"{name} is one number a datum, shape ({m},), as calculated has {m} columns; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise InputError(f"{name} is not finite at datum {int(np.argmax(~np.isfinite(values)))}")
    return values
