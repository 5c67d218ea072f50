"""Phantoms: the probability of a label is what observers draw, and two of them agree as geometry says."""

import numpy as np
import pytest

from ensemblekit import neural
from ensemblekit.errors import InputError


def test_a_pixel_is_labelled_by_the_share_of_observers_that_it_says():
    phantoms = neural.phantom(3, (40, 44), seed=1, mimics=0.5, radii=(3, 5))
    assert any(lesion.mimic for regions in phantoms.regions for lesion in regions)
    share = phantoms.observers(1000).mean(0)
    error = np.sqrt(phantoms.probability * (1 - phantoms.probability) / 1000)
    assert (abs(share - phantoms.probability) <= 5 * error + 1e-3).all()
    assert abs(share - phantoms.probability)[phantoms.probability > 0.02].max() > 1e-3
    assert set(np.unique(phantoms.labels)) == {0, 1}
    assert phantoms.labels.shape == phantoms.probability.shape == (3, 40, 44)


def test_the_nll_of_the_truth_is_its_entropy():
    phantoms = neural.phantom(100, (40, 40), seed=2, noise=0)
    p = np.clip(phantoms.probability, 1e-300, 1)
    entropy = -(p * np.log(p) + np.where(p < 1, (1 - p) * np.log(np.maximum(1 - p, 1e-300)), 0)).mean((1, 2))
    own = np.where(phantoms.labels == 1, p, 1 - phantoms.probability)
    gap = -np.log(np.maximum(own, 1e-300)).mean((1, 2)) - entropy
    assert abs(gap.mean()) < 3 * gap.std(ddof=1) / np.sqrt(100)
    assert entropy.mean() > 0.01


def dice(masks):
    """(m, m) of masks (m, voxels)."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    size = flat.sum(1)
    return 2 * flat @ flat.T / (size[:, None] + size)


@pytest.mark.parametrize(("d", "radius", "width", "want"), [(2, 8, 1, 0.861), (2, 10, 2, 0.781), (3, 8, 1, 0.797),
                                                            (3, 10, 2, 0.689)])
def test_two_observers_agree_as_geometry_says(d, radius, width, want):
    """E[2 a^d/(a^d + b^d)], a < b of r + w N(0, 1), whatever the stretch, which keeps volumes."""
    size = (56,) * d if d == 2 else (40,) * d
    phantoms = neural.phantom(80, size, seed=3, noise=0, lesions=(1, 1), widths=(width,), mimics=0, radii=(radius, radius))
    drawn = phantoms.observers(9)
    among, truth = [], []
    for i in range(80):
        table = dice(drawn[:, i])
        among.append(table[:8, :8][np.triu_indices(8, 1)].mean())
        truth.append(table[:8, 8].mean())
    assert np.mean(among) == pytest.approx(want, abs=0.02)
    gap = np.array(among) - truth
    assert abs(gap.mean()) < 3 * gap.std(ddof=1) / np.sqrt(80)     # members agree with the truth as with each other


def test_the_image_shows_what_is_there():
    phantoms = neural.phantom(2, (64, 64), seed=4, noise=0, lesions=(2, 2), mimics=0, widths=(0.5,))
    for image, regions in zip(phantoms.images[:, 0], phantoms.regions, strict=True):
        assert image[0, 0] == -200
        for lesion in regions:
            at = tuple(np.rint(lesion.center).astype(int))
            assert image[at] == pytest.approx(20, abs=0.5)
            assert np.linalg.det(lesion.axes) ** 2 == pytest.approx(1)
        a, b = regions
        assert np.linalg.norm(a.center - b.center) > a.radius + b.radius
        assert (abs(np.unique(image[np.abs(image) < 100]) - 40) <= 20.001).all()
    noisy = neural.phantom(20, (64, 64), seed=4, lesions=(0, 0))
    rest = noisy.images[:, 0] - neural.phantom(20, (64, 64), seed=4, lesions=(0, 0), noise=0).images[:, 0]
    assert rest.std() == pytest.approx(12, rel=0.02)
    assert np.corrcoef(rest[:, :, 1:].ravel(), rest[:, :, :-1].ravel())[0, 1] > 0.4
    bright = neural.phantom(1, (64, 64), seed=5, noise=0, lesions=(1, 1), mimics=1, widths=(0.5,))
    assert bright.images.max() == pytest.approx(105, abs=0.5)
    assert bright.probability.max() == pytest.approx(0.5, abs=0.01)


def test_the_same_seed_gives_the_same_bits_however_many():
    few, many = neural.phantom(2, (3 * 8, 16, 16), seed=6, radii=(2, 3)), neural.phantom(4, (24, 16, 16), seed=6, radii=(2, 3))
    for name in ("images", "labels", "probability"):
        assert np.array_equal(getattr(few, name), getattr(many, name)[:2])
    assert np.array_equal(few.observers(2), many.observers(5)[:2, :2])
    assert not np.array_equal(few.observers(1)[0], few.labels)
    assert len(few) == 2
    assert not np.array_equal(few.images, neural.phantom(2, (24, 16, 16), seed=7, radii=(2, 3)).images)


@pytest.mark.parametrize(("options", "words"), [
    ({"n": 0}, "images are a whole number"), ({"shape": (64,)}, r"\(height, width\) or"), ({"shape": (64, 4)}, "8 voxels"),
    ({"noise": -1}, "deviation in HU"), ({"lesions": (3, 1)}, "fewest, most"), ({"widths": (0,)}, "widths of borders"),
    ({"mimics": 2}, "share of lesions"), ({"radii": (0, 3)}, "smallest, largest"),
    ({"shape": (16, 16), "radii": (7, 7)}, r"1 lesions of radius 7 to 7 do not fit into the organ .* 16 x 16: take a larger"),
])
def test_refusals(options, words):
    with pytest.raises(InputError, match=words):
        neural.phantom(**{"n": 1, **options})
    with pytest.raises(InputError, match="observers are a whole number"):
        neural.phantom(1, (40, 40)).observers(0)
