"""Powers of two in which fields are held while they are decomposed, so that squares of their numbers are ordinary ones.

Singular values come from squares, and those of 1e160 or 1e-170 are no numbers. Multiplying by a power of two is exact: what
is decomposed in units of 2**power has the bits of the answer, times that power. Fields of ordinary size are left as they are.
Nothing is read for it: the first piece of the snapshots that does not fit says what would, and the read begins anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import ArrayLike

from ensemblekit.averaging.reducer import Restart
from ensemblekit.intake import as_array

RANGE = {True: (2.0**-60, 2.0**100), False: (2.0**-400, 2.0**400)}
"""Energies of a piece, least and most, that arithmetic in float32 (True) or float64 does as it should; LAPACK scales matrices
beyond 1e±146 by numbers that are no powers of two."""


class OutOfRange(Restart):
    """Snapshots whose squares do not fit the arithmetic: `power` is that of the unit that fits them, `field` the name of the
    field (None: all fields), `share` how much of the snapshots had been read before those."""

    def __init__(self, power: int, field: str | None = None, share: float = 0.0):
        self.power, self.field, self.share = power, field, share
        super().__init__(power, field, share)


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit 2**power of the numbers of a field, or of all."""

    power: int = 0
    fixed: bool = False
    """Whether numbers too small for it are left as they are, because others are not."""
    field: str | None = None
    """The name of the field; None: all."""

    def check(self, energy: float, largest: Callable[[], float], single: bool, share: float = 0.0) -> None:
        """Raise OutOfRange where an energy, in this unit, says that another one is needed.

        `largest` gives the largest magnitude in this unit: infinite where it is beyond a double, NaN where numbers are NaN or
        infinite themselves. `share` of the snapshots was read before.
        """
        low, high = RANGE[single]
        if low <= energy <= high or (self.fixed and energy < low):
            return
        peak = largest()       # squares of complex numbers that are too large are NaN, as is the energy where there are gaps
        if not peak or math.isnan(peak) or (math.isnan(energy) and peak < high**0.5):
            return
        # no more at a time than keeps what columns are multiplied with a number of the arithmetic
        most = 120 if single else 1000
        step = math.frexp(peak)[1] if math.isfinite(peak) else most
        raise OutOfRange(self.power + min(max(step, -most), most), self.field, share)


ORDINARY = Unit()


def magnitude(values: ArrayLike) -> float:
    """The largest magnitude, of the real and the imaginary parts; NaN where there is any."""
    numbers = as_array(values, "values", named_axes=True)
    if not numbers.size:
        return 0.0
    if numbers.dtype.kind == "c":
        return max(magnitude(numbers.real), magnitude(numbers.imag))
    return float(max(numbers.max(), -numbers.min()))
