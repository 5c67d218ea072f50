"""Pictures of segmented images: what they show is what was found."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402
from ensemblekit.plot import segmentation as draw  # noqa: E402


def found(shape=(32, 32), n=4, labels=True, **options):
    made = neural.phantom(n, shape, seed=2, radii=(2, 4), lesions=(1, 2))
    rng = np.random.default_rng(0)
    p = [np.clip(made.probability + 0.1 * rng.standard_normal((n, *(1,) * len(shape))), 0.01, 0.99) for _ in range(3)]
    p = np.where(made.probability < 0.02, 0.01, np.array(p))
    return neural.segment(np.stack([1 - p, p], 2), [torch.from_numpy(made.images)],
                          target=made.labels.astype(int) if labels else None, **options)


def texts(axes):
    return [text.get_text() for ax in axes for text in ax.texts]


def test_the_picture_of_an_image_numbers_its_regions():
    one = found()
    axes = draw.case(one, window=(40, 200))
    assert len(axes) == 4
    held = one.kept[0]
    regions = one.of_case(held.case)
    assert sum(isinstance(patch, Rectangle) for patch in axes[0].patches) == len(regions)
    assert axes[0].images[0].get_clim() == (-60, 140)
    assert len(axes[1].collections) == sum(mask.any() for mask in held.masks(1))       # an outline a member
    assert f"{regions[0].sighted} of 3" in texts(axes)
    assert f"{regions[0].doubt:.2f}" in texts(axes)
    assert {"members differ", "border unclear"} & set(texts(axes))
    assert f"no region of class 1 in image {held.case}" in texts(draw.case(one, listed=0))
    one.plot()[0].figure.draw_without_rendering()
    axes[0].figure.draw_without_rendering()


def test_a_volume_has_a_row_for_each_slice_and_axes_may_be_given():
    one = found((22, 24, 24), n=2, labels=False, spacing=(3, 1, 1))
    slices = {region.peak_slice for region in one.of_case(one.kept[0].case)[:2]}
    axes = draw.case(one, listed=2)
    assert len(axes) == 3 * len(slices) + 1
    assert "volume (ml)" in texts(axes)
    figure = Figure()
    given = figure.subplots(1, 2)
    assert draw.case(one, ax=given[0], listed=2)[0].figure is figure
    assert len(draw.overview(one, ax=given[1])) == 3


def test_pictures_that_cannot_be_drawn_are_refused():
    one = found(keep=1)
    other = next(k for k in range(4) if k != one.kept[0].case)
    with pytest.raises(InputError, match=rf"maps of image {other} were not kept; there are those of {one.kept[0].case}"):
        draw.case(one, other)
    with pytest.raises(InputError, match="no maps were kept"):
        draw.case(found(keep=0))
    with pytest.raises(InputError, match="classes 1; got 2"):
        draw.case(one, label=2)


def test_the_overview_shows_risk_against_coverage():
    one = found(n=6)
    axes = one.plot()
    coverage, risk = one.detection["doubt"].curve
    line = axes[2].lines[0]
    assert np.array_equal(line.get_xdata(), coverage)
    assert np.array_equal(line.get_ydata(), risk)
    expected = [case.expected_dice for case in one.cases if np.isfinite(case.dice)]
    assert np.array_equal(axes[1].lines[1].get_xdata(), expected)
