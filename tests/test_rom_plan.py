"""The plans of two hundred problems, as they were when every route's cost stood in one function: none may change unseen."""

import dataclasses
import importlib
import itertools
import json
from pathlib import Path

import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import EnsemblekitError

EXPECTED = Path(__file__).with_name("rom_plans.json")
SIZES = [(30, 400), (200, 20_000), (2_000, 60), (3_000, 300_000), (100_000, 3_000)]
SOURCES = [("tiles", "<f4"), ("tiles", "<f8"), ("tiles", "<c16"), ("rows", "<f4"), ("rows", "<f8"), ("once", "<f8")]
HOW = [{"rank": 10}, {"energy": 0.99}, {"rank": 10, "method": "randomized", "power": 3, "memory_limit": "64MiB"},
       {"rank": 25, "scale": "max", "memory_limit": "200MB"}, {"tolerance": 1e-3, "method": "incremental"},
       {"rank": 8, "method": "tsqr", "memory_limit": "8GiB"}, {"rank": 5, "method": "gram", "memory_limit": "100MiB"}]


class Unread:
    """A source of which a plan may know everything but the numbers."""

    def __init__(self, n, size, access, dtype):
        self.fields = {"u": ek.Field((size,), dtype)}
        self.lengths, self.access, self.time_unit = None if access == "once" else (n,), access, ""

    def window(self, start=0, stop=None, step=1):
        raise AssertionError("a plan reads nothing")

    def pieces(self, names, cut, tiled, limit):
        raise AssertionError("a plan reads nothing")


def problems():
    for (n, size), (access, dtype), how in itertools.product(SIZES, SOURCES, HOW):
        yield f"{n} x {size} {dtype} {access} {how}", Unread(n, size, access, dtype), how


def planned(source, how):
    try:
        return dataclasses.asdict(rom.plan(source, engine=ek.Threads(2), **how))
    except EnsemblekitError as error:
        return f"{type(error).__name__}: {error}"


@pytest.fixture(autouse=True)
def of_one_machine(monkeypatch):
    """However much memory this one has free."""
    for name in ("planning", "krylov"):
        monkeypatch.setattr(importlib.import_module(f"ensemblekit.rom.decompose.{name}"), "page_cache", lambda: 4e9)


def test_plans_are_what_they_were():
    expected = json.loads(EXPECTED.read_text("utf-8"))
    plans = {name: planned(source, how) for name, source, how in problems()}
    assert len(plans) >= 200
    assert list(plans) == list(expected)
    assert [name for name in plans if plans[name] != expected[name]] == []
    routes = {plan["route"] for plan in plans.values() if isinstance(plan, dict)}
    assert routes == {"gram", "covariance", "tsqr", "randomized", "incremental"}
    assert any(isinstance(plan, str) for plan in plans.values())
