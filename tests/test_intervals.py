"""Intervals that are vouched for cover, on series that no setting was chosen by, and series without a mean are refused.

``python -m benchmarks core --coverage`` has the full table; the seeds here are its own. Bounds are 3 sigma of the binomial
below what the table says.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf

import ensemblekit as ek
from benchmarks.processes import PROCESSES, WITHOUT, autoregression
from ensemblekit.averaging import guard as guards
from ensemblekit.averaging.guard import half_widths, matched, of_blocks, of_components, spectrum, student


def tried(name: str, ratio: float, runs: int, seed: int = 31) -> tuple[float, float]:
    """Share vouched for, and coverage of these."""
    process = (PROCESSES | WITHOUT)[name]
    rng = np.random.default_rng([seed, round(ratio)])
    estimates = [ek.average(process.make(rng, round(ratio * process.g))) for _ in range(runs)]
    vouched = [e for e in estimates if e.converged]
    return len(vouched) / runs, float(np.mean([e.low <= process.mean <= e.high for e in vouched])) if vouched else np.nan


@pytest.mark.parametrize(("name", "ratio", "least"), [
    ("AR .5", 50, 0.90), ("AR .5", 20, 0.90), ("white + .35 AR .95", 200, 0.89), ("white + .15 AR .99", 200, 0.87),
    ("ARMA .9 -.8", 50, 0.89), ("AR .5 + .7 AR .98", 20, 0.88), ("telegraph .02 .18", 20, 0.90), ("counts .1", 50, 0.90),
])
def test_what_is_vouched_for_covers(name: str, ratio: float, least: float) -> None:
    vouched, coverage = tried(name, ratio, 120)
    assert coverage >= least
    assert vouched >= (0.3 if name in ("telegraph .02 .18", "counts .1") else 0.8)


def test_the_half_width_covers_a_slow_part_of_any_share() -> None:
    """Exact for Gaussian series: 20 000 draws of the components, 0.3 points of noise (one sigma 0.2)."""
    chi = np.random.default_rng(3).standard_normal((24, 20_000)) ** 2
    guard = of_components(24)
    slow, mean = spectrum(24, guards.HELD)
    for share in (0.5, 0.65, 0.8, 0.9, 1.0):
        half = half_widths(chi * (1 - share + share * slow)[:, None], guard, 0.0)
        assert erf(half / np.sqrt(2 * (1 - share + share * mean))).mean() >= 0.925
    flat = half_widths(chi, guard, 0.0)
    assert 0.95 <= erf(flat / np.sqrt(2)).mean() <= 0.975
    assert flat.mean() / 1.96 <= 1.36
    rising = chi * np.linspace(0.01, 2, 24)[:, None]
    assert (half_widths(rising, guard, 0.0) >= student(24) * np.sqrt(rising.mean(axis=0)) * (1 - 1e-12)).all()


@pytest.mark.parametrize("count", [4, 9, 16, 23, 31])
def test_the_half_width_of_blocks_covers_a_slow_part_of_any_share(count: int) -> None:
    counts = [count]
    while counts[-1] // 2 >= 4:
        counts.append(counts[-1] // 2)
    lengths = tuple(2**k for k in range(len(counts)))
    guard = of_blocks(lengths, tuple(counts), count)
    rng = np.random.default_rng(count)
    x = np.stack([rng.chisquare(d, 20_000) for d in guard.dof])
    share = guards.BLOCKS[count][0]
    half = half_widths(x * guard.shape[:, None], guard, 0.0)
    assert erf(half / np.sqrt(2 * guard.mean)).mean() >= 0.925
    assert 0.95 <= erf(half_widths(x, guard, 0.0) / np.sqrt(2)).mean() <= 0.99
    assert 0.5 < share <= 1.0
    assert guard.q == count - 1


def test_the_error_and_its_degrees_of_freedom_give_the_half_width() -> None:
    half = np.array([2.0, 2.5, 3.5, 9.0])
    stderr, dof = matched(np.ones(4), half)
    np.testing.assert_allclose([student(float(d)) * s for d, s in zip(dof, stderr, strict=True)], half, rtol=1e-4)
    assert (np.diff(dof) <= 0).all()
    assert dof.min() == pytest.approx(2.0, rel=1e-3)
    assert set(guards.COMPONENTS) >= {24, 16, 12, 8, 6}


@pytest.mark.parametrize(("name", "ratio", "refused"), [
    ("drift of 3 sd", 200, 0.97), ("drift of 1 sd", 300, 0.55), ("random walk", 50, 0.8), ("step of 1 sd", 700, 0.75),
    ("fractional noise .8", 2000, 0.75),
])
def test_what_one_run_cannot_tell_is_refused(name: str, ratio: float, refused: float) -> None:
    vouched, _ = tried(name, ratio, 40 if ratio < 1000 else 4)
    assert 1 - vouched >= refused


def test_stationary_series_are_not_called_drifting() -> None:
    for name in ("independent", "AR .9"):
        process, rng = PROCESSES[name], np.random.default_rng(6)
        said = [ek.average(process.make(rng, round(50 * process.g))).verdict for _ in range(80)]
        assert sum("drift" in words or "memory" in words for words in said) <= 3


def test_the_reasons_are_said() -> None:
    rng = np.random.default_rng(2)
    line = autoregression(rng, 2000, 0.5) + np.linspace(0, 8, 2000)
    assert "drifts" in ek.average(line, equilibration=None).verdict
    turning = np.where(np.arange(900) < 400, np.linspace(30, 0, 900), 0) + rng.normal(size=900)
    late = ek.average(turning)
    assert not late.converged
    assert "beyond a third" in late.verdict
    assert "beyond a third" in ek.average(np.stack([turning, turning], axis=1)).verdict
    assert ek.average(turning, equilibration=450).verdict == ""      # who says where it begins is believed
    rare = np.zeros(500)
    rare[200:205] = 1.0
    assert "rare excursions" in ek.average(rare).verdict


@pytest.mark.parametrize("x", [[1.0, 2, 3, 2, 1] * 20, [1.0, -1.0] * 50, [0.0, 1.0] * 32, np.sin(np.arange(200) * np.pi / 10)],
                         ids=["triangle", "alternating", "power of two", "sine"])
def test_a_series_that_moves_has_an_error(x) -> None:
    x = np.asarray(x)
    for e in (ek.average(x), ek.average(np.stack([x, 2 * x], axis=1))):
        sd = x.std(ddof=1)
        assert np.min(e.stderr) >= 0.2 * sd / len(x)
        assert np.max(e.n_eff) <= len(x)
        assert np.max(e.statistical_inefficiency) < 1.5


def test_arrays_cover_what_blocks_alone_did_not() -> None:
    rng = np.random.default_rng(12)
    for name, ratio in (("white + .35 AR .95", 200), ("white + .15 AR .99", 200), ("AR .5", 50)):
        process = PROCESSES[name]
        x = np.stack([process.make(rng, round(ratio * process.g)) for _ in range(250)], axis=1)
        e = ek.average(x, equilibration=None)
        assert np.mean((e.low <= 0) & (0 <= e.high)) >= 0.91


def tilted(rng: np.random.Generator, shift: float, n: int, phi: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """A series of N(0, 1) and the weights that make it one of N(shift, 1)."""
    x = autoregression(rng, n, phi)
    return x, np.exp(shift * x - shift**2)


def test_weights_that_rest_on_few_are_refused() -> None:
    rng = np.random.default_rng(8)
    estimates = [ek.average(x, weights=w) for x, w in (tilted(rng, 2.0, 3800) for _ in range(40))]
    assert sum(e.converged for e in estimates) <= 1
    estimates = [ek.average(x, weights=w) for x, w in (tilted(rng, 1.0, 3800) for _ in range(100))]
    kept = [e for e in estimates if e.converged]
    assert len(kept) >= 70
    assert np.mean([e.low <= 1 <= e.high for e in kept]) >= 0.89
    wild = [ek.average(rng.normal(size=1000), weights=np.exp(5 * rng.normal(size=1000))) for _ in range(20)]
    assert not any(e.converged for e in wild)
    x, w = tilted(rng, 2.0, 3800)
    assert "weights rest on" in ek.average(np.stack([x, x], axis=1), weights=w).verdict


@pytest.mark.parametrize("steep", [60, 700])
def test_weights_of_any_steepness_have_no_more_snapshots_than_kish_says(steep: float) -> None:
    logs = np.linspace(0, steep, 98)
    x = np.random.default_rng(4).normal(size=98)
    for values in (x, np.stack([x, x], axis=1)):
        e = ek.average(values, weights=np.exp(logs))
        assert not e.converged
        assert not np.any(np.asarray(e.n_eff) > ek.statistics.effective_samples(log_weights=logs) * (1 + 1e-9))


def test_a_start_that_carries_weight_is_kept() -> None:
    x = np.random.default_rng(5).normal(size=1000)
    w = np.ones(1000)
    w[0] = 1e9
    for values in (x, np.stack([x, x], axis=1)):
        e = ek.average(values, weights=w)
        assert e.n_discarded == 0
        np.testing.assert_allclose(e.mean, x[0], rtol=1e-5)
        assert not e.converged
    fall = x + 30 * np.exp(-np.arange(1000) / 20)
    assert 20 <= ek.average(fall, weights=np.exp(0.3 * np.random.default_rng(1).normal(size=1000))).n_discarded <= 333
