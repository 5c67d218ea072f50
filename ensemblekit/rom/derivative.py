"""Time derivatives of states by differences within a run."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.training import Run

Scheme = Literal["auto", "backward", "forward"] | int
ORDERS = (2, 4, 6)
RESOLVED = 1e-2
"""Differences of fourth and sixth order that agree so well resolve the derivative."""


def order_for(runs: tuple[Run, ...]) -> int:
    """The order of central differences that the shortest run allows: 6 from 9 snapshots on, 4 from 7, else 2."""
    shortest = min(len(run) for run in runs)
    return 6 if shortest >= 9 else 4 if shortest >= 7 else 2


def equations(run: Run, scheme: Scheme, period: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (n, r), inputs (n, m) and what the right-hand side is there (n, r): the next state, or the derivative.

    The ends of a run, where central differences do not reach, are left out.
    """
    x, u, t = run.states, run.inputs, run.times
    if period is not None:
        return x[:-1], u[:-1], x[1:]
    if scheme in ("backward", "forward"):
        slope = np.diff(x, axis=0) / np.diff(t)[:, None]
        rows = slice(1, None) if scheme == "backward" else slice(None, -1)
        return x[rows], u[rows], slope
    if scheme not in ORDERS:
        raise InputError(f'ddt is "auto", "backward", "forward" or the order of central differences, 2, 4 or 6; got {scheme!r}')
    assert isinstance(scheme, int)
    half = scheme // 2
    if len(x) < scheme + 1:
        return x[:0], u[:0], x[:0]
    return x[half:-half], u[half:-half], central(x, t, scheme)


def central(x: np.ndarray, t: np.ndarray, order: int) -> np.ndarray:
    """Derivatives (n - order, r) at the points that have order / 2 neighbours on both sides, at any distances."""
    windows = np.lib.stride_tricks.sliding_window_view(t, order + 1)
    unit = (windows[:, -1] - windows[:, 0])[:, None] / order
    at = (windows - windows[:, order // 2][:, None]) / unit
    # of each point by itself, so that it does not matter where a run is cut
    even = np.abs(np.diff(at, axis=1) - 1).max(axis=1, initial=0, keepdims=True) < 1e-2
    at = np.where(even, np.arange(order + 1.0) - order // 2, at)        # times of files are rounded
    powers = at[:, None, :] ** np.arange(order + 1)[None, :, None]
    wanted = np.zeros((len(at), order + 1, 1))
    wanted[:, 1] = 1
    weights = np.linalg.solve(powers, wanted)[:, :, 0] / unit
    parts = (weights[:, j, None] * x[j:len(x) - order + j] for j in range(order + 1))
    return sum(parts, start=np.zeros((len(x) - order, x.shape[1]), x.dtype))


def resolved(runs: tuple[Run, ...]) -> bool:
    """Whether the sampling tells the derivative: differences of fourth and sixth order agree to a percent."""
    apart = size = 0.0
    for run in runs:
        if len(run) < 9:
            return False
        fine = central(run.states, run.times, 6)
        apart += float((np.abs(fine - central(run.states, run.times, 4)[1:-1]) ** 2).sum())
        size += float((np.abs(fine) ** 2).sum())
    return apart <= RESOLVED**2 * size
