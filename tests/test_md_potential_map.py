"""Maps of the smeared potential: closed forms, other cells, the middle, files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.errors import InputError
from tests.field_oracles import COULOMB
from tests.test_md_fields import averages, charged

mda = pytest.importorskip("MDAnalysis")
datafiles = pytest.importorskip("MDAnalysisTests.datafiles")


@pytest.fixture(scope="module")
def water() -> Any:
    return md.read(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)


def smeared(charges: np.ndarray, positions: np.ndarray, cell: np.ndarray, points: np.ndarray, width: float) -> np.ndarray:
    """The potential at points by a plain sum over waves, all of them, each side of the origin."""
    n = np.stack(np.meshgrid(*[np.arange(-16, 17)] * 3, indexing="ij"), -1).reshape(-1, 3)
    k = 2 * np.pi * n[n.any(axis=1)] @ np.linalg.inv(cell).T
    k2 = (k * k).sum(axis=1)
    k, k2 = k[k2 < (6.5 / width) ** 2], k2[k2 < (6.5 / width) ** 2]
    waves = np.exp(-1j * positions @ k.T).T @ charges * np.exp(-0.5 * k2 * width**2) / k2
    return 4 * np.pi * COULOMB / abs(np.linalg.det(cell)) * (np.exp(1j * points @ k.T) @ waves).real


def grid_points(shape: tuple[int, ...], cell: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij"), -1).reshape(-1, 3) @ cell


@pytest.mark.parametrize("spacing", [4.0, 9.0])        # the second is coarser than the waves
def test_the_map_of_a_skew_cell_is_the_sum_over_waves(water: Any, spacing: float) -> None:
    found = md.average(water, {"map": md.PotentialMap(spacing, width=3.0, tolerance=1e-7)}, stop=1)["map"]
    cell = found.derived["cell"].mean
    u = mda.Universe(datafiles.PSF_TRICLINIC, datafiles.DCD_TRICLINIC)
    expected = smeared(u.atoms.charges, u.atoms.positions.astype(float), cell, grid_points(found.mean.shape, cell), 3.0)
    np.testing.assert_allclose(found.mean.ravel(), expected, rtol=0, atol=2e-6)
    assert (np.array([np.ptp(x) for x, _ in found.coords.values()]) > 0.5 * np.linalg.norm(cell, axis=1)).all()
    if spacing < 5:
        assert abs(found.mean.mean()) < 1e-7
    assert found.unit == "V"
    np.testing.assert_array_equal(found.derived["origin"].mean, 0)


def test_far_from_a_neutral_pair_the_map_is_the_potential_there(water: Any) -> None:
    """Charges that are narrow beside the distance act as points do."""
    positions = np.array([[[5.0, 5.0, 5.0], [9.0, 5.0, 5.0]]])
    universe = charged(positions, np.array([1.0, -1.0]), np.array([20, 20, 20, 90, 90, 90.0]))
    found = averages(universe, map=md.PotentialMap(1.0, width=1.0, tolerance=1e-8),
                     V=md.ElectricPotential([[5.0, 14.0, 10.0], [16.0, 3.0, 12.0]], tolerance=1e-8))
    assert [found["map"].mean[5, 14, 10], found["map"].mean[16, 3, 12]] == pytest.approx(found["V"].mean, abs=1e-6)


def test_the_error_is_what_was_asked_for(water: Any) -> None:
    best = averages(water, map=md.PotentialMap(2.0, width=1.0, tolerance=1e-9))["map"].mean
    for tolerance in (1e-2, 1e-4):
        found = md.average(water, {"map": md.PotentialMap(2.0, width=1.0, tolerance=tolerance)}, equilibration=None, stop=10)
        error = np.sqrt(((found["map"].mean - best) ** 2).mean())
        assert error < tolerance


def test_what_stays_in_the_middle(water: Any) -> None:
    rng = np.random.default_rng(3)
    body = np.array([[0.0, 0, 0], [1.5, 0, 0]])
    frames = np.stack([(body + rng.uniform(0, 12, 3)) % 12 for _ in range(4)])       # some of them cut by the box
    u = charged(frames, np.array([1.0, -1.0]), np.array([12, 12, 12, 90, 90, 90.0]), bonds=[(0, 1)])
    u.add_TopologyAttr("masses", [1.0, 1.0])
    found = averages(u, map=md.PotentialMap(1.0, width=1.0, center="all"), moving=md.PotentialMap(1.0, width=1.0))
    one = found["map"]
    assert np.abs(one.stderr).max() < 1e-3 * np.abs(one.mean).max()
    assert one.mean[5, 6, 6] > 0 > one.mean[7, 6, 6]
    np.testing.assert_allclose(one.mean[5, 6, 6], -one.mean[7, 6, 6], rtol=1e-4)
    assert found["moving"].stderr.max() > 0.1 * np.abs(found["moving"].mean).max()
    center = one.derived["origin"].mean + 6
    away = center - (frames[0, 0] + [0.75, 0, 0])
    np.testing.assert_allclose(away - 12 * np.rint(away / 12), 0, atol=1e-4)


def test_files_of_maps(water: Any, tmp_path: Path) -> None:
    import gridData

    found = averages(water, map=md.PotentialMap(3.0))["map"]
    cell, shape = found.derived["cell"].mean, found.mean.shape
    md.write_map(found, tmp_path / "map.dx")
    text = (tmp_path / "map.dx").read_text().splitlines()
    deltas = [[float(x) for x in line.split()[1:]] for line in text if line.startswith("delta")]
    np.testing.assert_allclose(np.array(deltas) * np.array(shape)[:, None], cell, rtol=1e-5)
    numbers = [float(x) for line in text[8:] if line[:1] in "-0123456789" for x in line.split()]
    np.testing.assert_allclose(numbers, found.mean.ravel(), rtol=1e-4, atol=1e-4)
    md.write_map(found, tmp_path / "map.cube", value="stderr")
    lines = (tmp_path / "map.cube").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines[2:6]] == [1, *shape]
    steps = np.array([line.split()[1:] for line in lines[3:6]], float) * np.array(shape)[:, None] * 0.529177210903
    np.testing.assert_allclose(steps, cell, atol=1e-4)
    values = np.array(" ".join(lines[7:]).split(), float) * 27.211386245988
    np.testing.assert_allclose(values, found.stderr.ravel(), rtol=1e-5, atol=1e-9)
    square = averages(charged(np.zeros((1, 1, 3)), np.ones(1), np.array([9, 9, 9, 90, 90, 90.0])), map=md.PotentialMap(1.0))
    md.write_map(square["map"], tmp_path / "square.dx")
    same = gridData.Grid(str(tmp_path / "square.dx"))
    np.testing.assert_allclose(same.grid, square["map"].mean, rtol=1e-5)
    assert same.grid.argmax() == 0
    np.testing.assert_allclose(same.delta, 1.0)


def test_what_cannot_be(water: Any, tmp_path: Path) -> None:
    unboxed = charged(np.zeros((2, 2, 3)), np.array([1.0, -1.0]))
    for source, observable, message in [
        (water, md.PotentialMap(0), "spacing=.*0.05 angstrom on"), (water, md.PotentialMap(width=0.0), "width=.*0.1 angstrom"),
        (water, md.PotentialMap(width=float("nan")), "width="), (water, md.PotentialMap(tolerance=0), "tolerance=.*V on"),
        (water, md.PotentialMap(center=[1, 2, 3]), "center=.*a selection"),
        (unboxed, md.PotentialMap(), "these frames have none"),
        (charged(np.zeros((1, 1, 3)), np.zeros(1), np.array([9, 9, 9, 90, 90, 90.0])), md.PotentialMap(), "are 0"),
    ]:
        with pytest.raises(InputError, match=message):
            averages(source, x=observable)
    found = averages(water, map=md.PotentialMap(5.0), rg=md.RadiusOfGyration("index 0 1 2"))
    for answer, path, value, message in [(found["map"], "map.ccp4", "mean", r"\.dx or \.cube"),
                                         (found["map"], "map.dx", "median", '"mean" or "stderr"'),
                                         (found["rg"], "map.dx", "mean", "that of md.PotentialMap")]:
        with pytest.raises(InputError, match=message):
            md.write_map(answer, tmp_path / path, value=value)
    assert not list(tmp_path.iterdir())
