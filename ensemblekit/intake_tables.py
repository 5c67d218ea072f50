"""Tables of pandas: the index as times where it is one, columns by their names. pandas itself is not imported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.foreign import DataFrame, HasDtype, HasKind, Table
from ensemblekit.intake import SNAPSHOT_AXES
from ensemblekit.intake_dates import numbers_of_dates
from ensemblekit.intake_labels import Coordinate, Labels


def is_table(x: object) -> bool:
    """Whether x is a Series or DataFrame of pandas (or speaks as one does)."""
    return isinstance(x, Table)


def labels_of_table(x: Any, field: str) -> Labels:
    """The names of the columns as the axis of a snapshot; no axis for a Series."""
    if not isinstance(x, DataFrame):
        return Labels({field: ()}, time=str(x.index.name or "time"))
    names = np.array([" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in x.columns])
    axis = str(x.columns.name or "column")
    return Labels({field: (axis,)}, {axis: Coordinate((axis,), names)}, time=str(x.index.name or "time"))


def times_of_table(x: Any, time_unit: str, labels: Labels) -> tuple[np.ndarray | None, str, Labels]:
    """The index as times, where it is of dates, of lengths of time, of real numbers that rise, or is called a time.

    Other indices (a number a row, words) say the order alone.
    """
    index = x.index
    kind = index.dtype.kind if isinstance(index, HasDtype) and isinstance(index.dtype, HasKind) else "O"
    if kind in "mM":
        dates = index
        if getattr(index, "tz", None) is not None:
            dates = index.tz_convert("UTC").tz_localize(None)
        numbers, unit, epoch, calendar = numbers_of_dates(dates.to_numpy())
        if numbers is None:
            return numbers, unit, labels
        return numbers, unit, replace(labels, epoch=epoch, calendar=calendar)
    named = str(index.name or "").lower() in SNAPSHOT_AXES
    if kind in "iuf" and (named or kind == "f"):
        values = np.asarray(index, np.float64)
        if np.isfinite(values).all() and (np.diff(values) >= 0).all():
            return values, time_unit, labels
    return None, time_unit, labels
