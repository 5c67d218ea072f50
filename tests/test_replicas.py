import os
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.special import gamma

import ensemblekit as ek
from benchmarks.processes import PROCESSES
from ensemblekit.averaging.diagnostics import between_by_chance
from ensemblekit.averaging.replicas import ergodicity, ergodicity_breaking, fluctuation_metric, read_runs, time_average
from ensemblekit.errors import InputError, StatisticsError


def ar1(rng, phi, m, n):
    start = rng.normal(size=(m, 1)) / np.sqrt(1 - phi**2)
    return lfilter([1], [1, -phi], rng.normal(size=(m, n)), axis=1, zi=phi * start)[0]


def test_runs_of_one_process_are_ergodic_at_the_rate_promised():
    rng = np.random.default_rng(1)
    verdicts = [ergodicity(ar1(rng, 0.9, 5, 1900)).verdict for _ in range(60)]
    assert "cannot say" not in verdicts
    assert verdicts.count("not ergodic") <= 9       # 5 to 8 % of 60; more than 9 has a chance of 0.01


def test_a_run_in_another_basin_is_found_and_its_dark_spread_said():
    x = ar1(np.random.default_rng(2), 0.9, 5, 2000) + np.array([0, 0, 0, 0, 5.0])[:, None]
    verdict = ergodicity(x)
    assert verdict.verdict == "not ergodic"
    assert verdict.tests["place"].p_value < 1e-6
    assert verdict.consensus.dark == pytest.approx(np.std([0, 0, 0, 0, 5.0], ddof=1), rel=0.25)
    assert verdict.rhat > 1.1
    assert abs(verdict.metric.exponent) < 0.3
    assert "run 4:" in str(verdict)
    assert str(verdict).startswith("not ergodic: the time averages of the 5 runs differ")


def test_runs_that_differ_only_in_width_are_not_ergodic():
    x = ar1(np.random.default_rng(3), 0.5, 4, 2000) * np.array([1, 1, 1, 2.0])[:, None]
    verdict = ergodicity(x)
    assert verdict.verdict == "not ergodic"
    assert verdict.tests["spread"].p_value < 1e-6 < verdict.tests["place"].p_value


def test_a_common_drift_is_found():
    x = ar1(np.random.default_rng(4), 0.5, 6, 2000) + np.linspace(0, 1, 2000)
    assert ergodicity(x).tests["drift"].p_value < 0.01


def test_short_runs_and_single_runs_cannot_say():
    rng = np.random.default_rng(5)
    short = ergodicity(ar1(rng, 0.99, 4, 300))
    assert short.verdict == "cannot say"
    assert "Run longer" in short.reasons[0]
    one = ergodicity(ar1(rng, 0.5, 1, 2000))
    assert one.verdict == "cannot say"
    assert "one run" in one.reasons[0]
    assert np.isnan(one.between)
    assert one.metric is None


def test_runs_that_never_move():
    assert ergodicity(np.ones((3, 20))).verdict == "cannot say"
    assert ergodicity(np.repeat([[1.0], [2.0]], 20, axis=1)).verdict == "not ergodic"
    moving = np.random.default_rng(6).normal(size=20)
    verdict = ergodicity([moving, np.zeros(20)])
    assert verdict.verdict == "not ergodic"
    assert "run 1 never leaves 0" in str(verdict)


def test_time_average_against_an_ensemble_is_calibrated():
    rng = np.random.default_rng(8)
    low = sum(ergodicity(rng.normal(size=(4, 300)), ensemble=rng.normal(size=500)).tests["ensemble"].p_value < 0.05
              for _ in range(60))
    assert low <= 10        # 5 % of 60 is 3; more than 10 has a chance of 1e-4


@pytest.mark.parametrize("ensemble", [(1.0, 0.05), np.random.default_rng(7).normal(1, 1, 500)])
def test_a_time_average_away_from_the_ensemble_is_found(ensemble):
    x = np.random.default_rng(8).normal(size=(4, 1000))
    verdict = ergodicity(x, ensemble=ensemble)
    assert verdict.verdict == "not ergodic"
    assert "ensemble average" in str(verdict)
    assert ergodicity(x[:1], ensemble=ensemble).verdict == "not ergodic"


def test_within_and_between_follow_their_formulas_for_unequal_lengths():
    rng = np.random.default_rng(9)
    runs = [rng.normal(size=n) for n in (300, 500, 900)]
    verdict = ergodicity(runs)
    assert verdict.lengths == (300, 500, 900)
    assert verdict.within == pytest.approx(sum(((r - r.mean()) ** 2).sum() for r in runs) / (1700 - 3), rel=1e-12)
    assert verdict.between == pytest.approx(np.var([r.mean() for r in runs], ddof=1), rel=1e-12)
    assert verdict.breaking == pytest.approx(np.var(verdict.means) / np.mean(verdict.means) ** 2, rel=1e-12)
    assert verdict.rhat == ek.averaging.diagnostics.rhat(np.array([r[-300:] for r in runs]))


def test_omega_is_its_formula_and_falls_as_one_over_time():
    x = ar1(np.random.default_rng(10), 0.8, 40, 10_000) + 1e6
    metric = fluctuation_metric(x)
    running = np.cumsum(x - 1e6, axis=1) / np.arange(1, 10_001)
    for t, omega in zip(metric.times, metric.omega, strict=True):
        assert omega == pytest.approx(running[:, int(t) - 1].var(), rel=1e-6)
    assert metric.exponent == pytest.approx(-1, abs=4 * metric.exponent_stderr)
    assert metric.exponent_stderr < 0.2
    assert metric.rate == pytest.approx((1 - 0.8) / (1 + 0.8), rel=0.5)      # 1/(2 τ_int), known to √(2/40)


def test_runs_that_never_mix_have_a_flat_omega():
    rng = np.random.default_rng(11)
    omega = fluctuation_metric(ar1(rng, 0.5, 20, 5000) + rng.normal(0, 3, (20, 1)))
    assert abs(omega.exponent) < 0.1


def test_ergodicity_breaking_of_brownian_motion():
    """4 Δ/(3 T) for Δ ≪ T (Deng & Barkai 2009); relative error of a variance over 2000 runs √(2/2000)."""
    walks = np.cumsum(np.random.default_rng(12).normal(size=(2000, 2000)), axis=1)
    assert ergodicity_breaking(walks, lag=20) == pytest.approx(4 * 20 / (3 * 2000), rel=4 * np.sqrt(2 / 2000))


def test_ergodicity_breaking_of_waiting_times_without_a_mean():
    """CTRW with α = 1/2: 2 Γ(3/2)²/Γ(2) - 1 = π/2 - 1 however long the run (He et al. 2008)."""
    rng = np.random.default_rng(13)
    waits = rng.uniform(size=(800, 1200)) ** -2.0       # P(t) ~ t^(-3/2)
    arrivals = np.cumsum(waits, axis=1)
    grid = np.arange(0, 20_000, 5.0)
    hops = np.array([np.searchsorted(row, grid) for row in arrivals])
    walks = np.take_along_axis(np.cumsum(rng.choice([-1.0, 1.0], size=(800, 1201)), axis=1), hops, axis=1)
    expected = 2 * gamma(1.5) ** 2 / gamma(2) - 1
    assert ergodicity_breaking(walks, lag=4) == pytest.approx(expected, rel=0.2)


def test_sources_weights_maps_and_units():
    rng = np.random.default_rng(14)
    runs = [ek.ArraySource.of(rng.normal(size=(400, 3)), weights=rng.uniform(0, 2, 400), unit="nm") for _ in range(3)]
    verdict = ergodicity(ek.ReplicaSet.of(runs), map=lambda b: b.only[:, 1])
    for k, run in enumerate(runs):
        assert verdict.means[k] == pytest.approx(np.average(run.arrays["values"][:, 1], weights=run.weights), rel=1e-12)
    scalars = ek.ReplicaSet.of([ek.ArraySource.of(rng.normal(size=100), unit="nm", times=np.arange(100) * 0.5)
                                for _ in range(3)])
    verdict = ergodicity(scalars)
    assert verdict.unit == "nm"
    assert "nm" in str(verdict)
    assert verdict.metric.times[-1] == pytest.approx(50)


def test_the_error_of_a_weighted_correlated_run_is_the_spread_of_repeats():
    rng = np.random.default_rng(15)
    x = 0.6 * ar1(rng, 0.8, 400, 2000)      # variance 1
    w = np.exp(-0.8 * x)
    estimates = [time_average(*pair) for pair in zip(x, w, strict=True)]
    truth = np.std([f.mean for f in estimates])
    assert np.mean([f.mean for f in estimates]) == pytest.approx(-0.8, abs=0.02)
    assert np.sqrt(np.mean([f.stderr**2 for f in estimates])) == pytest.approx(truth, rel=0.12)
    assert np.mean([time_average(row).stderr for row in x]) < 0.8 * truth      # weights cost precision


@pytest.mark.parametrize(("runs", "message"), [
    (np.ones((2, 3, 4)), "runs, time"),
    ([np.ones((9, 2)), np.ones((9, 2))], "Pass a map"),
    ([np.ones(9), np.array([1, 2, np.nan, 4.0])], "snapshot 2 of run 1 is nan"),
    ([np.ones(9), 1j * np.ones(9)], "real"),
])
def test_bad_runs_are_refused(runs, message):
    with pytest.raises(InputError, match=message):
        ergodicity(runs)


def test_bad_settings_are_refused():
    x = np.random.default_rng(16).normal(size=(2, 50))
    with pytest.raises(StatisticsError, match="run 1 has 3"):
        ergodicity([x[0], x[1, :3]])
    with pytest.raises(InputError, match="confidence"):
        ergodicity(x, confidence=95)
    with pytest.raises(InputError, match="ensemble"):
        ergodicity(x, ensemble=(0.0, -1.0))
    with pytest.raises(InputError, match="ensemble"):
        ergodicity(x, ensemble=np.array([1.0]))
    with pytest.raises(InputError, match="lag"):
        ergodicity_breaking(x, lag=50)
    with pytest.raises(StatisticsError, match="two runs"):
        fluctuation_metric(x[0])


def test_copies_are_named_and_counted_once():
    x = np.random.default_rng(0).normal(size=400)
    once, four = ek.average(x), ek.average(ek.ReplicaSet.of([x, x, x, x]))
    assert four.stderr == pytest.approx(once.stderr)
    assert not four.converged
    assert "runs 0 and 1, 0 and 2, 0 and 3 are the same numbers" in four.verdict
    pairs = np.stack([x, x**2], axis=1)
    assert "runs 0 and 1" in ek.average(ek.ReplicaSet.of([pairs, pairs])).verdict
    said = ergodicity([x, x])
    assert said.verdict == "cannot say"
    assert "runs 0 and 1 are the same numbers" in said.reasons[0]


def test_runs_that_lie_apart_by_less_than_is_seen_are_covered():
    """Six runs of AR(0.9) with offsets of 0.2 sd of their own: 100 sets, one sigma of coverage is 2.2 points."""
    rng = np.random.default_rng(4)
    held, mixing = [], 0
    for _ in range(100):
        noise = rng.normal(size=(2200, 6)) * np.sqrt(1 - 0.81)
        x = lfilter([1.0], [1.0, -0.9], noise, axis=0)[200:]
        mixing += "R-hat" in ek.average(ek.ReplicaSet.of(list(x.T[:, ::4]))).verdict if len(held) < 40 else 0
        e = ek.average(ek.ReplicaSet.of(list((x + 0.2 * rng.normal(size=6)).T[:, ::4])))
        held.append(e.converged and e.low <= 0 <= e.high)
    assert np.mean(held) >= 0.88
    assert mixing <= 5      # of 40 sets without offsets; 5 % is 2


@pytest.mark.parametrize(("name", "runs"), [("AR .9", 20), ("telegraph .02 .18", 6)])
def test_equal_runs_are_not_said_to_differ(name, runs):
    """Short, skewed, many: of 24 sets 5 % are 1.2 (R-hat) and 1 % is 0.24 (disagreement)."""
    process, rng = PROCESSES[name], np.random.default_rng(9)
    n = round(20 * process.g)
    said = [ek.average(ek.ReplicaSet.of([process.make(rng, n) for _ in range(runs)])).verdict for _ in range(24)]
    assert sum("R-hat" in words for words in said) <= 5
    assert sum("disagree" in words for words in said) <= 3


def test_what_exchanged_blocks_show_is_that_of_equal_runs():
    """Exact for independent snapshots: sums of squares between are chi-squared."""
    rng = np.random.default_rng(3)
    runs = [rng.normal(size=n) for n in (300, 240, 480)]      # of blocks of 15
    between, chance = between_by_chance(runs, 1.0, 999)
    assert between == pytest.approx(sum(len(x) * (x.mean() - np.concatenate(runs).mean()) ** 2 for x in runs))
    assert chance.mean() == pytest.approx(2.0, rel=0.15)
    assert np.quantile(chance, 0.95) == pytest.approx(5.99, rel=0.15)
    far, none = between_by_chance([runs[0], runs[1], runs[2] + 0.5], 1.0, 199)
    assert far > none.max()


def test_two_runs_have_the_independent_snapshots_of_both():
    rng = np.random.default_rng(1)
    e = ek.average(ek.ReplicaSet.of([rng.normal(size=100), rng.normal(size=100)]))
    assert e.converged
    assert e.n_eff >= 40


@pytest.mark.skipif("ENSEMBLEKIT_DATA" not in os.environ, reason="ENSEMBLEKIT_DATA is not set")
def test_chains_of_eight_schools_are_not_of_one_distribution():
    h5py = pytest.importorskip("h5py")
    path = Path(os.environ["ENSEMBLEKIT_DATA"]) / "stats_eight_schools_mcmc" / "centered_eight.nc"
    with h5py.File(path) as file:
        mu = file["posterior/mu"][...]
    e = ek.average(ek.ReplicaSet.of(list(mu)))
    assert "R-hat is 1.025" in e.verdict


def test_runs_in_memory_are_read_as_through_a_map():
    """Arrays are taken as they are; a map has them cut into pieces: the same numbers, weights and times to the last bit."""
    rng = np.random.default_rng(5)
    runs = [ek.ArraySource.of(rng.normal(size=n).astype("f4"), weights=w, times=t) for n, w, t in
            [(300, rng.random(300), np.arange(300) * 0.5), (70, None, np.arange(70) * 0.5), (129, None, None)]]
    for one, other in zip(read_runs(ek.ReplicaSet.of(runs))[0], read_runs(ek.ReplicaSet.of(runs), lambda b: b.only)[0],
                          strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.values.dtype == other.values.dtype == np.float64
        np.testing.assert_array_equal(one.times, other.times)
        assert (one.weights is None) == (other.weights is None)
        if one.weights is not None:
            np.testing.assert_array_equal(one.weights, other.weights)
