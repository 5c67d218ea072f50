"""What an average keeps of a stream of values: the series of a scalar, else sums over blocks or stretches, and summaries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from ensemblekit.averaging.blocking import BlockResult, BlockSums, joined_in_pairs
from ensemblekit.averaging.missing import Missing, missing_snapshots
from ensemblekit.averaging.moments import Moments
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.scaling import ldexp, power_of_two, scaled
from ensemblekit.source import Array

Keeps = Literal["blocks", "nonzero", "stretches"]

SAMPLED = 4096
ELEMENTS = 1 << 14
"""Elements whose blocks are looked at together: what that takes besides is bounded."""


class Observed:
    """What an average needs of a stream of values: the series of a scalar, else sums and a few summaries.

    The summaries stand for the whole item when its equilibration is sought: its mean, its root mean square, and two
    random projections. Merges in order.

    keeps: "blocks": sums over blocks of every length, some twenty numbers an element; "nonzero": the same of those elements
    that were ever other than 0, of items that are nearly all zeros; "stretches": two numbers an element, its mean and
    variance, of items so large that the blocks are the stretches of time which the states are.
    missing: "drop": snapshots that are NaN throughout have no weight, and summaries that are NaN.
    of: what is looked at of the values, (n, *item) -> (n, ...); None: the values themselves.
    """

    def __init__(self, keeps: Keeps = "blocks", missing: Missing = "raise",
                 of: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.keeps, self.missing, self.of = keeps, missing, of
        self.item: tuple[int, ...] | None = None
        self.parts: list[np.ndarray] = []
        self.blocks, self.moments = BlockSums(), Moments()
        self.elements = np.empty(0, np.int64)
        """Of "nonzero": places in the flat item, rising; one that is always 0 comes after them in the sums."""

    def empty(self) -> Self:
        return type(self)(self.keeps, self.missing, self.of)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        values = as_array(values, "values")
        if len(values) == 0:
            return
        values = values if self.of is None else self.of(values)
        check_real(values)
        self.item = tuple(values.shape[1:])
        if self.item == ():
            self.parts.append(values.astype(np.float64))
            return
        gone = None
        if self.missing == "drop":
            heavy = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
            gone = missing_snapshots(values, start)
            if gone is not None:
                values = np.where(gone.reshape(-1, *[1] * len(self.item)), 0.0, values)
                heavy = np.where(gone, 0.0, heavy)
            weights = heavy
        looked_at = equilibration_proxies(values)
        self.parts.append(looked_at if gone is None else np.where(gone[:, None], np.nan, looked_at))
        if self.keeps == "nonzero":
            values = self._nonzero(values.reshape(len(values), -1))
        if self.keeps != "stretches":
            self.blocks.update(values, start, weights)
        if self.keeps == "stretches" or weights is not None:      # without weights the block sums know the variance
            self.moments.update(values, start, weights)

    def _nonzero(self, flat: np.ndarray) -> np.ndarray:
        seen: np.ndarray = np.any(flat, axis=0)
        seen[self.elements] = True
        self._widen(np.flatnonzero(seen))
        chosen = np.zeros((len(flat), len(self.elements) + 1), flat.dtype)
        np.take(flat, self.elements, axis=1, out=chosen[:, :-1], mode="clip")
        return chosen

    def _widen(self, elements: np.ndarray) -> None:
        """Sums of these elements (mine and others), the others having been 0 until now."""
        if len(elements) > len(self.elements):
            places = np.append(np.searchsorted(elements, self.elements), len(elements))
            self.blocks = self.blocks.spread(places, len(elements) + 1)
            self.moments = self.moments.spread(places, len(elements) + 1)
            self.elements = elements

    def series(self) -> np.ndarray:
        """(n,) of a scalar, (n, 4) summaries of an array."""
        return np.concatenate(self.parts) if self.parts else np.empty(0)

    def mean(self) -> np.ndarray:
        """Weighted mean of an array, of its own shape."""
        assert self.item is not None
        mean = np.asarray((self.moments if self.keeps == "stretches" else self.blocks).result().mean)
        return mean if self.keeps != "nonzero" else in_places(mean, self.elements, self.item)

    def merge(self, later: Self) -> None:
        self.item = self.item if later.item is None else later.item
        self.parts = self.parts + later.parts
        if self.keeps == "nonzero" and later.item is not None:
            elements = places_of([self, later])
            self._widen(elements)
            if len(later.elements) < len(elements):
                later = later.restored(later.state())
                later._widen(elements)
        self.blocks.merge(later.blocks)
        self.moments.merge(later.moments)

    def result(self) -> Self:
        return self

    def state(self) -> dict[str, Array]:
        named = {f"blocks.{k}": v for k, v in self.blocks.state().items()}
        named |= {f"moments.{k}": v for k, v in self.moments.state().items()}
        if self.item is not None:
            named |= {"item": np.array(self.item, dtype=np.int64), "series": self.series()}
        return named | ({"elements": self.elements.copy()} if self.keeps == "nonzero" else {})

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        if "item" in state:
            new.item = tuple(int(k) for k in state["item"])
            new.parts = [np.array(state["series"])]
        if "elements" in state:
            new.elements = np.array(state["elements"])
        part = {name: {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
                for name in ("blocks", "moments")}
        new.blocks = new.blocks.restored(part["blocks"])
        new.moments = new.moments.restored(part["moments"])
        return new


class Elements(NamedTuple):
    """What some elements of an array have to show for their errors."""

    at: slice
    """Which of the elements, flat."""
    blocks: BlockResult
    """Of their values over 2**exponent."""
    variance: np.ndarray
    """Of snapshots (weighted where they are), over 4**exponent."""
    exponent: Any


def elements_of(states: Sequence[Observed], kish: float) -> Iterator[Elements]:
    """The elements of an array, some at a time, from consecutive states of one run, which are left as they are.

    Of "nonzero" states those of :func:`places_of`, and last the one that is always 0.

    kish: n times the sum of squared weights over their squared sum; 1 without weights.
    """
    if states[0].keeps == "nonzero":
        elements = places_of(states)
        states = [state.restored(state.state()) if len(state.elements) < len(elements) else state for state in states]
        for state in states:
            state._widen(elements)
        width = len(elements) + 1
    else:
        width = math.prod(states[0].item or ())
    for begin in range(0, width, ELEMENTS):
        at = slice(begin, min(begin + ELEMENTS, width))
        moments = [state.moments.part(at) for state in states]
        if states[0].keeps == "stretches":
            yield Elements(at, *_of_stretches(moments, kish))
            continue
        sums = BlockSums()
        for state in states:
            sums.merge(state.blocks.part(at))
        blocks, e = sums.result().over_power_of_two()
        variance = blocks.variances[0] if len(blocks.variances) else np.full(blocks.mean.shape, np.nan)
        if any(one.n for one in moments):
            total = moments[0]
            for more in moments[1:]:
                total.merge(more)
            variance = total.result().variance_over(e)
        yield Elements(at, blocks, np.asarray(variance), e)


def places_of(states: Sequence[Observed]) -> np.ndarray:
    """Places in the flat item of the elements that were ever other than 0, rising."""
    places = np.sort(np.concatenate([state.elements for state in states]))     # np.unique hashes, which takes ten times as long
    return places[np.diff(places, prepend=-1) > 0]


def in_places(values: np.ndarray, elements: np.ndarray, item: tuple[int, ...]) -> np.ndarray:
    """An array of shape `item` with these values at these places, and the last of them everywhere else."""
    full = np.zeros(math.prod(item)) if values[-1] == 0 else np.full(math.prod(item), values[-1])
    full[elements] = values[:-1]
    return full.reshape(item)


def _of_stretches(moments: Sequence[Moments], kish: float) -> tuple[BlockResult, np.ndarray, Any]:
    """The blocks that consecutive stretches of time are, and those that neighbours of them make together.

    Stretches that are not equally long count by their length (with weights: by their weight).
    """
    results = [one.result() for one in moments if one.weight > 0]
    if not results:
        raise StatisticsError("all weights are zero: no snapshot is left to average over")
    n, count = sum(one.n for one in moments), len(results)
    weights = np.array([one.sum_weights for one in results])
    share = (weights / weights.sum())[:, None]
    means, stds = np.array([one.mean for one in results]), np.array([one.std for one in results])
    spread = np.array([max(0.0, 1 - 1 / one.n_eff) for one in results])[:, None]
    e = power_of_two(np.concatenate([means, np.where(spread > 0, stds, 0.0)]), 0)
    means, stds = ldexp(means, -e), ldexp(stds, -e)
    centre = means[0]
    mean = centre + (share * (means - centre)).sum(axis=0)
    inside = np.where(spread > 0, share * spread * stds**2, 0.0).sum(axis=0)
    variance = (inside + (share * (means - mean) ** 2).sum(axis=0)) * (n / max(n - 1, 1))
    residual = share * count * (means - mean)
    lengths, counts, variances = joined_in_pairs(residual, n / count)
    if count < n:
        lengths, counts, variances = [1.0, *lengths], [n, *counts], [variance * kish, *variances]
    return BlockResult(mean=mean, n=n, lengths=np.array(lengths), counts=np.array(counts, dtype=np.int64),
                       variances=np.array(variances).reshape(len(counts), len(mean))), variance, e


def check_real(values: np.ndarray) -> None:
    """Refuse what has no order."""
    if values.dtype.kind not in "biuf":
        raise InputError(f"an average with an interval is of real numbers; got dtype {values.dtype}. Map complex "
                         "numbers to their real and imaginary parts: np.stack([z.real, z.imag], axis=-1)")


def equilibration_proxies(values: np.ndarray) -> np.ndarray:
    """Mean, root mean square and two random projections of each snapshot, (n, 4).

    Of up to 4096 elements spread evenly over the item; elements that are not finite are left out.
    """
    flat = values.reshape(len(values), -1)
    flat = flat[:, ::-(-flat.shape[1] // SAMPLED)]
    directions = _directions(flat.shape[1])
    proxies, wide = np.empty((len(flat), 4)), values.dtype.kind == "f" and values.dtype.itemsize > 4
    step = max(1, (1 << 17) // flat.shape[1])        # a megabyte at a time stays in the cache
    for a in range(0, len(flat), step):
        part = flat[a:a + step].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            clean = np.isfinite(part.sum()) or np.isfinite(part).all()
        if not clean:
            part = np.where(np.isfinite(part), part, 0.0)
        squares = np.einsum("ij,ij->i", part, part)
        e = 0
        if wide and not ((squares < 2.0**900) & (squares > 2.0**-800)).all():
            part, e = scaled(part)
            squares = np.einsum("ij,ij->i", part, part)
        proxies[a:a + step, 0] = ldexp(part.mean(axis=1), e)
        proxies[a:a + step, 1] = ldexp(np.sqrt(squares / part.shape[1]), e)
        proxies[a:a + step, 2:] = ldexp(part @ directions, e)
    return proxies


@lru_cache(maxsize=4)
def _directions(size: int) -> np.ndarray:
    """Two random directions, the same in every piece and on every engine."""
    return np.random.default_rng(20).standard_normal((size, 2)) / math.sqrt(size)


