"""md.average: one read, honest answers, and every way to say which frames and how much they count."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import InputError, ReductionError, StatisticsError

pytest.importorskip("MDAnalysis")
data = pytest.importorskip("MDAnalysisTests.datafiles")

from ensemblekit import md  # noqa: E402
from ensemblekit.md.observables.base import Mean, Measurement, OfMean, OfStates  # noqa: E402
from ensemblekit.md.system import System  # noqa: E402
from ensemblekit.md.topology import mdanalysis  # noqa: E402
from ensemblekit.md.whole import MadeWhole  # noqa: E402
from ensemblekit.source import Block  # noqa: E402
from ensemblekit.source_cuts import WHOLE  # noqa: E402

RG = md.RadiusOfGyration("protein")


@pytest.fixture(scope="module")
def adk(tmp_path_factory):
    return md.ingest(data.PSF, data.DCD, tmp_path_factory.mktemp("md") / "adk.h5md")


@pytest.fixture(scope="module")
def live():
    with mdanalysis() as mda:
        yield mda.Universe(data.PSF, data.DCD)


class Column:
    """The x of one atom, as an observable."""

    def __init__(self, atom=0, **settings):
        self.atom, self.settings = atom, settings

    def prepare(self, system):
        return Measurement(lambda block: block.fields["position"][:, self.atom, 0].astype(float), Mean(), **self.settings)


def chain(values, weights=None):
    """A source of one atom whose x are the values."""
    from MDAnalysis.coordinates.memory import MemoryReader

    with mdanalysis() as mda:
        u = mda.Universe.empty(1, trajectory=False)
        x = np.zeros((len(values), 1, 3), np.float32)
        x[:, 0, 0] = values
        u.trajectory = MemoryReader(x, order="fac", dt=2.0)
    return md.read(u)


def test_adenylate_kinase_is_reported_as_not_converged_with_the_published_mean(adk):
    """MDAnalysis: Rg 18.2654955170; 98 frames of an opening are worth about 3."""
    estimate = md.average(adk, {"rg": RG})["rg"]
    assert estimate.mean == pytest.approx(18.2654955170, rel=1e-6)
    assert not estimate.converged
    assert 2 < estimate.n_eff < 4
    assert (estimate.series.shape, estimate.times.shape, estimate.unit, estimate.time_unit) == ((98,), (98,), "Angstrom", "ps")
    assert np.std(estimate.series, ddof=1) == pytest.approx(1.0203954716, rel=1e-6)


def test_every_kind_of_source_answers_alike(adk, live, tmp_path):
    with mdanalysis() as mda:
        held = mda.Universe(data.PSF, data.DCD, in_memory=True)
    want = md.average(adk, {"rg": RG, "rmsf": md.RMSF("name CA")}, quiet=True)
    for source in (adk.path, live, live.atoms, held, md.read(data.PSF, data.DCD)):
        got = md.average(source, {"rg": RG, "rmsf": md.RMSF("name CA")}, quiet=True)
        assert got["rg"].mean == want["rg"].mean
        assert got["rg"].stderr == want["rg"].stderr
        np.testing.assert_allclose(got["rmsf"].mean, want["rmsf"].mean, rtol=1e-9)
    part = md.average(live.select_atoms("protein and resid 1:60"), {"rg": md.RadiusOfGyration("all")})
    assert part["rg"].mean == pytest.approx(md.average(adk, {"rg": md.RadiusOfGyration("resid 1:60")})["rg"].mean, rel=1e-12)


def test_every_engine_gives_the_same_bits(adk):
    answers = [md.average(adk, {"rg": RG, "end": md.EndToEnd("name CA")}, engine=engine)
               for engine in (ek.Serial(), ek.Threads(3), ek.Processes(2))]
    for other in answers[1:]:
        assert (other["rg"].mean, other["rg"].stderr) == (answers[0]["rg"].mean, answers[0]["rg"].stderr)


def test_the_passes_are_counted_and_told(adk, live, capsys, caplog):
    assert md.average(adk, {"rg": RG, "end": md.EndToEnd("name CA")}).passes == ("averages",)
    averages = md.average(adk, {"rg": RG, "rmsf": md.RMSF("name CA")})
    assert averages.passes == ("mean structure of RMSF", "averages")
    assert not caplog.messages
    with caplog.at_level("INFO", "ensemblekit"):
        md.average(adk, {"rg": RG, "rmsf": md.RMSF("name CA")})
    assert "2 passes over 98 frames: mean structure of RMSF, averages" in caplog.text
    assert capsys.readouterr() == ("", "")
    averages = md.average(live, {"rmsf": md.RMSF("name CA")})
    assert averages.passes[0].startswith("copy into a temporary store")
    assert "3 passes" in str(averages)


def test_the_temporary_store_goes_away(live, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    md.average(live, {"rmsf": md.RMSF("name CA")}, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_window_of_a_store_knows_its_atoms(adk):
    late = md.average(ek.open(adk.path).window(40), {"rg": RG}, equilibration=None)["rg"]
    assert late.mean == md.average(adk, {"rg": RG}, start=40, equilibration=None)["rg"].mean


def test_windows(adk):
    series = md.average(adk, {"rg": RG}, equilibration=None)["rg"].series
    for choice, rows in (({"start": 10, "stop": 90, "step": 4}, slice(10, 90, 4)), ({"frames": [1, 5, 9]}, [1, 5, 9]),
                         ({"begin": 20.0, "end": 60.0}, slice(19, 60)), ({"frames": np.arange(98) > 70}, slice(71, 98))):
        estimate = md.average(adk, {"rg": RG}, equilibration=None, **choice)["rg"]
        np.testing.assert_array_equal(estimate.series, series[rows])
    assert md.average(adk, {"rg": RG}, equilibration=30)["rg"].n_discarded == 30
    late = md.average(adk, {"rg": RG}, equilibration=30.0)["rg"]
    assert late.n_discarded == 30
    assert late.equilibration_time == pytest.approx(30, rel=1e-5)


def test_weights_are_those_of_the_frames(adk):
    w = np.random.default_rng(3).uniform(0.2, 2, 98)
    series = md.average(adk, {"rg": RG}, equilibration=None)["rg"].series
    estimate = md.average(adk, {"rg": RG}, frame_weights=w, equilibration=None)["rg"]
    assert estimate.mean == pytest.approx(w @ series / w.sum(), rel=1e-12)
    half = md.average(adk, {"rg": RG}, frame_weights=w, start=40, equilibration=None)["rg"]
    short = md.average(adk, {"rg": RG}, frame_weights=w[40:], start=40, equilibration=None)["rg"]
    assert half.mean == short.mean == pytest.approx(w[40:] @ series[40:] / w[40:].sum(), rel=1e-12)
    direct = md.average(md.read(data.PSF, data.DCD), {"rg": RG, "rmsf": md.RMSF("name CA")}, frame_weights=w, quiet=True)
    stored = md.average(adk, {"rg": RG, "rmsf": md.RMSF("name CA")}, frame_weights=w, quiet=True)
    np.testing.assert_allclose(direct["rmsf"].mean, stored["rmsf"].mean, rtol=1e-9)
    twice = md.average(adk, {"rg": RG}, frame_weights=np.where(np.arange(98) == 7, 1.0, 0.0), equilibration=None)["rg"]
    assert twice.mean == pytest.approx(series[7], rel=1e-12)
    assert not twice.converged


@pytest.mark.parametrize(("weights", "match"), [
    (np.ones(97), r"one number a frame, shape \(98,\); got shape \(97,\)"), (np.full(98, np.nan), "finite"),
    (-np.ones(98), "negative"), (np.zeros(98), "all frame_weights are zero"), ([["a"] * 98], "holds no numbers")])
def test_weights_that_do_not_fit(adk, weights, match):
    with pytest.raises(InputError, match=match):
        md.average(adk, {"rg": RG}, frame_weights=weights)


def test_replicas_have_variances_within_and_between_and_a_verdict():
    runs = md.read(data.PSF, replicas=[data.DCD, data.DCD2])
    averages = md.average(runs, {"rg": RG, "end": md.EndToEnd("name CA")})
    rg = averages["rg"]
    assert [run.n + run.n_discarded for run in rg.runs] == [98, 102]
    assert set(rg.estimators) == {"within runs", "between runs"}
    assert rg.ergodicity.verdict == "cannot say"
    assert averages.n_runs == 2
    assert "replicas" in str(averages)
    alone = md.average(md.read(data.PSF, data.DCD2), {"rg": RG})["rg"]
    assert rg.runs[1].mean == alone.mean
    weighted = md.average(runs, {"rg": RG}, frame_weights=[np.ones(98), np.ones(102)])["rg"]
    assert weighted.mean == pytest.approx(rg.mean, rel=1e-12)
    with pytest.raises(InputError, match="list with one array each"):
        md.average(runs, {"rg": RG}, frame_weights=np.ones(98))


def test_replicas_that_differ_are_told_apart():
    rng = np.random.default_rng(4)
    runs = ek.ReplicaSet(tuple(chain(rng.normal(mean, 1, 400)) for mean in (0.0, 0.0, 3.0)))
    estimate = md.average(runs, {"x": Column()})["x"]
    assert estimate.ergodicity.verdict == "not ergodic"
    assert "disagree" in estimate.verdict
    alike = ek.ReplicaSet(tuple(chain(rng.normal(0, 1, 400)) for _ in range(3)))
    assert md.average(alike, {"x": Column()})["x"].ergodicity.verdict == "ergodic within error"


def test_functions_of_a_mean_have_the_errors_of_the_delta_method():
    """A variance from first and second moments of correlated numbers, against its series by blocking."""
    rng = np.random.default_rng(5)
    x = np.zeros(4096)
    for k in range(1, len(x)):
        x[k] = 0.9 * x[k - 1] + rng.normal()

    class Variance(Column):
        def prepare(self, system):
            def moments(block):
                one = super(Variance, self).prepare(system).map(block)
                return np.stack([one, one**2], axis=1)

            return Measurement(moments, {"": OfMean(lambda m: m[1] - m[0] ** 2, "Angstrom2"),
                                         "root": OfMean(lambda m: np.sqrt(m[1] - m[0] ** 2), "Angstrom")})

    averages = md.average(chain(x), {"v": Variance()}, equilibration=None)
    v = averages["v"]
    assert v.mean == pytest.approx(x.var(), rel=1e-4)
    by_series = ek.average((x - x.mean()) ** 2, equilibration=None)
    assert v.stderr == pytest.approx(by_series.stderr, rel=0.35)
    assert averages["v.root"].mean == v.root.mean == pytest.approx(x.std(), rel=1e-4)
    assert v.root.stderr == pytest.approx(v.stderr / (2 * v.root.mean), rel=0.05)
    with pytest.raises(AttributeError, match="with it come root"):
        _ = v.nothing


def test_an_observable_may_have_any_name_and_several_quantities():
    """"clock" is a name like others, and of two quantities that are the same each is what it is alone."""
    x = np.random.default_rng(8).normal(3, 1, 300)

    class Both(Column):
        def prepare(self, system):
            return Measurement(super().prepare(system).map, {"": Mean("nm"), "square": OfMean(lambda m: m**2, "nm2"),
                                                             "again": Mean("pm")})

    averages = md.average(chain(x), {"clock": Column(), "both": Both()}, equilibration=None)
    assert averages["clock"].mean == pytest.approx(x.mean(), rel=1e-5)
    assert (averages["both"].unit, averages["both.again"].unit, averages["both.square"].unit) == ("nm", "pm", "nm2")
    assert averages["both.again"].stderr == averages["both"].stderr == averages["clock"].stderr
    assert averages["both.square"].mean == pytest.approx(averages["both"].mean ** 2, rel=1e-9)
    with pytest.raises(InputError, match='the observable itself by the name ""'):
        Measurement(Column().prepare(None).map, {"it": Mean()})


def test_reducers_of_one_name_are_of_one_kind():
    class Mixed(Column):
        def prepare(self, system):
            return Measurement(super().prepare(system).map, {
                "": OfStates(lambda reading: reading.run.estimate("m", lambda m: m.mean), {"m": ek.Moments()}),
                "high": OfStates(lambda reading: reading.run.estimate("m", lambda m: m.maximum), {"m": ek.Extremes()})})

    with pytest.raises(InputError, match="keep 'm' by different reducers, Moments and Extremes"):
        md.average(chain(np.arange(50.0)), {"x": Mixed()})


def test_frames_that_are_not_finite_are_told():
    x = np.random.default_rng(6).normal(size=100)
    x[17] = np.nan
    estimate = md.average(chain(x), {"x": Column()})["x"]
    assert not estimate.converged
    assert "1 of 100 snapshots are not finite (first: 17)" in estimate.verdict


# -- whole molecules -----------------------------------------------------------------------------------------------------

def boxed(triclinic, seed=7):
    """Two chains that wander through a box: (source of wrapped frames, positions that were never wrapped)."""
    from MDAnalysis.coordinates.memory import MemoryReader

    rng = np.random.default_rng(seed)
    box = np.array([[20.0, 0, 0], [6, 19, 0], [-5, 4, 18]]) if triclinic else np.diag([20.0, 19, 18])
    whole = np.cumsum(rng.normal(size=(2, 12, 3)), axis=1)[None] + np.cumsum(rng.normal(0, 3, (40, 2, 1, 3)), axis=0)
    whole = whole.reshape(40, 24, 3) + 5
    inside = whole - np.floor(whole @ np.linalg.inv(box)) @ box
    with mdanalysis() as mda:
        from MDAnalysis.lib.mdamath import triclinic_box

        u = mda.Universe.empty(24, n_residues=2, atom_resindex=np.repeat([0, 1], 12), residue_segindex=[0, 0], trajectory=False)
        u.add_TopologyAttr("masses", rng.uniform(1, 16, 24))
        u.add_TopologyAttr("resids", [1, 2])
        u.trajectory = MemoryReader(inside.astype(np.float32), order="fac", dimensions=np.tile(triclinic_box(*box), (40, 1)))
        bare = md.read(u)
        # a chain whose bonds go both ways round its middle
        pairs = [(a, a + 1) for a in (*range(11), *range(12, 23))]
        u.add_TopologyAttr("bonds", pairs[::-1])
        return md.read(u), bare, whole, u.atoms.masses.copy()


@pytest.mark.parametrize("triclinic", [False, True])
def test_molecules_cut_by_the_box_are_made_whole(triclinic):
    source, bare, whole, masses = boxed(triclinic)
    averages = md.average(source, {"one": md.RadiusOfGyration("resid 1"), "ends": md.EndToEnd("resid 2 and index 12 23")},
                          equilibration=None)
    x, m = whole[:, :12], masses[:12] / masses[:12].sum()
    centre = np.einsum("a,nai->ni", m, x)[:, None]
    np.testing.assert_allclose(averages["one"].series, np.sqrt(np.einsum("a,nai->n", m, (x - centre) ** 2)), rtol=1e-5)
    gather = System(source, source.topology).gather(np.array([23, 3, 0]))     # on the way lie atoms that nobody asked for
    blocks = [block for piece in source.pieces(["position", "box"], "time", False, 1 << 20) for block in piece.blocks()]
    positions = np.concatenate([gather(b)[0][:, gather(b)[1]] for b in blocks])
    np.testing.assert_allclose(positions[:, 1] - positions[:, 2], whole[:, 3] - whole[:, 0], atol=1e-4)
    with pytest.raises(InputError, match=r"periodic box and the topology no bonds.*guess_bonds=True.*whole=True"):
        md.average(bare, {"one": md.RadiusOfGyration("resid 1")})
    as_is = md.average(bare, {"one": md.RadiusOfGyration("resid 1")}, whole=True)["one"]
    assert as_is.mean > averages["one"].mean + 0.5


def test_what_is_whole_stays_as_it_is_to_the_bit():
    source = boxed(False)[0]
    gather = MadeWhole(np.arange(24), source.topology)
    x = (np.random.default_rng(1).normal(size=(3, 24, 3)) * 0.1 + 10).astype(np.float32)
    box = np.tile(np.diag([20.0, 19, 18]).astype(np.float32), (3, 1, 1))
    np.testing.assert_array_equal(gather(Block({"position": x, "box": box}, 0, WHOLE, None, None))[0], x)
    box[1] = 0
    with pytest.raises(InputError, match="box of frame 6 has no volume"):
        gather(Block({"position": x + 1, "box": box}, 5, WHOLE, None, None))


# -- functions and analyses ----------------------------------------------------------------------------------------------

def test_a_plain_function_is_an_observable(adk, live):
    averages = md.average(adk, {"rg": lambda atoms: atoms.select_atoms("protein").radius_of_gyration(),
                                "centre": lambda atoms: atoms.center_of_mass(),
                                "time": lambda atoms: atoms.universe.trajectory.time}, equilibration=None)
    assert averages["rg"].mean == pytest.approx(18.2654955170, rel=1e-6)
    assert averages["centre"].mean.shape == (3,)
    np.testing.assert_allclose(averages["time"].series, averages["rg"].times)


@pytest.mark.parametrize(("function", "match"), [
    (lambda atoms: None, "returns a number or an array"), (lambda atoms: np.zeros(int(atoms.universe.trajectory.time) % 2 + 1),
                                                           "same shape for every frame")])
def test_functions_that_return_nonsense(adk, function, match):
    with pytest.raises(ReductionError, match=match):
        md.average(adk, {"f": function})


def test_analyses_of_mdanalysis_per_frame_and_per_block(adk, live):
    from MDAnalysis.analysis.rms import RMSD, RMSF

    make = md.from_analysis(lambda u: RMSD(u, select="name CA"), value=lambda a: a.results.rmsd[:, 2], unit="Angstrom")
    estimate = md.average(adk, {"rmsd": make}, equilibration=None)["rmsd"]
    with mdanalysis():
        theirs = RMSD(live, select="name CA").run().results.rmsd[:, 2]
    np.testing.assert_allclose(estimate.series, theirs, atol=1e-7)       # the reference is the first frame of the run
    blocks = md.from_analysis(lambda u: RMSF(u.select_atoms("name CA")), value=lambda a: a.results.rmsf, unit="Angstrom",
                              per="block", n_blocks=7)
    estimate = md.average(adk, {"rmsf": blocks}, quiet=True)
    assert estimate["rmsf"].mean.shape == (214,)
    with mdanalysis():
        parts = [RMSF(live.select_atoms("name CA")).run(start=a, stop=a + 14).results.rmsf for a in range(0, 98, 14)]
    np.testing.assert_allclose(estimate["rmsf"].mean, np.mean(parts, axis=0), rtol=1e-6)
    assert estimate.passes == ("7 blocks of an analysis", "averages")


def test_a_bare_analysis_is_refused_with_the_line_that_works(adk, live):
    from MDAnalysis.analysis.rms import RMSD

    with mdanalysis():
        bare = RMSD(live, select="name CA")
    with pytest.raises(InputError, match=r"from_analysis\(lambda u: RMSD\(u, \.\.\.\), value="):
        md.average(adk, {"rmsd": bare})
    with pytest.raises(InputError, match=r"from_analysis\(lambda u: RMSD"):
        md.from_analysis(bare, value=lambda a: a.results.rmsd)
    with pytest.raises(InputError, match=r"lambda u: RMSD"):
        md.from_analysis(RMSD, value=lambda a: a.results.rmsd)
    with pytest.raises(ReductionError, match="another Universe"):
        md.average(adk, {"r": md.from_analysis(lambda u: RMSD(live, select="name CA"), value=lambda a: a.results.rmsd)})
    with pytest.raises(ReductionError, match='per="block"'):
        md.average(adk, {"r": md.from_analysis(lambda u: RMSD(u, select="name CA"), value=lambda a: a.results.rmsd[0])})


# -- bad input -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("observables", "match"), [
    ({}, "at least one observable"), ({"a.b": RG}, "without a dot"), ({"rg": md.RadiusOfGyration}, "is a class"),
    ({"rg": 7}, "is no observable"), ({"rg": md.RadiusOfGyration("name XYZ")}, "is empty"), (RG, "at least one observable")])
def test_observables_that_cannot_be(adk, observables, match):
    with pytest.raises(InputError, match=match):
        md.average(adk, observables)


@pytest.mark.parametrize(("source", "match"), [
    (data.DCD, "is no store: read it with its topology"), (7, "pass a topology file"), ([7], "a source is the path")])
def test_sources_that_cannot_be(source, match):
    with pytest.raises(InputError, match=match):
        md.average(source, {"rg": RG})


def test_a_store_without_topology_says_how_to_get_one(tmp_path):
    with ek.create(tmp_path / "bare.h5md", {"position": ek.Field((4, 3), "f4", "Angstrom", kind="position")}) as store:
        store.append({"position": np.zeros((4, 3))})
    with pytest.raises(InputError, match=r"no topology; make it with md\.ingest"):
        md.average(tmp_path / "bare.h5md", {"rg": RG})


def test_no_frames_at_all(tmp_path, adk):
    with pytest.raises((InputError, StatisticsError)):
        md.average(adk, {"rg": RG}, start=98)
    with pytest.raises(InputError, match="confidence"):
        md.average(adk, {"rg": RG}, confidence=95)
    with pytest.raises(InputError, match="equilibration"):
        md.average(adk, {"rg": RG}, equilibration="later")


def test_times_that_run_backwards_are_counted_with_a_warning(tmp_path):
    from MDAnalysis.coordinates.memory import MemoryReader  # noqa: F401

    with mdanalysis() as mda, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        u = mda.Universe.empty(12, trajectory=True)
        with mda.Writer(str(tmp_path / "w.trr"), 12) as writer:
            for k in range(20):
                u.atoms.positions = np.random.default_rng(k).normal(size=(12, 3))
                u.trajectory.ts.time = float(k % 10)
                writer.write(u.atoms)
    (tmp_path / "s.xyz").write_text("12\n\n" + "C 0 0 0\n" * 12)
    with pytest.warns(UserWarning, match="run backwards at frame 10"):
        estimate = md.average(md.read(tmp_path / "s.xyz", tmp_path / "w.trr"), {"end": md.EndToEnd("all")})["end"]
    assert estimate.n + estimate.n_discarded == 20
    assert estimate.times is None


# -- the result ----------------------------------------------------------------------------------------------------------

def test_the_result_is_a_mapping_that_prints_and_goes_into_files(adk, tmp_path):
    averages = md.average(adk, {"rg": RG, "rmsf": md.RMSF("name CA", corrected=False)}, quiet=True)
    assert set(averages) >= {"rg", "rmsf"}
    assert "rg" in averages
    text = str(averages)
    assert "18.3 ± 3.1 Å" in text
    assert "NOT CONVERGED" in text
    assert max(map(len, text.splitlines())) < 140
    averages.to_csv(tmp_path / "a.csv")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].startswith("observable,coordinate,mean,stderr,low,high,unit")
    assert lines[1].startswith("rg,,18.26549")
    assert any(line.startswith("rmsf,residue=149,5.769") for line in lines)
    json.dumps(averages.to_dict(), allow_nan=False)
    assert "<table>" in averages._repr_html_()
    with pytest.raises(KeyError, match="rg"):
        averages["nothing"]


def test_the_result_as_a_dataframe(adk):
    pytest.importorskip("pandas")
    table = md.average(adk, {"rg": RG, "end": md.EndToEnd("name CA")}).to_dataframe()
    assert table["observable"].tolist() == ["rg", "end"]
    assert table["unit"].tolist() == ["Angstrom"] * 2


def test_figures_show_what_was_asked_for(adk):
    pytest.importorskip("matplotlib")
    from ensemblekit.plot import md as draw

    result = md.average(adk, {"rg": RG, "rmsf": md.RMSF("name CA"), "map": md.DistanceMap("name CA and resid 1:9")}, quiet=True)
    axes = result.plot()
    assert [ax.get_ylabel() for ax in axes[:2]] == ["rg (Å)", "rmsf (Å)"]
    assert "time (ps)" in axes[0].get_xlabel()
    both = md.average(md.read(data.PSF, replicas=[data.DCD, data.DCD2]), {"rg": RG})
    matrix, edges = md.sampled_rmsd(md.read(data.PSF, replicas=[data.DCD, data.DCD2]), "name CA", n=40)
    assert matrix.shape == (edges[-1], edges[-1])
    axes = draw.report(both, matrix, edges, title="adk")
    words = [text.get_text() for ax in axes for text in ax.texts]
    assert "cannot say" in words
    assert len(draw.convergence(both["rg"], name="rg")) == 3


def test_the_first_frame_of_several_runs_is_that_of_the_first():
    import MDAnalysis as mda

    def run(places):
        x = np.zeros((len(places), 3, 3), np.float32)
        x[:, 1, 0], x[:, 2, 1] = 1.0, places
        u = mda.Universe.empty(3, trajectory=True)
        u.load_new(x)
        return u

    from ensemblekit.md.frames import as_frames, topology_of
    from ensemblekit.md.system import System

    frames = ek.ReplicaSet.of([as_frames(run([1.0, 2.0])), as_frames(run([3.0, 4.0]))])
    with System(frames, topology_of(frames)) as system:
        assert system.first_frame().position[2, 1] == 1.0
