"""Small stores stay mapped once read, within a budget, and say what is in the file all the same."""

from __future__ import annotations

import mmap
import re
import sys

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import InputError
from ensemblekit.store import blocks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/smaps is Linux's")


def make(path, seed):
    values = np.random.default_rng(seed).normal(size=(256, 4096)).astype("f4")
    with ek.create(path, {"u": ek.Field((4096,), "f4")}) as store:
        store.extend({"u": values})
    return values


def mapped(path):
    """Bytes of the file that are mapped to memory now."""
    total, inside = 0, False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) << 10
    return total


def mean(path):
    return ek.reduce(ek.open(path), {"u": ek.Moments()})["u"].mean


def test_a_small_store_stays_mapped_and_a_large_one_is_given_back(tmp_path, monkeypatch):
    small, large = tmp_path / "small.h5", tmp_path / "large.h5"
    known = {path: make(path, seed) for seed, path in enumerate((small, large))}
    monkeypatch.setattr(blocks, "KEPT_BYTES", small.stat().st_size)
    with open(large, "ab") as file:
        file.truncate(large.stat().st_size + mmap.PAGESIZE)       # a hole behind it: above the budget
    for path in (small, large, small, large):
        np.testing.assert_allclose(mean(path), known[path].mean(0, dtype=float), rtol=0, atol=1e-6)
    assert mapped(small) >= known[small].nbytes
    assert mapped(large) < known[large].nbytes / 2


def test_what_was_read_longer_ago_makes_room(tmp_path, monkeypatch):
    paths = [tmp_path / f"{k}.h5" for k in range(3)]
    known = [make(path, k) for k, path in enumerate(paths)]
    monkeypatch.setattr(blocks, "KEPT_BYTES", 2 * paths[0].stat().st_size)
    for path, values in zip(paths, known, strict=True):
        np.testing.assert_allclose(mean(path), values.mean(0, dtype=float), rtol=0, atol=1e-6)
    assert mapped(paths[0]) < known[0].nbytes / 2
    assert all(mapped(path) >= known[0].nbytes for path in paths[1:])
    np.testing.assert_allclose(mean(paths[0]), known[0].mean(0, dtype=float), rtol=0, atol=1e-6)     # and it comes back


def test_snapshots_appended_to_a_store_that_is_mapped_are_seen(tmp_path):
    path = tmp_path / "run.h5"
    values = make(path, 0)
    mean(path)
    with ek.open(path, "a") as store:
        store.extend({"u": values[:64] + 1})
    np.testing.assert_allclose(mean(path), np.concatenate([values, values[:64] + 1]).mean(0, dtype=float), atol=1e-6)


def test_times_that_run_backwards_are_named(tmp_path):
    with ek.create(tmp_path / "run.h5", {"u": ek.Field((), "f4")}) as store:
        with pytest.raises(InputError, match=r"run backwards; 1 comes after 3\. Sort"):
            store.extend({"u": np.zeros(3)}, times=[0.0, 3.0, 1.0])
        store.extend({"u": np.zeros(2)}, times=[0.0, 3.0])
        with pytest.raises(InputError, match="backwards after 3, the last time of the store"):
            store.extend({"u": np.zeros(1)}, times=[2.0])
