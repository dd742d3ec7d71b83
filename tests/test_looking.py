"""Looking changes nothing, what has been cut stays cut, and what is done to a gated network has its effect.

The numbers in the names are those of the list of cases on which the software once fell short.
"""

import copy
import random
import re
import warnings
from collections import deque

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from networks import NAMES, SIZE, build
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torchvision.ops import StochasticDepth

import bar
from bar.methods.information_bottleneck import GaussianGate


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().abs().max() / a.detach().abs().max())


def shut(gated: bar.GatedNetwork) -> bar.GatedNetwork:
    """Every second feature of each convolution is dead."""
    for gate in gated.gates.values():
        gate.log_alpha.data[:] = 3.0
        gate.log_alpha.data[1::2] = -5.0
    return gated


LOOKS = {
    "prune": bar.prune,
    "prune regular": lambda gated: bar.prune(gated, "regular"),
    "size": lambda gated: (gated.size("flops"), gated.full(), gated.uncut(), gated.smallest()),
    "costs": lambda gated: gated.costs(),
    "live": lambda gated: (gated.live(), gated.values(), gated.score, gated.indicators()),
    "print": lambda gated: (str(gated), str(gated.gates)),
    "draw": lambda gated: plt.close(bar.draw(gated)),
    "deepcopy": copy.deepcopy,
    "state_dict": lambda gated: copy.deepcopy(gated).load_state_dict(gated.state_dict()),
    "count": lambda gated: bar.count(gated.body, SIZE),
    "connect": lambda gated: gated.connect_(),
    "move": lambda gated: gated.to("cpu"),
    "same precision": lambda gated: gated.double(),
    "copy and cut": lambda gated: copy.deepcopy(gated).cut_(),
    "gate another": lambda gated: bar.gate(build_quietly("plain"), SIZE),
    "gate with another law": lambda gated: bar.gate(build_quietly("plain"), SIZE, gate_factory=GaussianGate),
    "fold": lambda gated: bar.fold(bar.prune(gated)),
    "eval and back": lambda gated: (gated.eval(), gated.train()),
}


def build_quietly(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return build(name)


def trained(name: str, seed: int, looks: dict[int, list[str]], make=None) -> list[torch.Tensor]:
    """Weights, gates and losses of a few steps, with looks before some of them; and a cut half-way."""
    torch.manual_seed(seed)
    gated = bar.gate(build(name), SIZE, gate_factory=make)
    gated.train()
    weights = [p for p in gated.parameters() if p.is_leaf]
    adam, losses = torch.optim.Adam(weights, lr=0.01), []
    for step in range(4):
        if step == 2:
            first = next(iter(gated.gates.values()))
            first.settle_(first.alive & (torch.arange(len(first.alive)) != 1))
            gated.floor_().cut_()
        for look in looks.get(step, ()):
            LOOKS[look](gated)
        loss = gated(torch.randn(3, *SIZE, dtype=torch.float64)).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
    return [*losses, *(t.clone() for t in gated.state_dict().values()), torch.rand(3)]


@pytest.mark.parametrize("make", [None, GaussianGate], ids=["hard concrete", "Gaussian"])
@pytest.mark.parametrize("name", ["plain", "awkward", "depthwise", "wrn-10-1"])
def test_b1_looking_between_steps_changes_no_bit(name, make):
    every = {step: list(LOOKS) for step in range(4)}
    for mine, its in zip(trained(name, 1, every, make), trained(name, 1, {}, make), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("look", LOOKS)
def test_b1_no_look_draws_from_the_global_generator(look):
    gated = shut(bar.gate(build("awkward"), SIZE)).train()
    before = torch.get_rng_state()
    LOOKS[look](gated)
    assert torch.equal(torch.get_rng_state(), before)


def test_b1_gates_start_at_random_all_the_same():
    """From the generator's state, but not with the numbers that come next; and in U(0, 0.01)."""
    starts = []
    for seed in (0, 0, 1):
        net = build("plain")
        torch.manual_seed(seed)
        starts.append(bar.gate(net, SIZE).log_alpha.detach())
        assert not torch.equal(torch.rand(6), starts[-1][:6] * 100)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert all(0 <= start.min() < start.max() <= 0.01 for start in starts)


def test_b1_a_module_that_draws_while_it_is_traced():
    class Noisy(nn.Module):
        def forward(self, x):
            return x * (1 + torch.rand(1).item())

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Noisy(), nn.Flatten(), nn.Linear(144, 2))
    before = torch.get_rng_state()
    with pytest.raises(bar.BarError, match="module '1' draws random numbers"):  # frozen, they would be no noise
        bar.gate(net, SIZE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["bar", "random", "magnitude"])
def test_b2_a_run_leaves_the_generators_alone_cached_or_not(tmp_path, method):
    config = bar.RunConfig(method=method, pruning_factor=2, limit=64, epochs=(1, 0, 0), size=8)
    torch.manual_seed(11)
    expected, numbers = torch.rand(3), np.random.mtrand._rand.get_state()[1].copy()
    state = random.getstate()
    for _ in ("new", "recorded"):
        torch.manual_seed(11)
        bar.run(config, tmp_path / "run")
        assert torch.equal(torch.rand(3), expected)
        assert random.getstate() == state
        assert (np.random.mtrand._rand.get_state()[1] == numbers).all()


def test_b2_what_a_run_refuses_leaves_the_generators_alone(tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with pytest.raises(bar.BarError):
        bar.run(bar.RunConfig(pruning_factor=1e6, limit=64, epochs=(1, 0, 0)), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


class Net(nn.Module):
    """Two convolutions and a linear layer, called by whatever function it is given."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)
        self.drop, self.other = nn.Dropout(0.5), nn.Linear(4, 2)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.register_buffer("seen", torch.zeros(()))
        self.calls = forward

    def forward(self, x):
        return self.calls(self, x)

    def head(self, x):
        return self.fc(x.mean((2, 3)))


class DropPath(nn.Module):
    """As it is written by hand everywhere."""

    def forward(self, x):
        if not self.training:
            return x
        return x / 0.9 * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.9)


class ConstantNoise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn(1, 4, 1, 1) if self.training else x


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) if self.training else x


class Scale(nn.Module):
    def forward(self, x):
        return x * 2 if self.training else x


class InPlace(nn.Module):
    def forward(self, x):
        if self.training:
            x.mul_(2)
        return x


class Added(nn.Module):
    def forward(self, x):
        if self.training:
            x += torch.randn_like(x)
        return x


class Afterwards(nn.Module):
    """A scale that only evaluation has."""

    def forward(self, x):
        return x if self.training else x / 2


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return x


class Averaging(Counting):
    def forward(self, x):
        if self.training:
            self.seen.mul_(0.9).add_(x.mean((0, 2, 3)))
        return x


class Chosen(nn.Module):
    """Calls another layer in training mode."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(x) if self.training else x


class Lottery(nn.Module):
    """Whatever the draw gives while the network is read."""

    def forward(self, x):
        return x if not self.training or self.draw() < 1 else 2 * x

    @staticmethod
    def draw():
        return torch.rand(1)


class PythonLottery(Lottery):
    draw = staticmethod(random.random)


class NumpyLottery(Lottery):
    draw = staticmethod(lambda: np.random.mtrand.rand())


class OwnWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        if self.training:
            self.weight.data.mul_(0.9)
        return x


class WithGradients(nn.Module):
    def forward(self, x):
        return x * 2 if torch.is_grad_enabled() else x


class InInference(nn.Module):
    def forward(self, x):
        return x * 2 if torch.is_inference_mode_enabled() else x


class WithoutGradients(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            return x * 2


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Reversed(nn.Module):
    def forward(self, x):
        return Reversal.apply(x)


class WarmingUp(nn.Module):
    """Something else from the hundredth call on."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x if self.calls > 100 else x * 2


class Keeping(nn.Module):
    """Notes each call in a container that it keeps."""

    def __init__(self, kept, note):
        super().__init__()
        self.kept, self.note = kept, note

    def forward(self, x):
        self.note(self.kept, "call")
        return x * 2


def append(kept, what):
    kept.append(what)


KEEPING = {
    "list": (list, append), "dict": (dict, lambda kept, what: kept.update({what: 1})), "deque": (deque, append),
    "set": (set, lambda kept, what: kept.add(what)),
    "nested": (lambda: {"x": []}, lambda kept, what: kept["x"].append(what)),
}  # fmt: skip


def left_whole(net, match):
    """Gate a network of which a part is left whole for this reason: in eval mode it stays what it was; so when pruned.

    A part that passes its input on in eval mode is followed instead.
    """
    gated = bar.gate(net, SIZE)
    if gated.whole:
        assert any(re.search(match, f"{place}: {why}") for place, why in gated.whole.items()), gated.whole
        assert list(gated.gates) == ["b"], "what flows into the part is ungated"
        with pytest.raises(bar.BarError, match="odd"):
            bar.gate(net, SIZE, strict=True)
    else:
        x = torch.randn(2, 4, 3, 3)
        assert copy.deepcopy(net.odd).eval()(x) is x
    gated.keep_({n: torch.tensor([True, False, True, True]) for n in gated.gates})
    images = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(bar.prune(gated.eval())(images), gated(images), rtol=1e-5, atol=1e-6)
    gated.keep_({n: torch.ones(4, dtype=torch.bool) for n in gated.gates})
    with torch.no_grad():
        torch.testing.assert_close(gated(images), net.eval()(images))
    return gated


@pytest.mark.parametrize("kind", KEEPING)
def test_b3_what_puts_something_into_a_container_is_left_whole(kind):
    make, note = KEEPING[kind]
    layer = Keeping(make(), note)
    net = Net(lambda net, x: net.head(net.b(net.odd(net.a(x)))), odd=layer)
    bar.gate(net, SIZE)
    assert layer.kept == make()
    left_whole(net, "'odd'.* changes its attribute 'kept'")
    assert layer.kept != make(), "it is called as it is"
    layer.note = lambda kept, what: None  # what is only read does not matter
    assert bar.gate(net, SIZE)


class OtherRate(nn.Module):
    def forward(self, x):
        return F.leaky_relu(x, 0.2 if self.training else 0.1)


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (DropPath(), "module 'odd'"), (Noise(), "module 'odd'"), (ConstantNoise(), "module 'odd'"),
        (Scale(), "module 'odd'"), (InPlace(), "module 'odd'"), (Added(), "module 'odd'"),
        (Afterwards(), "module 'odd'"),
        (Counting(), "'odd.seen'"), (Averaging(), "module 'odd'|'odd.seen'"), (Chosen(), "module 'odd.drop'"),
        (OtherRate(), "module 'odd'"), (Lottery(), "module 'odd'"), (PythonLottery(), "module 'odd'"),
        (NumpyLottery(), "module 'odd'"), (OwnWeight(), "module 'odd'"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_b3_what_acts_in_training_only_is_left_whole(layer, place):
    net = Net(lambda net, x: net.head(net.b(net.odd(net.a(x)))), odd=layer)
    state, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    bar.gate(net, SIZE)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    gated = left_whole(net, f"training mode.*({place})|({place}).*training mode")
    if type(layer) in (OtherRate, Scale, OwnWeight, InPlace):  # what draws no numbers does in training mode what it did
        other, images = copy.deepcopy(net), torch.randn(3, *SIZE)
        torch.testing.assert_close(gated.train()(images), other.train()(images))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (WithGradients(), "module 'odd'.* needs no gradients"), (InInference(), "module 'odd'.* needs no gradients"),
        (WithoutGradients(), "module 'odd'.* without gradients"), (Reversed(), "module 'odd'.* without gradients"),
        (WarmingUp(), "module 'odd' changes its attribute 'calls'"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_b3_what_tracing_would_freeze_is_left_whole(layer, message, around):
    net = Net(lambda net, x: net.head(net.b(net.odd(net.a(x)))), odd=copy.deepcopy(layer))
    with around():
        bar.gate(net, SIZE)
    assert getattr(net.odd, "calls", 0) == 0
    left_whole(net, message)


class OwnTrain(Net):
    """Keeps its batch norm in eval mode, as detectors do."""

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self


def test_b6_a_train_method_of_the_users_has_the_last_word():
    net = OwnTrain(lambda net, x: net.head(net.b(net.norm(net.a(x)))), norm=nn.BatchNorm2d(4))
    gated = bar.gate(net, SIZE).train()
    assert gated.training
    assert net.b.training
    assert not net.norm.training
    assert not bar.prune(gated).norm.training


def test_b3_what_the_network_itself_does_in_training_mode_only():
    for forward in (
        lambda net, x: net.head(net.b(net.a(x))).softmax(1) if not net.training else net.head(net.b(net.a(x))),
        lambda net, x: F.alpha_dropout(net.head(net.b(net.a(x))), 0.1, net.training),
        lambda net, x: F.rrelu(net.head(net.b(net.a(x))), training=net.training),
        lambda net, x: net.head(net.b(F.dropout(net.a(x), 0.5 if net.training else 0.1, net.training))),
    ):
        with pytest.raises(bar.BarError, match=r"'.*in the network itself.* training mode"):
            bar.gate(Net(forward), SIZE)


def test_b3_dropout_and_stochastic_depth_are_followed():
    """A dropped sample is the shortcut alone; the others are scaled by 1 / (1 - p)."""
    net = Net(lambda net, x: net.head(net.depth(net.b(x := net.a(x))) + x), depth=StochasticDepth(0.5, "row"))
    gated = bar.gate(net, SIZE)
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    images = torch.randn(64, *SIZE)
    with torch.no_grad():
        x = net.a(images)
        ways = torch.stack([net.head(x), net.head(x + 2 * net.b(x))])
        off = (gated.train()(images) - ways).abs().amax(2)
        assert off.amin(0).max() < 1e-5
        assert 16 < int((off[0] < 1e-5).sum()) < 48
        torch.testing.assert_close(gated.eval()(images), net.eval()(images))
        pruned = bar.prune(gated.train())
        assert not torch.equal(pruned(images), pruned(images))
        torch.testing.assert_close(bar.prune(gated.eval())(images), net(images))


def test_b3_a_functional_dropout_that_never_drops_goes_on_never_dropping():
    net = Net(lambda net, x: net.head(net.b(F.dropout(net.a(x), 0.5, False))))
    gated = bar.gate(net, SIZE).train()
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    images = torch.randn(4, *SIZE)
    torch.testing.assert_close(gated(images), net(images))


@pytest.mark.parametrize("rest", [lambda x: x, lambda x: x.view(len(x), 4, -1).view(x.shape), lambda x: x + 1])
def test_b3_a_functional_dropout_that_only_training_calls(rest):
    """``if self.training: x = F.dropout(x)``, followed by a view whose sizes hold the number of images, too."""

    def forward(net, x):
        x = net.a(x)
        if net.training:
            x = F.dropout(x, 0.5)
        return net.head(net.b(rest(x)))

    net = Net(forward)
    gated = bar.gate(net, SIZE)
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    images = torch.randn(5, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(gated.eval()(images), net.eval()(images))
        pruned = bar.prune(gated.train())
        assert not torch.equal(gated(images), gated(images))
        torch.manual_seed(1)
        found = pruned(images)
        torch.manual_seed(1)  # gated ones draw numbers for their gates, too
        torch.testing.assert_close(found, net.train()(images))


def test_b3_a_dropout_of_training_hides_no_other_difference():
    def forward(net, x):
        x = net.a(x)
        x = F.leaky_relu(F.dropout(x, 0.5), 0.2) if net.training else F.leaky_relu(x, 0.1)
        return net.head(net.b(x))

    with pytest.raises(bar.BarError, match=r"in the network itself.* training mode"):
        bar.gate(Net(forward), SIZE)
    sums = Net(lambda net, x: net.head((x := net.a(x)) + (F.dropout(x, 0.5) if net.training else x)))
    with pytest.raises(bar.BarError, match=r"in the network itself.* training mode"):
        bar.gate(sums, SIZE)


class Auxiliary(Net):
    """As GoogLeNet has them: outputs that only training has."""

    def __init__(self):
        super().__init__(None, aux=nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)))

    def forward(self, x):
        x = self.a(x)
        aux = self.aux(x) if self.training else None
        out = self.head(self.b(x))
        return (out, aux) if self.training else out


def test_b3_auxiliary_heads_are_left_out_and_this_is_said():
    net = Auxiliary()
    with pytest.warns(UserWarning, match="'aux' of Auxiliary run in training mode only"):
        gated = bar.gate(net, SIZE)
    assert gated.network.auxiliary == ("aux",)
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    images = torch.randn(4, *SIZE)
    torch.testing.assert_close(gated.train()(images), net.train()(images)[0])
    torch.testing.assert_close(bar.prune(gated.eval())(images), net.eval()(images))
    net.aux[0].inplace = True  # the main output then reads what the head has changed
    with pytest.raises(bar.BarError, match=r"'aux'.* changes its input in place"):
        bar.gate(net, SIZE)


def test_b3_googlenet_with_its_heads():
    from torchvision.models import googlenet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = googlenet(weights=None, num_classes=4, init_weights=False)
    with pytest.warns(UserWarning, match="'aux1', 'aux2' of GoogLeNet"):
        gated = bar.gate(net, (3, 64, 64))
    assert not any("aux" in name for name in gated.gates)


@pytest.mark.parametrize("make", [None, GaussianGate], ids=["hard concrete", "Gaussian"])
@pytest.mark.parametrize("name", ["plain", "wrn-10-1", "depthwise"])
def test_b4_what_was_cut_stays_cut(name, make):
    """Whatever is done to the gates afterwards: gated and pruned network agree, and the size is no larger."""
    gated = bar.gate(build(name), SIZE, gate_factory=make)
    generator = torch.Generator().manual_seed(3)
    for gate in gated.gates.values():
        gate.settle_(torch.rand(len(gate.alive), generator=generator) < 0.5)
    gated.floor_().eval().cut_()
    size, dead = gated.size(), {name: ~gate.alive for name, gate in gated.gates.items()}
    images = torch.randn(4, *SIZE, dtype=torch.float64)

    def spread() -> None:
        for gate in gated.gates.values():
            gate.spread_(-1, 5) if make is None else gate.start_()

    def fill() -> None:
        for gate in gated.gates.values():
            for name, parameter in gate.named_parameters():
                parameter.data.fill_(-3.0 if name == "log_variance" else 3.0)

    whole = {name: torch.ones_like(gate.alive) for name, gate in gated.gates.items()}
    for open_ in (spread, fill, lambda: gated.keep_(whole), lambda: gated.settle_(gated.full()), gated.floor_):
        open_()
        assert not any((gate.alive & dead[name]).any() for name, gate in gated.gates.items())
        assert not any((gate.value.detach()[dead[name]] != 0).any() for name, gate in gated.gates.items())
        assert gated.size() <= size
        assert relative(gated(images), bar.prune(gated)(images)) <= 1e-10
        again = bar.gate(build(name), SIZE, gate_factory=make)
        again.load_state_dict(gated.state_dict())
        assert relative(gated(images), again.eval()(images)) == 0


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("make", [None, GaussianGate], ids=["hard concrete", "Gaussian"])
def test_b5_weight_decay_on_everything_is_harmless(optimizer, make):
    gated = bar.gate(build("wrn-10-1"), SIZE, gate_factory=make)
    for gate in gated.gates.values():
        gate.settle_(torch.arange(len(gate.alive)) % 2 == 0)
    gated.floor_().cut_().train()
    dead = {name: ~gate.alive for name, gate in gated.gates.items()}
    assert any(flags.any() for flags in dead.values())
    step = optimizer(gated.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        step.zero_grad()
        loss = gated(torch.randn(4, *SIZE, dtype=torch.float64)).square().mean()
        if make is None:
            loss = loss + sum(p.sum() for p in gated.expected().values())
        else:
            loss = loss + sum(gate.information().sum() for gate in gated.gates.values())
        loss.backward()
        step.step()
    assert all(p.isfinite().all() and (p.grad is None or p.grad.isfinite().all()) for p in gated.parameters())
    assert not any((gate.alive & dead[name]).any() for name, gate in gated.gates.items())


def replace_in_body(net, gated):
    gated.body.fc = nn.Linear(4, 2)


def replace_in_model(net, gated):
    net.fc = nn.Linear(4, 2)


def remove_from_model(net, gated):
    del net.fc


def hook_on_container(net, gated):
    net.block.register_forward_hook(lambda module, inputs, output: output * 2)


def weight_norm(net, gated):
    torch.nn.utils.parametrizations.weight_norm(net.b)


CHANGES = {
    "forward hook": (lambda net, gated: net.b.register_forward_hook(lambda *_: None), "'b' has a forward hook"),
    "pre-hook": (lambda net, gated: gated.body.b.register_forward_pre_hook(lambda *_: None), "'b' has a forward hook"),
    "backward hook": (
        lambda net, gated: net.b.register_full_backward_hook(lambda *_: None),
        "'b' has a backward hook",
    ),
    "hook on the model": (
        lambda net, gated: net.register_forward_hook(lambda *_: None),
        "the network itself has a for",
    ),
    "hook on a container": (hook_on_container, "'block' has a forward hook"),
    "hook on an activation": (
        lambda net, gated: net.block[0].register_forward_hook(lambda *_: None),
        "'block.0' has a",
    ),
    "synchronised gated": (
        lambda net, gated: nn.SyncBatchNorm.convert_sync_batchnorm(gated),
        "'norm' has been replaced by SyncBatchNorm",
    ),
    "synchronised model": (
        lambda net, gated: nn.SyncBatchNorm.convert_sync_batchnorm(net),
        "'norm' has been replaced by SyncBatchNorm",
    ),
    "replaced in body": (replace_in_body, "'fc' has been replaced by Linear"),
    "replaced in the model": (replace_in_model, "'fc' has been replaced by Linear"),
    "removed": (remove_from_model, "'fc' has been replaced by NoneType"),
    "weight norm": (weight_norm, "'b' has been changed .* its weight is parametrized"),
    "pruned by torch": (
        lambda net, gated: prune.l1_unstructured(net.b, "weight", 0.5),
        "'b' has a forward hook .L1Unstructured",
    ),
    "patched": (lambda net, gated: setattr(net.b, "forward", lambda x: x), "'b' .* has a forward of its own"),
}


def everything() -> Net:
    return Net(
        lambda net, x: net.head(net.block(net.b(net.norm(net.a(x))))),
        norm=nn.BatchNorm2d(4),
        block=nn.Sequential(nn.ReLU(inplace=True)),
    )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "notice",
    [lambda gated: gated(torch.zeros(2, *SIZE)), bar.prune, lambda gated: gated.connect_(), lambda gated: gated.cut_()],
    ids=["forward", "prune", "connect", "cut"],
)
def test_b6_what_would_have_no_effect_is_refused_when_noticed(change, notice):
    net = everything()
    gated = bar.gate(net, SIZE)
    do, message = CHANGES[change]
    do(net, gated)
    with pytest.raises(bar.BarError, match=message):
        notice(gated)


def test_b6_the_mode_of_the_model_is_that_of_the_gated_network():
    net = Net(
        lambda net, x: net.head(net.drop(F.dropout(net.b(net.a(x)), 0.5, net.training))), drop=nn.Dropout(0.5, True)
    )
    gated = bar.gate(net, SIZE).train()
    gated.keep_({n: torch.ones_like(g.alive) for n, g in gated.gates.items()})
    images = torch.randn(8, *SIZE)
    for model in (net, gated):
        model.eval()
        torch.testing.assert_close(gated(images), net(images))
        assert torch.equal(gated(images), gated(images))
        assert not bar.prune(gated).training
        model.train()
        assert not torch.equal(gated(images), gated(images))
        assert bar.prune(gated).training
    assert net.training


def test_b6_one_layer_in_eval_mode_stays_so():
    net = everything()
    gated = bar.gate(net, SIZE).train()
    net.norm.eval()
    before = copy.deepcopy(net.norm.state_dict())
    gated(torch.randn(4, *SIZE))
    assert all(torch.equal(value, before[name]) for name, value in net.norm.state_dict().items())
    net.norm.train()
    gated(torch.randn(4, *SIZE))
    assert not torch.equal(net.norm.running_mean, before["running_mean"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [None, GaussianGate], ids=["hard concrete", "Gaussian"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "in another module"])
def test_b7_gates_stay_in_single_precision(dtype, make, wrapped):
    gated = bar.gate(build("wrn-10-1").float(), SIZE, gate_factory=make)
    before = {name: tensor.clone() for name, tensor in gated._gates.state_dict().items()}
    (nn.Sequential(gated) if wrapped else gated).to(dtype)
    assert {p.dtype for p in gated._gates.parameters()} == {torch.float32}
    assert all(torch.equal(tensor, before[name]) for name, tensor in gated._gates.state_dict().items())
    assert {p.dtype for p in gated.body.parameters()} == {dtype}
    images = torch.randn(2, *SIZE, dtype=dtype)
    gated.train()(images).float().square().sum().backward()
    assert all(p.grad is not None for p in gated._gates.parameters())
    assert gated.eval()(images).dtype == dtype == bar.prune(gated)(images).dtype
    assert {p.dtype for p in gated.double()._gates.parameters()} == {torch.float64}


def test_all_test_networks_are_followed_in_both_modes():
    """Nothing of what could be gated is refused now."""
    for name in NAMES:
        bar.gate(build(name), SIZE)
