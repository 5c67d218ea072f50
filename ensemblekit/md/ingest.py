"""Trajectories into the store, the topology with them; and from the store to MDAnalysis."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemblekit.engine import Engine, Threads
from ensemblekit.errors import InputError, StoreError
from ensemblekit.files import replacing
from ensemblekit.intake import as_array
from ensemblekit.md.appending import frames_held
from ensemblekit.md.progress import Progress, counted
from ensemblekit.md.topology import Topology, mdanalysis, warnings_held
from ensemblekit.md.trajectory import BATCH, FrameSource, LiveSource, Sized, TrajectoryPiece, read
from ensemblekit.source import WHOLE, Block, Piece, ReplicaSet
from ensemblekit.store.opening import open_store
from ensemblekit.store.store import Store


def ingest(topology: Any, trajectory: Any, path: str | os.PathLike[str], *, replicas: Sequence[Any] | None = None,
           select: str = "all", start: int | None = None, stop: int | None = None, step: int | None = None,
           frames: Any = None, begin: float | None = None, end: float | None = None, transformations: Any = None,
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
    path = os.fspath(path)
    base, suffix = os.path.splitext(path)
    if suffix != ".h5md":
        raise InputError(f"a store of MD frames ends in .h5md, as MDAnalysis goes by the name; got {path!r}. "
                         f"Call it {os.path.basename(base) or 'run'}.h5md")
    source = read(topology, trajectory, select=select, replicas=replicas, start=start, stop=stop, step=step, frames=frames,
                  begin=begin, end=end, transformations=transformations, whole=whole, **options)
    notes = {"select": select, "transformed": transformations is not None}
    if isinstance(source, ReplicaSet):
        stores = [_copy(run, f"{base}-{k}.h5md", str(k), notes, append, engine, progress)
                  for k, run in enumerate(source.runs)]
        return ReplicaSet(tuple(stores))
    return _copy(source, path, None, notes, append, engine, progress)


def _copy(source: Any, path: str, replica: str | None, notes: dict[str, Any], append: bool, engine: Engine | None,
          progress: Progress) -> Store:
    (n,) = source.lengths
    recipe = {**notes, "trajectory": _names(source), "frames": _digest(source), "n_frames": n}
    done = 0
    if os.path.lexists(path):
        store = open_store(path)
        made = dict(store.provenance).get("ingest", {})
        if append:
            source = source.window(frames_held(store, source, notes))
            (n,) = source.lengths
        elif made != recipe:
            files = ", ".join(made.get("trajectory", ["?"]))
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
        store = Store.create(path, source.fields, time_unit="ps", provenance=provenance, capacity=n, replica=replica)
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
            close = getattr(work, "close", None)
            if close is not None:       # waits for the readers before the files are let go
                close()
    return open_store(path)


def _steps(source: Any) -> np.ndarray | None:
    """The steps of frames whose files know no times but these, (n,); None of others."""
    parts = getattr(source, "parts", ())
    if source.timed or not parts or any(part.knows != "steps" for part in parts):
        return None
    steps = source.stamps.astype(np.int64)
    return None if (np.diff(steps) <= 0).any() else steps


def _batches(source: Any) -> Iterator[Piece]:
    """The frames in pieces of a few megabytes, in order."""
    names = tuple(source.fields)
    if isinstance(source, LiveSource):         # read by whoever hands out the pieces
        yield from source.pieces(names, "time", False, BATCH)
        return
    (n,) = source.lengths
    rows = max(1, BATCH // sum(field.nbytes for field in source.fields.values()))
    slim = replace(source, topology=Sized(source.topology))
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
    parts = getattr(source, "parts", None)
    return [os.path.basename(part.path) for part in parts] if parts else [os.path.basename(source.path)]


def _digest(source: Any) -> str:
    """The frames, atoms and files asked for, as a few letters: whether a store is what was asked for."""
    import xxhash

    digest = xxhash.xxh3_128()
    for part in getattr(source, "parts", ()):
        digest.update(f"{os.path.basename(part.path)} {os.path.getsize(part.path)} {part.shift};".encode())
    digest.update(np.ascontiguousarray(source.rows).tobytes())
    digest.update(b"all" if source.atoms is None else np.ascontiguousarray(source.atoms).tobytes())
    digest.update(",".join(source.kinds).encode())
    return digest.hexdigest()


def universe(store: Any) -> Any:
    """An MDAnalysis Universe of a store's frames with its topology: every selection gives the original's atoms.

    Arguments:
        store: a store made by :func:`ingest`, or its path. Weights, replicas and further fields stay behind.
    """
    source = opened(store)
    if isinstance(source, ReplicaSet):
        raise InputError(f"a Universe holds one run, and this is {len(source.runs)}: name one of the files")
    if not hasattr(source, "path") or isinstance(source, FrameSource):
        raise InputError(f"md.universe opens a store made by md.ingest; got {type(source).__name__}")
    made = stored_topology(source).universe()
    files = source.segments
    with mdanalysis():
        made.load_new(files[0] if len(files) == 1 else files)
    return made


def universe_of(source: Any, topology: Topology) -> tuple[Any, np.ndarray]:
    """A Universe of a stored run, and the numbers of its frames that the source (a window of the run) chooses."""
    from ensemblekit.md.weighted import PickedSource, WeightedSource

    if isinstance(source, WeightedSource):
        return universe_of(source.source, topology)
    if isinstance(source, PickedSource):
        made, rows = universe_of(source.source, topology)
        return made, rows[source.rows]
    table = source.table if hasattr(source, "table") else source.window().table
    window = source if hasattr(source, "table") else source.window()
    made = topology.universe()
    files = [part.path for part in table.parts]
    with mdanalysis():
        made.load_new(files[0] if len(files) == 1 else files)
    return made, np.arange(window.start, window.stop, window.step)


def opened(x: Any) -> Any:
    """The store or replicas behind a path, a pattern, a list, or what is open already."""
    if not isinstance(x, str | os.PathLike | Sequence):
        return x
    paths = [x] if isinstance(x, str | os.PathLike) else list(x)
    for path in paths:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"a source is the path of a store, a Universe, an AtomGroup or what md.read gave; got {x!r}")
        suffix = os.path.splitext(os.fspath(path))[1].lower()
        if suffix in (".xtc", ".trr", ".dcd", ".nc", ".ncdf", ".pdb", ".gro", ".tpr", ".psf"):
            raise InputError(f"{os.path.basename(os.fspath(path))} is no store: read it with its topology, "
                             "md.read(topology, trajectory), or copy it into one with md.ingest")
    return open_store(x)


def provenance_of(source: Any) -> Mapping[str, Any]:
    """What a store, or some frames of it, were made of."""
    if hasattr(source, "provenance"):
        return source.provenance
    if hasattr(source, "table") and source.table.parts:
        return open_store(source.table.parts[0].path).provenance
    return {}


def stored_topology(source: Any) -> Topology:
    """The topology that a store was made with."""
    columns = provenance_of(source).get("topology")
    if columns is None:
        raise InputError("this store has no topology; make it with md.ingest(topology, trajectory, path), or read the file "
                         "with its topology: md.read(topology, file)")
    return Topology.kept(columns)


def write_topology(store: Any, path: str | os.PathLike[str], *, frame: int = 0, bfactors: np.ndarray | None = None) -> None:
    """The atoms of a store with the positions of one frame, in any format MDAnalysis writes (by the suffix).

    Arguments:
        bfactors: (atoms,) for the B-factor column of a .pdb.

    Raises InputError for a frame that is not there, or a format that cannot be written.
    """
    u = universe(store)
    try:
        n = len(u.trajectory)
        if not -n <= frame < n:
            raise InputError(f"frame {frame} of {n}")
        u.trajectory[frame]
        with warnings_held(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)        # fields a format has and these atoms have not
            if bfactors is not None:
                u.add_TopologyAttr("tempfactors", as_array(bfactors, "bfactors", dtype=float))
            try:
                with replacing(path, suffix=_format(path), follow=True) as temporary:
                    u.atoms.write(temporary)
            except (TypeError, ValueError, NotImplementedError) as error:
                raise InputError(f"{os.path.basename(os.fspath(path))} cannot be written: {error}") from error
    finally:
        u.trajectory.close()


def write_bfactors(source: Any, rmsf: Any, select: str, path: str | os.PathLike[str]) -> None:
    """A .pdb of the selected atoms in the first frame with B = 8 pi^2 / 3 RMSF^2 (angstrom^2) in the B-factor column.

    Arguments:
        rmsf: the Estimate of ``md.RMSF(select)``, one value an atom.
    """
    from ensemblekit.md.functions import dimensions
    from ensemblekit.md.system import System
    from ensemblekit.md.trajectory import topology_of, trajectory_source

    frames = trajectory_source(source)
    system = System(frames, topology_of(frames))
    atoms = system.select(select)
    values = np.asarray(rmsf.mean)
    if values.shape != (len(atoms),):
        raise InputError(f"B-factors are one an atom: {select!r} has {len(atoms)} atoms, the RMSF shape {values.shape}")
    first = system.first_frame()
    u = system.topology.universe()
    with warnings_held(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        u.load_new(first.position[None], dimensions=None if first.box is None else dimensions(first.box[None])[0])
        b = np.zeros(len(u.atoms))
        b[atoms] = 8 * np.pi**2 / 3 * values**2
        u.add_TopologyAttr("tempfactors", np.clip(b, 0, 999.99))
        with replacing(path, suffix=_format(path), follow=True) as temporary:
            u.atoms[atoms].write(temporary)


def _format(path: str | os.PathLike[str]) -> str:
    """The end of a file's name, by which MDAnalysis knows its format: ".pdb", ".gro", ".pdb.gz"."""
    name = Path(path)
    return "".join(name.suffixes[-2:]) if name.suffix in (".gz", ".bz2") else name.suffix


def sampled_rmsd(source: Any, select: str, *, n: int = 200, whole: bool | None = None,
                 **window: Any) -> tuple[np.ndarray, list[int]]:
    """RMSD after superposition of about `n` frames with each other, replica after replica, and where each replica begins.

    Frames are spread evenly over the runs; `window` as for ``md.average``. Returns ((m, m) angstrom, (replicas + 1,)).
    """
    from ensemblekit.averaging.run import reduce
    from ensemblekit.averaging.series import Series
    from ensemblekit.md.superpose import rmsd_matrix
    from ensemblekit.md.system import System, whole_already
    from ensemblekit.md.trajectory import Choice, topology_of, trajectory_source

    given = trajectory_source(source)
    topology = topology_of(given)
    chosen = Choice(**window).of(given)
    runs: tuple[Any, ...] = chosen.runs if isinstance(chosen, ReplicaSet) else (chosen,)
    each = max(2, n // len(runs))
    parts, edges = [], [0]
    for run in runs:
        thin = run.window(step=max(1, run.lengths[0] // each))
        system = System(thin, topology, whole=whole_already(given) if whole is None else whole)
        gather = system.assembled(system.select(select))

        def taken(block: Block, gather: Any = gather) -> np.ndarray:
            positions, index = gather(block)
            return np.array(positions[:, index])

        names = [name for name in ("position", "box") if name in thin.fields]
        with warnings_held():
            parts.append(reduce(thin, {"x": (taken, Series())}, fields=names)["x"])
        edges.append(edges[-1] + len(parts[-1]))
    return rmsd_matrix(np.concatenate(parts)), edges
