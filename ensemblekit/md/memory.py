"""How much of a read there is memory for: the partial states that are kept, and the frames of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensemblekit.averaging.observed import Observed
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.errors import InputError
from ensemblekit.md.trajectory import BATCH
from ensemblekit.source import ReplicaSet, SnapshotSource

MOST_STATES = 64
"""Partial states of a run that are kept, at the least; up to twice as many while it is read."""
FEWEST_STATES = 8
"""The same of large maps: what is left out at the start comes in eighths then."""
STATE_BYTES = 32 << 20
"""What the partial states of one read may take."""
LARGE_STATE = 16 << 20
"""An observable of which one partial state would take more keeps two numbers an element, a mean and a variance of each of
`STRETCHES` parts of the run, which are the blocks of its errors then."""
STRETCHES = 16
ROW_BYTES = 32 << 20
"""What the values of a block of frames may take, of all observables together: of large maps few frames at a time."""
MOST_BYTES = 8 << 30
"""Above, an average is refused before memory is taken."""


def fit_in_memory(source: SnapshotSource, branches: dict[str, tuple[Any, ...]], fields: Sequence[str]) -> tuple[int, int]:
    """How many partial states of a run there is room for, and bytes of frames in a block, by what the first frame takes.

    Branches of large arrays are changed to keep less. Raises InputError, naming the largest observable, where the fewest
    states would take more than MOST_BYTES.
    """
    run = source.runs[0] if isinstance(source, ReplicaSet) else source
    n = sum(run.lengths or ())
    # trees of block sums have a level more for every doubling of the frames in a state
    levels = max(1.0, np.log2(max(n / MOST_STATES, 2)))
    states, rows = dict.fromkeys(branches, 0.0), 0
    sizes: dict[str, int] = {}
    fewest = FEWEST_STATES
    try:
        for piece in run.window(0, 1).pieces(fields, "time", False, BATCH):
            for block in piece.blocks():
                for name, (map, *reducers) in list(branches.items()):
                    values = np.asarray(map(block))
                    sizes[name] = values.size
                    rows += values.nbytes
                    nbytes = [_nbytes(reducer, values, block.weights, levels) for reducer in reducers]
                    for k, reducer in enumerate(reducers):
                        if isinstance(reducer, Observed) and nbytes[k] > LARGE_STATE:
                            reducers[k] = Observed("stretches", reducer.missing, reducer.of)
                            nbytes[k] = 2.0 * (values if reducer.of is None else reducer.of(values)).size * 8
                            fewest = STRETCHES
                    branches[name] = (map, *reducers)
                    states[name] += sum(nbytes)
    except Exception:       # whatever fails will fail again, where the error says which frames it was about
        return MOST_STATES, BATCH
    _check_fits(states, sizes, fewest)
    frame = sum(run.fields[name].nbytes for name in fields)
    limit = BATCH if rows * (BATCH // max(frame, 1)) <= ROW_BYTES else max(1, ROW_BYTES // rows) * frame
    return int(np.clip(STATE_BYTES / (2 * max(sum(states.values()), 1.0)), fewest, MOST_STATES)), limit


def _check_fits(states: Mapping[str, float], sizes: Mapping[str, int], fewest: int) -> None:
    """Refuse states of so many bytes, naming the observable that takes most."""
    total = 2 * fewest * sum(states.values())
    if total > MOST_BYTES:
        name = max(states, key=lambda key: states[key])
        raise InputError(f"{name!r} has {sizes[name]} numbers a frame; their averages with errors would take about "
                         f"{total / 2**30:.0f} GiB of memory. Choose fewer atoms, residues instead of "
                         "atoms (level=\"residue\") or coarser bins, or average parts of it in calls of their own")


def _nbytes(reducer: Reducer, values: np.ndarray, weights: np.ndarray | None, levels: float) -> float:
    """Bytes that a partial state of a reducer will take, by one of the first frame."""
    one = reducer.empty()
    one.update(values, 0, weights)
    nbytes = float(sum(np.asarray(part).nbytes for part in one.state().values()))
    return nbytes * levels if isinstance(one, Observed) else nbytes
