"""Eigenvalues of a model in the units of its data, and what they say of its stability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ensemblekit.results import Result

Verdict = Literal["stable", "neutral", "unstable", "undecided"]
ROUNDING = 1e-9
"""Growth below this share of the fastest rate (at least of a turn a time unit) is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Eigenvalues(Result):
    """Eigenvalues of the linear part of a model, as continuous ones: exp((growth + 2πi frequency) t)."""

    FIGURE = "dynamics.eigenvalues"

    value: np.ndarray
    """(k,) complex, growth + 2πi frequency, per time unit; the slowest to decay first."""
    discrete: np.ndarray | None
    """(k,) complex, exp(value * period); None without a sampling period."""
    time_unit: str = ""
    interval: dict[str, tuple[np.ndarray, np.ndarray]] | None = None
    """"growth" and "frequency" -> lower and upper ends, (k,) each; None where no interval can be given (`reason`)."""
    confidence: float = 0.95
    reason: str = ""
    """Why there is no interval."""

    @property
    def growth(self) -> np.ndarray:
        """(k,): rates of growth (decay below 0), per time unit."""
        return self.value.real

    @property
    def frequency(self) -> np.ndarray:
        """(k,): cycles per time unit, of either sign in a pair."""
        return self.value.imag / (2 * np.pi)

    def __len__(self) -> int:
        return len(self.value)

    def __str__(self) -> str:
        per = f" per {self.time_unit}" if self.time_unit else ""
        lines = []
        for k in range(len(self.value)):
            line = f"{self.growth[k]: .6g} ± {abs(self.frequency[k]):.6g} cycles{per}"
            if self.interval is not None:
                (a, b), (c, d) = ((float(x[k]) for x in self.interval[name]) for name in ("growth", "frequency"))
                line += f"  (growth {a:.4g} to {b:.4g}, frequency {c:.4g} to {d:.4g})"
            lines.append(line)
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stability(Result):
    """Whether small disturbances of a model die out."""

    verdict: Verdict
    """"stable": all decay; "neutral": none grows, some last (to rounding); "unstable": some grow; "undecided": the interval
    of the slowest growth holds 0."""
    growth: float
    """The largest rate of growth, per time unit."""
    about: str
    """The state it is about: "zero", "a fixed point"."""
    reason: str
    """In words, with the unit."""

    def __str__(self) -> str:
        return self.reason


def slowest_first(values: np.ndarray) -> np.ndarray:
    """The order of eigenvalues by growth, the largest first; pairs together, positive frequency first."""
    scale = max(float(np.abs(values).max(initial=0)), 1e-300)
    growth = np.round(values.real / scale, 9)
    return np.lexsort((-values.imag, np.round(np.abs(values.imag) / scale, 9), -growth))


def continuous(discrete: np.ndarray, period: float) -> np.ndarray:
    """log(λ) / period; eigenvalues of 0, which end at once, as the largest decay a float64 can tell."""
    small = np.abs(discrete) < 1e-300
    return np.log(np.where(small, 1e-300, discrete).astype(complex)) / period


def intervals(point: np.ndarray, many: np.ndarray, confidence: float,
              n_blocks: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Intervals of growth and frequency from matched eigenvalues (s, k) of resamples: Student's, one less than blocks."""
    from scipy.special import stdtrit

    t = float(stdtrit(max(n_blocks - 1, 1), 0.5 + confidence / 2))
    by_name = {}
    turn = 2 * np.pi
    for name, x, values in (("growth", many.real, point.real), ("frequency", many.imag / turn, point.imag / turn)):
        half = t * x.std(axis=0, ddof=1)
        by_name[name] = (values - half, values + half)
    return by_name


def matched(eigenvalues: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Eigenvalues (s, k) of resamples in the order of those of the point estimate (k,), by assignment of least distance."""
    from scipy.optimize import linear_sum_assignment

    out = np.empty_like(eigenvalues)
    for j, row in enumerate(eigenvalues):
        _, columns = linear_sum_assignment(np.abs(point[:, None] - row[None, :]))
        out[j] = row[columns]
    return out


def stability(values: Eigenvalues, about: str) -> Stability:
    """The verdict over eigenvalues about a state."""
    growth = float(values.growth.max(initial=-math.inf))
    k = int(np.argmax(values.growth))
    rounding = ROUNDING * max(float(np.abs(values.value).max(initial=0)), 1e-300)
    per = f" per {values.time_unit}" if values.time_unit else ""
    text = f"growth {growth:.4g}{per}"
    if values.interval is not None:
        low, high = (float(x[k]) for x in values.interval["growth"])
        low_all, high_all = (float(x.max()) for x in values.interval["growth"])
        text += f" ({100 * values.confidence:g} % CI {low:.4g} to {high:.4g})"
        if low_all < 0 < high_all and abs(growth) > rounding:
            return Stability(verdict="undecided", growth=growth, about=about, reason=f"undecided about {about}: {text}")
    verdict: Verdict = "stable" if growth < -rounding else "neutral" if growth <= rounding else "unstable"
    return Stability(verdict=verdict, growth=growth, about=about, reason=f"{verdict} about {about}: {text}")
