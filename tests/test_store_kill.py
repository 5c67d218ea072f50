"""A real writer killed at its writes, deprived of its disk or of its power: what had returned is there, and right."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FIELD = {"kind": "field"}
SCALARS = {"kind": "scalars", "shape": (2,)}
MD = {"kind": "md", "shape": (40, 3)}
SHAPES = {"8 bytes": (2,), "20 kB": (5000,), "1.3 MB": (333_333,)}


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """The compiled trap for libhdf5's own writes; None without a compiler (then ours only are trapped)."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    library = tmp_path_factory.mktemp("shim") / "killing.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "killing.c", "-ldl"], check=True)
    return str(library)


def killed(shim, tmp_path, **job):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    if shim:
        environment |= {"LD_PRELOAD": shim, "KILLING_SHIM": shim}
    done = subprocess.run([sys.executable, HERE / "killing.py", json.dumps({**job, "folder": str(tmp_path)})],
                          capture_output=True, text=True, env=environment, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    print(job, summary)
    return summary


@pytest.mark.parametrize(("in_place", "torn"), [(True, True), (False, False)], ids=["in-place-torn", "whole-files-between"])
def test_killed_at_a_sample_of_writes(shim, tmp_path, in_place, torn):
    job = {**MD, "in_place": in_place} if torn else {**FIELD, "shape": (5000,), "in_place": in_place}
    summary = killed(shim, tmp_path, **job, torn=torn, points=4)
    assert summary["points"] >= 8
    assert {"append", "extend", "truncate", "seal"} <= set(summary["died_in"])


def test_killed_at_a_sample_of_writes_of_many_scalars(shim, tmp_path):
    summary = killed(shim, tmp_path, **SCALARS, torn=True, points=3)
    assert {"append", "extend", "truncate"} <= set(summary["died_in"])


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True], ids=["between", "torn"])
@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "whole-files"])
@pytest.mark.parametrize("what", [*SHAPES, "MD", "MD to the disk", "scalars"])
def test_killed_at_every_write(shim, tmp_path, what, in_place, torn):
    job = {**FIELD, "shape": SHAPES[what]} if what in SHAPES else SCALARS if what == "scalars" else MD
    durability = "disk" if "disk" in what else "process"
    summary = killed(shim, tmp_path, **job, in_place=in_place, torn=torn, durability=durability, every=True)
    assert summary["events"] > 50
    assert summary["states"] > 20
    assert {"create", "append", "extend", "truncate", "seal"} <= set(summary["died_in"])


def test_killed_at_random_instants(shim, tmp_path):
    killed(None, tmp_path, **MD, random=True, points=2)
    killed(None, tmp_path, **FIELD, shape=(5000,), random=True, points=2)


@pytest.mark.slow
def test_killed_at_two_hundred_random_instants(shim, tmp_path):
    for seed, job in enumerate((MD, {**FIELD, "shape": (5000,)}, {**FIELD, "shape": (2,)},
                                {**FIELD, "shape": (5000,), "in_place": False})):
        killed(None, tmp_path, **job, random=True, points=50, seed=seed)
