"""The report and its figures: the same from the model and from what was saved, and told apart from chance."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError, StoreError  # noqa: E402
from ensemblekit.neural.parameters import to_vectors  # noqa: E402
from ensemblekit.neural.prediction import RegressionPrediction  # noqa: E402
from ensemblekit.plot import neural as plot  # noqa: E402

nn = torch.nn


def net(seed: int = 0, norm: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU(), nn.Linear(8, 3))


def data(n: int = 120, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=g)
    return x, (x[:, :3] + 0.5 * torch.randn(n, 3, generator=g)).argmax(1)


def trained(path, norm: bool = True):
    """A short run with four snapshots."""
    model = net(0, norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manifest = neural.Manifest.of(model)
    x, y = data(200, 2)
    with ek.create(path, manifest.fields, provenance={"manifest": manifest.to_dict()}) as store:
        for step in range(80):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if step % 20 == 19:
                store.append(to_vectors(model, manifest))
    return model, [(x, y)]


def test_single_averages_and_ensemble_side_by_side(tmp_path):
    model, train = trained(tmp_path / "w.h5")
    other = net(7)
    report = neural.report(tmp_path / "w.h5", model, [data()], train_loader=train, others={"one run": other}, save=True)
    assert list(report.scores) == ["one run", "last snapshot", "SWA", "EMA", "snapshot ensemble", "snapshot ensemble + T"]
    assert set(report.differences) == set(report.scores) - {"one run"}
    ens = neural.Ensemble.from_store(tmp_path / "w.h5", model)
    assert report.scores["snapshot ensemble"]["nll"] == neural.scores(ens.predict([data()]))["nll"]
    swa = neural.predict(ens.averaged_model(train, barrier="ignore"), data())
    assert report.scores["SWA"]["nll"].value == pytest.approx(neural.scores(swa)["nll"].value, rel=1e-6)
    single = neural.predict(other, data())
    assert report.differences["SWA"]["brier"].value == pytest.approx(neural.compare(swa, single)["brier"].value, rel=1e-6)
    assert len(report.by_members) == 4
    assert report.by_members[0]["nll"].value == pytest.approx(report.scores["last snapshot"]["nll"].value, rel=1e-9)
    assert report.by_members[-1]["nll"].value == pytest.approx(report.scores["snapshot ensemble"]["nll"].value, rel=1e-9)
    vectors = ek.open(tmp_path / "w.h5")["parameters"][:].astype(float)
    np.testing.assert_allclose(report.distances, np.linalg.norm(vectors[:, None] - vectors[None], axis=2), atol=1e-5)
    singular = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(report.plane, axis=0), singular[:2], rtol=1e-5)
    assert report.explained == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum(), rel=1e-6)
    votes = np.stack([neural.predict(m, data()).choice for m in ens.members])
    np.testing.assert_allclose(report.disagreement, (votes[:, None] != votes[None]).mean(2))
    again = neural.report(tmp_path / "w.h5")
    assert {k: {s: v.value for s, v in x.items()} for k, x in again.scores.items()} == {
        k: {s: pytest.approx(v.value, rel=1e-6, abs=1e-9) for s, v in x.items()} for k, x in report.scores.items()}
    assert json.loads(json.dumps(report.to_dict()))["scores"]["SWA"]["nll"]["n"] == 120
    assert [one["path"] for one in report.provenance.inputs] == ["w.h5"]
    assert again.provenance.inputs[0]["path"] == "w.h5"
    assert len(again.provenance.inputs) == 2        # and the predictions that were saved
    assert report.provenance.settings == {"save": True}
    assert report.to_dict()["provenance"]["versions"]["torch"] == torch.__version__
    assert report.save(tmp_path / "report.npz") == str(tmp_path / "report.npz")
    loaded = neural.Report.load(tmp_path / "report.npz")
    assert loaded.to_dict() == report.to_dict()
    assert str(loaded) == str(report)
    assert str(loaded.differences["SWA"]) == str(report.differences["SWA"])
    assert loaded.provenance == report.provenance
    for name, one in report.predictions.items():
        np.testing.assert_array_equal(loaded.predictions[name].probabilities, one.probabilities)
        np.testing.assert_array_equal(loaded.predictions[name].target, one.target)
    text = str(report)
    assert "snapshot ensemble + T" in text
    assert f"{report.scores['SWA']['nll'].value:.4f}" in text


def test_what_could_not_be_made_is_said(tmp_path):
    model, _ = trained(tmp_path / "w.h5")
    report = neural.report(tmp_path / "w.h5", model, [data()])
    assert list(report.scores) == ["last snapshot", "snapshot ensemble", "snapshot ensemble + T"]
    assert sum("batch-norm layers and no train_loader" in note for note in report.notes) == 2
    plain, _ = trained(tmp_path / "plain.h5", norm=False)
    assert "SWA" in neural.report(tmp_path / "plain.h5", plain, [data()]).scores


@pytest.mark.parametrize(("arguments", "why"), [
    ((), "no predictions"), ((None, [data()]), "needs the model"), ((net(), [data()[0]]), "labels"),
    ((net(), []), "empty"), ((net(), [(data()[0], data()[1] + 3)]), "0 to 2"),
])
def test_reports_that_are_refused(tmp_path, arguments, why):
    trained(tmp_path / "w.h5")
    with pytest.raises(InputError, match=why):
        neural.report(tmp_path / "w.h5", *arguments)
    assert len(ek.open(tmp_path / "w.h5")) == 4


@pytest.fixture
def summary(tmp_path):
    model, train = trained(tmp_path / "w.h5")
    return neural.report(tmp_path / "w.h5", model, [data()], train_loader=train)


def test_figures_show_the_figures(summary, tmp_path):
    axes = plot.report(summary)
    assert len(axes) == 2 * len(summary.predictions) + 3 + 2 + 2
    assert len({ax.figure for ax in axes}) == 1
    axes[0].figure.savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 20_000
    axes = plot.reliability(summary.predictions, n_bins=10)
    for column, prediction in enumerate(summary.predictions.values()):
        bins = neural.reliability(prediction, n_bins=10)
        line = axes[0][column].lines[1]
        np.testing.assert_allclose(line.get_ydata(), bins.accuracy[bins.counts > 0])
        heights = [bar.get_height() for bar in axes[1][column].patches]
        np.testing.assert_allclose(heights, np.maximum(bins.counts, 0.5))
    axes = plot.forest(summary.differences, names=("nll",))
    for k, values in enumerate(summary.differences.values()):
        np.testing.assert_allclose(axes[0].lines[1 + 2 * k].get_xdata(), [values["nll"].low, values["nll"].high])
    axes = plot.by_members(summary.by_members)
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [100 - 100 * s["accuracy"].value for s in summary.by_members])
    axes = plot.diversity(summary.disagreement, summary.plane, summary.explained)
    np.testing.assert_allclose(axes[1].lines[0].get_xydata(), summary.plane)
    assert plot.diversity(summary.disagreement).shape == (1,)
    for wrong in (lambda: plot.reliability({}), lambda: plot.forest({}), lambda: plot.by_members([]),
                  lambda: plot.diversity(np.zeros((2, 3)))):
        with pytest.raises(InputError):
            wrong()


def test_training_shows_rates_losses_and_captures():
    steps = np.arange(1, 241)
    rates = 0.1 * (1 + np.cos(np.pi * ((steps - 1) % 60) / 60))
    history = neural.History(steps, np.exp(-steps / 80).astype("f4"), rates[:, None], np.array([60, 120, 180, 240]), {})
    above, below = plot.training(history)
    np.testing.assert_allclose(above.lines[0].get_ydata(), rates)
    np.testing.assert_array_equal(above.lines[1].get_xdata(), [60, 120, 180, 240])
    assert below.get_yscale() == "log"
    assert len(below.lines) == 2 + 4
    with pytest.raises(InputError, match="no history"):
        plot.training(neural.History(steps[:0], steps[:0], rates[:0, None], steps[:0], {}))


def test_the_shell_reads_saved_predictions_or_makes_them(tmp_path, monkeypatch):
    import typer
    from typer.testing import CliRunner

    from ensemblekit.cli import Commands
    from ensemblekit.cli.neural_report import report

    app = typer.Typer(cls=Commands)
    app.command()(report)
    app.callback()(lambda: None)
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "w.h5")
    (tmp_path / "recipe_of_this_test.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))\n"
        "def test():\n    torch.manual_seed(3); x = torch.randn(60, 5); return [(x, x[:, :3].argmax(1))]\n")
    said = CliRunner().invoke(app, ["report", "w.h5"])
    assert said.exit_code == 2
    command = ["report", "w.h5", "--model", "recipe_of_this_test:make", "--data", "recipe_of_this_test:test",
               "--train", "recipe_of_this_test:test", "--save", "--json", "r.json", "--plot", "figures"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert "SWA" in said.output
    first = json.loads((tmp_path / "r.json").read_text())["results"]
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "reliability.png", "forest.png", "members.png", "diversity.png"}
    assert CliRunner().invoke(app, ["report", "w.h5", "--json", "again.json"]).exit_code == 0
    again = json.loads((tmp_path / "again.json").read_text())["results"]
    assert again["scores"]["EMA"]["brier"]["value"] == pytest.approx(first["scores"]["EMA"]["brier"]["value"], rel=1e-6)
    for bad in (["--model", "recipe_of_this_test:make"], ["--model", "nowhere:make", "--data", "nowhere:x"],
                ["--model", "plain", "--data", "plain"]):
        assert CliRunner().invoke(app, ["report", "w.h5", *bad]).exit_code == 2


def test_results_go_into_files_and_back(tmp_path):
    rng = np.random.default_rng(0)
    numbers = RegressionPrediction(rng.normal(size=5), rng.random(5), rng.random(5), rng.normal(size=5), np.arange(5), 3)
    swag = neural.SWAG(rank=2)
    swag.update(rng.normal(size=(4, 6)), 0)
    posterior = swag.result()
    for one in (numbers, posterior):
        path = one.save(tmp_path / f"{type(one).__name__}.npz")
        again = type(one).load(path)
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(one, field.name))
    np.testing.assert_array_equal(again.sample(2), posterior.sample(2))
    table = numbers.to_dataframe()
    assert list(table) == ["mean", "std", "aleatoric", "epistemic", "target"]
    np.testing.assert_array_equal(table["std"], numbers.std)
    two = RegressionPrediction(rng.normal(size=(5, 2)), np.zeros((5, 2)), np.ones((5, 2)))
    assert list(two.to_dataframe())[:3] == ["mean_0", "mean_1", "std_0"]
    with pytest.raises(InputError, match="one row an item"):
        RegressionPrediction(*[np.zeros((5, 2, 2))] * 3).to_dataframe()
    with pytest.raises(InputError, match="holds a Posterior, not a Report"):
        neural.Report.load(tmp_path / "Posterior.npz")
    with pytest.raises(InputError, match=r"saved as \.npz"):
        numbers.save(tmp_path / "a.txt")
    whole = (tmp_path / "Posterior.npz").read_bytes()
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, data in (("cut.npz", whole[:len(whole) // 2]), ("text.npz", b"no archive"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(data)
    for name in ("cut.npz", "text.npz", "empty.npz", "other.npz", "nothing.npz"):
        with pytest.raises(StoreError, match=name):
            neural.Report.load(tmp_path / name)
