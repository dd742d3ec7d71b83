"""What is done to a network after gates were put in: it takes effect in the gated and the pruned one, or is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_people import close, opened
from torch import nn

import bar
from bar.surgery import attributes


class Kept(nn.Module):
    """A network that reads tensors of every kind itself, and attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.pool, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.shift, self.shifts = torch.rand(1, 8, 1, 1), [torch.rand(1, 8, 1, 1)]
        self.act, self.options, self.drop, self.step = F.relu, {"factor": 2.0}, 0.1, 0

    def forward(self, x):
        y = self.act(self.norm(self.first(x - self.mean))) * self.scale + self.shift
        y = F.dropout(self.second(y) + self.shifts[0], self.drop, self.training)
        return self.head(self.pool(y).mean((2, 3)) * self.options["factor"])


def kept() -> tuple[Kept, bar.GatedNetwork]:
    torch.manual_seed(0)
    net = Kept().double().eval()
    net.shift, net.shifts = net.shift.double(), [s.double() for s in net.shifts]
    return net, opened(bar.gate(net, (3, 8, 8)).eval())


def images():
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def like(tensor):
    return torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()


def parameter(*shape):
    return nn.Parameter(torch.rand(*shape, dtype=torch.float64))


FOLLOWED = {
    "a parameter": lambda net, gated: setattr(net, "scale", parameter(1, 8, 1, 1)),
    "a buffer": lambda net, gated: setattr(net, "mean", like(net.mean)),
    "a plain tensor": lambda net, gated: setattr(net, "shift", like(net.shift)),
    "a weight": lambda net, gated: setattr(net.second, "weight", parameter(8, 8, 3, 3)),
    "a buffer of the gated network": lambda net, gated: [setattr(gated.body, "mean", like(net.mean)), gated.connect_()],
    "tensors that are assigned": lambda net, gated: net.load_state_dict(
        {name: like(tensor) for name, tensor in net.state_dict().items()}, assign=True
    ),
    "tensors that are assigned to the gated network": lambda net, gated: gated.load_state_dict(
        {name: like(tensor) if name[5:] in net.state_dict() else tensor for name, tensor in gated.state_dict().items()},
        assign=True,
    ),
    "options of a layer": lambda net, gated: vars(net.second).update(dilation=(2, 2), padding=(2, 2)),
    "a number of a layer": lambda net, gated: setattr(net.norm, "eps", 0.5),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name):
    """In eval mode the three are one function, and the model and the gated network have the same tensors."""
    net, gated = kept()
    before = net(images())
    FOLLOWED[name](net, gated)
    out = gated(images())
    close(net(images()), out)
    assert (net(images()) - before).abs().max() > 1e-3
    close(net(images()), bar.prune(gated)(images()))
    state = gated.body.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def tie(net, gated):
    net.second.bias = net.first.bias


REFUSED = {
    "the attribute 'act' of Kept is another": lambda net, gated: setattr(net, "act", torch.sigmoid),
    "the attribute 'options' of Kept is another": lambda net, gated: net.options.update(factor=3.0),
    "the attribute 'shifts' of Kept is another": lambda net, gated: net.shifts.insert(0, like(net.shift)),
    "the attribute 'drop' of Kept is 0.5": lambda net, gated: setattr(net, "drop", 0.5),
    "the attribute 'kernel_size' of MaxPool2d is 4": lambda net, gated: setattr(net.pool, "kernel_size", 4),
    "'norm.running_mean' has been taken out": lambda net, gated: setattr(net.norm, "running_mean", None),
    "'second.bias' has been taken out": lambda net, gated: setattr(net.second, "bias", None),
    r"'mean' has been replaced by one of shape \(1, 1, 1, 1\)": lambda net, gated: setattr(
        net, "mean", net.mean[:, :1].clone()
    ),
    "'shift' has been made a parameter": lambda net, gated: setattr(net, "shift", parameter(1, 8, 1, 1)),
    "'mean' has been replaced in the model and in the gated": lambda net, gated: [
        setattr(net, "mean", like(net.mean)), setattr(gated.body, "mean", like(net.mean))
    ],
    "is tied since the gates were put in: its bias is also '(first|second).bias'": tie,
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    """At each step, not only at the first; never computed with what was there before."""
    net, gated = kept()
    REFUSED[message](net, gated)
    for step in (gated, gated, lambda x: bar.prune(gated)):
        with pytest.raises(bar.BarError, match=message):
            step(images())


def test_undone():
    """What is refused can be undone; what was replaced meanwhile is followed then."""
    net, gated = kept()
    net.act, net.scale = torch.sigmoid, parameter(1, 8, 1, 1)
    with pytest.raises(bar.BarError, match="'act'"):
        gated(images())
    net.act = F.relu
    close(net(images()), gated(images()))


def test_moved_one_by_one():
    """Buffers that the graph reads go along, whichever of the two is moved."""
    for move in (lambda net, gated: net.float(), lambda net, gated: gated.float()):
        net, gated = kept()
        move(net, gated)
        gated.connect_()
        assert net.mean.dtype == gated.body.mean.dtype == net.scale.dtype == torch.float32


class Counting(nn.Module):
    """Something else from the fourth step on, or only a count of steps."""

    def __init__(self, read) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.step, self.seen, self.read = 0, [], read

    def forward(self, x):
        y = self.second(self.first(x).relu()).relu().mean((2, 3))
        return self.head(y * 2 if self.read(self) > 3 else y)


READ = {
    "by name": lambda net: net.step,
    "by getattr": lambda net: getattr(net, "step", 0),
    "in a dict": lambda net: vars(net)["step"],
    "elsewhere": lambda net: len(net.seen),
}


@pytest.mark.parametrize("name", [*READ, "never"])
def test_an_attribute_that_changes_at_each_step(name, monkeypatch):
    """One that forward does not read costs one more look at the network in all; one that it reads is refused."""
    net = Counting(READ.get(name, lambda net: 0)).eval()
    gated, times, look = opened(bar.gate(net, (3, 8, 8)).eval()), [], attributes.trace
    monkeypatch.setattr(attributes, "trace", lambda *a, **k: times.append(0) or look(*a, **k))
    x = torch.randn(2, 3, 8, 8)
    for step in range(8):
        net.step = step
        net.seen.append(step)
        if name == "never" or step < 3 or (step < 4 and name != "elsewhere"):
            torch.testing.assert_close(net(x), gated(x))
        else:
            with pytest.raises(bar.BarError, match="which the network computes something else"):
                gated(x)
    assert type(net) is Counting
    assert (len(times) == 1) == (name == "never")


def test_copies_follow_their_own_tensors():
    """A copy of a gated network no longer hears of the model, but of what is replaced in itself."""
    net, gated = kept()
    other = copy.deepcopy(gated)
    net.scale = parameter(1, 8, 1, 1)
    close(net(images()), gated(images()))
    before = other(images())
    assert (before - net(images())).abs().max() > 1e-3
    other.body.scale = net.scale
    close(net(images()), other(images()))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_compiled_parts_are_left_whole():
    """A part in TorchScript, which keeps its parameters elsewhere, is called as it is."""
    part = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), part, nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 2)
    )
    net = net.double().eval()
    gated = opened(bar.gate(net, (3, 8, 8)))
    close(net(images()), gated(images()))
    gated.gates["0"].log_alpha.data[2:] = -9
    close(gated(images()), bar.prune(gated)(images()))
    assert any("'2'" in place for place in gated.whole)


@pytest.mark.parametrize("grad", [False, True])
def test_other_tensors_in_a_single_call(grad):
    """`torch.func` puts tensors in the place of parameters, for one call: followed, without a trace."""
    net, gated = kept()
    call, before = torch.func.functional_call, gated(images())
    own = {name: like(tensor).detach() for name, tensor in net.named_parameters()}
    with_gates = {f"body.{name}": tensor for name, tensor in own.items()}

    def loss(model, tensors):
        return call(model, tensors, (images(),)).square().sum()

    if grad:
        mine, others = torch.func.grad(loss, 1)(gated, with_gates), torch.func.grad(loss, 1)(net, own)
        for name, slope in others.items():
            torch.testing.assert_close(mine[f"body.{name}"], slope)
    else:
        torch.testing.assert_close(call(gated, with_gates, (images(),)), call(net, own, (images(),)))
    assert isinstance(net.scale, nn.Parameter)
    assert torch.equal(before, gated(images()))
    close(before, net(images()))


def test_statistics_that_are_not_tracked():
    """A batch norm that no longer tracks its statistics is left whole, or refused if that is told later."""
    net, gated = kept()
    net.norm.track_running_stats = False
    with pytest.raises(bar.BarError, match="'track_running_stats' of BatchNorm2d is False now"):
        gated(images())
    gated = opened(bar.gate(net, (3, 8, 8)))
    assert "running statistics that it does not track" in "".join(gated.whole.values())
    gated.gates["second"].log_alpha.data[3:] = -9
    close(gated(images()), bar.prune(gated)(images()))
