"""Folding for inference keeps the function exactly, whatever lives, and saves what it says."""

import copy
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import NAMES, SIZE, build
from test_surgery import randomise, relative
from torch import nn
from torch.nn import functional as F

import bar
from bar import inference, models, storage


@given(
    name=st.sampled_from([*NAMES, "wrn-28-1"]), seed=st.integers(0, 10**6), share=st.floats(0, 1),
    connectivity=st.sampled_from(["mixed", "regular"]),
)  # fmt: skip
def test_folded_equals_pruned(name, seed, share, connectivity):
    torch.manual_seed(seed)
    gated = bar.gate(build(name), SIZE)
    randomise(gated, seed, share)
    network = bar.prune(gated, connectivity)
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    given = images.clone()
    expected = network(images)
    folded = bar.fold(network)
    for _ in range(2):  # in place, but never in what is there from the start
        assert relative(expected, folded(images)) <= 1e-10
    assert relative(expected, folded(images.to(memory_format=torch.channels_last))) <= 1e-10
    assert torch.equal(images, given)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(network(images), expected)


def pruned(name: str, seed: int) -> torch.fx.GraphModule:
    torch.manual_seed(seed)
    gated = bar.gate(build(name), SIZE)
    randomise(gated, seed, 0.5)
    return bar.prune(gated)


def called(network: torch.fx.GraphModule) -> list:
    return [node.target for node in network.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("gone", ["layer2.1", "layer2.2"])
def test_a_block_that_has_gone_leaves_two_activations_in_a_row(gone):
    """The sum before them must have room for the channels of the sum behind them."""
    torch.manual_seed(0)
    gated = bar.gate(models.build("resnet34-by-8", 10, (3, 32, 32)).double().eval(), (3, 32, 32))
    half = {name: torch.arange(len(gate.score)) % 2 == name.count("layer2.0") % 2 for name, gate in gated.gates.items()}
    half |= {name: torch.zeros_like(half[name]) for name in half if name.startswith(gone)}
    half |= {name: torch.ones_like(half[name]) for name in half if name.startswith(f"layer2.{int(gone[-1]) + 1}")}
    pruned, images = bar.prune(gated.keep_(half)), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert relative(pruned(images), bar.fold(pruned)(images)) <= 1e-10


def test_the_networks_above_take_every_way_through_a_sum():
    """Room made, slices and gathered channels added, batch norm of a prefix; and nothing is copied."""
    used = {target for seed in range(4) for target in called(bar.fold(pruned("wrn-28-1", seed)))}
    assert {inference.add_slices_, inference.add_gathered_, inference.scale_and_shift, torch.narrow} <= used
    assert not used & {torch.cat, torch.index_add, torch.index_select, operator.add}


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 3)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.c(F.relu(x + self.b(x)))


def test_activations_that_are_functions_are_done_in_place_too():
    net, images = Functional().double().eval(), torch.randn(2, *SIZE, dtype=torch.float64)
    folded = bar.fold(net)
    relus = [node.kwargs for node in folded.graph.nodes if node.target is F.relu]
    assert relus == [{"inplace": True}] * 2
    assert inference.add_slices_ in called(folded)
    assert relative(net(images), folded(images)) <= 1e-10


def test_a_residual_signal_is_copied_once_per_group_at_most():
    """Where it is born; later blocks find room in it."""
    for seed in range(8):
        assert called(bar.fold(pruned("wrn-28-1", seed))).count(inference.make_room) <= 3


def test_a_convolution_leaves_room_by_itself():
    """Its features of later blocks are zeros, where that is cheaper than a copy."""
    network = pruned("wrn-28-1", 2)
    folded = bar.fold(network)
    assert inference.make_room not in called(folded)
    narrow, wide = network.get_submodule("group2.0.shortcut"), folded.get_submodule("group2.0.shortcut")
    silent = wide.weight.flatten(1).abs().sum(1) == 0
    assert wide.out_channels > narrow.out_channels
    assert silent.sum() == wide.out_channels - narrow.out_channels


@pytest.mark.parametrize("channels", [1, 5, 32, 33])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format, "prefix"])
@pytest.mark.parametrize("images", [2, 200])
def test_one_multiply_add_is_a_batch_norm(channels, layout, images):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        tensor.data.normal_()
    norm.running_var.uniform_(0.5, 2)
    signal = torch.randn(images, channels + 3 * (layout == "prefix"), 32, 16)
    signal = signal.contiguous(memory_format=torch.channels_last if layout == "prefix" else layout)[:, :channels]
    before = signal.clone()
    folded = bar.fold(nn.Sequential(norm))
    assert called(folded) == [inference.scale_and_shift]
    assert relative(norm(signal), folded(signal)) <= 1e-5
    assert torch.equal(signal, before)


class Awkward(nn.Module):
    """What a sum or a ReLU reads must not be overwritten here, each time for another reason."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.a, self.b, self.c = (nn.Conv2d(3, 4, 3, padding=1) for _ in range(3))
        self.grouped, self.wide = nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(3, 6, 1)
        self.later, self.narrower = nn.Conv2d(4, 4, 1), nn.Conv2d(2, 4, 1)
        self.drop, self.relu, self.pool = nn.Dropout(), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.case == "the images":
            return self.a(torch.relu(x)).tanh()
        a, b = self.a(x), self.b(x)
        if self.case == "read later":
            return (a + b).tanh() * self.later(a)
        if self.case == "read later in part":
            part = torch.narrow(a, 1, 1, 2)
            return (a + b).tanh() * self.narrower(part)
        if self.case == "read later by another sum":
            first = (a + b).tanh()
            return first * torch.cat([torch.narrow(a, 1, 0, 2), torch.narrow(b, 1, 0, 2)], 1).tanh()
        if self.case == "read later under another name":
            same = self.drop(a)
            return (a + b).tanh() * same
        if self.case == "added to itself":
            return (a + a).tanh()
        if self.case == "grouped features in another order":
            return torch.index_add(self.wide(x), 1, torch.tensor([5, 0, 3, 1]), self.grouped(a)).tanh()
        if self.case == "the first features in another order":
            return torch.index_add(self.wide(x), 1, torch.tensor([3, 1]), torch.narrow(a, 1, 0, 2)).tanh()
        if self.case == "broadcast":
            return (self.later(self.pool(a)) + b).tanh()
        if self.case == "overwritten by the network":
            return (F.relu(a) + self.relu(b) + b).tanh()
        if self.case == "read by a sum beside its ReLU":
            return (F.relu(a) + a).tanh()
        raise AssertionError(self.case)


@pytest.mark.parametrize("case", ["the images", "read later", "read later in part", "read later by another sum",
                                  "read later under another name", "added to itself", "broadcast",
                                  "grouped features in another order", "the first features in another order",
                                  "overwritten by the network", "read by a sum beside its ReLU"])  # fmt: skip
def test_what_is_read_again_is_not_overwritten(case):
    network = Awkward(case).double().eval()
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    given, expected = images.clone(), network(images)
    assert relative(expected, bar.fold(network)(images)) <= 1e-12
    assert torch.equal(images, given)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "googlenet"])
def test_any_network_can_be_folded(name):
    torch.manual_seed(0)
    network = bar.models.build(name, 4, (3, 64, 64)).eval()
    images = torch.randn(2, 3, 64, 64)
    assert relative(network(images), bar.fold(network)(images)) <= 1e-4


def test_networks_of_videos_can_be_folded():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Flatten(2), nn.Conv1d(8, 4, 1))
    network = bar.prune(bar.gate(network.double().eval(), (3, 4, 8, 8)))
    videos = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    folded = bar.fold(network)
    assert relative(network(videos), folded(videos)) <= 1e-12
    weight = next(p for p in folded.parameters() if p.ndim == 5)
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_folding_is_for_inference_and_the_network_stays_trainable():
    network = pruned("wrn-16-1", 0).train()
    folded = bar.fold(network)
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    storages = {p.untyped_storage().data_ptr() for p in network.parameters()}
    assert not storages & {p.untyped_storage().data_ptr() for p in folded.parameters()}


def test_the_network_is_as_before_for_export_and_storage(tmp_path):
    network = pruned("wrn-16-1", 4)
    bar.fold(network)
    storage.save(network, tmp_path)
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    assert relative(network(images), bar.fold(bar.load(tmp_path))(images)) <= 1e-10


def test_a_gated_network_is_not_folded():
    with pytest.raises(bar.BarError, match=r"with bar\.prune"):
        bar.fold(bar.gate(build("plain"), SIZE))


@given(seed=st.integers(0, 10**6))
def test_two_writers_meet_in_one_slice(seed):
    """What the second refines and what it adds lie side by side, whatever lives."""
    network = pruned("wrn-10-1", seed)
    assert not {torch.index_add, torch.index_select} & set(called(network))
    added = [n.args[2] for n in bar.fold(network).graph.nodes if n.target is inference.add_slices_]
    assert all(len(stretches) == 1 for stretches in added)


def test_two_batch_norms_in_a_row_are_folded_both():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    for norm in net[1:3]:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.running_mean)
    images = torch.randn(2, *SIZE)
    torch.testing.assert_close(bar.fold(net.eval())(images), net(images), rtol=1e-5, atol=1e-5)


def test_channels_that_were_shuffled_are_left_alone():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return torch.cat(self.conv(x).chunk(2, 1)[::-1], 1)

    class Cat(Shuffled):
        def forward(self, x):
            return torch.cat(self.conv(x).chunk(2, 1), 1)

    images = torch.randn(2, *SIZE)
    for net in (Shuffled().eval(), Cat().eval()):
        torch.testing.assert_close(bar.fold(net)(images), net(images))
