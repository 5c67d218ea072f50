"""Fields over design parameters: predictions, left-out errors, where to sample next, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError
from ensemblekit.rom.gaussian_process import GaussianProcess, _likelihood
from ensemblekit.rom.interpolation import Interpolation
from tests import oracles_rom as oracles


def study(n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Bumps (n², 200) on a grid of centers and widths, of very different size, and these (n², 2)."""
    center, width = np.meshgrid(np.linspace(300, 700, n), np.linspace(0.10, 0.2, n), indexing="ij")
    points = np.stack([center.ravel(), width.ravel()], axis=1)
    return oracles.bumps(points), points


@pytest.fixture(scope="module")
def model() -> rom.ParametricModel:
    fields, points = study()
    return rom.parametric(fields, {"center": points[:, 0], "width": points[:, 1]}, 6)


def test_it_predicts_between_samples_and_says_how_well(model: rom.ParametricModel) -> None:
    points = np.random.default_rng(0).uniform([320, 0.11], [680, 0.19], (30, 2))
    truth = oracles.bumps(points)
    fluctuation = np.sqrt(((study()[0] - study()[0].mean(axis=0)) ** 2).sum(axis=1).mean())
    found = model.predict(points)
    errors = np.linalg.norm(found.field - truth, axis=1) / fluctuation
    assert np.median(errors) < 2 * model.left_out.median
    assert np.median(errors) < 0.05
    assert ((found.low <= truth) & (truth <= found.high)).mean() > 0.9
    assert not found.extrapolates.any()
    assert str(model).count("\n") == 2
    assert "left out" in str(model)
    assert "linear" in str(model)


def test_automatic_choice_takes_the_least_left_out_error(model: rom.ParametricModel) -> None:
    assert set(model.table) == {"gp", "rbf", "linear"}
    totals = {name: rom.parametric(*study(), 6, method=name).left_out.total for name in ("rbf", "linear")}
    assert model.left_out.total < min(totals.values())
    assert model.method == "gp"
    assert model.table["gp"] == (model.left_out.median, model.left_out.worst)


@pytest.mark.parametrize("method", ["rbf", "linear"])
def test_left_out_errors_are_those_of_models_without_the_sample(method: Any) -> None:
    fields, points = study(4)
    whole = rom.parametric(fields, points, 4, method=method)
    fluctuation = np.sqrt(((fields - fields.mean(axis=0)) ** 2).sum(axis=1).mean())
    for k in (5, 6, 9):
        others = np.arange(len(fields)) != k
        # scales of the parameters are those of all samples: the model without one is given them in these units
        scaled = (points - points.mean(axis=0)) / points.std(axis=0)
        basis = rom.pod(ek.ArraySource.of(fields[others]), 4)
        fit = Interpolation.fitted(method, whole.kernel, scaled[others], basis.coefficients)
        field = basis.reconstruct(fit.predicted(scaled[k:k + 1])[0])[0]
        assert whole.errors[k] == pytest.approx(np.linalg.norm(field - fields[k]) / fluctuation, rel=1e-6)


def test_kernel_parameters_are_found_without_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters found on all samples flatter the error: a leak."""
    fields, points = study(3)
    sizes: list[int] = []
    fitted = GaussianProcess.fitted

    def counted(x: np.ndarray, y: np.ndarray, **options: Any) -> GaussianProcess:
        sizes.append(len(x))
        return fitted(x, y, **options)

    monkeypatch.setattr(GaussianProcess, "fitted", staticmethod(counted))
    rom.parametric(fields, points, 2, method="gp")
    assert sizes.count(9) == 2, "once for each coefficient"
    assert sizes.count(8) == 9 * 2, "and without each sample"


def test_the_process_is_that_of_scikit_learn() -> None:
    gp = pytest.importorskip("sklearn.gaussian_process")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 2))
    y = np.sin(2 * x[:, 0]) + x[:, 1] ** 2
    own = GaussianProcess.fitted(x, y)
    kernels = gp.kernels
    kernel = kernels.ConstantKernel(own.variance) * kernels.Matern(own.lengths, nu=2.5)
    peer = gp.GaussianProcessRegressor(kernel, alpha=own.variance * own.nugget, optimizer=None).fit(x, y - y.mean())
    at = rng.normal(size=(50, 2))
    mean, sd = own.predicted(at)
    peer_mean, peer_sd = peer.predict(at, return_std=True)
    np.testing.assert_allclose(mean, peer_mean + y.mean(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sd, peer_sd, rtol=1e-6, atol=1e-6 * np.sqrt(own.variance))
    assert own.log_likelihood == pytest.approx(peer.log_marginal_likelihood_value_, rel=1e-6)
    logs = np.log([0.8, 1.7, 1e-3])
    slopes = [(_likelihood(x, y, logs + h)[0] - _likelihood(x, y, logs - h)[0]) / 2e-6 for h in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(_likelihood(x, y, logs)[2], slopes, rtol=1e-5, atol=1e-5)


def test_probes_come_without_the_whole_field(model: rom.ParametricModel) -> None:
    whole, some = model.predict([500.0, 0.15]), model.predict([500.0, 0.15], field_only=[3, 77])
    np.testing.assert_allclose(some.field, whole.field[[3, 77]], rtol=1e-12)
    np.testing.assert_allclose(some.high, whole.high[[3, 77]])
    named = model.predict({"width": 0.15, "center": 500.0})
    np.testing.assert_array_equal(named.field, whole.field)
    with pytest.raises(InputError, match="numbers of cells of the 200"):
        model.predict([500.0, 0.15], field_only=[200])
    with pytest.raises(InputError, match="the parameters are center, width"):
        model.predict({"height": 1.0})
    with pytest.raises(InputError, match=r"2 finite numbers \(center, width\)"):
        model.predict([1.0])


def test_points_beyond_the_samples_are_flagged(model: rom.ParametricModel) -> None:
    assert not model.extrapolates([500.0, 0.15])
    assert model.extrapolates([701.0, 0.15])
    np.testing.assert_array_equal(model.extrapolates([[500.0, 0.1], [500.0, 0.09]]), [False, True])
    with pytest.warns(UserWarning, match="1 of 2 points lie outside"):
        assert "1 EXTRAPOLATED" in str(model.predict([[500.0, 0.15], [800.0, 0.15]]))
    fields, points = study(4)
    inner = points[:, 0] - 300 <= (points[:, 1] - 0.1) / 0.1 * 400 + 1     # a triangle: its hull is no box
    triangle = rom.parametric(fields[inner], points[inner], 3, method="rbf")
    assert triangle.extrapolates([650.0, 0.12])
    assert not triangle.extrapolates([350.0, 0.18])


def test_errors_over_the_parameters_and_the_next_sample(model: rom.ParametricModel) -> None:
    grid = model.error_map([np.linspace(300, 700, 9), np.linspace(0.1, 0.2, 7)])
    assert grid.points.shape == (63, 2)
    own = model.error_map(model.parameters)
    between = model.error_map(model.parameters[[6, 7, 11, 12]].mean(axis=0)[None])
    assert np.median(own.errors) < between.errors[0]
    best = model.next_sample({"center": (300.0, 700.0), "width": (0.1, 0.2)})
    assert 300 <= best[0] <= 700
    assert 0.1 <= best[1] <= 0.2
    np.testing.assert_array_equal(model.next_sample([[500.0, 0.15], [512.0, 0.13]]), [512.0, 0.13])
    with pytest.raises(InputError, match="no candidates"):
        model.next_sample(np.empty((0, 2)))
    with pytest.raises(InputError, match="samples already"):
        model.next_sample(model.parameters[:2])
    with pytest.raises(InputError, match="low below high"):
        model.next_sample([(700.0, 300.0), (0.1, 0.2)])


@pytest.mark.slow
def test_chosen_samples_need_fewer_than_random_ones() -> None:
    """The same error with at most 0.7 of the samples."""
    rng = np.random.default_rng(3)
    probe = rng.uniform([300, 0.02], [700, 0.2], (200, 2))
    truth = oracles.bumps(probe)
    begin = np.array([[300, 0.02], [700, 0.02], [300, 0.2], [700, 0.2], [500, 0.11], [450, 0.06], [620, 0.15]])

    def error(points: np.ndarray) -> tuple[rom.ParametricModel, float]:
        one = rom.parametric(oracles.bumps(points), points, min(12, len(points) - 2), method="gp")
        with np.errstate(all="ignore"):
            return one, float(np.sqrt(((one.predict(probe).field - truth) ** 2).sum(axis=1).mean()))

    chosen = begin
    while len(chosen) < 28:
        chosen = np.concatenate([chosen, error(chosen)[0].next_sample([(300, 700), (0.02, 0.2)])[None]])
    reached = error(chosen)[1]
    randoms = [error(np.concatenate([begin, np.random.default_rng(seed).uniform([300, 0.02], [700, 0.2], (33, 2))]))[1]
               for seed in range(5)]
    assert reached <= np.median(randoms), "28 chosen samples are as good as 40 random ones"


def test_a_model_comes_back_from_its_file(model: rom.ParametricModel, tmp_path: Path) -> None:
    back = rom.load(model.save(tmp_path / "p.model.h5"))
    assert isinstance(back, rom.ParametricModel)
    assert str(back) == str(model)
    one, two = model.predict([512.0, 0.13]), back.predict([512.0, 0.13])
    np.testing.assert_array_equal(one.field, two.field)
    np.testing.assert_array_equal(one.high, two.high)
    assert set(model.to_dict()) >= {"errors", "table", "parameters"}


def test_what_is_missing_in_some_samples_is_left_out_and_said() -> None:
    fields, points = study(3)
    fields[4, 10], fields[2, 11] = 1.797e308, np.nan
    fields[:, 12] = np.nan
    one = rom.parametric(fields, points, 3, method="rbf")
    assert "3 of 200 numbers of values are missing in some samples" in str(one)
    field = one.predict([500.0, 0.15]).field
    assert np.isnan(field[10:13]).all()
    assert np.isfinite(np.delete(field, [10, 11, 12])).all()
    mask = np.ones(200, bool)
    mask[:50] = False
    clean, _ = study(3)
    part = rom.parametric(clean, points, 3, method="rbf", mask=mask)
    assert np.isnan(part.predict([500.0, 0.15]).field[:50]).all()
    assert not part.notes
    with pytest.raises(InputError, match=r"the mask of values is of bool, shape \(200,\)"):
        rom.parametric(clean, points, 3, mask=np.ones(7, bool))


def test_several_fields_of_different_size() -> None:
    fields, points = study(3)
    source = {"T": fields, "p": 1e5 + 100 * fields[:, ::-1]}
    one = rom.parametric(source, points, 4, method="rbf")
    found = one.predict([500.0, 0.15])
    assert set(found.field) == {"T", "p"}
    truth = oracles.bumps(np.array([[500.0, 0.15]]))[0]
    assert np.abs(found.field["T"] - truth).max() < 0.2
    assert np.abs(found.field["p"] - 1e5 - 100 * truth[::-1]).max() < 20
    assert (found.low["p"] <= found.high["p"]).all()
    assert one.predict([500.0, 0.15], field_only={"p": [3]}).field.shape == (1,)


@pytest.mark.parametrize(("change", "match"), [
    ({"parameters": np.zeros((8, 2))}, r"a row a sample, of 9 samples; got shape \(8, 2\)"),
    ({"parameters": {"a": np.arange(8.0)}}, "9 numbers each"),
    ({"parameters": np.stack([np.arange(9.0), np.ones(9)], axis=1)}, "the parameter mu2 is 1 in all samples"),
    ({"parameters": np.where(np.arange(9) == 3, np.nan, np.arange(9.0))}, "sample 3 hold NaN"),
    ({"parameters": np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 3])}, "samples 3 and 8 have the same parameters .* is a parameter too"),
    ({"rank": 8}, "9 samples hold 7 modes when one is left out; got rank=8"),
    ({"method": "spline"}, 'method is "auto", \'gp\''), ({"kernel": "cubic"}, 'goes with method="gp" or "rbf"'),
    ({"method": "rbf", "kernel": "matern52"}, 'the kernels of method="rbf" are'),
    ({"complex": True}, "complex fields are not offered"), ({"replicas": True}, "not several runs"),
    ({"few": True}, "4 samples are too few for 2 parameters: at least 5"),
], ids=lambda x: "" if isinstance(x, str) else next(iter(x)))
def test_bad_input_is_named(change: dict[str, Any], match: str) -> None:
    fields, points = study(3)
    options: dict[str, Any] = {"rank": 3, **change}
    source: Any = fields
    if options.pop("complex", False):
        source = fields + 1j * fields[:, ::-1]
    if options.pop("replicas", False):
        source = ek.ReplicaSet.of([fields[:4], fields[4:]])
    if options.pop("few", False):
        source, points = fields[:4], points[:4]
    with pytest.raises(InputError, match=match):
        rom.parametric(source, options.pop("parameters", points), **options)


@pytest.mark.slow
@pytest.mark.skipif("ENSEMBLEKIT_DATA" not in os.environ, reason="ENSEMBLEKIT_DATA is not set")
def test_the_thermal_sweep() -> None:
    held = np.load(Path(os.environ["ENSEMBLEKIT_DATA"]) / "thermal_sweep" / "thermal.npz")
    fields, points = held["temperature"].astype("f8"), held["parameters"]
    plate = rom.parametric(fields, points, 8, method="rbf")
    own = plate.left_out.own_errors
    assert np.median(own) == pytest.approx(oracles.THERMAL_PLATE[0], rel=0.02)
    assert own.max() == pytest.approx(oracles.THERMAL_PLATE[1], rel=0.02)
    assert tuple(points[int(np.argmax(own))]) == (650, 390)
    best = rom.parametric(fields, points, 8)
    assert best.method == "gp"
    assert best.left_out.median <= oracles.THERMAL_AUTO[0]
    assert best.left_out.worst <= oracles.THERMAL_AUTO[1]
    ratio = best.left_out.residuals / (best.left_out.deviations * best.left_out.inflation)
    assert 0.92 <= (np.abs(ratio) < best._quantile(0.95)).mean() <= 0.98


def test_the_same_from_the_shell(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ensemblekit.cli import app

    fields, points = study(3)
    np.save(tmp_path / "sweep.npy", fields)
    np.savetxt(tmp_path / "design.csv", points, delimiter=",", header="center,width", comments="")
    words = ["rom", "parametric", str(tmp_path / "sweep.npy"), "--parameters", str(tmp_path / "design.csv"), "-k", "3",
             "--method", "rbf"]
    found = CliRunner().invoke(app, [*words, "--csv", "-", "-o", str(tmp_path / "m.model.h5")])
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[0] == "center,width,error,own_error"
    assert len(found.stdout.splitlines()) == 10
    pytest.importorskip("matplotlib")
    found = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "n.model.h5"), "--plot", str(tmp_path / "figures")])
    assert found.exit_code == 0, found.output
    assert "next sample: center" in found.stdout
    assert (tmp_path / "figures" / "error-map.png").is_file()
    wrong = CliRunner().invoke(app, ["rom", "forecast", str(tmp_path / "n.model.h5")])
    assert wrong.exit_code == 2
    assert "does not run in time" in wrong.stderr
    (tmp_path / "short.csv").write_text("center\n1,2\n")
    wrong = CliRunner().invoke(app, [*words[:3], "--parameters", str(tmp_path / "short.csv"), "-o", str(tmp_path / "o.h5")])
    assert wrong.exit_code == 2
    assert "the head has 1 names, the rows 2 numbers" in wrong.stderr


@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_operators_go_to_other_programs(suffix: str, tmp_path: Path) -> None:
    from scipy.io import loadmat
    from typer.testing import CliRunner

    from ensemblekit.cli import app

    h = np.random.default_rng(0).normal(size=(2, 2, 2))
    quadratic = rom.QuadraticModel.of(c=[1.0, 2.0], A=[[-1.0, 0.5], [0.0, -2.0]], H=h, B=[[1.0], [0.0]])
    quadratic.save(tmp_path / "q.model.h5")
    found = CliRunner().invoke(app, ["rom", "export", str(tmp_path / "q.model.h5"), "-o", str(tmp_path / f"q{suffix}")])
    assert found.exit_code == 0, found.output
    read = loadmat(tmp_path / "q.mat") if suffix == ".mat" else np.load(tmp_path / "q.npz")
    np.testing.assert_array_equal(read["A"], quadratic.A)
    np.testing.assert_allclose(read["H_full"], (h + h.transpose(0, 2, 1)) / 2)
    assert float(np.squeeze(read["period"])) == 0
    again = CliRunner().invoke(app, ["rom", "export", str(tmp_path / "q.model.h5"), "-o", str(tmp_path / f"q{suffix}")])
    assert again.exit_code == 2
    assert "is there already" in again.stderr
    fields, points = study(3)
    study_file = rom.export_operators(rom.parametric(fields, points, 3, method="rbf"), tmp_path / f"p{suffix}")
    held = loadmat(study_file) if suffix == ".mat" else np.load(study_file)
    assert held["modes"].shape == (3, 200)
    with pytest.raises(InputError, match=r"written as .mat or .npz"):
        rom.export_operators(quadratic, tmp_path / "q.csv")
