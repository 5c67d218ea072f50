"""The loop behind the block bootstrap, compiled."""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel


@kernel
def block_sums(upto, starts, lengths):
    """Sums (r, c) over blocks (r, m) of a run that goes on at its start; `upto` (n + 1, c) are sums of the first k."""
    n = len(upto) - 1
    rows, blocks = starts.shape
    columns = upto.shape[1]
    sums = np.zeros((rows, columns))
    for i in range(rows):
        for k in range(blocks):
            if lengths[i, k] == 0:
                continue
            start, end = starts[i, k], starts[i, k] + lengths[i, k]
            over = end > n
            if over:
                end -= n
            for j in range(columns):
                part = upto[end, j] - upto[start, j]
                if over:
                    part += upto[n, j]
                sums[i, j] += part
    return sums
