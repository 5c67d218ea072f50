"""One look for all pictures of the tour."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INK, MUTED, RULE = "#1b2733", "#64748b", "#dbe2ea"
BLUE, ORANGE, TEAL, RED, VIOLET = "#2463c9", "#e07a1f", "#12857a", "#c73a3a", "#7350b8"

SETTINGS: Any = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 100,
    "font.family": "DejaVu Sans", "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 9, "axes.labelcolor": INK, "text.color": INK, "axes.titlecolor": INK,
    "axes.edgecolor": "#9aa7b5", "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "axes.grid": True,
    "grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round", "legend.frameon": False, "legend.fontsize": 9.5,
    "figure.constrained_layout.use": True, "mathtext.fontset": "dejavusans",
}


@contextmanager
def figure(path: Path, width: float, height: float, **grid: Any) -> Iterator[Any]:
    """A figure that is written to `path` at the end; `grid` goes to subplots, whose axes come back with it.

    Drawn by the Agg backend directly: no window, and the caller's pyplot is left alone.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        made = Figure(figsize=(width, height))
        FigureCanvasAgg(made)
        yield made, made.subplots(**grid)
        made.savefig(path, dpi=160)
