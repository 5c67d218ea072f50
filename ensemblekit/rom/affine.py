"""Operators that depend on design parameters by known functions: A(mu) = Σ_k f_k(mu) A_k."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.results import Result
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.forecast import Resamples
from ensemblekit.rom.operators import blocks, checked_form, terms
from ensemblekit.rom.quadratic import Fit, QuadraticModel
from ensemblekit.rom.training import listed

Factor = str | Callable[..., float]
"""A function of the parameters: in words such as "1", "mu", "mu1 * mu2", "1 / mu", or a callable of them in order."""
ARITHMETIC: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos}


@dataclass(frozen=True, slots=True, eq=False)
class AffineForm:
    """Which terms there are, and with what functions of the parameters each is multiplied."""

    form: str
    factors: Mapping[str, tuple[Factor, ...]]
    """Letter -> functions; ("1",) of a term that does not depend on the parameters."""
    names: tuple[str, ...]
    """Of the parameters."""

    @classmethod
    def of(cls, form: str | Mapping[str, Sequence[Factor]], names: tuple[str, ...]) -> AffineForm:
        """From letters (no term depends on the parameters) or a mapping of letter to functions. Raises InputError."""
        if isinstance(form, str):
            return cls(checked_form(form), {letter: ("1",) for letter in form}, names)
        factors = {letter: (one,) if isinstance(one, str) or callable(one) else tuple(one) for letter, one in form.items()}
        if any(not functions for functions in factors.values()):
            raise InputError(f"each letter of the form has at least one function of the parameters; got {dict(form)!r}")
        return cls(checked_form("".join(factors)), factors, names)

    def values(self, mu: np.ndarray) -> dict[str, np.ndarray]:
        """Letter -> values of its functions at parameters (p,). Raises InputError where one is no number."""
        known = dict(zip(self.names, map(float, mu), strict=True))
        found = {letter: np.array([_value(one, known) for one in self.factors[letter]]) for letter in self.form}
        for letter, values in found.items():
            if not np.isfinite(values).all():
                raise InputError(f"the functions {self.factors[letter]} of {letter} give {values} at {known}")
        return found

    def terms(self, states: np.ndarray, inputs: np.ndarray, mu: np.ndarray) -> np.ndarray:
        """(n, D): of one run at parameters mu, what the operators are multiplied with."""
        own = self.values(mu)
        return np.concatenate([value * terms(states, inputs, letter) for letter in self.form for value in own[letter]], axis=1)

    def at(self, operators: np.ndarray, mu: np.ndarray, m: int) -> np.ndarray:
        """(..., d, r): the operators at mu, from all (..., D, r)."""
        r, start, parts = operators.shape[-1], 0, []
        own = self.values(mu)
        for letter in self.form:
            size = blocks(letter, r, m)[letter].stop
            total = np.zeros((*operators.shape[:-2], size, r), operators.dtype)
            for value in own[letter]:
                total += value * operators[..., start:start + size, :]
                start += size
            parts.append(total)
        return np.concatenate(parts, axis=-2)

    def quadratic(self, r: int, m: int) -> np.ndarray:
        """(D,) bool: rows of products."""
        return np.concatenate([np.full(blocks(letter, r, m)[letter].stop, letter == "H")
                               for letter in self.form for _ in self.factors[letter]])


def _value(factor: Factor, known: Mapping[str, float]) -> float:
    if not isinstance(factor, str):
        return float(factor(*known.values()))
    try:
        return _evaluated(ast.parse(factor, mode="eval").body, known)
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f"a function of the parameters is sums, products, quotients and powers of {', '.join(known)} and "
                         f'numbers, such as "1" or "{next(iter(known))}", or a callable; got {factor!r} ({error!r})') from error


def _evaluated(node: ast.expr, known: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return float(ARITHMETIC[type(node.op)](_evaluated(node.left, known), _evaluated(node.right, known)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in ARITHMETIC:
        return float(ARITHMETIC[type(node.op)](_evaluated(node.operand, known)))
    raise TypeError(f"{ast.unparse(node)} is none of these")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AffineModel(Result):
    """A family of quadratic models over design parameters, fitted to runs at several of them; made by operator inference."""

    affine: AffineForm
    matrix: np.ndarray = field(repr=False)
    """(D, r): the operators of every function, in the order of the form."""
    parameters: np.ndarray
    """(runs, p): of the training."""
    basis: Basis | None = field(default=None, repr=False)
    period: float | None = None
    time_unit: str = ""
    inputs: tuple[str, ...] = ()
    fit: Fit | None = None
    resamples: Resamples | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return self.affine.names

    def at(self, mu: Any) -> QuadraticModel:
        """The model at parameters (p,), a number where there is one, or a mapping of name to number."""
        point = point_of(mu, self.names)
        m = len(self.inputs)
        kept = None
        if self.resamples is not None:
            kept = Resamples(matrices=self.affine.at(self.resamples.matrices, point, m), residuals=self.resamples.residuals,
                             block_length=self.resamples.block_length, n_blocks=self.resamples.n_blocks,
                             reason=self.resamples.reason)
        return QuadraticModel(form=self.affine.form, matrix=self.affine.at(self.matrix, point, m), basis=self.basis,
                              period=self.period, time_unit=self.time_unit, inputs=self.inputs, fit=self.fit, resamples=kept)

    def __str__(self) -> str:
        own = "; ".join(f"{letter}: {', '.join(map(str, self.affine.factors[letter]))}" for letter in self.affine.form)
        span = ", ".join(f"{name} {low:.6g} to {high:.6g}" for name, low, high in zip(
            self.names, self.parameters.min(axis=0), self.parameters.max(axis=0), strict=True))
        fitted = "" if self.fit is None else (f"\n{self.fit.n_equations} equations for {self.fit.n_unknowns} unknowns each, "
                                              f"condition {self.fit.condition_number:.2g}, residual "
                                              f"{100 * self.fit.residual:.3g} %"
                                              + "".join(f"; {note}" for note in self.fit.notes))
        return (f"quadratic models over {span} from {len(self.parameters)} runs; functions of {own}; model.at(mu) is one of "
                f"them{fitted}")


def point_of(mu: Any, names: tuple[str, ...]) -> np.ndarray:
    """Parameters (p,). Raises InputError."""
    if isinstance(mu, Mapping):
        if set(mu) != set(names):
            raise InputError(f"the parameters are {', '.join(names)}; got {', '.join(map(str, mu))}")
        mu = [mu[name] for name in names]
    point = np.atleast_1d(np.asarray(mu, np.float64))
    if point.shape != (len(names),) or not np.isfinite(point).all():
        raise InputError(f"a point is {len(names)} finite numbers ({', '.join(names)}); got {mu!r}")
    return point


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A form with functions of parameters, and these of each run."""

    form: AffineForm
    points: np.ndarray
    """(runs, p)."""

    def at(self, operators: np.ndarray, run: int, m: int) -> np.ndarray:
        """The operators (..., d, r) of a run."""
        return self.form.at(operators, self.points[run], m)


def family_of(form: Any, parameters: Any, given: Any, prior: Any, outputs: Any) -> Family | None:
    """The family of models that is asked for; None: a single one. Raises InputError."""
    if parameters is None:
        if not isinstance(form, str):
            raise InputError("a form with functions of parameters goes with parameters=, those of each run; without them it is "
                             f'letters, such as "cAH"; got {form!r}')
        return None
    if prior is not None or outputs is not None:
        raise InputError("prior= and outputs= go with a single model, not with parameters=")
    n = len(listed(given))
    if n < 2:
        raise InputError("parameters= are of several runs: pass a list of them (on one basis), or a ReplicaSet")
    if isinstance(parameters, Mapping):
        names = tuple(map(str, parameters))
        points = np.stack([np.asarray(one, np.float64) for one in parameters.values()], axis=-1)
    else:
        points = np.asarray(parameters, np.float64)
        points = points.reshape(-1, 1) if points.ndim == 1 else points
        names = ("mu",) if points.ndim == 2 and points.shape[1] == 1 else tuple(f"mu{k + 1}" for k in range(points.shape[-1]))
    if points.ndim != 2 or len(points) != n or not np.isfinite(points).all():
        raise InputError(f"parameters are finite numbers, a row a run, for {n} runs; got shape {points.shape}")
    affine = AffineForm.of(form, names)
    several = max(len(functions) for functions in affine.factors.values())
    different = len(np.unique(points, axis=0))
    if different < several:
        raise InputError(f"{several} functions of the parameters need runs at as many; these are at {different}")
    return Family(affine, points)
