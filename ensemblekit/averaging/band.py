"""Simultaneous bands of curves: intervals of all elements that hold together, from the scatter of parts of a run.

A multiplier bootstrap (Chernozhukov, Chetverikov & Kato, Ann. Stat. 41, 2786, 2013): the residuals of the parts, each times a
Gaussian number, are drawn as the error of the whole curve might have been, and the largest of their ratios to the standard
error says by how many standard errors all elements together can be off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ensemblekit.averaging.estimate import Bounds, Estimate, bounded_interval
from ensemblekit.averaging.estimate_units import quantile

Scale = Literal["", "linear", "log"]
"""Of a curve: none has no band; of a positive one, "log", interval and band are made of its logarithm."""

DRAWS = 2000
FEWEST_PARTS = 20
"""Independent parts below which a band is said to be too narrow, perhaps."""
COLUMNS = 1 << 12
"""Elements drawn at a time."""
FEWEST_BLOCKS = 4


def critical_value(pseudo: np.ndarray, weights: np.ndarray, joined: int, confidence: float) -> tuple[float, int]:
    """By how many standard errors the elements of a mean of parts are off at most, with this confidence; of how many blocks.

    Arguments:
        pseudo: (parts, *item) pseudo-values in the order of time, whose mean is the curve. Elements that are not finite, or
            the same in all parts, are left out.
        weights: (parts,) of the parts.
        joined: neighbouring parts that are taken together, as they are correlated.

    Returns NaN where no element varies.
    """
    flat = pseudo.reshape(len(pseudo), -1)
    share = (weights / weights.sum())[:, None]
    # columns are scaled one by one, so that squares of the smallest and the largest numbers are numbers too
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.abs(flat).max(axis=0, initial=0.0)
        kept = np.isfinite(largest) & (largest > 0)
        flat = flat[:, kept] / largest[kept]
        residual = len(flat) * share * (flat - (share * flat).sum(axis=0))
    joined = max(1, min(joined, len(residual) // FEWEST_BLOCKS))
    edges = np.arange(0, len(residual) // joined * joined, joined)
    blocks = np.add.reduceat(residual[:edges[-1] + joined], edges, axis=0)
    blocks = blocks - blocks.mean(axis=0)
    size = np.sqrt((blocks**2).sum(axis=0))
    moving = size > 1e-13 * len(residual)
    if not moving.any():
        return float("nan"), len(blocks)
    ratios = blocks[:, moving] / size[moving]
    draws = np.random.default_rng(18).standard_normal((DRAWS, len(blocks)))
    draws -= draws.mean(axis=1, keepdims=True)
    largest = np.zeros(DRAWS)
    for a in range(0, ratios.shape[1], COLUMNS):
        np.maximum(largest, np.abs(draws @ ratios[:, a:a + COLUMNS]).max(axis=1), out=largest)
    return float(np.quantile(largest, confidence)), len(blocks)


def with_band(answer: Estimate, critical: float, scale: Scale, bounds: Bounds | None = None) -> Estimate:
    """The estimate with its band; on the scale of logarithms with that interval too.

    Arguments:
        critical: of :func:`critical_value`, for known errors; Student's takes its place.
        bounds: what the curve cannot leave; a logarithm knows of its own.
    """
    if not scale or not np.isfinite(critical):
        return answer
    mean, stderr, dof = (np.asarray(x, np.float64) for x in (answer.mean, answer.stderr, answer.dof))
    wide = student_of(critical, dof) * stderr
    if scale == "log":
        usual = quantile(answer.confidence, dof) * stderr
        return replace(answer, interval=_by_logarithm(mean, usual), band=_by_logarithm(mean, wide), critical_value=critical)
    band = mean - wide, mean + wide
    return replace(answer, band=band if bounds is None else bounded_interval(mean, band, bounds), critical_value=critical)


def noting_few(answer: Estimate, blocks: int) -> Estimate:
    """The estimate, with a word on its band where that rests on few parts."""
    if answer.band is None or blocks >= FEWEST_PARTS:
        return answer
    return answer.noting(f"the band of the whole curve rests on {blocks} independent parts of the run: with fewer than "
                         f"{FEWEST_PARTS} it may be too narrow")


def student_of(critical: float, dof: np.ndarray) -> np.ndarray:
    """What Student's t exceeds as often as a Gaussian exceeds the critical value."""
    from scipy.special import ndtr, stdtrit

    tail = ndtr(-critical)
    finite = np.where(np.isfinite(dof), dof, 1.0)
    return np.where(np.isinf(dof), critical, np.where(np.isfinite(dof), -stdtrit(finite, tail), np.nan))


def _by_logarithm(mean: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mean exp(± half / mean); where the mean is not above 0 there is no logarithm, and its half width stands above it."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        factor = np.exp(half / np.where(mean > 0, mean, np.nan))
    return np.where(mean > 0, mean / factor, np.minimum(mean, 0.0)), np.where(mean > 0, mean * factor, mean + half)


__all__ = ["Scale", "critical_value", "noting_few", "student_of", "with_band"]
