"""A network with gates, which says at any time what pruning would leave of it (sections 3.3 and 4)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from bar import cost
from bar.errors import BarError
from bar.gates import Gate
from bar.hard_concrete import HardConcrete
from bar.network import Network
from bar.surgery.layers import Gated
from bar.surgery.loading import check_fits, masks_for
from bar.surgery.pruning import prune
from bar.surgery.rewiring import rewire
from bar.surgery.settling import hold, settled, smallest
from bar.surgery.watching import Watch


class GatedNetwork(nn.Module):
    """A network with a gate on every prunable convolution; made by `gate`, called like the network.

    In training mode the gate values z are drawn anew for each batch: from the hard concrete distribution (eq. 2), or
    from that of another kind of gate. In eval mode z is constant (section 3.1), and 0 for features that are not live
    (`live`).

    Attributes
    ----------
    network : bar.network.Network
        What tracing found.
    body : torch.fx.GraphModule
        The network without its gates. It shares the user's modules, so a state dict of the user's network loads into
        it.
    gates : dict of str to Gate
        Name of a convolution -> its gate. Gates stay in single precision, whatever the network is moved to.
    spine : tuple of str
        Gated convolutions of which a feature is kept alive, see `floor_`.
    """

    def __init__(
        self,
        network: Network,
        prunable: Sequence[str],
        gate_factory: Callable[[int], nn.Module] = Gate,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.body = network.module
        self._names = tuple(prunable)
        weights = {name: network.submodule(network.convs[name]).weight for name in network.convs}
        self._gates = nn.ModuleList(
            gate_factory(network.features(network.convs[name])).to(
                weights[name].device,
                torch.promote_types(weights[name].dtype, torch.float32),  # half precision rounds gate updates to 0
            )
            for name in prunable
        )
        self._sizes = [network.features(network.convs[name]) for name in prunable]
        self.spine = tuple(name for name in network.spine() if name in self._names)
        self._crosses = network.crosses()
        self.register_load_state_dict_post_hook(_connect)
        self._watch = Watch(network, model)
        self.connect_()

    def _follow(self) -> None:
        """Adopt the mode and the tensors that the user's model has by now, and refuse any other change to it."""
        if self._watch.check(*self._with_gates):
            self.connect_()
        self.training = self._watch.mode(self.training)

    def __getstate__(self) -> dict:
        """Without what `connect_` makes, and without the user's own model, of which a copy is independent."""
        return {k: v for k, v in vars(self).items() if k not in ("_with_gates", "_watch")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._watch = Watch(self.network, None)
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

    def forward(self, *inputs: Tensor, **named: Tensor):
        """The network's output for a batch of images, shape (N, channels, height, width), or for several inputs."""
        self._follow()
        inputs = self.network.in_order(inputs, named)
        images = next((x for x in inputs if x.is_floating_point()), self._gates[0].score)
        if self.training:
            z = self._gates[0].sample(self._gates)
            values = dict(zip(self._names, z.to(images.dtype).split(self._sizes), strict=True))
            for name, node in self.network.convs.items():
                values.setdefault(name, images.new_ones(self.network.features(node)))
        else:
            values = self.values()
        return self._with_gates[0](*inputs, *(values[name] for name in self.network.convs))

    @property
    def whole(self) -> dict[str, str]:
        """What is left whole, by its place in the network -> why; what flows into it keeps all its features."""
        return self.network.whole

    def extra_repr(self) -> str:
        if not self.whole:
            return ""
        share = f"{1 - self.smallest() / max(self.full(), 1):.0%} of the volume can still go"
        return "\n".join([*(f"left whole: {place} {why}" for place, why in self.whole.items()), share])

    def live(self) -> dict[fx.Node, Tensor]:
        """Which channels of each node are live in eval mode: node -> bool, shape (channels,); see `Network.live`."""
        return self.network.live({name: gate.alive for name, gate in self.gates.items()})

    def values(self) -> dict[str, Tensor]:
        """The test-time gate values: convolution -> shape (features,), 0 for what is not live; 1 without a gate."""
        keep, gates, values = self.live(), self.gates, {}
        for name, node in self.network.convs.items():
            weight = self.network.submodule(node).weight
            values[name] = keep[node].to(weight.device, weight.dtype)
            if name in gates:
                values[name] = values[name] * gates[name].value.to(weight.device, weight.dtype)
        return values

    def expected(self) -> dict[str, Tensor]:
        """P(z > 0) of every feature (supp. eq. 5), 1 for those without a gate.

        Returns
        -------
        dict of str to Tensor of shape (features,)
            Name of a convolution -> probabilities in [0, 1], differentiable in log alpha.

        Raises
        ------
        BarError
            If the gates are not hard concrete.
        """
        return self._per_conv(HardConcrete(self.log_alpha, validate_args=False).prob_active)

    def indicators(self) -> dict[str, Tensor]:
        """Ind(E[z] > 0) of eq. 4 as zeros and ones: convolution -> shape (features,); without synchronization."""
        return self._per_conv(torch.cat([gate.alive for gate in self._gates]).to(self.score.dtype))

    def _per_conv(self, flat: Tensor) -> dict[str, Tensor]:
        parts = dict(zip(self._names, flat.split(self._sizes), strict=True))
        for name, node in self.network.convs.items():
            parts.setdefault(name, flat.new_ones(self.network.features(node)))
        return {name: parts[name] for name in self.network.convs}

    @torch.no_grad()
    def floor_(self) -> "GatedNetwork":
        """Keep a path open from input to output: on the spine, keep the gates with the highest scores (section 4.1).

        The spine is the stem and the 1x1 convolution of every pooling block, in a chain every convolution; see
        `bar.network.Network.spine`. Called at every step, it makes fatal pruning impossible.

        Returns
        -------
        GatedNetwork
            This network, changed in place.
        """
        gates = self.gates
        for name in self.spine:
            gates[name].floor_()
        if self._crosses:
            hold(self)
        return self

    @torch.no_grad()
    def keep_(self, alive: dict[str, Tensor]) -> "GatedNetwork":
        """Open some gates fully (z = 1) and shut all others (z = 0).

        Training may move the gates on from there. What has been cut (`cut_`) stays cut.

        Parameters
        ----------
        alive : dict of str to bool Tensor of shape (features,)
            For every gated convolution, which features to keep; a BarError if they do not fit.

        Returns
        -------
        GatedNetwork
            This network, changed in place.

        Examples
        --------
        >>> import bar
        >>> gated = bar.gate(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 2)), (1, 6, 6))
        >>> gated.keep_({"0": torch.tensor([True, False, False, True])}).gates["0"].alive
        tensor([ True, False, False,  True])
        """
        for name, mask in masks_for(self.gates, alive).items():
            self.gates[name].keep_(mask)
        return self

    @torch.no_grad()
    def cut_(self, features: dict[str, Tensor] | None = None) -> "GatedNetwork":
        """Cut dead features: remove them for good, while training goes on with the others.

        Their gates are marked (`bar.Gate.cut`): z = 0 always, whatever becomes of log alpha. Nothing is computed for
        them any more, so a step of training takes less time. In eval mode the output stays the same. In training mode
        it does not: before, the noise of a gate could let a dead feature through. All weights keep their names, their
        shapes and their places in an optimizer.

        Parameters
        ----------
        features : dict of str to bool Tensor of shape (features,), optional
            For every gated convolution, which features to cut; by default all that are not live (see `live`).

        Returns
        -------
        GatedNetwork
            This network, changed in place.

        Raises
        ------
        BarError
            If a feature is live in eval mode, or the tensors do not fit; nothing is cut then.

        Examples
        --------
        >>> import bar
        >>> gated = bar.gate(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 2)), (1, 6, 6))
        >>> gated.keep_({"0": torch.arange(8) < 3}).uncut()  # training still computes all 8 features
        128
        >>> gated.cut_().uncut()
        48
        """
        live = self.live()
        live = {name: live[self.network.convs[name]] for name in self.gates}
        chosen = {name: ~k for name, k in live.items()} if features is None else masks_for(self.gates, features)
        for name, dead in chosen.items():  # before anything is cut
            if len(wrong := (dead.cpu() & live[name]).nonzero()):
                raise BarError(f"feature {int(wrong[0])} of {name!r} is live: it cannot be cut")
        for name, gate in self.gates.items():
            gate.cut_(chosen[name])
        self.connect_()
        return self

    @torch.inference_mode(False)  # what is made here is there to be trained
    @torch.no_grad()
    def connect_(self) -> None:
        """Rebuild what `forward` calls, the body with gates, without what has been cut; after `Gate.cut` changed."""
        self._watch.check(model_too=True)
        self.training = self._watch.mode(self.training)
        there = self.network.live({name: ~gate.cut for name, gate in self.gates.items()})
        body = rewire(self.network, there, Gated(), {}, self._gates[0].union)
        self._with_gates = (body.to(self.score.device),)  # in a tuple: its weights are those of the body

    def train(self, mode: bool = True) -> "GatedNetwork":
        """As `torch.nn.Module.train`; the user's model, whose layers these are, changes its mode with it."""
        super().train(mode)
        self._watch.set_mode(mode)  # afterwards: its own `train` may keep a batch norm in eval mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GatedNetwork":
        """What .to(), .half() and their like call; gates keep single precision, since half rounds updates to 0."""
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
        """As `torch.nn.Module.load_state_dict`; what does not fit is refused before any of it is loaded."""
        check_fits(state_dict, self.state_dict(), strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _check(self) -> None:
        if any(parameter.isnan().any() for parameter in self._gates.parameters()):
            raise BarError("the gates have entries that are not a number: did the training diverge?")

    def size(self, metric: str = "volume") -> int:
        """Volume or FLOPs that `prune` would leave, exactly: only live features count.

        Parameters
        ----------
        metric : str
            "volume" or "flops".

        Returns
        -------
        int
            From 0 (every path is shut) to `full`. The volume is the number of values that all convolutions output for
            one image (V of eq. 4); FLOPs are those of the convolutions for one image, two per multiply-accumulate.

        Examples
        --------
        >>> import bar
        >>> gated = bar.gate(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 2)), (1, 6, 6))
        >>> gated.keep_({"0": torch.arange(8) < 3}).size()  # 3 features of 4 x 4
        48
        """
        return self.size_of({name: gate.alive for name, gate in self.gates.items()}, metric)

    def full(self, metric: str = "volume") -> int:
        """Volume or FLOPs of the whole network (V_F): with all features, whatever is pruned or cut.

        Parameters
        ----------
        metric : str
            "volume" or "flops".

        Returns
        -------
        int
            For one image, counted as in `size`; above 0.

        Examples
        --------
        >>> import bar
        >>> gated = bar.gate(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 2)), (1, 6, 6))
        >>> gated.full(), gated.full("flops")  # 8 features of 4 x 4; 2 * 3 * 3 for each number
        (128, 2304)
        """
        return self.size_of({name: torch.ones_like(gate.alive) for name, gate in self.gates.items()}, metric)

    def uncut(self, metric: str = "volume") -> int:
        """Volume or FLOPs of what is still computed while training: all that has not been cut (`cut_`); as `size`."""
        return self.size_of({name: ~gate.cut for name, gate in self.gates.items()}, metric)

    def size_of(self, alive: dict[str, Tensor], metric: str) -> int:
        """Volume or FLOPs for one image, an int counted as in `size`, if just these features were alive.

        Parameters
        ----------
        alive : dict of str to bool Tensor of shape (features,)
            For every gated convolution, which features are alive. Those that then are not live do not count.
        metric : str
            "volume" or "flops".
        """
        keep = {node: channels.double() for node, channels in self.network.live(alive).items()}
        features = {n.target: keep[n] for n, k in self.network.kinds.items() if k in ("conv", "depthwise")}
        inside = {n: keep[n] if self.network.kinds[n] == "filter" else keep[n].max() for n in self.network.inside}
        return int(cost.measure(metric)(self.network, features | inside).round())

    def smallest(self, metric: str = "volume") -> int:
        """Volume or FLOPs of the smallest network that pruning can leave: one feature in each convolution of the spine.

        Parameters
        ----------
        metric : str
            "volume" or "flops".

        Returns
        -------
        int
            For one image, counted as in `size`; no budget can be below it.

        Examples
        --------
        >>> import bar
        >>> gated = bar.gate(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 2)), (1, 6, 6))
        >>> gated.smallest()
        16
        """
        return smallest(self, metric)

    def costs(self) -> dict[str, int]:
        """What `prune` would leave, with mixed and with regular connectivity, which table 2 compares.

        Returns
        -------
        dict of str to int
            ``volume`` and ``flops`` (mixed), ``volume_regular`` and ``flops_regular``, for one image.

        Raises
        ------
        BarError
            As `prune` does.
        """
        regular = cost.count(prune(self, "regular"), example_inputs=self.network.example_inputs())
        return {
            "volume": self.size("volume"), "flops": self.size("flops"),
            "volume_regular": regular.volume, "flops_regular": regular.flops,
        }  # fmt: skip

    @torch.no_grad()
    def settle_(self, budget: float, metric: str = "volume", use: float = 0.95) -> "GatedNetwork":
        """Enforce the budget: shut or reopen gates in the order of `score` until use * B <= size <= B.

        A schedule alone does not end exactly below its budget. If the live features exceed it, the gates with the
        lowest scores are shut. If they leave more than 1 - `use` of it unused, the gates with the highest scores are
        reopened. A feature that would exceed the budget is left out, and the next one is tried. The score of a hard
        concrete gate is its log alpha; other gates have their own.

        Parameters
        ----------
        budget : float
            B, for one image, in the unit of the metric; at least `smallest`.
        metric : str
            "volume" or "flops", counted as in `size`.
        use : float
            The fraction of the budget to use at least, in [0, 1], as far as whole features allow.

        Returns
        -------
        GatedNetwork
            This network, changed in place, ready for `prune`.

        Raises
        ------
        BarError
            If the budget is no number or below `smallest`, `use` not in [0, 1], the metric unknown, or a gate is NaN.

        Examples
        --------
        >>> import bar
        >>> gated = bar.gate(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(128, 2)), (1, 6, 6))
        >>> gated.settle_(70).size()  # 4 features of 4 x 4, since 5 would be 80
        64
        """
        self._check()
        for part, gate in zip(settled(self, budget, metric, use), self._gates, strict=True):
            gate.settle_(part)
        return self


def _connect(gated: GatedNetwork, _: object) -> None:
    """A hook of `torch.nn.Module.load_state_dict`; a function of the module, so that it can be pickled."""
    gated.connect_()
