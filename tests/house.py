"""Is the house in order? Part of `make lint`.

Functions that are too complex, files that are too long, rooms that use names that are private to others; cells of
notebooks that are too long, and functions that two of them define.

What was too large when this check was made is listed, with its size then: it may shrink, not grow. What fits by now
must leave the list.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

import nbformat
from radon.complexity import cc_visit

MOST_COMPLEX, LONGEST, LONGEST_CELL = 15, 450, 25
COMPLEX: dict[str, int] = {
    "folders.py:_splits": 19,
    "folders.py:_images": 30,
}
LONG: dict[str, int] = {
    "data.py": 717,
}
TORCHS_OWN = {"_parameters", "_buffers", "_modules"}  # of nn.Module, which some of ours call so, too


def main(root: Path) -> int:
    """Print what is wrong, a line each; the number of lines."""
    complexity, length = {}, {}
    for path in sorted((root / "src" / "bar").rglob("*.py")):
        text, name = path.read_text("utf-8"), path.relative_to(root / "src" / "bar").as_posix()
        length[name] = text.count("\n")
        for block in cc_visit(text):
            for each in (block, *getattr(block, "methods", ())):
                if each.letter != "C":  # of a class, radon gives the mean of its methods
                    complexity[f"{name}:{each.fullname}"] = each.complexity
    wrong = 0
    for what, sizes, most, listed in (
        ("complexity", complexity, MOST_COMPLEX, COMPLEX), ("lines", length, LONGEST, LONG),
    ):  # fmt: skip
        for name, size in sizes.items():
            if size > listed.get(name, most):
                print(f"{name}: {what} {size}, more than {listed.get(name, most)}")
                wrong += 1
        for name in [name for name in listed if sizes.get(name, 0) <= most]:
            print(f"{name}: {what} {sizes.get(name, 0)}: take it from the list in tests/house.py")
            wrong += 1
    for line in (*_private_uses(root / "src" / "bar"), *_in_notebooks(root / "notebooks")):
        print(line)
        wrong += 1
    return wrong


def _private_uses(root: Path) -> list[str]:
    """Where a room (a package or a module beside it) imports or reads a name that another keeps to itself."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(root.rglob("*.py"))}
    private = defaultdict(set)  # room -> the names that it makes and that begin with an underscore
    for path, tree in trees.items():
        for node in ast.walk(tree):
            name = node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
            if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
                name = getattr(node, "attr", None) or node.id
            if name.startswith("_") and not name.endswith("__"):
                private[_room(root, path)].add(name)
    found = []
    for path, tree in trees.items():
        mine = private[_room(root, path)]
        theirs = set().union(*private.values()) - mine - TORCHS_OWN
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith("bar")):
                used = {alias.name for alias in node.names if alias.name.startswith("_")}
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
                used = {node.attr}
            else:
                continue
            found += [f"{path.relative_to(root)}:{node.lineno}: {name} is private" for name in sorted(used & theirs)]
    return found


def _in_notebooks(folder: Path) -> list[str]:
    """Cells of code that are too long to be read at once, and functions that more than one notebook defines."""
    found, defined = [], {}
    for path in sorted(folder.glob("*.ipynb")):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        for i, source in enumerate(cells):
            if source.count("\n") >= LONGEST_CELL:
                found.append(f"{path.name}: cell {i} of code has more than {LONGEST_CELL} lines")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef) and defined.setdefault(node.name, path.name) != path.name:
                    found.append(f"{path.name}: {node.name} is defined in {defined[node.name]}, too")
    return found


def _room(root: Path, path: Path) -> str:
    return path.relative_to(root).parts[0].removesuffix(".py")


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[1]) > 0)
