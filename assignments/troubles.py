"""Submissions that go wrong in other ways than by a wrong answer; none may cost anybody else anything."""

import re
from collections.abc import Callable

import masters
from nbformat import NotebookNode

# an answer that one cell of tests calls, for a loop that does not end
LOOP = {
    "01_gates": ("median", ("median",)),
    "02_barrier": ("transition", ("transition",)),
    "03_counting": ("areas", ("areas",)),
    "04_training": ("choose", ("choose",)),
    "05_surgery": ("parts", ("parts",)),
    "06_comparison": ("verdict", ("verdict",)),
}


def infinite_loop(notebook: NotebookNode, name: str) -> tuple[str, ...]:
    """An answer that never returns."""
    cell = masters.cell_of(notebook, LOOP[name][0])
    cell.source = re.sub(r'(""".*"""\n)', r"\1    while True:\n        pass\n", cell.source, count=1)
    return LOOP[name][1]


def stubborn_loop(notebook: NotebookNode, name: str) -> tuple[str, ...]:
    """An answer that never returns, and catches whatever is to stop it: the kernel is ended, and runs no later test."""
    cell = masters.cell_of(notebook, LOOP[name][0])
    loop = r"\1    while True:\n        try:\n            sum(range(1000))\n        except:\n            pass\n"
    cell.source = re.sub(r'(""".*"""\n)', loop, cell.source, count=1)
    tests = [test.removeprefix("test_") for test in masters.tests(notebook)]
    return tuple(tests[tests.index(LOOP[name][1][0]) :])


def syntax_error(notebook: NotebookNode, name: str) -> tuple[str, ...]:
    """An answer that Python cannot read."""
    cell = masters.cell_of(notebook, LOOP[name][0])
    cell.source = cell.source.replace("return", "return (", 1)
    return LOOP[name][1]


def deleted_test(notebook: NotebookNode, name: str) -> tuple[str, ...]:
    """A cell of tests that is not there any more, above a right answer: it is put back."""
    notebook.cells.remove(masters.cell_of(notebook, "test_" + LOOP[name][1][0]))
    return ()


def edited_test(notebook: NotebookNode, name: str) -> tuple[str, ...]:
    """A cell of tests that tests nothing any more, below an answer that is not there."""
    masters.cell_of(notebook, "test_" + LOOP[name][1][0]).source = "print('passed')"
    masters.cell_of(notebook, LOOP[name][0]).source = "pass"
    return LOOP[name][1]


def prints_much(notebook: NotebookNode, name: str) -> tuple[str, ...]:
    """A right answer, and 100 MB of output in one line."""
    masters.cell_of(notebook, LOOP[name][0]).source += "\n\nprint('x' * 100_000_000)"
    return ()


def writes_to_stderr(notebook: NotebookNode, name: str) -> tuple[str, ...]:
    """A right answer that writes a bar of progress while it is tested."""
    cell = masters.cell_of(notebook, LOOP[name][0])
    write = r"\1    import sys\n\n    print('10 %', file=sys.stderr)\n"
    cell.source = re.sub(r'(""".*"""\n)', write, cell.source, count=1)
    return ()


TROUBLES: dict[str, Callable[[NotebookNode, str], tuple[str, ...]]] = {
    "infinite loop": infinite_loop,
    "stubborn loop": stubborn_loop,
    "syntax error": syntax_error,
    "deleted test": deleted_test,
    "edited test": edited_test,
    "prints 100 MB": prints_much,
    "writes to stderr": writes_to_stderr,
}
