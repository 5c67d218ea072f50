"""Rigid superposition of whole blocks of frames."""

from __future__ import annotations

import numpy as np


def superposed(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Frames moved and turned onto a reference with the least square deviation (Kabsch 1976, 1978).

    frames: (n, atoms, 3), of which the first len(reference) atoms are fitted and the others go along; reference:
    (fitted, 3); returns (n, atoms, 3) float64, never mirrored.
    """
    fitted = len(reference)
    centre = reference.mean(0, dtype=np.float64)
    moved = frames - frames[:, :fitted].mean(1, keepdims=True, dtype=np.float64)
    covariance = np.swapaxes(moved[:, :fitted], 1, 2) @ (reference - centre)
    u, _, vt = np.linalg.svd(covariance)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    return moved @ (u @ vt) + centre
