"""The electrostatic potential at atoms, centers and points, and what each group of charges adds."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from ensemblekit.md.observables.base import Mean, Measurement, Quantity
from ensemblekit.md.observables.field import Part
from ensemblekit.md.sources import Acting, Method, Settings, Surface, acting
from ensemblekit.md.system import System
from ensemblekit.source import Block


@dataclass(frozen=True, eq=False)
class ElectricPotential:
    """The potential that charges make at some places, in V, over all periodic images; its mean over the cell is 0.

    Of a selection or of points (points,); of md.Midpoint and md.Center a number, with its series. With `by` comes ``groups``,
    (groups, points): what each adds. Arguments as those of :class:`~ensemblekit.md.observables.field.ElectricField`.
    """

    at: Any
    sources: str = "all"
    _: KW_ONLY
    method: Method = "auto"
    exclude: Any = "residue"
    by: Any = None
    surface: Surface = "tinfoil"
    tolerance: float = 1e-4
    updating: bool = False

    def prepare(self, system: System) -> Measurement:
        action = acting(system, self.at, Settings(sources=self.sources, method=self.method, exclude=self.exclude, by=self.by,
                                                  surface=self.surface, tolerance=self.tolerance, updating=self.updating),
                        "ElectricPotential")
        place = action.place
        axis = {} if place.single else dict(place.coords)
        points = () if place.single else (len(place),)
        quantities: dict[str, Quantity] = {"": Mean("V", axis, of=Part(0, points))}
        if self.by is not None:
            quantities["groups"] = Mean("V", {"group": (action.names, ""), **axis},
                                        of=Part(len(place), (len(action.names), *points)))
        return Measurement(_Potentials(action, self.by is not None), quantities)


@dataclass(frozen=True, eq=False)
class _Potentials:
    """Block -> rows: the total (points,), and the groups."""

    acting: Acting
    grouped: bool

    def __call__(self, block: Block) -> np.ndarray:
        potential = self.acting(block)[1]
        total = potential.sum(axis=2)
        if not self.grouped:
            return np.asarray(total)
        return np.concatenate([total, np.moveaxis(potential, 2, 1).reshape(len(total), -1)], axis=1)
