"""Small helpers on blocks of snapshots that hold for numpy arrays and torch tensors alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.source import Array, is_torch

CHUNK = 8 << 20     # bytes of float64 at a time: a few rows that stay in the cache


KERNEL_TYPES = ("torch.float32", "torch.float64")
SHORT = 1 << 16         # numbers; tensors below are joined before they go to a kernel


def wide(x: Array) -> Array:
    """x in double precision (float64 or complex128), on its device."""
    if is_torch(x):
        return x.to(__import__("torch").complex128) if x.is_complex() else x.double()
    x = as_array(x, "values")
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64, copy=False)


def like(values: Array, numbers: ArrayLike) -> Array:
    """Real numbers as float64 where `values` lives: a numpy array, or a tensor on its device."""
    if is_torch(values):
        import torch

        return torch.as_tensor(np.asarray(numbers, dtype=np.float64, order="C"), device=values.device)
    return np.asarray(numbers, dtype=np.float64)


def along(weights: Array, values: Array) -> Array:
    """weights (n,) with as many axes as values (n, *item), to multiply with."""
    return weights.reshape(-1, *[1] * (values.ndim - 1))


def weighted_sum(coefficients: Array, values: Array) -> Array:
    """Sum over snapshots of coefficients (n,) times values (n, *item), in double precision without a double copy."""
    total: Array = 0.0
    for rows, chunk in chunks(values):
        flat = chunk.reshape(len(chunk), -1)
        total = total + like(chunk, coefficients[rows]).to(flat.dtype) @ flat if is_torch(chunk) else (
            total + np.asarray(coefficients[rows]) @ flat)
    return total.reshape(tuple(values.shape[1:]))


def chunks(values: Array, nbytes: int = CHUNK) -> Iterator[tuple[slice, Array]]:
    """Runs of rows of at most `nbytes` in double precision; what is double already comes whole."""
    if is_torch(values) or values.dtype in (np.float64, np.complex128):
        yield slice(0, len(values)), wide(values)
        return
    per_row = max(1, values[:1].size * 8)
    step = max(1, nbytes // per_row)
    for start in range(0, len(values), step):
        yield slice(start, start + step), wide(values[start:start + step])


def join(left: Array, right: Array, axis: int = 0) -> Array:
    """Two flat arrays one after the other."""
    if is_torch(left):
        import torch

        return torch.cat([left, right], dim=axis)
    return np.concatenate([left, right], axis=axis)


def copied(x: Array) -> Array:
    """A copy that owns its numbers."""
    return x.clone() if is_torch(x) else np.array(as_array(x, "values", kinds=None))


def plain(x: Array) -> Array:
    """What a state gives away: a copy, so that nobody changes the state from outside; None as an empty array."""
    return np.empty(0) if x is None else copied(x)


def one_row(pieces: Sequence[Array]) -> Array:
    """(1, width): the pieces of one item one after the other, in double precision."""
    if is_torch(pieces[0]):
        import torch

        real = all(not piece.is_complex() for piece in pieces)
        row = torch.empty(sum(piece.numel() for piece in pieces), device=pieces[0].device,
                          dtype=torch.float64 if real else torch.complex128)
        at = 0
        for piece in pieces:
            row[at:at + piece.numel()].copy_(piece.detach().reshape(-1))
            at += piece.numel()
        return row[None]
    return np.concatenate([wide(piece).reshape(-1) for piece in pieces])[None]


def _runs(pieces: Sequence[Array]) -> Iterator[Array]:
    """Tensors flat, neighbours of one type joined while short: a call for each costs more than copying them."""
    import torch

    run: list[Array] = []
    width = 0
    for piece in pieces:
        flat = piece.detach().reshape(-1)
        if run and (width + len(flat) > SHORT or flat.dtype != run[0].dtype or flat.device != run[0].device):
            yield torch.cat(run) if len(run) > 1 else run[0]
            run, width = [], 0
        run.append(flat)
        width += len(flat)
    if run:
        yield torch.cat(run) if len(run) > 1 else run[0]


def flat_pieces(pieces: Sequence[Array], total: Array) -> Iterator[tuple[Array, bool]]:
    """Each flat, and whether it is an array for a kernel (numpy, and tensors in main memory beside such a total)."""
    if not is_torch(total):
        for piece in pieces:
            yield np.ascontiguousarray(as_numbers(piece)).reshape(-1), True
        return
    for flat in _runs(pieces):
        if total.device.type == "cpu" and flat.device.type == "cpu":
            yield (flat if str(flat.dtype) in KERNEL_TYPES else flat.double()).numpy(), True
        else:
            yield flat.to(total.device, total.dtype), False


def as_numbers(x: Array) -> np.ndarray:
    """A numpy view of an array or of a tensor in main memory."""
    return x.detach().numpy() if is_torch(x) else np.asarray(x)


def real_only(values: Array, who: str) -> None:
    """Refuse complex numbers where an order is needed."""
    if values.is_complex() if is_torch(values) else values.dtype.kind == "c":
        raise InputError(f"{who} needs an order, and complex numbers have none; map to abs, real or imag first")


def in_range(size: Array, sums: Array, order: int = 2) -> bool:
    """Whether no sum of powers up to `order` may have over- or underflowed, by the magnitudes of the means and the sums of the
    highest power. Zeros are not: they may be squares that vanished; nor are NaN and infinity."""
    from ensemblekit.averaging.kernels import LARGEST_MEAN, LARGEST_SQUARES, SMALLEST_MEAN, SMALLEST_SQUARES

    high, low = (LARGEST_MEAN, SMALLEST_MEAN) if order == 2 else (LARGEST_MEAN**0.5, 2.0**-150)
    return bool(((sums < LARGEST_SQUARES) & (size < high) & ((sums > SMALLEST_SQUARES) | (size > low))).all())


def same_item(have: tuple[int, ...], values: Array, who: str) -> None:
    """Refuse a block whose snapshots have another shape than those before."""
    got = tuple(values.shape[1:])
    if got != tuple(have):
        raise InputError(f"{who} has seen snapshots of shape {tuple(have)}; now came {got}. "
                         "A map must return the same shape for every block")
