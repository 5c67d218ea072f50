"""Sums of fluctuations and of their products, cell by cell."""

from __future__ import annotations

from ensemblekit.jit import kernel

TILE = 128
"""Cells whose sums stay in the first cache while the rows pass: at most 16 numbers each."""


@kernel
def add_products(flat, stride, rows, cells, parts, weights, reference, sums, products, squares):
    """Add rows of vectors with `parts` components to their sums about a reference.

    flat: rows of cells * parts numbers, `stride` apart. weights: (rows,). reference: (cells * parts,). sums: (parts,
    cells) of w a, a being the value less its reference. products: (pairs, cells) of w a_i a_j, the pairs i <= j row by
    row. squares: (pairs + 1, cells) of w (a_i a_j)², and last of w (½ Σ a_i²)².
    """
    last = squares.shape[0] - 1
    for first in range(0, cells, TILE):
        stop = min(first + TILE, cells)
        for r in range(rows):
            w = weights[r]
            base = r * stride
            for c in range(first, stop):
                pair = 0
                energy = 0.0
                for i in range(parts):
                    a = flat[base + c * parts + i] - reference[c * parts + i]
                    sums[i, c] += w * a
                    energy += a * a
                    for j in range(i, parts):
                        q = a * (flat[base + c * parts + j] - reference[c * parts + j])
                        products[pair, c] += w * q
                        squares[pair, c] += w * q * q
                        pair += 1
                squares[last, c] += w * 0.25 * energy * energy
