"""Figures of the path of the weights, and of the valley about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.plot.style import BLUE, COLOURS, INK, ORANGE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.neural.flatness import Flatness as FlatnessResult
    from ensemblekit.neural.trajectory import Trajectory


def plane(found: Trajectory, *, ax: Axes | None = None) -> Axes:
    """Snapshots in their principal plane, numbered in the order of capture, over contours of the loss where it was measured."""
    ax = new_axes(ax)
    if found.loss.size:
        levels = np.unique(np.quantile(found.loss, np.linspace(0, 1, 13)))
        if len(levels) > 1:
            drawn = ax.contourf(found.a, found.b, found.loss.T, levels, cmap="Greys", alpha=0.55)
            ax.figure.colorbar(drawn, ax=ax, fraction=0.046, pad=0.02, format="%.3g").set_label("mean loss", fontsize=7)
    for color, run in zip(COLOURS * len(found.run), np.unique(found.run), strict=False):
        own = np.flatnonzero(found.run == run)
        ax.plot(*found.plane[own].T, "o-", color=color, ms=4, lw=1, label=f"run {run}")
        for k, at in enumerate(own):
            ax.annotate(str(k + 1), found.plane[at], xytext=(4, 3), textcoords="offset points", fontsize=6.5, color=INK)
    ax.plot(*found.plane.mean(0), "+", color=ORANGE, ms=8, mew=1.6, label="mean of weights")
    share = 100 * found.explained[min(1, len(found.explained) - 1)]
    ax.set(xlabel="first direction", ylabel="second direction")
    ax.set_title(f"{share:.3g} % of the variance in the plane", fontsize=8)
    if not found.loss.size:
        ax.set_aspect("equal", adjustable="datalim")
        ax.margins(0.15)
    ax.legend(frameon=False, fontsize=6)
    return ax


def flatness(found: FlatnessResult, *, ax: Axes | None = None) -> Axes:
    """The rise of the loss against the length of the step, with its 95 % interval, over the single directions; the Axes."""
    ax = new_axes(ax)
    at = np.concatenate([[0], found.radius])
    for rises in found.each:
        ax.plot(at, np.concatenate([[0], rises]), color=BLUE, lw=0.4, alpha=0.3)
    ax.plot(at, np.concatenate([[0], found.rise]), "o-", color=BLUE, ms=3)
    ax.fill_between(at, np.concatenate([[0], found.low]), np.concatenate([[0], found.high]), color=BLUE, alpha=0.2, lw=0)
    ax.set(xlabel="step over the length of the weights", ylabel="rise of the loss")
    return ax


__all__ = ["flatness", "plane"]
