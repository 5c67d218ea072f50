"""Essential dynamics: principal components of the motion of atoms about their mean structure."""

from __future__ import annotations

import os
import tempfile
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.covariance import Covariance
from ensemblekit.averaging.gram import Gram
from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.engine import Engine
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.md.observables.base import Measurement, OfMean, SameAtoms
from ensemblekit.md.observables.groups import residues_of
from ensemblekit.md.observables.rmsf import fitted_mean, moved_atoms, several
from ensemblekit.md.superpose import Fit
from ensemblekit.md.system import Gather, System
from ensemblekit.results import Result
from ensemblekit.scaling import scaled
from ensemblekit.source import ArraySource, Block

LARGEST = 20_000
"""Side of the largest matrix that is decomposed: 3.2 GB, half an hour."""


@dataclass(frozen=True)
class PCA(SameAtoms):
    """Variances of the motion along its principal components, largest first; the share of each in the whole.

    Frames are superposed on the mean structure as in :class:`~ensemblekit.md.RMSF`, then the covariance of all
    coordinates is decomposed (Amadei, Linssen & Berendsen, Proteins 17, 412, 1993). The estimate is the share of each
    component in the total variance; further: `variances` in angstrom² (over n - 1, as MDAnalysis' PCA has it) and
    `cumulated` shares. Errors are those along the components found (first order). The components themselves, projections
    and cosine contents are those of :func:`ensemblekit.md.principal_components`.
    """

    select: str = "name CA"
    n_components: int = 10
    fit: str | Literal[False] | None = None
    """The atoms that are superposed; None: those of `select`; False: nothing is moved."""
    weights: str | None = None
    """Of the atoms in the superposition: None for all alike, or "mass"."""
    reference: Any = None
    """Where the first superposition goes: the first frame, or what md.RMSD takes."""
    rounds: int | None = 1
    """Mean structures made, each from the last; None: until it settles."""
    _: KW_ONLY
    route: Literal["auto", "covariance", "gram"] = "auto"
    """Decompose the covariance of the coordinates, or (fewer frames than coordinates) the inner products of the frames."""

    def prepare(self, system: System) -> Measurement:
        gather, pca = decompose(system, self)
        scale = 1.0 if pca.n_eff <= 1 else 1 / (1 - 1 / pca.n_eff)
        number = {"component": (np.arange(1, len(pca.variances) + 1), "")}
        common = several(system)
        return Measurement(partial(_along, gather, pca), {
            "": OfMean(partial(_shares, common), "", number, bounds=(0.0, 1.0)),
            "variances": OfMean(partial(_variances, scale, common), "Angstrom2", number, bounds=(0.0, None)),
            "cumulated": OfMean(partial(_cumulated, common), "", number, bounds=(0.0, 1.0))},
            note="the mean structure with its components")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrincipalComponents(Result):
    """The motion of atoms about their mean structure, along directions that do not correlate."""

    variances: np.ndarray
    """(k,), largest first, in angstrom²; over n - 1 (weights: Kish's)."""
    components: np.ndarray
    """(k, atoms, 3), of length 1, signed so that the largest number of each is positive."""
    mean: np.ndarray
    """(atoms, 3), the mean structure, in angstrom."""
    total: float
    """Variance of all components together, in angstrom²."""
    n: int
    """Frames."""
    n_eff: float
    """Kish's (Σw)² / Σw²."""
    atoms: np.ndarray
    """Indices of the atoms in the trajectory."""
    residues: np.ndarray
    """Their residue numbers."""
    route: str
    """"covariance" or "gram"."""
    fit: Fit = field(repr=False)
    same: bool = field(repr=False)
    settings: PCA = field(repr=False)

    @property
    def shares(self) -> np.ndarray:
        """Of each component in the total variance, (k,)."""
        return self.variances / self.total

    def project(self, source: object, *, engine: Engine | None = None) -> np.ndarray:
        """Where each frame of a trajectory of the same atoms lies along the components: (n, k), in angstrom.

        Runs come one after the other.
        """
        system = system_of(source, engine)
        fit = self.settings.fit
        fitted = (np.zeros(0, np.int64) if fit is False else
                  system.select(self.settings.select if fit is None else fit))
        if len(system.topology) <= int(self.atoms.max()) or len(fitted) != len(self.fit):
            raise InputError("this trajectory has other atoms than those the components were made of")
        gather = system.assembled(self.atoms if self.same else np.concatenate([fitted, self.atoms]))
        return system.reduce({"p": (partial(projections, gather, self), Series())}, "projections")["p"]

    def overlap(self, other: PrincipalComponents, n: int = 10) -> float:
        """Root mean square inner product of the first n components of two sets, 0 to 1 (Amadei, Ceruso & Di Nola 1999)."""
        n = min(n, len(self.components), len(other.components))
        a, b = self.components[:n].reshape(n, -1), other.components[:n].reshape(n, -1)
        if a.shape != b.shape:
            raise InputError(f"the two sets are of {a.shape[1] // 3} and {b.shape[1] // 3} atoms")
        return float(np.sqrt((np.square(a @ b.T)).sum() / n))


def principal_components(source: object, select: str = "name CA", *, n_components: int = 10,
                         fit: str | Literal[False] | None = None, weights: str | None = None, reference: object = None,
                         rounds: int | None = 1, route: Literal["auto", "covariance", "gram"] = "auto",
                         engine: Engine | None = None) -> PrincipalComponents:
    """Principal components of the motion of atoms, out of core; the settings are those of :class:`PCA`.

    source: as md.average takes it. Runs (replicas) count as one sample.
    """
    settings = PCA(select, n_components, fit, weights, reference, rounds, route=route)
    return decompose(system_of(source, engine), settings)[1]


def cosine_content(projections: ArrayLike, component: int = 0) -> float:
    """How much a projection (n,) or (n, k) looks like half a cosine period a component: 1 for pure diffusion, 0 for none.

    Near 1 the motion along the first components is not sampled (Hess, Phys. Rev. E 65, 031910, 2002).
    component: counted from 0.
    """
    p = as_array(projections, "projections", kinds="biuf", dtype=np.float64)
    p, _ = scaled(p if p.ndim == 1 else p[:, component])
    if len(p) < 2 or not (p**2).sum() > 0:
        raise InputError("a cosine content needs a projection that moves, of 2 frames or more")
    wave = np.cos(np.pi * (component + 1) * (np.arange(len(p)) + 0.5) / len(p))
    return float(2 * (wave @ p) ** 2 / (len(p) * (p @ p)))


def system_of(source: object, engine: Engine | None) -> System:
    """A System for functions that are no part of md.average."""
    from ensemblekit.md.frames import as_frames, topology_of

    frames = as_frames(source)
    return System(frames, topology_of(frames), engine)


def decompose(system: System, settings: PCA) -> tuple[Gather, PrincipalComponents]:
    """The components for these settings, and what gathers the atoms for their projections."""
    wanted = settings.n_components
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer) or wanted < 1:
        raise InputError(f"n_components is a whole number above 0; got {wanted!r}")
    if settings.route not in ("auto", "covariance", "gram"):
        raise InputError(f'route is "auto", "covariance" or "gram"; got {settings.route!r}')
    atoms = system.select(settings.select)
    gather, structure, same = fitted_mean(system, atoms, settings.select, settings.fit, settings.weights, settings.reference,
                                          rounds=settings.rounds, why="PCA")
    p, n = 3 * len(atoms), system.n_frames
    route = settings.route if settings.route != "auto" else "gram" if n < p else "covariance"
    side = p if route == "covariance" else n
    if side > LARGEST:
        raise InputError(f"PCA would decompose a matrix of {side} x {side}; the most is {LARGEST}. Choose fewer atoms or "
                         "fewer frames")
    move = partial(moved_atoms, gather, structure.fit, same, structure.mean)
    if route == "covariance":
        values, vectors, mean, total, n_eff = _by_covariance(system, move, int(wanted))
    else:
        values, vectors, mean, total, n_eff = _by_gram(system, move, p, int(wanted))
    k = min(int(wanted), len(values))
    values, vectors = np.clip(values[:k], 0, None), vectors[:k]
    vectors = vectors * np.sign(vectors[np.arange(k), np.abs(vectors).argmax(1)])[:, None]
    vectors = np.ascontiguousarray(vectors)     # products with it give the same bits wherever it is sent
    which, resids = residues_of(system, atoms)
    return gather, PrincipalComponents(
        variances=values, components=vectors.reshape(k, -1, 3), mean=structure.mean + mean.reshape(-1, 3), total=total, n=n,
        n_eff=n_eff, atoms=atoms, residues=resids[which], route=route, fit=structure.fit, same=same, settings=settings)


Parts = tuple[np.ndarray, np.ndarray, np.ndarray, float, float]


def _by_covariance(system: System, move: Any, k: int) -> Parts:
    moments = system.reduce({"covariance": (partial(_flat, move), Covariance())}, "covariance of PCA")["covariance"]
    if not np.isfinite(moments.covariance).all():
        raise InputError("PCA needs 2 frames or more, all of them finite")
    total = float(np.trace(moments.covariance))
    values, vectors = _largest_pairs(np.array(moments.covariance), k)
    return values, vectors.T, moments.mean, total, moments.n_eff


def _largest_pairs(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest eigenvalues of a symmetric matrix and their vectors (columns), largest first; the matrix is used up."""
    from scipy.linalg import eigh

    n = len(matrix)
    values, vectors = eigh(matrix.T, subset_by_index=(max(0, n - k), n - 1), overwrite_a=True, check_finite=False)
    return values[::-1], vectors[:, ::-1]


def _by_gram(system: System, move: Any, p: int, k: int) -> Parts:
    """By the inner products of the frames, which lie in a temporary file as deviations from the mean structure."""
    n = system.n_frames
    handle, path = tempfile.mkstemp(suffix=".ensemblekit-pca")
    os.close(handle)
    try:
        held = np.memmap(path, np.float32, "w+", shape=(n, p))
        weights = system.reduce({"weights": (partial(_written, move, path, (n, p)), Series())}, "frames of PCA")["weights"]
        w = weights / weights.sum()
        if not np.isfinite(w).all():
            raise InputError("PCA needs frames whose weights are not all 0, all of them finite")
        inner = reduce(ArraySource.of(held), Gram(), cut="space", engine=system.engine)
        if not np.isfinite(inner).all():
            raise InputError("PCA needs frames that are all finite")
        by_frame = inner @ w
        inner -= by_frame[None]         # in place from here on: there are hundreds of megabytes of it
        inner -= by_frame[:, None]
        inner += w @ by_frame
        root = np.sqrt(w)
        freedom = 1 - float(w @ w)
        if freedom <= 1e-12:
            raise InputError("PCA needs 2 frames or more")
        inner *= (root / freedom)[:, None]
        inner *= root[None]
        total = float(np.trace(inner))
        values, vectors = _largest_pairs(inner, k)
        rank = max(1, int((values > 1e-10 * max(values[0], 0)).sum()))
        rank = min(rank, 512)
        mean = np.zeros(p)
        modes = np.zeros((rank, p))
        step = max(1, (8 << 20) // (8 * p))
        for a in range(0, n, step):
            x = held[a:a + step].astype(np.float64)
            mean += w[a:a + step] @ x
            modes += (vectors[a:a + step, :rank] * root[a:a + step, None]).T @ x
        modes -= (vectors[:, :rank] * root[:, None]).sum(0)[:, None] * mean
        lengths = np.linalg.norm(modes, axis=1, keepdims=True)
        modes = np.divide(modes, lengths, out=np.zeros_like(modes), where=lengths > 0)
        return values[:rank], modes, mean, total, 1 / float(w @ w)
    finally:
        os.unlink(path)


def _flat(move: Any, block: Block) -> np.ndarray:
    return move(block).reshape(len(block), -1)


def _written(move: Any, path: str, shape: tuple[int, int], block: Block) -> np.ndarray:
    held = np.memmap(path, np.float32, "r+", shape=shape)
    held[block.start:block.start + len(block)] = _flat(move, block)
    return np.ones(len(block)) if block.weights is None else np.asarray(block.weights, np.float64)


def projections(gather: Gather, pca: PrincipalComponents, block: Block) -> np.ndarray:
    """(n, k) along the components."""
    x = moved_atoms(gather, pca.fit, pca.same, pca.mean, block).reshape(len(block), -1)
    return x @ pca.components.reshape(len(pca.variances), -1).T


def _along(gather: Gather, pca: PrincipalComponents, block: Block) -> np.ndarray:
    """Projections, their squares, and the square of the whole deviation: (n, 2 k + 1)."""
    x = moved_atoms(gather, pca.fit, pca.same, pca.mean, block).reshape(len(block), -1)
    along = x @ pca.components.reshape(len(pca.variances), -1).T
    return np.concatenate([along, along**2, np.einsum("ni,ni->n", x, x)[:, None]], axis=1)


def _spread(common: bool, mean: np.ndarray) -> tuple[np.ndarray, float]:
    """Variances along the components and in all; several runs (`common`) about the mean structure of all of them."""
    k = (len(mean) - 1) // 2
    own = np.zeros(k) if common else mean[:k] ** 2
    return mean[k:2 * k] - own, float(mean[-1] - own.sum())


def _shares(common: bool, mean: np.ndarray) -> np.ndarray:
    along, total = _spread(common, mean)
    return along / total


def _cumulated(common: bool, mean: np.ndarray) -> np.ndarray:
    return np.cumsum(_shares(common, mean))


def _variances(scale: float, common: bool, mean: np.ndarray) -> np.ndarray:
    return _spread(common, mean)[0] * scale
