"""The loops behind structure: superposition, gyration, distances, angles and contacts, against plain numpy."""

import numpy as np
import pytest

from ensemblekit.averaging.run import reduce
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.md.observables import contacts
from ensemblekit.md.observables.contacts import count_contacts
from ensemblekit.md.superpose import Fit, MovedMean, frames_of, mean_structure, rmsd, rmsd_matrix, superposed
from ensemblekit.source import ArraySource, Block


def kabsch(frames, reference, weights=None):
    """Superposition by singular values (Kabsch 1976), the slow plain way."""
    w = np.full(len(reference), 1 / len(reference)) if weights is None else weights / weights.sum()
    centre = w @ reference
    moved = frames - np.einsum("a,nai->ni", w, frames[:, :len(reference)])[:, None]
    covariance = np.einsum("a,nai,aj->nij", w, moved[:, :len(reference)], reference - centre)
    u, _, vt = np.linalg.svd(covariance)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return moved @ (u @ vt) + centre


def deviation(moved, reference, weights=None):
    return np.sqrt(np.average(((moved - reference) ** 2).sum(-1), axis=1, weights=weights))


@pytest.mark.parametrize("n_atoms", [3, 4, 7, 50])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_superposition_is_kabschs(n_atoms, dtype):
    rng = np.random.default_rng(n_atoms)
    reference = 10 * rng.normal(size=(n_atoms, 3))
    frames = (10 * rng.normal(size=(40, n_atoms + 3, 3)) + 100).astype(dtype)
    weights = rng.uniform(1, 20, n_atoms)
    for w in (None, weights):
        want = kabsch(frames.astype("f8"), reference, w)
        np.testing.assert_allclose(superposed(frames, reference, w), want, atol=1e-9)
        distances = rmsd(frames[:, :n_atoms], reference, w)
        np.testing.assert_allclose(distances, deviation(want[:, :n_atoms], reference, w), rtol=1e-11)


def test_alike_frames_have_no_deviation():
    """The difference of two large squares would leave 1e-7 angstrom."""
    reference = 20 * np.random.default_rng(1).normal(size=(30, 3))
    assert rmsd(reference[None] + 500.0, reference)[0] < 1e-11
    assert rmsd(reference[None], reference)[0] < 1e-13


def test_a_straight_line_turns_no_more_than_it_must():
    line = np.outer(np.arange(4.0), [0.0, 0.0, 2.0])
    other = np.array([[3.0, 1.0, 1.0]])
    frames = np.concatenate([line, other])[None]            # already in place: the atom beside must not move
    np.testing.assert_allclose(superposed(frames, line)[0], frames[0], atol=1e-12)
    rotated = np.concatenate([line[:, [2, 1, 0]], other])[None]
    np.testing.assert_allclose(superposed(rotated, line)[0, :4], line, atol=1e-12)
    np.testing.assert_allclose(rmsd(1.5 * line[None, :, [2, 0, 1]], line), [0.5 * np.std(line[:, 2])], rtol=1e-12)


@pytest.mark.parametrize("points", [
    np.array([[0.0, 0, 0], [1, 0, 0]]), np.zeros((4, 3)), np.array([[1.0, 2, 3]]),
    np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]),       # flat: its mirror image is itself
])
def test_degenerate_structures_lie_on_themselves(points):
    moved = superposed(points[None] + 5, points)
    np.testing.assert_allclose(moved[0], points, atol=1e-12)
    np.testing.assert_allclose(rmsd(points[None] + 5, points), [0], atol=1e-12)


def test_two_atoms_differ_by_their_distance():
    distances = rmsd(np.array([[[0.0, 0, 0], [0, 0, 3.0]]]), np.array([[5.0, 5, 5], [6, 5, 5]]))
    np.testing.assert_allclose(distances, [1.0], rtol=1e-12)       # each end is 1 away: (3 - 1) / 2


def test_mirror_images_are_never_made():
    """Mirrored tetrahedra leave the best rotation undetermined, the deviation not."""
    corners = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    frames = (corners * [1, 1, -1])[None]
    want = kabsch(frames, corners)
    np.testing.assert_allclose(rmsd(frames, corners), deviation(want, corners), rtol=1e-9)
    moved = superposed(frames, corners)
    np.testing.assert_allclose(deviation(moved, corners), deviation(want, corners), rtol=1e-9)


def test_a_coordinate_that_is_not_a_number_stays_in_its_frame():
    rng = np.random.default_rng(3)
    frames = rng.normal(size=(3, 5, 3))
    frames[1, 2, 0] = np.nan
    distances = rmsd(frames, rng.normal(size=(5, 3)))
    np.testing.assert_array_equal(np.isnan(distances), [False, True, False])
    assert np.isnan(superposed(frames, frames[0])[1]).all()


def test_rmsd_of_all_pairs():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(6, 9, 3)), rng.normal(size=(4, 9, 3)) + 3
    np.testing.assert_allclose(rmsd_matrix(a, b), np.stack([rmsd(a, y) for y in b], axis=1), rtol=1e-10)
    square = rmsd_matrix(a)
    np.testing.assert_allclose(square, square.T, rtol=1e-10)
    assert (np.diag(square) == 0).all()


def test_views_are_read_in_place():
    x = np.zeros((4, 10, 6), "f4")
    assert np.shares_memory(frames_of(x[:, :, :3][:, :0] if False else x.reshape(4, 20, 3)).flat, x)
    striped = np.zeros((8, 20, 3), "f4")[::2]
    assert np.shares_memory(frames_of(striped).flat, striped)


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.zeros((2, 3, 4))])
def test_positions_of_another_shape(bad):
    with pytest.raises(InputError, match="shape"):
        frames_of(bad)


def test_weights_and_references_that_cannot_be_used():
    with pytest.raises(InputError, match="weights of atoms"):
        rmsd(np.zeros((1, 2, 3)), np.zeros((2, 3)), [1.0, -1.0])
    with pytest.raises(InputError, match="NaN"):
        rmsd(np.zeros((1, 2, 3)), np.full((2, 3), np.nan))
    with pytest.raises(InputError, match="same atoms"):
        rmsd(np.zeros((1, 3, 3)), np.zeros((2, 3)))


def shaken(rng, n=60, atoms=20):
    """Frames of one shape, shaken, turned and moved at random."""
    shape = 8 * rng.normal(size=(atoms, 3))
    turns = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
    turns *= np.linalg.det(turns)[:, None, None]
    return (shape + 0.3 * rng.normal(size=(n, atoms, 3))) @ turns + 5 * rng.normal(size=(n, 1, 3))


class Chosen:
    """A gather of atoms in place."""

    def __init__(self, *atoms):
        self.atoms = np.concatenate(atoms)

    def __call__(self, block):
        return block.fields["position"], self.atoms


def reader(frames, weights=None):
    source = ArraySource.of({"position": frames}, weights=weights)
    return lambda branches: reduce(source, branches)


def test_the_mean_structure_is_that_of_the_slow_way():
    rng = np.random.default_rng(5)
    frames, w = shaken(rng), rng.uniform(0, 3, 60)
    masses = rng.uniform(1, 16, 12)
    fitted, atoms = np.arange(12), np.arange(4, 20)
    result = mean_structure(reader(frames, w), Chosen(fitted, atoms), frames[0, fitted], same=False, others=16, weights=masses)
    reference = frames[0, fitted]
    for _ in range(100):
        moved = kabsch(frames, reference, masses)
        reference = np.average(moved[:, fitted], axis=0, weights=w)
    np.testing.assert_allclose(result.fit.reference + result.fit.centre, reference, atol=1e-5)
    np.testing.assert_allclose(result.mean, np.average(moved[:, atoms], axis=0, weights=w), atol=1e-5)
    assert result.shift < 1e-6
    assert 2 < result.rounds < 40
    one = mean_structure(reader(frames, w), Chosen(fitted), frames[0, fitted], same=True, rounds=1)
    np.testing.assert_allclose(one.mean, np.average(kabsch(frames, frames[0, fitted])[:, fitted], axis=0, weights=w),
                               atol=1e-10)
    still = mean_structure(reader(frames, w), Chosen(atoms), np.zeros((0, 3)), same=False, others=16)
    np.testing.assert_allclose(still.mean, np.average(frames[:, atoms], axis=0, weights=w), atol=1e-10)
    assert still.rounds == 1


def test_the_mean_structure_is_the_same_however_the_frames_are_cut():
    rng = np.random.default_rng(6)
    frames, w = shaken(rng, 30), rng.uniform(size=30)
    gather = Chosen(np.arange(9), np.arange(5, 15))

    def block(a, b):
        return Block({"position": frames[a:b]}, a, slice(None), w[a:b], None)

    whole = MovedMean(gather, Fit.onto(frames[0, :9]), frames[0, gather.atoms])
    whole.update(block(0, 30), 0, w)
    parts = whole.empty()
    for a, b in ((0, 0), (0, 1), (1, 17), (17, 30)):
        part = whole.empty()
        part.update(block(a, b), a, w[a:b])
        parts.merge(part.restored(part.state()))
    np.testing.assert_allclose(parts.result(), whole.result(), rtol=1e-12)
    with pytest.raises(StatisticsError, match="no frames"):
        whole.empty().result()


def test_a_mean_structure_of_frames_that_are_not_finite():
    frames = shaken(np.random.default_rng(7), 5)
    frames[3] = np.nan
    with pytest.raises(StatisticsError, match="not finite"):
        mean_structure(reader(frames), Chosen(np.arange(4)), frames[0, :4], same=True)


BOXES = {"none": None, "right": [22.0, 25, 31, 90, 90, 90], "triclinic": [22.0, 25, 31, 75, 62, 108],
         "dodecahedron": [25.0, 25, 25, 60, 60, 90], "octahedron": [26.0, 26, 26, 70.53, 109.47, 70.53]}


@pytest.mark.parametrize("name", BOXES)
def test_distances_angles_and_torsions_are_mdanalysis(name):
    distances = pytest.importorskip("MDAnalysis.lib.distances")
    triclinic_vectors = pytest.importorskip("MDAnalysis.lib.mdamath").triclinic_vectors
    from ensemblekit.md import kernels_geometry as kernels

    rng = np.random.default_rng(8)
    box = BOXES[name]
    x = 60 * rng.normal(size=(5, 40, 3))
    boxes = np.zeros((0, 3, 3)) if box is None else np.repeat(np.float64(triclinic_vectors(box))[None], 5, 0)
    four = rng.integers(0, 40, (200, 4))
    four = four[[len(set(row)) == 4 for row in four]]
    for columns, kernel, theirs in ((2, kernels.distances, distances.calc_bonds), (3, kernels.angles, distances.calc_angles),
                                    (4, kernels.dihedrals, distances.calc_dihedrals)):
        chosen = np.ascontiguousarray(four[:, :columns])
        values = np.empty((5, len(chosen)))
        kernel(x, chosen, boxes, values)
        want = np.stack([theirs(*(frame[chosen[:, k]] for k in range(columns)), box=None if box is None else np.float32(box))
                         for frame in x])
        np.testing.assert_allclose(values, want, rtol=1e-5, atol=1e-4)


def test_a_turned_box_is_the_same_box():
    """Cell vectors in any orientation: turned with the atoms, nothing changes."""
    from ensemblekit.md import kernels_geometry as kernels

    rng = np.random.default_rng(9)
    cell = np.array([[20.0, 0, 0], [7, 18, 0], [-6, 8, 17]])
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    x = 30 * rng.normal(size=(1, 30, 3))
    pairs = np.stack([np.arange(29), np.arange(1, 30)], axis=1)
    here, there = np.empty((1, 29)), np.empty((1, 29))
    kernels.distances(x, pairs, cell[None], here)
    kernels.distances(x @ turn, pairs, (cell @ turn)[None], there)
    np.testing.assert_allclose(there, here, rtol=1e-10)
    images = np.array([[i, j, k] for i in range(-6, 7) for j in range(-6, 7) for k in range(-6, 7)]) @ cell
    gaps = x[0, 1:] - x[0, :-1]
    near = gaps - np.rint(gaps @ np.linalg.inv(cell)) @ cell
    want = np.linalg.norm(near[:, None] + images[None], axis=2).min(axis=1)
    np.testing.assert_allclose(here[0], want, rtol=1e-10)


def test_angles_that_are_not_defined_are_not_numbers():
    from ensemblekit.md import kernels_geometry as kernels

    x = np.array([[[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [2, 0, 0]]])
    none = np.zeros((0, 3, 3))
    angle, torsion = np.empty((1, 2)), np.empty((1, 1))
    kernels.angles(x, np.array([[0, 1, 2], [1, 2, 3]]), none, angle)
    kernels.dihedrals(x, np.array([[0, 1, 2, 3]]), none, torsion)
    assert np.isnan(angle[0, 0])
    assert angle[0, 1] == pytest.approx(np.pi)
    assert np.isnan(torsion[0, 0])


def test_gyration_far_from_the_origin():
    from ensemblekit.md import kernels_gyration as kernels

    rng = np.random.default_rng(10)
    x = (rng.normal(size=(3, 50, 3)) * [1, 2, 3]).astype("f4") + np.float32(512)
    atoms, shares = np.array([3, 7, 9, 40]), np.array([0.1, 0.2, 0.3, 0.4])
    rows = frames_of(x)
    radii, tensor = np.empty((3, 3)), np.empty((3, 6))
    kernels.gyration(*rows, atoms, shares, radii)
    kernels.gyration_tensor(*rows, atoms, shares, tensor)
    y = x[:, atoms].astype("f8")
    y -= np.einsum("a,nai->ni", shares, y)[:, None]
    want = np.einsum("a,nai,naj->nij", shares, y, y)
    np.testing.assert_allclose(radii, np.diagonal(want, axis1=1, axis2=2), rtol=1e-11)
    np.testing.assert_allclose(tensor[:, 3:], want[:, [0, 0, 1], [1, 2, 2]], rtol=1e-9)
    np.testing.assert_allclose(tensor[:, :3], radii, rtol=1e-12)


@pytest.mark.parametrize("cell", [None, np.array([[30.0, 0, 0], [9, 28, 0], [-8, 7, 27]])])
def test_contacts_by_cell_lists_are_those_of_all_pairs(cell, monkeypatch):
    rng = np.random.default_rng(12)
    x = (30 * rng.uniform(size=(4, 500, 3))).astype("f4")
    x[2, 7] = np.nan
    boxes = np.zeros((0, 3, 3)) if cell is None else np.repeat(cell[None], 4, 0)
    pairs = (np.arange(300), np.arange(200, 500)), (np.arange(400), np.arange(400)), (np.arange(8, 90), np.arange(90, 500))
    for a, b in pairs:
        counts = []
        for few in (0, 10**12):
            monkeypatch.setattr(contacts, "FEW_PAIRS", few)
            counts.append(count_contacts(x, a, b, 4.5, boxes))
        np.testing.assert_array_equal(counts[0], counts[1])
        assert np.isnan(counts[0][2]) == (a[0] == 0)
        assert counts[0][0] > 50
    far = count_contacts(x, a, b, 14.0, boxes)       # beyond half a box a pair still counts once
    monkeypatch.setattr(contacts, "FEW_PAIRS", 10**12)
    np.testing.assert_array_equal(far, count_contacts(x, a, b, 14.0, boxes))


def test_contacts_are_counted_once_a_pair():
    from ensemblekit.md import kernels_geometry as kernels

    rng = np.random.default_rng(11)
    x = (10 * rng.uniform(size=(4, 60, 3))).astype("f4")
    rows, box = frames_of(x), np.repeat(10 * np.eye(3)[None], 4, 0)
    a, b = np.arange(0, 60, 2), np.arange(30, 60)
    gaps = x[:, :, None].astype("f8") - x[:, None].astype("f8")
    for boxes, near in ((np.zeros((0, 3, 3)), gaps), (box, gaps - 10 * np.rint(gaps / 10))):
        close = np.sqrt((near**2).sum(-1)) <= 3.0
        counts = np.zeros(4)
        kernels.contacts(*rows, np.arange(60), np.arange(60), True, 3.0, boxes, counts)
        np.testing.assert_array_equal(counts, (close.sum((1, 2)) - 60) / 2)
        pairs = np.zeros((60, 60), bool)
        pairs[np.ix_(a, b)] = True
        pairs |= pairs.T                    # i in a and j in b, or the other way round: one pair
        np.testing.assert_array_equal(count_contacts(x, a, b, 3.0, boxes), (close & np.triu(pairs, 1)).sum((1, 2)))
        both = close[:, a][:, :, b] & (a[:, None] != b[None])
        maps = np.zeros((4, 6, 3))
        kernels.contact_map(*rows, a, b, a // 10, (b - 30) // 10, 3.0, boxes, maps)
        want = np.zeros((4, 6, 3))
        for i, j in zip(*np.nonzero(both.any(0)), strict=True):
            want[:, a[i] // 10, (b[j] - 30) // 10] = np.maximum(want[:, a[i] // 10, (b[j] - 30) // 10], both[:, i, j])
        np.testing.assert_array_equal(maps, want)
