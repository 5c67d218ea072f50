import numpy as np
import pytest
from scipy.signal import lfilter

import ensemblekit as ek
from ensemblekit.averaging.resample import block_bootstrap, jackknife, jackknife_states, optimal_block_length
from ensemblekit.errors import InputError, StatisticsError


def ar1(rng, phi, n):
    return lfilter([1], [1, -phi], rng.normal(size=n), zi=[phi * rng.normal() / np.sqrt(1 - phi**2)])[0]


def variance(m):
    return m[..., 1] - m[..., 0] ** 2


SCHEMES = ["stationary", "circular", "moving"]


@pytest.mark.parametrize("phi", [0.3, 0.7, 0.9])
def test_block_length_of_ar1_is_its_closed_form(phi):
    """(2 φ/(1 - φ²))^(2/3) n^(1/3) for the stationary scheme, (3/2)^(1/3) of it for fixed blocks."""
    rng = np.random.default_rng(1)
    length = np.mean([optimal_block_length(ar1(rng, phi, 20_000)) for _ in range(10)])
    assert length == pytest.approx((2 * phi / (1 - phi**2)) ** (2 / 3) * 20_000 ** (1 / 3), rel=0.15)
    x = ar1(rng, phi, 20_000)
    assert optimal_block_length(x, "circular") == pytest.approx(1.5 ** (1 / 3) * optimal_block_length(x), rel=1e-12)


def test_block_length_at_the_edges():
    assert optimal_block_length(np.ones(100)) == 1
    assert optimal_block_length(np.arange(100.0)) <= np.ceil(min(3 * 10, 100 / 3))
    x = ar1(np.random.default_rng(2), 0.9, 2000)
    assert optimal_block_length(np.column_stack([np.ones(2000), x])) == optimal_block_length(x)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_error_of_a_correlated_mean(scheme):
    phi, n, rng = 0.8, 20_000, np.random.default_rng(3)
    truth = 1 / (1 - phi) / np.sqrt(n)
    stderr = np.mean([block_bootstrap(ar1(rng, phi, n), scheme=scheme, n_resamples=200).stderr for _ in range(10)])
    assert stderr == pytest.approx(truth, rel=0.1)


def test_the_resampled_sums_are_sums_over_the_drawn_snapshots():
    from ensemblekit.averaging.resample import _draws, _Sums

    x = np.random.default_rng(4).normal(size=(50, 2))
    for scheme in SCHEMES:
        for length in (1, 7, 50):
            (starts, lengths), = _draws(np.random.default_rng(5), scheme, length, 50, 30)
            assert (lengths.sum(axis=1) == 50).all()
            if scheme == "moving":
                assert (starts + lengths <= 50).all()
            rows = [np.concatenate([np.arange(s, s + k) % 50 for s, k in zip(*pair, strict=True)])
                    for pair in zip(starts, lengths, strict=True)]
            expected = np.array([x[row].sum(axis=0) for row in rows])
            np.testing.assert_allclose(_Sums(x).of(starts, lengths), expected, atol=1e-12)


def test_blocks_of_one_are_the_plain_bootstrap():
    x = np.random.default_rng(6).normal(size=5000)
    bootstrap = block_bootstrap(x, block_length=1, n_resamples=4000)
    assert bootstrap.stderr == pytest.approx(x.std() / np.sqrt(5000), rel=0.05)
    assert bootstrap.value == pytest.approx(x.mean(), rel=1e-12)


@pytest.mark.parametrize("interval", ["bca", "percentile", "basic"])
def test_coverage_of_a_ratio(interval):
    rng, hits = np.random.default_rng(7), 0
    for k in range(100):
        x = np.column_stack([np.exp(0.3 * ar1(rng, 0.6, 1500)), 2 + 0.3 * ar1(rng, 0.6, 1500)])
        low, high = block_bootstrap(x, lambda m: m[..., 0] / m[..., 1], n_resamples=300, interval=interval,
                                    vectorised=True, rng=k).interval
        hits += low < np.exp(0.045 / (1 - 0.36)) / 2 < high
    assert hits >= 85           # nominal 95; 90 % coverage (blocks are short of the tail) gives fewer with 5 %


def test_r_to_the_minus_six():
    rng = np.random.default_rng(8)
    r = 4 + 0.5 * ar1(rng, 0.5, 4000)
    jackknifed = jackknife(r**-6.0, lambda m: m[0] ** (-1 / 6))
    boot = block_bootstrap(r**-6.0, lambda m: m[0] ** (-1 / 6), n_resamples=500)
    assert jackknifed.value == pytest.approx(np.mean(r**-6.0) ** (-1 / 6))
    assert boot.stderr == pytest.approx(jackknifed.stderr, rel=0.4)


def test_the_jackknife_of_a_mean_is_the_error_of_block_means():
    x = ar1(np.random.default_rng(9), 0.5, 1000)
    jackknifed = jackknife(x, block_length=100)
    means = x.reshape(10, 100).mean(axis=1)
    assert jackknifed.stderr == pytest.approx(means.std(ddof=1) / np.sqrt(10), rel=1e-10)
    assert jackknifed.bias == pytest.approx(0, abs=1e-12)
    assert jackknifed.n_resamples == 10


def test_the_jackknife_takes_the_bias_out_of_a_variance():
    x = np.random.default_rng(10).normal(size=60)
    jackknifed = jackknife(np.column_stack([x, x**2]), variance, block_length=1)
    assert jackknifed.value - jackknifed.bias == pytest.approx(x.var(ddof=1), rel=1e-10)


def test_unequal_blocks_of_the_jackknife():
    x = ar1(np.random.default_rng(11), 0.5, 1003)
    jackknifed = jackknife(x, block_length=100)
    assert jackknifed.n_resamples == 10
    assert jackknifed.bias == pytest.approx(0, abs=1e-12)
    assert jackknifed.stderr == pytest.approx(jackknife(x[:1000], block_length=100).stderr, rel=0.1)


@pytest.mark.parametrize("method", ["bootstrap", "jackknife"])
def test_weights_of_zero_leave_snapshots_out_and_scale_does_not_matter(method):
    rng = np.random.default_rng(12)
    x, w = ar1(rng, 0.5, 2000), rng.uniform(size=2000)
    run = (lambda **k: block_bootstrap(x, n_resamples=200, **k)) if method == "bootstrap" else \
        (lambda **k: jackknife(x, **k))
    bootstrap = run(weights=w)
    assert bootstrap.value == pytest.approx(np.average(x, weights=w), rel=1e-12)
    assert run(weights=1e9 * w).stderr == pytest.approx(bootstrap.stderr, rel=1e-9)
    assert run(weights=np.ones(2000)).stderr == pytest.approx(run().stderr, rel=1e-12)


def test_the_block_length_is_that_of_the_weighted_residual():
    rng = np.random.default_rng(18)
    x, w = ar1(rng, 0.8, 3000), np.exp(2 * rng.normal(size=3000))
    length = block_bootstrap(x, weights=w, n_resamples=20).block_length
    assert length == pytest.approx(optimal_block_length(w * (x - np.average(x, weights=w))), rel=1e-12)
    assert length < 0.8 * block_bootstrap(x, n_resamples=20).block_length


def test_the_error_of_weighted_correlated_averages_is_the_spread_of_repeats():
    rng = np.random.default_rng(13)
    pairs = [(ar1(rng, 0.8, 3000), np.exp(0.5 * ar1(rng, 0.8, 3000))) for _ in range(150)]
    truth = np.std([np.average(x, weights=w) for x, w in pairs])
    errors = [jackknife(x, weights=w).stderr for x, w in pairs]
    assert np.mean(errors) == pytest.approx(truth, rel=0.2)


def test_vectorised_and_not_give_the_same_and_seeds_repeat():
    x = ar1(np.random.default_rng(14), 0.5, 500)
    pair = np.column_stack([x, x**2])
    a = block_bootstrap(pair, variance, n_resamples=100, rng=3)
    b = block_bootstrap(pair, variance, n_resamples=100, rng=3, vectorised=True)
    assert a.stderr == b.stderr
    assert a.interval == b.interval
    assert a.stderr != block_bootstrap(pair, variance, n_resamples=100, rng=4).stderr


def test_a_large_offset_costs_no_digits():
    x = ar1(np.random.default_rng(15), 0.5, 500)
    a, b = (block_bootstrap(y, n_resamples=100).stderr for y in (x, x + 1e9))
    assert b == pytest.approx(a, rel=1e-5)


def test_vector_outputs_keep_their_shape():
    x = np.random.default_rng(16).normal(size=(300, 3))
    bootstrap = block_bootstrap(x, n_resamples=100)
    assert bootstrap.value.shape == bootstrap.stderr.shape == bootstrap.interval[0].shape == (3,)
    assert jackknife(x, lambda m: np.outer(m, m)).stderr.shape == (3, 3)


def test_a_constant_series_has_no_error():
    assert block_bootstrap(np.ones(50)).stderr == 0
    assert jackknife(np.ones(50)).stderr == 0


def test_jackknife_over_partial_states_is_the_one_over_snapshots():
    x = ar1(np.random.default_rng(17), 0.5, 1000)
    states = ek.partials(x, {"m": ek.Moments()}, keep=32)[0]
    jackknifed = jackknife_states(states, lambda s: s["m"][0].result().mean)
    starts = states.starts
    means = np.array([part.mean() for part in np.split(x, starts[1:])])
    sizes = np.diff([*starts, 1000])
    h = 1000 / sizes
    assert jackknifed.value == pytest.approx(x.mean(), rel=1e-12)
    assert jackknifed.stderr == pytest.approx(np.sqrt(np.mean((means - x.mean()) ** 2 / (h - 1))), rel=1e-9)
    again = jackknife_states(states, lambda s: s["m"][0].result().mean)
    assert again.stderr == jackknifed.stderr         # the states given are left as they were


@pytest.mark.parametrize(("call", "message"), [
    (lambda: block_bootstrap(np.ones((2, 3, 4))), "shape"),
    (lambda: block_bootstrap(1j * np.ones(9)), "real"),
    (lambda: block_bootstrap([1, 2, np.nan, 4]), "snapshot 2 is not finite"),
    (lambda: block_bootstrap(np.ones(9), weights=-np.ones(9)), "negative"),
    (lambda: block_bootstrap(np.ones(9), scheme="fixed"), "scheme"),
    (lambda: block_bootstrap(np.ones(9), interval="t"), "interval"),
    (lambda: block_bootstrap(np.ones(9), block_length=10), "block_length"),
    (lambda: block_bootstrap(np.ones(9), confidence=95), "confidence"),
    (lambda: block_bootstrap(np.ones(9), n_resamples=1), "n_resamples"),
    (lambda: block_bootstrap(np.ones(9), lambda m: m[0, 0], vectorised=True), "one row a resample"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: block_bootstrap([1, 2, 3]), "at least 4"),
    (lambda: jackknife(np.ones(9), block_length=5), "1 blocks of 5"),
    (lambda: block_bootstrap(np.ones(9), weights=np.zeros(9)), "all weights are zero"),
    (lambda: jackknife(np.arange(9.0), weights=np.eye(9)[3]), "one block"),
    (lambda: block_bootstrap(np.arange(-4, 5.0), lambda m: np.inf if m[0] > 0 else 0.0), "not finite"),
    (lambda: jackknife_states(ek.partials(np.ones(3), {"m": ek.Moments()})[0], lambda s: 0.0), "at least 4"),
])
def test_what_cannot_be_answered_is_said(call, message):
    with pytest.raises(StatisticsError, match=message):
        call()
