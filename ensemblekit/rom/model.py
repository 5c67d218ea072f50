"""What every reduced model can do, whatever it was made from."""

from __future__ import annotations

import os
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.rom.basis import Basis
from ensemblekit.rom.eigenvalues import Eigenvalues, Stability
from ensemblekit.rom.model_error import ModelError
from ensemblekit.rom.trajectory import Forecast, Trajectory


@runtime_checkable
class Model(Protocol):
    """A model of the coefficients of a basis (or of states of its own): runs, forecasts, errors, stability, files."""

    @property
    def basis(self) -> Basis | None: ...
    @property
    def period(self) -> float | None:
        """Of a discrete model, in `time_unit`; None: continuous."""

    @property
    def time_unit(self) -> str: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    def simulate(self, x0: Any, times: ArrayLike, inputs: Any = None, *, method: Any = "auto") -> Trajectory:
        """A run from a state, a snapshot, or a batch of them."""

    def predict(self, times: ArrayLike | int, inputs: Any = None, *, confidence: float = 0.95, n_resamples: int = 200,
                rng: np.random.Generator | int = 0) -> Forecast:
        """A run from the last training state on, with a band."""

    def error_against(self, source: Any, *, start: int = 0, horizon: int | None = None, inputs: Any = None) -> ModelError:
        """Errors of a run against snapshots."""

    @property
    def stability(self) -> Stability: ...
    @property
    def stable(self) -> bool: ...
    @property
    def eigenvalues(self) -> Eigenvalues: ...
    def save(self, path: str | os.PathLike[str]) -> str:
        """One HDF5 file that `rom.load` opens."""
