"""Frames that hold no numbers: which they are, when, and which atom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.estimate import Estimate
from ensemblekit.errors import EnsemblekitError, InputError
from ensemblekit.md.trajectory import BATCH
from ensemblekit.source import Block, SnapshotSource

MEND = "leave the frame out (frames=, start=) or mend the trajectory"


def frame_in_words(block: Block, t: int) -> str:
    """Row t of a block as a frame, with its time where it has one: "frame 17 (34 ps)"."""
    time = np.nan if block.times is None else float(np.asarray(block.times)[t])
    return f"frame {block.start + t}" + (f" ({time:g} ps)" if np.isfinite(time) else "")


def bad_frame(block: Block, t: int, positions: np.ndarray, cell: np.ndarray | None, atoms: np.ndarray) -> InputError:
    """What is wrong with a frame that a kernel refused: row t of the block."""
    frame, missing = frame_in_words(block, t), ~np.isfinite(positions).all(axis=1)
    if missing.any():
        return InputError(f"{frame}: {_atoms_in_words(missing, atoms)} has coordinates that are not finite; {MEND}")
    return InputError(f"{frame} has a box without volume: {np.array2string(np.asarray(cell), precision=3)}".replace(
        "\n", "") + "; leave it out, or give the box with MDAnalysis' set_dimensions transformation")


def first_hole(source: SnapshotSource, names: Sequence[str], values: Callable[[Block], ArrayLike]) -> str:
    """The first frame of a run (a source that can be read again) of which `values` are not finite, in words; "" for none."""
    if source.access == "once":
        return ""
    for piece in source.pieces(list(names), "time", False, BATCH):
        for block in piece.blocks():
            try:
                numbers = np.asarray(values(block), np.float64)
            except EnsemblekitError as error:
                return str(error)
            bad = ~np.isfinite(numbers).reshape(len(block), -1)
            if bad.any():
                t = int(np.argmax(bad.any(axis=1)))
                return _what(block, t, bad[t], numbers.shape[1:])
    return ""


def naming_the_hole(estimate: Estimate, source: SnapshotSource, fields: Sequence[str],
                    values: Callable[[Block], ArrayLike]) -> Estimate:
    """The estimate of a run; where it is not finite, with the first frame that made it so: frames are read once more for it."""
    if all(np.isfinite(e.mean).all() for e in (estimate, *estimate.derived.values())):
        return estimate
    where = first_hole(source, fields, values)

    def named(one: Estimate) -> Estimate:
        return one if np.isfinite(one.mean).all() else one.noting(where)

    return replace(named(estimate), derived={name: named(one) for name, one in estimate.derived.items()})


def _what(block: Block, t: int, bad: np.ndarray, item: tuple[int, ...]) -> str:
    frame = frame_in_words(block, t)
    for name, field in block.fields.items():
        missing = ~np.isfinite(np.asarray(field[t])).reshape(len(field[t]), -1).all(axis=1)
        if missing.any() and name != "box":
            kind = "coordinates" if name == "position" else f"a {name}"
            return f"{frame}: {_atoms_in_words(missing, np.arange(len(missing)))} has {kind} that are not finite"
        if missing.any():
            return f"{frame}: its box is not finite"
    at = np.unravel_index(int(np.argmax(bad)), item) if item else ()
    which = f", element {at[0] if len(at) == 1 else tuple(map(int, at))}" if at else ""
    return f"{frame}{which}: its coordinates are numbers, but what is made of them is none"


def _atoms_in_words(missing: np.ndarray, atoms: np.ndarray) -> str:
    more = int(missing.sum()) - 1
    return f"atom {int(atoms[np.argmax(missing)])}" + (f" (and {more} more)" if more else "")
