"""Products that neither make nor lose energy: least squares under x · H (x, x) = 0 (Schlegel and Noack 2015)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=4)
def conditions(r: int) -> np.ndarray:
    """(n, r (r + 1) / 2, r): what each condition weighs the quadratic rows of the operators with, an equation a column.

    For each i ≥ j ≥ k the coefficient of x_i x_j x_k in x · H (x, x) is 0.
    """
    at = {(i, j): k for k, (i, j) in enumerate(zip(*np.tril_indices(r), strict=True))}
    rows = []
    for i in range(r):
        for j in range(i + 1):
            for k in range(j + 1):
                row = np.zeros((len(at), r))
                for a, b, c in {(i, j, k), (j, i, k), (k, i, j)}:
                    row[at[max(b, c), min(b, c)], a] = 1        # together the coefficient of x_i x_j x_k in x · H (x, x)
                rows.append(row)
    return np.array(rows)


def conserving(operators: np.ndarray, quadratic: slice, inverse: np.ndarray) -> np.ndarray:
    """Operators (..., d, r) moved to the nearest ones whose products conserve energy.

    inverse: (d, d), of the products of the columns of the least-squares problem (with its regularisation): it is what "near"
    is measured with, so that the answer is the least squares under the conditions.
    """
    r = operators.shape[-1]
    rows = conditions(r)
    within = inverse[quadratic, quadratic]
    turned = np.einsum("qp,npa->nqa", within, rows)
    normal = np.einsum("nqa,mqa->nm", rows, turned)
    broken = np.einsum("nqa,...qa->...n", rows, operators[..., quadratic, :])
    forces = np.linalg.solve(normal, broken[..., None])[..., 0]
    return operators - inverse[:, quadratic] @ np.einsum("nqa,...n->...qa", rows, forces)
