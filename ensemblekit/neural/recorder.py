"""Snapshots of a model's weights while it trains."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

import torch

from ensemblekit.errors import InputError
from ensemblekit.neural.parameters import Manifest, to_vectors
from ensemblekit.neural.schedule import CyclicCosineLR
from ensemblekit.store.store import Store


class Recorder:
    """Takes a snapshot at the end of each cycle of the learning rate, where the loss is at its lowest.

    ::

        with neural.Recorder("weights.h5", model, optimizer, scheduler) as rec:
            for batch in batches:
                ...
                optimizer.step(); rec.step(); scheduler.step()

    A snapshot with NaN or infinity is refused by an InputError; those before it stay.
    """

    def __init__(self, path: str | os.PathLike[str], model: torch.nn.Module, optimizer: torch.optim.Optimizer,
                 scheduler: CyclicCosineLR):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.captured: list[int] = []
        """The steps, counted from 1, after which a snapshot was taken."""
        self.manifest = Manifest.of(model)
        if not self.manifest.parameters:
            raise InputError("the model has no parameters to record")
        self.store = Store.create(path, self.manifest.fields, capacity=scheduler.n_cycles,
                                  provenance={"manifest": self.manifest.to_dict()})

    def step(self) -> bool:
        """Call after optimizer.step() and before scheduler.step(); whether a snapshot was taken."""
        if not self.scheduler.at_cycle_end:
            return False
        step = self.scheduler.last_epoch + 1
        self.store.append(to_vectors(self.model, self.manifest), time=float(step))
        self.captured.append(step)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.store.close()
