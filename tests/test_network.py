"""Reading networks: what is found, what is refused and how the refusal names the place."""

import re
import warnings

import pytest
import torch
from networks import SIZE, build
from torch import nn
from torch.nn.utils import prune
from torchvision.ops import FrozenBatchNorm2d

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
    def __init__(self, width=3):
        super().__init__()
        self.conv = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x) if x.sum() > -1e9 else x


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


def zeroed(net, x):
    y = net.a(x)
    y[:, :, 0] = 0
    return net.head(y)


def in_two_lines(net, x):
    raise ValueError("the first line\nthe second line")


def changed_under_another_name(net, x):
    x = net.a(x)
    y = net.same(x)
    return net.head(y + net.b(net.act(x)))


class Centred(nn.Conv2d):
    """Weight standardisation, as people write it."""

    def _conv_forward(self, images, weight, bias):
        return super()._conv_forward(images, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def normed(norm):
    """A network with a second convolution whose weight something computes anew at every call."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), norm(nn.Conv2d(4, 4, 3)), nn.Flatten(), nn.Linear(144, 2))


def patched(layer):
    forward = layer.forward
    layer.forward = lambda x: forward(x) + 1
    return layer


def hooked(layer):
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return layer


class First(nn.Module):
    def forward(self, x):
        return x[0]


def inner(layer):
    """A layer two modules deep."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Sequential(layer)))


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (Sigmoid(), SIZE, "Sigmoid has no convolution that can be pruned"),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 4, 3)),
            SIZE,
            "no convolution that can be pruned: its features are read only through what makes a number of zero",
        ),
        (
            Control(),
            SIZE,
            r"cannot trace Control with torch.fx, line \d+ of .*test_network.py: symbolically .* its own",
        ),
        (Net(zeroed), SIZE, r"line \d+ of .*test_network.py: x\[...\] = y changes a signal in place: use torch.where"),
        (Net(in_two_lines), SIZE, "line .*test_network.py: the first line - put that into a module of its own"),
        (Two(), SIZE, "Two has no convolution that can be pruned"),
        (Net(lambda net, x: net.fc(x.mean((2, 3)).repeat(1, 4)[:, :4])), SIZE, "Net has no convolution"),
        (Net(changed_under_another_name), SIZE, "'add' .* reads 'same' after an operation in place"),
        (Net(lambda net, x: net.head(nn.functional.dropout(net.a(x)))), SIZE, "'dropout' .*training=self.training"),
        (inner(nn.Conv2d(4, 4, 7)), SIZE, "cannot take this input: '_1_1_0' .Conv2d.* module '1.1.0'. fails"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (1, 8, 8), "cannot take this input: '_0' .* fails"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8), "three positive numbers"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8, 0), "three positive numbers"),
    ],
)
def test_refusals_name_the_place(net, size, message):
    with pytest.raises(bar.BarError, match=message) as refused:
        bar.gate(net, size)
    assert "\n" not in str(refused.value)


WRAPPED = {
    "the network is wrapped by DataParallel: pass its .module": nn.DataParallel,
    "the network is wrapped by AveragedModel: pass its .module": torch.optim.swa_utils.AveragedModel,
    "the network is compiled by torch.compile: pass its ._orig_mod": torch.compile,
    "module '0' is compiled by torch.compile: put its ._orig_mod in its place": lambda net: nn.Sequential(
        torch.compile(net)
    ),
    "compiled to TorchScript: pass the nn.Module": lambda net: torch.jit.trace(net, torch.zeros(1, *SIZE)),
    "0.weight has no shape yet, since its layer is lazy: run one batch": lambda net: nn.Sequential(
        nn.LazyConv2d(3, 1), net
    ),
    "the network has gates already: take what bar.prune makes of it": lambda net: bar.gate(net, SIZE),
    "module '0' has gates already": lambda net: nn.Sequential(bar.gate(net, SIZE), nn.ReLU()),
    "must be an nn.Module, not a function": lambda net: lambda images: net(images),
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("message", WRAPPED)
def test_wrappers_are_recognised(message):
    """And what they wrap can be gated."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())
    with pytest.raises(bar.BarError, match=re.escape(message)):
        bar.gate(WRAPPED[message](net), SIZE)
    assert list(bar.gate(net, SIZE).gates) == ["0"]


def test_counting_a_lazy_network():
    with pytest.raises(bar.BarError, match="weight has no shape yet"):
        bar.count(nn.Sequential(nn.LazyConv2d(3, 1)), SIZE)


def test_frozen_batch_norms_are_followed():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())
    assert bar.gate(net, SIZE).whole == {}


def behind(layer):
    """A layer behind the second of two convolutions, and a third."""
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), layer, nn.Conv2d(4, 4, 1), nn.Flatten(),
                         nn.LazyLinear(2))  # fmt: skip


def around(forward, **layers):
    """A network with one more convolution at its end, so that something can be pruned whatever happens before."""
    more = {"c": nn.Conv2d(4, 5, 1), "d": nn.Conv2d(5, 4, 1)} | layers
    return Net(lambda net, x: net.head(net.d(net.c(forward(net, x)))), **more)


def tied(net):
    net.e.weight = net.b.weight
    return net


def changed(net, x):
    x = net.a(x)
    torch.relu_(x)
    return net.b(x)


LEFT_WHOLE = {
    r"_3_0' .MaxPool2d": behind(
        nn.Sequential(nn.MaxPool2d(2, return_indices=True), First(), nn.Upsample(scale_factor=2))
    ),
    r"_3' .Control.*symbolically traced": behind(Control(4)),
    r"_3' .*GroupNorm.* computes each channel from all of them": behind(nn.GroupNorm(2, 4)),
    r"_3' .Softmax": behind(nn.Softmax(1)),
    r"'_3' .*weight is parametrized": behind(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))),
    r"'_3' .*weight is parametrized'?": behind(torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))),
    r"'_3' .*forward hook .SpectralNorm": behind(torch.nn.utils.spectral_norm(nn.Conv2d(4, 4, 1))),
    r"'_3' .*forward hook .L1Unstructured": behind(prune.l1_unstructured(nn.Conv2d(4, 4, 1), "weight", 0.5)),
    r"'_3' .*forward hook .<lambda>": behind(hooked(nn.Conv2d(4, 4, 1))),
    r"'_3' .*has a forward of its own": behind(patched(nn.Conv2d(4, 4, 1))),
    r"'_3' .Centred.* has a _conv_forward of its own": behind(Centred(4, 4, 1)),
    r"'_3' .Linear.*does not keep": behind(nn.Linear(6, 6)),
    r"'_3_0' .*Flatten": behind(nn.Sequential(nn.Flatten(1, 2), nn.Softmax(1), nn.Unflatten(1, (4, 6)))),
    "'b.* is called 2 times": around(lambda net, x: net.b(net.b(net.a(x)))),
    "'b.*its weight is also": tied(around(lambda net, x: net.e(net.b(net.a(x))), e=nn.Conv2d(4, 4, 3, padding=1))),
    "'b.*its weight is read by something else": around(lambda net, x: net.b(net.a(x)) * net.b.weight.mean()),
    "'relu_' ": around(changed),
    "'truediv' ": around(lambda net, x: net.b(2 / (net.a(x).exp() + net.a2(x))), a2=nn.Conv2d(3, 4, 3, padding=1)),
}


@pytest.mark.parametrize("message", LEFT_WHOLE)
def test_what_is_left_whole_is_named_and_exact(message):
    """The rest is pruned; in training mode the gated network does what the original does, to the last statistic."""
    torch.manual_seed(0)
    net = LEFT_WHOLE[message].eval()
    net(torch.zeros(1, *SIZE))
    net = net.double()
    with pytest.raises(bar.BarError, match=f"cannot follow features through .*{message}"):
        bar.gate(net, SIZE, strict=True)
    gated = bar.gate(net, SIZE)
    assert any(re.search(message, f"{place} {why}") for place, why in gated.whole.items())
    assert "left whole: " in repr(gated)
    images = torch.randn(4, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        expected = net(images)
        for gate in gated.gates.values():
            gate.keep_(torch.ones_like(gate.alive))
        torch.testing.assert_close(gated.eval()(images), expected, rtol=1e-12, atol=1e-12)
        for gate in gated.gates.values():
            gate.keep_(torch.arange(len(gate.alive)) % 3 > 0)
        expected, pruned = gated(images), bar.prune(gated)
        torch.testing.assert_close(pruned(images), expected, rtol=1e-10, atol=1e-10)
    assert bar.count(pruned, SIZE).volume == gated.size() < gated.full()


def test_weights_that_are_no_numbers():
    net = build("resnet-basic")
    net.layer2[0].conv2.weight.data[0, 0, 1, 1] = float("nan")
    with pytest.raises(bar.BarError, match=r"layer2\.0\.conv2\.weight has entries that are not a number"):
        bar.gate(net, SIZE)


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


class Asking(nn.Module):
    """Asks a signal where it is and of what type, for a map of its own, as layers that know their place do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(9, 4, 1)

    def forward(self, x):
        x = torch.relu(self.a(x))
        place = torch.linspace(0, 1, x.shape[3], dtype=x.dtype, device=x.device).expand(len(x), 1, x.shape[2], -1)
        return self.c(torch.cat([torch.relu(self.b(x)), place], 1))


def test_what_asks_a_signal_for_its_type_needs_no_feature_of_it():
    net = Asking().double()
    gated = bar.gate(net, example_inputs=[torch.zeros(2, 3, 8, 8, dtype=torch.float64)])
    assert (list(gated.gates), gated.whole) == (["a", "b"], {})
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated.keep_({name: torch.arange(8) % 2 == 0 for name in gated.gates}).eval()
    pruned = bar.prune(gated)
    torch.testing.assert_close(pruned(images), gated(images), rtol=1e-12, atol=1e-12)
    assert pruned.float()(images.float()).dtype == torch.float32


class Detect(nn.Module):
    """As in YOLOv5: writes into the list that it is given, into its own signals, and returns less while training."""

    def __init__(self):
        super().__init__()
        self.m = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(6, 4, 1)])

    def forward(self, x):
        z = []
        for i in range(2):
            x[i] = self.m[i](x[i])
            if not self.training:
                y = x[i].sigmoid()
                y[:, :2] = y[:, :2] * 2 - 0.5
                z.append(y.flatten(2))
        return x if self.training else (torch.cat(z, 2), x)


class Detector(nn.Module):
    def __init__(self, again=False):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 6, 3, 2)
        self.detect, self.again = Detect(), again

    def forward(self, x):
        x = torch.relu(self.a(torch.relu(self.stem(x))))
        levels = [x, torch.relu(self.b(x))]
        out = self.detect(levels)
        return (*out, levels[0]) if self.again else out


def test_a_module_may_write_into_the_list_that_it_is_given():
    net = Detector().double().eval()
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    gated = bar.gate(net, example_inputs=[images]).eval()
    assert list(gated.gates) == ["stem"]
    assert list(gated.whole) == ["'detect' (Detect(), module 'detect')"]
    pruned = bar.prune(gated.keep_({"stem": torch.arange(8) % 2 == 0})).eval()
    for mine, theirs in zip(
        (pruned(images)[0], *pruned(images)[1]), (gated(images)[0], *gated(images)[1]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert len(pruned.train()(images)) == 2
    with pytest.raises(bar.BarError, match=r"a list or dict is read again that module 'detect' has written into"):
        bar.gate(Detector(again=True).eval(), (3, 12, 12))


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
