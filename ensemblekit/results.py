"""What all results have in common: plain values, a look in a notebook, and a figure.

A result is a frozen value with named fields. Its class derives from :class:`Result` and names its figure.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ensemblekit.foreign import AnyArray, GivesDict, GivesList

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SHOWN = 8
"""Numbers of an array that stand in a line; of a longer one its shape and range do."""


class Result:
    """A value that is answered: it prints itself, shows itself in notebooks, becomes plain values and is drawn."""

    __slots__ = ()

    FIGURE: ClassVar[str] = "style.facts"
    """The function of ``ensemblekit.plot`` that draws it, such as "rom.spectrum"."""

    def _facts(self) -> dict[str, object]:
        """What there is to tell of it, by name; a class whose fields hold the data itself tells less."""
        assert is_dataclass(self)
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_dict(self) -> dict[str, object]:
        """Its fields as plain numbers, lists and strings, as JSON takes them (NaN and infinity as None)."""
        return {name: plain(value) for name, value in self._facts().items()}

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(in_a_line(value))}</td></tr>"
                       for name, value in self._facts().items() if value is not None)
        return f"<b>{type(self).__name__}</b><table>{rows}</table>"

    def plot(self, ax: Axes | None = None, **options: Any) -> Axes | np.ndarray:
        """Its figure: the Axes (or an array of them) that it was drawn on, `ax` where one was given.

        Options as for the function of ``ensemblekit.plot`` that is named by ``FIGURE``.
        """
        # figures stand a floor above what they show: found by name, when somebody wants to see one
        module, _, name = self.FIGURE.rpartition(".")
        return getattr(import_module(f"ensemblekit.plot.{module}"), name)(self, ax=ax, **options)


def plain(x: object) -> object:
    """Lists and numbers for JSON; NaN and infinity, which JSON does not know, become None."""
    if isinstance(x, Result) or (isinstance(x, GivesDict) and not isinstance(x, type)):
        return plain(x.to_dict())
    if is_dataclass(x) and not isinstance(x, type):
        return {field.name: plain(getattr(x, field.name)) for field in fields(x)}
    if isinstance(x, Mapping):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple | set | frozenset):
        return [plain(value) for value in x]
    if isinstance(x, GivesList):        # an array or a scalar of numpy, a tensor
        return plain(x.tolist())
    if isinstance(x, float) and not math.isfinite(x):
        return None
    if isinstance(x, complex):
        return [plain(x.real), plain(x.imag)]
    return x if isinstance(x, str | int | float | bool | None) else str(x)


def in_a_line(value: object) -> str:
    """A value in a line: of arrays the shape and range, of mappings the names."""
    if isinstance(value, Mapping):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, AnyArray):
        return _array_in_a_line(np.asarray(value))
    if isinstance(value, list | tuple) and len(value) > MOST_SHOWN:
        return f"{len(value)} values"
    if isinstance(value, list | tuple):
        return ", ".join(map(in_a_line, value)) or "–"
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:200]}…"


def _array_in_a_line(values: np.ndarray) -> str:
    if values.size <= MOST_SHOWN:
        return np.array2string(values, precision=6, separator=", ").replace("\n", " ")
    shape = " × ".join(map(str, values.shape))
    if values.dtype.kind not in "iuf":
        return f"{shape} of {values.dtype}"
    known = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return f"{shape}, {known.min():.4g} … {known.max():.4g}" if known.size else f"{shape}, none finite"
