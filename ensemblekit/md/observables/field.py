"""The electric field at atoms, bonds, centers and points, its projection, and what each group of charges adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Mean, Measurement, Quantity
from ensemblekit.md.observables.dipole import XYZ
from ensemblekit.md.places import Placed, Vectors, carried, direction
from ensemblekit.md.sources import Acting, Method, Settings, Surface, acting
from ensemblekit.md.system import System
from ensemblekit.source import Block

UNITS = {"V Angstrom-1": 1.0, "MV cm-1": 100.0}
SPELLED = {"V/A": "V Angstrom-1", "V/Å": "V Angstrom-1", "V/angstrom": "V Angstrom-1", "MV/cm": "MV cm-1"}
STARK = 16.79200537
"""cm-1 that a difference dipole of 1 debye shifts a line by in a field of 1 MV / cm (CODATA 2018)."""


@dataclass(frozen=True, eq=False)
class ElectricField:
    """The electric field that charges make at some places: a vector for each, in V / angstrom, over all periodic images.

    Of a selection or of points (points, 3); of md.Midpoint and md.Center (3,). No frame needs to be wrapped or centered.
    With it come ``magnitude``; with `along` ``projection`` (positive along it) and ``angle``; with `stark` ``shift``; with
    `by` ``groups``: what each adds, (groups, points, 3), or with `along` of the projection (groups, points).
    """

    at: Any
    """A selection (each of its atoms), md.Midpoint(a, b), md.Center(select), md.Attached(xyz, select), points (points, 3) or
    (frames, points, 3) in angstrom."""
    sources: str = "all"
    """The charges that act."""
    _: KW_ONLY
    method: Method = "auto"
    """"ewald": all images, by Ewald's sum; "nearest": of each charge the nearest image; "open": no box. "auto": the first
    where there is a box, else the last."""
    exclude: Any = "residue"
    """Whose charges do not act: "residue" or "molecule" of the atoms that make a place, "self", a number of bonds (3: as force
    fields exclude), a selection, None. Their nearest image is taken out; those further away stay."""
    by: Any = None
    """Groups: "residue" (many alike of one residue, such as water, are one), "segment", "molecule", "resname", or
    {"name": selection}."""
    along: Any = None
    """"bond" of a Midpoint, a pair of selections, or a vector."""
    stark: ArrayLike | None = None
    """A difference dipole in debye: a number along `along`, or a vector as it is in the first frame, which turns with the atoms
    of an Attached and stays elsewhere."""
    surface: Surface = "tinfoil"
    """What is around the periodic cells: "tinfoil", "vacuum", or "slab-z" for layers with vacuum between."""
    tolerance: float = 1e-4
    """Rms error of the field of a unit charge, V / angstrom."""
    unit: str = "V Angstrom-1"
    """Or "MV cm-1"."""
    updating: bool = False
    """Choose the charges that act anew in every frame, not with Ewald's sum."""

    def prepare(self, system: System) -> Measurement:
        unit = SPELLED.get(self.unit, self.unit)
        if unit not in UNITS:
            raise InputError(f"ElectricField(unit=) is one of {', '.join(map(repr, UNITS))}; got {self.unit!r}")
        action = acting(system, self.at, Settings(sources=self.sources, method=self.method, exclude=self.exclude, by=self.by,
                                                  surface=self.surface, tolerance=self.tolerance, updating=self.updating),
                        "ElectricField")
        place = action.place
        way = direction(system, self.along, place)
        dipole = self._dipole(system, place)
        axis = {} if place.single else dict(place.coords)
        points = () if place.single else (len(place),)
        size = max(1, len(place))
        quantities: dict[str, Quantity] = {
            "": Mean(unit, {**axis, **XYZ}, of=Part(0, (*points, 3))),
            "magnitude": Mean(unit, axis, (0.0, None), of=Part(0, (*points, 3), _lengths))}
        width = 3 * size
        if way is not None:
            quantities["projection"] = Mean(unit, axis, of=Part(width, points))
            quantities["angle"] = Mean("degree", axis, (0.0, 180.0), of=Part(width + size, points))
            width += 2 * size
        if dipole is not None:
            quantities["shift"] = Mean("cm-1", axis, of=Part(width, points))
            width += size
        if self.by is not None:
            groups = {"group": (action.names, "")}
            shape = (len(action.names), *points, *(() if way is not None else (3,)))
            quantities["groups"] = Mean(unit, {**groups, **axis, **({} if way is not None else XYZ)}, of=Part(width, shape))
        return Measurement(_Fields(action, way, dipole, UNITS[unit], self.by is not None), quantities)

    def _dipole(self, system: System, place: Placed) -> float | Vectors | None:
        """The difference dipole, debye: along the direction, or Block -> (n, 3)."""
        if self.stark is None:
            return None
        if np.ndim(self.stark):
            return carried(system, self.stark, place, "stark")
        number = isinstance(self.stark, int | float | np.integer | np.floating) and not isinstance(self.stark, bool)
        if not number or not np.isfinite(self.stark):
            raise InputError("ElectricField(stark=) is a difference dipole in debye, a number or a vector of three; got "
                             f"{self.stark!r}")
        if self.along is None:
            raise InputError("ElectricField(stark=) of one number is a dipole along a direction: say along=, such as "
                             'along="bond", or give a vector of three')
        return float(np.asarray(self.stark, np.float64))


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the rows of a map, (n, width) -> (n, *shape), and perhaps a function of it."""

    begin: int
    shape: tuple[int, ...]
    then: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        size = int(np.prod(self.shape))
        part = rows[:, self.begin:self.begin + size].reshape(len(rows), *self.shape)
        return part if self.then is None else self.then(part)


@dataclass(frozen=True, eq=False)
class _Fields:
    """Block -> rows: the total (points, 3), projection and angle (points,) along a direction, the shift of a line (points,),
    and the groups."""

    acting: Acting
    way: Vectors | None
    dipole: float | Vectors | None
    scale: float
    grouped: bool

    def __call__(self, block: Block) -> np.ndarray:
        field = self.scale * self.acting(block)[0]
        n, total = len(field), field.sum(axis=2)
        parts, shares = [total], np.moveaxis(field, 2, 1)
        if self.way is not None:
            way = self.way(block)
            with np.errstate(invalid="ignore", divide="ignore"):
                way = way / np.linalg.norm(way, axis=-1, keepdims=True)
                projection = np.einsum("npk,nk->np", total, way)
                cosine = projection / np.linalg.norm(total, axis=-1)
            parts += [projection, np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))]
            shares = np.einsum("ngpk,nk->ngp", shares, way)
        if self.dipole is not None:
            along = self.dipole * projection if isinstance(self.dipole, float) else np.einsum(
                "npk,nk->np", total, self.dipole(block))
            parts.append(-STARK * UNITS["MV cm-1"] / self.scale * along)
        if self.grouped:
            parts.append(shares)
        return np.concatenate([part.reshape(n, -1) for part in parts], axis=1)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(vectors, axis=-1))
