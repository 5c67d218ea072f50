"""What an observable is: frozen settings whose `prepare` gives a map over blocks of frames, and what is made of its mean.

Four kinds of answer, one mechanism each:

- the mean of the map: nothing more to say (`Prepared(map, unit)`); a map of one number a frame keeps its series;
- a smooth function of that mean (a root, g(r) of counts and volumes): `function=`, and further ones in `further=`;
  their errors come from a jackknife over the partial means the core keeps, blind to no correlation;
- other statistics than a mean (covariance, lag sums): `reducers=` with `finish=`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from ensemblekit.averaging.derived import Periodic, SecondMoment
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.reducer import Reducer
from ensemblekit.averaging.series import Series
from ensemblekit.errors import InputError
from ensemblekit.md.spool import Spool
from ensemblekit.source import Block

if TYPE_CHECKING:
    from ensemblekit.md.system import System

Map = Callable[[Block], np.ndarray]
Coords = Mapping[str, tuple[np.ndarray, str]]
Arrange = Callable[[np.ndarray, float, np.ndarray | None], np.ndarray]
"""(values, what is put elsewhere, the elements that the values are; None: all) -> an array of the observable's shape."""


class Derived(NamedTuple):
    """A smooth function of the mean of an observable's map."""

    function: Callable[[np.ndarray], Any] | SecondMoment
    """Mean of the map (*out) -> the quantity, any shape. It must take any weighted mean of frames."""
    unit: str = ""
    coords: Coords = {}     # noqa: RUF012  (never changed)
    """Axis of the quantity -> (values, unit)."""
    series: Callable[[np.ndarray], np.ndarray] | None = None
    """Values of the map (n, *out) -> the quantity of each frame, (n, ...), kept as `.series`; None: it has none."""
    bounds: tuple[float, float | None] | None = None
    """What it cannot leave, (0.0, None) for a variance or (0.0, 1.0) for a share: its interval keeps within."""


class Kept(Protocol):
    """What `finish` gets: one run as it was read, without the frames before equilibration."""

    @property
    def run(self) -> int:
        """Which of the runs it is, from 0."""

    @property
    def n(self) -> int:
        """Frames kept."""

    @property
    def times(self) -> np.ndarray | None:
        """Their times, (n,), in ps."""

    @property
    def weights(self) -> np.ndarray | None:
        """Their statistical weights, (n,)."""

    @property
    def confidence(self) -> float: ...

    @property
    def equilibration(self) -> Any:
        """What md.average was told, for observables that keep every value (all reducers are Series or Spool) and so all
        frames; else None, and what was to be left out is."""

    @property
    def states(self) -> list[tuple[int, list[Reducer]]]:
        """(first frame, the `reducers`) of consecutive parts of the run, up to about a hundred."""

    def merged(self) -> tuple[Any, ...]:
        """The results of the reducers over all frames kept."""

    def estimate(self, function: Callable[..., Any], unit: str = "", coords: Coords = {},      # noqa: B006
                 independent: Any = None, degree: int = 1) -> Estimate:
        """The Estimate of `function(*results of the reducers)` by a jackknife over the parts; for reducers that do not
        ask what comes after what.

        independent: of a variance or its root, the independent stretches of what varies, (*item,): its interval grows with
        it, and these say whether it is vouched for.
        degree: 2 of the root.
        """


@dataclass(frozen=True, eq=False)
class Prepared:
    """An observable made ready for one system."""

    map: Map
    """Block -> (n, *out), one row a frame: what is averaged. A map of shape (n,) is a scalar."""
    unit: str = ""
    """Of the observable (after `function`)."""
    coords: Coords = field(default_factory=dict)
    """Axis of the observable (after `function`) -> (values, unit), in the order of the axes."""
    function: Callable[[np.ndarray], Any] | SecondMoment | None = None
    """Mean of the map -> the observable; None: the mean itself."""
    arrange: Arrange | None = None
    """Instead of `function`, where it only puts the numbers (flat) in their places. Means and errors are put alike, with no
    jackknife and its memory."""
    nonzero: bool = False
    """Nearly all numbers of the map are 0 in every frame: only those that ever are not carry statistics."""
    further: Mapping[str, Derived] = field(default_factory=dict)
    """Name -> another function of the same mean: "coordination" is `found["rdf"].coordination`."""
    series: Callable[[np.ndarray], np.ndarray] | None = None
    """Values of the map (n, *out) -> the observable of each frame that is kept as `.series`, (n, ...); a map of one number a
    frame needs none. In `unit`."""
    fields: tuple[str, ...] = ()
    """Fields the map needs besides positions and box: "velocity", "force"."""
    reducers: tuple[Reducer, ...] = ()
    """Statistics of the map's values other than their mean; with `finish`."""
    finish: Callable[[Kept], Estimate | Mapping[str, Estimate]] | None = None
    """From the reducers of one run to the observable; a mapping names further quantities, "" being the observable."""
    premade: str = ""
    """What was made of all frames before averaging, in words: "the mean structure"."""
    bounds: tuple[float, float | None] | Mapping[str, tuple[float, float | None]] | None = None
    """What the observable cannot leave, (0.0, None) for a length or (0.0, 1.0) for a share: its interval keeps within; with
    `finish` also by name, "" being the observable."""
    spread: bool = False
    """It is a variance or the root of one, whose interval is above its bound already."""
    compiled: bool = False
    """The map is one number a frame and calls no BLAS: kernels and little else."""
    period: float | None = None
    """After which the observable comes round (360 degrees): replicas are averaged on the circle. None where it does not,
    or where `function` is Periodic and says so."""

    branches: tuple[tuple[float, float], ...] = ()
    """The turns that values of unknown meaning might be angles of: they are doubted where they jump from end to end."""

    @property
    def limits(self) -> dict[str, tuple[float, float | None]]:
        """Of the quantities that have bounds, by name, "" being the observable."""
        found = {name: more.bounds for name, more in self.further.items() if more.bounds is not None}
        own = self.bounds if isinstance(self.bounds, Mapping) else {} if self.bounds is None else {"": self.bounds}
        return {**found, **own}

    @property
    def keeps(self) -> bool:
        """Whether the reducers keep every value, so that `finish` itself says where the run begins."""
        return bool(self.reducers) and all(isinstance(reducer, Series | Spool) for reducer in self.reducers)

    @property
    def traces(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """What is kept of each frame besides, by the name of the quantity."""
        named = {"": self.series, **{name: more.series for name, more in self.further.items()}}
        return {name: function for name, function in named.items() if function is not None}

    @property
    def periods(self) -> dict[str, float]:
        """Of the quantities that come round, by name, "" being the observable."""
        functions = {"": self.function, **{name: more.function for name, more in self.further.items()}}
        found = {name: function.period for name, function in functions.items() if isinstance(function, Periodic)}
        return found if self.period is None else {**found, "": self.period}


@runtime_checkable
class Observable(Protocol):
    """What `md.average` averages: small frozen settings."""

    def prepare(self, system: System) -> Prepared:
        """Atoms chosen and references made; raises InputError where the system lacks what is needed."""


class SameAtoms:
    """Observables that look at the same atoms in every frame: ``updating=True`` is refused with the reason.

    Others choose their atoms anew with it. The reason is that of the class, `_fixed`.
    """

    _fixed = "it needs the same atoms in every frame"

    def __new__(cls, *_: Any, updating: bool = False, **__: Any) -> Self:
        if updating:
            raise InputError(f"md.{cls.__name__} has no updating=: {cls._fixed}. Selections by place (around, sphzone, ...) "
                             "are those of the first frame")
        return super().__new__(cls)
