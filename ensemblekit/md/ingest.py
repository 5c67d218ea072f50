"""Trajectories into the store, the topology with them; and from the store to MDAnalysis."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.engine import Engine, Threads, stop
from ensemblekit.errors import InputError, StoreError
from ensemblekit.md.appending import frames_held
from ensemblekit.md.opening import read
from ensemblekit.md.progress import Progress, counted
from ensemblekit.md.topology import warnings_held
from ensemblekit.md.trajectory import BATCH, AtomCount, LiveSource, TrajectoryPiece, TrajectorySource
from ensemblekit.provenance import Provenance, files_of, given
from ensemblekit.source import Block, Piece, ReplicaSet
from ensemblekit.source_cuts import WHOLE
from ensemblekit.store.opening import open_store
from ensemblekit.store.store import Store


def ingest(topology: object, trajectory: object, path: str | os.PathLike[str], *, replicas: Sequence[Any] | None = None,
           select: str = "all", start: int | None = None, stop: int | None = None, step: int | None = None,
           frames: ArrayLike | None = None, begin: float | None = None, end: float | None = None, transformations: Any = None,
           whole: bool = False, append: bool = False, engine: Engine | None = None, progress: Progress = False,
           **options: Any) -> Any:
    """Copy a trajectory into a store and open it.

    The file is H5MD and opens in MDAnalysis and VMD, too. The topology goes along with all it knows, so that every
    selection gives the same atoms; velocities, forces and box where they are present. A copy that was interrupted (or
    killed) goes on where it was when it is asked for again.

    Arguments:
        path: ends in ``.h5md``, by which MDAnalysis knows it.
        replicas: independent runs instead of `trajectory` (pass None there): one store each, ``run-0.h5md``,
            ``run-1.h5md``, ... for ``run.h5md``; ``"run-*.h5md"`` opens them together.
        append: a store that is there takes up the frames after its last one: of the run that went on in the same file, in
            further parts (list all of them), or of the new part alone. Frames that both have are compared, and
            nothing is written where they are others.
        engine: where frames are read, range by range; Threads() by default.
        progress: True for a bar on the terminal, or a function of (frames done, frames in all).

    Other arguments are those of :func:`~ensemblekit.md.read`.

    Returns:
        the open Store, or a ReplicaSet of them.

    Raises:
        InputError: another name, an empty selection, files that cannot be read.
        StoreError: there is another store of that name, or with `append` one of another run.
    """
    settings = given(ingest, locals(), "topology", "trajectory", "path", "replicas", "engine", "progress") | options
    path = os.fspath(path)
    base, suffix = os.path.splitext(path)
    if suffix != ".h5md":
        raise InputError(f"a store of MD frames ends in .h5md, as MDAnalysis goes by the name; got {path!r}. "
                         f"Call it {os.path.basename(base) or 'run'}.h5md")
    source = read(topology, trajectory, select=select, replicas=replicas, start=start, stop=stop, step=step, frames=frames,
                  begin=begin, end=end, transformations=transformations, whole=whole, **options)
    notes = {"select": select, "transformed": transformations is not None}

    def origin(run: TrajectorySource) -> Provenance:
        return Provenance.now([*([topology] if isinstance(topology, str | os.PathLike) else []), *files_of(run)], settings)

    if isinstance(source, ReplicaSet):
        runs: tuple[Any, ...] = source.runs
        stores = [_copy(run, f"{base}-{k}.h5md", str(k), notes, append, engine, progress, origin) for k, run in enumerate(runs)]
        return ReplicaSet(tuple(stores))
    return _copy(source, path, None, notes, append, engine, progress, origin)


def _copy(source: TrajectorySource, path: str, replica: str | None, notes: dict[str, Any], append: bool, engine: Engine | None,
          progress: Progress, origin: Callable[[TrajectorySource], Provenance]) -> Store:
    (n,) = source.lengths
    recipe = {**notes, "trajectory": _names(source), "frames": _digest(source), "n_frames": n}
    done = 0
    if os.path.lexists(path):
        store = open_store(path)
        recorded = dict(store.provenance).get("ingest", {})
        if append:
            source = source.window(frames_held(store, source, notes))
            (n,) = source.lengths
        elif recorded != recipe:
            files = ", ".join(recorded.get("trajectory", ["?"]))
            raise StoreError(f"{path} is there already and holds something else ({len(store)} frames from {files}). Where this "
                             "is the same run gone on, append=True (--append) takes up its new frames; else delete it, or "
                             "choose another name")
        else:
            done = len(store)
        if done >= n:
            return store
        store.close()
        store = open_store(path, "a")
    else:
        provenance = {"ingest": recipe, "whole": source.whole, "topology": source.topology.to_dict()}
        if not source.timed:
            provenance["timed"] = False
        store = Store.create(path, source.fields, time_unit="ps", provenance=provenance, capacity=n, replica=replica,
                             origin=origin(source))
    steps = _steps(source)
    with warnings_held(), store, counted(progress, n, os.path.basename(path), done) as tell:
        work = (engine or Threads()).map(_loaded, _batches(source.window(done)), None)
        try:
            for blocks in work:
                for block in blocks:
                    rows = slice(done, done + len(block))
                    store.extend(dict(block.fields), times=block.times, steps=None if steps is None else steps[rows])
                    done += len(block)
                    tell(done, n)
        finally:
            stop(work)      # waits for the readers before the files are let go
    return open_store(path)


def _steps(source: TrajectorySource) -> np.ndarray | None:
    """The steps of frames whose files know no times but these, (n,); None of others."""
    parts = source.parts if isinstance(source, TrajectorySource) else ()
    if source.timed or not parts or any(part.knows != "steps" for part in parts):
        return None
    steps = source.stamps.astype(np.int64)
    return None if (np.diff(steps) <= 0).any() else steps


def _batches(source: TrajectorySource) -> Iterator[Piece]:
    """The frames in pieces of a few megabytes, in order."""
    names = tuple(source.fields)
    if isinstance(source, LiveSource):         # read by whoever hands out the pieces
        yield from source.pieces(names, "time", False, BATCH)
        return
    (n,) = source.lengths
    rows = max(1, BATCH // sum(field.nbytes for field in source.fields.values()))
    slim = replace(source, topology=AtomCount(source.topology))
    for a in range(0, n, rows):
        b = min(n, a + rows)
        yield TrajectoryPiece(0, a, b, WHOLE, slim.window(a, b), names, BATCH)


def _loaded(_: None, piece: Piece) -> list[Block]:
    return list(piece.blocks())


def copied(source: Any, path: str, engine: Engine | None, progress: Progress) -> Any:
    """A store of a source's frames with their weights, for a while."""
    (n,) = source.lengths
    with warnings_held(), Store.create(path, source.fields, time_unit="ps", capacity=n) as store, counted(
            progress, n, "copy") as tell:
        done = 0
        work = (engine or Threads()).map(_loaded, _batches(source), None)
        for blocks in work:
            for block in blocks:
                store.extend(dict(block.fields), times=block.times, weights=block.weights)
                done += len(block)
                tell(done, n)
    return open_store(path)


def _names(source: Any) -> list[str]:
    parts = source.parts if isinstance(source, TrajectorySource) else ()
    return [os.path.basename(part.path) for part in parts] if parts else [os.path.basename(source.path)]


def _digest(source: TrajectorySource) -> str:
    """The frames, atoms and files asked for, as a few letters: whether a store is what was asked for."""
    import xxhash

    digest = xxhash.xxh3_128()
    for part in source.parts if isinstance(source, TrajectorySource) else ():
        digest.update(f"{os.path.basename(part.path)} {os.path.getsize(part.path)} {part.shift};".encode())
    digest.update(np.ascontiguousarray(source.rows).tobytes())
    digest.update(b"all" if source.atoms is None else np.ascontiguousarray(source.atoms).tobytes())
    digest.update(",".join(source.kinds).encode())
    return digest.hexdigest()


