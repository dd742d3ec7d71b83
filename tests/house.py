"""Is the house in order? Part of `make lint`.

Functions that are too complex, files that are too long, rooms that use names that are private to others; cells of
notebooks that are too long, and functions that two of them define.
"""

import ast
import sys
from collections import defaultdict
from pathlib import Path

import nbformat
from radon.complexity import cc_visit

MOST_COMPLEX, LONGEST, LONGEST_CELL = 15, 450, 25
TORCHS_OWN = {"_parameters", "_buffers", "_modules"}  # of nn.Module, which some of ours call so, too


def main(root: Path) -> int:
    """Print what is wrong, a line each; the number of lines."""
    source = root / "src" / "bar"
    wrong = [
        *_too_large(source),
        *_too_large(root / "assignments"),
        *_private_uses(source),
        *_in_notebooks(root / "notebooks"),
    ]
    print("".join(line + "\n" for line in wrong), end="")
    return len(wrong)


def _too_large(root: Path) -> list[str]:
    """Files with too many lines, and functions with too many branches."""
    found = []
    for path in sorted(path for path in root.rglob("*.py") if "_build" not in path.parts):
        text, name = path.read_text("utf-8"), path.relative_to(root).as_posix()
        if text.count("\n") > LONGEST:
            found.append(f"{name}: {text.count(chr(10))} lines, more than {LONGEST}")
        for block in cc_visit(text):
            for each in (block, *getattr(block, "methods", ())):
                if each.letter != "C" and each.complexity > MOST_COMPLEX:  # of a class, radon gives a mean
                    found.append(f"{name}: {each.fullname} has a complexity of {each.complexity}, above {MOST_COMPLEX}")
    return found


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
