"""OpenFOAM cases: cell data as the solver wrote it, decomposed or not, with the exact volumes of its cells."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ensemblekit.errors import InputError, SnapshotFileError
from ensemblekit.rom.mesh import Association, Mesh
from ensemblekit.rom.readers.foam_mesh import (
    cells_of,
    count_cells,
    joined,
    patch_mesh,
    read_patches,
    read_poly_mesh,
    taken,
    zone_cells,
)
from ensemblekit.rom.readers.foamfile import COMPONENTS, HEAD, VOLUME_FIELD, FoamFile, count_blocks, load, on_disk, there
from ensemblekit.rom.readers.reader import MissingFieldError, Options, bookkeeping, lean, places_of
from ensemblekit.source import Field

CONSTRAINTS = ("empty", "processor", "cyclic", "cyclicAMI", "processorCyclic")
SYMMETRIC = np.array([0, 3, 5, 1, 4, 2])
"""xx xy xz yy yz zz of OpenFOAM to xx yy zz xy yz xz of VTK, as here everywhere; and back."""


@dataclass(frozen=True, eq=False)
class FoamCase:
    """The cell fields of a case (or of one region, cell zone or boundary patch of it), one snapshot a time folder."""

    path: str
    folders: tuple[str, ...]
    """Where time folders stand: the case itself, or its processors."""
    names: tuple[str, ...]
    labels: tuple[str, ...]
    """Names of the time folders, in time order."""
    fields: Mapping[str, Field]
    region: str | None
    patch: str | None
    zone: str | None
    order: np.ndarray | None = field(default=None, repr=False)
    """Decomposed cases: case cell -> its place among the processors' cells, one after the other."""
    time_unit: str = "s"
    tiles: bool = False
    __getstate__ = lean

    @property
    def n(self) -> int:
        return len(self.labels)

    @property
    def times(self) -> np.ndarray:
        return np.array([float(label) for label in self.labels])

    def poly_mesh(self, folder: str) -> str:
        return os.path.join(folder, "constant", self.region or "", "polyMesh")

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        """Cells of each folder's mesh (faces, where a patch is read)."""
        if self.patch is not None:
            return tuple(sum(p.size for p in read_patches(self.poly_mesh(f)) if p.name == self.patch) for f in self.folders)
        return tuple(count_cells(self.poly_mesh(folder)) for folder in self.folders)

    @cached_property
    def _zone(self) -> np.ndarray | None:
        if self.zone is None:
            return None
        shift, cells = 0, []
        for folder, n in zip(self.folders, self._counts, strict=True):
            cells.append(zone_cells(self.poly_mesh(folder), self.zone) + shift)
            shift += n
        return np.concatenate(cells)

    @cached_property
    def _mesh(self) -> Mesh:
        on: dict[str, Association] = dict.fromkeys(self.fields, "cell")
        if self.patch is not None:
            return joined([patch_mesh(read_poly_mesh(self.poly_mesh(f)), self.patch) for f in self.folders]).with_fields(on)
        whole = self.poly_mesh(self.path)
        if self.order is not None and there(os.path.join(whole, "owner")):
            mesh = cells_of(read_poly_mesh(whole))
        else:
            mesh = joined([cells_of(read_poly_mesh(self.poly_mesh(folder))) for folder in self.folders])
            if self.order is not None:
                mesh = taken(mesh, self.order)
        if self._zone is not None:
            mesh = taken(mesh, self._zone)
        return mesh.with_fields(on)

    def mesh(self) -> Mesh:
        return self._mesh

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        arrays = {name: np.empty((len(rows), *self.fields[name].shape), self.fields[name].dtype) for name in names}
        for k, row in enumerate(rows):
            for name in names:
                parts = [self._values(os.path.join(folder, self.labels[row], self.region or "", name), name, n, folder)
                         for folder, n in zip(self.folders, self._counts, strict=True)]
                values = parts[0] if len(parts) == 1 else np.concatenate(parts)
                if values.shape[1:] == (6,):
                    values = values[:, SYMMETRIC]
                if self.order is not None and self.patch is None:
                    values = values[self.order]
                arrays[name][k] = values if self._zone is None else values[self._zone]
        return arrays

    def _values(self, path: str, name: str, n: int, folder: str) -> np.ndarray:
        if not there(path):
            raise MissingFieldError(name, volume_fields(os.path.dirname(path)), os.path.dirname(path))
        file = load(path)
        components = components_of(file)
        item = self.fields[name].shape[1:]
        if item != (() if components == 1 else (components,)):
            raise file.wrong(f"is a {file.kind}; in the first snapshot {name!r} has items of shape {item}")
        if self.patch is not None:
            return self._patch_values(file, components, n, folder)
        at = file.entry("internalField") or file.entry("value")
        if at is None:
            raise file.wrong("has no internalField: it is cut short")
        return file.values(at, components, n)

    def _patch_values(self, file: FoamFile, components: int, n: int, folder: str) -> np.ndarray:
        """What the file says of the patch; the values of the cells behind it where the condition is a plain copy of them."""
        assert self.patch is not None
        shape = (n,) if components == 1 else (n, components)
        begin = file.entry("boundaryField")
        if begin is None:
            raise file.wrong("has no boundaryField: it is cut short")
        first, last = file.block(begin)
        for key in (self.patch, f'"{self.patch}"', '".*"'):
            at = file.entry(re.escape(key), first - 1, last)
            if at is None:
                continue
            start, stop = file.block(at - 1)
            value = file.entry("value", start - 1, stop)
            if value is not None:
                return file.values(value, components, n)
            kind = file.entry("type", start - 1, stop)
            word = file.data[kind:file.data.find(b";", kind)].decode().strip() if kind is not None else ""
            if word == "noSlip":
                return np.zeros(shape)
            if word in ("zeroGradient", "symmetry", "symmetryPlane", "slip", "wedge", "calculated"):
                inside = file.values(file.entry("internalField") or 0, components, count_cells(self.poly_mesh(folder)))
                poly = read_poly_mesh(self.poly_mesh(folder))
                patch = next(p for p in poly.patches if p.name == self.patch)
                return inside[poly.owner[patch.start:patch.start + patch.size]]
            raise file.wrong(f"holds no values on patch {self.patch!r}, whose condition is {word!r}")
        if n == 0:
            return np.zeros(shape)
        raise file.wrong(f"says nothing of patch {self.patch!r}")


def components_of(file: FoamFile) -> int:
    match = VOLUME_FIELD.match(file.kind)
    if match is None:
        raise file.wrong(f"is a {file.kind or 'file without class'}, no field on cells")
    word = match.group(1)
    return COMPONENTS[word[0].lower() + word[1:]]


def open_foam(path: str, options: Options) -> FoamCase:
    """A case folder, or a file in it (.foam, .OpenFOAM, system/controlDict).

    A decomposed case is read from its processors where they hold more times than the case itself, never from both, and
    in the order of the whole case's cells where decomposePar left cellProcAddressing.
    """
    case = path if os.path.isdir(path) else os.path.dirname(path) or "."
    if os.path.basename(path) == "controlDict":
        case = os.path.dirname(case)
    here = time_folders(case)
    folders: tuple[str, ...] = (case,)
    inside = [label for label in here if _has_region(case, label, options.region)]
    for parts in _decomposed(case):
        everywhere = set.intersection(*[set(time_folders(part)) for part in parts])      # a run that was stopped while writing
        labels = [label for label in time_folders(parts[0]) if label in everywhere and _has_region(parts[0], label,
                                                                                                   options.region)]
        if len([t for t in labels if float(t) or options.zero]) > len([t for t in inside if float(t) or options.zero]):
            folders, inside = parts, labels
    labels = [label for label in inside if options.zero or float(label) != 0]
    if not labels:
        hint = "; only 0/ is there: pass zero=True to read it" if inside else ""
        raise SnapshotFileError(case, f"has no time folders{f' of region {options.region!r}' if options.region else ''}{hint}")
    for folder in folders:
        for label in labels:
            own = os.path.join(folder, label, options.region or "", "polyMesh")
            if there(os.path.join(own, "owner")):
                raise SnapshotFileError(os.path.join(folder, label), "has cells of its own: the mesh changes, so that "
                                        "snapshots are no vectors of one space. Map the fields to one mesh, with mapFields")
            if there(os.path.join(own, "points")) and not options.moving:
                raise SnapshotFileError(os.path.join(folder, label), "has points of its own: a mesh in motion. Pass "
                                        "moving=True (--moving) to take the fields cell by cell, with the places and volumes "
                                        "that cells have in constant/polyMesh; or map the fields to one mesh, with mapFields")
    mesh_folder = os.path.join(folders[0], "constant", options.region or "", "polyMesh")
    if not there(os.path.join(mesh_folder, "owner")):
        regions = [name for name in _listed(os.path.join(folders[0], "constant"))
                   if _is_folder(os.path.join(folders[0], "constant", name, "polyMesh"))]
        raise SnapshotFileError(mesh_folder, "is missing" + (f"; the regions are {', '.join(sorted(regions))}: name the one to "
                                                             "read with region=" if regions else ""))
    labels, names = _with_fields(folders[0], labels, options)
    first = _inside(folders[0], labels[0], options.region)
    if options.patch is not None:
        patches = read_patches(mesh_folder)
        if options.patch not in [p.name for p in patches] and folders == (case,):
            raise InputError(f"{mesh_folder} has no patch {options.patch!r}; the patches are "
                             f"{', '.join(p.name for p in patches) or 'none'}")
    order = _cell_order(folders, options.region) if folders != (case,) else None
    reader = FoamCase(case, folders, tuple(names), tuple(labels), {}, options.region, options.patch, options.zone, order)
    count = sum(reader._counts) if reader._zone is None else len(reader._zone)
    if options.patch is not None and count == 0:
        every = dict.fromkeys(p.name for f in folders for p in read_patches(reader.poly_mesh(f)) if p.kind not in CONSTRAINTS)
        raise InputError(f"patch {options.patch!r} has no faces; the patches are {', '.join(every) or 'none'}")
    fields = {}
    for name in names:
        file = load(os.path.join(first, name), HEAD)
        components = components_of(file)
        dtype = file.scalar.newbyteorder("=") if file.binary else np.dtype("f8")
        fields[name] = Field((count,) if components == 1 else (count, components), dtype, file.dimensions())
    return FoamCase(case, folders, tuple(names), tuple(labels), fields, options.region, options.patch, options.zone, order)


def _decomposed(case: str) -> list[tuple[str, ...]]:
    """The folders of the processors: "processor0", "processor1", ...; or the blocks of "processors4", of "processors4_0-1" and
    "processors4_2-3", or of "processors" (the collated format)."""
    folders = []
    names = os.listdir(case)
    single = [name for name in names if re.fullmatch(r"processor\d+", name)]
    if single:
        folders.append(tuple(os.path.join(case, name)
                             for name in sorted(single, key=lambda n: int(n.removeprefix("processor")))))
    collated: dict[int, list[tuple[int, int, str]]] = {}
    for name in names:
        match = re.fullmatch(r"processors(\d+)(?:_(\d+)-(\d+))?", name)
        if match:
            n = int(match.group(1))
            first, last = (0, n - 1) if match.group(2) is None else (int(match.group(2)), int(match.group(3)))
            collated.setdefault(n, []).append((first, last, name))
    for n, groups in sorted(collated.items()):
        parts = [os.path.join(case, f"{name}#{k}") for first, last, name in sorted(groups) for k in range(last - first + 1)]
        if len(parts) != n:
            raise SnapshotFileError(case, f"is decomposed for {n} processors, and {', '.join(g[2] for g in sorted(groups))} "
                                          f"hold {len(parts)}")
        folders.append(tuple(parts))
    if "processors" in names:       # as OpenFOAM 5 called it: how many there are its files say
        whole = os.path.join(case, "processors")
        owners = sorted(glob.glob(os.path.join(glob.escape(whole), "constant", "**", "polyMesh", "owner"), recursive=True))
        folders.append(tuple(f"{whole}#{k}" for k in range(count_blocks(owners[0]) if owners else 0)))
    return [parts for parts in folders if parts]


def _with_fields(case: str, labels: list[str], options: Options) -> tuple[list[str], list[str]]:
    """The time folders and fields to read.

    Fields that are asked for may begin to be written late and end early; a folder in between that lacks one is an error.
    By default: the fields that every folder of the run has. A folder with none of what most have (of modes that were
    exported, say) is none of the run.
    """
    places = {label: _inside(case, label, options.region) for label in labels}
    if options.fields is not None:
        names = list(options.fields)
        some = [label for label in labels if any(there(os.path.join(places[label], name)) for name in names)]
        if not some:
            raise MissingFieldError(names[0], volume_fields(places[labels[0]]), places[labels[0]])
        labels = labels[labels.index(some[0]):labels.index(some[-1]) + 1]
        for label in labels:
            for name in names:
                if not there(os.path.join(places[label], name)):
                    raise MissingFieldError(name, volume_fields(places[label]), places[label])
        return labels, names
    files = {label: {name.removesuffix(".gz") for name in _listed(places[label])} for label in labels}
    common = [name for name in set().union(*files.values()) if 2 * sum(name in files[label] for label in labels) > len(labels)]
    typical = next((label for label in labels if set(common) <= files[label]), labels[0])
    most = [name for name in volume_fields(places[typical]) if name in common]
    labels = [label for label in labels if files[label] & set(most)]
    names = [name for name in most if all(name in files[label] for label in labels)]
    names = [name for name in names if not bookkeeping(name, np.dtype(float))] or names
    if not names:
        raise SnapshotFileError(case, "has no field on cells that every time folder has")
    return labels, names


def _cell_order(folders: Sequence[str], region: str | None) -> np.ndarray | None:
    """Case cell -> place among the processors' cells; None where the decomposition was not recorded."""
    numbers = []
    for folder in folders:
        path = os.path.join(folder, "constant", region or "", "polyMesh", "cellProcAddressing")
        if not there(path):
            return None
        numbers.append(load(path).labels())
    return places_of(np.concatenate(numbers), path, "cell")


def _inside(case: str, label: str, region: str | None) -> str:
    """The folder of a time's fields."""
    return os.path.join(case, label, region) if region else os.path.join(case, label)


def _has_region(case: str, label: str, region: str | None) -> bool:
    return region is None or _is_folder(os.path.join(case, label, region))


def _is_folder(path: str) -> bool:
    return os.path.isdir(on_disk(path)[0])


def time_folders(case: str) -> list[str]:
    """Names of the time folders, in time order."""
    labels = []
    for name in _listed(case):
        try:
            value = float(name)
        except ValueError:
            continue
        if np.isfinite(value) and _is_folder(os.path.join(case, name)):
            labels.append(name)
    return sorted(labels, key=float)


def volume_fields(folder: str) -> list[str]:
    """The fields on cells that a time folder holds."""
    names = []
    for name in sorted(_listed(folder)):
        plain = os.path.join(folder, name).removesuffix(".gz")
        if there(plain):
            try:
                if VOLUME_FIELD.match(load(plain, HEAD).kind):
                    names.append(os.path.basename(plain))
            except SnapshotFileError:
                continue
    return list(dict.fromkeys(names))


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(on_disk(folder)[0])
    except OSError as error:
        raise SnapshotFileError(folder, f"cannot be read ({error.strerror})") from error
