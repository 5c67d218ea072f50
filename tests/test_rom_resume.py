"""A POD that is taken up again: with the same settings and weights, by one at a time, without a snapshot lost."""

import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import ClosedError, InputError, StoreBusyError, StoreError, UnknownFieldError

RNG = np.random.default_rng(4)
X = RNG.normal(size=(64, 40)) * 0.8 ** np.arange(40)
W = RNG.random(40) + 0.5
MEAN = X.mean(0)


def pod_of(path, **settings):
    return rom.IncrementalPOD(path, **{"rank": 3, "block": 8, **settings})


@pytest.mark.parametrize(("before", "after", "why"), [
    ({}, {"inner_product": W}, "without an inner product"), ({"inner_product": W}, {}, "and this has none"),
    ({"inner_product": W}, {"inner_product": 2 * W}, "another inner product"), ({}, {"center": "none"}, "center"),
    ({}, {"center": "first"}, "center"), ({"center": MEAN}, {"center": MEAN + 1}, "another center"),
    ({}, {"dtype": "f4"}, "float64"), ({"dtype": "f4"}, {}, "float32"), ({}, {"scale": {"values": 2.0}}, "scale"),
    ({"scale": {"values": 2.0}}, {"scale": {"values": 3.0}}, "scale"), ({}, {"keep": 30}, "keep"), ({}, {"block": 9}, "block"),
    ({}, {"rank": None, "energy": 0.9, "keep": 16}, "rule")], ids=str)
@pytest.mark.parametrize("n", [5, 20])
def test_a_state_is_not_taken_up_with_other_settings(tmp_path, before, after, why, n):
    if n == 5 and why in ("float64", "float32", "another center"):
        return          # nothing was decomposed yet
    pod = pod_of(tmp_path / "s.h5", **before).update(X[:n])
    state = pod.state()
    pod.close()
    assert pod_of(tmp_path / "s.h5", **before).n == n
    with pytest.raises(InputError, match=why):
        pod_of(tmp_path / "s.h5", **after)
    with pytest.raises(InputError, match=why):
        pod_of(None, **after).restored(state)


def test_logarithms_of_weights_are_taken_as_weights_are(tmp_path):
    logs = np.random.default_rng(3).normal(0, 2, len(X))
    logs[7] = -np.inf
    want = pod_of(None).update(X[:40], weights=np.exp(logs[:40])).update(X[40:], weights=np.exp(logs[40:])).result()
    got = pod_of(None).update(X[:40], log_weights=logs[:40])
    for k in range(40, len(X)):
        got.update(X[k], log_weights=logs[k])
    np.testing.assert_allclose(got.result().singular_values, want.singular_values, rtol=1e-12)
    np.testing.assert_array_equal(got.result().weights, want.weights)
    with pytest.raises(InputError, match="Subtract one number"):
        got.update(X[0], log_weights=900.0)
    with pytest.raises(InputError, match="not both"):
        got.update(X[0], weights=1.0, log_weights=0.0)
    with pytest.raises(InputError, match="carries its own weights"):
        got.update(ek.ArraySource.of(X), log_weights=logs)


def test_weights_that_say_the_same_are_the_same(tmp_path):
    fields = {"u": X.reshape(64, 20, 2), "p": X[:, :7]}
    weights = {"u": W[:20], "p": None}
    with pod_of(tmp_path / "s.h5", inner_product=weights) as pod:
        pod.update({name: x[:30] for name, x in fields.items()})
    again = pod_of(tmp_path / "s.h5", inner_product={"u": np.repeat(W[:20], 2).reshape(20, 2), "p": np.ones(7)})
    assert again.n == 30
    with pytest.raises(InputError, match="field 'p'"):
        pod_of(tmp_path / "s.h5", inner_product={**weights, "p": W[:7]})
    again.update({name: x[30:] for name, x in fields.items()})
    whole = pod_of(None, inner_product=weights).update(fields).result()
    np.testing.assert_array_equal(again.result().modes, whole.modes)


def test_volumes_of_a_mesh_are_compared_with_those_of_the_state(tmp_path):
    points = np.random.default_rng(0).random((40, 2))
    cells = np.array([[k, k + 1, k + 2] for k in range(38)])
    stores = []
    for k in range(2):
        mesh = rom.Mesh.of(points * (1 + k), cells)
        np.savez(tmp_path / "x.npz", U=X)
        stores.append(rom.ingest(rom.read(tmp_path / "x.npz", mesh=mesh), tmp_path / f"x{k}.vtkhdf"))
    name, = stores[0].fields
    with pod_of(tmp_path / "s.h5").use_mesh_weights(stores[0], [name]) as pod:
        pod.catch_up(stores[0])
        whole = pod.result()
    again = pod_of(tmp_path / "s.h5")
    for ask in (again.result, lambda: again.update(X[:1]), lambda: again.catch_up(stores[0])):
        with pytest.raises(InputError, match="use_mesh_weights"):
            ask()
    with pytest.raises(InputError, match="another inner product"):
        again.use_mesh_weights(stores[1], [name])
    np.testing.assert_array_equal(again.use_mesh_weights(stores[0], [name]).result().modes, whole.modes)
    with pytest.raises(InputError, match="without an inner product"):
        pod_of(None).update({name: X}).use_mesh_weights(stores[0], [name])
    for feed in (lambda: pod_of(None).use_mesh_weights(stores[0], [name]).update(X),
                 lambda: pod_of(None).update(X).use_mesh_weights(stores[0], [name])):
        with pytest.raises(InputError, match="name the same fields"):
            feed()
    with pytest.raises(InputError, match="made with an inner_product"):
        pod_of(None, inner_product=W).use_mesh_weights(stores[0], [name])


def test_weights_and_scales_are_of_fields_that_are_there():
    for given in ({"inner_product": {"U": W}}, {"scale": {"U": 2.0}}):
        with pytest.raises(UnknownFieldError, match="no field 'U'"):
            pod_of(None, **given).update({"u": X})


def test_it_follows_one_run(tmp_path):
    for name, n in (("a", 20), ("b", 40)):
        with ek.create(tmp_path / f"{name}.h5", {"u": ek.Field((40,), "f8")}) as store:
            store.extend({"u": X[:n]})
    with pod_of(tmp_path / "s.h5") as pod:
        assert pod.catch_up(ek.open(tmp_path / "a.h5")) == 20
    again = pod_of(tmp_path / "s.h5")
    with pytest.raises(InputError, match="another run"):
        again.catch_up(ek.open(tmp_path / "b.h5"))
    with ek.open(tmp_path / "a.h5", "a") as store:
        store.truncate(12)
    with pytest.raises(InputError, match="20 snapshots were taken in, and this holds 12"):
        again.catch_up(ek.open(tmp_path / "a.h5"))


def test_one_feeds_and_others_look(tmp_path):
    path = tmp_path / "s.h5"
    first = pod_of(path).update(X[:11])
    second = pod_of(path)
    assert second.n == 11               # of the same process: also what was not yet in the file
    np.testing.assert_array_equal(second.result().modes, first.result().modes)
    with pytest.raises(StoreBusyError, match="fed by another"):
        second.update(X[11])
    code = f"from ensemblekit import rom; import numpy as np; pod = rom.IncrementalPOD({str(path)!r}, rank=3, block=8)\n"
    printed = run(code + "print(pod.n); pod.update(np.ones(40))", 1)
    assert printed.stdout.split() == ["11"]
    assert "StoreBusyError" in printed.stderr
    with pytest.raises(StoreError, match="neither pickled nor copied"):
        pickle.dumps(first)
    first.update(X[11:13]).close()
    with pytest.raises(StoreError, match="written by another since"):
        second.update(X[11])
    with pytest.raises(ClosedError):
        first.update(X[13])
    third = pickle.loads(pickle.dumps(pod_of(path))).update(X[13:])
    np.testing.assert_array_equal(third.result().modes, pod_of(None).update(X).result().modes)


def test_a_child_neither_feeds_nor_saves_what_its_parent_does(tmp_path):
    done = run(f"""
        import os, sys, numpy as np
        from ensemblekit import rom
        from ensemblekit.errors import StoreBusyError
        x = np.random.default_rng(0).normal(size=(11, 40))
        pod = rom.IncrementalPOD({str(tmp_path / "s.h5")!r}, rank=3, block=8).update(x)
        if os.fork() == 0:
            try:
                pod.update(np.ones(40))
            except StoreBusyError:
                sys.exit()              # by its atexit functions
            os._exit(1)
        assert os.wait()[1] == 0
        again = rom.IncrementalPOD(pod.path, rank=3, block=8)
        print(os.path.exists(pod.path), pod.update(np.ones(40)).n)
        """)
    assert done.stdout.split() == ["True", "12"]
    assert pod_of(tmp_path / "s.h5").n == 12


def run(code, want=0):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == want, done.stderr
    return done


@pytest.mark.parametrize("end", ["", "raise KeyError", "del pod; os._exit(0)"])
def test_a_program_that_ends_loses_nothing(tmp_path, end):
    np.save(tmp_path / "x.npy", X)
    code = f"""
        import os, numpy as np
        from ensemblekit import rom
        x = np.load({str(tmp_path / "x.npy")!r})
        pod = rom.IncrementalPOD({str(tmp_path / "s.h5")!r}, rank=3, block=8)
        for k in range(21):
            pod.update(x[k:k + 1])
        {end}
        """
    run(code, 1 if "raise" in end else 0)
    again = pod_of(tmp_path / "s.h5")
    assert again.n == 21
    np.testing.assert_array_equal(again.update(X[21:]).result().modes, pod_of(None).update(X).result().modes)


@pytest.mark.parametrize("at", [3, 11])
def test_a_snapshot_that_is_refused_takes_no_other_with_it(tmp_path, at):
    """One with NaN in the first block, where numbers may be missing in all, and in a later one."""
    bad = X.copy()
    bad[at, 7] = np.nan
    pod = pod_of(tmp_path / "s.h5")
    for x in bad[:at]:
        pod.update(x[None])
    for more in (bad[at][None], bad[at:], bad[at:at + 8]):
        with pytest.raises(InputError, match=f"snapshot {at} holds NaN"):
            pod.update(more)
        assert pod.n == at
    pod.update(X[at:])
    np.testing.assert_array_equal(pod.result().modes, pod_of(None).update(X).result().modes)


def test_an_interrupt_within_a_block_leaves_the_state_as_it_was(tmp_path, monkeypatch):
    pod = pod_of(tmp_path / "s.h5").update(X[:23])
    monkeypatch.setattr("ensemblekit.rom.decompose.history.History.append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pod.update(X[23:])
    monkeypatch.undo()
    assert pod.n == 23
    pod.close()
    again = pod_of(tmp_path / "s.h5").update(X[23:])
    np.testing.assert_array_equal(again.result().coefficients, pod_of(None).update(X).result().coefficients)
