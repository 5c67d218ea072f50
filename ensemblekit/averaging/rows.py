"""Blocks as the kernels read them: one flat array and the distance between rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ensemblekit.intake import as_array
from ensemblekit.source import Array


class Rows(NamedTuple):
    """n rows of `width` adjacent numbers, `stride` numbers apart, in one read-only flat array."""

    flat: np.ndarray
    stride: int
    n: int
    width: int


def rows_of(values: Array) -> Rows:
    """A block (n, *item) as rows, in place where each row is adjacent in memory, else copied.

    Types that the kernels do not take (float16, foreign byte order) are widened; complex numbers become pairs.
    """
    x = as_array(values, "values")
    if x.dtype.kind == "c":
        x = np.ascontiguousarray(x, dtype=np.complex128 if x.dtype.itemsize > 8 else np.complex64)
        x = x.reshape(len(x), -1)
        x = x.view(x.real.dtype)
    elif x.dtype == np.float16 or not x.dtype.isnative or x.dtype.itemsize > 8:
        x = x.astype(np.float32 if x.dtype == np.float16 else np.float64 if x.dtype.kind == "f" else
                     x.dtype.newbyteorder("="))
    n = len(x)
    x = x.reshape(n, -1)        # a view where it can be
    width = x.shape[1]
    item = x.dtype.itemsize
    if n > 1 and (x.strides[1] != item or x.strides[0] % item or x.strides[0] < width * item) and width > 1:
        x = np.ascontiguousarray(x)
    elif n > 1 and width == 1 and (x.strides[0] % item or x.strides[0] < item):
        x = np.ascontiguousarray(x)
    elif n == 1 and width > 1 and x.strides[1] != item:
        x = np.ascontiguousarray(x)
    stride = x.strides[0] // item if n > 1 else width
    if x.flags.c_contiguous:        # as_strided would take longer than a small block's arithmetic
        flat = x.reshape(-1)
        flat.flags.writeable = False
        return Rows(flat, width, n, width)
    flat = np.lib.stride_tricks.as_strided(x, ((n - 1) * stride + width,), (item,), writeable=False)
    return Rows(flat, stride, n, width)


def folded(rows: Rows, at_least: int = 256) -> tuple[Rows, int]:
    """Narrow rows side by side, `k` to one, so that loops over columns are long; what does not divide is left over.

    A series of scalars (n, 1) becomes (n // 256, 256): the columns are then k interleaved series to be merged.
    """
    if rows.width >= 32 or rows.stride != rows.width or rows.n < 2 * at_least:
        return rows, 1
    k = at_least // rows.width
    n = rows.n // k
    return Rows(rows.flat[:n * k * rows.width], k * rows.width, n, k * rows.width), k
