"""Is every byte that matters still what was written? libhdf5 answers in a child process, as damage can crash or hang it.

Checked, file by file: the description against its checksum; every dataset's place, shape, type, unit, chunks and
links against the description; the number of committed rows; every row of every field, and its step, time and weight,
against its checksum, read through libhdf5 as any other program would read it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ensemblekit.files import why_unreadable
from ensemblekit.results import Result

BYTES_PER_SECOND = 30e6     # of processor time: what a child is given before it counts as hanging
PATIENCE = 10               # times its processor time a child may take on a slow disk or a busy machine
NAMED = 12                  # fields that a line names
LOOKS = 5                   # times a file is looked at again that changed meanwhile
HANGS = -signal.SIGXCPU
ENDED = {-signal.SIGKILL: "the system killed the process that checks it, most likely for want of memory",
         -signal.SIGTERM: "the process that checks it was ended from outside"}

Verdict = Literal["sound", "damaged", "not checked"]


@dataclass(frozen=True, slots=True)
class Report(Result):
    """What ``verify`` found."""

    path: str
    snapshots: int
    """Snapshots compared with their checksums, over all clocks."""
    problems: tuple[str, ...]
    """What is wrong, in words; empty where nothing is."""
    by_field: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Field (or "step, time, weight") -> the snapshots whose values are not what was written. Small fields that share a
    dataset have one checksum there: all of them are listed, as any may be the one."""
    unchecked: tuple[str, ...] = ()
    """What could not be checked, and why, in words."""

    @property
    def verdict(self) -> Verdict:
        """"damaged" where something is not what was written, "not checked" where that could not be found out."""
        return "damaged" if self.problems else "not checked" if self.unchecked else "sound"

    @property
    def ok(self) -> bool:
        """Everything was checked and is what was written."""
        return self.verdict == "sound"

    @property
    def damaged(self) -> tuple[int, ...]:
        """All damaged snapshots, by their number in the store."""
        return tuple(sorted({k for rows in self.by_field.values() for k in rows}))

    def __str__(self) -> str:
        if self.ok:
            return f"{self.path}: {self.snapshots} snapshots, all as they were written"
        return f"{self.path}: {self.verdict}\n" + "\n".join(f"  - {x}" for x in (*self.problems, *self.unchecked))


def verify(path: str | os.PathLike[str], *, timeout: float = 60.0, external: bool = False) -> Report:
    """Compare a store with its checksums.

    Arguments:
        path: of the store; its further segments are found beside it.
        timeout: seconds of a processor that a file may take, and a second more for every 30 MB of it: libhdf5 hangs where
            a child needs longer. By the clock it may take ten times that.
        external: look also at what lies in other files that this one points to.

    Returns:
        a :class:`Report`; ``report.verdict`` is "damaged" also where a file crashes or hangs libhdf5, and "not checked" where
        the file cannot be opened, has no checksums, is written too fast to be followed, or memory, time or rights are
        wanting.
    """
    from ensemblekit.store.names import segments_of

    path = os.path.realpath(path)
    for _ in range(LOOKS):
        files = segments_of(path)
        states = [_state(one) for one in files]
        report = _report(path, files, _ask_children(files, timeout, external))
        if not report.problems or (segments_of(path) == files and [_state(one) for one in files] == states):
            return report
    return Report(path, report.snapshots, (), {}, ("a writer changed it each time it was looked at; call again when the writer "
                                                   "pauses",))


def _report(path: str, files: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> Report:
    """What the answers for the files of a store say of it."""
    from ensemblekit.store.names import first_of, missing_files

    problems: list[str] = []
    unchecked: list[str] = []
    damaged: dict[str, set[int]] = {}
    snapshots = 0
    before: dict[str, int] = {}     # clock -> committed snapshots in the files so far
    run = None
    needed = there = 0
    for k, (one, answer) in enumerate(zip(files, answers, strict=True)):
        where = "" if k == 0 and one == path else f"{os.path.basename(one)}: "
        if k and answer.get("run") not in (None, run):
            break           # a leftover of another run: no reader follows it
        there, needed = there + 1, max(needed, answer.get("files", 0))
        problems += [where + p for p in answer["problems"]]
        unchecked += [where + p for p in answer["unchecked"]]
        snapshots += answer["snapshots"]
        together: dict[tuple[str, ...], list[int]] = {}
        for clock, names, rows in answer["damaged"]:
            together.setdefault(tuple(names), []).extend(before.get(clock, 0) + row for row in rows)
        for names, numbers in together.items():
            for name in names:
                damaged.setdefault(name, set()).update(numbers)
            problems.append(f"{where}{_together(names)}: snapshots {_listed(numbers)} are not what was written")
        counts = answer.get("counts")
        if counts is None:      # what follows cannot be numbered; it is checked all the same
            continue
        if k == 0:
            run = answer["run"]
            if answer["segment"]:
                unchecked.append(f"it is part {answer['segment'] + 1} of a store; its first file speaks for all"
                                 f"{first_of(path)}")
                break
        elif answer["segment"] != k or any(answer["starts"].get(c, 0) < n for c, n in before.items()):
            problems.append(f"{where}it does not continue the file before it: it starts at {answer['starts']}, "
                            f"where {before} snapshots stand before")
        before = {c: before.get(c, 0) + n for c, n in counts.items()}
    missing = "" if unchecked else missing_files(path, there, needed)
    if missing:
        problems.append(missing)
    return Report(path, snapshots, tuple(problems), {name: tuple(sorted(rows)) for name, rows in damaged.items()},
                  tuple(unchecked))


def _state(path: str) -> tuple[int, ...]:
    """Changes with every commit, cut and replacement of a file."""
    try:
        stat = os.stat(path)
    except OSError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _ask_children(paths: Sequence[str], timeout: float, external: bool = False) -> list[dict[str, Any]]:
    """The answers of :func:`check_file` in a child; where it does not live to give one, why, and a new child for the rest."""
    answers: list[dict[str, Any]] = []
    while len(answers) < len(paths):
        answers += _ask_child(paths[len(answers):], timeout, external)
    return answers


def _ask_child(paths: Sequence[str], timeout: float, external: bool = False) -> list[dict[str, Any]]:
    """At least one answer: of the files in turn, until the child's end."""
    allowed: list[tuple[str, str]] = []
    for path in paths:
        why = why_unreadable(path)
        if why:
            if not allowed:
                return [empty_answer(unchecked=why)]
            break
        seconds = max(1, math.ceil(timeout + os.stat(path).st_blocks * 512 / BYTES_PER_SECOND))
        allowed.append((path, str(seconds)))
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
                   "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    patience = PATIENCE * sum(int(seconds) for _, seconds in allowed)
    command = [sys.executable, "-m", "ensemblekit.store.file_check", "external" if external else "inside",
               *(word for pair in allowed for word in pair)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=patience, env=environment,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return [empty_answer(unchecked=f"they could not be read within {patience:g} s: a slow disk, or a busy machine")
                for _ in allowed]
    except (OSError, MemoryError) as error:
        return [empty_answer(unchecked=f"no process could be started to check it: {error}")]
    answers = []
    for line in done.stdout.splitlines():
        try:
            answers.append(json.loads(line))
        except ValueError:      # libraries may print, too
            continue
    if len(answers) < len(allowed):
        answers.append(_end_of(done, int(allowed[len(answers)][1])))
    return answers


def _end_of(done: subprocess.CompletedProcess[str], seconds: int) -> dict[str, Any]:
    """What the end of a child says of the file that it was looking at."""
    if done.returncode == HANGS:
        return empty_answer(f"libhdf5 hangs on this file (no end after {seconds} s of processor time): its metadata are "
                            "damaged")
    if done.returncode in ENDED:
        return empty_answer(unchecked=ENDED[done.returncode])
    if done.returncode < 0:
        return empty_answer(f"libhdf5 dies on this file (signal {-done.returncode}): its metadata are damaged")
    last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return empty_answer(unchecked=f"the process that checks it could not do its work: {last}")


def empty_answer(problem: str = "", *, unchecked: str = "") -> dict[str, Any]:
    """An answer without numbers."""
    return {"problems": [problem] if problem else [], "unchecked": [unchecked] if unchecked else [], "damaged": [],
            "snapshots": 0}


def _together(names: Sequence[str]) -> str:
    """Fields that have one checksum, in words."""
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED - 1])}, … {names[-1]}"
    return f"one or more of {len(names)} fields that share a dataset ({listed})"


def _listed(rows: list[int]) -> str:
    """0, 3-7, 12: at most ten ranges."""
    ranges: list[list[int]] = []
    for k in rows:
        if ranges and k == ranges[-1][1] + 1:
            ranges[-1][1] = k
        else:
            ranges.append([k, k])
    words = [f"{a}" if a == b else f"{a}-{b}" for a, b in ranges[:10]]
    return ", ".join(words) + (f" and {len(ranges) - 10} more ranges" if len(ranges) > 10 else "")
