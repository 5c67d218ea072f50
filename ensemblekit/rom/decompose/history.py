"""Coefficients of all snapshots in modes that turn while more snapshots come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.scaling import ldexp


class History:
    """Coefficients of all snapshots in modes that turn with every block.

    Turning all of them every time would cost the square of their number; so they lie in a few segments, each with the
    turn that is still to be applied, and segments of about the same length are joined (as the digits of a counter).
    """

    def __init__(self) -> None:
        self.segments: list[list[Any]] = []     # [rows (n, k), turn (k, k') or None, shift (k')]

    def transform(self, turn: np.ndarray, shift: np.ndarray) -> None:
        """From now on all are turned and shifted."""
        for segment in self.segments:
            if segment[1] is None:
                segment[1], segment[2] = turn, shift
            else:
                segment[1], segment[2] = segment[1] @ turn, segment[2] @ turn + shift

    def scale(self, power: int) -> None:
        """All times 2**power."""
        for segment in self.segments:
            segment[0] = ldexp(segment[0], power)
            segment[2] = None if segment[2] is None else ldexp(segment[2], power)

    def append(self, rows: np.ndarray) -> None:
        self.segments.append([rows, None, None])
        while len(self.segments) > 1 and len(self.segments[-1][0]) >= len(self.segments[-2][0]):
            last = self.segments.pop()
            self.segments[-1] = [np.concatenate([_applied(self.segments[-1]), _applied(last)]), None, None]

    def values(self) -> np.ndarray:
        return np.concatenate([_applied(segment) for segment in self.segments])

    def state(self) -> dict[str, np.ndarray]:
        return {f"{k}/{name}": value for k, segment in enumerate(self.segments)
                for name, value in zip(("rows", "turn", "shift"), segment, strict=True) if value is not None}

    @classmethod
    def restored(cls, state: Mapping[str, np.ndarray]) -> History:
        new = cls()
        for k in range(len({name.split("/")[0] for name in state})):
            new.segments.append([state.get(f"{k}/{name}") for name in ("rows", "turn", "shift")])
        return new

    def copy(self) -> History:
        new = History()
        new.segments = [list(segment) for segment in self.segments]
        return new


def _applied(segment: list[Any]) -> np.ndarray:
    rows, turn, shift = segment
    return rows if turn is None else rows @ turn + shift
