"""What a model or an ensemble says about some items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.intake_dates import package
from ensemblekit.intake_labels import dataset_of
from ensemblekit.neural.result_files import Saved
from ensemblekit.neural.uncertainty import TINY, Space, entropy_of
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, scaled

NATS = ("entropy", "aleatoric", "epistemic")
"""Doubts that are entropies."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction(Saved, Result):
    """Classes of items, or of every pixel of items. Natural logarithms; `...` is nothing or the axes of a map."""

    FIGURE = "neural.prediction"

    probabilities: np.ndarray
    """(n, classes, ...): float64 for whole items, float32 for maps."""
    target: np.ndarray | None
    """(n, ...) labels, where the loader had any."""
    aleatoric: np.ndarray
    """(n, ...): mean entropy of the members, doubt that is in the data."""
    disagreement: np.ndarray
    """(n, ...): share of the members whose first choice is not the ensemble's."""
    variation_ratio: np.ndarray | None = None
    """(n, ...): share of the members that did not vote for the class with most votes."""
    index: np.ndarray | None = None
    """(n,): number of each item in the order of the loader."""
    n_members: int = 1
    space: Space = "probability"
    """What was averaged: probabilities, or logits."""
    ignore_index: int | None = None
    """The label of what is not to be scored."""
    tempered: bool = False
    """Whether each item was scaled by a temperature of the other items (``TemperatureScaler.cross_fit``)."""

    def __repr__(self) -> str:
        said = [f"{_count(len(self), 'item')}{_map(self.probabilities.shape[2:])}",
                _count(self.probabilities.shape[1], "class", "classes"), _count(self.n_members, "member")]
        if self.space != "probability":
            said.append(f"{self.space}s averaged")
        if self.tempered:
            said.append("temperature cross-fitted")
        if self.probabilities.size:
            if self.target is not None and np.shape(self.target) == self.aleatoric.shape:
                kept = np.asarray(self.target) != self.ignore_index if self.ignore_index is not None else np.True_
                right = self.choice == self.target
                if np.any(kept):
                    said.append(f"accuracy {100 * right.mean(where=kept):.4g} %")
            said.append(f"mean entropy {self.entropy.mean():.3g} nats, epistemic {self.epistemic.mean():.3g}")
        return f"Prediction({', '.join(said)})"

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def entropy(self) -> np.ndarray:
        """(n, ...): entropy of the pooled probabilities, all doubt there is."""
        return entropy_of(self.probabilities)

    @property
    def epistemic(self) -> np.ndarray:
        """(n, ...): entropy beyond the members' own, doubt that more data would remove; never below 0."""
        return np.clip(self.entropy - self.aleatoric, 0, None)

    @property
    def choice(self) -> np.ndarray:
        """(n, ...): the most probable class."""
        return self.probabilities.argmax(1)

    def to_xarray(self) -> Any:
        """A Dataset over (item, class, ...): probabilities, choice, target, and the doubts (nats).

        Raises MissingExtraError where xarray is not installed.
        """
        axes = ("item", *(f"axis_{k}" for k in range(self.probabilities.ndim - 2)))
        variables: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = {
            "probabilities": (("item", "class", *axes[1:]), self.probabilities, {})}
        for name in ("choice", "target", "entropy", "aleatoric", "epistemic", "disagreement", "variation_ratio"):
            values = getattr(self, name)
            if values is not None and np.shape(values) == self.aleatoric.shape:
                variables[name] = (axes, np.asarray(values), {"units": "nat"} if name in NATS else {})
        coords = {} if self.index is None else {"item": (("item",), self.index)}
        return dataset_of(variables, {}, coords, {"n_members": self.n_members, "space": self.space})

    def to_dataframe(self) -> Any:
        """A table of pandas, one row an item: a column for the probability of each class, then choice, target and doubts.

        Raises InputError for maps (:meth:`to_xarray` takes them), MissingExtraError where pandas is not installed.
        """
        if self.probabilities.ndim > 2:
            raise InputError(f"a table has one row an item, and these are maps {self.probabilities.shape[2:]}; use to_xarray()")
        pandas = package("pandas", "xarray")
        columns = {f"probability_{k}": self.probabilities[:, k] for k in range(self.probabilities.shape[1])}
        for name in ("choice", "target", "entropy", "aleatoric", "epistemic", "disagreement", "variation_ratio"):
            values = getattr(self, name)
            if values is not None and np.shape(values) == self.aleatoric.shape:
                columns[name] = np.asarray(values)
        return pandas.DataFrame(columns, index=None if self.index is None else pandas.Index(self.index, name="item"))


@dataclass(frozen=True, slots=True, eq=False)
class RegressionPrediction(Saved, Result):
    """Numbers, with a variance by its two sources; `...` is the shape of one answer."""

    mean: np.ndarray
    """(n, ...): weighted mean of the members."""
    aleatoric: np.ndarray
    """(n, ...): mean of the variances that members give themselves; 0 where they give none."""
    epistemic: np.ndarray
    """(n, ...): variance of the members' means about their mean (over M: a mixture's, not an estimate)."""
    target: np.ndarray | None = None
    """(n, ...)."""
    index: np.ndarray | None = None
    """(n,): number of each item in the order of the loader."""
    n_members: int = 1
    spread: np.ndarray | None = None
    """(n, ...): root of `epistemic`, a number also where that is beyond float64 (infinity or 0 then); None: just the root."""

    def __repr__(self) -> str:
        said = [f"{_count(len(self), 'item')}{_map(self.mean.shape[1:])}", _count(self.n_members, "member")]
        if self.mean.size:
            if self.target is not None and np.shape(self.target) == self.mean.shape:
                said.append(f"root mean square error {_rms(self.mean - self.target):.4g}")
            if self.spread is not None and ((self.spread > 0) & ~((self.epistemic >= TINY) & (self.epistemic < np.inf))).any():
                said.append(f"root mean variance {_rms(self.std):.3g}, epistemic {_rms(self.spread):.3g}")
            else:
                said.append(f"mean variance {self.variance.mean():.3g}, epistemic {self.epistemic.mean():.3g}")
        return f"RegressionPrediction({', '.join(said)})"

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def variance(self) -> np.ndarray:
        """(n, ...): of the mixture of the members, aleatoric + epistemic."""
        return self.aleatoric + self.epistemic

    @property
    def std(self) -> np.ndarray:
        """(n, ...): root of `variance`, a number also where that is beyond float64."""
        return np.sqrt(self.variance) if self.spread is None else np.hypot(np.sqrt(self.aleatoric), self.spread)

    def to_xarray(self) -> Any:
        """A Dataset over (item, ...): mean, std, aleatoric and epistemic variance, target.

        Raises MissingExtraError where xarray is not installed.
        """
        axes = ("item", *(f"axis_{k}" for k in range(self.mean.ndim - 1)))
        variables: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = {
            name: (axes, np.asarray(getattr(self, name)), {}) for name in ("mean", "std", "aleatoric", "epistemic")}
        if self.target is not None and np.shape(self.target) == self.mean.shape:
            variables["target"] = (axes, np.asarray(self.target), {})
        coords = {} if self.index is None else {"item": (("item",), self.index)}
        return dataset_of(variables, {}, coords, {"n_members": self.n_members})

    def to_dataframe(self) -> Any:
        """A table of pandas, one row an item: mean, std, aleatoric and epistemic variance, target; mean_0, mean_1 and so on of
        answers of several numbers.

        Raises InputError for maps (:meth:`to_xarray` takes them), MissingExtraError where pandas is not installed.
        """
        if self.mean.ndim > 2:
            raise InputError(f"a table has one row an item, and these are maps {self.mean.shape[1:]}; use to_xarray()")
        pandas = package("pandas", "xarray")
        columns: dict[str, np.ndarray] = {}
        for name in ("mean", "std", "aleatoric", "epistemic", "target"):
            values = self.target if name == "target" else np.asarray(getattr(self, name))
            if values is None or np.shape(values) != self.mean.shape:
                continue
            columns |= {name: values} if self.mean.ndim == 1 else {f"{name}_{k}": values[:, k] for k in range(values.shape[1])}
        return pandas.DataFrame(columns, index=None if self.index is None else pandas.Index(self.index, name="item"))


def _rms(x: np.ndarray) -> float:
    divided, e = scaled(x)
    return ldexp(float(np.sqrt(np.mean(divided**2))), e)


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _map(shape: tuple[int, ...]) -> str:
    return f" of {' × '.join(map(str, shape))}" if shape else ""


Predicted = Prediction | RegressionPrediction
"""What an ensemble answers."""
