"""Small-angle X-ray scattering of molecules, by Debye's formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.md.elements import elements_of
from ensemblekit.md.ensemble_files import gemmi_of
from ensemblekit.md.observables.base import Measurement, OfMean, SameAtoms
from ensemblekit.md.system import Gather, System
from ensemblekit.source import Block

VOLUMES: Mapping[str, float] = {"H": 5.15, "C": 16.44, "N": 2.49, "O": 9.13, "S": 19.86, "P": 5.73}
"""Of solvent that an atom displaces, angstrom³ (Fraser, MacRae & Suzuki, J. Appl. Cryst. 11, 693, 1978; P: Svergun, Barberato &
Koch, J. Appl. Cryst. 28, 768, 1995)."""
WATER = 0.334
"""Electrons per angstrom³."""
MOST_Q = 25.0
"""Inverse angstrom, where the form factors end: sin(theta) / lambda = 2."""
GUINIER = 1.3
"""q times the radius of gyration up to which ln I falls as q²."""
MOST_POINTS = 200_000


@dataclass(frozen=True)
class SAXS(SameAtoms):
    """Scattered intensity I(q) = Σ_ij f_i f_j sin(q r_ij) / (q r_ij) by Debye's formula; in squared electrons, an array (q,).

    Form factors of the International Tables C (1992). Distances are counted on a grid so fine that each pair's term is right
    to `tolerance`. Molecules are whole, no images. Without a hydration shell, whose programs' profiles go into
    reweighting as they are. Further: `rg`, the radius of gyration by Guinier's law, where three q are small enough;
    `kratky`, q² I(q).
    """

    q: ArrayLike
    """Inverse angstrom, (points,), above 0, at most 25."""
    select: str = "not water"
    contrast: Literal["vacuum", "solvent"] = "vacuum"
    """"solvent": less that of the displaced water, 0.334 electrons / angstrom³, in Gaussian spheres."""
    _: KW_ONLY
    tolerance: float = 1e-4
    """Of sin(q r) / (q r) of each pair."""

    def prepare(self, system: System) -> Measurement:
        q = self._checked()
        atoms = system.select(self.select)
        symbols = np.array(elements_of(system.topology, atoms))
        if (symbols == "").any():
            k = int(np.argmax(symbols == ""))
            raise InputError(f"the element of {int((symbols == '').sum())} atoms is not known (the first is "
                             f"{system.topology.names[atoms[k]]} of {system.topology.resnames[atoms[k]]}): read with a "
                             "topology that has elements")
        if not (symbols == "H").any():
            system.note("there are no hydrogens among these atoms, whose electrons are missing then; add them")
        kinds, which = np.unique(symbols, return_inverse=True)
        order = np.argsort(which, kind="stable")
        edges = np.concatenate([[0], np.cumsum(np.bincount(which))]).astype(np.int64)
        factors = np.array([form_factor(str(kind), q, self.contrast) for kind in kinds])
        gather = system.assembled(atoms)
        width = math.sqrt(8 * self.tolerance) / float(q.max())
        coords = {"q": (q, "Angstrom-1")}
        start = system.first_positions(atoms)
        weight = np.array([form_factor(str(kind), np.zeros(1), "vacuum")[0] for kind in kinds])[which]
        center = weight @ start / weight.sum()
        radius = math.sqrt(float(weight @ ((start - center) ** 2).sum(axis=1) / weight.sum()))
        low = np.flatnonzero(q * radius < GUINIER)
        more: dict[str, OfMean] = {"kratky": OfMean(partial(_kratky, q), "Angstrom-2", coords)}
        if len(low) >= 3:
            more["rg"] = OfMean(partial(_guinier, q[low], low), "Angstrom", bounds=(0.0, None))
        return Measurement(partial(_intensity, gather, order, edges, factors, q, width),
                           {"": OfMean(np.asarray, "", coords, scale="log" if self.contrast == "vacuum" else ""), **more})

    def _checked(self) -> np.ndarray:
        q = as_array(self.q, "q", kinds="biuf", dtype=np.float64)
        if q.ndim != 1 or not len(q) or not np.isfinite(q).all() or q.min() <= 0:
            raise InputError(f"q is (points,) inverse angstrom, above 0; got {self.q!r}")
        if q.max() > MOST_Q:
            raise InputError(f"form factors are known to q = {MOST_Q:g} / angstrom; got {q.max():g} (is it in 1 / nm?)")
        if self.contrast not in ("vacuum", "solvent"):
            raise InputError(f'contrast is "vacuum" or "solvent"; got {self.contrast!r}')
        if not (isinstance(self.tolerance, int | float) and 1e-8 <= self.tolerance <= 0.1):
            raise InputError(f"tolerance is from 1e-8 to 0.1; got {self.tolerance!r}")
        return q


def form_factor(element: str, q: np.ndarray, contrast: str) -> np.ndarray:
    """Electrons that scatter at q (inverse angstrom); in "solvent" less the water displaced."""
    table = gemmi_of().Element(element).it92
    if table is None:
        raise InputError(f"no form factor of {element!r} is known")
    s = (q / (4 * math.pi)) ** 2
    f = np.exp(-np.outer(s, table.b)) @ np.array(table.a) + table.c
    if contrast == "vacuum":
        return np.asarray(f)
    if element not in VOLUMES:
        raise InputError(f'the volume of {element} in solvent is not known; contrast="vacuum" needs none')
    v = VOLUMES[element]
    return np.asarray(f - WATER * v * np.exp(-(q**2) * v ** (2 / 3) / (4 * math.pi)))


def _intensity(gather: Gather, order: np.ndarray, edges: np.ndarray, factors: np.ndarray, q: np.ndarray, width: float,
               block: Block) -> np.ndarray:
    """I(q) of each frame, (n, points)."""
    from ensemblekit.md.kernels_scattering import add_pair_distances

    positions, index = gather(block)
    chosen = index[order]
    kinds = len(factors)
    alone = np.diff(edges) @ factors**2
    out = np.empty((len(positions), len(q)))
    sines = np.empty((0, len(q)))
    for t in range(len(positions)):
        x = np.ascontiguousarray(positions[t, chosen].T, np.float64)
        reach = float(np.linalg.norm(np.ptp(x, axis=1)))
        if not math.isfinite(reach):
            out[t] = np.nan
            continue
        points = int(reach / width) + 3
        if points > MOST_POINTS:
            raise InputError(f"the atoms are {reach:.0f} angstrom apart: a grid of {points} distances is too fine for them. "
                             "Are the molecules whole, and is it one that is selected?")
        counts = np.zeros((kinds, kinds, points))
        add_pair_distances(x[0], x[1], x[2], edges, width, counts)
        if len(sines) < points:
            sines = np.sinc(np.outer(np.arange(points) * (width / math.pi), q))
        out[t] = alone
        for a in range(kinds):
            for b in range(a, kinds):
                out[t] += 2 * factors[a] * factors[b] * (counts[a, b] @ sines[:points])
    return out


def _kratky(q: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return np.asarray(q**2 * mean)


def _guinier(q: np.ndarray, low: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """From the slope of ln I over q²: -Rg² / 3."""
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = np.polyfit(q**2, np.log(mean[low]), 1)[0] if (mean[low] > 0).all() else np.nan
        return np.asarray(np.sqrt(np.maximum(-3 * slope, 0.0)))
