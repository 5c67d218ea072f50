"""What averages keep of arrays: all blocks, those of elements that are ever other than 0, or two numbers a stretch of time."""

from __future__ import annotations

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.average import estimate_of
from ensemblekit.averaging.observed import Observed, places_of
from ensemblekit.source import ArraySource


def values_of(block):
    return block.fields["values"]


def estimate(x, keeps, weights=None, keep=64, compact=False, **options):
    source = ArraySource.of(x, weights=weights)
    run = ek.partials(source, {"a": (values_of, Observed(keeps))}, keep=keep)[0]
    return estimate_of(run, "a", compact=compact, **options), [states["a"][0] for states in run.states]


def rare(n=300, item=(9, 50), share=0.03, seed=2):
    rng = np.random.default_rng(seed)
    x = np.zeros((n, *item), bool)
    flat = x.reshape(n, -1)
    for k in rng.choice(flat.shape[1], int(share * flat.shape[1]), replace=False):
        flat[rng.integers(n // 2):, k] = rng.random() < 0.5         # some of them from the middle of the run on
        flat[:, k] ^= rng.random(n) < 0.2
    return x


@pytest.mark.parametrize("weights", [None, "random"])
@pytest.mark.parametrize("kind", ["bool", "float", "hole", "nothing"])
def test_elements_that_are_always_0_need_no_sums(kind, weights, monkeypatch):
    monkeypatch.setattr("ensemblekit.averaging.observed.ELEMENTS", 180)
    x = rare()
    if kind == "float":
        x = x * np.random.default_rng(1).normal(size=x.shape)
    if kind == "hole":
        x = x.astype(np.float32)
        x[40, 3] = np.nan
    if kind == "nothing":
        x[:] = False
    w = None if weights is None else np.random.default_rng(3).uniform(0.5, 2, len(x))
    dense, _ = estimate(x, "blocks", w)
    sparse, states = estimate(x, "nonzero", w)
    for name in ("mean", "stderr", "low", "high", "n_eff", "statistical_inefficiency", "correlation_time", "dof"):
        np.testing.assert_allclose(getattr(sparse, name), getattr(dense, name), rtol=1e-9, atol=1e-15, err_msg=name)
        assert getattr(sparse, name).shape == x.shape[1:]
    assert (sparse.converged, sparse.verdict, sparse.n_discarded) == (dense.converged, dense.verdict, dense.n_discarded)
    ever = np.flatnonzero(x.reshape(len(x), -1).any(axis=0))
    np.testing.assert_array_equal(places_of(states), ever)
    for state in states:
        assert state.blocks.item == (len(state.elements) + 1,)
    few, states = estimate(x, "nonzero", w, compact=True, equilibration=None)
    assert few.mean.shape == (len(ever) + 1,)
    assert few.mean[-1] == few.stderr[-1] == 0


def test_states_of_nonzero_elements_merge_and_travel():
    x = rare(64)
    whole = Observed("nonzero")
    whole.update(x, 0)
    parts = [Observed("nonzero") for _ in range(4)]
    for k, part in enumerate(parts):
        part.update(x[16 * k:16 * k + 16], 16 * k)
    total = parts[0].restored(parts[0].state())
    for part in [Observed("nonzero"), *parts[1:]]:
        before = part.state()
        total.merge(part)
        for name, value in before.items():
            np.testing.assert_array_equal(part.state()[name], value)
    np.testing.assert_array_equal(total.elements, whole.elements)
    np.testing.assert_allclose(total.mean(), whole.mean(), rtol=1e-13)
    np.testing.assert_allclose(total.mean(), x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(total.blocks.result().variances, whole.blocks.result().variances, atol=1e-15)


def ar1(n, phi, shape, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape))
    x[1:] *= np.sqrt(1 - phi**2)
    for t in range(1, n):
        x[t] += phi * x[t - 1]
    return x


@pytest.mark.parametrize("weighted", [False, True])
def test_stretches_tell_the_error_that_blocks_tell(weighted, monkeypatch):
    """1000 series of 500 snapshots with g = 9 (n_eff 56): 95 % intervals from sixteen stretches hold the truth as often."""
    monkeypatch.setattr("ensemblekit.averaging.observed.ELEMENTS", 300)
    x = ar1(500, 0.8, (1000,), 5)
    w = np.random.default_rng(1).uniform(0.5, 1.5, 500) if weighted else None
    strided, states = estimate(x, "stretches", w, keep=16, equilibration=None)
    blocks, _ = estimate(x, "blocks", w, equilibration=None)
    assert len(states) == 16
    np.testing.assert_allclose(strided.mean, blocks.mean, atol=1e-12)
    covered = ((strided.low < 0) & (strided.high > 0)).mean()
    assert 0.93 < covered < 0.985        # guarded against a slow part, as blocks are: a little more than 95 %
    assert 0.9 < np.mean(strided.high - strided.low) / np.mean(blocks.high - blocks.low) < 1.15
    assert 0.8 < np.median(strided.n_eff) / np.median(blocks.n_eff) < 1.2
    huge, _ = estimate(x[:, :5] * 2.0**600, "stretches", w, keep=16, equilibration=None)
    np.testing.assert_allclose(huge.stderr / 2.0**600, strided.stderr[:5], rtol=1e-12)


def test_a_run_of_known_length_has_no_more_states_than_are_kept():
    for n in (1, 7, 16, 64, 100, 1000):
        run = ek.partials(np.zeros((n, 2)), {"m": ek.Moments()}, keep=16)[0]
        lengths = np.diff([*run.starts, n])
        assert len(run.states) <= 16
        assert len(run.states) >= min(n, 12)
        assert lengths.max() <= 2 * max(n / 16, 1)
        assert sum(states["m"][0].n for states in run.states) == n
