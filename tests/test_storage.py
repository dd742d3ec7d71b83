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
    (folder / storage.WEIGHTS).unlink()
    if any(node.op == "get_attr" for node in pruned.graph.nodes):
        with pytest.raises(bar.BarError, match="belongs to no layer, and was stored with the weights, which are"):
            storage.untrained(folder)
        return
    anew = storage.untrained(folder).double()
    assert not any(torch.equal(anew.state_dict()[n], t) for n, t in stored.items() if n.endswith("conv1.weight"))
    anew.load_state_dict(stored)  # with these weights, it is the network that was stored
    torch.testing.assert_close(anew.eval()(images), pruned(images), rtol=1e-12, atol=1e-12)


def test_a_description_alone_is_not_trusted(tmp_path):
    """Neither in what it says of sizes, nor in that it is the one that the run has written."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 2))
    storage.save(bar.prune(bar.gate(network, (1, 6, 6))), tmp_path)
    path = tmp_path / storage.ARCHITECTURE
    text = path.read_text()
    path.write_text(text.replace('_features": 64', '_features": 60000').replace('_features": 2', '_features": 60000'))
    with pytest.raises(bar.BarError, match="3,600,060,040 parameters, more than the 1,000,000,000 that are allowed"):
        storage.untrained(tmp_path)
    path.write_text("[]")
    with pytest.raises(bar.BarError, match="describes no network that can be built: it is not of format"):
        storage.untrained(tmp_path)
    path.unlink()
    with pytest.raises(bar.BarError, match=r"cannot read the network in .*: it is missing"):
        storage.untrained(tmp_path)


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


class Normalised(torch.nn.Module):
    """Buffers that no state dict holds: of the network, of a block, and the statistics of a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        self.last = torch.nn.Conv2d(4, 2, 1)
        self.register_buffer("mean", torch.rand(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.rand(2, 1, 1))
        self.stem.register_buffer("shift", torch.rand(4, 1, 1), persistent=False)
        self.stem[1].register_buffer("running_mean", torch.rand(4), persistent=False)

    def forward(self, x):
        return self.last((self.stem(x - self.mean) + self.stem.shift).relu()) * self.scale


class Prunable(Normalised):
    """Some of them are not read."""

    def forward(self, x):
        return self.last(self.stem(x - self.mean).relu())


PASSING = {"mean", "stem.shift", "stem.1.running_mean"}


def test_buffers_that_no_state_dict_holds_come_back_as_such(tmp_path):
    network = torch.fx.symbolic_trace(Normalised().eval())
    for name in ("mean", "stem.shift"):  # torch.fx makes all of them persistent
        owner, _, last = name.rpartition(".")
        network.get_submodule(owner).register_buffer(last, network.get_buffer(name), persistent=False)
    storage.save(network, tmp_path)
    again, images = bar.load(tmp_path), torch.randn(2, *SIZE)
    assert torch.equal(again(images), network(images))
    assert dict(again.named_buffers()).keys() == dict(network.named_buffers()).keys() > PASSING
    assert again.state_dict().keys() == network.state_dict().keys()
    assert not PASSING & again.state_dict().keys()
    storage.save(again, tmp_path / "twice")
    for file in (storage.ARCHITECTURE, storage.WEIGHTS):
        assert (tmp_path / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


def test_so_do_those_of_a_pruned_network(tmp_path):
    pruned = bar.prune(bar.gate(Prunable().eval(), SIZE))
    storage.save(pruned, tmp_path)
    again, images = bar.load(tmp_path), torch.randn(2, *SIZE)
    assert torch.equal(again(images), pruned(images))
    assert again.state_dict().keys() == pruned.state_dict().keys()
    assert {"mean", "stem.shift"}.isdisjoint(again.state_dict())


def test_files_that_do_not_tell_of_buffers_are_read(folder, tmp_path):
    """All buffers are persistent then, as they were."""
    storage.save(bar.prune(bar.gate(Prunable().eval(), SIZE)), tmp_path / "new")
    edit(tmp_path / "new", lambda a: a.pop("non_persistent"))
    assert set(bar.load(tmp_path / "new").state_dict()) > {"mean", "stem.shift"}
    assert "non_persistent" not in json.loads((folder / storage.ARCHITECTURE).read_text())


@pytest.mark.parametrize("odd", [5, "mean", [5], ["nobody"], ["last.weight"], [["mean"]], [""], {"mean": 1}])
def test_only_buffers_can_be_such(odd, tmp_path):
    storage.save(bar.prune(bar.gate(Prunable().eval(), SIZE)), tmp_path)
    edit(tmp_path, lambda a: a.update(non_persistent=odd))
    with pytest.raises(bar.BarError, match=r"network.json does not describe a pruned network"):
        bar.load(tmp_path)
