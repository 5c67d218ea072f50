"""Absorption spectra of ensembles of nuclei: closed forms, weights, replicas, coverage, tables, and what is refused."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemblekit import md
from ensemblekit.errors import EnsemblekitError, InputError, MissingExtraError
from tests.field_oracles import LINE_AREA, LINE_PEAK, broadened


def series(n: int, phi: float, seed: int) -> np.ndarray:
    """AR(1) of unit variance."""
    from scipy.signal import lfilter

    noise = np.random.default_rng(seed).normal(size=n) * np.sqrt(1 - phi**2)
    noise[0] /= np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise)


def snapshots(n: int = 400, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return np.array([4.0, 5.0]) + 0.2 * rng.normal(size=(n, 2)), rng.uniform(0, 0.3, (n, 2))


def test_one_line_has_the_height_and_the_area_of_the_closed_form() -> None:
    energies, strengths = np.full(40, 4.0), np.full(40, 0.1)
    at = md.absorption(energies, strengths, grid=[3.9, 4.0, 4.1])
    assert at.mean[1] == pytest.approx(LINE_PEAK, rel=1e-8)
    assert at.mean[0] == pytest.approx(LINE_PEAK * np.exp(-0.5) * 4 / 3.9, rel=1e-8)
    plain = md.absorption(energies, strengths, convention="plain")
    assert plain.strength.mean == pytest.approx(0.1, abs=1e-9)
    assert md.absorption(energies, strengths).strength.mean / plain.strength.mean == pytest.approx(LINE_AREA, abs=1e-9)
    assert md.absorption(energies, strengths, convention="psi4").mean_energy.mean > 4.0
    other = md.absorption(energies, strengths, grid=[3.9, 4.0, 4.1], unit="Angstrom2", refractive_index=1.33)
    assert other.mean[1] == pytest.approx(0.1 * 1.0976098671 / (0.1 * np.sqrt(2 * np.pi)) / 1.33)
    round_one = md.absorption(energies, strengths, shape="lorentzian", grid=[3.9, 4.0, 4.1], convention="plain")
    assert round_one.mean[1] / round_one.mean[0] == pytest.approx(2.0)      # half its height a width away


def test_weights_are_repeated_snapshots() -> None:
    energies, strengths = snapshots()
    times = np.random.default_rng(2).integers(1, 4, len(energies))
    weighted = md.absorption(energies, strengths, weights=times, equilibration=None)
    repeated = md.absorption(np.repeat(energies, times, axis=0), np.repeat(strengths, times, axis=0), equilibration=None,
                             grid=weighted.coords["energy"][0])
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-12)
    np.testing.assert_allclose(weighted.derived["states"].mean, repeated.derived["states"].mean, rtol=1e-12)
    assert weighted.strength.mean == pytest.approx(repeated.strength.mean, rel=1e-12)


def test_runs_change_nothing_but_the_bar() -> None:
    energies, strengths = snapshots(600)
    one = md.absorption(energies, strengths, equilibration=None)
    parts = [(energies[:250], strengths[:250]), (energies[250:], strengths[250:])]
    two = md.absorption([e for e, _ in parts], [f for _, f in parts], equilibration=None)
    np.testing.assert_allclose(two.mean, one.mean, rtol=1e-12)
    assert len(two.runs) == 2
    assert two.band is not None
    assert (two.band[0] <= two.low).all()
    assert (two.high <= two.band[1]).all()
    assert two.strength.mean == pytest.approx(one.strength.mean)


def test_states_add_up_and_the_moments_are_those_of_the_lines() -> None:
    energies, strengths = snapshots()
    spectrum = md.absorption(energies, strengths, convention="plain", equilibration=None)
    np.testing.assert_allclose(spectrum.derived["states"].mean.sum(axis=0), spectrum.mean, rtol=1e-12)
    assert list(spectrum.derived["states"].coords["state"][0]) == [1, 2]
    assert spectrum.strength.mean == pytest.approx(strengths.sum(axis=1).mean(), rel=1e-9)
    assert spectrum.mean_energy.mean == pytest.approx((energies * strengths).sum() / strengths.sum(), rel=1e-9)
    grid = spectrum.coords["energy"][0]
    assert abs(spectrum.maximum.mean - grid[np.argmax(spectrum.mean)]) < grid[1] - grid[0]
    assert spectrum.maximum.unit == "eV"
    assert spectrum.maximum.stderr > 0


def test_interval_and_band_are_above_zero_and_the_band_holds_the_interval() -> None:
    energies, strengths = snapshots()
    spectrum = md.absorption(energies, strengths)
    assert (spectrum.low > 0).all()
    assert spectrum.band is not None
    assert (spectrum.band[0] <= spectrum.low).all()
    assert (spectrum.high <= spectrum.band[1]).all()
    np.testing.assert_allclose(np.log(spectrum.high / spectrum.mean), -np.log(spectrum.low / spectrum.mean), rtol=1e-9)


def cover(repeats: int, n: int, phi: float) -> tuple[float, float]:
    """How often the closed form lies in the interval (of the points above a tenth of the maximum), and in the whole band."""
    grid = np.linspace(3.2, 4.8, 25)
    truth = broadened(grid, 4.0, 0.3, 0.1, 0.1)
    grid, truth = grid[truth > 0.1 * truth.max()], truth[truth > 0.1 * truth.max()]
    inside, whole = [], 0
    for k in range(repeats):
        answer = md.absorption(4.0 + 0.3 * series(n, phi, k), np.full(n, 0.1), grid=grid, convention="plain", unit="Angstrom2",
                               equilibration=None)
        inside.append(float(((answer.low <= truth) & (truth <= answer.high)).mean()))
        assert answer.band is not None
        whole += bool(((answer.band[0] <= truth) & (truth <= answer.band[1])).all())
    return float(np.mean(inside)), whole / repeats


def test_closed_forms_lie_in_intervals_and_bands() -> None:
    inside, whole = cover(40, 1000, 0.5)
    assert 0.90 < inside < 0.985
    assert whole > 0.85


@pytest.mark.slow
def test_coverage_of_400_repeats() -> None:
    inside, whole = cover(400, 4000, 0.95)
    assert 0.93 <= inside <= 0.97
    assert 0.91 <= whole <= 0.98


def test_widths_that_are_found() -> None:
    rng = np.random.default_rng(3)
    energies, strengths = 4 + 0.25 * rng.normal(size=800), np.full(800, 0.1)
    spectrum = md.absorption(energies, strengths, width="silverman")
    expected = 0.9 * 0.25 * 800**-0.2
    assert "by Silverman's rule" in spectrum.verdict
    assert spectrum.converged
    said = float(spectrum.verdict.split("width ")[1].split(" eV")[0])
    assert said == pytest.approx(expected, rel=0.08)
    two_states = md.absorption(np.column_stack([energies, energies + 3]), np.full((800, 2), 0.1), width="silverman")
    assert float(two_states.verdict.split("width ")[1].split(" eV")[0]) == pytest.approx(said, rel=1e-3)   # not that between
    crossed = md.absorption(energies, strengths, width="cv")
    assert 0.3 * expected < float(crossed.verdict.split("width ")[1].split(" eV")[0]) < 2.5 * expected


def test_what_cannot_be() -> None:
    energies, strengths = snapshots(20)
    negative, broken = strengths.copy(), energies.copy()
    negative[3, 1], broken[4, 0] = -0.1, np.nan
    for arguments, options, message in [
        ((energies, strengths[:5]), {}, r"one shape.*\(20, 2\) and \(5, 2\)"),
        ((energies, negative), {}, "snapshot 3, state 2: -0.1"),
        ((broken, strengths), {}, "snapshot 4, state 1: nan"), ((0 * energies, strengths), {}, "finite and above 0"),
        ((energies,), {}, "takes energies and strengths"), ((energies, strengths), {"width": 0}, "width is above 0"),
        ((energies, strengths), {"width": np.nan}, "width is above 0"), ((energies, strengths), {"grid": [3, np.nan]}, "grid"),
        ((energies, strengths), {"refractive_index": np.nan}, "above 0"),
        ((energies, np.where(strengths > 0.15, np.nan, strengths)), {}, "nan"),
        ((energies, strengths), {"weights": np.full(20, np.nan)}, "weight"),
        ((energies, strengths), {"width": "scott"}, '"silverman" or "cv"'),
        ((energies, strengths), {"shape": "voigt"}, "shape="),
        ((energies, strengths), {"convention": "nx"}, "convention="), ((energies, strengths), {"unit": "barn"}, "unit="),
        ((energies, strengths), {"grid": [4, 3, 5]}, "rising"), ((energies, strengths), {"refractive_index": 0}, "above 0"),
        ((energies, strengths), {"weights": np.ones(7)}, "weights"),
        ((energies, strengths), {"weights": -np.ones(20)}, "weight"),
        (([energies, energies[:, :1]], [strengths, strengths[:, :1]]), {}, "same number of states"),
        (([energies, energies], [strengths, strengths]), {"weights": [np.ones(20)]}, "list of 2; got list of 1"),
        ((np.full(20, 4.0), np.full(20, 0.1)), {"width": "silverman"}, "do not scatter"),
    ]:
        with pytest.raises(InputError, match=message):
            md.absorption(*arguments, **options)
    with pytest.raises(EnsemblekitError, match="zero"):
        md.absorption(energies, strengths, weights=np.zeros(20))
    one = md.absorption(energies[:1], strengths[:1])
    assert not one.converged
    assert np.isnan(one.stderr).all()


def test_tables_in_three_units(tmp_path: Path) -> None:
    rows = np.array([[4.0, 0.1, 5.0, 0.2], [4.1, 0.15, 5.2, 0.0]])
    table = tmp_path / "states.txt"
    np.savetxt(table, rows, header="E1 f1 E2 f2")
    excitations = md.excitations(table)
    np.testing.assert_allclose(excitations.energies, rows[:, ::2])
    np.testing.assert_allclose(excitations.strengths, rows[:, 1::2])
    assert str(excitations) == "2 states of 2 snapshots, 4 to 5.2 eV"
    same = md.absorption(excitations, width=0.2)
    np.testing.assert_array_equal(same.mean, md.absorption(rows[:, ::2], rows[:, 1::2], width=0.2).mean)
    in_nm = rows.copy()
    in_nm[:, ::2] = 1239.841984 / rows[:, ::2]
    np.savetxt(tmp_path / "nm.csv", in_nm, delimiter=",")
    np.testing.assert_allclose(md.excitations(tmp_path / "nm.csv", unit="nm").energies, rows[:, ::2])
    in_waves = rows.copy()
    in_waves[:, ::2] *= 8065.543937
    np.savetxt(tmp_path / "waves.dat", in_waves)
    np.testing.assert_allclose(md.excitations(str(tmp_path / "w*.dat"), unit="cm-1").energies, rows[:, ::2])


def test_tables_that_are_none(tmp_path: Path) -> None:
    table = tmp_path / "states.txt"
    for text, message in (("4 0.1 5\n", "many pairs E f"), ("", "many pairs E f"), ("4 0.1\n5 0.1 6 0.1\n", "many pairs E f"),
                          ("a b\n", "rows of"), ("4 -0.1\n", "snapshot 0, state 1"), ("0 0.1\n", "energies are above 0")):
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            md.excitations(table)
    with pytest.raises(InputError, match="no file matches"):
        md.excitations(str(tmp_path / "*.nothing"))
    with pytest.raises(InputError, match="unit of excitation"):
        md.excitations(table, unit="hartree")


def test_outputs_are_read_by_cclib(tmp_path: Path, monkeypatch: Any) -> None:
    files = [tmp_path / f"{k}.out" for k in range(3)]
    for file in files:
        file.write_text("output")
    monkeypatch.setitem(sys.modules, "cclib", None)
    monkeypatch.setitem(sys.modules, "cclib.io", None)
    with pytest.raises(MissingExtraError, match=r"spectra"):
        md.excitations(files)

    def ccread(name: str, **_: object) -> object:        # as cclib's parsed data: etenergies in cm-1, etoscs
        if name.endswith("newer.out"):
            raise AssertionError        # as some parsers do
        if name.endswith("1.out"):
            return None
        return types.SimpleNamespace(etenergies=[4 * 8065.543937, 5 * 8065.543937], etoscs=[0.1, 0.2])

    module: Any = types.ModuleType("cclib.io")
    module.ccread = ccread
    monkeypatch.setitem(sys.modules, "cclib", types.ModuleType("cclib"))
    monkeypatch.setitem(sys.modules, "cclib.io", module)
    with pytest.raises(InputError, match=r"1 of 3 outputs hold no excitations.*1\.out"):
        md.excitations(files)
    broken = tmp_path / "newer.out"
    broken.write_text("output")
    with pytest.raises(InputError, match=r"newer\.out.*cclib could not read .*AssertionError: no reason given"):
        md.excitations(broken)
    excitations = md.excitations(files, missing="drop")
    np.testing.assert_allclose(excitations.energies, [[4, 5], [4, 5]])
    assert excitations.dropped == (str(files[1]),)
    assert "1 outputs left out" in str(excitations)
