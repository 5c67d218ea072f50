"""Nek5000 and NekRS field files, name0.f00001, ...: spectral elements, either byte order, single or double precision."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ensemblekit.errors import SnapshotFileError
from ensemblekit.rom.cells import HEXAHEDRON, QUAD
from ensemblekit.rom.mesh import Mesh
from ensemblekit.rom.readers.reader import Options, check_readable, chosen, lean, places_of
from ensemblekit.source import Field

HEADER = 132
TAG = 6.54321
HIGHEST_ORDER = 256
NUMBERS = re.compile(r"%0?\d?\d?d")
"""Where a .nek5000 description has a number in the names of its files."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a field file, and the byte order that follows from its tag."""

    word: int
    order: tuple[int, int, int]
    elements: int
    time: float
    step: int
    contents: str
    big: bool

    @property
    def dimension(self) -> int:
        return 3 if self.order[2] > 1 else 2

    @property
    def per_element(self) -> int:
        return math.prod(self.order)

    @property
    def blocks(self) -> dict[str, int]:
        """What follows the element map, in order: name -> components. "X" is coordinates."""
        components: dict[str, int] = {}
        for letter in re.findall(r"[XUPT]|S\d{2}", self.contents):
            if letter in "XU":
                components[letter] = self.dimension
            elif letter in "PT":
                components[letter] = 1
            else:
                components |= {f"S{k:02d}": 1 for k in range(1, int(letter[1:]) + 1)}
        return components


def read_header(path: str) -> Header:
    check_readable(path)
    try:
        with open(path, "rb") as file:
            head, tag = file.read(HEADER), file.read(4)
    except OSError as error:
        raise SnapshotFileError(path, f"cannot be read ({error.strerror})") from error
    words = head.decode("ascii", "replace").split()
    try:
        if words[0] != "#std":
            raise ValueError("its first word is not #std")
        word, nx, ny, nz, elements, everywhere = (int(x) for x in words[1:7])
        time, step = float(words[7]), int(words[8])
        pieces, contents = int(words[10]), words[11]
        if min(nx, ny, nz, elements) < 1 or max(nx, ny, nz) > HIGHEST_ORDER or word not in (4, 8):
            raise ValueError(f"it says {elements} elements of {nx} x {ny} x {nz} points, {word} bytes a number")
        little = abs(np.frombuffer(tag, "<f4")[0] - TAG) < 1e-4
        big = abs(np.frombuffer(tag, ">f4")[0] - TAG) < 1e-4
        if not (little or big):
            raise ValueError("its byte order cannot be told")
    except (ValueError, IndexError) as error:
        raise SnapshotFileError(path, f"is no Nek5000 field file, or is cut short ({error})") from error
    if pieces > 1 or elements != everywhere:
        raise SnapshotFileError(path, f"holds {elements} of {everywhere} elements, as the run wrote {pieces} files a step; "
                                      "gather them into one file a step first")
    header = Header(word, (nx, ny, nz), elements, time, step, contents, big)
    need = HEADER + 4 + 4 * elements + word * elements * header.per_element * sum(header.blocks.values())
    size = os.path.getsize(path)
    if size < need:
        raise SnapshotFileError(path, f"is cut short: {size} bytes where its header says {need}")
    return header


@dataclass(frozen=True, eq=False)
class NekFiles:
    """A series of field files, one snapshot each; coordinates from the first file that has them."""

    paths: tuple[str, ...]
    headers: tuple[Header, ...]
    names: tuple[str, ...]
    geometry: str | None
    """The file with the coordinates."""
    time_unit: str = ""
    tiles: bool = False
    __getstate__ = lean

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def n(self) -> int:
        return len(self.paths)

    @property
    def times(self) -> np.ndarray:
        return np.array([h.time for h in self.headers])

    @property
    def fields(self) -> Mapping[str, Field]:
        first = self.headers[0]
        points = first.elements * first.per_element
        return {name: Field((points, first.dimension) if name == "U" else (points,), np.dtype(f"f{first.word}"))
                for name in self.names}

    @cached_property
    def _mesh(self) -> Mesh | None:
        if self.geometry is None:
            return None
        coordinates = blocks_of(self.geometry, ["X"])["X"]
        return spectral_mesh(coordinates, read_header(self.geometry).order, dict.fromkeys(self.fields, "point"))

    def mesh(self) -> Mesh | None:
        return self._mesh

    def read(self, names: Sequence[str], rows: range, tile: slice | None = None) -> dict[str, np.ndarray]:
        parts = [blocks_of(self.paths[k], names) for k in rows]
        return {name: np.stack([part[name] for part in parts]) for name in names}


def blocks_of(path: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """(points,) or (points, dimension) of each block, elements in their global order whatever their order in the file."""
    header = read_header(path)
    order = ">" if header.big else "<"
    size, blocks = header.per_element, {}
    with open(path, "rb") as file:
        file.seek(HEADER + 4)
        numbers = np.frombuffer(file.read(4 * header.elements), f"{order}i4")
        order_of = places_of(numbers, path, "element", 1)
        start = file.tell()
        for block, components in header.blocks.items():
            count = header.elements * size * components
            if block in names:
                file.seek(start)
                values = np.fromfile(file, f"{order}f{header.word}", count)
                if len(values) < count:
                    raise SnapshotFileError(path, "is cut short")
                values = values.astype(f"f{header.word}").reshape(header.elements, components, size)[order_of]
                blocks[block] = values.transpose(0, 2, 1).reshape((-1,) if components == 1 else (-1, components))
            start += count * header.word
    return blocks


def open_nek(paths: Sequence[str], options: Options) -> NekFiles:
    """Files of one run: the same elements and order in each, and every field asked for."""
    if len(paths) == 1 and os.path.splitext(paths[0])[1] in (".nek5000", ".nek"):
        paths = _listed(paths[0])
    headers = tuple(read_header(path) for path in paths)
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if (header.elements, header.order) != (first.elements, first.order):
            raise SnapshotFileError(path, f"has {header.elements} elements of {header.order} points; {paths[0]} has "
                                          f"{first.elements} of {first.order}: these are no snapshots of one mesh")
    common = [b for b in first.blocks if b != "X" and all(b in h.blocks for h in headers)]
    names = common
    if options.fields is not None:
        for path, header in zip(paths, headers, strict=True):
            names = chosen(options.fields, [b for b in header.blocks if b != "X"], path)
    geometry = next((path for path, header in zip(paths, headers, strict=True) if "X" in header.blocks), None)
    return NekFiles(tuple(paths), headers, tuple(chosen(names, common, paths[0])), geometry)


def _listed(path: str) -> list[str]:
    """The files of a .nek5000 description: template, first step and number of steps."""
    with open(path, encoding="utf-8", errors="replace") as file:
        keys = dict(re.findall(r"(\w+)\s*:\s*(\S+)", file.read()))
    try:
        template, first, count = keys["filetemplate"], int(keys["firsttimestep"]), int(keys["numtimesteps"])
        pieces = len(NUMBERS.findall(template)) - 1
        if pieces < 0 or "%" in NUMBERS.sub("", template):
            raise ValueError(f"filetemplate is {template!r}")
    except (KeyError, ValueError) as error:
        raise SnapshotFileError(path, "is no Nek5000 description: it has filetemplate, firsttimestep, numtimesteps") from error
    names: list[str] = []
    for k in range(first, first + count):       # as many as it says, where they are there
        names.append(os.path.join(os.path.dirname(path), template % (*[0] * pieces, k)))
        check_readable(names[-1])
    if not names:
        raise SnapshotFileError(path, f"names no files: numtimesteps is {count}")
    return names


def lobatto(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Lobatto-Legendre points and weights of n points, and the matrix that differentiates polynomials at them."""
    if n == 1:
        return np.zeros(1), np.full(1, 2.0), np.zeros((1, 1))
    top = np.polynomial.legendre.Legendre.basis(n - 1)
    x = np.concatenate([[-1.0], np.sort(top.deriv().roots().real), [1.0]])
    value = top(x)
    weights = 2 / (n * (n - 1) * value**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = value[:, None] / value[None, :] / (x[:, None] - x[None, :])
    np.fill_diagonal(d, 0)
    d[0, 0], d[-1, -1] = -n * (n - 1) / 4, n * (n - 1) / 4
    return x, weights, d


def spectral_mesh(coordinates: np.ndarray, order: tuple[int, int, int], association: dict) -> Mesh:
    """Every element cut into cells between its points; the points weigh as in the solver's own mass matrix."""
    nx, ny, nz = order
    dimension = 3 if nz > 1 else 2
    axes = [n for n in (nz, ny, nx) if n > 1] if dimension == 3 else [ny, nx]
    elements = len(coordinates) // (nx * ny * nz)
    x = coordinates.reshape(elements, *axes, dimension).astype(np.float64)
    jacobian = np.empty((elements, *axes, dimension, dimension))
    mass = np.ones(axes)
    for axis, n in enumerate(axes):
        _, weights, d = lobatto(n)
        jacobian[..., axis, :] = np.moveaxis(np.tensordot(d, x, (1, 1 + axis)), 0, 1 + axis)
        mass = mass * weights.reshape([-1 if k == axis else 1 for k in range(len(axes))])
    volumes = (np.abs(np.linalg.det(jacobian)) * mass).ravel()
    one = Mesh.structured(np.zeros((*axes, 3))).connectivity
    size = 8 if dimension == 3 else 4
    connectivity = (one[None, :] + (np.arange(elements) * int(np.prod(axes)))[:, None]).ravel()
    count = len(connectivity) // size
    return Mesh(coordinates, connectivity, np.arange(count + 1) * size, np.full(count, HEXAHEDRON if dimension == 3 else QUAD),
                association=association, given_point_volumes=volumes)
