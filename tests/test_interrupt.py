"""Ctrl-C: the work stops with all its workers, and the files stay sound."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
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
    time.sleep(0.5)
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


SLEEP = """
import time
import numpy as np
import ensemblekit as ek

def slow(block):
    print("begun", flush=True)
    time.sleep(600)
    print("last line", flush=True)
    return block.only

if __name__ == "__main__":
    ek.reduce(np.zeros((64, 3)), {"u": (slow, ek.Moments())}, engine=ek.Processes(2))
"""

HOLD = SLEEP.replace("time.sleep(600)", "sum(range(10**11))      # never lets go of Python's lock")

PATIENCE = 500      # seconds after which a test gives up and ends the group: no test waits that long on a healthy machine


class Group:
    """A script in a process group of its own, ended with all its workers whatever happens here."""

    def __init__(self, folder, script, *arguments):
        (folder / "script.py").write_text(script)
        self.child = subprocess.Popen([sys.executable, folder / "script.py", *map(str, arguments)], stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.watchdog = threading.Timer(PATIENCE, self.bark)
        self.barked = False

    def __enter__(self):
        self.watchdog.start()
        return self

    def __exit__(self, *_):
        self.watchdog.cancel()
        self.end()
        self.child.wait()
        self.child.stdout.close()
        self.child.stderr.close()
        assert not self.barked, "the group had to be ended from outside"

    def bark(self):
        self.barked = True
        self.end()

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)

    def lives(self):
        try:
            os.killpg(self.child.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def gone(self, seconds=200):
        """Whether nobody of the group is left after a while; multiprocessing's own helper goes last."""
        until = time.monotonic() + seconds
        while self.lives() and time.monotonic() < until:
            time.sleep(0.05)
        return not self.lives()


def interrupted(folder, script, *arguments, after=0.0):
    """Run a script in a process group of its own, send it Ctrl-C `after` seconds from its first word; what it said."""
    with Group(folder, script, *arguments) as group:
        said = group.child.stdout.readline()
        time.sleep(after)
        for _ in range(20):     # Python drops an interrupt that falls into a weakref's callback: people press again
            os.killpg(group.child.pid, signal.SIGINT)   # as a terminal does: to the whole group
            try:
                rest, complaint = group.child.communicate(timeout=4)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            pytest.fail("Ctrl-C is not heard")
        assert group.child.returncode not in (0, -signal.SIGKILL, -signal.SIGSEGV), complaint
        assert "KeyboardInterrupt" in complaint
        assert group.gone(), "workers live on after Ctrl-C"
    return (said + rest).split()


ENDS = {"one Ctrl-C": [signal.SIGINT], "three Ctrl-C": [signal.SIGINT] * 3, "SIGTERM": [signal.SIGTERM],
        "SIGKILL": [signal.SIGKILL]}


@pytest.mark.parametrize(("how", "script"), [
    *((how, SLEEP) for how in ENDS),
    pytest.param("SIGKILL", HOLD, marks=pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread watches")),
], ids=lambda x: x if x in ENDS else "sleeping" if x is SLEEP else "holding the lock")
def test_workers_end_with_their_parent(tmp_path, how, script):
    """The parent alone is told, or killed: its workers, in the middle of ten minutes' work, end long before it."""
    with Group(tmp_path, script) as group:
        assert [group.child.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        for k in ENDS[how]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(group.child.pid, k)
            time.sleep(0.05)
        begun = time.monotonic()
        rest, complaint = group.child.communicate(timeout=PATIENCE)     # ends when nobody holds the output any more
        assert time.monotonic() - begun < 400, "the workers' work was waited for"
        assert group.gone(), "workers live on"
        assert "last line" not in rest
        assert rest.count("begun") == 0, "work began after the end was told"
        if ENDS[how][0] == signal.SIGINT:
            assert "KeyboardInterrupt" in complaint
            assert group.child.returncode not in (0, -signal.SIGKILL)
        else:
            assert group.child.returncode == -ENDS[how][0]


def test_the_next_reduction_works_after_an_interrupt(tmp_path):
    script = SLEEP.replace("engine=ek.Processes(2))", "engine=ek.Processes(2))", 1).replace(
        '    ek.reduce(np', '    try: ek.reduce(np').rstrip() + """
    except KeyboardInterrupt: print("interrupted", flush=True)
    print(ek.reduce(np.ones((64, 3)), ek.Moments(), engine=ek.Processes(2)).mean.sum(), flush=True)
"""
    with Group(tmp_path, script) as group:
        assert group.child.stdout.readline() == "begun\n"
        os.kill(group.child.pid, signal.SIGINT)
        rest, complaint = group.child.communicate(timeout=PATIENCE)
        assert rest.split()[-2:] == ["interrupted", "3.0"], complaint
        assert group.child.returncode == 0


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
