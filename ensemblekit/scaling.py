"""Powers of two that bring numbers of any size to where their squares and fourth powers are ordinary numbers.

Multiplying by a power of two is exact, so an answer of scaled numbers has the bits of the answer of the numbers
themselves, wherever that would have been right, and the scale comes back by `ldexp` with the degree of the answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ensemblekit.errors import StatisticsError

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike

Array = Any

SMALL, LARGE = -100, 200
"""Numbers whose largest magnitude lies in 2**SMALL ... 2**LARGE are left as they are: deviations of one unit in the last
place from it, to the fourth power, are above 2**-612, and sums of 2**200 fourth powers of it are finite."""


FREE = -(1 << 20)
"""Exponent of numbers that were nothing but 0: any other replaces it."""


def common(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Exponents that suit both: those of the larger numbers; 0 where both are `FREE`."""
    e = np.maximum(a, b)
    return np.where(e == FREE, 0, e)


def weight_exponent(weights: np.ndarray, earlier: int, first: bool) -> int:
    """Exponent that suits these weights and, unless they are the first, those over 2**earlier."""
    largest = float(weights.max(initial=0.0))
    if not largest > 0:
        return earlier
    e: int = exponent_of(largest)
    return e if first else max(e, earlier)


def power_of_two(values: Array, axis: int | None = None, *, always: bool = False) -> Any:
    """Exponent e of the power of two to divide `values` by: the largest finite magnitude then lies in 0.5 ... 1.

    0 where that magnitude is ordinary (`SMALL`, `LARGE`), unless `always`, and where there is none but zeros.

    Arguments:
        values: numpy array, torch tensor or number, real or complex (the larger of the parts counts); or only the
            largest magnitude of them.
        axis: None: one exponent (an int) for all; else the exponents (int64, without that axis) of each element.
    """
    if type(values).__module__.partition(".")[0] == "torch":
        return power_of_two(_torch_largest(values, axis), None if axis is None else 0, always=always)
    values = np.asarray(values)
    if values.dtype.kind not in "fc" and not always:
        return 0 if axis is None else np.zeros(np.delete(values.shape, axis), np.int64)
    if values.size == 0:
        return 0 if axis is None else np.zeros(np.delete(values.shape, axis), np.int64)
    return exponent_of(_largest(values, axis), always=always)


def exponent_of(largest: np.ndarray | float, *, always: bool = False) -> Any:
    """`power_of_two` of numbers each of which is the largest magnitude of something; an int for a plain number."""
    if np.ndim(largest) == 0:
        x = float(largest)
        e = math.frexp(x)[1] if math.isfinite(x) else 0
        return e if always or not SMALL <= e <= LARGE else 0
    each = np.asarray(largest, dtype=np.float64)
    powers = np.frexp(np.where(np.isfinite(each), each, 0.0))[1].astype(np.int64)
    return powers if always else np.where((powers >= SMALL) & (powers <= LARGE), 0, powers)


def ldexp(values: Array, exponent: Array) -> Array:
    """values * 2**exponent without an intermediate over- or underflow; exact wherever the product is an ordinary number.

    Arguments:
        values: number, numpy array or torch tensor, real or complex.
        exponent: an int, or ints that broadcast against `values` (numpy).
    """
    if np.ndim(exponent) == 0 and int(exponent) == 0:
        return values
    if type(values).__module__.partition(".")[0] == "torch":
        return _torch_ldexp(values, exponent)
    if np.ndim(values) == 0 and np.ndim(exponent) == 0 and not np.iscomplexobj(values):
        try:
            return math.ldexp(float(values), int(exponent))
        except OverflowError:
            return math.copysign(math.inf, values)
    x = np.asarray(values)
    if x.dtype.kind == "c":
        out = np.empty(np.broadcast_shapes(x.shape, np.shape(exponent)), x.dtype)
        out.real, out.imag = ldexp(x.real, exponent), ldexp(x.imag, exponent)
        return out if out.ndim else out[()]
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(x, np.clip(np.asarray(exponent), -5000, 5000).astype(np.int32))


def scaled(values: Array, axis: int | None = None) -> tuple[Array, Any]:
    """(values / 2**e, e) with `power_of_two`'s e; the values themselves, not copied, where e is 0."""
    e = power_of_two(values, axis)
    if not np.any(e):
        return values, e
    return ldexp(values, -e if axis is None else -np.expand_dims(e, axis)), e


def representable(values: Array, exponent: Array, what: str) -> Array:
    """`ldexp`, refused where a number that is neither 0 nor infinite becomes so: StatisticsError, with `what` it is."""
    out = ldexp(values, exponent)
    if np.any(exponent):
        x, y = np.asarray(values), np.asarray(out)
        lost = ((x != 0) & (np.abs(y) < np.finfo(np.float64).tiny)) | (np.isfinite(x) & ~np.isfinite(y))
        # a number that is 0 but for rounding beside the others may vanish
        size = np.abs(np.where(np.isfinite(x), x, 0.0))
        lost &= size > 2.0**-40 * size.max(initial=0.0)
        if lost.any():
            raise StatisticsError(f"{what} would be about {float(np.abs(x[lost]).max()):.3g} * 2**{int(np.max(exponent))}, "
                                  "beyond the range of float64 (1e-308 ... 1e308). Divide the values by a power of two, "
                                  "and scale the answer")
    return out


def _largest(x: np.ndarray, axis: int | None) -> Any:
    if x.dtype.kind == "c":
        return np.maximum(_largest(x.real, axis), _largest(x.imag, axis))
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    largest = np.maximum(x.max(axis=axis), -x.min(axis=axis))
    if np.isfinite(largest).all():
        return largest
    return np.abs(np.where(np.isfinite(x), x, 0.0)).max(axis=axis)


def _torch_largest(x: torch.Tensor, axis: int | None) -> Any:
    import torch

    x = torch.view_as_real(x.detach().resolve_conj()).abs().amax(-1) if x.is_complex() else x.detach()
    if x.numel() == 0:
        return np.zeros(() if axis is None else np.delete(tuple(x.shape), axis))
    x = x.double() if not x.is_floating_point() else x
    x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).abs()
    largest = (x.amax() if axis is None else x.amax(axis)).cpu().double().numpy()
    return largest if axis is None else largest[None]


def _torch_ldexp(x: torch.Tensor, exponent: Array) -> Any:
    """Four factors, each a power of two that float32 holds too; torch's own ldexp forms 2**e, which overflows."""
    import torch

    e = np.asarray(exponent, dtype=np.int64)
    while np.any(e):
        step = np.clip(e, -120, 120)
        factor = torch.as_tensor(np.ldexp(1.0, step.astype(np.int32)), dtype=x.real.dtype if x.is_complex() else x.dtype)
        x = x * factor.to(x.device)
        e = e - step
    return x
