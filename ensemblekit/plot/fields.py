"""Figures of electric fields: a projection against time with its histogram, what each group adds to it, a slice of a map."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.averaging.estimate import Estimate, printed
from ensemblekit.errors import InputError
from ensemblekit.plot.averages import running_mean
from ensemblekit.plot.style import BLUE, GREY, HEIGHT, INK, RED, WIDTH, label, new_axes, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.plot.style import AxesLike

MOST = 20
"""Groups that are shown."""
AXES = ("a", "b", "c")
"""Of a map."""


def projection(e: Estimate, *, name: str = "", ax: AxesLike | None = None) -> np.ndarray:
    """A number a frame (a projection, a potential) against time with its running mean, and its histogram; the Axes, (2,).

    e: an electric field with a projection, or any Estimate with a series.
    """
    word = name or ("projection" if "projection" in e.derived else "value")
    one = e.derived.get("projection", e)
    if one.series is None:
        raise InputError("there is no series to draw: a field has one of its projection at one place (md.Midpoint, md.Center) "
                         "in one run, with along=")
    axes = panels(ax, 1, 2, (1.6 * WIDTH, HEIGHT), width_ratios=(3, 1))[0]
    running_mean(replace(one, unit=printed(one.unit)), name=word, ax=axes[0])
    kept = one.series[one.n_discarded:]
    axes[1].hist(kept, bins=max(5, min(40, int(np.sqrt(len(kept))))), orientation="horizontal", color=BLUE, alpha=0.5)
    axes[1].axhspan(one.low, one.high, color=BLUE, alpha=0.25, lw=0)
    axes[1].axhline(one.mean, color=INK, lw=0.8)
    axes[1].set_ylim(axes[0].get_ylim())
    axes[1].set_yticklabels([])
    axes[1].set_xlabel("frames")
    return axes


def strongest(e: Estimate, *, most: int = MOST, ax: Axes | None = None) -> Axes:
    """The groups that add most to a projection or a potential at one place, strongest first, with intervals; the axes."""
    one = e.derived.get("groups", e)
    if np.ndim(one.mean) == 2 and np.shape(one.mean)[1] == 1:
        one = replace(one, mean=one.mean[:, 0], interval=(one.low[:, 0], one.high[:, 0]))
    if "group" not in one.coords or np.ndim(one.mean) != 1:
        raise InputError("groups are drawn of a number at one place: by= with along= of a field, or a potential; this has "
                         f"shape {np.shape(one.mean)}")
    names = np.asarray(one.coords["group"][0])
    shown = np.argsort(-np.abs(one.mean), kind="stable")[:most]
    mean = one.mean[shown]
    ax = panels(None, 1, 1, (WIDTH, max(HEIGHT, 0.16 * len(shown) + 0.5)))[0, 0] if ax is None else new_axes(ax)
    places = np.arange(len(shown))
    ax.barh(places, mean, color=np.where(mean < 0, RED, BLUE), alpha=0.6)
    bars = [mean - one.low[shown], one.high[shown] - mean]
    ax.errorbar(mean, places, xerr=bars, fmt="none", ecolor=INK, elinewidth=0.8, capsize=2)
    ax.set_yticks(places, names[shown])
    ax.invert_yaxis()
    ax.axvline(0, color=GREY, lw=0.6)
    ax.set_xlabel(label("what each group adds", printed(one.unit)))
    return ax


def map_slice(e: Estimate, *, across: str = "c", at: float = 0.5, ax: Axes | None = None) -> Axes:
    """A slice of a map of the potential in the plane of two cell vectors, as they lie, blue below zero and red above; the axes.

    Arguments:
        e: what ``md.PotentialMap`` gave.
        across: "a", "b" or "c", the cell vector that the slice lies across.
        at: where along it, a share of it.
    """
    if np.ndim(e.mean) != 3 or "cell" not in e.derived:
        raise InputError(f"a slice is drawn of a map, by md.PotentialMap; this estimate has shape {np.shape(e.mean)}")
    axes = [name for name in AXES if name != across]
    if across not in AXES or not 0 <= at <= 1:
        raise InputError(f'a slice lies across "a", "b" or "c", at a share of it from 0 to 1; got {across!r} and {at!r}')
    k = AXES.index(across)
    number = round(at * e.mean.shape[k]) % e.mean.shape[k]
    values = np.take(e.mean, number, axis=k)
    cell = np.asarray(e.derived["cell"].mean)[[AXES.index(name) for name in axes]]
    values = np.pad(values, (0, 1), mode="wrap")        # up to the other side of the cell
    u, v = (np.linspace(0, 1, n) for n in values.shape)
    lengths = np.linalg.norm(cell, axis=1)
    cosine = cell[0] @ cell[1] / lengths.prod()
    x = u[:, None] * lengths[0] + v * lengths[1] * cosine
    y = 0 * u[:, None] + v * lengths[1] * np.sqrt(max(0.0, 1 - cosine**2))
    wide = float(np.ptp(x) / np.ptp(y))
    ax = panels(None, 1, 1, (WIDTH, min(2.0, max(0.5, 1 / wide)) * WIDTH * 0.8))[0, 0] if ax is None else new_axes(ax)
    reach = float(np.abs(values).max()) or 1.0
    shown = ax.pcolormesh(x, y, values, cmap="RdBu_r", vmin=-reach, vmax=reach, shading="gouraud", rasterized=True)
    ax.contour(x, y, values, levels=[0], colors=INK, linewidths=0.4)
    ax.set_aspect("equal")
    ax.set_xlabel(label(f"along {axes[0]}", "Å"))
    ax.set_ylabel(label(f"across, towards {axes[1]}", "Å"))
    bar = ax.figure.colorbar(shown, ax=ax, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.set_label(label("potential", printed(e.unit)))
    return ax


__all__ = ["map_slice", "projection", "strongest"]
