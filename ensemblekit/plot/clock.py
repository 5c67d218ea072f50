"""The axis of times of a figure: dates where times are counted from one, numbers in their unit else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.intake_labels import Labels
from ensemblekit.plot.style import label

if TYPE_CHECKING:
    from matplotlib.axis import Axis


@dataclass(frozen=True, eq=False)
class Clock:
    """Where snapshots lie along an axis of times, what that is called, and how its ticks are written."""

    x: np.ndarray
    """(n,) float64: days since matplotlib's epoch where there are dates, times or numbers of snapshots else."""
    name: str
    labels: Labels | None = None
    """Of dates that datetime64 does not hold (calendars without leap days and so on)."""
    time_unit: str = ""
    dated: bool = False

    @classmethod
    def of(cls, times: np.ndarray | None, n: int, time_unit: str, labels: Labels | None) -> Clock:
        """That of n snapshots at these times."""
        if times is None:
            return cls(np.arange(n, dtype=np.float64), "snapshot")
        times = np.asarray(times)
        dates = None if labels is None or not labels.epoch else labels.dates(times, time_unit)
        if dates is None:
            return cls(times, label("time", time_unit))
        if dates.dtype.kind != "M":
            return cls(times, "time", labels, time_unit, True)
        from matplotlib.dates import date2num

        return cls(np.asarray(date2num(dates)), "time", dated=True)

    def write(self, axis: Axis) -> None:
        """Dates at the ticks of an axis, where there are any."""
        if not self.dated:
            return
        if (labels := self.labels) is not None:
            axis.set_major_formatter(lambda x, _: labels.dates(np.array([x]), self.time_unit)[0].isoformat()[:10])
            return
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator()
        axis.set_major_locator(locator)
        axis.set_major_formatter(ConciseDateFormatter(locator))
