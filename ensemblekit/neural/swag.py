"""A Gaussian over weights from snapshots: SWAG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import copied, join, plain, same_item, wide
from ensemblekit.averaging.moments import Moments, MomentsResult
from ensemblekit.errors import InputError
from ensemblekit.neural.compensated import _column
from ensemblekit.neural.result_files import Saved
from ensemblekit.neural.weight_average import _numpy, _weight
from ensemblekit.results import Result
from ensemblekit.source import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Posterior(Saved, Result):
    """SWAG's Gaussian over weights: mean + half a diagonal + half a low-rank part."""

    mean: Array
    """(size,) float64."""
    variance: Array
    """(size,): mean square minus squared mean of all snapshots (over n, as published)."""
    deviations: Array
    """(k, size): the last k snapshots, each minus the running mean that it is part of."""
    n: int
    """Snapshots."""
    spread: Array | None = None
    """(size,): root of the variance, set where some variance is beyond the range of float64 (infinity or 0 stands in it)."""

    @property
    def std(self) -> Array:
        """(size,): root of the variance."""
        return self.variance.clip(min=0) ** 0.5 if self.spread is None else self.spread

    def __repr__(self) -> str:
        return (f"Posterior({self.n} snapshots of {self.mean.shape[-1] if self.mean.ndim else 1} weights, "
                f"low-rank part of {len(self.deviations)})")

    def sample(self, n: int, *, scale: float = 1.0, low_rank: bool = True, seed: int = 0) -> np.ndarray:
        """n vectors (n, size), float64: mean + √(scale/2) (σ z1 + Dᵀ z2 / √(k-1)), one z2 for the whole vector.

        Without the low-rank part, or with fewer than two deviations, mean + √scale σ z1 (SWAG-diagonal).

        Arguments:
            scale: of the covariance; 1 is the paper's equation 1, 0 gives the mean.
        """
        if not isinstance(n, int | np.integer) or n < 1:
            raise InputError(f"n is a whole number above 0; got {n!r}")
        if not scale >= 0:
            raise InputError(f"scale is 0 or more; got {scale!r}")
        mean, sigma = _numpy(self.mean), _numpy(self.std)
        d = _numpy(self.deviations)
        rng = np.random.default_rng(seed)
        drawn = np.empty((n, len(mean)))
        for row in drawn:
            noise = sigma * rng.standard_normal(len(mean))
            if low_rank and len(d) > 1:
                noise = np.sqrt(0.5) * (noise + rng.standard_normal(len(d)) @ d / np.sqrt(len(d) - 1))
            row[:] = mean + np.sqrt(scale) * noise
        return drawn


class SWAG:
    """Mean, variance and the last `rank` deviations of snapshots from their running mean; merges in order, exactly.

    The result is a :class:`Posterior`. State: Moments, and for each kept snapshot itself, the mean up to it and the
    weight up to it, so that a merge can tell what its deviation is in the longer run.
    """

    def __init__(self, rank: int = 20):
        if not isinstance(rank, int | np.integer) or rank < 0:
            raise InputError(f"rank is a whole number, 0 for the diagonal alone; got {rank!r}")
        self.rank = int(rank)
        self.moments = Moments()
        self.last: Array = None         # (k, *item) snapshots
        self.means: Array = None        # (k, *item) mean up to and with each
        self.upto = np.empty(0)         # (k,) weight up to and with each

    def empty(self) -> Self:
        return type(self)(self.rank)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        w = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
        for k in range(len(values)):
            self.moments.update(values[k:k + 1], start + k, None if weights is None else w[k:k + 1])
            if self.rank and w[k] > 0:
                mean = self.moments.result().mean
                self._keep(wide(copied(values[k:k + 1])), mean[None], np.array([_weight(self.moments)]))

    def merge(self, later: Self) -> None:
        if later.last is not None:
            before = _weight(self.moments)
            means = later.means
            if before > 0:
                own_mean = self.moments.result().mean
                share = later.upto / (before + later.upto)
                means = own_mean[None] + (means - own_mean[None]) * _column(share, means)
            self._keep(copied(later.last), copied(means), before + later.upto)
        self.moments.merge(later.moments)

    def _keep(self, values: Array, means: Array, upto: np.ndarray) -> None:
        if self.last is not None:
            same_item(tuple(self.last.shape[1:]), values, "SWAG")
            values, means = join(self.last, values), join(self.means, means)
            upto = np.concatenate([self.upto, upto])
        self.last, self.means, self.upto = values[-self.rank:], means[-self.rank:], upto[-self.rank:]

    def join(self, right: Self) -> None:
        if right.last is not None:
            flat = [x.reshape(len(x), -1) for x in (self.last, right.last, self.means, right.means)]
            self.last, self.means = join(flat[0], flat[1], 1), join(flat[2], flat[3], 1)
        self.moments.join(right.moments)

    def reshape(self, item: tuple[int, ...]) -> None:
        self.moments.reshape(item)
        if self.last is not None:
            self.last, self.means = self.last.reshape(-1, *item), self.means.reshape(-1, *item)

    def result(self) -> Posterior:
        """Raises StatisticsError where no snapshot was seen."""
        moments = self.moments.result()
        variance, spread = over_n(moments)
        d = moments.mean[None][:0] if self.last is None else self.last - self.means
        return Posterior(mean=moments.mean, variance=variance, deviations=d, n=moments.n,
                         spread=None if moments.reduced is None else spread)

    def state(self) -> dict[str, Array]:
        kept = {f"moments_{name}": x for name, x in self.moments.state().items()}
        if self.last is not None:
            kept |= {"last": plain(self.last), "means": plain(self.means), "upto": self.upto.copy()}
        return kept

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.moments = Moments().restored({n.removeprefix("moments_"): x for n, x in state.items() if n.startswith("moments_")})
        if "last" in state:
            new.last, new.means, new.upto = plain(state["last"]), plain(state["means"]), np.array(state["upto"])
        return new


def over_n(moments: MomentsResult) -> tuple[Array, Array]:
    """Variance over Σw instead of W - Σw²/W, and its root, which is a number where the variance is beyond float64."""
    share = 1 - 1 / moments.n_eff
    if share <= 1e-12:
        return moments.mean * 0.0, moments.mean * 0.0
    return moments.variance * share, moments.std * share**0.5
