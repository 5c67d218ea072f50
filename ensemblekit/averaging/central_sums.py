"""Sums of powers of deviations from the mean of a block, by kernels or by the operators of the array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ensemblekit.averaging.arrays import along, like, wide
from ensemblekit.averaging.rows import Rows, rows_of
from ensemblekit.errors import InputError
from ensemblekit.scaling import FREE, ldexp, power_of_two
from ensemblekit.source import Array, is_torch

UNGUARDED = np.empty(0, np.uint8)


def is_wide(dtype: np.dtype) -> bool:
    """Whether squares of numbers of this type can leave the range of float64."""
    return dtype.kind == "f" and dtype.itemsize >= 8


def has_wide_values(values: Array) -> bool:
    return str(values.dtype) in ("torch.float64", "torch.complex128") if is_torch(values) else is_wide(values.dtype)


def needs_scale(pieces: Sequence[Array]) -> bool:
    return any(power_of_two(piece) for piece in pieces if has_wide_values(piece))


def free_exponents(exponent: np.ndarray, sums: list[Array]) -> np.ndarray:
    """The exponents, `FREE` where an element has been nothing but 0."""
    zero = (sums[0] == 0) & (sums[1] == 0)
    return np.where(np.asarray(zero.cpu() if is_torch(zero) else zero), FREE, exponent)


def over_powers(sums: list[Array], step: np.ndarray) -> list[Array]:
    """Mean and sums of powers of numbers divided by 2**step."""
    return [ldexp(x, -k * step) for k, x in enumerate(sums, start=1)] if step.any() else sums


def as_table(rows: Rows) -> np.ndarray:
    """Rows as an array (n, width), in place."""
    item = rows.flat.itemsize
    return np.lib.stride_tricks.as_strided(rows.flat, (rows.n, rows.width), (rows.stride * item, item), writeable=False)


def real_pairs(values: Array) -> Array:
    """(n, width) real numbers, complex ones as pairs."""
    if is_torch(values):
        import torch

        values = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    return values.reshape(len(values), -1)


def as_item(flat: Array, values: Array) -> Array:
    """The inverse of `real_pairs`."""
    if is_torch(values) and values.is_complex():
        import torch

        return torch.view_as_complex(flat.reshape(len(flat), -1, 2))
    return flat


def central_sums(table: np.ndarray, weights: np.ndarray) -> list[Array]:
    """Mean and sums of powers 2 to 4 of one block (n, width)."""
    from ensemblekit.averaging import kernels

    rows = rows_of(table)
    sums = [np.empty(rows.width) for _ in range(4)]
    kernels.central_sums(rows.flat, rows.stride, weights, rows.width, *sums)
    return sums


def folded_sums(table: np.ndarray, k: int) -> list[Array]:
    """Narrow items (n, width), k of them in a row: interleaved series side by side, merged."""
    from ensemblekit.averaging import kernels

    narrow = rows_of(table.reshape(len(table) // k, -1))
    mean, m2 = np.zeros(narrow.width), np.zeros(narrow.width)
    kernels.add_moments(narrow.flat, narrow.stride, narrow.n, narrow.width, 0.0, mean, m2, UNGUARDED,
                        np.empty((4, kernels.TILE)))
    means, squares = mean.reshape(k, -1), m2.reshape(k, -1)
    middle = means.mean(axis=0)
    return [middle, squares.sum(axis=0) + narrow.n * ((means - middle) ** 2).sum(axis=0)]


def zeros_like(mean: Array) -> Array:
    """In main memory through numpy, whose zeros take no memory before they are written to."""
    if not is_torch(mean):
        return np.zeros(mean.shape)
    if mean.device.type == "cpu":
        import torch

        return torch.from_numpy(np.zeros(mean.shape))
    return mean.new_zeros(mean.shape)


def torch_sums(values: Array, weights: Array | None, weight: float, order: int) -> list[Array]:
    """Mean and central sums of one block of tensors, flat, on their device."""
    import torch

    x = values
    if x.is_complex():
        if order == 4:
            raise InputError("skewness and kurtosis need real numbers; map to abs, real or imag first")
        x = torch.view_as_real(x.resolve_conj())
    x = wide(x.reshape(len(x), -1))
    if weights is None and len(x) == 1:
        return [x[0], *[torch.zeros_like(x[0])] * (order - 1)]
    if weights is None and order == 2:
        mean = x.mean(0)
        return [mean, (x - mean).square_().sum(0)] if not x.requires_grad else [mean, (x - mean).square().sum(0)]
    w = along(like(x, np.ones(len(x)) if weights is None else weights), x)
    mean = (x * (w / weight)).sum(0)
    gap = x - mean
    return [mean, *((w * gap**k).sum(0) for k in range(2, order + 1))]
