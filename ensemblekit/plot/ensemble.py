"""Figures of conformer ensembles: where conformers differ, how weights are spread, averages against data, the L-curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.averaging.estimate import Estimate, printed
from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, COLOURS, INK, ORANGE, PALE, label, legend, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.md.conformers import ConformerEnsemble
    from ensemblekit.md.experimental_data import Comparison, Data
    from ensemblekit.md.reweight import Reweighted
    from ensemblekit.md.single_structure import SingleStructureReport

Z95 = 1.96
"""Standard errors of half a 95 % bar."""
OUTLIER = 3.0
"""Errors off, above which a datum is named."""


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


def comparison(one: Comparison, *, ax: Axes | None = None) -> Axes:
    """Calculated against measured, both with 95 % bars, what lies off named; of a profile both over q; the axes."""
    ax = new_axes(ax)
    e, s, c = one.data.values, one.data.sigma, one.calculated
    if one.data.q is not None:
        ax.errorbar(one.data.q, e, Z95 * s, fmt=".", ms=3, lw=0.6, color=INK, label="measured")
        ax.plot(one.data.q, c, color=BLUE, label=f"calculated, χ² {one.chi2:.3g}")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel(label("q", "1/Å"))
        ax.set_ylabel("intensity")
        legend(ax)
        return ax
    low, high = float(min(e.min(), c.min())), float(max(e.max(), c.max()))
    ax.plot([low, high], [low, high], color=INK, lw=0.8, ls=(0, (4, 2)))
    ax.errorbar(e, c, Z95 * np.where(np.isfinite(one.stderr), one.stderr, 0.0), Z95 * s, fmt="o", ms=3, lw=0.6, color=BLUE,
                label=f"χ² {one.chi2:.3g}")
    for k in np.flatnonzero(np.abs(one.z) > OUTLIER):
        ax.annotate(one.data.labels[k] if one.data.labels else str(k), (e[k], c[k]), xytext=(4, 4), textcoords="offset points",
                    color=ORANGE, fontsize="small")
    unit = printed(one.unit)
    ax.set_xlabel(label("measured", unit))
    ax.set_ylabel(label("calculated", unit))
    legend(ax)
    return ax


def data(one: Data, *, ax: Axes | None = None) -> Axes:
    """What was measured, with 95 % bars: a profile over q, else in its order; the axes."""
    ax = new_axes(ax)
    x = np.arange(len(one)) if one.q is None else one.q
    ax.errorbar(x, one.values, Z95 * one.sigma, fmt="o", ms=3, lw=0.6, color=BLUE)
    ax.set_xlabel("datum" if one.q is None else label("q", "1/Å"))
    ax.set_ylabel("measured")
    return ax


def reweighted(fit: Reweighted, *, ax: Axes | None = None) -> Axes:
    """The L-curve, φ against χ², with the θ that was taken; of a single θ the data before and after, in σ; the axes."""
    ax = new_axes(ax)
    if fit.scan is not None:
        ax.plot(fit.scan.chi2, fit.scan.phi, color=BLUE, marker=".", ms=4)
        ax.plot([fit.chi2_after], [fit.phi], "o", color=ORANGE, label=f"θ = {fit.theta:.3g}")
        ax.set_xlabel("χ² of the data")
        ax.set_ylabel("φ, share of the frames in effect used")
        ax.set_ylim(0, 1.02)
        legend(ax)
        return ax
    e, s = np.concatenate([one.values for one in fit.data]), np.concatenate([one.sigma for one in fit.data])
    before, after = np.concatenate(fit.before), np.concatenate(fit.after)
    ax.axhline(0, color=INK, lw=0.8)
    ax.plot((before - e) / s, "o", ms=3, color=INK, mfc="none", label=f"before, χ² {fit.chi2_before:.3g}")
    ax.plot((after - e) / s, "o", ms=3, color=BLUE, label=f"after, χ² {fit.chi2_after:.3g}")
    ax.set_xlabel("datum")
    ax.set_ylabel("deviation in σ")
    legend(ax)
    return ax


def single_structures(report: SingleStructureReport, *, ax: Axes | None = None) -> Axes:
    """How far single structures lie off the ensemble, in half intervals, one mark a number of each observable; the axes."""
    ax = new_axes(ax)
    for k, (name, values) in enumerate(report.structures.items()):
        off = []
        for key, e in report.ensemble.items():
            half = (np.asarray(e.high, float) - np.asarray(e.low, float)) / 2
            with np.errstate(invalid="ignore", divide="ignore"):
                off.append(np.ravel((values[key] - np.asarray(e.mean)) / half))
        ax.plot(np.concatenate(off), np.full(sum(map(len, off)), k), "|", ms=12, color=COLOURS[k % len(COLOURS)], label=name)
    ax.axvspan(-1, 1, color=PALE, zorder=0)
    ax.set_yticks(range(len(report.structures)), list(report.structures))
    ax.set_xlabel("deviation in half intervals of the ensemble")
    return ax


__all__ = ["comparison", "data", "reweighted", "single_structures", "spread", "weights"]
