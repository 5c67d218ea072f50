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
    index = {n: "a.safetensors" if k < 3 else "b.safetensors" for k, n in enumerate(names)} | weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
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


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def inside(wrapper, state):
    """Every layer in a wrapper of its own."""
    return {f"{name.partition('.')[0]}.{wrapper}{name.partition('.')[2]}": tensor for name, tensor in state.items()}


WRAPPED = {**{prefix: (prefixed, prefix) for prefix in (
    "model.", "module._orig_mod.", "_fsdp_wrapped_module.", "ema.module.", "_forward_module.module.")},
    **{f"*.{wrapper}": (inside, wrapper) for wrapper in (
        "module.", "_orig_mod.", "_fsdp_wrapped_module._checkpoint_wrapped_module.")}}


@pytest.mark.parametrize("how", WRAPPED)
def test_names_that_wrappers_and_programs_give(tmp_path, how):
    """The model is given while the files are read, or only when the ensemble is made."""
    rename, by = WRAPPED[how]
    x = torch.ones(5, 3)
    answers = []
    for k in range(2):
        one = model().eval()
        with torch.no_grad():
            one[0].weight.add_(k)
            answers.append(one(x).double().softmax(1))
        torch.save(rename(by, one.state_dict()), tmp_path / f"{k}.pt")
    for known in (model(), None):
        with neural.ingest([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / f"{known is None}.h5", known) as store:
            probabilities = neural.Ensemble.from_store(store, model())(x).exp()
        torch.testing.assert_close(probabilities, torch.stack(answers).mean(0), rtol=0, atol=1e-6)


def test_a_part_in_a_data_parallel_is_that_part(tmp_path):
    from ensemblekit.neural.parameters import Manifest

    wrapped = torch.nn.Sequential(torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 4))),
                                  torch.nn.Linear(4, 2))
    bare = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)), torch.nn.Linear(4, 2))
    assert Manifest.of(wrapped) == Manifest.of(bare)
    bare.load_state_dict({name.replace("module.", ""): tensor for name, tensor in wrapped.state_dict().items()})
    torch.save(wrapped.state_dict(), tmp_path / "a.pt")
    for one in (wrapped, bare):
        with neural.ingest(tmp_path / "a.pt", tmp_path / f"{type(one[0]).__name__}.h5", one) as store:
            member = neural.Ensemble.from_store(store, bare).member(0)
        torch.testing.assert_close(member(torch.ones(2, 3)), bare(torch.ones(2, 3)), rtol=0, atol=0)


class Tied(torch.nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        torch.manual_seed(2)
        self.embedding = torch.nn.Embedding(7, 3)
        self.decoder = torch.nn.Linear(3, 7, bias=False)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(self.embedding(x))


@pytest.mark.parametrize("names", [("embedding.weight", "decoder.weight"), ("embedding.weight",), ("decoder.weight",)])
def test_tied_weights_under_any_of_their_names(tmp_path, names):
    one = Tied()
    state = one.state_dict()
    torch.save({name: state[name] for name in names}, tmp_path / "a.pt")
    for known in (Tied(), None):
        with neural.ingest(tmp_path / "a.pt", tmp_path / f"{known is None}.h5", known) as store:
            assert store["parameters"].shape == (1, 21)
            ensemble = neural.Ensemble.from_store(store, Tied())
            for network in (ensemble.member(0), ensemble.averaged_model()):
                assert network.decoder.weight is network.embedding.weight
                torch.testing.assert_close(network.embedding.weight, one.embedding.weight, rtol=0, atol=0)


def test_weights_that_are_tied_in_the_model_alone_are_refused(tmp_path):
    torch.save(Tied(False).state_dict(), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"decoder.weight and embedding.weight differ, and are one tensor in the model"):
        neural.ingest(tmp_path / "a.pt", tmp_path / "s.h5", Tied())
    with neural.ingest(tmp_path / "a.pt", tmp_path / "t.h5") as store, pytest.raises(
            InputError, match=r"tied to.*neural.ingest\(paths, store, model\)"):
        neural.Ensemble.from_store(store, Tied())


class Adapted(torch.nn.Module):
    """As PEFT builds it: a layer with LoRA matrices, and a head that is trained in full."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(2)
        self.fc = torch.nn.ModuleDict({"base_layer": torch.nn.Linear(3, 4),
                                       "lora_A": torch.nn.ModuleDict({name: torch.nn.Linear(3, 1, bias=False)}),
                                       "lora_B": torch.nn.ModuleDict({name: torch.nn.Linear(1, 4, bias=False)})})
        head = torch.nn.Linear(4, 2)
        self.out = torch.nn.ModuleDict({"original_module": head, "modules_to_save": torch.nn.ModuleDict(
            {name: torch.nn.Linear(4, 2)})})
        self.name = name

    def forward(self, x):
        h = self.fc["base_layer"](x) + self.fc["lora_B"][self.name](self.fc["lora_A"][self.name](x))
        return self.out["modules_to_save"][self.name](h)


@pytest.mark.parametrize("name", ["default", "mine"])
def test_adapters_of_any_name_and_modules_trained_in_full(tmp_path, name):
    save = pytest.importorskip("safetensors.torch").save_file
    answers, x = [], torch.ones(5, 3)
    for k in range(2):
        one = Adapted(name)
        with torch.no_grad():
            for which, parameter in one.named_parameters():
                if "lora" in which or "to_save" in which:
                    parameter.fill_(0.3 * k + 0.1)
            answers.append(one(x).double().softmax(1))
        folder = tmp_path / f"checkpoint-{10 * k + 10}"
        folder.mkdir()
        save({key.replace(f"modules_to_save.{name}.", "").replace(f".{name}.", "."): tensor
              for key, tensor in one.state_dict().items() if f".{name}." in key}, folder / "adapter_model.safetensors")
    with neural.ingest(str(tmp_path / "checkpoint-*"), tmp_path / "s.h5", Adapted(name)) as store:
        assert store["parameters"].shape == (2, 3 + 4 + 10)
        probabilities = neural.Ensemble.from_store(store, Adapted(name))(x).exp()
    torch.testing.assert_close(probabilities, torch.stack(answers).mean(0), rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=r"adapter of PEFT with .*which the model has not.*get_peft_model"):
        neural.ingest(folder, tmp_path / "t.h5", model())


@pytest.mark.parametrize("part", ["", ".", "sub", "pytorch_model.bin.index.json", "../weights.bin", "sub/../../weights.bin"])
def test_an_index_names_files_of_its_folder_alone(tmp_path, part):
    torch.save(model().state_dict(), tmp_path / "weights.bin")
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "pytorch_model.bin.index.json").write_text(json.dumps(
        {"weight_map": dict.fromkeys(model().state_dict(), part)}))
    with pytest.raises(InputError, match=r"index\.json names .*(outside its own folder|another index): it is not read"):
        neural.ingest(tmp_path / "a", tmp_path / "s.h5", model())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_one_of_several_parts_is_no_checkpoint(tmp_path, suffix):
    for k in (1, 2):
        torch.save(model().state_dict(), tmp_path / f"model-0000{k}-of-00002.{suffix}")
    for paths in (tmp_path / f"model-00001-of-00002.{suffix}", str(tmp_path / f"*.{suffix}")):
        with pytest.raises(InputError, match=r"model-00001.* is one of the 2 parts of a checkpoint.*index"):
            neural.ingest(paths, tmp_path / "s.h5")
    torch.save(model().state_dict(), tmp_path / "model-00001-of-00001.bin")
    neural.ingest(tmp_path / "model-00001-of-00001.bin", tmp_path / "s.h5").close()
