"""Bases and models from the files that their `save` wrote."""

from __future__ import annotations

import os

from ensemblekit.errors import StoreError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.modal import ModalModel
from ensemblekit.rom.model_files import read
from ensemblekit.rom.parametric_model import ParametricModel
from ensemblekit.rom.quadratic import QuadraticModel
from ensemblekit.rom.state_space import StateSpace

KINDS: dict[str, type[QuadraticModel | ModalModel | ParametricModel]] = {
    "quadratic": QuadraticModel, "state_space": StateSpace, "modal": ModalModel, "parametric": ParametricModel}
"""What a file says it holds, and the class that reads it."""


def load(path: str | os.PathLike[str]) -> Basis | QuadraticModel | ModalModel | ParametricModel:
    """What `save` of a Basis or of a model wrote. Raises StoreError where the file holds neither."""
    from ensemblekit.store.guarded import record

    name = os.fspath(path)
    contents = read(path)
    if contents is None:
        try:
            return Basis.load(path)
        except StoreError as error:
            if "holds no basis" not in str(error):
                raise
            raise StoreError(f"{name} holds neither a basis nor a model; save() of a Basis or a model writes such files, and "
                             "ek.open or rom.read opens snapshots") from error
    about, arrays, basis = contents
    with record(name, "model"):
        if about["kind"] not in KINDS:
            raise StoreError(f"{name} holds a model of the kind {about['kind']!r}; this version knows {', '.join(KINDS)}")
        return KINDS[about["kind"]].of_file(about, arrays, basis)
