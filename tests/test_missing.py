"""Series with gaps and uneven times: what is missing keeps its place, and a mean over time is one over time."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError
from ensemblekit.source import ArraySource
from ensemblekit.source_clock import time_weights


def ar1(n: int, phi: float, seed: int = 1) -> np.ndarray:
    """An autoregressive series about 20 whose variance is 1."""
    from scipy.signal import lfilter

    noise = np.random.default_rng(seed).normal(size=n + 500) * np.sqrt(1 - phi**2)
    return 20 + lfilter([1.0], [1.0, -phi], noise)[500:]


def test_the_masked_series_of_the_manual() -> None:
    m = np.ma.array(20 + np.random.default_rng(0).normal(size=300))
    m[::10] = np.ma.masked
    m.data[::10] = -999
    plain = ek.average(m)
    assert np.isnan(plain.mean)
    assert "30 of 300 snapshots are not finite (first: 0)" in plain.verdict
    estimate = ek.average(m, missing="drop")
    assert estimate.mean == pytest.approx(m.mean(), rel=1e-12)
    assert (estimate.n + estimate.n_discarded) in range(268, 301)
    assert estimate.converged
    assert "30 of 300 snapshots are missing" in estimate.verdict
    assert estimate.stderr == pytest.approx(1 / np.sqrt(270), rel=0.25)
    with pytest.raises(InputError, match='"drop"'):
        ek.average(m, missing="skip")


@pytest.mark.parametrize("gaps", ["here and there", "a long one", "every second"])
def test_lags_are_differences_in_time(gaps: str) -> None:
    n = 20_000
    x = ar1(n, 0.9)
    there = {"here and there": np.random.default_rng(2).random(n) < 0.4, "a long one": abs(np.arange(n) - 8000) > 3000,
             "every second": np.arange(n) % 2 == 0}[gaps]
    y = np.where(there, x, np.nan)
    estimate = ek.average(y, missing="drop", equilibration=None)
    assert estimate.mean == pytest.approx(y[there].mean(), rel=1e-12)
    assert estimate.n == there.sum()
    assert estimate.correlation_time == pytest.approx(9.5, rel=0.25)     # (1 + phi) / (1 - phi) / 2
    # the error of a mean of these places, from the series' own autocovariance
    gamma = 0.9 ** np.arange(400)
    pairs = np.array([(there[:n - k] & there[k:]).sum() for k in range(400)])
    want = np.sqrt(gamma[0] * pairs[0] + 2 * (gamma[1:] * pairs[1:]).sum()) / there.sum()
    assert estimate.stderr == pytest.approx(want, rel=0.2)


def test_arrays_number_by_number() -> None:
    rng = np.random.default_rng(3)
    n = 4096
    x = np.stack([ar1(n, 0.8, seed) for seed in range(3)] + [np.full(n, np.nan)], axis=1)
    x[rng.random(x.shape) < 0.3] = np.nan
    estimate = ek.average(x, missing="drop", equilibration=None)
    np.testing.assert_allclose(estimate.mean[:3], np.nanmean(x[:, :3], axis=0), rtol=1e-12)
    assert np.isnan(estimate.mean[3])
    assert not estimate.converged
    assert "4 of 4 elements are missing in some snapshots, 1 in all" in estimate.verdict
    for k in range(3):
        one = ek.average(x[:, k], missing="drop", equilibration=None)
        assert estimate.stderr[k] == pytest.approx(one.stderr, rel=0.35)
        assert estimate.n_eff[k] == pytest.approx(one.n_eff, rel=0.6)
    whole = ek.average(x[:, :2], missing="drop", map=lambda block: block.only * 2.0, equilibration=None)
    np.testing.assert_allclose(whole.mean, 2 * np.nanmean(x[:, :2], axis=0), rtol=1e-12)
    still = x[:, :2].copy()
    still[:1000] += 50
    cut = ek.average(still, missing="drop", equilibration=1024)
    np.testing.assert_allclose(cut.mean, np.nanmean(x[cut.n_discarded:, :2], axis=0), rtol=1e-12)


def test_gaps_cover_as_often_as_they_should() -> None:
    rng = np.random.default_rng(4)
    inside = vouched = 0
    for seed in range(100):
        x = ar1(2000, 0.8, 100 + seed)
        x[rng.random(2000) < 0.3] = np.nan
        estimate = ek.average(x, missing="drop")
        if estimate.converged:
            vouched += 1
            inside += estimate.low <= 20 <= estimate.high
    assert vouched >= 80
    assert inside >= 0.89 * vouched        # 95 % less 2.8 standard errors of 100 trials


def adaptive(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of bursts, u = 1, that are looked at a hundred times as often as the rest, where u = 0."""
    burst = np.arange(n) % 100 < 50
    return np.cumsum(np.where(burst, 0.01, 1.0)), burst.astype(float)


def test_means_over_time() -> None:
    times, u = adaptive()
    want = np.trapezoid(u, times) / (times[-1] - times[0])
    one = ArraySource.of(u, times=times, time_unit="s")
    plain = ek.average(one, equilibration=None)
    assert plain.mean == pytest.approx(0.5, rel=0.01)
    assert 'steps of time differ by a factor 100' in plain.verdict
    estimate = ek.average(one, weights="time", equilibration=None)
    assert estimate.mean == pytest.approx(want, rel=1e-9)
    assert "differ by a factor" not in estimate.verdict
    several = ArraySource.of(np.stack([u, 2 * u], 1), times=times)
    assert 'weights="time"' in rom.average(several, equilibration=None)["values_mean"].verdict
    field = rom.average(several, weights="time", equilibration=None)["values_mean"]
    np.testing.assert_allclose(field.mean, [want, 2 * want], rtol=1e-9)
    even = ArraySource.of(np.random.default_rng(0).normal(size=200), times=np.arange(200.0))
    assert "differ" not in ek.average(even).verdict
    for call in (lambda: ek.average(u, weights="time"), lambda: time_weights([1.0, 1.0])):
        with pytest.raises(InputError, match="needs times"):
            call()
    with pytest.raises(InputError, match='"time"'):
        ek.average(one, weights="steps")


def test_times_that_are_all_the_same_are_none() -> None:
    x = ar1(400, 0.8)
    one = ek.average(ArraySource.of(x, times=np.zeros(400), time_unit="ps"), equilibration=None)
    none = ek.average(x, equilibration=None)
    assert one.correlation_time == none.correlation_time
    assert one.time_unit == ""
    assert one.times is None
    assert "all times are the same, so snapshots are counted" in one.verdict


@pytest.mark.filterwarnings("ignore:Reader has no dt")
def test_models_have_no_times(tmp_path: Path) -> None:
    pytest.importorskip("MDAnalysis")
    from ensemblekit import md

    atom = "ATOM  {0:5d}  CA  ALA A{0:4d}    {1:8.3f}{2:8.3f}{3:8.3f}  1.00  0.00           C\n"
    rng = np.random.default_rng(5)
    text = "".join(f"MODEL     {k + 1:4d}\n" + "".join(atom.format(a + 1, *rng.normal(size=3)) for a in range(4)) + "ENDMDL\n"
                   for k in range(30))
    (tmp_path / "nmr.pdb").write_text(text + "END\n")
    with pytest.warns(UserWarning, match="these frames have no times: they are counted"):
        estimate = md.average(md.read(tmp_path / "nmr.pdb"), {"rg": md.RadiusOfGyration("all")}, quiet=True)["rg"]
    assert estimate.times is None
    assert "ps" not in str(estimate)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="these frames")
        estimate = md.average(md.read(tmp_path / "nmr.pdb", tmp_path / "nmr.pdb", dt=2.0), {"rg": md.RadiusOfGyration("all")},
                              quiet=True)["rg"]
    assert estimate.times is not None
    assert estimate.times[1] == 2.0


def test_reducers_leave_out_what_is_missing() -> None:
    from scipy.stats import kurtosis, skew

    rng = np.random.default_rng(6)
    x = rng.normal(3, 2, size=(500, 5))
    x[rng.random(x.shape) < 0.3] = np.nan
    x[:, 4] = np.nan
    w = rng.random(500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for values in (x, np.ma.masked_invalid(x)):
            out = ek.reduce(values, ek.Moments(4), missing="drop")
            np.testing.assert_allclose(out.mean, np.nanmean(x, axis=0), rtol=1e-12)
            np.testing.assert_allclose(out.variance, np.nanvar(x, axis=0, ddof=1), rtol=1e-12)
            np.testing.assert_allclose(out.skewness[:4], skew(x[:, :4], nan_policy="omit"), rtol=1e-9)
            np.testing.assert_allclose(out.kurtosis[:4], kurtosis(x[:, :4], nan_policy="omit"), rtol=1e-9)
            assert out.sum_weights.tolist() == np.isfinite(x).sum(axis=0).tolist()
    weighted = ek.reduce(ArraySource.of(x, weights=w), ek.Moments(), missing="drop")
    there = np.isfinite(x[:, 0])
    assert weighted.mean[0] == pytest.approx(np.average(x[there, 0], weights=w[there]), rel=1e-12)
    plain = ek.reduce(ArraySource.of(x[there, :1], weights=w[there]), ek.Moments())
    assert weighted.variance[0] == pytest.approx(plain.variance[0], rel=1e-12)
    for size in (1e200, 1e-200):        # variances beyond float64: their roots are right
        sized = ek.reduce(x[:, :4] * size, ek.Moments(), missing="drop")
        np.testing.assert_allclose(sized.std, size * np.nanstd(x[:, :4], axis=0, ddof=1), rtol=1e-12)
    states = ek.partials(x, {"m": ek.Moments()}, missing="drop")[0]
    np.testing.assert_allclose(ek.merged(states)["m"][0].result().mean[:4], np.nanmean(x[:, :4], axis=0), rtol=1e-12)
    assert np.isnan(ek.reduce(x, ek.Moments()).mean).all()
    rows = rng.normal(size=(500, 3))
    rows[::7] = np.nan
    kept = rows[np.isfinite(rows[:, 0])]
    out = ek.reduce(rows, {"cov": ek.Covariance(), "ends": ek.Extremes(), "all": ek.Series(), "median": ek.Quantiles([0.5])},
                    missing="drop")
    assert ((out["median"].lower[0] <= np.median(kept, axis=0)) & (np.median(kept, axis=0) <= out["median"].upper[0])).all()
    np.testing.assert_allclose(out["cov"].covariance, np.cov(kept.T), rtol=1e-12)
    np.testing.assert_array_equal(out["ends"].low, kept.min(axis=0))
    np.testing.assert_array_equal(rows[out["ends"].at_low, range(3)], kept.min(axis=0))
    assert out["all"].shape == (500, 3)
    with pytest.raises(ek.EnsemblekitError, match="snapshot 0 is NaN in"):
        ek.reduce(x, ek.Covariance(), missing="drop")
    with pytest.raises(InputError, match="Exponential takes every snapshot"):
        ek.reduce(rows, ek.Exponential(0.1), missing="drop")
    with pytest.raises(InputError, match='"drop"'):
        ek.reduce(rows, ek.Moments(), missing="ignore")     # type: ignore[call-overload,unused-ignore]


def test_frames_without_a_value_are_left_out() -> None:
    pytest.importorskip("MDAnalysis")
    from ensemblekit import md
    from ensemblekit.md.topology import mdanalysis

    n = 1000
    x = ar1(n, 0.8).astype(np.float32)
    gone = np.random.default_rng(8).random(n) < 0.3
    with mdanalysis() as mda:
        u = mda.Universe.empty(2, trajectory=True)
        places = np.stack([x, gone], axis=1)[:, :, None] * np.ones(3, np.float32)
        u.load_new(places)

    def value(group: object) -> float:
        (here, _, _), (missing, _, _) = group.positions      # type: ignore[attr-defined]
        return float("nan") if missing else float(here)

    def pair(group: object) -> np.ndarray:
        return np.array([1.0, 2.0]) * value(group)

    w = np.exp(0.3 * np.random.default_rng(9).normal(size=n))
    for weights in (None, w):
        averages = md.average(u, {"one": value, "two": pair}, missing="drop", frame_weights=weights, equilibration=None,
                              quiet=True)
        want = np.average(x[~gone].astype(float), weights=None if weights is None else w[~gone])
        assert averages["one"].mean == pytest.approx(want, rel=1e-12)
        np.testing.assert_allclose(averages["two"].mean, [want, 2 * want], rtol=1e-12)
        series = ek.average(np.where(gone, np.nan, x.astype(float)), weights=weights, missing="drop", equilibration=None)
        assert averages["one"].stderr == pytest.approx(series.stderr, rel=1e-9)
        assert averages["two"].stderr[0] == pytest.approx(series.stderr, rel=0.35)
        assert averages["one"].n == averages["two"].n == (~gone).sum()
        for one in averages.values():
            assert f"{gone.sum()} of {n} snapshots are missing" in one.verdict
    assert np.isnan(md.average(u, {"one": value}, quiet=True)["one"].mean)
    with pytest.raises(ek.EnsemblekitError, match="is NaN in 1 of 2 numbers"):
        md.average(u, {"part": lambda group: np.array([value(group), 1.0])}, missing="drop", quiet=True)
    with pytest.raises(InputError, match="msd: these observables have statistics of their own"):
        md.average(u, {"msd": md.MSD("all")}, missing="drop", quiet=True)


def test_cells_of_a_flow_without_a_number_are_left_out() -> None:
    rng = np.random.default_rng(10)
    x = np.stack([ar1(2048, 0.8, seed) for seed in range(12)], axis=1)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[:, 7] = np.nan
    w = np.exp(0.3 * rng.normal(size=len(x)))
    for weights in (None, w):
        source = ArraySource.of(x, weights=weights)
        averages = rom.average(source, ["mean", "rms"], missing="drop", equilibration=None)
        there = np.isfinite(x) * (1.0 if weights is None else w[:, None])
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(averages["mean"].mean, np.nansum(there * x, axis=0) / there.sum(axis=0), rtol=1e-12)
        core = ek.average(source, missing="drop", equilibration=None)
        np.testing.assert_allclose(averages["mean"].stderr, core.stderr, rtol=1e-6 if weights is None else 0.05)
        assert "12 of 12 numbers are missing in some snapshots, 1 in all" in averages["mean"].verdict
        assert not averages["mean"].converged
    parts = rom.average(x, ["mean", "rms"], missing="drop", equilibration=None, memory_limit="4MB")
    plain = rom.average(x, ["mean", "rms"], missing="drop", equilibration=None)
    large = rom.average(x * 1e200, ["mean", "rms"], missing="drop", equilibration=None)
    for name in ("mean", "rms"):
        np.testing.assert_array_equal(parts[name].stderr, plain[name].stderr)
        np.testing.assert_allclose(large[name].stderr, 1e200 * plain[name].stderr, rtol=1e-9)
    assert plain["rms"].mean[:7] == pytest.approx(np.nanstd(x[:, :7], axis=0), rel=0.02)
    assert np.isnan(rom.average(x, equilibration=None)["mean"].mean).all()
    velocity = np.stack([x, np.roll(x, 3, axis=1)], axis=-1)[:, :5]
    both = np.isfinite(velocity).all(axis=-1)
    stress = rom.average(velocity, ["reynolds_stress", "tke"], missing="drop", equilibration=None)
    cov = np.cov(velocity[both[:, 0], 0].T)
    np.testing.assert_allclose(stress["reynolds_stress"].mean[0], [cov[0, 0], cov[1, 1], cov[0, 1]], rtol=0.01, atol=0.01)
    assert stress["tke"].mean[0] == pytest.approx(0.5 * np.trace(cov), rel=0.01)
    late = x.copy()
    late[:500] = np.nan
    averages = rom.average(late, missing="drop")
    assert np.nanmax(np.abs(averages["mean"].mean - np.nanmean(late[:, [k for k in range(12) if k != 7]], axis=0).mean())) < 1
    with pytest.raises(InputError, match='"drop"'):
        rom.average(x, missing="skip")      # type: ignore[arg-type]


def test_modes_over_time() -> None:
    rng = np.random.default_rng(11)
    x, w = rng.normal(size=(60, 5)), rng.random(60)
    want = rom.pod(ArraySource.of(x, weights=w), 2).singular_values
    for basis in (rom.pod(x, 2, weights=w, snapshot_axis=0), rom.pod(ArraySource.of(x), 2, log_weights=np.log(w) + 1e4),
                  rom.pod(x.T, 2, weights=w, snapshot_axis=1)):
        np.testing.assert_allclose(basis.singular_values, want, rtol=1e-9)
    times = np.cumsum(np.where(np.arange(60) % 10 < 5, 0.01, 1.0))
    timed = ArraySource.of(x, times=times)
    with pytest.warns(UserWarning, match="steps of time differ by a factor 100"):
        rom.pod(timed, 2)
    with pytest.warns(UserWarning, match="steps of time differ by a factor 100"):
        rom.IncrementalPOD(rank=2).update(timed).result()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        basis = rom.pod(timed, 2, weights="time")
    one = rom.pod(ArraySource.of(x, weights=time_weights(times)), 2)
    np.testing.assert_allclose(basis.singular_values, one.singular_values)
    np.testing.assert_allclose(basis.mean, np.trapezoid(x, times, axis=0) / (times[-1] - times[0]), rtol=1e-9)
    for options in ({"weights": "step"}, {"weights": w, "log_weights": w}, {"log_weights": w[:4]}):
        with pytest.raises(InputError, match=r"time|not both|one number a snapshot"):
            rom.pod(timed, 2, **options)
    with pytest.raises(InputError, match="needs times"):
        rom.pod(x, 2, weights="time")
    with pytest.raises(InputError, match="go with one run"):
        rom.pod(ek.ReplicaSet.of([x, x]), 2, weights=w)


def test_what_is_said_of_runs_is_said_of_them_together() -> None:
    times, u = adaptive(1000)
    runs = [ArraySource.of(u + 0.1 * np.random.default_rng(seed).normal(size=1000), times=times) for seed in range(2)]
    assert "steps of time differ by a factor 100" in ek.average(ek.ReplicaSet.of(runs), equilibration=None).verdict
    angles = ArraySource.of(100 * u, times=times)
    assert "steps of time differ" in ek.average(angles, period=360.0).verdict
    gaps = [ar1(500, 0.5, seed) for seed in range(2)]
    gaps[1][::5] = np.nan
    estimate = ek.average(ek.ReplicaSet.of(gaps), missing="drop")
    assert "run 1: " in estimate.verdict
    assert "snapshots are missing" in estimate.verdict
