"""``ensemblekit tour``: the three fields at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemblekit.cli.output import Overwrite
from ensemblekit.errors import InputError


def tour(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIRECTORY", help="For the stores, figures and the page.")]
        = Path("tour"),
    quick: Annotated[bool, typer.Option("--quick", help="Smaller runs: for a first look.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Molecular dynamics, a flow and a neural network through one store: writes OUT/index.html in under two minutes."""
    from ensemblekit.tour import run

    if (out / "index.html").exists() and not overwrite:
        raise InputError(f"{out} holds a tour already; --overwrite replaces it")
    run(out, quick=quick)
