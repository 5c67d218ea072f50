"""Archives against general compressors on the same flows: bytes at the same measured error."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from ensemblekit import rom

TOLERANCES = (1e-2, 1e-3)


class Flow(NamedTuple):
    """Snapshots (n, ny, nx, components), float32."""

    name: str
    snapshots: np.ndarray


def run(quick: bool) -> list[dict[str, Any]]:
    """Every flow, tolerance and norm; printed and as rows of name, bytes, ratio, error and seconds."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="ensemblekit-bench-") as folder:
        for norm in ("l2", "max"):      # kernels are compiled at the first call
            rom.compress(np.random.default_rng(0).normal(size=(20, 8, 8, 2)).astype("f4"), Path(folder) / "warm.h5",
                         tolerance=0.1, norm=norm)      # type: ignore[arg-type]
        for flow in flows(quick):
            for norm in ("l2", "max"):
                for tolerance in TOLERANCES:
                    rows += compare(flow, tolerance, norm, Path(folder))
    table = Table(title="archives: bytes at an error no larger than allowed, relative to the fluctuation")
    for name in ("flow", "norm", "allowed", "by", "ratio", "error", "write", "read"):
        table.add_column(name, justify="left" if name in ("flow", "norm", "by") else "right")
    for row in rows:
        table.add_row(row["flow"], row["norm"], f"{100 * row['allowed']:g} %", row["by"], f"{row['ratio']:.1f}",
                      f"{100 * row['error']:.3g} %", f"{row['write']:.2f} s", f"{row['read']:.2f} s")
    Console().print(table)
    return rows


def flows(quick: bool) -> Iterator[Flow]:
    """A street of vortices (few modes), a moving front, and a chaotic flow (many)."""
    n = 100 if quick else 400
    wake = rom.testbeds.cylinder_wake(100, cells=10 if quick else 14, stride=1)
    yield Flow(f"cylinder wake, {n} snapshots", np.array([s.velocity for s in wake.snapshots(n, 0.3, 60.0)]))
    chaos = rom.testbeds.kolmogorov_flow(40, cells=64, step=0.02)
    yield Flow(f"Kolmogorov flow, {n} snapshots",
               rom.testbeds.record(chaos, n, 0.2 if quick else 0.5, after=20.0).arrays["velocity"])


def compare(flow: Flow, tolerance: float, norm: str, folder: Path) -> list[dict[str, Any]]:
    """Ours, then each peer at the coarsest setting whose measured error is allowed."""
    u = flow.snapshots
    rows = []
    path = folder / "archive.h5"
    began = time.perf_counter()
    archive = rom.compress(u, path, tolerance=tolerance, norm=norm)     # type: ignore[arg-type]
    wrote = time.perf_counter() - began
    began = time.perf_counter()
    back = archive["values"][...]
    read = time.perf_counter() - began
    rows.append(_row(flow, norm, tolerance, f"ensemblekit, {archive['values'].rank} modes", u.nbytes / path.stat().st_size,
                     _error(u, back, norm), wrote, read))
    for name, options in _peers().items():
        rows.append(_peer(flow, norm, tolerance, name, options, folder))
    return rows


def _peers() -> dict[str, Callable[[float], Any] | Any]:
    """Name -> filter options of an absolute error, or options alone where there is no loss."""
    import hdf5plugin

    peers: dict[str, Any] = {"zstd (no loss, shuffled)": hdf5plugin.Blosc2(cname="zstd", clevel=5, filters=1)}
    peers["ZFP, fixed accuracy"] = lambda bound: hdf5plugin.Zfp(accuracy=bound)
    if hasattr(hdf5plugin, "SZ3"):
        peers["SZ3, absolute error"] = lambda bound: hdf5plugin.SZ3(absolute=bound)
    return peers


def _peer(flow: Flow, norm: str, tolerance: float, name: str, options: Any, folder: Path) -> dict[str, Any]:
    u = flow.snapshots
    # components apart, all of time and space in one chunk of at most three axes: what the peers like best
    parts = np.ascontiguousarray(np.moveaxis(u, -1, 0))

    def once(bound: float | None) -> tuple[float, float, float, float]:
        path = folder / "peer.h5"
        began = time.perf_counter()
        with h5py.File(path, "w") as f:
            for k, part in enumerate(parts):
                how = options if bound is None else options(bound)
                f.create_dataset(str(k), data=part, chunks=part.shape, **how)
        wrote = time.perf_counter() - began
        began = time.perf_counter()
        with h5py.File(path) as f:
            back = np.stack([f[str(k)][...] for k in range(len(parts))], -1)
        read = time.perf_counter() - began
        return u.nbytes / os.path.getsize(path), _error(u, back, norm), wrote, read

    if not callable(options):
        return _row(flow, norm, tolerance, name, *once(None))
    scale = float(np.abs(u - u.mean(0, dtype=np.float64)).max())
    low, high = np.log2(1e-8 * scale), np.log2(2.0 * scale)
    best = None
    for _ in range(12):         # bisection for the coarsest bound that is still allowed
        middle = 0.5 * (low + high)
        trial = once(2.0**middle)
        if trial[1] <= tolerance:
            low = middle
            if best is None or trial[0] > best[0]:
                best = trial
        else:
            high = middle
    return _row(flow, norm, tolerance, name, *(best or (float("nan"),) * 4))


def _error(u: np.ndarray, back: np.ndarray, norm: str) -> float:
    mean = u.mean(0, dtype=np.float64)
    off, base = u.astype(np.float64) - back, u - mean
    if norm == "max":
        return float(np.abs(off).max() / np.abs(base).max())
    return float(np.linalg.norm(off) / np.linalg.norm(base))


def _row(flow: Flow, norm: str, tolerance: float, by: str, ratio: float, error: float, write: float,
         read: float) -> dict[str, Any]:
    return {"flow": flow.name, "norm": norm, "allowed": tolerance, "by": by, "ratio": ratio, "error": error, "write": write,
            "read": read}
