"""One way to results: plain values, a look in notebooks, a figure; for every type that the public functions answer with."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import statistics as st
from ensemblekit.results import Result, in_a_line, plain

PACKAGE = Path(ek.__file__).parent
PARTS = {"averaging", "store", "neural", "md", "rom"}
NO_RESULTS = {"LineageTree", "Columns", "Function", "Topology", "Manifest", "Mesh", "ArchivedField", "RunStates",
              "PhantomLesion", "Attached", "Center", "Midpoint", "SlidingWindow"}
"""Handed in, or data themselves (a source, a mesh, an array, states to be merged)."""


def public_results() -> dict[type, str]:
    """Every frozen class that a public name is, that a public function answers with, or a public reducer's result."""
    torch = importlib.util.find_spec("torch") is not None
    mda = importlib.util.find_spec("MDAnalysis") is not None
    faces = ["", "statistics", "lineages", "rom", *(["neural"] if torch else []), *(["md"] if mda else [])]
    loaded = {part: importlib.import_module(f"ensemblekit.{part}" if part else "ensemblekit") for part in faces}
    importlib.import_module("ensemblekit.store.verify")
    frozen = defaultdict(list)
    for module in [m for n, m in list(sys.modules.items()) if n.startswith("ensemblekit.") and _part_of(n) in PARTS]:
        for name, names in list(vars(module).items()):
            if dataclasses.is_dataclass(names) and inspect.isclass(names) and names.__module__ == module.__name__:
                frozen[name].append(names)
    results = {}
    for part, face in loaded.items():
        for name, x in vars(face).items():
            if name.startswith("_") or inspect.ismodule(x):
                continue
            answers = [x.result] if inspect.isclass(x) and hasattr(x, "result") else [x] if inspect.isfunction(x) else []
            classes = [x] if inspect.isclass(x) and x in frozen.get(name, []) else []
            for function in answers:
                for word in _words(getattr(function, "__annotations__", {}).get("return", "")):
                    classes += [c for c in frozen.get(word, []) if _part(c) in (_part(function), "store" if not part else "")]
            for c in classes:
                source = hasattr(c, "pieces") or hasattr(c, "prepare")
                if not source and c.__name__ not in NO_RESULTS:
                    results[c] = name
    return results


def _part(x: object) -> str:
    return _part_of(x.__module__)


def _part_of(module: str) -> str:
    return (*module.split("."), "")[1]


def _words(annotation: object) -> set[str]:
    if inspect.isclass(annotation):
        return {annotation.__name__}
    try:
        return {node.id for node in ast.walk(ast.parse(str(annotation), mode="eval")) if isinstance(node, ast.Name)}
    except SyntaxError:
        return set()


def test_every_public_result_is_reached_one_way() -> None:
    results = public_results()
    names = {c.__name__ for c in results}
    assert names >= {"Estimate", "Consensus", "MomentsResult", "Basis", "Archive", "FieldAverages", "Plan", "Ergodicity"}
    for kind in results:
        assert issubclass(kind, Result), kind
        for method in ("to_dict", "_repr_html_", "plot"):
            assert callable(getattr(kind, method)), (kind, method)
        assert "ax" in inspect.signature(kind.plot).parameters, kind
        module, _, name = kind.FIGURE.rpartition(".")
        assert hasattr(importlib.import_module(f"ensemblekit.plot.{module}"), name), kind


def examples() -> dict[str, object]:
    rng = np.random.default_rng(1)
    x, many = rng.normal(size=400), rng.normal(size=(60, 5))
    from ensemblekit import rom

    source = ek.ArraySource.of(many)
    basis = rom.pod(source, rank=2)
    return {
        "estimate": ek.average(x), "estimates": ek.average(many), "blocks": st.blocking(x),
        "moments": ek.reduce(many, ek.Moments()),
        "one moment": ek.reduce(x, ek.Moments()), "map": ek.reduce(many.reshape(60, 5, 1), ek.Moments()),
        "covariance": ek.reduce(many, ek.Covariance()), "histogram": ek.reduce(x, ek.Histogram(np.linspace(-3, 3, 9))),
        "extremes": ek.reduce(many, ek.Extremes()), "quantiles": ek.reduce(x, ek.Quantiles([0.1, 0.5])),
        "time": st.statistical_inefficiency(x), "start": st.detect_equilibration(x),
        "replicas": st.ergodicity(rng.normal(size=(3, 100))), "consensus": st.consensus([1.0, 1.2, 0.9], [0.1, 0.2, 0.1]),
        "jackknife": st.jackknife(x),
        "bootstrap": st.block_bootstrap(x, n_resamples=20, rng=1),
        "basis": basis, "plan": rom.plan(source, rank=2), "averages": rom.average(source),
        "diverse": st.diverse_subset(many, 3),
    }


@pytest.mark.filterwarnings("ignore:the cut after mode")
def test_results_are_plain_shown_and_drawn() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    for name, result in examples().items():
        assert isinstance(result, Result), name
        text = json.dumps(result.to_dict(), allow_nan=False)
        assert len(text) > 20, name
        assert "<table>" in result._repr_html_(), name
        axes = result.plot()
        assert all(hasattr(ax, "plot") for ax in np.ravel(axes)), name
        page = np.ravel(axes)[0].figure
        page.canvas.draw()
        own = figure(layout="constrained").subplots(1, 2)
        drawn = result.plot(ax=own[0])
        assert {ax.figure for ax in np.ravel(drawn)} == {own[1].figure}, name
        own[1].figure.canvas.draw()
        if not isinstance(result, Mapping):
            assert np.ndim(drawn) or drawn is own[0], name


def test_text_in_a_result_is_no_markup_of_a_page() -> None:
    @dataclasses.dataclass(frozen=True)
    class Answer(Result):
        unit: str
        values: np.ndarray

    shown = Answer("<script>", np.arange(100.0))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "100, 0 … 99" in shown


def test_plain_values() -> None:
    assert plain({"a": np.array([1.0, np.nan]), 2: (np.float64(2.0), np.inf, 1 + 2j), "c": np.dtype("f4")}) == {
        "a": [1.0, None], "2": [2.0, None, [1.0, 2.0]], "c": "float32"}
    assert in_a_line(np.array([np.nan] * 20)) == "20, none finite"


# -- figures -------------------------------------------------------------------------------------------------------


def test_every_figure_takes_ax() -> None:
    pytest.importorskip("matplotlib")
    no_figures = {"travelling_pairs", "gavish_donoho_line", "coefficient_spectrum"}
    for module in ("averages", "dynamics", "fields", "md", "neural", "neural_evidence", "rom", "spectra"):
        drawing = importlib.import_module(f"ensemblekit.plot.{module}")
        for name, function in vars(drawing).items():
            own = inspect.isfunction(function) and function.__module__ == drawing.__name__ and not name.startswith("_")
            if own and name not in no_figures:
                assert "ax" in inspect.signature(function).parameters, (module, name)
                returned = str(function.__annotations__["return"])
                assert set(re.findall(r"\w+(?:\.\w+)*", returned)) <= {"Axes", "np.ndarray"}, (module, name, returned)


def test_the_panels_of_a_figure_share_the_place_they_are_given() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    from ensemblekit import plot
    from ensemblekit.errors import InputError
    from ensemblekit.plot.style import panels

    answer = ek.average(np.random.default_rng(0).normal(size=300))
    own = figure().subplots(3, 1)
    assert list(plot.estimate(answer, ax=own)) == list(own)
    left, right = figure(layout="constrained").subplots(1, 2)
    place = left.get_position().bounds
    inner = panels(left, 2, 2, (1, 1))
    assert inner.shape == (2, 2)
    inner[0, 0].figure.canvas.draw()
    assert all(ax.get_position().x1 < right.get_position().x0 for ax in inner.ravel())
    assert place[2] > inner[0, 0].get_position().width
    with pytest.raises(InputError, match="array of 4 Axes, or one Axes"):
        panels(own, 2, 2, (1, 1))
    with pytest.raises(InputError, match="ax is one Axes here"):
        plot.running_mean(answer, ax=own)


# -- talk ----------------------------------------------------------------------------------------------------------


def test_no_library_function_prints() -> None:
    talking = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file.startswith(("cli/", "tour/")):
            continue
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if "print(" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                talking.append(f"{file}:{node.lineno}")
    # the child process of verify answers on its stdout
    assert [place.partition(":")[0] for place in talking] in ([], ["store/verify.py"], ["store/file_check.py"])


def test_there_is_one_logger() -> None:
    names = set()
    for path in PACKAGE.rglob("*.py"):
        names |= set(re.findall(r"getLogger\(([^)]*)\)", path.read_text("utf-8")))
    assert names == {'"ensemblekit"'}
