from itertools import combinations

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.diversity import choose, diverse_subset, from_gram, largest_volume, pairwise
from ensemblekit.errors import InputError, StatisticsError


def points(seed, n=12, k=3):
    return np.random.default_rng(seed).normal(size=(n, k))


def test_distances_are_their_formulas():
    x = points(1, 9, 20).reshape(9, 4, 5)
    flat = x.reshape(9, -1)
    plain = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.testing.assert_allclose(pairwise(x), plain, atol=1e-12)
    np.testing.assert_allclose(pairwise(x + 1e6), plain, rtol=1e-8, atol=1e-8)     # first snapshot taken off
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(pairwise(x, "cosine"), 1 - unit @ unit.T, atol=1e-12)
    np.testing.assert_allclose(pairwise(x, "correlation"), 1 - np.corrcoef(flat), atol=1e-12)
    np.testing.assert_allclose(pairwise(x, lambda a, b: abs(a - b).max()), abs(flat[:, None] - flat[None]).max(-1))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_distances_are_symmetric_with_a_zero_diagonal(metric):
    d = pairwise(points(2), metric)
    assert (d == d.T).all()
    assert (np.diag(d) == 0).all()
    assert (d >= 0).all()


def test_disagreement_is_the_share_of_labels_that_differ():
    labels = np.random.default_rng(3).integers(-2, 5, (6, 40))
    plain = (labels[:, None] != labels[None]).mean(-1)
    np.testing.assert_allclose(pairwise(labels, "disagreement"), plain, atol=1e-14)
    np.testing.assert_allclose(pairwise(labels > 0, "disagreement"), ((labels > 0)[:, None] != (labels > 0)).mean(-1))


def test_sources_and_replicas_give_what_arrays_give():
    x = points(4, 10, 7)
    np.testing.assert_allclose(pairwise(ek.ArraySource.of(x)), pairwise(x), atol=1e-13)
    runs = ek.ReplicaSet.of([x[:4], x[4:]])
    np.testing.assert_allclose(pairwise(runs), pairwise(x), atol=1e-13)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("k", [2, 3, 4])
def test_max_min_is_within_a_factor_of_two_of_the_best(seed, k):
    d = pairwise(points(seed))
    choice = choose(d, k)
    best_radius = min(d[:, list(c)].min(1).max() for c in combinations(range(12), k))
    best_apart = max(min(d[i, j] for i, j in combinations(c, 2)) for c in combinations(range(12), k))
    assert choice.radius <= 2 * best_radius + 1e-12
    assert choice.separation >= best_apart / 2 - 1e-12
    assert choice.objective == choice.separation


def test_max_min_starts_from_the_best_score_and_never_takes_one_twice():
    x = np.array([[0.0], [0.0], [0.0], [1.0]])
    assert choose(pairwise(x), 4, scores=[0, 5, 1, 2]).indices[0] == 1
    assert sorted(choose(pairwise(x), 4).indices) == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", range(10))
def test_volume_is_the_greedy_choice_worked_out_by_determinants(seed):
    a = np.random.default_rng(seed).normal(size=(10, 10))
    kernel = a @ a.T
    chosen = []
    for _ in range(4):
        volumes = {i: np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1]
                   for i in range(10) if i not in chosen}
        chosen.append(max(volumes, key=volumes.get))
    assert list(largest_volume(kernel, 4)) == chosen


def test_volume_avoids_copies_and_weighs_quality():
    x = np.array([[0.0, 0], [0, 0], [3, 0], [0, 4], [3, 4]])
    assert sorted(choose(pairwise(x), 4, method="volume").indices) in ([0, 2, 3, 4], [1, 2, 3, 4])
    with pytest.raises(StatisticsError, match="only 4 snapshots"):
        choose(pairwise(x), 5, method="volume")
    good = choose(pairwise(points(5)), 3, method="volume", scores=np.where(np.arange(12) == 7, 20.0, 0.0))
    assert good.indices[0] == 7


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tradeoff", [0.0, 0.5, 5.0])
def test_score_and_distance_is_near_the_best(seed, tradeoff):
    d, scores = pairwise(points(seed)), np.random.default_rng(100 + seed).uniform(size=12)
    choice = choose(d, 4, scores=scores, method="score", tradeoff=tradeoff)

    def value(c):
        return scores[list(c)].mean() + tradeoff * np.mean([d[i, j] for i, j in combinations(c, 2)])

    best = max(value(c) for c in combinations(range(12), 4))
    assert choice.objective == pytest.approx(value(choice.indices), rel=1e-12)
    assert choice.objective >= 0.95 * best
    if tradeoff == 0:
        assert set(choice.indices) == set(np.argsort(scores)[-4:])


def test_all_methods_are_deterministic_and_take_the_ends_of_k():
    x, scores = points(6), np.arange(12.0)
    for method in ("max-min", "volume", "score"):
        a = diverse_subset(x, 5, scores=scores, method=method)
        assert (a.indices == diverse_subset(x, 5, scores=scores, method=method).indices).all()
        assert len(set(a.indices)) == 5
        assert np.isnan(diverse_subset(x, 1, scores=scores, method=method).separation)
        assert diverse_subset(x, 12, scores=scores, method=method).radius == 0


@pytest.mark.parametrize(("call", "message"), [
    (lambda: pairwise(points(7), "manhattan"), "metric"),
    (lambda: pairwise(points(7), "disagreement"), "labels"),
    (lambda: pairwise(ek.ArraySource.of(points(7)), "correlation"), "in memory"),
    (lambda: pairwise(np.array([[np.nan], [1.0]])), "not finite"),
    (lambda: pairwise(points(7), lambda a, b: np.nan), "snapshots 0 and 1"),
    (lambda: from_gram(np.ones((2, 3))), "n, n"),
    (lambda: choose(np.eye(3), 4), "from 1 to 3"),
    (lambda: choose(np.eye(3), 0), "from 1 to 3"),
    (lambda: choose(np.eye(3), 2, scores=[1, 2]), "scores"),
    (lambda: choose(np.eye(3), 2, method="score"), "needs scores"),
    (lambda: choose(np.eye(3), 2, method="random"), "method"),
    (lambda: choose(-np.eye(3), 2), "not negative"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_no_angle_with_nothing():
    with pytest.raises(StatisticsError, match="snapshot 1 has length zero"):
        pairwise(np.array([[1.0], [0.0]]), "cosine")
