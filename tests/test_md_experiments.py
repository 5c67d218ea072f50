"""What NMR, SAXS, FRET and spin labels see: closed forms, published digits, and other programs' answers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("MDAnalysis")
pytest.importorskip("gemmi")

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.errors import InputError
from ensemblekit.md.conformer_source import ConformerSource
from ensemblekit.md.ensemble_files import topology_of_columns

DATA = Path(os.environ.get("ENSEMBLEKIT_DATA", "/nonexistent"))
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs $ENSEMBLEKIT_DATA")


def models_of(positions: np.ndarray, elements: str = "", weights: np.ndarray | None = None) -> ConformerSource:
    """Models (n, atoms, 3) of a chain, one residue an atom: numbered from 1, elements by their letters."""
    n = positions.shape[1]
    symbols = np.array(list(elements or "C" * n))
    columns = {"chain": np.full(n, "A"), "number": np.arange(1, n + 1), "insertion": np.full(n, ""),
               "residue": np.full(n, "LIG"), "atom": symbols, "alternative": np.full(n, ""), "element": symbols,
               "mass": np.full(n, 1.0),
               "occupancy": np.ones(n), "b": np.zeros(n)}
    return ConformerSource(np.asarray(positions, np.float64), topology_of_columns(columns), weights)


def one(source: object, observable: object) -> ek.Estimate:
    return md.average(source, {"x": observable}, quiet=True)["x"]


def apart(*distances: float) -> np.ndarray:
    """Models of two atoms at these distances."""
    x = np.zeros((len(distances), 2, 3))
    x[:, 1, 2] = distances
    return x


def test_noe_averages_inverse_powers() -> None:
    source = models_of(apart(2.0, 4.0))
    assert one(source, md.NOE([("resid 1", "resid 2")])).mean[0] == pytest.approx(2.2391306314, abs=1e-9)
    assert one(source, md.NOE([("resid 1", "resid 2")], power=3)).mean[0] == pytest.approx(2.4228274571, abs=1e-9)


def test_noe_of_equivalent_protons_and_its_error() -> None:
    x = np.random.default_rng(2).normal(size=(30, 5, 3)) * 4
    source = models_of(x)
    r = np.linalg.norm(x[:, :2, None] - x[:, None, 2:], axis=-1).reshape(30, 6)
    total = (r**-6).sum(axis=1)
    answer = one(source, md.NOE([("resid 1 2", "resid 3:5"), ("resid 1", "resid 2")]))
    assert answer.mean[0] == pytest.approx(total.mean() ** (-1 / 6), rel=1e-10)
    alike = one(source, md.NOE([("resid 1 2", "resid 3:5")], equivalent="mean"))
    assert alike.mean[0] == pytest.approx((total.mean() / 6) ** (-1 / 6), rel=1e-10)
    left_out = np.array([np.delete(total, k).mean() ** (-1 / 6) for k in range(30)])
    assert answer.stderr[0] == pytest.approx(np.sqrt(29 / 30 * ((left_out - left_out.mean()) ** 2).sum()), rel=1e-8)


@needs_data
@pytest.mark.filterwarnings("ignore:ATOMIC_NUMBER record not found", "ignore:all 100 frames have the time 0 ps")
def test_couplings_of_a_peptide() -> None:
    files = DATA / "md_small"
    run = md.read(files / "DPDP.prmtop", files / "DPDP.nc")
    kinds = {"bax2007": md.JCoupling(), "bax1997": md.JCoupling(model="Bax1997"), "rut": md.JCoupling(model="Ruterjans1999"),
             "c": md.JCoupling("HN-C"), "cb": md.JCoupling("HN-CB")}
    answers = md.average(run, kinds, equilibration=None)
    for name, mean in (("bax2007", 7.2133402), ("rut", 6.9690080), ("bax1997", 7.5435341), ("c", 0.7501290), ("cb", 1.8983918)):
        assert np.mean(answers[name].mean) == pytest.approx(mean, abs=1e-5), name
    assert len(answers["bax2007"].mean) == 18
    assert len(answers["cb"].mean) == 16
    assert answers["bax2007"].mean[0] == pytest.approx(7.8030213, abs=1e-5)
    assert any("2 residues without an H on N were left out: PRO" in note for note in answers.notes)


@pytest.mark.filterwarnings("ignore:Unlikely unit cell vectors")
def test_couplings_agree_with_mdtraj() -> None:
    mdtraj = pytest.importorskip("mdtraj")
    files = pytest.importorskip("MDAnalysisTests.datafiles")
    trajectory = mdtraj.load(files.PDB_multiframe)
    ensemble = md.ConformerEnsemble.read(files.PDB_multiframe)
    for kind, peer in (("HN-HA", mdtraj.compute_J3_HN_HA), ("HN-C", mdtraj.compute_J3_HN_C),
                       ("HN-CB", mdtraj.compute_J3_HN_CB)):
        atoms, values = peer(trajectory)
        numbers = np.array([trajectory.topology.atom(k).residue.resSeq for k in atoms[:, 2]])
        answer = one(ensemble, md.JCoupling(kind))
        shared = np.isin(numbers, answer.coords["residue"][0])
        assert answer.mean == pytest.approx(values.mean(axis=0)[shared], abs=1e-4)


def test_any_coupling_by_its_coefficients() -> None:
    x = np.random.default_rng(4).normal(size=(12, 4, 3))
    four = ["resid 1", "resid 2", "resid 3", "resid 4"]
    answer = one(models_of(x), md.JCoupling(select=four, coefficients=(9.0, -1.0, 0.5, 30.0)))
    from MDAnalysis.lib.distances import calc_dihedrals

    phi = calc_dihedrals(*np.swapaxes(x, 0, 1)) + np.radians(30)
    assert answer.mean[0] == pytest.approx((9 * np.cos(phi) ** 2 - np.cos(phi) + 0.5).mean(), abs=1e-6)
    assert answer.unit == "Hz"


def bond_models(vectors: np.ndarray, weights: np.ndarray | None = None) -> ConformerSource:
    """Models of one N-H bond along each of these vectors (n, 3)."""
    x = np.zeros((len(vectors), 2, 3))
    x[:, 1] = vectors
    n = 2
    columns = {"chain": np.full(n, "A"), "number": np.array([5, 5]), "insertion": np.full(n, ""), "residue": np.full(n, "ALA"),
               "atom": np.array(["N", "H"]), "alternative": np.full(n, ""), "element": np.array(["N", "H"]),
               "mass": np.ones(n), "occupancy": np.ones(n), "b": np.zeros(n)}
    return ConformerSource(x + 3.0, topology_of_columns(columns), weights)


def test_order_parameters_in_closed_form() -> None:
    free = md.OrderParameter(fit=False)
    beta, p = np.radians(70.0), 0.3
    two = np.array([[0, 0, 1.0], [np.sin(beta), 0, np.cos(beta)]])
    assert one(bond_models(two, np.array([1 - p, p])), free).mean[0] == pytest.approx(0.4436960004, abs=1e-9)
    z, w = np.polynomial.legendre.leggauss(20)
    phi = np.arange(12) * 2 * np.pi / 12

    def cap(lowest: float) -> tuple[np.ndarray, np.ndarray]:
        height = (z + 1) / 2 * (1 - lowest) + lowest
        side = np.sqrt(1 - height**2)
        vectors = np.stack([np.outer(side, np.cos(phi)), np.outer(side, np.sin(phi)), np.outer(height, np.ones(12))], axis=-1)
        return vectors.reshape(-1, 3), np.repeat(w, 12)

    assert one(bond_models(*cap(np.cos(np.radians(30)))), free).mean[0] == pytest.approx(0.6528845264, abs=1e-8)
    assert one(bond_models(*cap(-1.0)), free).mean[0] == pytest.approx(0.0, abs=1e-9)


def test_order_parameters_of_windows_leave_tumbling_out() -> None:
    files = pytest.importorskip("MDAnalysisTests.datafiles")
    run = md.read(files.PSF, files.DCD, dt=1.0)
    bonds = {"select_a": "name N and resid 10:20", "select_b": "name HN and resid 10:20"}
    whole = md.average(run, {"x": md.OrderParameter(**bonds)}, equilibration=None, quiet=True)["x"]
    short = one(run, md.OrderParameter(**bonds, window=7.0))
    assert (short.mean > whole.mean).all()
    assert len(short.mean) == 11
    assert ((whole.mean > 0) & (whole.mean <= 1)).all()
    with pytest.raises(InputError, match="which frame comes after which"):
        one(models_of(apart(2.0, 3.0), "NH"), _same_residue())


def _same_residue() -> md.OrderParameter:
    return md.OrderParameter("resid 1", "resid 1", fit=False, window=3.0)


def test_fret_averages_efficiencies() -> None:
    answer = one(models_of(apart(40.0, 60.0)), md.FRET("resid 1", "resid 2", r0=50.0))
    assert answer.mean == pytest.approx(0.5215908509, abs=1e-9)
    assert answer.distance.mean == pytest.approx(50.0)
    k = ((50 / 40) ** 6 + (50 / 60) ** 6) / 2
    assert answer.dynamic.mean == pytest.approx(k / (1 + k), rel=1e-9)


def test_relaxation_by_a_spin_label() -> None:
    answer = one(models_of(apart(20.0, 20.0)), md.PRE("resid 1", "resid 2"))
    assert answer.mean[0] == pytest.approx(3.085, abs=5e-4)
    assert answer.ratio.mean[0] == pytest.approx(0.7410, abs=1e-4)
    near = one(models_of(apart(10.0, 20.0)), md.PRE("resid 1", "resid 2"))
    assert near.mean[0] == pytest.approx(3.085 * (64 + 1) / 2, rel=2e-4)


def debye(x: np.ndarray, factors: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The double sum."""
    r = np.linalg.norm(x[:, None] - x[None], axis=-1)
    return np.array([(np.outer(f, f) * np.sinc(k * r / np.pi)).sum() for k, f in zip(q, factors.T, strict=True)])


def test_scattering_of_two_points() -> None:
    from ensemblekit.md.observables.scattering import form_factor

    q = np.linspace(0.05, 3.0, 40)
    carbon = form_factor("C", q, "vacuum")
    for tolerance in (1e-3, 1e-5):
        answer = one(models_of(apart(7.3)), md.SAXS(q, "all", tolerance=tolerance))
        assert answer.mean / carbon**2 == pytest.approx(2 + 2 * np.sin(7.3 * q) / (7.3 * q), abs=2 * tolerance)


def test_scattering_is_the_double_sum() -> None:
    from ensemblekit.md.observables.scattering import form_factor

    x = np.random.default_rng(3).normal(size=(3, 60, 3)) * 6
    elements = "".join(np.random.default_rng(4).choice(list("CNOHS"), 60))
    q = np.linspace(0.02, 1.0, 25)
    for contrast in ("vacuum", "solvent"):
        factors = np.array([form_factor(e, q, contrast) for e in elements])
        plain = np.array([debye(one_model, factors, q) for one_model in x])
        answer = one(models_of(x, elements), md.SAXS(q, "all", contrast, tolerance=1e-6))
        assert answer.mean == pytest.approx(plain.mean(axis=0), abs=1e-6 * 2 * (np.abs(factors).sum(axis=0) ** 2).max())


def test_scattering_of_a_sphere() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4000, 3))
    x *= (25 * rng.uniform(size=4000) ** (1 / 3) / np.linalg.norm(x, axis=1))[:, None]
    q = np.linspace(0.01, 0.1, 10)
    answer = one(models_of(x[None]), md.SAXS(q, "all"))
    u = 25 * q
    form = (3 * (np.sin(u) - u * np.cos(u)) / u**3) ** 2
    shape = answer.mean / answer.mean[0] * form[0]
    assert shape == pytest.approx(form, abs=0.01)
    assert answer.rg.mean == pytest.approx(np.sqrt(3 / 5) * 25, rel=0.02)
    assert answer.kratky.mean == pytest.approx(q**2 * answer.mean)


@needs_data
def test_scattering_of_a_duplex() -> None:
    ensemble = md.ConformerEnsemble.read(DATA / "nmr_dna_2hkb" / "2hkb.pdb")
    q = np.array([1e-6, 0.05, 0.1, 0.2, 0.3, 0.5])
    first = one(ensemble.model(0), md.SAXS(q, "all", tolerance=1e-5)).mean
    assert first[0] == pytest.approx(14116557.7243, rel=1e-7)
    assert first[1:] / first[0] == pytest.approx([0.86704784, 0.57028821, 0.14471895, 0.04518552, 0.01011234], abs=1e-5)
    mean = one(ensemble, md.SAXS(q, "all", tolerance=1e-5)).mean
    assert mean[1:] / mean[0] == pytest.approx([0.86868976, 0.57373754, 0.14389535, 0.04482610, 0.01040929], abs=1e-5)


@pytest.mark.parametrize(("observable", "words"), [
    (lambda: md.NOE([]), "one at least"), (lambda: md.NOE([("resid 1", "resid 1")]), "both sides"),
    (lambda: md.NOE([("resid 1",)]), "two selections"), (lambda: md.NOE([("resid 1", "resid 2")], power=0), "power"),
    (lambda: md.NOE([("resid 1", "resid 9")]), "empty"), (lambda: md.JCoupling("HN-XX", "all"), "HN-HA, HN-C, HN-CB"),
    (lambda: md.JCoupling("HN-C", "all", "Bax1997"), "Bax2007; got 'Bax1997'"),
    (lambda: md.JCoupling(select="all"), "no residue"),
    (lambda: md.JCoupling(select="all", coefficients=(1, 2, 3, 4)), "four atoms"),
    (lambda: md.OrderParameter("resid 1", "resid 2", fit=False), "no residue has an atom"),
    (lambda: md.FRET("resid 1", "resid 2", r0=0), "r0"), (lambda: md.PRE("resid 1", "resid 1"), "atoms of the label"),
    (lambda: md.SAXS([0.0, 0.1], "all"), "above 0"), (lambda: md.SAXS([0.1, 30.0], "all"), "1 / nm"),
    (lambda: md.SAXS([0.1], "all", "water"), "contrast"), (lambda: md.SAXS([0.1], "all", tolerance=0), "tolerance"),
])
def test_bad_settings_are_named(observable, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=words):
        one(models_of(apart(2.0, 4.0)), observable())


def test_every_engine_gives_the_same_bits() -> None:
    x = np.random.default_rng(3).normal(size=(20, 30, 3)) * 6
    wanted = {"saxs": md.SAXS([0.1, 0.2], "all"), "noe": md.NOE([("resid 1", "resid 2")]),
              "fret": md.FRET("resid 3", "resid 4")}
    first, other = (md.average(models_of(x), wanted, engine=engine) for engine in (ek.Serial(), ek.Threads(3)))
    assert all(np.array_equal(first[name].mean, other[name].mean) and np.array_equal(first[name].stderr, other[name].stderr)
               for name in wanted)
