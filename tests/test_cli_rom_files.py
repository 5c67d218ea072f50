"""``ensemblekit rom ingest`` and ``rom export`` as one types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.cli import app
from tests.flowfiles import Foam
from tests.test_rom_openfoam import write_case

pv = pytest.importorskip("pyvista")


def run(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["rom", *map(str, words)])
    assert done.exit_code == code, done.output
    return done.output


def test_a_case_to_paraview_and_back(tmp_path: Path) -> None:
    fields = write_case(tmp_path / "case", Foam(binary=True))
    store = tmp_path / "run.vtkhdf"
    said = run("ingest", tmp_path / "case", "-o", store, "-f", "U", "--begin", 1, "--single", "--compress")
    assert "2 snapshots of U (24, 3) m s-1" in said
    assert "written:" in said
    opened = ek.open(store)
    assert opened.fields["U"].dtype == np.float32
    np.testing.assert_array_equal(opened["U"][:], fields["U"][2:].astype("f4"))
    run("export", store, "-o", tmp_path / "last.vtkhdf", "--start", 1)
    np.testing.assert_array_equal(pv.read(tmp_path / "last.vtkhdf").cell_data["U"], fields["U"][3].astype("f4"))
    basis = tmp_path / "U.basis.h5"
    rom.pod(opened["U"], rank=1).save(basis)
    run("export", basis, "-o", tmp_path / "modes.vtkhdf")
    assert "U_mode_0001" in pv.read(tmp_path / "modes.vtkhdf").cell_data
    run("export", basis, "-o", tmp_path / "again.pvd", "--reconstruct")
    assert len(rom.read(tmp_path / "again.pvd")) == 2
    assert "there already" in run("export", basis, "-o", tmp_path / "modes.vtkhdf", code=2)


def test_errors_in_one_line(tmp_path: Path) -> None:
    assert "is not known" in run("ingest", __file__, "-o", tmp_path / "a.h5", code=2)
    np.save(tmp_path / "u.npy", np.zeros((3, 4)))
    assert "no mesh" in run("ingest", tmp_path / "u.npy", "-o", tmp_path / "u.vtkhdf", code=2)
    assert "no basis" in run("export", tmp_path / "u.npy", "-o", tmp_path / "u.vtkhdf", "--reconstruct", code=2)
