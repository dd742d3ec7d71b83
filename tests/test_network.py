"""Reading networks: what is found, what is refused and how the refusal names the place."""

import warnings

import pytest
import torch
import torchvision
from networks import SIZE, build
from torch import nn
from torch.nn.utils import prune

import bar
from bar import models
from bar.network import trace


def test_areas_and_convolutions():
    """Against the shapes that forward hooks see."""
    net = build("resnet-bottleneck")
    seen, hooks = {}, []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            note = lambda m, i, o, name=name: seen.update({name: tuple(o.shape[1:])})  # noqa: E731
            hooks.append(module.register_forward_hook(note))
    net(torch.zeros(1, *SIZE, dtype=torch.float64))
    for hook in hooks:
        hook.remove()
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


class Net(nn.Module):
    """Two convolutions and a linear layer, called by whatever function it is given."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        self.same, self.act = nn.Identity(), nn.ReLU(inplace=True)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.calls = forward

    def forward(self, x):
        return self.calls(self, x)

    def head(self, x):
        return self.fc(x.mean((2, 3)))


def changed_under_another_name(net, x):
    x = net.a(x)
    y = net.same(x)
    return net.head(y + net.b(net.act(x)))


def changed_and_dropped(net, x):
    x = net.a(x)
    torch.relu_(x)
    return net.head(net.b(x))


class Centred(nn.Conv2d):
    """Weight standardisation, as people write it."""

    def _conv_forward(self, images, weight, bias):
        return super()._conv_forward(images, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def normed(norm):
    """A network with a second convolution whose weight something computes anew at every call."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), norm(nn.Conv2d(4, 4, 3)), nn.Flatten(), nn.Linear(144, 2))


def pruned_by_torch():
    net = normed(lambda conv: conv)
    prune.l1_unstructured(net[2], "weight", 0.5)
    return net


def patched(attribute, value):
    net = Net(lambda net, x: net.head(net.b(net.a(x))))
    setattr(net.a, attribute, value)
    return net


def hooked():
    net = Net(lambda net, x: net.head(net.b(net.a(x))))
    net.a.register_forward_hook(lambda module, inputs, output: output + 1)
    return net


def inner(layer):
    """A layer two modules deep."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Sequential(layer)))


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (Sigmoid(), SIZE, r"'squash' \(Sigmoid\(\), module 'squash'\).*zero"),
        (inner(nn.Sigmoid()), SIZE, r"'_1_1_0' \(Sigmoid\(\), module '1.1.0'\).*zero"),
        (inner(Net(lambda net, x: x.exp())), SIZE, r"'exp' \(exp, in module '1.1.0'\).*zero"),
        (Net(lambda net, x: net.head(net.a(x).exp())), SIZE, r"'exp' \(exp, in the network itself\)"),
        (inner(nn.MaxPool2d(2, return_indices=True)), SIZE, "'_1_1_0' .MaxPool2d.*zero"),
        (inner(nn.PReLU(4)), SIZE, "'_1_1_0' .PReLU.*zero"),
        (Control(), SIZE, r"cannot trace Control with torch.fx, line \d+ of .*test_network.py: symbolically traced"),
        (inner(Control()), SIZE, r"with torch.fx, module '1.1.0', line \d+ of .*test_network.py"),
        (Twice(), SIZE, "'conv' is called 2 times"),
        (Broadcast(), SIZE, "'add' .* adds signals of different shapes"),
        (Two(), SIZE, "must return one tensor"),
        (Net(lambda net, x: {"out": net.head(net.a(x))}), SIZE, "must return one tensor, not a tuple, list or dict"),
        (Position(), SIZE, "'add' .* combines features with a parameter"),
        (Mixing(), SIZE, "'flatten' .* reshapes images into each other"),
        (Net(lambda net, x: net.fc(x.mean((2, 3)).repeat(1, 4)[:, :4])), SIZE, "Net has no nn.Conv2d"),
        (Net(changed_under_another_name), SIZE, "'add' .* reads 'same' after an operation in place"),
        (Net(changed_and_dropped), SIZE, "cannot follow features through 'relu_'"),
        (Net(lambda net, x: net.head(net.b(net.a(x))) * net.a.weight.mean()), SIZE, "computes with the weight of 'a'"),
        (Net(lambda net, x: net.head(nn.functional.dropout(net.a(x)))), SIZE, "'dropout' .*training=self.training"),
        (normed(torch.nn.utils.parametrizations.weight_norm), SIZE, "weight of '2' is.*remove_parametrizations"),
        (normed(torch.nn.utils.parametrizations.spectral_norm), SIZE, "weight of '2' is.*remove_parametrizations"),
        (normed(torch.nn.utils.spectral_norm), SIZE, "'2' has a forward hook .SpectralNorm.*remove_spectral_norm"),
        (pruned_by_torch(), SIZE, "'2' has a forward hook .L1Unstructured.*prune.remove"),
        (hooked(), SIZE, "'a' has a forward hook .<lambda>"),
        (patched("forward", lambda x: x), SIZE, "'a' .Conv2d, an nn.Conv2d. has a forward of its own"),
        (normed(lambda _: Centred(4, 4, 3)), SIZE, "'2' .Centred, an nn.Conv2d. has a _conv_forward of its own"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 2), nn.Flatten()), SIZE, "'1' is a linear layer on features"),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(1, 2)), SIZE, "cannot follow features through '_1'"),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardtanh(0.5, 1)), SIZE, "'_1' .Hardtanh.*zero"),
        (Net(lambda net, x: net.head(2 / net.a(x))), SIZE, "cannot follow features through 'truediv'"),
        (
            Net(lambda net, x: net.head(nn.functional.adaptive_avg_pool2d(net.a(x), x.shape[2]))),
            SIZE,
            "cannot follow features through 'adaptive_avg_pool2d'",
        ),
        (inner(nn.Conv2d(4, 4, 7)), SIZE, "cannot take this input: '_1_1_0' .Conv2d.* module '1.1.0'. fails"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (1, 8, 8), "cannot take this input: '_0' .* fails"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8), "three positive numbers"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8, 0), "three positive numbers"),
    ],
)
def test_refusals_name_the_place(net, size, message):
    with pytest.raises(bar.BarError, match=message):
        trace(net, size)


def test_weights_that_are_no_numbers():
    net = build("resnet-basic")
    net.layer2[0].conv2.weight.data[0, 0, 1, 1] = float("nan")
    with pytest.raises(bar.BarError, match=r"layer2\.0\.conv2\.weight has entries that are not a number"):
        bar.gate(net, SIZE)


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "efficientnet_b0", "mobilenet_v3_small", "convnext_tiny"])
def test_what_is_refused_of_torchvision(name):
    """Channel shuffles, squeeze and excitation, layer norm: refused, with the path of the place."""
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None, num_classes=4)
    with pytest.raises(bar.BarError, match=r"cannot follow features through '\w+' \(.*module '(stage2|features)\.\d"):
        trace(net, (3, 32, 32))


def test_counting_needs_no_plain_layers():
    """Weight norm of the old kind keeps its weight beside its parameters; so do constants that are no buffers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = normed(torch.nn.utils.weight_norm)
    net[2].constant = torch.zeros(3)
    cost = bar.count(net, SIZE)
    assert (cost.volume, cost.flops) == (4 * 64 + 4 * 36, 2 * (3 * 4 * 64 + 36 * 4 * 36))


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.head((net.b(net.a(x) / 4) * 0.5 + -2 * net.a2(x)).relu()),
        lambda net, x: net.head(net.b(net.a(x * torch.ones_like(x, dtype=x.dtype))) + net.a2(x)),
        lambda net, x: net.head(net.b(net.a(x)) + net.a2(torch.cat(x.chunk(3, 1), 1))),
    ],
    ids=["numbers", "options that are computed", "what chunk returns"],
)
def test_other_things_that_people_write(forward):
    gated = bar.gate(Net(forward, a2=nn.Conv2d(3, 4, 1)).double().eval(), SIZE)
    gated.gates["a"].log_alpha.data[1:3] = -5
    gated.gates["a2"].log_alpha.data[0] = -5
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    torch.testing.assert_close(bar.prune(gated)(images), gated(images), rtol=1e-12, atol=1e-12)


def test_the_one_weight_of_a_prelu_is_trained():
    net = Net(lambda net, x: net.head(net.slope(net.a(x))), slope=nn.PReLU())
    gated = bar.gate(net, SIZE).train()
    gated(torch.randn(4, *SIZE)).sum().backward()
    assert net.slope.weight.grad.abs().sum() > 0


def test_a_residual_signal_that_begins_with_the_images():
    """No convolution is on every path: nothing has to be kept."""
    net = Net(lambda net, x: net.fc((x + net.last(net.a(x))).mean((2, 3))), last=nn.Conv2d(4, 3, 1), fc=nn.Linear(3, 2))
    gated = bar.gate(net.double().eval(), SIZE)
    assert gated.network.spine() == []
    for gate in gated.gates.values():
        gate.log_alpha.data.fill_(-5)
    images = torch.randn(2, *SIZE, dtype=torch.float64)
    pruned = bar.prune(gated.floor_())
    torch.testing.assert_close(pruned(images), gated(images), rtol=1e-12, atol=1e-12)
    assert bar.count(pruned, SIZE).volume == gated.size() == 0


def test_the_state_dict_of_another_network():
    """The first entry that does not fit is named, and nothing has been loaded."""
    gated = bar.gate(build("plain"), SIZE)
    before = {k: v.clone() for k, v in gated.state_dict().items()}
    own = {k: v + 1 for k, v in before.items()}
    name = "body.b.weight"
    missing = {k: v for k, v in own.items() if k != name}
    wrong = {
        f"the state dict has no '{name}'": missing,
        r"'body.b.weight' is \(5, 6, 1, 1\) in the state dict and \(5, 6, 3, 3\) here": {
            **own, name: torch.zeros(5, 6, 1, 1)
        },
        "the state dict has 'body.c.weight', which is not known here": {**own, "body.c.weight": torch.zeros(1)},
        "the state dict has no 'body.a.weight'": bar.gate(build("wrn-10-1"), SIZE).state_dict(),
        "the state dict has no .*loads into `body`": build("plain").state_dict(),
    }  # fmt: skip
    for message, state in wrong.items():
        with pytest.raises(bar.BarError, match=message):
            gated.load_state_dict(state)
        assert all(torch.equal(v, before[k]) for k, v in gated.state_dict().items())
    gated.load_state_dict(missing, strict=False)
    assert torch.equal(gated.state_dict()[name], before[name])
    gated.load_state_dict(own)
    assert all(torch.equal(v, own[k]) for k, v in gated.state_dict().items())


@pytest.mark.parametrize("name", ["mnasnet0_5", "resnet18"])
def test_torchvision_networks_from_tracing_alone(name):
    """At their full width, half of the gates shut; test_families.py has many more, narrow."""
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
