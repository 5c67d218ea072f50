"""How often the intervals of md.average hold the truth: synthetic trajectories whose means are known in closed form.

Two systems, correlated in time: a chain of four atoms whose dihedral is an Ornstein-Uhlenbeck process on the circle, and a
crystal of atoms on springs in a heat bath, each coordinate an Ornstein-Uhlenbeck process about its site; and particles that
diffuse through a periodic box. Every trajectory goes through ``md.average`` as a user's would, box, threads and all.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter
from scipy.special import erf
from scipy.stats import binomtest, ncx2

from ensemblekit import md
from ensemblekit.engine import Serial

PHI = 0.8
"""Autocorrelation of neighbouring frames: g is (1 + PHI) / (1 - PHI) = 9."""
FRAMES = 600
MEAN, SPREAD = 2.0, 0.6
"""Of the dihedral, in radians."""
SIDE, SIGMA = 4.0, 0.5
"""Of the crystal: lattice constant and displacement of each coordinate, in angstrom."""
RADIUS = 5.0
"""Within which neighbours are counted; the second shell lies at 5.66."""
DIFFUSION = 0.5
"""Of the particles, in angstrom^2 per ps and frame."""


def run(quick: bool) -> list[dict[str, Any]]:
    """The table, printed and as rows."""
    rows = coverage_table(200 if quick else 2000)
    table = Table(title=f"coverage of nominal 95 % intervals of md.average, {rows[0]['trajectories']} trajectories each")
    for name in ("observable", "truth", "covered", "99 % interval", "meets 94 to 96 %", "not vouched for", "mean n_eff"):
        table.add_column(name, justify="left" if name == "observable" else "right")
    for row in rows:
        table.add_row(row["observable"], f"{row['truth']:.4f}", f"{100 * row['coverage']:.1f} %",
                      f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %", "yes" if row["meets"] else "NO",
                      f"{100 * row['refused']:.1f} %", f"{row['n_eff']:.0f}")
    Console().print(table)
    reweighted = reweighted_coverage(100 if quick else 400)
    table = Table(title=f"intervals of means over reweighted frames, AR(1), {reweighted[0]['trajectories']} runs of 4000 each")
    for name in ("mean of", "truth", "sampling interval covers", "of independent frames"):
        table.add_column(name, justify="left" if name == "mean of" else "right")
    for row in reweighted:
        table.add_row(row["observable"], f"{row['truth']:.4f}", f"{100 * row['coverage']:.1f} %",
                      f"{100 * row['independent']:.1f} %")
    Console().print(table)
    return rows + reweighted


def reweighted_coverage(repeats: int, seed: int = 0) -> list[dict[str, Any]]:
    """How often the sampling interval of a reweighted mean holds that of infinitely many frames.

    x is AR(1), Gaussian, of autocorrelation 0.9, its mean measured as 1 +- 0.5, theta 2: the exact weights shift it by 2/3, so
    that the mean of x is 2/3 and that of x^2 13/9. Beside it the bar that takes frames for independent and weights for given.
    """
    rng = np.random.default_rng(seed)
    truths = {"x": 2 / 3, "x^2": 13 / 9}
    hits: dict[str, list[bool]] = {name: [] for name in truths}
    plain: dict[str, list[bool]] = {name: [] for name in truths}
    for _ in range(repeats):
        noise = rng.standard_normal(4000) * np.sqrt(1 - 0.9**2)
        noise[0] = rng.standard_normal()
        x = lfilter([1.0], [1.0, -0.9], noise)
        fit = md.reweight(x[:, None], ([1.0], [0.5]), theta=2.0)
        for name, values in (("x", x), ("x^2", x**2)):
            answer = fit.average(values)
            hits[name].append(bool(answer.sampling.low <= truths[name] <= answer.sampling.high))
            alone = 1.96 * np.sqrt((fit.weights**2 * (values - answer.mean) ** 2).sum())
            plain[name].append(bool(abs(answer.mean - truths[name]) <= alone))
    return [{"observable": f"reweighted {name}", "truth": truth, "trajectories": repeats,
             "coverage": float(np.mean(hits[name])), "independent": float(np.mean(plain[name]))}
            for name, truth in truths.items()]


def coverage_table(trajectories: int, seed: int = 0, names: tuple[str, ...] = ("dihedral", "crystal", "particles")
                   ) -> list[dict[str, Any]]:
    """One row an observable of the systems named: how often its interval held the truth, with the 99 % interval of that share
    (Clopper & Pearson)."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for system in names:
            observables, truths, make, universe = SYSTEMS[system]()
            hits: dict[str, list[bool]] = {name: [] for name in truths}
            refused, n_eff = dict.fromkeys(truths, 0), dict.fromkeys(truths, 0.0)
            rng = np.random.default_rng(seed)
            for _ in range(trajectories):
                positions, box = make(rng)
                universe.load_new(positions.astype(np.float32), dimensions=box)
                averages = md.average(universe, observables, whole=True, engine=Serial(), quiet=True)
                for name, (take, truth) in truths.items():
                    estimate, value = take(averages)
                    low, high, enough = value
                    hits[name].append(bool(low <= truth <= high))
                    refused[name] += not estimate.converged
                    n_eff[name] += enough / trajectories
            for name, (_, truth) in truths.items():
                p = binomtest(sum(hits[name]), trajectories)
                low, high = p.proportion_ci(0.99)
                rows.append({"observable": name, "truth": float(truth), "trajectories": trajectories,
                             "coverage": float(np.mean(hits[name])), "low": float(low), "high": float(high),
                             "meets": bool(low <= 0.96 and high >= 0.94), "refused": refused[name] / trajectories,
                             "n_eff": float(n_eff[name])})
    return rows


Take = Callable[[Any], tuple[Any, tuple[float, float, float]]]


def scalar(name: str, further: str = "") -> Take:
    """The interval of a number."""
    def take(averages: Any) -> tuple[Any, tuple[float, float, float]]:
        e = getattr(averages[name], further) if further else averages[name]
        return e, (e.low, e.high, e.n_eff)
    return take


def element(name: str, k: int, further: str = "") -> Take:
    """The interval of one element of an array."""
    def take(averages: Any) -> tuple[Any, tuple[float, float, float]]:
        e = getattr(averages[name], further) if further else averages[name]
        return e, (e.low[k], e.high[k], e.n_eff[k])
    return take


def ornstein_uhlenbeck(n: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Stationary from the start, variance 1, autocorrelation PHI^t: (n, *shape)."""
    noise = rng.standard_normal((n, *shape)) * np.sqrt(1 - PHI**2)
    noise[0] /= np.sqrt(1 - PHI**2)
    return lfilter([1.0], [1.0, -PHI], noise, axis=0)


def empty(n: int, names: str = "A") -> Any:
    import MDAnalysis as mda

    u = mda.Universe.empty(n, n_residues=n, atom_resindex=np.arange(n), trajectory=True)
    u.add_TopologyAttr("names", list(names) if len(names) == n else [names] * n)
    u.add_TopologyAttr("masses", np.ones(n))
    u.add_TopologyAttr("resids", np.arange(n) + 1)
    u.add_TopologyAttr("resnames", ["X"] * n)
    return u


def dihedral(frames: int = FRAMES) -> Any:
    """A-B-C-D, only the torsion about B-C moves."""
    truths = {"mean dihedral (circular), degrees": (scalar("phi"), np.degrees(MEAN))}

    def make(rng: np.random.Generator) -> tuple[np.ndarray, None]:
        angle = MEAN + SPREAD * ornstein_uhlenbeck(frames, (), rng)
        x = np.zeros((frames, 4, 3))
        x[:, 0] = [1, 0, 0]
        x[:, 2:, 2] = 1.5
        x[:, 3, 0], x[:, 3, 1] = np.cos(angle), np.sin(angle)
        return x, None

    return {"phi": md.Dihedral("all")}, truths, make, empty(4, "ABCD")


def crystal(frames: int = FRAMES) -> Any:
    """27 atoms on a cubic lattice in a periodic box."""
    site = np.array(list(itertools.product(range(3), repeat=3))) * SIDE
    edge = 3 * SIDE
    spread = np.sqrt(2) * SIGMA                 # of the difference of two atoms, along each axis
    mean_distance = (spread * np.sqrt(2 / np.pi) * np.exp(-SIDE**2 / (2 * spread**2))
                     + (SIDE + spread**2 / SIDE) * erf(SIDE / (spread * np.sqrt(2))))
    apart = site[1:, None] + edge * np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    neighbours = ncx2.cdf((RADIUS / spread) ** 2, 3, (apart**2).sum(-1) / spread**2).sum()
    truths = {"distance of neighbours, angstrom": (scalar("d"), mean_distance),
              "RMSF of an atom, angstrom": (element("rmsf", 5), np.sqrt(3) * SIGMA),
              "neighbours within 5 angstrom (RDF)": (element("g", -1, "coordination"), neighbours)}

    def make(rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
        return site + SIGMA * ornstein_uhlenbeck(frames, (27, 3), rng), [edge, edge, edge, 90, 90, 90]

    # RMSF without superposition: about the mean positions, which the frames themselves give
    observables = {"d": md.Distance("index 0", "index 1"), "rmsf": md.RMSF("all", fit=False),
                   "g": md.RDF("all", range=(0.0, RADIUS), n_bins=5)}
    return observables, truths, make, empty(27)


def particles(frames: int = 200) -> Any:
    """Sixteen particles that diffuse in a box, more than twice the longest of 10^5 steps; jumps at its faces are undone."""
    n, edge = 16, 14.0
    truths = {"diffusion coefficient, angstrom^2 / ps": (scalar("msd", "diffusion"), DIFFUSION),
              "mean squared displacement at lag 10": (element("msd", 10), 6 * DIFFUSION * 10)}

    def make(rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
        x = np.cumsum(rng.normal(0, np.sqrt(2 * DIFFUSION), (frames, n, 3)), axis=0)
        return x - np.floor(x / edge) * edge, [edge, edge, edge, 90, 90, 90]

    return {"msd": md.MSD("all")}, truths, make, empty(n)


SYSTEMS = {"dihedral": dihedral, "crystal": crystal, "particles": particles}
