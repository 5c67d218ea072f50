"""What the numbers of an array have to say against their own errors, in words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ENOUGH = 10.0
"""Independent snapshots below which an interval is not vouched for."""


class Doubts(NamedTuple):
    """What is to be said against an estimate, and whether it is vouched for all the same."""

    words: tuple[str, ...]
    vouched: bool


def standard_doubts(mean: np.ndarray, stderr: np.ndarray, independent: np.ndarray, *, enough: float = ENOUGH,
                    size: int | None = None, word: str = "elements") -> Doubts:
    """Elements that rest on too few independent snapshots, are not finite or never change.

    What is always 0 is empty by nature (the core of a g(r), a wall, a pair that never meets) and is not counted, unless
    there is nothing else.

    Arguments:
        mean, stderr: (*item,)
        independent: (*item,) snapshots that say how well the error of each element is known, such as n_eff.
        size: elements in all, where these are only some of them.
        word: for what they are.
    """
    size = mean.size if size is None else size
    few = independent < enough
    bad = ~np.isfinite(mean)
    still = (stderr == 0) & ~bad
    constant = still & (mean != 0)
    words, everything = [], still.size > 0 and bool(still.all())
    if few.any():
        fewest = float(np.nanmin(independent))
        words.append(f"only {fewest:.2g} independent snapshots; an interval needs about {enough:g}" if size == 1 else
                     f"{int(few.sum())} of {size} {word} have fewer than {enough:g} independent snapshots (fewest "
                     f"{fewest:.2g})")
    if bad.any():
        words.append(f"{int(bad.sum())} of {size} {word} are not finite" if size > 1 else "it is not finite")
    if everything or constant.any():
        words.append(f"{size if everything else int(constant.sum())} of {size} {word} never change")
    return Doubts(tuple(words), not (few.any() or bad.any() or everything))
