"""Averages of weights: equal weights to the last digit, torch's own class beside ours, SWAG's covariance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.optim import swa_utils  # noqa: E402

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError, StatisticsError  # noqa: E402

nn = torch.nn
REDUCERS = {"swag": lambda: neural.SWAG(3), "swag diagonal": lambda: neural.SWAG(0), "pairs": neural.Compensated}


def numbers(result) -> list[np.ndarray]:
    if isinstance(result, neural.Posterior):
        return [np.asarray(result.mean), np.asarray(result.variance), np.asarray(result.deviations)]
    return [np.asarray(result)]


@pytest.mark.parametrize("name", REDUCERS)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_every_cut_gives_the_same(name, kind):
    rng = np.random.default_rng(1)
    x = rng.normal(5, 1, (11, 6)).astype(np.float32)
    w = rng.integers(0, 3, 11).astype(float)
    for weights in (None, w):
        whole = REDUCERS[name]()
        whole.update(x, 0, weights)
        wanted = numbers(whole.result())
        for cuts in ([0, 4, 11], [0, 0, 1, 9, 11, 11], [0, 10, 11]):
            total = REDUCERS[name]()
            for a, b in itertools.pairwise(cuts):
                part = total.empty()
                part.update(x[a:b] if kind == "numpy" else torch.as_tensor(x[a:b]), a, None if weights is None else w[a:b])
                total.merge(total.restored(part.state()))
            for got, want in zip(numbers(total.result()), wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
        sides = [REDUCERS[name](), REDUCERS[name]()]
        for side, columns in zip(sides, (x[:, :2], x[:, 2:]), strict=True):
            side.update(columns, 0, weights)
        sides[0].join(sides[1])
        sides[0].reshape((2, 3))
        for got, want in zip(numbers(sides[0].result()), wanted, strict=True):
            np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-9, atol=1e-9)
    with pytest.raises(StatisticsError):
        REDUCERS[name]().result()


def test_swag_is_the_published_one():
    """By the loop of Maddox et al.: mean, mean square, and deviations from the mean that has just been updated."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(9, 4))
    mean, square, rows = np.zeros(4), np.zeros(4), []
    for n, theta in enumerate(x):
        mean = mean * n / (n + 1) + theta / (n + 1)
        square = square * n / (n + 1) + theta**2 / (n + 1)
        rows.append(theta - mean)
    moments = ek.reduce(x, neural.SWAG(5))
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(moments.variance, square - mean**2, rtol=1e-12)
    np.testing.assert_allclose(moments.deviations, rows[-5:], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("snapshots", "rank", "low_rank"), [(9, 5, True), (3, 20, True), (9, 5, False)])
def test_samples_have_swags_covariance(snapshots, rank, low_rank):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(snapshots, 3)) * [1, 2, 3] + rng.normal(size=(snapshots, 1)) * 2      # "layers" that go together
    moments = ek.reduce(x, neural.SWAG(rank))
    drawn = moments.sample(60_000, scale=0.7, low_rank=low_rank, seed=4)
    d = moments.deviations
    wanted = 0.7 * (0.5 * (np.diag(moments.variance) + d.T @ d / (len(d) - 1)) if low_rank else np.diag(moments.variance))
    assert len(d) == min(snapshots, rank)                       # K - 1 with the number collected
    error = np.sqrt((wanted**2 + np.outer(np.diag(wanted), np.diag(wanted))) / 60_000)
    assert (abs(np.cov(drawn.T) - wanted) < 5 * error).all()    # five standard errors of a covariance
    assert (abs(drawn.mean(0) - moments.mean) < 5 * np.sqrt(np.diag(wanted) / 60_000)).all()
    np.testing.assert_array_equal(moments.sample(2, scale=0), [moments.mean] * 2)
    np.testing.assert_array_equal(moments.sample(3, seed=1), moments.sample(3, seed=1))


def test_pairs_of_float32_carry_twice_the_digits():
    x = (1 + np.random.default_rng(5).normal(size=(2000, 50)) * 1e-3).astype(np.float32)
    exact = x.astype(np.float64).mean(0)
    mean = neural.Compensated()
    mean.update(torch.as_tensor(x), 0)
    assert mean.high.dtype == torch.float32
    ours = abs(mean.result().numpy() - exact).max()
    plain = x[0].copy()
    for k, row in enumerate(x[1:], 2):
        plain += (row - plain) / np.float32(k)
    assert ours < 1e-12
    assert abs(plain - exact).max() > 100 * ours        # what is mended is there to be seen
    fading = neural.Compensated(decay=0.9)
    fading.update(x, 0)
    np.testing.assert_allclose(fading.result(), ek.reduce(x, ek.Exponential(0.9, start="first")), rtol=1e-12)


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)


def moved(model, k):
    torch.manual_seed(100 + k)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
        for b in model.buffers():
            b.add_(k)
    return model


@pytest.mark.parametrize("options", [{}, {"use_buffers": True},
                                     {"avg_fn": lambda a, x, n: a + (x - a) / (n + 1)},
                                     {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.7)},
                                     {"multi_avg_fn": swa_utils.get_swa_multi_avg_fn()}])
def test_it_stands_in_for_torchs_class(options):
    model = net()
    ours, theirs = neural.AveragedModel(model, **options), swa_utils.AveragedModel(model, **options)
    for k in range(6):
        moved(model, k)
        ours.update_parameters(model)
        theirs.update_parameters(model)
    assert int(ours.n_averaged) == int(theirs.n_averaged) == 6
    for (name, a), b in zip(ours.module.named_parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6, msg=name)
    for (name, a), b in zip(ours.module.named_buffers(), theirs.module.buffers(), strict=True):
        if not (options.get("use_buffers") and name.endswith("tracked")):       # ours: the last; theirs: an average
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6, msg=name)
    assert int(ours.module[1].num_batches_tracked) == int(model[1].num_batches_tracked)
    x = torch.randn(5, 3)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)
    assert set(theirs.state_dict()) <= set(ours.state_dict())


def test_equal_weights_to_the_last_digit():
    model = net(dtype=torch.float64)
    ours, seen = neural.AveragedModel(model), []
    for k in range(7):
        moved(model, k)
        seen.append(nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy())
        ours.update_parameters(model)
    vector = nn.utils.parameters_to_vector(ours.module.parameters()).detach().numpy()
    np.testing.assert_allclose(vector, np.mean(seen, 0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.asarray(ours.result().variance), np.var(seen, 0, ddof=1), rtol=1e-10)


def test_bfloat16_does_not_stall():
    """A thousand steps of a thousandth: in bfloat16 each of them rounds to nothing."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    theirs = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.999))
    ours = neural.AveragedModel(model, average=ek.Exponential(0.999, start="first"))
    with torch.no_grad():
        for value in [1.0] + [2.0] * 1000:
            model.weight.fill_(value)
            ours.update_parameters(model)
            theirs.update_parameters(model)
    wanted = 2 - 0.999**1000
    assert float(ours.result()[0]) == pytest.approx(wanted, rel=1e-12)
    assert float(ours.module.weight.detach()) == pytest.approx(wanted, rel=2**-8)
    assert float(theirs.module.weight.detach()) < 1.5


def test_state_goes_on_exactly_and_torchs_is_taken_up():
    model = net()
    for average in ("swa", "ema", "lawa", neural.SWAG(3)):
        whole, first = neural.AveragedModel(model, average=average), neural.AveragedModel(model, average=average)
        later = neural.AveragedModel(model, average=average)
        for k in range(6):
            moved(model, k)
            whole.update_parameters(model)
            (first if k < 3 else later).update_parameters(model)
            if k == 2:
                later.load_state_dict(first.state_dict())
        assert int(later.n_averaged) == 6
        for a, b in zip(whole.module.parameters(), later.module.parameters(), strict=True):
            assert torch.equal(a, b)
    theirs, ours = swa_utils.AveragedModel(model), neural.AveragedModel(net(5))
    for k in range(3):
        theirs.update_parameters(moved(model, k))
    ours.load_state_dict(theirs.state_dict())
    moved(model, 9)
    ours.update_parameters(model)
    theirs.update_parameters(model)
    for a, b in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_finite_are_refused():
    model = net()
    ours = neural.AveragedModel(model)
    ours.update_parameters(model)
    before = [p.clone() for p in ours.module.parameters()]
    with torch.no_grad():
        model[2].bias[1] = float("inf")
    with pytest.raises(InputError, match=r"2\.bias is not finite"):
        ours.update_parameters(model)
    assert int(ours.n_averaged) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, ours.module.parameters(), strict=True))
    with pytest.raises(InputError, match="average"):
        neural.AveragedModel(model, average="mean")


def test_average_of_models():
    models = [net(k) for k in range(3)]
    model = neural.averaged(models)
    torch.testing.assert_close(model[0].weight.double(), torch.stack([m[0].weight.double() for m in models]).mean(0),
                               rtol=1e-6, atol=1e-8)
    with pytest.raises(InputError, match=r"0\.weight"):
        neural.averaged([net(), nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))])
    with pytest.raises(InputError, match="at least one"):
        neural.averaged([])


def test_sampled_ensembles_are_fixed():
    from ensemblekit.neural.parameters import to_vectors

    rows = [to_vectors(net(k)) for k in range(4)]
    ens = neural.Ensemble(net(), {kind: np.stack([r[kind] for r in rows]) for kind in rows[0]})
    x = torch.randn(40, 3)
    drawn = ens.sample_swag(5, [x], rank=3, seed=2)
    assert len(drawn) == 5
    whole = drawn.predict(x).probabilities
    np.testing.assert_allclose(np.concatenate([drawn.predict(x[:7]).probabilities, drawn.predict(x[7:]).probabilities]),
                               whole, rtol=1e-5)
    np.testing.assert_array_equal(ens.sample_swag(5, [x], rank=3, seed=2).predict(x).probabilities, whole)
    with torch.no_grad():
        for member in drawn.members:            # statistics of each are its own
            seen = member[0](x).double()
            torch.testing.assert_close(member[1].running_mean.double(), seen.mean(0), rtol=1e-4, atol=1e-5)


def test_the_names_of_the_field_are_reducers_of_the_core():
    rows = np.random.default_rng(5).normal(size=(7, 3))
    for kind, mean in ((neural.SWA(), rows.mean(0)), (neural.LAWA(3), rows[-3:].mean(0)),
                       (neural.EMA(0.5, start="first"), rows[0] * 0.5**6 + sum(rows[k] * 0.5**(7 - k) for k in range(1, 7)))):
        result = ek.reduce(rows, kind)
        np.testing.assert_allclose(result if isinstance(result, np.ndarray) else result.mean, mean, rtol=1e-12)
