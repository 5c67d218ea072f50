"""Grids from coordinates: the mesh of labelled snapshots, and what part of space each of their numbers stands for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ensemblekit.intake_labels import Coordinate, Labels, is_latitude, is_longitude
from ensemblekit.rom.mesh import Association, Mesh

LENGTHS = ("m", "km", "cm", "mm", "metre", "meter", "meters", "metres", "kilometers", "kilometres")


@lru_cache(maxsize=4)
def grid_of(labels: Labels, names: tuple[str, ...]) -> Mesh | None:
    """The mesh of coordinates along the axes of the fields: latitude by longitude on the unit sphere, or x, y, z in a unit of
    length; None where there are none, or the fields have different axes."""
    dims = {labels.dims.get(name, ()) for name in names}
    if len(dims) != 1:
        return None
    (axes,) = dims
    if not 1 <= len(axes) <= 3:
        return None
    lines = [labels.coords.get(axis) for axis in axes]
    if any(line is None or line.dims != (axis,) or line.values.dtype.kind not in "iuf"
           for line, axis in zip(lines, axes, strict=True)):
        return None
    along = [np.asarray(line.values, np.float64) for line in lines if line is not None]
    if any(len(x) < 2 or not ((np.diff(x) > 0).all() or (np.diff(x) < 0).all()) for x in along):
        return None
    known = [line for line in lines if line is not None]
    point: dict[str, Association] = dict.fromkeys(names, "point")
    if len(axes) == 2 and is_latitude(axes[0], known[0]) and is_longitude(axes[1], known[1]):
        return _sphere(along[0], along[1], cosines(known[0])).with_fields(point)
    if all(_is_length(axis, line) for axis, line in zip(axes, known, strict=True)):
        return Mesh.rectilinear(*along[::-1]).with_fields(point)
    return None


def _is_length(axis: str, one: Coordinate) -> bool:
    unit = one.unit.lower()
    return unit in LENGTHS or (axis in ("x", "y", "z") and unit in ("", "1"))


def cosines(latitude: Coordinate) -> np.ndarray:
    """Cosines of latitudes, in degrees unless they say radian; never below 0."""
    values = np.asarray(latitude.values, np.float64)
    return np.maximum(np.cos(values if latitude.unit.lower().startswith("rad") else np.deg2rad(values)), 0.0)


def _sphere(lat: np.ndarray, lon: np.ndarray, weights: np.ndarray) -> Mesh:
    """Points on the unit sphere; each weighs as the cosine of its latitude."""
    phi, theta = np.deg2rad(lat), np.deg2rad(lon)
    grid = np.stack([np.cos(phi)[:, None] * np.cos(theta), np.cos(phi)[:, None] * np.sin(theta),
                     np.sin(phi)[:, None] * np.ones_like(theta)], -1)
    return Mesh.structured(grid, given_point_volumes=np.repeat(weights, len(lon)))


def areas_of(labels: Labels, name: str, shape: Sequence[int]) -> tuple[np.ndarray, str] | None:
    """The area that each number of a field's snapshots stands for, and where it comes from, in words; None where nothing says.

    Areas of cells that came with the field (CF's cell_measures, or a variable called cell_area, TAREA and so on), else the
    cosine of the latitude: along an axis (of a rotated pole too), or of every point of a curvilinear grid.

    Returns:
        float64 of the item's shape.
    """
    dims = labels.dims.get(name, ())
    if len(dims) != len(shape):
        return None
    area = labels.areas.get(name)
    if area is not None:
        cells = labels.coords[area]
        return _over(cells, np.asarray(cells.values, np.float64), dims, shape), f"{area} of each cell"
    along = labels.along(dims)
    for several in (False, True):
        for key, one in along.items():
            if (len(one.dims) > 1) != several or not is_latitude(key, one):
                continue
            if several and any(axis in along and along[axis].unit.lower() in LENGTHS for axis in one.dims):
                continue        # a projection in metres: its cells are of one size, or say their area
            return _over(one, cosines(one), dims, shape), f"cosine of the latitude {key!r}"
    return None


def _over(one: Coordinate, values: np.ndarray, dims: Sequence[str], shape: Sequence[int]) -> np.ndarray:
    """Numbers along some axes of an item, one for each number of it."""
    axes = [axis for axis in dims if axis in one.dims]
    transposed = np.transpose(values, [one.dims.index(axis) for axis in axes])
    wide = transposed.reshape([n if axis in axes else 1 for axis, n in zip(dims, shape, strict=True)])
    return np.ascontiguousarray(np.broadcast_to(wide, tuple(shape)))
