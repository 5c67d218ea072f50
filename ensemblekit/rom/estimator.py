"""POD as a scikit-learn estimator: rows of X are snapshots, ``transform`` gives coefficients."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ensemblekit.errors import MissingExtraError
from ensemblekit.intake import as_array
from ensemblekit.rom.basis import Basis
from ensemblekit.rom.decompose.problem import Center
from ensemblekit.rom.product import GivenProduct
from ensemblekit.rom.rank import Rule


class PODTransformer:
    """The methods of the estimator; scikit-learn's classes are put under it at first use, as it is only imported then."""

    def __init__(self, n_components: int | str | None = None, *, energy: float | None = None,
                 tolerance: float | None = None, inner_product: GivenProduct = None, center: Center = "mean",
                 method: str = "auto", memory_limit: float | str = "2GiB"):
        self.n_components = n_components
        self.energy = energy
        self.tolerance = tolerance
        self.inner_product = inner_product
        self.center = center
        self.method = method
        self.memory_limit = memory_limit

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Decompose the rows of X."""
        self.fit_transform(X)
        return self

    def fit_transform(self, X: ArrayLike, y: object = None) -> np.ndarray:
        """Decompose the rows of X and return their coefficients (n, k)."""
        from sklearn.utils.validation import validate_data

        from ensemblekit.rom.decompose import pod

        values = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        rank = self.n_components
        if isinstance(rank, int | np.integer) and not isinstance(rank, bool):
            rank = min(int(rank), *values.shape)
        Rule.of(rank, self.energy, self.tolerance, None, len(values))
        energy = 1.0 if rank is None and self.energy is None and self.tolerance is None else self.energy
        self.basis_: Basis = pod(values, rank, energy=energy, tolerance=self.tolerance, snapshot_axis=0,
                                 inner_product=self.inner_product, center=self.center, method=self.method,
                                 memory_limit=self.memory_limit)
        basis = self.basis_
        self.components_ = basis.modes if basis.mask is None else np.nan_to_num(basis.modes)
        self.singular_values_ = basis.singular_values
        self.mean_ = basis.mean
        self.explained_variance_ = basis.singular_values**2 / (len(values) - 1)
        self.explained_variance_ratio_ = basis.energy_fraction
        self.n_components_ = basis.rank
        return self._typed(basis.coefficients, values)

    def transform(self, X: ArrayLike) -> np.ndarray:
        """The coefficients of the rows of X."""
        from sklearn.utils.validation import check_is_fitted, validate_data

        check_is_fitted(self)
        values = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._typed(self.basis_.project(values), values)

    def inverse_transform(self, X: ArrayLike) -> np.ndarray:
        """Rows from their coefficients (m, k)."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        return self.basis_.reconstruct(as_array(X, "coefficients"))

    @staticmethod
    def _typed(output: np.ndarray, values: np.ndarray) -> np.ndarray:
        return output.astype(values.dtype, copy=False)

    @property
    def _n_features_out(self) -> int:
        return self.basis_.rank


def _estimator() -> type:
    """The class POD."""
    try:
        from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "sklearn") from error

    class POD(PODTransformer, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
        """Proper orthogonal decomposition of the rows of X, as a transformer.

        Parameters are those of :func:`ensemblekit.rom.pod`. `n_components` is the rank; larger than what X has, it is cut
        to that. Fitted attributes: ``basis_`` (the Basis), ``components_`` (k, size), ``singular_values_``, ``mean_``,
        ``explained_variance_``, ``explained_variance_ratio_``, ``n_components_``.
        """

        def __sklearn_tags__(self) -> Any:
            tags = super().__sklearn_tags__()
            tags.transformer_tags.preserves_dtype = ["float64", "float32"]
            return tags

    POD.__module__ = __name__
    POD.__qualname__ = "POD"
    return POD


def __getattr__(name: str) -> Any:
    if name == "POD":
        estimator = _estimator()
        globals()["POD"] = estimator
        return estimator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

