"""Charts to touch, in a page that needs no server: one function each.

They are drawn by Vega-Altair, with sliders and menus that a keyboard moves; in print, and where scripts do not run, a
still picture with the same message stands in their place. `write_scripts` writes the one script that all of them share.
"""

from bar.figures.touch_page import Touch, write_scripts
from bar.figures.touch_runs import recorded_runs, replay, widths_and_time
from bar.figures.touch_theory import (
    block_with_kills,
    falling_b,
    hard_concrete,
    soft_mask,
    two_barriers,
    two_weights_by_steps,
)

__all__ = [
    "Touch",
    "block_with_kills",
    "falling_b",
    "hard_concrete",
    "recorded_runs",
    "replay",
    "soft_mask",
    "two_barriers",
    "two_weights_by_steps",
    "widths_and_time",
    "write_scripts",
]
