"""The one door to numba: plain serial loops, outside Python's lock, cached on disk where that is possible.

Import this (and every ``kernels*.py``) inside the function that needs it: ``import ensemblekit`` stays free of numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])

EXACT = {"contract", "nsz", "arcp"}
"""Fused multiply-add and the like; sums keep their order and NaN and infinity stay what they are."""


def kernel(function: F) -> F:
    """Compile a loop over arrays: ``nogil``, no reordering of sums, machine code cached beside the source.

    Where that folder and the user's cache folder cannot be written the kernel is compiled anew in every process.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": EXACT, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:        # "cannot cache function: no locator available"
        return numba.njit(**options)(function)
