"""The order of the parts of one run: by the times or steps that the files know, else by the numbers in their names."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError

Order = Literal["auto", "given"]
NUMBER = re.compile(r"\d+\.\d+(?:[eE][-+]?\d+)?|\d+(?:[eE][-+]\d+)?")
TIME_NAMES = ("time", "times", "t", "Time", "TimeValue", "tspan")
STEP_NAMES = ("step", "steps", "Step")
"""Names of arrays beside the fields of a file that are the times, or the numbers of steps, of its snapshots."""
SUFFIX = re.compile(r"\.(?!f?\d+\Z)[A-Za-z]\w*\Z")
"""What is put behind a name and is no number of it: .vtu, but not .25 nor the .f00001 of Nek5000."""


def natural_key(name: str) -> tuple[Any, ...]:
    """U_2 before U_10."""
    return tuple((1, int(part)) if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name) if part)


def check_order(order: object) -> None:
    """Refuse what is no order of parts."""
    if order not in ("auto", "given"):
        raise InputError(f'order is "auto" (by the times that the files know, else by the numbers in their names) or "given"; '
                         f"got {order!r}")


def order_of(paths: Sequence[str | os.PathLike[str]], starts: Sequence[float | None] | None = None, *, order: Order = "auto",
             word: str = "time", tell: bool = True, stacklevel: int = 3) -> list[int]:
    """The order of the parts of one run, as indices of `paths`.

    Arguments:
        starts: the time or step at which each begins; they decide where all are known and no two are alike. Else the numbers
            in the names do, where the names differ in nothing else; else the parts stay as they came.
        order: "given" leaves them as they came.
        word: what the starts are, for the warning.
        tell, stacklevel: warn where the order is another than the one given, at whose line.
    """
    check_order(order)
    came = list(range(len(paths)))
    if order == "given" or len(paths) < 2:
        return came
    names = [os.fspath(path) for path in paths]
    known = [] if starts is None else [float(start) for start in starts if start is not None and np.isfinite(start)]
    if len(known) == len(paths) and len(set(known)) == len(known):
        ordered, by = sorted(came, key=known.__getitem__), word
    else:
        stems = [SUFFIX.sub("", name) for name in names]
        if len({NUMBER.sub("#", stem) for stem in stems}) > 1:
            return came
        keys = [tuple(float(number) for number in NUMBER.findall(stem)) for stem in stems]
        ordered, by = sorted(came, key=keys.__getitem__), "the numbers in their names"
    if ordered != came and tell:
        first = ", ".join(os.path.basename(names[k]) for k in ordered[:4])
        warnings.warn(f"{len(paths)} parts of one run were put in order of {by}: {first}{', ...' if len(ordered) > 4 else ''}. "
                      'order="given" keeps the order of the list', UserWarning, stacklevel=stacklevel)
    return ordered


def counted_once(times: np.ndarray, slack: float = 0.0) -> np.ndarray:
    """Which snapshots of one run count, (n,) bool: where times go back, a run was continued from an earlier state, and what it
    had written from that time on is written again; the later ones count."""
    kept = np.ones(len(times), bool)
    for k in np.flatnonzero(np.diff(times) < -slack):
        kept[:k + 1] &= times[:k + 1] < times[k + 1] - slack
    return kept


def written_once(times: np.ndarray, slack: float = 0.0) -> np.ndarray | None:
    """Which snapshots of one run count, (n,) bool, as `counted_once`; None where times go back to before all that came before
    them, as no continued run's do: those are several runs one after the other."""
    kept = counted_once(times, slack)
    back = np.flatnonzero(np.diff(times) < -slack)
    return None if len(back) and not kept[:int(back[-1]) + 1].any() else kept


def warn_of_restart(times: np.ndarray, kept: np.ndarray, where: str, *, what: str = "snapshot", unit: str = "",
                    stacklevel: int = 3) -> None:
    """Tell which snapshots were left out as written again later."""
    lost = np.flatnonzero(~kept)
    count = f"{len(lost)} {what}{'s' if len(lost) > 1 else ''}"
    warnings.warn(f"{where}: {count} from {times[lost].min():g}{unit} on stand twice, as a continued run writes them: the "
                  "later ones are taken", UserWarning, stacklevel=stacklevel)
