"""Figures of dynamic modes on their grid or mesh, each with its frequency, Strouhal number and growth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.plot.place import Place, component_name, component_of, panels_for
from ensemblekit.plot.style import look
from ensemblekit.rom.modal import ModalModel

if TYPE_CHECKING:
    from ensemblekit.plot.style import AxesLike


def dynamic_modes(model: ModalModel, *, field: str | None = None, component: int | None = None, count: int = 4,
                  grid: Sequence[ArrayLike] | None = None, length: float | None = None, speed: float | None = None,
                  ax: AxesLike | None = None) -> np.ndarray:
    """The strongest dynamic modes, their real and their imaginary part (a quarter of a period earlier) side by side; the Axes,
    (2 count,). Of a conjugate pair that of positive frequency is shown.

    Arguments:
        model: of a basis, of one field, or of several with `field` named.
        component: of a vector, from 0; by default the one that carries most of what is shown.
        grid: (x, y), coordinates of the columns and rows of a field (ny, nx) or (ny, nx, components); (x,) of a line.
        length, speed: with both each title gives the Strouhal number f length / speed.

    Raises InputError where there is no basis to draw on, or only one of length and speed.
    """
    basis = model.basis
    if basis is None:
        raise InputError("these modes have no basis, so there is no field to draw: rom.dmd of a Basis, or of snapshots")
    if (length is None) != (speed is None):
        raise InputError("a Strouhal number f length / speed takes both length= and speed=")
    if field is None and len(basis.fields) > 1:
        raise InputError(f"the basis holds {', '.join(basis.fields)}; name one: field={next(iter(basis.fields))!r}")
    part = basis[field] if field is not None else next(iter(basis.parts()))
    shown = strongest(model, count)
    item = part.mean.shape
    modes = (model.vectors[shown] @ part.modes.reshape(basis.rank, -1)).reshape(len(shown), *item)
    with look():
        place = Place.of(item, basis.mesh, part.name, grid)
        component = component_of(place, np.abs(modes), component)
        axes = panels_for(ax, len(shown), 2, place, 2 * len(shown))
        name = component_name(part.name, place, component)
        for k, (j, mode) in enumerate(zip(shown, modes, strict=True)):
            values = place.component(mode, component)
            place.draw(axes[2 * k], values.real, signed=True)
            place.draw(axes[2 * k + 1], values.imag, signed=True)
            axes[2 * k].set_title(f"{name}: {title(model, int(j), length, speed)}")
            axes[2 * k + 1].set_title("a quarter of a period earlier" if model.values[j].imag else "imaginary part")
        return axes


def strongest(model: ModalModel, count: int) -> np.ndarray:
    """Numbers of the modes of most power, of real states those of frequency 0 or above, strongest first."""
    kept = np.flatnonzero(model.values.imag >= -1e-12 * np.abs(model.values)) if model.real else np.arange(len(model.values))
    return kept[np.argsort(-model.power[kept], kind="stable")][:max(1, count)]


def title(model: ModalModel, j: int, length: float | None, speed: float | None) -> str:
    """"f 0.164 per s, St 0.164, growth -0.0012"."""
    values = model.eigenvalues
    per = f" per {model.time_unit}" if model.time_unit else ""
    frequency = float(values.frequency[j])
    strouhal = "" if length is None or speed is None else f", St {frequency * length / speed:.4g}"
    return f"f {frequency:.4g}{per}{strouhal}, growth {float(values.growth[j]):.2g}"
