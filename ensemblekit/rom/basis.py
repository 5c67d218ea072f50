"""The result of a POD: modes, their energies, and how to go there and back.

Two classes, and longer than most files here: a basis gives the parts of its fields, and a part asks its basis for the
coefficients and errors that all of them share; apart they would be two files that need each other.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError, UnknownFieldError
from ensemblekit.intake import as_array, in_unit
from ensemblekit.intake_labels import Labels, aligned
from ensemblekit.provenance import Provenance
from ensemblekit.results import Result
from ensemblekit.rom.files import load_basis, save_basis
from ensemblekit.rom.product import applied, is_sparse
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import Field

PAIR = 0.02
"""Neighbouring singular values closer than this (relative) count as one pair: its two modes are free to rotate."""
SINGLE = 2.0**-24
"""What a number loses, relatively, where it is kept in 32 bits."""
ALIKE, APART = 0.08, 0.25
"""A cut splits a pair where the singular values beside it are this alike, and their other neighbours this far away: the two
modes of a wave seen over no whole number of periods differ by some per cent."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Basis(Result):
    """Orthonormal modes of a set of snapshots: snapshots ≈ mean + coefficients @ modes.

    With one field the arrays have its shape. With several, `modes` and `mean` hold all fields flattened one after the
    other, each in its own unit, and ``basis["U"]`` is the part of one field. Modes are orthonormal in the inner
    product of the fields divided by their `scale`.
    """

    FIGURE = "rom.spectrum"

    modes: np.ndarray
    """(k, *item), orthonormal; the largest entry of each is positive; NaN where the mask is False, as in the mean.
    (k, size) with several fields."""
    singular_values: np.ndarray
    """(k,) float64, falling, in the unit of the field times the root of the inner product's."""
    coefficients: np.ndarray
    """(n, k): each snapshot in the modes."""
    mean: np.ndarray
    """(*item) float64: what was subtracted; zeros where nothing was, NaN where the mask is False."""
    total_energy: float
    """Sum of all squared singular values, those left out included."""
    fields: Mapping[str, Field] = field(default_factory=dict)
    """Name -> shape, type and unit, in the order in which they were joined."""
    inner_product: Any = None
    """None (Euclidean), weights (broadcast to the item from the left) or a sparse mass matrix; a mapping of field to
    these with several fields."""
    scale: Mapping[str, float] = field(default_factory=dict)
    """Field -> the number it was divided by before all were joined; empty: 1."""
    times: np.ndarray | None = None
    """(n,), where the snapshots have any."""
    time_unit: str = ""
    mesh: Any = None
    """Points and cells, where the source has a mesh."""
    mask: np.ndarray | None = None
    """(*item) bool, False where the snapshots held NaN throughout and nothing was decomposed; None: all True."""
    error_per_snapshot: np.ndarray | None = None
    """(n,): ‖snapshot − reconstruction‖ / root mean square of ‖snapshot − mean‖ over the snapshots: their root mean
    square is `relative_error`."""
    error_per_field: Mapping[str, float] = field(default_factory=dict)
    """Field -> error of its reconstruction over the norm of its own fluctuation."""
    weights: np.ndarray | None = None
    """(n,) statistical weights of the snapshots, of mean 1, that entered; None: all 1."""
    spectrum: np.ndarray | None = None
    """All singular values that were found, at least the k kept."""
    spectrum_complete: bool = False
    """Whether `spectrum` is all of them, the smallest ones included (Gavish–Donoho needs them)."""
    floor: float = 0.0
    """Singular values below `floor` times the first are rounding on this route: no error is told to be less than this share
    of what was decomposed."""
    method: str = "gram"
    """The route: "gram", "covariance", "tsqr", "randomized", "incremental"."""
    passes: int = 2
    """How often the snapshots were read."""
    residual: float | None = None
    """Energy left out by these coefficients and modes, in the unit of `total_energy`; None: total less captured."""
    energies: tuple[int, float, float] | None = None
    """(power, total energy, residual), both divided by 4**power, where squares of singular values go beyond a float64;
    `total_energy` and `residual` may be infinite or 0 then. None: they do not."""
    notes: tuple[str, ...] = ()
    """What was chosen where nothing was said: the inner product, the share of the energy."""
    labels: Labels | None = None
    """Names of the axes of the fields, coordinates along them, and what times are counted from, where the snapshots came with
    any."""
    provenance: Provenance | None = None
    """How it came about: versions, command line or caller, files that were read, settings, date."""
    run_lengths: tuple[int, ...] = ()
    """Snapshots of each run, in order, of several independent ones (a ReplicaSet); no step leads across. (): one run."""
    run_times: np.ndarray | None = None
    """(n,) times of the snapshots of several runs, each on its own clock."""

    # -- size and energy -------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of modes."""
        return len(self.singular_values)

    @property
    def n(self) -> int:
        """Number of snapshots."""
        return len(self.coefficients)

    @property
    def unit(self) -> str:
        """Of the field; "" with several."""
        return next(iter(self.fields.values())).unit if len(self.fields) == 1 else ""

    @property
    def energy_fraction(self) -> np.ndarray:
        """(k,): share of the *total* energy in each mode."""
        return self.shares_of(self.singular_values)

    def shares_of(self, singular_values: ArrayLike) -> np.ndarray:
        """The squares of singular values, of any shape, as shares of the total energy."""
        values = np.asarray(singular_values, np.float64)
        return ldexp(values, -self._power) ** 2 / self._total if self._total else np.zeros(values.shape)

    @property
    def cumulative_energy(self) -> np.ndarray:
        """(k,): share of the total energy in the first 1, 2, ... modes."""
        return np.cumsum(self.energy_fraction)

    @property
    def relative_errors(self) -> np.ndarray:
        """(k,): error of the reconstruction from the first 1, 2, ... modes over the norm of what was decomposed.

        By Eckart and Young sqrt(1 - cumulative energy): 99 % of the energy is an error of 10 %. What rounding may add to that
        is in it (`error_floor`).
        """
        if not self._total:
            return np.zeros(self.rank)
        return np.sqrt(np.clip((self._after + self._left_out) / self._total, 0, None) + self.error_floor**2)

    @property
    def error_floor(self) -> float:
        """The least relative error that can be told: of the route (`floor`), and of modes kept in 32 bits."""
        return math.hypot(self.floor, SINGLE if self.modes.dtype in (np.float32, np.complex64) else 0.0)

    @property
    def relative_error(self) -> float:
        """Error of the reconstruction from all k modes, over the norm of what was decomposed (in the inner product)."""
        return float(self.relative_errors[-1])

    @property
    def _power(self) -> int:
        """What follows is in units of 2**power, squares of 4**power."""
        return 0 if self.energies is None else self.energies[0]

    @property
    def _total(self) -> float:
        return self.total_energy if self.energies is None else self.energies[1]

    @property
    def _squared(self) -> np.ndarray:
        return ldexp(self.singular_values, -self._power) ** 2

    @property
    def _after(self) -> np.ndarray:
        """(k,): energy of the modes after each, summed from the smallest up so that small ones keep their digits."""
        return np.append(np.cumsum(self._squared[::-1])[::-1][1:], 0.0)

    @property
    def _left_out(self) -> float:
        if self.energies is not None:
            return self.energies[2]
        if self.residual is not None:
            return self.residual
        return max(self.total_energy - float((self.singular_values**2).sum()), 0.0)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Neighbours (i, i + 1), counted from 0, whose singular values are so close that the two modes are only defined
        up to a rotation between them: travelling waves come in such pairs. Compare the planes, not the modes."""
        s, pairs, k = self.singular_values, [], 0
        while k + 1 < len(s):
            if s[k] - s[k + 1] <= PAIR * s[k]:
                pairs.append((k, k + 1))
                k += 1
            k += 1
        return pairs

    @property
    def splits_pair(self) -> bool:
        """Whether the cut after the last mode goes through a pair that stands apart from its neighbours."""
        s, k = self.spectrum, self.rank
        close = ALIKE if self.method != "randomized" else ALIKE / 4     # values behind the cut are rougher there
        if s is None or len(s) <= k or s[k] <= max(self.floor, 1e-12) * s[0] or s[k - 1] - s[k] > close * s[k - 1]:
            return False
        # in a plateau of noise every singular value has close neighbours on both sides: no pair to speak of
        before = math.inf if k < 2 else s[k - 2] / s[k - 1] - 1
        after = math.inf if len(s) <= k + 1 or s[k + 1] <= 0 else s[k] / s[k + 1] - 1
        return bool(min(before, after) > APART)

    @property
    def compression_ratio(self) -> float:
        """Numbers in the snapshots over numbers kept (modes, coefficients, mean)."""
        n, size = len(self.coefficients), self.mean.size
        return n * size / (self.rank * (n + size) + size)

    # -- fields ----------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> FieldPart:
        """The part of one field: its modes, mean, unit, scale and error."""
        for part in self.parts():
            if part.name == name:
                return part
        raise UnknownFieldError(name, self.fields)

    def parts(self) -> Iterator[FieldPart]:
        """The parts of all fields, in order."""
        if not self.fields:
            yield FieldPart("values", self.modes, self.mean, Field(self.mean.shape), 1.0, self.inner_product, self.mask, self)
            return
        start = 0
        for name, one in self.fields.items():
            cut = slice(start, start + one.size)
            start += one.size
            product = self.inner_product.get(name) if isinstance(self.inner_product, Mapping) else self.inner_product
            yield FieldPart(name, self.modes.reshape(self.rank, -1)[:, cut].reshape(self.rank, *one.shape),
                            self.mean.reshape(-1)[cut].reshape(one.shape), one, float(self.scale.get(name, 1.0)), product,
                            None if self.mask is None else self.mask.reshape(-1)[cut].reshape(one.shape), self)

    # -- there and back --------------------------------------------------------------------------------------------

    def project(self, snapshots: ArrayLike | Mapping[str, ArrayLike]) -> np.ndarray:
        """The coefficients (m, k) of snapshots (m, *item), or (k,) of a single one.

        With several fields, snapshots are a mapping of field to array, or all flattened one after the other.
        """
        flat, single = self._flat(snapshots)
        coefficients: Any = 0
        start = 0
        for part in self.parts():
            cut = slice(start, start + part.mean.size)
            start = cut.stop
            values = flat[:, cut] - part.mean.reshape(-1)
            if part.mask is not None:
                values = np.where(part.mask.reshape(-1), values, 0)
            coefficients = coefficients + _projected(part, values, part.known_modes)
        return coefficients[0] if single else coefficients

    def reconstruct(self, which: int | slice | ArrayLike = slice(None)) -> Any:
        """Fields from the modes: of a snapshot by its number, of several by a slice, or from coefficients (m, k).

        A mapping of field to array where the basis holds several fields.
        """
        coefficients = self._coefficients(which)
        fields = coefficients @ self.modes.reshape(self.rank, -1)
        if len(self.fields) > 1:
            rebuilt, start = {}, 0
            for part in self.parts():
                cut = slice(start, start + part.mean.size)
                start = cut.stop
                rebuilt[part.name] = fields[..., cut].reshape(*coefficients.shape[:-1], *part.mean.shape) + part.mean
            return rebuilt
        return fields.reshape(*coefficients.shape[:-1], *self.mean.shape) + self.mean

    def truncate(self, rank: int) -> Basis:
        """The first `rank` modes; energies stay shares of the same total."""
        if not isinstance(rank, int | np.integer) or not 1 <= rank <= self.rank:
            raise InputError(f"this basis has {self.rank} modes; got rank={rank!r}")
        if rank == self.rank:
            return self
        k = int(rank)
        dropped = float(self._after[k - 1])
        norms = self._norms()
        per_snapshot = self.error_per_snapshot
        if per_snapshot is not None and norms > 0:
            more = (np.abs(ldexp(self.coefficients[:, k:], -self._power)) ** 2).sum(1)
            per_snapshot = np.sqrt(per_snapshot**2 + more / norms)
        left = self._left_out + dropped
        truncated = replace(self, modes=self.modes[:k], singular_values=self.singular_values[:k],
                            coefficients=self.coefficients[:, :k], residual=ldexp(left, 2 * self._power),
                            energies=None if self.energies is None else (self._power, self._total, left),
                            error_per_snapshot=per_snapshot, error_per_field=self._errors_of_fields(k),
                            spectrum=self.singular_values if self.spectrum is None else self.spectrum)
        warn_of_split_pair(truncated)
        return truncated

    def energy_intervals(self, *, confidence: float = 0.95, block_length: float | None = None, n_resamples: int = 1000,
                         rng: np.random.Generator | int = 0) -> Any:
        """Error bars of the modal energies by a bootstrap of blocks of time: ``.value``, ``.stderr``, ``.interval``.

        The modes are held fixed and the snapshots resampled in blocks as long as they are correlated: energies are
        mean squares of the coefficients, (k,), as shares of the total of the snapshots as they are. For snapshots in
        the order of time.
        """
        from ensemblekit.averaging.resample import block_bootstrap

        if self.n < 8:
            raise InputError(f"error bars need at least 8 snapshots; got {self.n}")
        squared = np.abs(ldexp(self.coefficients, -self._power)) ** 2 * (self.n / self._total)
        return block_bootstrap(squared, weights=self.weights, confidence=confidence, block_length=block_length,
                               n_resamples=n_resamples, rng=rng)

    # -- labels -----------------------------------------------------------------------------------------------------

    @property
    def dates(self) -> np.ndarray | None:
        """(n,) times of the snapshots, as dates (datetime64, or cftime on other calendars) where they are any."""
        return self.times if self.times is None or self.labels is None else self.labels.dates(self.times, self.time_unit)

    def to_xarray(self) -> Any:
        """A Dataset: modes and mean of each field on the coordinates they came from, coefficients over the times.

        Its variables are ``modes`` (mode, ...), ``mean`` and ``mask`` (with several fields "<field>_modes" and so on),
        ``coefficients`` (time, mode), ``singular_values``, ``energy_fraction`` and ``relative_error_per_mode`` (mode); modes
        are counted from 1. Raises MissingExtraError where xarray is not installed.
        """
        from ensemblekit.rom.labelled import basis_dataset

        return basis_dataset(self)

    def to_dataframe(self) -> Any:
        """A table of pandas, one row a mode: singular value, share of the energy, cumulative share, error left."""
        from ensemblekit.rom.labelled import basis_table

        return basis_table(self)

    def _facts(self) -> dict[str, object]:
        return {"rank": self.rank, "n": self.n, "method": self.method, "passes": self.passes,
                "relative_error": self.relative_error, "error_per_field": self.error_per_field,
                "singular_values": self.singular_values, "energy_fraction": self.energy_fraction,
                "cumulative_energy": self.cumulative_energy, "relative_errors": self.relative_errors,
                "total_energy": self.total_energy,
                "fields": {name: {"shape": f.shape, "dtype": str(f.dtype), "unit": f.unit} for name, f in self.fields.items()},
                "times": self.times, "time_unit": self.time_unit, "coefficients": self.coefficients, "notes": self.notes,
                "provenance": self.provenance}

    def to_dict(self) -> dict[str, object]:
        """What a file of text can hold of it: numbers of modes and snapshots; modes and mean go by :meth:`save`."""
        return Result.to_dict(self)

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Any:
        """Write everything into one HDF5 file, by temporary file and rename; returns the path."""
        values = {name: getattr(self, name) for name in NAMES}
        return save_basis(values | {"provenance": self.provenance or Provenance.now()}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Basis:
        """What :meth:`save` wrote. Raises StoreError where the file holds no basis."""
        return cls(**load_basis(path))

    # -- inside ----------------------------------------------------------------------------------------------------

    def _norms(self) -> float:
        return self._total / max(self.n, 1)

    def _errors_of_fields(self, k: int) -> dict[str, float]:
        """Error of each field from k modes: what the modes dropped carried of it is added to what was left out."""
        if len(self.fields) < 2 or not self.error_per_field:
            return dict.fromkeys(self.error_per_field, float(self.relative_errors[k - 1]))
        errors = {}
        coefficients = ldexp(self.coefficients, -self._power)
        covariance = (coefficients.conj().T * (1 if self.weights is None else self.weights)) @ coefficients
        for part in self.parts():
            flat = part.known_modes
            gram = _projected(part, flat, flat)
            kept = float(np.real(np.sum(gram.T * covariance)))
            fields_error = self.error_per_field[part.name]
            # residual of all k modes, then what the dropped ones (and their cross terms, zero in sum) carried
            own = kept / max(1 - fields_error**2, 1e-300)
            tail = float(np.real(np.sum(gram[k:, k:].T * covariance[k:, k:])))
            errors[part.name] = math.sqrt(max(fields_error**2 * own + tail, 0) / own) if own > 0 else 0.0
        return errors

    def _flat(self, snapshots: ArrayLike | Mapping[str, ArrayLike]) -> tuple[np.ndarray, bool]:
        if isinstance(snapshots, Mapping):
            missing = [name for name in self.fields if name not in snapshots]
            if missing:
                raise UnknownFieldError(missing[0], snapshots)
            arrays = {name: self._array(snapshots[name], name, f"field {name!r}") for name in self.fields}
            for name, x in arrays.items():
                item = self.fields[name].shape
                if x.shape[x.ndim - len(item):] != item or x.ndim > len(item) + 1:
                    raise InputError(f"snapshots of {name!r} have shape (m, *{item}); got {x.shape}")
            single = all(x.ndim == len(self.fields[name].shape) for name, x in arrays.items())
            return np.concatenate([x.reshape(1 if single else len(x), self.fields[name].size) for name, x in arrays.items()],
                                  axis=1), single
        values = self._array(snapshots, next(iter(self.fields), "values"), "snapshots")
        shape = self.mean.shape
        if values.shape[values.ndim - len(shape):] != shape or values.ndim > len(shape) + 1:
            raise InputError(f"snapshots have shape (m, *{shape}); got {values.shape}")
        return values.reshape(-1, self.mean.size), values.ndim == len(shape)

    def _array(self, x: Any, name: str, what: str) -> np.ndarray:
        """Snapshots of a field as numbers: in its unit, axes with names in the order of its own."""
        unit = self.fields[name].unit if name in self.fields else ""
        return as_array(in_unit(aligned(x, self.labels, name, what), unit, what), what, named_axes=self.labels is not None)

    def _coefficients(self, which: int | slice | ArrayLike) -> np.ndarray:
        if isinstance(which, int | np.integer):
            if not -self.n <= which < self.n:
                raise InputError(f"snapshot {which} of {self.n}")
            coefficients = self.coefficients[which]
        elif isinstance(which, slice):
            coefficients = self.coefficients[which]
        else:
            listed = list(which) if isinstance(which, list | tuple | range) else [which]
            numbers = [int(k) for k in listed if isinstance(k, int | np.integer)]
            of_rows = len(numbers) < len(listed)
            if not of_rows and not all(-self.n <= k < self.n for k in numbers):
                raise InputError(f"snapshots {min(numbers)} to {max(numbers)} of {self.n}")
            coefficients = as_array(which, "coefficients") if of_rows else self.coefficients[numbers]
        if coefficients.shape[-1:] != (self.rank,):
            raise InputError(f"coefficients have shape (m, {self.rank}) here; got {coefficients.shape}")
        return coefficients

    def __str__(self) -> str:
        error = self.relative_error
        digits = 1 - math.floor(math.log10(error)) if error > 0 else 2
        return (f"POD: {self.rank} modes of {self.n} snapshots, "
                f"{100 * self.cumulative_energy[-1]:.{min(max(2, digits), 17)}f} % of the energy "
                f"(error {100 * error:.2g} %)")

    def __repr__(self) -> str:
        return f"<{self}>"


@dataclass(frozen=True, slots=True, eq=False)
class FieldPart:
    """One field of a basis."""

    name: str
    modes: np.ndarray
    """(k, *item) in the unit of the field."""
    mean: np.ndarray
    """(*item)."""
    field: Field
    scale: float
    """What the field was divided by before all were joined."""
    inner_product: Any
    mask: np.ndarray | None
    basis: Basis = dataclasses.field(repr=False)

    @property
    def unit(self) -> str:
        return self.field.unit

    @property
    def known_modes(self) -> np.ndarray:
        """(k, size), 0 where the mask is False: for inner products."""
        flat = self.modes.reshape(len(self.modes), -1)
        return flat if self.mask is None else np.where(self.mask.reshape(-1), flat, flat.dtype.type(0))

    @property
    def relative_error(self) -> float:
        """Error of the reconstruction of this field over the norm of its own fluctuation.

        Of several fields seen once, that is a bound: all that was left out, as if it were this field's. Infinite where that
        is more than its modes carry.
        """
        basis = self.basis
        if self.name in basis.error_per_field:
            return basis.error_per_field[self.name]
        if len(basis.fields) < 2:
            return basis.relative_error
        coefficients = ldexp(basis.coefficients, -basis._power)
        covariance = (coefficients.conj().T * (1 if basis.weights is None else basis.weights)) @ coefficients
        flat = self.known_modes
        carried = math.sqrt(max(float(np.real(np.sum(_projected(self, flat, flat).T * covariance))), 0.0))
        left = basis.relative_error * math.sqrt(basis._total)
        return left / (carried - left) if carried > left else math.inf

    def reconstruct(self, which: int | slice | ArrayLike = slice(None)) -> np.ndarray:
        """This field from the modes: of one snapshot by its number, several by a slice, or from coefficients (m, k)."""
        coefficients = self.basis._coefficients(which)
        flat = coefficients @ self.modes.reshape(len(self.modes), -1)
        return flat.reshape(*coefficients.shape[:-1], *self.mean.shape) + self.mean


def _projected(part: FieldPart, values: np.ndarray, modes: np.ndarray) -> np.ndarray:
    """Inner products (m, k) of rows of numbers of one field with modes, in units in which all on the way are numbers too."""
    scale, product = part.scale, part.inner_product
    of_scale = power_of_two(scale)
    # modes of large weights are small, and the other way round
    of_roots = 0 if product is None else power_of_two(product.data if is_sparse(product) else product) // 2
    inner = applied(product, ldexp(values, -of_scale), part.field.shape, -2 * of_roots) @ ldexp(
        modes, of_roots - of_scale).conj().T
    return ldexp(inner, of_roots) / ldexp(scale, -of_scale) ** 2


def warn_of_split_pair(basis: Basis) -> None:
    """Warn where the cut goes through a pair of modes, as half a travelling wave stands still."""
    if basis.splits_pair:
        k = basis.rank
        better = f"{k - 1} or {k + 1}" if k > 1 else f"{k + 1}"
        warnings.warn(f"the cut after mode {k} splits a pair: singular values {k} and {k + 1} differ by less than "
                      f"{100 * ALIKE:.0f} %, so mode {k} is half of a wave. Keep {better} modes", UserWarning,
                      stacklevel=3)


NAMES = tuple(f.name for f in fields(Basis))
