"""Smooth functions of a mean that was read with others: their errors by a jackknife over the partial means kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.band import Scale, critical_value, noting_few, with_band
from ensemblekit.averaging.blocking import FEWEST, blocking
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.guard import matched
from ensemblekit.averaging.observed import Observed
from ensemblekit.averaging.run_states import Periodic, RunStates
from ensemblekit.averaging.second import STRETCHES, interval_above, kept_together, share_kept, stretches
from ensemblekit.averaging.times import spacing
from ensemblekit.averaging.weights import kish
from ensemblekit.errors import InputError
from ensemblekit.scaling import ldexp


@dataclass(frozen=True)
class SecondMoment:
    """A function of a mean and of mean products that is a variance: <M²> - <M>², and what is linear in that.

    About the mean of the run it is too small by the scatter of that mean (:mod:`~ensemblekit.averaging.second`), which is
    put back; its interval grows with it; and it is vouched for by the independent stretches of M.
    """

    function: Callable[..., Any]
    """(mean, kept) -> the quantity; kept (numbers `about`,): by what factors the variances of M are to be divided."""
    about: Any
    """Index of the elements of the mean that are <M>."""
    floor: Any = 0.0
    """What the quantity is where M never moves; minus infinity for elements that may lie on either side of theirs."""
    corrected: bool = True
    """False: the variances about the mean of the run, as other programs have them."""

    def kept(self, base: Estimate) -> np.ndarray:
        """By what factors variances about the mean of the run are too small."""
        return share_kept(np.asarray(base.n_eff)[self.about], base.n)


def function_of_mean(run: RunStates, name: str, function: Callable[[np.ndarray], ArrayLike] | SecondMoment, base: Estimate, *,
                     unit: str = "", scale: Scale = "") -> Estimate:
    """A smooth function of a mean, with its error: roots, ratios, fluctuations from first and second moments.

    The run stands as consecutive parts; leaving each out gives a pseudo-value of the function (Quenouille 1956; parts of
    unequal weight by Busing, Meijer & van der Leeden, Stat. Comput. 9, 3, 1999), and blocking over the pseudo-values
    says how long a block must be to be independent of the next.

    Arguments:
        run: as it was read, with a branch ``name: (map, Observed())``.
        function: the mean (*out) -> a number or an array of any shape; or a SecondMoment.
        base: the Estimate of the mean itself (:func:`~ensemblekit.averaging.average.estimate_of`), which says where the
            equilibrated part begins.
        scale: of a curve that is to have a band, "linear" or "log".
    """
    means, weights = part_means(run, name, base.n_discarded)
    if not isinstance(function, SecondMoment):
        return of_parts(means, weights, function, base, unit=unit, scale=scale, ordered=run.ordered)
    kept = function.kept(base)
    answer = of_parts(means, weights, partial(function.function, kept=kept if function.corrected else np.ones_like(kept)), base,
                      unit=unit, second=True, ordered=run.ordered)
    if np.isnan(answer.stderr).all():
        return answer if answer.verdict else answer.judged()
    if kept.shape != np.shape(answer.mean):     # a sum over components
        kept = kept_together(kept, np.asarray(base.n_eff)[function.about] * np.square(np.asarray(base.stderr)[function.about]))
    independent = np.where(np.isnan(answer.n_eff), np.nan, stretches(kept))
    interval = interval_above(function.floor, answer.mean, answer.stderr, answer.dof, base.confidence, independent=independent)
    return replace(answer, interval=interval).judged(enough=STRETCHES, independent=independent)


def part_means(run: RunStates, name: str, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Means (parts, *out) of consecutive parts of the run from snapshot `start` on, and their weights (parts,)."""
    means, weights = [], []
    edges = [*run.starts, run.n]
    every = np.ones(run.n) if run.weights is None else np.where(np.isnan(run.weights), 1.0, run.weights)
    for (observed,), begin, end in zip(run.reducers(name), edges, edges[1:], strict=False):
        assert isinstance(observed, Observed)
        w = every[begin:end]
        if observed.missing == "drop":
            proxies = observed.series().reshape(len(w), -1)[:, 0]
            w = np.where(np.isnan(proxies), 0.0, w)
        if observed.item == ():
            x = observed.series()
            x = np.where(np.isnan(x), 0.0, x) if observed.missing == "drop" else x
            x, w = x[max(0, start - begin):], w[max(0, start - begin):]
            if w.sum() > 0:
                means.append(w @ x / w.sum())
                weights.append(w.sum())
        elif begin >= start and w.sum() > 0:
            means.append(observed.mean())
            weights.append(w.sum())
    if not means:
        raise InputError(f"no partial state begins at or after snapshot {start}")
    return np.array(means), np.array(weights)


def of_parts(means: np.ndarray, weights: np.ndarray, function: Callable[[np.ndarray], ArrayLike], base: Estimate, *,
             unit: str = "", second: bool = False, scale: Scale = "", ordered: bool = True) -> Estimate:
    """The function of the mean of all parts, its error from the pseudo-values of the parts left out one by one.

    ordered: False where snapshots, and so parts, are independent: no longer blocks are looked for.
    second: the function is a second moment: its error is that of guarded blocks, and it is judged elsewhere.
    """
    total = weights.sum()
    share = (weights / total).reshape(-1, *[1] * (means.ndim - 1))
    mean = (share * means).sum(axis=0)
    value = np.asarray(function(mean), dtype=np.float64)
    if len(means) < FEWEST:
        none = np.full(value.shape, np.nan)
        return _filled(base, value, none, none, none, f"{len(means)} parts: an error needs at least {FEWEST}", unit)
    pseudo = np.empty((len(means), *value.shape))
    with np.errstate(invalid="ignore", divide="ignore"):
        for k in range(len(means)):
            rest = (mean - share[k] * means[k]) / (1 - share[k])
            h = total / weights[k]
            without = np.asarray(function(rest), dtype=np.float64)
            if isinstance(function, Periodic):
                without = function.near(value, without)
            pseudo[k] = h * value - (h - 1) * without
        n_eff = _independent(base, value.shape)
        if ordered:
            stderr, dof, joined = _error_of(pseudo, weights, base.n, base.n / n_eff, second)
        else:
            (stderr, dof, *_), joined = blocking(pseudo, weights).of_independent(kish(weights, len(weights))), 1
    answer = _filled(base, value, stderr, dof, n_eff, base.verdict, unit, not second)
    if not scale or not value.ndim:
        return answer
    critical, blocks = critical_value(pseudo, weights, joined, base.confidence)
    return noting_few(with_band(answer, critical, scale), blocks)


def _error_of(pseudo: np.ndarray, weights: np.ndarray, n: int, g: np.ndarray,
              guarded: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Standard error of the mean of pseudo-values, its degrees of freedom, and how many parts a block of most elements is.

    As :meth:`BlockResult.chosen`, but a part is many snapshots long and their inefficiency `g` is known from all of them:
    blocks are the shortest whole numbers of parts, B snapshots together, with B³ > 2 n g².
    """
    result, e = blocking(pseudo, weights).over_power_of_two()
    length = n / len(pseudo)
    g = np.maximum(np.where(np.isfinite(g), g, 1.0), 1.0)
    error, dof, settled = np.zeros(g.shape), np.ones(g.shape), np.zeros(g.shape, dtype=bool)
    joined = np.ones(g.shape)
    for k, (b, m) in enumerate(zip(result.lengths, result.counts, strict=True)):
        if m < FEWEST:
            break
        missed = np.minimum((1 + 1 / m) * (g - 1 / g) / (2 * b * length), 0.5)
        error = np.where(settled, error, b * np.asarray(result.variances[k]) / (1 - missed) / len(pseudo))
        dof = np.where(settled, dof, np.maximum((m - 1) * (1 - missed) ** 2, 2.0))
        joined = np.where(settled, joined, b)
        settled = settled | ((b * length) ** 3 > 2 * n * g**2)
    stderr = np.sqrt(error)
    if guarded:
        stderr, dof = matched(stderr, result.half_width())
    return ldexp(stderr, e), dof, int(np.quantile(joined, 0.5, method="lower"))


def _independent(base: Estimate, shape: tuple[int, ...]) -> np.ndarray:
    """n_eff of each number: that of the element of the mean it is a function of, where the shapes say so.

    Where an element of the function belongs to a row of the mean (a direction to its vector) it is the fewest of the row.
    """
    n_eff = np.asarray(base.n_eff, dtype=np.float64)
    if n_eff.shape == shape:
        return n_eff
    finite = n_eff[np.isfinite(n_eff)]
    if shape and n_eff.shape[:len(shape)] == shape:
        rows = np.where(np.isfinite(n_eff), n_eff, np.inf).reshape(*shape, -1).min(axis=-1)
        return np.where(np.isinf(rows), np.nan, rows)
    return np.full(shape, finite.min() if finite.size else np.nan)


def _filled(base: Estimate, value: np.ndarray, stderr: np.ndarray, dof: np.ndarray, n_eff: np.ndarray, verdict: str,
            unit: str, judge: bool = True) -> Estimate:
    unknown = bool(np.isnan(stderr).all())
    n_eff = np.where(stderr == 0, np.nan, n_eff)        # what never changes has no number of independent snapshots
    answer = Estimate.of(value, stderr, dof, n=base.n, n_eff=n_eff, confidence=base.confidence, dt=spacing(base.times),
                         estimators={"jackknife": stderr}, doubts=[verdict], vouched=base.converged and not unknown, unit=unit,
                         n_discarded=base.n_discarded, equilibration_time=base.equilibration_time, times=base.times,
                         time_unit=base.time_unit)
    if not judge:
        return answer
    if np.ndim(base.mean) == 0 or (unknown and base.verdict):      # of a number the verdict has said it
        return replace(answer, converged=answer.converged and bool(np.all(~(n_eff < ENOUGH))))
    return answer.judged()
