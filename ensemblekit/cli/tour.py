"""``ensemblekit tour``: the three fields at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tour(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the stores, plots and the page.")] = Path("tour"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller runs: for a first look.")] = False,
) -> None:
    """Molecular dynamics, a flow and a neural network through one store: writes OUT/index.html in under two minutes."""
    from ensemblekit.tour import run

    run(out, quick=quick)
