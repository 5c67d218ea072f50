"""Plain DCD trajectories read in blocks from a map of the file: frames of one size, all atoms free, 32-bit markers.

Whatever is not plain (fixed atoms, a fourth dimension, 64-bit markers, cells that are not rectangular, uneven times) is left
to MDAnalysis' reader.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.xtc import Frames

CORD = 84
"""Bytes of the first record."""


@dataclass(frozen=True, slots=True, eq=False)
class DcdLayout:
    """Where the frames of a plain DCD file stand."""

    path: str
    n_atoms: int
    begin: int
    """Byte of the first frame."""
    n_frames: int
    order: str
    """Of the bytes: "<" or ">"."""
    has_cell: bool
    first: float
    step: float
    """Times are first + step x frame, in ps."""

    @classmethod
    def of(cls, path: str | os.PathLike[str], reader: Any) -> DcdLayout | None:
        """The layout of a file that MDAnalysis has opened, or None where it is not a plain one."""
        path = os.fspath(path)
        n_frames, n_atoms = int(reader.n_frames), int(reader.n_atoms)
        with open(path, "rb") as file:
            head = file.read(4 + CORD + 4)
            if len(head) < 4 + CORD + 4 or head[4:8] != b"CORD":
                return None
            order = next((o for o in "<>" if int(np.frombuffer(head, o + "i4", 1)[0]) == CORD), "")
            if not order:
                return None
            control = np.frombuffer(head, order + "i4", 20, 8)
            charmm = control[19] != 0
            if control[8] != 0 or (charmm and control[11] != 0):        # fixed atoms, a fourth dimension
                return None
            at = len(head)
            for wanted in (None, 4):                                    # titles, number of atoms
                size = file.read(4)
                if len(size) < 4 or (wanted is not None and int(np.frombuffer(size, order + "i4")[0]) != wanted):
                    return None
                length = int(np.frombuffer(size, order + "i4")[0])
                body = file.read(length) if 0 <= length < 1 << 20 else b""
                if len(body) < length or file.read(4) != size:
                    return None
                at += 8 + length
            if len(body) != 4 or int(np.frombuffer(body, order + "i4")[0]) != n_atoms or n_atoms == 0 or n_frames == 0:
                return None
        looked_at = (n_frames - 1, n_frames // 2, 0)                    # the first last: that is where the reader stays
        times = [float(reader[k].time) for k in looked_at]
        step = float(reader.dt)
        even = [times[-1] + step * k for k in looked_at]
        if not np.allclose(times, even, rtol=1e-6, atol=1e-6):
            return None
        layout = cls(path, n_atoms, at, n_frames, order, bool(charmm and control[10] != 0), times[-1], step)
        if at + n_frames * layout._record().itemsize > os.path.getsize(path):
            return None
        return layout

    def times(self) -> np.ndarray:
        """Times of all frames, (n,), in ps."""
        return self.first + self.step * np.arange(self.n_frames)

    def read(self, rows: np.ndarray, atoms: np.ndarray | None, boxed: bool) -> Frames | None:
        """The frames of these numbers, of all atoms or those given; None where a cell is not rectangular (`boxed` only).

        Raises InputError where a frame does not begin and end as frames do.
        """
        data = np.memmap(self.path, self._record(), "r", self.begin, (self.n_frames,))
        straight = len(rows) == rows[-1] - rows[0] + 1
        frames = data[rows[0]:rows[-1] + 1] if straight else data
        which = slice(None) if straight else rows
        nbytes = 4 * self.n_atoms
        for name, size in (("x", nbytes), ("y", nbytes), ("z", nbytes), *((("cell", 48),) if self.has_cell else ())):
            wrong = (frames[f"{name}<"][which] != size) | (frames[f"{name}>"][which] != size)
            if wrong.any():
                k = int(rows[int(np.argmax(wrong))])
                raise InputError(f"frame {k} of {os.path.basename(self.path)} is damaged: its records are not of the size of "
                                 f"the first frame's. Leave it out (stop={k}), or copy the file again from its source")
        box = np.zeros((len(rows), 3, 3), np.float32)
        if boxed:
            if not self.has_cell:
                return None
            cell = frames["cell"][which].astype(np.float64)             # a, gamma, b, beta, alpha, c
            angles, lengths = cell[:, [1, 3, 4]], cell[:, [0, 2, 5]]
            right = (angles == 90.0).all(axis=1) | (angles == 0.0).all(axis=1)      # degrees, or cosines
            if not (right & (lengths > 0).all(axis=1)).all():
                return None
            box[:, [0, 1, 2], [0, 1, 2]] = lengths
        position = np.empty((len(rows), self.n_atoms if atoms is None else len(atoms), 3), np.float32)
        for k, name in enumerate("xyz"):
            for n, frame in enumerate(range(len(rows)) if straight else rows):      # a frame at a time: in the cache
                values = frames[name][frame]
                position[n, :, k] = values if atoms is None else values[atoms]
        return Frames(position, box, self.first + self.step * rows)

    def _record(self) -> np.dtype:
        i4, f4, n = f"{self.order}i4", f"{self.order}f4", self.n_atoms
        fields: list[Any] = [("cell<", i4), ("cell", f"{self.order}f8", 6), ("cell>", i4)] if self.has_cell else []
        for name in "xyz":
            fields += [(f"{name}<", i4), (name, f4, (n,)), (f"{name}>", i4)]
        return np.dtype(fields)
