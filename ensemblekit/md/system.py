"""What observables are made ready with: the atoms, the frames that will be averaged, and reads of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ensemblekit.averaging.run import Branch, Progress, reduce
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.md.topology import Topology
from ensemblekit.source import Block, SnapshotSource


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

    def __init__(self, source: SnapshotSource, topology: Topology, engine: Engine | None = None, *,
                 progress: Progress = False):
        self.source, self.topology, self.engine, self.progress = source, topology, engine, progress
        self.passes: list[str] = []
        """What each read before the averaging one was for."""
        self._first: Frame | None = None

    @property
    def n_frames(self) -> int:
        """Frames that will be averaged, over all replicas."""
        return sum(self.source.lengths or ())

    @property
    def boxed(self) -> bool:
        """Whether the frames have a periodic box."""
        return "box" in self.source.fields

    def select(self, text: str) -> np.ndarray:
        """Indices of the atoms of a selection, ascending; InputError where it is empty or cannot be read."""
        return self.topology.select(text)

    def masses(self, atoms: np.ndarray) -> np.ndarray:
        """Masses in u; InputError where one is not known."""
        masses = self.topology.masses[atoms]
        if not np.isfinite(masses).all() or masses.sum() <= 0:
            raise InputError(f"the topology has no masses for {int((~np.isfinite(masses)).sum())} of these {len(atoms)} atoms; "
                             "pass weights=None, or read with a topology that has them (TPR, PSF, PRMTOP)")
        return masses

    def charges(self, atoms: np.ndarray) -> np.ndarray:
        """Charges in e; InputError where one is not known."""
        charges = self.topology.charges[atoms]
        if not np.isfinite(charges).all():
            raise InputError(f"the topology has no charges for {int((~np.isfinite(charges)).sum())} of these {len(atoms)} "
                             "atoms; read with a topology that has them (TPR, PSF, PRMTOP)")
        return charges

    def first_frame(self) -> Frame:
        """The first frame, for references and shifts."""
        if self._first is None:
            names = [name for name in ("position", "box") if name in self.source.fields]
            for piece in self.source.window(0, 1).pieces(names, "time", False, 1):
                for block in piece.blocks():
                    self._first = Frame(np.array(block.fields["position"][0]),
                                        np.array(block.fields["box"][0], np.float64) if "box" in names else None,
                                        float("nan") if block.times is None else float(block.times[0]))
        if self._first is None:
            raise InputError("there are no frames to average")
        return self._first

    def gather(self, atoms: np.ndarray) -> Gather:
        """How a map gets the positions of these atoms with their molecules whole: without a copy where nothing is to do."""
        return _Plain(np.ascontiguousarray(atoms))

    def reduce(self, branches: Mapping[str, Branch], why: str) -> Any:
        """One more read of all frames (replicas one after the other), which is counted and told with its reason."""
        self.passes.append(why)
        names = [name for name in ("position", "box") if name in self.source.fields]
        source = self.source.stacked() if hasattr(self.source, "stacked") else self.source
        return reduce(source, branches, fields=names, engine=self.engine, progress=self.progress)


class _Plain:
    """The positions of the block as they are."""

    def __init__(self, atoms: np.ndarray):
        self.atoms = atoms

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        return block.fields["position"], self.atoms
