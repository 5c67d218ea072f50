"""Dynamic mode decomposition of the coefficients of a basis: by steps (exact, total least squares, forward and backward), or by
variable projection of all samples at once; with inputs a state space."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from ensemblekit.averaging.resample import block_counts
from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose import pod
from ensemblekit.rom.eigenvalues import continuous, matched, slowest_first
from ensemblekit.rom.equation_rows import Rows, unread
from ensemblekit.rom.exponentials import fitted
from ensemblekit.rom.forecast import FEWEST_BLOCKS
from ensemblekit.rom.least_squares import blocks_of, score_length
from ensemblekit.rom.modal import ModalModel, ModalResamples
from ensemblekit.rom.operators import Dynamics, terms
from ensemblekit.rom.opinf import operator_inference
from ensemblekit.rom.rank import as_bytes
from ensemblekit.rom.simulate import residuals_of, trained_on
from ensemblekit.rom.state_space import StateSpace
from ensemblekit.rom.training import TrainingData, gathered
from ensemblekit.source import SnapshotSource, as_source

Kind = Literal["exact", "opt", "tls", "fb"]
METHODS = ("exact", "opt", "tls", "fb")
ENERGY = 0.99
"""Of modes kept straight from a source where no rank was named."""


def dmd(source_or_basis: Any, rank: int | None = None, *, method: Kind = "exact",
        constraint: Literal["stable", "neutral"] | None = None, inputs: Any = None, input_matrix: Any = None,
        n_resamples: int = 200, basis: Basis | None = None, memory_limit: float | str = "2GiB",
        rng: np.random.Generator | int = 0) -> ModalModel | StateSpace:
    """Dynamic modes of a basis, or of a source, which is read as often as :func:`rom.pod` of that rank reads it.

    Arguments:
        source_or_basis: a Basis, several on the same modes, a list of arrays of coefficients (independent runs); or snapshots,
            of which a basis without a mean is made first.
        rank: modes; of a basis all by default, of snapshots those of 99 % of the energy.
        method: "exact" (least squares of the next state: the growth is too low where snapshots are noisy), "tls" (total least
            squares, Hemati et al. 2017), "fb" (forward and backward, Dawson et al. 2016), or "opt" (all samples fitted by
            exponentials, Askham and Kutz 2018, at any times).
        constraint: of "opt": no mode grows ("stable"), or none grows or decays ("neutral").
        inputs: (n, m): gives a :class:`StateSpace` (DMDc, Proctor et al. 2016), each row held until the next snapshot.
        input_matrix: (k, m) in coefficients, where it is known.
        n_resamples: fits to resampled blocks of steps ("opt": to halves of the samples), for intervals and forecasts; 0: none.
        basis: of coefficients that were stored: the source then holds these (``rom.coefficients``), not snapshots.
        memory_limit: with inputs, coefficients whose equations would take more are not held but read twice.
        rng: seed of the resamples.

    Raises InputError: fewer snapshots than the modes need, uneven times (all methods but "opt"), NaN, inputs of wrong length,
    constant or that follow from the state. Warns where as many modes as snapshots were taken of a mean-free basis: its dynamic
    modes are those of a Fourier transform, whatever the flow.
    """
    if method not in METHODS:
        raise InputError(f"method is one of {', '.join(map(repr, METHODS))}; got {method!r}")
    if constraint not in (None, "stable", "neutral"):
        raise InputError(f'constraint is None, "stable" or "neutral"; got {constraint!r}')
    if constraint is not None and method != "opt":
        raise InputError(f'constraint={constraint!r} goes with method="opt"')
    if basis is not None and rank not in (None, basis.rank):
        raise InputError(f"the coefficients are those of {basis.rank} modes of the basis given; rank={rank!r} goes with "
                         "snapshots or a Basis")
    given = _of_rank(source_or_basis, rank) if basis is None else source_or_basis
    if inputs is not None:
        return _with_inputs(given, method, inputs, input_matrix,
                            {"basis": basis, "memory_limit": memory_limit, "n_resamples": n_resamples, "rng": rng})
    if input_matrix is not None:
        raise InputError("input_matrix goes with inputs=")
    data = gathered(given, basis=basis, even=method != "opt")
    r = data.rank
    if data.n - len(data.runs) < r + (method in ("tls", "fb")) or (method == "opt" and data.n < 2 * r):
        raise InputError(f"{data.n} snapshots are too few for {r} dynamic modes (method {method!r}): take fewer modes, or more "
                         "snapshots")
    _warn_of_fourier(data)
    return _all_samples(data, constraint, n_resamples, rng) if method == "opt" else _steps(data, method, n_resamples, rng)


def _of_rank(x: Any, rank: int | None) -> Any:
    """Bases of so many modes; snapshots become one, read as often as `rom.pod` does."""
    if isinstance(x, Basis):
        return x if rank is None else x.truncate(rank)
    if isinstance(x, list | tuple):
        if rank is None or not all(isinstance(one, Basis) for one in x):
            return x
        return [one.truncate(rank) for one in x]
    source: SnapshotSource = as_source(x)
    return pod(source, rank, center="none") if rank is not None else pod(source, energy=ENERGY, center="none")


def _warn_of_fourier(data: TrainingData) -> None:
    basis = data.basis
    if basis is not None and len(data.runs) == 1 and basis.rank >= data.n - 1 and np.nan_to_num(basis.mean).any():
        warnings.warn(f"{basis.rank} modes of {data.n} snapshots whose mean was subtracted: their dynamic modes are those of a "
                      "Fourier transform (all of modulus 1), whatever the flow (Chen, Tu and Rowley 2012). Take fewer modes, "
                      'or a basis of center="none"', UserWarning, stacklevel=3)


# -- by steps -------------------------------------------------------------------------------------------------------


def _steps(data: TrainingData, method: str, n_resamples: int, rng: np.random.Generator | int) -> ModalModel:
    x = np.concatenate([run.states[:-1] for run in data.runs])
    y = np.concatenate([run.states[1:] for run in data.runs])
    matrix = _operator(x, y, method)
    values, vectors = _modes(matrix, data.interval)
    kept = _resampled_steps(data, x, y, matrix, values, method, n_resamples, rng)
    kept = replace(kept, residuals=residuals_of(_stepped(matrix, data.interval), data.runs))
    return _model(data, values, vectors, method, kept, matrix)


def _operator(x: np.ndarray, y: np.ndarray, method: str) -> np.ndarray:
    """(r, r) with y ≈ x @ matrix."""
    if method == "tls":
        r = x.shape[1]
        top = np.linalg.svd(np.concatenate([x, y], axis=1), full_matrices=False)[2][:r]
        return np.linalg.solve(top[:, :r], top[:, r:])
    forward = np.linalg.lstsq(x, y, rcond=1e-14)[0]
    if method == "exact":
        return forward
    return _root(forward, np.linalg.lstsq(y, x, rcond=1e-14)[0])


def _root(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """The square root of forward times the inverse of backward that is closest to forward, eigenvalue by eigenvalue."""
    product = np.linalg.solve(backward.T, forward.T).T
    values, vectors = np.linalg.eig(product)
    near = np.einsum("ij,jk,ki->i", np.linalg.inv(vectors), forward.astype(complex), vectors)
    roots = np.sqrt(values.astype(complex))
    roots = np.where(np.abs(roots - near) <= np.abs(roots + near), roots, -roots)
    root = (vectors * roots) @ np.linalg.inv(vectors)
    return root if np.iscomplexobj(forward) else root.real


def _of_gram(gram: np.ndarray, method: str) -> np.ndarray:
    """The operator from the products (2r, 2r) of [x, y] with itself: of resamples, whose columns are of like size."""
    r = len(gram) // 2
    if method == "tls":
        top = np.linalg.eigh(gram)[1][:, ::-1][:, :r].conj().T
        return np.linalg.solve(top[:, :r], top[:, r:])
    forward = np.linalg.solve(gram[:r, :r], gram[:r, r:])
    return forward if method == "exact" else _root(forward, np.linalg.solve(gram[r:, r:], gram[r:, :r]))


def _modes(matrix: np.ndarray, interval: float) -> tuple[np.ndarray, np.ndarray]:
    """Rates (k,) and vectors (k, r) of norm 1, the slowest first."""
    discrete, columns = np.linalg.eig(matrix.T)
    values = continuous(discrete, interval)
    order = slowest_first(values)
    return values[order], columns.T[order].astype(complex)


def _stepped(matrix: np.ndarray, interval: float) -> Dynamics:
    return Dynamics("A", np.ascontiguousarray(matrix), 0, interval)


def _resampled_steps(data: TrainingData, x: np.ndarray, y: np.ndarray, matrix: np.ndarray, values: np.ndarray, method: str,
                     n_resamples: int, rng: np.random.Generator | int) -> ModalResamples:
    """Modes of resampled blocks of steps, from sums of products over the blocks."""
    r = x.shape[1]
    none = ModalResamples(values=np.empty((0, r), complex), vectors=np.empty((0, r, r), complex), residuals=np.empty((0, r)),
                          reason="n_resamples=0")
    if not n_resamples:
        return none
    runs = [len(run) - 1 for run in data.runs]
    turn = np.asarray(np.linalg.qr(x, mode="r"))
    if not np.abs(np.diag(turn)).min() > 1e-10 * np.abs(np.diag(turn)).max():
        return replace(none, reason="the states span fewer directions than there are modes")
    w = np.linalg.solve(turn.T, x.T).T * math.sqrt(len(x))
    length = math.ceil(score_length(w, y - x @ matrix, runs))
    ranges = blocks_of(runs, length)
    if len(ranges) < FEWEST_BLOCKS:
        return replace(none, n_blocks=len(ranges),
                       reason=f"{len(x)} steps hold {len(ranges)} blocks of {length}, as long as the errors are correlated; "
                              f"an interval needs {FEWEST_BLOCKS}. Record a longer run")
    z = np.concatenate([x, y], axis=1)
    grams = np.array([z[a:b].conj().T @ z[a:b] for a, b in ranges])
    found_values, found_vectors = [], []
    for counts in block_counts(len(ranges), n_resamples, rng):
        own, vectors = _modes(_of_gram(np.tensordot(counts.astype(float), grams, 1), method), data.interval)
        at = [int(np.argmin(np.abs(own - one))) for one in matched(own[None], values)[0]]
        found_values.append(own[at])
        found_vectors.append(vectors[at])
    return ModalResamples(values=np.array(found_values), vectors=np.array(found_vectors), residuals=none.residuals,
                          n_blocks=len(ranges))


# -- all samples at once --------------------------------------------------------------------------------------------


def _all_samples(data: TrainingData, constraint: str | None, n_resamples: int, rng: np.random.Generator | int) -> ModalModel:
    if len(data.runs) > 1:
        raise InputError(f'method="opt" fits one run without gaps; these are {len(data.runs)}. Fit the longest, or '
                         'take method="tls"')
    run = data.runs[0]
    x, t = run.states, run.times - run.times[0]
    real = not np.iscomplexobj(x)
    point = fitted(t, x, _started(data), constraint, real)
    generator = np.random.default_rng(rng)
    values, vectors, failed = [], [], 0
    half = max(2 * data.rank, len(t) // 2)
    reason = "n_resamples=0" if not n_resamples else ""
    if n_resamples and half > 0.75 * len(t):
        reason, n_resamples = f"{len(t)} snapshots are too few to fit halves of them", 0
    for _ in range(n_resamples):
        rows = np.sort(generator.choice(len(t), half, replace=False))
        one = fitted(t[rows], x[rows], point.values, constraint, real)
        if not one.converged:
            failed += 1
            continue
        like = [int(np.argmin(np.abs(one.values - v))) for v in matched(one.values[None], point.values)[0]]
        values.append(one.values[like])
        vectors.append(one.vectors[like])
    order = slowest_first(point.values)
    r = data.rank
    left = x - point.states(t)
    kept = ModalResamples(values=np.array(values)[:, order] if values else np.empty((0, r), complex),
                          vectors=np.array(vectors)[:, order] if values else np.empty((0, r, r), complex),
                          residuals=left, n_blocks=half, of_fit=True, n_failed=failed, reason=reason)
    size = np.sqrt((np.abs(point.vectors) ** 2).sum(axis=1))
    unit = point.vectors / np.where(size > 0, size, 1)[:, None]
    return _model(data, point.values[order], unit[order], "opt", kept, None, amplitudes=size[order].astype(complex),
                  converged=point.converged)


def _started(data: TrainingData) -> np.ndarray:
    """Rates to start from: those of total least squares, on even times in between where the times are uneven."""
    run = data.runs[0]
    x, t = run.states, run.times
    if not data.even:
        even = np.linspace(t[0], t[-1], len(t))
        x = np.stack([np.interp(even, t, column.real) + (1j * np.interp(even, t, column.imag) if np.iscomplexobj(x) else 0)
                      for column in x.T], axis=1)
        t = even
    return _modes(_operator(x[:-1], x[1:], "tls"), float(t[1] - t[0]))[0]


# -- models ---------------------------------------------------------------------------------------------------------


def _model(data: TrainingData, values: np.ndarray, vectors: np.ndarray, method: str, kept: ModalResamples,
           matrix: np.ndarray | None, amplitudes: np.ndarray | None = None, converged: bool = True) -> ModalModel:
    first = data.runs[0]
    since = first.times - first.times[0]
    if amplitudes is None:      # those that the first run asks for as a whole
        powers = np.exp(np.clip(np.outer(since, values).real, -700, 300) + 1j * np.outer(since, values).imag)
        design = (powers[:, None, :] * vectors.T[None]).reshape(-1, len(values))
        size = np.sqrt((np.abs(design) ** 2).sum(axis=0))
        amplitudes = np.linalg.lstsq(design / size, first.states.reshape(-1).astype(complex), rcond=1e-12)[0] / size
    one = matrix if matrix is not None else np.linalg.pinv(vectors) @ (np.exp(values * data.interval)[:, None] * vectors)
    real = not np.iscomplexobj(first.states)
    dynamics = _stepped(one.real if real else one, data.interval)
    if data.even:
        training = trained_on(data, dynamics)
    else:
        slope = np.linalg.pinv(vectors) @ (values[:, None] * vectors)
        training = trained_on(data, Dynamics("A", np.ascontiguousarray(slope.real if real else slope), 0, None))
    states = data.states
    left = kept.residuals
    residual = math.sqrt(float((np.abs(left) ** 2).mean()) / max(float((np.abs(states) ** 2).mean()), 1e-300))
    return ModalModel(values=values, vectors=vectors, amplitudes=amplitudes, start=float(first.times[0]), real=real,
                      method=method, basis=data.basis, period=data.interval if data.even else None, time_unit=data.time_unit,
                      training=training, resamples=kept, residual=residual, converged=converged, notes=data.notes)


def _with_inputs(given: Any, method: str, inputs: Any, input_matrix: Any, options: dict[str, Any]) -> StateSpace:
    """DMDc: the next state from state and inputs, by least squares."""
    if method != "exact":
        raise InputError(f'inputs go with method="exact"; got {method!r}')
    if input_matrix is not None:
        return _with_known_inputs(given, inputs, input_matrix, **options)
    return StateSpace.of_model(operator_inference(given, form="AB", inputs=inputs, time="discrete", regularisation=0.0,
                                                  **options))


def _with_known_inputs(given: Any, inputs: Any, input_matrix: Any, *, basis: Basis | None, memory_limit: float | str,
                       n_resamples: int, rng: np.random.Generator | int) -> StateSpace:
    """DMDc where what the inputs do is known: the rest of the next state from the state."""
    large = unread(given, inputs, basis=basis, even=True, form="AB", memory=as_bytes(memory_limit))
    data = gathered(given, inputs, basis=basis) if large is None else large.data
    b = np.asarray(input_matrix)
    b = b.reshape(-1, 1) if b.ndim == 1 else b
    if b.shape != (data.rank, len(data.inputs)):
        raise InputError(f"input_matrix is of shape ({data.rank}, {len(data.inputs)}), coefficients by inputs; got {b.shape}. "
                         "Of a field it is basis.project(column + basis.mean)")
    columns, step = partial(terms, form="AB"), data.interval
    both = large.summed(columns, "auto", step, None) if large is not None else Rows.of(data, [columns] * len(data.runs), "auto",
                                                                                       step)
    rows = both.given(b.T)
    problem, free = rows.problem(None), np.zeros(data.rank)
    own = problem.solved(free)
    dynamics = Dynamics("AB", np.concatenate([own, b.T]), len(data.inputs), data.interval)
    kept = rows.resampled(own, free, problem, residuals_of(dynamics, data.sampled), n_resamples=n_resamples, rng=rng)
    known = np.broadcast_to(b.T, (len(kept.matrices), *b.T.shape))
    return StateSpace(form="AB", matrix=dynamics.matrix, basis=data.basis, period=data.interval, time_unit=data.time_unit,
                      inputs=data.inputs, training=trained_on(rows.data, dynamics),
                      resamples=replace(kept, matrices=np.concatenate([kept.matrices, known], axis=1)))
