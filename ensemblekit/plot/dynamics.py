"""Figures of reduced models: eigenvalues, runs, forecasts with their band, errors against time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, COLOURS, GREY, INK, RED, label, legend, look, new_axes
from ensemblekit.rom.eigenvalues import Eigenvalues
from ensemblekit.rom.modal import ModalModel
from ensemblekit.rom.model_error import ModelError
from ensemblekit.rom.quadratic import QuadraticModel
from ensemblekit.rom.trajectory import Forecast, Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 4
"""Coefficients drawn unless more are asked for."""


def model(one: QuadraticModel, *, kind: Literal["auto", "eigenvalues", "forecast", "search"] = "auto",
          ax: Axes | None = None) -> Axes:
    """A model: its eigenvalues ("auto"), a forecast of as long as the training, or the errors of the regularisation search."""
    if kind in ("auto", "eigenvalues"):
        return eigenvalues(one.eigenvalues, ax=ax)
    if kind == "forecast":
        if one.training is None:
            raise InputError("a model that was not fitted has no forecast: model.simulate(x0, times).plot()")
        return forecast(one.predict(max(1, round(one.training.span / one.training.interval))), ax=ax)
    if kind == "search":
        return search(one, ax=ax)
    raise InputError(f'kind is "auto", "eigenvalues", "forecast" or "search"; got {kind!r}')


def eigenvalues(values: Eigenvalues, *, ax: Axes | None = None) -> Axes:
    """Growth against frequency with their intervals, and the line of stability."""
    with look():
        ax = new_axes(ax)
        ax.axvline(0, color=GREY, lw=0.8)
        growth, frequency = values.growth, values.frequency
        if values.interval is not None:
            (gl, gh), (fl, fh) = values.interval["growth"], values.interval["frequency"]
            ax.errorbar(growth, frequency, xerr=[growth - gl, gh - growth], yerr=[frequency - fl, fh - frequency], fmt="none",
                        ecolor=GREY, elinewidth=0.8)
        grows = growth > 0
        ax.plot(growth[~grows], frequency[~grows], "o", ms=4, color=BLUE, label="decaying")
        if grows.any():
            ax.plot(growth[grows], frequency[grows], "o", ms=4, color=RED, label="growing")
            legend(ax)
        per = f"per {values.time_unit}" if values.time_unit else ""
        ax.set_xlabel(label("growth", per))
        ax.set_ylabel(label("frequency", f"cycles {per}" if per else "cycles"))
        return ax


def trajectory(run: Trajectory, *, count: int = MOST_LINES, ax: Axes | None = None) -> Axes:
    """The first coefficients against time; of a batch its first run."""
    with look():
        ax = new_axes(ax)
        states = run.coefficients if run.coefficients.ndim == 2 else run.coefficients[:, 0]
        for k in range(min(count, states.shape[1])):
            ax.plot(run.times, states[:, k].real, color=COLOURS[k % len(COLOURS)], lw=1, label=f"$a_{{{k + 1}}}$")
        if run.diverged_at is not None:
            ax.axvline(run.diverged_at, color=RED, lw=0.8, ls="--", label="diverged")
        ax.set_xlabel(label("time", run.time_unit))
        ax.set_ylabel("coefficient")
        legend(ax)
        return ax


def forecast(run: Forecast, *, count: int = 2, truth: tuple[np.ndarray, np.ndarray] | None = None,
             ax: Axes | None = None) -> Axes:
    """The first coefficients with their band; the training before its end, and the truth (times, coefficients) where given."""
    with look():
        ax = new_axes(ax)
        for k in range(min(count, run.coefficients.shape[1])):
            colour = COLOURS[k % len(COLOURS)]
            if run.history is not None and len(run.history[0]):
                shown = slice(-max(2, run.n), None)
                ax.plot(run.history[0][shown], run.history[1][shown, k].real, color=colour, lw=0.8, alpha=0.6)
            ax.plot(run.times, run.coefficients[:, k].real, color=colour, lw=1.2, label=f"$a_{{{k + 1}}}$")
            if run.low is not None and run.high is not None:
                held = np.isfinite(run.low[:, k].real) & np.isfinite(run.high[:, k].real)
                ax.fill_between(run.times[held], run.low[held, k].real, run.high[held, k].real, color=colour, alpha=0.2, lw=0)
            if truth is not None:
                ax.plot(truth[0], truth[1][:, k].real, ".", ms=2, color=INK)
        if run.n and run.history is not None and len(run.history[0]):
            ax.axvline(run.history[0][-1], color=GREY, lw=0.8, ls=":")
        ax.set_xlabel(label("time", run.time_unit))
        ax.set_ylabel("coefficient")
        legend(ax)
        return ax


def model_error(error: ModelError, *, ax: Axes | None = None) -> Axes:
    """Errors against time as shares of the fluctuation: of modes, of the model, of both, and of persistence."""
    with look():
        ax = new_axes(ax)
        scale = error.fluctuation or 1.0
        for name, values, colour, style in (("modes", error.projection, BLUE, "-"), ("model", error.model, RED, "-"),
                                            ("together", error.field, INK, "-"),
                                            ("persistence", error.persistence, GREY, "--")):
            shown = np.where(np.isfinite(values) & (values > 0), values / scale, np.nan)
            ax.plot(error.times, shown, color=colour, ls=style, lw=1, label=name)
        ax.set_yscale("log")
        ax.set_xlabel(label("time", error.time_unit))
        ax.set_ylabel("error / fluctuation")
        legend(ax)
        return ax


def search(one: QuadraticModel, *, ax: Axes | None = None) -> Axes:
    """Candidates of the regularisation search: their error over the training, those rejected as crosses."""
    fit = one.fit
    if fit is None or fit.search is None:
        raise InputError('this model has no regularisation search; rom.operator_inference makes one')
    with look():
        ax = new_axes(ax)
        table = fit.search
        kept = np.isfinite(table[:, 2])
        ax.plot(table[~kept, 0], table[~kept, 1], "x", ms=4, color=GREY, label="rejected")
        shown = ax.scatter(table[kept, 0], table[kept, 1], c=np.log10(np.maximum(table[kept, 2], 1e-16)), s=18,
                           cmap="viridis_r")
        ax.figure.colorbar(shown, ax=ax, label="log10 error over the training")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("weight on linear terms")
        ax.set_ylabel("weight on quadratic terms")
        if (~kept).any():
            legend(ax)
        return ax


def modal(one: ModalModel, *, kind: Literal["auto", "eigenvalues", "power", "forecast"] = "auto",
          ax: Axes | None = None) -> Axes:
    """Dynamic modes: their eigenvalues ("auto"), the power of each at its frequency, or a forecast as long as the training.

    The modes themselves on their grid or mesh: :func:`ensemblekit.plot.dynamic_modes.dynamic_modes`.
    """
    if kind in ("auto", "eigenvalues"):
        return eigenvalues(one.eigenvalues, ax=ax)
    if kind == "forecast":
        if one.training is None:
            raise InputError("modes that were not fitted have no forecast: model.simulate(x0, times).plot()")
        return forecast(one.predict(max(1, round(one.training.span / one.training.interval))), ax=ax)
    if kind != "power":
        raise InputError(f'kind is "auto", "eigenvalues", "power" or "forecast"; got {kind!r}')
    with look():
        ax = new_axes(ax)
        frequency, power = one.eigenvalues.frequency, one.power
        shown = (frequency >= 0) & (power > 0)
        ax.vlines(frequency[shown], power[shown].min(initial=1.0) / 3, power[shown], color=BLUE, lw=1)
        ax.plot(frequency[shown], power[shown], "o", ms=4, color=BLUE)
        ax.set_yscale("log")
        per = f"cycles per {one.time_unit}" if one.time_unit else "cycles"
        ax.set_xlabel(label("frequency", per))
        ax.set_ylabel("mean square")
        return ax
