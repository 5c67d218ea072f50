"""Figures of parameter studies: left-out errors of the samples, and the expected error between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, GREY, INK, RED, label, legend, look, new_axes
from ensemblekit.rom.parametric_model import ErrorMap, FieldPrediction, ParametricModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRID = 41
"""Points along each parameter of an error map."""


def model(one: ParametricModel, *, ax: Axes | None = None) -> Axes:
    """A study of one or two parameters: the expected error within its samples. Of more, the left-out error of each sample."""
    p = len(one.names)
    if p <= 2:
        low, high = one.parameters.min(axis=0), one.parameters.max(axis=0)
        return error_map(one.error_map([np.linspace(a, b, GRID) for a, b in zip(low, high, strict=True)]), ax=ax)
    with look():
        ax = new_axes(ax)
        ax.bar(np.arange(len(one.errors)), 100 * one.errors, color=BLUE)
        ax.set_xlabel("sample")
        ax.set_ylabel(label("left-out error", "% of the fluctuation"))
        return ax


def error_map(found: ErrorMap, *, ax: Axes | None = None) -> Axes:
    """Expected error over one or two parameters, the samples, and the next one to take."""
    p = len(found.names)
    if p > 2:
        raise InputError(f"an error map is drawn over one or two parameters; these are {p}: {', '.join(found.names)}")
    with look():
        ax = new_axes(ax)
        if p == 1:
            order = np.argsort(found.points[:, 0])
            ax.plot(found.points[order, 0], 100 * found.errors[order], color=INK, lw=1)
            ax.plot(found.samples[:, 0], np.zeros(len(found.samples)), "|", ms=8, color=BLUE, label="samples")
            ax.axvline(found.next_sample[0], color=RED, lw=0.8, ls="--", label="next sample")
            ax.set_ylabel(label("expected error", "% of the fluctuation"))
        else:
            shown = ax.tripcolor(found.points[:, 0], found.points[:, 1], 100 * found.errors, cmap="viridis", shading="gouraud")
            ax.figure.colorbar(shown, ax=ax, label=label("expected error", "% of the fluctuation"))
            ax.plot(found.samples[:, 0], found.samples[:, 1], "o", ms=3, mfc="white", mec=GREY, label="samples")
            ax.plot(*found.next_sample, "x", ms=7, mew=2, color=RED, label="next sample")
            ax.set_ylabel(found.names[1])
        ax.set_xlabel(found.names[0])
        legend(ax)
        return ax


def prediction(found: FieldPrediction, *, ax: Axes | None = None) -> Axes:
    """A predicted field along its numbers, with its band; of a batch the first, of several fields the first."""
    with look():
        ax = new_axes(ax)
        parts = [next(iter(x.values())) if isinstance(x, dict) else x for x in (found.field, found.low, found.high)]
        middle, low, high = (np.ravel(x[0] if found.parameters.ndim == 2 else x) for x in parts)
        cells = np.arange(len(middle))
        ax.fill_between(cells, low, high, color=BLUE, alpha=0.25, lw=0)
        ax.plot(cells, middle, color=BLUE, lw=1)
        ax.set_xlabel("number")
        ax.set_ylabel("field")
        return ax
