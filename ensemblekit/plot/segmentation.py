"""Pictures of images, their labels, and what an ensemble sees in them and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, GREY, INK, ORANGE, RED, SKY, look, new_axes, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patheffects import AbstractPathEffect

    from ensemblekit.neural.phantom import Phantoms
    from ensemblekit.neural.regions import Region
    from ensemblekit.neural.segmentation import KeptCase, Segmentation
    from ensemblekit.plot.style import AxesLike

COLUMNS = ((0.0, "no."), (0.07, "volume"), (0.24, "low to high"), (0.45, "seen by"), (0.60, "expected Dice"), (0.78, "doubt"),
           (0.88, "why"))
"""Of the table below a picture: place and heading."""
FAINT = 0.03
"""Share of the largest doubt below which nothing is hatched."""


def phantoms(result: Phantoms, image: int = 0, *, ax: Axes | None = None) -> Axes:
    """One image of a phantom (of a volume its middle slice), what the observer drew and where half of all would; the axes.

    Raises InputError for an image that is not there.
    """
    if not isinstance(image, int | np.integer) or not 0 <= image < len(result):
        raise InputError(f"image is a number from 0 to {len(result) - 1}; got {image!r}")
    ax = new_axes(ax)
    layers = [result.images[image, 0], result.labels[image], result.probability[image]]
    shown, drawn, probability = (layer[len(layer) // 2] if layer.ndim == 3 else layer for layer in layers)
    ax.imshow(shown, cmap="gray", interpolation="nearest")
    for values, color in ((drawn, RED), (probability, BLUE)):
        if values.min() < 0.5 < values.max():
            ax.contour(values, [0.5], colors=[color], linewidths=1.2)
    ax.set_xlabel("voxel")
    ax.set_ylabel("voxel")
    ax.set_title("red: one observer; blue: half of all", fontsize=9)
    return ax


def case(found: Segmentation, k: int | None = None, *, label: int | None = None, window: tuple[float, float] | None = None,
         listed: int = 4, ax: AxesLike | None = None) -> np.ndarray:
    """The picture a doctor needs of one image: what is seen, how far the members agree, where doubt lies and of which kind.

    Left the image with the pooled outline (and the label, dotted, where there is one); in the middle the outline of every
    member, a single line where they agree and a bundle where they do not; right the total doubt in nats, hatched where more
    than half of it is the members' disagreement (epistemic) and not the border's own. Boxes number the regions of highest
    doubt, which the table below tells of. Of a volume a row for the slice of each of them. The Axes: three a slice, the table.

    Arguments:
        k: number of the image, one of those that were kept; the one with most doubt by default.
        label: the class; by default that of the region with most doubt.
        window: (level, width) of grey, such as (40, 400) HU; by default all but the extreme percent.
        listed: regions in boxes and table.

    Raises InputError for an image whose maps were not kept, or a class that was not looked for.
    """
    held, label = _kept(found, k, label)
    regions = [one for one in found.of_case(held.case) if one.label == label][:listed]
    slices = [0] if held.entropy.ndim == 2 else list(dict.fromkeys(
        one.peak_slice for one in regions)) or [len(held.entropy) // 2]
    rows = len(slices)
    height, wide = held.entropy.shape[-2:]
    tall = 2.25 * min(max(height / wide, 0.4), 2.0)
    table_height = 0.42 + 0.17 * max(len(regions), 1)
    places = panels(ax, rows + 1, 1, (7.2, rows * (tall + 0.28) + table_height),
                    height_ratios=[*[tall] * rows, table_height])[:, 0]
    drawn: list[Axes] = []
    for place, at in zip(places[:-1], slices, strict=True):
        row = panels(place, 1, 3, (7.2, tall))[0]
        _row(row, held, found.classes.index(label), label, at, regions, window)
        drawn += list(row)
    _table(places[-1], found, held, label, regions)
    answer = np.empty(len(drawn) + 1, dtype=object)
    answer[:] = [*drawn, places[-1]]
    return answer


def overview(found: Segmentation, *, ax: AxesLike | None = None) -> np.ndarray:
    """Reliability over all pixels, expected against true Dice of images, and risk against coverage of regions; three Axes.

    Without labels: doubt of the regions, volumes with the members' range, and doubt by the members that see a region.
    """
    axes = panels(ax, 1, 3, (7.2, 2.5))[0]
    if found.reliability is None:
        _unlabelled(axes, found)
        return axes
    left, middle, right = axes
    full = found.reliability.counts > 0
    left.plot([0, 1], [0, 1], color=INK, lw=0.7, ls=(0, (4, 3)))
    left.fill_between(found.reliability.confidence[full], found.reliability.low[full], found.reliability.high[full], color=BLUE,
                      alpha=0.2, lw=0)
    left.plot(found.reliability.confidence[full], found.reliability.accuracy[full], "o-", color=BLUE, ms=2.6, lw=0.9)
    left.set(xlabel="confidence of pixels", ylabel="share right", xlim=(-0.02, 1.02))
    middle.plot([0, 1], [0, 1], color=INK, lw=0.7, ls=(0, (4, 3)))
    for marker, color, label in zip("os^Dv*", (BLUE, RED, ORANGE, SKY, GREY, INK), found.classes, strict=False):
        rows = [one for one in found.cases if one.label == label and np.isfinite(one.dice)]
        middle.plot([one.expected_dice for one in rows], [one.dice for one in rows], marker, color=color, ms=3, mec="none",
                    alpha=0.7, label=f"class {label}")
    middle.set(xlabel="expected Dice", ylabel="true Dice", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    if len(found.classes) > 1:
        middle.legend(frameon=False, fontsize=6)
    if found.detection is None:
        right.text(0.5, 0.5, "fewer than two images\nhave regions", ha="center", va="center", transform=right.transAxes,
                   fontsize=7, color=GREY)
    else:
        coverage, risk = found.detection["doubt"].curve
        right.plot(coverage, risk, color=BLUE, label="by doubt")
        right.axhline(found.detection.error, color=GREY, lw=0.8, ls=(0, (4, 3)), label="by chance")
        right.legend(frameon=False, fontsize=6, loc="upper left")
        right.set_ylim(0, max(1.25 * float(risk.max()), 0.05))
    right.set(xlabel="share of regions kept, surest first", ylabel="wrong among them", xlim=(0, 1))
    for one, title in zip(axes, ("all pixels", "images", "regions"), strict=True):
        one.set_title(title, fontsize=8)
    return axes


def _unlabelled(axes: Sequence[Axes], found: Segmentation) -> None:
    left, middle, right = axes
    doubt = np.array([one.doubt for one in found.regions])
    left.hist(doubt, bins=np.linspace(0, 1, 21).tolist(), color=BLUE)
    left.set(xlabel="doubt", ylabel="regions", xlim=(0, 1))
    order = sorted(found.cases, key=lambda one: one.volume)
    for at, one in enumerate(order):
        middle.plot([at, at], [one.volume_low, one.volume_high], color=SKY, lw=1)
    middle.plot([one.volume for one in order], "o", color=BLUE, ms=2.5)
    middle.locator_params(axis="x", integer=True)
    middle.set(xlabel="images, by volume", ylabel=f"volume ({found.unit})")
    right.plot([one.sighted for one in found.regions], doubt, "o", color=BLUE, ms=3, alpha=0.6, mec="none")
    right.set(xlabel="members that see it", ylabel="doubt", ylim=(0, 1))


def _kept(found: Segmentation, k: int | None, label: int | None) -> tuple[KeptCase, int]:
    if not found.kept:
        raise InputError("no maps were kept: segment(..., keep=8)")
    held = found.kept[0] if k is None else next((one for one in found.kept if one.case == k), None)
    if held is None:
        numbers = ", ".join(str(one.case) for one in found.kept)
        raise InputError(f"the maps of image {k} were not kept; there are those of {numbers}. segment(..., keep={found.n}) "
                         "keeps all")
    if label is None:
        label = next((one.label for one in found.of_case(held.case)), found.classes[0])
    if label not in found.classes:
        raise InputError(f"regions were looked for of classes {', '.join(map(str, found.classes))}; got {label!r}")
    return held, label


def _row(axes: Sequence[Axes], held: KeptCase, c: int, label: int, at: int, regions: Sequence[Region],
         window: tuple[float, float] | None) -> None:
    """Three panels of one slice."""
    flat = held.entropy.ndim == 2

    def layer(values: np.ndarray) -> np.ndarray:
        return values if flat else values[at]

    behind = held.probabilities[c] if held.image is None else held.image
    low, high = (window[0] - window[1] / 2, window[0] + window[1] / 2) if window else np.percentile(behind, [1, 99])
    aspect = 1.0 if held.spacing is None else held.spacing[-2] / held.spacing[-1]
    for ax in axes:
        ax.imshow(layer(behind), cmap="gray", vmin=low, vmax=max(high, low + 1e-9), aspect=aspect, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    left, middle, right = axes
    _outline(left, layer(held.choice) == label, ORANGE, 1.3, "solid")
    if held.target is not None:
        _outline(left, layer(held.target) == label, "white", 1.0, "dotted")
    for mask in held.masks(label):
        _outline(middle, layer(mask), SKY, 0.7, "solid")
    entropy = layer(held.entropy)
    most = max(float(held.entropy.max()), 1e-6)
    shown = right.imshow(entropy, cmap="inferno", vmin=0, vmax=most, aspect=aspect, interpolation="nearest",
                         alpha=np.clip(1.6 * entropy / most, 0, 0.95))
    differ = (layer(held.epistemic) > 0.5 * entropy) & (entropy > FAINT * most)
    if differ.any():
        with look():
            import matplotlib

            with matplotlib.rc_context({"hatch.linewidth": 0.7, "hatch.color": "white"}):
                right.contourf(differ.astype(float), [0.5, 1.5], hatches=["//////"], colors="none")
    bar = right.figure.colorbar(shown, ax=right, fraction=0.046, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.set_label("total doubt (nats)", fontsize=7)
    bar.ax.tick_params(labelsize=6)
    place = "" if flat else f", slice {at}"
    dotted = "" if held.target is None else " (label dotted)"
    left.set_title(f"image {held.case}{place}: pooled outline{dotted}", fontsize=7)
    middle.set_title(f"outlines of {len(held.bits[str(label)])} members", fontsize=7)
    right.set_title("doubt (hatched: the members differ)", fontsize=7)
    for ax in (left, right):
        _boxes(ax, regions, flat, at)


def _boxes(ax: Axes, regions: Sequence[Region], flat: bool, at: int) -> None:
    from matplotlib.patches import Rectangle

    for one in regions:
        if not flat and not one.box[0][0] <= at < one.box[0][1]:
            continue
        (top, bottom), (start, stop) = one.box[-2:]
        ax.add_patch(Rectangle((start - 1.5, top - 1.5), stop - start + 2, bottom - top + 2, fill=False, ec="white", lw=0.7,
                               path_effects=_edged(1.5)))
        ax.text(start - 1.5, top - 1.8, str(one.number), color="white", fontsize=7, fontweight="bold", va="bottom", ha="left",
                clip_on=True, path_effects=_edged(1.5))


def _edged(width: float) -> list[AbstractPathEffect]:
    """A dark edge, so that a light line is seen on light grey too."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground=INK, alpha=0.7)]


def _outline(ax: Axes, mask: np.ndarray, color: str, width: float, style: str) -> None:
    padded = np.pad(mask.astype(float), 1)          # a mask at the border has an outline too
    if padded.max() > 0:
        n, m = mask.shape
        ax.contour(np.arange(-1, m + 1), np.arange(-1, n + 1), padded, [0.5], colors=[color], linewidths=width,
                   linestyles=style).set_path_effects(_edged(width + 0.9))
        ax.set_xlim(-0.5, m - 0.5)
        ax.set_ylim(n - 0.5, -0.5)


def _table(ax: Axes, found: Segmentation, held: KeptCase, label: int, regions: Sequence[Region]) -> None:
    """A line a region: number, volume, members that see it, expected Dice, doubt, and of which kind."""
    ax.set_axis_off()
    rows = [[name if name != "volume" else f"volume ({found.unit})" for _, name in COLUMNS]]
    for one in regions:
        kind = "members differ" if one.epistemic > 0.5 * one.entropy else "border unclear"
        rows.append([str(one.number), f"{one.volume:.3g}", f"{one.volume_low:.3g} to {one.volume_high:.3g}",
                     f"{one.sighted} of {found.n_members}", f"{one.expected_dice:.2f}" if one.in_pool else "no mask",
                     f"{one.doubt:.2f}", kind])
    for line, cells in enumerate(rows):
        y = 1 - (line + 0.5) / max(len(rows), 2)
        for (x, _), cell in zip(COLUMNS, cells, strict=True):
            ax.text(x, y, cell, transform=ax.transAxes, fontsize=7, va="center", color=GREY if not line else INK)
    if not regions:
        ax.text(0, 0.3, f"no region of class {label} in image {held.case}", transform=ax.transAxes, fontsize=7)


__all__ = ["case", "overview", "phantoms"]
