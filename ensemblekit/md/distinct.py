"""Whether replicas are runs of their own: frames that two of them share would count twice, and errors come out too small."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.trajectory import TrajectorySource
from ensemblekit.source import SnapshotSource
from ensemblekit.store.store import Store
from ensemblekit.store.stored import StoredSource

LOOK = 64 << 10
"""Bytes that are compared at the start, in the middle and at the end of files of one size."""


class Frames(NamedTuple):
    """Frames of one file that a replica has."""

    run: int
    path: str
    rows: np.ndarray
    """Their numbers in the file."""


def check_distinct(runs: Sequence[SnapshotSource]) -> None:
    """Refuse replicas of which two have frames of the same file, or of a file and its copy, naming both.

    Copies are files of one size with the same bytes at the start, in the middle and at the end.
    """
    held: dict[int, list[Frames]] = {}
    for run, source in enumerate(runs):
        for frames in _frames(run, source):
            if not os.path.isfile(frames.path):
                continue
            size = os.path.getsize(frames.path)
            for other in held.setdefault(size, []):
                if other.run != run and _same(other.path, frames.path) and len(np.intersect1d(other.rows, frames.rows)):
                    _refuse(other, frames)
            held[size].append(frames)


def _frames(run: int, source: SnapshotSource) -> Iterator[Frames]:
    if isinstance(source, TrajectorySource):
        for file, begin, end in zip(source.parts, source.edges[:-1], source.edges[1:], strict=True):
            rows = source.rows[(source.rows >= begin) & (source.rows < end)] - begin
            yield Frames(run, file.path, rows)
    elif isinstance(source, Store):
        yield Frames(run, source.segments[0], np.arange(len(source)))
    elif isinstance(source, StoredSource) and source.table.parts:
        yield Frames(run, source.table.parts[0].path, np.arange(source.start, source.stop, source.step))


def _same(a: str, b: str) -> bool:
    """Whether two files of one size are one, or hold the same as far as a look at them tells."""
    if os.path.samefile(a, b):
        return True
    size = os.path.getsize(a)
    with open(a, "rb") as one, open(b, "rb") as other:
        for place in (0, size // 2, max(0, size - LOOK)):
            one.seek(place)
            other.seek(place)
            if one.read(LOOK) != other.read(LOOK):
                return False
    return size > 0


def _refuse(a: Frames, b: Frames) -> None:
    names = os.path.basename(a.path), os.path.basename(b.path)
    if os.path.samefile(a.path, b.path):
        what = f"are both {names[0]}" if a.path == b.path else f"are one file by two names, {a.path} and {b.path}"
    else:
        what = f"hold the same: {names[1]} is a copy of {names[0]}" + (f" ({b.path})" if names[0] == names[1] else "")
    raise InputError(f"replicas {a.run} and {b.run} {what}. Replicas are independent runs, and frames that count twice make "
                     "errors too small: give every run once")
