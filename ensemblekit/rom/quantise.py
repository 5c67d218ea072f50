"""Whole numbers for modes and coefficients: how coarse they may be, and how they are laid down so that deflate bites."""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import numpy as np

TILE = 1 << 14
"""Numbers in a tile of the item, at most."""
SAMPLE = 1 << 16


class Share(NamedTuple):
    """How an error is spread: so many modes, and one step for all rows of modes and coefficients."""

    k: int
    noise: float
    """Energy of the rounding of each row, the mean's included."""
    bits: float
    """What all of it is expected to take."""


def water_fill(squared: np.ndarray, total: float, allowed: float, mean: float, size: int, n: int) -> Share:
    """Share the error allowed between modes left out and rounding (reverse water filling: Cover and Thomas, 10.3).

    Arguments:
        squared: (k,) energies of the modes at hand, falling.
        total: energy of all, those not at hand included.
        allowed: energy of the error.
        mean: energy of the mean in all snapshots.
        size, n: numbers in a mode, and in a column of coefficients.
    """
    left_out = np.maximum(total - np.append(0.0, np.cumsum(squared)), 0.0)
    best: Share | None = None
    for k in range(len(squared) + 1):
        room = allowed - left_out[k]
        if room <= 0:
            continue
        noise = room / (k + 1)
        bits = 0.5 * (size + n) * float(np.log2(1 + squared[:k] / noise).sum())
        bits += 0.5 * size * math.log2(1 + mean / noise) + 600 * k      # a mode's own bookkeeping
        if best is None or bits < best.bits:
            best = Share(k, noise, bits)
    if best is None:        # not even all modes at hand reach it: a little rounding on top of what they leave
        k = len(squared)
        noise = 0.05 * max(allowed, 1e-300) / (k + 1)
        best = Share(k, noise, 0.5 * (size + n) * float(np.log2(1 + squared / noise).sum()))
    return best


def zigzag(q: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, ... as 0, 1, 2, 3, ...: small numbers of either sign have empty upper bytes."""
    q = q.astype(np.int64)
    return ((q << 1) ^ (q >> 63)).astype(np.uint64)


def unzigzag(z: np.ndarray) -> np.ndarray:
    """The inverse, int64."""
    z = z.astype(np.int64)
    return (z >> 1) ^ -(z & 1)


def narrowest(largest: int) -> np.dtype:
    """The smallest unsigned type that holds a number."""
    return np.dtype(next(t for t in ("u1", "u2", "u4", "u8") if largest <= np.iinfo(t).max))


def tile_of(item: tuple[int, ...]) -> tuple[int, ...]:
    """A tile of at most 16384 numbers, as much like a cube as the item allows; a last axis of 2 or 3 stays whole."""
    tile = list(item)
    while math.prod(tile) > TILE:
        widest = max(range(len(tile)), key=lambda a: tile[a])
        tile[widest] = -(-tile[widest] // 2)
    return tuple(tile)


def tiles(item: tuple[int, ...], tile: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The tiles of an item, as slices."""
    edges = [[slice(a, min(a + width, length)) for a in range(0, length, width)]
             for length, width in zip(item, tile, strict=True)]
    return list(product(*edges))


def differenced(q: np.ndarray, axes: int) -> np.ndarray:
    """Differences of neighbours along the axes of the item whose bits are set; q: (rows, *tile)."""
    for axis in range(q.ndim - 1):
        if axes >> axis & 1:
            q = np.diff(q, axis=axis + 1, prepend=0)
    return q


def summed(q: np.ndarray, axes: int) -> np.ndarray:
    """The inverse of :func:`differenced`."""
    for axis in range(q.ndim - 1):
        if axes >> axis & 1:
            q = np.cumsum(q, axis=axis + 1)
    return q


def best_axes(row: np.ndarray, tile: tuple[int, ...]) -> int:
    """Along which axes of an item to take differences so that the numbers become smallest, as bits."""
    part = row[tuple(slice(0, width) for width in tile)]
    item = part.shape
    grid = [axis for axis in range(len(item)) if item[axis] > 3]
    candidates = [0, *(1 << axis for axis in grid)]
    if len(grid) > 1:
        candidates.append(sum(1 << axis for axis in grid))
        candidates += [(1 << a) | (1 << b) for k, a in enumerate(grid) for b in grid[k + 1:] if len(grid) > 2]
    part = part[None]
    costs = [float(np.log2(1 + np.abs(differenced(part, axes))).sum()) for axes in candidates]
    return candidates[int(np.argmin(costs))]


def shuffled(values: np.ndarray) -> bytes:
    """All first bytes, then all second ones, ...: HDF5's shuffle filter."""
    if values.dtype.itemsize == 1:
        return values.tobytes()
    raw = np.frombuffer(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes(), np.uint8)
    return raw.reshape(-1, values.dtype.itemsize).T.tobytes()
