"""Every cut gives the same answer, results are pure, states restore: the laws of averaging/reducer.py."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import ensemblekit as ek
from ensemblekit.averaging.reducer import cuts_of_reducer
from tests import strategies
from tests.oracles import SPACE_CASES, TIME_CASES


def assert_same(got, want, scale=1.0):
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(g), w, rtol=1e-9, atol=1e-9 * scale)


def fed(pattern, x, w, start=0):
    state = pattern.empty()
    state.update(x, start, w)
    return state


@pytest.mark.parametrize("name", TIME_CASES)
@settings(max_examples=40)
@given(st.data())
def test_any_cut_in_time_gives_the_plain_answer(name, data):
    pattern, numbers, oracle, weighted = TIME_CASES[name]
    x, w = data.draw(strategies.data())
    if not weighted:
        w = None
    if name == "Moments(4)":
        assume(len(x) > 2 and (w is None or np.count_nonzero(w) > 2))   # one or two values have no shape
        x = x - np.round(x.mean())      # far from zero the plain answer itself loses the digits
    if name == "Window" and w is not None and w[-7:].sum() == 0:
        return
    edges = data.draw(strategies.cuts(len(x)))
    total = pattern.empty()
    for a, b in itertools.pairwise(edges):
        part = pattern.empty()
        middle = (a + b) // 2
        for lo, hi in ((a, middle), (middle, b)):       # two blocks a piece
            part.update(x[lo:hi], lo, None if w is None else w[lo:hi])
        total.merge(part)
    scale = max(1.0, np.abs(x).max() ** (2 if name in ("Covariance",) else 1))
    assert_same(numbers(total.result()), oracle(x, w), scale)


@pytest.mark.parametrize("name", TIME_CASES)
def test_merging_is_associative(name):
    pattern, numbers, oracle, _ = TIME_CASES[name]
    x = np.random.default_rng(3).normal(size=(30, 4))
    a, b, c = (fed(pattern, x[i:j], None, i) for i, j in ((0, 11), (11, 12), (12, 30)))
    b.merge(c)
    a.merge(b)
    assert_same(numbers(a.result()), oracle(x, None))


@pytest.mark.parametrize("name", SPACE_CASES)
@settings(max_examples=25)
@given(st.data())
def test_any_cut_in_space_gives_the_plain_answer(name, data):
    pattern, numbers, oracle, weighted = SPACE_CASES[name]
    x, w = data.draw(strategies.data(max_width=12))
    x, w = x - np.round(x.mean()), w if weighted else None
    if name == "Moments(4)":
        assume(len(x) > 2 and (w is None or np.count_nonzero(w) > 2))
    if name == "Window" and w is not None and w[-7:].sum() == 0:
        return
    inner = data.draw(st.lists(st.integers(1, x.shape[1]), max_size=4))
    edges = sorted({0, *inner, x.shape[1]})
    total = None
    for a, b in itertools.pairwise(edges):
        part = fed(pattern, x[:, a:b], w)
        if total is None:
            total = part
        else:
            total.join(part)
    total.reshape((x.shape[1],))
    assert_same(numbers(total.result()), oracle(x, w), max(1.0, np.abs(x).max()))


@pytest.mark.parametrize("name", {**TIME_CASES, **SPACE_CASES})
def test_result_is_pure_and_the_state_restores(name):
    pattern, numbers, oracle, _ = {**TIME_CASES, **SPACE_CASES}[name]
    x = np.random.default_rng(5).normal(size=(20, 3))
    whole = "time" not in cuts_of_reducer(pattern)
    state = fed(pattern, x if whole else x[:12], None)
    first = [np.array(v) for v in numbers(state.result())]
    for value in numbers(state.result()):
        np.asarray(value)[...] = 7      # what was given away is the caller's
    assert_same(numbers(state.result()), first)
    copy = pattern.restored(pickle.loads(pickle.dumps(state.state())))
    for array in state.state().values():
        np.asarray(array)[...] = 0
    if not whole:
        for s in (state, copy):
            s.update(x[12:], 12)
    for s in (state, copy):
        assert_same(numbers(s.result()), oracle(x, None))


@pytest.mark.parametrize("name", {**TIME_CASES, **SPACE_CASES})
def test_the_pattern_is_never_changed_and_an_empty_state_merges(name):
    pattern, numbers, oracle, _ = {**TIME_CASES, **SPACE_CASES}[name]
    x = np.random.default_rng(6).normal(size=(9, 2))
    before = pickle.dumps(pattern.state())
    state = fed(pattern, x, None)
    (state.merge if "time" in cuts_of_reducer(pattern) else state.join)(pattern.empty())
    assert_same(numbers(state.result()), oracle(x, None))
    assert pickle.dumps(pattern.state()) == before


@pytest.mark.parametrize("name", {**TIME_CASES, **SPACE_CASES})
def test_torch_gives_numpys_answer_and_stays_torch(name):
    torch = pytest.importorskip("torch")
    pattern, numbers, oracle, weighted = {**TIME_CASES, **SPACE_CASES}[name]
    rng = np.random.default_rng(7)
    x = rng.normal(size=(23, 4))
    w = rng.random(23) if weighted else None
    cut = "time" if "time" in cuts_of_reducer(pattern) else "space"
    got = ek.reduce(ek.ArraySource.of(torch.as_tensor(x), weights=w), pattern, cut=cut)
    values = numbers(got)
    assert isinstance(values[0], torch.Tensor)
    assert_same([v.numpy() for v in values], oracle(x, w))


def test_float32_far_from_zero_keeps_its_variance():
    x = np.random.default_rng(0).normal(1e4, 1.0, size=(20000, 3)).astype("f4")
    got = ek.reduce(x, ek.Moments())
    sampling = 4 * np.sqrt(2 / len(x))
    assert np.abs(got.variance - 1.0).max() < sampling
    np.testing.assert_allclose(got.variance, x.astype("f8").var(0, ddof=1), rtol=1e-10)


def test_float64_a_hundred_million_sigmas_from_zero_keeps_its_variance():
    x = np.random.default_rng(1).normal(1e8, 1.0, size=20001)
    for order in (2, 4):
        got = ek.reduce(x, ek.Moments(order))
        assert abs(got.variance - 1.0) < 4 * np.sqrt(2 / len(x))
        np.testing.assert_allclose(got.variance, (x - 1e8).var(ddof=1), rtol=1e-7)


@pytest.mark.parametrize("dtype", ["i1", "u2", "i8", "f2", ">f4", ">i4", "?", "c8", "c16"])
def test_every_type_of_number(dtype):
    rng = np.random.default_rng(2)
    x = rng.integers(0, 2 if dtype == "?" else 100, size=(50, 3)).astype(dtype)
    if np.dtype(dtype).kind == "c":
        x = x + (1j * rng.normal(size=x.shape)).astype(dtype)
    got = ek.reduce(x, ek.Moments())
    wide = x.astype("c16" if np.dtype(dtype).kind == "c" else "f8")
    np.testing.assert_allclose(got.mean, wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(got.variance, wide.var(0, ddof=1), rtol=1e-6)


def test_infinity_and_nan_are_seen():
    x = np.ones((10, 3))
    x[4, 1], x[0, 2] = np.nan, np.inf
    got = ek.reduce(x, ek.Moments())
    assert got.mean[0] == 1.0
    assert np.isnan(got.mean[1])
    assert got.mean[2] == np.inf
    low = ek.reduce(x, ek.Extremes())
    assert np.isnan(low.low[1])
    assert low.at_low[1] == 4


def test_histogram_agrees_with_numpy_at_every_edge():
    edges = np.linspace(0, 1, 11)
    x = np.concatenate([edges, np.nextafter(edges, -1), np.nextafter(edges, 2), [np.nan]])
    got = ek.reduce(x, ek.Histogram(edges))
    np.testing.assert_array_equal(got.counts, np.histogram(x[:-1], edges)[0])
    assert (got.below, got.above, got.missing) == (1, 1, 1)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: ek.Moments(3), "order is 2"), (lambda: ek.Histogram([1, 0]), "that rise"),
    (lambda: ek.Exponential(1.5), "between 0 and 1"), (lambda: ek.Exponential(), "one of decay"),
    (lambda: ek.Window(0), "above 0"), (lambda: ek.Gram("median"), "center is"),
    (lambda: ek.reduce(np.zeros((3, 40000), "f4"), ek.Covariance()), "takes 12 GiB"),
    (lambda: ek.reduce(np.zeros(3, complex), ek.Extremes()), "complex numbers have none"),
    (lambda: ek.reduce(np.zeros((0, 2)), ek.Moments()), "no snapshots"),
    (lambda: ek.reduce(ek.ArraySource.of(np.zeros(3), weights=np.zeros(3)), ek.Moments()), "weights of 3 snapshots are 0"),
])
def test_what_cannot_be_done_is_said(make, match):
    with pytest.raises(ek.EnsemblekitError, match=match):
        make()


class _Alive:
    """A reducer of tiles that counts how many of its states are alive."""

    alive, most = 0, 0

    def __init__(self):
        self.tiles = []

    def empty(self):
        new = type(self)()
        new.tiles = []
        return new

    def update(self, values, start, weights=None):
        self.tiles.append(float(values[0].ravel()[0]))
        type(self).alive += 1
        type(self).most = max(type(self).most, type(self).alive)

    def join(self, right):
        self.tiles = self.tiles + right.tiles
        type(self).alive -= 1

    def reshape(self, item):
        pass

    def result(self):
        return self.tiles

    def state(self):
        return {"tiles": np.array(self.tiles)}

    def restored(self, state):
        return self


def test_tiles_are_joined_as_they_come():
    _Alive.alive = _Alive.most = 0
    x = np.arange(128.0)[None].repeat(2, 0)
    assert ek.reduce(x, _Alive(), cut="space", limit=32, engine=ek.Serial()) == list(range(0, 128, 2))
    assert _Alive.most <= 8        # log2 of 64 tiles, and the two being joined; all 64 before they were
