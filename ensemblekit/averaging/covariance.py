"""Covariance of all pairs of elements; merges in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import chunks, in_range, like, plain, same_item
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import FREE, common, ldexp, power_of_two, weight_exponent
from ensemblekit.source import Array, is_torch

MOST_BYTES = 8 << 30
"""Exponent of an element that has been 0 so far: any other replaces it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CovarianceResult(Result):
    """Second moments of the flattened item of p numbers."""

    FIGURE = "averages.covariance"

    mean: Array
    """Shape (p,)."""
    covariance: Array
    """Shape (p, p), unbiased as in :class:`Moments`; complex: E[(x - μ)(x - μ)ᴴ]."""
    n: int
    """Snapshots, those of weight 0 included."""
    n_eff: float
    """Kish's (Σw)² / Σw²."""
    exponent: Array | None = None
    """Set where values are so large or small that a covariance may leave float64 (infinity or 0 then stand in it): whole
    numbers e (p,) with covariance[i, j] = `reduced`[i, j] * 2**(e[i] + e[j]). ``correlation`` is right for all the same."""
    reduced: Array | None = None
    """Shape (p, p), where `exponent` is set."""

    @property
    def correlation(self) -> Array:
        """Shape (p, p), ones on the diagonal; NaN for elements that do not vary."""
        covariance = self.covariance if self.reduced is None else self.reduced
        std = covariance.diagonal().real ** 0.5
        with np.errstate(invalid="ignore", divide="ignore"):
            return covariance / (std[:, None] * std[None, :])


class Covariance:
    """Covariance matrix of the p elements of an item, in O(p²) memory. Wide items: ``Gram`` costs O(n²) instead."""

    def __init__(self) -> None:
        self.n, self.weight, self.weight2 = 0, 0.0, 0.0
        self.item: tuple[int, ...] = ()
        self.mean: Array = None
        self.comoment: Array = None
        self.exponent: np.ndarray | None = None     # powers of two that the elements are divided by; None: none is
        self.weight_exponent = 0

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if len(values) == 0:
            return
        if self.mean is not None:
            same_item(self.item, values, "Covariance")
        self.item = tuple(values.shape[1:])
        p = int(np.prod(self.item))
        if p * p * 8 > MOST_BYTES:
            raise InputError(f"the covariance of {p} elements takes {p * p * 8 / 2**30:.0f} GiB. For few snapshots of "
                             "many elements reduce with ek.Gram() and cut=\"space\"; else reduce fewer elements by a map")
        w = np.ones(len(values)) if weights is None else self._weighed(as_array(weights, "weights", dtype=np.float64))
        for rows, x in chunks(values):
            part = w[rows]
            total = float(part.sum())
            if total == 0.0:
                self.n += len(part)
                continue
            flat = x.reshape(len(x), -1)
            ww = like(flat, part).reshape(-1, 1)
            facts = len(part), total, float((part * part).sum())
            with np.errstate(over="ignore", invalid="ignore"):
                mean, comoment = _sums(flat, ww, total)
            if self.exponent is not None or not in_range(abs(mean), abs(comoment.diagonal())):
                e = np.where(_numbers(abs(flat).max(0) if not is_torch(flat) else abs(flat).amax(0)) == 0, FREE,
                             power_of_two(flat, 0))
                e = common(e, FREE if self.mean is None else self._free())
                if e.any():
                    self._absorb(*facts, *_sums(ldexp(flat, -e), ww, total), e)
                    continue
            self._absorb(*facts, mean, comoment)

    def _weighed(self, w: np.ndarray) -> np.ndarray:
        """Weights over the power of two that suits all so far."""
        self._weigh(weight_exponent(w, self.weight_exponent, self.mean is None))
        return ldexp(w, -self.weight_exponent)

    def _weigh(self, exponent: int) -> None:
        step = self.weight_exponent - exponent
        if step and self.mean is not None:
            self.weight, self.weight2 = ldexp(self.weight, step), ldexp(self.weight2, 2 * step)
            self.comoment = ldexp(self.comoment, step)
        self.weight_exponent = exponent

    def _exponents(self) -> np.ndarray:
        return np.zeros(len(self.mean), np.int64) if self.exponent is None else self.exponent

    def _free(self) -> np.ndarray:
        """The exponents, `FREE` where an element has been nothing but 0."""
        return np.where(_numbers((self.mean == 0) & (self.comoment.diagonal() == 0)), FREE, self._exponents())

    def merge(self, later: Self) -> None:
        if later.mean is None:
            self.n += later.n
        else:
            self.item = later.item
            weight, weight2, comoment = later.weight, later.weight2, later.comoment
            if self.weight_exponent != later.weight_exponent:
                self._weigh(later.weight_exponent if self.mean is None else max(self.weight_exponent, later.weight_exponent))
                step = later.weight_exponent - self.weight_exponent
                weight, weight2, comoment = ldexp(weight, step), ldexp(weight2, 2 * step), ldexp(comoment, step)
            self._absorb(later.n, weight, weight2, later.mean, comoment, later.exponent)

    def _absorb(self, n: int, w: float, w2: float, mean: Array, comoment: Array, exponent: np.ndarray | None = None) -> None:
        if self.mean is not None and (exponent is not None or self.exponent is not None):
            own, its = self._exponents(), np.zeros(len(mean), np.int64) if exponent is None else exponent
            zero = _numbers((mean == 0) & (comoment.diagonal() == 0))
            e = common(self._free(), np.where(zero, FREE, its))
            self.mean, self.comoment = _over(self.mean, self.comoment, e - own)
            mean, comoment = _over(mean, comoment, e - its)
            self.exponent = e if e.any() else None
        if self.mean is None:
            self.mean, self.comoment = plain(mean), plain(comoment)
            self.exponent = None if exponent is None or not exponent.any() else exponent.copy()
        else:
            share = w / (self.weight + w)
            gap = mean - self.mean
            self.comoment = self.comoment + comoment + gap[:, None] * gap.conj()[None, :] * (self.weight * share)
            self.mean = self.mean + gap * share
        self.n, self.weight, self.weight2 = self.n + n, self.weight + w, self.weight2 + w2

    def result(self) -> CovarianceResult:
        """Raises StatisticsError where no snapshot, or none with a weight above 0, was seen."""
        if self.mean is None:
            raise StatisticsError("no snapshots" if self.n == 0 else f"all weights of {self.n} snapshots are 0")
        freedom = self.weight - self.weight2 / self.weight
        scale = float("nan") if freedom <= 1e-12 * self.weight else 1.0 / freedom
        covariance, e = self.comoment * scale, self.exponent
        full = covariance if e is None else ldexp(covariance, e[:, None] + e[None, :])
        return CovarianceResult(mean=plain(self.mean) if e is None else ldexp(self.mean, e), covariance=full, n=self.n,
                                n_eff=self.weight**2 / self.weight2, exponent=e, reduced=None if e is None else covariance)

    def state(self) -> dict[str, Array]:
        if self.mean is None:
            return {"n": np.array(self.n)}
        return {"n": np.array(self.n), "weight": np.array(self.weight), "weight2": np.array(self.weight2),
                "item": np.array(self.item, dtype=np.int64), "mean": plain(self.mean), "comoment": plain(self.comoment),
                **({} if self.exponent is None else {"exponent": self.exponent.copy()}),
                **({"weight_exponent": np.array(self.weight_exponent)} if self.weight_exponent else {})}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n = int(state["n"])
        if "mean" in state:
            new.weight, new.weight2 = float(state["weight"]), float(state["weight2"])
            new.item = tuple(int(k) for k in state["item"])
            new.mean, new.comoment = plain(state["mean"]), plain(state["comoment"])
            new.exponent = np.array(state["exponent"]) if "exponent" in state else None
            new.weight_exponent = int(state.get("weight_exponent", 0))
        return new


def _sums(flat: Array, weights: Array, total: float) -> tuple[Array, Array]:
    """Weighted mean and co-moments of one block (n, p)."""
    mean = (flat * (weights / total)).sum(0)
    gap = flat - mean
    return mean, (gap * weights).T @ gap.conj()


def _over(mean: Array, comoment: Array, step: np.ndarray) -> tuple[Array, Array]:
    """Both of elements divided by 2**step."""
    return (ldexp(mean, -step), ldexp(comoment, -step[:, None] - step[None, :])) if step.any() else (mean, comoment)


def _numbers(x: Array) -> np.ndarray:
    return np.asarray(x.cpu() if is_torch(x) else x)
