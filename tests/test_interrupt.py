"""Ctrl-C: the work stops with all its workers, and the files stay sound."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.source import Field

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups are POSIX's")

REDUCE = """
import sys, time
import numpy as np
import ensemblekit as ek

def slow(block):
    print("working", flush=True)
    time.sleep(0.05)
    return block.fields["u"]

if __name__ == "__main__":
    ek.reduce(ek.open(sys.argv[1])["u"], {"u": (slow, ek.Moments())}, engine=getattr(ek, sys.argv[2])(*map(int, sys.argv[3:])))
    print("ended", flush=True)
"""

WRITE = """
import sys
import numpy as np
import ensemblekit as ek
from ensemblekit.source import Field

path, sealed = sys.argv[1:]
with ek.create(path, {"u": Field((700,), "f8")}, capacity=500) as store:
    print("working", flush=True)
    for k in range(10**9):
        store.append({"u": np.full(700, k, float)}, time=float(k))
        print(k, flush=True)
        if k % 40 == 39:
            store.seal(f"{sealed}/{k}.h5").close()
"""


def interrupted(folder, script, *arguments, after=0.0):
    """Run a script in a process group of its own, send it Ctrl-C `after` seconds from its first word; what it said."""
    (folder / "script.py").write_text(script)
    with subprocess.Popen([sys.executable, folder / "script.py", *map(str, arguments)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        said = child.stdout.readline()
        time.sleep(after)
        for _ in range(20):     # Python drops an interrupt that falls into a weakref's callback: people press again
            os.killpg(child.pid, signal.SIGINT)     # as a terminal does: to the whole group
            try:
                rest, complaint = child.communicate(timeout=3)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            child.kill()
            pytest.fail("Ctrl-C is not heard")
    assert child.returncode not in (0, -signal.SIGKILL, -signal.SIGSEGV), complaint
    assert "KeyboardInterrupt" in complaint
    for _ in range(200):                        # nobody of the group is left; multiprocessing's own helper goes last
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("workers live on after Ctrl-C")
    return (said + rest).split()


@pytest.mark.parametrize("engine", [("Serial",), ("Threads", 2), ("Processes", 2)], ids=lambda engine: engine[0])
def test_a_reduction_stops_at_once(tmp_path, engine):
    path = tmp_path / "run.h5"
    with ek.create(path, {"u": Field((3,), "f8")}, capacity=20_000) as store:
        store.extend({"u": np.zeros((20_000, 3))})
    before = hashlib.sha256(path.read_bytes()).digest()
    words = interrupted(tmp_path, REDUCE, path, *engine, after=0.2)
    assert "ended" not in words
    assert len(words) < 40          # of at least 64 pieces: what had begun was let finish, nothing else was started
    assert hashlib.sha256(path.read_bytes()).digest() == before


@pytest.mark.parametrize("seed", range(4))
def test_a_writer_leaves_a_sound_store(tmp_path, seed):
    path, sealed = tmp_path / "run.h5", tmp_path / "sealed"
    sealed.mkdir()
    words = interrupted(tmp_path, WRITE, path, sealed, after=random.Random(seed).uniform(0.05, 1.0))
    returned = int(words[-1]) + 1 if words[-1].isdigit() else 0
    with ek.open(path, mode="a") as store:
        n = len(store)
        assert returned <= n <= returned + 1
        assert store.verify().ok
        np.testing.assert_array_equal(store["u"][:], np.repeat(np.arange(n, dtype=float)[:, None], 700, axis=1))
        store.append({"u": np.full(700, n, float)}, time=float(n))
        assert len(store) == n + 1
    for file in sorted(sealed.glob("*.h5"), key=os.path.getmtime)[-1:]:     # one cut short leaves none of that name
        assert ek.verify(file).ok
