"""From a user's module to a graph of known operations, and the one way to walk over it."""

from bar.network import blocks
from bar.network.channels import Network, ask, backwards, follow, forwards
from bar.network.checks import check_hooks, check_module, checked_size, own_ways, tied
from bar.network.counting import Convolutions
from bar.network.operations import IN_PLACE_OPERATORS
from bar.network.recording import symbolic_trace
from bar.network.rewriting import KeepUnread, is_pointwise, name_in_place_results, stride_first
from bar.network.running import on_meta, quiet_call, undisturbed
from bar.network.tracing import trace
from bar.network.views import CONVOLUTIONS

__all__ = [
    "CONVOLUTIONS",
    "IN_PLACE_OPERATORS",
    "Convolutions",
    "KeepUnread",
    "Network",
    "ask",
    "backwards",
    "blocks",
    "check_hooks",
    "check_module",
    "checked_size",
    "follow",
    "forwards",
    "is_pointwise",
    "name_in_place_results",
    "on_meta",
    "own_ways",
    "quiet_call",
    "stride_first",
    "symbolic_trace",
    "tied",
    "trace",
    "undisturbed",
]
