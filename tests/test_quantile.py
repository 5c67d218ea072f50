from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ensemblekit as ek
from ensemblekit.averaging.quantile import Quantiles, QuantileSketch
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.errors import InputError, ReductionError, StatisticsError

P = (0.0, 0.05, 0.25, 0.5, 0.9, 1.0)


def exact(x, p, w=None):
    """Smallest value with at least a share p of the weight at or below it."""
    w = np.ones(len(x)) if w is None else w
    x, w = x[w > 0], w[w > 0]
    order = np.argsort(x, kind="stable")
    upto = np.cumsum(w[order])
    return x[order][np.minimum(np.searchsorted(upto, np.multiply(p, upto[-1]) * (1 - 1e-14)), len(x) - 1)]


def fed(reducer, x, cuts=(), w=None):
    parts = []
    edges = [0, *sorted(cuts), len(x)]
    for a, b in pairwise(edges):
        part = reducer.empty()
        part.update(x[a:b], a, None if w is None else w[a:b])
        parts.append(part)
    total = parts[0]
    for part in parts[1:]:
        total.merge(part)
    return total


DRAWS = {
    "normal": lambda r, n: r.normal(size=n),
    "offset": lambda r, n: 1e8 + r.normal(size=n),
    "cauchy": lambda r, n: r.standard_cauchy(n),
    "ties": lambda r, n: r.integers(-2, 3, n).astype(float),
    "sorted": lambda r, n: np.sort(r.normal(size=n)),
    "tiny": lambda r, n: 1e-300 * r.normal(size=n),
    "huge": lambda r, n: 1e307 * r.uniform(-10, 10, n),
    "constant": lambda r, n: np.full(n, 0.1),
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pattern", [Quantiles(P, bins=32), QuantileSketch(P, size=32)], ids=["bins", "sketch"])
def test_the_stated_bound_is_never_exceeded(pattern, weighted, kind):
    rng = np.random.default_rng(1)
    for n in (1, 2, 31, 700, 3000):
        x = DRAWS[kind](rng, n)
        w = rng.choice([0.0, 0.3, 1.0, 7.0], n) + (np.arange(n) == 0) if weighted else None
        quantiles = fed(pattern, x, rng.integers(0, n + 1, 5), w).result()
        truth = exact(x, P, w)
        assert (quantiles.lower <= truth).all()
        assert (truth <= quantiles.upper).all()
        assert (quantiles.lower <= quantiles.values).all()
        assert (quantiles.values <= quantiles.upper).all()
        assert quantiles.n == n


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=60), st.data())
@settings(max_examples=80)
def test_any_cut_and_any_order_give_the_same_histogram(values, data):
    x = np.array(values)
    cuts = data.draw(st.lists(st.integers(0, len(x)), max_size=4))
    whole, cut = fed(Quantiles(bins=8), x).state(), fed(Quantiles(bins=8), x, cuts).state()
    reversed_state = fed(Quantiles(bins=8), x[::-1], cuts).state()
    for key in whole:
        np.testing.assert_array_equal(whole[key], cut[key])
        np.testing.assert_array_equal(whole[key], reversed_state[key])


def test_what_vanishes_below_zero_is_below_zero():
    """-2e-313 over a bin of 2**37 is -0.0 in float64, and yet it stands left of 0 in whatever order it came."""
    x = np.array([481036337152.0, -2.2250738585e-313])
    whole, cut = fed(Quantiles(bins=8), x).state(), fed(Quantiles(bins=8), x, [1]).state()
    reversed_state = fed(Quantiles(bins=8), x[::-1]).state()
    for other in (cut, reversed_state):
        for key in whole:
            np.testing.assert_array_equal(whole[key], other[key])


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=200), st.data())
@settings(max_examples=80)
def test_any_cut_of_a_sketch_keeps_its_bound(values, data):
    x = np.array(values)
    cuts = data.draw(st.lists(st.integers(0, len(x)), max_size=6))
    quantiles = fed(QuantileSketch(P, size=4), x, cuts).result()
    for p, value in zip(P, quantiles.values, strict=True):
        below, upto = (x < value).mean(), (x <= value).mean()
        assert below - quantiles.rank_error - 1e-12 <= p <= upto + quantiles.rank_error + 1e-12


def test_a_million_scalars_within_the_documented_rank_error():
    x = np.random.default_rng(2).standard_cauchy(1_000_000)
    result = ek.reduce(x, QuantileSketch(P))
    assert result.rank_error < 0.003
    ranks = np.array([(x <= v).mean() for v in result.values])
    assert (abs(ranks - P)[1:] <= result.rank_error).all()


def test_a_sketch_is_exact_up_to_its_size():
    x = np.random.default_rng(3).normal(size=4096)
    quantiles = fed(QuantileSketch(P), x, [1000, 2000]).result()
    assert quantiles.rank_error == 0
    np.testing.assert_array_equal(quantiles.values, exact(x, P))
    np.testing.assert_array_equal(quantiles.values, np.quantile(x, P, method="inverted_cdf"))


def test_every_element_of_an_array_and_the_width_of_its_bin():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2000, 3, 4)) * 10.0 ** np.arange(-6, 6).reshape(3, 4)
    result = ek.reduce(x, Quantiles(P, bins=256))
    truth = np.quantile(x, P, axis=0, method="inverted_cdf")
    assert result.values.shape == (6, 3, 4)
    assert ((result.lower <= truth) & (truth <= result.upper)).all()
    assert (result.upper - result.lower <= 2 * np.ptp(x, axis=0) / 255).all()


def test_both_cuts_give_the_same():
    x = np.random.default_rng(5).normal(size=(300, 50)).astype("f4")
    a, b = (ek.reduce(x, Quantiles(bins=16), cut=cut, limit=4000) for cut in ("time", "space"))
    np.testing.assert_array_equal(a.values, b.values)
    assert a.n == b.n == 300


@pytest.mark.parametrize("pattern", [Quantiles(bins=16), QuantileSketch(size=16)])
def test_laws_of_a_reducer(pattern):
    assert isinstance(pattern, Reducer)
    x = np.random.default_rng(6).normal(size=200)
    state = fed(pattern, x[:100], [30])
    first, second = state.result(), state.result()
    np.testing.assert_array_equal(first.values, second.values)
    copy = pattern.restored(state.state())
    for one in (state, copy):
        later = pattern.empty()
        later.update(x[100:], 100)
        one.merge(later)
        one.merge(pattern.empty())
    np.testing.assert_array_equal(state.result().values, copy.result().values)
    blank = pattern.empty()
    blank.merge(state)
    np.testing.assert_array_equal(state.result().lower, blank.result().lower)


def test_integers_booleans_and_tensors_are_values():
    torch = pytest.importorskip("torch")
    x = np.arange(100)
    for values in (x, x.astype("u1"), torch.arange(100), torch.arange(100).bfloat16()):
        assert ek.reduce(values, QuantileSketch(0.5)).values[0] == 49
        assert abs(ek.reduce(values, Quantiles(0.5)).values[0] - 49) <= 1


@pytest.mark.parametrize("pattern", [Quantiles(), QuantileSketch()])
def test_bad_values_are_refused(pattern):
    with pytest.raises(InputError, match="snapshot 12 is not finite"):
        pattern.empty().update(np.array([1.0, 2, np.nan]), 10)
    with pytest.raises(InputError, match="order"):
        pattern.empty().update(np.ones(3, complex), 0)
    with pytest.raises(StatisticsError, match="no snapshots"):
        pattern.empty().result()
    zero = pattern.empty()
    zero.update(np.ones(3), 0, np.zeros(3))
    with pytest.raises(StatisticsError, match="no snapshots"):
        zero.result()


def test_bad_settings_are_refused():
    for make in (Quantiles, QuantileSketch):
        with pytest.raises(InputError, match="probabilities"):
            make([0.5, 1.1])
    with pytest.raises(InputError, match="bins"):
        Quantiles(bins=1)
    with pytest.raises(InputError, match="size"):
        QuantileSketch(size=1)
    with pytest.raises(ReductionError, match=r"For arrays: ek\.Quantiles"):
        ek.reduce(np.ones((5, 2)), QuantileSketch())
