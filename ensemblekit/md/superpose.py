"""Rigid superposition of whole blocks of frames, and the mean structure they are superposed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.arrays import same_item
from ensemblekit.averaging.reducer import TIME
from ensemblekit.averaging.rows import Rows, rows_of
from ensemblekit.averaging.run import reduce
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.source import Array, SnapshotSource

NONE = np.zeros(0, np.int64)
SETTLED = 1e-6
"""Angstrom: a mean structure that moves less than this from one round to the next is the one sought."""
MOST_ROUNDS = 50


def frames_of(positions: Array) -> Rows:
    """Positions (n, atoms, 3) as the kernels read them: float32 or float64, in place where that can be."""
    x = np.asarray(positions)
    if x.ndim != 3 or x.shape[2] != 3:
        raise InputError(f"positions are (frames, atoms, 3); got shape {x.shape}")
    rows = rows_of(x)
    return rows if rows.flat.dtype in (np.float32, np.float64) else rows_of(x.astype(np.float64))


def columns(x: Any) -> np.ndarray:
    """Positions (m, 3) as the kernels read them: (3, m)."""
    return np.ascontiguousarray(np.asarray(x, np.float64).T)


def shares_of(weights: Any, n: int) -> np.ndarray:
    """Weights of n atoms that add up to 1; None: all alike."""
    if weights is None:
        return np.full(n, 1.0 / max(n, 1))
    w = np.asarray(weights, np.float64)
    if w.shape != (n,) or not np.isfinite(w).all() or (w < 0).any() or not w.sum() > 0:
        raise InputError(f"weights of atoms are {n} finite numbers, not below 0 and not all 0; got shape {w.shape}")
    return w / w.sum()


@dataclass(frozen=True, eq=False)
class Fit:
    """A superposition of some atoms on a reference with the least weighted square deviation, never mirrored."""

    atoms: np.ndarray
    """Indices of the fitted atoms in a frame; none: frames stay where they are."""
    shares: np.ndarray
    """Their weights, which add up to 1."""
    reference: np.ndarray
    """(fitted, 3), about its centre."""
    centre: np.ndarray
    """(3,), the centre of the reference."""

    @classmethod
    def onto(cls, reference: Any, atoms: Any = None, weights: Any = None) -> Self:
        """On positions (fitted, 3) of the atoms with these indices (the first ones by default)."""
        reference = np.asarray(reference, np.float64)
        if reference.ndim != 2 or reference.shape[1] != 3 or not len(reference):
            raise InputError(f"a reference is positions of shape (atoms, 3), one at the least; got {reference.shape}")
        if not np.isfinite(reference).all():
            raise InputError("the reference holds NaN or infinity; choose a frame that is whole")
        indices = np.arange(len(reference)) if atoms is None else np.asarray(atoms, np.int64)
        if len(indices) != len(reference):
            raise InputError(f"{len(indices)} atoms cannot be fitted on a reference of {len(reference)}")
        shares = shares_of(weights, len(reference))
        centre = shares @ reference
        return cls(indices, shares, np.ascontiguousarray(reference - centre), centre)

    @classmethod
    def none(cls) -> Self:
        """No superposition."""
        return cls(NONE, np.zeros(0), np.zeros((0, 3)), np.zeros(3))

    @cached_property
    def spread(self) -> float:
        """Weighted mean square distance of the reference from its centre."""
        return float(self.shares @ (self.reference**2).sum(1))

    @cached_property
    def settings(self) -> tuple[Any, ...]:
        """As the kernels take it: atoms, their weights, reference (3, fitted), its spread."""
        return self.atoms, self.shares, columns(self.reference), self.spread

    def same(self, atoms: np.ndarray) -> bool:
        """Whether these are the fitted atoms, which then are gathered once a frame."""
        return np.array_equal(self.atoms, atoms)

    def moved(self, positions: Array, atoms: np.ndarray, origin: np.ndarray | None = None,
              dtype: Any = np.float64) -> np.ndarray:
        """Positions of `atoms` in each frame (n, atoms, 3) after the superposition, less `origin`: (n, m, 3)."""
        from ensemblekit.md.kernels_superpose import moved

        rows = frames_of(positions)
        out = np.empty((rows.n, 3 * len(atoms)), dtype)
        start = np.zeros((3, len(atoms))) if origin is None else columns(origin)
        moved(*rows, self.same(atoms), *self.settings, self.centre, atoms, start, out)
        return out.reshape(rows.n, len(atoms), 3)

    def rmsd(self, positions: Array) -> np.ndarray:
        """Of the fitted atoms, (n,)."""
        from ensemblekit.md.kernels_superpose import rmsd

        rows = frames_of(positions)
        out = np.empty(rows.n)
        rmsd(*rows, *self.settings, out)
        return out

    def carried_rmsd(self, positions: Array, atoms: np.ndarray, shares: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Of other atoms, which go along, from target (m, 3); (n,)."""
        from ensemblekit.md.kernels_superpose import carried_rmsd

        rows = frames_of(positions)
        out = np.empty(rows.n)
        carried_rmsd(*rows, self.same(atoms), *self.settings, self.centre, atoms, shares, columns(target), out)
        return out

    def squared_deviations(self, positions: Array, atoms: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """Of each of `atoms` from mean (m, 3); (n, m)."""
        from ensemblekit.md.kernels_superpose import squared_deviations

        rows = frames_of(positions)
        out = np.empty((rows.n, len(atoms)))
        squared_deviations(*rows, self.same(atoms), *self.settings, self.centre, atoms, columns(mean), out)
        return out


def superposed(frames: np.ndarray, reference: np.ndarray, weights: Any = None) -> np.ndarray:
    """Frames moved and turned onto a reference with the least (weighted) square deviation.

    frames: (n, atoms, 3), of which the first len(reference) atoms are fitted and the others go along; reference:
    (fitted, 3); weights: (fitted,) of the atoms, such as masses; returns (n, atoms, 3) float64, never mirrored.
    Where more than one rotation is best (two atoms, a straight line) it is the smallest of them.
    """
    frames = np.asarray(frames)
    return Fit.onto(reference, weights=weights).moved(frames, np.arange(frames.shape[1]))


def rmsd(frames: Any, reference: Any, weights: Any = None) -> np.ndarray:
    """Root mean square deviation of frames (n, atoms, 3) from a reference (atoms, 3) after superposition; (n,).

    weights: (atoms,), such as masses. Theobald's quaternion method, float64 throughout.
    """
    frames = np.asarray(frames)
    if frames.ndim != 3 or frames.shape[1:] != np.shape(reference):
        raise InputError(f"frames (n, atoms, 3) and a reference (atoms, 3) of the same atoms are wanted; got "
                         f"{frames.shape} and {np.shape(reference)}")
    return Fit.onto(reference, weights=weights).rmsd(frames)


def rmsd_matrix(a: Any, b: Any = None) -> np.ndarray:
    """RMSD after superposition of every frame of a (n, atoms, 3) from every frame of b (k, atoms, 3), or of a: (n, k)."""
    from ensemblekit.md.kernels_superpose import rmsd_against

    def centred(x: Any) -> np.ndarray:
        x = np.asarray(x, np.float64)
        if x.ndim != 3 or x.shape[2] != 3 or not x.shape[1]:
            raise InputError(f"frames are (n, atoms, 3); got shape {x.shape}")
        return np.ascontiguousarray((x - x.mean(1, keepdims=True)).swapaxes(1, 2))

    first = centred(a)
    second = first if b is None else centred(b)
    if first.shape[2] != second.shape[2]:
        raise InputError(f"the two sets differ in their atoms: {first.shape[2]} and {second.shape[2]}")
    out = np.empty((len(first), len(second)))
    rmsd_against(first, second, (first**2).sum(1).mean(1), (second**2).sum(1).mean(1), out)
    if b is None:
        np.fill_diagonal(out, 0.0)
    return out


class MovedMean:
    """Weighted mean position of some atoms after a superposition; a reducer of positions. Merges in any order."""

    cuts = TIME

    def __init__(self, fit: Fit, atoms: np.ndarray, origin: np.ndarray):
        self.fit, self.atoms, self.origin = fit, atoms, origin
        self.n, self.weight = 0, 0.0
        self.total = np.zeros((3, len(atoms)))
        """Σ w (x - origin): small numbers, as the origin is close to the mean."""

    def empty(self) -> Self:
        return type(self)(self.fit, self.atoms, self.origin)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        from ensemblekit.md.kernels_superpose import add_moved

        if len(values) == 0:
            return
        same_item((values.shape[1], 3), values, "MovedMean")
        rows = frames_of(values)
        w = np.zeros(0) if weights is None else np.ascontiguousarray(weights, np.float64)
        add_moved(*rows, w, self.fit.same(self.atoms), *self.fit.settings, self.fit.centre, self.atoms,
                  columns(self.origin), self.total)
        self.n += rows.n
        self.weight += float(rows.n if weights is None else w.sum())

    def merge(self, later: Self) -> None:
        self.n, self.weight, self.total = self.n + later.n, self.weight + later.weight, self.total + later.total

    def beside(self, right: Self) -> None:
        raise NotImplementedError("MovedMean is not cut in space")

    def shaped(self, item: tuple[int, ...]) -> None:
        pass

    def result(self) -> tuple[np.ndarray, float]:
        """The mean (m, 3) and the sum of weights.

        Raises StatisticsError where no frame, or none with a weight above 0, was seen.
        """
        if not self.weight > 0:
            raise StatisticsError("no frames" if self.n == 0 else f"all weights of {self.n} frames are 0")
        return self.origin + (self.total / self.weight).T, self.weight

    def state(self) -> dict[str, Array]:
        return {"n": np.array(self.n), "weight": np.array(self.weight), "total": self.total.copy()}

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new.n, new.weight, new.total = int(state["n"]), float(state["weight"]), np.array(state["total"])
        return new


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeanStructure:
    """The mean of the frames of a trajectory after each was superposed on (nearly) that mean."""

    mean: np.ndarray
    """(m, 3), of the atoms asked for, in angstrom."""
    fitted: np.ndarray
    """(fitted, 3), of the atoms that were superposed."""
    fit: Fit = field(repr=False)
    """The superposition on `fitted`."""
    rounds: int
    """Reads of the trajectory it took."""
    shift: float
    """RMSD between the last two structures of the fitted atoms; in angstrom."""


def mean_structure(source: SnapshotSource, atoms: np.ndarray, fitted: np.ndarray, start: np.ndarray, *,
                   weights: Any = None, rounds: int | None = None, engine: Engine | None = None) -> MeanStructure:
    """The weighted mean structure, out of core: every round reads the trajectory once and superposes on the last mean.

    Arguments:
        source: frames with a field "position"; statistical weights of frames count.
        atoms: indices of the atoms whose mean is wanted.
        fitted: indices of the atoms that are superposed.
        start: (fitted, 3), the structure of the first superposition.
        weights: (fitted,) of the atoms, such as masses; None: all alike.
        rounds: how many; None: until the structure settles to 1e-6 angstrom (at most 50).
    """
    alike = np.array_equal(fitted, atoms)
    both = fitted if alike else np.concatenate([fitted, atoms])
    fit = Fit.onto(start, fitted, weights) if len(fitted) else Fit.none()
    mean = np.repeat(fit.centre[None], len(both), 0)
    done, shift = 0, np.inf
    while done < (MOST_ROUNDS if rounds is None and len(fitted) else rounds or 1):
        found = reduce(source, {"mean": ("position", MovedMean(fit, both, mean))}, engine=engine)["mean"]
        mean = _over_runs(found, source)
        if not np.isfinite(mean).all():
            raise StatisticsError("some frames hold coordinates that are not finite, so there is no mean structure; "
                                  "leave those frames out")
        done += 1
        if len(fitted):
            last, fit = fit, Fit.onto(mean[:len(fitted)], fitted, weights)
            shift = float(Fit.onto(last.reference, weights=weights).rmsd(fit.reference[None])[0])
        if rounds is None and shift < SETTLED:
            break
    return MeanStructure(mean=mean if alike else mean[len(fitted):], fitted=mean[:len(fitted)], fit=fit, rounds=done,
                         shift=shift)


def _over_runs(found: Any, source: SnapshotSource) -> np.ndarray:
    """The mean over all runs together, each run's by its weight."""
    if not isinstance(found, list):
        return found[0]
    weights = np.array([weight for _, weight in found])
    return sum(mean * share for (mean, _), share in zip(found, weights / weights.sum(), strict=True))
