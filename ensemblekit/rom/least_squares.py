"""Operators from their equations by least squares: scaled columns, QR, weights per block, and fits to resampled blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ensemblekit.averaging.regression import RegressionResult
from ensemblekit.averaging.resample import block_counts, optimal_block_length
from ensemblekit.rom.energy import conserving
from ensemblekit.rom.forecast import FEWEST_BLOCKS, Resamples

ROUNDING = 1e-12
"""Singular values of scaled columns below this share of the largest are rounding."""
MOST_SCORES = 48
"""Columns of scores that are looked at for the length of blocks."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """min ‖D O - Y‖² + n ‖Λ S O‖², reduced by one QR to a triangle that serves every Λ. S are the sizes of the columns of D."""

    triangle: np.ndarray
    """(d, d): R of the columns of D / S."""
    right: np.ndarray
    """(d, r): Qᵀ (Y - D prior)."""
    left_over: float
    """‖Y - D prior‖² outside the span of D."""
    scale: np.ndarray
    """(d,): root mean square of each column."""
    prior: np.ndarray
    """(d, r): what the operators are drawn to."""
    n: int
    size: float
    """‖Y‖²."""
    energy: slice | None = None
    """Rows of products that are to conserve energy; None: they need not."""

    @classmethod
    def of(cls, d: np.ndarray, y: np.ndarray, prior: np.ndarray | None = None) -> Problem:
        """From the rows D (n, d) and Y (n, r)."""
        drawn_to = np.zeros((d.shape[1], y.shape[1]), y.dtype) if prior is None else prior
        rest = y if prior is None else y - d @ drawn_to
        scale = np.sqrt((np.abs(d) ** 2).mean(axis=0))
        scale = np.where(scale > 0, scale, 1.0)
        k = d.shape[1]
        reduced = np.asarray(np.linalg.qr(np.concatenate([d / scale, rest], axis=1), mode="r"))
        whole = np.concatenate([reduced, np.zeros((max(0, k - len(reduced)), reduced.shape[1]))])
        return cls(whole[:k, :k], whole[:k, k:], float((np.abs(whole[k:, k:]) ** 2).sum()), scale, drawn_to, len(d),
                   float((np.abs(y) ** 2).sum()))

    @classmethod
    def of_triangle(cls, reduced: np.ndarray, n: int, k: int, prior: np.ndarray | None = None) -> Problem:
        """From R of the n rows [D, Y], of which D is the first k columns."""
        d, y = reduced[:, :k], reduced[:, k:]
        drawn_to = np.zeros((k, y.shape[1]), y.dtype) if prior is None else prior
        scale = np.sqrt((np.abs(d) ** 2).sum(axis=0) / n)
        scale = np.where(scale > 0, scale, 1.0)
        rest = y if prior is None else y - d @ drawn_to
        return cls(d[:k] / scale, rest[:k], float((np.abs(rest[k:]) ** 2).sum()), scale, drawn_to, n,
                   float((np.abs(y) ** 2).sum()))

    @property
    def singular_values(self) -> np.ndarray:
        """(d,): of D / S."""
        return np.linalg.svd(self.triangle, compute_uv=False)

    def solved(self, weights: np.ndarray) -> np.ndarray:
        """Operators (d, r) for the weights Λ (d,)."""
        lower = np.diag(weights * math.sqrt(self.n))
        held = weights > 0
        if not held.any():
            scaled = np.linalg.lstsq(self.triangle, self.right, rcond=1e-15)[0]
        else:
            stacked = np.concatenate([self.triangle, lower[held]])
            q, r = np.linalg.qr(stacked)
            right = q[:len(self.triangle)].conj().T @ self.right
            scaled = np.linalg.lstsq(r, right, rcond=1e-15)[0]
        return self.conserved(self.prior + scaled / self.scale[:, None], weights)

    def conserved(self, operators: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Operators (..., d, r) whose products conserve energy where they are to: the nearest in the problem's own measure."""
        if self.energy is None:
            return operators
        root = np.linalg.qr(np.concatenate([self.triangle, np.diag(weights * math.sqrt(self.n))]), mode="r")
        turn = np.linalg.pinv(root, rcond=1e-13) / self.scale[:, None]
        return conserving(operators, self.energy, turn @ turn.T)

    def condition(self, weights: np.ndarray) -> float:
        """Condition number with the weights."""
        values = np.linalg.svd(np.concatenate([self.triangle, np.diag(weights * math.sqrt(self.n))]), compute_uv=False)
        return float(values[0] / values[-1]) if values[-1] > 0 else math.inf

    def residual(self, operators: np.ndarray) -> float:
        """Root mean square of D O - Y over that of Y."""
        moved = (operators - self.prior) * self.scale[:, None]
        left = self.left_over + float((np.abs(self.triangle @ moved - self.right) ** 2).sum())
        return math.sqrt(left / self.size) if self.size else 0.0


def resampled(d: np.ndarray, y: np.ndarray, runs: list[int], operators: np.ndarray, weights: np.ndarray, problem: Problem,
              *, residuals: np.ndarray, n_resamples: int, rng: np.random.Generator | int) -> Resamples:
    """Operators of resampled blocks of consecutive rows; `runs` are the rows of each run.

    Blocks are as long as the scores, residual times regressor, are correlated (not the coefficients themselves). Columns are
    turned into orthonormal ones first, so that sums of their products lose nothing.
    """
    none = Resamples(matrices=np.empty((0, *operators.shape)), residuals=residuals, reason="n_resamples=0")
    turn = _orthonormal(problem, weights)
    if not n_resamples or turn is None:
        return none if not n_resamples else replace(none, reason=SINGULAR)
    w = d @ turn
    left = y - d @ operators
    length = math.ceil(score_length(w, left, runs))
    blocks = blocks_of(runs, length)
    if len(blocks) < FEWEST_BLOCKS:
        return replace(none, block_length=length, n_blocks=len(blocks), reason=_too_few(len(d), len(blocks), length))
    gram = np.array([w[a:b].conj().T @ w[a:b] for a, b in blocks])
    score = np.array([w[a:b].conj().T @ left[a:b] for a, b in blocks])
    matrices = _refitted(gram, score, np.array([b - a for a, b in blocks]), turn, operators, weights, problem,
                         n_resamples=n_resamples, rng=rng)
    return replace(none, matrices=matrices, block_length=float(length), n_blocks=len(blocks), reason="")


SINGULAR = "the least-squares problem is singular to rounding"


def _too_few(n: int, n_blocks: int, length: float) -> str:
    return (f"{n} steps hold {n_blocks} blocks of {length:.4g}, as long as the errors are correlated; an interval needs "
            f"{FEWEST_BLOCKS}. Record a longer run")


def _orthonormal(problem: Problem, weights: np.ndarray) -> np.ndarray | None:
    """(d, d): D times it has orthonormal columns (with the rows of the regularisation below D); None where D is singular."""
    root = np.linalg.qr(np.concatenate([problem.triangle, np.diag(weights * math.sqrt(problem.n))]), mode="r")
    if not np.abs(np.diag(root)).min() > 1e-10 * np.abs(np.diag(root)).max():
        return None
    return np.linalg.inv(root) / problem.scale[:, None]


def _refitted(gram: np.ndarray, score: np.ndarray, lengths: np.ndarray, turn: np.ndarray, operators: np.ndarray,
              weights: np.ndarray, problem: Problem, *, n_resamples: int, rng: np.random.Generator | int) -> np.ndarray:
    """Operators (s, d, r) of resampled blocks, from sums over each: gram (b, d, d) of D `turn`, score (b, d, r) of that and the
    residuals."""
    counts = block_counts(len(gram), n_resamples, rng).astype(np.float64)
    counts *= (lengths.sum() / (counts @ lengths))[:, None]
    held = weights * math.sqrt(problem.n) * problem.scale
    penalty = (turn.conj().T * held**2) @ turn
    drawn_to = turn.conj().T @ (held[:, None] ** 2 * (problem.prior - operators))
    moved = np.linalg.solve(np.tensordot(counts, gram, 1) + penalty, np.tensordot(counts, score, 1) + drawn_to)
    return operators + turn @ moved


def stacked(results: list[RegressionResult]) -> RegressionResult:
    """The regression of all rows of several."""
    first = results[0]
    if len(results) == 1:
        return first
    triangle = np.asarray(np.linalg.qr(np.concatenate([one.triangle for one in results]), mode="r"))
    return RegressionResult(triangle=triangle, n=sum(one.n for one in results), n_regressors=first.n_regressors)


def without_known(one: RegressionResult, known: np.ndarray) -> RegressionResult:
    """The regression of what is left of Y by the last regressors, whose coefficients (m, r) are known, on the others."""
    free, d = one.n_regressors - len(known), one.n_regressors
    rest = one.triangle[:, d:] - one.triangle[:, free:d] @ known
    triangle = np.asarray(np.linalg.qr(np.concatenate([one.triangle[:, :free], rest], axis=1), mode="r"))
    return RegressionResult(triangle=triangle, n=one.n, n_regressors=free)


def resampled_blocks(runs: list[list[RegressionResult]], operators: np.ndarray, weights: np.ndarray, problem: Problem, *,
                     residuals: np.ndarray, n_resamples: int, rng: np.random.Generator | int) -> Resamples:
    """Operators of resampled blocks that were summed up already, in order, run by run.

    The triangle of a block stands for its rows. Blocks are as long as they were read, unless their scores are correlated:
    neighbours are then taken together.
    """
    none = Resamples(matrices=np.empty((0, *operators.shape)), residuals=residuals, reason="n_resamples=0")
    turn = _orthonormal(problem, weights)
    if not n_resamples or turn is None:
        return none if not n_resamples else replace(none, reason=SINGULAR)
    d = len(operators)
    gram, score, lengths = [], [], []
    for run in runs:
        for one in run:
            w = one.triangle[:, :d] @ turn
            gram.append(w.conj().T @ w)
            score.append(w.conj().T @ (one.triangle[:, d:] - one.triangle[:, :d] @ operators))
            lengths.append(one.n)
    counts = [len(run) for run in runs]
    start = int(np.argmax(counts))
    longest = slice(sum(counts[:start]), sum(counts[:start + 1]))
    together = math.ceil(_length_of(np.array(score[longest]).reshape(counts[start], -1).real / np.array(
        lengths[longest])[:, None], 1.5))
    groups = blocks_of(counts, together)
    if len(groups) < FEWEST_BLOCKS:
        n = sum(lengths)
        long = together * n / max(1, len(lengths))
        return replace(none, block_length=long, n_blocks=len(groups), reason=_too_few(n, len(groups), long))
    sums = [np.array([np.sum(x[a:b], axis=0) for a, b in groups]) for x in (gram, score, lengths)]
    matrices = _refitted(sums[0], sums[1], sums[2], turn, operators, weights, problem, n_resamples=n_resamples, rng=rng)
    return replace(none, matrices=matrices, block_length=float(sums[2].mean()), n_blocks=len(groups), reason="")


def score_length(w: np.ndarray, left: np.ndarray, runs: list[int]) -> float:
    """The optimal length of blocks for the sums of residual times regressor; within the longest run."""
    start = int(np.argmax(runs))
    rows = slice(sum(runs[:start]), sum(runs[:start + 1]))
    pairs = [(j, k) for k in range(left.shape[1]) for j in range(w.shape[1])]
    chosen = pairs[::max(1, len(pairs) // MOST_SCORES)]
    if runs[start] < 8:
        return 1.0
    return _length_of(np.stack([(w[rows, j].conj() * left[rows, k]).real for j, k in chosen], axis=1), 1.0)


def _length_of(scores: np.ndarray, least: float) -> float:
    """The optimal length of blocks for the mean of scores (n, columns), the median over columns; 1 below `least`."""
    size = np.abs(scores).max(axis=0, initial=0)
    columns = np.flatnonzero(size > 0)
    columns = columns[::max(1, len(columns) // MOST_SCORES)]
    if len(scores) < 8 or not len(columns):
        return 1.0
    length = float(np.median([optimal_block_length(scores[:, k] / size[k], "circular") for k in columns]))
    return length if length > least else 1.0


def blocks_of(runs: list[int], length: int) -> list[tuple[int, int]]:
    """Ranges of rows, none across runs, each about `length` long."""
    ranges, start = [], 0
    for n in runs:
        edges = np.linspace(0, n, max(1, n // length) + 1).astype(int) + start
        ranges += [(int(a), int(b)) for a, b in pairwise(edges) if b > a]
        start += n
    return ranges
