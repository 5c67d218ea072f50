"""Block sums against plain averages of bins, under any cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

import ensemblekit as ek
from ensemblekit.averaging.blocking import BlockSums, blocking, jonsson_level
from ensemblekit.errors import InputError, StatisticsError


def plain(x: np.ndarray, start: int, w: np.ndarray | None) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Mean and (count, variance of bins) of every level, bins aligned on the snapshot index."""
    mean = x.mean(axis=0) if w is None else np.tensordot(w, x, 1) / w.sum()
    bins = x if w is None else w.reshape(-1, *[1] * (x.ndim - 1)) * (x - mean) / w.mean()
    levels = []
    while len(bins) >= 2:
        levels.append((len(bins), bins.var(axis=0, ddof=1)))
        skip = start % 2
        pairs = (len(bins) - skip) // 2
        bins = (bins[skip:skip + 2 * pairs:2] + bins[skip + 1:skip + 2 * pairs:2]) / 2
        start = (start + skip) // 2
    return mean, levels


@settings(max_examples=60)
@given(n=st.integers(2, 700), start=st.integers(0, 200), cuts=st.lists(st.integers(0, 700), max_size=8),
       weighted=st.booleans(), order=st.randoms(use_true_random=False))
def test_any_cut_gives_the_same_bins(n: int, start: int, cuts: list[int], weighted: bool, order) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, 2, 3)) + rng.standard_normal(n).cumsum()[:, None, None] * 0.1 + 5.0
    w = rng.random(n) + 0.01 if weighted else None
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    states = []
    for a, b in pairwise(edges):
        state = BlockSums()
        state.update(x[a:b], start + a, None if w is None else w[a:b])
        states.append(state.restored(state.state()))
    while len(states) > 1:
        k = order.randrange(len(states) - 1)
        states[k].merge(states.pop(k + 1))
    result = states[0].result()
    mean, levels = plain(x, start, w)
    np.testing.assert_allclose(result.mean, mean, rtol=1e-12)
    assert result.counts.tolist() == [count for count, _ in levels]
    for got, (_, want) in zip(result.variances, levels, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1", "?"])
def test_blocks_of_any_type_and_layout(dtype: str) -> None:
    x = (np.random.default_rng(0).random((300, 40)) * 2).astype(dtype)
    for values in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2]):
        sums = BlockSums()
        sums.update(values, 17)
        for got, (_, want) in zip(sums.result().variances, plain(x.astype(float), 17, None)[1], strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-14)


def test_tiles_beside_each_other_and_the_pass_over_a_source() -> None:
    x = np.random.default_rng(1).standard_normal((1000, 6, 5))
    whole = ek.reduce(x, BlockSums())
    assert whole.variances.shape[1:] == (6, 5)
    np.testing.assert_allclose(whole.variances, blocking(x).variances, rtol=1e-10)
    left, right = BlockSums(), BlockSums()
    left.update(x.reshape(1000, 30)[:, :11], 0, np.ones(1000))
    right.update(x.reshape(1000, 30)[:, 11:], 0, np.ones(1000))
    left.join(right)
    left.reshape((6, 5))
    np.testing.assert_allclose(left.result().variances, whole.variances, rtol=1e-10)


def test_an_offset_of_a_million_sigma_costs_no_digits() -> None:
    x = np.random.default_rng(2).standard_normal(5000)
    want = blocking(x).variances
    np.testing.assert_allclose(blocking(x + 1e6).variances, want, rtol=1e-7)
    w = np.random.default_rng(3).random(5000)
    np.testing.assert_allclose(blocking(x + 1e6, w).variances, blocking(x, w).variances, rtol=1e-7)


def test_the_plateau_of_an_autoregression() -> None:
    phi, n = 0.9, 1 << 17
    x = lfilter([np.sqrt(1 - phi**2)], [1, -phi], np.random.default_rng(5).standard_normal((n + 500, 20)), axis=0)[500:]
    result = blocking(x)
    want = np.sqrt(19 / n)
    chosen = result.chosen()
    assert chosen.settled.all()
    assert np.sqrt((chosen.stderr**2).mean()) == pytest.approx(want, rel=0.05)
    assert np.median(chosen.g) == pytest.approx(19, rel=0.15)
    np.testing.assert_allclose(result.stderr[0], np.sqrt(x.var(axis=0, ddof=1) / n))
    np.testing.assert_allclose(result.stderr_error[3], result.stderr[3] / np.sqrt(2 * (n / 8 - 1)))
    assert result.neighbours[0].mean() == pytest.approx(phi, abs=0.01)
    assert result.inefficiency[7].mean() == pytest.approx(19 * (1 - (19 - 1 / 19) / 256), rel=0.05)
    level = jonsson_level(x[:, 0])
    assert 5 <= level <= 10       # blocks of 32 to 1024 for a tau of 9.5
    assert result.stderr[level, 0] == pytest.approx(want, rel=0.2)


def test_jonsson_on_white_noise_takes_the_first_level() -> None:
    levels = [jonsson_level(np.random.default_rng(k).standard_normal(3000)) for k in range(100)]
    assert np.mean(np.array(levels) == 0) >= 0.9       # 99 % by the test's own level; 9 sigma of room


def test_not_a_number_stays_in_its_element() -> None:
    x = np.random.default_rng(0).standard_normal((200, 3))
    x[100, 1] = np.nan
    result = blocking(x)
    assert np.isnan(result.variances[:, 1]).any()
    assert np.isfinite(result.variances[:, [0, 2]]).all()


def test_what_cannot_be_blocked() -> None:
    sums = BlockSums()
    with pytest.raises(StatisticsError, match="no snapshot"):
        sums.result()
    with pytest.raises(InputError, match="complex"):
        sums.update(np.ones(4) * 1j, 0)
    sums.update(np.ones((4, 2)), 0)
    with pytest.raises(InputError, match="one item shape"):
        sums.update(np.ones((4, 3)), 4)
    gap = BlockSums()
    gap.update(np.ones((4, 2)), 9)
    with pytest.raises(InputError, match="time order"):
        sums.merge(gap)
    mixed = BlockSums()
    mixed.update(np.ones((4, 2)), 4, np.ones(4))
    with pytest.raises(InputError, match="all or to none"):
        sums.merge(mixed)
    zero = BlockSums()
    zero.update(np.ones((4, 2)), 0, np.zeros(4))
    with pytest.raises(StatisticsError, match="weights are zero"):
        zero.result()
    with pytest.raises(StatisticsError, match="at least 4"):
        blocking(np.arange(3.0)).chosen()
    with pytest.raises(StatisticsError, match="constant"):
        jonsson_level(np.ones(64))
