"""Runs that hold the very numbers of another one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash


def repeated(runs: Sequence[tuple[np.ndarray, ...]]) -> list[tuple[int, int]]:
    """Pairs (first, later) of runs whose arrays are the same to the last bit; runs without arrays are like no other."""
    first: dict[tuple[object, ...], int] = {}
    pairs = []
    for k, arrays in enumerate(runs):
        key = tuple((a.shape, a.dtype.str, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(a).data)) for a in arrays)
        if key and first.setdefault(key, k) != k:
            pairs.append((first[key], k))
    return pairs
