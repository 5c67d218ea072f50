"""How units are printed, and Student's t: what the results of averages share."""

from __future__ import annotations

from typing import Any

import numpy as np

SIGNS = {"Angstrom": "Å", "Angstrom2": "Å²", "Angstrom3": "Å³", "Angstrom-3": "Å⁻³", "degree": "°"}
"""How units of H5MD's notation are printed where they have a sign of their own."""


def printed(unit: str) -> str:
    """A unit as people write it: "e Angstrom" is "e Å"."""
    return " ".join(SIGNS.get(part, part) for part in unit.split(" "))


def student_interval(mean: Any, stderr: Any, dof: Any, confidence: float) -> tuple[Any, Any]:
    """mean ± t(dof) stderr, two-sided; (low, high)."""
    half = quantile(confidence, dof) * np.asarray(stderr)
    return _scalar(mean - half), _scalar(mean + half)


def quantile(confidence: float, dof: Any) -> Any:
    """Student's t for a two-sided interval; a Gaussian's where dof is infinite."""
    from scipy.special import ndtri, stdtrit

    p = 0.5 + confidence / 2
    dof = np.asarray(dof, dtype=float)
    return np.where(np.isinf(dof), ndtri(p), stdtrit(np.where(np.isinf(dof), 1.0, dof), p))


def _scalar(x: Any) -> Any:
    return float(x) if np.ndim(x) == 0 else np.asarray(x)
