"""Frames of H5MD files whose layout MDAnalysis' reader does not take: boxes that stay, steps as increments, no times."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.store.foreign import Foreign, Particles, particles_in
from ensemblekit.store.store import Store

LENGTHS = {"Angstrom": 1.0, "angstrom": 1.0, "A": 1.0, "nm": 10.0, "pm": 1e-2, "fm": 1e-5, "um": 1e4, "m": 1e10}
TIMES = {"ps": 1.0, "fs": 1e-3, "ns": 1e3, "us": 1e6, "s": 1e12, "AKMA": 4.888821e-2}
ENERGIES = {"kJ": 1.0, "kcal": 4.184, "J": 1e-3, "eV": 96.48533212}
POWERS = {"position": (1, 0, 0), "box": (1, 0, 0), "velocity": (1, -1, 0), "force": (-1, 0, 1), "time": (0, 1, 0)}
"""Of length, time and energy (a mole) in each quantity."""


class H5mdReader:
    """The frames of one particles group, in the manner of MDAnalysis' readers: angstrom, ps, kJ/(mol angstrom).

    Any name of the group, one of several that has as many atoms as are asked for; edges of the box as lengths or vectors, in
    every frame or once; steps and times listed, as increments with an offset, or none: then frames are counted.
    """

    format = "H5MD"

    def __init__(self, filename: str, n_atoms: int | None = None, convert_units: bool = True, dt: float | None = None,
                 time_offset: float = 0.0, external: bool = False, **_: object):
        from MDAnalysis.coordinates.timestep import Timestep

        self.filename = os.fspath(filename)
        self._ts_kwargs = {"convert_units": convert_units, "external": external, "time_offset": time_offset,
                           **({} if dt is None else {"dt": dt})}
        self.store = Store.open(self.filename, external=external)
        group = self._group(self.store.foreign, n_atoms, external)
        self._arrays = {kind: self.store[label] for kind, label in group.fields.items()}
        self._edges = group.edges
        position, positions = self.store.foreign[group.fields["position"]], self._arrays["position"]
        self.n_atoms, self.n_frames = position.field.shape[0], len(positions)      # a restart's frames once
        short = [kind for kind, rows in self._arrays.items() if len(rows) != self.n_frames]
        if short:
            raise InputError(f"{self._name}: {', '.join(short)} and positions have different numbers of frames")
        units = {kind: self.store.foreign[label].field.unit for kind, label in group.fields.items()}
        self.units = {"length": units["position"] or None, "time": position.time_unit or None}
        self.timed = position.times is not None or dt is not None
        if convert_units:
            if not units["position"] or (position.times is not None and not position.time_unit):
                raise InputError(f"{self._name} says no units; convert_units=False takes it for angstrom and ps")
            self._factors = {kind: factor(unit or units["position"], kind, self._name) for kind, unit in units.items()}
            self._factors["edges"] = factor(units["position"], "box", self._name)
        else:
            self._factors = dict.fromkeys([*units, "edges"], 1.0)
        times: np.ndarray = np.arange(self.n_frames, dtype=np.float64)
        if position.times is not None:
            times = np.asarray(positions.times, np.float64)
            times = times * (factor(position.time_unit, "time", self._name) if convert_units else 1.0)
        if dt is not None:
            times = dt * np.arange(self.n_frames)
        self._times = times + time_offset
        self.dt = float(self._times[1] - self._times[0]) if self.n_frames > 1 else 1.0
        self.transformations: tuple[Any, ...] = ()
        self.ts = Timestep(self.n_atoms, dt=self.dt, velocities="velocity" in self._arrays, forces="force" in self._arrays)
        self.rewind()

    @property
    def _name(self) -> str:
        return os.path.basename(self.filename)

    def _group(self, foreign: Mapping[str, Foreign], n_atoms: int | None, external: bool) -> Particles:
        groups = [group for group in particles_in(self.filename, foreign, external) if "position" in group.fields]
        sizes = {group.name: foreign[group.fields["position"]].field.shape[:1] for group in groups}
        fit = [group for group in groups if n_atoms is None or sizes[group.name] == (n_atoms,)]
        if len(fit) > 1:        # by the name that MDAnalysis and VMD look for
            fit = [group for group in fit if group.name == "trajectory"] or fit
        if len(fit) == 1:
            return fit[0]
        held = ", ".join(f"{name} ({size[0] if size else 0} atoms)" for name, size in sizes.items()) or "none"
        raise InputError(f"{self._name} has the particles groups {held}" + (
            f"; {n_atoms} atoms are wanted: take the topology of one of them" if not fit else
            ": which is meant cannot be told"))

    @property
    def frame(self) -> int:
        return int(self.ts.frame)

    def __len__(self) -> int:
        return self.n_frames

    def __getitem__(self, frame: Any) -> Any:
        if isinstance(frame, slice):
            return (self[k] for k in range(*frame.indices(self.n_frames)))
        k = int(frame) + (self.n_frames if frame < 0 else 0)
        if not 0 <= k < self.n_frames:
            raise IndexError(f"frame {frame} of {self.n_frames}")
        ts = self.ts
        ts.frame, ts.time = k, self._times[k]
        for kind, array in self._arrays.items():
            values = np.asarray(array[k], np.float64) * self._factors[kind]
            if kind == "box":
                ts.triclinic_dimensions = np.diag(values) if values.ndim == 1 else values
            else:
                setattr(ts, {"position": "positions", "velocity": "velocities", "force": "forces"}[kind], values)
        if self._edges is not None:
            ts.triclinic_dimensions = self._edges * self._factors["edges"]
        for transform in self.transformations:
            ts = transform(ts)
        return ts

    def next(self) -> Any:
        if self.frame + 1 >= self.n_frames:
            raise StopIteration
        return self[self.frame + 1]

    def rewind(self) -> Any:
        return self[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[k] for k in range(self.n_frames))

    @property
    def time(self) -> float:
        return float(self.ts.time)

    def add_transformations(self, *transformations: object) -> None:
        self.transformations = transformations
        self[self.frame]

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def factor(unit: str, kind: str, name: str) -> float:
    """What numbers of this unit, in H5MD's notation ("nm ps-1"), are multiplied with to be angstrom, ps, kJ/(mol angstrom)."""
    value, powers, molar = 1.0, [0, 0, 0], 0
    for word in unit.split():
        match = re.fullmatch(r"([A-Za-z]+)([+-]?\d+)?", word)
        where = [k for k, table in enumerate((LENGTHS, TIMES, ENERGIES)) if match and match[1] in table]
        if match and match[1] == "mol":
            molar += int(match[2] or 1)
            continue
        if not where or match is None:
            raise InputError(f"{name}: the unit {unit!r} of {kind} is not known; convert_units=False takes it for the one that "
                             "is wanted here, angstrom, ps or kJ/(mol angstrom)")
        power = int(match[2] or 1)
        powers[where[0]] += power
        molar += power if where[0] == 2 and match[1] != "eV" else 0      # an electronvolt is one of a particle
        value *= (LENGTHS, TIMES, ENERGIES)[where[0]][match[1]] ** power
    if tuple(powers) != POWERS[kind] or molar:
        raise InputError(f"{name}: {unit!r} is no unit of {kind}")
    return value


__all__ = ["H5mdReader"]
