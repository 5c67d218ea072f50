"""What labels see: FRET between two dyes, paramagnetic relaxation by a spin label."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Mean, Measurement, OfMean, SameAtoms
from ensemblekit.md.observables.groups import Points, points_of, residues_of
from ensemblekit.md.system import System
from ensemblekit.source import Block

SPIN_LABEL = 1.23e16
"""K of a nitroxide, angstrom^6 / s²: 1.23e-32 cm^6 / s² (Battiste & Wagner, Biochemistry 39, 5355, 2000)."""


@dataclass(frozen=True)
class FRET(SameAtoms):
    """Efficiency of energy transfer between two dyes, ⟨1 / (1 + (r/r0)^6)⟩: each conformer transfers by itself.

    Further: `distance`, the plain mean in angstrom; `dynamic`, k / (1 + k) with k = ⟨(r0/r)^6⟩, for distances that change
    within the lifetime of the donor.
    """

    select_a: str
    select_b: str
    """The dyes (or the atoms they hang on): one atom each, or a group by its plain centre."""
    r0: float = 54.0
    """Förster's distance, angstrom."""
    periodic: bool = True

    def prepare(self, system: System) -> Measurement:
        _check_above_zero("r0", self.r0)
        a, b = system.select(self.select_a), system.select(self.select_b)
        points = points_of(system, [a, b], None, self.periodic)
        return Measurement(partial(_transfer, points, float(self.r0)), {
            "": Mean(bounds=(0.0, 1.0), of=partial(_column, 0)),
            "distance": Mean("Angstrom", bounds=(0.0, None), of=partial(_column, 1)),
            "dynamic": OfMean(_dynamic, bounds=(0.0, 1.0))})


def _check_above_zero(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} is a number above 0; got {value!r}")


def _distances(points: Points, pairs: np.ndarray, block: Block) -> np.ndarray:
    from ensemblekit.md.kernels_geometry import distances

    out = np.empty((len(block), len(pairs)))
    for rows, x, boxes in points.parts(block):
        distances(x, pairs, boxes, out[rows])
    return out


def _transfer(points: Points, r0: float, block: Block) -> np.ndarray:
    """Efficiency, distance and (r0/r)^6 of each frame, (n, 3)."""
    r = _distances(points, np.array([[0, 1]]), block)[:, 0]
    with np.errstate(divide="ignore"):
        return np.stack([1 / (1 + (r / r0) ** 6), r, (r0 / r) ** 6], axis=1)


def _column(k: int, values: np.ndarray) -> np.ndarray:
    return values[:, k]


def _dynamic(mean: np.ndarray) -> np.ndarray:
    return np.asarray(mean[2] / (1 + mean[2]))


@dataclass(frozen=True)
class PRE(SameAtoms):
    """Transverse relaxation that a spin label adds to nuclei, Γ2 = K ⟨r^-6⟩ (4 τc + 3 τc / (1 + (ω τc)²)); 1/s, (atoms,).

    Solomon & Bloembergen, with one correlation time for all (Battiste & Wagner 2000). Further: `ratio`, of the intensities
    with the label to those without, R2 exp(-Γ2 t) / (R2 + Γ2).
    """

    label: str
    """The unpaired electron: one atom, or a group by its plain centre."""
    select: str = "name H"
    tau_c: float = 4.0
    """Of the vector from electron to nucleus, ns."""
    _: KW_ONLY
    larmor: float = 600.0
    """Of protons, MHz."""
    r2: float = 10.0
    """Of the nuclei without the label, 1/s."""
    delay: float = 10.0
    """Time of transverse magnetisation, ms."""

    def prepare(self, system: System) -> Measurement:
        for name in ("tau_c", "larmor", "r2", "delay"):
            _check_above_zero(name, {"tau_c": self.tau_c, "larmor": self.larmor, "r2": self.r2, "delay": self.delay}[name])
        label, atoms = system.select(self.label), system.select(self.select)
        if len(np.intersect1d(label, atoms)):
            raise InputError(f"{self.select!r} holds atoms of the label {self.label!r}")
        points = points_of(system, [label, *(atoms[k:k + 1] for k in range(len(atoms)))], None, True)
        pairs = np.stack([np.zeros(len(atoms), np.int64), np.arange(1, len(atoms) + 1)], axis=1)
        tau, omega = self.tau_c * 1e-9, 2 * math.pi * self.larmor * 1e6
        factor = SPIN_LABEL * (4 * tau + 3 * tau / (1 + (omega * tau) ** 2))
        which, resids = residues_of(system, atoms)
        coords = {"residue": (resids[which], "")}
        return Measurement(partial(_relaxation, points, pairs, factor), {
            "": OfMean(np.asarray, "s-1", coords, bounds=(0.0, None)),
            "ratio": OfMean(partial(_ratio, float(self.r2), self.delay * 1e-3), "", coords, bounds=(0.0, 1.0))})


def _relaxation(points: Points, pairs: np.ndarray, factor: float, block: Block) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(factor * _distances(points, pairs, block) ** -6.0)


def _ratio(r2: float, delay: float, rate: np.ndarray) -> np.ndarray:
    return np.asarray(r2 * np.exp(-rate * delay) / (r2 + rate))
