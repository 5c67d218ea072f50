"""What `rom.average` answers: averages of fields by name, to be drawn, exported and saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ensemblekit.averaging.averages import Averages
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.errors import InputError
from ensemblekit.rom.mesh import Association, Mesh

STATISTICS = ("mean", "rms", "reynolds_stress", "tke")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class FieldAverages(Averages):
    """Averages by name, each an :class:`~ensemblekit.Estimate` whose arrays have the shape of the field.

    ``averages["U_mean"]``, ``"U_rms"``, ``"U_reynolds_stress"``, ``"U_tke"``; without the field's name where there is
    only one. Iterating gives the full names.
    """

    FIGURE: ClassVar[str] = "rom.average"

    mesh: Mesh | None = None
    """Points and cells, where the source has a mesh."""
    association: Mapping[str, Association] = field(default_factory=dict)
    """"<field>_<statistic>" -> "cell" or "point", where there is a mesh."""

    def __getitem__(self, name: str) -> Estimate:
        alike = [full for full in self.estimates if full.endswith(f"_{name}")]
        if name not in self.estimates and name in STATISTICS and len(alike) == 1:
            return self.estimates[alike[0]]
        return super().__getitem__(name)

    @property
    def n(self) -> int:
        """Snapshots kept."""
        return next(iter(self.estimates.values())).n

    def run_length_factor(self, name: str, target: float | None = None) -> np.ndarray:
        """By what factor the run must grow for the interval of each cell to shrink to ± target; 1 or less: enough.

        Arguments:
            name: of the average.
            target: in its unit; by default 1 % of its largest value (the largest speed, for a vector's mean).

        An interval shrinks as the root of the time averaged. NaN where nothing moves, and where it cannot be told: with fewer
        than ten independent snapshots the interval itself is not known.
        """
        one = self[name]
        if target is None:
            target = 0.01 * float(np.nanmax(np.abs(one.mean)))
        if not target > 0:
            raise InputError(f"target is half an interval, above 0; got {target!r}")
        half = 0.5 * (np.asarray(one.high) - np.asarray(one.low))
        return np.where((half > 0) & (np.asarray(one.n_eff) >= ENOUGH), (half / target) ** 2, np.nan)

    def plot(self, ax: Any = None, *, name: str | None = None, **options: Any) -> Any:
        """The figure of one of them, by default the first; options as for ``ensemblekit.plot.rom.average``."""
        return super().plot(ax, name=next(iter(self.estimates)) if name is None else name, **options)
