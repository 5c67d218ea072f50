"""How many modes: by count, by energy, by the error allowed, or by what stands out of noise."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.scaling import ldexp

GAVISH_DONOHO = ("gavish-donoho", "optimal")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule for the rank; exactly one of the settings is not None."""

    rank: int | None = None
    energy: float | None = None
    tolerance: float | None = None
    absolute: float | None = None
    noise: bool = False
    given: bool = True
    """False where nobody asked and energy=0.99 was taken."""

    @classmethod
    def of(cls, rank: int | str | None, energy: float | None, tolerance: float | None, absolute: float | None,
           n: int | None) -> Rule:
        """From the arguments of pod, checked."""
        named = {"rank": rank, "energy": energy, "tolerance": tolerance, "absolute_tolerance": absolute}
        given = [name for name, x in named.items() if x is not None]
        if len(given) > 1:
            raise InputError(f"give one of rank, energy, tolerance and absolute_tolerance; got {' and '.join(given)}")
        if isinstance(rank, str):
            if rank not in GAVISH_DONOHO:
                raise InputError(f'rank is a whole number or "gavish-donoho"; got {rank!r}')
            return cls(noise=True)
        if rank is not None:
            if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1 or (n is not None and rank > n):
                raise InputError(f"rank is 1 to the number of snapshots, {n if n is not None else 'as many as come'}; "
                                 f"got {rank!r}")
            return cls(rank=int(rank))
        for name, value in (("tolerance", tolerance), ("energy", energy), ("absolute_tolerance", absolute)):
            if value is not None and (isinstance(value, bool | str) or not np.isscalar(value) or not np.isreal(value)):
                raise InputError(f"{name} is a number; got {value!r}")
        if tolerance is not None:
            if not 0 < tolerance < 1:
                raise InputError(f"tolerance is a relative error between 0 and 1; got {tolerance!r}")
            return cls(tolerance=float(tolerance))
        if absolute is not None:
            if not 0 < absolute < math.inf:
                raise InputError(f"absolute_tolerance is an error in the unit of the field, above 0; got {absolute!r}")
            return cls(absolute=float(absolute))
        if energy is not None and not 0 < energy <= 1:
            raise InputError(f"energy is a share in (0, 1]; got {energy!r}")
        return cls(energy=0.99 if energy is None else float(energy), given=energy is not None)

    @property
    def counted(self) -> bool:
        """Whether the number of modes is known beforehand."""
        return self.rank is not None

    def in_unit(self, power: int) -> Rule:
        """The same for singular values in units of 2**power."""
        return self if self.absolute is None else replace(self, absolute=ldexp(self.absolute, -power))

    def allowed(self, total: float) -> float:
        """Energy that may be left out."""
        if self.tolerance is not None:
            return self.tolerance**2 * total
        if self.absolute is not None:
            return self.absolute * self.absolute        # infinite rather than an OverflowError
        return (1 - (self.energy or 0)) * total

    def choose(self, squared: np.ndarray, total: float, usable: int, n: int, size: int, complete: bool) -> int:
        """The number of modes, from the squared singular values found (falling)."""
        if self.rank is not None:
            return max(1, min(self.rank, usable))
        if self.noise:
            if not complete:
                raise InputError("Gavish–Donoho needs the median of all singular values, and this route found only the "
                                 'leading ones; use method="gram" (or "tsqr"), or give rank, energy or tolerance')
            sigma = np.sqrt(squared[:min(n, size)])
            return max(1, min(int(np.count_nonzero(sigma > gavish_donoho(sigma, n, size))), usable))
        # what is left out after k modes, summed from the smallest up, so that small remainders keep their digits
        rest = max(total - float(squared.sum()), 0.0) if not complete else 0.0
        left_out = np.append(np.cumsum(squared[::-1])[::-1][1:], 0.0) + rest
        fits = np.flatnonzero(left_out <= self.allowed(total) * (1 + 1e-12))
        return min(int(fits[0]) + 1, usable) if len(fits) else usable


def gavish_donoho(singular_values: np.ndarray, n: int, size: int) -> float:
    """The threshold below which singular values of n snapshots of `size` numbers are white noise of unknown strength.

    tau = omega(beta) median(sigma) with beta the shorter by the longer side (Gavish & Donoho 2014, eq. 5 and the
    polynomial for omega). Needs all min(n, size) singular values.
    """
    sigma = as_array(singular_values, "singular values")
    if len(sigma) < min(n, size):
        raise InputError(f"Gavish–Donoho needs all {min(n, size)} singular values; got {len(sigma)}")
    beta = min(n, size) / max(n, size)
    return float((0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * np.median(sigma))


UNITS = {"": 1, "k": 1000, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def as_bytes(limit: object) -> int:
    """A number of bytes: 2**31, "2GiB", "500 MB"."""
    if isinstance(limit, int | float | np.number) and not isinstance(limit, bool) and limit > 0 and math.isfinite(limit):
        return int(limit)
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]i?)?b?\s*", str(limit).lower())
    try:
        value = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    except ValueError:
        value = 0
    if value <= 0:
        raise InputError(f'a memory limit is a number of bytes, or words such as "2GiB" or "500 MB"; got {limit!r}')
    return value


def in_words(nbytes: float) -> str:
    """1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} TiB"
