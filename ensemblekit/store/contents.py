"""The contents of a store: its files as they were last looked at, and the committed rows of each clock in them."""

from __future__ import annotations

import os
import time as clock_time
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from ensemblekit.errors import StoreDamagedError, StoreError
from ensemblekit.source import Field
from ensemblekit.store.blocks import check_identity
from ensemblekit.store.foreign import Foreign
from ensemblekit.store.layout import Layout, read_layout
from ensemblekit.store.names import missing_files, segment_path, segments_of
from ensemblekit.store.schema import Schema
from ensemblekit.store.segments import Segment, files_of
from ensemblekit.store.stored import Part, Rows, Table, constants_of, foreign_tables, rows_in, stretches_of

LOOKS = 10      # times a reader looks again where files change under it


class Contents:
    """The files of one store by what is committed in them; of another program's file, by what it says of itself."""

    def __init__(self, path: str, schema: Schema | None, foreign: Mapping[str, Foreign] | None = None):
        self.path, self.schema, self.foreign = path, schema, foreign or {}
        self.layouts: list[Layout] = []
        self.incomplete = False                 # files may be missing: what is there is read
        self.segment: Segment | None = None     # the file that this process appends to in place: it knows its rows
        self._tables: dict[str, Table] = {} if foreign is None else foreign_tables(path, foreign)
        self._seen: dict[str, tuple[int, int]] = {}     # clock -> files, and rows in the last, that its table shows

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of every clock."""
        return self.schema.fields if self.schema else {name: f.field for name, f in self.foreign.items()}

    @cached_property
    def clocks(self) -> dict[str, list[str]]:
        """Clock -> its fields."""
        clocks: dict[str, list[str]] = {}
        for name, field in self.fields.items():
            clocks.setdefault(field.clock, []).append(name)
        return self.schema.clocks if self.schema else clocks

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """The arrays that do not change with time, read-only."""
        return constants_of(self.layouts[0]) if self.layouts else {}

    @property
    def first_clock(self) -> str:
        """The clock that the store is a source of."""
        return next(iter(self.clocks))

    def table(self, clock: str) -> Table:
        """What is committed of a clock, as of the last look."""
        return self._tables[clock]

    def table_of_writer(self, clock: str) -> Table:
        """What is committed of a clock now: a writer sees all it wrote, but not in the middle of beginning another file."""
        if self.segment is not None and self.segment.layout.path == self.layouts[-1].path:
            now = (len(self.layouts), self.segment.counts[clock])
            if self._seen.get(clock) != now:
                self._tables[clock] = self._table(clock, [self.rows(layout)[clock] for layout in self.layouts])
                self._seen[clock] = now
        return self._tables[clock]

    def changed(self) -> None:
        """Tables are to be made anew: rows or files went."""
        self._seen.clear()

    def rows(self, layout: Layout) -> dict[str, Rows]:
        """What is committed in a file, and where: by the extent of each clock's first field, and its table of places."""
        if self.segment is not None and self.segment.layout is layout:
            return {c: Rows(n, self.segment.space.clocks[c].runs) for c, n in self.segment.counts.items()}
        with open(layout.path, "rb") as raw:
            check_identity(layout.path, layout.identity, raw.fileno())
            rows = {clock: rows_in(raw.fileno(), layout, clock) for clock in layout.schema.clocks}
        for clock, (n, _) in rows.items():
            room = (layout.schema.capacity or {})[clock]
            if n > room:
                raise StoreDamagedError(f"{layout.path}: {n} snapshots of clock {clock!r}, where there is room for {room}: the "
                                        "extents are damaged. `ensemblekit verify` says more")
        return rows

    def _table(self, clock: str, rows: Sequence[Rows]) -> Table:
        assert self.schema is not None
        parts = []
        for layout, (n, runs) in zip(self.layouts, rows, strict=True):
            if n:
                parts.append(Part(layout.path, layout.identity, n, stretches_of(layout, clock, n, runs)))
        fields = {name: self.schema.fields[name] for name in self.schema.clocks[clock]}
        counted = (self.schema.provenance or {}).get("timed") is False      # the files it was made of knew no times
        return Table(fields, tuple(parts), "" if counted else self.schema.time_unit, timed=not counted,
                     home=self.layouts[0] if self.layouts else None)

    def refresh(self) -> None:
        """Look again. Raises StoreError where files are missing or were replaced by others."""
        for again in range(LOOKS, -1, -1):
            try:
                layouts = self._look()
                rows = [self.rows(layout) for layout in layouts]
                break
            except (FileNotFoundError, StoreError):     # a file was replaced or removed while we looked
                if not again:
                    raise
                clock_time.sleep(0.01)
        self.layouts = layouts
        self._seen.clear()
        self._tables = {c: self._table(c, [one[c] for one in rows]) for c in self.clocks}

    def _look(self) -> list[Layout]:
        """The layouts of the files there are now, those that have not changed as they are known."""
        assert self.schema is not None
        known = {layout.path: layout for layout in self.layouts}
        layouts: list[Layout] = []
        listed = segments_of(self.path)
        for k, path in enumerate(listed):
            layout = known.get(path)
            if layout is None or not layout.identity.is_of(path):
                layout = read_layout(path)
            if layout is None or layout.schema.run != self.schema.run or layout.schema.segment != k:
                if k == 0:
                    raise StoreError(f"{path} was replaced by another file")
                break       # a leftover of another run: it does not continue this one
            layouts.append(layout)
            if layout.schema.sealed:
                break       # complete: further files are leftovers of a seal that was killed
        if not layouts[-1].schema.sealed and not self.incomplete:
            missing = missing_files(self.path, len(layouts), max(map(files_of, layouts)))
            begun = len(listed) == len(layouts) and os.path.lexists(segment_path(self.path, len(layouts)))
            if missing and not begun:       # else a writer has added it since they were listed
                raise StoreError(f"{missing}. Put it back from where the store was copied or moved; "
                                 "ek.open(path, incomplete=True) reads the snapshots that are there")
        return layouts

    def check(self) -> None:
        """Raise StoreError where a file that is being written was removed, renamed or replaced."""
        for layout in self.layouts:
            if not os.path.exists(layout.path) or not layout.identity.is_of(layout.path):
                what = "was replaced by another file" if os.path.exists(layout.path) else "was removed or renamed"
                raise StoreError(f"{layout.path} {what} while this store was being written: the snapshots in it are no longer "
                                 "there under this name. Put it back, or write them again to a new store")
