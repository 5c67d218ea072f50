"""Equations to be projected on modes: dq/dt = constant + linear(q) + bilinear(q, q) + inputs, as functions of fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.results import Result
from ensemblekit.rom.product import is_sparse

Fields = Any
"""An array of the item's shape, or a mapping of field to array where the basis holds several."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Equation(Result):
    """The terms of an evolution equation, each a function of fields (of one item's shape) that gives fields."""

    name: str
    linear: Callable[[Fields], Fields] | None = None
    bilinear: Callable[[Fields, Fields], Fields] | None = None
    """Linear in both; it need not be symmetric."""
    constant: Fields | None = None
    inputs: tuple[Fields, ...] = ()
    """What each input adds to dq/dt when it is 1."""
    period: float | None = None
    """Of an equation that gives the next snapshot in place of the derivative."""


def heat(diffusivity: float, *, spacing: float | None = None) -> Equation:
    """Heat conduction with cold edges, by central differences in one or two dimensions, as :func:`rom.testbeds.heat` solves it.

    spacing: of the points; by default a side of length 1 with the edges left out, 1 / (points + 1).
    """
    if not diffusivity > 0 or not math.isfinite(diffusivity):
        raise InputError(f"the diffusivity is a number above 0; got {diffusivity!r}")

    def linear(q: np.ndarray) -> np.ndarray:
        found = np.zeros(q.shape, np.result_type(q, np.float64))
        for axis in range(q.ndim):
            h = 1 / (q.shape[axis] + 1) if spacing is None else spacing
            wide = np.pad(q, [(1, 1) if k == axis else (0, 0) for k in range(q.ndim)])
            found += diffusivity / h**2 * (np.take(wide, range(2, wide.shape[axis]), axis) - 2 * q
                                           + np.take(wide, range(wide.shape[axis] - 2), axis))
        return found

    return Equation(name=f"heat, diffusivity {diffusivity:g}", linear=linear)


def burgers(viscosity: float, *, length: float = 2.0) -> Equation:
    """u_t + u u_x = ν u_xx on a periodic interval, in the flux form that neither makes nor loses energy.

    It is what :func:`rom.testbeds.burgers` solves; length: of the interval.
    """
    if not viscosity > 0 or not length > 0 or not math.isfinite(viscosity + length):
        raise InputError(f"viscosity and length are numbers above 0; got {viscosity!r} and {length!r}")

    def linear(q: np.ndarray) -> np.ndarray:
        h = length / len(q)
        return viscosity / h**2 * (np.roll(q, -1) - 2 * q + np.roll(q, 1))

    def bilinear(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        h = length / len(q)
        p_next, p_last, q_next, q_last = np.roll(p, -1), np.roll(p, 1), np.roll(q, -1), np.roll(q, 1)
        return -(p_next * q_next + (p * q_next + q * p_next) / 2 - (p * q_last + q * p_last) / 2 - p_last * q_last) / (6 * h)

    return Equation(name=f"Burgers, viscosity {viscosity:g}", linear=linear, bilinear=bilinear)


def linear(A: Any, B: Any = None, *, period: float | None = None) -> Equation:
    """dq/dt = A q + B u (with a period: the next snapshot).

    Arguments:
        A: (size, size) dense, sparse or a LinearOperator on flattened snapshots; or a function of a snapshot.
        B: (size, inputs), dense or sparse.
    """
    matrix = isinstance(A, np.ndarray | list | tuple) or is_sparse(A)       # operators of scipy.sparse.linalg too
    if isinstance(A, list | tuple):
        A = np.asarray(A)

    def product(q: np.ndarray) -> np.ndarray:
        flat = q.reshape(-1)
        if tuple(A.shape) != (flat.size, flat.size):
            raise InputError(f"A is of shape {tuple(A.shape)}; a snapshot has {flat.size} numbers")
        return np.asarray(A @ flat).reshape(q.shape)

    columns: Sequence[np.ndarray] = ()
    if B is not None:
        dense = np.asarray(B @ np.eye(B.shape[1]) if is_sparse(B) else B)
        dense = dense.reshape(len(dense), -1)
        columns = [dense[:, k] for k in range(dense.shape[1])]
    return Equation(name="linear", linear=product if matrix else A, inputs=tuple(columns),
                    period=period)


def quadratic(*, linear: Callable[[Fields], Fields] | None = None, bilinear: Callable[[Fields, Fields], Fields] | None = None,
              constant: Fields | None = None, inputs: Sequence[Fields] = (), period: float | None = None) -> Equation:
    """A solver's own discretisation: functions of fields, linear and bilinear, and what constants and inputs add."""
    if linear is None and bilinear is None and constant is None and not inputs:
        raise InputError("an equation has at least one term: linear=, bilinear=, constant= or inputs=")
    return Equation(name="quadratic", linear=linear, bilinear=bilinear, constant=constant, inputs=tuple(inputs), period=period)
