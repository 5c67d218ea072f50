"""Molecules of one selection that belong together: tied where they touch, and watched where the box may part them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np

from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.run_states import RunStates
from ensemblekit.md.topology import Topology, mdanalysis
from ensemblekit.source import Array, Block

MOST = 20
"""Molecules of a selection that may be a complex; of more only the polymers, and of more of these none."""
POLYMER = 4
"""Residues of a molecule that make a polymer of it: not a lipid."""
CONTACT = 8.0
"""Angstrom between heavy atoms of molecules that touch."""
FAR = 0.8
"""Part of half the cell's height by which tied molecules may part; beyond, the nearest image says little."""
ABOUT = 0.25
"""Of a box vector, by which a jump may differ from it."""
PROBES = 64
"""Atoms that stand for a molecule, at the most."""


def molecules_of(topology: Topology, atoms: np.ndarray) -> list[np.ndarray]:
    """The molecules of a selection that may be a complex, each as the selected atoms it has: two or more, or none.

    Without bonds a molecule is what goes on with rising residue numbers in one segment.
    """
    atoms = np.unique(atoms)
    if topology.fragments is not None:
        labels = topology.fragments[atoms]
    else:
        segids, resids = topology.segids[atoms], topology.resids[atoms]
        labels = np.concatenate([[0], np.cumsum((segids[1:] != segids[:-1]) | (resids[1:] < resids[:-1]))])
    names, which = np.unique(labels, return_inverse=True)
    if len(names) > MOST:
        residues = np.unique(np.column_stack([which, topology.residue_of[atoms]]), axis=0)
        kept = np.flatnonzero(np.bincount(residues[:, 0], minlength=len(names)) >= POLYMER)
    else:
        kept = np.arange(len(names))
    if not 2 <= len(kept) <= MOST:
        return []
    order = np.argsort(which, kind="stable")
    edges = np.searchsorted(which[order], np.arange(len(names) + 1))
    return [atoms[order[edges[k]:edges[k + 1]]] for k in kept]


def ties_between(topology: Topology, molecules: list[np.ndarray], position: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Pairs of atoms (ties, 2) that touch, one for each molecule that is tied to one before it: a tree of each complex.

    position, box: of the frame in which they touch, across the box too. Of the pairs of two molecules that which has
    most others about it, amid their interface.
    """
    assert topology.fragments is not None
    sets = [np.flatnonzero(topology.fragments == topology.fragments[atoms[0]]) for atoms in molecules]
    heavy = _heavy(topology)
    sets = [atoms[heavy[atoms]] if heavy[atoms].any() else atoms for atoms in sets]
    sizes = _cell(box)
    ties, left = [], list(range(len(molecules)))
    while left:
        complex_ = [left.pop(0)]
        for one in complex_:        # grows while it is walked
            for other in list(left):
                if max(len(sets[one]), len(sets[other])) < 2:
                    continue        # ions and water wander
                pair = _touching(position, sets[one], sets[other], sizes)
                if pair is not None:
                    ties.append(pair)
                    complex_.append(other)
                    left.remove(other)
    return np.array(ties, np.int64).reshape(-1, 2)


def _touching(position: np.ndarray, a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> tuple[int, int] | None:
    with mdanalysis():
        from MDAnalysis.lib.distances import capped_distance

        pairs = capped_distance(position[a], position[b], CONTACT, box=sizes, return_distances=False)
    if not len(pairs):
        return None
    amid = np.bincount(pairs[:, 0])[pairs[:, 0]] + np.bincount(pairs[:, 1])[pairs[:, 1]]
    i, j = pairs[int(np.argmax(amid))]
    return int(a[i]), int(b[j])


def _heavy(topology: Topology) -> np.ndarray:
    """Which atoms are no hydrogens, by mass, else by the first letter of their names."""
    masses = topology.masses
    letters = np.array([str(name).lstrip("0123456789")[:1].upper() for name in topology.names])
    return np.where(np.isfinite(masses) & (masses > 0), masses > 1.5, letters != "H")


def _cell(box: np.ndarray) -> np.ndarray:
    from MDAnalysis.lib.mdamath import triclinic_box

    return triclinic_box(*np.asarray(box, np.float64))


class Images:
    """Map of blocks: how the molecules of a selection lie to each other in the box, one row a frame.

    A row is: 1 where assembling moved a molecule, else 0; the longest tie in halves of the cell's height; and for each
    molecule after the first its centre from that of the first, in units of the cell (3 numbers), and how far that is in
    units of the cell's height.

    gather: Plain or Whole, of these molecules; ties: which of its ties are theirs.
    """

    def __init__(self, gather: Any, molecules: list[np.ndarray], ties: slice = slice(0)):
        self.gather, self.ties = gather, ties
        self.anchors = np.flatnonzero(np.isin(gather.anchors, np.concatenate(molecules))) if ties.stop else np.zeros(0, int)
        probes = [atoms[np.linspace(0, len(atoms) - 1, min(len(atoms), PROBES)).astype(int)] for atoms in molecules]
        self.begin = np.concatenate([[0], np.cumsum([len(p) for p in probes])[:-1]])
        self.counts = np.array([len(p) for p in probes], float)
        self.atoms = np.concatenate(probes)
        place = {int(atom): k for k, atom in enumerate(gather.atoms)}
        self.places = np.array([place[int(atom)] for atom in self.atoms])

    def __call__(self, block: Block) -> np.ndarray:
        positions, index = self.gather(block)
        raw = block.fields["position"]
        inverse = np.linalg.pinv(np.asarray(block.fields["box"], np.float64))
        x = positions[:, index[self.places]].astype(np.float64)
        centres = np.add.reduceat(x, self.begin, axis=1) / self.counts[:, None]
        heights = 1 / np.linalg.norm(inverse, axis=1).max(axis=1)       # columns of the inverse are normal to the faces
        apart = centres[:, 1:] - centres[:, :1]
        far = np.linalg.norm(apart, axis=2, keepdims=True) / heights[:, None, None]
        out = np.zeros((len(block), 2 + 4 * (len(self.begin) - 1)))
        out[:, 2:] = np.concatenate([apart @ inverse, far], axis=2).reshape(len(block), -1)
        if self.ties.stop:
            ends = self.gather.ends(positions, raw)[:, self.ties]
            out[:, 1] = np.linalg.norm(ends[:, :, 1] - ends[:, :, 0], axis=2).max(axis=1) / (heights / 2)
            if positions is not raw:
                anchors = self.anchors
                moved = (self.gather.anchored(positions)[:, anchors] - raw[:, self.gather.anchors[anchors]]).astype(np.float64)
                out[:, 0] = (np.abs(moved @ inverse) > 0.5).any(axis=(1, 2))
        return out


class Watched(NamedTuple):
    """What was seen of a selection's molecules in one run."""

    n: int
    assembled: int
    """Frames in which a molecule was put next to the others."""
    longest: float
    """The longest tie, in halves of the cell's height."""
    jump: int | None
    """The first frame in which a molecule lies about a box vector further from the first one than in the frame before."""


class ImageJumps:
    """Whether molecules jump by about a box vector between frames, from rows of :class:`Images`. Merges in order."""

    def __init__(self) -> None:
        self.n, self.start, self.assembled, self.longest, self.jump = 0, 0, 0, 0.0, -1
        self.first, self.last = np.zeros(0), np.zeros(0)

    def empty(self) -> Self:
        return type(self)()

    def update(self, values: Any, start: int, weights: Array | None = None) -> None:
        if not len(values):
            return
        rows = np.asarray(values, np.float64)
        later = self.empty()
        later.n, later.start, later.first, later.last = len(rows), start, rows[0, 2:].copy(), rows[-1, 2:].copy()
        later.assembled = int((rows[:, 0] > 0).sum())
        later.longest = float(np.nanmax(rows[:, 1], initial=0.0))
        jumps = _jumps(rows[:-1, 2:], rows[1:, 2:])
        later.jump = start + 1 + int(np.argmax(jumps)) if jumps.any() else -1
        self.merge(later)

    def merge(self, later: Self) -> None:
        if not later.n:
            return
        if not self.n:
            self.start, self.first = later.start, later.first
        elif self.jump < 0 and _jumps(self.last[None], later.first[None]).any():
            self.jump = later.start
        if self.jump < 0:
            self.jump = later.jump
        self.last = later.last
        self.n, self.assembled = self.n + later.n, self.assembled + later.assembled
        self.longest = max(self.longest, later.longest)

    def result(self) -> Watched:
        return Watched(self.n, self.assembled, self.longest, None if self.jump < 0 else self.jump)

    def state(self) -> dict[str, np.ndarray]:
        return {"counts": np.array([self.n, self.start, self.assembled, self.jump], np.int64),
                "longest": np.array(self.longest), "first": self.first, "last": self.last}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.start, new.assembled, new.jump = (int(k) for k in state["counts"])
        new.longest, new.first, new.last = float(state["longest"]), np.array(state["first"]), np.array(state["last"])
        return new


def _jumps(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which frames (n,) have a molecule that moved by about a box vector, and came closer or further by that.

    A long complex that turns round moves its molecules as far, and they stay as far apart.
    """
    way = (after - before).reshape(len(after), after.shape[1] // 4, 4)
    with np.errstate(invalid="ignore"):
        vectors = np.rint(way[..., :3])
        about = (vectors != 0).any(-1) & (np.abs(way[..., :3] - vectors) < ABOUT).all(-1)
        return (about & (np.abs(way[..., 3]) > ABOUT)).any(-1)


class Watch(NamedTuple):
    """A selection of several molecules."""

    images: Images
    molecules: int
    tied: int
    """How many of them are tied to another."""


def in_words(seen: Watched, molecules: int, tied: int) -> tuple[str, str]:
    """(what is to be noted, what makes the answer doubtful) of a selection's molecules; "" where nothing is."""
    note = doubt = ""
    if seen.assembled:
        note = (f"its {molecules} molecules lay in different images in {seen.assembled} of {seen.n} frames and were put "
                "together as they touch in the first frame")
    if seen.jump is not None:
        doubt = (f"two of its {molecules} molecules move apart by about a box vector at frame {seen.jump}"
                 + (": put them together with transformations=" if not tied else ""))
    elif seen.longest > FAR:
        doubt = (f"two of its {molecules} molecules that touch in the first frame come as far apart as half the box, where the "
                 "nearest image says nothing")
    return note, doubt


def doubted_images(estimate: Estimate, name: str, watch: Watch, runs: Sequence[RunStates],
                   branch: str) -> tuple[Estimate, list[str]]:
    """The estimate, doubted where molecules of its selection are parted by the box; and what is to be noted.

    branch: of the runs' :class:`ImageJumps`.
    """
    notes = []
    for run in runs:
        note, doubt = in_words(run.results(branch)[0], watch.molecules, watch.tied)
        where = f" (run {run.run})" if len(runs) > 1 else ""
        notes += [f"{name}{where}: {note}"] if note else []     # one for each group of atoms
        if doubt:
            further = {key: more.with_doubt(doubt + where) for key, more in estimate.derived.items()}
            estimate = replace(estimate, derived=further).with_doubt(doubt + where)
    return estimate, notes


__all__ = ["ImageJumps", "Images", "Watch", "Watched", "doubted_images", "in_words", "molecules_of", "ties_between"]
