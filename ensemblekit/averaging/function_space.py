"""How many independent runs the snapshots of one run are worth, in the space of what they say.

The snapshots of R runs are functions of the same items (class probabilities, density profiles). What matters is how they
scatter from run to run, and how much of a run's deviation at one snapshot is still there at a later one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.replicas import Verdict
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import ReplicaSet, SnapshotSource, as_source

Run = SnapshotSource | ArrayLike
"""(M, n, ...)."""
Runs = Run | Sequence[Run]
MIN_RUNS, MIN_SNAPSHOTS = 3, 4
"""Below, how far runs scatter, or how they forget, cannot be told."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FunctionSpace(Result):
    """Scatter between runs against scatter along them, over all items. `interval` fields are (low, high)."""

    FIGURE: ClassVar[str] = "neural_evidence.ergodicity"

    verdict: Verdict
    reasons: tuple[str, ...]
    """Why, in sentences."""
    n_eff: float
    """Independent runs whose mean, of one snapshot each, varies as little as the mean of the M snapshots of one run: 1 to
    M, but for sampling error. NaN for one run."""
    n_eff_interval: tuple[float, float]
    memory: float
    """Share of a run's deviation from the other runs that is still there half a run later and beyond."""
    memory_interval: tuple[float, float]
    rhat: float
    """√(((M-1)/M within + pooled)/within), 1 where one run explores what all do; infinite for runs that never move."""
    rhat_interval: tuple[float, float]
    autocorrelation: np.ndarray
    """(M,), of a run's deviation, over 0 to M - 1 snapshots."""
    autocorrelation_low: np.ndarray
    autocorrelation_high: np.ndarray
    correlation: np.ndarray
    """(M, M), covariance of the deviations at two snapshots over `single`."""
    single: float
    """Variance over runs of a single snapshot, the mean over snapshots and elements; unit squared."""
    pooled: float
    """Variance over runs of the mean of the M snapshots."""
    within: float
    """Variance of the snapshots about their run's mean, less what all runs do together."""
    drift: float
    """Variance over time of the mean of the runs, its sampling error taken off, over `single`."""
    drift_interval: tuple[float, float]
    n_eff_bound: float
    """The most that `n_eff` can be as one run sees it by itself, M over its statistical inefficiency."""
    n_runs: int
    n_snapshots: int
    confidence: float

    def __str__(self) -> str:
        m = self.n_snapshots
        lines = [f"{self.verdict}: {'; '.join(self.reasons)}"]
        if self.n_runs > 1:
            lines += [f"  the mean over {m} snapshots of one run varies as that of {_ranged(self.n_eff, self.n_eff_interval)} "
                      "independent runs",
                      f"  memory of the start {_ranged(self.memory, self.memory_interval)}; R-hat "
                      f"{_ranged(self.rhat, self.rhat_interval)}; drift {self.drift:.2g} of the variance between runs",
                      f"  {self.n_runs} runs of {m} snapshots; {self.confidence:.0%} intervals over runs and items"]
        else:
            lines.append(f"  one run of {m} snapshots: worth at most {self.n_eff_bound:.3g} independent runs, as it sees "
                         f"itself")
        return "\n".join(lines)


class _Products(NamedTuple):
    """Inner products over B blocks of items of R runs' M snapshots, summed over the elements of each block."""

    own: np.ndarray         # (B, R, M, M): of each run's deviations from the mean over runs at the same snapshot
    with_mean: np.ndarray   # (B, R, M, M): of the mean over runs, less its mean over time, with the deviations
    mean: np.ndarray        # (B, M, M): of the mean over runs, less its mean over time
    inside: np.ndarray      # (B, R, M, M): of each run's snapshots less the run's mean over time
    elements: np.ndarray    # (B,)
    square: float           # of the largest number


def function_space(runs: Runs, *, last: int | None = None, blocks: int | ArrayLike = 20, tolerance: float = 0.1,
                   confidence: float = 0.95) -> FunctionSpace:
    """Whether the snapshots of one run scatter as independent runs do, and how many of those they are worth.

    With d = f - the mean over runs at the same snapshot, so that what all runs do together is not taken for memory, all answers
    come from C_ts = Σ_r <d_rt, d_rs>/((R - 1) n). Errors: jackknife over runs and over blocks of items, in quadrature less what
    both hold (what scatters over runs and items alike would count twice), Student's with R - 1.

    The verdict is "not ergodic" where the lower end of `memory` is above `tolerance`; "ergodic within error" where its
    upper end is below and the snapshots do not drift; else, and always for fewer than 3 runs or 4 snapshots, "cannot say".
    A run that forgets
    slowly and one that is stuck look alike over one run's length.

    Arguments:
        runs: an array (R, M, n, ...), a list of R arrays (M, n, ...) or sources, or a ReplicaSet; real numbers.
        last: take the last so many snapshots of each run.
        blocks: number of blocks of items for the jackknife, or (n,) what each item belongs to (those stay together).
        tolerance: memory that is called small.

    Raises:
        InputError: runs of different lengths or shapes, numbers that are not finite, settings out of range.
        StatisticsError: fewer than two snapshots or items, or runs that are copies of each other.
    """
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
    if not tolerance > 0:
        raise InputError(f"the tolerance of the memory is above 0; got {tolerance!r}")
    arrays = _arrays(runs, last)
    m, n = arrays[0].shape[:2]
    if m < 2 or n < 2:
        raise StatisticsError(f"runs of two snapshots or more, of two items or more; got {m} snapshots of {n} items")
    e = max(int(power_of_two(x)) for x in arrays)
    sums = _products(arrays, _block_of(blocks, n), e)
    r = len(arrays)
    g = _inefficiency(sums)
    bound = m / g
    if r == 1:
        nan, none = float("nan"), (float("nan"), float("nan"))
        empty = np.full(m, nan)
        return FunctionSpace(
            verdict="cannot say", reasons=("one run cannot tell whether others would say the same",), n_eff=nan,
            n_eff_interval=none,
            memory=nan, memory_interval=none, rhat=nan, rhat_interval=none, autocorrelation=empty, autocorrelation_low=empty,
            autocorrelation_high=empty, correlation=np.full((m, m), nan), single=nan, pooled=nan,
            within=ldexp(float(np.trace(sums.inside.sum((0, 1)))) / ((m - 1) * float(sums.elements.sum())), 2 * e), drift=nan,
            drift_interval=none, n_eff_bound=bound, n_runs=1, n_snapshots=m, confidence=confidence)
    return _several(sums, r, m, e, bound, tolerance, confidence)


def _several(sums: _Products, r: int, m: int, e: int, bound: float, tolerance: float, confidence: float) -> FunctionSpace:
    from scipy.special import stdtrit

    total = sums.own.sum(1)                                         # (B, M, M)
    whole = _matrices(total.sum(0), sums.mean.sum(0), sums.elements.sum(), r)
    if not np.trace(whole[0]) > m * (1e-14**2) * sums.square:          # equal but for the rounding of their mean
        raise StatisticsError("all runs say the same at every snapshot: they are copies of one run, or of one another; "
                              "independent "
                              "runs differ in their seed")
    value = _numbers(*whole, r)
    errors = _jackknife(np.array([
        _numbers(*_matrices(total.sum(0) - total[b], sums.mean.sum(0) - sums.mean[b], sums.elements.sum() - sums.elements[b],
                            r), r)
        for b in range(len(total))]), value, sums.elements / sums.elements.sum())
    if r > 2:
        by_run = _jackknife(_without_each_run(sums, total.sum(0), r), value, np.full(r, 1 / r))
        errors = _crossed_errors(by_run, errors, _rest(sums.own, value, whole[1], r))
    half = float(stdtrit(r - 1, 0.5 + confidence / 2)) * errors
    low, high = value - half, value + half
    c = whole[0]
    single, pooled = float(np.trace(c)) / m, float(c.mean())
    within = (float(np.trace(c)) - m * pooled) / (m - 1)
    memory, drift = (float(low[2]), float(high[2])), (float(low[3]), float(high[3]))
    verdict, reasons = _judge(r, m, memory, drift, float(value[3]), tolerance)
    n_eff, rhat = np.exp(value[:2])
    return FunctionSpace(
        verdict=verdict, reasons=reasons, n_eff=float(n_eff), n_eff_interval=(float(np.exp(low[0])), float(np.exp(high[0]))),
        memory=float(value[2]), memory_interval=memory, rhat=float(rhat), rhat_interval=_ends(low[1], high[1]),
        autocorrelation=value[4:], autocorrelation_low=low[4:], autocorrelation_high=high[4:], correlation=c / single,
        single=ldexp(single, 2 * e), pooled=ldexp(pooled, 2 * e), within=ldexp(max(within, 0.0), 2 * e), drift=float(value[3]),
        drift_interval=drift, n_eff_bound=bound, n_runs=r, n_snapshots=m, confidence=confidence)


def _judge(r: int, m: int, memory: tuple[float, float], drift: tuple[float, float], size: float,
           tolerance: float) -> tuple[Verdict, tuple[str, ...]]:
    few = []
    if r < MIN_RUNS:
        few.append(f"{r} runs; how much runs scatter needs {MIN_RUNS} or more")
    if m < MIN_SNAPSHOTS:
        few.append(f"{m} snapshots a run; how they forget needs {MIN_SNAPSHOTS} or more")
    if few:
        return "cannot say", tuple(few)
    drifts = () if not drift[0] > 0 else (
        f"the runs drift together, by {size:.2g} of the variance between them, so their time average is not of one state; "
        f"leave the "
        "early snapshots out with last=",)
    if memory[0] > tolerance:
        return "not ergodic", (f"over the length of these runs {100 * memory[0]:.0f} % or more of what a run began with stays",
                               *drifts)
    if memory[1] < tolerance and not drifts:
        return "ergodic within error", (
            f"over the length of these runs at most {100 * max(memory[1], 0):.0f} % of what a run began with stays",)
    if drifts:
        return "cannot say", drifts
    return "cannot say", (f"over the length of these runs {100 * max(memory[0], 0):.0f} to {100 * memory[1]:.0f} % of "
                          f"what a run began "
                          f"with stays, and {100 * tolerance:.0f} % is called little; more runs or longer ones would tell",)


def _matrices(own: np.ndarray, mean: np.ndarray, elements: float, r: int) -> tuple[np.ndarray, float]:
    """C (M, M), and the variance over time of the mean of the runs."""
    return own / ((r - 1) * elements), float(np.trace(mean)) / ((len(mean) - 1) * elements)


def _numbers(c: np.ndarray, over_time: float, r: int) -> np.ndarray:
    """log n_eff, log R-hat, memory, drift, then the autocorrelation (M,)."""
    m = len(c)
    trace, pooled = float(np.trace(c)), max(float(c.mean()), 0.0)
    if not trace > 0:
        return np.full(4 + m, np.nan)
    single = trace / m
    within = max((trace - m * pooled) / (m - 1), 0.0)
    far = abs(np.subtract.outer(np.arange(m), np.arange(m))) >= -(-m // 2)
    with np.errstate(divide="ignore"):
        n_eff = np.log(single / pooled) if pooled > 1e-30 * single else np.inf
        within = within if within > 1e-13 * single else 0.0
        rhat = 0.5 * np.log((m - 1) / m + pooled / within) if within > 0 else np.inf
    rho = np.array([np.diagonal(c, k).mean() for k in range(m)]) / single
    return np.array([n_eff, rhat, c[far].mean() / single, (over_time - within / r) / single, *rho])


def _jackknife(left_out: np.ndarray, value: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Standard errors (k,) from values (m, k) with one part left out each; parts of unequal shares after Busing et al. 1999."""
    with np.errstate(invalid="ignore"):
        h = (1 / shares)[:, None]
        moved = left_out - value
        pseudo = value - (h - 1) * moved
        corrected = value - ((1 - 1 / h) * moved).sum(axis=0)
        out: np.ndarray = np.sqrt(((pseudo - corrected) ** 2 / (h - 1)).mean(axis=0))
    return out


def _without_each_run(sums: _Products, total: np.ndarray, r: int) -> np.ndarray:
    """(R, k): the numbers with one run left out each, from the products of that run alone."""
    own, crossing = sums.own.sum(0), sums.with_mean.sum(0)
    m = own.shape[1]
    center = np.eye(m) - 1 / m
    left = []
    for k in range(r):
        # the mean over the others is the mean less d_k/(R - 1), over time
        moved = crossing[k] @ center / (r - 1)
        mean = sums.mean.sum(0) - moved - moved.T + center @ own[k] @ center / (r - 1) ** 2
        left.append(_numbers(*_matrices(total - r / (r - 1) * own[k], mean, sums.elements.sum(), r - 1), r - 1))
    return np.array(left)


def _rest(own: np.ndarray, value: np.ndarray, over_time: float, r: int) -> np.ndarray:
    """Squared error (k,) that both jackknives see, as it belongs to neither runs nor items: from the influence of one run
    in one block of items, the residual of their two-way table."""
    blocks = len(own)
    total = own.sum((0, 1))
    c = total / float(np.trace(total))
    step = 1e-3
    table = np.empty((blocks, r, len(value)))
    with np.errstate(invalid="ignore"):         # R-hat of runs that never move is infinite
        for b in range(blocks):
            for k in range(r):
                part = step * own[b, k] / float(np.trace(total))
                table[b, k] = (_numbers(c + part, over_time, r) - _numbers(c - part, over_time, r)) / (2 * step)
        rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean((0, 1))
        out: np.ndarray = (rest**2).sum((0, 1)) * (blocks * r) / ((blocks - 1) * (r - 1)) * (r / (r - 1)) ** 2
    out[3] = 0.0            # of the drift, which is no function of these products alone: its errors add up in full
    return out


def _crossed_errors(by_run: np.ndarray, by_block: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Errors of both samples: squares add up, less what both hold; where the rest is larger, the larger of the two alone."""
    with np.errstate(invalid="ignore"):
        both = by_run**2 + by_block**2 - rest
        out: np.ndarray = np.sqrt(np.where(both > 0, both, np.maximum(by_run, by_block) ** 2))
    return out


def _ends(low: float, high: float) -> tuple[float, float]:
    with np.errstate(over="ignore"):
        return float(np.exp(low)), float(np.exp(high))


def _inefficiency(sums: _Products) -> float:
    """Statistical inefficiency within runs, 1 or more; the sum over lags ends at the first that is not positive."""
    g = sums.inside.sum((0, 1))
    m = len(g)
    own = float(np.trace(g))
    if not own > 0:
        return float(m)         # snapshots that never move are one
    rho = np.array([np.diagonal(g, k).sum() for k in range(m)]) / own
    below = np.flatnonzero(rho <= 0)
    upto = int(below[0]) if len(below) else m
    return min(max(1 + 2 * float(rho[1:upto].sum()), 1.0), float(m))        # biased diagonals hold the factor 1 - k/M


def _products(arrays: Sequence[np.ndarray], block: np.ndarray, e: int) -> _Products:
    """One pass over the items, block by block, so that few of them are in double precision at a time."""
    r, m = len(arrays), arrays[0].shape[0]
    count = int(block.max()) + 1
    own, crossing, inside = (np.zeros((count, r, m, m)) for _ in range(3))
    mean, elements, largest = np.zeros((count, m, m)), np.zeros(count), 0.0
    for b, items in _slabs(block, r * m * max(arrays[0][0, :1].size, 1)):
        x = np.stack([np.asarray(a[:, items], np.float64).reshape(m, -1) for a in arrays])     # (R, M, k)
        if not np.isfinite(x).all():
            run, at = np.argwhere(~np.isfinite(x).all(axis=2))[0]
            width = x.shape[2] // len(items)
            item = items[int(np.argmin(np.isfinite(x[run, at]))) // width]
            raise InputError(f"snapshot {at} of run {run} holds a number that is not finite, at item {item}; leave it out "
                             f"or mend it")
        if e:
            x = ldexp(x, -e)
        largest = max(largest, float(abs(x).max()))
        together = x.mean(axis=0)
        d = x - together
        x = x - x.mean(axis=1, keepdims=True)
        inside[b] += x @ x.transpose(0, 2, 1)
        together = together - together.mean(axis=0)
        own[b] += d @ d.transpose(0, 2, 1)
        crossing[b] += together @ d.transpose(0, 2, 1)
        mean[b] += together @ together.T
        elements[b] += x.shape[2]
    return _Products(own, crossing, mean, inside, elements, largest**2)


def _slabs(block: np.ndarray, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Block and numbers of items, at most 64 MB in double precision at a time."""
    most = max(1, (8 << 20) // width)
    for b in range(int(block.max()) + 1):
        items = np.flatnonzero(block == b)
        for start in range(0, len(items), most):
            yield b, items[start:start + most]


def _block_of(blocks: int | ArrayLike, n: int) -> np.ndarray:
    """(n,): the block of each item."""
    if isinstance(blocks, int | np.integer) and not isinstance(blocks, bool):
        if blocks < 2:
            raise InputError(f"blocks of items are two or more; got {blocks}")
        return np.arange(n) * min(int(blocks), n) // n
    names = as_array(blocks, "blocks", kinds=None)
    if names.shape != (n,):
        raise InputError(f"blocks are a number of them, or one name an item, ({n},); got {names.shape}")
    labels: np.ndarray = np.unique(names, return_inverse=True)[1].reshape(-1)
    if not labels.max() > 0:
        raise StatisticsError("all items belong to one group; an error over items needs two or more")
    return labels


def _arrays(runs: Runs, last: int | None) -> list[np.ndarray]:
    """(M, n, ...) of each run, not copied where they are arrays."""
    several: Sequence[Run]
    if isinstance(runs, SnapshotSource):
        several = ReplicaSet.of([runs]).runs
    elif isinstance(runs, list | tuple):
        several = [x for run in runs for x in (run.runs if isinstance(run, ReplicaSet) else (run,))]
    else:
        table = as_array(runs, "runs")
        if table.ndim < 3:
            raise InputError(f"runs are (runs, snapshots, items, ...); got shape {table.shape}. Of one run: [run]")
        several = list(table)
    if not len(several):
        raise InputError("no runs came; give a list of arrays (snapshots, items, ...)")
    arrays = [_array(run, k) for k, run in enumerate(several)]
    for k, x in enumerate(arrays):
        if x.shape != arrays[0].shape:
            raise InputError(f"runs are of the same snapshots and items; run {k} has the shape {x.shape}, run 0 "
                             f"{arrays[0].shape}")
    m = len(arrays[0])
    if last is None:
        return arrays
    if not isinstance(last, int | np.integer) or not 1 <= last <= m:
        raise InputError(f"last is a whole number from 1 to {m}, the snapshots of a run; got {last!r}")
    return [x[m - last:] for x in arrays]


def _array(run: Run, k: int) -> np.ndarray:
    if isinstance(run, SnapshotSource):
        x = _read(as_source(run), k)
    else:
        x = as_array(run, f"run {k}")
    if x.ndim < 2 or x.dtype.kind not in "biuf" or not x.size:
        raise InputError(f"run {k} is real numbers, (snapshots, items, ...), one item or more; got {x.dtype} {x.shape}")
    return x


def _read(source: SnapshotSource, k: int) -> np.ndarray:
    if len(source.fields) != 1:
        raise InputError(f"run {k} is a source of the fields {sorted(source.fields)}; pass one of them, such as "
                         f"source[{next(iter(source.fields))!r}]")
    name = next(iter(source.fields))
    blocks = [np.array(block.fields[name]) for piece in source.pieces([name], "time", False,
                                                                      64 << 20) for block in piece.blocks()]
    return np.concatenate(blocks) if blocks else np.zeros((0, 0))


def _ranged(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3g} ({interval[0]:.3g} to {interval[1]:.3g})"
