"""What observables are made ready with: the atoms, the frames that will be averaged, and reads of their own."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from ensemblekit.averaging.run import Branch, reduce
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.md.complexes import Images, Watch, molecules_of, ties_between
from ensemblekit.md.progress import Progress, counted
from ensemblekit.md.topology import Topology, warnings_held
from ensemblekit.md.trajectory import BATCH, FrameSource
from ensemblekit.md.whole import AsStored, MadeWhole, positions_of, unbonded
from ensemblekit.source import Block, DescribedSource, ReplicaSet, StackedSource
from ensemblekit.source_cuts import WHOLE
from ensemblekit.source_protocol import SourceView

PLACED = re.compile(r"\b(around|sphlayer|sphzone|cylayer|cyzone|isolayer|point|box)\b|\bprop\s+(abs\s+)?[xyz]\b")
"""Selections that go by the place of atoms."""


def by_place(text: str) -> bool:
    """Whether a selection goes by the place of atoms, so that it may differ from frame to frame."""
    return PLACED.search(text) is not None


class Frame(NamedTuple):
    """One frame as it is in the file."""

    position: np.ndarray
    """(atoms, 3) float32, angstrom."""
    box: np.ndarray | None
    """(3, 3) float64, rows are cell vectors, angstrom; None where there is no periodic box."""
    time: float
    """In ps; NaN where the file has none."""


Gather = Callable[[Block], tuple[np.ndarray, np.ndarray]]
"""Block -> (positions (n, m, 3), index (k,)): atom j of the selection is positions[:, index[j]]."""


class System:
    """The atoms and frames of one `md.average`. Observables read from it; it counts what they read."""

    def __init__(self, source: DescribedSource, topology: Topology, engine: Engine | None = None, *,
                 progress: Progress = False, whole: bool | None = None):
        self.source, self.topology, self.engine, self.progress = source, topology, engine, progress
        self.whole = molecules_whole(source) if whole is None else whole
        """Molecules are whole in the frames as they are."""
        self.timed = [times_known(run) for run in (source.runs if isinstance(source, ReplicaSet) else (source,))]
        """Of each replica, whether its frames have times."""
        self._gathers: dict[bytes, Gather] = {}
        self._watches: dict[bytes, list[int]] = {}
        self._forget: weakref.finalize | None = None     # removes the temporary store
        self.passes: list[str] = []
        """What each read before the averaging one was for."""
        self._first: Frame | None = None
        self._notes: list[str] = []
        self.watched: list[Watch] = []
        """Selections of several molecules whose images are watched while the frames are averaged."""
        self._watching: list[int] = []

    def note(self, words: str) -> None:
        """Have the answer say this of the observable that is prepared."""
        self._notes.append(words)

    def pop_notes(self) -> list[str]:
        """What is to be said about the observable that was prepared last, each once."""
        said, self._notes = list(dict.fromkeys(self._notes)), []
        return said

    def take_watched(self) -> list[int]:
        """Which of `watched` the observable that was prepared last is about."""
        watched, self._watching = list(dict.fromkeys(self._watching)), []
        return watched

    @property
    def n_frames(self) -> int:
        """Frames that will be averaged, over all replicas."""
        return sum(self.source.lengths or ())

    @property
    def boxed(self) -> bool:
        """Whether the frames have a periodic box."""
        return "box" in self.source.fields

    def select(self, text: str) -> np.ndarray:
        """Indices of the atoms of a selection, ascending; InputError where it is empty or cannot be read.

        Selections by place ("around 5 protein") are those of the first frame, which the answer will say.
        """
        if by_place(text):
            first = self.first_frame()
            self._notes.append(f"{text!r} are the atoms that lie there in the first frame, in all frames")
            return self.topology.select(text, first.position, first.box)
        return self.topology.select(text)

    def masses(self, atoms: np.ndarray) -> np.ndarray:
        """Masses in u, noted where they were guessed; InputError where one is not known."""
        masses = self.topology.masses[atoms]
        if not np.isfinite(masses).all() or masses.sum() <= 0:
            raise InputError(f"the topology has no masses for {int((~np.isfinite(masses)).sum())} of these {len(atoms)} atoms; "
                             "pass weights=None, or read with a topology that has them (TPR, PSF, PRMTOP)")
        self.note_guessed(atoms)
        return masses

    def note_guessed(self, atoms: np.ndarray) -> None:
        """Have the answer say where the masses of these atoms were guessed."""
        if "masses" in self.topology.guessed:
            none = int((self.topology.masses[atoms] == 0).sum())
            self._notes.append("the topology has no masses; MDAnalysis guessed them from the names of the atoms"
                               + (f", and {none} of {len(atoms)} count nothing, as it knows none for them" if none else ""))

    def charges(self, atoms: np.ndarray) -> np.ndarray:
        """Charges in e; InputError where one is not known."""
        charges = self.topology.charges[atoms]
        if not np.isfinite(charges).all():
            raise InputError(f"the topology has no charges for {int((~np.isfinite(charges)).sum())} of these {len(atoms)} "
                             "atoms; read with a topology that has them (TPR, PSF, PRMTOP)")
        return charges

    def first_frame(self) -> Frame:
        """The first frame (of the first run of several), for references and shifts."""
        if self._first is None:
            names = [name for name in ("position", "box") if name in self.source.fields]
            for piece in self.source.window(0, 1).pieces(names, "time", False, 1):
                for block in piece.blocks():
                    self._first = self._first or Frame(
                        np.array(positions_of(block)[0]),
                        np.array(block.fields["box"][0], np.float64) if "box" in names else None,
                        float("nan") if block.times is None else float(block.times[0]))
        if self._first is None:
            raise InputError("there are no frames to average")
        return self._first

    def gather(self, atoms: np.ndarray) -> Gather:
        """How a map gets the positions of these atoms (any order) with their molecules whole; no copy where nothing is to do.

        Without a box, or where the frames are whole already, the positions of the block as they are. Raises InputError
        where there is a box and the topology has no bonds: atoms of one molecule may lie on both sides of it.
        """
        atoms = as_array(atoms, "atoms")
        if not self.boxed or self.whole or len(atoms) < 2:
            return AsStored(atoms)
        if self.topology.bonds is None:
            raise unbonded(len(atoms))
        key = atoms.tobytes()
        if key not in self._gathers:
            self._gathers[key] = MadeWhole(atoms, self.topology) if self._broken(atoms) else AsStored(atoms)
        return self._gathers[key]

    def in_place(self, atoms: np.ndarray) -> Gather:
        """For distances not to the nearest image: molecules whole as far as bonds are known, else the atoms as they lie."""
        if self.boxed and not self.whole and self.topology.bonds is None and len(atoms) > 1:
            self._notes.append("taken as the atoms lie: no nearest image was wanted, and without bonds molecules that the box "
                               "cuts cannot be made whole")
            return AsStored(np.asarray(atoms))
        return self.gather(atoms)

    def note_apart(self, atoms: np.ndarray) -> None:
        """Have the answer say that molecules of a selection that varies (`atoms` at first) are not put together."""
        chains = [one for one in molecules_of(self.topology, atoms) if np.ptp(self.topology.residue_of[one]) > 0]
        if self.boxed and not self.whole and len(chains) > 1:
            self._notes.append("atoms are chosen anew in every frame: each molecule is whole, but several that belong together "
                               "are not brought into one image. Put them together before (gmx trjconv -pbc cluster)")

    def assembled(self, atoms: np.ndarray, groups: Sequence[np.ndarray] | None = None) -> Gather:
        """As :meth:`gather`, and molecules that touch in the first frame in one piece: for what is about their shape.

        groups: within each of which molecules are put together; all of `atoms` by default. Frames that are whole already
        stay as they are. Where several molecules are about, their images are watched.
        """
        atoms = np.asarray(atoms)
        if not self.boxed or len(atoms) < 2:
            return self.gather(atoms)
        several = [(group, molecules) for group in (groups if groups is not None else [atoms])
                   if (molecules := molecules_of(self.topology, group))]
        if not several:
            return self.gather(atoms)
        key = b"assembled" + b";".join(group.tobytes() for group in (*(groups or ()), atoms))
        if key not in self._gathers:
            self.gather(atoms)      # refuses what cannot be made whole
            first = self.first_frame()
            pairs = [np.zeros((0, 2), np.int64) if self.whole or first.box is None else
                     ties_between(self.topology, molecules, first.position, first.box) for _, molecules in several]
            ties, ends = np.concatenate(pairs), np.cumsum([len(one) for one in pairs])
            self._gathers[key] = MadeWhole(atoms, self.topology, ties) if len(ties) else self.gather(atoms)
            self._watches[key] = []
            for (_, molecules), some, end in zip(several, pairs, ends, strict=True):
                seen = [held for one in molecules if len(held := one[np.isin(one, atoms)])]
                if len(seen) > 1:
                    self._watches[key].append(len(self.watched))
                    span = slice(int(end) - len(some), int(end)) if len(some) else slice(0)
                    self.watched.append(Watch(Images(self._gathers[key], seen, span), len(molecules), len(some)))
        self._watching += self._watches[key]
        return self._gathers[key]

    def _broken(self, atoms: np.ndarray) -> bool:
        """Whether two of the atoms belong to one molecule; single ones need no mending."""
        fragments = self.topology.fragments
        assert fragments is not None
        return len(np.unique(fragments[atoms])) < len(atoms)

    def first_positions(self, atoms: np.ndarray) -> np.ndarray:
        """(k, 3) float64: these atoms in the first frame, their molecules whole."""
        first = self.first_frame()
        fields = {"position": first.position[None]} | ({} if first.box is None else {"box": first.box[None]})
        position, index = self.gather(atoms)(Block(fields, 0, WHOLE, None, None))
        return position[0, index].astype(np.float64)

    def first_hole(self, gather: Gather) -> str:
        """The first frame of which an atom that is gathered is not finite, in words; "" where all are."""
        from ensemblekit.md.holes import first_hole

        def gathered(block: Block) -> np.ndarray:
            positions, index = gather(block)
            return positions[:, index]

        names = [name for name in ("position", "box") if name in self.source.fields]
        runs = self.source.runs if isinstance(self.source, ReplicaSet) else (self.source,)
        holes = (first_hole(run, names, gathered) for run in runs)
        return next((f"run {k}, {where}" if len(runs) > 1 else where for k, where in enumerate(holes) if where), "")

    def reduce(self, branches: Mapping[str, Branch], why: str) -> Any:
        """One more read of all frames (replicas one after the other), which is counted and told with its reason.

        Frames that are not in a store are copied into a temporary one first.
        """
        self._materialize()
        self.passes.append(why)
        names = [name for name in ("position", "box") if name in self.source.fields]
        source = self.source.stacked() if isinstance(self.source, ReplicaSet) else self.source
        with warnings_held(), counted(self.progress, self.n_frames, why) as tell:
            return reduce(source, branches, fields=names, engine=self.engine, limit=BATCH, progress=tell)

    def stored(self, why: str) -> tuple[Any, ...]:
        """The runs as stored sources, for readers of their own; counted as one more read."""
        self._materialize()
        self.passes.append(why)
        if _unstored(self.source):
            raise InputError("these frames must be read again and there is no room for a temporary store; copy them into one "
                             "first, with md.ingest")
        return self.source.runs if isinstance(self.source, ReplicaSet) else (self.source,)

    def passes_in_words(self) -> str:
        """The reads this takes, in words."""
        reads = [*self.passes, "averages"]
        return f"{len(reads)} passes over {self.n_frames} frames: {', '.join(reads)}"

    def _materialize(self) -> None:
        """Frames that must be read again lie in a store from now on."""
        if self._forget is not None or not _unstored(self.source):
            return
        nbytes = self.n_frames * sum(field.nbytes for field in self.source.fields.values())
        folder = tempfile.mkdtemp(prefix="ensemblekit-")
        self._forget = weakref.finalize(self, shutil.rmtree, folder, True)
        if shutil.disk_usage(folder).free < 1.2 * nbytes + (64 << 20):
            return              # no room: the files are read again instead
        from ensemblekit.md.ingest import copied

        self.passes.append("copy into a temporary store, as it is read again")
        runs = self.source.runs if isinstance(self.source, ReplicaSet) else (self.source,)
        stores = [copied(run, os.path.join(folder, f"{k}.h5md"), self.engine, self.progress)
                  for k, run in enumerate(runs)]
        self.source = ReplicaSet(tuple(stores)) if isinstance(self.source, ReplicaSet) else stores[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._forget is not None:
            self._forget()


def _unstored(source: DescribedSource) -> bool:
    """Whether frames come from trajectory files or a Universe."""
    if isinstance(source, ReplicaSet):
        return any(map(_unstored, source.runs))
    return isinstance(source, FrameSource) and not source.in_memory


def times_known(source: DescribedSource) -> bool:
    """Whether the frames of a source have times; where its files knew none, they are counted."""
    return all(one.timed if isinstance(one, FrameSource) else bool(one.provenance.get("timed", True)) for one in _read(source))


def molecules_whole(source: DescribedSource) -> bool:
    """Whether a source says that its molecules are whole."""
    return all(one.whole if isinstance(one, FrameSource) else bool(one.provenance.get("whole", False)) for one in _read(source))


def _read(source: DescribedSource) -> Iterator[DescribedSource]:
    """What is read in the end: the runs, their parts, and below the views of them."""
    if isinstance(source, ReplicaSet | StackedSource):
        for run in source.runs:
            yield from _read(run)
    elif isinstance(source, SourceView):
        yield from _read(source.source)
    else:
        yield source
