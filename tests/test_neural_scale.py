"""Weights and answers of any size: what grows with them comes times the power, what does not has the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.neural.parameters import to_vectors  # noqa: E402
from ensemblekit.scaling import ldexp  # noqa: E402

POWERS = (-960, -520, 600)
RNG = np.random.default_rng(7)
ROWS = RNG.standard_normal((5, 8))
X, NOISE = torch.as_tensor(RNG.standard_normal((40, 3))), RNG.standard_normal((40, 2))
SHARES = np.array([0.2, 1.0, 0.5, 0.7, 0.1])


def line() -> torch.nn.Module:
    return torch.nn.Linear(3, 2).double()


def ensemble(power: int = 0, **how: Any) -> neural.Ensemble:
    return neural.Ensemble(line(), ldexp(ROWS, power), task="regression", **how)


def data(power: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    target = X @ torch.as_tensor(ROWS.mean(0)[:6].reshape(2, 3).T) + torch.as_tensor(NOISE)
    return [(X[:30], ldexp(target[:30], power)), (X[30:], ldexp(target[30:], power))]


def same(got: Any, wanted: Any, degree: int, power: int) -> None:
    wanted = ldexp(np.asarray(wanted), degree * power) if degree else np.asarray(wanted)
    tiny = np.abs(wanted) < 1e-300      # bits are lost in the answer itself
    np.testing.assert_array_equal(np.where(tiny, 0, got), np.where(tiny, 0, wanted))


@pytest.mark.parametrize("weights", [None, SHARES], ids=["alike", "weights"])
@pytest.mark.parametrize("power", POWERS)
def test_predictions_of_numbers_and_their_scores(power: int, weights: Any) -> None:
    plain, got = (ensemble(p, weights=weights).predict(data(p), path="sequential") for p in (0, power))
    same(got.mean, plain.mean, 1, power)
    np.testing.assert_allclose(ldexp(got.std, -power), plain.std, rtol=1e-14)
    same(got.epistemic, plain.epistemic, 2, power)
    assert f"{neural.prediction._rms(got.mean - got.target):.4g}" in repr(got)
    wanted, scores = neural.scores(plain), neural.scores(got)
    assert scores["coverage"] == wanted["coverage"]
    assert 0 < wanted["coverage"].value < 1
    assert scores["nll"].value == pytest.approx(wanted["nll"].value + power * np.log(2), rel=1e-12)
    assert scores["nll"].stderr == pytest.approx(wanted["nll"].stderr, rel=1e-12)
    same(scores["mse"].value, wanted["mse"].value, 2, power)
    assert bool(scores.notes) == (abs(2 * power) > 1020) == ("note: the mean squared error" in str(scores))
    assert not wanted.notes


@pytest.mark.parametrize("power", POWERS)
def test_differences_of_scores(power: int) -> None:
    def compared(p: int) -> neural.Scores:
        together = ensemble(p).predict(data(p), path="sequential")
        return neural.compare(together, neural.predict(ensemble(p).member(1), data(p), task="regression"))
    wanted, got = compared(0), compared(power)
    assert got["coverage"] == wanted["coverage"]
    same(got["mse"].value, wanted["mse"].value, 2, power)
    assert got["mse"].significant == wanted["mse"].significant or abs(power) > 512


@pytest.mark.parametrize("power", [-960, 0, 960])
def test_a_variance_of_nothing_excludes_every_error(power: int) -> None:
    scores = neural.scores(neural.predict(ensemble(power).member(0), data(power), task="regression"))
    assert scores["coverage"].value == 0
    assert scores["nll"].value == np.inf
    assert np.isnan(scores["nll"].stderr)


@pytest.mark.parametrize("power", POWERS)
def test_swag_of_weights(power: int) -> None:
    plain, got = ensemble().swag(3), ensemble(power).swag(3)
    same(got.mean, plain.mean, 1, power)
    same(got.deviations, plain.deviations, 1, power)
    same(got.std, plain.std, 1, power) if got.spread is None else np.testing.assert_allclose(
        ldexp(got.std, -power), plain.std, rtol=1e-14)
    np.testing.assert_allclose(ldexp(got.sample(2), -power), plain.sample(2), rtol=1e-13)
    tensors = neural.SWAG(3)
    tensors.update(torch.as_tensor(ldexp(ROWS, power)), 0)
    np.testing.assert_allclose(np.asarray(ldexp(tensors.result().std, -power)), plain.std, rtol=1e-14)


@pytest.mark.parametrize("reducer", [ek.Exponential(0.7), ek.Window(3), neural.SWAG(3), neural.Compensated()],
                         ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("scale", [1e-290, 1e290])
def test_averages_with_statistical_weights_of_any_size(reducer: Any, scale: float) -> None:
    def mean(weights: np.ndarray, cut: int = 2) -> Any:
        first, later = reducer.empty(), reducer.empty()
        first.update(ROWS[:cut] * 1e250, 0, weights[:cut])
        later.update(ROWS[cut:] * 1e250, cut, weights[cut:])
        first = first.restored(first.state())
        first.merge(later)
        return first.result()
    got, wanted = mean(SHARES * scale), mean(SHARES)
    if isinstance(wanted, neural.Posterior):
        np.testing.assert_allclose(got.deviations, wanted.deviations, rtol=1e-12)
        np.testing.assert_allclose(got.std, wanted.std, rtol=1e-12)
        got, wanted = got.mean, wanted.mean
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    assert np.isfinite(wanted).all()
    if isinstance(reducer, neural.Compensated):      # float32 of what comes
        mixed = SHARES * np.array([1, scale, 1, 1, 1])
        shares = mixed / mixed.max() / (mixed / mixed.max()).sum()
        np.testing.assert_allclose(mean(mixed), shares @ ROWS * 1e250, rtol=1e-6, atol=1e243)


def test_an_exponential_average_forgets_large_weights() -> None:
    average = ek.Exponential(0.5)
    average.update(ROWS[:1], 0, np.array([1e300]))
    for k in range(1, 2200):
        average.update(ROWS[k % 5][None], k, np.array([1e-300]))
    ordinary = ek.Exponential(0.5)
    for k in range(2100, 2200):
        ordinary.update(ROWS[k % 5][None], k, np.array([1.0]))
    np.testing.assert_allclose(average.result(), ordinary.result(), rtol=1e-12)


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("power", [-960, -100, 100, 960])
@pytest.mark.parametrize("tensors", [False, True])
def test_pairs_of_float32_hold_numbers_that_float32_does_not(power: int, decay: Any, tensors: bool) -> None:
    rows = ROWS.astype("f4").astype("f8")
    if abs(power) == 100:
        rows = rows.astype("f4")

    def average(p: int) -> np.ndarray:
        one = neural.Compensated(decay)
        for k, row in enumerate(ldexp(rows, p)):
            one.update(torch.as_tensor(row[None]) if tensors else row[None], k)
        return np.asarray(one.restored(one.state()).result())
    same(average(power), average(0), 1, power)
    later = neural.Compensated()
    later.update(ldexp(rows, power), 0)
    both = neural.Compensated()
    both.update(rows, 0)
    both.merge(later)
    np.testing.assert_allclose(both.result(), (rows.astype("f8") + ldexp(rows.astype("f8"), power)).mean(0) / 2, rtol=1e-12)


@pytest.mark.parametrize("power", POWERS)
def test_the_rise_of_a_loss_between_members(power: int) -> None:
    plain, got = ensemble().barrier(data()), ensemble(power).barrier(data(power))
    assert ensemble(power).averaged_model(data(power), barrier="ignore") is not None
    assert got.above() == plain.above()
    for name in ("value", "stderr", "average", "members", "chance_loss"):
        assert getattr(got, name) == pytest.approx(ldexp(getattr(plain, name), 2 * (power - got.exponent)), rel=1e-12)
    assert ("times 4**" in str(got)) == bool(got.exponent)
    first, second = ensemble(power).member(0), ensemble(power).member(1)
    wanted = neural.barrier.loss_barrier(ensemble().member(0), ensemble().member(1), data(), points=3, task="regression")
    barrier = neural.barrier.loss_barrier(first, second, data(power), points=3, task="regression")
    same(barrier.loss, wanted.loss, 2, power - barrier.exponent)


@pytest.mark.parametrize("power", [-960, 960])
def test_the_trajectory_of_a_report(power: int) -> None:
    from ensemblekit.neural.report import _trajectory

    (distances, plane, explained), (far, flat, share) = _trajectory(ROWS), _trajectory(ldexp(ROWS, power))
    same(far, distances, 1, power)
    same(flat, plane, 1, power)
    assert share == explained


def test_weights_of_a_model_go_through_a_store(tmp_path: Any) -> None:
    model = line()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e-290)
    vector = to_vectors(model)["parameters"]
    manifest = neural.Manifest.of(model)
    with ek.create(tmp_path / "w.h5", manifest.fields, provenance={"manifest": manifest.to_dict()}) as store:
        for k in range(3):
            store.append({"parameters": vector * (k + 1)})
    averaged = neural.Ensemble.from_store(tmp_path / "w.h5", model, task="regression").averaged_model()
    np.testing.assert_allclose(to_vectors(averaged)["parameters"], vector * 2, rtol=1e-12)
