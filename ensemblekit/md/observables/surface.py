"""Solvent accessible surface, by mdtraj."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError
from ensemblekit.md.elements import elements_of
from ensemblekit.md.observables.base import Mean, Measurement
from ensemblekit.md.observables.groups import residues_of
from ensemblekit.md.system import Gather, System
from ensemblekit.md.updating import Updating, updating_selection
from ensemblekit.source import Block


@dataclass(frozen=True)
class SASA:
    """Solvent accessible surface area of a selection, which no other atoms cover; in angstrom².

    Shrake & Rupley (J. Mol. Biol. 79, 351, 1973) by mdtraj's `shrake_rupley`, with its radii; needs mdtraj
    (``pip install 'ensemblekit[sasa]'``). An array where `level` is "residue" or "atom".
    """

    select: str = "protein"
    level: Literal["total", "residue", "atom"] = "total"
    probe: float = 1.4
    """Radius of the solvent, in angstrom."""
    n_points: int = 960
    """On each atom's sphere."""
    updating: bool = False
    """Choose the atoms anew in every frame, for the total."""
    elements: Any = None
    """Symbols, for atoms of which the topology does not say them: by name, {"BB": "C"}, one an atom, or "names" for the
    first letter of each name."""
    _: KW_ONLY
    radii: Any = None
    """In angstrom, instead of those of elements: by name, {"BB": 2.6}, or one an atom."""

    def prepare(self, system: System) -> Measurement:
        if self.level not in ("total", "residue", "atom"):
            raise InputError(f'level is "total", "residue" or "atom"; got {self.level!r}')
        if not (np.isfinite(self.probe) and self.probe >= 0) or self.n_points < 1:
            raise InputError(f"probe is a radius in angstrom and n_points above 0; got {self.probe!r} and {self.n_points!r}")
        if self.updating:
            if self.level != "total":
                raise InputError(f'SASA(updating=True) is a total; level={self.level!r} has an axis of residues or atoms, '
                                 "which would change from frame to frame")
            everyone = np.arange(len(system.topology))
            selection = updating_selection(system, self.select)
            symbols, radii = _kinds(system, everyone, self)
            return Measurement(partial(_varying_area, selection, system.topology.names, symbols, radii, self.probe / 10,
                                       int(self.n_points)), Mean("Angstrom2", bounds=(0.0, None)))
        atoms = system.select(self.select)
        which, resids = residues_of(system, atoms)
        symbols, radii = _kinds(system, atoms, self)
        topology, residue = _mdtraj_topology(atoms, system.topology.names[atoms], symbols, which, resids)
        coords = {"total": {}, "residue": {"residue": (resids, "")}, "atom": {"atom": (atoms, "")}}[self.level]
        return Measurement(partial(_area, system.assembled(atoms), topology, self.level, residue, radii, self.probe / 10,
                                   int(self.n_points)), Mean("Angstrom2", coords, (0.0, None)))


def _kinds(system: System, atoms: np.ndarray, settings: SASA) -> tuple[list[str], Mapping[str, float] | None]:
    """Element symbols of the atoms for mdtraj, and radii in nm by symbol where they are given.

    Radii of one's own go by symbols that stand for nothing but a radius.
    """
    topology = system.topology
    names = [str(name) for name in topology.names[atoms]]
    if settings.radii is not None:
        from mdtraj.geometry.sasa import _ATOMIC_RADII

        radii = np.asarray(_said(settings.radii, names, "radii", atoms), np.float64)
        if not (np.isfinite(radii) & (radii > 0)).all():
            raise InputError(f"radii= are lengths above 0 in angstrom; got {radii.min():g} to {radii.max():g}")
        distinct, which = np.unique(radii, return_inverse=True)
        words = list(_ATOMIC_RADII)
        if len(distinct) > len(words):
            raise InputError(f"radii= has {len(distinct)} different radii, and mdtraj takes {len(words)}; round them")
        return [words[k] for k in which], {words[k]: float(r) / 10 for k, r in enumerate(distinct)}
    if settings.elements == "names":
        return [name.lstrip("0123456789")[:1].upper() for name in names], None
    symbols = elements_of(topology, atoms)
    if settings.elements is not None:
        said = _said(settings.elements, names, "elements", atoms, symbols)
        symbols = [str(symbol).capitalize() for symbol in said]
    unknown = sorted({name for name, symbol in zip(names, symbols, strict=True) if not symbol})
    if unknown:
        count = sum(not symbol for symbol in symbols)
        some = ", ".join(unknown[:6]) + (", ..." if len(unknown) > 6 else "")
        one = unknown[0]
        raise InputError(f"the topology does not say of which element {count} of these {len(atoms)} atoms are ({some}), and a "
                         f"radius by the first letter of a name would be a guess. Pass radii= (angstrom, {{{one!r}: 2.6, ...}} "
                         f"by name, or one an atom), or elements= ({{{one!r}: 'C', ...}}, or \"names\" where the first letter "
                         "is the element); or read with a topology that has elements or masses")
    return symbols, None


def _said(what: Any, names: list[str], word: str, atoms: np.ndarray, other: Sequence[Any] | None = None) -> list[Any]:
    """A value for each atom from a mapping of names, or from one value an atom."""
    if isinstance(what, Mapping):
        missing = sorted({name for name in names if name not in what})
        if other is None and missing:
            raise InputError(f"{word}= has nothing for the names {', '.join(missing[:8])}")
        return [what[name] if other is None or name in what else other[k] for k, name in enumerate(names)]
    values = list(what) if not isinstance(what, str) else []
    if len(values) != len(atoms):
        raise InputError(f"{word}= is a mapping of atom names, or one value for each of the {len(atoms)} atoms; got "
                         f"{repr(what)[:80]}")
    return values


def _mdtraj_topology(atoms: np.ndarray, names: np.ndarray, symbols: list[str], which: np.ndarray, resids: np.ndarray
                     ) -> tuple[Any, np.ndarray]:
    try:
        import mdtraj
    except ImportError as error:
        raise MissingExtraError("mdtraj", "sasa") from error
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    order = np.argsort(which, kind="stable")
    if not (order == np.arange(len(order))).all():
        raise InputError("the atoms of a residue must stand together for a surface by mdtraj")
    residues = [topology.add_residue("UNK", chain, int(resid)) for resid in resids]
    for atom, name, k, symbol in zip(atoms, names, which, symbols, strict=True):
        try:
            element = mdtraj.element.get_by_symbol(symbol)
        except KeyError as error:
            raise InputError(f"atom {name} (number {atom}) is of no element that mdtraj knows ({symbol!r}); "
                             "leave it out, or read with a topology that has elements") from error
        topology.add_atom(str(name), element, residues[k])
    return topology, which


def _varying_area(selection: Updating, names: np.ndarray, symbols: list[str], radii: Mapping[str, float] | None,
                  probe: float, n_points: int, block: Block) -> np.ndarray:
    positions, atoms, begin = selection(block)
    out = np.zeros(len(block))
    for t in range(len(block)):
        chosen = atoms[begin[t]:begin[t + 1]]
        x = np.asarray(positions[t, chosen], np.float32) / np.float32(10)
        if not np.isfinite(x).all():
            out[t] = np.nan
        elif len(chosen):
            alone = np.zeros(len(chosen), np.int64)       # residues do not matter to a total
            topology, _ = _mdtraj_topology(chosen, names[chosen], [symbols[k] for k in chosen], alone, np.zeros(1, np.int64))
            out[t] = areas(x[None], topology, probe, n_points, "atom", radii).sum(dtype=np.float64)
    return out


def _area(gather: Gather, topology: Any, level: str, residue: np.ndarray, radii: Mapping[str, float] | None,
          probe: float, n_points: int, block: Block) -> np.ndarray:
    positions, index = gather(block)
    x = np.asarray(positions[:, index], np.float32) / np.float32(10)
    sound = np.isfinite(x).all((1, 2))
    area = areas(np.where(sound[:, None, None], x, np.arange(x.shape[1], dtype=np.float32)[None, :, None]), topology, probe,
                 n_points, "residue" if level == "residue" else "atom", radii)
    area[~sound] = np.nan
    return area.sum(1) if level == "total" else area


WARM = 3
"""mdtraj (1.11) moves the points on its spheres on in every frame that a thread works on. They are evenly spread from the
third frame on; in the first, the area comes out too small, by 1 % with 100 points."""


def areas(positions: np.ndarray, topology: Any, probe: float, n_points: int, mode: str,
          radii: Mapping[str, float] | None = None) -> np.ndarray:
    """Areas in angstrom² of frames (n, atoms, 3) in nm: each as it comes out with evenly spread points, in one thread."""
    import mdtraj
    from threadpoolctl import threadpool_limits

    frames = np.concatenate([positions[:1]] * WARM + [positions])
    with threadpool_limits(1, "openmp"):
        areas_nm2 = mdtraj.shrake_rupley(mdtraj.Trajectory(frames, topology), probe_radius=probe, n_sphere_points=n_points,
                                         mode=mode, change_radii=None if radii is None else dict(radii))
    return 100.0 * areas_nm2[WARM:].astype(np.float64)
