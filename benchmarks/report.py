"""The machine the figures hold for, its read bandwidth, and the figures as a table."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numba
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.pairing import Case
from ensemblekit.engine import cores

PACKAGES = ("ensemblekit", "numpy", "scipy", "h5py", "numba", "dask", "pymbar", "torch")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system and the versions of what is measured."""
    return {"date": time.strftime("%Y-%m-%d %H:%M"), "cpu": _cpu(), "cores": cores(), "memory_GB": _memory(),
            "system": f"{platform.system()} {platform.release()}", "python": platform.python_version(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "versions": {name: installed for name in PACKAGES if (installed := _version(name))}}


def _version(package: str) -> str | None:
    if package == "ensemblekit":
        import ensemblekit

        return ensemblekit.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


@numba.njit(nogil=True, fastmath=True)
def _flat_sum(values):
    """The plainest read there is: every number once, in order."""
    total = 0.0
    for k in range(values.size):
        total += values[k]
    return total


def bandwidth(nbytes: int, threads: int, repeats: int = 5) -> float:
    """Bytes a second that `threads` threads read from memory while they sum float32 numbers; the best of several."""
    values = np.ones(nbytes // 4, np.float32)
    parts = np.array_split(values, 16 * threads)
    _flat_sum(parts[0][:1])
    best = np.inf
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            began = time.perf_counter()
            total = sum(pool.map(_flat_sum, parts))
            best = min(best, time.perf_counter() - began)
    if total != len(values):
        raise ArithmeticError(f"the sum of {len(values)} ones came out as {total}")
    return values.nbytes / best


def show_machine(console: Console, about: dict[str, Any]) -> None:
    """One paragraph: what the figures were measured on."""
    versions = "  ".join(f"{name} {number}" for name, number in about["versions"].items())
    console.print(f"[bold]{about['cpu']}[/], {about['cores']} cores, {about['memory_GB']} GB, {about['system']}, "
                  f"Python {about['python']}, {about['date']}, load {about['load']:.1f}", highlight=False)
    console.print(versions, style="dim", highlight=False)
    if "bandwidth_GBs" in about:
        rates = ", ".join(f"{rate:.1f} GB/s with {n} thread{'s' if int(n) > 1 else ''}"
                          for n, rate in about["bandwidth_GBs"].items())
        console.print(f"memory read (flat sum of float32): {rates}", style="dim", highlight=False)


def show(console: Console, case: Case) -> None:
    """One case as a table: rate, time, and how many times quicker ours is."""
    table = Table(title=case.name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("time", justify="right")
    table.add_column("rate", justify="right")
    table.add_column("ours is quicker by", justify="right")
    table.add_column("spread", justify="right", style="dim")
    for k, timing in enumerate(case.timings):
        ratio, spread = "", ""
        if k:
            ratio = f"{timing.ratio:.2f} x"
            spread = f"{min(timing.ratios):.2f} – {max(timing.ratios):.2f}"
        table.add_row(timing.name, duration(timing.median), f"{quantity(case.work / timing.median)} {case.unit}/s",
                      ratio, spread, style="bold" if k == 0 else None)
    console.print(table)
    for name, value in case.facts.items():
        console.print(f"  {name}: {value}", style="dim", highlight=False)
    if case.facts:
        console.print()


def duration(seconds: float) -> str:
    """Seconds with three digits and the unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def quantity(x: float) -> str:
    """Three digits; thousands with a thin gap."""
    return f"{x:,.0f}".replace(",", "\u202f") if x >= 1000 else f"{x:.3g}"


def as_json(about: dict[str, Any], suites: Mapping[str, Sequence[Case]]) -> dict[str, Any]:
    """All of it as plain values."""
    return {"machine": about, "suites": {name: [case.as_dict() for case in cases] for name, cases in suites.items()}}
