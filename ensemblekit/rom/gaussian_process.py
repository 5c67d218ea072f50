"""A Gaussian process of a smooth function of a few parameters: Matérn 5/2 with a length for each.

Equations: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

NUGGET = (1e-10, 1.0)
"""Least and largest noise, as a share of the signal's variance."""
LENGTHS = (0.05, 100.0)
"""Least and largest length, in standard deviations of the parameter."""
STARTS = 3
"""Of the search for lengths and noise, the first in the middle."""


@dataclass(frozen=True, slots=True, eq=False)
class GaussianProcess:
    """The values y (n,) at points x (n, p), and what they say of other points.

    y - offset is normal with covariance variance · (M(x, x') + nugget δ), where M(r) = (1 + √5 r + 5 r²/3) exp(-√5 r) and
    r² = Σ ((x - x') / length)² (eq. 4.17).
    """

    x: np.ndarray
    """(n, p)."""
    y: np.ndarray
    """(n,)."""
    lengths: np.ndarray
    """(p,), in units of x."""
    nugget: float
    """Variance of the noise over `variance`."""
    offset: float
    """The mean of y."""
    variance: float
    """Of the signal: that of largest likelihood, given lengths and nugget."""
    log_likelihood: float
    """Logarithm of the marginal likelihood (eq. 5.8)."""

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, lengths: np.ndarray, nugget: float) -> GaussianProcess:
        """With given lengths and noise."""
        offset = float(y.mean())
        likelihood, variance, _ = _likelihood(x, y - offset, np.log(np.append(lengths, nugget)))
        return cls(x, y, np.asarray(lengths, np.float64), nugget, offset, variance, likelihood)

    @classmethod
    def fitted(cls, x: np.ndarray, y: np.ndarray, *, near: GaussianProcess | None = None, starts: int = STARTS,
               rng: np.random.Generator | int = 0) -> GaussianProcess:
        """With the lengths and the noise of largest likelihood, from several seeded starts (and from `near`)."""
        from scipy.optimize import minimize

        size = x.std(axis=0)
        if not np.ptp(y) > 1e-13 * np.abs(y).max(initial=0):    # rounding has no lengths
            return cls(x, y, size * LENGTHS[1], NUGGET[0], float(y.mean()), 0.0, math.nan)
        generator = np.random.default_rng(rng)
        low = np.log(np.append(size * LENGTHS[0], NUGGET[0]))
        high = np.log(np.append(size * LENGTHS[1], NUGGET[1]))
        begin = [np.log(np.append(size, 1e-6))] if near is None else [np.log(np.append(near.lengths, near.nugget))]
        while len(begin) < starts:
            begin.append(np.append(np.log(size) + generator.uniform(-1, 2.5, len(size)), generator.uniform(-18, -4)))
        centered = y - y.mean()

        def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
            value, _, gradient = _likelihood(x, centered, logs)
            return -value, -gradient

        ends = [minimize(loss, np.clip(one, low, high), jac=True, method="L-BFGS-B",
                         bounds=list(zip(low, high, strict=True)), options={"maxiter": 100}) for one in begin]
        best = min(ends, key=lambda end: float(end.fun))
        return cls.of(x, y, np.exp(best.x[:-1]), float(np.exp(best.x[-1])))

    def predicted(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (m,) and standard deviation (m,) of the signal, without noise, at points (m, p) (eqs. 2.25 and 2.26)."""
        from scipy.linalg import cho_solve, solve_triangular

        if not self.variance > 0:
            return np.full(len(at), self.offset), np.zeros(len(at))
        lower = _factor(self.x, self.lengths, self.nugget)
        across = _matern(at, self.x, self.lengths)
        mean = self.offset + across @ cho_solve((lower, True), self.y - self.offset)
        explained = (solve_triangular(lower, across.T, lower=True) ** 2).sum(axis=0)
        return mean, np.sqrt(self.variance * np.clip(1 - explained, 0, None))

    def with_values(self, x: np.ndarray, y: np.ndarray) -> GaussianProcess:
        """The same lengths and noise with other samples."""
        return replace(self, x=x, y=y) if not self.variance > 0 else self.of(x, y, self.lengths, self.nugget)


def _matern(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    r = math.sqrt(5) * np.sqrt((((a[:, None, :] - b[None, :, :]) / lengths) ** 2).sum(axis=2))
    return (1 + r + r * r / 3) * np.exp(-r)


def _factor(x: np.ndarray, lengths: np.ndarray, nugget: float) -> np.ndarray:
    return np.linalg.cholesky(_matern(x, x, lengths) + max(nugget, NUGGET[0]) * np.eye(len(x)))


def _likelihood(x: np.ndarray, y: np.ndarray, logs: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Log marginal likelihood with the best variance, that variance, and the gradient in log lengths and log nugget."""
    n, nugget = len(x), float(np.exp(logs[-1]))
    squares = ((x[:, None, :] - x[None, :, :]) / np.exp(logs[:-1])) ** 2
    r = math.sqrt(5) * np.sqrt(squares.sum(axis=2))
    fall = np.exp(-r)
    try:
        lower = np.linalg.cholesky((1 + r + r * r / 3) * fall + nugget * np.eye(n))
    except np.linalg.LinAlgError:
        return -1e25, 1.0, np.zeros(len(logs))
    inverse = np.linalg.inv(lower)
    inverse = inverse.T @ inverse
    alpha = inverse @ y
    variance = max(float(y @ alpha) / n, 1e-300)
    value = -0.5 * n * math.log(variance) - float(np.log(np.diag(lower)).sum()) - 0.5 * n * (1 + math.log(2 * math.pi))
    inner = np.outer(alpha, alpha) / variance - inverse
    slopes = [0.5 * float((inner * (5 / 3 * (1 + r) * fall * squares[:, :, k])).sum()) for k in range(x.shape[1])]
    return value, variance, np.array([*slopes, 0.5 * nugget * float(np.trace(inner))])
