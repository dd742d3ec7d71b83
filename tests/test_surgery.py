"""Surgery preserves the function, whatever lives; counts match; no cut is fatal."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import NAMES, SIZE, build
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import bar
from bar.gates import FLOOR


def randomise(gated: bar.GatedNetwork, seed: int, share: float) -> None:
    """Shut each gate with a chance, but some convolutions altogether and others not at all."""
    generator = torch.Generator().manual_seed(seed)
    for gate in gated.gates.values():
        values = torch.empty_like(gate.log_alpha).uniform_(-1.5, 2, generator=generator)
        here = (0.0, share, share, 1.0)[int(torch.randint(4, (), generator=generator))]
        shut = torch.rand(values.shape, generator=generator) < here
        gate.log_alpha.data.copy_(torch.where(shut, -5.0, values))
    gated.floor_()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / a.abs().max())


patterns = given(
    name=st.sampled_from(NAMES), seed=st.integers(0, 10**6), share=st.floats(0, 1),
    connectivity=st.sampled_from(["mixed", "regular"]),
)  # fmt: skip


@patterns
def test_pruned_equals_gated(name, seed, share, connectivity):
    torch.manual_seed(seed)
    gated = bar.gate(build(name), SIZE)
    randomise(gated, seed, share)
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    expected = gated(images)
    pruned = bar.prune(gated, connectivity)
    assert relative(expected, pruned(images)) <= 1e-10
    assert relative(expected, bar.prune(gated.float(), connectivity)(images.float()).double()) <= 1e-5
    assert not any(isinstance(m, bar.Gate) for m in pruned.modules())


@patterns
def test_counts_of_the_pruned_network(name, seed, share, connectivity):
    """The gated network's own count, that of the pruned network, and torch's FLOP counter are the same."""
    gated = bar.gate(build(name), SIZE)
    randomise(gated, seed, share)
    pruned = bar.prune(gated, connectivity)
    cost = bar.count(pruned, SIZE, linear=True)
    with FlopCounterMode(display=False) as counter:
        pruned(torch.zeros(1, *SIZE, dtype=torch.float64))
    assert cost.flops == counter.get_total_flops()
    if connectivity == "mixed":
        cost = bar.count(pruned, SIZE)
        assert (cost.volume, cost.flops) == (gated.size("volume"), gated.size("flops"))
        assert cost.volume <= bar.count(bar.prune(gated, "regular"), SIZE).volume


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6))
def test_open_gates_change_nothing(name, seed):
    torch.manual_seed(seed)
    net = build(name)
    gated = bar.gate(net, SIZE)
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(gated(images), net(images), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bar.prune(gated)(images), net(images), rtol=1e-12, atol=1e-12)
    gated.body.load_state_dict(net.state_dict(), strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_no_cut_is_fatal(name):
    """With every gate shut as far as it will go, a path still leads from input to output, and gradients along it."""
    torch.manual_seed(0)  # one feature is left in each layer, and its ReLU must be open
    net = build(name)
    for parameter in (p for n, p in net.named_parameters() if n.endswith("bias")):
        nn.init.constant_(parameter, 3.0)  # keeps every ReLU open
    gated = bar.gate(net, SIZE)
    for gate in gated.gates.values():
        gate.log_alpha.data.fill_(-20.0)
    with pytest.raises(bar.BarError, match="fatal pruning"):
        bar.prune(gated)
    gated.floor_()
    assert gated.size() == gated.smallest()
    pruned = bar.prune(gated)
    images = torch.randn(4, *SIZE, dtype=torch.float64, requires_grad=True)
    pruned(images).sum().backward()
    assert images.grad.abs().max() > 0


def test_what_cannot_be_cut_leaves_everything_uncut():
    gated = bar.gate(build("plain"), SIZE)
    names = list(gated.gates)
    for name in names[:1]:
        gated.gates[name].log_alpha.data[:2] = -20.0
    before, features = gated.uncut(), {name: ~gate.alive for name, gate in gated.gates.items()}
    features[names[-1]] = torch.ones_like(features[names[-1]])  # alive, and the last to be looked at
    with pytest.raises(bar.BarError, match=f"'{names[-1]}' is live: it cannot be cut"):
        gated.cut_(features)
    assert not any(gate.cut.any() for gate in gated.gates.values())
    assert gated.uncut() == before


@pytest.mark.parametrize("ask", ["size", "full", "uncut", "smallest"])
def test_a_metric_that_is_not_there_is_refused_by_name(ask):
    with pytest.raises(bar.BarError, match="unknown metric 'volumes': did you mean 'volume'"):
        getattr(bar.gate(build("plain"), SIZE), ask)("volumes")


def test_spine_of_residual_networks():
    """The stem and the 1x1 convolution of every pooling block, nothing else (section 4.1)."""
    spine = bar.gate(build("resnet-basic"), SIZE).network.spine()
    assert spine == ["conv1", "layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"]
    assert bar.gate(build("wrn-10-1"), SIZE).network.spine() == ["conv1", "group2.0.shortcut", "group3.0.shortcut"]


def test_a_dead_block_leaves_no_trace():
    """Shutting the inner convolution of a block removes all of it: automatic depth determination."""
    gated = bar.gate(build("resnet-basic"), SIZE)
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    gated.gates["layer1.0.conv1"].log_alpha.data.fill_(-5.0)
    names = [name for name, _ in bar.prune(gated).named_modules()]
    assert not any("layer1.0.conv" in name or "layer1.0.bn" in name for name in names)
    assert any("layer1.1.conv1" in name for name in names)


def test_mixed_connectivity_of_figure_4():
    """All three cases of figure 4 in one block: a feature passes through, one is refined, one is new."""
    gated = bar.gate(build("wrn-10-1"), SIZE)
    keep = {n: torch.ones_like(g.alive) for n, g in gated.gates.items()}
    keep["conv1"][:] = False
    keep["conv1"][[0, 1]] = True  # 0 passes through (b), 1 is refined
    keep["group1.0.conv2"][:] = False
    keep["group1.0.conv2"][[1, 5]] = True  # 5 is new (c)
    pruned = bar.prune(gated.keep_(keep))
    assert pruned.group1.get_submodule("0").conv2.out_channels == 2
    assert pruned.group2.get_submodule("0").bn1.num_features == 3
    regular = bar.prune(gated, "regular")
    assert regular.group1.get_submodule("0").conv2.out_channels == 3 == regular.conv1.out_channels


@given(
    name=st.sampled_from(NAMES), seed=st.integers(0, 10**6), share=st.floats(0, 1), factor=st.floats(1.5, 16),
    metric=st.sampled_from(["volume", "flops"]),
)  # fmt: skip
def test_the_budget_holds(name, seed, share, factor, metric):
    """After the last step V <= B, always; and nothing but whole features keeps it from 0.95 B."""
    gated = bar.gate(build(name), SIZE)
    full = bar.count(build(name), SIZE)
    budget = getattr(full, metric) / factor
    if budget < gated.smallest(metric):
        with pytest.raises(bar.BarError, match="smallest possible"):
            gated.settle_(budget, metric)
        return
    randomise(gated, seed, share)
    pruned = bar.prune(gated.settle_(budget, metric))
    size = getattr(bar.count(pruned, SIZE), metric)
    assert size <= budget
    if size < 0.95 * budget:  # then no single dead feature fits
        for gate in gated.gates.values():
            for i in (~gate.alive).nonzero().flatten().tolist():
                before = gate.log_alpha[i].item()
                gate.log_alpha.data[i] = FLOOR
                assert not size < gated.size(metric) <= budget
                gate.log_alpha.data[i] = before


def test_settling_leaves_a_good_fit_alone_and_follows_log_alpha():
    gated = bar.gate(build("plain"), SIZE)
    a = gated.gates["a"].log_alpha.data.copy_(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.25, 0.1]))
    gated.gates["b"].log_alpha.data.fill_(5.0)
    before = a.clone()
    gated.settle_(gated.size())
    assert torch.equal(a, before)
    gated.settle_(3 * 64 + 5 * 16)
    assert gated.gates["a"].alive.tolist() == [True, True, True, False, False, False]
    gated.settle_(5 * 64 + 5 * 16)
    assert gated.gates["a"].alive.tolist() == [True] * 5 + [False]


def test_settling_wakes_a_block_that_is_dead_as_a_whole():
    """One of its features alone changes nothing, and all of one layer with one of the next are too many."""
    gated = bar.gate(build("wrn-10-1"), SIZE)
    for name, gate in gated.gates.items():
        gate.log_alpha.data.fill_(-8.0)
        if name in ("conv1", "group2.0.shortcut", "group3.0.shortcut"):
            gate.log_alpha.data[0] = 3.0
        elif name.startswith("group2.0.conv"):
            gate.log_alpha.data.fill_(-4.0 if name.endswith("2") else -6.0)
    gated.cut_({name: gate.log_alpha == -8.0 for name, gate in gated.gates.items()})
    before, area = gated.size(), gated.network.area(gated.network.convs["group2.0.conv1"])
    gated.settle_(before + 3.5 * area)
    assert gated.size() == before + 3 * area


def test_training_the_gated_and_the_pruned_network():
    """Gradients reach every weight and every gate; noise is there in training mode and gone in eval mode."""
    gated = bar.gate(build("resnet-basic"), SIZE).train()
    images = torch.randn(8, *SIZE, dtype=torch.float64)
    gated(images).square().sum().backward()
    assert all(p.grad is not None for p in gated.parameters())
    assert all(g.log_alpha.grad.abs().sum() > 0 for g in gated.gates.values())
    assert not torch.equal(gated(images), gated(images))
    gated.eval()
    assert torch.equal(gated(images), gated(images))
    randomise(gated, 3, 0.5)
    pruned = bar.prune(gated.train())
    assert pruned.training
    pruned(images).square().sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_a_residual_batch_norm_does_not_hide_its_gate():
    """A gate on the only writer of a residual channel gets a gradient although a batch norm reads the sum."""
    torch.manual_seed(0)
    gated = bar.gate(build("wrn-10-1"), SIZE).train()
    gated.gates["group1.0.conv2"].log_alpha.data.fill_(-20.0)  # so that the stem alone writes the signal
    images = torch.randn(16, *SIZE, dtype=torch.float64)
    target = torch.randint(4, (16,))
    total = sum(
        torch.autograd.grad(nn.functional.cross_entropy(gated(images), target), gated.gates["conv1"].log_alpha)[0].abs()
        for _ in range(8)
    )
    assert total.max() > 1e-3


def test_protected_convolutions_keep_everything():
    gated = bar.gate(build("resnet-basic"), SIZE, protect=["conv1"])
    assert "conv1" not in gated.gates
    for gate in gated.gates.values():
        gate.log_alpha.data.fill_(-20.0)
    assert bar.prune(gated.floor_()).conv1.out_channels == 8
    with pytest.raises(bar.BarError, match="did you mean 'conv1'"):
        bar.gate(build("resnet-basic"), SIZE, protect=["conv_1"])


def test_outputs_are_not_pruned():
    """A fully convolutional classifier's last convolution makes the outputs themselves."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert list(bar.gate(net, SIZE).gates) == ["0"]
    with pytest.raises(bar.BarError, match="no convolution that can be pruned"):
        bar.gate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), SIZE)


def test_unknown_connectivity():
    with pytest.raises(bar.BarError, match="did you mean 'mixed'"):
        bar.prune(bar.gate(build("plain"), SIZE), "mixd")


def test_a_head_without_features_is_fatal():
    """Dropping a linear layer that has no input left would drop its bias, too: another function."""
    gated = bar.gate(build("awkward"), SIZE)
    assert {"stem", "left", "right"} <= set(gated.network.spine())
    gated.gates["right"].log_alpha.data.fill_(-20.0)
    with pytest.raises(bar.BarError, match="fatal pruning"):
        bar.prune(gated)
    bar.prune(gated.floor_())


def test_gates_that_are_no_numbers():
    gated = bar.gate(build("plain"), SIZE)
    gated.gates["a"].log_alpha.data[1] = float("nan")
    for call in (lambda: bar.prune(gated), lambda: gated.settle_(200)):
        with pytest.raises(bar.BarError, match="did the training diverge"):
            call()


def test_gates_of_a_half_precision_network():
    gated = bar.gate(build("wrn-10-1").to(torch.bfloat16), SIZE)
    assert {g.log_alpha.dtype for g in gated.gates.values()} == {torch.float32}
    assert gated(torch.zeros(2, *SIZE, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert next(bar.prune(gated).parameters()).dtype == torch.bfloat16


@given(name=st.sampled_from(NAMES), seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_cutting_while_training(name, seed, share):
    """The function is that of before; a training step computes what it would with z = 0 for what was cut."""
    gated = bar.gate(build(name), SIZE)
    randomise(gated, seed, share)
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    before = gated(images)
    whole = copy.deepcopy(gated)
    gated.cut_()
    assert relative(before, gated(images)) <= 1e-10
    assert torch.equal(torch.cat(list(gated.values().values())), torch.cat(list(whole.values().values())))
    assert relative(bar.prune(whole)(images), bar.prune(gated)(images)) <= 1e-10
    with FlopCounterMode(display=False) as counter:
        gated(images[:1])
    assert counter.get_total_flops() == bar.count(bar.prune(gated), SIZE, linear=True).flops

    for mine, its in zip(gated.gates.values(), whole.gates.values(), strict=True):
        its.log_alpha.data.copy_(mine.log_alpha)  # it still computes everything
    results = []
    for network in (gated, whole):
        network.train()
        if name == "awkward":  # its dropout would draw other numbers for fewer channels
            network.eval()
        torch.manual_seed(seed)
        network(images).square().sum().backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
        results.append([*gradients, network.eval()(images)])  # which the new running statistics decide
    assert not any(g.isnan().any() for g in results[0])
    rounding = 1e-11 * max(float(tensor.detach().abs().max()) for tensor in results[1])
    for mine, its in zip(*results, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-8, atol=rounding)


def test_what_is_cut_stays_out():
    gated = bar.gate(build("resnet-basic"), SIZE)
    randomise(gated, 1, 0.5)
    dead = {name: ~gate.alive for name, gate in gated.gates.items()}
    gated.cut_()
    gated.settle_(bar.count(build("resnet-basic"), SIZE).volume)  # room for everything
    assert not any((gate.alive & dead[name]).any() for name, gate in gated.gates.items())
    gated.keep_({name: torch.ones_like(gate.alive) for name, gate in gated.gates.items()})
    assert not any((gate.alive & dead[name]).any() for name, gate in gated.gates.items())
    live = gated.live()[gated.network.convs["conv1"]]
    with pytest.raises(bar.BarError, match=f"feature {int(live.nonzero()[0])} of 'conv1' is live"):
        gated.cut_({name: torch.ones_like(gate.alive) for name, gate in gated.gates.items()})


def test_cut_networks_are_stored_and_moved():
    """A state dict alone says what was cut; single precision and back keeps the smaller body in step."""
    gated = bar.gate(build("wrn-10-1"), SIZE)
    randomise(gated, 2, 0.5)
    gated.cut_().train()
    again = bar.gate(build("wrn-10-1"), SIZE).train()
    again.load_state_dict(gated.state_dict())
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    outputs = []
    for network in (gated, again, copy.deepcopy(gated)):
        torch.manual_seed(0)
        outputs.append(network(images))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert gated.float()(images.float()).dtype == torch.float32
