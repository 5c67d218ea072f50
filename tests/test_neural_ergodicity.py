"""Whether one training stands for many: on trainings whose memory is known, and from a real recorder."""

import numpy as np
import pytest
import torch

import ensemblekit as ek
from ensemblekit import neural
from ensemblekit.averaging.function_space import function_space
from ensemblekit.errors import InputError, StatisticsError
from ensemblekit.neural.saved import SavedPredictions


def trainings(seed, r, m, own, phi, n=300, classes=3):
    """(r, m, n, classes) probabilities: logits with a part that stays with a training, and one that forgets."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    e = np.empty((r, m, n, classes))
    e[:, 0] = rng.standard_normal((r, n, classes))
    for t in range(1, m):
        e[:, t] = phi * e[:, t - 1] + np.sqrt(1 - phi**2) * rng.standard_normal((r, n, classes))
    z = np.sqrt(own) * rng.standard_normal((r, 1, n, classes)) + np.sqrt(1 - own) * e
    z[..., np.arange(n), labels] += 2
    p = np.exp(z)
    return p / p.sum(3, keepdims=True), labels


def test_runs_that_keep_their_start_and_runs_that_forget():
    kept, y = trainings(0, 4, 5, 0.6, 0.0)
    ergodicity = neural.training_ergodicity(kept, target=y, space="logit")
    assert ergodicity.verdict == "not ergodic"
    assert ergodicity.members == pytest.approx(1 / (0.6 + 0.4 / 5), rel=0.05)
    assert ergodicity.memory == pytest.approx(0.6, abs=0.05)
    assert "the mean over 5 snapshots of one run varies as that of" in str(ergodicity)
    assert "of what a run began with is still there at the other end" in str(ergodicity)
    free, y = trainings(0, 5, 6, 0.0, 0.0, n=1000)
    assert neural.training_ergodicity(free, target=y, space="logit").verdict == "ergodic within error"


def test_the_scatter_is_that_of_probabilities_or_of_centered_logarithms():
    p, y = trainings(1, 3, 4, 0.3, 0.3, n=60)
    assert neural.training_ergodicity(p, target=y).members == function_space(p).n_eff
    z = np.log(p)
    logit = neural.training_ergodicity(p, target=y, space="logit")
    assert logit.members == pytest.approx(function_space(z - z.mean(3, keepdims=True)).n_eff)


def test_scores_of_every_snapshot_and_by_the_number_pooled():
    p, y = trainings(1, 3, 4, 0.3, 0.3, n=60)
    ergodicity = neural.training_ergodicity(p, target=y)
    for r in range(3):
        for t in range(4):
            assert ergodicity.accuracy[r, t] == (p[r, t].argmax(1) == y).mean()
            assert ergodicity.nll[r, t] == pytest.approx(-np.log(p[r, t, np.arange(60), y]).mean())
            assert ergodicity.pooled_nll[r, t] == pytest.approx(-np.log(p[r, 3 - t:].mean(0)[np.arange(60), y]).mean())
    last = neural.training_ergodicity(p, target=y, last=2)
    np.testing.assert_array_equal(last.nll, ergodicity.nll[:, 2:])
    assert last.function_space.n_snapshots == 2
    assert ergodicity.to_dict()["members"] == ergodicity.members


def test_without_labels_there_is_scatter_and_a_note():
    p, _ = trainings(1, 3, 4, 0.3, 0.3, n=60)
    ergodicity = neural.training_ergodicity(p)
    assert "without labels" in str(ergodicity)
    assert np.isnan(ergodicity.nll).all()
    assert np.isfinite(ergodicity.members)


def test_snapshots_that_are_all_one_and_a_single_run():
    p, y = trainings(1, 3, 1, 0.3, 0.3, n=60)
    ergodicity = neural.training_ergodicity(p.repeat(4, axis=1), target=y)
    assert ergodicity.members == pytest.approx(1)
    assert "at most" in str(neural.training_ergodicity(trainings(1, 1, 4, 0.3, 0.3, n=60)[0], target=y))


def test_saved_predictions_maps_and_pixels_to_ignore():
    p, y = trainings(1, 3, 4, 0.3, 0.3, n=64)
    maps = np.moveaxis(p.reshape(3, 4, 4, 16, 3), 4, 3).reshape(3, 4, 4, 3, 4, 4)
    labels = y.reshape(4, 4, 4).copy()
    labels[0, 0, 0] = 255
    saved = [SavedPredictions(one, np.full(4, 0.25), labels, {}, "probability", 255) for one in maps]
    ergodicity = neural.training_ergodicity(saved)
    kept = np.arange(64) != 0
    assert ergodicity.accuracy[0, 0] == (p[0, 0].argmax(1) == y)[kept].mean()
    assert ergodicity.members == pytest.approx(function_space(p[:, :, kept]).n_eff)


@pytest.mark.parametrize(("change", "error", "words"), [
    (lambda p, y: ([p[0], p[1][:3]], y), InputError, r"run 1 has \(3, 40, 3\)"),
    (lambda p, y: ([p[0], p[1][:, :, :2] / p[1][:, :, :2].sum(2, keepdims=True)], y), InputError, "run 1 has"),
    (lambda p, y: ([SavedPredictions(p[k], np.full(4, 0.25), y if k else 2 - y, {}, "probability", None) for k in (0, 1)],
                   None),
     InputError, "the labels of run 1 differ"),
    (lambda p, y: (p[:, :1], y), StatisticsError, "two snapshots"),
    (lambda p, y: ([p[0], p[0], p[0]], y), StatisticsError, "copies"),
    (lambda p, y: (np.where(np.arange(4)[:, None, None] == 2, np.nan, p), y), InputError, "run 0: member 2 is not finite"),
    (lambda p, y: ([], y), InputError, "no runs"),
])
def test_refusals(change, error, words):
    p, y = trainings(1, 3, 4, 0.3, 0.3, n=40)
    runs, labels = change(p, y)
    with pytest.raises(error, match=words):
        neural.training_ergodicity(runs, target=labels)
    with pytest.raises(InputError, match="space is"):
        neural.training_ergodicity(p, target=y, space="weights")
    with pytest.raises(InputError, match="last is a whole number"):
        neural.training_ergodicity(p, target=y, last=9)


@pytest.mark.parametrize(("steps", "rate", "right"), [(12, 0.4, "ergodic within error"), (2, 0.02, "not ergodic")])
def test_a_recorded_training_forgets_as_theory_says(tmp_path, steps, rate, right):
    """Least squares by gradient descent with Gaussian noise: each direction is an AR(1) with φ = (1 - rate)^steps."""
    runs, captures, size = [], 6, 2000
    for k in range(4):
        generator = torch.Generator().manual_seed(k)
        model = torch.nn.Linear(size, 1, bias=False)
        with torch.no_grad():       # from the stationary state
            model.weight.copy_(rate / np.sqrt(1 - (1 - rate) ** 2) * torch.randn(1, size, generator=generator))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        schedule = neural.SWAConstantLR(optimizer, total_steps=steps * captures, n_cycles=captures, swa_lr=rate)
        with neural.Recorder(tmp_path / f"{k}.h5", model, optimizer, schedule, states=False) as recorder:
            for _ in range(steps * captures):
                model.weight.grad = model.weight.detach() + torch.randn(1, size, generator=generator)
                optimizer.step()
                recorder.step()
                schedule.step()
        with ek.open(tmp_path / f"{k}.h5") as store:
            runs.append(np.asarray(store["parameters"][:]))
    assert [len(run) for run in runs] == [captures] * 4
    space = function_space(runs)
    assert space.verdict == right
    rho = (1 - rate) ** (steps * np.arange(captures))
    assert ((space.autocorrelation_low <= rho) & (rho <= space.autocorrelation_high))[1:].mean() >= 0.8
