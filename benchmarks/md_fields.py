"""Fields against what people write themselves: Ewald's sum in vectorised numpy at its own best split for the same tolerance,
and the sum over the nearest image of each charge, atom by atom over MDAnalysis, as programs for fields on bonds do it. An
infrared spectrum against a loop that reads the velocities and does nothing with them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.memory import extra_memory
from benchmarks.pairing import Case, Contender, paired
from ensemblekit import md
from ensemblekit.md.ewald import COULOMB, Split
from ensemblekit.md.places import Midpoint
from ensemblekit.md.spectra.infrared import WAVENUMBER

TOLERANCE, LARGE_TOLERANCE = 1e-5, 1e-4
POINTS = 100
STEP = 0.002
"""Between frames of the spectrum, ps."""
MOST_PHASES = 1.2e8
"""Of atoms and waves at once, for which numpy has memory."""


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


def run(waters: int, frames: int, repeats: int, folder: Path) -> Iterator[Case]:
    """Every case: of `waters` molecules, of about ten and fifteen times as many, and a spectrum; `folder` is left empty."""
    yield ewald(Box.make(waters, frames, 0), repeats, TOLERANCE)
    yield nearest(Box.make(round(9.8365 * waters), frames, 1), repeats)
    yield ewald(Box.make(round(15.625 * waters), max(2, frames // 5), 2), min(repeats, 2), LARGE_TOLERANCE)
    moving = Moving.make(folder / "infrared.h5md", waters, 400 * frames)
    yield infrared(moving, repeats)
    for path in folder.glob("infrared.h5md*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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


def best_split(box: Box, charges: np.ndarray, tolerance: float) -> Split:
    """The one that numpy is quickest with, of those it has memory for."""
    positions = box.universe.atoms.positions.astype(np.float64)
    best, least = None, np.inf
    for cutoff in np.array([0.25, 0.32, 0.4, 0.5]) * box.side:
        split = Split.within(tolerance, float(cutoff), box.side**3, float(charges @ charges))
        if len(charges) * box.side**3 * split.longest**3 / (12 * np.pi**2) > MOST_PHASES and cutoff < 0.5 * box.side:
            continue
        start = time.perf_counter()
        numpy_ewald(box.points, positions, charges, box.side, split)
        took = time.perf_counter() - start
        if took < least:
            best, least = split, took
    assert best is not None
    return best


def mean_field(box: Box, tolerance: float) -> np.ndarray:
    """Ours."""
    observable = md.ElectricField(box.points, exclude=None, tolerance=tolerance)
    return np.asarray(md.average(box.universe, {"E": observable}, equilibration=None)["E"].mean)


def field_of_waters(waters: int, tolerance: float) -> float:
    """Ours, frames and topology made for it: for the measurement of memory."""
    box = Box.make(waters, 2, 0)
    return float(mean_field(box, tolerance)[0, 0])


def ewald(box: Box, repeats: int, tolerance: float) -> Case:
    """The field at fixed points, all images."""
    charges = np.asarray(box.universe.atoms.charges, np.float64)
    split = best_split(box, charges, tolerance)
    frames = len(box.universe.trajectory)

    def theirs(_: Any) -> np.ndarray:
        fields = [numpy_ewald(box.points, now.positions.astype(np.float64), charges, box.side, split)
                  for now in box.universe.trajectory]
        return np.mean(fields, axis=0)

    contenders = [Contender("ensemblekit, with error bars", lambda _: mean_field(box, tolerance)),
                  Contender("numpy, vectorised", theirs)]
    case = paired(f"Electric field, {frames} frames, {POINTS} points in {len(charges)} charges, all images, {tolerance:g} V/Å",
                  contenders, _within(20 * tolerance), work=frames, unit="frames", repeats=repeats)
    extra = extra_memory(field_of_waters, len(charges) // 3, tolerance, warm=(50, tolerance))
    return replace(case, facts={"seconds a frame": f"{min(case.timings[0].seconds) / frames:.4f}",
                                "anonymous memory, with two frames": _mib(extra)})


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


@dataclass(frozen=True, slots=True)
class Moving:
    """A store of water whose velocities are noise."""

    path: Path
    frames: int

    @classmethod
    def make(cls, path: Path, waters: int, frames: int) -> Moving:
        from MDAnalysis.coordinates.memory import MemoryReader

        from benchmarks.md import universe_of_water

        rng, universe = np.random.default_rng(3), universe_of_water(waters)
        shape = frames, 3 * waters, 3
        velocities = rng.standard_normal(shape, np.float32)
        universe.trajectory = MemoryReader(0.1 * velocities, dimensions=[30.0, 30, 30, 90, 90, 90], dt=STEP,
                                           velocities=velocities)
        md.ingest(universe, None, path)
        return cls(path, frames)

    @property
    def resolution(self) -> float:
        """Of eight segments, half overlapping another seven."""
        return WAVENUMBER / (STEP * (self.frames // 8))


def spectrum_of(path: str, resolution: float) -> np.ndarray:
    """Ours."""
    observable = md.Infrared(temperature=300, resolution=resolution)
    return np.asarray(md.average(path, {"ir": observable})["ir"].mean)


def infrared(moving: Moving, repeats: int) -> Case:
    """The spectrum of a store against a loop that only reads its velocities."""
    import h5py

    def theirs(_: Any) -> float:
        with h5py.File(moving.path) as file:
            values = file["particles/trajectory/velocity/value"]
            room = np.empty((64, *values.shape[1:]), values.dtype)
            for k in range(0, len(values) - 63, 64):
                values.read_direct(room, np.s_[k:k + 64])
            return float(room[0, 0, 0])

    path = str(moving.path)
    case = paired(f"Infrared spectrum from a store of {moving.frames} frames, against a loop that reads its velocities",
                  [Contender("ensemblekit, with a band", lambda _: spectrum_of(path, moving.resolution)),
                   Contender("h5py, 64 frames at a time", theirs)], lambda ours, theirs: None,
                  work=moving.frames, unit="frames", repeats=repeats)
    extra = extra_memory(spectrum_of, path, moving.resolution, warm=(path, moving.resolution))
    share = f"{1 / case.timings[1].ratio:.2f}"
    return replace(case, facts={"time over that of the loop": share, "anonymous memory": _mib(extra)})


def _mib(nbytes: int | None) -> str:
    return "unknown" if nbytes is None else f"{nbytes / 2**20:.0f} MiB"


def _within(most: float) -> Any:
    def check(ours: np.ndarray, theirs: np.ndarray) -> None:
        assert np.abs(ours - theirs).max() < most, np.abs(ours - theirs).max()

    return check
