"""Two checkouts side by side: about 80 answers of every front-end, to the last bit.

    PYTHONPATH=$PWD python tests/same_answers.py write FILE.npz        # in each checkout
    PYTHONPATH=$PWD python tests/same_answers.py compare OLD.npz NEW.npz

Everything is seeded, run by one thread with one BLAS thread, and every number of every answer is kept under the path by
which it is reached, such as ``md rmsf.result.rmsf.mean``. ``compare`` names each number that differs, by how much, and the
paths that only one of the two has (names that were changed); it exits with 1 where a number differs.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse  # noqa: E402
import dataclasses  # noqa: E402
import hashlib  # noqa: E402
import itertools  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

CASES: dict[str, Callable[[Path], Any]] = {}
CLOCKED = ("seconds", "path", "paths", "peak", "measurement", "mesh")    # differ from run to run, or are no answer


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A function of an empty folder whose answer is compared."""
    CASES[function.__name__] = function
    return function


def flat(name: str, x: Any, into: dict[str, np.ndarray]) -> None:
    """Every number and word that can be reached from x, by its path."""
    if isinstance(x, np.ndarray | np.generic | bool | int | float | complex | str | bytes):
        value = np.asarray(x)
        if value.dtype.kind in "biufcSU":
            into[name] = value
        elif value.dtype.kind == "O":
            flat(name, list(value.ravel()), into)
    elif x is None or isinstance(x, Path) or isinstance(x, type):
        into[name] = np.asarray(str(type(x).__name__ if not isinstance(x, type) else x.__name__))
    elif type(x).__module__.partition(".")[0] == "torch":
        if hasattr(x, "detach"):
            flat(name, x.detach().cpu().numpy(), into)
        elif hasattr(x, "state_dict"):
            flat(name, dict(x.state_dict()), into)
    elif isinstance(x, Mapping):
        for key in x:
            flat(f"{name}.{key}", x[key], into)
        if dataclasses.is_dataclass(x):
            _fields(name, x, into)
    elif dataclasses.is_dataclass(x):
        _fields(name, x, into)
    elif isinstance(x, tuple) and hasattr(x, "_fields"):
        for key in x._fields:
            flat(f"{name}.{key}", getattr(x, key), into)
    elif isinstance(x, Sequence):
        for k, one in enumerate(x):
            flat(f"{name}[{k}]", one, into)


def _fields(name: str, x: Any, into: dict[str, np.ndarray]) -> None:
    for one in dataclasses.fields(x):
        if not one.name.startswith("_") and one.name not in CLOCKED:
            flat(f"{name}.{one.name}", getattr(x, one.name), into)


# -- the core --------------------------------------------------------------------------------------------------------------

def ar1(n: int, phi: float = 0.9, shape: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    from scipy.signal import lfilter

    noise = np.random.default_rng(seed).standard_normal((n + 200, *shape))
    return 3.0 + lfilter([1.0], [1.0, -phi], noise, axis=0)[200:]


def weights(n: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).random(n) + 0.1


def reducers() -> dict[str, Any]:
    import ensemblekit as ek

    edges = np.linspace(-10, 16, 40)
    return {"moments": ek.Moments(), "four": ek.Moments(order=4), "covariance": ek.Covariance(), "extremes": ek.Extremes(),
            "histogram": ek.Histogram(edges), "quantiles": ek.Quantiles([0.1, 0.5, 0.9]), "series": ek.Series(),
            "sketch": ek.QuantileSketch(), "blocks": ek.BlockSums(), "window": ek.Window(50),
            "exponential": ek.Exponential(0.9)}


@case
def core_scalar_average(_: Path) -> Any:
    import ensemblekit as ek

    return {f"{phi} {rule}": ek.average(ar1(3000, phi), equilibration=rule) for phi in (0.0, 0.7, 0.97)
            for rule in ("auto", None)}


@case
def core_array_average(_: Path) -> Any:
    import ensemblekit as ek

    return {"f8": ek.average(ar1(2000, shape=(7, 3))),
            "f4": ek.average(ar1(2000, shape=(50,)).astype("f4"), equilibration=None)}


@case
def core_weighted_average(_: Path) -> Any:
    import ensemblekit as ek

    return {"scalar": ek.average(ar1(1500), weights=weights(1500)),
            "array": ek.average(ar1(1500, shape=(9,)), weights=weights(1500), equilibration=None)}


@case
def core_drifting_start(_: Path) -> Any:
    import ensemblekit as ek

    x = ar1(4000, 0.8)
    x[:500] += np.linspace(30, 0, 500)
    return {"auto": ek.average(x), "given": ek.average(x, equilibration=600), "none": ek.average(x, equilibration=None)}


@case
def core_replicas(_: Path) -> Any:
    import ensemblekit as ek

    return {"scalar": ek.average(ek.ReplicaSet.of([ar1(1000 + 100 * k, seed=k) for k in range(5)])),
            "array": ek.average(ek.ReplicaSet.of([ar1(1200, shape=(4,), seed=k) for k in range(4)]), equilibration=None)}


@case
def core_reducers(_: Path) -> Any:
    import ensemblekit as ek

    out = {}
    for name, reducer in reducers().items():
        x = ar1(1111, shape=() if name == "sketch" else (5,))
        out[name] = ek.reduce(x, reducer, engine=ek.Serial())
        if name not in ("window", "exponential", "blocks"):
            out[f"{name} weighted"] = ek.reduce(ek.ArraySource.of(x, weights=weights(1111)), reducer, engine=ek.Serial())
    return out


@case
def core_reducers_in_space(_: Path) -> Any:
    import ensemblekit as ek

    x = ar1(300, shape=(64, 9))
    return {"gram": ek.reduce(x, ek.Gram(), cut="space", limit=20_000, engine=ek.Serial()),
            "moments": ek.reduce(x, ek.Moments(), cut="space", limit=20_000, engine=ek.Serial()),
            "extremes": ek.reduce(x, ek.Extremes(), limit=1000, engine=ek.Serial())}


@case
def core_stored(folder: Path) -> Any:
    import ensemblekit as ek

    x = ar1(1500, shape=(33,)).astype("f4")
    with ek.create(folder / "a.h5", {"u": ek.Field((33,), "f4"), "e": ek.Field()}) as store:
        store.extend({"u": x, "e": x[:, 0].astype("f8")}, times=np.arange(1500) * 0.5, weights=weights(1500))
    store = ek.open(folder / "a.h5")
    both = ek.reduce(store, {"m": (lambda block: block.fields["u"][:, :2], ek.Moments())}, engine=ek.Serial())
    return {"reduce": ek.reduce(store["u"], ek.Moments()), "average": ek.average(store["u"], equilibration=None),
            "scalar": ek.average(store["e"]), "window": ek.reduce(store["u"].window(100, 1300, 3), ek.Moments()), "map": both}


@case
def core_partials(_: Path) -> Any:
    import ensemblekit as ek

    (run,) = ek.partials(ar1(5000, shape=(3,)), {"m": ek.Moments()}, engine=ek.Serial())
    return {"first": run.states[0]["m"][0].state(), "merged": ek.merged(run, 1000)["m"][0].state()}


# -- molecular dynamics ----------------------------------------------------------------------------------------------------

def adenylate(folder: Path) -> Path:
    from MDAnalysisTests import datafiles as data

    from ensemblekit import md

    path = folder / "adk.h5md"
    md.ingest(data.PSF, data.DCD, path)
    return path


def md_observables() -> dict[str, Any]:
    from ensemblekit import md

    ca = "name CA"
    return {
        "rg": md.RadiusOfGyration("protein"), "rg parts": md.RadiusOfGyration("protein", components=True),
        "tensor": md.GyrationTensor("protein"), "rmsd": md.RMSD(ca), "rmsf": md.RMSF(ca),
        "distance": md.Distance("resid 30 and name CA", "resid 90 and name CA"), "end": md.EndToEnd(ca),
        "map": md.DistanceMap("name CA and resid 1:30"), "contacts": md.Contacts("resid 30:60", "resid 100:140", radius=6.0),
        "native": md.NativeContacts("name CA"), "contact map": md.ContactMap("name CA and resid 1:40"),
        "phi": md.Dihedral("resid 30 and name N", "resid 30 and name CA", "resid 30 and name C", "resid 31 and name N"),
        "angle": md.Angle("resid 30 and name CA", "resid 90 and name CA", "resid 150 and name CA"),
        "torsions": md.Dihedrals([(*(f"resid 30 and name {atom}" for atom in ("N", "CA", "C")), "resid 31 and name N")]),
        "rama": md.Ramachandran("protein"), "pca": md.PCA("name CA"),
        "msd": md.MSD("name CA"), "hbonds": md.HydrogenBonds(between=("protein and resid 1:60", "protein")),
        "dipole": md.Dipole("protein"),
        "secondary": md.SecondaryStructure("protein"), "density": md.DensityProfile("protein", n_bins=20, range=(-40.0, 40.0)),
        "helix": md.HelixContent("protein"),
    }


def md_answers(source: Any, observables: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """One read an observable, so that one which refuses does not hide the others; a refusal is an answer."""
    import ensemblekit as ek
    from ensemblekit import md

    answers: dict[str, Any] = {}
    for name, one in observables.items():
        try:
            answers[name] = md.average(source, {"it": one}, quiet=True, engine=ek.Serial(), **options)
        except (ek.EnsemblekitError, RuntimeError) as error:
            answers[name] = f"{type(error).__name__}: {error}"
    return answers


@case
def md_every_observable(folder: Path) -> Any:
    return md_answers(adenylate(folder), md_observables())


@case
def md_together_from_files(_: Path) -> Any:
    from MDAnalysisTests import datafiles as data

    import ensemblekit as ek
    from ensemblekit import md

    some = {k: v for k, v in md_observables().items() if k in ("rg", "rmsf", "rmsd", "phi", "distance")}
    return {"all": md.average(md.read(data.PSF, data.DCD), some, quiet=True, engine=ek.Serial()),
            "parts": md.average(md.read(data.PSF, [data.DCD, data.DCD2]), {"rg": some["rg"]}, quiet=True, engine=ek.Serial()),
            "steps": md.average(md.read(data.PSF, data.DCD), {"rg": some["rg"]}, begin=10, step=2, quiet=True,
                                engine=ek.Serial())}


@case
def md_weighted_frames(folder: Path) -> Any:
    some = {k: v for k, v in md_observables().items() if k in ("rg", "rmsf", "native", "rama", "tensor", "msd")}
    path = adenylate(folder)
    return {"weights": md_answers(path, some, frame_weights=weights(98)),
            "frames": md_answers(path, some, frames=[0, 3, 5, 20, 21, 40, 60, 61, 62, 90])}


@case
def md_replicas(folder: Path) -> Any:
    from MDAnalysisTests import datafiles as data

    import ensemblekit as ek
    from ensemblekit import md

    runs = ek.ReplicaSet.of([md.read(data.PSF, data.DCD), md.read(data.PSF, data.DCD2)])
    some = {k: v for k, v in md_observables().items() if k in ("rg", "rmsf", "rmsd", "native", "pca", "contacts", "phi")}
    return md_answers(runs, some)


@case
def md_boxed(folder: Path) -> Any:
    from MDAnalysisTests import datafiles as data

    from ensemblekit import md

    near = {"rdf": md.RDF("name OH2", range=(0.0, 6.0), n_bins=30), "rg": md.RadiusOfGyration("all"),
            "density": md.DensityProfile("all", n_bins=10), "hbonds": md.HydrogenBonds(), "dipole": md.Dipole("all"),
            "dielectric": md.DielectricConstant(temperature=300), "msd": md.MSD("name OH2")}
    return md_answers(md.read(data.PSF_TRICLINIC, data.DCD_TRICLINIC), near)


@case
def md_superpositions(folder: Path) -> Any:
    import ensemblekit as ek
    from ensemblekit import md

    path = adenylate(folder)
    x = np.asarray(ek.open(path)["position"][:40])[:, :200]
    return {"rmsd": md.rmsd(x, x[0]), "matrix": md.rmsd_matrix(x),
            "pca": md.principal_components(path, "name CA", n_components=4)}


@case
def md_analysis_classes(folder: Path) -> Any:
    from MDAnalysis.analysis.rms import RMSD

    from ensemblekit import md

    return md_answers(adenylate(folder), {"rmsd": md.from_analysis(
        lambda u: RMSD(u, select="name CA"), value=lambda a: a.results.rmsd[:, 2])})


# -- flows -----------------------------------------------------------------------------------------------------------------

def decaying(n: int, size: int, power: float = 1.5, seed: int = 0, dtype: str = "f4") -> np.ndarray:
    rng = np.random.default_rng(seed)
    k = min(n, size) // 3
    left = np.linalg.qr(rng.standard_normal((n, k)))[0] * np.arange(1, k + 1.0) ** -power
    return (left @ rng.standard_normal((k, size)) + 2.0).astype(dtype)


ROUTES = ("auto", "gram", "covariance", "tsqr", "randomized", "incremental")


def bases(source: Any, methods: Sequence[str] = ROUTES, **how: Any) -> dict[str, Any]:
    import ensemblekit as ek
    from ensemblekit import rom

    answers: dict[str, Any] = {}
    for method in methods:
        try:
            answers[method] = rom.pod(source, rank=6, method=method, engine=ek.Serial(), **how)
        except (ek.EnsemblekitError, RuntimeError) as error:
            answers[method] = f"{type(error).__name__}: {error}"
    return answers


@case
def rom_in_memory(_: Path) -> Any:
    return {"f4": bases(decaying(120, 900)), "f8": bases(decaying(150, 400, dtype="f8")),
            "tall": bases(decaying(400, 90, dtype="f8"))}


@case
def rom_stored(folder: Path) -> Any:
    import ensemblekit as ek

    x = decaying(200, 1500)
    with ek.create(folder / "a.h5", {"u": ek.Field((750, 2), "f4"), "p": ek.Field((100,), "f4")}) as store:
        store.extend({"u": x.reshape(200, 750, 2), "p": x[:, :100] * 9}, times=np.arange(200) * 0.1, weights=weights(200))
    store = ek.open(folder / "a.h5")
    return {"one": bases(store["u"]), "two": bases(store)}


@case
def rom_larger_than_the_limit(folder: Path) -> Any:
    import ensemblekit as ek

    x = decaying(400, 20_000)
    with ek.create(folder / "a.h5", {"u": ek.Field((20_000,), "f4")}) as store:
        store.extend({"u": x})
    return bases(ek.open(folder / "a.h5")["u"], memory_limit="24MiB")


@case
def rom_weights_and_centers(_: Path) -> Any:
    x = {"u": decaying(130, 500, dtype="f8"), "p": 50 * decaying(130, 60, seed=4, dtype="f8")}
    return {"max": bases(x, scale="max"), "first": bases(x, center="first"), "none": bases(x, center="none"),
            "mass": bases(x, inner_product={"u": np.linspace(0.1, 2, 500)}), "scales": bases(x, scale={"u": 2.0, "p": 30.0})}


@case
def rom_weighted_snapshots(_: Path) -> Any:
    import ensemblekit as ek

    return bases(ek.ArraySource.of({"u": decaying(130, 500, dtype="f8")}, weights=weights(130)))


@case
def rom_complex_numbers(_: Path) -> Any:
    x = decaying(130, 300, dtype="f8")
    return bases(x + 1j * x[::-1])


@case
def rom_rank_by_rule(_: Path) -> Any:
    import ensemblekit as ek
    from ensemblekit import rom

    x = decaying(130, 700, dtype="f8")
    serial = ek.Serial()
    return {"energy": rom.pod(x, energy=0.999, engine=serial), "tolerance": rom.pod(x, tolerance=0.01, engine=serial),
            "absolute": rom.pod(x, absolute_tolerance=5.0, engine=serial),
            "noise": rom.pod(x + np.random.default_rng(0).standard_normal(x.shape), rank="gavish-donoho", engine=serial),
            "deep": rom.pod(decaying(100, 900, 8, dtype="f8"), rank=30, engine=serial)}


@case
def rom_gaps(_: Path) -> Any:
    import ensemblekit as ek
    from ensemblekit import rom

    x = decaying(80, 300, dtype="f8")
    x[:, 5] = np.nan
    masked = rom.pod(x, rank=5, engine=ek.Serial())
    x[np.random.default_rng(1).random(x.shape) < 0.03] = np.nan
    return {"masked": masked, "gappy": rom.pod(x, rank=5, missing="gappy", engine=ek.Serial())}


@case
def rom_streamed(_: Path) -> Any:
    from ensemblekit import rom

    stream = rom.IncrementalPOD(rank=6)
    for block in np.array_split(decaying(200, 400, dtype="f8"), 9):
        stream.update(block)
    return stream.result()


@case
def rom_runs_one_after_the_other(_: Path) -> Any:
    import ensemblekit as ek

    return bases(ek.ReplicaSet.of([decaying(70, 300, dtype="f8"), decaying(50, 300, seed=2, dtype="f8")]))


@case
def rom_field_averages(_: Path) -> Any:
    import ensemblekit as ek
    from ensemblekit import rom

    u = ar1(2000, 0.8, (30, 2))
    what = ["mean", "rms", "reynolds_stress", "tke"]
    return {"plain": rom.average(u, what, equilibration=None, engine=ek.Serial()),
            "auto": rom.average(u, what, engine=ek.Serial())}


@case
def rom_archives(folder: Path) -> Any:
    from ensemblekit import rom

    t, y, x = np.ogrid[0:6:120j, 0:1:24j, 0:4:40j]
    u = np.stack([1 + y + 0.3 * np.sin(3 * x - 2 * np.pi * t) * np.sin(np.pi * y),
                  0.2 * np.cos(3 * x - 2 * np.pi * t) + 0 * y], -1)
    u = (u + 1e-3 * np.random.default_rng(0).standard_normal(u.shape)).astype("f4")
    answers = {}
    for norm, tolerance in itertools.product(("l2", "max"), (0.1, 1e-3)):
        path = folder / f"{norm}{tolerance}.h5"
        archive = rom.compress(u, path, tolerance=tolerance, norm=norm)
        answers[f"{norm} {tolerance}"] = {"values": np.asarray(rom.decompress(path)), "error": archive.error}
    return answers


@case
def rom_decay(_: Path) -> Any:
    from ensemblekit import rom

    return rom.decay_rate(np.linalg.svd(decaying(90, 400, dtype="f8"), compute_uv=False)[:20])


@case
def rom_plans(_: Path) -> Any:
    """What is chosen for 200 and more problems, from small to far larger than memory."""
    import ensemblekit as ek
    from ensemblekit import rom

    class Shape:
        """A source of which only the shape is known."""

        def __init__(self, n: int, size: int, dtype: str, access: str):
            self.fields, self.lengths, self.access = {"u": ek.Field((size,), dtype)}, (n,), access
            self.time_unit, self.times, self.weights = "", None, None
            self.origin = getattr(ek.ArraySource.of(np.zeros(1)), "origin", None)

        def window(self, start: int = 0, stop: int | None = None, step: int = 1) -> Any:
            n = len(range(*slice(start, stop, step).indices(self.lengths[0])))
            return Shape(n, self.fields["u"].size, self.fields["u"].dtype, self.access)

        def pieces(self, names: Any, cut: Any, tiled: Any, limit: Any) -> Any:
            raise AssertionError("a plan reads nothing")

    answers: dict[str, Any] = {}
    grid = itertools.product((20, 400, 6000, 100_000), (100, 9000, 10**6, 10**8), ("f4", "f8"), ("tiles", "rows"),
                             ("64MiB", "2GiB"), ({"rank": 10}, {"energy": 0.999}))
    for n, size, dtype, access, memory, rule in grid:
        name = f"{n} x {size} {dtype} {access} {memory} {rule}"
        try:
            plan = rom.plan(Shape(n, size, dtype, access), memory_limit=memory, engine=ek.Threads(2), **rule)
            answers[name] = {**{one.name: getattr(plan, one.name) for one in dataclasses.fields(plan)}, "text": str(plan)}
        except ek.EnsemblekitError as error:
            answers[name] = f"{type(error).__name__}: {error}"
    return answers


# -- neural networks -------------------------------------------------------------------------------------------------------

def trained(path: Path, stop_at: int | None = None) -> Any:
    """A training of 30 updates in three cycles; cut off where `stop_at` says."""
    import torch

    from ensemblekit import neural

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=30, n_cycles=3)
    x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    updates = 0
    with neural.Recorder(path, model, optimizer, schedule, save_every=3) as rec:
        for _ in rec.epochs(6):
            for a, b in rec.batches(loader):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(a), b)
                loss.backward()
                optimizer.step()
                rec.step(loss)
                updates += 1
                if updates == stop_at:
                    raise KeyboardInterrupt
                schedule.step()
    return model


def of_store(path: Path) -> dict[str, Any]:
    import ensemblekit as ek
    from ensemblekit import neural

    store = ek.open(path)
    past = neural.history(store)
    return {**{name: np.asarray(store[name][:]) for name in ("parameters", "buffers") if name in store},
            "steps": store["parameters"].times, "loss": past.loss, "rate": past.learning_rate}


@case
def neural_recorder(folder: Path) -> Any:
    return {"model": trained(folder / "w.h5"), "store": of_store(folder / "w.h5")}


@case
def neural_resumed(folder: Path) -> Any:
    try:
        trained(folder / "w.h5", stop_at=14)
    except KeyboardInterrupt:
        pass
    return {"model": trained(folder / "w.h5"), "store": of_store(folder / "w.h5")}


def net(seed: int) -> Any:
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    nn = torch.nn
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 4))


def ensemble(**how: Any) -> Any:
    from ensemblekit import neural
    from ensemblekit.neural.parameters import to_vectors

    rows = [to_vectors(net(k)) for k in range(4)]
    return neural.Ensemble(net(9), {kind: np.stack([row[kind] for row in rows]) for kind in rows[0]}, **how)


def images() -> Any:
    import torch

    g = torch.Generator().manual_seed(3)
    return torch.randn(24, 1, 8, 8, generator=g), torch.randint(4, (24,), generator=g)


@case
def neural_predictions(_: Path) -> Any:
    x, y = images()
    loader = [(x[:10], y[:10]), (x[10:], y[10:])]
    return {"plain": ensemble().predict(loader, path="sequential"),
            "weighted": ensemble(weights=[1, 0.5, 2, 1]).predict(loader, path="sequential"),
            "logit": ensemble(space="logit").predict(loader, path="sequential")}


@case
def neural_weight_averages(_: Path) -> Any:
    import ensemblekit as ek
    from ensemblekit import neural

    x, y = images()
    loader = [(x[:12], y[:12]), (x[12:], y[12:])]
    return {"swa": ensemble().averaged_model(loader, barrier="ignore"),
            "weighted": ensemble(weights=[1, 0.5, 2, 1]).averaged_model(loader, barrier="ignore"),
            "window": ensemble().averaged_model(loader, average=ek.Window(2), barrier="ignore"),
            "ema": ensemble().averaged_model(loader, average=ek.Exponential(0.9), barrier="ignore"),
            "models": neural.averaged([net(k) for k in range(3)])}


@case
def neural_scores(_: Path) -> Any:
    from ensemblekit import neural

    x, y = images()
    return neural.scores(ensemble().predict([(x, y)], path="sequential"))


@case
def neural_swag(_: Path) -> Any:
    posterior = ensemble().swag(rank=3)
    return {name: getattr(posterior, name) for name in ("mean", "variance", "deviations") if hasattr(posterior, name)}


# -- writing and comparing -------------------------------------------------------------------------------------------------

def write(path: Path, only: str = "") -> dict[str, np.ndarray]:
    """Every answer of every case, in one file of arrays; a case that fails is an answer in words."""
    answers: dict[str, np.ndarray] = {}
    for name, function in CASES.items():
        if only not in name:
            continue
        begin, before = time.perf_counter(), len(answers)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                flat(name, function(Path(folder)), answers)
            except Exception as error:
                answers[f"{name} FAILED"] = np.asarray(f"{type(error).__name__}: {error}".replace(folder, "FOLDER"))
                traceback.print_exc()
        print(f"{name:32} {len(answers) - before:6} arrays  {digest(answers, name)}  {time.perf_counter() - begin:5.1f} s",
              file=sys.stderr)
    np.savez_compressed(path, **{name.replace("/", "\u2215"): value for name, value in answers.items()})
    return answers


def digest(answers: Mapping[str, np.ndarray], name: str) -> str:
    """One hash of a case: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for key in sorted(key for key in answers if key.startswith(name)):
        x = np.ascontiguousarray(answers[key])
        total.update(f"{key}|{x.dtype}|{x.shape}|".encode())
        total.update(x.tobytes())
    return total.hexdigest()[:16]


def compare(old: Path, new: Path) -> int:
    """Print what differs; the number of arrays that do."""
    with np.load(old) as a, np.load(new) as b:
        before, after = {name: a[name] for name in a.files}, {name: b[name] for name in b.files}
    for word, names in (("only in the old", before.keys() - after.keys()), ("only in the new", after.keys() - before.keys())):
        for name in sorted(names):
            print(f"{word}: {name}")
    different = 0
    for name in sorted(before.keys() & after.keys()):
        x, y = before[name], after[name]
        if x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes():
            continue
        different += 1
        if x.shape == y.shape and x.dtype.kind in "fc" and y.dtype.kind in "fc":
            with np.errstate(invalid="ignore", divide="ignore"):
                gap = np.abs(x - y) / np.maximum(np.abs(x), np.abs(y))
            far = f"at most {np.nanmax(gap):.3g} relative" if np.isfinite(gap).any() else "NaN or infinite"
            print(f"differs: {name}: {int((gap > 0).sum())} of {x.size} numbers, {far}, {x.dtype} to {y.dtype}")
        else:
            print(f"differs: {name}: {x.dtype} {x.shape} {str(x)[:70]!r} -> {y.dtype} {y.shape} {str(y)[:70]!r}")
    print(f"{len(before.keys() & after.keys())} arrays compared, {different} differ")
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("file", type=Path)
    writing.add_argument("--only", default="", help="cases whose names hold this")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    given = parser.parse_args()
    if given.command == "write":
        write(given.file, given.only)
        return 0
    return int(compare(given.old, given.new) > 0)


if __name__ == "__main__":
    sys.exit(main())
