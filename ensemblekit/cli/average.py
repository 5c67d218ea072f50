"""``ensemblekit average``: the mean of a field with an error bar that knows correlation."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblekit.cli.console import stderr
from ensemblekit.cli.export import Start, Step, Stop, labels
from ensemblekit.cli.output import (
    Cell,
    Csv,
    Json,
    Output,
    Overwrite,
    Plot,
    PlotFormat,
    RequireConverged,
    figure_of,
    figure_path,
    require,
    save_figure,
)
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    from ensemblekit.averaging.estimate import Estimate
    from ensemblekit.engine import Engine
    from ensemblekit.md.frame_weights import FrameWeights
    from ensemblekit.source import ArraySource, SnapshotSource
    from ensemblekit.store.stored import StoredSource

    View = StoredSource | ArraySource

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


Begin = Annotated[float | None, typer.Option("--begin", "-b", help="First time, in the file's unit.", show_default=False)]
End = Annotated[float | None, typer.Option("--end", "-e", help="Last time, in the file's unit.", show_default=False)]
Confidence = Annotated[float, typer.Option("--confidence", help="Of the interval.")]


def average(
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="A store, any H5MD or HDF5 file, or a "
                                                   "table: .xvg, .edr, COLVAR, .csv.")],
    field: Annotated[str, typer.Argument(metavar="FIELD", show_default=False)],
    begin: Begin = None, end: End = None, weights: Weights = None, temperature: Temperature = None,
    period: Annotated[float | None, typer.Option("--period", help="After which it comes round, 360 for an angle: averaged on "
                                                 "the circle. Known of PLUMED's columns.")] = None,
    start: Start = 0, stop: Stop = None, step: Step = 1, missing: Gaps = Dropped.raise_, confidence: Confidence = 0.95,
    equilibration: Annotated[str, typer.Option("--equilibration", metavar="auto|none|N",
                                               help="Snapshots to leave out at the start.")] = "auto",
    engine: Annotated[Place, typer.Option("--engine", help="Where the work is done; the answer is the same.")]
        = Place.threads,
    require_converged: RequireConverged = False, as_json: Json = None, as_csv: Csv = None, plot: Plot = None,
    plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """The mean of a field, its standard error and interval, and whether they can be trusted."""
    import ensemblekit as ek

    out = Output(as_json, as_csv, (file,) if weights is None else (file, weights.rpartition(":")[0]))
    view = chosen(field_of(file, field), begin, end, start, stop, step)
    source: SnapshotSource = view
    if weights is not None:
        source = weighted(view, weights_of(weights, temperature))
    elif temperature is not None:
        raise InputError("--temperature goes with --weights FILE:COLUMN, the bias of the run")
    estimate = ek.average(source, confidence=confidence, equilibration=discarded(equilibration),
                          period=period, engine=engine_of(engine), progress=stderr.is_terminal, missing=missing.value)
    out.say(estimate.summary())
    out.write({"estimates": {field: estimate.to_dict()}}, ESTIMATE, estimate_rows(field, estimate))
    if plot:
        from ensemblekit.plot import estimate as draw

        save_figure(figure_of(draw(estimate)), figure_path(plot, field, plot_format))
    require(require_converged, [] if estimate.converged else [field])


ESTIMATE = ("element", "mean", "stderr", "low", "high", "unit", "n", "n_eff", "converged")


def estimate_rows(name: str, estimate: Estimate) -> Iterator[tuple[Cell, ...]]:
    """A row an element: its name, mean, standard error, low and high end of the interval."""
    import numpy as np

    low, high = estimate.interval
    shape = np.shape(estimate.mean)
    columns = [np.broadcast_to(np.asarray(x, float), shape).ravel().tolist()
               for x in (estimate.mean, estimate.stderr, low, high, estimate.n_eff)]
    for label, mean, stderr_, a, b, n_eff in zip(labels(name, shape), *columns, strict=True):
        yield label, mean, stderr_, a, b, estimate.unit, estimate.n, n_eff, bool(estimate.converged)


def engine_of(place: Place) -> Engine:
    """The engine that a word on the command line names."""
    import ensemblekit as ek

    return {Place.threads: ek.Threads, Place.serial: ek.Serial, Place.processes: ek.Processes}[place]()


def field_of(file: str, field: str) -> View:
    """A field of a store, or a column of a table."""
    import ensemblekit as ek
    from ensemblekit.md.columns import columns, is_columns

    return columns(file)[field] if is_columns(file) else ek.open(file)[field]


def weights_of(text: str, temperature: float | None) -> FrameWeights:
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


def weighted(view: View, weights: FrameWeights) -> SnapshotSource:
    """The snapshots with these weights, joined by time."""
    from dataclasses import replace

    from ensemblekit.md.weighted import WeightedSource
    from ensemblekit.source import ArraySource, ReplicaSet

    if isinstance(view, ReplicaSet):
        raise InputError(f"--weights are those of one run, and this is {len(view.runs)}: average them one by one")
    (n,) = view.lengths
    per_snapshot = weights.at(view.times, n)
    return replace(view, weights=per_snapshot) if isinstance(view, ArraySource) else WeightedSource(view, per_snapshot)


def chosen(view: View, begin: float | None, end: float | None, start: int, stop: int | None, step: int) -> View:
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
