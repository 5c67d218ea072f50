"""One look for all figures: readable at 100 mm, safe for the colour-blind, nothing that does not carry information."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError
from ensemblekit.results import Result, in_a_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    AxesLike = Axes | Sequence[Axes] | np.ndarray

WIDTH, HEIGHT = 3.94, 2.6
"""Inches; 100 mm wide, one column of a journal."""

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800")
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, YELLOW)
"""Okabe & Ito's palette, its yellow darkened to be seen on white."""
INK, GREY, TRACE, PALE = "#222222", "#8A8A8A", "#BDBDBD", "#D9D9D9"

LOOK: dict[Any, Any] = {
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 3, "ytick.major.size": 3,
    "lines.linewidth": 1.2, "legend.frameon": False, "legend.handlelength": 1.4, "figure.dpi": 120, "savefig.dpi": 300,
    "axes.formatter.useoffset": False, "pdf.fonttype": 42, "svg.fonttype": "none",
}


@contextmanager
def look() -> Iterator[None]:
    """Meanwhile matplotlib draws in the house look. Raises MissingExtraError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    with matplotlib.rc_context(LOOK):
        yield


def new_axes(ax: AxesLike | None = None) -> Axes:
    """The axes given, or new ones in the house look. Raises InputError where an array of them is given."""
    given = single(ax)
    return panels(None, 1, 1, (WIDTH, HEIGHT))[0, 0] if given is None else given


def single(ax: AxesLike | None) -> Axes | None:
    """The one Axes that was given, or None. Raises InputError where an array of them was given."""
    if ax is None:
        return None
    given = np.asarray(ax, dtype=object)
    if given.ndim:
        raise InputError(f"ax is one Axes here; got an array of {given.size}")
    return given.item()


def number_of(ax: AxesLike | None) -> int:
    """How many Axes were given."""
    return 0 if ax is None else np.asarray(ax, dtype=object).size


def panels(ax: AxesLike | None, rows: int, columns: int, size: tuple[float, float], *,
           height_ratios: Sequence[float] | None = None, width_ratios: Sequence[float] | None = None) -> np.ndarray:
    """Axes (rows, columns) in the house look.

    Arguments:
        ax: None, a new figure of `size` inches; one Axes, whose place they share; or as many Axes as there are panels.

    Raises InputError where their number is another.
    """
    with look():
        if ax is None:
            figure = new_figure(size)
            return figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios, width_ratios=width_ratios)
        given = np.asarray(ax, dtype=object).ravel()
        if len(given) == rows * columns:
            return given.reshape(rows, columns)
        spec = given[0].get_subplotspec() if len(given) == 1 else None
        if spec is None:
            raise InputError(f"this figure has {rows} × {columns} panels: ax is an array of {rows * columns} Axes, or one Axes "
                             f"of a grid (from subplots) for them to share; got {len(given)}")
        figure = given[0].figure
        given[0].remove()
        grid = spec.subgridspec(rows, columns, height_ratios=height_ratios, width_ratios=width_ratios)
        axes = np.empty((rows, columns), dtype=object)
        for at in np.ndindex(rows, columns):
            axes[at] = figure.add_subplot(grid[at])
        return axes


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure of pyplot where a window or notebook may show it, else one that lives on its own.

    pyplot keeps what it makes until it is closed; a script that draws a thousand would run out of memory.
    """
    from matplotlib.figure import Figure

    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        return pyplot.figure(figsize=size, layout="constrained")
    return Figure(figsize=size, layout="constrained")


def facts(result: Result, *, ax: Axes | None = None) -> Axes:
    """A result that has no figure of its own: its numbers as a table; the axes."""
    shown = [(name, in_a_line(value)) for name, value in result._facts().items() if value is not None]
    ax = ax if ax is not None else panels(None, 1, 1, (WIDTH * 1.2, 0.35 + 0.17 * len(shown)))[0, 0]
    ax.set_axis_off()
    ax.set_title(type(result).__name__, loc="left", fontsize=8, fontweight="bold")
    for k, (name, value) in enumerate(shown):
        y = 1 - (k + 0.5) / max(len(shown), 1)
        ax.text(0.0, y, name.replace("_", " "), va="center", fontsize=7, color=GREY, transform=ax.transAxes, parse_math=False)
        text = value if len(value) <= 60 else f"{value[:59]}…"
        ax.text(0.36, y, text, va="center", fontsize=7, color=INK, transform=ax.transAxes, parse_math=False)
    return ax


def label(name: str, unit: str = "") -> str:
    """"time (ps)"; the name alone where there is no unit."""
    return f"{name} ({unit})" if unit else name


def whole_numbers(ax: Axes) -> None:
    """Ticks along x at whole numbers alone: members, networks."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def legend(ax: Axes, **options: Any) -> None:
    """A small legend without a frame."""
    ax.legend(**({"frameon": False, "fontsize": 7, "loc": "best"} | options))
