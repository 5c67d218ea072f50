"""Maximum-entropy weights: closed forms, bounds, log-weights of any size, the L-curve, and errors that know of both."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ensemblekit.averaging.maxent import Problem, maximum_entropy, response, solved, theta_scan
from ensemblekit.errors import InputError, StatisticsError

RNG = np.random.default_rng


def test_two_states() -> None:
    fit = maximum_entropy([[0.0], [1.0]], [0.9386294361], [1.0], theta=0.1)
    assert fit.weights[1] == pytest.approx(0.8, abs=1e-10)
    assert fit.phi == pytest.approx(math.exp(-(math.log(2) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2))), abs=1e-10)
    assert fit.multipliers[0] == pytest.approx(-math.log(4.0), abs=1e-9)


def test_gaussian_prior_on_hermite_nodes() -> None:
    nodes, w = np.polynomial.hermite_e.hermegauss(60)
    fit = maximum_entropy((2.0 + 1.5 * nodes)[:, None], [4.0], [0.5], theta=3.0, weights=w)
    assert fit.after[0] == pytest.approx(3.5, abs=1e-10)
    assert fit.multipliers[0] == pytest.approx(-2 / 3, abs=1e-10)
    assert fit.phi == pytest.approx(math.exp(-0.5), abs=1e-10)
    assert fit.chi2_after == pytest.approx(1.0, abs=1e-10)
    assert fit.chi2_before == pytest.approx(16.0, abs=1e-9)


def many(n: int = 500, m: int = 7, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = RNG(seed)
    c = rng.normal(size=(n, m)) @ rng.normal(size=(m, m)) + 3
    return c, c.mean(axis=0) + rng.normal(size=m), rng.uniform(0.3, 2.0, m)


def test_the_stationary_point_in_the_weights_themselves() -> None:
    c, e, s = many()
    prior = RNG(2).uniform(0.1, 1, 500)
    fit = maximum_entropy(c, e, s, theta=2.5, weights=prior)
    # d L / d w_t is the same for every t: Σ_j (ĉ_j - e_j) / σ_j² c_tj + θ ln(w_t / w0_t)
    slope = c @ ((fit.weights @ c - e) / s**2) + 2.5 * np.log(fit.weights / (prior / prior.sum()))
    assert np.ptp(slope) < 1e-7 * np.abs(slope).max()
    assert fit.after == pytest.approx(fit.weights @ c)
    assert fit.chi2_after == pytest.approx((((fit.weights @ c - e) / s) ** 2).mean())
    assert fit.phi == pytest.approx(math.exp(-(fit.weights * np.log(fit.weights / (prior / prior.sum()))).sum()))


def test_prior_weights_are_repeated_snapshots_and_units_do_not_matter() -> None:
    c, e, s = many(40)
    times = RNG(4).integers(1, 4, 40)
    fit = maximum_entropy(c, e, s, theta=1.0, weights=times)
    repeated = maximum_entropy(np.repeat(c, times, axis=0), e, s, theta=1.0)
    first = np.concatenate([[0], np.cumsum(times)[:-1]])
    assert fit.weights == pytest.approx(np.add.reduceat(repeated.weights, first), abs=1e-9)
    scale = 10.0 ** np.arange(-9, 5, 2)
    other = maximum_entropy(c * scale, e * scale, s * scale, theta=1.0, weights=times)
    assert other.weights == pytest.approx(fit.weights, rel=1e-7)
    assert other.multipliers * scale == pytest.approx(fit.multipliers, rel=1e-7)


def test_log_weights_of_any_size() -> None:
    c, e, s = many(300)
    logs = RNG(6).uniform(-2, 2, 300)
    near = maximum_entropy(c, e, s, theta=1.0, log_weights=logs)
    for shift in (-1e6, 1e6):
        assert maximum_entropy(c, e, s, theta=1.0, log_weights=logs + shift).weights == pytest.approx(near.weights, abs=1e-8)
    gone = np.where(np.arange(300) < 20, -1e6, logs)
    gone[5] = -np.inf
    fit = maximum_entropy(c, e, s, theta=1.0, log_weights=gone)
    assert np.isfinite(fit.weights).all()
    assert fit.weights[:20].max() == 0
    assert np.isfinite(fit.phi)


def test_bounds_pull_only_where_they_are_broken() -> None:
    c, _, s = many()
    mean = c.mean(axis=0)
    kinds = ["upper", "lower", "upper", "lower", "upper", "lower", ""]
    kept = np.array([1, -1, 1, -1, 1, -1, 0]) * 0.5
    fit = maximum_entropy(c, mean + kept, s, theta=1.0, bounds=kinds)       # all kept by the prior
    assert fit.multipliers == pytest.approx(np.zeros(7), abs=1e-12)
    assert fit.phi == pytest.approx(1.0)
    assert fit.chi2_before == pytest.approx(0.0, abs=1e-24)
    broken = mean - 2 * kept
    fit = maximum_entropy(c, broken, s, theta=1.0, bounds=kinds)
    off = (fit.after - broken) / s
    sign = np.array([1, -1, 1, -1, 1, -1, 1])
    held = (fit.multipliers != 0) & (np.arange(7) < 6)
    assert held.any()
    assert fit.multipliers[held] == pytest.approx((off / s)[held], rel=1e-6)            # u = violation / θ
    assert (sign * off)[:6][held[:6]].min() > 0
    assert (sign * off)[:6][~held[:6]].max(initial=-1) <= 1e-8                          # those without one are kept
    # the same as values, for those that are broken, and without the others
    those = np.flatnonzero(held | (np.arange(7) == 6))
    plain = maximum_entropy(c[:, those], broken[those], s[those], theta=1.0)
    assert plain.weights == pytest.approx(fit.weights, rel=1e-7)


def test_the_scan_falls_and_chooses() -> None:
    c, e, s = many(2000, 20, 3)
    problem = Problem(c, e, s)
    scan = theta_scan(problem)
    assert len(scan.thetas) == 20
    assert (np.diff(scan.thetas) < 0).all()
    assert (np.diff(scan.chi2) < 0).all()
    assert (np.diff(scan.phi) < 0).all()
    assert scan.knee in scan.thetas
    assert scan.cross_validated in scan.thetas
    k = int(np.flatnonzero(scan.thetas == scan.knee)[0])
    fit = solved(problem, scan.knee)
    assert (fit.chi2_after, fit.phi) == pytest.approx((scan.chi2[k], scan.phi[k]), rel=1e-4)
    above = (scan.phi - scan.phi.min()) / np.ptp(scan.phi) - (scan.chi2 - scan.chi2.min()) / np.ptp(scan.chi2)
    assert k == int(np.argmax(above))
    assert math.isnan(theta_scan(Problem(c[:, :3], e[:3], s[:3])).cross_validated)


def test_left_out_data_speak_of_noise() -> None:
    """Data that are noise about the prior means ask for a large θ, exact ones of other weights for a small one."""
    c = RNG(8).normal(size=(400, 25)) + 2 * RNG(11).normal(size=(400, 1))       # what they share can be learnt from some
    noise = theta_scan(Problem(c, c.mean(axis=0) + RNG(1).normal(size=25), np.full(25, 0.2)))
    truth = RNG(10).dirichlet(np.ones(400) * 0.05)
    exact = theta_scan(Problem(c, truth @ c, np.full(25, 0.2)))
    assert exact.thetas == pytest.approx(noise.thetas)
    assert noise.cross_validated > 30 * exact.cross_validated


def test_the_response_is_the_derivative() -> None:
    c, e, s = many(300, 4)
    y = np.stack([c[:, 0] ** 2, RNG(5).normal(size=300)], axis=1)
    fit = maximum_entropy(c, e, s, theta=2.0)
    problem = Problem(c, e, s)
    answer = response(problem, fit, y)
    assert answer.mean == pytest.approx(fit.weights @ y)
    assert answer.series.mean(axis=0) == pytest.approx(answer.mean, rel=1e-7)
    moved = []
    for j in range(4):
        step = np.eye(4)[j] * 1e-4 * s[j]
        up, down = (maximum_entropy(c, e + sign * step, s, theta=2.0).weights @ y for sign in (1, -1))
        moved.append((up - down) / 2e-4)
    assert answer.data_error == pytest.approx(np.sqrt((np.array(moved) ** 2).sum(axis=0)), rel=1e-5)
    # a little more of one snapshot in the prior: its influence, to first order
    h = 1e-4
    prior = np.full(300, 1 / 300)
    prior[17] += h
    shifted = maximum_entropy(c, e, s, theta=2.0, weights=prior).weights @ y
    prior[17] -= 2 * h
    back = maximum_entropy(c, e, s, theta=2.0, weights=prior).weights @ y
    assert (shifted - back) / (2 * h) == pytest.approx(answer.series[17] - answer.mean, rel=2e-3)


def test_much_data_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    c, e, s = many(400)
    whole = maximum_entropy(c, e, s, theta=1.0)
    monkeypatch.setattr("ensemblekit.averaging.maxent.HELD", 0)
    monkeypatch.setattr("ensemblekit.averaging.maxent.ROWS", 64)
    assert maximum_entropy(c, e, s, theta=1.0).weights == pytest.approx(whole.weights, rel=1e-9)


def test_data_that_no_snapshot_reaches_are_named() -> None:
    c, e, s = many(200)
    e[3] = c[:, 3].max() + 1
    assert maximum_entropy(c, e, s, theta=1.0).outside.tolist() == [3]
    kinds = [""] * 7
    kinds[3] = "upper"
    assert maximum_entropy(c, e, s, theta=1.0, bounds=kinds).outside.tolist() == []


@pytest.mark.parametrize(("change", "words"), [
    ({"theta": 0.0}, "above 0; got 0.0"), ({"theta": -1.0}, "theta"), ({"theta": math.nan}, "theta"),
    ({"sigma": [1, 0, 1.0]}, "datum 1 has 0"), ({"sigma": [1, -2, 1.0]}, "datum 1 has -2"),
    ({"data": [1.0, 2.0]}, r"shape \(3,\)"), ({"data": [1.0, math.nan, 2.0]}, "data is not finite at datum 1"),
    ({"calculated": np.ones(5)}, "snapshots, data"), ({"calculated": [[1, 2, 3.0], [1, math.inf, 3]]}, "snapshot 1, datum 1"),
    ({"weights": [1.0, 2.0]}, "one a snapshot"), ({"weights": [1.0, -2.0, 1, 1]}, "negative|below 0"),
    ({"bounds": ["", "upper"]}, "of each of the 3 data"), ({"bounds": ["", "above", ""]}, "of each of the 3 data"),
])
def test_bad_input_is_named(change: dict, words: str) -> None:
    good = {"calculated": RNG(0).normal(size=(4, 3)), "data": [0.0, 0.1, 0.2], "sigma": [1.0, 1.0, 1.0], "theta": 1.0}
    with pytest.raises(InputError, match=words):
        maximum_entropy(**{**good, **change})


def test_all_weights_zero_and_constant_data() -> None:
    with pytest.raises(StatisticsError, match="all 4 weights are zero"):
        maximum_entropy(np.ones((4, 1)), [1.0], [1.0], theta=1.0, weights=np.zeros(4))
    with pytest.raises(StatisticsError, match="the same of every snapshot"):
        theta_scan(Problem(np.ones((4, 1)), [2.0], [1.0]))
    assert maximum_entropy(np.ones((4, 1)), [2.0], [1.0], theta=1.0).weights == pytest.approx(np.full(4, 0.25))


GACC = Path(os.environ.get("ENSEMBLEKIT_DATA", "/nonexistent")) / "copyleft" / "bme_gacc"


def gacc(name: str, power: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with zipfile.ZipFile(GACC / f"{name}_calc.dat.zip") as archive, archive.open(archive.namelist()[0]) as file:
        calculated = np.loadtxt(file, usecols=None)[:, 1:]
    rows = [line.split() for line in (GACC / f"{name}_exp.dat").read_text().splitlines() if not line.startswith("#")]
    e, s = (np.array([float(row[-k]) for row in rows]) for k in (2, 1))
    if power == 1:
        return calculated, e, s
    # sigma of r^-p as BME takes it: p σ r^-(p + 1)
    return calculated**-power, e**-power, power * s * e ** (-power - 1)


@pytest.mark.skipif(not GACC.exists(), reason="needs $ENSEMBLEKIT_DATA")
def test_a_published_data_set_at_its_exact_minimum() -> None:
    c, e, s = gacc("couplings")
    fit = maximum_entropy(c, e, s, theta=0.5)
    assert (fit.chi2_before, fit.chi2_after, fit.phi) == pytest.approx((1.1524552411, 0.0878433729, 0.1140432832), abs=1e-6)
    six, e6, s6 = gacc("NOE", 6.0)
    noe = maximum_entropy(six, e6, s6, theta=0.5)
    assert (noe.chi2_before, noe.chi2_after, noe.phi) == pytest.approx((1.1532341544, 0.0193605018, 0.3584370562), abs=1e-6)
    assert (((noe.weights @ c - e) / s) ** 2).mean() == pytest.approx(0.497325, abs=1e-6)
    with_r, r, sr = gacc("NOE")
    assert ((((fit.weights @ with_r**-6.0) ** (-1 / 6) - r) / sr) ** 2).mean() == pytest.approx(1.99033, abs=1e-5)
    noe = maximum_entropy(*gacc("NOE", 3.0), theta=0.5)
    assert (noe.chi2_before, noe.chi2_after, noe.phi) == pytest.approx((4.9257716215, 0.0327003074, 0.0409466529), abs=1e-6)
    both = np.hstack([c, six]), np.concatenate([e, e6]), np.concatenate([s, s6])
    for theta, chi2, phi in ((0.5, 0.0633312428, 0.0482403314), (1.0, 0.0886438382, 0.1240972571),
                             (100.0, 0.7570717, 0.9568729)):
        joint = maximum_entropy(*both, theta=theta)
        assert (joint.chi2_after, joint.phi) == pytest.approx((chi2, phi), abs=1e-6)


def test_data_near_the_prior_means_converge() -> None:
    """Where the dual itself is near 0 its rounding must not hold up the last steps."""
    for seed in range(20):
        c = RNG(seed).normal(size=(50, 2))
        fit = maximum_entropy(c, [0.1, 0.2], [1.0, 1.0], theta=1.0)
        assert fit.gradient < 1e-10
        assert fit.steps < 12
