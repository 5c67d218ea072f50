"""Members' predictions kept beside the store, so that a report needs neither the model nor the data again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.neural.prediction import Prediction
from ensemblekit.neural.resume import writing
from ensemblekit.neural.tensors import tensor_of
from ensemblekit.neural.uncertainty import Pool, Space, check_space
from ensemblekit.results import Result
from ensemblekit.source import Field
from ensemblekit.store.guarded import record
from ensemblekit.store.names import folder_of
from ensemblekit.store.store import Store

AT_ONCE = 4096


@dataclass(frozen=True, slots=True, eq=False)
class SavedPredictions(Result):
    """Read back from beside a store."""

    members: np.ndarray
    """(members, n, classes, ...)."""
    weights: np.ndarray
    """(members,), 1 in sum."""
    target: np.ndarray | None
    """(n, ...)."""
    others: Mapping[str, np.ndarray]
    """Name -> (n, classes, ...): averages of weights, other models."""
    space: Space
    ignore_index: int | None

    def __repr__(self) -> str:
        m, n, classes = self.members.shape[:3]
        return (f"SavedPredictions({m} members, {n} items, {classes} classes, "
                f"{'with' if self.target is not None else 'without'} labels{''.join(f'; {name}' for name in self.others)})")

    def pooled(self, last: int | None = None) -> Prediction:
        """The prediction of all members, or of the last few."""
        first = 0 if last is None else len(self.members) - last
        return pooled(self.members[first:], self.weights[first:], self.target, self.space, self.ignore_index)


def pooled(members: np.ndarray, weights: np.ndarray | None, target: np.ndarray | None, space: Space = "probability",
           ignore_index: int | None = None) -> Prediction:
    """Members' probabilities (members, n, classes, ...) as one prediction."""
    shares = None if weights is None or np.ptp(weights) == 0 else np.asarray(weights)
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, members.shape[1], AT_ONCE):
        pool = Pool(space)
        p = tensor_of(np.asarray(members[:, start:start + AT_ONCE], np.float64))
        pool.update(p.clamp(min=float(np.finfo(np.float64).tiny)).log(), shares)
        doubt = pool.result()
        for name, x in (("probabilities", doubt.log_probabilities.exp()), ("aleatoric", doubt.aleatoric),
                        ("disagreement", doubt.disagreement), ("variation_ratio", doubt.variation_ratio)):
            parts.setdefault(name, []).append(x.numpy())
    values: dict[str, Any] = {name: np.concatenate(x) for name, x in parts.items()}
    return Prediction(**values, target=target, index=np.arange(members.shape[1]), n_members=len(members), space=space,
                      ignore_index=ignore_index)


def predictions_path(store: str | os.PathLike[str], name: str) -> Path:
    """Where predictions of a name lie."""
    if not name or any(c in name for c in "/\\") or name.startswith("."):
        raise InputError(f"the name of saved predictions is a plain word; got {name!r}")
    return folder_of(os.fspath(store)) / f"{name}.h5"


def save_predictions(store: str | os.PathLike[str], name: str, members: np.ndarray, prediction: Prediction,
                     weights: np.ndarray, others: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write the predictions of that name beside the store, or replace them, by a new file and a rename.

    Raises StoreError where they cannot be written (a full disk); those that stood there before are still whole.
    """
    path = predictions_path(store, name)
    dtype = np.dtype("f8" if members.ndim == 3 else "f4")
    fields = {"probabilities": Field(members.shape[1:], dtype)}
    if prediction.target is not None:
        fields["target"] = Field(prediction.target.shape, np.dtype("i8"), clock="target")
    rows = [*(f"member {k}" for k in range(len(members))), *(others or {})]
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}.tmp-", dir=path.parent))      # a store has a folder beside it
        try:
            with Store.create(work / path.name, fields, capacity=len(rows), provenance={
                    "rows": rows, "members": len(members), "space": prediction.space, "ignore_index": prediction.ignore_index,
                    "weights": [float(w) for w in weights]}) as out:
                for row in (*members, *(others or {}).values()):
                    out.append({"probabilities": row.astype(dtype)})
                if prediction.target is not None:
                    out.append({"target": prediction.target.astype(np.int64)}, clock="target")
            os.replace(work / path.name, path)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return path


def load_predictions(store: str | os.PathLike[str], name: str = "predictions") -> SavedPredictions:
    """Raises InputError where none of that name were saved."""
    path = predictions_path(store, name)
    if not path.exists():
        there = sorted(p.stem for p in path.parent.glob("*.h5")) if path.parent.is_dir() else []
        raise InputError(f"no predictions {name!r} are saved beside {os.fspath(store)}"
                         + (f"; there are: {', '.join(there)}" if there else "") +
                         ". Save them: ensemble.predict(loader, save=True), or neural.report(..., save=True)")
    with Store.open(path) as held, record(path, "record of saved predictions"):
        about = held.provenance
        rows = np.asarray(held["probabilities"][:])
        target = np.asarray(held["target"][0]) if "target" in held.all_fields else None
        m, names, ignored = about["members"], about["rows"], about["ignore_index"]
        weights = np.asarray(about["weights"], np.float64)
        if not 0 < m <= len(rows) == len(names) or weights.shape != (m,) or not isinstance(ignored, int | None):
            raise ValueError(f"it speaks of {m} members, {len(weights)} weights and {len(names)} rows; there are {len(rows)}")
        return SavedPredictions(rows[:m], weights, target, dict(zip(names[m:], rows[m:], strict=True)),
                                check_space(about["space"]), ignored)
