"""Operators from their equations by least squares: scaled columns, QR, weights per block, and fits to resampled blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ensemblekit.averaging.resample import block_counts, optimal_block_length
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
        return self.prior + scaled / self.scale[:, None]

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
    if not n_resamples:
        return none
    root = np.linalg.qr(np.concatenate([problem.triangle, np.diag(weights * math.sqrt(problem.n))]), mode="r")
    if not np.abs(np.diag(root)).min() > 1e-10 * np.abs(np.diag(root)).max():
        return Resamples(matrices=none.matrices, residuals=residuals, 
                         reason="the least-squares problem is singular to rounding")
    turn = np.linalg.inv(root) / problem.scale[:, None]
    w = d @ turn
    left = y - d @ operators
    length = math.ceil(score_length(w, left, runs))
    blocks = blocks_of(runs, length)
    if len(blocks) < FEWEST_BLOCKS:
        return Resamples(matrices=none.matrices, residuals=residuals, block_length=length, n_blocks=len(blocks),
                         reason=f"{len(d)} steps hold {len(blocks)} blocks of {length}, as long as the errors are correlated; "
                                f"an interval needs {FEWEST_BLOCKS}. Record a longer run")
    gram = np.array([w[a:b].conj().T @ w[a:b] for a, b in blocks])
    score = np.array([w[a:b].conj().T @ left[a:b] for a, b in blocks])
    counts = block_counts(len(blocks), n_resamples, rng).astype(np.float64)
    counts *= (len(d) / (counts @ np.array([b - a for a, b in blocks])))[:, None]
    held = weights * math.sqrt(problem.n) * problem.scale
    penalty = (turn.conj().T * held**2) @ turn
    drawn_to = turn.conj().T @ (held[:, None] ** 2 * (problem.prior - operators))
    found = np.linalg.solve(np.tensordot(counts, gram, 1) + penalty, np.tensordot(counts, score, 1) + drawn_to)
    return Resamples(matrices=operators + turn @ found, residuals=residuals, block_length=float(length), n_blocks=len(blocks))


def score_length(w: np.ndarray, left: np.ndarray, runs: list[int]) -> float:
    """The optimal length of blocks for the sums of residual times regressor; within the longest run."""
    start = int(np.argmax(runs))
    rows = slice(sum(runs[:start]), sum(runs[:start + 1]))
    pairs = [(j, k) for k in range(left.shape[1]) for j in range(w.shape[1])]
    chosen = pairs[::max(1, len(pairs) // MOST_SCORES)]
    if runs[start] < 8:
        return 1.0
    scores = np.stack([(w[rows, j].conj() * left[rows, k]).real for j, k in chosen], axis=1)
    size = np.abs(scores).max(axis=0)
    lengths = [optimal_block_length(scores[:, k] / size[k], "circular") for k in range(len(chosen)) if size[k] > 0]
    return max(1.0, float(np.median(lengths))) if lengths else 1.0


def blocks_of(runs: list[int], length: int) -> list[tuple[int, int]]:
    """Ranges of rows, none across runs, each about `length` long."""
    found, start = [], 0
    for n in runs:
        edges = np.linspace(0, n, max(1, n // length) + 1).astype(int) + start
        found += [(int(a), int(b)) for a, b in pairwise(edges) if b > a]
        start += n
    return found
