"""POD against what its users would pick, at the same error: time, memory, and the share of what the machine can do.

Every contender gets the raw snapshots (n, size) float32, in memory or in a file, and returns modes (k, size). A peer counts
where the error of the projection on its modes is at most 1.001 times the optimum and its captured energy at least 0.999 of it.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import ensemblekit as ek
from benchmarks.memory import anonymous_bytes, extra_memory
from benchmarks.pairing import Case, Contender, Timing, paired
from ensemblekit import rom
from ensemblekit.engine import cores, one_blas_thread

VALUES = "/observables/u/value"
ALLOWED = 1.001
SLOW = ("scipy svd", "PyDMD", "opinf", "pyMOR", "xeofs", "sklearn IncrementalPCA", "sklearn covariance_eigh", "dask")
"""Peers that take part in one round only."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    n: int
    size: int
    rank: int = 20
    spectra: tuple[str, ...] = ("i^-1.5", "knee")
    gram: int = 100_000
    """Columns of the full-spectrum case."""
    out_of_core: int = 6 << 30
    """Bytes of the store that is larger than the memory limit."""
    memory_limit: int = 1 << 30
    repeats: int = 3


FULL = Sizes(1000, 200_000, out_of_core=24 * 10**9 if os.environ.get("ENSEMBLEKIT_BENCH_24GB") else 6 << 30)
QUICK = Sizes(500, 40_000, gram=20_000, repeats=2)
TINY = Sizes(60, 3000, 5, gram=2000, out_of_core=8 << 20, memory_limit=64 << 20, repeats=1)
"""For the test that keeps the benchmarks from rotting."""


def run(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """Every case, one after the other; `folder` is for files and is left empty."""
    for spectrum in sizes.spectra:
        x = snapshots(sizes, spectrum)
        optimum = Optimum(x, sizes.rank)
        flat, store = folder / "x.npy", folder / "x.h5"
        np.save(flat, x)
        yield in_memory(x, flat, optimum, sizes, spectrum)
        flat.unlink()
        with ek.create(store, {"u": ek.Field((sizes.size,), "f4")}, capacity=sizes.n) as writer:
            writer.extend({"u": x}, times=np.arange(sizes.n) * 0.1)
        del x
        yield from_store(store, optimum, sizes, spectrum)
        remove(store)
    yield full_spectrum(sizes)
    yield out_of_core(folder, sizes)


def snapshots(sizes: Sizes, spectrum: str) -> np.ndarray:
    """Random modes with a known spectrum and a mean of 1, float32."""
    rng = np.random.default_rng(0)
    n, size = sizes.n, sizes.size
    k = min(200, n // 2)
    i = np.arange(1, k + 1.0)
    knee = max(2, 3 * sizes.rank // 4)
    s = i**-1.5 if spectrum == "i^-1.5" else np.where(i <= knee, i**-0.5, knee**-0.5 * (i / knee) ** -3.0)
    left = np.linalg.qr(rng.standard_normal((n, k)))[0].astype("f4")
    x = (left * s.astype("f4")) @ (rng.standard_normal((k, size), dtype="f4") / np.float32(np.sqrt(size)))
    x += 1
    return x


class Optimum:
    """What no basis of that rank can beat, from all inner products in double precision, and how others compare."""

    def __init__(self, x: np.ndarray, rank: int):
        self.x, self.rank = x, rank
        self.mean = x.mean(0, dtype="f8")
        gram = np.zeros((len(x), len(x)))
        for a in range(0, x.shape[1], 8192):
            part = x[:, a:a + 8192] - self.mean[a:a + 8192]
            gram += part @ part.T
        values = np.linalg.eigvalsh(gram)[::-1]
        self.total = float(values.sum())
        self.captured = float(values[:rank].sum())

    def compare(self, modes: np.ndarray) -> tuple[float, float]:
        """(error of the projection, captured energy), each over the optimum's."""
        q = np.linalg.qr(np.asarray(modes, "f8").reshape(self.rank, -1).T)[0]
        captured = 0.0
        for a in range(0, len(self.x), 50):
            captured += float(np.square((self.x[a:a + 50] - self.mean) @ q).sum())
        return float(np.sqrt((self.total - captured) / (self.total - self.captured))), captured / self.captured


# -- the contenders ----------------------------------------------------------------------------------------------------

def ours(x: Any, rank: int) -> np.ndarray:
    return rom.pod(x, rank=rank).modes


def sklearn_randomized(x: np.ndarray, rank: int) -> np.ndarray:
    from sklearn.utils.extmath import randomized_svd

    return randomized_svd(x - x.mean(0), rank, random_state=0)[2]


def sklearn_pca_randomized(x: np.ndarray, rank: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    return PCA(rank, svd_solver="randomized", random_state=0).fit(x).components_


def sklearn_pca_eigh(x: np.ndarray, rank: int) -> np.ndarray:
    """On the transpose, as the covariance of so many features does not fit anywhere."""
    from sklearn.decomposition import PCA

    scores = PCA(rank, svd_solver="covariance_eigh").fit_transform((x - x.mean(0)).T)
    return (scores / np.linalg.norm(scores, axis=0)).T


def sklearn_incremental(x: np.ndarray, rank: int) -> np.ndarray:
    from sklearn.decomposition import IncrementalPCA

    return IncrementalPCA(rank, batch_size=max(2 * rank, len(x) // 10)).fit(x).components_


def scipy_svd(x: np.ndarray, rank: int) -> np.ndarray:
    import scipy.linalg

    return scipy.linalg.svd(x - x.mean(0), full_matrices=False)[2][:rank]


def scipy_svds(x: np.ndarray, rank: int) -> np.ndarray:
    from scipy.sparse.linalg import svds

    return svds(x - x.mean(0), rank, random_state=0)[2]


def pymor_pod(x: np.ndarray, rank: int) -> np.ndarray:
    from pymor.algorithms.pod import pod
    from pymor.core.logger import set_log_levels
    from pymor.vectorarrays.numpy import NumpyVectorSpace

    set_log_levels({"pymor": "ERROR"})
    space = NumpyVectorSpace(x.shape[1])
    vectors = space.from_numpy((x - x.mean(0)).T)
    modes, _ = pod(vectors, modes=rank)[:2]
    return modes.to_numpy().T


def pydmd_svd(x: np.ndarray, rank: int) -> np.ndarray:
    from pydmd.utils import compute_svd

    return compute_svd((x - x.mean(0)).T, rank)[0].T


def xeofs_eof(x: np.ndarray, rank: int) -> np.ndarray:
    import xarray as xr
    import xeofs as xe

    model = xe.single.EOF(n_modes=rank, random_state=0)
    model.fit(xr.DataArray(x, dims=("time", "x"), coords={"time": np.arange(len(x)), "x": np.arange(x.shape[1])}), dim="time")
    return model.components().values


def dask_compressed(x: np.ndarray, rank: int) -> np.ndarray:
    import dask.array as da

    x = da.from_array(x, chunks=(len(x), 8192))
    return da.linalg.svd_compressed(x - x.mean(0), rank, n_power_iter=2, n_oversamples=10, seed=0)[2].compute()


def opinf_pod(x: np.ndarray, rank: int) -> np.ndarray:
    """In double precision and without the smallest eigenvalues: its modes must be orthonormal to 1e-8, and where they are
    not (any of single precision, and the one that the mean took) opinf 0.6.0 fails with an AttributeError."""
    import opinf

    states = (x - x.mean(0)).T.astype(np.float64)
    least = 1e-6 * float(np.square(states).sum()) / len(states)
    basis = opinf.basis.PODBasis(num_vectors=rank, svdsolver="method-of-snapshots", minthresh=least)
    return basis.fit(states).entries.T


def opinf_randomized(x: np.ndarray, rank: int) -> np.ndarray:
    import opinf

    return opinf.basis.PODBasis(num_vectors=rank, svdsolver="randomized", random_state=0).fit((x - x.mean(0)).T).entries.T


def torch_lowrank(x: np.ndarray, rank: int) -> np.ndarray:
    import torch

    torch.manual_seed(0)
    values = torch.from_numpy(np.asarray(x))
    return torch.svd_lowrank(values - values.mean(0), rank + 10, niter=2)[2][:, :rank].numpy().T


PEERS: dict[str, tuple[str, Callable[[Any, int], np.ndarray]]] = {
    "sklearn randomized_svd": ("sklearn", sklearn_randomized),
    "sklearn PCA randomized": ("sklearn", sklearn_pca_randomized),
    "sklearn covariance_eigh": ("sklearn", sklearn_pca_eigh),
    "sklearn IncrementalPCA": ("sklearn", sklearn_incremental),
    "scipy svd": ("scipy", scipy_svd),
    "scipy svds": ("scipy", scipy_svds),
    "pyMOR pod": ("pymor", pymor_pod),
    "PyDMD compute_svd": ("pydmd", pydmd_svd),
    "xeofs EOF": ("xeofs", xeofs_eof),
    "dask svd_compressed": ("dask", dask_compressed),
    "opinf method of snapshots": ("opinf", opinf_pod),
    "opinf randomized": ("opinf", opinf_randomized),
    "torch svd_lowrank": ("torch", torch_lowrank),
}


SKIPPED: dict[str, str] = {}
"""Peers that do not run here, and why."""


def chosen() -> dict[str, Callable[[Any, int], np.ndarray]]:
    """The peers that run here, those named in ENSEMBLEKIT_BENCH_PEERS (by a part of the name) where that is set."""
    asked = [word for word in os.environ.get("ENSEMBLEKIT_BENCH_PEERS", "").split(",") if word]
    small = np.random.default_rng(0).standard_normal((40, 300), dtype="f4")
    peers = {}
    for name, (package, job) in PEERS.items():
        if asked and not any(word in name for word in asked):
            continue
        if not importlib.util.find_spec(package):
            SKIPPED[name] = "not installed"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                job(small, 4)
        except Exception as error:      # a peer's own trouble with its dependencies is no reason to stop
            SKIPPED[name] = f"{type(error).__name__}: {str(error)[:100]}"
            continue
        peers[name] = job
    return peers


def in_memory(x: np.ndarray, flat: Path, optimum: Optimum, sizes: Sizes, spectrum: str) -> Case:
    """The snapshots as an array."""
    contenders = [Contender("ensemblekit", lambda _: ours(x, sizes.rank))] + [
        Contender(name, lambda _, job=job: job(x, sizes.rank), repeats=1 if name.startswith(SLOW) else None)
        for name, job in chosen().items()]
    return compared(f"POD in memory, {sizes.n} x {sizes.size} float32, rank {sizes.rank}, spectrum {spectrum}", contenders,
                    optimum,
                    sizes, x.nbytes, lambda name: extra_memory(_from_array, name, str(flat), sizes.rank, warm=(name, "",
                                                                                                               sizes.rank)))


def from_store(store: Path, optimum: Optimum, sizes: Sizes, spectrum: str) -> Case:
    """The snapshots in a file: ours maps it, every peer reads the same file into an array first."""
    u = ek.open(store)["u"]

    def read() -> np.ndarray:
        with h5py.File(store, "r") as f:
            return f[VALUES][:]

    contenders = [Contender("ensemblekit", lambda _: ours(u, sizes.rank))] + [
        Contender(name, lambda _, job=job: job(read(), sizes.rank), repeats=1 if name.startswith(SLOW) else None)
        for name, job in chosen().items()]
    return compared(f"POD from a store, {sizes.n} x {sizes.size} float32, rank {sizes.rank}, spectrum {spectrum}", contenders,
                    optimum, sizes, sizes.n * sizes.size * 4,
                    lambda name: extra_memory(_from_file, name, str(store), sizes.rank, warm=(name, "", sizes.rank)))


def _from_array(name: str, path: str, rank: int) -> None:
    """Mapped from a file, so that the snapshots themselves are no anonymous memory."""
    x = np.load(path, mmap_mode="r") if path else np.random.default_rng(0).standard_normal((4 * rank, 8 * rank), dtype="f4")
    (ours if name == "ensemblekit" else PEERS[name][1])(np.asarray(x), rank)


def _from_file(name: str, path: str, rank: int) -> None:
    if not path:
        _from_array(name, "", rank)
    elif name == "ensemblekit":
        ours(ek.open(path)["u"], rank)
    else:
        with h5py.File(path, "r") as f:
            PEERS[name][1](f[VALUES][:], rank)


def compared(title: str, contenders: list[Contender], optimum: Optimum, sizes: Sizes, nbytes: int,
             memory: Callable[[str], int | None]) -> Case:
    """Times in turn; the errors of all, the fastest peer that is as accurate, and the memory of both."""
    errors: dict[str, tuple[float, float]] = {}

    def noted(name: str) -> Callable[[Any, Any], Any]:
        def finish(_: Any, modes: Any) -> Any:
            if name not in errors:
                errors[name] = optimum.compare(modes)
            return None
        return finish

    # peers that take part once come last in the first round only, so that they do not heat up what is paired
    wrapped = [Contender(c.name, c.run, finish=noted(c.name), repeats=c.repeats) for c in contenders]
    wrapped = [wrapped[0], *sorted(wrapped[1:], key=lambda c: c.repeats is not None)]
    _ = wrapped[0].run(None)       # kernels
    case = paired(title, wrapped, lambda a, b: None, work=nbytes / 1e9, unit="GB", repeats=sizes.repeats, warm=False)
    facts: dict[str, Any] = {}
    for timing in case.timings:
        error, energy = errors[timing.name]
        facts[timing.name] = f"{timing.best:.3g} s, error {error:.6f} x optimal, energy {energy:.6f} of optimal"
    for name, why in SKIPPED.items():
        facts[name] = f"left out: {why}"
    measured = errors["ensemblekit"]
    if measured[0] > ALLOWED or measured[1] < 0.999:
        raise AssertionError(f"ours: error {measured[0]} x optimal, energy {measured[1]} of optimal")
    able = [t for t in case.timings[1:] if errors[t.name][0] <= ALLOWED and errors[t.name][1] >= 0.999]
    if able:
        fastest = min(able, key=lambda t: t.ratio)
        own, theirs = memory("ensemblekit"), memory(fastest.name)
        facts["fastest peer at that error"] = f"{fastest.name}: ours is {fastest.ratio:.2f} times as fast"
        if own and theirs:
            facts["extra memory"] = f"ours {own / 1e6:.0f} MB, {fastest.name} {theirs / 1e6:.0f} MB: 1/{theirs / own:.1f}"
    passes, block = rom.plan(optimum.x, sizes.rank).passes, rom.plan(optimum.x, sizes.rank).operations
    rate, bytes_ = gemm_rate(np.float32), stream_rate()
    bound = max(block / rate, passes * nbytes / bytes_)
    facts["share of the bound"] = (f"{bound / case.timings[0].best:.2f} of "
                                   f"max({block / 1e9:.3g} GFlop at {rate / 1e9:.0f} GFlop/s, "
                                   f"{passes} reads at {bytes_ / 1e9:.1f} GB/s)")
    return Case(case.name, case.work, case.unit, case.timings, facts)


def gemm_rate(dtype: Any) -> float:
    """Operations a second of tall products (512, 1000) @ (1000, 24), one a core at the same time."""
    a = np.ones((512, 1000), dtype)
    b = np.ones((1000, 24), dtype)

    def work(_: int) -> None:
        for _ in range(50):
            a @ b

    return _best(work, 50 * 2.0 * 512 * 1000 * 24)


def syrk_rate(n: int) -> float:
    """Operations a second (n² a column) of symmetric products (n, 2048) in double precision, one a core at the same time."""
    from scipy.linalg.blas import dsyrk

    a = np.ones((2048, n), order="F")

    def work(_: int) -> None:
        dsyrk(1.0, a, trans=1)

    return _best(work, float(n) * n * 2048)


def _best(work: Callable[[int], None], operations: float) -> float:
    took = np.inf
    with one_blas_thread(), ThreadPoolExecutor(cores()) as pool:
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(work, range(cores())))
            took = min(took, time.perf_counter() - began)
    return operations * cores() / took


def stream_rate() -> float:
    from benchmarks.report import bandwidth

    return bandwidth(256 << 20, cores())


def full_spectrum(sizes: Sizes) -> Case:
    """All inner products, double precision: the share of the machine's own symmetric product."""
    from ensemblekit.rom.decompose import plan_of
    from ensemblekit.rom.decompose.gram import GramWork
    from ensemblekit.rom.decompose.problem import problem_of
    from ensemblekit.rom.decompose.task import Reads, Task
    from ensemblekit.rom.rank import Rule

    x = snapshots(Sizes(sizes.n, sizes.gram, sizes.rank), "i^-1.5")
    problem = problem_of(x, 0, None, None, "mean")
    rule = Rule.of(sizes.rank, None, None, None, sizes.n)
    job = Task(problem, rule, plan_of(problem, rule, "gram", 4 << 30, cores()), "gram", 4 << 30, None, False, 0,
              Reads(problem.nbytes))
    operations = float(sizes.n) ** 2 * sizes.gram

    def products(_: Any) -> Any:
        return job.reduce_tiles(problem.parts[0], GramWork(job.transform(problem.parts[0], np.float64)))

    def plain(_: Any) -> Any:
        wide = x.astype("f8")
        wide -= wide.mean(0)
        return wide @ wide.T

    case = paired(f"all inner products, {sizes.n} x {sizes.gram} float32 in float64", [
        Contender("ensemblekit", products), Contender("numpy (centred copy) @ its transpose", plain)], lambda a, b: None,
        work=operations / 1e9, unit="GFlop", repeats=sizes.repeats)
    rates = []
    for _ in range(sizes.repeats):       # in turn, as a busy machine slows both alike
        rate = syrk_rate(sizes.n)
        began = time.perf_counter()
        products(None)
        rates.append(operations / (time.perf_counter() - began) / rate)
    return Case(case.name, case.work, case.unit, case.timings, {
        "share of the machine's dsyrk rate": f"{np.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})"})


def out_of_core(folder: Path, sizes: Sizes) -> Case:
    """A store larger than the memory limit: time by plain reads of the file, and memory of its own."""
    size = max(1000, min(200_000, sizes.out_of_core // 4000))
    n = sizes.out_of_core // (4 * size)
    path = folder / "large.h5"
    try:
        make_large(path, n, size)
        plan = rom.plan(ek.open(path)["u"], sizes.rank, memory_limit=sizes.memory_limit)
        drop_cache(path)
        took, peak, error, passes = _fresh(str(path), sizes.rank, sizes.memory_limit)
        drop_cache(path)
        began = time.perf_counter()
        for _ in range(passes):
            read_through(path)
            drop_cache(path)
        reading = time.perf_counter() - began
    finally:
        remove(path)
    timings = (Timing("ensemblekit", (took,), (1.0,)), Timing(f"reading the file {passes} times", (reading,),
                                                              (reading / took,)))
    return Case(f"POD of {n * size * 4 / 1e9:.1f} GB, memory_limit={sizes.memory_limit / 2**20:.0f} MiB, rank {sizes.rank}",
                n * size * 4 / 1e9 * passes, "GB", timings,
                {"time over reading": f"{took / reading:.2f}",
                 "anonymous memory": f"{peak / 2**20:.0f} MiB above that after the imports",
                 "error": f"{error:.6f}", "plan": str(plan),
                 "seconds x cores a GB": f"{took * cores() / (n * size * 4 / 1e9):.2f} (SVD-ROM's paper: "
                                         "36 GB in 420 to 600 s on 10 "
                                         "cores, 117 to 167)"})


def make_large(path: Path, n: int, size: int) -> None:
    """Snapshots of 60 modes with energies falling as i^-3, a drift and noise, written in bunches."""
    rng = np.random.default_rng(0)
    modes = rng.standard_normal((60, size), dtype="f4")
    scale = np.arange(1, 61.0) ** -1.5
    with ek.create(path, {"u": ek.Field((size,), "f4")}, capacity=n) as store:
        for a in range(0, n, 250):
            t = np.arange(a, min(a + 250, n))
            wave = np.cos(t[:, None] * 0.01 * (np.arange(60) // 2 + 1) + np.pi / 2 * (np.arange(60) % 2))
            x = (wave * scale).astype("f4") @ modes
            x += 1
            store.extend({"u": x}, times=t * 0.1)


def _fresh(path: str, rank: int, limit: int) -> tuple[float, int, float, int]:
    """In a fresh process: seconds, the peak of anonymous memory above that after the imports, the error, the passes."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_large, path, rank, limit).result()


def _large(path: str, rank: int, limit: int) -> tuple[float, int, float, int]:
    import threading

    rom.pod(np.random.default_rng(0).standard_normal((50, 400), dtype="f4"), rank=3, method="randomized")      # kernels
    gc.collect()
    before = anonymous_bytes()
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    basis = rom.pod(ek.open(path)["u"], rank=rank, memory_limit=limit)
    took = time.perf_counter() - began
    done.set()
    watcher.join()
    return took, max(peak, anonymous_bytes()) - before, basis.relative_error, basis.passes


def read_through(path: Path) -> None:
    """Read the file from one end to the other."""
    buffer = bytearray(8 << 20)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buffer):
            pass


def drop_cache(path: Path) -> None:
    """Have the file read from the disk the next time."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """The store and what lies beside it."""
    import shutil

    for file in path.parent.glob(path.name + "*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    for file in path.parent.glob(path.stem + ".*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
