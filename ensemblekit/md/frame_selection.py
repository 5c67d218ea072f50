"""Which frames of a trajectory are meant: from a time to a time, or by their numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.md.joints import JOINT, step_of
from ensemblekit.md.trajectory import FrameSource
from ensemblekit.md.weighted import PickedSource
from ensemblekit.source import ReplicaSet, StackedSource
from ensemblekit.source_cuts import check_window


@dataclass(frozen=True)
class FrameSelection:
    """Which frames of a run: by number, by list or mask, or by time."""

    start: int | None = None
    stop: int | None = None
    step: int | None = None
    frames: Any = None
    begin: float | None = None
    end: float | None = None

    @property
    def everything(self) -> bool:
        return all(x is None for x in (self.start, self.stop, self.step, self.frames, self.begin, self.end))

    def rows(self, n: int, times: Callable[[], np.ndarray | None]) -> Any:
        """The choice as a slice or rising numbers of n frames; InputError where it cannot be or leaves nothing."""
        by_number = (self.start, self.stop) != (None, None)
        by_time = (self.begin, self.end) != (None, None)
        if self.frames is not None and (by_number or by_time or self.step is not None):
            raise InputError("choose frames= or start, stop, step or begin, end: one of the three")
        if by_number and by_time:
            raise InputError("choose frames by number (start, stop) or by time (begin, end), not by both")
        if self.frames is not None:
            return self._listed(n)
        step = 1 if self.step is None else self.step
        check_window(0, None, step)
        if by_time:
            known = times()
            if known is None:
                raise InputError("these frames have no times: choose them by number, start and stop; or say the interval of "
                                 "the files, md.read(..., dt=), in ps")
            slack = JOINT * abs(step_of(known))
            first = 0 if self.begin is None else int(np.searchsorted(known, self.begin - slack, "left"))
            last = n if self.end is None else int(np.searchsorted(known, self.end + slack, "right"))
            if first >= last:
                raise InputError(f"no frame between {self.begin} and {self.end} ps; the times run from {known[0]:g} to "
                                 f"{known[-1]:g} ps")
            return slice(first, last, step)
        chosen = range(n)[self.start:self.stop:step]
        if not len(chosen):
            raise InputError(f"start={self.start}, stop={self.stop}, step={self.step} leave none of the {n} frames")
        return slice(chosen.start, chosen.stop, step)

    def _listed(self, n: int) -> np.ndarray:
        listed = np.asarray(self.frames)
        if listed.dtype == bool:
            if listed.shape != (n,):
                raise InputError(f"a mask of frames has one entry a frame, shape ({n},); got {listed.shape}")
            listed = np.flatnonzero(listed)
        if listed.ndim != 1 or listed.dtype.kind not in "iu" or not len(listed):
            raise InputError(f"frames are numbers of frames, or a mask of shape ({n},), at least one; got {self.frames!r}")
        listed = np.where(listed < 0, listed + n, listed).astype(np.int64)
        if listed.min() < 0 or listed.max() >= n:
            raise InputError(f"frames run from 0 to {n - 1}; got {np.asarray(self.frames).min()} to "
                             f"{np.asarray(self.frames).max()}")
        if (np.diff(listed) <= 0).any():
            raise InputError("frames rise, each once: time runs forward. Weights count a frame more than once: "
                             "frame_weights=")
        return listed

    def of(self, source: Any) -> Any:
        """The chosen frames of a source of one run or several."""
        if self.everything:
            return source
        if isinstance(source, ReplicaSet):
            return ReplicaSet(tuple(self.of(run) for run in source.runs))
        (n,) = source.lengths
        rows = self.rows(n, lambda: source.times)
        if isinstance(rows, slice):
            return source.window(rows.start, rows.stop, rows.step)
        return source.picked(rows) if isinstance(source, FrameSource) else _numbered(source, rows)


def _numbered(source: Any, rows: np.ndarray) -> Any:
    if isinstance(source, StackedSource):
        raise InputError("frames= needs one store; several that are parts of one run take start, stop, step or begin, end")
    return PickedSource(source.window(), rows)
