"""Constructions that people spell in other ways: exact, counted, and what cannot be followed is left whole."""

from collections import OrderedDict, UserDict, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from test_people import close, opened
from test_surgery import randomise
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import bar
from bar import storage


class Spelt(nn.Module):
    """Two convolutions, what a function makes of their features, and a linear layer on its mean over pixels."""

    def __init__(self, act, columns=8, **modules) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.act = nn.Linear(columns, 5), act
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        y = self.act(self, F.relu(self.second(F.relu(self.first(x)))))
        return self.head(y.flatten(2).mean(2) if y.ndim > 2 else y)


def images(number=3, size=8):
    return torch.randn(number, 3, size, size, dtype=torch.float64)


def exact(net, *inputs, whole=None):
    """The gated network of open gates is the original; the pruned one is the gated one, for any number of images."""
    net = net.double().eval()
    gated = bar.gate(net, example_inputs=inputs)
    assert bool(gated.whole) == bool(whole)
    assert (whole or "") in " ".join(gated.whole.values())
    with torch.no_grad():
        assert type(gated(*inputs)) is type(net(*inputs))
        for some in (inputs, [x[:1] for x in inputs]):
            close(opened(gated)(*some), net(*some))
            for seed, share in enumerate((0.7, 0.4, 0.1)):
                randomise(gated, seed, share)
                smaller = bar.prune(gated)
                close(smaller(*some), gated(*some))
                cost = bar.count(smaller, example_inputs=inputs)
                assert (cost.volume, cost.flops) == (gated.size(), gated.size("flops"))
    return gated, smaller


OF_CHANNELS = {
    "max": lambda: nn.MaxPool2d(3, 1, 1), "average": lambda: nn.AvgPool2d(3, 1, 1), "lp": lambda: nn.LPPool2d(2, 1, 1),
    "adaptive": lambda: nn.AdaptiveMaxPool2d((8, 3)), "instances": lambda: nn.InstanceNorm2d(3),
    "mirrored": lambda: nn.ReflectionPad2d((1, 1, 2, -2)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:input's size at dim=0")  # which torch says of one of them, and goes on
@pytest.mark.parametrize("name", OF_CHANNELS)
def test_layers_of_pixels_that_get_channels_for_them(name):
    """Of three dimensions, torch takes the first for channels, so that these mix what a network has as channels."""
    torch.manual_seed(0)
    gated, _ = exact(Spelt(lambda net, y: net.layer(y.flatten(2)), layer=OF_CHANNELS[name]()), images(), whole="mixes")
    assert list(gated.gates) == ["first"]


@pytest.mark.parametrize(
    "act", [lambda net, y: F.avg_pool1d(y.mean((2, 3)), 3, 1, 1), lambda net, y: F.max_pool1d(y.mean((2, 3)), 3, 1, 1)]
)
def test_functions_of_pixels_that_get_channels_for_them(act):
    torch.manual_seed(0)
    exact(Spelt(act), images(), whole="mixes")


def test_what_begins_empty():
    torch.manual_seed(0)
    act = lambda net, y: torch.cat([torch.zeros(0, dtype=y.dtype), y], 1)  # noqa: E731
    exact(Spelt(act), images(), whole="does not keep the channels")


class Half(nn.Module):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(x.float().movedim(1, -1), torch.eye(8)).movedim(-1, 1).double()


def test_another_precision_is_not_lost():
    torch.manual_seed(0)
    gated, _ = exact(Spelt(lambda net, y: net.coarse(y), coarse=Half()), images(), whole="torch.autocast")
    assert list(gated.gates) == ["first"]
    with pytest.raises(bar.BarError, match=r"'float_1' .* is computed in another precision, by torch.autocast"):
        bar.gate(Spelt(lambda net, y: Half.forward(net, y)).double(), (3, 8, 8))


FOLLOWED = {
    "a row": lambda net, y: y[:, :, 0], "a pixel": lambda net, y: y[:, :, 0, -1],
    "single": lambda net, y: y.float().double(),
    "tile": lambda net, y: y.tile(1, 2, 1, 1)[:, 4:12], "repeat": lambda net, y: y.repeat_interleave(2, 1)[:, ::2],
    "numbers": lambda net, y: y + torch.arange(8, device=y.device),
    "glu": lambda net, y: F.glu(y, 1).tile(1, 2, 1, 1),
    "glu by name": lambda net, y: F.glu(input=y, dim=-3)[:, [0, 1] * 4],
    "glu as a layer": lambda net, y: nn.GLU(1)(y).tile(1, 2, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name):
    torch.manual_seed(0)
    gated, _ = exact(Spelt(FOLLOWED[name]), images())
    assert list(gated.gates) == ["first", "second"]


TOGETHER = {
    "some of a sequence": lambda net, y: net.layers[:2](y),
    "in a sequence": lambda net, y: nn.Sequential(nn.ReLU(), net.layers[0], net.layers[1:])(y),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_layers_that_are_put_together_when_they_are_called(name):
    torch.manual_seed(0)
    norms = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Tanh())
    gated, _ = exact(Spelt(TOGETHER[name], layers=norms), images())
    assert list(gated.gates) == ["first", "second"]


def test_a_layer_in_a_plain_list_is_refused_where_it_is():
    conv = nn.Conv2d(8, 8, 1)
    with pytest.raises(bar.BarError, match=r"a Conv2d that is called is no module of the network.*ModuleList"):
        bar.gate(Spelt(lambda net, y: conv(y)), (3, 8, 8))
    own = Spelt(lambda net, y: nn.Sequential(nn.ReLU(), conv)(y))
    gated = bar.gate(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), own), (3, 8, 8))
    assert list(gated.gates) == ["0"]
    assert "a Conv2d that is called is no module" in " ".join(gated.whole.values())


def test_twins_say_why_they_are_left_whole():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

        def forward(self, one, other):
            return (self.body(one) - self.body(other)).abs()

    with pytest.raises(bar.BarError, match=r"no convolution that reads several channels, but .*body.0.* called 2"):
        bar.gate(Twins().double(), example_inputs=[images(), images()])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the older form
def test_checkpoints():
    """What checkpoint calls is followed; its older form hides gradients, and is refused with what to do."""
    torch.manual_seed(0)
    for reentrant in (False, True):
        net = Spelt(lambda net, y, how=reentrant: checkpoint(F.relu, y, use_reentrant=how))
        if reentrant:
            with pytest.raises(bar.BarError, match=r"without gradients.*instead of checkpoint"):
                bar.gate(net, (3, 8, 8))
        else:
            exact(net, images())


def test_channels_counted_from_the_end_of_large_images():
    """Their numbers are too many to be followed one by one."""
    torch.manual_seed(0)
    net = Spelt(lambda net, y: y[:, [-1, 0, 3]] + torch.narrow(y, 1, -3, 3), columns=3).double().eval()
    exact(net, images())
    gated = bar.gate(net, (3, 2100, 2100))
    some = images()
    with torch.no_grad():
        close(opened(gated)(some), net(some))


class Halved(nn.Module):
    """Looks at values; what it returns may be what it was given."""

    def forward(self, x):
        return x if x.sum() > 0 else x / 2


def test_what_looks_at_values_may_return_what_it_was_given():
    """For zeros, with which its shape is found, it does not: a change in place of what it read would go unseen."""
    net = Spelt(lambda net, y: net.halved(y) + y.mul_(2), halved=Halved())
    with pytest.raises(bar.BarError, match=r"has changed its memory under another name .* looks at values"):
        bar.gate(net, (3, 8, 8))
    exact(Spelt(lambda net, y: net.halved(y) + y.mul(2), halved=Halved()), images(), whole="control flow")


def test_parameters_that_nothing_reads_any_more_are_gone():
    """Of a layer that is gone, the shift is left."""
    scale, shift = (nn.Parameter(torch.full((8, 1, 1), 2.0)) for _ in range(2))
    net = Spelt(lambda net, y: net.third(y) * net.scale + net.shift, scale=scale, shift=shift, third=nn.Conv2d(8, 8, 1))
    gated = bar.gate(net, (3, 8, 8))
    gated.keep_({name: torch.full_like(gate.alive, name != "third") for name, gate in gated.gates.items()})
    assert bar.prune(gated).state_dict().keys() == {"shift", "head.weight", "head.bias"}


def test_slices_of_no_channels():
    torch.manual_seed(0)
    layers = {"norm": nn.GroupNorm(1, 8), "third": nn.Conv2d(8, 8, 1)}
    net = Spelt(lambda net, y: net.third(torch.cat([net.norm(y)[:, 8:], net.norm(y)], 1)), **layers)
    exact(net, images(), whole="called 2 times")


class Pairs(nn.Module):
    """One batch of several images for each of the network's."""

    def __init__(self, join, part) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.deep, self.up = nn.Conv2d(8, 8, 1, groups=8), nn.ConvTranspose2d(8, 4, 2, 2)
        self.head, self.join, self.part = nn.Linear(4, 2), join, part

    def forward(self, *xs):
        raise NotImplementedError

    def features(self, *xs):
        y = self.deep(F.relu(self.second(F.relu(self.first(self.join(*xs))))))
        return self.head(self.part(self.up(y).mean((2, 3)), len(xs[0])))


class Two(Pairs):
    def forward(self, one, other):
        return self.features(one, other)


class Film(Pairs):
    def forward(self, film):
        return self.features(film)


@pytest.mark.parametrize("kind", ["pairs", "films"])
def test_several_images_for_each(kind, tmp_path):
    """They are counted as often as the layers run, and where all features are gone, zeros are as many."""
    torch.manual_seed(0)
    if kind == "pairs":
        net, inputs = Two(lambda a, b: torch.cat([a, b]), lambda y, n: y[:n] - y[n:]), [images(), images()]
    else:
        net = Film(lambda film: film.flatten(0, 1), lambda y, n: y.view(n, 4, -1).mean(1))
        inputs = [torch.randn(3, 4, 3, 8, 8, dtype=torch.float64)]
    gated, smaller = exact(net, *inputs, whole="moves values between")
    with FlopCounterMode(display=False) as counter:
        net(*(x[:1] for x in inputs))
    cost = bar.count(net, example_inputs=inputs, linear=True)
    assert cost.flops == counter.get_total_flops()
    assert all(layer["features"] * layer["area"] == layer["volume"] for n, layer in cost.layers.items() if n != "head")
    assert (gated.full(), gated.full("flops")) == (cost.volume, cost.flops - cost.layers["head"]["flops"])
    storage.save(smaller, tmp_path)
    close(bar.load(tmp_path)(*inputs), smaller(*inputs))


class Options(Spelt):
    """A forward whose parameters have defaults of all kinds."""

    def forward(self, x, mask=None, sizes=(1, 2), *, scale=3.0, **more):
        y = super().forward(x) * sizes[1] * scale
        return y if mask is None else y * mask


def test_parameters_of_forward_that_are_not_given():
    torch.manual_seed(0)
    net = Options(lambda net, y: y).double().eval()
    exact(net, images())
    exact(net, images(), torch.randn(3, 1, dtype=torch.float64))


class Groups(nn.Module):
    """A chain of grouped convolutions: each group reads other features than those that are best."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(8, 12, 1, groups=4), nn.Conv2d(12, 8, 3, groups=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = F.relu(self.first(F.relu(self.norm(self.stem(x)))))
        return self.head(F.relu(self.second(y)).mean((2, 3)))


def test_chains_of_groups():
    """Whatever dies, a signal gets through: what is kept of one convolution is read by the next."""
    torch.manual_seed(0)
    gated, _ = exact(Groups(), images())
    assert list(gated.gates) == ["stem", "first", "second"]
    for first in range(12):
        gated.keep_({"stem": torch.arange(8) == 7, "first": torch.arange(12) == first, "second": torch.arange(8) == 0})
        assert bar.prune(gated.floor_())(images()).isfinite().all()
        assert gated.network.reached(gated.live())
    assert gated.smallest() < 0.15 * gated.full()
    for budget in (gated.smallest(), 0.3 * gated.full(), 0.8 * gated.full()):
        assert 0.5 * budget <= gated.settle_(budget).size() <= budget
        bar.prune(gated)


def test_buffers_that_are_constants_of_the_graph():
    """Channels of an index are followed; other ones, which the graph does not have, are refused at the next step."""
    torch.manual_seed(0)
    net = Spelt(lambda net, y: y[:, net.places]).double().eval()
    net.register_buffer("places", torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))
    gated, _ = exact(net, images())
    net.load_state_dict(net.state_dict())
    close(opened(gated)(images().zero_()), net(images().zero_()))
    other = {name: tensor.clone() for name, tensor in gated.state_dict().items()}
    other["body.places"] = other["body.places"].flip(0)
    with pytest.raises(bar.BarError, match="the buffer 'places' has other values than when"):
        gated.load_state_dict(other)
    with pytest.raises(bar.BarError, match="the buffer 'places' has other values than when"):
        gated(images())


def test_attributes_that_are_constants_of_the_graph():
    """A temperature that changes is refused, since it would have no effect; a count of epochs is not."""
    torch.manual_seed(0)
    net = Spelt(lambda net, y: y / net.temperature).double().eval()
    net.temperature, net.epoch = 3.0, 0
    gated, _ = exact(net, images())
    net.epoch = 1
    net.train().eval()
    gated(images())
    net.temperature = 2.0
    with pytest.raises(bar.BarError, match=r"the attribute 'temperature' of Spelt is 2.0 now, .* something else"):
        gated(images())
    net.temperature = 3.0
    close(opened(gated)(images().zero_()), net(images().zero_()))


def test_inputs_by_name():
    """As the user's network takes them, by position or by name; refused if there are others."""

    class Two(Spelt):
        def forward(self, image, scale=None):
            return super().forward(image if scale is None else image * scale)

    net = Two(lambda net, y: y).double().eval()
    x, scale = images(), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    gated = opened(bar.gate(net, example_inputs=(x, scale)))
    for out in (gated(x, scale=scale), gated(scale=scale, image=x), bar.prune(gated)(image=x, scale=scale)):
        close(out, net(x, scale))
    for given, named in (((x,), {}), ((x, scale), {"scale": scale}), ((x,), {"mask": scale}), ((x, x, x), {})):
        with pytest.raises(bar.BarError, match=r"the network takes image, scale, one batch for each, and .* is given"):
            gated(*given, **named)


class Pair(NamedTuple):
    out: torch.Tensor
    rest: torch.Tensor


class Attributes(dict):
    __getattr__ = dict.__getitem__


@dataclass
class Result:
    out: torch.Tensor
    rest: torch.Tensor | None = None
    tags: list = field(default_factory=list)


@dataclass
class Doubled(Result):
    def __post_init__(self):
        self.out = self.out * 2


@dataclass
class Output(OrderedDict):
    """As those of the transformers library."""

    out: torch.Tensor = None
    rest: torch.Tensor = None

    def __post_init__(self):
        self.update(out=self.out, rest=self.rest)


class Heads(nn.Module):
    """What a function makes of two outputs; in training mode, of three."""

    def __init__(self, make) -> None:
        super().__init__()
        self.first, self.second, self.head, self.make = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5), make

    def forward(self, x):
        y = self.second(self.first(x).relu()).relu()
        return self.make(self.head(y.mean((2, 3))), y)


CONTAINERS = {
    "an OrderedDict": lambda out, rest: OrderedDict(out=out, rest=rest),
    "attributes": lambda out, rest: Attributes(out=out, rest=[rest]),
    "a named tuple": Pair,
    "a dataclass": lambda out, rest: Result(out, rest, ["a", 1]),
    "an output": Output,
    "nested": lambda out, rest: [OrderedDict(out=Pair(out, Result(rest)))],
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_outputs_are_handed_over_in(name):
    """Of the class that the user's network returns, in the gated and the pruned network; nothing is left whole."""
    net = Heads(CONTAINERS[name]).double().eval()
    gated = bar.gate(net, (3, 8, 8), strict=True)
    randomise(gated, 0, 0.5)
    x = images()

    def signals(value):
        if isinstance(value, torch.Tensor):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        parts = [vars(value)[k] for k in ("out", "rest")] if isinstance(value, Result) else parts
        return [s for part in parts for s in signals(part)]

    def classes(value):
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return [type(value), *[c for part in parts for c in classes(part)]]

    out, smaller = gated(x), bar.prune(gated)(x)
    assert classes(net(x)) == classes(out) == classes(smaller)
    for one, other in zip(signals(out), signals(smaller), strict=True):
        close(one, other)
    if name == "a dataclass":
        assert smaller.tags == ["a", 1]


@pytest.mark.parametrize("kind", [Doubled, lambda o, r: defaultdict(list, o=o, r=r), lambda o, r: UserDict(o=o, r=r)])
def test_what_outputs_cannot_be_handed_over_in(kind):
    """A class that makes something else of what it holds would do so twice: refused, not returned as a dict."""
    with pytest.raises(bar.BarError, match=r"that is returned .* use a dict, a list, a tuple or a plain dataclass"):
        bar.gate(Heads(kind), (3, 8, 8))


def test_an_ordered_dict_that_training_adds_to(tmp_path):
    """As torchvision's segmentation networks return: the main output is pruned, stored and exported."""

    class Segmented(Heads):
        def forward(self, x):
            out, rest = super().forward(x)
            return OrderedDict(out=out, more=self.more(rest)) if self.training else OrderedDict(out=out)

    net = Segmented(lambda *signals: signals)
    net.more = nn.Conv2d(8, 2, 1)
    net.double().eval()
    with pytest.warns(UserWarning, match="'more' of Segmented run in training mode only"):
        gated = bar.gate(net, (3, 8, 8))
    randomise(gated, 1, 0.5)
    pruned = bar.prune(gated.eval())
    storage.save(pruned, tmp_path)
    again = bar.load(tmp_path)(images())
    assert type(again) is OrderedDict
    assert list(again) == ["out"]
    assert bar.export(pruned, (3, 8, 8), tmp_path / "network.pt2") <= 1e-4
