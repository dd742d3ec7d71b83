"""What a model does in training mode and not in eval mode is followed, or refused by name."""

import copy
import operator
from collections import Counter

import torch.nn.functional as F
from torch import Tensor, fx, nn

from bar.errors import BarError
from bar.network.checks import Refusal, path_of, place_of
from bar.network.recording import Recording, record
from bar.network.rewriting import name_in_place_results


def compare_modes(
    model: nn.Module, recording: Recording, frozen: dict, inputs: list[Tensor], leaves: dict[str, str]
) -> tuple[set[fx.Node], tuple[str, ...], tuple[fx.GraphModule, set[fx.Node]]]:
    """Refuse a model that computes something else in training mode, by name.

    `recording` is that of the eval mode, and `frozen` from `bar.network.batches.frozen_sizes`: calls of F.dropout that
    only the training mode has are added to both.

    Returns the calls of F.dropout in the graph of the eval mode that drop in training mode; the names of modules that
    only training has, for outputs of their own; and the graph of the training mode, with its operations in place.
    """
    twin, module = _twin(model), recording.module
    learning = _learning(twin, inputs, leaves)
    in_place = name_in_place_results(learning)
    without = record(twin, inputs, leaves, inference=True).module
    name_in_place_results(without)
    _add_dropouts(module, learning, recording.values, frozen)
    _add_dropouts(without, learning, {}, {})
    table: dict = {}
    in_eval, in_training, ungraded = (_value_numbers(graph, table) for graph in (module, learning, without))
    _check_without_gradients(module, without, in_eval, ungraded)
    known = set(in_eval.values())
    returned = _returned(_output(module))
    # What only training mode changes in place in the model itself, such as an average that it keeps.
    changed = [n for n in in_place if in_training[n] not in known and _origin(n).op == "get_attr"]
    if changed or not {in_eval[n] for n in returned} <= {in_training[n] for n in _returned(_output(learning))}:
        modules = dict(module.named_modules()) | dict(learning.named_modules())
        raise _refusal_of_training_mode([*changed, *_first_differences(in_eval, in_training)], modules)
    drops = {in_training[n] for n in in_training if is_dropout(n) and n.kwargs["training"]}
    dropped = {n for n in in_eval if is_dropout(n) and in_eval[n] in drops}
    return dropped, _auxiliary(module, learning), (learning, in_place)


def _add_dropouts(module: fx.GraphModule, learning: fx.GraphModule, values: dict, frozen: dict) -> None:
    """Add to a graph of the eval mode the calls of F.dropout that only training has, as ``F.dropout(x, p, False)``.

    As in ``if self.training: x = F.dropout(x, 0.5)``. Only where the graphs are the same, call by call, but for that;
    what else they do, such as with other numbers, is compared afterwards.
    """
    twins, added = _twins(module, learning)
    if any(node.args[0] in reader.all_input_nodes for node in added for reader in node.users):
        return
    for node in added:
        source = twins[node.args[0]]
        with module.graph.inserting_after(source):
            twins[node] = new = module.graph.call_function(node.target, (source,), node.kwargs | {"training": False})
        new.meta.update({k: v for k, v in node.meta.items() if k == "nn_module_stack"})
        values[new] = values.get(source)
        for reader in (twins[a] for a in node.users if a in twins):
            reader.replace_input_with(source, new)
            if reader in frozen:
                frozen[reader] = fx.node.map_arg(frozen[reader], lambda n, old=source, new=new: new if n is old else n)


def _twins(module: fx.GraphModule, learning: fx.GraphModule) -> tuple[dict[fx.Node, fx.Node], list[fx.Node]]:
    """The calls of training -> those of the eval mode, and dropouts that only training has; none, if more differs."""
    mine, twins, added = iter(module.graph.nodes), {}, []
    here = next(mine, None)
    for node in learning.graph.nodes:
        if here is not None and (node.op, _called(node)) == (here.op, _called(here)):
            twins[node], here = here, next(mine, None)
        elif is_dropout(node) and node.kwargs["training"] and not node.kwargs["inplace"]:
            added.append(node)
        else:
            return {}, []
    return (twins, added) if here is None else ({}, [])


def _called(node: fx.Node):
    """What a node calls; of constants, which have another name in each graph, nothing."""
    return None if node.op == "get_attr" else node.target


def _check_without_gradients(
    module: fx.GraphModule, without: fx.GraphModule, in_eval: dict[fx.Node, int], ungraded: dict[fx.Node, int]
) -> None:
    """Refuse a model that, in eval mode, computes something else without gradients than with them."""
    if set(ungraded.values()) == set(in_eval.values()):
        return
    more, fewer = (ungraded, in_eval) if len(ungraded) > len(in_eval) else (in_eval, ungraded)
    modules = dict(module.named_modules()) | dict(without.named_modules())
    other = next((n for n in more if more[n] not in set(fewer.values())), None)
    raise Refusal(
        f"{place_of(other, modules) if other else 'the network itself'} makes the network compute something else where "
        "torch needs no gradients, or each time that it is called",
        path_of(other),
    )


def _refusal_of_training_mode(differences: list[fx.Node], modules: dict[str, nn.Module]) -> Refusal:
    where = place_of(differences[0], modules) if differences else "the network itself"
    return Refusal(
        f"{where} makes the network compute something else in training mode, which pruning cannot follow: only "
        "nn.Dropout, F.dropout and modules may act while training and not afterwards",
        path_of(differences[0] if differences else None),
    )


def _output(module: fx.GraphModule) -> fx.Node:
    (output,) = module.graph.find_nodes(op="output")
    return output


def _learning(twin: nn.Module, inputs: list[Tensor], leaves: dict[str, str]) -> fx.GraphModule:
    """What a model does in training mode; refused if it changes a buffer, but for the count of a batch norm."""
    versions = {name: (id(buffer), buffer._version) for name, buffer in twin.named_buffers()}
    learning = record(twin, inputs, leaves, training=True)
    counts = {f"{path}.num_batches_tracked" for path in learning.views}
    for name, buffer in twin.named_buffers():
        if name not in counts and versions.get(name) != (id(buffer), buffer._version):
            raise Refusal(
                f"the buffer {name!r} is changed in training mode, in a way that pruning cannot follow",
                name.rpartition(".")[0],
            )
    return learning.module


def _returned(output: fx.Node) -> list[fx.Node]:
    """The signals that an output returns, whatever they are handed over in."""
    return [s for n in output.all_input_nodes for s in (_returned(n) if isinstance(n.target, type) else [n])]


def _first_differences(in_eval: dict[fx.Node, int], in_training: dict[fx.Node, int]) -> list[fx.Node]:
    """The first nodes on which the modes differ; before others, calls that only one of the modes has."""

    def first_of(these: dict[fx.Node, int], others: dict[fx.Node, int]) -> list[fx.Node]:
        known = set(others.values())
        return [n for n in these if these[n] not in known and all(these[s] in known for s in n.all_input_nodes)]

    new = first_of(in_training, in_eval) + first_of(in_eval, in_training)
    both = {(n.op, n.target) for n in in_eval} & {(n.op, n.target) for n in in_training}
    return sorted(new, key=lambda n: (n.op, n.target) in both)


def _auxiliary(module: fx.GraphModule, learning: fx.GraphModule) -> tuple[str, ...]:
    """The modules that run in training mode only, by the shortest names that say so."""
    called = [n.target for n in module.graph.find_nodes(op="call_module")]
    parts = [n.target.split(".") for n in learning.graph.find_nodes(op="call_module") if n.target not in called]
    prefixes = {".".join(target.split(".")[:i]) for target in called for i in range(target.count(".") + 2)}
    names = (next(p for i in range(1, len(part) + 1) if (p := ".".join(part[:i])) not in prefixes) for part in parts)
    return tuple(dict.fromkeys(names))


def _twin(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters, whose forward may change buffers; the model itself, if it cannot be copied."""
    memo: dict[int, Tensor] = {id(p): p for p in model.parameters()}
    tensors = [*model.buffers(), *(t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor))]
    memo |= {id(t): t.detach().clone() for t in tensors if id(t) not in memo}
    try:
        return copy.deepcopy(model, memo)
    except Exception:  # something in it cannot be copied, such as a lock
        return model


def _origin(node: fx.Node) -> fx.Node:
    """What a node has computed its result from, going back along first arguments."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def is_dropout(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (F.dropout, F.dropout2d)


def _value_numbers(module: fx.GraphModule, table: dict) -> dict[fx.Node, int]:
    """Value numbering: nodes that compute the same have the same number, in all graphs that share a table."""
    numbers: dict[fx.Node, int] = {}
    calls: Counter = Counter()
    for node in module.graph.nodes:
        if node.op == "output":
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        target, options = node.target, dict(kwargs)
        if is_dropout(node):
            del options["training"]
        elif node.op == "get_attr":
            tensor = operator.attrgetter(target)(module)
            if not isinstance(tensor, nn.Parameter):  # the same constant may have another name
                target = (tensor.dtype, tuple(tensor.shape), None if tensor.is_meta else str(tensor.tolist()))
        key = (node.op, target, repr(args), repr(options))
        calls[key] += is_dropout(node)  # two equal calls draw different masks
        numbers[node] = table.setdefault((*key, calls[key]), len(table))
    return numbers


def drop_functional_dropout(model: nn.Module, module: fx.GraphModule, dropped: set[fx.Node]) -> dict[str, str]:
    """Replace F.dropout, whose `training` flag tracing has frozen, by nn.Dropout, which follows train() and eval().

    Returns the names of the new modules, each with that of the user's module that made the call. Calls that drop
    features in neither mode are removed.
    """
    owners = {}
    for node in list(module.graph.nodes):
        if is_dropout(node):
            if node.kwargs["training"]:
                raise BarError(f"{place_of(node, {})} drops features in eval mode, too: give it training=self.training")
            new = node.args[0]
            if node in dropped:
                name = node.name
                while hasattr(module, name):  # the user may have a module of this name
                    name += "_"
                owners[name], _ = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", None))
                layer = nn.Dropout if node.target is F.dropout else nn.Dropout2d
                dropout = layer(node.kwargs["p"], node.kwargs["inplace"])
                module.add_submodule(name, dropout.train(model.get_submodule(owners[name]).training))
                with module.graph.inserting_before(node):
                    new = module.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
    return owners
