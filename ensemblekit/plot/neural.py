"""Figures of training runs and ensembles of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.plot.style import (
    BLUE,
    COLOURS,
    GREY,
    HEIGHT,
    INK,
    ORANGE,
    PALE,
    RED,
    WIDTH,
    legend,
    new_axes,
    panels,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.neural import History, Prediction, Reliability, Report, Score
    from ensemblekit.plot.style import AxesLike

ERROR = {"accuracy": ("error (points)", -100.0), "nll": ("NLL (nats)", 1.0), "calibrated_nll": ("calibrated NLL (nats)", 1.0),
         "brier": ("Brier score", 1.0), "ece": ("ECE (points)", 100.0)}
"""Score -> what its difference is called, and the factor; below zero is better."""


def training(history: History, *, ax: AxesLike | None = None) -> np.ndarray:
    """The learning rate with marks where snapshots were taken, over the loss of each step; the two Axes, (2,).

    Arguments:
        history: of ``neural.history(store)``; the first parameter group's rate is drawn.
    """
    steps = np.asarray(history.step, dtype=np.float64)
    if not len(steps):
        raise InputError("this run kept no history: give the loss to Recorder.step(loss), or train with neural.fit")
    rates = np.asarray(history.learning_rate, dtype=np.float64).reshape(len(steps), -1)[:, 0]
    captured = np.asarray(history.snapshot_steps, dtype=np.float64)
    axes = panels(ax, 2, 1, (WIDTH, HEIGHT * 1.56))[:, 0]
    above, below = axes
    above.plot(steps, rates, color=BLUE)
    above.plot(captured, np.interp(captured, steps, rates), "v", color=RED, ms=5, clip_on=False, zorder=4, label="snapshot")
    above.set_ylabel("learning rate")
    above.set_ylim(bottom=0)
    if len(captured):
        above.legend(frameon=False, fontsize=7, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    known = np.isfinite(history.loss)
    if known.any():
        _losses(below, steps[known], np.asarray(history.loss, dtype=np.float64)[known])
    for at in captured:
        below.axvline(at, color=RED, lw=0.7, ls=(0, (3, 3)), zorder=0)
    below.set_ylabel("training loss")
    below.set_xlabel("step")
    for one in axes:
        one.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    return axes


def _losses(ax: Axes, steps: np.ndarray, losses: np.ndarray) -> None:
    """Every step's in grey, a running mean over a hundredth of them in front; logarithmic where all are above 0."""
    width = max(1, len(losses) // 120)
    padded = np.pad(losses, (width // 2, width - 1 - width // 2), mode="edge")
    smooth = np.convolve(padded, np.full(width, 1 / width), "valid")
    ax.plot(steps, losses, color=GREY, lw=0.5, alpha=0.5)
    ax.plot(steps, smooth, color=BLUE)
    if losses.min() > 0:
        ax.set_yscale("log")


def reliability(predictions: Mapping[str, Prediction], *, n_bins: int = 15, groups: np.ndarray | None = None,
                ax: AxesLike | None = None) -> np.ndarray:
    """Share right against confidence with 95 % intervals, and below how many items are in each bin; the Axes (2, models).

    Arguments:
        predictions: name -> Prediction with labels.
    """
    from ensemblekit.neural.calibration import calibration_error
    from ensemblekit.neural.calibration import reliability as binned

    if not predictions:
        raise InputError("nothing to draw: no predictions were given")
    axes = panels(ax, 2, len(predictions), (1.55 * len(predictions) + 0.5, 2.9), height_ratios=(3, 1))
    most = 0
    for column, (name, one) in enumerate(predictions.items()):
        top, bottom = axes[0][column], axes[1][column]
        curve = binned(one, n_bins=n_bins, groups=groups)
        full = curve.counts > 0
        colour = COLOURS[column % len(COLOURS)]
        top.plot([0, 1], [0, 1], color=INK, lw=0.7, ls=(0, (4, 3)))
        top.fill_between(curve.confidence[full], curve.low[full], curve.high[full], color=colour, alpha=0.2, lw=0)
        top.plot(curve.confidence[full], curve.accuracy[full], "o-", color=colour, ms=2.6, lw=0.9)
        middle = (curve.edges[1:] + curve.edges[:-1]) / 2
        bottom.bar(middle, np.maximum(curve.counts, 0.5), width=0.9 / n_bins, color=colour)
        bottom.set_yscale("log")
        most = max(most, int(curve.counts.max()))
        top.set_title(f"{name}\nECE {100 * calibration_error(one, n_bins=n_bins):.1f} %", fontsize=7)
        top.set_xlim(0, 1)
        top.set_ylim(-0.02, 1.02)
        bottom.set_xlim(0, 1)
        bottom.set_xlabel("confidence")
        top.set_xticks([0, 0.5, 1], ["", "", ""])
        bottom.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        if column:
            top.set_yticklabels([])
            bottom.set_yticklabels([])
    for bottom in axes[1]:
        bottom.set_ylim(0.5, 2 * most)
    axes[0][0].set_ylabel("share right")
    axes[1][0].set_ylabel("items")
    return axes


def forest(differences: Mapping[str, Mapping[str, Score]], *, names: Sequence[str] = ("accuracy", "calibrated_nll", "ece"),
           against: str = "", ax: AxesLike | None = None) -> np.ndarray:
    """Paired differences with their 95 % intervals, one row a model, left of the line is better; an Axes a score."""
    if not differences:
        raise InputError("nothing to draw: no differences were given")
    axes = panels(ax, 1, len(names), (1.9 * len(names) + 1.2, 0.28 * len(differences) + 0.8))[0]
    for column, (one, name) in enumerate(zip(axes, names, strict=True)):
        title, factor = ERROR.get(name, (name, 1.0))
        one.axvline(0, color=INK, lw=0.7)
        for row, (_label, scores) in enumerate(differences.items()):
            score = scores[name]
            ends = sorted((factor * score.low, factor * score.high))
            better = ends[1] < 0
            colour = BLUE if better else RED if ends[0] > 0 else GREY
            one.plot(ends, [row, row], color=colour, lw=1.4, solid_capstyle="butt")
            one.plot(factor * score.value, row, "o", color=colour, ms=3.6)
        one.set_yticks(range(len(differences)), list(differences) if column == 0 else [""] * len(differences))
        one.set_ylim(len(differences) - 0.5, -0.5)
        one.tick_params(axis="y", length=0)
        one.set_title(title, fontsize=7.5)
        one.locator_params(axis="x", nbins=4)
    if against:
        axes[0].set_xlabel(f"minus {against}; left is better", loc="left")
    return axes


def by_members(curve: Sequence[Mapping[str, Score]], *, ax: AxesLike | None = None) -> np.ndarray:
    """Error and NLL of the last 1, 2, ... M snapshots pooled, with 95 % intervals; the two Axes, (2,)."""
    if not curve:
        raise InputError("nothing to draw: no scores were given")
    axes = panels(ax, 1, 2, (WIDTH, 1.9))[0]
    counts = np.arange(1, len(curve) + 1)
    shown = (("accuracy", "error (%)", -100.0, 100.0), ("nll", "NLL (nats)", 1.0, 0.0))
    for one, (name, title, factor, shift) in zip(axes, shown, strict=True):
        value = np.array([shift + factor * s[name].value for s in curve])
        ends = np.sort([[shift + factor * s[name].low, shift + factor * s[name].high] for s in curve], axis=1)
        one.fill_between(counts, ends[:, 0], ends[:, 1], color=BLUE, alpha=0.2, lw=0)
        one.plot(counts, value, "o-", color=BLUE, ms=3)
        one.set_ylim(bottom=max(0.0, one.get_ylim()[0]))
        one.set_ylabel(title)
        one.set_xlabel("last snapshots pooled")
        whole_numbers(one)
    return axes


def diversity(disagreement: np.ndarray, plane: np.ndarray | None = None, explained: float = float("nan"), *,
              ax: AxesLike | None = None) -> np.ndarray:
    """Share of items on which two snapshots differ, beside the trajectory of the weights in its principal plane; the Axes.

    The percentage is the share of the trajectory's variance that lies in the plane.
    """
    matrix = 100 * np.asarray(disagreement, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"disagreement is one number a pair, (members, members); got {matrix.shape}")
    n = 1 if plane is None else 2
    axes = panels(ax, 1, n, (2.5 * n, 2.3))[0]
    m = len(matrix)
    top = float(matrix.max()) or 1.0
    axes[0].imshow(matrix, cmap="Blues", vmin=0, vmax=1.25 * top)
    if m <= 8:
        for i in range(m):
            for j in range(m):
                if i != j:
                    axes[0].text(j, i, f"{matrix[i, j]:.1f}", ha="center", va="center", fontsize=6.5,
                                 color="white" if matrix[i, j] > 0.8 * top else INK)
    ticks = range(m) if m <= 10 else range(0, m, max(1, m // 6))
    axes[0].set_xticks(list(ticks), [str(k + 1) for k in ticks])
    axes[0].set_yticks(list(ticks), [str(k + 1) for k in ticks])
    axes[0].set_title("disagreement (% of items)", fontsize=7.5)
    axes[0].set_xlabel("snapshot")
    axes[0].set_ylabel("snapshot")
    for side in ("left", "bottom"):
        axes[0].spines[side].set_visible(False)
    axes[0].tick_params(length=0)
    if plane is not None:
        xy = np.asarray(plane, dtype=np.float64)
        axes[1].plot(xy[:, 0], xy[:, 1], "-", color=PALE, lw=1)
        axes[1].scatter(xy[:, 0], xy[:, 1], c=np.arange(m), cmap="viridis_r", s=24, zorder=3)
        for k, (x, y) in enumerate(xy):
            axes[1].annotate(str(k + 1), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5)
        centre = xy.mean(0)
        axes[1].plot(*centre, "+", color=ORANGE, ms=7, mew=1.6, label="mean of weights")
        axes[1].set_aspect("equal", adjustable="datalim")
        axes[1].margins(0.15)
        share = "" if np.isnan(explained) else f" ({100 * explained:.0f} %)"
        axes[1].set_title(f"plane of the weights{share}", fontsize=7.5)
        axes[1].set_xlabel("distance along 1st")
        axes[1].set_ylabel("along 2nd")
        legend(axes[1], loc="upper center", bbox_to_anchor=(0.5, -0.28))
    return axes


def report(result: Report, *, n_bins: int = 15, ax: AxesLike | None = None) -> np.ndarray:
    """A page on a :class:`~ensemblekit.neural.Report`: reliability, differences, members, diversity; all its Axes, (n,).

    `ax`: three Axes of a grid, one below the other, in whose places they stand (two for a report of one member).
    """
    several = len(result.by_members) > 1
    wide = max(1.55 * len(result.predictions) + 0.5, 7.0)
    height = 3.2 + 0.28 * len(result.differences) + 0.9
    places = panels(ax, 3 if several else 2, 1, (wide, height + 2.4 * several),
                    height_ratios=(3.2, 0.28 * len(result.differences) + 0.9, *([2.4] if several else [])))[:, 0]
    drawn = [reliability(result.predictions, n_bins=n_bins, ax=places[0]), differences(result, ax=places[1])]
    if several:
        left, right = panels(places[2], 1, 2, (wide, 2.4))[0]
        drawn += [by_members(result.by_members, ax=left),
                  diversity(result.disagreement, result.plane, result.explained, ax=right)]
    return np.concatenate([np.ravel(axes) for axes in drawn])


def differences(result: Report, *, ax: AxesLike | None = None) -> np.ndarray:
    """The models of a report against its first, a column a score; the Axes (see :func:`forest`)."""
    return forest(result.differences, against=next(iter(result.scores)), ax=ax)


def prediction(result: Prediction, *, n_bins: int = 15, ax: AxesLike | None = None) -> np.ndarray:
    """The reliability of one prediction, or its confidences where it has no labels; the Axes, (2,) or (1,)."""
    if result.target is not None:
        return reliability({"prediction": result}, n_bins=n_bins, ax=ax)[:, 0]
    axes = panels(ax, 1, 1, (WIDTH, HEIGHT))[0]
    confidence = np.asarray(result.probabilities, dtype=np.float64).max(axis=1).ravel()
    axes[0].hist(confidence, bins=n_bins, range=(0, 1), color=BLUE)
    axes[0].set_xlabel("confidence")
    axes[0].set_ylabel("items")
    return axes


def bins(result: Reliability, *, ax: Axes | None = None) -> Axes:
    """Share right against confidence with its 95 % intervals; the axes."""
    ax = new_axes(ax)
    full = result.counts > 0
    ax.plot([0, 1], [0, 1], color=INK, lw=0.7, ls=(0, (4, 3)))
    ax.fill_between(result.confidence[full], result.low[full], result.high[full], color=BLUE, alpha=0.2, lw=0)
    ax.plot(result.confidence[full], result.accuracy[full], "o-", color=BLUE, ms=2.6, lw=0.9)
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("confidence")
    ax.set_ylabel("share right")
    return ax
