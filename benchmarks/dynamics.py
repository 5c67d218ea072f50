"""Reduced models against the libraries that people fit them with: the same data, answers compared.

Peers (PyDMD, opinf, EZyRB; scipy is always there) take part where they are installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import ensemblekit as ek
from benchmarks.pairing import Case, Contender, paired
from benchmarks.rom import remove
from ensemblekit import rom

RATES = np.array([-0.05 + 2j * np.pi, -0.02 + 1.3 * 2j * np.pi, -0.08 + 0.37 * 2j * np.pi])
"""Of three decaying oscillations."""
FLOW = "/observables/u/value"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    trials: int = 200
    search: int = 800
    """Snapshots of the regularisation search."""
    steps: int = 100_000
    """Times at which a quadratic model is asked for."""
    snapshots: int = 1000
    cells: int = 200_000
    samples: int = 200
    numbers: int = 20_000
    """Of a field of the parameter study."""
    repeats: int = 3


FULL = Sizes()
QUICK = Sizes(trials=40, search=400, steps=20_000, snapshots=400, cells=40_000, samples=60, numbers=5000, repeats=2)
TINY = Sizes(trials=4, search=200, steps=200, snapshots=60, cells=300, samples=20, numbers=200, repeats=1)
"""For the test that keeps the benchmarks from rotting."""


def run(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """Every case, one after the other; `folder` is for files and is left empty."""
    yield exponentials(sizes)
    yield search(sizes)
    yield steps(sizes)
    yield from_store(sizes, folder)
    yield left_out(sizes)


def there(*peers: tuple[str, Contender]) -> list[Contender]:
    """Those whose package is installed."""
    return [contender for package, contender in peers if importlib.util.find_spec(package)]


def oscillations(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,) and coefficients (n, 6) of three oscillations in noise."""
    rng = np.random.default_rng(seed)
    t = 0.05 * np.arange(n)
    shape = rng.normal(size=(3, 6)) + 1j * rng.normal(size=(3, 6))
    return t, (np.exp(np.outer(t, RATES)) @ shape).real + noise * rng.normal(size=(n, 6))


def rates_agree(tolerance: float) -> Callable[[Any, Any], None]:
    """A check of continuous eigenvalues, in any order."""
    def check(ours: np.ndarray, theirs: np.ndarray) -> None:
        for one in ours:
            assert np.abs(theirs - one).min() < tolerance, (ours, theirs)
    return check


def exponentials(sizes: Sizes) -> Case:
    """Rates of exponentials fitted to all samples at once, with their spread from fits to halves of the samples."""
    t, x = oscillations(400, 0.01)
    source = [ek.ArraySource.of(x, times=t)]

    def pydmd(_: Any) -> np.ndarray:
        from pydmd import BOPDMD

        fit = BOPDMD(svd_rank=6, num_trials=sizes.trials, trial_size=0.5, use_proj=True)
        fit.fit(x.T, t)
        return np.asarray(fit.eigs)

    def ours(_: Any) -> np.ndarray:
        return np.asarray(rom.dmd(source, method="opt", n_resamples=sizes.trials).eigenvalues.value)

    return paired(f"rates of 6 x 400 coefficients, {sizes.trials} resamples",
                  [Contender("ensemblekit", ours), *there(("pydmd", Contender("PyDMD BOPDMD", pydmd, repeats=1)))],
                  rates_agree(0.02), work=sizes.trials, unit="fits", repeats=sizes.repeats)


def wave(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Times and 8 coefficients of a wave and its harmonics, nearly noiseless."""
    t = 0.05 * np.arange(n)
    parts = [f(k * t) / k**2 for k in range(1, 5) for f in (np.cos, np.sin)]
    return t, np.stack(parts, axis=1) + 1e-4 * np.random.default_rng(1).normal(size=(n, 8))


def search(sizes: Sizes) -> Case:
    """Operators c, A, H of 8 modes with their regularisation by the integrated error; the answer is that error."""
    t, x = wave(sizes.search)
    candidates = [(a, b) for a in 10.0 ** np.arange(-6, 2, 2) for b in 10.0 ** np.arange(-6, 2, 2)]

    def integrated(predict: Callable[[], np.ndarray]) -> float:
        found = predict()
        return float(np.linalg.norm(found - x) / np.linalg.norm(x)) if found.shape == x.shape else np.inf

    def ours(_: Any) -> float:
        model = rom.operator_inference(ek.ArraySource.of(x, times=t), form="cAH", time="continuous", ddt=6, horizon=1.0,
                                       bound=5.0, n_resamples=0)
        return integrated(lambda: model.simulate(x[0], t).coefficients)

    def peer(_: Any) -> float:
        import opinf

        solver = opinf.lstsq.TikhonovSolver()
        model = opinf.models.ContinuousModel("cAH", solver=solver)
        whole = opinf.ROM(model=model, ddt_estimator=opinf.ddt.UniformFiniteDifferencer(t, "ord6"))

        def weights(pair: tuple[float, float]) -> np.ndarray:
            return np.diag(np.concatenate([np.full(1 + 8, pair[0]), np.full(36, pair[1])]))

        whole.fit_regselect_continuous(candidates, t, x.T, regularizer_factory=weights, test_time_length=float(t[-1]),
                                       stability_margin=5.0)
        return integrated(lambda: whole.predict(x[0], t, method="RK45").T)

    def no_worse(own: float, other: float) -> None:
        assert own <= 1.1 * other + 1e-3, f"integrated error {own:.3g}, that of the peer {other:.3g}"

    return paired(f"regularisation of cAH, 8 modes, {sizes.search} snapshots",
                  [Contender("ensemblekit", ours), *there(("opinf", Contender("opinf fit_regselect", peer, repeats=1)))],
                  no_worse, work=1.0, unit="searches", repeats=sizes.repeats)


def steps(sizes: Sizes) -> Case:
    """A quadratic model of 10 states at many times, to the same tolerance; the answers are compared before chaos parts them."""
    from scipy.integrate import solve_ivp

    rng = np.random.default_rng(2)
    h = rng.normal(size=(10, 10, 10))
    turn = rng.normal(size=(10, 10))
    h = h - np.einsum("ijk->jik", h)        # no energy is made: x · H (x, x) = 0
    model = rom.QuadraticModel.of(A=0.6 * (turn - turn.T), H=0.02 * h)
    x0, t = rng.normal(size=10), 0.02 * np.arange(sizes.steps)      # about as long as the steps of either
    a, full = model.A, model.tensor.reshape(10, 100)

    def peer(_: Any) -> np.ndarray:
        found = solve_ivp(lambda _, x: a @ x + full @ np.outer(x, x).ravel(), (0, t[-1]), x0, method="RK45", t_eval=t,
                          rtol=1e-8, atol=1e-10)
        return np.asarray(found.y.T)

    def ours(_: Any) -> np.ndarray:
        return np.asarray(model.simulate(x0, t, rtol=1e-8).coefficients)

    return paired(f"{sizes.steps} times of a quadratic model, 10 states",
                  [Contender("ensemblekit", ours), Contender("scipy solve_ivp", peer)],
                  lambda one, two: np.testing.assert_allclose(one[:1000], two[:1000], atol=1e-3 * np.abs(two).max()),
                  work=sizes.steps, unit="times", repeats=sizes.repeats)


def from_store(sizes: Sizes, folder: Path) -> Case:
    """Dynamic modes straight from a store, reading included."""
    t, x = oscillations(sizes.snapshots, 0.0)
    rng = np.random.default_rng(3)
    path = folder / "flow.h5"
    patterns = rng.standard_normal((6, sizes.cells), dtype="f4")
    with ek.create(path, {"u": ek.Field((sizes.cells,), "f4")}, capacity=sizes.snapshots) as store:
        for k in range(0, sizes.snapshots, 50):
            store.extend({"u": (x[k:k + 50] @ patterns).astype("f4")}, times=t[k:k + 50])

    def ours(_: Any) -> np.ndarray:
        return np.asarray(rom.dmd(ek.open(path)["u"], 6, n_resamples=0).eigenvalues.value)

    def pydmd(_: Any) -> np.ndarray:
        from pydmd import DMD

        with h5py.File(path) as file:
            values = file[FLOW][:]
        fit = DMD(svd_rank=6, exact=True).fit(values.T)
        return np.log(np.asarray(fit.eigs)) / 0.05

    def numpy_svd(_: Any) -> np.ndarray:
        with h5py.File(path) as file:
            values = file[FLOW][:].T
        u, s, vh = np.linalg.svd(values[:, :-1], full_matrices=False)
        u, s, vh = u[:, :6], s[:6], vh[:6]
        return np.log(np.linalg.eigvals(u.T @ values[:, 1:] @ vh.T / s).astype(complex)) / 0.05

    try:
        return paired(f"dynamic modes of a store, {sizes.snapshots} x {sizes.cells}, reading included",
                      [Contender("ensemblekit", ours), Contender("h5py + numpy svd", numpy_svd),
                       *there(("pydmd", Contender("h5py + PyDMD exact", pydmd)))],
                      rates_agree(1e-3), work=sizes.snapshots * sizes.cells * 4 / 1e9, unit="GB", repeats=sizes.repeats)
    finally:
        remove(path)


def left_out(sizes: Sizes) -> Case:
    """Errors of all samples of a parameter study when left out, 8 modes, thin-plate splines: ‖error‖ / ‖field‖ of each."""
    rng = np.random.default_rng(4)
    points = rng.uniform(-1, 1, (sizes.samples, 2))
    points = (points - points.mean(axis=0)) / points.std(axis=0)       # EZyRB takes parameters as they are
    s = np.linspace(-2, 2, sizes.numbers)
    fields = np.exp(-((s - 0.3 * points[:, :1]) ** 2) * (1 + 0.1 * points[:, 1:]))

    def ours(_: Any) -> np.ndarray:
        model = rom.parametric(fields, points, 8, method="rbf")
        scale = np.sqrt(((fields - fields.mean(axis=0)) ** 2).sum(axis=1).mean())
        return model.errors * scale / np.linalg.norm(fields, axis=1)

    def peer(_: Any) -> np.ndarray:
        import ezyrb

        whole = ezyrb.ReducedOrderModel(ezyrb.Database(points, fields), ezyrb.POD("svd", rank=8), ezyrb.RBF())
        return np.asarray(whole.loo_error())

    def alike(one: np.ndarray, two: np.ndarray) -> None:
        # its basis is of the fields, ours of their fluctuation: the errors are alike, not the same
        assert np.median(one) < 1.2 * np.median(two), (np.median(one), np.median(two))

    return paired(f"left-out errors of {sizes.samples} samples of {sizes.numbers} numbers",
                  [Contender("ensemblekit", ours), *there(("ezyrb", Contender("EZyRB loo_error", peer, repeats=1)))],
                  alike, work=sizes.samples, unit="samples", repeats=sizes.repeats)
