"""Potentials along an axis: planes of charge, the mean of the potential at points, layers, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.errors import EnsemblekitError, InputError
from tests.field_oracles import COULOMB
from tests.test_md_fields import averages, charged, planes

datafiles = pytest.importorskip("MDAnalysisTests.datafiles")


def test_between_planes_it_is_straight_and_layers_keep_their_step() -> None:
    density, distance, side, height = 0.01, 20.0, 16.0, 64.0
    universe, _ = planes(density, distance, side, height)
    found = averages(universe, tinfoil=md.PotentialProfile(n_bins=64), slab=md.PotentialProfile(n_bins=64, surface="slab-z"))
    z, unit = found["tinfoil"].coords["z"]
    assert unit == "Angstrom"
    np.testing.assert_allclose(z, np.arange(64) + 0.5)
    field = 4 * np.pi * COULOMB * density
    inside = (z > 23) & (z < 41)
    np.testing.assert_allclose(np.diff(found["tinfoil"].mean[inside]), -field * (1 - distance / height), atol=1e-9)
    np.testing.assert_allclose(np.diff(found["tinfoil"].mean[z < 22]), field * distance / height, atol=1e-9)
    np.testing.assert_allclose(np.diff(found["slab"].mean[z < 22]), 0, atol=1e-9)
    assert found["slab"].mean[-1] - found["slab"].mean[0] == pytest.approx(-field * distance)
    assert abs(found["tinfoil"].mean.mean()) < 1e-3


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_it_is_the_mean_of_the_potential_over_planes_of_a_skew_cell(axis: str) -> None:
    rng = np.random.default_rng(1)
    cell = np.array([[8.0, 0, 0], [3.0, 9.0, 0], [-2.0, 4.0, 10.0]])
    from MDAnalysis.lib.mdamath import triclinic_box

    box = triclinic_box(*cell)
    x = (rng.uniform(size=(1, 3, 3)) @ cell).astype(np.float32)
    universe = charged(x, np.array([1.0, -0.4, 0.2]), box)
    k = "xyz".index(axis)
    grid = np.stack(np.meshgrid(np.arange(24) / 24, np.arange(24) / 24, indexing="ij"), -1).reshape(-1, 2)
    points, cells = [], universe.trajectory[0].triclinic_dimensions
    for t in (0.05, 0.45, 0.75):
        share = np.insert(grid, k, t, axis=1)
        points.append(share @ cells)
    found = averages(universe, profile=md.PotentialProfile(axis, n_bins=10),
                     V=md.ElectricPotential(np.concatenate(points), exclude=None, tolerance=1e-6))
    expected = found["V"].mean.reshape(3, -1).mean(axis=1)
    # a plane of points sees a charge that is nearer than their spacing; that is why they are many
    np.testing.assert_allclose(found["profile"].mean[[0, 4, 7]], expected, atol=0.02 * np.ptp(found["profile"].mean))
    assert np.ptp(found["profile"].mean) > 1


def test_the_bins_do_not_matter_nor_where_atoms_are_counted() -> None:
    rng = np.random.default_rng(2)
    x, q = rng.uniform(0, 12, (2, 40, 3)), rng.normal(size=40)
    box = np.array([12, 12, 12, 90, 90, 90.0])
    one = averages(charged(x, q, box), p=md.PotentialProfile(n_bins=30))["p"].mean
    few = averages(charged(x + 12 * rng.integers(-2, 3, x.shape), q, box), p=md.PotentialProfile(n_bins=10))["p"].mean
    np.testing.assert_allclose(few, one[1::3], atol=2e-4 * np.ptp(one))


def test_a_bilayer_stays_in_the_middle() -> None:
    rng = np.random.default_rng(4)
    x = np.column_stack([rng.uniform(0, 10, (12, 2)), np.repeat([8.0, 12.0], 6)])
    frames = np.stack([(x + np.array([0, 0, shift])) % [10, 10, 30] for shift in (0.0, 9.0, 19.0, 25.0)])
    universe = charged(frames, np.repeat([1.0, -1.0], 6), np.array([10, 10, 30, 90, 90, 90.0]))
    universe.add_TopologyAttr("masses", np.ones(12))
    found = averages(universe, p=md.PotentialProfile(n_bins=60, center="all"), still=md.PotentialProfile(n_bins=60))
    assert found["p"].coords["z"][0][0] == pytest.approx(-14.75)
    assert found["p"].stderr.max() < 1e-5 * np.ptp(found["p"].mean)
    assert found["still"].stderr.max() > 0.1 * np.ptp(found["still"].mean)
    np.testing.assert_allclose(found["p"].mean, -found["p"].mean[::-1], atol=1e-4)


def test_what_cannot_be() -> None:
    universe, _ = planes(0.01, 20.0, 16.0, 64.0)
    boxed = np.array([9, 9, 9, 90, 90, 90.0])
    broken = charged(np.array([[[0.0, 0, np.nan], [1, 1, 1]]]), np.array([1.0, -1.0]), boxed)
    ions = charged(np.zeros((1, 2, 3)), np.array([1.0, -1.0]), boxed, bonds=[])
    cases: list[tuple[Any, Any, str]] = [
        (universe, md.PotentialProfile("w"), "axis="), (universe, md.PotentialProfile(n_bins=1), "n_bins="),
        (universe, md.PotentialProfile(surface="vacuum"), "'tinfoil' or 'slab-z'"),
        (universe, md.PotentialProfile("x", surface="slab-z"), "layers across z"),
        (universe, md.PotentialProfile(center=3), "center=.*selection"),
        (ions, md.PotentialProfile(surface="slab-z"), "molecules are charged"),
        (charged(np.zeros((1, 1, 3)), np.ones(1)), md.PotentialProfile(), "these frames have none"),
    ]
    for source, observable, message in cases:
        with pytest.raises(InputError, match=message):
            averages(source, p=observable)
    with pytest.raises(EnsemblekitError, match=r"frame 0.*atom 0 has coordinates that are not finite"):
        averages(broken, p=md.PotentialProfile())
