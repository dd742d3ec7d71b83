"""Counting against hand-made sums, torch's FLOP counter, and Monte Carlo."""

import itertools

import pytest
import torch
from networks import NAMES, SIZE, build
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import bar
from bar import cost, models
from bar.methods import morphnet


@pytest.mark.parametrize(
    ("name", "size", "volume", "flops"),
    [("wrn-28-12", 32, 3_112_960, 15_087_796_224), ("resnet50", 128, 3_629_056, 2_669_150_208)],
)
def test_the_sizes_of_the_paper(name, size, volume, flops):
    with torch.device("meta"):
        net = models.build(name, 10, (3, size, size))
    counted = bar.count(net, (3, size, size))
    assert (counted.volume, counted.flops) == (volume, flops)


@pytest.mark.parametrize(("factor", "flops_factor"), [(2, 4.0), (4, 16.0), (8, 64.0), (16, 255.8)])
def test_uniform_widths_give_the_flop_factors_of_the_paper(factor, flops_factor):
    """Supplement 6.1, Random: WRN-28-12 with all widths (the stem's, too) divided by the volume factor."""
    with torch.device("meta"):
        net = models.WideResNet(28, 12)
        full = bar.count(net, (3, 32, 32))
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.in_channels //= 1 if module.in_channels == 3 else factor
                module.out_channels //= factor
                shape = (module.out_channels, module.in_channels, *module.kernel_size)
                module.weight = nn.Parameter(torch.empty(shape))
            elif isinstance(module, nn.BatchNorm2d):
                width = module.num_features // factor
                for key in ("weight", "bias"):
                    setattr(module, key, nn.Parameter(torch.empty(width)))
                module.running_mean, module.running_var = torch.empty(width), torch.empty(width)
        net.fc = nn.Linear(net.fc.in_features // factor, 10)
    small = bar.count(net, (3, 32, 32))
    assert round(full.volume / small.volume, 1) == factor
    assert round(full.flops / small.flops, 1) == flops_factor


@pytest.mark.parametrize("name", NAMES)
def test_flops_equal_torchs_counter(name):
    net = build(name)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *SIZE, dtype=torch.float64))
    assert bar.count(net, SIZE, linear=True).flops == counter.get_total_flops()


def test_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(96, 5)
    )
    counted = bar.count(net, SIZE, linear=True)
    assert counted.volume == 4 * 16 + 6 * 16
    assert counted.flops == 2 * (4 * 16 * 27 + 6 * 16 * 4 + 96 * 5)
    assert counted.parameters == 4 * 27 + 4 + 6 * 4 + 6 + 96 * 5 + 5
    assert counted.layers["2"] == {"features": 6, "area": 16, "volume": 96, "flops": 768, "parameters": 30}
    assert bar.count(net, SIZE).flops == counted.flops - 2 * 96 * 5


def test_expected_size_is_the_mean_over_all_patterns():
    """A residual network small enough to go through every pattern of its gates; volume and FLOPs, exactly."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 2, 1)
            self.delta = nn.Conv2d(2, 2, 1)
            self.last = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.last(torch.relu(x + self.delta(x))).flatten(1)

    gated = bar.gate(nn.Sequential(Net(), nn.Linear(2 * 64, 2)), SIZE)
    names = list(gated.network.convs)
    chance = {n: torch.rand(2, dtype=torch.float64) for n in names}
    for metric in ("volume", "flops"):
        mean = 0.0
        for bits in itertools.product([0.0, 1.0], repeat=6):
            pattern = dict(zip(names, torch.tensor(bits, dtype=torch.float64).view(3, 2), strict=True))
            weight = torch.stack([torch.where(pattern[n] > 0, chance[n], 1 - chance[n]) for n in names]).prod()
            mean += float(weight * cost.METRICS[metric](gated.network, pattern))
        assert float(cost.METRICS[metric](gated.network, chance)) == pytest.approx(mean, rel=1e-12)


def test_expected_size_is_differentiable_in_log_alpha():
    gated = bar.gate(build("depthwise"), SIZE)
    for metric in ("volume", "flops"):
        value = cost.METRICS[metric](gated.network, gated.expected())
        grads = torch.autograd.grad(value, [g.log_alpha for g in gated.gates.values()])
        assert all((g > 0).all() for g in grads)


def test_an_image_that_shrinks_to_nothing():
    with pytest.raises(bar.BarError, match=r"cannot take an image of size \(3, 2, 2\)"):
        bar.count(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 2, 2))


def test_peak_activations_by_hand():
    """A residual block holds its input, what it is computing from, and what it computes: three maps at once."""
    chain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    assert cost.peak_activations(chain, SIZE) == 2 * 8 * 64

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return x + self.b(torch.relu(self.a(x)))

    assert cost.peak_activations(Residual(), SIZE) == (3 + 4 + 4) * 64


@pytest.mark.parametrize("name", NAMES)
def test_pruning_does_not_raise_the_peak(name):
    gated = bar.gate(build(name), SIZE)
    gated.settle_(gated.size() / 3)
    assert cost.peak_activations(bar.prune(gated), SIZE) <= cost.peak_activations(build(name), SIZE)


def test_a_narrow_terminal_cuts_no_number_and_no_name(bar_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    out = bar_command("count", "--layers", "--model", "densenet121")[1]
    layers = bar.count(bar.models.outline("densenet121"), (3, 32, 32)).layers
    assert all(f" {name} " in out and f" {layer['flops']:,} " in out for name, layer in layers.items())


class Standardised(nn.Conv2d):
    """A convolution that computes its weights anew, as weight standardisation does."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Own(nn.Module):
    """Weights of its own, and a call of the function."""

    def __init__(self, inputs, features):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, inputs, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight, padding="same")


class Calling(nn.Module):
    """Convolutions in every way that there is to call one."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 3))
        self.standardised, self.own = Standardised(8, 8, 3), Own(8, 6)
        self.scripted = torch.jit.trace(nn.Conv2d(6, 6, 1, groups=2), torch.zeros(1, 6, 4, 4))
        self.register_buffer("blur", torch.full((6, 1, 2, 2), 0.25))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.scripted(self.own(self.standardised(self.first(x)).relu()).relu())
        x = F.conv_transpose2d(F.conv2d(x, self.blur, stride=2, groups=6), self.blur, groups=6)
        return self.head(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
def test_a_convolution_counts_however_it_is_called():
    net, size = Calling(), (3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *size))
    counted = bar.count(net, size)
    with torch.inference_mode():
        assert bar.count(net, size) == counted
    assert bar.count(net, size, linear=True).flops == counter.get_total_flops()
    assert counted.volume == sum(f * a * a for f, a in [(5, 16), (8, 14), (8, 12), (6, 12), (6, 12), (6, 6), (6, 7)])
    assert counted.layers["own"] | {"flops": 0} == {
        "features": 6, "area": 144, "volume": 864, "flops": 0, "parameters": 6 * 8 * 9
    }  # fmt: skip
    assert list(counted.layers) == ["first.0", "first.2", "standardised", "own", "Calling"]


@pytest.mark.filterwarnings("ignore:.torch.jit.:FutureWarning")
def test_gated_and_pruned_networks_count_convolutions_that_are_left_whole():
    net, size = Calling(), (3, 16, 16)
    gated, counted = bar.gate(net, size), bar.count(net, size)
    assert (gated.full(), gated.full("flops")) == (counted.volume, counted.flops)
    assert list(gated.gates) == ["first.0"]
    with torch.no_grad():
        gated.gates["first.0"].log_alpha[1:] = -9
    pruned = bar.count(bar.prune(gated), size)
    assert (pruned.volume, pruned.flops) == (gated.size(), gated.size("flops"))
    assert pruned.volume == counted.volume - 4 * 256


class Blurred(nn.Module):
    """Each map is blurred on the way, which goes with the map."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.register_buffer("blur", torch.full((6, 1, 2, 2), 0.25))

    def forward(self, x):
        return self.last(F.conv2d(self.first(x), self.blur, groups=6)).mean((2, 3))


def test_a_filter_of_each_map_counts_with_its_map():
    net, size = Blurred(), (3, 8, 8)
    gated, counted = bar.gate(net, size), bar.count(net, size)
    full = (6 * 64 + 6 * 49 + 2 * 49, 2 * (6 * 64 * 3 + 6 * 49 * 4 + 2 * 49 * 6))
    assert (counted.volume, counted.flops) == full == (gated.full(), gated.full("flops"))
    with torch.no_grad():
        gated.gates["first"].log_alpha[2:] = -9
    pruned = bar.count(bar.prune(gated), size)
    two = (2 * 64 + 2 * 49 + 2 * 49, 2 * (2 * 64 * 3 + 2 * 49 * 4 + 2 * 49 * 2))
    assert (pruned.volume, pruned.flops) == two == (gated.size(), gated.size("flops"))
    half = {"first": torch.full((6,), 0.5, requires_grad=True), "last": torch.ones(2)}
    expected = cost.volume(gated.network, half)
    assert expected.item() == 3 * 64 + 3 * 49 + 2 * 49
    assert torch.autograd.grad(expected, half["first"])[0].tolist() == [64.0 + 49] * 6
    assert cost.flops(gated.network, half).item() == 2 * (3 * 64 * 3 + 3 * 49 * 4 + 2 * 49 * 3)
    gamma = {"first": torch.full((6,), 0.5)}
    assert morphnet.penalty(gated.network, gamma, "volume", 0.1).item() == 3 * 64 + 3 * 49


def test_a_linear_layer_of_no_images_does_not_count():
    """Of a parameter, say, which is the same for all images."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear, self.token = nn.Conv2d(3, 4, 1), nn.Linear(5, 4), nn.Parameter(torch.ones(5))

        def forward(self, x):
            return self.conv(x) + self.linear(self.token)[:, None, None]

    assert bar.count(Net(), SIZE, linear=True) == bar.count(Net(), SIZE)


@pytest.mark.parametrize("metric", cost.METRICS)
def test_sizes_are_computed_where_the_gates_are(metric):
    """A depthwise convolution of the images, which has no gates, is there as well."""
    net = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten())
    gated = bar.gate(nn.Sequential(net, nn.Linear(8 * 16, 2)), (3, 10, 10))
    elsewhere = {name: values.to("meta") for name, values in gated.expected().items()}
    assert cost.measure(metric)(gated.network, elsewhere).device.type == "meta"
