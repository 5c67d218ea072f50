"""Trajectories as sources, read on the fly. Positions in angstrom, times in ps, velocities in angstrom/ps, forces in
kJ/(mol angstrom): MDAnalysis' units, whatever the file."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ensemblekit.errors import EnsemblekitError, InputError, one_line
from ensemblekit.files import check_input, most_bytes
from ensemblekit.md.dcd import DcdLayout
from ensemblekit.md.distinct import check_distinct
from ensemblekit.md.h5md import H5mdReader
from ensemblekit.md.topology import Topology, mdanalysis, warnings_held
from ensemblekit.md.weighted import PickedSource, WeightedSource
from ensemblekit.md.xtc import XtcIndex
from ensemblekit.parts import Order, check_order, counted_once, natural_key, order_of
from ensemblekit.source import (
    WHOLE,
    Access,
    Block,
    Cut,
    Field,
    HeldPiece,
    Piece,
    ReplicaSet,
    StackedSource,
    check_window,
    cuts_of,
)
from ensemblekit.store.hdf5 import check_inside, is_hdf5
from ensemblekit.store.schema import MD_UNITS
from ensemblekit.store.stored import StoredSource

BATCH = 8 << 20
"""Bytes of frames read at a time: they stay in the cache until the last observable has seen them."""
TRAJECTORIES = (".xtc", ".trr", ".dcd", ".nc", ".ncdf", ".trj", ".mdcrd", ".trz")
"""Suffixes of files that hold positions and no names."""
FOR_READERS = ("convert_units", "lengthunit", "timeunit", "velocityunit", "atom_style", "lammps_coordinate_convention")
"""Those that a reader needs again where a worker opens the file."""
TIMED = ("XTCReader", "TRRReader", "TNGReader", "NCDFReader", "H5MDReader")
"""Readers of files that hold a time for each frame."""
UNTIMED = ("PDBReader", "ExtendedPDBReader", "PDBQTReader", "MOL2Reader", "MMTFReader")
"""Readers of files of models, which hold none."""
MOST_TWINS = 64
"""Neighbours of one time that are compared."""
FOR_TRAJECTORIES = ("format", "dt", "in_memory", "time_offset", "lengthunit", "timeunit", "velocityunit", "convert_units",
                    "atom_style", "lammps_coordinate_convention")
"""Options of a Universe that speak of its trajectory, not of its topology."""
FRAME_BYTES = 8
"""Of a frame in a file of any format, at least."""
JOINT = 1e-3
"""Part of a time step by which two times may differ and still be one."""


@dataclass(frozen=True, eq=False)
class Part:
    """One trajectory file: how a worker opens it."""

    path: str
    reader: Any
    """MDAnalysis' reader class."""
    n_atoms: int
    options: Mapping[str, Any] = field(default_factory=dict)
    xtc: XtcIndex | None = None
    """Where it is an XTC file: read without MDAnalysis."""
    dcd: DcdLayout | None = None
    """Where it is a plain DCD file: the same."""
    shift: float = 0.0
    """Added to its times, where a part begins to count anew."""
    timed: bool = True
    """Whether it holds times, as far as its reader says."""
    clock: tuple[float, float] | None = None
    """First time and step, where the times in the file run backwards."""

    def open(self) -> Any:
        return self.reader(self.path, n_atoms=self.n_atoms, **self.options)


class FrameSource:
    """What all sources of frames share: fields by what the first frame holds, one run, times in ps."""

    topology: Topology
    kinds: tuple[str, ...]
    whole: bool
    """Molecules are whole already, so that nothing is to be mended at the box."""
    weights: np.ndarray | None

    access: Access = "rows"
    time_unit = "ps"

    def reweighted(self, weights: np.ndarray) -> FrameSource:
        """The same frames with these statistical weights, (frames,)."""
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
        """Whether the files hold times, or an interval was said: models of a PDB file have none, and MDAnalysis counts 1 ps."""
        return not all(not part.timed or (part.reader.__name__ in UNTIMED and "dt" not in part.options) for part in self.parts)

    @cached_property
    def times(self) -> np.ndarray:
        """Times of the frames, (n,), in ps: from the headers (XTC), else first time and step, checked at the last frame."""
        every = [times_of(part) for part in self.parts]
        return np.concatenate(every)[self.rows]

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> TrajectorySource:
        check_window(start, stop, step)
        return self.picked(slice(start, stop, step))

    def reweighted(self, weights: np.ndarray) -> TrajectorySource:
        return replace(self, weights=weights)

    def picked(self, which: Any) -> TrajectorySource:
        """Some of the frames: a slice, or rising numbers."""
        return replace(self, rows=self.rows[which], weights=None if self.weights is None else self.weights[which])

    def pieces(self, names: Sequence[str], cut: Cut, tiled: bool, limit: int) -> Iterator[Piece]:
        slim = replace(self, topology=Sized(self.topology))      # pieces travel: not with all names of all atoms
        for start, stop, _ in cuts_of(self.fields, names, len(self.rows), "time", False, limit):
            yield TrajectoryPiece(0, start, stop, WHOLE, slim.picked(slice(start, stop)), tuple(names), min(limit, BATCH))


class Sized(Topology):
    """Stands for a topology where only the number of atoms counts."""

    def __init__(self, whole: Topology):
        object.__setattr__(self, "n", len(whole))

    def __len__(self) -> int:
        return self.n       # type: ignore[attr-defined]


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
            mine = source.rows[(source.rows >= source.edges[k]) & (source.rows < source.edges[k + 1])] - source.edges[k]
            plain = set(self.names) <= {"position", "box"}
            read = _read_xtc if part.xtc is not None and plain else _read_dcd if part.dcd is not None and plain else _read_any
            for fields, times in read(part, mine, source, self.names, step):
                n = len(times)
                weights = None if source.weights is None else source.weights[done:done + n]
                yield Block(fields, self.start + done, WHOLE, weights, times)
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


def take(now: Any, name: str, atoms: np.ndarray | None, out: np.ndarray, frame: int, path: Any) -> None:
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
        name = getattr(self.universe.trajectory, "filename", None)
        return os.fspath(name) if isinstance(name, str | os.PathLike) else "frames in memory"

    @cached_property
    def times(self) -> np.ndarray:
        return np.array([float(now.time) for now in self._frames(self.rows)])

    def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> LiveSource:
        check_window(start, stop, step)
        return self.picked(slice(start, stop, step))

    def reweighted(self, weights: np.ndarray) -> LiveSource:
        return replace(self, weights=weights)

    def picked(self, which: Any) -> LiveSource:
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
        n_atoms = len(self.topology)
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
                yield HeldPiece(0, a, a + len(chosen), WHOLE, fields, weights, times)


def read(topology: Any, trajectory: Any = None, *, select: str = "all", replicas: Sequence[Any] | None = None,
         start: int | None = None, stop: int | None = None, step: int | None = None, frames: Any = None,
         begin: float | None = None, end: float | None = None, transformations: Any = None, whole: bool = False,
         external: bool = False, order: Order = "auto", **options: Any) -> Any:
    """Trajectories as a source that is read on the fly, nothing copied: every format MDAnalysis reads.

    Arguments:
        topology: a topology file with `trajectory` beside it; or an MDAnalysis Universe or AtomGroup.
        trajectory: a file, a pattern, or a list: the parts of *one* run, which are put in order of their times, else
            of the numbers in their names (run_2 before run_10); see order. Frames that stand twice, in two parts or in
            one file of a run that was continued, are taken where they were written later.
        select: the atoms to read, in MDAnalysis' language.
        replicas: independent runs instead of `trajectory`: one entry a run, each a file or a list of parts.
        start, stop, step: which frames, by number; or `frames`, their numbers (rising) or a mask; or
        begin, end: the first and last time in ps, both included.
        transformations: MDAnalysis transformations (unwrap, center_in_box, NoJump, ...) as a list, or a function of the
            Universe that returns them: ``lambda u: [unwrap(u.atoms), center_in_box(u.select_atoms("protein"))]``.
        whole: molecules are whole already: nothing is mended at the box.
        external: follow also what an HDF5 file (.h5md) keeps in other files: only for files you trust, as they may point at
            any file of yours.
        order: "given" takes the parts of a list as they are listed; by default they are sorted, with a warning where the
            list had another order.
        options: for MDAnalysis.Universe (``format=``, ``dt=``, ``topology_format=``, ``guess_bonds=``, ...).

    Returns:
        a source of frames ("position"; "box", "velocity", "force" where the files have them), or a ReplicaSet.

    Raises InputError where files cannot be read, the selection is empty, or no frame is left; StoreError where an HDF5 file
    points to other files and `external` is not given.
    """
    check_order(order)
    choice = Choice(start, stop, step, frames, begin, end)
    if replicas is not None:
        if trajectory is not None:
            raise InputError("pass the trajectory of one run, or replicas=[...], one entry a run; not both")
        if isinstance(replicas, str | os.PathLike) or not len(replicas):
            raise InputError(f"replicas is a list with one entry a run (a file, or a list of its parts); got {replicas!r}")
        runs = [read(topology, run, select=select, transformations=transformations, whole=whole, external=external,
                     order=order, **options)
                for run in replicas]
        check_distinct(runs)
        return ReplicaSet(tuple(choice.of(run) for run in runs))
    if isinstance(topology, str | os.PathLike):
        universe = _universe(topology, trajectory, options, external, order)
        atoms = universe.atoms
    elif hasattr(topology, "atoms") and hasattr(topology, "universe"):
        if trajectory is not None or options:
            raise InputError("a Universe brings its trajectory: pass it alone, or the two files")
        atoms, universe = topology.atoms, topology.universe
    else:
        raise InputError("pass a topology file and its trajectory, or an MDAnalysis Universe or AtomGroup; got "
                         f"{type(topology).__name__}")
    atoms = _chosen_atoms(atoms, select)
    if transformations is not None:
        made = transformations(universe) if callable(transformations) and not isinstance(transformations, Sequence) else (
            transformations)
        universe.trajectory.add_transformations(*made)
        whole = True
    kept = {k: v for k, v in options.items() if k in FOR_READERS}
    return choice.of(_source(universe, atoms, whole, kept))


def _universe(topology: Any, trajectory: Any, options: Mapping[str, Any], external: bool,
              order: Order) -> Any:
    files = [] if trajectory is None else trajectory_files(trajectory)
    for file in (os.fspath(topology), *files):
        check_input(file)
        if not external:
            check_inside(file)
    suffix = os.path.splitext(os.fspath(topology))[1].lower()
    if suffix in TRAJECTORIES and "topology_format" not in options:
        name = os.path.basename(os.fspath(topology))
        raise InputError(f"{name} is a trajectory, which does not say of which atoms: name its topology before it (a TPR, PSF, "
                         f"PRMTOP, GRO or PDB file), topol.tpr {name}")
    with mdanalysis() as mda:
        try:
            mine = {} if not files else {k: v for k, v in options.items() if k in FOR_TRAJECTORIES}
            made = mda.Universe(os.fspath(topology), **{k: v for k, v in options.items() if k not in mine})
        except Exception as error:      # its parsers raise whatever they trip over
            raise InputError(f"{os.path.basename(os.fspath(topology))} is no topology MDAnalysis can read "
                             f"({type(error).__name__}: {one_line(error)})") from error
        if files:
            try:
                named: list[Any] = list(files)
                try:
                    made.load_new(named if len(files) > 1 else files[0], **mine)
                except Exception:
                    if "format" in mine or not all(is_hdf5(file) for file in files):
                        raise
                    named = [(file, H5mdReader) for file in files]      # other layouts than MDAnalysis' reader takes
                    mine = {**mine, "external": external} if len(files) > 1 else {
                        **mine, "external": external, "format": H5mdReader}
                    made.load_new(named if len(files) > 1 else files[0], **mine)
                if len(files) > 1:
                    by_hand = not isinstance(trajectory, str | os.PathLike)
                    listed = order_of(files, _starts(made.trajectory), order=order, tell=by_hand, stacklevel=4)
                    if listed != sorted(listed):
                        made.load_new([named[k] for k in listed], **mine)
                if not mine.get("convert_units", True):
                    _check_units(made.trajectory)
            except InputError:
                raise
            except Exception as error:
                raise InputError(_why_unreadable(files, made, error)) from error
    if not hasattr(made, "trajectory") or made.trajectory is None:
        raise InputError(f"{os.path.basename(os.fspath(topology))} holds no coordinates; name a trajectory beside it")
    return made


def _starts(trajectory: Any) -> list[float] | None:
    """When each part of a run begins, in ps."""
    with warnings_held():
        return [float(reader[0].time) for reader in trajectory.readers if reader.n_frames]


def _check_units(trajectory: Any) -> None:
    """Refuse convert_units=False where a file is in units of its own: all here are angstrom and ps."""
    for reader in getattr(trajectory, "readers", None) or [trajectory]:
        units = {kind: unit for kind, unit in reader.units.items() if kind in ("length", "time")
                 and unit not in (None, "A", "Angstrom", "angstrom", "ps")}
        name = os.path.basename(os.fspath(reader.filename))
        if units:
            raise InputError(f"convert_units=False leaves {name} in {' and '.join(units.values())}, and frames are in angstrom "
                             "and ps here: leave it out. It is for files without units (H5MD), taken for angstrom and ps")
        if None in (reader.units.get("length"), reader.units.get("time")):
            warnings.warn(f"{name} says no units: its lengths are taken for angstrom and its times for ps", stacklevel=5)


def _why_unreadable(files: Sequence[str], universe: Any, error: Exception) -> str:
    for file in files:
        if file.lower().endswith(".xtc"):
            index = XtcIndex.of(file)       # says itself what is wrong with the bytes
            if index.n_atoms != len(universe.atoms):
                return (f"{os.path.basename(file)} has {index.n_atoms} atoms, the topology {len(universe.atoms)}: take the "
                        "topology the trajectory was written with")
    return (f"{', '.join(map(os.path.basename, files))} cannot be read with this topology of {len(universe.atoms)} atoms "
            f"({type(error).__name__}: {one_line(error)})")


def trajectory_files(trajectory: Any) -> list[str]:
    """Paths of a file, a pattern, or a list of either, in order."""
    if isinstance(trajectory, str | os.PathLike):
        text = os.fspath(trajectory)
        if os.path.exists(text) or not glob.has_magic(text):
            return [text]
        found = sorted(glob.glob(text), key=natural_key)
        if not found:
            raise InputError(f"no file matches {text!r}")
        return [found[k] for k in order_of(found, tell=False)]
    if isinstance(trajectory, Sequence) and len(trajectory):
        return [path for one in trajectory for path in trajectory_files(one)]
    raise InputError(f"a trajectory is a file, a pattern, or a list of the parts of one run; got {trajectory!r}")


def _chosen_atoms(atoms: Any, select: str) -> Any:
    with mdanalysis() as mda:
        try:
            chosen = atoms if select == "all" else atoms.select_atoms(select)
        except (mda.exceptions.SelectionError, mda.exceptions.NoDataError) as error:
            raise InputError(f"the selection {select!r} cannot be read: {error}") from error
    if not len(chosen):
        raise InputError(f"the selection {select!r} is empty; the topology has {len(atoms)} atoms")
    indices = chosen.indices
    if len(np.unique(indices)) != len(indices):
        raise InputError(f"the atoms come twice ({len(indices)} named, {len(np.unique(indices))} different): pass "
                         "group.unique")
    return chosen if (np.diff(indices) > 0).all() else chosen.universe.atoms[np.sort(indices)]


@contextmanager
def _reading(path: Any) -> Iterator[None]:
    """MDAnalysis' reader at work, its warnings held back and what it trips over an InputError that names the file."""
    try:
        with warnings_held():
            yield
    except EnsemblekitError:
        raise
    except Exception as error:
        raise InputError(f"{os.path.basename(str(path))} cannot be read ({type(error).__name__}: {one_line(error)}). Copy the "
                         "file again from its source") from error


def _source(universe: Any, atoms: Any, whole: bool, kept: Mapping[str, Any]) -> Any:
    """The source that suits where the frames of a Universe come from."""
    trajectory = universe.trajectory
    n_atoms = len(universe.atoms)
    with _reading(getattr(trajectory, "filename", "the trajectory")):
        topology = Topology.of(atoms)
        first = trajectory[0] if trajectory.n_frames else None
    if first is None:
        raise InputError("the trajectory has no frame")
    if trajectory.n_atoms != n_atoms:
        raise InputError(f"the trajectory has {trajectory.n_atoms} atoms, the topology {n_atoms}")
    box = first.triclinic_dimensions
    kinds = ("position", *(kind for kind, has in (("velocity", first.has_velocities), ("force", first.has_forces),
                                                  ("box", box is not None and np.any(box))) if has))
    picked = None if len(atoms) == n_atoms else atoms.indices.astype(np.int64)
    readers = getattr(trajectory, "readers", None) or [trajectory]
    files = all(isinstance(getattr(r, "filename", None), str | os.PathLike) and os.path.isfile(r.filename)
                and type(r).__name__ != "MemoryReader" for r in readers)
    if trajectory.transformations or not files:
        return LiveSource(universe, topology, picked, np.arange(trajectory.n_frames), kinds, whole, None, n_atoms)
    parts = []
    for reader in readers:
        options = {**getattr(reader, "_ts_kwargs", {}), **kept}
        xtc = XtcIndex.of(reader.filename) if type(reader).__name__ == "XTCReader" and not options else None
        with _reading(reader.filename):
            plain = type(reader).__name__ == "DCDReader" and set(options) <= {"dt", "time_offset"}
            dcd = DcdLayout.of(reader.filename, reader) if plain else None
        if type(reader).__name__ == "XYZReader":
            _check_xyz(os.fspath(reader.filename), n_atoms)
        if reader.n_frames * FRAME_BYTES > most_bytes(reader.filename):
            raise InputError(f"{os.path.basename(reader.filename)} says it has {reader.n_frames} frames, where it has "
                             f"{os.path.getsize(reader.filename)} bytes; it is damaged or not what it says")
        if reader.n_atoms != n_atoms:
            raise InputError(f"{os.path.basename(reader.filename)} has {reader.n_atoms} atoms, the topology {n_atoms}")
        parts.append(Part(os.fspath(reader.filename), type(reader), n_atoms, options, xtc, dcd, clock=_clock(xtc),
                          timed=getattr(reader, "timed", True)))
    counts = [len(part.xtc) if part.xtc is not None else reader.n_frames for part, reader in zip(parts, readers, strict=True)]
    edges = np.concatenate([[0], np.cumsum(counts)])
    parts, rows = _joined(parts, edges)
    return TrajectorySource(tuple(parts), topology, picked, rows, edges, kinds, whole)


def _check_xyz(path: str, n_atoms: int) -> None:
    """Refuse an XYZ file whose frames differ in their atoms: its reader counts lines and would misread them."""
    if not path.lower().endswith(".xyz"):
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        frame = 0
        while True:
            head = file.readline()
            if not head.strip():
                return
            if not head.strip().isdigit() or int(head) != n_atoms:
                raise InputError(f"frame {frame} of {os.path.basename(path)} has {head.strip()[:20]} atoms, the topology has "
                                 f"{n_atoms}: one trajectory has the same atoms throughout. Write a file for each number of "
                                 "atoms")
            for _ in range(n_atoms + 1):
                file.readline()
            frame += 1


def _clock(xtc: XtcIndex | None) -> tuple[float, float] | None:
    """First time and step of a file whose times run backwards, as where several runs were written into one."""
    if xtc is None:
        return None
    times = xtc.times()
    back = np.diff(times) < 0
    if not back.any() or counted_once(times)[:int(np.flatnonzero(back)[-1]) + 1].any():     # a restart: see _written_once
        return None
    k = int(np.argmax(back)) + 1
    step = float(times[1] - times[0]) if k > 1 and times[1] > times[0] else 1.0
    name = os.path.basename(xtc.path)
    warnings.warn(f"the times of {name} run backwards at frame {k} (from {times[k - 1]:g} to {times[k]:g} ps): its "
                  f"frames are taken as one run, {step:g} ps apart. Independent runs are passed as replicas=[...], a file each",
                  stacklevel=6)
    return float(times[0]), step


def _joined(parts: list[Part], edges: np.ndarray) -> tuple[list[Part], np.ndarray]:
    """Parts of one run with times that go on, and the frames that are kept at their joints.

    Where a part begins at or before the end of the one before, the frames from its first time on are taken from the later
    part: a run that was continued from a checkpoint wrote them twice. A part that begins where the one before began
    counts anew: it is moved behind it, without its first frame where that is the last one again.
    """
    kept = [edges[0] + _written_once(parts[0], int(edges[1] - edges[0]))]
    if len(parts) == 1:
        return parts, kept[0]
    times = [times_of(part) for part in parts]
    made = [parts[0]]
    for k in range(1, len(parts)):
        before, now = times[k - 1], times[k]
        name = os.path.basename(parts[k].path)
        step = _step(before) or _step(now) or 1.0
        rows, mine = kept[-1], edges[k] + _written_once(parts[k], int(edges[k + 1] - edges[k]))
        part = parts[k]
        if (now[0] <= before[0] + JOINT * step and len(before) > 1) or now[0] == before[0] == before[-1]:
            same = _same_frame(parts[k - 1], len(before) - 1, part)
            part = replace(part, shift=float(before[-1] + (0.0 if same else step) - now[0]))
            times[k] = now + part.shift
            mine = mine[1:] if same else mine
            warnings.warn(f"{name} begins at {now[0]:g} ps like the part before it: its times are moved to go on from "
                          f"{before[-1]:g} ps. Independent runs are passed as replicas=[...]", stacklevel=5)
        else:
            twice = before[rows - edges[k - 1]] >= now[0] - JOINT * step
            if twice.any():
                kept[-1] = rows[~twice]
                warnings.warn(f"{int(twice.sum())} frames from {now[0]:g} ps on stand in {os.path.basename(parts[k - 1].path)} "
                              f"and again in {name}: those of {name} are taken", stacklevel=5)
        made.append(part)
        kept.append(mine)
    return made, np.concatenate(kept)


def _written_once(part: Part, n: int) -> np.ndarray:
    """The frames that count of the n of a file: where a run was continued into the same file, those written again later."""
    if part.xtc is None and part.reader.__name__ not in TIMED:
        return np.arange(n)
    times = times_of(part)
    kept = counted_once(times)
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back) and not kept[:int(back[-1]) + 1].any():
        return np.arange(len(times))        # runs one after the other: no restart
    for k in np.flatnonzero((np.diff(times) == 0) & kept[:-1])[:MOST_TWINS]:
        one, other = (next(_read_any_alone(part, frame)) for frame in (int(k), int(k) + 1))
        kept[k] &= not np.array_equal(one, other)
    lost = np.flatnonzero(~kept)
    if len(lost):
        frames = f"{len(lost)} frame{'s' if len(lost) > 1 else ''} from {times[lost].min():g} ps on"
        warnings.warn(f"{os.path.basename(part.path)}: {frames} stand twice, as a continued run writes them: the later "
                      "ones are taken", stacklevel=6)
    return np.flatnonzero(kept)


def _same_frame(a: Part, last: int, b: Part) -> bool:
    one, other = (next(_read_any_alone(part, frame)) for part, frame in ((a, last), (b, 0)))
    return bool(np.array_equal(one, other))


def _read_any_alone(part: Part, frame: int) -> Iterator[np.ndarray]:
    with _reading(part.path), part.open() as reader:
        yield reader[frame].positions.copy()


def _step(times: np.ndarray) -> float:
    return float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def times_of(part: Part) -> np.ndarray:
    """Times of all frames of a file, in ps."""
    if part.clock is not None and part.xtc is not None:
        return part.clock[0] + part.clock[1] * np.arange(len(part.xtc)) + part.shift
    if part.xtc is not None:
        return part.xtc.times() + part.shift
    if part.dcd is not None:
        return part.dcd.times() + part.shift
    with _reading(part.path), part.open() as reader:
        n = reader.n_frames
        first, last = float(reader[0].time), float(reader[n - 1].time)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = float(reader.dt)
        even = first + step * np.arange(n)
        middle = n // 2
        if abs(even[-1] - last) <= 1e-6 * max(abs(last), 1.0) and abs(float(reader[middle].time) - even[middle]) <= 1e-6 * max(
                abs(last), 1.0):
            return even + part.shift
        return np.array([float(now.time) for now in reader]) + part.shift


@dataclass(frozen=True)
class Choice:
    """Which frames of a run: by number, by list or mask, or by time."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None
    frames: Any = None
    begin: float | None = None
    end: float | None = None

    @property
    def everything(self) -> bool:
        return all(x is None for x in (self.start, self.stop, self.step, self.frames, self.begin, self.end))

    def rows(self, n: int, times: Callable[[], np.ndarray | None]) -> Any:
        """The choice as a slice or rising numbers of n frames; InputError where it cannot be or leaves nothing."""
        by_number = (self.start, self.stop) != (None, None)
        by_time = (self.begin, self.end) != (None, None)
        if self.frames is not None and (by_number or by_time or self.step is not None):
            raise InputError("choose frames= or start, stop, step or begin, end: one of the three")
        if by_number and by_time:
            raise InputError("choose frames by number (start, stop) or by time (begin, end), not by both")
        if self.frames is not None:
            return self._listed(n)
        step = 1 if self.step is None else self.step
        check_window(0, None, step)
        if by_time:
            known = times()
            if known is None:
                raise InputError("these frames have no times: choose them by number, start and stop")
            slack = JOINT * abs(_step(known))
            first = 0 if self.begin is None else int(np.searchsorted(known, self.begin - slack, "left"))
            last = n if self.end is None else int(np.searchsorted(known, self.end + slack, "right"))
            if first >= last:
                raise InputError(f"no frame between {self.begin} and {self.end} ps; the times run from {known[0]:g} to "
                                 f"{known[-1]:g} ps")
            return slice(first, last, step)
        chosen = range(n)[self.start:self.stop:step]
        if not len(chosen):
            raise InputError(f"start={self.start}, stop={self.stop}, step={self.step} leave none of the {n} frames")
        return slice(chosen.start, chosen.stop, step)

    def _listed(self, n: int) -> np.ndarray:
        listed = np.asarray(self.frames)
        if listed.dtype == bool:
            if listed.shape != (n,):
                raise InputError(f"a mask of frames has one entry a frame, shape ({n},); got {listed.shape}")
            listed = np.flatnonzero(listed)
        if listed.ndim != 1 or listed.dtype.kind not in "iu" or not len(listed):
            raise InputError(f"frames are numbers of frames, or a mask of shape ({n},), at least one; got {self.frames!r}")
        listed = np.where(listed < 0, listed + n, listed).astype(np.int64)
        if listed.min() < 0 or listed.max() >= n:
            raise InputError(f"frames run from 0 to {n - 1}; got {np.asarray(self.frames).min()} to "
                             f"{np.asarray(self.frames).max()}")
        if (np.diff(listed) <= 0).any():
            raise InputError("frames rise, each once: time runs forward. Weights count a frame more than once: "
                             "frame_weights=")
        return listed

    def of(self, source: Any) -> Any:
        """The chosen frames of a source of one run or several."""
        if self.everything:
            return source
        if isinstance(source, ReplicaSet):
            return ReplicaSet(tuple(self.of(run) for run in source.runs))
        (n,) = source.lengths
        rows = self.rows(n, lambda: source.times)
        if isinstance(rows, slice):
            return source.window(rows.start, rows.stop, rows.step)
        return source.picked(rows) if hasattr(source, "picked") else _numbered(source, rows)


def _numbered(source: Any, rows: np.ndarray) -> Any:
    if isinstance(source, StackedSource):
        raise InputError("frames= needs one store; several that are parts of one run take start, stop, step or begin, end")
    return PickedSource(source.window(), rows)


def trajectory_source(x: Any) -> Any:
    """A source of positions from whatever holds a trajectory."""
    from ensemblekit.md.ingest import opened

    if isinstance(x, str | os.PathLike | Sequence) or hasattr(x, "provenance"):
        x = opened(x)
    if isinstance(x, ReplicaSet):
        check_distinct(x.runs)
        return x
    if isinstance(x, FrameSource | StackedSource | StoredSource | PickedSource | WeightedSource) or hasattr(x, "provenance"):
        return x
    return read(x)


def topology_of(source: Any) -> Topology:
    """The topology that came with a source of frames."""
    from ensemblekit.md.ingest import stored_topology

    if isinstance(source, FrameSource):
        return source.topology
    if isinstance(source, ReplicaSet):
        first = topology_of(source.runs[0])
        for k, run in enumerate(source.runs[1:], 1):
            other = topology_of(run)
            if len(other) != len(first) or (other.names != first.names).any():
                raise InputError(f"replica {k} has other atoms than replica 0: replicas are runs of one system")
        return first
    if isinstance(source, StackedSource):
        return topology_of(source.runs[0])
    if hasattr(source, "source"):
        return topology_of(source.source)
    return stored_topology(source)
