"""Reading networks: what is found, what is refused and how the refusal names the place."""

import pytest
import torch
from networks import SIZE, build
from torch import nn

import bar
from bar import models
from bar.network import trace


def test_areas_and_convolutions():
    """Against the shapes that forward hooks see."""
    net = build("resnet-bottleneck")
    seen = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o, name=name: seen.update({name: tuple(o.shape[1:])}))
    net(torch.zeros(1, *SIZE, dtype=torch.float64))
    network = trace(net, SIZE)
    assert {n: (network.features(v), network.area(v)) for n, v in network.convs.items()} == {
        n: (shape[0], shape[1] * shape[2]) for n, shape in seen.items()
    }


def test_tracing_leaves_the_network_alone():
    net = build("wrn-10-1").train()
    net.group1.eval()
    modes = [m.training for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    bar.gate(net, SIZE)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_functional_dropout_follows_the_mode():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.fc = nn.Linear(8 * 36, 2)

        def forward(self, x):
            return self.fc(nn.functional.dropout(self.conv(x), 0.5, self.training).flatten(1))

    x = torch.ones(1, *SIZE)
    quiet = bar.gate(Net().eval(), SIZE)
    assert torch.equal(quiet(x), quiet(x))
    net = trace(Net(), SIZE).module
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


class Sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.squash = nn.Sigmoid()

    def forward(self, x):
        return self.squash(self.conv(x)).flatten(1)


class Control(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(self.conv(x)).flatten(1)


class Position(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.position = nn.Conv2d(3, 4, 1), nn.Parameter(torch.zeros(1, 4, 8, 8))

    def forward(self, x):
        return (self.conv(x) + self.position).flatten(1)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x).view(-1, 2)


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.pool, self.b = nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return (self.a(x) + self.pool(self.b(x))).flatten(1)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x), x


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (Sigmoid(), SIZE, "'squash'.*Sigmoid.*zero"),
        (Control(), SIZE, "cannot trace Control"),
        (Twice(), SIZE, "'conv' is called 2 times"),
        (Broadcast(), SIZE, "'add' adds signals of different shapes"),
        (Two(), SIZE, "must return one tensor"),
        (Position(), SIZE, "'add' combines features with a parameter"),
        (Mixing(), SIZE, "'flatten' reshapes images into each other"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 2), nn.Flatten()), SIZE, "'1' is a linear layer on features"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(1, 2)), SIZE, "cannot follow features through '_1'"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardtanh(0.5, 1)), SIZE, "'_1' .Hardtanh.*zero"),
        (nn.Sequential(nn.Conv2d(3, 8, 5)), (3, 4, 4), "cannot take this input: '_0' fails"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (1, 8, 8), "cannot take this input: '_0' fails"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8), "three positive numbers"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8, 0), "three positive numbers"),
    ],
)
def test_refusals_name_the_place(net, size, message):
    with pytest.raises(bar.BarError, match=message):
        trace(net, size)


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "googlenet", "mnasnet0_5", "vgg11", "resnet18"])
def test_torchvision_networks_from_tracing_alone(name):
    """Half of the gates shut: the pruned network computes what the gated one does."""
    torch.manual_seed(0)
    net = models.build(name, 4, (3, 32, 32)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias, 0.5)
    gated = bar.gate(net.double(), (3, 32, 32))
    for gate in gated.gates.values():
        gate.spread_(-4, 1)
    gated.floor_()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected, pruned = gated(images), bar.prune(gated)
        assert (expected - pruned(images)).abs().max() <= 1e-10 * expected.abs().max()
    assert bar.count(pruned, (3, 32, 32)).volume == gated.size() < bar.count(net, (3, 32, 32)).volume
