"""Norms of each channel by itself: exact, and trained as by torch's own layer."""

import copy

import pytest
import torch
from test_people import close, opened
from test_spellings import exact, images
from test_surgery import randomise
from torch import nn

import bar
from bar import storage

NORMS = {
    "batch, no bias": lambda: nn.BatchNorm2d(8, bias=False),
    "batch, no weight": lambda: nn.BatchNorm2d(8, affine=False),
    "instance": lambda: nn.InstanceNorm2d(8), "instance, affine": lambda: nn.InstanceNorm2d(8, affine=True),
    "instance, no bias": lambda: nn.InstanceNorm2d(8, affine=True, bias=False),
    "instance, statistics": lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
    "group": lambda: nn.GroupNorm(8, 8), "group, no weight": lambda: nn.GroupNorm(8, 8, affine=False),
    "group, no bias": lambda: nn.GroupNorm(8, 8, bias=False),
}  # fmt: skip


class Normed(nn.Module):
    """Norms behind a convolution, behind a sum, and before an activation that another norm follows."""

    def __init__(self, norm) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.one, self.two, self.three, self.head = norm(), norm(), norm(), nn.Linear(8, 4)
        for layer in (self.one, self.two, self.three):
            for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
                if tensor.is_floating_point():
                    nn.init.uniform_(tensor, *((-1, 1) if name in ("bias", "running_mean") else (0.5, 1.5)))

    def forward(self, x):
        x = self.one(self.stem(x)).relu()
        return self.head(self.three((x + self.b(self.two(self.a(x).relu()))).tanh()).mean((2, 3)))


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_each_channel(name, tmp_path):
    torch.manual_seed(0)
    net = Normed(NORMS[name]).double()
    trained, gated = copy.deepcopy(net), bar.gate(net, (3, 8, 8))
    some = images()
    close(opened(gated).train()(some), trained.train()(some))
    for mine, its in zip(net.buffers(), trained.buffers(), strict=True):
        close(mine, its)

    gated, pruned = exact(net, images())
    assert not gated.whole
    assert set(gated.gates) == {"stem", "a", "b"}
    storage.save(pruned, tmp_path)
    with torch.no_grad():
        close(bar.load(tmp_path)(some), pruned(some))


@pytest.mark.parametrize("name", NORMS)
def test_a_part_of_a_norm_learns_as_the_smaller_one(name):
    torch.manual_seed(0)
    gated = bar.gate(Normed(NORMS[name]).double(), (3, 8, 8))
    randomise(gated, 0, 0.5)
    gated.keep_({name: gate.alive for name, gate in gated.gates.items()}).cut_()
    some, pruned = images(), bar.prune(gated)
    close(gated.train()(some), pruned.train()(some))
    close(gated.eval()(some), pruned.eval()(some))  # of running statistics, what the step has made of them


def test_a_gate_in_front_of_an_instance_norm_gets_a_gradient():
    """Scaling what the norm normalises would be undone by it: the gate sits behind it."""
    torch.manual_seed(0)
    gated = bar.gate(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).double(), (3, 8, 8)
    )
    gated.train()(images()).square().sum().backward()
    assert all((gate.log_alpha.grad != 0).any() for gate in gated.gates.values())


def test_an_instance_norm_that_is_called_twice():
    """It is followed where it has nothing to learn; each call then has other channels."""
    for norm, whole in ((nn.InstanceNorm2d(8), None), (nn.InstanceNorm2d(8, affine=True), "is called 2 times")):
        layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3), norm
        exact(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4)), images(), whole=whole)


def instances(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False), nn.GroupNorm(6, 6), nn.ReLU(), nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(128, num_classes),
    )  # fmt: skip


@pytest.mark.parametrize("method", bar.methods.STRUCTURED)
def test_methods_with_such_norms(method, tmp_path):
    """Each that prunes features keeps the budget; what it stores is what it has measured."""
    config = bar.RunConfig(
        model="test_norms:instances", method=method, pruning_factor=2, size=8, limit=160, epochs=(1, 1, 1)
    )
    record = bar.run(config, tmp_path)
    assert record["volume"] <= record["volume_full"] / 2
