"""Doubts about elements: not of those that are 0 by nature, not of numbers that nobody is shown, n_eff never above n."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom

needs_mda = pytest.mark.skipif(importlib.util.find_spec("MDAnalysis") is None, reason="needs MDAnalysis")


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(4).normal(size=(400, 6))


@pytest.mark.parametrize(("average", "constant"), [
    (lambda x: ek.average(x), "1 of 6 elements never change"),
    (lambda x: rom.average({"p": x}, "mean")["p_mean"], "1 of 6 numbers never change"),
    (lambda x: rom.average({"p": x}, "rms")["p_rms"], "")], ids=["core", "mean", "rms"])
def test_what_is_0_by_nature_is_no_doubt(average, constant, noise):
    x = noise.copy()
    x[:, 1:4] = 0.0
    assert average(x).verdict == ""
    assert average(x).converged
    x[:, 2] = 7.0       # a constant that is not 0 is told; its fluctuation is 0
    assert average(x).verdict == constant
    none = average(np.zeros((400, 6)))
    assert not none.converged
    assert "6 of 6" in none.verdict
    assert (np.asarray(average(noise).n_eff) <= 400).all()


@needs_mda
def test_numbers_behind_an_observable_are_not_counted():
    import MDAnalysis as mda

    from ensemblekit import md

    rng = np.random.default_rng(2)
    u = mda.Universe.empty(60, n_residues=20, atom_resindex=np.repeat(np.arange(20), 3), trajectory=True)
    u.add_TopologyAttr("names", ["O", "H", "H"] * 20)
    u.add_TopologyAttr("charges", [-0.8, 0.4, 0.4] * 20)
    u.add_TopologyAttr("masses", [16.0, 1.0, 1.0] * 20)
    u.add_TopologyAttr("bonds", [(3 * k, 3 * k + j) for k in range(20) for j in (1, 2)])
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[:20] * 4.0
    x = np.repeat(grid, 3, axis=0)[None] + rng.normal(size=(120, 60, 3)) * np.tile([0.3, 0.6, 0.6], 20)[:, None]
    u.load_new(x.astype(np.float32), dimensions=np.tile([12.0, 12, 12, 90, 90, 90], (120, 1)))
    averages = md.average(u, {"rdf": md.RDF("name O", "name O", range=(0, 6)), "msd": md.MSD("all"),
                              "eps": md.DielectricConstant(temperature=300)}, equilibration=None, quiet=True)
    for name in ("rdf", "rdf.coordination", "eps", "eps.tensor"):
        estimate = averages[name]
        assert "never change" not in estimate.verdict, name
        assert estimate.converged, (name, estimate.verdict)
        inside = np.asarray(estimate.mean) == 0
        if name == "rdf":
            assert inside.sum() > 5         # the empty core
            assert np.isnan(estimate.n_eff[inside]).all()
    for name in averages:
        for estimate in (averages[name], *averages[name].derived.values()):
            n_eff = np.asarray(estimate.n_eff, float)
            assert np.nanmax(n_eff, initial=0) <= estimate.n, name
