"""Modes, reconstructions, averages and snapshots to where they are looked at: ParaView, pyvista, OpenFOAM."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.averages import Averages
from ensemblekit.errors import InputError, StoreError
from ensemblekit.files import replacing, write_text
from ensemblekit.intake import as_array
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.field_averages import FieldAverages
from ensemblekit.rom.file_source import BATCH
from ensemblekit.rom.mesh import Association, Mesh, leading, mesh_of
from ensemblekit.rom.read import as_snapshots
from ensemblekit.rom.readers.foam_mesh import count_cells, read_patches
from ensemblekit.rom.readers.foamfile import BASE_UNITS
from ensemblekit.rom.readers.openfoam import SYMMETRIC, there
from ensemblekit.source import SnapshotSource, described
from ensemblekit.store.vtkhdf import SUFFIX, file_of_steps

CONSTRAINTS = ("empty", "wedge", "symmetryPlane", "symmetry", "cyclic", "cyclicAMI", "cyclicSlip", "processor",
               "processorCyclic")
FOAM_CLASSES = {1: ("volScalarField", "scalar"), 3: ("volVectorField", "vector"), 6: ("volSymmTensorField", "symmTensor"),
                9: ("volTensorField", "tensor")}


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One array on a mesh: at rest (count[, components]), or block after block of steps (n, count[, components])."""

    where: Association
    blocks: Any
    """An array at rest, or a function that gives an iterator of blocks."""
    unit: str = ""


def export(x: Any, path: str | os.PathLike[str], *, what: Literal["modes", "reconstruction"] = "modes",
           which: int | slice = slice(None), times: ArrayLike | None = None, mesh: Mesh | None = None,
           association: Mapping[str, Association] | None = None,
           overwrite: bool = False) -> str:
    """Write fields on their mesh to a file that other programs open; the suffix decides.

    ``.vtkhdf``: one file for ParaView and pyvista, geometry once, all steps in it. ``.pvd``: one .vtu a step beside it.
    A folder named as a time inside an OpenFOAM case (``case/1000``): its fields on cells; for many steps the case itself.

    Arguments:
        x: a Basis (modes ``U_mode_0001`` ... and ``U_mean``, or its reconstruction in time), averages of fields (``U_mean``,
            ``U_mean_ci95``, ``U_mean_n_eff``), a store or any source of snapshots, a mapping of name to array, or the name of a
            file that holds snapshots.
        path: where to.
        what: of a basis, its "modes" or its "reconstruction".
        which: snapshots of the reconstruction (a slice), or coefficients (m, k) of your own.
        times: of the steps; those of the snapshots by default. With a mapping: its arrays have the steps as first axis.
        mesh: where x has none, or another.
        association: name -> "cell" or "point", where neither the mesh nor the shapes tell.
        overwrite: replace what is there.

    Returns the path.

    Raises:
        InputError: no mesh, fields that do not fit it, an unknown suffix, point data to OpenFOAM.
        StoreError: the name is taken, or cannot be written.  MissingExtraError: .pvd without pyvista.
    """
    path = os.fspath(path)
    kind = _kind(path)
    on, arrays, steps = _gathered(x, what, which, times, mesh, association)
    if not arrays:
        raise InputError("there is nothing to export: no field stands for the points or cells of the mesh")
    if os.path.lexists(path) and not overwrite and kind != "foam":
        raise StoreError(f"{path} is there already; choose another name, or overwrite=True")
    if kind == "vtkhdf":
        file_of_steps(path, _plain(on), steps, {name: (s.where, s.blocks if steps is None else s.blocks())
                                                for name, s in arrays.items()})
    elif kind == "pvd":
        _write_pvd(path, on, arrays, steps)
    else:
        _write_foam(path, on, arrays, steps, overwrite)
    return path


def _kind(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()
    if suffix == SUFFIX:
        return "vtkhdf"
    if suffix == ".pvd":
        return "pvd"
    case = os.path.dirname(os.path.abspath(path))
    if _is_case(case) or _is_case(path):
        return "foam"
    raise InputError(f"export goes by the suffix: {SUFFIX} (ParaView, pyvista), .pvd (one .vtu a step), or a time folder in an "
                     f"OpenFOAM case, such as case/1000; got {path!r}")


def _is_case(folder: str) -> bool:
    return there(os.path.join(folder, "constant", "polyMesh", "owner"))


def _plain(mesh: Mesh) -> dict[str, np.ndarray]:
    return {name: values for name, values in mesh.to_arrays().items() if name != "about"}


# -- what there is to show ---------------------------------------------------------------------------------------------

def _gathered(x: Any, what: str, which: int | slice, times: ArrayLike | None, mesh: Mesh | None,
              association: Mapping[str, Association] | None) -> tuple[Mesh, dict[str, Shown], np.ndarray | None]:
    """The mesh, the arrays, and the times of the steps (None where they are at rest)."""
    if what not in ("modes", "reconstruction"):
        raise InputError(f'what is "modes" or "reconstruction"; got {what!r}')
    if isinstance(x, Basis):
        on = _on(mesh or x.mesh, association)
        return _modes(x, on) if what == "modes" else _reconstruction(x, on, which, times)
    if isinstance(x, FieldAverages):
        return _arrays(x.arrays(), _on(mesh or x.mesh, {**x.association, **(association or {})}), None)
    if isinstance(x, Averages):
        return _arrays(x.arrays(), _on(mesh, association), None)
    if isinstance(x, Mapping):
        return _arrays(x, _on(mesh, association), times)
    source = as_snapshots(x)
    if not isinstance(source, SnapshotSource):
        raise InputError(f"export takes a Basis, averages, a source of snapshots, or a mapping of name to array; got {type(x)}")
    return _snapshots(source, _on(mesh or mesh_of(source), association), times)


def _on(mesh: Mesh | None, association: Mapping[str, Association] | None) -> Mesh:
    if not isinstance(mesh, Mesh):
        raise InputError("there is no mesh to show the fields on; pass mesh=, a rom.Mesh (rom.read(file).mesh has the one of a "
                         "file, Mesh.rectilinear(x, y) makes one)")
    return mesh.with_fields({**mesh.association, **association}) if association else mesh


def _place(name: str, item: tuple[int, ...], mesh: Mesh) -> Association:
    """Of a name or of the longest recorded name it begins with."""
    known = [known for known in mesh.association if name == known or name.startswith(f"{known}_")]
    if known:
        where = mesh.association[max(known, key=len)]
        if leading(item, mesh.count(where)) is not None:
            return where
    return mesh.where(name, item)


def _flat(values: np.ndarray, count: int, steps: bool) -> np.ndarray:
    """([n,] count[, components]) from ([n,] *item)."""
    values = np.asarray(values)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if not steps:
        flat = values.reshape(count, -1)
        return flat[:, 0] if flat.shape[1] == 1 else flat
    rows = values.reshape(len(values), count, -1)
    return rows[..., 0] if rows.shape[-1] == 1 else rows


def _real(name: str, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    if np.iscomplexobj(values):
        yield f"{name}_re", values.real
        yield f"{name}_im", values.imag
    else:
        yield name, values


def _modes(basis: Basis, mesh: Mesh) -> tuple[Mesh, dict[str, Shown], None]:
    shown: dict[str, Shown] = {}
    for part in basis.parts():
        where = _place(part.name, part.mean.shape, mesh)
        count = mesh.count(where)
        fields = {f"{part.name}_mean": part.mean}
        fields |= {f"{part.name}_mode_{k:04d}": mode for k, mode in enumerate(part.modes, 1)}
        for name, values in fields.items():
            for label, one in _real(name, values):
                shown[label] = Shown(where, _flat(one, count, False), part.unit)
    return mesh, shown, None


def _reconstruction(basis: Basis, mesh: Mesh, which: int | slice,
                    times: ArrayLike | None) -> tuple[Mesh, dict[str, Shown], np.ndarray]:
    if isinstance(which, int | np.integer):
        which = slice(which, which + 1 or None)
    coefficients = which if isinstance(which, np.ndarray) else basis.coefficients[which]
    coefficients = np.atleast_2d(coefficients)
    if coefficients.shape[1] != basis.rank:
        raise InputError(f"coefficients have shape (m, {basis.rank}) here; got {coefficients.shape}")
    if np.iscomplexobj(basis.modes):
        raise InputError("a complex reconstruction has no picture; export its real part as a mapping of name to array")
    own = basis.times[which] if basis.times is not None and not isinstance(which, np.ndarray) else None
    steps = _steps(times if times is not None else own, len(coefficients))
    shown = {}
    for part in basis.parts():
        where = _place(part.name, part.mean.shape, mesh)
        count = mesh.count(where)

        def blocks(part: Any = part, count: int = count) -> Iterator[np.ndarray]:
            a_batch = max(1, BATCH // max(1, 8 * part.mean.size))
            for at in range(0, len(coefficients), a_batch):
                yield _flat(part.reconstruct(coefficients[at:at + a_batch]), count, True)

        shown[part.name] = Shown(where, blocks, part.unit)
    return mesh, shown, steps


def _arrays(arrays: Mapping[str, Any], mesh: Mesh, times: ArrayLike | None) -> tuple[Mesh, dict[str, Shown], np.ndarray | None]:
    shown: dict[str, Shown] = {}
    n = None
    for name, values in arrays.items():
        values = np.asarray(values)
        if values.dtype.kind not in "biufc":
            raise InputError(f"{name!r} is no array of numbers: {values.dtype}")
        if times is not None:
            if values.ndim == 0 or (n is not None and len(values) != n):
                raise InputError(f"with times= every array has the steps as first axis; {name!r} has shape {values.shape}")
            n = len(values)
        item = values.shape if times is None else values.shape[1:]
        where = _place(name, item, mesh)
        count = mesh.count(where)
        for label, one in _real(re.sub(r"[/.\0]", "_", name), values):
            flat = _flat(one, count, times is not None)
            shown[label] = Shown(where, flat if times is None else (lambda flat=flat: iter([flat])))
    return mesh, shown, None if times is None else _steps(times, n or 0)


def _snapshots(source: SnapshotSource, mesh: Mesh, times: ArrayLike | None) -> tuple[Mesh, dict[str, Shown], np.ndarray]:
    if source.lengths is None or len(source.lengths) > 1:
        raise InputError("export takes one run of known length; export independent runs one by one")
    (n,) = source.lengths
    steps = _steps(times if times is not None else described(source).times, n)
    shown = {}
    for name, field in source.fields.items():
        if leading(field.shape, mesh.n_cells) is None and leading(field.shape, mesh.n_points) is None:
            continue        # a force or a residual beside the fields
        where = _place(name, field.shape, mesh)
        count = mesh.count(where)

        def blocks(name: str = name, count: int = count) -> Iterator[np.ndarray]:
            for piece in source.pieces([name], "time", False, BATCH):
                for block in piece.blocks():
                    yield _flat(block.only, count, True)

        shown[re.sub(r"[/.\0]", "_", name)] = Shown(where, blocks, field.unit)
    return mesh, shown, steps


def _steps(times: ArrayLike | None, n: int) -> np.ndarray:
    if times is None:
        return np.arange(n, dtype=np.float64)
    steps = as_array(times, "times", kinds="biuf", dtype=np.float64)
    if steps.shape != (n,) or not np.isfinite(steps).all():
        raise InputError(f"times are {n} finite numbers; got shape {steps.shape}")
    return steps


# -- .pvd --------------------------------------------------------------------------------------------------------------

def _write_pvd(path: str, mesh: Mesh, arrays: Mapping[str, Shown], times: np.ndarray | None) -> None:
    from ensemblekit.rom.readers.vtk_mesh import vtk_of_mesh

    grid = vtk_of_mesh(mesh)
    stem = os.path.splitext(path)[0]
    entries = []
    for k, values in enumerate(_step_by_step(arrays, times)):
        for name, one in values.items():
            data = grid.cell_data if arrays[name].where == "cell" else grid.point_data
            data[name] = np.pad(one, ((0, 0), (0, 1))) if one.ndim == 2 and one.shape[1] == 2 else one
        file = f"{stem}_{k:06d}.vtu" if times is not None else f"{stem}.vtu"
        with replacing(file, suffix=".vtu", follow=True) as temporary:
            grid.save(temporary)
        entries.append(f'    <DataSet timestep="{float(times[k]) if times is not None else 0.0!r}" group="" part="0" '
                       f'file="{os.path.basename(file)}"/>')
    write_text(path, '<?xml version="1.0"?>\n<VTKFile type="Collection" version="0.1" byte_order="LittleEndian">\n'
                     "  <Collection>\n" + "\n".join(entries) + "\n  </Collection>\n</VTKFile>\n")


def _step_by_step(arrays: Mapping[str, Shown], times: np.ndarray | None) -> Iterator[dict[str, np.ndarray]]:
    """One mapping of name to (count[, components]) a step."""
    if times is None:
        yield {name: shown.blocks for name, shown in arrays.items()}
        return
    streams = {name: (row for block in shown.blocks() for row in block) for name, shown in arrays.items()}
    for _ in range(len(times)):
        yield {name: next(stream) for name, stream in streams.items()}


# -- OpenFOAM ----------------------------------------------------------------------------------------------------------

def _write_foam(path: str, mesh: Mesh, arrays: Mapping[str, Shown], times: np.ndarray | None, overwrite: bool) -> None:
    name = os.path.basename(os.path.abspath(path))
    here = _is_case(path)
    case = path if here else os.path.dirname(os.path.abspath(path))
    if not here and _number(name) is None:
        raise InputError(f"a time folder of OpenFOAM is called as its time, such as {case}/1000; got {name!r}")
    if here and times is None:
        raise InputError(f"name a time folder in the case for fields at rest, such as {os.path.join(path, '1000')!r}")
    if not here and times is not None and len(times) > 1:
        raise InputError(f"{len(times)} steps make {len(times)} time folders; give the case itself, {case!r}")
    poly = os.path.join(case, "constant", "polyMesh")
    cells = count_cells(poly)
    for label, shown in arrays.items():
        if shown.where != "cell" or mesh.n_cells != cells:
            raise InputError(f"{label!r} stands for the {mesh.count(shown.where)} {shown.where}s of its mesh; {case} has "
                             f"{cells} cells, and OpenFOAM's fields live on cells")
    patches = read_patches(poly)
    folders = [path if not here else os.path.join(case, f"{t:.10g}") for t in (times if times is not None else [0.0])]
    if not overwrite:
        for folder in folders:
            for label in arrays:
                if there(os.path.join(folder, label)):
                    raise StoreError(f"{os.path.join(folder, label)} is there already; choose another time, or overwrite=True")
    for folder, values in zip(folders, _step_by_step(arrays, times), strict=True):
        os.makedirs(folder, exist_ok=True)
        for label, one in values.items():
            _write_foam_field(os.path.join(folder, label), one, arrays[label].unit, patches)


def _write_foam_field(path: str, values: np.ndarray, unit: str, patches: Any) -> None:
    """One binary volField; patches that the mesh constrains keep their kind, the others copy the cell behind them."""
    values = np.asarray(values, "<f8")
    components = 1 if values.ndim == 1 else values.shape[1]
    if components == 2:
        values, components = np.concatenate([values, np.zeros((len(values), 1))], 1), 3
    if components not in FOAM_CLASSES:
        raise InputError(f"{os.path.basename(path)!r} has {components} components; OpenFOAM knows 1, 3, 6 and 9")
    if components == 6:
        values = values[:, SYMMETRIC]
    kind, item = FOAM_CLASSES[components]
    head = (f"FoamFile\n{{\n    version     2.0;\n    format      binary;\n    arch        \"LSB;label=32;scalar=64\";\n"
            f"    class       {kind};\n    location    \"{os.path.basename(os.path.dirname(path))}\";\n"
            f"    object      {os.path.basename(path)};\n}}\n\ndimensions      [{dimensions_of(unit)}];\n\n"
            f"internalField   nonuniform List<{item}> \n{len(values)}\n(")
    zero = "0" if components == 1 else "(" + " ".join(["0"] * components) + ")"
    tail = ")\n;\n\nboundaryField\n{\n" + "".join(
        f"    {p.name}\n    {{\n        type            {p.kind if p.kind in CONSTRAINTS else 'zeroGradient'};\n"
        + (f"        value           uniform {zero};\n" if p.kind.startswith("processor") else "") + "    }\n"
        for p in patches) + "}\n"
    with replacing(path, follow=True) as temporary, open(temporary, "wb") as file:
        file.write(head.encode())
        file.write(np.ascontiguousarray(values).tobytes())
        file.write(tail.encode())


def dimensions_of(unit: str) -> str:
    """"m s-1" as OpenFOAM's seven exponents, "0 1 -1 0 0 0 0"; all 0 where the unit has other parts."""
    powers = dict.fromkeys(BASE_UNITS, "0")
    for word in unit.split():
        match = re.fullmatch(r"([A-Za-z]+?)([-+]?\d+(?:\.\d+)?)?", word)
        if match is None or match.group(1) not in powers:
            return "0 0 0 0 0 0 0"
        powers[match.group(1)] = (match.group(2) or "1").lstrip("+")
    return " ".join(powers.values())


def _number(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None

