"""Hydrogen bonds, by MDAnalysis' neighbour search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Mean, Measurement
from ensemblekit.md.observables.groups import one_frame
from ensemblekit.md.system import AsStored, Gather, System
from ensemblekit.md.topology import Topology, mdanalysis
from ensemblekit.md.updating import Updating, dimensions_of, universe_in_memory, updating_selection
from ensemblekit.md.whole import positions_of
from ensemblekit.source import Block


@dataclass(frozen=True)
class HydrogenBonds:
    """Number of hydrogen bonds D-H...A: D and A within `distance`, the angle D-H-A above `angle`.

    The criteria and defaults of MDAnalysis' HydrogenBondAnalysis, to the nearest image where the frames have a box. A
    hydrogen that has two acceptors counts twice.

    Who takes part, where no selections are given: with charges and masses known, by MDAnalysis' guess (hydrogens of more
    than 0.3 e, acceptors below -0.5 e); else by name, hydrogens on atoms N*, O* and S*, acceptors O* and N*, ions left
    out. A hydrogen's donor is the atom it is bonded to, or (bonds not known) the only one within 1.2 angstrom in the first
    frame.
    """

    between: tuple[str, str] | Sequence[tuple[str, str]] | None = None
    """Two selections (or several pairs): only bonds from one to the other, in either direction. None: all."""
    donors: str | None = None
    """Selections by hand; None as said above."""
    hydrogens: str | None = None
    acceptors: str | None = None
    distance: float = 3.0
    """Donor to acceptor, in angstrom."""
    angle: float = 150.0
    """At the hydrogen, in degrees."""
    _: KW_ONLY
    updating: bool = False
    """Choose the atoms of `between` anew in every frame: ("protein", "resname SOL and around 5 protein")."""

    def prepare(self, system: System) -> Measurement:
        if not (np.isfinite(self.distance) and self.distance > 0 and 0 <= self.angle < 180):
            raise InputError(f"distance is above 0 angstrom and angle from 0 to 180 degrees; got {self.distance!r} and "
                             f"{self.angle!r}")
        donors, hydrogens, acceptors = self._who(system)
        every = np.unique(np.concatenate([donors, hydrogens, acceptors]))
        sides: Any = None
        if self.updating and self.between is None:
            raise InputError("HydrogenBonds(updating=True) chooses the atoms of between= anew; pass that pair of selections")
        if self.between is not None:
            given: Any = self.between
            pairs = [given] if len(given) == 2 and isinstance(given[0], str) else list(given)
            if not pairs or any(len(pair) != 2 for pair in pairs):
                raise InputError(f"between is a pair of selections or a list of such pairs; got {self.between!r}")
            if self.updating:
                sides = _Sides([[updating_selection(system, text, True) for text in pair] for pair in pairs], every)
            else:
                sides = np.zeros((len(pairs), 2, len(every)), bool)
                for k, pair in enumerate(pairs):
                    for side, text in enumerate(pair):
                        sides[k, side] = np.isin(every, system.select(text))
                inside = every[sides.any((0, 1))]       # no search where nothing can count
                taking = np.isin(donors, inside)
                donors, hydrogens, acceptors = donors[taking], hydrogens[taking], acceptors[np.isin(acceptors, inside)]
        return Measurement(partial(_count, AsStored(every), np.searchsorted(every, donors), np.searchsorted(every, hydrogens),
                                   np.searchsorted(every, acceptors), sides, float(self.distance), float(self.angle),
                                   system.boxed), Mean(bounds=(0.0, None)))

    def _who(self, system: System) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Donors and hydrogens, pair by pair, and acceptors."""
        topology = system.topology
        known = np.isfinite(topology.charges).all() and (topology.charges != 0).any() and np.isfinite(topology.masses).all()
        guess = None
        if known and (self.hydrogens is None or self.acceptors is None):
            guess = _guesses(topology)
        names = topology.names.astype(str)
        alone = np.bincount(topology.residue_of)[topology.residue_of] == 1
        if self.acceptors is not None:
            acceptors = system.select(self.acceptors)
        elif guess is not None:
            acceptors = system.select(guess[1]) if guess[1] else np.zeros(0, np.int64)
        else:
            acceptors = np.flatnonzero((np.char.startswith(names, "O") | np.char.startswith(names, "N")) & ~alone)
        if self.hydrogens is not None:
            hydrogens = system.select(self.hydrogens)
        elif guess is not None:
            hydrogens = system.select(guess[0]) if guess[0] else np.zeros(0, np.int64)
        else:
            hydrogens = np.flatnonzero(np.char.startswith(np.char.lstrip(names, "0123456789"), "H"))
        if self.donors is not None:
            heavy = system.select(self.donors)
        elif guess is not None or self.hydrogens is not None:
            heavy = np.setdiff1d(np.arange(len(topology)), hydrogens)
        else:
            heavy = np.flatnonzero((np.char.startswith(names, "N") | np.char.startswith(names, "O")
                                    | np.char.startswith(names, "S")) & ~alone)
        donors, hydrogens = _pairs(system, heavy, hydrogens)
        for what, indices in (("hydrogens on donors", hydrogens), ("acceptors", acceptors)):
            if not len(indices):
                raise InputError(f"no {what} were found; name them with donors=, hydrogens= and acceptors=")
        return donors, hydrogens, acceptors


def _guesses(topology: Topology) -> tuple[str, str]:
    """MDAnalysis' selections of hydrogens and acceptors by charge and mass."""
    with mdanalysis():
        from MDAnalysis.analysis.hydrogenbonds import HydrogenBondAnalysis

        one = "index 0"         # it looks for pairs at once, and there are no coordinates yet
        analysis = HydrogenBondAnalysis(universe_in_memory(topology), donors_sel=one, hydrogens_sel=one, acceptors_sel=one)
        return analysis.guess_hydrogens(), analysis.guess_acceptors()


def _pairs(system: System, heavy: np.ndarray, hydrogens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each hydrogen with the heavy atom it belongs to; those that belong to none are left out."""
    bonds = system.topology.bonds
    if bonds is not None and len(bonds):
        is_h, is_d = np.zeros(len(system.topology), bool), np.zeros(len(system.topology), bool)
        is_h[hydrogens], is_d[heavy] = True, True
        both = np.concatenate([bonds, bonds[:, ::-1]])
        both = both[is_d[both[:, 0]] & is_h[both[:, 1]]]
        both = both[np.argsort(both[:, 1], kind="stable")]
        _, first = np.unique(both[:, 1], return_index=True)
        return both[first, 0], both[first, 1]
    if not len(heavy) or not len(hydrogens):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    with mdanalysis():
        from MDAnalysis.lib.distances import capped_distance

        block = one_frame(system, 0)
        box = dimensions_of(block.fields["box"][0]) if "box" in block.fields else None
        x = np.asarray(positions_of(block)[0], np.float32)
        near, lengths = capped_distance(x[heavy], x[hydrogens], 1.2, box=box)
    order = np.lexsort((lengths, near[:, 1]))
    _, first = np.unique(near[order, 1], return_index=True)
    chosen = near[order][first]
    return heavy[chosen[:, 0]], hydrogens[chosen[:, 1]]


class _Sides:
    """Block -> (n, pairs, 2, atoms): which of the atoms are on which side of which pair, in each frame."""

    def __init__(self, pairs: list[list[Updating]], every: np.ndarray):
        self.pairs, self.every = pairs, every

    def __call__(self, block: Block) -> np.ndarray:
        inside = np.zeros((len(block), len(self.pairs), 2, len(self.every)), bool)
        for k, pair in enumerate(self.pairs):
            for side, selection in enumerate(pair):
                _, atoms, begin = selection(block)
                for t in range(len(block)):
                    inside[t, k, side] = np.isin(self.every, atoms[begin[t]:begin[t + 1]])
        return inside


def _count(gather: Gather, donors: np.ndarray, hydrogens: np.ndarray, acceptors: np.ndarray, among: Any,
           distance: float, angle: float, periodic: bool, block: Block) -> np.ndarray:
    from MDAnalysis.lib.distances import calc_angles, capped_distance

    positions, index = gather(block)
    boxes = block.fields["box"] if periodic and "box" in block.fields else None
    out = np.empty(len(block))
    varying = among(block) if isinstance(among, _Sides) else None
    for t in range(len(block)):
        sides = among if varying is None else varying[t]
        x = np.ascontiguousarray(positions[t][index], np.float32)
        if not np.isfinite(x).all():
            out[t] = np.nan
            continue
        box = None if boxes is None else dimensions_of(boxes[t])
        near = capped_distance(x[donors], x[acceptors], distance, min_cutoff=1.0, box=box, return_distances=False)
        d, a = donors[near[:, 0]], acceptors[near[:, 1]]
        h = hydrogens[near[:, 0]]
        if sides is not None:
            wanted = ((sides[:, 0][:, d] & sides[:, 1][:, a]) | (sides[:, 1][:, d] & sides[:, 0][:, a])).any(0)
            d, h, a = d[wanted], h[wanted], a[wanted]
        out[t] = (np.rad2deg(calc_angles(x[d], x[h], x[a], box=box)) > angle).sum() if len(d) else 0
    return out
