"""Weight reparametrization with a budget loss (Dupont, Sahbi & Michel 2021).

The network computes with *apparent* weights, w h_t(w): each weight times a smooth function of itself that is near 0
where the weight is small and near 1 where it is large. So every weight carries its own mask, and the sum of all h
counts the weights that are in use. A budget loss drives that sum to the budget. Nothing is fine-tuned.
"""

import copy
import math
import numbers
from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from bar.errors import BarError
from bar.methods.base import Method, Option, Task
from bar.methods.weights import budget_of, masks, weights_of
from bar.network import Network, trace
from bar.training import Settings, check_form

POWER = 4  # n
STEEPNESS = 100.0  # t at the start
# h(0) = C1 (exp(-1) - C2) = 0 and h(inf) = C1 (1 - C2) = 1 give C2 = 1 / e and C1 = 1 / (1 - 1 / e)
C2 = math.exp(-1)
C1 = 1 / (1 - C2)


class _SoftMask(torch.autograd.Function):
    """h and its derivatives in forms that neither overflow nor cancel.

    With u = (t x)^n and s = u / (u + 1), h is C1 (exp(s - 1) - 1 / e) = (exp(s) - 1) / (e - 1), and x dh/dx = t dh/dt =
    n exp(s) s (1 - s) / (e - 1). Of u and 1 / u, only the one that is at most 1 is computed.
    """

    @staticmethod
    def forward(ctx, x: Tensor, t: Tensor) -> Tensor:
        size = (t * x).abs_()
        v = torch.minimum(size, 1 / size).square_().square_()  # u or 1 / u
        mask = torch.where(size <= 1, v, 1).div_(1 + v).expm1_().mul_(C1 / math.e)
        if any(ctx.needs_input_grad):
            slope = v.div_((1 + v).square_()).mul_(mask + C1 / math.e).mul_(POWER)  # x dh/dx
            ctx.save_for_backward(x, t, slope.div_(x).masked_fill_(x == 0, 0))
        return mask

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, t, derivative = ctx.saved_tensors
        by_x = grad * derivative
        return by_x, torch.where(t == 0, 0, (by_x * x).sum() / t)


def soft_mask(x: Tensor, t: Tensor | float = STEEPNESS) -> Tensor:
    """The reparametrization h_t(x) = C1 (exp(-1 / ((t x)^n + 1)) - C2), n = 4: from 0 at x = 0 to 1 far from it.

    Parameters
    ----------
    x : Tensor
        Weights, of any shape.
    t : Tensor of shape () or float
        How narrow the dip around 0 is; h is about 0.38 where \\|x\\| = 1 / t. Its sign does not matter.

    Returns
    -------
    Tensor
        Of x's shape, in [0, 1], even in x and rising in \\|x\\|. Once differentiable in x and t, with finite gradients.

    Examples
    --------
    >>> soft_mask(torch.tensor([0.0, 0.005, 0.01, -0.02, 1e30]))
    tensor([0.0000, 0.0353, 0.3775, 0.9096, 1.0000])
    """
    return _SoftMask.apply(x, torch.as_tensor(t, dtype=x.dtype, device=x.device))


class ApparentWeights(nn.Module):
    """A network that computes with its weights times `soft_mask` of them.

    Parameters
    ----------
    plain : nn.Module
        Holds the weights that are learnt.
    t : float
        t at the start, learnt too. There is one for the whole network: in the source, h has no layer's index.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    >>> _ = net[1].weight.data.copy_(torch.tensor([[0.01, 1.0]]))
    >>> ApparentWeights(net)(torch.tensor([[100.0, 1.0]]))
    tensor([[1.3775]], grad_fn=<MmBackward0>)
    """

    def __init__(self, plain: nn.Module, t: float = STEEPNESS) -> None:
        super().__init__()
        self.plain = plain
        one = next(iter(weights_of(plain).values()))
        self.t = nn.Parameter(torch.tensor(float(t), dtype=one.dtype, device=one.device))

    def masks(self) -> dict[str, Tensor]:
        """h of every weight that may be pruned, in [0, 1]: name in the plain network -> tensor of its shape."""
        return {name: soft_mask(weight, self.t) for name, weight in weights_of(self.plain).items()}

    def weights(self) -> dict[str, Tensor]:
        """The apparent weights, likewise."""
        return {name: weight * soft_mask(weight, self.t) for name, weight in weights_of(self.plain).items()}

    def forward(self, images: Tensor) -> Tensor:
        return torch.func.functional_call(self.plain, self.weights(), (images,))


class Reparametrization(Method):
    """Train a network under a budget of weights: parameters of the training, the term of the loss, the cut at the end.

    The weights of all convolutions and linear layers are reparametrized; biases and batch norms stay as they are. The
    term is lambda ((C - C_target) / C_initial)^2, where the cost C is the sum of h over all weights, C_target the
    number of weights to keep, and C_initial the cost before the first step.

    Parameters
    ----------
    network : nn.Module
        A plain network; trained, and cut, in place.
    factor : float
        Pruning factor > 1: of all weights, a fraction 1 / factor is kept, rounded down.
    lam : float
        lambda > 0.
    t : float
        t at the start, > 0. The source starts at 100.
    t_lr : float
        Learning rate of t (Adam), >= 0.

    Attributes
    ----------
    network : ApparentWeights
        What is trained, around the plain network.
    metric : str
        "weights".
    full, limit : int
        Numbers of weights: all of them, and those to keep (C_target).
    initial : float
        C_initial.

    Raises
    ------
    BarError
        If the factor is not above 1 or leaves no weight, if lambda or t is not above 0, or if the network has no
        weights that can be reparametrized.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    >>> method = Reparametrization(net, factor=10)
    >>> loss = method.network(torch.rand(4, 1, 6, 6)).square().mean() + method(step=0)
    >>> loss.backward()
    >>> method.cut() is net
    True
    >>> print(method.full, method.limit, sum(int(weight.count_nonzero()) for weight in weights_of(net).values()))
    328 32 32
    """

    name = "reparametrization"
    title = "Reparametrization"
    summary = "Each weight determines its own mask, under a loss on the sum of masks; nothing is fine-tuned."
    options = (
        Option(
            "lam", float, 1e4,
            "lambda, the weight of the budget loss (the paper gives no value). Larger ones suit batch norms alone.",
            above=0,
        ),
        Option("t", float, STEEPNESS, "The initial steepness of the masks around 0.", above=0),
        Option("t_lr", float, 1e-3, "The learning rate of t.", least=0),
    )  # fmt: skip
    # Found on validation images of the digits, with WRN-10-1. Without batch norms, such a lambda shuts whole layers in
    # the first epochs, for good: conv4 takes 1e4, with a t_lr of 0.1.
    presets: ClassVar = {"paper": {}, "quick": {"lam": 1e6, "t_lr": 1.0}}
    metrics = ("weights",)
    metric = "weights"

    @classmethod
    def prepare(cls, network: nn.Module, task: Task) -> "Reparametrization":
        """See `bar.methods.base.Method`."""
        return cls(network, task.factor, **task.options)

    @classmethod
    def phases(cls, settings: Settings, factor: float, epochs: tuple[int, int, int]) -> list[tuple[str, int, float]]:
        """It prunes to the end, for as long as the others prune and fine-tune."""
        prune, tune, cool = epochs
        return [("prune", prune + tune, settings.lr), ("prune", cool, settings.cooldown_lr)]

    def __init__(
        self, network: nn.Module, factor: float, lam: float = 1e4, t: float = STEEPNESS, t_lr: float = 1e-3
    ) -> None:
        if not (isinstance(factor, numbers.Real) and factor > 1):
            raise BarError(f"the pruning factor must be a number above 1, not {factor!r}")
        if not (0 < lam < math.inf and 0 < t < math.inf and 0 <= t_lr < math.inf):  # also refuses what is not a number
            raise BarError(
                f"lambda and t must be above 0, and the learning rate of t not below, not {lam}, {t} and {t_lr}"
            )
        sizes = [weight.numel() for weight in weights_of(network).values()]
        self.full, self.limit = sum(sizes), budget_of(sizes, factor)
        self.network, self.lam, self.t_lr = ApparentWeights(network, t), lam, t_lr
        with torch.no_grad():
            self.initial = float(self.cost())
        self._kept: dict[str, Tensor] = {}  # after the cut: which weights

    def cost(self) -> Tensor:
        """C: the sum of h over all weights, a differentiable scalar in [0, full]."""
        return torch.stack([mask.sum() for mask in self.network.masks().values()]).sum()

    def groups(self) -> list[dict]:
        """The parameter group of t."""
        return [{"params": [self.network.t]}]

    def rate(self, step: int) -> float:
        """Learning rate of t."""
        return self.t_lr

    def __call__(self, step: int) -> Tensor:
        """lambda times the budget loss; a scalar >= 0."""
        return self.lam * ((self.cost() - self.limit) / self.initial) ** 2

    @torch.no_grad()
    def end_epoch(self) -> dict:
        """The epoch's record: how many masks are open.

        Returns
        -------
        dict
            ``size``, the number of weights with h above 1/2; ``budget``, how many are to be kept; ``cost``, C; ``t``;
            ``open`` and ``shut``, the fractions of weights with h above and below 1/2; ``undecided``, that with h
            between 0.1 and 0.9.
        """
        h = torch.cat([mask.flatten() for mask in self.network.masks().values()])
        size = int((h > 0.5).sum())
        return {
            "size": size, "budget": self.limit, "cost": float(h.sum()), "t": float(self.network.t),
            "open": size / self.full, "shut": float((h < 0.5).double().mean()),
            "undecided": float(((h > 0.1) & (h < 0.9)).double().mean()),
        }  # fmt: skip

    def watched(self) -> nn.Module:
        """A copy of the network, cut."""
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network)
        return other.cut()

    @torch.no_grad()
    def cut(self) -> nn.Module:
        """The plain network with the apparent weights: the largest ``limit`` of them, and zeros.

        Later calls change nothing.
        """
        if not self._kept:
            weights = self.network.weights()
            for name, weight in weights_of(self.network.plain).items():
                weight.copy_(weights[name])
            self._kept = dict(zip(weights, masks(list(weights.values()), self.limit), strict=True))
        self.end_finetune_step()
        return self.network.plain

    def cut_record(self) -> dict:
        """``size``, the number of weights that are not 0, and ``budget``, how many were to be kept."""
        left = sum(int(weight.count_nonzero()) for weight in weights_of(self.cut()).values())
        return {"size": left, "budget": self.limit}

    @torch.no_grad()
    def end_finetune_step(self) -> None:
        """Reset to 0 what the cut has removed, if anyone fine-tunes; the method itself does not."""
        for name, weight in weights_of(self.network.plain).items():
            weight.mul_(self._kept[name])

    def state_dict(self) -> dict:
        """What the network's own state does not hold."""
        return {"initial": self.initial, "kept": self._kept}

    def load_state_dict(self, state: dict) -> None:
        """Restore the `state_dict` of a method of the same arguments."""
        weights = weights_of(self.network.plain) if state["kept"] else {}
        kept = {name: torch.empty(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
        check_form(state, {"initial": self.initial, "kept": kept})
        device = self.network.t.device
        self.initial, self._kept = state["initial"], {name: kept.to(device) for name, kept in state["kept"].items()}


class _Present(torch.autograd.Function):
    """1 where the input is positive, and backwards, 1 where the gradient is: so that path counts do not overflow."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return (grad > 0).to(grad.dtype)


class _Paths(fx.Interpreter):
    """Runs a network of weights 0 and 1, so that values are above 0 where a path arrives; autograd finds the others."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.module)
        self.network = network

    def run_node(self, node: fx.Node):
        network, kind = self.network, self.network.kinds[node]
        inputs = [self.env[source] for source in network.sources(node)]
        if kind in ("conv", "depthwise", "linear"):
            return _Present.apply(super().run_node(node))
        if not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):  # no layer so far
            out = super().run_node(node)
            return torch.ones_like(out) if isinstance(out, Tensor) else out
        if kind in ("add", "product", "merge"):
            return sum(inputs)
        if kind in ("opaque", "whole", "filter"):  # such as a softmax: each output may depend on all inputs
            return sum(x.sum() for x in inputs if isinstance(x, Tensor)).expand(
                len(inputs[0]), *network.shapes[node][1:]
            )
        if kind in ("channelwise", "offset"):
            return self._passed(node, inputs[0])
        return inputs[0] if kind in ("norm", "slopes") else super().run_node(node)

    def _passed(self, node: fx.Node, x: Tensor) -> Tensor:
        """Activations let all numbers pass, and maxima are replaced by means, since any pixel may be the largest."""
        layer = self.network.submodule(node) if node.op == "call_module" else None
        if node.target is F.max_pool2d:
            layer = nn.MaxPool2d(*node.args[1:], **node.kwargs)
        if isinstance(layer, nn.MaxPool2d):
            return F.avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
        if isinstance(layer, nn.AdaptiveMaxPool2d) or node.target is F.adaptive_max_pool2d:
            return F.adaptive_avg_pool2d(x, self.network.shapes[node][2:])
        pools = isinstance(layer, nn.AvgPool2d | nn.AdaptiveAvgPool2d) or node.target is F.avg_pool2d
        return super().run_node(node) if pools or self.network.shapes[node][1:] != x.shape[1:] else x


def on_paths(network: nn.Module, input_size: Iterable[int]) -> dict[str, Tensor]:
    """Which weights lie on a path of weights other than 0, from a pixel of the input to an output.

    All others have no effect that depends on the image: their input is constant (from biases), or what they compute is
    not read. So are weights at the border of a kernel that only ever see padding.

    Parameters
    ----------
    network : nn.Module
        Plain and pruned; it is not changed. `bar.network.trace` has to understand it.
    input_size : iterable of int
        (channels, height, width) of one image.

    Returns
    -------
    dict of str to bool Tensor
        Name of a weight, as in `weights_of` -> of its shape.

    Raises
    ------
    BarError
        When the network cannot be traced.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1))
    >>> _ = net[3].weight.data.copy_(torch.tensor([[1.0, 0.0]]))  # nobody reads the second feature
    >>> {name: used.flatten(1).tolist() for name, used in on_paths(net, (3, 1, 1)).items()}
    {'0.weight': [[True, True, True], [False, False, False]], '3.weight': [[True, False]]}
    """
    # In float64 and on the CPU, convolutions add zeros and ones exactly.
    twin = copy.deepcopy(network).cpu().double()
    traced = trace(twin, input_size)
    used = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in weights_of(network).items()}
    weights = {name: weight for name, weight in weights_of(traced.module).items() if name in used}
    for name, weight in weights.items():
        weight.requires_grad_().data = (weight != 0).double()
        traced.module.get_submodule(name.rpartition(".")[0]).bias = None
    with torch.enable_grad():
        _Paths(traced).run(torch.ones(1, *input_size, dtype=torch.float64)).sum().backward()
    return used | {name: weight.grad * weight > 0 for name, weight in weights.items() if weight.grad is not None}


def disconnected(network: nn.Module, input_size: Iterable[int]) -> list[str]:
    """The layers through which no path of weights other than 0 leads from the input to an output.

    Parameters
    ----------
    network, input_size
        As in `on_paths`.

    Returns
    -------
    list of str
        Names of convolutions and linear layers. In a plain chain, one of them takes all others with it.

    Raises
    ------
    BarError
        When the network cannot be traced.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> disconnected(net, (3, 4, 4))
    []
    >>> _ = nn.init.zeros_(net[3].weight)
    >>> disconnected(net, (3, 4, 4))
    ['0', '3']
    """
    return [name.removesuffix(".weight") for name, used in on_paths(network, input_size).items() if not used.any()]
