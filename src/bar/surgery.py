"""Gates in, dead features out, mixed connectivity (section 4, figures 3 to 5, supplement 2).

`gate` puts a gate on every convolution of a plain network; `prune` takes the features out whose gates are shut and
returns a plain network again, which computes what the gated one computes in eval mode. Between the two the weights are
the user's own.
"""

import copy
import fnmatch
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from bar import cost
from bar.errors import BarError, nearest
from bar.hard_concrete import FLOOR as FLOOR
from bar.hard_concrete import Gate, HardConcrete
from bar.network import KeepUnread, Network, check_hooks, check_layer, stride_first, trace, undisturbed


class GatedNetwork(nn.Module):
    """A network with a gate on every prunable convolution; made by `gate`, called like the network.

    In training mode a vector of gate values z is drawn anew for each batch, from the hard concrete distribution (eq. 2)
    unless the gates have another law.
    In eval mode z is constant (section 3.1), and 0 for features that cannot matter (`live`).

    Attributes
    ----------
    network : bar.network.Network
        What tracing found.
    body : torch.fx.GraphModule
        The network without its gates. It shares the user's modules, so a state dict of the user's network loads into
        it.
    gates : dict of str to Gate
        Name of a convolution -> its gate. Gates stay in single precision, whatever the network is moved to.
    """

    def __init__(
        self,
        network: Network,
        prunable: Sequence[str],
        make: Callable[[int], nn.Module] = Gate,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.body = network.module
        self._names = tuple(prunable)
        weights = {name: network.submodule(network.convs[name]).weight for name in network.convs}
        self._gates = nn.ModuleList(
            make(len(weights[name])).to(
                weights[name].device,
                torch.promote_types(weights[name].dtype, torch.float32),  # the steps of a gate drown in half precision
            )
            for name in prunable
        )
        self._sizes = [len(weights[name]) for name in prunable]
        self._spine = [name for name in network.spine() if name in self._names]
        self.register_load_state_dict_post_hook(_connect)
        self._watch(() if model is None else (model,))
        self.connect_()

    def _watch(self, model: tuple[nn.Module, ...]) -> None:
        """Note what the user may change behind our back; see `_follow`. In tuples: these are no modules of our own."""
        self._model = model
        self._layers = tuple(
            (name, module, type(module))
            for name in dict.fromkeys(node.target for node in self.body.graph.find_nodes(op="call_module"))
            for module in [self.body.get_submodule(name)]
        )
        self._watched = tuple((name, module) for root in (self.body, *model) for name, module in root.named_modules())

    def _follow(self) -> None:
        """Take over the mode that the user's model has been given since, and refuse what else has been done to it."""
        for name, module, kind in self._layers:
            for root in (self.body, *(() if name in self.network.dropouts else self._model)):
                here = _submodule(root, name)
                if here is not module:
                    raise BarError(
                        f"{name!r} has been replaced by {type(here).__name__} since the gates were put in, which would "
                        "have no effect: change the network first, then call bar.gate on it"
                    )
            if type(module) is not kind or "forward" in vars(module):
                check_layer(name, module)
                raise BarError(f"{name!r} has become {type(module).__name__} since: call bar.gate on the network anew")
        for name, module in self._watched:
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                check_hooks(name, module)
        for model in self._model:
            self.training = model.training
            for name, owner in self.network.dropouts.items():
                self.body.get_submodule(name).training = model.get_submodule(owner).training

    def __getstate__(self) -> dict:
        """Without what `connect_` makes, and without the user's own model, which a copy has nothing to do with."""
        return {k: v for k, v in vars(self).items() if k not in ("_with_gates", "_model", "_layers", "_watched")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._watch(())
        self.connect_()

    @property
    def gates(self) -> dict[str, Gate]:
        """Name of a convolution -> its gate, in order of execution."""
        return dict(zip(self._names, self._gates, strict=True))

    @property
    def log_alpha(self) -> Tensor:
        """All log alpha in one vector, shape (total features,), in the order of `gates`; differentiable.

        Minus infinity for what has been cut.

        Raises
        ------
        BarError
            If the gates are not hard concrete.
        """
        if not isinstance(self._gates[0], Gate):
            raise BarError(f"{type(self._gates[0]).__name__} has no log alpha: this needs hard concrete gates")
        return torch.cat([gate.effective for gate in self._gates])

    @property
    def score(self) -> Tensor:
        """What all features are ranked by, shape (total features,), in the order of `gates`; -inf for what was cut."""
        return torch.cat([gate.score for gate in self._gates])

    def forward(self, images: Tensor) -> Tensor:
        """The network's output for a batch of images, shape (N, channels, height, width)."""
        self._follow()
        if self.training:
            z = self._gates[0].sample(self._gates)
            values = dict(zip(self._names, z.to(images.dtype).split(self._sizes), strict=True))
            for name, node in self.network.convs.items():
                values.setdefault(name, images.new_ones(self.network.features(node)))
        else:
            values = self.values()
        return self._with_gates[0](images, *(values[name] for name in self.network.convs))

    def live(self) -> dict[fx.Node, Tensor]:
        """Which channels of each node of `network` matter in eval mode; see `bar.network.Network.live`."""
        return self.network.live({name: gate.alive for name, gate in self.gates.items()})

    def values(self) -> dict[str, Tensor]:
        """The test-time gate values: convolution -> shape (features,), 0 for what does not matter."""
        keep, gates, values = self.live(), self.gates, {}
        for name, node in self.network.convs.items():
            weight = self.network.submodule(node).weight
            values[name] = keep[node].to(weight.device, weight.dtype)
            if name in gates:
                values[name] = values[name] * gates[name].value.to(weight.device, weight.dtype)
        return values

    def expected(self) -> dict[str, Tensor]:
        """P(z > 0) of every feature: convolution -> shape (features,), differentiable (supp. eq. 5)."""
        return self._per_conv(HardConcrete(self.log_alpha, validate_args=False).prob_active)

    def indicators(self) -> dict[str, Tensor]:
        """Ind(E[z] > 0) of eq. 4 as zeros and ones: convolution -> shape (features,); no wait for the device."""
        return self._per_conv(torch.cat([gate.alive for gate in self._gates]).to(self.score.dtype))

    def _per_conv(self, flat: Tensor) -> dict[str, Tensor]:
        parts = dict(zip(self._names, flat.split(self._sizes), strict=True))
        for name, node in self.network.convs.items():
            parts.setdefault(name, flat.new_ones(self.network.features(node)))
        return {name: parts[name] for name in self.network.convs}

    @torch.no_grad()
    def floor_(self) -> "GatedNetwork":
        """Keep a path open from input to output: hold up the highest log alpha of the spine (section 4.1).

        The spine is the stem and the 1x1 convolution of every pooling block, in a chain every convolution; see
        `bar.network.Network.spine`. Called at every step, it makes fatal pruning impossible.
        """
        gates = self.gates
        for name in self._spine:
            gates[name].floor_()
        return self

    @torch.no_grad()
    def keep_(self, alive: dict[str, Tensor]) -> "GatedNetwork":
        """Open and shut gates for good: those kept let everything through (z = 1), the others nothing.

        Parameters
        ----------
        alive : dict of str to bool Tensor of shape (features,)
            For each gated convolution, which features to keep.
        """
        for name, gate in self.gates.items():
            gate.keep_(alive[name])
        return self

    @torch.no_grad()
    def cut_(self, features: dict[str, Tensor] | None = None) -> "GatedNetwork":
        """Take dead features out for good, while the other gates go on moving.

        A flag in their gate says so (`bar.Gate.cut`): z = 0 always, whatever becomes of log alpha, and nothing is
        computed for them any more, so that a step of training takes less time. In eval mode nothing changes; in
        training mode their noise is missing from now on. Weights keep their names, their size and their place in an
        optimizer.

        Parameters
        ----------
        features : dict of str to bool Tensor of shape (features,), optional
            For each gated convolution, which features to take out; by default all that do not matter (see `live`).

        Raises
        ------
        BarError
            If a feature matters in eval mode.
        """
        live = self.live()
        for name, gate in self.gates.items():
            matters = live[self.network.convs[name]]
            chosen = ~matters if features is None else features[name].cpu()
            if (chosen & matters).any():
                raise BarError(f"feature {int((chosen & matters).nonzero()[0])} of {name!r} is alive: it cannot be cut")
            gate.cut_(chosen)
        self.connect_()
        return self

    @torch.inference_mode(False)  # what is made here is there to be trained
    @torch.no_grad()
    def connect_(self) -> None:
        """Make what `forward` calls: the body with gates, without what has been cut."""
        self._follow()
        there = self.network.live({name: ~gate.cut for name, gate in self.gates.items()})
        body = _rebuild(self.network, there, None, self._gates[0].either)
        self._with_gates = (body.to(self.score.device),)  # in a tuple: its weights are those of the body

    def train(self, mode: bool = True) -> "GatedNetwork":
        """As `torch.nn.Module.train`; the user's model, whose layers these are, changes its mode with it."""
        for model in self._model:
            model.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GatedNetwork":
        """What .to(), .half() and their like call; gates only move, since their steps would drown in half precision."""
        if fn(torch.empty(0)).is_meta:
            raise BarError("a gated network cannot be moved to the meta device, where its gates would have no values")

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            exact = not new.is_floating_point() or torch.promote_types(new.dtype, torch.float32) == new.dtype
            return new if exact else tensor.to(new.device, torch.float32)

        self.body._apply(fn, recurse)
        self._gates._apply(moved, recurse)
        self.connect_()
        return self

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """As `torch.nn.Module.load_state_dict`, but nothing is loaded unless everything fits.

        Raises
        ------
        BarError
            With the first entry that is missing, of another shape, or not expected.
        """
        own = self.state_dict()
        for name, tensor in own.items():
            if name not in state_dict:
                if strict:
                    raise BarError(
                        f"the state dict has no {name!r}: it is another network's. That of the network without gates "
                        "loads into `body`"
                    )
            elif state_dict[name].shape != tensor.shape:
                theirs, mine = tuple(state_dict[name].shape), tuple(tensor.shape)
                raise BarError(f"{name!r} is {theirs} in the state dict and {mine} here: it is another network's")
        unknown = [name for name in state_dict if name not in own]
        if strict and unknown:
            raise BarError(f"the state dict has {unknown[0]!r}, which is not known here: it is another network's")
        return super().load_state_dict(state_dict, strict, assign)

    def _check(self) -> None:
        if any(parameter.isnan().any() for parameter in self._gates.parameters()):
            raise BarError("the gates have entries that are not a number: did the training diverge?")

    def size(self, metric: str = "volume") -> int:
        """Volume or FLOPs that `prune` would leave, exactly: only live features count.

        Parameters
        ----------
        metric : str
            "volume" (numbers per image) or "flops" (per image).
        """
        return self._size({name: gate.alive for name, gate in self.gates.items()}, metric)

    def full(self, metric: str = "volume") -> int:
        """Volume or FLOPs with all features (V_F).

        Parameters
        ----------
        metric : str
            "volume" (numbers per image) or "flops" (per image).
        """
        return self._size({name: torch.ones_like(gate.alive) for name, gate in self.gates.items()}, metric)

    def uncut(self, metric: str = "volume") -> int:
        """Volume or FLOPs of what is still computed while training: all that has not been cut (`cut_`).

        Parameters
        ----------
        metric : str
            "volume" (numbers per image) or "flops" (per image).
        """
        return self._size({name: ~gate.cut for name, gate in self.gates.items()}, metric)

    def _size(self, alive: dict[str, Tensor], metric: str) -> int:
        keep = self.network.live(alive)
        features = {name: keep[node].double() for name, node in self.network.convs.items()}
        return int(cost.METRICS[metric](self.network, features).round())

    def smallest(self, metric: str = "volume") -> int:
        """The least that any pruning leaves: one feature in each convolution of the spine."""
        alive = {name: torch.zeros_like(gate.alive) for name, gate in self.gates.items()}
        for name in self._spine:
            alive[name][0] = True
        return self._size(alive, metric)

    def costs(self) -> dict[str, int]:
        """What `prune` would leave: volume and flops, and volume_regular and flops_regular without mixed connectivity.

        Table 2 compares the two.
        """
        regular = cost.count(prune(self, "regular"), self.network.input_size)
        return {
            "volume": self.size("volume"), "flops": self.size("flops"),
            "volume_regular": regular.volume, "flops_regular": regular.flops,
        }  # fmt: skip

    @torch.no_grad()
    def settle_(self, budget: float, metric: str = "volume", use: float = 0.95) -> "GatedNetwork":
        """Make the budget certain: shut or reopen gates in the order of log alpha until use * B <= size <= B.

        A schedule alone does not end exactly below its budget. If what is alive exceeds it, the gates with the lowest
        log alpha are shut; if it leaves more than 1 - `use` of it idle, those with the highest are reopened. A feature
        that would overshoot is passed over for the next one. Gates of another law have a score of their own for this.

        Parameters
        ----------
        budget : float
            B, in units of `metric`.
        metric : str
            "volume" or "flops".
        use : float
            The part of the budget to use at least, in [0, 1], as far as whole features allow.

        Raises
        ------
        BarError
            If not even one feature per convolution of the spine fits.
        """
        if self.smallest(metric) > budget:
            raise BarError(
                f"the smallest possible {metric} is {self.smallest(metric):,}, above the budget {budget:,.0f}"
            )
        self._check()
        self.floor_()
        if use * budget <= self.size(metric) <= budget:
            return self
        flat, sizes = self.score.cpu().clone(), self._sizes
        for part, name in zip(flat.split(sizes), self._names, strict=True):
            if name in self._spine:
                part[part.argmax()] = torch.inf
        order = flat.argsort(descending=True, stable=True)
        order = order[flat[order] > -torch.inf]  # what has been cut stays out
        alive = torch.zeros(len(flat), dtype=torch.bool)

        def parts(alive: Tensor) -> dict[str, Tensor]:
            return dict(zip(self._names, alive.split(sizes), strict=True))

        def size(alive: Tensor) -> int:
            return self._size(parts(alive), metric)

        def lean(alive: Tensor, index: Tensor) -> Tensor:
            """With one more feature, and of those that only this one might bring to life, one a convolution."""
            live = self.network.live(parts(alive))
            idle = alive & ~torch.cat([live[self.network.convs[name]] for name in self._names])
            for part, score in zip(idle.split(sizes), flat.split(sizes), strict=True):
                if part.any():
                    part[score.masked_fill(~part, -torch.inf).argmax()] = False
            return (alive & ~idle).index_fill(0, index, True)

        fits, over = len(self._spine), len(order) + 1  # the size grows with every feature, so bisect
        while over - fits > 1:
            middle = (fits + over) // 2
            alive.zero_()[order[:middle]] = True
            fits, over = (middle, over) if size(alive) <= budget else (fits, middle)
        alive.zero_()[order[:fits]] = True
        for index in torch.cat([order[fits + 1 :], order]):  # twice, since `lean` leaves some out
            if size(alive) >= use * budget:
                break
            wider = alive.index_fill(0, index, True)
            alive = next((one for one in (wider, lean(alive, index)) if size(one) <= budget), alive)

        for part, gate in zip(alive.split(sizes), self._gates, strict=True):
            gate.settle_(part)
        return self


def _connect(gated: GatedNetwork, _: object) -> None:
    """A hook of `torch.nn.Module.load_state_dict`; a function of the module, so that it can be pickled."""
    gated.connect_()


def _submodule(root: nn.Module, name: str) -> nn.Module | None:
    """The module of a name, None if there is none; without `torch.nn.Module.get_submodule`'s checks."""
    for part in name.split("."):
        root = root._modules.get(part)
        if root is None:
            return None
    return root


@torch.inference_mode(False)  # gates are there to be trained
def gate(
    model: nn.Module,
    input_size: Iterable[int],
    protect: Sequence[str] = (),
    rule: str = "median",
    make: Callable[[int], nn.Module] | None = None,
) -> GatedNetwork:
    """Put a gate on every convolution of a plain network.

    A gate multiplies the features of its convolution, after the batch norm that reads it where there is one. A batch
    norm further down, one that reads a residual signal or a depthwise convolution, would normalise the gate away and
    revive dead features by its shift; what it puts out is therefore gated again, by how present its input is (1 minus
    the chance that all features summed into it are missing).

    The start of the gates follows from the state of torch's global generator, which is left as it is: after the same
    `torch.manual_seed` it is the same, and what is drawn afterwards does not depend on whether there were gates.

    What is done to the model later has its effect on the gated network, too, or is refused at the next step: its mode
    (`model.eval()`) and its weights have, a module that is replaced and a hook are refused.

    Parameters
    ----------
    model : nn.Module
        A plain CNN. Its modules are shared, not copied: training the gated network, or moving it, trains or moves it.
    input_size : iterable of int
        (channels, height, width) of one image.
    protect : sequence of str
        Names of convolutions that must keep all their features, or patterns such as ``"layer1.*"``.
    rule : str
        Test-time value of a gate, see `bar.hard_concrete.Gate`.
    make : callable, optional
        Makes the gate for a number of features, such as `bar.methods.information_bottleneck.GaussianGate`; by default
        a `bar.Gate` with this rule.

    Returns
    -------
    GatedNetwork

    Raises
    ------
    BarError
        If the network cannot be followed (see `bar.network.trace`), a name is not that of a convolution, or a weight is
        not a number, or has no value because it is on the meta device.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> gated = gate(net, (3, 6, 6))
    >>> gated.gates
    {'0': Gate(8, alive=8, rule='median'), '2': Gate(4, alive=4, rule='median')}
    >>> gated.gates["0"].log_alpha.data[3:] = -5
    >>> prune(gated)
    Pruned(
      (0): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
      (2): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
      (3): Flatten(start_dim=1, end_dim=-1)
      (4): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    network = trace(model, input_size)
    for pattern in protect:
        if not fnmatch.filter(network.convs, pattern):
            raise BarError(f"no convolution {pattern!r} to protect: {nearest(pattern, network.convs)}")
    unread = {node.target for node in network.module.graph.find_nodes(op="get_attr") if not node.users}
    for name, tensor in network.module.state_dict().items():
        if tensor.is_meta:
            raise BarError(f"{name} is on the meta device and has no values: give the model its weights first")
        if name not in unread and tensor.is_floating_point() and tensor.isnan().any():
            raise BarError(f"{name} has entries that are not a number")
    spine = network.spine()
    # A floor of one feature would not do where a group may read none of it: such convolutions keep everything.
    whole = {n for n, reader in itertools.pairwise([*spine, *spine[-1:]]) for name in (n, reader)
             if network.groups(network.convs[name]) > 1}  # fmt: skip
    prunable = [
        name
        for name, node in network.convs.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in protect)
        and name not in whole
        and not _reaches_output(network, node)
    ]
    if not prunable:
        raise BarError(f"{type(model).__name__} has no convolution that can be pruned")
    with undisturbed():
        # Of the generator's state, but not the numbers that the caller will draw next.
        torch.default_generator.manual_seed(int(torch.randint(2**62, ())))
        return GatedNetwork(network, prunable, make or functools.partial(Gate, rule=rule), model)


def _reaches_output(network: Network, node: fx.Node) -> bool:
    """Whether a convolution's features are the network's own outputs (no convolution or linear layer in between)."""
    return any(
        network.kinds.get(user) == "output"
        or (network.kinds.get(user) not in (None, "conv", "linear") and _reaches_output(network, user))
        for user in node.users
    )


@torch.inference_mode(False)  # the result may be fine-tuned
@torch.no_grad()
def prune(gated: GatedNetwork, connectivity: str = "mixed") -> fx.GraphModule:
    """Take the dead features out: a smaller plain network with the output of the gated one in eval mode.

    Surviving gate values are folded into the weights that follow or precede them, so that nothing is sampled any more.
    Blocks without a live feature leave no trace ("automatic depth determination", section 4.1).

    Parameters
    ----------
    gated : GatedNetwork
        Gates decide what stays; it is not changed, and no weight is shared with the result.
    connectivity : str
        "mixed": a sum of signals with different features adds where both have one, and passes on or concatenates the
        rest (figure 4, supp. 2). "regular": all summands compute every feature that any of them has (figure 5a), which
        is what an ordinary residual network needs.

    Returns
    -------
    torch.fx.GraphModule
        Plain modules and plain torch operations, in the mode (train or eval) of the gated network; a layer has the mode
        of the one it comes from, and what was frozen stays frozen; buffers that no forward reads are kept.
        `print(net.code)` shows how they are called. It can be gated again only where no sum or branch needed channels
        picked by an index: to prune in steps, shut more gates of the same gated network.

    Raises
    ------
    BarError
        If no signal can pass from input to output, or the kind of connectivity is unknown.
    """
    if connectivity not in ("mixed", "regular"):
        raise BarError(f"unknown connectivity {connectivity!r}: {nearest(connectivity, ['mixed', 'regular'])}")
    gated._follow()
    gated._check()
    network, values, keep = gated.network, gated.values(), gated.live()
    heads = [n for n, kind in network.kinds.items() if kind in ("linear", "output")]
    if not all(keep[n].any() for n in heads):  # a linear layer without input would lose its bias, too
        raise BarError("fatal pruning: every path from input to output crosses a convolution without a live feature")
    if connectivity == "regular":
        keep = _same_width(network, keep, _spaces(network))
    pruned = _rebuild(network, keep, values, gated._gates[0].either)
    modes = {m: m.training for m in pruned.modules() if type(m) is not nn.Module}  # those are mere names of layers
    pruned.train(gated.training)
    for module, mode in modes.items():
        module.training = mode
    pruned.training = gated.training
    return pruned.to(next(gated.body.parameters()).device)


def _rebuild(
    network: Network, keep: dict[fx.Node, Tensor], values: dict[str, Tensor] | None, either: Callable
) -> fx.GraphModule:
    """The network without the channels that are not kept, and with the gates in its weights.

    A gate scales what comes before it: the batch norm's weight and bias, or those of a convolution without one. With
    gate values, layers are smaller copies with the values folded in. Without, gates are inputs, ``(images, *z)`` with
    one z of shape (features,) for each convolution, and layers compute with what is kept of the network's weights.
    `either` says how present a sum is (`bar.Gate.either`).
    """
    order = _order(network, keep, _spaces(network))
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    root: dict[str, nn.Module | Tensor] = {}
    held: dict[fx.Node, tuple[fx.Node, Tensor]] = {}  # node -> its twin, and the original channels that it holds
    presence: dict = {}  # node -> how present its original channels are: numbers, or what will compute them
    fold = values is not None
    z: dict = dict(values or {})
    called = [node.target for node in network.kinds if node.op == "call_module"]
    taken = {name.split(".")[0] for name, _ in network.module.named_modules()}
    taken |= {node.target for node in network.kinds if node.op == "get_attr"}
    learns: dict[fx.Node, bool] = {}  # whether anything that a node computes with is trained

    def index(channels: Tensor) -> fx.Node:
        name = f"index_{sum(isinstance(v, Tensor) for v in root.values())}"
        while name in taken:
            name += "_"
        root[name] = channels
        return graph.get_attr(name)

    def module(name: str, new: nn.Module, source: fx.Node, scale=None) -> fx.Node:
        root[name] = new
        gates = () if fold or scale is None else (scale.node,)
        return graph.call_module(name, (source, *gates))

    def convolution(old: nn.Conv2d, outputs: Tensor, inputs: Tensor, scale, depthwise: bool = False) -> nn.Module:
        if fold:
            return _smaller_conv(old, outputs, inputs, scale, depthwise)
        return _PartOfConv(old, _empty_conv(old, outputs, inputs, depthwise), outputs, None if depthwise else inputs)

    for node, kind in network.kinds.items():
        sources = network.sources(node)
        old = network.submodule(node) if node.op == "call_module" else None
        own = [p.requires_grad for p in old.parameters()] if old is not None else []
        learns[node] = any(own) or any(learns[n] for n in sources)
        if kind in ("input", "conv", "linear", "output"):
            presence[node] = z.get(node.target) if kind == "conv" and not network.normed(node) else None
        elif kind == "norm" and network.kinds[sources[0]] == "conv" and network.normed(sources[0]):
            presence[node] = z[sources[0].target]
        elif kind == "add":
            p, q = (presence[n] for n in sources)
            presence[node] = None if p is None or q is None else either(p, q)
        else:
            presence[node] = network.presence(node, [presence[n] for n in sources])
        scale = presence[node]

        if node.op == "get_attr":
            owner = node.target.rpartition(".")[0]
            if not node.users and _within(owner, called) and not _within(owner, root):
                continue  # a layer or block that has gone takes along what nobody reads
            tensor = operator.attrgetter(node.target)(network.module)
            root[node.target] = copy.deepcopy(tensor) if fold else tensor
            held[node] = graph.get_attr(node.target), torch.arange(network.features(node))
            continue
        if kind == "input":
            held[node] = graph.placeholder(node.target), torch.arange(network.features(node))
            prefix = "gate_" if node.target.startswith("z") else "z"  # the user's parameter may be called z0
            for i, name in enumerate(network.convs if not fold else ()):
                z[name] = fx.Proxy(graph.placeholder(f"{prefix}{i}"), tracer)
            continue
        parts = [held[n] for n in sources if n in held]
        if not keep[node].any() or not parts:
            continue
        twin, have = parts[0]
        if kind in ("norm", "channelwise", "depthwise") and not keep[node][_inputs_of(network, node, have)].all():
            chosen = keep[node][_inputs_of(network, node, have)].nonzero().flatten()
            twin, have = graph.call_function(torch.index_select, (twin, 1, index(chosen))), have[chosen]

        if kind == "conv":
            stays = order[node]
            if old.groups == 1:
                held[node] = module(node.target, convolution(old, stays, have, scale), twin, scale), stays
                continue
            # A grouped convolution whose groups keep different numbers of features becomes one convolution a group.
            group = have // (old.in_channels // old.groups)
            parts = []
            for g in group.unique().tolist():
                mine = stays[stays // (old.out_channels // old.groups) == g]
                if len(mine):
                    read = graph.call_function(torch.index_select, (twin, 1, index((group == g).nonzero().flatten())))
                    inputs = have[group == g] - g * (old.in_channels // old.groups)
                    part = module(f"{node.target}.{g}", convolution(old, mine, inputs, scale), read, scale)
                    parts.append((part, mine))
            twins, stays = [t for t, _ in parts], torch.cat([mine for _, mine in parts])
            held[node] = (twins[0] if len(twins) == 1 else graph.call_function(torch.cat, (twins, 1))), stays
        elif kind == "depthwise":
            stays = (have[:, None] * (old.out_channels // old.in_channels)
                     + torch.arange(old.out_channels // old.in_channels)).flatten()  # fmt: skip
            scale = scale if network.shifts(node) else None
            new = convolution(old, stays, have, scale, depthwise=True)
            held[node] = module(node.target, new, twin, scale), stays
        elif kind == "norm":
            new = _smaller_norm(old, have, scale, learns[node]) if fold else _PartOfNorm(old, have)
            held[node] = module(node.target, new, twin, scale), have
        elif kind == "linear":
            new = _smaller_linear(old, have) if fold else _PartOfLinear(old, have)
            held[node] = module(node.target, new, twin), torch.arange(old.out_features)
        elif kind == "add":
            # What ran first is the base: its channels come first in `_order`, too, so later sums need no gathering.
            parts = [held[n] for n in sorted(sources, key=list(network.kinds).index) if n in held]
            held[node] = parts[0] if len(parts) == 1 else _mixed_add(graph, index, *parts)
        elif kind == "cat":
            widths = [network.features(n) for n in sources]
            starts = torch.tensor([0, *widths]).cumsum(0)
            offset = [start for n, start in zip(sources, starts.tolist(), strict=False) if n in held]
            channels = torch.cat([h + start for (_, h), start in zip(parts, offset, strict=True)])
            twins = [t for t, _ in parts]
            held[node] = (twins[0] if len(twins) == 1 else graph.call_function(torch.cat, (twins, 1))), channels
        elif kind == "opaque":
            if old is not None:
                root[node.target] = copy.deepcopy(old) if fold else old
            new = graph.node_copy(node, lambda n: held[n][0])
            held[node] = new, torch.arange(network.features(node))
        elif kind == "output":
            graph.output(twin)
        else:  # channelwise and flatten keep what they do
            if kind == "flatten":
                pixels = network.features(node) // network.features(sources[0])
                have = (have[:, None] * pixels + torch.arange(pixels)).flatten()
            # Not in place: a block that has gone leaves its input and its output one and the same tensor.
            if old is not None:
                new = copy.deepcopy(old) if fold else _OutOfPlace(old) if hasattr(old, "inplace") else old
                if fold and hasattr(new, "inplace"):
                    new.inplace = False
                held[node] = module(node.target, new, twin), have
            else:
                new = graph.node_copy(node, lambda _, twin=twin: twin)
                if "inplace" in new.kwargs:
                    new.kwargs = {**new.kwargs, "inplace": False}
                if new.op == "call_method":
                    new.target = new.target.removesuffix("_")
                held[node] = new, have

    new = fx.GraphModule(root, graph, class_name="Pruned" if fold else "Gated")
    for node in new.graph.find_nodes(op="get_attr"):  # torch.fx makes all buffers persistent
        owner, _, name = node.target.rpartition(".")
        old = _submodule(network.module, owner) if owner else network.module
        if old is not None and name in old._non_persistent_buffers_set:
            new.get_submodule(owner)._non_persistent_buffers_set.add(name)
        if not node.users:
            new._tracer_cls = KeepUnread
    return stride_first(new)


def _within(owner: str, names: Iterable[str]) -> bool:
    """Whether one of the names is that of a module, or of a part of it; of the network itself none is."""
    return bool(owner) and any(f"{name}.".startswith(f"{owner}.") for name in names)


def _inputs_of(network: Network, node: fx.Node, have: Tensor) -> Tensor:
    """For each channel that the input of a node holds, a channel of the node's output that depends on it."""
    multiplier = network.features(node) // network.features(network.sources(node)[0])
    return have * multiplier if network.kinds[node] == "depthwise" else have


def _spaces(network: Network) -> dict[fx.Node, int]:
    """Number the signals: nodes with the same number hold the same channels, because sums join them."""
    space: dict[fx.Node, int] = {}
    for i, (node, kind) in enumerate(network.kinds.items()):
        sources = network.sources(node)
        space[node] = i
        if kind in ("norm", "channelwise", "add") or (
            kind == "depthwise" and network.features(node) == network.features(sources[0])
        ):
            joined = {space[n] for n in sources}
            space[node] = min(joined)
            space = {n: min(joined) if s in joined else s for n, s in space.items()}
    return space


def _same_width(network: Network, keep: dict[fx.Node, Tensor], spaces: dict[fx.Node, int]) -> dict[fx.Node, Tensor]:
    """Widen what is live so that all parts of a signal have the same channels, except those that have none at all."""
    union: dict[int, Tensor] = {}
    for node, k in keep.items():
        union[spaces[node]] = union.get(spaces[node], torch.zeros_like(k)) | k
    return {node: union[spaces[node]] if k.any() else k for node, k in keep.items()}


def _order(network: Network, keep: dict[fx.Node, Tensor], spaces: dict[fx.Node, int]) -> dict[fx.Node, Tensor]:
    """For each convolution, the features it keeps, in an order that makes sums cheap.

    Channels of a residual signal are ordered by the first convolution that writes them, so that what a block reads is a
    prefix of the signal. Within that order every writer in turn puts what it refines next to each other, as in a Gray
    code: refined channels go to the end of one stretch and to the start of the next, and to the end of the last, where
    the writer's new channels follow. Two writers then always meet in one slice; each further one at most doubles it.
    """
    writers: dict[int, list[fx.Node]] = {}
    for node in network.convs.values():
        writers.setdefault(spaces[node], []).append(node)
    order = {}
    for nodes in writers.values():
        unborn = torch.ones_like(keep[nodes[0]])
        stretches: list[Tensor] = []
        for n in nodes:
            split: list[Tensor] = []
            for i, channels in enumerate(reversed(stretches)):
                parts = [channels[keep[n][channels]], channels[~keep[n][channels]]]  # from the end of the signal
                split += parts if i % 2 == 0 else parts[::-1]
            stretches = [s for s in [*reversed(split), (keep[n] & unborn).nonzero().flatten()] if len(s)]
            unborn = unborn & ~keep[n]
        rank = torch.cat([*stretches, torch.empty(0, dtype=torch.long)])
        for n in nodes:
            order[n] = rank[keep[n][rank]]
    return order


_SLICES = 3  # up to so many, a sum is made of slices; with more, index_add copies less


def slices(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """Group pairs (place, entry) into stretches (first place, first entry, length) in which both count up.

    Examples
    --------
    >>> slices([(4, 0), (5, 1), (6, 2), (1, 3), (2, 4)])
    [(4, 0, 3), (1, 3, 2)]
    """
    found: list[tuple[int, int, int]] = []
    for place, entry in pairs:
        if found and (place, entry) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((place, entry, 1))
    return found


def _mixed_add(graph: fx.Graph, index, first: tuple[fx.Node, Tensor], second: tuple[fx.Node, Tensor]):
    """Add two signals that hold different channels: figure 4's cases, and their mixture (supp. 2).

    Where both have a channel the values are summed; the rest of either is passed on. The result holds the first
    signal's channels in their order, then the new ones of the second.
    """
    (base, have), (delta, refined) = first, second
    if torch.equal(have, refined):
        return graph.call_function(operator.add, (base, delta)), have
    where = {c: i for i, c in enumerate(have.tolist())}
    common = [i for i, c in enumerate(refined.tolist()) if c in where]
    new = [i for i, c in enumerate(refined.tolist()) if c not in where]

    def take(node: fx.Node, start: int, stop: int, width: int) -> fx.Node:
        return (
            node if (start, stop) == (0, width) else graph.call_function(torch.narrow, (node, 1, start, stop - start))
        )

    if common + new != list(range(len(refined))):
        delta = graph.call_function(torch.index_select, (delta, 1, index(torch.tensor(common + new))))
    target = [where[c] for c in refined[common].tolist()]
    stretches = slices((place, entry) for entry, place in enumerate(target))
    pieces, end = [], 0
    if target == sorted(target) and len(stretches) <= _SLICES:
        for place, entry, length in stretches:
            pieces += [take(base, end, place, len(have))] if place > end else []
            end = place + length
            shared = take(delta, entry, entry + length, len(refined))
            pieces.append(graph.call_function(operator.add, (take(base, place, end, len(have)), shared)))
        pieces += [take(base, end, len(have), len(have))] if end < len(have) else []
    else:
        shared = take(delta, 0, len(common), len(refined))
        pieces = [graph.call_function(torch.index_add, (base, 1, index(torch.tensor(target)), shared))]
    if new:
        pieces.append(take(delta, len(common), len(refined), len(refined)))
    out = pieces[0] if len(pieces) == 1 else graph.call_function(torch.cat, (pieces, 1))
    return out, torch.cat([have, refined[new]])


# New layers are made on the meta device, where no numbers are drawn for weights that are replaced anyway.


def _filled(new: nn.Module, old: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """A new module of the meta device with these parameters and buffers, in the mode of an old one and as frozen."""
    for name, tensor in tensors.items():
        if tensor is not None:
            mine, its = getattr(new, name), getattr(old, name)
            filled = torch.empty_like(mine, device=tensor.device).copy_(tensor)
            if isinstance(mine, nn.Parameter):
                filled = nn.Parameter(filled, mine.requires_grad if its is None else its.requires_grad)
            setattr(new, name, filled)
    return new.train(old.training)


def _empty_conv(old: nn.Conv2d, outputs: Tensor, inputs: Tensor, depthwise: bool = False) -> nn.Conv2d:
    """A convolution from the channels `inputs` to the features `outputs`, on the meta device."""
    return nn.Conv2d(
        len(inputs), len(outputs), old.kernel_size, old.stride, old.padding, old.dilation,
        len(inputs) if depthwise else 1, old.bias is not None, old.padding_mode, "meta", old.weight.dtype,
    )  # fmt: skip


def _smaller_conv(
    old: nn.Conv2d, outputs: Tensor, inputs: Tensor, scale: Tensor | None, depthwise: bool = False
) -> nn.Conv2d:
    """The same with its weights, gate values folded in."""
    new = _empty_conv(old, outputs, inputs, depthwise)
    factor = torch.ones_like(old.weight[:, 0, 0, 0]) if scale is None else scale
    weight = old.weight[outputs] if depthwise else old.weight[outputs][:, inputs]
    bias = None if old.bias is None else old.bias[outputs] * factor[outputs]
    return _filled(new, old, weight=weight * factor[outputs, None, None, None], bias=bias)


def _smaller_linear(old: nn.Linear, inputs: Tensor) -> nn.Linear:
    new = nn.Linear(len(inputs), old.out_features, old.bias is not None, "meta", old.weight.dtype)
    return _filled(new, old, weight=old.weight[:, inputs], bias=old.bias)


def _smaller_norm(old: nn.BatchNorm2d, channels: Tensor, scale: Tensor | None, learns: bool) -> nn.BatchNorm2d:
    affine, track, weight, bias = old.affine or scale is not None, old.track_running_stats, None, None
    like = next((t for t in (old.weight, scale, old.running_mean) if t is not None), torch.empty(0))
    new = nn.BatchNorm2d(len(channels), old.eps, old.momentum, affine, track, "meta", like.dtype)
    if affine:
        new.requires_grad_(learns)  # unless it has been said of the old one
        factor = torch.ones_like(like) if scale is None else scale
        weight = old.weight if old.affine else torch.ones_like(factor)
        bias = old.bias if old.affine else torch.zeros_like(factor)
        weight, bias = (weight * factor)[channels], (bias * factor)[channels]
    mean, var = (old.running_mean[channels], old.running_var[channels]) if track else (None, None)
    return _filled(new, old, weight=weight, bias=bias, running_mean=mean, running_var=var,
                   num_batches_tracked=old.num_batches_tracked if track else None)  # fmt: skip


# While gates move, layers compute with those of the network's own weights that have not been cut, times their gates:
# parameters keep their names, their size and their place in an optimizer, and no feature map is gone through once more.


class _PartOfConv(nn.Module):
    """Some features of a convolution, from some of its inputs."""

    def __init__(self, whole: nn.Conv2d, smaller: nn.Conv2d, outputs: Tensor, inputs: Tensor | None) -> None:
        super().__init__()
        self.whole = whole
        self._options = (smaller,)  # in a tuple: it has no weights to be found
        self.register_buffer("outputs", _some(outputs, whole.weight.shape[0]))
        self.register_buffer("inputs", None if inputs is None else _some(inputs, whole.weight.shape[1]))

    @property
    def options(self) -> nn.Conv2d:
        """Stride, padding and the like, as those of a convolution without weights."""
        return self._options[0]

    def forward(self, signal: Tensor, z: Tensor | None = None) -> Tensor:
        weight = _select(_select(self.whole.weight, self.outputs), self.inputs, 1)
        bias = _select(self.whole.bias, self.outputs)
        if z is not None:
            z = _select(z, self.outputs)
            weight, bias = weight * z[:, None, None, None], None if bias is None else bias * z
        return self.options._conv_forward(signal, weight, bias)


class _PartOfNorm(nn.Module):
    """Some channels of a batch norm; the running statistics of the others stay as they are."""

    def __init__(self, whole: nn.BatchNorm2d, channels: Tensor) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("channels", _some(channels, whole.num_features))

    def forward(self, signal: Tensor, z: Tensor | None = None) -> Tensor:
        whole, channels = self.whole, self.channels
        tensors = (whole.running_mean, whole.running_var, whole.weight, whole.bias)
        mean, var, weight, bias = (_select(tensor, channels) for tensor in tensors)
        if z is not None:
            z = _select(z, channels)
            weight, bias = z if weight is None else weight * z, torch.zeros_like(z) if bias is None else bias * z
        watched, momentum = whole.training and mean is not None, whole.momentum
        if watched:
            whole.num_batches_tracked.add_(1)
            momentum = 1 / float(whole.num_batches_tracked) if momentum is None else momentum
        batch = whole.training or mean is None
        out = nn.functional.batch_norm(signal, mean, var, weight, bias, batch, momentum or 0.0, whole.eps)
        if watched and channels is not None:
            whole.running_mean[channels], whole.running_var[channels] = mean, var
        return out


class _OutOfPlace(nn.Module):
    """A layer of the user's, with the options and the mode that it has at the time, but not in place."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, signal: Tensor) -> Tensor:
        layer = self.whole
        if layer.inplace:
            layer = copy.copy(layer)  # a shallow one
            layer.inplace = False
        return layer(signal)


class _PartOfLinear(nn.Module):
    """A linear layer on some of its inputs."""

    def __init__(self, whole: nn.Linear, inputs: Tensor) -> None:
        super().__init__()
        self.whole = whole
        self.register_buffer("inputs", _some(inputs, whole.in_features))

    def forward(self, signal: Tensor) -> Tensor:
        return nn.functional.linear(signal, _select(self.whole.weight, self.inputs, 1), self.whole.bias)


def _some(channels: Tensor, width: int) -> Tensor | None:
    """Channels to select, or None if they are all, in their order."""
    return None if torch.equal(channels, torch.arange(width)) else channels


def _select(tensor: Tensor | None, channels: Tensor | None, dim: int = 0) -> Tensor | None:
    return tensor if tensor is None or channels is None else tensor.index_select(dim, channels)
