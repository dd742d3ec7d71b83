"""Small rewrites of a graph that do not change what it computes."""

import operator
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bar.network import views
from bar.network.operations import IN_PLACE_OPERATORS


def name_in_place_results(module: fx.GraphModule) -> set[fx.Node]:
    """Let everything that reads a signal after it was changed in place read the result of that change.

    The graph then stays correct when pruning makes the operation out-of-place.
    """
    modules = dict(module.named_modules())
    after = {node: i for i, node in enumerate(module.graph.nodes)}
    found = set()
    for node in module.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target))
        in_place = (
            (node.op == "call_module" and getattr(modules[node.target], "inplace", False))
            or (node.op == "call_function" and (node.kwargs.get("inplace") or node.target in IN_PLACE_OPERATORS))
            or (node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__"))
        )
        if in_place and node.all_input_nodes:
            found.add(node)
            source = node.all_input_nodes[0]
            source.replace_all_uses_with(node, lambda user, node=node: after[user] > after[node])
    return found


def drop_expansions(module: fx.GraphModule, values: dict) -> None:
    """Let products and sums read what is expanded for them, since they expand it themselves."""
    joins = {operator.mul, operator.add, operator.sub, torch.mul, torch.add, "mul", "add"}
    for node in module.graph.find_nodes(op="call_method"):
        if node.target in ("expand", "expand_as") and isinstance(values.get(node), Tensor):
            source, shape = node.args[0], values[node].shape
            for user in list(node.users):
                others = [values.get(n) for n in user.all_input_nodes if n is not node]
                wide = any(isinstance(v, Tensor) and v.shape == shape for v in others)
                if user.target in joins and wide and len(shape) == getattr(values.get(source), "ndim", 0):
                    user.replace_input_with(node, source)


def spell_out_glu(module: fx.GraphModule, values: dict, leaves: Collection[str]) -> None:
    """Let a gated linear unit be what it is: half of the channels, scaled by the sigmoid of the others.

    `leaves` are the paths of modules that are left whole.
    """
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        unit = modules[node.target] if node.op == "call_module" and node.target not in leaves else None
        if node.target is F.glu:
            dim = (*node.args[1:], *node.kwargs.values(), -1)[0] if node.args else node.kwargs.get("dim", -1)
        elif type(unit) is nn.GLU:
            dim = unit.dim
        else:
            continue
        source, out = node.all_input_nodes[0], values[node]
        dim, half = dim % out.ndim, out.shape[dim]
        with module.graph.inserting_before(node):
            halves = [module.graph.call_function(torch.narrow, (source, dim, i, half)) for i in (0, half)]
            scale = module.graph.call_function(torch.sigmoid, (halves[1],))
            product = module.graph.call_function(operator.mul, (halves[0], scale))
        for new in (*halves, scale, product):
            values[new], new.meta = out, dict(node.meta)
        node.replace_all_uses_with(product)
        module.graph.erase_node(node)


def ask_images(module: fx.GraphModule, values: dict) -> None:
    """Let what asks a signal for its device, or its numbers' type, ask the images: then it needs no signal."""
    images = next(iter(module.graph.find_nodes(op="placeholder")))
    dtype = getattr(values.get(images), "dtype", None)
    for node in module.graph.find_nodes(op="call_function", target=getattr):
        if node.args[1] == "device" or (node.args[1] == "dtype" and values.get(node) is dtype):
            node.args = (images, node.args[1])


def stride_first(module: fx.GraphModule, own: Collection[nn.Module] | None = None) -> fx.GraphModule:
    """Let an average pool of one pixel skip the pixels that a strided 1x1 convolution would not read; in place.

    The numbers are the same. The weight gradient of such a convolution, in channels_last and with fewer inputs than a
    vector register holds, writes past its memory in oneDNN (uxlfoundation/oneDNN 6035): wrong gradients, or a crash.
    Pruning makes exactly such convolutions of the shortcuts of a residual network.

    Parameters
    ----------
    module : torch.fx.GraphModule
        Its strided 1x1 convolutions are changed too: their stride becomes 1.
    own : collection of nn.Module, optional
        The only layers that may be changed; default: all. (Others may be the user's.)

    Returns
    -------
    torch.fx.GraphModule
        The same one.

    Examples
    --------
    >>> net = stride_first(fx.symbolic_trace(nn.Sequential(nn.Conv2d(4, 2, 1, stride=2))))
    >>> net.get_submodule("0").stride, net(torch.zeros(1, 4, 7, 7)).shape
    ((1, 1), torch.Size([1, 2, 4, 4]))
    """
    found = {}
    for node in module.graph.find_nodes(op="call_module"):
        called = module.get_submodule(node.target)
        conv = getattr(called, "options", called)  # of a part of a convolution, see `bar.surgery`
        changes = isinstance(conv, nn.Conv2d) and is_pointwise(conv) and conv.stride != (1, 1)
        if changes and (own is None or conv in own):
            found[node] = conv, conv.stride
    for node, (conv, stride) in found.items():
        with module.graph.inserting_before(node):
            pooled = module.graph.call_function(F.avg_pool2d, (node.args[0], 1, stride))
        node.args = (pooled, *node.args[1:])
        conv.stride = (1, 1)
    module.recompile()
    return module


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution reads one pixel for each that it writes, and nothing beyond the border."""
    return conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "valid", "same")


class KeepUnread(fx.Tracer):
    """The tracer with which torch.fx unpickles a network; unlike its own, it keeps tensors that no operation reads."""

    proxy_buffer_attributes = True


def keep_unread(model: nn.Module, module: fx.GraphModule, read: set[str]) -> list[fx.Node]:
    """Add the buffers that no forward reads, such as a count of epochs, to the graph, since torch.fx drops them.

    Only those of modules that are called; the buffers of a layer come with the layer. Nor those that have been read
    when the network was recorded, and are constants now, such as the channels that a pruned network selects.
    """
    called = {n.target for n in module.graph.find_nodes(op="call_module")}
    there = _reached(module, called)
    named = {n.target for n in module.graph.find_nodes(op="get_attr")}
    found = []
    for name, buffer in model.named_buffers(remove_duplicate=False):
        owner, _, last = name.rpartition(".")
        part = _followed(model.get_submodule(owner))
        if (
            owner not in there
            or name in named
            or name in read
            or (owner in called and (not part or last in STATISTICS))
        ):
            continue
        if owner not in called:
            persistent = last not in model.get_submodule(owner)._non_persistent_buffers_set
            _made(module, owner).register_buffer(last, buffer, persistent)
        with module.graph.inserting_before(next(iter(module.graph.find_nodes(op="output")))):
            found.append(module.graph.get_attr(name))
        found[-1].meta["shape"] = buffer.shape
    if found:
        module._tracer_cls = module.graph._tracer_cls = KeepUnread
    return found


def _reached(module: fx.GraphModule, called: set[str]) -> set[str]:
    """The paths of all modules that a graph calls, or whose forward it has gone through."""
    stacks = (n.meta.get("nn_module_stack", {}).values() for n in module.graph.nodes)
    inside = {".".join(target.split(".")[:i]) for target in called for i in range(1, target.count(".") + 1)}
    return {"", *(path for stack in stacks for path, _ in stack), *called, *inside}


def _made(module: nn.Module, path: str) -> nn.Module:
    """The module at a path; where there is none, empty modules are created."""
    for piece in path.split(".") if path else ():
        if piece not in module._modules:
            module.add_module(piece, nn.Module())
        module = module._modules[piece]
    return module


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # the buffers that a smaller batch norm has


def _followed(module: nn.Module) -> bool:
    """Whether pruning makes another layer in place of this one."""
    return isinstance(module, (*views.CONVOLUTIONS, *views.NORMS, nn.Linear))
