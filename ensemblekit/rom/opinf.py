"""Operator inference: a quadratic model fitted to the coefficients of a basis (Peherstorfer and Willcox 2016)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.rom.affine import AffineModel, Factor, Family, family_of
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.derivative import Scheme, equations, order_for, resolved
from ensemblekit.rom.equation_rows import Rows, SummedRows, Unread, unread
from ensemblekit.rom.forecast import Resamples
from ensemblekit.rom.least_squares import ROUNDING, Problem
from ensemblekit.rom.operators import Dynamics, blocks, checked_form, n_terms, terms
from ensemblekit.rom.outlook import outlook
from ensemblekit.rom.quadratic import Fit, QuadraticModel
from ensemblekit.rom.rank import as_bytes
from ensemblekit.rom.simulate import residuals_of, trained_on
from ensemblekit.rom.training import Training, TrainingData, gathered, input_columns

Time = Literal["auto", "continuous", "discrete"]
ILL = 1e10
"""A condition number above which rounding is as large as a hundred-thousandth of the operators."""
GRID = 10.0 ** np.arange(-9.0, 1.0, 1.5)
"""Weights of the search, on operators in units of their columns."""
FARTHEST = 14.0
"""Powers of ten beyond which the simplex does not go."""
SEARCHED = 4000
"""Steps of a run that the search integrates at most, before the horizon."""
STEADY = 0.1
"""Training whose amplitude changes by less between its halves is steady: its model is to keep the amplitude."""
FEEDBACK = 1e-7
"""Inputs that follow from the state to this share of their variation are a feedback."""


@overload
def operator_inference(source_or_basis: Any, *, form: str = "cAH", inputs: Any = None, outputs: Any = None, time: Time = "auto",
                       ddt: Scheme = "auto", regularisation: Literal["search"] | float | Mapping[str, float] = "search",
                       horizon: float = 3.0, bound: float = 1.5, prior: QuadraticModel | None = None, parameters: None = None,
                       stable: Literal["energy"] | None = None, n_resamples: int = 200, basis: Basis | None = None,
                       memory_limit: float | str = "2GiB", rng: np.random.Generator | int = 0) -> QuadraticModel: ...
@overload
def operator_inference(source_or_basis: Any, *, form: Mapping[str, Sequence[Factor]], inputs: Any = None, outputs: Any = None,
                       time: Time = "auto", ddt: Scheme = "auto",
                       regularisation: Literal["search"] | float | Mapping[str, float] = "search", horizon: float = 3.0,
                       bound: float = 1.5, prior: QuadraticModel | None = None, parameters: Any,
                       stable: Literal["energy"] | None = None, n_resamples: int = 200, basis: Basis | None = None,
                       memory_limit: float | str = "2GiB", rng: np.random.Generator | int = 0) -> AffineModel: ...
def operator_inference(source_or_basis: Any, *, form: str | Mapping[str, Sequence[Factor]] = "cAH", inputs: Any = None,
                       outputs: Any = None, time: Time = "auto", ddt: Scheme = "auto",
                       regularisation: Literal["search"] | float | Mapping[str, float] = "search", horizon: float = 3.0,
                       bound: float = 1.5, prior: QuadraticModel | None = None, parameters: Any = None,
                       stable: Literal["energy"] | None = None, n_resamples: int = 200, basis: Basis | None = None,
                       memory_limit: float | str = "2GiB",
                       rng: np.random.Generator | int = 0) -> QuadraticModel | AffineModel:
    """A quadratic model from coefficients: their next values (or derivatives) fitted by least squares; snapshots are not read.

    Arguments:
        source_or_basis: a Basis, several on the same modes (independent runs), or states by themselves: a source or array
            (n, k), or a list of them.
        form: letters of the terms: constant c, linear A, quadratic H, input B, input times state N.
        inputs: (n, m) or a source of one row a snapshot, held from its time to the next; a list for several runs.
        outputs: (n, p): what is to be read off the states, fitted as C x + D u + constant.
        time: "discrete" (the next state), "continuous" (the derivative, by differences), or "auto": continuous where there are
            products and the sampling resolves the derivative to a percent.
        ddt: of continuous models: the order of central differences (2, 4, 6; "auto": the highest that the runs allow),
            "backward" or "forward".
        regularisation: weights on the operators in units of their scaled columns: a number, {"linear": , "quadratic": }, or
            "search": those whose *integrated* model is closest to the training, on a grid and then by simplex.
        horizon, bound: the search integrates over the training and `horizon` times its span beyond (inputs are repeated), and
            rejects models that leave `bound` times the range of the training.
        prior: a model on the same basis whose operators are drawn to instead of zero.
        parameters: of several runs, (runs, p) or a mapping of name to (runs,): the form is then a mapping of letter to
            functions of them, such as {"A": ["1", "mu"], "B": ["mu"]}, and the answer a family of models, `model.at(mu)`.
        stable: "energy": products neither make nor lose energy, x · H (x, x) = 0 in the basis' inner product, so that with
            linear terms that decay no run grows without bound.
        n_resamples: fits to resampled blocks of steps, for intervals and forecasts; 0: none.
        basis: of states that come without one.
        memory_limit: where the equations would take more, such as "2GiB", the states (of a store, say) are not held: their
            equations are summed up in one read, the search and hindcasts take windows of them.
        rng: seed of the resamples.

    Raises InputError: too few equations, inputs of wrong length, constant, or that follow from the state, NaN, uneven times
    (discrete), no candidate that stays bounded. Warns of ill-conditioned fits, and of inputs that are off by a sample.
    """
    family = family_of(form, parameters, source_or_basis, prior, outputs)
    form = family.form.form if family is not None else checked_form(form if isinstance(form, str) else "")
    even = time != "continuous"
    large = None if family is not None else unread(source_or_basis, inputs, basis=basis, even=even, form=form,
                                                   memory=as_bytes(memory_limit))
    data = gathered(source_or_basis, inputs, basis=basis, even=even) if large is None else large.data
    _check(data, form, time, ddt, horizon, bound)
    period, scheme = _time(data, form, time, ddt)
    read_off, names = _outputs(outputs, data)
    rows = _rows(data, large, family, form, scheme, period, read_off)
    data = rows.data
    _check_rows(rows, form, scheme, period, lags=family is None)
    problem = _problem(rows, form, period, prior, stable, family)
    chosen = _Search(data, form, period, problem, horizon, bound, family)
    operators, fit = chosen.fitted(regularisation)
    kept = chosen.resampled(rows, operators, fit, n_resamples, rng)
    if family is not None:
        return AffineModel(affine=family.form, matrix=operators, parameters=family.points, basis=data.basis, period=period,
                           time_unit=data.time_unit, inputs=data.inputs, fit=fit, resamples=kept)
    return QuadraticModel(form=form, matrix=operators, basis=data.basis, period=period, time_unit=data.time_unit,
                          inputs=data.inputs, outputs=names, readout=None if read_off is None else rows.readout(read_off),
                          training=chosen.training(operators), fit=fit, resamples=kept)


def _rows(data: TrainingData, large: Unread | None, family: Family | None, form: str, scheme: Scheme, period: float | None,
          outputs: np.ndarray | None) -> Rows | SummedRows:
    """The equations, in memory or summed up."""
    columns = partial(terms, form=form)
    if large is not None:
        return large.summed(columns, scheme, period, outputs)
    own = [columns if family is None else partial(family.form.terms, mu=family.points[k]) for k in data.members]
    return Rows.of(data, own, scheme, period)


def _check_rows(rows: Rows | SummedRows, form: str, scheme: Scheme, period: float | None, *, lags: bool) -> None:
    """Raise InputError where equations are too few, or inputs follow from the state; warn of inputs that are off by one."""
    data = rows.data
    if rows.n < rows.n_unknowns:
        raise InputError(f"{rows.n} steps of {data.n} snapshots are too few for {rows.n_unknowns} unknowns an equation (form "
                         f"{form!r}, {data.rank} modes): take fewer modes (basis.truncate), a smaller form, or more snapshots")
    if data.inputs:
        _check_feedback(rows.feedback(), data.inputs)
        if lags:
            _check_lags(data, form, scheme, period)


def _problem(rows: Rows | SummedRows, form: str, period: float | None, prior: QuadraticModel | None, stable: str | None,
             family: Family | None) -> Problem:
    """The least squares, drawn to a prior or under conditions. Raises InputError where these do not go with the form."""
    problem = rows.problem(None if prior is None else _prior(prior, rows.data, form, period))
    if stable is None:
        return problem
    if stable != "energy":
        raise InputError(f'stable is None or "energy"; got {stable!r}')
    if "H" not in form or family is not None:
        raise InputError('stable="energy" is of the products of a single model: a form with H'
                         + (", without parameters=" if family is not None else ""))
    return replace(problem, energy=blocks(form, rows.data.rank, len(rows.data.inputs))["H"])


def _check(data: TrainingData, form: str, time: str, ddt: Scheme, horizon: float, bound: float) -> None:
    if time not in ("auto", "continuous", "discrete"):
        raise InputError(f'time is "auto", "continuous" or "discrete"; got {time!r}')
    if ddt not in ("auto", "backward", "forward", 2, 4, 6):
        raise InputError(f'ddt is "auto", "backward", "forward" or the order of central differences, 2, 4 or 6; got {ddt!r}')
    if not horizon >= 0 or not bound > 1:
        raise InputError(f"horizon is 0 or more and bound above 1; got horizon={horizon!r}, bound={bound!r}")
    takes = set(form) & set("BN")
    if takes and not data.inputs:
        raise InputError(f"the form {form!r} has the letters {', '.join(sorted(takes))} of inputs, and none "
                         "were given: pass inputs=")
    if data.inputs and not takes:
        raise InputError(f"inputs were given, and the form {form!r} has no letter for them: add B (or N)")
    if "H" in form and np.iscomplexobj(data.runs[0].states):
        raise InputError("products of complex coefficients are not offered (they would have to know conjugates): take a real "
                         'basis, or a linear form such as "cA"')


def _time(data: TrainingData, form: str, time: Time, ddt: Scheme) -> tuple[float | None, Scheme]:
    """The sampling period of a discrete model or None, and the scheme of differences."""
    if time == "auto":
        products = set(form) & set("HN")
        time = "continuous" if products and resolved(data.runs) else "discrete"
    if time == "discrete":
        if ddt != "auto":
            raise InputError(f'ddt={ddt!r} is of continuous models: pass time="continuous"')
        return data.interval, "auto"
    return None, order_for(data.runs) if ddt == "auto" else ddt


def _check_feedback(share: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise InputError where inputs follow from the state, but for this share of their variation."""
    if (share < FEEDBACK).any():
        k = int(np.argmin(share))
        raise InputError(f"the input {names[k]} follows from the state to {share[k]:.1g} of its variation: it is a feedback, "
                         "and what it does cannot be told from what the flow does. Record a run with an input of its own added "
                         "to the feedback, or fit the closed loop without inputs")


def _check_lags(data: TrainingData, form: str, scheme: Scheme, period: float | None) -> None:
    """Warn where inputs shifted by a sample fit better by a tenth: recorded inputs are often off by one."""
    residuals = {}
    for lag in (-1, 0, 1):
        parts = []
        for run in data.sampled:
            x, _, y = equations(run, scheme, period)
            _, u, _ = equations(type(run)(run.states, np.roll(run.inputs, -lag, axis=0), run.times), scheme, period)
            parts.append((x[1:-1], u[1:-1], y[1:-1]))
        x, u, y = (np.concatenate([part[k] for part in parts]) for k in range(3))
        d = terms(x, u, form)
        if len(d) <= d.shape[1]:
            return
        problem = Problem.of(d, y)
        residuals[lag] = problem.residual(problem.solved(np.zeros(d.shape[1])))
    best = min(residuals, key=lambda lag: residuals[lag])
    if best and residuals[best] < 0.9 * min(residuals[0], residuals[-best]) and residuals[0] > 1e-9:
        said = ", ".join(f"{lag:+d}: {100 * x:.3g} %" for lag, x in residuals.items())
        warnings.warn(f"inputs {'later' if best > 0 else 'earlier'} by one sample fit better (residuals at lags {said}): "
                      "inputs[k] is that held from times[k] to times[k + 1], and recorded ones are often off by one",
                      UserWarning, stacklevel=3)


def _prior(model: QuadraticModel, data: TrainingData, form: str, period: float | None) -> np.ndarray:
    """The operators of another model as rows of this form."""
    if model.rank != data.rank or (model.period is None) != (period is None) or len(model.inputs) not in (0, len(data.inputs)):
        raise InputError(f"the prior has {model.rank} states and {len(model.inputs)} inputs and is "
                         f"{'continuous' if model.period is None else 'discrete'}; this model has {data.rank} and "
                         f"{len(data.inputs)} and is {'continuous' if period is None else 'discrete'}")
    if period is not None and model.period is not None and abs(model.period - period) > 1e-6 * period:
        raise InputError(f"the prior's period is {model.period:g}, that of the data {period:g}")
    own = blocks(model.form, model.rank, len(model.inputs))
    lacking = set(model.form) - set(form)
    if lacking:
        raise InputError(f"the prior has the terms {', '.join(sorted(lacking))}, which the form {form!r} lacks")
    operators = np.zeros((n_terms(form, data.rank, len(data.inputs)), data.rank))
    for letter, rows in blocks(form, data.rank, len(data.inputs)).items():
        if letter in own:
            operators[rows] = model.matrix[own[letter]]
    return operators


def _outputs(outputs: Any, data: TrainingData) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(n, p) and names of what is to be read off the states."""
    if outputs is None:
        return None, ()
    values, names = input_columns(outputs, "outputs")
    if len(values) != data.n:
        raise InputError(f"outputs have {len(values)} rows, the states {data.n}: one row a snapshot")
    return values, names


class _Search:
    """Weights of the linear and the quadratic block, and what the integrated model is like with them."""

    def __init__(self, data: TrainingData, form: str, period: float | None, problem: Problem, horizon: float, bound: float,
                 family: Family | None):
        self.data, self.form, self.period, self.problem = data, form, period, problem
        self.horizon, self.bound, self.family = horizon, bound, family
        m = len(data.inputs)
        rows = blocks(form, data.rank, m)
        self.quadratic = np.zeros(len(problem.scale), bool) if family is None else family.form.quadratic(data.rank, m)
        if "H" in rows and family is None:
            self.quadratic[rows["H"]] = True
        spread = data.spread
        self.mean, self.largest, self.fluctuation, halves = spread.mean, spread.largest, spread.fluctuation, spread.halves
        self.steady = data.n_runs == 1 and abs(halves[-1] / max(halves[0], 1e-300) - 1) < STEADY
        longest = sorted(range(len(data.runs)), key=lambda k: len(data.runs[k]))[::-1][:8]
        self.cases = [(*self._case(data.runs[k]), data.members[k]) for k in longest]

    def _case(self, run: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth (n, r), times (N,) over training and horizon, inputs (N, m)."""
        n = min(len(run), SEARCHED)
        more = math.ceil(self.horizon * (n - 1))
        step = self.period or self.data.interval
        times = np.concatenate([run.times[:n], run.times[n - 1] + step * np.arange(1, more + 1)])
        if self.period is not None:
            times = run.times[0] + step * np.arange(float(n + more))
        u = run.inputs[np.arange(n + more) % n]
        return run.states[:n], times, u

    def weights(self, regularisation: Mapping[str, float]) -> np.ndarray:
        linear = regularisation.get("linear", 0.0)
        return np.where(self.quadratic, regularisation.get("quadratic", linear), linear)

    def fitted(self, given: Any) -> tuple[np.ndarray, Fit]:
        """The operators, and how they were found."""
        table = None
        if isinstance(given, str):
            if given != "search":
                raise InputError(f'regularisation is "search", a number or {{"linear": , "quadratic": }}; got {given!r}')
            chosen, table = self.searched()
        elif isinstance(given, Mapping):
            if not set(given) <= {"linear", "quadratic"}:
                raise InputError(f'regularisation has the blocks "linear" and "quadratic"; got {sorted(given)}')
            chosen = {name: float(x) for name, x in given.items()}
        else:
            chosen = {"linear": float(given), **({"quadratic": float(given)} if self.quadratic.any() else {})}
        if any(not x >= 0 or not math.isfinite(x) for x in chosen.values()):
            raise InputError(f"weights of the regularisation are 0 or more; got {chosen}")
        weights = self.weights(chosen)
        operators = self.problem.solved(weights)
        condition = self.problem.condition(weights)
        values = self.problem.singular_values
        effective = int((values > ROUNDING * values[0]).sum())
        if condition > ILL:
            warnings.warn(f"the fit is ill-conditioned ({condition:.2g}, effective rank {effective} of {len(values)}): "
                          'the data do not tell all operators apart. Take fewer modes or a smaller form, or '
                          'regularisation="search"',
                          UserWarning, stacklevel=4)
        _, far, drift = (x[0] for x in self.judged(operators[None]))
        notes = list(self.data.notes)
        if far < 1:
            notes.append(f"THE MODEL LEAVES {self.bound:g} times the range of the training within {1 + self.horizon:g} of its "
                         "spans")
        elif self.horizon > 0 and len(self.cases) == 1 and (said := outlook(self.cases[0][0], self._beyond(operators))):
            notes.append(said)
        if self.data.basis is not None and self.data.basis.weights is not None:
            notes.append("statistical weights of the snapshots do not enter the fit")
        return operators, Fit(method="operator inference", condition_number=condition, effective_rank=effective,
                              n_unknowns=len(values), n_equations=self.problem.n,
                              regularisation=chosen if any(chosen.values()) else {}, residual=self.problem.residual(operators),
                              search=table, drift=float(drift), notes=tuple(notes))

    def training(self, operators: np.ndarray) -> Training:
        """What a model with these operators remembers of its training."""
        return trained_on(self.data, Dynamics(self.form, operators, len(self.data.inputs), self.period))

    def resampled(self, rows: Rows | SummedRows, operators: np.ndarray, fit: Fit, n_resamples: int,
                  rng: np.random.Generator | int) -> Resamples:
        """Operators of resampled blocks, under the same weights and conditions."""
        weights, m, runs = self.weights(fit.regularisation), len(self.data.inputs), self.data.sampled
        if self.family is None:
            residuals = residuals_of(Dynamics(self.form, operators, m, self.period), runs)
        else:
            residuals = np.concatenate([
                residuals_of(Dynamics(self.form, self.family.at(operators, k, m), m, self.period), (run,))
                for run, k in zip(runs, self.data.members, strict=True) if len(run) > 1])
        kept = rows.resampled(operators, weights, self.problem, residuals, n_resamples=n_resamples, rng=rng)
        return replace(kept, matrices=self.problem.conserved(kept.matrices, weights))

    def _beyond(self, operators: np.ndarray) -> np.ndarray:
        """(m, r): states of the longest run's model beyond its training; none where it left the bound."""
        truth, times, u, run = self.cases[0]
        own = operators if self.family is None else self.family.at(operators, run, u.shape[1])
        out, rows, _ = Dynamics(self.form, own, u.shape[1], self.period).march(
            truth[:1], times, u, rtol=1e-6, center=self.mean, bound=self.bound * self.largest)
        return out[0, len(truth):] if rows[0] == len(times) else out[0, :0]

    def judged(self, many: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of operators (b, d, r): error over the training as a share of the fluctuation, infinite where a run leaves the bound;
        when the first did, as a share of the whole; drift of the amplitude."""
        b = len(many)
        squares, count = np.zeros(b), 0
        far, drift = np.ones(b), np.full(b, np.nan)
        m = len(self.data.inputs)
        for truth, times, u, run in self.cases:
            own = many if self.family is None else self.family.at(many, run, m)
            dynamics = Dynamics(self.form, own[0], m, self.period)
            start = np.repeat(truth[:1], b, axis=0)
            out, rows, _ = dynamics.march(start, times, u, rtol=1e-6, center=self.mean, bound=self.bound * self.largest,
                                          matrices=own)
            n = len(truth)
            squares += (np.abs(out[:, :n] - truth) ** 2).sum(axis=(1, 2))
            count += n
            far = np.minimum(far, rows / len(times))
            if len(times) > n and len(self.cases) == 1:
                last = out[:, -max(1, (n - 1)):]
                amplitude = np.sqrt((np.abs(last - self.mean) ** 2).sum(axis=2).mean(axis=1))
                drift = amplitude / (self.fluctuation or 1.0) - 1
        error = np.sqrt(squares / count) / (self.fluctuation or 1.0)
        kept = far >= 1
        return np.where(kept, error, np.inf), far, np.where(kept, drift, np.nan)

    def score(self, many: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the search makes least, the error alone, and how far each came. A drift of the amplitude beyond what a window
        cut anywhere in a steady run shows is an error too."""
        error, far, drift = self.judged(many)
        lost = np.clip(np.nan_to_num(np.abs(drift), nan=0.0) - STEADY, 0, None)
        return error + (lost if self.steady else 0.0), error, far

    def searched(self) -> tuple[dict[str, float], np.ndarray]:
        """Weights of least score, by grid and simplex, and the table of all that were tried."""
        from scipy.optimize import minimize

        both = self.quadratic.any()
        candidates = [(0.0, 0.0), *((x, y) for x in GRID for y in (GRID if both else [x]))]
        many = np.array([self.problem.solved(self.weights({"linear": x, "quadratic": y})) for x, y in candidates])
        score, error, far = self.score(many)
        table = [np.column_stack([np.array(candidates), error, far])]
        if not np.isfinite(score).any():
            raise self._none_left(candidates, far)
        best = int(np.argmin(score))
        x, y = candidates[best]
        if x > 0:
            tried: list[tuple[float, float, float, float]] = []

            def value(logs: np.ndarray) -> float:
                if np.abs(logs).max() > FARTHEST:
                    return 1e30
                one = (10 ** logs[0], 10 ** logs[-1])
                scores, own_error, own_far = self.score(self.problem.solved(
                    self.weights({"linear": one[0], "quadratic": one[1]}))[None])
                tried.append((*one, float(own_error[0]), float(own_far[0])))
                return float(scores[0]) if np.isfinite(scores[0]) else 1e30

            start = np.log10([x, y] if both else [x])
            simplex = np.array([start, *(start + 0.5 * np.eye(len(start))[k] for k in range(len(start)))])
            refined = minimize(value, start, method="Nelder-Mead", options={
                "initial_simplex": simplex, "maxfev": 30 * len(start), "xatol": 0.05, "fatol": 1e-4 * score[best]})
            table.append(np.array(tried))
            if refined.fun < score[best]:
                x, y = 10 ** refined.x[0], 10 ** refined.x[-1]
        chosen = {"linear": float(x), **({"quadratic": float(y)} if both else {})}
        return chosen, np.concatenate(table)

    def _none_left(self, candidates: list[tuple[float, float]], far: np.ndarray) -> InputError:
        best = np.argsort(-far)[:3]
        said = "; ".join(f"weights {candidates[k][0]:.2g} and {candidates[k][1]:.2g} left it after {100 * far[k]:.3g} % of it"
                         for k in best)
        return InputError(f"no candidate of the search stays within {self.bound:g} times the range of the training over it and "
                          f"{self.horizon:g} times its span: {said}. Take fewer modes, a longer training, a shorter horizon or "
                          "a larger bound")
