"""Statistics of snapshots with gaps: what is missing keeps its place in time and carries no weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from ensemblekit.averaging.covariance import Covariance
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.extremes import Extremes
from ensemblekit.averaging.histogram import Histogram
from ensemblekit.averaging.moments import Moments, MomentsResult
from ensemblekit.averaging.quantile import Quantiles, QuantileSketch
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.series import Series
from ensemblekit.averaging.window import Window
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import Array, Block

Missing = Literal["raise", "drop"]


def check_missing(missing: object) -> None:
    """Refuse what is no way to treat missing snapshots."""
    if missing not in ("raise", "drop"):
        raise InputError(f'missing is "raise" or "drop"; got {missing!r}')


def omitting(reducer: Reducer, branch: str) -> Reducer:
    """A reducer with the same settings that leaves out what is NaN: number by number where it takes each element by itself
    (Moments, Histogram), whole snapshots else.

    Raises InputError for one that needs every snapshot.
    """
    if type(reducer) is Moments:
        return PresentMoments(reducer.order)
    if isinstance(reducer, Histogram | Series | Window):        # count NaN apart, or keep it in its place
        return reducer
    if isinstance(reducer, Covariance | Quantiles | QuantileSketch | Extremes):
        return WholeSnapshots(reducer)
    raise InputError(f'branch {branch!r}: {type(reducer).__name__} takes every snapshot, so that missing="drop" has no answer. '
                     "It goes with Moments, Covariance, Quantiles, QuantileSketch, Extremes, Histogram, Series and Window; or "
                     "fill the gaps before")


def missing_snapshots(values: np.ndarray, start: int) -> np.ndarray | None:
    """Which snapshots of (n, *item) are missing, (n,) bool: those that are NaN throughout; None where none has NaN.

    Raises InputError where one is NaN in part, naming it.
    """
    if values.dtype.kind not in "fc" or not len(values):
        return None
    gone = np.isnan(values).reshape(len(values), -1)
    some = gone.any(axis=1)
    if not some.any():
        return None
    part = some & ~gone.all(axis=1)
    if part.any():
        k = int(np.argmax(part))
        raise InputError(f"snapshot {start + k} is NaN in {int(gone[k].sum())} of {gone.shape[1]} numbers, and here whole "
                         'snapshots are left out. Number by number: ek.average(x, missing="drop"), ek.reduce(x, '
                         'ek.Moments(), missing="drop"), rom.average(x, missing="drop")')
    return some


class WholeSnapshots:
    """A reducer that is not given the snapshots that are NaN; the others keep their numbers. Merges in time."""

    def __init__(self, reducer: Any):
        self.reducer = reducer

    def empty(self) -> Self:
        return type(self)(self.reducer.empty())

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        values = as_array(values, "values")
        gone = missing_snapshots(values, start)
        if gone is None:
            self.reducer.update(values, start, weights)
            return
        there = np.flatnonzero(~gone)
        for stretch in np.split(there, np.flatnonzero(np.diff(there) > 1) + 1) if len(there) else ():
            rows = slice(int(stretch[0]), int(stretch[-1]) + 1)
            self.reducer.update(values[rows], start + rows.start, None if weights is None else weights[rows])

    def merge(self, later: Self) -> None:
        self.reducer.merge(later.reducer)

    def result(self) -> Any:
        return self.reducer.result()

    def state(self) -> dict[str, Array]:
        return self.reducer.state()

    def restored(self, state: Mapping[str, Any]) -> Self:
        return type(self)(self.reducer.restored(state))


class PresentMoments:
    """Moments of every element over the snapshots in which it is a number. Merges in time.

    Its result is a MomentsResult whose `sum_weights` and `n_eff` are of each element.
    """

    def __init__(self, order: int = 2):
        self.order = order
        self.n = 0
        self.sums: list[np.ndarray] = []        # Σw, Σw², mean, M2 (, M3, M4), each of the item's shape
        self.exponent: np.ndarray = np.zeros((), np.int64)      # powers of two that values are divided by, of each element

    def empty(self) -> Self:
        return type(self)(self.order)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        x = as_array(values, "values")
        if not len(x):
            return
        if self.order == 4 and x.dtype.kind == "c":
            raise InputError("skewness and kurtosis need real numbers; map to abs, real or imag first")
        x = x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
        there = ~np.isnan(x)
        w = np.ones(len(x)) if weights is None else as_array(weights, "weights", dtype=np.float64)
        w = np.where(there, w.reshape(-1, *[1] * (x.ndim - 1)), 0.0)
        x = np.where(there, x, 0.0)
        exponent = np.zeros((), np.int64) if x.dtype.kind == "c" else np.asarray(power_of_two(x, 0))
        if exponent.any():
            x = ldexp(x, -exponent)
        weight = w.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(weight > 0, (w * x).sum(axis=0) / np.where(weight > 0, weight, 1.0), 0.0)
        gap = np.where(there, x - mean, 0.0)
        powers = [(w * np.abs(gap) ** 2).sum(axis=0)] + [(w * gap**k).sum(axis=0) for k in range(3, self.order + 1)]
        self._take(len(x), [weight, (w**2).sum(axis=0), mean, *powers], exponent)

    def _take(self, n: int, other: list[np.ndarray], exponent: np.ndarray) -> None:
        """Chan, Golub & LeVeque (1983), Pébay (SAND2008-6212), element by element."""
        self.n += n
        if not self.sums:
            self.sums, self.exponent = other, exponent
            return
        if self.exponent.any() or exponent.any():
            (_, _, mean, m2, *_), (_, _, other_mean, n2, *_) = self.sums, other
            ours = (mean != 0) | (m2 != 0)      # what is 0 so far suits any exponent
            both = np.where(ours & ((other_mean != 0) | (n2 != 0)), np.maximum(self.exponent, exponent),
                            np.where(ours, self.exponent, exponent))
            self.sums, other = _over(self.sums, both - self.exponent), _over(other, both - exponent)
            self.exponent = both
        if self.sums[0].shape != other[0].shape:
            raise InputError(f"Moments of snapshots of shape {self.sums[0].shape} cannot take in some of {other[0].shape}")
        (a, a2, mean, m2, *high), (b, b2, other_mean, n2, *other_high) = self.sums, other
        total = np.where(a + b > 0, a + b, 1.0)
        gap = np.where((a > 0) & (b > 0), other_mean - mean, 0.0)
        joined = [a + b, a2 + b2, np.where(a > 0, mean + gap * b / total, other_mean),
                  m2 + n2 + np.abs(gap) ** 2 * a * b / total]
        if high:
            (m3, m4), (n3, n4) = high, other_high
            joined += [m3 + n3 + gap**3 * a * b * (a - b) / total**2 + 3 * gap * (a * n2 - b * m2) / total,
                       m4 + n4 + gap**4 * a * b * (a**2 - a * b + b**2) / total**3
                       + 6 * gap**2 * (a**2 * n2 + b**2 * m2) / total**2 + 4 * gap * (a * n3 - b * m3) / total]
        self.sums = joined

    def merge(self, later: Self) -> None:
        if later.sums:
            self._take(later.n, later.sums, later.exponent)

    def result(self) -> MomentsResult:
        if not self.sums:
            return Moments(self.order).result()
        weight, weight2, mean, m2, *high = self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = weight - weight2 / weight
            spread = m2 / weight
            more = {} if not high else {"skewness": high[0] / weight / spread**1.5,
                                        "kurtosis": high[1] / weight / spread**2 - 3}
            variance = np.where(freedom > 1e-12 * weight, m2 / freedom, np.nan)
        if self.exponent.any():
            more |= {"exponent": self.exponent, "reduced": variance}
            mean, variance = ldexp(mean, self.exponent), ldexp(variance, 2 * self.exponent)
        with np.errstate(invalid="ignore", divide="ignore"):
            return MomentsResult(mean=np.where(weight > 0, mean, np.nan), variance=variance, n=self.n,
                                 sum_weights=weight.copy(), n_eff=weight**2 / weight2, **more)   # type: ignore[arg-type]

    def state(self) -> dict[str, Array]:
        return {"n": np.array(self.n), "exponent": self.exponent.copy()} | {
            f"sums{k}": x.copy() for k, x in enumerate(self.sums)}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.exponent = int(state["n"]), np.array(state["exponent"])
        new.sums = [np.array(state[f"sums{k}"]) for k in range(len(state) - 2)]
        return new


def _over(sums: list[np.ndarray], exponent: np.ndarray) -> list[np.ndarray]:
    """Sums of values that are divided by 2**exponent once more."""
    weight, weight2, *powers = sums
    return [weight, weight2, *(ldexp(x, -k * exponent) for k, x in enumerate(powers, start=1))]


def without_gaps(values: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """A series (n,) with NaN as one with weights, zero where it is missing; and where it is not, (n,) bool.

    The error of the weighted mean is then that of a ratio, in which lags are still differences in time.
    """
    x = np.asarray(values)
    present = ~np.isnan(x) if x.dtype.kind == "f" else np.ones(len(x), bool)
    if present.all() or not present.any():
        return x, weights, present
    w = present.astype(np.float64) if weights is None else np.where(present, weights, 0.0)
    return np.where(present, x, x[present].mean()), w, present


def with_gaps_noted(estimate: Estimate, values: np.ndarray | None, present: np.ndarray) -> Estimate:
    """The estimate of a series (of arrays: values None) with gaps: it counts what is there, its correlation is that of the
    whole series."""
    n, missing = len(present), int((~present).sum())
    if not missing:
        return estimate
    kept = present[estimate.n_discarded:]
    g = estimate.statistical_inefficiency
    longest = float(np.nanmax(g)) if np.isfinite(g).any() else 0.0
    if longest > 1 and kept.sum() > 1:
        lags = range(1, min(max(1, int(np.ceil(longest))), len(kept) - 1, 1000) + 1)
        share = float(np.mean([(kept[:-k] & kept[k:]).mean() for k in lags])) / float(kept.mean())   # of pairs that are there
        grown: Any = 1 + (g - 1) / max(share, 1 / len(kept))
        whole = grown if np.ndim(g) == 0 else np.where(np.asarray(g) > 1, grown, g)
        estimate = replace(estimate, statistical_inefficiency=whole, correlation_time=estimate.correlation_time * whole / g)
    said = f"{missing} of {n} snapshots are missing; they keep their places in time"
    return replace(estimate, n=int(kept.sum()), series=values, verdict="; ".join(filter(None, [estimate.verdict, said])))


@dataclass(frozen=True, eq=False, slots=True)
class Present:
    """A map: 1 where a number is there, 0 where it is NaN."""

    field: str | None
    map: Any = None

    def values(self, block: Block) -> np.ndarray:
        if self.map is not None:
            return as_array(self.map(block), "values", kinds="biuf")
        assert self.field is not None
        return as_array(block.fields[self.field], "values", kinds="biuf")

    def __call__(self, block: Block) -> np.ndarray:
        return (~np.isnan(self.values(block))).astype(np.float64)


@dataclass(frozen=True, eq=False, slots=True)
class Departure:
    """A map: departures from `mean` over the share of snapshots in which a number is there, 0 where it is NaN."""

    present: Present
    mean: Any = 0.0
    share: Any = 1.0

    def __call__(self, block: Block) -> np.ndarray:
        x = self.present.values(block).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(np.isnan(x) | ~(np.asarray(self.share) > 0), 0.0, (x - self.mean) / self.share)
