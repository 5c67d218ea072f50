"""POD of snapshots that come one after the other: each is seen once, the leading directions are kept.

Snapshots are taken in blocks. A block and the directions kept so far (singular values times modes) are decomposed
together by the Gram matrix of their few rows, and the leading directions of both are kept: more than asked for, as
what seems small now may grow (2 k + 10, Brand 2002; Ross et al. 2008 for the mean). What is left out at each step is
orthogonal, snapshot by snapshot of the past, to all that is kept later. So the energy left out by the coefficients
and modes at the end is the sum of what was left out, exactly: no bound is needed (compare Fareed & Singler 2018).
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensemblekit.engine import Engine, Threads, one_blas_thread
from ensemblekit.errors import InputError, StoreError, UnknownFieldError
from ensemblekit.intake import as_array
from ensemblekit.rom.basis import SINGLE, Basis
from ensemblekit.rom.decomposition import Found, assembled, size_of
from ensemblekit.rom.files import fields_of
from ensemblekit.rom.gram import FLOOR, orthonormalised
from ensemblekit.rom.history import History
from ensemblekit.rom.problem import Part, Problem, products_of
from ensemblekit.rom.product import element_weights, is_sparse, without_missing
from ensemblekit.rom.rank import Rule, as_bytes
from ensemblekit.rom.state_file import StateFile
from ensemblekit.rom.units import OutOfRange, Unit, magnitude
from ensemblekit.scaling import ldexp, power_of_two
from ensemblekit.source import Field, SnapshotSource
from ensemblekit.source_clock import uneven_steps
from ensemblekit.store.checksums import digest_of
from ensemblekit.store.guarded import record

logger = logging.getLogger("ensemblekit")

FORMAT = "ensemblekit incremental pod 1"
FORMAT_IN_UNITS = "ensemblekit incremental pod 2"
"""Of a state in units of a power of two, which the first format knows nothing of."""
SLAB = 4096
STATE = "/rom/incremental"
REPLACED = ("fields", "n", "scales", "mask", "shift", "mean", "sigma", "modes", "weight", "total", "left_out", "factors",
            "dtype", "floor", "power", "_expected", "_run")
"""Parts of the state that are replaced, never changed in place."""


class IncrementalPOD:
    """POD of a running simulation, of a growing store, or of anything seen once.

    Snapshots are taken in blocks that are counted from the first one, so the result does not depend on how many are
    passed at a time. With a path the state is kept in a file, whole at every instant: after a crash, make it again with
    the same path and settings and go on feeding from snapshot ``n``; the result is the same to the last bit. The file is
    written whenever a block is full, and when a program ends (also by an exception), so only a kill loses the snapshots of
    a block not yet full. Whoever feeds first holds the file, until ``close()``, the end of a ``with`` block or of the program;
    others may look at it meanwhile.

    Arguments:
        path: of the state; None keeps it in memory only. Where the file exists its state is taken up, if it was made with
            the settings and weights given here.
        rank: how many modes; or `energy` or `tolerance` as in :func:`ensemblekit.rom.pod` (the number kept then follows
            the data, up to what `memory_limit` allows).
        inner_product: None, or weights of shape (n_cells,) or of the item; a mapping of field to these.
        center: "mean", "first", "none" or a field.
        keep: directions kept between blocks, 2 rank + 10 by default.
        block: snapshots a block, as many as directions kept by default.
        scale: with several fields, a mapping of field to the number it is divided by; by default the standard deviation
            of each in the first block.
        dtype: of the modes kept: "f4" or "f8"; by default that of the snapshots.

    Raises:
        InputError: settings or snapshots that cannot be used, or others than those the state was made with; StoreError: a
            state file that is another's; StoreBusyError: one that another IncrementalPOD is feeding.
    """

    def __init__(self, path: Any = None, rank: int | None = None, inner_product: Any = None, center: Any = "mean", *,
                 energy: float | None = None, tolerance: float | None = None, keep: int | None = None,
                 block: int | None = None, scale: Mapping[str, float] | None = None, dtype: Any = None,
                 memory_limit: Any = "2GiB", engine: Engine | None = None):
        self.path = None if path is None else os.fspath(path)
        self.rule = Rule.of(rank, energy, tolerance, None, None)
        if isinstance(center, str) and center not in ("mean", "first", "none"):
            raise InputError(f'center is "mean", "first", "none" or a field to subtract; got {center!r}')
        if isinstance(inner_product, str):
            if inner_product != "auto":
                raise InputError(f"inner_product is None or weights; got {inner_product!r}")
            inner_product = None
        if is_sparse(inner_product):
            raise InputError('a sparse mass matrix goes with rom.pod(..., method="gram")')
        counts = {"keep": keep, "block": block}
        for name, value in counts.items():
            if value is not None and (not isinstance(value, int | np.integer) or value < 1):
                raise InputError(f"{name} is a whole number above 0; got {value!r}")
        if keep is not None and rank is not None and keep < rank:
            raise InputError(f"keep={keep} is less than rank={rank}")
        self.inner_product, self.center, self.scale, self.dtype = inner_product, center, scale, dtype
        try:
            self._asked_dtype = None if dtype is None else np.dtype(dtype)
        except TypeError as error:
            raise InputError(f'dtype is "f4" or "f8"; got {dtype!r}') from error
        self.memory, self.engine = as_bytes(memory_limit), engine
        self.keep = int(keep) if keep is not None else (2 * int(rank) + 10 if rank is not None else None)
        self.block = int(block) if block is not None else max(8, self.keep or 64)
        self.masks: dict[str, np.ndarray] = {}
        """Field -> (size,) bool, False for numbers to leave out though they are finite."""
        self._of_mesh = False
        """Whether the inner product is that of a mesh, from weighted_by."""
        self._expected: dict[str, Any] | None = None
        """Weights of a state that was taken up, to be compared with those that weighted_by has yet to bring."""
        self._run = ""
        """The id of the store that was followed."""
        self._unsaved = False
        self._clear()
        self._file = None if self.path is None else StateFile(self.path, self._save_rest)
        if self._file is not None and self._file.exists:
            arrays = self._file.read(STATE)
            if "about" not in arrays:
                raise StoreError(f"{self.path} holds no state of an IncrementalPOD; give another path")
            self._load(arrays)

    @classmethod
    def of_fields(cls, fields: Mapping[str, Field], masks: Mapping[str, np.ndarray], rule: Rule,
                  **settings: Any) -> IncrementalPOD:
        """One of fields that are known beforehand, with the numbers that count, by a rule that is checked."""
        new = cls(None, rule.rank, energy=rule.energy if rule.rank is None else None, tolerance=rule.tolerance, **settings)
        new.rule, new.fields, new.masks = rule, dict(fields), dict(masks)
        return new

    def _clear(self) -> None:
        self.fields: dict[str, Field] = {}
        self.n = 0
        """Snapshots taken in, those of a block not yet full included."""
        self.scales: dict[str, float] = {}
        self.mask: np.ndarray | None = None
        self.shift: np.ndarray | None = None
        self.mean: np.ndarray | None = None             # of (x - shift), double precision
        self.sigma = np.zeros(0)
        self.modes: Any = None                          # (kept, size)
        self.weight = 0.0
        self.total = 0.0
        self.left_out = 0.0
        self.time = History()
        self.pending: list[np.ndarray] = []
        self.pending_meta: list[tuple[float, float]] = []       # time, weight
        self.times: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.factors: np.ndarray | None = None
        self.floor = FLOOR
        self.power = 0
        """Singular values and coefficients are in units of 2**power: see :mod:`units`."""

    # -- feeding ---------------------------------------------------------------------------------------------------

    def update(self, snapshots: Any, times: Any = None, weights: Any = None) -> IncrementalPOD:
        """Take in more snapshots: (m, *item), one of shape (*item) once the shape is known, a mapping of field to these,
        or a source, of which all are taken. Returns itself.

        Weights are on one scale throughout, as later ones are not known; of logarithms subtract one number before the
        exponential is taken.

        Raises InputError for snapshots that cannot be used (those before them are kept), StoreBusyError where another
        IncrementalPOD feeds this state, ClosedError after close().
        """
        if self._file is not None:
            self._file.hold()
        self._check_weighted()
        if isinstance(snapshots, SnapshotSource) and not isinstance(snapshots, Mapping):
            return self._from_source(snapshots)
        rows = self._rows(snapshots)
        m = len(rows)
        t = np.full(m, np.nan) if times is None else np.atleast_1d(as_array(times, "times", kinds="biuf", dtype=np.float64))
        w = np.ones(m) if weights is None else np.atleast_1d(as_array(weights, "weights", kinds="biuf", dtype=np.float64))
        if t.shape != (m,) or w.shape != (m,):
            raise InputError(f"times and weights are one number a snapshot, shape ({m},); got {t.shape} and {w.shape}")
        if not np.isfinite(w).all() or (w < 0).any():
            raise InputError("weights must be finite and not negative")
        filled = False
        done = 0
        try:
            while done < m:
                room = self.block - len(self.pending)
                part = rows[done:done + room]
                whole = not self.pending and len(part) == self.block
                if not whole or self.modes is None:         # else its inner products tell
                    self._check(part)
                later = self._copy()
                later.n += len(part)
                if whole:
                    later._take(part, t[done:done + room], w[done:done + room])
                    filled = True
                else:
                    later.pending += list(np.array(part))
                    later.pending_meta += list(zip(t[done:done + room].tolist(), w[done:done + room].tolist(), strict=True))
                    if len(later.pending) == self.block:
                        later._take_pending()
                        filled = True
                self._adopt(later)
                done += len(part)
        finally:
            if self.path is not None and filled:
                self.save()
        return self

    def _take_pending(self) -> None:
        meta = np.array(self.pending_meta)
        held, self.pending, self.pending_meta = np.array(self.pending), [], []
        self._take(held, meta[:, 0], meta[:, 1])

    def weighted_by(self, source: Any, names: Iterable[str]) -> IncrementalPOD:
        """Itself, with the volumes of the mesh that a source carries as inner product, as :func:`ensemblekit.rom.pod` takes
        them; say it before the first snapshot, and again after the state was taken up from a file.

        Raises InputError where the weights are others than those of the snapshots taken in so far, or were given already.
        """
        if self.inner_product is not None and not self._of_mesh:
            raise InputError("this IncrementalPOD was made with an inner_product; leave that out, or do without weighted_by")
        products, masks, notes = products_of({name: (source, name) for name in names}, "auto")
        new = self._copy_settings()
        new.inner_product = products if any(p is not None for p in products.values()) else None
        new.masks = {name: mask for name, mask in masks.items() if mask is not None}
        new._of_mesh = True
        for note in notes:
            logger.info(note)
        if self.fields:
            new._check_names(self.fields)
        if self.n:
            self._compare_weights(self._expected or self._weights_of(self), self._weights_of(new))
        self.inner_product, self.masks, self._of_mesh, self._expected = new.inner_product, new.masks, True, None
        if self.modes is not None:
            self._set_factors()
        return self

    def _weights_of(self, other: IncrementalPOD) -> dict[str, Any]:
        """Field -> checksums of the weights and of the numbers left out that another's settings give it; None for none."""
        found = {}
        for name, field in self.fields.items():
            product = other.inner_product.get(name) if isinstance(other.inner_product, Mapping) else other.inner_product
            weights, mask = element_weights(product, field.shape), other.masks.get(name)
            found[name] = [None if weights is None or (weights == 1).all() else f"{digest_of(weights):016x}",
                           None if mask is None or mask.all() else f"{digest_of(np.asarray(mask, bool)):016x}"]
        return found

    @staticmethod
    def _compare_weights(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name, (weights, mask) in before.items():
            mine, my_mask = now[name]
            if weights != mine:
                how = ("without an inner product, and this has one" if weights is None else
                       "with an inner product, and this has none" if mine is None else "with another inner product")
                raise InputError(f"the state was made {how} for field {name!r}: coefficients of both would be mixed. Go on "
                                 "with the same weights (inner_product=, or weighted_by() for those of a mesh), or begin "
                                 "anew with another path")
            if mask != my_mask:
                raise InputError(f"the state leaves out other numbers of field {name!r} than this; go on with the same mesh, "
                                 "or begin anew with another path")

    def _check_weighted(self) -> None:
        if self._expected is not None:
            raise InputError("the state was made with the volumes of a mesh as inner product; call weighted_by(source, names) "
                             "before anything else, as when it was made")

    def follow(self, source: Any) -> int:
        """Take in what a growing store (or stored field) has that was not seen yet; returns how many came.

        Raises InputError where it holds another run than was followed so far, or fewer snapshots than were taken in.
        """
        refresh = getattr(source, "refresh", None)
        if refresh is not None:
            refresh()
        self._check_weighted()
        before, run = self.n, getattr(source, "run", "")
        run = run if isinstance(run, str) else ""
        if self._run and run and run != self._run:
            raise InputError("the snapshots so far are of another run than this store holds; follow that one, or begin anew "
                             "with another path")
        (length,) = source.lengths if source.lengths is not None and len(source.lengths) == 1 else (None,)
        if length is not None and length < before:
            raise InputError(f"{before} snapshots were taken in, and this holds {length}: it is another store, or was cut "
                             "back; follow the one before, or begin anew with another path")
        self._run = self._run or run
        self._from_source(source.window(self.n))
        return self.n - before

    def _from_source(self, source: Any) -> IncrementalPOD:
        names = list(self.fields) or list(source.fields)
        for name in names:
            if name not in source.fields:
                raise UnknownFieldError(name, source.fields)
        for piece in source.pieces(names, "time", False, 64 << 20):
            for block in piece.blocks():
                values = {name: np.asarray(block.fields[name]) for name in names}
                self.update(values, block.times, block.weights)
        return self

    def _rows(self, snapshots: Any) -> np.ndarray:
        given = snapshots if isinstance(snapshots, Mapping) else {next(iter(self.fields), "values"): snapshots}
        arrays = {str(name): as_array(values, f"field {name!r}") for name, values in given.items()}
        if not self.fields:
            for name, values in arrays.items():
                if values.ndim < 2:
                    raise InputError(f"the first snapshots have shape (m, *item), so that the item is known; "
                                     f"got {values.shape}")
                if values.dtype.kind not in "iufc":
                    raise InputError(f"snapshots are numbers; field {name!r} has dtype {values.dtype}")
            fields = {name: Field(values.shape[1:], values.dtype) for name, values in arrays.items()}
            self._check_names(fields)
            self._leave_out_weightless({name: values[0] for name, values in arrays.items()}, fields)
            self.fields = fields
        missing = [name for name in self.fields if name not in arrays]
        if missing:
            raise UnknownFieldError(missing[0], arrays)
        rows = []
        for name, field in self.fields.items():
            values = arrays[name]
            if values.shape == field.shape:
                values = values[None]
            if values.shape[1:] != field.shape:
                raise InputError(f"snapshots of {name!r} have shape (m, *{field.shape}); got {values.shape}")
            rows.append(values.reshape(len(values), field.size))
        if len({len(r) for r in rows}) > 1:
            raise InputError(f"the fields differ in their number of snapshots: {[len(r) for r in rows]}")
        return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)

    def _check_names(self, fields: Mapping[str, Field]) -> None:
        """Refuse weights and scales of fields that are not there: they would be passed over without a word."""
        for given in (self.inner_product, self.scale):
            for name in given if isinstance(given, Mapping) else ():
                if name not in fields and not self._of_mesh:
                    raise UnknownFieldError(name, fields)
        if self._of_mesh:
            for name in fields:
                if isinstance(self.inner_product, Mapping) and name not in self.inner_product:
                    raise InputError(f"weighted_by was called for {', '.join(map(repr, self.inner_product))}, and the "
                                     f"snapshots are of field {name!r}; name the same fields in both")

    def _leave_out_weightless(self, first: Mapping[str, np.ndarray], fields: Mapping[str, Field]) -> None:
        """Leave out the numbers of weight 0 or NaN, where they are missing in the first snapshot."""
        products: dict[str, Any] = {}
        masks = dict(self.masks)
        for name, field in fields.items():
            product = self.inner_product.get(name) if isinstance(self.inner_product, Mapping) else self.inner_product
            missing = np.isnan(first[name]).ravel() if field.dtype.kind in "fc" else np.zeros(field.size, bool)
            products[name], counts = (None, None) if product is None else without_missing(product, field.shape, missing)
            if counts is not None:
                masks[name] = masks.get(name, True) & counts
        if len(masks) > len(self.masks) or any(masks[name] is not self.masks[name] for name in masks):
            self.inner_product, self.masks = products, masks

    def _check(self, rows: np.ndarray) -> None:
        """Refuse what is not finite before it is held."""
        if self.modes is not None:
            used = slice(None) if self.mask is None else self.mask
        else:
            used = self._used
        good = ~np.isinf(rows[:, used]).any(1)
        if self.modes is not None:
            good &= np.isfinite(rows[:, used]).all(1)
        if not good.all():
            raise InputError(f"snapshot {self.n + int(np.argmin(good))} holds NaN or infinity; leave it out")
        if self.modes is None:      # no block yet that says which numbers are missing: as in the first snapshot
            first = self.pending[0] if self.pending else rows[0]
            missing = np.isnan(first[used])
            same = (np.isnan(rows[:, used]) == missing).all(1)
            if not same.all():
                k = int(np.argmin(same))
                if (np.isnan(rows[k, used]) & ~missing).any():
                    raise InputError(f"snapshot {self.n + k} holds NaN where snapshot 0 does not; leave it out (numbers "
                                     "missing in every snapshot are masked)")
                raise InputError(f"snapshot 0 holds NaN where snapshot {self.n + k} does not; begin anew without it (numbers "
                                 "missing in every snapshot are masked)")

    @property
    def _used(self) -> np.ndarray:
        """(size,) bool, False for numbers that were said beforehand to be left out."""
        return np.concatenate([np.ones(field.size, bool) if name not in self.masks else self.masks[name]
                               for name, field in self.fields.items()])

    # -- one block -------------------------------------------------------------------------------------------------

    def _start(self, rows: np.ndarray) -> None:
        """All that is set by the first block."""
        size = rows.shape[1]
        some = np.isfinite(rows[0]) & self._used        # the same in all, as _check saw
        if not some.any():
            raise InputError("the snapshots hold nothing but NaN")
        self.mask = None if some.all() else some
        wide = np.complex128 if rows.dtype.kind == "c" else np.float64
        self.dtype = self._dtype_for(rows.dtype)
        first = np.where(some, rows[0], 0).astype(wide)
        if isinstance(self.center, str):
            self.shift = np.zeros(size, wide) if self.center == "none" else first
        else:
            self.shift = self._given_center(wide)
        if not self.scales:
            self.scales = {name: float(self.scale[name]) if self.scale and name in self.scale else self._std(rows, name)
                           for name in self.fields} if len(self.fields) > 1 or self.scale else {}
        self._set_factors()
        self.mean = np.zeros(size, wide)
        self.modes = np.zeros((0, size), self.dtype)

    def _dtype_for(self, dtype: np.dtype) -> np.dtype:
        """That of the modes of snapshots of a type."""
        if self._asked_dtype is not None:
            return self._asked_dtype
        if dtype in (np.float32, np.complex64):
            return np.dtype(dtype)
        return np.dtype("c16" if dtype.kind == "c" else "f8")

    def _given_center(self, dtype: Any) -> np.ndarray:
        """(size,) what the user said to subtract."""
        given = self.center if isinstance(self.center, Mapping) else {next(iter(self.fields)): self.center}
        for name in self.fields:
            if name not in given:
                raise UnknownFieldError(name, given)
        shift = np.concatenate([as_array(given[name], "center", dtype=dtype, named_axes=True).reshape(-1)
                                for name in self.fields])
        if shift.shape != (sum(field.size for field in self.fields.values()),):
            raise InputError(f"center has the shape of a snapshot; got {np.shape(self.center)}")
        return shift

    def _set_factors(self) -> None:
        factors, plain = [], True
        for name, field in self.fields.items():
            product = self.inner_product.get(name) if isinstance(self.inner_product, Mapping) else self.inner_product
            weights = element_weights(product, field.shape)
            scale = self.scales.get(name, 1.0)
            plain = plain and weights is None and scale == 1
            factors.append(np.full(field.size, 1 / scale) if weights is None else np.sqrt(weights) / scale)
        if plain and self.mask is None and not self.power:
            self.factors = None
            return
        self.factors = ldexp(np.concatenate(factors), -self.power)
        if self.mask is not None:
            self.factors = np.where(self.mask, self.factors, 0.0)

    def _std(self, rows: np.ndarray, name: str) -> float:
        start = 0
        for other, field in self.fields.items():
            if other == name:
                part = rows[:, start:start + field.size]
                with np.errstate(invalid="ignore"):
                    off = np.abs(part - np.nanmean(part, axis=0, dtype=np.float64))
                    power = power_of_two(off)
                    return ldexp(float(np.sqrt(np.nanmean(ldexp(off, -power) ** 2))), power) or 1.0
            start += field.size
        raise AssertionError(name)

    def _slabs(self) -> list[slice]:
        size = self.modes.shape[1]
        return [slice(a, min(a + SLAB, size)) for a in range(0, size, SLAB)]

    def _take(self, rows: np.ndarray, times: np.ndarray, weights: np.ndarray) -> None:
        """Decompose the directions kept and a block of snapshots together."""
        if self.modes is None:
            self._start(rows)
        assert self.mean is not None
        heavy = float(weights.sum())
        self.times.append(times)
        self.weights.append(weights)
        before = self.weight
        after = before + heavy
        moving = self._moving and heavy > 0
        share = weights / heavy if moving else None
        gap = math.sqrt(before * heavy / after) if moving and before else 0.0
        roots = np.concatenate([np.ones(len(self.sigma)), np.sqrt(weights), np.ones(1 if gap else 0)])
        step = _Step(self, rows, share, gap)
        engine = self.engine if self.engine is not None else Threads()
        kept, m = len(self.sigma), len(rows)
        with one_blas_thread():
            gram, weighted = self._gram(step, roots, engine)
            if not np.isfinite(gram.diagonal()).all():
                bad = int(np.argmin(np.isfinite(gram.diagonal()[kept:kept + m])))
                raise InputError(f"snapshot {self.n - m + bad} holds NaN or infinity; leave it out")
            values, vectors = np.linalg.eigh(weighted)
            values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
            self.total += max(float(np.trace(weighted).real) - float((self.sigma**2).sum()), 0.0)
            keep = self._keep(values)
            turn = vectors[:, :keep] / np.sqrt(values[:keep])           # modes = turnᴴ D Z
            moved = (gram * roots) @ turn                               # rows of Z in the new modes
            self.left_out += float(values[keep:].sum())
            new = np.empty((keep, self.modes.shape[1]), self.dtype)
            for _ in engine.map(_turned, self._slabs(), (step, (roots[:, None] * turn).conj().T, new)):
                pass
        shift_old = shift_new = np.zeros(keep, moved.dtype)
        if gap:
            shift_old = moved[-1] / gap * (heavy / after)               # (old mean - new mean) in the new modes
            shift_new = -moved[-1] / gap * (before / after)             # (mean of the block - new mean)
        scale = np.where(self.sigma > 0, self.sigma, 1.0)
        self.time.transform(moved[:kept] / scale[:, None], shift_old)
        self.time.append(moved[kept:kept + m] + shift_new)
        if moving:
            self.mean = self.mean + (step.mean - self.mean) * (heavy / after)
        self.sigma, self.modes, self.weight = np.sqrt(values[:keep]), new, after

    def _gram(self, step: _Step, roots: np.ndarray, engine: Engine) -> tuple[np.ndarray, np.ndarray]:
        """Inner products of what is kept and a block, and those times the roots of the weights, in a unit that fits them."""
        while True:
            gram: Any = 0
            for part in engine.map(_products, self._slabs(), step):
                gram = gram + part
            with np.errstate(over="ignore", invalid="ignore"):
                weighted = roots[:, None] * gram * roots
            try:
                Unit(self.power).check(float(np.trace(weighted).real), lambda: self._largest(step, roots), False)
            except OutOfRange as misfit:
                self._change_unit(misfit.power)
                continue
            return gram, weighted

    def _largest(self, step: _Step, roots: np.ndarray) -> float:
        found = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for at in self._slabs():
                found = float(np.maximum(found, magnitude(roots[:, None] * step.z(at))))       # NaN stays
        seen = step.rows if self.mask is None else step.rows[:, self.mask]
        return found if math.isfinite(found) or np.isfinite(seen).all() else math.nan

    def _change_unit(self, power: int) -> None:
        """Everything so far in units of another power of two, which is exact."""
        less, self.power = self.power - power, power
        self.sigma = ldexp(self.sigma, less)
        self.total, self.left_out = ldexp(self.total, 2 * less), ldexp(self.left_out, 2 * less)
        self.time.scale(less)
        self._set_factors()

    @property
    def _moving(self) -> bool:
        return isinstance(self.center, str) and self.center == "mean"

    def _keep(self, values: np.ndarray) -> int:
        usable = int(np.count_nonzero(values > FLOOR**2 * values[0])) if len(values) and values[0] > 0 else 0
        if self.keep is not None:
            return min(self.keep, usable)
        # a tenth of the error allowed, in energy, may go on the way
        allowed = 0.1 * self.rule.in_unit(self.power).allowed(self.total) - self.left_out
        tail = np.append(np.cumsum(values[::-1])[::-1][1:], 0.0)
        fits = np.flatnonzero(tail <= max(allowed, 0.0))
        keep = min(int(fits[0]) + 1 if len(fits) else usable, usable)
        most = max(8, self.memory // (3 * max(self.modes.shape[1], 1) * self.modes.dtype.itemsize) - self.block)
        return min(keep, most)

    # -- the answer ------------------------------------------------------------------------------------------------

    def result(self) -> Basis:
        """The basis of all snapshots so far; changes nothing, go on feeding as you like.

        Raises InputError with fewer than two snapshots, or where all are the same.
        """
        self._check_weighted()
        if self.n < (2 if self.center in ("mean", "first") else 1) if isinstance(self.center, str) else self.n < 1:
            raise InputError(f"pod needs at least 2 snapshots; got {self.n}")
        return self.whole()._result()

    def whole(self) -> IncrementalPOD:
        """Itself, or where a block is not yet full a copy that has it taken in."""
        if not self.pending:
            return self
        final = self._copy()
        final._take_pending()
        return final

    def usable(self) -> int:
        """Directions kept that are no rounding; InputError where there is none."""
        assert self.mean is not None
        usable = int(np.count_nonzero(self.sigma > self.floor * self.sigma[0])) if len(self.sigma) and self.sigma[0] > 0 else 0
        # of the scales of several fields any may come from rounding: one field that fluctuates is enough
        sizes = [size_of(part, self.centre[at]) for part, at in zip(self._parts(), self._columns(), strict=True)]
        rounding = 4 * np.finfo(np.float64).eps * min(sizes) * math.sqrt(self.n * self.mean.size)
        if not usable or (isinstance(self.center, str) and self.center != "none" and self.sigma[0] <= rounding):
            raise InputError(f"all {self.n} snapshots are the same: no fluctuation to decompose")
        return usable

    @property
    def error_floor(self) -> float:
        """The least relative error that can be told: modes in 32 bits are rounded again with every block."""
        single = np.dtype(self.dtype) in (np.float32, np.complex64)
        return max(self.floor, SINGLE * math.sqrt(self.n / self.block + 1)) if single else self.floor

    @property
    def centre(self) -> np.ndarray:
        """(size,) what is subtracted from the snapshots so far."""
        assert self.mean is not None
        assert self.shift is not None
        return self.mean + self.shift

    @property
    def chosen(self) -> int:
        """How many modes the rule takes of those at hand."""
        return self.rule.in_unit(self.power).choose(self.sigma**2, self.total, self.usable(), self.n, self.modes.shape[1],
                                                    False)

    def off(self, k: int) -> float:
        """A bound of the sine of the largest angle between the first k modes and the space that they stand for.

        What was left out is a positive semidefinite part E of the covariance, so by Davis & Kahan (1970) the sine is at most
        ‖E‖ / (sigma_k² - sigma_(k+1)² - ‖E‖), of which ‖E‖ is at most the energy left out. 1 where that says nothing.
        """
        squared = np.append(self.sigma**2, 0.0)
        apart = float(squared[k - 1] - squared[k]) - self.left_out
        return min(1.0, self.left_out / apart) if apart > 0 else 1.0

    def dressed(self, parts: Any) -> Iterator[Part]:
        """The parts of a problem with the scales and masks found on the way."""
        for part, (a, b) in zip(parts, self._edges(), strict=True):
            yield replace(part, scale=self.scales.get(part.name, 1.0), mask=None if self.mask is None else self.mask[a:b],
                          power=self.power, asked=self.power or None)

    def _result(self) -> Basis:
        assert self.mean is not None
        assert self.shift is not None
        squared = self.sigma**2
        k = self.chosen
        weights = np.concatenate(self.weights)
        ratio = self.n / self.weight if self.weight else 1.0        # weights of mean 1
        # many blocks wear the orthogonality down to about eps (sigma_1 / sigma_k)²; turned back, the product is the same
        rows, lower = orthonormalised(np.array(self.modes[:k]))
        coefficients = self.time.values()[:, :k] @ lower
        residual = (self.left_out + float(squared[k:].sum())) * ratio
        times = np.concatenate(self.times)
        uneven = uneven_steps(times) if (weights == weights[0]).all() and np.isfinite(times).all() else ""
        if uneven:
            warnings.warn(uneven.replace('weights="time" gives the mean over time', "update(..., weights=) takes the time that "
                                         "each stands for"), stacklevel=3)
        problem = self._problem(None if (weights == weights[0]).all() else weights * ratio,
                                None if np.isnan(times).all() else times)
        modes = [rows[:, a:b] for a, b in self._edges()]
        mean = self.centre
        found = Found(self.sigma * math.sqrt(ratio), False, coefficients, modes, [mean[a:b] for a, b in self._edges()],
                      self.total * ratio, residual, np.zeros(self.n), [math.nan] * len(modes) if len(modes) > 1 else [],
                      self.error_floor, "incremental", self.sigma[:k] * math.sqrt(ratio), np.zeros(self.n), power=self.power)
        basis = assembled(problem, found, 1)
        errors = {} if len(modes) > 1 else {next(iter(self.fields)): basis.relative_error}
        return replace(basis, error_per_snapshot=None, error_per_field=errors)

    def _edges(self) -> Iterator[tuple[int, int]]:
        start = 0
        for field in self.fields.values():
            yield start, start + field.size
            start += field.size

    def _problem(self, weights: np.ndarray | None, times: np.ndarray | None) -> Any:
        return Problem(tuple(self._parts()), self.n, weights, times, "", None,
                       self.center if isinstance(self.center, str) else "given")

    def _columns(self) -> Iterator[slice]:
        return (slice(a, b) for a, b in self._edges())

    def _parts(self) -> Iterator[Part]:
        for (name, field), (a, b) in zip(self.fields.items(), self._edges(), strict=True):
            product = self.inner_product.get(name) if isinstance(self.inner_product, Mapping) else self.inner_product
            of = element_weights(product, field.shape)
            yield Part(name, name, None, field, product, None if of is None else np.sqrt(of), None,     # type: ignore[arg-type]
                       self.scales.get(name, 1.0), None if self.mask is None else self.mask[a:b], self.power)

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays: :meth:`restored` makes the same of it."""
        about: dict[str, Any] = {"format": FORMAT_IN_UNITS if self.power else FORMAT, "power": self.power, "n": self.n,
                 "weight": self.weight, "total": self.total, "left_out": self.left_out,
                 "keep": self.keep, "block": self.block, "scales": self.scales, "rule": list(self.rule_numbers),
                 "center": self.center if isinstance(self.center, str) else "given", "started": self.modes is not None,
                 "weights": self._expected or self._weights_of(self), "of_mesh": self._of_mesh, "run": self._run,
                 "scale": self._asked_scale,
                 "fields": {name: {"shape": list(f.shape), "dtype": f.dtype.str, "unit": f.unit}
                            for name, f in self.fields.items()}}
        arrays: dict[str, np.ndarray] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        if self.modes is not None:
            assert self.mean is not None
            assert self.shift is not None
            arrays |= {"modes": self.modes, "sigma": self.sigma, "mean": self.mean, "shift": self.shift}
            arrays |= {"times": np.concatenate(self.times), "weights": np.concatenate(self.weights)}
            arrays |= {f"history/{name}": value for name, value in self.time.state().items()}
            if self.mask is not None:
                arrays["mask"] = self.mask
        if self.pending:
            arrays |= {"pending": np.array(self.pending), "pending_meta": np.array(self.pending_meta)}
        return arrays

    @property
    def rule_numbers(self) -> tuple[Any, ...]:
        return self.rule.rank, self.rule.energy, self.rule.tolerance

    def restored(self, state: Mapping[str, np.ndarray]) -> IncrementalPOD:
        """An IncrementalPOD with these settings and that state."""
        new = self._copy_settings()
        new._load(dict(state))
        return new

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        with record(self.path or "the state", "state of an IncrementalPOD"):
            self._load_record(json.loads(arrays["about"].tobytes()), arrays)

    def _load_record(self, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        if about.get("format") not in (FORMAT, FORMAT_IN_UNITS):
            raise StoreError(f"this state has the format {about.get('format')!r}; this version reads {FORMAT!r}")
        mine: dict[str, Any] = {"keep": self.keep, "block": self.block, "rule": list(self.rule_numbers),
                                "center": self.center if isinstance(self.center, str) else "given"}
        if about["n"] and "scale" in about:
            mine["scale"] = self._asked_scale
        for name, value in mine.items():
            if about[name] != value:
                raise InputError(f"the state was made with {name}={about[name]!r}, and this has {value!r}; go on with the same "
                                 "settings, or begin anew with another path")
        self._clear()
        self._of_mesh, self._run = about.get("of_mesh", False), about.get("run", "")
        self.n, self.weight, self.total, self.left_out = about["n"], about["weight"], about["total"], about["left_out"]
        self.scales, self.power = about["scales"], about.get("power", 0)
        self.fields = fields_of(about["fields"]) if about["fields"] else {}
        counts = (self.n, self.weight, self.total, self.left_out, self.power, *self.scales.values())
        if not all(isinstance(x, int | float) for x in counts) or self.n < 0 or not isinstance(self.power, int):
            raise ValueError(f"it counts {counts}")
        if about["started"]:
            self.modes, self.sigma, self.mean, self.shift = (np.array(arrays[x]) for x in ("modes", "sigma", "mean", "shift"))
            self.dtype = self.modes.dtype
            self.mask = arrays.get("mask")
            self.times, self.weights = [arrays["times"]], [arrays["weights"]]
            self.time = History.restored({name.removeprefix("history/"): x for name, x in arrays.items()
                                          if name.startswith("history/")})
            self._check_shapes()
            self._compare_kept(arrays)
        self._check_names(self.fields)
        if "pending" in arrays:
            self.pending = list(arrays["pending"])
            self.pending_meta = [(float(t), float(w)) for t, w in arrays["pending_meta"]]
            size = sum(field.size for field in self.fields.values())
            if arrays["pending"].shape != (len(self.pending_meta), size) or len(self.pending) > self.block:
                raise ValueError(f"the snapshots that wait are of shape {arrays['pending'].shape}")
        first = self.pending[0] if self.pending else None
        if self.mask is not None:
            first = np.where(self.mask, 0, np.nan)
        if first is not None:
            self._leave_out_weightless({name: first[at] for name, at in zip(self.fields, self._columns(), strict=True)},
                                       self.fields)
        if self.n:
            if "weights" not in about:
                warnings.warn("the state was made by an earlier version, which did not note its inner product; whether it is "
                              "the one given now cannot be told", UserWarning, stacklevel=4)
            elif self._of_mesh and self.inner_product is None and any(x != [None, None] for x in about["weights"].values()):
                self._expected = about["weights"]
            else:
                self._compare_weights(about["weights"], self._weights_of(self))
        if about["started"] and self._expected is None:
            self._set_factors()

    def _check_shapes(self) -> None:
        """Raise ValueError where the arrays of a state do not fit each other."""
        size, k = sum(field.size for field in self.fields.values()), len(self.sigma)
        rows = self.time.values()
        times, weights = np.concatenate(self.times), np.concatenate(self.weights)
        shapes = [np.asarray(x).shape for x in (self.modes, self.mean, self.shift, self.sigma, rows, times, weights)]
        wanted = [(k, size), (size,), (size,), (k,), (len(times), k), (len(times),), (len(times),)]
        if self.mask is not None:
            shapes, wanted = [*shapes, self.mask.shape], [*wanted, (size,)]
        if shapes != wanted:
            raise ValueError(f"its arrays are of shape {shapes}, where {wanted} are wanted")

    @property
    def _asked_scale(self) -> dict[str, float] | None:
        return None if not self.scale else {str(name): float(x) for name, x in self.scale.items()}

    def _compare_kept(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise InputError where arrays of a state are not what these settings would have made of the snapshots."""
        dtype = self._dtype_for(np.result_type(*[field.dtype for field in self.fields.values()]))
        if dtype != self.modes.dtype:
            raise InputError(f"the state was made with modes of type {self.modes.dtype}, and this asks for {dtype}; go on with "
                             f"dtype={self.modes.dtype.str[1:]!r}, or begin anew with another path")
        if not isinstance(self.center, str) and not np.array_equal(self._given_center(arrays["shift"].dtype), arrays["shift"]):
            raise InputError("the state was made with another center than the field given now; go on with the same one, or "
                             "begin anew with another path")

    # -- the file --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state into the file, by temporary file and rename. Done by itself whenever a block is full, and at the
        end of a program."""
        if self._file is None:
            raise InputError("this IncrementalPOD has no path; give one, or keep state() yourself")
        self._file.write({f"{STATE}/{name}": value for name, value in self.state().items()})
        self._unsaved = False

    def close(self) -> None:
        """Write what is not yet in the file and let go of it; nothing more can be fed, results can be asked for."""
        if self._file is None or self._file.closed:
            return
        try:
            self._save_rest()
        finally:
            self._file.release()

    def _save_rest(self) -> None:
        """Write what is not yet in the file."""
        if self._unsaved and self._file is not None and self._file.held:
            self.save()

    def __enter__(self) -> IncrementalPOD:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self.__dict__.get("_file") is None:      # in memory only, or refused
            return
        try:
            self.close()
        except Exception as error:      # nobody is there to catch it
            warnings.warn(f"the last snapshots of an IncrementalPOD could not be saved: {error}", RuntimeWarning, stacklevel=2)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._file.keep = weakref.WeakMethod(self._save_rest)

    def _copy_settings(self) -> IncrementalPOD:
        new = IncrementalPOD(None, self.rule.rank, self.inner_product, self.center,
                             energy=self.rule.energy if self.rule.given else None,
                             tolerance=self.rule.tolerance, keep=self.keep, block=self.block, scale=self.scale,
                             dtype=self._asked_dtype, memory_limit=self.memory, engine=self.engine)
        new.rule, new.masks, new._of_mesh = self.rule, self.masks, self._of_mesh
        return new

    def _copy(self) -> IncrementalPOD:
        """Another one in the same state, in memory; what is replaced as a whole is shared."""
        new = self._copy_settings()
        new.__dict__.update({name: self.__dict__[name] for name in REPLACED})
        new.pending, new.pending_meta = list(self.pending), list(self.pending_meta)
        new.times, new.weights = list(self.times), list(self.weights)
        new.time = self.time.copy()
        return new

    def _adopt(self, later: IncrementalPOD) -> None:
        """Be in the state of a copy that has taken in more: at once, so that an interrupt finds one state or the other."""
        changed = {name: later.__dict__[name] for name in (*REPLACED, "pending", "pending_meta", "times", "weights", "time")}
        self.__dict__.update(changed, _unsaved=True)

    def __repr__(self) -> str:
        return f"<IncrementalPOD: {self.n} snapshots, {len(self.sigma)} directions kept>"


@dataclass(eq=False)
class _Step:
    """One block beside what is kept; slab by slab the rows of Z."""

    pod: IncrementalPOD
    rows: np.ndarray
    share: np.ndarray | None
    gap: float

    def __post_init__(self) -> None:
        assert self.pod.mean is not None
        self.mean = np.zeros_like(self.pod.mean)      # of the block, less shift

    def z(self, at: slice) -> np.ndarray:
        """(kept + m + 1, width): singular values times modes, the block about its mean, the gap between the means."""
        pod = self.pod
        assert pod.mean is not None
        assert pod.shift is not None
        kept, m = len(pod.sigma), len(self.rows)
        out = np.empty((kept + m + (1 if self.gap else 0), at.stop - at.start), pod.mean.dtype)
        np.multiply(pod.modes[:, at], pod.sigma[:, None], out=out[:kept])
        block = out[kept:kept + m]
        block[:] = self.rows[:, at]
        block -= pod.shift[at]
        if pod.mask is not None:
            block[:, ~pod.mask[at]] = 0
        if self.share is not None:
            self.mean[at] = self.share @ block
            block -= self.mean[at]
        if self.gap:
            out[-1] = (pod.mean[at] - self.mean[at]) * self.gap
        if pod.factors is not None:
            out[kept:] *= pod.factors[at]
        return out


def _products(step: _Step, at: slice) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):      # in a worker: sums that are no numbers are met by who asked
        z = step.z(at)
        return z @ z.conj().T


def _turned(shared: tuple[_Step, np.ndarray, np.ndarray], at: slice) -> None:
    step, turn, new = shared
    new[:, at] = turn @ step.z(at)
