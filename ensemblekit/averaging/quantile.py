"""Quantiles in one pass with a bound on their error that is never exceeded: of every element, or of scalars by rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import real_only, same_item
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.source import Array

QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantileResult(Result):
    """Quantiles of the snapshots seen: the smallest value with at least a share p of the weight at or below it."""

    probabilities: np.ndarray
    """Shape (p,)."""
    values: np.ndarray
    """Shape (p, *item), the estimates; between `lower` and `upper`."""
    lower: np.ndarray
    """Shape (p, *item): the exact quantile of the snapshots is never below."""
    upper: np.ndarray
    """Shape (p, *item): the exact quantile of the snapshots is never above."""
    rank_error: float
    """Bound on |p of the value - p asked for| from the sketch; NaN for histograms, whose bound is `upper - lower`."""
    n: int


class Quantiles:
    """Quantiles of every element of the item, from one adaptive histogram an element. Merges in any order.

    A histogram has `bins` bins of width 2^e that begin at whole multiples of 2^e, e the smallest that fits the range
    seen. Coarsening by pairs is then exact, and the state depends on the values alone: any cut and order gives the
    same counts. The stated error is the bin that holds the quantile: at most 2 range/(bins - 1) wide. Values far
    outside (outliers) widen all bins; for scalars with heavy tails take :class:`QuantileSketch`.
    Memory: 8 bins bytes an element. Tensors are moved to the processor.
    """

    def __init__(self, probabilities: float | Sequence[float] | np.ndarray = QUARTILES, *, bins: int = 128):
        self.probabilities = _checked_probabilities(probabilities)
        if not isinstance(bins, int | np.integer) or bins < 2:
            raise InputError(f"bins is a whole number of at least 2; got {bins!r}")
        self.bins = int(bins)
        self.n = 0
        self.item: tuple[int, ...] | None = None
        self.counts = np.empty((0, self.bins))
        self.exponent = np.empty(0, np.int64)
        self.origin = np.empty(0, np.int64)
        self.low = np.empty(0)
        self.high = np.empty(0)

    def empty(self) -> Self:
        return type(self)(self.probabilities, bins=self.bins)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        from ensemblekit.averaging.kernels_quantile import count

        rows, w = _rows(values, start, weights, "Quantiles")
        if self.item is None:
            self._begin(tuple(values.shape[1:]), rows.shape[1])
        else:
            same_item(self.item, values, "Quantiles")
        self.n += len(rows)
        rows, w = rows[w > 0], w[w > 0]
        if len(rows) == 0:
            return
        self._widen(rows.min(axis=0), rows.max(axis=0))
        count(rows, w, self.counts, np.ldexp(1.0, -self.exponent), self.origin)

    def merge(self, later: Self) -> None:
        if later.item is None:
            return
        from ensemblekit.averaging.kernels_quantile import add_counts

        if self.item is None:
            self._begin(later.item, len(later.low))
        self.n += later.n
        self._widen(later.low, later.high)
        add_counts(self.counts, self.exponent, self.origin, later.counts, later.exponent, later.origin, later.low,
                   later.high)

    def join(self, right: Self) -> None:
        if right.item is None:
            return
        self.n = right.n
        self.item = ((self.item or (0,))[0] + right.item[0],)
        for name in ("counts", "exponent", "origin", "low", "high"):
            setattr(self, name, np.concatenate([getattr(self, name), getattr(right, name)]))

    def reshape(self, item: tuple[int, ...]) -> None:
        self.item = item

    def result(self) -> QuantileResult:
        """Raises StatisticsError where nothing with a weight above zero was seen."""
        total = self.counts.sum(axis=1)
        if self.item is None or (total == 0).any():
            raise StatisticsError("no snapshots with a weight above zero; there is nothing to take quantiles of")
        upto = np.cumsum(self.counts, axis=1)
        width = np.ldexp(1.0, self.exponent)
        every = np.arange(len(total))
        values, lower, upper = [], [], []
        for p in self.probabilities:
            target = p * upto[:, -1]
            b = np.argmax((upto >= target[:, None]) & (upto > 0), axis=1)
            held = self.counts[every, b]
            inside = (target - (upto[every, b] - held)) / held
            left = (self.origin + b) * width
            lower.append(np.clip(left, self.low, self.high))
            upper.append(np.clip(left + width, self.low, self.high))
            values.append(np.clip(left + np.clip(inside, 0, 1) * width, lower[-1], upper[-1]))
        shape = (len(self.probabilities), *self.item)
        return QuantileResult(probabilities=self.probabilities.copy(), values=np.reshape(values, shape),
                              lower=np.reshape(lower, shape), upper=np.reshape(upper, shape), rank_error=float("nan"),
                              n=self.n)

    def state(self) -> dict[str, Array]:
        state = {"n": np.array(self.n), "counts": self.counts.copy(), "exponent": self.exponent.copy(),
                 "origin": self.origin.copy(), "low": self.low.copy(), "high": self.high.copy()}
        if self.item is not None:
            state["item"] = np.array(self.item, dtype=np.int64)
        return state

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n = int(state["n"])
        if "item" in state:
            new.item = tuple(int(k) for k in np.asarray(state["item"]))
        for name in ("counts", "exponent", "origin", "low", "high"):
            setattr(new, name, np.array(state[name]))
        return new

    def _begin(self, item: tuple[int, ...], size: int) -> None:
        self.item = item
        self.counts = np.zeros((size, self.bins))
        self.exponent, self.origin = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.low, self.high = np.full(size, np.inf), np.full(size, -np.inf)

    def _widen(self, low: np.ndarray, high: np.ndarray) -> None:
        from ensemblekit.averaging.kernels_quantile import regrid

        regrid(self.counts, self.exponent, self.origin, self.low, self.high, low, high)


class QuantileSketch:
    """Quantiles of scalars from a few thousand of them, right to a bound on their rank. Merges in any order, within it.

    A buffer that is full is sorted and its neighbours are paired; the heavier one of a pair (by turns, where they are
    alike) stays with the weight of both, in a buffer a level higher (Munro & Paterson 1980; Manku, Rajagopalan &
    Lindsay 1998). The rank of any value moves by at most the lightest weight of a pair, and these are added up: the
    stated bound is proven for the data at hand, whatever their distribution and order. It is about
    log2(n/size)/size of the weight: 0.2 % for a million snapshots and the default size. Exact up to `size` snapshots.
    """

    def __init__(self, probabilities: float | Sequence[float] | np.ndarray = QUARTILES, *, size: int = 4096):
        self.probabilities = _checked_probabilities(probabilities)
        if not isinstance(size, int | np.integer) or size < 2:
            raise InputError(f"size is a whole number of at least 2; got {size!r}")
        self.size = int(size)
        self.n = 0
        self.error = 0.0
        self.turns = 0
        self.low, self.high = np.inf, -np.inf
        self.levels: list[np.ndarray] = []      # each (2, m): values and weights

    def empty(self) -> Self:
        return type(self)(self.probabilities, size=self.size)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        rows, w = _rows(values, start, weights, "QuantileSketch")
        if rows.shape[1] != 1:
            raise InputError("QuantileSketch takes one number a snapshot; got items of shape "
                             f"{tuple(values.shape[1:])}. For arrays: ek.Quantiles")
        self.n += len(rows)
        x, w = rows[w > 0, 0], w[w > 0]
        if len(x):
            self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
            self._put(0, np.stack([x, w]))
            self._compact()

    def merge(self, later: Self) -> None:
        self.n += later.n
        self.error += later.error
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)
        for level, items in enumerate(later.levels):
            self._put(level, items)
        self._compact()

    def result(self) -> QuantileResult:
        """Raises StatisticsError where nothing with a weight above zero was seen."""
        if not self.levels:
            raise StatisticsError("no snapshots with a weight above zero; there is nothing to take quantiles of")
        x, w = np.concatenate(self.levels, axis=1)
        order = np.argsort(x, kind="stable")
        x, upto = x[order], np.cumsum(w[order])

        def at(targets: np.ndarray) -> np.ndarray:
            where = np.searchsorted(upto, targets)
            return np.where(where < len(x), x[np.minimum(where, len(x) - 1)], self.high)

        targets = self.probabilities * upto[-1]
        lower = np.where(targets - self.error <= 0, self.low, at(targets - self.error)) if self.error else at(targets)
        upper = at(targets + self.error)
        return QuantileResult(probabilities=self.probabilities.copy(), values=at(targets), lower=lower, upper=upper,
                              rank_error=float(self.error / upto[-1]), n=self.n)

    def state(self) -> dict[str, Array]:
        state = {"facts": np.array([self.n, self.error, self.turns, self.low, self.high])}
        return state | {f"level{k}": items.copy() for k, items in enumerate(self.levels)}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        facts = np.asarray(state["facts"])
        new.n, new.error, new.turns = int(facts[0]), float(facts[1]), int(facts[2])
        new.low, new.high = float(facts[3]), float(facts[4])
        new.levels = [np.array(state[f"level{k}"]) for k in range(len(state) - 1)]
        return new

    def _put(self, level: int, items: np.ndarray) -> None:
        while len(self.levels) <= level:
            self.levels.append(np.empty((2, 0)))
        self.levels[level] = np.concatenate([self.levels[level], items], axis=1)

    def _compact(self) -> None:
        level = 0
        while level < len(self.levels):
            x, w = self.levels[level]
            if len(x) > self.size:
                if w.min() == w.max():
                    x = np.sort(x)      # several times quicker than sorting places
                else:
                    order = np.argsort(x, kind="stable")
                    x, w = x[order], w[order]
                even = len(x) // 2 * 2
                xs, ws = x[:even].reshape(-1, 2), w[:even].reshape(-1, 2)
                self.error += float(ws.min(axis=1).max())
                stays = np.where(ws[:, 0] == ws[:, 1], self.turns % 2, ws.argmax(axis=1))
                self.turns += 1
                self.levels[level] = np.stack([x[even:], w[even:]])
                self._put(level + 1, np.stack([xs[np.arange(len(xs)), stays], ws.sum(axis=1)]))
            level += 1


def _rows(values: Array, start: int, weights: Array | None, who: str) -> tuple[np.ndarray, np.ndarray]:
    """Values as (n, m) float64 and weights (n,) in memory; refuses what has no order."""
    real_only(values, who)
    rows = as_array(values, "values", dtype=np.float64).reshape(len(values), -1)
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise InputError(f"snapshot {start + int(np.argmax(bad))} is not finite; {who} cannot place it. Leave it out, "
                         "or give it weight zero and a finite value")
    return rows, np.ones(len(rows)) if weights is None else as_array(weights, "weights", dtype=np.float64)


def _checked_probabilities(probabilities: float | Sequence[float] | np.ndarray) -> np.ndarray:
    p = np.atleast_1d(as_array(probabilities, "probabilities", dtype=np.float64))
    if p.ndim != 1 or len(p) == 0 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"probabilities lie between 0 and 1; got {probabilities!r}")
    return p
