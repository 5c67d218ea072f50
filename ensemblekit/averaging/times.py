"""Times of snapshots as steps and spans."""

from __future__ import annotations

import numpy as np


def spacing(times: np.ndarray | None) -> float:
    """Mean time between snapshots; 1 where they are only counted."""
    if times is None or len(times) < 2 or times[-1] == times[0]:
        return 1.0
    return float((times[-1] - times[0]) / (len(times) - 1))


def time_at(times: np.ndarray | None, start: int) -> float:
    return float(start) if times is None else float(times[start] - times[0])
