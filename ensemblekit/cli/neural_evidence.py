"""``ensemblekit neural select | equivalent | ergodicity | detect``: what saved predictions say about an ensemble."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ensemblekit.cli.console import save_figure, stderr, stdout
from ensemblekit.errors import InputError
from ensemblekit.files import write_text

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")]
Plots = Annotated[Path | None, typer.Option("--plots", metavar="FOLDER", help="Draw there.")]
Groups = Annotated[Path | None, typer.Option("--groups", metavar="FILE", help="What each item belongs to: one name a "
                                                                              "line, or .npy.")]
Seed = Annotated[int, typer.Option("--seed", help="Of folds and resamples.")]
Name = Annotated[str, typer.Option("--name", help="Of the saved predictions.")]


def select(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store with saved predictions.", show_default=False)],
    method: Annotated[str, typer.Option("--method", "-m", help="auto, all, last, best, greedy, diverse, stacking, "
                                                               "exhaustive.")] = "auto",
    k: Annotated[int | None, typer.Option("--members", "-k", help="How many; found inside the fit by default.")] = None,
    score: Annotated[str, typer.Option("--score", help="nll, brier or accuracy.")] = "nll",
    folds: Annotated[int, typer.Option("--folds")] = 5,
    temperature: Annotated[bool, typer.Option("--temperature", help="Scale the pool too.")] = False,
    groups: Groups = None, seed: Seed = 0, name: Name = "predictions", as_json: Json = None, plots: Plots = None,
) -> None:
    """Choose and weight the members, with the gain on items that had no part in the choice."""
    from ensemblekit import neural

    found = neural.select(neural.load_predictions(store, name), method=method, k=k, score=score, folds=folds,  # type: ignore[arg-type]
                          temperature=temperature, groups=_groups(groups), seed=seed)
    _show(found, as_json, plots, "selection")


def equivalent(
    paths: Annotated[list[str], typer.Argument(metavar="METHOD", help="A store with saved predictions of the ensemble.",
                                               show_default=False)],
    reference: Annotated[list[str], typer.Option("--reference", "-r", metavar="SEED...", help="Stores with saved "
                                                                                              "predictions of three or "
                                                 "more independently trained networks.")],
    run: Annotated[list[str] | None, typer.Option("--run", help="Another independent run of the method; may be "
                                                                "repeated.")] = None,
    score: Annotated[str, typer.Option("--score", help="calibrated_nll, nll, brier or accuracy.")] = "calibrated_nll",
    groups: Groups = None, seed: Seed = 0, name: Name = "predictions", as_json: Json = None, plots: Plots = None,
) -> None:
    """How many independently trained networks the ensemble is worth: equivalent METHOD --reference SEED SEED SEED ..."""
    from ensemblekit import neural

    # a shell's list of files after --reference: the first is the option's, the others come as arguments
    method, *others = paths
    runs = [neural.load_predictions(path, name) for path in (method, *(run or []))]
    seeds = [neural.load_predictions(path, name) for path in (*reference, *others)]
    found = neural.deep_ensemble_equivalent(runs if len(runs) > 1 else runs[0], seeds, score=score,       # type: ignore[arg-type]
                                            groups=_groups(groups), seed=seed)
    _show(found, as_json, plots, "equivalent")


def ergodicity(
    paths: Annotated[list[str], typer.Argument(metavar="RUN...", help="Stores with saved predictions, one a training.",
                                               show_default=False)],
    last: Annotated[int | None, typer.Option("--last", help="Take the last so many snapshots of each.")] = None,
    space: Annotated[str, typer.Option("--space", help="probability or logit.")] = "probability",
    groups: Groups = None, name: Name = "predictions", as_json: Json = None, plots: Plots = None,
) -> None:
    """Whether the average along one training stands for the average over independent trainings."""
    from ensemblekit import neural

    found = neural.training_ergodicity([neural.load_predictions(path, name) for path in paths], last=last,
                                       space=space, groups=_groups(groups))      # type: ignore[arg-type]
    _show(found, as_json, plots, "ergodicity")


def detect(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store with saved predictions.", show_default=False)],
    groups: Groups = None, seed: Seed = 0, name: Name = "predictions", as_json: Json = None,
) -> None:
    """How well doubt tells wrong answers from right ones."""
    from ensemblekit import neural

    _show(neural.error_detection(neural.load_predictions(store, name), groups=_groups(groups), seed=seed), as_json, None, "")


def _groups(path: Path | None) -> Any:
    """(n,) names, or None."""
    if path is None:
        return None
    if not path.exists():
        raise InputError(f"{path} is not there; --groups takes a file with the name of each item's group")
    return np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.array(path.read_text("utf-8").split())


def _show(found: Any, as_json: Path | None, plots: Path | None, figure: str) -> None:
    stdout.print(str(found), markup=False, soft_wrap=True)
    if as_json:
        write_text(as_json, json.dumps(_plain(found.to_dict()), indent=1, allow_nan=False) + "\n")
        stderr.print(f"written: {as_json}", style="dim", markup=False)
    if plots:
        from ensemblekit.plot import neural_evidence as draw

        plots.mkdir(parents=True, exist_ok=True)
        axes = np.ravel(getattr(draw, figure)(found))
        save_figure(axes[0].figure, plots / f"{figure}.png", dpi=200)
        stderr.print(f"written: {plots / f'{figure}.png'}", style="dim", markup=False)


def _plain(x: Any) -> Any:
    """JSON has no NaN and no infinity: null, and "inf"."""
    if isinstance(x, dict):
        return {name: _plain(value) for name, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return None if math.isnan(x) else ("inf" if x > 0 else "-inf")
    return x
