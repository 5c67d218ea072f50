"""Maps of residues: by cells as by all pairs, one half of a symmetric one, and frames that hold no numbers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.md.observables.contacts import contact_maps, count_contacts

mda = pytest.importorskip("MDAnalysis")
from MDAnalysis.lib.mdamath import triclinic_vectors  # noqa: E402


def by_all_pairs(x, a, b, row, column, shape, radius, boxes):
    from ensemblekit.md.kernels_geometry import contact_map
    from ensemblekit.md.whole import frames_of

    out = np.zeros((len(x), *shape), np.uint8)
    contact_map(*frames_of(x), a, b, row, column, radius, boxes, out)
    return out.view(bool)


@pytest.mark.parametrize("cell", [None, [30, 34, 38, 90, 90, 90], [30, 30, 30, 60, 75, 110]])
@pytest.mark.parametrize("same", [True, False])
def test_cells_find_what_all_pairs_find(cell, same):
    rng = np.random.default_rng(3)
    x = rng.uniform(-20, 60, (3, 400, 3)).astype(np.float32)
    x[:, 7] = x[:, 8]       # two atoms in one place
    boxes = np.zeros((0, 3, 3)) if cell is None else np.tile(triclinic_vectors(cell).astype(float), (3, 1, 1))
    a = np.arange(0, 300)
    b = a if same else np.arange(150, 400)
    row, column = a // 5, b // 4
    shape = (row.max() + 1, column.max() + 1)
    for radius in (0.5, 4.5, 11.0):
        maps = contact_maps(x, a, b, row, column, shape, radius=radius, boxes=boxes)
        np.testing.assert_array_equal(maps, by_all_pairs(x, a, b, row, column, shape, radius, boxes))
        assert radius < 1 or 0 < maps.mean() < 1
    alone = contact_maps(x, a, b, a, b, (400, 400), radius=4.5, boxes=boxes)
    pairs = count_contacts(x, a, b, 4.5, boxes)
    together = alone | alone.transpose(0, 2, 1)
    np.testing.assert_array_equal(np.triu(together, 1).sum((1, 2)), pairs)


def universe(n=6, residues=30, each=4):
    rng = np.random.default_rng(1)
    u = mda.Universe.empty(residues * each, n_residues=residues, atom_resindex=np.repeat(np.arange(residues), each),
                           trajectory=True)
    u.add_TopologyAttr("names", ["CA"] * residues * each)
    u.add_TopologyAttr("resids", np.arange(residues))
    x = rng.normal(0, 8, (1, residues * each, 3)) + rng.normal(0, 1, (n, residues * each, 3))
    return u.load_new(x.astype(np.float32))


def test_a_symmetric_map_is_that_of_both_halves():
    u = universe(12)
    results = md.average(u, {"one": md.ContactMap("all"), "two": md.ContactMap("all", "all"), "d": md.DistanceMap("index 0:20"),
                             "pairs": md.DistanceMap("index 0:4", "index 5:20")}, equilibration=None)
    for name in ("mean", "stderr", "n_eff"):
        np.testing.assert_allclose(getattr(results["one"], name), getattr(results["two"], name), rtol=1e-12)
    np.testing.assert_array_equal(results["one"].mean, results["one"].mean.T)
    assert results["d"].mean.shape == (21, 21)
    np.testing.assert_array_equal(np.diag(results["d"].mean), 0)
    np.testing.assert_allclose(results["d"].mean[:5, 5:], results["pairs"].mean, rtol=1e-6)
    np.testing.assert_allclose(results["d"].stderr[:5, 5:], results["pairs"].stderr, rtol=1e-6)
    assert results["d"].interval[0].shape == (21, 21)
    for engine_free in (results["one"], results["d"]):
        assert list(engine_free.coords) == ["residue", "residue_b"]


def test_a_frame_without_numbers_is_no_frame_without_contacts():
    u = universe()
    u.trajectory.get_array()[3, 5] = np.nan
    averages = md.average(u, {"m": md.ContactMap("all"), "few": md.ContactMap("index 0:7")}, equilibration=None)
    for name in averages:
        assert np.isnan(averages[name].mean).all()
        assert not averages[name].converged


@pytest.mark.parametrize("second", [None, "index 60:119"])
def test_pairs_that_never_meet_carry_no_statistics(second, monkeypatch):
    """The answer is that of sums for all pairs, and only those that ever met have any."""
    from ensemblekit.averaging.observed import Observed

    u = universe(40)
    held = []
    restored = Observed.merge
    monkeypatch.setattr(Observed, "merge", lambda self, later: (held.append(self), restored(self, later))[1])
    weights = np.linspace(0.5, 1.5, 40)
    observable = md.ContactMap("index 0:79", second, radius=1.5)
    estimate = md.average(u, {"m": observable}, frame_weights=weights, equilibration=None)["m"]
    shape = (20, 20 if second is None else 15)

    def dense(atoms):
        return contact_maps(atoms.positions[None], *sides(second), shape, radius=1.5, boxes=np.zeros((0, 3, 3)))[0]

    every = md.average(u, {"m": dense}, frame_weights=weights, equilibration=None)["m"]
    for name in ("mean", "stderr", "n_eff", "correlation_time"):
        np.testing.assert_allclose(getattr(estimate, name), getattr(every, name), rtol=1e-9, err_msg=name)
    ever = (every.mean > 0).sum() if second else np.triu(every.mean > 0).sum()
    assert 0 < ever < every.mean.size / 3
    assert estimate.verdict == every.verdict
    assert all(len(state.elements) <= ever for state in held if state.keeps == "nonzero")


def sides(second):
    a = np.arange(80)
    b = a if second is None else np.arange(60, 120)
    return a, b, a // 4, (b - b[0]) // 4


def test_contacts_of_the_discarded_start_alone_are_none():
    """Pairs that met before equilibration only are 0 in the map, with the others of the frames that are kept."""
    u = universe(n=200)
    positions = np.random.default_rng(5).uniform(0, 60, (200, len(u.atoms), 3)).astype(np.float32)
    positions[:40, :8] *= 0.05         # two residues that meet in the first frames, and then part
    positions[40:, :4] += 500
    u.load_new(positions)
    whole = md.average(u, {"m": md.ContactMap("all")}, equilibration=64, quiet=True)["m"]
    late = md.average(u, {"m": md.ContactMap("all")}, start=64, equilibration=None, quiet=True)["m"]
    assert whole.n_discarded == 64
    np.testing.assert_allclose(whole.mean, late.mean, atol=1e-12)
    assert whole.mean[0, 1] == 0


def test_large_maps_keep_two_numbers_a_pair(monkeypatch):
    u = universe(200, residues=400, each=1)
    observables = {"d": md.DistanceMap("all")}
    full = md.average(u, observables, equilibration=None)["d"]
    monkeypatch.setattr("ensemblekit.md.memory.LARGE_STATE", 0)
    monkeypatch.setattr("ensemblekit.md.memory.ROW_BYTES", 1 << 20)
    monkeypatch.setattr("ensemblekit.averaging.observed.ELEMENTS", 1 << 11)
    tracemalloc.start()
    estimate = md.average(u, observables, equilibration=None)["d"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    one = 400 * 399 // 2 * 8
    assert peak < 4 * one * 16
    np.testing.assert_allclose(estimate.mean, full.mean, rtol=1e-12)
    assert np.median(np.abs(estimate.stderr / np.where(full.stderr > 0, full.stderr, 1) - 1)) < 0.15
    assert 0.9 < np.mean(estimate.high - estimate.low) / np.mean(full.high - full.low) < 1.2
    np.testing.assert_array_equal(estimate.mean, estimate.mean.T)


def test_large_maps_leave_out_frames_that_are_missing(monkeypatch):
    """As small ones do: a frame without numbers is dropped whatever is kept of the others."""
    monkeypatch.setattr("ensemblekit.md.memory.LARGE_STATE", 0)
    u = universe(200, residues=30, each=1)

    def place(atoms):
        return np.full((30, 3), np.nan) if atoms.universe.trajectory.ts.time in (4.0, 7.0) else atoms.positions

    estimate = md.average(u, {"x": md.Function(place)}, equilibration=None, missing="drop")["x"]
    assert np.isfinite(estimate.mean).all()
