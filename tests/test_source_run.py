"""Sources and the one pass over them: windows, replicas, partials, streams, tiles, and what is refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ensemblekit as ek
from ensemblekit.errors import InputError, ReadOnceError, StatisticsError, UnknownFieldError
from ensemblekit.source import Block, HeldPiece
from ensemblekit.source_cuts import WHOLE, time_cuts


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(1, 10**7), st.booleans(), st.integers(1, 1 << 27))
def test_cuts_cover_everything_once(n, size, tiled, limit):
    cuts = time_cuts(n, size, 4, tiled, limit)
    assert cuts.rows[0] == 0
    assert cuts.rows[-1] == n
    assert all(a < b for a, b in zip(cuts.rows, cuts.rows[1:], strict=False))
    assert len(cuts.rows) <= max(65, n * size * 4 // (1 << 29) + 2)
    if cuts.tiles is not None:
        assert cuts.tiles[0] == 0
        assert cuts.tiles[-1] == size
        assert all(a < b for a, b in zip(cuts.tiles, cuts.tiles[1:], strict=False))
        assert tiled


def test_a_wide_item_is_cut_into_tiles_and_gets_its_shape_back():
    x = np.random.default_rng(0).normal(size=(300, 70, 1000)).astype("f4")
    got = ek.reduce(x, {"m": ek.Moments(), "e": ek.Extremes()} | {}, fields=["values"])
    np.testing.assert_allclose(got["m"].mean, x.mean(0, dtype="f8"), atol=1e-12)
    np.testing.assert_array_equal(got["e"].at_high, x.argmax(0))
    small = ek.reduce(x[:20], ek.Moments(), limit=1000)
    np.testing.assert_allclose(small.variance, x[:20].var(0, ddof=1, dtype="f8"), rtol=1e-9)


@pytest.mark.parametrize("kind", ["f4", "f8", "c8", "f2", "i4"])
def test_tiles_of_moments_are_taken_in_place(kind):
    """In the memory of the whole item with threads, joined elsewhere: the same bits, and nobody else's afterwards."""
    rng = np.random.default_rng(8)
    x = (rng.normal(size=(6, 7, 11)) * 50 + (1j * rng.normal(size=(6, 7, 11)) if kind == "c8" else 0)).astype(kind)
    w = np.array([1.0, 0.0, 2.0, 0.5, 3.0, 0.0])
    for weights in (None, w):
        source = ek.ArraySource.of(x, weights=weights)
        results = [ek.reduce(source, ek.Moments(), cut="space", limit=limit, engine=engine) for limit in (97, 400, 10**6)
                   for engine in (ek.Serial(), ek.Threads(2), ek.Executor(ThreadPoolExecutor(2)))]
        first = ek.reduce(-source.arrays["values"], ek.Moments(), cut="space", limit=97)
        want = np.average(x.astype("c16" if kind == "c8" else "f8"), axis=0, weights=weights)
        for one in results:
            assert one.mean.shape == one.variance.shape == (7, 11)
            np.testing.assert_allclose(one.mean, want, rtol=1e-12, atol=1e-12)
            np.testing.assert_array_equal(one.mean, results[0].mean)
            np.testing.assert_array_equal(one.variance, results[0].variance)
        if weights is None:
            np.testing.assert_allclose(results[0].variance, x.astype(want.dtype).var(0, ddof=1), rtol=1e-9)
            np.testing.assert_array_equal(first.mean, -results[0].mean)
    with pytest.raises(StatisticsError, match="all weights of 6"):
        ek.reduce(ek.ArraySource.of(x, weights=0 * w), ek.Moments(), cut="space", limit=97)
    runs = ek.reduce(ek.ReplicaSet.of([x[:2], x[2:]]), ek.Moments(), cut="space", limit=97)
    np.testing.assert_allclose(runs[0].mean, x[:2].astype(want.dtype).mean(0), rtol=1e-12)
    np.testing.assert_allclose(runs[1].mean, x[2:].astype(want.dtype).mean(0), rtol=1e-12)


def test_many_fields_many_maps_one_read():
    rng = np.random.default_rng(1)
    reads = []

    class Counted(ek.ArraySource):
        def pieces(self, *args):
            reads.append(args[0])
            return super().pieces(*args)

    base = ek.ArraySource.of({"x": rng.normal(size=(100, 4)), "box": rng.random((100, 3)), "unused": np.zeros(100)})
    source = Counted(base.arrays)
    got = ek.reduce(source, {
        "x": ek.Moments(),
        "both": (lambda b: b.fields["x"][:, :3] * b.fields["box"], ek.Moments(), ek.Extremes()),
    }, fields=["x", "box"])
    assert len(reads) == 1
    x, box = source.arrays["x"], source.arrays["box"]
    np.testing.assert_allclose(got["x"].mean, x.mean(0))
    np.testing.assert_allclose(got["both"][0].mean, (x[:, :3] * box).mean(0))
    mapped = ek.reduce(source, {"r": ek.Series()}, map=lambda b: b.fields["x"].sum(1), fields=["x"])
    np.testing.assert_allclose(mapped["r"], x.sum(1))


@given(st.integers(-3, 40), st.one_of(st.none(), st.integers(-3, 40)), st.integers(1, 7))
def test_a_window_is_pythons_slice(start, stop, step):
    x = np.arange(30.0)
    times = x * 0.5
    got = ek.ArraySource.of(x, times=times).window(start, stop, step)
    np.testing.assert_array_equal(ek.reduce(got, ek.Series()).ravel(), x[start:stop:step])
    np.testing.assert_array_equal(got.times, times[start:stop:step])
    stacked = ek.ReplicaSet.of([x[:7], x[7:7], x[7:19], x[19:]]).stacked().window(max(start, 0), stop, step)
    want = x[max(start, 0):stop:step]
    np.testing.assert_array_equal(ek.reduce(stacked, ek.Series()).ravel(), want)


def test_replicas_stay_apart_and_stack():
    rng = np.random.default_rng(2)
    runs = [rng.normal(size=(n, 6)) for n in (50, 80, 17)]
    replicas = ek.ReplicaSet.of(runs)
    for run, got in zip(runs, ek.reduce(replicas, ek.Moments()), strict=True):
        assert got.n == len(run)
        np.testing.assert_allclose(got.mean, run.mean(0))
    whole = np.concatenate(runs)
    np.testing.assert_allclose(ek.reduce(replicas.stacked(), ek.Moments()).mean, whole.mean(0))
    np.testing.assert_allclose(ek.reduce(replicas.stacked(), ek.Gram(), cut="space", limit=2000), whole @ whole.T)


def test_partials_give_a_suffix_without_a_second_read():
    x = np.random.default_rng(3).normal(size=(5000, 2))
    parts = ek.partials(x, {"m": (lambda b: b.only, ek.Moments(), ek.Series())})[0]
    assert 32 < len(parts.states) <= 64
    start = parts.starts[9]
    moments, series = ek.merged(parts, start)["m"]
    np.testing.assert_allclose(moments.result().mean, x[start:].mean(0))
    np.testing.assert_array_equal(series.result(), x[start:])
    again, _ = ek.merged(parts)["m"]
    assert again.result().n == 5000, "merging must leave the partial states as they are"


class Stream:
    """A generator of arrays, read once, length unknown."""

    access, lengths, time_unit = "once", None, ""

    def __init__(self, arrays):
        self.arrays, self.used = arrays, False
        self.fields = {"x": ek.Field((2,), "f8")}

    def window(self, start=0, stop=None, step=1):
        raise ReadOnceError("a stream has no windows")

    def pieces(self, names, cut, tiled, limit):
        if self.used:
            raise ReadOnceError("this source can be read only once; ingest it into a store")
        self.used = True
        n = 0
        for x in self.arrays:
            yield HeldPiece(0, n, n + len(x), WHOLE, {"x": x}, None, None)
            n += len(x)


def test_a_stream_of_unknown_length_keeps_few_partials_and_is_read_once():
    x = np.random.default_rng(4).normal(size=(3000, 2))
    stream = Stream(x[i:i + 7] for i in range(0, 3000, 7))
    parts = ek.partials(stream, {"m": ek.Moments()})[0]
    assert len(parts.states) <= 64
    np.testing.assert_allclose(ek.merged(parts)["m"][0].result().mean, x.mean(0))
    with pytest.raises(ReadOnceError, match="only once"):
        ek.reduce(stream, ek.Moments())
    with pytest.raises(ReadOnceError, match="slabs of space"):
        ek.reduce(Stream(iter([])), ek.Gram(), cut="space")


X = np.zeros((10, 3))


@pytest.mark.parametrize(("call", "error", "match"), [
    (lambda: ek.reduce(X, {}), InputError, "at least one"),
    (lambda: ek.reduce(X, {"m": ek.Moments}), InputError, "Pass an instance"),
    (lambda: ek.reduce(X, {"m": (lambda b: b.only,)}), InputError, "has no reducer"),
    (lambda: ek.reduce(X, {"m": ("vel", ek.Moments())}), UnknownFieldError, "no field 'vel' here; the fields are: 'values'"),
    (lambda: ek.reduce({"a": X, "b": X}, {"m": ek.Moments()}), InputError, "does not say which field"),
    (lambda: ek.reduce(X, ek.Gram()), InputError, "pass cut='space'"),
    (lambda: ek.reduce(X, ek.Series(), cut="space"), InputError, "pass cut='time'"),
    (lambda: ek.reduce(X, ek.Moments(), cut="sideways"), InputError, "cut is"),
    (lambda: ek.reduce(X, ek.Moments(), limit=0), InputError, "limit"),
    (lambda: ek.reduce(X, ek.Moments(), map=lambda b: b.only[:0]), ek.EnsemblekitError, "0 rows for 1 snapshots"),
    (lambda: ek.reduce("run.h5", ek.Moments()), InputError, "open it first"),
    (lambda: ek.reduce(np.array(["a", "b"]), ek.Moments()), InputError, "holds no numbers"),
    (lambda: ek.reduce(np.float64(3.0), ek.Moments()), InputError, "snapshots lie along axis 0"),
    (lambda: ek.ArraySource.of({"a": X, "b": X[1:]}), InputError, "differ in their number"),
    (lambda: ek.ArraySource.of(X, weights=np.ones(9)), InputError, r"shape \(10,\)"),
    (lambda: ek.ArraySource.of(X, weights=-np.ones(10)), InputError, "must not be negative"),
    (lambda: ek.ArraySource.of(X, weights=np.full(10, np.nan)), InputError, "must be finite"),
    (lambda: ek.ArraySource.of(X, times=np.arange(10)[::-1]), InputError, "run backwards"),
    (lambda: ek.ArraySource.of(X).window(step=0), InputError, "step"),
    (lambda: ek.ReplicaSet.of([X, X[:, :2]]), InputError, "run 1"),
    (lambda: ek.Field((3, 0)), InputError, "above 0"),
    (lambda: ek.Field((), "O"), InputError, "holds numbers"),
    (lambda: ek.Field((), "nonsense"), InputError, "numpy knows"),
])
def test_what_cannot_be_done_is_said(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_a_block_counts_snapshots():
    block = Block({"x": np.zeros((4, 2))}, 3, WHOLE, None, None)
    assert len(block) == 4
    assert block.only.shape == (4, 2)


def test_rows_of_several_stretches_are_copied_a_few_columns_at_a_time(tmp_path):
    """A file that grew in between holds its values in several stretches; a slab of space is a view of them, no copy."""
    x = np.arange(700 * 4000.0).reshape(700, 4000)
    with ek.create(tmp_path / "x.h5", {"u": ek.Field((4000,)), "v": ek.Field((4000,))}) as store:
        for a in range(0, 700, 7):
            store.extend({"u": x[a:a + 7], "v": x[a:a + 7]})
    source = ek.open(tmp_path / "x.h5")["u"]
    (block,) = [b for piece in source.window(0, 700).pieces(["u"], "space", True, 1 << 30) for b in piece.blocks()]
    assert len(block.fields.parts) > 1       # the case at hand
    assert len(block) == 700
    columns = block.fields.columns
    assert columns.shape == (700, 4000)
    assert columns.dtype == x.dtype
    np.testing.assert_array_equal(columns[:, 3:9], x[:, 3:9])
    np.testing.assert_array_equal(columns.take(slice(3, 9), np.empty((700, 10))), x[:, 3:9])
    np.testing.assert_array_equal(block.fields["u"], x)             # as one array for who asks
    with pytest.raises(InputError, match="all rows"):
        columns[1:3, :]
    several = ek.ReplicaSet.of([source, source]).stacked()
    (block,) = [b for piece in several.pieces(["u"], "space", True, 1 << 30) for b in piece.blocks()]
    assert len(block.fields.parts) > 2
    np.testing.assert_array_equal(block.fields["u"], np.concatenate([x, x]))
