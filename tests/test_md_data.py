"""Trajectories as people have them, against MDAnalysis; with ENSEMBLEKIT_DATA, the folder they lie in."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemblekit import md

mda = pytest.importorskip("MDAnalysis")
DATA = os.environ.get("ENSEMBLEKIT_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="needs ENSEMBLEKIT_DATA")


def universe(*names: str, **more: Any) -> Any:
    warnings.simplefilter("ignore")
    return mda.Universe(*(str(Path(str(DATA)) / name) for name in names), **more)


@pytest.mark.filterwarnings("ignore")
def test_water() -> None:
    u = universe("md_water/water.xyz").load_new(str(Path(str(DATA)) / "md_water/water.trr"))
    g = md.average(u, {"g": md.RDF("name O", range=(0.0, 7.0), n_bins=70)}, equilibration=None)["g"]
    from MDAnalysis.analysis.rdf import InterRDF

    oxygen = u.select_atoms("name O")
    theirs = InterRDF(oxygen, oxygen, nbins=70, range=(0.0, 7.0), exclusion_block=(1, 1)).run()
    np.testing.assert_allclose(g.mean, theirs.results.rdf, rtol=2e-3, atol=2e-3)


@pytest.mark.filterwarnings("ignore")
def test_peptide_in_water() -> None:
    u = universe("md_peptide_water/md.gro", "md_peptide_water/md.xtc")
    results = md.average(u, {"rg": md.RadiusOfGyration("protein"), "near": md.Contacts("protein", "name OW", radius=3.5),
                             "shell": md.RDF("protein", "name OW and around 4 protein", range=(0, 5), n_bins=5, updating=True)},
                         whole=True, equilibration=None)
    protein = u.select_atoms("protein")
    np.testing.assert_allclose(results["rg"].series, [protein.radius_of_gyration() for _ in u.trajectory], rtol=1e-5)
    assert (results["near"].series > 50).all()
    assert results["shell.coordination"].mean[-1] > 1


@pytest.mark.filterwarnings("ignore")
def test_membrane() -> None:
    u = universe("md_membrane/A01JD.pdb", "md_membrane/A01JD.xtc")
    e = md.average(u, {"p": md.DensityProfile("name P*", kind="number", n_bins=60, centre="resname DPP*")},
                   equilibration=None)["p"]
    z, rho = e.coords["z"][0], e.mean
    above, below = z[z > 0][rho[z > 0].argmax()], z[z < 0][rho[z < 0].argmax()]
    assert 25 < above - below < 55                  # from head groups to head groups
    assert (e.low >= 0).all()


@pytest.mark.filterwarnings("ignore")
def test_dna() -> None:
    u = universe("md_dna_tpr/topology.tpr", "md_dna_tpr/ref_image.xtc")
    averages = md.average(u, {"m": md.Dipole("resname SOL and index 0:3000"), "rmsd": md.RMSD("nucleic", weights="mass"),
                              "h": md.HydrogenBonds(between=("nucleic", "nucleic"))}, equilibration=None, quiet=True)
    assert averages["rmsd"].series[0] == pytest.approx(0.0, abs=1e-3)
    assert (averages["rmsd"].series < 5).all()
    assert 20 < averages["h"].mean < 60                # twelve base pairs of two or three
