"""One read of a source, many statistics: the only file that sees source, reducer and engine together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ensemblekit.averaging.missing import Missing, check_missing, omitting
from ensemblekit.averaging.reducer import JoinsInSpace, Reducer, Restart, TakesResult, cuts_of_reducer, fills_slots, is_reducer
from ensemblekit.averaging.run_states import RunStates, States, merge_into
from ensemblekit.engine import Engine, Serial, Threads, stop
from ensemblekit.errors import InputError, ReadOnceError, ReductionError, UnknownFieldError, WorkerLostError
from ensemblekit.intake import unmasked
from ensemblekit.source import Array, Block, Cut, DescribedSource, Field, Piece, ReplicaSet, as_source
from ensemblekit.source_cuts import WHOLE
from ensemblekit.source_protocol import kind_of

Map = Callable[[Block], Any]


@runtime_checkable
class TiledMap(Protocol):
    """A map that takes tiles of items as well as whole ones, where `tiled` says so."""

    tiled: bool


Branch = Reducer | tuple[Any, ...]
Branches = Mapping[str, tuple[Any, ...]]        # name -> (map, field name or None; reducers)
Progress = bool | Callable[[int, int | None], None]

LIMIT = 64 << 20
KEEP = 64


def reduce(source: object, branches: Reducer | Mapping[str, Branch], *, map: Map | None = None,
           fields: Sequence[str] | None = None, engine: Engine | None = None, cut: Cut = "time", limit: int = LIMIT,
           progress: Progress = False, missing: Missing = "raise") -> Any:
    """Statistics of the snapshots of a source, all in one read.

    Arguments:
        source: a stored field, any source, or an array with snapshots along axis 0.
        branches: name -> a reducer of the only field (or of the field of that name), or a tuple ``(map, reducer,
            ...)`` or ``("field", reducer, ...)``. A single reducer instead of a mapping gives a single result. A map
            takes a :class:`~ensemblekit.Block` and returns (n, *out), one row a snapshot; it sees whole items unless
            it has a true attribute ``tiled``.
        map: the map of those branches that name none.
        fields: the fields to read; by default those the branches ask for.
        engine: Threads() by default. Every engine gives the same bits.
        cut: "time", or "space" for reducers that need all snapshots of a part of the item at once (Gram).
        limit: bytes a block or tile may take.
        progress: True for a bar on the terminal, or a function of (snapshots done, snapshots in all or None).
        missing: "raise" gives reducers what is NaN (or masked), which most answer with NaN; "drop" leaves it out: of Moments
            and Histogram number by number, of Covariance, Quantiles, QuantileSketch and Extremes snapshots that are NaN
            throughout; Series and Window keep it in its place. Other reducers are refused.

    Returns:
        name -> result; a tuple where the branch has several reducers; a list over runs where the source has several.

    Raises:
        ReductionError: a map or reducer failed; it names the branch, the run and the snapshots.
        InputError, UnknownFieldError, ReadOnceError: what was asked for cannot be done with this source.
    """
    single = is_reducer(branches)
    named: Mapping[str, Branch] = {"result": branches} if single else branches     # type: ignore[assignment,dict-item]
    source = as_source(source)
    runs: dict[int, States] = {}
    for read in _read(source, named, map, fields, engine or Threads(), cut, limit, True, progress, collapse=True,
                      missing=missing):
        runs[read.run] = read.states[0]
    several = source.lengths is not None and len(source.lengths) > 1
    normal = _normalised(source, named, map)
    count = len(source.lengths) if source.lengths is not None else 1
    results: dict[str, Any] = {}
    for name, (_, _, *reducers) in normal.items():
        per_run = []
        for run in range(count):
            final = runs[run][name] if run in runs else [r.empty() for r in reducers]
            values = tuple(state.take_result() if isinstance(state, TakesResult) else state.result() for state in final)
            per_run.append(values[0] if len(values) == 1 else values)
        results[name] = per_run if several else per_run[0]
    return results["result"] if single else results


def partials(source: object, branches: Mapping[str, Branch], *, map: Map | None = None,
             fields: Sequence[str] | None = None, engine: Engine | None = None, cut: Cut = "time",
             limit: int = LIMIT, keep: int = KEEP, blas: bool = True,
             progress: Progress = False, missing: Missing = "raise") -> list[RunStates]:
    """The states of a single read, not yet merged: a RunStates for each run, with the times and weights of its snapshots.

    At most `keep` states a run (neighbours are merged two by two; one a run when cut in space). Equilibration merges a
    suffix, the jackknife leaves one out, replicas are pooled over runs, a checkpoint saves them: no second read.
    ``blas=False``: maps and reducers call no BLAS, which then needs no holding to one thread.
    Arguments and errors are those of :func:`reduce`. A run without snapshots has no RunStates.
    """
    source = as_source(source)
    runs = _read(source, branches, map, fields, engine or Threads(), cut, limit, False, progress, keep=keep, blas=blas,
                 missing=missing)
    return sorted(runs, key=lambda run: run.run)


def merged(run: RunStates, start: int = 0) -> States:
    """The states of a run from its snapshot `start` on, merged in time order; those of the run are left as they are."""
    return run.merged(start)


def _read(source: DescribedSource, branches: Mapping[str, Branch], map: Map | None, fields: Sequence[str] | None,
          engine: Engine, cut: Cut, limit: int, tiled: bool, progress: Progress, *, collapse: bool = False,
          keep: int = KEEP, blas: bool = True, missing: Missing = "raise") -> Iterator[RunStates]:
    """One read; yields each run when it has ended."""
    if cut not in ("time", "space"):
        raise InputError(f'cut is "time" or "space"; got {cut!r}')
    if limit < 1:
        raise InputError(f"limit is a number of bytes above 0; got {limit!r}")
    normal = _normalised(source, branches, map)
    if missing != "raise":
        check_missing(missing)
    if missing == "drop":
        normal = {name: (map, field, *(omitting(reducer, name) for reducer in reducers))
                  for name, (map, field, *reducers) in normal.items()}
    for name, (_, _, *reducers) in normal.items():
        for reducer in reducers:
            able = cuts_of_reducer(reducer)
            if cut not in able:
                (other,) = able
                raise InputError(f"{type(reducer).__name__} (branch {name!r}) cannot be cut in {cut}; pass cut={other!r}")
    if cut == "space" and source.access != "tiles":
        raise ReadOnceError(f"{kind_of(source)} cannot be read in slabs of space; ingest it into a store first")
    names = list(fields) if fields is not None else _needed(source, normal)
    can_tile = len(names) == 1 and source.access == "tiles" and all(
        "space" in cuts_of_reducer(r) for _, _, *reducers in normal.values() for r in reducers) and all(
        m is None or (isinstance(m, TiledMap) and m.tiled) for m, *_ in normal.values())
    one = source.fields[names[0]] if len(names) == 1 and names[0] in source.fields else None
    big = one is not None and one.nbytes > limit
    pieces = source.pieces(names, cut, can_tile and (tiled or big or cut == "space"), limit)
    meter = _meter(progress, source)
    lengths = source.lengths
    run, rows = -1, _Rows(collapse, keep, cut == "space")
    if cut == "space" and one is not None and source.lengths is not None and len(source.lengths) == 1 and (
            isinstance(engine, Serial | Threads)):
        normal = {name: (map, field, *(r.preallocate(one) if map is None and fills_slots(r) else r
                                       for r in reducers))
                  for name, (map, field, *reducers) in normal.items()}
    values = _mapped(engine, _prefetched(pieces), _Work(normal, not collapse), blas)
    try:
        for part in values:
            if part.run != run:
                if run >= 0:
                    yield _run_of(run, rows, one, source)
                run, rows = part.run, _Rows(collapse, keep, cut == "space", None if lengths is None else lengths[part.run])
            rows.add(part)
            meter(part.stop - part.start, part.tile, one.size if one else 0)
    finally:
        stop(values)
        meter.close()
    if run >= 0:
        yield _run_of(run, rows, one, source)


def _run_of(run: int, rows: _Rows, field: Field | None, source: DescribedSource) -> RunStates:
    ordered = source.runs[run].ordered if isinstance(source, ReplicaSet) else source.ordered
    states = rows.joined(field)
    lengths = [clock.n for clock in rows.clocks]
    return RunStates(run, rows.stop - states[0][0], tuple(start for start, _ in states), tuple(one for _, one in states),
                     _column([clock.times for clock in rows.clocks], lengths),
                     _column([clock.weights for clock in rows.clocks], lengths), source.time_unit, ordered=ordered)


def _column(columns: list[np.ndarray | None], lengths: list[int]) -> np.ndarray | None:
    """The times or weights of a run from those of its blocks, NaN where a block has none; None: none has any."""
    if all(column is None for column in columns):
        return None
    whole = np.concatenate([np.full(n, np.nan) if column is None else column
                            for column, n in zip(columns, lengths, strict=True)])
    return None if np.isnan(whole).all() else whole


class Clock(NamedTuple):
    """Times and weights of the snapshots of a block."""

    times: np.ndarray | None
    weights: np.ndarray | None
    n: int


class _Work(NamedTuple):
    """What is to be done with every piece."""

    branches: Branches
    clock: bool
    """Whether times and weights are kept."""


class _Part(NamedTuple):
    """What was made of a piece."""

    run: int
    start: int
    stop: int
    tile: slice
    states: States
    clocks: list[Clock]


def _mapped(engine: Engine, pieces: Iterator[Piece], work: _Work, blas: bool) -> Iterator[_Part]:
    """The pieces' states from the engine; a worker that was lost is named with the snapshots it had."""
    try:
        values = engine.map(_reduce_piece, pieces, work, blas=blas)
    except TypeError as error:
        if "blas" not in str(error):
            raise
        raise InputError(f"{type(engine).__name__} is no engine: its method is map(func, items, shared, *, blas=True); "
                         f"{error}") from error
    try:
        yield from values
    except WorkerLostError as error:
        raise _lost(error) from error


def _lost(error: WorkerLostError) -> ReductionError:
    """The error of a lost worker in words of snapshots: those it had, or all that were under way."""
    if not error.items:
        return ReductionError(error.cause)
    first, last = error.items[0], error.items[-1]
    if first.run == last.run:
        start, stop = min(p.start for p in error.items), max(p.stop for p in error.items)
        where = f"snapshots {start} to {stop - 1} of run {first.run}"
    else:
        start, stop = first.start, first.stop
        where = f"snapshots from {start} of run {first.run} to {last.stop - 1} of run {last.run}"
    return ReductionError(f"while {where} {'were' if len(error.items) == 1 else 'were among those'} worked on: {error.cause}",
                          first.run, start, stop)


def _prefetched(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, where the disk is told of each when it is handed to a worker: it reads while others are worked on."""
    for k, piece in enumerate(pieces):
        if k == 0 and not isinstance(piece, Piece):
            raise InputError(f"{type(piece).__name__} is no piece of a source: it has run, start, stop, tile, blocks() and "
                             "prefetch(), which may do nothing")
        piece.prefetch()
        yield piece


class _Rows:
    """The states of one run: tiles side by side, and in time either one running state a tile or a list of them."""

    def __init__(self, collapse: bool, keep: int, whole: bool = False, n: int | None = None):
        self.collapse, self.keep, self.cut, self.whole = collapse, keep, False, whole
        self.n = n                                                  # snapshots of the run, where they are known
        self.stack: list[tuple[int, int, States]] = []              # whole: (how many tiles, start, states), left to right
        self.columns: dict[int, list[tuple[int, States]]] = {}      # first number of the tile -> states in time
        self.clocks: list[Clock] = []                               # of the first tile
        self.stop = 0

    def add(self, part: _Part) -> None:
        start, tile, states = part.start, part.tile, part.states
        self.cut = self.cut or tile != WHOLE
        self.stop = max(self.stop, part.stop)
        if not tile.start:
            self.clocks += part.clocks
        if self.whole:      # every piece is one tile over all time: neighbours are joined as they come, in the same pairs
            self.stack.append((1, start, states))
            while len(self.stack) > 1 and self.stack[-1][0] == self.stack[-2][0]:
                self._join_last()
            return
        column = self.columns.setdefault(tile.start or 0, [])
        if self.collapse and column:
            merge_into(column[0][1], states)
            return
        # of a run of known length, those of one of `keep` equal parts of it: never more states than are kept in the end
        if self.n and column and start * self.keep // self.n == column[-1][0] * self.keep // self.n:
            merge_into(column[-1][1], states)
            return
        column.append((start, states))
        if not self.collapse and len(column) >= 2 * self.keep:
            for k in range(0, len(column) - 1, 2):
                merge_into(column[k][1], column[k + 1][1])
            column[:] = column[::2]

    def _join_last(self) -> None:
        more, _, right = self.stack.pop()
        count, start, left = self.stack[-1]
        _join(left, right)
        self.stack[-1] = count + more, start, left

    def joined(self, field: Field | None) -> list[tuple[int, States]]:
        if self.whole:
            while len(self.stack) > 1:
                self._join_last()
            self.columns = {0: [(start, states) for _, start, states in self.stack]}
        columns = [self.columns[k] for k in sorted(self.columns)]
        while len(columns) > 1:         # two by two: joining one by one would copy the growing left side every time
            for left, right in zip(columns[::2], columns[1::2], strict=False):
                for (_, a), (_, b) in zip(left, right, strict=True):
                    _join(a, b)
            columns = columns[::2]
        (first,) = columns
        if self.cut and field is not None:
            for _, states in first:
                for reducers in states.values():
                    for reducer in reducers:
                        if isinstance(reducer, JoinsInSpace):
                            reducer.reshape(field.shape)
        while not self.collapse and len(first) > self.keep:
            for k in range(0, len(first) - 1, 2):
                merge_into(first[k][1], first[k + 1][1])
            first = first[::2]
        return first


def _join(left: States, right: States) -> None:
    """Join the states of the next tile of the item to those of `left`."""
    for name, reducers in left.items():
        for a, b in zip(reducers, right[name], strict=True):
            joining: Any = a        # partials refuses reducers that do not join; to ask each tile again would cost time
            joining.join(b)


def _reduce_piece(work: _Work, piece: Piece) -> _Part:
    """Everything that is done with one piece, wherever it is done."""
    states: dict[str, list[Any]] = {name: [r.slot(piece.tile) if fills_slots(r) else r.empty() for r in reducers]
                                    for name, (_, _, *reducers) in work.branches.items()}
    clocks: list[Clock] = []
    doing = "reading"
    try:
        for block in piece.blocks():
            if work.clock and not piece.tile.start:
                clocks.append(Clock(_copy(block.times), _copy(block.weights), len(block)))
            for name, (map, field, *_) in work.branches.items():
                doing = f"branch {name!r}"
                if map is None:
                    values = block.fields[field]
                else:
                    values = unmasked(map(block), "what the map returned")
                    if len(values) != len(block):
                        raise InputError(f"the map returned {len(values)} rows for {len(block)} snapshots; "
                                         "it must return one row a snapshot, shape (n, *out)")
                for reducer in states[name]:
                    reducer.update(values, block.start, block.weights)
            doing = "reading"
    except Restart:
        raise
    except Exception as error:
        where = f"snapshots {piece.start} to {piece.stop - 1} of run {piece.run}"
        raise ReductionError(f"{doing}, {where}: {type(error).__name__}: {error}", piece.run, piece.start,
                             piece.stop) from error
    return _Part(piece.run, piece.start, piece.stop, piece.tile, states, clocks)


def _copy(x: Array | None) -> np.ndarray | None:
    """As float64, for blocks give their memory back."""
    return None if x is None else np.array(x, dtype=np.float64)


def _normalised(source: DescribedSource, branches: Mapping[str, Branch], default: Map | None) -> dict[str, tuple]:
    """name -> (map or None, field or None, *reducers), with every doubt about it raised as an error."""
    if not isinstance(branches, Mapping) or not branches:
        raise InputError(f"branches is a reducer or a mapping of name to reducer with at least one; got {branches!r}")
    fields = source.fields
    elsewhere = source.all_fields       # of a store: those of its other clocks too
    normal: dict[str, tuple] = {}
    for name, branch in branches.items():
        head, *reducers = branch if isinstance(branch, tuple) else (default, branch)
        if is_reducer(head):
            head, reducers = default, [head, *reducers]
        for reducer in reducers:
            if isinstance(reducer, type) or not is_reducer(reducer) or not cuts_of_reducer(reducer):
                raise InputError(f"branch {name!r}: {reducer!r} is not a reducer. Pass an instance, for example "
                                 "ek.Moments(), or a tuple (map, reducer, ...)")
        if not reducers:
            raise InputError(f"branch {name!r} has no reducer; pass (map, reducer, ...)")
        if callable(head):
            normal[name] = (head, None, *reducers)
            continue
        field = head
        if field is None:
            if name in fields:
                field = name
            elif name in elsewhere:     # not the only field of this clock instead
                raise InputError(f"branch {name!r} has the name of a field on another clock than {sorted(fields)}; reduce it "
                                 f"by itself, store[{name!r}], or give the branch another name")
            elif len(fields) == 1:
                (field,) = fields
            else:
                raise InputError(f"branch {name!r} does not say which field it reduces; the source has "
                                 f"{sorted(fields)}. Write (\"field\", reducer) or (map, reducer)")
        if field not in fields:
            raise UnknownFieldError(field, fields)
        normal[name] = (None, field, *reducers)
    return normal


def _needed(source: DescribedSource, branches: Mapping[str, tuple]) -> list[str]:
    """The fields to read: those named, and all where a map may look at any."""
    if any(map is not None for map, *_ in branches.values()):
        return list(source.fields)
    wanted = {field for _, field, *_ in branches.values()}
    return [name for name in source.fields if name in wanted]


class _meter:
    """Counts snapshots done for a bar, a function, or nobody."""

    def __init__(self, progress: Progress, source: DescribedSource):
        self.total = sum(source.lengths) if source.lengths is not None else None
        self.done, self.tell, self.bar = 0.0, None, None
        if callable(progress):
            self.tell = progress
        elif progress:
            from tqdm.auto import tqdm

            self.bar = tqdm(total=self.total, unit=" snapshots", unit_scale=True)

    def __call__(self, n: int, tile: slice, size: int) -> None:
        share = 1.0 if tile == WHOLE or not size else (tile.stop - tile.start) / size
        before, self.done = round(self.done), self.done + n * share
        if self.bar is not None:
            self.bar.update(round(self.done) - before)
        elif self.tell is not None:
            self.tell(round(self.done), self.total)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


__all__ = ["Branch", "Map", "RunStates", "States", "merged", "partials", "reduce"]
