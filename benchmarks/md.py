"""Trajectories against MDAnalysis (serial and its parallel backend), mdtraj and GROMACS: each reads its best format its usual
way, and reading counts on both sides. Everyone runs once before the clock counts and then in turn, several rounds; a figure is
the median over them. MDAnalysis' processes are timed where that analysis can use them (Rg, RMSD, RDF).

The protein is adenylate kinase (3341 atoms, MDAnalysisTests), its 98 frames repeated with a little noise; the liquid is a box
of water on a jittered lattice, which costs a pair search what real water does. Peers that are not installed are left out.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ensemblekit as ek
from benchmarks import md_fields
from benchmarks.memory import extra_memory
from benchmarks.pairing import Case, Contender, paired
from ensemblekit import md
from ensemblekit.engine import cores

RANGE, BINS = 10.0, 100
"""Of the radial distribution functions, in angstrom."""
PARALLEL = {"backend": "multiprocessing", "n_workers": cores()}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    frames: int
    """Of the protein."""
    waters: int
    """Along each side of the box."""
    water_frames: int
    path_frames: int
    """Of the water in the case of diffusion."""
    field_waters: int
    """In the box of the electric fields."""
    field_frames: int
    repeats: int = 5
    slow: int = 3
    """Rounds of peers that take seconds."""


FULL = Sizes(frames=5000, waters=14, water_frames=50, path_frames=1000, field_waters=1000, field_frames=20)
QUICK = Sizes(frames=1000, waters=14, water_frames=20, path_frames=300, field_waters=1000, field_frames=5)
TINY = Sizes(frames=40, waters=7, water_frames=3, path_frames=30, field_waters=100, field_frames=2, repeats=1, slow=1)
"""For the test that keeps the benchmarks from rotting."""


def run(sizes: Sizes, folder: Path) -> Iterator[Case]:
    """Every case, one after the other; `folder` is for files and is left empty."""
    with quiet():
        protein = Protein.make(folder / "adk", sizes.frames)
        for case in (gyration, rmsd, rmsf, coordinates):
            yield case(protein, sizes)
        for kind in ("xtc", "dcd"):
            yield one_pass(protein, kind, sizes)
        shutil.rmtree(protein.folder)
        water = Water.make(folder / "water", sizes.waters, sizes.water_frames, 0)
        yield rdf(water, sizes)
        yield dielectric(water, sizes)
        shutil.rmtree(water.folder)
        water = Water.make(folder / "paths", max(4, sizes.waters // 2), sizes.path_frames, 1)
        yield diffusion(water, sizes)
        shutil.rmtree(water.folder)
        yield from md_fields.run(sizes.field_waters, sizes.field_frames, sizes.slow, folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the peers about topologies that lack this or that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def have(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def gmx(command: list[str], answer: str, stdin: str, folder: Path) -> np.ndarray:
    """Run a tool of GROMACS and read its .xvg."""
    out = folder / answer
    out.unlink(missing_ok=True)
    done = subprocess.run(["gmx", "-quiet", "-nobackup", *command], cwd=folder, input=stdin, text=True, timeout=600,
                          capture_output=True)
    if done.returncode:
        raise RuntimeError(f"gmx {command[0]}: {done.stderr[-800:]}")
    return np.loadtxt(out, comments=("#", "@"), ndmin=2)


def close(tolerance: float) -> Callable[[Any, Any], None]:
    """A check that both answers agree to a share of their largest number."""
    def check(ours: Any, theirs: Any) -> None:
        ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(ours).max())
    return check


@dataclass(frozen=True, slots=True)
class Protein:
    """The files of the protein."""

    folder: Path
    frames: int

    @classmethod
    def make(cls, folder: Path, frames: int) -> Protein:
        """The same coordinates as DCD, XTC and our store."""
        import MDAnalysis as mda
        from MDAnalysisTests.datafiles import DCD, PSF

        folder.mkdir(parents=True)
        u = mda.Universe(PSF, DCD)
        known = np.array([ts.positions.copy() for ts in u.trajectory])
        known -= known.mean(axis=1, keepdims=True) - 50.0
        noise = np.random.default_rng(0).normal(0, 0.2, (7, *known.shape[1:])).astype(np.float32)
        u.trajectory[0]
        shutil.copy(PSF, folder / "adk.psf")
        with mda.Writer(str(folder / "adk.dcd"), u.atoms.n_atoms) as dcd, mda.Writer(str(folder / "adk.xtc"),
                                                                                   u.atoms.n_atoms) as xtc:
            for k in range(frames):
                u.trajectory.ts.time, u.trajectory.ts.dimensions = float(k), [100, 100, 100, 90, 90, 90]
                u.trajectory.ts.data["step"], u.trajectory.ts.data["time"] = k, float(k)
                u.atoms.positions = known[k % len(known)] + np.roll(noise[k % 7], k, axis=0)
                dcd.write(u.atoms)
                xtc.write(u.atoms)
                if k == 0:
                    u.atoms.write(str(folder / "adk.pdb"))
        md.ingest(folder / "adk.psf", folder / "adk.dcd", folder / "adk.h5md", whole=True)
        return cls(folder, frames)

    def path(self, suffix: str) -> str:
        return str(self.folder / f"adk.{suffix}")

    def universe(self, suffix: str) -> Any:
        import MDAnalysis as mda

        return mda.Universe(self.path("psf"), self.path(suffix))

    def mdtraj(self, **options: Any) -> Any:
        import mdtraj

        return mdtraj.load_dcd(self.path("dcd"), top=mdtraj.load_psf(self.path("psf")), **options)


def ours(path: str, observable: Any) -> Any:
    return md.average(path, {"it": observable})["it"]


def mdanalysis(what: str, run: Callable[..., Any], files: Any, sizes: Sizes, parallel: bool = False) -> list[Contender]:
    """MDAnalysis one frame after the other and, where that analysis can, by its processes."""
    ways: list[tuple[str, dict[str, Any]]] = [("", {})]
    if parallel:
        ways.append((f" multiprocessing x{cores()}", PARALLEL))
    return [Contender(f"MDAnalysis{way} ({what})", partial(_run, run, files, how), repeats=sizes.slow) for way, how in ways]


def _run(run: Callable[..., Any], files: Any, how: dict[str, Any], _: Any) -> Any:
    return run(files, **how)


def gmx_contender(tool: str, sizes: Sizes, run: Callable[[], Any]) -> list[Contender]:
    """A tool of GROMACS, where it is installed."""
    return [Contender(f"gmx {tool} (XTC)", lambda _: run(), repeats=sizes.slow)] if shutil.which("gmx") else []


def mdtraj_contender(what: str, run: Callable[[Any], Any], files: Any, sizes: Sizes) -> list[Contender]:
    """mdtraj, where it is installed."""
    return [Contender(f"mdtraj ({what})", lambda _: run(files), repeats=sizes.slow)] if have("mdtraj") else []


# --- protein ------------------------------------------------------------------------------------------------------------

def mda_gyration(protein: Protein, **how: Any) -> float:
    from MDAnalysis.analysis.base import AnalysisFromFunction

    atoms = protein.universe("dcd").select_atoms("protein")
    analysis = AnalysisFromFunction(gyration_of, atoms.universe.trajectory, atoms).run(**how)
    return float(analysis.results.timeseries.mean())


def gyration_of(atoms: Any) -> float:
    return atoms.radius_of_gyration()


def mdtraj_gyration(protein: Protein) -> float:
    import mdtraj

    trajectory = protein.mdtraj()
    masses = np.array([atom.element.mass for atom in trajectory.topology.atoms])
    return float(mdtraj.compute_rg(trajectory, masses).mean() * 10)


def gyration(protein: Protein, sizes: Sizes) -> Case:
    """Mass-weighted radius of gyration, its mean."""
    contenders = [Contender("ensemblekit, with error bar (store)",
                            lambda _: ours(protein.path("h5md"), md.RadiusOfGyration("protein")).mean),
                  *mdanalysis("DCD", mda_gyration, protein, sizes, parallel=True),
                  *mdtraj_contender("DCD", mdtraj_gyration, protein, sizes),
                  *gmx_contender("gyrate", sizes, lambda: gmx(["gyrate", "-s", "adk.pdb", "-f", "adk.xtc", "-o", "rg.xvg"],
                                                              "rg.xvg", "System\n", protein.folder)[:, 1].mean() * 10)]
    return paired(f"Radius of gyration, {protein.frames} frames x 3341 atoms", contenders, close(2e-3), work=protein.frames,
                  unit="frames", repeats=sizes.repeats)


def mda_rmsd(protein: Protein, **how: Any) -> np.ndarray:
    from MDAnalysis.analysis.rms import RMSD

    return RMSD(protein.universe("dcd"), select="name CA").run(**how).results.rmsd[:, 2]


def mdtraj_rmsd(protein: Protein) -> np.ndarray:
    import mdtraj

    psf = mdtraj.load_psf(protein.path("psf"))
    trajectory = mdtraj.load_dcd(protein.path("dcd"), top=psf, atom_indices=psf.select("name CA"))
    return mdtraj.rmsd(trajectory, trajectory, 0) * 10


def rmsd(protein: Protein, sizes: Sizes) -> Case:
    """RMSD of the alpha carbons to the first frame, the whole series."""
    contenders = [Contender("ensemblekit, with error bar (store)",
                            lambda _: ours(protein.path("h5md"), md.RMSD("name CA")).series),
                  *mdanalysis("DCD", mda_rmsd, protein, sizes, parallel=True),
                  *mdtraj_contender("DCD", mdtraj_rmsd, protein, sizes),
                  *gmx_contender("rms", sizes, lambda: gmx(["rms", "-s", "adk.pdb", "-f", "adk.xtc", "-o", "rmsd.xvg"],
                                                           "rmsd.xvg", "C-alpha\nC-alpha\n", protein.folder)[:, 1] * 10)]
    return paired(f"RMSD of 214 CA, {protein.frames} frames x 3341 atoms", contenders, close(5e-3), work=protein.frames,
                  unit="frames", repeats=sizes.repeats)


def mda_rmsf(protein: Protein) -> np.ndarray:
    """The recipe of MDAnalysis' documentation."""
    from MDAnalysis.analysis import align, rms

    u = protein.universe("dcd")
    average = align.AverageStructure(u, u, select="name CA", ref_frame=0).run()
    align.AlignTraj(u, average.results.universe, select="name CA", in_memory=True).run()
    return rms.RMSF(u.select_atoms("name CA")).run().results.rmsf


def mdtraj_rmsf(protein: Protein) -> np.ndarray:
    """Superposed on the first frame, then on the mean."""
    import mdtraj

    psf = mdtraj.load_psf(protein.path("psf"))
    trajectory = mdtraj.load_dcd(protein.path("dcd"), top=psf, atom_indices=psf.select("name CA"))
    trajectory.superpose(trajectory, 0)
    mean = trajectory[0]
    mean.xyz = trajectory.xyz.mean(axis=0, keepdims=True)
    trajectory.superpose(mean)
    return mdtraj.rmsf(trajectory, None) * 10


def rmsf(protein: Protein, sizes: Sizes) -> Case:
    """RMSF of the alpha carbons about their mean structure."""
    contenders = [Contender("ensemblekit, with error bars (store)",
                            lambda _: ours(protein.path("h5md"), md.RMSF("name CA", corrected=False)).mean),
                  *mdanalysis("DCD", mda_rmsf, protein, sizes), *mdtraj_contender("DCD", mdtraj_rmsf, protein, sizes)]
    return paired(f"Aligned RMSF of 214 CA, {protein.frames} frames x 3341 atoms", contenders, close(5e-3), work=protein.frames,
                  unit="frames", repeats=sizes.repeats)


def ours_sum(path: str) -> float:
    """The sum of all coordinates, by the mean."""
    store = ek.open(path)
    position = store["position"]
    return float(ek.reduce(position, ek.Moments()).mean.sum() * position.lengths[0])


def mda_sum(path: str) -> float:
    import MDAnalysis as mda

    return float(sum(ts.positions.sum(dtype=np.float64) for ts in mda.Universe(path).trajectory))


def coordinates(protein: Protein, sizes: Sizes) -> Case:
    """All coordinates of the same H5MD file, summed."""
    path = protein.path("h5md")
    return paired("Sum of all coordinates of one H5MD file", [
        Contender("ensemblekit (with variances)", lambda _: ours_sum(path)),
        Contender("MDAnalysis H5MD reader", lambda _: mda_sum(path), repeats=sizes.slow)], close(1e-7), work=protein.frames,
        unit="frames", repeats=sizes.repeats)


def everything() -> dict[str, Any]:
    """What one pass is asked for: ten observables."""
    return {"rg": md.RadiusOfGyration("protein"), "d1": md.Distance("resid 10 and name CA", "resid 100 and name CA"),
            "d2": md.Distance("resid 30 and name CA", "resid 150 and name CA"),
            "d3": md.Distance("resid 50 and name CA", "resid 200 and name CA"),
            "phi": md.Dihedral("(resid 49 and name C) or (resid 50 and name N CA C)"),
            "psi": md.Dihedral("(resid 50 and name N CA C) or (resid 51 and name N)"),
            "rmsd": md.RMSD("name CA"), "end": md.EndToEnd("protein and name CA"), "dipole": md.Dipole("protein"),
            "g": md.RDF("index 0:499", range=(0.0, RANGE), n_bins=BINS)}


def average_everything(psf: str, path: str) -> float:
    return float(md.average(md.read(psf, path), everything())["rg"].mean)


def iterate(psf: str, path: str) -> int:
    import MDAnalysis as mda

    seen = 0
    for _ in mda.Universe(psf, path).trajectory:
        seen += 1
    return seen


def one_pass(protein: Protein, kind: str, sizes: Sizes) -> Case:
    """Ten observables straight from a file against the bare loop over its frames."""
    psf, path = protein.path("psf"), protein.path(kind)
    case = paired(f"Ten observables from {kind.upper()} in one pass, against a loop that only reads", [
        Contender("ensemblekit, ten averages with error bars", lambda _: average_everything(psf, path)),
        Contender("MDAnalysis: for ts in u.trajectory: pass", lambda _: iterate(psf, path))], lambda a, b: None,
        work=protein.frames, unit="frames", repeats=sizes.repeats)
    facts = {"time over that of the bare loop": f"{1 / case.timings[1].ratio:.2f}"}
    if kind == "xtc":
        extra = extra_memory(average_everything, psf, path, warm=(psf, path))
        facts["anonymous memory above one pass before it"] = "unknown" if extra is None else f"{extra / 2**20:.0f} MiB"
    return replace(case, facts=facts)


# --- liquid -------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Water:
    """The files of the water: topology as GRO, frames as XTC and as our store."""

    folder: Path
    waters: int
    frames: int

    @classmethod
    def make(cls, folder: Path, side: int, frames: int, seed: int) -> Water:
        """Molecules about the sites of a cubic lattice, turning and diffusing on their own."""
        import MDAnalysis as mda

        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        n, edge = side**3, 3.104 * side
        u = universe_of_water(n)
        site = np.stack(np.meshgrid(*[(np.arange(side) + 0.5) * 3.104] * 3, indexing="ij"), -1).reshape(n, 3)
        shape = np.array([[0, 0, 0], [0.9572, 0, 0], [-0.2400, 0.9266, 0]])
        u.load_new(np.zeros((1, 3 * n, 3), np.float32))
        walk = np.zeros((n, 3))
        with mda.Writer(str(folder / "water.xtc"), 3 * n) as xtc:
            for k in range(frames):
                walk += rng.normal(0, 0.3, (n, 3))
                q = rng.normal(size=(n, 4))
                oxygen = site + (walk if seed else rng.normal(0, 0.35, (n, 3)))
                u.atoms.positions = (oxygen[:, None] + turned(shape, q)).reshape(-1, 3)
                if seed:
                    u.atoms.positions -= np.repeat(np.floor(oxygen / edge) * edge, 3, axis=0)
                u.trajectory.ts.dimensions = [edge, edge, edge, 90, 90, 90]
                u.trajectory.ts.data["step"], u.trajectory.ts.data["time"], u.trajectory.ts.time = k, float(k), float(k)
                xtc.write(u.atoms)
                if k == 0:
                    u.atoms.write(str(folder / "water.gro"))
        water = cls(folder, n, frames)
        md.ingest(water.universe(), None, folder / "water.h5md")
        return water

    def path(self, suffix: str) -> str:
        return str(self.folder / f"water.{suffix}")

    def universe(self) -> Any:
        u = universe_of_water(self.waters)
        u.load_new(self.path("xtc"))
        return u


def universe_of_water(n: int) -> Any:
    """TIP3P: names, masses, charges, bonds."""
    import MDAnalysis as mda

    u = mda.Universe.empty(3 * n, n_residues=n, atom_resindex=np.repeat(np.arange(n), 3), trajectory=True)
    u.add_TopologyAttr("names", ["OW", "HW1", "HW2"] * n)
    u.add_TopologyAttr("resnames", ["SOL"] * n)
    u.add_TopologyAttr("resids", np.arange(n) + 1)
    u.add_TopologyAttr("masses", [15.999, 1.008, 1.008] * n)
    u.add_TopologyAttr("charges", [-0.834, 0.417, 0.417] * n)
    first = 3 * np.arange(n)
    u.add_TopologyAttr("bonds", [*zip(first, first + 1, strict=True), *zip(first, first + 2, strict=True)])
    return u


def turned(shape: np.ndarray, q: np.ndarray) -> np.ndarray:
    """A molecule (atoms, 3) turned by each quaternion (n, 4): (n, atoms, 3)."""
    q = q / np.linalg.norm(q, axis=1, keepdims=True)
    v, w = q[:, None, 1:], q[:, None, :1]
    t = 2 * np.cross(v, shape[None])
    return shape + w * t + np.cross(np.broadcast_to(v, t.shape), t)


def mda_rdf(water: Water, **how: Any) -> np.ndarray:
    import MDAnalysis as mda
    from MDAnalysis.analysis.rdf import InterRDF

    oxygen = mda.Universe(water.path("gro"), water.path("xtc")).select_atoms("name OW")
    return InterRDF(oxygen, oxygen, nbins=BINS, range=(0, RANGE), exclusion_block=(1, 1)).run(**how).results.rdf


def mdtraj_rdf(water: Water) -> np.ndarray:
    import mdtraj

    top = mdtraj.load(water.path("gro")).topology
    oxygen = top.select("element O")
    trajectory = mdtraj.load_xtc(water.path("xtc"), top=top, atom_indices=oxygen)
    pairs = trajectory.topology.select_pairs("all", "all")
    return mdtraj.compute_rdf(trajectory, pairs, r_range=(0, RANGE / 10), n_bins=BINS)[1]


def rdf(water: Water, sizes: Sizes) -> Case:
    """g(r) of oxygen."""
    contenders = [Contender("ensemblekit, with error bars (store)", lambda _: ours(
        water.path("h5md"), md.RDF("name OW", range=(0.0, RANGE), n_bins=BINS)).mean),
        *mdanalysis("XTC", mda_rdf, water, sizes, parallel=True), *mdtraj_contender("XTC", mdtraj_rdf, water, sizes),
        *gmx_contender("rdf", sizes, lambda: gmx_rdf(water))]
    return paired(f"g(r) of {water.waters} oxygens to {RANGE:g} angstrom, {water.frames} frames", contenders, same_rdf,
                  work=water.frames, unit="frames", repeats=sizes.repeats)


def gmx_rdf(water: Water) -> np.ndarray:
    """r and g(r): its bins lie about whole multiples of their width, ours between them."""
    return gmx(["rdf", "-s", "water.gro", "-f", "water.xtc", "-ref", "name OW", "-sel", "name OW", "-bin",
                f"{RANGE / BINS / 10:g}", "-rmax", f"{RANGE / 10:g}", "-o", "rdf.xvg"], "rdf.xvg", "", water.folder) * [10, 1]


def same_rdf(ours: np.ndarray, theirs: np.ndarray) -> None:
    """The same numbers where the bins are the same, else the same neighbours within each radius."""
    if theirs.ndim == 1:
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=2e-3 * ours.max())     # mdtraj counts in float32
        return
    edges = np.linspace(0, RANGE, BINS + 1)
    cumulative = np.cumsum(ours * np.diff(edges**3))
    centre, half = theirs[:, 0], RANGE / BINS / 2
    shells = (centre + half) ** 3 - np.maximum(centre - half, 0) ** 3
    np.testing.assert_allclose(np.interp(edges[1:], centre + half, np.cumsum(theirs[:, 1] * shells)), cumulative, rtol=2e-2,
                               atol=1e-2 * cumulative[-1])


def mda_dielectric(water: Water) -> float:
    from MDAnalysis.analysis.dielectric import DielectricConstant

    u = water.universe()
    return float(DielectricConstant(u.atoms, temperature=300, make_whole=True).run().results.eps_mean)


def mdtraj_dielectric(water: Water) -> float:
    import mdtraj

    trajectory = mdtraj.load_xtc(water.path("xtc"), top=water.path("gro"))
    return float(mdtraj.static_dielectric(trajectory, [-0.834, 0.417, 0.417] * water.waters, 300))


def dielectric(water: Water, sizes: Sizes) -> Case:
    """The dielectric constant, molecules made whole."""
    contenders = [Contender("ensemblekit, with error bar (store)", lambda _: ours(
        water.path("h5md"), md.DielectricConstant(temperature=300, corrected=False)).mean),
        *mdanalysis("XTC", mda_dielectric, water, sizes), *mdtraj_contender("XTC", mdtraj_dielectric, water, sizes)]
    return paired(f"Dielectric constant, {water.frames} frames x {3 * water.waters} atoms", contenders, close(1e-3),
                  work=water.frames, unit="frames", repeats=sizes.repeats)


def mda_diffusion(water: Water) -> np.ndarray:
    import MDAnalysis as mda
    from MDAnalysis.analysis.msd import EinsteinMSD
    from MDAnalysis.transformations import NoJump

    u = mda.Universe(water.path("gro"), water.path("xtc"), transformations=NoJump())
    return EinsteinMSD(u, select="name OW", fft=have("tidynamics")).run().results.timeseries


def gmx_diffusion(water: Water) -> np.ndarray:
    return gmx(["msd", "-s", "water.gro", "-f", "water.xtc", "-sel", "name OW", "-trestart", "1", "-o", "msd.xvg"],
               "msd.xvg", "", water.folder)[:, 1] * 100


def diffusion(water: Water, sizes: Sizes) -> Case:
    """Mean squared displacement over all windows, jumps through the box undone."""
    contenders = [Contender("ensemblekit, with error bars (store)", lambda _: ours(water.path("h5md"), md.MSD("name OW")).mean),
                  Contender(f"MDAnalysis EinsteinMSD with NoJump{'' if have('tidynamics') else ', without FFT'} (XTC)",
                            lambda _: mda_diffusion(water), repeats=sizes.slow),
                  *gmx_contender("msd, all windows", sizes, lambda: gmx_diffusion(water))]
    return paired(f"Mean squared displacement of {water.waters} oxygens, {water.frames} frames", contenders, close(1e-2),
                  work=water.frames, unit="frames", repeats=sizes.repeats)

