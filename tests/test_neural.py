import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402
from ensemblekit.neural.parameters import load_vectors, to_vectors  # noqa: E402


def net(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Flatten(),
                               torch.nn.Linear(3 * 36, 4))


def rates(total, cycles, mode, lr=0.2):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=total, n_cycles=cycles, mode=mode)
    rates_of, ends = [], []
    for t in range(1, total + 1):
        rates_of.append(optimizer.param_groups[0]["lr"])
        if schedule.at_cycle_end:
            ends.append(t)
        optimizer.step()
        schedule.step()
    return np.array(rates_of), ends


@pytest.mark.parametrize(("total", "cycles"), [(100, 5), (100, 3), (7, 7), (50, 1)])
def test_paper_mode_is_equation_2(total, cycles):
    lrs, _ = rates(total, cycles, "paper")
    c = math.ceil(total / cycles)
    wanted = [0.1 * (math.cos(math.pi * ((t - 1) % c) / c) + 1) for t in range(1, total + 1)]
    np.testing.assert_allclose(lrs, wanted, rtol=0, atol=1e-12)


def test_balanced_mode_comes_down_every_time():
    lrs, ends = rates(100, 3, "balanced")
    assert ends == [33, 66, 100]
    for end in ends:
        assert lrs[end - 1] < 0.2 * 0.0025
    assert rates(100, 3, "reference")[0][33] == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(rates(100, 5, "balanced")[0], rates(100, 5, "paper")[0], atol=1e-15)


def test_schedule_goes_on_from_its_state():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.2))
    whole, _ = rates(30, 3, "balanced")
    schedule = neural.CyclicCosineLR(optimizer, total_steps=30, n_cycles=3)
    tensor = optimizer.param_groups[0]["lr"]
    for _ in range(14):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] is tensor            # filled in place, as compiled optimizers need
    assert float(tensor) == pytest.approx(whole[14], rel=1e-6)
    fresh = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)
    again = neural.CyclicCosineLR(fresh, total_steps=30, n_cycles=3)
    again.load_state_dict(schedule.state_dict())
    assert again.get_lr()[0] == pytest.approx(whole[14], rel=1e-6)


def test_vectors_there_and_back():
    one, other = net(0), net(1)
    load_vectors(other, to_vectors(one))
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert {k: v.dtype.str[1:] for k, v in to_vectors(one).items()} == {"parameters": "f4", "buffers": "f4", "counters": "i8"}


def test_update_bn_is_one_pass_over_all_samples():
    model, x = net(), torch.randn(23, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    state = torch.random.get_rng_state()
    neural.update_bn([(x[:5],), (x[5:8],), (x[8:],)], model.eval())
    seen = model[0](x).double().movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(model[1].running_mean.double(), seen.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), seen.var(0), rtol=1e-5, atol=1e-6)
    assert not model.training
    assert not model[1].training
    assert torch.equal(state, torch.random.get_rng_state())
    single = net()
    single[1].momentum = 1.0
    single.train()(x)
    torch.testing.assert_close(model[1].running_var, single[1].running_var, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="no batches"):
        neural.update_bn([], model)


def brute(p, labels, n_bins, right):
    total = 0.0
    for b in range(n_bins):
        lo, hi = b / n_bins, (b + 1) / n_bins
        rows = [i for i in range(len(p)) if (lo < p[i].max() <= hi if right else
                                             lo <= p[i].max() < hi or (hi == 1 and p[i].max() == 1))]
        if rows:
            confidence = sum(p[i].max() for i in rows) / len(rows)
            accuracy = sum(p[i].argmax() == labels[i] for i in rows) / len(rows)
            total += len(rows) / len(p) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("edges", ["right", "left"])
@pytest.mark.parametrize("n_bins", [1, 4, 10])
def test_calibration_error_by_brute_force(edges, n_bins):
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.full(3, 0.4), 60)
    p[:4] = [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25], [0.75, 0.25, 0]]       # on the edges
    labels = rng.integers(0, 3, 60)
    error = neural.calibration_error(p, labels, n_bins, edges=edges)
    assert error == pytest.approx(brute(p, labels, n_bins, edges == "right"), abs=1e-12)


def test_calibration_refuses_logits_and_strange_labels():
    with pytest.raises(InputError, match="softmax"):
        neural.calibration_error([[3.0, -1.0]], [0])
    with pytest.raises(InputError, match="labels"):
        neural.calibration_error([[0.5, 0.5]], [2])


def ensemble(n=3):
    vectors = [to_vectors(net(k)) for k in range(n)]
    return neural.Ensemble(net(9), {name: np.stack([v[name] for v in vectors]) for name in vectors[0]})


def test_ensemble_pools_probabilities_and_averages_weights():
    ens, x = ensemble(), torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    each = torch.stack([torch.softmax(net(k).eval()(x).double(), 1) for k in range(3)]).detach()
    torch.testing.assert_close(ens(x), each.mean(0).log())
    prediction = ens.predict([(x[:4], torch.zeros(4, dtype=torch.long)), (x[4:], torch.ones(2, dtype=torch.long))])
    np.testing.assert_allclose(prediction.probabilities, each.mean(0).numpy(), rtol=1e-12)
    np.testing.assert_array_equal(prediction.target, [0, 0, 0, 0, 1, 1])
    own = -(each * each.log()).sum(-1).mean(0).numpy()
    np.testing.assert_allclose(prediction.epistemic, prediction.entropy - own, atol=1e-12)
    averaged = ens.averaged_model([(x,)])
    wanted = torch.stack([net(k)[4].weight.double() for k in range(3)]).mean(0)
    torch.testing.assert_close(averaged[4].weight.double(), wanted, rtol=1e-6, atol=1e-8)
    with pytest.raises(InputError, match="batch-norm"):
        ens.averaged_model()


def test_compare_is_paired():
    rng = np.random.default_rng(6)
    p = rng.dirichlet(np.ones(4), 200)
    labels = rng.integers(0, 4, 200)
    nothing = np.zeros(200)
    a = neural.Prediction(p, labels, nothing, nothing)
    b = neural.Prediction(0.9 * p + 0.025, labels, nothing, nothing)
    scores = neural.compare(a, b)
    difference = -np.log(p[np.arange(200), labels]) + np.log(0.9 * p[np.arange(200), labels] + 0.025)
    assert scores["nll"].value == pytest.approx(difference.mean(), rel=1e-10)
    assert scores["nll"].stderr == pytest.approx(difference.std(ddof=1) / np.sqrt(200), rel=1e-10)
    assert scores["accuracy"].value == 0
    assert not scores["accuracy"].significant
    assert scores["nll"].stderr < neural.scores(a)["nll"].stderr


def test_recorder_stores_each_cycles_end_and_an_ensemble_comes_back(tmp_path):
    import ensemblekit as ek

    model, seen = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=10, n_cycles=3)
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(8))
    with neural.Recorder(tmp_path / "weights.h5", model, optimizer, schedule) as rec:
        for _ in range(10):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            if rec.step():
                seen.append(to_vectors(model)["parameters"])
            schedule.step()
        assert rec.snapshot_steps == [3, 6, 10]
    store = ek.open(tmp_path / "weights.h5")
    np.testing.assert_array_equal(store["parameters"][:], seen)
    ens = neural.Ensemble.from_store(tmp_path / "weights.h5", net(5))
    assert len(ens) == 3
    for a, b in zip(ens.member(-1).state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(InputError, match=r"0\.weight"):
        neural.Ensemble.from_store(tmp_path / "weights.h5", other)
