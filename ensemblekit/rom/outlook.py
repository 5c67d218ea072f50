"""What a model does beyond its training that the training gives no reason for: dying out, or growing."""

from __future__ import annotations

import numpy as np

LEAST = 16
"""Snapshots of a run below which nothing is said."""
ALIKE = 0.1
"""Fluctuations of two quarters within this share are steady."""
FACTOR = 2.0
"""What the fluctuation changes by, before it is worth a word."""


def outlook(training: np.ndarray, beyond: np.ndarray) -> str:
    """A warning in words, or nothing, from the states of a run (n, r) and of the model after it (m, r).

    The fluctuation in the last quarter of the training, about its own mean, is set beside that of as many states at the end of
    what the model goes on to. A training that does not die down is to be followed by as much; one that is steady, by no more.
    """
    quarter = len(training) // 4
    if len(training) < LEAST or len(beyond) < quarter:
        return ""
    before, last, end = (_fluctuation(x) for x in (training[-2 * quarter:-quarter], training[-quarter:], beyond[-quarter:]))
    if not last > 1e-12 * float(np.abs(training).max(initial=0)):
        return ""
    dies = end < last / FACTOR and last > (1 - ALIKE) * before
    grows = end > FACTOR * last and abs(last - before) < ALIKE * before
    if not dies and not grows:
        return ""
    word, share = "DIES OUT" if dies else "GROWS", 100 * end / last
    return f"THE MODEL {word} beyond the training: its fluctuation becomes {share:.3g} % of that at the end of the training"


def _fluctuation(states: np.ndarray) -> float:
    return float(np.sqrt((np.abs(states - states.mean(axis=0)) ** 2).sum(axis=1).mean()))
