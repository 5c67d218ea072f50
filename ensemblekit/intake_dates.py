"""Dates of snapshots as numbers that are counted from an instant, and back.

Dates are datetime64, timedelta64 and those of cftime; cftime and xarray are imported only where a calendar needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemblekit.errors import MissingExtraError
from ensemblekit.foreign import HasDtype, HasKind

ORDINARY = ("", "standard", "gregorian", "proleptic_gregorian")
"""Names of the calendar of datetime64 (apart from dates before 1582)."""
STEPS = {"days": 86_400_000_000_000, "hours": 3_600_000_000_000, "seconds": 1_000_000_000, "milliseconds": 1_000_000,
         "microseconds": 1_000, "nanoseconds": 1}
"""Units that dates are counted in -> nanoseconds."""
SPELLED = {"day": "days", "d": "days", "hour": "hours", "hr": "hours", "hrs": "hours", "h": "hours", "second": "seconds",
           "sec": "seconds", "s": "seconds", "secs": "seconds", "msec": "milliseconds", "ms": "milliseconds",
           "millisecond": "milliseconds", "microsecond": "microseconds", "us": "microseconds", "minute": "minutes",
           "min": "minutes", "mins": "minutes"}
NANOSECONDS = {**STEPS, "minutes": 60_000_000_000}


def is_cftime(x: object) -> bool:
    return type(x).__module__.partition(".")[0] == "cftime"


def numbers_of_dates(dates: Any, units: str = "", calendar: str = "") -> tuple[np.ndarray | None, str, str, str]:
    """Dates (datetime64, timedelta64 or cftime) as numbers: (times (n,), unit, epoch, calendar); None where one is missing.

    Arguments:
        units: CF's "hours since 1900-01-01" to count them in; by default since the first, in the largest unit of which
            their steps are multiples.
    """
    dates = np.asarray(dates)
    if dates.dtype.kind == "O":
        return _numbers_of_cftime(dates, units, calendar)
    if np.isnat(dates).any():
        return None, "", "", ""
    exact = dates.astype(f"{dates.dtype.kind}8[ns]").astype(np.int64)
    if dates.dtype.kind == "m":
        unit = _largest_unit(exact)
        return exact / STEPS[unit], unit, "", ""
    unit, _, epoch = units.partition(" since ")
    unit = SPELLED.get(unit.strip().lower(), unit.strip().lower())
    zero = _instant(epoch)
    if zero is None or unit not in NANOSECONDS or calendar not in ORDINARY:
        zero, unit = int(exact[0]) if len(exact) else 0, _largest_unit(exact)
        epoch, calendar = str(np.datetime64(zero, "ns").astype("M8[s]" if zero % 1_000_000_000 == 0 else "M8[ns]")).replace(
            "T", " "), ""
    return (exact - zero) / NANOSECONDS[unit], unit, epoch.strip(), calendar or "proleptic_gregorian"


def _numbers_of_cftime(dates: np.ndarray, units: str, calendar: str) -> tuple[np.ndarray | None, str, str, str]:
    cftime = package("cftime")
    if not len(dates) or any(date is None or date != date for date in dates):
        return None, "", "", ""
    calendar = calendar or dates[0].calendar
    if " since " not in units:
        units = f"days since {dates[0].isoformat(' ')}"
    unit, _, epoch = units.partition(" since ")
    return np.asarray(cftime.date2num(dates, units, calendar), np.float64), unit.strip(), epoch.strip(), calendar


def _largest_unit(nanoseconds: np.ndarray) -> str:
    steps = np.diff(nanoseconds)
    return next((unit for unit, size in STEPS.items() if len(steps) and not (steps % size).any()), "days" if not len(steps) else
                "nanoseconds")


def _instant(epoch: str) -> int | None:
    """Nanoseconds from 1970 to an instant of the ordinary calendar; None where it is written otherwise."""
    text = epoch.strip().removesuffix("Z").removesuffix("UTC").strip()
    try:
        date, _, clock = text.replace("T", " ").partition(" ")
        year, month, day = (int(k) for k in date.split("-"))
        hour, minute, second = (float(k) for k in (*clock.split(":"), "0", "0", "0")[:3]) if clock else (0.0, 0.0, 0.0)
        days = int(np.datetime64(f"{year:04d}-{month:02d}-{day:02d}", "D").astype(np.int64))
    except ValueError:
        return None
    if not 1678 <= year <= 2261:        # what nanoseconds in 64 bits reach
        return None
    return days * STEPS["days"] + round((hour * 3600 + minute * 60 + second) * 1e9)


def dates_of(times: np.ndarray, time_unit: str, epoch: str, calendar: str = "") -> np.ndarray:
    """Numbers counted from an epoch as datetime64, or dates of cftime on other calendars; the numbers where there is no epoch.

    Raises MissingExtraError where a calendar needs xarray and cftime, and they are not installed.
    """
    times = np.asarray(times, np.float64)
    if not epoch:
        return times
    zero, unit = _instant(epoch), SPELLED.get(time_unit.lower(), time_unit.lower())
    if zero is not None and unit in NANOSECONDS and calendar.lower() in ORDINARY and (
            not len(times) or np.abs(times).max() * NANOSECONDS[unit] + abs(zero) < 2.0**63 - 2.0**54):
        whole = np.floor(times)
        fine = np.rint((times - whole) * NANOSECONDS[unit]).astype(np.int64)
        held = 10 ** int(np.ceil(np.log10(max(4 * np.spacing(np.abs(times).max(initial=1.0)) * NANOSECONDS[unit], 1))))
        fine = (fine + held // 2) // held * held        # to what float64 holds of such times
        return (zero + whole.astype(np.int64) * NANOSECONDS[unit] + fine).astype("M8[ns]")
    package("cftime")
    coding = package("xarray").coding.times
    return np.asarray(coding.decode_cf_datetime(times, f"{time_unit} since {epoch}", calendar or "standard"))


def is_dates(x: object) -> bool:
    """Whether x is dates: datetime64 or timedelta64 (an index of pandas too), or a list of cftime's."""
    if isinstance(x, HasDtype) and isinstance(x.dtype, HasKind) and x.dtype.kind in "mM":
        return True
    try:
        first = x.flat[0] if isinstance(x, np.ndarray) and x.size else x[0] if isinstance(x, Sequence) and len(x) else None
    except (TypeError, KeyError):
        return False
    import datetime

    return is_cftime(first) or isinstance(first, datetime.date | np.datetime64)


def package(name: str, extra: str = "xarray") -> Any:
    """A package of an optional extra. Raises MissingExtraError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name, extra) from error
