"""A linear model with inputs and outputs: x[k+1] = A x[k] + B u[k], y[k] = C x[k] + D u[k]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import InputError
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.quadratic import QuadraticModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StateSpace(QuadraticModel):
    """A linear model with inputs: a quadratic one without products, whose outputs are read off by C and D.

    With a `period` x[k+1] = A x[k] + B u[k], else dx/dt = A x + B u. Made by :func:`rom.dmd` with inputs, or from matrices.
    """

    KIND: ClassVar[str] = "state_space"

    def __post_init__(self) -> None:
        if not set(self.form) <= {"c", "A", "B"}:
            raise InputError(f"a state space has linear terms and inputs; got the form {self.form!r}")
        QuadraticModel.__post_init__(self)

    @classmethod
    def of_matrices(cls, A: ArrayLike, B: ArrayLike, C: ArrayLike | None = None, D: ArrayLike | None = None, *,
                    period: float | None = None, basis: Basis | None = None, time_unit: str = "", inputs: Sequence[str] = (),
                    outputs: Sequence[str] = ()) -> StateSpace:
        """From A (r, r), B (r, m), C (p, r) and D (p, m); without C there are no outputs. Raises InputError for shapes."""
        one = QuadraticModel.of(A=A, B=B, basis=basis, period=period, time_unit=time_unit, inputs=inputs)
        readout, names = None, tuple(outputs)
        if C is not None:
            c = np.atleast_2d(np.asarray(C))
            d = np.zeros((len(c), len(one.inputs))) if D is None else np.atleast_2d(np.asarray(D))
            if c.shape[1] != one.rank or d.shape != (len(c), len(one.inputs)):
                raise InputError(f"C is (p, {one.rank}) and D (p, {len(one.inputs)}); got {c.shape} and {d.shape}")
            readout = np.concatenate([np.zeros((len(c), 1)), c, d], axis=1)
            names = names or tuple(f"y[{k}]" for k in range(len(c)))
        return cls.of_model(one, readout=readout, outputs=names)

    @classmethod
    def of_model(cls, model: QuadraticModel, *, readout: np.ndarray | None = None, outputs: tuple[str, ...] = ()) -> StateSpace:
        """A linear model as a state space; with outputs of its own, or those given."""
        kept = {f.name: getattr(model, f.name) for f in fields(QuadraticModel)}
        if readout is not None:
            kept |= {"readout": readout, "outputs": outputs}
        return cls(**kept)

    @property
    def C(self) -> np.ndarray | None:
        """(p, r)."""
        return None if self.readout is None else self.readout[:, 1:1 + self.rank]

    @property
    def D(self) -> np.ndarray | None:
        """(p, m)."""
        return None if self.readout is None else self.readout[:, 1 + self.rank:]

    def impulse_response(self, n: int) -> np.ndarray:
        """(n, p, m): h[j] = C A^j B, the outputs at the end of step j after a unit input in step 0 (C = 1 without outputs)."""
        a, b = self.A, self.B
        if self.period is None or a is None or b is None:
            raise InputError("an impulse response is of discrete models with inputs")
        c = np.eye(self.rank) if self.C is None else self.C
        response, state = [], b
        for _ in range(n):
            response.append(c @ state)
            state = a @ state
        return np.array(response)
