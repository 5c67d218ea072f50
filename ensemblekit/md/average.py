"""Averages of observables over the frames of a trajectory, each with its error bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.averaging.average import average as mean_with_error
from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.md.observables import Observable
from ensemblekit.md.trajectory import topology_of, trajectory_source
from ensemblekit.source import ArraySource, Block


def average(source: Any, observables: Mapping[str, Observable], *, engine: Engine | None = None) -> dict[str, Any]:
    """The mean of each observable over the frames, as Estimates by name.

    All observables share one read; RMSF makes two more before it, for its mean structure.

    Arguments:
        source: the path of a store of ours, an open store, what `md.read` gave, an MDAnalysis Universe or AtomGroup.
        observables: name -> observable, for example ``{"rg": md.RadiusOfGyration("protein")}``.

    Raises:
        InputError: no observables, or a selection that is empty.
    """
    if not observables:
        raise InputError('name at least one observable, for example {"rg": md.RadiusOfGyration("protein")}')
    frames = trajectory_source(source)
    topology = topology_of(frames)
    prepared = {name: observable.prepare(topology, frames, engine) for name, observable in observables.items()}
    branches = {name: (ready.map, Series()) for name, ready in prepared.items()}
    series = reduce(frames, {**branches, "/times": (_times, Series())}, fields=["position"], engine=engine)
    times = series.pop("/times")
    known = None if np.isnan(times).any() else times
    found = {}
    for name, ready in prepared.items():
        values = ArraySource.of(series[name], times=known, unit=ready.unit, time_unit=frames.time_unit)
        found[name] = ready.finish(replace(mean_with_error(values), coords=ready.coords))
    return found


def _times(block: Block) -> np.ndarray:
    return np.full(len(block), np.nan) if block.times is None else np.asarray(block.times, np.float64)
