"""What `import ensemblekit` costs, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

LEFT_ALONE = ("torch", "MDAnalysis", "dask", "distributed", "matplotlib", "numba", "llvmlite", "scipy.stats", "h5py",
              "hdf5plugin", "typer", "rich", "tqdm", "sklearn")

PROBE = """
import json, sys, time
began = time.process_time()
import {module}
print(json.dumps([time.process_time() - began, sorted(sys.modules)]))
"""


def probe(module: str) -> tuple[float, set[str]]:
    """Seconds of a processor that a fresh interpreter takes to import a module, and all modules it then holds."""
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    out = subprocess.run([sys.executable, "-c", PROBE.format(module=module)], check=True, capture_output=True,
                         text=True, stdin=subprocess.DEVNULL, env=compiled).stdout
    seconds, modules = json.loads(out)
    return seconds, set(modules)


def test_import_leaves_the_heavy_packages_alone() -> None:
    _, modules = probe("ensemblekit")
    assert "ensemblekit.averaging.run" in modules
    assert modules.isdisjoint(LEFT_ALONE)


def test_import_is_quick() -> None:
    # the best of several, and of the processor's own time: other processes may be at work
    probe("ensemblekit")                                                   # writes the byte code
    best = min(probe("ensemblekit")[0] for _ in range(7))
    assert best < 0.3


@pytest.mark.parametrize("module", ["ensemblekit.cli"])
def test_the_command_line_starts_without_the_heavy_packages(module: str) -> None:
    _, modules = probe(module)
    assert modules.isdisjoint(set(LEFT_ALONE) - {"typer", "rich"})
