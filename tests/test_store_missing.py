"""Files of a store that are missing, moved or removed: named by open, info and verify, never silently fewer snapshots."""

import os
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import ensemblekit as ek
from ensemblekit.cli import app
from ensemblekit.errors import InputError, StoreError


@pytest.fixture(params=[True, False], ids=["in-place", "whole-files"])
def four(tmp_path, request):
    """A store of ten snapshots in four files."""
    path = tmp_path / "here" / "a.h5"
    path.parent.mkdir()
    with ek.create(path, {"x": ek.Field((2,))}, capacity=3, in_place=request.param) as store:
        for k in range(10):
            store.append({"x": [k, k]})
            if not request.param and k % 3 == 2:
                store.flush()
    assert sorted(p.name for p in path.parent.glob("*.h5")) == ["a.0001.h5", "a.0002.h5", "a.0003.h5", "a.h5"]
    return path


def refused(path, *words):
    for mode in ("r", "a"):
        with pytest.raises(StoreError) as caught:
            ek.open(path, mode)
        assert all(word in str(caught.value) for word in words), caught.value
    report = ek.verify(path)
    assert report.verdict == "damaged"
    assert all(word in str(report) for word in words), report
    shown = CliRunner().invoke(app, ["info", str(path)])
    assert shown.exit_code == 2
    assert all(word in shown.output.replace("\n", "") for word in words), shown.output


def test_only_the_first_was_renamed(four):
    four.rename(four.with_name("b.h5"))
    refused(four.with_name("b.h5"), "b.0001.h5", "b.0003.h5", "are missing", "4 files")
    with ek.open(four.with_name("b.h5"), incomplete=True) as store:
        np.testing.assert_array_equal(store["x"][:, 0], [0, 1, 2])
    with pytest.raises(InputError, match="reading only"):
        ek.open(four.with_name("b.h5"), "a", incomplete=True)


def test_only_the_first_was_copied(four, tmp_path):
    shutil.copy(four, tmp_path / "a.h5")
    refused(tmp_path / "a.h5", "a.0001.h5", "4 files")


@pytest.mark.parametrize("k", [1, 2, 3])
def test_one_is_lost(four, k):
    four.with_name(f"a.000{k}.h5").unlink()
    refused(four, f"a.000{k}.h5", "missing")
    assert len(ek.open(four, incomplete=True)) == 3 * k


def test_one_is_of_another_store(four, tmp_path):
    with ek.create(tmp_path / "b.h5", {"x": ek.Field((2,))}) as other:
        other.append({"x": [7, 7]})
    shutil.copy(tmp_path / "b.h5", four.with_name("a.0002.h5"))
    refused(four, "a.0002.h5 is there, but is not the part")


def test_the_last_is_lost_and_the_writer_was_never_closed(tmp_path):
    store = ek.create(tmp_path / "a.h5", {"x": ek.Field((2,))}, capacity=3)
    for k in range(7):
        store.append({"x": [k, k]})
    lost = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, lost, ignore=shutil.ignore_patterns("*.d"))
    store.close()
    (lost / "a.0002.h5").unlink()
    refused(lost / "a.h5", "a.0002.h5 is missing")


def test_a_part_is_no_store(four):
    with pytest.raises(StoreError, match=r"a\.0001\.h5 is part 2 of a store.*a\.h5"):
        ek.open(four.with_name("a.0001.h5"))
    report = ek.verify(four.with_name("a.0001.h5"))
    assert report.verdict == "not checked"
    assert "part 2" in str(report)


def test_a_link_to_the_first_leads_to_all(four, tmp_path):
    (tmp_path / "link.h5").symlink_to(four)
    assert len(ek.open(tmp_path / "link.h5")) == 10
    assert ek.verify(tmp_path / "link.h5").verdict == "sound"


def test_all_of_them_moved_are_a_store(four, tmp_path):
    shutil.move(four.parent, tmp_path / "there")
    there = tmp_path / "there" / "a.h5"
    assert len(ek.open(there)) == 10
    assert ek.verify(there).verdict == "sound"
    with ek.open(there, "a", capacity=3) as store:
        store.append({"x": [10, 10]})
    assert len(ek.open(there)) == 11


def test_a_file_that_truncate_removed_is_not_missed(four):
    for keep in (9, 6, 2):
        with ek.open(four, "a", capacity=3) as store:
            store.truncate(keep)
        assert len(ek.open(four)) == keep
        assert ek.verify(four).verdict == "sound", str(ek.verify(four))
    with ek.open(four, "a", capacity=3) as store:
        store.extend({"x": np.zeros((9, 2))})
    assert ek.verify(four).verdict == "sound"


def test_a_sealed_store_needs_one_file(four):
    with ek.open(four, "a") as store:
        store.seal()
    assert len(ek.open(four)) == 10
    assert ek.verify(four).verdict == "sound"


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
@pytest.mark.parametrize("which", ["a.h5", "a.0001.h5"])
def test_a_file_that_goes_under_its_writer_is_noticed(tmp_path, how, which):
    store = ek.create(tmp_path / "a.h5", {"x": ek.Field((2,))}, capacity=3)
    for k in range(5):
        store.append({"x": [k, k]})
    path = tmp_path / which
    if how == "removed":
        path.unlink()
    else:
        path.rename(tmp_path / "c.h5")
    if how == "replaced":
        path.write_bytes(b"something else")
    for call in (store.flush, store.close):
        with pytest.raises(StoreError, match=f"{which} was .*while this store was being written"):
            call()
    store.close()
    if how == "removed":
        return
    os.replace(tmp_path / "c.h5", path)
    with ek.open(tmp_path / "a.h5", "a") as again:       # put back, everything is there
        assert len(again) == 5


def test_the_next_file_is_not_begun_beside_one_that_is_gone(tmp_path):
    store = ek.create(tmp_path / "a.h5", {"x": ek.Field((2,))}, capacity=3)
    for k in range(3):
        store.append({"x": [k, k]})
    (tmp_path / "a.h5").unlink()
    with pytest.raises(StoreError, match="removed"):
        store.append({"x": [3, 3]})
    assert not (tmp_path / "a.0001.h5").exists()
