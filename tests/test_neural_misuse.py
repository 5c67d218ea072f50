"""Misuse that is refused or named, never guessed at: outputs, labels, the rest of a model, the end of a loop."""

import copy
import logging
from collections import namedtuple

import numpy as np
import pytest
import torch

from ensemblekit import neural
from ensemblekit.errors import InputError


def net(*last, norm=False):
    torch.manual_seed(5)
    middle = [torch.nn.BatchNorm1d(8, momentum=0.01)] if norm else []
    return torch.nn.Sequential(torch.nn.Linear(4, 8), *middle, torch.nn.ReLU(), torch.nn.Linear(8, 3), *last)


def data(n=40):
    torch.manual_seed(6)
    x = torch.randn(n, 4)
    return x, (x[:, :3] * 2).argmax(1)


def of(model, **options):
    from ensemblekit.neural.parameters import to_vectors
    vectors = {k: np.stack([v, v]) for k, v in to_vectors(model).items()}
    return neural.Ensemble(model, vectors, **options)


def test_probabilities_are_not_taken_for_logits():
    x, y = data()
    right = neural.predict(net(), (x, y)).probabilities
    soft = net(torch.nn.Softmax(1))
    for answer in (lambda: of(soft)(x), lambda: of(soft).predict((x, y)), lambda: neural.predict(soft, (x, y)),
                   lambda: of(soft).averaged_model((x, y))):
        with pytest.raises(InputError, match='outputs="probabilities"'):
            answer()
    assert np.allclose(of(soft, outputs="probabilities").predict((x, y)).probabilities, right, atol=1e-6)
    assert np.allclose(of(soft, outputs="probabilities")(x).exp().numpy(), right, atol=1e-6)


def test_a_sigmoid_is_not_taken_for_a_logit():
    x, y = data()
    torch.manual_seed(7)
    one = torch.nn.Linear(4, 1)
    sigmoid = torch.nn.Sequential(one, torch.nn.Sigmoid())
    batches = [(x[:39], (y > 0)[:39].long()), (x[39:], (y > 0)[39:].long())]
    with pytest.raises(InputError, match='outputs="probabilities"'):
        neural.predict(sigmoid, batches, task="binary")
    said = neural.predict(sigmoid, batches, task="binary", outputs="probabilities").probabilities
    assert np.allclose(said, neural.predict(one, batches, task="binary").probabilities, atol=1e-6)


def test_sample_weights_are_not_taken_for_labels():
    x, y = data()
    batches = [(x, y, torch.ones(len(x)))]
    with pytest.raises(InputError, match="target=lambda"):
        neural.predict(net(), batches, forward=lambda model, batch: model(batch[0]))
    with pytest.raises(InputError, match="target=lambda"):
        neural.predict(net(), [(x, y, torch.zeros_like(y))], forward=lambda model, batch: model(batch[0]))
    with pytest.raises(InputError, match="target=lambda"):
        neural.predict(net(), batches)
    right = neural.predict(net(), [(x, y)])
    said = neural.predict(net(), batches, target=lambda batch: batch[1])
    assert np.array_equal(said.target, right.target)
    assert np.array_equal(said.probabilities, right.probabilities)
    Batch = namedtuple("Batch", "x y weight")
    assert np.array_equal(neural.predict(net(), [Batch(*batches[0])], target=lambda b: b.y).target, right.target)


@pytest.mark.parametrize("labels", [lambda y: y[:, None], lambda y: torch.nn.functional.one_hot(y, 3),
                                    lambda y: torch.where(y > 1, -100, y), lambda y: y.float()])
def test_labels_that_do_not_fit_are_named(labels):
    x, y = data()
    for answer in (of(net()).averaged_model, of(net()).predict, of(net()).barrier):
        with pytest.raises(InputError, match=r"shape|whole numbers"):
            answer([(x, labels(y))])


def test_identical_snapshots_of_a_batch_norm_model_have_no_barrier():
    x, y = data(400)
    model = net(norm=True)
    ensemble = of(model)
    assert ensemble.averaged_model([(x, y)]) is not None
    assert ensemble.barrier([(x, y)]).value == 0


def test_a_last_batch_of_one_counts_in_batch_norm_statistics():
    x, y = data(33)
    one, whole = net(norm=True), net(norm=True)
    neural.update_bn([(x[:32], y[:32]), (x[32:], y[32:])], one)
    neural.update_bn([(x, y)], whole)
    assert torch.allclose(one[1].running_mean, whole[1].running_mean, atol=1e-6)
    assert torch.allclose(one[1].running_var, whole[1].running_var, rtol=1e-5)
    with pytest.raises(InputError, match="single item"):
        neural.update_bn([(x[:1], y[:1])], net(norm=True))


class Scaled(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.net, self.scale = net(), scale

    def forward(self, x):
        return self.net(x) * self.scale

    def get_extra_state(self):
        return {"scale": self.scale}

    def set_extra_state(self, state):
        self.scale = state["scale"]


def train(path, model, *, recorded=None, parameters="all", steps=8, step=True, total=8, each=lambda k: None):
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=total, n_cycles=2)
    with neural.Recorder(path, model if recorded is None else recorded, optimizer, schedule, parameters=parameters) as rec:
        for k in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            each(k)
            rec.step()
            if step:
                schedule.step()
    return rec


def test_extra_states_are_compared_on_reading(tmp_path):
    train(tmp_path / "a.h5", Scaled(2.0))
    neural.Ensemble.from_store(tmp_path / "a.h5", Scaled(2.0))
    with pytest.raises(InputError, match="get_extra_state"):
        neural.Ensemble.from_store(tmp_path / "a.h5", Scaled(3.0))


def test_snapshots_of_some_parameters_go_onto_the_base_they_were_trained_on(tmp_path):
    model = net()
    model[0].requires_grad_(False)
    base = copy.deepcopy(model)
    train(tmp_path / "a.h5", model, parameters="trainable")
    neural.Ensemble.from_store(tmp_path / "a.h5", base)
    with torch.no_grad():
        base[0].weight.add_(1)
    with pytest.raises(InputError, match=r"0\.weight"):
        neural.Ensemble.from_store(tmp_path / "a.h5", base)


def test_a_layer_unfrozen_midway_is_named(tmp_path):
    model = net()
    model[0].requires_grad_(False)
    with pytest.raises(InputError, match=r"0\.weight"):
        train(tmp_path / "a.h5", model, parameters="trainable", each=lambda k: model[0].requires_grad_(k > 1))


def test_the_end_of_a_loop_is_always_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "ensemblekit"):
        train(tmp_path / "a.h5", net())
        assert "2 of 2 snapshots, schedule at 8 of 8 after 8 updates" in caplog.text
    caplog.clear()
    for name, options, said in (("b", {"step": False}, "0 of 2 snapshots, schedule at 0 of 8 after 8"),
                                ("c", {"steps": 4, "total": 16}, "0 of 2 snapshots, schedule at 4 of 16 after 4"),
                                ("d", {"steps": 11}, "2 of 2 snapshots, schedule at 11 of 8 after 11")):
        train(tmp_path / f"{name}.h5", net(), **options)
        assert said in caplog.text


def test_a_finished_run_of_a_plain_loop_is_left_alone(tmp_path):
    train(tmp_path / "a.h5", net())
    before = neural.state_dict(tmp_path / "a.h5")
    train(tmp_path / "a.h5", net())
    after = neural.state_dict(tmp_path / "a.h5")
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert len(neural.history(tmp_path / "a.h5").step) == 8


def test_an_optimizer_of_another_model_is_refused_and_an_average_is_not(tmp_path):
    with pytest.raises(InputError, match="another model"):
        train(tmp_path / "a.h5", net(), recorded=net())
    model = net()
    average, theirs = neural.AveragedModel(model), torch.optim.swa_utils.AveragedModel(model)

    def update(k):
        average.update_parameters(model)
        theirs.update_parameters(model)

    train(tmp_path / "b.h5", model, recorded=average, each=update)
    assert torch.equal(neural.state_dict(tmp_path / "b.h5")["module.0.weight"], average.module[0].weight)
    assert torch.allclose(average.module[0].weight, theirs.module[0].weight, atol=1e-6)
    theirs.load_state_dict(average.state_dict())
    other = neural.AveragedModel(model)
    other.load_state_dict(theirs.state_dict())
    assert torch.equal(other.module[0].weight, average.module[0].weight)
    children = next(iter(average.children()))
    average.update_parameters(net())
    assert torch.equal(children[0].weight, average.state_dict()["module.0.weight"])


def test_losses_of_samples_are_averaged_in_the_history(tmp_path):
    x, y = data()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with neural.Recorder(tmp_path / "a.h5", model, optimizer,
                         neural.CyclicCosineLR(optimizer, total_steps=1, n_cycles=1)) as rec:
        loss = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        loss.mean().backward()
        optimizer.step()
        rec.step(loss)
    assert np.isclose(neural.history(tmp_path / "a.h5").loss[0], float(loss.detach().mean()))


def test_groups_added_after_the_schedule_are_named():
    model = net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=4, n_cycles=1)
    optimizer.add_param_group({"params": list(model[2].parameters())})
    optimizer.step()
    with pytest.raises(InputError, match="add_param_group"):
        schedule.step()


def test_rows_of_labels_are_told_by_what_they_are():
    x, y = data()
    rows = torch.nn.functional.one_hot(y, 3)
    some = (torch.arange(len(x))[:, None] % torch.tensor([2, 3, 5]) == 0)
    for labels, said in ((rows, "One-hot labels"), (rows.float(), "One-hot labels"), (some.float(), "multi-label"),
                         (some.long(), "multi-label"), (torch.softmax(x[:, :3], 1), "Soft labels"), (x[:, :3], "regression")):
        with pytest.raises(InputError, match=said):
            of(net()).predict([(x, labels)])
    with pytest.raises(InputError, match=r"task=\"binary\" with forward=lambda model, batch: model\(batch\[0\]\)\[:, k\]"):
        of(net(), task="binary").predict([(x, some.float())])
    k = 1       # and that works
    one = of(net(), task="binary", outputs="logits", forward=lambda model, batch: model(batch[0])[:, k],
             target=lambda batch: batch[1][:, k])
    assert np.allclose(one.predict([(x, some.float())]).probabilities[:, 1], torch.sigmoid(net()(x)[:, k]).detach())


class Speaks(torch.nn.Module):
    """A model that answers with a distribution."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(8)
        self.layer, self.make = torch.nn.Linear(4, 6), make

    def forward(self, x):
        out = self.layer(x)
        return self.make(out[:, :3], out[:, 3:].exp())


D = torch.distributions


@pytest.mark.parametrize(("make", "task", "said"), [
    (lambda m, s: D.Normal(m, s), "classification", 'a Normal, a distribution of numbers: task="regression"'),
    (lambda m, s: D.Independent(D.StudentT(5.0, m, s), 1), "binary", "a StudentT, a distribution of numbers"),
    (lambda m, s: D.Bernoulli(logits=m), "regression", "a Bernoulli, a distribution over classes"),
    (lambda m, s: D.OneHotCategorical(logits=m), "regression", "a OneHotCategorical, a distribution over classes"),
    (lambda m, s: D.TransformedDistribution(D.Normal(m, s), [D.transforms.TanhTransform()]), "regression",
     "torch knows no mean and variance"),
    (lambda m, s: D.Cauchy(m, s), "regression", "without a mean"),
    (lambda m, s: D.StudentT(2.0, m, s), "regression", "a variance that is infinite"),
    (lambda m, s: {"loc": m, "scale": s}, "regression", r"a tensor, or a tuple \(mean, variance\)")])
@pytest.mark.filterwarnings("ignore:the model answers")
def test_distributions_that_do_not_fit_the_task_are_named(make, task, said):
    x, _ = data()
    for answer in (lambda: of(Speaks(make), task=task).predict([(x, torch.zeros(len(x), 3))]),
                   lambda: neural.predict(Speaks(make), [(x, torch.zeros(len(x), 3))], task=task)):
        with pytest.raises(InputError, match=said):
            answer()


@pytest.mark.parametrize(("make", "warns"), [
    (lambda m, s: D.Normal(m, s), False), (lambda m, s: D.Independent(D.Normal(m, s), 1), False),
    (lambda m, s: D.MultivariateNormal(m, torch.diag_embed(s * s)), False),
    (lambda m, s: D.StudentT(5.0, m, s), True), (lambda m, s: D.Laplace(m, s), True)])
def test_a_distribution_counts_as_a_normal_one_and_that_is_told(make, warns, recwarn):
    x, _ = data()
    y = x[:, :3]
    said = neural.scores(of(Speaks(make), task="regression").predict([(x, y)]))["nll"].value
    assert any("answers with a" in str(one.message) and "normal distribution" in str(one.message) for one in recwarn) == warns
    truth = Speaks(make)(x)
    normal = D.Normal(truth.mean, truth.variance.sqrt())
    assert said == pytest.approx(-normal.log_prob(y).mean().item(), rel=1e-5)
