"""Functions of an AtomGroup, and analyses written for MDAnalysis, as observables."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ensemblekit import foreign
from ensemblekit.averaging.average import average as mean_with_error
from ensemblekit.averaging.equilibration import discarded
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.run_states import Periodic
from ensemblekit.averaging.seams import branches_of
from ensemblekit.averaging.times import time_at
from ensemblekit.errors import InputError
from ensemblekit.md.circle import directions, lengths, on_circle
from ensemblekit.md.observables.base import Coords, Mean, Measurement, Observable, OfMean, OfSeries, Reading
from ensemblekit.md.system import System
from ensemblekit.md.topology import Topology
from ensemblekit.md.whole import positions_of
from ensemblekit.source import ArraySource, Block

BLOCKS = 20
"""Parts of a run for analyses without a result per frame."""
REMEDY = "md.from_analysis(lambda u: {name}(u, ...), value=lambda a: a.results..., unit=\"angstrom\")"


@dataclass(frozen=True, eq=False)
class Function:
    """A function of an AtomGroup (all atoms that were read, at one frame) that returns a number or an array."""

    function: Callable[[Any], Any]
    unit: str = ""
    coords: Coords = field(default_factory=dict)
    """Axes of the array: name -> (values, unit)."""
    period: float | None = None
    """After which the values come round, 360 for torsions in degrees: they are averaged on the circle, and `resultant`, the
    length of each mean vector, comes along."""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"md.Function takes a function of an AtomGroup; got {self.function!r}")
        _check_period(self.period)

    def prepare(self, system: System) -> Measurement:
        map = _PerFrame(self.function, system.topology)
        return _measurement(map, self.unit, self.coords, self.period, system)


@dataclass(frozen=True, eq=False)
class Analysis:
    """An MDAnalysis analysis as an observable; made by :func:`from_analysis`."""

    make: Callable[[Any], Any]
    value: Callable[[Any], Any]
    unit: str
    per: Literal["frame", "block"]
    coords: Coords
    n_blocks: int
    period: float | None = None

    def prepare(self, system: System) -> Measurement:
        if self.per == "frame":
            first = system.first_frame()
            map = _PerBlock(self, system.topology, first.position, first.box)
            return _measurement(map, self.unit, self.coords, self.period, system)
        values, lengths = self._by_blocks(system)
        return Measurement(_nothing, OfSeries(_OfBlocks(values, lengths, self), self.unit, self.coords))

    def _by_blocks(self, system: System) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Its value for each part of each run, and the weight of each part."""
        from ensemblekit.md.stored import universe_and_rows
        from ensemblekit.md.topology import warnings_held

        values, shares = [], []
        for source in system.stored(f"{self.n_blocks} blocks of an analysis"):
            u, rows = universe_and_rows(source, system.topology)
            n = len(rows)
            edges = np.unique(np.linspace(0, n, min(self.n_blocks, n) + 1).astype(int))
            if source.weights is not None and len(edges) <= n:
                held = n / (len(edges) - 1)
                raise InputError(f"an analysis knows no frame weights, and its blocks hold {held:.3g} frames; with "
                                 f"n_blocks={n} every frame is a block of its own, and the blocks are weighted. Or leave "
                                 "frame_weights out, or write it as a function of an AtomGroup")
            by_part = []
            with warnings_held():
                for a, b in itertools.pairwise(edges):
                    analysis = _made(self.make, u)
                    analysis.run(frames=rows[a:b])
                    by_part.append(np.asarray(self.value(analysis), np.float64))
            u.trajectory.close()
            if len({x.shape for x in by_part}) > 1:
                raise InputError(f"the analysis gives values of different shapes from block to block: "
                                 f"{sorted({x.shape for x in by_part})}")
            values.append(np.array(by_part))
            shares.append(np.diff(edges).astype(float) if source.weights is None else np.asarray(source.weights, float))
        return values, shares


class _OfBlocks:
    """The average over blocks that were analysed already."""

    def __init__(self, values: list[np.ndarray], shares: list[np.ndarray], settings: Analysis):
        self.values, self.shares, self.settings = values, shares, settings

    def __call__(self, reading: Reading) -> Estimate:
        run = reading.run
        values, shares = self.values[run.run], self.shares[run.run]
        block = run.n / len(values)
        start = reading.equilibration
        if not (start is None or isinstance(start, str)):       # in blocks, rounded up
            start = math.ceil(discarded(start, run.n, run.times) / block)
        answer = mean_with_error(ArraySource.of(values, weights=shares, unit=self.settings.unit, ordered=run.ordered),
                                 equilibration=start, confidence=reading.confidence)
        n_discarded = round(answer.n_discarded * block)
        dt = 1.0 if run.times is None or run.n < 2 else float(run.times[-1] - run.times[0]) / (run.n - 1)
        return replace(answer, n=run.n - n_discarded, n_discarded=n_discarded, series=None, times=None,
                       equilibration_time=time_at(run.times, n_discarded),
                       statistical_inefficiency=answer.statistical_inefficiency * block,
                       correlation_time=answer.correlation_time * block * dt, time_unit="" if run.times is None else "ps")


def from_analysis(make: Callable[[Any], Any], *, value: Callable[[Any], Any], unit: str = "",
                  per: Literal["frame", "block"] = "frame", coords: Coords | None = None,
                  n_blocks: int = BLOCKS, period: float | None = None) -> Observable:
    """An MDAnalysis analysis as an observable for :func:`md.average <ensemblekit.md.average>`.

    Arguments:
        make: Universe -> analysis, not yet run: ``lambda u: RMSD(u, select="name CA")``. It is called for every block of
            frames with a Universe of that block. Frame 0 of that Universe is the first frame of the run (for references:
            ``ref_frame=0``); it is not analysed again.
        value: the analysis after its run -> values with one row a frame, ``lambda a: a.results.rmsd[:, 2]``;
            with ``per="block"`` one value for all its frames, ``lambda a: a.results.rdf``.
        unit: of the value.
        per: "frame", or "block" for analyses without a result per frame: the run is cut into `n_blocks` parts, each
            analysed on its own by streaming through a store; the error comes from the scatter of the parts. Weights of
            frames need parts of one frame each: `n_blocks` as many as there are frames.
        coords: names of the axes of a value: name -> (values, unit).
        period: after which the values come round, 360 for torsions in degrees: each is averaged on the circle.

    Raises InputError for an analysis that exists already: it belongs to one Universe and cannot be run on blocks.
    """
    if isinstance(make, foreign.Analysis):
        raise InputError(f"{type(make).__name__}(...) is bound to one Universe already. Pass how it is made: "
                         + REMEDY.format(name=type(make).__name__))
    if not callable(make) or not callable(value):
        raise InputError("from_analysis takes a function of a Universe that returns an analysis, and value=, a function of "
                         "the analysis: " + REMEDY.format(name="RMSD"))
    if isinstance(make, type):
        name = make.__name__
        raise InputError(f"{name} is a class: say how it is made of a Universe, " + REMEDY.format(name=name))
    if per not in ("frame", "block"):
        raise InputError(f'per is "frame" or "block"; got {per!r}')
    if not isinstance(n_blocks, int) or n_blocks < 4:
        raise InputError(f"n_blocks is a whole number, 4 or more; got {n_blocks!r}")
    _check_period(period)
    if period is not None and per == "block":
        raise InputError("period= goes with one value a frame: blocks are averaged already, and not on the circle. Let "
                         "the analysis give its angles with per=\"frame\"")
    return Analysis(make, value, unit, per, dict(coords or {}), n_blocks, period)


def as_observable(name: str, x: object) -> Observable:
    """What may stand in ``md.average``: an observable, or a function of an AtomGroup."""
    if isinstance(x, foreign.Analysis):
        kind = type(x).__name__
        raise InputError(f"{name!r} is an analysis ({kind}) of one Universe; pass how it is made: " + REMEDY.format(name=kind))
    if isinstance(x, type):
        raise InputError(f"{name!r} is a class; make an observable of it: {x.__name__}(...)")
    if isinstance(x, Observable):
        return x
    if callable(x):
        return Function(x)
    raise InputError(f"{name!r} is no observable: md.RadiusOfGyration(\"protein\"), a function of an AtomGroup, or "
                     f"md.from_analysis(...); got {x!r}")


def _check_period(period: Any) -> None:
    number = isinstance(period, int | float) and not isinstance(period, bool)
    if period is not None and not (number and math.isfinite(period) and period > 0):
        raise InputError(f"period= is the turn after which angles repeat, 360 for degrees; got {period!r}")


def _measurement(map: Callable[[Block], np.ndarray], unit: str, coords: Coords, period: float | None,
                 system: System) -> Measurement:
    """Values of a function, one row a frame, made ready to be averaged: on the circle where they come round."""
    fields = _moving(system)
    if period is None:
        return Measurement(map, Mean(unit, coords, angle_branches=branches_of(unit)), fields)
    names = [name for name in ("position", "box", *fields) if name in system.source.fields]
    first = next(block for piece in system.source.window(0, 1).pieces(names, "time", False, 1) for block in piece.blocks())
    if np.ndim(map(first)) == 1:
        return Measurement(map, on_circle(period, unit), fields)
    turn = 2 * math.pi / period
    return Measurement(partial(_vectors, map, turn), {
        "": OfMean(Periodic(partial(directions, turn), period), unit, coords),
        "resultant": OfMean(lengths, "", coords, bounds=(0.0, 1.0))}, fields)


def _vectors(map: Callable[[Block], np.ndarray], turn: float, block: Block) -> np.ndarray:
    """Cosine and sine of the angles, (n, ..., 2)."""
    angles = map(block) * turn
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


class _Universe(threading.local):
    """The Universe of a thread; None before its first block."""

    u: Any = None


class _Frames:
    """A Universe for each thread, filled with blocks of frames."""

    def __init__(self, topology: Topology):
        self.topology = topology
        self._mine = _Universe()

    def universe(self, block: Block, first: tuple[np.ndarray, np.ndarray | None] | None = None) -> Any:
        """The Universe with this block's frames, behind one more frame where `first` is given."""
        if self._mine.u is None:
            self._mine.u = self.topology.universe()
        u = self._mine.u
        fields = block.fields
        position = np.asarray(positions_of(block), np.float32)
        box = fields.get("box")
        extra: dict[str, Any] = {}
        for name, key in (("velocities", "velocity"), ("forces", "force")):
            if key in fields:
                extra[name] = np.asarray(fields[key], np.float32)
        if first is not None:
            position = np.concatenate([first[0][None], position])
            extra = {name: np.concatenate([values[:1], values]) for name, values in extra.items()}
            box = box if box is None or first[1] is None else np.concatenate([np.asarray(first[1])[None], box])
        if box is not None:
            extra["dimensions"] = dimensions(np.asarray(box))
        from MDAnalysis.coordinates.memory import MemoryReader

        times = block.times
        dt = float(times[1] - times[0]) if times is not None and len(times) > 1 else 1.0
        u.trajectory = MemoryReader(position, order="fac", dt=dt or 1.0, **extra)
        return u

    def __getstate__(self) -> dict[str, Any]:
        return {"topology": self.topology}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.topology = state["topology"]
        self._mine = _Universe()


class _PerFrame:
    """Block -> the function's value at each frame."""

    def __init__(self, function: Callable[[Any], Any], topology: Topology):
        self.function, self.frames = function, _Frames(topology)

    def __call__(self, block: Block) -> np.ndarray:
        u = self.frames.universe(block)
        values: list[np.ndarray] = []
        for k, now in enumerate(u.trajectory):
            if block.times is not None:
                now.time = float(block.times[k])
            value = np.asarray(self.function(u.atoms))
            if value.dtype.kind not in "biuf":
                raise InputError(f"a function of an AtomGroup returns a number or an array of real numbers; got {value!r}")
            if values and value.shape != values[0].shape:
                raise InputError(f"the function returned shape {value.shape} at frame {block.start + k} and {values[0].shape} "
                                 "before; it must return the same shape for every frame")
            values.append(np.array(value, np.float64))
        return np.array(values)


class _PerBlock:
    """Block -> the analysis' values, one row a frame."""

    def __init__(self, settings: Analysis, topology: Topology, position: np.ndarray, box: np.ndarray | None):
        self.settings, self.frames, self.first = settings, _Frames(topology), (position, box)

    def __call__(self, block: Block) -> np.ndarray:
        u = self.frames.universe(block, self.first)
        analysis = _made(self.settings.make, u)
        analysis.run(start=1)
        values = np.asarray(self.settings.value(analysis))
        if values.ndim == 0 or len(values) != len(block):
            raise InputError(f"value= gave shape {values.shape} for {len(block)} frames; it must have one row a frame. For "
                             "analyses without a result per frame: per=\"block\"")
        return values.astype(np.float64)


def _made(make: Callable[[Any], Any], u: Any) -> Any:
    u.trajectory[0]
    analysis = make(u)
    if not isinstance(analysis, foreign.HasRun):
        raise InputError(f"from_analysis needs a function that returns an analysis; it returned {type(analysis).__name__}")
    trajectory = getattr(analysis, "_trajectory", u.trajectory)
    if trajectory is not u.trajectory:
        raise InputError("the analysis was made of another Universe; use the one that is passed: lambda u: "
                         f"{type(analysis).__name__}(u.select_atoms(...))")
    return analysis


def _moving(system: System) -> tuple[str, ...]:
    return tuple(name for name in ("velocity", "force") if name in system.source.fields)


def _nothing(block: Block) -> np.ndarray:
    return np.zeros(len(block), np.int8)


def dimensions(box: np.ndarray) -> np.ndarray:
    """Cell vectors (n, 3, 3) as lengths and angles (n, 6) in MDAnalysis' order."""
    x = np.asarray(box, np.float64)
    lengths = np.sqrt((x * x).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.stack([(x[:, i] * x[:, j]).sum(-1) / (lengths[:, i] * lengths[:, j])
                            for i, j in ((1, 2), (0, 2), (0, 1))], axis=1)
    return np.concatenate([lengths, np.degrees(np.arccos(np.clip(cosines, -1, 1)))], axis=1).astype(np.float32)


__all__ = ["as_observable", "dimensions", "from_analysis"]
