"""Every figure of the book, one function each.

All share one style: white and opaque (the page may be dark), line styles beside colours (the page may be printed in
grey), one column of large letters (the page may be on a phone). A function computes what it draws with the library, and
returns the figure, which is not left open in pyplot.
"""

from bar.figures.results import (
    DRAWN,
    METHODS,
    accuracy_changes,
    neurons_by_method,
    paper_results,
    results_by_method,
)
from bar.figures.speed import (
    TIMED,
    speedups,
    throughput_over_dense,
    where_time_went,
)
from bar.figures.structure import (
    PARTS,
    block_kinds,
    chunk,
    connectivity,
    draw,
    neurons_per_block,
)
from bar.figures.style import (
    COLOURS,
    LINES,
    MARKERS,
    STYLE,
    WIDTH,
)
from bar.figures.theory import (
    barriers,
    distributions,
    estimates,
    schedules,
)
from bar.figures.training import (
    TRAININGS,
    following,
    seconds_per_epoch,
    training_run,
)
from bar.figures.weights import (
    accuracy_against_rate,
    compress_quadratic,
    kept_per_layer,
    loss_against_weights,
    quadratic,
    reparametrization,
    two_weights,
)

__all__ = [
    "COLOURS",
    "DRAWN",
    "LINES",
    "MARKERS",
    "METHODS",
    "PARTS",
    "STYLE",
    "TIMED",
    "TRAININGS",
    "WIDTH",
    "accuracy_against_rate",
    "accuracy_changes",
    "barriers",
    "block_kinds",
    "chunk",
    "compress_quadratic",
    "connectivity",
    "distributions",
    "draw",
    "estimates",
    "following",
    "kept_per_layer",
    "loss_against_weights",
    "neurons_by_method",
    "neurons_per_block",
    "paper_results",
    "quadratic",
    "reparametrization",
    "results_by_method",
    "schedules",
    "seconds_per_epoch",
    "speedups",
    "throughput_over_dense",
    "training_run",
    "two_weights",
    "where_time_went",
]
