"""Snapshots in order of time, of fields of one source or of several, and as a whole in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.rom.decompose.problem import Problem
from ensemblekit.rom.decompose.task import Task
from ensemblekit.source import ArraySource, DescribedSource


def rows_of(task: Task) -> Iterator[tuple[dict[str, np.ndarray], Any, Any]]:
    """Blocks of all fields in order of time, with times and weights: one read."""
    task.reads.add(task.problem.nbytes)
    return side_by_side({part.name: (part.source, part.key) for part in task.problem.parts}, max(task.plan.limit, 1))


def side_by_side(fields: Mapping[str, tuple[Any, str]], limit: int) -> Iterator[tuple[dict[str, np.ndarray], Any, Any]]:
    """Snapshots of fields of one source or of several, (name -> (m, *item), times, weights): blocks as long as all have them.

    Times and weights are those of the first source. Raises InputError where one source ends before another.
    """
    groups: dict[int, tuple[Any, dict[str, str]]] = {}
    for name, (source, key) in fields.items():
        groups.setdefault(id(source), (source, {}))[1][name] = key
    readers = [_blocks(source, keys, max(1, limit // len(groups))) for source, keys in groups.values()]
    held: list[Any] = [None] * len(readers)
    while True:
        for k, reader in enumerate(readers):
            if held[k] is None:
                held[k] = next(reader, None)
        if all(one is None for one in held):
            return
        if any(one is None for one in held):
            ended = next(name for k, (_, keys) in enumerate(groups.values()) if held[k] is None for name in keys)
            raise InputError(f"the fields differ in their number of snapshots: {ended!r} ended before the others")
        m = min(len(next(iter(values.values()))) for values, _, _ in held)
        joined: dict[str, np.ndarray] = {}
        for k, (values, times, weights) in enumerate(held):
            joined |= {name: x[:m] for name, x in values.items()}
            if k == 0:
                first = (None if times is None else times[:m], None if weights is None else weights[:m])
            rest = ({name: x[m:] for name, x in values.items()}, None if times is None else times[m:],
                    None if weights is None else weights[m:])
            held[k] = rest if len(next(iter(values.values()))) > m else None
        yield {name: joined[name] for name in fields}, *first


def _blocks(source: DescribedSource, keys: Mapping[str, str], limit: int) -> Iterator[tuple[dict[str, np.ndarray], Any, Any]]:
    for piece in source.pieces(list(dict.fromkeys(keys.values())), "time", False, limit):
        for block in piece.blocks():
            if len(block):
                yield {name: np.asarray(block.fields[key]) for name, key in keys.items()}, block.times, block.weights


def in_memory(problem: Problem, engine: Engine | None) -> Problem:
    """The same with all snapshots read into memory."""
    parts = []
    for part in problem.parts:
        values = reduce(part.source, {"x": (part.key, Series())}, fields=[part.key], engine=engine)["x"]
        parts.append(replace(part, source=ArraySource.of({part.key: values})))
    return replace(problem, parts=tuple(parts))
