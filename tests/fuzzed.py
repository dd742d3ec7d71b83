"""Random small networks of what people write, supported or not, to hold against their pruned selves; odd states."""

import copy
import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from people import DropPath, NormAct, Same
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import StochasticDepth

from bar.network.operations import ELEMENTWISE

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Tanh, nn.Hardtanh, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink,
)  # fmt: skip
FUNCTIONS = (
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh, F.softsign,
    F.softshrink, F.hardshrink, F.tanhshrink, torch.relu, torch.tanh, lambda x: x.relu(),
    lambda x: x.tanh(), lambda x: x.contiguous(),
)  # fmt: skip


NUMBER = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "clamp", "clamp_", "clip", "pow", "truediv"}
POSITIVE = {
    "log",
    "log1p",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "pow",
    "exp",
    "expm1",
}  # what is far from zero, and from infinity


def elementwise(rng: random.Random) -> tuple[str, Callable]:
    """A function of each number by itself, of those in the table of operations."""
    call, number = rng.choice(ELEMENTWISE), rng.choice([0.5, 2.0, -1.5])
    name = call if isinstance(call, str) else call.__name__
    if name in ("to", "type_as", "float", "double"):
        return name, lambda x: x.type_as(x) if name == "type_as" else x.to(x.dtype)
    more = {"Threshold": (0.1, 0.0), "threshold": (0.1, 0.0)}.get(name, (abs(number),) if name in NUMBER else ())
    if isinstance(call, type):
        return name, call(*more)

    def act(x: Tensor) -> Tensor:
        x = x.sigmoid() + 0.5 if name in POSITIVE else x
        return getattr(x, call)(*more) if isinstance(call, str) else call(x, *more)

    return name, act


class Then(nn.Module):
    """A function with layers of its own."""

    def __init__(self, act: Callable, *layers: nn.Module) -> None:
        super().__init__()
        self.act, self.layers = act, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x, *self.layers)


class Scaled(nn.Module):
    """A factor and a summand for each channel, or one for all."""

    def __init__(self, rng: random.Random, channels: int) -> None:
        super().__init__()
        shape = rng.choice([(channels, 1, 1), (1, channels, 1, 1), (1,), (1, 1, 1)])
        self.scale, self.shift = nn.Parameter(torch.rand(shape)), nn.Parameter(torch.rand(shape))
        self.kind = rng.randrange(4)

    def forward(self, x: Tensor) -> Tensor:
        return [lambda: self.scale * x, lambda: x * self.scale + self.shift, lambda: x - self.shift,
                lambda: x / (1 + self.scale)][self.kind]()  # fmt: skip


class Blur(nn.Module):
    """Each channel is filtered by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("weight", torch.rand(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1, groups=self.channels)


class Decides(nn.Module):
    """Looks at values, so that it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else x * 2


def lines(x: Tensor, conv: nn.Module, norm: nn.Module, pool: nn.Module) -> Tensor:
    return pool(norm(conv(x.flatten(2)))).view(len(x), -1, *x.shape[2:])


def volumes(x: Tensor, conv: nn.Module, norm: nn.Module, pool: nn.Module) -> Tensor:
    return pool(norm(conv(x.unsqueeze(2)))).squeeze(2)


def twice(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    return two(one(x).relu())


def tied(channels: int) -> nn.Module:
    layers = [nn.Conv2d(channels, channels, 1) for _ in range(2)]
    layers[1].weight = layers[0].weight
    return Then(twice, *layers)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def channel_attention(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
    return x * y.view(len(x), -1, 1, 1)


def pixel_attention(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
    a = (q(x).flatten(2).transpose(1, 2) @ k(x).flatten(2)).softmax(-1)
    return x + (v(x).flatten(2) @ a.transpose(1, 2)).view(x.shape)


def branches(x: Tensor, one: nn.Module, two: nn.Module, fc: nn.Module) -> Tensor:
    """Two branches, weighted by a softmax over them."""
    parts = torch.stack([one(x), two(x)], 1)
    weights = fc(parts.sum(1).mean((2, 3), keepdim=True)).view(len(x), 2, -1, 1, 1).softmax(1)
    return (parts * weights).sum(1)


def convolution(rng: random.Random, channels: int) -> nn.Conv2d:
    """Strides, dilations, groups, biases and padding modes as they come."""
    groups = rng.choice([g for g in (1, 1, 1, 2, 3, channels) if channels % g == 0])
    mode = rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"])
    size, stride, dilation = rng.choice([1, 3, (1, 3)]), rng.choice([1, 1, 2]), rng.choice([1, 1, 2])
    padding = rng.choice([0, 1, "same"]) if stride == 1 else rng.choice([0, 1])
    out = groups * rng.randint(1, 1 + 8 // groups)
    return nn.Conv2d(channels, out, size, stride, padding, dilation, groups, rng.random() < 0.7, mode)


def pick(rng: random.Random, signals: list[Tensor]) -> int:
    """The place of a signal, of the newest one most of the time."""
    return rng.choice([len(signals) - 1, len(signals) - 1, rng.randrange(len(signals))])


class Fuzzed(nn.Module):
    """A random graph; what it does is decided when it is made, and listed in `steps`."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps: list[tuple[str, Callable, tuple[int, ...]]] = []
        signals = [torch.zeros(1, 3, 8, 8)]
        kinds = [self._layer] * 8 + [self._function] * 4 + [self._sum] * 3 + [self._joint] * 2
        kinds += [self._odd, self._more] * rng.choice([0, 4, 12])
        # what comes before the first convolution is no gate's business
        self._try(("Conv2d", self._own(nn.Conv2d(3, rng.randint(2, 8), 3, padding=1)), (0,)), signals)
        for _ in range(rng.randint(3, 14)):
            step = rng.choice(kinds)(rng, signals)
            self._try(step, signals)
        self._try(("conv", self._own(nn.Conv2d(signals[-1].shape[1], 4, 1)), (len(signals) - 1,)), signals)
        self.flat = rng.random() < 0.5
        ends = {len(signals) - 1, rng.randrange(1, len(signals))}
        self.ends = sorted(ends)
        self.heads = nn.ModuleList(
            nn.Linear(signals[i].flatten(1).shape[1] if self.flat else signals[i].shape[1], 4) for i in self.ends
        )

    def _own(self, layer: nn.Module) -> nn.Module:
        self.layers.append(layer)
        return layer

    def _try(self, step, signals: list[Tensor]) -> None:
        """Take a step if the shapes allow it."""
        _, act, reads = step
        try:
            with torch.no_grad():
                out = act(*(signals[i].clone() for i in reads))
        except (RuntimeError, ValueError, TypeError):
            return
        if isinstance(out, Tensor) and out.ndim == 4 and out.numel() and out.shape[0] == 1:
            self.steps.append(step)
            signals.append(out)

    def _layer(self, rng: random.Random, signals: list[Tensor]):
        i = pick(rng, signals)
        channels = signals[i].shape[1]
        made = rng.choice(
            [lambda: convolution(rng, channels)] * 6 + [lambda: nn.BatchNorm2d(channels)] * 3
            + [lambda: rng.choice(ACTIVATIONS)()] * 2
            + [lambda: nn.ReLU(inplace=True), nn.Identity, nn.Dropout, nn.Dropout2d, lambda: nn.MaxPool2d(2),
               lambda: nn.AvgPool2d(3, 1, 1), lambda: nn.AdaptiveAvgPool2d(2),
               lambda: nn.BatchNorm2d(channels, affine=False), lambda: nn.BatchNorm2d(channels, bias=False)]
        )()  # fmt: skip
        return type(made).__name__, self._own(made), (i,)

    def _function(self, rng: random.Random, signals: list[Tensor]):
        i, number = pick(rng, signals), rng.choice([0.5, -2, 3.0])

        def scaled(x):
            x *= number
            return x

        name, call = elementwise(rng)
        if rng.random() < 0.3:
            return name, self._own(call) if isinstance(call, nn.Module) else call, (i,)
        made = rng.choice([
            rng.choice(FUNCTIONS), lambda x: F.relu(x, inplace=True), lambda x: x.relu_(), lambda x: x * number,
            lambda x: number * x, lambda x: x / number, scaled, lambda x: F.max_pool2d(x, 3, 1, 1),
            lambda x: F.dropout(x, 0.5, self.training), lambda x: F.hardtanh(x, -1, number),
        ])  # fmt: skip
        return "function", made, (i,)

    def _sum(self, rng: random.Random, signals: list[Tensor]):
        i = pick(rng, signals)
        j = rng.choice([j for j, s in enumerate(signals) if s.shape == signals[i].shape])

        def in_place(x, y):
            x += y
            return x

        return "sum", rng.choice([lambda x, y: x + y, torch.add, in_place, lambda x, y: x.add_(y)]), (i, j)

    def _joint(self, rng: random.Random, signals: list[Tensor]):
        i = pick(rng, signals)
        alike = [j for j, s in enumerate(signals) if s.shape[2:] == signals[i].shape[2:]]
        return "cat", lambda *xs: torch.cat(xs, 1), (i, *(rng.choice(alike) for _ in range(rng.randint(1, 2))))

    def _more(self, rng: random.Random, signals: list[Tensor]):
        """Layers with a forward of their own, in other dimensions, and what is left whole."""
        i = pick(rng, signals)
        channels, out = signals[i].shape[1], rng.randint(1, 8)
        layer = rng.choice([
            lambda: NormAct(channels), lambda: Same(channels, out, 3, rng.choice([1, 2])), DropPath,
            lambda: Scaled(rng, channels), lambda: Blur(channels), lambda: nn.PixelUnshuffle(2),
            lambda: StochasticDepth(0.5, "row"), lambda: nn.PReLU(channels),
            lambda: nn.Sequential(nn.Conv2d(channels, 4 * out, 1), nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
            lambda: nn.ConvTranspose2d(channels, out, rng.choice([1, 2, 3]), rng.choice([1, 2])),
            lambda: nn.ConvTranspose2d(channels, channels, 2, groups=channels),
            lambda: Then(lines, nn.Conv1d(channels, out, 3, padding=1), nn.BatchNorm1d(out), nn.MaxPool1d(3, 1, 1)),
            lambda: Then(
                volumes, nn.Conv3d(channels, out, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(out), nn.AvgPool3d(1)
            ),
            lambda: rng.choice([nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ZeroPad2d])(1),
            lambda: nn.AdaptiveMaxPool2d(3), lambda: nn.Dropout1d() if rng.random() < 0.1 else nn.Dropout2d(),
            lambda: Then(branches, nn.Conv2d(channels, out, 1), nn.Conv2d(channels, out, 3, padding=1),
                         nn.Conv2d(out, 2 * out, 1)),
            # left whole
            lambda: Then(layer_norm, nn.LayerNorm(channels)), Decides, lambda: tied(channels),
            lambda: Then(channel_attention, nn.Conv1d(1, 1, 3, padding=1)),
            lambda: Then(pixel_attention, *(nn.Conv2d(channels, n, 1) for n in (2, 2, channels))),
            lambda: hooked(rng.choice([nn.ReLU(), nn.Conv2d(channels, out, 1), nn.Sequential(nn.Tanh())])),
            lambda: parametrizations.weight_norm(nn.Conv2d(channels, out, 1)),
            lambda: Then(lambda x, layer: layer(layer(x)), nn.Conv2d(channels, channels, 1)),
            lambda: Then(lambda x, layer: F.conv2d(x, layer.weight * 2), nn.Conv2d(channels, out, 1)),
        ])()  # fmt: skip
        name = getattr(layer.act, "__name__", "") if isinstance(layer, Then) else type(layer).__name__
        return name, self._own(layer), (i,)

    def _odd(self, rng: random.Random, signals: list[Tensor]):
        """What may have to be refused."""
        i = pick(rng, signals)
        channels = signals[i].shape[1]
        j = rng.choice([j for j, s in enumerate(signals) if s.shape[:2] == signals[i].shape[:2]])
        layer = self._own(rng.choice([
            nn.Sigmoid(), nn.Softplus(), nn.GroupNorm(1, channels), nn.InstanceNorm2d(channels), nn.PReLU(channels),
            nn.GroupNorm(channels, channels), nn.InstanceNorm2d(channels, affine=True), nn.GLU(2 - channels % 2),
            nn.ConvTranspose2d(channels, channels, 2), nn.PixelShuffle(2), nn.Upsample(scale_factor=2), nn.Softmax(1),
            nn.ZeroPad2d(1), nn.ConstantPad2d(1, 1.0), nn.Threshold(0.1, 20), nn.Hardtanh(0.5, 1), nn.LPPool2d(2, 2),
            nn.MaxPool2d(2, return_indices=True), nn.LocalResponseNorm(2), nn.ChannelShuffle(max(channels // 2, 1)),
        ]))  # fmt: skip
        return rng.choice([
            (type(layer).__name__, layer, (i,)),
            ("times", lambda x, y: x * y, (i, j)),
            ("gate", lambda x, y: x * torch.sigmoid(y.mean((2, 3), keepdim=True)), (i, j)),
            ("wide sum", lambda x, y: x + y.mean((2, 3), keepdim=True), (i, j)),
            ("scale", lambda x, y: F.hardsigmoid(y.mean((2, 3))).view(len(y), -1, 1, 1).expand_as(x) * x, (i, j)),
            ("pixels", lambda x, y: x * torch.sigmoid(y[:, :1]), (i, j)),
            ("difference", rng.choice([lambda x, y: x - y, torch.maximum, lambda x, y: x.sub(y, alpha=2)]), (i, j)),
            ("stack", lambda x, y: torch.stack([x, y], 1).flatten(1, 2), (i, j)),
            ("movement", rng.choice([
                lambda x: x.view(len(x), x.shape[1], -1).flip(1).view(x.shape), lambda x: x[:, ::2], lambda x: x[:, 1:],
                lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 0)),
                lambda x: F.pad(x, (1, 0, 2, 0)), lambda x: x[:, :, 1:], lambda x: x[..., :-1], lambda x: x.roll(1, 1),
                lambda x: x.reshape(len(x), -1, *x.shape[2:]), lambda x: torch.cat([x[:, 1:], x[:, :1]], dim=-3),
                lambda x: x.permute(0, 2, 3, 1).flip(-1).permute(0, 3, 1, 2), lambda x: x.repeat(1, 2, 1, 1),
                lambda x: x.transpose(1, 2), lambda x: x.reshape(len(x), x.shape[2], x.shape[1], x.shape[3]),
                lambda x: torch.cat([a * 2 for a in x.split(2, 1)], 1), lambda x: x.narrow(1, 0, 1),
                lambda x: x.mean(1, keepdim=True), lambda x: x.squeeze(),
                lambda x: x.flatten(2).softmax(-1).view(x.shape),
                lambda x: x.view(len(x), -1).view(x.shape), lambda x: x[:, torch.arange(x.shape[1]).flip(0)],
                lambda x: x if x.shape[1] > 3 else x * 2, lambda x: x / x.shape[1], lambda x: nn.ReLU()(x),
            ]), (i,)),
            ("function", rng.choice([
                lambda x: x + 1, lambda x: F.relu6(x + 3) * x / 6, lambda x: x.clamp(0, 6), lambda x: x.abs().sqrt(),
                lambda x: F.interpolate(x, size=x.shape[2:]), lambda x: F.softplus(x), lambda x: x.pow(2),
                lambda x: 1 - x, lambda x: 2 / x, lambda x: x * x, lambda x: x.chunk(2, 1)[0],
                lambda x: torch.cat(x.chunk(2, 1), 1), lambda x: x[:, :1], lambda x: x.permute(0, 1, 3, 2),
                lambda x: x.flip(1), lambda x: x.softmax(1), lambda x: F.layer_norm(x, x.shape[1:]), torch.exp,
                lambda x: F.interpolate(x, scale_factor=2.0), lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
                lambda x: torch.relu_(x), lambda x: x.mean((0, 3), keepdim=True), torch.abs, lambda x: x.detach(),
                lambda x: F.conv2d(x, torch.ones(2, x.shape[1], 1, 1, dtype=x.dtype)), lambda x: F.dropout(x, 0.5),
                lambda x: x - x.mean(1, keepdim=True), lambda x: F.hardtanh(x, 0.5, 1), lambda x: x.clamp(min=1),
            ]), (i,)),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        signals = [x.clone()]
        for _, act, reads in self.steps:
            signals.append(act(*(signals[i] for i in reads)))
        ends = [signals[i] if self.flat else F.adaptive_avg_pool2d(signals[i], 1) for i in self.ends]
        outputs = [head(end.flatten(1)) for head, end in zip(self.heads, ends, strict=True)]
        return outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1]


ODD = (None, True, False, 0, 1, -1, 7, 2**70, 10**4000, 0.5, -1e40, math.nan, math.inf, "", "x", "cut", [], {}, [[]],
       [1, 1], {"a": 1}, (0.5, "x"), torch.tensor(-1), torch.tensor([math.nan] * 3), torch.zeros(0))  # fmt: skip


def odd_tensor(rng: random.Random, tensor: Tensor) -> Tensor:
    """Of another shape or type, or with other numbers in it."""
    return rng.choice([
        lambda: tensor[None], lambda: tensor.flatten()[:-1], lambda: tensor.flatten(), lambda: tensor.double(),
        lambda: tensor.to(torch.int8), lambda: tensor != 0, lambda: tensor.to(torch.complex64),
        lambda: torch.zeros_like(tensor), lambda: torch.ones_like(tensor), lambda: -tensor.to(torch.float32),
        lambda: torch.full_like(tensor, rng.choice([0, 1, 100])), lambda: torch.full(tensor.shape, math.nan),
        lambda: torch.full(tensor.shape, -1e30), lambda: torch.full(tensor.shape, 1e30), lambda: tensor.to_sparse(),
        lambda: torch.empty(tensor.shape, device="meta"),
    ])()  # fmt: skip


def altered(state: dict, rng: random.Random) -> tuple[dict, tuple]:
    """A copy of a tree of dicts, lists, tensors and numbers with one place changed, and the place."""
    state = copy.deepcopy(state)
    tree, path = state, []
    while True:
        key = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree)))
        path.append(key)
        if not isinstance(tree[key], dict | list) or not tree[key] or rng.random() < 0.1:
            break
        tree = tree[key]
    what = rng.randrange(8)
    if isinstance(tree[key], Tensor) and what < 5:
        tree[key] = odd_tensor(rng, tree[key])
    elif what < 6:
        tree[key] = copy.deepcopy(rng.choice(ODD))
    elif what == 6:
        del tree[key]
    elif isinstance(tree, dict):
        tree[rng.choice(["x", 99, -1])] = tree.pop(key)
    else:
        tree.append(tree[key])
    return state, (*path, what)
