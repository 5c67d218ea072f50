"""Results as one file: arrays by number in an .npz, and how they hang together as JSON beside them. Nothing in it is run."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ensemblekit.errors import InputError, StoreError, one_line
from ensemblekit.files import replacing
from ensemblekit.provenance import Provenance

FORMAT = "ensemblekit result 1"
MOST_DEEP = 32


class Saved:
    """A frozen result that goes into a file and comes back, bit by bit; subclasses are known by their names."""

    __slots__ = ()

    KINDS: ClassVar[dict[str, type]] = {}
    """Name of a class -> the class, of all that may stand in a file."""

    def __init_subclass__(cls) -> None:
        Saved.KINDS[cls.__name__] = cls

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write it to an .npz file, whole or not at all; returns the path. Raises InputError for another suffix."""
        path = os.fspath(path)
        if not path.endswith(".npz"):
            raise InputError(f"a {type(self).__name__} is saved as .npz; got {path!r}")
        arrays: list[np.ndarray] = []
        about = {"format": FORMAT, "provenance": Provenance.now().to_dict(), "result": _encoded(self, arrays)}
        named = {f"a{k}": x for k, x in enumerate(arrays)}
        with replacing(path, follow=True) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **named)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """What :meth:`save` wrote. Raises StoreError where the file is none of it, or damaged; InputError where it holds
        another kind of result."""
        path = os.fspath(path)
        try:
            with np.load(path, allow_pickle=False) as held:
                about = json.loads(held["about"].tobytes())
                if about["format"] != FORMAT:
                    raise StoreError(f"{path} is of the format {about['format']!r}; this version reads {FORMAT!r}")
                result = _decoded(about["result"], held, 0)
        except FileNotFoundError as error:
            raise StoreError(f"no file {path!r}") from error
        except (OSError, LookupError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile,
                RecursionError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path} holds no result that save() wrote, or is damaged ({one_line(error)})") from error
        if not isinstance(result, cls):
            kind = type(result).__name__
            raise InputError(f"{path} holds a {kind}, not a {cls.__name__}; {kind}.load reads it")
        return result


def _encoded(x: Any, arrays: list[np.ndarray]) -> Any:
    """A value as JSON; its arrays are put into the list, and stand for their numbers in it."""
    if is_dataclass(x) and not isinstance(x, type):
        kind = type(x).__name__
        if isinstance(x, Provenance):
            return {"is": "Provenance", "of": x.to_dict()}
        assert kind in Saved.KINDS, kind
        return {"is": kind, "of": {field.name: _encoded(getattr(x, field.name), arrays) for field in fields(x)}}
    if isinstance(x, dict) and type(x).__name__ in Saved.KINDS:       # a mapping of ours that knows more: Scores
        return {"is": type(x).__name__, "of": {name: _encoded(value, arrays) for name, value in {
            "scores": dict(x), **vars(x)}.items()}}
    if isinstance(x, Mapping):
        return {"is": "mapping", "of": [[str(name), _encoded(value, arrays)] for name, value in x.items()]}
    if isinstance(x, tuple):
        return {"is": "tuple", "of": [_encoded(value, arrays) for value in x]}
    if isinstance(x, np.generic):
        return x.item()
    if x is None or isinstance(x, str | int | float):
        return x
    values = np.asarray(x.detach().cpu() if type(x).__module__.startswith("torch") else x)
    arrays.append(values)
    return {"is": "array", "of": len(arrays) - 1}


def _decoded(x: Any, held: Any, depth: int) -> Any:
    """The value that :func:`_encoded` wrote. Raises ValueError, LookupError or TypeError where it is another."""
    if depth > MOST_DEEP:
        raise ValueError("it goes deeper than any result")
    if not isinstance(x, dict):
        return x
    kind, inside = x["is"], x["of"]
    if kind == "array":
        return held[f"a{int(inside)}"]
    if kind == "mapping":
        return {str(name): _decoded(value, held, depth + 1) for name, value in inside}
    if kind == "tuple":
        return tuple(_decoded(value, held, depth + 1) for value in inside)
    if kind == "Provenance":
        return Provenance.from_dict(inside)
    return Saved.KINDS[kind](**{str(name): _decoded(value, held, depth + 1) for name, value in inside.items()})
