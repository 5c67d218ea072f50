"""``ensemblekit average``: the mean of a field with an error bar that knows correlation."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ensemblekit.cli.console import save_figure, stderr, stdout
from ensemblekit.cli.export import Start, Step, Stop
from ensemblekit.errors import InputError
from ensemblekit.files import replacing, write_text

Weights = Annotated[str | None, typer.Option("--weights", metavar="FILE:COLUMN",
                                             help="Statistical weights, joined by time: COLVAR:w, or with --temperature those "
                                                  "of a bias, COLVAR:metad.rbias (several: a,b).")]
Temperature = Annotated[float | None, typer.Option("--temperature", metavar="K", help="Of the run whose bias --weights names.")]


class Dropped(StrEnum):
    """What becomes of missing snapshots: NaN where a number should be."""

    raise_ = "raise"
    drop = "drop"


Gaps = Annotated[Dropped, typer.Option("--missing", help="NaN where a number should be: refuse it, or leave it out (the others "
                                                         "keep their distance in time).")]


class Place(StrEnum):
    """Where the work is done."""

    threads = "threads"
    serial = "serial"
    processes = "processes"


def average(
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="A store, any H5MD or HDF5 file, or a "
                                                   "table: .xvg, .edr, COLVAR, .csv.")],
    field: Annotated[str, typer.Argument(metavar="FIELD", show_default=False)],
    begin: Annotated[float | None, typer.Option("--begin", help="First time, in the file's unit.")] = None,
    end: Annotated[float | None, typer.Option("--end", help="Last time, in the file's unit.")] = None,
    weights: Weights = None, temperature: Temperature = None,
    period: Annotated[float | None, typer.Option("--period", help="After which it comes round, 360 for an angle: averaged on "
                                                 "the circle. Known of PLUMED's columns.")] = None,
    start: Start = 0, stop: Stop = None, step: Step = 1, missing: Gaps = Dropped.raise_,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the interval.")] = 0.95,
    equilibration: Annotated[str, typer.Option("--equilibration", metavar="auto|none|N",
                                               help="Snapshots to leave out at the start.")] = "auto",
    engine: Annotated[Place, typer.Option("--engine", help="Where the work is done; the answer is the same.")]
        = Place.threads,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there.")] = None,
    as_csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write mean and error there.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it: .png, .pdf or .svg.")] = None,
) -> None:
    """The mean of a field, its standard error and interval, and whether they can be trusted."""
    import ensemblekit as ek

    source = chosen(field_of(file, field), begin, end, start, stop, step)
    if weights is not None:
        source = weighted(source, weights_of(weights, temperature))
    elif temperature is not None:
        raise InputError("--temperature goes with --weights FILE:COLUMN, the bias of the run")
    places = {Place.threads: ek.Threads, Place.serial: ek.Serial, Place.processes: ek.Processes}
    estimate = ek.average(source, confidence=confidence, equilibration=discarded(equilibration),
                          period=period, engine=places[engine](), progress=stderr.is_terminal, missing=missing.value)
    stdout.print(str(estimate), markup=False, soft_wrap=True)
    stdout.print()
    stdout.print(str(estimate.summary()), markup=False, soft_wrap=True)
    if as_json:
        write_text(as_json, json.dumps(plain(estimate.to_dict()), indent=1) + "\n")
    if as_csv:
        write_csv(as_csv, estimate, field)
    if plot:
        from ensemblekit.plot import estimate as draw

        save_figure(draw(estimate), plot)
    for written in filter(None, (as_json, as_csv, plot)):
        stderr.print(f"written: {written}", style="dim", markup=False)


def field_of(file: str, field: str) -> Any:
    """A field of a store, or a column of a table."""
    import ensemblekit as ek
    from ensemblekit.md.columns import columns, is_columns

    return columns(file)[field] if is_columns(file) else ek.open(file)[field]


def weights_of(text: str, temperature: float | None) -> Any:
    """``COLVAR:metad.rbias`` as weights of frames."""
    from ensemblekit.md.columns import columns

    file, _, names = text.rpartition(":")
    if not file or not names:
        raise InputError(f"--weights takes a file and its column with a colon between them, COLVAR:metad.rbias; got {text!r}")
    table = columns(file)
    names_of = [names] if names in table else names.split(",")
    try:
        return table.weights(names_of, temperature)
    except InputError as error:
        if temperature is None and "temperature=" in str(error):
            raise InputError(f"{names!r} of {file} looks like a bias, or is negative in places: --temperature, in K, makes "
                             "weights of it") from error
        raise


def weighted(view: Any, weights: Any) -> Any:
    """The snapshots with these weights, joined by time."""
    from dataclasses import replace

    from ensemblekit.md.weighted import WeightedSource
    from ensemblekit.source import ArraySource, ReplicaSet

    if isinstance(view, ReplicaSet):
        raise InputError(f"--weights are those of one run, and this is {len(view.runs)}: average them one by one")
    (n,) = view.lengths
    found = weights.at(view.times, n)
    return replace(view, weights=found) if isinstance(view, ArraySource) else WeightedSource(view, found)


def chosen(view: Any, begin: float | None, end: float | None, start: int, stop: int | None, step: int) -> Any:
    """The snapshots asked for, by time or by number."""
    if begin is None and end is None:
        return view.window(start, stop, step)
    if (start, stop) != (0, None):
        raise InputError("choose snapshots by time (--begin, --end) or by number (--start, --stop), not by both")
    times = view.times
    if times is None:
        raise InputError("this field has no times: choose snapshots by number, --start and --stop")
    import numpy as np

    first = 0 if begin is None else int(np.searchsorted(times, begin, "left"))
    last = len(times) if end is None else int(np.searchsorted(times, end, "right"))
    if first >= last:
        raise InputError(f"no snapshot between {begin} and {end}; the times run from {times[0]:g} to {times[-1]:g} "
                         f"{view.time_unit}".rstrip())
    return view.window(first, last, step)


def discarded(word: str) -> str | int | None:
    """ "auto", None or a number of snapshots, as ek.average takes it."""
    if word in ("auto", "none"):
        return word if word == "auto" else None
    if word.isdecimal():
        return int(word)
    raise InputError(f"--equilibration is auto, none or a number of snapshots; got {word!r}")


def plain(x: Any) -> Any:
    """Lists and numbers for JSON; NaN and infinity, which JSON does not know, become null."""
    import math

    import numpy as np

    if isinstance(x, dict):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if isinstance(x, np.ndarray | np.generic):
        return plain(x.tolist())
    return None if isinstance(x, float) and not math.isfinite(x) else x


def write_csv(path: Path, estimate: Any, field: str) -> None:
    """A row an element: its name, mean, standard error, low and high end of the interval."""
    import csv

    import numpy as np

    from ensemblekit.cli.export import labels

    low, high = estimate.interval
    columns = [np.ravel(x).tolist() for x in (estimate.mean, estimate.stderr, low, high)]
    with replacing(path, follow=True) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["element", "mean", "stderr", "low", "high"])
        writer.writerows(zip(labels(field, np.shape(estimate.mean)), *columns, strict=True))
