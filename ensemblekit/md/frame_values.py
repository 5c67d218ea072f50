"""What is averaged of every frame, as numbers: for reweighting, for learning, for plots."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.run import reduce
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.md.average import measurements_of
from ensemblekit.md.frame_selection import FrameSelection
from ensemblekit.md.frames import as_frames, topology_of
from ensemblekit.md.observables.base import Measurement
from ensemblekit.md.spilled_series import SpilledSeries
from ensemblekit.md.system import System, molecules_whole
from ensemblekit.md.topology import warnings_held
from ensemblekit.source import DescribedSource

HELD_BYTES = 64 << 20
"""Values of one observable that stay in memory."""


@dataclass(frozen=True, eq=False)
class FrameValues:
    """The values of observables in every frame of one run, and what their averages are made into."""

    arrays: Mapping[str, np.ndarray]
    """Name -> (n, *out), what averages linearly: r^-6 of an NOE, a coupling of J, the vector of a torsion."""
    measurements: Mapping[str, Measurement]
    times: np.ndarray | None
    """(n,), ps; None where frames are not timed, or in no order."""
    weights: np.ndarray | None
    ordered: bool


def values(source: object, observables: Mapping[str, object], *, start: int | None = None, stop: int | None = None,
           step: int | None = None, frames: ArrayLike | None = None, begin: float | None = None, end: float | None = None,
           whole: bool | None = None, engine: Engine | None = None) -> dict[str, np.ndarray]:
    """What is averaged of every frame: name -> (n, *out), mapped from disk where it is large.

    It is what averages linearly, before the transformation of an observable: Σ r^-6 of ``md.NOE``, couplings of
    ``md.JCoupling``, intensities of ``md.SAXS``. Arguments as for :func:`md.average`; one run.
    """
    selection = FrameSelection(start, stop, step, frames, begin, end)
    return dict(frame_values(source, observables, selection, whole=whole, engine=engine).arrays)


def frame_values(source: object, observables: Mapping[str, object], selection: FrameSelection | None = None, *,
                 whole: bool | None = None, engine: Engine | None = None) -> FrameValues:
    """:func:`values`, and how they become averages."""
    given = as_frames(source)
    chosen: DescribedSource = (selection or FrameSelection()).of(given)
    if len(chosen.lengths or ()) != 1 or not sum(chosen.lengths or ()):
        raise InputError("values are those of the frames of one run, one at least; take replicas one by one")
    with System(chosen, topology_of(given), engine, whole=molecules_whole(given) if whole is None else whole) as system:
        measurements, fields = measurements_of(system, observables)
        branches: dict[str, Any] = {name: (one.map, SpilledSeries()) for name, one in measurements.items()}
        with warnings_held():
            read = reduce(system.source, branches, fields=fields, engine=system.engine)
        arrays = {name: _joined(part.parts) for name, part in read.items()}
        run = system.source
        times = run.times if run.ordered and system.timed[0] else None
        return FrameValues(arrays, measurements, times, run.weights, run.ordered)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Consecutive parts as one array, mapped from a nameless file where it is large."""
    if len(parts) == 1:
        return parts[0]
    if sum(part.nbytes for part in parts) <= HELD_BYTES:
        return np.concatenate(parts)
    with tempfile.TemporaryFile(prefix="ensemblekit-") as file:
        for part in parts:
            np.ascontiguousarray(part).tofile(file)
        file.flush()
        return np.memmap(file, parts[0].dtype, "r", 0, (sum(map(len, parts)), *parts[0].shape[1:]))


__all__ = ["FrameValues", "frame_values", "values"]
