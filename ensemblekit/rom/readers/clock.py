"""Times of several files on one clock: each file's own unit and the instant it counts from."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence

import numpy as np

from ensemblekit.errors import SnapshotFileError
from ensemblekit.rom.readers.reader import DatedReader, Reader

SECONDS = {"fs": 1e-15, "ps": 1e-12, "ns": 1e-9, "us": 1e-6, "microseconds": 1e-6, "ms": 1e-3, "milliseconds": 1e-3,
           "s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hr": 3600.0,
           "hour": 3600.0, "d": 86400.0, "day": 86400.0, "week": 604800.0}
DATE = re.compile(r"\s*(-?\d{1,5})-(\d{1,2})-(\d{1,2})(?:[T\s]+(\d{1,2})(?=[:\sZ]|\Z)(?::(\d{1,2})(?::(\d{1,2}(?:\.\d*)?))?)?)?"
                  r"\s*(.*)\Z")
BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
"""Days before each month of a year without a leap day."""
CALENDARS = ("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day", "all_leap", "366_day", "360_day",
             "julian")


def seconds_in(unit: str) -> float | None:
    """Seconds in a unit of time; None where it is none of a fixed length (months) or not known."""
    name = unit.strip()
    return SECONDS.get(name) or SECONDS.get(name.lower().removesuffix("s") if len(name) > 2 else name.lower())


def epoch_seconds(epoch: str) -> tuple[float, str] | None:
    """The instant that times are counted from, in seconds on its calendar, and the calendar; None where it is no date."""
    match = DATE.match(epoch)
    if match is None:
        return None
    year, month, day = (int(x) for x in match.group(1, 2, 3))
    hour, minute, second = (float(x or 0) for x in match.group(4, 5, 6))
    words = match.group(7).split()
    calendar = words.pop() if words and words[-1].lower() in CALENDARS else ""
    shift = 0.0
    for word in words:
        zone = re.fullmatch(r"([-+])(\d{1,2}):?(\d{2})?", word)
        if zone:
            shift = float(f"{zone[1]}1") * (3600 * int(zone[2]) + 60 * int(zone[3] or 0))
        elif word.upper() not in ("UTC", "GMT", "Z"):
            return None
    days = _days(year, month, day, calendar.lower())
    return None if days is None else (86400.0 * days + 3600 * hour + 60 * minute + second - shift, calendar.lower())


def _days(year: int, month: int, day: int, calendar: str) -> int | None:
    if not 1 <= month <= 12:
        return None
    if calendar == "360_day":
        return 360 * year + 30 * (month - 1) + day
    if calendar in ("noleap", "365_day", "all_leap", "366_day"):
        extra = int(calendar in ("all_leap", "366_day"))
        return (365 + extra) * year + BEFORE[month - 1] + extra * (month > 2) + day
    if calendar == "julian" or (calendar != "proleptic_gregorian" and (year, month, day) < (1582, 10, 15)):
        y, m = (year, month) if month > 2 else (year - 1, month + 12)
        return 365 * y + y // 4 + (153 * (m - 3) + 2) // 5 + day - 719471
    return int(np.datetime64(f"{year:04d}-{month:02d}-{day:02d}").astype("M8[D]").astype(int)) if 0 <= year <= 9999 else None


def epoch_of(reader: Reader) -> str:
    """What the times of a reader are counted from, and the calendar; "" where it says neither."""
    return reader.epoch if isinstance(reader, DatedReader) else ""


def on_one_clock(readers: Sequence[Reader]) -> list[np.ndarray | None]:
    """Times of each reader in the unit of the first and counted from its instant.

    Raises SnapshotFileError, naming the file, where its unit or instant cannot be put on the clock of the first.
    """
    first = readers[0]
    unit, epoch = first.time_unit, epoch_of(first)
    converted: list[np.ndarray | None] = []
    for reader in readers:
        times = None if reader.times is None else np.asarray(reader.times, np.float64)
        own_unit, since = reader.time_unit, epoch_of(reader)
        if times is not None and first.times is not None and (own_unit, since) != (unit, epoch):
            times = _moved(times, reader.path, first.path, (own_unit, since), (unit, epoch))
        converted.append(times)
    return converted


def _moved(times: np.ndarray, path: str, first: str, own: tuple[str, str], wanted: tuple[str, str]) -> np.ndarray:
    a, b = seconds_in(own[0]), seconds_in(wanted[0])
    start, zero = epoch_seconds(own[1]), epoch_seconds(wanted[1])
    factor = 1.0 if own[0] == wanted[0] else None if a is None or b is None else a / b
    if factor is not None and start is not None and zero is not None and not _alike(start[1], zero[1]):
        by_date = _by_date(times, own, wanted, (start[1], zero[1]))
        if by_date is not None:
            warnings.warn(f"{path}: its calendar is {start[1] or 'standard'}, that of {os.path.basename(first)} is "
                          f"{zero[1] or 'standard'}: its snapshots are put at their dates, and lengths of time across a 29th "
                          "of February differ by a day", stacklevel=6)
            return by_date
    shift: float | None = 0.0 if own[1] == wanted[1] else None
    if start is not None and zero is not None and b is not None and shift is None and _alike(start[1], zero[1]):
        shift = (start[0] - zero[0]) / b
    if factor is None or shift is None:
        said, want = (f"{unit or 'no unit'}{f' since {since}' if since else ''}" for unit, since in (own, wanted))
        raise SnapshotFileError(path, f"counts time in {said}, {first} in {want}, and one cannot be turned into the other. Say "
                                      "the times of all snapshots with times=, or read the files one by one")
    return times * factor + shift


def _by_date(times: np.ndarray, own: tuple[str, str], wanted: tuple[str, str],
             calendars: tuple[str, str]) -> np.ndarray | None:
    """Times of a calendar without leap days at the same dates of the ordinary one, or the other way round; None where dates
    are missing there, for other calendars, or where cftime is not installed."""
    kinds = {_kind(calendar) for calendar in calendars}
    if kinds != {"standard", "noleap"}:
        return None
    try:
        import cftime
    except ImportError:
        return None
    units = []
    for (unit, epoch), calendar in zip((own, wanted), calendars, strict=True):
        units.append((f"{unit} since {epoch.removesuffix(calendar).strip() if calendar else epoch}", calendar or "standard"))
    try:
        dates = cftime.num2date(times, *units[0])
        there = [cftime.datetime(d.year, d.month, d.day, d.hour, d.minute, d.second, d.microsecond, calendar=units[1][1])
                 for d in dates]
        return np.asarray(cftime.date2num(there, *units[1]), np.float64)
    except ValueError:      # a 29th of February
        return None


def _kind(calendar: str) -> str:
    return {"": "standard", "gregorian": "standard", "proleptic_gregorian": "standard", "365_day": "noleap",
            "366_day": "all_leap"}.get(calendar, calendar)


def _alike(one: str, other: str) -> bool:
    return _kind(one) == _kind(other)       # on one axis of instants also where one changed from Julian in 1582
