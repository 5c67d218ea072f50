"""Where a run has forgotten its start."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from benchmarks.processes import PROCESSES
from ensemblekit.averaging.equilibration import _inefficiency, detect_equilibration, significant_start
from ensemblekit.errors import InputError, StatisticsError


def ar1(phi: float, n: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(n + 2000)
    return lfilter([np.sqrt(1 - phi**2)], [1, -phi], noise)[2000:]


def with_transient(n: int = 4000, size: float = 15.0, decay: float = 60.0) -> np.ndarray:
    return ar1(0.8, n, 4) + size * np.exp(-np.arange(n) / decay)


@pytest.mark.parametrize("x", [with_transient(), ar1(0.5, 700, 1), ar1(0.98, 1500, 2), np.cumsum(ar1(0.0, 600, 3))],
                         ids=["transient", "stationary", "slow", "walk"])
def test_within_one_percent_of_trying_every_start(x: np.ndarray) -> None:
    y = x - x[len(x) // 2:].mean()
    worth = max((len(y) - t) / _inefficiency(y[t:]) for t in range(len(y) - 4))
    equilibration = detect_equilibration(x, step=1)
    assert worth * 0.99 <= equilibration.n_eff <= worth * (1 + 1e-9)
    assert equilibration.n_eff == pytest.approx((len(x) - equilibration.start) / equilibration.g)
    assert equilibration.n_eff_whole == pytest.approx(len(x) / _inefficiency(y), rel=1e-9)


def test_a_transient_is_found_and_stationary_data_are_kept() -> None:
    assert 150 <= significant_start(with_transient()) <= 1000
    kept = [significant_start(ar1(0.9, 950, k)) for k in range(200)]
    assert np.mean(np.array(kept) > 0) <= 0.04


@pytest.mark.parametrize("size", [1e2, 1e6, -1e12])
def test_one_bad_first_point(size: float) -> None:
    x = ar1(0.5, 1000)
    x[0] = size
    equilibration = detect_equilibration(x)
    assert equilibration.significant
    assert 1 <= equilibration.start < 400
    assert 2 < equilibration.g < 5
    assert detect_equilibration(x, method="mser").start >= 1


def test_mser_finds_the_transient() -> None:
    assert 100 <= detect_equilibration(with_transient(), method="mser").start <= 600


@pytest.mark.parametrize("x", [np.ones(500), np.full(50, 1e9), np.arange(5.0), np.zeros(1)])
def test_nothing_to_find(x: np.ndarray) -> None:
    equilibration = detect_equilibration(x)
    assert (equilibration.start, equilibration.significant) == (0, False)


def test_a_series_that_is_constant_at_the_end_or_the_start() -> None:
    x = np.concatenate([ar1(0.5, 300), np.full(300, 2.0)])
    assert np.isfinite(detect_equilibration(x).n_eff)
    assert np.isfinite(detect_equilibration(x[::-1]).n_eff)


def test_a_million_snapshots_in_seconds() -> None:
    import time

    x = ar1(0.98, 1_000_000)
    x[:50_000] += 8 * np.exp(-np.arange(50_000) / 5000)
    detect_equilibration(x[:2000])
    begin = time.process_time()
    equilibration = detect_equilibration(x)
    assert time.process_time() - begin < 20        # about one second of one processor
    assert 5_000 <= equilibration.start <= 60_000


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="mser"):
        detect_equilibration(np.arange(9.0), method="eye")      # type: ignore[arg-type]
    with pytest.raises(InputError, match="step"):
        detect_equilibration(np.arange(9.0), step=0)
    with pytest.raises(InputError, match="not finite"):
        detect_equilibration(np.array([1.0, np.nan] * 8))
    with pytest.raises(StatisticsError, match="empty"):
        detect_equilibration(np.array([]))


def test_a_slow_part_under_noise_is_no_start() -> None:
    """n_eff jumps from start to start where g is that of the noise; what comes before is not apart."""
    process, rng = PROCESSES["white + .25 AR .98"], np.random.default_rng(3)
    n = round(200 * process.g)
    starts = [significant_start(process.make(rng, n)) for _ in range(80)]
    assert np.count_nonzero(starts) <= 8
    late = [significant_start(process.make(rng, n) + 8 * np.exp(-np.arange(n) / 100)) for _ in range(10)]
    assert np.count_nonzero(late) >= 9
