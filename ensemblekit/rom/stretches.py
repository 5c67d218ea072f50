"""Second moments of stretches of a run, joined until they are independent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.averaging.blocking import BlockResult, joined_in_pairs
from ensemblekit.averaging.second import share_kept, stretches
from ensemblekit.errors import StatisticsError
from ensemblekit.rom.products import PAIRS, Products, alike
from ensemblekit.source import Block, Field


@dataclass(frozen=True, slots=True)
class Target:
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


class Stretches:
    """The sums of consecutive stretches of time, and what they say of the whole."""

    def __init__(self, bins: list[Products], target: Target, kish: float):
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
        stacked = [np.stack([np.asarray(part[k]) for part in parts], axis=-1) for k in range(6)]
        # squares forget faster than what they are squares of, and are about a mean that they share
        stretches = np.full(stacked[0].shape, np.nan) if what == "mean" else self._stretches(len(parts))
        return (*stacked, stretches, np.broadcast_to(self.share.reshape(-1, 1), stacked[0].shape))

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
        return grown(self._blocked(value, z, self.squares[k] - self.products[k] ** 2, size, beside, own * other + value**2),
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
        return grown(self._blocked(value, z, self.squares[-1] - raw**2, raw, beside, gaussian), lost)

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
                 beside: np.ndarray | float = 0.0, gaussian: np.ndarray | float = 0.0) -> tuple[np.ndarray, ...]:
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
        lengths, counts, variances = joined_in_pairs(y, long)
        if long > 1:
            lengths, counts, variances = [1, *lengths], [n, *counts], [variance * self.kish, *variances]
        elif len(y) > 1:        # every snapshot by itself: its own variance is known
            variance = variances[0] / self.kish
        if not counts or n < 4:
            raise StatisticsError(f"{n} snapshots are left after equilibration: an error needs at least 4")
        block = BlockResult(mean=value, n=n, lengths=np.array(lengths), counts=np.array(counts),
                            variances=np.array(variances)).chosen()
        return value, block.stderr, block.dof, block.g, variance, still


def grown(part: tuple[np.ndarray, ...], lost: np.ndarray) -> tuple[np.ndarray, ...]:
    """(value, stderr, dof, g, variance, still) of a second moment, what the scatter of the mean took off put back."""
    value, stderr, dof, g, variance, still = part
    lost = np.where(np.isfinite(lost), lost, 1.0)
    return value / lost, stderr / lost, dof, g, variance / lost**2, still
