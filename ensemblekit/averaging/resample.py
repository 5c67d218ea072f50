"""Errors of any function of averages of correlated snapshots: block bootstrap and delete-block jackknife."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.run_states import RunStates, States
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp, power_of_two, scaled
from ensemblekit.source_clock import chosen_weights

Function = Callable[[np.ndarray], Any]
Scheme = Literal["stationary", "circular", "moving"]
Interval = Literal["bca", "percentile", "basic"]

MIN_BLOCKS = 4
"""Blocks a jackknife needs at the least; Student-t with 3 degrees of freedom is the widest bar worth giving."""
JACKKNIFE_BLOCKS = 20
"""Blocks of the jackknife unless correlation asks for fewer: each is 5 % of the run, long beside its correlation."""
CHUNK_DRAWS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resampled(Result):
    """The value of a function of averages, with an error from resampling blocks of the snapshots."""

    value: Any
    """f of the averages over all snapshots; a float or an array (*out,)."""
    stderr: Any
    """Standard error, in the shape of `value`."""
    bias: Any
    """Resampling estimate of E[value] - truth; subtract it to correct the value."""
    interval: tuple[Any, Any]
    """Lower and upper end at `confidence`, each in the shape of `value`."""
    confidence: float
    block_length: float
    """Snapshots a block (the mean one of the stationary bootstrap)."""
    method: str
    """"stationary bootstrap (bca)", "delete-block jackknife", ..."""
    n_resamples: int
    """Bootstrap resamples, or blocks of the jackknife."""

    def __str__(self) -> str:
        if np.ndim(self.value):
            return f"{np.shape(self.value)} values by {self.method}, blocks of {self.block_length:.4g}"
        low, high = self.interval
        return (f"{self.value:.6g}, {self.confidence:.0%} interval {low:.6g} to {high:.6g} "
                f"({self.method}, blocks of {self.block_length:.4g})")


def block_bootstrap(values: ArrayLike, function: Function | None = None, *, weights: ArrayLike | None = None,
                    log_weights: ArrayLike | None = None, scheme: Scheme = "stationary",
                    block_length: float | None = None, n_resamples: int = 1000, confidence: float = 0.95,
                    interval: Interval = "bca", vectorised: bool = False, rng: np.random.Generator | int = 0) -> Resampled:
    """Bootstrap of blocks for any function of averages over correlated snapshots.

    Arguments:
        values: (n,) or (n, k), the k numbers of each snapshot whose averages enter `function`, such as r⁻⁶ of each
            distance, or x and x².
        function: averages (k,) -> a number or an array, such as ``lambda m: m[1] - m[0]**2``; None: the averages
            themselves. A series (n,) gives averages of shape (1,), and the average itself without a function.
        weights, log_weights: (n,) statistical weights, or their logarithms; the averages are weighted ones, and weights are
            resampled with their snapshots.
        scheme: "stationary" (Politis & Romano 1994: lengths geometric, round the end), "circular" (fixed length,
            round the end) or "moving" (Künsch 1989: fixed length, all inside the run).
        block_length: in snapshots; None: Politis & White (2004) with the correction of Patton, Politis & White
            (2009), the largest over the k series (see :func:`optimal_block_length`).
        n_resamples: resamples drawn.
        interval: "bca" (bias-corrected and accelerated, Efron 1987; acceleration from the delete-block jackknife),
            "percentile", or "basic" (reflected).
        vectorised: `function` takes all resamples at once, (n_resamples, k) -> (n_resamples, *out).
        rng: a Generator or a seed; the same seed gives the same numbers.

    Raises:
        InputError: values that are not finite real numbers of shape (n,) or (n, k), bad weights or settings.
        StatisticsError: fewer than 4 snapshots, all weights zero, or a function that is not finite on a resample.
    """
    x, w, single = _checked(values, weights, log_weights)
    _check_settings(confidence, n_resamples)
    if scheme not in ("stationary", "circular", "moving"):
        raise InputError(f'scheme is "stationary", "circular" or "moving"; got {scheme!r}')
    if interval not in ("bca", "percentile", "basic"):
        raise InputError(f'interval is "bca", "percentile" or "basic"; got {interval!r}')
    length = _length_of(x, w, block_length, "stationary" if scheme == "stationary" else "circular")
    evaluate = _evaluator(function, vectorised, single)
    centre = x.mean(axis=0)
    sums = _Sums(np.column_stack([w[:, None] * (x - centre), w]))
    generator = np.random.default_rng(rng)
    drawn = np.concatenate([sums.of(*blocks) for blocks in _draws(generator, scheme, length, len(x), n_resamples)])
    if (drawn[:, -1] <= 0).any():
        raise StatisticsError("a resample holds only weights of zero; the weights rest on too few snapshots")
    value = evaluate((w @ (x - centre) / w.sum() + centre)[None])[0]
    replicates = evaluate(drawn[:, :-1] / drawn[:, -1:] + centre)
    _check_finite(replicates)
    levels = np.array([0.5 - confidence / 2, 0.5 + confidence / 2])
    if interval == "bca":
        blocks = np.array_split(np.arange(len(x)), min(len(x), max(MIN_BLOCKS, int(len(x) // max(length, 1)))))
        low, high = _bca(replicates, value, evaluate(_left_out(x, w, blocks)), levels)
    else:
        low, high = np.quantile(replicates, levels, axis=0)
        if interval == "basic":
            low, high = 2 * value - high, 2 * value - low
    small, e = scaled(replicates, 0)
    return Resampled(value=_plain(value), stderr=_plain(ldexp(small.std(axis=0, ddof=1), e)),
                     bias=_plain(replicates.mean(axis=0) - value), interval=(_plain(low), _plain(high)),
                     confidence=confidence, block_length=length, method=f"{scheme} bootstrap ({interval})",
                     n_resamples=n_resamples)


def jackknife(values: ArrayLike, function: Function | None = None, *, weights: ArrayLike | None = None,
              log_weights: ArrayLike | None = None, block_length: int | None = None, confidence: float = 0.95,
              vectorised: bool = False) -> Resampled:
    """Delete-block jackknife for any smooth function of averages over correlated snapshots.

    The run is cut into at most 20 equal blocks, fewer where :func:`optimal_block_length` asks for longer ones; the
    interval is Student's with one degree of freedom fewer than blocks. Arguments and errors as
    :func:`block_bootstrap`. Blocks of unequal weight by Busing, Meijer & van der Leeden, Stat. Comput. 9, 3 (1999).
    """
    x, w, single = _checked(values, weights, log_weights)
    _check_settings(confidence, MIN_BLOCKS)
    if block_length is None:
        count = min(JACKKNIFE_BLOCKS, len(x), int(len(x) / _length_of(x, w, None, "circular")))
        count = max(count, MIN_BLOCKS)
    else:
        count = int(len(x) // _length_of(x, w, block_length, "circular"))
        if count < MIN_BLOCKS:
            raise StatisticsError(f"{len(x)} snapshots hold {count} blocks of {block_length}; at least {MIN_BLOCKS} "
                                  "are needed. Take shorter blocks or a longer run")
    blocks = np.array_split(np.arange(len(x)), count)
    evaluate = _evaluator(function, vectorised, single)
    value = evaluate((w @ x / w.sum())[None])[0]
    left_out = evaluate(_left_out(x, w, blocks))
    _check_finite(left_out)
    shares = np.array([w[block].sum() for block in blocks]) / w.sum()
    return jackknife_values(value, left_out, shares, confidence, len(x) / count)


def jackknife_states(run: RunStates, function: Callable[[States], ArrayLike], *, confidence: float = 0.95) -> Resampled:
    """Delete-one jackknife over the partial states of one run: the error of any function of any statistic, unread.

    Arguments:
        run: ``partials(...)[k]``, of at least 4 states.
        function: name -> merged reducers -> a number or an array, such as
            ``lambda s: s["moments"][0].result().variance``.

    A state counts by its snapshots, or by their weight. Only for statistics that do not ask what comes after what (moments,
    histograms, extremes, covariance): the snapshots before and after the hole are merged. The states must be long beside
    the correlation time; ask ``partials`` for fewer (``keep=16``) where they are not.

    Raises StatisticsError for fewer than 4 states with weight or a value that is not finite.
    """
    if len(run.states) < MIN_BLOCKS:
        raise StatisticsError(f"{len(run.states)} partial states; the jackknife needs at least {MIN_BLOCKS}")
    value = np.asarray(function(run.merged()), dtype=np.float64)
    left_out = np.zeros((len(run.states), *value.shape))
    for k, rest in run.without():
        left_out[k] = function(rest)
    _check_finite(left_out)
    return jackknife_values(value, left_out, run.part_weights / run.part_weights.sum(), confidence, run.n / len(run.states))


def optimal_block_length(values: ArrayLike, scheme: Literal["stationary", "circular"] = "stationary") -> float:
    """The block length that makes the bootstrap's error of a mean most accurate, in snapshots.

    Politis & White, Econometric Reviews 23, 53 (2004), corrected in 28, 372 (2009): flat-top spectral estimates up to
    twice the lag where the autocorrelation stays below 2 √(log₁₀ n / n) for max(5, log₁₀ n) lags.
    1 for white noise and for a constant series, at most min(3 √n, n/3).

    Arguments:
        values: (n,) or (n, k): the largest over the k series.
    """
    x, _, _ = _checked(values)
    return max(_block_length(column, scheme) for column in x.T)


def block_counts(n_blocks: int, n_resamples: int, rng: np.random.Generator | int = 0) -> np.ndarray:
    """How often each of `n_blocks` stretches of a run is in each resample, (n_resamples, n_blocks): sums over a resample are
    these times the sums over the blocks, so that nothing is read again."""
    generator = np.random.default_rng(rng)
    return generator.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_resamples)


def _block_length(x: np.ndarray, scheme: str) -> float:
    n = len(x)
    x = scaled(x)[0]
    x = scaled(x - x.mean())[0]
    if np.ptp(x) == 0:
        return 1.0
    window = max(5, int(np.ceil(np.log10(n))))
    furthest = min(n - 1, int(np.ceil(np.sqrt(n))) + window)
    gamma = _autocovariance(x, furthest)
    small = abs(gamma[1:] / gamma[0]) < 2 * np.sqrt(np.log10(n) / n)
    runs = np.convolve(small, np.ones(window), "valid") == window if len(small) >= window else np.zeros(0, bool)
    if runs.any():
        last = int(np.argmax(runs))
    else:
        last = int(np.flatnonzero(~small)[-1]) + 1 if (~small).any() else 0
    lags = np.arange(1, min(2 * max(last, 1), furthest) + 1)
    taper = np.minimum(1.0, 2 * (1 - lags / lags[-1]))
    slope = 2 * float((taper * lags * gamma[lags]).sum())
    density = float(gamma[0] + 2 * (taper * gamma[lags]).sum())
    longest = np.ceil(min(3 * np.sqrt(n), n / 3))
    if density <= 0:
        return float(longest)
    factor = 2.0 if scheme == "stationary" else 4 / 3
    best = (2 * slope**2 / (factor * density**2)) ** (1 / 3) * n ** (1 / 3)
    return float(np.clip(best, 1.0, longest))


def _autocovariance(x: np.ndarray, furthest: int) -> np.ndarray:
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(len(x) + furthest + 1, real=True)
    return irfft(abs(rfft(x, size)) ** 2, size)[: furthest + 1] / len(x)


class _Sums:
    """Sums of columns (n, c) over any block, round the end, from one cumulative sum."""

    def __init__(self, columns: np.ndarray):
        self.upto = np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(columns, axis=0)])

    def of(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Sums (r, c) over blocks (r, m) given by starts and lengths, 0 to n each."""
        from ensemblekit.averaging.kernels_resample import block_sums

        return block_sums(self.upto, starts, lengths)


def _draws(rng: np.random.Generator, scheme: Scheme, length: float, n: int,
           count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Starts and lengths (r, m) of the blocks of r resamples at a time; each row adds up to n snapshots."""
    expected = n / length
    blocks = int(np.ceil(expected + (6 * np.sqrt(expected) + 6 if scheme == "stationary" else 0)))
    rows = max(1, CHUNK_DRAWS // blocks)
    for first in range(0, count, rows):
        shape = (min(rows, count - first), blocks)
        if scheme == "stationary":
            lengths = np.minimum(rng.geometric(1 / length, shape), n) if length > 1 else np.ones(shape, np.int64)
            lengths[:, -1] = n          # six standard deviations too few blocks: the last one fills the row
        else:
            lengths = np.full(shape, int(length))
        taken = np.minimum(np.cumsum(lengths, axis=1), n)
        lengths = np.diff(taken, axis=1, prepend=0)
        starts = rng.integers(0, n - int(length) + 1 if scheme == "moving" else n, shape)
        yield starts, lengths


def _left_out(x: np.ndarray, w: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    """Averages (blocks, k) with one block left out each."""
    centre = x.mean(axis=0)
    sums = np.array([w[b] @ (x[b] - centre) for b in blocks])
    mass = np.array([w[b].sum() for b in blocks])
    rest = mass.sum() - mass
    if (rest <= 0).any():
        raise StatisticsError("all weight lies in one block; nothing is left when it is left out")
    return (sums.sum(axis=0) - sums) / rest[:, None] + centre


def jackknife_values(value: np.ndarray, left_out: np.ndarray, shares: np.ndarray, confidence: float = 0.95,
                     length: float = float("nan")) -> Resampled:
    """The jackknife from the value (*out,), those with one block left out (m, *out), and each block's share (m,)."""
    from scipy.special import stdtrit

    held = shares > 0
    left_out, h = left_out[held], 1 / shares[held]
    count = len(h)
    if count < MIN_BLOCKS:
        raise StatisticsError(f"only {count} blocks have weights above zero; the jackknife needs {MIN_BLOCKS}")
    h = h.reshape(-1, *[1] * value.ndim)
    e = power_of_two(np.concatenate([left_out, value[None]]), 0)
    value, left_out = np.asarray(ldexp(value, -e)), ldexp(left_out, -e)
    moved = left_out - value        # differences first: values far from zero lose no digits
    corrected = value - ((1 - 1 / h) * moved).sum(axis=0)
    pseudo = value - (h - 1) * moved
    stderr = np.sqrt(((pseudo - corrected) ** 2 / (h - 1)).mean(axis=0))
    half = stdtrit(count - 1, 0.5 + confidence / 2) * stderr
    scaled_values = (value, stderr, value - corrected, value - half, value + half)
    value, stderr, bias, low, high = (_plain(ldexp(x, e)) for x in scaled_values)
    return Resampled(value=value, stderr=stderr, bias=bias, interval=(low, high), confidence=confidence,
                     block_length=float(length), method="delete-block jackknife", n_resamples=count)


def _bca(replicates: np.ndarray, value: np.ndarray, left_out: np.ndarray,
         levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Efron's bias-corrected and accelerated interval, output by output."""
    from scipy.special import ndtr, ndtri

    n = len(replicates)
    flat = replicates.reshape(n, -1)
    below = ((flat < value.reshape(1, -1)).sum(axis=0) + 0.5 * (flat == value.reshape(1, -1)).sum(axis=0)) / n
    offset = ndtri(np.clip(below, 1 / (n + 1), n / (n + 1)))
    left_out = scaled(left_out, 0)[0]
    away = scaled(left_out.mean(axis=0) - left_out, 0)[0]
    cube, square = (away**3).sum(axis=0).reshape(-1), (away**2).sum(axis=0).reshape(-1)
    acceleration = np.where(square > 0, cube / (6 * np.where(square > 0, square, 1.0) ** 1.5), 0.0)
    ends = []
    for level in levels:
        shifted = offset + ndtri(level)
        where = ndtr(offset + shifted / (1 - acceleration * shifted))
        ends.append(np.array([np.quantile(flat[:, j], where[j]) for j in range(flat.shape[1])]).reshape(value.shape))
    return ends[0], ends[1]


def _evaluator(function: Function | None, vectorised: bool, single: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Averages (r, k) -> values (r, *out)."""
    if function is None:
        return lambda means: means[:, 0] if single else means
    if vectorised:
        def at_once(means: np.ndarray) -> np.ndarray:
            out = np.asarray(function(means), dtype=np.float64)
            if out.ndim == 0 or len(out) != len(means):
                raise InputError(f"a vectorised function returns one row a resample, ({len(means)}, ...); got shape "
                                 f"{out.shape}. Index the last axis, m[:, 0], or pass vectorised=False")
            return out
        return at_once
    return lambda means: np.array([function(row) for row in means], dtype=np.float64)


def _length_of(x: np.ndarray, w: np.ndarray, given: float | None, scheme: str) -> float:
    if given is None:
        residual = x if np.ptp(w) == 0 else w[:, None] * (x - w @ x / w.sum())
        best = max(_block_length(column, scheme) for column in residual.T)
        return best if scheme == "stationary" else float(np.ceil(best))
    if not 1 <= given <= len(x) or (scheme == "circular" and int(given) != given):
        raise InputError(f"block_length is a number of snapshots from 1 to {len(x)}; got {given!r}")
    return float(given)


def _checked(values: ArrayLike, weights: ArrayLike | None = None,
             log_weights: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray, bool]:
    x = as_array(values, "values")
    if x.ndim not in (1, 2) or x.dtype.kind not in "biuf" or (x.ndim == 2 and x.shape[1] == 0):
        raise InputError(f"values are real numbers, shape (n,) or (n, k); got {x.dtype} {x.shape}")
    if len(x) < MIN_BLOCKS:
        raise StatisticsError(f"{len(x)} snapshots; resampling needs at least {MIN_BLOCKS}")
    single = x.ndim == 1
    x = x.reshape(len(x), -1).astype(np.float64)
    bad = ~np.isfinite(x).all(axis=1)
    if bad.any():
        raise InputError(f"snapshot {int(np.argmax(bad))} is not finite; leave it out or mend it")
    given = chosen_weights(weights, log_weights, len(x))
    w = np.ones(len(x)) if given is None else given
    if w.max() == 0:
        raise StatisticsError("all weights are zero")
    return x, w / w.max(), single


def _check_settings(confidence: float, n_resamples: int) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
    if n_resamples < 2:
        raise InputError(f"n_resamples is at least 2; got {n_resamples!r}")


def _check_finite(values: np.ndarray) -> None:
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if bad.any():
        raise StatisticsError(f"the function is not finite on {int(bad.sum())} of {len(values)} resamples; it must "
                              "hold for every average the snapshots can give")


def _plain(x: Any) -> Any:
    return float(x) if np.ndim(x) == 0 else x
