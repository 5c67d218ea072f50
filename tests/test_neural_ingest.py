"""Checkpoints of other programs in, snapshots out."""

import json
import warnings

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

import ensemblekit as ek  # noqa: E402
from ensemblekit import neural  # noqa: E402
from ensemblekit.cli import app  # noqa: E402
from ensemblekit.errors import InputError, StoreError  # noqa: E402
from ensemblekit.neural.parameters import to_vectors  # noqa: E402


class Tied(torch.nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = torch.nn.Embedding(7, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.low = torch.nn.Linear(3, 3).bfloat16()
        self.head = torch.nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.norm.running_mean.uniform_()
        self.norm.num_batches_tracked.fill_(seed + 5)


def save_safetensors(state, path):
    save = pytest.importorskip("safetensors.torch").save_file
    save({name: value for name, value in state.items() if name != "head.weight"}, path)


WRITERS = {
    "plain.pt": lambda s, p: torch.save(s, p),
    "wrapped.pth": lambda s, p: torch.save({"epoch": 3, "model_state_dict": s, "optimizer": {"state": {}}}, p),
    "parallel.pt": lambda s, p: torch.save({f"module.{n}": v for n, v in s.items()}, p),
    "compiled.pt": lambda s, p: torch.save({f"_orig_mod.{n}": v for n, v in s.items()}, p),
    "lightning.ckpt": lambda s, p: torch.save({"epoch": 1, "global_step": 7, "pytorch-lightning_version": "2.6.0",
                                               "state_dict": {f"model.{n}": v for n, v in s.items()}}, p),
    "averaged.pt": lambda s, p: torch.save({"n_averaged": torch.tensor(3), **{f"module.{n}": v for n, v in s.items()}}, p),
    "tensors.safetensors": save_safetensors,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("known", [True, False])
def test_formats(tmp_path, name, known):
    models = [Tied(k) for k in range(3)]
    paths = []
    for k, model in enumerate(models):
        paths.append(tmp_path / f"{k}-{name}")
        WRITERS[name](model.state_dict(), paths[-1])
    if not known and name in ("lightning.ckpt",):
        store = neural.ingest(paths, tmp_path / "a.h5")
        assert "model.embed.weight" in neural.state_dict(store)     # nothing says that the prefix is one
        return
    store = neural.ingest(paths, tmp_path / "a.h5", Tied(9) if known else None)
    assert len(store) == 3
    assert [one["path"] for one in store.origin.inputs][::len(store.origin.inputs) // 3] == [p.name for p in paths]
    np.testing.assert_array_equal(store["parameters"].times, [1, 2, 3])
    for k, model in enumerate(models):
        state = neural.state_dict(store, k)
        for key, value in model.state_dict().items():
            if key != "head.weight" or key in state:
                assert torch.equal(state[key], value), key
                assert state[key].dtype == value.dtype
        if known:
            np.testing.assert_array_equal(store["parameters"][k], to_vectors(model)["parameters"])
            assert store["content_hash"][k].tobytes().hex() == neural.content_hash(model)
    assert len(neural.Ensemble.from_store(tmp_path / "a.h5", Tied())) == 3


def test_folders_of_huggingface(tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file
    for k in (20, 30):
        folder = tmp_path / f"checkpoint-{k}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": k}))
        state = {n: v for n, v in Tied(k).state_dict().items() if n != "head.weight"}
        names = sorted(state)
        parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
        for part, held in parts.items():
            save({n: state[n] for n in held}, folder / part)
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {n: part for part, held in parts.items() for n in held}}))
    store = neural.ingest([tmp_path / "checkpoint-20", tmp_path / "checkpoint-30"], tmp_path / "a.h5", Tied())
    np.testing.assert_array_equal(store["parameters"].times, [20, 30])
    np.testing.assert_array_equal(store["parameters"][1], to_vectors(Tied(30))["parameters"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no weights"):
        neural.ingest(tmp_path / "empty", tmp_path / "b.h5")


def broken(kind):
    state = Tied(1).state_dict()
    if kind == "lacks":
        del state["norm.weight"]
    elif kind == "besides":
        state["extra.weight"] = torch.zeros(2)
    elif kind == "shape":
        state["low.bias"] = torch.zeros(4).bfloat16()
    elif kind == "nan":
        state["norm.bias"] = torch.full((3,), float("nan"))
    elif kind == "untied":
        state["head.weight"] = torch.zeros(7, 3)
    elif kind == "whole numbers":
        state["norm.bias"] = torch.zeros(3, dtype=torch.long)
    return state


@pytest.mark.parametrize(("kind", "words"), [
    ("lacks", r"1\.pt is of another model: it lacks norm\.weight"), ("besides", r"has besides extra\.weight"),
    ("shape", r"low\.bias is \(4,\), wanted \(3,\)"), ("nan", r"norm\.bias holds NaN"),
    ("untied", r"head\.weight and embed\.weight differ"), ("whole numbers", r"norm\.bias is torch\.int64"),
])
def test_a_checkpoint_that_does_not_fit_is_named_and_nothing_stays(tmp_path, kind, words):
    torch.save(Tied(0).state_dict(), tmp_path / "0.pt")
    torch.save(broken(kind), tmp_path / "1.pt")
    with pytest.raises(InputError, match=words):
        neural.ingest([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "a.h5", Tied())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt", "1.pt"]


class Payload:
    def __reduce__(self):
        return print, ("run",)


def test_what_is_no_checkpoint(tmp_path, capfd):
    torch.save({"a": Payload()}, tmp_path / "code.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("no")
    (tmp_path / "model.onnx").write_text("no")
    for name, words in [("code.pt", "torch.save"), ("empty.pt", "no state dict"), ("text.pt", "cannot be read"),
                        ("none.pt", "no such file"), ("model.onnx", "no checkpoint")]:
        with pytest.raises(InputError, match=words):
            neural.ingest(tmp_path / name, tmp_path / "a.h5")
    assert "run" not in capfd.readouterr().out.split()
    assert not (tmp_path / "a.h5").exists()
    torch.save(Tied().state_dict(), tmp_path / "a.pt")
    neural.ingest(tmp_path / "a.pt", tmp_path / "a.h5")
    with pytest.raises(StoreError, match="there already"):
        neural.ingest(tmp_path / "a.pt", tmp_path / "a.h5")
    assert len(ek.open(tmp_path / "a.h5")) == 1


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_export_and_back(tmp_path, suffix):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    models = [Tied(k) for k in range(3)]
    for k, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{k}.pt")
    store = neural.ingest([tmp_path / f"{k}.pt" for k in range(3)], tmp_path / "a.h5", Tied())
    (one,) = neural.export(store, tmp_path / f"last{suffix}")
    assert one.name == f"last{suffix}"
    every = neural.export(tmp_path / "a.h5", tmp_path / f"all{suffix}", None)
    assert [path.name for path in every] == [f"all-{k}{suffix}" for k in range(3)]
    again = neural.ingest(every, tmp_path / "b.h5", Tied())
    np.testing.assert_array_equal(again["content_hash"][:], store["content_hash"][:])
    fresh = Tied(8)
    fresh.load_state_dict(neural.state_dict(store, -1))
    assert torch.equal(fresh.head.weight, models[2].head.weight)
    if suffix == ".safetensors":
        from safetensors.torch import load_model

        fresh = Tied(8)
        load_model(fresh, one)              # safetensors' own reader takes it, ties and all
        assert torch.equal(fresh.embed.weight, models[2].embed.weight)
    with pytest.raises(InputError, match="number 3"):
        neural.export(store, tmp_path / "x.pt", 3)
    with pytest.raises(InputError, match=r"\.pt"):
        neural.export(store, tmp_path / "x.npz")
    assert not list(tmp_path.glob("*.tmp*"))


def test_shell(tmp_path):
    shell = CliRunner()
    for k in range(2):
        torch.save(Tied(k).state_dict(), tmp_path / f"{k}.pt")
    done = shell.invoke(app, ["neural", "ingest", str(tmp_path / "0.pt"), str(tmp_path / "1.pt"), str(tmp_path / "a.h5")])
    assert done.exit_code == 0, done.output
    assert "2 snapshots of 39 parameters" in done.output
    done = shell.invoke(app, ["neural", "export", str(tmp_path / "a.h5"), "-o", str(tmp_path / "w.pt"), "--all"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "w-1.pt").exists()
    done = shell.invoke(app, ["neural", "plan", "--epochs", "200", "--steps-per-epoch", "391"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("5 cycles of 15640 steps (40 epochs)")
    done = shell.invoke(app, ["neural", "ingest", str(tmp_path / "0.pt"), str(tmp_path / "1.pt")])
    assert done.exit_code == 2
    assert "the store to make" in done.output


def test_a_distributed_checkpoint_is_not_unpickled(tmp_path):
    """What torch.distributed.checkpoint writes: shards, and a pickle that says what is in them."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = tmp_path / "step_10"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"weight": torch.ones(3)}, checkpoint_id=folder, no_dist=True)
    assert (folder / ".metadata").exists()
    for path in (folder, folder / ".metadata", str(folder / "*.distcp"), [next(folder.glob("*.distcp"))]):
        with pytest.raises(InputError, match=r"format_utils\.dcp_to_torch_save") as error:
            neural.ingest(path, tmp_path / "run.h5")
        assert "pickle" in str(error.value)
        assert not (tmp_path / "run.h5").exists()
    dcp_to_torch_save(folder, tmp_path / "one.pt")
    with neural.ingest(tmp_path / "one.pt", tmp_path / "run.h5") as store:
        assert np.asarray(store["parameters"][0]).tolist() == [1, 1, 1]
