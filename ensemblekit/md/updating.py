"""Selections that are made anew in every frame: "resname SOL and around 3.5 protein"."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.system import AsStored, Gather, System, by_place
from ensemblekit.md.topology import Topology, mdanalysis
from ensemblekit.source import Block


class Updating:
    """The atoms of a selection in each frame of a block. MDAnalysis chooses, one thread at a time."""

    def __init__(self, topology: Topology, gather: Gather, text: str):
        self.topology, self.gather, self.text = topology, gather, text
        self._universe = universe_in_memory(topology)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"topology": self.topology, "gather": self.gather, "text": self.text}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Updating.__init__(self, **state)

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions (n, atoms, 3), the chosen atoms of all frames one after the other, where each frame's begin (n + 1,)."""
        positions, index = self.gather(block)
        in_place = len(index) == positions.shape[1] and (index == np.arange(len(index))).all()
        whole = positions if in_place else positions[:, index]
        chosen, offsets = self.choose(np.asarray(whole), block.fields.get("box"))
        return np.asarray(whole), chosen, offsets

    def choose(self, positions: np.ndarray, boxes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """The atoms of each frame of positions (n, atoms, 3), and where each frame's begin."""
        universe = self._universe
        selected, offsets = [], [0]
        if not by_place(self.text):         # the same in every frame
            with self._lock:
                atoms = universe.select_atoms(self.text).indices
            return np.tile(atoms, len(positions)), len(atoms) * np.arange(len(positions) + 1)
        for t, x in enumerate(positions):
            with self._lock:
                universe.trajectory.ts.positions = x
                universe.trajectory.ts.dimensions = None if boxes is None else dimensions_of(boxes[t])
                atoms = universe.select_atoms(self.text, periodic=boxes is not None).indices
            selected.append(atoms)
            offsets.append(offsets[-1] + len(atoms))
        return np.concatenate(selected) if selected else np.zeros(0, np.int64), np.array(offsets, np.int64)


class VaryingPoints:
    """As :class:`~ensemblekit.md.observables.groups.Points`: centres of groups whose atoms are chosen anew in every frame.

    A group without an atom has no centre: NaN.
    """

    def __init__(self, groups: list[Updating], mass: np.ndarray, periodic: bool):
        self.groups, self.mass, self.periodic = groups, mass, periodic

    def parts(self, block: Block) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(rows, points (rows, groups, 3) float64, boxes (rows, 3, 3) or none), all frames at once."""
        points = np.full((len(block), len(self.groups), 3), np.nan)
        for g, group in enumerate(self.groups):
            positions, atoms, begin = group(block)
            for t, x in enumerate(positions):
                chosen = atoms[begin[t]:begin[t + 1]]
                if len(chosen):
                    points[t, g] = np.average(x[chosen].astype(np.float64), axis=0, weights=self.mass[chosen])
        box = block.fields.get("box") if self.periodic else None
        yield slice(0, len(block)), points, np.zeros((0, 3, 3)) if box is None else np.ascontiguousarray(box, np.float64)


def varying_points(system: System, selects: Sequence[str], weights: str | None, periodic: bool) -> VaryingPoints:
    """The centres of these selections, of mass or (`weights` None) plain ones, chosen anew in every frame."""
    everyone = np.arange(len(system.topology))
    mass = np.ones(len(everyone)) if weights is None else system.masses(everyone)
    return VaryingPoints([updating_selection(system, select, apart=not periodic) for select in selects], mass,
                         periodic and system.boxed)


def universe_in_memory(topology: Topology) -> Any:
    """A Universe of these atoms with one frame of zeros, to be overwritten."""
    with mdanalysis():
        from MDAnalysis.coordinates.memory import MemoryReader

        universe = topology.universe()
        universe.load_new(np.zeros((1, len(topology), 3), np.float32), format=MemoryReader, order="fac")
        return universe


def dimensions_of(box: np.ndarray) -> np.ndarray | None:
    """Cell vectors (3, 3) as MDAnalysis' lengths and angles; None where there is no cell."""
    from MDAnalysis.lib.mdamath import triclinic_box

    dimensions = triclinic_box(*np.asarray(box, np.float64))
    return dimensions if dimensions[:3].all() else None


def updating_selection(system: System, text: str, as_it_is: bool = False, apart: bool = False) -> Updating:
    """A selection made anew in every frame; InputError where it cannot be read. It may be empty in some frames.

    as_it_is: molecules need not be whole. apart: nor where there are no bonds, and no images are looked for between them.
    """
    everyone = np.arange(len(system.topology))
    if not by_place(text):
        system.select(text)         # refused where it is empty: it is so in all frames
    whole = system.in_place if apart else system.gather
    selection = Updating(system.topology, AsStored(everyone) if as_it_is else whole(everyone), text)
    first = system.first_frame()
    with mdanalysis() as mda:
        try:
            atoms, _ = selection.choose(first.position[None], None if first.box is None else first.box[None])
        except (mda.exceptions.SelectionError, mda.exceptions.NoDataError) as error:
            raise InputError(f"the selection {text!r} cannot be read: {error}") from error
    if not as_it_is and not apart:
        system.note_apart(atoms)
    return selection
