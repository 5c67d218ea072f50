"""Losses and rates of optimizer steps on their way to the store."""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.neural.history import CLOCK, LOSS, RATE
from ensemblekit.store.store import Store

ROWS = 512                  # steps held before they go to the store together


class StepHistory:
    """One row an optimizer step: its number, the loss (perhaps still on its device) and the rates."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, torch.Tensor | float | None, list[float]]] = []

    def add(self, step: int, loss: torch.Tensor | float | None, rates: list[float]) -> bool:
        """One more row; whether it is time to write them."""
        self.rows.append((step, loss, rates))
        return len(self.rows) >= ROWS

    def clear(self) -> None:
        """Forget what was not written."""
        self.rows = []

    def write(self, store: Store | None, lock: Lock) -> None:
        """Move all rows into a store; without one they are dropped, as in processes that do not write."""
        rows, self.rows = self.rows, []
        if not rows or store is None:
            return
        losses = np.full(len(rows), np.nan, np.float32)
        on_device = {k: loss for k, (_, loss, _) in enumerate(rows) if isinstance(loss, torch.Tensor)}
        if on_device:
            tensors = [loss if loss.ndim == 0 else loss.reshape(-1)[0] for loss in on_device.values()]
            if len({one.dtype for one in tensors}) > 1:
                tensors = [one.float() for one in tensors]
            losses[list(on_device)] = torch.stack(tensors).float().cpu().numpy()    # one wait for the device
        for k, (_, loss, _) in enumerate(rows):
            if loss is not None and k not in on_device:
                losses[k] = loss
        with lock:
            store.extend({LOSS: losses, RATE: np.array([rates for _, _, rates in rows], np.float64)},
                         steps=np.array([step for step, _, _ in rows]), clock=CLOCK)


def mean_loss(loss: torch.Tensor | ArrayLike) -> torch.Tensor | float:
    """One number a step, of losses of samples or devices their mean; not waited for."""
    if isinstance(loss, torch.Tensor):
        loss = loss.detach()
        return loss if loss.ndim == 0 else loss.float().mean()
    try:
        return float(np.asarray(loss).mean())
    except (TypeError, ValueError) as error:
        raise InputError(f"loss is a tensor or a number; got {type(loss).__name__}") from error
