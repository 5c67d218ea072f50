"""The public names: each says what it is."""

from __future__ import annotations

import inspect
import types

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
