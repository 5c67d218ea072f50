"""The core against h5py, numpy and dask: averages of a store larger than the caches, appends, engines, whole reads.

The peers read the very file ours reads (a store is a plain HDF5 file), warm in the page cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import ensemblekit as ek
from benchmarks.memory import extra_memory
from benchmarks.pairing import Case, Contender, paired
from benchmarks.report import bandwidth
from ensemblekit.engine import cores

VALUES = "/observables/u/value"
"""Where a store keeps the values of its field "u"."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    store: int
    """Bytes of the store that is averaged."""
    snapshots: tuple[int, ...] = (20_000, 1 << 20, 8 << 20)
    """Bytes of one snapshot; the middle one is the main case."""
    small_appends: int = 20_000
    """Snapshots of 20 kB appended one by one by ours; h5py appends a tenth."""
    written: int = 512 << 20
    """Bytes appended as snapshots of 1 MB."""
    scalars: int = 2_000_000
    """Snapshots of 100 bytes given to extend."""
    repeats: int = 7


FULL = Sizes(store=2 << 30)
QUICK = Sizes(store=256 << 20, small_appends=5_000, written=128 << 20, scalars=500_000, repeats=5)
TINY = Sizes(store=1 << 20, snapshots=(2_000, 64 << 10), small_appends=50, written=1 << 20, scalars=2_000, repeats=1)
"""For the test that keeps the benchmarks from rotting."""


def run(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """Every case, one after the other; `folder` is for files and is left empty."""
    for nbytes in sizes.snapshots:
        path = folder / f"snapshots_of_{nbytes}.h5"
        make_store(path, sizes.store, nbytes)
        yield averages(path, nbytes, sizes)
        if nbytes == sizes.snapshots[1]:
            yield engines(path, sizes)
            yield whole_field(path, sizes)
        remove(path)
    yield appends_one_by_one(folder, sizes)
    yield appends_of_a_megabyte(folder, sizes)
    yield extends(folder, sizes)


def make_store(path: Path, total: int, nbytes: int) -> None:
    """A store of float32 noise around 3: each snapshot is a cyclic shift of one of a few, so making it is quick."""
    width = nbytes // 4
    rows = max(1, total // nbytes)
    rng = np.random.default_rng(0)
    noise = rng.normal(3.0, 1.0, (16, width)).astype(np.float32)
    batch = max(1, min(rows, (32 << 20) // nbytes))
    with ek.create(path, {"u": ek.Field((width,), "f4")}) as store:
        for start in range(0, rows, batch):
            n = min(batch, rows - start)
            values = np.stack([np.roll(noise[k % 16], 37 * k) for k in range(start, start + n)])
            store.extend({"u": values}, times=np.arange(start, start + n, dtype=float))


def remove(path: Path) -> None:
    """A store with whatever stands beside it: further segments, its folder."""
    for part in path.parent.glob(path.stem + "*"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


# --- mean and variance --------------------------------------------------------------------------------------------

def ours_mean_variance(path: Path, engine: ek.Engine | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What the package is for."""
    store = ek.open(path)
    moments = ek.reduce(store["u"], ek.Moments(), engine=engine)
    return moments.mean, moments.variance


def h5py_mean_variance(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What one writes by hand: blocks of about 8 MB, a sum and a sum of squares in float64."""
    with h5py.File(path, "r") as file:
        values = file[VALUES]
        n, width = values.shape
        rows = max(1, (8 << 20) // (4 * width))
        total, squares = np.zeros(width), np.zeros(width)
        for start in range(0, n, rows):
            block = values[start:start + rows].astype(np.float64)
            total += block.sum(axis=0)
            squares += (block * block).sum(axis=0)
    mean = total / n
    return mean, (squares - n * mean**2) / (n - 1)


def dask_mean_variance(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the dask manual shows: an array over the dataset, chunks of dask's own choice, threads."""
    import dask
    import dask.array as da

    with h5py.File(path, "r") as file:
        values = da.from_array(file[VALUES], chunks="auto")
        mean, variance = dask.compute(values.mean(axis=0, dtype="f8"), values.var(axis=0, ddof=1, dtype="f8"),
                                      scheduler="threads")
    return mean, variance


def same_mean_variance(ours: Any, theirs: Any) -> None:
    """To the digits that a sum of squares in float64 leaves."""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-9)


def averages(path: Path, nbytes: int, sizes: Sizes) -> Case:
    """Mean and variance of every element, against h5py with numpy and against dask."""
    with h5py.File(path, "r") as file:
        total = file[VALUES].size * 4
    case = paired(f"mean and variance, {total / 1e9:.2f} GB of float32 in snapshots of {nbytes / 1e3:,.0f} kB", [
        Contender("ensemblekit", lambda _: ours_mean_variance(path)),
        Contender("h5py blocks + numpy sums", lambda _: h5py_mean_variance(path), repeats=3),
        Contender("dask.array over h5py", lambda _: dask_mean_variance(path), repeats=3),
    ], same_mean_variance, work=total / 1e9, unit="GB", repeats=sizes.repeats)
    best = total / case.timings[0].best
    reach = bandwidth(min(total, 512 << 20), cores())
    facts = {"share of the read bandwidth": f"{best / reach:.0%} ({best / 1e9:.1f} of {reach / 1e9:.1f} GB/s, "
                                            f"{cores()} threads, best of {sizes.repeats})"}
    small = path.with_name("warm_up.h5")
    make_store(small, 64 * nbytes if nbytes < 1 << 20 else 4 * nbytes, nbytes)
    for name, work in (("ensemblekit", ours_mean_variance), ("h5py", h5py_mean_variance), ("dask", dask_mean_variance)):
        extra = extra_memory(work, path, warm=(small,))
        if extra is not None:
            facts[f"extra anonymous memory, {name}"] = f"{extra / 2**20:.1f} MiB"
    remove(small)
    return replace(case, facts=facts)


def engines(path: Path, sizes: Sizes) -> Case:
    """The same average on every engine; the answers are the same to the last bit."""
    def on(engine: ek.Engine) -> Callable[[Any], Any]:
        return lambda _: ours_mean_variance(path, engine)

    def same_bits(ours: Any, theirs: Any) -> None:
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)

    with h5py.File(path, "r") as file:
        total = file[VALUES].size * 4
    return paired("mean and variance on each engine (same bits)", [
        Contender(f"Threads({cores()})", on(ek.Threads(cores()))),
        Contender("Serial()", on(ek.Serial())),
        Contender("Threads(1)", on(ek.Threads(1))),
        Contender("Processes(2), starting them included", on(ek.Processes(2)), repeats=2),
    ], same_bits, work=total / 1e9, unit="GB", repeats=sizes.repeats)


def whole_field(path: Path, sizes: Sizes) -> Case:
    """All snapshots of a field as one array in memory."""
    def ours(_: Any) -> np.ndarray:
        return ek.open(path)["u"][:]

    def theirs(_: Any) -> np.ndarray:
        with h5py.File(path, "r") as file:
            return file[VALUES][:]

    with h5py.File(path, "r") as file:
        total = file[VALUES].size * 4
    return paired("a whole field into memory", [Contender("ensemblekit", ours), Contender("h5py", theirs)],
                  np.testing.assert_array_equal, work=total / 1e9, unit="GB", repeats=min(3, sizes.repeats))


# --- appends ------------------------------------------------------------------------------------------------------

def appends_one_by_one(folder: Path, sizes: Sizes) -> Case:
    """20 kB a snapshot, each committed before the next: what a simulation does that must survive a crash."""
    n = sizes.small_appends
    values = np.random.default_rng(1).normal(size=(16, 5_000)).astype(np.float32)

    def ours(store: Any) -> None:
        for k in range(n):
            store.append({"u": values[k % 16]}, time=float(k))

    def theirs(file: h5py.File) -> None:
        u, step, time = file["u"], file["step"], file["time"]
        for k in range(n):
            for dataset in (u, step, time):
                dataset.resize(k + 1, axis=0)
            u[k], step[k], time[k] = values[k % 16], k, float(k)
            file.flush()

    return paired("appends of 20 kB snapshots, committed one by one", [
        ours_writer(folder, 5_000, ours),
        h5py_writer(folder, 5_000, theirs),
    ], np.testing.assert_array_equal, work=n, unit="snapshots", repeats=min(3, sizes.repeats), warm=False)


def appends_of_a_megabyte(folder: Path, sizes: Sizes) -> Case:
    """1 MB a snapshot against plain write() to the same disk: a ratio of 1 is all the disk gives."""
    width = 1 << 18
    n = max(1, sizes.written // (4 * width))
    values = np.random.default_rng(2).normal(size=(8, width)).astype(np.float32)

    def ours(store: Any) -> None:
        for k in range(n):
            store.append({"u": values[k % 8]}, time=float(k))

    def theirs(fd: int) -> None:
        for k in range(n):
            os.write(fd, values[k % 8])

    raw = folder / "raw.bin"

    def create() -> int:
        os.sync()
        return os.open(raw, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def read_back(fd: int, _: None) -> np.ndarray:
        os.close(fd)
        values = np.fromfile(raw, np.float32).reshape(n, width)
        raw.unlink()
        return values

    return paired("appends of 1 MB snapshots, committed one by one", [
        ours_writer(folder, width, ours),
        Contender("write() of the same bytes", theirs, create, read_back),
    ], np.testing.assert_array_equal, work=n * 4 * width / 1e9, unit="GB", repeats=min(3, sizes.repeats), warm=False)


def extends(folder: Path, sizes: Sizes) -> Case:
    """100 bytes a snapshot, given ten thousand at a time."""
    n, batch = sizes.scalars, min(10_000, sizes.scalars)
    values = np.random.default_rng(3).normal(size=(batch, 25)).astype(np.float32)
    times = np.arange(batch, dtype=float)

    def ours(store: Any) -> None:
        for start in range(0, n, batch):
            store.extend({"u": values}, times=times + start)

    def theirs(file: h5py.File) -> None:
        u, step, time = file["u"], file["step"], file["time"]
        for start in range(0, n, batch):
            rows = slice(start, start + batch)
            for dataset in (u, step, time):
                dataset.resize(start + batch, axis=0)
            u[rows], step[rows], time[rows] = values, np.arange(start, start + batch), times + start
            file.flush()

    return paired("snapshots of 100 bytes, ten thousand at a time", [
        ours_writer(folder, 25, ours),
        h5py_writer(folder, 25, theirs, chunk=batch),
    ], np.testing.assert_array_equal, work=n, unit="snapshots", repeats=min(3, sizes.repeats), warm=False)


def ours_writer(folder: Path, width: int, write: Callable[[Any], None]) -> Contender:
    """A store created before the clock starts, read back and removed after it stops."""
    path = folder / "ours.h5"

    def read_back(store: Any, _: None) -> np.ndarray:
        store.close()
        values = np.array(ek.open(path)["u"][:])
        remove(path)
        return values

    def create() -> Any:
        os.sync()       # what the round before left unwritten must not slow this one
        return ek.create(path, {"u": ek.Field((width,), "f4")})

    return Contender("ensemblekit", write, create, read_back)


def h5py_writer(folder: Path, width: int, write: Callable[[h5py.File], None], chunk: int = 1) -> Contender:
    """Unlimited datasets of values, step and time, resized, written and flushed: an H5MD element by hand."""
    path = folder / "theirs.h5"

    def create() -> h5py.File:
        os.sync()
        file = h5py.File(path, "w")
        file.create_dataset("u", (0, width), "f4", maxshape=(None, width), chunks=(chunk, width))
        for name, kind in (("step", "i8"), ("time", "f8")):
            file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1024,))
        return file

    def read_back(file: h5py.File, _: None) -> np.ndarray:
        values = file["u"][:]
        file.close()
        path.unlink()
        return values

    return Contender("h5py resize + write + flush", write, create, read_back)
