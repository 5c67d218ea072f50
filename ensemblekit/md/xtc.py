"""XTC trajectories read in blocks, outside Python's lock: where the frames begin, and their numbers unpacked."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ensemblekit.errors import InputError

SPARE = 16
"""Bytes the kernels may look at behind a frame."""


class Frames(NamedTuple):
    """Some frames of a trajectory file as arrays."""

    position: np.ndarray
    """(n, atoms, 3) float32, angstrom."""
    box: np.ndarray
    """(n, 3, 3) float32, rows are cell vectors, angstrom; zeros where the file has none."""
    times: np.ndarray
    """(n,) float64, ps."""


@dataclass(frozen=True, slots=True, eq=False)
class XtcIndex:
    """Where the frames of an XTC file stand."""

    path: str
    n_atoms: int
    offsets: np.ndarray
    """(frames + 1,) int64 bytes; the last is the end of the last whole frame."""

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> XtcIndex:
        """Look through the file, one number a frame.

        A last frame that is cut off (a run that was killed, or still writes) is left out with a warning. Raises
        InputError where the bytes are not XTC, or frames differ in their atoms.
        """
        from ensemblekit.md.kernels_xtc import big_int, find_frames

        path = os.fspath(path)
        data = _mapped(path)
        name = os.path.basename(path)
        if len(data) == 0:
            raise InputError(f"{name} is empty: no frame to read")
        chunks, at = [], 0
        while True:
            offsets = np.empty(65536, np.int64)
            n, at, why = find_frames(data, at, offsets)
            chunks.append(offsets[:n])
            if why:
                break
        starts = np.concatenate(chunks)
        if why == 3 or not len(starts):
            said = f"frame {len(starts)} (byte {at} of {len(data)}) does not begin like one" if why == 3 else (
                "its first frame is cut off")
            raise InputError(f"{name} is damaged or no XTC file: {said}. "
                             + (f"The {len(starts)} frames before it are whole: read them with stop={len(starts)} after "
                                f"cutting the file to {at} bytes" if len(starts) else "Copy it again from its source"))
        if why == 2:
            warnings.warn(f"{name} is cut off within frame {len(starts)}: its {len(starts)} whole frames are read, the last "
                          f"{len(data) - at} bytes are not", stacklevel=2)
        sizes = _numbers(data, starts + 4)
        if (sizes != sizes[0]).any():
            k = int(np.argmax(sizes != sizes[0]))
            raise InputError(f"frame {k} of {name} has {sizes[k]} atoms, frame 0 has {sizes[0]}: one trajectory has the same "
                             "atoms throughout. Write the frames to a file for each number of atoms")
        return cls(path, int(big_int(data, 4)), np.append(starts, at))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def times(self) -> np.ndarray:
        """Times of all frames, float64 (n,), in ps, without unpacking them."""
        return _numbers(_mapped(self.path), self.offsets[:-1] + 12).astype(np.int32).view(np.float32).astype(np.float64)

    def read(self, rows: np.ndarray, atoms: np.ndarray | None = None) -> Frames:
        """The frames of these numbers, of all atoms or those given (ascending).

        Raises InputError where a frame cannot be unpacked.
        """
        from ensemblekit.md.kernels_xtc import BROKEN, HUGE, RADICES, read_frames

        place = np.empty(0, np.int64)
        count, last = self.n_atoms, self.n_atoms - 1
        if atoms is not None:
            place = np.full(self.n_atoms, -1, np.int64)
            place[atoms] = np.arange(len(atoms))
            count, last = len(atoms), int(atoms[-1])
        position = np.empty((len(rows), count, 3), np.float32)
        box = np.empty((len(rows), 3, 3), np.float32)
        times = np.empty(len(rows))
        ints = np.empty(1, np.int32)
        data = _mapped(self.path)
        inside = self.offsets[rows + 1] + SPARE <= len(data)
        n = len(rows) if inside.all() else int(np.argmin(inside))
        done, state = read_frames(data, self.offsets[rows[:n]], place, last, RADICES, ints.view(np.float32), ints, position[:n],
                                  box[:n], times[:n])
        for k in range(n, len(rows)) if done == n else ():      # behind the last frame there is no byte to spare
            a, b = self.offsets[rows[k]], self.offsets[rows[k] + 1]
            alone = np.concatenate([np.asarray(data[a:b]), np.zeros(SPARE, np.uint8)])
            one, state = read_frames(alone, np.zeros(1, np.int64), place, last, RADICES, ints.view(np.float32), ints,
                                     position[k:k + 1], box[k:k + 1], times[k:k + 1])
            done += one
            if not one:
                break
        if done < len(rows):
            name = os.path.basename(self.path)
            if state == HUGE:
                raise InputError(f"frame {rows[done]} of {name} spans more places than 64 bits can number; convert the file to "
                                 "TRR or DCD")
            assert state == BROKEN
            raise InputError(f"frame {rows[done]} of {name} is damaged: its packed coordinates are not what the format allows. "
                             f"Leave it out (stop={rows[done]}), or copy the file again from its source")
        return Frames(position, box, times)


def _mapped(path: str) -> np.ndarray:
    """The bytes of the file, mapped: read when looked at, given back when the system wants them."""
    if os.path.getsize(path) == 0:
        return np.empty(0, np.uint8)
    return np.asarray(np.memmap(path, np.uint8, "r"))


def _numbers(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The big-endian 32-bit numbers at these bytes."""
    parts = [data[places + k].astype(np.int64) for k in range(4)]
    value = (parts[0] << 24) | (parts[1] << 16) | (parts[2] << 8) | parts[3]
    return np.where(value >= 1 << 31, value - (1 << 32), value)
