"""Operators of a quadratic model as one array, and the march of it: x' = c + A x + H (x, x) + B u + sum_l u_l N_l x."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array

LETTERS = "cAHBN"
"""Constant, linear, quadratic, input, input times state: the terms there are, in the order of their rows."""
Method = Literal["auto", "dopri5", "rk4", "midpoint"]
METHODS = {"auto": 0, "dopri5": 0, "rk4": 1, "midpoint": 2}
UNBOUNDED = 1e100
"""Where nothing is known of the size of the states, those beyond this are called divergence."""


def checked_form(form: str) -> str:
    """Letters of a form in their order. Raises InputError for letters that there are none of."""
    if not isinstance(form, str) or not form or len(set(form)) != len(form) or not set(form) <= set(LETTERS):
        cubic = ". Cubic terms (G) are not offered: lift the equations to quadratic ones" if "G" in str(form) else ""
        raise InputError(f'form is letters of "{LETTERS}" (constant, linear, quadratic, input, input times state), such as '
                         f'"cAH"; got {form!r}{cubic}')
    return "".join(letter for letter in LETTERS if letter in form)


def blocks(form: str, r: int, m: int) -> dict[str, slice]:
    """Letter -> rows of the matrix of operators."""
    sizes = {"c": 1, "A": r, "H": r * (r + 1) // 2, "B": m, "N": m * r}
    slices, start = {}, 0
    for letter in form:
        slices[letter] = slice(start, start + sizes[letter])
        start += sizes[letter]
    return slices


def n_terms(form: str, r: int, m: int) -> int:
    """Rows of the matrix of operators: unknowns of each equation."""
    return max((rows.stop for rows in blocks(form, r, m).values()), default=0)


def terms(states: np.ndarray, inputs: np.ndarray, form: str) -> np.ndarray:
    """(n, d): what the operators are multiplied with, from states (n, r) and inputs (n, m); no product stands twice."""
    n, r = states.shape
    columns = []
    for letter in form:
        if letter == "c":
            columns.append(np.ones((n, 1)))
        elif letter == "A":
            columns.append(states)
        elif letter == "H":
            i, j = np.tril_indices(r)
            columns.append(states[:, i] * states[:, j])
        elif letter == "B":
            columns.append(inputs)
        else:
            columns.append((inputs[:, :, None] * states[:, None, :]).reshape(n, -1))
    return np.concatenate(columns, axis=1)


def compressed(h: ArrayLike, r: int) -> np.ndarray:
    """H as (r, r (r + 1) / 2), from that, (r, r²) or (r, r, r)."""
    values = np.asarray(h)
    if values.shape == (r, r * (r + 1) // 2) and values.shape != (r, r * r):
        return values
    if values.size != r**3 or len(values) != r:
        raise InputError(f"H is of shape ({r}, {r * (r + 1) // 2}), ({r}, {r * r}) or ({r}, {r}, {r}) for {r} states; got "
                         f"{values.shape}")
    full = values.reshape(r, r, r)
    i, j = np.tril_indices(r)
    return np.where(i == j, full[:, i, j], full[:, i, j] + full[:, j, i])


def tensor(h: np.ndarray) -> np.ndarray:
    """(r, r, r), symmetric in its last two axes, from the (r, r (r + 1) / 2) columns."""
    r = len(h)
    i, j = np.tril_indices(r)
    full = np.zeros((r, r, r), h.dtype)
    half = np.where(i == j, 1.0, 0.5) * h
    full[:, i, j] = half
    full[:, j, i] = half
    return full


def energy_violation(h: np.ndarray) -> float:
    """max |symmetric part| / max |H|: 0 where the products neither make nor lose energy, x · H (x, x) = 0."""
    full = tensor(h)
    symmetric = sum(full.transpose(axes) for axes in permutations(range(3))) / 6
    largest = float(np.abs(full).max(initial=0))
    return float(np.abs(symmetric).max()) / largest if largest else 0.0


def packed(operators: Mapping[str, ArrayLike | None]) -> tuple[str, np.ndarray]:
    """The form and the matrix (d, r) of operators given by letter: c (r,), A (r, r), H, B (r, m), N (m, r, r)."""
    given = {name: as_array(x, f"operator {name}", kinds="biufc") for name, x in operators.items() if x is not None}
    form = checked_form("".join(given))
    r = len(next(iter(given[letter] for letter in form if letter != "N"))) if form != "N" else given["N"].shape[-1]
    m = given["B"].shape[1] if "B" in given and given["B"].ndim == 2 else len(given["N"]) if "N" in given else 0
    wanted = {"c": (r,), "A": (r, r), "B": (r, m), "N": (m, r, r)}
    rows = []
    for letter in form:
        x = given[letter]
        if letter == "H":
            x = compressed(x, r)
        elif x.shape != wanted[letter]:
            raise InputError(f"operator {letter} is of shape {wanted[letter]} beside the others; got {x.shape}")
        if not np.isfinite(x).all():
            raise InputError(f"operator {letter} holds numbers that are not finite")
        rows.append(x.reshape(1, r) if letter == "c" else x.transpose(0, 2, 1).reshape(-1, r) if letter == "N" else x.T)
    matrix = np.concatenate(rows)
    return form, np.ascontiguousarray(matrix, np.result_type(matrix.dtype, np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Dynamics:
    """Operators and how time goes: x[k+1] = rate(x[k], u[k]) with a period, dx/dt = rate(x, u) without."""

    form: str
    matrix: np.ndarray
    """(d, r), a row a term."""
    n_inputs: int
    period: float | None

    @property
    def rank(self) -> int:
        return self.matrix.shape[1]

    def block(self, letter: str) -> np.ndarray | None:
        """An operator as users know it: c (r,), A (r, r), H (r, r (r + 1) / 2), B (r, m), N (m, r, r); None: it has none."""
        rows = blocks(self.form, self.rank, self.n_inputs).get(letter)
        if rows is None:
            return None
        values = self.matrix[rows]
        if letter == "c":
            return values[0]
        if letter == "N":
            return values.reshape(self.n_inputs, self.rank, self.rank).transpose(0, 2, 1)
        return values.T

    @property
    def flags(self) -> np.ndarray:
        return np.array([letter in self.form for letter in LETTERS])

    def rate(self, states: np.ndarray, inputs: np.ndarray | None = None) -> np.ndarray:
        """The right-hand side (n, r) at states (n, r) and inputs (n, m)."""
        u = np.zeros((len(states), self.n_inputs)) if inputs is None else inputs
        return terms(states, u, self.form) @ self.matrix

    def jacobian(self, state: np.ndarray, inputs: np.ndarray | None = None) -> np.ndarray:
        """(r, r): derivatives of the right-hand side by the states."""
        r = self.rank
        a, h, n = self.block("A"), self.block("H"), self.block("N")
        jacobian = np.zeros((r, r), np.result_type(self.matrix.dtype, state.dtype))
        if a is not None:
            jacobian = jacobian + a
        if h is not None:
            jacobian = jacobian + 2 * tensor(h) @ state
        if n is not None and inputs is not None:
            jacobian = jacobian + np.tensordot(inputs, n, 1)
        return jacobian

    def fixed_point(self, start: np.ndarray) -> np.ndarray | None:
        """Where the right-hand side without inputs leaves the state as it is, by Newton's method; None where none is near."""
        x = np.array(start, np.result_type(self.matrix.dtype, np.float64))
        identity = np.eye(self.rank) if self.period is not None else 0.0
        for _ in range(60):
            left = self.rate(x[None])[0] - (x if self.period is not None else 0)
            try:
                move = np.linalg.solve(self.jacobian(x) - identity, left)
            except np.linalg.LinAlgError:
                return None
            x = x - move
            if not np.isfinite(x).all() or np.abs(x).max() > UNBOUNDED:
                return None
            if np.abs(move).max() <= 1e-12 * max(float(np.abs(x).max()), 1e-300) or not move.any():
                return x
        return None

    def march(self, x0: np.ndarray, times: np.ndarray, inputs: np.ndarray, *, method: Method = "auto", step: float = 0.0,
              rtol: float = 1e-8, center: np.ndarray | None = None, bound: float = UNBOUNDED,
              shocks: np.ndarray | None = None,
              matrices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States (b, n, r) of each member at `times`; how many rows of each were reached, (b,); where it stopped, (b,).

        x0 (b, r); inputs (n, m); shocks (b, n - 1, r), added after each interval; matrices (b, d, r), in place of the own one.
        The last time reached is infinity for members that came to the end.
        """
        from ensemblekit.rom import kernels_model as kernels

        o = self.matrix[None] if matrices is None else matrices
        kind = np.result_type(o.dtype, x0.dtype, inputs.dtype, np.float64)
        o, x0, inputs = (np.ascontiguousarray(x, kind) for x in (o, x0, inputs))
        b, n = len(x0), len(times)
        middle = np.zeros(self.rank, kind) if center is None else np.asarray(center, kind)
        added = np.empty((0, 0, self.rank), kind) if shocks is None else np.ascontiguousarray(shocks, kind)
        out, reached = np.zeros((b, n, self.rank), kind), np.empty((b, 2))
        if self.period is None:
            settings = np.array([METHODS[method], step, rtol, bound / 1e3 if bound < UNBOUNDED else 0.0])
            kernels.integrate_batch(o, self.flags, x0, np.asarray(times, np.float64), inputs, added, settings, middle, bound,
                                    out, reached)
            stopped = reached[:, 1]
        else:
            counts = steps_between(times, self.period)
            kernels.iterate_batch(o, self.flags, x0, counts, inputs, added, middle, bound, out, reached)
            stopped = times[0] + reached[:, 1] * self.period
        rows = reached[:, 0].astype(np.int64)
        return out, rows, np.where(rows == n, math.inf, stopped)


def steps_between(times: np.ndarray, period: float) -> np.ndarray:
    """Steps of a discrete model that lead to each time, 0 to the first. Raises InputError between its instants."""
    since = (times - times[0]) / period
    steps = np.round(since)
    if np.abs(since - steps).max(initial=0) > 1e-4:
        k = int(np.argmax(np.abs(since - steps)))
        raise InputError(f"a discrete model of period {period:.6g} knows whole numbers of periods after its start; time "
                         f"{times[k]:.6g} is {since[k]:.6g} of them. Take times between by rom.dmd(method=\"opt\") or "
                         'operator_inference(time="continuous")')
    return np.diff(steps.astype(np.int64), prepend=0)
