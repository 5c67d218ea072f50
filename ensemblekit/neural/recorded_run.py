"""The store of one training run: made with all that a resumed run is compared with, and compared with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ensemblekit.errors import InputError, StoreError
from ensemblekit.neural import resume as saved
from ensemblekit.neural.content_hash import HASH
from ensemblekit.neural.history import CLOCK, LOSS, RATE
from ensemblekit.neural.parameters import KINDS, Manifest
from ensemblekit.neural.processes import agreed, from_first, rank_and_world
from ensemblekit.neural.schedule import CycleLR
from ensemblekit.neural.schedule_shapes import differences
from ensemblekit.neural.schedules_of import ManualSchedule
from ensemblekit.source import Field
from ensemblekit.store.store import Store

State = dict[str, Any]


def capacity_of(cycles: CycleLR | None) -> dict[str, int] | None:
    """Snapshots and steps of a whole run, where the schedule knows them."""
    return None if cycles is None else {"main": max(1, cycles.n_snapshots), CLOCK: max(1, cycles.total_steps)}


def create_run(path: str, manifest: Manifest, schedules: Sequence[CycleLR | ManualSchedule], *,
               capacity: Mapping[str, int] | None, settings: State, left_out: Mapping[str, str], replica: str | None,
               durability: Literal["process", "disk"]) -> Store:
    """A new store for the snapshots of a model and the history of its training."""
    fields = {**manifest.fields, HASH: Field((16,), np.dtype("u1")),
              LOSS: Field((), np.dtype("f4"), clock=CLOCK),
              RATE: Field((sum(len(one.base_lrs) for one in schedules),), np.dtype("f8"), clock=CLOCK)}
    provenance = {"manifest": manifest.to_dict(), "training": settings, "left_out": dict(left_out)}
    return Store.create(path, fields, capacity=capacity, provenance=provenance, replica=replica, durability=durability)


def check_run(store: Store, path: str, manifest: Manifest, model: torch.nn.Module, settings: State) -> None:
    """Raise StoreError where a store is not of a training run, InputError where model or settings are others."""
    provenance = store.provenance
    if "manifest" not in provenance or "training" not in provenance:
        raise StoreError(f"{path} is a store, but not of a training run; name another file")
    stored = Manifest.in_store(store)
    stored.check(model, sharded=True)
    if stored != manifest:
        new, old = ({e.name: str(e[1:]) for kind in KINDS for e in getattr(m, kind)} for m in (manifest, stored))
        raise InputError(f"the snapshots of the run in {path} hold other tensors: {differences(old, new)}")
    differing = differences(saved.flattened(provenance["training"]), saved.flattened(settings))
    if differing:
        raise InputError(f"the run in {path} has other settings: {differing}. Go on with the same settings, or name "
                         "another file for another run")


def steps_of_snapshots(store: Store) -> list[int]:
    """The optimizer steps after which the snapshots of a store were taken."""
    times = store["parameters"].times if len(store) else None
    return [] if times is None else [round(time) for time in times.tolist()]


def opened_by_first(open_: Callable[[], State | None], read: Callable[[], State | None]) -> State | None:
    """Process 0 opens the store; the others learn whether that went well, and read the state themselves."""
    rank, world = rank_and_world()
    if world == 1:
        return open_()
    state = agreed(open_ if rank == 0 else lambda: None)
    there = from_first(state is not None)
    return agreed(read) if there and rank else agreed(lambda: state)
