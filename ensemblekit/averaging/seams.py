"""Where values jump from one end of a turn to the other, as angles do that were written in one branch. Merges in order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import copied, same_item
from ensemblekit.intake import as_array
from ensemblekit.source import Array, is_torch

BRANCHES = ((-180.0, 180.0), (0.0, 360.0), (-math.pi, math.pi), (0.0, 2 * math.pi))
"""In which angles are written."""
ROUNDED = 5e-4
"""How far beyond a branch, in turns, rounded values may lie."""
ZONE = 0.05
"""Turns from an end of the branch that count as at the end."""
SMOOTH = 0.125
"""Turns a series may move from one snapshot to the next, on the average, for a single jump to be telling."""
NO_DIRECTION = "the angles have no mean direction"
"""How the doubt about a circular mean of scattered angles begins."""
SEAM = "the values jump between"
"""How the doubt about a plain mean of angles begins."""
TELLING = 3
"""Jumps that tell by themselves."""


def turn_of(unit: str) -> float | None:
    """After how much an angle in this unit comes round: 360 for degrees; None where the unit is not that of an angle."""
    word = unit.strip().rstrip(".").lower()
    if word in ("deg", "degree", "degrees", "°"):
        return 360.0
    return 2 * math.pi if word in ("rad", "radian", "radians") else None


def branches_of(unit: str) -> tuple[tuple[float, float], ...]:
    """The branches that angles in this unit are written in; all of them where the unit is not known, else none."""
    turn = turn_of(unit)
    return tuple(b for b in BRANCHES if not unit.strip() or (turn is not None and abs(b[1] - b[0] - turn) < 1e-9))


def within(values: np.ndarray, branch: tuple[float, float]) -> bool:
    """Whether finite values lie in a branch, as far as they were rounded."""
    low, high = branch
    slack = ROUNDED * (high - low)
    return bool(values.min() >= low - slack and values.max() <= high + slack)


class Seams:
    """Extremes of every element, and its jumps between the ends of each of `branches`.

    Weights do not enter. The result is the branch (low, high) that at least one element fills and jumps across as a
    turning angle does, or None: three jumps, or one where the element else moves little. Values that are not finite
    are passed over.
    """

    def __init__(self, branches: tuple[tuple[float, float], ...] = BRANCHES) -> None:
        self.branches = branches
        self.n = 0
        self.item: tuple[int, ...] = ()
        self.parts: dict[str, np.ndarray] = {}

    def empty(self) -> Self:
        return type(self)(self.branches)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if not len(values):
            return
        if is_torch(values):
            values = values.detach().cpu().numpy()
        values = as_array(values, "values")
        if self.n:
            same_item(self.item, values, "Seams")
        self.item = tuple(values.shape[1:])
        flat = values.reshape(len(values), -1).astype(np.float64)
        with np.errstate(invalid="ignore"):
            low, high = np.fmin.reduce(flat), np.fmax.reduce(flat)
            steps = self._steps(flat)
        self._absorb(len(flat), {"low": low, "high": high, "first": flat[0], "last": flat[-1], **steps})

    def merge(self, later: Self) -> None:
        if later.n:
            self.item = later.item
            self._absorb(later.n, {name: copied(x) for name, x in later.parts.items()})

    def _steps(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """For each branch and element: jumps from end to end, and the way moved in turns with these taken back."""
        before, after = flat[:-1], flat[1:]
        jumps, moved = np.zeros((2, len(self.branches), flat.shape[1]))
        for k, (low, high) in enumerate(self.branches):
            turn = high - low
            edge = ZONE * turn
            over = (before < low + edge) & (after > high - edge) | (before > high - edge) & (after < low + edge)
            way = (after - before) / turn
            jumps[k] = over.sum(0)
            moved[k] = np.nansum(np.abs(way - np.rint(way)), axis=0)
        return {"jumps": jumps, "moved": moved}

    def _absorb(self, n: int, parts: dict[str, np.ndarray]) -> None:
        if self.n:
            earlier = self.parts
            joint = self._steps(np.stack([earlier["last"], parts["first"]]))
            parts = {"low": np.fmin(earlier["low"], parts["low"]), "high": np.fmax(earlier["high"], parts["high"]),
                     "first": earlier["first"], "last": parts["last"],
                     **{name: earlier[name] + parts[name] + joint[name] for name in ("jumps", "moved")}}
        self.parts, self.n = parts, self.n + n

    def result(self) -> tuple[float, float] | None:
        """The branch across whose ends an element jumps; None where none does."""
        if self.n < 2:
            return None
        for k, (low, high) in enumerate(self.branches):
            slack = ROUNDED * (high - low)
            within = (self.parts["low"] >= low - slack) & (self.parts["high"] <= high + slack)
            jumps, moved = self.parts["jumps"][k], self.parts["moved"][k] / (self.n - 1)
            if (within & ((jumps >= TELLING) | (jumps >= 1) & (moved < SMOOTH))).any():
                return low, high
        return None

    def state(self) -> dict[str, Array]:
        return {"n": np.array(self.n), "item": np.array(self.item, dtype=np.int64), **self.parts}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.item = int(state["n"]), tuple(int(k) for k in state["item"])
        new.parts = {name: np.array(x) for name, x in state.items() if name not in ("n", "item")}
        return new


def _spans(low: np.ndarray, high: np.ndarray, branch: tuple[float, float]) -> np.ndarray:
    """Whether elements of these extremes lie in a branch and come near both its ends."""
    turn = branch[1] - branch[0]
    edge, slack = ZONE * turn, ROUNDED * turn
    return ((low >= branch[0] - slack) & (low < branch[0] + edge) & (high > branch[1] - edge) & (high <= branch[1] + slack))


def seam_of(values: np.ndarray, unit: str = "") -> tuple[float, float] | None:
    """The branch across whose ends values (n, *item) in `unit` jump as angles do; None where they do not."""
    branches = branches_of(unit)
    if not branches or values.dtype.kind not in "iuf" or not len(values):
        return None
    with np.errstate(invalid="ignore"):
        low, high = np.fmin.reduce(values), np.fmax.reduce(values)
        branches = tuple(b for b in branches if np.any(_spans(low, high, b)))       # most series need no closer look
    if not branches:
        return None
    seams = Seams(branches)
    seams.update(values, 0)
    return seams.result()


def period_in_words(branch: tuple[float, float]) -> str:
    """As it is passed: 360, 2 * math.pi."""
    period = branch[1] - branch[0]
    return "2 * math.pi" if abs(period - 2 * math.pi) < 1e-9 else f"{period:g}"


def seam_in_words(branch: tuple[float, float], remedy: str) -> str:
    """The doubt about a plain mean of such values."""
    low, high = branch
    return (f"{SEAM} {low:g} and {high:g} as an angle does that comes round, and a plain mean says nothing of "
            f"its direction. {remedy}")
