"""A field as a function of design parameters: what a parameter study says of points between its samples."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.results import Result
from ensemblekit.rom import model_files
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.gaussian_process import GaussianProcess
from ensemblekit.rom.interpolation import Interpolation, Method
from ensemblekit.rom.leave_one_out import LeaveOneOut

CANDIDATES = 512
"""Points among which the next sample is sought where bounds are given."""
HULL = 1e-9
"""How far beyond the samples, in standard deviations, rounding takes a point."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FieldPrediction(Result):
    """A field at parameters that were not computed, with its band."""

    FIGURE = "parametric.prediction"

    parameters: np.ndarray
    """(p,), or (m, p) of a batch."""
    field: Any
    """(*item), (m, *item) of a batch; (..., cells) where only some were asked for; a mapping of field to these where the basis
    holds several."""
    low: Any
    """As `field`: the band of each number by itself."""
    high: Any
    coefficients: np.ndarray
    """(r,) or (m, r)."""
    coefficients_low: np.ndarray
    coefficients_high: np.ndarray
    confidence: float
    extrapolates: np.ndarray
    """bool or (m,): outside the convex hull of the samples."""

    def __str__(self) -> str:
        count = 1 if self.parameters.ndim == 1 else len(self.parameters)
        outside = int(np.sum(self.extrapolates))
        return (f"prediction at {count} point{'s' if count > 1 else ''} with a {100 * self.confidence:g} % band"
                + (f"; {outside} EXTRAPOLATED, outside the samples" if outside else ""))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorMap(Result):
    """Expected error of a parametric model over its parameters."""

    FIGURE = "parametric.error_map"

    points: np.ndarray
    """(m, p)."""
    errors: np.ndarray
    """(m,): as a share of the root mean square fluctuation of the samples."""
    samples: np.ndarray
    """(n, p)."""
    names: tuple[str, ...]
    next_sample: np.ndarray
    """(p,): the point of largest expected error."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParametricModel(Result):
    """A field as a function of parameters: modes of a study, and each coefficient interpolated between its samples."""

    FIGURE = "parametric.model"
    KIND: ClassVar[str] = "parametric"

    basis: Basis
    names: tuple[str, ...]
    """Of the parameters."""
    parameters: np.ndarray
    """(n, p): of the samples."""
    interpolation: Interpolation
    """Of the coefficients, in parameters less their mean over their standard deviation."""
    left_out: LeaveOneOut
    table: Mapping[str, tuple[float, float]]
    """Method -> median and worst left-out error, of all that were tried."""
    dropped: np.ndarray
    """(*item): mean square of what the modes leave out of each number."""
    notes: tuple[str, ...] = ()

    @property
    def method(self) -> Method:
        return self.interpolation.method

    @property
    def kernel(self) -> str:
        return self.interpolation.kernel

    @property
    def rank(self) -> int:
        return self.basis.rank

    @property
    def errors(self) -> np.ndarray:
        """(n,): left-out error of each sample, as a share of the root mean square fluctuation."""
        return self.left_out.errors

    def predict(self, mu: Any, *, field_only: Any = None, confidence: float = 0.95) -> FieldPrediction:
        """The field at parameters `mu`, (p,), (m, p) or a mapping of name to number, with a band for each number.

        Arguments:
            field_only: numbers of cells (of the flattened item; with several fields a mapping of field to these): only there
                is the field made.
            confidence: of the band: that of the interpolation, scaled so that it fits the left-out samples, and of what the
                modes leave out; Student's t.

        Warns where a point lies outside the convex hull of the samples.
        """
        if not 0 < confidence < 1:
            raise InputError(f"confidence lies between 0 and 1; got {confidence!r}")
        points, single = self._points(mu)
        outside = self._outside(points)
        if outside.any():
            warnings.warn(f"{int(outside.sum())} of {len(points)} points lie outside the samples: what is said there is "
                          "extrapolated, and its band is too narrow", UserWarning, stacklevel=2)
        mean, deviation = self._coefficients(points)
        t = self._quantile(confidence)
        fields: dict[str, np.ndarray] = {}
        low: dict[str, np.ndarray] = {}
        high: dict[str, np.ndarray] = {}
        for name, modes, middle, left in self._parts(field_only):
            value = middle + mean @ modes.reshape(len(modes), -1).real
            half = t * np.sqrt(deviation**2 @ modes.reshape(len(modes), -1) ** 2 + left)
            shape = (len(points), *modes.shape[1:])
            for kept, x in ((fields, value), (low, value - half), (high, value + half)):
                kept[name] = x.reshape(shape)[0] if single else x.reshape(shape)
        first = slice(None) if not single else 0
        several = len(fields) > 1
        one = next(iter(fields))
        return FieldPrediction(parameters=points[first], field=fields if several else fields[one],
                               low=low if several else low[one], high=high if several else high[one], coefficients=mean[first],
                               coefficients_low=(mean - t * deviation)[first], coefficients_high=(mean + t * deviation)[first],
                               confidence=confidence, extrapolates=outside[first])

    def extrapolates(self, mu: Any) -> Any:
        """Whether points (p,) or (m, p) lie outside the convex hull of the samples: a bool, or (m,)."""
        points, single = self._points(mu)
        outside = self._outside(points)
        return bool(outside[0]) if single else outside

    def error_map(self, grid: Any) -> ErrorMap:
        """The expected error at points (m, p), or on the grid of a list of values for each parameter."""
        points = self._grid(grid)
        errors = self._expected(points)
        return ErrorMap(points=points, errors=errors, samples=self.parameters, names=self.names,
                        next_sample=points[int(np.argmax(errors))])

    def next_sample(self, where: Any = None) -> np.ndarray:
        """The parameters (p,) where a further sample is expected to help most: those of largest expected error.

        Arguments:
            where: candidates (m, p); or bounds, a mapping of name to (low, high) or a list of pairs; None: the bounds of the
                samples.
        """
        candidates = self._candidates(where)
        x, at = self._scaled(self.parameters), self._scaled(candidates)
        apart = np.sqrt(((at[:, None] - x[None]) ** 2).sum(axis=2)).min(axis=1)
        fresh = candidates[apart > 1e-9]
        if not len(fresh):
            raise InputError(f"all {len(candidates)} candidates are samples already; pass others, or bounds")
        best: np.ndarray = fresh[int(np.argmax(self._expected(fresh)))]
        return best

    # -- inside -----------------------------------------------------------------------------------------------------

    def _scaled(self, points: np.ndarray) -> np.ndarray:
        return (points - self.parameters.mean(axis=0)) / self.parameters.std(axis=0)

    def _points(self, mu: Any) -> tuple[np.ndarray, bool]:
        if isinstance(mu, Mapping):
            if set(mu) != set(self.names):
                raise InputError(f"the parameters are {', '.join(self.names)}; got {', '.join(map(str, mu))}")
            mu = np.stack([np.asarray(mu[name], np.float64) for name in self.names], axis=-1)
        values = as_array(mu, "parameters", kinds="biuf", dtype=np.float64)
        p = len(self.names)
        if values.ndim == 0 and p == 1:
            values = values.reshape(1)
        if values.shape[-1:] != (p,) or values.ndim > 2 or not np.isfinite(values).all():
            raise InputError(f"a point is {p} finite number{'s' if p > 1 else ''} ({', '.join(self.names)}), several are "
                             f"(m, {p}); got shape {values.shape}")
        return np.atleast_2d(values), values.ndim == 1

    def _grid(self, grid: Any) -> np.ndarray:
        axes = [grid[name] for name in self.names] if isinstance(grid, Mapping) and set(grid) == set(self.names) else grid
        if isinstance(axes, list | tuple) and len(axes) == len(self.names) and all(np.ndim(one) == 1 for one in axes) and not (
                len(self.names) == len(axes[0]) and np.ndim(axes) == 2 and isinstance(grid, np.ndarray)):
            return np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")], axis=1).astype(np.float64)
        points, _ = self._points(axes)
        return points

    def _candidates(self, where: Any) -> np.ndarray:
        p = len(self.names)
        if where is None:
            where = list(zip(self.parameters.min(axis=0), self.parameters.max(axis=0), strict=True))
        if isinstance(where, Mapping):
            where = [where.get(name) for name in self.names]
        bounds = isinstance(where, list | tuple) and len(where) == p and all(
            isinstance(pair, tuple) and len(pair) == 2 for pair in where)
        if not bounds:
            points = as_array(where, "candidates", kinds="biuf", dtype=np.float64)
            if not points.size:
                raise InputError("there are no candidates; pass points (m, p), or bounds")
            return self._points(points.reshape(-1, 1) if p == 1 and points.ndim == 1 else points)[0]
        ends = np.array(where, np.float64)
        if not (ends[:, 1] > ends[:, 0]).all():
            raise InputError(f"bounds are (low, high) with low below high; got {[tuple(map(float, pair)) for pair in ends]}")
        corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, p)
        return np.concatenate([ends[:, 0] + _spread(CANDIDATES, p) * np.ptp(ends, axis=1), corners])

    def _coefficients(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means (m, r) and standard deviations (m, r) that fit the left-out samples."""
        mean, deviation = self.interpolation.predicted(self._scaled(points))
        return mean, (np.ones_like(mean) if deviation is None else deviation) * self.left_out.inflation

    def _expected(self, points: np.ndarray) -> np.ndarray:
        fluctuation = np.sqrt((self.basis.coefficients**2).sum() / self.basis.n + self.basis.relative_error**2
                              * self.basis.total_energy / self.basis.n)
        if self.method == "gp":
            _, deviation = self._coefficients(points)
            left = self.basis.relative_error**2 * self.basis.total_energy / self.basis.n
            return np.sqrt((deviation**2).sum(axis=1) + left) / fluctuation
        squares = ((self._scaled(points)[:, None] - self._scaled(self.parameters)[None]) ** 2).sum(axis=2)
        weights = 1 / np.maximum(squares, 1e-12)        # Shepard's: left-out errors of the samples around
        nearest = np.sqrt(squares.min(axis=1))
        return (weights @ self.errors) / weights.sum(axis=1) * np.minimum(1.0, nearest / (np.median(nearest) or 1.0))

    def _outside(self, points: np.ndarray) -> np.ndarray:
        x, at = self._scaled(self.parameters), self._scaled(points)
        beyond = ((at < x.min(axis=0) - HULL) | (at > x.max(axis=0) + HULL)).any(axis=1)
        if x.shape[1] == 1:
            return beyond
        from scipy.optimize import linprog

        rows = np.concatenate([x.T, np.ones((1, len(x)))])
        for k in np.flatnonzero(~beyond):       # a mean of samples with weights of 0 or more?
            beyond[k] = linprog(np.zeros(len(x)), A_eq=rows, b_eq=np.append(at[k], 1.0), method="highs").status != 0
        return beyond

    def _parts(self, field_only: Any) -> Any:
        """(name, modes (r, ...), mean, mean square left out) of each field, of some cells where these are named."""
        start = 0
        for part in self.basis.parts():
            size = part.mean.size
            left = self.dropped.reshape(-1)[start:start + size]
            start += size
            if field_only is None:
                yield part.name, part.modes, part.mean.reshape(-1), left
                continue
            cells = field_only.get(part.name) if isinstance(field_only, Mapping) else field_only
            if cells is None:
                continue
            chosen = np.atleast_1d(np.asarray(cells))
            if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or (np.abs(chosen + 0.5) > size).any():
                raise InputError(f"field_only is numbers of cells of the {size} of {part.name}; got {cells!r}")
            yield part.name, part.modes.reshape(self.rank, -1)[:, chosen], part.mean.reshape(-1)[chosen], left[chosen]

    def _quantile(self, confidence: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(len(self.parameters) - 1, 0.5 + confidence / 2))

    # -- files and words --------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> str:
        """One HDF5 file, the basis inside, that `rom.load` opens."""
        about = {"names": list(self.names), "method": self.method, "kernel": self.kernel, "notes": list(self.notes),
                 "table": {name: list(pair) for name, pair in self.table.items()}}
        processes = self.interpolation.processes
        arrays: dict[str, np.ndarray | None] = {
            "parameters": self.parameters, "samples/x": self.interpolation.x, "samples/y": self.interpolation.y,
            "dropped": self.dropped, "left_out/errors": self.left_out.errors, "left_out/own_errors": self.left_out.own_errors,
            "left_out/residuals": self.left_out.residuals, "left_out/deviations": self.left_out.deviations,
            "gp/lengths": np.array([one.lengths for one in processes]) if processes else None,
            "gp/facts": np.array([[one.nugget, one.offset, one.variance, one.log_likelihood] for one in processes])
            if processes else None}
        return model_files.write(path, self.KIND, about, arrays, self.basis)

    @classmethod
    def of_file(cls, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], basis: Basis | None) -> Self:
        """From the record and arrays of a file that :meth:`save` wrote."""
        if basis is None:
            raise InputError("the file of a parametric model holds no basis")
        x, y = arrays["samples/x"], arrays["samples/y"]
        processes = tuple(GaussianProcess(x, y[:, k], lengths, *map(float, facts)) for k, (lengths, facts) in enumerate(
            zip(arrays.get("gp/lengths", ()), arrays.get("gp/facts", ()), strict=True)))
        left_out = LeaveOneOut(errors=arrays["left_out/errors"], own_errors=arrays["left_out/own_errors"],
                               residuals=arrays["left_out/residuals"], deviations=arrays.get("left_out/deviations"))
        return cls(basis=basis, names=tuple(about["names"]), parameters=arrays["parameters"], left_out=left_out,
                   interpolation=Interpolation(about["method"], about["kernel"], x, y, processes), dropped=arrays["dropped"],
                   table={name: (pair[0], pair[1]) for name, pair in about["table"].items()}, notes=tuple(about["notes"]))

    def _facts(self) -> dict[str, object]:
        return {"rank": self.rank, "method": self.method, "kernel": self.kernel, "names": self.names,
                "parameters": self.parameters, "errors": self.errors, "own_errors": self.left_out.own_errors,
                "table": {name: {"median": a, "worst": b} for name, (a, b) in self.table.items()}, "notes": self.notes}

    def to_dict(self) -> dict[str, object]:
        """What a file of text can hold of it; the basis goes by :meth:`save`."""
        return Result.to_dict(self)

    def __str__(self) -> str:
        n, worst = len(self.parameters), int(np.argmax(self.errors))
        where = ", ".join(f"{name} {x:.6g}" for name, x in zip(self.names, self.parameters[worst], strict=True))
        tried = "; ".join(f"{name} {100 * a:.3g} % ({100 * b:.3g} %)" for name, (a, b) in self.table.items())
        notes = "".join(f"; {note}" for note in self.notes)
        return (f"parametric model of {', '.join(self.names)} from {n} samples, {self.rank} modes, {self.method} "
                f"({self.kernel})\n"
                f"errors: each sample left out, as a share of the fluctuation: median {100 * self.left_out.median:.3g} %, "
                f"worst {100 * self.left_out.worst:.3g} % at {where}\n"
                f"tried, median (worst): {tried}{notes}")

    def __repr__(self) -> str:
        return f"<{str(self).splitlines()[0]}>"


def _spread(m: int, p: int) -> np.ndarray:
    """(m, p) points spread evenly over the unit cube: Roberts' additive sequence (the fractional parts of k times powers of the
    generalised golden ratio)."""
    ratio = 2.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / (p + 1))
    return (0.5 + np.outer(np.arange(1, m + 1), ratio ** -np.arange(1.0, p + 1))) % 1
