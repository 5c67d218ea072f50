"""Classic NetCDF files, before another library reads them: whether they hold what their header says."""

from __future__ import annotations

import os

from ensemblekit.errors import SnapshotFileError
from ensemblekit.files import most_bytes


def check_classic(path: str) -> None:
    """Raise SnapshotFileError where a classic file does not hold what its header says."""
    from scipy.io import netcdf_file

    if os.path.getsize(path) > most_bytes(path):
        raise SnapshotFileError(path, f"says it has {os.path.getsize(path)} bytes, most of them holes; it is not read")
    try:
        with netcdf_file(path, "r", mmap=True) as file:
            for variable in file.variables.values():
                _ = tuple(variable.shape), variable.data.dtype
            del variable
    except UnboundLocalError:
        raise SnapshotFileError(path, "holds no variables") from None
    except Exception as error:      # scipy's parser raises whatever it trips over
        raise SnapshotFileError(path, f"cannot be read as NetCDF, or is cut short ({type(error).__name__}: {error})") from error
