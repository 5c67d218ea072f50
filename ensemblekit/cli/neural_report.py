"""``ensemblekit neural report``: a run's single model, weight averages and ensemble side by side."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ensemblekit.cli.console import save_figure, stderr, stdout, table
from ensemblekit.errors import InputError
from ensemblekit.files import write_text

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
    select: Annotated[str | None, typer.Option("--select", metavar="METHOD", help="Add the row of members chosen out of fold: "
                                               "auto, last, best, greedy, diverse, stacking, exhaustive.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")] = None,
    plots: Annotated[Path | None, typer.Option("--plots", metavar="FOLDER", help="Draw reliability, differences, "
                                               "members, diversity and training there.")] = None,
) -> None:
    """Was the ensemble worth it? Single model, SWA, EMA, ensemble and ensemble with temperature, with intervals.

    From predictions that were saved (predict(save=True)), or, with --model and --data, made now.
    """
    from ensemblekit import neural
    from ensemblekit.neural.options import check_task

    if (model is None) != (data is None):
        raise InputError("give --model and --data together, or neither to read saved predictions")
    if model is None:
        found = neural.report(store, name=name, n_bins=bins, seed=seed, select=select)   # type: ignore[arg-type]
    else:
        made = named(model, called=True)
        loader = named(str(data), called=True)
        found = neural.report(store, made, loader, train_loader=None if train is None else named(train, called=True),
                              task=check_task(task), save=name if save else False, n_bins=bins, seed=seed,
                              select=select)        # type: ignore[arg-type]
    _show(found)
    if as_json:
        write_text(as_json, json.dumps(found.to_dict(), indent=1) + "\n")
        stderr.print(f"written: {as_json}", style="dim", markup=False)
    if plots:
        from ensemblekit.plot import neural as draw

        plots.mkdir(parents=True, exist_ok=True)
        figures = draw.report(found, n_bins=bins)
        history = neural.history(store)
        if len(history.step):
            figures["training"] = draw.training(history)[0].figure
        for label, figure in figures.items():
            save_figure(figure, plots / f"{label}.png", dpi=200)
            stderr.print(f"written: {plots / f'{label}.png'}", style="dim", markup=False)


def named(text: str, *, called: bool) -> Any:
    """What ``module:name`` stands for, looked for in the current folder too; called where it is a function or class."""
    module, _, name = text.partition(":")
    if not name:
        raise InputError(f"write MODULE:NAME, such as train:make_model; got {text!r}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{text} is not there: {error}") from error
    import torch

    is_maker = isinstance(found, type) or (callable(found) and not isinstance(found, torch.nn.Module))
    return found() if called and is_maker else found


def _show(found: Any) -> None:
    first = next(iter(found.scores))
    n = next(iter(found.scores[first].values())).n
    stdout.print(f"{n} independent items; 95 % intervals", style="dim", markup=False)
    rows = table("", *SCORES.values(), right=tuple(SCORES.values()))
    for label, values in found.scores.items():
        rows.add_row(label.replace(" ", NBSP), *(
            f"{values[s].value:.4f}\n[dim]{values[s].low:.4f} – {values[s].high:.4f}[/]" for s in SCORES))
    stdout.print(rows)
    stdout.print(f"minus {first}, paired; bold where the interval excludes zero", style="dim", markup=False)
    rows = table("", *SCORES.values(), right=tuple(SCORES.values()))
    for label, values in found.differences.items():
        rows.add_row(label.replace(" ", NBSP), *(_difference(values[s]) for s in SCORES))
    stdout.print(rows)
    for note in found.notes:
        stdout.print(f"note: {note}", markup=False, soft_wrap=True)


def _difference(score: Any) -> str:
    text = f"{score.value:+.4f}"
    return (f"[bold]{text}[/]" if score.significant else text) + f"\n[dim]{score.low:+.4f} – {score.high:+.4f}[/]"
