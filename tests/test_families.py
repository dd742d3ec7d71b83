"""Every family of networks, and random ones: the pruned network is the gated one, or it is refused by name."""

import functools
import random

import pytest
import torch
from fuzzed import Fuzzed
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from networks import FAMILIES, SIZE, awaken, family
from test_surgery import randomise, relative
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import bar

IMAGES = (3, 32, 32)


class Volume(TorchDispatchMode):
    """Adds up what convolutions put out, as torch's kernels are called: knows nothing of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.convolution:
            self.volume += out[0].numel()
        return out


def independent(net: nn.Module) -> tuple[int, int, int]:
    """Volume, FLOPs (with those of linear layers) and parameters, counted without `bar`."""
    image = torch.zeros(1, *IMAGES, dtype=torch.float64)
    with torch.no_grad(), Volume() as volume, FlopCounterMode(display=False) as flops:
        net(image)
    return volume.volume, flops.get_total_flops(), sum(p.numel() for p in net.state_dict(keep_vars=True).values()
                                                       if isinstance(p, nn.Parameter))  # fmt: skip


def counted(net: nn.Module) -> tuple[int, int, int]:
    cost = bar.count(net, IMAGES, linear=True)
    return cost.volume, cost.flops, cost.parameters


@functools.cache
def gated_family(name: str) -> tuple[nn.Module, bar.GatedNetwork]:
    torch.manual_seed(0)
    net = family(name)
    return net, bar.gate(net, IMAGES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_full_network(name):
    """With open gates nothing changes, and the counts are those of torch."""
    net, gated = gated_family(name)
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    images = torch.randn(2, *IMAGES, dtype=torch.float64)
    assert relative(net(images), gated(images)) <= 1e-12
    assert counted(net) == independent(net)
    assert (gated.size("volume"), gated.size("flops")) == (bar.count(net, IMAGES).volume, bar.count(net, IMAGES).flops)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=2)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.95))
def test_random_gates(name, seed, share):
    """The same function, to 1e-10; counts as torch counts; and it can be trained."""
    _, gated = gated_family(name)
    randomise(gated, seed, share)
    images = torch.randn(3, *IMAGES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = gated(images)
        regular, pruned = bar.prune(gated, "regular"), bar.prune(gated)
        assert relative(expected, regular(images)) <= 1e-10
        assert relative(expected, pruned(images)) <= 1e-10
    assert counted(regular) == independent(regular)
    assert counted(pruned) == independent(pruned)
    cost = bar.count(pruned, IMAGES)
    assert (gated.size("volume"), gated.size("flops")) == (cost.volume, cost.flops)

    torch.manual_seed(seed)
    outputs = pruned.train()(images.requires_grad_())
    modes = (nn.BatchNorm2d, nn.Dropout)
    assert any(isinstance(m, modes) for m in pruned.modules()) == (relative(expected, outputs) > 1e-6)
    outputs.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.parameters())
    assert images.grad.abs().max() > 0  # the signal has not died on the way, which would make all of this easy


seeds_and_shares = given(seed=st.integers(0, 10**6), share=st.floats(0, 1))


@settings(max_examples=100)
@seeds_and_shares
def test_random_networks(seed, share):
    """Whatever is written, in whatever order: exact, or refused with the place."""
    random_network(seed, share)


@pytest.mark.long
@settings(max_examples=5000)
@seeds_and_shares
def test_many_random_networks(seed, share):
    random_network(seed, share)


def random_network(seed, share):
    torch.manual_seed(seed)
    net = awaken(Fuzzed(random.Random(seed)))
    refusal = None
    try:
        gated = bar.gate(net, SIZE)
    except bar.BarError as error:
        refusal = str(error)
    if refusal is not None:
        event("refused")
        assert "'" in refusal or "line" in refusal or "no convolution that can be pruned" in refusal
        return
    event("pruned")
    images = torch.randn(3, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
        whole = net(images)
        assume(whole.isfinite().all())  # 2 / x of a ReLU is not
        assert relative(whole, gated(images)) <= 1e-12
        randomise(gated, seed, share)
        expected = gated(images)
        assert relative(expected, bar.prune(gated, "regular")(images)) <= 1e-10
        pruned = bar.prune(gated)
        assert relative(expected, pruned(images)) <= 1e-10
    cost = bar.count(pruned, SIZE)
    assert (gated.size("volume"), gated.size("flops")) == (cost.volume, cost.flops)
    settled(gated, share)
    pruned.train()(images).sum().backward()
    if missing := {name for name, p in pruned.named_parameters() if p.grad is None}:  # if the network detaches a signal
        net.train()(images).sum().backward()
        assert missing <= {name for name, p in net.named_parameters() if p.grad is None}


def settled(gated, share):
    """Settling ends within the budget, whatever it is, and a signal gets through: nothing is fatal."""
    smallest, full = gated.smallest(), gated.full()
    assert 0 < smallest <= full
    for budget in (smallest, smallest + share * (full - smallest), full):
        bar.prune(gated.settle_(budget))
        assert 0 < gated.size() <= budget
