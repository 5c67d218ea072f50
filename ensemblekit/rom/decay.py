"""How fast the modes of a flow lose their weight: what its spectrum says about its complexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.estimate import quantile
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.rom.basis import Basis

FLOOR = 1e-7
"""Singular values below this share of the first may be rounding (of a Gram matrix, of float32 snapshots)."""
FEWEST = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecayRate(Result):
    """The law that singular values σ_i follow: c exp(-rate i) or c i^-rate."""

    kind: Literal["exponential", "algebraic"]
    """"exponential": each further mode shrinks the error by the same factor; "algebraic": each doubling does."""
    rate: float
    """Of singular values; energies σ² fall at twice the rate."""
    interval: tuple[float, float]
    """Of the rate, at `confidence`."""
    confidence: float
    scale: float
    """c, in the unit of the singular values."""
    modes: tuple[int, int]
    """First and last mode fitted, counted from 1."""
    misfit: float
    """Root mean square of log10(σ_i / law): 0.1 is a typical deviation of 26 %."""
    other_misfit: float
    """The same for the other law."""

    @property
    def decided(self) -> bool:
        """Whether the other law fits clearly worse: half as large a misfit again."""
        return self.other_misfit > 1.5 * self.misfit

    @property
    def energy_rate(self) -> float:
        """Rate at which the modes' energies fall, 2 rate."""
        return 2 * self.rate

    def singular_values(self, i: ArrayLike) -> np.ndarray:
        """The law's σ_i at modes i, counted from 1."""
        i = np.asarray(i, dtype=np.float64)
        return self.scale * (np.exp(-self.rate * i) if self.kind == "exponential" else i**-self.rate)

    def modes_for(self, error: float) -> float:
        """How many modes the law needs for a relative error; infinite where its tail does not sum (rate below 1/2).

        The tail of the law's energies is summed as an integral, so this is an extrapolation, good to a mode or so.
        """
        if not 0 < error < 1:
            raise InputError(f"an error is a number between 0 and 1; got {error!r}")
        if self.kind == "exponential":
            return math.ceil(-math.log(error) / self.rate)
        power = 2 * self.rate - 1
        if power <= 0:
            return math.inf
        # sum from k + 1 of i^-2r ~ (k + 1/2)^-(2r - 1) / (2r - 1), over the sum of all
        from scipy.special import zeta

        total = float(zeta(2 * self.rate, 1))
        return math.ceil((error**2 * total * power) ** (-1 / power) - 0.5)

    def __str__(self) -> str:
        low, high = self.interval
        law = f"exp(-{self.rate:.3g} i)" if self.kind == "exponential" else f"i^-{self.rate:.3g}"
        step = (f"each mode has {100 * math.exp(-self.rate):.3g} % of the last one's amplitude"
                if self.kind == "exponential" else
                f"twice as many modes leave {100 * 2.0 ** -(self.rate - 0.5):.3g} % of the error" if self.rate > 0.5 else
                "more modes hardly help")
        doubt = "" if self.decided else f"; the other law fits about as well ({self.other_misfit:.2g} decades)"
        return (f"{self.kind} decay, singular values as {law} ({100 * self.confidence:g} % CI {low:.3g} to {high:.3g}; "
                f"modes {self.modes[0]} to {self.modes[1]}, misfit {self.misfit:.2g} decades{doubt}): {step}")


def decay_rate(basis: Basis | ArrayLike, *, modes: tuple[int, int] | None = None, confidence: float = 0.95) -> DecayRate:
    """Whether the singular values of a basis fall exponentially or algebraically, and how fast.

    Straight lines are fitted to log σ against i and against log i, and the closer one is taken. The interval allows for
    residuals that are alike from mode to mode, as pairs make them (Newey and West, Econometrica 55, 703, 1987).

    Arguments:
        basis: a Basis, or an array of singular values, falling. Of a basis whose whole spectrum is known (`spectrum_complete`)
            that is fitted, however many modes were kept.
        modes: first and last mode to fit, from 1; by default all that stand above rounding (1e-7 of the first). Of a whole
            spectrum no more than half as many as there are snapshots: it ends with them, and falls faster towards its end.
        confidence: of the interval.

    Raises:
        InputError: values that do not fall, or a range that is none.
        StatisticsError: fewer than five modes to fit.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence is a number between 0 and 1; got {confidence!r}")
    sigma = as_array(known_spectrum(basis), "singular values", dtype=np.float64)
    if sigma.ndim != 1 or not np.isfinite(sigma).all() or (np.diff(sigma) > 1e-9 * sigma[:1]).any() or (sigma < 0).any():
        raise InputError("singular values are a falling series of numbers, shape (k,)")
    if modes is None:
        first, last = 1, int(np.count_nonzero(sigma > FLOOR * sigma[0])) if len(sigma) else 0
        if isinstance(basis, Basis) and basis.spectrum_complete:
            last = min(last, max(FEWEST, basis.n // 2))
    else:
        first, last = modes
        if not 1 <= first < last <= len(sigma) or sigma[last - 1] <= 0:
            raise InputError(f"modes is (first, last) within 1 to {len(sigma)}, of values above 0; got {modes!r}")
    if last - first + 1 < FEWEST:
        raise StatisticsError(f"a rate needs at least {FEWEST} modes; got {max(last - first + 1, 0)} above rounding. "
                              "Decompose with a larger rank")
    i = np.arange(first, last + 1, dtype=np.float64)
    y = np.log(sigma[first - 1:last])
    fits = {"exponential": _line(i, y, confidence), "algebraic": _line(np.log(i), y, confidence)}
    kind: Literal["exponential", "algebraic"] = (
        "exponential" if fits["exponential"][3] <= fits["algebraic"][3] else "algebraic")
    other = "algebraic" if kind == "exponential" else "exponential"
    slope, start, half, misfit = fits[kind]
    return DecayRate(kind=kind, rate=-slope, interval=(-slope - half, -slope + half), confidence=confidence,
                     scale=math.exp(start), modes=(first, last), misfit=misfit / math.log(10),
                     other_misfit=fits[other][3] / math.log(10))


def known_spectrum(basis: Basis | ArrayLike) -> ArrayLike:
    """All singular values where a basis knows them to the last, those of its modes where not; an array as it is."""
    if not isinstance(basis, Basis):
        return basis
    return basis.spectrum if basis.spectrum_complete and basis.spectrum is not None else basis.singular_values


def _line(x: np.ndarray, y: np.ndarray, confidence: float) -> tuple[float, float, float, float]:
    """Slope, intercept, half the slope's interval and root mean square residual of a straight line."""
    n = len(x)
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ (y - y.mean())) / spread
    residual = y - y.mean() - slope * centred
    scores = centred * residual
    lags = min(n - 1, max(2, math.ceil(4 * (n / 100) ** (2 / 9))))
    total = float(scores @ scores)
    for lag in range(1, lags + 1):
        total += 2 * (1 - lag / (lags + 1)) * float(scores[lag:] @ scores[:-lag])
    plain = float(residual @ residual) / (n - 2) * spread
    half = float(quantile(confidence, n - 2)) * math.sqrt(max(total * n / (n - 2), plain)) / spread
    return slope, float(y.mean() - slope * x.mean()), half, math.sqrt(float(residual @ residual) / n)
