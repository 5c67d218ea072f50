import io
from dataclasses import replace

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, StatisticsError

pytest.importorskip("matplotlib")
from ensemblekit.plot import rom as draw

pytestmark = pytest.mark.filterwarnings("ignore:the cut after mode")     # between modes of noise, which all are alike

X, Y = np.linspace(0, 4, 20), np.linspace(0, 1, 12)


def wave(n=128):
    t, y, x = np.arange(n)[:, None, None] * 0.05, Y[:, None], X
    phase = 3 * x - 2 * np.pi * t
    u = np.stack([1 + y + 0.3 * np.sin(phase) * np.sin(np.pi * y), 0.2 * np.cos(phase) + 0 * y], -1)
    return u + 1e-3 * np.random.default_rng(0).standard_normal(u.shape)


@pytest.fixture(scope="module")
def basis():
    return rom.pod(ek.ArraySource.of({"U": wave()}, times=0.05 * np.arange(128)), rank=6)


def page(drawn):
    return np.ravel(drawn)[0].figure


def titles(drawn):
    return [ax.get_title() for ax in page(drawn).axes]


def test_modes_say_their_energies_and_pairs(basis):
    axes = draw.modes(basis, grid=(X, Y))
    shown = titles(axes)
    assert shown[0] == "mean U, x"
    assert shown[1].startswith(f"mode 1: {100 * basis.energy_fraction[0]:.3g} %")
    assert "pair 1–2" in shown[1]
    assert "pair" not in shown[5]
    image = axes[1].images[0]
    np.testing.assert_allclose(image.get_array(), basis.modes[0][..., 0])
    assert image.get_extent()[0] < 0 < 4 < image.get_extent()[1]
    assert titles(draw.modes(basis, component=1, count=2))[0] == "mean U, y"


def test_the_spectrum_has_its_second_axis_its_threshold_and_the_floor(basis):
    ax = draw.spectrum(basis)
    ax.figure.savefig(io.BytesIO())
    assert ax.child_axes[0].get_ylabel() == "error %"
    texts = [t.get_text() for t in ax.texts]
    assert any("Gavish–Donoho: 2 above" in t for t in texts)        # the wave is two modes, the rest is white noise
    low, high = ax.get_ylim()
    assert np.allclose(ax.child_axes[0].get_ylim(), [100 * np.sqrt(low), 100 * np.sqrt(high)])
    left = ax.lines[-2] if ax.lines[-1].get_label().startswith("_") else ax.lines[-1]
    assert len(left.get_xdata()) > 0
    assert draw.gavish_donoho_line(replace(basis, spectrum_complete=False)) is None


def test_the_portrait_knows_the_frequency(basis):
    frequency, power, peak = draw.coefficient_spectrum(basis)
    assert peak == pytest.approx(1.0, abs=0.01)
    assert len(frequency) == len(power) == 65
    texts = [t.get_text() for t in draw.phase_portrait(basis, length=2.0, speed=4.0)[2].texts]
    assert "St = 0.5" in texts[0].replace("0.49", "0.5")
    uneven = replace(basis, times=np.sort(np.random.default_rng(0).random(128)))
    assert np.isnan(draw.coefficient_spectrum(uneven)[2])
    draw.phase_portrait(uneven)
    with pytest.raises(InputError):
        draw.phase_portrait(basis, pair=(1, 1))


def test_truth_beside_its_reconstruction(basis):
    u = wave()
    panels = draw.reconstruction(basis, u[9], 9, rank=2, grid=(X, Y))
    assert "truth: U, x, snapshot 9" in titles(panels)
    assert panels[0].images[0].get_clim() == panels[1].images[0].get_clim()
    back = basis.truncate(2).reconstruct(9)
    np.testing.assert_allclose(panels[2].images[0].get_array(), (back - u[9])[..., 0], atol=1e-12)
    same = draw.reconstruction(basis, u[9], grid=(X, Y))
    assert "6 modes" in titles(same)
    with pytest.raises(InputError):
        draw.reconstruction(basis, u[9, :5], 9)


def test_the_error_of_each_snapshot(basis):
    ax = draw.snapshot_errors(basis)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 * basis.error_per_snapshot)
    with pytest.raises(InputError):
        draw.snapshot_errors(replace(basis, error_per_snapshot=None))


def test_on_meshes_of_cells_and_points(basis):
    from matplotlib.collections import PolyCollection

    mesh = rom.Mesh.rectilinear(X, Y)
    held = rom.pod(wave()[..., 0].reshape(128, -1), rank=3)
    axes = draw.modes(replace(held, mesh=mesh))
    assert [bool(ax.collections) for ax in axes] == [True] * 4
    cells = rom.pod(wave()[:, :11, :19, 0].reshape(128, -1), rank=2)
    axes = draw.modes(replace(cells, mesh=mesh))
    polygons = axes[0].collections[0]
    assert isinstance(polygons, PolyCollection)
    assert len(polygons.get_paths()) == 11 * 19
    solid = rom.Mesh.rectilinear(X, Y, np.array([0.0, 0.1]))
    page(draw.modes(replace(cells, mesh=solid))).savefig(io.BytesIO())


def test_a_line_is_a_line():
    flow = rom.testbeds.heat(40)
    held = rom.pod(rom.testbeds.record(flow, 30, 1e-3), rank=4)
    axes = draw.modes(held, grid=(flow.x,))
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), held.modes[0])
    page(draw.reconstruction(held, flow.start, grid=(flow.x,))).savefig(io.BytesIO())
    assert "exponential" in draw.decay(rom.pod(rom.testbeds.record(flow, 30, 1e-3), rank=8)).get_title()


def test_where_to_run_longer():
    averages = rom.average(wave(512), ["mean", "tke"], equilibration=None)
    ax = draw.run_length(averages, "values_mean", target=1e-3, grid=(X, Y))
    factor = averages.run_length_factor("mean", 1e-3).max(-1)
    np.testing.assert_allclose(ax.images[0].get_array(), np.log2(factor))
    share = np.mean(factor <= 1)
    assert f"enough in {100 * share:.0f} %" in ax.get_title()
    axes = draw.average(averages, "values_tke", grid=(X, Y))
    assert titles(axes)[1] == "± (95 % interval)"


def test_what_cannot_be_drawn(basis):
    with pytest.raises(InputError, match="slice"):
        draw.modes(rom.pod(np.random.default_rng(0).random((9, 4, 5, 6, 7)), rank=2))
    with pytest.raises(InputError, match="columns"):
        draw.modes(basis, grid=(Y, X))
    with pytest.raises(InputError, match="component"):
        draw.modes(basis, component=2)


def test_figures_of_numbers_of_any_size():
    t, x = np.arange(40.0)[:, None], np.linspace(0, 1, 60)
    field = 1 + np.sin(6 * x + t) + 0.3 * np.cos(11 * x - 2 * t)
    u = np.stack([field, 0.1 * field], -1).reshape(40, 6, 10, 2)

    def drawn(v):
        result = rom.pod(v, 3)
        figures = [*map(page, (draw.modes(result), draw.reconstruction(result, v[3]), draw.phase_portrait(result),
                               draw.spectrum(result), draw.snapshot_errors(result),
                               draw.average(rom.average(v, ["mean"]), "mean")))]
        for figure in figures:
            figure.canvas.draw()
        titles = [ax.get_title() for figure in figures[:-1] for ax in figure.axes]
        frequency, _, peak = draw._spectrum(result, (0, 1))
        return titles, draw.travelling_pairs(result), frequency.tolist(), peak
    *wanted, peak = drawn(u)
    assert wanted[1]
    for power in (-960, 960):
        *got, at = drawn(np.ldexp(u, power))
        assert got == wanted
        assert at == pytest.approx(peak, rel=1e-12)
        with pytest.raises(StatisticsError, match="a power would be about"):
            draw.coefficient_spectrum(rom.pod(np.ldexp(u, power), 3))
