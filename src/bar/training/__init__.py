"""The three phases of training (section 3.2, supp. 3): prune, fine-tune, cool down.

Training and pruning happen at the same time on the gated network; after the cut, an ordinary smaller network is
fine-tuned, finally with a lower learning rate. `Training` yields one record an epoch and can be stored and continued
after each; the caller decides what to show and what to keep.
"""

from bar.training.evaluating import accuracy, recalibrate
from bar.training.feeding import check_shares, steps_per_epoch, training_batches
from bar.training.loop import CARRIED, Training, fabric_on, torchrun_processes
from bar.training.pruner import Pruner, check_form
from bar.training.settings import PRESETS, Settings

__all__ = [
    "CARRIED",
    "PRESETS",
    "Pruner",
    "Settings",
    "Training",
    "accuracy",
    "check_form",
    "check_shares",
    "fabric_on",
    "recalibrate",
    "steps_per_epoch",
    "torchrun_processes",
    "training_batches",
]
