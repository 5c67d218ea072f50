"""Arrays of a run that do not change with time: kept through appending, whole files, truncation and seal, and verified."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import InputError, StoreDamagedError
from ensemblekit.store.store import Store

CONSTANTS = {"mesh/points": np.arange(12.0).reshape(4, 3), "viscosity": np.array(1e-3), "none": np.zeros((0, 3), "i4"),
             "mask": np.array([True, False]), "big": np.arange(3, dtype=">i4")}


@pytest.mark.parametrize("in_place", [True, False])
def test_they_stay(tmp_path: Path, in_place: bool) -> None:
    path = tmp_path / "a.h5"
    with Store.create(path, {"u": ek.Field((2,))}, capacity=4, constants=CONSTANTS, in_place=in_place) as store:
        assert_same(store.constants)
        for k in range(6):             # several files
            store.append({"u": [k, k]})
            store.flush()
        store.truncate(5)
        assert_same(store["u"].constants)
        assert ek.verify(path).ok
    again = ek.open(path)
    assert_same(again.constants)
    with pytest.raises(ValueError, match="read-only"):
        again.constants["mask"][0] = False
    assert_same(again.window(3).constants)
    with ek.open(path, "a") as store:
        assert_same(store.seal(compression="lossless").constants)
    assert ek.verify(path).ok
    assert len(ek.open(path)) == 5


def assert_same(arrays) -> None:
    assert set(arrays) == set(CONSTANTS)
    for name, values in CONSTANTS.items():
        np.testing.assert_array_equal(arrays[name], values)


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with ek.create(path, {"u": ek.Field()}, constants=CONSTANTS) as store:
        store.append({"u": 1})
        store.seal()
    with h5py.File(path, "r+") as f:
        f["ensemblekit/constants/mesh/points"][1, 1] = 7
    report = ek.verify(path)
    assert not report.ok
    assert "mesh/points" in str(report)
    with pytest.raises(StoreDamagedError, match="mesh/points"):
        _ = ek.open(path).constants


def test_bad_ones_are_refused(tmp_path: Path) -> None:
    for bad in ({"/x": np.zeros(2)}, {"": np.zeros(2)}, {"a/../b": np.zeros(2)}, {"x": np.array(["a"])}, [1]):
        with pytest.raises(InputError):
            ek.create(tmp_path / "a.h5", {"u": ek.Field()}, constants=bad)
    assert not list(tmp_path.glob("*.h5"))


def test_a_store_without_says_so(tmp_path: Path) -> None:
    with ek.create(tmp_path / "a.h5", {"u": ek.Field()}) as store:
        assert store.constants == {}
        with pytest.raises(InputError, match="has no mesh"):
            store.publish()
