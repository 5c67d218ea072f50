"""How scores, calibration and the use of doubt hold when data get worse: for models side by side, severity by severity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import batches_of
from ensemblekit.neural.detection import error_detection
from ensemblekit.neural.drifted_loaders import (
    Corruptions,
    Loader,
    check_severities,
    chosen_corruptions,
    clean_batches,
    inputs_of,
    worse_batches,
)
from ensemblekit.neural.ensemble import Ensemble
from ensemblekit.neural.options import Predicting, Task
from ensemblekit.neural.prediction import Predicted, Prediction, RegressionPrediction
from ensemblekit.neural.results_of_drift import Condition, condition_of, difference, mean_of_conditions, temperatures_of
from ensemblekit.neural.scores import Score, Scores, error_exponent
from ensemblekit.neural.single import predict
from ensemblekit.results import Result

Model = torch.nn.Module | Ensemble[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Drift(Result):
    """Scores of models on clean items and on the same items made worse. Prints as a table; `clean` is severity 0."""

    FIGURE: ClassVar[str] = "drift.severity"

    models: tuple[str, ...]
    """Differences are from the first."""
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    clean: Mapping[str, Scores]
    """Model -> scores of the clean items."""
    scores: Mapping[str, Mapping[str, Mapping[int, Scores]]]
    """Model -> corruption -> severity -> scores; `nll_clean_t` and `ece_clean_t` at the temperature of the clean items."""
    mean: Mapping[str, Mapping[int, Scores]]
    """Model -> severity -> the mean over this list of corruptions, an item's scores averaged first; intervals over items."""
    differences: Mapping[str, Mapping[int, Scores]]
    """Model -> severity -> that mean minus the first model's, paired by item."""
    by_corruption: Mapping[str, Mapping[str, Mapping[int, Scores]]]
    """Model -> corruption -> severity -> minus the first model, paired by item."""
    detection: Mapping[str, Mapping[str, Mapping[int, Score]]]
    """Model -> corruption -> severity -> AUROC of the entropy for wrong answers; of classes of whole items."""
    clean_detection: Mapping[str, Score]
    temperatures: Mapping[str, float]
    """Model -> of the clean items (geometric mean of the two halves')."""
    notes: tuple[str, ...]

    def __str__(self) -> str:
        shown = [name for name in ("accuracy", "nll", "ece", "nll_clean_t", "ece_clean_t", "mse", "coverage")
                 if name in next(iter(self.clean.values()))]
        width = max(map(len, self.models)) + 2
        lines = [f"mean over {len(self.corruptions)} corruptions ({', '.join(self.corruptions)}); 95 % intervals over items",
                 f"{'':{width}}severity" + "".join(f"{name:>30}" for name in shown)]
        for model in self.models:
            for severity, found in ((0, self.clean[model]), *self.mean[model].items()):
                lines.append(f"{model:{width}}{severity:8d}" + "".join(f"{found[name]!s:>30}" for name in shown))
        if len(self.models) > 1:
            lines += ["", f"minus {self.models[0]}, paired (* zero lies outside)"]
        for model in self.models[1:]:
            for severity, found in self.differences[model].items():
                lines.append(f"{model:{width}}{severity:8d}" + "".join(
                    f"{str(found[name]) + ('*' if found[name].significant else ' '):>30}" for name in shown))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _facts(self) -> dict[str, object]:
        def numbers(found: Mapping[str, Score]) -> dict[str, dict[str, float]]:
            return {name: {"value": s.value, "low": s.low, "high": s.high} for name, s in found.items()}

        def severities(found: Mapping[int, Scores]) -> dict[str, object]:
            return {str(k): numbers(x) for k, x in found.items()}

        return {"models": self.models, "corruptions": self.corruptions, "severities": self.severities,
                "clean": {model: numbers(x) for model, x in self.clean.items()},
                "scores": {model: {name: severities(y) for name, y in x.items()} for model, x in self.scores.items()},
                "mean": {model: severities(x) for model, x in self.mean.items()},
                "differences": {model: severities(x) for model, x in self.differences.items()},
                "detection": {model: {name: numbers({str(k): s for k, s in y.items()}) for name, y in x.items()}
                              for model, x in self.detection.items()},
                "temperatures": self.temperatures, "notes": list(self.notes)}

    def table(self, score: str = "nll", model: str | None = None) -> np.ndarray:
        """(corruptions, severities): a score's difference from the first model; of the second model by default."""
        one = self.models[-1 if model is None and len(self.models) < 2 else 1] if model is None else model
        if one not in self.models or score not in self.clean[one]:
            raise InputError(f"models are {', '.join(self.models)} with scores {', '.join(self.clean[self.models[0]])}; got "
                             f"{one!r}, {score!r}")
        if one == self.models[0]:
            return np.array([[self.scores[one][name][k][score].value for k in self.severities] for name in self.corruptions])
        return np.array([[self.by_corruption[one][name][k][score].value for k in self.severities] for name in self.corruptions])


@torch.no_grad()
def drift(models: Mapping[str, Model] | Model, loader: Loader, *, corruptions: Corruptions = "images",
          severities: Sequence[int] = (1, 2, 3, 4, 5), range: tuple[float, float] | None = (0.0, 1.0),
          prepare: Callable[[torch.Tensor], torch.Tensor] | None = None, groups: ArrayLike | None = None, n_bins: int = 15,
          seed: int = 0, task: Task = "classification", **options: Unpack[Predicting]) -> Drift:
    """Scores of models on clean items and under every corruption, with paired differences from the first model.

    The corruption acts on what the loader gives and `prepare` comes after it. A corruption and severity is one pass for all
    models, on the same corrupted bits; members' answers are not kept. Corruptions are a fixed list: means are over this list,
    and intervals over items. The clean temperature of an item is that of the half of the clean items that it is not in.

    Arguments:
        models: name -> a model, an averaged model or an Ensemble; or one of them.
        loader: clean items with labels, before normalisation; it is gone through many times.
        corruptions: "images" (of `corruptions.IMAGES`), "ct", "table", or name -> function (x, severity, generator), or name ->
            severity -> loader, such as another hospital or `corruptions.from_folder(path)`.
        range: least and largest of images; they are scaled to [0, 1] to be corrupted and back. Not asked of "ct" and "table".
        prepare: of inputs, such as a normalisation.
        groups: (n,) what each item belongs to.
        task: and the other options as :func:`predict`, of models that are no Ensemble.

    Raises InputError for an empty loader, inputs outside `range`, severities that are not there, and no labels.
    """
    if isinstance(loader, Iterator):
        loader = list(loader)
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if not named:
        raise InputError("no models came; give name -> model")
    wanted = check_severities(severities, corruptions)
    first = next(iter(batches_of(loader)), None)
    if first is None:
        raise InputError("nothing to predict: the loader is empty")
    every, notes = chosen_corruptions(corruptions, wanted, inputs_of(first))
    limits = range if corruptions == "images" else None
    clean = _answers(named, clean_batches(loader, limits, prepare), task, options)
    exponent = error_exponent(*(x for x in clean.values() if isinstance(x, RegressionPrediction))) if any(
        isinstance(x, RegressionPrediction) for x in clean.values()) else 0
    heat = {model: temperatures_of(one, groups, seed) for model, one in clean.items()}

    def measured(answers: Mapping[str, Predicted], same: bool) -> dict[str, Condition]:
        return {model: condition_of(one, groups if same else None, n_bins, seed, heat[model], exponent, same)
                for model, one in answers.items()}

    base = measured(clean, True)
    conditions: dict[str, dict[str, dict[int, Condition]]] = {model: {name: {} for name in every} for model in named}
    detection: dict[str, dict[str, dict[int, Score]]] = {model: {name: {} for name in every} for model in named}
    other = set()
    for name, one in every.items():
        for severity in wanted:
            answers = _answers(named, worse_batches(loader, one, severity, limits, prepare, seed), task, options)
            same = _same_targets(answers, clean)
            other |= set() if same else {name}
            for model, found in measured(answers, same).items():
                conditions[model][name][severity] = found
                if (area := _auroc(answers[model], groups if same else None, seed)) is not None:
                    detection[model][name][severity] = area
    areas = {model: area for model, one in clean.items() if (area := _auroc(one, groups, seed)) is not None}
    heats = {model: float(np.exp(np.mean(np.log(one.of_fold)))) for model, one in heat.items() if one is not None}
    return _drift(base, conditions, detection, areas, heats, wanted, sorted(other), notes)


def _drift(clean: Mapping[str, Condition], conditions: Mapping[str, Mapping[str, Mapping[int, Condition]]],
           detection: Mapping[str, Mapping[str, Mapping[int, Score]]], areas: Mapping[str, Score], heats: Mapping[str, float],
           severities: tuple[int, ...], other: Sequence[str], notes: tuple[str, ...]) -> Drift:
    """Conditions as scores, their means over corruptions, and their differences from the first model's."""
    first = next(iter(clean))
    names = tuple(conditions[first])
    same = [name for name in names if name not in other]
    averaged = same or names[:1]
    if other:
        notes += (f"{', '.join(other)}: not the clean items; means over corruptions are of {', '.join(averaged)} alone",)
    mean = {model: {k: mean_of_conditions([found[name][k] for name in averaged]) for k in severities}
            for model, found in conditions.items()}
    differences, each = {}, {}
    for model in clean:
        if model != first:
            differences[model] = {k: difference(x, mean[first][k]) for k, x in mean[model].items()}
            each[model] = {name: {k: difference(x, conditions[first][name][k]) for k, x in rows.items()}
                           for name, rows in conditions[model].items()}
    scores = {model: {name: {k: x.scores() for k, x in rows.items()} for name, rows in found.items()}
              for model, found in conditions.items()}
    means = {model: {k: x.scores() for k, x in rows.items()} for model, rows in mean.items()}
    return Drift(tuple(clean), names, severities, {model: one.scores() for model, one in clean.items()}, scores, means,
                 differences, each, detection, areas, heats, notes)


def _answers(models: Mapping[str, Model], batches: Iterable[object], task: Task, options: Predicting) -> dict[str, Predicted]:
    """What each model says of the same batches, in one pass."""
    parts: dict[str, list[Predicted]] = {name: [] for name in models}
    for batch in batches:
        for name, model in models.items():
            if isinstance(model, Ensemble):
                parts[name].append(model.predict([batch], device=options.get("device")))
            else:
                parts[name].append(predict(model, [batch], task=task, **options))
    if not next(iter(parts.values())):
        raise InputError("nothing to predict: a loader is empty")
    return {name: joined(found) for name, found in parts.items()}


def joined(parts: Sequence[Predicted]) -> Predicted:
    """Predictions of batches as one. Raises InputError where some have labels and some have not, or maps differ in size."""
    first = parts[0]
    names = [name for name in ("probabilities", "mean", "aleatoric", "epistemic", "disagreement", "variation_ratio", "spread",
                               "target") if name in type(first).__dataclass_fields__]
    values: dict[str, Any] = {}
    for name in names:
        if name == "epistemic" and isinstance(first, Prediction):
            continue
        every = [getattr(part, name) for part in parts]
        if any(x is None for x in every):
            if not all(x is None for x in every):
                raise InputError("some batches have labels and some have not")
            continue
        if len({x.shape[1:] for x in every}) > 1:
            raise InputError(f"maps of one size are needed to be scored under drift; got {every[0].shape[1:]} and "
                             f"{next(x.shape[1:] for x in every if x.shape[1:] != every[0].shape[1:])}")
        values[name] = np.concatenate(every)
    return replace(first, **values, index=None)


def _same_targets(answers: Mapping[str, Predicted], clean: Mapping[str, Predicted]) -> bool:
    one, other = next(iter(answers.values())), next(iter(clean.values()))
    return one.target is not None and other.target is not None and np.array_equal(one.target, other.target)


def _auroc(answer: Predicted, groups: ArrayLike | None, seed: int) -> Score | None:
    """Of the entropy for wrong answers; None for numbers and maps."""
    if not isinstance(answer, Prediction) or answer.probabilities.ndim > 2:
        return None
    return error_detection(answer, measures="entropy", groups=groups, seed=seed)["entropy"].auroc
