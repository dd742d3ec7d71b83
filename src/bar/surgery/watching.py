"""Changes of a user's model after gates were put into it: they take effect, or are refused at the next step."""

from torch import nn

from bar.errors import BarError
from bar.network import Network, check_hooks, own_ways
from bar.surgery.rewiring import submodule_of


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
        self.model, self.body, self.dropouts = model, network.module, network.dropouts
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

    def check(self) -> None:
        """Refuse a layer that was replaced, or that has become another or got a hook.

        Raises
        ------
        BarError
            Naming the module and what has been done to it.
        """
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
        for name, module in self._modules:
            if _hooks(module) > self._hooked.get(name, 0):
                check_hooks(name, module)

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


def _hooks(module: nn.Module) -> int:
    """How many hooks a module has."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


def _sees(view: nn.Module, module: nn.Module) -> bool:
    """Whether a layer is another one seen as a plain one, see `bar.network.views`."""
    return type(view) is not type(module) and isinstance(module, type(view)) and view._parameters is module._parameters
