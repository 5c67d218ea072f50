"""``ensemblekit neural report``: a run's single model, weight averages and ensemble side by side."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ensemblekit.cli.console import Rows, cell_of, table
from ensemblekit.cli.output import (
    Cell,
    Csv,
    Json,
    Output,
    Overwrite,
    Plot,
    PlotFormat,
    figure_of,
    figure_path,
    save_figure,
)
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from ensemblekit.neural import History, Report, Score

NBSP = "\u00a0"
SCORES = {"accuracy": "accuracy", "nll": "NLL", "calibrated_nll": "calibrated NLL", "brier": "Brier", "ece": "ECE"}


def report(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store of snapshots.", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", metavar="MODULE:NAME",
                                              help="A function that makes the model, or the model.")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="MODULE:NAME",
                                             help="A function that makes the loader of test items, or the loader.")] = None,
    train: Annotated[str | None, typer.Option("--train", metavar="MODULE:NAME",
                                              help="The same of training items, for batch-norm statistics.")] = None,
    task: Annotated[str, typer.Option("--task", help="classification, binary or segmentation.")] = "classification",
    name: Annotated[str, typer.Option("--name", help="Of the saved predictions.")] = "predictions",
    save: Annotated[bool, typer.Option("--save", help="Keep the predictions beside the store.")] = False,
    bins: Annotated[int, typer.Option("--bins", help="Of the calibration errors.")] = 15,
    seed: Annotated[int, typer.Option("--seed", help="Of resamples and folds.")] = 0,
    select: Annotated[str | None, typer.Option("--select", metavar="METHOD", show_default=False, help="Add a row of members "
                                               "chosen out of fold: auto, last, best, greedy, diverse, stacking.")] = None,
    as_json: Json = None, as_csv: Csv = None, plot: Plot = None, plot_format: PlotFormat = "png",
    overwrite: Overwrite = False,
) -> None:
    """Was the ensemble worth it? Single model, SWA, EMA, ensemble and ensemble with temperature, with intervals.

    From predictions that were saved (predict(save=True)), or, with --model and --data, made now.
    """
    from ensemblekit import neural
    from ensemblekit.neural.options import check_task
    from ensemblekit.neural.selection import check_method

    if (model is None) != (data is None):
        raise InputError("give --model and --data together, or neither to read saved predictions")
    if model is None:
        result = neural.report(store, name=name, n_bins=bins, seed=seed, select=check_method(select))
    else:
        network = named(model, called=True)
        loader = named(str(data), called=True)
        result = neural.report(store, network, loader, train_loader=None if train is None else named(train, called=True),
                               task=check_task(task), save=name if save else False, n_bins=bins, seed=seed,
                               select=check_method(select))
    out = Output(as_json, as_csv, (store,))
    show_report(out, result)
    out.write(result.to_dict(), ("model", "against", "score", "value", "low", "high", "n"), score_rows(result))
    if plot:
        for label, axes in drawn(result, neural.history(store), bins):
            save_figure(figure_of(axes), figure_path(plot, label, plot_format), dpi=200)


def drawn(report: Report, history: History, n_bins: int) -> Iterator[tuple[str, np.ndarray]]:
    """The figures of a report by name, each drawn when it is asked for."""
    from ensemblekit.plot import neural as draw

    yield "reliability", draw.reliability(report.predictions, n_bins=n_bins)
    yield "forest", draw.differences(report)
    if len(report.by_members) > 1:
        yield "members", draw.by_members(report.by_members)
        yield "diversity", draw.diversity(report.disagreement, report.plane, report.explained)
    if len(history.step):
        yield "training", draw.training(history)


def score_rows(report: Report) -> Iterator[tuple[Cell, ...]]:
    """A row a score: of each model, and of its difference from the first."""
    first = next(iter(report.scores))
    for against, several in (("", report.scores), (first, report.differences)):
        for model, values in several.items():
            for name, score in values.items():
                yield model, against, name, score.value, score.low, score.high, score.n


def named(text: str, *, called: bool) -> Any:
    """What ``module:name`` stands for, looked for in the current folder too; called where it is a function or class."""
    module, _, name = text.partition(":")
    if not name:
        raise InputError(f"write MODULE:NAME, such as train:make_model; got {text!r}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        attribute = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{text} is not there: {error}") from error
    import torch

    is_maker = isinstance(attribute, type) or (callable(attribute) and not isinstance(attribute, torch.nn.Module))
    return attribute() if called and is_maker else attribute


def show_report(out: Output, report: Report) -> None:
    """Two tables: scores, and their differences from those of the first model."""
    first = next(iter(report.scores))
    n = next(iter(report.scores[first].values())).n
    out.say(f"{n} independent items; 95 % intervals", "dim")
    out.show(_scores(report.scores, signed=False))
    out.say(f"minus {first}, paired; bold where the interval excludes zero", "dim")
    out.show(_scores(report.differences, signed=True))
    for note in report.notes:
        out.say(f"note: {note}")


def _scores(several: Mapping[str, Mapping[str, Score]], *, signed: bool) -> Rows:
    rows = table("", *SCORES.values(), right=tuple(SCORES.values()))
    for label, values in several.items():
        rows.add_row(label.replace(" ", NBSP), *(score_cell(values[s], signed) for s in SCORES))
    return rows


def score_cell(score: Score, signed: bool) -> Text:
    """A score over its interval; a difference (`signed`) in bold where that excludes zero."""
    sign = "+" if signed else ""
    interval = cell_of(f"{score.low:{sign}.4f} – {score.high:{sign}.4f}", "dim")
    return Text.assemble((f"{score.value:{sign}.4f}", "bold" if signed and score.significant else ""), "\n", interval)
