"""Figures of conformer ensembles: where along the chain conformers differ, and how their weights are spread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.averaging.estimate import Estimate
from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, INK, label, legend, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.md.conformers import ConformerEnsemble


def spread(ensemble: ConformerEnsemble | Estimate, *, select: str = "name CA", ax: Axes | None = None) -> Axes:
    """The spread of an ensemble residue by residue with its interval; the axes.

    ensemble: the ensemble, whose atoms `select` chooses, or what its ``spread`` answered.
    """
    e = ensemble if isinstance(ensemble, Estimate) else ensemble.spread(select)
    if np.ndim(e.mean) != 1 or "residue" not in e.coords:
        raise InputError(f"a spread has one axis, residue; this estimate has {list(e.coords) or 'none'}")
    ax = new_axes(ax)
    x = np.arange(len(e.mean))
    numbers = e.coords["residue"][0]
    if (np.diff(numbers) == 1).all():       # else the numbers of several chains: they are counted
        x = numbers
    ax.fill_between(x, e.low, e.high, color=BLUE, alpha=0.25, lw=0, label=f"{100 * e.confidence:g} % interval")
    ax.plot(x, e.mean, color=BLUE, marker=".", ms=4)
    ax.set_ylim(0, None)
    ax.set_xlabel("residue" if x is numbers else "residue, counted")
    ax.set_ylabel(label("RMSF", "Å"))
    legend(ax)
    return ax


def weights(ensemble: ConformerEnsemble, *, ax: Axes | None = None) -> Axes:
    """The weights of an ensemble, largest first, summed up (Lorenz): how many conformers hold how much; the axes."""
    ax = new_axes(ax)
    w = np.sort(ensemble.weights)[::-1]
    n = len(w)
    ax.plot(np.arange(n + 1), np.concatenate([[0.0], np.cumsum(w)]), color=BLUE, label=f"worth {ensemble.n_eff:.3g} of {n}")
    ax.plot([0, n], [0, 1], color=INK, lw=0.8, ls=(0, (4, 2)), label="all alike")
    ax.set_xlim(0, n)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("conformers, the heaviest first")
    ax.set_ylabel("share of the weight")
    legend(ax)
    return ax


__all__ = ["spread", "weights"]
