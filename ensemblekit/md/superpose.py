"""Rigid superposition of whole blocks of frames, and the mean structure they are superposed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.intake import as_array
from ensemblekit.md.system import Gather
from ensemblekit.md.whole import frames_of
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import Array, Block

SETTLED = 1e-6
"""Angstrom: a mean structure that moves less than this from one round to the next is the one sought."""
MOST_ROUNDS = 50


def columns(x: ArrayLike) -> np.ndarray:
    """Positions (m, 3) as the kernels read them: (3, m)."""
    return np.ascontiguousarray(np.asarray(x, np.float64).T)


def shares_of(weights: ArrayLike | None, n: int) -> np.ndarray:
    """Weights of n atoms that add up to 1; None: all alike."""
    if weights is None:
        return np.full(n, 1.0 / max(n, 1))
    w = as_array(weights, "weights", kinds="biuf", dtype=np.float64)
    w = ldexp(w, -power_of_two(w))
    if w.shape != (n,) or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
        raise InputError(f"weights of atoms are {n} finite numbers, not below 0 and not all 0; got shape {w.shape}")
    return w / w.sum()


@dataclass(frozen=True, eq=False)
class Fit:
    """A superposition of some atoms on a reference with the least weighted square deviation, never mirrored."""

    shares: np.ndarray
    """Weights of the fitted atoms, which add up to 1; none: frames stay where they are."""
    reference: np.ndarray
    """(fitted, 3), about its centre."""
    centre: np.ndarray
    """(3,), the centre of the reference."""

    @classmethod
    def onto(cls, reference: Any, weights: ArrayLike | None = None) -> Self:
        """On positions (fitted, 3), the atoms weighted (mass, say) or all alike."""
        reference = as_array(reference, "the reference", kinds="biuf", dtype=np.float64, named_axes=True)
        if reference.ndim != 2 or reference.shape[1] != 3 or not len(reference):
            raise InputError(f"a reference is positions of shape (atoms, 3), one at the least; got {reference.shape}")
        if not np.isfinite(reference).all():
            raise InputError("the reference holds NaN or infinity; choose a frame that is whole")
        shares = shares_of(weights, len(reference))
        centre = shares @ reference
        return cls(shares, np.ascontiguousarray(reference - centre), centre)

    @classmethod
    def none(cls) -> Self:
        """No superposition."""
        return cls(np.zeros(0), np.zeros((0, 3)), np.zeros(3))

    def __len__(self) -> int:
        """Fitted atoms."""
        return len(self.shares)

    @cached_property
    def settings(self) -> tuple[np.ndarray, np.ndarray, float]:
        """As the kernels take it: weights of the fitted atoms, reference (3, fitted), its spread."""
        return self.shares, columns(self.reference), float(self.shares @ (self.reference**2).sum(1))

    def moved(self, positions: Array, fitted: np.ndarray, atoms: np.ndarray, origin: np.ndarray | None = None) -> np.ndarray:
        """Positions of `atoms` in each frame (n, atoms, 3) after the superposition, less `origin` (m, 3): (n, m, 3).

        fitted, atoms: indices in the frames.
        """
        from ensemblekit.md.kernels_superpose import moved

        rows = frames_of(positions)
        out = np.empty((rows.n, 3 * len(atoms)))
        start = np.zeros((3, len(atoms))) if origin is None else columns(origin)
        moved(*rows, fitted is atoms, fitted, *self.settings, self.centre, atoms, start, out)
        return out.reshape(rows.n, len(atoms), 3)

    def rmsd(self, positions: Array, fitted: np.ndarray) -> np.ndarray:
        """Of the fitted atoms, (n,)."""
        from ensemblekit.md.kernels_superpose import rmsd

        rows = frames_of(positions)
        out = np.empty(rows.n)
        rmsd(*rows, fitted, *self.settings, out)
        return out

    def carried_rmsd(self, positions: Array, fitted: np.ndarray, atoms: np.ndarray, shares: np.ndarray,
                     target: np.ndarray) -> np.ndarray:
        """Of other atoms, which go along, from target (m, 3); (n,)."""
        from ensemblekit.md.kernels_superpose import carried_rmsd

        rows = frames_of(positions)
        out = np.empty(rows.n)
        carried_rmsd(*rows, fitted is atoms, fitted, *self.settings, self.centre, atoms, shares, columns(target), out)
        return out

    def squared_deviations(self, positions: Array, fitted: np.ndarray, atoms: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Of each of `atoms` from mean (m, 3); (n, m)."""
        from ensemblekit.md.kernels_superpose import squared_deviations

        rows = frames_of(positions)
        out = np.empty((rows.n, len(atoms)))
        squared_deviations(*rows, fitted is atoms, fitted, *self.settings, self.centre, atoms, columns(mean), out)
        return out


def superposed(frames: np.ndarray, reference: np.ndarray, weights: ArrayLike | None = None) -> np.ndarray:
    """Frames moved and turned onto a reference with the least (weighted) square deviation.

    frames: (n, atoms, 3), of which the first len(reference) atoms are fitted and the others go along; reference:
    (fitted, 3); weights: (fitted,) of the atoms, such as masses; returns (n, atoms, 3) float64, never mirrored.
    Where more than one rotation is best (two atoms, a straight line) it is the smallest of them.
    """
    (frames, reference), e = _over(frames, reference)
    every = np.arange(frames.shape[1])
    return ldexp(Fit.onto(reference, weights).moved(frames, every[:len(reference)], every), e)


def rmsd(frames: Any, reference: Any, weights: ArrayLike | None = None) -> np.ndarray:
    """Root mean square deviation of frames (n, atoms, 3) from a reference (atoms, 3) after superposition; (n,).

    weights: (atoms,), such as masses. Theobald's quaternion method, float64 throughout.
    """
    frames = as_array(frames, "frames")
    if frames.ndim != 3 or frames.shape[1:] != np.shape(reference):
        raise InputError(f"frames (n, atoms, 3) and a reference (atoms, 3) of the same atoms are wanted; got "
                         f"{frames.shape} and {np.shape(reference)}")
    (frames, reference), e = _over(frames, reference)
    return ldexp(Fit.onto(reference, weights).rmsd(frames, np.arange(len(reference))), e)


def rmsd_matrix(a: ArrayLike, b: ArrayLike | None = None) -> np.ndarray:
    """RMSD after superposition of every frame of a (n, atoms, 3) from every frame of b (k, atoms, 3), or of a: (n, k)."""
    from ensemblekit.md.kernels_superpose import rmsd_against

    def centred(x: Any) -> np.ndarray:
        x = as_array(x, "positions", dtype=np.float64)
        if x.ndim != 3 or x.shape[2] != 3 or not x.shape[1]:
            raise InputError(f"frames are (n, atoms, 3); got shape {x.shape}")
        return np.ascontiguousarray((x - x.mean(1, keepdims=True)).swapaxes(1, 2))

    both, e = _over(a) if b is None else _over(a, b)
    first = centred(both[0])
    second = first if b is None else centred(both[1])
    if first.shape[2] != second.shape[2]:
        raise InputError(f"the two sets differ in their atoms: {first.shape[2]} and {second.shape[2]}")
    out = np.empty((len(first), len(second)))
    rmsd_against(first, second, (first**2).sum(1).mean(1), (second**2).sum(1).mean(1), out)
    if b is None:
        np.fill_diagonal(out, 0.0)
    return ldexp(out, e)


def _over(*positions: Any) -> tuple[list[np.ndarray], int]:
    """All of them over one power of two, so that sums of fourth powers are numbers."""
    given = [as_array(x, "positions", named_axes=True) for x in positions]
    e = max((power_of_two(x, always=True) for x in given if x.size and np.any(x)), default=0)
    return ([ldexp(x, -e) for x in given], e) if abs(e) > 100 else (given, 0)


class MovedMean:
    """Weighted mean position of some atoms after a superposition; a reducer of whole blocks. Merges in any order.

    With it goes the map :func:`whole_block`. The first len(fit) gathered atoms are fitted, the mean is of all.
    """

    def __init__(self, gather: Gather, fit: Fit, origin: np.ndarray):
        self.gather, self.fit, self.origin = gather, fit, origin
        self.n, self.weight = 0, 0.0
        self.total = np.zeros((3, len(origin)))
        """Σ w (x - origin): small numbers, as the origin is close to the mean."""

    def empty(self) -> Self:
        return type(self)(self.gather, self.fit, self.origin)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        from ensemblekit.md.kernels_superpose import add_moved

        if len(values) == 0:
            return
        positions, index = self.gather(values)
        same = len(self.fit) == len(index)
        rows = frames_of(positions)
        w = np.zeros(0) if weights is None else np.ascontiguousarray(weights, np.float64)
        add_moved(*rows, w, same, index[:len(self.fit)], *self.fit.settings, self.fit.centre, index, columns(self.origin),
                  self.total)
        self.n += rows.n
        self.weight += float(rows.n if weights is None else w.sum())

    def merge(self, later: Self) -> None:
        self.n, self.weight, self.total = self.n + later.n, self.weight + later.weight, self.total + later.total

    def result(self) -> np.ndarray:
        """The mean (m, 3). Raises StatisticsError where no frame, or none with a weight above 0, was seen."""
        if not self.weight > 0:
            raise StatisticsError("no frames" if self.n == 0 else f"all weights of {self.n} frames are 0")
        return self.origin + (self.total / self.weight).T

    def state(self) -> dict[str, Array]:
        return {"n": np.array(self.n), "weight": np.array(self.weight), "total": self.total.copy()}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.weight, new.total = int(state["n"]), float(state["weight"]), np.array(state["total"])
        return new


def whole_block(block: Block) -> Block:
    """The map of reducers that want all fields of a block."""
    return block


def split(index: np.ndarray, fitted: int, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Gathered atoms as the fitted ones and the others; one and the same array where `same`."""
    return (index, index) if same else (index[:fitted], index[fitted:])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanStructure:
    """The mean of the frames of a trajectory after each was superposed on (nearly) that mean."""

    mean: np.ndarray
    """(m, 3), of the atoms asked for, in angstrom."""
    fit: Fit = field(repr=False)
    """The superposition on the mean of the fitted atoms."""
    rounds: int
    """Reads of the trajectory it took."""
    shift: float
    """RMSD between the last two mean structures of the fitted atoms; in angstrom."""


Read = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Branches -> their results, all runs as one: one read of the frames."""


def mean_structure(read: Read, gather: Gather, start: np.ndarray, *, same: bool, others: int = 0,
                   weights: ArrayLike | None = None, rounds: int | None = None) -> MeanStructure:
    """The weighted mean structure, out of core: every round reads the frames once and superposes them on the last mean.

    Arguments:
        read: one read; statistical weights of frames count.
        gather: gives the fitted atoms, then (not `same`) the `others` whose mean is wanted too.
        start: (fitted, 3), the structure of the first superposition; (0, 3): no superposition at all.
        same: the atoms wanted are the fitted ones.
        weights: (fitted,) of the atoms, such as masses; None: all alike.
        rounds: how many; None: until the structure settles to 1e-6 angstrom (at most 50).
    """
    n = len(start)
    fit = Fit.onto(start, weights) if n else Fit.none()
    mean = np.repeat(fit.centre[None], n if same else n + others, 0)
    done, shift = 0, np.inf
    limit = MOST_ROUNDS if rounds is None and n else rounds or 1
    while done < limit:
        mean = read({"mean": (whole_block, MovedMean(gather, fit, mean))})["mean"]
        if not np.isfinite(mean).all():
            raise StatisticsError("some frames hold coordinates that are not finite, so there is no mean structure; "
                                  "leave those frames out")
        done += 1
        if n:
            last, fit = fit, Fit.onto(mean[:n], weights)
            shift = float(Fit.onto(last.reference, weights).rmsd(fit.reference[None], np.arange(n))[0])
        if rounds is None and shift < SETTLED:
            break
    return MeanStructure(mean=mean if same else mean[n:], fit=fit, rounds=done, shift=shift)
