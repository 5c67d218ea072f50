"""Arrays with labels: the same numbers as plain arrays, and their names, coordinates, units and dates back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom, source_labelled
from ensemblekit.errors import EnsemblekitError, InputError, StoreDamagedError
from ensemblekit.intake_dates import dates_of, numbers_of_dates
from ensemblekit.source import as_source
from ensemblekit.source_labelled import LazySource

xr = pytest.importorskip("xarray")
pd = pytest.importorskip("pandas")

N, NY, NX = 48, 7, 12
LAT, LON = np.linspace(80, -80, NY), np.arange(0, 360, 30.0)
PHI, THETA = np.deg2rad(LAT), np.deg2rad(LON)
CLOCK = np.arange(N) * 0.37
RNG = np.random.default_rng(3)
VALUES = (280 + 9 * np.sin(CLOCK)[:, None, None] * np.outer(np.cos(PHI), np.cos(THETA))
          + 3 * np.cos(2.1 * CLOCK)[:, None, None] * np.outer(np.sin(PHI), np.sin(2 * THETA))
          + 0.2 * RNG.normal(size=(N, NY, NX)))
DATES = pd.date_range("2001-12-30", periods=N, freq="6h")
WEIGHTS = np.cos(PHI)[:, None] * np.ones(NX)


def temperature(values: np.ndarray = VALUES, **more: Any) -> Any:
    return xr.DataArray(values, dims=("time", "latitude", "longitude"), name="t2m", attrs={"units": "K", "long_name": "2 m"},
                        coords={"time": DATES[:len(values)], "latitude": ("latitude", LAT, {"units": "degrees_north"}),
                                "longitude": ("longitude", LON, {"units": "degrees_east"}), **more})


def by_hand(values: np.ndarray, weights: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and modes (k, *item) of the fluctuation in an inner product; the largest entry of each positive."""
    roots = np.sqrt(weights).ravel()
    _, s, v = np.linalg.svd((values - values.mean(axis=0)).reshape(len(values), -1) * roots, full_matrices=False)
    modes = v[:k] / roots
    modes *= np.sign(modes[np.arange(k), np.abs(modes).argmax(axis=1)])[:, None]
    return s[:k], modes.reshape(k, *values.shape[1:])


def as_by_hand(basis: rom.Basis, weights: np.ndarray = WEIGHTS, values: np.ndarray = VALUES) -> None:
    s, modes = by_hand(values, weights, basis.rank)
    data = basis.to_xarray()
    np.testing.assert_allclose(data["singular_values"], s, rtol=1e-10)
    transposed = data["modes"].transpose("mode", "latitude", "longitude")
    np.testing.assert_allclose(transposed, modes, atol=1e-9 * np.abs(modes).max())
    np.testing.assert_allclose(data["mean"].transpose("latitude", "longitude"), values.mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(data["latitude"], LAT)
    np.testing.assert_array_equal(data["time"].values, DATES.values[:len(values)])
    assert (data["modes"].attrs["units"], data["modes"].attrs["long_name"]) == ("K", "2 m")


def to_zarr(x: Any, path: Path, **encoding: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x.to_zarr(path, mode="w", encoding=encoding)
    return path


# -- the same numbers as plain arrays ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("order", [("time", "latitude", "longitude"), ("longitude", "latitude", "time"),
                                   ("latitude", "time", "longitude")])
@pytest.mark.parametrize("how", ["memory", "read", "dask", "zarr"])
def test_a_pod_is_that_of_numpy_on_the_coordinates_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                order: tuple[str, ...], how: str) -> None:
    monkeypatch.setattr(source_labelled, "SMALL", 0)
    x: Any = temperature().transpose(*order)
    if how == "read":
        x = rom.read(x)
    elif how == "dask":
        x = x.chunk({"time": 10})
        assert isinstance(as_source(x), LazySource)
    elif how == "zarr":
        x = to_zarr(x.to_dataset(), tmp_path / "era.zarr", t2m={"chunks": tuple(13 if d == "time" else 5 for d in order)})
    basis = rom.pod(x, 2)
    as_by_hand(basis)
    assert "cosine of the latitude 'latitude'" in basis.notes[0]
    basis.save(tmp_path / "basis.h5")
    assert rom.Basis.load(tmp_path / "basis.h5").to_xarray().identical(basis.to_xarray())


def test_files_of_different_epochs_and_calendars(tmp_path: Path) -> None:
    x = temperature().to_dataset()
    a, b = tmp_path / "a.nc", tmp_path / "b.nc"
    x.isel(time=slice(0, 20)).to_netcdf(a, engine="h5netcdf", encoding={"time": {"units": "hours since 1900-01-01",
                                                                               "calendar": "standard"}})
    x.isel(time=slice(20, None)).to_netcdf(b, engine="scipy", encoding={"time": {
        "units": "days since 2000-02-28", "calendar": "proleptic_gregorian", "dtype": "f8"}})
    basis = rom.pod([a, b], 2)
    as_by_hand(basis)
    x.isel(time=slice(20, None)).convert_calendar("noleap").to_netcdf(b, engine="scipy", encoding={"time": {
        "units": "days since 1999-03-01", "calendar": "noleap", "dtype": "f8"}})
    with pytest.warns(UserWarning, match=r"b.nc: its calendar is noleap.*dates"):
        as_by_hand(rom.pod(rom.read([a, b]), 2))
    alone = rom.pod(b, 2)
    assert alone.dates is not None
    assert alone.dates[0].isoformat() == "2002-01-04T00:00:00"
    assert alone.to_xarray()["time"].dt.calendar == "noleap"


def test_averages_are_those_of_plain_arrays() -> None:
    plain = ek.average(VALUES)
    for x in (temperature(), temperature().transpose("longitude", "time", "latitude"), temperature().to_dataset(),
              temperature().rename(time="valid_time")):
        e = ek.average(x)
        data = e.to_xarray()
        np.testing.assert_array_equal(data["mean"].transpose("latitude", "longitude"), plain.mean)
        np.testing.assert_array_equal(data["stderr"].transpose("latitude", "longitude"), plain.stderr)
        assert (e.unit, e.time_unit) == ("K", "hours")
    e = ek.average(temperature()[:, 2, 3])
    assert e.mean == ek.average(VALUES[:, 2, 3]).mean
    assert e.dates is not None
    np.testing.assert_array_equal(e.dates, DATES.values)
    np.testing.assert_array_equal(ek.average(xr.DataArray(VALUES[:, 0], dims=("sample", "x"))).mean,
                                  ek.average(VALUES[:, 0]).mean)


def test_land_that_is_missing_is_left_out_and_stays_in_place() -> None:
    sea = temperature().where(temperature()["latitude"] < 60)
    basis = rom.pod(sea, 2)
    s, modes = by_hand(VALUES[:, 1:], WEIGHTS[1:], 2)
    np.testing.assert_allclose(basis.singular_values, s, rtol=1e-10)
    data = basis.to_xarray()
    assert np.isnan(data["modes"][:, 0]).all()
    assert not data["mask"][0].any()
    np.testing.assert_allclose(data["modes"][:, 1:], modes, atol=1e-9)


@pytest.mark.parametrize("say", ["name", "measures", "weights", "inner_product"])
def test_areas_of_cells_are_taken_and_said(tmp_path: Path, say: str) -> None:
    area = np.linspace(1, 2, NY * NX).reshape(NY, NX)
    name = {"name": "TAREA", "measures": "cells"}.get(say, "size")
    x = temperature(**{name: (("latitude", "longitude"), area)}).to_dataset()
    options: dict[str, Any] = {}
    if say == "measures":
        x["t2m"].attrs["cell_measures"] = "area: cells"
    elif say == "weights":
        options = {"weights": "size"}
    elif say == "inner_product":
        options = {"inner_product": "size"}
    x.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    given = [x, x["t2m"], x.transpose("longitude", "latitude", "time")]
    for one in [*given, tmp_path / "a.nc"] if say != "inner_product" else given:
        basis = rom.pod(one, 2, **options)
        as_by_hand(basis, area)
        assert say == "inner_product" or name in basis.notes[0]
    s, _ = by_hand(VALUES, area, 2)
    transposed = x[name].transpose("longitude", "latitude")
    np.testing.assert_allclose(rom.pod(temperature(), 2, inner_product=transposed).singular_values, s, rtol=1e-10)
    with pytest.raises(InputError, match="'nowhere'"):
        rom.pod(x, 2, weights="nowhere")
    with pytest.raises(InputError, match="other coordinates along 'latitude'"):
        rom.pod(temperature(), 2, inner_product=x[name][::-1])


def test_what_was_not_taken_is_said_too() -> None:
    x = xr.DataArray(VALUES[:, 0], dims=("time", "member"))
    basis = rom.pod(x, 2)
    assert "inner product: none for values" in basis.notes[0]
    curvilinear = temperature().rename(latitude="y", longitude="x").drop_vars(["y", "x"]).assign_coords(
        TLAT=(("y", "x"), LAT[:, None] * np.ones(NX)))
    basis = rom.pod(curvilinear, 2)
    assert "'TLAT'" in basis.notes[0]
    np.testing.assert_allclose(basis.singular_values, by_hand(VALUES, WEIGHTS, 2)[0], rtol=1e-10)


def test_statistical_weights_by_name() -> None:
    w = np.linspace(1, 3, N)
    x = temperature().to_dataset().assign(w=("time", w))
    np.testing.assert_allclose(ek.average(x["t2m"].assign_coords(w=("time", w))[:, 0, 0], weights="w").mean,
                               np.average(VALUES[:, 0, 0], weights=w))
    np.testing.assert_allclose(rom.pod(x, 2, weights="w").singular_values,
                               rom.pod(VALUES, 2, weights=w, inner_product=WEIGHTS).singular_values, rtol=1e-10)
    with pytest.raises(InputError, match="other coordinates along 'time'"):
        ek.average(temperature(), weights=xr.DataArray(w, dims="time", coords={"time": DATES[::-1]}))


def test_which_axis_is_time_is_found_or_asked() -> None:
    x = xr.DataArray(VALUES[:, 0], dims=("run_day", "x"), coords={"run_day": DATES})
    np.testing.assert_array_equal(ek.average(x).mean, ek.average(VALUES[:, 0]).mean)       # by its dates
    y = xr.DataArray(VALUES[:, 0], dims=("a", "b"))
    with pytest.raises(InputError, match=r"no axis of 'a', 'b'.*time="):
        ek.average(y)
    np.testing.assert_array_equal(ek.average(y.T, time="a").mean, ek.average(VALUES[:, 0]).mean)
    assert rom.pod(y.T, 2, time="a").n == N
    assert len(rom.read(y, time="a")) == N
    with pytest.raises(InputError, match="'frame' or 'sample'"):
        ek.average(xr.DataArray(np.ones((3, 4)), dims=("frame", "sample")))
    with pytest.raises(InputError, match="run backwards"):
        ek.average(temperature()[::-1])


def test_tables_of_pandas() -> None:
    s = pd.Series(VALUES[:, 0, 0], index=DATES)
    e = ek.average(s)
    assert e.mean == ek.average(VALUES[:, 0, 0]).mean
    assert e.time_unit == "hours"
    np.testing.assert_array_equal(e.dates, DATES.values)
    frame = pd.DataFrame({"a": VALUES[:, 0, 0], "b": VALUES[:, 1, 0]}, index=DATES)
    e = ek.average(frame)
    assert e.to_xarray()["mean"].sel(column="b").item() == pytest.approx(VALUES[:, 1, 0].mean(), rel=1e-14)
    assert e.to_dataframe().loc["a", "mean"] == pytest.approx(VALUES[:, 0, 0].mean(), rel=1e-14)
    assert rom.pod(frame, 1).to_xarray()["modes"].dims == ("mode", "column")
    assert ek.average(s.reset_index(drop=True)).time_unit == ""


# -- units -----------------------------------------------------------------------------------------------------------------

def test_units_of_pint() -> None:
    u = pytest.importorskip("pint").UnitRegistry()
    x = VALUES[:, 0, 0]
    assert ek.average(x * u("m/s**2")).unit == "m s-2"
    assert ek.average(xr.DataArray(x * u.kelvin, dims="time")).unit == "K"
    both = ek.average(ek.ReplicaSet.of([x * u.m, 100 * x * u.cm]))
    assert (both.unit, both.mean) == ("m", pytest.approx(x.mean()))
    with pytest.raises(InputError, match=r"run 1: numbers in 's' where 'm' is wanted"):
        ek.ReplicaSet.of([x * u.m, x * u.s])
    assert ek.average([1 * u.m, 200 * u.cm, 3 * u.m]).mean == pytest.approx(2)
    basis = rom.pod(VALUES.reshape(N, -1) * u.m, 2)
    assert basis.unit == "m"
    np.testing.assert_allclose(basis.project(100 * VALUES.reshape(N, -1) * u.cm), basis.coefficients, atol=1e-9)
    source = ek.ArraySource.of(x, times=np.arange(N) * u.ps)
    assert source.time_unit == "ps"


# -- dates -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("freq", ["D", "6h", "17min", "10ms", "123us"])
def test_dates_go_there_and_back(freq: str) -> None:
    dates = pd.date_range("1979-12-31 23:59", periods=500, freq=freq).values
    numbers, unit, epoch, calendar = numbers_of_dates(dates)
    assert numbers is not None
    np.testing.assert_array_equal(dates_of(numbers, unit, epoch, calendar), dates)
    numbers, unit, epoch, calendar = numbers_of_dates(dates[:9], "days since 1850-01-01")
    assert (unit, epoch) == ("days", "1850-01-01")
    late = np.abs(dates_of(numbers, unit, epoch, calendar) - dates[:9])      # type: ignore[arg-type]
    assert late.max() <= np.timedelta64(20, "us")


def test_times_given_as_dates() -> None:
    source = ek.ArraySource.of(VALUES[:, 0, 0], times=DATES)
    assert (source.time_unit, source.times[1]) == ("hours", 6.0)       # type: ignore[index]
    e = ek.average(source)
    np.testing.assert_array_equal(e.dates, DATES.values)
    with pytest.raises(InputError, match="NaT"):
        ek.ArraySource.of(VALUES[:3, 0, 0], times=[DATES[0], pd.NaT, DATES[1]])


# -- lazy ------------------------------------------------------------------------------------------------------------------

def test_no_chunk_is_computed_twice() -> None:
    dask = pytest.importorskip("dask.array")
    calls: list[int] = []

    def chunk(start: int) -> np.ndarray:
        calls.append(start)
        return np.random.default_rng(start).normal(size=(20, 128, 256))

    import dask as d

    parts = [dask.from_delayed(d.delayed(chunk)(k), (20, 128, 256), float) for k in range(9)]
    x = xr.DataArray(dask.concatenate(parts), dims=("time", "y", "x"))
    source = as_source(x)
    assert isinstance(source, LazySource)
    mean = ek.reduce(source, ek.Moments()).mean
    assert sorted(calls) == list(range(9))
    np.testing.assert_allclose(mean, np.concatenate([chunk(k) for k in range(9)]).mean(axis=0), atol=1e-14)


def failing() -> Any:
    dask = pytest.importorskip("dask.array")

    def broken(block: np.ndarray) -> np.ndarray:
        raise ValueError("the disk is gone")

    return xr.DataArray(dask.zeros((400, 64, 256), chunks=(40, -1, -1)).map_blocks(broken, dtype=float),
                        dims=("time", "y", "x"))


def test_what_cannot_be_computed_is_named() -> None:
    with pytest.raises(EnsemblekitError, match="the disk is gone"):
        ek.average(failing())


WORK = """
import resource, sys
import dask.array as da, numpy as np, xarray as xr
import ensemblekit as ek
from ensemblekit import rom
n, ny, nx = {shape}
t = da.arange(n, chunks=8, dtype="f4")[:, None, None]
y = da.from_array(np.linspace(0, 3, ny, dtype="f4"), chunks=-1)[None, :, None]
x = da.from_array(np.linspace(0, 3, nx, dtype="f4"), chunks=-1)[None, None, :]
u = (3 * da.sin(0.1 * t) * da.sin(y) * da.sin(x) + da.cos(0.37 * t) * da.sin(2 * y) * da.sin(x)).astype("f4")
u = xr.DataArray(u, dims=("time", "y", "x"), name="u")
rom.pod(np.random.default_rng(0).normal(size=(30, 40)), 2, snapshot_axis=0)
before = int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
import threading, time
most, over = [before], threading.Event()
def look():
    while not over.wait(0.01):
        most[0] = max(most[0], int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]))
threading.Thread(target=look, daemon=True).start()
basis = rom.pod(u, 2, memory_limit="{limit}")
over.set()
print(u.nbytes, (most[0] - before) * 1024, basis.relative_error, basis.passes, basis.method)
"""


def in_bounds(shape: tuple[int, int, int], limit: str, most: int) -> None:
    code = textwrap.dedent(WORK).format(shape=shape, limit=limit)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nbytes, anonymous, error = (float(k) for k in done.stdout.split()[:3])
    assert nbytes == np.prod([float(k) for k in shape]) * 4
    assert anonymous < most, done.stdout
    assert error < 1e-2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_lazy_array_is_never_held_whole() -> None:
    in_bounds((400, 256, 512), "110MiB", 150 << 20)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_twenty_gigabytes_under_one() -> None:
    in_bounds((2400, 1024, 2048), "1GiB", 1 << 30)




# -- other results -----------------------------------------------------------------------------------------------------------

def test_predictions_go_to_xarray() -> None:
    pytest.importorskip("torch")
    from ensemblekit.neural.prediction import Prediction, RegressionPrediction

    p = np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]])
    said = Prediction(p, np.array([0, 1, 1]), np.full(3, 0.1), np.zeros(3), index=np.array([4, 5, 9]), n_members=3)
    data = said.to_xarray()
    assert data["probabilities"].dims == ("item", "class")
    np.testing.assert_array_equal(data["probabilities"].sel(item=9), p[2])
    np.testing.assert_array_equal(data["entropy"], said.entropy)
    assert said.to_dataframe().loc[5, "probability_1"] == 0.8
    maps = Prediction(np.full((2, 3, 4, 5), 1 / 3), None, np.ones((2, 4, 5)), np.zeros((2, 4, 5)))
    assert maps.to_xarray()["choice"].dims == ("item", "axis_0", "axis_1")
    with pytest.raises(InputError, match="to_xarray"):
        maps.to_dataframe()
    number = RegressionPrediction(np.arange(3.0), np.ones(3), np.ones(3), target=np.zeros(3))
    np.testing.assert_array_equal(number.to_xarray()["std"], np.sqrt(2) * np.ones(3))


def test_averages_by_name_go_to_xarray() -> None:
    averages = rom.average(temperature(), ["mean", "rms"])
    data = averages.to_xarray()
    mean = averages["t2m_mean"]
    assert data["t2m_mean"].dims == ("latitude", "longitude")
    np.testing.assert_array_equal(data["t2m_mean"], mean.mean)
    np.testing.assert_array_equal(data["t2m_rms_high"], averages["t2m_rms"].high)
    np.testing.assert_array_equal(data["latitude"], LAT)
    assert data["t2m_mean"].attrs["units"] == "K"
    with pytest.raises(InputError, match="come from one run"):
        averages["t2m_mean"] - averages["t2m_rms"]


# -- units that meet -----------------------------------------------------------------------------------------------------


def test_units_that_attributes_name_are_converted_where_they_meet(tmp_path: Path) -> None:
    """A DataArray in km among numbers in m was taken for m."""
    pint = pytest.importorskip("pint")
    quantity = pint.get_application_registry().Quantity
    row = np.arange(4.0)
    km = xr.DataArray(row, dims="x", attrs={"units": "km"})
    fields = {"u": ek.Field((4,), unit="m"), "t": ek.Field(unit="K"), "n": ek.Field()}
    with ek.create(tmp_path / "a.h5", fields) as store:
        for u in (row, km, xr.DataArray(quantity(row, "km"), dims="x"), quantity(row, "km"), quantity(row, "m")):
            store.append({"u": u, "t": quantity(20.0, "degC"), "n": 1.0})
        store.append({"u": km, "t": xr.DataArray(20.0, attrs={"units": "degC"}), "n": quantity(2.0, "dimensionless")})
        store.extend({"u": xr.DataArray(np.stack([row, row]), dims=("time", "x"), attrs={"units": "km"}), "t": [1.0, 2.0],
                      "n": [3, 4]})
        np.testing.assert_allclose(store["u"][:], np.outer([1, 1e3, 1e3, 1e3, 1, 1e3, 1e3, 1e3], row), rtol=1e-12)
        np.testing.assert_allclose(store["t"][:6], np.full(6, 293.15))
        kelvin = xr.DataArray(row, dims="x", attrs={"units": "K"})
        for wrong, why in ((quantity(row, "s"), "'s' where 'm'"), (kelvin, "'K'")):
            with pytest.raises(InputError, match=why):
                store.append({"u": wrong, "t": 1.0, "n": 1.0})
        with pytest.raises(InputError, match="says no unit"):
            store.append({"u": row, "t": 1.0, "n": quantity(1.0, "m")})
        assert len(store) == 8
    runs = ek.ReplicaSet.of([xr.DataArray(row, dims="time", attrs={"units": unit}) for unit in ("m", "km")]).runs
    metres, kilometres = (ek.reduce(run, ek.Moments()).mean for run in runs)
    np.testing.assert_allclose(kilometres, 1e3 * metres)


def test_figures_along_time_are_of_dates(tmp_path: Path) -> None:
    from matplotlib.dates import num2date

    from ensemblekit.plot import averages as draw_averages

    e = ek.average(xr.DataArray(VALUES[:, 0, 0], dims="time", coords={"time": DATES}))
    ax = draw_averages.running_mean(e)
    assert num2date(ax.get_xlim()[0]).strftime("%Y-%m-%d") == str(DATES.values[0])[:10]
    assert ax.get_xlabel() == "time"
    basis = rom.pod(xr.DataArray(VALUES, dims=("time", "y", "x"), coords={"time": DATES}), rank=2)
    from ensemblekit.plot import rom as draw

    ax = draw.snapshot_errors(basis)
    assert num2date(ax.get_xlim()[1]).strftime("%Y-%m-%d") == str(DATES.values[-1])[:10]
    draw.phase_portrait(basis)[1].figure.canvas.draw()
    noleap = xr.date_range("2001-01-01", periods=len(VALUES), calendar="noleap", use_cftime=True)
    ax = draw_averages.running_mean(ek.average(xr.DataArray(VALUES[:, 0, 0], dims="time", coords={"time": noleap})))
    ax.figure.canvas.draw()
    assert all(text.get_text()[:2] in ("20", "") for text in ax.get_xticklabels())


@pytest.mark.filterwarnings("ignore:.*opens in ParaView")
@pytest.mark.parametrize("form", ["array", "zarr", "curvilinear", "calendar"])
def test_a_store_keeps_labels_coordinates_units_and_dates(form: str, tmp_path: Path) -> None:
    """What is ingested gives the same basis, coordinates and dates as what it was ingested from."""
    pytest.importorskip("cftime")
    source: Any = temperature()
    path = tmp_path / "run.h5"
    if form == "curvilinear":
        north, east = np.meshgrid(LAT, LON, indexing="ij")
        source = xr.DataArray(VALUES, dims=("time", "y", "x"), name="t2m", attrs={"units": "K"}, coords={
            "time": DATES, "nav_lat": (("y", "x"), north, {"units": "degrees_north"}),
            "nav_lon": (("y", "x"), east, {"units": "degrees_east"}), "name": ("y", [f"row {k}" for k in range(NY)])})
    if form == "calendar":
        source = source.assign_coords(time=xr.date_range("2001-02-28", periods=N, freq="12h", calendar="noleap",
                                                         use_cftime=True))
    if form == "zarr":
        pytest.importorskip("zarr")
        source.to_dataset().to_zarr(tmp_path / "a.zarr", consolidated=False)
        source = str(tmp_path / "a.zarr")
    before = rom.read(source)
    if before.mesh is not None:
        path = path.with_suffix(".vtkhdf")
    store = rom.ingest(before, path)
    bases = [rom.pod(one, rank=3) for one in (before, store, rom.read(str(path)), ek.open(path))]
    first = bases[0].to_xarray()
    assert np.issubdtype(first["time"].dtype, np.datetime64) or form == "calendar"
    for basis in bases[1:]:
        data = basis.to_xarray()
        assert data["modes"].dims == first["modes"].dims
        assert {*data.coords} == {*first.coords}
        for name in first.coords:
            np.testing.assert_array_equal(data[name], first[name])
            assert data[name].attrs == first[name].attrs
        np.testing.assert_allclose(data["singular_values"], first["singular_values"], rtol=1e-10)
        assert data["mean"].attrs == first["mean"].attrs
        assert basis.notes[0] == bases[0].notes[0]
    mean = ek.average(store["t2m"]).to_xarray()
    assert mean["mean"].attrs["units"] == "K"
    assert {*mean.coords} >= {*first.coords} - {"time", "mode"}
    assert ek.average(store["t2m"][:, 1, 2]).unit in ("", "K")


def test_labels_of_two_stores_from_different_days_are_one_run(tmp_path: Path) -> None:
    whole = temperature()
    for k, part in enumerate((whole[:20], whole[20:])):
        rom.ingest(ek.ArraySource.of(part), tmp_path / f"{k}.h5")
    both = rom.read([str(tmp_path / "0.h5"), str(tmp_path / "1.h5")])
    np.testing.assert_array_equal(rom.pod(both, rank=2).to_xarray()["time"].values, DATES.values)


def test_times_that_are_given_are_no_dates_of_the_store(tmp_path: Path) -> None:
    store = rom.ingest(ek.ArraySource.of(temperature()), tmp_path / "a.h5")
    given = rom.pod(rom.read(store.path, times=np.arange(N) * 0.5, time_unit="s"), rank=2)
    np.testing.assert_array_equal(given.dates, np.arange(N) * 0.5)
    assert "latitude" in given.to_xarray().coords


def test_labels_of_a_store_that_are_damaged_are_one_line(tmp_path: Path) -> None:
    from ensemblekit.store.labels import constants_for

    constants = constants_for(ek.ArraySource.of(temperature()).labels)
    constants["labels/about"] = constants["labels/about"][:-7]
    with ek.create(tmp_path / "a.h5", {"t2m": ek.Field((NY, NX))}, constants=constants) as store:
        store.extend({"t2m": VALUES})
    with pytest.raises(StoreDamagedError, match="names of axes"):
        rom.pod(ek.open(tmp_path / "a.h5"), rank=2)
    assert ek.open(tmp_path / "a.h5")["t2m"][3].shape == (NY, NX)
