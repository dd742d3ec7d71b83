"""What every notebook promises, and the notebooks that train or prune run with other parameters.

That the stored outputs are still what the code gives is nbval's part: `make test` runs it on the same files.
"""

import ast
import importlib.util
import os
import re
import subprocess
from pathlib import Path
from types import MappingProxyType

import nbformat
import papermill
import pytest
import tiny

from bar.book import alone
from bar.errors import BarError

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
HERE = re.compile(r"(?<![\w.:/~])/(?:home|root|work|Users|tmp|opt|mnt)/|[A-Z]:\\\\")


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_is_valid_and_asks_for_the_common_kernel(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"


def test_has_one_cell_of_parameters(notebook):
    cells = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    assert len(cells) == 1
    assert any(isinstance(statement, ast.Assign | ast.AnnAssign) for statement in ast.parse(cells[0].source).body)


def test_stores_an_output_that_is_compared(notebook):
    """Without one, nbval only runs the cells: a cell with no count of its execution is not compared either."""
    compared = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code"
        and cell.outputs
        and cell.execution_count is not None
        and not {"nbval-ignore-output", "nbval-skip"} & set(tags(cell))
    ]
    assert compared, "run `make notebooks`, and look at what it stored"


def test_stores_only_text(notebook):
    """nbval compares no images, and a stored figure would be what some other machine drew."""
    for number, cell in enumerate(notebook.cells):
        assert not cell.get("attachments"), f"cell {number} has an attachment"
        for output in cell.get("outputs", []):
            assert output.output_type in ("stream", "execute_result", "display_data"), f"cell {number}: an error"
            assert output.get("name", "stdout") == "stdout", f"cell {number}: warnings are stored"
            assert set(output.get("data", ["text/plain"])) == {"text/plain"}, f"cell {number}: not only text"
            assert "nbval-ignore-output" not in tags(cell), f"cell {number}: stores what is not compared"


def test_figures_have_alternative_text_and_a_caption(notebook):
    """A cell whose figure the reader sees says what is on it, for those who do not see it."""
    for number, cell in enumerate(notebook.cells):
        options = cell.metadata.get("mystnb", {})
        if cell.cell_type == "code" and "figure" in options:
            assert options["figure"].get("caption"), f"cell {number}: no caption"
            assert len(options.get("image", {}).get("alt", "")) >= 20, f"cell {number}: no alternative text"


def test_names_no_path_of_a_machine(notebook):
    for number, cell in enumerate(notebook.cells):
        outputs = "".join(str(output) for output in cell.get("outputs", []))
        found = HERE.search(cell.source + outputs)
        assert not found or found[0] == "/tmp/", f"cell {number}: {found[0]}"


def test_the_first_cell_of_code_is_what_the_books_address_makes_it(notebook):
    """Otherwise: `make address`."""
    assert [alone.TAG in tags(cell) for cell in notebook.cells].index(True) == 1
    assert notebook.cells[1].source == alone.first_cell(notebook, alone.repository(FOLDER.parent / "book"))


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """Runs the first cell of chapter 6 in an empty folder; returns what it did with pip, and where it works then."""
    notebook = nbformat.read(FOLDER / "06_results.ipynb", as_version=4)
    run, find_spec, pip = subprocess.run, importlib.util.find_spec, []
    (tmp_path / "downloads").mkdir()
    monkeypatch.chdir(tmp_path / "downloads")

    def first_cell(address, installed):
        def without_pip(command, **options):
            return pip.append(command[-1]) if "pip" in command else run(command, **options)

        monkeypatch.setattr(subprocess, "run", without_pip)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: find_spec(name) if installed else None)
        exec(alone.first_cell(notebook, address), {})
        return pip, Path.cwd().relative_to(tmp_path).as_posix()

    return first_cell


@pytest.fixture
def published(tmp_path):
    """The address of a repository."""
    where = tmp_path / "published" / "companion"
    for folder in ("notebooks", "results"):
        (where / folder).mkdir(parents=True)
        (where / folder / "file").write_text("")
    git = ["git", "-C", str(where), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *command], check=True)
    return str(where)


def test_a_notebook_alone_does_nothing_where_all_is_there(downloaded, published, monkeypatch):
    assert downloaded("", installed=True) == ([], "downloads")
    monkeypatch.chdir(FOLDER)
    exec(alone.first_cell(nbformat.read(FOLDER / "06_results.ipynb", as_version=4), published), {})
    assert Path.cwd() == FOLDER


def test_a_notebook_alone_says_in_one_line_what_it_lacks(downloaded):
    with pytest.raises(SystemExit, match=r"^bar is not installed: `make install` in its repository does that$"):
        downloaded("", installed=False)


@pytest.mark.parametrize("installed", [False, True])
def test_a_notebook_alone_fetches_records_and_installs_what_is_missing(downloaded, published, installed):
    pip, where = downloaded(published, installed)
    assert where == "downloads/companion/notebooks"
    assert Path("../results/file").is_file()
    assert pip == ([] if installed else ["./companion[charts]"])
    assert downloaded(published, True) == (pip, where)  # when the cell runs again


def test_the_address_is_an_address(tmp_path):
    (tmp_path / "_config.yml").write_text("sphinx: {config: {launch_repository: 'git@github.com:owner/name'}}")
    with pytest.raises(BarError, match="OWNER/NAME, or nothing"):
        alone.repository(tmp_path)
    (tmp_path / "_config.yml").write_text("sphinx: {config: {launch_repository: 'https://github.com/owner/name/'}}")
    assert alone.repository(tmp_path) == "https://github.com/owner/name"


BUDGETED = [path for path in NOTEBOOKS if path.stem[:2] in ("04", "05", "06")]


def run_with_another_budget(path, factor, result, parameters=MappingProxyType({}), folder=FOLDER):
    assert "pruning_factor" in papermill.inspect_notebook(os.path.relpath(path))
    given = {**parameters, "pruning_factor": factor}
    papermill.execute_notebook(path, result, given, kernel_name="python3", cwd=folder, progress_bar=False)
    injected = [cell for cell in nbformat.read(result, as_version=4).cells if "injected-parameters" in tags(cell)]
    assert [cell.source.splitlines()[-1] for cell in injected] == [f"pruning_factor = {factor}"]


READ_RECORDS = [path for path in NOTEBOOKS if path.stem[:2] in ("04", "06", "07", "10", "11", "12", "13")]


@pytest.mark.parametrize(
    ("path", "factor"),
    [(path, factor) for path in BUDGETED for factor in (2, 16) if factor == 16 or path not in READ_RECORDS],
    ids=lambda value: getattr(value, "stem", value),
)
def test_runs_with_another_budget(path, factor, tmp_path):
    """Those that read records run with a budget of a half below, without any."""
    run_with_another_budget(path, factor, tmp_path / path.name, tiny.PARAMETERS[path.stem])


def test_h4_all_that_read_records_are_tried_alone():
    reading = [path for path in NOTEBOOKS if "../results" in path.read_text("utf-8")]
    assert reading == READ_RECORDS


@pytest.mark.parametrize("path", READ_RECORDS, ids=lambda path: path.stem)
def test_h4_alone_a_notebook_says_that_there_are_no_records(path, tmp_path):
    """As it is when a reader has downloaded it: to an empty folder, without the records of the repository."""
    given, result = tiny.PARAMETERS.get(path.stem, {}), tmp_path / path.name
    if path in BUDGETED:
        run_with_another_budget(path, 2, result, given, tmp_path)
    else:
        papermill.execute_notebook(path, result, given, kernel_name="python3", cwd=tmp_path, progress_bar=False)
    outputs = [output for cell in nbformat.read(result, as_version=4).cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert re.search(
        "no recorded run found|No two methods have been recorded|There is no latency|There is no [*].json|"
        "is not here: `recorded` names the folder",
        printed,
    )


@pytest.mark.long
@pytest.mark.parametrize("factor", [2, 16])
@pytest.mark.parametrize("path", BUDGETED, ids=lambda path: path.stem)
def test_runs_with_another_budget_at_full_length(path, factor, tmp_path):
    run_with_another_budget(path, factor, tmp_path / path.name)


def solutions(path: Path) -> list[str]:
    """The code of a chapter's solutions, in order."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join(cell.source for cell in nbformat.reads(text, 4).cells if cell.cell_type == "markdown")
    return re.findall(r"````\{dropdown\} Solution\n.*?```python\n(.*?)```\n````", text, flags=re.DOTALL)


CHAPTERS = [*NOTEBOOKS, *sorted((FOLDER.parent / "book").glob("[0-9]*.md"))]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_three_to_five_exercises_with_solutions(path):
    text = path.read_text("utf-8")
    asked = len(re.findall(r"\*\*\d\. (?:Recall|Derivation|Computation|Experiment|Judgement|Design)\.\*\*", text))
    assert 3 <= asked <= 5
    assert text.count("{dropdown} Solution") == asked


@pytest.mark.long
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_solutions_are_right(path, monkeypatch):
    """Each chapter's, one after the other: they check themselves."""
    monkeypatch.chdir(FOLDER)
    names = {}
    for solution in solutions(path):
        exec(compile(solution, path.stem, "exec"), names)
