"""One file of a store against its checksums and its description: what the child process of ``verify`` runs."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import xxhash

from ensemblekit.errors import MissingExtraError, StoreDamagedError, StoreError, one_line
from ensemblekit.store import guarded
from ensemblekit.store.attributes import small_attribute, text_attribute
from ensemblekit.store.checksums import checksums
from ensemblekit.store.closing import closed_record
from ensemblekit.store.filters import filters_registered
from ensemblekit.store.places import groups_of, read_table, runs_in, stretches
from ensemblekit.store.schema import (
    CLOSED,
    CONSTANTS,
    LARGEST_SCHEMA,
    META,
    PARTICLES,
    PLACES,
    SCHEMA,
    SCHEMA_SUM,
    Column,
    Schema,
)
from ensemblekit.store.verify import empty_answer

READ_BYTES = 32 << 20
SPARE_MEMORY = 6 << 30
LEAST_MEMORY = 1 << 30      # with less, a lack of memory says nothing about the file


def check_file(path: str, external: bool = False) -> dict[str, Any]:
    """What is wrong with one file, its snapshots counted from 0; runs in the child."""
    filters_registered()
    answer = empty_answer()
    problems: list[str] = answer["problems"]
    schema = None
    try:
        look = guarded.Look(path, external)
        with guarded.File(path, look, locking=False) as f:
            if "ensemblekit" not in f and "ensemblekit" not in f.attrs:
                answer["unchecked"].append("another program's file: it has no checksums")
                return answer
            schema = _description(f, problems)
            if schema is None:
                return answer
            problems += _head(f, schema)
            problems += _constants(f, schema)
            record = f[CLOSED][...]
            counts = [_check_clock(f, schema, clock, names, record, answer) for clock, names in schema.clocks.items()]
            answer.update(run=schema.run, segment=schema.segment, starts=dict(schema.starts or {}),
                          counts=dict(zip(schema.clocks, counts, strict=True)))
            if record.any():
                answer["files"] = _check_record(record, schema, counts, problems)
    except MemoryError as error:
        if schema is not None or _memory() < LEAST_MEMORY:      # else a size in its metadata asks for it
            return empty_answer(unchecked=f"there is too little memory to check it: {error}")
        problems.append(f"libhdf5 cannot read it: {type(error).__name__}: {error}")
    except MissingExtraError as error:
        return empty_answer(unchecked=one_line(error).removeprefix(f"{path}: "))
    except StoreError as error:
        problems.append(one_line(error).removeprefix(f"{path}: "))
    except Exception as error:
        problems.append(f"libhdf5 cannot read it: {type(error).__name__}: {one_line(error)}")
    return answer


def _description(f: guarded.File, problems: list[str]) -> Schema | None:
    """The schema, compared with its checksum; None, and a problem more, where it is not what was written."""
    if SCHEMA not in f or SCHEMA_SUM not in f or CLOSED not in f:
        problems.append("its description is missing")
    elif f[SCHEMA].dtype != np.uint8 or math.prod(f[SCHEMA].shape) > LARGEST_SCHEMA:
        problems.append(f"its description is {f[SCHEMA].dtype} of shape {f[SCHEMA].shape}")
    else:
        text = f[SCHEMA][...].tobytes()
        if int(f[SCHEMA_SUM][()]) == xxhash.xxh3_64_intdigest(text):
            return Schema.from_json(text)
        problems.append("the description of the store does not match its checksum")
    return None


def _check_record(record: np.ndarray, schema: Schema, counts: list[int], problems: list[str]) -> int:
    """The record of the last clean close against what is there; returns the files that the store had at least."""
    numbers = [int(x) for x in record[:-1]]
    files = None if schema.format == 1 else numbers.pop()
    if len(numbers) != len(counts) or not np.array_equal(record, closed_record(numbers, files)):
        problems.append("the record of the last clean close is damaged")
    elif numbers != counts:
        problems.append(f"{counts} snapshots are there, {numbers} were at the last clean close")
    return 0 if schema.sealed else files or 0


def _memory() -> int:
    """Bytes this process may map in all."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _constants(f: guarded.File, schema: Schema) -> Iterator[str]:
    """The arrays that do not change with time; they stand in the first file."""
    for name, digest in (schema.constants or {}).items() if schema.segment == 0 else ():
        if f"{CONSTANTS}/{name}" not in f:
            yield f"the constant {name!r} is missing"
        elif xxhash.xxh3_64_intdigest(f[f"{CONSTANTS}/{name}"][...].tobytes()) != digest:
            yield f"the constant {name!r} is not what was written"


def _head(f: guarded.File, schema: Schema) -> Iterator[str]:
    """What other programs go by, beside the datasets."""
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


def _check_clock(f: guarded.File, schema: Schema, clock: str, names: list[str], record: np.ndarray,
                 answer: dict[str, Any]) -> int:
    """Everything of one clock: its datasets, its links, its extents, its rows. Returns the snapshots that were compared."""
    problems: list[str] = answer["problems"]
    capacity = (schema.capacity or {})[clock]
    columns = schema.columns(clock, max(1, capacity))
    datasets = _datasets(f, columns, problems)
    if len(datasets) < len(columns):
        return 0
    groups = _Groups(f)
    for column in columns[:-4]:
        if len(column.fields) > 1:
            problems += _views(f, schema, column, groups)
    if problems:
        return 0
    problems += _links(schema, names, columns, datasets, groups)
    n = _committed(clock, capacity, datasets, closed=bool(record.any()), problems=problems)
    if n is None:
        return 0
    for d in datasets:
        f._look.check_size(d, guarded.DENSEST_ROWS)
    f._look.asked = True
    problems += _places(f, schema, clock, datasets, n)
    answer["damaged"] += _damaged_rows(schema, clock, columns, datasets, n)
    answer["snapshots"] += n
    return n


def _datasets(f: guarded.File, columns: Sequence[Column], problems: list[str]) -> list[guarded.Values]:
    """The datasets of a clock's columns, each against its description; those up to the first that is missing."""
    datasets: list[guarded.Values] = []
    for column in columns:
        if column.path not in f:
            problems.append(f"{column.path} is missing")
            break
        d = f[column.path]
        datasets.append(d)
        for what, got, want in (("shape", d.shape[1:], column.shape), ("type", d.dtype, column.dtype),
                                ("unit", text_attribute(d, "unit", f._look), column.unit), ("chunks", d.chunks, column.chunk),
                                ("axes", d.maxshape, (None, *column.shape))):
            if got != want:
                problems.append(f"{column.path}: its {what} is {got}, it was written as {want}")
    return datasets


def _links(schema: Schema, names: list[str], columns: Sequence[Column], datasets: Sequence[guarded.Values],
           groups: _Groups) -> Iterator[str]:
    """Whether every element of a clock still has that clock's step and time."""
    ticks = [h5py.h5o.get_info(d.id).addr for d in datasets[-4:-2]]
    for element in [*(schema.element(name) for name in names), columns[-2].path.rpartition("/")[0]]:
        group = groups[element]
        for child, want in zip(("step", "time"), ticks, strict=True):
            if _linked(group, child) != want:
                yield f"{element}/{child} is not the {child} of its clock any more"


def _committed(clock: str, capacity: int, datasets: Sequence[guarded.Values], closed: bool, problems: list[str]) -> int | None:
    """The snapshots that all datasets of a clock hold; None where the extents are damaged."""
    n = datasets[0].shape[0]
    others = {d.shape[0] for d in datasets[1:]}
    if n > capacity or any(rows > capacity for rows in others):
        problems.append(f"clock {clock!r}: {n} snapshots, with room for {capacity}: the extents are damaged")
        return None
    if min(others) < n or (closed and max(others) > n):     # while it is written the others may be ahead
        problems.append(f"clock {clock!r}: {n} snapshots, but its other datasets hold {sorted(others)}")
        n = min(n, *others)
    return n


def _damaged_rows(schema: Schema, clock: str, columns: Sequence[Column], datasets: Sequence[guarded.Values],
                  n: int) -> Iterator[tuple[str, tuple[str, ...], list[int]]]:
    """(clock, fields, rows) wherever a checksum of the first n rows is not the one that was written."""
    fields = len(columns) - 4
    step = max(1, READ_BYTES // sum(max(1, column.nbytes) for column in columns))
    for start in range(0, n, step):
        stop = min(n, start + step)
        meta = np.empty(stop - start, META)
        for key, d in zip(("step", "time", "weight"), datasets[fields:], strict=False):
            meta[key] = d[start:stop]
        sums = [*(_checksums(d, start, stop) for d in datasets[:fields]), checksums([], meta, stop - start)]
        wrong = np.concatenate(sums, axis=1) != datasets[-1][start:stop]
        for k in np.flatnonzero(wrong.any(axis=0)).tolist():
            names = columns[k].fields if k < fields else \
                ("step, time, weight" if len(schema.clocks) == 1 else f"step, time, weight of {clock!r}",)
            yield clock, names, (start + np.flatnonzero(wrong[:, k])).tolist()


def _checksums(d: guarded.Values, a: int, b: int) -> np.ndarray:
    """(b - a, 1) uint64: the checksums of rows of a field; a row that is large is read part by part."""
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


def _linked(group: guarded.Group, name: str) -> int | None:
    """The address of the object that a name of a group stands for, without opening it where that can be."""
    links = group.id.links
    if links.exists(name.encode()):
        link = links.get_info(name.encode())
        if link.type == h5py.h5l.TYPE_HARD:
            return int(link.u)
    return h5py.h5o.get_info(group[name].id).addr if name in group else None


class _Groups(dict[str, guarded.Group]):
    """The groups of a file by their paths, each looked up once, in the one above it: that takes as long as all the rest."""

    def __init__(self, f: guarded.File):
        self.file = f

    def __missing__(self, path: str) -> guarded.Group:
        above, _, name = path.rpartition("/")
        group = self[path] = (self[above] if above else self.file)[name]
        return group


def _views(f: guarded.File, schema: Schema, column: Column, groups: _Groups) -> Iterator[str]:
    """Whether the fields that share a dataset are still what other programs see of it under their names."""

    source = f"/{guarded.literal(column.path)}".encode()
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


def _places(f: guarded.File, schema: Schema, clock: str, datasets: Sequence[guarded.Values], n: int) -> Iterator[str]:
    """Whether our table of places and the chunk indexes, by which other programs go, say the same of n rows."""
    if schema.format < 2 or any(d.id.get_create_plist().get_nfilters() for d in datasets):
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
            d, chunk = datasets[number], group.columns[k].chunk
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


def main() -> None:
    """A line of JSON for every file: ``external|inside FILE SECONDS FILE SECONDS ...``.

    Each is looked at within memory and processor time of its own.
    """
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
