"""Opening by path, pattern or list: one run, or independent runs as replicas, by what the files say of themselves."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError, StoreDamagedError, StoreError
from ensemblekit.source import ReplicaSet, StackedSource
from ensemblekit.store.store import Store

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A path, a pattern, or several paths."""


def open_store(path: Paths, mode: Literal["r", "a"] = "r", *, as_: Literal["run", "replicas"] | None = None,
               check: bool = False, external: bool = False, incomplete: bool = False, **options: Any) -> Any:
    """See :func:`ensemblekit.open`."""
    if as_ not in (None, "run", "replicas"):
        raise InputError(f'as_ is None, "run" or "replicas"; got {as_!r}')
    paths = _paths(path)
    if check:
        from ensemblekit.store.verify import verify

        for one in paths:
            report = verify(one, external=external)
            if not report.ok:
                raise (StoreDamagedError if report.verdict == "damaged" else StoreError)(str(report))
    if len(paths) == 1 and as_ != "replicas":
        return Store.open(paths[0], mode, external=external, incomplete=incomplete, **options)
    if mode != "r":
        raise InputError(f"{len(paths)} files open for reading only; append to one of them by its own path")
    stores = [Store.open(one, external=external, incomplete=incomplete) for one in paths]
    if as_ == "replicas":
        return ReplicaSet.of(stores)
    runs = {(store.run, store.replica) for store in stores}
    ours = all(store.run for store in stores)
    if as_ is None and ours and len(runs) == len(stores):
        if all(store.replica is None and _particles(store) for store in stores):
            return _trajectories(stores, path)
        return ReplicaSet.of(stores)
    if as_ is None and (not ours or len(runs) > 1):
        raise InputError(f"{len(stores)} files match {path!r} and do not say whether they are one run or several. "
                         'Pass as_="run" (parts of one run, in this order) or as_="replicas" (independent runs)')
    return _one_run(stores)


def _paths(path: Paths) -> list[str]:
    if isinstance(path, str | os.PathLike):
        text = os.fspath(path)
        if os.path.exists(text) or not glob.has_magic(text):
            return [text]
        matches = sorted(p for p in glob.glob(text) if os.path.isfile(p))
        # A further segment (run.0001.h5) belongs to its store (run.h5) where that is among the files.
        whole = set(matches)
        kept = [p for p in matches if re.sub(r"\.\d{4,}(\.[^.]*)\Z", r"\1", p) == p or
                re.sub(r"\.\d{4,}(\.[^.]*)\Z", r"\1", p) not in whole]
        if not kept:
            raise StoreError(f"no file matches {text!r}")
        return kept
    if isinstance(path, Sequence) and path:
        return [os.fspath(p) for p in path]
    raise InputError(f"open takes a path, a pattern or a list of paths; got {path!r}")


def _particles(store: Store) -> bool:
    return any(field.kind == "position" for field in store.all_fields.values())


def _trajectories(stores: list[Store], path: Paths) -> StackedSource:
    """Trajectories that do not say that they are replicas: one run where their times follow each other, else refused.

    Averages over a run that is there twice, or over several as if they were one, look more certain than they are.
    """
    spans = sorted((float(s.times[0]), float(s.times[-1]), os.path.basename(s.path)) for s in stores
                   if len(s) and s.times is not None)
    for (_, end, before), (begin, _, name) in itertools.pairwise(spans):
        if begin < end:
            raise InputError(f"{name} begins at {begin:g} ps, before {before} ends at {end:g} ps, and neither file of {path!r} "
                             'says that it is a replica. Pass as_="replicas" if these are independent runs, or as_="run" if '
                             "they are parts of one")
    return _one_run(sorted(stores, key=lambda s: float(s.times[0]) if len(s) and s.times is not None else 0.0), by="time")


def _one_run(stores: list[Store], by: Literal["step", "time"] = "step") -> StackedSource:
    """Files of one run end to end; snapshots that the file before has already are dropped and reported."""
    if by == "step":
        stores = sorted(stores, key=lambda s: int(s.steps[0]) if len(s) else 0)
    parts: list[Any] = []
    last = None
    for store in stores:
        steps = store.steps if by == "step" else np.zeros(0) if store.times is None else store.times
        if by == "time" and store.times is None:
            raise InputError(f"{os.path.basename(store.path)} has no times to join it by")
        skip = 0 if last is None or not len(steps) else int((steps <= last).sum())
        if skip:
            import warnings

            warnings.warn(f"{os.path.basename(store.path)}: its first {skip} snapshots (up to {by} {last}) stand in the "
                          "file before too and are dropped", stacklevel=4)
        if len(steps) > skip:
            parts.append(store.window(skip) if skip or len(store.clocks) > 1 else store)    # a Store knows where it is from
            last = steps[-1]
    if not parts:
        parts = [stores[0].window(0)]
    ReplicaSet.of(parts)        # the same fields everywhere, or an error that says where not
    return StackedSource(tuple(parts), joined=True)
