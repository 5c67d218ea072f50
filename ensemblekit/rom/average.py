"""Averages of flow fields with an interval for every cell: mean, rms, Reynolds stresses, turbulent kinetic energy."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ensemblekit.averaging.average import clock_of
from ensemblekit.averaging.doubts import ENOUGH, judged
from ensemblekit.averaging.equilibration import check_equilibration, common_start, run_doubts, start_after
from ensemblekit.averaging.estimate import Estimate, over_power_of_two
from ensemblekit.averaging.missing import Missing, check_missing
from ensemblekit.averaging.moments import Moments, MomentsResult
from ensemblekit.averaging.observed import summaries
from ensemblekit.averaging.run import Progress, partials, reduce
from ensemblekit.averaging.second import STRETCHES, interval_above
from ensemblekit.averaging.series import Series
from ensemblekit.averaging.times import elapsed, spacing
from ensemblekit.averaging.weights import kish as kish_of
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, ReadOnceError, StatisticsError, UnknownFieldError
from ensemblekit.files import replacing
from ensemblekit.rom.mesh import mesh_of
from ensemblekit.rom.products import PAIRS, Products
from ensemblekit.rom.rank import as_bytes, in_words
from ensemblekit.rom.stretches import Stretches, Target
from ensemblekit.scaling import (
    exponent_of,
    ldexp,
    representable,
    scaled,
)
from ensemblekit.source import Block, SnapshotSource, as_source
from ensemblekit.source_clock import check_times, uneven_steps
from ensemblekit.source_views import weighted_by

logger = logging.getLogger("ensemblekit")

STATISTICS = ("mean", "rms", "reynolds_stress", "tke")
LOOKS = 16
"""Snapshots of the first glance, from which the reference is taken."""
BINS = 64
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
    if weights is not None or log_weights is not None:
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
            found = Stretches(bins, group.target, kish)
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
class _Group:
    """Some of the cells of what is averaged, all components of each. As a map it gives (n, numbers)."""

    target: Target
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


def _passes(series: Sequence[Target], keep: int, limit: int) -> list[list[_Group]]:
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


def _numbers(target: Target, what: str) -> int:
    """Of one cell in a statistic."""
    return 1 if what == "tke" else len(PAIRS[target.parts]) if what == "reynolds_stress" else target.parts


@dataclass(frozen=True, slots=True)
class _Summary:
    """The series from which the end of the start-up is told."""

    target: Target
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


def _targets(source: SnapshotSource, wanted: tuple[str, ...], velocity: str | Sequence[str] | None) -> list[Target]:
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
        found.append(Target(name, joined, fields[joined[0]], len(joined) if second else 1, wanted))
    for name, one in fields.items():
        if name in joined:
            continue
        vector = (name == velocity if velocity is not None else True) and one.shape[-1:] in ((2,), (3,))
        if name == velocity and not vector:
            raise InputError(f"velocity={name!r} has shape {one.shape}; its last axis is to hold 2 or 3 components")
        what = wanted if vector else plain
        if what:
            found.append(Target(name, (name,), one, one.shape[-1] if vector and second else 1, what))
    if second and not any(one.parts > 1 for one in found):
        shapes = {name: one.shape for name, one in fields.items()}
        raise InputError("reynolds_stress and tke need a velocity, and no field's last axis holds 2 or 3 components: "
                         f"{shapes}. Name scalar fields that are its components: velocity=(\"u\", \"v\")")
    return found


def _about(target: Target, glance: MomentsResult, missing: Missing) -> Products:
    """Sums about the mean of the glance, each cell over the power of two that suits its numbers there."""
    mean = np.nan_to_num(np.asarray(glance.mean, np.float64), posinf=0.0, neginf=0.0).reshape(-1, target.parts)
    size = np.fmax(np.abs(mean), np.nan_to_num(np.asarray(glance.std), posinf=0.0).reshape(mean.shape)).max(axis=1)
    exponent = np.asarray(exponent_of(size))
    return Products(target.parts, ldexp(mean, -exponent[:, None]).ravel(), exponent if exponent.any() else None,
                    exponent_of(np.max(glance.sum_weights) / glance.n), missing)


def _estimate(target: Target, what: str, columns: list[tuple[np.ndarray, ...]], exponent: np.ndarray | None, confidence: float,
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
    interval = interval_above(floor, mean, stderr, dof, confidence, 2 if what == "rms" else 1,
                              independent=independent if second else np.inf)
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
