"""The first step of folding and of exporting: a traced network, with batch norms folded into convolutions."""

import copy
import textwrap
from collections import Counter

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bar.errors import BarError
from bar.network import is_pointwise, own_ways, symbolic_trace


def plain_graph(network: nn.Module) -> fx.GraphModule:
    """Trace a network, and fold every batch norm that directly follows a convolution.

    Parameters
    ----------
    network : nn.Module
        In eval mode.

    Returns
    -------
    torch.fx.GraphModule
        It shares with the network the modules that need not change.

    Raises
    ------
    BarError
        If `torch.fx` cannot trace the network.
    """
    try:  # what a pruned network calls as it is, it has been left whole: it may do more than a trace would show
        recorded = isinstance(network, fx.GraphModule)
        plain = fx.GraphModule(network, copy.deepcopy(network.graph)) if recorded else symbolic_trace(network)
    except Exception as error:
        raise BarError(f"cannot trace {type(network).__name__} with torch.fx: {root_cause(error)}") from error
    # torch.fx.experimental.optimization.fuse does this too, but wrongly where a convolution is called twice.
    calls = Counter(node.target for node in plain.graph.nodes if node.op == "call_module")
    _fold_batch_norms(plain, calls)
    _stride_in_convolutions(plain, calls)
    plain.delete_all_unused_submodules()
    plain.recompile()
    return plain


def _fold_batch_norms(plain: fx.GraphModule, calls: Counter) -> None:
    """Make a batch norm part of the convolution before it, where nothing else needs that convolution as it is."""
    modules = dict(plain.named_modules())
    for node in list(plain.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or not is_ordinary(norm):
            continue
        (source,) = node.all_input_nodes
        conv = modules.get(source.target) if source.op == "call_module" else None
        called_here = len(source.users) == 1 and calls[source.target] == 1
        if called_here and isinstance(conv, nn.Conv2d) and is_ordinary(conv):
            modules[source.target] = fuse_conv_bn_eval(conv, norm)  # another batch norm may follow
            plain.set_submodule(source.target, modules[source.target])
            node.replace_all_uses_with(source)
            plain.graph.erase_node(node)


def _stride_in_convolutions(plain: fx.GraphModule, calls: Counter) -> None:
    """Undo `bar.network.stride_first`, which only training needs: a strided convolution need not copy its input."""
    for node in plain.graph.find_nodes(op="call_function", target=F.avg_pool2d):
        readers = list(node.users)
        if _only_skips_pixels(node) and all(_can_stride(reader, calls) for reader in readers):
            for reader in readers:
                strided = copy.copy(plain.get_submodule(reader.target))
                strided.stride = node.args[2]
                plain.set_submodule(reader.target, strided)
                reader.args = node.args[:1]
            plain.graph.erase_node(node)


def _only_skips_pixels(pool: fx.Node) -> bool:
    """Whether an average pooling takes windows of one pixel, as ``avg_pool2d(x, 1, (2, 2))``."""
    return len(pool.args) == 3 and pool.args[1] == 1 and isinstance(pool.args[2], tuple) and not pool.kwargs


def _can_stride(reader: fx.Node, calls: Counter) -> bool:
    """Whether a node is a 1x1 convolution without a stride, called once."""
    if reader.op != "call_module" or calls[reader.target] != 1:
        return False
    conv = reader.graph.owning_module.get_submodule(reader.target)
    return isinstance(conv, nn.Conv2d) and is_ordinary(conv) and is_pointwise(conv) and conv.stride == (1, 1)


def is_ordinary(module: nn.Module) -> bool:
    """Whether a layer computes what its class in torch does: no hook, no forward and no weight of its own."""
    kind = next((k for k in type(module).__mro__ if k.__module__.startswith("torch.nn.")), None)
    return kind is not None and type(module).forward is kind.forward and own_ways(module) is None


def root_cause(error: BaseException) -> str:
    """What was wrong at the bottom of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return textwrap.shorten(str(error) or type(error).__name__, 240)
