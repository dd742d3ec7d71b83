"""Gates in: from a plain network to one with a gate on every prunable convolution (section 4)."""

import fnmatch
import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from bar.errors import BarError, nearest
from bar.gates import Gate
from bar.network import Network, trace, undisturbed
from bar.surgery.gated import GatedNetwork


@torch.inference_mode(False)  # gates are there to be trained
def gate(
    model: nn.Module,
    input_size: Iterable[int] | None = None,
    protect: Sequence[str] = (),
    rule: str = "median",
    gate_factory: Callable[[int], nn.Module] | None = None,
    *,
    example_inputs: Sequence[Tensor] | None = None,
    strict: bool = False,
) -> GatedNetwork:
    """Put a gate on every convolution of a plain network.

    A gate multiplies the features of its convolution, after the batch norm that reads it where there is one. A batch
    norm further down, one that reads a residual signal or a depthwise convolution, would normalise the gate away and
    revive dead features by its shift; its output is therefore gated again, by how present its input is (1 minus the
    product of 1 - z over all features that are summed into it).

    The gates' initial values follow from the state of torch's global generator, which is restored: after the same
    `torch.manual_seed` they are the same, and what is drawn afterwards does not depend on whether there were gates.

    Of what is done to the model later, its mode (`model.eval()`), its weights, other tensors in their place and options
    of its layers take effect in the gated network, too. A replaced module, a new hook, or an attribute with which the
    model computes something else is refused at the next step.

    Parameters
    ----------
    model : nn.Module
        A plain CNN. Its modules are shared, not copied: training the gated network, or moving it, trains or moves it.
    input_size : iterable of int
        (channels, height, width) of one image; without height for `torch.nn.Conv1d`, with depth before it for Conv3d.
    protect : sequence of str
        Names of convolutions that must keep all their features, or patterns such as ``"layer1.*"``.
    rule : str
        Test-time value of a gate, see `bar.Gate`.
    gate_factory : callable, optional
        Makes the gate for a number of features, such as `bar.methods.information_bottleneck.GaussianGate`; by default
        a `bar.Gate` with this rule.
    example_inputs : sequence of Tensor, optional
        Instead of the size, for a network of several inputs: a batch for each of them.
    strict : bool
        Refuse a network of which something is left whole (`GatedNetwork.whole`).

    Returns
    -------
    GatedNetwork

    Raises
    ------
    BarError
        If the network cannot be followed (see `bar.network.trace`), has gates already or nothing that can be pruned; if
        a name is not that of a convolution, there is no such rule, or something is left whole though `strict`; if a
        weight is NaN, or has no value because it is on the meta device.

    Examples
    --------
    >>> import bar
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    >>> gated = gate(net, (3, 6, 6))
    >>> gated.gates
    {'0': Gate(8, alive=8, rule='median'), '2': Gate(4, alive=4, rule='median')}
    >>> gated.gates["0"].log_alpha.data[3:] = -5
    >>> bar.prune(gated)
    Pruned(
      (0): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
      (2): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
      (3): Flatten(start_dim=1, end_dim=-1)
      (4): Linear(in_features=16, out_features=2, bias=True)
    )
    """
    network = trace(model, input_size, example_inputs)
    if strict and network.whole:
        place, why = next(iter(network.whole.items()))
        raise BarError(f"cannot follow features through {place}: {why}; without strict=True, it is left whole")
    for pattern in protect:
        if not fnmatch.filter(network.convs, pattern):
            raise BarError(f"no convolution {pattern!r} to protect: {nearest(pattern, network.convs)}")
    _check_values(network)
    kept = network.kept()
    prunable = [
        name
        for name, node in network.convs.items()
        if not (kept[node] or any(fnmatch.fnmatchcase(name, pattern) for pattern in protect))
    ]
    if not prunable:
        place, why = next(iter(network.whole.items()), ("", ""))
        because = f": {place} {why}, so that what flows into it is kept" if place else ""
        if not because and "offset" in kept.values():
            because = ": its features are read only through what makes a number of zero, such as a sigmoid"
        raise BarError(f"{type(model).__name__} has no convolution that can be pruned{because}")
    with undisturbed():
        # Seeded by the generator, but not with the numbers that the caller will draw next.
        torch.default_generator.manual_seed(int(torch.randint(2**62, ())))
        return GatedNetwork(network, prunable, gate_factory or functools.partial(Gate, rule=rule), model)


def _check_values(network: Network) -> None:
    """Refuse weights that are NaN, or have no values."""
    unread = {node.target for node in network.module.graph.find_nodes(op="get_attr") if not node.users}
    for name, tensor in network.module.state_dict().items():
        if tensor.is_meta:
            raise BarError(f"{name} is on the meta device and has no values: give the model its weights first")
        if name not in unread and tensor.is_floating_point() and tensor.isnan().any():
            raise BarError(f"{name} has entries that are not a number")
