"""Second act: a street of vortices, taken apart into its modes while it is still being computed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import EnsemblekitError
from ensemblekit.tour.act import Act, Figure, Number, size_of
from ensemblekit.tour.style import BLUE, INK, MUTED, ORANGE, RED, TEAL, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.rom.testbeds.wake import CylinderWake
    from ensemblekit.store.stored import StoredField

CODE = """\
wake = rom.testbeds.cylinder_wake(reynolds=100)
with ek.create("wake.h5", wake.fields, capacity=160) as store:
    for s in wake.snapshots(160, every=0.3, after=45):
        store.append(s.fields, time=s.time)      # seen by readers at once

basis = rom.pod(ek.open("wake.h5")["velocity"], energy=0.9999)
print(basis)"""

FULL: dict[str, Any] = {"wake": {}, "n": 160, "every": 0.3, "after": 45.0}
QUICK: dict[str, Any] = {"wake": {"cells": 10, "size": (6.0, 9.0, 12.0), "window": (1.5, 7.0, 2.5)}, "n": 60,
                         "every": 0.4, "after": 30.0}


class Follower(threading.Thread):
    """A reader of a store that somebody else is writing: looks again and again, and decomposes what is there."""

    def __init__(self, path: Path):
        super().__init__(daemon=True)
        self.path, self.done = path, threading.Event()
        self.seen: list[tuple[int, float]] = []
        """Snapshots there, and the share of their energy in the first two modes."""
        self.failure = ""

    def run(self) -> None:
        try:
            store = ek.open(self.path)
            while not self.done.wait(0.5):
                store.refresh()
                velocity = store["velocity"]
                n = velocity.shape[0]
                if n > 3 and (not self.seen or n > self.seen[-1][0]):
                    self.seen.append((n, float(rom.pod(velocity, rank=2).cumulative_energy[-1])))
        except EnsemblekitError as error:      # told on the page; the solver must not stop because a reader failed
            self.failure = str(error)


@dataclass(frozen=True, slots=True, eq=False)
class Wake:
    """A wake that was computed, stored and taken apart."""

    wake: CylinderWake
    path: Path
    velocity: StoredField
    basis: rom.Basis
    drag: np.ndarray
    lift: np.ndarray
    mean_drag: ek.Estimate
    seen: str
    """What the reader that followed the solver saw, in words."""
    seen_note: str

    @property
    def few(self) -> rom.Basis:
        """The first six modes."""
        return self.basis.truncate(min(6, self.basis.rank))


def act(out: Path, quick: bool) -> Act:
    """Compute, store, follow, decompose, draw."""
    began = time.perf_counter()
    wake, follower, path = _solved(out / "wake.h5", FULL if not quick else QUICK)
    solved = time.perf_counter() - began
    store = ek.open(path)
    velocity = store["velocity"]
    drag, lift = (np.asarray(store[name][:]) for name in ("drag", "lift"))
    seen = (f"{len(follower.seen)} looks" if follower.seen
            else follower.failure or "the run was over before its first look")
    result = Wake(wake, path, velocity, rom.pod(velocity, energy=0.9999), drag, lift, ek.average(store["drag"]), seen,
                  _follower_note(follower.seen, len(velocity)))
    basis, few, n = result.basis, result.few, len(velocity)
    verdict = (f"{basis.rank} modes hold 99.99 % of the energy, an error of {100 * basis.relative_error:.1f} %; "
               "they come in pairs, as they must where a pattern travels. The flow is periodic, so few modes suffice; "
               "a turbulent one would not be so kind. The ratio is bounded by snapshots over modes, "
               f"{n} / {few.rank} = {n / few.rank:.0f}.")
    return Act(
        "rom", "A street of vortices", "How few patterns does it take to describe the wake of a cylinder?",
        "Nothing: the flow past a cylinder at Reynolds number 100 was computed on the spot, "
        f"by a lattice Boltzmann solver compiled for this machine, in {solved:.0f} s.",
        f"Every snapshot of velocity went into a store ({size_of(path)}) the moment it was computed, and a reader "
        "followed. POD came from the same Gram reducer that serves the other fields: one read for the inner products, "
        "one for the modes.",
        CODE, _numbers(result), _figures(out, result), verdict, path, time.perf_counter() - began)


def _solved(path: Path, how: dict[str, Any]) -> tuple[CylinderWake, Follower, Path]:
    """The flow, computed into a store that a reader follows meanwhile."""
    wake = rom.testbeds.cylinder_wake(reynolds=100, **how["wake"])
    follower = Follower(path)
    with ek.create(path, wake.fields, capacity=how["n"], time_unit="D U-1",
                   provenance={"solver": "lattice Boltzmann", "reynolds": wake.reynolds}) as store:
        follower.start()
        for snapshot in wake.snapshots(how["n"], how["every"], how["after"]):
            store.append(snapshot.fields, time=snapshot.time)
    follower.done.set()
    follower.join()
    return wake, follower, path


def _figures(out: Path, result: Wake) -> tuple[Figure, ...]:
    wake, basis, last = result.wake, result.basis, np.asarray(result.velocity[-1])
    return (
        Figure(_street(out / "wake-street.png", wake, last, np.asarray(basis.times), result.drag, result.lift),
               "Vorticity of the wake and the forces on the cylinder",
               "Above: vorticity of the last snapshot, blue turning clockwise and red the other way. "
               "Below: lift and drag; drag swings twice as fast, once for each vortex."),
        Figure(_modes(out / "wake-modes.png", wake, basis), "The first six modes",
               "Vorticity of the first six modes. They come in pairs of nearly equal energy, one shifted by a quarter "
               "of a wavelength against the other: together they are a wave that travels. Each further pair has "
               "another harmonic."),
        Figure(_spectrum(out / "wake-spectrum.png", basis),
               "Energies, error against rank, phase portrait",
               "Left: share of the energy in each mode, falling pair by pair. Middle: error of the reconstruction "
               "against the number of modes kept. Right: the first two coefficients run round a circle, once per "
               "vortex pair."),
        Figure(_reconstruction(out / "wake-reconstruction.png", wake, basis, last),
               "A snapshot, its reconstructions and their error",
               "The last snapshot again, rebuilt from two and from six numbers per instant, and what six leave out "
               "(the same colours over a tenth of the range)."),
    )


def _numbers(result: Wake) -> tuple[Number, ...]:
    wake, basis, few = result.wake, result.basis, result.few
    periods = shedding_periods(np.asarray(basis.times), result.lift)
    strouhal, spread = 1 / periods.mean(), np.ptp(1 / periods) / 2
    pairs = [float(basis.energy_fraction[k:k + 2].sum()) for k in range(0, min(basis.rank, 6) - 1, 2)]
    n, cells = result.velocity.shape[0], int(np.prod(result.velocity.shape[1:]))
    return (
        Number("Strouhal number", f"{strouhal:.4f}",
               f"{len(periods)} periods, alike to ±{max(spread, 1e-5):.5f}; published for an unbounded flow: "
               "0.164–0.166"),
        Number("mean drag coefficient", f"{float(result.mean_drag.mean):.3f}",
               f"published: 1.32–1.36; sides {wake.size[2]:g} diameters apart and {wake.cells} cells a diameter "
               "raise both"),
        Number("energy in the first pairs", " · ".join(f"{100 * p:.1f} %" for p in pairs), "of all fluctuation energy"),
        Number(f"error with {few.rank} modes", f"{100 * few.relative_error:.2g} %",
               f"of the fluctuation; {100 * few.cumulative_energy[-1]:.2f} % of the energy"),
        Number("compression", f"{few.compression_ratio:.0f}×",
               f"{n} snapshots of {cells} numbers as {few.rank} modes, their coefficients and the mean"),
        Number("read while written", result.seen, result.seen_note),
    )


def _follower_note(seen: list[tuple[int, float]], n: int) -> str:
    if not seen:
        return "by another thread, through a file handle of its own"
    return (f"a reader decomposed what was there: first {seen[0][0]} of {n} snapshots, {100 * seen[0][1]:.0f} % of the "
            f"energy in the first pair; at last {seen[-1][0]}, {100 * seen[-1][1]:.0f} %")


def shedding_periods(times: np.ndarray, lift: np.ndarray) -> np.ndarray:
    """Times between upward crossings of the mean lift, by linear interpolation."""
    centred = lift - 0.5 * (lift.max() + lift.min())
    up = np.flatnonzero((centred[:-1] < 0) & (centred[1:] >= 0))
    share = centred[up] / (centred[up] - centred[up + 1])
    return np.diff(times[up] + share * np.diff(times)[up])


def _vorticity(wake: CylinderWake, velocity: np.ndarray) -> np.ndarray:
    return np.gradient(velocity[..., 1], wake.x, axis=1) - np.gradient(velocity[..., 0], wake.y, axis=0)


def _show(axes: Axes, wake: CylinderWake, values: np.ndarray, limit: float) -> None:
    from matplotlib.patches import Circle

    axes.imshow(values, extent=(wake.x[0], wake.x[-1], wake.y[0], wake.y[-1]), origin="lower", cmap="RdBu_r",
                vmin=-limit, vmax=limit, interpolation="bicubic", aspect="equal")
    axes.add_patch(Circle((0, 0), 0.5, facecolor="#334155", edgecolor="white", lw=0.8, zorder=3))
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _street(path: Path, wake: CylinderWake, velocity: np.ndarray, times: np.ndarray, drag: np.ndarray,
            lift: np.ndarray) -> Path:
    with figure(path, 9.6, 7.2, nrows=2, height_ratios=[3.2, 1]) as (_, (above, below)):
        _show(above, wake, _vorticity(wake, velocity), 2.5)
        above.set_title("Vorticity behind a cylinder, Re = 100")
        below.plot(times, lift, color=BLUE, label="lift")
        below.plot(times, drag - drag.mean(), color=ORANGE, label=f"drag − {drag.mean():.2f}")
        below.set(xlabel="time / (D/U)", ylabel="coefficient", xlim=(times[0], times[-1]))
        below.legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.28))
        below.set_title("Forces on it")
    return path


def _modes(path: Path, wake: CylinderWake, basis: rom.Basis) -> Path:
    with figure(path, 9.6, 3.9, nrows=2, ncols=3) as (_, axes):
        for k, one in enumerate(axes.T.ravel()):
            if k >= basis.rank:
                one.set_axis_off()
                continue
            vorticity = _vorticity(wake, basis.modes[k])
            _show(one, wake, vorticity, float(np.quantile(np.abs(vorticity), 0.99)))
            one.set_title(f"mode {k + 1}   {100 * basis.energy_fraction[k]:.2f} %", fontsize=10.5)
    return path


def _spectrum(path: Path, basis: rom.Basis) -> Path:
    with figure(path, 9.6, 3.5, ncols=3, width_ratios=[1.15, 1.15, 1]) as (_, (left, middle, right)):
        k = np.arange(1, basis.rank + 1)
        colours = [(BLUE, TEAL)[(i // 2) % 2] for i in range(basis.rank)]
        left.bar(k, 100 * basis.energy_fraction, color=colours, width=0.72)
        left.set_yscale("log")
        left.set(xlabel="mode", ylabel="energy / %")
        left.set_title("Energy, pair by pair")
        left.grid(axis="x", visible=False)
        middle.semilogy(k, 100 * basis.relative_errors, "o-", color=RED, ms=4)
        middle.set(xlabel="modes kept", ylabel="error / %")
        middle.set_title("Error against rank")
        a, b = basis.coefficients[:, 0], basis.coefficients[:, 1]
        right.plot(a, b, color=MUTED, lw=0.6)
        right.scatter(a, b, c=basis.times, s=11, cmap="viridis", zorder=3)
        right.set_aspect("equal")
        right.set(xlabel="$a_1$", ylabel="$a_2$")
        right.set_title("Phase portrait")
    return path


def _reconstruction(path: Path, wake: CylinderWake, basis: rom.Basis, truth: np.ndarray) -> Path:
    two, six = (basis.truncate(min(k, basis.rank)).reconstruct(len(basis.coefficients) - 1) for k in (2, 6))
    with figure(path, 9.6, 5.4, nrows=2, ncols=2) as (_, axes):
        panels = (("truth", truth, 2.5), ("2 modes", two, 2.5), ("6 modes", six, 2.5),
                  ("truth − 6 modes, ×10", truth - six, 0.25))
        for one, (title, values, limit) in zip(axes.ravel(), panels, strict=True):
            _show(one, wake, _vorticity(wake, values), limit)
            one.set_title(title, fontsize=10.5, color=INK)
    return path
