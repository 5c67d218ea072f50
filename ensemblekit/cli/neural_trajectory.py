"""``ensemblekit neural trajectory``: the path of the weights in their plane, the loss about it, and what few modes cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemblekit.cli.console import table
from ensemblekit.cli.neural_report import named, score_cell
from ensemblekit.cli.output import Csv, Json, Output, Overwrite, Plot, PlotFormat, figure_of, figure_path, save_figure
from ensemblekit.errors import InputError


def trajectory(
    paths: Annotated[list[Path], typer.Argument(metavar="STORE...", help="Stores of snapshots; several share one plane.",
                                                show_default=False)],
    model: Annotated[str | None, typer.Option("--model", metavar="MODULE:NAME", help="A function that makes the model, or the "
                                                                                     "model.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="MODULE:NAME", help="The same of a loader of labelled "
                                                                                   "items.")] = None,
    train: Annotated[str | None, typer.Option("--train", metavar="MODULE:NAME", help="The same of training items, for "
                                                                                     "batch-norm statistics.")] = None,
    points: Annotated[int, typer.Option("--points", help="Of a grid of the loss along each direction; 0: no loss.")] = 0,
    rank: Annotated[int | None, typer.Option("--rank", "-k", help="What an ensemble of a mean and so many modes "
                                                                  "loses.")] = None,
    task: Annotated[str, typer.Option("--task", help="classification, binary, segmentation, regression.")] = "classification",
    as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """Where the snapshots lie in the plane of their two largest principal directions; with --points the loss there."""
    from ensemblekit import neural
    from ensemblekit.neural.options import check_task

    check_task(task)
    if (points or rank is not None) and (model is None or data is None):
        raise InputError("--points and --rank need the network and labelled items: --model MODULE:NAME --data MODULE:NAME")
    stores = [str(path) for path in paths]
    made = None if model is None else named(model, called=True)
    loader = None if data is None else named(data, called=True)
    found = neural.trajectory(stores if len(stores) > 1 else stores[0], made, loader, points=points,
                              train_loader=None if train is None else named(train, called=True), task=task)  # type: ignore[arg-type]
    small = None
    if rank is not None:
        ensemble = neural.Ensemble.from_store(stores if len(stores) > 1 else stores[0], made, task=task)  # type: ignore[call-overload]
        small = neural.compressed(ensemble, rank, loader)       # type: ignore[arg-type]
    out = Output(as_json, as_csv, tuple(stores))
    out.show_text(str(found))
    if small is not None:
        out.say(str(small).splitlines()[0])
        rows = table("score", "minus the whole ensemble", right=("minus the whole ensemble",))
        for name, score in small.differences.items():
            rows.add_row(name, score_cell(score, signed=True))
        out.show(rows)
    compression = None if small is None else {name: x for name, x in small.to_dict().items() if name != "basis"}
    out.write({**found.to_dict(), "compression": compression},
              ("snapshot", "run", "step", "first", "second", "off_plane"),
              ((k, int(found.run[k]), None if found.steps[k] != found.steps[k] else float(found.steps[k]), float(x), float(y),
                float(found.off_plane[k])) for k, (x, y) in enumerate(found.plane)))
    if plot:
        save_figure(figure_of(found.plot()), figure_path(plot, "plane", plot_format), dpi=200)
