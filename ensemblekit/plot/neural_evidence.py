"""Figures of what an ensemble of networks is worth: its equivalent, its ergodicity, its selection, its diversity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.averaging.function_space import FunctionSpace
from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, COLOURS, GREY, INK, ORANGE, RED, legend, new_axes, panels, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.neural.detection import Detection
    from ensemblekit.neural.equivalent import Equivalent
    from ensemblekit.neural.ergodicity import TrainingErgodicity
    from ensemblekit.neural.selection import Selection
    from ensemblekit.plot.style import AxesLike

Ranged = tuple[float, float, float]
"""Value, and the ends of its 95 % interval."""
NAMES = {"calibrated_nll": "calibrated NLL (nats)", "nll": "NLL (nats)", "brier": "Brier score", "accuracy": "accuracy",
         "mse": "mean squared error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What trainings of one cyclic schedule gave."""

    rate: float
    """The largest."""
    epochs: float
    """Of a cycle."""
    members: int
    """Snapshots of a run."""
    disagreement: Ranged
    """Share of items on which two snapshots differ."""
    n_eff: Ranged
    """Independent trainings whose mean varies as that of the snapshots."""
    equivalent: Ranged
    """Independent networks that score as well, at most `n_seeds`."""
    beyond: str
    """"below" one network, "above" all of them, or ""."""
    n_seeds: int
    score: Ranged
    """Calibrated NLL of all snapshots pooled, nats."""
    error: Ranged
    """Share of wrong items."""

    def __str__(self) -> str:
        return f"rate {self.rate:g}, {self.members} cycles"

    def to_dict(self) -> dict[str, object]:
        """As JSON has it."""
        return asdict(self)


def equivalent(result: Equivalent, *, ax: AxesLike | None = None) -> Axes:
    """Score of 1 to K independent networks, the method's as a band, and the interval of its equivalent on the axis.

    Arguments:
        result: of ``neural.deep_ensemble_equivalent``.
    """
    ax = new_axes(ax)
    size, mean, error = (np.array(x, float) for x in zip(*result.curve, strict=True))
    ax.fill_between(size, mean - error, mean + error, color=BLUE, alpha=0.2, lw=0)
    ax.plot(size, mean, "o-", color=BLUE, ms=3, label="independent networks (± s.e.)")
    ax.axhspan(result.method_score - result.method_stderr, result.method_score + result.method_stderr, color=ORANGE, alpha=0.25,
               lw=0)
    ax.axhline(result.method_score, color=ORANGE, label="the method (± s.e.)")
    bottom = ax.get_ylim()[0]
    low, high = max(result.low, 1.0), min(result.high, float(result.n_seeds))
    ax.plot([low, high], [bottom, bottom], color=RED, lw=4, solid_capstyle="butt", clip_on=False, zorder=4,
            label=f"worth, {result.confidence:.0%} interval")
    ax.plot(result.value, bottom, "o", color=RED, ms=5, clip_on=False, zorder=5)
    ax.set_ylim(bottom=bottom)
    ax.set_xlim(0.8, result.n_seeds + 0.2)
    ax.set_xlabel("networks pooled")
    ax.set_ylabel(NAMES[result.score])
    whole_numbers(ax)
    legend(ax)
    return ax


def ergodicity(result: TrainingErgodicity | FunctionSpace, *, ax: AxesLike | None = None) -> np.ndarray:
    """Correlation of the snapshots' deviations, their autocorrelation, and what M snapshots are worth; three axes.

    Arguments:
        result: of ``neural.training_ergodicity`` or ``function_space``.
    """
    space = result if isinstance(result, FunctionSpace) else result.function_space
    if space.n_runs < 2:
        raise InputError("one run has no deviation from the others to draw; give two runs or more")
    axes = panels(ax, 1, 3, (6.9, 2.3))[0]
    m = space.n_snapshots
    axes[0].imshow(space.correlation, cmap="RdBu_r", vmin=-1, vmax=1)
    axes[0].set_title("correlation", fontsize=7.5)
    axes[0].set_xlabel("snapshot")
    axes[0].set_ylabel("snapshot")
    lags = np.arange(m)
    axes[1].axhline(0, color=INK, lw=0.7)
    axes[1].fill_between(lags, space.autocorrelation_low, space.autocorrelation_high, color=BLUE, alpha=0.2, lw=0)
    axes[1].plot(lags, space.autocorrelation, "o-", color=BLUE, ms=3)
    axes[1].set_xlabel("snapshots apart")
    axes[1].set_ylabel("autocorrelation")
    counts = np.arange(1, m + 1)
    # of the last snapshots, from the matrix itself
    corner = [np.trace(space.correlation[m - k:, m - k:]) / k / space.correlation[m - k:, m - k:].mean() for k in counts]
    axes[2].plot(counts, counts, color=GREY, lw=0.7, ls=(0, (4, 3)), label="independent")
    axes[2].plot(counts, corner, "o-", color=BLUE, ms=3, label="last snapshots")
    low, high = space.n_eff_interval
    axes[2].plot([m, m], [low, high], color=RED, lw=1.6, label="all, 95 %" if space.confidence == 0.95 else "all, interval")
    axes[2].set_ylim(0, 1.05 * m)
    axes[2].set_xlabel("snapshots pooled")
    axes[2].set_ylabel("worth in independent runs")
    legend(axes[2])
    return axes


def selection(result: Selection, *, ax: AxesLike | None = None) -> np.ndarray:
    """Weights of the members, and what the choice gains out of fold beside what it seems to gain in sample; two axes.

    Arguments:
        result: of ``neural.select``.
    """
    axes = panels(ax, 1, 2, (4.6, 2.3))[0]
    m = len(result.weights)
    axes[0].bar(np.arange(1, m + 1), result.weights, color=BLUE, width=0.8)
    axes[0].axhline(1 / m, color=GREY, lw=0.7, ls=(0, (4, 3)), label="equal")
    axes[0].set_xlabel("member")
    axes[0].set_ylabel("weight")
    whole_numbers(axes[0])
    legend(axes[0])
    axes[1].axvline(0, color=INK, lw=0.7)
    names = list(result.differences)
    for row, name in enumerate(names):
        one = result.differences[name][result.score]
        axes[1].plot([one.low, one.high], [row, row], color=BLUE, lw=1.4, solid_capstyle="butt")
        axes[1].plot(one.value, row, "o", color=BLUE, ms=4, label="out of fold" if not row else None)
        shift = result.optimism if result.score != "accuracy" else -result.optimism
        axes[1].plot(one.value - shift, row, "x", color=RED, ms=5, label="in sample" if not row else None)
    axes[1].set_yticks(range(len(names)), [f"minus {name}" for name in names])
    axes[1].set_ylim(len(names) - 0.5, -0.5)
    axes[1].set_xlabel(NAMES[result.score])
    legend(axes[1])
    return axes


def detection(result: Detection, *, ax: AxesLike | None = None) -> Axes:
    """Share of errors among the surest items, one line a measure of doubt; the straight line is doubt that knows nothing.

    Arguments:
        result: of ``neural.error_detection``.
    """
    ax = new_axes(ax)
    ax.axhline(100 * result.error, color=GREY, lw=0.7, ls=(0, (4, 3)), label="knows nothing")
    for colour, (name, one) in zip(COLOURS, result.measures.items(), strict=False):
        coverage, risk = one.curve
        ax.plot(100 * coverage, 100 * risk, color=colour, label=name)
    ax.set_xlim(0, 100)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("items kept (%)")
    ax.set_ylabel("wrong among them (%)")
    legend(ax)
    return ax


def diversity(rows: Sequence[Schedule], *, ax: AxesLike | None = None) -> np.ndarray:
    """Whether diverse snapshots make good ensembles: n_eff, DEE and score against disagreement; three axes.

    One colour a largest rate; the larger the mark, the longer the cycles.

    Arguments:
        rows: one a schedule, of the same budget.
    """
    if not rows:
        raise InputError("no schedules came; give one row for each")
    axes = panels(ax, 1, 3, (6.9, 2.3))[0]
    rates = sorted({row.rate for row in rows})
    longest = max(row.epochs for row in rows)
    for row in rows:
        colour = COLOURS[rates.index(row.rate) % len(COLOURS)]
        x = 100 * row.disagreement[0]
        first = row is next(one for one in rows if one.rate == row.rate)
        for panel, (value, low, high) in zip(axes, (row.n_eff, row.equivalent, row.score), strict=True):
            panel.plot([x, x], [low, min(high, float(row.n_seeds)) if panel is axes[1] else high], color=colour, lw=1,
                       alpha=0.6)
            panel.plot(x, value, "o", color=colour, ms=3 + 4 * (row.epochs / longest) ** 0.5,
                       label=f"rate {row.rate:g}" if first and panel is axes[0] else None)
    for panel, name in zip(axes, ("n_eff", "DEE", NAMES["calibrated_nll"]), strict=True):
        if min(row.disagreement[0] for row in rows) > 0:        # from one in a hundred items to half of them
            panel.set_xscale("log")
        panel.set_xlabel("disagreement (%)")
        panel.set_ylabel(name)
    legend(axes[0])
    return axes
