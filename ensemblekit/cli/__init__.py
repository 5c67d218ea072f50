"""The shell: ``ensemblekit info | verify | average | export | tour | bench | md | rom | neural ...``.

What is heavy is imported inside the commands, so that the help comes at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ensemblekit import __version__
from ensemblekit.cli import average, bench, export, info, md, neural, rom, rom_files, tour
from ensemblekit.cli.console import library_notes, stderr
from ensemblekit.errors import EnsemblekitError

FAILED = 2
"""The exit code of an error of ours, and of what could not be checked; 3 is that of damage."""


class Commands(TyperGroup):
    """Turns an error of ours into one line; it says what came, what was wanted and how to mend it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with library_notes():
                return super().invoke(ctx)
        except EnsemblekitError as error:
            if ctx.params.get("debug"):
                raise
            stderr.print("[bold red]error:[/]", " ".join(str(error).split()), soft_wrap=True)
            raise typer.Exit(FAILED) from error


app = typer.Typer(name="ensemblekit", cls=Commands, no_args_is_help=True, add_completion=False,
                  rich_markup_mode="rich",
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})
for command in (info.info, info.verify, average.average, export.export, tour.tour, bench.bench):
    app.command(no_args_is_help=command not in (tour.tour, bench.bench))(command)
app.add_typer(md.app, name="md")
rom.app.command(no_args_is_help=True)(rom_files.ingest)
rom.app.command(no_args_is_help=True)(rom_files.export)
app.add_typer(rom.app, name="rom")
app.add_typer(neural.app, name="neural")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ensemblekit {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Print the version and leave.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """Snapshot ensembles: what is in a store, whether it is sound, and averages with honest error bars."""


def main() -> None:
    """The entry point of the shell command."""
    app(prog_name="ensemblekit")


__all__ = ["app", "main"]
