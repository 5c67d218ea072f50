"""The record of a clean close: the snapshots of each clock and the files a store had at least."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from ensemblekit.store.schema import FORMAT


def closed_record(counts: Sequence[int], files: int | None) -> np.ndarray:
    """Snapshots of each clock at a clean close, the files that the store had at least, and the checksum of these numbers.

    Arguments:
        files: None in the record of format 1, which does not have them.
    """
    record = np.array([*counts, *([] if files is None else [files]), 0], "<u8")
    record[-1] = xxhash.xxh3_64_intdigest(record[:-1].tobytes()) | 1    # never zero, so empty stores close too
    return record


def open_record(clocks: int, format: int = FORMAT) -> np.ndarray:
    """All zero: a store is open for writing, or its writer died."""
    return np.zeros(clocks + (1 if format == 1 else 2), "<u8")


def files_in(record: np.ndarray, clocks: int) -> int:
    """The files that a store had at least, by a record of its last clean close; 0 where it does not say."""
    if len(record) != clocks + 2 or not np.array_equal(record, closed_record(record[:-2].tolist(), int(record[-2]))):
        return 0
    return int(record[-2])
