"""Files as flow solvers write them, made by small writers of the tests' own: OpenFOAM cases and Nek5000 field files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

BANNER = "/*--------------------------------*- C++ -*----------------------------------*\\\n  no solver\n\\*---*/\n"
CLASSES = {1: "volScalarField", 3: "volVectorField", 6: "volSymmTensorField", 9: "volTensorField"}
LISTS = {1: "scalar", 3: "vector", 6: "symmTensor", 9: "tensor"}


class Foam:
    """How files are written: ascii or binary, 4 or 8 bytes a number, compressed or not."""

    def __init__(self, binary: bool = False, scalar: int = 64, label: int = 32, packed: bool = False, big: bool = False):
        self.binary, self.scalar, self.label, self.packed, self.big = binary, scalar, label, packed, big

    def header(self, kind: str, name: str, note: str = "") -> bytes:
        arch = f'    arch        "{"MSB" if self.big else "LSB"};label={self.label};scalar={self.scalar}";\n'
        note = f'    note        "{note}";\n' if note else ""
        return (f"{BANNER}FoamFile\n{{\n    version     2.0;\n    format      {'binary' if self.binary else 'ascii'};\n{arch}"
                f"    class       {kind};\n{note}    location    \"x\";\n    object      {name};\n}}\n// * * * //\n\n").encode()

    def numbers(self, values: np.ndarray, whole: bool = False) -> bytes:
        values = np.asarray(values)
        if self.binary:
            code = f"{'>' if self.big else '<'}{'i' if whole else 'f'}{(self.label if whole else self.scalar) // 8}"
            return f"\n{len(values)}\n(".encode() + values.astype(code).tobytes() + b")"
        if values.ndim == 1:
            rows = "\n".join(str(int(x)) if whole else repr(float(x)) for x in values)
        else:
            rows = "\n".join("(" + " ".join(repr(float(x)) for x in row) + ")" for row in values)
        return f"\n{len(values)}\n(\n{rows}\n)\n".encode()

    def write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.packed:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
        else:
            path.write_bytes(data)


def foam_mesh(folder: Path, foam: Foam, points: np.ndarray, faces: Sequence[Sequence[int]], owner: np.ndarray,
              neighbour: np.ndarray, patches: Mapping[str, tuple[int, int]], zones: Mapping[str, Sequence[int]] | None = None,
              **labels: np.ndarray) -> None:
    """constant/polyMesh; patches: name -> (first face, number)."""
    foam.write(folder / "points", foam.header("vectorField", "points") + foam.numbers(points))
    if foam.binary:
        offsets = np.concatenate([[0], np.cumsum([len(f) for f in faces])])
        body = foam.numbers(offsets, True) + b"\n" + foam.numbers(np.array([k for f in faces for k in f], int), True)
        foam.write(folder / "faces", foam.header("faceCompactList", "faces") + body)
    else:
        rows = "\n".join(f"{len(f)}({' '.join(map(str, f))})" for f in faces)
        foam.write(folder / "faces", foam.header("faceList", "faces") + f"{len(faces)}\n(\n{rows}\n)\n".encode())
    note = f"nPoints: {len(points)} nCells: {owner.max(initial=-1) + 1} nFaces: {len(faces)} nInternalFaces: {len(neighbour)}"
    foam.write(folder / "owner", foam.header("labelList", "owner", note) + foam.numbers(owner, True))
    foam.write(folder / "neighbour", foam.header("labelList", "neighbour", note) + foam.numbers(neighbour, True))
    text = "".join(f"    {name}\n    {{\n        type patch;\n        nFaces {n};\n        startFace {start};\n    }}\n"
                   for name, (start, n) in patches.items())
    plain = Foam(packed=foam.packed)
    plain.write(folder / "boundary", plain.header("polyBoundaryMesh", "boundary") + f"{len(patches)}\n(\n{text})\n".encode())
    if zones:
        body = b"".join(f"{name}\n{{\n    type cellZone;\n    cellLabels List<label> ".encode() + foam.numbers(
            np.asarray(cells), True) + b";\n}\n" for name, cells in zones.items())
        head = foam.header("regIOobject", "cellZones") + f"{len(zones)}\n(\n".encode()
        foam.write(folder / "cellZones", head + body + b")\n")
    for name, values in labels.items():
        foam.write(folder / name, foam.header("labelList", name) + foam.numbers(values, True))


def foam_field(path: Path, foam: Foam, values: np.ndarray, dimensions: str = "0 0 0 0 0 0 0",
               patches: Mapping[str, str | np.ndarray] | None = None, uniform: bool = False) -> None:
    """One field on cells; patches: name -> text of its entry, or its values."""
    components = 1 if values.ndim == 1 else values.shape[1]
    if uniform:
        one = values[0] if components == 1 else "(" + " ".join(repr(float(x)) for x in values[0]) + ")"
        body = f"internalField   uniform {one};\n".encode()
    else:
        body = f"internalField   nonuniform List<{LISTS[components]}> ".encode() + foam.numbers(values) + b";\n"
    body += b"\nboundaryField\n{\n"
    for name, entry in (patches or {}).items():
        body += f"    {name}\n    {{\n        type ".encode()
        if isinstance(entry, str):
            body += f"{entry};\n".encode()
        else:
            body += f"calculated;\n        value nonuniform List<{LISTS[components]}> ".encode() + foam.numbers(entry) + b";\n"
        body += b"    }\n"
    head = foam.header(CLASSES[components], path.name) + f"dimensions      [{dimensions}];\n\n".encode()
    foam.write(path, head + body + b"}\n")


def box_faces(nx: int, ny: int, nz: int, shake: float = 0.0, lengths: tuple[float, float, float] = (1, 1, 1)
              ) -> tuple[np.ndarray, list, np.ndarray, np.ndarray, dict]:
    """A box of nx ny nz hexahedra as OpenFOAM lists it: points, faces (inner ones first), owner, neighbour, patches."""
    number = np.arange((nx + 1) * (ny + 1) * (nz + 1)).reshape(nz + 1, ny + 1, nx + 1)
    z, y, x = np.meshgrid(*[np.linspace(0, h, n + 1) for h, n in zip(lengths[::-1], (nz, ny, nx), strict=True)], indexing="ij")
    points = np.stack([x, y, z], -1)
    if shake:
        points[1:-1, 1:-1, 1:-1] += np.random.default_rng(4).uniform(-shake, shake, points[1:-1, 1:-1, 1:-1].shape)
    cell = np.arange(nx * ny * nz).reshape(nz, ny, nx)
    quads = {"x": lambda k, j, i: [number[k, j, i], number[k, j + 1, i], number[k + 1, j + 1, i], number[k + 1, j, i]],
             "y": lambda k, j, i: [number[k, j, i], number[k + 1, j, i], number[k + 1, j, i + 1], number[k, j, i + 1]],
             "z": lambda k, j, i: [number[k, j, i], number[k, j, i + 1], number[k, j + 1, i + 1], number[k, j + 1, i]]}
    inner, outer = [], {"inlet": [], "outlet": [], "walls": []}
    for k in range(nz):
        for j in range(ny):
            for i in range(nx):
                own = cell[k, j, i]
                for axis, at, end in (("x", i, nx), ("y", j, ny), ("z", k, nz)):
                    step = {"x": (0, 0, 1), "y": (0, 1, 0), "z": (1, 0, 0)}[axis]
                    if at + 1 < end:
                        inner.append((own, cell[k + step[0], j + step[1], i + step[2]],
                                      quads[axis](k + step[0], j + step[1], i + step[2])))
                    else:
                        outer["outlet" if axis == "x" else "walls"].append(
                            (own, quads[axis](k + step[0], j + step[1], i + step[2])))
                    if at == 0:
                        outer["inlet" if axis == "x" else "walls"].append((own, quads[axis](k, j, i)[::-1]))
    inner.sort(key=lambda f: (f[0], f[1]))
    faces = [f[2] for f in inner]
    owner, neighbour = [f[0] for f in inner], [f[1] for f in inner]
    patches = {}
    for name, listed in outer.items():
        patches[name] = (len(faces), len(listed))
        faces += [f[1] for f in listed]
        owner += [f[0] for f in listed]
    return points.reshape(-1, 3), faces, np.array(owner), np.array(neighbour), patches


def nek_file(path: Path, order: tuple[int, int, int], elements: int, time: float, step: int,
             blocks: Mapping[str, np.ndarray], *, word: int = 4, big: bool = False,
             numbers: Sequence[int] | None = None) -> None:
    """A field file; blocks: "X", "U" (elements, points, dimension), "P", "T", "S01", ... (elements, points)."""
    scalars = sorted(k for k in blocks if k.startswith("S"))
    contents = "".join(k for k in "XUPT" if k in blocks) + (f"S{len(scalars):02d}" if scalars else "")
    nx, ny, nz = order
    head = f"#std {word} {nx:2d} {ny:2d} {nz:2d} {elements:10d} {elements:10d} {time:20.13E} {step:9d} {0:6d} {1:6d} {contents}"
    code = f"{'>' if big else '<'}f{word}"
    numbers = list(range(1, elements + 1)) if numbers is None else list(numbers)
    with path.open("wb") as file:
        file.write(head.ljust(132).encode())
        file.write(struct.pack(f"{'>' if big else '<'}f", 6.54321))
        file.write(np.array(numbers, f"{'>' if big else '<'}i4").tobytes())
        for key in [k for k in "XUPT" if k in blocks] + scalars:
            values = blocks[key][np.array(numbers) - 1]
            file.write((values.transpose(0, 2, 1) if values.ndim == 3 else values).astype(code).tobytes())
