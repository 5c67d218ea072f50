"""Is every byte that matters still what was written? libhdf5 answers in a child process, as damage can crash or hang it.

Checked, file by file: the description against its checksum; every dataset's place, shape, type, unit, chunks and
links against the description; the number of committed rows; every row of every field, and its step, time and weight,
against its checksum, read through libhdf5 as any other program would read it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash

READ_BYTES = 32 << 20
BYTES_PER_SECOND = 30e6     # what the slowest disk is given, before a child counts as hanging
SPARE_MEMORY = 6 << 30


@dataclass(frozen=True, slots=True)
class Report:
    """What ``verify`` found."""

    path: str
    snapshots: int
    """Snapshots compared with their checksums, over all clocks."""
    problems: tuple[str, ...]
    """What is wrong, in words; empty where all is well."""
    by_field: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Field (or "step, time, weight") -> the snapshots whose values are not what was written."""

    @property
    def ok(self) -> bool:
        """Nothing was found."""
        return not self.problems

    @property
    def damaged(self) -> tuple[int, ...]:
        """All damaged snapshots, by their number in the store."""
        return tuple(sorted({k for rows in self.by_field.values() for k in rows}))

    def __str__(self) -> str:
        if self.ok:
            return f"{self.path}: {self.snapshots} snapshots, all as they were written"
        return f"{self.path}: damaged\n" + "\n".join(f"  - {problem}" for problem in self.problems)


def verify(path: str | os.PathLike[str], *, timeout: float = 60.0) -> Report:
    """Compare a store with its checksums.

    Arguments:
        path: of the store; its further segments are found beside it.
        timeout: seconds a file may take, and a second more for every 30 MB of it; a child that takes longer hangs.

    Returns:
        a :class:`Report`; ``report.ok`` is false also where the file cannot be opened, or crashes or hangs libhdf5.
    """
    from ensemblekit.store.segments import segments_of

    path = os.fspath(path)
    problems: list[str] = []
    damaged: dict[str, set[int]] = {}
    snapshots = 0
    ends: dict[str, int] = {}
    closed = False
    run = None
    for k, one in enumerate(segments_of(path)):
        answer = _ask_child(one, timeout)
        where = "" if k == 0 and one == path else f"{os.path.basename(one)}: "
        if k and answer.get("run") not in (None, run):
            continue        # a leftover of another run that no reader follows
        problems += [where + p for p in answer["problems"]]
        snapshots += answer["snapshots"]
        for name, rows in answer["damaged"].items():
            damaged.setdefault(name, set()).update(rows)
        if k == 0:
            run = answer.get("run")
        elif not _continues(answer, ends, closed) or answer.get("segment", k) != k:
            problems.append(f"{where}it does not continue the file before it: starts at {answer.get('starts')}, "
                            f"where {ends} stood before")
        ends, closed = answer.get("ends") or {}, answer.get("closed", False)
    return Report(path, snapshots, tuple(problems), {name: tuple(sorted(rows)) for name, rows in damaged.items()})


def _continues(answer: Mapping[str, Any], ends: Mapping[str, int], closed: bool) -> bool:
    """Whether a file begins where the one before it ends, or that one was cut back since (and closed again)."""
    starts = answer.get("starts") or ends
    return all(starts[c] == n or (starts[c] > n and closed) for c, n in ends.items())


def _ask_child(path: str, timeout: float) -> dict[str, Any]:
    nothing: dict[str, Any] = {"problems": [], "damaged": {}, "snapshots": 0}
    try:
        size = os.stat(path).st_blocks * 512
    except OSError as error:
        return {**nothing, "problems": [f"cannot be read: {error}"]}
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
                   "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run([sys.executable, "-m", "ensemblekit.store.verify", path], capture_output=True, text=True,
                              timeout=timeout + size / BYTES_PER_SECOND, env=environment, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return {**nothing, "problems": ["libhdf5 hangs on this file: its metadata are damaged"]}
    if done.returncode < 0:
        return {**nothing, "problems": [f"libhdf5 dies on this file (signal {-done.returncode}): its metadata are damaged"]}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return {**nothing, "problems": [f"cannot be checked: {last}"]}


def check_file(path: str) -> dict[str, Any]:
    """What is wrong with one file; runs in the child."""
    import h5py
    import hdf5plugin  # noqa: F401  (registers the filters)

    from ensemblekit.store.schema import CLOSED, SCHEMA, SCHEMA_SUM, Schema

    answer: dict[str, Any] = {"problems": [], "damaged": {}, "snapshots": 0}
    problems: list[str] = answer["problems"]
    try:
        with h5py.File(path, "r", locking=False) as f:
            if SCHEMA not in f or SCHEMA_SUM not in f or CLOSED not in f:
                problems.append("no description by ensemblekit: another program's file (without checksums), or damaged")
                return answer
            text = f[SCHEMA][...].tobytes()
            if int(f[SCHEMA_SUM][()]) != xxhash.xxh3_64_intdigest(text):
                problems.append("the description of the store does not match its checksum")
                return answer
            schema = Schema.from_json(text)
            problems += _head(f, schema)
            problems += _constants(f, schema)
            record = f[CLOSED][...]
            counts = []
            for k, (clock, names) in enumerate(schema.clocks.items()):
                n = _check_clock(f, schema, clock, names, record, k, answer)
                counts.append(n)
            answer.update(closed=bool(record.any()), run=schema.run, segment=schema.segment, starts=dict(schema.starts or {}),
                          ends={c: (schema.starts or {})[c] + n for c, n in zip(schema.clocks, counts, strict=True)})
            if record.any():
                from ensemblekit.store.hdf5 import closed_record

                if len(record) != len(counts) + 1 or not np.array_equal(record, closed_record(
                        [int(x) for x in record[:-1]])):
                    problems.append("the record of the last clean close is damaged")
                elif list(record[:-1]) != counts:
                    problems.append(f"{counts} snapshots are there, {record[:-1].tolist()} were at the last clean close")
    except Exception as error:
        problems.append(f"libhdf5 cannot read it: {type(error).__name__}: {error}")
    return answer


def _constants(f: Any, schema: Any) -> Iterator[str]:
    """The arrays that do not change with time; they stand in the first file."""
    from ensemblekit.store.schema import CONSTANTS

    for name, digest in (schema.constants or {}).items() if schema.segment == 0 else ():
        if f"{CONSTANTS}/{name}" not in f:
            yield f"the constant {name!r} is missing"
        elif xxhash.xxh3_64_intdigest(f[f"{CONSTANTS}/{name}"][...].tobytes()) != digest:
            yield f"the constant {name!r} is not what was written"


def _head(f: Any, schema: Any) -> Iterator[str]:
    """What other programs go by, beside the datasets."""
    from ensemblekit.store.schema import PARTICLES

    if list(f["h5md"].attrs["version"]) != [1, 1]:
        yield "the H5MD version is not 1.1"
    kinds = {field.kind for field in schema.fields.values()}
    if kinds - {"observable"}:
        box = f[f"{PARTICLES}/box"].attrs
        want = b"periodic" if "box" in kinds else b"none"
        if int(box["dimension"]) != 3 or [bytes(x) for x in box["boundary"]] != [want] * 3:
            yield "the box's dimension or boundary changed"
        if sorted(f["particles"]) != ["trajectory"]:
            yield f"other groups of particles appeared: {sorted(f['particles'])}"


def _check_clock(f: Any, schema: Any, clock: str, names: list[str], record: np.ndarray, index: int,
                 answer: dict[str, Any]) -> int:
    import h5py

    problems: list[str] = answer["problems"]
    columns = schema.columns(clock, max(1, (schema.capacity or {})[clock]))
    sets = []
    for column in columns:
        if column.path not in f:
            problems.append(f"{column.path} is missing")
            return 0
        d = f[column.path]
        sets.append(d)
        unit = d.attrs.get("unit", "")
        for what, got, want in (("shape", d.shape[1:], column.shape), ("type", d.dtype, column.dtype),
                                ("unit", str(unit), column.unit), ("chunks", d.chunks, column.chunk),
                                ("axes", d.maxshape, (None, *column.shape))):
            if got != want:
                problems.append(f"{column.path}: its {what} is {got}, it was written as {want}")
    if problems:
        return 0
    home = [h5py.h5o.get_info(d.id).addr for d in sets[len(names):len(names) + 2]]
    elements = [schema.element(n) for n in names] + [columns[len(names) + 2].path.rpartition("/")[0]]
    for element in elements:
        for child, want in zip(("step", "time"), home, strict=True):
            if child not in f[element] or h5py.h5o.get_info(f[element][child].id).addr != want:
                problems.append(f"{element}/{child} is not the {child} of its clock any more")
    n, capacity = sets[0].shape[0], (schema.capacity or {})[clock]
    ahead = {d.shape[0] for d in sets[1:]}
    if n > capacity or any(x > capacity for x in ahead):
        problems.append(f"clock {clock!r}: {n} snapshots, with room for {capacity}: the extents are damaged")
        return 0
    if any(x != n for x in ahead) and (record.any() or len(ahead) > 2 or min(ahead) < n):
        problems.append(f"clock {clock!r}: {n} snapshots, but its other datasets hold {sorted(ahead)}")
        n = min(n, *ahead)
    start = (schema.starts or {})[clock]
    rows = sum(max(1, c.nbytes) for c in columns)
    step = max(1, READ_BYTES // rows)
    labels = [*names, "step, time, weight"]
    for a in range(0, n, step):
        b = min(n, a + step)
        from ensemblekit.store.segments import checksums
        from ensemblekit.store.store import META

        values = [np.ascontiguousarray(d[a:b]) for d in sets[:len(names)]]
        meta = np.empty(b - a, META)
        for key, d in zip(("step", "time", "weight"), sets[len(names):], strict=False):
            meta[key] = d[a:b]
        wrong = checksums(values, meta, b - a) != sets[-1][a:b]
        for k in np.flatnonzero(wrong.any(axis=0)):
            rows_hit = (start + a + np.flatnonzero(wrong[:, k])).tolist()
            answer["damaged"].setdefault(labels[k], []).extend(rows_hit)
    for label in labels:
        hit = answer["damaged"].get(label)
        if hit and hit[0] >= start:
            problems.append(f"{label}: snapshots {_listed(hit)} are not what was written")
    answer["snapshots"] += n
    return n


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


def main() -> None:
    import resource

    soft = SPARE_MEMORY + os.stat(sys.argv[1]).st_blocks * 512
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(check_file(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)     # not through libhdf5's clean-up, which damaged files can break too


if __name__ == "__main__":
    main()
