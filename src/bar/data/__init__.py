"""Images: the digits (offline), CIFAR-10 and -100, and any folder of class folders (Mio-TCD, TinyImageNet, …).

Images stay bytes until a batch is asked for; cropping, flipping and normalising work on a whole batch on its device.
Every split is fixed: the same images in every run, on every machine.
"""

from bar.data.batching import batches, num_batches
from bar.data.decoding import decode
from bar.data.listing import list_folder
from bar.data.sets import available, check, load, root_folder
from bar.data.splits import Dataset, Split

__all__ = [
    "Dataset",
    "Split",
    "available",
    "batches",
    "check",
    "decode",
    "list_folder",
    "load",
    "num_batches",
    "root_folder",
]
