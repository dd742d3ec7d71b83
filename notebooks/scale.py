"""Keep the features that their batch norms scale up most."""

from bar.methods import Option
from bar.methods.iterative import IterativePruning
from bar.methods.morphnet import scales
from bar.methods.uniform import highest


def largest(gated, widths, generator):
    """Choose which features of each convolution stay, as bools."""
    return highest(gated, widths, scales(gated.network))


class Scale(IterativePruning):
    """Uniform widths, chosen by the batch norms, halved again and again."""

    name = "scale"
    title = "Scale"
    summary = "Features with the largest batch-norm scales stay."
    needs_batch_norms = True
    options: tuple[Option, ...] = ()  # what `-o name=value` may set
    choose = staticmethod(largest)
