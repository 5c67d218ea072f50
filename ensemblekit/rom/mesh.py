"""Meshes: points, cells, what part of space each of them stands for, and the inner product that follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, StoreDamagedError, UnknownFieldError, one_line
from ensemblekit.intake import as_array
from ensemblekit.rom.cells import (
    DIMENSIONS,
    HEXAHEDRON,
    LINE,
    POLYHEDRON,
    PYRAMID,
    QUAD,
    QUADRATIC,
    SIZES,
    TETRA,
    TRIANGLE,
    WEDGE,
    Polyhedra,
)
from ensemblekit.rom.measures import measures_of
from ensemblekit.source import ReplicaSet, SnapshotSource, StackedSource, described
from ensemblekit.source_views import Reweighted
from ensemblekit.store.layout import Layout
from ensemblekit.store.store import Store
from ensemblekit.store.stored import StoredSource, constants_of

Association = Literal["cell", "point"]
PREFIX = "mesh/"
"""Of a mesh's arrays among the constants of a store."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """Points and cells in VTK's cell types.

    Raises InputError where the parts do not fit each other.
    """

    points: np.ndarray
    """(n_points, 3) float64."""
    connectivity: np.ndarray
    """The points of the cells, one cell after the other, int64."""
    offsets: np.ndarray
    """(n_cells + 1,) int64: cell i has the points connectivity[offsets[i]:offsets[i + 1]]."""
    types: np.ndarray
    """(n_cells,) uint8, numbers of VTK's cell types."""
    polyhedra: Polyhedra | None = None
    association: Mapping[str, Association] = field(default_factory=dict)
    """Field -> whether its values stand for cells or for points."""
    unit: str = ""
    """Of length, e.g. "m"."""
    given_volumes: np.ndarray | None = None
    """(n_cells,): measures of the cells where a solver's own are known."""
    given_point_volumes: np.ndarray | None = None
    """(n_points,): quadrature weights of the points where a solver's own are known (spectral elements)."""

    def __post_init__(self) -> None:
        points = np.ascontiguousarray(self.points, np.float64)
        if points.ndim != 2 or points.shape[1] not in (1, 2, 3):
            raise InputError(f"points have shape (n, 3) (or (n, 2) in a plane); got {points.shape}")
        if points.shape[1] < 3:
            points = np.pad(points, ((0, 0), (0, 3 - points.shape[1])))
        connectivity = np.ascontiguousarray(self.connectivity, np.int64)
        offsets = np.ascontiguousarray(self.offsets, np.int64)
        types = np.ascontiguousarray(self.types, np.uint8)
        if offsets.shape != (len(types) + 1,) or offsets[0] != 0 or offsets[-1] != len(connectivity) or (
                np.diff(offsets) < 0).any():
            raise InputError(f"offsets of {len(types)} cells are {len(types) + 1} rising numbers from 0 to the length of the "
                             f"connectivity, {len(connectivity)}")
        if len(connectivity) and not (0 <= connectivity.min() and connectivity.max() < len(points)):
            raise InputError(f"cells name the points {connectivity.min()} to {connectivity.max()}; there are {len(points)}")
        for kind in np.unique(types):
            straight = QUADRATIC.get(int(kind), int(kind))
            if straight not in DIMENSIONS:
                raise InputError(f"cells of VTK type {kind} are not known here")
            if straight in SIZES:
                wrong = np.flatnonzero((types == kind) & (np.diff(offsets) < SIZES[straight]))
                if len(wrong):
                    raise InputError(f"cell {wrong[0]} of VTK type {kind} needs at least {SIZES[straight]} points")
        if self.polyhedra is None and (types == POLYHEDRON).any():
            raise InputError("polyhedral cells need their faces")
        if self.polyhedra is not None:
            self.polyhedra.check(len(types), len(points))
        for name, given, n in (("volumes", self.given_volumes, len(types)),
                               ("point volumes", self.given_point_volumes, len(points))):
            if given is not None and np.shape(given) != (n,):
                raise InputError(f"the {name} given are {n} numbers; got shape {np.shape(given)}")
        for name, value in (("points", points), ("connectivity", connectivity), ("offsets", offsets), ("types", types)):
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    # -- making ----------------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, points: ArrayLike, cells: ArrayLike, kind: int | None = None, **options: Any) -> Mesh:
        """From points (n, 2|3) and cells (m, k) of one kind; k = 2, 3 means lines, triangles.

        Four points a cell are a quadrilateral where all points lie in a plane z = const., else a tetrahedron; 5, 6 and
        8 are pyramids, wedges and hexahedra. `kind` (a VTK cell type) says it where that guess is wrong.
        """
        xyz, table = as_array(points, "points", dtype=np.float64, named_axes=True), as_array(cells, "cells", named_axes=True)
        if table.ndim != 2 or table.dtype.kind not in "iu":
            raise InputError(f"cells are whole numbers, one row of points a cell; got shape {table.shape}, {table.dtype}")
        if kind is None:
            flat = xyz.ndim == 2 and (xyz.shape[1] == 2 or not np.ptp(xyz[:, 2], axis=0))
            guess = {2: LINE, 3: TRIANGLE, 4: QUAD if flat else TETRA, 5: PYRAMID, 6: WEDGE, 8: HEXAHEDRON}
            if table.shape[1] not in guess:
                raise InputError(f"cells of {table.shape[1]} points: say their VTK type, kind=")
            kind = guess[table.shape[1]]
        m, k = table.shape
        return cls(xyz, table.ravel(), np.arange(m + 1) * k, np.full(m, kind, np.uint8), **options)

    @classmethod
    def structured(cls, points: ArrayLike, **options: Any) -> Mesh:
        """A grid of points (nz, ny, nx, 3), (ny, nx, 2|3) or (nx, 1|2|3): hexahedra, quadrilaterals or lines.

        The first axis of a field on it is the slowest, as in numpy; point number = (k ny + j) nx + i.
        """
        xyz = as_array(points, "points", dtype=np.float64, named_axes=True)
        shape = xyz.shape[:-1]
        if not 1 <= len(shape) <= 3:
            raise InputError(f"a grid of points has shape (nz, ny, nx, 3) or fewer axes; got {xyz.shape}")
        number = np.arange(int(np.prod(shape))).reshape(shape)
        number = number.reshape([n for n in shape if n > 1] or [1])     # a grid one point thick is flat
        options.setdefault("unit", "")
        flat = xyz.reshape(-1, xyz.shape[-1])
        if number.ndim == 1:
            cells, kind = np.stack([number[:-1], number[1:]], 1), LINE
        elif number.ndim == 2:
            a = number
            cells, kind = np.stack([a[:-1, :-1], a[:-1, 1:], a[1:, 1:], a[1:, :-1]], -1).reshape(-1, 4), QUAD
        else:
            a = number
            low = [a[:-1, :-1, :-1], a[:-1, :-1, 1:], a[:-1, 1:, 1:], a[:-1, 1:, :-1]]
            high = [a[1:, :-1, :-1], a[1:, :-1, 1:], a[1:, 1:, 1:], a[1:, 1:, :-1]]
            cells, kind = np.stack(low + high, -1).reshape(-1, 8), HEXAHEDRON
        return cls.of(flat, cells, kind, **options)

    @classmethod
    def rectilinear(cls, *axes: ArrayLike, **options: Any) -> Mesh:
        """A grid from the coordinates along its axes, x first: ``rectilinear(x, y)`` has points (ny, nx)."""
        coordinates = [as_array(axis, "an axis of the grid", dtype=np.float64) for axis in axes]
        if not 1 <= len(coordinates) <= 3 or any(axis.ndim != 1 or not len(axis) for axis in coordinates):
            raise InputError("a rectilinear grid has one to three axes, each a list of coordinates")
        grid = np.stack(np.meshgrid(*coordinates[::-1], indexing="ij")[::-1], -1)
        return cls.structured(np.pad(grid, [(0, 0)] * (grid.ndim - 1) + [(0, 3 - grid.shape[-1])]), **options)

    def with_fields(self, association: Mapping[str, Association]) -> Mesh:
        """The same mesh with other fields on it."""
        mesh = replace(self, association=dict(association))
        for name in ("volumes", "point_volumes", "digest"):
            if name in self.__dict__:
                mesh.__dict__[name] = self.__dict__[name]
        return mesh

    # -- what is there ---------------------------------------------------------------------------------------------

    @property
    def n_points(self) -> int:
        return len(self.points)

    @property
    def n_cells(self) -> int:
        return len(self.types)

    @cached_property
    def dimension(self) -> int:
        """3 where any cell is solid, 2 for surfaces and plane meshes, 1 for lines, 0 for points alone."""
        kinds = [QUADRATIC.get(int(kind), int(kind)) for kind in np.unique(self.types)]
        return max((DIMENSIONS[kind] for kind in kinds), default=0)

    @property
    def measure(self) -> str:
        """What ``volumes`` holds: "volume", "area", "length" or "count"."""
        return ("count", "length", "area", "volume")[self.dimension]

    @property
    def volumes(self) -> np.ndarray:
        """(n_cells,) float64, in ``unit`` to the power of ``dimension``: volumes, areas in 2-D, lengths in 1-D.

        Cells of a lower dimension than the mesh (the boundary triangles beside tetrahedra) have none, 0.
        """
        return self._measures[0]

    @property
    def point_volumes(self) -> np.ndarray:
        """(n_points,) float64: the median dual's volume of each point; the sum is that of ``volumes``."""
        return self._measures[1]

    @cached_property
    def _measures(self) -> tuple[np.ndarray, np.ndarray]:
        volumes, shares = measures_of(self)
        if self.given_volumes is not None:
            volumes = as_array(self.given_volumes, "volumes", dtype=np.float64)
        if self.given_point_volumes is not None:
            shares = as_array(self.given_point_volumes, "point volumes", dtype=np.float64)
        volumes.flags.writeable = shares.flags.writeable = False
        return volumes, shares

    @cached_property
    def cell_centres(self) -> np.ndarray:
        """(n_cells, 3): the mean of each cell's points."""
        sums = np.zeros((self.n_cells + 1, 3))
        np.cumsum(self.points[self.connectivity], axis=0, out=(running := np.empty((len(self.connectivity), 3))))
        sums = np.concatenate([np.zeros((1, 3)), running])[self.offsets]
        return np.diff(sums, axis=0) / np.maximum(np.diff(self.offsets), 1)[:, None]

    @cached_property
    def digest(self) -> str:
        """Of points and cells: meshes with the same digest are the same to the last bit."""
        import xxhash

        hasher = xxhash.xxh3_128()
        for values in (self.points, self.connectivity, self.offsets, self.types):
            hasher.update(values.ravel().view(np.uint8).data if values.size else b"")
        if self.polyhedra is not None:
            for name in Polyhedra.__slots__:
                hasher.update(np.ascontiguousarray(getattr(self.polyhedra, name), np.int64).tobytes())
        return hasher.hexdigest()

    def count(self, association: Association) -> int:
        return self.n_cells if association == "cell" else self.n_points

    def weights(self, association: Association) -> np.ndarray:
        """``volumes`` for cells, ``point_volumes`` for points."""
        return self.volumes if association == "cell" else self.point_volumes

    def where(self, name: str, item: tuple[int, ...]) -> Association:
        """Whether a field stands for cells or points: as recorded, else by the length of its first axis."""
        if name in self.association:
            return self.association[name]
        at_cells, at_points = leading(item, self.n_cells), leading(item, self.n_points)
        if at_cells is None and at_points is None:
            raise InputError(f"field {name!r} of shape {item} fits neither the {self.n_cells} cells nor the {self.n_points} "
                             "points of the mesh")
        return "point" if at_points is not None else "cell"

    def unlike(self, other: Mesh) -> str | None:
        """How another mesh differs, in words; None where it is the same (points to a millionth of its extent)."""
        if self is other or ("digest" in self.__dict__ and "digest" in other.__dict__ and self.digest == other.digest):
            return None
        if (self.n_points, self.n_cells) != (other.n_points, other.n_cells):
            return (f"{other.n_points} points and {other.n_cells} cells where the first has {self.n_points} points and "
                    f"{self.n_cells} cells")
        if not (np.array_equal(self.types, other.types) and np.array_equal(self.connectivity, other.connectivity)):
            return "the same number of points and cells, but other cells"
        extent = float(np.ptp(self.points, axis=0).max()) if self.n_points else 0.0
        moved = np.abs(self.points - other.points).max() if self.n_points else 0.0
        if moved > 1e-6 * extent:
            return f"the same cells, but points moved by up to {moved:.3g} (a mesh in motion?)"
        return None

    # -- to and from arrays ----------------------------------------------------------------------------------------

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays by name, as a store keeps them; ``from_arrays`` is the inverse."""
        about = {"association": dict(self.association), "unit": self.unit}
        arrays = {"points": self.points, "connectivity": self.connectivity, "offsets": self.offsets, "types": self.types,
                  "about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        if self.polyhedra is not None:
            arrays |= {name: np.asarray(getattr(self.polyhedra, name), np.int64) for name in Polyhedra.__slots__}
        if self.given_volumes is not None:
            arrays["volumes"] = self.given_volumes
        if self.given_point_volumes is not None:
            arrays["point_volumes"] = self.given_point_volumes
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Mesh:
        """Raises InputError where the arrays do not fit each other, StoreDamagedError where they are no mesh."""
        try:
            about = json.loads(np.asarray(arrays["about"]).tobytes())
            association, unit = {str(k): v for k, v in about["association"].items()}, str(about["unit"])
            missing = [name for name in ("points", "connectivity", "offsets", "types") if name not in arrays]
            if missing or not {*association.values()} <= {"cell", "point"}:
                raise ValueError(f"it lacks {missing}" if missing else f"fields stand on {association}")
        except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise StoreDamagedError(f"the mesh that goes with the fields cannot be read ({one_line(error)})") from error
        faces = Polyhedra(*(arrays[name] for name in Polyhedra.__slots__)) if "face_points" in arrays else None
        return cls(arrays["points"], arrays["connectivity"], arrays["offsets"], arrays["types"], faces, association,
                   unit, arrays.get("volumes"), arrays.get("point_volumes"))

    def __repr__(self) -> str:
        return f"<Mesh: {self.n_points} points, {self.n_cells} cells, {self.dimension}-D>"


def leading(item: tuple[int, ...], n: int) -> tuple[int, ...] | None:
    """The first axes of an item that together number n; None where there are none such."""
    product = 1
    for k, size in enumerate(item):
        product *= size
        if product == n:
            return item[:k + 1]
        if product > n:
            break
    return item if product == n else None


def mesh_of(source: SnapshotSource) -> Mesh | None:
    """The mesh that came with a source; None where there is none."""
    if isinstance(source, Store):
        return _mesh_in(source.layouts[0]) if source.layouts else None
    if isinstance(source, StoredSource):
        return _mesh_in(source.table.home) if source.table.home is not None else None
    if isinstance(source, ReplicaSet | StackedSource):
        return mesh_of(source.runs[0])
    if isinstance(source, Reweighted):
        return mesh_of(source.source)
    mesh = described(source).mesh
    return mesh if isinstance(mesh, Mesh) else None


@lru_cache(maxsize=4)
def _mesh_in(layout: Layout) -> Mesh | None:
    constants = constants_of(layout)
    arrays = {name.removeprefix(PREFIX): values for name, values in constants.items() if name.startswith(PREFIX)}
    return Mesh.from_arrays(arrays) if "points" in arrays else None


def constants_for(mesh: Mesh) -> dict[str, np.ndarray]:
    """A mesh as constants of a store: ``ek.create(path, fields, constants=constants_for(mesh))``."""
    return {PREFIX + name: values for name, values in mesh.to_arrays().items()}


def inner_product(source: SnapshotSource, field: str | None = None) -> np.ndarray | None:
    """What part of space each value of a field stands for: the weights of the inner product sum_i w_i a_i b_i.

    Arguments:
        source: any source; it has an inner product of its own where it carries a mesh.
        field: the field's name; may be left out where the source has only one.

    Returns:
        float64, shaped as the first axes of the field's item (further ones are components): cell volumes for cell
        data, dual volumes for point data, areas and lengths in 2-D and 1-D; None where the source has no mesh, or one
        of points without cells.

    Raises UnknownFieldError, or InputError where field and mesh do not fit.
    """
    fields = source.fields
    if field is None:
        if len(fields) != 1:
            raise InputError(f"name the field; the source has {sorted(fields)}")
        (field,) = fields
    if field not in fields:
        raise UnknownFieldError(field, fields)
    mesh = mesh_of(source)
    if mesh is None or mesh.dimension == 0:
        return None
    item = fields[field].shape
    where = mesh.where(field, item)
    shape = leading(item, mesh.count(where))
    if shape is None:
        raise InputError(f"field {field!r} has shape {item}; its mesh has {mesh.count(where)} {where}s")
    return mesh.weights(where).reshape(shape)


