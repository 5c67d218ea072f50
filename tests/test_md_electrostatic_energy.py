"""Electrostatic energies between groups: pairs, all images, parts, bonded groups, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.errors import InputError
from tests.field_oracles import COULOMB
from tests.test_md_fields import averages, charged

datafiles = pytest.importorskip("MDAnalysisTests.datafiles")
KJ = 96.485332


def test_without_a_box_it_is_the_sum_over_pairs() -> None:
    rng = np.random.default_rng(1)
    x, q = rng.normal(0, 4, (3, 7, 3)), rng.normal(size=7)
    found = averages(charged(x, q), E=md.ElectrostaticEnergy("index 0 1", "index 2:6", by={"two": "index 2 3"}),
                     kcal=md.ElectrostaticEnergy("index 2:6", "index 0 1", unit="kcal mol-1"))
    r = np.linalg.norm(x[:, :2, None] - x[:, None, 2:], axis=-1)
    pairs = COULOMB * KJ * q[:2, None] * q[2:] / r
    np.testing.assert_allclose(found["E"].series, pairs.sum(axis=(1, 2)), rtol=1e-5)
    shares = [part.sum(axis=(1, 2)).mean() for part in (pairs[..., :2], pairs[..., 2:])]
    assert found["E"].groups.mean == pytest.approx(shares, rel=1e-5)
    assert list(found["E"].groups.coords["group"][0]) == ["two", "other"]
    np.testing.assert_allclose(found["kcal"].series * 4.184, found["E"].series, rtol=1e-9)      # from both sides the same


def test_with_all_images_it_is_the_charge_times_the_potential() -> None:
    water = md.read(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)
    one, rest = "index 0 1 2", "index 3:374"
    found = averages(water, E=md.ElectrostaticEnergy(one, rest, by="molecule", unit="eV", tolerance=1e-7),
                     V=md.ElectricPotential(one, rest, exclude=None, tolerance=1e-7))
    q = water.topology.charges[:3]
    assert found["E"].mean == pytest.approx(q @ found["V"].mean, abs=1e-6)
    assert found["E"].groups.mean.shape == (124,)
    assert found["E"].groups.mean.sum() == pytest.approx(found["E"].mean, abs=1e-10)
    assert found["E"].series.shape == (10,)
    assert found["E"].unit == "eV"


def test_groups_that_are_bonded_are_noted_and_can_be_left_out() -> None:
    x = np.array([[[0.0, 0, 0], [1.5, 0, 0], [3.0, 0, 0]]])
    u = charged(x, np.array([1.0, -1.0, 0.5]), bonds=[(0, 1), (1, 2)])
    found = averages(u, E=md.ElectrostaticEnergy("index 0", "index 1 2", unit="eV"))
    assert any("exclude=3 leaves out" in note for note in found.notes)
    without = averages(u, E=md.ElectrostaticEnergy("index 0", "index 1 2", exclude=1, unit="eV"))
    assert without["E"].mean == pytest.approx(COULOMB * 0.5 / 3)
    assert not any("exclude=3" in note for note in without.notes)


def test_what_cannot_be() -> None:
    u = charged(np.array([[[0.0, 0, 0], [1, 1, 1], [2, 0, 0]]]), np.array([1.0, -1.0, 0.0]))
    cases: list[tuple[Any, str]] = [
        (md.ElectrostaticEnergy("index 0 1", "index 1 2"), "1 atoms are in both groups.*and not"),
        (md.ElectrostaticEnergy("index 2", "index 0"), "charges of 'index 2' are 0"),
        (md.ElectrostaticEnergy("index 0", "index 2"), "charges of 'index 2' are 0"),
        (md.ElectrostaticEnergy("index 0", [1]), "b=.*selection"),
        (md.ElectrostaticEnergy("index 0", "index 1", unit="J"), "unit="),
        (md.ElectrostaticEnergy("index 0", "index 1", by="atom"), "by="),
    ]
    for observable, message in cases:
        with pytest.raises(InputError, match=message):
            averages(u, E=observable)
