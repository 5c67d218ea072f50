"""Corruptions: as strong as they say, the same bits in batches of any size, and worse with severity."""

import inspect
import itertools

import numpy as np
import pytest
import torch

from ensemblekit.errors import InputError
from ensemblekit.neural import corruptions

EVERY = [*corruptions.IMAGES.items(), *((f"CT {name}", f) for name, f in corruptions.CT.items()),
         *((f"table {name}", f) for name, f in corruptions.TABLE.items())]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=6, channels=3, side=16, seed=0):
    """(n, channels, side, side) smooth images in [0, 1]."""
    coarse = torch.rand(n, channels, 4, 4, generator=seeded(seed))
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear").clamp(0, 1)


def given(name, n=6):
    if name.startswith("table"):
        return torch.randn(n, 5, generator=seeded(1))
    return 200 * pictures(n, 1) - 100 if name.startswith("CT") else pictures(n)


@pytest.mark.parametrize(("name", "corrupt"), EVERY)
def test_an_item_gets_the_same_bits_in_batches_of_any_size(name, corrupt):
    x = given(name)
    for severity in (1, 5):
        whole = corrupt(x, severity, seeded())
        generator = seeded()
        parts = torch.cat([corrupt(part, severity, generator) for part in x.split([1, 3, 2])])
        assert torch.equal(whole, parts)
        assert whole.shape == x.shape
        assert whole.dtype == x.dtype
        assert not torch.equal(whole, x)
        if name in corruptions.IMAGES:
            assert 0 <= whole.min() <= whole.max() <= 1


@pytest.mark.parametrize(("name", "levels"), [("gaussian_noise", (0.04, 0.06, 0.08, 0.09, 0.10)),
                                              ("speckle_noise", (0.03, 0.05, 0.06, 0.08, 0.10)),
                                              ("shot_noise", tuple(np.sqrt(0.5 / k) for k in (500, 250, 100, 75, 50)))])
def test_noise_is_as_strong_as_it_says(name, levels):
    grey = torch.full((20, 3, 64, 64), 0.5)
    for severity, level in enumerate(levels, 1):
        noise = corruptions.IMAGES[name](grey, severity, seeded()) - grey
        assert float(noise.std()) == pytest.approx(level, rel=0.01)
        assert abs(float(noise.mean())) < 1e-3


def test_impulses_change_the_share_of_values_they_say():
    grey = torch.full((40, 3, 64, 64), 0.5)
    for severity, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
        x = corruptions.impulse_noise(grey, severity, seeded())
        error = np.sqrt(share / grey.numel())
        assert abs(float((x != grey).float().mean()) - share) < 4 * error
        assert abs(float((x == 1).float().mean()) - share / 2) < 4 * error


def test_contrast_keeps_every_channels_mean_and_brightness_hue_and_saturation():
    x = 0.4 + 0.2 * pictures()
    for severity, share in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1):
        flat = corruptions.contrast(x, severity, seeded())
        torch.testing.assert_close(flat.mean((2, 3)), x.mean((2, 3)), atol=1e-6, rtol=0)
        torch.testing.assert_close(flat.std((2, 3)), share * x.std((2, 3)))
    bright = corruptions.brightness(x, 2, seeded())
    torch.testing.assert_close(bright.amax(1), x.amax(1) + 0.1)
    torch.testing.assert_close(bright / bright.amax(1, keepdim=True), x / x.amax(1, keepdim=True))
    torch.testing.assert_close(corruptions.brightness(torch.zeros(1, 1, 8, 8), 5, seeded()), torch.full((1, 1, 8, 8), 0.3))
    grey = x[:, :1].expand_as(x)
    torch.testing.assert_close(corruptions.saturate(grey, 5, seeded()), grey)
    pale = corruptions.saturate(x, 1, seeded())
    torch.testing.assert_close(pale.amax(1) - pale.amin(1), 0.3 * (x.amax(1) - x.amin(1)))


def test_blurs_of_a_point_are_their_kernels():
    point = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    point[0, 0, 16, 16] = 1
    at = torch.arange(-16, 17, dtype=torch.float64)
    gauss = torch.exp(-0.5 * at**2)
    gauss /= gauss.sum()
    blurred = corruptions.gaussian_blur(point, 5, seeded())[0, 0]
    torch.testing.assert_close(blurred, torch.outer(gauss, gauss), atol=1e-4, rtol=0)
    disc = corruptions.defocus_blur(point, 5, seeded())[0, 0]
    assert (disc > 1e-3).sum() == 9                                 # radius 1.5
    assert float(disc.sum()) == pytest.approx(1)
    trail = corruptions.motion_blur(point, 3, seeded())[0, 0]
    rows, columns = torch.nonzero(trail > 1e-9, as_tuple=True)
    assert float(trail.sum()) == pytest.approx(1)
    assert columns.min() == 16                                      # one way, at most 45 degrees up or down
    assert (abs(rows - 16) <= columns - 16 + 1).all()
    assert len(columns.unique()) >= 5
    assert not torch.equal(*(corruptions.motion_blur(point, 3, seeded(k)) for k in (0, 1)))


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur",
                                  "defocus_blur", "zoom_blur", "fog", "brightness", "contrast", "pixelate"])
def test_what_changes_grows_with_severity(name):
    x = pictures(24, side=32)
    x = 0.1 + 0.3 * (x > 0.5).float() + 0.1 * x + 0.3 * torch.rand(x.shape, generator=seeded(1))
    changed = [float(((corruptions.IMAGES[name](x, k, seeded()) - x) ** 2).mean()) for k in corruptions.SEVERITIES]
    assert all(a < b for a, b in itertools.pairwise(changed)), changed


def test_ct_is_corrupted_in_hounsfield_units_in_two_and_three_dimensions():
    for shape in ((40, 1, 48, 48), (8, 1, 16, 32, 32)):
        flat = torch.full(shape, 60.0)
        for severity, level in enumerate((5, 10, 15, 20, 30), 1):
            noise = corruptions.CT["noise"](flat, severity, seeded()) - 60
            assert float(noise.std()) == pytest.approx(level, rel=0.02)
            assert float(noise[..., 0].std()) == pytest.approx(level, rel=0.1)          # at the edge as inside
            assert np.corrcoef(noise[..., 1:].flatten(), noise[..., :-1].flatten())[0, 1] > 0.4
            assert set(corruptions.CT["offset"](flat, severity, seeded()).unique().tolist()) == {60 - 10 * severity,
                                                                                                60 + 10 * severity}
    assert float(corruptions.CT["gain"](torch.full((1, 1, 8, 8), -1000.0), 5, seeded()).mean()) == -1000
    assert float(corruptions.CT["gain"](torch.zeros(1, 1, 8, 8), 1, seeded()).mean()) == pytest.approx(20)
    steps = torch.arange(12.0).reshape(1, 1, 12, 1, 1).expand(1, 1, 12, 4, 4)
    thick = corruptions.CT["slices"](steps, 2, seeded())
    assert thick[0, 0, :, 0, 0].tolist() == [1, 1, 1, 4, 4, 4, 7, 7, 7, 10, 10, 10]


def test_tables_are_corrupted_in_units_of_their_spread():
    x = torch.randn(2000, 40, generator=seeded(1))
    for severity, share in enumerate((0.05, 0.1, 0.2, 0.3, 0.5), 1):
        noise, offset, gain, missing = (f(x, severity, seeded()) for f in corruptions.TABLE.values())
        assert float((noise - x).std()) == pytest.approx(share, rel=0.02)
        torch.testing.assert_close(abs(offset - x), torch.full_like(x, share), atol=1e-5, rtol=0)
        torch.testing.assert_close(gain, (1 + share) * x)
        assert float((missing == 0).float().mean()) == pytest.approx(share, abs=4 * np.sqrt(share / x.numel()))
        assert torch.equal(missing[missing != 0], x[missing != 0])


def test_the_published_files_are_read_where_they_lie(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), np.tile(np.arange(4), 5)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    corrupted = corruptions.from_folder(tmp_path)
    assert list(corrupted) == ["fog"]
    assert isinstance(corrupted["fog"].images, np.memmap)
    x = torch.cat([a for a, _ in corrupted["fog"].batches(3, size=3)])
    np.testing.assert_allclose(x.numpy(), images[8:12].transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert torch.cat([y for _, y in corrupted["fog"].batches(3, size=3)]).tolist() == [0, 1, 2, 3]
    for bad, words in ((images[:19], r"19 labels|got uint8 \(19"), (images.astype(float), "got float64")):
        np.save(tmp_path / "snow.npy", bad)
        with pytest.raises(InputError, match=words):
            corruptions.from_folder(tmp_path)
    (tmp_path / "snow.npy").unlink()
    (tmp_path / "fog.npy").unlink()
    with pytest.raises(InputError, match="holds no corruption; there are gaussian_noise"):
        corruptions.from_folder(tmp_path)
    with pytest.raises(InputError, match=r"holds no labels\.npy; unpack CIFAR-10-C"):
        corruptions.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "corrupt"), EVERY)
def test_refusals(name, corrupt):
    x = given(name, 2)
    for severity in (0, 6, 2.5, True):
        with pytest.raises(InputError, match=f"severity is a whole number from 1, the mildest, to 5; got {severity}"):
            corrupt(x, severity, seeded())
    with pytest.raises(InputError, match="tensor of floating-point numbers"):
        corrupt(x.int(), 1, seeded())
    with pytest.raises(InputError, match="tensor of floating-point numbers"):
        corrupt(x.numpy(), 1, seeded())
    if name in corruptions.IMAGES:
        with pytest.raises(InputError, match=r"images lie in \[0, 1\]; got .* Were they normalised before they were corrupted"):
            corrupt(2 * x - 1, 1, seeded())
        with pytest.raises(InputError, match=r"\(n, channels, height, width\)"):
            corrupt(x[0], 1, seeded())
    assert list(inspect.signature(corrupt).parameters) == ["x", "severity", "generator"]
