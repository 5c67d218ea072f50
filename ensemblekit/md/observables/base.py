"""What an observable is: frozen settings whose `prepare` gives a :class:`Measurement`, a map over blocks of frames and the
quantities that are made of its values.

A quantity is one of four small classes:

- :class:`Mean`: the mean of the map; of one number a frame with its series;
- :class:`OfMean`: a smooth function of that mean (a root, g(r) of counts and volumes), its error from a jackknife over the
  partial means that the core keeps, blind to no correlation;
- :class:`OfStates`: of other statistics than a mean (a covariance), by reducers of its own;
- :class:`OfSeries`: of the values of all frames (angles on the circle, displacements in time).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.average import estimate_of
from ensemblekit.averaging.band import Scale
from ensemblekit.averaging.equilibration import Equilibrate
from ensemblekit.averaging.estimate import Bounds, Coords, Estimate, bounded_interval
from ensemblekit.averaging.function_of_mean import SecondMoment, function_of_mean
from ensemblekit.averaging.independent import doubts_of_independent
from ensemblekit.averaging.missing import Missing
from ensemblekit.averaging.observed import Observed, equilibration_proxies, places_of
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.run_states import Periodic, RunStates
from ensemblekit.averaging.seams import Seams, period_in_words, seam_in_words
from ensemblekit.averaging.series import Series, SeriesOf
from ensemblekit.averaging.weights import rests_on_few
from ensemblekit.errors import InputError
from ensemblekit.source import Block

if TYPE_CHECKING:
    from ensemblekit.md.system import System

Map = Callable[[Block], np.ndarray]
Trace = Callable[[np.ndarray], np.ndarray]
"""Values of the map (n, *out) -> the quantity of each frame, (n, ...)."""
Arrange = Callable[[np.ndarray, float, np.ndarray | None], np.ndarray]
"""(values, what is put elsewhere, the elements that the values are; None: all) -> an array of the observable's shape."""
Answer = Estimate | Mapping[str, Estimate]
"""An estimate; or several by name, "" being the quantity and the others what comes with it."""

MEAN, VALUES, PROXIES, SEAMS = "mean", "values", "proxies", "seams"
"""Names of the reducers that quantities share."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What quantities are estimated from: one run of an observable as it was read, and how it is to be averaged."""

    run: RunStates
    """Its branches are the reducers of the observable, by name."""
    equilibration: Equilibrate
    confidence: float
    missing: Missing = "raise"
    shown: bool = True
    """Whether the mean itself is shown, and its elements are doubted."""
    compact: bool = False
    """Whether the mean holds only elements that were ever other than 0, as `Observed("nonzero")` has them."""

    @cached_property
    def mean(self) -> Estimate:
        """Of the map."""
        return estimate_of(self.run, MEAN, equilibration=self.equilibration, confidence=self.confidence, shown=self.shown,
                           compact=self.compact, missing=self.missing)

    @cached_property
    def values(self) -> np.ndarray:
        """Of the map, all frames, (n, *out)."""
        return self.run.series(VALUES)

    @cached_property
    def kept(self) -> Reading:
        """Of the run without the frames before equilibration, whose end is found once for all quantities."""
        proxies = self.run.series(PROXIES) if self.equilibration == "auto" else None
        return replace(self, run=self.run.after(self.equilibration, proxies))

    def mean_by(self, name: str) -> Estimate:
        """Of what another reducer than that of the map looks at."""
        return estimate_of(self.run, name, equilibration=self.equilibration, confidence=self.confidence, missing=self.missing)

    @property
    def times(self) -> np.ndarray | None:
        """Of the frames, (n,), in ps."""
        return self.run.times

    @property
    def weights(self) -> np.ndarray | None:
        """Of the frames, (n,)."""
        return self.run.weights


class Quantity(ABC):
    """What is made of the values of a map: its reducers, and the estimate from their states."""

    unit: str
    coords: Coords
    """Named axes: name -> (values, unit), in the order of the axes."""
    bounds: Bounds | Mapping[str, Bounds] | None
    """What it cannot leave; by name where it comes with others, "" being itself."""

    @abstractmethod
    def reducers(self, name: str, equilibration: Equilibrate, missing: Missing) -> dict[str, Reducer]:
        """What is kept of the values, by name; reducers of one name are shared by the quantities of a measurement.

        name: that of the quantity.
        """

    @abstractmethod
    def estimate(self, name: str, reading: Reading) -> dict[str, Estimate]:
        """The estimate of one run, named "", and by name what comes with it."""

    @property
    def banded(self) -> Scale:
        """The scale of a curve that has a band."""
        return ""

    @property
    def period(self) -> float | None:
        """After which it comes round, 360 degrees: replicas are averaged on the circle. None: it does not."""
        return None

    @property
    def above_bounds(self) -> bool:
        """Whether the interval of a run is within the bounds by itself."""
        return False

    @property
    def limits(self) -> dict[str, Bounds]:
        """The bounds by name."""
        return dict(self.bounds) if isinstance(self.bounds, Mapping) else {} if self.bounds is None else {"": self.bounds}

    def within(self, answers: Mapping[str, Estimate]) -> dict[str, Estimate]:
        """The estimates of a run with their intervals within the bounds."""
        if self.above_bounds:
            return dict(answers)
        return {name: answer if name not in self.limits else _bounded(answer, self.limits[name])
                for name, answer in answers.items()}


@dataclass(frozen=True, eq=False)
class Mean(Quantity):
    """The mean of the map, or of a part of it. One number a frame has its series by itself."""

    unit: str = ""
    coords: Coords = field(default_factory=dict)
    bounds: Bounds | None = None
    series: Trace | None = None
    """What is kept of each frame as `.series`."""
    arrange: Arrange | None = None
    """Puts the numbers of the map (flat) in their places. Means and errors are put alike."""
    nonzero: bool = False
    """Nearly all numbers of the map are 0 in every frame: only those that ever are not carry statistics."""
    of: Trace | None = None
    """What it is the mean of, where the map gives several things at once."""
    angle_branches: tuple[tuple[float, float], ...] = ()
    """The turns that values of unknown meaning might be angles of: they are doubted where they jump from end to end."""

    def reducers(self, name: str, equilibration: Equilibrate, missing: Missing) -> dict[str, Reducer]:
        kept = Observed("nonzero" if self.nonzero else "blocks", missing, self.of)
        shared: dict[str, Reducer] = {MEAN if self.of is None else _mean_of(name): kept}
        if self.series is not None:
            shared[_trace(name)] = SeriesOf(self.series)
        if self.angle_branches:
            shared[SEAMS] = Seams(self.angle_branches)
        return shared

    def estimate(self, name: str, reading: Reading) -> dict[str, Estimate]:
        answer = replace(reading.mean if self.of is None else reading.mean_by(_mean_of(name)), unit=self.unit)
        if self.arrange is not None:
            held = [state[MEAN].pop() for state in reading.run.states]       # large, and of no further use
            kept = [one for one, start in zip(held, reading.run.starts, strict=True) if start >= answer.n_discarded]
            places = places_of([one for one in kept if isinstance(one, Observed)]) if self.nonzero else None
            held.clear()
            kept.clear()
            answer = self.within({"": answer})[""]      # before: the many zeros are one
            answer = _arranged(answer, self.arrange, places).judged()
        answer = _with_series(answer, name, self.series, reading.run)
        if self.angle_branches:
            answer = _doubted(answer, reading.run)
        answer = replace(answer, coords=dict(self.coords))
        return {"": answer} if self.arrange is not None else self.within({"": answer})


@dataclass(frozen=True, eq=False)
class OfMean(Quantity):
    """A smooth function of the mean of the map."""

    function: Callable[[np.ndarray], ArrayLike] | SecondMoment
    """Mean of the map (*out) -> the quantity, any shape. It must take any weighted mean of frames."""
    unit: str = ""
    coords: Coords = field(default_factory=dict)
    series: Trace | None = None
    """What is kept of each frame as `.series`; None: nothing."""
    bounds: Bounds | None = None
    scale: Scale = ""
    """Of a curve that has a band. On that of logarithms it stays above 0 by itself, and has no `bounds`."""

    def reducers(self, name: str, equilibration: Equilibrate, missing: Missing) -> dict[str, Reducer]:
        shared: dict[str, Reducer] = {MEAN: Observed("blocks", missing)}
        if self.series is not None:
            shared[_trace(name)] = SeriesOf(self.series)
        return shared

    def estimate(self, name: str, reading: Reading) -> dict[str, Estimate]:
        answer = function_of_mean(reading.run, MEAN, self.function, reading.mean, unit=self.unit, scale=self.scale)
        answer = _with_series(answer, name, self.series, reading.run)
        return self.within({"": replace(answer, coords=dict(self.coords))})

    @property
    def banded(self) -> Scale:
        return self.scale

    @property
    def period(self) -> float | None:
        return self.function.period if isinstance(self.function, Periodic) else None

    @property
    def above_bounds(self) -> bool:
        return isinstance(self.function, SecondMoment)


@dataclass(frozen=True, eq=False)
class OfStates(Quantity):
    """A function of statistics of one's own; :meth:`RunStates.estimate` gives its error."""

    function: Callable[[Reading], Answer]
    """The run, without the frames before equilibration -> the estimate. Its branches are the reducers by name."""
    statistics: Mapping[str, Reducer]
    """By name; quantities of one measurement share what has the same name."""
    unit: str = ""
    coords: Coords = field(default_factory=dict)
    bounds: Bounds | Mapping[str, Bounds] | None = None
    spread: bool = False
    """It is a variance or the root of one, whose interval is above its bound already."""

    def reducers(self, name: str, equilibration: Equilibrate, missing: Missing) -> dict[str, Reducer]:
        return {**self.statistics, **({PROXIES: SeriesOf(equilibration_proxies)} if equilibration == "auto" else {})}

    def estimate(self, name: str, reading: Reading) -> dict[str, Estimate]:
        return self.within(_named(self.function(reading.kept), self, reading.kept.run.doubts))

    @property
    def above_bounds(self) -> bool:
        return self.spread


@dataclass(frozen=True, eq=False)
class OfSeries(Quantity):
    """A function of the values of all frames, which says itself where the run begins."""

    function: Callable[[Reading], Answer]
    """The whole run, with `values` -> the estimate."""
    unit: str = ""
    coords: Coords = field(default_factory=dict)
    bounds: Bounds | Mapping[str, Bounds] | None = None
    period: float | None = None
    keeper: Reducer = field(default_factory=Series)
    """What keeps the values: a Series, or a SpilledSeries for many numbers a frame."""
    scale: Scale = ""
    """Of a curve that has a band, which the function makes."""
    in_time: str = ""
    """What it is of time, "a displacement in time": refused of frames that are in no order. "": nothing."""

    @property
    def banded(self) -> Scale:
        return self.scale

    def reducers(self, name: str, equilibration: Equilibrate, missing: Missing) -> dict[str, Reducer]:
        return {VALUES: self.keeper}

    def estimate(self, name: str, reading: Reading) -> dict[str, Estimate]:
        if self.in_time and not reading.run.ordered:
            raise InputError(f"{self.in_time} asks which frame comes after which, and these frames are in no order "
                             "(ordered=False); take a trajectory")
        w = reading.weights
        doubts = doubts_of_independent(w) if not reading.run.ordered else (
            rests_on_few(w, np.zeros(reading.run.n) if w is None else w))
        return self.within(_named(self.function(reading), self, doubts))


@dataclass(frozen=True, eq=False)
class Measurement:
    """An observable made ready for one system: a map, and the quantities that are made of its values."""

    map: Map
    """Block -> (n, *out), one row a frame. A map of shape (n,) is a scalar."""
    quantities: Quantity | Mapping[str, Quantity]
    """By name, "" being the observable itself: "coordination" is `averages["rdf"].coordination`. Or that one alone."""
    fields: tuple[str, ...] = ()
    """Fields the map needs besides positions and box: "velocity", "force"."""
    uses_blas: bool = True
    """False: the map is kernels and little else."""
    note: str = ""
    """What was made of all frames before averaging, in words: "the mean structure"."""

    def __post_init__(self) -> None:
        if isinstance(self.quantities, Quantity):
            object.__setattr__(self, "quantities", {"": self.quantities})
        if "" not in self.named or not all(isinstance(one, Quantity) for one in self.named.values()):
            raise InputError('the quantities of a Measurement are Mean, OfMean, OfStates or OfSeries, the observable itself by '
                             f'the name ""; got {self.quantities!r}')

    @property
    def named(self) -> Mapping[str, Quantity]:
        """The quantities by name."""
        assert isinstance(self.quantities, Mapping)
        return self.quantities

    @property
    def takes_means(self) -> bool:
        """Whether all quantities are means or functions of means, which can leave frames out."""
        return all(isinstance(one, Mean | OfMean) for one in self.named.values())

    @property
    def limits(self) -> dict[str, Bounds]:
        """The bounds of the quantities that have some."""
        own = self.named[""].limits
        return own | {name: one.limits[""] for name, one in self.named.items() if "" in one.limits}

    @property
    def scales(self) -> dict[str, Scale]:
        """The scales of the curves that have bands."""
        return {name: one.banded for name, one in self.named.items() if one.banded}

    @property
    def periods(self) -> dict[str, float]:
        """The periods of the quantities that come round."""
        return {name: one.period for name, one in self.named.items() if one.period is not None}

    def reducers(self, equilibration: Equilibrate, missing: Missing) -> dict[str, Reducer]:
        """What is kept of the values, by name, each once."""
        shared: dict[str, Reducer] = {}
        for name, quantity in self.named.items():
            for key, reducer in quantity.reducers(name, equilibration, missing).items():
                if type(shared.setdefault(key, reducer)) is not type(reducer):
                    raise InputError(f"two quantities of one measurement keep {key!r} by different reducers, "
                                     f"{type(shared[key]).__name__} and {type(reducer).__name__}: give them different names")
        return shared

    def estimate(self, run: RunStates, equilibration: Equilibrate, confidence: float, missing: Missing) -> Estimate:
        """The observable of one run, with what comes with it; the branches of the run are the reducers by name."""
        main = self.named[""]
        arranged = isinstance(main, Mean) and main.arrange is not None
        reading = Reading(run, equilibration, confidence, missing, shown=isinstance(main, Mean) and not arranged,
                          compact=arranged and isinstance(main, Mean) and main.nonzero)
        # the observable last: what is arranged is not kept
        further = {name: one.estimate(name, reading)[""] for name, one in self.named.items() if name}
        answers = main.estimate("", reading)
        answer = answers.pop("")
        return replace(answer, derived={**answer.derived, **answers, **further})


def _bounded(answer: Estimate, bounds: Bounds) -> Estimate:
    """The estimate, interval and band within the bounds."""
    band = None if answer.band is None else bounded_interval(answer.mean, answer.band, bounds)
    return replace(answer, interval=bounded_interval(answer.mean, answer.interval, bounds), band=band)


def _trace(name: str) -> str:
    return f"series of {name!r}"


def _mean_of(name: str) -> str:
    return f"mean of {name!r}"


def _with_series(answer: Estimate, name: str, series: Trace | None, run: RunStates) -> Estimate:
    return answer if series is None else replace(answer, series=run.series(_trace(name)))


def _named(answer: Answer, quantity: Quantity, doubts: tuple[str, ...]) -> dict[str, Estimate]:
    """The estimates by name, with the unit and axes of the quantity and what speaks against the run."""
    answers = dict(answer) if isinstance(answer, Mapping) else {"": answer}
    facts: dict[str, Any] = {"unit": quantity.unit} if quantity.unit else {}
    if quantity.coords:
        facts["coords"] = dict(quantity.coords)
    answers[""] = replace(answers[""], **facts)
    for why in reversed(doubts):
        answers = {name: one.with_doubt(why) for name, one in answers.items()}
    return answers


def _arranged(estimate: Estimate, arrange: Arrange, elements: np.ndarray | None) -> Estimate:
    """The estimate with its numbers in other places; what is put elsewhere is 0 and has no error.

    elements: of an estimate of some elements and one that stands for all others, which of them; None: it holds all.
    """
    arranged: dict[tuple[int, bool], np.ndarray] = {}       # one array may stand for several facts

    def put(x: np.ndarray, other: float) -> np.ndarray:
        key = id(x), other == 0.0
        if key not in arranged:
            arranged[key] = arrange(x, other, None) if elements is None else arrange(x[:-1], float(x[-1]), elements)
        return arranged[key]

    facts: dict[str, Any] = {name: put(getattr(estimate, name), np.nan)
                             for name in ("n_eff", "statistical_inefficiency", "correlation_time", "dof")}
    return replace(estimate, mean=put(estimate.mean, 0.0), stderr=put(estimate.stderr, 0.0),
                   interval=(put(estimate.low, 0.0), put(estimate.high, 0.0)),
                   estimators={name: put(x, 0.0) for name, x in estimate.estimators.items()}, **facts)


def _doubted(estimate: Estimate, run: RunStates) -> Estimate:
    """The estimate, with a doubt where its values jump as angles do."""
    branch = run.results(SEAMS)[0]
    if branch is None:
        return estimate
    return estimate.with_doubt(seam_in_words(branch, "Where they are angles, md.Function(function, unit=..., "
                                             f"period={period_in_words(branch)}) averages them on the circle (so does "
                                             "md.from_analysis); where they are none, their unit says so"))


@runtime_checkable
@runtime_checkable
class Observable(Protocol):
    """What `md.average` averages: small frozen settings."""

    def prepare(self, system: System) -> Measurement:
        """Atoms chosen and references made; raises InputError where the system lacks what is needed."""


class SameAtoms:
    """Observables that look at the same atoms in every frame: ``updating=True`` is refused with the reason.

    Others choose their atoms anew with it. The reason is that of the class, `_fixed`.
    """

    _fixed = "it needs the same atoms in every frame"

    def __new__(cls, *_: object, updating: bool = False, **__: object) -> Self:
        if updating:
            raise InputError(f"md.{cls.__name__} has no updating=: {cls._fixed}. Selections by place (around, sphzone, ...) "
                             "are those of the first frame")
        return super().__new__(cls)
