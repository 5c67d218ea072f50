import io
import subprocess
import sys

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import plot
from ensemblekit.errors import InputError

figures = pytest.importorskip("matplotlib.figure")


def series(n=3000, seed=1):
    from scipy.signal import lfilter

    return lfilter([1], [1, -0.9], np.random.default_rng(seed).normal(size=n))


@pytest.fixture(scope="module")
def answer():
    x = series() + 30 * np.exp(-np.arange(3000) / 60)
    return ek.average(ek.ArraySource.of(x, times=np.arange(3000) * 0.5, unit="nm", time_unit="ps"))


def drawn(ax):
    """The figure can be written, and holds something."""
    ax.figure.savefig(buffer := io.BytesIO(), format="png")
    assert buffer.tell() > 5000


def test_running_mean_ends_in_the_answer_and_shows_what_was_discarded(answer):
    ax = plot.running_mean(answer, name="distance")
    (line,) = [line for line in ax.lines if line.get_label() == "running mean"]
    assert line.get_ydata()[-1] == pytest.approx(answer.mean, rel=1e-9)
    assert line.get_xdata()[0] == answer.times[answer.n_discarded]
    assert answer.n_discarded > 0
    assert f"discarded ({answer.n_discarded})" in [t.get_text() for t in ax.get_legend().get_texts()]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (ps)", "distance (nm)")
    band = next(c for c in ax.collections if c.get_label() == "95 % interval").get_paths()[0].vertices
    last = band[band[:, 0] == answer.times[-1]][:, 1]
    assert (last.min(), last.max()) == pytest.approx(answer.interval, rel=1e-6)
    drawn(ax)


def test_autocorrelation_starts_at_one_and_marks_its_window(answer):
    ax = plot.autocorrelation(answer)
    curve = ax.lines[1]
    assert curve.get_ydata()[0] == 1
    kept = answer.series[answer.n_discarded:]
    np.testing.assert_allclose(curve.get_ydata(), ek.statistics.autocorrelation(kept)[:len(curve.get_ydata())], atol=1e-10)
    inefficiency = ek.statistics.statistical_inefficiency(kept, dt=0.5)
    assert ax.lines[2].get_xdata()[0] == inefficiency.window * 0.5
    assert f"τ = {inefficiency.tau:.3g} ps" in ax.texts[0].get_text()
    drawn(ax)
    assert plot.autocorrelation(series(), dt=2.0, unit="fs").get_xlabel() == "lag (fs)"


def test_blocking_shows_curve_plateau_and_naive_bar(answer):
    x = series()
    result = ek.statistics.blocking(x)
    ax = plot.blocking(x, unit="nm")
    heights = {float(np.unique(line.get_ydata())[0]) for line in ax.lines if len(np.unique(line.get_ydata())) == 1}
    assert float(result.stderr[0]) in heights
    assert float(result.chosen().stderr) in heights
    assert ax.get_ylabel() == "standard error (nm)"
    drawn(ax)
    drawn(plot.blocking(result))
    drawn(plot.blocking(answer))


def test_replicas_of_unequal_length_share_one_axis():
    runs = ek.ReplicaSet.of([ek.ArraySource.of(series(n, k), times=np.arange(n) * 1.0, unit="K", time_unit="ns")
                             for k, n in enumerate((200, 900, 5000))])
    ax = plot.replicas(runs, name="temperature")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (ns)", "temperature (K)")
    means = [c.lines[0].get_ydata()[0] for c in ax.containers]
    np.testing.assert_allclose(means, ek.statistics.ergodicity(runs).means)
    assert max(ax.get_xticks()) <= 4999
    drawn(ax)


def test_a_profile_is_drawn_against_its_coordinate():
    histogram = ek.statistics.histogram_estimate(ek.ArraySource.of(series(), unit="nm"), np.linspace(-5, 5, 11))
    ax = plot.profile(histogram, name="density")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("value (nm)", "density (1/nm)")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), histogram.mean)
    drawn(ax)


def test_estimate_gives_the_figure_that_fits(answer):
    assert plot.estimate(answer).shape == (3,)
    assert np.ndim(plot.estimate(ek.average(np.random.default_rng(2).normal(size=(50, 4))))) == 0
    assert np.ndim(plot.estimate(ek.average(np.ones(50)))) == 0


def test_figures_are_drawn_where_the_caller_wants(answer):
    runs = np.random.default_rng(3).normal(size=(2, 50))
    for draw in (plot.running_mean, plot.autocorrelation, plot.blocking, plot.replicas):
        ax = figures.Figure().subplots()
        assert draw(runs if draw is plot.replicas else answer, ax=ax) is ax
    assert plot.running_mean(answer).figure.get_size_inches()[0] == pytest.approx(100 / 25.4, abs=0.01)


def test_what_cannot_be_drawn_is_said():
    field = ek.average(np.random.default_rng(4).normal(size=(50, 4, 2)))
    with pytest.raises(InputError, match="holds no series"):
        plot.running_mean(field)
    with pytest.raises(InputError, match="one axis"):
        plot.profile(field)
    with pytest.raises(InputError, match="one number"):
        plot.blocking(ek.reduce(np.random.default_rng(4).normal(size=(50, 4)), ek.BlockSums()))


def test_importing_plot_leaves_matplotlib_alone():
    code = "import sys, ensemblekit.plot; assert 'matplotlib' not in sys.modules; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
