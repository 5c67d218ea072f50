"""Figures of flow fields: modes on their grid or mesh, spectra, reconstructions, phase portraits, where to run longer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.errors import InputError
from ensemblekit.plot.style import BLUE, GREEN, GREY, INK, LOOK, ORANGE, PALE, RED, _figure, label, legend, new_axes
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.cells import QUADRATIC
from ensemblekit.rom.mesh import Mesh, leading
from ensemblekit.scaling import power_of_two, representable, scaled

COLUMN = 3.94
"""Inches, as ``style.WIDTH``."""
NAMES = ("x", "y", "z")
F = TypeVar("F", bound=Callable[..., Any])


def _styled(function: F) -> F:
    """In the house look from the first line to the last title."""
    @wraps(function)
    def drawn(*args: Any, **options: Any) -> Any:
        with _look():
            return function(*args, **options)

    return drawn        # type: ignore[return-value]


@_styled
def modes(basis: Basis, *, field: str | None = None, component: int | None = None, count: int = 6,
          grid: tuple[Any, Any] | None = None) -> Any:
    """The mean and the first modes on the grid or mesh, with energies and pairs in the titles; the Figure.

    Arguments:
        basis: of one field, or of several with `field` named.
        component: of a vector, from 0; by default the one that carries most of the modes' energy.
        count: how many modes.
        grid: (x, y), coordinates of the columns and rows of a field (ny, nx) or (ny, nx, components); (x,) of a line.
    """
    part = _part(basis, field)
    place = _Place.of(part.mean.shape, basis.mesh, field or part.name, grid)
    count = min(count, basis.rank)
    component = _component(place, part.modes[:count], component)
    columns = 1 if place.line else 4 if place.wide < 2.2 else 2
    rows = -(-(count + 1) // columns)
    figure, axes = _panels(rows, columns, place)
    axes = np.ravel(axes)
    pairs = {k: pair for pair in travelling_pairs(basis) for k in pair}
    name = _named(part.name, place, component)
    place.draw(axes[0], place.component(part.mean, component), signed=False, unit=part.unit)
    axes[0].set_title(f"mean {name}")
    for k in range(count):
        place.draw(axes[k + 1], place.component(part.modes[k], component), signed=True)
        pair = "" if k not in pairs else f", pair {pairs[k][0] + 1}–{pairs[k][1] + 1}"
        axes[k + 1].set_title(f"mode {k + 1}: {_percent(basis.energy_fraction[k])}{pair}")
    for ax in axes[count + 1:]:
        ax.set_axis_off()
    return figure


def travelling_pairs(basis: Basis) -> list[tuple[int, int]]:
    """Neighbouring modes (from 0) that make up one travelling pattern: like energies, and one coefficient is the other, later.

    Singular values within 15 %, and a correlation above 0.9 between the coefficients at some lag, of opposite sign at
    the opposite lag. Also those that stand as a pair by their energies alone (``basis.pairs``), apart from their neighbours:
    among modes of noise all are alike, and none is a pair.
    """
    s, n = basis.singular_values, basis.n
    a, _ = scaled(basis.coefficients)
    known = s if basis.spectrum is None else np.asarray(basis.spectrum)
    found = [(i, j) for i, j in basis.pairs if (i == 0 or known[i - 1] > 1.06 * known[i])
             and j + 1 < len(known) and known[j] > 1.06 * known[j + 1]]
    taken = {k for pair in found for k in pair}
    for k in range(basis.rank - 1):
        if k in taken or k + 1 in taken or s[k + 1] < 0.85 * s[k] or n < 16 or np.iscomplexobj(a):
            continue
        one, two = a[:, k] - a[:, k].mean(), a[:, k + 1] - a[:, k + 1].mean()
        lags = np.arange(1, n // 4)
        later, sooner = (np.array([x[lag:] @ y[:n - lag] / max(np.linalg.norm(x[lag:]) * np.linalg.norm(y[:n - lag]), 1e-300)
                                   for lag in lags]) for x, y in ((one, two), (two, one)))
        best = int(np.abs(later).argmax())
        if abs(later[best]) > 0.9 and later[best] * sooner[best] < 0:
            found.append((k, k + 1))
            taken |= {k, k + 1}
    return sorted(found)


@_styled
def spectrum(basis: Basis, *, ax: Any = None) -> Any:
    """Energy of each mode and what is left after it, with "error %" on the right; the axes.

    Drawn too: pairs, the threshold of Gavish and Donoho (2014) where all singular values are known, and the floor below
    which they are rounding.
    """
    ax = new_axes(ax)
    known = basis.singular_values if basis.spectrum is None else np.asarray(basis.spectrum, dtype=np.float64)
    known = known[: max(len(known), basis.rank)]
    shares = basis.shares_of(known)
    i = np.arange(1, len(known) + 1)
    shown = shares > 0
    ax.plot(i[shown], shares[shown], color=PALE, marker="o", ms=1.8, lw=0.7, zorder=1)
    k = np.arange(1, basis.rank + 1)
    ax.plot(k, basis.energy_fraction, "o", color=BLUE, ms=3, zorder=3, label="energy of a mode")
    for a, b in travelling_pairs(basis):
        ax.plot([a + 1, b + 1], basis.energy_fraction[[a, b]], color=BLUE, lw=2.2, solid_capstyle="round", zorder=2)
    left = np.maximum(basis.relative_errors**2, 1e-32)
    ax.plot(k, left, color=RED, lw=1.2, zorder=3, label="left after it")
    top = 2.0
    bottom = max(1e-18, 0.3 * min(float(shares[shown].min(initial=1.0)), float(left.min())))
    floor = float(basis.shares_of(basis.floor * known[0])) if basis.floor and len(known) else 0.0
    if floor > 0:
        bottom = max(min(bottom, floor / 10), floor / 100)
        ax.axhspan(1e-40, floor, color=GREY, alpha=0.16, lw=0, zorder=0)
        ax.annotate("rounding", (1, floor), xycoords=("axes fraction", "data"), xytext=(-3, -2),
                    textcoords="offset points", ha="right", va="top", fontsize=7, color=GREY)
    threshold = gavish_donoho_line(basis)
    if threshold is not None:
        above = int(np.count_nonzero(shares > threshold))
        ax.axhline(threshold, color=GREEN, lw=0.9, ls=(0, (4, 3)))
        ax.annotate(f"Gavish–Donoho: {above} above", (1, threshold), xycoords=("axes fraction", "data"), xytext=(-3, 2),
                    textcoords="offset points", ha="right", va="bottom", fontsize=7, color=GREEN)
    ax.set_yscale("log")
    ax.set_ylim(bottom, top)
    if len(known) > 60:
        ax.set_xscale("log")
    ax.set_xlim(0.8 if len(known) > 60 else 0.5, max(len(known), 2) + (0 if len(known) > 60 else 0.5))
    if len(known) <= 12:
        ax.set_xticks(i)
    elif len(known) > 60:
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel("mode")
    ax.set_ylabel("share of the energy")
    right = ax.secondary_yaxis("right", functions=(lambda e: 100 * np.sqrt(np.maximum(e, 1e-40)), lambda p: (p / 100) ** 2))
    right.set_ylabel("error %")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.spines["right"].set_visible(False)
    energy, error = _percent(float(basis.cumulative_energy[-1])), _percent(basis.relative_error)
    ax.set_title(f"{basis.rank} modes: {energy} of the energy, error {error}")
    legend(ax, loc="best")
    return ax


def gavish_donoho_line(basis: Basis) -> float | None:
    """Share of the energy at the optimal hard threshold for white noise of unknown strength; None where not all is known.

    τ = ω(β) median(σ), ω(β) ≈ 0.56 β³ - 0.95 β² + 1.82 β + 1.43, β the ratio of the matrix's sides (Gavish and Donoho,
    IEEE Trans. Inf. Theory 60, 5040, 2014).
    """
    if not basis.spectrum_complete or basis.spectrum is None or not basis.energy_fraction.any():
        return None
    sigma = np.asarray(basis.spectrum, dtype=np.float64)
    n, size = len(basis.coefficients), basis.mean.size
    beta = min(n, size) / max(n, size)
    sigma = sigma[:min(n - 1, size)] if np.any(basis.mean) else sigma
    tau = (0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43) * float(np.median(sigma))
    floor = basis.floor * float(sigma[0])
    return float(basis.shares_of(tau)) if tau > floor else None


@_styled
def reconstruction(basis: Basis, truth: Any, which: int | None = None, *, rank: int | None = None, field: str | None = None,
                   component: int | None = None, grid: tuple[Any, Any] | None = None) -> Any:
    """One snapshot beside its reconstruction and their difference, the first two in the same colours; the Figure.

    Arguments:
        truth: the snapshot (*item), as it was.
        which: its number, to take its stored coefficients; None projects it.
        rank: of the reconstruction; all modes by default.
    """
    used = basis if rank is None else basis.truncate(rank)
    part = _part(used, field)
    truth = np.asarray(truth)
    if truth.shape != part.mean.shape:
        raise InputError(f"the snapshot of {part.name!r} has shape {part.mean.shape}; got {truth.shape}")
    if which is None and len(basis.fields) > 1:
        raise InputError("with several fields say which snapshot it is: which=")
    coefficients = used.coefficients[which] if which is not None else used.project(truth)
    back = np.asarray(part.reconstruct(np.asarray(coefficients)))
    place = _Place.of(part.mean.shape, basis.mesh, field or part.name, grid)
    component = _component(place, part.modes, component)
    one, two = place.component(truth.astype(np.float64), component), place.component(back, component)
    stacked = place.line or place.wide >= 2.2
    figure, axes = _panels(3 if stacked else 1, 1 if stacked else 3, place, bars=1)
    axes = np.ravel(axes)
    limits = (float(np.nanmin(one)), float(np.nanmax(one)))
    name = _named(part.name, place, component)
    place.draw(axes[0], one, limits=limits, unit=part.unit)
    place.draw(axes[1], two, limits=limits, unit=part.unit)
    place.draw(axes[2], two - one, signed=True, unit=part.unit, bar=True)
    at = "" if which is None else f", snapshot {which}"
    (fluctuation, lost), _ = scaled(np.stack([truth - part.mean, truth - back]))
    norm = float(np.sqrt(np.nansum(np.abs(fluctuation) ** 2)))
    error = float(np.sqrt(np.nansum(np.abs(lost) ** 2))) / norm if norm else 0.0
    axes[0].set_title(f"truth: {name}{at}")
    axes[1].set_title(f"{used.rank} modes")
    axes[2].set_title(f"difference: {_percent(error)} of the fluctuation")
    return figure


@_styled
def snapshot_errors(basis: Basis, *, ax: Any = None) -> Any:
    """The error of each snapshot's reconstruction against time; the axes."""
    errors = basis.error_per_snapshot
    if errors is None:
        raise InputError("this basis holds no error of each snapshot; decompose again")
    ax = new_axes(ax)
    x, name = _clock(basis)
    ax.plot(x, 100 * np.asarray(errors), color=BLUE, lw=0.9)
    ax.axhline(100 * basis.relative_error, color=RED, lw=0.9, ls=(0, (4, 3)))
    ax.annotate(f"all: {_percent(basis.relative_error)}", (0.99, 100 * basis.relative_error),
                xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", ha="right", va="bottom",
                fontsize=7, color=RED)
    ax.set_ylim(0, None)
    if len(x) > 1:
        ax.set_xlim(x[0], x[-1])
    ax.set_xlabel(name)
    ax.set_ylabel("error %")
    ax.set_title(f"error of each snapshot, {basis.rank} modes")
    return ax


@_styled
def phase_portrait(basis: Basis, pair: tuple[int, int] | None = None, *, length: float | None = None,
                   speed: float | None = None) -> Any:
    """Two coefficients against each other and against time, and their power spectrum; the Figure.

    Arguments:
        pair: two modes, from 0; by default the first pair of a travelling wave, or else the first two.
        length, speed: with both the strongest frequency f is given as the Strouhal number f length / speed.
    """
    if pair is None:
        pair = next(iter(travelling_pairs(basis)), (0, 1)) if np.isrealobj(basis.coefficients) else (0, 1)
    a, b = pair
    if not (0 <= a < basis.rank and 0 <= b < basis.rank and a != b):
        raise InputError(f"pair is two different modes of 0 to {basis.rank - 1}; got {pair!r}")
    if np.iscomplexobj(basis.coefficients):
        raise InputError("a phase portrait is of real coefficients")
    one, two = basis.coefficients[:, a], basis.coefficients[:, b]
    x, name = _clock(basis)
    figure = _figure(_plain_figure(), (2 * COLUMN, 2.5))
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1.25, 1.25])
    left.plot(one, two, color=GREY, lw=0.5, alpha=0.7)
    shown = left.scatter(one, two, c=x, s=7, cmap="viridis", zorder=3, lw=0)
    figure.colorbar(shown, ax=left, location="bottom", aspect=30, pad=0.02).set_label(name, fontsize=7)
    reach = 1.08 * max(float(np.abs(one).max()), float(np.abs(two).max()))
    left.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=f"$a_{{{a + 1}}}$", ylabel=f"$a_{{{b + 1}}}$")
    middle.plot(x, one, color=BLUE, lw=0.9, label=f"$a_{{{a + 1}}}$")
    middle.plot(x, two, color=ORANGE, lw=0.9, label=f"$a_{{{b + 1}}}$")
    middle.set(xlabel=name, ylabel="coefficient")
    if len(x) > 1:
        middle.set_xlim(x[0], x[-1])
    legend(middle, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    e = power_of_two(basis.coefficients)
    frequency, power, peak = _spectrum(basis, pair)
    unit = "per snapshot" if basis.times is None else f"1/{basis.time_unit}" if basis.time_unit else "1/time"
    right.semilogy(frequency[1:], power[1:], color=INK, lw=0.9)
    right.set(xlabel=label("frequency", unit), ylabel=f"power / 4$^{{{e}}}$" if e else "power")
    if np.isfinite(peak):
        right.axvline(peak, color=RED, lw=0.9, ls=(0, (4, 3)))
        text = f"f = {peak:.4g}"
        if length is not None and speed is not None:
            text += f"\nSt = {peak * length / speed:.4f}"
        on_left = peak > 0.5 * frequency[-1]
        right.annotate(text, (peak, 0.97), xycoords=("data", "axes fraction"), xytext=(-4 if on_left else 4, 0),
                       textcoords="offset points", va="top", ha="right" if on_left else "left", fontsize=7, color=RED)
        strong = power[1:].max()
        right.set_ylim(max(power[1:].min(), 1e-9 * strong), 3 * strong)
    left.set_title(f"modes {a + 1} and {b + 1}")
    return figure


def coefficient_spectrum(basis: Basis, pair: tuple[int, int] = (0, 1)) -> tuple[np.ndarray, np.ndarray, float]:
    """(frequencies, power of both coefficients, the strongest frequency by parabola through the logarithms of its bins).

    With a Hann window; the frequency is NaN for fewer than eight snapshots or times that are not evenly spaced.

    Raises StatisticsError where a power is beyond the range of float64.
    """
    frequency, power, peak = _spectrum(basis, pair)
    return frequency, representable(power, 2 * power_of_two(basis.coefficients), "a power"), peak


def _spectrum(basis: Basis, pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """`coefficient_spectrum` with the power that of coefficients over their power of two."""
    n = basis.n
    dt = 1.0
    if basis.times is not None and n > 1:
        gaps = np.diff(basis.times)
        dt = float(gaps.mean())
        if not dt > 0 or np.abs(gaps - dt).max() > 1e-3 * dt:
            dt = math.nan
    if n < 8 or math.isnan(dt):
        return np.zeros(2), np.ones(2), math.nan
    window = np.hanning(n + 1)[:-1]
    power = np.zeros(n // 2 + 1)
    divided, _ = scaled(basis.coefficients)
    for k in pair:
        a = divided[:, k] - divided[:, k].mean()
        power += np.abs(np.fft.rfft(a * window)) ** 2
    frequency = np.fft.rfftfreq(n, dt)
    k = int(power[1:].argmax()) + 1
    shift = 0.0
    if 1 < k < len(power) - 1 and min(power[k - 1:k + 2]) > 0:
        low, mid, high = np.log(power[k - 1:k + 2])
        shift = 0.5 * (low - high) / (low - 2 * mid + high)
    return frequency, power, float((k + shift) * frequency[1])


@_styled
def average(averages: Mapping[str, Any], name: str, *, component: int | None = None,
            grid: tuple[Any, Any] | None = None) -> Any:
    """An average of a field beside half its interval; the Figure."""
    one = averages[name]
    mean, half = np.asarray(one.mean), 0.5 * (np.asarray(one.high) - np.asarray(one.low))
    place = _Place.of(mean.shape, getattr(averages, "mesh", None), name, grid, getattr(averages, "association", {}))
    component = _component(place, mean[None], component)
    stacked = place.line or place.wide >= 2.2
    figure, axes = _panels(2 if stacked else 1, 1 if stacked else 2, place, bars=2 if stacked else 1)
    axes = np.ravel(axes)
    place.draw(axes[0], place.component(mean, component), unit=one.unit, bar=True)
    place.draw(axes[1], place.component(half, component), unit=one.unit, bar=True, colours="magma")
    axes[0].set_title(_named(name, place, component))
    axes[1].set_title(f"± ({100 * one.confidence:g} % interval)")
    return figure


@_styled
def run_longer(averages: Any, name: str, *, target: float | None = None, component: int | None = None,
               grid: tuple[Any, Any] | None = None) -> Any:
    """Where to run longer: by what factor the run must grow for each cell's interval to shrink to ± target; the Figure.

    Arguments as :meth:`ensemblekit.rom.FieldAverages.run_length_factor`; of a vector the worst component by default.
    """
    one = averages[name]
    factor = averages.run_length_factor(name, target)
    place = _Place.of(factor.shape, averages.mesh, name, grid, averages.association)
    if place.parts > 1:
        factor = np.nanmax(np.where(np.isfinite(factor), factor, 0), axis=-1) if component is None else factor[..., component]
    if target is None:
        target = 0.01 * float(np.nanmax(np.abs(one.mean)))
    if place.line:
        figure, axes = _panels(1, 1, place)
        ax = np.ravel(axes)[0]
        place.draw(ax, factor)
        ax.set_yscale("log")
        ax.axhline(1, color=GREEN, lw=0.8)
    else:
        figure, axes = _panels(1, 1, place, bars=1)
        ax = np.ravel(axes)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            place.draw(ax, np.log2(np.where(factor > 0, factor, np.nan)), limits=(-3.0, 6.0), colours="RdYlBu_r", bar=True,
                       ticks=([-3, -1, 0, 1, 3, 6], ["⅛", "½", "1", "2", "8", "64"]), bar_label="times the length of this run")
    enough = float(np.mean(factor[np.isfinite(factor)] <= 1)) if np.isfinite(factor).any() else 0.0
    unknown = float(np.mean(np.asarray(one.n_eff) < ENOUGH))
    unit = f" {one.unit}" if one.unit else ""
    title = f"{name} to ± {target:.2g}{unit}: enough in {100 * enough:.0f} % of the cells"
    if enough < 1 and np.isfinite(factor).any():
        title += f"; all need {np.nanmax(factor):.2g} runs like this"
    ax.set_title(title + (f"; cannot be told in {100 * unknown:.0f} %" if unknown else ""))
    return figure


@_styled
def decay(basis: Basis, rate: Any = None, *, ax: Any = None) -> Any:
    """Singular values with the law of :func:`ensemblekit.rom.decay_rate`; the axes."""
    from ensemblekit.rom.decay import decay_rate, known_spectrum

    rate = decay_rate(basis) if rate is None else rate
    ax = new_axes(ax)
    sigma = np.asarray(known_spectrum(basis))[:max(basis.rank, rate.modes[1])]
    i = np.arange(1, len(sigma) + 1)
    ax.loglog(i, sigma, "o", ms=3, color=BLUE) if rate.kind == "algebraic" else ax.semilogy(i, sigma, "o", ms=3, color=BLUE)
    first, last = rate.modes
    j = np.linspace(first, last, 200)
    ax.plot(j, rate.singular_values(j), color=RED, lw=1)
    low, high = rate.interval
    law = "exp(−{:.3g} i)" if rate.kind == "exponential" else "i^−{:.3g}"
    ax.set_title(f"{rate.kind}: {law.format(rate.rate)}, {100 * rate.confidence:g} % CI {low:.3g} to {high:.3g}")
    ax.set_xlabel("mode i")
    ax.set_ylabel(label("singular value", ""))
    return ax


# -- where the numbers stand ----------------------------------------------------------------------------------------


class _Place(NamedTuple):
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
    def of(cls, item: tuple[int, ...], mesh: Any, name: str, grid: Any, association: Mapping[str, str] | None = None) -> _Place:
        if isinstance(mesh, Mesh) and grid is None:
            where = (association or {}).get(name) or mesh.where(name, item)
            cells = leading(item, mesh.count(where))        # type: ignore[arg-type]
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

    def draw(self, ax: Any, values: np.ndarray, *, signed: bool = False, limits: tuple[float, float] | None = None,
             unit: str = "", bar: bool = False, colours: str | None = None, ticks: Any = None, bar_label: str = "") -> None:
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
            made = ax.figure.colorbar(shown, ax=ax, location="bottom" if self.wide > 1.2 else "right", pad=0.02, aspect=35,
                                      shrink=0.9)
            made.outline.set_visible(False)
            made.ax.tick_params(labelsize=6.5)
            if ticks is not None:
                made.set_ticks(ticks[0], labels=ticks[1])
            if bar_label or unit:
                made.set_label(bar_label or unit, fontsize=7)

    def _line(self, ax: Any, values: np.ndarray) -> None:
        x = self.x
        if self.mesh is not None:
            points = self.mesh.cell_centres if self.at_cells else self.mesh.points
            x = points[:, int(np.ptp(points, axis=0).argmax())]
            order = np.argsort(x)
            x, values = x[order], values.ravel()[order]
        ax.plot(x, values, color=BLUE, lw=1)
        ax.axhline(0, color=PALE, lw=0.6, zorder=0)
        ax.set_xlim(x[0], x[-1])        # type: ignore[index]

    def _plane(self, ax: Any, values: np.ndarray, how: dict[str, Any]) -> Any:
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


def _on_mesh(ax: Any, mesh: Mesh, values: np.ndarray, at_cells: bool, how: dict[str, Any]) -> Any:
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
        made = Triangulation(flat[:, 0], flat[:, 1], triangles, mask=~held[triangles].all(axis=1))
        return ax.tripcolor(made, np.where(held, values, 0), shading="gouraud", vmin=low, vmax=high, rasterized=True, **how)
    points = mesh.cell_centres if at_cells else mesh.points
    span = np.ptp(points, axis=0)
    axis = int(span.argmin())
    middle = points[:, axis].min() + 0.5 * span[axis]
    level = points[np.abs(points[:, axis] - middle).argmin(), axis]
    thick = 0.51 * max(float(np.prod(np.maximum(span, 1e-12)) / max(len(points), 1)) ** (1 / 3), 1e-9 * span.max())
    chosen = np.abs(points[:, axis] - level) <= thick
    flat = _flattened(points)[chosen]
    kept = values[chosen]
    made = Triangulation(flat[:, 0], flat[:, 1])
    edges = flat[made.triangles]
    longest = np.linalg.norm(edges - np.roll(edges, 1, axis=1), axis=-1).max(1)
    held = np.isfinite(kept)
    made.set_mask((longest > 4 * np.median(longest)) | ~held[made.triangles].all(axis=1))
    return ax.tripcolor(made, np.where(held, kept, 0), shading="gouraud", vmin=low, vmax=high, rasterized=True, **how)


def _panels(rows: int, columns: int, place: _Place, bars: int = 0) -> tuple[Any, Any]:
    """A figure whose panels have the shape of what they show, with room for so many rows of colour bars."""
    width = COLUMN * (2 if columns > 1 else 1.5 if place.line else 1.6)
    each = width / columns
    height = 1.25 if place.line else min(each / place.wide, 6.0) + 0.28
    below = 0.5 * bars if not place.line and place.wide > 1.2 else 0.0
    figure = _figure(_plain_figure(), (width, min(rows * height + below + 0.1, 11.0)))
    return figure, figure.subplots(rows, columns, squeeze=False)


def _look() -> Any:
    from ensemblekit.errors import MissingExtraError

    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    return matplotlib.rc_context(LOOK)


def _plain_figure() -> Any:
    from matplotlib.figure import Figure

    return Figure


def _part(basis: Basis, field: str | None) -> Any:
    if field is not None:
        return basis[field]
    if len(basis.fields) > 1:
        raise InputError(f"this basis holds the fields {sorted(basis.fields)}; name one: field=")
    return next(basis.parts())


def _component(place: _Place, values: np.ndarray, component: int | None) -> int:
    if component is None:
        divided, _ = scaled(np.asarray(values))
        energy = np.nansum(np.square(divided.reshape(len(values), -1, place.parts)), axis=(0, 1))
        return int(energy.argmax())
    if not 0 <= component < place.parts:
        raise InputError(f"component is 0 to {place.parts - 1} here; got {component!r}")
    return component


def _named(name: str, place: _Place, component: int) -> str:
    if place.parts == 1:
        return name
    return f"{name}, {NAMES[component]}" if place.parts <= 3 else f"{name} [{component}]"


def _percent(share: float) -> str:
    """48.5 %, 0.12 %, 3e-05 %."""
    value = 100 * share
    return f"{value:.3g} %" if value < 99.95 else f"{value:.6g} %"


def _clock(basis: Basis) -> tuple[np.ndarray, str]:
    if basis.times is None:
        return np.arange(basis.n, dtype=np.float64), "snapshot"
    return np.asarray(basis.times), label("time", basis.time_unit)


__all__ = ["average", "coefficient_spectrum", "decay", "gavish_donoho_line", "modes", "phase_portrait",
           "reconstruction", "run_longer", "snapshot_errors", "spectrum", "travelling_pairs"]
