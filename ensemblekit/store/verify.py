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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xxhash

from ensemblekit.errors import StoreError, one_line
from ensemblekit.files import why_unreadable

READ_BYTES = 32 << 20
BYTES_PER_SECOND = 30e6     # of processor time: what a child is given before it counts as hanging
PATIENCE = 10               # times its processor time a child may take on a slow disk or a busy machine
SPARE_MEMORY = 6 << 30
LEAST_MEMORY = 1 << 30      # with less, a lack of memory says nothing about the file
NAMED = 12                  # fields that a line names
LOOKS = 5                   # times a file is looked at again that changed meanwhile
HANGS = -signal.SIGXCPU
ENDED = {-signal.SIGKILL: "the system killed the process that checks it, most likely for want of memory",
         -signal.SIGTERM: "the process that checks it was ended from outside"}

Verdict = Literal["sound", "damaged", "not checked"]


@dataclass(frozen=True, slots=True)
class Report:
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
                return [_nothing(unchecked=why)]
            break
        seconds = max(1, math.ceil(timeout + os.stat(path).st_blocks * 512 / BYTES_PER_SECOND))
        allowed.append((path, str(seconds)))
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
                   "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    patience = PATIENCE * sum(int(seconds) for _, seconds in allowed)
    command = [sys.executable, "-m", "ensemblekit.store.verify", "external" if external else "inside",
               *(word for pair in allowed for word in pair)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=patience, env=environment,
                              stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return [_nothing(unchecked=f"they could not be read within {patience:g} s: a slow disk, or a busy machine")
                for _ in allowed]
    except (OSError, MemoryError) as error:
        return [_nothing(unchecked=f"no process could be started to check it: {error}")]
    answers = []
    for line in done.stdout.splitlines():
        try:
            answers.append(json.loads(line))
        except ValueError:      # libraries may print, too
            continue
    if len(answers) < len(allowed):
        answers.append(_end_of(done, int(allowed[len(answers)][1])))
    return answers


def _end_of(done: Any, seconds: int) -> dict[str, Any]:
    """What the end of a child says of the file that it was looking at."""
    if done.returncode == HANGS:
        return _nothing(f"libhdf5 hangs on this file (no end after {seconds} s of processor time): its metadata are damaged")
    if done.returncode in ENDED:
        return _nothing(unchecked=ENDED[done.returncode])
    if done.returncode < 0:
        return _nothing(f"libhdf5 dies on this file (signal {-done.returncode}): its metadata are damaged")
    last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
    return _nothing(unchecked=f"the process that checks it could not do its work: {last}")


def _nothing(problem: str = "", *, unchecked: str = "") -> dict[str, Any]:
    """An answer without numbers."""
    return {"problems": [problem] if problem else [], "unchecked": [unchecked] if unchecked else [], "damaged": [],
            "snapshots": 0}


def check_file(path: str, external: bool = False) -> dict[str, Any]:
    """What is wrong with one file, its snapshots counted from 0; runs in the child."""
    import hdf5plugin  # noqa: F401  (registers the filters)

    from ensemblekit.store import guarded
    from ensemblekit.store.schema import CLOSED, LARGEST_SCHEMA, SCHEMA, SCHEMA_SUM, Schema

    answer = _nothing()
    problems: list[str] = answer["problems"]
    described = False
    try:
        look = guarded.Look(path, external)
        with guarded.File(path, look, locking=False) as f:
            if "ensemblekit" not in f and "ensemblekit" not in f.attrs:
                answer["unchecked"].append("another program's file: it has no checksums")
                return answer
            if SCHEMA not in f or SCHEMA_SUM not in f or CLOSED not in f:
                problems.append("its description is missing")
                return answer
            if f[SCHEMA].dtype != np.uint8 or math.prod(f[SCHEMA].shape) > LARGEST_SCHEMA:
                problems.append(f"its description is {f[SCHEMA].dtype} of shape {f[SCHEMA].shape}")
                return answer
            text = f[SCHEMA][...].tobytes()
            if int(f[SCHEMA_SUM][()]) != xxhash.xxh3_64_intdigest(text):
                problems.append("the description of the store does not match its checksum")
                return answer
            schema = Schema.from_json(text)
            described = True
            problems += _head(f, schema)
            problems += _constants(f, schema)
            record = f[CLOSED][...]
            counts = []
            for k, (clock, names) in enumerate(schema.clocks.items()):
                n = _check_clock(f, schema, clock, names, record, k, answer)
                counts.append(n)
            answer.update(run=schema.run, segment=schema.segment, starts=dict(schema.starts or {}),
                          counts=dict(zip(schema.clocks, counts, strict=True)))
            if record.any():
                from ensemblekit.store.closing import closed_record

                numbers = [int(x) for x in record[:-1]]
                files = None if schema.format == 1 else numbers.pop()
                if len(numbers) != len(counts) or not np.array_equal(record, closed_record(numbers, files)):
                    problems.append("the record of the last clean close is damaged")
                elif numbers != counts:
                    problems.append(f"{counts} snapshots are there, {numbers} were at the last clean close")
                answer["files"] = 0 if schema.sealed else files or 0
    except MemoryError as error:
        if described or _memory() < LEAST_MEMORY:       # else a size in its metadata asks for it
            return _nothing(unchecked=f"there is too little memory to check it: {error}")
        problems.append(f"libhdf5 cannot read it: {type(error).__name__}: {error}")
    except StoreError as error:
        problems.append(one_line(error).removeprefix(f"{path}: "))
    except Exception as error:
        problems.append(f"libhdf5 cannot read it: {type(error).__name__}: {one_line(error)}")
    return answer


def _memory() -> int:
    """Bytes this process may map in all."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


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
    from ensemblekit.store.guarded import small_attribute
    from ensemblekit.store.schema import PARTICLES

    if list(small_attribute(f["h5md"], "version")) != [1, 1]:
        yield "the H5MD version is not 1.1"
    kinds = {field.kind for field in schema.fields.values()}
    if kinds - {"observable"}:
        box = f[f"{PARTICLES}/box"]
        want = b"periodic" if "box" in kinds else b"none"
        if int(small_attribute(box, "dimension")) != 3 or \
                [bytes(x) for x in small_attribute(box, "boundary")] != [want] * 3:
            yield "the box's dimension or boundary changed"
        if sorted(f["particles"]) != ["trajectory"]:
            yield f"other groups of particles appeared: {sorted(f['particles'])}"


def _check_clock(f: Any, schema: Any, clock: str, names: list[str], record: np.ndarray, index: int,
                 answer: dict[str, Any]) -> int:
    import h5py

    from ensemblekit.store.guarded import DENSEST_ROWS, text_attribute

    problems: list[str] = answer["problems"]
    columns = schema.columns(clock, max(1, (schema.capacity or {})[clock]))
    sets = []
    for column in columns:
        if column.path not in f:
            problems.append(f"{column.path} is missing")
            return 0
        d = f[column.path]
        sets.append(d)
        for what, got, want in (("shape", d.shape[1:], column.shape), ("type", d.dtype, column.dtype),
                                ("unit", text_attribute(d, "unit", f._look), column.unit), ("chunks", d.chunks, column.chunk),
                                ("axes", d.maxshape, (None, *column.shape))):
            if got != want:
                problems.append(f"{column.path}: its {what} is {got}, it was written as {want}")
    values = len(columns) - 4
    groups = _Groups(f)
    for column in columns[:values]:
        if len(column.fields) > 1:
            problems += _views(f, schema, column, groups)
    if problems:
        return 0
    home = [h5py.h5o.get_info(d.id).addr for d in sets[values:values + 2]]
    elements = [schema.element(n) for n in names] + [columns[values + 2].path.rpartition("/")[0]]
    for element in elements:
        group = groups[element]
        for child, want in zip(("step", "time"), home, strict=True):
            if _linked(group, child) != want:
                problems.append(f"{element}/{child} is not the {child} of its clock any more")
    n, capacity = sets[0].shape[0], (schema.capacity or {})[clock]
    ahead = {d.shape[0] for d in sets[1:]}
    if n > capacity or any(x > capacity for x in ahead):
        problems.append(f"clock {clock!r}: {n} snapshots, with room for {capacity}: the extents are damaged")
        return 0
    if min(ahead) < n or (record.any() and max(ahead) > n):     # while it is written the others may be ahead
        problems.append(f"clock {clock!r}: {n} snapshots, but its other datasets hold {sorted(ahead)}")
        n = min(n, *ahead)
    for d in sets:
        f._look.check_size(d, DENSEST_ROWS)
    f._look.asked = True
    problems += _places(f, schema, clock, sets, n)
    rows = sum(max(1, c.nbytes) for c in columns)
    step = max(1, READ_BYTES // rows)
    for a in range(0, n, step):
        b = min(n, a + step)
        from ensemblekit.store.checksums import checksums
        from ensemblekit.store.schema import META

        meta = np.empty(b - a, META)
        for key, d in zip(("step", "time", "weight"), sets[values:], strict=False):
            meta[key] = d[a:b]
        found = [*(_checksums(d, a, b) for d in sets[:values]), checksums([], meta, b - a)]
        wrong = np.concatenate(found, axis=1) != sets[-1][a:b]
        for k in np.flatnonzero(wrong.any(axis=0)):
            meant = columns[k].fields if k < values else \
                ("step, time, weight" if len(schema.clocks) == 1 else f"step, time, weight of {clock!r}",)
            answer["damaged"].append((clock, meant, (a + np.flatnonzero(wrong[:, k])).tolist()))
    answer["snapshots"] += n
    return n


def _checksums(d: Any, a: int, b: int) -> np.ndarray:
    """(b - a, 1) uint64: the checksums of rows of a field; a row that is large is read part by part."""
    from ensemblekit.store.checksums import checksums

    item, size = d.shape[1:], d.dtype.itemsize
    if math.prod(item) * size <= READ_BYTES:
        return checksums([], np.ascontiguousarray(d[a:b]), b - a)
    axis = next(k for k in range(len(item)) if math.prod(item[k + 1:]) * size <= READ_BYTES)
    width = max(1, READ_BYTES // (math.prod(item[axis + 1:]) * size))
    sums = np.empty((b - a, 1), "<u8")
    for row in range(a, b):
        digest = xxhash.xxh3_64()
        for outer in np.ndindex(item[:axis]):
            for start in range(0, item[axis], width):
                digest.update(np.ascontiguousarray(d[(row, *outer, slice(start, start + width))]).data)
        sums[row - a] = digest.intdigest()
    return sums


def _linked(group: Any, name: str) -> int | None:
    """The address of the object that a name of a group stands for, without opening it where that can be."""
    import h5py

    links = group.id.links
    if links.exists(name.encode()):
        link = links.get_info(name.encode())
        if link.type == h5py.h5l.TYPE_HARD:
            return int(link.u)
    return h5py.h5o.get_info(group[name].id).addr if name in group else None


class _Groups(dict[str, Any]):
    """The groups of a file by their paths, each looked up once, in the one above it: that takes as long as all the rest."""

    def __init__(self, f: Any):
        self.file = f

    def __missing__(self, path: str) -> Any:
        above, _, name = path.rpartition("/")
        group = self[path] = (self[above] if above else self.file)[name]
        return group


def _views(f: Any, schema: Any, column: Any, groups: _Groups) -> Iterator[str]:
    """Whether the fields that share a dataset are still what other programs see of it under their names."""
    import h5py

    from ensemblekit.store.guarded import literal, text_attribute

    source = f"/{literal(column.path)}".encode()
    unlimited = h5py.h5s.UNLIMITED
    for name, start, stop in schema.parts(column):
        path, field = f"{schema.element(name)}/value", schema.fields[name]
        try:
            d = groups[schema.element(name)]["value"]
        except KeyError:
            yield f"{path} is missing"
            continue
        one = (1,) * len(field.shape)
        how = d.id.get_create_plist()
        virtual = how.get_layout() == h5py.h5d.VIRTUAL and how.get_virtual_count() == 1
        for what, got, want in (
                ("shape", d.shape[1:], field.shape), ("type", d.dtype, column.dtype),
                ("axes", d.maxshape, (None, *field.shape)),
                ("unit", text_attribute(d, "unit", f._look), field.unit),
                ("source", virtual and (how.get_virtual_filename(0), how.get_virtual_dsetname(0).encode()), (".", source)),
                ("place in it", virtual and how.get_virtual_srcspace(0).get_regular_hyperslab(),
                 ((0, start), (1, 1), (unlimited, 1), (1, stop - start))),
                ("selection", virtual and how.get_virtual_vspace(0).get_regular_hyperslab(),
                 ((0, *(0 for _ in one)), (1, *one), (unlimited, *one), (1, *field.shape)))):
            if got != want:
                yield f"{path}: its {what} is {got}, it was written as {want}"


def _places(f: Any, schema: Any, clock: str, sets: list[Any], n: int) -> Iterator[str]:
    """Whether our table of places and the chunk indexes, by which other programs go, say the same of n rows."""
    from ensemblekit.errors import StoreDamagedError
    from ensemblekit.store.places import groups_of, read_table, runs_in, stretches
    from ensemblekit.store.schema import PLACES

    if schema.format < 2 or any(d.id.get_create_plist().get_nfilters() for d in sets):
        return
    name = f"{PLACES}/{clock}"
    at = f[name].id.get_offset() if name in f else None
    if at is None:
        yield f"{name} is missing"
        return
    groups = groups_of(schema, clock)
    runs = runs_in(read_table(f.id.get_vfd_handle(), at), len(groups))
    for group, some in zip(groups, runs, strict=True):
        for k, number in enumerate(group.numbers):
            d, chunk = sets[number], group.columns[k].chunk
            tiles = group.strides[k] * group.chunk // (int(np.prod(chunk)) * d.dtype.itemsize)
            size = group.strides[k] * group.chunk // tiles
            try:
                wanted = np.concatenate([base + np.arange(a // group.chunk * tiles, -(-b // group.chunk) * tiles) * size
                                         for a, b, base in stretches(group, some, k, n)] or [np.zeros(0, int)])
            except StoreDamagedError as error:
                yield f"{name}: {error}"
                return
            seen: list[tuple[tuple[int, ...], int]] = []
            d.id.chunk_iter(lambda info, seen=seen: seen.append((info.chunk_offset, info.byte_offset)))
            there = [place for _, place in sorted(seen)][:len(wanted)]
            if not np.array_equal(there, wanted):
                yield f"{group.columns[k].path}: its rows do not lie where the table of places says"


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


def main() -> None:
    """A line of JSON for every file: ``external|inside FILE SECONDS FILE SECONDS ...``.

    Each is looked at within memory and processor time of its own.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    external = sys.argv.pop(1) == "external"
    for path, seconds in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        used = resource.getrusage(resource.RUSAGE_SELF)
        wanted = {resource.RLIMIT_AS: SPARE_MEMORY + os.stat(path).st_blocks * 512,
                  resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + int(seconds)}
        for what, most in wanted.items():
            _, hard = resource.getrlimit(what)
            resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        print(json.dumps(check_file(path, external)), flush=True)
    os._exit(0)     # not through libhdf5's clean-up, which damaged files can break too


if __name__ == "__main__":
    main()
