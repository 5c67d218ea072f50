"""Series with gaps and uneven times: what is missing keeps its place, and a mean over time is one over time."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError
from ensemblekit.source import ArraySource, time_weights


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
    found = ek.average(m, missing="drop")
    assert found.mean == pytest.approx(m.mean(), rel=1e-12)
    assert (found.n + found.n_discarded) in range(268, 301)
    assert found.converged
    assert "30 of 300 snapshots are missing" in found.verdict
    assert found.stderr == pytest.approx(1 / np.sqrt(270), rel=0.25)
    with pytest.raises(InputError, match='"drop"'):
        ek.average(m, missing="skip")


@pytest.mark.parametrize("gaps", ["here and there", "a long one", "every second"])
def test_lags_are_differences_in_time(gaps: str) -> None:
    n = 20_000
    x = ar1(n, 0.9)
    there = {"here and there": np.random.default_rng(2).random(n) < 0.4, "a long one": abs(np.arange(n) - 8000) > 3000,
             "every second": np.arange(n) % 2 == 0}[gaps]
    y = np.where(there, x, np.nan)
    found = ek.average(y, missing="drop", equilibration=None)
    assert found.mean == pytest.approx(y[there].mean(), rel=1e-12)
    assert found.n == there.sum()
    assert found.correlation_time == pytest.approx(9.5, rel=0.25)     # (1 + phi) / (1 - phi) / 2
    # the error of a mean of these places, from the series' own autocovariance
    gamma = 0.9 ** np.arange(400)
    pairs = np.array([(there[:n - k] & there[k:]).sum() for k in range(400)])
    want = np.sqrt(gamma[0] * pairs[0] + 2 * (gamma[1:] * pairs[1:]).sum()) / there.sum()
    assert found.stderr == pytest.approx(want, rel=0.2)


def test_arrays_number_by_number() -> None:
    rng = np.random.default_rng(3)
    n = 4096
    x = np.stack([ar1(n, 0.8, seed) for seed in range(3)] + [np.full(n, np.nan)], axis=1)
    x[rng.random(x.shape) < 0.3] = np.nan
    found = ek.average(x, missing="drop", equilibration=None)
    np.testing.assert_allclose(found.mean[:3], np.nanmean(x[:, :3], axis=0), rtol=1e-12)
    assert np.isnan(found.mean[3])
    assert not found.converged
    assert "4 of 4 elements are missing in some snapshots, 1 in all" in found.verdict
    for k in range(3):
        one = ek.average(x[:, k], missing="drop", equilibration=None)
        assert found.stderr[k] == pytest.approx(one.stderr, rel=0.35)
        assert found.n_eff[k] == pytest.approx(one.n_eff, rel=0.6)
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
        found = ek.average(x, missing="drop")
        if found.converged:
            vouched += 1
            inside += found.low <= 20 <= found.high
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
    found = ek.average(one, weights="time", equilibration=None)
    assert found.mean == pytest.approx(want, rel=1e-9)
    assert "differ by a factor" not in found.verdict
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
        found = md.average(md.read(tmp_path / "nmr.pdb"), {"rg": md.RadiusOfGyration("all")}, quiet=True)["rg"]
    assert found.times is None
    assert "ps" not in str(found)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="these models")
        found = md.average(md.read(tmp_path / "nmr.pdb", tmp_path / "nmr.pdb", dt=2.0), {"rg": md.RadiusOfGyration("all")},
                           quiet=True)["rg"]
    assert found.times is not None
    assert found.times[1] == 2.0
