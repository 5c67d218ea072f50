"""Checksums of snapshots: xxh3_64 of the bytes of a row as they stand in the file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

_digest = xxhash.xxh3_64_intdigest


def digest_of(values: np.ndarray) -> int:
    """The checksum of an array's bytes."""
    return _digest(values.tobytes())


def checksums(arrays: Sequence[np.ndarray], meta: np.ndarray, n: int) -> np.ndarray:
    """(n, arrays + 1) uint64: xxh3_64 of every row of every array of values, and of its (step, time, weight)."""
    if n == 1:
        return np.array([[_digest(data.data) for data in (*arrays, meta)]], "<u8")
    sums = np.empty((n, len(arrays) + 1), "<u8")
    for k, data in enumerate((*arrays, meta)):
        width = data.nbytes // n
        view = data.data.cast("B") if data.nbytes else memoryview(b"")
        sums[:, k] = [_digest(view[i:i + width]) for i in range(0, n * width, width)]
    return sums
