"""Figures of averages and their errors: running mean, autocorrelation, blocking curve, replicas, histograms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblekit.averaging.blocking import BlockResult
from ensemblekit.averaging.blocking import blocking as block_errors
from ensemblekit.averaging.correlation import autocorrelation as correlations
from ensemblekit.averaging.correlation import statistical_inefficiency
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.replicas import read_runs, time_average
from ensemblekit.errors import InputError
from ensemblekit.plot.clock import Clock
from ensemblekit.plot.style import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    HEIGHT,
    INK,
    PALE,
    RED,
    TRACE,
    WIDTH,
    label,
    legend,
    new_axes,
    number_of,
    panels,
    single,
)
from ensemblekit.source import SnapshotSource

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.averaging.covariance import CovarianceResult
    from ensemblekit.averaging.histogram import HistogramResult
    from ensemblekit.averaging.moments import MomentsResult
    from ensemblekit.plot.style import AxesLike

MOST_POINTS = 1500
"""Columns a trace is drawn with; more than a page 100 mm wide can show."""


def estimate(answer: Estimate, *, ax: AxesLike | None = None) -> Axes | np.ndarray:
    """The figure that belongs to an Estimate: running mean, autocorrelation and blocking of a series, or its bars.

    Returns the three Axes of a series, (3,), or the one of the others. One Axes that is given for a series has the running
    mean alone. Raises InputError for averages of more than one axis.
    """
    several = ax is None or number_of(ax) > 1
    if several and np.ndim(answer.mean) == 0 and answer.series is not None and len(_kept(answer)) >= 4 and answer.stderr > 0:
        axes = panels(ax, 3, 1, (WIDTH, HEIGHT * 2.34))[:, 0]
        running_mean(answer, ax=axes[0])
        autocorrelation(answer, ax=axes[1])
        blocking(answer, ax=axes[2])
        return axes
    if np.ndim(answer.mean) == 0 and answer.series is not None:
        return running_mean(answer, ax=single(ax))
    if np.ndim(answer.mean) == 0:
        return _bar(answer, single(ax))
    return profile(answer, ax=single(ax))


def _bar(answer: Estimate, ax: Axes | None) -> Axes:
    """A number without a series: a point with its interval; the axes."""
    ax = new_axes(ax)
    ax.errorbar([answer.mean], [0], xerr=[[answer.mean - answer.low], [answer.high - answer.mean]], fmt="o", color=BLUE,
                capsize=3)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.axvline(answer.mean, color=PALE, lw=0.6, zorder=0)
    ax.set_xlabel(label("mean", answer.unit))
    return ax


def running_mean(answer: Estimate, *, name: str = "value", ax: Axes | None = None) -> Axes:
    """The series, what was discarded, and the mean up to each time with its interval; the axes.

    The band at time t is the final interval scaled by √(T/t), as the error of a longer average falls.
    """
    series, _, _ = _series(answer)
    clock = Clock.of(answer.times, len(series), answer.time_unit, answer.labels)
    times = clock.x
    ax = new_axes(ax)
    start = answer.n_discarded
    kept = series[start:]
    _trace(ax, times, series, TRACE, zorder=1)
    if start:
        ax.axvspan(times[0], times[start], color=GREY, alpha=0.14, lw=0, zorder=0, label=f"discarded ({start})")
    counts = np.arange(1, len(kept) + 1)
    shift = kept.mean()
    mean = np.cumsum(kept - shift) / counts + shift
    shown = _thinned(len(kept))
    x, mean = times[start:][shown], mean[shown]
    wider = np.sqrt(len(kept) / counts[shown])
    below, above = answer.mean - answer.low, answer.high - answer.mean     # not alike where the series is skewed
    ax.fill_between(x, mean - below * wider, mean + above * wider, color=BLUE, alpha=0.22, lw=0, zorder=2,
                    label=f"{100 * answer.confidence:g} % interval")
    ax.plot(x, mean, color=BLUE, lw=1.3, zorder=3, label="running mean")
    ax.axhline(answer.mean, color=INK, lw=0.6, ls=(0, (4, 3)), zorder=2)
    low, high = np.nanquantile(series, [0.001, 0.999])
    margin = 0.08 * (high - low) if high > low else 1.0
    ax.set_ylim(min(low - margin, answer.low), max(high + margin, answer.high) + 1.5 * margin)     # room for the legend
    ax.set_xlim(times[0], times[-1])
    clock.write(ax.xaxis)
    ax.set_xlabel(clock.name)
    ax.set_ylabel(label(name, answer.unit))
    legend(ax, loc="upper center", ncols=3, columnspacing=1.2, borderaxespad=0.1)
    return ax


def autocorrelation(answer: Estimate | np.ndarray, *, dt: float = 1.0, unit: str = "", ax: Axes | None = None) -> Axes:
    """Normalised autocorrelation of a series, with the window whose sum (Geyer, convex) gives its correlation time.

    Arguments:
        answer: an Estimate with a series (its kept part is taken), or an array (n,) with `dt` and the `unit` of time.
    """
    if isinstance(answer, Estimate):
        series, times, _ = _series(answer)
        series = series[answer.n_discarded:]
        if answer.times is not None and len(times) > 1:
            dt, unit = float(times[-1] - times[0]) / (len(times) - 1), answer.time_unit
    else:
        series = np.asarray(answer, dtype=np.float64)
    ax = new_axes(ax)
    time = statistical_inefficiency(series, dt=dt, unit=unit)
    most = int(min(len(series) - 1, max(2.5 * time.window, 20)))
    c = correlations(series, most)
    lags = np.arange(len(c)) * dt
    inside = lags <= time.window * dt
    ax.fill_between(lags[inside], c[inside], color=BLUE, alpha=0.2, lw=0)
    # Bartlett's formula: where the truth is zero the estimates scatter around it with variance Σ C² / n
    noise = 2 * np.sqrt((1 + 2 * float((c[1:][inside[1:]] ** 2).sum())) / time.n)
    ax.axhspan(-noise, noise, color=GREY, alpha=0.15, lw=0)
    ax.axhline(0, color=INK, lw=0.6)
    if most <= 60:
        ax.plot(lags, c, color=BLUE, marker="o", ms=2.5, lw=1)
    else:
        ax.plot(lags, c, color=BLUE)
    ax.axvline(time.window * dt, color=RED, lw=0.9, ls=(0, (4, 3)))
    ax.annotate(f"window\nτ = {time.tau:.3g}{' ' + unit if unit else ''}\ng = {time.g:.3g}", (time.window * dt, 0.96),
                xycoords=("data", "axes fraction"), xytext=(4, 0), textcoords="offset points", va="top", color=RED,
                fontsize=7)
    ax.set_xlim(0, lags[-1])
    ax.set_ylim(min(-0.1, 1.15 * float(c.min()), -1.2 * noise), 1.05)
    ax.set_xlabel(label("lag", unit or "snapshots"))
    ax.set_ylabel("autocorrelation")
    return ax


def blocking(answer: Estimate | BlockResult | np.ndarray, *, unit: str = "", ax: Axes | None = None) -> Axes:
    """Standard error against block length, its plateau, and the naive bar that takes snapshots for independent.

    `answer`: an Estimate with a series, a BlockResult of a scalar, or an array (n,).
    """
    if isinstance(answer, Estimate):
        series, _, _ = _series(answer)
        result, unit = block_errors(series[answer.n_discarded:]), answer.unit
    else:
        result = answer if isinstance(answer, BlockResult) else block_errors(np.asarray(answer, dtype=np.float64))
    if np.ndim(result.mean):
        raise InputError(f"a blocking curve is that of one number; this result has shape {np.shape(result.mean)}. "
                         "Draw the series of one element")
    ax = new_axes(ax)
    chosen = result.chosen()
    lengths, errors = result.lengths, np.asarray(result.stderr)
    level, settled = int(chosen.level), bool(chosen.settled)
    trusted = result.counts >= 8
    for mask, colour in ((trusted, BLUE), (~trusted, GREY)):
        ax.errorbar(lengths[mask], errors[mask], np.asarray(result.stderr_error)[mask], fmt="o", ms=3, lw=0.9,
                    color=colour, capsize=1.5, capthick=0.7)
    ax.plot(lengths[trusted], errors[trusted], color=BLUE, lw=0.8, alpha=0.6)
    ax.axhline(errors[0], color=RED, lw=0.9, ls=(0, (1, 1.5)))
    ax.axhline(float(chosen.stderr), color=GREEN, lw=1.1)
    ax.plot(lengths[level], errors[level], "o", ms=6.5, mfc="none", mec=GREEN, mew=1.2)
    top = 1.18 * max(float((errors + np.asarray(result.stderr_error))[trusted].max(initial=0)), float(chosen.stderr))
    edge: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 7}
    ax.annotate("plateau" if settled else "no plateau reached", (0.01, float(chosen.stderr)), xytext=(0, 3),
                color=GREEN, va="bottom", **edge)
    ax.annotate("snapshots as if independent", (0.99, errors[0]), xytext=(0, 3), color=RED, va="bottom", ha="right",
                **edge)
    ax.set_xscale("log", base=2)
    ax.set_ylim(0, top)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    ax.set_xlabel("block length (snapshots)")
    ax.set_ylabel(label("standard error", unit))
    return ax


def replicas(runs: SnapshotSource | np.ndarray, *, map: Callable[[Any], Any] | None = None, field: str | None = None,
             name: str = "value", ax: Axes | None = None) -> Axes:
    """Independent runs over one another, and to their right the time average of each with its 95 % interval.

    Arguments as :func:`ensemblekit.statistics.ergodicity`.
    """
    from scipy.special import stdtrit

    read, unit = read_runs(runs, map, field)
    ax = new_axes(ax)
    end = max(float(run.times[-1]) for run in read)
    begin = min(float(run.times[0]) for run in read)
    span = end - begin or 1.0
    pooled = np.concatenate([run.values for run in read])
    for k, run in enumerate(read):
        colour = COLOURS[k % len(COLOURS)]
        _trace(ax, run.times, run.values, colour, alpha=0.55 if len(read) < 4 else 0.42)
        average = time_average(run.values, run.weights)
        half = average.stderr * float(stdtrit(max(average.n_eff - 1, 1), 0.975))
        place = end + span * (0.05 + 0.03 * (k % 6))
        ax.errorbar(place, average.mean, half, fmt="o", ms=3.2, lw=1.1, color=colour, capsize=1.5)
    ax.axvline(end + span * 0.02, color=PALE, lw=0.6)
    ax.annotate("averages", (end + span * 0.025, 1.0), xycoords=("data", "axes fraction"), va="bottom", fontsize=7,
                color=GREY)
    low, high = np.quantile(pooled, [0.001, 0.999])
    margin = 0.06 * (high - low) or 1.0
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, low - margin) if low > bottom else bottom, min(top, high + margin) if high < top else top)
    ax.set_xlim(begin, end + span * (0.08 + 0.03 * min(len(read) - 1, 5)))
    ax.set_xticks([tick for tick in ax.get_xticks() if begin <= tick <= end])
    source_unit = runs.time_unit if isinstance(runs, SnapshotSource) else ""
    ax.set_xlabel(label("time", source_unit) if source_unit else "time")
    ax.set_ylabel(label(name, unit))
    return ax


def profile(answer: Estimate, *, name: str = "mean", ax: Axes | None = None) -> Axes:
    """An average along one axis, with its interval, against its coordinate."""
    mean = np.asarray(answer.mean)
    if mean.ndim != 1:
        raise InputError(f"a profile has one axis; this average has shape {mean.shape}. Take a slice, or average over "
                         "the other axes first")
    axis, (x, unit) = next(iter(answer.coords.items()), ("element", (np.arange(len(mean)), "")))
    ax = new_axes(ax)
    band(answer, x, ax)
    ax.fill_between(x, answer.low, answer.high, color=BLUE, alpha=0.25, lw=0,
                    label=f"{100 * answer.confidence:g} % interval")
    ax.plot(x, mean, color=BLUE, marker="o" if len(mean) <= 40 else None, ms=2.5)
    ax.set_xlabel(label(axis, unit))
    ax.set_ylabel(label(name, answer.unit))
    legend(ax)
    return ax


def band(answer: Estimate, x: np.ndarray, ax: Axes) -> Axes:
    """The band of the whole curve, paler than its interval, where it has one; the axes."""
    if answer.band is not None:
        ax.fill_between(x, *answer.band, color=BLUE, alpha=0.12, lw=0, label=f"{100 * answer.confidence:g} % band of the curve")
    return ax


def histogram(result: HistogramResult, *, ax: Axes | None = None) -> Axes:
    """The counts of a histogram of one number; the axes. Raises InputError for one of an array."""
    counts = np.asarray(result.counts, dtype=np.float64)
    if counts.ndim != 1:
        raise InputError(f"a histogram has one axis; this one has counts of shape {counts.shape}. Draw that of one element")
    ax = new_axes(ax)
    ax.stairs(counts, result.edges, fill=True, color=BLUE)
    ax.set_xlim(result.edges[0], result.edges[-1])
    ax.set_xlabel("value")
    ax.set_ylabel("weight" if np.any(counts % 1) else "count")
    return ax


def moments(result: MomentsResult, *, ax: Axes | None = None) -> Axes:
    """The mean with a standard deviation to either side: a point, a profile along one axis, or the mean as a map; the axes."""
    mean = np.asarray(result.mean, dtype=np.float64)
    spread = np.sqrt(np.asarray(result.variance, dtype=np.float64))
    ax = new_axes(ax)
    if mean.ndim == 0:
        ax.errorbar([0], [mean], [spread], fmt="o", color=BLUE, capsize=3)
        ax.set_xticks([])
        ax.set_ylabel("mean ± standard deviation")
    elif mean.ndim == 1:
        x = np.arange(len(mean))
        ax.fill_between(x, mean - spread, mean + spread, color=BLUE, alpha=0.25, lw=0, label="± standard deviation")
        ax.plot(x, mean, color=BLUE, marker="o" if len(mean) <= 40 else None, ms=2.5)
        ax.set_xlabel("element")
        ax.set_ylabel("mean")
        legend(ax)
    else:
        _map(ax, mean.reshape(len(mean), -1), "mean")
    return ax


def covariance(result: CovarianceResult, *, ax: Axes | None = None) -> Axes:
    """The covariances as a map, blue below zero and red above; the axes."""
    matrix = np.atleast_2d(np.asarray(result.covariance))
    ax = new_axes(ax)
    _map(ax, np.real(matrix), "covariance", signed=True)
    return ax


def _map(ax: Axes, values: np.ndarray, name: str, signed: bool = False) -> None:
    reach = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    limits = {"vmin": -reach, "vmax": reach, "cmap": "RdBu_r"} if signed else {"cmap": "viridis"}
    shown = ax.imshow(values, aspect="auto" if not signed else "equal", **limits)
    ax.figure.colorbar(shown, ax=ax, label=name)
    ax.set_xlabel("element")
    ax.set_ylabel("element")


def _kept(answer: Estimate) -> np.ndarray:
    return answer.series[answer.n_discarded:] if answer.series is not None else np.empty(0)


def _series(answer: Estimate) -> tuple[np.ndarray, np.ndarray, str]:
    if answer.series is None:
        raise InputError("this estimate holds no series (arrays and pooled runs do not); draw the average of one "
                         "scalar of one run")
    if answer.times is None:
        return answer.series, np.arange(len(answer.series), dtype=np.float64), "snapshot"
    return answer.series, answer.times, label("time", answer.time_unit)


def _trace(ax: Axes, times: np.ndarray, values: np.ndarray, colour: str, alpha: float = 1.0, zorder: float = 2) -> None:
    """A series; where it has more points than the page has dots, the range within each dot."""
    if len(values) <= MOST_POINTS:
        ax.plot(times, values, color=colour, lw=0.6, alpha=min(1.0, 1.6 * alpha), zorder=zorder)
        return
    edges = np.linspace(0, len(values), MOST_POINTS // 2 + 1).astype(int)[:-1]
    ax.fill_between(times[edges], np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges), color=colour,
                    alpha=alpha, lw=0, zorder=zorder)


def _thinned(n: int) -> np.ndarray:
    """Indices of at most MOST_POINTS, the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).astype(int))
