"""The contract of a statistic: three verbs, two ways to cut, and laws that the tests hold every reducer to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from ensemblekit.source import Array, Cut

R = TypeVar("R", covariant=True)


@runtime_checkable
class Reducer(Protocol[R]):
    """Settings and state of one statistic.

    The instance given to ``reduce`` is a pattern and never changed: every piece of the data starts from ``empty()``.

    Laws (tests/test_reducer_laws.py):

    1. Every cut named in ``cuts`` gives the same answer, empty and single-snapshot pieces included.
    2. ``result()`` changes nothing; asking twice gives the same.
    3. ``restored(state())`` continues as if nothing had happened; the state is plain arrays.
    4. State is float64 on the device of the values, whatever their type.

    Of its own accord one may have ``final()``, the answer made in place of the state at its last use, and ``roomy(size,
    complex)`` with ``tile(slice)``, a pattern whose tiles are parts of one memory, so that nothing is copied when they are
    put beside each other. What they give is what the others give.
    """

    @property
    def cuts(self) -> frozenset[Cut]:
        """ "time": it has ``merge``; "space": it has ``beside``. A class attribute."""

    def empty(self) -> Self:
        """A new state with the same settings that has seen nothing."""

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        """Take in a block: values (n, *item), values[0] being snapshot `start` of its run; weights (n,) or None."""

    def merge(self, later: Self) -> None:
        """Take in the state of the snapshots of the same run *right after* mine; either side may be empty."""

    def beside(self, right: Self) -> None:
        """Take in the state of the same snapshots for the next tile of the item."""

    def shaped(self, item: tuple[int, ...]) -> None:
        """All tiles are beside each other: give what is flat in the state the shape of the item."""

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


TIME: frozenset[Cut] = frozenset({"time"})
SPACE: frozenset[Cut] = frozenset({"space"})
BOTH: frozenset[Cut] = frozenset({"time", "space"})
