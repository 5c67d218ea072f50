"""What a training run went through, read back from its store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.neural.resume import Sidecar
from ensemblekit.results import Result
from ensemblekit.store.opening import open_store

CLOCK = "steps"
LOSS, RATE = "loss", "learning_rate"


@dataclass(frozen=True, slots=True, eq=False)
class History(Result):
    """Loss and learning rate of every optimizer step, and what was logged beside."""

    FIGURE = "neural.training"

    step: np.ndarray
    """(n,) int64: optimizer steps, counted from 1."""
    loss: np.ndarray
    """(n,) float32: training loss of the step's batch; NaN where none was given to `Recorder.step`."""
    learning_rate: np.ndarray
    """(n, groups) float64: the rates the step was made with."""
    snapshot_steps: np.ndarray
    """(M,) int64: the steps after which snapshots were taken."""
    logged: Mapping[str, np.ndarray]
    """What `Recorder.log` was given (validation scores): name -> (k,), with the entries "step" and "epoch"; NaN where
    an entry lacks the name."""

    def __repr__(self) -> str:
        said = [f"{len(self.step)} steps", snapshots_said(self.snapshot_steps)]
        known = self.loss[np.isfinite(self.loss)]
        if len(known):
            said.append(f"loss {known[0]:.4g} to {known[-1]:.4g}")
        if len(self.learning_rate):
            said.append(f"learning rate {self.learning_rate.min():.3g} to {self.learning_rate.max():.3g}")
        logged = [name for name in self.logged if name not in ("step", "epoch")]
        if logged:
            said.append(f"logged: {', '.join(logged)}")
        return f"History({'; '.join(said)})"


def snapshots_said(captured: Sequence[int] | np.ndarray, most: int = 8) -> str:
    """How many there are and at which steps, in one line."""
    steps = [str(int(k)) for k in captured]
    if not steps:
        return "no snapshots"
    if len(steps) > most:
        steps = [*steps[:most - 2], "...", steps[-1]]
    many = "s" if len(captured) > 1 else ""
    return f"{len(captured)} snapshot{many} at step{many} {', '.join(steps)}"


def history(store: str | os.PathLike[str] | Any) -> History:
    """The history of the run in a store (a path, or an open store). Empty arrays where none was kept."""
    one = open_store(store) if isinstance(store, str | os.PathLike) else store
    captured = np.rint(one["parameters"].times).astype(np.int64) if "parameters" in one.all_fields and len(one) else (
        np.zeros(0, np.int64))
    if LOSS in one.all_fields and len(one[LOSS]):
        loss, rates, step = one[LOSS][:], one[RATE][:], one[LOSS].steps
    else:
        loss, rates, step = np.zeros(0, np.float32), np.zeros((0, 1)), np.zeros(0, np.int64)
    entries = Sidecar(os.fspath(one.path)).logged()
    names = {name: None for entry in entries for name in entry}
    logged = {name: np.array([entry.get(name, np.nan) for entry in entries], np.float64) for name in names}
    return History(step, loss, rates, captured, logged)
