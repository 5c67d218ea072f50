"""A disk that is full, or a limit on file sizes: one line of error, and nothing half written."""

import json
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
resource = pytest.importorskip("resource")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import StoreError  # noqa: E402
from ensemblekit.neural.resume import Sidecar  # noqa: E402


@pytest.fixture
def limit():
    """A function that keeps every file below so many bytes until the test ends, or (None) no longer."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def set_to(nbytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, before if nbytes is None else (nbytes, before[1]))

    yield set_to
    set_to(None)
    signal.signal(signal.SIGXFSZ, handler)


def run(path):
    """A store of two snapshots of 4160 weights, with one line of scores."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = neural.CyclicCosineLR(optimizer, total_steps=4, n_cycles=2)
    with neural.Recorder(path, model, optimizer, schedule) as rec:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
            rec.step()
            schedule.step()
        rec.log(score=1.0)
    return model


def everything_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_cannot_be_written_is_one_line_and_leaves_everything_as_it_was(tmp_path, limit):
    path = tmp_path / "a.h5"
    model = run(path)
    ensemble = neural.Ensemble.from_store(path, model)
    inputs, labels = torch.randn(300, 64), torch.zeros(300, dtype=torch.long)
    ensemble.predict((inputs, labels), save=True)
    neural.export(path, tmp_path / "kept.pt")
    torch.save(model.state_dict(), tmp_path / "one.pt")
    sidecar = Sidecar(str(path))
    log = tmp_path / "a.h5.d" / "training" / "log.jsonl"
    before = everything_in(tmp_path)
    for nbytes, write in [
            (4000, lambda: neural.export(path, tmp_path / "kept.pt")),
            (4000, lambda: neural.export(path, tmp_path / "new.safetensors")),
            (4000, lambda: neural.export(path, tmp_path / "new.pth", snapshot=None)),
            (4000, lambda: sidecar.write("state.pt", model.state_dict())),
            (2, lambda: sidecar.write_text("begun", "a name")),
            (log.stat().st_size + 5, lambda: sidecar.log({"step": 5, "epoch": 1, "score": 2.0})),
            (100_000, lambda: ensemble.predict((inputs, labels), save=True)),
            (4000, lambda: neural.ingest(tmp_path / "one.pt", tmp_path / "b.h5", model))]:
        limit(nbytes)
        with pytest.raises(StoreError, match=r"the disk is full|not all bytes could be written") as caught:
            write()
        limit(None)
        assert "\n" not in str(caught.value)
        assert everything_in(tmp_path) == before
    sidecar.log({"step": 5, "epoch": 1, "score": 2.0})
    np.testing.assert_array_equal(neural.history(path).logged["score"], [1, 2])


def test_a_line_of_the_log_that_a_kill_cut_short_swallows_none_after_it(tmp_path):
    run(tmp_path / "a.h5")
    with open(tmp_path / "a.h5.d" / "training" / "log.jsonl", "a") as file:
        file.write('{"step": 4, "epo')
    Sidecar(str(tmp_path / "a.h5")).log({"step": 5, "epoch": 1, "score": 2.0})
    np.testing.assert_array_equal(neural.history(tmp_path / "a.h5").logged["score"], [1, 2])
    assert all(json.loads(line) for line in (tmp_path / "a.h5.d" / "training" / "log.jsonl").read_text().splitlines())
