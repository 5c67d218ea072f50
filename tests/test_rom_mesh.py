"""Meshes: volumes, areas and dual volumes against closed forms and against VTK's own."""

from __future__ import annotations

import numpy as np
import pytest

from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.rom import cells as vtk
from ensemblekit.rom.cells import Polyhedra
from ensemblekit.rom.mesh import Mesh, inner_product, leading
from ensemblekit.source import ArraySource


class Meshed:
    """A source that carries a mesh, the least that the inner product needs."""

    def __init__(self, mesh: Mesh | None, **arrays: np.ndarray):
        self.mesh = mesh
        self.fields = ArraySource.of(arrays).fields


def box(nx: int = 4, ny: int = 3, nz: int = 3, seed: int | None = None) -> Mesh:
    """A unit cube of hexahedra, its inner points shaken where there is a seed, so that faces are not planar."""
    x, y, z = (np.linspace(0, 1, n) for n in (nx, ny, nz))
    grid = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], -1)
    if seed is not None:
        grid[1:-1, 1:-1, 1:-1] += np.random.default_rng(seed).uniform(-0.1, 0.1, grid[1:-1, 1:-1, 1:-1].shape)
    return Mesh.structured(grid)


def trilinear_volume(corners: np.ndarray) -> float:
    """The volume of a hexahedron of VTK's corners, by Gauss quadrature of its Jacobian: the definition."""
    signs = np.array([(-1, -1, -1), (1, -1, -1), (1, 1, -1), (-1, 1, -1), (-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)])
    at, weights = np.polynomial.legendre.leggauss(3)
    total = 0.0
    for r, wr in zip(at, weights, strict=True):
        for s, ws in zip(at, weights, strict=True):
            for t, wt in zip(at, weights, strict=True):
                f = 1 + signs * [r, s, t]
                d = np.stack([signs[:, 0] * f[:, 1] * f[:, 2], signs[:, 1] * f[:, 0] * f[:, 2],
                              signs[:, 2] * f[:, 0] * f[:, 1]]) / 8
                total += wr * ws * wt * np.linalg.det(d @ corners)
    return total


def test_curved_hexahedra_have_the_volume_of_their_trilinear_map() -> None:
    mesh = box(seed=1)
    corners = mesh.points[mesh.connectivity.reshape(-1, 8)]
    np.testing.assert_allclose(mesh.volumes, [trilinear_volume(c) for c in corners], rtol=1e-12)
    assert mesh.volumes.sum() == pytest.approx(1, abs=1e-13)
    assert mesh.point_volumes.sum() == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize(("kind", "points", "volume"), [
    (vtk.TETRA, [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], 1 / 6),
    (vtk.PYRAMID, [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0.3, 0.2, 3)], 1),
    (vtk.WEDGE, [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 2), (0, 1, 2), (1, 0, 2)], 1),
    (vtk.VOXEL, [(0, 0, 0), (2, 0, 0), (0, 3, 0), (2, 3, 0), (0, 0, 4), (2, 0, 4), (0, 3, 4), (2, 3, 4)], 24),
    (vtk.PIXEL, [(0, 0, 0), (2, 0, 0), (0, 3, 0), (2, 3, 0)], 6),
    (vtk.POLYGON, [(0, 0, 1), (4, 0, 1), (4, 4, 1), (2, 1, 1), (0, 4, 1)], 10),        # not convex
    (vtk.TRIANGLE_STRIP, [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (2, 0, 0)], 1.5),
    (vtk.POLY_LINE, [(0, 0, 0), (3, 4, 0), (3, 4, 1)], 6),
])
def test_one_cell_of_each_kind(kind: int, points: list, volume: float) -> None:
    mesh = Mesh.of(points, [list(range(len(points)))], kind)
    assert mesh.volumes == pytest.approx([volume], rel=1e-14)
    assert mesh.point_volumes.sum() == pytest.approx(volume, rel=1e-14)
    inside_out = Mesh.of(np.array(points, float) * [1, 1, -1], [list(range(len(points)))], kind)
    assert inside_out.volumes == pytest.approx([volume], rel=1e-14)


def test_prisms() -> None:
    for kind, n in ((vtk.PENTAGONAL_PRISM, 5), (vtk.HEXAGONAL_PRISM, 6)):
        angle = 2 * np.pi * np.arange(n) / n
        ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
        mesh = Mesh.of(np.concatenate([ring, ring + np.array([0, 0, 2])]), [list(range(2 * n))], kind)
        assert mesh.volumes == pytest.approx([n * np.sin(2 * np.pi / n)], rel=1e-14)


def test_dual_volumes_are_the_median_dual() -> None:
    tetra = Mesh.of([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], [[0, 1, 2, 3]])
    np.testing.assert_allclose(tetra.point_volumes, 1 / 24)         # a quarter each
    x = np.array([0, 1, 3, 3.5])
    line = Mesh.rectilinear(x)
    np.testing.assert_allclose(line.point_volumes, [0.5, 1.5, 1.25, 0.25])      # the trapezoidal rule
    plane = Mesh.rectilinear(x, [0, 2, 3])
    np.testing.assert_allclose(plane.point_volumes.reshape(3, 4), np.outer([1, 1.5, 0.5], [0.5, 1.5, 1.25, 0.25]))
    assert plane.measure == "area"
    assert plane.dimension == 2


def test_far_from_the_origin_no_digits_are_lost() -> None:
    near, far = box(seed=3), box(seed=3)
    far = Mesh(far.points + 1e6, far.connectivity, far.offsets, far.types)
    np.testing.assert_allclose(far.volumes, near.volumes, rtol=1e-7)


def test_polyhedra_are_the_cells_they_are_made_from() -> None:
    hexes = box(seed=2)
    faces, cells = [], []
    for cell in hexes.connectivity.reshape(-1, 8):
        cells.append(range(len(faces), len(faces) + 6))
        faces += [cell[list(face)] for face in vtk.FACES[vtk.HEXAHEDRON]]
    rng = np.random.default_rng(0)
    faces = [face[::-1] if rng.random() < 0.5 else face for face in faces]      # in either sense
    poly = Polyhedra(np.arange(len(faces) + 1) * 4, np.concatenate(faces), np.arange(hexes.n_cells + 1) * 6,
                     np.concatenate([list(c) for c in cells]))
    mesh = Mesh(hexes.points, hexes.connectivity, hexes.offsets, np.full(hexes.n_cells, 42), poly)
    np.testing.assert_allclose(mesh.volumes, hexes.volumes, rtol=1e-12)
    np.testing.assert_allclose(mesh.point_volumes, hexes.point_volumes, rtol=1e-12)
    # beside other cells, only some of them polyhedra
    mixed = Mesh(hexes.points, hexes.connectivity, hexes.offsets, np.where(np.arange(hexes.n_cells) % 2, 42, 12), poly)
    np.testing.assert_allclose(mixed.volumes, hexes.volumes, rtol=1e-12)


def test_cells_of_lower_dimension_have_no_volume() -> None:
    points = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    mesh = Mesh(points, [0, 1, 2, 3, 0, 1, 2], [0, 4, 7], [vtk.TETRA, vtk.TRIANGLE])
    np.testing.assert_allclose(mesh.volumes, [1 / 6, 0])


def test_quadratic_cells_are_exact() -> None:
    # a bulge of chord c and height h adds 2 c h / 3
    corners = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)], float)
    middle = np.array([(0.5, 0, 0), (0.5, 0.5, 0), (0, 0.5, 0)])
    middle[1] += [0.1, 0.1, 0]
    mesh = Mesh.of(np.concatenate([corners, middle]), [list(range(6))], 22)
    assert mesh.volumes == pytest.approx([0.5 + 2 / 3 * np.sqrt(2) * 0.1 * np.sqrt(2)], rel=1e-13)
    for kind in (24, 25, 26, 27, 29):
        straight = vtk.QUADRATIC[kind]
        points = {vtk.TETRA: [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)],
                  vtk.HEXAHEDRON: [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1)],
                  vtk.WEDGE: [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 2), (0, 1, 2), (1, 0, 2)],
                  vtk.PYRAMID: [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0.3, 0.2, 3)]}[straight]
        points = np.array(points, float)
        cell = quadratic(points, kind)
        mesh = Mesh.of(cell, [list(range(len(cell)))], kind)
        want = Mesh.of(points, [list(range(len(points)))], straight).volumes
        np.testing.assert_allclose(mesh.volumes, want, rtol=1e-13)
        sheared = cell + 0.2 * cell[:, [1]] ** 2 * [1, 0, 0]        # a quadratic map of Jacobian 1: the volume stays
        np.testing.assert_allclose(Mesh.of(sheared, [list(range(len(cell)))], kind).volumes, want, rtol=1e-13)


def quadratic(corners: np.ndarray, kind: int) -> np.ndarray:
    """The nodes of a straight quadratic cell, in the order that VTK itself gives."""
    vtk = pytest.importorskip("vtk")
    cell = {24: vtk.vtkQuadraticTetra, 25: vtk.vtkQuadraticHexahedron, 26: vtk.vtkQuadraticWedge,
            27: vtk.vtkQuadraticPyramid, 29: vtk.vtkTriQuadraticHexahedron}[kind]()
    linear = {24: vtk.vtkTetra, 25: vtk.vtkHexahedron, 26: vtk.vtkWedge, 27: vtk.vtkPyramid, 29: vtk.vtkHexahedron}[kind]()
    local = np.array(cell.GetParametricCoords()[:3 * cell.GetNumberOfPoints()]).reshape(-1, 3)
    for k, point in enumerate(corners):
        linear.GetPoints().SetPoint(k, point)
        linear.GetPointIds().SetId(k, k)
    nodes = []
    for p in local:
        x, weights = [0.0] * 3, [0.0] * len(corners)
        linear.EvaluateLocation(vtk.reference(0), p, x, weights)
        nodes.append(x)
    nodes = np.array(nodes)
    nodes[:len(corners)] = corners
    return nodes


def test_inner_product() -> None:
    mesh = Mesh.rectilinear([0, 1, 3.0], [0, 1.0])
    cells, points = np.zeros((5, 2)), np.zeros((5, 2, 3, 2))
    source = Meshed(mesh.with_fields({"T": "cell", "U": "point"}), T=cells, U=points)
    np.testing.assert_allclose(inner_product(source, "T"), [1, 2])
    weights = inner_product(source, "U")
    assert weights is not None
    np.testing.assert_allclose(weights, [[0.25, 0.75, 0.5]] * 2)      # the axes of space; the last axis is components
    assert inner_product(Meshed(None, T=cells)) is None
    assert inner_product(Meshed(Mesh.of(np.zeros((2, 3)), np.zeros((0, 1), int), 1), T=cells)) is None
    with pytest.raises(UnknownFieldError, match="'T', 'U'"):
        inner_product(source, "p")
    with pytest.raises(InputError, match="name the field"):
        inner_product(source)
    with pytest.raises(InputError, match="fits neither the 2 cells nor the 6 points"):
        inner_product(Meshed(mesh, T=np.zeros((4, 7))))


def test_what_fits_is_found_by_shape() -> None:
    mesh = box()
    assert mesh.where("p", (mesh.n_cells,)) == "cell"
    assert mesh.where("U", (mesh.n_points, 3)) == "point"
    assert mesh.where("U", (3, 3, 4, 3)) == "point"
    assert leading((3, 4, 3), 12) == (3, 4)
    assert leading((3, 4, 1), 12) == (3, 4)
    assert leading((5, 4), 12) is None


def test_bad_meshes_are_refused() -> None:
    with pytest.raises(InputError, match="there are 3"):
        Mesh.of(np.zeros((3, 3)), [[0, 1, 3]])
    with pytest.raises(InputError, match="offsets of 1 cells"):
        Mesh(np.zeros((3, 3)), [0, 1, 2], [0, 2], [5])
    with pytest.raises(InputError, match="points have shape"):
        Mesh.of(np.zeros((3, 4)), [[0, 1, 2]])
    with pytest.raises(InputError, match="type 99"):
        Mesh(np.zeros((3, 3)), [0, 1, 2], [0, 3], [99])
    with pytest.raises(InputError, match="need their faces"):
        Mesh(np.zeros((4, 3)), [0, 1, 2, 3], [0, 4], [42])
    with pytest.raises(InputError, match="needs at least 8"):
        Mesh(np.zeros((4, 3)), [0, 1, 2, 3], [0, 4], [12])


def test_to_arrays_and_back() -> None:
    mesh = box(seed=1).with_fields({"U": "cell"})
    again = Mesh.from_arrays(mesh.to_arrays())
    assert again.unlike(mesh) is None
    assert again.digest == mesh.digest
    assert again.association == {"U": "cell"}
    assert "moved" in (mesh.unlike(box(seed=5)) or "")
    assert "points and" in (mesh.unlike(box(5)) or "")
