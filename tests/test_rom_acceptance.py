"""What a POD must hold to: the numbers of its numerics, against plain SVDs in double precision and against recomputation."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import rom
from ensemblekit.errors import InputError

EXACT = ("gram", "tsqr")
ROUTES = (*EXACT, "randomized", "incremental")


def known(n=120, size=900, sigma=None, seed=0, mean=0.0, dtype="f8"):
    """Snapshots with known singular values about a known mean."""
    rng = np.random.default_rng(seed)
    sigma = np.arange(1, 61.0) ** -1.5 if sigma is None else np.asarray(sigma, "f8")
    k = len(sigma)
    left = rng.normal(size=(n, k))
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(rng.normal(size=(size, k)))[0]
    return ((left * sigma) @ right.T + mean).astype(dtype)


def plain(x, weights=None):
    """(fluctuation, U, sigma, Vt) of the centred snapshots, scaled by the roots of the weights."""
    flat = x.reshape(len(x), -1).astype("f8")
    f = flat - flat.mean(0)
    w = 1.0 if weights is None else np.sqrt(weights)
    return f, *np.linalg.svd(f * w, full_matrices=False)


def optimal(sigma, k):
    return np.sqrt((sigma[k:] ** 2).sum() / (sigma**2).sum())


def projection_error(f, modes):
    q = np.linalg.qr(modes.reshape(len(modes), -1).astype("f8").T)[0]
    return np.linalg.norm(f - (f @ q) @ q.T) / np.linalg.norm(f)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("dtype", "worst"), [("f8", 1e-10), ("f4", 1e-5)])
def test_1_modes_are_orthonormal_in_the_inner_product(route, dtype, worst):
    x = known(dtype=dtype, mean=2.0)
    weights = np.random.default_rng(1).uniform(0.1, 10, 900)
    modes = rom.pod(x, rank=10, method=route, inner_product=weights).modes.astype("f8")
    assert np.abs((modes * weights) @ modes.T - np.eye(10)).max() <= worst


@pytest.mark.parametrize(("route", "more"), [("gram", 1e-8), ("tsqr", 1e-8), ("incremental", 1e-3), ("randomized", 1e-2)])
@pytest.mark.parametrize("decay", [-0.5, -1.5, -3.0])
def test_2_projection_error_is_that_of_the_best(route, more, decay):
    x = known(n=200, sigma=np.arange(1, 101.0) ** decay, size=1500)
    f, _, sigma, _ = plain(x)
    for k in (5, 20):
        basis = rom.pod(x, rank=k, method=route)
        assert projection_error(f, basis.modes) <= (1 + more) * optimal(sigma, k)


def test_3_singular_values():
    sigma = np.concatenate([np.logspace(0, -4, 20), np.logspace(-5, -11, 12)])
    x = known(sigma=sigma)
    _, _, want, _ = plain(x)
    gram = rom.pod(x, rank=20, method="gram")
    np.testing.assert_allclose(gram.singular_values, sigma[:20], rtol=1e-10)
    tsqr = rom.pod(x, rank=32, method="tsqr")
    assert np.abs(tsqr.singular_values - want[:32]).max() <= 1e-12 * want[0]
    assert np.abs(tsqr.singular_values - sigma).max() <= 1e-12 * sigma[0]


def test_auto_escalates_where_the_gram_matrix_is_rounding():
    x = known(sigma=np.logspace(0, -11, 32))
    assert rom.pod(x, rank=10).method == "gram"
    basis = rom.pod(x, rank=30)
    assert basis.method == "tsqr"
    np.testing.assert_allclose(basis.singular_values, np.logspace(0, -11, 32)[:30], rtol=1e-3)
    assert rom.pod(x, tolerance=1e-9).method == "tsqr"
    assert rom.pod(x, tolerance=1e-9).relative_error <= 1e-9


def test_the_randomized_route_hands_a_steep_spectrum_on():
    """In single precision a mode of 1e-6 of the first is rounding; auto notices and goes on in double precision."""
    x = known(n=600, size=3000, sigma=np.logspace(0, -7, 27), dtype="f4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("ensemblekit.rom.decompose.planning"), "SMALL", 1.0)
        assert rom.plan(x, rank=20).route == "randomized"
        basis = rom.pod(x, rank=20)
    _, _, sigma, _ = plain(x)
    np.testing.assert_allclose(basis.singular_values, sigma[:20], rtol=1e-5)
    assert basis.floor < 1e-7


def sine(modes, right):
    """Of the largest angle between the space of some modes and that of as many right singular vectors."""
    modes = modes.astype("f8")
    return np.linalg.norm(modes - (modes @ right[:len(modes)].T) @ right[:len(modes)], 2)


SPECTRA = {"a gap behind the eighth": np.concatenate([np.logspace(0, -2, 8), 1e-3 * np.ones(20)]),
           "gaps of 14 %": 0.88 ** np.arange(80), "i^-3": np.arange(1, 81.0) ** -3}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_4_modes_span_what_they_should(route, dtype, spectrum):
    """To 1e-6, but for the randomized route where it multiplies in single precision: a mode of sigma_k is then known to
    eps sigma_1 / sigma_k, and no better whatever is done afterwards (6e-6 at sigma_k = 0.01 sigma_1)."""
    sigma = SPECTRA[spectrum]
    x = known(sigma=sigma, dtype=dtype)
    _, _, _, right = plain(x)
    worst = 1e-6
    if (route, dtype) == ("randomized", "f4"):
        worst = 2 * np.finfo("f4").eps * sigma[0] / sigma[7]
    assert sine(rom.pod(x, rank=8, method=route).modes, right) <= worst


def test_4_one_pass_knows_a_bound_of_its_angle():
    """What a stream leaves out is gone, so 1e-6 cannot be promised of one read; a bound is known (Davis & Kahan), it holds,
    and where nothing was left out it is nothing."""
    for sigma in SPECTRA.values():
        x = known(sigma=sigma)
        _, _, _, right = plain(x)
        pod = rom.IncrementalPOD(rank=8).update(x)
        sine_of, bound = sine(pod.result().modes, right), pod.flushed().angle_bound(8)
        assert 1e-9 < sine_of <= bound < 0.3
    pod = rom.IncrementalPOD(rank=8, keep=80).update(x)
    assert pod.flushed().angle_bound(8) < 1e-9
    assert sine(pod.result().modes, right) < 1e-6


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_5_the_residual_reported_is_the_residual_made(route, dtype):
    x = known(dtype=dtype, mean=1.0)
    f, *_ = plain(x)
    total = (f**2).sum()
    basis = rom.pod(x, rank=7, method=route)
    rebuilt = basis.reconstruct().astype("f8") - basis.mean
    residual = ((f - rebuilt) ** 2).sum()
    # the randomized route multiplies snapshots of single precision in single precision: rounding of 6e-8 in each number,
    # of the same sign in all squares of a sum, leaves some 1e-8 of the total whichever way it is added up
    assert abs(basis.relative_error**2 - residual / total) <= (5e-8 if (route, dtype) == ("randomized", "f4") else 1e-10)
    per_snapshot = np.linalg.norm(f - rebuilt, axis=1) / np.sqrt(total / len(x))
    np.testing.assert_allclose(basis.error_per_snapshot, per_snapshot, atol=1e-6 if dtype == "f8" else 1e-4)
    assert abs((basis.error_per_snapshot**2).mean() - basis.relative_error**2) <= 1e-8
    assert abs(basis.total_energy - total) <= 1e-6 * total


def test_5_one_pass_knows_its_error_too():
    x = known(n=333)
    f, _, sigma, _ = plain(x)
    pod = rom.IncrementalPOD(rank=6).update(x)
    basis = pod.result()
    error = np.linalg.norm(x - basis.reconstruct()) / np.linalg.norm(f)
    assert abs(basis.relative_error - error) <= 1e-10
    assert basis.relative_error <= 1.001 * optimal(sigma, 6)
    assert basis.passes == 1


@pytest.mark.parametrize("route", ROUTES)
def test_6_threads_and_tiles_change_nothing(route):
    x = known(n=100, size=4096, mean=3.0)
    one = rom.pod(x, rank=5, method=route, engine=ek.Serial())
    for engine in (ek.Threads(2), ek.Threads(5)):
        other = rom.pod(x, rank=5, method=route, engine=engine)
        np.testing.assert_array_equal(one.modes, other.modes)
        np.testing.assert_array_equal(one.coefficients, other.coefficients)


@pytest.mark.parametrize("route", ROUTES)
def test_6_files_and_memory_limits_change_no_more_than_rounding(route, tmp_path):
    x = known(n=100, size=4096, mean=3.0)
    direct = rom.pod(x, rank=5, method=route)
    with ek.create(tmp_path / "x.h5", {"u": ek.Field((4096,), "f8")}, capacity=37) as store:       # three segments
        store.extend({"u": x[:50]})
        store.extend({"u": x[50:]})
    for limit in ("2GiB", "20MB"):
        stored = rom.pod(ek.open(tmp_path / "x.h5")["u"], rank=5, method=route, memory_limit=limit)
        np.testing.assert_allclose(stored.singular_values, direct.singular_values, rtol=1e-6)
        np.testing.assert_allclose(stored.modes, direct.modes, atol=1e-5)


def test_6_the_order_of_appends_is_the_order_of_coefficients_only():
    x = known(n=150)
    order = np.random.default_rng(0).permutation(len(x))
    one, other = (rom.IncrementalPOD(rank=5).update(y).result() for y in (x, x[order]))
    np.testing.assert_allclose(other.singular_values, one.singular_values, rtol=1e-4)
    outside = other.modes - (other.modes @ one.modes.T) @ one.modes
    assert np.linalg.norm(outside, 2) < 1e-2


def test_6_a_stream_cut_anywhere_gives_the_same_bits():
    x = known(n=130)
    whole = rom.IncrementalPOD(rank=4).update(x).result()
    for cuts in ([1] * 130, [50, 80], [7] * 18 + [4]):
        pod, at = rom.IncrementalPOD(rank=4), 0
        for count in cuts:
            pod.update(x[at] if count == 1 and at else x[at:at + count])
            at += count
            if at % 11 == 0 and at > 2:
                pod.result()        # asking changes nothing
        again = pod.result()
        np.testing.assert_array_equal(again.modes, whole.modes)
        np.testing.assert_array_equal(again.coefficients, whole.coefficients)
        assert again.relative_error == whole.relative_error


FEED = """
    import sys, numpy as np
    from ensemblekit import rom
    x = np.load(sys.argv[1])
    pod = rom.IncrementalPOD(sys.argv[2], rank=4, block=8)
    for k in range(pod.n, len(x)):
        pod.update(x[k:k + 1], times=[k * 0.5])
        print(k, flush=True)
"""


def test_6_killed_and_resumed_it_gives_the_same(tmp_path):
    x = known(n=90, size=300)
    np.save(tmp_path / "x.npy", x)
    state = tmp_path / "pod.h5"
    for stop in (13, 40, 41):
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(FEED), str(tmp_path / "x.npy"), str(state)],
                              stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= stop:
                    process.kill()
                    break
    pod = rom.IncrementalPOD(state, rank=4, block=8)
    assert 0 < pod.n < len(x)
    assert pod.n % 8 == 0
    pod.update(x[pod.n:], times=np.arange(pod.n, len(x)) * 0.5)
    whole = rom.IncrementalPOD(rank=4, block=8).update(x, times=np.arange(len(x)) * 0.5).result()
    basis = pod.result()
    for name in ("modes", "coefficients", "singular_values", "mean", "times"):
        np.testing.assert_array_equal(getattr(basis, name), getattr(whole, name))
    assert basis.relative_error == whole.relative_error


def test_6_it_follows_a_growing_store(tmp_path):
    x = known(n=60, size=80)
    pod = rom.IncrementalPOD(tmp_path / "state.h5", rank=3)
    with ek.create(tmp_path / "x.h5", {"u": ek.Field((80,), "f8")}) as store:
        seen = ek.open(tmp_path / "x.h5")
        for a in range(0, 60, 20):
            store.extend({"u": x[a:a + 20]}, times=np.arange(a, a + 20.0))
            assert pod.catch_up(seen) == 20
    assert pod.catch_up(seen) == 0
    basis = pod.result()
    np.testing.assert_array_equal(basis.modes, rom.IncrementalPOD(rank=3).update(x).result().modes)
    np.testing.assert_array_equal(basis.times, np.arange(60.0))


def test_8_a_mean_far_above_the_fluctuation():
    """An offset of 1e5 over fluctuations of norm 100: what is subtracted afterwards would be wrong from the second mode on."""
    sigma = 100 * 0.5 ** np.arange(24)
    x = known(sigma=sigma, mean=1e5)
    for route in ROUTES:
        basis = rom.pod(x, rank=12, method=route)
        np.testing.assert_allclose(basis.singular_values, sigma[:12], rtol=1e-6)
        assert np.abs(basis.mean - 1e5).max() < 10


class Counted:
    """A source that counts the bytes that are read of it."""

    def __init__(self, source, access="tiles"):
        self.source, self.access, self.bytes = source, access, 0
        self.fields, self.lengths, self.time_unit = source.fields, source.lengths, ""

    def window(self, start=0, stop=None, step=1):
        return self.source.window(start, stop, step)

    def pieces(self, names, cut, tiled, limit):
        for piece in self.source.pieces(names, cut, tiled, limit):
            yield CountedPiece(piece, self)


class CountedPiece:
    def __init__(self, piece, owner):
        self.piece, self.owner = piece, owner
        self.run, self.start, self.stop, self.tile = piece.run, piece.start, piece.stop, piece.tile

    def prefetch(self):
        self.piece.prefetch()

    def blocks(self):
        for block in self.piece.blocks():
            self.owner.bytes += sum(np.asarray(x).nbytes for x in block.fields.values())
            yield block


@pytest.mark.parametrize("access", ["tiles", "rows"])
@pytest.mark.parametrize("how", [{"method": route} for route in ROUTES] + [
    {"method": "gram", "scale": "max"}, {"method": "randomized", "scale": "std"}, {"method": "incremental", "scale": "std"},
    {"method": "incremental", "scale": "max"}, {"method": "auto"}], ids=str)
def test_the_passes_reported_are_the_reads_made(how, access):
    """Counted in bytes on their way, against what the plan says beforehand and the basis afterwards."""
    x = known(n=300, size=2000, sigma=np.arange(1, 61.0) ** -1.5)
    source = Counted(ek.source.ArraySource.of(x), access)
    plan = rom.plan(source, 6, **how)
    basis = rom.pod(source, rank=6, engine=ek.Serial(), **how)
    assert basis.passes == source.bytes / x.nbytes
    assert plan.passes <= basis.passes <= max(plan.passes, plan.most_passes)
    if basis.method not in ("randomized", "incremental"):
        assert basis.passes == plan.passes
    assert plan.read_bytes == plan.passes * x.nbytes


def test_the_passes_of_a_route_given_up_count_too():
    x = known(sigma=np.logspace(0, -11, 32))
    source = Counted(ek.source.ArraySource.of(x))
    basis = rom.pod(source, rank=30, engine=ek.Serial())
    assert basis.method == "tsqr"
    assert basis.passes == source.bytes / x.nbytes == 3        # a Gram matrix, then two of TSQR


@pytest.mark.parametrize("access", ["tiles", "rows", "once"])
def test_fields_of_several_sources_side_by_side(access, tmp_path):
    """The same as from one source, though the files are cut into pieces of their own."""
    x, y = known(n=150, size=700), 1e3 * known(n=150, size=90, seed=4) + 5
    together = rom.pod({"u": x, "p": y}, rank=5, method="gram", scale="none" if access == "once" else None)
    parts = {}
    for name, values, capacity in (("u", x, 37), ("p", y, 64)):
        with ek.create(tmp_path / f"{name}.h5", {name: ek.Field(values.shape[1:], "f8")}, capacity=capacity) as store:
            store.extend({name: values})
        parts[name] = Counted(ek.open(tmp_path / f"{name}.h5")[name], access)
    if access == "once":
        basis = rom.pod(parts, rank=5, scale="none")
    else:
        basis = rom.pod(parts, rank=5, method="incremental")
        assert basis.scale == pytest.approx(dict(together.scale))
        assert basis.error_per_field == pytest.approx(dict(together.error_per_field), rel=1e-6)
    assert basis.method == "incremental"
    np.testing.assert_allclose(basis.singular_values, together.singular_values, rtol=1e-3 if access == "once" else 1e-6)
    short = Counted(ek.source.ArraySource.of(y[:-3]), "once")
    short.lengths = None
    stream = Counted(ek.source.ArraySource.of(x), "once")
    stream.lengths = None
    with pytest.raises(InputError, match="'p' ended before"):
        rom.pod({"u": stream, "p": short}, rank=3, scale="none")


LIMITED = """
    import sys, threading, time
    import numpy as np
    import ensemblekit as ek
    from ensemblekit import rom

    def anonymous():
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024

    method, limit = sys.argv[2], int(sys.argv[3])
    # compiled now: for a file, whose arrays are read-only, too
    for first in ("gram", "randomized", "incremental") if method == "auto" else (method,):
        rom.pod(np.random.default_rng(0).normal(size=(40, 300)).astype("f4"), rank=4, method=first)
        rom.pod(ek.open(sys.argv[4])["u"], rank=4, method=first)
    before = peak = anonymous()
    running = True

    def watch():
        global peak
        while running:
            peak = max(peak, anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch, daemon=True)     # ends with the process where there is an error
    watcher.start()
    basis = rom.pod(ek.open(sys.argv[1])["u"], rank=4, method=method, memory_limit=limit)
    running = False
    watcher.join()
    print(max(peak, anonymous()) - before, basis.relative_error)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with x.h5, 336 MB in float32 (840 snapshots of 100 000 numbers, 12 modes), and small.h5, which warms up."""
    folder = tmp_path_factory.mktemp("large")
    n, size = 840, 100_000
    rng = np.random.default_rng(0)
    modes = rng.standard_normal((12, size), dtype="f4") * (0.7 ** np.arange(12, dtype="f4"))[:, None]
    with ek.create(folder / "x.h5", {"u": ek.Field((size,), "f4")}, capacity=n) as store:
        for _ in range(0, n, 105):
            store.extend({"u": rng.standard_normal((105, 12), dtype="f4") @ modes + 1})
    with ek.create(folder / "small.h5", {"u": ek.Field((300,), "f4")}) as store:
        store.extend({"u": rng.standard_normal((40, 300), dtype="f4")})
    yield folder
    (folder / "x.h5").unlink()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="RssAnon is Linux's")
@pytest.mark.parametrize("method", ["auto", "randomized", "incremental", "gram"])
def test_9_memory_stays_below_the_limit(method, large):
    limit = 32 << 20        # a tenth of the file
    code = [sys.executable, "-c", textwrap.dedent(LIMITED), str(large / "x.h5"), method]
    if method != "auto":        # the least that the route says it needs, so that a plan that understates itself is caught
        plan = rom.plan(ek.open(large / "x.h5")["u"], rank=4, method=method, memory_limit="1GiB")
        limit = max(limit, plan.memory_bytes)
    # arrays that are freed go back to the system at once: what the allocator keeps of them depends on who runs when
    done = subprocess.run([*code, str(limit), str(large / "small.h5")], capture_output=True, text=True, check=False,
                          timeout=300, env=os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)})
    assert done.returncode == 0, done.stderr
    taken, error = done.stdout.split()
    assert int(taken) < limit
    np.testing.assert_allclose(float(error), np.sqrt((0.49 ** np.arange(4, 12)).sum() / (0.49 ** np.arange(12)).sum()),
                               rtol=0.05)


@pytest.mark.parametrize("route", [*ROUTES, "auto"])
def test_11_exact_low_rank_is_recovered(route):
    x = known(sigma=[3.0, 2.0, 1.0])
    basis = rom.pod(x, rank=3, method=route)
    np.testing.assert_allclose(basis.reconstruct(), x, atol=1e-13)
    assert basis.relative_error < 1e-7
    assert rom.pod(x, rank=10, method=route).rank == 3      # there are no more


def test_12_complex_snapshots():
    rng = np.random.default_rng(0)
    x = known(sigma=np.arange(1, 31.0) ** -2) + 1j * known(sigma=np.arange(1, 31.0) ** -1.5, seed=1) + rng.normal()
    f = x - x.mean(0)
    sigma = np.linalg.svd(f, compute_uv=False)
    for route in (*ROUTES, "auto"):
        basis = rom.pod(x, rank=6, method=route)
        np.testing.assert_allclose(basis.singular_values, sigma[:6], rtol=1e-4)
        np.testing.assert_allclose(basis.modes @ basis.modes.conj().T, np.eye(6), atol=1e-10)
        np.testing.assert_allclose(basis.project(x), basis.coefficients, atol=1e-10)
        error = np.linalg.norm(x - basis.reconstruct()) / np.linalg.norm(f)
        assert abs(error - basis.relative_error) < 1e-8
        largest = basis.modes[np.arange(6), np.abs(basis.modes).argmax(1)]
        np.testing.assert_allclose(largest.imag, 0, atol=1e-12)
        assert (largest.real > 0).all()
    narrow = rom.pod(x[:, :20], rank=4, snapshot_axis=0)
    assert narrow.method == "covariance"
    np.testing.assert_allclose(narrow.singular_values, np.linalg.svd(f[:, :20], compute_uv=False)[:4], rtol=1e-9)
    np.testing.assert_allclose(narrow.project(x[:, :20]), narrow.coefficients, atol=1e-12)


@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_12_more_snapshots_than_numbers(route):
    x = known(n=400, size=30, sigma=np.arange(1, 21.0) ** -1.0)
    _, _, sigma, _ = plain(x)
    basis = rom.pod(x, rank=5, method=route, snapshot_axis=0)
    np.testing.assert_allclose(basis.singular_values, sigma[:5], rtol=1e-6)
    assert rom.pod(x, energy=1.0, snapshot_axis=0).rank == 20


@pytest.mark.parametrize("route", ROUTES)
def test_7_the_weights_are_those_of_the_integral(route):
    """Legendre polynomials on Gauss points: orthonormal in the quadrature's weights, and in nothing else."""
    points, weights = np.polynomial.legendre.leggauss(300)
    modes = np.stack([np.polynomial.legendre.Legendre.basis(k)(points) * np.sqrt(k + 0.5) for k in range(8)])
    amplitudes = np.random.default_rng(0).normal(size=(40, 8)) * 0.6 ** np.arange(8)
    amplitudes -= amplitudes.mean(0)
    x = amplitudes @ modes
    basis = rom.pod(x, rank=8, inner_product=weights, method=route)
    np.testing.assert_allclose(basis.singular_values, np.linalg.svd(amplitudes, compute_uv=False), rtol=1e-8)
    np.testing.assert_allclose((basis.modes * weights) @ basis.modes.T, np.eye(8), atol=1e-9)
    plain_ = rom.pod(x, rank=8, inner_product=None, method=route)
    assert np.abs((plain_.modes * weights) @ plain_.modes.T / weights.mean() - np.eye(8)).max() > 1e-2


DATA = os.environ.get("ENSEMBLEKIT_DATA")


@pytest.mark.skipif(not DATA, reason="needs ENSEMBLEKIT_DATA")
def test_7_a_wake_on_triangles():
    """Velocity of a cylinder wake on a finite-element mesh: dual areas as weights, pairs of modes, the residual recomputed."""
    from ensemblekit.rom.mesh import Mesh

    folder = Path(str(DATA)) / "cylinder_wake_fem"
    if not folder.exists():
        pytest.skip("no cylinder_wake_fem there")
    points, cells = np.load(folder / "pts.npy"), np.load(folder / "cells.npy")
    x = np.load(folder / "snapshots_vx.npy")
    x = x if x.shape[1] == len(points) else x.T
    areas = Mesh.of(points, cells).point_volumes
    basis = rom.pod(x, rank=6, inner_product=areas, snapshot_axis=0)
    modes = basis.modes.astype("f8")
    np.testing.assert_allclose((modes * areas) @ modes.T, np.eye(6), atol=1e-5)
    f = x - x.mean(0, dtype="f8")
    error = np.sqrt((((f - basis.coefficients @ modes) ** 2) @ areas).sum() / ((f**2) @ areas).sum())
    assert abs(error - basis.relative_error) < 1e-6


@pytest.mark.parametrize("support", [5000, 20, 4])
def test_modes_that_a_sample_of_the_columns_misses_are_found(support):
    """Each mode lives on a few of 5000 numbers; the first block, made from 128 of them, has seen few of the modes."""
    rng = np.random.default_rng(3)
    sigma = np.arange(1, 101.0) ** -1.5
    left = np.linalg.qr(rng.normal(size=(200, 100)))[0]
    right = np.zeros((100, 5000))
    for row in right:
        at = rng.integers(0, 5000 - support + 1)
        row[at:at + support] = rng.normal(size=support) / np.sqrt(support)
    x = (left * sigma) @ right
    _, _, want, _ = plain(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("ensemblekit.rom.decompose.krylov"), "SAMPLE", 128)
        basis = rom.pod(x, rank=10, method="randomized")
    assert basis.relative_error <= 1.001 * optimal(want, 10)
