"""Run the notebooks with parameters and build the book from their outputs.

The book shows only notebooks that ran from top to bottom, just now or in an earlier build from the same inputs: the
notebook, its parameters, the package, records, data, versions and machine (`keeping.fingerprint`). The first failing
cell ends the build and leaves no notebook behind that a book could be built from.
"""

from bar.errors import BarError

try:
    from bar.book.alone import write_first_cells
    from bar.book.building import LOCK, build
    from bar.book.executing import store_outputs
    from bar.book.pages import NOTHING_TO_DRAW
    from bar.book.parameters import parse_parameters
except ModuleNotFoundError as error:  # nbformat or papermill, say
    raise BarError(f"{error.name} is not installed: pip install '.[book,charts]' in a checkout") from error

__all__ = ["LOCK", "NOTHING_TO_DRAW", "build", "parse_parameters", "store_outputs", "write_first_cells"]
