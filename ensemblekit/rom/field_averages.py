"""What `rom.average` answers: averages of fields by name, to be drawn, exported and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.files import replacing

STATISTICS = ("mean", "rms", "reynolds_stress", "tke")


@dataclass(frozen=True, slots=True, eq=False)
class FieldAverages(Mapping[str, Estimate]):
    """Averages by name, each an :class:`~ensemblekit.Estimate` whose arrays have the shape of the field.

    ``averages["U_mean"]``, ``"U_rms"``, ``"U_reynolds_stress"``, ``"U_tke"``; without the field's name where there is
    only one. Iterating gives the full names.
    """

    estimates: Mapping[str, Estimate]
    """"<field>_<statistic>" -> its estimate."""
    mesh: Any = None
    """Points and cells, where the source has a mesh."""
    association: Mapping[str, str] = field(default_factory=dict)
    """"<field>_<statistic>" -> "cell" or "point", where there is a mesh."""
    notes: tuple[str, ...] = ()
    """What there is to know of how they were made."""

    def __getitem__(self, name: str) -> Estimate:
        if name in self.estimates:
            return self.estimates[name]
        alike = [full for full in self.estimates if full.endswith(f"_{name}")]
        if len(alike) == 1 and name in STATISTICS:
            return self.estimates[alike[0]]
        raise UnknownFieldError(name, self.estimates)

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    @property
    def n(self) -> int:
        """Snapshots kept."""
        return next(iter(self.estimates.values())).n

    def arrays(self) -> dict[str, np.ndarray]:
        """For export: each average, half its interval as "U_mean_ci95", its independent snapshots as "U_mean_n_eff"."""
        found: dict[str, np.ndarray] = {}
        for name, one in self.estimates.items():
            found[name] = np.asarray(one.mean)
            found[f"{name}_ci{100 * one.confidence:g}"] = 0.5 * (np.asarray(one.high) - np.asarray(one.low))
            found[f"{name}_n_eff"] = np.asarray(one.n_eff)
        return found

    def run_longer(self, name: str, target: float | None = None) -> np.ndarray:
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

    def save(self, path: Any) -> Any:
        """Write :meth:`arrays` to an .npz file; returns its path."""
        import os

        path = os.fspath(path)
        if not path.endswith(".npz"):
            raise InputError(f"averages are saved as .npz (or exported for ParaView by rom.export); got {path!r}")
        with replacing(path, follow=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, **self.arrays())     # type: ignore[arg-type]  # its own keyword is a bool
        return path

    def __str__(self) -> str:
        return "\n".join([*(f"{name}: {one}" for name, one in self.estimates.items()), *self.notes])

    __repr__ = __str__
