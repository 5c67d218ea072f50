"""Arrows of a field as scripts for PyMOL and VMD, at its places in the first frame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ensemblekit.averaging.estimate import Estimate
from ensemblekit.errors import InputError
from ensemblekit.files import write_text
from ensemblekit.md.places import placed

LONGEST = 5.0
"""Angstrom of the longest arrow, unless a scale is given."""
SHAFT, HEAD, TIP = 0.12, 0.3, 0.7
"""Angstrom: radii of shaft and head; the share of the length where the head begins."""
SURE, UNSURE = (0.0, 0.45, 0.70), (0.54, 0.54, 0.54)
"""Colours: of arrows that are longer than half their interval, and of the others."""


def write_arrows(source: Any, at: object, field: Estimate, path: str | os.PathLike[str], *, scale: float | None = None) -> None:
    """A script that draws the mean field at each place as an arrow: .pml for PyMOL, .tcl for VMD.

    Places are those of the first frame, which is to be loaded too. Arrows whose intervals reach 0 are grey.

    Arguments:
        source: the trajectory, as ``md.average`` takes it.
        at: the places, as ``md.ElectricField(at)`` had them.
        field: what it gave.
        scale: angstrom of arrow for one of the field's unit; by default the longest arrow is 5 angstrom.

    Raises InputError for another estimate, other places or another format; nothing half written is left.
    """
    from ensemblekit.md.frames import as_frames, topology_of
    from ensemblekit.md.observables.groups import one_frame
    from ensemblekit.md.system import System

    suffix = arrow_suffix(path)
    mean = np.asarray(field.mean, np.float64)
    if mean.shape[-1:] != (3,) or "magnitude" not in field.derived:
        raise InputError(f"arrows are drawn of an md.ElectricField; this estimate has shape {mean.shape}")
    if scale is not None and not 0 < scale < np.inf:
        raise InputError(f"write_arrows(scale=) is angstrom for one {field.unit}, above 0; got {scale!r}")
    frames = as_frames(source)
    with System(frames, topology_of(frames)) as system:
        points = np.asarray(placed(system, at).points(one_frame(system, 0))[0], np.float64)
    mean, error = mean.reshape(-1, 3), np.asarray(field.high - field.low, np.float64).reshape(-1, 3) / 2
    if len(points) != len(mean):
        raise InputError(f"the field was averaged at {len(mean)} places, and {at!r} are {len(points)}")
    lengths = np.linalg.norm(mean, axis=1)
    if not (np.isfinite(lengths).all() and lengths.any()):
        raise InputError("the field is 0 or not finite; there is no arrow to draw")
    ways = mean * (LONGEST / lengths.max() if scale is None else scale)
    known = lengths > np.sqrt((error * error).sum(axis=1))      # NaN (no error is known): not sure
    text = (_pml if suffix == ".pml" else _tcl)(points, points + TIP * ways, points + ways, known)
    write_text(path, text)


def arrow_suffix(path: str | os.PathLike[str]) -> str:
    """.pml or .tcl; InputError for another."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".pml", ".tcl"):
        raise InputError(f"{os.fspath(path)}: arrows are written as .pml (PyMOL) or .tcl (VMD)")
    return suffix


def _pml(begin: np.ndarray, neck: np.ndarray, end: np.ndarray, known: np.ndarray) -> str:
    """Compiled graphics objects: 9 is a cylinder, 27 a cone."""
    rows = []
    for a, b, c, sure in zip(begin, neck, end, known, strict=True):
        colour = SURE if sure else UNSURE
        cylinder = [9.0, *a, *b, SHAFT, *colour, *colour]
        cone = [27.0, *b, *c, HEAD, 0.0, *colour, *colour, 1.0, 0.0]
        rows.append("  " + ", ".join(f"{x:.4f}" for x in (*cylinder, *cone)) + ",")
    return "\n".join(["python", "from pymol import cmd", "field = [", *rows, "]", "cmd.load_cgo(field, 'field')", "python end",
                      ""])


def _tcl(begin: np.ndarray, neck: np.ndarray, end: np.ndarray, known: np.ndarray) -> str:
    rows = ["draw delete all"]
    for *points, sure in zip(begin, neck, end, known, strict=True):
        a, b, c = (" ".join(f"{x:.4f}" for x in point) for point in points)
        rows += [f"draw color {'blue' if sure else 'gray'}",
                 f"draw cylinder {{{a}}} {{{b}}} radius {SHAFT}", f"draw cone {{{b}}} {{{c}}} radius {HEAD}"]
    return "\n".join([*rows, ""])


__all__ = ["write_arrows"]
