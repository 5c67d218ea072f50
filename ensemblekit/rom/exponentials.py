"""States as sums of exponentials in time, by variable projection: amplitudes follow from the rates, which alone are searched.

Askham and Kutz, SIAM J. Appl. Dyn. Syst. 17, 380 (2018), with Kaufman's form of the derivative (BIT 15, 49, 1975): its products
are those of small matrices, and its gradient is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST = 200.0
"""exp of more than this is not formed: the step that would is rejected."""
TURNS = 200


@dataclass(frozen=True, slots=True, eq=False)
class Exponentials:
    """x(t) = sum_j exp(values_j t) vectors_j."""

    values: np.ndarray
    """(k,) complex."""
    vectors: np.ndarray
    """(k, r) complex, amplitudes included."""
    converged: bool

    def states(self, t: np.ndarray) -> np.ndarray:
        states = np.exp(np.outer(t, self.values)) @ self.vectors
        return states


def fitted(t: np.ndarray, x: np.ndarray, start: np.ndarray, constraint: str | None, real: bool) -> Exponentials:
    """The sum of exponentials closest to x (n, r) at times t (n,), from rates near `start` (k,).

    By Levenberg and Marquardt; "stable" keeps growth at 0 or below, "neutral" at 0. Rates of real states stay in pairs.
    """
    span = float(np.abs(t).max()) or 1.0
    s = t / span                                    # times of order 1, rates in turns of the record
    alpha = _allowed(np.asarray(start, complex) * span, constraint, real)
    alpha = np.where(alpha.real > LARGEST, LARGEST / 2 + 1j * alpha.imag, alpha)
    size = float((np.abs(x) ** 2).sum())
    phi, q, coefficients, left, error = _projected(s, x, alpha)
    damping, converged = 1e-3, False
    for _ in range(TURNS):
        slope = s[:, None] * phi
        inside = slope - q @ (q.conj().T @ slope)
        gram = (slope.conj().T @ inside) * (coefficients.conj() @ coefficients.T)
        gradient = ((slope.conj().T @ left) * coefficients.conj()).sum(axis=1)
        if np.abs(gradient).max() <= 1e-14 * max(size, 1e-300):
            converged = True
            break
        trial = None
        for _ in range(30):
            step = np.linalg.lstsq(gram + damping * np.diag(np.maximum(np.diag(gram).real, 1e-300)), gradient, rcond=1e-15)[0]
            tried = _allowed(alpha + step, constraint, real)
            if tried.real.max() <= LARGEST and np.isfinite(tried).all():
                try:
                    trial = _projected(s, x, tried)
                except np.linalg.LinAlgError:
                    trial = None
                if trial is not None and trial[-1] <= error:
                    break
                trial = None
            damping *= 4
        if trial is None:
            converged = damping > 1e6           # no descent at any length: a minimum to rounding
            break
        moved = np.abs(tried - alpha).max() / max(float(np.abs(tried).max()), 1e-300)
        gained = error - trial[-1]
        alpha = tried
        phi, q, coefficients, left, error = trial
        damping = max(damping / 6, 1e-12)
        if moved <= 1e-11 or (gained <= 1e-15 * size and moved <= 1e-8):
            converged = True
            break
    return Exponentials(alpha / span, coefficients, converged)


def _projected(s: np.ndarray, x: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Exponentials (n, k), an orthonormal basis of them, coefficients (k, r), what is left (n, r), and its square."""
    phi = np.exp(np.outer(s, alpha))
    q, r = np.linalg.qr(phi)
    size = np.abs(np.diag(r))
    coefficients = (np.linalg.solve(r, q.conj().T @ x) if size.min() > 1e-13 * size.max() else
                    np.linalg.lstsq(phi, x.astype(complex), rcond=1e-13)[0])
    left = x - phi @ coefficients
    return phi, q, coefficients, left, float((np.abs(left) ** 2).sum())


def _allowed(alpha: np.ndarray, constraint: str | None, real: bool) -> np.ndarray:
    """Rates that the constraint allows, in conjugate pairs where the states are real."""
    if real:
        conjugate = np.abs(alpha[:, None] - alpha[None, :].conj()).argmin(axis=1)
        mutual = conjugate[conjugate] == np.arange(len(alpha))
        alpha = np.where(mutual, (alpha + alpha[conjugate].conj()) / 2, alpha)
    if constraint == "stable":
        alpha = np.minimum(alpha.real, 0) + 1j * alpha.imag
    elif constraint == "neutral":
        alpha = 1j * alpha.imag
    return alpha
