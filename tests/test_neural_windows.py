"""Sliding windows: members are blended one by one and pooled after that, whatever the size of image and batch."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError, MissingExtraError  # noqa: E402
from ensemblekit.neural.windows import images_of  # noqa: E402


@pytest.fixture
def monai():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.inferers")


def net(seed=0, classes=2, dims=2):
    torch.manual_seed(seed)
    conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[dims - 1]
    return torch.nn.Sequential(conv(1, 4, 3, padding=1), torch.nn.ReLU(), conv(4, classes, 3, padding=1)).eval()


def ensemble(window, dims=2):
    rows = [np.concatenate([p.detach().numpy().ravel() for p in net(k, dims=dims).parameters()]) for k in range(3)]
    return neural.Ensemble(net(dims=dims), np.array(rows), task="segmentation", forward=window)


def test_settings_out_of_range_are_named():
    for bad, words in (({"roi": 32}, "roi is the size"), ({"roi": (0, 8)}, "roi is the size"),
                       ({"roi": (8, 8), "overlap": 1.0}, "overlap is a share"), ({"roi": (8, 8), "mode": "hann"}, "mode is"),
                       ({"roi": (8, 8), "batch": 0}, "batch is a whole number"), ({"roi": (8,), "blend": "x"}, "blend is")):
        with pytest.raises(InputError, match=words):
            neural.SlidingWindow(**bad)


def test_images_of_batches_of_every_kind():
    x, y = torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)
    for batch in (x, (x, y), {"image": x, "label": y}, {"image": x, "spacing": torch.ones(2, 2)}, {"ct": x, "labels": y}):
        assert images_of(batch) is not None
        assert images_of(batch).shape == x.shape
    with pytest.raises(InputError, match='under "image"; this one holds a, b'):
        images_of({"a": x, "b": x})


def test_without_monai_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.inferers", None)
    with pytest.raises(MissingExtraError, match=r"ensemblekit\[segmentation\]"):
        neural.SlidingWindow((8, 8))(net(), torch.zeros(1, 1, 8, 8))


def test_one_window_is_the_network_itself_and_small_images_are_padded(monai):
    x = torch.randn(2, 1, 12, 12)
    for blend in ("logit", "probability"):
        found = neural.SlidingWindow((12, 12), blend=blend)(net(), x)
        assert torch.allclose(found.log_softmax(1), net()(x).log_softmax(1), atol=1e-5)
    assert neural.SlidingWindow((16, 16))(net(), x).shape == (2, 2, 12, 12)
    single = neural.SlidingWindow((12, 12), blend="probability")(net(classes=1), x)
    assert torch.allclose(single, net(classes=1)(x), atol=1e-4)
    with pytest.raises(InputError, match=r"roi .* is for images of 3 axes"):
        neural.SlidingWindow((8, 8, 8))(net(), x)


@pytest.mark.parametrize("dims", [2, 3])
def test_members_are_blended_before_they_are_pooled(monai, dims):
    x = torch.randn(1, 1, *(20,) * dims) * 3
    found = [ensemble(neural.SlidingWindow((8,) * dims, batch=batch), dims).predict([x]) for batch in (1, 4)]
    assert np.allclose(found[0].probabilities, found[1].probabilities, atol=1e-5)
    own = [neural.SlidingWindow((8,) * dims)(net(k, dims=dims), x).softmax(1).detach().numpy() for k in range(3)]
    assert np.allclose(found[0].probabilities, np.mean(own, 0), atol=1e-5)
    blended = ensemble(neural.SlidingWindow((8,) * dims, blend="probability"), dims).predict([x])
    assert abs(blended.probabilities - found[0].probabilities).max() > 1e-4
