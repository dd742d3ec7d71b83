"""What a network costs: activation volume, FLOPs, parameters (eq. 4 and section 5.2).

One counting rule for every network, pruned or not:

- **volume** V: the number of values that all convolutions output for one image, the sum of features times area A_l;
- **FLOPs**: two per multiply-accumulate of the convolutions (``linear=True`` adds those of linear layers);
- **parameters**: everything that `nn.Module.parameters` yields.

And the same rule in expectation, where each feature is present with a known probability: differentiable, for L_S.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from bar.errors import BarError, nearest
from bar.network import (
    CONVOLUTIONS,
    Convolutions,
    Network,
    check_module,
    checked_size,
    follow,
    on_meta,
    quiet_call,
    symbolic_trace,
    undisturbed,
)


@dataclass(frozen=True)
class Cost:
    """What one image costs.

    Attributes
    ----------
    volume : int
        Values that the convolutions output per image (activation volume V).
    flops : int
        FLOPs of the convolutions per image, 2 per multiply-accumulate.
    parameters : int
        Parameters of the whole network.
    layers : dict of str to dict
        Per convolution (or linear layer, where counted): ``features``, ``area``, ``volume``, ``flops``, ``parameters``.
    """

    volume: int
    flops: int
    parameters: int
    layers: dict[str, dict[str, int]]


def count(
    model: nn.Module,
    input_size: Iterable[int] | None = None,
    linear: bool = False,
    *,
    example_inputs: Sequence[Tensor] | None = None,
) -> Cost:
    """Count what a network costs for one image, by running it on the meta device.

    Counted are the outputs and FLOPs of every convolution that runs, as often as it runs: of one to three dimensions,
    transposed or not, by a layer or by a call of ``F.conv2d`` and its like, which is told of the module that makes it.
    Each feature of a grouped convolution reads the input channels of its group only, and of a depthwise one a single
    channel.

    Parameters
    ----------
    model : nn.Module
        Any network, pruned ones too, but for gated ones; it need not be traceable and is not changed.
    input_size : iterable of int
        (channels, height, width) of one image; (channels, length) and (channels, depth, height, width) for networks of
        other dimensions.
    linear : bool
        Count the FLOPs of linear layers too. The paper counts convolutions only.
    example_inputs : sequence of Tensor, optional
        Instead of the size, for a network of several inputs: a batch for each of them.

    Returns
    -------
    Cost

    Raises
    ------
    BarError
        If it is no network, cannot take an image of that size, or has gates.

    Examples
    --------
    >>> cost = count(nn.Conv2d(3, 8, 3), (3, 6, 6))
    >>> cost.volume, cost.flops, cost.parameters  # 8 maps of 4 x 4; 2 * 3 * 3 * 3 per output; 216 weights + 8 biases
    (128, 6912, 224)
    """
    check_module(model)
    if hasattr(model, "settle_"):  # a bar.GatedNetwork, which this room does not know
        raise BarError(
            "a gated network is counted by its own methods full, size and costs, or once bar.prune has cut it"
        )
    twin = on_meta(model)
    work = _Layers(linear)
    dtype = next(iter(twin.parameters()), torch.empty(0)).dtype
    if example_inputs is None:
        size = checked_size(input_size)
        inputs = [torch.empty(1, *size, device="meta", dtype=dtype)]
    else:
        inputs = [x[:1].to("meta") for x in example_inputs]
        sizes = [tuple(x.shape[1:]) for x in inputs]
        size = sizes[0] if len(sizes) == 1 else tuple(sizes)
    try:
        _run(work, twin, model, inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BarError(f"{type(model).__name__} cannot take an image of size {size}: {reason}") from error
    return Cost(
        volume=sum(layer["volume"] for layer in work.layers.values()),
        flops=sum(layer["flops"] for layer in work.layers.values()),
        parameters=sum(p.numel() for p in model.parameters()),
        layers=work.layers,
    )


class _Layers(Convolutions):
    """Notes what the convolutions of each module cost for one image, and what linear layers do if these count."""

    def __init__(self, linear: bool) -> None:
        super().__init__(images=1)
        self.linear = linear
        self.layers: dict[str, dict[str, int]] = {}
        self._running: list[tuple[str, nn.Module]] = []

    def watch(self, model: nn.Module) -> nn.Module:
        """Begin anew, with this network."""
        self.layers.clear()
        self._running = [(type(model).__name__, model)]  # what the network's own forward computes has its name
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                module.register_forward_pre_hook(lambda m, _, name=name: self._running.append((name, m)))
                module.register_forward_hook(self._leave, always_call=True)
        return model

    def _leave(self, module: nn.Module, inputs: tuple, out: object) -> None:
        if self.linear and isinstance(module, nn.Linear) and isinstance(out, Tensor) and out.ndim > 1:
            self.note(out, 0, 2 * out.numel() * module.in_features)
        self._running.pop()

    def note(self, out: Tensor, volume: int, flops: int) -> None:
        name, module = self._running[-1]
        layer = isinstance(module, (*CONVOLUTIONS, nn.Linear))
        before = self.layers.get(name, {"volume": 0, "flops": 0})
        self.layers[name] = {
            "features": out.shape[1],
            "area": out[0, 0].numel() * out.shape[0],
            "volume": before["volume"] + volume,
            "flops": before["flops"] + flops,
            "parameters": sum(p.numel() for p in module.parameters(recurse=layer)),
        }


def _run(work: _Layers, twin: nn.Module, model: nn.Module, inputs: list[Tensor]) -> None:
    """Run a network on the meta device; one that looks at values, on zeros."""
    try:
        with work:
            quiet_call(work.watch(twin))(*inputs)
    except (RuntimeError, NotImplementedError):
        real = work.watch(copy.deepcopy(model).eval())
        device = next((p.device for p in real.parameters()), torch.device("cpu"))
        with undisturbed(), torch.no_grad(), work:
            quiet_call(real)(*(torch.zeros(x.shape, dtype=x.dtype, device=device) for x in inputs))


class _PeakActivations(fx.Interpreter):
    """Runs a graph on the meta device, and finds the most numbers that are held at once."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.peak = 0

    def run_node(self, node: fx.Node) -> Tensor:
        out = super().run_node(node)
        held = {id(v): v.numel() for v in [*self.env.values(), out] if isinstance(v, Tensor)}
        self.peak = max(self.peak, sum(held.values()))
        return out


def peak_activations(model: nn.Module, input_size: Iterable[int]) -> int:
    """Peak activation memory of inference for one image: the most numbers that are held at once.

    Operations run one after the other, each into new memory (nothing in place), and a tensor is freed after its last
    reader. Weights are not counted, nor the workspace of a convolution.

    Parameters
    ----------
    model : nn.Module
        Any network that torch.fx can trace, pruned ones too; it is not changed.
    input_size : iterable of int
        (channels, height, width) of one image.

    Returns
    -------
    int
        Numbers; times 4 in bytes, for float32.

    Raises
    ------
    BarError
        If the network cannot be traced, or cannot take the input.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 2))
    >>> peak_activations(net, (3, 6, 6))  # the flattened maps are counted beside the maps: 128 + 128
    256
    """
    size = checked_size(input_size)
    try:
        interpreter = _PeakActivations(symbolic_trace(on_meta(model)))
    except Exception as error:
        raise BarError(f"cannot trace {type(model).__name__} with torch.fx: {error}") from error
    dtype = next((p.dtype for p in model.parameters()), None)
    try:
        interpreter.run(torch.empty(1, *size, device="meta", dtype=dtype))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BarError(f"{type(model).__name__} cannot take an image of size {size}: {reason}") from error
    return interpreter.peak


def volume(network: Network, features: Mapping[str | fx.Node, Tensor]) -> Tensor:
    """Activation volume, given how present each feature is: 0 or 1, or its probability.

    With indicators of E[z] > 0 this is V of eq. 4; with P(z > 0) it is L_S(Phi), the expected volume (section 3.3).

    Parameters
    ----------
    network : Network
        From `bar.network.trace`.
    features : mapping of str to Tensor of shape (features,)
        Convolution -> how present each of its features is, in [0, 1]; all of `network.convs`, on one device. Those of
        depthwise convolutions, and of `network.inside` by its nodes, follow from their inputs, if they are not given;
        what is left whole is then there.

    Returns
    -------
    Tensor
        A scalar >= 0, in values per image; differentiable. Depthwise convolutions count what passes through them.
    """
    total = sum(features[name].sum() * network.area(node) for name, node in network.convs.items())
    follows = [node for node, kind in network.kinds.items() if kind in ("depthwise", "filter")]
    flow = _presence(network, features) if follows else {}
    total = total + _inside(network, features, flow, 0)
    for node in (n for n in follows if network.kinds[n] == "depthwise"):
        total = total + flow[node].sum() * network.area(node)
    return total


def flops(network: Network, features: Mapping[str | fx.Node, Tensor]) -> Tensor:
    """FLOPs of the convolutions, given how present each feature is.

    The expectation for a convolution is its expected number of outputs times that of its inputs, "the feature maps of
    the preceding layer" (section 3.3); where several features are summed into one channel of a residual signal, that
    channel is present unless all of them are missing.

    Parameters
    ----------
    network : Network
        From `bar.network.trace`.
    features : mapping of str to Tensor of shape (features,)
        As for `volume`.

    Returns
    -------
    Tensor
        A scalar >= 0, in FLOPs per image, 2 per multiply-accumulate; differentiable.
    """
    flow = _presence(network, features)
    total = torch.zeros(()) + _inside(network, features, flow, 1)
    for node, kind in network.kinds.items():
        if kind in ("conv", "depthwise"):
            (source,) = network.sources(node)
            outputs = flow[node].view(network.groups(node), -1).sum(1)
            if kind == "depthwise":
                inputs = 1
            elif flow[source] is None:
                inputs = network.features(source) / len(outputs)
            else:
                inputs = flow[source].view(len(outputs), -1).sum(1)
            total = total + flops_of_pair(network, node) * (inputs * outputs).sum()
    return total


def flops_of_pair(network: Network, node: fx.Node) -> int:
    """FLOPs per image of a convolution for one input channel and one feature: 2 per kernel tap and output pixel.

    Of a transposed one, 2 per kernel tap and input pixel.
    """
    conv = network.submodule(node)
    return 2 * conv.weight[0, 0].numel() * network.area(network.sources(node)[0] if conv.transposed else node)


def _inside(
    network: Network, features: Mapping[str | fx.Node, Tensor], flow: Mapping[fx.Node, Tensor | None], which: int
) -> Tensor | int:
    """Volume (0) or FLOPs (1) of the convolutions inside of what is left whole, and of those with constants."""
    total = 0
    for node, work in network.inside.items():
        there = features.get(node, flow.get(node) if network.kinds[node] == "filter" else None)
        total = total + (work[which] if there is None else work[which] * there.mean())
    return total


def _presence(network: Network, features: Mapping[str | fx.Node, Tensor]) -> dict:
    """How present the channels of every node are, in [0, 1]; None where they are always present."""

    def rule(node: fx.Node, inputs: list, passed: Tensor | None) -> Tensor | None:
        if network.kinds[node] == "depthwise" and node.target in features:
            return features[node.target]
        if network.kinds[node] == "depthwise" and passed is None:
            device = next((values.device for values in features.values()), None)
            return torch.ones(network.features(node), device=device)
        return features[node.target] if network.kinds[node] == "conv" else passed

    return follow(network, rule, lambda p, q: p + q - p * q)


METRICS = {"volume": volume, "flops": flops}  # what a budget may limit (section 3.3)


def measure(metric: str) -> Callable[[Network, dict[str, Tensor]], Tensor]:
    """The function of a metric, one of `METRICS`; a BarError if there is no such metric."""
    if metric not in METRICS:
        raise BarError(f"unknown metric {metric!r}: {nearest(str(metric), METRICS)}")
    return METRICS[metric]
