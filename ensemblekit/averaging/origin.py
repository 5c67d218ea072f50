"""Where an estimate comes from: a token of each run, by which estimates that share one are told from independent ones."""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ensemblekit.averaging.estimate import Estimate
from ensemblekit.source import ArraySource, ReplicaSet, SnapshotSource, StackedSource
from ensemblekit.source_labelled import LazySource
from ensemblekit.source_protocol import PlainSource, SourceView


@runtime_checkable
class OfFiles(Protocol):
    """A source that reads files of a front-end."""

    @property
    def paths(self) -> tuple[str, ...]: ...


@runtime_checkable
class OfStore(Protocol):
    """A stored field, whose table names the files of its run."""

    table: Any


_tokens: dict[int, tuple[weakref.ref, str]] = {}
"""Address of an object that holds numbers -> it, and its token, for as long as it lives."""


def origin_of(source: SnapshotSource) -> tuple[str, ...]:
    """Tokens of the runs of a source: of the arrays that hold its numbers, or of its files; empty where neither is known."""
    return tuple(dict.fromkeys(_origins(source)))


def _origins(source: object) -> Iterable[str]:
    if isinstance(source, ReplicaSet | StackedSource):
        return [token for run in source.runs for token in _origins(run)]
    if isinstance(source, SourceView | PlainSource):
        return _origins(source.source)
    if isinstance(source, ArraySource | LazySource):
        return [token for x in source.arrays.values() if (token := token_of(x))]
    if isinstance(source, OfFiles):
        return [of_file(path) for path in source.paths]
    if isinstance(source, OfStore):
        return [of_file(part.path) for part in source.table.parts]
    try:
        return [_token(source)]
    except TypeError:       # it takes no weak reference
        return []


def with_origin(estimate: Estimate, origin: tuple[str, ...]) -> Estimate:
    """The estimate, and what comes with it, from these runs."""
    further = {name: with_origin(one, origin) for name, one in estimate.derived.items()}
    return replace(estimate, origin=origin, derived=further)


def token_of(x: object) -> str:
    """The token of an array: of the memory that it looks at, and which part of it; "" where that is not known.

    Columns of one table lie in the same part of its memory, rows (runs) in different ones.
    """
    holder: object = x
    while isinstance(holder, np.ndarray) and isinstance(holder.base, np.ndarray):
        holder = holder.base
    if not isinstance(holder, np.ndarray) or not isinstance(x, np.ndarray):
        return ""           # a tensor or a lazy array is an object made anew for every view
    steps = [stride * (n - 1) for stride, n in zip(x.strides, x.shape, strict=True) if n]
    first = x.__array_interface__["data"][0] - holder.__array_interface__["data"][0]
    low = first + sum(step for step in steps if step < 0)
    return f"{_token(holder)}:{low}:{first + sum(step for step in steps if step > 0) + x.itemsize}"


def _token(holder: object) -> str:
    key = id(holder)
    known = _tokens.get(key)
    if known is not None and known[0]() is holder:
        return known[1]

    def forget(gone: weakref.ref) -> None:
        if key in _tokens and _tokens[key][0] is gone:
            del _tokens[key]

    _tokens[key] = weakref.ref(holder, forget), uuid.uuid4().hex[:16]
    return _tokens[key][1]


def of_file(path: str) -> str:
    """The token of a file: of its place."""
    import xxhash

    return xxhash.xxh3_64_hexdigest(os.path.realpath(path).encode("utf-8", "surrogatepass"))
