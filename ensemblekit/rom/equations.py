"""Equations to be projected on modes: dq/dt = constant + linear(q) + bilinear(q, q) + inputs, as functions of fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
        rate = np.zeros(q.shape, np.result_type(q, np.float64))
        for axis in range(q.ndim):
            h = 1 / (q.shape[axis] + 1) if spacing is None else spacing
            wide = np.pad(q, [(1, 1) if k == axis else (0, 0) for k in range(q.ndim)])
            rate += diffusivity / h**2 * (np.take(wide, range(2, wide.shape[axis]), axis) - 2 * q
                                          + np.take(wide, range(wide.shape[axis] - 2), axis))
        return rate

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


def navier_stokes(viscosity: float, *, boundary: Literal["periodic", "open"] = "periodic",
                  spacing: float | tuple[float, float] | None = None, force: Any = None) -> Equation:
    """The momentum equation of incompressible flow in two dimensions, u_t = -(u · ∇) u + ν Δu + force, on a grid.

    Snapshots are velocities (ny, nx, 2) as [y, x, component], the components along x and y, as the testbeds record them. The
    convection is in the skew form (u · ∇ u + ∇ · (u u)) / 2.

    Arguments:
        viscosity: in units of the velocity times the length.
        boundary: "periodic": derivatives by Fourier series; modes without divergence have no part in the pressure, and products
            conserve energy. "open": central differences, one-sided at the edges; what pressure and boundaries add is left out
            (and measured: what the equation leaves on the snapshots).
        spacing: of the points, (along y, along x) or one number; of a periodic box by default that of a side of 2π.
        force: (ny, nx, 2), added to u_t.

    Raises InputError for a viscosity that is not above 0, an open grid without its spacing, or snapshots of another shape.
    """
    if not viscosity > 0 or not math.isfinite(viscosity):
        raise InputError(f"the viscosity is a number above 0; got {viscosity!r}")
    if boundary not in ("periodic", "open"):
        raise InputError(f'boundary is "periodic" or "open"; got {boundary!r}')
    if boundary == "open" and spacing is None:
        raise InputError("an open grid needs the spacing of its points, such as spacing=1 / cells in diameters of the wake")
    steps = None if spacing is None else tuple(map(float, np.broadcast_to(np.asarray(spacing, np.float64), (2,))))
    if steps is not None and not all(h > 0 and math.isfinite(h) for h in steps):
        raise InputError(f"the spacing is numbers above 0, (along y, along x); got {spacing!r}")

    def slope(q: np.ndarray, axis: int, order: int = 1) -> np.ndarray:
        h = 2 * math.pi / q.shape[axis] if steps is None else steps[axis]
        return _by_fourier(q, axis, h, order) if boundary == "periodic" else _by_differences(q, axis, h, order)

    def linear(q: np.ndarray) -> np.ndarray:
        _check_velocity(q)
        return viscosity * (slope(q, 0, 2) + slope(q, 1, 2))

    def bilinear(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        _check_velocity(p)
        carried = p[..., 1:] * slope(q, 0) + p[..., :1] * slope(q, 1)
        return -(carried + slope(p[..., 1:] * q, 0) + slope(p[..., :1] * q, 1)) / 2

    return Equation(name=f"Navier-Stokes, viscosity {viscosity:g}, {boundary}", linear=linear, bilinear=bilinear,
                    constant=None if force is None else np.asarray(force, np.float64))


def _check_velocity(q: np.ndarray) -> None:
    if np.ndim(q) != 3 or np.shape(q)[2] != 2:
        raise InputError(f"snapshots are velocities (ny, nx, 2) as [y, x, component]; got shape {np.shape(q)}")


def _by_fourier(q: np.ndarray, axis: int, h: float, order: int) -> np.ndarray:
    """Derivative along an axis of a periodic field; its highest wave has none of odd order."""
    from scipy.fft import irfft, rfft

    n = q.shape[axis]
    waves = 2j * np.pi * np.arange(n // 2 + 1) / (n * h)
    factor = waves**order
    if n % 2 == 0 and order % 2:
        factor[-1] = 0
    shape = [1] * q.ndim
    shape[axis] = len(factor)
    return np.asarray(irfft(rfft(q, axis=axis) * factor.reshape(shape), n, axis=axis))


def _by_differences(q: np.ndarray, axis: int, h: float, order: int) -> np.ndarray:
    """Derivative along an axis by central differences; at the edges that of their neighbours' parabola."""
    if order == 1:
        return np.asarray(np.gradient(q, h, axis=axis, edge_order=2))
    moved = np.moveaxis(q, axis, 0)
    inside = (moved[2:] - 2 * moved[1:-1] + moved[:-2]) / h**2
    return np.moveaxis(np.concatenate([inside[:1], inside, inside[-1:]]), 0, axis)


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
