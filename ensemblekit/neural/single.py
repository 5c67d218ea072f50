"""The answers of one model, as an ensemble of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack, overload

import torch

from ensemblekit.neural.batches import Convention, Device, Forward, Outputs, batches_of, device_of, modes_kept, moved
from ensemblekit.neural.options import Classes, Predicting, Task, check_task
from ensemblekit.neural.outputs import Answers, check_finite
from ensemblekit.neural.prediction import Prediction, RegressionPrediction


@overload
def predict(model: torch.nn.Module, loader: Iterable[Any], *, task: Classes = "classification",
            **options: Unpack[Predicting]) -> Prediction: ...
@overload
def predict(model: torch.nn.Module, loader: Iterable[Any], *, task: Literal["regression"],
            **options: Unpack[Predicting]) -> RegressionPrediction: ...
@overload
def predict(model: torch.nn.Module, loader: Iterable[Any], *, task: Task,
            **options: Unpack[Predicting]) -> Prediction | RegressionPrediction: ...


@torch.no_grad()
def predict(model: torch.nn.Module, loader: Iterable[Any], *, task: Task = "classification", forward: Forward | None = None,
            device: Device = None, ignore_index: int | None = None, target: Callable[[Any], Any] | None = None,
            outputs: Outputs | None = None) -> Prediction | RegressionPrediction:
    """The answers of one model for every item of a loader, as an ensemble of one; the model is left as it was.

    Returns a :class:`Prediction`, for regression a :class:`RegressionPrediction`.

    Arguments and errors as :class:`Ensemble` and :meth:`Ensemble.predict`.
    """
    check_task(task)
    convention = Convention(forward, target, outputs, task)
    answers = Answers(task, ignore_index, False, convention)
    with modes_kept(model):
        model.eval()
        for batch in batches_of(loader):
            batch = moved(batch, device or device_of(model))
            answers.start(batch, "probability")
            out = convention.outputs_of(model, batch)
            out = tuple(x[None] for x in out) if isinstance(out, tuple) else out[None]
            check_finite(out, [0])
            answers.update(out, None)
            answers.end()
    return answers.result(1, "probability")
