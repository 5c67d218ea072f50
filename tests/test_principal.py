"""Principal directions from a Gram matrix are those of the snapshots themselves."""

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit.averaging.principal import principal
from ensemblekit.errors import InputError


def test_directions_are_those_of_a_singular_value_decomposition():
    x = np.random.default_rng(0).standard_normal((6, 40)) * np.arange(1, 41)
    components = principal(ek.reduce(x, ek.Gram("mean"), cut="space"))
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(components.values[:5], values[:5])
    np.testing.assert_allclose(components.explained, np.minimum(np.cumsum(values) / values.sum(), 1), atol=1e-12)
    away = x - x.mean(0)
    np.testing.assert_allclose(components.scores @ components.scores.T, away @ away.T, atol=1e-9 * values[0])
    assert components.rank_for(1.0) == 5
    assert [components.rank_for(s) for s in (components.explained[0], components.explained[2])] == [1, 3]


def test_complex_snapshots():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 30)) + 1j * rng.standard_normal((4, 30))
    components = principal(ek.reduce(x, ek.Gram("mean"), cut="space"))
    away = x - x.mean(0)
    np.testing.assert_allclose(components.scores @ components.scores.conj().T, away @ away.conj().T, atol=1e-9)


@pytest.mark.parametrize("factor", [1e280, 1e-280])
def test_numbers_of_any_size(factor):
    x = np.random.default_rng(0).standard_normal((4, 30))
    g = x @ x.T
    a, b = principal(g), principal(g * factor)
    np.testing.assert_allclose(b.values, a.values * factor, rtol=1e-9)
    np.testing.assert_allclose(b.explained, a.explained)


def test_snapshots_that_are_all_one():
    components = principal(np.zeros((3, 3)))
    assert np.isnan(components.explained).all()
    assert components.rank_for(0.9) == 0
    assert not components.scores.any()


@pytest.mark.parametrize(("gram", "words"), [
    (np.zeros((2, 3)), r"\(n, n\)"), ([[1, np.nan], [np.nan, 1]], "not finite"), ([[1, 2], [0, 1]], "symmetric"),
    ([[1, 2], [2, 1]], "negative eigenvalue"), (np.zeros((0, 0)), "n > 0")])
def test_refusals(gram, words):
    with pytest.raises(InputError, match=words):
        principal(gram)
    with pytest.raises(InputError, match="share"):
        principal(np.eye(2)).rank_for(0)
