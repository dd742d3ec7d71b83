"""Tensors that a user replaces after gates were put in: they are followed where they fit, or refused."""

import torch
from torch import Tensor, nn

from bar.errors import BarError
from bar.network import Network, tied
from bar.surgery.rewiring import submodule_of


class Tensors:
    """Remembers which tensors a network computes with, in a user's model and in the graph that was made of it.

    Parameters
    ----------
    network : bar.network.Network
        What tracing found.
    model : nn.Module, optional
        The user's model; without it, as after a copy, only the network's own tensors are followed.
    """

    def __init__(self, network: Network, model: nn.Module | None) -> None:
        self._body = body = network.module
        self._tied = tied(body).keys()
        # what the graph reads itself, which the model holds too: name, who holds it, and what it was
        self._read: list[tuple[str, list[nn.Module], Tensor]] = []
        for name in dict.fromkeys(node.target for node in body.graph.find_nodes(op="get_attr")):
            tensor = _held(_holder(body, name), name)
            holders = [h for root in (model, body) if root is not None and (h := _holder(root, name)) is not None]
            if isinstance(tensor, Tensor):
                self._read.append((name, [h for h in holders if _held(h, name) is tensor], tensor))
        # what the layers hold, which are the model's own
        self._own: list[tuple[str, dict, str, Tensor | None]] = []
        for path in dict.fromkeys(node.target for node in body.graph.find_nodes(op="call_module")):
            for name, module in body.get_submodule(path).named_modules(prefix=path):
                if not isinstance(module, torch.jit.ScriptModule):  # which keeps them elsewhere
                    self._own += [(name, module._parameters, key, t) for key, t in module._parameters.items()]

    def check(self) -> bool:
        """Whether the graph reads other tensors by now, so that the network must be built anew.

        Raises
        ------
        BarError
            If a tensor has been replaced by one that does not fit, or is tied to another now.
        """
        read = [
            (n, holders, _followed(n, holders, old) if any(_held(h, n) is not old for h in holders) else old)
            for n, holders, old in self._read
        ]
        own = [(name, parameters, key, parameters.get(key)) for name, parameters, key, _ in self._own]
        for (name, _, key, old), (*_, new) in zip(self._own, own, strict=True):
            if new is not old:
                _check_fit(f"{name}.{key}", old, new)
        changed = any(old[-1] is not new[-1] for old, new in zip(self._read, read, strict=True))
        if changed or any(old[-1] is not new[-1] for old, new in zip(self._own, own, strict=True)):
            for path, why in tied(self._body).items():
                if path not in self._tied:
                    raise BarError(
                        f"{path or 'the network itself'!r} is tied since the gates were put in: {why}. Give it a "
                        "parameter of its own, or call bar.gate anew"
                    )
            self._read, self._own = read, own
        return changed


def _followed(name: str, holders: list[nn.Module], old: Tensor) -> Tensor:
    """Give all who hold a tensor the new one that one of them has."""
    found = [held for holder in holders if (held := _held(holder, name)) is not old]
    new = found[0]
    for other in found:
        _check_fit(name, old, other)
        if other is not new and not torch.equal(other.to(new), new):
            raise BarError(
                f"{name!r} has been replaced in the model and in the gated network: replace it in one of them"
            )
    for holder in holders:
        setattr(holder, name.rpartition(".")[2], new)
    return new


def _check_fit(name: str, old: Tensor | None, new: Tensor | None) -> None:
    """Refuse a tensor of another shape, none, or a parameter in place of a buffer."""
    if old is None or new is None:
        what = "taken out" if new is None else "added"
    elif old.shape != new.shape:
        what = f"replaced by one of shape {tuple(new.shape)}; it was of {tuple(old.shape)}"
    elif isinstance(old, nn.Parameter) != isinstance(new, nn.Parameter):
        what = "replaced by a buffer or a plain tensor" if isinstance(old, nn.Parameter) else "made a parameter"
    else:
        return
    raise BarError(
        f"{name!r} has been {what}, since the gates were put in: change the network first, then call bar.gate"
    )


def _holder(root: nn.Module, name: str) -> nn.Module | None:
    """The module that has a tensor of this name."""
    owner = name.rpartition(".")[0]
    return submodule_of(root, owner) if owner else root


def _held(module: nn.Module, name: str) -> Tensor | None:
    """The tensor of this name that a module has."""
    key = name.rpartition(".")[2]
    return next((there[key] for there in (module._parameters, module._buffers, vars(module)) if key in there), None)
