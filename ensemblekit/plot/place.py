"""Where the numbers of a snapshot are drawn: on a grid, on a mesh, or along their index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, PALE, number_of, panels
from ensemblekit.rom.cells import QUADRATIC
from ensemblekit.rom.mesh import Association, Mesh, leading
from ensemblekit.scaling import scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

    from ensemblekit.plot.style import AxesLike

COLUMN = 3.94
"""Inches, as ``style.WIDTH``."""
NAMES = ("x", "y", "z")


class Place(NamedTuple):
    """How the numbers of an item lie in space, and how to draw them."""

    parts: int
    """Components of each cell or point; 1 for scalars."""
    line: bool
    wide: float
    """Width by height of what is drawn."""
    x: np.ndarray | None
    y: np.ndarray | None
    mesh: Mesh | None
    at_cells: bool
    cells: tuple[int, ...]

    @classmethod
    def of(cls, item: tuple[int, ...], mesh: Mesh | None, name: str, grid: Sequence[ArrayLike] | None,
           association: Mapping[str, Association] | None = None) -> Place:
        if isinstance(mesh, Mesh) and grid is None:
            where = (association or {}).get(name) or mesh.where(name, item)
            cells = leading(item, mesh.count(where))
            if cells is not None:
                parts = int(np.prod(item[len(cells):]))
                span = np.ptp(_flattened(mesh.points), axis=0) if len(mesh.points) else np.ones(2)
                wide = float(span[0] / span[1]) if span[1] > 0 else 1.0
                return cls(parts, mesh.dimension == 1, max(0.2, min(wide, 8.0)), None, None, mesh, where == "cell", cells)
        axes = () if grid is None else tuple(np.asarray(a, dtype=np.float64) for a in grid)
        shape = item
        parts = 1
        vector = len(item) > 1 and item[-1] in (2, 3) and (len(item) == 3 or (len(axes) == 1) or (not axes and len(item) == 2
                                                                                                and item[0] > 3))
        if vector:
            parts, shape = item[-1], item[:-1]
        if len(shape) not in (1, 2):
            raise InputError(f"a field of shape {item} without a mesh is drawn where it is a line (nx,) or a plane (ny, nx), "
                             "each with 2 or 3 components at most; take a slice of the others")
        x = axes[0] if axes else np.arange(shape[-1], dtype=np.float64)
        y = None if len(shape) == 1 else axes[1] if len(axes) > 1 else np.arange(shape[0], dtype=np.float64)
        if x.shape != (shape[-1],) or (y is not None and y.shape != (shape[0],)):
            raise InputError(f"grid is (x, y) of {shape[-1]} columns and {shape[0]} rows; got {[a.shape for a in axes]}")
        wide = 2.0 if y is None else float(np.ptp(x) / max(np.ptp(y), 1e-300))
        return cls(parts, y is None, max(0.2, min(wide, 8.0)), x, y, None, False, shape)

    def component(self, values: np.ndarray, k: int) -> np.ndarray:
        """One component, of the shape of the cells."""
        return values.reshape(*self.cells, self.parts)[..., k]

    def draw(self, ax: Axes, values: np.ndarray, *, signed: bool = False, limits: tuple[float, float] | None = None,
             unit: str = "", bar: bool = False, colours: str | None = None, ticks: tuple[list[float], list[str]] | None = None,
             bar_label: str = "") -> None:
        """A scalar on its cells. signed: colours about zero."""
        if self.line:
            self._line(ax, values)
            return
        values = np.asarray(values, dtype=np.float64)
        finite = values[np.isfinite(values)]
        if limits is None and signed:
            reach = float(np.quantile(np.abs(finite), 0.995)) if finite.size else 1.0
            limits = (-reach or -1.0, reach or 1.0)
        elif limits is None:
            limits = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if limits[0] == limits[1]:
            limits = (limits[0] - 0.5, limits[1] + 0.5)
        how = {"cmap": colours or ("RdBu_r" if signed else "viridis"), "clim": limits}
        shown = (self._plane(ax, values, how) if self.mesh is None else
                 _on_mesh(ax, self.mesh, values.ravel(), self.at_cells, how))
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
        if bar:
            colorbar = ax.figure.colorbar(shown, ax=ax, location="bottom" if self.wide > 1.2 else "right", pad=0.02, aspect=35,
                                          shrink=0.9)
            colorbar.outline.set_visible(False)
            colorbar.ax.tick_params(labelsize=6.5)
            if ticks is not None:
                colorbar.set_ticks(ticks[0], labels=ticks[1])
            if bar_label or unit:
                colorbar.set_label(bar_label or unit, fontsize=7)

    def _line(self, ax: Axes, values: np.ndarray) -> None:
        x = self.x
        if self.mesh is not None:
            points = self.mesh.cell_centres if self.at_cells else self.mesh.points
            x = points[:, int(np.ptp(points, axis=0).argmax())]
            order = np.argsort(x)
            x, values = x[order], values.ravel()[order]
        assert x is not None
        ax.plot(x, values, color=BLUE, lw=1)
        ax.axhline(0, color=PALE, lw=0.6, zorder=0)
        ax.set_xlim(x[0], x[-1])

    def _plane(self, ax: Axes, values: np.ndarray, how: dict[str, Any]) -> ScalarMappable:
        assert self.x is not None
        assert self.y is not None
        even = all(len(a) < 3 or np.allclose(np.diff(a), a[1] - a[0], rtol=1e-3) for a in (self.x, self.y))
        low, high = how.pop("clim")
        if even:
            dx, dy = (0.5 * (a[-1] - a[0]) / max(len(a) - 1, 1) or 0.5 for a in (self.x, self.y))
            return ax.imshow(values, origin="lower", extent=(self.x[0] - dx, self.x[-1] + dx, self.y[0] - dy, self.y[-1] + dy),
                             interpolation="nearest", vmin=low, vmax=high, **how)
        return ax.pcolormesh(self.x, self.y, values, shading="nearest", vmin=low, vmax=high, rasterized=True, **how)


def _flattened(points: np.ndarray) -> np.ndarray:
    """(n, 2): points seen along the axis in which they extend least, the longer of the others to the right."""
    span = np.ptp(points, axis=0) if len(points) else np.zeros(3)
    drop = int(span.argmin())
    kept = [k for k in range(3) if k != drop]
    return points[:, kept]


def _on_mesh(ax: Axes, mesh: Mesh, values: np.ndarray, at_cells: bool, how: dict[str, Any]) -> ScalarMappable:
    """Cells as polygons, points by triangles; of a solid mesh the layer of cells in the middle of its shortest extent."""
    from matplotlib.collections import PolyCollection
    from matplotlib.tri import Triangulation

    low, high = how.pop("clim")
    if mesh.dimension == 2:
        flat = _flattened(mesh.points)
        corners = [QUADRATIC.get(int(kind), int(kind)) for kind in mesh.types]
        starts, stops = mesh.offsets[:-1], mesh.offsets[1:]
        shapes = {5: 3, 9: 4, 8: 4}
        rings = []
        for kind, a, b in zip(corners, starts, stops, strict=True):
            ring = mesh.connectivity[a:min(b, a + shapes.get(kind, b - a))]
            rings.append(ring[[0, 1, 3, 2]] if kind == 8 else ring)
        if at_cells:
            drawn = PolyCollection([flat[ring] for ring in rings], array=np.ma.masked_invalid(values), edgecolors="face",
                                   linewidths=0.1, rasterized=True, **how)
            drawn.set_clim(low, high)
            ax.add_collection(drawn)
            ax.set_xlim(flat[:, 0].min(), flat[:, 0].max())
            ax.set_ylim(flat[:, 1].min(), flat[:, 1].max())
            return drawn
        triangles = np.array([(ring[0], ring[k], ring[k + 1]) for ring in rings for k in range(1, len(ring) - 1)])
        held = np.isfinite(values)
        tri = Triangulation(flat[:, 0], flat[:, 1], triangles, mask=~held[triangles].all(axis=1))
        return ax.tripcolor(tri, np.where(held, values, 0), shading="gouraud", vmin=low, vmax=high, rasterized=True, **how)
    points = mesh.cell_centres if at_cells else mesh.points
    span = np.ptp(points, axis=0)
    axis = int(span.argmin())
    middle = points[:, axis].min() + 0.5 * span[axis]
    level = points[np.abs(points[:, axis] - middle).argmin(), axis]
    thick = 0.51 * max(float(np.prod(np.maximum(span, 1e-12)) / max(len(points), 1)) ** (1 / 3), 1e-9 * span.max())
    chosen = np.abs(points[:, axis] - level) <= thick
    flat = _flattened(points)[chosen]
    kept = values[chosen]
    tri = Triangulation(flat[:, 0], flat[:, 1])
    edges = flat[tri.triangles]
    longest = np.linalg.norm(edges - np.roll(edges, 1, axis=1), axis=-1).max(1)
    held = np.isfinite(kept)
    tri.set_mask((longest > 4 * np.median(longest)) | ~held[tri.triangles].all(axis=1))
    return ax.tripcolor(tri, np.where(held, kept, 0), shading="gouraud", vmin=low, vmax=high, rasterized=True, **how)


def panels_for(ax: AxesLike | None, rows: int, columns: int, place: Place, count: int, bars: int = 0) -> np.ndarray:
    """Axes (count,) of the shape of what they show, with room for so many rows of colour bars."""
    width = COLUMN * (2 if columns > 1 else 1.5 if place.line else 1.6)
    each = width / columns
    height = 1.25 if place.line else min(each / place.wide, 6.0) + 0.28
    below = 0.5 * bars if not place.line and place.wide > 1.2 else 0.0
    if number_of(ax) == count:        # as many as are needed, one of them perhaps
        rows, columns = count, 1
    axes = panels(ax, rows, columns, (width, min(rows * height + below + 0.1, 11.0))).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    return axes[:count]


def component_of(place: Place, values: np.ndarray, component: int | None) -> int:
    if component is None:
        divided, _ = scaled(np.asarray(values))
        energy = np.nansum(np.square(divided.reshape(len(values), -1, place.parts)), axis=(0, 1))
        return int(energy.argmax())
    if not 0 <= component < place.parts:
        raise InputError(f"component is 0 to {place.parts - 1} here; got {component!r}")
    return component


def component_name(name: str, place: Place, component: int) -> str:
    if place.parts == 1:
        return name
    return f"{name}, {NAMES[component]}" if place.parts <= 3 else f"{name} [{component}]"
