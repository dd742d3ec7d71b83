"""Gates in, dead features out, mixed connectivity (section 4, figures 3 to 5, supplement 2).

`gate` puts a gate on every convolution of a plain network; `prune` takes the features out whose gates are shut and
returns a plain network again, which computes what the gated one computes in eval mode. Between the two the weights are
the user's own.
"""

from bar.surgery.connectivity import same_width, slices
from bar.surgery.gated import GatedNetwork
from bar.surgery.gating import gate
from bar.surgery.pruning import prune

__all__ = ["GatedNetwork", "gate", "prune", "same_width", "slices"]
