"""From a user's module to a graph of known operations, and the one way to walk over it."""

from bar.network import blocks
from bar.network.channels import Network, ask, backwards, follow, forwards
from bar.network.checks import check_hooks, check_layer
from bar.network.recording import quiet_call, symbolic_trace, undisturbed
from bar.network.rewriting import KeepUnread, is_pointwise, stride_first
from bar.network.tracing import on_meta, trace

__all__ = [
    "KeepUnread",
    "Network",
    "ask",
    "backwards",
    "blocks",
    "check_hooks",
    "check_layer",
    "follow",
    "forwards",
    "is_pointwise",
    "on_meta",
    "quiet_call",
    "stride_first",
    "symbolic_trace",
    "trace",
    "undisturbed",
]
