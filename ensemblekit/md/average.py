"""Averages of observables over the frames of a trajectory, each with its error bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ensemblekit.averaging.average import Observed, clock_of, estimate_of
from ensemblekit.averaging.derived import derived
from ensemblekit.averaging.run import partials
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Observable, Prepared
from ensemblekit.md.system import System
from ensemblekit.md.trajectory import topology_of, trajectory_source


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
    system = System(frames, topology_of(frames), engine)
    prepared = {name: observable.prepare(system) for name, observable in observables.items()}
    branches: dict[str, Any] = {name: (ready.map, Observed()) for name, ready in prepared.items()}
    branches["clock"] = (clock_of, Series())
    fields = [name for name in ("position", "box") if name in frames.fields]
    (states,) = partials(frames, branches, fields=fields, engine=engine).values()
    found = {}
    for name, ready in prepared.items():
        found[name] = _finished(states, name, ready, frames.time_unit)
    return found


def _finished(states: Any, name: str, ready: Prepared, time_unit: str) -> Any:
    estimate = estimate_of(states, name, unit=ready.unit, time_unit=time_unit)
    answer = estimate if ready.function is None else derived(states, name, ready.function, estimate, unit=ready.unit)
    further = {key: replace(derived(states, name, more.function, estimate, unit=more.unit), coords=dict(more.coords))
               for key, more in ready.further.items()}
    return replace(answer, coords=dict(ready.coords), further=further)
