"""Simultaneous bands of curves: critical values, coverage, scales, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri

import ensemblekit as ek
from ensemblekit.averaging.band import critical_value, student_of, with_band
from ensemblekit.averaging.estimate import Estimate


def curve(shape: tuple[int, ...] = (5,), mean: float = 2.0, stderr: float = 0.1, dof: float = np.inf) -> Estimate:
    full = np.full(shape, 1.0)
    return Estimate.of(mean * full, stderr * full, dof * full, n=1000, n_eff=200 * full, confidence=0.95)


def test_of_independent_elements_the_critical_value_is_that_of_the_largest_of_so_many_gaussians() -> None:
    rng = np.random.default_rng(1)
    weights = np.ones(400)
    for items in (1, 5, 40):
        expected = ndtri((1 + 0.95 ** (1 / items)) / 2)
        critical, blocks = critical_value(rng.normal(size=(400, items)), weights, 1, 0.95)
        assert blocks == 400
        assert critical == pytest.approx(expected, abs=0.08)


def test_copies_of_one_element_need_no_more_than_one_does() -> None:
    parts = np.random.default_rng(2).normal(size=(64, 1))
    one = critical_value(parts, np.ones(64), 1, 0.95)[0]
    many = critical_value(np.repeat(parts, 50, axis=1) * np.geomspace(1e-200, 1e200, 50), np.ones(64), 1, 0.95)[0]
    assert many == pytest.approx(one, rel=1e-12)


def test_elements_that_are_constant_or_not_finite_are_left_out() -> None:
    rng = np.random.default_rng(3)
    parts = rng.normal(size=(64, 6))
    alone = critical_value(parts, np.ones(64), 1, 0.95)[0]
    parts = np.column_stack([parts, np.full(64, 7.7), np.full(64, np.nan), np.zeros(64)])
    assert critical_value(parts, np.ones(64), 1, 0.95)[0] == alone
    assert np.isnan(critical_value(np.full((64, 3), 0.1), np.ones(64), 1, 0.95)[0])


def test_parts_without_weight_do_not_count() -> None:
    parts = np.random.default_rng(4).normal(size=(64, 8))
    weights = np.where(np.arange(64) < 48, 1.0, 1e-300)
    some = critical_value(parts[:48], np.ones(48), 1, 0.95)[0]
    assert critical_value(parts, weights, 1, 0.95)[0] == pytest.approx(some, abs=0.06)


def test_a_band_of_curves_of_64_parts_covers() -> None:
    rng = np.random.default_rng(5)
    x = np.arange(30)
    root = np.linalg.cholesky(np.exp(-0.5 * ((x[:, None] - x) / 2.0) ** 2) + 1e-9 * np.eye(30))
    inside, pointwise, repeats = 0, 0, 300
    for _ in range(repeats):
        parts = rng.normal(size=(64, 30)) @ root.T
        c, _ = critical_value(parts, np.ones(64), 1, 0.95)
        stderr = parts.std(axis=0, ddof=1) / 8
        off = np.abs(parts.mean(axis=0)) / stderr
        inside += bool((off <= student_of(c, np.full(30, 63.0))).all())
        pointwise += bool((off <= 2.0).all())
    assert 0.91 < inside / repeats < 0.98
    assert pointwise / repeats < 0.75       # an interval of each point is none of the curve


def test_student_takes_the_place_of_the_gaussian() -> None:
    assert student_of(1.959963984540054, np.array([np.inf, 10.0, 5.0])) == pytest.approx([1.95996398, 2.22813885, 2.57058184])


def test_a_band_is_so_many_standard_errors_to_either_side() -> None:
    answer = with_band(curve(), 3.0, "linear")
    assert answer.band is not None
    np.testing.assert_allclose(answer.band, [[1.7] * 5, [2.3] * 5])
    assert answer.interval[0][0] == pytest.approx(2 - 0.1959964, rel=1e-6)
    low = with_band(curve(mean=0.1), 3.0, "linear", (0.0, None)).band
    assert low is not None
    assert (low[0] >= 0).all()


def test_on_the_scale_of_logarithms_interval_and_band_are_factors() -> None:
    answer = with_band(curve(mean=0.1, stderr=0.1), 3.0, "log")
    assert answer.band is not None
    np.testing.assert_allclose(answer.band, [[0.1 * np.exp(-3)] * 5, [0.1 * np.exp(3)] * 5])
    np.testing.assert_allclose(answer.high, 0.1 * np.exp(1.959964), rtol=1e-6)
    zero = with_band(curve(mean=0.0, stderr=0.1), 3.0, "log")
    np.testing.assert_allclose(zero.band, [[0.0] * 5, [0.3] * 5])


def test_a_band_goes_along_with_what_is_linear_and_is_gone_from_the_rest() -> None:
    answer = with_band(curve(), 3.0, "linear")
    scaled = 1 - 2 * answer
    assert scaled.band is not None
    np.testing.assert_allclose(scaled.band, [[-3.6] * 5, [-2.4] * 5])
    assert (answer + curve()).band is None
    assert (answer**2).band is None
    again = Estimate.from_dict(answer.to_dict())
    assert again.band is not None
    assert again.critical_value == 3.0
    np.testing.assert_array_equal(again.band, answer.band)
    assert "band" not in curve().to_dict()
    assert list(answer.to_dataframe()["band_high"]) == pytest.approx([2.3] * 5)
    assert answer.to_xarray()["band_low"].values == pytest.approx([1.7] * 5)


def gas(frames: int, seed: int) -> object:
    import MDAnalysis as mda

    rng = np.random.default_rng(seed)
    u = mda.Universe.empty(30, n_residues=30, atom_resindex=range(30), trajectory=True)
    u.add_TopologyAttr("names", ["A"] * 30)
    u.load_new(rng.uniform(0, 10, (frames, 30, 3)).astype(np.float32), dimensions=[10, 10, 10, 90, 90, 90], dt=1.0)
    return u


@pytest.mark.filterwarnings("ignore")
def test_a_pair_distribution_has_a_band_that_is_wider_than_its_interval() -> None:
    from ensemblekit import md

    estimate = md.average(gas(600, 1), {"g": md.RDF("all", range=(1.0, 5.0), n_bins=20)})["g"]
    assert estimate.band is not None
    assert (estimate.band[0] < estimate.low).all()
    assert (estimate.band[1] > estimate.high).all()
    assert 2.7 < estimate.critical_value < 3.3     # of 20 nearly independent bins 3.02
    assert "band" not in estimate.verdict
    few = md.average(gas(12, 1), {"g": md.RDF("all", range=(1.0, 5.0), n_bins=20)})["g"]
    assert "independent parts of the run: with fewer than 20 it may be too narrow" in few.verdict


def test_replicas_have_one_band_of_all_runs() -> None:
    from ensemblekit import md

    each = [md.read(gas(300, k)) for k in (1, 2, 3)]
    estimate = md.average(ek.ReplicaSet(tuple(each)), {"g": md.RDF("all", range=(1.0, 5.0), n_bins=20)})["g"]
    assert estimate.band is not None
    assert estimate.critical_value == pytest.approx(np.mean([run.critical_value for run in estimate.runs]))
    assert (estimate.band[0] < estimate.low).all()
    assert (estimate.band[1] > estimate.high).all()


def test_the_band_is_drawn_behind_the_interval() -> None:
    from ensemblekit.plot import averages as figures

    drawn = figures.profile(with_band(curve((50,)), 3.0, "linear"))
    assert len(drawn.collections) == 2
    assert len(figures.profile(curve((50,))).collections) == 1
