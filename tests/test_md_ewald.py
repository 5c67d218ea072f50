"""Ewald's sum against lattices with known constants, itself with other splits and vectors, and the error it states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ensemblekit.md.displacement import wigner_constant
from ensemblekit.md.ewald import COULOMB, Charges, Close, Excluded, Split, coulomb
from tests.field_oracles import MADELUNG, WIGNER

SKEW = np.array([[9.0, 0.4, -0.3], [3.9, 8.0, 0.2], [-3.1, 4.4, 7.5]])


def charges_of(q: np.ndarray, groups: int = 1) -> Charges:
    edges = np.linspace(0, len(q), groups + 1).astype(np.int64)
    return Charges(np.arange(len(q)), np.asarray(q, np.float64), edges)


def nothing(points: int) -> Excluded:
    return Excluded(np.zeros(points + 1, np.int64), np.zeros(0, np.int64))


def themselves(n: int) -> Excluded:
    return Excluded(np.arange(n + 1), np.arange(n))


def total(points, positions, q, cell, split, excluded=None):
    points = np.ascontiguousarray(points, np.float64)
    values = coulomb(points, np.ascontiguousarray(positions, np.float64), charges_of(q), cell, split,
                     excluded if excluded is not None else nothing(len(points)))
    assert values is not None
    return values[0].sum(axis=1), values[1].sum(axis=1)


def some_charges(n: int = 24, net: float = 0.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    q = rng.normal(size=n)
    return rng.uniform(0, 1, (n, 3)) @ SKEW, q - q.mean() + net / n


@pytest.mark.parametrize("name", MADELUNG)
@pytest.mark.parametrize("screening", [4, 6, 8])
def test_madelung_constants(name: str, screening: float) -> None:
    fractions, q, nearest, constant = MADELUNG[name]
    split = Split.at(screening, 1e-11, 1.0, float(q @ q))
    field, potential = total(fractions, fractions, q, np.eye(3), split, themselves(len(q)))
    np.testing.assert_allclose(-q * potential / COULOMB * nearest, constant, rtol=0, atol=1e-10)
    np.testing.assert_allclose(field / COULOMB, 0, atol=1e-10)


@pytest.mark.parametrize("name", WIGNER)
def test_a_charge_in_a_background(name: str) -> None:
    cell, constant = WIGNER[name]
    split = Split.at(5.0, 1e-11, float(abs(np.linalg.det(cell))), 1.0)
    _, potential = total(np.zeros((1, 3)), np.zeros((1, 3)), np.ones(1), cell, split, themselves(1))
    assert potential[0] / COULOMB == pytest.approx(constant, abs=1e-9)


def test_a_charge_in_any_cell_has_minus_the_constant_of_diffusion() -> None:
    volume = abs(np.linalg.det(SKEW))
    split = Split.at(0.5, 1e-12, volume, 1.0)
    _, potential = total(np.zeros((1, 3)), np.zeros((1, 3)), np.ones(1), SKEW, split, themselves(1))
    assert potential[0] / COULOMB * np.cbrt(volume) == pytest.approx(-wigner_constant(SKEW), abs=1e-9)


@pytest.mark.parametrize("net", [0.0, 3.0])
def test_the_split_does_not_matter_nor_do_the_vectors_of_a_lattice(net: float) -> None:
    positions, q = some_charges(net=net)
    points = np.random.default_rng(2).uniform(0, 1, (5, 3)) @ SKEW
    volume, squares = abs(np.linalg.det(SKEW)), float(q @ q)
    one = total(points, positions, q, SKEW, Split.at(0.4, 1e-13, volume, squares))
    other_vectors = np.array([[1, 0, 0], [1, 1, 0], [-2, 1, 1]]) @ SKEW
    mirrored = SKEW * [[1], [1], [-1]]
    for cell, alpha in ((SKEW, 0.6), (SKEW, 0.9), (other_vectors, 0.5), (mirrored, 0.5)):
        two = total(points + 3 * SKEW[0] - SKEW[2], positions, q, cell, Split.at(alpha, 1e-13, volume, squares))
        np.testing.assert_allclose(two[0], one[0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(two[1], one[1], rtol=0, atol=1e-10)


def test_all_turns_with_the_cell() -> None:
    positions, q = some_charges()
    points = np.random.default_rng(2).uniform(0, 1, (5, 3)) @ SKEW
    split = Split.at(0.5, 1e-12, abs(np.linalg.det(SKEW)), float(q @ q))
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    one = total(points, positions, q, SKEW, split)
    two = total(points @ turn, positions @ turn, q, SKEW @ turn, split)
    np.testing.assert_allclose(two[0], one[0] @ turn, rtol=0, atol=1e-10)
    np.testing.assert_allclose(two[1], one[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("excluded", [False, True])
def test_the_field_is_minus_the_slope_of_the_potential(excluded: bool) -> None:
    positions, q = some_charges(net=1.0)
    split = Split.at(0.5, 1e-13, abs(np.linalg.det(SKEW)), float(q @ q))
    at, step = positions[:1] + 0.7, 1e-4
    ends = np.concatenate([at + step * sign * np.eye(3) for sign in (1, -1)])
    out = Excluded(np.arange(7) * 2, np.tile([0, 3], 6)) if excluded else None
    potential = total(ends, positions, q, SKEW, split, out)[1]
    field = total(at, positions, q, SKEW, split, Excluded(np.array([0, 2]), np.array([0, 3])) if excluded else None)[0][0]
    np.testing.assert_allclose(field, (potential[3:] - potential[:3]) / (2 * step), rtol=0, atol=1e-6)


def test_the_potential_is_zero_on_average_over_the_cell() -> None:
    positions, q = some_charges(net=2.0)
    split = Split.at(0.25, 1e-12, abs(np.linalg.det(SKEW)), float(q @ q))
    # Gauss' rule has no poles to deal with where the screened part is integrated in closed form: of the waves the mean is 0,
    # of the screened charges it is pi q / (alpha² V), which the background takes off. A grid sees the waves alone:
    grid = np.stack(np.meshgrid(*[np.arange(12) / 12] * 3, indexing="ij"), -1).reshape(-1, 3) @ SKEW + 0.1
    seen = total(grid, positions, q, SKEW, split)[1]
    near = Split(split.alpha, split.cutoff, 0.0)
    screened = total(grid, positions, q, SKEW, near)[1]
    assert abs((seen - screened).mean()) < 1e-9
    # and the screened part by a fine radial rule about one charge
    r = (np.arange(200_000) + 0.5) * 1e-4
    from scipy.special import erfc
    mean = float((4 * np.pi * r**2 * erfc(split.alpha * r) / r).sum() * 1e-4)
    assert mean == pytest.approx(np.pi / split.alpha**2, rel=1e-6)


def test_groups_add_up_also_with_what_is_excluded() -> None:
    positions, q = some_charges(net=1.5)
    points = positions[:3]
    split = Split.at(0.5, 1e-12, abs(np.linalg.det(SKEW)), float(q @ q))
    out = Excluded(np.array([0, 3, 5, 6]), np.array([0, 5, 20, 1, 9, 2]))
    whole = coulomb(points, positions, charges_of(q), SKEW, split, out)
    parts = coulomb(points, positions, charges_of(q, 5), SKEW, split, out)
    assert whole is not None
    assert parts is not None
    assert parts[0].shape == (3, 5, 3)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(b.sum(axis=1), a[:, 0], rtol=0, atol=1e-10)
    np.testing.assert_array_less(1e-3, np.abs(parts[1]).max(axis=0))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_the_error_is_what_was_asked_for_at_any_cutoff(tolerance: float) -> None:
    rng = np.random.default_rng(4)
    side = 24.0
    positions = rng.uniform(0, side, (200, 3))
    q, cell = np.tile([1.0, -1.0], 100), side * np.eye(3)
    points = rng.uniform(0, side, (200, 3))
    best = total(points, positions, q, cell, Split.at(0.45, 1e-12, side**3, 200.0))[0]
    for cutoff in (8.0, 12.0, 15.0):     # the last one beyond half the box
        field_of = total(points, positions, q, cell, Split.within(tolerance, cutoff, side**3, 200.0))[0]
        error = np.sqrt(((field_of - best) ** 2).sum(axis=1).mean())
        assert 0.1 * tolerance < error < 2 * tolerance


@pytest.mark.parametrize("cutoff", [11.9, 15.0])       # of the nearest image alone, and beyond half the box
def test_pairs_off_the_table_are_those_of_the_functions(cutoff: float) -> None:
    rng = np.random.default_rng(4)
    positions, q = rng.uniform(0, 24, (300, 3)), rng.normal(size=300)
    points = np.concatenate([rng.uniform(0, 24, (40, 3)), positions[:9] + np.array([0.5, 0, 0])])       # nearer than the table
    split = Split.within(1e-5, cutoff, 24.0**3, float(q @ q))
    assert not split.exact
    assert Split.within(1e-7, cutoff, 24.0**3, float(q @ q)).exact
    one = total(points, positions, q, 24 * np.eye(3), split)
    two = total(points, positions, q, 24 * np.eye(3), replace(split, exact=True))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        assert np.abs(a - b).max() > 0


def test_the_cheapest_split_keeps_the_tolerance_too() -> None:
    split = Split.cheapest(1e-4, 77.7**3, 46875 * 0.35, 46875, 100)
    same = Split.within(1e-4, split.cutoff, 77.7**3, 46875 * 0.35)
    assert split == same
    assert 12 < split.cutoff < 40
    assert Split.cheapest(1e-4, 77.7**3, 46875 * 0.35, 46875, 1).cutoff > split.cutoff     # one point: many pairs are cheap


def test_a_place_on_a_charge_is_refused_unless_that_is_left_out() -> None:
    positions, q = some_charges()
    split = Split.at(0.5, 1e-6, abs(np.linalg.det(SKEW)), float(q @ q))
    for one in (split, None):
        with pytest.raises(Close) as caught:
            total(positions[:4] + np.array([[0, 0, 0.5], [0, 0, 0], [1, 0, 0], [0, 1, 0]]), positions, q, SKEW, one)
        assert caught.value.point == 1


def test_what_is_excluded_is_the_nearest_image_alone() -> None:
    positions, q = np.array([[1.0, 1.0, 1.0], [4.0, 1.0, 1.0]]), np.array([1.0, -1.0])
    cell, points = 10.0 * np.eye(3), np.array([[2.0, 2.0, 1.5]])
    split = Split.at(0.4, 1e-12, 1000.0, 2.0)
    all_of_them = total(points, positions, q, cell, split)
    without = total(points, positions, q, cell, split, Excluded(np.array([0, 1]), np.array([0])))
    way = points - positions[:1]
    r = np.linalg.norm(way)
    np.testing.assert_allclose(all_of_them[0] - without[0], COULOMB * way / r**3, atol=1e-12)
    np.testing.assert_allclose(all_of_them[1] - without[1], COULOMB / r, atol=1e-12)


def test_frames_that_cannot_be_summed_are_no_numbers() -> None:
    positions, q = some_charges()
    split = Split.at(0.5, 1e-6, abs(np.linalg.det(SKEW)), float(q @ q))
    flat = SKEW * [[1], [1], [0]]
    for where, cell in ((positions, flat), (np.where(np.eye(24, 3) > 0, np.nan, positions), SKEW)):
        assert coulomb(points=np.ones((1, 3)), positions=where, charges=charges_of(q), cell=cell, split=split,
                       excluded=nothing(1)) is None
