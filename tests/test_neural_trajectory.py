"""The path of the weights: planes, losses, compression and flatness against what is known exactly."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural, rom  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402
from ensemblekit.neural.parameters import to_vectors  # noqa: E402


def linear(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(6, 1, bias=False).double()


def normed(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def stored(path, make, count=5, seed=0, step=0.3):
    """A store of snapshots on a random walk."""
    model = make(seed)
    manifest = neural.Manifest.of(model)
    rng = np.random.default_rng(seed)
    with ek.create(path, manifest.fields, provenance={"manifest": manifest.to_dict()}) as store:
        for k in range(count):
            vectors = to_vectors(model, manifest)
            vectors["parameters"] = (vectors["parameters"] + step * rng.standard_normal(
                vectors["parameters"].shape)).astype(vectors["parameters"].dtype)
            if "buffers" in vectors:
                vectors["buffers"] = (abs(rng.standard_normal(vectors["buffers"].shape)) + 0.5).astype(vectors["buffers"].dtype)
            neural.parameters.load_vectors(model, vectors, manifest)
            store.append(vectors, time=10 * k)
    return str(path)


def items(n=40, width=4, seed=3):
    torch.manual_seed(seed)
    x = torch.randn(n, width)
    return [(x, (x[:, :3] + 0.5 * torch.randn(n, 3)).argmax(1))]


def test_the_plane_is_that_of_the_pod(tmp_path):
    path = stored(tmp_path / "w.h5", normed)
    found = neural.trajectory(path)
    basis = rom.pod(ek.open(path)["parameters"], rank=4)
    assert abs(found.scores[:, :2]) == pytest.approx(abs(basis.coefficients[:, :2]), rel=1e-5)      # modes kept in 32 bits
    assert found.explained[:4] == pytest.approx(np.cumsum(basis.energy_fraction)[:4], abs=1e-9)
    x = ek.open(path)["parameters"][:].astype(float)
    assert found.distances == pytest.approx(np.linalg.norm(x[:, None] - x, axis=2), abs=1e-6)
    assert found.off_plane**2 + (found.plane**2).sum(1) == pytest.approx(((x - x.mean(0)) ** 2).sum(1), rel=1e-6)
    assert list(found.steps) == [0, 10, 20, 30, 40]
    assert "5 snapshots of 1 run;" in str(found)
    assert neural.Trajectory.load(found.save(tmp_path / "t.npz")).plane.tolist() == found.plane.tolist()


def test_the_loss_of_a_linear_model_is_the_exact_quadratic(tmp_path):
    path = stored(tmp_path / "w.h5", linear)
    x = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x @ torch.arange(6.0, dtype=torch.float64)[:, None]
    found = neural.trajectory(path, linear(), [(x, y)], points=5, task="regression")
    w = ek.open(path)["parameters"][:].astype(float)
    mean = w.mean(0)
    u, _, _ = np.linalg.svd((w - mean).T, full_matrices=False)
    signs = np.sign((w - mean) @ u[:, :2] * found.plane).sum(0)
    first, second = (u[:, :2] * np.sign(signs)).T

    def loss(v):
        return float(((x.numpy() @ v - y.numpy()[:, 0]) ** 2).mean())

    for i, a in enumerate(found.a):
        for j, b in enumerate(found.b):
            assert found.loss[i, j] == pytest.approx(loss(mean + a * first + b * second), rel=1e-10)
    assert found.snapshot_loss == pytest.approx([loss(v) for v in w], rel=1e-12)
    assert found.foot_loss[1] == pytest.approx(loss(mean + found.plane[1, 0] * first + found.plane[1, 1] * second), rel=1e-10)
    assert found.mean_loss == pytest.approx(loss(mean), rel=1e-12)
    assert found.a[-1] == pytest.approx(1.2 * abs(found.plane[:, 0]).max())


def test_runs_in_one_plane_and_statistics_made_anew(tmp_path):
    paths = [stored(tmp_path / f"w{k}.h5", normed, 3, seed=k) for k in range(2)]
    found = neural.trajectory(paths, normed(), items(), train_loader=items(seed=4), points=2)
    assert list(found.run) == [0, 0, 0, 1, 1, 1]
    assert found.plane[:3, 0].mean() * found.plane[3:, 0].mean() < 0        # two starts lie apart along the first direction
    assert np.isfinite(found.loss).all()
    own = neural.scores(neural.predict(neural.Ensemble.from_store(paths[1], normed()).member(0), items()))["nll"].value
    assert found.snapshot_loss[3] == pytest.approx(own, rel=1e-6)
    refreshed = neural.Ensemble.from_store(paths, normed()).averaged_model(items(seed=4), barrier="ignore")
    assert found.mean_loss == pytest.approx(neural.scores(neural.predict(refreshed, items()))["nll"].value, rel=1e-5)


def test_a_basis_is_an_ensemble(tmp_path):
    path = stored(tmp_path / "w.h5", normed)
    whole = neural.Ensemble.from_store(path, normed())
    basis = rom.pod(ek.open(path)["parameters"], rank=4)
    found = neural.Ensemble.from_basis(basis, normed(), path)
    assert len(found) == 5
    assert np.asarray(found.vectors["parameters"][3]) == pytest.approx(ek.open(path)["parameters"][3], abs=3e-6)
    assert found.predict(items()).probabilities == pytest.approx(whole.predict(items()).probabilities, abs=1e-5)
    swa = found.averaged_model(items(), barrier="ignore")
    assert next(swa.parameters()).detach().numpy() == pytest.approx(
        next(whole.averaged_model(items(), barrier="ignore").parameters()).detach().numpy(), abs=1e-5)
    anew = neural.Ensemble.from_basis(basis, normed(), loader=items(seed=4), task="classification")
    refreshed = whole.member(2)
    neural.update_bn(items(seed=4), refreshed)
    assert anew.member(2)[1].running_mean.numpy() == pytest.approx(refreshed[1].running_mean.numpy(), abs=1e-5)
    with pytest.raises(InputError, match="batch-norm layers: pass the store="):
        neural.Ensemble.from_basis(basis, normed())
    with pytest.raises(InputError, match="and a store of 3"):
        neural.Ensemble.from_basis(basis, normed(), stored(tmp_path / "three.h5", normed, 3))
    with pytest.raises(InputError, match="the basis is of snapshots of 83"):
        neural.Ensemble.from_basis(basis, torch.nn.Linear(4, 3))


def test_compression_is_told_in_paired_scores(tmp_path):
    path = stored(tmp_path / "w.h5", normed)
    ens = neural.Ensemble.from_store(path, normed())
    full = neural.compressed(ens, 4, items())
    assert full.relative_error < 1e-6
    assert full.disagreement == 0
    assert abs(full.differences["nll"].value) < 1e-6
    size = ens.vectors["parameters"].shape[1]
    two = neural.compressed(ens, 2, items())
    assert two.ratio == pytest.approx(5 * size / (3 * size + 10))
    assert two.ratio < 5 / 3
    explained = neural.trajectory(path).explained[1]
    assert two.relative_error == pytest.approx(np.sqrt(1 - explained), rel=1e-6)
    assert two.differences["nll"].value != 0
    same = neural.compressed(ens, rom.pod(ek.open(path)["parameters"], rank=2), items())
    assert same.differences["nll"].value == pytest.approx(two.differences["nll"].value, abs=1e-6)
    assert same.basis is None
    again = neural.Ensemble.from_basis(two.basis, normed(), path)
    assert again.predict(items()).probabilities.shape == (40, 3)
    assert "at most M/(r + 1)" in str(two)
    for rank in (0, 5, True):
        with pytest.raises(InputError, match="hold no more modes"):
            neural.compressed(ens, rank, items())
    with pytest.raises(InputError, match="need labels"):
        neural.compressed(ens, 2, items()[0][0])


def test_flatness_of_a_quadratic_is_known():
    """Squared error of one weight vector (a filter): the rise along a step of length r|w| is r²|w|² mean (x·d)²."""
    model = linear()
    x = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x)            # at the minimum: no slope
    found = neural.flatness(model, [(x, y)], 30, radius=(0.5, 1.0), task="regression")
    length = float(model.weight.detach().norm())
    want = []
    for d in range(30):
        g = np.random.default_rng([0, d]).standard_normal((1, 6))
        want.append(float(((x.numpy() @ (g / np.linalg.norm(g)).T) ** 2).mean()) * length**2)
    assert found.each[:, 1] == pytest.approx(want, rel=1e-9)
    assert found.rise == pytest.approx([np.mean(want) / 4, np.mean(want)], rel=1e-9)
    assert found.loss == pytest.approx(0, abs=1e-20)
    assert (found.low < found.rise).all()
    assert (found.high > found.rise).all()
    assert np.array_equal(found.each, neural.flatness(model, [(x, y)], 30, radius=(0.5, 1.0), task="regression").each)


def test_flatness_of_an_ensemble_of_one_is_that_of_its_member(tmp_path):
    ens = neural.Ensemble.from_store(stored(tmp_path / "w.h5", normed), normed())
    one = neural.Ensemble.from_store(str(tmp_path / "w.h5"), normed(), last=1)
    before = {name: x.clone() for name, x in ens.member(-1).state_dict().items()}
    alone, pooled = neural.flatness(ens.member(-1), items(), 3, radius=0.5), neural.flatness(one, items(), 3, radius=0.5)
    assert alone.each == pytest.approx(pooled.each, abs=1e-6)
    assert neural.flatness(ens, items(), 3, radius=0.5).loss < alone.loss + 10
    assert all(torch.equal(before[name], x) for name, x in ens.member(-1).state_dict().items())
    anew = neural.flatness(ens.member(-1), items(), 3, radius=0.5, train_loader=items(seed=4))
    assert not np.allclose(anew.each, alone.each)


def test_what_is_wrong_is_said(tmp_path):
    path = stored(tmp_path / "w.h5", normed, 2)
    for more, words in (({"points": 1}, "points is 0"), ({"points": 3}, "a plane needs three snapshots or more; there are 2"),
                        ({"half": 0}, "half is how far"), ({"task": "x"}, "task is")):
        with pytest.raises(InputError, match=words):
            neural.trajectory(path, **more)
    three = stored(tmp_path / "w3.h5", normed, 3)
    with pytest.raises(InputError, match="needs a model and a loader"):
        neural.trajectory(three, points=3)
    with pytest.raises(InputError, match="pass train_loader="):
        neural.trajectory(three, normed(), items(), points=2)
    with pytest.raises(InputError, match="a loss needs labels"):
        neural.trajectory(three, normed(), items()[0][0], train_loader=items(), points=2)
    with pytest.raises(InputError, match="has the fields"):
        neural.trajectory([three, stored(tmp_path / "l.h5", linear)])
    for more, words in (({"directions": 1}, "two directions or more"), ({"radius": 0}, "radius is the length"),
                        ({"radius": []}, "radius is")):
        with pytest.raises(InputError, match=words):
            neural.flatness(normed(), items(), **more)
    with pytest.raises(InputError, match="a loss needs labels"):
        neural.flatness(normed(), items()[0][0])


def test_figures_number_the_captures(tmp_path):
    pytest.importorskip("matplotlib")
    path = stored(tmp_path / "w.h5", normed, 4)
    ax = neural.trajectory(path, normed(), items(), train_loader=items(), points=3).plot()
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3", "4"]
    ax.figure.draw_without_rendering()
    found = neural.flatness(normed(), items(), 3)
    assert found.plot().lines[3].get_ydata()[2] == found.rise[1]
    assert neural.trajectory(path).plot().get_title().endswith("in the plane")
