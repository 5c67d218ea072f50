import threading
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.cli import app

pytestmark = pytest.mark.filterwarnings("ignore:the cut after mode")     # between modes of noise, which all are alike


def wave(n=80):
    t, y, x = np.ogrid[0:5:n * 1j, 0:1:12j, 0:4:20j]
    phase = 3 * x - 2 * np.pi * t
    u = np.stack([1 + y + 0.3 * np.sin(phase) * np.sin(np.pi * y), 0.2 * np.cos(phase) + 0 * y], -1)
    return (u + 1e-3 * np.random.default_rng(0).standard_normal(u.shape)).astype("f4")


def store(path, u, every=0.0):
    with ek.create(path, {"U": ek.Field(u.shape[1:], "f4", "m s-1")}, time_unit="s") as opened:
        for k in range(len(u)):
            opened.append({"U": u[k]}, time=0.1 * k)
            time.sleep(every)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store("run.h5", wave())

    def call(line, code=0):
        answer = CliRunner().invoke(app, ["rom", *line.split()])
        assert answer.exit_code == code, answer.output
        return answer.output

    return call


def test_pod_then_plot_then_reconstruct(run, tmp_path):
    text = run("pod run.h5 -k 4")
    assert "run.h5.basis.h5" in text
    assert "1–2" in text
    basis = rom.Basis.load("run.h5.basis.h5")
    assert basis.rank == 4
    assert "gram" in text
    text = run("plot run.h5.basis.h5 --truth run.h5 --length 1 --speed 1")
    drawn = {path.name for path in (tmp_path / "run.h5-plots").iterdir()}
    assert drawn >= {"U-modes.png", "spectrum.png", "errors.png", "phase.png", "U-reconstruction.png"}
    run("reconstruct run.h5.basis.h5 -o back.h5 -k 2 --start 5 --stop 25")
    back = ek.open("back.h5")["U"]
    assert back.lengths == (20,)
    np.testing.assert_allclose(back.times, 0.1 * np.arange(5, 25))
    (piece, *_) = back.pieces(["U"], "time", False, 1 << 30)
    two = basis.truncate(2).reconstruct(5)
    np.testing.assert_allclose(next(iter(piece.blocks())).only[0], two, atol=1e-6)
    assert "no snapshot" in run("reconstruct run.h5.basis.h5 -o more.h5 --start 500", 2)


def test_plan_says_what_it_will_do_and_the_default_is_told(run):
    assert "2 passes" in run("plan run.h5 -k 3")
    assert "error of 10 %" in run("pod run.h5")
    assert "error" in run("pod run.h5 --rank 3 --energy 0.9 --overwrite", 2)
    assert "run.h6" in run("pod run.h6", 2)
    assert "U" in run("pod run.h5 -f p -o p.h5", 2)


def test_averages_with_their_pictures(run, tmp_path):
    text = run("average run.h5 --statistics mean,tke --equilibration none --plot pictures")
    assert "U_tke" in text
    with np.load("run.averages.npz") as held:
        assert held["U_mean_ci95"].shape == (12, 20, 2)
        np.testing.assert_allclose(held["U_mean"], wave().mean(0), atol=1e-5)
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {
        f"{name}{more}.png" for name in ("U_mean", "U_tke") for more in ("", "-run-longer")}
    assert "median" in run("average run.h5 --statistics median --overwrite", 2)


def test_missing_snapshots_are_left_out_where_asked(run):
    u = wave()
    u[7, 3] = np.nan
    store("gaps.h5", u)
    assert "not finite" in run("average gaps.h5 --equilibration none")
    run("average gaps.h5 --equilibration none --missing drop --overwrite")
    with np.load("gaps.averages.npz") as held:
        np.testing.assert_allclose(held["U_mean"], np.nanmean(u, 0), atol=1e-5)


def test_compress_and_back(run):
    text = run("compress run.h5 --tolerance 0.02 --norm max")
    assert "times smaller" in text
    run("decompress run.archive.h5 -o back.h5")
    u, back = wave(), rom.decompress("run.archive.h5")[...]
    assert np.abs(u - back).max() <= 0.02 * np.abs(u - u.mean(0)).max()
    assert ek.open("back.h5")["U"].lengths == (80,)
    assert "tolerance" in run("compress run.h5 --tolerance 3 --overwrite", 2)


def test_following_a_run_that_is_being_written(run):
    u = wave(60)
    writer = threading.Thread(target=store, args=("live.h5", u, 0.005))
    store_there = rom.pod(u, rank=3)
    writer.start()
    while True:
        try:
            if len(ek.open("live.h5")) > 1:
                break
        except ek.EnsemblekitError:
            time.sleep(0.01)
    text = run("pod live.h5 -k 3 --follow --idle 3")
    writer.join()
    assert "60 snapshots" in text
    basis = rom.Basis.load("live.h5.basis.h5")
    assert basis.n == 60
    np.testing.assert_allclose(basis.singular_values[:2], store_there.singular_values[:2], rtol=1e-4)


def test_names_of_what_is_written():
    from ensemblekit.cli.rom_inputs import sibling

    assert str(sibling("out/flow_*.vtu", ".basis.h5")) == "flow.basis.h5"
    assert str(sibling("run.vtkhdf", ".archive.h5")) == "run.archive.h5"
    assert str(sibling("*.npy", ".basis.h5")) == "snapshots.basis.h5"


def test_the_bar_counts_bytes_of_every_read(monkeypatch, capsys):
    from types import SimpleNamespace

    from ensemblekit.cli import rom_inputs

    source = ek.ArraySource.of({"u": np.zeros((8, 500_000))})
    monkeypatch.setattr(rom_inputs, "stderr", SimpleNamespace(is_terminal=True))
    with rom_inputs.bar(source, quiet=False) as tell:
        for done in (1, 8, 1, 8):
            tell(done, 8)
    err = capsys.readouterr().err
    assert "read 1:" in err
    assert "read 2:" in err
    assert "32.0M" in err
    with rom_inputs.bar(source, quiet=True) as tell:
        assert tell is False
