"""The filters of compressed datasets: those that libhdf5 has, and those that hdf5plugin brings along."""

from __future__ import annotations

import functools
from typing import Protocol

from ensemblekit.errors import one_line

OF_OTHERS = 256
"""Filters from this number on are registered by others than the HDF Group, which brings those below."""


class Creation(Protocol):
    """How a dataset was created, as h5py gives it."""

    def all_filters_avail(self) -> bool: ...
    def get_nfilters(self) -> int: ...
    def get_filter(self, index: int) -> tuple[int, int, tuple[int, ...], bytes]: ...


def missing_filter(how: Creation) -> str:
    """The filter that a dataset was compressed by and that nobody brought; "" where there is none, or hdf5plugin is there."""
    if filters_registered() or how.all_filters_avail():
        return ""
    for k in range(how.get_nfilters()):
        code, _, _, name = how.get_filter(k)
        if code >= OF_OTHERS:
            return f"the filter {one_line(name.decode('utf-8', 'replace')) or code}"
    return ""


@functools.cache
def filters_registered() -> bool:
    """Whether hdf5plugin is there, whose import registers filters beyond deflate: zstd, Blosc, LZ4, ..."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return True
