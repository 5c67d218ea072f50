"""Saved predictions from the shell and in figures: the same numbers as from Python."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from ensemblekit import neural
from ensemblekit.cli import Commands
from ensemblekit.cli import neural as commands
from ensemblekit.errors import InputError
from ensemblekit.neural.evidence import evidence_of, rows_of, runs_of
from ensemblekit.neural.saved import SavedPredictions, save_predictions
from ensemblekit.plot import neural_evidence as plot


def saved(seed, m=4, n=120, own=0.5):
    """Predictions of a training: what its members share differs from that of another seed."""
    labels = np.random.default_rng(99).integers(0, 3, n)
    rng = np.random.default_rng(seed)
    z = np.sqrt(own) * rng.standard_normal((n, 3)) + np.sqrt(1 - own) * rng.standard_normal((m, n, 3))
    z[:, np.arange(n), labels] += 1.5
    p = np.exp(z)
    return SavedPredictions(p / p.sum(2, keepdims=True), np.full(m, 1 / m), labels, {}, "probability", None)


@pytest.fixture
def shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(4):
        one = saved(k)
        save_predictions(f"run{k}.h5", "predictions", one.members, one.pooled(), one.weights)
    app = typer.Typer(cls=Commands)
    app.add_typer(commands.app, name="neural")
    app.callback()(lambda: None)

    def run(*words):
        result = CliRunner().invoke(app, ["neural", *words])
        return result.exit_code, result.output

    return run


def test_the_shell_selects(shell, tmp_path):
    code, said = shell("select", "run0.h5", "--method", "stacking", "--json", "s.json", "--plot", "figures")
    assert code == 0, said
    selection = neural.select(saved(0), method="stacking")
    assert str(selection).splitlines()[0] in said
    assert json.loads((tmp_path / "s.json").read_text())["results"]["weights"] == pytest.approx(selection.weights.tolist())
    assert (tmp_path / "figures" / "selection.png").stat().st_size > 5000


def test_the_shell_counts_networks_and_takes_seeds_as_a_list(shell, tmp_path):
    code, said = shell("equivalent", "run0.h5", "--reference", "run1.h5", "run2.h5", "run3.h5", "--score", "nll", "--json",
                       "e.json",
                       "--plot", ".")
    assert code == 0, said
    equivalent = neural.deep_ensemble_equivalent(saved(0), [saved(k) for k in (1, 2, 3)], score="nll")
    assert str(equivalent).splitlines()[0] in said
    assert json.loads((tmp_path / "e.json").read_text())["results"]["n_seeds"] == 3
    assert (tmp_path / "equivalent.png").exists()


def test_the_shell_asks_whether_one_training_stands_for_many(shell, tmp_path):
    code, said = shell("ergodicity", *(f"run{k}.h5" for k in range(4)), "--json", "t.json", "--plot", ".")
    assert code == 0, said
    ergodicity = neural.training_ergodicity([saved(k) for k in range(4)])
    assert str(ergodicity).splitlines()[0] in said
    assert json.loads((tmp_path / "t.json").read_text())["results"]["members"] == pytest.approx(ergodicity.members)
    code, said = shell("ergodicity", "run0.h5", "--json", "one.json")       # NaN is null
    assert code == 0, said
    assert json.loads((tmp_path / "one.json").read_text())["results"]["n_eff"] is None


def test_the_shell_finds_errors_and_knows_groups(shell, tmp_path):
    (tmp_path / "groups.txt").write_text("\n".join(str(k // 4) for k in range(120)))
    code, said = shell("detect", "run0.h5", "--groups", "groups.txt", "--json", "d.json")
    assert code == 0, said
    assert "30 items or groups" in said
    assert set(json.loads((tmp_path / "d.json").read_text())["results"]["measures"]) == {"confidence", "entropy", "epistemic",
                                                                              "disagreement"}


@pytest.mark.parametrize("words", [("select", "nowhere.h5"), ("select", "run0.h5", "--method", "magic"),
                                   ("equivalent", "run0.h5", "--reference", "run1.h5"),
                                   ("detect", "run0.h5", "--groups", "nowhere.txt")])
def test_the_shell_refuses_with_two(shell, words):
    assert shell(*words)[0] == 2


def test_figures_show_the_figures():
    equivalent = neural.deep_ensemble_equivalent(saved(0), [saved(k) for k in (1, 2, 3)], score="nll")
    ax = plot.equivalent(equivalent)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [mean for _, mean, _ in equivalent.curve])
    ends = ax.lines[2].get_xdata()
    assert tuple(ends) == (max(equivalent.low, 1), min(equivalent.high, 3))
    many = neural.training_ergodicity([saved(k) for k in range(4)])
    axes = plot.ergodicity(many)
    np.testing.assert_allclose(axes[0].images[0].get_array(), many.function_space.correlation)
    assert axes[2].lines[1].get_ydata()[-1] == pytest.approx(many.members)
    with pytest.raises(InputError, match="one run"):
        plot.ergodicity(neural.training_ergodicity([saved(0)]))
    chosen = neural.select(saved(0), method="stacking")
    axes = plot.selection(chosen)
    assert [bar.get_height() for bar in axes[0].patches] == pytest.approx(chosen.weights.tolist())
    assert axes[1].lines[2].get_xdata()[0] == pytest.approx(chosen.differences["all members"]["nll"].value)


def test_evidence_from_everywhere_is_the_same(shell):
    one = saved(0)
    for given in ("run0.h5", one):
        evidence = evidence_of(given)
        np.testing.assert_allclose(evidence.members, one.members)
        np.testing.assert_array_equal(evidence.labels(), one.target)
    assert len(runs_of(["run0.h5", "run1.h5"])) == 2


def test_rows_of_maps_are_some_of_their_pixels_and_never_the_ignored():
    p = np.full((2, 3, 2, 80, 80), 0.5)
    labels = np.random.default_rng(0).integers(0, 2, (3, 80, 80))
    labels[:, :40] = 255
    rows = rows_of(evidence_of(p, labels, ignore_index=255))
    assert rows.p.shape[:2] == (2, 3 * 3200)
    assert rows_of(evidence_of(p, np.where(labels == 255, 0, labels))).p.shape[1] == 3 * 4096
    assert set(np.unique(rows.labels)) == {0, 1}
    with pytest.raises(InputError, match="every label is ignore_index"):
        rows_of(evidence_of(p, np.full((3, 80, 80), 255), ignore_index=255))
