"""Trajectories as sources, read on the fly. Positions in angstrom, times in ps, velocities in angstrom/ps, forces in
kJ/(mol angstrom): MDAnalysis' units, whatever the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ensemblekit.errors import InputError, one_line
from ensemblekit.md.parts import Part, file_of, readers_of, stamps_of, times_of
from ensemblekit.md.topology import Topology
from ensemblekit.source import Access, BaseSource, Block, Cut, Field, HeldPiece, Piece, cuts_of
from ensemblekit.source_cuts import WHOLE, check_window
from ensemblekit.store.schema import MD_UNITS

BATCH = 8 << 20
"""Bytes of frames read at a time: they stay in the cache until the last observable has seen them."""
TRAJECTORIES = (".xtc", ".trr", ".dcd", ".nc", ".ncdf", ".trj", ".mdcrd", ".trz")
"""Suffixes of files that hold positions and no names."""
FOR_READERS = ("convert_units", "lengthunit", "timeunit", "velocityunit", "atom_style", "lammps_coordinate_convention")
"""Those that a reader needs again where a worker opens the file."""
FOR_TRAJECTORIES = ("format", "dt", "in_memory", "time_offset", "lengthunit", "timeunit", "velocityunit", "convert_units",
                    "atom_style", "lammps_coordinate_convention")
"""Options of a Universe that speak of its trajectory, not of its topology."""
FRAME_BYTES = 8
"""Of a frame in a file of any format, at least."""


class FrameSource(BaseSource):
    """What all sources of frames share: fields by what the first frame holds, one run, times in ps."""

    topology: Topology
    kinds: tuple[str, ...]
    whole: bool
    """Molecules are whole already, so that nothing is to be mended at the box."""
    weights: np.ndarray | None

    access: Access = "rows"
    in_memory: ClassVar[bool] = False
    """Frames stand in memory, so that reading them again needs no store."""

    @property
    def timed(self) -> bool:
        """Whether the times of the frames are known; else they are counted."""
        raise NotImplementedError

    @property
    def time_unit(self) -> str:
        return "ps" if self.timed else ""

    def reweighted(self, weights: np.ndarray) -> FrameSource:
        """The same frames with these statistical weights, (frames,)."""
        raise NotImplementedError

    def picked(self, which: slice | np.ndarray) -> FrameSource:
        """Some of the frames, by a slice or rising numbers."""
        raise NotImplementedError

    def __repr__(self) -> str:
        weighted = "" if self.weights is None else ", weighted"
        return f"<{self.lengths[0]} frames of {len(self.topology)} atoms: {', '.join(self.kinds)}{weighted}>"

    @property
    def lengths(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def fields(self) -> Mapping[str, Field]:
        n = len(self.topology)
        f4 = np.dtype("f4")
        return {kind: Field((3, 3) if kind == "box" else (n, 3), f4, MD_UNITS[kind], kind=kind)     # type: ignore[arg-type]
                for kind in self.kinds}


@dataclass(frozen=True, eq=False, repr=False)
class TrajectorySource(FrameSource):
    """Frames of one or more trajectory files, parts of one run; every worker opens the files for itself."""

    parts: tuple[Part, ...]
    topology: Topology
    atoms: np.ndarray | None
    """Indices of the selected atoms in the files, ascending; None: all."""
    rows: np.ndarray
    """(frames,) numbers of the frames, counted through all parts."""
    edges: np.ndarray
    """(parts + 1,) where each part begins in that count."""
    kinds: tuple[str, ...]
    whole: bool = False
    weights: np.ndarray | None = None
    """(frames,) statistical weights."""

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.rows),)

    @property
    def path(self) -> str:
        return self.parts[0].path

    @property
    def timed(self) -> bool:
        """Whether the files hold times, or an interval was said: those of models, XYZ and LAMMPS hold none, where MDAnalysis
        counts frames or steps as 1 ps each."""
        return all(part.knows == "times" for part in self.parts)

    @cached_property
    def stamps(self) -> np.ndarray:
        """What the frames are told apart by, (n,): times in ps from the headers (XTC), else first time and step, checked at
        the last frame; steps where the files know no times; else their numbers."""
        return np.concatenate([times_of(part) for part in self.parts])[self.rows]

    @property
    def times(self) -> np.ndarray | None:
        """Times of the frames, (n,), in ps; None where the files know none."""
        return self.stamps if self.timed else None

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> TrajectorySource:
        check_window(start, stop, step)
        return self.picked(slice(start, stop, step))

    def reweighted(self, weights: np.ndarray) -> TrajectorySource:
        return replace(self, weights=weights)

    def picked(self, which: slice | np.ndarray) -> TrajectorySource:
        """Some of the frames: a slice, or rising numbers."""
        return replace(self, rows=self.rows[which], weights=None if self.weights is None else self.weights[which])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        slim = replace(self, topology=AtomCount(self.topology))      # pieces travel: not with all names of all atoms
        for start, stop, _ in cuts_of(self.fields, names, len(self.rows), "time", False, limit):
            yield TrajectoryPiece(0, start, stop, WHOLE, slim.picked(slice(start, stop)), tuple(names), min(limit, BATCH))


class AtomCount(Topology):
    """Stands for a topology where only the number of atoms counts."""

    n: int

    def __init__(self, whole: Topology):
        object.__setattr__(self, "n", len(whole))

    def __len__(self) -> int:
        return self.n


@dataclass(frozen=True, eq=False, slots=True)
class TrajectoryPiece:
    """Some frames of trajectory files, in order."""

    run: int
    start: int
    stop: int
    tile: slice
    source: TrajectorySource
    names: tuple[str, ...]
    limit: int

    def prefetch(self) -> None:
        """Nothing: the readers read in order as they are asked."""

    def blocks(self) -> Iterator[Block]:
        source = self.source
        step = max(1, self.limit // max(1, sum(source.fields[name].nbytes for name in self.names)))
        step = step // 16 * 16 or step
        done = 0
        for k in np.unique(np.searchsorted(source.edges, source.rows, "right") - 1):
            part = source.parts[k]
            rows = source.rows[(source.rows >= source.edges[k]) & (source.rows < source.edges[k + 1])] - source.edges[k]
            plain = set(self.names) <= {"position", "box"}
            read = _read_xtc if part.xtc is not None and plain else _read_dcd if part.dcd is not None and plain else _read_any
            for fields, times in read(part, rows, source, self.names, step):
                n = len(times)
                weights = None if source.weights is None else source.weights[done:done + n]
                yield Block(fields, self.start + done, WHOLE, weights, times if source.timed else None)
                done += n


Batch = tuple[dict[str, np.ndarray], np.ndarray]


def _read_xtc(part: Part, rows: np.ndarray, source: TrajectorySource, names: Sequence[str], step: int) -> Iterator[Batch]:
    assert part.xtc is not None
    for a in range(0, len(rows), step):
        frames = part.xtc.read(rows[a:a + step], source.atoms)
        fields = {"position": frames.position, "box": frames.box}
        if "box" in names:
            _check_box(frames.box, rows[a:a + step], part.path)
        times = frames.times if part.clock is None else part.clock[0] + part.clock[1] * rows[a:a + step]
        yield {name: fields[name] for name in names}, times + part.shift


def _read_dcd(part: Part, rows: np.ndarray, source: TrajectorySource, names: Sequence[str], step: int) -> Iterator[Batch]:
    assert part.dcd is not None
    for a in range(0, len(rows), step):
        chosen = rows[a:a + step]
        frames = part.dcd.read(chosen, source.atoms, "box" in names)
        if frames is None:      # cells that MDAnalysis knows to read
            yield from _read_any(part, chosen, source, names, step)
        else:
            fields = {"position": frames.position, "box": frames.box}
            yield {name: fields[name] for name in names}, frames.times + part.shift


def _read_any(part: Part, rows: np.ndarray, source: TrajectorySource, names: Sequence[str], step: int) -> Iterator[Batch]:
    from time import sleep

    n_atoms = len(source.topology)
    with part.open() as reader:
        for a in range(0, len(rows), step):
            chosen = rows[a:a + step]
            fields = {name: np.empty((len(chosen), 3, 3) if name == "box" else (len(chosen), n_atoms, 3), np.float32)
                      for name in names}
            times = np.empty(len(chosen))
            for k, frame in enumerate(chosen):
                now = _frame(reader, int(frame), part)
                for name, into in fields.items():
                    take(now, name, source.atoms, into[k], int(frame), part.path)
                times[k] = now.time + part.shift
                sleep(0)        # readers hold Python's lock: let the threads that compute have it between frames
            yield fields, times


def _frame(reader: Any, frame: int, part: Part) -> Any:
    try:
        now = reader[frame] if reader.frame + 1 != frame else reader.next()
    except Exception as error:
        raise InputError(f"frame {frame} of {os.path.basename(part.path)} cannot be read ({type(error).__name__}: "
                         f"{one_line(error)}). Copy the file again from its source, or read what is before it with "
                         f"stop={frame}") from error
    if now.n_atoms != part.n_atoms:
        raise InputError(f"frame {frame} of {os.path.basename(part.path)} has {now.n_atoms} atoms, the topology has "
                         f"{part.n_atoms}: one trajectory has the same atoms throughout")
    return now


def take(now: Any, name: str, atoms: np.ndarray | None, out: np.ndarray, frame: int, path: object) -> None:
    """Copy one field of MDAnalysis' time step."""
    if name == "box":
        vectors = now.triclinic_dimensions
        if vectors is None or not np.any(vectors):
            raise InputError(f"frame {frame} of {os.path.basename(str(path))} has no box, and earlier frames have one")
        out[...] = vectors
        return
    if not getattr(now, {"position": "has_positions", "velocity": "has_velocities", "force": "has_forces"}[name]):
        raise InputError(f"frame {frame} of {os.path.basename(str(path))} has no {name}; earlier frames have. Read without "
                         f"what is not in every frame")
    values = getattr(now, {"position": "positions", "velocity": "velocities", "force": "forces"}[name])
    out[...] = values if atoms is None else values[atoms]


def _check_box(box: np.ndarray, rows: np.ndarray, path: str) -> None:
    none = ~box.any(axis=(1, 2))
    if none.any():
        raise InputError(f"frame {rows[int(np.argmax(none))]} of {os.path.basename(path)} has no box, and earlier frames have "
                         "one")


@dataclass(frozen=True, eq=False, repr=False)
class LiveSource(FrameSource):
    """Frames of a Universe that only its own reader can give: in memory, transformed on the fly, or a stream.

    They are read in order by the thread that hands out the pieces, while others work on those before.
    """

    universe: Any
    topology: Topology
    atoms: np.ndarray | None
    rows: np.ndarray
    kinds: tuple[str, ...]
    whole: bool = False
    weights: np.ndarray | None = None
    n_atoms: int = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.rows),)

    @property
    def path(self) -> str:
        return file_of(self.universe.trajectory) or "frames in memory"

    @property
    def timed(self) -> bool:
        """Whether times are known; of arrays in memory they are what the Universe was told."""
        return all(type(reader).__name__ == "MemoryReader" or stamps_of(reader) == "times"
                   for reader in readers_of(self.universe.trajectory))

    @cached_property
    def stamps(self) -> np.ndarray:
        """What the frames are told apart by, (n,): times in ps, or their numbers where none are known."""
        return np.array([float(now.time) for now in self._frames(self.rows)]) if self.timed else self.rows.astype(np.float64)

    @property
    def times(self) -> np.ndarray | None:
        """Times of the frames, (n,), in ps; None where none are known."""
        return self.stamps if self.timed else None

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> LiveSource:
        check_window(start, stop, step)
        return self.picked(slice(start, stop, step))

    def reweighted(self, weights: np.ndarray) -> LiveSource:
        return replace(self, weights=weights)

    def picked(self, which: slice | np.ndarray) -> LiveSource:
        return replace(self, rows=self.rows[which], weights=None if self.weights is None else self.weights[which])

    def _frames(self, rows: np.ndarray) -> Iterator[Any]:
        trajectory = self.universe.trajectory
        for frame in rows:
            # step by step where frames follow each other: transformations such as NoJump look at the frame before
            follows = frame > 0 and trajectory.frame == frame - 1
            try:
                now = trajectory.next() if follows else trajectory[int(frame)]
            except Exception as error:
                raise InputError(f"frame {frame} of {self.path} cannot be read ({type(error).__name__}: "
                                 f"{one_line(error)})") from error
            if now.n_atoms != self.n_atoms:
                raise InputError(f"frame {frame} of {self.path} has {now.n_atoms} atoms, the topology has {self.n_atoms}: one "
                                 "trajectory has the same atoms throughout")
            yield now

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        n_atoms, timed = len(self.topology), self.timed
        width = sum(self.fields[name].nbytes for name in names)
        rows = max(1, min(limit, BATCH) // max(1, width))
        rows = 1 << (rows.bit_length() - 1)         # blocks that tree sums can join
        for start, stop, _ in cuts_of(self.fields, names, len(self.rows), "time", False, limit):
            for a in range(start, stop, rows):
                chosen = self.rows[a:min(a + rows, stop)]
                fields = {name: np.empty((len(chosen), 3, 3) if name == "box" else (len(chosen), n_atoms, 3), np.float32)
                          for name in names}
                times = np.empty(len(chosen))
                for k, now in enumerate(self._frames(chosen)):
                    for name, into in fields.items():
                        take(now, name, self.atoms, into[k], int(chosen[k]), self.path)
                    times[k] = now.time
                weights = None if self.weights is None else self.weights[a:a + len(chosen)]
                yield HeldPiece(0, a, a + len(chosen), WHOLE, fields, weights, times if timed else None)


