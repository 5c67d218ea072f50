"""VTK through pyvista, which many formats are read by: imported where it is used, and one reader at a time."""

from __future__ import annotations

import threading
from typing import Any

from ensemblekit.errors import MissingExtraError

lock = threading.RLock()        # VTK's error log is one for the process, and netCDF, CGNS and HDF5 are not thread-safe


def pyvista() -> Any:
    """The package. Raises MissingExtraError."""
    try:
        import pyvista
    except ImportError as error:
        raise MissingExtraError("pyvista", "cfd") from error
    return pyvista
