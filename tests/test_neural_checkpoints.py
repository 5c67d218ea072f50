"""Checkpoints as people have them: settings beside the weights, averages beside them, pointers, patterns, parts."""

import argparse
import json
import pathlib

import numpy as np
import pytest
import torch

from ensemblekit import neural
from ensemblekit.errors import InputError


class Own:
    """A class of somebody's program."""

    def __init__(self):
        self.x = 1


class Runs:
    """An object whose pickle calls a function of the system."""

    def __reduce__(self):
        import os
        return os.system, ("echo run > /tmp/never",)


def model():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_beside_the_weights_are_passed_over(tmp_path, zipped):
    net = model()
    torch.save({"epoch": np.int64(3), "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x")), "best": np.float64(0.5),
                "own": [Own()], "state_dict": net.state_dict()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with neural.ingest(tmp_path / "a.pth", tmp_path / "s.h5", net) as store:
        assert all(torch.equal(x, net.state_dict()[name]) for name, x in neural.state_dict(store).items())


def test_a_checkpoint_that_runs_something_is_refused_by_name(tmp_path):
    torch.save({"x": Runs(), "state_dict": model().state_dict()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="system") as caught:
        neural.ingest(tmp_path / "a.pt", tmp_path / "s.h5")
    assert "\x1b" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_whole_model_is_refused_by_its_class(tmp_path):
    torch.save(model(), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"Sequential.*state dict") as caught:
        neural.ingest(tmp_path / "a.pt", tmp_path / "s.h5")
    assert "weights_only" not in str(caught.value)


def test_averages_beside_the_weights_are_chosen_by_key(tmp_path, caplog):
    net, ema = model(), model()
    with torch.no_grad():
        ema[0].weight.add_(1)
    torch.save({"state_dict": net.state_dict(), "state_dict_ema": ema.state_dict(), "optimizer": {}}, tmp_path / "a.pt")
    with neural.ingest(tmp_path / "a.pt", tmp_path / "s.h5", net, key="state_dict_ema") as store:
        assert torch.equal(neural.state_dict(store)["0.weight"], ema[0].weight)
    neural.ingest(tmp_path / "a.pt", tmp_path / "t.h5", net).close()
    assert "state_dict_ema" in caplog.text
    with pytest.raises(InputError, match="state_dict_ema"):
        neural.ingest(tmp_path / "a.pt", tmp_path / "u.h5", net, key="ema")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(InputError, match="git lfs pull"):
            neural.ingest(path, tmp_path / "s.h5")


def test_a_pattern_is_in_the_order_of_its_numbers(tmp_path):
    for k in (10, 2, 1):
        net = model()
        with torch.no_grad():
            net[0].bias.fill_(k)
        torch.save(net.state_dict(), tmp_path / f"epoch{k}.pt")
    with neural.ingest(str(tmp_path / "epoch*.pt"), tmp_path / "s.h5", model()) as store:
        assert [float(neural.state_dict(store, k)["0.bias"][0]) for k in range(3)] == [1, 2, 10]
    with pytest.raises(InputError, match="no file matches"):
        neural.ingest(str(tmp_path / "no*.pt"), tmp_path / "t.h5")


def parts(folder, weight_map):
    save = pytest.importorskip("safetensors.torch").save_file
    folder.mkdir()
    state = model().state_dict()
    names = list(state)
    save({n: state[n] for n in names[:3]}, folder / "a.safetensors")
    save({n: state[n] for n in names[3:]}, folder / "b.safetensors")
    made = {n: "a.safetensors" if k < 3 else "b.safetensors" for k, n in enumerate(names)} | weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": made}))
    return folder


def test_an_index_reads_its_parts_and_no_file_outside_its_folder(tmp_path):
    good = parts(tmp_path / "good", {})
    neural.ingest(good, tmp_path / "s.h5", model()).close()
    neural.ingest(good / "model.safetensors.index.json", tmp_path / "t.h5", model()).close()
    for k, where in enumerate(("../good/a.safetensors", str(good / "a.safetensors"))):
        with pytest.raises(InputError, match="outside"):
            neural.ingest(parts(tmp_path / f"bad{k}", {"0.weight": where}), tmp_path / "u.h5", model())
    with pytest.raises(InputError, match="do not hold"):
        neural.ingest(parts(tmp_path / "short", {"9.weight": "a.safetensors"}), tmp_path / "v.h5")


def test_an_adapter_goes_into_its_model_by_its_own_names(tmp_path):
    save = pytest.importorskip("safetensors.torch").save_file

    class Lora(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base = torch.nn.Linear(3, 2)
            self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(3, 1, bias=False)})

    folder = tmp_path / "adapter"
    folder.mkdir()
    save({"lora_A.weight": torch.full((1, 3), 2.0)}, folder / "adapter_model.safetensors")
    with neural.ingest(folder, tmp_path / "s.h5", Lora()) as store:
        assert neural.state_dict(store)["lora_A.default.weight"].tolist() == [[2.0, 2.0, 2.0]]


def test_what_a_module_keeps_beside_its_tensors_is_refused_by_name(tmp_path):
    torch.save({**model().state_dict(), "0._extra_state": {"scale": 2}}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="_extra_state"):
        neural.ingest(tmp_path / "a.pt", tmp_path / "s.h5")
