"""Files of every reader changed at random: python fuzz_readers.py FIRST LAST FOLDER [quick | READER...].

Prints each seed. For each file an answer, or an error of ours of one line.
"""

import io
import os
import random
import resource
import signal
import struct
import sys
import time
import zipfile

import h5py
import hdf5plugin  # noqa: F401
import numpy as np
from fuzz_files import MEMORY, SECONDS, changed_bytes, check_line

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import EnsemblekitError

GRID = np.random.default_rng(3).standard_normal((6, 20)).astype("f4")


def read(path):
    """All that a user gets from files of snapshots."""
    source = rom.read(path)
    source.read(0, 2)
    return source.times, source.mesh, repr(source)


def make_npy(path):
    np.save(path, GRID)


def make_npz(path):
    np.savez(path, u=GRID, t=np.arange(6.0), note=np.array("words"))


def make_packed(path):
    np.savez_compressed(path, u=GRID, t=np.arange(6.0))


def make_mat(path):
    from scipy.io import savemat

    savemat(path, {"u": GRID.T, "t": np.arange(6.0), "s": {"a": 1.0, "b": "x"}, "c": np.array([1, "x"], object)})


def make_packed_mat(path):
    from scipy.io import savemat

    savemat(path, {"u": GRID.T, "t": np.arange(6.0)}, do_compression=True)


def make_old_mat(path):
    from scipy.io import savemat

    savemat(path, {"u": GRID.T, "t": np.arange(6.0)}, format="4")


def make_new_mat(path):
    with h5py.File(path, "w", userblock_size=512) as f:
        f["u"], f["t"] = GRID, np.arange(6.0)[:, None]
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")


def make_netcdf(path):
    from scipy.io import netcdf_file

    with netcdf_file(path, "w") as f:
        f.createDimension("time", None)
        for name, n in (("y", 4), ("x", 5)):
            f.createDimension(name, n)
            f.createVariable(name, "f8", (name,))[:] = np.arange(n)
            f.variables[name].units = "m"
        f.createVariable("time", "f8", ("time",))[:] = np.arange(6.0)
        u = f.createVariable("u", "f4", ("time", "y", "x"))
        u[:] = GRID.reshape(6, 4, 5)
        u.units, u.scale_factor = "m s-1", 2.0


def make_netcdf4(path):
    with h5py.File(path, "w") as f:
        f["time"], f["x"], f["u"] = np.arange(6.0), np.arange(20.0), GRID
        for k, name in enumerate(("time", "x")):
            f[name].make_scale(name)
            f[name].attrs["_Netcdf4Dimid"] = k
            f["u"].dims[k].attach_scale(f[name])
            f[name].attrs["units"] = "m" if k else "seconds since 2000-01-01"
        f["u"].attrs["units"], f["u"].attrs["_FillValue"] = "K", np.float32(9)


def make_vtkhdf(path):
    mesh = rom.Mesh.rectilinear(np.arange(5.0), np.arange(4.0))
    rom.export(ek.ArraySource.of({"u": GRID}, times=np.arange(6.0)), path, mesh=mesh)


def make_nek(path):
    n = 6
    head = f"#std 4  3  3  1 {n:>10} {n:>10}  0.0000000000000E+00         0      0      1 XUP".ljust(132).encode()
    body = np.arange(1, n + 1, dtype="<i4").tobytes() + np.random.default_rng(0).random(n * 9 * 5).astype("<f4").tobytes()
    with open(path, "wb") as file:
        file.write(head + struct.pack("<f", 6.54321) + body)


def make_archive(path):
    rom.compress(GRID.astype("f8"), tolerance=0.1, path=path)


def open_archive(path):
    archive = rom.Archive.open(path)
    for one in archive.values():
        one[:2]
    return archive.mesh, str(archive)


def make_basis(path):
    rom.pod(GRID.astype("f8"), 2).save(path)


def open_basis(path):
    basis = rom.Basis.load(path)
    return repr(basis), basis.mesh


def make_state(path):
    rom.IncrementalPOD(path, 2, block=4).update(GRID.astype("f8")).save()


def open_state(path):
    return rom.IncrementalPOD(path, 2, block=4).update(GRID[:1].astype("f8")).result()


def make_dcd(path):
    import MDAnalysis as mda

    universe = mda.Universe.empty(5, trajectory=True)
    with mda.Writer(path, 5) as out:
        for k in range(4):
            universe.atoms.positions = GRID[k, :15].reshape(5, 3)
            universe.dimensions = [9, 9, 9, 90, 90, 90]
            out.write(universe.atoms)


def open_trajectory(path):
    from ensemblekit import md

    source = md.read(os.path.join(os.path.dirname(path), "top.gro"), path)
    return source.times, [block for piece in source.pieces(["position"], "time", False, 1 << 20) for block in piece.blocks()]


def make_h5md(path):
    make_dcd(path)


def make_xvg(path):
    with open(path, "w") as file:
        file.write('# made\n@ xaxis label "Time (ps)"\n@ yaxis label "(kJ/mol)"\n@ s0 legend "Potential"\n')
        file.writelines(f"{k} {-k / 3:.4f}\n" for k in range(40))


def open_columns(path):
    from ensemblekit import md

    return repr(md.columns(path))


def make_checkpoint(path):
    import torch

    torch.save({"state_dict": {"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3)}, "epoch": 3}, path)


def make_safetensors(path):
    import torch
    from safetensors.torch import save_file

    save_file({"a.weight": torch.ones(3, 4), "a.bias": torch.zeros(3)}, path)


def open_checkpoint(path):
    from ensemblekit.neural.checkpoint_files import read_state

    return read_state(path)


# not .trr: MDAnalysis reads it through libxdrfile, which damage can end with a segmentation fault
READERS = {
    "npy": ("u.npy", make_npy, read), "npz": ("u.npz", make_npz, read), "packed": ("p.npz", make_packed, read),
    "mat": ("u.mat", make_mat, read), "packed_mat": ("p.mat", make_packed_mat, read), "old_mat": ("4.mat", make_old_mat, read),
    "new_mat": ("7.mat", make_new_mat, read), "netcdf": ("3.nc", make_netcdf, read), "netcdf4": ("4.nc", make_netcdf4, read),
    "vtkhdf": ("u.vtkhdf", make_vtkhdf, read), "nek": ("u0.f00001", make_nek, read),
    "archive": ("archive.h5", make_archive, open_archive), "basis": ("basis.h5", make_basis, open_basis),
    "state": ("state.h5", make_state, open_state), "dcd": ("t.dcd", make_dcd, open_trajectory),
    "xtc": ("t.xtc", make_dcd, open_trajectory),
    "xvg": ("t.xvg", make_xvg, open_columns), "checkpoint": ("c.pt", make_checkpoint, open_checkpoint),
    "safetensors": ("c.safetensors", make_safetensors, open_checkpoint),
}
QUICK = ("npy", "npz", "packed", "mat", "packed_mat", "old_mat", "new_mat", "netcdf", "netcdf4", "vtkhdf", "nek", "archive",
         "basis", "state", "xvg")
"""Those that need neither torch nor MDAnalysis."""


def changed_file(rng, data, used):
    """A file cut short, or changed in some places, or both; a zip file also inside, with the sums put right."""
    if data[:2] == b"PK" and rng.random() < 0.6:
        return changed_zip(rng, data)
    data = bytearray(data)
    if rng.random() < 0.15:
        del data[rng.randrange(len(data)):]
        if len(data) < 20 or rng.random() < 0.7:
            return bytes(data)
        used = used[used < len(data)]
    if len(used) and len(data) > 32:
        for at, some in changed_bytes(rng, bytes(data), used):
            data[at:at + len(some)] = some
    return bytes(data)


def changed_zip(rng, data):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            body = old.read(name)
            new.writestr(name, changed_file(rng, body, np.flatnonzero(np.frombuffer(body, np.uint8)))
                         if name == chosen and body else body)
    return out.getvalue()


def main(first, last, folder, names):
    kinds = {name: READERS[name] for name in (QUICK if names == ["quick"] else names or READERS)}
    whole = {}
    for name, (file, make, look) in kinds.items():
        path = os.path.join(folder, file)
        if name in ("dcd", "xtc"):
            with open(os.path.join(folder, "top.gro"), "w") as top:
                atoms = "".join(f"    1SOL     OW{k:5}   0.000   0.000   0.000\n" for k in range(1, 6))
                top.write(f"five\n5\n{atoms}1 1 1\n")
        make(path)
        look(path)
        with open(path, "rb") as opened:
            data = opened.read()
        whole[name] = path, data, np.flatnonzero(np.frombuffer(data, np.uint8)), look
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY * 4 if "torch" in sys.modules else MEMORY,) * 2)
    for seed in range(first, last):
        rng = random.Random(seed)
        print(seed, end=" ", flush=True)
        path, data, used, look = whole[list(whole)[seed % len(whole)]]
        signal.alarm(300)               # whoever waits ends here, whoever works in vain there, however busy the machine is
        signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
        with open(path, "wb") as out:
            out.write(changed_file(rng, data, used))
        start = time.process_time()
        try:
            look(path)
        except EnsemblekitError as error:
            check_line(str(error))
        assert time.process_time() - start < SECONDS, f"{path} is slow"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
