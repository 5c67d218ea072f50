"""A quadratic model: x' = c + A x + H (x, x) + B u + sum_l u_l N_l x, stepped or integrated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.results import Result
from ensemblekit.rom import model_error, model_files
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.eigenvalues import Eigenvalues, Stability, continuous, intervals, matched, slowest_first, stability
from ensemblekit.rom.forecast import Resamples, forecast
from ensemblekit.rom.model_error import ModelError
from ensemblekit.rom.operators import Dynamics, Method, energy_violation, n_terms, packed, tensor
from ensemblekit.rom.simulate import simulated
from ensemblekit.rom.training import Training
from ensemblekit.rom.trajectory import Forecast, Trajectory

LONG_RUN = 10.0
"""Spans of the training over which a nonlinear model is run to see whether it stays bounded."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit(Result):
    """How the operators of a model were found."""

    method: str
    """In words: "operator inference", "Galerkin projection"."""
    condition_number: float = float("nan")
    """Of the scaled least-squares problem, with its regularisation."""
    effective_rank: int = 0
    """Singular values of the data above rounding."""
    n_unknowns: int = 0
    """Of each equation."""
    n_equations: int = 0
    """Rows of data."""
    regularisation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Block ("linear", "quadratic") -> weight on the operators, in units of the scaled columns."""
    residual: float = float("nan")
    """Root mean square of what the equations leave, as a share of that of their left sides."""
    search: np.ndarray | None = None
    """(candidates, 4): weights of the linear and the quadratic block, error over the training (share of the fluctuation), and
    how far the run went beyond the training range; infinite where it diverged."""
    drift: float = float("nan")
    """Amplitude at the end of the horizon over that of the training, less 1."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuadraticModel(Result):
    """A reduced model with constant, linear and quadratic terms, inputs, and inputs times states.

    With a `period` x[k+1] is the right-hand side at x[k] and u[k], else its value is dx/dt. Its states are the coefficients
    of `basis`, where it has one. Made by :func:`rom.operator_inference`, :func:`rom.galerkin`, or from operators by :meth:`of`.
    """

    FIGURE = "dynamics.model"
    KIND: ClassVar[str] = "quadratic"
    """What its file says it holds."""

    form: str
    """Letters of the terms it has: constant c, linear A, quadratic H, input B, input times state N."""
    matrix: np.ndarray = dataclasses.field(repr=False)
    """(d, r): all operators, a row a term (:attr:`c`, :attr:`A`, ... are its parts)."""
    basis: Basis | None = dataclasses.field(default=None, repr=False)
    period: float | None = None
    """Of a discrete model, in `time_unit`; None: continuous."""
    time_unit: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    readout: np.ndarray | None = dataclasses.field(default=None, repr=False)
    """(p, 1 + r + m): outputs are this times [1, x, u]."""
    training: Training | None = dataclasses.field(default=None, repr=False)
    fit: Fit | None = dataclasses.field(default=None, repr=False)
    resamples: Resamples | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        r = self.matrix.shape[1] if self.matrix.ndim == 2 else 0
        if self.matrix.shape != (n_terms(self.form, r, len(self.inputs)), r) or not r:
            raise InputError(f"a model of the form {self.form!r} with {r} states and {len(self.inputs)} inputs has "
                             f"{n_terms(self.form, r, len(self.inputs))} terms; got a matrix of shape {self.matrix.shape}")
        if self.basis is not None and self.basis.rank != r:
            raise InputError(f"the operators are of {r} states, the basis of {self.basis.rank} modes; truncate it")
        if self.period is not None and not self.period > 0:
            raise InputError(f"a sampling period is above 0; got {self.period!r}")

    @classmethod
    def of(cls, *, c: ArrayLike | None = None, A: ArrayLike | None = None, H: ArrayLike | None = None,
           B: ArrayLike | None = None, N: ArrayLike | None = None, basis: Basis | None = None, period: float | None = None,
           time_unit: str = "", inputs: Sequence[str] = ()) -> QuadraticModel:
        """From operators: c (r,), A (r, r), H (r, r (r + 1) / 2), (r, r²) or (r, r, r), B (r, m), N (m, r, r).

        Columns of H belong to the products x_i x_j with j <= i, row by row. Raises InputError for shapes that do not fit.
        """
        form, matrix = packed({"c": c, "A": A, "H": H, "B": B, "N": N})
        m = 0 if B is None and N is None else np.shape(B)[1] if B is not None else len(np.asarray(N))
        names = tuple(inputs) or (("u",) if m == 1 else tuple(f"u[{k}]" for k in range(m)))
        if len(names) != m:
            raise InputError(f"the operators have {m} inputs, and {len(names)} names were given")
        return cls(form=form, matrix=matrix, basis=basis, period=period, inputs=names,
                   time_unit=time_unit or (basis.time_unit if basis is not None else ""))

    # -- operators --------------------------------------------------------------------------------------------------

    @property
    def dynamics(self) -> Dynamics:
        """The operators by themselves."""
        return Dynamics(self.form, self.matrix, len(self.inputs), self.period)

    @property
    def rank(self) -> int:
        """Number of states."""
        return self.matrix.shape[1]

    @property
    def c(self) -> np.ndarray | None:
        """(r,)."""
        return self.dynamics.block("c")

    @property
    def A(self) -> np.ndarray | None:
        """(r, r)."""
        return self.dynamics.block("A")

    @property
    def H(self) -> np.ndarray | None:
        """(r, r (r + 1) / 2): columns of the products x_i x_j with j <= i; :attr:`tensor` is (r, r, r)."""
        return self.dynamics.block("H")

    @property
    def B(self) -> np.ndarray | None:
        """(r, m)."""
        return self.dynamics.block("B")

    @property
    def N(self) -> np.ndarray | None:
        """(m, r, r)."""
        return self.dynamics.block("N")

    @property
    def tensor(self) -> np.ndarray | None:
        """(r, r, r): H, symmetric in its last two axes."""
        return None if self.H is None else tensor(self.H)

    @property
    def energy_violation(self) -> float:
        """max |symmetric part of H| / max |H|: 0 where the quadratic term neither makes nor loses energy."""
        return 0.0 if self.H is None else energy_violation(self.H)

    # -- runs -------------------------------------------------------------------------------------------------------

    def simulate(self, x0: Any, times: ArrayLike, inputs: Any = None, *, method: Method = "auto", step: float | None = None,
                 rtol: float = 1e-8) -> Trajectory:
        """A run from x0 at times[0] on.

        Arguments:
            x0: a state (k,), a snapshot (it is projected), or several of either along axis 0.
            times: rising; of a discrete model whole periods apart.
            inputs: (n, m), or a mapping of name to (n,). Of a discrete model inputs[k] is held from times[k] to times[k + 1],
                of a continuous one inputs are joined by straight lines. The last row of a discrete run may be left out.
            method: of continuous models: "dopri5" (Dormand and Prince 5(4), adaptive; "auto"), "rk4", or "midpoint" (implicit;
                keeps quadratic invariants).
            step: longest step; by default, of the latter two, the distance of the times.
            rtol: tolerance of "dopri5".

        A run that leaves a thousand times the range of the training stops there (``.diverged_at``). Raises InputError.
        """
        return simulated(self.dynamics, x0, times, inputs, method=method, step=step, rtol=rtol, basis=self.basis,
                         training=self.training, time_unit=self.time_unit, names=self.inputs, readout=self.readout)

    def predict(self, times: ArrayLike | int, inputs: Any = None, *, confidence: float = 0.95,
                n_resamples: int = 200, rng: np.random.Generator | int = 0) -> Forecast:
        """A forecast from the last training state on, with its band.

        Arguments:
            times: after the data, or a number of periods.
            inputs: (n, m), held during the n steps, the first from the last training time on; or (n + 1, m), from that time.
            confidence: of the band.
            n_resamples: runs of resampled operators with resampled residuals; 0: no band.
            rng: a Generator or a seed.

        Raises InputError for times within the training, or a model that was not fitted.
        """
        return forecast(self.dynamics, self.training, self.resamples, times, inputs, confidence=confidence,
                        n_resamples=n_resamples, basis=self.basis, time_unit=self.time_unit, names=self.inputs,
                        readout=self.readout, rng=rng)

    def error_against(self, source: Any, *, start: int = 0, horizon: int | None = None, inputs: Any = None) -> ModelError:
        """Errors of a run from snapshot `start` on, against the snapshots of a source (read once) or a Basis.

        Arguments:
            source: snapshots with the fields of the basis; of a model without one, states (n, k).
            start, horizon: the first snapshot, and how many after it; all by default.
            inputs: (n, m), one row a snapshot.

        Raises InputError where fields, shapes or units do not fit.
        """
        return model_error.error_against(self, self.training, self.rank, source, start=start, horizon=horizon, inputs=inputs)

    # -- stability --------------------------------------------------------------------------------------------------

    @property
    def fixed_point(self) -> np.ndarray | None:
        """(r,): a state that stays as it is without inputs, the one Newton's method finds from the mean of the training, or
        from zero; None where it finds none."""
        starts = [np.zeros(self.rank)] if self.training is None else [self.training.mean, np.zeros(self.rank)]
        for start in starts:
            point = self.dynamics.fixed_point(start)
            if point is not None:
                return point
        return None

    @property
    def eigenvalues(self) -> Eigenvalues:
        """Of the linear part, about the fixed point where the model has products, else about zero; with intervals where the
        model was fitted with resamples."""
        point = self.fixed_point if "H" in self.form else None
        values = self._eigenvalues(self.matrix, point)
        interval, reason = None, "" if self.resamples is None else self.resamples.reason
        if self.resamples is not None and self.resamples.known:
            many = np.array([self._eigenvalues(o, point) for o in self.resamples.matrices])
            interval = intervals(values, matched(many, values), 0.95, self.resamples.n_blocks)
        return Eigenvalues(value=values, discrete=None if self.period is None else np.exp(values * self.period),
                           time_unit=self.time_unit, interval=interval, reason=reason)

    def _eigenvalues(self, matrix: np.ndarray, point: np.ndarray | None) -> np.ndarray:
        one = Dynamics(self.form, matrix, len(self.inputs), self.period)
        about = one.fixed_point(point) if point is not None else None
        values = np.linalg.eigvals(one.jacobian(np.zeros(self.rank) if about is None else about)).astype(complex)
        rates = values if self.period is None else continuous(values, self.period)
        return rates[slowest_first(rates)]

    @property
    def stability(self) -> Stability:
        """Whether disturbances of the fixed point (or of zero) die out; of a nonlinear model also whether a long run stays
        bounded."""
        about = "the fixed point" if "H" in self.form and self.fixed_point is not None else "zero"
        result = stability(self.eigenvalues, about)
        if "H" in self.form and self.training is not None and not self.inputs:
            span = max(LONG_RUN * self.training.span, self.training.interval)
            count = min(int(span / self.training.interval), 20_000) + 1
            run = self.simulate(self.training.last, self.training.time + self.training.interval * np.arange(float(count)))
            amplitude = float(np.sqrt((np.abs(run.coefficients - self.training.mean) ** 2).sum(-1)).max(initial=0))
            said = (f"a run of {count - 1} steps diverges" if run.diverged_at is not None else
                    f"a run of {count - 1} steps stays within {amplitude / (self.training.largest or 1):.3g} of the training")
            result = dataclasses.replace(result, reason=f"{result.reason}; {said}")
        return result

    @property
    def stable(self) -> bool:
        """Whether the verdict is "stable"."""
        return self.stability.verdict == "stable"

    # -- files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the model, its basis inside, as one plain HDF5 file by temporary file and rename; :func:`rom.load` opens it."""
        arrays: dict[str, np.ndarray | None] = {f"operators/{letter}": self.dynamics.block(letter) for letter in self.form}
        arrays["readout"] = self.readout
        about: dict[str, Any] = {"form": self.form, "period": self.period, "time_unit": self.time_unit,
                                 "inputs": list(self.inputs), "outputs": list(self.outputs)}
        model_files.put_training(self.training, about, arrays)
        if self.fit is not None:
            arrays["search"] = self.fit.search
            about["fit"] = {f.name: model_files.plain(getattr(self.fit, f.name)) for f in dataclasses.fields(self.fit)
                            if f.name != "search"}
        if self.resamples is not None:
            arrays["resamples/matrices"], arrays["resamples/residuals"] = self.resamples.matrices, self.resamples.residuals
            about["resamples"] = {"block_length": self.resamples.block_length, "n_blocks": self.resamples.n_blocks,
                                  "reason": self.resamples.reason}
        return model_files.write(path, self.KIND, about, arrays, self.basis)

    @classmethod
    def of_file(cls, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], basis: Basis | None) -> Self:
        """From the record and arrays of a file that :meth:`save` wrote."""
        form, matrix = packed({letter: arrays[f"operators/{letter}"] for letter in about["form"]})
        kept, fit = about.get("resamples"), about.get("fit")
        return cls(form=form, matrix=matrix, basis=basis, period=about["period"], time_unit=about["time_unit"],
                   inputs=tuple(about["inputs"]), outputs=tuple(about["outputs"]), readout=arrays.get("readout"),
                   training=model_files.get_training(about, arrays),
                   fit=None if fit is None else Fit(**{**fit, "notes": tuple(fit["notes"])}, search=arrays.get("search")),
                   resamples=None if kept is None else Resamples(matrices=arrays["resamples/matrices"],
                                                                 residuals=arrays["resamples/residuals"], **kept))

    def _facts(self) -> dict[str, object]:
        eigenvalues = self.eigenvalues
        return {"form": self.form, "rank": self.rank, "period": self.period, "time_unit": self.time_unit, "inputs": self.inputs,
                "outputs": self.outputs, "stability": self.stability, "growth": eigenvalues.growth,
                "frequency": eigenvalues.frequency, "eigenvalue_intervals": eigenvalues.interval, "fit": self.fit,
                "training": self.training, "operators": {letter: self.dynamics.block(letter) for letter in self.form},
                "energy_violation": self.energy_violation if "H" in self.form else None}

    def to_dict(self) -> dict[str, object]:
        """What a file of text can hold of it; the basis goes by :meth:`save`."""
        return Result.to_dict(self)

    def __str__(self) -> str:
        return "\n".join((self._first_line(), self._errors_line(), f"stability: {self.stability}"))

    def _first_line(self) -> str:
        unit = f" {self.time_unit}" if self.time_unit else ""
        time = "continuous" if self.period is None else f"discrete, period {self.period:.6g}{unit}"
        inputs = f", inputs {', '.join(self.inputs)}" if self.inputs else ""
        said = f"quadratic model {self.form} of {self.rank} states, {time}{inputs}"
        if self.fit is not None:
            said += f"; {self.fit.method}"
            if self.fit.n_equations:
                said += (f" from {self.fit.n_equations} equations for {self.fit.n_unknowns} unknowns each, condition "
                         f"{self.fit.condition_number:.2g}, effective rank {self.fit.effective_rank}")
            elif np.isfinite(self.fit.residual):
                said += f", leaves {100 * self.fit.residual:.3g} % of the derivative on the snapshots"
            if self.fit.regularisation:
                said += ", regularisation " + ", ".join(f"{name} {x:.2g}" for name, x in self.fit.regularisation.items())
        if "H" in self.form:
            said += f", energy violation {self.energy_violation:.2g}"
        return said

    def _errors_line(self) -> str:
        if self.training is None:
            return "errors: not measured (no training data); model.error_against(snapshots) does"
        said = f"errors: {self.training}"
        if self.fit is not None and np.isfinite(self.fit.drift):
            said += f"; amplitude drifts by {100 * self.fit.drift:.3g} % over the horizon"
        return said + "".join(f"; {note}" for note in (self.fit.notes if self.fit is not None else ()))

    def __repr__(self) -> str:
        return f"<{self._first_line()}>"
