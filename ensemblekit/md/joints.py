"""Files of one run end to end: frames that a restart wrote twice count once, in a file and from file to file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ensemblekit.md.parts import Part, times_of
from ensemblekit.md.parts import reading as _reading
from ensemblekit.md.parts import unit_of as _unit_of
from ensemblekit.parts import warn_of_restart, written_once

MOST_TWINS = 64
"""Neighbours of one time that are compared."""
JOINT = 1e-3
"""Part of a time step by which two times may differ and still be one."""


def joined(parts: list[Part], edges: np.ndarray) -> tuple[list[Part], np.ndarray]:
    """Parts of one run with times that go on, and the frames that are kept at their joints.

    Where a part begins at or before the end of the one before, the frames from its first time on are taken from the later
    part: a run that was continued from a checkpoint wrote them twice. A part that begins where the one before began
    counts anew: it is moved behind it, without its first frame where that is the last one again.
    """
    kept = [edges[0] + frames_that_count(parts[0], int(edges[1] - edges[0]))]
    if len(parts) == 1:
        return parts, kept[0]
    times = [times_of(part) for part in parts]
    sequence = [parts[0]]
    for k in range(1, len(parts)):
        before, now = times[k - 1], times[k]
        name, unit = os.path.basename(parts[k].path), _unit_of(parts[k])
        step = step_of(before) or step_of(now) or 1.0
        rows, frames = kept[-1], edges[k] + frames_that_count(parts[k], int(edges[k + 1] - edges[k]))
        part = parts[k]
        if (now[0] <= before[0] + JOINT * step and len(before) > 1) or now[0] == before[0] == before[-1]:
            same = _same_frame(parts[k - 1], len(before) - 1, part)
            part = replace(part, shift=float(before[-1] + (0.0 if same else step) - now[0]))
            times[k] = now + part.shift
            frames = frames[1:] if same else frames
            if part.knows:
                warnings.warn(f"{name} begins at {now[0]:g}{unit} like the part before it: its {part.knows} are moved to go on "
                              f"from {before[-1]:g}{unit}. Independent runs are passed as replicas=[...]", stacklevel=5)
            elif same:
                warnings.warn(f"{name} begins with the last frame of the part before it, as a continued run writes it: it is "
                              "taken once", stacklevel=5)
        else:
            twice = before[rows - edges[k - 1]] >= now[0] - JOINT * step
            if twice.any():
                kept[-1] = rows[~twice]
                other = os.path.basename(parts[k - 1].path)
                warnings.warn(f"{int(twice.sum())} frames from {now[0]:g}{unit} on stand in {other} and again in {name}: those "
                              f"of {name} are taken", stacklevel=5)
        sequence.append(part)
        kept.append(frames)
    return sequence, np.concatenate(kept)


def frames_that_count(part: Part, n: int) -> np.ndarray:
    """The frames that count of the n of a file: where a run was continued into the same file, those written again later."""
    if not part.knows or part.reader.__name__ == "DCDReader":       # counted, or first and step: nothing stands twice
        return np.arange(n)
    times = times_of(part)
    kept = written_once(times)
    if kept is None:
        return np.arange(len(times))
    for k in np.flatnonzero((np.diff(times) == 0) & kept[:-1])[:MOST_TWINS]:
        one, other = (next(_read_any_alone(part, frame)) for frame in (int(k), int(k) + 1))
        kept[k] &= not np.array_equal(one, other)
    if not kept.all():
        warn_of_restart(times, kept, os.path.basename(part.path), what="frame", unit=_unit_of(part), stacklevel=7)
    return np.flatnonzero(kept)


def _same_frame(a: Part, last: int, b: Part) -> bool:
    one, other = (next(_read_any_alone(part, frame)) for part, frame in ((a, last), (b, 0)))
    return bool(np.array_equal(one, other))


def _read_any_alone(part: Part, frame: int) -> Iterator[np.ndarray]:
    with _reading(part.path), part.open() as reader:
        yield reader[frame].positions.copy()


def step_of(times: np.ndarray) -> float:
    return float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
