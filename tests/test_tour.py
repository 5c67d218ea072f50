import importlib.util
import re

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import tour
from ensemblekit.errors import MissingExtraError
from ensemblekit.tour.act import with_error

for package in tour.PACKAGES:
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return tour.run(tmp_path_factory.mktemp("tour") / "out", quick=True)


def test_one_page_that_needs_nothing_else(page):
    text = page.read_text("utf-8")
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)[^"]*"', text) == []
    assert "://" not in text
    assert "$" not in re.sub(r"base64,[^\"]*", "", text)
    assert text.count("data:image/png;base64,") == 10
    assert not re.search(r">\s*nan|nan\s*<|± nan", text)
    for words in ("Adenylate", "adenylate kinase", "Strouhal", "snapshot ensemble"):
        assert words.lower() in text.lower()


def test_the_stores_hold_what_was_shown(page):
    folder = page.parent
    frames = ek.open(folder / "adk.h5md")
    assert frames["position"].shape == (98, 3341, 3)
    wake = ek.open(folder / "wake.h5")
    lift = np.asarray(wake["lift"][:])
    assert 0.2 < lift.max() < 0.5
    weights = ek.open(folder / "weights.h5")
    assert weights["parameters"].shape[0] == 5
    assert all(store.verify().ok for store in (frames, wake, weights))


def test_a_second_tour_replaces_the_first(page):
    tour._clear(page.parent)
    assert not list(page.parent.glob("*.h5*"))
    assert page.exists()


def test_a_missing_package_is_named_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ensemblekit\[tour\]'"):
        tour.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "error", "text"), [
    (18.2655, 0.62, "18.3 ± 0.6"), (18.2655, 0.162, "18.27 ± 0.16"), (1234.0, 31.0, "1230 ± 30"), (2.0, 0.0, "2"),
    (0.5, float("nan"), "0.5")])
def test_numbers_show_the_digits_they_have(value, error, text):
    assert with_error(value, error) == text
