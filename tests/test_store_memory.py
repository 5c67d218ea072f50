"""Random operations on a store on disk and on its twin in memory: both must agree after every one."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import ensemblekit as ek
from ensemblekit.errors import ClosedError, EnsemblekitError, InputError, UnknownFieldError
from ensemblekit.store.memory import MemoryStore

FIELDS = {"u": ek.Field((3, 2), "f4", unit="m s-1"), "p": ek.Field((), "f8", finite=True),
          "slow": ek.Field((4,), "i4", clock="slow")}


class Machine(RuleBasedStateMachine):
    """One store with small segments, so that operations cross them; a reader beside the writer."""

    in_place = True

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = str(self.folder / "run.h5")
        self.disk = ek.create(self.path, FIELDS, capacity=5, in_place=self.in_place)
        self.twin = MemoryStore(FIELDS)
        self.reader = ek.open(self.path)
        self.rng = np.random.default_rng(0)

    def snapshots(self, n):
        return {"u": self.rng.normal(size=(n, 3, 2)).astype("f4"), "p": self.rng.normal(size=n)}

    def both(self, do):
        """The same call on both; both accept or both refuse."""
        outcomes = []
        for store in (self.twin, self.disk):
            try:
                do(store)
                outcomes.append(None)
            except EnsemblekitError as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1], outcomes

    @rule(weight=st.sampled_from([1.0, 0.5, 0.0, -1.0]), dt=st.sampled_from([0.0, 0.5, -1.0, None]),
          skip=st.sampled_from([None, 1, 3, 0]))
    def append(self, weight, dt, skip):
        one = {name: values[0] for name, values in self.snapshots(1).items()}
        times, steps = self.twin.times, self.twin.steps
        time = None if dt is None else (times[-1] if len(times) else 0.0) + dt
        step = None if skip is None else int(steps[-1] if len(steps) else -1) + skip
        self.both(lambda store: store.append(one, time=time, step=step, weight=weight))

    @rule(n=st.integers(1, 13), weighted=st.booleans())
    def extend(self, n, weighted):
        many = self.snapshots(n)
        times = self.twin.times
        start = times[-1] if len(times) else 0.0
        weights = self.rng.random(n) if weighted else None
        self.both(lambda store: store.extend(many, times=start + np.arange(n), weights=weights))

    @rule(value=st.integers(-5, 5))
    def append_slow(self, value):
        self.both(lambda store: store.append({"slow": np.full(4, value, "i4")}, clock="slow"))

    @rule(kind=st.sampled_from(["shape", "nan", "missing", "unknown"]))
    def refuse(self, kind):
        one = {name: values[0] for name, values in self.snapshots(1).items()}
        if kind == "shape":
            one["u"] = np.zeros((2, 2), "f4")
        elif kind == "nan":
            one["p"] = np.float64("nan")
        elif kind == "missing":
            del one["p"]
        else:
            one["w"] = 1.0
        self.both(lambda store: store.append(one))

    @precondition(lambda self: self.in_place)
    @rule(share=st.floats(0, 1))
    def truncate(self, share):
        n = int(share * len(self.twin))
        before = len(self.disk["slow"])
        self.twin.truncate(n)
        self.disk.truncate(n)
        assert len(self.disk["slow"]) == before         # the other clock keeps all it has

    @rule()
    def reopen(self):
        self.disk.close()
        self.disk = ek.open(self.path, "a", capacity=5)

    @rule()
    def flush(self):
        self.disk.flush()

    @invariant()
    def agree(self):
        if not self.in_place:
            self.disk.flush()
        self.reader.refresh()
        for store in (self.disk, self.reader):
            for name in FIELDS:
                np.testing.assert_array_equal(store[name][:], self.twin[name])
            for clock in ("main", "slow"):
                source = store.clock(clock)
                if len(source):
                    np.testing.assert_array_equal(source.steps, self.twin._steps(clock))
                    np.testing.assert_array_equal(source.times, self.twin.clock(clock).times)
                    want = self.twin.clock(clock).weights
                    assert (source.weights is None) == (want is None)
                    if want is not None:
                        np.testing.assert_array_equal(source.weights, want)

    def teardown(self):
        self.disk.close()
        if len(self.twin) and (self.twin.weights is None or self.twin.weights.sum() > 0):
            got, want = (ek.reduce(s, {"u": ek.Moments()}, fields=["u"])["u"] for s in (ek.open(self.path), self.twin))
            np.testing.assert_allclose(got.mean, want.mean, rtol=1e-12, atol=1e-12)
        assert ek.open(self.path)["u"].shape[0] == len(self.twin)
        shutil.rmtree(self.folder)


class WholeFiles(Machine):
    """The fallback where rows cannot be written in place."""

    in_place = False


TestInPlace = pytest.mark.filterwarnings("ignore")(Machine.TestCase)
TestInPlace.settings = settings(max_examples=12, stateful_step_count=15)
TestWholeFiles = pytest.mark.filterwarnings("ignore")(WholeFiles.TestCase)
TestWholeFiles.settings = settings(max_examples=5, stateful_step_count=10)


def test_the_twin_is_a_source_and_refuses_what_the_store_refuses():
    twin = MemoryStore(FIELDS, time_unit="s")
    twin.extend({"u": np.ones((4, 3, 2)), "p": np.arange(4.0)})
    assert ek.reduce(twin, {"p": ek.Moments()})["p"].mean == 1.5
    assert ek.reduce(twin.window(1, 3), {"p": ek.Moments()})["p"].mean == 1.5
    with pytest.raises(UnknownFieldError, match="the fields are"):
        twin["x"]
    with pytest.raises(InputError, match="truncate"):
        twin.truncate(9)
    twin.close()
    with pytest.raises(ClosedError):
        twin.append({"u": np.ones((3, 2)), "p": 0.0})
