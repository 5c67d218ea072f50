"""Runs that went on, taken up by the store of their frames; and replicas that are the same run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.errors import InputError, StoreError

mda = pytest.importorskip("MDAnalysis")
N = 60
X = np.random.default_rng(1).normal(0, 5, (N, 3, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    u = mda.Universe.empty(3, atom_resindex=[0, 0, 0], trajectory=True)
    u.add_TopologyAttr("names", ["C", "N", "O"])
    u.add_TopologyAttr("resnames", ["X"])
    u.add_TopologyAttr("resids", [1])
    u.load_new(X[:1].copy(), dimensions=[50, 50, 50, 90, 90, 90])
    u.atoms.write(tmp_path / "top.gro")

    def write(name, frames, values=X, first=0.0):
        with mda.Writer(str(tmp_path / name), 3) as writer:
            for k in frames:
                u.atoms.positions = values[k]
                u.trajectory.ts.time = first + 2.0 * k
                u.trajectory.ts.frame = k
                writer.write(u.atoms)
        return str(tmp_path / name)

    return tmp_path, write


def ingest(path, what, **options):
    return md.ingest(str(path / "top.gro"), what, str(path / "run.h5md"), **options)


def check(store, n=N):
    assert len(store) == n
    np.testing.assert_array_equal(store.times, 2.0 * np.arange(n))
    read = np.array(store["position"][:])
    assert np.abs(read - X[:n]).max() < 0.01        # as XTC rounds


@pytest.mark.parametrize("given", ["longer file", "all parts", "new part", "overlapping part"])
def test_a_run_that_went_on_is_taken_up(folder, given):
    path, write = folder
    first = write("run.xtc", range(40))
    ingest(path, first)
    if given == "longer file":
        what = write("run.xtc", range(N))
    else:
        part = write("part2.xtc", range(36 if given == "overlapping part" else 40, N))
        what = [first, part] if given == "all parts" else part
    with pytest.raises(StoreError, match=r"holds something else .*append=True"):
        ingest(path, what)
    check(ingest(path, what, append=True))
    check(ingest(path, what, append=True))      # nothing is left to do
    check(ek.open(str(path / "run.h5md")))
    assert md.average(str(path / "run.h5md"), {"z": lambda atoms: atoms.positions[0, 2]}, whole=True).n_frames == N
    assert len(md.universe(str(path / "run.h5md")).trajectory) == N


def test_append_makes_a_store_that_is_not_there_and_goes_on_with_one_that_was_interrupted(folder):
    path, write = folder
    store = ingest(path, write("run.xtc", range(30)), append=True)
    check(store, 30)
    with ek.open(store.path, "a") as cut:
        cut.truncate(7)
    check(ingest(path, write("run.xtc", range(N)), append=True))


def test_strides_and_windows_go_on(folder):
    path, write = folder
    ingest(path, write("run.xtc", range(41)), step=4)
    store = ingest(path, write("run.xtc", range(N)), step=4, append=True)
    np.testing.assert_array_equal(store.times, np.arange(0, 2 * N, 8.0))
    with pytest.raises(StoreError, match=r"no frame at 4 ps"):
        ingest(path, str(path / "run.xtc"), step=2, append=True)
    with pytest.raises(StoreError, match=r"has frames between 0 and 16 ps"):
        ingest(path, str(path / "run.xtc"), step=8, append=True)


def test_replicas_go_on_each(folder):
    path, write = folder
    other = X[::-1].copy()
    replicas = [write("a.xtc", range(20)), write("b.xtc", range(30), other)]
    md.ingest(str(path / "top.gro"), None, str(path / "run.h5md"), replicas=replicas)
    replicas = [write("a.xtc", range(25)), write("b.xtc", range(N), other)]
    assert md.ingest(str(path / "top.gro"), None, str(path / "run.h5md"), replicas=replicas, append=True).lengths == (25, N)


def test_what_does_not_continue_the_run_is_refused_and_nothing_is_written(folder):
    path, write = folder
    ingest(path, write("run.xtc", range(40)))
    other = X + np.float32(1.0)
    later = X.copy()
    later[33:] += 1.0
    cases = [(write("other.xtc", range(N), other), {}, "from 0 ps on: it is another run"),
             (write("checkpoint.xtc", range(N), later), {}, r"from 66 ps on.*truncate\(33\)"),
             (write("anew.xtc", range(N - 20), X[20:]), {}, "count anew"),
             (write("run.xtc", range(N)), {"select": "name C"}, "select='all'"),
             (str(path / "run.xtc"), {"whole": True}, "whole=False"),
             (str(path / "run.xtc"), {"transformations": [lambda ts: ts]}, "transformed=False")]
    for what, options, match in cases:
        with pytest.raises(StoreError, match=match):
            ingest(path, what, append=True, **options)
    check(ek.open(str(path / "run.h5md")), 40)
    with pytest.warns(UserWarning, match=r"ends at 78 ps.*begins at 90 ps"):
        ingest(path, write("late.xtc", range(45, N)), append=True)


def test_append_in_the_shell(folder):
    from typer.testing import CliRunner

    from ensemblekit.cli import app

    path, write = folder
    ingest(path, write("run.xtc", range(40)))
    words = ["md", "ingest", str(path / "top.gro"), write("run.xtc", range(N)), "-o", str(path / "run.h5md")]
    assert "--append" in CliRunner().invoke(app, words).output
    assert "60 frames of 3 atoms" in CliRunner().invoke(app, [*words, "--append"]).output


@pytest.mark.parametrize("how", ["same path", "other path", "link", "copy", "among parts"])
def test_the_same_run_twice_as_replicas_is_named(folder, how):
    path, write = folder
    a, b = write("a.xtc", range(40)), write("b.xtc", range(40), X[::-1].copy())
    later, twin = write("later.xtc", range(40, N)), str(path / "twin.xtc")
    if how == "link":
        (path / "twin.xtc").symlink_to(a)
    elif how == "copy":
        shutil.copy(a, twin)
    elif how == "other path":
        twin = str(path / "." / "a.xtc")
    replicas = {"same path": [a, b, a], "among parts": [a, b, [a, later]]}.get(how, [a, b, twin])
    top = str(path / "top.gro")
    with pytest.raises(InputError, match=r"replicas [01] and 2 .*xtc.*give every run once"):
        md.read(top, replicas=replicas)
    with pytest.raises(InputError, match="give every run once"):
        md.ingest(top, None, str(path / "r.h5md"), replicas=replicas)
    assert not list(path.glob("r-*.h5md"))
    runs = ek.ReplicaSet((md.read(top, a), md.read(top, b), md.read(top, a)))
    with pytest.raises(InputError, match=r"replicas 0 and 2 are both a\.xtc"):
        md.average(runs, {"z": lambda atoms: atoms.positions[0, 2]})


def test_runs_of_one_length_and_halves_of_one_file_are_no_twins(folder):
    path, write = folder
    top, a = str(path / "top.gro"), write("a.dcd", range(40))
    b = write("b.dcd", range(40), np.concatenate([X[:39], X[40:41]]))        # one frame is another
    assert md.read(top, replicas=[a, b]).lengths == (40, 40)
    halves = ek.ReplicaSet((md.read(top, a, stop=20), md.read(top, a, start=20)))
    assert md.average(halves, {"z": lambda atoms: atoms.positions[0, 2]}, whole=True).n_runs == 2


def test_stores_given_twice_are_named(folder):
    path, write = folder
    top = str(path / "top.gro")
    md.ingest(top, write("a.xtc", range(40)), str(path / "a.h5md"))
    shutil.copy(path / "a.h5md", path / "b.h5md")
    for files in ([str(path / "a.h5md")] * 2, [str(path / "a.h5md"), str(path / "b.h5md")]):
        with pytest.raises(InputError, match="replicas 0 and 1 "):
            md.average(ek.open(files, as_="replicas"), {"z": lambda atoms: atoms.positions[0, 2]})
