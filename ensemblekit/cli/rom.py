"""``ensemblekit rom``: averages, modes, reconstructions and archives of stored flow fields, from the shell."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def rom() -> None:
    """Flow fields: averages with error bars, POD, archives, ParaView."""
