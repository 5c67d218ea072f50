"""Coulomb sums over all periodic images: how Ewald's sum is split, and field and potential of one frame at some points.

Ewald, Ann. Phys. 369, 253 (1921). Errors of both parts: Kolafa & Perram, Mol. Simul. 9, 351 (1992). The zero of the potential
is its mean over the cell (k = 0 is left out, and the mean of the screened charges taken off), so that it does not depend on
the split; a charged cell stands in a uniform background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.observables.dipole import COULOMB

PAIR, EXACT_PAIR, SCANNED, WAVE = 22.0, 55.0, 3.0, 0.35
"""Nanoseconds: a pair within the cutoff off the table, and without it; one that is looked at; a phase of an atom."""
TABULATED = 1e-6
"""The tolerance, V / angstrom, down to which the real part is read off a table."""
CUTOFFS = np.geomspace(2.0, 80.0, 60)
"""Angstrom: among which the cutoff of real space is chosen."""


@dataclass(frozen=True)
class Split:
    """Where Ewald's sum is cut: charges are screened by Gaussians of width 1 / (sqrt(2) alpha)."""

    alpha: float
    """1 / angstrom."""
    cutoff: float
    """Of the real part, in angstrom."""
    longest: float
    """Wave vector of the reciprocal part, in 1 / angstrom."""
    exact: bool = True
    """Whether each pair of the real part is computed by itself; else it is read off a table, to 1e-7 of it."""

    @classmethod
    def within(cls, tolerance: float, cutoff: float, volume: float, squares: float) -> Self:
        """With this cutoff, so that both parts have this rms error of the field of a unit charge, V / angstrom.

        squares: sum of the squared charges.
        """
        q = math.sqrt(max(squares, 1e-12))
        ratio = 2 * COULOMB * q / (tolerance * math.sqrt(volume * cutoff))
        alpha = math.sqrt(max(math.log(ratio), 0.25)) / cutoff if ratio > 1 else 0.5 / cutoff
        return cls(alpha, cutoff, _longest(tolerance, alpha, volume, q), tolerance < TABULATED)

    @classmethod
    def at(cls, alpha: float, tolerance: float, volume: float, squares: float) -> Self:
        """With this screening, and cutoffs as :meth:`within` has them."""
        q = math.sqrt(max(squares, 1e-12))
        cutoff = 1 / alpha
        while 2 * COULOMB * q / math.sqrt(volume * cutoff) * math.exp(-(alpha * cutoff) ** 2) > tolerance:
            cutoff *= 1.01
        return cls(alpha, cutoff, _longest(tolerance, alpha, volume, q), tolerance < TABULATED)

    @classmethod
    def cheapest(cls, tolerance: float, volume: float, squares: float, charges: int, points: int) -> Self:
        """The one that takes the least time for so many charges and points."""
        best, least = None, math.inf
        for cutoff in CUTOFFS:
            split = cls.within(tolerance, float(cutoff), volume, squares)
            inside = charges * 4 / 3 * math.pi * cutoff**3 / volume
            waves = volume * split.longest**3 / (12 * math.pi**2)
            pair = EXACT_PAIR if split.exact else PAIR
            cost = points * (inside * pair + max(charges, inside) * SCANNED) + (charges + points) * waves * WAVE
            if cost < least:
                best, least = split, cost
        assert best is not None
        return best

    def __str__(self) -> str:
        return (f"screening {self.alpha:.4g} / Å, cutoff {self.cutoff:.4g} Å, wave vectors to {self.longest:.4g} / Å")


@lru_cache(maxsize=8)
def _table(split: Split) -> np.ndarray:
    """Of the real part; empty where each pair is computed."""
    from ensemblekit.md.kernels_ewald import screened_table

    none = np.empty((0, 3))
    if split.exact:
        return none
    table = np.empty((screened_table(split.alpha, split.cutoff, none), 3))
    screened_table(split.alpha, split.cutoff, table)
    return table


def _longest(tolerance: float, alpha: float, volume: float, q: float) -> float:
    """The wave vector beyond which the reciprocal part leaves this error."""
    k = alpha
    while COULOMB * q * alpha * math.sqrt(8 / (volume * k)) * math.exp(-k * k / (4 * alpha * alpha)) > tolerance:
        k *= 1.01
    return k


class Charges(NamedTuple):
    """Charges that act, sorted by group."""

    atoms: np.ndarray
    """(m,) their numbers in the frame."""
    values: np.ndarray
    """(m,) in e."""
    offsets: np.ndarray
    """(groups + 1,): group g is offsets[g] to offsets[g + 1]."""

    @property
    def group(self) -> np.ndarray:
        """(m,) of each charge."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def net(self) -> np.ndarray:
        """(groups,) charge of each group."""
        return np.bincount(self.group, self.values, len(self.offsets) - 1)


class Excluded(NamedTuple):
    """Charges that do not act on a place, by their number among those that do act."""

    begin: np.ndarray
    """(points + 1,)"""
    slots: np.ndarray


class Close(InputError):
    """A place lies on a charge that acts."""

    def __init__(self, point: int):
        self.point = point
        super().__init__(f"place {point} lies within 0.01 angstrom of a charge that acts on it")


def coulomb(points: np.ndarray, positions: np.ndarray, charges: Charges, cell: np.ndarray | None, split: Split | None,
            excluded: Excluded) -> tuple[np.ndarray, np.ndarray] | None:
    """Field (points, groups, 3) in V / angstrom and potential (points, groups) in V of one frame.

    Arguments:
        points: (p, 3), anywhere.
        positions: (atoms, 3) of the frame, wrapped or not.
        cell: (3, 3), rows are vectors; None: there is none.
        split: of Ewald's sum; None: of each charge the nearest image alone.

    Returns None where the cell has no volume or a position is not finite. Raises Close.
    """
    from ensemblekit.md.kernels_ewald import plain_part, real_part, reciprocal_part, take_out
    from ensemblekit.md.kernels_pbc import into_brick, lower_triangular

    lower, turn = np.eye(3), np.eye(3)
    periodic = cell is not None
    x = np.empty((3, len(charges.atoms)))
    if periodic:
        if not lower_triangular(np.ascontiguousarray(cell, np.float64), lower, turn) > 0:
            return None
        if not into_brick(positions, charges.atoms, lower, turn, x):
            return None
    else:
        x[:] = np.asarray(positions[charges.atoms], np.float64).T
    if not (np.isfinite(points).all() and np.isfinite(x).all()):
        return None
    groups = len(charges.offsets) - 1
    field, potential = np.zeros((len(points), groups, 3)), np.zeros((len(points), groups))
    close, rotated = np.zeros(len(points), np.int64), np.ascontiguousarray(points @ turn)
    if split is None:
        plain_part(rotated, x, charges.values, charges.offsets, lower, periodic, field, potential, close)
    else:
        real_part(rotated, x, charges.values, charges.offsets, lower, split.alpha, split.cutoff, _table(split), field,
                  potential, close)
        reciprocal_part(rotated, x, charges.values, charges.offsets, lower, split.alpha, split.longest, field, potential)
        potential -= math.pi * charges.net / (split.alpha**2 * np.linalg.det(lower))
    take_out(rotated, x, charges.values, charges.group, *excluded, lower, 0.0 if split is None else split.alpha, periodic,
             field, potential, close)
    if close.any():
        raise Close(int(np.flatnonzero(close)[0]))
    return COULOMB * (field @ turn.T), COULOMB * potential


def surface_terms(points: np.ndarray, dipole: np.ndarray, cell: np.ndarray, surface: str) -> tuple[np.ndarray, np.ndarray]:
    """What another medium than a conductor around the periodic cells adds, to field and potential as :func:`coulomb` has them.

    dipole: (groups, 3) of whole molecules, e angstrom. "vacuum": a sphere of cells in vacuum (de Leeuw, Perram & Smith, Proc.
    R. Soc. A 373, 27, 1980). "slab-z": layers across z with vacuum between (Yeh & Berkowitz, J. Chem. Phys. 111, 3155, 1999).
    """
    volume, middle = abs(float(np.linalg.det(cell))), 0.5 * cell.sum(axis=0)
    scale = 4 * math.pi * COULOMB / volume
    acting = dipole * (1 / 3 if surface == "vacuum" else np.array([0.0, 0.0, 1.0])) * scale
    field = np.broadcast_to(-acting, (len(points), *acting.shape))
    return field, (points - middle) @ acting.T
