"""Statistical weights of frames that a table holds beside them: as such, as logarithms, or as the bias of an enhanced run."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.averaging.weights import normalised_weights
from ensemblekit.errors import InputError
from ensemblekit.intake import as_array
from ensemblekit.md.frame_selection import FrameSelection
from ensemblekit.md.system import times_known
from ensemblekit.md.trajectory import FrameSource
from ensemblekit.md.weighted import WeightedSource
from ensemblekit.source import ReplicaSet, SnapshotSource
from ensemblekit.source_clock import check_weights, time_weights, weights_from_logs

GAS_CONSTANT = {"kj/mol": 8.31446261815324e-3, "kcal/mol": 8.31446261815324e-3 / 4.184, "ev": 8.617333262e-5}
"""Boltzmann's constant per K in the units of a bias."""
CLOSE = 0.01
"""Part of the time between rows by which a frame and its row may differ."""
ROUNDING = 2.0**-23
"""The same of the time itself, as trajectories keep times in single precision."""


@dataclass(frozen=True, eq=False)
class FrameWeights:
    """Logarithms of the weights of rows with their times; joined to frames by time."""

    logs: np.ndarray
    """(n,) natural logarithms, on any offset; -inf leaves a row out."""
    times: np.ndarray | None
    """(n,) in ps, rising; None: the rows are those of the frames, one each."""
    name: str
    """Where they come from, in words."""

    @property
    def weights(self) -> np.ndarray:
        """(n,) of the rows themselves, adding up to 1."""
        return normalised_weights(log_weights=self.logs)

    def at(self, times: np.ndarray | None, n: int) -> np.ndarray:
        """Weights (n,) of n frames at these times (ps), adding up to 1.

        Raises InputError where a frame has no row of its time.
        """
        if times is None or self.times is None:
            if len(self.logs) != n:
                raise InputError(f"{self.name} has {len(self.logs)} rows and there are {n} frames, and "
                                 f"{'these frames have' if times is None else 'it has'} no times by which they could be "
                                 "joined: leave as many frames as rows (start, stop, step), or give the times")
            return normalised_weights(log_weights=self.logs)
        return normalised_weights(log_weights=self.logs[self._rows(np.asarray(times, np.float64))])

    def _rows(self, times: np.ndarray) -> np.ndarray:
        """The row of each frame."""
        row_times = self.times
        assert row_times is not None
        step = float(np.median(np.diff(row_times))) if len(row_times) > 1 else 0.0
        right = (np.clip(np.searchsorted(row_times, times), 1, max(len(row_times) - 1, 1)) if len(row_times) > 1
                 else np.zeros(len(times), int))
        left = np.maximum(right - 1, 0)
        rows = np.where(np.abs(row_times[left] - times) <= np.abs(row_times[right] - times), left, right)
        off = np.abs(row_times[rows] - times)
        far = ~(off <= np.maximum(CLOSE * step, ROUNDING * np.abs(times)))
        if far.any():
            raise InputError(self._unmatched(times, far, step))
        for other in (np.maximum(rows - 1, 0), np.minimum(rows + 1, len(row_times) - 1)):
            twice = (row_times[other] == row_times[rows]) & (self.logs[other] != self.logs[rows])
            if twice.any():
                raise InputError(f"{self.name} has two rows at {row_times[rows[np.argmax(twice)]]:g} ps with different "
                                 "numbers: print the times with more digits, or leave one out")
        return rows

    def _unmatched(self, times: np.ndarray, far: np.ndarray, step: float) -> str:
        row_times = self.times
        assert row_times is not None
        k = int(np.argmax(far))
        spacing = float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        said = (f"{int(far.sum())} of {len(times)} frames have no row of their time in {self.name} (the first is frame {k} at "
                f"{times[k]:g} ps): its {len(row_times)} rows go from {row_times[0]:g} to {row_times[-1]:g} ps, "
                f"{step:g} ps apart, the frames from {times[0]:g} to {times[-1]:g} ps, {spacing:g} ps apart. ")
        outside = (times[far] < row_times[0]) | (times[far] > row_times[-1])
        if outside.all():
            return said + f"Choose the frames that have rows: begin={row_times[0]:g}, end={row_times[-1]:g}"
        ratio = step / spacing if spacing > 0 else 0.0
        if ratio > 1.5 and abs(ratio - round(ratio)) < 1e-3:
            return said + f"Choose one of {round(ratio)} frames (step={round(ratio)}), or write the rows more often"
        return said + ("Write rows at the times of the frames, or choose frames that have one (frames=, begin=, end=, step=); "
                       "where times are counted anew in one of the two, write them as in the other")


def frame_weights_of(columns: Mapping[str, np.ndarray], times: np.ndarray | None, units: Mapping[str, str],
                     temperature: float | None, unit: str | None, log: bool, *, file: str) -> FrameWeights:
    """Weights from columns of a file; see :meth:`~ensemblekit.md.columns.Columns.weights`."""
    names = ", ".join(map(repr, columns))
    title = f"{', '.join(columns)} of {file}"
    for name, x in columns.items():
        bad = ~np.isfinite(x) if temperature is not None or not log else np.isnan(x) | (x == np.inf)
        if bad.any():
            k = int(np.argmax(bad))
            when = "" if times is None else f" ({times[k]:g} ps)"
            raise InputError(f"{name!r} of {file} is {x[k]} in row {k + 1}{when}: weights need a number in every row")
    if temperature is None:
        if len(columns) > 1:
            raise InputError(f"{names}: several columns are added where they are biases; pass temperature=, in K")
        ((name, x),) = columns.items()
        if log:
            return FrameWeights(x.astype(np.float64), times, title)
        if re.search(r"bias(?![a-z])", name.lower()) or (x < 0).any():
            what = "is negative in places" if (x < 0).any() else "looks like a bias"
            raise InputError(f"{name!r} of {file} {what}: a bias becomes weights with the temperature of the run, "
                             f"weights({name!r}, temperature=300); logarithms of weights with log=True")
        with np.errstate(divide="ignore"):
            return FrameWeights(np.log(x), times, title)
    if log:
        raise InputError("log=True is for logarithms of weights, temperature= for a bias: one of the two")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not (
            math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature= is a number above 0, in K; got {temperature!r}")
    logs: Any = 0.0
    for name, x in columns.items():
        logs = logs + x / _kt(name, unit, units.get(name, ""), temperature)
    return FrameWeights(np.asarray(logs, np.float64), times, title)


def _kt(name: str, said: str | None, own: str, temperature: float) -> float:
    """kT in the unit of a bias."""
    unit = said if said is not None else own or "kJ/mol"
    word = unit.replace(" ", "").lower().replace("mol-1", "/mol")
    if word in ("kt", "1"):
        return 1.0
    if word not in GAS_CONSTANT:
        raise InputError(f"the bias {name!r} is in {unit!r}; unit= is \"kJ/mol\", \"kcal/mol\", \"eV\" or \"kT\"")
    if said is not None and own and own.replace(" ", "").lower() != word and own.replace(" ", "").lower() in GAS_CONSTANT:
        raise InputError(f"the bias {name!r} is in {own!r} as its file says, and unit= says {said!r}")
    return GAS_CONSTANT[word] * temperature


def weighted(source: Any, choice: FrameSelection, weights: object, log_weights: object = None) -> Any:
    """The chosen frames of a source of one run or several, with these weights instead of their own where there are any."""
    if log_weights is not None:
        if weights is not None:
            raise InputError("pass either frame_weights= or log_weights=, not both")
        weights = _from_logs(log_weights, source)
    if weights is None:
        return choice.of(source)
    if isinstance(source, ReplicaSet):
        if isinstance(weights, str):
            weights = [weights] * len(source.runs)
        if isinstance(weights, np.ndarray) or not isinstance(weights, Sequence) or len(weights) != len(source.runs):
            raise InputError(f"frame_weights of {len(source.runs)} replicas are a list with one array each, or with one "
                             "md.columns(file).weights(...) each")
        return ReplicaSet(tuple(weighted(run, choice, w) for run, w in zip(source.runs, weights, strict=True)))
    chosen = choice.of(source)
    (n,) = chosen.lengths
    times = chosen.times if times_known(chosen) else None
    if isinstance(weights, str) and weights == "time":
        w = time_weights(times)
    else:
        w = weights.at(times, n) if isinstance(weights, FrameWeights) else _array_of(weights, source, choice, n)
        if not w.any():
            raise InputError("all frame_weights are zero: no frame is left to average over")
    return chosen.reweighted(w) if isinstance(chosen, FrameSource) else WeightedSource(chosen, w)


def _from_logs(log_weights: object, source: Any) -> np.ndarray | list[Any]:
    """Weights of frames from their logarithms, (n,); of replicas a list of them."""
    if isinstance(source, ReplicaSet):
        if isinstance(log_weights, np.ndarray) or not isinstance(log_weights, Sequence) or len(log_weights) != len(source.runs):
            raise InputError(f"log_weights of {len(source.runs)} replicas are a list with one array each")
        return [_from_logs(one, run) for one, run in zip(log_weights, source.runs, strict=True)]
    logs = as_array(log_weights, "log_weights", kinds="biuf")
    return weights_from_logs(logs, logs.size)


def _array_of(weights: object, source: Any, choice: FrameSelection, n: int) -> np.ndarray:
    """An array of weights for the n chosen frames."""
    if isinstance(weights, SnapshotSource | Mapping | str | os.PathLike):
        raise InputError(f"frame_weights got {type(weights).__name__}, which does not say whether its numbers are weights, "
                         "their logarithms or a bias: pass md.columns(file).weights(name) for weights, with log=True for "
                         "their logarithms, or md.columns(file).weights(name, temperature=300) for a bias")
    (total,) = source.lengths
    w = as_array(weights, "frame_weights")
    if w.shape == (total,) and n != total:
        w = w[choice.rows(total, lambda: source.times)]
    if w.shape != (n,):
        whole = f" (or ({total},) for all frames)" if n != total else ""
        raise InputError(f"frame_weights are one number a frame, shape ({n},){whole}; got shape {w.shape}. Weights "
                         "of rows of a file are joined to the frames by time: md.columns(file).weights(name)")
    return check_weights(w, n)
