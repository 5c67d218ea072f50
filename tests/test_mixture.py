"""The most likely mixture: no weights are better, and copies of a member change nothing."""

import itertools

import numpy as np
import pytest

from ensemblekit.averaging.mixture import mixture_weights
from ensemblekit.errors import InputError


def problem(seed, m=None, n=None):
    """Likelihoods of labels under members that share most of what they know."""
    rng = np.random.default_rng(seed)
    m = int(rng.integers(2, 51)) if m is None else m
    n = int(np.exp(rng.uniform(np.log(50), np.log(1e4)))) if n is None else n
    return 1 / (1 + np.exp(-2 * rng.standard_normal(n) - rng.uniform(0.1, 3) * rng.standard_normal((m, n))))


def missed(p, w, prior=0.0):
    """The most that can be gained by any other weights, nats an item."""
    slope = (p / (w @ p)).mean(1) + (prior / p.shape[1] / len(w) / w if prior else 0.0)
    return slope.max() - slope @ w


@pytest.mark.parametrize("prior", [0.0, 1.0, 30.0])
def test_no_weights_are_better(prior):
    for seed in range(12):
        p = problem(seed, n=None if seed < 3 else 200)
        mixture = mixture_weights(p, prior=prior)
        assert missed(p, mixture.weights, prior) <= 1e-9
        assert mixture.gap <= 1e-9
        assert mixture.weights.sum() == pytest.approx(1, abs=1e-12)
        assert (mixture.weights >= 0).all()
        assert mixture.loglik == pytest.approx(np.log(mixture.weights @ p).sum())


@pytest.mark.slow
def test_two_hundred_problems():
    for seed in range(200):
        assert mixture_weights(problem(seed)).gap <= 1e-9


def test_no_member_subset_or_greedy_choice_is_more_likely():
    p = problem(1, m=8, n=300)
    best = mixture_weights(p).loglik
    for k in range(1, 9):
        for chosen in itertools.combinations(range(8), k):
            assert np.log(p[list(chosen)].mean(0)).sum() <= best + 1e-9
    total, counts = np.zeros(300), 0
    for _ in range(50):
        gains = [np.log((total + row) / (counts + 1)).sum() for row in p]
        total, counts = total + p[int(np.argmax(gains))], counts + 1
        assert max(gains) <= best + 1e-9


def test_two_copies_share_what_one_had():
    p = problem(2, m=5, n=2000)
    alone, twice = mixture_weights(p), mixture_weights(np.vstack([p, p[:1]]))
    np.testing.assert_allclose(twice.weights[[0, 5]], alone.weights[0] / 2, atol=1e-5)
    np.testing.assert_allclose(twice.weights[1:5], alone.weights[1:], atol=1e-5)
    with_prior = mixture_weights(np.vstack([p, p[:1]]), prior=5.0)
    assert with_prior.weights[0] == pytest.approx(with_prior.weights[5], abs=1e-9)


def test_combinations_of_members_and_more_members_than_items():
    p = problem(3, m=4, n=100)
    assert mixture_weights(np.vstack([p, p[:2].mean(0)])).loglik == pytest.approx(mixture_weights(p).loglik, abs=1e-7)
    assert mixture_weights(problem(4, m=40, n=10)).gap <= 1e-9


def test_a_member_with_fourfold_noise_gets_next_to_nothing():
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal(4000)
    label = rng.random(4000) < 1 / (1 + np.exp(-z))
    noisy = z + np.array([1, 1, 1, 1, 4])[:, None] * rng.standard_normal((5, 4000))
    p = 1 / (1 + np.exp(-np.where(label, noisy, -noisy)))
    assert mixture_weights(p).weights[4] < 0.02


def test_exchangeable_members_gain_in_sample_what_theory_says():
    gains = []
    for seed in range(60):
        p = exchangeable(seed, 200)
        gains.append(mixture_weights(p).loglik / 200 - np.log(p.mean(0)).mean())
    assert np.mean(gains) == pytest.approx(7 / 400, rel=0.25)          # about 4 errors of the mean of 60


@pytest.mark.slow
@pytest.mark.parametrize("n", [200, 1000])
def test_the_gain_in_sample_over_a_hundred_seeds(n):
    """(M - 1)/(2n) is the second order about equal weights; it holds where no weight ends at 0, so members are far apart."""
    gains = []
    for seed in range(100):
        p = exchangeable(seed, n, apart=0.3)
        mixture = mixture_weights(p)
        gains.append(mixture.loglik / n - np.log(p.mean(0)).mean())
    assert np.mean(gains) == pytest.approx(7 / (2 * n), rel=0.1)


def test_members_alike_gain_less_in_sample_as_weights_end_at_zero():
    mixtures = [mixture_weights(exchangeable(seed, 200, apart=0.05)) for seed in range(20)]
    plain = [np.log(exchangeable(seed, 200, apart=0.05).mean(0)).mean() for seed in range(20)]
    gains = [one.loglik / 200 - equal for one, equal in zip(mixtures, plain, strict=True)]
    assert 0.2 * 7 / 400 < np.mean(gains) < 0.7 * 7 / 400
    assert np.mean([(one.weights < 1e-9).sum() for one in mixtures]) > 3


def exchangeable(seed, n, m=8, apart=0.2):
    """Members whose equal mixture is the truth, each a little off it: nothing is to be gained."""
    rng = np.random.default_rng(seed)
    off = apart * rng.standard_normal((m, n))
    members = 0.5 + off - off.mean(0)
    members = np.clip(members, 0.01, 0.99)
    label = rng.random(n) < members.mean(0)
    return np.where(label, members, 1 - members)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_likelihoods_of_any_size(factor):
    p = problem(5, m=4, n=100)
    a, b = mixture_weights(p), mixture_weights(p * factor)
    np.testing.assert_allclose(a.weights, b.weights, atol=1e-9)
    assert b.loglik == pytest.approx(a.loglik + 100 * np.log(factor))


def test_one_member_and_copies_alone():
    p = problem(6, m=1, n=50)
    assert mixture_weights(p).weights == pytest.approx([1.0])
    assert mixture_weights(p.repeat(3, axis=0)).weights == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(("p", "options", "words"), [
    ([[0.5, np.nan]], {}, "item 1 in member 0 is nan"),
    ([[0.5, -0.1]], {}, "item 1 in member 0 is -0.1"),
    ([[0.5, 0.0], [0.1, 0.0]], {}, "item 1 the likelihood 0"),
    ([0.5, 0.1], {}, r"\(members, items\)"),
    ([[0.5, 0.1]], {"prior": -1}, "prior"),
])
def test_refusals(p, options, words):
    with pytest.raises(InputError, match=words):
        mixture_weights(p, **options)
