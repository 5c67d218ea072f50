"""What an act of the tour hands to the terminal and to the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Number:
    """One key number: what it is, its value with its error, and what to compare it with."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture, already written as PNG."""

    path: Path
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Act:
    """One act: what came in, what was done, what came out."""

    key: str
    title: str
    question: str
    came_in: str
    done: str
    code: str
    numbers: tuple[Number, ...]
    figures: tuple[Figure, ...]
    verdict: str
    store: Path
    seconds: float


def with_error(value: float, error: float, unit: str = "") -> str:
    """"18.3 ± 1.6 Å": the error with two digits if it begins with 1, else one; the value to the same place."""
    from math import floor, isfinite, log10

    tail = f" {unit}" if unit else ""
    if not isfinite(error) or error <= 0:
        return f"{value:.4g}{tail}"
    place = floor(log10(error))
    digits = -place + (1 if error / 10.0**place < 2 else 0)
    if digits <= 0:
        return f"{round(value, digits):.0f} ± {round(error, digits):.0f}{tail}"
    return f"{value:.{digits}f} ± {error:.{digits}f}{tail}"


def size_of(path: Path) -> str:
    """Bytes on disk for people: "4.1 MB"."""
    size = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
