"""Layers that do more than their class, sums in place, odd names and padded shortcuts: nothing changes silently."""

import copy
import types

import pytest
import torch
from test_surgery import randomise, relative
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import bar
from bar.surgery import layers

SIZE = (3, 8, 8)


def conv(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def awake(net: nn.Module) -> nn.Module:
    """In float64 and eval mode, with statistics of its batch norms that are no zeros and ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias, module.weight):
                if tensor is not None:
                    nn.init.normal_(tensor)
            if module.running_var is not None:
                nn.init.uniform_(module.running_var, 0.5, 2)
    return net.double().eval()


def images(size: tuple = SIZE) -> torch.Tensor:
    return torch.randn(2, *size, dtype=torch.float64)


def check(net: nn.Module, *inputs: torch.Tensor, seeds: int = 3) -> None:
    """Gated, cut, copied and pruned, it computes the same; and the user's own network is as it was."""
    net, inputs = awake(net), inputs or (images(),)
    before = net(*inputs)
    gated = bar.gate(net, example_inputs=inputs)
    for gate in gated.gates.values():
        gate.log_alpha.data.fill_(20.0)
    assert relative(before, gated(*inputs)) <= 1e-10
    for seed in range(seeds):
        randomise(gated, seed, 0.6)
        gated.floor_()
        expected = gated(*inputs)
        for pruned in (bar.prune(gated), bar.prune(copy.deepcopy(gated))):
            assert relative(expected, pruned(*inputs)) <= 1e-10
    assert torch.equal(before, net(*inputs))


class Shortcut(nn.Module):
    def __init__(self, wrap=lambda layer: layer) -> None:
        super().__init__()
        self.stem, self.first, self.norm = conv(3, 6), conv(6, 8, stride=2), nn.BatchNorm2d(8)
        self.second, self.shortcut, self.out = conv(8, 8), wrap(nn.Conv2d(6, 8, 1, 2)), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.out(F.relu(self.second(F.relu(self.norm(self.first(x)))) + self.shortcut(x)).mean((2, 3)))


def with_hook(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, given, out: out * 2)
    return layer


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next, self.shared, self.end = conv(3, 6), conv(6, 6), nn.Conv2d(6, 6, 1, 2), conv(6, 2)

    def forward(self, x):
        return self.end(self.shared(self.shared(F.relu(self.next(F.relu(self.stem(x)))))))


@pytest.mark.parametrize(
    "make",
    [
        Shortcut,
        Twice,
        lambda: Shortcut(parametrizations.weight_norm),
        lambda: Shortcut(parametrizations.spectral_norm),
        lambda: Shortcut(with_hook),
    ],
    ids=["plain", "called twice", "weight norm", "spectral norm", "hook"],
)
def test_a_strided_shortcut_that_is_left_whole_keeps_its_stride(make):
    torch.manual_seed(0)
    net = make()
    strides = [module.stride for module in net.modules() if isinstance(module, nn.Conv2d)]
    check(net)
    assert [module.stride for module in net.modules() if isinstance(module, nn.Conv2d)] == strides


class Padded(nn.Module):
    """A shortcut that is padded with channels of zeros, behind an activation that zeros do not survive."""

    def __init__(self, activation) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.c = conv(3, 4), conv(4, 6), nn.BatchNorm2d(6), conv(6, 2)
        self.activation = activation

    def forward(self, x):
        x = self.activation(self.a(x))
        return self.c(F.relu(self.norm(self.b(x) + F.pad(x, (0, 0, 0, 0, 0, 2)))))


@pytest.mark.parametrize("activation", [F.softplus, torch.sigmoid, F.relu])
def test_a_shortcut_padded_with_zeros(activation):
    torch.manual_seed(0)
    check(Padded(activation))


@pytest.mark.parametrize("names", ["z0, x", "z1, x", "z_0, z0", "gate_0, z"])
def test_inputs_may_be_called_as_gates_would_be(names):
    torch.manual_seed(0)
    first, second = names.split(", ")
    scope = {"F": F}
    exec(f"def forward(self, {names}):\n    return self.e(F.relu(self.c({first}) + self.d({second})))", scope)
    net = type("Net", (nn.Module,), {"forward": scope["forward"]})()
    net.c, net.d, net.e = conv(3, 4), conv(3, 4), conv(4, 2)
    check(net, images(), images())


def of_batches(module):
    module.track_running_stats, module.running_mean, module.running_var = False, None, None


def without_statistics(module):
    module.running_mean = module.running_var = None


def without_count(module):
    module.num_batches_tracked = None


@pytest.mark.parametrize("change", [of_batches, without_statistics, without_count])
def test_batch_norms_without_statistics_or_count(change):
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 2))
    change(net[1])
    check(net)
    gated = bar.gate(net, SIZE).train()
    gated(images()).sum().backward()


@pytest.mark.parametrize("gates", [None, torch.ones])
def test_layers_on_a_gpu_are_made_smaller_there(gates):
    """Channels are numbers on the CPU; with fake tensors, torch checks devices and computes nothing."""
    with FakeTensorMode():
        kept, scale = torch.arange(3), gates and gates(6, device="cuda")
        made = [
            layers.smaller_conv(nn.Conv2d(3, 6, 3, device="cuda"), kept, kept, scale),
            layers.smaller_norm(nn.BatchNorm2d(6, device="cuda"), kept, scale, True),
            layers.smaller_linear(nn.Linear(6, 2, device="cuda"), kept),
            layers.smaller_slopes(nn.PReLU(6, device="cuda"), kept),
        ]
    assert {tensor.device.type for layer in made for tensor in layer.state_dict().values()} == {"cuda"}


class Standardised(nn.Conv2d):
    def _conv_forward(self, signal, weight, bias):
        return super()._conv_forward(signal, weight / weight.norm(), bias)


class Scaled(nn.ReLU):
    def forward(self, signal):
        return 3 * super().forward(signal)


class InPlace(nn.Module):
    """A signal is overwritten after it has been added to another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d, self.relu = conv(3, 6), conv(6, 6), conv(3, 6), nn.ReLU(inplace=True)

    def forward(self, x):
        first = self.a(x)
        total = first + self.d(x)
        return F.relu(total + self.b(self.relu(first)))


class AddedTo(nn.Module):
    """``x += y``, where x has another name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.d = conv(3, 6), conv(3, 6)

    def forward(self, x):
        signal = self.a(x)
        other = signal
        signal += self.d(x)
        return signal * other


class Cleared(InPlace):
    """What is done in place here cannot be done otherwise."""

    def forward(self, x):
        first = self.a(x)
        total = first + self.d(x)
        first.zero_()
        return F.relu(total + self.b(first))


class OneChannel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = conv(3, 6), conv(6, 1), conv(6, 6)

    def forward(self, x):
        x = F.relu(self.a(x))
        return F.relu(self.d(x) + self.b(x))


class AlikeNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.norm_0 = conv(3, 6), nn.ModuleList([nn.BatchNorm2d(6)]), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.norm_0(F.relu(self.norm[0](F.relu(self.a(x)))))


FOLDED = {
    "weight standardisation": lambda: nn.Sequential(conv(3, 6), nn.ReLU(), Standardised(6, 6, 3), nn.BatchNorm2d(6)),
    "an activation's forward": lambda: nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), Scaled(), conv(6, 2)),
    "a norm's hook": lambda: nn.Sequential(conv(3, 6), with_hook(nn.BatchNorm2d(6)), nn.ReLU()),
    "weight norm": lambda: nn.Sequential(conv(3, 6), parametrizations.weight_norm(conv(6, 6)), nn.BatchNorm2d(6)),
    "in place": InPlace, "added to": AddedTo, "cleared": Cleared, "one channel": OneChannel, "alike": AlikeNames,
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
def test_folded_as_written(name):
    """Twice, with the images left alone, and behind what has been pruned, too."""
    torch.manual_seed(0)
    net, x = awake(nn.Sequential(conv(3, 5), nn.ReLU(), conv(5, 3), FOLDED[name]())), images()
    given = x.clone()
    for network in (net, bar.prune(bar.gate(net, SIZE)).eval()):
        expected, folded = network(x), bar.fold(network)
        assert all(relative(expected, folded(x)) <= 1e-10 for _ in range(2))
        assert torch.equal(x, given)
        assert torch.equal(network(x), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:The tensor attribute")
def test_what_has_computed_its_weights_already_is_folded_and_exported(tmp_path):
    net = awake(nn.Sequential(conv(3, 6), nn.utils.weight_norm(conv(6, 6)), nn.BatchNorm2d(6)))
    x = images()
    expected = net(x)
    assert relative(expected, bar.fold(net)(x)) <= 1e-10
    assert bar.export(net, SIZE, tmp_path / "net.pt2") <= 1e-4


def test_a_signal_added_to_under_another_name_is_exported(tmp_path):
    torch.manual_seed(0)
    assert bar.export(AddedTo(), SIZE, tmp_path / "net.pt2") <= 1e-4


class Chain(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.a, self.c = make(3, 24), make(24, 2)
        self.blocks = nn.ModuleList([make(24, 24) for _ in range(6)])

    def forward(self, x):
        x = F.relu(self.a(x))
        for block in self.blocks:
            x = x + block(F.relu(x))
        return self.c(x)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_chains_of_gathered_sums_are_exported_to_onnx(kind, tmp_path):
    torch.manual_seed(0)
    size = (3, *[6] * (nn.modules.conv.__all__.index(kind.__name__) + 1))
    gated = bar.gate(Chain(lambda i, o: kind(i, o, 3, padding=1)), size).eval()
    for gate in gated.gates.values():
        gate.spread_(-6, 5)
    pruned = bar.prune(gated.floor_() or gated).eval()
    assert sum(node.target is torch.index_add for node in pruned.graph.nodes) > 1
    assert bar.export(pruned, size, tmp_path / "net.onnx") <= 1e-4


def stored(net: nn.Module, folder) -> tuple[nn.Module, nn.Module]:
    pruned = bar.prune(bar.gate(awake(net), SIZE)).eval()
    bar.save(pruned, folder)
    return pruned, bar.load(folder)


def test_an_upsampling_is_stored_with_all_its_options(tmp_path):
    up = nn.Upsample(scale_factor=1.4, mode="bilinear", recompute_scale_factor=True)
    pruned, again = stored(nn.Sequential(conv(3, 6), up, conv(6, 2)), tmp_path)
    x = images()
    assert relative(pruned(x), again(x)) <= 1e-12


@pytest.mark.parametrize("name", ["forward", "_conv_forward"])
def test_a_layer_with_a_forward_of_its_own_is_not_stored(name, tmp_path):
    last = conv(6, 2)
    setattr(last, name, types.MethodType(lambda self, x, *more: F.conv2d(x, self.weight, padding=1), last))
    with pytest.raises(bar.BarError, match=f"a {name} that was given to this one layer cannot be saved"):
        stored(nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 6), nn.ReLU(), last), tmp_path)
    assert not list(tmp_path.iterdir())


def test_pixels_are_shuffled_by_name():
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 8), conv(2, 2)

        def forward(self, x):
            return self.b(F.pixel_shuffle(input=F.relu(self.a(x)), upscale_factor=2))

    torch.manual_seed(0)
    check(Shuffled())
