"""Gates in, dead features out, mixed connectivity (section 4, figures 3 to 5, supplement 2).

`gate` puts a gate on every convolution of a plain network; `prune` takes the features out whose gates are shut and
returns a plain network again, which computes what the gated one computes in eval mode. Between the two the weights are
the user's own.

Words: a *feature* is an output channel of a convolution, and its *gate* a factor z on it. A feature is *alive* if its
own gate is open (its test-time value is not 0), and *live* if it matters for the output: it is alive, something
non-zero can reach it, and something live reads it. All other features are dead. A dead feature may come back while
training goes on; one that is *cut* is removed for good, and what is pruned is removed from the plain network. The
*volume* V is the number of values that all convolutions output for one image, V_F that of the full network, and the
*budget* B the largest V that is allowed in the end; the barrier is 0 up to the *margin* a and infinite from the margin
b on, which falls from V_F to B. The *spine* is the set of convolutions that must keep at least one feature each, or no
path would be left from the input to the output (fatal pruning).
"""

from bar.surgery.connectivity import same_width, slices
from bar.surgery.gated import GatedNetwork
from bar.surgery.gating import gate
from bar.surgery.pruning import prune

__all__ = ["GatedNetwork", "gate", "prune", "same_width", "slices"]
