"""One look for all figures: readable at 100 mm, safe for the colour-blind, nothing that does not carry information."""

from __future__ import annotations

from typing import Any

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


def new_axes(ax: Any = None, *, rows: int = 1) -> Any:
    """The axes given, or new ones in the house look (an array of them for several rows).

    Raises MissingExtraError where matplotlib is not installed.
    """
    if ax is not None:
        return ax
    from ensemblekit.errors import MissingExtraError

    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    with matplotlib.rc_context(LOOK):
        figure = _figure(Figure, (WIDTH, HEIGHT * (1 if rows == 1 else 0.78 * rows)))
        return figure.subplots(rows, 1)


def _figure(plain: Any, size: tuple[float, float]) -> Any:
    """A figure of pyplot where a window or notebook may show it, else one that lives on its own.

    pyplot keeps what it makes until it is closed; a script that draws a thousand would run out of memory.
    """
    import sys

    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        return pyplot.figure(figsize=size, layout="constrained")
    return plain(figsize=size, layout="constrained")


def label(name: str, unit: str = "") -> str:
    """"time (ps)"; the name alone where there is no unit."""
    return f"{name} ({unit})" if unit else name


def legend(ax: Any, **options: Any) -> None:
    """A small legend without a frame."""
    ax.legend(frameon=False, fontsize=7, **({"loc": "best"} | options))
