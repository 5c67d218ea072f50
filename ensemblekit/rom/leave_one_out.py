"""How well each sample of a parameter study is predicted by the others: modes and kernel parameters found anew without it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensemblekit.results import Result
from ensemblekit.rom.interpolation import Interpolation, Method


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeaveOneOut(Result):
    """Errors of predictions of each sample from all others. Nothing is read: all lies in the span of the samples."""

    errors: np.ndarray
    """(n,): distance of the field from its prediction, as a share of the root mean square fluctuation of all samples."""
    own_errors: np.ndarray
    """(n,): the same as a share of the sample's own distance from the mean of the others."""
    residuals: np.ndarray
    """(n, r): coefficient less prediction, on the modes of the others."""
    deviations: np.ndarray | None
    """(n, r): standard deviations that came with the predictions; None where the method knows none."""

    @property
    def median(self) -> float:
        return float(np.median(self.errors))

    @property
    def total(self) -> float:
        """Root mean square error."""
        return float(np.sqrt((self.errors**2).mean()))

    @property
    def worst(self) -> float:
        return float(self.errors.max())

    @property
    def inflation(self) -> np.ndarray:
        """(r,): what standard deviations are to be multiplied with so that the left-out residuals have variance 1; where none
        are known, the root mean square residual itself."""
        if self.deviations is None:
            return np.sqrt((self.residuals**2).mean(axis=0))
        held = np.maximum(self.deviations, 1e-300)
        return np.sqrt(((self.residuals / held) ** 2).mean(axis=0))


def leave_one_out(coordinates: np.ndarray, x: np.ndarray, rank: int, method: Method, kernel: str, *,
                  near: Interpolation | None = None) -> LeaveOneOut:
    """Predictions of each of n samples from the others.

    Arguments:
        coordinates: (n, q) of the samples in orthonormal directions that span them, of mean 0.
        x: (n, p) parameters.
        rank: modes.
        near: fitted to all samples: where searches for kernel parameters start, among other places.

    Modes without sample i are the eigenvectors of CᵀC - n / (n - 1) c_i c_iᵀ, a downdate of rank one (C are the coordinates).
    """
    from scipy.linalg import eigh

    n, q = coordinates.shape
    scatter = coordinates.T @ coordinates
    fluctuation = np.sqrt(np.trace(scatter) / n)
    errors, own, residuals, deviations = np.zeros(n), np.zeros(n), np.zeros((n, rank)), np.zeros((n, rank))
    known = True
    for i in range(n):
        others = np.arange(n) != i
        mean = coordinates[others].mean(axis=0)
        downdated = scatter - n / (n - 1) * np.outer(coordinates[i], coordinates[i])
        modes = eigh(downdated, subset_by_index=[q - rank, q - 1])[1][:, ::-1]
        targets = (coordinates[others] - mean) @ modes
        fit = Interpolation.fitted(method, kernel, x[others], targets, near=near, rng=i)
        predicted, deviation = fit.predicted(x[i:i + 1])
        truth = coordinates[i] - mean
        inside = truth @ modes
        residuals[i] = inside - predicted[0]
        known = known and deviation is not None
        if deviation is not None:
            deviations[i] = deviation[0]
        distance = np.sqrt((residuals[i] ** 2).sum() + max(float(truth @ truth - inside @ inside), 0.0))
        errors[i] = distance / fluctuation
        own[i] = distance / max(float(np.linalg.norm(truth)), 1e-300)
    return LeaveOneOut(errors=errors, own_errors=own, residuals=residuals, deviations=deviations if known else None)
