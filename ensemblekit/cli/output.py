"""What a verb gives out: text for people, results as JSON or CSV, figures. One schema, and one way to write a file.

Data stand on stdout, talk on stderr. With ``--json -`` or ``--csv -`` stdout holds nothing but that, and the text for people
moves to stderr.
"""

from __future__ import annotations

import glob
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from ensemblekit.cli import console
from ensemblekit.errors import InputError, one_line
from ensemblekit.files import real_bytes, replacing, temporary_beside, write_csv, write_text
from ensemblekit.provenance import Provenance, described
from ensemblekit.results import plain

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

SCHEMA, SCHEMA_VERSION = "ensemblekit.results", 1
STDOUT = Path("-")
TRIAL = 4096
"""Bytes that an output is tried with before the work begins."""
MOST_INPUTS = 1000
"""Files of a pattern or folder that are described one by one."""

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE|-", show_default=False,
                                           help="Write the results as JSON; - is stdout.")]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE|-", show_default=False,
                                          help="Write the numbers as CSV; - is stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FOLDER", show_default=False, help="Draw figures there.")]
PlotFormat = Annotated[Literal["png", "pdf", "svg"], typer.Option("--plot-format", help="Of the figures.")]
RequireConverged = Annotated[bool, typer.Option("--require-converged",
                                                help="End with code 4 where an average has not converged.")]

REFUSED = 4
"""The exit code of a verdict that was required and is not there."""

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Output:
    """Where the results of one verb go."""

    json: Path | None = None
    csv: Path | None = None
    inputs: tuple[str, ...] = ()
    """Files, folders, patterns that were read."""

    @property
    def people(self) -> console.Console:
        """Where text for people goes: stderr where stdout is taken by data."""
        return console.stderr if STDOUT in (self.json, self.csv) else console.stdout

    def say(self, text: object, style: str = "") -> None:
        """Lines of text for people."""
        console.say(text, style, console=self.people)

    def show_text(self, text: str) -> None:
        """What a result says of itself, its table as one that fits."""
        console.show_text(text, self.people)

    def print(self, *parts: Text | Table) -> None:
        """Parts of text in their styles, or a grid, for people."""
        if all(isinstance(part, Text) for part in parts):
            line = Text.assemble(*(part for part in parts if isinstance(part, Text)))
            line.plain = console.encodable(line.plain, self.people.encoding)
            self.people.print(line, soft_wrap=True)
        else:
            self.people.print(*parts)

    def show(self, rows: Table) -> None:
        """A table for people."""
        console.show(rows, self.people)

    @contextmanager
    def heading(self, text: object) -> Iterator[None]:
        """A bold line above what follows, a blank one below."""
        self.say(console.escaped(str(text), keep=""), "bold")
        yield
        self.people.print()

    def write(self, results: Mapping[str, object], head: Sequence[str] = (), rows: Iterable[Sequence[Cell]] = ()) -> None:
        """The results as JSON, the rows under their head as CSV, where they were asked for."""
        if self.json is not None:
            text = json.dumps(document(results, self.inputs), indent=1, allow_nan=False) + "\n"
            _written(self.json, text)
        if self.csv is not None:
            buffer = io.StringIO()
            write_csv(buffer, head, rows)
            _written(self.csv, buffer.getvalue())


def _written(path: Path, text: str) -> None:
    if path == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(path, text)
        written(path)


def written(path: Path | str) -> None:
    """Say that a file was written, with its size on disk."""
    nbytes = real_bytes(Path(path).stat()) if Path(path).is_file() else 0
    console.note(f"written: {console.escaped(str(path), keep='')}" + (f" ({console.size(nbytes)})" if nbytes else ""))


# -- the JSON document ----------------------------------------------------------------------------------------------


def document(results: Mapping[str, object], inputs: Iterable[str] = ()) -> dict[str, object]:
    """The results in their envelope: which schema, made by what, from what, when."""
    provenance = replace(Provenance.now(), inputs=tuple(one for path in inputs for one in inputs_of(path)))
    return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "inputs": [], **provenance.to_dict(), "results": plain(results)}


def inputs_of(path: str) -> list[dict[str, object]]:
    """The files that a name on the command line stands for, as their provenance describes them."""
    from ensemblekit.store.names import segments_of

    if not os.path.exists(path) and glob.has_magic(path):
        names = sorted(glob.glob(path))
    elif os.path.isdir(path):
        names = sorted(str(p) for p in Path(path).rglob("*") if p.is_file())
    else:
        names = segments_of(path)
    return described(names, as_named=True, most=MOST_INPUTS)


# -- files ----------------------------------------------------------------------------------------------------------


def check_file(path: Path, overwrite: bool) -> None:
    """Find out before the work that a file can be written: its folder, what is there, room. Raises InputError."""
    if path == STDOUT:
        return
    name = one_line(path)
    real = Path(os.path.realpath(path))
    if path.is_dir():
        raise InputError(f"{name} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        return          # /dev/stdout, a pipe: written to as it is
    check_folder_of(path)
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{name} is there already; --overwrite replaces it")
    if real.exists() and not os.access(real, os.W_OK):
        raise InputError(f"{name} is write-protected; chmod u+w makes it writable, or choose another name")
    check_room(real)


def check_folder_of(path: Path) -> None:
    """The folder that a file is to stand in is there. Raises InputError."""
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise InputError(f"{one_line(path)}: there is no folder {one_line(folder)}; make it first, or choose another name")


def check_room(path: Path) -> None:
    """A file beside `path` can be made and written. Raises InputError."""
    try:
        trial = temporary_beside(path)
        try:
            with open(trial, "wb") as file:
                file.write(bytes(TRIAL))
        finally:
            os.unlink(trial)
    except OSError as error:
        raise InputError(f"{one_line(path)} cannot be written: {error.strerror}; choose another place or make room") from error


SUFFIXES = {".png", ".pdf", ".svg", ".html"}


def check_folder(path: Path, overwrite: bool) -> None:
    """A folder for figures: it, or the folder it is to stand in, is there, and holds none yet. Raises InputError."""
    name = one_line(path)
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        raise InputError(f"figures go to a folder, and {name} looks like a file: leave out {path.suffix}; --plot-format "
                         "chooses another format")
    if path.exists() and not path.is_dir():
        raise InputError(f"{name} is a file; figures go to a folder")
    if not path.exists():
        check_folder_of(path)
        check_room(path)
        return
    there = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if there and not overwrite:
        raise InputError(f"{name} holds figures already ({', '.join(map(one_line, there[:3]))}{', ...' * (len(there) > 3)}); "
                         "--overwrite replaces those of the same name")
    check_room(path / "figure")


def save_figure(figure: Figure, path: Path, dpi: float | None = None) -> None:
    """A matplotlib Figure as a file, whole or not at all."""
    with replacing(path, suffix=path.suffix, follow=True) as temporary:
        figure.savefig(temporary, dpi=dpi or "figure")
    written(path)


def figure_of(drawn: Axes | np.ndarray) -> Figure:
    """The figure of Axes, or of an array of them."""
    import numpy as np
    from matplotlib.figure import SubFigure

    figure = next(ax for ax in np.asarray(drawn, dtype=object).flat if ax is not None).figure
    return figure.figure if isinstance(figure, SubFigure) else figure


def figure_path(folder: Path, label: str, suffix: str) -> Path:
    """Where a figure stands in a folder, which is made where it is not there."""
    folder.mkdir(exist_ok=True)
    return folder / f"{file_name(label)}.{suffix}"


def file_name(label: str) -> str:
    """A name of a field or observable as the name of a file in a folder."""
    clean = "".join(c if c.isalnum() or c in " -_.,=[]()+" else "_" for c in console.escaped(label, keep=""))
    return clean.strip(". ") or "figure"


# -- verdicts -------------------------------------------------------------------------------------------------------


def require(wanted: bool, refused: Sequence[str], verdict: str = "converged") -> None:
    """End with code 4 where a verdict was required and some results do not have it."""
    if wanted and refused:
        console.note(f"not {verdict}: {console.escaped(', '.join(refused), keep='')}", "bold red")
        raise typer.Exit(REFUSED)
