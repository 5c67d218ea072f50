"""The principal directions of snapshots from their Gram matrix: the method of snapshots (Sirovich 1987)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two, representable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Principal(Result):
    """Principal directions of n snapshots, the largest first."""

    values: np.ndarray
    """(n,), squared length of the snapshots along each direction, summed over snapshots; not below 0."""
    vectors: np.ndarray
    """(n, n), orthonormal columns: the combination of snapshots that is each direction."""
    scores: np.ndarray
    """(n, n), where each snapshot (row) stands along each direction (column), in units of the snapshots."""
    explained: np.ndarray
    """(n,), share of the variance in the first 1, 2, ... directions; NaN where all snapshots are one."""

    def rank_for(self, share: float) -> int:
        """The least number of directions that hold this share of the variance; 0 where all snapshots are one."""
        if not 0 < share <= 1:
            raise InputError(f"a share of the variance lies above 0 and up to 1; got {share!r}")
        if np.isnan(self.explained[-1]):
            return 0
        return min(int(np.searchsorted(self.explained, share * (1 - 1e-14))) + 1, len(self.values))


def principal(gram: ArrayLike) -> Principal:
    """Principal directions from inner products (n, n) of snapshots about their mean: ``Gram(center="mean")``.

    A Gram matrix about another center gives the directions about that center.

    Raises:
        InputError: what is not a square, symmetric (Hermitian) matrix of finite numbers, or not one of inner products.
        StatisticsError: squared lengths beyond the range of float64.
    """
    g = as_array(gram, "the Gram matrix", named_axes=True)
    g = g.astype(np.complex128 if g.dtype.kind == "c" else np.float64)
    if g.ndim != 2 or g.shape[0] != g.shape[1] or not len(g):
        raise InputError(f"a Gram matrix is (n, n), n > 0; got shape {g.shape}")
    if not np.isfinite(g).all():
        raise InputError("the inner products are not finite: some snapshot holds NaN or infinity")
    half = int(power_of_two(g)) // 2        # even, as lengths are roots
    g = ldexp(g, -2 * half)
    largest = float(abs(g).max())
    if not np.allclose(g, g.conj().T, rtol=0, atol=1e-8 * largest):
        raise InputError("inner products are symmetric; this matrix is not one of them")
    values, vectors = np.linalg.eigh((g + g.conj().T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    if values[-1] < -1e-8 * max(largest, values[0]):
        raise InputError(f"a Gram matrix has no negative eigenvalue; this one has {values[-1]:.3g} beside {values[0]:.3g}")
    values = np.maximum(values, 0.0)
    total = float(values.sum())
    if not total > 0 and largest > 0:
        raise StatisticsError("the inner products hold no squared length")
    explained = np.minimum(np.cumsum(values) / total, 1.0) if total > 0 else np.full(len(values), np.nan)
    return Principal(values=representable(values, 2 * half, "a squared length"), vectors=vectors,
                     scores=ldexp(vectors * np.sqrt(values), half), explained=explained)
