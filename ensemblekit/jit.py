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
    return _compiled(function, EXACT)


def sum_kernel(function: F) -> F:
    """As :func:`kernel`, but sums may run in several lanes at once; NaN and infinity still stay what they are.

    A reduction of a dozen sums an element is 4 times faster so; the same machine code still gives the same bits.
    """
    return _compiled(function, EXACT | {"reassoc"})


def _compiled(function: F, fastmath: set[str]) -> F:
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:        # "cannot cache function: no locator available"
        return numba.njit(**options)(function)
