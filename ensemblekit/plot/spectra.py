"""Figures of spectra: absorption with its states and band, infrared as chemists draw it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.estimate import Estimate, printed
from ensemblekit.errors import InputError
from ensemblekit.plot.averages import band
from ensemblekit.plot.style import BLUE, COLOURS, INK, label, legend, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.md.spectra.excitations import Excitations

NM = 1239.841984
"""eV nm."""
MOST_STATES = 6


def absorption(e: Estimate, *, experiment: ArrayLike | None = None, excitations: Excitations | None = None,
               ax: Axes | None = None) -> Axes:
    """An absorption spectrum with interval and band, its states below, wavelengths on top; the axes.

    Arguments:
        experiment: (2, points) or (points, 2), energies in eV and what was measured, drawn over it in the same unit.
        excitations: what the spectrum was made of: a stick for each state at its mean energy, as high as its mean strength
            beside that of the strongest.

    Raises InputError for an experiment of another shape.
    """
    x, ax = _curve(e, "an absorption spectrum", "energy", ax)
    states = e.derived.get("states")
    if states is not None and 1 < len(states.mean) <= MOST_STATES:
        for k, one in enumerate(states.mean):
            ax.plot(x, one, color=COLOURS[(k + 1) % len(COLOURS)], lw=0.8, label=f"state {k + 1}")
    if experiment is not None:
        measured = np.asarray(experiment, np.float64)
        if measured.ndim != 2 or 2 not in measured.shape:
            raise InputError(f"experiment is (2, points) or (points, 2), energies and what was measured; got {measured.shape}")
        measured = measured if measured.shape[0] == 2 else measured.T
        ax.plot(*measured, color=INK, lw=0.8, ls=(0, (4, 2)), label="experiment")
    if excitations is not None:
        _sticks(excitations, 0.5 * float(np.max(e.mean)), ax)
    seen = x[np.asarray(e.mean) > 1e-3 * np.max(e.mean)]
    ax.set_xlim(seen[0], seen[-1])
    ax.set_ylim(0, _top(e))
    top = ax.secondary_xaxis("top", functions=(_other, _other))     # type: ignore[arg-type]  # typed for numbers too, called with arrays
    top.set_xlabel("wavelength (nm)", fontsize=8)
    top.tick_params(labelsize=7)
    ax.set_xlabel("energy (eV)")
    ax.set_ylabel(label("absorption", printed(e.unit)))
    legend(ax)
    return ax


def _sticks(excitations: Excitations, height: float, ax: Axes) -> None:
    """A line for each state at its mean energy; heights go by mean strengths."""
    weights = np.ones(len(excitations)) if excitations.weights is None else np.asarray(excitations.weights)
    strengths = np.average(excitations.strengths, axis=0, weights=weights)
    energies = np.average(excitations.energies, axis=0, weights=weights)
    ax.vlines(energies, 0, height * strengths / (strengths.max() or 1.0), color=INK, lw=1.0, label="mean energies, strengths")


def infrared(e: Estimate, *, name: str = "nα", ax: Axes | None = None) -> Axes:
    """An infrared spectrum with interval and band, wavenumbers falling to the right, the groups below; the axes."""
    x, ax = _curve(e, "an infrared spectrum", "wavenumber", ax)
    groups = e.derived.get("groups")
    if groups is not None:
        for k, word in enumerate(groups.coords["group"][0]):
            ax.plot(x, groups.mean[k, k], color=COLOURS[(k + 1) % len(COLOURS)], lw=0.8, label=str(word))
        cross = np.asarray(e.mean) - np.einsum("kkn->n", groups.mean)
        ax.plot(x, cross, color=INK, lw=0.8, ls=(0, (4, 2)), label="cross terms")
    ax.set_xlim(x[-1], x[0])
    if groups is None:
        ax.set_ylim(0, _top(e))
    ax.set_xlabel("wavenumber (cm⁻¹)")
    ax.set_ylabel(label(name, printed(e.unit)))
    legend(ax)
    return ax


def _curve(e: Estimate, what: str, axis: str, ax: Axes | None) -> tuple[np.ndarray, Axes]:
    """The mean along its one axis with interval and band: where the points lie, and the axes."""
    if np.ndim(e.mean) != 1 or axis not in e.coords:
        raise InputError(f"{what} has one axis, {axis}; this estimate has {list(e.coords) or 'none'}")
    ax = new_axes(ax)
    x = e.coords[axis][0]
    band(e, x, ax)
    ax.fill_between(x, e.low, e.high, color=BLUE, alpha=0.25, lw=0, label=f"{100 * e.confidence:g} % interval")
    ax.plot(x, e.mean, color=BLUE)
    return x, ax


def _top(e: Estimate) -> float:
    """Where the vertical axis ends: above the interval, but not far above the curve."""
    return min(1.6 * float(np.max(e.mean)), 1.05 * float(np.nanmax(np.asarray(e.high)))) or 1


def _other(x: np.ndarray) -> np.ndarray:
    """eV as nm and back."""
    return NM / np.maximum(np.asarray(x, np.float64), 1e-9)


__all__ = ["absorption", "infrared"]
