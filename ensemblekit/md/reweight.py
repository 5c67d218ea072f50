"""Reweighting of frames by what was measured, with errors that know of sampling and of the data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.average import average as mean_with_error
from ensemblekit.averaging.correlation import statistical_inefficiency
from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.estimate_units import quantile
from ensemblekit.averaging.maxent import Bound, MaximumEntropy, Problem, ThetaScan, check_theta, response, solved, theta_scan
from ensemblekit.averaging.resample import optimal_block_length
from ensemblekit.averaging.weights import normalised_weights
from ensemblekit.errors import InputError
from ensemblekit.files import replacing
from ensemblekit.intake import as_array
from ensemblekit.md.experimental_data import Data, Scaling, data_of, scaled_to
from ensemblekit.md.frame_values import frame_values
from ensemblekit.md.observables.base import Mean, OfMean
from ensemblekit.results import Result
from ensemblekit.source import ArraySource
from ensemblekit.source_clock import check_times

LEAST_PHI = 0.1
"""Share of the frames in effect still used, below which data and frames are said to disagree."""
LOOKED_AT = 64
"""Data whose correlation in time is looked at."""
MOST_ROUNDS = 100
SETTLED = 1e-8
"""Change of the weights (of their sum) from one round of scaling to the next."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Reweighted(Result):
    """Weights of frames that agree with what was measured, as far as θ says, and what they are worth."""

    FIGURE = "ensemble.reweighted"

    weights: np.ndarray
    """(n,), adding up to 1; for ``frame_weights=``."""
    theta: float
    chi2_before: float
    """Mean χ² of the data with the prior weights, after scaling."""
    chi2_after: float
    phi: float
    """exp of minus the relative entropy: the share of the frames in effect still used."""
    n_eff: float
    """Kish's."""
    n_eff_correlated: float
    """The same over the statistical inefficiency of the frames."""
    names: tuple[str, ...]
    """Of the sets of data."""
    data: tuple[Data, ...]
    """As what averages linearly."""
    before: tuple[np.ndarray, ...]
    """Calculated means of each set with the prior weights, scaled."""
    after: tuple[np.ndarray, ...]
    """With the new ones."""
    scales: tuple[tuple[float, float], ...]
    """Scale and offset of what was calculated, of each set."""
    rounds: int
    """Of scaling."""
    scan: ThetaScan | None
    converged: bool
    """Whether nothing speaks against the weights; `verdict` says what does."""
    verdict: str
    confidence: float
    times: np.ndarray | None
    ordered: bool
    problem: Problem
    fit: MaximumEntropy
    replicates: np.ndarray | None
    """Of the bootstrap: weights of refits, (times, n)."""

    @property
    def multipliers(self) -> np.ndarray:
        """λ of all data, set after set, of what was calculated as scaled."""
        return self.fit.multipliers

    def average(self, values: ArrayLike | Mapping[str, Any], source: object = None) -> Any:
        """Averages with the new weights, whose `stderr` holds both sampling and the errors of the data (`estimators` has each).

        With them comes `sampling`, the estimate that takes the data for exact.

        Arguments:
            values: (n,) or (n, *out) of the frames; a mapping of these by name; or of observables, with the `source` of the
                frames that were reweighted.

        Returns:
            an Estimate, or a mapping of name to Estimate.

        Raises InputError where values are not those of the frames that were reweighted.
        """
        if not isinstance(values, Mapping):
            return self._estimate(as_array(values, "values", kinds="biuf", dtype=np.float64))
        if source is None:
            return {name: self._estimate(as_array(one, name, kinds="biuf", dtype=np.float64)) for name, one in values.items()}
        frames = frame_values(source, values)
        answers = {}
        for name, measurement in frames.measurements.items():
            main = measurement.named[""]
            if not isinstance(main, Mean | OfMean) or (isinstance(main, Mean) and (main.arrange or main.of)):
                raise InputError(f"{name!r} is no mean, nor a function of one: average it with frame_weights=fit.weights, "
                                 "which misses the errors of the data")
            answer = self._estimate(np.asarray(frames.arrays[name]), main.function if isinstance(main, OfMean) else None)
            answers[name] = replace(answer, unit=main.unit, coords=dict(main.coords) if np.ndim(answer.mean) else {})
        return answers

    def _estimate(self, values: np.ndarray, function: Any = None) -> Estimate:
        n = len(self.weights)
        if values.ndim == 0 or len(values) != n:
            raise InputError(f"values are of the {n} frames that were reweighted; got shape {values.shape}")
        item = values.shape[1:]
        flat = values.reshape(n, -1)
        answer = response(self.problem, self.fit, flat)
        mean, series, gain = answer.mean, answer.series, answer.gain
        replicates = None if self.replicates is None else self.replicates @ flat
        if function is not None:
            item = np.shape(function(mean.reshape(item))) if item else np.shape(function(mean[0]))
            slope, value = _jacobian(function, mean, values.shape[1:])
            series, gain = value + (series - mean) @ slope, slope.T @ gain
            mean = value
            if replicates is not None:
                replicates = np.array([np.ravel(function(one.reshape(values.shape[1:]))) for one in replicates])
        data_error = np.sqrt((gain**2).sum(axis=1))
        shown = series[:, 0] if item == () else series.reshape(n, *item)
        sampled = mean_with_error(ArraySource.of(shown, times=self.times if self.ordered else None, ordered=self.ordered),
                                  equilibration=None, confidence=self.confidence)
        return self._with_both(sampled, mean.reshape(item) if item else mean[0],
                               data_error.reshape(item) if item else data_error[0],
                               None if replicates is None else replicates.std(axis=0, ddof=1).reshape(item))

    def _with_both(self, sampled: Estimate, mean: Any, data_error: Any, refitted: Any) -> Estimate:
        """The estimate whose error is that of sampling and that of the data together."""
        sampling = np.asarray(sampled.stderr, np.float64)
        both = np.hypot(sampling, data_error)
        with np.errstate(invalid="ignore", divide="ignore"):
            dof = np.asarray(sampled.dof) * (both / sampling) ** 4       # Satterthwaite, the errors of the data being known
            dof = np.where(sampling > 0, dof, np.inf)
            n_eff = np.minimum(sampled.n_eff, self.n_eff)
        estimators = {"both": both, "sampling": sampling, "data": np.asarray(data_error)}
        if refitted is not None:
            estimators["bootstrap"] = np.asarray(refitted)
        if sampled.verdict and np.isnan(sampling).all():
            return replace(sampled, mean=mean, series=None)
        # the interval of sampling is longer on the side of a tail; errors of the data are Gaussian
        reach = float(quantile(self.confidence, np.inf)) * np.asarray(data_error)
        below, above = np.asarray(sampled.mean) - sampled.low, np.asarray(sampled.high) - sampled.mean
        interval = mean - np.hypot(below, reach), mean + np.hypot(above, reach)
        return Estimate.of(mean, both, dof, n=len(self.weights), n_eff=n_eff, confidence=self.confidence, interval=interval,
                           derived={"sampling": replace(sampled, series=None)},
                           g=sampled.statistical_inefficiency, dt=1.0 if self.times is None else _step(self.times),
                           vouched=sampled.converged and self.converged, doubts=[self.verdict, sampled.verdict],
                           estimators=estimators, times=self.times, time_unit="ps" if self.times is not None else "")

    def _facts(self) -> dict[str, object]:
        return {"theta": self.theta, "chi2_before": self.chi2_before, "chi2_after": self.chi2_after, "phi": self.phi,
                "n_eff": self.n_eff, "n_eff_correlated": self.n_eff_correlated,
                "scales": dict(zip(self.names, self.scales, strict=True)), "rounds": self.rounds,
                "converged": self.converged, "verdict": self.verdict, "scan": self.scan, "weights": self.weights}

    def __repr__(self) -> str:
        lines = [f"{len(self.weights)} frames reweighted by {sum(map(len, self.data))} data at theta {self.theta:.4g}: χ² "
                 f"{self.chi2_before:.4g} -> {self.chi2_after:.4g}, φ {self.phi:.3g}, n_eff {self.n_eff:.4g}"]
        if self.scan is not None:
            lines.append(f"  theta: knee {self.scan.knee:.3g}, cross-validation {self.scan.cross_validated:.3g}")
        return "\n".join([*lines, *([f"  {self.verdict}"] if self.verdict else [])])

    def table(self) -> str:
        """Of each datum: set, label, measured ± sigma, calculated before and after, deviation in sigma after."""
        rows = [["set", "datum", "measured", "± σ", "before", "after", "z"]]
        for name, data, before, after in zip(self.names, self.data, self.before, self.after, strict=True):
            labels = data.labels or tuple(map(str, range(len(data))))
            rows += [[name, label, f"{e:.5g}", f"{s:.2g}", f"{b:.5g}", f"{a:.5g}", f"{(a - e) / s:+.2f}"]
                     for label, e, s, b, a in zip(labels, data.values, data.sigma, before, after, strict=True)]
        wide = [max(len(row[k]) for row in rows) for k in range(7)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows)

    def write(self, path: str | os.PathLike[str]) -> str:
        """The weights as text, frame and weight a line (every digit); returns the path."""
        with replacing(path, follow=True) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(f"# frame weight (theta {self.theta:.6g}, phi {self.phi:.6g})\n")
            file.writelines(f"{k} {float(w)!r}\n" for k, w in enumerate(self.weights))
        return os.fspath(path)


def _step(times: np.ndarray) -> float:
    return float(times[-1] - times[0]) / max(len(times) - 1, 1)


def _jacobian(function: Any, mean: np.ndarray, item: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Derivatives (k, m) of a function of a mean, by differences, and its value (m,)."""
    def at(x: np.ndarray) -> np.ndarray:
        return np.ravel(np.asarray(function(x.reshape(item) if item else x[0]), np.float64))

    slope = np.empty((len(mean), len(at(mean))))
    for k in range(len(mean)):
        step = np.zeros(len(mean))
        step[k] = 1e-5 * (abs(mean[k]) or 1.0)
        slope[k] = (at(mean + step) - at(mean - step)) / (2 * step[k])
    return slope, at(mean)


def reweight(calculated: Any, data: Any = None, *, theta: float | Literal["auto"] = "auto", prior: ArrayLike | None = None,
             fit: Scaling = "no", refit: bool = False, times: ArrayLike | None = None, ordered: bool = True,
             confidence: float = 0.95, bootstrap: int = 0) -> Reweighted:
    """Weights of frames whose averages agree with what was measured and that differ least from the prior ones.

    They minimise ½ Σ_j ((Σ_t w_t c_tj - e_j) / σ_j)² + θ Σ_t w_t ln(w_t / w0_t), as those of BME and BioEn, exactly.

    Arguments:
        calculated: (n, m), of each frame what averages linearly to each datum (r^-6 of an NOE, not r), as ``md.values`` gives
            it; or several sets, {"noe": (calculated, data), "j": (calculated, data)}.
        data: ``md.Data``, or (values, sigma) or (values, sigma, bounds). NOEs are distances there, and turned into r^-p.
        theta: how much the prior is trusted against the data; "auto": the knee of φ against χ², beside which the θ is told that
            predicts best what was left out.
        prior: (n,) weights before; all alike by default.
        fit: "scale" or "scale+offset" of what was calculated of each set, by regression with the prior weights.
        refit: go on in turn, scaling with the new weights, until nothing changes.
        times: (n,) of the frames, ps. ordered: False where they are in no order (models of an ensemble).
        bootstrap: refits of blocks of frames, and of data drawn within their errors, as a check of errors.

    Raises InputError for what does not fit, is not finite, or a theta or sigma that is not above 0.
    """
    sets = _sets(calculated, data)
    n = len(sets[0][1])
    w0 = None if prior is None else normalised_weights(prior)
    if w0 is not None and len(w0) != n:
        raise InputError(f"prior weights are one a frame, ({n},); got shape {w0.shape}")
    known_times = None if times is None else check_times(times, n)
    if theta != "auto":
        check_theta(theta)
    start = np.full(n, 1 / n) if w0 is None else w0
    scales = [scaled_to(start @ c, one, fit) for _, c, one in sets]
    problem = _problem(sets, scales, w0)
    scan = theta_scan(problem) if theta == "auto" else None
    chosen = scan.knee if scan is not None else float(theta)
    answer = solved(problem, chosen)
    rounds, change = 1, 0.0
    while refit and fit != "no":
        new = [scaled_to(answer.weights @ c, one, fit) for _, c, one in sets]
        again = _problem(sets, new, w0)
        last, answer = answer, solved(again, chosen)
        change = float(np.abs(answer.weights - last.weights).sum())
        problem, scales, rounds = again, new, rounds + 1
        if change < SETTLED or rounds >= MOST_ROUNDS:
            break
    correlated = answer.n_eff / _inefficiency(problem, ordered)
    doubts, notes = _doubts(answer, sets, correlated, scan)
    if refit and fit != "no":
        if change >= SETTLED:
            doubts.append(f"scaling did not settle in {rounds} rounds: it creeps to scales of "
                          f"{', '.join(f'{s:.4g}' for s, _ in scales)}; take refit=False")
        else:
            notes.append(f"scales {', '.join(f'{s:.4g}' for s, _ in scales)} settled in {rounds} rounds")
    edges = np.cumsum([len(one) for _, _, one in sets])[:-1]
    return Reweighted(weights=answer.weights, theta=chosen, chi2_before=answer.chi2_before, chi2_after=answer.chi2_after,
                      phi=answer.phi, n_eff=answer.n_eff, n_eff_correlated=correlated, names=tuple(name for name, _, _ in sets),
                      data=tuple(one for _, _, one in sets), before=tuple(np.split(answer.before, edges)),
                      after=tuple(np.split(answer.after, edges)), scales=tuple(scales), rounds=rounds, scan=scan,
                      converged=not doubts, verdict="; ".join([*doubts, *notes]), confidence=confidence, times=known_times,
                      ordered=ordered, problem=problem, fit=answer,
                      replicates=_replicates(problem, answer, bootstrap, ordered) if bootstrap else None)


def _sets(calculated: Any, data: Any) -> list[tuple[str, np.ndarray, Data]]:
    """(name, calculated (n, m), data as what averages linearly) of each set."""
    if isinstance(calculated, Mapping):
        if data is not None:
            raise InputError('several sets bring their data: {"noe": (calculated, data), ...}')
        if not calculated or not all(isinstance(one, tuple) and len(one) == 2 for one in calculated.values()):
            raise InputError('sets are {"noe": (calculated, data), ...}, one at least')
        pairs = {str(name): one for name, one in calculated.items()}
    elif data is None:
        raise InputError("pass what was calculated and what was measured: reweight(calculated, data)")
    else:
        pairs = {"data": (calculated, data)}
    sets = []
    for name, (c, given) in pairs.items():
        x = as_array(c, f"calculated of {name!r}", kinds="biuf", dtype=np.float64)
        x = x[:, None] if x.ndim == 1 else x
        if x.ndim != 2 or 0 in x.shape:
            raise InputError(f"calculated of {name!r} is (frames, data); got shape {x.shape}")
        known = data_of(given, x.shape[1])
        if known.kind == "NOE":
            _check_inverse_powers(x, known, name)
        sets.append((name, x, known.linear()))
    lengths = {name: len(c) for name, c, _ in sets}
    if len(set(lengths.values())) > 1:
        raise InputError(f"the sets are of different numbers of frames: {lengths}")
    return sets


def _check_inverse_powers(calculated: np.ndarray, data: Data, name: str) -> None:
    """Refuse distances where r^-p is wanted: they would average to numbers that look like any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        as_distance = np.nanmedian(np.abs(np.log(calculated.mean(axis=0) / data.values)))
        as_power = np.nanmedian(np.abs(np.log(calculated.mean(axis=0) ** (-1 / data.power) / data.values)))
    if (calculated < 0).any() or as_distance < as_power:
        raise InputError(f"calculated of {name!r} look like distances, which average as r^-{data.power:g}: pass "
                         f"r**-{data.power:g}, as md.values gives it of md.NOE")


def _problem(sets: list[tuple[str, np.ndarray, Data]], scales: list[tuple[float, float]], prior: np.ndarray | None) -> Problem:
    columns = [c if scale == (1.0, 0.0) else scale[0] * c + scale[1] for (_, c, _), scale in zip(sets, scales, strict=True)]
    every = [one for _, _, one in sets]
    bounds: list[Bound] = []
    for one in every:
        bounds += one.bounds
        bounds += [""] * (0 if one.bounds else len(one))
    return Problem(columns[0] if len(columns) == 1 else np.hstack(columns), np.concatenate([one.values for one in every]),
                   np.concatenate([one.sigma for one in every]), weights=prior,
                   bounds=bounds)


def _pull(problem: Problem, fit: MaximumEntropy) -> np.ndarray:
    """What decides the weight of each frame, λ·c, (n,)."""
    return np.asarray(problem.calculated @ fit.multipliers)


def _inefficiency(problem: Problem, ordered: bool) -> float:
    """How many frames one independent one takes, by the slowest datum (of up to 64, spread evenly)."""
    slowest = 1.0
    if not ordered or problem.n < 8:
        return slowest
    for j in range(0, problem.m, -(-problem.m // LOOKED_AT)):
        column = problem.calculated[:, j]
        if np.ptp(column) > 1e-12 * np.abs(column).max():
            slowest = max(slowest, statistical_inefficiency(column, "chodera").g)
    return slowest


def _doubts(fit: MaximumEntropy, sets: list[tuple[str, np.ndarray, Data]], correlated: float,
            scan: ThetaScan | None) -> tuple[list[str], list[str]]:
    """What speaks against the weights, and what is to be said besides."""
    doubts, notes = [], []
    if len(fit.outside):
        names = [f"{name} {one.labels[k] if one.labels else k}" for name, _, one in sets for k in range(len(one))]
        doubts.append(f"{len(fit.outside)} data lie beyond the values of all frames "
                      f"({', '.join(names[k] for k in fit.outside[:4])}): no weights reach them")
    if fit.phi < LEAST_PHI:
        doubts.append(f"φ is {fit.phi:.2g}: frames and data disagree so much that {100 * fit.phi:.2g} % of the frames are in "
                      "effect left; raise theta, or look for what the frames lack")
    if correlated < ENOUGH:
        doubts.append(f"the weights rest on {correlated:.2g} independent frames; averages need about {ENOUGH:g}")
    if scan is not None and scan.disagree:
        notes.append(f"theta of the knee is {scan.knee:.3g}, that by cross-validation {scan.cross_validated:.3g}: look at both")
    return doubts, notes


def _replicates(problem: Problem, fit: MaximumEntropy, count: int, ordered: bool) -> np.ndarray:
    """Weights of refits of blocks of frames drawn anew and data drawn within their errors, (count, n)."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 10:
        raise InputError(f"bootstrap is the number of refits, 10 or more; got {count!r}")
    rng = np.random.default_rng(0)
    n = problem.n
    length = max(1, round(optimal_block_length(_pull(problem, fit) * fit.weights, "circular"))) if ordered and n >= 8 else 1
    out = np.empty((count, n))
    for k in range(count):
        starts = rng.integers(0, n, math.ceil(n / length))
        rows = (starts[:, None] + np.arange(length)).ravel()[:n] % n
        counts = np.bincount(rows, minlength=n) * problem.prior
        drawn = problem.data + problem.sigma * rng.standard_normal(problem.m)
        again = Problem(problem.calculated, drawn, problem.sigma, weights=counts, bounds=problem.bounds)
        out[k] = solved(again, fit.theta, tolerance=1e-6).weights
    return out


__all__ = ["Reweighted", "reweight"]
