"""Proper orthogonal decomposition by the method of snapshots: the Gram matrix in one read, the modes in a second."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np

from ensemblekit.averaging.gram import Gram
from ensemblekit.averaging.reducer import BOTH
from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.source import Array, Cut, as_source

FLOOR = 2e-8
"""Singular values below this share of the first are rounding in a Gram matrix of float64: sqrt(eps)."""


def pod(source: Any, rank: int | None = None, *, energy: float | None = None, tolerance: float | None = None,
        center: Literal["mean", "none"] = "mean", engine: Engine | None = None) -> Basis:
    """The modes that carry most of the snapshots' energy (Sirovich 1987).

    Two reads, each in slabs of space, so that only one slab, the (n, n) Gram matrix and the modes are in memory.

    Arguments:
        source: a stored field, any source of one field and one run, or an array with snapshots along axis 0.
        rank: how many modes; or
        energy: the share of the energy to keep, in (0, 1]; or
        tolerance: the relative error allowed. With none of the three: energy=0.99, an error of 10 %.
        center: "mean" decomposes the fluctuations about the mean, "none" the snapshots as they are.

    Raises:
        InputError: several fields or runs, fewer than two snapshots, more than one rule for the rank, or snapshots
            that are all the same.
    """
    source = as_source(source)
    if len(source.fields) != 1:
        raise InputError(f"pod decomposes one field; name one of {sorted(source.fields)}, as in "
                         "store['velocity']")
    if source.lengths is not None and len(source.lengths) > 1:
        raise InputError("pod takes one run; join several with ReplicaSet.stacked()")
    ((name, field),) = source.fields.items()
    gram = reduce(source, Gram(center=center), cut="space", engine=engine)
    n = len(gram)
    if n < 2:
        raise InputError(f"pod needs at least 2 snapshots; got {n}")
    if np.iscomplexobj(gram):
        raise InputError("complex snapshots are not decomposed yet; stack real and imaginary part along an axis")
    if not np.isfinite(gram).all():
        raise InputError(f"field {name!r} holds NaN or infinity; mask or drop those snapshots first")
    total = float(np.trace(gram))
    values, vectors = np.linalg.eigh(gram)
    squared, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    sigma = np.sqrt(squared)
    usable = int(np.count_nonzero(sigma > FLOOR * sigma[0]))
    if not usable:
        raise InputError(f"all {n} snapshots of field {name!r} are the same: no fluctuation to decompose")
    k = _rank(squared, total, usable, rank, energy, tolerance)

    share = np.full((1, n), 1 / n)
    weights = vectors[:, :k].T / sigma[:k, None]
    if center == "mean":
        weights = weights - weights.mean(1, keepdims=True)      # exact, so that a large mean leaves no trace
    sums = reduce(source, Combinations(np.vstack([share, weights])), cut="space", engine=engine)
    mean = sums[0].reshape(field.shape) if center == "mean" else np.zeros(field.shape)
    # eps (sigma_1 / sigma_k)^2 of orthogonality was lost on the way; a QR gives it back
    q, r = np.linalg.qr(sums[1:].reshape(k, -1).T)
    coefficients = (vectors[:, :k] * sigma[:k]) @ r.T
    sign = np.sign(q[np.abs(q).argmax(0), np.arange(k)])
    times = reduce(source, {"times": (_times, Series())}, engine=engine)["times"]
    return Basis(modes=(q * sign).T.reshape(k, *field.shape), singular_values=sigma[:k],
                 coefficients=coefficients * sign, mean=mean, total_energy=total, fields={name: field},
                 times=None if np.isnan(times).all() else times, time_unit=source.time_unit, spectrum=sigma,
                 spectrum_complete=True, floor=FLOOR, error_per_field={name: math.sqrt(max(1 - float((sigma[:k]**2).sum()) / total, 0))},
                 error_per_snapshot=np.sqrt(np.clip(np.diagonal(gram) - (coefficients**2).sum(1), 0, None) / (total / n)))


def _rank(squared: np.ndarray, total: float, usable: int, rank: int | None, energy: float | None,
          tolerance: float | None) -> int:
    given = [name for name, x in (("rank", rank), ("energy", energy), ("tolerance", tolerance)) if x is not None]
    if len(given) > 1:
        raise InputError(f"give one of rank, energy and tolerance; got {' and '.join(given)}")
    if rank is not None:
        if not 1 <= rank <= len(squared):
            raise InputError(f"rank is 1 to the number of snapshots, {len(squared)}; got {rank!r}")
        return min(rank, usable)
    if tolerance is not None:
        if not 0 < tolerance < 1:
            raise InputError(f"tolerance is a relative error between 0 and 1; got {tolerance!r}")
        allowed = tolerance**2
    else:
        energy = 0.99 if energy is None else energy
        if not 0 < energy <= 1:
            raise InputError(f"energy is a share in (0, 1]; got {energy!r}")
        allowed = 1 - energy
    # what is left out after k modes, summed from the smallest up, so that small remainders keep their digits
    left_out = np.append(np.cumsum(squared[::-1])[::-1][1:], 0.0) / total
    fits = np.flatnonzero(left_out <= allowed)
    return min(int(fits[0]) + 1, usable)


def _times(block: Any) -> np.ndarray:
    return np.full(len(block), math.nan) if block.times is None else np.asarray(block.times, np.float64)


class Combinations:
    """Linear combinations of the snapshots: weights (k, n) @ snapshots, (k, *item) in float64."""

    cuts: ClassVar[frozenset[Cut]] = BOTH

    def __init__(self, weights: np.ndarray):
        self.weights = weights
        self.sums: Array = None

    def empty(self) -> Self:
        return type(self)(self.weights)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values):
            flat = np.asarray(values, np.float64).reshape(len(values), -1)
            part = self.weights[:, start:start + len(values)] @ flat
            self.sums = part if self.sums is None else self.sums + part

    def merge(self, later: Self) -> None:
        if later.sums is not None:
            self.sums = later.sums if self.sums is None else self.sums + later.sums

    def beside(self, right: Self) -> None:
        if right.sums is not None:
            self.sums = right.sums if self.sums is None else np.concatenate([self.sums, right.sums], axis=1)

    def shaped(self, item: tuple[int, ...]) -> None:
        pass

    def result(self) -> np.ndarray:
        """(k, size), the items flattened."""
        return self.sums

    def state(self) -> dict[str, Array]:
        return {} if self.sums is None else {"sums": self.sums}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.sums = state.get("sums")
        return new
