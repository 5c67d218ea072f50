"""Figures of data that get worse: scores against severity, and where models differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.plot.style import COLOURS, INK, look, new_axes, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.neural.drift import Drift
    from ensemblekit.plot.style import AxesLike

OF_CLASSES = (("accuracy", "error"), ("nll", "NLL (nats)"), ("ece", "ECE"), ("nll_clean_t", "NLL at the clean T"),
              ("ece_clean_t", "ECE at the clean T"))
OF_NUMBERS = (("mse", "mean squared error"), ("nll", "NLL (nats)"), ("coverage", "coverage of 95 %"))


def severity(found: Drift, *, ax: AxesLike | None = None) -> np.ndarray:
    """Mean scores over corruptions against severity (0: clean) with 95 % bands, a line a model; an Axes a score.

    Of classes: error, NLL and ECE, both at the temperature of the clean items too, and the AUROC of doubt for errors (the mean
    over corruptions, without a band).
    """
    numbers = "mse" in found.clean[found.models[0]]
    shown = OF_NUMBERS if numbers else OF_CLASSES
    areas = bool(found.clean_detection)
    axes = panels(ax, 1, len(shown) + areas, (1.9 * (len(shown) + areas), 2.4))[0]
    at = [0, *found.severities]
    for one, (name, title) in zip(axes, shown, strict=False):
        for color, model in zip(COLOURS * len(found.models), found.models, strict=False):
            rows = [found.clean[model][name], *(found.mean[model][k][name] for k in found.severities)]
            values = np.array([(row.value, row.low, row.high) for row in rows])
            if name == "accuracy":
                values = 1 - values[:, [0, 2, 1]]
            one.plot(at, values[:, 0], "o-", color=color, ms=2.5, label=model)
            one.fill_between(at, values[:, 1], values[:, 2], color=color, alpha=0.2, lw=0)
        one.set(title=title, xlabel="severity", xticks=at)
    if areas:
        for color, model in zip(COLOURS * len(found.models), found.models, strict=False):
            means = [np.nanmean([found.detection[model][name][k].value for name in found.corruptions])
                     for k in found.severities]
            axes[-1].plot(at, [found.clean_detection[model].value, *means], "o-", color=color, ms=2.5, label=model)
        axes[-1].set(title="AUROC of doubt for errors", xlabel="severity", xticks=at)
    for one in axes:
        one.title.set_fontsize(8)
    axes[0].legend(frameon=False, fontsize=6)
    return axes


def table(found: Drift, score: str = "nll", model: str | None = None, *, ax: Axes | None = None) -> Axes:
    """A score's difference from the first model for every corruption and severity; what zero does not exclude is grey.

    Raises InputError for a model or score that is not there, and where there is only one model.
    """
    if len(found.models) < 2:
        raise InputError("a table of differences needs two models")
    model = found.models[1] if model is None else model
    values = found.table(score, model)
    with look():
        ax = new_axes(ax)
        most = max(float(abs(values).max()), 1e-12)
        ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
        for i, name in enumerate(found.corruptions):
            for j, k in enumerate(found.severities):
                sure = found.by_corruption[model][name][k][score].significant
                color = "white" if abs(values[i, j]) > 0.6 * most else INK if sure else "#777777"
                ax.text(j, i, f"{values[i, j]:+.3g}" + ("*" if sure else ""), ha="center", va="center", fontsize=6, color=color)
        ax.set_xticks(range(len(found.severities)), [str(k) for k in found.severities])
        ax.set_yticks(range(len(found.corruptions)), [name.replace("_", " ") for name in found.corruptions])
        ax.set_xlabel("severity")
        ax.set_title(f"{score}: {model} minus {found.models[0]} (* zero outside the 95 % interval)", fontsize=7)
    return ax


__all__ = ["severity", "table"]
