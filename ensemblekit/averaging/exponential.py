"""Running average that forgets: each snapshot counts `decay` times the next. Merges in order, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

from ensemblekit.averaging.arrays import as_numbers, flat_pieces, join, one_row, plain, same_item, weighted_sum, wide
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import Array


class Exponential:
    """Exponential moving average; the weight of a snapshot falls by `decay` with every one that follows.

    Arguments:
        decay: between 0 and 1; or give `half_life` in snapshots, after which the weight is one half.
        start: "corrected" divides by the sum of the weights, so that early averages are unbiased (Adam's correction);
            "first" begins at the first snapshot, ``average = decay * average + (1 - decay) * x``, as torch's
            ``get_ema_multi_avg_fn`` does. Statistical weights of snapshots multiply; they need "corrected".
    """

    def __init__(self, decay: float | None = None, *, half_life: float | None = None,
                 start: Literal["corrected", "first"] = "corrected"):
        if (decay is None) == (half_life is None):
            raise InputError("give one of decay= and half_life=")
        if half_life is not None:
            if not half_life > 0:
                raise InputError(f"half_life is a number of snapshots above 0; got {half_life!r}")
            decay = 0.5 ** (1.0 / half_life)
        if decay is None or not 0.0 < decay < 1.0:
            raise InputError(f"decay lies between 0 and 1; got {decay!r}")
        if start not in ("corrected", "first"):
            raise InputError(f'start is "corrected" or "first"; got {start!r}')
        self.decay, self.begin = float(decay), start
        self.n = 0
        self.item: tuple[int, ...] = ()
        self.first: Array = None
        self.total: Array = None        # sum of decay**(snapshots after it) * w * x
        self.weight = 0.0               # the same sum of w
        self.weight_exponent = 0        # power of two that w is divided by in both

    def empty(self) -> Self:
        return type(self)(self.decay, start=self.begin)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        n = len(values)
        if n == 0:
            return
        if weights is not None and self.begin == "first":
            raise InputError('start="first" has no place for statistical weights; use start="corrected"')
        if self.first is None:
            self.first, self.item = plain(wide(values[:1])[0]), tuple(values.shape[1:])
            self.total = self.first * 0.0
        same_item(self.item, values, "Exponential")
        c = self.decay ** np.arange(n - 1, -1, -1, dtype=np.float64)
        if weights is not None or self.weight_exponent:
            c = c * self._weighed(np.ones(n) if weights is None else as_array(weights, "weights", dtype=np.float64))
        self._absorb(n, weighted_sum(c, values), float(c.sum()))

    def _weighed(self, w: np.ndarray) -> np.ndarray:
        """Weights over a power of two that brings the largest, and what earlier ones add up to, below 1."""
        largest = max(ldexp(self.weight, self.weight_exponent), float(w.max()))
        self._weigh(power_of_two(largest, always=True))
        return ldexp(w, -self.weight_exponent)

    def _weigh(self, exponent: int) -> None:
        step = self.weight_exponent - exponent
        if step:
            self.weight, self.total = ldexp(self.weight, step), ldexp(self.total, step)
        self.weight_exponent = exponent

    def add(self, pieces: Sequence[Array]) -> None:
        """Take one snapshot that comes as several arrays or tensors, flat items one after the other, in place.

        The same as ``update`` with one row of their concatenation. Real numbers.
        """
        width = sum(math.prod(piece.shape) for piece in pieces)
        if self.first is None or self.weight_exponent:
            self.update(one_row(pieces), 0)
            return
        if self.item != (width,):
            raise InputError(f"Exponential of snapshots of shape {self.item} cannot take in one of shape ({width},)")
        at = 0
        for piece, numbers in flat_pieces(pieces, self.total):
            rows = slice(at, at + len(piece))
            at += len(piece)
            if numbers:
                from ensemblekit.averaging import kernels

                kernels.add_faded(piece, self.decay, as_numbers(self.total)[rows])
            else:
                self.total[rows].mul_(self.decay).add_(piece)
        self.weight = self.weight * self.decay + 1.0
        self.n += 1

    def merge(self, later: Self) -> None:
        if later.n:
            if self.first is None:
                self.first, self.item, self.total = plain(later.first), later.item, later.first * 0.0
            if later.weight > 0.0:
                self._weigh(later.weight_exponent if self.weight == 0.0
                            else max(self.weight_exponent, later.weight_exponent))
            step = later.weight_exponent - self.weight_exponent
            self._absorb(later.n, ldexp(later.total, step), ldexp(later.weight, step))

    def _absorb(self, n: int, total: Array, weight: float) -> None:
        fade = self.decay**n
        self.total = self.total * fade + total
        self.weight = self.weight * fade + weight
        self.n += n

    def join(self, right: Self) -> None:
        if right.n:
            self.first, self.total = join(self.first, right.first), join(self.total, right.total)
            self.item = (self.item[0] + right.item[0],)

    def reshape(self, item: tuple[int, ...]) -> None:
        self.item = tuple(item)
        if self.n:
            self.first, self.total = self.first.reshape(item), self.total.reshape(item)

    def result(self) -> Array:
        """The average after the last snapshot, float64, shape (*item,). Raises StatisticsError where there is none."""
        if self.n == 0 or self.weight == 0.0:
            raise StatisticsError("no snapshots with a weight above 0")
        if self.begin == "first":
            return self.first * self.decay**self.n + self.total * (1.0 - self.decay)
        return self.total / self.weight

    def state(self) -> dict[str, Array]:
        state = {"n": np.array(self.n), "weight": np.array(self.weight), "item": np.array(self.item, dtype=np.int64),
                 **({"weight_exponent": np.array(self.weight_exponent)} if self.weight_exponent else {})}
        return state if self.first is None else {**state, "first": plain(self.first), "total": plain(self.total)}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.weight = int(state["n"]), float(state["weight"])
        new.weight_exponent = int(state.get("weight_exponent", 0))
        new.item = tuple(int(k) for k in state["item"])
        if "first" in state:
            new.first, new.total = plain(state["first"]), plain(state["total"])
        return new
