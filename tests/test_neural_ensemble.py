"""Ensembles: pooling against plain numpy, members left alone, doubt, tasks, averages of weights, what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402
from ensemblekit.neural.parameters import to_vectors  # noqa: E402

nn = torch.nn


def net(seed: int = 0, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
                         nn.Linear(3 * 36, classes))


def vectors(models: list[nn.Module]) -> dict[str, np.ndarray]:
    rows = [to_vectors(m) for m in models]
    return {kind: np.stack([r[kind] for r in rows]) for kind in rows[0]}


def stored(path, models: list[nn.Module], weights: list[float] | None = None):
    manifest = neural.Manifest.of(models[0])
    with ek.create(path, manifest.fields, provenance={"manifest": manifest.to_dict()}) as store:
        for k, model in enumerate(models):
            store.append(to_vectors(model, manifest), weight=1.0 if weights is None else weights[k])
    return path


def images(n: int = 9, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=g), torch.randint(4, (n,), generator=g)


def each(models: list[nn.Module], x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.stack([torch.softmax(m.eval()(x).double(), 1).numpy() for m in models])


class Fixed(nn.Module):
    """Says its parameter, whatever comes."""

    def __init__(self, *values: float):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(values, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize("path", ["sequential", "vmap"])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0]])
def test_prediction_is_what_numpy_says(path, weights):
    models, (x, y) = [net(k) for k in range(3)], images()
    ens = neural.Ensemble(net(9), vectors(models), weights=weights)
    prediction = ens.predict([(x[:4], y[:4]), (x[4:], y[4:])], path=path)
    p, w = each(models, x), np.full(3, 1 / 3) if weights is None else np.array([0.25, 0, 0.75])
    pooled = np.tensordot(w, p, 1)
    own = w @ -(p * np.log(p)).sum(2)
    np.testing.assert_allclose(prediction.probabilities, pooled, rtol=1e-6)
    np.testing.assert_allclose(prediction.aleatoric, own, rtol=1e-6)
    np.testing.assert_allclose(prediction.entropy, -(pooled * np.log(pooled)).sum(1), rtol=1e-6)
    np.testing.assert_allclose(prediction.epistemic, prediction.entropy - own, atol=1e-7)
    assert (prediction.entropy - prediction.aleatoric >= -1e-12).all()
    np.testing.assert_allclose(prediction.disagreement, w @ (p.argmax(2) != pooled.argmax(1)), atol=1e-12)
    votes = np.array([[w @ (p[:, i].argmax(1) == c) for c in range(4)] for i in range(len(x))])
    np.testing.assert_allclose(prediction.variation_ratio, 1 - votes.max(1), atol=1e-12)
    np.testing.assert_array_equal(prediction.target, y)
    np.testing.assert_array_equal(prediction.index, range(9))
    with torch.no_grad():
        np.testing.assert_allclose(ens(x).exp().numpy(), pooled, rtol=1e-6)


def test_probability_and_logit_pooling_choose_differently():
    # probabilities 0.99/0.01 and twice 0.2/0.8: the mean of probabilities says class 1, that of logits class 0
    rows = np.log(np.array([[0.99, 0.01], [0.2, 0.8], [0.2, 0.8]]))
    x = torch.zeros(2, 1)
    arithmetic = neural.Ensemble(Fixed(0, 0), rows).predict(x)
    geometric = neural.Ensemble(Fixed(0, 0), rows, space="logit").predict(x)
    np.testing.assert_allclose(arithmetic.probabilities[0], [0.99 / 3 + 0.4 / 3, 0.01 / 3 + 1.6 / 3], rtol=1e-6)
    g = np.exp(rows.mean(0))
    np.testing.assert_allclose(geometric.probabilities[0], g / g.sum(), rtol=1e-6)
    assert arithmetic.choice[0] == 1
    assert geometric.choice[0] == 0
    with pytest.raises(InputError, match="space"):
        neural.Ensemble(Fixed(0, 0), rows, space="mean")


def test_log_probabilities_of_huge_logits_are_finite():
    ens = neural.Ensemble(Fixed(0, 0), np.array([[0.0, 600.0], [0.0, 600.0]], np.float32))
    logs = ens(torch.zeros(1, 1))
    assert float(logs[0, 0].detach()) == pytest.approx(-600, rel=1e-12)


@pytest.mark.parametrize("path", ["sequential", "vmap"])
def test_members_of_low_precision_are_pooled_in_double(path):
    """bfloat16 logits: each member rounds once, the pool of many does not."""
    rng = np.random.default_rng(5)
    values = torch.tensor(rng.normal(size=(40, 3)), dtype=torch.bfloat16)
    models = [Fixed(*row).bfloat16() for row in values.tolist()]
    prediction = neural.Ensemble(models[0], vectors(models)).predict(torch.zeros(2, 1), path=path)
    p = torch.softmax(values.double(), 1).numpy()
    assert prediction.probabilities.dtype == np.float64
    np.testing.assert_allclose(prediction.probabilities, np.tile(p.mean(0), (2, 1)), rtol=1e-12)
    np.testing.assert_allclose(prediction.aleatoric, -(p * np.log(p)).sum(1).mean(), rtol=1e-12)


def test_certain_members_have_no_entropy_and_differ_by_all_of_it():
    ens = neural.Ensemble(Fixed(0, 0, 0), vectors([Fixed(2000, 0, -np.inf), Fixed(0, 2000, -np.inf)]))
    prediction = ens.predict((torch.zeros(2, 1), torch.tensor([0, 2])))
    np.testing.assert_allclose(prediction.probabilities, [[0.5, 0.5, 0]] * 2, atol=1e-15)
    np.testing.assert_allclose(prediction.entropy, np.log(2), rtol=1e-12)        # 0 log 0 is 0
    np.testing.assert_allclose(prediction.aleatoric, 0, atol=1e-12)
    np.testing.assert_allclose(prediction.epistemic, np.log(2), rtol=1e-12)
    assert torch.isfinite(ens(torch.zeros(2, 1))).all()


def test_members_are_left_alone_and_answer_alike_however_batches_are_cut():
    models, (x, y) = [net(k) for k in range(3)], images()
    model = net(9)
    model[1].eval()             # a frozen layer inside a model that trains
    before = copy.deepcopy(model.state_dict())
    ens = neural.Ensemble(model, vectors(models))
    ens.train()                 # dropout must stay off
    state = torch.random.get_rng_state()
    one = ens.predict([(x, y)])
    np.testing.assert_allclose(one.probabilities, ens.predict([(x[k:k + 1], y[k:k + 1]) for k in range(9)]).probabilities,
                               rtol=1e-5)
    np.testing.assert_allclose(one.probabilities, neural.Ensemble(model, vectors(models[::-1])).predict(x).probabilities,
                               rtol=1e-12)
    single = neural.predict(model, (x, y))
    assert model.training
    assert not model[1].training
    assert (single.disagreement == 0).all()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_from_store_takes_all_or_some_with_their_weights(tmp_path):
    models, (x, _) = [net(k) for k in range(4)], images()
    path = stored(tmp_path / "w.h5", models, [1, 2, 3, 4])
    p = each(models, x)
    for options, chosen, w in (({}, [0, 1, 2, 3], [1, 2, 3, 4]), ({"last": 2}, [2, 3], [3, 4]),
                               ({"members": [-1, 0]}, [3, 0], [4, 1]), ({"members": slice(1, 3)}, [1, 2], [2, 3]),
                               ({"last": 2, "weights": [1, 1]}, [2, 3], [1, 1])):
        ens = neural.Ensemble.from_store(path, net(7), **options)
        np.testing.assert_allclose(ens.predict(x).probabilities, np.average(p[chosen], 0, w), rtol=1e-6)
        mean = np.average([to_vectors(models[k])["parameters"].astype(float) for k in chosen], 0, w)
        np.testing.assert_allclose(ens.reduce(ek.Moments()).mean, mean, rtol=1e-12, atol=1e-15)
    with pytest.raises(InputError, match="last"):
        neural.Ensemble.from_store(path, net(), last=5)
    with pytest.raises(InputError, match=r"5\.weight"):
        neural.Ensemble.from_store(path, net(classes=5))
    with ek.create(tmp_path / "other.h5", {"u": ek.Field((2,), "f8")}) as other:
        other.append({"u": [1, 2]})
    with pytest.raises(InputError, match="no snapshots of a model"):
        neural.Ensemble.from_store(tmp_path / "other.h5", net())


def test_several_runs_are_one_ensemble(tmp_path):
    models, (x, _) = [net(k) for k in range(4)], images()
    stored(tmp_path / "a.h5", models[:1])
    stored(tmp_path / "b.h5", models[1:])
    ens = neural.Ensemble.from_store(str(tmp_path / "*.h5"), net())
    np.testing.assert_allclose(ens.predict(x).probabilities, each(models, x).mean(0), rtol=1e-6)


def test_weights_too_large_for_memory_are_read_one_at_a_time(tmp_path):
    models, (x, y) = [net(k) for k in range(3)], images()
    path = stored(tmp_path / "w.h5", models)
    ens = neural.Ensemble.from_store(path, net(), resident=100)
    np.testing.assert_allclose(ens.predict([(x[:5], y[:5]), (x[5:], y[5:])]).probabilities, each(models, x).mean(0),
                               rtol=1e-6)
    assert ens._runner.modules is None
    assert "memory" in ens.measurements[0].why


def test_it_is_a_module():
    models, (x, _) = [net(k) for k in range(3)], images()
    ens = neural.Ensemble(net(9), vectors(models)).double()
    assert {p.dtype for p in ens.parameters()} == {torch.float64}
    assert len(list(ens.parameters())) == 3 * 6
    assert not any(p.requires_grad for p in ens.parameters())
    held = ens.state_dict()
    other = neural.Ensemble(net(9), vectors([net(k) for k in (5, 6, 7)])).double()
    other(x.double())
    other.load_state_dict(held)
    torch.testing.assert_close(other(x.double()), ens(x.double()))
    x = x.double().requires_grad_()
    ens(x)[:, 0].sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_choice_is_measured_once_and_recorded():
    ens = neural.Ensemble(nn.Linear(3, 2), vectors([nn.Linear(3, 2) for _ in range(64)]))
    x = torch.randn(16, 3)
    ens(x)
    ens(x)
    assert len(ens.measurements) == 1
    assert ens.measurements[0].chosen == "vmap"     # 64 calls against one: a factor of more than ten
    assert ens.measurements[0].vmap < ens.measurements[0].sequential


@pytest.mark.parametrize(("shares", "chosen"), [
    ([0.8] * 7, "vmap"), ([0.9] * 7, "sequential"), ([1.2] * 7, "sequential"),
    ([0.5, 0.5, 0.5, 0.9, 0.9, 0.9, 0.9], "sequential"),        # the best rounds alone do not decide
    ([0.5, 0.5, 0.5, 0.5, 3.0, 3.0, 3.0], "vmap"),              # nor do the worst
])
def test_vmap_must_win_by_a_margin(monkeypatch, shares, chosen):
    from ensemblekit.neural import members

    left, calls = iter([shares[0], *shares]), []                # one call to warm up

    def timed(run, n=1):
        answer = run()
        calls.append(answer)
        return (0.01 if isinstance(answer, list) else 0.01 * next(left)), answer

    monkeypatch.setattr(members, "_timed", timed)
    ens = neural.Ensemble(nn.Linear(3, 2), vectors([nn.Linear(3, 2) for _ in range(5)]))
    ens(torch.randn(16, 3))
    assert ens.measurements[0].chosen == chosen
    rounds = [isinstance(answer, list) for answer in calls[-2 * members.ROUNDS:]]
    assert {tuple(rounds[k:k + 2]) for k in range(0, len(rounds), 2)} == {(True, False), (False, True)}


@pytest.mark.parametrize(("chosen", "reused", "anew"), [("vmap", (16, 12, 8), (17, 7)), ("sequential", (16, 24, 32), (15, 33))])
def test_a_choice_holds_for_batches_that_favour_it_more(monkeypatch, chosen, reused, anew):
    from ensemblekit.neural import members

    monkeypatch.setattr(members, "_timed", lambda run, n=1: (
        (lambda answer: (0.01 if isinstance(answer, list) == (chosen == "vmap") else 0.001, answer))(run())))
    for size in (*reused, *anew):
        ens = neural.Ensemble(nn.Linear(3, 2), vectors([nn.Linear(3, 2) for _ in range(5)]))
        ens(torch.randn(16, 3))
        ens(torch.randn(size, 3))
        assert [one.chosen for one in ens.measurements] == [chosen] * (1 if size in reused else 2)
        ens(torch.randn(16, 5)[:, :3])
        assert len(ens.measurements) == (1 if size in reused else 2)


class Moody(nn.Linear):
    def forward(self, x):
        return super().forward(x) if float(self.weight.sum()) > -1e9 else x


def test_models_that_vmap_cannot_run_go_one_by_one():
    ens = neural.Ensemble(Moody(3, 2), vectors([Moody(3, 2) for _ in range(3)]))
    assert ens(torch.randn(4, 3)).shape == (4, 2)
    assert "vmap cannot run" in ens.measurements[0].why


def test_regression_splits_its_variance():
    rows = np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])
    prediction = neural.Ensemble(Fixed(0, 0), rows, task="regression").predict((torch.zeros(3, 1), torch.ones(3, 2)))
    np.testing.assert_allclose(prediction.mean[0], [3, 5])
    np.testing.assert_allclose(prediction.epistemic[0], [rows[:, 0].var(), 0], atol=1e-12)
    np.testing.assert_array_equal(prediction.aleatoric, 0)

    def both(model, batch):
        mean = model(batch[0])
        return mean, mean**2

    ens = neural.Ensemble(Fixed(0, 0), rows, task="regression", forward=both, weights=[1, 1, 2])
    prediction = ens.predict([(torch.zeros(2, 1), torch.ones(2, 2))])
    w = np.array([0.25, 0.25, 0.5])
    np.testing.assert_allclose(prediction.mean[0], w @ rows)
    np.testing.assert_allclose(prediction.aleatoric[0], w @ rows**2)
    np.testing.assert_allclose(prediction.variance[0], w @ (rows**2 + rows**2) - (w @ rows) ** 2)
    assert neural.scores(prediction)["mse"].value == pytest.approx(((w @ rows - 1) ** 2).mean())
    np.testing.assert_allclose(ens([torch.zeros(2, 1)]).detach()[0], w @ rows)


def test_binary_is_two_classes():
    logits = np.array([[0.3], [-2.0]], np.float32)
    prediction = neural.Ensemble(Fixed(0), logits, task="binary").predict((torch.zeros(2, 1), torch.tensor([0, 1])))
    p = (1 / (1 + np.exp(-logits.astype(float)))).mean()
    np.testing.assert_allclose(prediction.probabilities, [[1 - p, p]] * 2, rtol=1e-6)
    with pytest.raises(InputError, match='task="binary"'):
        neural.Ensemble(Fixed(0), logits).predict(torch.zeros(2, 1))


def test_segmentation_gives_maps_and_ignores_what_it_should():
    def make(seed):
        torch.manual_seed(seed)
        return nn.Conv2d(1, 3, 3, padding=1)

    models, x = [make(k) for k in range(3)], torch.randn(4, 1, 5, 6)
    y = torch.randint(3, (4, 5, 6))
    y[:, 0] = 255
    ens = neural.Ensemble(make(9), vectors(models), task="segmentation", ignore_index=255)
    prediction = ens.predict([(x[:3], y[:3]), (x[3:], y[3:])])
    p = each(models, x)
    np.testing.assert_allclose(prediction.probabilities, p.mean(0), atol=1e-6)
    assert prediction.epistemic.shape == prediction.disagreement.shape == (4, 5, 6)
    kept = y.numpy() != 255
    right = (p.mean(0).argmax(1) == y.numpy())[kept].mean()
    scores = neural.scores(prediction)
    assert scores["accuracy"].value == pytest.approx(right)
    assert scores["accuracy"].n == 4                    # images, not pixels
    with pytest.raises(InputError, match="ignore_index"):
        neural.Ensemble(make(9), vectors(models), task="segmentation").predict([(x, y)])
    every = neural.Ensemble(make(9), vectors(models), task="segmentation", ignore_index=255)
    nothing = every.predict([(x, torch.full_like(y, 255))])
    with pytest.raises(InputError, match="nothing is left"):
        neural.scores(nothing)


def test_batches_of_many_kinds():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, a, b):
            return {"logits": self.layer(a + b)}

    model, a, b, y = Two(), torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    ens = neural.Ensemble(model, vectors([model, Two()]))
    wanted = ens.predict([(a, b, y)])
    for loader in ([{"a": a, "b": b, "labels": y}], (a, b, y), [{"a": a, "b": b, "target": y}]):
        np.testing.assert_array_equal(ens.predict(loader).probabilities, wanted.probabilities)
        np.testing.assert_array_equal(ens.predict(loader).target, y)
    own = neural.Ensemble(model, vectors([model]), forward=lambda m, batch: m(batch["x"], batch["x"])["logits"])
    assert own.predict([{"x": a, "y": y}]).target.tolist() == y.tolist()


@pytest.mark.parametrize(("loader", "why"), [
    ([], "empty"),
    ([(images()[0], torch.full((9,), 4))], "0 to 3"),
    ([(images()[0], torch.full((9,), -1))], "0 to 3"),
    ([(images()[0], torch.rand(9))], "fractions"),
    ([(images()[0], torch.zeros(8, dtype=torch.long))], "shape"),
    ([(images()[0], images()[1]), (images()[0],)], "some batches"),
    ({"x": images()[0]}, "into a list"),
    (3, "loader"),
])
def test_loaders_that_are_refused(loader, why):
    with pytest.raises(InputError, match=why):
        neural.Ensemble(net(9), vectors([net(0), net(1)])).predict(loader)


def test_members_that_are_refused():
    rows = vectors([net(0), net(1), net(2)])
    rows["parameters"][1, 5] = np.nan
    with pytest.raises(InputError, match="member 1 answers NaN"):
        neural.Ensemble(net(9), rows).predict(images()[0])
    x, y = images()
    fine = neural.Ensemble(net(9), rows, weights=[1, 0, 1]).predict(x)
    np.testing.assert_allclose(fine.probabilities, each([net(0), net(2)], x).mean(0), rtol=1e-6)
    with pytest.raises(InputError, match="snapshot 1 are not finite"):
        neural.Ensemble(net(9), rows).averaged_model([(x, y)])
    with pytest.raises(InputError, match="at least one"):
        neural.Ensemble(net(9), {kind: v[:0] for kind, v in rows.items()})
    with pytest.raises(InputError, match="weights"):
        neural.Ensemble(net(9), rows, weights=[1, 2])
    with pytest.raises(InputError, match="task"):
        neural.Ensemble(net(9), rows, task="ranking")


def test_averaged_model_is_the_mean_with_fresh_statistics():
    models, (x, _y) = [net(k) for k in range(3)], images(40)
    models[2][1].num_batches_tracked.fill_(7)
    ens = neural.Ensemble(net(9), vectors(models))
    state = torch.random.get_rng_state()
    averaged = ens.averaged_model([(x[:32],), (x[32:],)])
    assert torch.equal(state, torch.random.get_rng_state())
    assert not averaged.training
    for name, p in averaged.named_parameters():
        mean = np.mean([dict(m.named_parameters())[name].detach().double().numpy() for m in models], 0)
        np.testing.assert_allclose(p.detach().numpy(), mean, rtol=2e-7, atol=1e-9)
    with torch.no_grad():
        before = averaged[0](x).double().movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(averaged[1].running_mean.double(), before.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(averaged[1].running_var.double(), before.var(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="batch-norm"):
        ens.averaged_model()
    plain = neural.Ensemble(Fixed(0, 0), np.array([[1.0, 2], [3, 4], [5, 0]]))
    np.testing.assert_allclose(plain.averaged_model().logits.detach(), [3, 2])
    np.testing.assert_allclose(plain.averaged_model(average=ek.Window(2)).logits.detach(), [4, 2])
    ema = ek.Exponential(0.5)
    np.testing.assert_allclose(plain.averaged_model(average=ema).logits.detach(), [(1 + 6 + 20) / 7, (2 + 8) / 7], rtol=1e-6)


class Hills(nn.Module):
    """Two valleys, w = 1 and w = -1, in which the input's sign is told; at w = 0 nothing is."""

    def __init__(self, w: float = 1.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w]))

    def forward(self, x):
        z = 5 * x * self.w**2
        return torch.cat([-z, z], 1)


def test_averages_across_a_barrier_are_refused():
    x = torch.linspace(-1, 1, 64)[:, None]
    loader = [(x, (x[:, 0] > 0).long())]
    ens = neural.Ensemble(Hills(), np.array([[1.0], [-1.0]]))
    with pytest.raises(InputError, match="loss barrier"):
        ens.averaged_model(loader)
    assert float(ens.averaged_model(loader, barrier="ignore").w.detach()) == 0
    rise = ens.barrier(loader)
    assert rise.average == pytest.approx(np.log(2))
    assert rise.value == pytest.approx(rise.average - rise.members)
    assert rise.n == 64
    near = neural.Ensemble(Hills(), np.array([[1.0], [1.1]]))
    assert float(near.averaged_model(iter(loader)).w.detach()) == pytest.approx(1.05)
    barrier = neural.loss_barrier(Hills(1.0), Hills(-1.0), loader)
    assert barrier.at[np.argmax(barrier.loss)] == 0.5
    assert barrier.height == pytest.approx(np.log(2) - barrier.loss[0])
    assert neural.loss_barrier(Hills(1.0), Hills(1.1), loader).height < 1e-3
    with pytest.raises(InputError, match="labels"):
        ens.barrier([x])


def test_predictions_are_kept_beside_the_store(tmp_path):
    models, (x, y) = [net(k) for k in range(3)], images()
    ens = neural.Ensemble.from_store(stored(tmp_path / "w.h5", models, [1, 2, 1]), net())
    with pytest.raises(InputError, match="no predictions"):
        neural.load_predictions(tmp_path / "w.h5")
    first = ens.predict((x, y), save=True)
    ens.predict((x, y), save=True)              # replaces
    saved = neural.load_predictions(tmp_path / "w.h5")
    np.testing.assert_allclose(saved.members, each(models, x), rtol=1e-6)
    np.testing.assert_array_equal(saved.target, y)
    again = saved.pooled()
    np.testing.assert_allclose(again.probabilities, first.probabilities, rtol=1e-12)
    np.testing.assert_allclose(again.epistemic, first.epistemic, atol=1e-12)
    assert sorted(p.name for p in (tmp_path / "w.h5.d").iterdir() if p.suffix == ".h5") == ["predictions.h5"]
    with pytest.raises(InputError, match="from_store"):
        neural.Ensemble(net(), vectors(models)).predict(x, save=True)
