"""Where a run that went on continues a store of its frames: by times, and by comparing frames that both have."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemblekit.errors import StoreError
from ensemblekit.md.topology import warnings_held
from ensemblekit.md.trajectory import TrajectorySource
from ensemblekit.store.store import Store

CLOSE = 1e-3
"""Part of the time between frames by which times of one frame may differ."""


def frames_held(store: Store, source: TrajectorySource, notes: Mapping[str, Any]) -> int:
    """How many frames of a source, from its first on, the store has already.

    Arguments:
        store: made by ``md.ingest``.
        source: the run as it is now, or the part of it that is new.
        notes: what it was made with, as the store notes it.

    Raises StoreError where they are not one run: other atoms, fields or choices, frames that are others at the same time.
    """
    name = os.path.basename(store.path)
    recorded = dict(store.provenance).get("ingest")
    if recorded is None:
        raise StoreError(f"{name} was not made by md.ingest, so it cannot be told whether this run continues it")
    kept = {**recorded, "whole": dict(store.provenance).get("whole")}
    for key, now in {**notes, "whole": source.whole}.items():
        if kept.get(key) != now:
            raise StoreError(f"{name} was made with {key}={kept.get(key)!r}, now it is {key}={now!r}: append with what it was "
                             "made with, or choose another name")
    _check_atoms(store, source, name)
    held, times = store.clock().stamps, np.asarray(source.stamps)
    if not len(store):
        return 0
    if (np.diff(held) < 0).any() or (np.diff(times) <= 0).any():
        raise StoreError(f"frames are appended to {name} by their times, and these do not rise throughout")
    step = float(np.median(np.diff(times if len(times) > 1 else held))) if len(times) + len(held) > 2 else 0.0
    slack = CLOSE * step + 2.0**-40 * float(np.abs(times).max(initial=0.0))
    known = int(np.searchsorted(times, held[-1] + slack, "right"))
    if notes["transformed"] and (not known or times[0] > held[0] + slack):
        raise StoreError(f"{name} was made with transformations, which may look at frames before: append with all parts of the "
                         "run, from its first frame on")
    if known:
        _compare(store, source, held, times[:known], slack, name)
    elif step > 0:
        before = float(np.median(np.diff(held))) if len(held) > 1 else step
        if abs(times[0] - held[-1] - step) > 0.5 * step or abs(before - step) > 0.01 * step:
            warnings.warn(f"{name} ends at {held[-1]:g} ps, with frames {before:g} ps apart; what is appended begins at "
                          f"{times[0]:g} ps, with frames {step:g} ps apart", stacklevel=4)
    return known


def _check_atoms(store: Store, source: TrajectorySource, name: str) -> None:
    from ensemblekit.md.stored import stored_topology

    stored, other = stored_topology(store), source.topology
    if len(stored) != len(other) or (stored.names != other.names).any() or (stored.resids != other.resids).any():
        raise StoreError(f"{name} holds {len(stored)} atoms and this run has {len(other)}, or they are others by name or "
                         "residue: append what was made with the same topology and selection")
    if set(store.fields) != set(source.fields):
        raise StoreError(f"{name} holds {', '.join(store.fields)} of each frame, this run has {', '.join(source.fields)}: one "
                         "store has the same fields throughout")


def _compare(store: Store, source: TrajectorySource, held: np.ndarray, times: np.ndarray, slack: float, name: str) -> None:
    """Refuse unless frames of the source at these times are those of the store."""
    places = np.clip(np.searchsorted(held, times - slack), 0, len(held) - 1)
    off = np.abs(held[places] - times) > slack
    if off.any():
        k = int(np.argmax(off))
        raise StoreError(f"{name} has no frame at {times[k]:g} ps, where this run has one, and goes on to {held[-1]:g} ps: "
                         "append with the frames it was made of (start, step, begin), or choose another name")
    last = len(times) - 1
    if (np.diff(places) != 1).any():
        k = int(np.argmax(np.diff(places) != 1))
        raise StoreError(f"{name} has frames between {times[k]:g} and {times[k + 1]:g} ps that this run has not: append with "
                         "the frames it was made of (step), or choose another name")
    if _agree(store, source, int(places[last]), last) and _agree(store, source, int(places[0]), 0):
        return
    if not _agree(store, source, int(places[0]), 0):
        raise StoreError(f"the frames of this run are others than those of {name} from {times[0]:g} ps on: it is another "
                         "run, or its times count anew. Parts of one run are passed as a list, the first ones too")
    good, bad = 0, last         # from a checkpoint on they are others
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if _agree(store, source, int(places[middle]), middle) else (good, middle)
    raise StoreError(f"the frames of this run are others than those of {name} from {times[bad]:g} ps on, as where a run went "
                     f"on from an earlier checkpoint: cut the store back, ek.open({name!r}, 'a').truncate({int(places[bad])}), "
                     "and append again")


def _agree(store: Store, source: TrajectorySource, place: int, frame: int) -> bool:
    """Whether a frame of the store is that of the source."""
    with warnings_held():
        (piece,) = source.window(frame, frame + 1).pieces(["position"], "time", False, 1)
        (block,) = piece.blocks()
    return bool(np.array_equal(np.asarray(block.fields["position"][0]), np.asarray(store["position"][place]), equal_nan=True))


__all__ = ["frames_held"]
