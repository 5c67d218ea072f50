"""The pictures of the tour: the house look of `ensemblekit.plot`, at the size of a page on a screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemblekit.files import replacing
from ensemblekit.plot.style import BLUE, INK, LOOK, ORANGE, RED
from ensemblekit.plot.style import GREEN as TEAL
from ensemblekit.plot.style import GREY as MUTED
from ensemblekit.plot.style import PURPLE as VIOLET

__all__ = ["BLUE", "INK", "MUTED", "ORANGE", "RED", "TEAL", "VIOLET", "figure"]

SETTINGS: Any = LOOK | {
    "font.size": 10.5, "axes.labelsize": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 9, "axes.titlecolor": INK, "axes.linewidth": 0.8,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "legend.fontsize": 9.5, "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round", "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "figure.constrained_layout.use": True,
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
        fig = Figure(figsize=(width, height))
        FigureCanvasAgg(fig)
        yield fig, fig.subplots(**grid)
        with replacing(path, suffix=path.suffix) as temporary:
            fig.savefig(temporary, dpi=160)
