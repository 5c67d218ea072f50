"""Every source, reducer and engine of the package keeps its word, and the checks notice those that do not."""

import ast
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.averaging.blocking import BlockSums
from ensemblekit.averaging.missing import PresentMoments, WholeSnapshots
from ensemblekit.averaging.observed import Observed
from ensemblekit.averaging.reducer import cuts_of_reducer
from ensemblekit.averaging.seams import Seams
from ensemblekit.averaging.series import SeriesOf
from ensemblekit.errors import InputError, ReadOnceError, UnknownFieldError
from ensemblekit.md.complexes import ImageJumps
from ensemblekit.md.spilled_series import Parts, SpilledSeries
from ensemblekit.neural.compensated import Compensated
from ensemblekit.neural.swag import SWAG
from ensemblekit.rom import archive_views, products
from ensemblekit.rom.decompose import covariance
from ensemblekit.rom.file_source import MeshedSource
from ensemblekit.rom.masked import MaskedSource
from ensemblekit.source import HeldPiece
from ensemblekit.source_cuts import WHOLE
from ensemblekit.source_views import Reweighted
from ensemblekit.testing import check_engine, check_reducer, check_source
from tests.oracles import SPACE_CASES, TIME_CASES

X = np.random.default_rng(0).normal(size=(40, 6, 2))
W = np.random.default_rng(1).random(40) + 0.1


def stored(folder, name="a.h5", n=40):
    """A store of two clocks, in several segments."""
    fields = {"u": ek.Field((6, 2), "f4"), "e": ek.Field(), "loss": ek.Field(clock="fast")}
    with ek.create(folder / name, fields, time_unit="s") as store:
        for k in range(n):
            store.append({"u": X[k], "e": X[k, 0, 0]}, time=0.5 * k, weight=W[k])
            store.append({"loss": float(k)}, time=float(k), clock="fast")
            store.append({"loss": float(-k)}, time=k + 0.5, clock="fast")
    return ek.open(folder / name)


def files(folder):
    for k, rows in enumerate((slice(0, 11), slice(11, 40))):
        np.save(folder / f"x_{k}.npy", X[rows])
    return rom.read([folder / "x_0.npy", folder / "x_1.npy"], snapshot_axis=0)


def array(_):
    return ek.ArraySource.of({"u": X, "e": X[:, 0, 0]}, weights=W, times=np.arange(40) * 0.5)


SOURCES = {
    "array": array,
    "replicas": lambda f: ek.ReplicaSet.of([X[:13], X[13:]]),
    "stacked": lambda f: ek.ReplicaSet.of([X[:13], X[13:]]).stacked(),
    "parts of one run": lambda f: ek.source.StackedSource((array(f).window(0, 17), array(f).window(17)), joined=True),
    "store": stored,
    "stored fields of a clock": lambda f: stored(f).clock("main"),
    "another clock": lambda f: stored(f).clock("fast"),
    "stored field": lambda f: stored(f)["u"],
    "a window of a stored field": lambda f: stored(f)["u"].window(3, 38, 2),
    "replicas of stores": lambda f: ek.ReplicaSet.of([stored(f), stored(f, "b.h5", 21)]),
    "memory store": lambda f: in_memory(),
    "clock of a memory store": lambda f: in_memory().clock("main"),
    "stored field with its mesh": lambda f: MeshedSource(stored(f).clock("main"), None),
    "files": files,
    "lazy arrays with labels": lambda f: lazy(),
    "someone's own, described": lambda f: ek.source.described(Own(ek.ArraySource.of(X))),
}


class Own:
    """A source of someone's own: what the protocol asks for, and nothing besides."""

    def __init__(self, inner):
        self.inner = inner

    fields = property(lambda self: self.inner.fields)
    lengths = property(lambda self: self.inner.lengths)
    access, time_unit = "rows", ""

    def window(self, start=0, stop=None, step=1):
        return type(self)(self.inner.window(start, stop, step))

    def pieces(self, names, cut, tiled, limit):
        return self.inner.pieces(names, cut, tiled, limit)


class Knowing(Own):
    """One that knows its times, its weights and a mesh besides."""

    times = property(lambda self: self.inner.times)
    weights = property(lambda self: self.inner.weights)
    mesh = "a mesh of its own"
    time_unit = "s"


def test_a_source_of_someones_own_says_what_it_knows_and_no_more():
    inner = ek.ArraySource.of(X, weights=W, times=np.arange(40) * 0.5)
    plain, knowing = ek.source.described(Own(inner)), ek.source.described(Knowing(inner))
    assert [plain.times, plain.weights, plain.labels, plain.mesh, plain.provenance] == [None, None, None, None, {}]
    np.testing.assert_array_equal(knowing.window(3, 30, 2).times, inner.times[3:30:2])
    np.testing.assert_array_equal(knowing.weights, W)
    assert knowing.mesh == Reweighted(knowing, W).mesh == "a mesh of its own"
    assert ek.source.described(knowing) is knowing
    both = ek.ReplicaSet((Own(inner), Knowing(inner)))
    assert [run.mesh for run in both.runs] == [None, "a mesh of its own"]
    np.testing.assert_array_equal(both.stacked().weights, [*np.ones(40), *W])


@pytest.mark.parametrize("kind", [Own, Knowing])
def test_every_front_end_takes_a_source_of_someones_own(kind):
    """With the same answers as of the array behind it, whose weights and times stand in its blocks."""
    inner = ek.ArraySource.of(X, weights=W, times=np.arange(40) * 0.5, time_unit="s")
    source = kind(inner)
    np.testing.assert_array_equal(ek.average(source).mean, ek.average(inner).mean)
    np.testing.assert_array_equal(rom.average(source)["mean"].mean, rom.average(inner)["mean"].mean)
    basis = rom.pod(source, rank=3)
    assert (basis.times is None) == (kind is Own)
    with pytest.raises(ReadOnceError, match=f"^{kind.__name__} cannot be read in slabs"):
        ek.reduce(source, ek.Gram(), cut="space")


def lazy():
    """Chunks of dask's that are no multiple of anything; small ones are read at once elsewhere."""
    dask, xarray = pytest.importorskip("dask.array"), pytest.importorskip("xarray")
    from ensemblekit.intake_labels import labelled_arrays
    from ensemblekit.source_labelled import LazySource

    given = labelled_arrays(xarray.DataArray(dask.from_array(X, chunks=(7, 4, 2)), dims=("time", "y", "x"),
                                             coords={"time": np.arange(len(X), dtype=float)}, name="u"))
    return LazySource(given.arrays, given.labels, given.times, given.time_unit, given.units)


def in_memory():
    from ensemblekit.store.memory import MemoryStore

    store = MemoryStore({"u": ek.Field((6, 2)), "loss": ek.Field(clock="fast")})
    for k in range(40):
        store.append({"u": X[k]}, time=float(k))
        store.append({"loss": 1.0}, time=float(k), clock="fast")
    return store


@pytest.mark.parametrize("name", SOURCES)
def test_sources_keep_their_word(name, tmp_path):
    sources = []

    def make():
        if not sources:
            sources.append(SOURCES[name](tmp_path))
        return sources[0]

    check_source(make)


def test_frames_keep_their_word(tmp_path):
    MDAnalysis = pytest.importorskip("MDAnalysis")
    data = pytest.importorskip("MDAnalysisTests.datafiles")
    from ensemblekit import md
    from ensemblekit.md.weighted import PickedSource, WeightedSource

    read = md.read(data.PSF, data.DCD, select="resid 1:3", stop=9)
    check_source(lambda: read)
    kept = md.ingest(data.PSF, data.DCD, tmp_path / "a.h5md", select="resid 1:3", stop=12)
    held = ek.open(kept.path)
    check_source(lambda: held)
    check_source(lambda: WeightedSource(held.window(), W[:12]))
    check_source(lambda: PickedSource(held.window(), np.array([0, 2, 3, 7, 8, 11])))
    live = md.read(MDAnalysis.Universe(data.PSF, data.DCD, in_memory=True), select="resid 1:3", stop=9)
    check_source(lambda: live)
    models = md.ConformerEnsemble.read(data.PDB_multiframe).source
    check_source(lambda: models)
    assert {type(one).__name__ for one in (read, live, models, WeightedSource(held.window(), W[:12]),
                                           PickedSource(held.window(), np.array([0])))} == FRAMES


FRAMES = {"TrajectorySource", "LiveSource", "ConformerSource", "WeightedSource", "PickedSource"}
"""Sources of frames."""


@pytest.mark.parametrize("name", {**TIME_CASES, **SPACE_CASES})
def test_reducers_keep_the_laws(name):
    pattern, numbers, oracle, weighted = {**TIME_CASES, **SPACE_CASES}[name]
    x = np.random.default_rng(3).normal(size=(37, 6))
    check_reducer(lambda: pattern, oracle, numbers=numbers, values=x, weighted=weighted)


def leaves(result):
    """All numbers of a result, whatever holds them."""
    if isinstance(result, Parts):
        result = result[:, :]
    if isinstance(result, dict):
        result = [result[name] for name in sorted(result)]
    elif is_dataclass(result):
        result = [getattr(result, field.name) for field in dataclass_fields(result)]
    if isinstance(result, list | tuple):
        return [leaf for part in result for leaf in leaves(part)]
    array = np.asarray(np.nan if result is None else result)
    return [array] if array.dtype.kind in "biufc" else []


def by_itself(make, x, weighted=True, tolerance=1e-9):
    """A reducer whose plain answer is that of one block, beside the oracles that its own tests have."""
    def whole(x, w):
        state = make()
        state.update(x, 0, w)
        return leaves(state.result())

    numbers = copied_leaves if make in AS_LARGE_AS_MEMORY else leaves
    check_reducer(make, whole, numbers=numbers, values=x, weighted=weighted, tolerance=tolerance)


def copied_leaves(result):
    return [array.copy() for array in leaves(result)]


Y = np.random.default_rng(9).normal(size=(37, 6))
JUMPS = np.hstack([np.ones((37, 1)), np.abs(Y[:, :1]), Y[:, 2:]])


def differences(x):
    """Equations that reach over three snapshots."""
    return x[1:-1], (x[2:] - x[:-2]) / 2


REDUCERS = {
    BlockSums: (BlockSums, Y),
    WholeSnapshots: (lambda: WholeSnapshots(ek.Moments()), np.where(np.arange(37)[:, None] % 5 == 2, np.nan, Y)),
    PresentMoments: (PresentMoments, np.where(Y > 1.5, np.nan, Y)),
    Observed: (Observed, Y),
    ek.Quantiles: (ek.Quantiles, Y),
    ek.QuantileSketch: (ek.QuantileSketch, Y[:, 0]),
    Seams: (Seams, 90 * Y),
    SeriesOf: (lambda: SeriesOf(np.abs), Y),
    ImageJumps: (ImageJumps, JUMPS),
    SpilledSeries: (SpilledSeries, Y),
    SWAG: (lambda: SWAG(3), Y),
    Compensated: (Compensated, Y),
    covariance.Products: (covariance.Products, Y),
    products.Products: (lambda: products.Products(1, np.zeros(6)), Y[:, None]),
    ek.statistics.Regression: (lambda: ek.statistics.Regression(differences, 2), Y),
}


@pytest.mark.parametrize("kind", REDUCERS, ids=lambda kind: f"{kind.__module__.split('.')[-1]}.{kind.__name__}")
def test_every_cut_gives_the_answer_of_one_block(kind):
    make, x = REDUCERS[kind]
    by_itself(make, x)


AS_LARGE_AS_MEMORY = (covariance.Products,)
"""Whose results are the matrices that they hold, for want of room for a copy."""
OF_OTHER_VALUES = {
    "MovedMean": "takes blocks of positions: tests/test_md_structure.py",
    "TileReducer": "takes whole tiles: the slab test below and tests/test_rom_routes.py",
    "SubspaceReducer": "takes snapshots as rows: tests/test_rom_rows.py",
}
"""Reducers that are fed something else than arrays, and where they are cut."""


@pytest.fixture(scope="module")
def dask_client():
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as client:
        yield client


ENGINES = {"Serial": lambda _: ek.Serial(), "Threads": lambda _: ek.Threads(2), "Processes": lambda _: ek.Processes(2),
           "Executor": lambda _: ek.Executor(ThreadPoolExecutor(2)), "Dask": lambda request: ek.Dask(
               request.getfixturevalue("dask_client"))}


@pytest.mark.parametrize("name", ENGINES)
def test_engines_keep_their_word(name, request):
    engine = ENGINES[name](request)
    check_engine(lambda: engine)


def test_views_of_archives_keep_their_word():
    source = ek.ArraySource.of({"u": X, "e": X[:, 0, 0]}, weights=W, times=np.arange(40) * 0.5)
    for view in VIEWS.values():
        check_source(lambda view=view: view(source))


VIEWS = {
    Reweighted: lambda s: Reweighted(s, W),
    archive_views.SingleField: lambda s: archive_views.SingleField(s, "u"),
    archive_views.FilledField: lambda s: archive_views.FilledField(archive_views.SingleField(s, "u"), "u", np.zeros(12)),
    archive_views.WeighedField: lambda s: archive_views.WeighedField(archive_views.SingleField(s, "u"), "u", np.ones(12)),
    MaskedSource: lambda s: MaskedSource(s, {"u": np.arange(12) != 5}),
    archive_views.ScaledField: lambda s: archive_views.ScaledField(archive_views.SingleField(s, "u"), 3),
}


@functools.cache
def methods_of_classes():
    """(class, its methods) of every class of the package, protocols left out; classes stand at the top of their modules."""
    return [(node.name, {one.name for one in node.body if isinstance(one, ast.FunctionDef)})
            for path in Path(ek.__file__).parent.rglob("*.py") for node in ast.parse(path.read_text("utf-8")).body
            if isinstance(node, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in node.bases)]


def classes(*verbs):
    """Names of the classes of the package that have these methods."""
    return {name for name, methods in methods_of_classes() if methods >= set(verbs)}


def test_nobody_is_left_out(tmp_path):
    patterns = [case[0] for case in {**TIME_CASES, **SPACE_CASES}.values()]
    assert classes("empty", "update") == {
        *(type(one).__name__ for one in patterns), *(kind.__name__ for kind in REDUCERS), *OF_OTHER_VALUES}
    assert classes("map") == set(ENGINES)
    names = []
    for k, make in enumerate(SOURCES.values()):
        (tmp_path / str(k)).mkdir()
        names += [kind.__name__ for kind in type(make(tmp_path / str(k))).__mro__]
    assert classes("pieces", "window") <= {*names, *(view.__name__ for view in VIEWS), *FRAMES}


# -- the checks notice -----------------------------------------------------------------------------------------------------

class Lying(ek.ArraySource):
    """A source with one fault."""

    def pieces(self, names, cut, tiled, limit):
        for piece in super().pieces(names, cut, tiled, limit):
            yield self.units["fault"](piece) if piece.start == 0 else piece


@pytest.mark.parametrize("fault", [
    lambda p: replace(p, start=p.start + 1), lambda p: replace(p, stop=p.stop - 1), lambda p: replace(p, weights=None),
    lambda p: replace(p, arrays={name: x.astype("f4") for name, x in p.arrays.items()}),
    lambda p: replace(p, arrays={name: x[..., :1] for name, x in p.arrays.items()}),
    lambda p: replace(p, times=p.times + 1)], ids=["start", "stop", "weights", "type", "shape", "times"])
def test_a_source_with_a_fault_is_found_out(fault):
    source = Lying({"u": X}, W, np.arange(40.0), "", {"fault": fault})
    with pytest.raises(AssertionError):
        check_source(lambda: source)


class Mean:
    """The mean in time, right; the classes below each have one fault."""

    def __init__(self):
        self.n, self.mean = 0, 0.0

    def empty(self):
        return type(self)()

    def update(self, values, start, weights=None):
        if len(values):
            self.add(len(values), values.mean(0))

    def merge(self, later):
        if later.n:
            self.add(later.n, later.mean)

    def add(self, n, mean):
        self.n += n
        self.mean = self.mean + (mean - self.mean) * (n / self.n)

    def result(self):
        return np.array(self.mean)

    def state(self):
        return {"n": np.array(self.n), "mean": np.array(self.mean)}

    def restored(self, state):
        new = self.empty()
        new.n, new.mean = int(state["n"]), np.array(state["mean"])
        return new


class Unweighted(Mean):
    def add(self, n, mean):
        self.mean = (self.mean * bool(self.n) + mean) / (1 + bool(self.n))
        self.n += n


class Forgetful(Mean):
    def restored(self, state):
        return self.empty()


class Impure(Mean):
    def result(self):
        self.mean = self.mean + 1.0
        return np.array(self.mean)


class Shared(Mean):
    def result(self):
        return self.mean


class Uncut(Mean):
    merge = None


def test_a_reducer_with_a_fault_is_found_out():
    oracle = lambda x, w: x.mean(0)         # noqa: E731
    check_reducer(Mean, oracle, weighted=False)
    for wrong in (Unweighted, Forgetful, Impure, Shared, Uncut):
        with pytest.raises(AssertionError):
            check_reducer(wrong, oracle, weighted=False)
    with pytest.raises(AssertionError):
        check_reducer(Mean, lambda x, w: x.mean(0) + 1e-6, weighted=False)


def test_an_engine_with_a_fault_is_found_out():
    class Eager:
        def map(self, func, items, shared, *, blas=True):
            return iter([func(shared, item) for item in items])

    class Backwards:
        def map(self, func, items, shared, *, blas=True):
            return iter([func(shared, item) for item in items][::-1])

    for wrong in (Eager, Backwards):
        with pytest.raises(AssertionError):
            check_engine(wrong)


# -- what is named, not guessed --------------------------------------------------------------------------------------------

def test_a_reducer_in_time_alone_is_a_reducer():
    assert cuts_of_reducer(Mean()) == {"time"}
    x = np.random.default_rng(2).normal(size=(500, 3))
    np.testing.assert_allclose(ek.reduce(x, Mean()), x.mean(0), rtol=1e-12)
    with pytest.raises(InputError, match="cannot be cut in space; pass cut='time'"):
        ek.reduce(x, Mean(), cut="space")
    with pytest.raises(InputError, match="is not a reducer"):
        ek.reduce(x, Uncut())


def test_covers_hand_on_the_look_ahead():
    prefetched = []

    class Piece(HeldPiece):
        def prefetch(self):
            prefetched.append(self.start)

    class Source(ek.ArraySource):
        def pieces(self, *args):
            for p in super().pieces(*args):
                yield Piece(p.run, p.start, p.stop, p.tile, p.arrays, p.weights, p.times)

    x = np.arange(8.0)
    two = ek.ReplicaSet.of([Source({"x": x}), Source({"x": x})])
    for source, starts in ((Source({"x": x}), [*range(8)]), (two, [*range(8)] * 2), (two.stacked(), [*range(8)] * 2)):
        prefetched.clear()
        ek.reduce(source, ek.Series(), engine=ek.Serial())
        assert prefetched == starts
    prefetched.clear()
    ek.reduce(two.stacked(), ek.Gram(), cut="space", engine=ek.Serial())
    assert prefetched == [0, 0]


def test_a_piece_without_look_ahead_is_named():
    class Bare:
        run, start, stop, tile = 0, 0, 1, WHOLE

        def blocks(self):
            return iter(())

    class Source(ek.ArraySource):
        def pieces(self, *args):
            yield Bare()

    with pytest.raises(InputError, match="Bare is no piece"):
        ek.reduce(Source({"x": np.zeros(3)}), ek.Moments())


def test_a_store_lists_what_it_can_give(tmp_path):
    """Two clocks, as a Recorder has them: a map sees the fields of the first."""
    store = stored(tmp_path)
    assert list(store.fields) == ["u", "e"]
    assert set(store.all_fields) == set(store) == {"u", "e", "loss"}
    moments = ek.reduce(store, {"m": (lambda block: block.fields["u"][:, 0, 0], ek.Moments())})["m"]
    assert moments.mean == pytest.approx(np.average(X[:, 0, 0].astype("f4"), weights=W), rel=1e-6)
    with pytest.raises(UnknownFieldError, match="loss"):
        ek.reduce(store, {"m": ("loss", ek.Moments())})
    with pytest.raises(InputError, match="on another clock"):       # nor silently the only field there is
        ek.reduce(store, {"loss": ek.Moments()})
    assert ek.reduce(store.clock("fast"), ek.Moments()).n == ek.reduce(store["loss"], ek.Moments()).n == 80


def test_a_second_block_of_a_slab_is_refused():
    from ensemblekit.rom.decompose.slabs import Tile, TileReducer

    slabs = TileReducer(lambda tile: ({"sum": tile.values.sum(1)}, {}))
    slabs.update(Tile(np.ones((4, 3)), 0), 0)
    with pytest.raises(InputError, match="a second one came, of snapshots 4 to 7"):
        slabs.update(Tile(np.ones((4, 3)), 0), 4)
