"""Members' predictions as evidence: read from wherever they are kept, checked, and cut into rows to be scored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.items import Values, as_numpy
from ensemblekit.neural.saved import SavedPredictions, load_predictions
from ensemblekit.neural.uncertainty import Space, check_space
from ensemblekit.store.store import Store

PIXELS = 4096
"""Of an image that choices are made on, drawn by the seed; scores are of all pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Class probabilities of M members on n items."""

    members: np.ndarray
    """(M, n, classes, ...)."""
    target: np.ndarray | None
    """(n, ...) labels."""
    space: Space
    """How the members are pooled, "probability" or "logit"."""
    ignore_index: int | None = None

    def labels(self) -> np.ndarray:
        """Raises InputError where there are none."""
        if self.target is None:
            raise InputError("these predictions have no labels; save them from a loader of (input, label), or pass target=")
        return self.target


Source = Evidence | SavedPredictions | Store | str | os.PathLike[str] | Values
"""Where members' predictions come from: arrays are (M, n, classes, ...)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """k items, or pixels of items, that choices are made on."""

    p: np.ndarray
    """(M, k, classes)."""
    labels: np.ndarray
    """(k,)."""
    cluster: np.ndarray
    """(k,): the item or group of each, 0 to n - 1, which stay together."""
    n: int

    @property
    def own(self) -> np.ndarray:
        """(M, k): probability of the label."""
        return np.ascontiguousarray(self.p[:, np.arange(len(self.labels)), self.labels], np.float64)


def evidence_of(source: Source, target: Values | None = None, *, what: str = "the members", space: str | None = None,
                ignore_index: int | None = None) -> Evidence:
    """Members' probabilities from SavedPredictions, a store or its path, or an array (M, n, classes, ...) with its labels.

    Arguments:
        space: that the members are to be pooled in; where predictions were saved for another one, an InputError says so.
    """
    if isinstance(source, Evidence):
        return source
    if isinstance(source, str | os.PathLike):
        source = load_predictions(source)
    elif isinstance(source, Store):
        source = load_predictions(source.path)
    if isinstance(source, SavedPredictions):
        if space is not None and space != source.space:
            raise InputError(f"{what} were saved for pooling in {source.space} space; got space={space!r}. Pass "
                             f"space={source.space!r}, or the array .members with target=.target")
        labels = source.target if target is None else as_numpy(target, "labels")
        evidence = Evidence(source.members, labels, source.space, source.ignore_index)
    else:
        members = as_numpy(source, what)
        labels = None if target is None else as_numpy(target, "labels")
        evidence = Evidence(members, labels, check_space(space or "probability"), ignore_index)
    return _checked(evidence, what)


def runs_of(runs: Source | Sequence[Source], target: Values | None = None, *, space: str | None = None) -> list[Evidence]:
    """Evidence of several independent trainings on the same items: a list, or an array (R, M, n, classes, ...)."""
    if isinstance(runs, str | os.PathLike | SavedPredictions | Store | Evidence):
        runs = [runs]
    elif not isinstance(runs, Sequence):
        runs = as_numpy(runs, "the runs")
    if not len(runs):
        raise InputError("no runs came; give a list of saved predictions, of stores or of arrays (members, n, classes, ...)")
    evidence = [evidence_of(run, target, what=f"the members of run {k}", space=space) for k, run in enumerate(runs)]
    first = evidence[0]
    for k, one in enumerate(evidence):
        if one.members.shape != first.members.shape:
            raise InputError(f"runs have the same members, items and classes; run {k} has {one.members.shape}, run 0 "
                             f"{first.members.shape}")
        if one.target is not None and first.target is not None and not np.array_equal(one.target, first.target):
            raise InputError(f"runs are about the same items in the same order; the labels of run {k} differ from those "
                             f"of run 0")
        if one.space != first.space:
            raise InputError(f"runs are pooled in one space; that of run {k} is {one.space}, that of run 0 {first.space}")
    return evidence


def rows_of(evidence: Evidence, groups: ArrayLike | None = None, seed: int = 0) -> Rows:
    """What choices are made on: all items, or up to `PIXELS` pixels of each image, without the label that is ignored."""
    labels = evidence.labels()
    n = len(labels)
    owner = cluster_of(groups, n)
    if evidence.members.ndim == 3:
        kept = np.ones(n, bool) if evidence.ignore_index is None else labels != evidence.ignore_index
        p, flat, item = evidence.members, labels, owner
        if not kept.all():
            p, flat, item = p[:, kept], flat[kept], owner[kept]
    else:
        rng = np.random.default_rng(seed)
        parts, flats, items = [], [], []
        for i in range(n):
            own = labels[i].reshape(-1)
            at = np.arange(own.size) if evidence.ignore_index is None else np.flatnonzero(own != evidence.ignore_index)
            if len(at) > PIXELS:
                at = np.sort(rng.choice(at, PIXELS, replace=False))
            image = evidence.members[:, i].reshape(*evidence.members.shape[:1], evidence.members.shape[2], -1)
            parts.append(np.moveaxis(image[:, :, at], 1, 2))
            flats.append(own[at])
            items.append(np.full(len(at), owner[i]))
        p, flat, item = np.concatenate(parts, axis=1), np.concatenate(flats), np.concatenate(items)
    if not len(flat):
        raise InputError(f"every label is ignore_index, {evidence.ignore_index}: nothing is left to score")
    classes = evidence.members.shape[2]
    if flat.dtype.kind not in "iu" or flat.min() < 0 or flat.max() >= classes:
        raise InputError(f"labels are whole numbers 0 to {classes - 1}; got {flat.dtype}, {flat.min()} to {flat.max()}")
    names, cluster = np.unique(item, return_inverse=True)
    return Rows(p, flat, cluster.reshape(-1), len(names))


def cluster_of(groups: ArrayLike | None, n: int) -> np.ndarray:
    """(n,): number of the group of each item; each its own without groups."""
    if groups is None:
        return np.arange(n)
    names = as_array(groups, "groups", kinds=None)
    if names.shape != (n,):
        raise InputError(f"groups are one name an item, shape ({n},); got {names.shape}")
    labels: np.ndarray = np.unique(names, return_inverse=True)[1].reshape(-1)
    return labels


def _checked(evidence: Evidence, what: str) -> Evidence:
    p = evidence.members
    if p.ndim < 3 or p.dtype.kind not in "f":
        raise InputError(f"{what} are probabilities, (members, n, classes, ...); got {p.dtype} {p.shape}")
    if 0 in p.shape:
        raise InputError(f"{what} are empty, {p.shape}: no items came; was the loader used up before?")
    if evidence.target is not None and evidence.target.shape != p.shape[1:2] + p.shape[3:]:
        raise InputError(f"{what} are {p.shape}, (members, n, classes, ...), with labels (n, ...); got labels "
                         f"{evidence.target.shape}")
    for k, one in enumerate(p):
        total = one.sum(axis=1, dtype=np.float64)
        if not np.isfinite(total).all():
            item = int(np.argmin(np.isfinite(total).reshape(len(total), -1).all(1)))
            raise InputError(f"{what}: member {k} is not finite at item {item}; leave that member out")
        if one.min() < 0 or abs(total - 1).max() > 1e-3:
            raise InputError(f"{what}: member {k} holds no probabilities (not below 0 and 1 in sum over the classes); apply a "
                             "softmax to logits first")
    return evidence
