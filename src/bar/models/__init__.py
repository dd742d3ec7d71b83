"""Networks: those of section 5.1 by name, and those of a user's own, with weights of their own.

Nothing here knows of pruning.
"""

from bar.models.networks import (
    MOST_LAYERS,
    MOST_PARAMETERS,
    MOST_PIXELS,
    MOST_WIDTH,
    Conv4,
    PreActivationBlock,
    WideResNet,
    build,
    check,
    hollow,
    names,
    narrow,
    outline,
)
from bar.models.own import is_own, source_of
from bar.models.weights import digest, load_weights

__all__ = [
    "MOST_LAYERS",
    "MOST_PARAMETERS",
    "MOST_PIXELS",
    "MOST_WIDTH",
    "Conv4",
    "PreActivationBlock",
    "WideResNet",
    "build",
    "check",
    "digest",
    "hollow",
    "is_own",
    "load_weights",
    "names",
    "narrow",
    "outline",
    "source_of",
]
