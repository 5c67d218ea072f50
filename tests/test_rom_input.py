"""What pod is given: fields, weights, masks, rules; and what it refuses, in words."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import scipy.sparse

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError, ReadOnceError, StoreError, UnknownFieldError
from ensemblekit.source import SnapshotSource, as_source


def snapshots(n=40, size=300, seed=0):
    rng = np.random.default_rng(seed)
    k = min(n, size, 25)
    return (rng.normal(size=(n, k)) * 0.7 ** np.arange(k)) @ np.linalg.qr(rng.normal(size=(size, k)))[0].T


class Stream:
    """Snapshots that are read once, as a simulation gives them."""

    def __init__(self, x, access="once"):
        self.inner, self.access = as_source(x), access

    fields = property(lambda self: self.inner.fields)
    lengths = property(lambda self: None if self.access == "once" else self.inner.lengths)
    time_unit = ""

    def window(self, start=0, stop=None, step=1):
        return Stream(self.inner.window(start, stop, step), self.access)

    def pieces(self, names, cut, tiled, limit):
        if cut == "space":
            raise AssertionError("no slabs here")
        return self.inner.pieces(names, cut, False, limit)


@pytest.mark.parametrize(("given", "how", "message"), [
    (np.empty((0, 5)), {}, "at least 2 snapshots; got 0"),
    (np.ones((1, 5)), {}, "at least 2 snapshots; got 1"),
    (np.ones((1, 5)), {"center": "first"}, "at least 2"),
    (snapshots(), {"rank": 41}, "1 to the number of snapshots, 40; got 41"),
    (snapshots(), {"rank": 0}, "got 0"),
    (snapshots(), {"rank": -1}, "got -1"),
    (snapshots(), {"rank": 2.5}, "got 2.5"),
    (snapshots(), {"rank": True}, "got True"),
    (snapshots(), {"rank": "many"}, "gavish-donoho"),
    (snapshots(), {"energy": 0}, "share"),
    (snapshots(), {"tolerance": 1.0}, "between 0 and 1"),
    (snapshots(), {"tolerance": "small"}, "a number"),
    (snapshots(), {"absolute_tolerance": -1.0}, "above 0"),
    (snapshots(), {"rank": 3, "tolerance": 0.1}, "one of rank, energy, tolerance"),
    (snapshots(), {"inner_product": np.ones(7)}, "one weight a cell"),
    (snapshots(), {"inner_product": np.r_[0.0, np.ones(299)]}, "weight 0 is 0"),
    (snapshots(), {"inner_product": np.r_[1.0, -2.0, np.ones(298)]}, "weight 1 is -2"),
    (snapshots(), {"inner_product": np.full(300, np.nan)}, "finite"),
    (snapshots(), {"inner_product": "volumes"}, "auto"),
    (snapshots(), {"inner_product": scipy.sparse.eye_array(7).tocsr()}, "mass matrix is square"),
    (snapshots(), {"inner_product": -scipy.sparse.eye_array(300).tocsr()}, "positive"),
    (snapshots(), {"inner_product": scipy.sparse.eye_array(300).tocsr(), "method": "tsqr"}, "gram"),
    (snapshots(), {"center": "median"}, "center is"),
    (snapshots(), {"center": np.zeros(4)}, "shape of a snapshot"),
    (snapshots(), {"center": np.full(300, np.nan)}, "finite"),
    (snapshots(), {"scale": "range"}, "scale is"),
    (snapshots(), {"scale": {"values": 0.0}}, "above 0"),
    (snapshots(), {"method": "svd"}, "method is"),
    (snapshots(), {"memory_limit": "a lot"}, "2GiB"),
    (snapshots(), {"memory_limit": 0}, "2GiB"),
    (snapshots(), {"memory_limit": 1000}, "too small"),
    (snapshots(), {"missing": "zero"}, "gappy"),
    (snapshots(), {"snapshot_axis": 2}, "snapshot_axis"),
    (np.float64(3), {}, "single number"),
    (np.array([["a", "b"]]), {}, "no numbers"),
    ({}, {}, "no fields"),
    ({"u": np.ones((3, 2)), "v": np.ones((4, 2))}, {}, "differ in their number"),
    (np.where(np.arange(300) == 5, np.inf, snapshots()), {}, "infinity"),
    (np.full((3, 4), np.nan), {}, "NaN"),
    (np.zeros((4, 30)), {"center": "none"}, "zero"),
    (np.full((4, 30), 0.1), {}, "the same"),
])
def test_what_is_refused(given, how, message):
    with pytest.raises(InputError, match=message):
        rom.pod(given, **how)


def test_what_is_refused_by_name():
    with pytest.raises(UnknownFieldError, match="'T'"):
        rom.pod({"u": snapshots(), "p": snapshots()}, rank=2, scale={"T": 1.0})
    with pytest.raises(UnknownFieldError, match="'T'"):
        rom.pod({"u": snapshots(), "p": snapshots()}, rank=2, inner_product={"T": None})
    with pytest.raises(UnknownFieldError, match="the fields are: 'u', 'p'"):
        _ = rom.pod({"u": snapshots(), "p": snapshots()}, rank=2)["T"]


def test_a_matrix_of_columns_is_spoken_of():
    x = snapshots().T.copy()
    with pytest.warns(UserWarning, match="snapshot_axis=1"):
        rom.pod(x, rank=3)
    basis = rom.pod(x, rank=3, snapshot_axis=1)
    np.testing.assert_allclose(basis.singular_values, rom.pod(x.T, rank=3).singular_values)
    assert basis.n == 40
    assert rom.pod(x, rank=3, snapshot_axis=0).n == 300         # said so: no warning
    shaped = np.moveaxis(snapshots().reshape(40, 20, 15), 0, 2)
    assert rom.pod(shaped, rank=3, snapshot_axis=-1).modes.shape == (3, 20, 15)


def test_a_single_snapshot_is_its_own_mode_where_nothing_is_subtracted():
    basis = rom.pod(np.full((1, 16), 2.0), rank=1, center="none")
    assert basis.singular_values == pytest.approx([8.0])
    np.testing.assert_allclose(basis.modes, 0.25)


def test_what_is_chosen_without_being_asked_is_a_note(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "ensemblekit")
    basis = rom.pod(snapshots())
    assert basis.cumulative_energy[-1] >= 0.99
    assert "error of 10 %" in basis.notes[0]
    assert caplog.messages == [*basis.notes]
    mesh = rom.Mesh.rectilinear(np.linspace(0, 1, 21), np.linspace(0, 1, 16))
    np.save(tmp_path / "x.npy", snapshots())
    basis = rom.pod(rom.read(tmp_path / "x.npy", mesh=mesh), energy=0.9)
    assert basis.notes == ("inner product: cell areas of the mesh (inner_product=None for none)",)
    assert rom.Basis.load(basis.save(tmp_path / "b.h5")).notes == basis.truncate(1).notes == basis.notes
    assert rom.pod(snapshots(), energy=0.99).notes == ()
    assert capsys.readouterr() == ("", "")         # a library does not print


@pytest.mark.parametrize("center", ["mean", "first", "none", "field"])
def test_what_is_subtracted(center):
    x = snapshots() + 1
    field = np.linspace(0, 1, 300)
    want = {"mean": x.mean(0), "first": x[0], "none": np.zeros(300), "field": field}[center]
    basis = rom.pod(x, tolerance=0.01, center=field if center == "field" else center)
    np.testing.assert_allclose(basis.mean, want, atol=1e-14)
    error = np.linalg.norm(x - basis.reconstruct()) / np.linalg.norm(x - want)
    assert error == pytest.approx(basis.relative_error, rel=1e-6)
    assert error <= 0.01


def test_rules_for_the_rank():
    x = snapshots()
    sigma = np.linalg.svd(x - x.mean(0), compute_uv=False)
    left_out = np.sqrt(np.append(np.cumsum((sigma**2)[::-1])[::-1][1:], 0))
    for k in (1, 4, 9):
        assert rom.pod(x, absolute_tolerance=left_out[k - 1] * 1.0001).rank == k
        assert rom.pod(x, tolerance=left_out[k - 1] / np.linalg.norm(sigma) * 1.0001).rank == k
        assert rom.pod(x, energy=1 - (left_out[k - 1] / np.linalg.norm(sigma)) ** 2 * 1.0001).rank == k


def test_gavish_and_donoho_find_what_stands_out_of_noise():
    rng = np.random.default_rng(0)
    clean = snapshots(60, 400) * 0
    clean += np.linalg.qr(rng.normal(size=(60, 4)))[0] @ np.diag([90.0, 80, 70, 60]) @ np.linalg.qr(rng.normal(size=(400,
                                                                                                                     4)))[0].T
    x = clean + rng.normal(size=clean.shape)
    assert rom.pod(x, "gavish-donoho").rank == 4
    # for a square matrix the threshold is 2.858 times the median (their abstract)
    assert rom.gavish_donoho(np.linspace(2, 0.5, 50), 50, 50) == pytest.approx(2.858 * 1.25, rel=2e-3)
    with pytest.raises(InputError, match="median of all singular values"):
        rom.pod(x, "gavish-donoho", method="incremental")
    with pytest.raises(InputError, match="all 50"):
        rom.gavish_donoho(np.ones(10), 50, 80)


def test_weights_of_snapshots_count_as_copies_do():
    x = snapshots(30)
    weights = np.random.default_rng(0).integers(0, 4, 30).astype("f8")
    copies = np.repeat(x, weights.astype(int), axis=0)
    want = rom.pod(copies, rank=4)
    for method in ("auto", "randomized", "incremental"):
        basis = rom.pod(ek.ArraySource.of(x, weights=weights), rank=4, method=method)
        np.testing.assert_allclose(basis.mean, want.mean, atol=1e-12)
        np.testing.assert_allclose(basis.energy_fraction, want.energy_fraction, rtol=1e-4)
        np.testing.assert_allclose(basis.coefficients, basis.project(x), atol=1e-10)        # those of weight 0 as well
        assert basis.relative_error == pytest.approx(want.relative_error, rel=1e-4)


def test_a_mass_matrix_is_an_inner_product():
    x = snapshots(size=301)
    mass = scipy.sparse.diags_array([np.full(300, 1 / 6), np.full(301, 2 / 3), np.full(300, 1 / 6)], offsets=[-1, 0, 1])
    basis = rom.pod(x, rank=6, inner_product=mass)
    np.testing.assert_allclose(basis.modes @ (mass @ basis.modes.T), np.eye(6), atol=1e-10)
    root = np.linalg.cholesky(mass.toarray())
    want = np.linalg.svd((x - x.mean(0)) @ root, compute_uv=False)
    np.testing.assert_allclose(basis.singular_values, want[:6], rtol=1e-10)
    np.testing.assert_allclose(basis.project(x), basis.coefficients, atol=1e-12)
    residual = ((x - basis.reconstruct()) @ root)
    assert np.linalg.norm(residual) / np.linalg.norm((x - x.mean(0)) @ root) == pytest.approx(basis.relative_error, rel=1e-8)
    # a vector field: the same matrix for every component
    vectors = np.stack([x, 2 * x[::-1]], axis=2)
    both = rom.pod(vectors, rank=3, inner_product=mass)
    flat = both.modes
    gram = sum(flat[..., c] @ (mass @ flat[..., c].T) for c in range(2))
    np.testing.assert_allclose(gram, np.eye(3), atol=1e-10)


def test_weights_of_cells_go_with_all_components():
    x = snapshots(size=300).reshape(40, 100, 3)
    volumes = np.random.default_rng(0).uniform(0.5, 2, 100)
    one = rom.pod(x, rank=3, inner_product=volumes)
    other = rom.pod(x, rank=3, inner_product=np.repeat(volumes, 3).reshape(100, 3))
    np.testing.assert_array_equal(one.modes, other.modes)
    modes = one.modes
    np.testing.assert_allclose(np.einsum("kcd,c,lcd->kl", modes, volumes, modes), np.eye(3), atol=1e-12)


@pytest.mark.parametrize("method", ["auto", "gram", "tsqr", "randomized", "incremental"])
def test_several_fields(method, tmp_path):
    u, p = 100 * snapshots(size=240).reshape(40, 80, 3), snapshots(size=80, seed=1) + 7
    with ek.create(tmp_path / "f.h5", {"U": ek.Field((80, 3), unit="m s-1"), "p": ek.Field((80,), unit="Pa")}) as store:
        store.extend({"U": u, "p": p}, times=np.arange(40.0))
    basis = rom.pod(ek.open(tmp_path / "f.h5"), rank=6, method=method)
    assert (basis["U"].modes.shape, basis["p"].modes.shape) == ((6, 80, 3), (6, 80))
    assert (basis["U"].unit, basis["p"].unit) == ("m s-1", "Pa")
    assert basis["U"].scale == pytest.approx(np.sqrt(((u - u.mean(0)) ** 2).mean()), rel=1e-9)
    rebuilt = basis.reconstruct()
    for name, x in (("U", u), ("p", p)):
        error = np.linalg.norm(rebuilt[name] - x) / np.linalg.norm(x - x.mean(0))
        assert basis.error_per_field[name] == pytest.approx(error, rel=1e-6)
        assert basis[name].relative_error == basis.error_per_field[name]
        np.testing.assert_allclose(basis[name].reconstruct(3), rebuilt[name][3])
    np.testing.assert_allclose(basis.project({"U": u, "p": p}), basis.coefficients, atol=1e-9)
    again = rom.Basis.load(basis.save(tmp_path / "b.h5"))
    assert again.scale == basis.scale
    np.testing.assert_array_equal(again["p"].modes, basis["p"].modes)
    small = basis.truncate(2)
    error = np.linalg.norm(small["p"].reconstruct() - p) / np.linalg.norm(p - p.mean(0))
    assert small["p"].relative_error == pytest.approx(error, rel=1e-3)


def test_scales():
    u, p = 100 * snapshots(size=240), snapshots(size=80, seed=1)
    fields = {"U": u, "p": p}
    assert rom.pod(fields, rank=3, scale="max").scale["U"] == pytest.approx(np.abs(u - u.mean(0)).max())
    assert rom.pod(fields, rank=3, scale="none").scale == {}
    assert rom.pod(fields, rank=3, scale={"U": 4.0, "p": 2.0}).scale == {"U": 4.0, "p": 2.0}
    plain = rom.pod(u, rank=3, scale="std")
    assert plain.total_energy == pytest.approx(u.size)
    np.testing.assert_allclose(plain.reconstruct(), rom.pod(u, rank=3).reconstruct(), atol=1e-9)


@pytest.mark.parametrize("method", ["gram", "tsqr", "randomized", "incremental"])
def test_numbers_that_are_always_missing_are_left_out(method):
    x = snapshots()
    sea = x.copy()
    sea[:, 100:150] = np.nan
    basis = rom.pod(sea, rank=5, method=method)
    want = rom.pod(np.delete(x, np.s_[100:150], axis=1), rank=5, method=method)
    np.testing.assert_allclose(basis.singular_values, want.singular_values, rtol=1e-6)
    assert basis.mask is not None
    assert (~basis.mask).nonzero()[0].tolist() == list(range(100, 150))
    np.testing.assert_array_equal(np.isnan(basis.reconstruct(0)), ~basis.mask)
    assert (np.isnan(basis.modes) == ~basis.mask).all()
    np.testing.assert_allclose(basis.project(sea), basis.coefficients, atol=1e-10)


def test_gaps_that_change_are_filled_in_on_request_only():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 3)) * [3, 2, 1]) @ rng.normal(size=(3, 200)) + 2
    holes = x.copy()
    holes[rng.uniform(size=x.shape) < 0.15] = np.nan
    with pytest.raises(InputError, match=r"numbers in \d+ snapshots, first in snapshot \d+.*gappy"):
        rom.pod(holes, rank=3)
    basis = rom.pod(holes, rank=3, missing="gappy")
    np.testing.assert_allclose(basis.reconstruct(), x, atol=1e-4)
    with pytest.raises(InputError, match="needs a rank"):
        rom.pod(holes, energy=0.9, missing="gappy")
    holes[5] = np.nan
    with pytest.raises(InputError, match="snapshot 5"):
        rom.pod(holes, rank=3, missing="gappy")


def test_a_stream_is_decomposed_in_its_one_read():
    x = snapshots(200)
    assert isinstance(Stream(x), SnapshotSource)
    basis = rom.pod(Stream(x), rank=4)
    assert (basis.method, basis.passes) == ("incremental", 1)
    sigma = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(basis.singular_values, sigma[:4], rtol=1e-2)
    with pytest.raises(ReadOnceError, match=r"read only once|read once"):
        rom.pod(Stream(x), rank=4, method="gram")
    by_error = rom.pod(Stream(x), tolerance=0.05)
    assert by_error.relative_error <= 0.05
    rows = rom.pod(Stream(x, "rows"), rank=4)           # small: read into memory as a whole
    assert rows.method == "gram"
    np.testing.assert_allclose(rows.singular_values, sigma[:4], rtol=1e-10)


def test_replicas_are_put_one_after_the_other():
    a, b = snapshots(30), snapshots(20, seed=1)
    basis = rom.pod(ek.ReplicaSet.of([a, b]), rank=4)
    want = rom.pod(np.concatenate([a, b]), rank=4)
    np.testing.assert_allclose(basis.coefficients, want.coefficients, atol=1e-10)


def test_other_types_of_numbers():
    x = np.round(100 * snapshots()).astype("i4")
    want = rom.pod(x.astype("f8"), rank=3)
    for kind in ("i4", "i2", "f2", ">f8", ">f4"):
        basis = rom.pod(x.astype(kind), rank=3)
        np.testing.assert_allclose(basis.singular_values, want.singular_values, rtol=1e-6)


def test_the_plan_says_beforehand_what_is_done():
    x = np.zeros((600, 40_000), "f4")
    plan = rom.plan(x, rank=10)
    assert (plan.route, plan.passes, plan.read_bytes) == ("randomized", 1, x.nbytes)
    assert plan.memory_bytes < x.nbytes
    assert f"1 pass (91.6 MiB read), at most {plan.most_passes}," in str(plan)
    assert rom.plan(x, energy=0.9).route == "gram"
    assert rom.plan(x[:50], rank=10).route == "gram"
    assert rom.plan(x[:, :50], rank=10, snapshot_axis=0).route == "covariance"
    assert rom.plan(np.broadcast_to(x[:1], (40_000, 40_000)), energy=0.9, memory_limit="1GiB").route == "incremental"
    tight = rom.plan(x, rank=10, memory_limit="40MB")
    assert tight.memory_bytes <= 40e6
    for route in ("gram", "tsqr", "randomized", "incremental"):
        plan = rom.plan(snapshots(), rank=3, method=route)
        basis = rom.pod(snapshots(), rank=3, method=route)
        assert basis.method == plan.route
        assert plan.passes <= basis.passes <= max(plan.passes, plan.most_passes)


def test_pairs_are_seen_and_not_cut_in_silence():
    t, x = np.arange(64) * 2 * np.pi / 64, np.linspace(0, 2 * np.pi, 200, endpoint=False)
    wave = np.cos(x - t[:, None]) + 0.3 * np.cos(3 * x - 3 * t[:, None])
    basis = rom.pod(wave, rank=4)
    assert basis.pairs == [(0, 1), (2, 3)]
    assert not basis.splits_pair
    with pytest.warns(UserWarning, match="after mode 3 splits a pair"):
        rom.pod(wave, rank=3)
    with pytest.warns(UserWarning, match="after mode 1 splits a pair"):
        basis.truncate(1)
    basis.truncate(2)
    noise = np.random.default_rng(0).normal(size=(50, 400))     # neighbours everywhere, no pair
    for k in range(1, 40):
        rom.pod(noise, rank=k)


def test_error_bars_of_modal_energies():
    """Independent snapshots: the standard error of a mean square of Gaussian coefficients is energy sqrt(2 / n)."""
    rng = np.random.default_rng(0)
    n = 1000
    x = (rng.normal(size=(n, 3)) * [3, 2, 1]) @ np.linalg.qr(rng.normal(size=(50, 3)))[0].T
    basis = rom.pod(x, rank=3, snapshot_axis=0)
    bars = basis.energy_intervals(n_resamples=400)
    np.testing.assert_allclose(bars.value, basis.energy_fraction, rtol=1e-9)
    np.testing.assert_allclose(bars.stderr / bars.value, np.sqrt(2 / n), rtol=0.25)
    low, high = bars.interval
    assert (low < bars.value).all()
    assert (bars.value < high).all()
    slow = np.repeat(x[:100], 10, axis=0)           # ten copies in a row carry no more than one
    wider = rom.pod(slow, rank=3, snapshot_axis=0).energy_intervals(n_resamples=400)
    assert (wider.stderr > 2 * bars.stderr).all()


def test_incremental_refuses_and_resumes(tmp_path):
    x = snapshots(50)
    with pytest.raises(InputError, match="at least 2"):
        rom.IncrementalPOD(rank=2).result()
    with pytest.raises(InputError, match=r"shape \(m, \*item\)"):
        rom.IncrementalPOD(rank=2).update(x[0])
    pod = rom.IncrementalPOD(tmp_path / "s.h5", rank=3).update(x)
    bad = x[:20].copy()
    bad[3, 7] = np.nan
    with pytest.raises(InputError, match="snapshot 53 holds NaN"):
        pod.update(bad)
    with pytest.raises(InputError, match="shape"):
        pod.update(x[:, :7])
    with pytest.raises(InputError, match="same settings"):
        rom.IncrementalPOD(tmp_path / "s.h5", rank=5)
    again = rom.IncrementalPOD(tmp_path / "s.h5", rank=3)
    assert 0 < again.n <= 50
    copy = rom.IncrementalPOD(rank=3).restored(pod.state())
    np.testing.assert_array_equal(copy.result().modes, pod.result().modes)
    with pytest.raises(InputError, match="the same"):
        rom.IncrementalPOD(rank=2).update(np.ones((20, 5))).result()
    with ek.create(tmp_path / "x.h5", {"u": ek.Field((3,))}) as store:
        store.append({"u": np.ones(3)})
    with pytest.raises(StoreError, match="no state"):
        rom.IncrementalPOD(tmp_path / "x.h5", rank=2)


def test_incremental_takes_several_fields():
    fields = {"U": 50 * snapshots(80, 120).reshape(80, 40, 3), "p": snapshots(80, 40, seed=2)}
    basis = rom.IncrementalPOD(rank=5).update(fields).result()
    assert basis["U"].modes.shape == (5, 40, 3)
    rebuilt = basis.reconstruct()
    error = sum((np.linalg.norm(rebuilt[n] - x) / basis[n].scale) ** 2 for n, x in fields.items())
    total = sum((np.linalg.norm(x - x.mean(0)) / basis[n].scale) ** 2 for n, x in fields.items())
    assert np.sqrt(error / total) == pytest.approx(basis.relative_error, rel=1e-6)


def test_a_plan_without_a_sample_counts_the_step_that_random_vectors_take(tmp_path, monkeypatch):
    for name in ("planning", "krylov"):
        monkeypatch.setattr(importlib.import_module(f"ensemblekit.rom.decompose.{name}"), "page_cache", lambda: 0)
    x = low_rank_large()
    with ek.create(tmp_path / "x.h5", {"u": ek.Field(x.shape[1:], "f4")}) as store:
        store.extend({"u": x})
    u = ek.open(tmp_path / "x.h5")["u"]
    plan = rom.plan(u, 3, method="randomized", memory_limit="18MiB")
    assert (plan.sample, plan.passes, plan.read_bytes) == (0, 3, 3 * x.nbytes)
    assert plan.most_passes > plan.passes
    assert f"3 passes (229 MiB read), at most {plan.most_passes}," in str(plan)
    basis = rom.pod(u, rank=3, method="randomized", memory_limit="18MiB")
    assert basis.passes == plan.passes
    assert rom.plan(u, 3, method="randomized").passes == 3      # two steps, and columns picked from the file
    assert rom.plan(x, 3).passes == 1
    monkeypatch.undo()
    assert rom.plan(u, 3, memory_limit="40MiB").passes == 2


def low_rank_large():
    """80 MB of 400 snapshots with a spectrum that falls as i^-1.5."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((400, 40)).astype("f4") * (np.arange(1, 41) ** -1.5).astype("f4")
    return left @ rng.standard_normal((40, 50_000), dtype="f4") + 1


def test_the_estimator_passes_scikit_learns_checks():
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # of checks that are skipped
        checked = checks.check_estimator(rom.POD(), on_fail=None)
    assert len(checked) > 30
    assert [c["check_name"] for c in checked if c["status"] == "failed"] == []


def test_the_estimator_is_pod():
    pytest.importorskip("sklearn")
    from sklearn.pipeline import make_pipeline

    x = snapshots()
    pipe = make_pipeline(rom.POD(4))
    np.testing.assert_allclose(pipe.fit_transform(x), rom.pod(x, rank=4).coefficients)
    np.testing.assert_allclose(pipe.inverse_transform(pipe.transform(x)), rom.pod(x, rank=4).reconstruct(), atol=1e-12)
    assert list(pipe.get_feature_names_out())[:2] == ["pod0", "pod1"]
