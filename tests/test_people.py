"""Networks of the kinds that people write: exact when pruned, once and again, stored, and while training."""

import copy
import json
import pickle
import re

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from people import LEFT_WHOLE, PEOPLE, inputs_of, person
from test_surgery import randomise
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure
from torch.utils.flop_counter import FlopCounterMode

import bar
from bar import storage


def close(one, other, tolerance=1e-10):
    """Whether all tensors of two results are the same, in the same structure."""
    assert type(one) is type(other)
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()))


def opened(gated):
    return gated.keep_({name: torch.ones_like(gate.alive) for name, gate in gated.gates.items()})


OTHER_LINEAR = ("ecg", "convnext", "two-inputs", "conditioned")  # whose linear layers torch counts in another way


@pytest.mark.parametrize("name", PEOPLE)
@settings(max_examples=max(1, settings().max_examples // 12), phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), connectivity=st.sampled_from(["mixed", "regular"]))
def test_pruned_equals_gated(name, seed, share, connectivity, tmp_path_factory):
    torch.manual_seed(seed)
    net, inputs = person(name), inputs_of(name)
    gated = bar.gate(net, example_inputs=inputs)
    assert bool(gated.whole) == (name in LEFT_WHOLE)
    with torch.no_grad():
        close(opened(gated)(*inputs), net(*inputs))
        randomise(gated, seed, share)
        gated, expected = pickle.loads(pickle.dumps(gated)), gated(*inputs)
        close(gated(*inputs), expected)
        pruned = bar.prune(gated, connectivity)
        close(pruned(*inputs), expected)
        close(pruned(*(x[:1] for x in inputs)), gated(*(x[:1] for x in inputs)))  # for any number of images
        cost = bar.count(pruned, example_inputs=inputs, linear=True)
        with FlopCounterMode(display=False) as counter:
            pruned(*(x[:1] for x in inputs))
        if connectivity == "mixed":
            assert bar.count(pruned, example_inputs=inputs).volume == gated.size()
            assert bar.count(pruned, example_inputs=inputs).flops == gated.size("flops")
        if name not in (
            "ecg",
            "convnext",
            "two-inputs",
            "conditioned",
        ):  # whose linear layers are counted in another way by torch
            assert cost.flops == counter.get_total_flops()
        folder = tmp_path_factory.mktemp("network")
        if "DropPath" in str(pruned):  # a module that nobody else knows, unless its block was cut
            with pytest.raises(bar.BarError, match="DropPath cannot be saved: files name only layers"):
                storage.save(pruned, folder)
        else:
            storage.save(pruned, folder)
            close(bar.load(folder)(*inputs), expected)


@pytest.mark.parametrize("name", PEOPLE)
def test_pruned_and_exported(name, tmp_path):
    """Both files compute what the gated network does, for any number of images, in the structure that it returns."""
    torch.manual_seed(2)
    gated = bar.gate(person(name), example_inputs=inputs_of(name))
    randomise(gated, 2, 0.5)
    network, inputs = bar.prune(gated), inputs_of(name, 5)
    for file in ("network.pt2", "network.onnx"):
        assert bar.export(network, path=tmp_path / file, example_inputs=inputs) <= 1e-4
    expected = gated(*inputs)
    program = torch.export.load(tmp_path / "network.pt2").module()
    inputs = [x.float() if x.is_floating_point() else x for x in inputs]
    out = program(*inputs)
    assert str(tree_structure(out)).replace("immutable_", "") == str(tree_structure(expected))
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    several = {"two-inputs": ["image", "numbers"], "conditioned": ["images", "steps", "labels"]}
    assert names == several.get(name, ["images"])
    fed = {n: x.numpy() for n, x in zip(names, inputs, strict=True)}
    for a, b, c in zip(tree_leaves(expected), tree_leaves(out), session.run(None, fed), strict=True):
        for found in (b, torch.from_numpy(c)):
            torch.testing.assert_close(found.double(), a, rtol=1e-4, atol=1e-4 * float(a.detach().abs().max()))


def test_stored_networks_of_several_inputs_by_command(tmp_path, bar_command):
    gated = bar.gate(person("two-inputs"), example_inputs=inputs_of("two-inputs"))
    storage.save(bar.prune(gated), tmp_path / "stored")
    code, out, err = bar_command("export", "stored", "--format", "pt2", "--inputs", "3x8x8,5", "--json")
    assert (code, err, json.loads(out)["input_size"]) == (0, "", [[3, 8, 8], [5]])
    code, out, err = bar_command("count", "--model", "stored", "--inputs", "3x8x8,5", "--json")
    assert (code, err, json.loads(out)["volume"]) == (0, "", gated.size())
    for arguments, message in (
        (["export", "stored", "--inputs", "3x8x8"], "cannot take images of 3x8x8: .*numbers"),
        (["export", "stored", "--inputs", "3x8x8,a"], "'3x8x8,a' is not like 3x32x32,5"),
        (["count", "--model", "resnet18", "--inputs", "3x8x8,5"], "--inputs is for stored networks"),
    ):
        code, out, err = bar_command(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert re.search(message, err)


class Crossed(nn.Module):
    """The product of two signals is zero where they have no channel in common."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = *(nn.Conv2d(3, 6, 1) for _ in range(2)), nn.Conv2d(6, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.a(x) * self.b(x)).mean((2, 3)))


@pytest.mark.parametrize("make", [Crossed, PEOPLE["shuffled"], PEOPLE["option-a"]])
def test_settling_is_never_fatal(make):
    """Though slices leave out, and products lose, what convolutions keep by themselves."""
    gated = bar.gate(make(), (3, 8, 8))
    smallest, full = gated.smallest(), gated.full()
    assert 0 < smallest < full / 4
    for seed in range(4):
        for share in (0, 0.1, 0.6):
            for gate in gated.gates.values():
                gate.log_alpha.data.uniform_(-6, 2, generator=torch.Generator().manual_seed(seed))
            bar.prune(gated.settle_(smallest + share * (full - smallest)))
            assert 0 < gated.size() <= smallest + share * (full - smallest)
            for gate in gated.gates.values():
                gate.keep_(torch.arange(len(gate.alive)) == seed)  # what floor_ has to open again
            bar.prune(gated.floor_())


@pytest.mark.parametrize("name", PEOPLE)
def test_again_and_again(name):
    """A pruned network is gated and pruned again."""
    torch.manual_seed(0)
    net, inputs = person(name), inputs_of(name)
    volume = bar.count(net, example_inputs=inputs).volume
    for seed in (1, 2, 3):
        gated = bar.gate(net, example_inputs=inputs)
        before = net(*inputs)
        close(opened(gated)(*inputs), before)
        for gate in gated.gates.values():
            shut = torch.rand(len(gate.alive), generator=torch.Generator().manual_seed(seed)) < 0.3
            gate.log_alpha.data[shut] = -5.0
        gated.floor_()
        net = bar.prune(gated).eval()
        close(net(*inputs), gated(*inputs))
        smaller = bar.count(net, example_inputs=inputs).volume
        assert smaller == gated.size() <= volume
        volume = smaller


@pytest.mark.parametrize("name", PEOPLE)
def test_training_with_open_gates_is_training_the_original(name):
    """Outputs, gradients and the statistics of batch norms."""
    torch.manual_seed(0)
    net, inputs = person(name), inputs_of(name, 4)
    twin = copy.deepcopy(net)
    gated = bar.gate(net, example_inputs=inputs).train()
    for gate in gated.gates.values():
        gate.log_alpha.data.fill_(50.0)  # always 1
    twin.train()
    if name == "own":  # the masks of its stochastic depth would be other ones
        for model in (net, twin):
            model.drop.eval()
    results = []
    for model in (gated, twin):
        out = model(*inputs)
        sum(t.square().sum() for t in tree_leaves(out)).backward()
        results.append(out)
    close(*results, 1e-8)
    for (key, mine), its in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-7, atol=1e-9, msg=key)
    for mine, its in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PEOPLE)
def test_something_goes(name):
    gated = bar.gate(person(name), example_inputs=inputs_of(name))
    assert gated.smallest() < 0.75 * gated.full()


def test_what_depends_on_the_number_of_images():
    """It is refused, or left whole where a module does it."""

    class Batch(nn.Module):
        def forward(self, x):
            return x / 2 if x.shape[0] == 2 else x

    layers = [nn.Conv2d(3, 4, 1), Batch(), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 2, 1), nn.Flatten()]
    gated = bar.gate(nn.Sequential(*layers), (3, 4, 4))
    assert list(gated.gates) == ["2"]
    assert "depends on how many images" in next(iter(gated.whole.values()))


def test_inputs_that_do_not_fit():
    with pytest.raises(bar.BarError, match="needs one more input, 'numbers'"):
        bar.gate(person("two-inputs"), (3, 8, 8))
    with pytest.raises(bar.BarError, match="takes fewer inputs"):
        bar.gate(person("ecg"), example_inputs=[torch.zeros(1, 2, 32, dtype=torch.float64)] * 2)
    with pytest.raises(bar.BarError, match="must be batches"):
        bar.gate(person("ecg"), example_inputs=[3])


class Padded(nn.Module):
    """Channels of zeros, which a batch norm shifts, and which a convolution with a bias reads alone."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.last, self.head = last, nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.last(F.pad(self.second(self.first(x)), (0, 0, 0, 0, 2, 2))).mean((2, 3)))


@pytest.mark.parametrize(
    "last", [nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, groups=4)], ids=lambda last: type(last).__name__
)
def test_what_padding_becomes_is_not_lost(last):
    torch.manual_seed(0)
    net = Padded(last).double().eval()
    if isinstance(last, nn.BatchNorm2d):
        last.running_mean.normal_()
    gated = bar.gate(net, (3, 8, 8))
    assert list(gated.whole.values()) == ["makes something else of channels that are padding"]
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(opened(gated)(images), net(images))
    gated.gates["first"].log_alpha.data[1:] = -5.0
    smaller = bar.prune(gated)
    close(smaller(images), gated(images))
    assert bar.count(smaller, (3, 8, 8)).layers["first"]["features"] == 1


class Sliced(nn.Module):
    """Of the features that a depthwise convolution makes from one channel, only some are read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 10, 3, groups=2)
        self.last, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.last(self.second(self.first(x))[:, 1:9]).mean((2, 3)))


def test_features_of_one_channel_stay_together():
    torch.manual_seed(0)
    net = Sliced().double().eval()
    gated, images = bar.gate(net, (3, 8, 8)), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    close(opened(gated)(images), net(images))
    gated.gates["first"].log_alpha.data[0] = -5.0
    smaller = bar.prune(gated)
    close(smaller(images), gated(images))
    assert bar.count(smaller, (3, 8, 8)).flops == gated.size("flops")
