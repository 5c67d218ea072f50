"""Several functions of a few parameters from their values at samples: Gaussian processes, radial basis functions, piecewise
linear."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.gaussian_process import GaussianProcess

Method = Literal["gp", "rbf", "linear"]
METHODS: tuple[Method, ...] = ("gp", "rbf", "linear")
KERNELS = {"gp": ("matern52",), "linear": ("barycentric",),
           "rbf": ("thin_plate_spline", "linear", "cubic", "quintic", "gaussian", "multiquadric", "inverse_multiquadric",
                   "inverse_quadratic")}
"""Kernels of each method, the one of "auto" first."""
SHAPED = ("gaussian", "multiquadric", "inverse_multiquadric", "inverse_quadratic")
"""Kernels that have a length: that of the usual distance between neighbours."""


@dataclass(frozen=True, slots=True, eq=False)
class Interpolation:
    """Functions (r) of parameters (p), fitted to samples; points are in units of the samples' spread."""

    method: Method
    kernel: str
    x: np.ndarray
    """(n, p)."""
    y: np.ndarray
    """(n, r)."""
    processes: tuple[GaussianProcess, ...] = ()
    """Of "gp", one a function."""

    @classmethod
    def fitted(cls, method: Method, kernel: str, x: np.ndarray, y: np.ndarray, *, near: Interpolation | None = None,
               rng: int = 0) -> Interpolation:
        """To samples; `near` holds the kernel parameters that a search starts from, among others."""
        if method != "gp":
            return cls(method, kernel, x, y)
        starts = near.processes if near is not None else (None,) * y.shape[1]
        held = tuple(GaussianProcess.fitted(x, y[:, k], near=starts[k], rng=rng + k) for k in range(y.shape[1]))
        return cls(method, kernel, x, y, held)

    def predicted(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Values (m, r) at points (m, p), and their standard deviations where the method knows any."""
        if self.method == "gp":
            parts = [process.predicted(at) for process in self.processes]
            return np.stack([mean for mean, _ in parts], axis=1), np.stack([sd for _, sd in parts], axis=1)
        if self.method == "rbf":
            from scipy.interpolate import RBFInterpolator

            shape = 1 / typical_distance(self.x) if self.kernel in SHAPED else 1.0
            return RBFInterpolator(self.x, self.y, kernel=self.kernel, epsilon=shape)(at), None
        return self._linear(at), None

    def _linear(self, at: np.ndarray) -> np.ndarray:
        """Barycentric within the samples; beyond them the value of the nearest."""
        if self.x.shape[1] == 1:
            order = np.argsort(self.x[:, 0])
            return np.stack([np.interp(at[:, 0], self.x[order, 0], column[order]) for column in self.y.T], axis=1)
        from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
        from scipy.spatial import QhullError

        nearest = NearestNDInterpolator(self.x, self.y)(at)
        try:
            inside = LinearNDInterpolator(self.x, self.y)(at)
        except QhullError:      # samples on a line: there are no triangles
            return nearest
        return np.where(np.isfinite(inside), inside, nearest)

    def with_values(self, x: np.ndarray, y: np.ndarray) -> Interpolation:
        """Other samples with the same kernel parameters."""
        held = tuple(process.with_values(x, y[:, k]) for k, process in enumerate(self.processes))
        return replace(self, x=x, y=y, processes=held)


def checked_kernel(method: str, kernel: str) -> str:
    """The kernel to take, "auto" resolved. Raises InputError for one that there is none of."""
    names = KERNELS[method]
    if kernel == "auto":
        return names[0]
    if kernel not in names:
        raise InputError(f'the kernels of method="{method}" are {", ".join(map(repr, names))}; got {kernel!r}')
    return kernel


def typical_distance(x: np.ndarray) -> float:
    """The median distance of a sample from its nearest neighbour."""
    apart = np.sqrt(((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2))
    np.fill_diagonal(apart, np.inf)
    return float(np.median(apart.min(axis=1)))
