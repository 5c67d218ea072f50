"""An average with its error: what ``average`` answers, for one number or an array of any shape."""

from __future__ import annotations

import decimal
import html
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.doubts import ENOUGH, standard_doubts
from ensemblekit.averaging.estimate_arithmetic import Arithmetic
from ensemblekit.averaging.estimate_tables import estimate_dataset, estimate_table
from ensemblekit.averaging.estimate_units import SIGNS as SIGNS
from ensemblekit.averaging.estimate_units import printed, quantile
from ensemblekit.averaging.estimate_units import student_interval as student_interval
from ensemblekit.errors import InputError
from ensemblekit.intake_labels import Labels
from ensemblekit.results import Result
from ensemblekit.scaling import ldexp

Coords = Mapping[str, tuple[np.ndarray, str]]
"""Named axes of an item: name -> (values, unit)."""
Bounds = tuple[float, float | None]
"""What a quantity cannot leave, (0.0, None) for a variance or (0.0, 1.0) for a share: its interval keeps within."""
Number = float | np.ndarray
"""Of a scalar a float, of an array an array of the item's shape."""

SMALLEST_ROOT = 0.01
"""The cube root of a variance over its expectation that an interval reaches at most: where a variance is not known at all."""
DISAGREE = 1.5
"""Standard errors of one mean that differ by more than this factor are said to disagree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate(Arithmetic, Result):
    """A mean with an interval that accounts for correlation in time and for weights.

    Numbers are floats for a scalar and arrays of the item's shape otherwise, in `unit` unless said otherwise.
    """

    FIGURE = "averages.estimate"

    mean: Any
    """Weighted mean of the snapshots kept."""
    stderr: Any
    """Standard error of the mean."""
    interval: tuple[Any, Any]
    """(low, high) of the confidence interval, by Student's t with `dof`; a scalar's is longer on the side of the tail
    where its snapshots are skewed, and ``±`` prints half its length. What cannot be negative (or is a share) has the
    interval of :func:`bounded_interval` where a front-end knows it."""
    confidence: float
    """Of the interval, for example 0.95."""
    n: int
    """Snapshots kept."""
    n_eff: Any
    """Independent snapshots of the same worth: variance / stderr²."""
    statistical_inefficiency: Any
    """g: correlated snapshots worth one independent one."""
    correlation_time: Any
    """g / 2 snapshots, in `time_unit` where the source has times."""
    dof: Any
    """Degrees of freedom of `stderr`."""
    n_discarded: int = 0
    """Snapshots before the equilibrated part."""
    equilibration_time: float = 0.0
    """When the equilibrated part begins, after the first snapshot; in `time_unit`, else in snapshots."""
    converged: bool = True
    """False where the interval cannot be vouched for; `verdict` says why."""
    verdict: str = ""
    """Doubts in words; "" where there are none."""
    estimators: Mapping[str, Any] = field(default_factory=dict)
    """Standard error by each method, the first being `stderr`."""
    unit: str = ""
    """Of the mean."""
    time_unit: str = ""
    """Of the times; "" where they count snapshots."""
    coords: Mapping[str, tuple[np.ndarray, str]] = field(default_factory=dict)
    """Named axes of the item: name -> (values, unit)."""
    series: np.ndarray | None = None
    """All values (n + n_discarded,) of a scalar, the discarded ones too; None for arrays and for several runs."""
    times: np.ndarray | None = None
    """Their times."""
    runs: tuple[Estimate, ...] = ()
    """Of several independent runs: the estimate of each, with its series."""
    ergodicity: Any = None
    """Of several runs of a scalar: the :class:`~ensemblekit.statistics.Ergodicity` verdict, within and between variance."""
    labels: Labels | None = None
    """Names of axes, coordinates and the epoch of the times of the source, where it had any; see ``to_xarray``."""
    origin: tuple[str, ...] = ()
    """Of the runs it comes from: estimates that share one are not independent. Empty: not known, taken as independent."""
    band: tuple[np.ndarray, np.ndarray] | None = None
    """(low, high) of a curve: all of its elements lie within at once, with the same confidence, where the interval holds for
    each by itself. None: it has none. That of a slice is narrower: ask for the range that is looked at."""
    critical_value: float = math.nan
    """Of the band: how many standard errors half of it is, were these known; 1.96 for one number at 95 %."""
    derived: Mapping[str, Estimate] = field(default_factory=dict)
    """Quantities that come with this one, by name; also as attributes: ``rdf.coordination``."""

    @classmethod
    def of(cls, mean: ArrayLike, stderr: ArrayLike | None = None, dof: ArrayLike | None = None, *, n: int, confidence: float,
           n_eff: ArrayLike | None = None, g: ArrayLike | None = None, dt: float = 1.0,
           interval: tuple[Any, Any] | None = None, doubts: Iterable[str] = (), vouched: bool | None = None,
           estimators: Mapping[str, ArrayLike] | None = None, refused: str = "", **facts: Any) -> Estimate:
        """The estimate with this mean and error, and what follows from these.

        Arguments:
            mean, stderr, dof, n_eff: numbers, or arrays of the item's shape.
            g: statistical inefficiency; None: n / n_eff.
            dt: time between snapshots, for the correlation time g / 2 dt.
            interval: None: Student's.
            doubts: what goes into the verdict; with one, it is not vouched for, unless `vouched` says so.
            refused: why there is no error: `stderr` and all that rests on it are NaN then.
            estimators: name of a method -> the standard error it gives.
            facts: the other fields, by name.
        """
        shape = np.shape(mean)
        none = math.nan if not shape else np.full(shape, np.nan)
        if refused or stderr is None or dof is None:
            return cls(mean=_scalar(mean), stderr=none, interval=(none, none), confidence=confidence, n=n, n_eff=none,
                       statistical_inefficiency=none, correlation_time=none, dof=none, converged=False, verdict=refused,
                       **facts)
        words = tuple(doubts)
        n_eff = none if n_eff is None else n_eff
        with np.errstate(invalid="ignore", divide="ignore"):
            g = np.divide(n, n_eff) if g is None else g
        return cls(mean=_scalar(mean), stderr=_scalar(stderr), n=n, n_eff=_scalar(n_eff), confidence=confidence,
                   interval=student_interval(mean, stderr, dof, confidence) if interval is None else interval,
                   statistical_inefficiency=_scalar(g), dof=_scalar(dof), verdict="; ".join(filter(None, words)),
                   converged=not words if vouched is None else vouched,
                   estimators={name: _scalar(x) for name, x in (estimators or {}).items()},
                   correlation_time=_scalar(np.asarray(g) / 2 * dt), **facts)

    def judged(self, *, independent: ArrayLike | None = None, enough: float = ENOUGH, size: int | None = None,
               word: str = "elements") -> Estimate:
        """The estimate with the :func:`~ensemblekit.averaging.doubts.standard_doubts` about its numbers.

        independent: snapshots that say how well the error of each element is known; by default n_eff.
        """
        known = np.asarray(self.n_eff if independent is None else independent, dtype=np.float64)
        words, vouched = standard_doubts(np.asarray(self.mean), np.asarray(self.stderr), known, enough=enough, size=size,
                                         word=word)
        if not words:
            return self
        return replace(self, converged=self.converged and vouched, verdict="; ".join(filter(None, [self.verdict, *words])))

    def with_doubt(self, why: str) -> Estimate:
        """The estimate, not vouched for: `why` comes first in its verdict."""
        return replace(self, converged=False, verdict="; ".join(filter(None, [why, self.verdict])))

    def noting(self, *words: str) -> Estimate:
        """The estimate with these words behind its verdict, vouched for or not as it was."""
        return replace(self, verdict="; ".join(filter(None, [self.verdict, *words]))) if any(words) else self

    def __getattr__(self, name: str) -> Estimate:
        if not name.startswith("_"):
            estimate = self.derived.get(name)
            if estimate is not None:
                return estimate
        more = f"; with it come {', '.join(self.derived)}" if not name.startswith("_") and self.derived else ""
        raise AttributeError(f"an Estimate has no {name!r}{more}")

    @property
    def further(self) -> Mapping[str, Estimate]:
        """``derived`` by its earlier name, with a DeprecationWarning."""
        warnings.warn("Estimate.derived is Estimate.derived now", DeprecationWarning, stacklevel=2)
        return self.derived

    @property
    def low(self) -> Any:
        """Lower end of the interval."""
        return self.interval[0]

    @property
    def high(self) -> Any:
        """Upper end of the interval."""
        return self.interval[1]

    @property
    def dates(self) -> np.ndarray | None:
        """The times as dates (datetime64, or cftime on other calendars), where those of the source were; else `times`."""
        return self.times if self.times is None or self.labels is None else self.labels.dates(self.times, self.time_unit)

    def to_xarray(self) -> Any:
        """A Dataset: ``mean``, ``stderr``, ``low``, ``high``, ``n_eff`` and so on, on the coordinates that the snapshots came
        with; of a scalar its series over the times too. Raises MissingExtraError where xarray is not installed."""
        return estimate_dataset(self)

    def to_dataframe(self) -> Any:
        """A table of pandas: mean, stderr, low, high and n_eff, one row an element, by its coordinates."""
        return estimate_table(self)

    def __str__(self) -> str:
        percent = f"{100 * self.confidence:g} % CI"
        if np.ndim(self.mean) == 0:
            value, bar = rounded(float(self.mean), float(self.high - self.low) / 2)
            unit = f" {printed(self.unit)}" if self.unit else ""
            facts = [percent, f"n_eff {_short(self.n_eff)} of {self.n}", f"g {_short(self.statistical_inefficiency)}"]
            start = f"{value} ± {bar}{unit}"
        else:
            half = (np.asarray(self.high) - np.asarray(self.low)) / 2
            start = (f"mean of shape {np.shape(self.mean)}{' in ' + printed(self.unit) if self.unit else ''}: "
                     f"{_range(self.mean)}, ± {_range(half)} (median {_short(_median(half))})")
            facts = [percent, f"n_eff {_range(self.n_eff)} of {self.n}", f"g {_range(self.statistical_inefficiency)}"]
        if self.n_discarded:
            facts.append(f"{self.n_discarded} discarded")
        if not self.converged:
            facts.append(f"NOT CONVERGED: {self.verdict}")
        elif self.verdict:
            facts.append(self.verdict)
        return f"{start} ({'; '.join(facts)})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{text}</td></tr>" for name, text in self._rows())
        return f"<b>{html.escape(str(self))}</b><table><tr><th>estimator</th><th>standard error</th></tr>{rows}</table>"

    def summary(self) -> str:
        """The answer, and the standard error each estimator gives, with their disagreement."""
        rows = self._rows()
        wide = max([len("estimator"), *(len(name) for name, _ in rows)])
        lines = [str(self), "", f"{'estimator':<{wide}}  standard error"]
        lines += [f"{name:<{wide}}  {text}" for name, text in rows]
        lines.append(f"disagreement: {self.disagreement()}")
        return "\n".join(lines)

    def disagreement(self) -> str:
        """By what factor the estimators differ, in words."""
        if len(self.estimators) < 2:
            return "only one estimator"
        numbers = np.array([np.asarray(v, dtype=float) for v in self.estimators.values()])
        finite = np.isfinite(numbers).all(axis=0) & (numbers > 0).all(axis=0)
        if not finite.any():
            return "no error to compare"
        ratio = np.max(numbers, axis=0)[finite] / np.min(numbers, axis=0)[finite]
        worst = float(np.max(ratio))
        return f"largest over smallest {worst:.2f}" + (f", more than {DISAGREE:g}" if worst > DISAGREE else "")

    def _rows(self) -> list[tuple[str, str]]:
        return [(name, _range(value)) for name, value in self.estimators.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, lists and strings, as JSON takes them (NaN as None); without the series."""
        more: dict[str, Any] = {}
        if self.band is not None:
            more |= {"band": [_plain(v) for v in self.band], "critical_value": _plain(self.critical_value)}
        if self.derived:
            more["derived"] = {name: one.to_dict() for name, one in self.derived.items()}
        if self.labels is not None:
            more["labels"] = self.labels.to_dict()
        if self.origin:
            more["origin"] = list(self.origin)
        return {"mean": _plain(self.mean), "stderr": _plain(self.stderr),
                "interval": [_plain(v) for v in self.interval],
                "confidence": self.confidence, "n": self.n, "n_eff": _plain(self.n_eff),
                "statistical_inefficiency": _plain(self.statistical_inefficiency),
                "correlation_time": _plain(self.correlation_time), "dof": _plain(self.dof),
                "n_discarded": self.n_discarded, "equilibration_time": self.equilibration_time,
                "converged": self.converged, "verdict": self.verdict,
                "estimators": {name: _plain(v) for name, v in self.estimators.items()}, "unit": self.unit,
                "time_unit": self.time_unit,
                "coords": {name: {"values": _coordinates(v), "unit": u} for name, (v, u) in self.coords.items()}, **more}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Estimate:
        """What :meth:`to_dict` gave: the same estimate, without series and runs. Raises InputError where it is none."""
        try:
            numbers = {name: _scalar(np.array(record[name], np.float64)) for name in (
                "mean", "stderr", "n_eff", "statistical_inefficiency", "correlation_time", "dof")}
            low, high = (_scalar(np.array(end, np.float64)) for end in record["interval"])
            band = record.get("band")
            return cls(**numbers, interval=(low, high), confidence=float(record["confidence"]), n=int(record["n"]),
                       n_discarded=int(record["n_discarded"]), equilibration_time=float(record["equilibration_time"]),
                       converged=bool(record["converged"]), verdict=str(record["verdict"]),
                       estimators={str(k): _scalar(np.array(x, np.float64)) for k, x in record["estimators"].items()},
                       unit=str(record["unit"]), time_unit=str(record["time_unit"]),
                       coords={str(k): (np.asarray(x["values"]), str(x["unit"])) for k, x in record["coords"].items()},
                       labels=None if record.get("labels") is None else Labels.from_dict(record["labels"]),
                       band=None if band is None else (np.array(band[0], np.float64), np.array(band[1], np.float64)),
                       critical_value=float(record["critical_value"]) if band is not None else math.nan,
                       derived={str(k): cls.from_dict(x) for k, x in record.get("derived", record.get("further", {})).items()},
                       origin=tuple(map(str, record.get("origin", ()))))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no record of an Estimate, as its to_dict() gives ({type(error).__name__}: {error})"
                             ) from error


def bounded_interval(mean: ArrayLike, interval: tuple[Any, Any], bounds: tuple[float, float | None]) -> tuple[Any, Any]:
    """The interval of a quantity that cannot leave `bounds`, from one that knows nothing of them; (low, high).

    By the delta method on a scale without an end: the square root of the distance from the lower bound, on which counts and
    variances scatter alike wherever they are, or the angle arcsin(sqrt(share)) between two bounds (Bartlett, Biometrics 3,
    39, 1947). Well inside the bounds it is the interval given; near one it is longer on the side away from it.
    """
    lowest, highest = bounds
    m, low, high = (np.asarray(x, np.float64) for x in (mean, *interval))
    if not (np.isfinite(low).any() or np.isfinite(high).any()):
        return interval         # there is none: nothing to keep within
    width = 1.0 if highest is None else highest - lowest
    share = np.maximum((m - lowest) / width, 0.0) if highest is None else np.clip((m - lowest) / width, 0.0, 1.0)
    limits = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for end in (low, high):
            step = (end - m) / (2 * width)
            if highest is None:
                root = np.sqrt(share)
                fraction = np.maximum(root + step / root, 0.0) ** 2
            else:
                angle = np.arcsin(np.sqrt(share)) + step / np.sqrt(share * (1 - share))
                fraction = np.sin(np.clip(angle, 0.0, np.pi / 2)) ** 2
            # at a bound, or where there is no interval, there is no scale to go to
            limits.append(_scalar(np.where(np.isfinite(fraction), lowest + width * fraction, np.clip(end, lowest, highest))))
    return limits[0], limits[1]


def spread_interval(mean: ArrayLike, stderr: ArrayLike, dof: ArrayLike, confidence: float, degree: int = 1) -> tuple[Any, Any]:
    """The interval of a variance (degree 1) or a standard deviation (degree 2); (low, high).

    A variance scatters as chi-squared over its degrees of freedom does, 2 (mean / stderr)², whose cube root is nearly normal
    (Wilson & Hilferty, PNAS 17, 684, 1931): where it came out low, an interval symmetric about it, or about its logarithm,
    is too short above. Student's t is that of the standard error.
    """
    mean, stderr = np.asarray(mean), np.asarray(stderr)
    t = quantile(confidence, dof)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        skewness = (degree * stderr / np.where(mean > 0, mean, np.nan)) ** 2 / 9      # 2 / (9 degrees of freedom)
        step = t * np.sqrt(skewness)
        low = mean * (1 + np.where(2 * step < t * t, step - skewness, t * t / 4)) ** (-3 / degree)      # falls with the error
        high = mean * np.maximum(1 - skewness - step, SMALLEST_ROOT) ** (-3 / degree)
    flat = ~np.isfinite(skewness)
    return (_scalar(np.where(flat, mean - t * stderr, np.minimum(low, mean))),
            _scalar(np.where(flat, mean + t * stderr, np.maximum(high, mean))))


def rounded(value: float, bar: float) -> tuple[str, str]:
    """A number and its bar to the two significant digits of the bar: 18.2654 ± 3.1534 is ("18.3", "3.2")."""
    if not (math.isfinite(value) and math.isfinite(bar)):
        return f"{value:.6g}", f"{bar:.2g}"
    if bar <= 0:
        return f"{value:.12g}", "0"
    digits = 1 - math.floor(math.log10(bar))
    if round(_shifted(bar, 1 - digits), 1) >= 10.0:        # 0.0997 rounds up to a digit more
        digits -= 1
    largest = max(abs(value), bar)
    if (digits > 6 and largest < 1e-4) or largest >= 1e7:
        power = math.floor(math.log10(largest))
        places = max(0, digits + power)
        return f"{_shifted(value, power):.{places}f}e{power:+03d}", f"{_shifted(bar, power):.{places}f}e{power:+03d}"
    places = max(0, digits)
    return f"{round(value, digits):.{places}f}", f"{round(bar, digits):.{places}f}"


def _shifted(value: float, power: int) -> Any:
    """value / 10**power where 10**power itself may not be a number of float64."""
    return value / 10.0**power if -300 < power < 300 else decimal.Decimal(value).scaleb(-power)


def over_power_of_two(estimate: Estimate, exponent: int | np.ndarray) -> Estimate:
    """The estimate of values that were divided by 2**exponent (an int, or ints of the item's shape), in their own scale."""
    if not np.any(exponent):
        return estimate

    def full(x: ArrayLike) -> Any:
        return _scalar(ldexp(x, exponent))

    return replace(estimate, mean=full(estimate.mean), stderr=full(estimate.stderr),
                   interval=(full(estimate.low), full(estimate.high)),
                   band=None if estimate.band is None else (full(estimate.band[0]), full(estimate.band[1])),
                   estimators={name: full(x) for name, x in estimate.estimators.items()},
                   series=None if estimate.series is None else ldexp(estimate.series, exponent))


def _scalar(x: Any) -> Any:
    """A float where there is one number."""
    return float(x) if np.ndim(x) == 0 else np.asarray(x)


def _plain(x: Any) -> Any:
    if np.ndim(x) == 0:
        x = float(x)
        return x if math.isfinite(x) else None
    return [_plain(v) for v in np.asarray(x)]


def _coordinates(values: Any) -> list[Any]:
    """Numbers, words or dates of an axis as JSON takes them."""
    values = np.asarray(values)
    if values.dtype.kind in "mM":
        return [str(x) for x in values]
    return values.tolist() if values.dtype.kind in "biuU" else _plain(values)


def _median(x: Any) -> float:
    x = np.asarray(x, dtype=float)
    x = x[np.isfinite(x)]
    return float(np.median(x)) if x.size else math.nan


def _short(x: Any) -> str:
    """A count or factor in a few digits."""
    x = float(x)
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.2g}"


def _range(x: Any) -> str:
    """One number, or the smallest to the largest of an array."""
    if np.ndim(x) == 0:
        return f"{float(x):.4g}"
    x = np.asarray(x, dtype=float)
    finite = x[np.isfinite(x)]
    return f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "nan"
