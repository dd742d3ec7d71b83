"""Networks on disk: what is read back is what was written, and nothing else is read."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import NAMES, SIZE, build
from test_surgery import randomise

import bar
from bar import storage


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6), connectivity=st.sampled_from(["mixed", "regular"]))
def test_round_trip(tmp_path_factory, name, seed, connectivity):
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(seed)
    gated = bar.gate(build(name), SIZE)
    randomise(gated, seed, 0.5)
    pruned = bar.prune(gated, connectivity)
    storage.save(pruned, folder)
    images = torch.randn(3, *SIZE, dtype=torch.float64)
    again = bar.load(folder)
    torch.testing.assert_close(again(images), pruned(images), rtol=1e-12, atol=1e-12)  # sums depend on alignment
    stored = pruned.state_dict()
    assert again.state_dict().keys() == stored.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in again.state_dict().items())
    assert not again.training
    again.train()(images).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


@pytest.fixture
def folder(tmp_path):
    storage.save(bar.prune(bar.gate(build("resnet-basic"), SIZE)), tmp_path)
    return tmp_path


def edit(folder, change):
    path = folder / storage.ARCHITECTURE
    architecture = json.loads(path.read_text())
    change(architecture)
    path.write_text(json.dumps(architecture))


def first(architecture, op):
    return next(node for node in architecture["nodes"] if node["op"] == op)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: first(a, "call_function").update(target="os.system"),
        lambda a: first(a, "call_function").update(target="builtins.eval"),
        lambda a: first(a, "call_module").update(target="forward.__globals__"),
        lambda a: first(a, "call_function").update(op="call_method", target="__reduce__"),
        lambda a: first(a, "placeholder").update(target='x=print("ran")'),
        lambda a: first(a, "placeholder").update(name='x=print("ran")'),
        lambda a: first(a, "call_module").update(target='conv1"), print("ran"), getattr(self, "conv1'),
        lambda a: first(a, "call_function")["kwargs"]["kwargs"].update({'a=print("ran"), b': 1}),
        lambda a: (
            a["modules"].update({'x"), print("ran"), ("': {"class": "ReLU", "options": {}}}),
            first(a, "call_module").update(target='x"), print("ran"), ("'),
        ),
        lambda a: next(iter(a["modules"].values())).update({"class": "Module"}),
        lambda a: next(iter(a["modules"].values()))["options"].update(surprise=1),
        lambda a: a.pop("nodes"),
        lambda a: a["nodes"].pop(1),
    ],
)
def test_only_plain_layers_and_operations_are_read(folder, change):
    edit(folder, change)
    with pytest.raises(bar.BarError, match=r"network.json does not describe a pruned network"):
        bar.load(folder)


def test_damage_is_reported(folder):
    weights = folder / storage.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(bar.BarError, match="cannot read the pruned network"):
        bar.load(folder)
    weights.unlink()
    with pytest.raises(bar.BarError, match=r"network\.safetensors is missing"):
        bar.load(folder)
    weights.write_bytes(whole)
    (folder / storage.ARCHITECTURE).write_text("{")
    with pytest.raises(bar.BarError, match="cannot read the pruned network"):
        bar.load(folder)


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    class Odd(torch.nn.ReLU):
        pass

    net = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU()))
    net.add_submodule("1", Odd())
    with pytest.raises(bar.BarError, match="1: Odd cannot be saved"):
        storage.save(net, tmp_path / "new")
    assert not (tmp_path / "new").exists()
