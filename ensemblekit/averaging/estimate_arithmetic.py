"""Calculating with estimates: errors carried through sums, products and functions of averages of independent runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.scaling import ldexp, power_of_two

Interval = tuple[Any, Any]


class Arithmetic:
    """What an :class:`~ensemblekit.Estimate` can be put into: float, format, numpy, sums and products.

    Estimates that meet come from *independent* runs: errors are added in quadrature, degrees of freedom by
    Welch-Satterthwaite. Two of one run share its noise and are refused, as their errors would be wrong.
    """

    __slots__ = ()
    __array_priority__: ClassVar[float] = 100.0

    def __float__(self: Any) -> float:
        if np.ndim(self.mean):
            raise InputError(f"float() takes one number, and this mean has shape {np.shape(self.mean)}; use .mean")
        return float(self.mean)

    def __array__(self: Any, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.mean, dtype=dtype, copy=True)

    def __format__(self: Any, spec: str) -> str:
        if not spec or spec.endswith("s"):
            return format(str(self), spec)
        if np.ndim(self.mean):
            raise InputError(f"the format {spec!r} goes with one number, and this mean has shape {np.shape(self.mean)}; format "
                             "its elements, or leave the format out")
        from ensemblekit.averaging.estimate_units import printed

        half = (float(self.high) - float(self.low)) / 2
        return f"{format(float(self.mean), spec)} ± {format(half, spec)}" + (f" {printed(self.unit)}" if self.unit else "")

    def __eq__(self: Any, other: object) -> bool:
        """By value: all numbers and words but the series of the run."""
        if not isinstance(other, Arithmetic):
            return NotImplemented
        b: Any = other
        names = ("mean", "stderr", "low", "high", "n_eff", "statistical_inefficiency", "correlation_time", "dof")
        plain = ("confidence", "n", "n_discarded", "equilibration_time", "converged", "verdict", "unit", "time_unit")
        return (all(getattr(self, name) == getattr(b, name) for name in plain)
                and all(_same(getattr(self, name), getattr(b, name)) for name in names)
                and set(self.estimators) == set(b.estimators) and set(self.derived) == set(b.derived)
                and all(_same(x, b.estimators[name]) for name, x in self.estimators.items())
                and list(self.coords) == list(b.coords)
                and all(np.array_equal(x, b.coords[name][0]) and u == b.coords[name][1] for name, (x, u) in self.coords.items())
                and all(x == b.derived[name] for name, x in self.derived.items()))

    def __hash__(self: Any) -> int:
        return hash((self.n, self.confidence, self.unit, np.shape(self.mean), float(np.ravel(self.mean)[0]) if np.size(
            self.mean) and not np.isnan(np.ravel(self.mean)[0]) else None))

    # -- sums ------------------------------------------------------------------------------------------------------

    def __neg__(self) -> Self:
        return _linear(self, -1.0, 0.0)

    def __pos__(self) -> Self:
        return self

    def __add__(self: Any, other: Any) -> Any:
        if isinstance(other, Arithmetic):
            return _sum(self, other, 1.0)
        return _linear(self, 1.0, other) if _is_number(other) else NotImplemented

    __radd__ = __add__

    def __sub__(self: Any, other: Any) -> Any:
        """The difference of two estimates from *independent* runs: errors in quadrature, dof by Welch-Satterthwaite."""
        if isinstance(other, Arithmetic):
            return _sum(self, other, -1.0)
        return _linear(self, 1.0, -_number(other)) if _is_number(other) else NotImplemented

    def __rsub__(self: Any, other: Any) -> Any:
        return _linear(self, -1.0, other) if _is_number(other) else NotImplemented

    # -- products --------------------------------------------------------------------------------------------------

    def __mul__(self: Any, other: Any) -> Any:
        if isinstance(other, Arithmetic):
            return _product(self, other)
        return _linear(self, other, 0.0) if _is_number(other) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self: Any, other: Any) -> Any:
        if isinstance(other, Arithmetic):
            check_independent(self, other)
            return _product(self, _power(other, -1))
        if not _is_number(other):
            return NotImplemented
        if (_number(other) == 0).any():
            raise InputError("an estimate is divided by 0")
        return _linear(self, 1 / _number(other), 0.0)

    def __rtruediv__(self: Any, other: Any) -> Any:
        return _linear(_power(self, -1), other, 0.0) if _is_number(other) else NotImplemented

    def __pow__(self: Any, power: Any) -> Any:
        return _power(self, float(power)) if isinstance(power, int | float | np.integer | np.floating) else NotImplemented

    def __abs__(self: Any) -> Any:
        m, low, high = (np.asarray(x, np.float64) for x in (self.mean, self.low, self.high))
        spans = (low <= 0) & (high >= 0)
        ends = (np.where(spans, 0.0, np.minimum(np.abs(low), np.abs(high))), np.maximum(np.abs(low), np.abs(high)))
        return _changed(self, np.abs(m), np.asarray(self.stderr), ends, self.unit)

    # -- functions of numpy ----------------------------------------------------------------------------------------

    def __array_ufunc__(self: Any, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        does = FUNCTIONS.get(ufunc.__name__)
        if method != "__call__" or options or does is None:
            raise InputError(f"numpy.{ufunc.__name__} has no rule for the error of an estimate; use .mean (numpy.asarray(e)) "
                             "for the number alone, or average the function itself: ek.average(source, map=...). Known are "
                             f"{', '.join(FUNCTIONS)}")
        return does(*inputs)


def check_independent(a: Any, b: Any) -> None:
    """Raise InputError where two estimates come from one run."""
    if any(_overlap(one, other) for one in a.origin for other in b.origin):
        raise InputError("both estimates come from one run: the noise that they share would be counted twice, or not cancel. "
                         "Average the function itself, which keeps their covariance: ek.average(source, map=lambda block: "
                         "...), or ek.statistics.jackknife; estimates of independent runs are taken as they are")


def _overlap(one: str, other: str) -> bool:
    """Whether two origins are the same run: the same file, or overlapping parts of one array in memory."""
    a, b = one.split(":"), other.split(":")
    if a[0] != b[0] or len(a) != len(b):
        return False
    return len(a) < 3 or (int(a[1]) < int(b[2]) and int(b[1]) < int(a[2]))


def _same(a: Any, b: Any) -> bool:
    """Whether numbers are the same, those that are none (NaN, infinite) at the same places."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return False
    known = np.isfinite(a)
    return bool(np.array_equal(known, np.isfinite(b)) and np.array_equal(a[known], b[known]))


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | np.number) or (isinstance(x, np.ndarray) and x.dtype.kind in "iuf")


def _number(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def _plain(x: Any) -> Any:
    return float(x) if np.ndim(x) == 0 else np.asarray(x)


def _check_shape(e: Any, x: Any) -> None:
    shape = np.shape(e.mean)
    try:
        fits = np.broadcast_shapes(shape, np.shape(x)) == shape
    except ValueError:
        fits = False
    if not fits:
        raise InputError(f"an estimate of shape {shape} meets numbers of shape {np.shape(x)}; they are one number, or of its "
                         "shape")


def _linear(e: Any, factor: Any, shift: Any) -> Any:
    """factor * e + shift, of numbers that are known."""
    factor, shift = _number(factor), _number(shift)
    _check_shape(e, factor)
    _check_shape(e, shift)
    ends = np.asarray(e.low) * factor + shift, np.asarray(e.high) * factor + shift
    scalar = factor.ndim == 0 and shift.ndim == 0
    series = e.series * factor + shift if e.series is not None and scalar else None
    size = np.abs(factor)
    band = None if e.band is None else np.sort([end * factor + shift for end in e.band], axis=0)
    return replace(e, mean=_plain(np.asarray(e.mean) * factor + shift), stderr=_plain(np.asarray(e.stderr) * size),
                   band=None if band is None else (band[0], band[1]),
                   interval=(_plain(np.minimum(*ends)), _plain(np.maximum(*ends))), series=series,
                   runs=tuple(_linear(run, factor, shift) for run in e.runs) if scalar else (), ergodicity=None, derived={},
                   estimators={name: _plain(np.asarray(x) * size) for name, x in e.estimators.items()})


def _changed(e: Any, mean: np.ndarray, stderr: np.ndarray, interval: Interval, unit: str, doubt: str = "") -> Any:
    """The estimate of a function of one estimate."""
    return replace(e, mean=_plain(mean), stderr=_plain(stderr), interval=(_plain(interval[0]), _plain(interval[1])), unit=unit,
                   series=None, times=None, runs=(), ergodicity=None, derived={}, band=None, critical_value=np.nan,
                   estimators={"delta method": _plain(stderr)},
                   converged=e.converged and not doubt, verdict="; ".join(filter(None, [e.verdict, doubt])))


def _joined(a: Any, b: Any, mean: Any, parts: tuple[Any, Any], unit: str) -> Any:
    """The estimate of a function of two independent ones, from the standard errors that each brings into it."""
    from ensemblekit.averaging.estimate_units import student_interval

    e = power_of_two(np.fmax(np.abs(parts[0]), np.abs(parts[1]))[None], 0)
    one, two = np.square(ldexp(parts[0], -e)), np.square(ldexp(parts[1], -e))
    with np.errstate(invalid="ignore", divide="ignore"):
        dof = np.where(one + two > 0, (one + two) ** 2 / (one**2 / a.dof + two**2 / b.dof), np.inf)
    confidence = min(a.confidence, b.confidence)
    stderr = ldexp(np.sqrt(one + two), e)
    doubts = [f"{side}: {e.verdict}" for side, e in (("first", a), ("second", b)) if e.verdict]
    return replace(a, mean=_plain(mean), stderr=_plain(stderr), interval=student_interval(mean, stderr, dof, confidence),
                   band=None, critical_value=np.nan, confidence=confidence, n=a.n + b.n,
                   n_eff=_plain(np.minimum(a.n_eff, b.n_eff)),
                   statistical_inefficiency=_plain(np.maximum(a.statistical_inefficiency, b.statistical_inefficiency)),
                   correlation_time=_plain(np.maximum(a.correlation_time, b.correlation_time)), dof=_plain(dof),
                   n_discarded=a.n_discarded + b.n_discarded, equilibration_time=0.0,
                   converged=a.converged and b.converged, verdict="; ".join(doubts),
                   estimators={"quadrature": _plain(stderr)}, unit=unit, series=None, times=None, runs=(), ergodicity=None,
                   derived={}, origin=tuple(dict.fromkeys((*a.origin, *b.origin))))


def _check_pair(a: Any, b: Any, what: str) -> None:
    check_independent(a, b)
    if np.shape(a.mean) != np.shape(b.mean):
        raise InputError(f"a {what} needs one shape; got {np.shape(a.mean)} and {np.shape(b.mean)}")


def _sum(a: Any, b: Any, sign: float) -> Any:
    what = "sum" if sign > 0 else "difference"
    if a.unit != b.unit:
        raise InputError(f"a {what} needs one unit; got {a.unit!r} and {b.unit!r}")
    _check_pair(a, b, what)
    return _joined(a, b, a.mean + sign * b.mean, (np.asarray(a.stderr), np.asarray(b.stderr)), a.unit)


def _product(a: Any, b: Any) -> Any:
    _check_pair(a, b, "product")
    m, k = np.asarray(a.mean, np.float64), np.asarray(b.mean, np.float64)
    return _joined(a, b, m * k, (np.asarray(a.stderr) * k, np.asarray(b.stderr) * m), times_unit(a.unit, b.unit))


def _power(e: Any, power: float) -> Any:
    """e**power; the interval is that of e, seen through the function."""
    power = float(power)
    m, low, high = (np.asarray(x, np.float64) for x in (e.mean, e.low, e.high))
    whole = power == int(power)
    if not whole and (m < 0).any():
        raise InputError(f"an estimate below 0 has no real power {power:g}")
    spans = (low <= 0) & (high >= 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        inside = (np.maximum(low, 0.0) if not whole else low, high)
        ends = inside[0]**power, inside[1]**power
        bottom, top = np.minimum(*ends), np.maximum(*ends)
        if whole and int(power) % 2 == 0 and power > 0:
            bottom = np.where(spans, 0.0, bottom)
        mean, stderr = m**power, np.abs(power) * np.abs(m) ** (power - 1) * np.asarray(e.stderr)
    unbounded = power < 0 and bool(spans.any())
    if unbounded:
        bottom, top = np.where(spans, -np.inf, bottom), np.where(spans, np.inf, top)
    return _changed(e, mean, stderr, (bottom, top), power_unit(e.unit, power),
                    "0 lies in the interval of what it is divided by" if unbounded else "")


def _of_monotone(function: Callable[[Any], Any], slope: Callable[[Any], Any], unit: Callable[[str], str],
                 positive: bool) -> Callable[[Any], Any]:
    def applied(e: Any) -> Any:
        m, low, high = (np.asarray(x, np.float64) for x in (e.mean, e.low, e.high))
        if positive and (m <= 0).any():
            raise InputError(f"{function.__name__} of an estimate needs numbers above 0; the least is {np.min(m):g}")
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            ends = function(np.maximum(low, 0.0) if positive else low), function(high)
            return _changed(e, function(m), np.abs(slope(m)) * np.asarray(e.stderr), ends, unit(e.unit))
    return applied


def _no_unit(unit: str) -> str:
    return ""


def _two(name: str) -> Callable[[Any, Any], Any]:
    reflected = {"add": "__radd__", "subtract": "__rsub__", "multiply": "__rmul__", "divide": "__rtruediv__"}[name]
    straight = reflected.replace("__r", "__", 1)

    def applied(a: Any, b: Any) -> Any:
        answer = getattr(Arithmetic, straight)(a, b) if isinstance(a, Arithmetic) else getattr(Arithmetic, reflected)(b, a)
        if answer is NotImplemented:
            raise InputError(f"numpy.{name} of an estimate goes with numbers and with independent estimates")
        return answer
    return applied


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "add": _two("add"), "subtract": _two("subtract"), "multiply": _two("multiply"), "divide": _two("divide"),
    "negative": lambda e: -e, "absolute": abs, "square": lambda e: _power(e, 2), "reciprocal": lambda e: _power(e, -1),
    "power": lambda e, power: _power(e, power), "sqrt": lambda e: _power(e, 0.5),
    "exp": _of_monotone(np.exp, np.exp, _no_unit, False),
    "log": _of_monotone(np.log, lambda m: 1 / m, _no_unit, True),
    "log10": _of_monotone(np.log10, lambda m: 1 / (m * math.log(10)), _no_unit, True),
    "log2": _of_monotone(np.log2, lambda m: 1 / (m * math.log(2)), _no_unit, True),
}
"""Functions of numpy that know what becomes of the error."""


# -- units -------------------------------------------------------------------------------------------------------------------

FACTOR = re.compile(r"([^\d+-]+)([+-]?\d+)?")


def _factors(unit: str) -> dict[str, int] | None:
    powers: dict[str, int] = {}
    for part in unit.split():
        split = FACTOR.fullmatch(part)
        if split is None:
            return None
        powers[split[1]] = powers.get(split[1], 0) + int(split[2] or 1)
    return powers


def _written(factors: Mapping[str, int]) -> str:
    return " ".join(name + (str(power) if power != 1 else "") for name, power in factors.items() if power)


def times_unit(a: str, b: str) -> str:
    """The unit of a product, in H5MD's notation: "m" by "m s-1" is "m2 s-1"."""
    one, two = _factors(a), _factors(b)
    if one is None or two is None:
        return " ".join(filter(None, [a, b]))
    return _written({name: one.get(name, 0) + two.get(name, 0) for name in (*one, *two)})


def power_unit(unit: str, power: float) -> str:
    """The unit of a power: "m s-1" to the power of 2 is "m2 s-2"."""
    factors = _factors(unit)
    if not unit:
        return ""
    if factors is None or any(k * power != int(k * power) for k in factors.values()):
        return f"({unit})^{power:g}"
    return _written({name: int(k * power) for name, k in factors.items()})
