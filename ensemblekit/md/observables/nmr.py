"""What NMR sees of an ensemble: NOE distances, three-bond J couplings, order parameters; each averages what NMR averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from ensemblekit.averaging.average import average as mean_with_error
from ensemblekit.averaging.estimate import Estimate
from ensemblekit.averaging.times import time_at
from ensemblekit.errors import InputError
from ensemblekit.md.observables.base import Mean, Measurement, OfMean, OfSeries, Reading, SameAtoms
from ensemblekit.md.observables.groups import Points, points_of
from ensemblekit.md.observables.rmsf import fitted_mean
from ensemblekit.md.superpose import Fit, split
from ensemblekit.md.system import Gather, System
from ensemblekit.source import ArraySource, Block

KARPLUS: Mapping[str, Mapping[str, tuple[float, float, float, float]]] = {
    "HN-HA": {"Bax2007": (8.4, -1.36, 0.33, -60.0), "Bax1997": (7.09, -1.42, 1.55, -60.0),
              "Ruterjans1999": (7.90, -1.05, 0.65, -60.0)},
    "HN-C": {"Bax2007": (4.36, -1.08, -0.01, 180.0)},
    "HN-CB": {"Bax2007": (3.71, -0.59, 0.08, 60.0)},
}
"""A, B, C in Hz and the phase in degrees of J = A cos²(φ + phase) + B cos(φ + phase) + C: Vögeli et al., J. Am. Chem. Soc. 129,
9377, 2007; Hu & Bax, ibid. 119, 6360, 1997; Schmidt et al., J. Biomol. NMR 14, 1, 1999."""
AMIDE = ("H", "HN", "HT1", "H1")
"""Names of a hydrogen on the backbone's N."""
MOST_DISTANCES = 1_000_000


@dataclass(frozen=True)
class NOE(SameAtoms):
    """Distances as NOEs average them, ⟨Σ r^-p⟩^(-1/p) over frames and pairs of protons; in angstrom, an array (pairs,).

    A single structure has no such distance: near frames count by r^-6. To the nearest image.
    """

    pairs: Sequence[tuple[str, str]]
    """Two selections each; all their atoms are taken with all (methyls, ambiguous ones)."""
    power: float = 6.0
    """6 where the protons' vector is slower than tumbling, 3 where it is faster."""
    equivalent: Literal["sum", "mean"] = "sum"
    """"mean" divides by the number of pairs of protons."""

    def prepare(self, system: System) -> Measurement:
        if not (isinstance(self.power, int | float) and 0 < self.power <= 12):
            raise InputError(f"power is that of 1/r, 6 or 3; got {self.power!r}")
        if self.equivalent not in ("sum", "mean"):
            raise InputError(f'equivalent is "sum" or "mean"; got {self.equivalent!r}')
        groups = _checked_pairs(system, self.pairs)
        atoms = np.unique(np.concatenate([one for both in groups for one in both]))
        places = [(np.searchsorted(atoms, a), np.searchsorted(atoms, b)) for a, b in groups]
        pairs = np.concatenate([np.stack([np.repeat(a, len(b)), np.tile(b, len(a))], axis=1) for a, b in places])
        counts = np.array([len(a) * len(b) for a, b in places])
        if len(pairs) > MOST_DISTANCES:
            raise InputError(f"these are {len(pairs)} distances a frame; the most is {MOST_DISTANCES}: choose fewer atoms")
        points = points_of(system, [atoms[k:k + 1] for k in range(len(atoms))], None, True)
        share = np.ones(len(counts)) if self.equivalent == "sum" else 1.0 / counts
        begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return Measurement(partial(_inverse_powers, points, pairs, begin, share, float(self.power)), OfMean(
            partial(_distance_of, float(self.power)), "Angstrom", {"pair": (np.arange(len(counts)), "")}, bounds=(0.0, None)))


def _checked_pairs(system: System, pairs: object) -> list[tuple[np.ndarray, np.ndarray]]:
    """The atoms of each pair of selections; InputError where there are none, or an atom is paired with itself."""
    if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not len(pairs):
        raise InputError(f'NOE takes pairs of selections, [("index 3", "index 17"), ...], one at least; got {pairs!r}')
    groups = []
    for k, both in enumerate(pairs):
        if isinstance(both, str) or not isinstance(both, Sequence) or len(both) != 2:
            raise InputError(f"pair {k} is two selections; got {both!r}")
        a, b = system.select(both[0]), system.select(both[1])
        if len(np.intersect1d(a, b)):
            raise InputError(f"pair {k} has an atom on both sides: {both[0]!r} and {both[1]!r}")
        groups.append((a, b))
    return groups


def _inverse_powers(points: Points, pairs: np.ndarray, begin: np.ndarray, share: np.ndarray, power: float,
                    block: Block) -> np.ndarray:
    """Sums of r^-p, (n, pairs)."""
    from ensemblekit.md.kernels_geometry import distances

    out = np.empty((len(block), len(begin)))
    for rows, x, boxes in points.parts(block):
        r = np.empty((len(x), len(pairs)))
        distances(x, pairs, boxes, r)
        with np.errstate(divide="ignore"):
            out[rows] = np.add.reduceat(r**-power, begin, axis=1) * share
    return out


def _distance_of(power: float, mean: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(mean ** (-1.0 / power))


@dataclass(frozen=True)
class JCoupling(SameAtoms):
    """Three-bond J couplings by Karplus' equation, A cos²(φ + phase) + B cos(φ + phase) + C; in Hz, an array (residues,).

    Averaged over frames as they are. Residues without the atoms of the coupling (no H on N: prolines, the first; no CB:
    glycines) are left out, which the answer says. Models themselves are good to 0.2 to 0.4 Hz.
    """

    kind: str = "HN-HA"
    """"HN-HA", "HN-C" or "HN-CB", all of the torsion phi."""
    select: str | Sequence[str] | Sequence[Sequence[str]] = "protein"
    """With `coefficients`: four atoms, one selection each; or several such fours."""
    model: str = "Bax2007"
    coefficients: tuple[float, float, float, float] | None = None
    """(A, B, C, phase in degrees) of any other coupling."""

    def prepare(self, system: System) -> Measurement:
        if self.coefficients is not None:
            four = _fours(system, self.select)
            terms = tuple(map(float, self.coefficients))
            if len(terms) != 4 or not np.isfinite(terms).all():
                raise InputError(f"coefficients are A, B, C and the phase in degrees; got {self.coefficients!r}")
            coords = {"coupling": (np.arange(len(four)), "")}
        else:
            if self.kind not in KARPLUS:
                raise InputError(f"kind is one of {', '.join(KARPLUS)}; got {self.kind!r}. Any other takes coefficients=")
            models = KARPLUS[self.kind]
            if self.model not in models:
                raise InputError(f"model of {self.kind} is one of {', '.join(models)}; got {self.model!r}")
            if not isinstance(self.select, str):
                raise InputError("select= is one selection; four atoms go with coefficients=(A, B, C, phase)")
            terms = models[self.model]
            four, resids = _phi_with(system, self.select, self.kind)
            coords = {"residue": (resids, "")}
        flat = four.ravel()
        points = points_of(system, [flat[k:k + 1] for k in range(len(flat))], None, True)
        quadruples = np.arange(len(flat)).reshape(-1, 4)
        return Measurement(partial(_couplings, points, quadruples, terms), Mean("Hz", coords))


def _fours(system: System, select: object) -> np.ndarray:
    """Atoms (m, 4) of torsions given by their selections."""
    if isinstance(select, str) or not isinstance(select, Sequence) or not len(select):
        raise InputError(f"coefficients= goes with select= of four atoms, one selection each; got {select!r}")
    fours = [select] if all(isinstance(one, str) for one in select) else list(select)
    found = []
    for four in fours:
        groups = [system.select(one) for one in four]
        if len(groups) != 4 or any(len(one) != 1 for one in groups):
            raise InputError(f"a torsion is four selections of one atom; {four!r} have {[len(one) for one in groups]}")
        found.append([int(one[0]) for one in groups])
    return np.array(found)


def _phi_with(system: System, select: str, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (m, 4) of phi of the residues that have those of a coupling, and their numbers; the others are told."""
    topology = system.topology
    inside = np.zeros(len(topology), bool)
    inside[system.select(select)] = True
    residues: list[dict[str, int]] = [{} for _ in range(len(topology.segment_of))]
    for atom, (residue, name) in enumerate(zip(topology.residue_of.tolist(), topology.names, strict=True)):
        residues[residue].setdefault(str(name), atom)
    first = {residue: next(iter(held.values())) for residue, held in enumerate(residues) if held}
    resids, segids, resnames = topology.resids, topology.segids, topology.resnames
    needs = {"HN-CB": "CB"}.get(kind)
    fours, numbers, left = [], [], []
    for k in range(1, len(residues)):
        this, before = residues[k], residues[k - 1]
        if not {"N", "CA", "C"} <= this.keys() or not inside[this["CA"]]:
            continue
        a, b = first[k - 1], first[k]
        if "C" not in before or segids[a] != segids[b] or resids[b] - resids[a] not in (0, 1):
            continue
        if not any(name in this for name in AMIDE) or (needs and needs not in this):
            left.append(f"{resnames[b]} {resids[b]}")
            continue
        fours.append([before["C"], this["N"], this["CA"], this["C"]])
        numbers.append(int(resids[b]))
    if left:
        what = f"an H on N{' or no ' + needs if needs else ''}"
        more = " ..." if len(left) > 6 else ""
        system.note(f"{len(left)} residues without {what} were left out: {', '.join(left[:6])}{more}")
    if not fours:
        raise InputError(f"no residue of {select!r} has a {kind} coupling: it takes N with a hydrogen, CA and C, and the C of "
                         "the residue before")
    return np.array(fours), np.array(numbers)


def _couplings(points: Points, quadruples: np.ndarray, terms: tuple[float, ...], block: Block) -> np.ndarray:
    """In Hz, (n, couplings)."""
    from ensemblekit.md.kernels_geometry import dihedrals

    a, b, c, phase = terms
    out = np.empty((len(block), len(quadruples)))
    for rows, x, boxes in points.parts(block):
        dihedrals(x, quadruples, boxes, out[rows])
    cosine = np.cos(out + np.radians(phase))
    return np.asarray((a * cosine + b) * cosine + c)


@dataclass(frozen=True)
class OrderParameter(SameAtoms):
    """Lipari and Szabo's S² of bond vectors: 1 rigid, 0 free; an array (residues,).

    S² = ½ (3 Σ_ab ⟨μ_a μ_b⟩² - 1) over components a, b of the unit vector (J. Am. Chem. Soc. 104, 4546, 1982; Henry & Szabo,
    J. Chem. Phys. 82, 4753, 1985), frames superposed on their mean structure. Residues without both atoms are left out.
    """

    select_a: str = "name N"
    select_b: str = "name H"
    fit: str | Literal[False] = "backbone"
    """What is superposed; False: frames as they are."""
    _: KW_ONLY
    window: float | None = None
    """In ps: the mean over windows of this length, where tumbling or slow exchange must not count."""

    def prepare(self, system: System) -> Measurement:
        a, b, resids = _bonds(system, self.select_a, self.select_b)
        both = np.concatenate([a, b])
        gather, found, same = fitted_mean(system, both, f"({self.select_a}) or ({self.select_b})", self.fit, None, None,
                                          rounds=1, why="OrderParameter")
        coords = {"residue": (resids, "")}
        products = partial(_products, gather, found.fit, same)
        if self.window is None:
            return Measurement(products, OfMean(_order_of, "", coords, bounds=(0.0, 1.0)), note="the mean structure")
        if not (isinstance(self.window, int | float) and self.window > 0):
            raise InputError(f"window is a time in ps, above 0; got {self.window!r}")
        return Measurement(products, OfSeries(partial(_over_windows, float(self.window)), "", coords, (0.0, 1.0),
                                              in_time="an order parameter of windows"))


def _bonds(system: System, select_a: str, select_b: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atoms a and b of the residues that have one of each, and the numbers of these."""
    a, b = system.select(select_a), system.select(select_b)
    residue_of = system.topology.residue_of
    for select, atoms in ((select_a, a), (select_b, b)):
        which, counts = np.unique(residue_of[atoms], return_counts=True)
        if (counts > 1).any():
            one = system.topology.resids[atoms[residue_of[atoms] == which[np.argmax(counts)]][0]]
            raise InputError(f"{select!r} chooses {counts.max()} atoms of residue {one}: a bond is one atom of each selection")
    shared, at_a, at_b = np.intersect1d(residue_of[a], residue_of[b], return_indices=True)
    if not len(shared):
        raise InputError(f"no residue has an atom of {select_a!r} and one of {select_b!r}")
    if left := max(len(a), len(b)) - len(shared):
        system.note(f"{left} residues without both atoms were left out")
    return a[at_a], b[at_b], system.topology.resids[a[at_a]]


def _products(gather: Gather, fit: Fit, same: bool, block: Block) -> np.ndarray:
    """Second-rank products of unit vectors, (n, bonds, 6): xx, yy, zz, xy, xz, yz."""
    positions, index = gather(block)
    fitted, atoms = split(index, len(fit), same)
    x = fit.moved(positions, fitted, atoms)
    half = x.shape[1] // 2
    bond = x[:, half:] - x[:, :half]
    with np.errstate(invalid="ignore"):
        bond /= np.linalg.norm(bond, axis=2, keepdims=True)
    i, j = np.array([0, 1, 2, 0, 0, 1]), np.array([0, 1, 2, 1, 2, 2])
    return np.asarray(bond[..., i] * bond[..., j])


def _order_of(mean: np.ndarray) -> np.ndarray:
    """S² of mean products (..., 6)."""
    return np.asarray(0.5 * (3 * ((mean[..., :3] ** 2).sum(-1) + 2 * (mean[..., 3:] ** 2).sum(-1)) - 1))


def _over_windows(window: float, reading: Reading) -> Estimate:
    """The mean of S² over windows of time, their error that of a series of windows."""
    kept = reading.run
    if kept.times is None:
        raise InputError("window= is a time, and these frames have none: read them with dt=, or leave it out")
    length = max(1, round(window / kept.spacing))
    count = kept.n // length
    if count < 1 or length < 2:
        raise InputError(f"a window of {window:g} ps holds {window / kept.spacing:.3g} frames, and the run {kept.n}: it is to "
                         "hold two at least, and no more than the run")
    values = reading.values[:count * length].reshape(count, length, *reading.values.shape[1:])
    w = np.ones(count * length) if kept.weights is None else kept.weights[:count * length]
    w = w.reshape(count, length)
    total = w.sum(axis=1)
    held = total > 0
    share = w[held] / total[held, None]
    order = _order_of(np.einsum("kt,kt...->k...", share, values[held]))
    answer = mean_with_error(ArraySource.of(order, weights=None if kept.weights is None else total[held]),
                             equilibration=None, confidence=reading.confidence)
    return replace(answer, n=kept.n, statistical_inefficiency=answer.statistical_inefficiency * length,
                   correlation_time=answer.correlation_time * length * kept.spacing, time_unit="ps",
                   equilibration_time=time_at(kept.times, 0))
