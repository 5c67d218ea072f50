"""What a model says of times to come: a trajectory of coefficients, and a forecast with its band."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.results import Result
from ensemblekit.rom.basis import Basis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory(Result):
    """A run of a model: its coefficients at the times asked for, or up to where it diverged."""

    FIGURE = "dynamics.trajectory"

    times: np.ndarray
    """(n,), in `time_unit`; fewer than were asked for where the run diverged."""
    coefficients: np.ndarray
    """(n, k), or (n, m, k) of a batch."""
    inputs: np.ndarray | None = None
    """(n, inputs), where the model has any."""
    outputs: np.ndarray | None = None
    """(n, outputs) or (n, m, outputs), where the model has any."""
    diverged_at: float | None = None
    """When it left a thousand times the range of its training (the first of a batch did); None: it did not."""
    diverged: np.ndarray | None = None
    """(d,): members of a batch that did so by `diverged_at`, or (0,) where it is a single run that did."""
    basis: Basis | None = dataclasses.field(default=None, repr=False)
    time_unit: str = ""

    @property
    def n(self) -> int:
        return len(self.times)

    def fields(self, which: int | slice = slice(None)) -> Any:
        """Snapshots rebuilt from the modes, when they are asked for: as :meth:`Basis.reconstruct` gives them.

        Of a run (n, *item), of a batch (n, m, *item); a mapping of field to array where the basis holds several.
        """
        if self.basis is None:
            raise InputError("this model has no basis, its states are no fields: .coefficients holds them")
        wanted = self.coefficients[which]
        rebuilt = self.basis.reconstruct(wanted.reshape(-1, wanted.shape[-1]))
        if isinstance(rebuilt, dict):
            return {name: x.reshape(*wanted.shape[:-1], *x.shape[1:]) for name, x in rebuilt.items()}
        return rebuilt.reshape(*wanted.shape[:-1], *rebuilt.shape[1:])

    def export(self, path: str | os.PathLike[str], **options: Any) -> str:
        """Write the rebuilt snapshots for ParaView, as :func:`rom.export` writes a reconstruction; returns the path."""
        from ensemblekit.rom.export import export

        if self.basis is None or self.coefficients.ndim != 2:
            raise InputError("a run on a basis can be exported; this one "
                             + ("has no basis" if self.basis is None else "is a batch: simulate its members one by one"))
        shown = dataclasses.replace(self.basis, coefficients=self.coefficients, times=self.times, weights=None,
                                    error_per_snapshot=None)
        return export(shown, path, what="reconstruction", **options)

    def _facts(self) -> dict[str, object]:
        return {"times": self.times, "coefficients": self.coefficients, "inputs": self.inputs, "outputs": self.outputs,
                "diverged_at": self.diverged_at, "time_unit": self.time_unit}

    def __str__(self) -> str:
        unit = f" {self.time_unit}" if self.time_unit else ""
        many = f" of {self.coefficients.shape[1]} runs" if self.coefficients.ndim == 3 else ""
        if not self.n:
            return f"nothing{many}: diverged at once"
        end = "" if self.diverged_at is None else f"; DIVERGED at {self.diverged_at:.6g}{unit}"
        return f"{self.n} states{many}, times {self.times[0]:.6g} to {self.times[-1]:.6g}{unit}{end}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast(Trajectory):
    """A trajectory from the last state of the training on, with a band in which the truth is expected."""

    FIGURE = "dynamics.forecast"

    low: np.ndarray | None = None
    """As `coefficients`: lower ends at `confidence`; None where no band can be given (`reason`)."""
    high: np.ndarray | None = None
    outputs_low: np.ndarray | None = None
    outputs_high: np.ndarray | None = None
    confidence: float = 0.95
    members: np.ndarray | None = dataclasses.field(default=None, repr=False)
    """(resamples, n, k): runs of resampled operators with resampled residuals."""
    spread: tuple[np.ndarray, np.ndarray] | None = None
    """Standard deviations (n, k) of the operators alone, and with residuals."""
    reached: np.ndarray | None = dataclasses.field(default=None, repr=False)
    """(resamples,): states of each member before it diverged. Where it has, it counts as below every lower end and above every
    upper one: a band that too few members carry is infinite."""
    skill: np.ndarray | None = None
    """(n,): 1 - mean square error over that of the mean, in hindcasts within the training of as many steps; NaN where
    no hindcast is so long."""
    reason: str = ""
    """Why there is no band."""
    history: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(default=None, repr=False)
    """Times and coefficients of the training, where they are at hand."""

    def field_interval(self, name: str | None = None,
                       at: ArrayLike | int | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """The band of a field at some of its numbers (indices of the flattened item): (low, high), each (n, numbers).

        What the modes leave out of the field is not in it. Raises InputError without a basis or a band.
        """
        if self.basis is None or self.members is None:
            raise InputError("a band of a field needs a basis and resamples: " + (self.reason or "this model has no basis"))
        if name is None and len(self.basis.fields) > 1:
            raise InputError(f"name one of the fields {', '.join(self.basis.fields)}")
        part = self.basis[name] if name is not None else next(iter(self.basis.parts()))
        indices: np.ndarray = np.arange(part.mean.size)
        cells = np.atleast_1d(indices[at if isinstance(at, slice) else np.asarray(at)])
        modes = part.modes.reshape(len(part.modes), -1)[:, cells]
        assert self.reached is not None
        low, high = band(self.members @ modes, self.reached, self.confidence)
        mean = part.mean.reshape(-1)[cells]
        return low + mean, high + mean

    @property
    def n_diverged(self) -> int:
        """Members that diverged."""
        return 0 if self.members is None or self.reached is None else int((self.reached < self.members.shape[1]).sum())

    def _facts(self) -> dict[str, object]:
        return Trajectory._facts(self) | {"low": self.low, "high": self.high, "confidence": self.confidence,
                                          "skill": self.skill, "n_diverged": self.n_diverged, "reason": self.reason}

    def __str__(self) -> str:
        band = f"no band: {self.reason}" if self.low is None else f"band of {100 * self.confidence:g} %"
        lost = f" ({self.n_diverged} of {len(self.members)} members diverged)" if self.members is not None and (
            self.n_diverged) else ""
        return f"forecast of {Trajectory.__str__(self)}; {band}{lost}"


def band(values: np.ndarray, reached: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles over members (s, n, ...) of which each has come `reached` (s,) far: (low, high), each (n, ...)."""
    level = 0.5 * (1 - confidence)
    gone = (np.arange(values.shape[1])[None, :] >= reached[:, None]).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
    if not gone.any():
        low, high = np.quantile(values, [level, 1 - level], axis=0)
        return low, high
    # the order statistic beyond, as a quantile between a number and infinity is none
    low = np.quantile(np.where(gone, -np.inf, values), level, axis=0, method="lower")
    high = np.quantile(np.where(gone, np.inf, values), 1 - level, axis=0, method="higher")
    return low, high
