"""``ensemblekit bench``: the benchmarks, which stand beside the package in a clone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ensemblekit.cli.output import Json, Output, Overwrite
from ensemblekit.errors import InputError


def bench(
    suites: Annotated[list[str] | None, typer.Argument(help="Which: core. All by default.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less data: about a minute.")] = False,
    as_json: Json = None, overwrite: Overwrite = False,
) -> None:
    """Measure against the tools one would use instead: same data, answers compared, ratios with their spread."""
    clone = clone_root()
    command = [sys.executable, "-m", "benchmarks", *(suites or [])]
    if quick:
        command.append("--quick")
    out = Output(as_json)
    # a process of its own: the memory that is measured is not that of this command
    path = os.pathsep.join(filter(None, [str(clone), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures.json")
        sys.stdout.flush()
        code = subprocess.run([*command, "--json", str(figures)], env=os.environ | {"PYTHONPATH": path}, check=False,
                              stdout=sys.stderr if out.people.stderr else None).returncode
        if as_json is not None and figures.exists():
            out.write({"benchmarks": json.loads(figures.read_text("utf-8"))})
    raise typer.Exit(code)


def clone_root() -> Path:
    """The folder that holds both the package and its benchmarks."""
    import ensemblekit

    root = Path(ensemblekit.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "__main__.py").exists():
        raise InputError(f"the benchmarks are not in the installed package: {root} has no folder benchmarks/. Clone "
                         "the repository, install it from there with `pip install -e '.[test]'`, and try again")
    return root
