"""Leading modes by block Krylov iteration: each step reads the snapshots once and multiplies each slab twice.

With A the centred snapshots (n, size) and Q a block of vectors over time, a slab gives C = Aᴴ Q (kept: what the modes
are made of) and A C (added up: the next block). After a step or more Rayleigh–Ritz over all blocks gives modes,
coefficients and residuals without another read (Musco & Musco 2015). The first block comes from a sample of the columns
(Frieze, Kannan & Vempala 2004), which mostly makes one step enough. Gaussian vectors beside it see what the sample missed:
where A Aᴴ does with them what the sample foretold, no direction of weight is left unseen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ensemblekit.rom.decompose.slabs import RowTransform, Tile, TileColumns, TileSums

FLOOR32, FLOOR64 = 1e-4, 4e-8
"""Singular values below this share of the first are not trusted, with arithmetic in float32 and float64: what is left out is
the difference of two sums, off by some 7 roundings of the whole."""
PROBES = 4
"""Gaussian vectors in the first block."""
SURE = 3.0
"""Times the root mean square over the probes: a symmetric matrix has a larger norm with a probability of 2 %."""
SUBSPACE_STEPS = 3
RUN = 16


@dataclass(frozen=True, eq=False)
class SampleWork:
    """Columns picked from a tile at random places: `share` of them, the same ones whatever the engine."""

    transform: RowTransform
    share: float
    seed: int

    def __call__(self, tile: Tile) -> tuple[TileSums, TileColumns]:
        columns = tile.values.shape[1]
        count = min(columns, max(1, round(columns * self.share)))
        # a cache line of float32 read for one number gives fifteen more for nothing
        rng = np.random.default_rng([self.seed, tile.at])
        runs = np.sort(rng.choice(-(-columns // RUN), -(-count // RUN), replace=False)) * RUN
        pieces = [slice(int(a), min(int(a) + RUN, columns)) for a in runs]
        picked = np.concatenate([np.arange(p.start, p.stop) for p in pieces])
        values = np.concatenate([tile.values[:, p] for p in pieces], axis=1)
        factors, shift = (None if x is None else x[tile.at + picked] for x in (self.transform.factors, self.transform.shift))
        some = replace(self.transform, factors=factors, shift=shift, width=len(picked))
        energy = np.zeros(len(tile))
        (slab,) = some.slabs(Tile(values, 0), energy)
        return {"energy": energy}, {"sample": slab.values}


@dataclass(frozen=True, eq=False)
class StepWork:
    """One step over a tile: C = Aᴴ Q kept, A C and the energy of each snapshot summed.

    Where slabs are not quite centred, Q being orthogonal to the mean's direction keeps C right, A C is put right by its
    mean over the snapshots, and the energies by one more column: the products with what the mean is off by.
    """

    transform: RowTransform
    block: np.ndarray
    """Q (n, l), times the roots of the statistical weights, in the type of the arithmetic."""

    def __call__(self, tile: Tile) -> tuple[TileSums, TileColumns]:
        n, width = self.block.shape
        energy, means, mean_offset = np.zeros(n), [], 0.0
        # one column more, for the energies
        block = np.hstack([self.block, np.zeros((n, 1), self.block.dtype)])
        products = np.empty((tile.values.shape[1], width + 1), self.transform.dtype)
        total = np.zeros((n, width + 1), np.result_type(self.transform.dtype, np.float64))
        for slab in self.transform.slabs(tile, energy):
            a = slab.start - tile.at
            part = products[a:a + slab.values.shape[1]]
            np.matmul(adjoint(slab.values), block, out=part)
            if slab.mean_offset is not None:
                part[:, width] = slab.mean_offset
                mean_offset += float(slab.mean_offset @ slab.mean_offset)
            total += slab.values @ part
            means.append(slab.mean)
        energy += mean_offset - 2 * total[:, width].real
        return ({"next": total[:, :width], "energy": energy, "mean_offset": np.array(mean_offset)},
                {"adjoint": products[:, :width], "mean": np.concatenate(means)})


@dataclass(frozen=True, eq=False)
class First:
    """The block to begin with."""

    block: np.ndarray
    """Q (n, width), orthonormal."""
    probes: int = 0
    """Its last columns, random among what is orthogonal to the others."""
    foretold: np.ndarray | None = None
    """(n, probes): A Aᴴ times the probes, as the sample has it; None without one."""

    def unseen(self, adjoint_products: np.ndarray, unit: np.ndarray | None) -> float:
        """A bound of the energy of any direction that neither the block nor the sample knows of, from A Aᴴ Q.

        ‖B g‖² is ‖B‖²_F on average for a Gaussian g, and above ‖B‖² g₁² always.
        """
        if self.foretold is None:
            return math.inf
        away = adjoint_products[:, len(self.block[0]) - self.probes:] - self.foretold
        for known in (self.block, *(() if unit is None else (unit[:, None],))):
            away = away - known @ (known.conj().T @ away)
        return SURE * math.sqrt(float(np.square(np.abs(away)).sum(0).mean()) * len(away))


def probes_in(width: int) -> int:
    """Gaussian vectors in a first block of that width."""
    return min(PROBES, max(1, width // 6))


def first_block(known: Callable[[np.ndarray], np.ndarray] | None, n: int, width: int, unit: np.ndarray | None,
                seed: int, dtype: np.dtype) -> First:
    """Leading vectors by subspace iteration with what is known of A Aᴴ, Gaussian ones beside them, orthogonal to `unit`.

    `known` multiplies a block (n, l) with A Aᴴ as a sample of its columns has it; None: all vectors are Gaussian.
    """
    rng = np.random.default_rng([seed, 1])
    start = rng.standard_normal((n, width))
    if dtype.kind == "c":
        start = start + 1j * rng.standard_normal((n, width))
    if known is None:
        return First(orthogonal(start, unit))
    probes = probes_in(width)
    q = orthogonal(start[:, probes:], unit)
    for _ in range(SUBSPACE_STEPS):
        q = orthogonal(known(q.astype(dtype)), unit)
    q = orthogonal(np.hstack([q, start[:, :probes]]), unit)
    foretold = known(q.astype(dtype))
    # rotate into the leading directions, so that every column of C has about its singular value as norm
    lead = slice(0, width - probes)
    small = q[:, lead].conj().T @ foretold[:, lead]
    _, vectors = np.linalg.eigh(small + small.conj().T)
    q[:, lead] = q[:, lead] @ vectors[:, ::-1]
    return First(q, probes, foretold[:, width - probes:])


def adjoint(a: np.ndarray) -> np.ndarray:
    """The conjugate transpose."""
    return a.T.conj() if a.dtype.kind == "c" else a.T       # the conjugate of real numbers would be a copy


def orthogonal(block: np.ndarray, unit: np.ndarray | None, against: np.ndarray | None = None) -> np.ndarray:
    """Orthonormal columns that span the block, less `unit` and `against`; twice is enough."""
    block = block.astype(np.result_type(block.dtype, np.float64))
    norms = np.linalg.norm(block, axis=0)
    block = block / np.where(norms > 0, norms, 1)
    for _ in range(2):
        if unit is not None:
            block = block - unit[:, None] * (unit @ block)
        if against is not None:
            block = block - against @ (against.conj().T @ block)
        block = np.linalg.qr(block)[0]
    return block


@dataclass(frozen=True, eq=False)
class Ritz:
    """What the blocks so far say."""

    values: np.ndarray
    """Ritz values of A Aᴴ, falling, (m,)."""
    mix: np.ndarray
    """(m, k): modes = mixᴴ Cᴴ over all blocks, orthonormal."""
    coefficients: np.ndarray
    """(n, k): A modesᴴ."""
    captured: float
    """Energy of the projection on the modes, ‖coefficients‖²."""
    vectors: np.ndarray
    """(m, k): the Ritz vectors in the blocks."""

    @property
    def sigma(self) -> np.ndarray:
        """(k,) singular values of the modes."""
        return np.linalg.norm(self.coefficients, axis=0)

    def least(self, rank: int) -> float:
        """The energy of the last mode."""
        return float(self.values[min(rank, len(self.values)) - 1])

    def gain(self, blocks: np.ndarray, adjoint_products: np.ndarray, width: int) -> float:
        """What another step would add to the energy captured: :func:`gain_of` the residuals of the Ritz vectors.

        The largest energy outside is taken to be the Ritz value at the end of the first block, of `width`.
        """
        theta = self.values[:self.vectors.shape[1]]
        residuals = adjoint_products @ self.vectors - (blocks @ self.vectors) * theta
        return gain_of(theta, np.square(np.abs(residuals)).sum(0), self.least(width))


def floor_of(dtype: np.dtype) -> float:
    """Singular values below this share of the first are not trusted, by the arithmetic."""
    return FLOOR32 if dtype in (np.float32, np.complex64) else FLOOR64


def below_floor(sigma: np.ndarray, rank: int, left: float, total: float, dtype: np.dtype) -> bool:
    """Whether modes or the energy left out lie below what the arithmetic tells from rounding."""
    least = 1e-5 if dtype in (np.float32, np.complex64) else 1e-12
    return len(sigma) < rank or sigma[-1] < floor_of(dtype) * sigma[0] or left < least * total


def gain_of(theta: np.ndarray, squares: np.ndarray, mu: float) -> float:
    """What another step would add to the energy captured, from the squared norms |r|² of the residuals of Ritz vectors.

    To second order a direction outside of energy mu adds |r|² / (theta - mu), of which the projection on the modes has
    |r|² / theta already.
    """
    mu = min(mu, 0.9 * float(theta[-1]))
    return float((squares * mu / (theta * (theta - mu))).sum())


def ritz(products: np.ndarray, adjoint_products: np.ndarray, rank: int) -> Ritz:
    """Rayleigh–Ritz from Cᴴ C (m, m) and A C (n, m) of all blocks."""
    values, vectors = np.linalg.eigh(products)
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    k = min(rank, int(np.count_nonzero(values > 1e-28 * values[0])) or 1)
    mix = vectors[:, :k] / np.sqrt(np.maximum(values[:k], 1e-300))
    coefficients = adjoint_products @ mix
    # the modes span what they should; within it the coefficients' own principal axes are a hair better
    _, sigma, turn = np.linalg.svd(coefficients, full_matrices=False)
    return Ritz(values, mix @ turn.conj().T, coefficients @ turn.conj().T, float((sigma**2).sum()), vectors[:, :k])


def block_width(rank: int, oversampling: int, n: int, once: bool) -> int:
    """Vectors a block: where one is to be enough, half as many again as modes, and with the one for the mean a multiple of
    what products do best; where there are several, the space has as many times more, so that a few more are plenty."""
    if once:
        block = -(-(rank + max(oversampling, rank // 2) + 1) // 16) * 16 - 1
    else:
        block = -(-max(rank + max(4, rank // 5), (rank + oversampling + 1) // 2) // 8) * 8
    return int(min(block, max(n - 1, 1)))
