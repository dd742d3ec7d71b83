"""Networks that only infer: folded to be fast here (`fold`), or exported to run elsewhere (`export`)."""

from bar.inference.exporting import export
from bar.inference.folding import fold
from bar.inference.operations import add_gathered_, add_slices_, make_room, scale_and_shift

__all__ = ["add_gathered_", "add_slices_", "export", "fold", "make_room", "scale_and_shift"]
