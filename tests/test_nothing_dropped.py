"""What pruning must not lose on the way: frozen weights, modes, buffers; and networks that are written in unusual ways.

The numbers in the names are those of the list of cases on which the software once fell short.
"""

import copy
import io
import pickle
import threading

import pytest
import torch
from networks import NAMES, SIZE, awaken, build
from torch import nn

import bar
from bar.cost import peak_activations


def shut(gated: bar.GatedNetwork) -> bar.GatedNetwork:
    """Every second feature of each convolution is dead."""
    for gate in gated.gates.values():
        gate.log_alpha.data[:] = 3.0
        gate.log_alpha.data[1::2] = -5.0
    return gated


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / a.detach().abs().max())


class Net(nn.Module):
    """Three convolutions and a linear layer, called by whatever function it is given."""

    def __init__(self, forward=lambda net, x: net.head(net.c(net.norm(net.b(net.a(x)).relu()))), **layers):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.c, self.fc = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.calls = forward

    def forward(self, x):
        return self.calls(self, x)

    def head(self, x):
        return self.fc(x.mean((2, 3)))


def layers_of(name: str, pruned: nn.Module) -> list[nn.Module]:
    """What has become of a layer: itself, or a part for each group."""
    found = dict(pruned.named_modules())
    return [m for n, m in found.items() if (n == name or n.startswith(f"{name}.")) and not list(m.children())]


@pytest.mark.parametrize("name", NAMES)
def test_c1_what_is_frozen_stays_frozen(name):
    net = build(name)
    parameters = dict(net.named_parameters())
    for i, parameter in enumerate(parameters.values()):
        parameter.requires_grad_(i % 3 == 0)
    pruned = bar.prune(shut(bar.gate(net, SIZE)))
    compared = 0
    for layer_name, layer in net.named_modules():
        for own in dict(layer.named_parameters(recurse=False)) if not list(layer.children()) else ():
            for smaller in layers_of(layer_name, pruned):
                assert getattr(smaller, own).requires_grad == parameters[f"{layer_name}.{own}"].requires_grad
                compared += 1
    assert compared >= 6


@pytest.mark.parametrize("name", NAMES)
def test_c1_a_frozen_backbone_learns_nothing(name):
    net = build(name).requires_grad_(False)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1].requires_grad_(True)
    pruned = bar.prune(shut(bar.gate(net, SIZE)))
    assert [tuple(p.shape) for p in pruned.parameters() if p.requires_grad][:1] == [(4, last.in_features)] or (
        name
        in ("wrn-10-1", "wrn-16-1", "resnet-basic", "resnet-bottleneck", "plain", "branches", "depthwise", "awkward")
        and sum(p.requires_grad for p in pruned.parameters()) == 2
    )


def test_c1_each_layer_keeps_its_mode():
    net = build("resnet-basic")
    gated = shut(bar.gate(net, SIZE)).train()
    for module in net.layer1.modules():
        module.eval()
    for pruned in (bar.prune(gated), bar.prune(gated, "regular")):
        norms = {n: m for n, m in pruned.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert {n.startswith("layer1") for n in norms} == {True, False}
        assert all(m.training == (not n.startswith("layer1")) for n, m in norms.items())
        assert pruned.training
    net.eval()
    net.layer2.train()
    pruned = bar.prune(gated)
    assert not pruned.training
    assert all(m.training == n.startswith("layer2") for n, m in pruned.named_modules() if isinstance(m, nn.BatchNorm2d))


def tied_convolutions(net):
    net.c.weight = net.b.weight


def tied_linear(net):
    net.other.bias = net.fc.bias


def tied_norms(net):
    net.second.running_mean = net.norm.running_mean


def tied_to_itself(net):
    net.scale = net.fc.bias


class Unfollowed(nn.Module):
    """What no tracing can follow."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.inner(x) if x.detach().sum() > 0 else self.inner(x) + 0


def tied_with_what_is_left_whole(net):
    net.whole.inner.weight = net.b.weight


TIED = (
    (tied_convolutions, "b.weight", "c.weight"), (tied_linear, "fc.bias", "other.bias"),
    (tied_norms, "norm.running_mean", "second.running_mean"), (tied_to_itself, "fc.bias", "scale"),
    (tied_with_what_is_left_whole, "b.weight", "whole.inner.weight"),
)  # fmt: skip


@pytest.mark.parametrize(("tie", "one", "other"), TIED)
def test_c2_tied_weights_are_left_whole_by_name_and_stay_tied(tie, one, other):
    def forward(net, x):
        x = net.second(net.c(net.norm(net.b(net.first(net.a(x))))))
        return net.other(net.head(net.whole(x)) * net.scale)

    torch.manual_seed(0)
    more = {"first": nn.Conv2d(4, 4, 3), "second": nn.BatchNorm2d(4), "other": nn.Linear(2, 2), "whole": Unfollowed()}
    net = Net(forward, **more)
    net.scale = nn.Parameter(torch.rand(2))
    tie(net)
    gated = shut(bar.gate(net, SIZE).eval())
    assert any(f"its {one.rpartition('.')[2]} is also '{other}'" == why for why in gated.whole.values())
    assert "a" in gated.gates
    assert one.rpartition(".")[0] not in gated.gates
    pruned = bar.prune(gated)
    tensors = pruned.state_dict(keep_vars=True)
    assert tensors[one] is tensors[other]
    images = torch.randn(2, *SIZE)
    assert relative(gated(images), pruned(images)) <= 1e-6
    assert bar.count(pruned, SIZE).volume < bar.count(net, SIZE).volume


@pytest.mark.parametrize("start", [0, 1])
def test_c2_weights_that_lie_in_one_memory_are_refused_by_name(start):
    net, memory = Net(), torch.randn(4 * 4 * 9 + 9)
    net.b.weight = nn.Parameter(memory[: 4 * 4 * 9].view(4, 4, 3, 3))
    net.c.weight = nn.Parameter(memory[start * 9 :][: 4 * 4 * 9].view(4, 4, 3, 3))
    with pytest.raises(bar.BarError, match=r"'b\.weight' and 'c\.weight' share memory"):
        bar.gate(net, SIZE)


def test_c2_weights_that_lie_side_by_side_in_one_memory_are_not_tied():
    net, memory = Net(), torch.randn(2 * 4 * 4 * 9)
    net.b.weight, net.c.weight = (nn.Parameter(half.view(4, 4, 3, 3)) for half in memory.chunk(2))
    assert list(bar.gate(net, SIZE).gates) == ["a", "b", "c"]


def test_c2_one_layer_of_two_names_is_not_tied():
    net = Net()
    net.again = net.c
    assert list(bar.gate(net, SIZE).gates) == ["a", "b", "c"]


def stored(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # what was written three lines above


def pickled(network):
    return pickle.loads(pickle.dumps(network))


# An average of a network's weights is a copy, which is stored.
COPIES = {"saved": stored, "pickled": pickled, "copied": copy.deepcopy, "both": lambda one: pickled(copy.deepcopy(one))}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", [*NAMES, "wrn-28-1"])
def test_c3_networks_are_stored_and_copied(name, way):
    """Gated, cut and pruned; what comes back computes the same, is trained alike, and shares nothing."""
    gated = shut(bar.gate(build(name), SIZE)).cut_().train()
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    for network in (gated, bar.prune(gated)):
        again = COPIES[way](network)
        assert list(again.state_dict()) == list(network.state_dict())
        outputs = []
        for one in (network, again):
            torch.manual_seed(0)
            out = one.train()(images)
            out.square().sum().backward()
            outputs.append([out, *(p.grad for p in one.parameters() if p.grad is not None), one.eval()(images)])
        assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
        assert not {id(p) for p in network.parameters()} & {id(p) for p in again.parameters()}
    again = COPIES[way](gated)
    assert again.network.module is again.body
    assert list(again.network.kinds) == list(again.body.graph.nodes)
    assert (again.size("flops"), again.uncut(), again.full()) == (gated.size("flops"), gated.uncut(), gated.full())
    assert torch.equal(bar.prune(again)(images), bar.prune(gated)(images))
    again.load_state_dict(gated.state_dict())
    again.cut_().eval()


def test_c3_a_deep_network_is_stored():
    from torchvision.models import densenet121

    gated = bar.gate(densenet121(num_classes=3), (3, 32, 32))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(COPIES["pickled"](gated).eval()(images), gated.eval()(images))
    copy.deepcopy(gated)


def test_c3_buffers_of_the_user_survive():
    """What forward reads, kept in the state dict or not, in the gated and in the pruned network."""
    net = Net(lambda net, x: net.head(net.c(net.norm(net.b(net.a((x - net.mean) / net.std))))))
    net.register_buffer("mean", torch.rand(1, 3, 1, 1))
    net.register_buffer("std", torch.rand(1, 3, 1, 1) + 1, persistent=False)
    gated = shut(bar.gate(net.double().eval(), SIZE))
    gated.body.load_state_dict(net.state_dict(), strict=True)
    for network in (gated.body, bar.prune(gated)):
        assert all(torch.equal(network.get_buffer(name), net.get_buffer(name)) for name in ("mean", "std"))
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative(gated(images), stored(bar.prune(gated))(images)) <= 1e-12


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("connectivity", ["mixed", "regular"])
def test_c3_buffers_that_forward_does_not_read_survive(way, connectivity, tmp_path):
    """A count of epochs, say: of the network, of a block, of a block's block, of a layer; kept in files or not."""
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    net = Net(lambda net, x: net.head(net.c(net.block(net.norm(net.b(net.a(x)))))), block=block)
    for i, owner in enumerate([net, block, block[1], net.c, net.norm, net.fc]):
        owner.register_buffer("epochs", torch.tensor(i + 1))
        owner.register_buffer("index_0", torch.tensor([i + 0.5, torch.nan]), persistent=False)
    kept = {name: buffer for name, buffer in net.named_buffers() if name.split(".")[-1] in ("epochs", "index_0")}
    assert len(kept) == 12
    gated = shut(bar.gate(net.eval(), SIZE))
    gated.body.load_state_dict(net.state_dict(), strict=True)
    assert gated.body.state_dict().keys() == net.state_dict().keys()
    images = torch.randn(2, *SIZE)
    expected = gated(images)
    for network in (gated, bar.prune(gated, connectivity)):
        again = COPIES[way](COPIES[way](network))
        body = again.body if network is gated else again
        for name, buffer in kept.items():
            assert torch.equal(body.get_buffer(name).nan_to_num(9), buffer.nan_to_num(9))
        assert again.state_dict().keys() == network.state_dict().keys()
        assert {name for name in kept if name.endswith("epochs")} <= body.state_dict().keys()
        assert not any(name.endswith("index_0") for name in body.state_dict())
        assert relative(expected, again(images)) <= 1e-5
    pruned = bar.prune(COPIES[way](gated), connectivity)
    assert kept.keys() <= dict(pruned.named_buffers()).keys()
    bar.storage.save(pruned, tmp_path / "stored")
    assert torch.equal(bar.load(tmp_path / "stored").get_buffer("block.1.epochs"), kept["block.1.epochs"])
    assert relative(expected, bar.fold(pruned)(images)) <= 1e-5
    assert bar.export(pruned, SIZE, tmp_path / "network.pt2") <= 1e-4
    bar.gate(pruned, SIZE)
    assert bar.count(pruned, SIZE).volume == gated.size() or connectivity == "regular"


def test_c3_a_block_that_has_gone_takes_its_buffers_along():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
    net = Net(lambda net, x: net.head(net.c(net.block(x := net.a(x)) + x)), block=block)
    block.register_buffer("epochs", torch.tensor(1))
    net.c.register_buffer("epochs", torch.tensor(2))
    gated = bar.gate(net, SIZE)
    gated.gates["block.0"].log_alpha.data[:] = -5.0
    assert set(dict(bar.prune(gated).named_buffers())) == {"c.epochs"}


def named(parameter: str) -> type[Net]:
    """A network whose forward calls the images by this name."""
    space = {}
    exec(f"def forward(self, {parameter}):\n    return self.calls(self, {parameter})", space)
    return type("Named", (Net,), {"forward": space["forward"]})


@pytest.mark.parametrize(
    "parameter", ["z0", "z1", "z", "gate_0", "zgate_0", "index_0", "self_", "input", "images", "a", "relu", "fc", "x1"]
)
def test_d3_what_the_images_are_called(parameter):
    net = awaken(
        named(parameter)(lambda net, x: net.head(net.b(net.a(x)).relu() + net.c(net.a2(x))), a2=nn.Conv2d(3, 4, 1))
    )
    gated = shut(bar.gate(net, SIZE))
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative(gated(images), bar.prune(gated)(images)) <= 1e-12
    assert relative(bar.prune(gated)(images), bar.prune(gated)(**{parameter: images})) == 0
    gated.train()(images)


@pytest.mark.parametrize("name", ["index_0", "z0", "dropout", "images", "gate_0", "body", "mean_1"])
def test_d3_what_modules_are_called(name):
    """A module of the user's of a name that generated code has, too."""

    def forward(net, x):
        x = nn.functional.dropout(net.a(x), 0.5, net.training)
        y = net.get_submodule(name)(x)
        return net.head(net.c(x) + y.relu())

    net = awaken(Net(forward, **{name: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))}))
    gated = bar.gate(net, SIZE)
    for i, gate in enumerate(gated.gates.values()):
        gate.log_alpha.data[:] = 3.0
        gate.log_alpha.data[[i % 4, (i + 1) % 3]] = -5.0
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative(gated(images), bar.prune(gated)(images)) <= 1e-12
    whole = bar.gate(net, SIZE)
    whole.keep_({n: torch.ones_like(g.alive) for n, g in whole.gates.items()})
    assert relative(net(images), whole(images)) <= 1e-12


@pytest.mark.parametrize("name", ["class", "None", "ﬁ"])  # the last is read as "fi"
def test_d3_names_that_python_reads_otherwise_are_refused(name):
    net = Net(lambda net, x: net.head(net.get_submodule(name)(net.a(x))))
    net.add_module(name, nn.Conv2d(4, 4, 1))
    with pytest.raises(bar.BarError, match=f"module '{name}' cannot have this name"):
        bar.gate(net, SIZE)


def test_d3_images_without_a_name_of_their_own_are_refused():
    class Star(Net):
        def forward(self, *images):
            return self.calls(self, images[0])

    with pytest.raises(bar.BarError, match="must take its inputs one by one, not as \\*images"):
        bar.gate(Star(), SIZE)


def test_d6_sums_of_a_signal_with_itself_take_no_longer_each():
    def forward(net, x):
        x = net.a(x)
        for _ in range(60):  # 2^60 paths
            x = x + x.relu()
        return net.head(net.b(x))

    gated = shut(bar.gate(awaken(Net(forward)), SIZE))
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative(gated(images), bar.prune(gated)(images)) <= 1e-12


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("track", [False, True])
def test_d4_a_batch_norm_on_the_images(affine, track):
    norm = nn.BatchNorm2d(3, affine=affine, track_running_stats=track)
    after = nn.BatchNorm2d(4, affine=affine, track_running_stats=track)
    net = awaken_without_statistics(
        Net(lambda net, x: net.head(net.after(net.b(net.a(net.first(x))))), first=norm, after=after)
    )
    gated = shut(bar.gate(net, SIZE))
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    pruned = bar.prune(gated)
    assert relative(gated(images), pruned(images)) <= 1e-12
    first = pruned.get_submodule("first")
    assert (first.affine, first.track_running_stats, first.running_mean is None) == (affine, track, not track)


def awaken_without_statistics(net: nn.Module) -> nn.Module:
    net = net.double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("built_inside", [False, True], ids=["gated inside", "built inside"])
def test_d5_inside_inference_mode(built_inside):
    net = None if built_inside else build("wrn-10-1")
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    with torch.inference_mode():
        net = build("wrn-10-1") if built_inside else net
        gated = shut(bar.gate(net, SIZE))
        expected = gated(images)
        pruned = bar.prune(gated.cut_().double())
        assert relative(expected, pruned(images)) <= 1e-10
    assert relative(expected.clone(), pruned(images)) <= 1e-10
    pruned.train()(images).square().sum().backward()
    if not built_inside:
        gated.train()(images).square().sum().backward()
        assert all(p.grad is not None for gate in gated.gates.values() for p in gate.parameters())


def test_d5_a_model_without_numbers():
    with torch.device("meta"):
        net = build("plain")
    with pytest.raises(bar.BarError, match=r"a\.weight is on the meta device"):
        bar.gate(net, SIZE)
    gated = bar.gate(build("plain"), SIZE)
    before = copy.deepcopy(gated.state_dict())
    with pytest.raises(bar.BarError, match="meta device"):
        gated.to("meta")
    assert all(torch.equal(value, before[name]) for name, value in gated.state_dict().items())


def test_d7_in_several_threads_at_once():
    """Networks of their own, one and the same, and forward passes in between."""
    shared, failed, gates = build("resnet-basic"), [], []
    images, start = torch.randn(2, *SIZE, dtype=torch.float64), threading.Barrier(6)
    nets = [build(name) for name in ("plain", "wrn-10-1", "awkward", "grouped")]
    expected = shared(images)

    def work(net):
        try:
            start.wait()
            for _ in range(3):
                gated = shut(bar.gate(net, SIZE))
                assert relative(gated(images), bar.prune(gated)(images)) <= 1e-10
                assert peak_activations(net, SIZE) > 0
                gates.append(len(gated.gates))
        except BaseException as error:
            failed.append(error)

    def run(net):
        try:
            start.wait()
            for _ in range(30):
                assert torch.equal(net(images), expected)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(net,)) for net in (*nets, nets[1])]
    threads.append(threading.Thread(target=run, args=(shared,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(gates) == 15


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_d8_double_precision_by_default(double, dtype, tmp_path):
    net = build("wrn-10-1").to(dtype)
    gated = shut(bar.gate(net, SIZE))
    assert {p.dtype for p in gated._gates.parameters()} == {dtype}
    images = torch.randn(2, *SIZE, dtype=dtype)
    budget = bar.Budget(gated, factor=3, steps=2)
    (gated.train()(images).square().mean() + budget(1)).backward()
    pruned = bar.prune(budget.settle().eval())
    assert relative(gated(images), pruned(images)) <= 1e-5
    assert {p.dtype for p in pruned.parameters()} == {dtype}
    assert relative(pruned(images), bar.fold(pruned)(images)) <= 1e-5
    for file in ("network.pt2", "network.onnx"):
        assert bar.export(pruned, SIZE, tmp_path / file) <= 1e-4
    bar.count(pruned, SIZE)
    gated.costs()


def test_d8_a_run_with_double_precision_by_default(double, tmp_path):
    record = bar.run(bar.RunConfig(pruning_factor=2, limit=64, epochs=(1, 0, 0), size=8), tmp_path / "run")
    assert record["volume"] <= record["budget"]
