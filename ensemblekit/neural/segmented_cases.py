"""Images one after the other, each with what every member says of it, from an ensemble at work or from saved predictions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.batches import Device, batches_of
from ensemblekit.neural.ensemble import Ensemble
from ensemblekit.neural.evidence import Source, evidence_of
from ensemblekit.neural.items import Values
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.saved import SavedPredictions, load_predictions, pooled
from ensemblekit.neural.windows import images_of
from ensemblekit.store.store import Store

UNITS = {1: "mm", 2: "mm²", 3: "ml"}
"""What the volume of an image of so many axes is measured in."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageCase:
    """One image, or volume."""

    members: np.ndarray
    """(M, classes, *map): probabilities of each member."""
    weights: np.ndarray
    """(M,), 1 in sum."""
    probabilities: np.ndarray
    """(classes, *map), pooled."""
    aleatoric: np.ndarray
    """(*map), nats."""
    disagreement: np.ndarray
    """(*map)."""
    target: np.ndarray | None
    """(*map) labels."""
    ignore_index: int | None
    image: np.ndarray | None
    """(*map): its first channel."""
    spacing: tuple[float, ...] | None
    """mm along each axis."""

    @property
    def voxel(self) -> float:
        """What a voxel measures, in `unit`."""
        if self.spacing is None:
            return 1.0
        return float(np.prod(self.spacing)) / (1000 if len(self.spacing) == 3 else 1)

    @property
    def unit(self) -> str:
        return "voxels" if self.spacing is None else UNITS[len(self.spacing)]

    def truth_of(self, label: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(*map) where the label is this class, and where labels count; None without labels, and where all count."""
        if self.target is None:
            return None, None
        return self.target == label, None if self.ignore_index is None else self.target != self.ignore_index


def cases_of(source: Ensemble[Prediction] | Source, loader: Iterable[object] | None, *, target: Values | None = None,
             spacing: float | Sequence[float] | None = None, device: Device = None) -> Iterator[ImageCase]:
    """The images of a loader as an ensemble sees them, or those of saved predictions."""
    if isinstance(source, Ensemble):
        if source.task not in ("segmentation", "binary"):
            raise InputError(f'regions are those of maps: make the ensemble with task="segmentation", or "binary" for one '
                             f"logit a pixel; this one is of task {source.task!r}")
        if loader is None:
            raise InputError("an ensemble needs a loader of images: segment(ensemble, loader)")
        weights = source.weights[source.weights > 0]
        for batch in batches_of(loader):
            members, prediction = source.predict_members([batch], device=device)
            yield from _of_batch(members, weights / weights.sum(), prediction, _images(batch, prediction),
                                 _spacings(batch, spacing, len(prediction), prediction.probabilities.ndim - 2))
        return
    if isinstance(source, Store):
        source = load_predictions(source.path)
    elif isinstance(source, str | os.PathLike):
        source = load_predictions(source)
    found = evidence_of(source, target)
    if found.members.ndim < 4:
        raise InputError(f"regions are those of maps, (members, n, classes, *map); got {found.members.shape}")
    given = source.weights if isinstance(source, SavedPredictions) else None
    shares = np.full(len(found.members), 1 / len(found.members)) if given is None else given / given.sum()
    images = iter(()) if loader is None else (
        (image, row) for batch in batches_of(loader) for image, row in zip(
            images_of(batch), _spacings(batch, spacing, len(images_of(batch)), found.members.ndim - 3), strict=True))
    for i in range(found.members.shape[1]):
        one = pooled(found.members[:, i:i + 1], given, None if found.target is None else found.target[i:i + 1], found.space,
                     found.ignore_index)
        image, row = next(images, (None, None)) if loader is not None else (
            None, _spacings(None, spacing, 1, found.members.ndim - 3)[0])
        if loader is not None and image is None:
            raise InputError(f"the loader has {i} images, and the saved predictions are of {found.members.shape[1]}")
        shown = None if image is None else _shown(image, one.probabilities.shape[2:])
        yield from _of_batch(found.members[:, i:i + 1], shares, one, [shown], [row])


def _of_batch(members: np.ndarray, weights: np.ndarray, prediction: Prediction, images: Sequence[np.ndarray | None],
              spacings: Sequence[tuple[float, ...] | None]) -> Iterator[ImageCase]:
    if prediction.probabilities.ndim < 3:
        raise InputError(f"regions are those of maps, (n, classes, *map); got {prediction.probabilities.shape}")
    for i in range(len(prediction)):
        yield ImageCase(members[:, i], weights, prediction.probabilities[i], prediction.aleatoric[i],
                        prediction.disagreement[i], None if prediction.target is None else prediction.target[i],
                        prediction.ignore_index, images[i], spacings[i])


def _images(batch: object, prediction: Prediction) -> list[np.ndarray | None]:
    """The first channel of each image of a batch; None where it cannot be told, or is of another shape."""
    try:
        found = images_of(batch)
    except InputError:      # batches that only a forward function of the user's knows
        return [None] * len(prediction)
    return [_shown(image, prediction.probabilities.shape[2:]) for image in found]


def _shown(image: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray | None:
    values: np.ndarray = image.detach().float().cpu().numpy()
    if values.shape == shape:
        return values
    return values[0] if values.shape[1:] == shape else None


def _spacings(batch: object, spacing: float | Sequence[float] | None, n: int, axes: int) -> list[tuple[float, ...] | None]:
    """mm along each axis of each image of a batch, given or under its "spacing"."""
    if spacing is None and isinstance(batch, Mapping) and batch.get("spacing") is not None:
        rows = as_array(batch["spacing"], "spacing", dtype=np.float64)
        rows = np.broadcast_to(rows, (n, rows.shape[-1])) if rows.ndim == 1 and rows.shape[0] == axes else rows.reshape(n, -1)
        return [_spacing(row.tolist(), axes) for row in rows]
    return [None if spacing is None else _spacing(spacing, axes)] * n


def _spacing(spacing: float | Sequence[float], axes: int) -> tuple[float, ...]:
    row = as_array(spacing, "spacing", dtype=np.float64).reshape(-1)
    if len(row) == 1:
        row = row.repeat(axes)
    if len(row) != axes or not (np.isfinite(row).all() and (row > 0).all()):
        raise InputError(f"spacing is the size of a voxel in mm, above 0: a number, or one for each of {axes} axes; got "
                         f"{spacing!r}")
    return tuple(float(x) for x in row)
