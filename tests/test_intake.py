"""The door for arrays: nothing that arrays of other packages say of themselves is dropped without a word."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.averaging.circular import circular_average
from ensemblekit.errors import EnsemblekitError, InputError
from ensemblekit.intake import as_array
from ensemblekit.neural.calibration import calibration_error
from ensemblekit.source import ArraySource

RNG = np.random.default_rng(7)


def masked(shape: tuple[int, ...] = (300,), dtype: Any = float) -> np.ma.MaskedArray:
    """Numbers about 20, every tenth snapshot masked with -999 beneath."""
    m = np.ma.array((20 + RNG.normal(size=shape)).astype(dtype))
    m[::10] = np.ma.masked
    m.data[::10] = -999
    return m


class Quantity:
    """Numbers with a unit, as pint has them."""

    def __init__(self, magnitude: Any, units: str):
        self.magnitude, self.units = magnitude, units

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.magnitude, dtype)


class Named:
    """Numbers whose axes have names, as xarray has them."""

    def __init__(self, data: Any, dims: tuple[str, ...], attrs: dict[str, str] | None = None):
        self.data, self.dims, self.attrs = data, dims, attrs or {}

    def to_numpy(self) -> np.ndarray:
        return np.asarray(self.data)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.data, dtype)


class Sparse:
    """A matrix of which most numbers are not there."""

    nnz = 3

    def todense(self) -> Any: ...


FLAT = masked()
WIDE = masked((60, 8))
PROBABILITIES = np.full((20, 2), 0.5)

HIDES: dict[str, Callable[[], Any]] = {
    "average": lambda: ek.average(FLAT).mean,
    "average of a list": lambda: ek.average(list(WIDE)).mean[0],
    "average of a map": lambda: ek.average(np.asarray(FLAT.data), map=lambda b: np.ma.masked_less(b.only, 0)).mean,
    "reduce": lambda: ek.reduce(FLAT, ek.Moments()).mean,
    "partials": lambda: ek.partials(FLAT, {"values": ek.Moments()})[0].states[0]["values"][0].result().mean,
    "a source": lambda: ek.reduce(ArraySource({"values": FLAT}), ek.Moments()).mean,
    "several fields": lambda: ek.reduce({"a": FLAT.data, "b": FLAT}, {"b": ek.Moments()})["b"].mean,
    "replicas": lambda: ek.average(ek.ReplicaSet.of([FLAT, FLAT])).mean,
    "weights": lambda: ek.average(FLAT.data, weights=FLAT).mean,
    "weights with list": lambda: ek.average([1.0, 2, 3], weights=[1.0, np.ma.masked, 1.0]).mean,
    "times": lambda: ArraySource.of(FLAT.data, times=np.ma.array(np.arange(300.0), mask=FLAT.mask)),
    "effective_samples": lambda: ek.statistics.effective_samples(FLAT),
    "normalised_weights": lambda: ek.statistics.normalised_weights(log_weights=FLAT),
    "circular_average": lambda: circular_average(FLAT).mean.mean,
    "autocorrelation": lambda: ek.statistics.autocorrelation(FLAT),
    "jackknife": lambda: ek.statistics.jackknife(FLAT),
    "block_bootstrap": lambda: ek.statistics.block_bootstrap(FLAT),
    "blocking": lambda: ek.statistics.blocking(FLAT).mean,
    "rhat": lambda: ek.statistics.rhat(masked((300, 4)).T),
    "ergodicity": lambda: ek.statistics.ergodicity([FLAT, FLAT]),
    "consensus": lambda: ek.statistics.consensus(FLAT, np.ones(300)),
    "diverse_subset": lambda: ek.statistics.diverse_subset(WIDE, 3),
    "pod": lambda: rom.pod(WIDE, 2),
    "pod, columns": lambda: rom.pod(WIDE.T, 2, snapshot_axis=1),
    "project": lambda: rom.pod(WIDE.data, 2).project(WIDE)[0, 0],
    "compress": lambda: rom.compress(WIDE, tolerance=0.1),
    "incremental": lambda: rom.IncrementalPOD(rank=2).update(WIDE).result(),
    "incremental, weights": lambda: rom.IncrementalPOD(rank=2).update(WIDE.data, weights=FLAT[:60]).result(),
    "inner product": lambda: rom.pod(WIDE.data, 2, inner_product=np.ma.array(np.ones(8), mask=[1] + 7 * [0])),
    "center": lambda: rom.pod(WIDE.data, 2, center=np.ma.array(np.ones(8), mask=[1] + 7 * [0])),
    "rom.average": lambda: rom.average(WIDE)["values_mean"].mean[0],
    "calibration": lambda: calibration_error(np.ma.array(PROBABILITIES, mask=PROBABILITIES < 0.6), np.zeros(20, int)),
}


@pytest.mark.parametrize("name", HIDES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_what_is_masked_counts_nowhere(name: str) -> None:
    try:
        answer = HIDES[name]()
    except EnsemblekitError as error:
        assert "NaN" in str(error) or "nan" in str(error) or "finite" in str(error)  # noqa: PT017
    else:
        assert np.isnan(answer)


def test_a_store_takes_masked_floats_as_nan_and_refuses_others(tmp_path: Path) -> None:
    with ek.create(tmp_path / "a.h5", {"u": ek.Field((3,), "f8")}) as store:
        store.append({"u": np.ma.array([1.0, -999, 3], mask=[0, 1, 0])})
        store.extend({"u": np.ma.array([[1.0, -999, 3]], mask=[[0, 1, 0]])})
        assert np.isnan(store["u"][:, 1]).all()
        with pytest.raises(InputError, match="finite"):
            store.extend({"u": np.ones((1, 3))}, weights=np.ma.array([-999.0], mask=[1]))
    with ek.create(tmp_path / "b.h5", {"u": ek.Field((3,), "i8")}) as store:
        with pytest.raises(InputError, match="1 of 3 numbers are masked"):
            store.append({"u": np.ma.array([1, -999, 3], mask=[0, 1, 0])})
        assert len(store) == 0
    with ek.create(tmp_path / "c.h5", {"u": ek.Field((3,), "f8", finite=True)}) as store, pytest.raises(
            InputError, match="NaN"):
        store.append({"u": np.ma.array([1.0, -999, 3], mask=[0, 1, 0])})


@pytest.mark.parametrize(("x", "remedy"), [
    (np.ma.array([1, 2], mask=[0, 1]), "x.astype(float)"),
    (np.ma.array([True, False], mask=[0, 1]), "x.astype(float)"),
    (Named(np.ones((3, 5)), ("lat", "lon")), "x.to_numpy()"),
    (Sparse(), "x.toarray()"),
    ((k for k in range(4)), "numpy.stack(list(x))"),
    (map(float, range(4)), "numpy.stack(list(x))"),
    ({1.0, 2.0}, "numpy.stack(list(x))"),
    ("run.h5", "ek.open('run.h5')"),
    (Path("run.h5"), "rom.read('run.h5')"),
    (b"run.h5", "ek.open"),
    ([[1, 2], [3]], "same shape"),
    ([1.0, None], "NaN"),
    (np.arange(3).astype("M8[s]"), "numpy.timedelta64"),
    (np.zeros(2, [("a", "f8")]), "by name"),
    (["a", "b"], "no numbers"),
])
@pytest.mark.parametrize("where", [as_array, ek.average, lambda x: rom.pod(x, 1), lambda x: ek.reduce(x, ek.Moments())])
def test_what_would_be_misread_is_refused_with_the_remedy(x: Any, remedy: str, where: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match=re.escape(remedy)):
        where(x)


@pytest.mark.parametrize(("x", "unit"), [
    (Quantity(np.arange(5.0), "meter"), "meter"),
    ([Quantity(float(k), "meter") for k in range(5)], "meter"),
    (Named(Quantity(np.arange(5.0), "kelvin"), ("time",)), "kelvin"),
])
def test_units_are_kept_where_they_can_be_and_refused_elsewhere(x: Any, unit: str) -> None:
    assert (ek.average(x).mean, ek.average(x).unit) == (2.0, unit)
    with pytest.raises(InputError, match=f"{unit}.*x.magnitude"):
        as_array(x)


def test_axes_with_names_may_come_in_any_order() -> None:
    x = RNG.normal(size=(3, 50))
    transposed = Named(x, ("x", "time"))
    np.testing.assert_array_equal(as_array(transposed), x.T)
    np.testing.assert_array_equal(ek.average(transposed).mean, ek.average(x.T).mean)
    np.testing.assert_array_equal(rom.pod(transposed, 1).modes, rom.pod(np.ascontiguousarray(x.T), 1, snapshot_axis=0).modes)


def test_what_is_plain_is_taken() -> None:
    x = np.ones((4, 2), "f4")
    assert as_array(x) is x
    assert as_array(np.ma.array([1, 2])).tolist() == [1, 2]
    assert as_array(Quantity([1.0, 2.0], "dimensionless")).tolist() == [1.0, 2.0]
    assert as_array(Named(x, ("time", "x"))) is x
    assert as_array(Named(x, ("x", "time")), named_axes=True) is x
    assert as_array(Named(np.ones(3), ("x",))).shape == (3,)
    assert as_array([x, np.ma.array(x)]).shape == (2, 4, 2)
    assert as_array(range(3)).tolist() == [0, 1, 2]
    assert ek.average(Named(np.arange(9.0), ("time",), {"units": "K"})).unit == "K"


def test_series_of_pandas() -> None:
    pd = pytest.importorskip("pandas")
    x, w = pd.Series(np.arange(9.0)), pd.Series(np.arange(9.0))
    assert ek.average(x, weights=w).mean == pytest.approx(17 / 3)
    with pytest.raises(InputError, match=r"weights.reindex"):
        ek.average(x, weights=w.sort_values(ascending=False))
    assert np.isnan(ek.average(pd.Series([1, None, 3], dtype="Int64")).mean)
    with pytest.raises(InputError, match="select_dtypes"):
        ek.average(pd.DataFrame({"a": [1.0, 2], "b": ["x", "y"]}))


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(40.0)
    assert ek.average(x.to(torch.bfloat16)).mean == pytest.approx(19.5)
    assert ek.average(x.reshape(20, 2).to(torch.bfloat16)).mean == pytest.approx([19, 20])
    with pytest.raises(InputError, match=r"x.to_dense\(\)"):
        ek.average(torch.eye(4).to_sparse())
    assert as_array([x, x]).shape == (2, 40)
    assert as_array(x.clone().requires_grad_(True)).sum() == 780
    torch.manual_seed(0)
    tracked = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
    plain = tracked.detach().numpy()
    np.testing.assert_allclose(ek.reduce(tracked, ek.Covariance()).covariance, np.cov(plain.T), rtol=1e-10)
    np.testing.assert_allclose(rom.average(tracked, equilibration=None)["values_mean"].mean, plain.mean(axis=0), rtol=1e-10)
    assert rom.pod(tracked, 2, snapshot_axis=0).rank == 2


BASIS = rom.pod(WIDE.data, 2, snapshot_axis=0)


@pytest.mark.parametrize(("call", "remedy"), [
    (lambda: BASIS.reconstruct("a.npy"), "a path is not a source"),
    (lambda: BASIS.reconstruct(k for k in range(3)), "numpy.stack"),
    (lambda: BASIS.reconstruct(Sparse()), "x.toarray()"),
    (lambda: BASIS.reconstruct([[1.0, 2.0, 3.0]]), "shape (m, 2)"),
    (lambda: BASIS.reconstruct([0, 60]), "snapshots 0 to 60 of 60"),
    (lambda: rom.IncrementalPOD(rank=2).update(WIDE.data).update(np.full((4, 8), "a")), "no numbers"),
    (lambda: rom.IncrementalPOD(rank=2).update(WIDE.data).update(np.zeros((4, 8), "M8[s]")), "timedelta64"),
    (lambda: ek.statistics.ergodicity(None), "several runs in a list"),
    (lambda: ek.statistics.blocking(np.array(3.0)), "a single number"),
    (lambda: as_array(np.array([1.0, 2.0], object)), "x.astype(float)"),
])
def test_no_raw_traceback(call: Callable[[], Any], remedy: str) -> None:
    with pytest.raises(InputError, match=re.escape(remedy)):
        call()


def test_rows_of_a_basis_by_number_or_as_coefficients() -> None:
    np.testing.assert_array_equal(BASIS.reconstruct([0, -1]), BASIS.reconstruct(BASIS.coefficients[[0, -1]]))
    np.testing.assert_array_equal(BASIS.reconstruct(BASIS.coefficients.tolist()), BASIS.reconstruct())
    assert BASIS.project(np.empty((0, 8))).shape == (0, 2)


def test_a_store_refuses_what_is_no_array(tmp_path: Path) -> None:
    with ek.create(tmp_path / "a.h5", {"u": ek.Field((3,), "f8")}) as store:
        with pytest.raises(InputError, match=r"x.toarray\(\)"):
            store.extend({"u": Sparse()})
        with pytest.raises(InputError, match="a mapping of field to array"):
            store.extend(np.ones((4, 3)))       # type: ignore[arg-type]
        store.extend({"u": np.empty((0, 3))})
        assert len(store) == 0
