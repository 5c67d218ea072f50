"""Where the rows of a clock lie in a file: runs of whole chunks, given to it as it grows, listed in a table of our own.

The columns of a clock stand in two groups that get room for the same rows at once: scalars, step, time, weight and
checksums; and the arrays. A run is the room for consecutive rows of one group, its columns one after the other.

The table is an array of ENTRY, in no order, free where group is 0. The first entry is of another kind: `rows` is the most
rows that were ever committed, `address` the byte behind what the file holds beside rows and nodes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ensemblekit.errors import StoreDamagedError
from ensemblekit.store.schema import Column, Schema

ENTRIES = 512
"""Runs that a table has room for; a file is full when they are all taken."""
NODES = 1 << 32
"""In the place of a group: not a run, but room for nodes of chunk indexes; `first` of its `rows` bytes are taken."""
ENTRY = np.dtype([("group", "<u8"), ("first", "<u8"), ("rows", "<u8"), ("pitch", "<u8"), ("address", "<u8")])
ALIGNMENT = 64
PAGE = 4096
LARGE = 1 << 20
"""Bytes from which a run begins in the middle of a page of memory."""


class Run(NamedTuple):
    """Room for consecutive rows of a group."""

    first: int
    """Number in the file of the first row."""
    rows: int
    pitch: int
    """Rows from the beginning of one column to that of the next (less alignment); not below `rows`."""
    address: int


class Group:
    """The columns of a clock that get their room together, all with the same number of rows in a chunk.

    Arguments:
        columns: as in ``Schema.columns``.
        numbers: which of them.
    """

    def __init__(self, columns: Sequence[Column], numbers: Sequence[int]):
        self.numbers = tuple(numbers)
        self.columns = [columns[k] for k in numbers]
        self.chunk = self.columns[0].chunk[0] if numbers else 1
        """Rows of a chunk."""
        self.strides = [_stride(c) for c in self.columns]
        self.row = sum(self.strides)

    def starts(self, run: Run) -> list[int]:
        """The address of each column's first row in a run."""
        starts, at = [], run.address
        for stride in self.strides:
            starts.append(at)
            at = aligned(at + run.pitch * stride)
        return starts

    def end(self, run: Run) -> int:
        """The byte behind the last row of a run."""
        return self.starts(run)[-1] + run.rows * self.strides[-1]

    def grown(self, run: Run, end: int, rows: int) -> Run | None:
        """The run with `rows` more where it ends a file that ends at `end`; None where it cannot grow in its place."""
        if self.end(run) != end or (len(self.columns) > 1 and run.rows + rows > run.pitch):
            return None
        return run._replace(rows=run.rows + rows, pitch=max(run.pitch, run.rows + rows))


def _stride(column: Column) -> int:
    tiles = math.prod(-(-n // c) for n, c in zip(column.shape, column.chunk[1:], strict=True))
    return tiles * math.prod(column.chunk[1:]) * column.dtype.itemsize


def aligned(at: int) -> int:
    return -(-at // ALIGNMENT) * ALIGNMENT


def begin_of(at: int, nbytes: int) -> int:
    """Where a run of `nbytes` begins in a file that ends at `at`.

    A large one in the middle of a page: arrays of numpy begin with one, and a processor that reads and writes at addresses
    of nearly the same place in a page takes each read for one that has to wait for the write, which makes copies three times
    as slow ("4K aliasing": Intel 64 and IA-32 Architectures Optimization Reference Manual, section on memory).
    """
    return aligned(at) if nbytes < LARGE else at + (PAGE // 2 - at) % PAGE


def groups_of(schema: Schema, clock: str) -> list[Group]:
    """The groups of a clock that have columns."""
    columns = schema.columns(clock, (schema.capacity or {})[clock])
    return [Group(columns, numbers) for numbers in schema.groups(clock) if numbers]


def read_table(fd: int, at: int) -> np.ndarray:
    """The table of a clock that begins at byte `at` of a file, as ENTRY."""
    table = np.frombuffer(os.pread(fd, (ENTRIES + 1) * ENTRY.itemsize, at), ENTRY)
    if len(table) < ENTRIES + 1:
        raise StoreDamagedError("the table of places is cut off")
    return table


def runs_in(table: np.ndarray, groups: int) -> list[list[Run]]:
    """The runs of each group, in the order of their rows."""
    listed = table[1:][(table["group"][1:] > 0) & (table["group"][1:] <= groups)]
    runs: list[list[Run]] = [[] for _ in range(groups)]
    for number, *run in listed[np.argsort(listed["first"], kind="stable")].tolist():
        runs[number - 1].append(Run(*run))
    return runs


def stretches(group: Group, runs: Sequence[Run], k: int, n: int) -> list[tuple[int, int, int]]:
    """The first n rows of column k of a group: (first row, row behind the last, address of row 0 if it were there)."""
    spans: list[tuple[int, int, int]] = []
    stride, covered = group.strides[k], 0
    for run in runs:
        if covered >= n:
            break
        if run.first != covered or run.rows < 1 or run.rows > run.pitch or run.pitch > 1 << 48 or run.address > 1 << 60:
            break
        base = group.starts(run)[k] - run.first * stride
        stop = min(n, run.first + run.rows)
        if spans and spans[-1][2] == base:
            spans[-1] = (spans[-1][0], stop, base)
        else:
            spans.append((run.first, stop, base))
        covered = run.first + run.rows
    if covered < n:
        raise StoreDamagedError(f"the table of places has room for {covered} of {n} snapshots")
    return spans
