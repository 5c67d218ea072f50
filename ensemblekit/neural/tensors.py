"""Tensors of what people hand in as arrays."""

from __future__ import annotations

import numpy as np
import torch

from ensemblekit.errors import InputError


def tensor_of(x: np.ndarray | torch.Tensor, what: str = "the array") -> torch.Tensor:
    """A tensor as it is, or one of an array's numbers, on the processor; the memory is shared where torch can hold it so.

    Torch knows no strides below zero (``x[::-1]``) and no foreign byte order: such numbers are copied.

    Raises:
        InputError: numbers of a type that torch lacks (words, objects, dates).
    """
    if isinstance(x, torch.Tensor):
        return x
    plain = np.asarray(x, dtype=x.dtype.newbyteorder("="))
    if any(stride < 0 for stride in plain.strides):
        plain = plain.copy()
    try:
        return torch.as_tensor(plain)
    except TypeError as error:
        raise InputError(f"{what} holds {x.dtype}, which is no type of numbers that torch knows; cast it first") from error
