"""Figures of flow fields: modes on their grid or mesh, spectra, reconstructions, phase portraits, where to run longer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.averaging.doubts import ENOUGH
from ensemblekit.errors import InputError
from ensemblekit.plot.clock import Clock
from ensemblekit.plot.place import COLUMN, Place, component_name, component_of, panels_for
from ensemblekit.plot.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, RED, label, legend, look, new_axes, panels
from ensemblekit.rom.basis import Basis, FieldPart
from ensemblekit.rom.field_averages import FieldAverages
from ensemblekit.rom.mesh import Association, Mesh
from ensemblekit.scaling import power_of_two, representable, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ensemblekit.averaging.estimate import Estimate
    from ensemblekit.plot.style import AxesLike
    from ensemblekit.rom.decay import DecayRate

    Coordinates = Sequence[ArrayLike]

P = ParamSpec("P")
R = TypeVar("R")


def _styled(function: Callable[P, R]) -> Callable[P, R]:
    """In the house look from the first line to the last title."""
    @wraps(function)
    def drawn(*args: P.args, **options: P.kwargs) -> R:
        with look():
            return function(*args, **options)

    return drawn


@_styled
def modes(basis: Basis, *, field: str | None = None, component: int | None = None, count: int = 6,
          grid: Coordinates | None = None, ax: AxesLike | None = None) -> np.ndarray:
    """The mean and the first modes on the grid or mesh, with energies and pairs in the titles; the Axes, (count + 1,).

    Arguments:
        basis: of one field, or of several with `field` named.
        component: of a vector, from 0; by default the one that carries most of the modes' energy.
        count: how many modes.
        grid: (x, y), coordinates of the columns and rows of a field (ny, nx) or (ny, nx, components); (x,) of a line.
    """
    part = _part(basis, field)
    place = Place.of(part.mean.shape, basis.mesh, field or part.name, grid)
    count = min(count, basis.rank)
    component = component_of(place, part.modes[:count], component)
    columns = 1 if place.line else 4 if place.wide < 2.2 else 2
    rows = -(-(count + 1) // columns)
    axes = panels_for(ax, rows, columns, place, count + 1)
    pairs = {k: pair for pair in travelling_pairs(basis) for k in pair}
    name = component_name(part.name, place, component)
    place.draw(axes[0], place.component(part.mean, component), signed=False, unit=part.unit)
    axes[0].set_title(f"mean {name}")
    for k in range(count):
        place.draw(axes[k + 1], place.component(part.modes[k], component), signed=True)
        pair = "" if k not in pairs else f", pair {pairs[k][0] + 1}–{pairs[k][1] + 1}"
        axes[k + 1].set_title(f"mode {k + 1}: {_percent(basis.energy_fraction[k])}{pair}")
    return axes


def travelling_pairs(basis: Basis) -> list[tuple[int, int]]:
    """Neighbouring modes (from 0) that make up one travelling pattern: like energies, and one coefficient is the other, later.

    Singular values within 15 %, and a correlation above 0.9 between the coefficients at some lag, of opposite sign at
    the opposite lag. Also those that stand as a pair by their energies alone (``basis.pairs``), apart from their neighbours:
    among modes of noise all are alike, and none is a pair.
    """
    s, n = basis.singular_values, basis.n
    a, _ = scaled(basis.coefficients)
    known = s if basis.spectrum is None else np.asarray(basis.spectrum)
    pairs = [(i, j) for i, j in basis.pairs if (i == 0 or known[i - 1] > 1.06 * known[i])
             and j + 1 < len(known) and known[j] > 1.06 * known[j + 1]]
    taken = {k for pair in pairs for k in pair}
    for k in range(basis.rank - 1):
        if k in taken or k + 1 in taken or s[k + 1] < 0.85 * s[k] or n < 16 or np.iscomplexobj(a):
            continue
        one, two = a[:, k] - a[:, k].mean(), a[:, k + 1] - a[:, k + 1].mean()
        lags = np.arange(1, n // 4)
        later, sooner = (np.array([x[lag:] @ y[:n - lag] / max(np.linalg.norm(x[lag:]) * np.linalg.norm(y[:n - lag]), 1e-300)
                                   for lag in lags]) for x, y in ((one, two), (two, one)))
        best = int(np.abs(later).argmax())
        if abs(later[best]) > 0.9 and later[best] * sooner[best] < 0:
            pairs.append((k, k + 1))
            taken |= {k, k + 1}
    return sorted(pairs)


@_styled
def spectrum(basis: Basis, *, ax: Axes | None = None) -> Axes:
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
    right = ax.secondary_yaxis("right", functions=(lambda e: 100 * np.sqrt(np.maximum(e, 1e-40)),
                                                   lambda p: (np.asarray(p) / 100) ** 2))
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
def reconstruction(basis: Basis, truth: ArrayLike, which: int | None = None, *, rank: int | None = None,
                   field: str | None = None, component: int | None = None, grid: Coordinates | None = None,
                   ax: AxesLike | None = None) -> np.ndarray:
    """One snapshot beside its reconstruction and their difference, the first two in the same colours; the Axes, (3,).

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
    place = Place.of(part.mean.shape, basis.mesh, field or part.name, grid)
    component = component_of(place, part.modes, component)
    one, two = place.component(truth.astype(np.float64), component), place.component(back, component)
    stacked = place.line or place.wide >= 2.2
    axes = panels_for(ax, 3 if stacked else 1, 1 if stacked else 3, place, 3, bars=1)
    limits = (float(np.nanmin(one)), float(np.nanmax(one)))
    name = component_name(part.name, place, component)
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
    return axes


@_styled
def snapshot_errors(basis: Basis, *, ax: Axes | None = None) -> Axes:
    """The error of each snapshot's reconstruction against time; the axes."""
    errors = basis.error_per_snapshot
    if errors is None:
        raise InputError("this basis holds no error of each snapshot; decompose again")
    ax = new_axes(ax)
    clock = _clock(basis)
    x, name = clock.x, clock.name
    ax.plot(x, 100 * np.asarray(errors), color=BLUE, lw=0.9)
    ax.axhline(100 * basis.relative_error, color=RED, lw=0.9, ls=(0, (4, 3)))
    ax.annotate(f"all: {_percent(basis.relative_error)}", (0.99, 100 * basis.relative_error),
                xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points", ha="right", va="bottom",
                fontsize=7, color=RED)
    ax.set_ylim(0, None)
    if len(x) > 1:
        ax.set_xlim(x[0], x[-1])
    clock.write(ax.xaxis)
    ax.set_xlabel(name)
    ax.set_ylabel("error %")
    ax.set_title(f"error of each snapshot, {basis.rank} modes")
    return ax


@_styled
def phase_portrait(basis: Basis, pair: tuple[int, int] | None = None, *, length: float | None = None,
                   speed: float | None = None, ax: AxesLike | None = None) -> np.ndarray:
    """Two coefficients against each other and against time, and their power spectrum; the Axes, (3,).

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
    clock = _clock(basis)
    x, name = clock.x, clock.name
    axes = panels(ax, 1, 3, (2 * COLUMN, 2.5), width_ratios=(1, 1.25, 1.25))[0]
    left, middle, right = axes
    left.plot(one, two, color=GREY, lw=0.5, alpha=0.7)
    shown = left.scatter(one, two, c=x, s=7, cmap="viridis", zorder=3, lw=0)
    bar = left.figure.colorbar(shown, ax=left, location="bottom", aspect=30, pad=0.02)
    bar.set_label(name, fontsize=7)
    clock.write(bar.ax.xaxis)
    reach = 1.08 * max(float(np.abs(one).max()), float(np.abs(two).max()))
    left.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel=f"$a_{{{a + 1}}}$", ylabel=f"$a_{{{b + 1}}}$")
    middle.plot(x, one, color=BLUE, lw=0.9, label=f"$a_{{{a + 1}}}$")
    middle.plot(x, two, color=ORANGE, lw=0.9, label=f"$a_{{{b + 1}}}$")
    middle.set(xlabel=name, ylabel="coefficient")
    clock.write(middle.xaxis)
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
    return axes


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


def _where(averages: Mapping[str, Estimate]) -> tuple[Mesh | None, Mapping[str, Association]]:
    """The mesh of averages of fields, and on what of it each of them lies."""
    return (averages.mesh, averages.association) if isinstance(averages, FieldAverages) else (None, {})


@_styled
def average(averages: Mapping[str, Estimate], name: str, *, component: int | None = None,
            grid: Coordinates | None = None, ax: AxesLike | None = None) -> np.ndarray:
    """An average of a field beside half its interval; the Axes, (2,)."""
    one = averages[name]
    mean, half = np.asarray(one.mean), 0.5 * (np.asarray(one.high) - np.asarray(one.low))
    mesh, association = _where(averages)
    place = Place.of(mean.shape, mesh, name, grid, association)
    component = component_of(place, mean[None], component)
    stacked = place.line or place.wide >= 2.2
    axes = panels_for(ax, 2 if stacked else 1, 1 if stacked else 2, place, 2, bars=2 if stacked else 1)
    place.draw(axes[0], place.component(mean, component), unit=one.unit, bar=True)
    place.draw(axes[1], place.component(half, component), unit=one.unit, bar=True, colours="magma")
    axes[0].set_title(component_name(name, place, component))
    axes[1].set_title(f"± ({100 * one.confidence:g} % interval)")
    return axes


@_styled
def run_length(averages: FieldAverages, name: str, *, target: float | None = None, component: int | None = None,
               grid: Coordinates | None = None, ax: Axes | None = None) -> Axes:
    """Where to run longer: by what factor the run must grow for each cell's interval to shrink to ± target; the Axes.

    Arguments as :meth:`ensemblekit.rom.FieldAverages.run_length_factor`; of a vector the worst component by default.
    """
    one = averages[name]
    factor = averages.run_length_factor(name, target)
    place = Place.of(factor.shape, averages.mesh, name, grid, averages.association)
    if place.parts > 1:
        factor = np.nanmax(np.where(np.isfinite(factor), factor, 0), axis=-1) if component is None else factor[..., component]
    if target is None:
        target = 0.01 * float(np.nanmax(np.abs(one.mean)))
    if place.line:
        (ax,) = panels_for(ax, 1, 1, place, 1)
        place.draw(ax, factor)
        ax.set_yscale("log")
        ax.axhline(1, color=GREEN, lw=0.8)
    else:
        (ax,) = panels_for(ax, 1, 1, place, 1, bars=1)
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
    return ax


@_styled
def decay(basis: Basis, rate: DecayRate | None = None, *, ax: Axes | None = None) -> Axes:
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


def _part(basis: Basis, field: str | None) -> FieldPart:
    if field is not None:
        return basis[field]
    if len(basis.fields) > 1:
        raise InputError(f"this basis holds the fields {sorted(basis.fields)}; name one: field=")
    return next(basis.parts())


def _percent(share: float) -> str:
    """48.5 %, 0.12 %, 3e-05 %."""
    value = 100 * share
    return f"{value:.3g} %" if value < 99.95 else f"{value:.6g} %"


def _clock(basis: Basis) -> Clock:
    return Clock.of(basis.times, basis.n, basis.time_unit, basis.labels)


__all__ = ["average", "coefficient_spectrum", "decay", "gavish_donoho_line", "modes", "phase_portrait",
           "reconstruction", "run_length", "snapshot_errors", "spectrum", "travelling_pairs"]
