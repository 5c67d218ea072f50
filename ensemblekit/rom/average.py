"""Averages of flow fields with an interval for every cell: mean, rms, Reynolds stresses, turbulent kinetic energy."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.average import (
    check_equilibration,
    clock_of,
    common_start,
    elapsed,
    run_doubts,
    spacing,
    start_after,
)
from ensemblekit.averaging.average import kish as kish_of
from ensemblekit.averaging.blocking import BlockResult
from ensemblekit.averaging.doubts import ENOUGH, judged
from ensemblekit.averaging.estimate import Estimate, over_power_of_two
from ensemblekit.averaging.missing import Missing, check_missing
from ensemblekit.averaging.moments import Moments, MomentsResult
from ensemblekit.averaging.observed import summaries
from ensemblekit.averaging.rows import rows_of
from ensemblekit.averaging.run import Progress, partials, reduce
from ensemblekit.averaging.second import STRETCHES, interval_above, share_kept, stretches
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, ReadOnceError, StatisticsError, UnknownFieldError
from ensemblekit.files import replacing
from ensemblekit.rom.mesh import mesh_of
from ensemblekit.rom.rank import as_bytes, in_words
from ensemblekit.scaling import (
    FREE,
    LARGE,
    SMALL,
    common,
    exponent_of,
    ldexp,
    power_of_two,
    representable,
    scaled,
    weight_exponent,
)
from ensemblekit.source import Array, Block, Field, SnapshotSource, as_source, check_times, uneven_steps
from ensemblekit.source_views import weighted_by, weighted_by_time

logger = logging.getLogger("ensemblekit")

STATISTICS = ("mean", "rms", "reynolds_stress", "tke")
PAIRS = {2: ((0, 0), (1, 1), (0, 1)), 3: ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2))}
"""Components of a symmetric tensor in VTK's order: xx, yy, zz, xy, yz, xz."""
LOOKS = 16
"""Snapshots of the first glance, from which the reference is taken."""
BINS = 64
VANISHING, OVERFLOWING = 2.0**-600, 2.0**1000
"""Sums of fourth powers below which some may have vanished, and above which some may have overflowed: weights and deviations
of ordinary size stay between."""
STATE_BYTES = 1 << 30
FEWEST_CELLS = 1024
"""That are worth a read."""


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


def average(source: Any, statistics: Sequence[str] | str = ("mean",), *, velocity: str | Sequence[str] | None = None,
            equilibration: Any = "auto", confidence: float = 0.95, memory_limit: Any = "2GiB", engine: Engine | None = None,
            progress: Progress = False, weights: Any = None, missing: Missing = "raise",
            log_weights: Any = None) -> FieldAverages:
    """Statistics of every cell of a flow over its snapshots, with an interval that knows correlation, in one read.

    Arguments:
        source: a store, a stored field, what ``rom.read`` gives, or an array with snapshots along axis 0.
        statistics: any of "mean"; "rms", the root mean square of the fluctuation; "reynolds_stress", the covariances
            of the velocity's components in VTK's order (xx, yy, zz, xy, yz, xz; in a plane xx, yy, xy); "tke", half
            their trace.
        velocity: the field that is a vector, its two or three components along the last axis; or the names of the
            scalar fields that are its components. By default every field whose last axis is 2 or 3 long.
        equilibration: as for ``ensemblekit.average``: "auto", None, a number of snapshots or a time as a float.
        confidence: of the intervals.
        memory_limit: bytes of memory of its own, such as "2GiB". The sums of up to 64 stretches take about 2 kB a number;
            where they do not fit the cells are taken in groups, a read each (of a store, of that group's numbers alone),
            which is said. The answer is the same to the last bit.
        engine, progress: as for ``ensemblekit.reduce``.
        weights, log_weights: statistical weights of the snapshots, (n,), or their natural logarithms, on any scale and offset;
            "time" lets each count as the time it stands for, for steps of time that differ (times the weight that the source
            carries). By default they count alike, or with the weights that the source carries.
        missing: "raise" lets a number that is NaN (or masked) in one snapshot be NaN in the answer; "drop" leaves it out there,
            number by number, all components of a velocity together. It keeps its place in time.

    Returns:
        FieldAverages. Errors come from the means of up to 64 stretches of time joined two by two until they are
        independent (blocking), those of second moments by the delta method: what is averaged is u'v' - <u'v'>, with
        the fluctuations about the final mean. A glance at 16 snapshots beforehand finds a reference to sum about.

    Raises:
        InputError: an unknown statistic, stresses where no field is a vector, complex or non-numeric fields, several
            runs, a memory limit that the answer itself goes beyond.
        StatisticsError: fewer than four snapshots.
        ReadOnceError: a stream.
    """
    source = given = as_source(source)
    check_missing(missing)
    if isinstance(weights, str):
        if weights != "time" or log_weights is not None:
            raise InputError(f'weights are (n,) numbers, or "time"; got {weights!r}')
        source = weighted_by_time(source)
    elif weights is not None or log_weights is not None:
        source = weighted_by(source, weights, log_weights)
    wanted = _wanted(statistics)
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence is a number between 0 and 1, 0.95 for 95 %; got {confidence!r}")
    check_equilibration(equilibration)
    if source.access == "once" or source.lengths is None:
        raise ReadOnceError(f"{type(source).__name__} can be read only once and a glance at it comes first; ingest it "
                            "into a store")
    if len(source.lengths) > 1:
        raise InputError(f"the source has {len(source.lengths)} runs; average one, or all as one with .stacked()")
    (n,) = source.lengths
    if n < 4:
        raise StatisticsError(f"an interval needs at least 4 snapshots; got {n}")
    series = _targets(source, wanted, velocity)
    size = sum(one.size * (one.parts * (one.parts + 2) + 1) * 8 // one.parts for one in series)
    keep = int(np.clip(STATE_BYTES // size, 8, BINS))
    passes = _passes(series, keep, as_bytes(memory_limit))
    notes: tuple[str, ...] = ()
    if len(passes) > 1:
        notes = (f"{len(passes)} reads, each of some of the cells, to stay within {memory_limit} (memory_limit= for another "
                 "limit)",)
        logger.info("average: %s", notes[0])
    facts: dict[str, Any] = {}
    columns: dict[tuple[str, str], list[Any]] = {}
    exponents: dict[str, list[np.ndarray | None]] = {}
    start = kish = 0.0
    grounds: tuple[str, ...] = ()
    for number, groups in enumerate(passes):
        names = list(dict.fromkeys(name for group in groups for name in group.target.names))
        branches: dict[str, tuple[Any, ...]] = {}
        if not number:
            middle = None
            if missing == "drop":
                middle = np.asarray(reduce(source.window(0, None, -(-n // LOOKS)), {"m": (series[0], Moments())},
                                           fields=list(series[0].names), engine=engine, missing=missing)["m"].mean)
            branches = {"clock": (clock_of, Series()), "summary": (_Summary(series[0], middle), Series())}
            names = list(dict.fromkeys([*names, *series[0].names]))
        glance = reduce(source.window(0, None, -(-n // LOOKS)), {f"{k}": (group, Moments()) for k, group in enumerate(groups)},
                        fields=names, engine=engine, missing=missing)
        branches |= {f"{k}": (group, _about(group.target, glance[f"{k}"], missing)) for k, group in enumerate(groups)}
        del glance
        read = partials(source, branches, fields=names, engine=engine, progress=progress, keep=keep)[0]
        if not number:
            clock = np.concatenate([np.asarray(state["clock"][0].result()).reshape(-1, 2) for _, state in read])
            summary = np.concatenate([np.asarray(state["summary"][0].result()) for _, state in read])
            times = None if np.isnan(clock[:, 0]).all() else check_times(clock[:, 0], n)
            weights = None if np.isnan(clock[:, 1]).all() else scaled(clock[:, 1])[0]
            first = start_after(equilibration, n, times, partial(common_start, summary, weights))
            begins = [begin for begin, _ in read]
            start = min((b for b in begins if b >= first), default=begins[-1])      # rounded up to where a state begins
            grounds = run_doubts(first, n, equilibration, weights, summary)
            kish = 1.0 if weights is None else n * float(weights @ weights) / float(weights.sum()) ** 2
            facts = {"time_unit": source.time_unit if times is not None else "", "times": times, "n_discarded": start,
                     "equilibration_time": elapsed(times, start)}
        kept = [state for begin, state in read if begin >= start]
        del read
        for k, group in enumerate(groups):
            bins: list[Products] = [state.pop(f"{k}")[0] for state in kept]      # type: ignore[misc]
            found = _Stretches(bins, group.target, kish)
            exponents.setdefault(group.target.name, []).append(found.bins[0].exponent)
            for what in group.target.wanted:
                columns.setdefault((group.target.name, what), []).append(found.columns(what))
            total = found.n
    estimates: dict[str, Estimate] = {}
    for one in series:
        exponent = exponents[one.name]
        joined = None if all(x is None for x in exponent) else np.concatenate(
            [np.zeros(len(c[0]), np.int64) if x is None else x
             for x, c in zip(exponent, columns[one.name, one.wanted[0]], strict=True)])
        for what in one.wanted:
            estimates[f"{one.name}_{what}"] = _estimate(one, what, columns.pop((one.name, what)), joined, confidence,
                                                        spacing(times), total, facts)
    if grounds:
        estimates = {name: replace(one, converged=False, verdict="; ".join(filter(None, [*grounds, one.verdict])))
                     for name, one in estimates.items()}
    if weights is not None:
        most = kish_of(weights, n, int(start))
        estimates = {name: replace(one, n_eff=np.minimum(one.n_eff, most)) for name, one in estimates.items()}
    said = uneven_steps(times) if weights is None else ""
    if said:
        estimates = {name: replace(one, verdict="; ".join(filter(None, [one.verdict, said])))
                     for name, one in estimates.items()}
    mesh = mesh_of(given)
    where = {} if mesh is None else {f"{one.name}_{what}": mesh.where(one.names[0], one.field.shape)
                                     for one in series for what in one.wanted}
    return FieldAverages(estimates, mesh, where, notes)


@dataclass(frozen=True, slots=True)
class _Target:
    """What is averaged together: a field, or scalar fields stacked into a vector. As a map it gives (n, *item)."""

    name: str
    names: tuple[str, ...]
    field: Field
    parts: int
    """Components that are multiplied with each other; 1 where each number stands for itself."""
    wanted: tuple[str, ...]

    @property
    def item(self) -> tuple[int, ...]:
        return self.field.shape if len(self.names) == 1 else (*self.field.shape, len(self.names))

    @property
    def size(self) -> int:
        return self.field.size * len(self.names)

    @property
    def cells(self) -> tuple[int, ...]:
        return self.item[:-1] if self.parts > 1 else self.item

    def __call__(self, block: Block) -> np.ndarray:
        if len(self.names) == 1:
            return block.fields[self.names[0]]
        return np.stack([np.asarray(block.fields[name]) for name in self.names], axis=-1)


@dataclass(frozen=True, slots=True)
class _Group:
    """Some of the cells of what is averaged, all components of each. As a map it gives (n, numbers)."""

    target: _Target
    cells: slice | None
    """None: all of them."""

    def __call__(self, block: Block) -> np.ndarray:
        if self.cells is None:
            return self.target(block)
        target, parts = self.target, self.target.parts
        rows = slice(self.cells.start * parts, self.cells.stop * parts)
        if len(target.names) == 1:
            values = np.asarray(block.fields[target.names[0]])
            return values.reshape(len(values), -1)[:, rows]
        m = len(target.names)       # numbers a:b of the components side by side
        inner = slice(rows.start // m, -(-rows.stop // m))
        values = np.stack([np.asarray(block.fields[name]).reshape(len(block), -1)[:, inner] for name in target.names], axis=-1)
        return values.reshape(len(block), -1)[:, rows.start - inner.start * m:rows.stop - inner.start * m]


def _passes(series: Sequence[_Target], keep: int, limit: int) -> list[list[_Group]]:
    """What is averaged in each read: all at once where it fits."""
    counts = [one.size // one.parts for one in series]
    # a cell's sums in every stretch, what becomes of them when errors are told, and the states that are being merged
    costs = [8 * (keep + 8) * (one.parts * (one.parts + 2) + 1) + 8 * keep * (one.parts + 4) for one in series]
    answers = sum(12 * 8 * count * sum(_numbers(one, what) for what in one.wanted)
                  for one, count in zip(series, counts, strict=True))
    if sum(cost * count for cost, count in zip(costs, counts, strict=True)) + answers <= limit:
        return [[_Group(one, None) for one in series]]
    room = limit - answers
    least = max(cost * min(count, FEWEST_CELLS) for cost, count in zip(costs, counts, strict=True))
    if room < least:
        raise InputError(f"the averages alone take about {in_words(answers)}, and {in_words(least)} are needed on the way; "
                         f"give memory_limit={in_words(1.01 * (answers + least))!r}, fewer statistics or fewer fields")
    passes: list[list[_Group]] = [[]]
    left = room
    for one, count, cost in zip(series, counts, costs, strict=True):
        at = 0
        while at < count:
            take = min(count - at, left // cost)
            if take < min(count - at, FEWEST_CELLS):
                passes.append([])
                left = room
                continue
            passes[-1].append(_Group(one, slice(at, at + take)))
            at, left = at + take, left - take * cost
    return passes


def _numbers(target: _Target, what: str) -> int:
    """Of one cell in a statistic."""
    return 1 if what == "tke" else len(PAIRS[target.parts]) if what == "reynolds_stress" else target.parts


@dataclass(frozen=True, slots=True)
class _Summary:
    """The series from which the end of the start-up is told."""

    target: _Target
    middle: np.ndarray | None = None
    """Of each number, to stand where it is missing; None: it stays NaN."""

    def __call__(self, block: Block) -> np.ndarray:
        values = np.asarray(self.target(block))
        if self.middle is not None and values.dtype.kind == "f":
            values = np.where(np.isnan(values), self.middle, values)
        return summaries(values)


def _wanted(statistics: Sequence[str] | str) -> tuple[str, ...]:
    wanted = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    unknown = [name for name in wanted if name not in STATISTICS]
    if unknown or not wanted:
        raise InputError(f"statistics are any of {', '.join(STATISTICS)}; got {', '.join(map(repr, unknown)) or 'none'}")
    return wanted


def _targets(source: SnapshotSource, wanted: tuple[str, ...], velocity: str | Sequence[str] | None) -> list[_Target]:
    fields = source.fields
    for name, one in fields.items():
        if one.dtype.kind not in "biuf":
            raise InputError(f"field {name!r} is {one.dtype}: averages with an interval are of real numbers")
    second = any(name in wanted for name in ("reynolds_stress", "tke"))
    plain = tuple(name for name in wanted if name in ("mean", "rms"))
    joined: tuple[str, ...] = ()
    if velocity is not None and not isinstance(velocity, str):
        joined = tuple(velocity)
        for name in joined:
            if name not in fields:
                raise UnknownFieldError(name, fields)
        if len(joined) not in (2, 3) or len({fields[name].shape for name in joined}) > 1:
            raise InputError(f"a velocity has 2 or 3 components of one shape; got "
                             f"{ {name: fields[name].shape for name in joined} }")
    elif velocity is not None and velocity not in fields:
        raise UnknownFieldError(velocity, fields)
    found = []
    if joined:
        name = "U" if "U" not in fields or "U" in joined else "_".join(joined)
        found.append(_Target(name, joined, fields[joined[0]], len(joined) if second else 1, wanted))
    for name, one in fields.items():
        if name in joined:
            continue
        vector = (name == velocity if velocity is not None else True) and one.shape[-1:] in ((2,), (3,))
        if name == velocity and not vector:
            raise InputError(f"velocity={name!r} has shape {one.shape}; its last axis is to hold 2 or 3 components")
        what = wanted if vector else plain
        if what:
            found.append(_Target(name, (name,), one, one.shape[-1] if vector and second else 1, what))
    if second and not any(one.parts > 1 for one in found):
        shapes = {name: one.shape for name, one in fields.items()}
        raise InputError("reynolds_stress and tke need a velocity, and no field's last axis holds 2 or 3 components: "
                         f"{shapes}. Name scalar fields that are its components: velocity=(\"u\", \"v\")")
    return found


def _about(target: _Target, glance: MomentsResult, missing: Missing) -> Products:
    """Sums about the mean of the glance, each cell over the power of two that suits its numbers there."""
    mean = np.nan_to_num(np.asarray(glance.mean, np.float64), posinf=0.0, neginf=0.0).reshape(-1, target.parts)
    size = np.fmax(np.abs(mean), np.nan_to_num(np.asarray(glance.std), posinf=0.0).reshape(mean.shape)).max(axis=1)
    exponent = np.asarray(exponent_of(size))
    return Products(target.parts, ldexp(mean, -exponent[:, None]).ravel(), exponent if exponent.any() else None,
                    exponent_of(np.max(glance.sum_weights) / glance.n), missing)


class Products:
    """Sums of w a, w a_i a_j and their squares about a fixed reference. Merges in any order.

    The values are divided by 2**exponent, (cells,), beforehand and the weights by 2**weight_exponent; the reference is
    of divided values. The exponents given are those of a glance: they change with values and weights that need others.
    With missing="drop" a cell that is NaN adds nothing to its sums.
    """

    def __init__(self, parts: int, reference: np.ndarray, exponent: np.ndarray | None = None, weight_exponent: int = 0,
                 missing: Missing = "raise"):
        self.parts, self.reference, self.exponent, self.weight_exponent = parts, reference, exponent, weight_exponent
        self.missing = missing
        self.n, self.weight = 0, 0.0
        self.present: np.ndarray | None = None      # (cells,) weight of the snapshots in which a cell is there; None: of all
        self.sums: list[np.ndarray] = []        # (parts, cells), (pairs, cells), (pairs + 1, cells)

    def empty(self) -> Self:
        return type(self)(self.parts, self.reference, self.exponent, self.weight_exponent, self.missing)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        from ensemblekit.rom.kernels_average import add_products

        if not len(values):
            return
        given = np.asarray(values)
        there = self._there(given) if self.missing == "drop" else None
        if there is not None:       # at the reference a deviation is 0 and adds nothing
            reference = ldexp(self.reference, np.repeat(self._exponents(), self.parts)).reshape(given.shape[1:])
            kept = np.repeat(there, self.parts, axis=1).reshape(given.shape)
            given = np.where(kept, given, reference)
        if not self.sums:
            pairs, cells = self.parts * (self.parts + 1) // 2, math.prod(given.shape[1:]) // self.parts
            self.sums = [np.zeros((k, cells)) for k in (self.parts, pairs, pairs + 1)]
        w = np.ones(len(given))
        if weights is not None or self.weight_exponent:
            w = w if weights is None else np.ascontiguousarray(weights, np.float64)
            self._divide(self.exponent, weight_exponent(w, self.weight_exponent, self.weight == 0.0))
            w = ldexp(w, -self.weight_exponent)
        wide = given.dtype.kind == "f" and given.dtype.itemsize > 4
        # the first block is looked at by its sums, which are thrown away where they overflow: no further read of the values
        if wide and self.n and (self.exponent is not None or power_of_two(given) > LARGE):
            self._make_room(given)
        with np.errstate(invalid="ignore", over="ignore"):
            add_products(*self._rows(given), w, self.reference, *self.sums)
            if wide and not self.n and not (self.sums[-1][-1] < OVERFLOWING).all() and self._make_room(given):
                for x in self.sums:
                    x[:] = 0.0
                add_products(*self._rows(given), w, self.reference, *self.sums)
        if wide:
            self._look_closer(given, w)
        if there is not None or self.present is not None:
            before = np.full(self.sums[0].shape[1], self.weight) if self.present is None else self.present
            self.present = before + (float(w.sum()) if there is None else w @ there)
        self.n += len(given)
        self.weight += float(w.sum())

    def _there(self, values: np.ndarray) -> np.ndarray | None:
        """(n, cells) bool, whether a cell is a number in all its components; None where all are."""
        if values.dtype.kind != "f" or not np.isnan(values).any():
            return None
        return ~np.isnan(values).reshape(len(values), -1, self.parts).any(axis=2)

    @property
    def weights(self) -> Any:
        """Of the snapshots in which each cell is there: (cells,), or one number."""
        return self.weight if self.present is None else self.present

    def _rows(self, values: np.ndarray) -> tuple[np.ndarray, int, int, int, int]:
        """Values (n, *item) over their powers of two, as the kernel takes them."""
        if self.exponent is not None:
            values = ldexp(values.reshape(len(values), -1), -np.repeat(self.exponent, self.parts))
        rows = rows_of(values.view(np.uint8) if values.dtype == bool else values)
        return rows.flat, rows.stride, rows.n, rows.width // self.parts, self.parts

    def _divide(self, exponent: np.ndarray | None, weight_exponent: int) -> None:
        """Change to these powers of two."""
        if exponent is not self.exponent:
            mine = self._exponents()
            step = mine - exponent
            self.reference = ldexp(self.reference, np.repeat(step, self.parts))
            self.sums = [ldexp(x, degree * step) for degree, x in zip((1, 2, 4), self.sums, strict=False)]
            self.exponent = exponent
        step = self.weight_exponent - weight_exponent
        if step:
            self.sums, self.weight = [ldexp(x, step) for x in self.sums], ldexp(self.weight, step)
            self.present = None if self.present is None else ldexp(self.present, step)
            self.weight_exponent = weight_exponent

    def _exponents(self) -> np.ndarray:
        return np.zeros(len(self.reference) // self.parts, np.int64) if self.exponent is None else self.exponent

    def _free(self) -> np.ndarray:
        """The exponents, `FREE` in cells that have been at a reference of 0 all the time."""
        zero = (self.reference.reshape(-1, self.parts) == 0).all(axis=1)
        for x in self.sums:
            zero &= (x == 0).all(axis=0)
        return np.where(zero, FREE, self._exponents())

    def _needed(self, values: np.ndarray) -> np.ndarray:
        """(cells,) exponents that suit the values (n, *item) of each; `FREE` where they are 0."""
        e = power_of_two(values.reshape(len(values), -1), 0, always=True).reshape(-1, self.parts)
        zero = ~np.any(values, axis=0).reshape(-1, self.parts)
        return np.where(zero, FREE, e).max(axis=1)

    def _make_room(self, values: np.ndarray) -> bool:
        """Larger exponents for cells whose fourth powers would overflow; whether there are any."""
        needed, mine = self._needed(values), self._exponents()
        new = np.where(needed > mine + LARGE, needed, mine)
        if (new == mine).all():
            return False
        self._divide(new, self.weight_exponent)
        return True

    def _look_closer(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Smaller exponents for cells whose fourth powers vanished: they have been at a reference of 0 until now."""
        from ensemblekit.rom.kernels_average import add_products

        at = np.flatnonzero(self.sums[-1][-1] < VANISHING)
        if len(at):
            at = at[(self.reference.reshape(-1, self.parts)[at] == 0).all(axis=1)]
        if not len(at):
            return
        some = values.reshape(len(values), -1, self.parts)[:, at]
        if not some.any():
            return
        needed, mine = self._needed(some), self._exponents().copy()
        moved = (needed != FREE) & (needed < mine[at] + SMALL)
        if not moved.any():
            return
        at, needed = at[moved], needed[moved]
        one = Products(self.parts, np.zeros(len(at) * self.parts), needed)
        one.sums = [np.zeros((len(x), len(at))) for x in self.sums]
        add_products(*one._rows(np.ascontiguousarray(some[:, moved])), weights, one.reference, *one.sums)
        for x, y in zip(self.sums, one.sums, strict=True):
            x[:, at] = y
        mine[at] = needed
        self.exponent = mine

    def merge(self, later: Self) -> None:
        if later.n:
            mine, its = alike([self, later])
            self.exponent, self.weight_exponent, self.reference = mine.exponent, mine.weight_exponent, mine.reference
            self.sums = [a + b for a, b in zip(mine.sums, its.sums, strict=True)] if mine.sums else its.sums
            if mine.present is not None or its.present is not None:
                self.present = mine.weights + its.weights
            self.n, self.weight = self.n + later.n, mine.weight + its.weight

    def result(self) -> Self:
        return self

    def state(self) -> dict[str, Array]:
        named = {"n": np.array(self.n), "weight": np.array(self.weight), "weight_exponent": np.array(self.weight_exponent)}
        if self.exponent is not None:
            named["exponent"] = self.exponent.copy()
        if self.present is not None:
            named["present"] = self.present.copy()
        return named | dict(zip(("sums", "products", "squares"), self.sums, strict=False))

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new._divide(np.array(state["exponent"]) if "exponent" in state else new.exponent, int(state["weight_exponent"]))
        new.n, new.weight = int(state["n"]), float(state["weight"])
        new.present = np.array(state["present"]) if "present" in state else None
        new.sums = [np.array(state[name]) for name in ("sums", "products", "squares") if name in state]
        return new


def alike(states: Sequence[Products]) -> list[Products]:
    """The same sums over powers of two that are common to all."""
    exponent = states[0].exponent
    if any(one.exponent is not exponent for one in states):
        exponent = common(np.max([one._free() for one in states], axis=0), FREE)
    heavy = [one.weight_exponent for one in states if one.weight > 0]
    found = [copy.copy(one) for one in states]
    for one in found:
        one._divide(exponent, max(heavy, default=states[0].weight_exponent))
    return found


class _Stretches:
    """The sums of consecutive stretches of time, and what they say of the whole."""

    def __init__(self, bins: list[Products], target: _Target, kish: float):
        bins = alike(bins)
        self.bins, self.target = bins, target
        self.lost: dict[int, np.ndarray] = {}
        self.n = sum(b.n for b in bins)
        total = sum(b.weight for b in bins)
        if total == 0:
            raise StatisticsError("all weights are zero: no snapshot is left to average over")
        self.weight: Any = sum(b.weights for b in bins)
        self.share = np.asarray(self.weight / total)
        """Of all weight, that of the snapshots in which each cell is there: (cells,), or 1."""
        self.kish: Any = kish / np.where(self.share > 0, self.share, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.shift, self.products, self.squares = (
                np.sum([b.sums[k] for b in bins], axis=0) / self.weight for k in range(3))

    def columns(self, what: str) -> tuple[np.ndarray, ...]:
        """(mean, stderr, dof, g, variance, whether it never changes, independent snapshots), each (cells, numbers)."""
        m = self.target.parts
        if what == "mean":
            reference = self.bins[0].reference.reshape(-1, m).T
            parts = [self._first(i, reference[i]) for i in range(m)]
        elif what == "rms":
            parts = [self._rms(i) for i in range(m)]
        elif what == "tke":
            parts = [self._energy()]
        else:
            parts = [self._covariance(i, j) for i, j in PAIRS[m]]
        made = [np.stack([np.asarray(part[k]) for part in parts], axis=-1) for k in range(6)]
        # squares forget faster than what they are squares of, and are about a mean that they share
        stretches = np.full(made[0].shape, np.nan) if what == "mean" else self._stretches(len(parts))
        return (*made, stretches, np.broadcast_to(self.share.reshape(-1, 1), made[0].shape))

    def _first(self, i: int, reference: np.ndarray) -> tuple[np.ndarray, ...]:
        d = self.shift[i]
        z = [(b.sums[0][i] - b.weights * d) / (b.n * self.weight / self.n) for b in self.bins]
        return self._blocked(reference + d, z, self.products[self._pair(i, i)] - d**2, np.abs(reference + d))

    def _covariance(self, i: int, j: int) -> tuple[np.ndarray, ...]:
        k = self._pair(i, j)
        value, z = self._second(i, j)
        lost = np.sqrt(self._lost(i) * self._lost(j))
        size = np.sqrt(np.abs(self.products[self._pair(i, i)] * self.products[self._pair(j, j)]))
        # of products about the final mean: less what the reference's distance from it adds (third moments left out)
        di, dj = self.shift[i], self.shift[j]
        own, other = (self.products[self._pair(a, a)] - self.shift[a] ** 2 for a in (i, j))
        beside = di**2 * other + dj**2 * own + 2 * di * dj * value
        return _grown(self._blocked(value, z, self.squares[k] - self.products[k] ** 2, size, beside, own * other + value**2),
                      lost)

    def _rms(self, i: int) -> tuple[np.ndarray, ...]:
        value, *rest = self._covariance(i, i)
        return np.maximum(value, 0.0), *rest

    def _energy(self) -> tuple[np.ndarray, ...]:
        terms = [self._second(i, i) for i in range(self.target.parts)]
        value = 0.5 * np.sum([t[0] for t in terms], axis=0)
        z = [0.5 * np.sum(parts, axis=0) for parts in zip(*(t[1] for t in terms), strict=True)]
        raw = 0.5 * np.sum([self.products[self._pair(i, i)] for i in range(self.target.parts)], axis=0)
        m = range(self.target.parts)
        beside = np.sum([self.shift[i] * self.shift[j] * (self.products[self._pair(i, j)] - self.shift[i] * self.shift[j])
                         for i in m for j in m], axis=0)
        gaussian = 0.5 * np.sum([(self.products[self._pair(i, j)] - self.shift[i] * self.shift[j]) ** 2
                                 for i in m for j in m], axis=0)
        own = np.array([self.products[self._pair(i, i)] - self.shift[i] ** 2 for i in m])
        with np.errstate(invalid="ignore", divide="ignore"):
            lost = own.sum(axis=0) / np.sum([own[i] / self._lost(i) for i in m], axis=0)
        return _grown(self._blocked(value, z, self.squares[-1] - raw**2, raw, beside, gaussian), lost)

    def _stretches(self, numbers: int) -> np.ndarray:
        """(cells, numbers): independent snapshots of the fewest of a cell's components, for a second moment."""
        m = self.target.parts
        each = np.stack([stretches(self._lost(i)) for i in range(m)], axis=-1)
        if m in (1, numbers):
            return each
        return np.broadcast_to(np.fmin.reduce(each, axis=-1)[:, None], (len(each), numbers))

    def _lost(self, i: int) -> np.ndarray:
        """By what factor a variance about the mean of a run is less than about the true one: 1 - 1/n_eff of the mean."""
        if i not in self.lost:
            _, stderr, _, _, variance, still = self._first(i, self.bins[0].reference.reshape(-1, self.target.parts).T[i])
            with np.errstate(invalid="ignore", divide="ignore"):
                self.lost[i] = share_kept(np.where(still, np.nan, variance / stderr**2), self.n)
        return self.lost[i]

    def _second(self, i: int, j: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """<u_i' u_j'>, and the means over each stretch of its residual."""
        k = self._pair(i, j)
        di, dj = self.shift[i], self.shift[j]
        value = self.products[k] - di * dj
        z = [(b.sums[1][k] - di * b.sums[0][j] - dj * b.sums[0][i] + b.weights * (di * dj - value))
             / (b.n * self.weight / self.n) for b in self.bins]
        return value, z

    def _pair(self, i: int, j: int) -> int:
        i, j = min(i, j), max(i, j)
        return i * self.target.parts - i * (i - 1) // 2 + j - i

    def _blocked(self, value: np.ndarray, z: list[np.ndarray], variance: np.ndarray, size: np.ndarray,
                 beside: Any = 0.0, gaussian: Any = 0.0) -> tuple[np.ndarray, ...]:
        """(value, stderr, dof, g, variance, whether it never changes) by joining stretches until they are independent.

        variance: of snapshots, too large by about `beside`; a quarter of the `gaussian` one (a sine wave's) is the least it
        is taken for. Only n_eff and the choice of stretches depend on it.
        """
        n = self.n
        variance = np.maximum(variance, 0.0) * (n / max(n - 1, 1))
        still = variance <= (16 * np.finfo(float).eps * size) ** 2
        variance = np.minimum(variance, np.maximum(variance - beside, 0.25 * gaussian))
        long = max(b.n for b in self.bins)
        y = np.array([part for part, b in zip(z, self.bins, strict=True) if b.n == long])
        lengths, counts, variances = [], [], []
        if long > 1:
            lengths, counts, variances = [1], [n], [variance * self.kish]
        elif len(y) > 1:        # every snapshot by itself: its own variance is known
            variance = y.var(axis=0, ddof=1) / self.kish
        while len(y) >= 2:
            lengths.append(long)
            counts.append(len(y))
            variances.append(y.var(axis=0, ddof=1))
            y = 0.5 * (y[: len(y) // 2 * 2: 2] + y[1::2])
            long *= 2
        if not counts or n < 4:
            raise StatisticsError(f"{n} snapshots are left after equilibration: an error needs at least 4")
        block = BlockResult(mean=value, n=n, lengths=np.array(lengths), counts=np.array(counts),
                            variances=np.array(variances)).chosen()
        return value, block.stderr, block.dof, block.g, variance, still


def _estimate(target: _Target, what: str, columns: list[tuple[np.ndarray, ...]], exponent: np.ndarray | None, confidence: float,
              spacing: float, n: int, facts: Mapping[str, Any]) -> Estimate:
    """The Estimate of a statistic from those of groups of cells, one after the other."""
    numbers = columns[0][0].shape[1]
    shape = target.cells if what == "tke" or target.parts == 1 else (*target.cells, numbers)
    mean, stderr, dof, g, variance, still, independent, share = (
        np.concatenate([group[k] for group in columns]).reshape(shape) for k in range(8))
    second = what != "mean"
    columns.clear()
    still = still.astype(bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        n_eff = np.where(still, np.nan, np.minimum(variance / stderr**2, n))
    stderr = np.where(still, 0.0, stderr)
    g = np.where(still, np.nan, g)
    if what == "rms":
        with np.errstate(invalid="ignore", divide="ignore"):
            root = np.sqrt(mean)
            stderr = np.where(root > 0, stderr / (2 * root), 0.0)
            mean = root
    unit = target.field.unit if what in ("mean", "rms") else squared(target.field.unit)
    independent, enough = (independent, STRETCHES) if second else (n_eff, ENOUGH)
    floor: Any = 0.0 if second else -np.inf
    if what == "reynolds_stress":       # its normal components alone are variances
        floor = np.where(np.arange(numbers) < target.parts, 0.0, -np.inf)
    interval = interval_above(floor, mean, stderr, dof, confidence, 2 if what == "rms" else 1)
    answer = Estimate(mean=mean, stderr=stderr, interval=interval, confidence=confidence, n=n, n_eff=n_eff,
                      statistical_inefficiency=g, correlation_time=g / 2 * spacing, dof=dof,
                      estimators={"blocking": stderr}, unit=unit, **facts)
    answer = judged(answer, independent=independent, enough=enough, word="numbers")
    if (share < 1).any():
        never = int((share == 0).sum())
        answer = replace(answer, verdict="; ".join(filter(None, [
            answer.verdict, f"{int((share < 1).sum())} of {share.size} numbers are missing in some snapshots"
            + (f", {never} in all" if never else "") + "; they keep their places in time"])))
    if exponent is None:
        return answer
    degree = 1 if what in ("mean", "rms") else 2
    exponent = degree * exponent.reshape(*target.cells, *[1] * (mean.ndim - len(target.cells)))
    if degree == 2:
        representable(answer.mean, exponent, f"{target.name}_{what}, of the degree of a square,")
    return over_power_of_two(answer, exponent)
def _grown(part: tuple[np.ndarray, ...], lost: np.ndarray) -> tuple[np.ndarray, ...]:
    """(value, stderr, dof, g, variance, still) of a second moment, what the scatter of the mean took off put back."""
    value, stderr, dof, g, variance, still = part
    lost = np.where(np.isfinite(lost), lost, 1.0)
    return value / lost, stderr / lost, dof, g, variance / lost**2, still


def squared(unit: str) -> str:
    """The unit of a square, in H5MD's notation: "m s-1" becomes "m2 s-2"."""
    found = []
    for part in unit.split():
        split = re.fullmatch(r"([^\d+-]+)([+-]?\d+)?", part)
        if split is None:
            return f"({unit})2"
        found.append(f"{split[1]}{2 * int(split[2] or 1)}")
    return " ".join(found)


__all__ = ["FieldAverages", "average"]
