"""One trajectory file as a part of a run, and when its frames were."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ensemblekit.errors import EnsemblekitError, InputError, one_line
from ensemblekit.md.dcd import DcdLayout
from ensemblekit.md.topology import warnings_held
from ensemblekit.md.xtc import XtcIndex

Stamps = Literal["times", "steps", ""]
"""What a file knows of when its frames were: their times, the numbers of their steps only, or nothing."""


@dataclass(frozen=True, eq=False)
class Part:
    """One trajectory file: how a worker opens it."""

    path: str
    reader: Any
    """MDAnalysis' reader class."""
    n_atoms: int
    options: Mapping[str, Any] = field(default_factory=dict)
    xtc: XtcIndex | None = None
    """Where it is an XTC file: read without MDAnalysis."""
    dcd: DcdLayout | None = None
    """Where it is a plain DCD file: the same."""
    shift: float = 0.0
    """Added to its times, where a part begins to count anew."""
    clock: tuple[float, float] | None = None
    """First time and step, where the times in the file run backwards."""
    knows: Stamps = "times"
    """Of when its frames were."""

    def open(self) -> Any:
        return self.reader(self.path, n_atoms=self.n_atoms, **self.options)


@contextmanager
def reading(path: object) -> Iterator[None]:
    """MDAnalysis' reader at work, its warnings held back and what it trips over an InputError that names the file."""
    try:
        with warnings_held():
            yield
    except EnsemblekitError:
        raise
    except Exception as error:
        raise InputError(f"{os.path.basename(str(path))} cannot be read ({type(error).__name__}: {one_line(error)}). Copy the "
                         "file again from its source") from error


def readers_of(trajectory: Any) -> list[Any]:
    """The readers of a trajectory of MDAnalysis: one a file."""
    return list(getattr(trajectory, "readers", None) or [trajectory])


def file_of(reader: Any) -> str:
    """The file that a reader of MDAnalysis reads; "" of one that reads none."""
    name = getattr(reader, "filename", None)
    return os.fspath(name) if isinstance(name, str | os.PathLike) else ""


def options_of(reader: Any) -> Mapping[str, Any]:
    """What a reader of MDAnalysis was told about the times of its frames."""
    return getattr(reader, "_ts_kwargs", {})


def stamps_of(reader: Any) -> Stamps:
    """What a file knows of when its frames were, by what its reader made of the first."""
    name, data = type(reader).__name__, reader.ts.data
    if not getattr(reader, "timed", True):      # an H5MD file without times
        return "steps" if "step" in data else ""
    if name == "DCDReader":
        return "times" if knows_interval(reader) else ""
    if "dt" in options_of(reader):
        return "times"
    if name == "DumpReader":      # its times are steps of 1 ps, which no file says
        return "steps"
    if "time" in data:
        return "times" if getattr(reader, "has_time", True) else ""
    return "steps" if "step" in data else ""


def knows_interval(reader: Any) -> bool:
    """Whether the header of a DCD file says how far its frames are apart: programs that copy frames write every step of
    none or one in units of 48.9 fs, in which no run was made."""
    from MDAnalysis.units import convert

    delta, every = float(reader._file.header["delta"]), int(reader._file.header["nsavc"])
    interval, written = float(reader.ts.dt), float(convert(delta, reader.units["time"], "ps")) * every
    given = abs(interval - written) > 1e-6 * abs(interval)
    return given or not (delta in (0.0, 1.0) and every <= 1)


def unit_of(part: Part) -> str:
    return " ps" if part.knows == "times" else ""


def times_of(part: Part) -> np.ndarray:
    """Times of all frames of a file, in ps; steps, or the numbers of frames, where it knows no times."""
    if part.clock is not None and part.xtc is not None:
        return part.clock[0] + part.clock[1] * np.arange(len(part.xtc)) + part.shift
    if part.xtc is not None:
        return part.xtc.times() + part.shift
    if part.dcd is not None:
        return part.dcd.times() + part.shift
    with reading(part.path), part.open() as reader:
        n = reader.n_frames
        if part.knows == "steps":
            return steps_of(reader) + part.shift
        if part.reader.__name__ == "DumpReader":
            return steps_of(reader) * float(reader.ts.dt) + reader.ts.data.get("time_offset", 0.0) + part.shift
        if not part.knows:
            return np.arange(float(n)) + part.shift
        first, last = float(reader[0].time), float(reader[n - 1].time)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = float(reader.dt)
        even = first + step * np.arange(n)
        middle = n // 2
        if abs(even[-1] - last) <= 1e-6 * max(abs(last), 1.0) and abs(float(reader[middle].time) - even[middle]) <= 1e-6 * max(
                abs(last), 1.0):
            return even + part.shift
        return np.array([float(now.time) for now in reader]) + part.shift


def steps_of(reader: Any) -> np.ndarray:
    """The numbers of the steps of all frames of an open file, (n,)."""
    places = getattr(reader, "_offsets", None)
    if type(reader).__name__ != "DumpReader" or places is None or len(places) != reader.n_frames:
        return np.array([float(now.data["step"]) for now in reader])
    steps = np.empty(len(places))
    for k, place in enumerate(places):      # without the atoms
        reader._file.seek(place)
        reader._file.readline()
        steps[k] = int(reader._file.readline())
    return steps
