"""A second read in order of time: coefficients by projection, and what they leave of every snapshot and field."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.averaging.run import reduce
from ensemblekit.averaging.series import Series
from ensemblekit.rom.basis import Basis
from ensemblekit.source import Block

if TYPE_CHECKING:
    from ensemblekit.rom.pod import Job

COLUMNS = 1 << 15


@dataclass(frozen=True, eq=False)
class Against:
    """The map from a block to (n, fields, k + 1): coefficients that each field adds, and its energy."""

    keys: tuple[str, ...]
    means: tuple[np.ndarray, ...]
    factors: tuple[np.ndarray | None, ...]
    modes: tuple[np.ndarray, ...]
    """(k, size) each, in the inner product's roots."""

    def __call__(self, block: Block) -> np.ndarray:
        k = len(self.modes[0])
        found = np.zeros((len(block), len(self.keys), k + 1), np.result_type(self.modes[0].dtype, np.float64))
        for at, key in enumerate(self.keys):
            values = np.asarray(block.fields[key]).reshape(len(block), -1)
            for a in range(0, values.shape[1], COLUMNS):
                cut = slice(a, a + COLUMNS)
                part = values[:, cut] - self.means[at][cut]
                factors = self.factors[at]
                if factors is not None:
                    part = np.where(factors[cut] > 0, part * factors[cut], 0)
                found[:, at, :k] += part @ self.modes[at][:, cut].conj().T
                found[:, at, k] += np.square(np.abs(part)).sum(1)
        return found


def projected_again(job: Job, basis: Basis) -> Basis:
    """The same modes with the coefficients that suit them best, and errors known for each snapshot and field."""
    from ensemblekit.rom.problem import Part

    parts = [replace(part, scale=float(basis.scale.get(part.name, 1.0)), mask=None if own.mask is None else own.mask.ravel())
             for part, own in zip(job.problem.parts, basis.parts(), strict=True)]

    def rooted(part: Part, modes: np.ndarray) -> np.ndarray:
        factors = part.factors
        flat = modes.reshape(len(modes), -1)
        return flat if factors is None else (flat * factors).astype(flat.dtype)

    modes = tuple(rooted(part, own.modes) for part, own in zip(parts, basis.parts(), strict=True))
    means = tuple(own.mean.ravel() for own in basis.parts())
    work = Against(tuple(part.key for part in parts), means, tuple(part.factors for part in parts), modes)
    found = reduce(parts[0].source, {"c": (work, Series())}, fields=[part.key for part in parts], engine=job.engine,
                   limit=job.plan.limit, progress=job.progress)["c"]
    k = basis.rank
    coefficients = found[:, :, :k].sum(1)
    energies = found[:, :, k].real
    roots = np.ones(len(found)) if basis.weights is None else np.sqrt(basis.weights)
    c = roots[:, None] * coefficients
    # within the modes' span, the principal axes of the coefficients
    _, sigma, turn = np.linalg.svd(c, full_matrices=False)
    total = float((energies.sum(1) * roots**2).sum())
    errors = {}
    for at, part in enumerate(parts):
        own = float((energies[:, at] * roots**2).sum())
        gram = modes[at] @ modes[at].conj().T
        kept = 2 * np.sum(c.conj() * (roots[:, None] * found[:, at, :k])).real - np.sum(gram.T * (c.conj().T @ c)).real
        errors[part.name] = math.sqrt(max(own - float(kept), 0) / own) if own > 0 else 0.0
    left = np.clip(energies.sum(1) - (np.abs(coefficients) ** 2).sum(1), 0, None)
    flat = basis.modes.reshape(k, -1)
    for a in range(0, flat.shape[1], COLUMNS):
        flat[:, a:a + COLUMNS] = (turn @ flat[:, a:a + COLUMNS]).astype(flat.dtype)
    coefficients = coefficients @ turn.conj().T
    for j in range(k):
        largest = flat[j, np.abs(flat[j]).argmax()] if len(parts) == 1 else flat[j, _largest(parts, flat[j])]
        phase = largest / abs(largest)
        if phase != 1:
            flat[j] *= np.conj(phase)
            coefficients[:, j] *= phase
    residual = max(total - float((sigma**2).sum()), 0.0)
    if len(parts) == 1:
        errors = {parts[0].name: math.sqrt(residual / total)}
    spectrum = basis.spectrum
    if spectrum is not None:
        spectrum = np.concatenate([sigma, spectrum[k:]])
    return replace(basis, coefficients=coefficients, singular_values=sigma, total_energy=total, residual=residual,
                   error_per_snapshot=np.sqrt(left / (total / len(found))), error_per_field=errors, spectrum=spectrum, passes=2,
                   fields={part.name: part.field for part in parts},
                   times=basis.times if job.problem.times is None else job.problem.times,
                   time_unit=job.problem.time_unit, mesh=job.problem.mesh)


def _largest(parts: list, row: np.ndarray) -> int:
    """Where a joint mode is largest once every field is divided by its scale."""
    scales = np.concatenate([np.full(part.field.size, part.scale) for part in parts])
    return int((np.abs(row) / scales).argmax())
