"""A model of modes that oscillate and grow by themselves: a(t) = sum of amplitude_j exp(value_j (t - t0)) vector_j."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.results import Result
from ensemblekit.rom import model_error, model_files
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.eigenvalues import Eigenvalues, Stability, intervals, matched, stability
from ensemblekit.rom.forecast import forecast_times
from ensemblekit.rom.model_error import ModelError
from ensemblekit.rom.operators import Method
from ensemblekit.rom.simulate import bounds_of, checked_times, state_of
from ensemblekit.rom.training import Training
from ensemblekit.rom.trajectory import Forecast, Trajectory, band


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModalResamples(Result):
    """Modes fitted to resamples of the training, in the order of the point estimate, and what they leave."""

    values: np.ndarray
    """(s, k) complex; (0, k) where there are none (`reason`)."""
    vectors: np.ndarray
    """(s, k, r)."""
    residuals: np.ndarray
    """(n, r): one step on, or of the fit where every sample is fitted at once (`of_fit`)."""
    n_blocks: int = 0
    """Degrees of freedom of the interval, and one."""
    of_fit: bool = False
    n_failed: int = 0
    """Fits that did not converge."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModalModel(Result):
    """Dynamic modes (DMD): patterns that each oscillate and grow at a rate of their own. Made by :func:`rom.dmd`.

    Its states are the coefficients of `basis`, where it has one; conjugate pairs stand together.
    """

    FIGURE = "dynamics.modal"

    values: np.ndarray
    """(k,) complex: growth + 2πi frequency, per time unit; the slowest to decay first."""
    vectors: np.ndarray = dataclasses.field(repr=False)
    """(k, r) complex, of norm 1: each mode in coefficients."""
    amplitudes: np.ndarray
    """(k,) complex, at `start`."""
    start: float
    """The first time of the training."""
    real: bool = True
    """Whether the states are real."""
    method: str = "exact"
    basis: Basis | None = dataclasses.field(default=None, repr=False)
    period: float | None = None
    """Between snapshots; None of uneven times. Any times can be asked for."""
    time_unit: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    training: Training | None = dataclasses.field(default=None, repr=False)
    resamples: ModalResamples | None = dataclasses.field(default=None, repr=False)
    residual: float = float("nan")
    """Root mean square of what the modes leave of the states, as a share of the states'."""
    converged: bool = True
    """Whether the fit did (of method "opt")."""
    notes: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """Number of states."""
        return self.vectors.shape[1]

    @property
    def modes(self) -> np.ndarray:
        """(k, *item) complex, of the joined fields; without a basis the vectors themselves."""
        if self.basis is None:
            return self.vectors
        return (self.vectors @ self.basis.modes.reshape(self.rank, -1)).reshape(len(self.values), *self.basis.mean.shape)

    @property
    def power(self) -> np.ndarray:
        """(k,): mean square of each mode by itself over the training."""
        if self.training is None:
            return np.abs(self.amplitudes) ** 2
        span = 2 * self.values.real * self.training.span
        mean = np.where(np.abs(span) > 1e-8, np.expm1(np.clip(span, -700, 700)) / np.where(span == 0, 1, span), 1.0)
        return np.abs(self.amplitudes) ** 2 * mean

    # -- runs -------------------------------------------------------------------------------------------------------

    def simulate(self, x0: Any, times: ArrayLike, inputs: Any = None, *, method: Method = "auto") -> Trajectory:
        """A run from x0 (a state, a snapshot, or several) at times[0] on, at any rising times. Raises InputError."""
        if inputs is not None:
            raise InputError("these modes have no inputs; rom.dmd(..., inputs=) gives a model that does")
        if method != "auto":
            raise InputError(f'modes are summed, not integrated: method is "auto"; got {method!r}')
        clock = checked_times(times)
        starts, single = state_of(x0, self.rank, self.basis)
        weights = starts @ np.linalg.pinv(self.vectors)
        states, kept = self._summed(weights, clock - clock[0])
        return Trajectory(times=clock[:kept], coefficients=states[:kept, 0] if single else states[:kept],
                          diverged_at=None if kept == len(clock) else float(clock[kept]),
                          diverged=None if kept == len(clock) else np.arange(len(starts)), basis=self.basis,
                          time_unit=self.time_unit)

    def _summed(self, weights: np.ndarray, since: np.ndarray) -> tuple[np.ndarray, int]:
        """States (n, m, r) from weights (m, k), and how many rows come before divergence."""
        powers = np.outer(since, self.values)
        held = powers.real.max(axis=1, initial=-math.inf) < 600
        states = (np.exp(powers[held])[:, None, :] * weights) @ self.vectors
        center, bound = bounds_of(self.training, self.rank)
        far = np.sqrt((np.abs(states - center) ** 2).sum(axis=2)).max(axis=1) > bound
        kept = int(np.argmax(far)) if far.any() else len(states)
        return states.real if self.real else states, kept

    def predict(self, times: ArrayLike | int, inputs: Any = None, *, confidence: float = 0.95, n_resamples: int = 200,
                rng: np.random.Generator | int = 0) -> Forecast:
        """A forecast from the last training state on, at any times after it or for a number of periods, with its band.

        Resampled modes are run with resampled residuals: of each step where steps were fitted, of each time where all samples
        were ("opt"). Raises InputError for times within the training.
        """
        if self.training is None:
            raise InputError("these modes were not fitted to data: model.simulate(x0, times)")
        if not 0 < confidence < 1:
            raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
        clock = forecast_times(times, self.training)
        since = clock - self.training.time
        whole = self.resamples is not None and self.resamples.of_fit
        # modes fitted to all samples go through the last one, not to it
        weights = (self.amplitudes * np.exp(self.values * (self.training.time - self.start)) if whole else
                   self.training.last @ np.linalg.pinv(self.vectors))
        states, kept = self._summed(weights[None], since)
        members, reason = None, "n_resamples=0" if self.resamples is None else self.resamples.reason
        if self.resamples is not None and len(self.resamples.values) > 1 and n_resamples:
            members = self._members(since[:kept], n_resamples, np.random.default_rng(rng))
        reached = None if members is None else np.full(len(members), kept)
        low, high = (None, None) if members is None or reached is None else band(members, reached, confidence)
        skill = np.full(kept, np.nan)
        leads = np.round(since[:kept] / self.training.interval).astype(int)
        held = (leads >= 1) & (leads <= len(self.training.leads))
        skill[held] = self.training.skill[leads[held] - 1]
        return Forecast(times=clock[:kept], coefficients=states[:kept, 0], basis=self.basis, time_unit=self.time_unit,
                        diverged_at=None if kept == len(clock) else float(clock[kept]),
                        diverged=None if kept == len(clock) else np.array([0]), low=low, high=high, confidence=confidence,
                        members=members, reached=reached, skill=skill, reason="" if members is not None else reason)

    def _members(self, since: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
        """Runs (s, n, r) of resampled modes with resampled residuals."""
        kept, training = self.resamples, self.training
        assert kept is not None
        assert training is not None
        residuals = kept.residuals - kept.residuals.mean(axis=0)
        members = []
        for j in range(n):
            values, vectors = kept.values[j % len(kept.values)], kept.vectors[j % len(kept.values)]
            powers = np.exp(np.clip(np.outer(since, values).real, -700, 600) + 1j * np.outer(since, values).imag)
            if kept.of_fit:
                # vectors of bags carry their amplitudes at `start`
                run = (powers * np.exp(values * (training.time - self.start))) @ vectors
                run = run + residuals[generator.integers(0, len(residuals), len(since))]
            else:
                inverse = np.linalg.pinv(vectors)
                run = (powers * (training.last @ inverse)) @ vectors
                steps = np.maximum(np.round(since / training.interval).astype(int), 1)
                shocks = residuals[generator.integers(0, len(residuals), steps[-1])] @ inverse
                shake, state, one = [], np.zeros(len(values), complex), np.exp(values * training.interval)
                for shock in shocks:
                    state = state * one + shock
                    shake.append(state)
                run = run + np.array(shake)[steps - 1] @ vectors
            members.append(run.real if self.real else run)
        return np.array(members)

    def error_against(self, source: Any, *, start: int = 0, horizon: int | None = None, inputs: Any = None) -> ModelError:
        """Errors of a run from snapshot `start` on, against snapshots or a Basis; as :meth:`QuadraticModel.error_against`."""
        return model_error.error_against(self, self.training, self.rank, source, start=start, horizon=horizon, inputs=inputs)

    # -- stability --------------------------------------------------------------------------------------------------

    @property
    def eigenvalues(self) -> Eigenvalues:
        """Growth and frequency of each mode, with intervals where it was fitted with resamples."""
        interval = None
        if self.resamples is not None and len(self.resamples.values) > 1:
            interval = intervals(self.values, matched(self.resamples.values, self.values), 0.95, self.resamples.n_blocks)
        return Eigenvalues(value=self.values, discrete=None if self.period is None else np.exp(self.values * self.period),
                           time_unit=self.time_unit, interval=interval,
                           reason="" if self.resamples is None else self.resamples.reason)

    @property
    def stability(self) -> Stability:
        """Whether all modes decay."""
        return stability(self.eigenvalues, "zero")

    @property
    def stable(self) -> bool:
        """Whether the verdict is "stable"."""
        return self.stability.verdict == "stable"

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the model, its basis inside, as one plain HDF5 file by temporary file and rename; :func:`rom.load` opens it."""
        arrays: dict[str, np.ndarray | None] = {"values": self.values, "vectors": self.vectors, "amplitudes": self.amplitudes}
        about: dict[str, Any] = {name: getattr(self, name) for name in PLAIN} | {"notes": list(self.notes)}
        model_files.put_training(self.training, about, arrays)
        if self.resamples is not None:
            kept = self.resamples
            arrays |= {"resamples/values": kept.values, "resamples/vectors": kept.vectors,
                       "resamples/residuals": kept.residuals}
            about["resamples"] = {"n_blocks": kept.n_blocks, "of_fit": kept.of_fit, "n_failed": kept.n_failed,
                                  "reason": kept.reason}
        return model_files.write(path, "modal", about, arrays, self.basis)

    @classmethod
    def of_file(cls, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], basis: Basis | None) -> ModalModel:
        """From the record and arrays of a file that :meth:`save` wrote."""
        kept = about.get("resamples")
        resampled: dict[str, Any] = {} if kept is None else {name: arrays[f"resamples/{name}"] for name in (
            "values", "vectors", "residuals")}
        held = None if kept is None else ModalResamples(**resampled, **kept)
        state: dict[str, Any] = {name: arrays[name] for name in ("values", "vectors", "amplitudes")}
        return cls(**state, **{name: about[name] for name in PLAIN}, notes=tuple(about["notes"]), basis=basis,
                   training=model_files.get_training(about, arrays), resamples=held)

    def _facts(self) -> dict[str, object]:
        one = self.eigenvalues
        return {"rank": self.rank, "method": self.method, "growth": one.growth, "frequency": one.frequency,
                "eigenvalue_intervals": one.interval, "amplitudes": np.abs(self.amplitudes), "power": self.power,
                "stability": self.stability, "period": self.period, "time_unit": self.time_unit, "residual": self.residual,
                "converged": self.converged, "training": self.training, "notes": self.notes}

    def to_dict(self) -> dict[str, object]:
        """What a file of text can hold of it; the modes go by :meth:`save`."""
        return Result.to_dict(self)

    def __str__(self) -> str:
        kept = self.resamples
        failed = "" if kept is None or not kept.n_failed else (
            f"; {kept.n_failed} of {len(kept.values) + kept.n_failed} resampled fits did not converge")
        first = (f"{len(self.values)} dynamic modes of {self.rank} states (method {self.method}), residual "
                 f"{100 * self.residual:.3g} % of the states{'' if self.converged else '; THE FIT DID NOT CONVERGE'}{failed}")
        errors = "errors: not measured" if self.training is None else f"errors: {self.training}"
        return "\n".join((first, errors + "".join(f"; {note}" for note in self.notes), f"stability: {self.stability}"))

    def __repr__(self) -> str:
        return f"<{len(self.values)} dynamic modes, method {self.method}>"


PLAIN = ("start", "real", "method", "period", "time_unit", "residual", "converged")
