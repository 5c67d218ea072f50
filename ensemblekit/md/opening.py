"""Opening trajectories by their files: topology, frames, atoms and options, checked."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, one_line
from ensemblekit.files import check_input, most_bytes
from ensemblekit.foreign import AtomGroup, HasTrajectory
from ensemblekit.md.dcd import DcdLayout
from ensemblekit.md.distinct import check_distinct
from ensemblekit.md.frame_selection import FrameSelection
from ensemblekit.md.h5md import H5mdReader
from ensemblekit.md.joints import joined
from ensemblekit.md.parts import Part, file_of, options_of, readers_of
from ensemblekit.md.parts import reading as _reading
from ensemblekit.md.parts import stamps_of as _stamps_of
from ensemblekit.md.topology import Topology, mdanalysis, warnings_held
from ensemblekit.md.trajectory import FOR_READERS, FOR_TRAJECTORIES, FRAME_BYTES, TRAJECTORIES, LiveSource, TrajectorySource
from ensemblekit.md.xtc import XtcIndex
from ensemblekit.parts import Order, check_order, natural_key, order_of, written_once
from ensemblekit.source import ReplicaSet
from ensemblekit.store.hdf5 import check_inside, is_hdf5


def read(topology: object, trajectory: object = None, *, select: str = "all", replicas: Sequence[Any] | None = None,
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
    choice = FrameSelection(start, stop, step, frames, begin, end)
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
    elif isinstance(topology, AtomGroup):
        if trajectory is not None or options:
            raise InputError("a Universe brings its trajectory: pass it alone, or the two files")
        atoms, universe = topology.atoms, topology.universe
    else:
        raise InputError("pass a topology file and its trajectory, or an MDAnalysis Universe or AtomGroup; got "
                         f"{type(topology).__name__}")
    atoms = _chosen_atoms(atoms, select)
    if transformations is not None:
        workflow = transformations(universe) if callable(transformations) and not isinstance(transformations, Sequence) else (
            transformations)
        universe.trajectory.add_transformations(*workflow)
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
            trajectory_options = {} if not files else {k: v for k, v in options.items() if k in FOR_TRAJECTORIES}
            universe = mda.Universe(os.fspath(topology), **{k: v for k, v in options.items() if k not in trajectory_options})
        except Exception as error:      # its parsers raise whatever they trip over
            raise InputError(f"{os.path.basename(os.fspath(topology))} is no topology MDAnalysis can read "
                             f"({type(error).__name__}: {one_line(error)})") from error
        if files:
            try:
                named: list[Any] = list(files)
                try:
                    universe.load_new(named if len(files) > 1 else files[0], **trajectory_options)
                except Exception:
                    if "format" in trajectory_options or not all(is_hdf5(file) for file in files):
                        raise
                    named = [(file, H5mdReader) for file in files]      # other layouts than MDAnalysis' reader takes
                    trajectory_options = {**trajectory_options, "external": external} if len(files) > 1 else {
                        **trajectory_options, "external": external, "format": H5mdReader}
                    universe.load_new(named if len(files) > 1 else files[0], **trajectory_options)
                if len(files) > 1:
                    by_hand = not isinstance(trajectory, str | os.PathLike)
                    listed = order_of(files, _starts(universe.trajectory), order=order, tell=by_hand, stacklevel=4)
                    if listed != sorted(listed):
                        universe.load_new([named[k] for k in listed], **trajectory_options)
                if not trajectory_options.get("convert_units", True):
                    _check_units(universe.trajectory)
            except InputError:
                raise
            except Exception as error:
                raise InputError(_why_unreadable(files, universe, error)) from error
    if not isinstance(universe, HasTrajectory) or universe.trajectory is None:
        raise InputError(f"{os.path.basename(os.fspath(topology))} holds no coordinates; name a trajectory beside it")
    return universe


def _starts(trajectory: Any) -> list[float] | None:
    """When each part of a run begins, in ps."""
    with warnings_held():
        return [float(reader[0].time) for reader in trajectory.readers if reader.n_frames]


def _check_units(trajectory: object) -> None:
    """Refuse convert_units=False where a file is in units of its own: all here are angstrom and ps."""
    for reader in readers_of(trajectory):
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


def trajectory_files(trajectory: object) -> list[str]:
    """Paths of a file, a pattern, or a list of either, in order."""
    if isinstance(trajectory, str | os.PathLike):
        text = os.fspath(trajectory)
        if os.path.exists(text) or not glob.has_magic(text):
            return [text]
        matches = sorted(glob.glob(text), key=natural_key)
        if not matches:
            raise InputError(f"no file matches {text!r}")
        return [matches[k] for k in order_of(matches, tell=False)]
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


def _source(universe: Any, atoms: Any, whole: bool, kept: Mapping[str, Any]) -> Any:
    """The source that suits where the frames of a Universe come from."""
    trajectory = universe.trajectory
    n_atoms = len(universe.atoms)
    with _reading(file_of(trajectory) or "the trajectory"):
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
    readers = readers_of(trajectory)
    files = all(os.path.isfile(file_of(r)) and type(r).__name__ != "MemoryReader" for r in readers)
    if trajectory.transformations or not files:
        return LiveSource(universe, topology, picked, np.arange(trajectory.n_frames), kinds, whole, None, n_atoms)
    parts = []
    for reader in readers:
        options = {**options_of(reader), **kept}
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
                          knows=_stamps_of(reader)))
    counts = [len(part.xtc) if part.xtc is not None else reader.n_frames for part, reader in zip(parts, readers, strict=True)]
    edges = np.concatenate([[0], np.cumsum(counts)])
    parts, rows = joined(parts, edges)
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
    if written_once(times) is not None:     # even where a restart goes back: see frames_that_count
        return None
    k = int(np.argmax(back)) + 1
    step = float(times[1] - times[0]) if k > 1 and times[1] > times[0] else 1.0
    name = os.path.basename(xtc.path)
    warnings.warn(f"the times of {name} run backwards at frame {k} (from {times[k - 1]:g} to {times[k]:g} ps): its "
                  f"frames are taken as one run, {step:g} ps apart. Independent runs are passed as replicas=[...], a file each",
                  stacklevel=6)
    return float(times[0]), step
