"""Figures of trajectories: observables against time, profiles along residues, g(r), and a page on the sampling.

Draws Estimates and what holds them by name; knows nothing of trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.averaging.averages import Averages
from ensemblekit.averaging.estimate import Estimate, printed, rounded
from ensemblekit.errors import InputError
from ensemblekit.plot.averages import autocorrelation, band, blocking, running_mean
from ensemblekit.plot.clock import Clock
from ensemblekit.plot.style import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    HEIGHT,
    INK,
    ORANGE,
    PALE,
    RED,
    WIDTH,
    label,
    legend,
    look,
    new_axes,
    new_figure,
    number_of,
    panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

    from ensemblekit.plot.style import AxesLike

NS = 1000.0


def averages(estimates: Mapping[str, Estimate], *, names: Sequence[str] | None = None,
             ax: AxesLike | None = None) -> np.ndarray:
    """A panel for each observable: against time where it is a number a frame, against its axis else; the Axes, (n,).

    Arguments:
        estimates: what ``md.average`` gave, or any mapping of names to Estimates.
        names: those to draw, in this order; by default all that were asked for.
    """
    main = estimates.estimates if isinstance(estimates, Averages) else estimates
    chosen = list(main) if names is None else list(names)
    drawn = [(name, estimates[name]) for name in chosen]
    drawn = [(name, e) for name, e in drawn if np.ndim(e.mean) <= 2]
    if not drawn:
        raise InputError("there is nothing to draw: every average has more than two axes. Draw a slice of it")
    columns = 1 if len(drawn) <= 3 or number_of(ax) == len(drawn) else 2
    rows = -(-len(drawn) // columns)
    axes = panels(ax, rows, columns, (WIDTH * columns, HEIGHT * rows)).ravel()
    for one, (name, e) in zip(axes[:len(drawn)], drawn, strict=True):
        panel(e, name=name, ax=one)
    for unused in axes[len(drawn):]:
        unused.remove()
    return axes[:len(drawn)]


def panel(e: Estimate, *, name: str = "value", ax: Axes | None = None) -> Axes:
    """One observable in the way that suits it; the axes."""
    if np.ndim(e.mean) == 0:
        return against_time(e, name=name, ax=ax) if e.series is not None or e.runs else _bar(e, name=name, ax=ax)
    if np.ndim(e.mean) == 2:
        return image(e, name=name, ax=ax)
    if "coordination" in e.derived or next(iter(e.coords), "") == "r":
        return radial(e, name=name, ax=ax)
    return along(e, name=name, ax=ax)


def against_time(e: Estimate, *, name: str = "value", ax: Axes | None = None) -> Axes:
    """The series with its running mean, band and discarded part; replicas over one another. Times from 1 ns on in ns."""
    ax = new_axes(ax)
    e = _in_ns(e)
    if not e.runs:
        running_mean(replace(e, unit=printed(e.unit)), name=name, ax=ax)
        _title(ax, e)
        return ax
    low, high = np.inf, -np.inf
    clock = Clock(np.empty(0), "frame")
    for k, run in enumerate(e.runs):
        if run.series is None:
            continue
        clock = Clock.of(run.times, len(run.series), run.time_unit, run.labels or e.labels)
        x = clock.x
        colour = COLOURS[k % len(COLOURS)]
        ax.plot(x, run.series, color=colour, lw=0.5, alpha=0.35)
        kept = run.series[run.n_discarded:]
        ax.plot(x[run.n_discarded:], np.cumsum(kept) / np.arange(1, len(kept) + 1), color=colour, lw=1.3, label=f"replica {k}")
        low, high = min(low, float(np.nanmin(run.series))), max(high, float(np.nanmax(run.series)))
    ax.axhspan(e.low, e.high, color=GREY, alpha=0.25, lw=0, label=f"{100 * e.confidence:g} % interval")
    ax.axhline(e.mean, color=INK, lw=0.6, ls=(0, (4, 3)))
    low, high = min(low, e.low), max(high, e.high)
    ax.set_ylim(low - 0.05 * (high - low), high + 0.22 * (high - low))
    clock.write(ax.xaxis)
    ax.set_xlabel("time" if clock.dated else label("time", e.time_unit) if e.time_unit else "frame")
    ax.set_ylabel(label(name, printed(e.unit)))
    legend(ax, ncols=3)
    _title(ax, e)
    return ax


def along(e: Estimate, *, name: str = "mean", ax: Axes | None = None) -> Axes:
    """An average along one axis (RMSF of residues, a density) with its band."""
    ax = new_axes(ax)
    axis, x, unit = _axis(e, 0)
    if x.dtype.kind not in "biuf":
        places = np.arange(len(x))
        ax.errorbar(places, e.mean, _half(e), fmt="o", color=BLUE, ms=4, capsize=2)
        ax.set_xticks(places, x)
    elif len(x) <= 40:
        ax.errorbar(x, e.mean, _half(e), fmt="o-", color=BLUE, ms=3, lw=1, capsize=1.5)
    else:
        band(e, x, ax)
        ax.fill_between(x, e.low, e.high, color=BLUE, alpha=0.25, lw=0, label=f"{100 * e.confidence:g} % interval")
        ax.plot(x, e.mean, color=BLUE)
        legend(ax)
    if np.nanmin(e.mean) >= 0:
        # the tail of an interval may be far longer than the values that it belongs to
        top = float(np.nanmax(e.high)) if np.isfinite(e.high).any() else np.inf
        ax.set_ylim(0, min(top, 2.2 * float(np.nanmax(e.mean))) or 1)
    ax.set_xlabel(label(axis, printed(unit)))
    ax.set_ylabel(label(name, printed(e.unit)))
    if not e.converged:
        ax.set_title("not converged", color=RED, loc="right", fontsize=8)
    return ax


def radial(e: Estimate, *, name: str = "g(r)", ax: Axes | None = None) -> Axes:
    """g(r) with its band; the running coordination number to the right."""
    ax = new_axes(ax)
    _, r, unit = _axis(e, 0)
    band(e, r, ax)
    ax.fill_between(r, e.low, e.high, color=BLUE, alpha=0.25, lw=0)
    ax.plot(r, e.mean, color=BLUE)
    if not e.unit:
        ax.axhline(1, color=GREY, lw=0.6, ls=(0, (4, 3)))
    ax.set_xlabel(label("r", printed(unit)))
    ax.set_ylabel(label("g(r)" if name == "rdf" else name, printed(e.unit)), color=BLUE)
    ax.set_xlim(r[0], r[-1])
    ax.set_ylim(0, None)
    if "coordination" in e.derived:
        n = e.coordination
        right = ax.twinx()
        right.tick_params(labelsize=7)
        right.spines["right"].set_visible(True)
        x = _axis(n, 0)[1]
        right.fill_between(x, n.low, n.high, color=ORANGE, alpha=0.25, lw=0)
        right.plot(x, n.mean, color=ORANGE)
        peak = int(np.nanargmax(e.mean))
        first = peak + int(np.argmin(e.mean[peak:])) if peak < len(r) - 1 else peak
        right.set_ylim(0, 3 * float(np.interp(r[first], x, n.mean)) or None)
        right.set_ylabel("coordination number", color=ORANGE, fontsize=8)
    return ax


def image(e: Estimate, *, name: str = "mean", ax: Axes | None = None) -> Axes:
    """An average over two axes as a map."""
    ax = new_axes(ax)
    (first, y, y_unit), (second, x, x_unit) = _axis(e, 0), _axis(e, 1)
    if x.dtype.kind in "iuf" and y.dtype.kind in "iuf" and len(x) > 1 and len(y) > 1:
        shown: ScalarMappable = ax.pcolormesh(x, y, np.asarray(e.mean), cmap="viridis", shading="nearest", rasterized=True)
    else:
        shown = ax.imshow(np.asarray(e.mean), origin="lower", cmap="viridis", aspect="auto")
    ax.figure.colorbar(shown, ax=ax, label=label(name, printed(e.unit)))
    ax.set_xlabel(label(second, printed(x_unit)))
    ax.set_ylabel(label(first, printed(y_unit)))
    return ax


def convergence(e: Estimate, *, name: str = "value", ax: AxesLike | None = None) -> np.ndarray:
    """Running mean, autocorrelation with its window, and blocking with the naive bar in red, side by side; the Axes, (3,)."""
    one = e.runs[0] if e.runs else e
    axes = panels(ax, 1, 3, (WIDTH * 3, HEIGHT))[0]
    against_time(e, name=name, ax=axes[0])
    _curves(one, axes[1], axes[2])
    return axes


def report(estimates: Mapping[str, Estimate], rmsd: np.ndarray | None = None, edges: Sequence[int] | None = None, *,
           title: str = "", ax: Axes | None = None) -> np.ndarray:
    """One page on the quality of the sampling; its Axes, (n,).

    Top: observable, interval, n_eff, correlation time, verdict. Left: each observable against time. Right: the
    blocking curve of the one with the fewest independent frames beside its autocorrelation, and RMSD of all to all.

    Arguments:
        rmsd: (m, m) of frames spread over all replicas, in angstrom; edges: where each replica begins, (replicas + 1,).
    """
    numbers = {name: e for name, e in estimates.items() if np.ndim(e.mean) == 0 and (e.series is not None or e.runs)}
    if not numbers:
        raise InputError("a report needs an observable of one number a frame, such as md.RadiusOfGyration")
    rows = max(3, len(numbers))
    heights = [0.30 + 0.13 * len(numbers), *[1.0] * rows]
    with look():
        if ax is None:
            figure = new_figure((8.27, 11.69))
            grid = figure.add_gridspec(rows + 1, 2, height_ratios=heights)
        else:
            (place,) = panels(ax, 1, 1, (8.27, 11.69))[0]
            figure, spec = place.figure, place.get_subplotspec()
            place.remove()
            grid = spec.subgridspec(rows + 1, 2, height_ratios=heights)
        axes = [figure.add_subplot(grid[0, :])]
        _table(axes[0], numbers, title)
        for k, (name, e) in enumerate(numbers.items()):
            axes.append(against_time(e, name=name, ax=figure.add_subplot(grid[k + 1, 0])))
        worst = min(numbers, key=lambda name: float(numbers[name].n_eff) if np.isfinite(numbers[name].n_eff) else np.inf)
        one = numbers[worst].runs[0] if numbers[worst].runs else numbers[worst]
        left, right = figure.add_subplot(grid[1, 1]), figure.add_subplot(grid[2, 1])
        _curves(one, left, right)
        left.set_title(f"{worst}: autocorrelation", loc="left")
        right.set_title(f"{worst}: blocking", loc="left")
        last = figure.add_subplot(grid[3, 1])
        if rmsd is None:
            last.set_axis_off()
        else:
            _all_to_all(last, np.asarray(rmsd), edges)
    found_axes = np.empty(len(axes) + 3, dtype=object)
    found_axes[:] = [*axes, left, right, last]
    return found_axes


def _table(ax: Axes, numbers: Mapping[str, Estimate], title: str) -> None:
    ax.set_axis_off()
    ax.set_title(f"Sampling quality{': ' + title if title else ''}", loc="left", fontsize=11, fontweight="bold")
    head = ["observable", "mean ± interval", "n_eff", "correlation time", "discarded", "verdict"]
    places = [0.0, 0.17, 0.37, 0.48, 0.64, 0.76]
    step = 1.0 / (len(numbers) + 1.2)
    for x, text in zip(places, head, strict=True):
        ax.text(x, 1.0 - 0.5 * step, text, fontweight="bold", va="center", transform=ax.transAxes)
    ax.plot([0, 1], [1.0 - step, 1.0 - step], color=INK, lw=0.6, transform=ax.transAxes)
    for k, (name, e) in enumerate(numbers.items()):
        y = 1.0 - (k + 1.6) * step
        value, bar = rounded(float(e.mean), float(e.high - e.low) / 2)
        said = e.ergodicity.verdict if e.ergodicity is not None else "converged" if e.converged else "not converged"
        good = e.converged and (e.ergodicity is None or "not" not in said)
        cells = [name, f"{value} ± {bar} {printed(e.unit)}", f"{e.n_eff:.3g} of {e.n}",
                 f"{e.correlation_time:.3g} {e.time_unit or 'frames'}", f"{e.n_discarded} frames", said]
        for x, text in zip(places, cells, strict=True):
            colour = (GREEN if good else RED) if x == places[-1] else INK
            ax.text(x, y, text, va="center", color=colour, transform=ax.transAxes)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)


def _all_to_all(ax: Axes, rmsd: np.ndarray, edges: Sequence[int] | None) -> None:
    shown = ax.imshow(rmsd, origin="lower", cmap="viridis", interpolation="nearest")
    ax.figure.colorbar(shown, ax=ax, label="RMSD (Å)")
    for edge in list(edges or [])[1:-1]:
        ax.axhline(edge - 0.5, color="white", lw=1)
        ax.axvline(edge - 0.5, color="white", lw=1)
    runs = len(edges) - 1 if edges else 1
    ax.set_title("RMSD of all to all frames" + (f", {runs} replicas" if runs > 1 else ""), loc="left")
    if runs > 1 and edges:
        middle = [(a + b) / 2 for a, b in pairwise(edges)]
        ax.set_xticks(middle, [f"replica {k}" for k in range(runs)])
        ax.set_yticks(middle, [f"replica {k}" for k in range(runs)], rotation=90, va="center")
    else:
        ax.set_xlabel("frame (thinned)")
        ax.set_ylabel("frame (thinned)")


def _curves(one: Estimate, left: Axes, right: Axes) -> None:
    for ax, draw in ((left, autocorrelation), (right, blocking)):
        if one.series is not None and len(one.series) - one.n_discarded >= 4 and one.stderr > 0:
            draw(_in_ns(replace(one, unit=printed(one.unit))), ax=ax)
        else:
            ax.text(0.5, 0.5, "too few frames", ha="center", transform=ax.transAxes, color=GREY)


def _in_ns(e: Estimate) -> Estimate:
    """Times in ns where the run is 1 ns or longer."""
    runs = tuple(map(_in_ns, e.runs))
    if e.time_unit != "ps":
        return replace(e, runs=runs) if runs else e
    known = [run.times for run in (e, *e.runs) if run.times is not None and len(run.times)]
    if not known or max(float(times[-1] - times[0]) for times in known) < NS:
        return e
    return replace(e, runs=runs, times=None if e.times is None else e.times / NS, time_unit="ns",
                   correlation_time=np.asarray(e.correlation_time) / NS, equilibration_time=e.equilibration_time / NS)


def _title(ax: Axes, e: Estimate) -> None:
    value, bar = rounded(float(e.mean), float(e.high - e.low) / 2)
    unit = f" {printed(e.unit)}" if e.unit else ""
    ax.set_title(f"{value} ± {bar}{unit}", loc="left", fontsize=8)
    if not e.converged:
        ax.set_title("not converged", color=RED, loc="right", fontsize=8)


def _bar(e: Estimate, *, name: str, ax: Axes | None = None) -> Axes:
    """A number without a series: a point with its interval."""
    ax = new_axes(ax)
    ax.errorbar([e.mean], [0], xerr=[[e.mean - e.low], [e.high - e.mean]], fmt="o", color=BLUE, capsize=3)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.axvline(e.mean, color=PALE, lw=0.6, zorder=0)
    ax.set_xlabel(label(name, printed(e.unit)))
    _title(ax, e)
    return ax


def _axis(e: Estimate, k: int) -> tuple[str, np.ndarray, str]:
    """Name, values and unit of an axis of an array."""
    axes = list(e.coords.items())
    if k < len(axes):
        name, (values, unit) = axes[k]
        return name, np.asarray(values), unit
    return "element", np.arange(np.shape(e.mean)[k]), ""


def _half(e: Estimate) -> np.ndarray:
    return np.array([np.asarray(e.mean) - np.asarray(e.low), np.asarray(e.high) - np.asarray(e.mean)])
