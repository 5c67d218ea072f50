"""MDAnalysis trajectories as sources, and into the store. Positions in angstrom, times in ps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.topology import Topology, mdanalysis
from ensemblekit.source import WHOLE, Access, Block, Cut, Field, Piece, check_window, cuts_of
from ensemblekit.store.opening import open_store
from ensemblekit.store.store import Store

BATCH = 4 << 20
"""Bytes of frames written at a time."""


@dataclass(frozen=True, eq=False)
class TrajectorySource:
    """Frames of a trajectory file, read on the fly by whoever needs them; every reader opens the file for itself."""

    path: str
    topology: Topology
    atoms: np.ndarray
    """Indices of the selected atoms in the file."""
    n_atoms: int
    """Atoms in the file."""
    frames: range
    access: Access = "rows"
    time_unit: str = "ps"

    @property
    def fields(self) -> Mapping[str, Field]:
        return {"position": Field((len(self.atoms), 3), np.dtype("f4"), "Angstrom", kind="position")}

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.frames),)

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> TrajectorySource:
        check_window(start, stop, step)
        return replace(self, frames=self.frames[start:stop:step])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        for start, stop, _ in cuts_of(self.fields, names, len(self.frames), "time", False, limit):
            yield TrajectoryPiece(0, start, stop, WHOLE, replace(self, frames=self.frames[start:stop]))


@dataclass(frozen=True, eq=False, slots=True)
class TrajectoryPiece:
    """Some consecutive frames of a trajectory file."""

    run: int
    start: int
    stop: int
    tile: slice
    source: TrajectorySource

    def blocks(self) -> Iterator[Block]:
        source = self.source
        rows = max(1, BATCH // source.fields["position"].nbytes)
        whole = len(source.atoms) == source.n_atoms
        # no filter of warnings here: it belongs to the process, and pieces are read in threads
        from MDAnalysis.coordinates.core import reader as open_reader

        with open_reader(source.path, n_atoms=source.n_atoms) as reader:
            for at in range(0, len(source.frames), rows):
                chosen = source.frames[at:at + rows]
                positions = np.empty((len(chosen), len(source.atoms), 3), np.float32)
                times = np.empty(len(chosen))
                for k, frame in enumerate(chosen):
                    now = reader[frame]
                    positions[k] = now.positions if whole else now.positions[source.atoms]
                    times[k] = now.time
                yield Block({"position": positions}, self.start + at, WHOLE, None, times)


def read(topology: Any, trajectory: Any = None, *, select: str = "all") -> TrajectorySource:
    """A trajectory as a source, nothing copied.

    Arguments:
        topology: a topology file with `trajectory` beside it, or an MDAnalysis Universe or AtomGroup.
        select: the atoms to read, in MDAnalysis' language.

    Raises InputError where the selection is empty or the Universe holds its frames in memory.
    """
    with mdanalysis() as mda:
        if isinstance(topology, str | os.PathLike):
            whole = mda.Universe(os.fspath(topology), *([] if trajectory is None else [os.fspath(trajectory)]))
            atoms = whole.select_atoms(select)
        else:
            atoms = topology.atoms.select_atoms(select)
            whole = atoms.universe
        path = whole.trajectory.filename
        if path is None or not isinstance(path, str | os.PathLike):
            raise InputError("these frames are in memory; write them to a file, or pass the arrays to ek.average")
        if not len(atoms):
            raise InputError(f"the selection {select!r} is empty; the topology has {len(whole.atoms)} atoms")
        return TrajectorySource(os.fspath(path), Topology.of(atoms), atoms.indices.copy(), len(whole.atoms),
                                range(len(whole.trajectory)))


def ingest(topology: Any, trajectory: Any, path: str | os.PathLike[str], *, select: str = "all") -> Any:
    """Copy a trajectory into a store and open it.

    The file is H5MD and opens in MDAnalysis too; the topology goes along, so that selections keep working.

    Raises InputError where the name does not end in .h5md, by which MDAnalysis knows it, or the selection is empty.
    """
    if os.path.splitext(os.fspath(path))[1] != ".h5md":
        raise InputError(f"a store of MD frames ends in .h5md, as MDAnalysis goes by the name; got {os.fspath(path)!r}")
    frames = read(topology, trajectory, select=select)
    provenance = {"trajectory": os.path.basename(frames.path), "select": select, "topology": frames.topology.to_dict()}
    with Store.create(path, frames.fields, time_unit="ps", provenance=provenance,
                   capacity=len(frames.frames)) as store:
        for piece in frames.pieces(["position"], "time", False, BATCH):
            for block in piece.blocks():
                store.extend({"position": block.only}, times=block.times)
    return open_store(path)


def universe(store: Any) -> Any:
    """An MDAnalysis Universe of a store's frames with its topology: every selection gives the original's atoms."""
    opened = _opened(store)
    made = topology_of(opened).universe()
    with mdanalysis():
        made.load_new(os.fspath(opened.path))
    return made


def trajectory_source(x: Any) -> Any:
    """A source of positions from whatever holds a trajectory."""
    if isinstance(x, TrajectorySource):
        return x
    if isinstance(x, str | os.PathLike) or hasattr(x, "provenance"):
        return _opened(x)
    return read(x)


def topology_of(source: Any) -> Topology:
    """The topology that came with a source of frames."""
    if isinstance(source, TrajectorySource):
        return source.topology
    columns = source.provenance.get("topology")
    if columns is None:
        raise InputError("this store has no topology; make it with md.ingest(topology, trajectory, path)")
    return Topology.from_dict(columns)


def _opened(x: Any) -> Any:
    return open_store(x) if isinstance(x, str | os.PathLike) else x
