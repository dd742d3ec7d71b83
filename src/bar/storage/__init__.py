"""Networks on disk, and checkpoints of a run.

`save` describes a network in JSON (`describing`) and stores its tensors; `load` builds it again (`building`), only from
layers and operations of the `vocabulary`.
"""

from bar.storage.building import WEIGHTS
from bar.storage.checkpoints import CHECKPOINT, PREVIOUS, load_checkpoints, remove_checkpoints, save_checkpoint
from bar.storage.networks import ARCHITECTURE, check, digest, load, save, untrained, verify

__all__ = [
    "ARCHITECTURE",
    "CHECKPOINT",
    "PREVIOUS",
    "WEIGHTS",
    "check",
    "digest",
    "load",
    "load_checkpoints",
    "remove_checkpoints",
    "save",
    "save_checkpoint",
    "untrained",
    "verify",
]
