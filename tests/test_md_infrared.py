"""Infrared spectra of charges on springs, whose spectrum is known; fluxes, groups, coverage, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.averaging.band import student_of
from ensemblekit.averaging.estimate import quantile
from ensemblekit.errors import EnsemblekitError, InputError
from ensemblekit.md.spectra.infrared import _estimate, _in_groups, _segments, critical_value
from tests.field_oracles import PS_PER_CM, SPRING_AREA, SPRING_MOLAR, spring_path, spring_spectrum

mda = pytest.importorskip("MDAnalysis")
STEP, LINE, GAMMA, Q, M, VOLUME = 0.002, 1000.0, 10.0, 0.7, 10.0, 1000.0
OPTIONS: dict[str, Any] = {"temperature": 300, "resolution": 16.0}


def universe(x: np.ndarray, v: np.ndarray | None, charges: Any, box: bool = True, bonds: Any = (), step: float = STEP) -> Any:
    """Of positions and velocities (n, atoms, 3) in a cube of 10 angstrom."""
    n = x.shape[1]
    u = mda.Universe.empty(n, n_residues=n, atom_resindex=np.arange(n), trajectory=True, velocities=v is not None)
    u.add_TopologyAttr("charges", charges)
    u.add_TopologyAttr("masses", np.full(n, M))
    u.add_TopologyAttr("bonds", list(bonds))
    extra: dict[str, Any] = {} if v is None else {"velocities": v.astype(np.float32)}
    if box:
        extra["dimensions"] = [10, 10, 10, 90, 90, 90]
    u.load_new(x.astype(np.float32), dt=step, **extra)
    return u


@pytest.fixture(scope="module")
def path() -> tuple[np.ndarray, np.ndarray]:
    return spring_path(16_000, STEP, LINE, GAMMA, M, 300, 3)


@pytest.fixture(scope="module")
def spring(path: Any) -> Any:
    x, v = path
    return universe(x[:, None] + 5, v[:, None], [Q])


@pytest.fixture(scope="module")
def spectra(spring: Any) -> Any:
    return md.average(spring, {"velocity": md.Infrared(**OPTIONS), "dipole": md.Infrared(**OPTIONS, flux="dipole"),
                               "molar": md.Infrared(**OPTIONS, normalise="molar"),
                               "standard": md.Infrared(**OPTIONS, quantum="standard"),
                               "schofield": md.Infrared(**OPTIONS, quantum="schofield")})


def test_the_spectrum_of_a_charge_on_a_spring(spectra: Any) -> None:
    spectrum = spectra["velocity"]
    nu, unit = spectrum.coords["wavenumber"]
    assert (unit, spectrum.unit) == ("cm-1", "cm-1")
    assert np.diff(nu) == pytest.approx(16.0, rel=0.01)
    truth = spring_spectrum(nu, LINE, GAMMA, Q, M, VOLUME)
    near = (nu > 850) & (nu < 1150)
    assert spectrum.mean[near].sum() == pytest.approx(truth[near].sum(), rel=0.08)     # 30 segments of three directions
    assert abs(nu[np.argmax(spectrum.mean)] - LINE) < 33
    assert spectrum.band is not None
    assert ((spectrum.band[0] <= truth) & (truth <= spectrum.band[1]))[near].all()
    assert spectrum.integral.mean == pytest.approx(SPRING_AREA * Q**2 / (M * VOLUME), rel=0.08)
    assert spectrum.integral.unit == "cm-2"
    assert "from velocities" in " ".join(spectra.notes)


def test_velocities_and_dipoles_agree(spectra: Any) -> None:
    one, two = spectra["velocity"], spectra["dipole"]
    nu = one.coords["wavenumber"][0]
    near = (nu > 900) & (nu < 1100)
    np.testing.assert_allclose(two.mean[near], one.mean[near], rtol=0.02)
    assert "from differences of dipoles" in " ".join(spectra.notes)


def test_per_molecule(spectra: Any) -> None:
    one, molar = spectra["velocity"], spectra["molar"]
    assert (molar.unit, molar.integral.unit) == ("M-1 cm-1", "km mol-1")
    np.testing.assert_allclose(molar.mean, one.mean * VOLUME / (np.log(10) * 1660.539067), rtol=1e-9)
    assert molar.integral.mean / one.integral.mean == pytest.approx(3 * SPRING_MOLAR / (SPRING_AREA / VOLUME), rel=1e-8)


def test_quantum_corrections_are_factors(spectra: Any) -> None:
    x = 1.438776877 * spectra["velocity"].coords["wavenumber"][0][1:] / 300
    for name, factor in (("standard", 2 / x * np.tanh(x / 2)), ("schofield", 2 / x * np.sinh(x / 2))):
        np.testing.assert_allclose(spectra[name].mean[1:] / spectra["velocity"].mean[1:], factor, rtol=1e-9)
        assert spectra[name].mean[0] == pytest.approx(spectra["velocity"].mean[0])


def test_the_constant_of_the_peak_is_that_of_the_closed_form() -> None:
    assert spring_spectrum(np.array([LINE]), LINE, GAMMA, Q, M, VOLUME)[0] == pytest.approx(285.4, abs=0.05)


def test_groups_and_their_cross_terms_add_up() -> None:
    rng = np.random.default_rng(1)
    x, v = (rng.normal(size=(4000, 4, 3)) for _ in range(2))
    u = universe(x, v, [0.5, -0.5, 1.0, -1.0], bonds=[(0, 1), (2, 3)])
    options: dict[str, Any] = {"temperature": 300, "resolution": 100.0}
    plain = md.average(u, {"ir": md.Infrared(**options)})["ir"]
    for flux in ("velocity", "dipole"):
        by = md.average(u, {"ir": md.Infrared(**options, flux=flux, by={"first": "index 0 2", "second": "index 1"})})["ir"]
        shares = by.groups
        assert shares.mean.shape == (3, 3, len(by.mean))
        np.testing.assert_allclose(shares.mean.sum(axis=(0, 1)), by.mean, rtol=1e-10)
        np.testing.assert_array_equal(shares.mean[0, 1], shares.mean[1, 0])
        assert list(shares.coords) == ["group", "with", "wavenumber"]
        assert list(shares.coords["group"][0]) == ["first", "second", "other"]
        if flux == "velocity":
            np.testing.assert_allclose(by.mean, plain.mean, rtol=1e-10)


def test_an_ion_that_walks_through_the_box_makes_no_jumps(path: Any) -> None:
    x, _ = path
    drift = np.linspace(0, 30, 4000)[:, None] * np.array([1.0, 0.5, -0.3])
    walk = (x[:4000] + drift)[:, None] % 10
    still = universe((x[:4000] + 5)[:, None], None, [Q])
    moving = universe(walk, None, [Q])
    options: dict[str, Any] = {"temperature": 300, "resolution": 50.0}
    one, two = (md.average(u, {"ir": md.Infrared(**options)})["ir"] for u in (still, moving))
    nu = one.coords["wavenumber"][0]
    np.testing.assert_allclose(two.mean[nu > 300], one.mean[nu > 300], rtol=0.01)


def test_replicas_have_one_spectrum_with_a_band(path: Any) -> None:
    x, v = path
    halves = [md.read(universe(x[a:a + 8000, None] + 5, v[a:a + 8000, None], [Q])) for a in (0, 8000)]
    estimate = md.average(ek.ReplicaSet(tuple(halves)), {"ir": md.Infrared(temperature=300, resolution=32.0)})["ir"]
    assert len(estimate.runs) == 2
    assert estimate.band is not None
    assert (estimate.band[0] <= estimate.low).all()
    assert (estimate.low > 0).all()


def seen(length: int) -> np.ndarray:
    """What the window of segments of so many frames makes of the line, at 16 points a wave: Hann's kernel, the closed form."""
    fine = np.fft.fftfreq(length * 16, STEP)
    window = np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2
    kernel = np.abs(np.fft.fft(window, length * 16)) ** 2
    full = spring_spectrum(np.abs(fine) * PS_PER_CM, LINE, GAMMA, Q, M, VOLUME)
    return np.real(np.fft.ifft(np.fft.fft(full) * np.fft.fft(kernel / kernel.sum())))


def test_the_resolution_lowers_the_top_as_the_docs_say() -> None:
    """The line is 53 cm-1 wide; and the closed form has the area that the integral is held to."""
    assert 1 - seen(round(PS_PER_CM / 8 / STEP)).max() / 285.4 == pytest.approx(0.03, abs=0.005)
    nu = np.linspace(0, 2e6, 2_000_001)
    area = np.trapezoid(spring_spectrum(nu, LINE, GAMMA, Q, M, VOLUME), nu)
    assert area == pytest.approx(23796.75, rel=5e-5) == pytest.approx(SPRING_AREA * Q**2 / (M * VOLUME))


def cover(repeats: int, n: int, seed: int) -> tuple[float, float, int]:
    """How often the expected spectrum lies in interval and band where it exceeds a tenth of its maximum."""
    length = round(PS_PER_CM / 20 / STEP)
    nu = np.arange(length // 2 + 1) * PS_PER_CM / (length * STEP)
    _, v = spring_path(n, STEP, LINE, GAMMA, M, 300, seed, 3 * repeats)
    powers = [_segments(Q * v[:, 3 * k:3 * k + 3][:, None], length, STEP)[:, 0, 0] for k in range(repeats)]
    truth = spring_spectrum(nu, LINE, GAMMA, Q, M, VOLUME) / (38913.07639 / VOLUME)
    smooth = seen(length)[::16][:len(nu)] / (38913.07639 / VOLUME)
    near = truth > 0.1 * truth.max()
    inside, whole, count = [], 0, 0
    for power in powers:
        parts, each = _in_groups(power[:, near])
        one = _estimate(parts, each, len(power), {"n": n, "confidence": 0.95}, STEP)
        critical, count = critical_value(parts, np.ones(len(parts)), 1, 0.95)
        off = np.abs(np.log(smooth[near] / one.mean)) / (one.stderr / one.mean)
        inside.append(float((off <= quantile(0.95, one.dof)).mean()))
        whole += bool((off <= student_of(critical, one.dof)).all())
    return float(np.mean(inside)), whole / repeats, count


def test_intervals_and_bands_hold_the_closed_form() -> None:
    inside, whole, count = cover(60, 12_000, 5)
    assert count >= 24
    assert 0.91 < inside < 0.98
    assert whole > 0.86


@pytest.mark.slow
def test_coverage_of_400_repeats() -> None:
    coverages = [cover(50, 24_000, seed) for seed in range(8)]
    assert all(count >= 24 for *_, count in coverages)
    assert 0.93 <= np.mean([inside for inside, *_ in coverages]) <= 0.97
    assert 0.91 <= np.mean([whole for _, whole, _ in coverages]) <= 0.98


def test_what_cannot_be(spring: Any, path: Any) -> None:
    x, v = path
    short = universe(x[:500, None] + 5, v[:500, None], [Q])
    coarse = universe(x[:4000, None] + 5, v[:4000, None], [Q], step=0.01)
    unboxed = universe(x[:500, None], None, [Q], box=False)
    neutral = universe(x[:500, None], v[:500, None], [0.0])
    for source, options, message in [
        (short, {}, r"segments at a resolution of 16 cm-1; an error needs 8, 9\.381 ps"),
        (coarse, {}, r"frames are 10 fs apart, which shows motion up to 1667\.8 cm-1.*range=\(0, 1667\)"),
        (unboxed, {}, 'normalise="molar" is per molecule'), (unboxed, {"flux": "velocity"}, "these frames have none"),
        (neutral, {}, "nothing absorbs"), (spring, {"temperature": 0}, "temperature=.*above 0"),
        (spring, {"resolution": -1}, "resolution=.*above 0"), (spring, {"range": (5, 5)}, "rises from 0"),
        (spring, {"range": 4000}, "two wavenumbers"), (spring, {"flux": "force"}, "flux="),
        (spring, {"quantum": "kubo"}, "quantum="),
        (spring, {"normalise": "area"}, "normalise="), (spring, {"by": "residue"}, "selection"),
        (spring, {"range": (1000, 1010)}, "fewer than two points"),
    ]:
        with pytest.raises(InputError, match=message):
            md.average(source, {"ir": md.Infrared(**(OPTIONS | options))})
    hole = v[:4000, None].copy()
    hole[1234] = np.nan
    with pytest.raises(EnsemblekitError, match=r"1234.*not finite|not finite.*1234"):
        md.average(universe(x[:4000, None] + 5, hole, [Q]), {"ir": md.Infrared(temperature=300, resolution=50.0)})
    with pytest.raises(InputError, match=r"temperature=.*above 0"):
        md.average(spring, {"ir": md.Infrared(temperature=float("nan"))})
    with pytest.raises(InputError, match="weight says how likely a frame"):
        md.average(short, {"ir": md.Infrared(**OPTIONS)}, frame_weights=np.arange(500.0))
    with pytest.raises(InputError, match="evenly apart"):
        md.average(short, {"ir": md.Infrared(temperature=300, resolution=200.0)}, frames=[*range(300), *range(310, 500)])
