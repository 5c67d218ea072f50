"""Scores of maps: the same values as of their pixels as rows, one look at each image, whatever batch it came in."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402
from ensemblekit.neural.dense import DenseRows, dense_of  # noqa: E402
from ensemblekit.neural.items import items_of  # noqa: E402
from ensemblekit.neural.scores import scores_of  # noqa: E402


def maps(n=8, classes=3, size=(12, 10), seed=0, sharp=0.4, dtype=np.float64):
    """Probabilities (n, classes, *size), with some on the edges of bins, and labels drawn from them but less sure."""
    rng = np.random.default_rng(seed)
    p = np.moveaxis(rng.dirichlet(np.full(classes, sharp), (n, *size)), -1, 1).astype(dtype)
    p[0, :, 0, 0] = 0
    p[0, 0, 0, 0] = 1
    p[0, :, 0, 1] = 0
    p[0, :2, 0, 1] = 0.6, 0.4
    cumulative = np.cumsum(0.8 * p + 0.2 / classes, 1)
    return p, np.minimum((rng.random((n, 1, *size)) > cumulative).sum(1), classes - 1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("grouped", [False, True])
def test_scores_are_those_of_the_pixels(classes, dtype, grouped):
    p, y = maps(classes=classes, dtype=dtype)
    groups = np.array([0, 0, 1, 2, 2, 3, 4, 5]) if grouped else None
    found, rows = neural.scores((p, y), groups=groups), scores_of(items_of(p, y, groups))
    assert set(found) == set(rows)
    for name, score in rows.items():
        want = {"calibrated_nll": 1e-4, "ece_adaptive": 5e-3}.get(name, 1e-12)
        for part in ("value", "low", "high", "stderr"):
            assert getattr(found[name], part) == pytest.approx(getattr(score, part), rel=0, abs=want), (name, part)
    assert rows["calibrated_nll"].value < rows["nll"].value - 1e-3       # the temperature was worth fitting
    assert "4096 fine bins" in str(found)


def test_calibrated_nll_is_the_exact_one_to_four_digits():
    for seed, sharp in ((1, 0.2), (2, 1.0), (3, 3.0)):
        p, y = maps(n=20, seed=seed, sharp=sharp)
        dense, rows = dense_of(p, y), items_of(p, y)
        exact = neural.temperature.best_temperature(np.log(np.maximum(rows.p, 1e-300)), rows.labels, rows.n)
        assert np.exp(dense.log_temperature(np.ones(20, bool))) == pytest.approx(exact, rel=2e-3)
        assert neural.scores((p, y))["calibrated_nll"].value == pytest.approx(
            scores_of(rows)["calibrated_nll"].value, abs=1e-4)


def test_ignored_pixels_and_images_count_for_nothing():
    p, y = maps()
    y[2] = 9
    y[:, :3] = 9
    zero = np.zeros(y.shape)
    one = neural.Prediction(p, y, zero, zero, ignore_index=9)
    found, rows = neural.scores(one), scores_of(items_of(one))
    assert found["nll"].n == rows["nll"].n == 7
    assert found["nll"].value == pytest.approx(rows["nll"].value, abs=1e-12)
    assert found["ece_classwise"].high == pytest.approx(rows["ece_classwise"].high, abs=1e-12)
    with pytest.raises(InputError, match="every label is ignore_index, 9"):
        neural.scores(neural.Prediction(p, np.full(y.shape, 9), zero, zero, ignore_index=9))


@pytest.mark.parametrize("edges", ["right", "left"])
def test_reliability_and_ece_are_those_of_the_pixels(edges):
    p, y = maps(dtype=np.float32)
    rows = items_of(p, y)
    flat, labels = rows.p, rows.labels
    groups = np.arange(len(y)).repeat(y[0].size)
    found, want = (neural.reliability(a, b, 10, edges, groups=g) for a, b, g in ((p, y, None), (
        flat.astype(np.float32), labels, groups)))
    for name in ("counts", "confidence", "accuracy", "low", "high"):
        assert np.allclose(getattr(found, name), getattr(want, name), rtol=0, atol=1e-12, equal_nan=True), name
    for norm in ("l1", "l2", "max"):
        assert neural.calibration_error(p, y, 10, norm, edges) == pytest.approx(
            neural.calibration_error(flat.astype(np.float32), labels, 10, norm, edges), abs=1e-13)


def test_compare_is_that_of_the_pixels():
    p, y = maps()
    q = 0.7 * p + 0.1
    q /= q.sum(1, keepdims=True)
    q[:, :, :4] = q[:, ::-1, :4]
    found = neural.compare((p, y), (q, y))
    rows, groups = [items_of(x, y) for x in (p, q)], np.arange(8).repeat(120)
    want = neural.compare((rows[0].p, rows[0].labels), (rows[1].p, rows[1].labels), groups=groups)
    for name in ("accuracy", "nll", "brier", "ece", "ece_classwise"):
        for part in ("value", "low", "high"):
            assert getattr(found[name], part) == pytest.approx(getattr(want[name], part), abs=1e-12), (name, part)
    two = neural.compare([(p, y), (q, y)], [(q, y), (q, y)])
    assert two["nll"].value == pytest.approx(found["nll"].value / 2, abs=1e-12)
    with pytest.raises(InputError, match="with other labels"):
        neural.compare((p, y), (q, y[::-1]))


def test_an_image_gives_the_same_bits_whatever_came_before_it():
    p, y = maps(dtype=np.float32)
    together = DenseRows(3)
    for image, drawn in zip(p, y, strict=True):
        last = together.update(image, drawn)
    alone = DenseRows(3).update(p[-1].copy(order="F"), y[-1].astype(np.uint8))
    assert all(np.array_equal(last[name], alone[name]) for name in last)
    found = together.result()
    assert found.confusion.sum() == y.size == found.counts.sum()
    assert found.confusion[3, 1, 2] == np.count_nonzero((y[3] == 1) & (p[3].argmax(0) == 2))


def test_memory_hangs_on_images_and_not_on_pixels():
    import tracemalloc

    def peak(n, size):
        rng = np.random.default_rng(0)
        image = rng.dirichlet([1, 1], (size, size)).transpose(2, 0, 1)
        drawn = (rng.random((size, size)) < image[1]).astype(np.int64)
        p, y = np.broadcast_to(image, (n, *image.shape)), np.broadcast_to(drawn, (n, size, size))
        tracemalloc.start()
        neural.scores((p, y))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2, 16)
    assert peak(12, 96) < 12 * 96**2 * 2 * 8 * 0.9         # the pixels as rows are three times that


def test_what_is_wrong_with_maps_is_said():
    p, y = maps()
    bad = p.copy()
    bad[3, 0, 2, 2] = np.nan
    for wrong, labels, words in ((bad, y, "image 3: they are not finite"), (2 * p, y, "apply a softmax to logits first"),
                                 (p, y + 1, "labels are whole numbers 0 to 2; got int64, 1 to 3"),
                                 (p, y + 0.5, "labels are whole numbers"), (p, y[:, 1:], "labels"),
                                 (p[:1], y[:1], "two items")):
        with pytest.raises(InputError, match=words):
            neural.scores((wrong, labels))
    with pytest.raises(InputError, match=r"one name an item, shape \(8,\)"):
        neural.scores((p, y), groups=[1, 2])


def net(channels):
    torch.manual_seed(0)
    return torch.nn.Conv2d(1, channels, 3, padding=1)


def test_one_logit_a_pixel_is_two_classes():
    x = torch.randn(4, 1, 8, 9)
    y = (x[:, 0] > 0.3).long()
    for target in (y, y[:, None].float()):
        found = neural.predict(net(1), [(x, target)], task="binary")
        assert found.probabilities.shape == (4, 2, 8, 9)
        assert found.probabilities.dtype == np.float32
        assert np.array_equal(found.target, y.numpy())
    with torch.no_grad():
        assert np.allclose(found.probabilities[:, 1], torch.sigmoid(net(1)(x))[:, 0].numpy(), atol=1e-6)
    assert neural.scores(found)["accuracy"].n == 4
    with pytest.raises(InputError, match="labels that overlap"):
        neural.predict(net(3), [(x, y)], task="binary")
