"""The one door to numba: plain serial loops, outside Python's lock, cached on disk where that is possible.

The first call of a fresh installation compiles, for some seconds, and says so in a line: on the logger "ensemblekit", as a
warning (which Python shows on stderr) where somebody sits before a terminal or notebook, at level DEBUG else.

Import this (and every ``kernels*.py``) inside the function that needs it: ``import ensemblekit`` stays free of numba.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba.core import event

F = TypeVar("F", bound=Callable[..., Any])

EXACT = {"contract", "nsz", "arcp"}
"""Fused multiply-add and the like; sums keep their order and NaN and infinity stay what they are."""


COMPILING = ("ensemblekit compiles kernels for this processor, once: the first calls take some seconds longer. Set "
             "NUMBA_CACHE_DIR where what was compiled should be kept elsewhere")


class Compiling(event.Listener):
    """What happens while a kernel of ours is compiled: one line about it, and no collection of garbage.

    The compiler makes millions of objects that live until it ends; looking through them again and again is a tenth of its time.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.said = self.resume = False

    def on_start(self, event: Any) -> None:
        if not _ours(event):
            return
        with self.lock:
            if not self.depth:
                self.resume = gc.isenabled()
                gc.disable()
            self.depth += 1
            first, self.said = not self.said, True
        if first:
            logging.getLogger("ensemblekit").log(logging.WARNING if _watched() else logging.DEBUG, COMPILING)

    def on_end(self, event: Any) -> None:
        if not _ours(event):
            return
        with self.lock:
            self.depth -= 1
            if not self.depth and self.resume:
                gc.enable()


def _ours(event: Any) -> bool:
    """Whether what is compiled is a kernel of this package, and not one of the program around it."""
    return str(event.data["dispatcher"].py_func.__module__).startswith("ensemblekit.")


def _watched() -> bool:
    """Whether somebody sits before it."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


LISTENER = Compiling()
event.register("numba:compile", LISTENER)


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
