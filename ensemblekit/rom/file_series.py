"""Files that are one run: in order of time, on one clock, each snapshot once."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence

import numpy as np

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.parts import Order, order_of, warn_of_restart, written_once
from ensemblekit.rom.file_source import FileSource, Part
from ensemblekit.rom.readers.clock import on_one_clock
from ensemblekit.rom.readers.reader import Reader, all_timed, known_times, numbers_in_names

MOST_TWINS = 64
"""Neighbours of one time that are compared."""
SLACK = 1e-9
"""Of a time range, relative: 0.3 in a file's name and 0.1 * 3 are the same instant."""
NEK = re.compile(r"\.f\d{5,}\Z")
"""How the name of a field file of Nek5000 ends."""


def file_series(readers: list[Reader], paths: Sequence[str], order: Order, by_hand: bool, timed: bool) -> FileSource:
    """The snapshots of readers that are one run; `paths` as they were given, by hand where they were listed.

    Raises SnapshotFileError where they differ in their mesh, InputError where their times cannot be put in order.
    """
    first = readers[0]
    names = [name for name in first.fields if all(name in r.fields for r in readers)]
    if not names:
        raise InputError(f"the files have no field in common: {first.path} has {', '.join(first.fields)}")
    for reader in readers[1:]:
        for name in names:
            if reader.fields[name].shape != first.fields[name].shape:
                raise SnapshotFileError(reader.path, f"field {name!r} has shape {reader.fields[name].shape}; in {first.path} "
                                                     f"it has {first.fields[name].shape}: they are on different meshes")
        mesh, other = first.mesh(), reader.mesh()
        if mesh is not None and other is not None:
            difference = mesh.unlike(other)
            if difference is not None:
                raise SnapshotFileError(reader.path, f"has another mesh: {difference}. Snapshots share one mesh; map them to "
                                                     "one first")
    n = sum(reader.n for reader in readers)
    if n == 0:
        raise SnapshotFileError(first.path, "holds no snapshots")
    clocks: list[np.ndarray | None] = [None] * len(readers)
    if timed:
        # the files of one reader are on its clock already
        clocks = on_one_clock(readers) if len(readers) > 1 else [first.times]
        for k, clock in enumerate(clocks):      # a loop, as a comprehension is a level of the stack of its own, or not
            clocks[k] = None if clock is None else known_times(np.asarray(clock, np.float64), readers[k].path, stacklevel=5)
    parts, times = _in_order(readers, clocks, paths, order, by_hand)
    if times is None and sum(len(part.rows) for part in parts) == len(paths) and (timed or len(paths) == 1):
        listed = [part.reader.path for part in parts] if len(readers) > 1 else paths
        times = numbers_in_names([os.path.splitext(p)[0] if not NEK.search(p) else p for p in listed])
    if times is not None and len(times) > 1 and (times == times[0]).all():
        if times[0] != 0:
            warnings.warn(f"all {len(times)} snapshots have the time {times[0]:g}: they are counted instead. Say the times "
                          "with times=", stacklevel=4)
        times = None
    return FileSource(tuple(parts), tuple(names), times, first.time_unit if times is not None else "")


def _in_order(readers: list[Reader], clocks: Sequence[np.ndarray | None], paths: Sequence[str], order: Order,
              by_hand: bool) -> tuple[list[Part], np.ndarray | None]:
    """The snapshots of one run in order of time, each once, and their times where all files know them."""
    known = [clock for clock in clocks if clock is not None]
    timed = all_timed([clock is not None for clock in clocks], [reader.path for reader in readers], 6)
    several = len(readers) == 1 and readers[0].n == len(paths) > 1     # one reader of many files, a snapshot each
    parts = [Part(readers[0], range(k, k + 1)) for k in range(len(paths))] if several else [
        Part(reader, range(reader.n)) for reader in readers]
    clock = list(known[0][:, None]) if several and timed else known
    starts = [float(part[0]) if len(part) else None for part in clock] if timed else None
    if len(parts) == len(paths):
        listed = order_of(paths, starts, order=order, tell=by_hand, stacklevel=6)
        parts, clock = [parts[k] for k in listed], [clock[k] for k in listed] if timed else []
    if not timed:
        return _merged(parts), None
    times = np.concatenate(clock)
    slack = SLACK * float(np.abs(times).max(initial=0.0))
    back = np.flatnonzero(np.diff(times) < -slack)
    if not (np.diff(times) <= slack).any() and len(parts) == 1:
        return parts, times
    kept = written_once(times, slack)
    edges = np.concatenate([[0], np.cumsum([len(part.rows) for part in parts])])
    if kept is None:
        k = int(back[-1])
        if order == "given" or len(parts) == 1:
            warnings.warn(f"times run backwards, from {times[k]:g} to {times[k + 1]:g}, in "
                          f"{os.path.basename(parts[0].reader.path)}: the {len(times)} snapshots are counted instead. "
                          "Independent runs are replicas, a file each", stacklevel=5)
            return _merged(parts), None
        raise InputError(f"times run backwards, from {times[k]:g} to {times[k + 1]:g}, from one file to the next. List the "
                         "files in the order of time; independent runs are replicas, ek.ReplicaSet.of([rom.read(a), "
                         "rom.read(b)])")
    for edge in edges[1:-1]:        # a run that was continued writes the state that it starts from again
        if 0 < edge < len(times) and abs(times[edge] - times[edge - 1]) <= slack and times[0] < times[edge]:
            kept[edge - 1] &= several
    if times[0] != times[-1]:
        _leave_out_copies(kept, parts, times, slack)
    if not len(back) and kept.all():
        return _merged(parts), times
    if order == "given" and len(back):
        warnings.warn(f"in the order given times run backwards, from {times[back[0]]:g} to {times[back[0] + 1]:g}: snapshots "
                      "are counted instead", stacklevel=5)
        return _merged(parts), None
    name = os.path.basename(parts[0].reader.path) + (" and the files after it" if len(parts) > 1 else "")
    warn_of_restart(times, kept, name, stacklevel=6)
    chosen_parts = []
    for part, start in zip(parts, edges, strict=False):
        rows = np.flatnonzero(kept[start:start + len(part.rows)])
        for stretch in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            if len(stretch):
                chosen_parts.append(Part(part.reader, part.rows[int(stretch[0]):int(stretch[-1]) + 1]))
    return _merged(chosen_parts), times[kept]


def _leave_out_copies(kept: np.ndarray, parts: Sequence[Part], times: np.ndarray, slack: float) -> None:
    """Of snapshots of one time, beside each other in one file, leave out those that are the next one again."""
    edges = np.cumsum([0, *(len(part.rows) for part in parts)])
    for k in np.flatnonzero((np.abs(np.diff(times)) <= slack) & kept[:-1])[:MOST_TWINS]:
        part, at = parts[int(np.searchsorted(edges, k, "right")) - 1], int(k - edges[np.searchsorted(edges, k, "right") - 1])
        if at + 1 < len(part.rows):
            values = part.reader.read(list(part.reader.fields), part.rows[at:at + 2])
            kept[k] &= not all(np.array_equal(x[0], x[1], equal_nan=x.dtype.kind in "fc") for x in values.values())


def _merged(parts: list[Part]) -> list[Part]:
    """Parts that go on where the one before ended, as one."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last is not None and last.reader is part.reader and last.rows.stop == part.rows.start and (
                last.rows.step == part.rows.step == 1):
            merged[-1] = Part(part.reader, range(last.rows.start, part.rows.stop))
        else:
            merged.append(part)
    return merged
