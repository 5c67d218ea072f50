"""Pair counts and nearest images: cell lists against plain sums over every image, in boxes of every shape."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemblekit.md.kernels_pbc import nearest_displacements
from ensemblekit.md.kernels_rdf import nearest_counts, pair_counts

BOXES = {
    "cubic": np.eye(3) * 9.0,
    "orthorhombic": np.diag([5.0, 9.0, 14.0]),
    "dodecahedron": 9.0 * np.array([[1, 0, 0], [0, 1, 0], [0.5, 0.5, np.sqrt(0.5)]]),
    "truncated octahedron": 3.0 * np.array([[3, 0, 0], [1, 2 * np.sqrt(2), 0], [-1, np.sqrt(2), np.sqrt(6)]]),
    "very skew": np.array([[8.0, 0, 0], [17.0, 6.0, 0], [-13.0, 11.0, 7.0]]),
    "turned": np.array([[1.0, 8.0, 2.0], [-3.0, 1.0, 9.0], [7.0, -2.0, 3.0]]),
    "left-handed": np.array([[0.0, 8.0, 0.0], [9.0, 0.0, 0.0], [1.0, 2.0, 7.0]]),
}


def images_within(cell, reach):
    """Every lattice vector that may bring two points of a cell within reach."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    most = np.ceil(reach / heights).astype(int) + 2
    steps = np.array(list(itertools.product(*(range(-m, m + 1) for m in most))))
    return steps @ cell


def plain_counts(x, cell, a, b, label_a, label_b, edges, nearest=False):
    """The same by a sum over everything."""
    counts = np.zeros(len(edges))
    inverse = np.linalg.inv(cell)
    shifts = images_within(cell, edges[-1] if not nearest else np.linalg.norm(cell, axis=1).sum())
    wrapped = x - np.floor(x @ inverse) @ cell
    for i, la in zip(a, label_a, strict=True):
        keep = (label_b != la) & (b != i)
        d = np.linalg.norm(wrapped[b][keep][:, None] + shifts - wrapped[i], axis=-1)
        d = d.min(axis=1) if nearest else d.ravel()
        counts[0] += (d < edges[0]).sum()
        counts[1:] += np.histogram(d[d < edges[-1]], edges)[0]
    return counts


def counted(x, cell, a, b, label_a, label_b, edges, kernel=pair_counts):
    counts, volumes = np.empty((1, len(edges))), np.empty(1)
    same = [np.array_equal(a, b)] if kernel is pair_counts else []
    assert kernel(x[None], cell[None], a, b, label_a, label_b, *same, edges, counts, volumes) == -1
    np.testing.assert_allclose(volumes[0], abs(np.linalg.det(cell)))
    return counts[0]


@pytest.mark.parametrize("reach", [2.5, 6.0, 13.0])
@pytest.mark.parametrize("name", BOXES)
def test_counts_are_those_of_every_image(name, reach):
    """13 is beyond half of every box: images of images count."""
    rng = np.random.default_rng(len(name))
    cell = BOXES[name]
    x = rng.normal(0, 12, (24, 3))        # far outside the box, too
    edges = np.linspace(1.0, reach, 12)
    everything, some, others = np.arange(24), np.arange(0, 24, 3), np.arange(5, 24, 2)
    residue = np.arange(24) // 4
    for a, b in ((everything, everything), (some, some), (some, others), (some, everything)):
        for labels in (np.arange(24), residue):
            want = plain_counts(x, cell, a, b, labels[a], labels[b], edges)
            counts = counted(x, cell, a, b, labels[a], labels[b], edges)
            np.testing.assert_array_equal(counts, want)
            assert want.sum() > 0 or reach < 3


@pytest.mark.parametrize("name", BOXES)
def test_nearest_images_beyond_half_the_shortest_height(name):
    rng = np.random.default_rng(7)
    cell = BOXES[name]
    a, b = rng.uniform(-30, 30, (2, 60, 3))
    out = np.empty_like(a)
    assert nearest_displacements(a, b, cell, out)
    shifts = images_within(cell, np.linalg.norm(cell, axis=1).sum())
    inside = (b - a) - np.floor((b - a) @ np.linalg.inv(cell)) @ cell
    want = np.linalg.norm(inside[:, None] + shifts, axis=-1).min(axis=1)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), want, rtol=1e-12)
    steps = (out - (b - a)) @ np.linalg.inv(cell)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-10)      # an image it is
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    assert (want > heights.min() / 2).any()


@pytest.mark.parametrize("name", BOXES)
def test_counts_of_nearest_images(name):
    rng = np.random.default_rng(3)
    x, edges, all_atoms = rng.uniform(0, 20, (15, 3)), np.linspace(0.0, 11.0, 9), np.arange(15)
    labels = all_atoms // 3
    want = plain_counts(x, BOXES[name], all_atoms, all_atoms, labels, labels, edges, nearest=True)
    np.testing.assert_array_equal(counted(x, BOXES[name], all_atoms, all_atoms, labels, labels, edges, nearest_counts), want)


def test_a_crystal_on_the_faces_of_its_cells():
    """Atoms on the very faces of box and cells, all at the same heights: each pair once, whatever rounding does."""
    k = np.arange(4)
    x = np.array(list(itertools.product(k, k, k)), dtype=float) * 0.1
    cell, all_atoms = np.eye(3) * 0.4, np.arange(64)
    edges = np.linspace(0.08, 0.185, 4)        # 6 neighbours, 12 at sqrt 2, 8 at sqrt 3
    for shift in (0.0, 0.1, -0.3, 1e-17, -1e-17, 0.05):
        counts = counted(x + shift, cell, all_atoms, all_atoms, all_atoms, all_atoms, edges)
        np.testing.assert_array_equal(counts, [0, 64 * 6, 64 * 12, 64 * 8])
        half = np.arange(0, 64, 2)
        other = np.arange(1, 64, 2)
        np.testing.assert_array_equal(counted(x + shift, cell, half, other, half, other, edges)[1:2], [32 * 2])


def test_without_a_box():
    rng = np.random.default_rng(5)
    no_box = np.empty((0, 3, 3))
    for scale in (np.ones(3), np.array([1.0, 1.0, 0.0]), np.array([40.0, 0.1, 0.0]), np.zeros(3)):
        x = rng.normal(0, 5, (50, 3)) * scale
        a, b = np.arange(50), np.arange(10, 30)
        edges = np.linspace(0.5, 7.0, 8)
        d = np.linalg.norm(x[:, None] - x, axis=-1)
        counts, volumes = np.empty((1, 8)), np.empty(1)
        for first, second in ((a, a), (a, b), (b, b)):
            part = d[np.ix_(first, second)][first[:, None] != second]
            assert pair_counts(x[None], no_box, first, second, first, second, len(first) == len(second), edges, counts,
                               volumes) == -1
            np.testing.assert_array_equal(counts[0, 1:], np.histogram(part[part < 7.0], edges)[0])
            assert counts[0, 0] == (part < 0.5).sum()
            assert np.isnan(volumes[0])


@given(st.integers(0, 10**6), st.floats(0.3, 12.0), st.integers(1, 25))
@settings(max_examples=60)
def test_any_box_any_range(seed, reach, n):
    rng = np.random.default_rng(seed)
    cell = rng.normal(0, 6, (3, 3))
    cell += np.eye(3) * 3
    if 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max() < 1.5:
        return
    x = rng.normal(0, 10, (n, 3))
    all_atoms = np.arange(n)
    edges = np.linspace(0.0, reach, 6)
    np.testing.assert_array_equal(counted(x, cell, all_atoms, all_atoms, all_atoms, all_atoms, edges),
                                  plain_counts(x, cell, all_atoms, all_atoms, all_atoms, all_atoms, edges))


@given(st.integers(0, 10**6), st.sampled_from([20, 160]), st.sampled_from([None, "cubic", "dodecahedron", "turned"]),
       st.floats(0.0, 3.0), st.floats(0.5, 4.0), st.sampled_from([1, 7, 100, 3000]), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=30)
def test_any_groups_and_bins_as_in_double_precision(seed, n, box, low, width, bins, kind):
    """Groups that are one, overlap or are apart; few atoms and many; exclusions; bins finer than single precision."""
    rng = np.random.default_rng(seed)
    x = (rng.uniform(-9, 30, 3) + rng.normal(0, rng.uniform(1, 6), (n, 3))).astype(kind)
    edges = np.linspace(low, low + width, bins + 1)
    label = np.arange(n) // int(rng.integers(1, 5))
    a = np.flatnonzero(rng.random(n) < 0.7) if rng.random() < 0.7 else np.arange(n)
    b = a if rng.random() < 0.5 else np.flatnonzero(rng.random(n) < 0.6)
    if not len(a) or not len(b):
        return
    cells = np.empty((0, 3, 3)) if box is None else BOXES[box][None] * (2.0 if n > 20 else 1.0)
    counts, volumes = np.empty((1, bins + 1)), np.empty(1)
    assert pair_counts(x[None], cells, a, b, label[a], label[b], np.array_equal(a, b), edges, counts, volumes) == -1
    x = x.astype(np.float64)
    want = apart_counts(x, a, b, label, edges) if box is None else plain_counts(x, cells[0], a, b, label[a], label[b], edges)
    np.testing.assert_array_equal(counts[0], want)


def apart_counts(x, a, b, label, edges):
    """The counts without a box."""
    d = np.linalg.norm(x[a][:, None] - x[b], axis=-1)[label[a][:, None] != label[b]]
    return np.array([(d < edges[0]).sum(), *np.histogram(d[d < edges[-1]], edges)[0]])


@pytest.mark.parametrize("boxed", [False, True])
def test_pairs_a_hair_from_the_edges(boxed):
    """One part in 10^11 off an edge, far from the origin: single precision could not tell the side."""
    rng = np.random.default_rng(11)
    edges = np.linspace(0.0, 6.0, 25)
    a = np.stack([np.repeat(np.arange(12.0) * 20, 12), np.tile(np.arange(12.0) * 20, 12), np.zeros(144)], axis=1)
    u = rng.normal(size=a.shape)
    u /= np.linalg.norm(u, axis=1)[:, None]
    which, side = rng.integers(1, 25, 144), rng.choice([-1, 1], 144)
    a += 8.0 + rng.random(a.shape)
    x = np.concatenate([a, a + u * (edges[which] * (1 + 1e-11 * side))[:, None]])
    want = np.bincount(which + (side > 0), minlength=26)[:25]      # the first for those below the range: none
    cells = 260.0 * np.eye(3)[None] if boxed else np.empty((0, 3, 3))
    first, last, counts, volumes = np.arange(144), np.arange(144, 288), np.empty((1, 25)), np.empty(1)
    assert pair_counts(x[None], cells, first, last, first, last, False, edges, counts, volumes) == -1
    np.testing.assert_array_equal(counts[0], want)
    both = np.arange(288)
    assert pair_counts(x[None], cells, both, both, both, both, True, edges, counts, volumes) == -1
    np.testing.assert_array_equal(counts[0], 2 * want)


def test_a_molecule_in_the_midst_of_its_box_and_at_its_edge():
    """Where no image can be near the box is left aside; one step further it counts."""
    rng = np.random.default_rng(4)
    atoms, edges = np.arange(60), np.linspace(0.5, 5.0, 10)
    cell = np.array([[30.0, 0, 0], [9.0, 28.0, 0], [-11.0, 7.0, 26.0]])
    for spread in (10.0, 20.0, 20.9, 21.1, 23.0, 26.0, 80.0):
        x = rng.uniform(0, spread, (60, 3)) + np.array([100.0, -40.0, 7.0])
        for a, b in ((atoms, atoms), (atoms[:20], atoms[10:])):
            np.testing.assert_array_equal(counted(x, cell, a, b, a, b, edges), plain_counts(x, cell, a, b, a, b, edges))


def test_far_out_and_finely_binned():
    """Positions and bins that single precision cannot hold are counted all the same."""
    rng = np.random.default_rng(2)
    no_box, atoms = np.empty((0, 3, 3)), np.arange(40)
    for scale, far, bins in ((1.0, 1e9, 50), (1e25, 0.0, 9), (1e100, 0.0, 9), (1e-30, 0.0, 9), (1.0, 0.0, 2**23)):
        x = rng.normal(0, scale, (40, 3)) + far
        edges = np.linspace(0.0, 2 * scale, bins + 1)
        counts, volumes = np.empty((1, bins + 1)), np.empty(1)
        assert pair_counts(x[None], no_box, atoms, atoms, atoms, atoms, True, edges, counts, volumes) == -1
        np.testing.assert_array_equal(counts[0], apart_counts(x, atoms, atoms, atoms, edges))


def test_bad_frames_are_named():
    x = np.zeros((3, 4, 3))
    x[2, 1, 0] = np.nan
    all_atoms, edges = np.arange(4), np.linspace(0, 1, 3)
    counts, volumes = np.empty((3, 3)), np.empty(3)
    cells = np.broadcast_to(np.eye(3), (3, 3, 3)).copy()
    args = (all_atoms, all_atoms, all_atoms, all_atoms)
    assert pair_counts(x, cells, *args, True, edges, counts, volumes) == 2
    assert pair_counts(x, np.empty((0, 3, 3)), *args, True, edges, counts, volumes) == 2
    cells[1, 2] = 0
    assert pair_counts(x, cells, *args, True, edges, counts, volumes) == 1
    assert nearest_counts(x, cells, *args, edges, counts, volumes) == 1
