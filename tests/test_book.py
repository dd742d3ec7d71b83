"""The built book in a real browser, without a network: from the file system and over HTTP.

The book is built in a temporary folder, so that a reader's own is not replaced, and its notebooks train for seconds
(see `tiny`). With --all it is the real one: that under book/_build where it is newer than all that it is made from.
"""

import functools
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import tiny

import bar
from bar import book
from bar.book import about, building, executing, keeping
from bar.book import pages as pages_
from bar.errors import BarError

ROOT = Path(__file__).parent.parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
SOURCES = ["notebooks/*.ipynb", "book/*.*", "book/_ext/*", "book/_static/*", "src/bar/**/*.py", "results/**/*"]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

PATIENCE = 180_000  # milliseconds: nothing waits so long but on a machine that is busy with other work
# Charts live, and what is wide is marked, some time after a page has loaded.
READY = """document.documentElement.dataset.looked && !document.querySelector('figure.touch:not(.lives)')"""

# One look at a page, after MathJax is done. Code is not looked at: there, TeX may be meant.
LOOK = r"""async () => {
  const formulas = [...document.querySelectorAll('.math')].filter(e => e.textContent.trim());
  if (formulas.length && window.MathJax?.startup) await MathJax.startup.promise;
  const words = document.body.cloneNode(true);
  words.querySelectorAll('pre, code, script, style').forEach(e => e.remove());
  return {
    formulas: formulas.length,
    unrendered: formulas.filter(e => !e.querySelector('mjx-container svg')).map(e => e.textContent),
    wrong: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent),
    tex: words.textContent.match(/.{0,40}(\\\(|\\\[|\\[a-zA-Z]{2}|\$\S[^$\n]*\$|\$\$).{0,40}/g) || [],
    images: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    silent: [...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.src),
    stderr: [...document.querySelectorAll('article .output.stderr')].map(e => e.textContent.slice(0, 200)),
    wide: Math.max(0, document.scrollingElement.scrollWidth - window.innerWidth),
  };
}"""


@pytest.fixture(scope="session")
def html(tmp_path_factory, pytestconfig):
    """The folder of the built book."""
    copy = tmp_path_factory.mktemp("book") / "book"
    shutil.copytree(ROOT / "book", copy, ignore=shutil.ignore_patterns("_build", "_executed", "_cache", "_unfinished"))
    if not pytestconfig.getoption("--all"):
        return book.build(notebooks=tiny.copies(copy.parent), book=copy).parent
    built = ROOT / "book" / "_build" / "html" / "index.html"
    newest = max(path.stat().st_mtime for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file())
    if built.is_file() and built.stat().st_mtime > newest:
        return built.parent
    return book.build(notebooks=ROOT / "notebooks", book=copy).parent


@pytest.fixture(scope="session")
def browser():
    """Chromium, from the system's packages."""
    if not Path(CHROMIUM).is_file():
        message = f"no Chromium at {CHROMIUM}: apt-get install chromium, or set CHROMIUM to its path"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        yield chromium
        chromium.close()


def opened(browser, **options):
    """A page of its own, that waits as long as it takes."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    return context.new_page()


@pytest.fixture(params=["file", "http"])
def address(request, html):
    """Where the book is, with a slash at the end: in the file system, then behind a server on this machine."""
    if request.param == "file":
        yield html.as_uri() + "/"
        return
    handler = functools.partial(QuietHandler, directory=str(html))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A file server that does not report each request."""

    def log_message(self, *_):
        pass


@pytest.fixture
def page(browser, address):
    """A page that can reach the book and nothing else, and the list of what went wrong on it."""
    page, complaints = opened(browser, viewport={"width": 1280, "height": 900}, offline=False), []
    page.context.route(
        lambda url: not url.startswith((address, "data:", "blob:")),
        lambda route: (complaints.append(f"asked for {route.request.url}"), route.abort()),
    )
    page.on("requestfailed", lambda r: None if left(r) else complaints.append(f"failed: {r.url} {r.failure}"))
    page.on("response", lambda r: complaints.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    page.on("console", lambda m: complaints.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    yield page, complaints
    page.context.close()


def left(request) -> bool:
    """Whether a request was given up because the reader went on to another page: charts fetch their script late, and
    the search reads each page it found. What is refused (ERR_FAILED) or not there (its status) has another name."""
    return request.failure == "net::ERR_ABORTED"


def chapters(html: Path) -> list[str]:
    """Every page of the book that has contents, as addresses relative to its top."""
    return sorted(path.relative_to(html).as_posix() for path in html.rglob("*.html") if "_static" not in path.parts)


def test_every_page(page, html, address):
    page, complaints = page
    names, formulas, problems = chapters(html), 0, []
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"_executed/{notebook.stem}.html" in names
    for name in names:
        page.goto(address + name, wait_until="load")
        if name == "index.html":  # sends the reader on to the first page
            page.wait_for_url(address + "intro.html")
        page.wait_for_function(READY)  # what a page still fetches when it is left is not there for the next one
        look = page.evaluate(LOOK)
        formulas += look.pop("formulas")
        problems += [f"{name}: {what}: {found}" for what, found in look.items() if found]
        problems += [f"{name}: {complaint}" for complaint in complaints]
        complaints.clear()
    assert not problems, "\n".join(problems)
    assert formulas > 0


# Formulas too small to read, and what reaches beyond the column of text, unless it is marked as scrolling.
CUT = """() => {
  const shrunk = [...document.querySelectorAll('article mjx-container > svg')].filter(e => {
    const shown = e.getBoundingClientRect(), drawn = e.viewBox.baseVal;
    return shown.width / drawn.width < 0.8 * shown.height / drawn.height;
  });
  const blocks = document.querySelectorAll('article :is(pre, table, img, svg, mjx-container, .output, div.math)');
  return shrunk.concat([...blocks].filter(e => {
    if (!e.getClientRects().length || e.closest('.scrolls')) return false;
    const column = e.closest('article').getBoundingClientRect();
    const inside = e.clientWidth && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display != 'inline';
    return (inside && e.tagName != 'svg') || e.getBoundingClientRect().right > column.right + 1;
  })).map(e => e.outerHTML.slice(0, 100));
}"""


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_nothing_is_cut_off(browser, html, width, height):
    """From the file system only: how wide something is does not depend on who serves it."""
    page = opened(browser, viewport={"width": width, "height": height})
    found = {}
    for name in chapters(html):
        if name != "index.html":
            page.goto(f"{html.as_uri()}/{name}", wait_until="load")
            page.wait_for_function(READY)
            found[name] = [page.evaluate(LOOK)["wide"] or "", *page.evaluate(CUT)]
    page.context.close()
    assert not {name: blocks for name, blocks in found.items() if any(blocks)}


def test_what_is_wide_scrolls_by_keyboard_and_is_whole_in_print_as_are_folds(browser, html):
    page = opened(browser, viewport={"width": 390, "height": 844})
    page.goto(f"{html.as_uri()}/_executed/07_baselines.html", wait_until="load")
    page.wait_for_function(READY)
    block = page.locator("article .scrolls:visible").first
    assert "scroll sideways" in block.evaluate("e => e.previousElementSibling.innerText")
    block.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})  # about A4
    assert page.locator("article .scroll-hint:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    folded = page.locator("article details > :not(summary)")
    assert folded.count() > 0
    seen = "all => all.map(e => [e.checkVisibility(), getComputedStyle(e).animationName])"
    assert all(one == [True, "none"] for one in folded.evaluate_all(seen))  # what fades in is printed while it is white
    page.context.close()


def test_lines_of_a_phone_begin_with_no_mark_and_no_half_of_an_option(browser, html):
    page = opened(browser, viewport={"width": 390, "height": 844})
    for name, kept in (("errata.html", ".with-mark"), ("16_sweeps.html", "code .pre.short")):
        page.goto(f"{html.as_uri()}/{name}", wait_until="load")
        page.wait_for_function(READY)
        lines = page.eval_on_selector_all(f"article {kept}", "all => all.map(each => each.getClientRects().length)")
        assert len(lines) > 5
        assert set(lines) == {1}
    words = page.evaluate("document.querySelector('article').textContent.replace(/\\s+/g, ' ')")
    assert "one file system for --out. " in words
    page.context.close()


def test_search(page, address):
    page, complaints = page
    page.goto(address + "search.html?q=barrier", wait_until="load")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function("document.querySelector('#search-results .search-summary').innerText")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    assert any("02_barrier.html" in link for link in found)
    page.goto(found[0], wait_until="load")
    assert "barrier" in page.inner_text("article").lower()
    assert not complaints


def test_search_finds_no_nonsense(page, address):
    page, _ = page
    page.goto(address + "search.html?q=zyzzyva", wait_until="load")
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.innerText")
    assert page.locator("#search-results li").count() == 0


def test_nothing_is_fetched_from_another_host(html):
    tag = re.compile(r"<(?:script|link|img|source|iframe|video)\b[^>]*\b(?:src|href)=[\"'](?:https?:)?//[^>]*>")
    style = re.compile(r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^)]*")
    found = [(path.name, hit) for path in html.rglob("*.html") for hit in tag.findall(path.read_text("utf-8"))]
    found += [(path.name, hit) for path in html.rglob("*.css") for hit in style.findall(path.read_text("utf-8"))]
    assert not found


# --- charts to touch, print, weights, and everybody -------------------------------------------------------------------

SAMPLE = ("intro.html", "_executed/02_barrier.html", "_executed/04_training.html")  # per push; --all takes every page


@pytest.fixture
def looked_at(html, pytestconfig):
    """The pages that a test looks at."""
    names = [name for name in chapters(html) if name != "index.html"]
    return names if pytestconfig.getoption("--all") else [name for name in names if name in SAMPLE]


@pytest.fixture
def wide(browser):
    """A page of 1280 pixels."""
    page = opened(browser, viewport={"width": 1280, "height": 900})
    yield page
    page.context.close()


def with_charts(page, html: Path, names: list[str]) -> Iterator[str]:
    """Go to each page that has charts, and wait until they live."""
    for name in names:
        if 'class="touch"' in (html / name).read_text("utf-8"):
            page.goto(f"{html.as_uri()}/{name}", wait_until="load")
            page.wait_for_function(READY)
            yield name


def test_every_slider_and_menu_moves_its_chart_by_keyboard(wide, html, looked_at):
    seen = 0
    for _ in with_charts(wide, html, looked_at):
        for chart in wide.locator("figure.touch").all():
            for control in chart.locator("input, select").all():
                control.focus()
                name_of = control.get_attribute("name")
                signal = chart.evaluate("(figure, name) => figure.view.signal(name)", name_of)
                at_its_end = control.evaluate("e => e.value == e.max || e.selectedIndex == e.length - 1")
                is_box = control.get_attribute("type") == "checkbox"
                wide.keyboard.press("Space" if is_box else "ArrowLeft" if at_its_end else "ArrowRight")
                moved = "([figure, name, before]) => figure.view.signal(name) !== before"
                wide.wait_for_function(moved, arg=[chart.element_handle(), name_of, signal])
                seen += 1
    assert seen >= 4


def test_the_replay_plays_and_is_scrubbed(wide, html):
    (_,) = with_charts(wide, html, ["_executed/04_training.html"])
    chart = wide.locator("#chart-replay")
    gates = "figure => figure.querySelectorAll('.touch-live path').length"
    at_first = chart.evaluate(gates)
    chart.locator("button").click()
    wide.wait_for_function("document.querySelector('#chart-replay').view.signal('epoch') >= 3")
    chart.locator("button").click()  # pause
    slider = chart.locator("input[type=range]")
    slider.focus()
    wide.keyboard.press("End")
    wide.wait_for_function("document.querySelector('#chart-replay').view.signal('epoch') == 24")
    assert chart.evaluate(gates) < at_first / 2  # dead gates are not drawn


def test_print_and_no_script_have_the_still_picture(browser, wide, html):
    (_,) = with_charts(wide, html, ["_executed/02_barrier.html"])
    assert not wide.locator("figure.touch .touch-still").is_visible()
    wide.emulate_media(media="print")
    assert wide.locator("figure.touch .touch-still").is_visible()
    assert not wide.locator("figure.touch .touch-live").is_visible()
    page = opened(browser, java_script_enabled=False)
    page.goto(f"{html.as_uri()}/_executed/02_barrier.html", wait_until="load")
    assert page.locator("figure.touch .touch-still").is_visible()
    assert page.locator("figure.touch .touch-still").get_attribute("alt")
    page.context.close()


def test_every_page_opens_with_a_question_and_its_computed_answer(html):
    for path in html.rglob("[0-9]*_*.html"):
        text = path.read_text("utf-8")
        question, _, rest = text.partition('class="tip answer admonition"')
        assert "<strong>" in question.rpartition("</h1>")[2], path.name
        answer = re.sub("<[^>]*>", "", rest.partition("</div>")[0])
        assert len(answer.split()) > 8, path.name


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390), ("light", 390), ("dark", 1280)])
def test_axe_finds_nothing_serious(browser, html, looked_at, pytestconfig, theme, width):
    if not pytestconfig.getoption("--all") and (theme, width) in (("light", 390), ("dark", 1280)):
        looked_at = looked_at[:1]
    package = Path(find_spec("axe_playwright_python").origin).parent
    axe = next(package.rglob("axe.min.js")).read_text("utf-8")
    page, found = opened(browser, viewport={"width": width, "height": 900}, color_scheme=theme), []
    for name in looked_at:
        page.goto(f"{html.as_uri()}/{name}", wait_until="load")
        page.wait_for_function(READY)
        page.evaluate(axe)
        violations = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        for one in violations:
            if one["impact"] in ("serious", "critical"):
                found += [f"{name}: {one['id']}: {node['html'][:120]}" for node in one["nodes"]]
    page.context.close()
    assert not found, "\n".join(found)


def test_weights(html):
    """Beyond scripts that pages share, 1.5 MB a page; MathJax only where there is maths; 25 MB the book."""
    for name in chapters(html):
        text = (html / name).read_text("utf-8")
        pictures = {html / name.rpartition("/")[0] / source for source in re.findall(r'<img[^>]*src="([^":]+)"', text)}
        weight = len(text.encode()) + sum(picture.stat().st_size for picture in pictures)
        assert weight <= 1.5e6, f"{name}: {weight:,} bytes"
        assert ("mathjax/" in text) <= ('class="math' in text), f"{name} has MathJax and no maths"
    assert sum(path.stat().st_size for path in html.rglob("*") if path.is_file()) <= 25e6


# --- building ---------------------------------------------------------------------------------------------------------


def a_book(folder: Path, *sources: str, toc: str = "") -> tuple[Path, Path]:
    """A book of one notebook: a cell of parameters, then these cells."""
    cells = [nbformat.v4.new_markdown_cell("# One")]
    cells += [nbformat.v4.new_code_cell(source) for source in ("pruning_factor = 4\ndataset = 'digits'", *sources)]
    cells[1].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebooks, pages = folder / "notebooks", folder / "book"
    for new in (notebooks, pages):
        new.mkdir(parents=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), notebooks / "01_one.ipynb")
    (pages / "_config.yml").write_text(
        "title: t\nauthor: a\nonly_build_toc_files: true\nexecute:\n  execute_notebooks: 'off'\n"
    )
    (pages / "intro.md").write_text("# Intro\n")
    chapters = "- file: _executed/01_one\n- file: _executed/about_build\n"
    (pages / "_toc.yml").write_text(toc or f"format: jb-book\nroot: intro\nchapters:\n{chapters}")
    return notebooks, pages


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small book, built with a factor of its own."""
    folders = a_book(
        tmp_path_factory.mktemp("small"), "from pathlib import Path\nprint(pruning_factor * 111, Path.cwd().name)"
    )
    index = book.build({"pruning_factor": 7}, *folders)
    return folders, index


def test_build_runs_with_the_parameters_and_in_the_folder_of_the_notebooks(small):
    _, index = small
    assert "777 notebooks" in (index.parent / "_executed" / "01_one.html").read_text("utf-8")


def test_about_page(small):
    (_, pages), index = small
    about = (pages / "_executed" / "about_build.md").read_text("utf-8")
    assert "| `pruning_factor` | **`7`** (given) | 01 |" in about
    assert "| `dataset` | `'digits'` | 01 |" in about
    assert re.search(r"\| \{doc\}`01_one` \| \d+\.\d \| \d{4}-\d\d-\d\d", about)
    for line in ("Commit", "Processor", "Memory", "GPU", "torch", "jupyter-book"):
        assert re.search(rf"\| {line} \| \S+", about), line
    assert (index.parent / "_executed" / "about_build.html").is_file()


def test_no_path_of_this_machine_in_an_executed_notebook(small):
    (_, pages), _ = small
    text = (pages / "_executed" / "01_one.ipynb").read_text("utf-8")
    assert str(pages.parent) not in text
    assert str(Path.home()) not in text


def test_what_is_unchanged_is_not_run_again(tmp_path, monkeypatch, capsys):
    """Whatever changes that it is made from, it runs again; else it is the notebook of the build before."""
    notebooks, pages = a_book(tmp_path, "import secrets\nprint(secrets.token_hex())")
    result = notebooks.parent / "results" / "run" / "result.json"
    result.parent.mkdir(parents=True)
    monkeypatch.setattr(building.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, ""))  # no pages

    def printed(parameters=None, **options):
        book.build(parameters, notebooks, pages, **options)
        return nbformat.read(pages / "_executed" / "01_one.ipynb", as_version=4).cells[-1].outputs[0].text

    first = printed()
    assert printed() == first
    assert "01_one.ipynb is unchanged since" in capsys.readouterr().out
    others = [printed({"pruning_factor": 8}), printed(fresh=True)]
    result.write_text("{}")
    others += [printed(), printed({"dataset": str(tmp_path / "images")})]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(b"")
    others += [printed({"dataset": str(tmp_path / "images")})]
    (tmp_path / "weights.safetensors").write_bytes(b"1")
    others += [printed({"dataset": str(tmp_path / "weights.safetensors")})]
    (tmp_path / "weights.safetensors").write_bytes(b"12")
    others += [printed({"dataset": str(tmp_path / "weights.safetensors")})]
    monkeypatch.setattr(keeping, "hardware", lambda: {"Processor": "another"})
    others += [printed()]
    monkeypatch.setattr(keeping, "distributions", list)
    others += [printed()]
    path = notebooks / "01_one.ipynb"
    path.write_text(path.read_text().replace("# One", "# Two"))
    others += [printed()]
    copy = tmp_path / "package"
    shutil.copytree(Path(bar.__file__).parent, copy)
    monkeypatch.setattr(bar, "__file__", str(copy / "__init__.py"))
    assert printed() == others[-1]
    (copy / "cost.py").write_text("")
    others += [printed()]
    (pages / "_cache" / "01_one.ipynb").write_text("{")
    others += [printed()]
    assert len({first, *others}) == 1 + len(others)
    assert printed() == others[-1]


def test_a_failing_cell_stops_the_build_and_leaves_no_book(tmp_path, capfd):
    notebooks, pages = a_book(tmp_path, "ratio = 1 / (pruning_factor - 4)", "print('not reached')")
    (pages / "_build" / "html").mkdir(parents=True)
    with pytest.raises(BarError, match=r"01_one\.ipynb, cell 2 failed: ZeroDivisionError: division by zero"):
        book.build({"dataset": "digits"}, notebooks, pages)
    shown = capfd.readouterr()
    assert "01_one.ipynb, cell 2:\n\n    ratio = 1 / (pruning_factor - 4)\n" in shown.err
    assert "Traceback" in shown.err
    assert "not reached" not in shown.out
    assert not (pages / "_executed").exists()
    assert not (pages / "_build").exists()


def test_a_warning_of_the_book_fails_the_build(tmp_path):
    notebooks, pages = a_book(tmp_path, "print(1)")
    (pages / "intro.md").write_text("# Intro\n\n{doc}`nowhere`\n")
    with pytest.raises(BarError, match="warnings or errors above"):
        book.build({}, notebooks, pages)
    assert not (pages / "_build").exists()


def test_bad_parameters_are_refused_before_anything_runs(tmp_path):
    notebooks, pages = a_book(tmp_path, "print(1)")
    (pages / "_executed").mkdir()
    with pytest.raises(BarError, match=r"'prunning_factor'; did you mean 'pruning_factor'\? Known: dataset, pruning"):
        book.build({"prunning_factor": 8}, notebooks, pages)
    with pytest.raises(BarError, match="pruning_factor=many: a number is needed"):
        book.build({"pruning_factor": "many"}, notebooks, pages)
    assert (pages / "_executed").exists()


def test_the_table_of_contents_must_fit_the_notebooks(tmp_path):
    chapters = "format: jb-book\nroot: intro\nchapters:\n"
    folders = a_book(tmp_path / "a", toc=chapters + "- file: _executed/01_one\n- file: _executed/02_two\n")
    with pytest.raises(BarError, match="do not exist: 02_two"):
        book.build({}, *folders)
    folders = a_book(tmp_path / "b", toc=chapters + "- file: _executed/about_build\n")
    with pytest.raises(BarError, match="as _executed/NAME: 01_one"):
        book.build({}, *folders)


def test_not_in_a_copy_of_the_repository(tmp_path):
    with pytest.raises(BarError, match="top folder of a copy of the repository"):
        book.build({}, tmp_path / "notebooks", tmp_path / "book")


@pytest.mark.parametrize("text", ["8", "=8", "FACTOR=", "A B=1"])
def test_parameters_that_cannot_be_read(text):
    with pytest.raises(BarError, match="write NAME=value"):
        book.parse_parameters([text])


@pytest.mark.parametrize(
    "text", ["nan", "1e400", "9" * 400, "9" * 5000, "0x" + "f" * 6000, "-" * 100_000 + "1", "{[]: 1}"]
)
def test_g1_a_parameter_that_is_no_number(tmp_path, text):
    notebooks, pages = a_book(tmp_path, "print(1)")
    with pytest.raises(BarError, match="a number is needed") as refused:
        book.build(book.parse_parameters([f"PRUNING_FACTOR={text}"]), notebooks, pages)
    assert len(str(refused.value)) < 400


def test_stored_outputs_are_those_that_can_be_compared(tmp_path):
    notebooks, _ = a_book(tmp_path, "print(pruning_factor * 2)", "import time\nprint(time.time())")
    path = notebooks / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].metadata["tags"] = ["nbval-ignore-output"]
    nbformat.write(notebook, path)
    book.store_outputs(notebooks)
    cells = nbformat.read(path, as_version=4).cells
    assert [output.text for output in cells[2].outputs] == ["8\n"]
    assert cells[2].execution_count is not None  # nbval compares nothing for a cell without one
    assert cells[3].outputs == []
    assert cells[3].execution_count is None


@pytest.mark.parametrize(
    "source", ["import sys\nprint('x', file=sys.stderr)", "from IPython.display import HTML\nHTML('x')"]
)
def test_outputs_that_cannot_be_compared_are_not_stored(tmp_path, source):
    notebooks, _ = a_book(tmp_path, source)
    with pytest.raises(BarError, match=r"01_one\.ipynb, cell 2"):
        book.store_outputs(notebooks)


# --- whatever the environment, whoever else builds --------------------------------------------------------------------

FIGURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"


def with_figure(folder: Path, source: str, tags: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """A book of one notebook with one cell that has a figure's caption."""
    notebooks, pages = a_book(folder, source)
    path = notebooks / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].metadata["mystnb"] = {"figure": {"name": "fig-one", "caption": "One."}}
    notebook.cells[2].metadata["tags"] = list(tags)
    nbformat.write(notebook, path)
    return notebooks, pages


@pytest.fixture
def no_pages(monkeypatch):
    """Without Sphinx, which takes most of the time."""
    monkeypatch.setattr(building.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, ""))


def test_h1_figures_whatever_the_environment_says(tmp_path, monkeypatch, no_pages):
    """Also with settings of the user's own that would need LaTeX."""
    (tmp_path / "matplotlibrc").write_text("backend: Agg\ntext.usetex: True\n")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    notebooks, pages = with_figure(tmp_path, FIGURE)
    book.build({}, notebooks, pages)
    cell = nbformat.read(pages / "_executed" / "01_one.ipynb", as_version=4).cells[-1]
    assert any("image/svg+xml" in output.get("data", {}) for output in cell.outputs)
    assert os.environ["MPLBACKEND"] == "Agg"


def test_h1_a_figure_cell_without_an_image_fails_the_build(tmp_path, no_pages):
    notebooks, pages = with_figure(tmp_path, "print('there is none')")
    with pytest.raises(BarError, match=r"01_one\.ipynb, cell 2, has drawn no figure, but is to draw one \(fig-one\)"):
        book.build({"pruning_factor": 8}, notebooks, pages)
    assert not (pages / "_executed").exists()
    assert not list((pages / "_cache").glob("*.ipynb"))


def test_h1_a_cell_that_may_say_why_there_is_none(tmp_path, no_pages):
    notebooks, pages = with_figure(tmp_path / "a", "print('there is none')", (book.NOTHING_TO_DRAW,))
    book.build({}, notebooks, pages)
    notebooks, pages = with_figure(tmp_path / "b", "figure = None", (book.NOTHING_TO_DRAW,))
    with pytest.raises(BarError, match="has drawn no figure"):
        book.build({}, notebooks, pages)


def test_h1_no_text_refers_to_a_figure_that_is_not_there(tmp_path, no_pages):
    """As at a pruning factor with which nothing is recorded: Sphinx fails on a reference that leads nowhere."""
    notebooks, pages = with_figure(tmp_path, "print('there is none')", (book.NOTHING_TO_DRAW,))
    notebook = nbformat.read(notebooks / "01_one.ipynb", as_version=4)
    text = "{numref}`fig-one` asks, and in {numref}`1 <fig-one>` it is seen. {ref}`fig-one` is not {numref}`fig-ones`."
    notebook.cells.append(nbformat.v4.new_markdown_cell(text))
    nbformat.write(notebook, notebooks / "01_one.ipynb")
    book.build({}, notebooks, pages)
    missing = "figure that is missing here"
    expected = f"The {missing} asks, and in the {missing} it is seen. The {missing} is not {{numref}}`fig-ones`."
    assert nbformat.read(pages / "_executed" / "01_one.ipynb", as_version=4).cells[-1].source == expected


def test_h1_no_other_page_refers_to_a_figure_that_may_be_missing():
    kinds = (".ipynb", ".md", ".rst", ".py", ".yml", ".bib", ".toml")
    paths = [path for folder in ("notebooks", "book") for path in (ROOT / folder).glob("*.*") if path.suffix in kinds]
    pages = {path: path.read_text("utf-8") for path in paths}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if book.NOTHING_TO_DRAW in cell.metadata.get("tags", []):
                name = cell.metadata["mystnb"]["figure"]["name"]
                assert [other for other, text in pages.items() if f"{name}`" in text] in ([], [path])


@pytest.fixture
def slow(monkeypatch, no_pages):
    """Builds whose notebooks run for a while, without a kernel; yields what they were given, one after the other."""
    seen = []

    def execute(path, given):
        time.sleep(0.2)
        seen.append(given["pruning_factor"])
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"factor {given['pruning_factor']}")])

    monkeypatch.setattr(executing, "execute", execute)
    return seen


def test_h2_a_second_build_waits(tmp_path, slow, capsys):
    notebooks, pages = a_book(tmp_path)
    for number in (2, 3):
        shutil.copy(notebooks / "01_one.ipynb", notebooks / f"0{number}_more.ipynb")
    with (pages / "_toc.yml").open("a") as toc:
        toc.write("- file: _executed/02_more\n- file: _executed/03_more\n")
    builds = [threading.Thread(target=book.build, args=({"pruning_factor": f}, notebooks, pages)) for f in (7, 8)]
    for build in builds:
        build.start()
    for build in builds:
        build.join()
    assert slow in ([7] * 3 + [8] * 3, [8] * 3 + [7] * 3)
    texts = {path.read_text().partition("factor ")[2][0] for path in (pages / "_executed").glob("*.ipynb")}
    assert texts == {str(slow[-1])}
    assert f"another build is at work in {pages}; waiting for it" in capsys.readouterr().out


def test_h2_what_a_killed_build_left_is_cleared(tmp_path, slow):
    notebooks, pages = a_book(tmp_path)
    for left in ("_executed/01_one.ipynb", "_unfinished/_build/html/index.html", "_cache/01_one.ipynb.1.partial"):
        (pages / left).parent.mkdir(parents=True, exist_ok=True)
        (pages / left).write_text("{")
    book.build({"pruning_factor": 7}, notebooks, pages)
    assert sorted(path.name for path in (pages / "_cache").iterdir() if path.name != book.LOCK) == ["01_one.ipynb"]
    assert not (pages / "_unfinished").exists()


def test_h2_interrupted_pages_are_no_book(tmp_path, slow, monkeypatch):
    def interrupted(command, **_):
        html = Path(command[command.index("--path-output") + 1]) / "_build" / "html"
        html.mkdir(parents=True)
        (html / "index.html").write_text("half")
        raise KeyboardInterrupt

    notebooks, pages = a_book(tmp_path)
    monkeypatch.setattr(about, "page", lambda *_: "")
    monkeypatch.setattr(building.subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        book.build({"pruning_factor": 7}, notebooks, pages)
    assert not (pages / "_build").exists()
    assert not (pages / "_unfinished").exists()


def test_h2_a_killed_build_lets_the_next_one_begin(tmp_path, slow):
    notebooks, pages = a_book(tmp_path)
    (pages / "_cache").mkdir()
    lock = str(pages / "_cache" / book.LOCK)
    hold = f"import filelock, time; lock = filelock.FileLock({lock!r}); lock.acquire(); print(1, flush=True)"
    with subprocess.Popen([sys.executable, "-c", hold + "; time.sleep(60)"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        other.send_signal(signal.SIGKILL)
    book.build({"pruning_factor": 7}, notebooks, pages)
    assert slow == [7]


def test_h3_a_page_shows_what_it_ran_with(small):
    (_, pages), index = small
    cells = nbformat.read(pages / "_executed" / "01_one.ipynb", as_version=4).cells
    assert cells[2].metadata["tags"] == ["injected-parameters"]
    said, again = cells[3].source.split("\n\n")
    assert said == "This page ran with `` pruning_factor = 7 `` (given), `` dataset = 'digits' ``."
    assert re.match(r"That took \d+ s\. ", again)
    assert "`` make book PRUNING_FACTOR=4 ``" in again
    assert "`` papermill 01_one.ipynb mine.ipynb -p pruning_factor 4 ``" in again
    html = re.sub("<[^>]*>", "", (index.parent / "_executed" / "01_one.html").read_text("utf-8"))
    assert re.search(
        r"This page ran with pruning_factor = 7 \(given\), dataset = (')digits", html.replace("&#39;", "'")
    )


def test_the_answer_stands_below_the_question(tmp_path, no_pages):
    notebooks, pages = a_book(tmp_path, "print('It is', pruning_factor * 2,\n      end='.')")
    path = notebooks / "01_one.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "# One\n\n**How much?**\n\nMore text."
    notebook.cells[2].metadata["tags"] = [pages_.ANSWER]
    nbformat.write(notebook, path)
    book.build({}, notebooks, pages)
    cells = nbformat.read(pages / "_executed" / "01_one.ipynb", as_version=4).cells
    box = "```{admonition} The answer\n:class: tip answer\nIt is 8.\n```"
    assert cells[0].source == f"# One\n\n**How much?**\n\n{box}\n\nMore text."
    assert "remove-cell" in cells[-1].metadata["tags"]


def test_h3_every_notebook_of_the_book_says_so(tmp_path, no_pages, monkeypatch):
    """Those of the repository, without running them."""
    monkeypatch.setattr(executing, "execute", lambda path, _: nbformat.read(path, as_version=4))
    monkeypatch.setattr(pages_, "check_figures", lambda *_, **__: None)
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("_build", "_executed", "_cache"))
    book.build({"seed": 5}, ROOT / "notebooks", tmp_path / "book")
    for path in (tmp_path / "book" / "_executed").glob("*.ipynb"):
        lines = [line for cell in json.loads(path.read_text())["cells"] for line in cell["source"]]
        (line,) = (line for line in lines if line.startswith("This page ran with"))
        assert ("seed = 5 `` (given)" in line) == any(line.startswith("seed =") for line in lines)
