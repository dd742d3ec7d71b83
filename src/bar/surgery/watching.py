"""Changes of a user's model after gates were put into it: they take effect, or are refused at the next step."""

import torch
from torch import nn

from bar.errors import BarError
from bar.network import Network, check_hooks, own_ways
from bar.surgery.attributes import Attributes
from bar.surgery.rewiring import submodule_of
from bar.surgery.tensors import Tensors


class Watch:
    """Remembers the modules that a gated network computes with, and checks whether they have been changed.

    Parameters
    ----------
    network : bar.network.Network
        What tracing found. Its modules are the model's own.
    model : nn.Module, optional
        The user's model; without it, as after a copy, only the network's own modules are watched.
    """

    def __init__(self, network: Network, model: nn.Module | None) -> None:
        self.network, self.model, self.body, self.dropouts = network, model, network.module, network.dropouts
        self._layers = tuple(
            (name, module, type(module))
            for name in dict.fromkeys(node.target for node in self.body.graph.find_nodes(op="call_module"))
            for module in [self.body.get_submodule(name)]
        )
        roots = (self.body,) if model is None else (self.body, model)
        self._modules = tuple((name, module) for root in roots for name, module in root.named_modules())
        # of what is left whole
        self._hooked = {name: _hooks(module) for name, module in self._modules}
        self._own = {name for name, module in self._modules if "forward" in vars(module)}
        # what tracing has made constants of
        self._baked = [(name, _holder(root, name)) for root in roots for name in network.baked]
        self._seen: dict[int, tuple] = {}
        self._attributes = None if model is None else Attributes(network, model)
        self._tensors = Tensors(network, model)

    def check(self, built: nn.Module | None = None, model_too: bool = False) -> bool:
        """Refuse a layer that was replaced, or that has become another or got a hook; see `Tensors.check`.

        Returns
        -------
        bool
            Whether something has changed that takes effect when the network is built anew.

        Raises
        ------
        BarError
            Naming the module and what has been done to it.
        """
        self._check_layers()
        for name, module in self._modules:
            if _hooks(module) > self._hooked.get(name, 0):
                check_hooks(name, module)
        self._check_buffers()
        self._tensors.check(built, model_too)  # first: forward may read plain tensors
        return self._attributes is not None and self._attributes.check()

    def _check_layers(self) -> None:
        """Refuse a layer in place of another, or of another class or forward."""
        for name, module, kind in self._layers:
            # of F.dropout, tracing has made a module that the model does not have
            for root in (self.body, None if name in self.dropouts else self.model):
                here = module if root is None else submodule_of(root, name)
                if here is None or (vars(here) is not vars(module) and not _sees(module, here)):
                    raise BarError(
                        f"{name!r} has been replaced by {type(here).__name__} since the gates were put in, which would "
                        "have no effect: change the network first, then call bar.gate on it"
                    )
            if type(module) is not kind or ("forward" in vars(module)) != (name in self._own):
                what = own_ways(module) or f"is a {type(module).__name__}"
                raise BarError(
                    f"{name!r} has been changed since the gates were put in: {what}. Call bar.gate on it anew"
                )

    def _check_buffers(self) -> None:
        """Refuse other values in a buffer that the graph holds as a constant."""
        for place, (name, holder) in enumerate(self._baked):
            tensor = None if holder is None else getattr(holder, name.rpartition(".")[2], None)
            state = id(tensor), None if tensor is None or tensor.is_inference() else tensor._version
            if self._seen.get(place) == state:
                continue
            if tensor is not None and not torch.equal(tensor.cpu(), self.network.baked[name].cpu()):
                raise BarError(
                    f"the buffer {name!r} has other values than when the gates were put in, which would have no "
                    "effect: load them first, then call bar.gate"
                )
            self._seen[place] = state

    def set_mode(self, mode: bool) -> None:
        """Give the model a mode, training or eval; its own `train` may make exceptions, as frozen batch norms do."""
        if self.model is not None:
            self.model.train(mode)

    def mode(self, otherwise: bool) -> bool:
        """The mode that the model has by now; calls of F.dropout are given that of the module that makes them."""
        if self.model is None:
            return otherwise
        for name, owner in self.dropouts.items():
            self.body.get_submodule(name).training = self.model.get_submodule(owner).training
        return self.model.training


def _holder(root: nn.Module, name: str) -> nn.Module | None:
    """The module that has a buffer of this name."""
    owner = name.rpartition(".")[0]
    return submodule_of(root, owner) if owner else root


def _hooks(module: nn.Module) -> int:
    """How many hooks a module has."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


def _sees(view: nn.Module, module: nn.Module) -> bool:
    """Whether a layer is another one seen as a plain one, see `bar.network.views`."""
    return type(view) is not type(module) and isinstance(module, type(view)) and view._parameters is module._parameters
