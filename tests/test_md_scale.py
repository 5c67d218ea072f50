"""Coordinates and weights of frames of any size: the same answer times the scale, or a refusal that names them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("MDAnalysis")
datafiles = pytest.importorskip("MDAnalysisTests.datafiles")

from ensemblekit import md  # noqa: E402
from ensemblekit.errors import EnsemblekitError  # noqa: E402
from ensemblekit.md.frames import as_frames  # noqa: E402
from ensemblekit.md.topology import warnings_held  # noqa: E402
from ensemblekit.md.weighted import WeightedSource  # noqa: E402
from ensemblekit.scaling import ldexp  # noqa: E402
from ensemblekit.source import Block  # noqa: E402
from ensemblekit.source_views import PieceView  # noqa: E402


@dataclass(frozen=True, slots=True)
class Multiplied:
    factor: float
    kind: str

    def __call__(self, block):
        position = np.asarray(block.fields["position"], self.kind) * np.dtype(self.kind).type(self.factor)
        return Block({**block.fields, "position": position}, block.start, block.tile, block.weights, block.times)


@dataclass(frozen=True, eq=False)
class Scaled(WeightedSource):
    """Frames whose coordinates are multiplied."""

    factor: float = 1.0
    kind: str = "f8"

    def window(self, start=0, stop=None, step=1):
        return replace(self, source=self.source.window(start, stop, step), given=self.given[start:stop:step])

    def pieces(self, names, cut, tiled, limit):
        for piece in self.source.pieces(names, "time", False, limit):
            yield PieceView(piece, Multiplied(self.factor, self.kind))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    path = tmp_path_factory.mktemp("scale") / "adk.h5md"
    with warnings_held():
        md.ingest(datafiles.PSF, datafiles.DCD, path, select="name CA", stop=30, quiet=True)
        return as_frames(path)


@pytest.fixture(autouse=True)
def quiet():
    with warnings_held():
        yield


OBSERVABLES: dict[str, Any] = {
    "gyration": md.RadiusOfGyration("name CA"), "tensor": md.GyrationTensor("name CA"), "rmsd": md.RMSD("name CA"),
    "rmsf": md.RMSF("name CA"), "pca": md.PCA("name CA", n_components=2), "msd": md.MSD("name CA"),
    "distance": md.Distance("resid 1", "resid 9"), "angle": md.Dihedral("resid 1", "resid 2", "resid 3", "resid 4"),
    "contacts": md.Contacts("resid 1:9", "resid 20:30"), "function": lambda atoms: atoms.positions[0, 0],
    "rdf": md.RDF("name CA", range=(0.0, 9.0))}


@pytest.mark.parametrize("name", OBSERVABLES)
@pytest.mark.parametrize(("factor", "kind"), [(1e150, "f8"), (1e-150, "f8"), (1e30, "f4"), (1e-30, "f4")])
def test_coordinates_that_are_no_lengths_are_refused_by_name(frames: Any, name: str, factor: float, kind: str) -> None:
    source = Scaled(frames, np.ones(30), factor, kind)
    with pytest.raises(EnsemblekitError, match=r"coordinates from frame 0 on are as large as \de[+-]"):
        md.average(source, {"it": OBSERVABLES[name]}, quiet=True)


def test_ordinary_units_are_no_matter(frames: Any) -> None:
    """Metres of a trajectory, and kilometres, are what they were."""
    want = md.average(frames, {"it": OBSERVABLES["gyration"]}, quiet=True)["it"]
    for power in (-33, 40):
        got = md.average(Scaled(frames, np.ones(30), 2.0**power), {"it": OBSERVABLES["gyration"]}, quiet=True)["it"]
        assert (got.mean, got.stderr) == pytest.approx((want.mean * 2.0**power, want.stderr * 2.0**power), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-290, 1e290])
def test_statistical_weights_of_frames(frames: Any, scale: float) -> None:
    weights = np.random.default_rng(3).random(30) + 0.1
    wanted = {name: OBSERVABLES[name] for name in ("gyration", "rmsf", "pca", "angle", "tensor")}
    plain = md.average(frames, wanted, frame_weights=weights, quiet=True)
    got = md.average(frames, wanted, frame_weights=weights * scale, quiet=True)
    for name in wanted:
        np.testing.assert_allclose(got[name].mean, plain[name].mean, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(got[name].stderr, plain[name].stderr, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(got[name].n_eff, plain[name].n_eff, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("power", [-960, -400, 400, 960])
def test_superposition_of_arrays(power: int) -> None:
    rng = np.random.default_rng(1)
    frames = rng.standard_normal((4, 9, 3)) * 5 + 20
    weights = rng.random(9) + 0.1
    much = ldexp(frames, power)
    for w in (None, weights, ldexp(weights, power)):
        plain = None if w is None else weights
        np.testing.assert_array_equal(md.rmsd(much, much[0], w), ldexp(md.rmsd(frames, frames[0], plain), power))
        np.testing.assert_array_equal(md.superposed(much, much[0], w), ldexp(md.superposed(frames, frames[0], plain), power))
    np.testing.assert_array_equal(md.rmsd_matrix(much), ldexp(md.rmsd_matrix(frames), power))
    np.testing.assert_array_equal(md.rmsd_matrix(much, much[:2]), ldexp(md.rmsd_matrix(frames, frames[:2]), power))
    walk = rng.standard_normal(50).cumsum()
    assert md.cosine_content(ldexp(walk, power)) == md.cosine_content(walk)
