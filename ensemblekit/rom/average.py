"""Averages of flow fields with an interval for every cell: mean, rms, Reynolds stresses, turbulent kinetic energy."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ensemblekit.averaging.average import check_confidence, with_checked_clock, with_labels
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.equilibration import Equilibrate, check_equilibration
from ensemblekit.averaging.estimate import Estimate, bounded_interval, over_power_of_two
from ensemblekit.averaging.missing import Missing, check_missing
from ensemblekit.averaging.moments import Moments, MomentsResult
from ensemblekit.averaging.observed import equilibration_proxies
from ensemblekit.averaging.origin import origin_of, with_origin
from ensemblekit.averaging.pooling import pooled
from ensemblekit.averaging.run import Progress, partials, reduce
from ensemblekit.averaging.run_states import RunStates
from ensemblekit.averaging.second import STRETCHES, interval_above
from ensemblekit.averaging.series import Series
from ensemblekit.averaging.times import spacing
from ensemblekit.averaging.weights import design_effect
from ensemblekit.averaging.weights import kish as kish_of
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, ReadOnceError, StatisticsError, UnknownFieldError
from ensemblekit.rom.field_averages import STATISTICS, FieldAverages
from ensemblekit.rom.mesh import mesh_of
from ensemblekit.rom.products import PAIRS, Products
from ensemblekit.rom.rank import as_bytes, in_words
from ensemblekit.rom.stretches import Stretches, Target
from ensemblekit.scaling import exponent_of, ldexp, representable
from ensemblekit.source import Block, DescribedSource, ReplicaSet, as_source
from ensemblekit.source_clock import uneven_steps
from ensemblekit.source_protocol import kind_of
from ensemblekit.source_views import weighted_by

logger = logging.getLogger("ensemblekit")

SUMMARY = "summary"
"""The branch of the series from which the end of the start-up is told."""
LOOKS = 16
"""Snapshots of the first glance, from which the reference is taken."""
BINS = 64
STATE_BYTES = 1 << 30
FEWEST_CELLS = 1024
"""That are worth a read."""


def average(source: Any, statistics: Sequence[str] | str = ("mean",), *, velocity: str | Sequence[str] | None = None,
            equilibration: Any = "auto", confidence: float = 0.95, memory_limit: Any = "2GiB", engine: Engine | None = None,
            progress: Progress = False, weights: Any = None, missing: Missing = "raise",
            log_weights: Any = None) -> FieldAverages:
    """Statistics of every cell of a flow over its snapshots, with an interval that knows correlation, in one read.

    Arguments:
        source: a store, a stored field, what ``rom.read`` gives, or an array with snapshots along axis 0. Of a ReplicaSet each
            run is averaged, and the runs are pooled as :func:`ensemblekit.average` does: an error from within and between.
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
        InputError: an unknown statistic, stresses where no field is a vector, complex or non-numeric fields, a memory
            limit that the answer itself goes beyond.
        StatisticsError: fewer than four snapshots in a run.
        ReadOnceError: a stream.
    """
    source = given = as_source(source)
    check_missing(missing)
    if weights is not None or log_weights is not None:
        source = weighted_by(source, weights, log_weights)
    wanted = _wanted(statistics)
    check_confidence(confidence)
    check_equilibration(equilibration)
    _check_readable(source)
    series = _targets(source, wanted, velocity)
    size = sum(one.size * (one.parts * (one.parts + 2) + 1) * 8 // one.parts for one in series)
    keep = int(np.clip(STATE_BYTES // size, 8, BINS))
    passes = _passes(series, keep, as_bytes(memory_limit))
    notes: tuple[str, ...] = ()
    if len(passes) > 1:
        notes = (f"{len(passes)} reads, each of some of the cells, to stay within {memory_limit} (memory_limit= for another "
                 "limit)",)
        logger.info("average: %s", notes[0])
    how = _How(equilibration, confidence, missing, keep, engine, progress)
    return _averages(given, source, series, passes, how, notes=notes)


def _check_readable(source: DescribedSource) -> None:
    """Refuse what cannot be read twice, or is too short for an interval."""
    if source.access == "once" or source.lengths is None:
        raise ReadOnceError(f"{kind_of(source)} can be read only once and a glance at it comes first; ingest it into a store")
    shortest = min(source.lengths, default=0)
    if shortest < 4:
        raise StatisticsError(f"an interval needs at least 4 snapshots; got {shortest}")


def _averages(given: DescribedSource, source: DescribedSource, series: Sequence[Target], passes: Sequence[Sequence[_Group]],
              how: _How, *, notes: tuple[str, ...]) -> FieldAverages:
    """The averages of the runs of a source, pooled, with what the source that was given says of places and names."""
    runs = [_of_run(run, series, passes, how) for run in (source.runs if isinstance(source, ReplicaSet) else (source,))]
    names = {f"{one.name}_{what}": (one, what) for one in series for what in one.wanted}
    estimates = runs[0] if len(runs) == 1 else {
        name: _pooled([run.pop(name) for run in runs], how.confidence, *kind) for name, kind in names.items()}
    mesh = mesh_of(given)
    where = {} if mesh is None else {name: mesh.where(one.names[0], one.field.shape) for name, (one, _) in names.items()}
    origin = origin_of(given)
    for name, (one, _) in names.items():
        estimates[name] = with_labels(with_origin(estimates[name], origin), given.labels, one.names[0])
    return FieldAverages(estimates, notes, mesh=mesh, association=where)


class _How(NamedTuple):
    """How a run is read and averaged."""

    equilibration: Equilibrate
    confidence: float
    missing: Missing
    keep: int
    """Stretches of a run that are kept apart."""
    engine: Engine | None
    progress: Progress


def _pooled(runs: Sequence[Estimate], confidence: float, target: Target, what: str) -> Estimate:
    """One average of several runs, its interval above what the average cannot leave."""
    answer = pooled(runs, confidence)
    floor = np.broadcast_to(_floor(target, what, np.shape(answer.mean)), np.shape(answer.mean))
    low, high = bounded_interval(answer.mean, answer.interval, (0.0, None))
    inside = np.isfinite(floor)
    return replace(answer, interval=(np.where(inside, low, answer.low), np.where(inside, high, answer.high)))


def _floor(target: Target, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """What an average cannot fall below, 0 or minus infinity, to be broadcast to its shape."""
    if what == "reynolds_stress":       # its normal components alone are variances
        return np.where(np.arange(shape[-1]) < target.parts, 0.0, -np.inf)
    return np.array(-np.inf if what == "mean" else 0.0)


def _of_run(source: DescribedSource, series: Sequence[Target], passes: Sequence[Sequence[_Group]],
            how: _How) -> dict[str, Estimate]:
    """The averages of one run by name."""
    columns: dict[tuple[str, str], list[tuple[np.ndarray, ...]]] = {}
    exponents: dict[str, list[np.ndarray | None]] = {}
    run, summary = _read(source, series, passes[0], how, first=True)
    run = with_checked_clock(run)
    kept = run.after(how.equilibration, summary, values=summary)
    w = run.weights
    effect = design_effect(w)
    states = kept.states
    times, start = run.times, kept.n_discarded
    del run
    n = 0
    for number, groups in enumerate(passes):
        if number:
            states = _read(source, series, groups, how)[0].since(start).states
        for k, group in enumerate(groups):
            stretches = Stretches([one for state in states for one in state.pop(f"{k}") if isinstance(one, Products)],
                                  group.target, effect)
            exponents.setdefault(group.target.name, []).append(stretches.bins[0].exponent)
            for what in group.target.wanted:
                columns.setdefault((group.target.name, what), []).append(stretches.columns(what))
            n = stretches.n
    facts = {**kept.facts, "n": n, "times": times, "confidence": how.confidence, "dt": spacing(times)}
    estimates: dict[str, Estimate] = {}
    for one in series:
        exponent = exponents[one.name]
        joined = None if all(x is None for x in exponent) else np.concatenate(
            [np.zeros(len(c[0]), np.int64) if x is None else x
             for x, c in zip(exponent, columns[one.name, one.wanted[0]], strict=True)])
        for what in one.wanted:
            answer = _estimate(one, what, columns.pop((one.name, what)), joined, facts)
            if kept.doubts:
                answer = answer.with_doubt("; ".join(kept.doubts))
            if w is not None:
                answer = replace(answer, n_eff=np.minimum(answer.n_eff, kish_of(kept.weights, kept.n)))
            estimates[f"{one.name}_{what}"] = answer.noting(uneven_steps(times) if w is None else "")
    return estimates


def _read(source: DescribedSource, series: Sequence[Target], groups: Sequence[_Group], how: _How, *,
          first: bool = False) -> tuple[RunStates, np.ndarray]:
    """A read of some groups of cells, branches "0", "1", ...; with the `first`, the series (n, 4) that shows the start-up."""
    names = list(dict.fromkeys(name for group in groups for name in group.target.names))
    (n,) = source.lengths or (0,)
    looks = source.window(0, None, -(-n // LOOKS))
    branches: dict[str, tuple[Any, ...]] = {}
    if first:
        middle = None
        if how.missing == "drop":
            middle = np.asarray(reduce(looks, {"m": (series[0], Moments())}, fields=list(series[0].names), engine=how.engine,
                                       missing=how.missing)["m"].mean)
        branches = {SUMMARY: (_Summary(series[0], middle), Series())}
        names = list(dict.fromkeys([*names, *series[0].names]))
    glance = reduce(looks, {f"{k}": (group, Moments()) for k, group in enumerate(groups)}, fields=names, engine=how.engine,
                    missing=how.missing)
    branches |= {f"{k}": (group, _about(group.target, glance[f"{k}"], how.missing)) for k, group in enumerate(groups)}
    del glance
    (run,) = partials(source, branches, fields=names, engine=how.engine, progress=how.progress, keep=how.keep)
    return run, run.series(SUMMARY) if first else np.empty(0)


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
        return equilibration_proxies(values)


def _wanted(statistics: Sequence[str] | str) -> tuple[str, ...]:
    wanted = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    unknown = [name for name in wanted if name not in STATISTICS]
    if unknown or not wanted:
        raise InputError(f"statistics are any of {', '.join(STATISTICS)}; got {', '.join(map(repr, unknown)) or 'none'}")
    return wanted


def _targets(source: DescribedSource, wanted: tuple[str, ...], velocity: str | Sequence[str] | None) -> list[Target]:
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
    targets = []
    if joined:
        name = "U" if "U" not in fields or "U" in joined else "_".join(joined)
        targets.append(Target(name, joined, fields[joined[0]], len(joined) if second else 1, wanted))
    for name, one in fields.items():
        if name in joined:
            continue
        vector = (name == velocity if velocity is not None else True) and one.shape[-1:] in ((2,), (3,))
        if name == velocity and not vector:
            raise InputError(f"velocity={name!r} has shape {one.shape}; its last axis is to hold 2 or 3 components")
        what = wanted if vector else plain
        if what:
            targets.append(Target(name, (name,), one, one.shape[-1] if vector and second else 1, what))
    if second and not any(one.parts > 1 for one in targets):
        shapes = {name: one.shape for name, one in fields.items()}
        raise InputError("reynolds_stress and tke need a velocity, and no field's last axis holds 2 or 3 components: "
                         f"{shapes}. Name scalar fields that are its components: velocity=(\"u\", \"v\")")
    return targets


def _about(target: Target, glance: MomentsResult, missing: Missing) -> Products:
    """Sums about the mean of the glance, each cell over the power of two that suits its numbers there."""
    mean = np.nan_to_num(np.asarray(glance.mean, np.float64), posinf=0.0, neginf=0.0).reshape(-1, target.parts)
    size = np.fmax(np.abs(mean), np.nan_to_num(np.asarray(glance.std), posinf=0.0).reshape(mean.shape)).max(axis=1)
    exponent = np.asarray(exponent_of(size))
    return Products(target.parts, ldexp(mean, -exponent[:, None]).ravel(), exponent if exponent.any() else None,
                    exponent_of(np.max(glance.sum_weights) / glance.n), missing)


def _estimate(target: Target, what: str, columns: list[tuple[np.ndarray, ...]], exponent: np.ndarray | None,
              facts: Mapping[str, Any]) -> Estimate:
    """The Estimate of a statistic from those of groups of cells, one after the other."""
    numbers = columns[0][0].shape[1]
    shape = target.cells if what == "tke" or target.parts == 1 else (*target.cells, numbers)
    mean, stderr, dof, g, variance, constant, independent, share = (
        np.concatenate([group[k] for group in columns]).reshape(shape) for k in range(8))
    columns.clear()
    constant = constant.astype(bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        n_eff = np.where(constant, np.nan, np.minimum(variance / stderr**2, facts["n"]))
    stderr = np.where(constant, 0.0, stderr)
    g = np.where(constant, np.nan, g)
    if what == "rms":
        with np.errstate(invalid="ignore", divide="ignore"):
            root = np.sqrt(mean)
            stderr = np.where(root > 0, stderr / (2 * root), 0.0)
            mean = root
    unit = target.field.unit if what in ("mean", "rms") else squared(target.field.unit)
    known, enough = (n_eff, ENOUGH) if what == "mean" else (independent, STRETCHES)
    interval = interval_above(_floor(target, what, shape), mean, stderr, dof, facts["confidence"], 2 if what == "rms" else 1,
                              independent=np.inf if what == "mean" else independent)
    answer = Estimate.of(mean, stderr, dof, interval=interval, n_eff=n_eff, g=g, estimators={"blocking": stderr}, unit=unit,
                         **facts).judged(independent=known, enough=enough, word="numbers")
    if (share < 1).any():
        never = int((share == 0).sum())
        answer = answer.noting(f"{int((share < 1).sum())} of {share.size} numbers are missing in some snapshots"
                               + (f", {never} in all" if never else "") + "; they keep their places in time")
    if exponent is None:
        return answer
    degree = 1 if what in ("mean", "rms") else 2
    exponent = degree * exponent.reshape(*target.cells, *[1] * (mean.ndim - len(target.cells)))
    if degree == 2:
        representable(answer.mean, exponent, f"{target.name}_{what}, of the degree of a square,")
    return over_power_of_two(answer, exponent)


def squared(unit: str) -> str:
    """The unit of a square, in H5MD's notation: "m s-1" becomes "m2 s-2"."""
    factors = []
    for part in unit.split():
        split = re.fullmatch(r"([^\d+-]+)([+-]?\d+)?", part)
        if split is None:
            return f"({unit})2"
        factors.append(f"{split[1]}{2 * int(split[2] or 1)}")
    return " ".join(factors)


__all__ = ["FieldAverages", "average"]
