"""R of the QR factorisation of all snapshots, slab under slab: singular values down to the rounding of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.rom.slabs import Recipe, Tile

FLOOR = 1e-14
"""Singular values below this share of the first are rounding: some eps of float64."""


@dataclass(frozen=True, eq=False)
class TsqrWork:
    """R (n, n) with Aᴴ = Q R of a tile (Demmel et al. 2012)."""

    recipe: Recipe
    roots: np.ndarray | None
    """(n,) square roots of the statistical weights; None: 1."""

    def __call__(self, tile: Tile) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        energy, means = np.zeros(len(tile)), []
        r: Any = np.zeros((0, len(tile)), self.recipe.dtype)
        for slab in self.recipe.slabs(tile, energy):
            rows = slab.values if self.roots is None else slab.values * self.roots[:, None]
            r = np.linalg.qr(np.concatenate([r, rows.conj().T]), mode="r")
            means.append(slab.mean)
        return {"r": r, "energy": energy}, {"mean": np.concatenate(means)}


def under(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """R of two neighbouring tiles."""
    return {"r": np.linalg.qr(np.concatenate([left["r"], right["r"]]), mode="r"), "energy": left["energy"] + right["energy"]}
