"""The contract of a statistic: a core of five verbs, what it can do besides by name, and the laws that all are held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeGuard, TypeVar, runtime_checkable

from ensemblekit.source import Array, Cut, Field

R = TypeVar("R", covariant=True)


@runtime_checkable
class Reducer(Protocol[R]):
    """Settings and state of one statistic.

    The instance given to ``reduce`` is a pattern and never changed: every piece of the data starts from ``empty()``. A
    reducer can be cut in time (:class:`MergesInTime`), in space (:class:`JoinsInSpace`) or both, and says so by having the
    verbs; nothing else is asked of it. :func:`ensemblekit.testing.check_reducer` holds it to the laws:

    1. Every cut that it has the verbs for gives the same answer, empty and single-snapshot pieces included.
    2. ``result()`` changes nothing; asking twice gives the same.
    3. ``restored(state())`` continues as if nothing had happened; the state is plain arrays.
    4. State is float64 on the device of the values, whatever their type.
    """

    def empty(self) -> Self:
        """A new state with the same settings that has seen nothing."""

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        """Take in a block: values (n, *item), values[0] being snapshot `start` of its run; weights (n,) or None."""

    def result(self) -> R:
        """The answer so far."""

    def state(self) -> dict[str, Array]:
        """The state as plain arrays."""

    def restored(self, state: Mapping[str, Any]) -> Self:
        """A reducer with my settings and the given state; the inverse of ``state``."""


class Restart(Exception):
    """What a reducer raises whose settings do not fit the snapshots: whoever called ``reduce`` begins anew with others.

    It ends the read at once and reaches the caller as it is, where other exceptions are told as a ReductionError.
    """


@runtime_checkable
class MergesInTime(Protocol):
    """A reducer whose run may be cut in time."""

    def merge(self, later: Self) -> None:
        """Take in the state of the snapshots of the same run *right after* mine; either side may be empty."""


@runtime_checkable
class JoinsInSpace(Protocol):
    """A reducer whose item may be cut into tiles."""

    def join(self, right: Self) -> None:
        """Take in the state of the same snapshots for the next tile of the item."""

    def reshape(self, item: tuple[int, ...]) -> None:
        """All tiles are joined: give what is flat in the state the shape of the item."""


@runtime_checkable
class FillsSlots(JoinsInSpace, Protocol):
    """A reducer whose tiles can be parts of one memory, so that nothing is copied when they are joined."""

    def preallocate(self, field: Field) -> Self:
        """A pattern with memory for a whole item of the field."""

    def slot(self, tile: slice) -> Self:
        """An empty state for these numbers of the item: in that memory, where the pattern has it."""


@runtime_checkable
class TakesResult(Protocol):
    """A reducer that can make its answer in place of its state."""

    def take_result(self) -> Any:
        """What ``result()`` gives; the state is spent."""


_KNOWN: dict[tuple[type, type], bool] = {}


def _is_a(x: object, protocol: type) -> bool:
    """isinstance for the protocols above, each class looked at once: it takes 0.02 to 0.1 ms, and they are methods only."""
    if isinstance(x, type):     # its methods are the instance's: of all classes, `type(x)` says nothing
        return isinstance(x, protocol)
    known = _KNOWN.get((type(x), protocol))
    if known is None:
        known = _KNOWN[type(x), protocol] = isinstance(x, protocol)
    return known


def is_reducer(x: object) -> TypeGuard[Reducer]:
    """Whether x has the verbs of a Reducer; the class of one has them too."""
    return _is_a(x, Reducer)


def fills_slots(reducer: object) -> TypeGuard[FillsSlots]:
    """Whether a reducer is one that FillsSlots."""
    return _is_a(reducer, FillsSlots)


def cuts_of_reducer(reducer: object) -> frozenset[Cut]:
    """The ways to cut the data that a reducer has the verbs for."""
    cuts: set[Cut] = set()
    if _is_a(reducer, MergesInTime):
        cuts.add("time")
    if _is_a(reducer, JoinsInSpace):
        cuts.add("space")
    return frozenset(cuts)
