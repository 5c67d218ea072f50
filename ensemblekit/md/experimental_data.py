"""What was measured, as files have it, and averages held against it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.averages import Averages
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.maxent import Bound
from ensemblekit.errors import InputError
from ensemblekit.files import check_input
from ensemblekit.intake import as_array
from ensemblekit.results import Result

KINDS = ("NOE", "JCOUPLINGS", "CS", "RDC", "SAXS")
Scaling = Literal["no", "scale", "scale+offset"]
MOST_BYTES = 64 << 20
"""Of a table of measurements."""
OUTLIER = 3.0
"""Errors that a datum lies off, above which it is named."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Data(Result):
    """Measured numbers with their errors; bounds are numbers that the mean does not exceed, or go below."""

    FIGURE = "ensemble.data"

    values: np.ndarray
    """(m,)"""
    sigma: np.ndarray
    """Their errors, (m,), above 0."""
    labels: tuple[str, ...] = ()
    kind: str = ""
    """"NOE" (distances), "JCOUPLINGS", "CS", "RDC", "SAXS"; "" where it is not said."""
    bounds: tuple[Bound, ...] = ()
    """Of each "", "upper" or "lower"; () where none is one."""
    q: np.ndarray | None = None
    """Of SAXS, (m,), inverse angstrom."""
    power: float = 6.0
    """Of NOEs: they average r^-power."""

    def __post_init__(self) -> None:
        for name in ("values", "sigma"):
            x = as_array(getattr(self, name), name, kinds="biuf", dtype=np.float64)
            if x.ndim != 1 or not len(x):
                raise InputError(f"{name} of data are one number a datum, (m,); got shape {x.shape}")
            if not np.isfinite(x).all():
                raise InputError(f"{name} of {self._name(int(np.argmax(~np.isfinite(x))))} is not finite")
            object.__setattr__(self, name, x)
        m = len(self.values)
        if self.sigma.shape != (m,):
            raise InputError(f"sigma is the error of each of the {m} data; got shape {self.sigma.shape}")
        if (self.sigma <= 0).any():
            k = int(np.argmax(self.sigma <= 0))
            raise InputError(f"sigma of {self._name(k)} is {self.sigma[k]:g}, and an error is above 0: say how well it was "
                             "measured, or leave it out")
        for words, wanted in ((self.labels, "labels"), (self.bounds, "bounds")):
            if words and len(words) != m:
                raise InputError(f"{wanted} are one a datum, {m}; got {len(words)}")
        if any(kind not in ("", "upper", "lower") for kind in self.bounds):
            raise InputError(f'bounds are "", "upper" or "lower"; got {self.bounds!r}')
        if self.kind == "NOE" and (self.values <= 0).any():
            raise InputError(f"an NOE is a distance above 0; {self._name(int(np.argmax(self.values <= 0)))} is "
                             f"{self.values.min():g}")

    def _name(self, k: int) -> str:
        return f"datum {k}" + (f" ({self.labels[k]})" if k < len(self.labels) else "")

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, kind: str = "", unit: str = "") -> Data:
        """From a table: BME's (# DATA=NOE|JCOUPLINGS|CS|RDC|SAXS [BOUND=UPPER|LOWER] [POWER=6]; label, value, sigma), a profile
        of SAXS (q, I, sigma), or CSV with a head (label, value, sigma, bound).

        Arguments:
            kind: where the file does not say it; three columns of numbers without a head are taken for SAXS.
            unit: of q, "Angstrom-1" (default) or "nm-1".
        """
        check_input(path)
        name = os.path.basename(os.fspath(path))
        if os.path.getsize(path) > MOST_BYTES:
            raise InputError(f"{name} is larger than any table of measurements ({MOST_BYTES >> 20} MiB)")
        with open(path, encoding="utf-8", errors="replace") as file:
            return _parsed(file.read(), name, kind.upper(), unit)

    def linear(self) -> Data:
        """The data as what averages linearly: of NOEs r^-p with its error p σ r^-(p + 1), upper bounds as lower ones."""
        if self.kind != "NOE":
            return self
        p = self.power
        turned: dict[Bound, Bound] = {"": "", "upper": "lower", "lower": "upper"}
        return replace(self, values=self.values**-p, sigma=p * self.sigma * self.values ** (-p - 1), kind="",
                       bounds=tuple(turned[one] for one in self.bounds))


def _no_bound(word: str, where: str) -> Literal[""]:
    """No bound, of an empty word. Raises InputError for any other."""
    if word:
        raise InputError(f'{where}: a bound is "", "upper" or "lower"; got {word!r}')
    return ""


def _parsed(text: str, name: str, kind: str, unit: str) -> Data:
    bound: Bound = ""
    power = 6.0
    head: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            said = dict(re.findall(r"(DATA|BOUND|POWER)\s*=\s*(\S+)", line.upper()))
            kind = kind or said.get("DATA", "")
            power = float(said.get("POWER", power))
            if "BOUND" in said:
                if said["BOUND"] not in ("UPPER", "LOWER"):
                    raise InputError(f"{name}, line {number}: BOUND is UPPER or LOWER; got {said['BOUND']}")
                bound = "upper" if said["BOUND"] == "UPPER" else "lower"
            continue
        words = [word.strip() for word in (line.split(",") if "," in line else line.split())]
        if not any(words):
            continue
        if not rows and not head and "value" in [word.lower() for word in words]:
            head = [word.lower() for word in words]
            continue
        rows.append((number, words))
    if kind and kind not in KINDS:
        raise InputError(f"{name}: data are of the kinds {', '.join(KINDS)}; got {kind}")
    if not rows:
        raise InputError(f"{name} holds no data: label, value and sigma, a line each")
    places = {key: head.index(key) for key in head} if head else {"label": 0, "value": 1, "sigma": 2}
    if "value" not in places or "sigma" not in places:
        raise InputError(f"{name}: a head names label, value and sigma; got {', '.join(head)}")
    values: list[float] = []
    sigma: list[float] = []
    labels: list[str] = []
    bounds: list[Bound] = []
    for number, words in rows:
        try:
            values.append(float(words[places["value"]]))
            sigma.append(float(words[places["sigma"]]))
        except (ValueError, IndexError) as error:
            raise InputError(f"{name}, line {number}: label, value and sigma are wanted; got {' '.join(words)!r}") from error
        labels.append(words[places["label"]] if "label" in places else str(len(labels)))
        own = words[places["bound"]].lower() if "bound" in places and places["bound"] < len(words) else bound
        bounds.append("upper" if own == "upper" else "lower" if own == "lower" else _no_bound(own, f"{name}, line {number}"))
    profile = kind == "SAXS" or (not kind and not head and all(_is_number(one) for one in labels))
    q = None
    if profile:
        if unit not in ("", "Angstrom-1", "nm-1"):
            raise InputError(f'unit of q is "Angstrom-1" or "nm-1"; got {unit!r}')
        q, kind = np.array([float(one) for one in labels]) * (0.1 if unit == "nm-1" else 1.0), "SAXS"
    return Data(values=np.array(values), sigma=np.array(sigma), labels=tuple(labels), kind=kind, q=q, power=power,
                bounds=tuple(bounds) if any(bounds) else ())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison(Result):
    """Averages held against what was measured, datum by datum."""

    FIGURE = "ensemble.comparison"

    data: Data
    calculated: np.ndarray
    """(m,), scaled where that was asked for."""
    stderr: np.ndarray
    """Standard errors of the averages, (m,), scaled alike."""
    chi2: float
    """Mean of squared deviations over squared errors of the data; of bounds only what exceeds them."""
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""

    @property
    def off(self) -> np.ndarray:
        """Deviations (m,); of bounds that are kept 0."""
        off = self.calculated - self.data.values
        for k, kind in enumerate(self.data.bounds):
            off[k] = max(off[k], 0.0) if kind == "upper" else min(off[k], 0.0) if kind == "lower" else off[k]
        return off

    @property
    def z(self) -> np.ndarray:
        """Deviations over both errors, of data and of averages, (m,)."""
        error = np.where(np.isfinite(self.stderr), self.stderr, 0.0)
        return np.asarray(self.off / np.hypot(self.data.sigma, error))

    @property
    def violations(self) -> np.ndarray:
        """Numbers of the bounds that are broken."""
        held = np.array([kind != "" for kind in self.data.bounds], bool) if self.data.bounds else np.zeros(len(self.data), bool)
        return np.flatnonzero(held & (self.off != 0))

    def table(self) -> str:
        """Datum, measured ± sigma, calculated ± standard error, z, aligned."""
        names = self.data.labels or tuple(map(str, range(len(self.data))))
        rows = [["datum", "measured", "± σ", "calculated", "± SE", "z"]]
        rows += [[name, f"{e:.5g}", f"{s:.2g}", f"{c:.5g}", f"{se:.2g}", f"{z:+.2f}"] for name, e, s, c, se, z in zip(
            names, self.data.values, self.data.sigma, self.calculated, self.stderr, self.z, strict=True)]
        wide = [max(len(row[k]) for row in rows) for k in range(6)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows)

    def __repr__(self) -> str:
        far = np.flatnonzero(np.abs(self.z) > OUTLIER)
        names = self.data.labels or tuple(map(str, range(len(self.data))))
        words = [f"{len(self.data)} data, χ² {self.chi2:.4g}"]
        if (self.scale, self.offset) != (1.0, 0.0):
            words.append(f"scale {self.scale:.4g}" + (f", offset {self.offset:.4g}" if self.offset else ""))
        if len(self.violations):
            words.append(f"{len(self.violations)} bounds broken")
        if len(far):
            words.append(f"{len(far)} off by more than {OUTLIER:g} errors: {', '.join(names[k] for k in far[:6])}")
        return "; ".join(words)

    def _facts(self) -> dict[str, object]:
        return {"chi2": self.chi2, "scale": self.scale, "offset": self.offset, "calculated": self.calculated,
                "stderr": self.stderr, "z": self.z, "violations": self.violations, "data": self.data}


def compare(average: Estimate, data: Data | tuple[ArrayLike, ArrayLike], *, fit: Scaling = "no") -> Comparison:
    """An average of m elements held against m data.

    Arguments:
        average: as ``md.average`` gave it. Where its elements are residues and the labels of the data are their numbers, those
            that were measured are taken; q of a profile must be that of the data.
        data: as ``md.Data.read`` gave them, or (values, sigma).
        fit: "scale" or "scale+offset" of what was calculated, by least squares; for profiles.

    Raises InputError where they do not fit each other.
    """
    if isinstance(average, Averages):
        raise InputError(f"compare one of these averages: {', '.join(map(repr, average))}, such as averages[name]")
    if not isinstance(average, Estimate):
        raise InputError(f"compare takes an Estimate of md.average; got {type(average).__name__}")
    known = data if isinstance(data, Data) else Data(values=np.asarray(data[0]), sigma=np.asarray(data[1]))
    mean, stderr = np.atleast_1d(np.asarray(average.mean, np.float64)), np.atleast_1d(np.asarray(average.stderr, np.float64))
    if mean.ndim != 1:
        raise InputError(f"compare takes averages of one axis; this has shape {mean.shape}")
    at = _elements(average, known, len(mean))
    mean, stderr = mean[at], stderr[at]
    scale, offset = scaled_to(mean, known, fit)
    answer = Comparison(data=known, calculated=scale * mean + offset, stderr=abs(scale) * stderr, chi2=0.0, scale=scale,
                        offset=offset, unit=average.unit)
    return replace(answer, chi2=float(np.mean((answer.off / known.sigma) ** 2)))


def _elements(average: Estimate, data: Data, n: int) -> np.ndarray:
    """Which elements of an average the data are about."""
    if data.q is not None and "q" in average.coords:
        q = np.asarray(average.coords["q"][0])
        if len(q) != len(data) or not np.allclose(q, data.q, rtol=1e-6, atol=0):
            raise InputError(f"the profile was calculated at other q ({len(q)} from {q.min():g} to {q.max():g}) than it was "
                             f"measured at ({len(data)} from {data.q.min():g} to {data.q.max():g} / angstrom): md.SAXS(data.q)")
        return np.arange(n)
    numbers = [int(word) for word in data.labels if word.lstrip("-").isdigit()]
    if "residue" in average.coords and len(numbers) == len(data) > 0:
        residues = np.asarray(average.coords["residue"][0]).tolist()
        absent = [one for one in numbers if one not in residues]
        if absent:
            raise InputError(f"residues {', '.join(map(str, absent[:6]))} were measured and not calculated, which are "
                             f"{', '.join(map(str, residues[:12]))}{' ...' if len(residues) > 12 else ''}: leave these data "
                             "out, or number alike")
        if len(set(residues)) < len(residues):
            raise InputError("residue numbers come more than once in this average (several chains): compare chain by chain")
        return np.array([residues.index(one) for one in numbers])
    if n != len(data):
        raise InputError(f"{n} averages and {len(data)} data: they are held against each other one by one, in their order")
    return np.arange(n)


def scaled_to(mean: np.ndarray, data: Data, fit: Scaling) -> tuple[float, float]:
    """Scale and offset of what was calculated that bring it nearest to the data, weighted by their errors."""
    if fit == "no":
        return 1.0, 0.0
    if fit not in ("scale", "scale+offset"):
        raise InputError(f'fit is "no", "scale" or "scale+offset"; got {fit!r}')
    if any(data.bounds):
        raise InputError("a scale is found from values; these data have bounds among them")
    w = data.sigma**-2.0
    if fit == "scale":
        return float((w * mean * data.values).sum() / (w * mean**2).sum()), 0.0
    middle, target = float(w @ mean / w.sum()), float(w @ data.values / w.sum())
    spread = float(w @ (mean - middle) ** 2)
    if not spread > 0:
        raise InputError("all that was calculated is the same: there is no scale besides an offset")
    scale = float(w @ ((mean - middle) * (data.values - target))) / spread
    return scale, target - scale * middle


def data_of(given: Any, m: int) -> Data:
    """Data, or (values, sigma) or (values, sigma, bounds), of m columns."""
    if isinstance(given, Data):
        known = given
    elif isinstance(given, Sequence) and len(given) in (2, 3):
        known = Data(values=np.asarray(given[0], np.float64), sigma=np.broadcast_to(
            np.asarray(given[1], np.float64), np.shape(given[0])), bounds=tuple(given[2]) if len(given) == 3 else ())
    else:
        raise InputError(f"data are what md.Data.read gave, or (values, sigma); got {type(given).__name__}")
    if len(known) != m:
        raise InputError(f"{m} numbers were calculated of each frame, and there are {len(known)} data"
                         + (f" ({', '.join(known.labels[:4])}, ...)" if known.labels else ""))
    return known


__all__ = ["Comparison", "Data", "compare", "data_of", "scaled_to"]
