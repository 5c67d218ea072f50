"""Where averages of trajectories go wrong elsewhere, a test each; and bad input, refused in words or by a stated convention."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import EnsemblekitError, InputError
from tests.test_md_liquids import universe

mda = pytest.importorskip("MDAnalysis")
datafiles = pytest.importorskip("MDAnalysisTests.datafiles")
pytestmark = pytest.mark.filterwarnings("ignore")

BOX = [20.0, 20, 20, 90, 90, 90]


def average(source, observable, **how):
    from ensemblekit import md

    return md.average(source, {"it": observable}, quiet=True, **how)["it"]


def walk(n, atoms=4, seed=0, phi=0.5):
    """Correlated frames."""
    from scipy.signal import lfilter

    noise = np.random.default_rng(seed).normal(size=(n, atoms, 3))
    return lfilter([1], [1, -phi], noise, axis=0) + np.arange(atoms)[:, None] * 3


def gyrations(x):
    return np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))


@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 127, 131, 1003])
def test_frames_that_no_block_divides(tmp_path, n):
    from ensemblekit import md

    x = walk(n).astype(np.float32)
    u = universe(x)
    store = md.ingest(u, None, tmp_path / "run.h5md")
    answers = [average(source, md.RadiusOfGyration("all"), equilibration=None, engine=engine)
               for source in (u, store) for engine in (ek.Serial(), ek.Threads(3))]
    want = gyrations(x.astype(float))
    for answer in answers:
        np.testing.assert_allclose(answer.mean, want.mean(), rtol=1e-6)
        np.testing.assert_allclose(answer.series, want, rtol=1e-6)
        assert answer.n == n
        assert (answer.mean, answer.stderr) == (answers[0].mean, answers[0].stderr) or np.isnan(answer.stderr)
    part = average(store, md.RadiusOfGyration("all"), equilibration=None, start=n // 3, step=2)
    np.testing.assert_allclose(part.mean, want[n // 3::2].mean(), rtol=1e-6)


def test_a_constant_series_has_no_inefficiency():
    from ensemblekit import md

    estimate = average(universe(np.repeat(walk(1), 50, 0)), md.RadiusOfGyration("all"))
    assert estimate.stderr == 0
    assert np.isnan(estimate.n_eff)
    assert not estimate.converged
    assert "every snapshot is the same" in estimate.verdict


def test_anticorrelated_frames_are_worth_more_than_independent_ones():
    from ensemblekit import md

    x = walk(1).repeat(2000, 0)
    swing = np.random.default_rng(1).normal(1, 0.1, 2000) * np.resize([1, -1], 2000)
    x[:, 0, 0] = -5 + swing
    estimate = average(universe(x), md.Distance("index 0", "index 1"))
    assert estimate.statistical_inefficiency <= 1
    assert estimate.n_eff == 2000              # never said to be more than there are
    assert estimate.stderr < 0.1 / np.sqrt(2000)


def test_frames_that_are_not_finite_are_told():
    from ensemblekit import md

    x = walk(100)
    x[37, 2, 1] = np.nan
    estimate = average(universe(x), md.RadiusOfGyration("all"))
    assert not estimate.converged
    assert "1 of 100 snapshots are not finite (first: 37)" in estimate.verdict
    good = [k for k in range(100) if k != 37]
    assert np.isfinite(average(universe(x), md.RadiusOfGyration("all"), frames=good).mean)
    for observable in (md.RDF("all", range=(0.0, 8.0)), md.MSD("all"), md.DensityProfile("all")):
        with pytest.raises(EnsemblekitError, match="frame 37"):
            average(universe(x, BOX), observable, whole=True)


def test_weights_of_every_kind():
    from ensemblekit import md

    n = 300
    x = walk(n)
    u, rg, want = universe(x), md.RadiusOfGyration("all"), gyrations(x.astype(np.float32).astype(float))
    w = np.random.default_rng(2).exponential(size=n)
    some = average(u, rg, frame_weights=w, equilibration=None)
    np.testing.assert_allclose(some.mean, w @ want / w.sum(), rtol=1e-6)
    scaled = average(u, rg, frame_weights=w * 1e-9, equilibration=None)
    np.testing.assert_allclose([scaled.mean, scaled.stderr], [some.mean, some.stderr], rtol=1e-6)
    even = average(u, rg, frame_weights=np.full(n, 7.0), equilibration=None)
    plain = average(u, rg, equilibration=None)
    np.testing.assert_allclose([even.mean, even.stderr], [plain.mean, plain.stderr], rtol=1e-6)
    one = np.zeros(n)
    one[11] = 3
    alone = average(u, rg, frame_weights=one, equilibration=None)
    np.testing.assert_allclose(alone.mean, want[11], rtol=1e-6)
    assert not alone.converged
    with pytest.raises(EnsemblekitError, match="zero"):
        average(u, rg, frame_weights=np.zeros(n))
    logs = -np.linspace(0, 40000, n)
    huge = average(u, rg, frame_weights=ek.statistics.normalised_weights(log_weights=logs), equilibration=None)
    np.testing.assert_allclose(huge.mean, want[0], rtol=1e-6)
    for bad in (np.ones(n - 1), -np.ones(n), np.full(n, np.nan), np.ones((n, 2))):
        with pytest.raises(InputError, match="weight"):
            average(u, rg, frame_weights=bad)
    g = average(universe(x, BOX), md.RDF("all", range=(0.0, 9.0), n_bins=6), frame_weights=one, equilibration=None)
    alone = average(universe(x[11:12].repeat(8, 0), BOX), md.RDF("all", range=(0.0, 9.0), n_bins=6), equilibration=None)
    np.testing.assert_allclose(g.mean, alone.mean, rtol=1e-6)


def test_replicas_of_unequal_length(tmp_path):
    from ensemblekit import md

    runs = [walk(n, seed=n) for n in (300, 77, 1001)]
    paths = []
    for k, x in enumerate(runs):
        paths.append(str(tmp_path / f"run-{k}.xyz"))
        with mda.Writer(paths[-1], 4) as writer:
            u = universe(x)
            for _ in u.trajectory:
                writer.write(u.atoms)
    source = md.read(paths[0], replicas=paths)
    estimate = average(source, md.RadiusOfGyration("all", weights=None), equilibration=None)
    want = np.concatenate([gyrations(x) for x in runs])
    np.testing.assert_allclose(estimate.mean, want.mean(), rtol=1e-4)
    assert estimate.n == 1378
    assert len(estimate.runs) == 3


def test_a_changing_box_counts_by_one_over_its_volume():
    """One pair at rest in boxes of 1000 and 8000 cubic angstrom: <V> is 4500, 1 / <1/V> is 1778."""
    from ensemblekit import md

    x = np.zeros((200, 2, 3))
    x[:, 1, 0] = 2.5
    boxes = np.tile([[10.0] * 3 + [90] * 3, [20.0] * 3 + [90] * 3], (100, 1))
    shell = 4 / 3 * np.pi * (27 - 8)
    for density, volume in (("1/<V>", 4500), ("<1/V>", 1 / np.mean([1 / 1000, 1 / 8000]))):
        g = average(universe(x, boxes), md.RDF("all", range=(2.0, 3.0), n_bins=1, density=density), equilibration=None)
        np.testing.assert_allclose(g.mean[0], volume / shell, rtol=1e-6)


def test_the_nearest_image_beyond_half_the_shortest_height():
    """In a skew box rounding in units of the cell does not find it."""
    from ensemblekit import md

    cell = np.array([[10.0, 0, 0], [6.0, 8.0, 0], [-7.0, 5.0, 9.0]])
    x = np.random.default_rng(3).uniform(-20, 20, (200, 2, 3)).astype(np.float32)
    estimate = average(universe(x, mda.lib.mdamath.triclinic_box(*cell)), md.Distance("index 0", "index 1"), whole=True)
    shifts = np.array(list(itertools.product(range(-9, 10), repeat=3))) @ cell
    d = (x[:, 1] - x[:, 0]).astype(float)
    want = np.linalg.norm(d[:, None] + shifts, axis=-1).min(1)
    np.testing.assert_allclose(estimate.series, want, atol=1e-4)
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max()
    assert want.max() > height / 2
    rounded = d - np.round(d @ np.linalg.inv(cell)) @ cell
    assert np.abs(np.linalg.norm(rounded, axis=1) - want).max() > 0.5       # the trap


def test_molecules_that_the_box_has_cut():
    """Dipole, radius of gyration and RMSD of a chain that lies across the corner are those of the whole chain."""
    from ensemblekit import md

    rng = np.random.default_rng(4)
    shape = np.cumsum(rng.normal(0, 1, (12, 3)), 0)
    x = shape + rng.normal(0, 0.2, (60, 12, 3)) + np.linspace(0, 40, 60)[:, None, None]
    how = {"charges": np.resize([0.5, -0.5], 12), "bonds": [(k, k + 1) for k in range(11)], "residues": np.zeros(12, int)}
    cell = np.array([[14.0, 0, 0], [5.0, 13.0, 0], [-4.0, 6.0, 12.0]])
    box = mda.lib.mdamath.triclinic_box(*cell)
    whole = universe(x, **how)
    cut = universe(x - np.floor(x @ np.linalg.inv(cell)) @ cell, box, **how)
    for observable in (md.Dipole(), md.RadiusOfGyration("all"), md.RMSD("all"), md.EndToEnd("all")):
        want, estimate = average(whole, observable, equilibration=None), average(cut, observable, equilibration=None)
        np.testing.assert_allclose(estimate.mean, want.mean, atol=1e-4)
        if want.series is not None:
            np.testing.assert_allclose(estimate.series, want.series, atol=1e-4)
    broken = average(cut, md.RadiusOfGyration("all"), whole=True, equilibration=None)
    assert abs(broken.mean - average(whole, md.RadiusOfGyration("all")).mean) > 1       # the trap
    without = {**how, "bonds": None}
    with pytest.raises(InputError, match="no bonds"):
        average(universe(x, box, **without), md.RadiusOfGyration("all"))


def test_a_million_float32_frames_lose_no_digits():
    """A running float32 sum of 1.5 million distances near 100 stops at 2^24 of its last place."""
    n = 1_500_000
    steps = np.random.default_rng(5).normal(100, 1e-3, n).astype(np.float32)
    x = np.zeros((n, 2, 3), np.float32)
    x[:, 1, 0] = steps
    from ensemblekit.md.observables.distances import Distance
    from ensemblekit.md.system import System
    from ensemblekit.md.topology import Topology

    source = ek.ArraySource.of({"position": x})
    ready = Distance("index 0", "index 1").prepare(System(source, Topology.of(universe(x[:1]).atoms)))
    moments = ek.reduce(source, {"it": (ready.map, ek.Moments())})["it"]
    exact = steps.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, exact.var(ddof=1), rtol=1e-6)
    assert abs(np.cumsum(steps)[-1] / n - exact.mean()) > 1e-3          # the trap


def foreign(path, x, *, group="atoms", step="fixed", edges=None, time=True):
    """An H5MD file as other programs write it."""
    import h5py

    with h5py.File(path, "w") as f:
        f.create_group("h5md").attrs["version"] = [1, 1]
        p = f.create_group(f"particles/{group}")
        box = p.create_group("box")
        box.attrs["dimension"], box.attrs["boundary"] = 3, np.array([b"periodic"] * 3)
        if edges is not None:
            box["edges"] = edges
        e = p.create_group("position")
        e["value"] = x
        e["value"].attrs["unit"] = "Angstrom"
        e["step"] = 10 if step == "fixed" else np.arange(len(x)) * 10
        if time:
            e["time"] = 0.5 if step == "fixed" else np.arange(len(x)) * 0.5
            e["time"].attrs["unit"] = "ps"


@pytest.mark.parametrize("how", [{"group": "system"}, {"step": "fixed"}, {"step": "each", "edges": [20.0, 20.0, 20.0]},
                                 {"step": "each", "time": False}, {"group": "trajectory", "step": "each", "time": False}])
def test_h5md_as_others_write_it(tmp_path, how):
    """Another group than "trajectory", a scalar step, fixed edges, no time: MDAnalysis' reader takes none of them."""
    x = walk(40).astype(np.float32)
    path = tmp_path / "other.h5md"
    foreign(path, x, **how)
    store = ek.open(path)
    name = next(name for name, field in store.fields.items() if field.shape == (4, 3))
    np.testing.assert_array_equal(np.asarray(store[name][:]), x)
    estimate = ek.average(store[name], map=lambda block: gyrations(block.only.astype(float)), equilibration=None)
    np.testing.assert_allclose(estimate.mean, gyrations(x.astype(float)).mean(), rtol=1e-12)


def test_a_dcd_whose_time_stands_still(tmp_path):
    """dt of 0 in the header: frames are counted, no correlation time or diffusion becomes zero or infinite."""
    from ensemblekit import md

    x = np.cumsum(np.random.default_rng(6).normal(0, 0.3, (200, 12, 3)), 0)
    u = universe(x)
    path = tmp_path / "still.dcd"
    with mda.Writer(str(path), 12, dt=0.0) as writer:
        for ts in u.trajectory:
            ts.time = 0.0
            writer.write(u.atoms)
    u.load_new(str(path))
    averages = md.average(u, {"rg": md.RadiusOfGyration("all"), "msd": md.MSD("all")}, quiet=True)
    assert np.isfinite(averages["rg"].correlation_time)
    assert averages["rg"].correlation_time > 0
    lags = averages["msd"].coords["lag"][0]
    assert (np.diff(lags) > 0).all()
    assert 0 < averages["msd"].diffusion.mean < np.inf


def test_xtc_rounds_to_a_hundredth_of_an_angstrom(tmp_path):
    """(From ten atoms on.) What trembles below that stands still in the file, and is said to; what does not keeps its mean."""
    from ensemblekit import md

    rng = np.random.default_rng(7)
    x = np.round(walk(1, 12), 2).repeat(100, 0)
    x += rng.normal(0, 2e-4, x.shape)
    paths = {}
    for suffix, frames in (("still", x), ("moving", walk(100, 12))):
        paths[suffix] = str(tmp_path / f"{suffix}.xtc")
        u = universe(frames)
        with mda.Writer(paths[suffix], 12) as writer:
            for _ in u.trajectory:
                writer.write(u.atoms)
    u = universe(walk(2, 12))
    u.load_new(paths["still"])
    still = average(u, md.Distance("index 0", "index 3"))
    assert "every snapshot is the same" in still.verdict
    u.load_new(paths["moving"])
    moving = average(u, md.Distance("index 0", "index 3"), equilibration=None)
    want = np.linalg.norm(walk(100, 12)[:, 3] - walk(100, 12)[:, 0], axis=1)
    np.testing.assert_allclose(moving.series, want, atol=0.0051 * 2 * np.sqrt(3))
    assert abs(moving.mean - want.mean()) < 0.003


# --- bad input ------------------------------------------------------------------------------------------------------------

def test_an_empty_or_unreadable_selection():
    from ensemblekit import md

    u = universe(walk(10), BOX, charges=np.zeros(4), bonds=[(0, 1)])
    for make in (lambda s: md.RadiusOfGyration(s), lambda s: md.RDF(s), lambda s: md.MSD(s), lambda s: md.Dipole(s),
                 lambda s: md.DensityProfile(s), lambda s: md.DielectricConstant(s, 300), lambda s: md.RMSD(s)):
        for text, why in (("name NOPE", "empty"), ("name (", "cannot be read")):
            with pytest.raises(InputError, match=why):
                average(u, make(text))


def test_what_is_missing_is_named_with_its_remedy():
    from ensemblekit import md

    bare = universe(walk(10))
    for observable, why in ((md.RDF("all"), "no box"), (md.DensityProfile(), "no box"), (md.Dipole(), "no charges"),
                            (md.DielectricConstant(temperature=300), "no charges"), (md.MSD(unwrap=True), "no box")):
        with pytest.raises(InputError, match=why):
            average(bare, observable)
    partly = np.tile(BOX, (10, 1))
    partly[6] = 0
    with pytest.raises(EnsemblekitError, match=r"frame 6|box"):
        average(universe(walk(10), partly), md.RDF("all", range=(0.0, 5.0)))


def test_a_truncated_xtc_loses_nothing_that_is_whole(tmp_path):
    from ensemblekit import md

    x = walk(60)
    u = universe(x)
    whole, cut = tmp_path / "whole.xtc", tmp_path / "cut.xtc"
    with mda.Writer(str(whole), 4) as writer:
        for _ in u.trajectory:
            writer.write(u.atoms)
    data = whole.read_bytes()
    cut.write_bytes(data[:len(data) - 20])
    pdb = tmp_path / "top.pdb"
    u.atoms.write(str(pdb))
    with pytest.warns(UserWarning, match=r"cut\.xtc"):
        source = md.read(pdb, cut)
    estimate = average(source, md.RadiusOfGyration("all", weights=None), equilibration=None)
    assert estimate.n == 59
    np.testing.assert_allclose(estimate.mean, gyrations(x[:59]).mean(), atol=5e-3)


def test_frames_of_different_size(tmp_path):
    from ensemblekit import md

    path = tmp_path / "grows.xyz"
    lines = []
    for k in range(6):
        n = 4 if k != 4 else 5
        lines += [str(n), "frame", *(f"C {i} {k} 0.5" for i in range(n))]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(EnsemblekitError, match=r"grows\.xyz"):
        average(md.read(path), md.RadiusOfGyration("all", weights=None))


@pytest.mark.parametrize("cell", [np.diag([40.0, 30.0, 35.0]), np.array([[40.0, 0, 0], [15, 30, 0], [-12, 10, 35]])])
def test_frames_whose_bonds_cross_no_face_are_left_alone_and_others_mended(cell):
    """A long chain over more than half the box, whole or cut at the faces: the same paths from each."""
    from ensemblekit.md.kernels_whole import make_whole, unbroken

    rng = np.random.default_rng(3)
    chain = np.cumsum(rng.normal(0.9, 0.4, (60, 3)), axis=0).astype(np.float32)[None].repeat(3, axis=0)
    boxes = np.repeat(cell.astype(np.float32)[None], 3, axis=0)
    walk, parent = np.arange(60), np.arange(60) - 1
    out = np.empty_like(chain)
    assert make_whole(chain, boxes, walk, parent, walk, out) == -1
    assert unbroken(chain, boxes, walk, parent)
    assert np.array_equal(out, chain)
    cut = chain.copy()
    fractional = cut[1] @ np.linalg.inv(cell)
    cut[1] -= (np.floor(fractional) @ cell).astype(np.float32)
    assert not unbroken(cut, boxes, walk, parent)
    assert make_whole(cut, boxes, walk, parent, walk, out) == -1
    np.testing.assert_allclose(out[1] - out[1, 0], chain[1] - chain[1, 0], atol=1e-4)


def test_mixed_radix_numbers_of_every_width():
    """Against bytes taken one by one, least significant first and the last one short, as the format has it."""
    from ensemblekit.md.kernels_xtc import divided, mixed_at

    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, 64).astype(np.uint8)
    bits = np.unpackbits(data)

    def plain(bit, count):
        value = shift = 0
        while count > 0:
            some = min(8, count)
            value |= int("".join(map(str, bits[bit:bit + some])), 2) << shift
            bit, count, shift = bit + some, count - some, shift + 8
        return value

    for count in range(1, 65):
        for bit in (0, 1, 7, 13, 64, 101):
            assert int(mixed_at(data, bit, count)) == plain(bit, count)
    for small in range(9, 32):
        radix = round(2 ** (small / 3))
        wide, inverse, shift = (int(x) for x in divided(radix, small))
        assert wide == radix
        for value in (0, 1, radix - 1, radix, (1 << small) - 1, *rng.integers(0, 1 << small, 200).tolist()):
            assert value * inverse < 1 << 64
            assert (value * inverse) >> shift == value // radix


def test_maps_that_do_not_fit_are_refused_before_memory_is_taken():
    import tracemalloc

    from ensemblekit import md

    u = mda.Universe.empty(20_000, n_residues=20_000, atom_resindex=np.arange(20_000), trajectory=True)
    u.add_TopologyAttr("names", ["CA"] * 20_000)
    u.add_TopologyAttr("resids", np.arange(20_000))
    u.atoms.positions = np.random.default_rng(0).uniform(0, 100, (20_000, 3))
    for observable in (md.DistanceMap("all"), md.ContactMap("all")):
        tracemalloc.start()
        with pytest.raises(InputError, match="too large to average"):
            md.average(u, {"map": observable}, quiet=True)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
        tracemalloc.stop()


def test_states_that_do_not_fit_are_refused_with_size_and_name(monkeypatch):
    from ensemblekit import md

    u = mda.Universe.empty(50, trajectory=True)
    u.add_TopologyAttr("names", ["CA"] * 50)
    u.load_new(np.random.default_rng(0).normal(size=(20, 50, 3)).astype(np.float32))
    assert md.average(u, {"map": lambda atoms: atoms.positions}, quiet=True)["map"].mean.shape == (50, 3)
    monkeypatch.setattr("ensemblekit.md.memory.MOST_BYTES", 1 << 10)
    with pytest.raises(InputError, match="'map' has 150 numbers a frame"):
        md.average(u, {"map": lambda atoms: atoms.positions}, quiet=True)
