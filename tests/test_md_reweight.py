"""Data and averages held against each other; frames reweighted by data, with errors of sampling and of the data."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("MDAnalysis")
pytest.importorskip("gemmi")

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.errors import InputError
from ensemblekit.md.experimental_data import Data
from tests.test_md_experiments import models_of

GACC = Path(os.environ.get("ENSEMBLEKIT_DATA", "/nonexistent")) / "copyleft" / "bme_gacc"
RNG = np.random.default_rng


def ar1(n: int, phi: float, rng: np.random.Generator) -> np.ndarray:
    """A stationary Gaussian series of variance 1."""
    from scipy.signal import lfilter

    noise = rng.standard_normal(n) * math.sqrt(1 - phi**2)
    noise[0] = rng.standard_normal()
    return np.asarray(lfilter([1.0], [1.0, -phi], noise))


# -- data ------------------------------------------------------------------------------------------------------------------

def test_tables_are_read(tmp_path: Path) -> None:
    path = tmp_path / "noe.dat"
    path.write_text("# DATA=NOE PRIOR=GAUSS POWER=3 BOUND=UPPER\nA_B 4.0 0.4\nC_D\t2.5 0.2\n")
    data = md.Data.read(path)
    assert (data.kind, data.power, data.bounds, data.labels) == ("NOE", 3.0, ("upper", "upper"), ("A_B", "C_D"))
    line = data.linear()
    assert line.values == pytest.approx([4.0**-3, 2.5**-3])
    assert line.sigma == pytest.approx([3 * 0.4 * 4.0**-4, 3 * 0.2 * 2.5**-4])
    assert line.bounds == ("lower", "lower")
    (tmp_path / "saxs.dat").write_text("0.1 1000 10\n0.2 800 9\n")
    assert md.Data.read(tmp_path / "saxs.dat", unit="nm-1").q == pytest.approx([0.01, 0.02])
    assert md.Data.read(tmp_path / "saxs.dat").kind == "SAXS"
    (tmp_path / "j.csv").write_text("sigma,label,value,bound\n0.5,7,6.1,\n0.4,8,5.0,lower\n")
    table = md.Data.read(tmp_path / "j.csv", kind="jcouplings")
    assert (table.kind, table.values.tolist(), table.bounds) == ("JCOUPLINGS", [6.1, 5.0], ("", "lower"))


@pytest.mark.parametrize(("text", "words"), [
    ("# DATA=NOE\nA 1.0 0.0\n", r"datum 0 \(A\) is 0"), ("# DATA=CS\nA 1.0 -1\n", "above 0"), ("A 1.0\n", "line 1"),
    ("# DATA=NMR\nA 1 1\n", "NOE, JCOUPLINGS"), ("# nothing\n", "holds no data"),
    ("# DATA=CS BOUND=BOTH\nA 1 1\n", "UPPER or LOWER"),
    ("A nan 1\n", "not finite"), ("# DATA=NOE\nA -2 1\n", "above 0"), ("value,label\n1,2\n", "label, value and sigma"),
])
def test_bad_tables_are_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.dat").write_text(text)
    with pytest.raises(InputError, match=words):
        md.Data.read(tmp_path / "bad.dat")


def estimate(mean: list[float], stderr: list[float], coords: dict | None = None) -> ek.Estimate:
    return ek.Estimate.of(np.array(mean), np.array(stderr), np.full(len(mean), 30.0), n=31, confidence=0.95,
                          n_eff=np.full(len(mean), 31.0), coords=coords or {})


def test_averages_against_data() -> None:
    data = Data(values=np.array([1.0, 2.0, 3.0]), sigma=np.array([0.1, 0.2, 0.3]), labels=("a", "b", "c"),
                bounds=("", "upper", "lower"))
    answer = md.compare(estimate([1.1, 2.4, 3.6], [0.0, 0.15, 0.1]), data)
    assert answer.chi2 == pytest.approx((1.0 + 4.0 + 0.0) / 3)
    assert answer.z == pytest.approx([1.0, 0.4 / 0.25, 0.0])
    assert answer.violations.tolist() == [1]
    assert "b" in answer.table()
    assert "1 bounds broken" in repr(answer)


def test_scale_offset_and_labels() -> None:
    x = RNG(3).normal(size=20)
    sigma = RNG(4).uniform(0.1, 1, 20)
    answer = md.compare(estimate(x.tolist(), [0.01] * 20), (2.5 * x - 1.0, sigma), fit="scale+offset")
    assert (answer.scale, answer.offset, answer.chi2) == pytest.approx((2.5, -1.0, 0.0), abs=1e-9)
    assert answer.stderr == pytest.approx(np.full(20, 0.025))
    assert md.compare(estimate(x.tolist(), [0.01] * 20), (2.5 * x, sigma), fit="scale").scale == pytest.approx(2.5)
    residues = {"residue": (np.array([4, 5, 6, 9]), "")}
    data = Data(values=np.array([9.0, 5.0]), sigma=np.ones(2), labels=("9", "5"))
    assert md.compare(estimate([4.0, 5.0, 6.0, 9.0], [0.1] * 4, residues), data).chi2 == 0
    other = Data(values=np.ones(1), sigma=np.ones(1), labels=("7",))
    with pytest.raises(InputError, match="residues 7 were measured and not calculated"):
        md.compare(estimate([4.0, 5.0, 6.0, 9.0], [0.1] * 4, residues), other)
    with pytest.raises(InputError, match="3 averages and 2 data"):
        md.compare(estimate([1, 2, 3], [1, 1, 1]), (np.ones(2), np.ones(2)))
    with pytest.raises(InputError, match=r"md\.SAXS\(data\.q\)"):
        md.compare(estimate([1, 2], [1, 1], {"q": (np.array([0.1, 0.2]), "Angstrom-1")}),
                   Data(values=np.ones(2), sigma=np.ones(2), q=np.array([0.1, 0.3])))


# -- reweighting -----------------------------------------------------------------------------------------------------------

def test_values_are_what_averages_linearly() -> None:
    x = RNG(2).normal(size=(30, 3, 3)) * 4
    arrays = md.values(models_of(x), {"noe": md.NOE([("resid 1", "resid 2")]), "fret": md.FRET("resid 1", "resid 3")})
    assert arrays["noe"][:, 0] == pytest.approx(np.linalg.norm(x[:, 0] - x[:, 1], axis=1) ** -6.0)
    assert arrays["fret"].shape == (30, 3)
    few = md.values(models_of(x), {"noe": md.NOE([("resid 1", "resid 2")])}, frames=[3, 7])
    assert few["noe"] == pytest.approx(arrays["noe"][[3, 7]])


def test_values_of_many_parts_are_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemblekit.md.frame_values.HELD_BYTES", 0)
    x = RNG(2).normal(size=(300, 3, 3))
    values = md.values(models_of(x), {"d": md.Distance("resid 1", "resid 2", weights=None)})["d"]
    assert isinstance(values, np.memmap)
    assert values == pytest.approx(np.linalg.norm(x[:, 0] - x[:, 1], axis=1))


def test_weights_agree_with_the_data_and_everything_is_printed(tmp_path: Path) -> None:
    rng = RNG(5)
    c = rng.normal(size=(800, 8)) + rng.normal(size=(800, 1))
    fit = md.reweight(c, (c.mean(axis=0) + 0.6, np.full(8, 0.3)), ordered=False)
    assert fit.chi2_after < 0.5 * fit.chi2_before
    assert fit.converged
    assert fit.scan is not None
    assert fit.theta == fit.scan.knee
    assert "knee" in repr(fit)
    assert "cross-validation" in repr(fit)
    assert len(fit.table().splitlines()) == 9
    path = fit.write(tmp_path / "weights.dat")
    assert np.loadtxt(path)[:, 1].tolist() == fit.weights.tolist()
    assert fit.to_dict()["phi"] == fit.phi


def test_errors_are_of_sampling_and_of_the_data() -> None:
    rng = RNG(6)
    x = ar1(4000, 0.9, rng)
    fit = md.reweight(x[:, None], ([1.0], [0.5]), theta=2.0)
    answer = fit.average(x**2)
    assert answer.stderr == pytest.approx(math.hypot(answer.estimators["sampling"], answer.estimators["data"]))
    # in the Gaussian limit: weights tilt by λ, the mean of x² is 1 + λ²; dλ/de = 1 / (s² + θ σ²)
    lam = 1.0 / (1 + 2 * 0.25)
    assert answer.mean == pytest.approx(1 + lam**2, abs=4 * answer.estimators["sampling"])
    assert answer.estimators["data"] == pytest.approx(2 * lam * lam * 0.5, rel=0.25)
    naive = ek.average(x**2, weights=fit.weights, equilibration=None)
    assert answer.mean == pytest.approx(naive.mean, rel=1e-10)
    assert answer.converged
    assert answer.low < answer.sampling.low < answer.mean < answer.sampling.high < answer.high
    several = fit.average({"x": x, "both": np.stack([x, x**2], axis=1)})
    assert several["x"].estimators["data"] == pytest.approx(lam * 0.5, rel=0.15)
    assert several["both"].mean[1] == pytest.approx(answer.mean)


def test_the_bootstrap_agrees() -> None:
    x = ar1(1500, 0.6, RNG(8))
    fit = md.reweight(x[:, None], ([0.7], [0.3]), theta=1.0, bootstrap=60)
    answer = fit.average(x)
    assert answer.estimators["bootstrap"] == pytest.approx(answer.stderr, rel=0.4)


def test_observables_are_averaged_from_their_frames() -> None:
    positions = np.zeros((200, 2, 3))
    positions[:, 1, 2] = RNG(9).uniform(2.0, 6.0, 200)
    source = models_of(positions)
    pair = {"noe": md.NOE([("resid 1", "resid 2")]), "d": md.Distance("resid 1", "resid 2", weights=None)}
    calculated = md.values(source, {"noe": pair["noe"]})["noe"]
    fit = md.reweight(calculated, Data(values=np.array([2.6]), sigma=np.array([0.1]), kind="NOE"), theta=0.5, ordered=False)
    answers = fit.average(pair, source)
    r = positions[:, 1, 2]
    assert answers["noe"].mean[0] == pytest.approx((fit.weights @ r**-6.0) ** (-1 / 6), rel=1e-9)
    assert answers["d"].mean == pytest.approx(fit.weights @ r, rel=1e-9)
    assert answers["noe"].unit == "Angstrom"
    moved = []
    e, sigma = 2.6**-6, 6 * 0.1 * 2.6**-7
    for step in (-1e-3 * sigma, 1e-3 * sigma):
        moved.append(md.reweight(calculated, ([e + step], [sigma]), theta=0.5, ordered=False).weights @ r)
    assert answers["d"].estimators["data"] == pytest.approx(abs(moved[1] - moved[0]) / 2e-3, rel=1e-4)


def test_distances_in_the_place_of_inverse_powers_are_refused() -> None:
    r = RNG(9).uniform(2.0, 6.0, (200, 3))
    data = Data(values=np.array([3.0, 3.5, 4.0]), sigma=np.full(3, 0.3), kind="NOE")
    with pytest.raises(InputError, match="look like distances"):
        md.reweight(r, data, theta=1.0)
    assert md.reweight(r**-6.0, data, theta=1.0).phi > 0


def test_scale_and_offset_put_in_are_found() -> None:
    c = RNG(12).normal(size=(500, 6)) + np.arange(6)
    data = (3.0 * c.mean(axis=0) + 2.0, np.full(6, 0.1))
    fit = md.reweight(c, data, theta=1.0, fit="scale+offset", ordered=False)
    assert fit.scales[0] == pytest.approx((3.0, 2.0), rel=1e-8)
    assert fit.phi == pytest.approx(1.0, abs=1e-8)
    w = RNG(13).dirichlet(np.ones(500))
    fit = md.reweight(c, (3.0 * (w @ c), np.full(6, 0.05)), theta=0.1, fit="scale", refit=True, ordered=False)
    assert fit.rounds > 1
    assert "settled" in fit.verdict or "did not settle" in fit.verdict
    once = md.reweight(c, (3.0 * (w @ c), np.full(6, 0.05)), theta=0.1, fit="scale", ordered=False)
    assert fit.chi2_after <= once.chi2_after


def test_what_speaks_against_weights_is_said() -> None:
    c = RNG(14).normal(size=(300, 2))
    far = md.reweight(c, ([10.0, 0.0], [0.1, 0.1]), theta=0.01, ordered=False)
    assert not far.converged
    assert "beyond the values of all frames (data 0)" in far.verdict
    assert "φ is" in far.verdict
    assert not far.average(c[:, 1]).converged
    slow = ar1(400, 0.995, RNG(15))
    few = md.reweight(slow[:, None], ([float(slow.mean())], [1.0]), theta=10.0)
    assert "independent frames" in few.verdict


@pytest.mark.skipif(not GACC.exists(), reason="needs $ENSEMBLEKIT_DATA")
def test_a_published_set_by_its_files() -> None:
    from tests.test_maxent import gacc

    c = gacc("couplings")[0]
    r = gacc("NOE")[0]
    j, noe = md.Data.read(GACC / "couplings_exp.dat"), md.Data.read(GACC / "NOE_exp.dat")
    fit = md.reweight({"j": (c, j), "noe": (r**-6.0, noe)}, theta=1.0, ordered=False)
    assert (fit.chi2_after, fit.phi) == pytest.approx((0.0886438382, 0.1240972571), abs=1e-6)
    assert fit.names == ("j", "noe")


@pytest.mark.parametrize(("change", "words"), [
    ({"theta": 0}, "theta"), ({"theta": "best"}, "theta"), ({"data": ([1.0], [1.0])}, "2 numbers were calculated"),
    ({"data": ([1.0, 2.0], [1.0, 0.0])}, "above 0"), ({"data": None}, "pass what was calculated"),
    ({"prior": np.ones(3)}, "prior"), ({"calculated": np.full((5, 2), np.nan)}, "not finite"),
    ({"calculated": {"a": 1}, "data": None}, "sets are"), ({"bootstrap": 3}, "10 or more"),
    ({"times": np.arange(3.0)}, "times"),
    ({"fit": "slope"}, "scale"), ({"data": (np.array([1.0, np.nan]), [1, 1])}, "not finite"),
])
def test_bad_input_is_named(change: dict, words: str) -> None:
    good = {"calculated": RNG(0).normal(size=(5, 2)), "data": ([0.1, 0.2], [1.0, 1.0]), "theta": 1.0}
    with pytest.raises(InputError, match=words):
        md.reweight(**{**good, **change})


def test_values_of_other_frames_are_refused() -> None:
    fit = md.reweight(RNG(0).normal(size=(50, 2)), ([0.1, 0.2], [1.0, 1.0]), theta=1.0)
    with pytest.raises(InputError, match="50 frames that were reweighted"):
        fit.average(np.ones(49))


def test_figures() -> None:
    pytest.importorskip("matplotlib").use("agg")
    c = RNG(5).normal(size=(200, 6))
    measured = (c.mean(axis=0) + 0.3, np.full(6, 0.1))
    fit = md.reweight(c, measured, ordered=False)
    assert fit.plot().lines[0].get_xdata() == pytest.approx(fit.scan.chi2)
    single = md.reweight(c, measured, theta=1.0, ordered=False)
    assert single.plot().lines[2].get_ydata() == pytest.approx((single.after[0] - measured[0]) / 0.1)
    data = Data(values=np.array([1.0, 2.0]), sigma=np.array([0.1, 0.1]), labels=("near", "far"))
    ax = md.compare(estimate([1.0, 3.0], [0.01, 0.01]), data).plot()
    assert [text.get_text() for text in ax.texts] == ["far"]
    assert data.plot().get_ylabel() == "measured"
    profile = Data(values=np.array([3.0, 2.0]), sigma=np.array([0.1, 0.1]), q=np.array([0.1, 0.2]), kind="SAXS")
    assert md.compare(estimate([3.0, 2.1], [0.01, 0.01]), profile).plot().get_yscale() == "log"


def test_the_interval_of_sampling_covers() -> None:
    from benchmarks.bench_md_coverage import reweighted_coverage

    for row in reweighted_coverage(40):
        assert row["coverage"] >= 0.85      # of 40: less than 1 in 100 where 95 % hold
        assert row["independent"] < row["coverage"]
