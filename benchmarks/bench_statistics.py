"""Speed of the statistics, paired in one run with the peer one would use and with the answers compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.signal import lfilter

from ensemblekit.averaging.blocking import BlockSums
from ensemblekit.averaging.correlation import statistical_inefficiency
from ensemblekit.averaging.equilibration import detect_equilibration
from ensemblekit.averaging.moments import Moments


def run(quick: bool) -> list[dict[str, Any]]:
    """Every case; printed and as rows of name, ours and peer in seconds, ratio peer / ours, and what was compared."""
    rows = [geyer_against_fft(1_000_000, 3 if quick else 9), blocks_against_moments(100_000, 1024, 3 if quick else 9),
            blocks_against_moments(100_000, 10_000, 1 if quick else 3)]
    rows += inefficiency_against_pymbar(20_000 if quick else 100_000)
    rows += equilibration_against_pymbar(100_000, 2000 if quick else 10_000)
    table = Table(title="statistics: ours and the peer, seconds")
    for name in ("case", "ours", "peer", "peer / ours", "answers"):
        table.add_column(name, justify="left" if name in ("case", "answers") else "right")
    for row in rows:
        table.add_row(row["case"], f"{row['ours']:.4g}", f"{row['peer']:.4g}", f"{row['ratio']:.3g}", row["answers"])
    Console().print(table)
    return rows


def series(n: int, phi: float = 0.98, transient: float = 8.0) -> np.ndarray:
    """AR(1) with a start that decays over a twentieth of the run."""
    x = lfilter([np.sqrt(1 - phi**2)], [1, -phi], np.random.default_rng(0).standard_normal(n + 5000))[5000:]
    return x + transient * np.exp(-np.arange(n) / (n / 200))


def geyer_against_fft(n: int, rounds: int) -> dict[str, Any]:
    """All of Geyer's convex sequence against a single FFT of the zero-padded series."""
    from scipy.fft import rfft

    x = series(n, transient=0.0)
    ours, peer, ratio = paired(lambda: statistical_inefficiency(x), lambda: rfft(x, 2 * n), rounds)
    g = statistical_inefficiency(x).g
    return {"case": f"Geyer's convex g of {n} snapshots, against one FFT", "ours": ours, "peer": peer, "ratio": ratio,
            "answers": f"g {g:.2f}, closed form 99"}


def blocks_against_moments(size: int, n: int, rounds: int) -> dict[str, Any]:
    """Streaming block sums of float32 snapshots against mean and variance of the same, in blocks of 256."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((256, size)).astype(np.float32)
    starts = range(0, n, 256)

    def stream(reducer: Any) -> Any:
        for start in starts:
            reducer.update(block[:min(256, n - start)], start)
        return reducer.result()

    ours, peer, ratio = paired(lambda: stream(BlockSums()), lambda: stream(Moments()), rounds)
    a, b = stream(BlockSums()), stream(Moments())
    gap = float(np.abs(a.variances[0] / b.variance - 1).max())
    return {"case": f"block sums of {n} x {size} float32, against mean and variance", "ours": ours, "peer": peer,
            "ratio": ratio, "answers": f"variances differ by {gap:.1e}"}


def inefficiency_against_pymbar(n: int) -> list[dict[str, Any]]:
    """Chodera's g of one series; no row without pymbar."""
    peer = _pymbar()
    if peer is None:
        return []
    x = series(n, transient=0.0)
    ours, theirs, ratio = paired(lambda: statistical_inefficiency(x, "chodera"),
                                 lambda: peer.statistical_inefficiency(x), 3)
    gap = statistical_inefficiency(x, "chodera").g / peer.statistical_inefficiency(x) - 1
    return [{"case": f"g of {n} snapshots, against pymbar", "ours": ours, "peer": theirs, "ratio": ratio,
             "answers": f"g differs by {gap:.1e}"}]


def equilibration_against_pymbar(n: int, small: int) -> list[dict[str, Any]]:
    """Every t0 of a grid tried; pymbar's time at `n` is extrapolated from `small` where they differ.

    Its work grows as snapshots times starts times window; with as many starts and the same process, as n.
    """
    peer = _pymbar()
    if peer is None:
        return []
    rows = []
    for starts in (100, 1000):
        x, y = series(n), series(small)
        begin = time.perf_counter()
        t0, _, n_eff = peer.detect_equilibration(y, fast=False, nskip=max(1, small // starts))
        theirs = (time.perf_counter() - begin) * n / small
        ours_small = detect_equilibration(y, step=max(1, small // starts))
        detect_equilibration(x, step=n // starts)
        ours = statistics.median(_timed(partial(detect_equilibration, x, step=n // starts)) for _ in range(3))
        rows.append({"case": f"equilibration of {n} snapshots, {starts} starts, against pymbar (from {small})",
                     "ours": ours, "peer": theirs, "ratio": theirs / ours,
                     "answers": f"n_eff at n = {small} is {ours_small.n_eff / n_eff:.4f} of pymbar's maximum "
                                f"(start {ours_small.start} and {t0})"})
    return rows


def paired(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Median seconds of both, taken turn by turn after a first go, and the median ratio peer / ours."""
    ours(), peer()
    times = [(_timed(ours), _timed(peer)) for _ in range(rounds)]
    return (statistics.median(a for a, _ in times), statistics.median(b for _, b in times),
            statistics.median(b / a for a, b in times))


def _timed(job: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def _pymbar() -> Any:
    try:
        from pymbar import timeseries
    except ImportError:
        return None
    return timeseries
