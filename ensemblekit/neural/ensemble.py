"""Many snapshots as one model: predictions averaged, or weights averaged."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from ensemblekit.averaging.moments import Moments
from ensemblekit.averaging.run import reduce
from ensemblekit.errors import InputError
from ensemblekit.neural.batchnorm import update_bn
from ensemblekit.neural.parameters import KINDS, Manifest, load_vectors
from ensemblekit.store.opening import open_store


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a model or an ensemble says about some items. Natural logarithms throughout."""

    probabilities: np.ndarray
    """(n, classes)."""
    target: np.ndarray | None
    """(n,) labels, where the loader had any."""
    aleatoric: np.ndarray
    """(n,): mean entropy of the members, doubt that is in the data."""
    disagreement: np.ndarray
    """(n,): share of the members whose first choice is not the ensemble's."""

    @property
    def entropy(self) -> np.ndarray:
        """(n,): entropy of the pooled probabilities, all doubt there is."""
        return entropy(self.probabilities)

    @property
    def epistemic(self) -> np.ndarray:
        """(n,): entropy beyond the members' own, doubt that more data would remove."""
        return np.clip(self.entropy - self.aleatoric, 0, None)


class Ensemble(torch.nn.Module):
    """Snapshots of one model; its forward gives log of the mean of the members' probabilities."""

    def __init__(self, model: torch.nn.Module, vectors: Mapping[str, Any], manifest: Manifest | None = None):
        """vectors: field -> (M, size), as :func:`ensemblekit.neural.parameters.to_vectors` gives them for each member."""
        super().__init__()
        if not len(vectors["parameters"]):
            raise InputError("no snapshots were stored: an ensemble needs at least one")
        self.model = copy.deepcopy(model)
        self.vectors, self.manifest = vectors, manifest

    @classmethod
    def from_store(cls, path: str | os.PathLike[str] | Any, model: torch.nn.Module) -> Self:
        """From a store that a Recorder wrote; `model` gives the architecture and is left as it is.

        Raises InputError naming the parameters that differ where the model is another one.
        """
        store = open_store(path) if isinstance(path, str | os.PathLike) else path
        manifest = Manifest.from_dict(store.provenance["manifest"])
        manifest.check(model)
        return cls(model, {name: store[name] for name in KINDS if name in store.fields}, manifest)

    def __len__(self) -> int:
        return len(self.vectors["parameters"])

    def member(self, k: int) -> torch.nn.Module:
        """A copy of the model with the weights of snapshot k (negative: from the end), in eval mode."""
        one = copy.deepcopy(self.model)
        load_vectors(one, {name: vectors[k] for name, vectors in self.vectors.items()}, self.manifest)
        return one.eval()

    @torch.no_grad()
    def forward(self, x: Any) -> torch.Tensor:
        """Log-probabilities (n, classes) pooled over the members, which are held in memory one at a time."""
        pooled = Moments()
        for k, model in enumerate(self._each()):
            pooled.update(torch.softmax(model(x).double(), 1)[None], k)
        return torch.as_tensor(pooled.result().mean).log()

    def predict(self, loader: Any) -> Prediction:
        """Pooled probabilities and doubt about every item of a loader, or of a tensor of inputs."""
        pooled, doubt, votes = Moments(), Moments(), []
        target = None
        for k, model in enumerate(self._each()):
            one = predict(model, loader)
            target = one.target
            pooled.update(one.probabilities[None], k)
            doubt.update(one.aleatoric[None], k)
            votes.append(one.probabilities.argmax(1))
        probabilities = pooled.result().mean
        against = np.mean(np.array(votes) != probabilities.argmax(1), axis=0)
        return Prediction(probabilities, target, doubt.result().mean, against)

    def averaged_model(self, loader: Iterable[Any] | None = None) -> torch.nn.Module:
        """One model with the mean of the members' weights; batch-norm statistics are made anew from the loader.

        Raises InputError where the model has batch-norm layers and no loader is given: averaged weights do not fit
        anybody's old statistics.
        """
        mean = reduce(self.vectors["parameters"], Moments()).mean
        one = self.member(-1)
        load_vectors(one, {"parameters": mean}, self.manifest)
        if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in one.modules()):
            if loader is None:
                raise InputError("the model has batch-norm layers: pass a loader of training data to refresh them")
            update_bn(loader, one)
        return one.eval()

    def _each(self) -> Iterator[torch.nn.Module]:
        for k in range(len(self)):
            yield self.member(k)


@torch.no_grad()
def predict(model: torch.nn.Module, loader: Any) -> Prediction:
    """The softmax of one model's outputs for every item of a loader, or of a tensor of inputs."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    found, labels = [], []
    try:
        for batch in [loader] if isinstance(loader, torch.Tensor) else loader:
            x = batch[0] if isinstance(batch, list | tuple) else batch
            found.append(torch.softmax(model(x).double(), 1).cpu().numpy())
            if isinstance(batch, list | tuple) and len(batch) > 1:
                labels.append(batch[1].cpu().numpy())
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not found:
        raise InputError("nothing to predict: the loader is empty")
    probabilities = np.concatenate(found)
    return Prediction(probabilities, np.concatenate(labels) if labels else None, entropy(probabilities),
                      np.zeros(len(probabilities)))


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """-sum p log p over the last axis, with 0 log 0 = 0."""
    return -np.sum(probabilities * np.log(np.where(probabilities > 0, probabilities, 1)), axis=-1)
