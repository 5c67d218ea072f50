"""``ensemblekit neural select | equivalent | ergodicity | detect``: what saved predictions say about an ensemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import numpy as np
import typer

from ensemblekit.cli.output import Cell, Csv, Json, Output, Overwrite, Plot, PlotFormat, figure_of, figure_path, save_figure
from ensemblekit.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Groups = Annotated[Path | None, typer.Option("--groups", metavar="NAMES", show_default=False,
                                             help="A file of what each item belongs to: one name a line, or .npy.")]
Seed = Annotated[int, typer.Option("--seed", help="Of folds and resamples.")]
Name = Annotated[str, typer.Option("--name", help="Of the saved predictions.")]


class Answer(Protocol):
    """What these verbs show: a result that is printed, kept and drawn."""

    def to_dict(self) -> dict[str, object]: ...
    def plot(self) -> Axes | np.ndarray: ...


def select(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store with saved predictions.", show_default=False)],
    method: Annotated[str, typer.Option("--method", "-m", help="auto, all, last, best, greedy, diverse, stacking, "
                                                               "exhaustive.")] = "auto",
    k: Annotated[int | None, typer.Option("--members", help="How many; found inside the fit by default.")] = None,
    score: Annotated[str, typer.Option("--score", help="nll, brier or accuracy.")] = "nll",
    folds: Annotated[int, typer.Option("--folds")] = 5,
    temperature: Annotated[bool, typer.Option("--temperature", help="Scale the pool too.")] = False,
    groups: Groups = None, seed: Seed = 0, name: Name = "predictions", as_json: Json = None, as_csv: Csv = None,
    plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """Choose and weight the members, with the gain on items that had no part in the choice."""
    from ensemblekit import neural

    selection = neural.select(neural.load_predictions(store, name), method=method, k=k, score=score, folds=folds,  # type: ignore[arg-type]
                              temperature=temperature, groups=groups_of(groups), seed=seed)
    _show(selection, Output(as_json, as_csv, (store,)), plot, f"selection.{plot_format}")


def equivalent(
    paths: Annotated[list[str], typer.Argument(metavar="METHOD", help="A store with saved predictions of the ensemble.",
                                               show_default=False)],
    reference: Annotated[list[str], typer.Option("--reference", "-r", metavar="SEED...", help="Stores with saved "
                                                                                              "predictions of three or "
                                                 "more independently trained networks.")],
    run: Annotated[list[str] | None, typer.Option("--run", help="Another independent run of the method; may be "
                                                                "repeated.")] = None,
    score: Annotated[str, typer.Option("--score", help="calibrated_nll, nll, brier or accuracy.")] = "calibrated_nll",
    groups: Groups = None, seed: Seed = 0, name: Name = "predictions", as_json: Json = None, as_csv: Csv = None,
    plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """How many independently trained networks the ensemble is worth: equivalent METHOD --reference SEED SEED SEED ..."""
    from ensemblekit import neural

    # a shell's list of files after --reference: the first is the option's, the others come as arguments
    method, *others = paths
    runs = [neural.load_predictions(path, name) for path in (method, *(run or []))]
    seeds = [neural.load_predictions(path, name) for path in (*reference, *others)]
    result = neural.deep_ensemble_equivalent(runs if len(runs) > 1 else runs[0], seeds, score=score,       # type: ignore[arg-type]
                                             groups=groups_of(groups), seed=seed)
    _show(result, Output(as_json, as_csv, (*paths, *reference, *(run or []))), plot, f"equivalent.{plot_format}")


def ergodicity(
    paths: Annotated[list[str], typer.Argument(metavar="RUN...", help="Stores with saved predictions, one a training.",
                                               show_default=False)],
    last: Annotated[int | None, typer.Option("--last", help="Take the last so many snapshots of each.")] = None,
    space: Annotated[str, typer.Option("--space", help="probability or logit.")] = "probability",
    groups: Groups = None, name: Name = "predictions", as_json: Json = None, as_csv: Csv = None,
    plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """Whether the average along one training stands for the average over independent trainings."""
    from ensemblekit import neural

    result = neural.training_ergodicity([neural.load_predictions(path, name) for path in paths], last=last,
                                        space=space, groups=groups_of(groups))      # type: ignore[arg-type]
    _show(result, Output(as_json, as_csv, tuple(paths)), plot, f"ergodicity.{plot_format}")


def detect(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store with saved predictions.", show_default=False)],
    groups: Groups = None, seed: Seed = 0, name: Name = "predictions", as_json: Json = None, as_csv: Csv = None,
    plot: Plot = None, plot_format: PlotFormat = "png", overwrite: Overwrite = False,
) -> None:
    """How well doubt tells wrong answers from right ones."""
    from ensemblekit import neural

    detection = neural.error_detection(neural.load_predictions(store, name), groups=groups_of(groups), seed=seed)
    _show(detection, Output(as_json, as_csv, (store,)), plot, f"detection.{plot_format}")


def groups_of(path: Path | None) -> np.ndarray | None:
    """(n,) names."""
    if path is None:
        return None
    if not path.exists():
        raise InputError(f"{path} is not there; --groups takes a file with the name of each item's group")
    found: np.ndarray = np.load(path,
                                allow_pickle=False) if path.suffix == ".npy" else np.array(path.read_text("utf-8").split())
    return found


def _show(result: Answer, out: Output, plot: Path | None, figure: str) -> None:
    out.show_text(str(result))
    values = result.to_dict()
    out.write(values, ("name", "value"), _rows(values))
    if plot:
        name, _, form = figure.partition(".")
        axes = result.plot()
        save_figure(figure_of(axes), figure_path(plot, name, form), dpi=200)


def _rows(values: Mapping[str, object], above: str = "") -> Iterator[tuple[Cell, ...]]:
    """Name and value of each number, those inside others by "outer.inner"."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{above}{name}.")
        elif isinstance(value, list):
            yield from _rows({str(k): one for k, one in enumerate(value)}, f"{above}{name}.")
        elif isinstance(value, str | float | int | bool | None):
            yield f"{above}{name}", value
