"""Was the ensemble worth it? One model, averages of the same run's weights and the ensemble, always side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike

from ensemblekit.averaging.diversity import from_gram, gram_over
from ensemblekit.averaging.principal import principal
from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Device, device_of
from ensemblekit.neural.batchnorm import has_batch_norm
from ensemblekit.neural.compare import compare
from ensemblekit.neural.ensemble import Ensemble
from ensemblekit.neural.evidence import Evidence
from ensemblekit.neural.options import Ensembling
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.result_files import Saved
from ensemblekit.neural.saved import SavedPredictions, load_predictions, pooled, predictions_path, save_predictions
from ensemblekit.neural.scores import Score, mean_scores, scores
from ensemblekit.neural.selection import Method, with_choice
from ensemblekit.neural.selection import select as select_members
from ensemblekit.neural.single import predict
from ensemblekit.neural.temperature import TemperatureScaler
from ensemblekit.provenance import Provenance, files_of, given
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp
from ensemblekit.store.opening import open_store
from ensemblekit.store.store import Store
from ensemblekit.store.stored import StoredSource

Source = Ensemble[Any] | Store | str | os.PathLike[str]
Trajectory = tuple[np.ndarray | None, np.ndarray | None, float]
"""Distances (M, M), plane (M, 2) and the share of variance in it."""
AVERAGES: dict[str, Literal["swa", "ema"]] = {"SWA": "swa", "EMA": "ema"}
LAST, TOGETHER, SELECTED = "last snapshot", "snapshot ensemble", "selected"


@dataclass(frozen=True, slots=True, eq=False)
class Report(Saved, Result):
    """Scores of everything that one training run has to offer, on the same items. Prints as a table."""

    FIGURE = "neural.report"

    predictions: Mapping[str, Prediction]
    """Name -> prediction; the first is the single model all others are compared with."""
    scores: Mapping[str, Mapping[str, Score]]
    """Name -> score -> value with its interval over items."""
    differences: Mapping[str, Mapping[str, Score]]
    """The same, minus the first, paired item by item."""
    by_members: tuple[Mapping[str, Score], ...]
    """Accuracy, nll and brier of the last 1, 2, ... M snapshots pooled."""
    disagreement: np.ndarray
    """(M, M): share of items (pixels) on which two snapshots' first choices differ."""
    distances: np.ndarray | None
    """(M, M): Euclidean distances between their weights; None where the weights were not at hand."""
    plane: np.ndarray | None
    """(M, 2): the weights' trajectory in the plane of its two largest principal directions, in units of distance."""
    explained: float
    """Share of the trajectory's variance in that plane; NaN without it."""
    notes: tuple[str, ...]
    """What could not be done, and what to beware of."""
    provenance: Provenance | None = None
    """How it came about: versions, command line or caller, files that were read, settings, date."""

    def __str__(self) -> str:
        names = ("accuracy", "nll", "calibrated_nll", "brier", "ece")
        width = max(map(len, self.scores)) + 2
        rows = ["".ljust(width) + "".join(f"{name:>26}" for name in names)]
        for name, by_name in self.scores.items():
            rows.append(name.ljust(width) + "".join(f"{_interval(by_name[s]):>26}" for s in names))
        rows += ["", f"minus {next(iter(self.scores))}, paired (* zero lies outside the 95 % interval)"]
        for name, by_name in self.differences.items():
            rows.append(name.ljust(width) + "".join(f"{_interval(by_name[s]) + ('*' if by_name[s].significant else ' '):>26}"
                                                    for s in names))
        return "\n".join([*rows, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        def plain(by_name: Mapping[str, Score]) -> dict[str, Any]:
            return {name: {"value": s.value, "stderr": s.stderr, "low": s.low, "high": s.high, "n": s.n, "bias": s.bias}
                    for name, s in by_name.items()}
        return {"scores": {name: plain(x) for name, x in self.scores.items()},
                "differences": {name: plain(x) for name, x in self.differences.items()},
                "by_members": [plain(x) for x in self.by_members], "disagreement": self.disagreement.tolist(),
                "distances": None if self.distances is None else self.distances.tolist(),
                "plane": None if self.plane is None else self.plane.tolist(),
                "explained": None if np.isnan(self.explained) else self.explained, "notes": list(self.notes),
                "provenance": None if self.provenance is None else self.provenance.to_dict()}


def report(source: Source, model: torch.nn.Module | None = None, loader: Iterable[Any] | None = None, *,
           train_loader: Iterable[Any] | None = None,
           others: Mapping[str, torch.nn.Module] | None = None, groups: ArrayLike | None = None, n_bins: int = 15,
           folds: int = 2, seed: int = 0, save: bool | str = False, name: str = "predictions", device: Device = None,
           select: Method | None = None, **options: Unpack[Ensembling]) -> Report:
    """One model, SWA and EMA of the same run, the snapshot ensemble, and the ensemble with a temperature.

    Arguments:
        source: an :class:`Ensemble`; or a store or its path, with `model`; or a store without model and loader whose
            predictions were saved (``predict(save=True)``, ``report(save=True)``).
        loader: test items with labels; not those that anything was fitted or chosen on.
        train_loader: for the batch-norm statistics of averaged weights, and to see loss barriers (a note says so).
        others: name -> model trained otherwise, such as one cosine run of the same budget; the first of them takes
            the last snapshot's place as the single model of the comparison.
        groups: (n,) what each item belongs to; see :func:`scores`.
        folds: of the cross-fitted temperature.
        save: keep all predictions beside the store, as True or under a name.
        name: of the saved predictions to read.
        select: method of :func:`select`, such as "auto", for one more row, "selected": members chosen and weighted on some
        of the
            items and scored on the others; None: no such row.
        options: those of :class:`Ensemble` (task, forward, ...), where `source` is a store.

    Raises InputError for tasks without classes, without labels, and as what it calls does.
    """
    notes: list[str] = []
    settings = given(report, locals(), "source", "model", "loader", "train_loader", "others", "device") | dict(options)
    if loader is None and not isinstance(source, Ensemble):
        store: Store = open_store(source) if isinstance(source, str | os.PathLike) else source
        result = _from_saved(store, name, groups, n_bins, folds, seed, select)
        files = [*store.segments, str(predictions_path(store.path, name))]
        return replace(result, provenance=Provenance.now(files, settings))
    ens = _ensemble_of(source, model, options)
    if loader is None:
        raise InputError("a report needs a loader of test items with labels")
    loader = list(loader) if isinstance(loader, Iterator) else loader
    members, together = ens.predict_members(loader, device=device)
    if together.target is None:
        raise InputError("a report needs labels: pass a loader of (input, label)")
    predictions = {label: _answers(one, ens, loader, device) for label, one in (others or {}).items()}
    predictions[LAST] = _one(members[-1], together)
    for label, average in AVERAGES.items():
        averaged = _averaged(ens, average, train_loader, label, notes, device)
        if averaged is not None:
            predictions[label] = _answers(averaged, ens, loader, device)
    predictions[TOGETHER] = together
    weights = ens.weights[ens.weights > 0]
    if save:
        if ens.path is None:
            raise InputError("save=True keeps predictions beside the store; make the ensemble with from_store")
        save_predictions(ens.path, "predictions" if save is True else save, members, together, weights,
                         {label: p.probabilities for label, p in predictions.items() if label not in (LAST, TOGETHER)})
    result = _report(predictions, members, weights, groups, n_bins, folds, seed, notes, _trajectory(ens.vectors["parameters"]),
                     select)
    return replace(result, provenance=Provenance.now(files_of(ens.vectors), settings))


def _ensemble_of(source: Source, model: torch.nn.Module | None, options: Ensembling) -> Ensemble[Any]:
    """The ensemble that a report is about. Raises InputError where its task has no classes."""
    if isinstance(source, Ensemble):
        ens = source
    elif model is None:
        raise InputError("a report on a store needs the model, to put the weights into: report(store, model, loader)")
    else:
        ens = Ensemble.from_store(source, model, **options)
    if ens.task == "regression":
        raise InputError("a report is about classes; for numbers see neural.scores and neural.compare")
    return ens


def _answers(model: torch.nn.Module, ens: Ensemble[Any], loader: Iterable[Any], device: Device) -> Prediction:
    """What one model says of the items, as the ensemble reads them."""
    answer = predict(model, loader, task=ens.task, forward=ens.convention.forward, device=device or device_of(model),
                     ignore_index=ens.ignore_index, target=ens.convention.target, outputs=ens.convention.outputs)
    assert isinstance(answer, Prediction)
    return answer


def _from_saved(store: Store, name: str, groups: ArrayLike | None, n_bins: int, folds: int, seed: int,
                select: Method | None) -> Report:
    saved: SavedPredictions = load_predictions(store.path, name)
    if saved.target is None:
        raise InputError("these predictions were saved without labels; predict from a loader of (input, label)")
    notes = []
    together = saved.pooled()
    predictions = {label: _one(p, together) for label, p in saved.others.items() if label not in AVERAGES}
    predictions[LAST] = _one(saved.members[-1], together)
    for label in AVERAGES:
        if label in saved.others:
            predictions[label] = _one(saved.others[label], together)
        else:
            notes.append(f"{label} of this run was not saved: neural.report(store, model, loader, train_loader=..., "
                         "save=True) makes it")
    predictions[TOGETHER] = together
    trajectory = _trajectory(store["parameters"]) if "parameters" in store and len(store) else (None, None, float("nan"))
    return _report(predictions, saved.members, saved.weights, groups, n_bins, folds, seed, notes, trajectory, select)


def _report(predictions: dict[str, Prediction], members: np.ndarray, weights: np.ndarray, groups: ArrayLike | None, n_bins: int,
            folds: int, seed: int, notes: list[str], trajectory: Trajectory, select: Method | None) -> Report:
    together = predictions[TOGETHER]
    scaler = TemperatureScaler()
    predictions[f"{TOGETHER} + T"] = scaler.cross_fit(together, folds=folds, groups=groups, seed=seed)
    notes.append(f"+ T: temperature {scaler.temperature:.3g}, fitted to the pooled predictions of the other fold")
    if select is not None:
        chosen = select_members(Evidence(members, together.target, together.space, together.ignore_index), method=select,
                                groups=groups, seed=seed)
        predictions[SELECTED] = chosen.prediction
        notes.append(f"selected: by {chosen.method!r} on all items, and scored out of fold; see neural.select")
    every = {label: scores(p, groups=groups, n_bins=n_bins, seed=seed) for label, p in predictions.items()}
    first = next(iter(predictions))
    against = {label: compare(p, predictions[first], groups=groups, n_bins=n_bins, seed=seed)
               for label, p in predictions.items() if label != first}
    if SELECTED in against:
        against[SELECTED] = with_choice(against[SELECTED], chosen.choice_variance, len(chosen.fold_weights[0]))
    m = len(members)
    curve = tuple(mean_scores(pooled(members[m - k:], weights[m - k:], together.target, together.space,
                                     together.ignore_index), groups) for k in range(1, m + 1))
    nll = [mean_scores(_one(p, together), groups)["nll"].value for p in members]
    if m > 1 and max(nll) > 1.5 * min(nll) and max(nll) - min(nll) > 0.05:
        notes.append(f"the snapshots differ much in quality (NLL {min(nll):.3g} to {max(nll):.3g}); early ones may do "
                     "harm: see the scores by number of members, and last=")
    return Report(predictions, every, against, curve, _disagreement(members, together), *trajectory, tuple(notes))


def _averaged(ens: Ensemble, average: Literal["swa", "ema"], loader: Iterable[Any] | None, label: str, notes: list[str],
              device: Device) -> torch.nn.Module | None:
    if loader is None and has_batch_norm(ens.member(-1)):
        notes.append(f"{label}: not made, for the model has batch-norm layers and no train_loader was given")
        return None
    loader = list(loader) if isinstance(loader, Iterator) else loader
    averaged = ens.averaged_model(loader, average=average, barrier="ignore", device=device)
    if loader is not None and len(ens) > 1:
        rise = ens.loss_increase(averaged, loader, device)
        if rise is not None and rise.above():
            notes.append(f"{label}: a loss barrier lies between the snapshots ({rise}); pool predictions, not weights")
    return averaged


def _one(probabilities: np.ndarray, like: Prediction) -> Prediction:
    """A single model's prediction of the same items."""
    alone = replace(like, probabilities=probabilities, n_members=1, disagreement=np.zeros_like(like.disagreement),
                    variation_ratio=None)
    return replace(alone, aleatoric=alone.entropy)


def _disagreement(members: np.ndarray, like: Prediction) -> np.ndarray:
    choices = members.argmax(2).reshape(len(members), -1)
    if like.ignore_index is not None and like.target is not None:
        choices = choices[:, like.target.reshape(-1) != like.ignore_index]
    return (choices[:, None] != choices[None]).mean(2) if choices.size < 1 << 24 else np.array(
        [[(a != b).mean() for b in choices] for a in choices])


def _trajectory(parameters: StoredSource | np.ndarray) -> Trajectory:
    """Distances of the snapshots and their principal plane, from the Gram matrix about their mean."""
    if len(parameters) < 2:
        return None, None, float("nan")
    gram, e = gram_over(parameters, "mean")
    directions = principal(gram)
    return ldexp(from_gram(gram), e), ldexp(directions.scores[:, :2], e), float(directions.explained[1])


def _interval(s: Score) -> str:
    digits = 4 if max(abs(s.value), abs(s.low), abs(s.high)) < 1 else 3
    return f"{s.value:.{digits}f} ({s.low:.{digits}f}, {s.high:.{digits}f})"
