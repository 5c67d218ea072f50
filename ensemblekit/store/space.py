"""Room in a file for the rows of its clocks: given when they need it, at the end of the file, and cut off again at close.

Nothing of this is seen before the commit, as rows beyond the extent are not there for any reader.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from ensemblekit.errors import StoreDamagedError
from ensemblekit.store.blocks import write_back
from ensemblekit.store.chunks import END_OF_FILE_AT, ChunkTree
from ensemblekit.store.hdf5 import write_all
from ensemblekit.store.layout import Layout
from ensemblekit.store.places import ENTRY, NODES, Group, Run, aligned, begin_of, groups_of, read_table, runs_in

SHARE = 16              # a group grows by this part of what it has,
SMALL_SHARE = 4         # or this one where its room is taken from the disk at once
LEAST_BYTES = 512 << 10
NODES_SHARE = 4
NODES_BYTES = 16 << 10
AHEAD = 1 << 20
"""Bytes by which the file may be longer than HDF5's end of it while it is written, at least.

So that end moves within a file that has the length already: who opens it at that instant, and has looked at the length
before, is not told that the file is cut off.
"""
HOLES = 256 << 10
"""Bytes of holes that a closed file may have."""


class FixedGroup(Group):
    """Columns whose places were fixed when the file was made (format 1)."""

    def __init__(self, layout: Layout, clock: str, numbers: list[int]):
        super().__init__(layout.schema.columns(clock, (layout.schema.capacity or {})[clock]), numbers)
        datasets = [layout.datasets[c.path] for c in self.columns]
        self.strides = [d.stride for d in datasets]
        self.offsets = [d.offset or 0 for d in datasets]

    def starts(self, run: Run) -> list[int]:
        return self.offsets


class Clock:
    """The room of one clock: its groups, the runs of each, and the table that lists them in the file."""

    def __init__(self, groups: list[Group], runs: list[list[Run]], table: np.ndarray, at: int, capacity: int):
        self.groups, self.runs, self.table, self.at, self.capacity = groups, runs, table, at, capacity
        self.set_have()
        self.slots: dict[tuple[int, int], int] = {}
        """Entry (by its kind and what it begins with) -> its slot in the table."""
        self.free: list[int] = []
        self._index()

    def _index(self) -> None:
        listed = [(slot, *row) for slot, row in enumerate(self.table.tolist())][1:]
        self.slots = {(number, address if number == NODES else first): slot
                      for slot, number, first, _, _, address in listed if number}
        self.free = [slot for slot, number, *_ in listed if not number][::-1]
        self._set_full()

    def _set_full(self) -> None:
        self.full = len(self.table) > 1 and len(self.free) < len(self.groups) + 1
        """Whether the table takes no further runs (and nodes)."""

    def set_have(self) -> None:
        self.ends = [some[-1].first + some[-1].rows if some else 0 for some in self.runs]
        self._last: dict[int, tuple[int, int, list[tuple[int, int, int]]]] = {}
        self.have = min(self.ends)
        """Rows that have room in every group."""

    def run_at(self, group: int, row: int) -> Run:
        """The run that holds a row."""
        return next(run for run in reversed(self.runs[group]) if run.first <= row)

    def place_of(self, group: int, row: int) -> tuple[int, int, list[tuple[int, int, int]]]:
        """Of the run that holds a row: its first row, the one behind its last, and of each column (number, start, stride)."""
        last = self._last.get(group)
        if last is None or not last[0] <= row < last[1]:
            run, layout = self.run_at(group, row), self.groups[group]
            columns = list(zip(layout.numbers, layout.starts(run), layout.strides, strict=True))
            last = self._last[group] = run.first, run.first + run.rows, columns
        return last

    def put(self, fd: int, number: int, run: Run) -> None:
        """Write one entry of the table."""
        key = (number, run.address if number == NODES else run.first)
        if key not in self.slots:
            self.slots[key] = self.free.pop()
            self._set_full()
        self._set(fd, self.slots[key], (number, *run))

    def write(self, fd: int, reached: int, floor: int, pools: list[list[int]]) -> None:
        """Write whatever differs from the table in the file."""
        entries = {(g + 1, run.first): run for g, some in enumerate(self.runs) for run in some}
        entries |= {(NODES, address): Run(used, size, 0, address) for address, size, used in pools}
        self._set(fd, 0, (0, 0, reached, 0, floor))
        for key, slot in list(self.slots.items()):
            if key not in entries:
                self._set(fd, slot, (0, 0, 0, 0, 0))
        self._index()
        for (number, _), run in entries.items():
            self.put(fd, number, run)

    def _set(self, fd: int, slot: int, values: tuple[int, ...]) -> None:
        if self.table[slot].tolist() != values:
            self.table[slot] = values
            write_all(fd, self.table[slot].tobytes(), self.at + slot * ENTRY.itemsize)


class Space:
    """The room in one file that is being written.

    Arguments:
        fd: of the file, open for reading and writing.
        layout: of the file.
        counts: clock -> committed rows. Room for rows that were never committed is given again.
        clean: whether the file was closed after the last change to it.
        durable: have what must come first on the disk first.
    """

    def __init__(self, fd: int, layout: Layout, counts: dict[str, int], clean: bool, durable: bool):
        self.fd, self.path, self.durable = fd, layout.path, durable
        self.fixed = layout.schema.format == 1
        self.size = os.fstat(fd).st_size
        self.clocks: dict[str, Clock] = {}
        self.trees: dict[str, ChunkTree] = {}
        self.reached: dict[str, int] = {}
        """The most rows that were ever committed: their room is never cut off, as a reader may have it mapped."""
        self.pools: list[list[int]] = []
        """Room for nodes of the chunk indexes: address, bytes, bytes taken."""
        self.floor = 0
        """The byte behind what is neither rows nor nodes."""
        schema = layout.schema
        for clock in schema.clocks:
            capacity = (schema.capacity or {})[clock]
            if self.fixed:
                groups: list[Group] = [FixedGroup(layout, clock, numbers) for numbers in schema.groups(clock) if numbers]
                self.clocks[clock] = Clock(groups, [[Run(0, capacity, capacity, 0)] for _ in groups], np.zeros(1, ENTRY), 0,
                                           capacity)
                self.reached[clock] = 0
                continue
            groups = groups_of(schema, clock)
            table = read_table(fd, layout.places[clock]).copy()
            reached = self.reached[clock] = max(int(table["rows"][0]), counts[clock])
            runs = [[run for run in some if run.first < reached] for some in runs_in(table, len(groups))]
            space = self.clocks[clock] = Clock(groups, runs, table, layout.places[clock], capacity)
            if space.have < reached:
                raise StoreDamagedError(f"{layout.path}: the table of places of clock {clock!r} has room for {space.have} of "
                                        f"{reached} snapshots")
            for group, end in zip(groups, space.ends, strict=True):
                for column in group.columns:
                    root = layout.datasets[column.path].root
                    assert root is not None
                    tree = ChunkTree(root, column.shape, column.chunk, column.dtype.itemsize, capacity)
                    tree.n = end // group.chunk * tree.tiles
                    self.trees[column.path] = tree
            if clock == next(iter(schema.clocks)):
                self.floor = int(table["address"][0])
                pools = table[table["group"] == NODES]
                self.pools = [[int(p["address"]), int(p["rows"]), int(p["first"])] for p in pools]
        if not self.fixed:
            self.eof = struct.unpack("<Q", os.pread(fd, 8, END_OF_FILE_AT))[0]
            if clean:           # another program may have added to the file since
                self.floor = max(self.floor, self.eof if self._end() < self.eof else 0)
            self.end = self._end()

    def _end(self) -> int:
        """The byte behind all that is in use."""
        ends = [group.end(some[-1]) for clock in self.clocks.values()
                for group, runs in zip(clock.groups, clock.runs, strict=True) for some in (runs,) if some]
        return max([self.floor, *ends, *(address + size for address, size, _ in self.pools)])

    # -- growing -------------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Before the first change: what a writer that died had room for, but never committed, is given again."""
        if self.fixed:
            return
        self._cut_trees()
        self._write_tables()

    def grow(self, name: str, stop: int) -> None:
        """Give a clock room for rows below `stop`, and some more. Raises OSError where the disk is full."""
        clock = self.clocks[name]
        each = list(zip(clock.groups, clock.ends, strict=True))
        least = [max(0, -(-(stop - end) // group.chunk) * group.chunk) for group, end in each]
        room = [-(-clock.capacity // group.chunk) * group.chunk - end for group, end in each]
        more = [min(most, max(need, self._share(g, group, end) // group.chunk * group.chunk)) if need else 0
                for g, (group, end, need, most) in enumerate(zip(clock.groups, clock.ends, least, room, strict=True))]
        try:
            self._grow(clock, more)
        except OSError:
            if more == least:
                raise
            self._grow(clock, least)

    def _share(self, g: int, group: Group, end: int) -> int:
        """The rows by which a group of `end` rows grows."""
        return end // SMALL_SHARE if g == 0 else max(LEAST_BYTES // len(self.clocks) // group.row, end // SHARE)

    def _grow(self, clock: Clock, rows: list[int]) -> None:
        """Room for so many more rows of each group."""
        end = self.end
        changed: dict[int, Run] = {}
        fresh: dict[int, Run] = {}
        nodes = sum(tree.nodes_for(tree.n + rows[g] // group.chunk * tree.tiles) * tree.size
                    for g, group in enumerate(clock.groups) if rows[g]
                    for tree in (self.trees[c.path] for c in group.columns))
        for g, group in enumerate(clock.groups):
            grown = group.grown(clock.runs[g][-1], end, rows[g]) if rows[g] and clock.runs[g] else None
            if grown is not None:
                changed[g], end = grown, group.end(grown)
        pools = [list(pool) for pool in self.pools]
        if not pools or pools[-1][2] + nodes > pools[-1][1]:
            total = sum(size for _, size, _ in pools)
            pools.append([aligned(end), max(nodes, NODES_BYTES, total // NODES_SHARE), 0])
            end = pools[-1][0] + pools[-1][1]
        for g, group in enumerate(clock.groups):
            if rows[g] and g not in changed:
                fresh[g] = Run(clock.ends[g], rows[g], rows[g], begin_of(end, rows[g] * group.row))
                end = group.end(fresh[g])
        self._lengthen(end)
        for g, run in (changed | fresh).items():
            if g == 0:          # written through a mapping, where a disk that is full would be a signal
                group, old = clock.groups[g], clock.runs[g][-1] if g in changed else None
                begin = run.address if old is None else group.end(old)
                os.posix_fallocate(self.fd, begin, group.end(run) - begin)
        self._sync()
        self._set_eof(end)
        pool, taken = pools[-1], 0 if len(pools) > len(self.pools) else pools[-1][2]

        def new_node(size: int) -> int:
            at = pool[0] + pool[2]
            pool[2] += size
            return at

        late = []
        for g, run in (changed | fresh).items():
            group = clock.groups[g]
            after = clock.ends[g]
            for column, start, stride in zip(group.columns, group.starts(run), group.strides, strict=True):
                tree = self.trees[column.path]
                first = start + (after - run.first) * stride
                late += tree.add(self.fd, first + np.arange(rows[g] // group.chunk * tree.tiles, dtype=np.uint64) * np.uint64(
                    tree.nbytes), new_node)
            if g in changed:
                clock.runs[g][-1] = run
            else:
                clock.runs[g].append(run)
        self.pools = pools
        self.end = end
        clock.set_have()
        for g, run in (changed | fresh).items():
            clock.put(self.fd, g + 1, run)
        if pool[2] != taken:
            next(iter(self.clocks.values())).put(self.fd, NODES, Run(pool[2], pool[1], 0, pool[0]))
        self._sync()
        for data, at in late:
            os.pwrite(self.fd, data, at)

    def _lengthen(self, end: int) -> None:
        """Make the file long enough, and longer than now needed where that can be."""
        if end <= self.size:
            return
        try:
            os.ftruncate(self.fd, end + max(AHEAD, 2 * (end - self.end)))
        except OSError:
            os.ftruncate(self.fd, end)
        self.size = os.fstat(self.fd).st_size

    def _set_eof(self, end: int) -> None:
        if end != self.eof:
            os.pwrite(self.fd, struct.pack("<Q", end), END_OF_FILE_AT)
            self.eof = end

    def _sync(self) -> None:
        if self.durable:
            os.fdatasync(self.fd)

    def _write_tables(self) -> None:
        for k, (name, clock) in enumerate(self.clocks.items()):
            clock.write(self.fd, self.reached[name], 0 if k else self.floor, [] if k else self.pools)

    def _cut_trees(self) -> None:
        for clock in self.clocks.values():
            for group, end in zip(clock.groups, clock.ends, strict=True):
                for column in group.columns:
                    tree = self.trees[column.path]
                    tree.cut(self.fd, end // group.chunk * tree.tiles)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def write(self, clock: Clock, g: int, arrays: Sequence[np.ndarray], at: int, n: int) -> None:
        """Rows at to at + n of a group, by ordinary writes; `arrays` are those of all columns. Raises OSError."""
        done = 0
        while done < n:
            first, stop, columns = clock.place_of(g, at + done)
            skip = at + done - first
            k = min(n - done, stop - first - skip)
            for number, start, stride in columns:
                data = arrays[number]
                part = data if k == n else data[done:done + k]
                where = start + skip * stride
                if part.nbytes == k * stride:
                    write_all(self.fd, part, where)
                else:       # tiles that do not divide the item leave a gap behind every snapshot
                    for j in range(k):
                        write_all(self.fd, part[j] if n > 1 else part, where + j * stride)
            done += k

    # -- cutting -------------------------------------------------------------------------------------------------------

    def reach(self, name: str, count: int) -> None:
        """Before rows are taken back: their room stays."""
        if not self.fixed and count > self.reached[name]:
            self.reached[name] = count
            self._write_tables()

    def close(self, counts: Mapping[str, int]) -> None:
        """Give back what lies behind the last rows that were ever committed."""
        if self.fixed:
            return
        for name, clock in self.clocks.items():
            reached = self.reached[name] = max(self.reached[name], counts[name])
            for g, group in enumerate(clock.groups):
                kept = [run for run in clock.runs[g] if run.first < reached]
                if kept:
                    last = kept[-1]
                    rows = min(last.rows, -(-(reached - last.first) // group.chunk) * group.chunk)
                    kept[-1] = last._replace(rows=rows)
                clock.runs[g] = kept
            clock.set_have()
        self._cut_trees()
        self._write_tables()
        self.end = self._end()
        if self.eof != self.end:
            self._set_eof(self.end)
            self._sync()
            write_back(self.fd, 0, 4096)
        if self.size != self.end:
            os.ftruncate(self.fd, self.end)
            self.size = self.end
        stat = os.fstat(self.fd)
        if stat.st_size - stat.st_blocks * 512 > HOLES:
            with suppress(OSError):
                self._fill_holes()

    def _fill_holes(self) -> None:
        """Take the disk's room for what lies between: a copy of the file needs it anyway."""
        stop = 0
        while stop < self.size:
            start = os.lseek(self.fd, stop, os.SEEK_HOLE)
            if start >= self.size:
                break
            try:
                stop = os.lseek(self.fd, start, os.SEEK_DATA)
            except OSError:         # ENXIO: nothing but a hole
                stop = self.size
            os.posix_fallocate(self.fd, start, stop - start)
