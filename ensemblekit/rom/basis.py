"""The result of a POD: modes, their energies, and how to go there and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """Orthonormal modes of a set of snapshots: snapshots ≈ mean + coefficients @ modes."""

    modes: np.ndarray
    """(k, *item) float64, orthonormal; the largest entry of each is positive."""
    singular_values: np.ndarray
    """(k,), falling, in the unit of the field."""
    coefficients: np.ndarray
    """(n, k): each snapshot in the modes, in the unit of the field."""
    mean: np.ndarray
    """(*item): what was subtracted; zeros where nothing was."""
    total_energy: float
    """Sum of all squared singular values, those left out included."""
    times: np.ndarray | None = None
    """(n,), where the snapshots have any."""
    unit: str = ""

    @property
    def rank(self) -> int:
        """Number of modes."""
        return len(self.singular_values)

    @property
    def energy_fraction(self) -> np.ndarray:
        """(k,): share of the *total* energy in each mode."""
        return self.singular_values**2 / self.total_energy if self.total_energy else np.zeros(self.rank)

    @property
    def cumulative_energy(self) -> np.ndarray:
        """(k,): share of the total energy in the first 1, 2, ... modes."""
        return np.cumsum(self.energy_fraction)

    @property
    def relative_errors(self) -> np.ndarray:
        """(k,): error of the reconstruction from the first 1, 2, ... modes over the norm of what was decomposed.

        By Eckart and Young sqrt(1 - cumulative energy): 99 % of the energy is an error of 10 %.
        """
        return np.sqrt(np.clip(1 - self.cumulative_energy, 0, None))

    @property
    def relative_error(self) -> float:
        """Error of the reconstruction from all k modes, over the norm of what was decomposed."""
        return float(self.relative_errors[-1])

    @property
    def compression_ratio(self) -> float:
        """Numbers in the snapshots over numbers kept (modes, coefficients, mean)."""
        n, size = len(self.coefficients), self.mean.size
        return n * size / (self.rank * (n + size) + size)

    def project(self, snapshots: Any) -> np.ndarray:
        """The coefficients (m, k) of snapshots (m, *item), or (k,) of a single one."""
        values = np.asarray(snapshots)
        if values.shape[-self.mean.ndim:] != self.mean.shape or values.ndim > self.mean.ndim + 1:
            raise InputError(f"snapshots have shape (m, *{self.mean.shape}); got {values.shape}")
        single = values.ndim == self.mean.ndim
        flat = (values - self.mean).reshape(1 if single else len(values), -1)
        found = flat @ self.modes.reshape(self.rank, -1).T
        return found[0] if single else found

    def reconstruct(self, which: Any = slice(None)) -> np.ndarray:
        """Fields from the modes: of a snapshot by its number, of several by a slice, or from coefficients (m, k)."""
        coefficients = which if isinstance(which, np.ndarray) else self.coefficients[which]
        if coefficients.shape[-1:] != (self.rank,):
            raise InputError(f"coefficients have shape (m, {self.rank}) here; got {coefficients.shape}")
        fields = coefficients @ self.modes.reshape(self.rank, -1)
        return fields.reshape(*coefficients.shape[:-1], *self.mean.shape) + self.mean

    def truncate(self, rank: int) -> Basis:
        """The first `rank` modes; energies stay shares of the same total."""
        if not 1 <= rank <= self.rank:
            raise InputError(f"this basis has {self.rank} modes; got rank={rank!r}")
        return replace(self, modes=self.modes[:rank], singular_values=self.singular_values[:rank],
                       coefficients=self.coefficients[:, :rank])

    def __str__(self) -> str:
        digits = 1 - math.floor(math.log10(self.relative_error)) if self.relative_error > 0 else 2
        return (f"POD: {self.rank} modes of {len(self.coefficients)} snapshots, "
                f"{100 * self.cumulative_energy[-1]:.{max(2, digits)}f} % of the energy "
                f"(error {100 * self.relative_error:.2g} %)")
