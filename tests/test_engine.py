"""Same bits wherever the work is done; a failure names its snapshots and stops the rest."""

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.errors import InputError, ReductionError
from ensemblekit.source import Field


def radius(block):
    x = block.fields["position"].astype(np.float64)
    return np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).sum((1, 2)))


def fails_at_700(block):
    if block.start <= 700 < block.start + len(block):
        raise ValueError("the box is missing")
    return block.fields["position"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("engine") / "run.h5"
    rng = np.random.default_rng(0)
    with ek.create(path, {"position": Field((11, 3), "f4"), "energy": Field((), "f8")}, capacity=300) as s:
        s.extend({"position": rng.normal(size=(1000, 11, 3)).astype("f4"), "energy": rng.normal(size=1000)},
                 weights=rng.random(1000))
    return ek.open(path)


BRANCHES = {"position": ek.Moments(4), "energy": ek.Histogram(np.linspace(-3, 3, 31)),
            "radius": (radius, ek.Moments(), ek.Series(), ek.BlockSums())}


def bits(result):
    moments, series, _ = result["radius"]
    numbers = [result["position"].mean, result["position"].kurtosis, result["energy"].counts, moments.variance, series]
    return b"".join(np.asarray(x).tobytes() for x in numbers)


@pytest.fixture(scope="module")
def truth(store):
    return bits(ek.reduce(store, BRANCHES, engine=ek.Serial(), limit=1 << 14))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_threads_give_the_same_bits(store, truth, n):
    assert bits(ek.reduce(store, BRANCHES, engine=ek.Threads(n), limit=1 << 14)) == truth


def test_processes_and_foreign_pools_give_the_same_bits(store, truth):
    assert bits(ek.reduce(store, BRANCHES, engine=ek.Processes(2), limit=1 << 14)) == truth
    with futures.ThreadPoolExecutor(2) as pool:
        assert bits(ek.reduce(store, BRANCHES, engine=ek.Executor(pool), limit=1 << 14)) == truth


@pytest.mark.filterwarnings("ignore")
def test_dask_gives_the_same_bits_and_takes_lambdas(store, truth):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, \
            distributed.Client(cluster) as client:
        assert bits(ek.reduce(store, BRANCHES, engine=ek.Dask(client), limit=1 << 14)) == truth
        got = ek.reduce(store, {"e": (lambda b: 2 * b.fields["energy"], ek.Series())}, engine=ek.Dask(client))
        np.testing.assert_array_equal(got["e"], 2 * store["energy"][:])
        with pytest.raises(ReductionError, match=r"snapshots \d+ to \d+ of run 0: ValueError: the box is missing"):
            ek.reduce(store, {"x": (fails_at_700, ek.Moments())}, engine=ek.Dask(client))


@pytest.mark.parametrize("engine", [ek.Serial(), ek.Threads(2), ek.Processes(2)])
def test_a_failure_names_branch_run_and_snapshots(store, engine):
    with pytest.raises(ReductionError, match=r"branch 'x', snapshots \d+ to \d+ of run 0: ValueError: the box") as caught:
        ek.reduce(store, {"x": (fails_at_700, ek.Moments())}, engine=engine)
    assert caught.value.start <= 700 < caught.value.stop
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.run, again.start) == (0, caught.value.start)


def test_a_failure_cancels_what_has_not_begun():
    seen = []

    def work(shared, item):
        seen.append(item)
        if item == 3:
            raise ValueError
        time.sleep(0.002)
        return item

    with pytest.raises(ValueError):
        list(ek.Threads(2).map(work, range(1000), None))
    assert len(seen) < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("ensemblekit")]


def test_order_is_kept_and_items_are_pulled_as_workers_free_up():
    pulled = []

    def items():
        for k in range(100):
            pulled.append(k)
            yield k

    values = ek.Threads(2).map(lambda shared, k: (time.sleep(0.001 * (k % 3)), k + shared)[1], items(), 10)
    assert next(values) == 10
    assert len(pulled) <= 6
    assert list(values) == list(range(11, 110))


def test_processes_refuse_a_lambda_by_name():
    with pytest.raises(InputError, match=r"branch 'rg'.*<lambda>.*Threads\(\)"):
        ek.reduce(np.zeros((10, 2)), {"rg": (lambda b: b.only, ek.Moments())}, engine=ek.Processes(2))


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_worker_counts_are_checked(n):
    with pytest.raises(InputError, match="above 0"):
        ek.Threads(n)


def test_progress_counts_every_snapshot_once():
    progress = []
    ek.reduce(np.zeros((1000, 5)), ek.Moments(), progress=lambda done, total: progress.append((done, total)))
    assert progress[-1] == (1000, 1000)
    progress.clear()
    ek.reduce(np.zeros((600, 200000), "f4"), ek.Moments(), progress=lambda done, total: progress.append(done))
    assert progress[-1] == 600
    assert progress == sorted(progress)


@pytest.mark.parametrize("engine", [ek.Serial(), ek.Threads(2)], ids=["serial", "threads"])
def test_blas_is_held_to_one_thread_but_where_work_does_without(engine):
    import threadpoolctl

    def threads(shared, item):
        return [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]

    with threadpoolctl.threadpool_limits(3, "blas"):
        (held,), (left,) = engine.map(threads, [0], None), engine.map(threads, [0], None, blas=False)
        assert set(held) == {1}
        assert set(left) == {3}
        assert set(threads(None, 0)) == {3}


# ---- workers that are lost -------------------------------------------------------------------------------------------

def ends_its_process(block):
    if block.start <= 700 < block.start + len(block):
        os.kill(os.getpid(), signal.SIGKILL)
    return block.fields["position"]


def exits(block):
    raise SystemExit(3)


class Untravelled(Exception):
    """An error that pickles and cannot be read again."""

    def __init__(self, one, two):
        super().__init__(one)


def raises_untravelled(block):
    raise Untravelled("the box", "is missing")


def test_a_worker_that_dies_is_named_with_its_snapshots_and_the_likely_cause(store):
    with pytest.raises(ReductionError, match=r"snapshots (\d+) to (\d+) of run 0.*SIGKILL.*out of memory") as caught:
        ek.reduce(store, {"x": (ends_its_process, ek.Moments())}, engine=ek.Processes(2))
    assert caught.value.start <= 700 < caught.value.stop
    assert caught.value.stop - caught.value.start < 100         # those of one piece


def test_a_pool_that_loses_a_worker_is_named_with_what_was_under_way(store):
    with futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool, pytest.raises(
            ReductionError, match=r"snapshots \d+ to \d+ of run 0 .*out of memory.*make a new one") as caught:
        ek.reduce(store, {"x": (ends_its_process, ek.Moments())}, engine=ek.Executor(pool))
    assert caught.value.start <= 700 < caught.value.stop


def test_a_pool_that_is_shut_down_meanwhile_is_said(store):
    pool = futures.ThreadPoolExecutor(1)

    def shuts_down(block):
        pool.shutdown(wait=False, cancel_futures=True)
        return block.fields["position"]

    with pytest.raises(ReductionError, match=r"run 0 .*(shut down|shutdown)"):
        ek.reduce(store, {"x": (shuts_down, ek.Moments())}, engine=ek.Executor(pool))


def ends_at_once(number):
    os._exit(1)


def test_a_pool_that_was_broken_before_is_named(store):
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(futures.BrokenExecutor):
            pool.submit(ends_at_once, 0).result()
        with pytest.raises(ReductionError, match=r"snapshots 0 to \d+ of run 0 .*make a new one"):
            ek.reduce(store, {"x": (radius, ek.Moments())}, engine=ek.Executor(pool))
    threads = futures.ThreadPoolExecutor(1)
    threads.shutdown()
    with pytest.raises(ReductionError, match=r"snapshots 0 to \d+ of run 0 .*takes no more work"):
        ek.reduce(store, {"x": (radius, ek.Moments())}, engine=ek.Executor(threads))


@pytest.mark.parametrize(("work", "words"), [
    (exits, "ended its process by SystemExit"),
    (raises_untravelled, "Untravelled: the box"),
], ids=["exit", "error"])
def test_what_cannot_come_back_comes_in_words(store, work, words):
    with pytest.raises(ek.EnsemblekitError, match=words):
        ek.reduce(store, {"x": (work, ek.Moments())}, engine=ek.Processes(1))


def test_a_result_that_cannot_travel_is_named():
    with pytest.raises(ek.EnsemblekitError, match=r"the result, a lock, cannot be sent back.*Threads\(\)"):
        list(ek.Processes(1).map(makes_a_lock, [0], None))


def makes_a_lock(shared, item):
    return threading.Lock()


def test_a_map_that_a_worker_cannot_import_is_said(tmp_path):
    """As at the prompt: its __main__ is nothing that another process could import."""
    code = ("import numpy as np, ensemblekit as ek\n"
            "def half(block): return block.only / 2\n"
            "try: ek.reduce(np.zeros((10, 2)), {'u': (half, ek.Moments())}, engine=ek.Processes(1))\n"
            "except ek.EnsemblekitError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert "could not load what it was to run" in done.stdout, done.stderr
    assert "top level of a module" in done.stdout


def test_an_engine_without_the_keyword_is_named():
    class Old:
        def map(self, func, items, shared):
            return (func(shared, item) for item in items)

    with pytest.raises(InputError, match=r"Old is no engine.*blas=True"):
        ek.reduce(np.zeros((10, 2)), ek.Moments(), engine=Old())


def doubled(shared, item):
    return shared * item


def test_processes_leave_nothing_behind_and_keep_order():
    assert list(ek.Processes(3).map(doubled, range(50), 2)) == list(range(0, 100, 2))
    assert list(ek.Processes(3).map(doubled, [], 2)) == []
    values = ek.Processes(2).map(doubled, itertools.count(), 2)
    assert [next(values) for _ in range(3)] == [0, 2, 4]
    children = [p for p in multiprocessing.active_children() if p.name == "ensemblekit worker"]
    assert len(children) == 2
    values.close()          # the caller stops listening
    assert not [p for p in multiprocessing.active_children() if p.name == "ensemblekit worker"]
    assert not [t for t in threading.enumerate() if t.name == "ensemblekit feeder" and t.is_alive() and not t.daemon]


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_loses_its_workers_is_an_error_of_ours(store):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, \
            distributed.Client(cluster) as client:
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
        with pytest.raises(ReductionError, match=r"snapshots .* of run 0 .*cluster"):
            ek.reduce(store, {"x": (ends_its_process, ek.Moments())}, engine=ek.Dask(client))


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_without_workers_is_not_waited_for_for_ever(store, monkeypatch):
    distributed = pytest.importorskip("distributed")
    from ensemblekit import engine_dask

    monkeypatch.setattr(engine_dask, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(engine_dask, "LOOKS", 2)

    def leaves(block):
        distributed.get_worker().loop.add_callback(distributed.get_worker().close, nanny=False)
        time.sleep(3)
        return block.fields["position"]

    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster, \
            distributed.Client(cluster) as client:
        with pytest.raises(ReductionError, match=r"snapshots .* of run 0 .*cluster"):
            ek.reduce(store, {"x": (leaves, ek.Moments())}, engine=ek.Dask(client))
    with pytest.raises(ReductionError, match="client of the cluster is closed"):
        ek.reduce(store["energy"], ek.Moments(), engine=ek.Dask(client))
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster, \
            distributed.Client(cluster) as client, pytest.raises(ReductionError, match="no workers"):
        ek.reduce(store["energy"], ek.Moments(), engine=ek.Dask(client))
