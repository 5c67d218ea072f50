"""The shell: ``ensemblekit info | verify | average | export | pack | merge | tour | bench | md | rom | neural ...``.

What is heavy is imported inside the commands, so that the help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ensemblekit import __version__
from ensemblekit.cli import average, bench, export, info, md_ensembles, md_experiment, md_field, neural, rom, stores, tour
from ensemblekit.cli.verbs import Commands, add

app = typer.Typer(name="ensemblekit", cls=Commands, no_args_is_help=True, rich_markup_mode="rich",
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})
add(app, info.info, "ensemblekit info run.h5", "ensemblekit info 'run-*.h5' --json - | jq .results")
add(app, info.verify, "ensemblekit verify run.h5", "ensemblekit verify a.h5 b.h5 --csv damaged.csv")
add(app, average.average, "ensemblekit average run.h5 rg -b 100",
    "ensemblekit average energy.xvg Potential --json - --require-converged")
add(app, export.export, "ensemblekit export run.h5 rg -o rg.csv",
    "ensemblekit export run.h5 u v --step 10 -o fields.npz")
add(app, stores.pack, "ensemblekit pack run.h5", "ensemblekit pack run.h5 -o packed.h5 --compression lossless")
add(app, stores.merge, "ensemblekit merge first.h5 second.h5 -o whole.h5",
    "ensemblekit merge 'part-*.h5' -o whole.h5 --json -")
add(app, tour.tour, "ensemblekit tour", "ensemblekit tour --quick -o /tmp/tour", bare=True)
add(app, bench.bench, "ensemblekit bench core --quick", "ensemblekit bench md --json md.json", bare=True)
md_field.app.add_typer(md_experiment.spectrum, name="spectrum")
app.add_typer(md_ensembles.app, name="md")
app.add_typer(rom.app, name="rom")
app.add_typer(neural.app, name="neural")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ensemblekit {__version__}")
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
