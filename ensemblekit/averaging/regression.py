"""Least squares over consecutive snapshots, by a triangle that grows; merges in order.

The equations may reach over several snapshots (the next state from this one, a difference over seven): those that a cut in
time would part are made where the pieces meet. By orthogonal transformations (a tall QR of triangles, Golub and Van Loan,
Matrix Computations, 4th ed., 5.3 and 6.5), so that a result has the condition of the data and not its square.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import wide
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.results import Result
from ensemblekit.source import Array, is_torch

Equations = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Values (n, *item) of consecutive snapshots -> left sides D (n - reach, d) and right sides Y (n - reach, r)."""
CHUNK = 8 << 20
"""Bytes of equations that are made and turned into a triangle at a time."""
ROUNDING = 1e-14
"""Singular values of scaled columns below this share of the largest count as 0."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegressionResult(Result):
    """The least-squares solution X (d, r) of D X = Y, and the triangle that it comes from."""

    triangle: np.ndarray
    """(d + r, d + r): R of the columns [D, Y], its diagonal 0 or above; Rᴴ R holds all their inner products."""
    n: int
    """Equations: rows of D and Y."""
    n_regressors: int
    """d."""

    @property
    def scale(self) -> np.ndarray:
        """(d,): root mean square of each regressor; 1 where it is 0 throughout."""
        size = np.sqrt((np.abs(self.triangle[:, :self.n_regressors]) ** 2).sum(axis=0) / max(self.n, 1))
        return np.where(size > 0, size, 1.0)

    @property
    def coefficients(self) -> np.ndarray:
        """X (d, r), that of least norm (in units of the columns) where the regressors do not tell all of it."""
        d, scale = self.n_regressors, self.scale
        return np.linalg.lstsq(self.triangle[:d, :d] / scale, self.triangle[:d, d:], rcond=ROUNDING)[0] / scale[:, None]

    @property
    def residual(self) -> np.ndarray:
        """(r,): root mean square of Y - D X."""
        d = self.n_regressors
        left = self.triangle[:, d:] - self.triangle[:, :d] @ self.coefficients
        return np.sqrt((np.abs(left) ** 2).sum(axis=0) / max(self.n, 1))

    @property
    def condition(self) -> float:
        """Of D, its columns scaled to one size; infinite where they are dependent."""
        d = self.n_regressors
        values = np.linalg.svd(self.triangle[:d, :d] / self.scale, compute_uv=False)
        return float(values[0] / values[-1]) if len(values) and values[-1] > 0 else float("inf")


class Regression:
    """Least squares D X = Y over equations of `reach` + 1 consecutive snapshots each; merges in order.

    ``Regression(lambda x: (x[:-1], x[1:]), reach=1)`` fits the next snapshot to this one. The state is the triangle R of all
    rows [D, Y] so far and the first and last `reach` snapshots, which are joined to those of a neighbour: memory does not
    grow with the run. Statistical weights do not enter (scale rows in `equations`).

    Arguments:
        equations: values (n, *item) of consecutive snapshots -> D (n - reach, d), Y (n - reach, r), row by row the same
            wherever the values were cut; a function at the top of a module where processes are to run it.
        reach: snapshots that a row needs beside its first one.
    """

    def __init__(self, equations: Equations, reach: int = 0) -> None:
        if reach < 0 or int(reach) != reach:
            raise InputError(f"reach is a whole number of snapshots, 0 or more; got {reach!r}")
        self.equations, self.reach = equations, int(reach)
        self.n_snapshots, self.n, self.n_regressors = 0, 0, -1
        self.triangle: np.ndarray | None = None
        self.head: np.ndarray | None = None
        """The first `reach` snapshots, or all where there are fewer."""
        self.tail: np.ndarray | None = None
        """The last `reach` snapshots, or all where there are fewer."""

    def empty(self) -> Self:
        return type(self)(self.equations, self.reach)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        if not len(values):
            return
        x = np.asarray(wide(values.detach().cpu().numpy() if is_torch(values) else values))
        begin = 0
        while begin < len(x):
            width = 0 if self.triangle is None else len(self.triangle)      # of a row: not known before the first equations
            part = x[begin:begin + (max(self.reach, 2 * width, CHUNK // (8 * width)) if width else self.reach + 16)]
            self._add_equations(part if self.tail is None else np.concatenate([self.tail, part]))
            self._go_on(len(part), part, part)
            begin += len(part)

    def _add_equations(self, x: np.ndarray) -> None:
        """The rows of all windows in x."""
        if len(x) <= self.reach:
            return
        d, y = (np.asarray(one) for one in self.equations(x))
        want = len(x) - self.reach
        if d.ndim != 2 or y.ndim != 2 or len(d) != want or len(y) != want:
            raise InputError(f"the equations of {len(x)} snapshots with reach {self.reach} are {want} rows of D (n, d) and of "
                             f"Y (n, r); got shapes {d.shape} and {y.shape}")
        if self.n_regressors not in (-1, d.shape[1]):
            raise InputError(f"the equations had {self.n_regressors} regressors and have {d.shape[1]} now")
        self.n_regressors = d.shape[1]
        self._take_in(np.concatenate([d, y], axis=1), want)

    def _take_in(self, rows: np.ndarray, n: int) -> None:
        """More rows of [D, Y], or the triangle of n such rows."""
        joint = rows if self.triangle is None else np.concatenate([self.triangle, rows])
        size = joint.shape[1]
        reduced = np.asarray(np.linalg.qr(joint, mode="r"))
        if len(reduced) < size:
            reduced = np.concatenate([reduced, np.zeros((size - len(reduced), size), reduced.dtype)])
        self.triangle, self.n = reduced, self.n + n

    def _go_on(self, n: int, first: np.ndarray, last: np.ndarray) -> None:
        """n more snapshots, whose first and last ones are (at least, where there are so many) `reach`."""
        if self.reach:
            if self.head is None or self.tail is None:
                self.head, self.tail = first[:self.reach].copy(), last[-self.reach:].copy()
            else:
                if len(self.head) < self.reach:
                    self.head = np.concatenate([self.head, first])[:self.reach]
                self.tail = np.concatenate([self.tail, last])[-self.reach:]
        self.n_snapshots += n

    def merge(self, later: Self) -> None:
        if not later.n_snapshots:
            return
        if self.tail is not None and later.head is not None:
            self._add_equations(np.concatenate([self.tail, later.head]))
        if later.triangle is not None:
            self.n_regressors = later.n_regressors
            self._take_in(later.triangle, later.n)
        none = np.empty((0, 0))
        self._go_on(later.n_snapshots, none if later.head is None else later.head, none if later.tail is None else later.tail)

    def result(self) -> RegressionResult:
        """Raises StatisticsError where the snapshots make no equation."""
        if self.triangle is None:
            raise StatisticsError(f"{self.n_snapshots} snapshots make no equation that needs {self.reach + 1} of them; take a "
                                  "longer run")
        diagonal = np.diag(self.triangle)
        size = np.abs(diagonal)
        turn = np.where(size > 0, diagonal.conj() / np.where(size > 0, size, 1), 1)
        return RegressionResult(triangle=turn[:, None] * self.triangle, n=self.n, n_regressors=self.n_regressors)

    def state(self) -> dict[str, Array]:
        kept = {"triangle": self.triangle, "head": self.head, "tail": self.tail}
        return {"n_snapshots": np.array(self.n_snapshots), "n": np.array(self.n), "n_regressors": np.array(self.n_regressors),
                **{name: x.copy() for name, x in kept.items() if x is not None}}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n_snapshots, new.n, new.n_regressors = (int(state[name]) for name in ("n_snapshots", "n", "n_regressors"))
        new.triangle, new.head, new.tail = (np.array(state[name]) if name in state else None
                                            for name in ("triangle", "head", "tail"))
        return new
