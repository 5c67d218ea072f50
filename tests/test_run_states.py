"""One run as it was read: its times and weights, where it begins, and the error of what is made of its states."""

from __future__ import annotations

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.average import estimate_of
from ensemblekit.averaging.observed import Observed
from ensemblekit.averaging.run_states import Periodic
from ensemblekit.errors import InputError
from ensemblekit.source import ArraySource


def source(n=640, seed=1):
    rng = np.random.default_rng(seed)
    return ArraySource.of(rng.normal(size=(n, 2)), weights=rng.uniform(0.5, 2, n), times=3 + 0.5 * np.arange(n))


def test_a_run_brings_its_times_and_weights_and_stays_as_it_is():
    x = source()
    (run,) = ek.partials(x, {"m": ek.Moments(), "e": ek.Extremes()}, keep=16)
    assert (run.run, run.n, run.n_discarded, len(run.states)) == (0, 640, 0, len(run.starts))
    np.testing.assert_array_equal(run.times, x.times)
    np.testing.assert_array_equal(run.weights, x.weights)
    assert run.spacing == 0.5
    assert set(run.of("m").states[0]) == {"m"}
    for _ in range(2):
        np.testing.assert_allclose(run.merged()["m"][0].result().mean, np.average(x.arrays["values"], 0, x.weights), rtol=1e-12)
    np.testing.assert_allclose(run.part_weights, [w.sum() for w in np.split(x.weights, run.starts[1:])])
    assert ek.partials(x.arrays["values"], {"m": ek.Moments()})[0].times is None


def test_runs_of_several_come_in_order_and_tiles_bring_times_once():
    replicas = ek.ReplicaSet((source(100, 1), source(80, 2)))
    first, second = ek.partials(replicas, {"m": ek.Moments()})
    assert (first.run, first.n, second.run, second.n) == (0, 100, 1, 80)
    wide = ArraySource.of(np.zeros((30, 500)), times=np.arange(30.0))
    (tiled,) = ek.partials(wide, {"g": ek.Gram()}, cut="space", limit=8000)
    np.testing.assert_array_equal(tiled.times, np.arange(30.0))
    assert tiled.n == 30


def test_a_start_is_rounded_up_to_a_state():
    (run,) = ek.partials(source(), {"m": ek.Moments()}, keep=16)
    wanted = run.starts[3] - 1
    kept = run.after(wanted)
    assert (kept.n_discarded, kept.n, kept.starts[0]) == (run.starts[3], 640 - run.starts[3], run.starts[3])
    assert kept.equilibration_time == 0.5 * run.starts[3]
    np.testing.assert_array_equal(kept.times, run.times[run.starts[3]:])
    assert kept.after(None).starts == kept.starts
    again = kept.after(10)      # counted from what was kept
    assert again.n_discarded == next(begin for begin in run.starts if begin >= run.starts[3] + 10)
    assert len(again.times) == again.n == 640 - again.n_discarded
    moments = kept.merged()["m"][0].result()
    assert moments.n == kept.n
    with pytest.raises(InputError, match="no partial state begins at or after snapshot 640"):
        run.merged(640)


def test_leaving_one_out_leaves_that_one_out():
    x = source()
    (run,) = ek.partials(x, {"m": ek.Moments()}, keep=8)
    edges = [*run.starts, run.n]
    seen = []
    for k, rest in run.without():
        there = np.ones(640, bool)
        there[edges[k]:edges[k + 1]] = False
        moments = rest["m"][0].result()
        assert moments.n == there.sum()
        np.testing.assert_allclose(moments.mean, np.average(x.arrays["values"][there], 0, x.weights[there]), rtol=1e-12)
        seen.append(k)
    assert sorted(seen) == list(range(len(run.states)))


def test_the_jackknife_counts_a_state_by_its_weight():
    """A state without weight says nothing; the error of a mean is that of ek.statistics.jackknife over the same blocks."""
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=320), rng.uniform(0.5, 2, 320)
    w[40:80] = 0
    (run,) = ek.partials(ArraySource.of(x, weights=w), {"m": ek.Moments()}, keep=8)
    lengths = np.diff([*run.starts, 320])
    assert (lengths == 40).all()
    by_states = ek.statistics.jackknife_states(run, lambda s: s["m"][0].result().mean)
    by_blocks = ek.statistics.jackknife(x, weights=w, block_length=40)
    assert by_states.stderr == pytest.approx(by_blocks.stderr, rel=1e-9)
    assert by_states.value == pytest.approx(by_blocks.value, rel=1e-12)


def test_an_estimate_of_states_covers_its_function():
    """The variance of 2000 series of 400 correlated numbers, about the mean of each."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 2000))
    for t in range(1, 400):
        x[t] = 0.3 * x[t - 1] + np.sqrt(1 - 0.09) * x[t]
    (run,) = ek.partials(x, {"m": ek.Moments()}, keep=32)
    answer = run.estimate("m", lambda m: m.variance, unit="nm2", coords={"series": (np.arange(2000), "")})
    assert answer.unit == "nm2"
    assert set(answer.coords) == {"series"}
    assert 0.92 < ((answer.low < 1) & (answer.high > 1)).mean() < 0.98
    few = ek.partials(x[:3], {"m": ek.Moments()})[0].estimate("m", lambda m: m.mean)
    assert np.isnan(few.stderr).all()
    assert "3 parts of the run have weight" in few.verdict


def test_a_function_that_comes_round_is_compared_over_the_seam():
    rng = np.random.default_rng(4)
    angles = np.pi + rng.normal(0, 0.2, 640)        # the mean direction lies on the seam of arctan2
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    (run,) = ek.partials(vectors, {"m": ek.Moments()}, keep=32)
    round_it = run.estimate("m", Periodic(lambda m: np.degrees(np.arctan2(m.mean[1], m.mean[0]))))
    assert round_it.stderr == pytest.approx(np.degrees(0.2) / np.sqrt(640), rel=0.4)


def test_states_that_were_merged_give_the_same_average():
    """An average of a branch of a read that others share is that of its own."""
    x = source()
    (run,) = ek.partials(x, {"a": (lambda block: block.only, Observed()), "m": ek.Moments()})
    estimate, own = estimate_of(run, "a"), ek.average(x)
    np.testing.assert_array_equal(estimate.mean, own.mean)
    np.testing.assert_array_equal(estimate.stderr, own.stderr)
    assert estimate.n_discarded == own.n_discarded
