"""Files changed at random, opened one after the other: python fuzz_files.py FIRST LAST FOLDER [verify]. Prints each seed."""

import json
import os
import random
import resource
import signal
import sys
import time

import h5py
import hdf5plugin  # noqa: F401
import numpy as np

import ensemblekit as ek
import ensemblekit.store.opening
from ensemblekit.cli.info import time_range
from ensemblekit.errors import EnsemblekitError, StoreDamagedError
from ensemblekit.store.file_check import check_file
from ensemblekit.store.schema import SCHEMA, Schema

ODD = (None, -1, 0, 1 << 40, 1 << 80, 1.5, 1e400, True, "", "x", "../x", "a/b", "O", "V8", [], [1], [-1], {}, {"x": 1}, "\0",
       "\ud800")
SECONDS = 5
MEMORY = 3 << 30        # of addresses; arrays that a file does not justify are larger by far


def make_sources(folder):
    """A store of ours, and plain files of the old and the new structures."""
    with ek.create(f"{folder}/ours.h5", {"u": ek.Field((3,)), "v": ek.Field()}, capacity=8) as store:
        store.extend({"u": np.ones((4, 3)), "v": np.ones(4)})
    for name, options in (("old.h5", {}), ("new.h5", {"libver": "latest"})):
        with h5py.File(f"{folder}/{name}", "w", **options) as f:
            f.create_dataset("a/value", data=np.arange(12.0).reshape(4, 3), chunks=(1, 3), maxshape=(None, 3))
            f["a/step"], f["a/time"], f["b"] = np.arange(4), 0.5, np.arange(6)
            f.create_dataset("c", data=np.ones(50), compression="gzip")
            f["a/value"].attrs["unit"] = "nm"
            layout = h5py.VirtualLayout((6,), "i8")
            layout[:] = h5py.VirtualSource(".", "/b", (6,))
            f.create_virtual_dataset("d", layout)
    return [f"{folder}/{name}" for name in ("ours.h5", "old.h5", "new.h5")]


def changed_bytes(rng, data, used):
    """(place, bytes) of one to four changes near bytes that are not zero: flips, odd numbers, addresses of elsewhere."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = max(8, min(len(data) - 9, int(used[rng.randrange(len(used))]) + rng.randrange(-8, 9)))
        how = rng.randrange(5)
        if how == 0:
            yield at, bytes([data[at] ^ 1 << rng.randrange(8)])
        elif how == 1:
            yield at, bytes([rng.choice([0, 1, 255, 128])])
        elif how == 2:
            yield at & ~7, rng.choice([1 << 40, 2 ** 63, 2 ** 64 - 1, 0, 96]).to_bytes(8, "little")
        elif how == 3:
            yield at & ~7, rng.randrange(len(data)).to_bytes(8, "little")
        else:
            yield at, rng.randbytes(2)


def changed_record(rng, record):
    """A description with one entry, at any depth, that is missing, odd or another's."""
    record = json.loads(json.dumps(record))
    here = record
    while True:
        key = rng.choice(list(here))
        if isinstance(here[key], dict) and here[key] and rng.random() < 0.7:
            here = here[key]
            continue
        if rng.random() < 0.2:
            del here[key]
        elif rng.random() < 0.2:
            here[rng.choice(["weight", "a/b", "..", "", "x"])] = here.pop(key)
        else:
            here[key] = rng.choice(ODD)
        return json.dumps(record).encode()


def linked(rng, path):
    """A file of groups that lead to each other, to themselves, out of the file and nowhere."""
    with h5py.File(path, "w", libver=rng.choice(["earliest", "latest"])) as f:
        groups = [f]
        for k in range(rng.randrange(2, 12)):
            here = rng.choice(groups)
            how = rng.randrange(7)
            name = f"n{k}" if how else rng.choice(["value", "step", "time", "particles", "ensemblekit"]) + "'" * k
            if how <= 1:
                groups.append(here.create_group(name))
            elif how == 2:
                here[name] = rng.choice(groups)
            elif how == 3:
                here[name] = h5py.SoftLink(rng.choice(["/", ".", f"/n{k}", "/n1/n2", "/dev/zero", "n0/../n1"]))
            elif how == 4:
                here[name] = h5py.ExternalLink(rng.choice(["old.h5", "/dev/zero", path, "%b"]), "/b")
            elif how == 5:
                layout = h5py.VirtualLayout((6,), "i8")
                layout[:] = h5py.VirtualSource(rng.choice([".", "old.h5", "/dev/zero", ""]), rng.choice(
                    ["/b", f"{here.name}/{name}".replace("//", "/"), "/n1"]), (6,))
                here.create_virtual_dataset(name, layout)
            else:
                here.create_dataset(name, (rng.choice([3, 1 << 40]),), "f8", chunks=rng.choice([None, (2,)]))


def check_line(words):
    assert "\n" not in words, words


def look_at(path, verify):
    try:
        if verify:
            answer = check_file(path)
            for words in (*answer["problems"], *answer["unchecked"]):
                check_line(words)
            return
        store = ek.open(path)
        for name in store.fields:
            time_range(store[name])
    except EnsemblekitError as error:
        check_line(str(error))


def main(first, last, folder, verify=False):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sources = make_sources(folder)
    whole = [open(path, "rb").read() for path in sources]
    used = [np.flatnonzero(np.frombuffer(data, np.uint8)) for data in whole]
    files = [os.open(path, os.O_WRONLY) for path in sources]
    with h5py.File(sources[0]) as f:
        record = json.loads(f[SCHEMA][...].tobytes())
    for seed in range(first, last):
        rng = random.Random(seed)
        print(seed, end=" ", flush=True)
        signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)       # whoever hangs ends here, however busy the machine is
        start = time.process_time()
        if seed % 8 == 0:
            linked(rng, f"{folder}/linked.h5")
            look_at(f"{folder}/linked.h5", verify)
        else:
            k = rng.randrange(len(whole))
            changes = list(changed_bytes(rng, whole[k], used[k]))
            for at, data in changes:
                os.pwrite(files[k], data, at)
            look_at(sources[k], verify)
            for at, data in changes:
                os.pwrite(files[k], whole[k][at:at + len(data)], at)
        try:
            Schema.from_json(changed_record(rng, record))
        except StoreDamagedError as error:
            check_line(str(error))
        assert time.process_time() - start < SECONDS, "slow"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], "verify" in sys.argv[4:])
