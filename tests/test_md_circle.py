"""Functions and analyses whose values are angles: averaged on the circle where that is said, doubted where it is not."""

from __future__ import annotations

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.errors import InputError

mda = pytest.importorskip("MDAnalysis")

N = 400
RNG = np.random.default_rng(4)
WALK = np.convolve(RNG.normal(0, 12, N + 4), np.ones(5), "valid")
TORSION = (180 + WALK + 180) % 360 - 180        # degrees, about the end of its turn


@pytest.fixture(scope="module")
def universe():
    """Four atoms whose torsion is TORSION."""
    u = mda.Universe.empty(4, trajectory=True)
    t = np.radians(TORSION)
    x = np.zeros((N, 4, 3))
    x[:, 0] = [1, 0, 0]
    x[:, 2] = [0, 0, 1]
    x[:, 3] = np.column_stack([np.cos(t), np.sin(t), np.ones(N)])
    return u.load_new(x.astype(np.float32), dt=2.0)


def torsion(atoms):
    return atoms.dihedral.value()


def both(atoms):
    return np.array([atoms.dihedral.value(), 10.0])


def mean_direction(degrees):
    return np.degrees(np.angle(np.exp(1j * np.radians(degrees)).mean()))


def apart(a, b):
    return abs((a - b + 180) % 360 - 180)


def test_angles_that_nobody_announced_are_doubted(universe):
    averages = md.average(universe, {"one": torsion, "two": both, "z": lambda atoms: atoms.positions[:, 2].sum()},
                          equilibration=None)
    for name in ("one", "two"):
        assert not averages[name].converged
        assert "period=360" in averages[name].verdict, name
    assert "comes round" not in averages["z"].verdict
    halves = md.average(ek.ReplicaSet((md.read(universe, stop=N // 2), md.read(universe, start=N // 2))), {"one": torsion})
    assert "comes round" in halves["one"].verdict


@pytest.mark.parametrize("unit", ["Angstrom", "kJ/mol"])
def test_a_unit_that_is_none_of_angles_is_believed(universe, unit):
    assert "comes round" not in md.average(universe, {"one": md.Function(torsion, unit)})["one"].verdict


def test_functions_with_a_period_are_averaged_on_the_circle(universe):
    averages = md.average(universe, {"one": md.Function(torsion, "degree", period=360.0),
                                     "two": md.Function(both, "degree", {"angle": (np.arange(2), "")}, period=360),
                                     "peer": md.Dihedral("index 0", "index 1", "index 2", "index 3", weights=None)},
                          equilibration=None)
    want = mean_direction(TORSION)
    assert apart(averages["one"].mean, want) < 1e-3
    assert averages["one"].converged
    assert averages["one"].unit == "degree"
    assert averages["one"].interval == pytest.approx(averages["peer"].interval, abs=0.05)
    assert averages["one.resultant"].mean == pytest.approx(averages["peer.resultant"].mean, abs=1e-5)
    assert apart(averages["two"].mean[0], want) < 1e-3
    assert averages["two"].mean[1] == pytest.approx(10)
    assert list(averages["two"].coords) == ["angle"]
    runs = md.average(ek.ReplicaSet((md.read(universe, stop=N // 2), md.read(universe, start=N // 2))),
                      {"one": md.Function(torsion, "degree", period=360.0)})
    assert apart(runs["one"].mean, want) < 3


def test_analyses_of_angles(universe):
    from MDAnalysis.analysis.dihedrals import Dihedral

    def make(u):
        return Dihedral([u.atoms])

    doubted = md.average(universe, {"a": md.from_analysis(make, value=lambda a: a.results.angles)})["a"]
    assert "comes round" in doubted.verdict
    mended = md.average(universe, {"a": md.from_analysis(make, value=lambda a: a.results.angles[:, 0], period=360)},
                        equilibration=None)["a"]
    assert apart(mended.mean, mean_direction(TORSION)) < 1e-3
    with pytest.raises(InputError, match="per=\"frame\""):
        md.from_analysis(make, value=lambda a: 1.0, per="block", period=360)


def test_what_is_no_function_or_no_period():
    with pytest.raises(InputError, match="takes a function"):
        md.Function("protein")
    for period in (0, -1, float("nan"), "360", True):
        with pytest.raises(InputError, match="360 for degrees"):
            md.Function(torsion, period=period)
