"""Random cuts of snapshots: what the laws of reducers are tried on."""

import numpy as np
from hypothesis import strategies as st


@st.composite
def cuts(draw, n):
    """Edges from 0 to n, with empty and single-snapshot pieces among them."""
    inner = draw(st.lists(st.integers(0, n), max_size=6))
    return [0, *sorted(inner), n]


@st.composite
def data(draw, max_n=40, max_width=5):
    """(values (n, width) float64, weights (n,) or None) from a drawn seed, so that a failure prints small."""
    n = draw(st.integers(1, max_n))
    width = draw(st.integers(1, max_width))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale, shift = draw(st.sampled_from([(1.0, 0.0), (1.0, 1e6), (1e-3, -5.0)]))
    values = rng.normal(size=(n, width)) * scale + shift
    weights = draw(st.sampled_from([None, "random", "zeros"]))
    if weights == "random":
        return values, rng.random(n) + 0.01
    if weights == "zeros":
        w = rng.random(n) * (rng.random(n) < 0.5)
        w[rng.integers(n)] = 1.0
        return values, w
    return values, None
