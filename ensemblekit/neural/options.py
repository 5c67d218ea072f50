"""What an ensemble is asked for: the tasks, and the keyword options of its constructors with their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.batches import Device, Forward, Outputs
from ensemblekit.neural.parameters import Manifest
from ensemblekit.neural.uncertainty import Space

Classes = Literal["classification", "binary", "segmentation"]
Task = Literal["classification", "binary", "regression", "segmentation"]
TASKS: tuple[Task, ...] = ("classification", "binary", "regression", "segmentation")


class Reading(TypedDict, total=False):
    """How batches and outputs are read."""

    forward: Forward | None
    ignore_index: int | None
    target: Callable[[Any], Any] | None
    outputs: Outputs | None


class Pooling(Reading, total=False):
    """How members answer together."""

    weights: ArrayLike | None
    space: Space
    resident: int


class Constructing(Pooling, total=False):
    """Of ``Ensemble(model, vectors)``."""

    manifest: Manifest | None


class Opening(Pooling, total=False):
    """Of ``Ensemble.from_store``."""

    members: slice | Sequence[int] | None
    last: int | None


class Ensembling(Opening, total=False):
    """Of ``report``: an ensemble from a store, and its task."""

    task: Task


class Predicting(Reading, total=False):
    """Of ``predict``."""

    device: Device


def check_task(task: str) -> Task:
    """The task of that name. Raises InputError where there is none."""
    for one in TASKS:
        if one == task:
            return one
    raise InputError(f"task is one of {', '.join(map(repr, TASKS))}; got {task!r}")
