"""Fields against what people write themselves: Ewald's sum in vectorised numpy at its own best split for the same tolerance,
and the sum over the nearest image of each charge, atom by atom over MDAnalysis, as programs for fields on bonds do it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.pairing import Case, Contender, paired
from ensemblekit import md
from ensemblekit.md.ewald import COULOMB, Split
from ensemblekit.md.places import Midpoint

TOLERANCE = 1e-5
POINTS = 100


@dataclass(frozen=True, slots=True)
class Box:
    """Frames of water in a cube, in memory."""

    universe: Any
    side: float
    points: np.ndarray

    @classmethod
    def make(cls, waters: int, frames: int, seed: int) -> Box:
        from benchmarks.md import universe_of_water

        rng = np.random.default_rng(seed)
        side = (waters / 0.0334) ** (1 / 3)
        shape = np.array([[0.0, 0.0, 0.0], [0.9572, 0.0, 0.0], [-0.24, 0.9266, 0.0]])
        positions = (rng.uniform(0, side, (frames, waters, 1, 3)) + shape).reshape(frames, 3 * waters, 3) % side
        universe = universe_of_water(waters)
        universe.load_new(positions.astype(np.float32), dimensions=[side, side, side, 90, 90, 90], dt=1.0)
        return cls(universe, side, rng.uniform(0, side, (POINTS, 3)))


def run(waters: int, frames: int, repeats: int) -> Iterator[Case]:
    """Both cases."""
    yield ewald(Box.make(waters, frames, 0), repeats)
    yield nearest(Box.make(8 * waters, frames, 1), repeats)


def numpy_ewald(points: np.ndarray, positions: np.ndarray, charges: np.ndarray, side: float, split: Split) -> np.ndarray:
    """Field (points, 3) in V / angstrom, of a cube, the cutoff at most half of it: everything at once in arrays."""
    from scipy.special import erfc

    d = points[:, None] - positions
    d -= side * np.rint(d / side)
    r2 = (d * d).sum(axis=2)
    p, j = np.nonzero(r2 < split.cutoff**2)
    r = np.sqrt(r2[p, j])
    screened = erfc(split.alpha * r) / r + 2 * split.alpha / np.sqrt(np.pi) * np.exp(-((split.alpha * r) ** 2))
    factor = charges[j] * screened / r**2
    out = np.stack([np.bincount(p, factor * d[p, j, k], len(points)) for k in range(3)], axis=1)
    most = int(split.longest * side / (2 * np.pi))
    n = np.stack(np.meshgrid(*[np.arange(-most, most + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    n = n[(n @ [4 * most**2 + 4 * most + 1, 2 * most + 1, 1]) > 0]      # one of each pair
    k = 2 * np.pi / side * n
    k2 = (k * k).sum(axis=1)
    k, k2 = k[k2 <= split.longest**2], k2[k2 <= split.longest**2]
    waves = np.exp(1j * (positions @ k.T)).T @ charges
    at = np.exp(1j * (points @ k.T)) * waves.conj()
    scale = 8 * np.pi / side**3 * np.exp(-k2 / (4 * split.alpha**2)) / k2
    return COULOMB * (out + (at.imag * scale) @ k)


def best_split(box: Box, charges: np.ndarray) -> Split:
    """The one that numpy is quickest with."""
    positions = box.universe.atoms.positions.astype(np.float64)
    found, least = None, np.inf
    for cutoff in np.array([0.25, 0.32, 0.4, 0.5]) * box.side:
        split = Split.within(TOLERANCE, float(cutoff), box.side**3, float(charges @ charges))
        start = time.perf_counter()
        numpy_ewald(box.points, positions, charges, box.side, split)
        took = time.perf_counter() - start
        if took < least:
            found, least = split, took
    assert found is not None
    return found


def ewald(box: Box, repeats: int) -> Case:
    """The field at fixed points, all images."""
    charges = np.asarray(box.universe.atoms.charges, np.float64)
    split = best_split(box, charges)
    frames = len(box.universe.trajectory)

    def theirs(_: Any) -> np.ndarray:
        fields = [numpy_ewald(box.points, now.positions.astype(np.float64), charges, box.side, split)
                  for now in box.universe.trajectory]
        return np.mean(fields, axis=0)

    def ours(_: Any) -> np.ndarray:
        observable = md.ElectricField(box.points, exclude=None, tolerance=TOLERANCE)
        return np.asarray(md.average(box.universe, {"E": observable}, equilibration=None)["E"].mean)

    return paired(f"Electric field, {frames} frames, {POINTS} points in {len(charges)} charges, all images",
                  [Contender("ensemblekit, with error bars", ours), Contender("numpy, vectorised", theirs)],
                  _within(20 * TOLERANCE), work=frames, unit="frames", repeats=repeats)


def nearest(box: Box, repeats: int) -> Case:
    """The field on a bond of the nearest images, every frame."""
    charges = np.asarray(box.universe.atoms.charges, np.float64)
    frames = len(box.universe.trajectory)

    def theirs(_: Any) -> np.ndarray:
        fields = []
        for now in box.universe.trajectory:
            x, side = now.positions.astype(np.float64), box.side
            way = x[1] - x[0]
            place = x[0] + 0.5 * (way - side * np.rint(way / side))
            total = np.zeros(3)
            for atom in box.universe.atoms[3:]:         # one call an atom, as they do
                d = place - x[atom.index]
                d -= side * np.rint(d / side)
                total += COULOMB * charges[atom.index] * d / np.linalg.norm(d) ** 3
            fields.append(total)
        return np.mean(fields, axis=0)

    def ours(_: Any) -> np.ndarray:
        observable = md.ElectricField(Midpoint("index 0", "index 1"), method="nearest")
        return np.asarray(md.average(box.universe, {"E": observable}, equilibration=None)["E"].mean)

    return paired(f"Electric field on a bond, {frames} frames of {len(charges)} charges, nearest images",
                  [Contender("ensemblekit, with error bars", ours), Contender("a loop over atoms", theirs, repeats=1)],
                  _within(1e-4), work=frames, unit="frames", repeats=repeats)


def _within(most: float) -> Any:
    def check(ours: np.ndarray, theirs: np.ndarray) -> None:
        assert np.abs(ours - theirs).max() < most, np.abs(ours - theirs).max()

    return check
