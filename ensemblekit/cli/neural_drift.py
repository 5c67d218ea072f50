"""``ensemblekit neural drift``: a run's last snapshot, its ensemble and its average on data that get worse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemblekit.cli.console import table
from ensemblekit.cli.neural_evidence import Groups, Seed, groups_of
from ensemblekit.cli.neural_report import NBSP, named, score_cell
from ensemblekit.cli.output import Cell, Csv, Json, Output, Overwrite, Plot, PlotFormat, figure_of, figure_path, save_figure
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    from ensemblekit.neural import Drift


def drift(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store of snapshots.", show_default=False)],
    model: Annotated[str, typer.Option("--model", metavar="MODULE:NAME", help="A function that makes the model, or the "
                                                                               "model.")],
    data: Annotated[str, typer.Option("--data", metavar="MODULE:NAME",
                                      help="The same of the loader of clean test items, before they are normalised.")],
    corruptions: Annotated[str, typer.Option("--corruptions", metavar="images|ct|table|FOLDER",
                                             help="Which list, or a folder of CIFAR-10-C's files.")] = "images",
    severities: Annotated[str, typer.Option("--severities", help="Of 1 to 5.")] = "1,2,3,4,5",
    prepare: Annotated[str | None, typer.Option("--prepare", metavar="MODULE:NAME",
                                                help="A function of inputs, such as the normalisation.")] = None,
    train: Annotated[str | None, typer.Option("--train", metavar="MODULE:NAME",
                                              help="A loader of training items: the averaged weights (SWA) too.")] = None,
    task: Annotated[str, typer.Option("--task", help="classification, binary, segmentation, regression.")] = "classification",
    groups: Groups = None, seed: Seed = 0, as_json: Json = None, as_csv: Csv = None, plot: Plot = None,
    plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """Scores, calibration and errors found by doubt when data get worse; differences from the last snapshot, paired."""
    from ensemblekit import neural
    from ensemblekit.neural.options import check_task

    check_task(task)
    try:
        wanted = [int(word) for word in severities.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--severities takes whole numbers with commas between them; got {severities!r}") from error
    ensemble: Any = neural.Ensemble.from_store(store, named(model, called=True), task=task)     # type: ignore[call-overload]
    models: dict[str, Any] = {"last snapshot": ensemble.member(-1), "snapshot ensemble": ensemble}
    if train is not None:
        models["SWA"] = ensemble.averaged_model(named(train, called=True), barrier="ignore")
    known = corruptions if corruptions in ("images", "ct", "table") else neural.corruptions.from_folder(corruptions)
    found = neural.drift(models, named(data, called=True), corruptions=known, severities=wanted,      # type: ignore[arg-type]
                         prepare=None if prepare is None else named(prepare, called=False), groups=groups_of(groups), seed=seed,
                         task=task)       # type: ignore[arg-type]
    out = Output(as_json, as_csv, (store,))
    show(out, found)
    out.write(found.to_dict(), ("model", "against", "corruption", "severity", "score", "value", "low", "high"), rows(found))
    if plot:
        from ensemblekit.plot import drift as draw

        save_figure(figure_of(found.plot()), figure_path(plot, "severity", plot_format), dpi=200)
        for label in found.models[1:]:
            name = f"difference_{label.replace(' ', '_')}"
            save_figure(figure_of(draw.table(found, model=label)), figure_path(plot, name, plot_format), dpi=200)


SHOWN = ("accuracy", "nll", "ece", "nll_clean_t", "ece_clean_t", "mse", "coverage")


def show(out: Output, found: Drift) -> None:
    """Means over corruptions, and their differences from the first model."""
    names = [name for name in SHOWN if name in found.clean[found.models[0]]]
    out.say(f"mean over {', '.join(found.corruptions)}; 95 % intervals over items, severity 0 is clean", "dim")
    means = table("model", "severity", *names, right=("severity", *names))
    gaps = table("model", "severity", *names, right=("severity", *names))
    for model in found.models:
        for severity, values in ((0, found.clean[model]), *found.mean[model].items()):
            means.add_row(model.replace(" ", NBSP), str(severity), *(score_cell(values[name], signed=False) for name in names))
        for severity, values in found.differences.get(model, {}).items():
            gaps.add_row(model.replace(" ", NBSP), str(severity), *(score_cell(values[name], signed=True) for name in names))
    out.show(means)
    if len(found.models) > 1:
        out.say(f"minus {found.models[0]}, paired; bold where the interval excludes zero", "dim")
        out.show(gaps)
    for note in found.notes:
        out.say(f"note: {note}")


def rows(found: Drift) -> Iterator[tuple[Cell, ...]]:
    """A row a score: of each model under each condition (severity 0: clean), and of its difference from the first."""
    for model in found.models:
        for name, score in found.clean[model].items():
            yield model, "", "", 0, name, score.value, score.low, score.high
        for against, several in (("", found.scores[model]), (found.models[0], found.by_corruption.get(model, {}))):
            for corruption, of_severity in several.items():
                for severity, values in of_severity.items():
                    for name, score in values.items():
                        yield model, against, corruption, severity, name, score.value, score.low, score.high
