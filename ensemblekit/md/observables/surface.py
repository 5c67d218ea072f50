"""Solvent accessible surface, by mdtraj."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError
from ensemblekit.md.observables.base import Prepared
from ensemblekit.md.observables.groups import residues_of
from ensemblekit.md.system import Gather, System
from ensemblekit.md.updating import Updating, updating_selection
from ensemblekit.source import Block

ELEMENTS = {1: "H", 2: "H", 7: "Li", 11: "B", 12: "C", 14: "N", 16: "O", 19: "F", 23: "Na", 24: "Mg", 28: "Si", 31: "P",
            32: "S", 35: "Cl", 39: "K", 40: "Ca", 55: "Mn", 56: "Fe", 59: "Co", 64: "Cu", 65: "Zn", 79: "Se", 80: "Br",
            127: "I"}
"""By mass in u, rounded."""


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

    def prepare(self, system: System) -> Prepared:
        if self.level not in ("total", "residue", "atom"):
            raise InputError(f'level is "total", "residue" or "atom"; got {self.level!r}')
        if not (np.isfinite(self.probe) and self.probe >= 0) or self.n_points < 1:
            raise InputError(f"probe is a radius in angstrom and n_points above 0; got {self.probe!r} and {self.n_points!r}")
        if self.updating:
            if self.level != "total":
                raise InputError(f'SASA(updating=True) is a total; level={self.level!r} has an axis of residues or atoms, '
                                 "which would change from frame to frame")
            everyone = np.arange(len(system.topology))
            return Prepared(partial(_varying_area, updating_selection(system, self.select), system.topology.names,
                                    elements_of(system, everyone), self.probe / 10, int(self.n_points)), "Angstrom2",
                            bounds=(0.0, None))
        atoms = system.select(self.select)
        which, resids = residues_of(system, atoms)
        topology, residue = _mdtraj_topology(atoms, system.topology.names[atoms], elements_of(system, atoms), which, resids)
        coords = {"total": {}, "residue": {"residue": (resids, "")}, "atom": {"atom": (atoms, "")}}[self.level]
        return Prepared(partial(_area, system.assembled(atoms), topology, self.level, residue, self.probe / 10,
                                int(self.n_points)), "Angstrom2", coords, bounds=(0.0, None))


def elements_of(system: System, atoms: np.ndarray) -> list[str]:
    """Element symbols: as the topology has them, else by mass, else the first letter of the name."""
    topology = system.topology
    known = topology.atoms.get("elements")
    found = []
    for atom in atoms:
        symbol = str(known[atom]).strip().capitalize() if known is not None else ""
        mass = topology.masses[atom]
        if not symbol and np.isfinite(mass) and mass > 0:
            symbol = ELEMENTS.get(round(float(mass)), "")
        if not symbol:
            symbol = str(topology.names[atom]).lstrip("0123456789")[:1].upper()
        found.append(symbol)
    return found


def _mdtraj_topology(atoms: np.ndarray, names: np.ndarray, symbols: list[str], which: np.ndarray, resids: np.ndarray
                     ) -> tuple[Any, np.ndarray]:
    try:
        import mdtraj
    except ImportError as error:
        raise MissingExtraError("mdtraj", "sasa") from error
    made = mdtraj.Topology()
    chain = made.add_chain()
    order = np.argsort(which, kind="stable")
    if not (order == np.arange(len(order))).all():
        raise InputError("the atoms of a residue must stand together for a surface by mdtraj")
    residues = [made.add_residue("UNK", chain, int(resid)) for resid in resids]
    for atom, name, k, symbol in zip(atoms, names, which, symbols, strict=True):
        try:
            element = mdtraj.element.get_by_symbol(symbol)
        except KeyError as error:
            raise InputError(f"atom {name} (number {atom}) is of no element that mdtraj knows ({symbol!r}); "
                             "leave it out, or read with a topology that has elements") from error
        made.add_atom(str(name), element, residues[k])
    return made, which


def _varying_area(selection: Updating, names: np.ndarray, symbols: list[str], probe: float, n_points: int,
                  block: Block) -> np.ndarray:
    positions, atoms, begin = selection(block)
    out = np.zeros(len(block))
    for t in range(len(block)):
        mine = atoms[begin[t]:begin[t + 1]]
        x = np.asarray(positions[t, mine], np.float32) / np.float32(10)
        if not np.isfinite(x).all():
            out[t] = np.nan
        elif len(mine):
            alone = np.zeros(len(mine), np.int64)       # residues do not matter to a total
            topology, _ = _mdtraj_topology(mine, names[mine], [symbols[k] for k in mine], alone, np.zeros(1, np.int64))
            out[t] = areas(x[None], topology, probe, n_points, "atom").sum(dtype=np.float64)
    return out


def _area(gather: Gather, topology: Any, level: str, residue: np.ndarray, probe: float, n_points: int,
          block: Block) -> np.ndarray:
    positions, index = gather(block)
    x = np.asarray(positions[:, index], np.float32) / np.float32(10)
    sound = np.isfinite(x).all((1, 2))
    area = areas(np.where(sound[:, None, None], x, np.arange(x.shape[1], dtype=np.float32)[None, :, None]), topology, probe,
                 n_points, "residue" if level == "residue" else "atom")
    area[~sound] = np.nan
    return area.sum(1) if level == "total" else area


WARM = 3
"""mdtraj (1.11) moves the points on its spheres on in every frame that a thread works on. They are evenly spread from the
third frame on; in the first, the area comes out too small, by 1 % with 100 points."""


def areas(positions: np.ndarray, topology: Any, probe: float, n_points: int, mode: str) -> np.ndarray:
    """Areas in angstrom² of frames (n, atoms, 3) in nm: each as it comes out with evenly spread points, in one thread."""
    import mdtraj
    from threadpoolctl import threadpool_limits

    frames = np.concatenate([positions[:1]] * WARM + [positions])
    with threadpool_limits(1, "openmp"):
        found = mdtraj.shrake_rupley(mdtraj.Trajectory(frames, topology), probe_radius=probe, n_sphere_points=n_points,
                                     mode=mode)
    return 100.0 * found[WARM:].astype(np.float64)
