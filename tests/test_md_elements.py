"""Elements and masses that would be guesses: refused for surfaces, told where something is weighted by mass."""

from __future__ import annotations

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.errors import InputError
from ensemblekit.md.elements import elements_of
from ensemblekit.md.topology import Topology

mda = pytest.importorskip("MDAnalysis")


def universe(names, resnames, residue, masses=None, elements=None, guess=False, n=8):
    u = mda.Universe.empty(len(names), n_residues=len(resnames), atom_resindex=residue, trajectory=True)
    u.add_TopologyAttr("names", names)
    u.add_TopologyAttr("resnames", resnames)
    u.add_TopologyAttr("resids", np.arange(1, len(resnames) + 1))
    if masses is not None:
        u.add_TopologyAttr("masses", masses)
    if elements is not None:
        u.add_TopologyAttr("elements", elements)
    if guess:
        u.guess_TopologyAttrs(to_guess=["types", "masses"])
    x = np.random.default_rng(1).normal(0, 0.2, (n, len(names), 3)) + np.arange(len(names))[:, None] * [4.0, 0, 0]
    return u.load_new(x.astype(np.float32))


def symbols(*args, **kwargs):
    u = universe(*args, **kwargs)
    return elements_of(Topology.of(u.atoms), np.arange(len(u.atoms)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("names", "resname", "masses", "want"), [
    (["BB", "SC1", "SC2"], "PHE", None, ["", "", ""]),                          # Martini's beads
    (["BB", "SC1", "SC2"], "PHE", [72.0, 45.0, 45.0], ["", "", ""]),
    (["BB", "SC1", "SC2"], "PHE", [72.0, 32.0, 36.0], ["", "", ""]),            # no mass of its own is sulphur's by chance
    (["NC3", "PO4", "GL1", "C1A"], "DPPC", None, [""] * 4),
    (["N", "CA", "HB1", "1HB", "OG", "SD"], "MET", None, ["N", "C", "H", "H", "O", "S"]),
    (["N", "H", "CA", "HA"], "ALA", [11.991, 3.024, 9.995, 3.024], ["N", "H", "C", "H"]),    # masses moved to hydrogens
    (["CB", "CH2"], "LIG", [14.027, 14.027], ["", ""]),                         # united atoms are no nitrogen
    (["CL1", "C2", "BR"], "LIG", [35.45, 12.011, 79.904], ["Cl", "C", "Br"]),
    (["C1", "H1", "CL2", "O3"], "LIG", None, ["C", "H", "Cl", "O"]),
    (["C1", "C2"], "HEX", None, ["", ""]),                                      # no hydrogens: beads or united atoms
    (["CA"], "CA", [40.078], ["Ca"]), (["NA"], "NA", None, ["Na"]), (["CA"], "GLY", None, ["C"]),
    (["OW", "HW1", "HW2"], "SOL", None, ["O", "H", "H"]), (["W"], "W", None, [""])])
@pytest.mark.parametrize("guess", [False, True])
def test_elements_are_known_or_they_are_not(names, resname, masses, want, guess):
    if masses is not None and guess:
        return
    assert symbols(names, [resname], [0] * len(names), masses, guess=guess) == want


def test_elements_of_the_topology_come_first():
    assert symbols(["BB", "X"], ["ALA"], [0, 0], elements=["C", ""]) == ["C", ""]


@pytest.mark.filterwarnings("ignore")
def test_a_surface_of_beads_is_refused_and_radii_or_elements_mend_it():
    pytest.importorskip("mdtraj")
    u = universe(["BB", "SC1", "BB", "BB"], ["PHE", "GLY", "GLY"], [0, 0, 1, 2], guess=True)
    with pytest.raises(InputError, match=r"element 4 of these 4 atoms are \(BB, SC1\).*radii=.*elements="):
        md.average(u, {"a": md.SASA("all")})
    with pytest.raises(InputError, match="radii="):
        md.average(u, {"a": md.SASA("all", updating=True)})
    far = universe(["BB"], ["GLY"], [0])
    carbon = md.average(far, {"a": md.SASA("all", elements={"BB": "C"}, n_points=200)})["a"].mean
    for radii in ({"BB": 2.6}, [2.6]):
        area = md.average(far, {"a": md.SASA("all", radii=radii, n_points=200)})["a"].mean
        assert area == pytest.approx(carbon * (4.0 / 3.1) ** 2, rel=1e-2)
    by_name = md.average(u, {"a": md.SASA("all", radii={"BB": 2.6, "SC1": 2.3})})["a"]
    one_each = md.average(u, {"a": md.SASA("all", radii=[2.6, 2.3, 2.6, 2.6])})["a"]
    assert by_name.mean == one_each.mean > 0
    assert md.average(u, {"a": md.SASA("all", radii={"BB": 2.6, "SC1": 2.3}, updating=True)})["a"].mean == pytest.approx(
        by_name.mean, rel=1e-4)
    carbon = md.average(u, {"a": md.SASA("all", elements={"BB": "C", "SC1": "c"})})["a"].mean
    assert carbon == pytest.approx(md.average(u, {"a": md.SASA("all", radii=[1.7] * 4)})["a"].mean, rel=1e-2)
    assert md.average(universe(["C1", "C2"], ["HEX"], [0, 0]), {"a": md.SASA("all", elements="names")})["a"].mean > 0
    for options, match in (({"radii": {"BB": 2.6}}, "nothing for the names SC1"), ({"radii": [1.0]}, "each of the 4 atoms"),
                           ({"radii": [0.0] * 4}, "above 0 in angstrom"), ({"elements": {"BB": "C"}}, r"1 of these 4 .*SC1")):
        with pytest.raises(InputError, match=match):
            md.average(u, {"a": md.SASA("all", **options)})


@pytest.mark.filterwarnings("ignore")
def test_guessed_masses_are_told_and_travel_with_stores(tmp_path):
    u = universe(["GL1", "CA", "N"], ["GLY"], [0, 0, 0], guess=True)
    wanted = {"rg": md.RadiusOfGyration("all"), "plain": md.RadiusOfGyration("all", weights=None)}
    for source in (u, md.ingest(u, None, tmp_path / "a.h5md")):
        notes = md.average(source, wanted).notes
        assert len(notes) == 1
        assert notes[0].startswith("rg: the topology has no masses; MDAnalysis guessed them")
        assert "1 of 3 count nothing" in notes[0]
    known = universe(["BB", "CA", "N"], ["GLY"], [0, 0, 0], masses=[72.0, 12.0, 14.0])
    assert not md.average(known, wanted).notes
