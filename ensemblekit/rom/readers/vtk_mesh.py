"""Meshes from VTK's data sets, and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemblekit.errors import MissingExtraError
from ensemblekit.rom.cells import Polyhedra
from ensemblekit.rom.mesh import Mesh


def mesh_of_vtk(data: Any) -> Mesh:
    """Points and cells of any VTK data set."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    grid = data if data.IsA("vtkUnstructuredGrid") else data.cast_to_unstructured_grid()
    points = np.asarray(grid.points, np.float64) if grid.n_points else np.zeros((0, 3))
    if not grid.n_cells:
        return Mesh(points, np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.uint8))
    cells = grid.GetCells()
    polyhedra = None
    types = np.array(grid.celltypes, np.uint8)
    if (types == 42).any():
        faces, of_cells = grid.GetPolyhedronFaces(), grid.GetPolyhedronFaceLocations()
        polyhedra = Polyhedra(*(np.array(vtk_to_numpy(a), np.int64) for a in (
            faces.GetOffsetsArray(), faces.GetConnectivityArray(), of_cells.GetOffsetsArray(),
            of_cells.GetConnectivityArray())))
    return Mesh(points, np.array(vtk_to_numpy(cells.GetConnectivityArray()), np.int64),
                np.array(vtk_to_numpy(cells.GetOffsetsArray()), np.int64), types, polyhedra)


def vtk_of_mesh(mesh: Mesh) -> Any:
    """A pyvista UnstructuredGrid of a mesh."""
    import vtk
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

    pv = pyvista()

    def array_of(offsets: np.ndarray, connectivity: np.ndarray) -> Any:
        cells = vtk.vtkCellArray()
        cells.SetData(numpy_to_vtkIdTypeArray(np.ascontiguousarray(offsets, np.int64), deep=True),
                      numpy_to_vtkIdTypeArray(np.ascontiguousarray(connectivity, np.int64), deep=True))
        return cells

    grid = vtk.vtkUnstructuredGrid()
    points = vtk.vtkPoints()
    points.SetData(numpy_to_vtk(mesh.points, deep=True))
    grid.SetPoints(points)
    types = numpy_to_vtk(mesh.types, deep=True, array_type=vtk.VTK_UNSIGNED_CHAR)
    cells = array_of(mesh.offsets, mesh.connectivity)
    if mesh.polyhedra is not None:
        p = mesh.polyhedra
        grid.SetPolyhedralCells(types, cells, array_of(p.cell_offsets, p.cell_faces), array_of(p.face_offsets, p.face_points))
    else:
        grid.SetCells(types, cells)
    return pv.wrap(grid)


def pyvista() -> Any:
    try:
        import pyvista
    except ImportError as error:
        raise MissingExtraError("pyvista", "cfd") from error
    return pyvista
