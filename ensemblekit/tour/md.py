"""First act: a protein that opens, and how little 98 frames say about its mean."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.md.topology import mdanalysis
from ensemblekit.tour.act import Act, Figure, Number, size_of, with_error
from ensemblekit.tour.style import BLUE, INK, MUTED, ORANGE, RED, figure

CODE = """\
store = md.ingest(PSF, DCD, "adk.h5md")
found = md.average(store, {
    "rg":   md.RadiusOfGyration("protein"),
    "rmsf": md.RMSF("name CA"),
})
print(found["rg"])"""


def act(out: Path, quick: bool) -> Act:
    """Ingest, average, draw."""
    began = time.perf_counter()
    with mdanalysis():
        from MDAnalysisTests.datafiles import DCD, PSF
    path = out / "adk.h5md"
    store = md.ingest(PSF, DCD, path)
    averages = md.average(store, {"rg": md.RadiusOfGyration("protein"), "rmsf": md.RMSF("name CA")})
    rg, rmsf = averages["rg"], averages["rmsf"]
    values, times = np.asarray(rg.series), np.asarray(rg.times)
    n = len(values)
    naive = float(np.sqrt(ek.reduce(values, ek.Moments()).variance / n))
    residues = rmsf.coords["residue"][0]
    top = int(np.argmax(rmsf.mean))
    pictures = (
        Figure(_gyration(out / "adk-gyration.png", rg, times, values, naive),
               "Radius of gyration against time with two error bars of its mean",
               "The protein opens slowly and never comes back. The usual error bar, which takes the frames for "
               "independent, is a hair; the honest one is many times as wide."),
        Figure(_fluctuation(out / "adk-rmsf.png", rmsf, residues),
               "Fluctuation of every residue with its 95 % band",
               "Two parts move, the lid (around residue 150) and the AMP-binding domain (around 55); the core stays. "
               "The band is the 95 % interval of each residue, as wide as so few independent frames make it."),
    )
    numbers = (
        Number("mean radius of gyration", with_error(float(rg.mean), float(rg.stderr), "Å"),
               "± one standard error; mass-weighted, whole protein"),
        Number("95 % interval", f"{float(rg.interval[0]):.1f} … {float(rg.interval[1]):.1f} Å",
               f"as if the {n} frames were independent: "
               f"{float(rg.mean) - 2 * naive:.2f} … {float(rg.mean) + 2 * naive:.2f} Å"),
        Number("independent frames", f"about {_about(rg)} of {n}",
               "by " + ", ".join(f"{name} {worth:.1f}" for name, worth in worths(rg).items())),
        Number("spread over the frames", f"{naive * np.sqrt(n):.2f} Å", "standard deviation, not an error of the mean"),
        Number("most mobile residue", f"{with_error(float(rmsf.mean[top]), float(rmsf.stderr[top]), 'Å')}",
               f"Cα of residue {residues[top]}; the mean over {len(residues)} residues is "
               f"{float(np.mean(rmsf.mean)):.2f} Å"),
        Number("opens in MDAnalysis", _opens(path, PSF, DCD), "positions compared bit by bit with the DCD"),
    )
    return Act(
        "md", "A protein that opens", "How large is adenylate kinase, and which parts of it move?",
        f"A trajectory of adenylate kinase from the MDAnalysis test suite: {n} frames of "
        f"{store.fields['position'].shape[0]} atoms, in which the enzyme goes from its closed to its open shape.",
        f"The frames went into an H5MD store ({size_of(path)}) that other programs open as it is. One call "
        "averaged the radius of gyration and the fluctuation of every Cα atom after superposition on the mean "
        "structure.",
        CODE, numbers, pictures, _verdict(rg, n), path, time.perf_counter() - began)


def _verdict(rg: ek.Estimate, n: int) -> str:
    fine = ("the numbers can be used as they stand" if rg.converged else
            "no average of it should be quoted without that warning. Run longer, or run several replicas")
    return (f"These {n} frames are worth about {_about(rg)} independent ones: {fine}. "
            f"In the estimate's own words: “{rg.verdict}”.")


def worths(estimate: ek.Estimate) -> dict[str, float]:
    """Independent snapshots by each estimator of the error: variance over its square."""
    assert estimate.series is not None
    variance = float(np.var(estimate.series[estimate.n_discarded:], ddof=1))
    return {name: variance / float(error) ** 2 for name, error in estimate.estimators.items() if error > 0}


def _about(estimate: ek.Estimate) -> int:
    return max(1, round(float(np.median(list(worths(estimate).values())))))


def _opens(path: Path, topology: str | Path, trajectory: str | Path) -> str:
    with mdanalysis() as mda:
        ours, theirs = mda.Universe(str(topology), str(path)), mda.Universe(str(topology), str(trajectory))
        same = sum(bool((a.positions == b.positions).all())
                   for a, b in zip(ours.trajectory, theirs.trajectory, strict=True))
        ours.trajectory.close()
    return f"{same} of {len(theirs.trajectory)} frames identical"


def _gyration(path: Path, rg: ek.Estimate, times: np.ndarray, values: np.ndarray, naive: float) -> Path:
    with figure(path, 9.6, 3.9, ncols=2, sharey=True, width_ratios=[3.4, 1]) as (_, (left, right)):
        mean, low, high = float(rg.mean), float(rg.interval[0]), float(rg.interval[1])
        left.fill_between(times, low, high, color=BLUE, alpha=0.12, lw=0)
        left.axhline(mean, color=BLUE, lw=1.2)
        left.plot(times, values, color=INK, lw=1.4)
        left.set(xlabel="time / ps", ylabel="radius of gyration / Å", xlim=(times[0], times[-1]))
        left.set_title("Radius of gyration of adenylate kinase")
        left.annotate("mean and its 95 % interval", (times[0] + 0.02 * np.ptp(times), mean), xytext=(0, 5),
                      textcoords="offset points", color=BLUE, fontsize=9.5)
        right.errorbar([0], [mean], [[2 * naive], [2 * naive]], fmt="o", color=RED, capsize=6, ms=5, lw=2)
        right.errorbar([1], [mean], [[mean - low], [high - mean]], fmt="o", color=BLUE, capsize=6, ms=5, lw=2)
        right.set_xticks([0, 1], ["as if\nindependent", "ensemblekit"])
        right.set_xlim(-0.6, 1.6)
        right.set_title("95 % intervals")
        right.tick_params(axis="x", colors=INK, length=0)
        right.grid(axis="x", visible=False)
    return path


def _fluctuation(path: Path, rmsf: ek.Estimate, residues: np.ndarray) -> Path:
    with figure(path, 9.6, 3.5) as (_, axes):
        low, high = rmsf.interval
        axes.fill_between(residues, low, high, color=ORANGE, alpha=0.22, lw=0, label="95 % interval")
        axes.plot(residues, rmsf.mean, color=ORANGE, lw=1.9, label="RMSF")
        for name, start, stop in (("AMP-binding", 30, 59), ("lid", 122, 159)):
            axes.axvspan(start, stop, color=MUTED, alpha=0.08, lw=0)
            axes.text((start + stop) / 2, 0.97, name, transform=axes.get_xaxis_transform(), ha="center", va="top",
                      color=MUTED, fontsize=9.5)
        axes.set(xlabel="residue", ylabel="RMSF of Cα / Å", xlim=(residues[0], residues[-1]), ylim=(0, None))
        axes.set_title("Fluctuation of each residue after superposition")
        axes.legend(loc="upper right")
    return path
