"""What `md.average` answers: Estimates by name, and what was read for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ensemblekit.averaging.averages import Averages as NamedAverages
from ensemblekit.averaging.averages import wrapped


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Averages(NamedAverages):
    """Estimates by the names of their observables; print it for a table."""

    WORD: ClassVar[str] = "frames"

    passes: tuple[str, ...]
    """What each read of the frames was for, the averaging one last."""
    n_frames: int
    """Frames that were read, over all replicas."""
    n_runs: int
    """Independent runs (replicas)."""

    def remarks(self) -> list[str]:
        """What belongs below the table: doubts, verdicts, notes, what was read."""
        runs = f" of {self.n_runs} replicas" if self.n_runs > 1 else ""
        reads = f"{len(self.passes)} passes: {', '.join(self.passes)}" if len(self.passes) > 1 else "one pass"
        return [*super().remarks(), "", wrapped(f"{self.n_frames} frames{runs}, {reads}", 0)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, as JSON takes them."""
        return {"estimates": super().to_dict()["estimates"], "passes": list(self.passes), "n_frames": self.n_frames,
                "n_runs": self.n_runs, "notes": list(self.notes)}
