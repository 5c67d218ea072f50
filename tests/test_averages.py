"""Averages by name: the same table, rows and files whatever was averaged."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.averaging.averages import HEAD, Averages
from ensemblekit.errors import InputError, UnknownFieldError


@pytest.fixture(scope="module")
def some():
    rng = np.random.default_rng(0)
    return Averages({"e": ek.average(rng.normal(5, 1, 400)), "u": ek.average(rng.normal(size=(400, 3)))},
                    ("u: of a half of the cells", "two reads: one for each"))


def test_a_table_has_a_line_for_each_and_its_notes_below(some):
    lines = str(some).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["e", "u"]
    assert "converged" in lines[2]
    assert lines[-2:] == ["u: of a half of the cells", "two reads: one for each"]
    assert some._repr_html_().count("<tr>") == 3
    with pytest.raises(UnknownFieldError, match="v"):
        some["v"]


def test_files_hold_what_the_rows_do(some, tmp_path):
    rows = list(some.rows())
    assert len(rows) == 4
    some.to_csv(tmp_path / "a.csv")
    with open(tmp_path / "a.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == list(HEAD)
    assert [float(row["mean"]) for row in read] == [row["mean"] for row in rows]
    some.to_json(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == some.to_dict()
    with np.load(some.save(tmp_path / "a.npz")) as arrays:
        np.testing.assert_array_equal(arrays["u"], some["u"].mean)
        np.testing.assert_array_equal(arrays["u_ci95"], 0.5 * (some["u"].high - some["u"].low))
        assert set(arrays) == {f"{name}{end}" for name in some for end in ("", "_ci95", "_n_eff")}
    with pytest.raises(InputError, match=r"saved as \.npz"):
        some.save(tmp_path / "a.txt")


def test_averages_of_a_flow_are_averages(tmp_path):
    averages = rom.average(np.random.default_rng(1).normal(size=(200, 6)), ["mean", "rms"])
    assert isinstance(averages, Averages)
    assert len(list(averages.rows())) == 12
    assert averages["rms"] is averages["values_rms"]
    assert list(averages) == ["values_mean", "values_rms"]
    averages.to_csv(tmp_path / "a.csv")
    assert "snapshots" in str(averages)
