"""Drift: corrupted before it is prepared, the same bits for all models, means by item, and the clean temperature."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402
from ensemblekit.neural import corruptions  # noqa: E402
from ensemblekit.neural.temperature import TemperatureScaler  # noqa: E402

FEW = {name: corruptions.IMAGES[name] for name in ("gaussian_noise", "contrast")}


def net(seed, gain=1.0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with torch.no_grad():
        model[1].weight *= 8 * gain
    return model


def data(n=120):
    torch.manual_seed(1)
    x = torch.rand(n, 1, 8, 8)
    with torch.no_grad():
        y = (net(0)(x) + 0.7 * torch.randn(n, 3)).argmax(1)
    return x, y


def batches(x, y, size=50):
    return list(zip(x.split(size), y.split(size), strict=True))


def test_each_score_is_that_of_the_corrupted_items():
    x, y = data()
    models = {"a": net(0), "b": net(1)}
    found = neural.drift(models, batches(x, y), corruptions=FEW, severities=(1, 4))
    assert found.models == ("a", "b")
    assert found.corruptions == tuple(FEW)
    worse = corruptions.contrast(x, 4, torch.Generator().manual_seed(0))
    want = neural.scores(neural.predict(net(1), [(worse, y)]))
    for name, score in want.items():
        assert found.scores["b"]["contrast"][4][name].value == pytest.approx(score.value, abs=1e-12), name
        assert found.scores["b"]["contrast"][4][name].high == pytest.approx(score.high, abs=1e-12), name
    paired = neural.compare(neural.predict(net(1), [(worse, y)]), neural.predict(net(0), [(worse, y)]))
    assert found.by_corruption["b"]["contrast"][4]["nll"].low == pytest.approx(paired["nll"].low, abs=1e-12)
    assert found.table("nll")[1, 1] == pytest.approx(paired["nll"].value, abs=1e-12)
    assert found.clean["a"]["nll"].value == pytest.approx(neural.scores(neural.predict(net(0), [(x, y)]))["nll"].value)
    area = neural.error_detection(neural.predict(net(1), [(worse, y)]), measures="entropy")["entropy"].auroc
    assert found.detection["b"]["contrast"][4].value == pytest.approx(area.value)
    assert "mean over 2 corruptions (gaussian_noise, contrast)" in str(found)
    assert found.to_dict()["mean"]["a"]["4"]["nll"]["value"] == found.mean["a"][4]["nll"].value


def test_means_over_corruptions_are_by_item():
    x, y = data()
    found = neural.drift({"a": net(0), "b": net(1)}, batches(x, y), corruptions=FEW, severities=(3,))
    rows = []
    for corrupt in FEW.values():
        p = neural.predict(net(0), [(corrupt(x, 3, torch.Generator().manual_seed(0)), y)]).probabilities
        rows.append(-np.log(p[np.arange(len(y)), y]))
    by_item = np.mean(rows, 0)
    mean = found.mean["a"][3]["nll"]
    assert mean.value == pytest.approx(by_item.mean())
    assert mean.stderr == pytest.approx(by_item.std(ddof=1) / np.sqrt(len(y)))
    each = [found.scores["a"][name][3]["ece"].value for name in FEW]
    assert found.mean["a"][3]["ece"].value == pytest.approx(np.mean(each))
    assert found.differences["b"][3]["nll"].value == pytest.approx(
        found.mean["b"][3]["nll"].value - found.mean["a"][3]["nll"].value)


def test_the_clean_temperature_is_that_of_the_other_half():
    x, y = data(200)
    found = neural.drift(net(0, gain=4), batches(x, y), corruptions=FEW, severities=(5,))
    assert found.temperatures["model"] > 1.5            # far too sure
    clean = neural.predict(net(0, gain=4), [(x, y)])
    scaler = TemperatureScaler()
    cooled = scaler.cross_fit(clean, seed=0)
    assert found.clean["model"]["nll_clean_t"].value == pytest.approx(neural.scores(cooled)["nll"].value, abs=1e-9)
    assert found.temperatures["model"] == pytest.approx(scaler.temperature)
    assert found.mean["model"][5]["nll_clean_t"].value < found.mean["model"][5]["nll"].value
    assert found.mean["model"][5]["ece_clean_t"].value < found.mean["model"][5]["ece"].value


def test_preparation_comes_after_and_other_ranges_are_scaled():
    x, y = data(60)
    plain = neural.drift(net(0), batches(x, y), corruptions="images", severities=(2,), prepare=lambda v: v)
    assert "saturate: left out" in " ".join(plain.notes)
    assert len(plain.corruptions) == len(corruptions.IMAGES) - 1
    bytes_like = neural.drift(net(0), batches(255 * x, y), corruptions="images", severities=(2,), range=(0, 255),
                              prepare=lambda v: v / 255)
    for name in plain.corruptions:
        assert bytes_like.scores["model"][name][2]["nll"].value == pytest.approx(
            plain.scores["model"][name][2]["nll"].value, rel=1e-4), name
    sizes = neural.drift(net(0), batches(x, y, 7), corruptions=FEW, severities=(2,))
    whole = neural.drift(net(0), batches(x, y, 60), corruptions=FEW, severities=(2,))
    assert sizes.mean["model"][2]["nll"].value == pytest.approx(whole.mean["model"][2]["nll"].value, rel=1e-6)


def test_an_ensemble_loaders_of_ones_own_tables_and_numbers():
    x, y = data(60)
    rows = np.array([np.concatenate([p.detach().numpy().ravel() for p in net(k).parameters()]) for k in range(3)])
    ens = neural.Ensemble(net(0), rows)
    hospitals = {"other year": {1: batches(x.flip(0), y.flip(0)), 2: batches(x[:40], y[:40])}}
    found = neural.drift({"last": ens.member(-1), "ensemble": ens}, batches(x, y), corruptions=hospitals, severities=(1, 2))
    assert found.scores["ensemble"]["other year"][1]["nll"].value == pytest.approx(found.clean["ensemble"]["nll"].value)
    assert found.scores["ensemble"]["other year"][2]["nll"].n == 40
    assert "other year: not the clean items" in " ".join(found.notes)
    table = torch.randn(80, 5)
    model = torch.nn.Linear(5, 1)
    numbers = neural.drift(model, [(table, model(table).detach() + 0.1)], corruptions="table", severities=(1, 5),
                           task="regression")
    assert numbers.corruptions == tuple(corruptions.TABLE)
    assert numbers.mean["model"][5]["mse"].value > numbers.mean["model"][1]["mse"].value > 0.011
    assert not numbers.temperatures
    assert not numbers.clean_detection


def test_maps_are_scored_by_image():
    torch.manual_seed(0)
    model = torch.nn.Conv2d(1, 2, 3, padding=1)
    made = neural.phantom(6, (32, 32), seed=0, radii=(2, 3), lesions=(1, 1))
    x, y = torch.from_numpy(made.images), torch.from_numpy(made.labels).long()
    found = neural.drift(model, batches(x, y, 3), corruptions="ct", severities=(3,), task="segmentation",
                         prepare=lambda v: v / 100)
    assert found.corruptions == tuple(corruptions.CT)
    assert found.scores["model"]["noise"][3]["nll"].n == 6
    assert found.scores["model"]["noise"][3]["nll_clean_t"].value > 0
    assert not found.detection["model"]["noise"]


def test_what_is_wrong_is_said():
    x, y = data(40)
    for wrong, words in (({"severities": (0,)}, "severities are different whole numbers from 1"),
                         ({"severities": (6,)}, "to 5; got"),
                         ({"severities": ()}, "severities are"), ({"corruptions": "fog"}, "corruptions are 'images', 'ct'"),
                         ({"corruptions": {}}, "one name or more"), ({"corruptions": {"a": 3}}, "'a' is a function"),
                         ({"corruptions": {"a": {1: batches(x, y)}}, "severities": (1, 2)}, "and none of 2"),
                         ({"groups": [1, 2]}, "groups are one name")):
        with pytest.raises(InputError, match=words):
            neural.drift(net(0), batches(x, y), **wrong)
    with pytest.raises(InputError, match="normalised before they were corrupted"):
        neural.drift(net(0), batches(x * 3 - 1, y))
    with pytest.raises(InputError, match="the loader is empty"):
        neural.drift(net(0), [])
    with pytest.raises(InputError, match="the loader gives no labels"):
        neural.drift(net(0), x, corruptions=FEW)
    with pytest.raises(InputError, match="no models"):
        neural.drift({}, batches(x, y))
    with pytest.raises(InputError, match='call it "image"'):
        neural.drift(net(0), [{"a": x, "b": x, "label": y}], corruptions=FEW)


def test_figures_show_the_scores():
    pytest.importorskip("matplotlib")
    from ensemblekit.plot import drift as draw

    x, y = data(60)
    found = neural.drift({"a": net(0), "b": net(1)}, batches(x, y), corruptions=FEW, severities=(1, 5))
    axes = found.plot()
    assert len(axes) == 6
    assert axes[0].lines[1].get_ydata()[2] == pytest.approx(1 - found.mean["b"][5]["accuracy"].value)
    table = draw.table(found)
    assert np.array_equal(table.images[0].get_array(), found.table("nll"))
    axes[0].figure.draw_without_rendering()
    with pytest.raises(InputError, match="needs two models"):
        draw.table(neural.drift(net(0), batches(x, y), corruptions=FEW, severities=(1,)))
    with pytest.raises(InputError, match="models are a, b"):
        found.table("xyz")
