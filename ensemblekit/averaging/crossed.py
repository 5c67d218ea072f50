"""The mean of a table of independent runs by items, with the error of both samples: other runs and other items.

The runs are trainings, or simulations from other starts; the items are what each of them is scored on. Both are drawn, and
every run meets every item: a two-way random-effects table without replicates (Searle, Casella & McCulloch, Variance
Components, 1992). Degrees of freedom by Satterthwaite, Biometrics Bulletin 2, 110 (1946).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CrossedMean(Result):
    """Grand mean of values (runs, items), or the difference of two such, with the error over runs and items."""

    mean: float
    stderr: float
    """√(stderr_items² + stderr_runs²)."""
    interval: tuple[float, float]
    """(low, high), Student's with `dof`."""
    confidence: float
    dof: float
    """Satterthwaite's degrees of freedom."""
    runs: float
    """Variance component of the runs, not below 0; NaN for a difference of two tables, as are the other two."""
    items: float
    """Variance component of the items, not below 0."""
    rest: float
    """Variance component of what runs and items do not explain."""
    stderr_items: float
    """Of other items with these runs."""
    stderr_runs: float
    """Of other runs with these items; 0 where the runs scatter no more than the rest does."""
    n_runs: int
    n_items: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.mean:.6g} ± {self.stderr:.2g} ({self.confidence:.0%} interval {self.interval[0]:.6g} to "
                 f"{self.interval[1]:.6g}; {self.n_runs} runs, {self.n_items} items; error over items "
                 f"{self.stderr_items:.2g}, over runs {self.stderr_runs:.2g})"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, slots=True)
class _Table:
    """Sums of squares of a table (runs, items), over 4**e of the values."""

    n_runs: int
    n_items: int
    ms_runs: float
    ms_items: float
    ms_rest: float

    @property
    def n(self) -> int:
        return self.n_runs * self.n_items


def crossed(values: ArrayLike, *, confidence: float = 0.95) -> CrossedMean:
    """Mean of values (runs, items) that holds for other runs and other items, and not only for those at hand.

    The variance of the mean is (MS_runs + MS_items - MS_rest)/(R n) from the mean squares of the two-way table; where the
    rest is larger than the two together, the larger of MS_runs and MS_items alone.

    Arguments:
        values: (R, n) numbers; run r and item i in ``values[r, i]``, every item scored by every run.

    Raises:
        InputError: values that are no finite numbers in two axes, a confidence outside (0, 1).
        StatisticsError: fewer than two runs or two items.
    """
    x, e = _table_values(values, "values")
    return _crossed(x, e, confidence, None)


def crossed_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> CrossedMean:
    """Mean of a (R, n) less that of b (R', n): the items are the same and enter paired, the runs are two samples.

    A table of one run says nothing of other runs; the error is then over the runs of the other table alone, with a note.
    Raises as :func:`crossed`; also where the items differ in number.
    """
    x, e = _table_values(a, "a", least_runs=1)
    y, f = _table_values(b, "b", least_runs=1)
    return _difference(x, e, y, f, confidence, None)


def crossed_ratio(sums: np.ndarray, sizes: np.ndarray, dof: float, confidence: float = 0.95) -> CrossedMean:
    """:func:`crossed` of a ratio: sums (R, n) over sizes (n,) of clusters of items, which count as `dof` + 1 equal ones."""
    return _crossed(*_common(_linear(sums, sizes)), confidence, dof)


def crossed_ratio_difference(a: np.ndarray, b: np.ndarray, sizes: np.ndarray, dof: float,
                             confidence: float = 0.95) -> CrossedMean:
    """:func:`crossed_difference` of ratios: sums (R, n) and (R', n) over the same sizes (n,)."""
    return _difference(*_common(_linear(a, sizes)), *_common(_linear(b, sizes)), confidence, dof)


def _linear(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Values (R, n) whose means over clusters are the ratios of sums, and whose scatter is that of the ratios."""
    share = sizes / sizes.mean()
    value = sums.sum(1) / sizes.sum()
    return value[:, None] + (sums / sizes.mean() - value[:, None] * share)


def _crossed(x: np.ndarray, e: int, confidence: float, dof_items: float | None) -> CrossedMean:
    table = _mean_squares(x)
    r, n, total = table.n_runs, table.n_items, table.n
    few = float(n - 1) if dof_items is None else dof_items
    both = table.ms_runs + table.ms_items - table.ms_rest
    terms = [(table.ms_runs, r - 1.0), (table.ms_items, few), (table.ms_rest, (r - 1) * few)]
    if both <= 0:
        both, terms = (table.ms_runs, terms[:1]) if table.ms_runs > table.ms_items else (table.ms_items, terms[1:2])
    over_runs = min(max(table.ms_runs - table.ms_rest, 0.0), both)
    notes = ("two runs: how much runs scatter rests on a single difference, and the interval covers less surely than of three "
             "or more",) if r == 2 else ()
    return _result(float(x.mean()), e, both / total, over_runs / total, _satterthwaite(both, terms, min(r - 1.0, few)),
                   confidence,
                   (max(table.ms_runs - table.ms_rest, 0.0) / n, max(table.ms_items - table.ms_rest, 0.0) / r, table.ms_rest),
                   (r, n), notes)


def _difference(x: np.ndarray, e: int, y: np.ndarray, f: int, confidence: float, dof_items: float | None) -> CrossedMean:
    if x.shape[1] != y.shape[1]:
        raise InputError(f"both are about the same items; got {x.shape[1]} and {y.shape[1]}")
    top = max(e, f)
    x, y = ldexp(x, e - top), ldexp(y, f - top)
    n = x.shape[1]
    few = float(n - 1) if dof_items is None else dof_items
    gap = x.mean(0) - y.mean(0)
    over_items = float(gap.var(ddof=1)) / n
    terms = [(over_items, few)]
    over_runs, notes, least = 0.0, [], few
    for rows, which in ((x, "first"), (y, "second")):
        if len(rows) == 1:
            notes.append(f"one run of the {which}: the luck of its training is not covered")
            continue
        table = _mean_squares(rows)
        over_runs += max(table.ms_runs - table.ms_rest, 0.0) / table.n
        if table.ms_runs > table.ms_rest:
            terms += [(table.ms_runs / table.n, table.n_runs - 1.0), (table.ms_rest / table.n, (table.n_runs - 1) * few)]
            least = min(least, table.n_runs - 1.0)
    variance = over_items + over_runs
    nan = float("nan")
    return _result(float(gap.mean()), top, variance, over_runs, _satterthwaite(variance, terms, least), confidence, (nan, nan,
                                                                                                                     nan),
                   (len(x) + len(y), n), tuple(notes))


def _result(mean: float, e: int, variance: float, over_runs: float, dof: float, confidence: float,
            components: tuple[float, float, float], shape: tuple[int, int], notes: tuple[str, ...]) -> CrossedMean:
    from scipy.special import stdtrit

    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
    stderr = float(np.sqrt(variance))
    half = float(stdtrit(dof, 0.5 + confidence / 2)) * stderr
    runs, items, rest = (ldexp(c, 2 * e) for c in components)
    if e:
        notes += ("squares of the values leave float64: the variance components may stand as infinity or 0",)
    return CrossedMean(
        mean=ldexp(mean, e), stderr=ldexp(stderr, e), interval=(ldexp(mean - half, e), ldexp(mean + half, e)),
        confidence=confidence, dof=dof, runs=runs, items=items, rest=rest,
        stderr_items=ldexp(float(np.sqrt(max(variance - over_runs, 0.0))), e), stderr_runs=ldexp(float(np.sqrt(over_runs)), e),
        n_runs=shape[0], n_items=shape[1], notes=notes)


def _mean_squares(x: np.ndarray) -> _Table:
    r, n = x.shape
    x = x - x.mean()        # of deviations: a mean far from zero takes no digits
    by_run, by_item = x.mean(1), x.mean(0)
    rest = x - by_run[:, None] - by_item + x.mean()
    return _Table(r, n, n * float(by_run.var(ddof=1)), r * float(by_item.var(ddof=1)),
                  float((rest**2).sum()) / ((r - 1) * (n - 1)))


def _satterthwaite(variance: float, terms: list[tuple[float, float]], least: float) -> float:
    """Degrees of freedom of a sum of mean squares (value, dof); `least` is the fewest of any of them."""
    noise = sum((value / variance) ** 2 / dof for value, dof in terms) if variance > 0 else 0.0
    return max(1 / noise, least) if noise > 0 else least


def _table_values(values: ArrayLike, what: str, least_runs: int = 2) -> tuple[np.ndarray, int]:
    x = as_array(values, what)
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise InputError(f"{what} are real numbers, (runs, items); got {x.dtype} {x.shape}")
    x = x.astype(np.float64)
    if len(x) < least_runs or x.shape[1] < 2:
        raise StatisticsError(f"an error over runs and items needs two of each; got {len(x)} runs and {x.shape[1]} items")
    if not np.isfinite(x).all():
        run, item = np.argwhere(~np.isfinite(x))[0]
        raise InputError(f"{what}: item {item} of run {run} is {x[run, item]}; leave it out or mend it")
    return _common(x)


def _common(x: np.ndarray) -> tuple[np.ndarray, int]:
    e = int(power_of_two(x))
    return (ldexp(x, -e) if e else x), e
