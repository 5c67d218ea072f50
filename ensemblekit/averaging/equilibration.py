"""Where a run has forgotten its start: the point after which it holds the most independent snapshots.

Stationary data truncated at the largest n_eff lose coverage (the largest of many noisy n_eff is one whose g happens to
be low), so :func:`significant_start` truncates only where n_eff rises by more than that noise explains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ensemblekit.averaging.correlation import _rounding, _series, chodera_window, closed
from ensemblekit.averaging.times import spacing
from ensemblekit.averaging.weights import residual, rests_on_few
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.results import Result
from ensemblekit.scaling import scaled

Equilibrate = str | float | None
"""How a start is left out: "auto", None, a whole number of snapshots, or a float, a time."""
LATEST = 1 / 3
"""Share of the run beyond which an equilibration found automatically is that of a run that still drifts."""

STARTS = 512            # candidates tried where no step is given
MARGIN = 10.0
"""Truncate where n_eff rises by a factor of 1 + MARGIN / sqrt(n_eff after it): see docs/statistics.md."""

FAR = 4.0
"""Standard errors by which a transient differs from what follows; chosen on stationary series, where it is passed by few."""
COMPONENTS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Equilibration(Result):
    """The best point to start averaging from, and what it is worth."""

    start: int
    """First snapshot kept."""
    g: float
    """Statistical inefficiency of the snapshots kept (Chodera's; for "mser" too)."""
    n_eff: float
    """Independent snapshots kept, (n - start) / g."""
    n_eff_whole: float
    """The same without truncation; 0 where the first snapshot is one gross outlier, which hides all correlation."""
    n: int
    """Snapshots in the series."""
    method: str
    """"n_eff" or "mser"."""

    @property
    def significant(self) -> bool:
        """Whether n_eff rises by more than the noise of g explains."""
        return self.start > 0 and self.n_eff > self.n_eff_whole * (1.0 + MARGIN / np.sqrt(self.n_eff))


def detect_equilibration(x: Any, *, method: Literal["n_eff", "mser"] = "n_eff", step: int | None = None,
                         latest: int | None = None) -> Equilibration:
    """Find the start of the equilibrated part of a series.

    Arguments:
        x: (n,), real and finite.
        method: "n_eff" takes the start t0 that maximises (n - t0) / g(t0) (Chodera, J. Chem. Theory Comput. 12, 1799,
            2016), as pymbar's detect_equilibration(fast=False) does, to 1 % of the maximum; leading snapshots
            that weigh more in the variance than all that follow (one bad first frame) are never kept.
            "mser" minimises the squared deviations of what is kept over its count squared (White 1997), t0 <= n/2.
        step: try every step-th snapshot; None for about 512 candidates.
        latest: the last start tried by "n_eff"; None for n - 5.

    Raises:
        InputError: what is not a real, finite series, a step below 1, an unknown method.
        StatisticsError: an empty series.
    """
    if method not in ("n_eff", "mser"):
        raise InputError(f'method is "n_eff" or "mser"; got {method!r}')
    if step is not None and step < 1:
        raise InputError(f"step is a whole number of snapshots above 0; got {step!r}")
    x = scaled(_series(x))[0]
    n = len(x)
    if n < 8 or np.ptp(x) ** 2 <= float(_rounding(x)):
        return Equilibration(start=0, g=1.0, n_eff=float(min(n, 1)), n_eff_whole=float(min(n, 1)), n=n, method=method)
    step = step or max(1, n // STARTS)
    y = x - x[n // 2:].mean()       # near the mean of what will be kept, so that no transient cancels digits
    if method == "mser":
        start = _least_error(y)
        g, whole = _inefficiency(y[start:]), _inefficiency(y)
        return Equilibration(start=start, g=g, n_eff=(n - start) / g, n_eff_whole=n / whole, n=n, method=method)
    first = _bad_start(y)
    starts = np.unique(np.concatenate([[first], np.arange(first - first % step, n - 4, step)]))
    starts = starts[(starts >= first) & (starts <= max(first, n if latest is None else latest))]
    best, g = _largest(y, starts)
    whole = _inefficiency(y) if first == 0 else np.inf
    return Equilibration(start=best, g=g, n_eff=(n - best) / g, n_eff_whole=n / whole, n=n, method=method)


def significant_start(x: np.ndarray) -> int:
    """The start of averaging, in the first half, that is worth its loss of data.

    0 unless n_eff rises significantly, and what comes before lies `FAR` away from what comes after: a slow part under noise
    makes g, and so n_eff, jump from start to start.
    """
    equilibration = detect_equilibration(x, step=max(1, len(x) // 64), latest=len(x) // 2)
    return equilibration.start if equilibration.significant and _begins_apart(x, equilibration.start) else 0


def _begins_apart(x: np.ndarray, start: int) -> bool:
    """Whether the mean of the snapshots before `start`, or of the first half, quarter, ... of them, is that of a transient.

    It is held against the mean of what comes after, with the spectrum at zero of that, from its lowest components.
    """
    from scipy.fft import dct

    y = x[start:] - x[start:].mean()
    n = len(y)
    spread = float(y @ y) / n
    power = dct(y)[1:min(COMPONENTS, n // 2) + 1]
    spectrum = max(float((power * power).mean()) / (2 * n), spread)
    before, length = x[:start] - x[start:].mean(), start
    while length:
        squared = min(spectrum / length, spread) + spectrum / n
        if float(before[:length].mean()) ** 2 > FAR**2 * squared:
            return True
        length //= 2
    return False


def _largest(y: np.ndarray, starts: np.ndarray) -> tuple[int, float]:
    """The start with the largest (n - t0) / g(t0), and that g; within 1 % of the maximum over `starts`.

    Lagged products up to a few times the window of the second half give g exactly for most starts and a lower bound
    for the rest (those with a transient in them); these are settled by FFT in order of what they could be worth, as
    long as any could be the largest.
    """
    from ensemblekit.averaging.kernels_series import suffix_inefficiency

    n = len(y)
    lags = min(n, int(np.clip(1.5 * max(_window_of(y[n // 2:]), _window_of(y[3 * n // 4:])), 32, 4096)))
    sums = np.concatenate([[0.0], np.cumsum(y)])
    falling = np.ascontiguousarray(starts[::-1])
    g = np.empty(len(falling))
    ended = np.empty(len(falling), dtype=np.bool_)
    suffix_inefficiency(np.concatenate([y, np.zeros(lags)]), sums, falling, np.zeros(lags), g, ended)
    worth = (n - falling) / g
    best = int(np.argmax(np.where(ended, worth, -1.0)))
    for k in np.argsort(-worth, kind="stable"):
        if ended[k]:
            continue
        if ended.any() and worth[k] <= 1.01 * worth[best]:
            break
        g[k] = _inefficiency(y[falling[k]:])
        worth[k] = (n - falling[k]) / g[k]
        ended[k] = True
        if worth[k] > worth[best] or not ended[best]:
            best = int(k)
    return int(falling[best]), float(g[best])


def _inefficiency(y: np.ndarray) -> float:
    """Chodera's g by FFT; n for a series that does not change."""
    try:
        return closed(y, chodera_window)[1][0]
    except StatisticsError:
        return float(len(y))


def _window_of(y: np.ndarray) -> int:
    try:
        return closed(y, chodera_window)[1][1]
    except StatisticsError:
        return 0


def _bad_start(y: np.ndarray) -> int:
    """How many leading snapshots lie more than 10 rms off, and weigh more, each, than all that follow it together."""
    n = len(y)
    squares = (y - np.median(y[n // 2:])) ** 2
    after = np.cumsum(squares[::-1])[::-1]
    k = 0
    while k < n // 4 and squares[k] > after[k + 1] * max(1.0, 100.0 / (n - k - 1)):
        k += 1
    return k


def _least_error(y: np.ndarray) -> int:
    """The start up to n/2 with the least sum of squared deviations over the square of the count."""
    n = len(y)
    count = np.arange(n, 0, -1)
    total = np.cumsum(y[::-1])[::-1]
    square = np.cumsum((y**2)[::-1])[::-1]
    return int(np.argmin(((square - total**2 / count) / count**2)[:n // 2 + 1]))


def detect_common_start(columns: np.ndarray, weights: np.ndarray | None) -> int:
    """The latest significant start of several series (n, k) of one run, such as the summaries of an array."""
    start = max((significant_start(residual(s, weights)) for s in scaled(columns, 0)[0].T
                 if np.isfinite(s).all() and np.ptp(s) > 1e-12 * np.abs(s).max()), default=0)
    return unless_carried(start, weights)


def unless_carried(start: int, weights: np.ndarray | None) -> int:
    """The start found, or 0 where the snapshots before it carry more than twice their share of the weight.

    A weighted average rests on those: what stands out in the residual there is the weight, not a transient.
    """
    if weights is None or not weights[:start].sum() * len(weights) > 2 * start * weights.sum():
        return start
    return 0


def run_doubts(start: int, n: int, equilibration: Equilibrate, weights: np.ndarray | None,
               columns: np.ndarray) -> tuple[str, ...]:
    """Why no interval of a run (n, of which those from `start` on are averaged) can be vouched for; () where there is nothing.

    columns: (n,) or (n, k), the values or what stands for them.
    """
    late = isinstance(equilibration, str) and start > LATEST * n
    drifting = (f"still drifting: the average would begin at snapshot {start} of {n}, beyond a third of the run",)
    return (drifting if late else ()) + rests_on_few(None if weights is None else weights[start:], columns[start:])


def discarded(equilibration: Equilibrate, n: int, times: np.ndarray | None) -> int:
    """How many snapshots a number or a time leaves out at the start of a run of n."""
    return count_discarded(equilibration, n, times, lambda: 0)


def count_discarded(equilibration: Equilibrate, n: int, times: np.ndarray | None, detect: Callable[[], int]) -> int:
    """How many snapshots to discard; `detect` finds it for "auto"."""
    if equilibration is None:
        return 0
    if isinstance(equilibration, str):      # "auto": see check_equilibration
        return detect() if n >= 8 else 0
    if isinstance(equilibration, float):
        if times is None:
            raise InputError(f"equilibration={equilibration!r} is a time, and the source has no times; "
                             "pass a whole number of snapshots")
        start = int(np.searchsorted(times, times[0] + equilibration - 1e-3 * spacing(times)))      # times are rounded
    else:
        start = int(equilibration)
    if start >= n:
        raise StatisticsError(f"equilibration={equilibration!r} leaves none of the {n} snapshots")
    return start


def check_equilibration(equilibration: object) -> None:
    """Refuse what is no way to discard a start."""
    if equilibration is None or (isinstance(equilibration, str) and equilibration == "auto"):
        return
    if isinstance(equilibration, bool) or not isinstance(equilibration, int | float | np.integer) or not equilibration >= 0:
        raise InputError('equilibration is "auto", None, a whole number of snapshots or a time as a float, not below '
                         f"0; got {equilibration!r}")
