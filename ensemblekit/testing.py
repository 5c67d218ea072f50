"""Conformance: what every source, reducer and engine is held to, as functions that raise AssertionError. For your own too."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ensemblekit.averaging.reducer import JoinsInSpace, MergesInTime, Reducer, cuts_of_reducer
from ensemblekit.engine import Engine
from ensemblekit.source import Array, Piece, SnapshotSource, described, is_torch
from ensemblekit.source_cuts import WHOLE

TOLERANCE = 1e-9
"""Relative, between two ways to cut the same data."""


def check_source(make: Callable[[], SnapshotSource]) -> None:
    """A source keeps its word: what it says of itself, of its pieces and of its windows is what its blocks hold.

    make: the same source anew, at least 4 snapshots a run; called once for every look at it.

    Pieces cover each run once, in order, and pickle; every block has the shapes and types of the fields; windows are those of
    a slice; times and weights, where the source has them, are those of its blocks.
    """
    source = make()
    assert isinstance(source, SnapshotSource), f"{type(source).__name__} lacks a member of SnapshotSource"
    assert source.access in ("once", "rows", "tiles"), f"access is once, rows or tiles; got {source.access!r}"
    names = list(source.fields)
    assert names, "a source has at least one field"
    runs = _values(source, names)
    if source.lengths is not None:
        assert tuple(len(run[0]) for run in runs) == source.lengths, "lengths are the snapshots of each run"
    for run in runs:
        for k, name in enumerate(names):
            field = source.fields[name]
            assert run[k].dtype == field.dtype, f"field {name!r} is {field.dtype}; its blocks hold {run[k].dtype}"
    _check_columns(source, runs, len(names))
    for name in names:
        alone = _values(make(), [name])
        for run, want in zip(alone, runs, strict=True):
            _equal(run[0], want[names.index(name)], f"field {name!r} read alone")
    if source.access == "once":
        return
    again = _values(source, names)
    for run, want in zip(again, runs, strict=True):
        _equal(run[0], want[0], "a second read")
    _check_windows(source, names, runs)
    if source.access == "tiles":
        for name in names:
            _check_tiles(source, name, runs, names.index(name))


def _values(source: SnapshotSource, names: Sequence[str], limit: int = 1 << 12) -> list[list[Any]]:
    """Run by run: the values of each field, then weights, then times (or None)."""
    count = len(source.lengths) if source.lengths is not None else 1
    columns: list[list[list[Any]]] = [[[] for _ in range(len(names) + 2)] for _ in range(count)]
    after = [0] * count
    for piece in source.pieces(names, "time", False, limit):
        assert isinstance(piece, Piece), f"{type(piece).__name__} lacks a member of Piece"
        assert piece.tile == WHOLE, f"items that were not to be cut have the tile {WHOLE}; got {piece.tile}"
        assert piece.start == after[piece.run], f"run {piece.run}: a piece starts at {piece.start}, not at {after[piece.run]}"
        piece.prefetch()
        at = piece.start
        for block in pickle.loads(pickle.dumps(piece)).blocks():
            assert block.start == at, f"a block starts at snapshot {block.start}, not at {at}"
            assert list(block.fields) == list(names) or set(block.fields) == set(names), (
                f"asked for {list(names)}; a block has {list(block.fields)}")
            for k, name in enumerate(names):
                values, want = np.array(block.fields[name]), (len(block), *source.fields[name].shape)
                assert values.shape == want, f"field {name!r} of a block has shape {values.shape}, not {want}"
                columns[piece.run][k].append(values)
            for k, column in enumerate((block.weights, block.times), len(names)):
                assert column is None or np.shape(column) == (len(block),), "weights and times are one number a snapshot"
                columns[piece.run][k].append(None if column is None else np.array(column))
            at += len(block)
        assert at == piece.stop, f"the blocks of snapshots {piece.start} to {piece.stop - 1} end at {at - 1}"
        after[piece.run] = piece.stop
    return [[_stuck(parts, source, names, k) for k, parts in enumerate(run)] for run in columns]


def _stuck(parts: list[Any], source: SnapshotSource, names: Sequence[str], k: int) -> Any:
    if not parts:
        return np.empty((0, *source.fields[names[k]].shape), source.fields[names[k]].dtype) if k < len(names) else None
    return None if any(part is None for part in parts) else np.concatenate(parts)


def _check_columns(source: SnapshotSource, runs: list[list[Any]], fields: int) -> None:
    known = described(source)
    for k, (word, values) in enumerate((("weights", known.weights), ("times", known.times)), fields):
        if values is not None and len(runs) == 1:
            assert runs[0][k] is not None, f"the source has {word}, its blocks have none"
            _equal(np.asarray(values, float), np.asarray(runs[0][k], float), f"{word} of the blocks")


def _check_windows(source: SnapshotSource, names: list[str], runs: list[list[Any]]) -> None:
    for start, stop, step in ((0, None, 1), (1, None, 1), (0, 3, 1), (0, None, 2), (1, -1, 2), (-3, None, 1), (2, 2, 1),
                              (0, 10**9, 3)):
        window = source.window(start, stop, step)
        rows = slice(start, stop, step)
        for run, want in zip(_values(window, names), runs, strict=True):
            for k, values in enumerate(run):
                if values is not None and want[k] is not None:
                    _equal(values, want[k][rows], f"window({start}, {stop}, {step})")
        inner = _values(window.window(1), names)
        for run, want in zip(inner, runs, strict=True):
            _equal(run[0], want[0][rows][1:], f"window({start}, {stop}, {step}).window(1)")


def _check_tiles(source: SnapshotSource, name: str, runs: list[list[Any]], k: int) -> None:
    size = source.fields[name].size
    for run in range(len(runs)):
        want = runs[run][k].reshape(len(runs[run][k]), -1)
        at = 0
        limit = max(1, len(want)) * source.fields[name].dtype.itemsize * max(1, size // 3)
        for piece in source.pieces([name], "space", True, limit):
            if piece.run != run:
                continue
            blocks = list(piece.blocks())
            assert len(blocks) == 1, "a piece cut in space yields a single block"
            values = np.asarray(blocks[0].fields[name]).reshape(len(want), -1)
            begin, end, _ = piece.tile.indices(size)
            assert begin == at, f"tiles of {name!r} follow each other; one starts at {begin}, not at {at}"
            _equal(values, want[:, begin:end], f"tile {begin} to {end} of {name!r}")
            at = end
        assert at == size or not len(want), f"tiles of {name!r} end at {at} of {size} numbers"


def check_reducer(make: Callable[[], Reducer[Any]], oracle: Callable[[Any, Any], Any], *,
                  numbers: Callable[[Any], Any] = lambda result: result, values: Array | None = None, weighted: bool = True,
                  tolerance: float = TOLERANCE) -> None:
    """A reducer keeps the laws of :class:`~ensemblekit.Reducer`: every cut gives the plain answer, results are pure, states
    restore, patterns stay as they were.

    Arguments:
        make: the pattern anew.
        oracle: (values (n, *item), weights (n,) or None) -> the plain answer, an array or several.
        numbers: the result -> what the oracle is compared with.
        values: what to feed, (n, *item); 37 snapshots of 6 normal numbers where none is given.
        weighted: it takes weights.
        tolerance: relative, of any cut.
    """
    rng = np.random.default_rng(20260101)
    x = rng.normal(size=(37, 6)) if values is None else values
    cuts = cuts_of_reducer(make())
    assert isinstance(make(), Reducer), f"{type(make()).__name__} lacks a verb of Reducer"
    assert cuts, f"{type(make()).__name__} has neither merge nor join and reshape: it cannot be cut"
    for w in (None, rng.random(len(x)) + 0.1) if weighted else (None,):
        want = _arrays(oracle(x, w))
        pattern = make()
        before = _state(pattern)
        for total in _in_time(pattern, x, w) if "time" in cuts else ():
            _close(numbers(total.result()), want, tolerance, "a cut in time")
        for total in _in_space(pattern, x, w) if "space" in cuts else ():
            _close(numbers(total.result()), want, tolerance, "a cut in space")
        _same_state(before, _state(pattern), "the pattern changed")
        _check_state(pattern, x, w, numbers, want, tolerance, "time" in cuts)


def _fed(pattern: Reducer[Any], x: Array, w: np.ndarray | None, start: int = 0) -> Any:
    state = pattern.empty()
    state.update(x, start, w)
    return state


def _in_time(pattern: Any, x: Array, w: np.ndarray | None) -> Iterator[Any]:
    """The reducer after several ways to cut the run: whole, halves, single snapshots, empty pieces between."""
    n = len(x)
    for edges in ([0, n], [0, n // 2, n], list(range(n + 1)), [0, 0, 3, 3, n, n], [0, 1, n - 1, n]):
        total = pattern.empty()
        for a, b in itertools.pairwise(edges):
            part, middle = pattern.empty(), (a + b) // 2
            for lo, hi in ((a, middle), (middle, b)):       # two blocks a piece, one of them perhaps empty
                part.update(x[lo:hi], lo, None if w is None else w[lo:hi])
            total.merge(part)
        yield total
    left, middle_part, right = (_fed(pattern, x[a:b], None if w is None else w[a:b], a)
                                for a, b in ((0, n // 3), (n // 3, n // 2), (n // 2, n)))
    middle_part.merge(right)
    left.merge(middle_part)
    yield left


def _in_space(pattern: Reducer[Any], x: Array, w: np.ndarray | None) -> Iterator[Any]:
    """The reducer after several ways to cut the item into tiles."""
    flat = x.reshape(len(x), -1)
    size = flat.shape[1]
    for edges in ([0, size], [0, size // 2, size], list(range(size + 1))):
        tiles = [_fed(pattern, flat[:, a:b], w) for a, b in itertools.pairwise(edges) if b > a]
        total = tiles[0]
        for tile in tiles[1:]:
            total.join(tile)
        total.reshape(tuple(x.shape[1:]))
        yield total


def _check_state(pattern: Reducer[Any], x: Array, w: np.ndarray | None, numbers: Callable[[Any], Any], want: list[Any],
                 tolerance: float, in_time: bool) -> None:
    half = len(x) // 2 if in_time else len(x)
    state: Any = _fed(pattern, x[:half], None if w is None else w[:half])
    first = copy.deepcopy(_arrays(numbers(state.result())))
    _close(numbers(state.result()), first, 0, "a second result()")
    for value in _arrays(numbers(state.result())):
        if value.shape and value.flags.writeable:
            value[...] = 0
    _close(numbers(state.result()), first, 0, "result() after what it gave was written to")
    restored = pattern.restored(pickle.loads(pickle.dumps(state.state())))
    if in_time:
        for one in (state, restored):
            one.update(x[half:], half, None if w is None else w[half:])
    _close(numbers(state.result()), want, tolerance, "two blocks")
    _close(numbers(restored.result()), want, tolerance, "restored(state())")
    empty: Any = pattern.empty()
    if isinstance(state, MergesInTime):
        state.merge(empty)
    elif isinstance(state, JoinsInSpace):
        state.join(empty)
    _close(numbers(state.result()), want, tolerance, "an empty state taken in")


def check_engine(make: Callable[[], Engine]) -> None:
    """An engine keeps its word: values in order, as they are asked for, and the error of an item that fails.

    make: an engine anew. What runs on it are functions of this module, so that other processes can import them.
    """
    engine = make()
    assert isinstance(engine, Engine), f"{type(engine).__name__} lacks map()"
    for blas in (True, False):
        assert list(engine.map(_scaled, range(50), 3, blas=blas)) == [3 * k for k in range(50)], "values in the order of items"
    assert list(make().map(_scaled, [], 3)) == [], "no items, no values"
    pulled: list[int] = []
    values = make().map(_scaled, _counted(pulled), 2)
    assert next(values) == 0
    assert len(pulled) < 10_000, "items are pulled as workers free up, not all at once"
    if isinstance(values, Generator):
        values.close()
    try:
        list(make().map(_failing, range(20), 7))
    except Exception as error:
        assert "item 7" in str(error), f"the error of the item that failed is raised; got {error}"      # noqa: PT017
    else:
        raise AssertionError("an item failed and nothing was raised")
    assert list(make().map(_scaled, range(5), 1)) == list(range(5)), "an engine that saw a failure runs again"


def _scaled(shared: int, item: int) -> int:
    return shared * item


def _failing(shared: int, item: int) -> int:
    if item == shared:
        raise ValueError(f"item {item}")
    return item


def _counted(pulled: list[int]) -> Iterator[int]:
    for k in range(100_000):
        pulled.append(k)
        yield k


def _arrays(x: Array) -> list[np.ndarray]:
    parts = list(x) if isinstance(x, list | tuple) else [x]
    return [part.detach().cpu().numpy() if is_torch(part) else np.asarray(part) for part in parts]


def _state(reducer: Reducer[Any]) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in reducer.state().items()}


def _same_state(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], what: str) -> None:
    assert before.keys() == after.keys(), what
    for name, value in before.items():
        _equal(after[name], value, what)


def _equal(got: object, want: object, what: str) -> None:
    np.testing.assert_array_equal(got, want, err_msg=what)


def _close(got: object, want: list[Any], tolerance: float, what: str) -> None:
    arrays = _arrays(got)
    assert len(arrays) == len(want), f"{what}: {len(arrays)} arrays for {len(want)}"
    for a, b in zip(arrays, want, strict=True):
        finite = b[np.isfinite(b)]
        scale = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=what)
