"""Weights of frames from a file beside the trajectory: biases of enhanced runs, joined to the frames by time."""

from __future__ import annotations

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.errors import InputError, StatisticsError

mda = pytest.importorskip("MDAnalysis")
KT = 8.31446261815324e-3 * 300

N = 200
RNG = np.random.default_rng(6)
HEIGHT = RNG.normal(10, 1, N)
BIAS = RNG.normal(0, 2.0, (N - 1) * 4 + 1)          # a row every 0.5 ps, a frame every 2 ps
WANT = np.exp(BIAS[::4] / KT) @ HEIGHT / np.exp(BIAS[::4] / KT).sum()


def height(atoms):
    return atoms.positions[0, 2]


def trajectory(dt=2.0, first=0.0):
    u = mda.Universe.empty(1, trajectory=True)
    x = np.zeros((N, 1, 3), np.float32)
    x[:, 0, 2] = HEIGHT
    return u.load_new(x, dt=dt, time_offset=first)


def colvar(path, *columns, head="metad.rbias", times=None):
    times = np.arange(len(columns[0])) * 0.5 if times is None else times
    rows = np.column_stack([times, *columns])
    path.write_text(f"#! FIELDS time {head}\n" + "\n".join(" ".join(f"{v:.9f}" for v in row) for row in rows) + "\n")
    return path


def mean(u, weights, **window):
    return md.average(u, {"z": height}, frame_weights=weights, equilibration=None, **window)["z"]


def test_a_bias_becomes_weights_joined_by_time(tmp_path):
    rows = md.columns(colvar(tmp_path / "COLVAR", BIAS, np.abs(HEIGHT).repeat(4)[:len(BIAS)], head="metad.rbias w"))
    u = trajectory()
    estimate = mean(u, rows.weights("metad.rbias", temperature=300))
    assert estimate.mean == pytest.approx(WANT, abs=1e-6)
    assert estimate.n_eff < 0.8 * N
    w = np.exp(BIAS[::4] / KT)
    assert mean(u, w).interval == pytest.approx(estimate.interval, abs=1e-6)
    assert mean(u, rows.weights("metad.rbias", 300), start=20, step=3).mean == pytest.approx(
        w[20::3] @ HEIGHT[20::3] / w[20::3].sum(), abs=1e-6)
    assert mean(u, rows.weights("w")).mean == pytest.approx(HEIGHT @ HEIGHT / HEIGHT.sum(), abs=1e-5)
    runs = ek.ReplicaSet((md.read(u, stop=100), md.read(u, start=100)))
    both = mean(runs, [rows.weights("metad.rbias", 300)] * 2)
    parts = [np.average(HEIGHT[part], weights=w[part]) for part in (slice(100), slice(100, None))]
    assert both.mean == pytest.approx(np.mean(parts), abs=1e-6)
    with pytest.raises(InputError, match="a list with one array each"):
        mean(runs, rows.weights("metad.rbias", 300))


@pytest.mark.parametrize(("unit", "kt"), [("kcal/mol", KT / 4.184), ("eV", 8.617333262e-5 * 300), ("kT", 1.0), ("kJ/mol", KT)])
def test_units_of_a_bias(tmp_path, unit, kt):
    rows = md.columns(colvar(tmp_path / "COLVAR", BIAS * kt / KT))
    assert mean(trajectory(), rows.weights("metad.rbias", 300, unit=unit)).mean == pytest.approx(WANT, abs=1e-5)


def test_logarithms_of_any_size_and_biases_that_add(tmp_path):
    rows = md.columns(colvar(tmp_path / "COLVAR", BIAS / KT + 5000.0, BIAS - 1.0, np.ones(len(BIAS)), head="logw a b.bias"))
    u = trajectory()
    for weights in (rows.weights("logw", log=True), rows.weights(["a", "b.bias"], 300), rows.weights(("a", "b.bias"), 300.0)):
        assert mean(u, weights).mean == pytest.approx(WANT, abs=1e-5)


def test_a_column_of_the_same_file(tmp_path):
    phi = RNG.normal(size=len(BIAS))
    path = colvar(tmp_path / "COLVAR", phi, BIAS - BIAS.min(), head="phi metad.rbias")
    columns = md.columns(path, weights="metad.rbias", temperature=300)
    want = np.average(phi, weights=np.exp(BIAS / KT))
    assert ek.average(columns["phi"], equilibration=None).mean == pytest.approx(want, abs=1e-6)
    assert "metad.rbias" in columns       # a quantity of its own
    with pytest.raises(InputError, match="looks like a bias"):
        md.columns(path, weights="metad.rbias")
    with pytest.raises(InputError, match="goes with weights="):
        md.columns(path, temperature=300)


@pytest.mark.parametrize(("times", "match"), [
    (np.arange(797) * 0.5 + 0.7, r"200 of 200 frames have no row of their time in metad.rbias of COLVAR \(.* frame 0"),
    (np.arange(100) * 0.5, r"175 of 200 .*begin=0, end=49.5"), (np.arange(100) * 4.0, r"one of 2 frames \(step=2\)"),
    (np.arange(797) * 500.0, "where times are counted anew|have no row")])
def test_frames_without_a_row_are_refused_with_the_remedy(tmp_path, times, match):
    rows = md.columns(colvar(tmp_path / "COLVAR", BIAS[:len(times)], times=times))
    with pytest.raises(InputError, match=match):
        mean(trajectory(), rows.weights("metad.rbias", 300))
    if "step=2" in match:
        assert np.isfinite(mean(trajectory(), rows.weights("metad.rbias", 300), step=2).mean)
    if "end=49.5" in match:
        assert mean(trajectory(), rows.weights("metad.rbias", 300), end=49.5).n == 25


def test_times_that_the_trajectory_rounds(tmp_path):
    late = 1.0e6
    rows = md.columns(colvar(tmp_path / "COLVAR", BIAS, times=late + np.arange(len(BIAS)) * 0.5))
    weights = rows.weights("metad.rbias", 300)
    kept = (late + np.arange(N) * 2.0 + 0.03).astype(np.float32).astype(float)      # a sixteenth of a ps apart
    np.testing.assert_allclose(weights.at(kept, N), weights.at(late + np.arange(N) * 2.0, N))


def test_without_times_rows_and_frames_are_as_many(tmp_path):
    (tmp_path / "w.dat").write_text("#! FIELDS w\n" + "\n".join(f"{v:.9f}" for v in HEIGHT) + "\n")
    weights = md.columns(tmp_path / "w.dat").weights("w")
    assert mean(trajectory(), weights).mean == pytest.approx(HEIGHT @ HEIGHT / HEIGHT.sum(), abs=1e-5)
    with pytest.raises(InputError, match=r"has 200 rows and there are 50 frames.*no times"):
        mean(trajectory(), weights, start=150)


def test_what_is_no_weight(tmp_path):
    negative, broken = BIAS.copy(), BIAS.copy()
    broken[7] = np.nan
    rows = md.columns(colvar(tmp_path / "COLVAR", negative, broken, -np.inf * np.ones(len(BIAS)), head="v broken none"))
    for words, options, match in ((("v",), {}, "is negative.*temperature=300"), (("broken", 300), {}, r"row 8 \(3.5 ps\)"),
                                  (("v", -3), {}, "above 0, in K"), (("v", 300), {"unit": "K"}, "kcal/mol"),
                                  ((["v", "broken"],), {}, "nan in row 8"), (("v", 300), {"log": True}, "one of the two")):
        with pytest.raises(InputError, match=match):
            rows.weights(*words, **options)
    with pytest.raises(KeyError, match="'v', 'broken'"):
        rows.weights("u")
    with pytest.raises(StatisticsError, match="-inf"):
        mean(trajectory(), rows.weights("none", log=True))
    for thing in (rows["v"], rows, str(tmp_path / "COLVAR")):
        with pytest.raises(InputError, match=r"md.columns\(file\).weights\(name, temperature=300\)"):
            mean(trajectory(), thing)


def test_two_rows_of_one_time(tmp_path):
    times = np.arange(len(BIAS)) * 0.5
    times[5] = times[4]
    rows = md.columns(colvar(tmp_path / "COLVAR", BIAS, times=times))
    with pytest.raises(InputError, match="two rows at 2 ps"):
        mean(trajectory(), rows.weights("metad.rbias", 300))


def test_in_the_shell(tmp_path):
    from typer.testing import CliRunner

    from ensemblekit.cli import app

    def run(*words):
        result = CliRunner().invoke(app, list(map(str, words)))
        return result.output if result.exit_code == 0 else f"refused: {result.output}"

    data = pytest.importorskip("MDAnalysisTests.datafiles")
    times = np.arange(0, 99, 0.5)
    bias = RNG.normal(0, 2.0, len(times))
    path = colvar(tmp_path / "COLVAR", bias, RNG.normal(5, 1, len(times)), times=times, head="metad.rbias d")
    command = ("md", "average", data.PSF, data.DCD, "--do", "d=Distance('bynum 1','bynum 1000', weights=None)",
               "--equilibration", "none", "--json", tmp_path / "a.json", "--overwrite")
    out = run(*command, "--weights", f"{path}:metad.rbias", "--temperature", 300)
    assert "d " in out
    import json

    got = json.loads((tmp_path / "a.json").read_text())["results"]["estimates"]["d"]["mean"]
    u = mda.Universe(data.PSF, data.DCD)
    d = [np.linalg.norm(u.atoms[0].position - u.atoms[999].position) for _ in u.trajectory]
    assert got == pytest.approx(np.average(d, weights=np.exp(bias[2::2] / KT)), rel=1e-4)
    assert "refused" in (said := run(*command, "--weights", f"{path}:metad.rbias"))
    assert "--temperature" in said
    assert "FILE:COLUMN" in run(*command, "--temperature", 300)
    assert "COLVAR:metad.rbias" in run(*command, "--weights", "COLVAR")
    assert "once for each of the 1 runs" in run(*command, *["--weights", f"{path}:d"] * 2)
    alone = run("average", path, "d", "--weights", f"{path}:metad.rbias", "--temperature", "300")
    assert "refused" not in alone
    weighted = ek.average(md.columns(path, weights="metad.rbias", temperature=300)["d"])
    assert str(weighted).split(" (")[0] in alone
