"""The pages of the book that are not notebooks: what they name exists, and their arithmetic is right."""

import contextlib
import dataclasses
import importlib
import json
import math
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

import bar
from bar import models, paper
from bar.cli import app
from bar.runs import compare

ROOT = Path(__file__).parent.parent
PAGES = {path.stem: path.read_text("utf-8") for path in (ROOT / "book").glob("*.md")}


def found(name: str) -> object:
    """What a dotted name of the package is."""
    thing, rest = bar, name.split(".")[1:]
    for number, part in enumerate(rest, start=1):
        if not hasattr(thing, part):
            importlib.import_module(".".join(["bar", *rest[:number]]))
        thing = getattr(thing, part)
    return thing


def test_every_literal_block_is_of_the_language_it_is_marked_as():
    """Sphinx warns of one that it cannot colour, and a warning ends the build of the book, at its very end."""
    from pygments.lexers import get_lexer_by_name

    notebooks = {path.stem: nbformat.read(path, as_version=4).cells for path in (ROOT / "notebooks").glob("*.ipynb")}
    chapters = {
        name: "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for name, cells in notebooks.items()
    }
    blocks = [
        (name, *block)
        for name, text in (PAGES | chapters).items()
        for block in re.findall(r"^ *```(\w+)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    ]
    assert len(blocks) > 50
    for name, language, block in blocks:
        wrong = [text for kind, text in get_lexer_by_name(language).get_tokens(block) if "Error" in str(kind)]
        assert not wrong, f"{name}: {wrong} is no {language}: {block}"


def test_commands_of_the_pages_can_be_typed_and_export_what_was_run():
    """Each `bar …` has options that there are; what is exported is the folder of a run of the same page."""
    notebooks = {path.stem: nbformat.read(path, as_version=4).cells for path in (ROOT / "notebooks").glob("*.ipynb")}
    chapters = {
        name: "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for name, cells in notebooks.items()
    }
    fields, typed = {field.name for field in dataclasses.fields(bar.RunConfig)} - {"options"}, 0
    for name, text in (PAGES | chapters | {"README": (ROOT / "README.md").read_text("utf-8")}).items():
        written, exported = set(), set()
        for line in re.findall(r"(?:^\$ (?:\.venv/bin/)?|`)bar ([a-z]+ [^`\n]*)", text, re.MULTILINE):
            command, *arguments = shlex.split(line, comments=True)
            context = app.commands[command].make_context(command, arguments)  # UsageError if it cannot be typed
            given = {key: value for key, value in context.params.items() if key in fields and value}
            if command == "run":
                with contextlib.suppress(bar.BarError):  # what is to be there first: a module, a file of weights
                    written.add(str(context.params["out"] or f"runs/{bar.RunConfig(**given).name}"))
            exported |= {str(context.params["run"])} if command == "export" else set()
            typed += 1
        assert exported - {"RUN"} <= written, name
    assert typed > 40


def test_the_map_of_the_paper_names_what_there_is():
    rows = [line.split("|") for line in PAGES["paper"].splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) > 25
    for row in rows:
        for name in re.findall(r"`(bar[\w.]*)`", row[3]):
            assert found(name) is not None
        (file,) = re.findall(r"`(tests/\w+\.py)`", row[4])
        assert (ROOT / file).is_file()
    for number in range(1, 8):
        assert re.search(rf"eqs?\. ({number}|\d and {number})", PAGES["paper"])
    for number in range(1, 9):
        assert f"figure {number} |" in PAGES["paper"]


def test_every_chapter_is_on_the_front_page_under_the_number_of_its_file():
    chapters = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    for stem in chapters:
        assert f"| {int(stem[:2])} | {{doc}}`_executed/{stem}` |" in PAGES["intro"]


def test_the_front_page_has_the_accuracy_of_its_record():
    accuracy = json.loads((ROOT / "docs" / "pruned.json").read_text("utf-8"))["validation_accuracy"]
    assert f"gets {accuracy:.1%} of".replace("%", " %") in PAGES["intro"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_chapter_links_its_terms_to_the_glossary_once(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    terms = [role.partition("<")[2].rstrip(">") or role for role in re.findall(r"\{term\}`([^`]+)`", text)]
    assert len(terms) >= 2
    assert len(terms) == len(set(terms))


def test_every_work_has_a_doi_or_an_address():
    works = re.split(r"\n@", (ROOT / "book" / "references.bib").read_text("utf-8"))
    assert not [work[:40] for work in works if work.strip() and not re.search(r"\b(doi|url)\s*=", work)]


@pytest.mark.parametrize(
    ("printed", "number"),
    [
        ("0.168", 1 / (1 + 11 ** (2 / 3))),
        ("0.232", 1 / (1 + 11 ** (1 / 2))),
        ("1.25 %", 100 * (4 * 788_000 / 3_112_960 - 1)),
        ("7.9", 8 / 1.0125),
        ("15.8", 16 / 1.0125),
        ("63.2", 64 / 1.0125),
        ("-42.48", 100 * (7.88 / 13.7 - 1)),
        ("-4.6", math.log(0.01)),
    ],
)
def test_arithmetic_of_the_errata(printed, number):
    assert printed in PAGES["errata"].replace("−", "-")
    digits = len(re.search(r"\.(\d+)", printed)[1])
    assert f"{number:.{digits}f}" == re.search(r"[-\d.]+", printed)[0]


def test_counts_and_tables_of_the_errata():
    with torch.device("meta"):
        wrn = bar.count(models.build("wrn-28-12", 10, (3, 32, 32)), (3, 32, 32))
        resnet = bar.count(models.build("resnet50", 10, (3, 128, 128)), (3, 128, 128))
    stem = resnet.layers["conv1"]["flops"]
    assert f"{wrn.volume:,}".replace(",", "{,}") in PAGES["errata"]
    assert f"{resnet.flops:,}" in PAGES["errata"]
    assert f"{resnet.flops - stem + stem // 49:,}" in PAGES["errata"]
    assert f"that gives {compare.uniform_flops(resnet, 4):.1f} at 4x" in PAGES["errata"]
    results = paper.table("pruning_results")
    ours = results[results.method == "bar"].groupby("dataset").f_factor.max()
    assert f"{ours['CIFAR-100']} and {ours['Mio-TCD']}" in PAGES["errata"]
    mio = results[results.dataset == "Mio-TCD"].groupby("method").nth(2).set_index("method").accuracy
    assert f"{100 * mio['morphnet']:.2f} %\nagainst {100 * mio['bar']:.2f} %" in PAGES["errata"]


@pytest.mark.parametrize(
    ("name", "side", "words"),
    [("resnet50", 128, "pruned by more than {}x"), ("wrn-28-12", 32, "(The bound of WRN-28-12 is {}x.")],
)
def test_bounds_of_the_errata(name, side, words):
    """What is left if the 1x1 convolutions of pooling blocks keep all their features."""
    network, size = models.build(name, 10, (3, side, side)), (3, side, side)
    volume, mapped = bar.count(network, size).volume, bar.gate(network, size).network.spine()[1:]
    strided = [conv for conv in mapped if network.get_submodule(conv).stride == (2, 2)]
    bounds = [volume / bar.gate(network, size, protect=kept).smallest() for kept in (strided, mapped)]
    assert words.format(f"{bounds[0]:.2f}") in PAGES["errata"]
    assert f"{bounds[1]:.2f}x" in PAGES["errata"]


def extension(name: str) -> object:
    """A module of the book's own extensions of Sphinx."""
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_comments_between_commands_are_comments():
    lexer = extension("commands").CommandsLexer()
    block = "# if it's there, then\n$ bar run \\\n    -x 8  # once\nV = 8\n"
    tokens = [(str(kind), text) for kind, text in lexer.get_tokens(block)]
    assert "".join(text for _, text in tokens) == block
    assert [text for kind, text in tokens if "Comment" in kind] == ["# if it's there, then\n", "# once\n"]
    assert [text for kind, text in tokens if "Prompt" in kind] == ["$ "]
    assert [text for kind, text in tokens if "Output" in kind] == ["V = 8\n"]


def test_launch_links_lead_to_the_notebooks_of_the_repository():
    launching = extension("launching")
    app = SimpleNamespace(config=SimpleNamespace(launch_repository="https://github.com/a/b/", launch_branch="main"))
    context = {"body": "<h1>One</h1>"}
    launching.add(app, "_executed/02_barrier", "", context, None)
    assert "colab.research.google.com/github/a/b/blob/main/notebooks/02_barrier.ipynb" in context["body"]
    assert "mybinder.org/v2/gh/a/b/main?labpath=notebooks/02_barrier.ipynb" in context["body"]
    for name, address in (("intro", "https://github.com/a/b"), ("_executed/02_barrier", "")):
        app.config.launch_repository = address
        context = {"body": "<h1>One</h1>"}
        launching.add(app, name, "", context, None)
        assert context["body"] == "<h1>One</h1>"
