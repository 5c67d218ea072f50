"""Kills a real writer at one write after the other, and looks at what it leaves behind.

Run as a program (``python killing.py '{"kind": ...}'``), with killing.c preloaded where a compiler is found; prints a
JSON summary. A child is forked for every point; it tells through a pipe which operation it has begun and which has
returned, so that the parent knows what must be there. With ``"every": true`` one child stops at each of its writes, and
what a kill would leave there is looked at in a copy of its files.
"""

import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import h5py
import numpy as np

import ensemblekit as ek
from ensemblekit.errors import StoreError
from ensemblekit.store import blocks, names
from ensemblekit.store.segments import MappedColumns

TICKS = ("pwrite", "ftruncate", "posix_fallocate", "rename", "unlink")
SUFFIX = {"field": ".h5", "md": ".h5md", "scalars": ".h5"}
MORE = {"scalars": {**{f"s{k}": "f4" for k in range(8)}, **{f"e{k}": "f8" for k in range(8)}}}
"""Fields of a store of many small ones, which share two datasets; the number of the snapshot is in all of them."""


EVERY = 0
"""In place of an event to die at: stop at each."""


class Trap:
    """Counts the events of this process and kills it at one of them, or stops it at every one."""

    def __init__(self):
        shim = os.environ.get("KILLING_SHIM")
        self.shim = ctypes.CDLL(shim) if shim else None
        self.events, self.target, self.torn = 0, -1, False

    def arm(self, target, torn):
        self.target, self.torn = target, torn
        if self.shim is not None:
            self.shim.killing_arm(ctypes.c_long(target), ctypes.c_long(torn))
        else:                               # without a compiler: our own writes only
            for name in TICKS:
                setattr(os, name, self._watched(getattr(os, name), name))
        array = MappedColumns._array
        MappedColumns._array = lambda small, *arguments: Watched(array(small, *arguments), self)

    def event(self):
        """Whether to die at the event that happens now."""
        if self.shim is not None:
            return bool(self.shim.killing_event())
        self.events += 1
        return self.target in (self.events, EVERY)

    def die(self):
        """The end, or a stop until somebody has looked."""
        os.kill(os.getpid(), signal.SIGSTOP if self.target == EVERY else signal.SIGKILL)

    @property
    def count(self):
        return self.shim.killing_events() if self.shim is not None else self.events

    def _watched(self, real, name):
        def call(*arguments, **options):
            if self.event():
                if name == "pwrite" and self.torn:
                    fd, data, at = arguments
                    view = memoryview(data).cast("B")
                    middle = (at + len(view) // 2) // 4096 * 4096
                    if middle > at:
                        real(fd, view[:middle - at], at)
                self.die()
            return real(*arguments, **options)

        return call


class Watched:
    """An array over a mapped file whose every assignment is an event; torn, half of its rows are assigned."""

    def __init__(self, array, trap):
        self.array, self.trap = array, trap

    def __setitem__(self, key, value):
        if self.trap.event():
            if self.trap.torn and isinstance(key, slice):
                half = (key.stop - key.start) // 2
                self.array[key.start:key.start + half] = np.broadcast_to(value, self.array[key].shape)[:half]
            self.trap.die()
        self.array[key] = value


# ---- what the writer does --------------------------------------------------------------------------------------

def snapshot(number, shape):
    return (np.arange(int(np.prod(shape)), dtype="f4") * np.float32(0.001) + np.float32(number)).reshape(shape)


def fields_of(kind, shape):
    if kind == "md":
        return {"energy": ek.Field(unit="kJ mol-1"),
                "position": ek.Field(shape, "f4", unit="Angstrom", kind="position"),
                "box": ek.Field((3, 3), "f4", unit="Angstrom", kind="box")}
    return {"u": ek.Field(shape, "f4"), "e": ek.Field(), **{name: ek.Field((), d) for name, d in MORE.get(kind, {}).items()}}


def batch(kind, shape, numbers):
    big = np.stack([snapshot(k, shape) for k in numbers])
    e = np.asarray(numbers, float)
    if kind == "md":
        return {"position": big, "energy": e, "box": np.stack([np.eye(3, dtype="f4") * (10 + k) for k in numbers])}
    return {"u": big, "e": e, **{name: e.astype(d) for name, d in MORE.get(kind, {}).items()}}


class Writer:
    """The operations, each from one known state to the next; `states` are the snapshots' numbers after each."""

    def __init__(self, job):
        self.kind, self.shape = job["kind"], tuple(job["shape"])
        self.in_place, self.durability = job.get("in_place", True), job.get("durability", "process")
        self.capacity = job.get("capacity", 5)

    def operations(self):
        """(name, argument) and the numbers of the snapshots there are when it has returned."""
        there: list[int] = []
        yield ("create", None), list(there)
        for k in range(7):
            there.append(k)
            yield ("append", k), list(there)
        there += range(100, 109)
        yield ("extend", list(range(100, 109))), list(there)
        there = there[:4]
        yield ("truncate", 4), list(there)
        for k in (200, 201):
            there.append(k)
            yield ("append", k), list(there)
        yield ("close", None), list(there)
        yield ("open", None), list(there)
        there.append(300)
        yield ("append", 300), list(there)
        yield ("seal", None), list(there)

    def run(self, path, tell):
        store = None
        for k, ((name, argument), _) in enumerate(self.operations()):
            tell(b"B", k)
            if name == "create":
                store = ek.create(path, fields_of(self.kind, self.shape), capacity=self.capacity,
                                  in_place=self.in_place, durability=self.durability)
            elif name == "append":
                one = {key: value[0] for key, value in batch(self.kind, self.shape, [argument]).items()}
                store.append(one)
                store.flush()
            elif name == "extend":
                store.extend(batch(self.kind, self.shape, argument))
            elif name == "truncate":
                store.truncate(argument)
            elif name == "close":
                store.close()
            elif name == "open":
                store = ek.open(path, "a", durability=self.durability, capacity=self.capacity)
            elif name == "seal":
                store.seal(compression="lossless" if self.kind != "md" else None)
            tell(b"E", k)


# ---- what it leaves behind -------------------------------------------------------------------------------------

def bulk(kind):
    return "position" if kind == "md" else "u"


def numbers_in(store, kind, shape):
    """The numbers of the snapshots a store holds; raises where any is not exactly what was written."""
    n = len(store)
    values, e = store[bulk(kind)][:], store["energy" if kind == "md" else "e"][:]
    numbers = [int(v) for v in e]
    for k, number in enumerate(numbers):
        assert np.array_equal(values[k], snapshot(number, shape)), ("wrong snapshot", k, number)
    if kind == "md":
        assert np.array_equal(store["box"][:, 0, 0], np.asarray(numbers, "f4") + 10) or n == 0
    for name in MORE.get(kind, {}):
        assert np.array_equal(store[name][:], e), ("wrong value", name)
    assert np.array_equal(store.steps, np.arange(n)), ("steps", store.steps)
    assert np.array_equal(store.times, np.arange(n)), ("times", store.times)
    return numbers


def between(numbers, before, after):
    """Whether `numbers` is a state on the way from one list to another that continues it or is its beginning."""
    shorter, longer = sorted((before, after), key=len)
    assert longer[:len(shorter)] == shorter
    return len(shorter) <= len(numbers) <= len(longer) and numbers == longer[:len(numbers)]


def look_with_h5py(path, kind, shape):
    """Any other reader's view of every file: closed, valid, and no row that is not right."""
    for file in names.segments_of(path):
        with h5py.File(file, "r") as f:
            element = f["particles/trajectory/position" if kind == "md" else "observables/u"]
            e = f["observables/energy/value" if kind == "md" else "observables/e/value"]
            n = len(element["value"])
            assert all(len(d) >= n for d in (e, element["step"], element["time"], f["observables/weight/value"]))
            for name in MORE.get(kind, {}):
                assert np.array_equal(f[f"observables/{name}/value"][:n], e[:n]), ("h5py", file, name)
            for k, (value, number) in enumerate(zip(element["value"][:n], e[:n], strict=True)):
                assert np.array_equal(value, snapshot(int(number), shape)), ("h5py", file, k)


def assert_settled(path, kind):
    """Once a writer has opened and closed it, no dataset is ahead of the commit."""
    for file in names.segments_of(path):
        with h5py.File(file, "r") as f:
            element = f["particles/trajectory/position" if kind == "md" else "observables/u"]
            others = [element["step"], element["time"], f["observables/weight/value"], f["ensemblekit/checksums/main"],
                      f["observables/energy/value" if kind == "md" else "observables/e/value"]]
            assert {len(d) for d in others} == {len(element["value"])}, ("not settled", file)


class Reader:
    """Readers of every kind that open the store while the writer lives, and read on when it is dead."""

    def __init__(self, path, kind, shape, others):
        self.path, self.kind, self.shape = path, kind, shape
        self.store = ek.open(path)
        self.source = self.store[bulk(kind)]
        self.source[:]      # mapped from now on, whatever becomes of the file's name
        self.file = h5py.File(path, "r") if others else None
        self.universe = None
        if others and kind == "md":
            import MDAnalysis

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.universe = MDAnalysis.Universe(path)

    def look(self):
        """The first three snapshots, which the operations never touch, are as they were."""
        for k in range(min(len(self.source), 3)):
            assert np.array_equal(self.source[k], snapshot(k, self.shape)), ("source", k)

    def check(self):
        """What was there when they opened is there still, as long as no truncation took it away."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.look()
            if self.file is not None:
                d = self.file["particles/trajectory/position/value" if self.kind == "md" else "observables/u/value"]
                for k in range(min(len(d), 3)):
                    assert np.array_equal(d[k], snapshot(k, self.shape)), ("h5py before", k)
                self.file.close()
            if self.universe is not None:
                # not trajectory[:3]: where no more than three frames were there, that is all of them, and MDAnalysis,
                # which opens the name anew to iterate, then goes on into those that the sealed file has after them
                for k, frame in enumerate(islice(self.universe.trajectory, 3)):
                    assert np.array_equal(frame.positions, snapshot(k, self.shape)), ("MDAnalysis before", k)
                self.universe.trajectory.close()


def check_md(path, shape):
    import MDAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with h5py.File(path) as f:
            n = len(f["particles/trajectory/position/value"])
        if n:
            universe = MDAnalysis.Universe(path)
            assert universe.trajectory.n_frames == n
            for frame in universe.trajectory if n < 50 else universe.trajectory[-20:]:
                number = int(frame.data["energy"])
                assert np.array_equal(frame.positions, snapshot(number, shape)), ("MDAnalysis", frame.frame)
                assert frame.time == frame.frame
                assert frame.dimensions[0] == 10 + number
            universe.trajectory.close()


def aftermath(path, job, before, after, name):
    """Everything that must hold of a store whose writer died in operation `name` between two states."""
    kind, shape = job["kind"], tuple(job["shape"])
    if not os.path.exists(path):
        assert name == "create", "the store is gone"
        ek.create(path, fields_of(kind, shape)).close()         # nothing stands in its way
        assert len(ek.open(path)) == 0
        return
    store = ek.open(path)
    numbers = numbers_in(store, kind, shape)
    assert between(numbers, before, after), (name, numbers, before, after)
    look_with_h5py(path, kind, shape)
    if kind == "md":
        check_md(path, shape)
    if store.sealed:
        assert name == "seal"
        try:
            ek.open(path, "a")
        except StoreError:
            pass
    else:
        ek.open(path, "a").close()
        assert_settled(path, kind)
        with ek.open(path, "a") as writer:
            one = {key: value[0] for key, value in batch(kind, shape, [900]).items()}
            writer.append(one)
        assert numbers_in(ek.open(path), kind, shape) == [*numbers, 900]
    left = [entry for entry in os.listdir(os.path.dirname(path)) if ".tmp" in entry]
    assert left == [], left
    assert len(ek.open(path).segments) == len(names.segments_of(path))


# ---- killing ---------------------------------------------------------------------------------------------------

def fork(job, path, trap, target, torn, meet_at=None):
    """A child that runs the operations; returns its pid, what it tells, and how to let it go on where it waits."""
    reading, telling = os.pipe()
    waiting, going = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.close(going)

        def tell(what, k):
            os.write(telling, what + bytes([k]))
            if what == b"E" and k == meet_at:
                os.read(waiting, 1)

        try:
            trap.arm(target, torn)
            counts = []
            Writer(job).run(path, lambda what, k: (tell(what, k), counts.append(trap.count) if what == b"E" else None))
            os.write(telling, b"N" + json.dumps(counts).encode())
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
            os._exit(3)
        os._exit(0)
    os.close(telling)
    os.close(waiting)
    return pid, reading, going


def kill_at(job, trap, path, target, torn, meet_at):
    """Kill at the event; returns the operation it died in."""
    pid, reading, going = fork(job, path, trap, target, torn, meet_at)
    heard, reader = b"", None
    while True:
        part = os.read(reading, 4096)
        if not part:
            break
        heard += part
        if reader is None and b"E" + bytes([meet_at]) in heard[-2:]:
            reader = Reader(path, job["kind"], tuple(job["shape"]), job.get("others", True))
            os.write(going, b"g")
    os.close(reading)
    os.close(going)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 3:
        raise AssertionError("the writer failed instead of being killed")
    steps = [((None, None), []), *Writer(job).operations()]
    pairs = [heard[k:k + 2] for k in range(0, len(heard.partition(b"N[")[0]) - 1, 2)]
    if b"N[" in heard and os.WIFEXITED(status):
        return None, reader, steps[-1][1], steps[-1][1]
    begun = max((p[1] for p in pairs if p[:1] == b"B"), default=0)
    ended = b"E" + bytes([begun]) in pairs
    (name, _), after = steps[begun + 1]
    return name, reader, after if ended else steps[begun][1], after


def count(job, trap):
    """How many events there are up to the end of each operation."""
    with tempfile.TemporaryDirectory(dir=job.get("folder")) as folder:
        pid, reading, going = fork(job, os.path.join(folder, "run" + SUFFIX[job["kind"]]), trap, -1, False)
        heard = b""
        while part := os.read(reading, 4096):
            heard += part
        os.close(going)
        os.waitpid(pid, 0)
        return json.loads(heard[heard.rindex(b"N") + 1:])


def sweep(job):
    """Kill at every event, or at `points` of them spread evenly."""
    trap = Trap()
    counts = count(job, trap)
    total = counts[-1]
    points = range(1, total + 1)
    if job.get("points", total) < total:        # and the middle of each operation, and half of the truncation: it is
        points = {1 + int(k * total / job["points"]) for k in range(job["points"])}     # short, with many ways to go wrong
        for k, ((name, _), _) in enumerate(Writer(job).operations()):
            first, last = counts[k - 1] + 1 if k else 1, counts[k]
            if name == "truncate":
                points |= set(range(first, last + 1, 2))
            elif name != "append":
                points.add((first + last) // 2)
        points = sorted(points)
    died: dict[str, int] = {}
    for target in points:
        folder = tempfile.mkdtemp(dir=job.get("folder"))
        path = os.path.join(folder, "run" + SUFFIX[job["kind"]])
        name, reader, before, after = kill_at(job, trap, path, target, job.get("torn", False), 4)
        try:
            if reader is not None:
                reader.check()
            aftermath(path, job, before, after, name)
        except Exception as error:
            raise AssertionError(f"event {target} of {total}, in {name}: {error!r} (left in {folder})") from error
        died[str(name)] = died.get(str(name), 0) + 1
        blocks._maps.clear()
        shutil.rmtree(folder)
    return {"events": total, "points": len(points), "died_in": died, "shim": trap.shim is not None}


def content(folder):
    """What tells two states of a folder apart: names and bytes of all files; of temporary ones, which nobody reads, how many
    there are."""
    digest, temporary = hashlib.sha1(), 0
    for name in sorted(entry for entry in Path(folder).rglob("*") if entry.is_file()):
        if ".tmp" in name.name:
            temporary += 1
        else:
            digest.update(f"{name.relative_to(folder)} {name.stat().st_size}\n".encode() + name.read_bytes())
    return digest.hexdigest(), temporary


def every(job):
    """Stop at every event and look at what a kill would leave; states of the same files are looked at once."""
    trap, kind, shape = Trap(), job["kind"], tuple(job["shape"])
    home, left = (tempfile.mkdtemp(dir=job.get("folder")) for _ in range(2))
    path, copied = os.path.join(home, "run" + SUFFIX[kind]), os.path.join(left, "copy", "run" + SUFFIX[kind])
    pid, reading, going = fork(job, path, trap, EVERY, job.get("torn", False))
    os.set_blocking(reading, False)
    steps = [((None, None), []), *Writer(job).operations()]
    begun, ended, events, seen, reader = 0, -1, 0, set(), None
    died: dict[str, int] = {}
    heard = b""
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        try:
            while part := os.read(reading, 4096):
                heard += part
        except BlockingIOError:
            pass
        if not os.WIFSTOPPED(status):
            break
        events += 1
        for k in range(0, len(heard), 2):
            begun, ended = (heard[k + 1], ended) if heard[k:k + 1] == b"B" else (begun, heard[k + 1])
        heard = b""
        (name, _), after = steps[begun + 1]
        before = after if ended == begun else steps[begun][1]
        died[name] = died.get(name, 0) + 1
        state = (*content(home), begun, ended)
        try:
            if reader is None and ended >= 4:
                reader = Reader(path, kind, shape, job.get("others", True))
            if reader is not None:
                reader.look()
            if state not in seen:
                seen.add(state)
                shutil.copytree(home, os.path.join(left, "copy"))
                aftermath(copied, job, before, after, name)
                for key in [key for key in blocks._maps if key[0].startswith(left)]:    # the reader's own stay
                    del blocks._maps[key]
                shutil.rmtree(os.path.join(left, "copy"))
        except Exception as error:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"event {events}, in {name}: {error!r} (left in {left})") from error
        os.kill(pid, signal.SIGCONT)
    os.close(reading)
    os.close(going)
    assert os.WIFEXITED(status), status
    assert os.WEXITSTATUS(status) == 0, "the writer failed"
    assert reader is not None
    reader.check()
    return {"events": events, "points": events, "states": len(seen), "died_in": died, "shim": trap.shim is not None}


# ---- random instants -------------------------------------------------------------------------------------------

def at_random(job):
    """SIGKILL from outside at random instants of a writer that appends without end."""
    rng = random.Random(job.get("seed", 0))
    kind, shape = job["kind"], tuple(job["shape"])
    least = most = None
    for _ in range(job["points"]):
        folder = tempfile.mkdtemp(dir=job.get("folder"))
        path = os.path.join(folder, "run" + SUFFIX[kind])
        reading, telling = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                store = ek.create(path, fields_of(kind, shape), capacity=50, in_place=job.get("in_place", True))
                n = 0
                while True:
                    if n % 17 == 16:
                        store.extend(batch(kind, shape, range(n, n + 13)))
                        n += 13
                    else:
                        store.append({key: v[0] for key, v in batch(kind, shape, [n]).items()})
                        store.flush()
                        n += 1
                    os.write(telling, n.to_bytes(4, "little"))
            finally:
                os._exit(3)
        os.close(telling)
        first = os.read(reading, 4)
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(pid, signal.SIGKILL)
        heard = first
        while part := os.read(reading, 1 << 16):
            heard += part
        os.close(reading)
        os.waitpid(pid, 0)
        acked = int.from_bytes(heard[-(len(heard) % 4) - 4:][:4], "little")
        numbers = numbers_in(ek.open(path), kind, shape)
        assert numbers == list(range(len(numbers)))
        assert acked <= len(numbers) <= acked + 13, (acked, len(numbers))
        aftermath(path, job, numbers, numbers, "append")
        least, most = min(acked, least or acked), max(acked, most or 0)
        blocks._maps.clear()
        shutil.rmtree(folder)
    return {"points": job["points"], "acknowledged": [least, most]}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps(at_random(job) if job.get("random") else every(job) if job.get("every") else sweep(job)))
