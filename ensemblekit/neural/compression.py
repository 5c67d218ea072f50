"""What it costs an ensemble to keep a mean and a few modes instead of all snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.averaging.diversity import gram_over
from ensemblekit.averaging.principal import principal
from ensemblekit.errors import InputError
from ensemblekit.neural.basis_members import BasisRows, GivesBasis
from ensemblekit.neural.batches import Device
from ensemblekit.neural.compare import compare
from ensemblekit.neural.ensemble import Ensemble
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.result_files import Saved
from ensemblekit.neural.scores import Scores
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp


@dataclass(frozen=True, slots=True, eq=False)
class WeightBasis(Saved, Result):
    """Snapshots of weights as mean + coefficients @ modes, as ``Ensemble.from_basis`` takes it."""

    mean: np.ndarray
    """(size,)."""
    modes: np.ndarray
    """(rank, size), orthonormal."""
    coefficients: np.ndarray
    """(M, rank)."""


@dataclass(frozen=True, slots=True, eq=False)
class Compression(Saved, Result):
    """An ensemble of a mean and a few modes against the ensemble of all snapshots, on the same items."""

    rank: int
    n_members: int
    ratio: float
    """Numbers of all snapshots over those of mean, modes and coefficients: at most M/(rank + 1)."""
    relative_error: float
    """Root of the squared distances left out, over those from the mean."""
    differences: Scores
    """The compressed ensemble minus the whole one, paired by item."""
    disagreement: float
    """Share of items (pixels) on which their first choices differ; NaN for numbers."""
    basis: WeightBasis | None
    """What is kept, where a rank was given."""

    def __str__(self) -> str:
        changed = "" if np.isnan(self.disagreement) else f"; other first choice on {100 * self.disagreement:.3g} % of items"
        return (f"rank {self.rank} of {self.n_members} snapshots: {self.ratio:.3g} times smaller, relative error "
                f"{self.relative_error:.3g}{changed} (M snapshots hold M - 1 modes, so that a rank r is at most M/(r + 1) "
                f"times smaller)\n{self.differences}")

    __repr__ = __str__


def compressed(ensemble: Ensemble[Any], basis_or_rank: GivesBasis | int, loader: Iterable[Any], *,
               device: Device = None) -> Compression:
    """What an ensemble loses where its snapshots are a mean and a few modes: scores paired by item, and changed answers.

    Arguments:
        ensemble: with weights; buffers (batch-norm statistics) of the compressed members are those of the snapshots.
        basis_or_rank: a number of modes, 1 to M - 1; or a basis of the ensemble's own snapshots, as of ``rom.pod``.
        loader: labelled items.

    Raises InputError for a rank that M snapshots do not have, a basis of others, and without labels.
    """
    rows = ensemble.vectors["parameters"]
    m, size = len(ensemble), int(rows.shape[1])
    own: WeightBasis | None = None
    if isinstance(basis_or_rank, int | np.integer):
        if isinstance(basis_or_rank, bool) or not 1 <= basis_or_rank <= m - 1:
            raise InputError(f"rank is a whole number from 1 to {m - 1}: {m} snapshots about their mean hold no more modes; "
                             f"got {basis_or_rank!r}")
        own = weight_basis(rows, int(basis_or_rank))
        basis: GivesBasis = own
    else:
        basis = basis_or_rank
    small = BasisRows(basis, size, np.dtype(rows.dtype))
    if len(small) != m:
        raise InputError(f"the basis is of {len(small)} snapshots, and the ensemble has {m} members")
    loader = list(loader) if isinstance(loader, Iterator) else loader
    whole = ensemble.predict(loader, device=device)
    if whole.target is None:
        raise InputError("what is lost is told by scores, which need labels: pass a loader of (input, label)")
    less = ensemble.with_vectors({**ensemble.vectors, "parameters": small}, ensemble.shares).predict(loader, device=device)
    same = float("nan")
    if isinstance(whole, Prediction):
        changed = whole.choice != less.choice
        same = float(changed[np.asarray(whole.target) != whole.ignore_index].mean() if whole.ignore_index is not None
                     else changed.mean())
    rank = len(small.modes)
    return Compression(rank, m, m * size / ((rank + 1) * size + m * rank), _relative_error(rows, small), compare(less, whole),
                       same, own)


def weight_basis(rows: Any, rank: int) -> WeightBasis:
    """Mean and `rank` principal modes of rows (M, size), from their Gram matrix. Raises InputError where they hold fewer."""
    gram, e = gram_over(rows, "mean")
    found = principal(gram)
    held = int(np.count_nonzero(found.values > 1e-12 * found.values[0]))
    if rank > held:
        raise InputError(f"these {len(gram)} snapshots hold {held} modes, and {rank} were asked for")
    lengths = ldexp(np.sqrt(found.values[:rank]), e)
    mean, modes = np.zeros(rows.shape[1]), np.zeros((rank, rows.shape[1]))
    for k in range(len(gram)):
        row = np.asarray(rows[k], np.float64)
        mean += row / len(gram)
        modes += (found.vectors[k, :rank] / lengths)[:, None] * row
    return WeightBasis(mean, modes, ldexp(found.scores[:, :rank], e))


def _relative_error(rows: Any, small: BasisRows) -> float:
    """Snapshot by snapshot."""
    mean = sum(np.asarray(rows[k], np.float64) / len(small) for k in range(len(small)))
    left = spread = 0.0
    for k in range(len(small)):
        row = np.asarray(rows[k], np.float64)
        left += float(((row - (small.mean + small.coefficients[k] @ small.modes)) ** 2).sum())
        spread += float(((row - mean) ** 2).sum())
    return float(np.sqrt(left / spread)) if spread > 0 else 0.0
