import numpy as np
import pytest

from ensemblekit import rom
from ensemblekit.errors import InputError, StatisticsError


def test_laws_are_told_apart_and_their_rates_found():
    i = np.arange(1, 41)
    rate = rom.decay_rate(3 * np.exp(-0.25 * i))
    assert rate.kind == "exponential"
    assert rate.rate == pytest.approx(0.25)
    assert rate.energy_rate == pytest.approx(0.5)
    assert rate.decided
    rate = rom.decay_rate(3 * i**-1.5)
    assert rate.kind == "algebraic"
    assert rate.rate == pytest.approx(1.5)
    assert rate.scale == pytest.approx(3)
    np.testing.assert_allclose(rate.singular_values(i), 3 * i**-1.5)


def test_the_interval_holds_the_rate_as_often_as_it_says():
    rng = np.random.default_rng(5)
    i = np.arange(1, 61)
    hits = 0
    for _ in range(200):
        noise = np.repeat(rng.normal(0, 0.05, 30), 2)        # pairs: neighbours err alike
        rate = rom.decay_rate(np.sort(np.exp(-0.1 * i + noise))[::-1])
        hits += rate.interval[0] <= 0.1 <= rate.interval[1]
    assert 170 <= hits <= 200                                # 0.95 less a little for correlation in so short a series


def test_pairs_and_rounding_do_not_mislead():
    sigma = np.repeat(np.exp(-0.6 * np.arange(12)), 2)
    rate = rom.decay_rate(np.concatenate([sigma, np.full(30, 1e-9)]))
    assert rate.modes == (1, 24)
    assert rate.kind == "exponential"
    assert rate.interval[0] < 0.3 < rate.interval[1]


def test_how_many_modes_an_error_needs():
    i = np.arange(1, 200_001)
    for sigma in (np.exp(-0.25 * i[:60]), i**-1.5):
        rate = rom.decay_rate(sigma[:60])
        energy = np.append(np.cumsum(sigma[::-1] ** 2)[::-1], 0)
        true = int(np.flatnonzero(np.sqrt(energy / energy[0]) <= 0.02)[0])
        assert abs(rate.modes_for(0.02) - true) <= 1
    assert rom.decay_rate(i[:60] ** -0.4).modes_for(0.1) == np.inf


def test_heat_is_simple_and_a_moving_front_is_not():
    warm = rom.testbeds.record(rom.testbeds.heat(64, dimensions=1), 60, 2e-3)
    simple = rom.decay_rate(rom.pod(warm, rank=20, center="none"))
    assert simple.kind == "exponential"
    assert simple.rate > 0.8
    front = rom.testbeds.record(rom.testbeds.burgers(0.002, cells=1024, drift=1.0), 60, 0.007, after=0.4)
    hard = rom.decay_rate(rom.pod(front, rank=20))
    assert hard.kind == "algebraic"
    assert hard.rate == pytest.approx(1.0, abs=0.15)         # a jump that moves: σ_i ~ 1/i
    assert hard.decided


@pytest.mark.parametrize(("sigma", "error"), [([1, 2, 3, 4, 5, 6], InputError), ([[1.0]], InputError),
                                              ([3, 2, 1], StatisticsError), ([1, np.nan, 0, 0, 0], InputError),
                                              ([], StatisticsError)])
def test_no_rate_of_what_is_no_spectrum(sigma, error):
    with pytest.raises(error):
        rom.decay_rate(np.array(sigma, dtype=float))
    with pytest.raises(InputError):
        rom.decay_rate(np.exp(-np.arange(9.0)), modes=(4, 30))
