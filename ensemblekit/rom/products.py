"""Products of the components of a field about a reference, as a reducer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from ensemblekit.averaging.missing import Missing
from ensemblekit.averaging.rows import rows_of
from ensemblekit.scaling import (
    FREE,
    LARGE,
    SMALL,
    common,
    ldexp,
    power_of_two,
    weight_exponent,
)
from ensemblekit.source import Array

PAIRS = {2: ((0, 0), (1, 1), (0, 1)), 3: ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2))}
"""Components of a symmetric tensor in VTK's order: xx, yy, zz, xy, yz, xz."""
VANISHING, OVERFLOWING = 2.0**-600, 2.0**1000
"""Sums of fourth powers below which some may have vanished, and above which some may have overflowed: weights and deviations
of ordinary size stay between."""


class Products:
    """Sums of w a, w a_i a_j and their squares about a fixed reference. Merges in any order.

    The values are divided by 2**exponent, (cells,), beforehand and the weights by 2**weight_exponent; the reference is
    of divided values. The exponents given are those of a glance: they change with values and weights that need others.
    With missing="drop" a cell that is NaN adds nothing to its sums.
    """

    def __init__(self, parts: int, reference: np.ndarray, exponent: np.ndarray | None = None, weight_exponent: int = 0,
                 missing: Missing = "raise"):
        self.parts, self.reference, self.exponent, self.weight_exponent = parts, reference, exponent, weight_exponent
        self.missing = missing
        self.n, self.weight = 0, 0.0
        self.present: np.ndarray | None = None      # (cells,) weight of the snapshots in which a cell is there; None: of all
        self.sums: list[np.ndarray] = []        # (parts, cells), (pairs, cells), (pairs + 1, cells)

    def empty(self) -> Self:
        return type(self)(self.parts, self.reference, self.exponent, self.weight_exponent, self.missing)

    def update(self, values: Array, start: int, weights: Array | None = None) -> None:
        from ensemblekit.rom.kernels_average import add_products

        if not len(values):
            return
        given = np.asarray(values)
        there = self._there(given) if self.missing == "drop" else None
        if there is not None:       # at the reference a deviation is 0 and adds nothing
            reference = ldexp(self.reference, np.repeat(self._exponents(), self.parts)).reshape(given.shape[1:])
            kept = np.repeat(there, self.parts, axis=1).reshape(given.shape)
            given = np.where(kept, given, reference)
        if not self.sums:
            pairs, cells = self.parts * (self.parts + 1) // 2, math.prod(given.shape[1:]) // self.parts
            self.sums = [np.zeros((k, cells)) for k in (self.parts, pairs, pairs + 1)]
        w = np.ones(len(given))
        if weights is not None or self.weight_exponent:
            w = w if weights is None else np.ascontiguousarray(weights, np.float64)
            self._divide(self.exponent, weight_exponent(w, self.weight_exponent, self.weight == 0.0))
            w = ldexp(w, -self.weight_exponent)
        wide = given.dtype.kind == "f" and given.dtype.itemsize > 4
        # the first block is looked at by its sums, which are thrown away where they overflow: no further read of the values
        if wide and self.n and (self.exponent is not None or power_of_two(given) > LARGE):
            self._make_room(given)
        with np.errstate(invalid="ignore", over="ignore"):
            add_products(*self._rows(given), w, self.reference, *self.sums)
            if wide and not self.n and not (self.sums[-1][-1] < OVERFLOWING).all() and self._make_room(given):
                for x in self.sums:
                    x[:] = 0.0
                add_products(*self._rows(given), w, self.reference, *self.sums)
        if wide:
            self._look_closer(given, w)
        if there is not None or self.present is not None:
            before = np.full(self.sums[0].shape[1], self.weight) if self.present is None else self.present
            self.present = before + (float(w.sum()) if there is None else w @ there)
        self.n += len(given)
        self.weight += float(w.sum())

    def _there(self, values: np.ndarray) -> np.ndarray | None:
        """(n, cells) bool, whether a cell is a number in all its components; None where all are."""
        if values.dtype.kind != "f" or not np.isnan(values).any():
            return None
        return ~np.isnan(values).reshape(len(values), -1, self.parts).any(axis=2)

    @property
    def weights(self) -> Any:
        """Of the snapshots in which each cell is there: (cells,), or one number."""
        return self.weight if self.present is None else self.present

    def _rows(self, values: np.ndarray) -> tuple[np.ndarray, int, int, int, int]:
        """Values (n, *item) over their powers of two, as the kernel takes them."""
        if self.exponent is not None:
            values = ldexp(values.reshape(len(values), -1), -np.repeat(self.exponent, self.parts))
        rows = rows_of(values.view(np.uint8) if values.dtype == bool else values)
        return rows.flat, rows.stride, rows.n, rows.width // self.parts, self.parts

    def _divide(self, exponent: np.ndarray | None, weight_exponent: int) -> None:
        """Change to these powers of two."""
        if exponent is not self.exponent:
            own = self._exponents()
            step = own - exponent
            self.reference = ldexp(self.reference, np.repeat(step, self.parts))
            self.sums = [ldexp(x, degree * step) for degree, x in zip((1, 2, 4), self.sums, strict=False)]
            self.exponent = exponent
        step = self.weight_exponent - weight_exponent
        if step:
            self.sums, self.weight = [ldexp(x, step) for x in self.sums], ldexp(self.weight, step)
            self.present = None if self.present is None else ldexp(self.present, step)
            self.weight_exponent = weight_exponent

    def _exponents(self) -> np.ndarray:
        return np.zeros(len(self.reference) // self.parts, np.int64) if self.exponent is None else self.exponent

    def _free(self) -> np.ndarray:
        """The exponents, `FREE` in cells that have been at a reference of 0 all the time."""
        zero = (self.reference.reshape(-1, self.parts) == 0).all(axis=1)
        for x in self.sums:
            zero &= (x == 0).all(axis=0)
        return np.where(zero, FREE, self._exponents())

    def _needed(self, values: np.ndarray) -> np.ndarray:
        """(cells,) exponents that suit the values (n, *item) of each; `FREE` where they are 0."""
        e = power_of_two(values.reshape(len(values), -1), 0, always=True).reshape(-1, self.parts)
        zero = ~np.any(values, axis=0).reshape(-1, self.parts)
        return np.where(zero, FREE, e).max(axis=1)

    def _make_room(self, values: np.ndarray) -> bool:
        """Larger exponents for cells whose fourth powers would overflow; whether there are any."""
        needed, own = self._needed(values), self._exponents()
        new = np.where(needed > own + LARGE, needed, own)
        if (new == own).all():
            return False
        self._divide(new, self.weight_exponent)
        return True

    def _look_closer(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Smaller exponents for cells whose fourth powers vanished: they have been at a reference of 0 until now."""
        from ensemblekit.rom.kernels_average import add_products

        at = np.flatnonzero(self.sums[-1][-1] < VANISHING)
        if len(at):
            at = at[(self.reference.reshape(-1, self.parts)[at] == 0).all(axis=1)]
        if not len(at):
            return
        some = values.reshape(len(values), -1, self.parts)[:, at]
        if not some.any():
            return
        needed, own = self._needed(some), self._exponents().copy()
        moved = (needed != FREE) & (needed < own[at] + SMALL)
        if not moved.any():
            return
        at, needed = at[moved], needed[moved]
        one = Products(self.parts, np.zeros(len(at) * self.parts), needed)
        one.sums = [np.zeros((len(x), len(at))) for x in self.sums]
        add_products(*one._rows(np.ascontiguousarray(some[:, moved])), weights, one.reference, *one.sums)
        for x, y in zip(self.sums, one.sums, strict=True):
            x[:, at] = y
        own[at] = needed
        self.exponent = own

    def merge(self, later: Self) -> None:
        if later.n:
            own, its = alike([self, later])
            self.exponent, self.weight_exponent, self.reference = own.exponent, own.weight_exponent, own.reference
            self.sums = [a + b for a, b in zip(own.sums, its.sums, strict=True)] if own.sums else its.sums
            if own.present is not None or its.present is not None:
                self.present = own.weights + its.weights
            self.n, self.weight = self.n + later.n, own.weight + its.weight

    def result(self) -> Self:
        return self

    def state(self) -> dict[str, Array]:
        named = {"n": np.array(self.n), "weight": np.array(self.weight), "weight_exponent": np.array(self.weight_exponent)}
        if self.exponent is not None:
            named["exponent"] = self.exponent.copy()
        if self.present is not None:
            named["present"] = self.present.copy()
        return named | dict(zip(("sums", "products", "squares"), self.sums, strict=False))

    def restored(self, state: Mapping[str, Any]) -> Self:
        new = self.empty()
        new._divide(np.array(state["exponent"]) if "exponent" in state else new.exponent, int(state["weight_exponent"]))
        new.n, new.weight = int(state["n"]), float(state["weight"])
        new.present = np.array(state["present"]) if "present" in state else None
        new.sums = [np.array(state[name]) for name in ("sums", "products", "squares") if name in state]
        return new


def alike(states: Sequence[Products]) -> list[Products]:
    """The same sums over powers of two that are common to all."""
    exponent = states[0].exponent
    if any(one.exponent is not exponent for one in states):
        exponent = common(np.max([one._free() for one in states], axis=0), FREE)
    heavy = [one.weight_exponent for one in states if one.weight > 0]
    copies = [copy.copy(one) for one in states]
    for one in copies:
        one._divide(exponent, max(heavy, default=states[0].weight_exponent))
    return copies
