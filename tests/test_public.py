"""The public names: each says what it is."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

import pytest

import ensemblekit as ek
from ensemblekit.averaging.reducer import FillsSlots, JoinsInSpace, MergesInTime, TakesResult

NAMES = sorted(name for name, value in vars(ek).items()
               if not name.startswith("_") and not isinstance(value, types.ModuleType))


def undocumented(value: object) -> bool:
    """Whether it has no docstring of its own (a dataclass is given its signature as one, a child its parent's)."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return False
    doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    return not doc or doc.startswith(f"{getattr(value, '__name__', '')}(")


def test_the_core_is_public() -> None:
    assert {"Field", "Moments", "Serial", "Threads", "Processes", "Executor", "reduce"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_says_what_it_is(name: str) -> None:
    assert not undocumented(getattr(ek, name))


@pytest.mark.parametrize("name", NAMES)
def test_every_public_method_of_ours_says_what_it_does(name: str) -> None:
    """Methods that fill in a protocol are described there."""
    cls = getattr(ek, name)
    if not inspect.isclass(cls):
        return
    protocols = {m for p in (ek.Reducer, MergesInTime, JoinsInSpace, FillsSlots, TakesResult, ek.Engine, ek.SnapshotSource)
                 for m in vars(p)}
    silent = [f"{name}.{m}" for m, value in vars(cls).items()
              if not m.startswith("_") and m not in protocols
              and inspect.isfunction(getattr(value, "__func__", getattr(value, "fget", value)))
              and not value.__doc__]
    assert silent == []


# -- arguments -----------------------------------------------------------------------------------------------------

MOST_POSITIONAL = 6
OBSERVABLES = {"DensityProfile": 7, "Dihedral": 7, "HydrogenBonds": 7, "MSD": 7, "NativeContacts": 9, "PCA": 7, "RDF": 9,
               "RMSF": 7, "SASA": 7}
"""Observables that take more by position, and how many."""


def callables(module: object) -> Iterator[tuple[str, Any]]:
    """Public functions of ours, constructors that users call, and methods; results are made here alone."""
    for name, value in vars(module).items():
        if name.startswith("_") or not getattr(value, "__module__", "").startswith("ensemblekit"):
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and not issubclass(value, BaseException):
            if not dataclasses.is_dataclass(value) or hasattr(value, "prepare") or hasattr(value, "pieces"):
                yield name, value
            for method, held in vars(value).items():
                held = getattr(held, "__func__", held)
                if not method.startswith("_") and inspect.isfunction(held):
                    yield f"{name}.{method}", held


def positional(function: Any) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds and one.name not in ("self", "cls") for one in inspect.signature(function).parameters.values())


@pytest.mark.parametrize("module", ["ensemblekit", "ensemblekit.md", "ensemblekit.neural", "ensemblekit.rom",
                                    "ensemblekit.testing"])
def test_nobody_counts_seven_arguments(module: str) -> None:
    many = {name: n for name, function in callables(importlib.import_module(module))
            if (n := positional(function)) > max(MOST_POSITIONAL, OBSERVABLES.get(name, 0))}
    assert many == {}
