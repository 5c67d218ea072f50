"""Moments and exponential averages of tensors: quick ways that must say what the slow ones do."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402


def rows(n: int, width: int = 7, dtype=np.float32):
    return (np.random.default_rng(n).normal(3, 2, (n, width))).astype(dtype)


@pytest.mark.parametrize("blocks", [[1], [1, 1, 1], [4], [1, 5, 1, 3], [2, 1]])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_blocks_of_tensors_without_weights(blocks, kind):
    """One row, and several without weights, are taken by ways of their own."""
    x = torch.as_tensor(rows(sum(blocks), 8)).to(torch.bfloat16 if kind == torch.bfloat16 else torch.float32)
    x = torch.view_as_complex(x.reshape(-1, 4, 2)) if kind == torch.complex64 else x.to(kind)
    wide = x.to(torch.complex128 if x.is_complex() else torch.float64).numpy()
    quick, weighted = ek.Moments(), ek.Moments()
    at = 0
    for n in blocks:
        kept = x[at:at + n].clone()
        quick.update(x[at:at + n], at)
        weighted.update(x[at:at + n], at, np.ones(n))
        assert torch.equal(kept, x[at:at + n])                  # what was given is left as it was
        at += n
    result, other = quick.result(), weighted.result()
    np.testing.assert_allclose(np.asarray(result.mean), wide.mean(0), rtol=1e-13)
    np.testing.assert_allclose(np.asarray(result.mean), np.asarray(other.mean), rtol=1e-13)
    if at > 1:
        spread = (abs(wide - wide.mean(0)) ** 2).sum(0) / (at - 1)
        np.testing.assert_allclose(np.asarray(result.variance), spread, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(other.variance), spread, rtol=1e-12)
    else:
        assert np.isnan(np.asarray(result.variance)).all()


def test_one_row_of_four_orders():
    x = torch.as_tensor(rows(9))
    quick = ek.Moments(order=4)
    for k in range(9):
        quick.update(x[k:k + 1], k)
    whole = ek.reduce(x.numpy(), ek.Moments(order=4))
    for name in ("mean", "variance", "skewness", "kurtosis"):
        np.testing.assert_allclose(np.asarray(getattr(quick.result(), name)), getattr(whole, name), rtol=1e-9)
    exact = x.double().numpy().mean(0)
    np.testing.assert_allclose(whole.mean, exact, rtol=1e-14)       # single precision is widened before it is subtracted
    np.testing.assert_allclose(ek.reduce(x.numpy()[:, :3].astype(np.uint8), ek.Moments(order=4)).mean,
                               x.numpy()[:, :3].astype(np.uint8).mean(0), rtol=1e-14)


@pytest.mark.parametrize("make", [ek.Moments, lambda: ek.Exponential(0.7), lambda: ek.Exponential(0.7, start="first")])
@pytest.mark.parametrize("kind", ["numpy", "float32", "float64", "bfloat16", "mixed"])
def test_a_snapshot_in_pieces_is_the_snapshot(make, kind):
    x = rows(6, 10)
    if kind in ("bfloat16", "mixed"):
        x = torch.as_tensor(x).bfloat16().float().numpy()

    def pieces(row):
        cut = [row[:4].reshape(2, 2), row[4:5].reshape(()), row[5:]]
        if kind == "numpy":
            return cut
        kinds = ("bfloat16", "float32", "float64") if kind == "mixed" else (kind,) * 3
        tensors = [torch.as_tensor(part).to(getattr(torch, name)) for part, name in zip(cut, kinds, strict=True)]
        tensors[0] = tensors[0].t().contiguous().t()                  # as in channels_last: not in the order of its memory
        return tensors

    whole, part = make(), make()
    for k, row in enumerate(x):
        whole.update(x[k:k + 1], k)
        part.add(pieces(row))
        if k == 2:                                              # what was given away does not move
            early = mean_of(part)
            before = early.copy()
        if k == 4:
            part = part.restored(part.state())
    np.testing.assert_array_equal(early, before)
    np.testing.assert_allclose(mean_of(part), mean_of(whole), rtol=1e-13)
    if isinstance(whole, ek.Moments):
        np.testing.assert_allclose(numbers(part.result().variance), whole.result().variance, rtol=1e-12)
        assert (part.result().n, part.result().sum_weights) == (6, 6.0)
    merged = make()
    merged.merge(part)
    merged.add(pieces(x[0]))
    whole.update(x[:1], 6)
    np.testing.assert_allclose(mean_of(merged), mean_of(whole), rtol=1e-13)


def test_the_mean_at_a_glance():
    x = rows(5)
    one = ek.Moments()
    with pytest.raises(ek.errors.StatisticsError):
        _ = one.mean
    one.update(x, 0)
    np.testing.assert_array_equal(one.mean, one.result().mean)
    assert np.shares_memory(one.mean, one.mean)
    assert not np.shares_memory(one.mean, one.result().mean)
    other = ek.Moments()
    other.update(x + 1j, 0)
    np.testing.assert_array_equal(other.mean, other.result().mean)


def numbers(x) -> np.ndarray:
    return x.numpy() if isinstance(x, torch.Tensor) else x


def mean_of(reducer) -> np.ndarray:
    result = reducer.result()
    return numbers(result.mean if isinstance(reducer, ek.Moments) else result)


def test_pieces_that_are_refused():
    for one in (ek.Moments(), ek.Exponential(0.5)):
        one.add([np.ones(3), np.ones(2)])
        with pytest.raises(InputError, match=r"\(5,\).*\(4,\)"):
            one.add([np.ones(3), np.ones(1)])
    with pytest.raises(InputError, match="order 2"):
        ek.Moments(order=4).add([np.ones(3)])


@pytest.mark.parametrize("name", ["moments", "exponential"])
def test_pieces_on_a_device_without_kernels(monkeypatch, name):
    """The operations that tensors on a GPU go through, on those in main memory."""
    import importlib

    module = importlib.import_module(f"ensemblekit.averaging.{name}")
    monkeypatch.setattr(module, "flat_pieces", lambda pieces, total: (
        (piece.reshape(-1).to(total.device, total.dtype), False) for piece in pieces))
    x = torch.as_tensor(rows(5, 6))
    one, whole = (ek.Moments() if name == "moments" else ek.Exponential(0.8) for _ in range(2))
    for k, row in enumerate(x):
        one.add([row[:2], row[2:].reshape(2, 2)])
        whole.update(x[k:k + 1], k)
    np.testing.assert_allclose(mean_of(one), mean_of(whole), rtol=1e-13)
    if name == "moments":
        np.testing.assert_allclose(one.result().variance.numpy(), whole.result().variance.numpy(), rtol=1e-12)
